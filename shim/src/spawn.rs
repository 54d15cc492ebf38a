//! Starts a flusher that outlives the program, without the program noticing: no child to reap, no signal, no inherited
//! terminal or working directory.
//!
//! The new processes share this one's memory until they execute or end, while the calling thread is suspended: so a
//! large program is not copied, and nothing here may call the C library, take a lock or return into the program.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicI32, Ordering};

use sheaf_common::configuration::Level;

use crate::configuration::{self, Configuration};
use crate::log::{self, Shown};
use crate::scratch::{Scratch, Text};
use crate::system::{self, Descriptor, Errno, Result, Signals};

/// Stack of each of the two processes until the new program runs.
const STACK_BYTES: usize = 64 * 1024;
/// Where the flusher is, relative to the library's directory.
const PROGRAMS: [&[u8]; 2] = [b"/sheaf", b"/../bin/sheaf"];
/// Variables that the flusher must not inherit: it is not to be preloaded with this library, and it gets the variables
/// that concern Sheaf as this process was started with them, whatever the program has done to its environment.
const REMOVED: [&[u8]; 3] = [b"LD_PRELOAD=", b"LD_AUDIT=", configuration::VARIABLE_START];
/// The kernel counts signals from 1 to 64.
const SIGNALS: c_int = 64;

unsafe extern "C" {
    static environ: *const *const c_char;
    /// clone(3): runs `run` on `stack` in a new process.
    fn clone(
        run: extern "C" fn(*mut c_void) -> c_int,
        stack: *mut c_void,
        flags: c_int,
        argument: *mut c_void,
        ...
    ) -> c_int;
}

/// What the new processes need, in memory that they share with this one.
struct Plan<'a> {
    program: &'a CStr,
    environment: *const *const c_char,
    second_stack: *mut c_void,
    /// The second process.
    process: AtomicI32,
    /// What went wrong: an error number, 0 when the program runs.
    error: AtomicI32,
}

/// Starts `sheaf flusher`; ready when the new program has been executed. Yields its process id.
pub fn start_flusher(configuration: &Configuration) -> Result<c_int> {
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    let slot = &mut *scratch;
    find_program(&mut slot.tree, &mut slot.pending).inspect_err(|_| {
        log::say(
            configuration,
            Level::Warn,
            format_args!(
                "sheaf: the program 'sheaf' is neither beside libsheaf.so nor in ../bin from there; looked at {} last",
                Shown(slot.tree.as_bytes())
            ),
        );
    })?;
    // SAFETY: environ is null or a null-terminated vector; the entries stay valid as long as nobody changes them,
    // which a program that calls setenv beside other threads does not keep either.
    let count = unsafe { system::vector_length(environ) } + configuration::kept_variables().count();
    let vector_bytes = (count + 1) * size_of::<*const c_char>();
    let length = vector_bytes.next_multiple_of(4096) + 2 * STACK_BYTES;
    let memory = system::map(length)?;
    let outcome = run(configuration, slot.tree.c_str(), memory, length);
    // SAFETY: both processes have executed or ended, since clone with CLONE_VFORK has returned.
    unsafe { system::unmap(memory, length) };
    outcome
}

/// `memory`: the new environment at its start, the two stacks at its end.
fn run(configuration: &Configuration, program: &CStr, memory: *mut u8, length: usize) -> Result<c_int> {
    let environment: *mut *const c_char = memory.cast();
    // SAFETY: the caller has mapped room for all entries of environ and a final null (the memory is zeroed).
    unsafe { copy_environment(environment, length - 2 * STACK_BYTES) };
    // SAFETY: both stacks lie inside the mapping; its end is aligned to a page.
    let (first_stack, second_stack) = unsafe { (memory.add(length), memory.add(length - STACK_BYTES)) };
    let plan = Plan {
        program,
        environment: environment.cast_const(),
        second_stack: second_stack.cast(),
        process: AtomicI32::new(0),
        error: AtomicI32::new(0),
    };
    let errno = system::errno();
    let blocked = system::set_blocked_signals(Signals::MAX);
    let flags = libc::CLONE_VM | libc::CLONE_VFORK;
    let argument = (&raw const plan).cast_mut().cast();
    // SAFETY: the stack is ours and large enough; `leave` only makes system calls and never returns to this frame; the
    // plan outlives the new process, because CLONE_VFORK suspends this thread until it has ended. No exit signal: the
    // program is not told, and its own wait calls do not see the child.
    let child = unsafe { clone(leave, first_stack.cast(), flags, argument) };
    let failed = if child < 0 { system::errno() } else { 0 };
    if child > 0 {
        system::wait_for_child(child);
    }
    system::set_blocked_signals(blocked);
    system::set_errno(errno);
    let number = failed.max(plan.error.load(Ordering::Relaxed));
    let outcome = if number == 0 { "started" } else { "could not be started" };
    log::decision(configuration, "flusher", program.to_bytes(), outcome);
    if number == 0 { Ok(plan.process.load(Ordering::Relaxed)) } else { Err(Errno(number)) }
}

