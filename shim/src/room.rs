//! Room in the stage: asked for before a file is captured, and when a write finds the file system full.
//!
//! Writes of streams and stores into mappings cannot be hooked, so some room is kept for them: a capture that would eat into
//! it waits for the flusher to evict what is published, and then stays on the parallel file system. Every wait ends after
//! SHEAF_TIMEOUT. Nothing here may touch a file of the program.

use core::ffi::c_int;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use sheaf_common::{layout, room};

use crate::configuration::Configuration;
use crate::flusher;
use crate::scratch::Scratch;
use crate::system::{self, Space};

/// Least that is asked for at once, in bytes: a file that grows in small pieces need not ask for each.
const WANTED_LEAST: u64 = 256 << 10;
/// What stands for "there is no such file".
static NO_CEILING: AtomicU64 = AtomicU64::new(u64::MAX);
/// Where the flusher tells how much the memory cgroup lets the stage's file system hold; null until it was looked for.
static CEILING: AtomicPtr<AtomicU64> = AtomicPtr::new(core::ptr::null_mut());

/// Whether another file may be captured: there is room, or some can be made.
pub fn admit(configuration: &Configuration) -> bool {
    let Ok(space) = system::space(configuration.stage_path()) else { return true };
    let ceiling_bytes = ceiling(configuration);
    let free_bytes = space.free_bytes.min(ceiling_bytes.saturating_sub(space.used_bytes));
    let reserve_bytes = room::reserve_bytes(space.total_bytes.min(ceiling_bytes));
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

fn ceiling(configuration: &Configuration) -> u64 {
    let mut place = CEILING.load(Ordering::Acquire);
    if place.is_null() {
        place = map_ceiling(configuration).unwrap_or((&raw const NO_CEILING).cast_mut());
        // Another thread's mapping is as good; this one's page stays.
        CEILING.store(place, Ordering::Release);
    }
    // SAFETY: either a static, or a shared mapping of one page of a file that nobody cuts, and that is never unmapped.
    unsafe { &*place }.load(Ordering::Relaxed)
}

/// The number that the flusher keeps in the stage, in memory.
fn map_ceiling(configuration: &Configuration) -> Option<*mut AtomicU64> {
    let mut scratch = Scratch::claim()?;
    let path = &mut scratch.other;
    for part in [configuration.stage, b"/", layout::CEILING.as_bytes()] {
        path.push(part).ok()?;
    }
    let file = system::open_own(path.c_str(), libc::O_RDONLY | libc::O_NOFOLLOW, 0).ok()?;
    // Behind the file's end there is no memory.
    let is_whole = system::fstat(file.number()).is_ok_and(|stat| stat.st_size >= 8);
    if is_whole { system::map_file(file.number(), 8).ok().map(<*mut u8>::cast) } else { None }
}
