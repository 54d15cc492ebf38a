//! Leases (fcntl(2), F_SETLEASE): how the kernel tells that a file has no writer left.
//!
//! A read lease is granted exactly when no descriptor and no shared mapping can write to the file, on tmpfs, ext4 and
//! xfs. While it is held, an open for writing waits in the kernel and the holder gets [`BREAK_SIGNAL`]. Measured for
//! fourteen ways of holding a file open; see ARCHITECTURE.md. Never trust a lease on overlayfs.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Sent by the kernel when somebody wants to write to a leased file; its `siginfo` names the descriptor.
pub fn break_signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

/// Kept between the last moment at which a lease is trusted and the moment at which the kernel takes it away.
const MARGIN_S: u64 = 5;

/// `F_SETSIG` of fcntl(2), which the libc crate lacks.
const F_SETSIG: libc::c_int = 10;

/// Whether a read lease could be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Nobody can write to the file until the lease is released.
    Granted,
    /// Somebody still holds the file open for writing, or maps it writably.
    StillWritten,
}

/// Takes a read lease on a descriptor that was opened read-only.
///
/// # Errors
/// Anything but "there is a writer", for example `EINVAL` on a file system without leases.
pub fn take_read(file: BorrowedFd<'_>) -> io::Result<Lease> {
    take(file, libc::F_RDLCK)
}

/// Takes a write lease: granted when no other descriptor of any kind has the file open.
///
/// # Errors
/// Anything but "the file is open elsewhere".
pub fn take_write(file: BorrowedFd<'_>) -> io::Result<Lease> {
    take(file, libc::F_WRLCK)
}

fn take(file: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<Lease> {
    // SAFETY: F_SETSIG takes a signal number and changes only how this descriptor notifies us.
    check(unsafe { libc::fcntl(file.as_raw_fd(), F_SETSIG, break_signal()) })?;
    // SAFETY: F_SETLEASE takes a lease type; the descriptor is open for the duration of the call.
    match check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) }) {
        Ok(_) => Ok(Lease::Granted),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(Lease::StillWritten),
        Err(error) => Err(error),
    }
}

/// Gives a lease back; whoever waits to write goes on.
pub fn release(file: BorrowedFd<'_>) {
    // SAFETY: F_SETLEASE with F_UNLCK touches nothing but the lease of this descriptor.
    // A failure means that the kernel has broken the lease already, which is what we want.
    let _ = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
}

/// Whether a read lease that was granted is still whole: nobody has asked to write since.
pub fn is_whole(file: BorrowedFd<'_>) -> bool {
    // SAFETY: F_GETLEASE takes no argument and changes nothing.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) == libc::F_RDLCK }
}

/// How long the kernel lets a holder keep a lease that somebody wants broken, in seconds
/// (`/proc/sys/fs/lease-break-time`, 45 unless changed).
pub fn break_time_s() -> u64 {
    std::fs::read_to_string("/proc/sys/fs/lease-break-time")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(45)
}

/// How long a lease that was whole can be relied on without looking: the kernel takes none away before
/// [`break_time_s`] has passed since somebody wanted it. A margin is kept.
pub fn trusted_time() -> Duration {
    Duration::from_secs(break_time_s().saturating_sub(MARGIN_S))
}

/// Blocks the break signal (and SIGIO, which replaces it when its queue is full) in the calling thread. To be called
/// before any thread is made, so that all inherit it. Should one that did not inherit it get the signal, it goes on.
///
/// # Errors
/// From pthread_sigmask(3).
pub fn block_signals() -> io::Result<()> {
    extern "C" fn go_on(_signal: libc::c_int) {}
    for signal in [break_signal(), libc::SIGIO] {
        // SAFETY: the handler does nothing, so it may run anywhere; no other code of this process handles these
        // signals.
        unsafe { libc::signal(signal, go_on as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
    let set = signal_set();
    // SAFETY: `set` is a valid signal set; the old mask is not wanted.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn signal_set() -> libc::sigset_t {
    // SAFETY: sigset_t is plain data, and sigemptyset initialises it before anything reads it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, break_signal());
        libc::sigaddset(&mut set, libc::SIGIO);
        set
    }
}

/// What the kernel says about leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Somebody waits to write to the file behind this descriptor.
    Broken(RawFd),
    /// Notices were lost: look at every lease.
    LookAtAll,
}

/// Reads lease notices as they come.
#[derive(Debug)]
pub struct Notices {
    signals: OwnedFd,
}

impl Notices {
    /// # Errors
    /// From signalfd(2).
    pub fn new() -> io::Result<Notices> {
        let set = signal_set();
        // SAFETY: `set` is valid; -1 asks for a new descriptor.
        let fd = check(unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC) })?;
        // SAFETY: signalfd returned a descriptor that nobody else owns.
        Ok(Notices { signals: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Waits for the next notice.
    ///
    /// # Errors
    /// From read(2).
    pub fn next(&self) -> io::Result<Notice> {
        // SAFETY: signalfd_siginfo is plain data; read fills it.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer is `size` bytes of plain data that outlive the call.
        let count = unsafe { libc::read(self.signals.as_raw_fd(), (&raw mut info).cast(), size) };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        assert_eq!(count as usize, size, "signalfd(2) delivers whole records");
        if info.ssi_signo as libc::c_int == libc::SIGIO {
            return Ok(Notice::LookAtAll);
        }
        Ok(Notice::Broken(info.ssi_fd))
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};
    use std::os::fd::AsFd;

    #[test]
    fn a_lease_is_granted_exactly_when_no_writer_is_left() {
        block_signals().unwrap();
        for root in ["/dev/shm", env!("CARGO_MANIFEST_DIR")] {
            let directory = tempfile::tempdir_in(root).unwrap();
            let path = directory.path().join("file");
            let writer = File::create(&path).unwrap();
            let reader = File::open(&path).unwrap();
            assert_eq!(take_read(reader.as_fd()).unwrap(), Lease::StillWritten, "{root}");
            let duplicate = writer.try_clone().unwrap();
            drop(writer);
            assert_eq!(take_read(reader.as_fd()).unwrap(), Lease::StillWritten, "{root}");
            drop(duplicate);
            assert_eq!(take_read(reader.as_fd()).unwrap(), Lease::Granted, "{root}");
            assert!(is_whole(reader.as_fd()));
            let refused =
                std::os::unix::fs::OpenOptionsExt::custom_flags(OpenOptions::new().write(true), libc::O_NONBLOCK)
                    .open(&path);
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EAGAIN), "{root}");
            assert!(!is_whole(reader.as_fd()), "the attempt has broken it");
            release(reader.as_fd());
            OpenOptions::new().write(true).open(&path).unwrap();
        }
    }
}
