//! The open family: which file the program gets, and when it is captured.
//!
//! The program always gets a real descriptor of an ordinary file. Nothing here may truncate a file that is being
//! flushed, hand out a file without its data, or show the program an error that it would not get natively.

use core::ffi::{CStr, c_char, c_int};

use libc::{O_ACCMODE, O_CREAT, O_DIRECT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_PATH, O_RDONLY, O_TMPFILE};
use libc::{O_TRUNC, mode_t, size_t};
use sheaf_common::layout::{self, STUB_BIT};

use crate::configuration::{self, Configuration};
use crate::copy;
use crate::flusher;
use crate::hooks::{fail, real};
use crate::log;
use crate::parallel;
use crate::paths::{self, Entry, Kind, Last, Resolution};
use crate::scratch::{Scratch, Text, TooLong, make_unique};
use crate::system::{self, AT_FDCWD, Descriptor, Errno, Result, Stat};
use crate::{replaced, room, sides};

/// Pause between two looks whether a lease has been given back.
const LEASE_PAUSE_MS: u64 = 1;
/// How often a name is looked at again because it changed meanwhile.
const ATTEMPTS: u32 = 16;
/// The restrictions of openat2(2) that are known.
const RESTRICTIONS: u64 = libc::RESOLVE_NO_XDEV
    | libc::RESOLVE_NO_MAGICLINKS
    | libc::RESOLVE_NO_SYMLINKS
    | libc::RESOLVE_BENEATH
    | libc::RESOLVE_IN_ROOT
    | libc::RESOLVE_CACHED;
/// What the kernel heeds beside O_PATH.
const PATH_FLAGS: c_int = O_PATH | O_NOFOLLOW | O_DIRECTORY | libc::O_CLOEXEC;

/// `struct open_how` of openat2(2).
#[repr(C)]
pub struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// open(2).
pub unsafe fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the program's arguments.
    unsafe { open_or(AT_FDCWD, path, flags, mode, || real::open(path, flags, mode)) }
}

/// open(2) without a mode, from programs built with `_FORTIFY_SOURCE`.
pub unsafe fn open_2(path: *const c_char, flags: c_int) -> c_int {
    if makes_file(flags) {
        // SAFETY: the program's arguments; the C library ends the program, because a mode is missing.
        return unsafe { real::__open_2(path, flags) };
    }
    // SAFETY: the program's arguments.
    unsafe { open_or(AT_FDCWD, path, flags, 0, || real::__open_2(path, flags)) }
}

/// openat(2).
pub unsafe fn openat(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the program's arguments.
    unsafe { open_or(directory, path, flags, mode, || real::openat(directory, path, flags, mode)) }
}

/// openat(2) without a mode, from programs built with `_FORTIFY_SOURCE`.
pub unsafe fn openat_2(directory: c_int, path: *const c_char, flags: c_int) -> c_int {
    if makes_file(flags) {
        // SAFETY: as in `open_2`.
        return unsafe { real::__openat_2(directory, path, flags) };
    }
    // SAFETY: the program's arguments.
    unsafe { open_or(directory, path, flags, 0, || real::__openat_2(directory, path, flags)) }
}

/// openat2(2).
pub unsafe fn openat2(directory: c_int, path: *const c_char, how: *const OpenHow, size: size_t) -> c_int {
    // SAFETY: the program's arguments; the structure is only read when the program says that it is large enough.
    unsafe {
        if how.is_null() || size < size_of::<OpenHow>() || paths::is_no_address(path) {
            return openat2_natively(directory, path, how, size);
        }
        let (flags, mode) = ((*how).flags as c_int, (*how).mode as mode_t);
        match is_way_free(directory, CStr::from_ptr(path), flags, (*how).resolve) {
            Err(Errno(number)) => fail(number),
            Ok(false) => openat2_natively(directory, path, how, size),
            Ok(true) => open_or(directory, path, flags, mode, || openat2_natively(directory, path, how, size)),
        }
    }
}

