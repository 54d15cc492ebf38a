//! Files that several nodes write to: who holds what of them, and what becomes of parts that are not needed any more.
//!
//! Locks are on single bytes: the first is held by whoever reserves a range, that at which a part begins by whoever
//! writes the part. They end with their process. Nobody changes anything of another's part, but for one that is
//! reclaimed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, fstat};

use super::lock::{Lock, lock_aggregate};
use crate::aggregate::{BLOCK, Range, RangeState, ReadAt, ranges};
use crate::engine::{forget_cached, sync_directory};

/// The byte that is locked by whoever reserves a range.
pub const RESERVING: u64 = 0;

/// Opens an aggregate's file to lock or change something in it. It is opened anew each time: on network file systems
/// that is when its length is asked for, and they lock exclusively only what is open for writing.
///
/// # Errors
/// From open(2).
pub fn open_to_change(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

/// Locks a byte of a file without waiting. What is read under the lock is what the one before has written.
pub fn lock_byte(file: File, byte: u64) -> Lock {
    // SAFETY: `flock` is a plain structure of integers; all zero is a valid one.
    let mut request: libc::flock = unsafe { std::mem::zeroed() };
    request.l_type = libc::F_WRLCK as libc::c_short;
    request.l_whence = libc::SEEK_SET as libc::c_short;
    (request.l_start, request.l_len) = (byte as libc::off_t, 1);
    // SAFETY: the descriptor is open while `file` lives, and the call reads the structure that it is given.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) };
    match (result, io::Error::last_os_error().raw_os_error()) {
        (0, _) => {
            forget_cached(&file);
            Lock::Held(file)
        }
        (_, Some(libc::EAGAIN | libc::EACCES | libc::EINTR)) => Lock::Busy,
        _ => Lock::Unknown,
    }
}

/// Locks an aggregate, or the part of a shared file that begins there: nobody writes to one that can be locked.
pub fn lock_place(path: &Path, first: Option<u64>) -> Lock {
    let Some(first) = first else { return lock_aggregate(path) };
    open_to_change(path).map_or(Lock::Unknown, |file| lock_byte(file, first))
}

/// Removes a part of a shared file for good, and gives its room back where the file system can; the file itself when
/// nothing in it is needed. At each moment it is there whole or not at all, for those who read the store; tar readers
/// see its files go one by one.
///
/// # Errors
/// From the file system.
pub fn remove_part(path: &Path, uuid: [u8; 16]) -> io::Result<()> {
    let file = open_to_change(path)?;
    let all = ranges(&file)?;
    let of_part: Vec<&(Range, RangeState)> = all.iter().filter(|(range, _)| range.identity.uuid == uuid).collect();
    let Some((first, _)) = of_part.first().filter(|(range, _)| range.offset == range.first) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    file.write_all_at(&first.header(RangeState::Void), first.offset)?;
    file.sync_data()?;
    // What others of this node have left of parts that are gone, too.
    let is_gone = |range: &Range| {
        let of_first = all.iter().find(|(other, _)| other.offset == range.first);
        let void = of_first
            .is_some_and(|(other, state)| *state == RangeState::Void && other.identity.uuid == range.identity.uuid);
        range.identity.uuid == uuid || void && range.identity.node == first.identity.node
    };
    for (range, _) in all.iter().filter(|(range, state)| *state != RangeState::Void && is_gone(range)) {
        give_up(&file, range)?;
    }
    drop(file);
    remove_unneeded(path)
}

/// Gives a range up: nothing in it counts, and its room is free where the file system can punch holes.
///
/// # Errors
/// From the file system.
pub fn give_up(file: &File, range: &Range) -> io::Result<()> {
    file.write_all_at(&range.header(RangeState::Void), range.offset)?;
    free(file, range);
    Ok(())
}

/// Gives the room of a void range back. What cannot be now is so with the file.
fn free(file: &File, range: &Range) {
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if let Some(length) = range.length.checked_sub(BLOCK).filter(|length| *length > 0) {
        let _ = fallocate(file, how, range.offset + BLOCK, length);
    }
}

/// Gives the room of a node's void ranges back, where whoever made them void died before he did.
pub fn free_void(path: &Path, all: &[(Range, RangeState)], node: &str) {
    let Ok(file) = open_to_change(path) else { return };
    let has_data = |range: &Range| {
        let data = file.next_data(range.offset + BLOCK);
        data.is_ok_and(|data| data.is_some_and(|data| data < range.offset + range.length))
    };
    let is_void = |(range, state): &&(Range, RangeState)| *state == RangeState::Void && range.identity.node == node;
    let full = all.iter().filter(is_void).map(|(range, _)| range).filter(|range| has_data(range));
    full.for_each(|range| free(&file, range));
}

/// Removes a shared file in which nothing is needed, and nobody is about to write anything.
fn remove_unneeded(path: &Path) -> io::Result<()> {
    let Lock::Held(file) = lock_byte(open_to_change(path)?, RESERVING) else { return Ok(()) };
    let is_unneeded = |(range, state): &(Range, RangeState)| match state {
        RangeState::Void => true,
        RangeState::Reserved => matches!(lock_place(path, Some(range.first)), Lock::Held(_)),
        RangeState::Published => false,
    };
    if fstat(&file)?.st_nlink > 0 && ranges(&file)?.iter().all(is_unneeded) {
        fs::remove_file(path)?;
        if let Some(store) = path.parent() {
            sync_directory(store)?;
        }
    }
    Ok(())
}
