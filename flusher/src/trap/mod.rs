//! `sheaf run --trap`: capture for programs that no library can be preloaded into.
//!
//! The program runs under a seccomp filter that announces its path calls, and only these, to its parent: this process,
//! a `sheaf` of its own between the launcher and the program, into which the library is preloaded. It makes those calls
//! that concern captured names itself, through the library's hooks, and puts the resulting descriptor into the program.
//! read, write, mmap, close and fork are never announced.
//!
//! This process must outlive everybody who is trapped, for their calls fail when it is gone; and a call that is not
//! ours must reach the kernel as the program made it.
//!
//! | module | concern |
//! | --- | --- |
//! | [`filter`] | which calls the kernel announces, and how the listener reaches this process |
//! | [`notification`] | one announced call: receive, answer |
//! | [`target`] | the calling program, looked at from outside |
//! | [`calls`] | the table of calls: where the paths are, how each is made |
//! | [`listing`] | getdents64 |
//! | [`supervisor`] | which calls are ours; threads |

mod calls;
mod filter;
mod listing;
mod notification;
mod supervisor;
mod target;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::signals::{self, BlockedSignals};
use notification::Listener;
use supervisor::Supervisor;

/// Starts the program, trapped if that is possible, serves it, and reports its wait status; then serves those that it
/// has left behind.
///
/// # Errors
/// When the program cannot be started.
pub fn run(program: &[OsString], report: OwnedFd) -> io::Result<()> {
    let mask = BlockedSignals::new()?;
    // Programs whose parent ends must stay below this process: only from there may their memory be read everywhere.
    // SAFETY: takes integers only.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    let (child, supervisor) = start(program, &mask)?;
    let status = loop {
        if let Some(status) = reap(child)? {
            break status;
        }
        signals::forward(child, &mask.wait()?);
    };
    // The launcher may be gone; those that are left are served all the same.
    let _ = File::from(report).write_all(&status.to_ne_bytes());
    leave_streams();
    // SAFETY: no handler is involved: from now on the kernel reaps, and what has ended before is reaped here.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let _ = reap(child);
    if let Some(supervisor) = supervisor {
        supervisor.await_end();
    }
    Ok(())
}

/// Starts the program, and the threads that answer it. What is to be said about a trap that cannot be set has been
/// said when this returns.
fn start(program: &[OsString], mask: &BlockedSignals) -> io::Result<(libc::pid_t, Option<Arc<Supervisor>>)> {
    let (name, arguments) = program.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let numbers: Vec<_> = calls::all().map(|kind| kind.number).collect();
    let (filter, original) = (filter::program(&numbers), mask.original);
    let said = name.to_string_lossy().into_owned();
    // The new process may make trapped calls before `spawn` returns.
    let serving = thread::spawn(move || serve(&ours, &said));
    let mut command = Command::new(name);
    command.args(arguments);
    // SAFETY: between fork and exec the closure makes system calls on values that were made before; it neither
    // allocates nor locks.
    unsafe {
        command.pre_exec(move || {
            if libc::sigprocmask(libc::SIG_SETMASK, &original, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            filter::install_and_tell(&filter, &theirs)
        });
    }
    // The closure owns the other end: with the command it is gone, and the thread hears of a start that failed.
    let child = command.spawn()?;
    drop(command);
    Ok((child.id() as libc::pid_t, serving.join().ok().flatten()))
}

/// Waits for the listener and starts to answer. `None` when the program runs without the trap, after a line that says
/// why.
fn serve(program: impl std::os::fd::AsFd, name: &str) -> Option<Arc<Supervisor>> {
    let refuse = |reason: &str| {
        eprintln!("sheaf: warning: {name} cannot be trapped: {reason}; it runs, and its files are not captured");
    };
    let listener = match filter::await_listener(program).ok()? {
        Ok(listener) => Listener::new(listener),
        Err(error) => {
            refuse(&explain(&error));
            return None;
        }
    };
    // From here on somebody must answer, even if only to let the kernel go on.
    let supervisor = Arc::new(Supervisor::new(listener));
    if !supervisor.can_serve() {
        refuse("this kernel is older than Linux 5.9, or the library is not loaded into the supervisor");
    }
    supervisor.start();
    Some(supervisor)
}

/// Why a filter with a listener was refused.
fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "another supervisor listens to its system calls already (a container or a tracer)".into(),
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => format!("seccomp is forbidden here ({error})"),
        Some(libc::EINVAL) => "this kernel is older than Linux 5.9".into(),
        _ => error.to_string(),
    }
}

/// Reaps whoever has ended; yields the wait status of `program` when it was among them.
fn reap(program: libc::pid_t) -> io::Result<Option<libc::c_int>> {
    loop {
        let mut status = 0;
        // SAFETY: room for the status; any child may be meant, for this process has no others to wait for.
        match unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) } {
            0 => return Ok(None),
            -1 => return Err(io::Error::last_os_error()),
            child if child == program => return Ok(Some(status)),
            _ => {}
        }
    }
}

/// Whoever reads what the program has written must see its end.
fn leave_streams() {
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}
