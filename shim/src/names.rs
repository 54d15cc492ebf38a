//! Names that the C library makes up or takes apart: realpath, readlink, mkstemp and their relatives.
//!
//! The stage's own path is never shown to the program.

use core::ffi::{CStr, c_char, c_int};

use libc::{O_ACCMODE, O_CREAT, O_EXCL, O_RDWR, size_t, ssize_t};

use crate::configuration;
use crate::hooks::{fail, real};
use crate::paths::{self, Kind, Last, Resolution};
use crate::scratch::Scratch;
use crate::system::{self, AT_FDCWD, Errno, Stat};
use crate::{metadata, namespace, open, redirect};

/// Room that realpath(3) may rely on.
const PATH_MAX: usize = libc::PATH_MAX as usize;
/// How many names are tried.
const ATTEMPTS: u32 = 200;
/// The end of a template, which is replaced.
const PLACEHOLDER: &[u8] = b"XXXXXX";
const LETTERS: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

/// realpath(3).
pub unsafe fn realpath(path: *const c_char, resolved: *mut c_char) -> *mut c_char {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { resolve_path(path, resolved, |path| real::realpath(path, resolved)) }
}

unsafe fn resolve_path(
    path: *const c_char,
    resolved: *mut c_char,
    native: impl Fn(*const c_char) -> *mut c_char,
) -> *mut c_char {
    // SAFETY: the program's path.
    match unsafe { paths::resolve(AT_FDCWD, path, Last::Follow) } {
        Resolution::Foreign => hide_stage(native(path)),
        Resolution::Failed(error) => fail(error.0),
        Resolution::Ours(entry) if entry.kind == Kind::Managed || entry.is_detour && entry.real().is_some() => {
            // SAFETY: the program's buffer.
            unsafe { deliver(entry.real_path(), resolved) }
        }
        Resolution::Ours(entry) => redirect::natively(entry, AT_FDCWD, path, |_, path| native(path)),
    }
}

/// realpath(3) from programs built with `_FORTIFY_SOURCE`.
pub unsafe fn realpath_checked(path: *const c_char, resolved: *mut c_char, size: size_t) -> *mut c_char {
    if size < PATH_MAX {
        // SAFETY: the program's arguments; the C library ends the program, because the buffer is too small.
        return unsafe { real::__realpath_chk(path, resolved, size) };
    }
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { resolve_path(path, resolved, |path| real::__realpath_chk(path, resolved, size)) }
}

/// canonicalize_file_name(3).
pub unsafe fn canonicalize_file_name(path: *const c_char) -> *mut c_char {
    // SAFETY: the program's path, or one of our own.
    unsafe { resolve_path(path, core::ptr::null_mut(), |path| real::canonicalize_file_name(path)) }
}

/// Copies a path into the program's buffer, or into memory that it will free.
unsafe fn deliver(path: &CStr, resolved: *mut c_char) -> *mut c_char {
    let length = path.to_bytes_with_nul().len();
    if length > PATH_MAX {
        return fail(libc::ENAMETOOLONG);
    }
    let place = match resolved.is_null() {
        // SAFETY: malloc has no conditions.
        true => unsafe { real::malloc(length) }.cast(),
        false => resolved,
    };
    if !place.is_null() {
        // SAFETY: new memory of this length, or a buffer of PATH_MAX bytes as realpath(3) demands.
        unsafe { core::ptr::copy_nonoverlapping(path.as_ptr(), place, length) };
    }
    place
}

/// Takes the tree's own path off the front of what the kernel says about a staged file's descriptor.
fn hide_stage(resolved: *mut c_char) -> *mut c_char {
    let Some(configuration) = configuration::active() else { return resolved };
    if resolved.is_null() {
        return resolved;
    }
    // SAFETY: realpath has yielded a C string.
    let shown = unsafe { CStr::from_ptr(resolved) }.to_bytes_with_nul();
    if let Some(rest) = configuration.without_tree(shown) {
        let (start, length) = (shown.len() - rest.len(), rest.len());
        // SAFETY: both ranges lie inside the string; it is the program's from now on, and nobody else refers to it.
        unsafe { core::ptr::copy(resolved.add(start), resolved, length) };
    }
    resolved
}

