//! Memory that writes start from: blocks that are filled, and mappings of staged files.
//!
//! A mapping is only read, and its pages are handed to the kernel: a staged file that shrinks makes the write fail with
//! `EFAULT`, where reading the bytes here would kill the flusher.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use super::{ALIGNMENT, BLOCK_SIZE};

/// A reusable buffer of [`BLOCK_SIZE`] bytes, aligned for direct I/O.
pub struct Block {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: a block owns its memory alone, like a `Vec`; the pointer is never shared.
unsafe impl Send for Block {}

impl Block {
    /// A block of zeros with nothing in use.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new() -> io::Result<Block> {
        // SAFETY: a new private mapping at an address of the kernel's choice cannot touch memory that is in use.
        let start = unsafe {
            mmap_anonymous(ptr::null_mut(), BLOCK_SIZE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?
        };
        // Fewer, larger pages make fewer, larger requests. A kernel without huge pages refuses; that is no loss.
        // SAFETY: the range was mapped just now, and this advice does not change its content.
        let _ = unsafe { madvise(start, BLOCK_SIZE, Advice::LinuxHugepage) };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Block { start, length: 0 })
    }

    /// Bytes in use.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is in use.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Sets how many bytes are in use, from the start; at most [`BLOCK_SIZE`].
    pub fn set_len(&mut self, length: usize) {
        assert!(length <= BLOCK_SIZE, "a block holds {BLOCK_SIZE} bytes, not {length}");
        self.length = length;
    }

    /// The whole buffer, in use or not. A reused block holds old bytes.
    pub fn buffer(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is BLOCK_SIZE initialised (zeroed) bytes, owned by `self` and borrowed mutably with it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), BLOCK_SIZE) }
    }

    /// Bytes that may still be appended.
    pub fn left(&self) -> usize {
        BLOCK_SIZE - self.length
    }

    /// Takes `count` bytes more into use, to be filled; at most [`Block::left`].
    pub fn extend(&mut self, count: usize) -> &mut [u8] {
        let from = self.length;
        self.set_len(from + count);
        &mut self.buffer()[from..from + count]
    }

    /// Appends as much of `bytes` as there is room for; returns how much that was.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let from = self.length;
        let count = bytes.len().min(BLOCK_SIZE - from);
        self.buffer()[from..from + count].copy_from_slice(&bytes[..count]);
        self.length += count;
        count
    }

    pub(super) fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Block({} bytes)", self.length)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and no reference into it outlives `self`; engines keep a block until the
        // kernel is done with it.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), BLOCK_SIZE) };
    }
}

/// A read-only, shared mapping of a staged file.
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is only read, and lives until the value is dropped, on whichever thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared references allow nothing but reading.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `length` bytes of a file, and the rest of its last page.
    ///
    /// # Errors
    /// When the kernel refuses, or `length` is no size of this machine's.
    pub fn new(file: BorrowedFd<'_>, length: u64) -> io::Result<Mapping> {
        let length = usize::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if length == 0 {
            return Ok(Mapping { start: NonNull::dangling(), length });
        }
        let padded = length.checked_next_multiple_of(ALIGNMENT).ok_or(io::ErrorKind::FileTooLarge)?;
        // SAFETY: a new mapping at an address of the kernel's choice cannot touch memory that is in use.
        let start = unsafe { mmap(ptr::null_mut(), padded, ProtFlags::READ, MapFlags::SHARED, file, 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, length })
    }

    /// Brings a range of the file into memory, so that reading it there does not kill whom the disk fails. Kernels
    /// before 5.14 cannot say.
    ///
    /// # Errors
    /// `EIO` when the disk does not yield it, or there is no memory.
    pub fn fetch(&self, offset: u64, end: u64) -> io::Result<()> {
        assert!(end <= self.length as u64, "{end} of {} bytes", self.length);
        let first = offset as usize / rustix::param::page_size() * rustix::param::page_size();
        // SAFETY: the range lies inside the mapping, which stays as long as `self`; this advice changes no content.
        let fetched = unsafe {
            let start = self.start.as_ptr().add(first);
            madvise(start.cast(), end as usize - first, Advice::LinuxPopulateRead)
        };
        match fetched {
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(Errno::NOMEM) => Err(Errno::NOMEM.into()),
            Err(_) => Err(Errno::IO.into()),
        }
    }

    /// The file's bytes.
    ///
    /// # Safety
    /// Nobody may write to or shorten the file while the slice lives: the caller holds a read lease on it.
    pub unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: `length` bytes are mapped for as long as `self` lives; the caller vouches for the file.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// Bytes that may be written: the length up to the next multiple of [`ALIGNMENT`].
    pub(super) fn padded(&self) -> usize {
        self.length.next_multiple_of(ALIGNMENT)
    }

    pub(super) fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Mapping({} bytes)", self.length)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: mapped in `new` with this length, not handed out beyond the life of `self`; engines keep the
            // mapping until the kernel is done with it.
            let _ = unsafe { munmap(self.start.as_ptr().cast(), self.padded()) };
        }
    }
}