/// Whether an open with restrictions on the way to the file may be made as those without: false when the whole call is
/// the kernel's, an error when the restrictions forbid it. The way through real directories is the kernel's to judge;
/// links that only the tree has must end below the directory where links must stay below it.
fn is_way_free(directory: c_int, path: &CStr, flags: c_int, resolve: u64) -> Result<bool> {
    if resolve == 0 || resolve & !RESTRICTIONS != 0 {
        return Ok(resolve == 0);
    }
    let is_entry = flags & O_NOFOLLOW != 0 || flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL;
    let last = if is_entry { Last::Entry } else { Last::Follow };
    // SAFETY: a C string.
    let resolution = unsafe {
        match replaces(flags) {
            true => paths::resolve_to_replace(directory, path.as_ptr(), last),
            false => paths::resolve(directory, path.as_ptr(), last),
        }
    };
    let entry = match resolution {
        Resolution::Ours(entry) if entry.kind == Kind::Managed => entry,
        Resolution::Ours(entry) if entry.kind == Kind::Unmanaged && entry.is_checkpoint => entry,
        // What the store holds cannot be learned; of other errors the kernel knows more.
        Resolution::Failed(error @ Errno(libc::EIO)) => return Err(error),
        _ => return Ok(false),
    };
    if resolve & libc::RESOLVE_CACHED != 0 {
        return Err(Errno(libc::EAGAIN));
    }
    let stays = paths::path_of(directory)
        .is_some_and(|start| configuration::is_at_or_below(entry.canonical(), start.pending.as_bytes()));
    let follows = last == Last::Follow;
    let is_link = entry.is_detour || follows && system::readlinkat(directory, path, &mut [0]).is_ok();
    if !entry.is_detour {
        let way = directory_of(directory, path.to_bytes(), resolve)?;
        let is_another = |parent: Stat| (parent.st_dev, parent.st_ino) != (way.st_dev, way.st_ino);
        if !is_link && parent_of(&entry).is_none_or(is_another) {
            // The root of RESOLVE_IN_ROOT gives the path another meaning.
            return Ok(false);
        }
    }
    match resolve {
        bits if is_link && bits & libc::RESOLVE_NO_SYMLINKS != 0 => Err(Errno(libc::ELOOP)),
        bits if is_link && !stays && bits & (libc::RESOLVE_BENEATH | libc::RESOLVE_IN_ROOT) != 0 => {
            Err(Errno(libc::EXDEV))
        }
        _ => Ok(true),
    }
}

/// What the kernel comes to on its way to the directory that a path lies in, under restrictions.
fn directory_of(directory: c_int, path: &[u8], resolve: u64) -> Result<Stat> {
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    let parts: [&[u8]; 2] = [copy::directory_part(path), b"."];
    if parts.into_iter().any(|part| scratch.other.push(part).is_err()) {
        return Err(Errno(libc::ENAMETOOLONG));
    }
    let how = OpenHow { flags: (O_PATH | O_DIRECTORY | libc::O_CLOEXEC) as u64, mode: 0, resolve };
    let (path, how) = (scratch.other.c_str().as_ptr() as usize, &raw const how as usize);
    // SAFETY: a C string, and a structure of the size that is given.
    let fd = unsafe { system::syscall(libc::SYS_openat2, [directory as usize, path, how, size_of::<OpenHow>(), 0, 0]) };
    if fd < 0 {
        return Err(Errno(-fd as c_int));
    }
    system::fstat(Descriptor::take(fd as c_int).number())
}

/// What is at the canonical directory of a name.
fn parent_of(entry: &Entry) -> Option<Stat> {
    let mut scratch = Scratch::claim()?;
    scratch.other.set(entry.parent()).ok()?;
    scratch.other.push(b"/").ok()?;
    system::statat(AT_FDCWD, scratch.other.c_str(), 0).ok()
}

/// The real function, or the system call, which is older.
unsafe fn openat2_natively(directory: c_int, path: *const c_char, how: *const OpenHow, size: size_t) -> c_int {
    let errno = system::errno();
    // SAFETY: the program's arguments.
    let fd = unsafe { real::openat2(directory, path, how, size) };
    if fd >= 0 || system::errno() != libc::ENOSYS {
        return fd;
    }
    system::set_errno(errno);
    // SAFETY: the program's arguments; the kernel checks the pointers.
    let result =
        unsafe { system::syscall(libc::SYS_openat2, [directory as usize, path as usize, how as usize, size, 0, 0]) };
    if result < 0 { fail(-result as c_int) } else { result as c_int }
}

