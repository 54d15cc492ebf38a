//! What is said about a file, and what is set on it, by path.
//!
//! Managed names are answered from the tree. The mark of a stub is never shown to the program, and never set by it.

use core::ffi::{c_char, c_int, c_uint, c_void};

use libc::{AT_SYMLINK_NOFOLLOW, gid_t, mode_t, off_t, size_t, ssize_t, timespec, timeval, uid_t, utimbuf};
use sheaf_common::layout::STUB_BIT;

use crate::configuration;
use crate::flusher;
use crate::hooks::{fail, real};
use crate::open;
use crate::paths::{self, Entry, Kind, Last, Resolution};
use crate::redirect;
use crate::scratch::Scratch;
use crate::system::{self, AT_FDCWD, Errno, Stat};

/// The version of `struct stat` that old programs name, on 64-bit.
#[cfg(target_arch = "x86_64")]
const STAT_VERSION: c_int = 1;
#[cfg(not(target_arch = "x86_64"))]
const STAT_VERSION: c_int = 0;
/// Size of the blocks in `st_blocks`, in bytes.
const BLOCK_BYTES: i64 = 512;
/// How often a file is hydrated that is evicted again before it is held.
const ATTEMPTS: u32 = 8;

fn last_of(flags: c_int) -> Last {
    if flags & AT_SYMLINK_NOFOLLOW != 0 { Last::Entry } else { Last::Follow }
}

/// What the program sees of a staged file: a stub looks like the file that it stands for.
fn shown(mut stat: Stat) -> Stat {
    if paths::is_stub(&stat) {
        stat.st_blocks = (stat.st_size + BLOCK_BYTES - 1) / BLOCK_BYTES;
        stat.st_mode &= !STUB_BIT;
    }
    stat
}

/// Answers a call of the stat family; `native` makes it as the program did.
unsafe fn answer(
    directory: c_int,
    path: *const c_char,
    buffer: *mut Stat,
    flags: c_int,
    native: impl Fn() -> c_int,
) -> c_int {
    // SAFETY: the program's path.
    let entry = match unsafe { paths::resolve(directory, path, last_of(flags)) } {
        Resolution::Foreign => return native(),
        Resolution::Failed(error) => return fail(error.0),
        Resolution::Ours(entry) => entry,
    };
    let stat = match entry.staged() {
        Some(stat) if entry.kind == Kind::Managed => shown(*stat),
        // The way through a managed link is one that the kernel cannot go.
        _ if !entry.is_detour => {
            drop(entry);
            return native();
        }
        _ => match system::lstat(entry.real_path_and_end()) {
            Ok(stat) => stat,
            Err(error) => return fail(error.0),
        },
    };
    // SAFETY: the program's buffer is one for a struct stat; the kernel would have reported a bad one as EFAULT.
    unsafe { buffer.write_unaligned(stat) };
    0
}

/// The call by number, where this C library has no function for it.
unsafe fn stat_natively(directory: c_int, path: *const c_char, buffer: *mut Stat, flags: c_int) -> c_int {
    // SAFETY: the kernel checks both pointers.
    let result = unsafe {
        system::syscall(
            libc::SYS_newfstatat,
            [directory as usize, path as usize, buffer as usize, flags as usize, 0, 0],
        )
    };
    if result < 0 { fail(-result as c_int) } else { 0 }
}

/// Makes the real call, or the system call if this C library lacks the function.
unsafe fn or_by_number(
    call: impl Fn() -> c_int,
    directory: c_int,
    path: *const c_char,
    buffer: *mut Stat,
    flags: c_int,
) -> c_int {
    let errno = system::errno();
    let result = call();
    if result != 0 && system::errno() == libc::ENOSYS {
        system::set_errno(errno);
        // SAFETY: the program's arguments.
        return unsafe { stat_natively(directory, path, buffer, flags) };
    }
    result
}

/// stat(2).
pub unsafe fn stat(path: *const c_char, buffer: *mut Stat) -> c_int {
    // SAFETY: the program's arguments.
    unsafe {
        answer(AT_FDCWD, path, buffer, 0, || or_by_number(|| real::stat(path, buffer), AT_FDCWD, path, buffer, 0))
    }
}

