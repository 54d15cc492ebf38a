//! What this process's memory control groups leave it, remembered for as long as nobody can have used it up: for a
//! time, and for this process's share of it.
//!
//! Nothing here may ask the kernel for each write: most programs have no limit, or are far from it.

use core::ffi::CStr;
use core::sync::atomic::{AtomicU64, Ordering};

use sheaf_common::memory::{self, Buffers, Left, TMPFS};
use sheaf_common::room;

use crate::configuration::Configuration;
use crate::scratch::{Scratch, Slot};
use crate::system;

/// How many processes of a node may write at the same time.
const WRITERS: u64 = 64;
/// More than all processes of a node can write to memory in a [`system::moment`].
const GROWTH_BYTES: u64 = 256 << 20;
/// Moments after which a look is repeated, however much it has shown: limits can change.
const LONGEST_MOMENTS: u64 = 1024;
/// Moments for which nothing is asked that has been asked in vain.
const HOLD_MOMENTS: u64 = 64;
/// Where so much is left, what the kernel could drop besides makes no difference.
const ENOUGH_BYTES: u64 = 8 << 30;

/// What the last look has shown, when it was, for how many moments it holds, and for how much growth yet. Threads that
/// look at the same time may mix their numbers, which then are of two looks in the same moment.
static FREE_BYTES: AtomicU64 = AtomicU64::new(u64::MAX);
static LIMIT_BYTES: AtomicU64 = AtomicU64::new(u64::MAX);
static LOOKED: AtomicU64 = AtomicU64::new(0);
static HOLDS_MOMENTS: AtomicU64 = AtomicU64::new(0);
static SHARE_BYTES: AtomicU64 = AtomicU64::new(0);

/// Whether there is a limit, as far as somebody has looked.
#[inline]
pub fn is_limited() -> bool {
    LIMIT_BYTES.load(Ordering::Relaxed) != u64::MAX
}

/// Takes so much of this process's share, if it has as much yet.
pub fn take(configuration: &Configuration, growth_bytes: u64) -> bool {
    left(configuration);
    let share_bytes = SHARE_BYTES.load(Ordering::Relaxed);
    SHARE_BYTES.store(share_bytes.saturating_sub(growth_bytes), Ordering::Relaxed);
    share_bytes >= growth_bytes
}

/// What is left, as seen not long ago; all where the stage is not in memory.
pub fn left(configuration: &Configuration) -> Left {
    // The counter may jump: then there is a look too many.
    if system::moment().wrapping_sub(LOOKED.load(Ordering::Relaxed)) >= HOLDS_MOMENTS.load(Ordering::Relaxed) {
        return look(configuration);
    }
    Left { free_bytes: FREE_BYTES.load(Ordering::Relaxed), limit_bytes: LIMIT_BYTES.load(Ordering::Relaxed) }
}

/// What is left now.
pub fn look(configuration: &Configuration) -> Left {
    let is_memory = system::file_system(configuration.stage_path()) == Ok(TMPFS);
    let left = if is_memory { read_groups() } else { Left::UNLIMITED };
    remember(left, (spare_bytes(&left) / GROWTH_BYTES).clamp(1, LONGEST_MOMENTS), share_bytes(&left));
    left
}

/// By how much each of many processes may let its files grow that find so much left at the same time.
pub fn share_bytes(left: &Left) -> u64 {
    spare_bytes(left) / WRITERS
}

fn spare_bytes(left: &Left) -> u64 {
    left.free_bytes.saturating_sub(room::reserve_bytes(left.limit_bytes))
}

/// Counts as all for a while: what could be done about too little has been tried.
pub fn hold() {
    let limit_bytes = LIMIT_BYTES.load(Ordering::Relaxed);
    remember(Left { free_bytes: u64::MAX, limit_bytes }, HOLD_MOMENTS, u64::MAX);
}

fn remember(left: Left, moments: u64, share_bytes: u64) {
    FREE_BYTES.store(left.free_bytes, Ordering::Relaxed);
    LIMIT_BYTES.store(left.limit_bytes, Ordering::Relaxed);
    LOOKED.store(system::moment(), Ordering::Relaxed);
    HOLDS_MOMENTS.store(moments, Ordering::Relaxed);
    SHARE_BYTES.store(share_bytes, Ordering::Relaxed);
}

fn read_groups() -> Left {
    let Some(mut scratch) = Scratch::claim() else { return Left::UNLIMITED };
    let Slot { tree, pending, other, .. } = &mut *scratch;
    let buffers = Buffers { groups: tree.as_memory(), path: pending.as_memory(), text: other.as_memory() };
    memory::left(b"self", ENOUGH_BYTES, buffers, &mut read)
}

/// Reads a file of the kernel's, as far as there is room.
fn read(path: &CStr, into: &mut [u8]) -> Option<usize> {
    let file = system::open_own(path, libc::O_RDONLY, 0).ok()?;
    let mut length = 0;
    loop {
        match system::read(file.number(), into.get_mut(length..)?).ok()? {
            0 => return Some(length),
            more => length += more,
        }
    }
}
