//! Calls that move data, hooked for one thing: a staged file that finds its file system full. The program never sees
//! that.
//!
//! The real function runs first, and its result is all that is looked at when it succeeds. Otherwise room is asked for,
//! and if there is none, the file moves to the parallel file system under the program's descriptors; the call then goes
//! on where it stood. Anything that is not a full stage is the program's to see as it is. Nothing here may write a byte
//! twice.

use core::ffi::{c_int, c_uint, c_void};

use libc::{iovec, off_t, size_t, ssize_t};

use crate::configuration::{self, Configuration};
use crate::hooks::{fail, real};
use crate::staged::{self, Access};
use crate::{group, growth, room, spill, system};

/// The offset that means the file's own position.
const OWN_POSITION: off_t = -1;

/// write(2).
pub unsafe fn write(fd: c_int, buffer: *const c_void, count: size_t) -> ssize_t {
    // SAFETY: the program's arguments; `done` and `wanted` are no more than `count`, the size of its buffer.
    write_all(fd, count, move |done, wanted| unsafe { real::write(fd, buffer.add(done), wanted) })
}

/// pwrite(2).
pub unsafe fn pwrite(fd: c_int, buffer: *const c_void, count: size_t, offset: off_t) -> ssize_t {
    // SAFETY: as in `write`.
    write_all(fd, count, move |done, wanted| unsafe {
        real::pwrite(fd, buffer.add(done), wanted, offset + done as off_t)
    })
}

