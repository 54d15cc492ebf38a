//! The engine for kernels and containers without io_uring: pwrite(2), one block after the other.
//!
//! Nothing is ever in flight when a call returns.

use std::sync::Arc;

use rustix::io::Errno;

use super::piece::{Call, Piece, Step, pieces};
use super::{BLOCK_SIZE, BLOCKS_MAX, Block, Data, Engine, Target, WriteError};

/// Writes synchronously.
pub struct Pwrite {
    free: Vec<Block>,
    error: Option<WriteError>,
}

impl Pwrite {
    /// An engine; works everywhere.
    pub fn new() -> Pwrite {
        Pwrite { free: Vec::new(), error: None }
    }

    fn write_piece(piece: &mut Piece) -> Result<(), WriteError> {
        loop {
            let call = piece.call();
            let result = write_call(&call);
            match piece.complete(result) {
                Step::Done => return Ok(()),
                Step::Again => {}
                Step::Failed(error) => return Err(error),
            }
        }
    }

    fn latched(&self) -> Result<(), WriteError> {
        self.error.clone().map_or(Ok(()), Err)
    }
}

/// Makes the next system call of a piece, which must outlive it.
pub(super) fn write_call(call: &Call) -> Result<usize, Errno> {
    debug_assert!(call.length <= BLOCK_SIZE);
    // SAFETY: the caller's piece owns or shares the memory, `call.length` bytes of it, which the kernel only reads. A
    // mapped file that has shrunk makes the kernel return EFAULT.
    let result =
        unsafe { libc::pwrite64(call.descriptor, call.memory.cast(), call.length, call.offset as libc::off64_t) };
    usize::try_from(result).map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

impl Engine for Pwrite {
    fn name(&self) -> &'static str {
        "pwrite"
    }

    fn block(&mut self) -> Result<Block, WriteError> {
        self.latched()?;
        match self.free.pop() {
            Some(block) => Ok(block),
            None => Block::new().map_err(WriteError::no_memory),
        }
    }

    fn write(&mut self, target: &Arc<Target>, offset: u64, data: Data) -> Result<(), WriteError> {
        self.latched()?;
        for mut piece in pieces(target, offset, data)? {
            let result = if piece.is_empty() { Ok(()) } else { Pwrite::write_piece(&mut piece) };
            if let Data::Block(mut block) = piece.into_data()
                && self.free.len() < BLOCKS_MAX
            {
                block.set_len(0);
                self.free.push(block);
            }
            if let Err(error) = result {
                self.error = Some(error.clone());
                return Err(error);
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), WriteError> {
        self.error.take().map_or(Ok(()), Err)
    }

    fn rest(&mut self) {
        self.free.clear();
    }

    fn in_flight(&self) -> usize {
        0
    }

    fn wait_one(&mut self) -> Result<(), WriteError> {
        self.latched()
    }
}
