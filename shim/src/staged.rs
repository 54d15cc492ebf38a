//! Which captured file a descriptor leads to. The program's descriptors are real ones, and nothing is noted of them:
//! the kernel is asked.

use core::ffi::c_int;

use crate::configuration::{self, Configuration};
use crate::paths;
use crate::scratch::{Scratch, Text};
use crate::system::{self, AT_FDCWD};

/// For which descriptors an answer is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Any.
    Any,
    /// Those that can write.
    Writing,
}

/// Whether a descriptor leads to a captured file.
pub fn is_staged(configuration: &Configuration, fd: c_int, access: Access) -> bool {
    let Some(mut scratch) = Scratch::claim() else { return false };
    path_of(configuration, fd, access, &mut scratch.other)
}

/// Puts the canonical path of the captured file behind a descriptor into `path`; false when there is none: it is
/// another file, or has no name any more.
pub fn path_of(configuration: &Configuration, fd: c_int, access: Access, path: &mut Text) -> bool {
    let is_wanted = |flags: c_int| access == Access::Any || flags & libc::O_ACCMODE != libc::O_RDONLY;
    let is_file = system::fstat(fd).is_ok_and(|stat| paths::is_regular(&stat) && stat.st_nlink > 0);
    if !is_file || !system::fcntl(fd, libc::F_GETFL, 0).is_ok_and(is_wanted) {
        return false;
    }
    let Some(mut scratch) = Scratch::claim() else { return false };
    let link = &mut scratch.other;
    let mut digits = [0; 10];
    let number = configuration::decimal(fd as u32, &mut digits);
    if link.set(b"/proc/self/fd/").and_then(|()| link.push(number)).is_err()
        || path.fill(|room| system::readlinkat(AT_FDCWD, link.c_str(), room)).is_err()
    {
        return false;
    }
    match configuration.without_tree(path.as_bytes()) {
        Some(canonical) => link.set(canonical).and_then(|()| path.set(link.as_bytes())).is_ok(),
        None => false,
    }
}
