//! The io_uring engine: one ring, plain writes, [`DEPTH`] blocks in flight.
//!
//! No SQPOLL, IOPOLL or registered buffers: measured, they cost and do not pay. A queued piece stays in its slot until
//! its completion has been seen; if completions cannot be had any more, the memory is leaked rather than freed under
//! the kernel's hands.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::Arc;

use io_uring::{EnterFlags, IoUring, Probe, opcode, types};
use rustix::io::Errno;

use super::piece::{Call, Piece, Step, pieces};
use super::pwrite::write_call;
use super::{BLOCKS_MAX, Block, DEPTH, Data, Engine, Target, WriteError};

/// How often the kernel may turn a submission away for want of memory before that is an error.
const SUBMIT_ATTEMPTS_MAX: u32 = 1000;

/// How a ring is set up, best first. A kernel that does not know the flags answers EINVAL.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Setup {
    /// Completions are only worked on while we wait for them (Linux 6.1). The ring starts disabled, and belongs to the
    /// thread that enables it.
    SingleIssuer,
    /// No interrupts of our own thread for completions (Linux 5.19).
    Cooperative,
    Plain,
}

const LADDER: [Setup; 3] = [Setup::SingleIssuer, Setup::Cooperative, Setup::Plain];

/// Writes through a ring.
pub struct Uring {
    ring: IoUring,
    enabled: bool,
    enter_flags: EnterFlags,
    slots: Vec<Option<Piece>>,
    vacant: VecDeque<usize>,
    blocks: Vec<Block>,
    block_count: usize,
    error: Option<WriteError>,
    /// The ring itself failed, and with it every later call: an entry that it was not given cannot be recalled.
    broken: bool,
    /// Slots whose entry lies in the queue but was never taken by the kernel.
    stranded: usize,
}

impl Uring {
    /// An engine, after a ring of the same kind has really completed an operation.
    ///
    /// # Errors
    /// Why io_uring cannot be used here, as a text for people.
    pub fn probe() -> Result<Uring, String> {
        let setup = LADDER
            .into_iter()
            .find_map(|setup| match build(setup) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) && setup != Setup::Plain => None,
                Err(error) => Some(Err(explain(&error))),
                Ok(ring) => Some(exercise(ring, setup).map(|()| setup)),
            })
            .unwrap_or(Ok(Setup::Plain))?;
        let ring = build(setup).map_err(|error| explain(&error))?;
        // A flusher that waits must not look like a disk that does not keep up.
        let no_iowait = ring.params().is_feature_no_iowait();
        let enter_flags = if no_iowait { EnterFlags::NO_IOWAIT } else { EnterFlags::empty() };
        Ok(Uring {
            ring,
            enabled: setup != Setup::SingleIssuer,
            enter_flags,
            slots: (0..DEPTH).map(|_| None).collect(),
            vacant: (0..DEPTH).collect(),
            blocks: Vec::new(),
            block_count: 0,
            error: None,
            broken: false,
            stranded: 0,
        })
    }

    /// Puts a piece into a vacant slot and submits it.
    fn start(&mut self, piece: Piece) -> Result<(), WriteError> {
        while self.vacant.is_empty() {
            self.wait_one()?;
        }
        if !self.enabled {
            self.ring.submitter().register_enable_rings().map_err(|error| piece.error(errno_of(&error)))?;
            self.enabled = true;
        }
        if let Some(slot) = self.vacant.pop_front() {
            self.slots[slot] = Some(piece);
            self.submit(slot);
        }
        self.latched()
    }

    /// Submits what is left of the piece in a slot.
    ///
    /// Where the ring must not be used, it is written at once; see [`Target::takes_queued_writes`].
    fn submit(&mut self, slot: usize) {
        while let Some(piece) = self.slots[slot].as_mut() {
            let call = piece.call();
            if call.queued {
                return self.queue(slot, &call);
            }
            let result = write_call(&call);
            let step = piece.complete(result);
            if !self.take(slot, step) {
                break;
            }
        }
    }

    fn queue(&mut self, slot: usize, call: &Call) {
        let entry = opcode::Write::new(types::Fd(call.descriptor), call.memory, call.length as u32)
            .offset(call.offset)
            .build()
            .user_data(slot as u64);
        // SAFETY: the descriptor belongs to the target and the memory to the piece; the piece, which owns or shares
        // both, stays in its slot until the completion of this entry has been seen.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        let result = pushed.map_err(|_| Errno::BUSY).and_then(|()| self.submit_entry());
        if let (Err(errno), Some(piece)) = (result, self.slots[slot].as_ref()) {
            self.error.get_or_insert_with(|| piece.error(errno));
            self.broken = true;
            self.stranded += 1;
        }
    }

    /// Hands the one new entry to the kernel. `EAGAIN` and `EBUSY` mean: no room now, finish something first.
    fn submit_entry(&mut self) -> Result<(), Errno> {
        for _ in 0..SUBMIT_ATTEMPTS_MAX {
            match self.enter(1, 0, EnterFlags::empty()) {
                Ok(0) | Err(Errno::INTR | Errno::AGAIN | Errno::BUSY) => {
                    let _ = self.enter(0, 0, EnterFlags::GETEVENTS);
                }
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::AGAIN)
    }

    fn enter(&self, submit: u32, wait: u32, flags: EnterFlags) -> Result<usize, Errno> {
        let flags = if wait > 0 { flags | self.enter_flags } else { flags };
        // SAFETY: no argument block is passed, and every entry in the queue was checked when it was pushed.
        let result = unsafe { self.ring.submitter().enter::<libc::sigset_t>(submit, wait, flags.bits(), None) };
        result.map_err(|error| errno_of(&error))
    }

    /// Waits for a completion and handles all that are there.
    fn reap(&mut self) -> Result<(), Errno> {
        while self.ring.completion().is_empty() {
            match self.enter(0, 1, EnterFlags::GETEVENTS) {
                Ok(_) | Err(Errno::INTR | Errno::AGAIN | Errno::BUSY) => {}
                Err(errno) => return Err(errno),
            }
        }
        while let Some((slot, result)) = self.next_completion() {
            self.complete(slot, result);
        }
        Ok(())
    }

    fn next_completion(&mut self) -> Option<(usize, i32)> {
        let completion = self.ring.completion().next()?;
        Some((completion.user_data() as usize, completion.result()))
    }

    fn complete(&mut self, slot: usize, result: i32) {
        let Some(piece) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        let step = piece.complete(usize::try_from(result).map_err(|_| Errno::from_raw_os_error(-result)));
        if self.take(slot, step) {
            self.submit(slot);
        }
    }

    /// Does what a completion means; true when the rest of the piece is to be submitted. Else its slot is vacant.
    fn take(&mut self, slot: usize, step: Step) -> bool {
        match step {
            // After an error the rest of the others is of no use.
            Step::Again if self.error.is_none() => return true,
            Step::Done | Step::Again => {}
            Step::Failed(error) => {
                self.error.get_or_insert(error);
            }
        }
        self.vacant.push_back(slot);
        if let Some(Data::Block(mut block)) = self.slots[slot].take().map(Piece::into_data) {
            block.set_len(0);
            self.blocks.push(block);
        }
        false
    }

    /// The ring does not yield completions any more.
    fn fail(&mut self, errno: Errno) {
        let error = self.slots.iter().flatten().next().map(|piece| piece.error(errno));
        self.error = self.error.take().or(error);
        self.broken = true;
    }

    fn latched(&self) -> Result<(), WriteError> {
        self.error.clone().map_or(Ok(()), Err)
    }

    /// Waits until the kernel holds none of our memory.
    fn settle(&mut self) -> Result<(), Errno> {
        while self.in_flight() > self.stranded {
            self.reap()?;
        }
        Ok(())
    }
}

