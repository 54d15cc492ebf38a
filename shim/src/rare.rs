//! The rarer calls on one path: chdir, statfs and its relatives, mkfifo, mknod, ftok, watches and handles.
//!
//! What lies in the stage is spoken of as if it lay in its directory on the parallel file system. Nothing here may name
//! the stage's file system to the program, or hand out what outlives the data of a staged file.

use core::ffi::{c_char, c_int, c_long};
use core::mem::MaybeUninit;

use libc::{AT_SYMLINK_FOLLOW, IN_DONT_FOLLOW, O_CREAT, O_EXCL, dev_t, key_t, mode_t};

use crate::configuration;
use crate::flusher;
use crate::hooks::{Failure, fail, real};
use crate::paths::{self, Entry, Kind, Last, Resolution};
use crate::scratch::Scratch;
use crate::system::{self, AT_FDCWD, Descriptor, Errno, Stat};
use crate::{metadata, open, redirect, store};

/// The version of `dev_t` that old programs name when they make a node.
const NODE_VERSION: c_int = 0;

/// chdir(2), which the kernel cannot do through a link that only the tree has.
pub unsafe fn chdir(path: *const c_char) -> c_int {
    // SAFETY: the program's path, or one of our own.
    unsafe { redirect::on_path(AT_FDCWD, path, Last::Follow, |_, path| real::chdir(path)) }
}

/// Asks about the file system of a path. For a managed file that is the one of its directory, where its data will be:
/// programs choose by it how they write, and look there for room.
unsafe fn ask_file_system<R: Failure>(path: *const c_char, call: impl Fn(*const c_char) -> R) -> R {
    // SAFETY: the program's path.
    if let Resolution::Ours(entry) = unsafe { paths::resolve(AT_FDCWD, path, Last::Follow) }
        && entry.kind == Kind::Managed
        && let Some(mut scratch) = Scratch::claim()
        && scratch.other.set(directory_of(&entry)).is_ok()
    {
        return call(scratch.other.c_str().as_ptr());
    }
    // SAFETY: the program's path, or one of our own.
    unsafe { redirect::on_path(AT_FDCWD, path, Last::Follow, |_, path| call(path)) }
}

fn directory_of(entry: &Entry) -> &[u8] {
    match entry.parent() {
        b"" => b"/",
        directory => directory,
    }
}

/// statfs(2).
pub unsafe fn statfs(path: *const c_char, buffer: *mut libc::statfs) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { ask_file_system(path, |path| real::statfs(path, buffer)) }
}

/// statvfs(3).
pub unsafe fn statvfs(path: *const c_char, buffer: *mut libc::statvfs) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { ask_file_system(path, |path| real::statvfs(path, buffer)) }
}

/// pathconf(3).
pub unsafe fn pathconf(path: *const c_char, name: c_int) -> c_long {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { ask_file_system(path, |path| real::pathconf(path, name)) }
}

/// mkfifo(3).
pub unsafe fn mkfifo(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { make_node(AT_FDCWD, path, mode | libc::S_IFIFO, |_, path| real::mkfifo(path, mode)) }
}

/// mkfifoat(3).
pub unsafe fn mkfifoat(directory: c_int, path: *const c_char, mode: mode_t) -> c_int {
    let native = |directory, path| {
        // SAFETY: the program's arguments, or a path of our own.
        unsafe { real::mkfifoat(directory, path, mode) }
    };
    // SAFETY: the program's path.
    unsafe { make_node(directory, path, mode | libc::S_IFIFO, native) }
}

/// mknod(2).
pub unsafe fn mknod(path: *const c_char, mode: mode_t, device: dev_t) -> c_int {
    // SAFETY: the program's path.
    unsafe { mknodat(AT_FDCWD, path, mode, device) }
}

/// mknodat(2). C libraries before 2.33 lack the function; the system call is the same.
pub unsafe fn mknodat(directory: c_int, path: *const c_char, mode: mode_t, device: dev_t) -> c_int {
    let native = |directory, path| {
        // SAFETY: the kernel checks the path.
        match unsafe { system::mknodat(directory, path, mode, device) } {
            Ok(()) => 0,
            Err(Errno(number)) => fail(number),
        }
    };
    // SAFETY: the program's path.
    unsafe { make_node(directory, path, mode, native) }
}

/// mknod(2) in programs that were linked before glibc 2.33.
pub unsafe fn old_mknod(version: c_int, path: *const c_char, mode: mode_t, device: *mut dev_t) -> c_int {
    // SAFETY: the program's arguments.
    unsafe { old_mknodat(version, AT_FDCWD, path, mode, device) }
}

/// mknodat(2) in programs that were linked before glibc 2.33.
pub unsafe fn old_mknodat(
    version: c_int,
    directory: c_int,
    path: *const c_char,
    mode: mode_t,
    device: *mut dev_t,
) -> c_int {
    if version != NODE_VERSION || device.is_null() {
        return fail(libc::EINVAL);
    }
    // SAFETY: the program's arguments; the device is not null.
    unsafe { mknodat(directory, path, mode, *device) }
}