/// creat(2).
pub unsafe fn creat(path: *const c_char, mode: mode_t) -> c_int {
    let flags = O_CREAT | libc::O_WRONLY | O_TRUNC;
    // SAFETY: the program's arguments.
    unsafe { open_or(AT_FDCWD, path, flags, mode, || real::creat(path, mode)) }
}

/// Whether nothing is left of what was at the name: then it need not be known.
pub fn replaces(flags: c_int) -> bool {
    flags & (O_CREAT | O_EXCL | O_TRUNC) == O_CREAT | O_TRUNC
}

fn makes_file(flags: c_int) -> bool {
    flags & O_CREAT != 0 || flags & O_TMPFILE == O_TMPFILE
}

unsafe fn open_or(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
    native: impl Fn() -> c_int,
) -> c_int {
    // SAFETY: the caller passes the program's path.
    match unsafe { attempt(directory, path, flags, mode) } {
        Some(Ok(fd)) => fd,
        Some(Err(Errno(number))) => fail(number),
        None => native(),
    }
}

/// What to do next with an open.
enum Step {
    /// The program's own call is right.
    Native,
    /// This is the result.
    Done(Result<c_int>),
    /// The name has changed; look again.
    Again,
}

/// Opens a file if Sheaf has to do with it; `None` when the program's own call is to run.
///
/// # Safety
/// `path` must be null or a C string.
pub unsafe fn attempt(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> Option<Result<c_int>> {
    let configuration = configuration::active()?;
    let flags = if flags & O_PATH != 0 { flags & PATH_FLAGS } else { flags };
    if flags & (O_CREAT | O_DIRECTORY) == O_CREAT | O_DIRECTORY && flags & O_TMPFILE != O_TMPFILE {
        // Kernels differ in what this means, and none makes a directory.
        return None;
    }
    let mode = if makes_file(flags) { mode & 0o7777 & !STUB_BIT } else { 0 };
    // SAFETY: the caller's contract.
    let ends_in_slash = flags & O_CREAT != 0 && unsafe { paths::ends_in_slash(path) };
    let last = match flags & (O_CREAT | O_EXCL | O_NOFOLLOW) {
        _ if ends_in_slash => Last::Name,
        bits if bits & O_NOFOLLOW != 0 || bits == O_CREAT | O_EXCL => Last::Entry,
        _ => Last::Follow,
    };
    for _ in 0..ATTEMPTS {
        // SAFETY: the caller's contract.
        let resolution = unsafe {
            match flags & O_CREAT {
                0 => paths::resolve(directory, path, last),
                _ => paths::resolve_to_create(directory, path, last, replaces(flags)),
            }
        };
        let entry = match resolution {
            Resolution::Foreign => return None,
            Resolution::Failed(error) => return Some(Err(error)),
            Resolution::Ours(entry) if ends_in_slash && !entry.ends_in_dots => return Some(Err(Errno(libc::EISDIR))),
            Resolution::Ours(entry) => entry,
        };
        match open_entry(configuration, entry, flags, mode) {
            Step::Native => return None,
            Step::Done(result) => return Some(result),
            Step::Again => {}
        }
    }
    None
}

/// In a frame of its own, because most opens do not concern Sheaf.
#[inline(never)]
fn open_entry(configuration: &Configuration, mut entry: Entry, flags: c_int, mode: mode_t) -> Step {
    let step = match entry.kind {
        Kind::Managed => open_managed(configuration, &mut entry, flags),
        Kind::Unmanaged => open_unmanaged(configuration, &mut entry, flags, mode),
        Kind::Directory => open_in_directory(configuration, &entry, flags, mode),
    };
    match step {
        Step::Native => {
            log::decision(configuration, "open", entry.canonical(), "the program's own call");
            match entry.is_detour {
                true => Step::Done(system::openat(AT_FDCWD, entry.real_path_and_end(), flags, mode)),
                false => Step::Native,
            }
        }
        Step::Done(_) => {
            log::decision(configuration, "open", entry.canonical(), "in the stage");
            step
        }
        Step::Again => step,
    }
}

fn open_managed(configuration: &Configuration, entry: &mut Entry, flags: c_int) -> Step {
    if flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL {
        return Step::Done(Err(Errno(libc::EEXIST)));
    }
    if !entry.is_regular() || flags & O_DIRECTORY != 0 {
        return match system::openat(AT_FDCWD, entry.tree_path(), flags, 0) {
            Err(Errno(libc::ENOENT)) => Step::Again,
            outcome => Step::Done(outcome),
        };
    }
    let flags = flags & !(O_CREAT | O_EXCL);
    if flags & O_ACCMODE != O_RDONLY || flags & O_TRUNC != 0 {
        // Without a flusher the file is still safe in the stage; the next one finds it. Without room, it is still the
        // file's place: it moves when it must.
        let _ = flusher::ensure(configuration) && room::admit(configuration);
    }
    let is_linked = entry.staged().is_some_and(|stat| stat.st_nlink > 1);
    let only_reads = flags & O_ACCMODE == O_RDONLY;
    if flags & O_TRUNC != 0 && !is_linked && !only_reads {
        return open_truncated(configuration, entry, flags);
    }
    if entry.is_stub()
        && let Err(error) = flusher::hydrate(configuration, entry.canonical())
    {
        return Step::Done(Err(error));
    }
    if flags & O_PATH != 0 {
        // Such a descriptor would not keep the data in the stage, but lead to the file again, by way of /proc/self/fd.
        match open_in_place(configuration, entry, flags & !O_PATH) {
            Step::Done(Err(Errno(libc::EACCES))) => {}
            step => return step,
        }
    }
    match open_in_place(configuration, entry, if only_reads { flags & !O_TRUNC } else { flags }) {
        Step::Done(Ok(fd)) if only_reads && flags & O_TRUNC != 0 => Step::Done(truncate(Descriptor::take(fd))),
        step => step,
    }
}

/// Truncates the file behind a descriptor that cannot write. The kernel reports a file as completed only when somebody
/// closes it who could write, so that is what happens here.
fn truncate(file: Descriptor) -> Result<c_int> {
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    let path = &mut scratch.other;
    let mut digits = [0; 10];
    let number = configuration::decimal(file.number() as u32, &mut digits);
    path.set(b"/proc/self/fd/").and_then(|()| path.push(number)).map_err(|_| Errno(libc::ENAMETOOLONG))?;
    system::retry(|| system::open_own(path.c_str(), libc::O_WRONLY | O_TRUNC, 0))?;
    Ok(file.release())
}

/// Opens what is there. To write to it may take as long as the flusher holds a lease on it, which it gives back when it
/// has copied the file aside; if it does not, the program goes on with a copy of its own. The program's O_NONBLOCK,
/// which means nothing on ordinary files, is only set afterwards.
fn open_in_place(configuration: &Configuration, entry: &mut Entry, flags: c_int) -> Step {
    let waiting = if flags & O_ACCMODE == O_RDONLY { 0 } else { O_NONBLOCK };
    let begin_ns = system::now_ns();
    loop {
        match open_seen(entry, flags, waiting) {
            Err(Errno(libc::EAGAIN)) if flusher::is_over(begin_ns, configuration.timeout_ms) => {
                return open_copy(configuration, entry, flags);
            }
            Err(Errno(libc::EAGAIN)) => system::sleep_ms(LEASE_PAUSE_MS),
            Err(Errno(libc::ENOENT)) => return Step::Again,
            outcome => return Step::Done(outcome.map(Descriptor::release)),
        }
    }
}

/// Puts a copy in the place of a file whose lease the flusher does not give back, and opens that. One program does so
/// at a time, or what one of them writes would be lost; whoever cannot, waits until the kernel takes the lease away.
fn open_copy(configuration: &Configuration, entry: &mut Entry, flags: c_int) -> Step {
    let Some(old) = entry.staged().copied() else { return Step::Again };
    let wait = |entry: &Entry| match open_seen(entry, flags, 0) {
        Err(Errno(libc::ENOENT)) => Step::Again,
        outcome => Step::Done(outcome.map(Descriptor::release)),
    };
    let Ok(source) = system::open_own(entry.tree_path(), libc::O_RDONLY | O_NOFOLLOW, 0) else { return wait(entry) };
    if old.st_nlink != 1 || system::flock(source.number(), libc::LOCK_EX | libc::LOCK_NB).is_err() {
        return wait(entry);
    }
    let is_old = |stat: Result<Stat>| stat.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (old.st_dev, old.st_ino));
    if !is_old(system::fstat(source.number())) || !is_old(system::lstat(entry.tree_path())) {
        return Step::Again;
    }
    let (tree_path, name) = entry.tree_path_and_spare();
    let made = start_in_stage(configuration, layout::SCRATCH, name).map_err(|_| Errno(libc::ENAMETOOLONG));
    let made = made.and_then(|()| copy_in_stage(&source, name, flags)).and_then(|file| {
        sides::take_place(configuration, name.c_str(), (tree_path, &old))?;
        Ok(file.release())
    });
    if made.is_err() {
        let _ = system::unlink(name.c_str());
        return if made == Err(Errno(libc::ENOENT)) { Step::Again } else { wait(entry) };
    }
    Step::Done(made)
}

