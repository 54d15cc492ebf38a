//! fopen and freopen: the file is opened as open(2) would, and the stream is the C library's own.
//!
//! Nothing here may look into a stream.

use core::ffi::{CStr, c_char, c_int};

use libc::{FILE, O_APPEND, O_CLOEXEC, O_CREAT, O_EXCL, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};

use crate::hooks::{fail, real};
use crate::open;
use crate::paths::{self, Kind, Last, Resolution};
use crate::system::{AT_FDCWD, Descriptor, Errno};

/// Mode of files that fopen makes, before the umask.
const FILE_MODE: libc::mode_t = 0o666;
/// Longest mode that is rewritten, with its NUL.
const MODE_MAX: usize = 64;

/// What a mode means to open(2); `None` for one that the C library refuses.
fn flags_of(mode: &[u8]) -> Option<c_int> {
    let (first, rest) = mode.split_first()?;
    let (mut access, mut flags) = match first {
        b'r' => (O_RDONLY, 0),
        b'w' => (O_WRONLY, O_CREAT | O_TRUNC),
        b'a' => (O_WRONLY, O_CREAT | O_APPEND),
        _ => return None,
    };
    for letter in rest.iter().take_while(|&&letter| letter != b',') {
        match letter {
            b'+' => access = O_RDWR,
            b'x' => flags |= O_EXCL,
            b'e' => flags |= O_CLOEXEC,
            _ => {}
        }
    }
    Some(access | flags)
}

/// A mode without what would make or empty the file once more.
fn mode_for_open_file(mode: &[u8], buffer: &mut [u8; MODE_MAX]) -> bool {
    let mut length = 0;
    let mut in_options = false;
    for letter in mode {
        in_options |= *letter == b',';
        if *letter == b'x' && !in_options {
            continue;
        }
        // The last byte stays NUL.
        let Some(place) = buffer.get_mut(length).filter(|_| length < MODE_MAX - 1) else { return false };
        *place = *letter;
        length += 1;
    }
    true
}

/// fopen(3).
pub unsafe fn fopen(path: *const c_char, mode: *const c_char) -> *mut FILE {
    let native = || {
        // SAFETY: the program's arguments.
        unsafe { real::fopen(path, mode) }
    };
    if path.is_null() || mode.is_null() {
        return native();
    }
    // SAFETY: the program's mode.
    let letters = unsafe { CStr::from_ptr(mode) }.to_bytes();
    let Some(flags) = flags_of(letters) else { return native() };
    // A character set needs fopen itself: it is not known to fdopen.
    if letters.contains(&b',') {
        // SAFETY: the program's arguments.
        return unsafe { open_by_path(path, letters, flags, native, fail, |path, mode| real::fopen(path, mode)) };
    }
    // SAFETY: the program's path.
    let fd = match unsafe { open::attempt(AT_FDCWD, path, flags, FILE_MODE) } {
        None => return native(),
        Some(Err(Errno(number))) => return fail(number),
        Some(Ok(fd)) => Descriptor::take(fd),
    };
    // SAFETY: the descriptor is open and ours, the mode is the program's; fdopen passes over what only concerns open.
    let stream = unsafe { real::fdopen(fd.number(), mode) };
    if !stream.is_null() {
        fd.release();
    }
    stream
}

/// freopen(3).
pub unsafe fn freopen(path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE {
    let native = || {
        // SAFETY: the program's arguments.
        unsafe { real::freopen(path, mode, stream) }
    };
    if path.is_null() || mode.is_null() {
        return native();
    }
    // SAFETY: the program's mode.
    let letters = unsafe { CStr::from_ptr(mode) }.to_bytes();
    let Some(flags) = flags_of(letters) else { return native() };
    let refuse = |number| {
        // The C library closes the file and leaves the stream to the program, which may close it once more: so it must
        // fail by itself, at a path that nobody has.
        // SAFETY: the program's mode and stream.
        unsafe { real::freopen(c"".as_ptr(), mode, stream) };
        fail(number)
    };
    // SAFETY: the program's arguments.
    unsafe { open_by_path(path, letters, flags, native, refuse, |path, mode| real::freopen(path, mode, stream)) }
}

/// Opens the file as open(2) would and holds it, so that it stays where it is and as it is; then has the C library open
/// it once more by its path in the tree.
unsafe fn open_by_path(
    path: *const c_char,
    letters: &[u8],
    flags: c_int,
    native: impl Fn() -> *mut FILE,
    refuse: impl Fn(c_int) -> *mut FILE,
    call: impl Fn(*const c_char, *const c_char) -> *mut FILE,
) -> *mut FILE {
    let mut mode = [0; MODE_MAX];
    // SAFETY: the program's path.
    let held = match unsafe { open::attempt(AT_FDCWD, path, flags | O_CLOEXEC, FILE_MODE) } {
        Some(Ok(fd)) => Descriptor::take(fd),
        None => return native(),
        Some(Err(Errno(number))) => return refuse(number),
    };
    if !mode_for_open_file(letters, &mut mode) {
        return refuse(libc::EINVAL);
    }
    // SAFETY: the program's path.
    let stream = match unsafe { paths::resolve(AT_FDCWD, path, Last::Follow) } {
        Resolution::Ours(entry) if entry.kind == Kind::Managed => {
            call(entry.tree_path().as_ptr(), mode.as_ptr().cast())
        }
        Resolution::Ours(entry) => call(entry.real_path().as_ptr(), mode.as_ptr().cast()),
        _ => refuse(libc::ENOENT),
    };
    drop(held);
    stream
}
