//! An aggregate that is being written: one file, with a descriptor past the page cache and one through it.
//!
//! Never truncates or opens a file that exists, but for one that an interrupted merge has begun, or that nodes share:
//! any other aggregate belongs to the one flusher that created it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    Advice, CWD, FallocateFlags, FlockOperation, Mode, OFlags, RenameFlags, fadvise, fallocate, flock, fstat, fstatfs,
    renameat_with,
};
use rustix::io::Errno;

use super::ALIGNMENT;

/// FUSE's number in statfs(2).
const FUSE_MAGIC: u64 = 0x6573_5546;

/// An aggregate opened for writing.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    buffered: File,
    direct: Option<OwnedFd>,
    /// Cleared for good when the file system turns out to refuse direct writes to this file.
    direct_works: AtomicBool,
    is_fuse: bool,
}

impl Target {
    /// Creates the file; it must not exist.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`], or whatever else the kernel says.
    pub fn create(path: &Path) -> io::Result<Target> {
        let buffered = OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(path)?;
        // Whoever reclaims sees by the lock that somebody writes here. Without locks it sees nothing, and keeps away.
        let _ = flock(&buffered, FlockOperation::NonBlockingLockExclusive);
        Ok(Target::over(path, buffered))
    }

    /// Opens a file that somebody has begun, to go on with it. Nobody may write to it meanwhile.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when somebody does, or whatever else the kernel says.
    pub fn reopen(path: &Path) -> io::Result<Target> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let buffered = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        // Without locks nobody can tell.
        if let Err(Errno::WOULDBLOCK) = flock(&buffered, FlockOperation::NonBlockingLockExclusive) {
            return Err(Errno::WOULDBLOCK.into());
        }
        Ok(Target::over(path, buffered))
    }

    /// Opens a file that other nodes write to, too: who may write where, is the caller's to know.
    ///
    /// # Errors
    /// Whatever the kernel says.
    pub fn join(path: &Path) -> io::Result<Target> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let buffered = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        Ok(Target::over(path, buffered))
    }

    /// Adds the direct descriptor, where the file system gives one for the same file.
    pub(super) fn over(path: &Path, buffered: File) -> Target {
        let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let direct = rustix::fs::open(path, flags, Mode::empty()).ok().filter(|direct| same_file(direct, &buffered));
        let is_fuse = is_fuse(&buffered);
        Target { path: path.to_path_buf(), buffered, direct, direct_works: AtomicBool::new(true), is_fuse }
    }

    /// Gives the file its lasting name, in the same directory. Whoever has that name keeps it.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`], or whatever else the kernel says. The file then keeps the name it has.
    pub fn give_name(&mut self, path: &Path) -> io::Result<()> {
        give_name(&self.path, path)?;
        self.path = path.to_path_buf();
        Ok(())
    }

    /// The file, to read what is in it.
    pub fn file(&self) -> &File {
        &self.buffered
    }

    /// Whether a descriptor of somebody else's leads to this file.
    pub fn is_same(&self, other: &File) -> bool {
        same_file(&self.buffered, other)
    }

    /// Writes a few bytes through the page cache.
    ///
    /// # Errors
    /// Whatever the kernel says.
    pub fn write_buffered(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.buffered.write_all_at(bytes, offset)
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether aligned writes go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some() && self.direct_works.load(Ordering::Relaxed)
    }

    /// Reserves room, so that writes need no allocation (without this, every request is punted to a kernel thread).
    /// A file system that cannot reserve is no error.
    ///
    /// # Errors
    /// When there is no room.
    pub fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let call = || fallocate(&self.buffered, FallocateFlags::empty(), offset, length);
        match rustix::io::retry_on_intr(call) {
            Ok(()) => Ok(()),
            // The zeros that end the archive must be there in any case.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => match self.buffered.metadata()?.len() < offset + length {
                true => self.buffered.set_len(offset + length),
                false => Ok(()),
            },
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sets the file's length. No write may be in flight beyond it.
    ///
    /// # Errors
    /// Whatever the kernel says.
    pub fn set_length(&self, length: u64) -> io::Result<()> {
        self.buffered.set_len(length)
    }

    /// Lets others see that nobody writes here any more, though the kernel may hold the file for a while.
    pub fn unlock(&self) {
        // What was not locked, because there are no locks, need not be unlocked.
        let _ = flock(&self.buffered, FlockOperation::Unlock);
    }

    /// Whether nobody can find the file any more, because its last name is gone.
    pub fn is_removed(&self) -> bool {
        fstat(&self.buffered).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Makes everything written so far durable. After an error nothing may be assumed about what was written, and the
    /// call must not be repeated: the kernel forgets what it could not write.
    ///
    /// # Errors
    /// Whatever the kernel says.
    pub fn sync_data(&self) -> io::Result<()> {
        self.buffered.sync_data()
    }

    /// The descriptor for a write, and whether it is the direct one.
    pub(super) fn descriptor(&self, memory: *const u8, offset: u64, length: usize) -> (RawFd, bool) {
        let aligned = (memory.addr() | length).is_multiple_of(ALIGNMENT) && offset.is_multiple_of(ALIGNMENT as u64);
        match &self.direct {
            Some(direct) if aligned && self.is_direct() => (direct.as_raw_fd(), true),
            _ => (self.buffered.as_raw_fd(), false),
        }
    }

    /// Whether writes may be handed to io_uring. After a short write it goes on by itself, from where the file system
    /// has left the buffer; FUSE leaves it too far on when its server takes less than it was given, and the bytes
    /// between are lost (seen with Linux 6.18). What pwrite(2) returns is right there.
    pub(super) fn takes_queued_writes(&self) -> bool {
        !self.is_fuse
    }

    /// Sends everything through the page cache from now on.
    pub(super) fn give_up_direct(&self) {
        self.direct_works.store(false, Ordering::Relaxed);
    }
}

/// Gives a file another name in the same directory. Whoever has that name keeps it.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], or whatever else the kernel says. The file then keeps the name it has.
pub fn give_name(old: &Path, new: &Path) -> io::Result<()> {
    match renameat_with(CWD, old, CWD, new, RenameFlags::NOREPLACE) {
        // Not every network file system can. A second name that is made never replaces one either.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            std::fs::hard_link(old, new)?;
            std::fs::remove_file(old)
        }
        outcome => Ok(outcome?),
    }
}

/// Makes a directory's names durable. Some network file systems have no such call: their servers do it in any case.
///
/// # Errors
/// Whatever else the kernel says.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    match rustix::fs::fsync(&File::open(directory)?) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(()),
        outcome => Ok(outcome?),
    }
}

fn is_fuse(file: impl AsFd) -> bool {
    fstatfs(file).is_ok_and(|status| status.f_type as u64 == FUSE_MAGIC)
}

/// Has what is read next come from where other nodes have written it. Clients by FUSE may keep what they have read over
/// open(2), and do not notice what others write: GlusterFS goes on with zeros where a segment is by now. What cannot be
/// forgotten is read as it is.
pub fn forget_cached(file: &File) {
    if is_fuse(file) {
        let _ = fadvise(file, 0, None, Advice::DontNeed);
    }
}

fn same_file(one: impl AsFd, other: impl AsFd) -> bool {
    match (fstat(one), fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}