/// readlink(2).
pub unsafe fn readlink(path: *const c_char, buffer: *mut c_char, size: size_t) -> ssize_t {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { read_link(AT_FDCWD, path, buffer, size, |_, path| real::readlink(path, buffer, size)) }
}

/// readlink(2) from programs built with `_FORTIFY_SOURCE`.
pub unsafe fn readlink_checked(path: *const c_char, buffer: *mut c_char, size: size_t, room: size_t) -> ssize_t {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { read_link(AT_FDCWD, path, buffer, size, |_, path| real::__readlink_chk(path, buffer, size, room)) }
}

/// readlinkat(2).
pub unsafe fn readlinkat(directory: c_int, path: *const c_char, buffer: *mut c_char, size: size_t) -> ssize_t {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe {
        read_link(directory, path, buffer, size, |directory, path| real::readlinkat(directory, path, buffer, size))
    }
}

/// readlinkat(2) from programs built with `_FORTIFY_SOURCE`.
pub unsafe fn readlinkat_checked(
    directory: c_int,
    path: *const c_char,
    buffer: *mut c_char,
    size: size_t,
    room: size_t,
) -> ssize_t {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe {
        read_link(directory, path, buffer, size, |directory, path| {
            real::__readlinkat_chk(directory, path, buffer, size, room)
        })
    }
}

unsafe fn read_link(
    directory: c_int,
    path: *const c_char,
    buffer: *mut c_char,
    size: size_t,
    call: impl Fn(c_int, *const c_char) -> ssize_t,
) -> ssize_t {
    // SAFETY: the program's path.
    match unsafe { paths::resolve(directory, path, Last::Entry) } {
        Resolution::Failed(error) => fail(error.0),
        Resolution::Ours(entry) => redirect::on_entry(entry, directory, path, call),
        Resolution::Foreign => {
            let length = call(directory, path);
            if length <= 0 {
                return length;
            }
            // SAFETY: the call has succeeded, so the path is valid and the buffer holds `length` bytes.
            let (path, seen) = unsafe { (CStr::from_ptr(path), core::slice::from_raw_parts_mut(buffer.cast(), size)) };
            shorten(directory, path, seen, length as usize).map_or(length, |shorter| shorter as ssize_t)
        }
    }
}

/// If what was read names a file in the stage: puts the name that the program knows into the buffer.
fn shorten(directory: c_int, path: &CStr, seen: &mut [u8], length: usize) -> Option<usize> {
    let configuration = configuration::active()?;
    let common = length.min(configuration.stage_shown.len());
    if seen.get(..common) != configuration.stage_shown.get(..common) {
        return None;
    }
    // Once more with enough room: what was cut off in the program's buffer may be all that matters.
    let mut scratch = Scratch::claim()?;
    scratch.other.fill(|room| system::readlinkat(directory, path, room)).ok()?;
    let rest = configuration.without_tree(scratch.other.as_bytes())?;
    let length = rest.len().min(seen.len());
    seen.get_mut(..length)?.copy_from_slice(rest.get(..length)?);
    Some(length)
}

/// The part of a template that is replaced, if all is well with it and the kernel does not know the way to it, or it
/// names a checkpoint path.
unsafe fn placeholder<'a>(template: *mut c_char, suffix_length: c_int) -> Option<&'a mut [u8]> {
    // SAFETY: the program's template.
    let resolution = unsafe { paths::resolve(AT_FDCWD, template, Last::Entry) };
    match resolution {
        Resolution::Ours(entry) if entry.is_checkpoint || entry.is_detour => {}
        // The attempt to make the name will say what is wrong; the kernel knows less of the way.
        Resolution::Failed(_) => {}
        _ => return None,
    }
    // SAFETY: a template is a C string that the program lets us change; nobody else refers to it meanwhile.
    let text = unsafe {
        let length = CStr::from_ptr(template).to_bytes().len();
        core::slice::from_raw_parts_mut(template.cast::<u8>(), length)
    };
    let end = text.len().checked_sub(usize::try_from(suffix_length).ok()?)?;
    text.get_mut(end.checked_sub(PLACEHOLDER.len())?..end).filter(|part| *part == PLACEHOLDER)
}

