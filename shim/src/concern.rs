//! What the supervisor of `sheaf run --trap` asks the library that is preloaded into it: does a path matter here?
//!
//! The supervisor makes the program's calls itself, through the hooks. So that it leaves all others to the kernel, it
//! must learn which they are by the same rules. Nothing may be opened, made or removed here.

use core::ffi::{c_char, c_int};

use crate::paths::{self, Last, Resolution};
use crate::system::{self, AT_FDCWD};

/// Whether a hook would look at what this path names: 1, or 0 when every call on it runs untouched. With
/// `changes_names` the caller is about to change what names there mean.
///
/// # Safety
/// `path` must be null or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sheaf_concerns(path: *const c_char, changes_names: c_int) -> c_int {
    let errno = system::errno();
    // SAFETY: the caller's contract.
    let is_foreign = matches!(unsafe { paths::resolve(AT_FDCWD, path, Last::Follow) }, Resolution::Foreign);
    if changes_names != 0 {
        paths::forget_foreign();
    }
    system::set_errno(errno);
    c_int::from(!is_foreign)
}
