//! Running programs with a bound on time. It must never wait without one, nor leave a child behind.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long any one program of a test may take. Generous: it decides between "slow" and "hangs".
pub const LIMIT: Duration = Duration::from_secs(180);

/// What a program left: its status and everything that it said.
#[derive(Debug)]
pub struct Finished {
    /// The program and its arguments, for messages.
    pub what: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Panics, with all that was said, unless the program ended with 0.
    pub fn expect_success(self) -> Finished {
        assert!(self.status.success(), "{}", self.describe());
        self
    }

    /// The standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Everything about it, for a message.
    pub fn describe(&self) -> String {
        let stderr = String::from_utf8_lossy(&self.stderr);
        format!("{}\n{}\nstdout:\n{}\nstderr:\n{stderr}", self.what, self.status, self.text())
    }
}

/// A program at work in its own process group, killed with the group when dropped.
pub struct Running {
    what: String,
    child: Child,
    deadline: Instant,
    stdout: Receiver<Vec<u8>>,
    stderr: Receiver<Vec<u8>>,
}

/// Starts a program with piped output and no input.
pub fn start(command: &mut Command) -> Running {
    let what = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
    let stdout = collect(child.stdout.take().expect("stdout is piped"));
    let stderr = collect(child.stderr.take().expect("stderr is piped"));
    Running { what, child, deadline: Instant::now() + LIMIT, stdout, stderr }
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Finished {
    start(command).finish()
}

impl Running {
    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits up to `patience` for the end; `true` when the program has ended. Panics when it has had its time.
    pub fn wait_for(&mut self, patience: Duration) -> bool {
        assert!(Instant::now() < self.deadline, "{} has not ended after {LIMIT:?}", self.what);
        wait(&mut self.child, patience).is_some()
    }

    /// Waits until the program has made a file. Panics when it ends before, or has had its time.
    pub fn await_file(mut self, file: &Path) -> Running {
        while !file.exists() {
            if self.wait_for(Duration::from_millis(5)) {
                panic!("it ends without {}: {}", file.display(), self.finish().describe());
            }
        }
        self
    }

    /// Waits for the end, and for the end of its output: whoever inherited that and stays is found out here.
    pub fn finish(mut self) -> Finished {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let Some(status) = wait(&mut self.child, left) else {
            panic!("{} has not ended after {LIMIT:?}", self.what);
        };
        let patience = Duration::from_secs(20);
        let said = "somebody keeps the output of an ended program open";
        let stdout = self.stdout.recv_timeout(patience).unwrap_or_else(|_| panic!("{}: {said}", self.what));
        let stderr = self.stderr.recv_timeout(patience).unwrap_or_else(|_| panic!("{}: {said}", self.what));
        Finished { what: self.what.clone(), status, stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // SAFETY: kill takes two integers; the group is that of our own, not yet reaped child.
            unsafe { libc::kill(-(self.child.id() as libc::pid_t), libc::SIGKILL) };
            let _ = self.child.wait();
        }
    }
}

fn collect(mut source: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // An error ends the output like its end does; what has come so far is what the test sees.
        let _ = source.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    if let Some(status) = child.try_wait().expect("the child is ours") {
        return Some(status);
    }
    let ended = poll_end(child.id(), patience).expect("a pidfd of our own child");
    if ended { Some(child.wait().expect("the child is ours")) } else { None }
}

/// Waits until a process has ended, for `patience` at most; `Ok(true)` when it has.
///
/// # Errors
/// What the kernel says about the process id; `ESRCH` when there is none.
pub fn poll_end(process: u32, patience: Duration) -> io::Result<bool> {
    // SAFETY: pidfd_open takes two integers and yields a new file descriptor or -1.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, process as libc::pid_t, 0) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(number as i32) };
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut entry = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, and a count of one.
        let ready = unsafe { libc::poll(&mut entry, 1, left.as_millis().min(i32::MAX as u128) as i32) };
        if ready > 0 {
            return Ok(true);
        }
        if ready == 0 && deadline <= Instant::now() {
            return Ok(false);
        }
        let error = io::Error::last_os_error();
        if ready < 0 && error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
}