/// lstat(2).
pub unsafe fn lstat(path: *const c_char, buffer: *mut Stat) -> c_int {
    let flags = AT_SYMLINK_NOFOLLOW;
    // SAFETY: the program's arguments.
    unsafe {
        let native = || or_by_number(|| real::lstat(path, buffer), AT_FDCWD, path, buffer, flags);
        answer(AT_FDCWD, path, buffer, flags, native)
    }
}

/// fstatat(2).
pub unsafe fn fstatat(directory: c_int, path: *const c_char, buffer: *mut Stat, flags: c_int) -> c_int {
    // SAFETY: the program's arguments.
    unsafe {
        let call = || real::fstatat(directory, path, buffer, flags);
        answer(directory, path, buffer, flags, || or_by_number(call, directory, path, buffer, flags))
    }
}

/// stat(2) in programs that were linked before glibc 2.33.
pub unsafe fn old_stat(version: c_int, path: *const c_char, buffer: *mut Stat) -> c_int {
    let call = || {
        // SAFETY: the program's arguments.
        unsafe { real::__xstat(version, path, buffer) }
    };
    // SAFETY: the program's arguments.
    unsafe { old(version, AT_FDCWD, path, buffer, 0, call) }
}

/// lstat(2) in programs that were linked before glibc 2.33.
pub unsafe fn old_lstat(version: c_int, path: *const c_char, buffer: *mut Stat) -> c_int {
    let call = || {
        // SAFETY: the program's arguments.
        unsafe { real::__lxstat(version, path, buffer) }
    };
    // SAFETY: the program's arguments.
    unsafe { old(version, AT_FDCWD, path, buffer, AT_SYMLINK_NOFOLLOW, call) }
}

/// fstatat(2) in programs that were linked before glibc 2.33.
pub unsafe fn old_fstatat(
    version: c_int,
    directory: c_int,
    path: *const c_char,
    buffer: *mut Stat,
    flags: c_int,
) -> c_int {
    let call = || {
        // SAFETY: the program's arguments.
        unsafe { real::__fxstatat(version, directory, path, buffer, flags) }
    };
    // SAFETY: the program's arguments.
    unsafe { old(version, directory, path, buffer, flags, call) }
}

unsafe fn old(
    version: c_int,
    directory: c_int,
    path: *const c_char,
    buffer: *mut Stat,
    flags: c_int,
    call: impl Fn() -> c_int,
) -> c_int {
    // Version 0 is the kernel's own structure, which is the same one on 64-bit.
    if version != STAT_VERSION && version != 0 {
        return call();
    }
    // SAFETY: the program's arguments.
    unsafe { answer(directory, path, buffer, flags, || or_by_number(&call, directory, path, buffer, flags)) }
}

/// statx(2).
pub unsafe fn statx(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    buffer: *mut libc::statx,
) -> c_int {
    let native = |directory, path| {
        // SAFETY: the program's arguments, or a path of our own.
        let result = unsafe { real::statx(directory, path, flags, mask, buffer) };
        if result == 0 || system::errno() != libc::ENOSYS {
            return result;
        }
        // SAFETY: as above. This C library may lack the function; the kernel says if it lacks the call.
        match unsafe { system::statx(directory, path, flags, mask, buffer.cast::<c_void>()) } {
            Ok(()) => 0,
            Err(error) => fail(error.0),
        }
    };
    // SAFETY: the program's path.
    let entry = match unsafe { paths::resolve(directory, path, last_of(flags)) } {
        Resolution::Ours(entry) if entry.kind == Kind::Managed => entry,
        Resolution::Ours(entry) => return redirect::on_entry(entry, directory, path, native),
        Resolution::Failed(error) => return fail(error.0),
        Resolution::Foreign => return native(directory, path),
    };
    let errno = system::errno();
    // SAFETY: the program's buffer.
    let result = unsafe { statx_staged(&entry, flags, mask, buffer) };
    if result == 0 || system::errno() != libc::ENOENT {
        return result;
    }
    // It may have been published meanwhile, and lie on its own path.
    system::set_errno(errno);
    redirect::natively(entry, directory, path, native)
}

