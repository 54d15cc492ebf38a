//! Who writes to an aggregate, and who reclaims: locks on files of the store that end with their process.
//!
//! A file system without locks makes everybody careful, never bold: what cannot be locked counts as in use.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::shared::open_to_change;

/// The file in the store that is locked by whoever reclaims.
const RECLAIM: &str = ".reclaim";

/// What became of an attempt to lock.
#[derive(Debug)]
pub enum Lock {
    /// It is locked until the file is closed.
    Held(File),
    /// Somebody else has it.
    Busy,
    /// The file system has no locks, or none for this file.
    Unknown,
}

/// Locks a file without waiting.
pub fn try_lock(file: File) -> Lock {
    match rustix::io::retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Lock::Held(file),
        Err(Errno::WOULDBLOCK) => Lock::Busy,
        Err(_) => Lock::Unknown,
    }
}

/// Locks an aggregate: nobody writes to one that can be locked.
pub fn lock_aggregate(path: &Path) -> Lock {
    open_to_change(path).map_or(Lock::Unknown, try_lock)
}

/// Locks the store against others that reclaim in it.
///
/// # Errors
/// When the file that is locked cannot be made.
pub fn lock_store(store: &Path) -> io::Result<Lock> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    Ok(try_lock(options.open(store.join(RECLAIM))?))
}
