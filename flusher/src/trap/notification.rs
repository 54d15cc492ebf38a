//! The kernel's notifications of trapped calls: receive, and answer exactly once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The listener wakes the other side on the same processor (linux/seccomp.h).
const SYNC_WAKE_UP: u64 = 1;

/// What the program gets.
#[derive(Debug)]
pub enum Answer {
    /// The kernel makes the call as the program did.
    Native,
    /// The call returns this.
    Value(i64),
    /// The call fails so.
    Error(i32),
    /// The call returns a new descriptor of this file.
    Descriptor {
        /// The file.
        file: OwnedFd,
        /// Whether the program's descriptor is closed at exec.
        is_closed_at_exec: bool,
    },
}

impl Answer {
    /// The last error of the C library.
    pub fn last_error() -> Answer {
        Answer::Error(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }

    /// What a C function says: a negative result is the last error.
    pub fn of(result: impl Into<i64>) -> Answer {
        match result.into() {
            result if result < 0 => Answer::last_error(),
            result => Answer::Value(result),
        }
    }
}

/// See the module.
pub struct Listener(OwnedFd);

impl Listener {
    /// Takes over what the kernel gave to the program that was trapped.
    pub fn new(descriptor: OwnedFd) -> Listener {
        let flags = SYNC_WAKE_UP;
        // A hint: kernels before 6.6 lack it.
        // SAFETY: an open descriptor; this request takes its flags by value.
        unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, flags) };
        Listener(descriptor)
    }

    /// Waits for the next call; `None` when nobody is left to make one.
    pub fn receive(&self) -> Option<libc::seccomp_notif> {
        loop {
            // SAFETY: plain data; the kernel demands that it is zeroed.
            let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: an open descriptor, and the structure of this request.
            match unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &mut call) } {
                0 => return Some(call),
                // Whoever called is gone, or all are.
                _ if self.is_abandoned() => return None,
                _ => {}
            }
        }
    }

    /// Whether no process is trapped any more.
    fn is_abandoned(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.await_end(&now)
    }

    /// Waits until no process is trapped any more; false when `limit` has passed.
    pub fn await_end(&self, limit: &Timespec) -> bool {
        let mut ends = [PollFd::new(&self.0, PollFlags::empty())];
        poll(&mut ends, Some(limit)).is_ok_and(|count| count > 0)
    }

    /// Whether the caller still waits: then what was read from its memory was its own.
    pub fn is_waiting(&self, id: u64) -> bool {
        // SAFETY: an open descriptor, and the number that this request takes.
        unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0 }
    }

    /// Answers. A caller that is gone needs none.
    pub fn answer(&self, id: u64, answer: Answer) {
        let mut response = libc::seccomp_notif_resp { id, val: 0, error: 0, flags: 0 };
        match answer {
            Answer::Native => response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            Answer::Value(value) => response.val = value,
            Answer::Error(number) => response.error = -number,
            // In two steps: our own descriptor must be closed before the program goes on, or its file would look
            // open for writing when the program has closed it.
            Answer::Descriptor { file, is_closed_at_exec } => match self.inject(id, file.as_fd(), is_closed_at_exec) {
                Ok(number) => response.val = number,
                Err(error) => response.error = -error.raw_os_error().unwrap_or(libc::EIO),
            },
        }
        // SAFETY: an open descriptor, and the structure of this request.
        unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &response) };
    }

    /// Makes a descriptor of the same file in the program; yields its number.
    fn inject(&self, id: u64, file: BorrowedFd<'_>, is_closed_at_exec: bool) -> io::Result<i64> {
        let request = libc::seccomp_notif_addfd {
            id,
            flags: 0,
            srcfd: file.as_raw_fd() as u32,
            newfd: 0,
            newfd_flags: if is_closed_at_exec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        // SAFETY: an open descriptor, and the structure of this request.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &request) } {
            -1 => Err(io::Error::last_os_error()),
            number => Ok(number.into()),
        }
    }

    /// Whether this kernel can do all that the trap needs (Linux 5.9).
    pub fn can_inject(&self) -> bool {
        let nobody = self.inject(0, self.0.as_fd(), true);
        nobody.is_err_and(|error| error.raw_os_error() == Some(libc::ENOENT))
    }
}