unsafe fn statx_staged(entry: &Entry, flags: c_int, mask: c_uint, buffer: *mut libc::statx) -> c_int {
    let mask = mask | libc::STATX_TYPE | libc::STATX_MODE | libc::STATX_SIZE;
    let path = entry.tree_path().as_ptr();
    // SAFETY: the path is ours, the buffer is the program's; the kernel reports a bad one.
    match unsafe { system::statx(AT_FDCWD, path, flags, mask, buffer.cast::<c_void>()) } {
        Err(error) => fail(error.0),
        Ok(()) => {
            if entry.is_regular() {
                // SAFETY: the kernel has just filled it, so it is valid for reading and writing.
                let seen = unsafe { &mut *buffer };
                if u32::from(seen.stx_mode) & STUB_BIT != 0 {
                    seen.stx_mode &= !(STUB_BIT as u16);
                    seen.stx_blocks = seen.stx_size.div_ceil(BLOCK_BYTES as u64);
                }
            }
            0
        }
    }
}

/// access(2).
pub unsafe fn access(path: *const c_char, mode: c_int) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { redirect::on_path(AT_FDCWD, path, Last::Follow, |_, path| real::access(path, mode)) }
}

/// eaccess(3).
pub unsafe fn eaccess(path: *const c_char, mode: c_int) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { redirect::on_path(AT_FDCWD, path, Last::Follow, |_, path| real::eaccess(path, mode)) }
}

/// faccessat(3).
pub unsafe fn faccessat(directory: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe {
        redirect::on_path(directory, path, last_of(flags), |directory, path| {
            real::faccessat(directory, path, mode, flags)
        })
    }
}

/// truncate(2), on managed files between open and close, so that the kernel reports a completed file.
pub unsafe fn truncate(path: *const c_char, length: off_t) -> c_int {
    let native = |_, path| {
        // SAFETY: the program's arguments, or a path of our own.
        unsafe { real::truncate(path, length) }
    };
    // SAFETY: the program's path.
    let is_empty = match unsafe { paths::resolve(AT_FDCWD, path, Last::Follow) } {
        Resolution::Ours(entry) if entry.kind == Kind::Managed && length >= 0 => {
            entry.staged().is_some_and(|stat| stat.st_size == 0)
        }
        Resolution::Ours(entry) => return redirect::natively(entry, AT_FDCWD, path, native),
        Resolution::Failed(error) => return fail(error.0),
        // SAFETY: the program's path.
        Resolution::Foreign => return native(AT_FDCWD, path),
    };
    let flags = libc::O_WRONLY | libc::O_CLOEXEC | if length == 0 && !is_empty { libc::O_TRUNC } else { 0 };
    // SAFETY: the program's path.
    let opened = match unsafe { open::attempt(AT_FDCWD, path, flags, 0) } {
        None => return native(AT_FDCWD, path),
        Some(opened) => opened,
    };
    match opened.map(system::Descriptor::take).and_then(|file| set_length(&file, length)) {
        Ok(()) => 0,
        Err(Errno(number)) => fail(number),
    }
}

/// Sets an open file's length as truncate(2) does: ftruncate(2) sets the times also where the length stays.
fn set_length(file: &system::Descriptor, length: off_t) -> system::Result<()> {
    let Some(mut scratch) = Scratch::claim() else { return Err(Errno(libc::ENOMEM)) };
    let path = &mut scratch.other;
    match paths::set_to_descriptor(path, file.number()).map(|()| system::truncate(path.c_str(), length)) {
        // Without /proc.
        None | Some(Err(Errno(libc::ENOENT))) => system::ftruncate(file.number(), length),
        Some(outcome) => outcome,
    }
}

/// Sets something about what a path means: natively, or about a managed file by `staged`, which gets the descriptor
/// that the file is held by, if it can be opened, and its path in the tree.
///
/// # Safety
/// `path` must be null or a C string.
unsafe fn change(
    directory: c_int,
    path: *const c_char,
    last: Last,
    native: impl Fn(c_int, *const c_char) -> c_int,
    staged: impl Fn(Option<c_int>, *const c_char) -> c_int,
) -> c_int {
    // SAFETY: the caller's contract.
    match unsafe { paths::resolve(directory, path, last) } {
        Resolution::Ours(entry) if entry.kind == Kind::Managed && entry.is_regular() => {
            match change_file(&entry, staged) {
                Err(Errno(libc::ENOENT)) => redirect::natively(entry, directory, path, native),
                Err(Errno(number)) => fail(number),
                Ok(result) => result,
            }
        }
        Resolution::Ours(entry) if entry.kind == Kind::Directory && entry.is_zone => {
            let given = if entry.is_detour { (AT_FDCWD, entry.real_path().as_ptr()) } else { (directory, path) };
            let result = native(given.0, given.1);
            if result == 0 && entry.has_mirror() {
                entry.update_mirror_mode();
            }
            result
        }
        Resolution::Ours(entry) => redirect::on_entry(entry, directory, path, native),
        Resolution::Failed(error) => fail(error.0),
        Resolution::Foreign => native(directory, path),
    }
}

