//! SHEAF_DURABLE: close and fsync that return when what was written is published and durable in the store.
//!
//! What a file is and when it is complete is still the kernel's business and the flusher's; here a program only waits
//! for them. With `async`, the default, a call costs one look at one byte. Nothing here may wait on a file that is not
//! staged, or keep a descriptor.

use core::ffi::c_int;
use core::sync::atomic::{AtomicU8, Ordering};

use libc::FILE;
use sheaf_common::configuration::Durable;

use crate::configuration;
use crate::flusher;
use crate::hooks::{fail, real};
use crate::scratch::Scratch;
use crate::staged::{self, Access};
use crate::system::{self, Errno};

/// The policy, as a number.
static POLICY: AtomicU8 = AtomicU8::new(Durable::Async as u8);

/// Sets the policy: once, when the environment is read.
pub fn set(policy: Durable) {
    POLICY.store(policy as u8, Ordering::Relaxed);
}

#[inline]
fn wants(policy: Durable) -> bool {
    POLICY.load(Ordering::Relaxed) >= policy as u8
}

/// Whether what was closed on one node is to be seen by whoever opens it on another.
pub fn is_close_to_open() -> bool {
    wants(Durable::Close)
}

/// close(2).
pub unsafe fn close(fd: c_int) -> c_int {
    if wants(Durable::Close) {
        // SAFETY: the program's descriptor.
        return then_sync(fd, || unsafe { real::close(fd) });
    }
    // SAFETY: as above.
    unsafe { real::close(fd) }
}

/// dup2(2), which closes what `to` was.
pub unsafe fn dup2(from: c_int, to: c_int) -> c_int {
    if wants(Durable::Close) && from != to {
        // SAFETY: the program's descriptors.
        return then_sync(to, || unsafe { real::dup2(from, to) });
    }
    // SAFETY: as above.
    unsafe { real::dup2(from, to) }
}

/// dup3(2), which closes what `to` was.
pub unsafe fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
    if wants(Durable::Close) {
        // SAFETY: the program's descriptors.
        return then_sync(to, || unsafe { real::dup3(from, to, flags) });
    }
    // SAFETY: as above.
    unsafe { real::dup3(from, to, flags) }
}

/// fclose(3).
pub unsafe fn fclose(stream: *mut FILE) -> c_int {
    if wants(Durable::Close) && !stream.is_null() {
        // SAFETY: the program's stream, of which fileno only reads the number.
        return unsafe { then_sync(real::fileno(stream), || real::fclose(stream)) };
    }
    // SAFETY: as above.
    unsafe { real::fclose(stream) }
}

/// fsync(2).
pub unsafe fn fsync(fd: c_int) -> c_int {
    if wants(Durable::Fsync) {
        // SAFETY: the program's descriptor.
        return then_sync(fd, || unsafe { real::fsync(fd) });
    }
    // SAFETY: as above.
    unsafe { real::fsync(fd) }
}

/// fdatasync(2).
pub unsafe fn fdatasync(fd: c_int) -> c_int {
    if wants(Durable::Fsync) {
        // SAFETY: the program's descriptor.
        return then_sync(fd, || unsafe { real::fdatasync(fd) });
    }
    // SAFETY: as above.
    unsafe { real::fdatasync(fd) }
}

/// Makes the call, and then waits until the file that the descriptor wrote to is durable.
#[cold]
#[inline(never)]
fn then_sync(fd: c_int, call: impl FnOnce() -> c_int) -> c_int {
    let errno = system::errno();
    let Some(configuration) = configuration::active() else { return call() };
    let Some(mut scratch) = Scratch::claim() else { return call() };
    // Afterwards the number may be another file's.
    let is_staged = staged::path_of(configuration, fd, Access::Writing, &mut scratch.other);
    system::set_errno(errno);
    let result = call();
    if result < 0 || !is_staged {
        return result;
    }
    let outcome = flusher::sync(configuration, scratch.other.as_bytes());
    system::set_errno(errno);
    match outcome {
        Ok(()) => result,
        Err(Errno(number)) => fail(number),
    }
}
