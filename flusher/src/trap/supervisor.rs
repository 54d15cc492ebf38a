//! Answers the trapped calls: most are handed back to the kernel at once, those that concern captured names are made
//! here.
//!
//! A call that waits (for a flusher, for a writer's lease, for the other end of a FIFO) holds up one thread; there is
//! always another one. Nothing here may end this process: the trapped programs' calls would fail for ever.

use std::ffi::{CStr, CString, OsString};
use std::os::raw::c_char;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::event::Timespec;

use super::calls::{self, Call, Kind, Place};
use super::listing::Listings;
use super::notification::{Answer, Listener};
use super::target::{Surroundings, Target};

/// Threads that wait for work; more than these end when they have done theirs.
const IDLE_MAX: usize = 4;
/// Threads in all.
const THREADS_MAX: usize = 512;
/// What threads need besides buffers on the heap.
const STACK_BYTES: usize = 256 * 1024;
/// How often it is looked at whether only flushers are left.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

type Concerns = unsafe extern "C" fn(*const c_char, libc::c_int) -> libc::c_int;

/// See the module.
pub struct Supervisor {
    listener: Listener,
    /// `None` when all is left to the kernel.
    concerns: Option<Concerns>,
    /// This program: its own calls, as a flusher's, are the kernel's to make.
    own_program: OsString,
    /// Calls made in others are the kernel's, too: names or permissions mean something else there.
    own_surroundings: Option<Surroundings>,
    listings: Listings,
    idle: AtomicUsize,
    threads: AtomicUsize,
}

impl Supervisor {
    /// A supervisor without threads. Where it cannot do its work it leaves all calls to the kernel.
    pub fn new(listener: Listener) -> Supervisor {
        // SAFETY: a C string; the lookup has no other effect.
        let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"sheaf_concerns".as_ptr()) };
        let is_usable = !address.is_null() && listener.can_inject();
        // SAFETY: the library exports the function of this name with this type, and the address is not null.
        let concerns = is_usable.then(|| unsafe { std::mem::transmute::<*mut libc::c_void, Concerns>(address) });
        Supervisor {
            listener,
            concerns,
            own_program: std::env::current_exe().unwrap_or_default().into_os_string(),
            own_surroundings: Target::new(std::process::id()).surroundings(),
            listings: Listings::default(),
            idle: AtomicUsize::new(0),
            threads: AtomicUsize::new(0),
        }
    }

    /// Whether captured names are served.
    pub fn can_serve(&self) -> bool {
        self.concerns.is_some()
    }

    /// Starts answering; false when no thread can be had.
    pub fn start(self: &Arc<Supervisor>) -> bool {
        self.add_thread()
    }

    /// Waits until nobody is trapped any more, except flushers: these wait in turn for this process, which has
    /// captured.
    pub fn await_end(&self) {
        while !self.listener.await_end(&LOOK) {
            if self.only_flushers_are_left() {
                return;
            }
        }
    }

    fn add_thread(self: &Arc<Supervisor>) -> bool {
        if self.threads.fetch_add(1, Ordering::SeqCst) >= THREADS_MAX {
            self.threads.fetch_sub(1, Ordering::SeqCst);
            return false;
        }
        self.idle.fetch_add(1, Ordering::SeqCst);
        let supervisor = Arc::clone(self);
        let started = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || supervisor.serve());
        if started.is_err() {
            self.idle.fetch_sub(1, Ordering::SeqCst);
            self.threads.fetch_sub(1, Ordering::SeqCst);
        }
        started.is_ok()
    }

    fn serve(self: &Arc<Supervisor>) {
        // A umask of its own; where that is forbidden, the one at the start holds for all.
        // SAFETY: concerns this thread alone.
        unsafe { libc::unshare(libc::CLONE_FS) };
        while let Some(notification) = self.listener.receive() {
            if self.idle.fetch_sub(1, Ordering::SeqCst) == 1 {
                self.add_thread();
            }
            let answer = self.decide(&notification).unwrap_or(Answer::Native);
            self.listener.answer(notification.id, answer);
            if self.idle.fetch_add(1, Ordering::SeqCst) >= IDLE_MAX {
                break;
            }
        }
        self.idle.fetch_sub(1, Ordering::SeqCst);
        self.threads.fetch_sub(1, Ordering::SeqCst);
    }

    /// `None` when the call is the kernel's to make.
    fn decide(&self, notification: &libc::seccomp_notif) -> Option<Answer> {
        let concerns = self.concerns?;
        let kind = calls::find(notification.data.nr)?;
        let target = Target::new(notification.pid);
        let arguments = notification.data.args;
        let path = find_path(&target, kind, kind.first, &arguments)?;
        let other = kind.second.map(|place| find_path(&target, kind, place, &arguments));
        let other = match other {
            Some(other) => other?,
            None => CString::default(),
        };
        let executable = target.executable()?;
        if executable == self.own_program || !is_concerned(concerns, kind, [&path, &other]) {
            return None;
        }
        if target.surroundings()? != self.own_surroundings?
            || target.is_served_by_library(notification.data.instruction_pointer)
        {
            return None;
        }
        if !self.listener.is_waiting(notification.id) {
            return None;
        }
        let is_waiting = || self.listener.is_waiting(notification.id);
        let listings = &self.listings;
        let call = Call { target: &target, arguments, path: &path, other: &other, listings, is_waiting: &is_waiting };
        match (kind.perform)(&call) {
            Ok(answer) => Some(answer),
            Err(error) => error.raw_os_error().map(Answer::Error),
        }
    }

    /// Whether every child of this process is a flusher. Programs that were orphaned are its children, too.
    fn only_flushers_are_left(&self) -> bool {
        let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return false };
        let lists = threads.flatten().map(|thread| std::fs::read_to_string(thread.path().join("children")));
        let Ok(lists) = lists.collect::<Result<Vec<_>, _>>() else { return false };
        let mut children = lists.iter().flat_map(|list| list.split_whitespace()).filter_map(|word| word.parse().ok());
        children.all(|child| Target::new(child).executable().as_ref() == Some(&self.own_program))
    }
}

/// Whether the library would look at one of the names; or it is a link of /proc, which would show the stage.
fn is_concerned(concerns: Concerns, kind: &Kind, paths: [&CStr; 2]) -> bool {
    let concerned = paths.map(|path| {
        // SAFETY: a C string, for the library's own function.
        !path.is_empty() && unsafe { concerns(path.as_ptr(), kind.changes_names.into()) != 0 }
    });
    concerned.contains(&true) || kind.reads_link && paths[0].to_bytes().starts_with(b"/proc/")
}

/// The path that a call has in this place, absolute.
fn find_path(target: &Target, kind: &Kind, place: Place, arguments: &[u64; 6]) -> Option<CString> {
    let argument = |index: usize| arguments.get(index).copied().unwrap_or_default();
    let (directory, address) = match place {
        Place::Path(path) => (libc::AT_FDCWD, argument(path)),
        Place::At(directory, path) => (argument(directory) as i32, argument(path)),
        Place::Descriptor(index) => return target.path_of_descriptor(argument(index) as i32),
    };
    let path = target.read_string(address).ok()?;
    if path.is_empty() && kind.number == libc::SYS_linkat {
        return target.name_of_descriptor(directory);
    }
    target.absolute(directory, &path)
}