/// Sets something about a managed file. Its data is brought back first, and it is held open meanwhile, so that nobody
/// evicts it: never do flusher and program both set what a file's inode says, and the mark of a stub is the flusher's.
/// ENOENT when it has left the tree meanwhile.
fn change_file(entry: &Entry, staged: impl Fn(Option<c_int>, *const c_char) -> c_int) -> system::Result<c_int> {
    let configuration = configuration::active().ok_or(Errno(libc::EIO))?;
    for _ in 0..ATTEMPTS {
        let open = |flags| system::retry(|| system::open_own(entry.tree_path(), flags | libc::O_NOFOLLOW, 0));
        // Who may not open it, even as its owner, need not hold it: such a file is never evicted.
        let held = open(libc::O_RDONLY).or_else(|_| open(libc::O_WRONLY)).ok();
        let seen = held.as_ref().map_or_else(|| system::lstat(entry.tree_path()), |file| system::fstat(file.number()));
        match seen {
            Ok(stat) if paths::is_stub(&stat) => {}
            Ok(stat) if stat.st_nlink == 0 => return Err(Errno(libc::ENOENT)),
            Ok(_) => return Ok(staged(held.as_ref().map(system::Descriptor::number), entry.tree_path().as_ptr())),
            Err(error) => return Err(error),
        }
        drop(held);
        flusher::hydrate(configuration, entry.canonical())?;
    }
    Err(Errno(libc::EIO))
}

unsafe fn change_mode(
    directory: c_int,
    path: *const c_char,
    mode: mode_t,
    last: Last,
    call: impl Fn(c_int, *const c_char, mode_t) -> c_int,
) -> c_int {
    let staged = |held, path| match held {
        // By the descriptor, so that it is the file that was looked at.
        // SAFETY: no memory is involved.
        Some(fd) => unsafe { real::fchmod(fd, mode & !STUB_BIT) },
        None => call(AT_FDCWD, path, mode & !STUB_BIT),
    };
    // SAFETY: the program's arguments.
    unsafe { change(directory, path, last, |directory, path| call(directory, path, mode), staged) }
}

/// Sets something by the same call, wherever the file lies.
unsafe fn change_alike(
    directory: c_int,
    path: *const c_char,
    last: Last,
    call: impl Fn(c_int, *const c_char) -> c_int,
) -> c_int {
    // SAFETY: the program's arguments.
    unsafe { change(directory, path, last, &call, |_, path| call(AT_FDCWD, path)) }
}

/// chmod(2).
pub unsafe fn chmod(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { change_mode(AT_FDCWD, path, mode, Last::Follow, |_, path, mode| real::chmod(path, mode)) }
}

/// lchmod(3).
pub unsafe fn lchmod(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { change_mode(AT_FDCWD, path, mode, Last::Entry, |_, path, mode| real::lchmod(path, mode)) }
}

/// fchmodat(3).
pub unsafe fn fchmodat(directory: c_int, path: *const c_char, mode: mode_t, flags: c_int) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe {
        change_mode(directory, path, mode, last_of(flags), |directory, path, mode| {
            real::fchmodat(directory, path, mode, flags)
        })
    }
}

/// fchmod(2), only because the sticky bit means something else on staged files.
pub unsafe fn fchmod(fd: c_int, mode: mode_t) -> c_int {
    let mode = if mode & STUB_BIT != 0 && is_staged_file(fd) { mode & !STUB_BIT } else { mode };
    // SAFETY: no memory is involved.
    unsafe { real::fchmod(fd, mode) }
}

fn is_staged_file(fd: c_int) -> bool {
    let Some(configuration) = configuration::active() else { return false };
    system::fstat(fd).is_ok_and(|stat| paths::is_regular(&stat))
        && paths::path_of(fd).is_some_and(|scratch| configuration.without_tree(scratch.pending.as_bytes()).is_some())
}