/// Copies a file to a new one in the stage, and opens that for the program.
fn copy_in_stage(source: &Descriptor, name: &mut Text, flags: c_int) -> Result<Descriptor> {
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    let made_with = libc::O_RDWR | O_CREAT | O_EXCL;
    let copy = make_unique(name, |name| system::open_own(name, made_with, 0o600))?;
    copy::copy_file_data(source, &copy, &mut scratch.other)?;
    let opened_with = flags & !(O_CREAT | O_EXCL | O_NONBLOCK | O_NOFOLLOW);
    let file = open_staged(name.c_str(), opened_with, 0)?;
    restore_nonblock(&file, flags, opened_with)?;
    copy::copy_attributes(source, &copy)?;
    Ok(file)
}

/// Opens the file that the resolution has seen, with its data; ENOENT when it is no longer that: a link that has just
/// taken the name leads elsewhere. (O_NOFOLLOW would stay visible in F_GETFL.)
fn open_seen(entry: &Entry, flags: c_int, waiting: c_int) -> Result<Descriptor> {
    let opened_with = flags & !O_NONBLOCK | waiting;
    let file = open_staged(entry.tree_path(), opened_with, 0)?;
    let stat = system::fstat(file.number())?;
    let is_seen = entry.staged().is_some_and(|seen| (seen.st_dev, seen.st_ino) == (stat.st_dev, stat.st_ino));
    // Without a name it has moved out of the stage, for example, while this call waited.
    if !is_seen || paths::is_stub(&stat) || stat.st_nlink == 0 {
        return Err(Errno(libc::ENOENT));
    }
    restore_nonblock(&file, flags, opened_with)?;
    Ok(file)
}