unsafe fn copy_environment(environment: *mut *const c_char, room_bytes: usize) {
    // SAFETY: reads environ up to its null; writes at most as many entries as there is room for, less one. The kept
    // variables stay for good.
    unsafe {
        let mut entry = environ;
        let (mut kept, room) = (0, room_bytes / size_of::<*const c_char>() - 1);
        while !entry.is_null() && !(*entry).is_null() && kept < room {
            let text = CStr::from_ptr(*entry).to_bytes();
            if !REMOVED.iter().any(|removed| text.starts_with(removed)) {
                *environment.add(kept) = *entry;
                kept += 1;
            }
            entry = entry.add(1);
        }
        for variable in configuration::kept_variables().take(room - kept) {
            *environment.add(kept) = variable.as_ptr();
            kept += 1;
        }
    }
}

/// The first process: leaves the session and makes the second, which is then nobody's child.
extern "C" fn leave(argument: *mut c_void) -> c_int {
    // SAFETY: `run` passes its plan, which outlives this process.
    let plan = unsafe { &*argument.cast::<Plan>() };
    system::new_session();
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: as in `run`; this process ends only after the second has executed or ended.
    let process = unsafe { clone(become_flusher, plan.second_stack, flags, argument) };
    plan.process.store(process, Ordering::Relaxed);
    if process < 0 {
        plan.error.store(system::errno(), Ordering::Relaxed);
    }
    system::exit_thread()
}

/// The second process: becomes the flusher.
extern "C" fn become_flusher(argument: *mut c_void) -> c_int {
    // SAFETY: as in `leave`.
    let plan = unsafe { &*argument.cast::<Plan>() };
    system::change_directory(c"/");
    if let Ok(null) = system::open_own(c"/dev/null", libc::O_RDWR, 0).map(Descriptor::release) {
        (0..3).for_each(|number| system::duplicate_to(null, number));
    }
    (1..=SIGNALS).for_each(system::default_action);
    // The loader of the new program fails in a program's small address space; the flusher lifts the other limits
    // itself.
    [libc::RLIMIT_AS, libc::RLIMIT_DATA].into_iter().for_each(system::lift_limit);
    system::set_blocked_signals(0);
    let arguments = [c"sheaf".as_ptr(), c"flusher".as_ptr(), ptr::null()];
    // SAFETY: both vectors end with a null and hold C strings that live in memory shared with the suspended caller.
    let Errno(number) = unsafe { system::execute(plan.program, arguments.as_ptr(), plan.environment) };
    plan.error.store(number, Ordering::Relaxed);
    system::exit_thread()
}

/// Puts the path of the program into `program`.
fn find_program(program: &mut Text, line: &mut Text) -> Result<()> {
    let mut length = own_directory(line, program)?;
    if program.as_bytes().first() != Some(&b'/') {
        length = 0;
    }
    for name in PROGRAMS {
        program.truncate(length);
        program.push(name).map_err(|_| Errno(libc::ENAMETOOLONG))?;
        if system::access(program.c_str(), libc::X_OK).is_ok() {
            return Ok(());
        }
    }
    Err(Errno(libc::ENOENT))
}

/// Puts the directory of this library into `directory`, from the process's own map; yields its length.
fn own_directory(line: &mut Text, directory: &mut Text) -> Result<usize> {
    let own = start_flusher as fn(&Configuration) -> Result<c_int> as usize;
    let maps = system::open_own(c"/proc/self/maps", libc::O_RDONLY, 0)?;
    let mut chunk = [0; 512];
    line.truncate(0);
    loop {
        let got = system::retry(|| system::read(maps.number(), &mut chunk))?;
        if got == 0 {
            return Err(Errno(libc::ENOENT));
        }
        for byte in chunk.get(..got).unwrap_or_default() {
            if *byte != b'\n' {
                // A line that is too long is none of a library's.
                let _ = line.push(&[*byte]);
                continue;
            }
            if let Some(path) = mapped_path(line.as_bytes(), own) {
                let end = path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
                directory.set(path.get(..end).unwrap_or_default()).map_err(|_| Errno(libc::ENAMETOOLONG))?;
                return Ok(end);
            }
            line.truncate(0);
        }
    }
}

/// The file of a line of /proc/self/maps, if the line covers the address.
fn mapped_path(line: &[u8], address: usize) -> Option<&[u8]> {
    let range = line.get(..line.iter().position(|&byte| byte == b' ')?)?;
    let dash = range.iter().position(|&byte| byte == b'-')?;
    let (start, end) = (hexadecimal(range.get(..dash)?)?, hexadecimal(range.get(dash + 1..)?)?);
    let path = line.get(line.iter().position(|&byte| byte == b'/')?..)?;
    (start..end).contains(&address).then_some(path)
}

fn hexadecimal(digits: &[u8]) -> Option<usize> {
    digits
        .iter()
        .try_fold(0usize, |number, digit| Some(number.checked_mul(16)? + (*digit as char).to_digit(16)? as usize))
}