/// chown(2).
pub unsafe fn chown(path: *const c_char, user: uid_t, group: gid_t) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { change_alike(AT_FDCWD, path, Last::Follow, |_, path| real::chown(path, user, group)) }
}

/// lchown(2).
pub unsafe fn lchown(path: *const c_char, user: uid_t, group: gid_t) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { change_alike(AT_FDCWD, path, Last::Entry, |_, path| real::lchown(path, user, group)) }
}

/// fchownat(2).
pub unsafe fn fchownat(directory: c_int, path: *const c_char, user: uid_t, group: gid_t, flags: c_int) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe {
        change_alike(directory, path, last_of(flags), |directory, path| {
            real::fchownat(directory, path, user, group, flags)
        })
    }
}

/// utime(2).
pub unsafe fn utime(path: *const c_char, times: *const utimbuf) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { change_alike(AT_FDCWD, path, Last::Follow, |_, path| real::utime(path, times)) }
}

/// utimes(2).
pub unsafe fn utimes(path: *const c_char, times: *const timeval) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { change_alike(AT_FDCWD, path, Last::Follow, |_, path| real::utimes(path, times)) }
}

/// lutimes(3).
pub unsafe fn lutimes(path: *const c_char, times: *const timeval) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { change_alike(AT_FDCWD, path, Last::Entry, |_, path| real::lutimes(path, times)) }
}

/// futimesat(2).
pub unsafe fn futimesat(directory: c_int, path: *const c_char, times: *const timeval) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { change_alike(directory, path, Last::Follow, |directory, path| real::futimesat(directory, path, times)) }
}

/// utimensat(2).
pub unsafe fn utimensat(directory: c_int, path: *const c_char, times: *const timespec, flags: c_int) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe {
        change_alike(directory, path, last_of(flags), |directory, path| real::utimensat(directory, path, times, flags))
    }
}

/// getxattr(2).
pub unsafe fn getxattr(path: *const c_char, name: *const c_char, value: *mut c_void, size: size_t) -> ssize_t {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { redirect::on_path(AT_FDCWD, path, Last::Follow, |_, path| real::getxattr(path, name, value, size)) }
}

/// lgetxattr(2).
pub unsafe fn lgetxattr(path: *const c_char, name: *const c_char, value: *mut c_void, size: size_t) -> ssize_t {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { redirect::on_path(AT_FDCWD, path, Last::Entry, |_, path| real::lgetxattr(path, name, value, size)) }
}

/// setxattr(2).
pub unsafe fn setxattr(
    path: *const c_char,
    name: *const c_char,
    value: *const c_void,
    size: size_t,
    flags: c_int,
) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { redirect::on_path(AT_FDCWD, path, Last::Follow, |_, path| real::setxattr(path, name, value, size, flags)) }
}

/// lsetxattr(2).
pub unsafe fn lsetxattr(
    path: *const c_char,
    name: *const c_char,
    value: *const c_void,
    size: size_t,
    flags: c_int,
) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { redirect::on_path(AT_FDCWD, path, Last::Entry, |_, path| real::lsetxattr(path, name, value, size, flags)) }
}

/// listxattr(2).
pub unsafe fn listxattr(path: *const c_char, list: *mut c_char, size: size_t) -> ssize_t {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { redirect::on_path(AT_FDCWD, path, Last::Follow, |_, path| real::listxattr(path, list, size)) }
}

/// llistxattr(2).
pub unsafe fn llistxattr(path: *const c_char, list: *mut c_char, size: size_t) -> ssize_t {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { redirect::on_path(AT_FDCWD, path, Last::Entry, |_, path| real::llistxattr(path, list, size)) }
}

/// removexattr(2).
pub unsafe fn removexattr(path: *const c_char, name: *const c_char) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { redirect::on_path(AT_FDCWD, path, Last::Follow, |_, path| real::removexattr(path, name)) }
}

/// lremovexattr(2).
pub unsafe fn lremovexattr(path: *const c_char, name: *const c_char) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { redirect::on_path(AT_FDCWD, path, Last::Entry, |_, path| real::lremovexattr(path, name)) }
}