/// writev(2).
pub unsafe fn writev(fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t {
    if group::is_limited() {
        // SAFETY: the program's arguments.
        return unsafe { write_vector(fd, pieces, count, OWN_POSITION) };
    }
    // SAFETY: the program's arguments.
    let written = unsafe { real::writev(fd, pieces, count) };
    // SAFETY: as above.
    unsafe { go_on_with_pieces(fd, written, pieces, count, OWN_POSITION) }
}

/// pwritev(2).
pub unsafe fn pwritev(fd: c_int, pieces: *const iovec, count: c_int, offset: off_t) -> ssize_t {
    if group::is_limited() && offset >= 0 {
        // SAFETY: the program's arguments.
        return unsafe { write_vector(fd, pieces, count, offset) };
    }
    // SAFETY: the program's arguments.
    let written = unsafe { real::pwritev(fd, pieces, count, offset) };
    // SAFETY: as above.
    unsafe { go_on_with_pieces(fd, written, pieces, count, offset) }
}

/// pwritev2(2).
pub unsafe fn pwritev2(fd: c_int, pieces: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
    growth::before_vector(fd, pieces, count);
    // SAFETY: the program's arguments.
    let written = unsafe { real::pwritev2(fd, pieces, count, offset, flags) };
    let written = or_system_call(written, || {
        // The kernel takes the offset in two halves, of which 64-bit machines need one.
        (libc::SYS_pwritev2, [fd as usize, pieces as usize, count as usize, offset as usize, 0, flags as usize])
    });
    // SAFETY: as above.
    unsafe { go_on_with_pieces(fd, written, pieces, count, offset) }
}

/// ftruncate(2). Where there is little room, what the file may grow by is reserved: a store into a mapping would end
/// the program with SIGBUS when others had taken it.
pub unsafe fn ftruncate(fd: c_int, length: off_t) -> c_int {
    growth::before_length(fd, length.max(0) as u64);
    // SAFETY: the program's arguments.
    let result = unsafe { real::ftruncate(fd, length) };
    if result == 0 && length > 0 && is_tight(fd, length as u64) {
        // One that has moved to the parallel file system needs no reserve.
        let is_here = || configuration::active().is_some_and(|configuration| is_staged(configuration, fd));
        let reserve = || if is_here() { unanswered(system::fallocate(fd, length)) as ssize_t } else { 0 };
        return repeat(fd, reserve(), length as u64, reserve) as c_int;
    }
    // SAFETY: as above.
    repeat(fd, result as ssize_t, 0, || unsafe { real::ftruncate(fd, length) } as ssize_t) as c_int
}

/// fallocate(2).
pub unsafe fn fallocate(fd: c_int, mode: c_int, offset: off_t, length: off_t) -> c_int {
    if mode & libc::FALLOC_FL_PUNCH_HOLE == 0 {
        growth::before(fd, length.max(0) as u64);
    }
    // SAFETY: the program's arguments.
    let call = || unsafe { real::fallocate(fd, mode, offset, length) } as ssize_t;
    repeat(fd, call(), length.max(0) as u64, call) as c_int
}

/// posix_fallocate(3), which yields an error number and leaves errno alone.
pub unsafe fn posix_fallocate(fd: c_int, offset: off_t, length: off_t) -> c_int {
    growth::before(fd, length.max(0) as u64);
    let errno = system::errno();
    let mut number = 0;
    let mut call = || {
        // SAFETY: the program's arguments.
        number = unsafe { real::posix_fallocate(fd, offset, length) };
        system::set_errno(number);
        if number == 0 { 0 } else { -1 }
    };
    let first = call();
    repeat(fd, first, length.max(0) as u64, call);
    system::set_errno(errno);
    number
}

/// copy_file_range(2).
pub unsafe fn copy_file_range(
    from: c_int,
    from_offset: *mut off_t,
    to: c_int,
    to_offset: *mut off_t,
    length: size_t,
    flags: c_uint,
) -> ssize_t {
    growth::before_copy(from, to, length as u64);
    let call = || {
        // SAFETY: the program's arguments.
        let copied = unsafe { real::copy_file_range(from, from_offset, to, to_offset, length, flags) };
        or_system_call(copied, || {
            let (source, target) = ([from as usize, from_offset as usize], [to as usize, to_offset as usize]);
            (libc::SYS_copy_file_range, [source[0], source[1], target[0], target[1], length, flags as usize])
        })
    };
    repeat(to, call(), length as u64, call)
}

/// sendfile(2).
pub unsafe fn sendfile(to: c_int, from: c_int, offset: *mut off_t, length: size_t) -> ssize_t {
    growth::before_copy(from, to, length as u64);
    // SAFETY: the program's arguments.
    let call = || unsafe { real::sendfile(to, from, offset, length) };
    repeat(to, call(), length as u64, call)
}

/// What the kernel says where this C library lacks the function.
fn or_system_call(result: ssize_t, call: impl FnOnce() -> (core::ffi::c_long, [usize; 6])) -> ssize_t {
    if result != -1 || system::errno() != libc::ENOSYS {
        return result;
    }
    let (number, arguments) = call();
    // SAFETY: the program's own arguments, which the kernel checks.
    let result = unsafe { system::syscall(number, arguments) };
    if result < 0 { fail(-result as c_int) } else { result }
}

/// Whether a descriptor leads to a staged file on a file system with little room.
fn is_tight(fd: c_int, growth_bytes: u64) -> bool {
    let Some(configuration) = configuration::active() else { return false };
    system::space_of(fd).is_ok_and(|space| room::is_tight(&space, growth_bytes)) && is_staged(configuration, fd)
}

/// A file system that cannot reserve has nothing to say about it.
fn unanswered(outcome: system::Result<()>) -> c_int {
    match outcome {
        Err(system::Errno(libc::EOPNOTSUPP | libc::ENOSYS)) | Ok(()) => 0,
        Err(system::Errno(number)) => fail(number),
    }
}

/// Goes on with the pieces that a call has left, one by one.
unsafe fn go_on_with_pieces(fd: c_int, written: ssize_t, pieces: *const iovec, count: c_int, offset: off_t) -> ssize_t {
    if written < 0 && !is_full(system::errno()) {
        return written;
    }
    if count < 1 {
        return written;
    }
    // SAFETY: the call has been made, so the kernel has accepted the vector.
    let pieces = unsafe { core::slice::from_raw_parts(pieces, count as usize) };
    let total = pieces.iter().map(|piece| piece.iov_len).sum();
    if written as size_t == total {
        return written;
    }
    // SAFETY: as above.
    go_on(fd, written, total, |done| unsafe { write_part(fd, pieces, offset, done, total - done) })
}

/// Writes a vector where a memory control group has a limit.
#[cold]
#[inline(never)]
unsafe fn write_vector(fd: c_int, pieces: *const iovec, count: c_int, offset: off_t) -> ssize_t {
    let total = growth::vector_bytes(pieces, count);
    let whole = || match offset {
        // SAFETY: the program's arguments.
        OWN_POSITION => unsafe { real::writev(fd, pieces, count) },
        // SAFETY: the program's arguments.
        _ => unsafe { real::pwritev(fd, pieces, count, offset) },
    };
    if total == 0 || total > ssize_t::MAX as usize {
        return whole();
    }
    // SAFETY: the vector has just been read.
    let vector = unsafe { core::slice::from_raw_parts(pieces, count as usize) };
    write_in_portions(fd, total, &|done, wanted| match done == 0 && wanted == total.min(WRITTEN_MOST) {
        true => whole(),
        // SAFETY: the program's own pieces.
        false => unsafe { write_part(fd, vector, offset, done, wanted) },
    })
}

/// Writes `wanted` bytes of the pieces, from `done` on, one piece after the other; yields how many that were, or the
/// error of the first.
unsafe fn write_part(fd: c_int, pieces: &[iovec], offset: off_t, done: usize, wanted: usize) -> ssize_t {
    let (mut before, mut written) = (0, 0);
    for piece in pieces {
        let skipped = (done + written).saturating_sub(before).min(piece.iov_len);
        let length = (piece.iov_len - skipped).min(wanted - written);
        before += piece.iov_len;
        if length == 0 {
            continue;
        }
        // SAFETY: the skipped bytes are fewer than the piece has.
        let start = unsafe { piece.iov_base.add(skipped).cast_const() };
        let more = match offset {
            // SAFETY: a part of a piece of the program's.
            OWN_POSITION => unsafe { real::write(fd, start, length) },
            // SAFETY: as above.
            _ => unsafe { real::pwrite(fd, start, length, offset + (done + written) as off_t) },
        };
        if more != length as ssize_t {
            return if written > 0 { (written + more.max(0) as usize) as ssize_t } else { more };
        }
        written += length;
    }
    written as ssize_t
}

/// Writes `count` bytes by `write`, which is told where to begin and how much to write.
#[inline]
fn write_all(fd: c_int, count: usize, write: impl Fn(usize, usize) -> ssize_t) -> ssize_t {
    if group::is_limited() {
        return write_in_portions(fd, count, &write);
    }
    let written = write(0, count);
    if written as size_t == count {
        return written;
    }
    go_on(fd, written, count, |done| write(done, count - done))
}

#[cold]
#[inline(never)]
fn write_in_portions(fd: c_int, count: usize, write: &dyn Fn(usize, usize) -> ssize_t) -> ssize_t {
    if count > ssize_t::MAX as usize {
        // That is no length: the kernel says so.
        return write(0, count);
    }
    let (count, errno) = (count.min(WRITTEN_MOST), system::errno());
    let (done, last) = growth::write_in_portions(fd, count, write);
    let rest = count - done;
    let more = match last == rest as ssize_t {
        true => last,
        false => go_on(fd, last, rest, |more| write(done + more, rest - more)),
    };
    if more < 0 && done > 0 {
        // What is written counts; the next call is told why there was no more.
        system::set_errno(errno);
    }
    if more < 0 && done == 0 { more } else { (done + more.max(0) as usize) as ssize_t }
}

fn is_staged(configuration: &Configuration, fd: c_int) -> bool {
    staged::is_staged(configuration, fd, Access::Any)
}

fn is_full(number: c_int) -> bool {
    matches!(number, libc::ENOSPC | libc::EDQUOT)
}

/// What has been tried for one call.
struct Attempts {
    begin_ns: u64,
    /// Whether a descriptor that can write has been written to once more after EBADF.
    again: bool,
    /// How often there was no room although the file system has some: a quota, which no room there helps against.
    in_vain: u32,
}

/// How often room may have been made by somebody between a call that found none and a look.
const IN_VAIN_MOST: u32 = 3;

impl Attempts {
    fn new() -> Attempts {
        Attempts { begin_ns: system::now_ns(), again: false, in_vain: 0 }
    }

    /// Makes another attempt promising after an error that the program must not see: with room in the stage, with the
    /// file elsewhere, or when it is, or was, on the move. False when the program is to see the error.
    fn promise(&mut self, configuration: &Configuration, fd: c_int, number: c_int, wanted_bytes: u64) -> bool {
        match number {
            _ if is_full(number) && !is_staged(configuration, fd) => false,
            _ if is_full(number) => {
                self.in_vain += u32::from(!has_no_room(fd, wanted_bytes as size_t));
                self.in_vain <= IN_VAIN_MOST && room::ask(configuration, fd, wanted_bytes, self.begin_ns)
                    || spill::move_file(configuration, fd).is_ok()
            }
            libc::EBADF | libc::EINVAL if spill::is_under_way() => spill::wait(),
            // The move ended between the call and this look. Some calls say so of every file that is appended to.
            libc::EBADF => !core::mem::replace(&mut self.again, true) && can_write(fd),
            _ => false,
        }
    }
}

fn can_write(fd: c_int) -> bool {
    system::fcntl(fd, libc::F_GETFL, 0).is_ok_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

/// Goes on with a write that came to `first`, if a full stage is why it did not come to `count`.
#[cold]
#[inline(never)]
fn go_on(fd: c_int, first: ssize_t, count: size_t, write: impl Fn(usize) -> ssize_t) -> ssize_t {
    let errno = system::errno();
    let Some(configuration) = configuration::active() else { return first };
    let mut attempts = Attempts::new();
    let mut done = first.max(0) as usize;
    let mut number = if first < 0 { errno } else { 0 };
    if first == 0 || first > 0 && !(is_staged(configuration, fd) && is_for_want_of_room(fd, done, count)) {
        system::set_errno(errno);
        return first;
    }
    while number == 0 || attempts.promise(configuration, fd, number, (count - done) as u64) {
        match write(done) {
            0 => break,
            more if more > 0 => (done, number) = (done + more as usize, 0),
            _ => number = system::errno(),
        }
        if done == count {
            break;
        }
    }
    system::set_errno(if done > 0 { errno } else { number });
    if done > 0 { done as ssize_t } else { -1 }
}

/// Makes a call again that failed with `first`, as long as a full stage is why.
fn repeat(fd: c_int, first: ssize_t, wanted_bytes: u64, mut call: impl FnMut() -> ssize_t) -> ssize_t {
    if first != -1 {
        return first;
    }
    again(fd, system::errno(), wanted_bytes, &mut call)
}

#[cold]
#[inline(never)]
fn again(fd: c_int, errno: c_int, wanted_bytes: u64, call: &mut dyn FnMut() -> ssize_t) -> ssize_t {
    let mut attempts = Attempts::new();
    let mut number = errno;
    let Some(configuration) = configuration::active() else { return -1 };
    while attempts.promise(configuration, fd, number, wanted_bytes) {
        match call() {
            -1 => number = system::errno(),
            result => return result,
        }
    }
    system::set_errno(number);
    -1
}

/// Whether a write to a regular file came to less than it was asked for because it found no room. Where the file system
/// says that it has some, there may be a quota; other reasons are the most that one call takes, and the length that
/// files may have.
fn is_for_want_of_room(fd: c_int, done: usize, count: usize) -> bool {
    has_no_room(fd, count - done) || count <= WRITTEN_MOST && system::may_write_any_length()
}

/// Most bytes of one write(2).
const WRITTEN_MOST: usize = 0x7fff_f000;

/// Whether the file system has less room than this.
fn has_no_room(fd: c_int, rest: size_t) -> bool {
    system::space_of(fd).is_ok_and(|space| space.free_bytes < rest as u64)
}
