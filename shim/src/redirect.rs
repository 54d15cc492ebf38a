//! What most hooks have in common: the same call on another path.
//!
//! Nothing here may change the call in any other way.

use core::ffi::{c_char, c_int};

use crate::hooks::{Failure, fail};
use crate::paths::{self, Entry, Kind, Last, Resolution};
use crate::system::{self, AT_FDCWD};

/// Makes a call on what a path means: in the tree for managed names, else natively.
///
/// # Safety
/// `path` must be null or a C string.
pub unsafe fn on_path<R: Failure>(
    directory: c_int,
    path: *const c_char,
    last: Last,
    call: impl Fn(c_int, *const c_char) -> R,
) -> R {
    // SAFETY: the caller's contract.
    match unsafe { paths::resolve(directory, path, last) } {
        Resolution::Foreign => call(directory, path),
        Resolution::Failed(error) => fail(error.0),
        Resolution::Ours(entry) => on_entry(entry, directory, path, call),
    }
}

/// Makes a call on a name that is already resolved.
pub fn on_entry<R: Failure>(
    entry: Entry,
    directory: c_int,
    path: *const c_char,
    call: impl Fn(c_int, *const c_char) -> R,
) -> R {
    if entry.kind == Kind::Managed {
        let errno = system::errno();
        let result = call(AT_FDCWD, entry.tree_path().as_ptr());
        if !result.is_failure() || system::errno() != libc::ENOENT {
            return result;
        }
        // It may have been published meanwhile, and lie on its own path.
        system::set_errno(errno);
    }
    natively(entry, directory, path, call)
}

/// Makes a call as the program did, unless the kernel could not follow the path.
pub fn natively<R>(entry: Entry, directory: c_int, path: *const c_char, call: impl Fn(c_int, *const c_char) -> R) -> R {
    if entry.is_detour {
        return call(AT_FDCWD, entry.real_path_and_end().as_ptr());
    }
    drop(entry);
    call(directory, path)
}