/// Opens a file in the stage. Memory file systems of older kernels refuse O_DIRECT, which only asks for speed.
fn open_staged(path: &CStr, flags: c_int, mode: mode_t) -> Result<Descriptor> {
    let result = system::retry(|| system::openat(AT_FDCWD, path, flags, mode));
    let result = match result {
        Err(Errno(libc::EINVAL)) if flags & O_DIRECT != 0 => {
            system::retry(|| system::openat(AT_FDCWD, path, flags & !O_DIRECT, mode))
        }
        result => result,
    };
    result.map(Descriptor::take)
}

/// Gives the descriptor the O_NONBLOCK that the program asked for, and no other.
fn restore_nonblock(file: &Descriptor, flags: c_int, opened_with: c_int) -> Result<()> {
    if flags & O_PATH != 0 || (flags ^ opened_with) & O_NONBLOCK == 0 {
        return Ok(());
    }
    // O_DIRECT may have been left out.
    let current = if flags & O_DIRECT == 0 { flags } else { system::fcntl(file.number(), libc::F_GETFL, 0)? };
    system::fcntl(file.number(), libc::F_SETFL, current & !O_NONBLOCK | flags & O_NONBLOCK).map(drop)
}

/// Truncates in place if nobody is reading the file on its way to the store; else a new file takes the name.
fn open_truncated(configuration: &Configuration, entry: &mut Entry, flags: c_int) -> Step {
    if entry.is_stub() {
        return open_anew(configuration, entry, flags);
    }
    match open_seen(entry, flags, O_NONBLOCK) {
        Err(Errno(libc::EAGAIN)) => open_anew(configuration, entry, flags),
        Err(Errno(libc::ENOENT)) => Step::Again,
        outcome => Step::Done(outcome.map(Descriptor::release)),
    }
}

