//! An aggregate's file that is read: large parts past the page cache, the rest through it.
//!
//! What comes back from a store is mostly read once, and filling the page cache costs more processor time than
//! everything else about it. Whatever direct reading has against it, the page cache gives the answer.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};

use crate::aggregate::{BLOCK, ReadAt};

/// Smaller parts come through the page cache: what is read ahead there is mostly the next file.
const DIRECT_MIN: usize = 256 << 10;

/// See the module.
#[derive(Debug)]
pub struct AggregateFile {
    file: File,
    /// The same file, past the page cache, once somebody wants it; `None` where the file system has no such thing.
    direct: OnceLock<Option<OwnedFd>>,
}

impl From<File> for AggregateFile {
    fn from(file: File) -> AggregateFile {
        AggregateFile { file, direct: OnceLock::new() }
    }
}

impl AggregateFile {
    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn direct(&self) -> Option<&OwnedFd> {
        let reopen = || {
            let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()).ok()
        };
        self.direct.get_or_init(reopen).as_ref()
    }

    /// Reads whole blocks until there are `length` bytes, or it does not go on. Yields how many there are.
    fn read_directly(&self, buffer: &mut [u8], length: usize, offset: u64) -> usize {
        let Some(direct) = self.direct() else { return 0 };
        let mut count = 0;
        while count < length {
            match rustix::io::pread(direct, &mut buffer[count..], offset + count as u64) {
                Ok(more) if more > 0 && more.is_multiple_of(BLOCK as usize) => count += more,
                // At the end of the file, the last block may be short.
                Ok(more) if count + more >= length => return length,
                _ => break,
            }
        }
        count.min(length)
    }
}

impl ReadAt for AggregateFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn read_blocks_at(&self, buffer: &mut [u8], length: usize, offset: u64) -> io::Result<()> {
        let block = BLOCK as usize;
        let whole = length.next_multiple_of(block);
        let is_aligned = buffer.as_ptr().addr().is_multiple_of(block) && offset.is_multiple_of(BLOCK);
        let mut count = 0;
        if length >= DIRECT_MIN && is_aligned && buffer.len() >= whole {
            count = self.read_directly(&mut buffer[..whole], length, offset);
        }
        self.read_exact_at(&mut buffer[count..length], offset + count as u64)
    }

    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }
}
