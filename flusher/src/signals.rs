//! Signals while somebody else's program runs: waited for instead of handled, and passed on.

use std::io;

/// Passed on to the program.
const FORWARDED: [libc::c_int; 6] =
    [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// Passes a signal on to our own child, unless the terminal has sent it: that has reached the whole process group.
pub fn forward(child: libc::pid_t, signal: &libc::siginfo_t) {
    let sent_by_process = signal.si_code <= 0;
    if signal.si_signo != libc::SIGCHLD && sent_by_process {
        // SAFETY: kill takes two integers; the caller has not waited for the child, so its number is still its own.
        unsafe { libc::kill(child, signal.si_signo) };
    }
}

/// The signals that are waited for instead of handled, for as long as this lives.
pub struct BlockedSignals {
    set: libc::sigset_t,
    /// What was blocked before: what a program that is started must get.
    pub original: libc::sigset_t,
}

impl BlockedSignals {
    /// Blocks what is passed on, and the end of children.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new() -> io::Result<BlockedSignals> {
        // SAFETY: signal sets are plain data, initialised by sigemptyset and sigprocmask before they are read. No
        // handler is involved: a parent may have left SIGCHLD ignored, which would hide the program's end.
        unsafe {
            let mut set = std::mem::zeroed();
            let mut original = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in FORWARDED.into_iter().chain([libc::SIGCHLD]) {
                libc::sigaddset(&mut set, signal);
            }
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            match libc::sigprocmask(libc::SIG_BLOCK, &set, &mut original) {
                0 => Ok(BlockedSignals { set, original }),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    /// The next of them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait(&self) -> io::Result<libc::siginfo_t> {
        wait(&self.set)
    }

    /// Passes them on to our own child until this process ends; another thread waits for the child.
    pub fn forward_to(&self, child: libc::pid_t) {
        let set = self.set;
        std::thread::spawn(move || {
            while let Ok(signal) = wait(&set) {
                forward(child, &signal);
            }
        });
    }
}

fn wait(set: &libc::sigset_t) -> io::Result<libc::siginfo_t> {
    loop {
        // SAFETY: siginfo_t is plain data that the call fills in; the set is valid.
        let (result, information) = unsafe {
            let mut information = std::mem::zeroed::<libc::siginfo_t>();
            (libc::sigwaitinfo(set, &mut information), information)
        };
        match io::Error::last_os_error() {
            _ if result > 0 => return Ok(information),
            error if error.kind() == io::ErrorKind::Interrupted => {}
            error => return Err(error),
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the mask was filled in by sigprocmask.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &self.original, std::ptr::null_mut()) };
    }
}
