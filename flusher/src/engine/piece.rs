//! One write of at most a block, with the rules that both engines follow: which descriptor, what a short write or an
//! error means, when it is done.
//!
//! Makes no system call itself.

use std::os::fd::RawFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::{BLOCK_SIZE, Data, Target, WriteError};

/// How often a write that makes no progress is tried again before its error is believed.
const ATTEMPTS_MAX: u32 = 1000;

/// A write on its way.
#[derive(Debug)]
pub struct Piece {
    target: Arc<Target>,
    offset: u64,
    data: Data,
    done: usize,
    attempts: u32,
    direct: bool,
}

/// The arguments of the next system call for a piece.
pub struct Call {
    pub descriptor: RawFd,
    pub memory: *const u8,
    pub length: usize,
    pub offset: u64,
    /// Whether io_uring may be asked to do it.
    pub queued: bool,
}

/// What a completion means.
#[derive(Debug)]
pub enum Step {
    /// Everything is written.
    Done,
    /// Ask for [`Piece::call`] again.
    Again,
    /// It will not be written.
    Failed(WriteError),
}

/// Cuts a write into pieces of at most [`BLOCK_SIZE`].
pub fn pieces(target: &Arc<Target>, offset: u64, data: Data) -> Result<Vec<Piece>, WriteError> {
    let piece = |offset, data| Piece { target: Arc::clone(target), offset, data, done: 0, attempts: 0, direct: false };
    let (mapping, start, length) = match data {
        Data::Block(block) => return Ok(vec![piece(offset, Data::Block(block))]),
        Data::Mapped { mapping, offset, length } => (mapping, offset, length),
    };
    let end = start.checked_add(length as u64).filter(|end| *end <= mapping.padded() as u64);
    if end.is_none() || offset.checked_add(length as u64).is_none() {
        return Err(WriteError { offset, errno: Errno::INVAL, path: target.path().to_path_buf() });
    }
    let cut = |at: usize| {
        let data = Data::Mapped {
            mapping: Arc::clone(&mapping),
            offset: start + at as u64,
            length: BLOCK_SIZE.min(length - at),
        };
        piece(offset + at as u64, data)
    };
    Ok((0..length).step_by(BLOCK_SIZE).map(cut).collect())
}

impl Piece {
    /// The next system call. The memory stays valid for as long as the piece lives.
    pub fn call(&mut self) -> Call {
        let (start, length) = match &self.data {
            Data::Block(block) => (block.as_ptr(), block.len()),
            // `pieces` has checked that the range lies inside the mapping.
            Data::Mapped { mapping, offset, length } => (mapping.as_ptr().wrapping_add(*offset as usize), *length),
        };
        let memory = start.wrapping_add(self.done);
        let (length, offset) = (length - self.done, self.offset + self.done as u64);
        let (descriptor, direct) = self.target.descriptor(memory, offset, length);
        self.direct = direct;
        Call { descriptor, memory, length, offset, queued: self.target.takes_queued_writes() }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        match &self.data {
            Data::Block(block) => block.is_empty(),
            Data::Mapped { length, .. } => *length == 0,
        }
    }

    /// Takes the result of the last [`Piece::call`].
    pub fn complete(&mut self, result: Result<usize, Errno>) -> Step {
        let length = match &self.data {
            Data::Block(block) => block.len(),
            Data::Mapped { length, .. } => *length,
        };
        self.attempts += 1;
        match result {
            Ok(count) if count > 0 => {
                self.done += count;
                self.attempts = 0;
                if self.done >= length { Step::Done } else { Step::Again }
            }
            Err(Errno::INTR | Errno::AGAIN) if self.attempts < ATTEMPTS_MAX => Step::Again,
            Err(Errno::INVAL | Errno::OPNOTSUPP) if self.direct => {
                self.target.give_up_direct();
                Step::Again
            }
            Ok(_) => Step::Failed(self.error(Errno::IO)),
            Err(errno) => Step::Failed(self.error(errno)),
        }
    }

    /// The error of a piece that cannot be written.
    pub fn error(&self, errno: Errno) -> WriteError {
        let offset = self.offset + self.done as u64;
        WriteError { offset, errno, path: self.target.path().to_path_buf() }
    }

    /// What was written, when the kernel is done with it.
    pub fn into_data(self) -> Data {
        self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Block;

    fn piece(length: usize) -> (tempfile::TempDir, Piece) {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let target = Arc::new(Target::create(&directory.path().join("t")).unwrap());
        let mut block = Block::new().unwrap();
        block.set_len(length);
        (directory, pieces(&target, 8192, Data::Block(block)).unwrap().remove(0))
    }

    #[test]
    fn a_short_write_goes_on_where_it_stopped() {
        let (_directory, mut piece) = piece(12288);
        let first = piece.call();
        assert!(matches!(piece.complete(Ok(5000)), Step::Again));
        let second = piece.call();
        assert_eq!((second.offset, second.length), (8192 + 5000, 12288 - 5000));
        assert_eq!(second.memory.addr(), first.memory.addr() + 5000);
        assert!(!piece.direct, "the unaligned rest goes through the page cache");
        assert!(matches!(piece.complete(Ok(12288 - 5000)), Step::Done));
    }

    #[test]
    fn interruptions_are_retried_but_not_for_ever() {
        let (_directory, mut piece) = piece(4096);
        for _ in 1..ATTEMPTS_MAX {
            assert!(matches!(piece.complete(Err(Errno::AGAIN)), Step::Again));
        }
        let Step::Failed(error) = piece.complete(Err(Errno::AGAIN)) else { panic!("retried for ever") };
        assert_eq!((error.errno, error.offset), (Errno::AGAIN, 8192));
    }

    #[test]
    fn a_refused_direct_write_falls_back_once() {
        let (_directory, mut piece) = piece(4096);
        piece.direct = true;
        assert!(matches!(piece.complete(Err(Errno::INVAL)), Step::Again));
        piece.call();
        assert!(!piece.target.is_direct());
        assert!(matches!(piece.complete(Err(Errno::INVAL)), Step::Failed(_)));
    }

    #[test]
    fn a_write_of_nothing_is_an_error() {
        let (_directory, mut piece) = piece(4096);
        assert!(matches!(piece.complete(Ok(0)), Step::Failed(error) if error.errno == Errno::IO));
    }
}