/// Writes a new name into the placeholder.
fn make_up(placeholder: &mut [u8]) {
    let mut random = [0; 8];
    if !system::random(&mut random) {
        random = (system::now_ns() ^ system::thread_id() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    }
    let mut number = u64::from_le_bytes(random);
    for place in placeholder {
        *place = LETTERS.get((number % 62) as usize).copied().unwrap_or(b'x');
        number /= 62;
    }
}

/// mkstemp(3).
pub unsafe fn mkstemp(template: *mut c_char) -> c_int {
    // SAFETY: the program's template.
    unsafe { make_file(template, 0, 0, || real::mkstemp(template)) }
}

/// mkostemp(3).
pub unsafe fn mkostemp(template: *mut c_char, flags: c_int) -> c_int {
    // SAFETY: the program's template.
    unsafe { make_file(template, 0, flags, || real::mkostemp(template, flags)) }
}

/// mkstemps(3).
pub unsafe fn mkstemps(template: *mut c_char, suffix_length: c_int) -> c_int {
    // SAFETY: the program's template.
    unsafe { make_file(template, suffix_length, 0, || real::mkstemps(template, suffix_length)) }
}

/// mkostemps(3).
pub unsafe fn mkostemps(template: *mut c_char, suffix_length: c_int, flags: c_int) -> c_int {
    // SAFETY: the program's template.
    unsafe { make_file(template, suffix_length, flags, || real::mkostemps(template, suffix_length, flags)) }
}

unsafe fn make_file(template: *mut c_char, suffix_length: c_int, flags: c_int, native: impl Fn() -> c_int) -> c_int {
    // SAFETY: the program's template.
    let Some(place) = (unsafe { placeholder(template, suffix_length) }) else { return native() };
    let flags = flags & !O_ACCMODE | O_RDWR | O_CREAT | O_EXCL;
    for _ in 0..ATTEMPTS {
        make_up(place);
        // SAFETY: the template is still a C string.
        match unsafe { open::attempt(AT_FDCWD, template, flags, 0o600) } {
            Some(Ok(fd)) => return fd,
            Some(Err(Errno(libc::EEXIST))) => {}
            Some(Err(Errno(number))) => return fail(number),
            None => {
                // SAFETY: as above.
                let fd = unsafe { real::open(template, flags, 0o600) };
                if fd >= 0 || system::errno() != libc::EEXIST {
                    return fd;
                }
            }
        }
    }
    fail(libc::EEXIST)
}

/// mkdtemp(3).
pub unsafe fn mkdtemp(template: *mut c_char) -> *mut c_char {
    // SAFETY: the program's template.
    let Some(place) = (unsafe { placeholder(template, 0) }) else { return unsafe { real::mkdtemp(template) } };
    let errno = system::errno();
    for _ in 0..ATTEMPTS {
        make_up(place);
        // SAFETY: the template is still a C string.
        if unsafe { namespace::mkdir(template, 0o700) } == 0 {
            system::set_errno(errno);
            return template;
        }
        if system::errno() != libc::EEXIST {
            return core::ptr::null_mut();
        }
    }
    fail(libc::EEXIST)
}

/// mktemp(3): a name that nobody uses yet.
pub unsafe fn mktemp(template: *mut c_char) -> *mut c_char {
    // SAFETY: the program's template.
    let Some(place) = (unsafe { placeholder(template, 0) }) else { return unsafe { real::mktemp(template) } };
    let errno = system::errno();
    let mut stat = core::mem::MaybeUninit::<Stat>::uninit();
    for _ in 0..ATTEMPTS {
        make_up(place);
        // SAFETY: the template is still a C string, and the buffer is one for a struct stat.
        if unsafe { metadata::lstat(template, stat.as_mut_ptr()) } != 0 && system::errno() == libc::ENOENT {
            system::set_errno(errno);
            return template;
        }
    }
    // SAFETY: a template is at least as long as its placeholder; an empty one says that there is no name.
    unsafe { template.write(0) };
    system::set_errno(libc::EEXIST);
    template
}
