//! How bytes get from memory into an aggregate: one small trait, an io_uring engine and a pwrite engine behind it.
//!
//! An engine owns the memory of every write from the moment it is queued until the kernel has finished with it: it
//! must never free, reuse or hand back memory that is in flight, not even after an error or when it is dropped.
//! What is durable is the caller's business ([`Target::sync_data`]).

mod memory;
mod piece;
mod pwrite;
mod target;
mod uring;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;

pub use memory::{Block, Mapping};
pub use target::{Target, forget_cached, give_name, sync_directory};

/// Alignment of memory, offset and length that direct I/O takes everywhere.
pub const ALIGNMENT: usize = 4096;
/// Bytes of a block, and of the largest single write. Measured: 4 MiB x 8 reaches the device's speed.
pub const BLOCK_SIZE: usize = 4 << 20;
/// Writes in flight at most.
pub const DEPTH: usize = 8;

/// Blocks that an engine has at most. Gathering small files is slower than writing them: three under way are enough,
/// and each that is new has to be cleared.
pub const BLOCKS_MAX: usize = 4;

/// What is written.
#[derive(Debug)]
pub enum Data {
    /// The first [`Block::len`] bytes of a block, which goes back to the engine afterwards.
    Block(Block),
    /// A range of a mapped staged file, without a copy.
    Mapped {
        /// The file.
        mapping: Arc<Mapping>,
        /// Start of the range in the file.
        offset: u64,
        /// Its length. It may reach past the file's end up to the next multiple of [`ALIGNMENT`]: zeros lie there,
        /// unless the program wrote past the end through a mapping of its own.
        length: usize,
    },
}

/// A write that failed for good. An empty path: not even memory for a block was to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteError {
    /// First byte in the target that is not known to be written.
    pub offset: u64,
    /// What the kernel said.
    pub errno: Errno,
    /// The target.
    pub path: PathBuf,
}

impl WriteError {
    /// There is no memory for a block, whatever it was to be written to.
    fn no_memory(error: io::Error) -> WriteError {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::NOMEM);
        WriteError { offset: 0, errno, path: PathBuf::new() }
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.as_os_str().is_empty() {
            return write!(formatter, "cannot get {BLOCK_SIZE} bytes of memory to write from: {}", self.errno);
        }
        write!(formatter, "cannot write {} at byte {}: {}", self.path.display(), self.offset, self.errno)
    }
}

impl std::error::Error for WriteError {}

/// Something that writes. From its first write on, an engine must be used by one thread only.
pub trait Engine: Send {
    /// `io_uring` or `pwrite`.
    fn name(&self) -> &'static str;

    /// A free block. Waits for a completion when all are in flight.
    ///
    /// # Errors
    /// The latched error; see [`Engine::finish`].
    fn block(&mut self) -> Result<Block, WriteError>;

    /// Queues a write, and waits for a completion first when [`DEPTH`] are in flight. Whatever is aligned to
    /// [`ALIGNMENT`] goes past the page cache where the file system takes that.
    ///
    /// # Errors
    /// The latched error; see [`Engine::finish`]. Part of the write may have been queued; the data is gone.
    fn write(&mut self, target: &Arc<Target>, offset: u64, data: Data) -> Result<(), WriteError>;

    /// Waits until nothing is in flight.
    ///
    /// # Errors
    /// The first error since the last `finish`. Until it has been returned from here, it is latched: every other call
    /// returns it and writes nothing. Afterwards the engine can be used again.
    fn finish(&mut self) -> Result<(), WriteError>;

    /// Frees the blocks that are not in use: nothing is to be written for now.
    fn rest(&mut self);

    /// How many writes are in flight.
    fn in_flight(&self) -> usize;

    /// Waits for at least one completion, if anything is in flight.
    ///
    /// # Errors
    /// The latched error; see [`Engine::finish`].
    fn wait_one(&mut self) -> Result<(), WriteError>;
}

/// The best engine that works here. The text says why that is not io_uring, to be said once.
pub fn probe() -> (Box<dyn Engine>, Option<String>) {
    match uring::Uring::probe() {
        Ok(engine) => (Box::new(engine), None),
        Err(reason) => (Box::new(pwrite::Pwrite::new()), Some(reason)),
    }
}
