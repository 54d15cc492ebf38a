//! Before a staged file grows in a job whose memory control groups have limits: beyond them nothing fails and the
//! kernel kills. So calls that let a file grow look before, ask for room as in a full stage, and let the file move to
//! the parallel file system when there is none.
//!
//! Where there is no limit, nothing here may cost more than one look at a number. Every wait ends after SHEAF_TIMEOUT.

use core::ffi::c_int;
use core::ptr;

use libc::{iovec, ssize_t};

use sheaf_common::memory::Left;
use sheaf_common::room;

use crate::configuration::{self, Configuration};
use crate::staged::{self, Access};
use crate::{flusher, group, paths, spill, system};

/// `UIO_MAXIOV` of the kernel: a longer vector is an error.
const VECTOR_MOST: usize = 1024;
/// How much of a vector is looked at together.
const VECTOR_PART: usize = 32;

/// What is written at once however little is left.
const PORTION_LEAST: usize = 64 << 10;

/// Before a call that lets a file grow by so much.
#[inline]
pub fn before(fd: c_int, growth_bytes: u64) {
    if group::is_limited() {
        see_to_memory(fd, growth_bytes);
    }
}

/// Before a call that writes a vector, all at once.
#[inline]
pub fn before_vector(fd: c_int, vector: *const iovec, count: c_int) {
    if group::is_limited() {
        see_to_memory(fd, vector_bytes(vector, count) as u64);
    }
}

/// Before a call that gives it a length: what is stored into a mapping later is not seen.
#[inline]
pub fn before_length(fd: c_int, length_bytes: u64) {
    if group::is_limited() {
        see_to_memory(fd, length_bytes.saturating_sub(size_of_file(fd).unwrap_or(0)));
    }
}

/// Before a call that copies from another file, which often is asked for more than there is.
#[inline]
pub fn before_copy(from: c_int, to: c_int, length_bytes: u64) {
    if group::is_limited() {
        see_to_memory(to, size_of_file(from).map_or(length_bytes, |size_bytes| length_bytes.min(size_bytes)));
    }
}

/// Writes `count` bytes by `write`, which is told where to begin and how much to write; yields how much that was, and
/// what the last call came to. Where little is left, a large write is made in portions: many processes that found the
/// same room a moment ago may be writing what they have at once.
#[cold]
#[inline(never)]
pub fn write_in_portions(fd: c_int, count: usize, write: &dyn Fn(usize, usize) -> ssize_t) -> (usize, ssize_t) {
    let mut done = 0;
    loop {
        let rest = count - done;
        see_to_memory(fd, rest as u64);
        let wanted = portion(fd, rest).unwrap_or(rest);
        let written = write(done, wanted);
        if written != wanted as ssize_t || wanted == rest {
            return (done, written);
        }
        done += wanted;
    }
}

/// How much of a write to make, if not all at once. Appending is one step to whoever else appends, and stays one; so is
/// a write that may meet the length which this process's files may have.
fn portion(fd: c_int, count: usize) -> Option<usize> {
    let configuration = configuration::active().filter(|_| count > PORTION_LEAST)?;
    let share_bytes = group::share_bytes(&group::left(configuration));
    let portion = usize::try_from(share_bytes).unwrap_or(usize::MAX).max(PORTION_LEAST);
    let is_one_step = || {
        !is_staged(configuration, fd)
            || !system::fcntl(fd, libc::F_GETFL, 0).is_ok_and(|flags| flags & libc::O_APPEND == 0)
            || !system::may_write_any_length()
    };
    if portion >= count || is_one_step() { None } else { Some(portion) }
}

/// How much a vector holds; 0 if it cannot be read, for nobody has found out yet whether there is one, or is too long.
pub fn vector_bytes(vector: *const iovec, count: c_int) -> usize {
    let mut seen = [iovec { iov_base: ptr::null_mut(), iov_len: 0 }; VECTOR_PART];
    let (mut bytes, mut next) = (0usize, 0);
    let count = usize::try_from(count).ok().filter(|count| *count <= VECTOR_MOST).unwrap_or(0);
    while next < count {
        let part = seen.get_mut(..VECTOR_PART.min(count - next)).unwrap_or_default();
        let Ok(()) = system::copy_vector(vector.wrapping_add(next), part) else { return 0 };
        bytes = part.iter().fold(bytes, |bytes, piece| bytes.saturating_add(piece.iov_len));
        next += part.len();
    }
    bytes
}

fn is_staged(configuration: &Configuration, fd: c_int) -> bool {
    staged::is_staged(configuration, fd, Access::Writing)
}

fn size_of_file(fd: c_int) -> Option<u64> {
    system::fstat(fd).ok().filter(paths::is_regular).map(|stat| stat.st_size as u64)
}

/// Sees to it that the groups have the memory, or that the file is elsewhere.
#[cold]
#[inline(never)]
fn see_to_memory(fd: c_int, growth_bytes: u64) {
    let Some(configuration) = configuration::active() else { return };
    // A share is of what is left beyond the reserve.
    if !group::take(configuration, growth_bytes) && is_staged(configuration, fd) {
        make_room(configuration, fd, growth_bytes);
    }
}

/// Half of the reserve is left to what no hook sees.
fn make_room(configuration: &Configuration, fd: c_int, growth_bytes: u64) {
    let is_short =
        |left: &Left| left.free_bytes.saturating_sub(growth_bytes) < room::reserve_bytes(left.limit_bytes) / 2;
    let left = group::look(configuration);
    if !is_short(&left) {
        group::take(configuration, growth_bytes);
        return;
    }
    let wanted_bytes = growth_bytes.saturating_add(room::reserve_bytes(left.limit_bytes));
    let is_made = wanted_bytes <= left.limit_bytes && flusher::make_room(configuration, wanted_bytes).is_ok();
    // The flusher may not see this process's groups, and others take what was made.
    let is_enough = is_made && !is_short(&group::look(configuration));
    if !is_enough && spill::move_file(configuration, fd).is_err() {
        group::hold();
    }
}