/// Puts a new, empty file in the place of one that is being flushed or that is a stub.
fn open_anew(configuration: &Configuration, entry: &mut Entry, flags: c_int) -> Step {
    let Some(old) = entry.staged().copied() else { return Step::Again };
    match system::may_write(entry.tree_path()) {
        Ok(()) => {}
        // It has left the tree meanwhile.
        Err(Errno(libc::ENOENT)) => return Step::Again,
        Err(_) => return Step::Done(Err(Errno(libc::EACCES))),
    }
    let (tree_path, name) = entry.tree_path_and_spare();
    let flags_anew = flags & !(O_TRUNC | O_NONBLOCK) | O_CREAT | O_EXCL;
    if start_in_stage(configuration, layout::SCRATCH, name).is_err() {
        return Step::Done(Err(Errno(libc::ENAMETOOLONG)));
    }
    let made = make_unique(name, |name| open_staged(name, flags_anew, 0o600));
    let result = made.and_then(|file| {
        if old.st_uid != system::user_id() || old.st_gid != system::fstat(file.number())?.st_gid {
            // As natively, the owner stays if we may have it so.
            let _ = system::fchown(file.number(), old.st_uid, old.st_gid);
        }
        system::fchmod(file.number(), old.st_mode & 0o7777 & !STUB_BIT)?;
        restore_nonblock(&file, flags, flags_anew)?;
        sides::take_place(configuration, name.c_str(), (tree_path, &old))?;
        Ok(file.release())
    });
    if result.is_err() {
        let _ = system::unlink(name.c_str());
    }
    match result {
        Err(Errno(libc::ENOENT)) => Step::Again,
        result => Step::Done(result),
    }
}

/// Starts a path in one of the stage's directories.
pub fn start_in_stage(
    configuration: &Configuration,
    directory: &str,
    path: &mut Text,
) -> core::result::Result<(), TooLong> {
    path.set(configuration.stage)?;
    [b"/", directory.as_bytes(), b"/"].into_iter().try_for_each(|part| path.push(part))
}

fn open_unmanaged(configuration: &Configuration, entry: &mut Entry, flags: c_int, mode: mode_t) -> Step {
    let creates = flags & O_CREAT != 0;
    let replaced = match entry.real() {
        _ if !entry.is_checkpoint || entry.wants_directory || flags & O_TMPFILE == O_TMPFILE => return Step::Native,
        _ if parallel::is_opening() => return Step::Native,
        None if creates => None,
        None => return Step::Native,
        Some(real) if can_be_replaced(entry, real, flags) => Some(*real),
        Some(_) => return Step::Native,
    };
    if !flusher::ensure(configuration) {
        // What came into the tree meanwhile is there without a flusher, too.
        let is_there = configuration.has_stage() && system::lstat(entry.tree_path()).is_ok();
        return if is_there { Step::Again } else { Step::Native };
    }
    let had_mirror = entry.has_parent_mirror;
    if !entry.make_parent_mirror(configuration) {
        return Step::Native;
    }
    if !had_mirror {
        // The store may have known the name.
        return Step::Again;
    }
    if !room::admit(configuration) {
        return Step::Native;
    }
    match replaced {
        None => capture(entry, flags, mode),
        Some(real) => capture_replacing(configuration, entry, flags, &real),
    }
}