/// Makes a node. Only a regular file can live in the stage: a pipe or a device in a checkpoint directory is real.
unsafe fn make_node(
    directory: c_int,
    path: *const c_char,
    mode: mode_t,
    native: impl Fn(c_int, *const c_char) -> c_int,
) -> c_int {
    let is_file = matches!(mode & libc::S_IFMT, 0 | libc::S_IFREG);
    if !is_file && !matches!(mode & libc::S_IFMT, libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFCHR | libc::S_IFBLK) {
        // The kernel refuses the kind, whatever the name.
        return native(directory, path);
    }
    // SAFETY: the program's path.
    let entry = match unsafe { paths::resolve(directory, path, Last::Name) } {
        Resolution::Foreign => return native(directory, path),
        Resolution::Failed(error) => return fail(error.0),
        Resolution::Ours(entry) => entry,
    };
    if entry.kind == Kind::Managed {
        return fail(libc::EEXIST);
    }
    if !is_file || entry.wants_directory {
        return redirect::natively(entry, directory, path, native);
    }
    let flags = O_CREAT | O_EXCL | libc::O_WRONLY | libc::O_CLOEXEC;
    // SAFETY: the program's path.
    match unsafe { open::attempt(directory, path, flags, mode & !libc::S_IFMT) } {
        None => redirect::natively(entry, directory, path, native),
        Some(Err(Errno(number))) => fail(number),
        Some(Ok(fd)) => {
            drop(Descriptor::take(fd));
            0
        }
    }
}

/// ftok(3): a key from the inode that stat(2) shows.
pub unsafe fn ftok(path: *const c_char, project: c_int) -> key_t {
    // SAFETY: the program's path.
    match unsafe { paths::resolve(AT_FDCWD, path, Last::Follow) } {
        Resolution::Ours(entry) if entry.kind == Kind::Managed || entry.is_detour => {}
        Resolution::Failed(error) => return fail(error.0),
        // SAFETY: the program's path.
        _ => return unsafe { real::ftok(path, project) },
    }
    let mut stat = MaybeUninit::<Stat>::uninit();
    // SAFETY: the program's path, and a buffer for a struct stat, which is filled on success.
    let stat = unsafe {
        if metadata::stat(path, stat.as_mut_ptr()) != 0 {
            return -1;
        }
        stat.assume_init()
    };
    let key = stat.st_ino & 0xffff | (stat.st_dev & 0xff) << 16 | (project as u64 & 0xff) << 24;
    key as u32 as key_t
}

/// inotify_add_watch(2). A watched checkpoint directory is watched where its files appear: in the tree.
pub unsafe fn inotify_add_watch(watcher: c_int, path: *const c_char, mask: u32) -> c_int {
    let native = |_, path| {
        // SAFETY: the program's path, or one of our own.
        unsafe { real::inotify_add_watch(watcher, path, mask) }
    };
    let last = if mask & IN_DONT_FOLLOW != 0 { Last::Entry } else { Last::Follow };
    // SAFETY: the program's path.
    let resolution = unsafe { paths::resolve(AT_FDCWD, path, last) };
    let (entry, configuration) = match (resolution, configuration::active()) {
        (Resolution::Ours(entry), Some(configuration)) => (entry, configuration),
        (Resolution::Failed(error), _) => return fail(error.0),
        _ => return native(AT_FDCWD, path),
    };
    let holds_checkpoints = entry.kind == Kind::Directory && entry.is_zone;
    if holds_checkpoints
        && entry.real().is_some()
        && !entry.has_mirror()
        && let Err(error) = flusher::populate(configuration, entry.canonical())
        && let Err(Errno(number)) = store::refuse(configuration, entry.canonical(), error)
    {
        return fail(number);
    }
    if holds_checkpoints && entry.has_mirror() {
        return native(AT_FDCWD, entry.tree_path().as_ptr());
    }
    redirect::on_entry(entry, AT_FDCWD, path, native)
}

/// name_to_handle_at(2). A handle of a staged file could be opened after its data has left the stage, so it has none:
/// as on file systems without handles.
pub unsafe fn name_to_handle_at(
    directory: c_int,
    path: *const c_char,
    handle: *mut libc::file_handle,
    mount: *mut c_int,
    flags: c_int,
) -> c_int {
    let native = |directory, path| {
        // SAFETY: the program's arguments, or a path of our own.
        unsafe { real::name_to_handle_at(directory, path, handle, mount, flags) }
    };
    let last = if flags & AT_SYMLINK_FOLLOW != 0 { Last::Follow } else { Last::Entry };
    // SAFETY: the program's path.
    match unsafe { paths::resolve(directory, path, last) } {
        Resolution::Foreign => native(directory, path),
        Resolution::Failed(error) => fail(error.0),
        Resolution::Ours(entry) if entry.kind == Kind::Managed => fail(libc::EOPNOTSUPP),
        Resolution::Ours(entry) => redirect::natively(entry, directory, path, native),
    }
}
