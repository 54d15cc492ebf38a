//! Moves a managed file out of the stage, to a path that is no checkpoint path.
//!
//! The data is complete at its new place before the old name goes; a failure leaves both as they were.

use core::ffi::{CStr, c_int, c_uint};

use sheaf_common::layout::STUB_BIT;

use crate::configuration::Configuration;
use crate::flusher;
use crate::paths::{self, Entry};
use crate::scratch::{Scratch, Slot, Text, TooLong, make_unique};
use crate::system::{self, AT_FDCWD, Descriptor, Errno, Result};

/// Most bytes in one call that copies inside the kernel.
const CHUNK_BYTES: u64 = 1 << 30;
/// How often a file is hydrated that is evicted again before it is opened.
const ATTEMPTS: u32 = 8;

/// Makes `to` what the managed name is, replacing what is there, with the flags of renameat2(2). Yields what keeps
/// others from writing to the file, until the old name is gone. A file that somebody writes to is refused, as between
/// two file systems: what is written later would be lost.
pub fn move_out(
    configuration: &Configuration,
    entry: &Entry,
    to: (c_int, &CStr),
    flags: c_uint,
) -> Result<Option<Descriptor>> {
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    let slot = &mut *scratch;
    let source = match entry.is_regular() {
        true => Some(open_unwritten(configuration, entry)?),
        false => None,
    };
    let Slot { pending, other, .. } = slot;
    start_beside(to.1.to_bytes(), pending).map_err(|_| Errno(libc::ENAMETOOLONG))?;
    make_unique(pending, |name| match &source {
        Some(source) => copy_file(source, (to.0, name), other),
        None => copy_link(entry, (to.0, name), other),
    })?;
    let temporary = (to.0, pending.c_str());
    let is_whole = source.as_ref().is_none_or(|source| system::is_read_leased(source.number()));
    let outcome = if is_whole { system::rename(temporary, to, flags) } else { Err(Errno(libc::EXDEV)) };
    if outcome.is_err() {
        let _ = system::unlinkat(temporary.0, temporary.1, 0);
    }
    outcome.map(|()| source)
}

fn copy_link(entry: &Entry, to: (c_int, &CStr), target: &mut Text) -> Result<()> {
    target.fill(|room| system::readlinkat(AT_FDCWD, entry.tree_path(), room))?;
    system::symlinkat(target.c_str(), to.0, to.1)
}

/// Opens the file with its data, under a lease that is granted only when nobody can write to it, and that is gone when
/// somebody asks to.
fn open_unwritten(configuration: &Configuration, entry: &Entry) -> Result<Descriptor> {
    let source = open_resident(configuration, entry)?;
    system::lease_for_reading(source.number()).map_err(|_| Errno(libc::EXDEV))?;
    Ok(source)
}

/// Starts a new name in the directory of `path`.
fn start_beside(path: &[u8], name: &mut Text) -> core::result::Result<(), TooLong> {
    name.set(directory_part(path))?;
    name.push(b".sheaf-move-")
}

/// A path up to its last name, which slashes may stand behind; empty for the working directory.
pub fn directory_part(path: &[u8]) -> &[u8] {
    let is_slash = |byte: &u8| *byte == b'/';
    let end = path.iter().rposition(|byte| !is_slash(byte)).unwrap_or(0);
    let length = path.get(..end).and_then(|path| path.iter().rposition(is_slash)).map_or(0, |slash| slash + 1);
    path.get(..length).unwrap_or_default()
}

fn copy_file(source: &Descriptor, to: (c_int, &CStr), buffer: &mut Text) -> Result<()> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
    let target = Descriptor::own(system::openat(to.0, to.1, flags, 0o600)?)?;
    let outcome =
        copy_data(source.number(), target.number(), u64::MAX, buffer).and_then(|()| copy_attributes(source, &target));
    if outcome.is_err() {
        let _ = system::unlinkat(to.0, to.1, 0);
    }
    outcome
}

/// Gives a copy the owner, mode and times of its source.
pub fn copy_attributes(source: &Descriptor, target: &Descriptor) -> Result<()> {
    let stat = system::fstat(source.number())?;
    // As with rename, the owner stays if we may have it so.
    let _ = system::fchown(target.number(), stat.st_uid, stat.st_gid);
    system::fchmod(target.number(), stat.st_mode & 0o7777 & !STUB_BIT)?;
    let time = |tv_sec, tv_nsec| libc::timespec { tv_sec, tv_nsec };
    let times = [time(stat.st_atime, stat.st_atime_nsec), time(stat.st_mtime, stat.st_mtime_nsec)];
    system::futimens(target.number(), &times)
}

/// Copies a file's data to an empty one; holes stay holes.
pub fn copy_file_data(source: &Descriptor, target: &Descriptor, buffer: &mut Text) -> Result<()> {
    let size = system::fstat(source.number())?.st_size;
    let mut position = 0;
    while position < size {
        let start = match system::seek(source.number(), position, libc::SEEK_DATA) {
            Err(Errno(libc::ENXIO)) => break,
            start => start?,
        };
        position = system::seek(source.number(), start, libc::SEEK_HOLE)?.min(size);
        system::seek(source.number(), start, libc::SEEK_SET)?;
        system::seek(target.number(), start, libc::SEEK_SET)?;
        copy_data(source.number(), target.number(), (position - start) as u64, buffer)?;
    }
    system::ftruncate(target.number(), size)
}

/// Opens the file with its data.
fn open_resident(configuration: &Configuration, entry: &Entry) -> Result<Descriptor> {
    for _ in 0..ATTEMPTS {
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW;
        let source = system::retry(|| system::open_own(entry.tree_path(), flags, 0))?;
        let stat = system::fstat(source.number())?;
        if !paths::is_stub(&stat) {
            return Ok(source);
        }
        drop(source);
        flusher::hydrate(configuration, entry.canonical()).map_err(|_| Errno(libc::EIO))?;
    }
    Err(Errno(libc::EIO))
}

/// Copies up to `left` bytes from the one position to the other, or up to the end; inside the kernel as far as the file
/// systems allow.
fn copy_data(from: c_int, to: c_int, mut left: u64, buffer: &mut Text) -> Result<()> {
    for call in [system::copy_file_range, system::sendfile] {
        while left > 0 {
            match system::retry(|| call(from, to, left.min(CHUNK_BYTES) as usize)) {
                // Some file systems copy nothing and say so like this; the next way finds out.
                Ok(0) => break,
                Ok(copied) => left = left.saturating_sub(copied as u64),
                Err(Errno(libc::EXDEV | libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM)) => break,
                Err(error) => return Err(error),
            }
        }
    }
    let memory = buffer.as_memory();
    while left > 0 {
        let wanted = left.min(memory.len() as u64) as usize;
        let length = system::retry(|| system::read(from, memory.get_mut(..wanted).unwrap_or_default()))?;
        if length == 0 {
            return Ok(());
        }
        left -= length as u64;
        let mut rest = memory.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let written = system::retry(|| system::write(to, rest))?;
            rest = rest.get(written..).unwrap_or_default();
        }
    }
    Ok(())
}
