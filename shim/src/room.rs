//! Room in the stage: asked for before a file is captured, when a write finds the file system full, and before it would
//! go beyond what the memory control groups leave, where nothing fails and the kernel kills.
//!
//! Writes of streams and stores into mappings cannot be hooked, so some room is kept for them: a capture that would eat
//! into it waits for the flusher to evict what is published, and then stays on the parallel file system. Every wait
//! ends after SHEAF_TIMEOUT. Nothing here may touch a file of the program.

use core::ffi::c_int;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use libc::iovec;

use sheaf_common::memory::Left;
use sheaf_common::room;

use crate::configuration::{self, Configuration};
use crate::system::{self, Space};
use crate::{flusher, group, paths, spill, staged};

/// Least that is asked for at once, in bytes: a file that grows in small pieces need not ask for each.
const WANTED_LEAST: u64 = 256 << 10;

/// `UIO_MAXIOV` of the kernel: more pieces are an error.
const PIECES_MOST: usize = 1024;
const PIECES_AT_ONCE: usize = 32;

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

/// Before a call lets a file grow by so much: sees to it that its groups have the memory, or that the file is elsewhere.
#[inline]
pub fn before_growth(fd: c_int, growth_bytes: u64) {
    if group::is_limited() {
        see_to_memory(fd, move |_| growth_bytes);
    }
}

/// The same before a call that writes several pieces.
#[inline]
pub fn before_vector(fd: c_int, pieces: *const iovec, count: c_int) {
    if group::is_limited() {
        see_to_memory(fd, move |_| bytes_of(pieces, count));
    }
}

/// The same before a call that gives it a length: what is stored into a mapping later is not seen.
#[inline]
pub fn before_length(fd: c_int, length_bytes: u64) {
    if group::is_limited() {
        see_to_memory(fd, move |size_bytes| length_bytes.saturating_sub(size_bytes));
    }
}

/// The same before a call that copies from another file, which often is asked for more than there is.
#[inline]
pub fn before_copy(from: c_int, to: c_int, length_bytes: u64) {
    if group::is_limited() {
        see_to_memory(to, move |_| size_of_file(from).map_or(length_bytes, |size_bytes| length_bytes.min(size_bytes)));
    }
}

/// How much the pieces hold, as far as they can be read: nobody has found out yet whether there are any.
fn bytes_of(pieces: *const iovec, count: c_int) -> u64 {
    let mut seen = [iovec { iov_base: ptr::null_mut(), iov_len: 0 }; PIECES_AT_ONCE];
    let (mut bytes, mut next) = (0u64, 0);
    let count = usize::try_from(count).unwrap_or(0).min(PIECES_MOST);
    while next < count {
        let wanted = seen.get_mut(..PIECES_AT_ONCE.min(count - next)).unwrap_or_default();
        let Ok(()) = system::copy_vector(pieces.wrapping_add(next), wanted) else { return bytes };
        bytes = wanted.iter().fold(bytes, |bytes, piece| bytes.saturating_add(piece.iov_len as u64));
        next += wanted.len();
    }
    bytes
}

fn size_of_file(fd: c_int) -> Option<u64> {
    system::fstat(fd).ok().filter(paths::is_regular).map(|stat| stat.st_size as u64)
}

/// `growth` tells by how much a file of a given size grows. Half of the reserve is left to what no hook sees.
#[cold]
#[inline(never)]
fn see_to_memory(fd: c_int, growth: impl Fn(u64) -> u64) {
    let Some(configuration) = configuration::active() else { return };
    let growth_bytes = growth(size_of_file(fd).unwrap_or(0));
    let is_short =
        |left: &Left| left.free_bytes.saturating_sub(growth_bytes) < room::reserve_bytes(left.limit_bytes) / 2;
    if !is_short(&group::left(configuration)) || !staged::is_staged(configuration, fd) {
        return;
    }
    let left = group::look(configuration);
    if !is_short(&left) {
        return;
    }
    let wanted_bytes = growth_bytes.saturating_add(room::reserve_bytes(left.limit_bytes));
    let is_made = wanted_bytes <= left.limit_bytes && flusher::make_room(configuration, wanted_bytes).is_ok();
    if is_made {
        group::look(configuration);
    } else if spill::move_file(configuration, fd).is_err() {
        group::hold();
    }
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
