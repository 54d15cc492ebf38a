//! Room in the stage: asked for before a file is captured, and when a write finds the file system full.
//!
//! Writes of streams and stores into mappings cannot be hooked, so some room is kept for them: a capture that would eat
//! into it waits for the flusher to evict what is published, and then stays on the parallel file system. Every wait
//! ends after SHEAF_TIMEOUT. Nothing here may touch a file of the program.

use core::ffi::c_int;
use core::sync::atomic::{AtomicU64, Ordering};

use sheaf_common::room;

use crate::configuration::Configuration;
use crate::system::{self, Space};
use crate::{flusher, group};

/// Least that is asked for at once, in bytes: a file that grows in small pieces need not ask for each.
const WANTED_LEAST: u64 = 256 << 10;

/// More room than all processes of a node can use up in a [`system::moment`]: who has found as much beyond the reserve
/// need not ask again until it is over.
const AMPLE_BYTES: u64 = 8 << 30;

/// The moment in which ample room was found last.
static WAS_AMPLE: AtomicU64 = AtomicU64::new(u64::MAX);

/// Whether another file may be captured: there is room, or some can be made.
pub fn admit(configuration: &Configuration) -> bool {
    let moment = system::moment();
    if WAS_AMPLE.load(Ordering::Relaxed) == moment {
        return true;
    }
    let Ok(space) = system::space(configuration.stage_path()) else { return true };
    let left = group::left(configuration);
    let free_bytes = space.free_bytes.min(left.free_bytes);
    let reserve_bytes = room::reserve_bytes(space.total_bytes.min(left.limit_bytes));
    if free_bytes >= reserve_bytes.saturating_add(AMPLE_BYTES) {
        WAS_AMPLE.store(moment, Ordering::Relaxed);
    }
    free_bytes >= reserve_bytes || flusher::make_room(configuration, reserve_bytes).is_ok()
}

/// Asks for room for a file that has found none, as long as SHEAF_TIMEOUT has not passed since `begin_ns`.
pub fn ask(configuration: &Configuration, fd: c_int, wanted_bytes: u64, begin_ns: u64) -> bool {
    let Ok(space) = system::space_of(fd) else { return false };
    let wanted_bytes = wanted_bytes.min(room::reserve_bytes(space.total_bytes)).max(WANTED_LEAST);
    !flusher::is_over(begin_ns, configuration.timeout_ms) && flusher::make_room(configuration, wanted_bytes).is_ok()
}

/// Whether a file system has so little room that what a file may grow by must be reserved, or others take it.
pub fn is_tight(space: &Space, growth_bytes: u64) -> bool {
    space.free_bytes.saturating_sub(growth_bytes) < space.total_bytes / 2
}
