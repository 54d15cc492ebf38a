//! A parallel file system that fails where a test wants it to: the program `unreliable`, mounted over a directory.
//!
//! Unlike a tracer that changes what calls return, it fails them for real: what io_uring completes, what a short write
//! leaves, and what a failed fsync has lost is what the kernel makes of a file system's answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::disk::as_root;
use crate::process;
use crate::scene::helper;

/// A mounted file system; it is unmounted and gone when dropped, whoever waits for it.
pub struct Unreliable {
    server: Child,
    place: PathBuf,
    control: PathBuf,
}

impl Unreliable {
    /// Mounts `directory/backing` over `place`. Nothing goes wrong at first.
    pub fn new(directory: &Path, place: &Path) -> Unreliable {
        let [backing, control] = ["backing", "control"].map(|name| directory.join(name));
        for made in [&backing, &control] {
            fs::create_dir_all(made).expect("the caller's own directory");
        }
        let mut command = Command::new(helper("unreliable"));
        command.args([&backing, place, &control]).stdin(Stdio::null());
        let server = command.spawn().expect("the program is built");
        let mut mounted = Unreliable { server, place: place.to_path_buf(), control };
        let deadline = Instant::now() + process::LIMIT;
        while !mounted.is_mounted() {
            assert!(mounted.server.try_wait().expect("ours").is_none(), "it cannot be mounted");
            assert!(Instant::now() < deadline, "it is not mounted after {:?}", process::LIMIT);
            std::thread::sleep(Duration::from_millis(2));
        }
        mounted
    }

    fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
        let place = self.place.to_str().expect("plain names");
        mounts.lines().any(|line| line.split(' ').nth(1) == Some(place))
    }

    /// What goes wrong from now on: lines of `CALL WHEN ACTION`, see the program.
    pub fn rule(&self, text: &str) {
        let aside = self.control.join("rules.new");
        fs::write(&aside, text).expect("the caller's own directory");
        fs::rename(aside, self.control.join("rules")).expect("the caller's own directory");
    }

    /// The calls that were made on the store, with what they met.
    pub fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.control.join("log")).unwrap_or_default();
        text.lines().map(str::to_string).collect()
    }

    /// What was written and flushed since a rule `record`; see the program.
    pub fn record(&self) -> Vec<u8> {
        fs::read(self.control.join("record")).unwrap_or_default()
    }

    /// Answers nothing any more, as a server that is down, until [`Unreliable::go_on`].
    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// The server is up again.
    pub fn go_on(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: kill takes two integers; the process is our own child and not yet reaped.
        unsafe { libc::kill(self.server.id() as libc::pid_t, signal) };
    }
}

impl Drop for Unreliable {
    fn drop(&mut self) {
        // Whoever waits for an answer gets an error when the server dies.
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = as_root("umount").arg("--lazy").arg(&self.place).status();
    }
}