/// Makes a ring.
fn build(setup: Setup) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork();
    match setup {
        Setup::SingleIssuer => builder.setup_single_issuer().setup_defer_taskrun().setup_r_disabled(),
        Setup::Cooperative => builder.setup_coop_taskrun(),
        Setup::Plain => &mut builder,
    };
    builder.build(DEPTH as u32)
}

/// Completes an operation that does nothing, and asks whether plain writes are known (Linux 5.6).
fn exercise(mut ring: IoUring, setup: Setup) -> Result<(), String> {
    if setup == Setup::SingleIssuer {
        ring.submitter().register_enable_rings().map_err(|error| explain(&error))?;
    }
    let mut known = Probe::new();
    ring.submitter().register_probe(&mut known).map_err(|error| explain(&error))?;
    if !known.is_supported(opcode::Write::CODE) {
        return Err("this kernel's io_uring has no plain write (Linux 5.6 has)".to_string());
    }
    // SAFETY: the entry refers to no memory and no descriptor.
    unsafe { ring.submission().push(&opcode::Nop::new().build()) }.map_err(|error| error.to_string())?;
    ring.submit_and_wait(1).map_err(|error| explain(&error))?;
    match ring.completion().next() {
        Some(completion) if completion.result() == 0 => Ok(()),
        _ => Err("io_uring did not complete an operation that does nothing".to_string()),
    }
}

/// The likely cause of a refusal and what can be done, after the kernel's own words.
fn explain(error: &io::Error) -> String {
    let cause = match error.raw_os_error() {
        Some(libc::ENOSYS) => "this kernel has no io_uring (Linux 5.6 has)",
        Some(libc::EPERM | libc::EACCES) => {
            "a container's seccomp profile or the sysctl kernel.io_uring_disabled forbids it"
        }
        Some(libc::ENOMEM) => "the limit on locked memory is too low for this kernel; raise it with ulimit -l",
        _ => "no known cause",
    };
    format!("io_uring cannot be used ({error}): {cause}")
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Engine for Uring {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn block(&mut self) -> Result<Block, WriteError> {
        self.latched()?;
        loop {
            if let Some(block) = self.blocks.pop() {
                return Ok(block);
            }
            // When nothing is in flight, the caller holds or has dropped them all.
            if self.block_count < BLOCKS_MAX || self.in_flight() == 0 {
                self.block_count += 1;
                return Block::new().map_err(WriteError::no_memory);
            }
            self.wait_one()?;
        }
    }

    fn write(&mut self, target: &Arc<Target>, offset: u64, data: Data) -> Result<(), WriteError> {
        self.latched()?;
        for piece in pieces(target, offset, data)? {
            if piece.is_empty() {
                self.blocks.extend(match piece.into_data() {
                    Data::Block(block) => Some(block),
                    Data::Mapped { .. } => None,
                });
                continue;
            }
            self.start(piece)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), WriteError> {
        if let Err(errno) = self.settle() {
            self.fail(errno);
        }
        if self.broken { self.latched() } else { self.error.take().map_or(Ok(()), Err) }
    }

    fn rest(&mut self) {
        self.block_count -= self.blocks.len().min(self.block_count);
        self.blocks.clear();
    }

    fn in_flight(&self) -> usize {
        DEPTH - self.vacant.len()
    }

    fn wait_one(&mut self) -> Result<(), WriteError> {
        self.latched()?;
        if self.in_flight() > 0
            && let Err(errno) = self.reap()
        {
            self.fail(errno);
        }
        self.latched()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // `ring` is the first field: it is closed, with a stranded entry, before the pieces are freed.
        if self.settle().is_err() {
            mem::forget(mem::take(&mut self.slots));
        }
    }
}