/// A directory is the program's own affair, but a file without a name that is made in it may get one by linkat(2): it
/// has to lie where its names will be.
fn open_in_directory(configuration: &Configuration, entry: &Entry, flags: c_int, mode: mode_t) -> Step {
    // With O_EXCL it never gets a name.
    let can_be_named = flags & (O_TMPFILE | O_EXCL) == O_TMPFILE;
    if !can_be_named || !entry.is_zone || !holds_checkpoints(configuration, entry) || !flusher::ensure(configuration) {
        return Step::Native;
    }
    if !entry.has_mirror() && flusher::populate(configuration, entry.canonical()) != Ok(true) {
        return Step::Native;
    }
    match open_staged(entry.tree_path(), flags, mode) {
        Ok(file) => Step::Done(Ok(file.release())),
        Err(error @ Errno(libc::EACCES | libc::EINVAL | libc::EMFILE | libc::ENFILE)) => Step::Done(Err(error)),
        Err(_) => Step::Native,
    }
}

/// Whether any new name in a directory is that of a checkpoint.
fn holds_checkpoints(configuration: &Configuration, entry: &Entry) -> bool {
    let Some(mut scratch) = Scratch::claim() else { return false };
    let name = &mut scratch.other;
    let parts = [entry.canonical(), b"/#"];
    parts.into_iter().all(|part| name.push(part).is_ok()) && configuration.is_checkpoint(name.as_bytes())
}

/// Whether the program is about to throw away the content of a file that nothing but this name leads to.
fn can_be_replaced(entry: &Entry, real: &Stat, flags: c_int) -> bool {
    flags & O_TRUNC != 0
        && flags & O_ACCMODE != O_RDONLY
        && flags & (O_CREAT | O_EXCL) != O_CREAT | O_EXCL
        && paths::is_regular(real)
        && real.st_nlink == 1
        && real.st_uid == system::user_id()
        && system::may_write(entry.real_path()).is_ok()
}

/// Makes a new file in the tree. What can go wrong there and not natively is no reason to fail.
fn capture(entry: &Entry, flags: c_int, mode: mode_t) -> Step {
    let opened_with = flags & !O_NONBLOCK | O_EXCL;
    match open_staged(entry.tree_path(), opened_with, mode) {
        Ok(file) => Step::Done(restore_nonblock(&file, flags, opened_with).map(|()| file.release())),
        Err(Errno(libc::EEXIST)) if flags & O_EXCL == 0 => Step::Again,
        Err(Errno(libc::ENOENT)) => Step::Again,
        Err(error @ Errno(libc::EEXIST | libc::EMFILE | libc::ENFILE)) => Step::Done(Err(error)),
        Err(_) => Step::Native,
    }
}

/// Makes a new file in the tree for one that stays on the real path until its successor is published. The marker comes
/// first: without it the old content would come back after the new one is deleted.
fn capture_replacing(configuration: &Configuration, entry: &Entry, flags: c_int, real: &Stat) -> Step {
    // Else the flusher, which takes its marker away when the staged file has gone, could take this one.
    let _held = sides::hold(configuration);
    if replaced::mark(configuration, entry.real_path()).is_err() {
        return Step::Native;
    }
    let mode = real.st_mode & 0o7777 & !STUB_BIT;
    let step = match capture(entry, flags | O_CREAT, mode) {
        Step::Done(Ok(fd)) => {
            let file = Descriptor::take(fd);
            // The umask may have taken bits that the old file had.
            let outcome = keep_group(&file, real).and_then(|()| system::fchmod(fd, mode));
            match outcome {
                Ok(()) => return Step::Done(Ok(file.release())),
                Err(error) => Step::Done(Err(error)),
            }
        }
        step => step,
    };
    if system::lstat(entry.tree_path()).is_err() {
        replaced::unmark(configuration, entry.canonical());
    }
    step
}

/// As natively, a file that is truncated keeps its group, if we may have it so.
fn keep_group(file: &Descriptor, real: &Stat) -> Result<()> {
    if system::fstat(file.number())?.st_gid != real.st_gid {
        let _ = system::fchown(file.number(), u32::MAX, real.st_gid);
    }
    Ok(())
}
