//! Doing what a plan says, with ordinary calls, and saying in a journal how far it has come.
//!
//! The journal lies outside the checkpoint paths. A line is written before and after each step, so that it is known
//! what was complete when the program died.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::time::{Duration, Instant};

use super::model::State;
use super::{Method, Plan, Program, Step};
use crate::process;

/// How far a program has come, by its journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Steps that are done.
    pub done: usize,
    /// Whether it had begun the next one.
    pub begun: bool,
    /// As many of the first steps are acknowledged.
    pub acknowledged: usize,
}

impl Progress {
    /// Reads a journal; one that is not there says that nothing was done. Waits until no process of the program is
    /// left.
    ///
    /// # Panics
    /// When one does not end.
    pub fn read(journal: &Path) -> Progress {
        let deadline = Instant::now() + process::LIMIT;
        // A child that a killed program leaves behind dies by itself, but perhaps a moment later.
        while File::open(journal).is_ok_and(|journal| journal.try_lock().is_err()) {
            assert!(Instant::now() < deadline, "a process of the program does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut progress = Progress::default();
        for line in fs::read_to_string(journal).unwrap_or_default().lines() {
            let Some((word, number)) = line.split_once(' ') else { continue };
            let number: usize = number.parse().expect("the journal holds numbers");
            match word {
                "begin" => progress.begun = true,
                "end" => (progress.done, progress.begun) = (number + 1, false),
                "acknowledged" => progress.acknowledged = number,
                _ => panic!("a line of the journal: {line}"),
            }
        }
        progress
    }
}

/// Performs the steps of a plan in the directory `ckpt`. Reads something back after each.
///
/// # Panics
/// When a call fails or reads what it must not.
pub fn perform(plan: &Plan, steps: std::ops::Range<usize>, directory: &Path, journal: &Path) {
    let mut journal = OpenOptions::new().create(true).append(true).open(journal).expect("the journal is ours");
    // Children share it.
    journal.lock_shared().expect("the journal can be locked");
    let mut say = |word: &str, number: usize| {
        journal.write_all(format!("{word} {number}\n").as_bytes()).expect("the journal takes lines");
    };
    for number in steps {
        say("begin", number);
        let step = &plan.steps[number];
        match step {
            Step::Wait if wait() => say("acknowledged", number),
            Step::Wait => {}
            step if plan.program == Program::Forks => {
                in_child(|| act(directory, step)).unwrap_or_else(|error| panic!("{number}, {step:.80?}: {error}"));
            }
            step => act(directory, step).unwrap_or_else(|error| panic!("{number}, {step:.80?}: {error}")),
        }
        say("end", number);
        let state = State::after(plan, number + 1);
        if let Some(name) = state.files().nth(number % state.files().count().max(1)) {
            let bytes = fs::read(directory.join(name)).unwrap_or_else(|error| panic!("{name} cannot be read: {error}"));
            assert!(*bytes == **state.bytes(name).expect("it is a file"), "{name} reads wrong after step {number}");
        }
    }
}

/// Whether `sheaf wait` says that everything is published.
fn wait() -> bool {
    let program = std::env::var_os("SHEAF").expect("SHEAF names the program");
    Command::new(program).arg("wait").env_remove("LD_PRELOAD").output().is_ok_and(|output| output.status.success())
}

/// Does something in a forked child, which dies with its parent. If it is killed, so is the parent.
fn in_child(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: this process has one thread, so its child may do whatever it may do itself; the child never returns.
    unsafe {
        let parent = libc::getpid();
        match libc::fork() {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // It may have died before.
                let done = libc::getppid() == parent && work().is_ok();
                libc::_exit(if done { 0 } else { 1 });
            }
            child => {
                let mut status = 0;
                libc::waitpid(child, &mut status, 0);
                if libc::WIFSIGNALED(status) {
                    libc::kill(parent, libc::SIGKILL);
                }
                if status == 0 { Ok(()) } else { Err(io::Error::other("the child has failed")) }
            }
        }
    }
}

fn act(directory: &Path, step: &Step) -> io::Result<()> {
    let at = |name: &str| directory.join(name);
    let part = |name: &str| directory.join(format!("{name}.part"));
    match step {
        Step::Save(name, bytes, method) => save(&at(name), bytes, *method),
        Step::Replace(name, bytes, method) => {
            save(&part(name), bytes, *method)?;
            fs::rename(part(name), at(name))
        }
        Step::Append(name, bytes) => {
            // An unmanaged file is updated in place, without Sheaf: what is to be captured is made anew.
            let mut file = OpenOptions::new().append(true).create(true).open(at(name))?;
            pieces(bytes, |_, piece| file.write_all(piece))
        }
        Step::Rename(from, to) => fs::rename(at(from), at(to)),
        Step::Remove(name) => fs::remove_file(at(name)),
        Step::Link(from, to) => fs::hard_link(at(from), at(to)),
        Step::Point(name, text) => {
            symlink(text, part(name))?;
            fs::rename(part(name), at(name))
        }
        Step::Wait => Ok(()),
    }
}

/// Hands bytes out in a few pieces, none of them aligned to anything.
fn pieces(bytes: &[u8], mut each: impl FnMut(usize, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let size = (bytes.len() / 3).max(1);
    bytes.chunks(size).enumerate().try_for_each(|(index, piece)| each(index * size, piece))
}

fn save(path: &Path, bytes: &[u8], method: Method) -> io::Result<()> {
    if method == Method::Stream {
        return save_by_stream(path, bytes);
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    match method {
        Method::Mapping if !bytes.is_empty() => save_by_mapping(&file, bytes),
        Method::Pwrite => pieces(bytes, |at, piece| file.write_all_at(piece, at as u64)),
        _ => pieces(bytes, |_, piece| (&file).write_all(piece)),
    }
}

fn save_by_stream(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).expect("paths hold no NUL");
    // SAFETY: both strings end with NUL; the stream is used by this thread only, and closed once.
    unsafe {
        let stream = libc::fopen(path.as_ptr(), c"w".as_ptr());
        if stream.is_null() {
            return Err(io::Error::last_os_error());
        }
        let written = libc::fwrite(bytes.as_ptr().cast(), 1, bytes.len(), stream);
        let closed = libc::fclose(stream);
        if written == bytes.len() && closed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn save_by_mapping(file: &File, bytes: &[u8]) -> io::Result<()> {
    file.set_len(bytes.len() as u64)?;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new shared mapping of a file of at least this length; the kernel chooses where.
    let memory = unsafe { libc::mmap(ptr::null_mut(), bytes.len(), access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping holds as many bytes and nobody else writes to it; it is unmapped once, after its last use.
    let unmapped = unsafe {
        ptr::copy_nonoverlapping(bytes.as_ptr(), memory.cast::<u8>(), bytes.len());
        libc::munmap(memory, bytes.len())
    };
    if unmapped == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
