//! Names that come and go: rename, link, symlink, unlink, mkdir, rmdir.
//!
//! Inside the patterns they happen in the tree, in the order in which the program makes them. Directories are always
//! real, and their mirrors follow. Nothing here may lose a file: what cannot be done in one step is refused, as
//! between two file systems, so that programs copy.

use core::ffi::{CStr, c_char, c_int, c_uint};

use libc::{RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, mode_t};
use sheaf_common::layout;

use crate::configuration::{self, Configuration};
use crate::hooks::{Failure, fail, real};
use crate::moving::Word;
use crate::paths::{self, Entry, Kind, Last, Resolution};
use crate::redirect;
use crate::scratch::{Scratch, Text, TooLong, make_unique};
use crate::sides::{self, Held};
use crate::system::{self, AT_FDCWD, Errno, Result, Stat};
use crate::{copy, flusher, listing, log, open, replaced, store};

fn report(outcome: Result<()>) -> c_int {
    match outcome {
        Ok(()) => 0,
        Err(Errno(number)) => fail(number),
    }
}

/// A path as the program gave it.
#[derive(Clone, Copy)]
struct Given {
    directory: c_int,
    path: *const c_char,
}

impl Given {
    /// The same for the kernel: what a detour leads to, else untouched.
    ///
    /// # Safety
    /// The program's path must be a C string.
    unsafe fn for_kernel<'a>(&self, entry: Option<&'a Entry>) -> (c_int, &'a CStr) {
        match entry {
            Some(entry) if entry.is_detour => (AT_FDCWD, entry.real_path_and_end()),
            // SAFETY: the caller's contract; the program keeps its path for the length of the call.
            _ => (self.directory, unsafe { CStr::from_ptr(self.path) }),
        }
    }
}

/// rename(2).
pub unsafe fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let (old, new) = (Given { directory: AT_FDCWD, path: from }, Given { directory: AT_FDCWD, path: to });
    // SAFETY: the program's arguments.
    unsafe { move_name(old, new, 0, || real::rename(from, to)) }
}

/// renameat(2).
pub unsafe fn renameat(from_directory: c_int, from: *const c_char, to_directory: c_int, to: *const c_char) -> c_int {
    let (old, new) = (Given { directory: from_directory, path: from }, Given { directory: to_directory, path: to });
    // SAFETY: the program's arguments.
    unsafe { move_name(old, new, 0, || real::renameat(from_directory, from, to_directory, to)) }
}

/// renameat2(2).
pub unsafe fn renameat2(
    from_directory: c_int,
    from: *const c_char,
    to_directory: c_int,
    to: *const c_char,
    flags: c_uint,
) -> c_int {
    let (old, new) = (Given { directory: from_directory, path: from }, Given { directory: to_directory, path: to });
    let native = || {
        // SAFETY: the program's arguments.
        let result = unsafe { real::renameat2(from_directory, from, to_directory, to, flags) };
        if result == 0 || system::errno() != libc::ENOSYS || paths::is_no_address(from) || paths::is_no_address(to) {
            return result;
        }
        // SAFETY: as above, and there is a text at both. This C library may lack the function.
        report(unsafe { system::rename(old.for_kernel(None), new.for_kernel(None), flags) })
    };
    // SAFETY: the program's arguments.
    unsafe { move_name(old, new, flags, native) }
}

unsafe fn move_name(from: Given, to: Given, flags: c_uint, native: impl Fn() -> c_int) -> c_int {
    let Some(configuration) = configuration::active() else { return native() };
    let excluding = flags & RENAME_EXCHANGE != 0 && flags & (RENAME_NOREPLACE | RENAME_WHITEOUT) != 0;
    // The kernel refuses such flags whatever the names are.
    if excluding || paths::is_no_address(from.path) || paths::is_no_address(to.path) {
        return native();
    }
    // SAFETY: the program's paths.
    let mut names = unsafe { resolve_both(from, to, flags) };
    let held = sides::hold_for(configuration, [as_entry(&names.0), as_entry(&names.1)]);
    if held.is_some() {
        // SAFETY: as above.
        names = unsafe { resolve_both(from, to, flags) };
    }
    let (old, new) = match names {
        (Resolution::Foreign, Resolution::Foreign) => {
            paths::forget_foreign();
            return native();
        }
        (Resolution::Failed(error), _) => return fail(error.0),
        (old, Resolution::Failed(error)) => {
            // SAFETY: the path has been resolved, so it is a C string. What is wrong with the first path counts first.
            let first = unsafe { ours(old).is_none().then(|| parent_error(from.for_kernel(None))) };
            return fail(first.flatten().unwrap_or(error).0);
        }
        (old, new) => (ours(old), ours(new)),
    };
    if [&old, &new].into_iter().flatten().any(|entry| entry.ends_in_dots) {
        // Such a name can neither be moved nor taken: the kernel says what is wrong.
        // SAFETY: both paths have been resolved, so they are C strings.
        return report(unsafe { system::rename(from.for_kernel(old.as_ref()), to.for_kernel(new.as_ref()), flags) });
    }
    if let Some(entry) = &old {
        log::decision(configuration, "rename from", entry.canonical(), "looked at");
    }
    let outcome = match (&old, new) {
        (Some(old), new) if old.kind == Kind::Managed => {
            // SAFETY: the path has been resolved, so it is a C string.
            let target = unsafe { CStr::from_ptr(to.path) };
            move_managed(configuration, old, new, (to.directory, target), flags)
        }
        (Some(old), new) if old.kind == Kind::Directory && old.is_zone => {
            // SAFETY: both paths have been resolved, so they are C strings.
            unsafe { move_directory(configuration, (old, from), (new, to), flags) }
        }
        // SAFETY: as above.
        (old, new) => unsafe { move_real(configuration, (old.as_ref(), from), (new, to), flags) },
    };
    paths::forget_foreign();
    if old.as_ref().is_some_and(|old| Held::was_in_vain(held.as_ref(), &outcome, old)) {
        drop((old, held));
        // SAFETY: the caller's contract.
        return unsafe { move_name(from, to, flags, native) };
    }
    report(outcome)
}

/// What both names of a rename mean.
///
/// # Safety
/// The program's paths must be C strings.
unsafe fn resolve_both(from: Given, to: Given, flags: c_uint) -> (Resolution, Resolution) {
    // SAFETY: the caller's contract.
    unsafe {
        let old = paths::resolve(from.directory, from.path, Last::Name);
        match flags {
            0 => (old, paths::resolve_to_replace(to.directory, to.path, Last::Name)),
            _ => (old, paths::resolve(to.directory, to.path, Last::Name)),
        }
    }
}

fn as_entry(resolution: &Resolution) -> Option<&Entry> {
    match resolution {
        Resolution::Ours(entry) => Some(entry),
        _ => None,
    }
}

fn ours(resolution: Resolution) -> Option<Entry> {
    match resolution {
        Resolution::Ours(entry) => Some(entry),
        _ => None,
    }
}

/// Whether a name lies in a directory or deeper.
fn is_below(name: &Entry, directory: &Entry) -> bool {
    let (name, directory) = (name.canonical(), directory.canonical());
    name != directory && configuration::is_at_or_below(name, directory)
}

/// A managed name takes another.
fn move_managed(
    configuration: &Configuration,
    old: &Entry,
    new: Option<Entry>,
    to: (c_int, &CStr),
    flags: c_uint,
) -> Result<()> {
    flusher::ensure(configuration);
    let Some(mut new) = new else { return leave(configuration, old, to, flags) };
    let exists = new.kind != Kind::Unmanaged || new.real().is_some();
    match new.kind {
        // In the kernel's order.
        _ if flags & RENAME_NOREPLACE != 0 && exists => return Err(Errno(libc::EEXIST)),
        _ if flags & RENAME_EXCHANGE != 0 && !exists => return Err(Errno(libc::ENOENT)),
        _ if old.wants_directory || new.wants_directory => return Err(Errno(libc::ENOTDIR)),
        Kind::Directory if is_below(old, &new) => return Err(Errno(libc::ENOTEMPTY)),
        Kind::Directory => return Err(Errno(libc::EISDIR)),
        Kind::Unmanaged | Kind::Managed => {}
    }
    if new.kind == Kind::Unmanaged && !(new.is_checkpoint && new.make_parent_mirror(configuration)) {
        let target = if new.is_detour { (AT_FDCWD, new.real_path()) } else { to };
        return leave(configuration, old, target, flags);
    }
    if flags & RENAME_EXCHANGE != 0 && new.kind != Kind::Managed || flags & RENAME_WHITEOUT != 0 {
        return Err(Errno(libc::EINVAL));
    }
    let inode = |entry: &Entry| entry.staged().map(|stat| stat.st_ino);
    if new.kind == Kind::Managed && inode(old) == inode(&new) {
        // Of two names of one file, both stay.
        return Ok(());
    }
    let is_moved = flags & RENAME_EXCHANGE == 0 && take_published_along(configuration, old, &new)?;
    if !is_moved && new.real().is_some() {
        replaced::mark(configuration, new.real_path())?;
    }
    if flags & RENAME_EXCHANGE != 0 {
        // Both are published anew under their new names, which takes their data.
        for stub in [old, &new].into_iter().filter(|entry| entry.is_stub()) {
            flusher::hydrate(configuration, stub.canonical()).map_err(|_| Errno(libc::EIO))?;
        }
    }
    let rename = || system::rename((AT_FDCWD, old.tree_path()), (AT_FDCWD, new.tree_path()), flags);
    let outcome = match flags & RENAME_EXCHANGE == 0 && old.canonical() != new.canonical() {
        true => take_away(configuration, old, rename),
        false => rename(),
    };
    if outcome.is_err() && new.real().is_some() {
        replaced::unmark(configuration, new.canonical());
    }
    match outcome {
        // What is published has moved, and what was staged of it has left the tree meanwhile.
        Err(Errno(libc::ENOENT)) if is_moved => {
            replaced::unmark(configuration, new.canonical());
            Ok(())
        }
        outcome => outcome,
    }
}

/// What is published of a file in the tree takes the new name first (layout `files`): at no moment it has none on the
/// parallel file system. False when nothing is.
fn take_published_along(configuration: &Configuration, old: &Entry, new: &Entry) -> Result<bool> {
    let Some(inode) = old.staged().map(|stat| stat.st_ino) else { return Ok(false) };
    if old.canonical() == new.canonical() || !replaced::is_published(configuration, old.canonical(), inode) {
        return Ok(false);
    }
    match system::rename((AT_FDCWD, old.real_path()), (AT_FDCWD, new.real_path()), 0) {
        // It went with a directory, or somebody has removed it.
        Err(Errno(libc::ENOENT)) => Ok(false),
        Err(error) => Err(error),
        Ok(()) => replaced::mark_published(configuration, new.real_path(), inode).map(|()| true),
    }
}

/// A managed name moves to a path that is none of ours.
fn leave(configuration: &Configuration, old: &Entry, to: (c_int, &CStr), flags: c_uint) -> Result<()> {
    if flags & !RENAME_NOREPLACE != 0 {
        return Err(Errno(libc::EINVAL));
    }
    if old.wants_directory {
        return Err(target_error(to).unwrap_or(Errno(libc::ENOTDIR)));
    }
    // Held until the name is gone, so that nobody starts to write to what has been copied.
    let _held = match copy::move_out(configuration, old, to, flags) {
        Ok(held) => held,
        Err(error) => return Err(target_error(to).unwrap_or(error)),
    };
    take_away(configuration, old, || system::unlink(old.tree_path()))
}

/// Takes a managed name away by `call`. An older file that waits under it on the real path goes first, and its marker
/// last: whoever is killed in between does not bring it back.
fn take_away(configuration: &Configuration, entry: &Entry, call: impl FnOnce() -> Result<()>) -> Result<()> {
    let is_marked = replaced::is_marked(configuration, entry.canonical());
    if is_marked {
        match system::unlink(entry.real_path()) {
            Ok(()) | Err(Errno(libc::ENOENT)) => {}
            error => return error,
        }
    }
    call()?;
    if is_marked {
        replaced::unmark(configuration, entry.canonical());
    }
    Ok(())
}

/// Something on the real file system takes a name. A managed file of that name goes.
unsafe fn move_real(
    configuration: &Configuration,
    (old, from): (Option<&Entry>, Given),
    (new, to): (Option<Entry>, Given),
    flags: c_uint,
) -> Result<()> {
    // SAFETY: the caller has resolved both paths.
    let (source, target) = unsafe { (from.for_kernel(old), to.for_kernel(new.as_ref())) };
    let Some(new) = new.as_ref().filter(|new| new.kind == Kind::Managed) else {
        // What does not exist cannot take a name: then the kernel says what is wrong.
        let stat = system::statat(source.0, source.1, libc::AT_SYMLINK_NOFOLLOW);
        if stat.is_ok_and(|stat| flags & RENAME_EXCHANGE != 0 || paths::is_directory(&stat)) {
            refuse_if_it_holds_names(configuration, new.as_ref(), flags)?;
        }
        if stat.is_ok_and(|stat| paths::is_directory(&stat)) {
            await_publication(configuration, new.as_ref())?;
        }
        return system::rename(source, target, flags);
    };
    let stat = system::statat(source.0, source.1, libc::AT_SYMLINK_NOFOLLOW)?;
    match flags {
        0 if new.wants_directory || paths::is_directory(&stat) => return Err(Errno(libc::ENOTDIR)),
        0 => {}
        RENAME_NOREPLACE => return Err(Errno(libc::EEXIST)),
        _ => return Err(Errno(libc::EINVAL)),
    }
    // Whoever is killed between the two steps leaves both: then what has come goes with the name. The flusher removes
    // it for no successor's sake, because it is not the file of the marker.
    let was_marked = replaced::is_marked(configuration, new.canonical());
    if !was_marked {
        let _ = replaced::mark_whatever_comes(configuration, new.real_path());
    }
    remove_second_name(&stat, new.real_path())?;
    let mut outcome = system::rename(source, (AT_FDCWD, new.real_path()), flags);
    if outcome.is_ok() {
        outcome = match system::unlink(new.tree_path()) {
            Err(Errno(libc::ENOENT)) => Ok(()),
            outcome => outcome,
        };
    }
    if outcome.is_ok() || !was_marked {
        replaced::unmark(configuration, new.canonical());
    }
    outcome
}

/// An older file that waits at `place` under a managed name may be the very file that is to come there: the kernel
/// leaves both of two names of one file, and the program has only seen the other. So the one that waits goes.
fn remove_second_name(file: &Stat, place: &CStr) -> Result<()> {
    let is_same =
        |waiting: Stat| (waiting.st_dev, waiting.st_ino) == (file.st_dev, file.st_ino) && waiting.st_nlink > 1;
    if system::lstat(place).is_ok_and(is_same) { system::unlink(place) } else { Ok(()) }
}

/// A directory that can hold managed names takes another name.
unsafe fn move_directory(
    configuration: &Configuration,
    (old, from): (&Entry, Given),
    (new, to): (Option<Entry>, Given),
    flags: c_uint,
) -> Result<()> {
    populate_below(configuration, old)?;
    let mut new = new;
    match &new {
        // The kernel looks at this first.
        Some(new) if flags & RENAME_NOREPLACE != 0 && (new.kind != Kind::Unmanaged || new.real().is_some()) => {
            return Err(Errno(libc::EEXIST));
        }
        Some(new) if is_below(new, old) => return Err(Errno(libc::EINVAL)),
        Some(new) if new.kind == Kind::Managed => return Err(Errno(libc::ENOTDIR)),
        _ => {}
    }
    // SAFETY: the caller has resolved both paths.
    let source = unsafe { from.for_kernel(Some(old)) };
    let is_same = new.as_ref().is_some_and(|new| new.canonical() == old.canonical());
    if is_same {
        // SAFETY: as above.
        return system::rename(source, unsafe { to.for_kernel(new.as_ref()) }, flags);
    }
    refuse_if_it_holds_names(configuration, new.as_ref(), flags)?;
    if !old.has_mirror() || !has_one_level(old) {
        await_publication(configuration, new.as_ref())?;
    }
    if !old.has_mirror() {
        // SAFETY: as above.
        return system::rename(source, unsafe { to.for_kernel(new.as_ref()) }, flags);
    }
    let is_empty = listing::is_empty(old.tree_path())?;
    let keeps_mirror = new.as_mut().is_some_and(|new| new.is_zone && new.make_parent_mirror(configuration));
    if flags & !RENAME_NOREPLACE != 0 || !keeps_mirror && !is_empty {
        // SAFETY: as above.
        let target = unsafe { to.for_kernel(new.as_ref()) };
        return Err(target_error(target).unwrap_or(Errno(libc::EXDEV)));
    }
    flusher::ensure(configuration);
    // Nothing is published in between, when the directory's names are on one side only.
    let _held = sides::hold(configuration);
    let followed = new.as_ref().filter(|_| keeps_mirror);
    replaced::remove_below(configuration, old.canonical(), followed.map(Entry::canonical))?;
    let _word = followed.and_then(|new| Word::leave(configuration, old.canonical(), new.canonical()));
    // SAFETY: as above.
    system::rename(source, unsafe { to.for_kernel(new.as_ref()) }, flags)?;
    let outcome = match followed {
        Some(new) => system::rename((AT_FDCWD, old.tree_path()), (AT_FDCWD, new.tree_path()), 0),
        None => system::rmdir(old.tree_path()),
    };
    match outcome {
        // A flusher has read the word and was faster.
        Err(Errno(libc::ENOENT)) => Ok(()),
        outcome => outcome,
    }
}

/// Populates a directory that moves, and all below it: a flusher that dies before the move is published finds what
/// moved by what is in the tree. EIO where names could stay behind because nobody can say which there are.
fn populate_below(configuration: &Configuration, directory: &Entry) -> Result<()> {
    if !store::exists(configuration) {
        return Ok(());
    }
    let Err(error) = flusher::populate_below(configuration, directory.canonical()) else { return Ok(()) };
    if directory.has_mirror() && has_one_level(directory) {
        return Ok(());
    }
    store::refuse(configuration, directory.canonical(), error)
}

/// Whether a directory has none in it, each of which is a link of it; file systems that do not count them say 1.
fn has_one_level(directory: &Entry) -> bool {
    system::lstat(directory.real_path()).is_ok_and(|real| real.st_nlink == 2)
}

/// Before directories without mirrors take a name: until it is published that what had the name has moved or was
/// removed, populating would give them its files, and so would a flusher that starts then.
fn await_publication(configuration: &Configuration, new: Option<&Entry>) -> Result<()> {
    let Some(new) = new.filter(|new| new.is_zone) else { return Ok(()) };
    // In the place of what is no directory the kernel lets none come.
    let is_refused = new.kind != Kind::Directory && new.real().is_some();
    if is_refused || !store::exists(configuration) {
        return Ok(());
    }
    // Asked for the name itself, the flusher would make a directory there that the store knows.
    match flusher::populate(configuration, new.parent()) {
        Err(error) => store::refuse(configuration, new.canonical(), error),
        Ok(_) => Ok(()),
    }
}

/// A directory whose names are only in the tree looks empty to the kernel: it must not be replaced.
fn refuse_if_it_holds_names(configuration: &Configuration, new: Option<&Entry>, flags: c_uint) -> Result<()> {
    let Some(new) = new else { return Ok(()) };
    if new.kind == Kind::Unmanaged && new.real().is_none() {
        return new.expect_known(configuration);
    }
    if new.kind != Kind::Directory || !new.is_zone {
        return Ok(());
    }
    new.populate_from_store(configuration)?;
    match flags {
        _ if !new.has_mirror() => Ok(()),
        // An exchange would part even an empty mirror from its directory.
        _ if flags & RENAME_EXCHANGE == 0 && listing::is_empty(new.tree_path())? => Ok(()),
        0 => Err(Errno(libc::ENOTEMPTY)),
        RENAME_NOREPLACE => Err(Errno(libc::EEXIST)),
        _ => Err(Errno(libc::EXDEV)),
    }
}

/// link(2).
pub unsafe fn link(from: *const c_char, to: *const c_char) -> c_int {
    let (old, new) = (Given { directory: AT_FDCWD, path: from }, Given { directory: AT_FDCWD, path: to });
    // SAFETY: the program's arguments.
    unsafe { add_name(old, new, 0, || real::link(from, to)) }
}

/// linkat(2).
pub unsafe fn linkat(
    from_directory: c_int,
    from: *const c_char,
    to_directory: c_int,
    to: *const c_char,
    flags: c_int,
) -> c_int {
    let (old, new) = (Given { directory: from_directory, path: from }, Given { directory: to_directory, path: to });
    // SAFETY: the program's arguments.
    unsafe { add_name(old, new, flags, || real::linkat(from_directory, from, to_directory, to, flags)) }
}

unsafe fn add_name(from: Given, to: Given, flags: c_int, native: impl Fn() -> c_int) -> c_int {
    let Some(configuration) = configuration::active() else { return native() };
    if paths::is_no_address(from.path) {
        return native();
    }
    let last = if flags & libc::AT_SYMLINK_FOLLOW != 0 { Last::Follow } else { Last::Entry };
    let resolve = || {
        // SAFETY: the program's paths.
        unsafe { (paths::resolve(from.directory, from.path, last), paths::resolve(to.directory, to.path, Last::Name)) }
    };
    let (mut old, mut new) = resolve();
    let held = sides::hold_for(configuration, [as_entry(&old), as_entry(&new)]);
    if held.is_some() {
        (old, new) = resolve();
    }
    let old = match old {
        Resolution::Failed(error) => return fail(error.0),
        Resolution::Foreign if matches!(new, Resolution::Foreign) => return native(),
        old => ours(old),
    };
    if paths::is_no_address(to.path) {
        let is_managed = old.is_some_and(|old| old.kind == Kind::Managed);
        return if is_managed { fail(libc::EFAULT) } else { native() };
    }
    let new = match new {
        Resolution::Failed(error) => {
            // SAFETY: both paths have been resolved, so they are C strings.
            let first = unsafe { source_error(old.as_ref(), from, flags) };
            return fail(first.unwrap_or(error).0);
        }
        new => ours(new),
    };
    if new.as_ref().is_some_and(|new| new.kind == Kind::Managed) {
        // SAFETY: as above.
        return fail(unsafe { source_error(old.as_ref(), from, flags) }.map_or(libc::EEXIST, |error| error.0));
    }
    // SAFETY: the path has been resolved, so it is a C string.
    let staged = match unsafe { staged_source(configuration, old.as_ref(), from, flags) } {
        Err(error) => return fail(error.0),
        Ok(staged) => staged,
    };
    let outcome = match (&old, staged) {
        (_, Some(source)) => {
            // SAFETY: the path has been resolved, so it is a C string.
            unsafe { link_staged(configuration, &source, new, to) }
        }
        (old, None)
            if old.as_ref().is_some_and(|old| old.is_detour) || new.as_ref().is_some_and(|new| new.is_detour) =>
        {
            // SAFETY: both paths have been resolved, so they are C strings.
            let (source, target) = unsafe { (from.for_kernel(old.as_ref()), to.for_kernel(new.as_ref())) };
            system::link(source, target, flags)
        }
        _ => {
            drop((old, new));
            return native();
        }
    };
    if old.as_ref().is_some_and(|old| Held::was_in_vain(held.as_ref(), &outcome, old)) {
        drop((old, held));
        // SAFETY: the caller's contract.
        return unsafe { add_name(from, to, flags, native) };
    }
    report(outcome)
}

/// What is wrong with the file that is to get another name, if anything; that counts first.
unsafe fn source_error(old: Option<&Entry>, from: Given, flags: c_int) -> Option<Errno> {
    if old.is_some_and(|old| old.kind == Kind::Managed) {
        return None;
    }
    // SAFETY: the caller has resolved the path, so it is a C string.
    let (directory, path) = unsafe { from.for_kernel(old) };
    system::statat(directory, path, flags_for_stat(flags)).err()
}

/// Flags of linkat(2) for a look at the same file.
fn flags_for_stat(flags: c_int) -> c_int {
    let follow = if flags & libc::AT_SYMLINK_FOLLOW != 0 { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
    flags & libc::AT_EMPTY_PATH | follow
}

/// A file in the stage that is to get another name: how the kernel finds it, and its inode.
struct Source<'a> {
    place: (c_int, &'a CStr),
    flags: c_int,
    inode: u64,
}

/// The source of a link, if it lies in the stage: a managed name, or a file that the program has open there and names
/// by its descriptor, with or without a name of its own.
///
/// # Safety
/// The program's path must be a C string.
unsafe fn staged_source<'a>(
    configuration: &Configuration,
    old: Option<&'a Entry>,
    from: Given,
    flags: c_int,
) -> Result<Option<Source<'a>>> {
    if let Some(old) = old {
        if old.kind != Kind::Managed {
            return Ok(None);
        }
        let inode = old.staged().map(|stat| stat.st_ino).ok_or(Errno(libc::ENOENT))?;
        return Ok(Some(Source { place: (AT_FDCWD, old.tree_path()), flags: 0, inode }));
    }
    // SAFETY: the caller's contract; the program keeps its path for the length of the call.
    let path: &'a CStr = unsafe { CStr::from_ptr(from.path) };
    let shown = match flags & (libc::AT_EMPTY_PATH | libc::AT_SYMLINK_FOLLOW) {
        bits if bits & libc::AT_EMPTY_PATH != 0 && path.is_empty() => paths::path_of(from.directory),
        bits if bits & libc::AT_SYMLINK_FOLLOW != 0 => paths::target_of(from.directory, path),
        _ => None,
    };
    if shown.is_none_or(|shown| configuration.without_tree(shown.pending.as_bytes()).is_none()) {
        return Ok(None);
    }
    let place = (from.directory, path);
    let stat = system::statat(place.0, place.1, flags_for_stat(flags))?;
    Ok(Some(Source { place, flags, inode: stat.st_ino }))
}

/// A staged file gets another name; only inside the patterns, as inside one file system.
///
/// # Safety
/// The path of the new name must be a C string.
unsafe fn link_staged(configuration: &Configuration, old: &Source, new: Option<Entry>, to: Given) -> Result<()> {
    let mut new = match new {
        Some(new) if new.is_checkpoint => new,
        // SAFETY: the caller has resolved the path.
        new => return Err(no_way_to(unsafe { to.for_kernel(new.as_ref()) })),
    };
    match (new.kind, new.real()) {
        (Kind::Directory, _) => return Err(Errno(libc::EEXIST)),
        (_, Some(_)) => return Err(Errno(if new.ends_in_dots { libc::ENOTDIR } else { libc::EEXIST })),
        (_, None) if new.wants_directory => return Err(Errno(libc::ENOENT)),
        (_, None) => {}
    }
    flusher::ensure(configuration);
    if !new.make_parent_mirror(configuration) {
        // SAFETY: as above.
        return Err(no_way_to(unsafe { to.for_kernel(Some(&new)) }));
    }
    announce_link(configuration, old, &mut new)
}

/// Links by way of a directory that the flusher watches: it learns of which file the new name is, even when the name is
/// gone before it can look.
fn announce_link(configuration: &Configuration, old: &Source, new: &mut Entry) -> Result<()> {
    let (tree_path, name) = new.tree_path_and_spare();
    start_link_name(configuration, old.inode, name).map_err(|_| Errno(libc::ENAMETOOLONG))?;
    let mut outcome = make_unique(name, |name| system::link(old.place, (AT_FDCWD, name), old.flags));
    if outcome.is_ok() {
        outcome = system::rename((AT_FDCWD, name.c_str()), (AT_FDCWD, tree_path), RENAME_NOREPLACE);
        if outcome.is_err() {
            let _ = system::unlink(name.c_str());
        }
    }
    match outcome {
        // Kernels and file systems without the flag; a stage without the directory.
        Err(Errno(libc::ENOSYS | libc::EINVAL | libc::ENOENT)) => {
            system::link(old.place, (AT_FDCWD, new.tree_path()), old.flags)
        }
        outcome => outcome,
    }
}

/// Starts a name for one moment, with the inode's number.
fn start_link_name(configuration: &Configuration, inode: u64, name: &mut Text) -> core::result::Result<(), TooLong> {
    open::start_in_stage(configuration, layout::LINKS, name)?;
    name.push(configuration::decimal(inode, &mut [0; 20]))?;
    name.push(b"-")
}

/// Why a managed file cannot get a name.
fn no_way_to(to: (c_int, &CStr)) -> Errno {
    match system::statat(to.0, to.1, libc::AT_SYMLINK_NOFOLLOW) {
        Ok(_) => Errno(libc::EEXIST),
        Err(Errno(libc::ENOENT)) => target_error(to).unwrap_or(Errno(libc::EXDEV)),
        Err(error) => error,
    }
}

/// What is wrong with the directory that a new name is to lie in, if anything. One that was removed takes no names.
fn target_error(to: (c_int, &CStr)) -> Option<Errno> {
    look_at_parent(to).map_or_else(Some, |parent| (parent.st_nlink == 0).then_some(Errno(libc::ENOENT)))
}

/// What is wrong with the directory that a path lies in, if anything.
fn parent_error(from: (c_int, &CStr)) -> Option<Errno> {
    look_at_parent(from).err()
}

fn look_at_parent((directory, path): (c_int, &CStr)) -> Result<Stat> {
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    let parts: [&[u8]; 2] = [copy::directory_part(path.to_bytes()), b"."];
    if parts.into_iter().any(|part| scratch.other.push(part).is_err()) {
        return Err(Errno(libc::ENAMETOOLONG));
    }
    system::statat(directory, scratch.other.c_str(), 0)
}

/// symlink(2).
pub unsafe fn symlink(target: *const c_char, path: *const c_char) -> c_int {
    // SAFETY: the program's arguments.
    unsafe { make_link(target, AT_FDCWD, path, |_, path| real::symlink(target, path)) }
}

/// symlinkat(2).
pub unsafe fn symlinkat(target: *const c_char, directory: c_int, path: *const c_char) -> c_int {
    // SAFETY: the program's arguments.
    unsafe { make_link(target, directory, path, |directory, path| real::symlinkat(target, directory, path)) }
}

unsafe fn make_link(
    target: *const c_char,
    directory: c_int,
    path: *const c_char,
    native: impl Fn(c_int, *const c_char) -> c_int,
) -> c_int {
    paths::forget_foreign();
    let Some(configuration) = configuration::active() else { return native(directory, path) };
    // SAFETY: the program's path.
    let mut entry = match unsafe { paths::resolve(directory, path, Last::Name) } {
        Resolution::Foreign => return native(directory, path),
        Resolution::Failed(error) => return fail(error.0),
        Resolution::Ours(entry) => entry,
    };
    if entry.kind == Kind::Managed {
        return fail(if paths::is_no_address(target) { libc::EFAULT } else { libc::EEXIST });
    }
    let is_new = entry.kind == Kind::Unmanaged && entry.real().is_none() && entry.is_checkpoint;
    let captured = is_new
        && !entry.wants_directory
        && !paths::is_no_address(target)
        && flusher::ensure(configuration)
        && entry.make_parent_mirror(configuration);
    if !captured {
        return redirect::natively(entry, directory, path, native);
    }
    // SAFETY: the program's target, which is a C string.
    report(system::symlinkat(unsafe { CStr::from_ptr(target) }, AT_FDCWD, entry.tree_path()))
}

/// unlink(2).
pub unsafe fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { remove_file(AT_FDCWD, path, |_, path| real::unlink(path)) }
}

/// unlinkat(2).
pub unsafe fn unlinkat(directory: c_int, path: *const c_char, flags: c_int) -> c_int {
    let native = |directory, path| {
        // SAFETY: the program's arguments, or a path of our own.
        unsafe { real::unlinkat(directory, path, flags) }
    };
    // SAFETY: the program's arguments.
    unsafe {
        if flags & libc::AT_REMOVEDIR != 0 {
            remove_directory(directory, path, native)
        } else {
            remove_file(directory, path, native)
        }
    }
}

/// remove(3).
pub unsafe fn remove(path: *const c_char) -> c_int {
    // SAFETY: the program's path.
    let kind = match unsafe { paths::resolve(AT_FDCWD, path, Last::Name) } {
        // SAFETY: the program's path.
        Resolution::Foreign => return unsafe { real::remove(path) },
        Resolution::Failed(error) => return fail(error.0),
        Resolution::Ours(entry) => entry.kind,
    };
    // SAFETY: the program's path.
    unsafe { if kind == Kind::Directory { rmdir(path) } else { unlink(path) } }
}

unsafe fn remove_file(directory: c_int, path: *const c_char, native: impl Fn(c_int, *const c_char) -> c_int) -> c_int {
    // SAFETY: the program's path.
    let mut resolution = unsafe { paths::resolve(directory, path, Last::Name) };
    let held = configuration::active().and_then(|active| sides::hold_for(active, [as_entry(&resolution), None]));
    if held.is_some() {
        // SAFETY: as above.
        resolution = unsafe { paths::resolve(directory, path, Last::Name) };
    }
    let (entry, configuration) = match (resolution, configuration::active()) {
        (Resolution::Ours(entry), _) if entry.kind == Kind::Managed && entry.wants_directory => {
            return fail(libc::ENOTDIR);
        }
        (Resolution::Ours(entry), Some(configuration)) if entry.kind == Kind::Managed => (entry, configuration),
        (Resolution::Ours(entry), Some(configuration)) if sides::may_be_published(configuration, &entry) => {
            drop(held);
            flusher::settle(configuration);
            return redirect::natively(entry, directory, path, native);
        }
        (Resolution::Ours(entry), _) => return redirect::natively(entry, directory, path, native),
        (Resolution::Failed(error), _) => return fail(error.0),
        (Resolution::Foreign, _) => return native(directory, path),
    };
    flusher::ensure(configuration);
    log::decision(configuration, "unlink", entry.canonical(), "in the stage");
    // Looked at before: the flusher takes the marker away when the name leaves the tree.
    let is_marked = held.is_some() && replaced::is_marked(configuration, entry.canonical());
    let outcome = take_away(configuration, &entry, || system::unlink(entry.tree_path()));
    if !Held::was_in_vain(held.as_ref(), &outcome, &entry) {
        return report(outcome);
    }
    // The file is on its real path, or was, and has just gone from there as one that waits under the name.
    let outcome = match system::unlink(entry.real_path()) {
        Err(Errno(libc::ENOENT)) if is_marked => Ok(()),
        outcome => outcome,
    };
    if outcome.is_ok() && is_marked {
        replaced::unmark(configuration, entry.canonical());
    }
    report(outcome)
}

/// rmdir(2).
pub unsafe fn rmdir(path: *const c_char) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { remove_directory(AT_FDCWD, path, |_, path| real::rmdir(path)) }
}

unsafe fn remove_directory(
    directory: c_int,
    path: *const c_char,
    native: impl Fn(c_int, *const c_char) -> c_int,
) -> c_int {
    // SAFETY: the program's path.
    let resolution = unsafe { paths::resolve(directory, path, Last::Name) };
    let (entry, configuration) = match (resolution, configuration::active()) {
        (Resolution::Ours(entry), Some(configuration)) => (entry, configuration),
        (Resolution::Failed(error), _) => return fail(error.0),
        _ => return native(directory, path),
    };
    if entry.kind == Kind::Managed {
        return fail(libc::ENOTDIR);
    }
    if entry.kind != Kind::Directory || !entry.is_zone || entry.ends_in_dots {
        return redirect::natively(entry, directory, path, native);
    }
    if paths::parent(configuration.store.to_bytes()) == entry.canonical() && system::exists(configuration.store) {
        return fail(libc::ENOTEMPTY);
    }
    if let Err(Errno(number)) = entry.populate_from_store(configuration) {
        return fail(number);
    }
    if !entry.has_mirror() {
        return redirect::natively(entry, directory, path, native);
    }
    if let Err(error @ Errno(libc::ENOTEMPTY | libc::EEXIST)) = system::rmdir(entry.tree_path()) {
        return fail(error.0);
    }
    let result =
        if entry.is_detour { native(AT_FDCWD, entry.real_path_and_end().as_ptr()) } else { native(directory, path) };
    if result.is_failure() && system::errno() != libc::ENOENT {
        entry.make_mirror();
    }
    result
}

/// mkdir(2).
pub unsafe fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { make_directory(AT_FDCWD, path, |_, path| real::mkdir(path, mode)) }
}

/// mkdirat(2).
pub unsafe fn mkdirat(directory: c_int, path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { make_directory(directory, path, |directory, path| real::mkdirat(directory, path, mode)) }
}

unsafe fn make_directory(
    directory: c_int,
    path: *const c_char,
    native: impl Fn(c_int, *const c_char) -> c_int,
) -> c_int {
    paths::forget_foreign();
    // SAFETY: the program's path.
    let mut entry = match unsafe { paths::resolve(directory, path, Last::Name) } {
        Resolution::Foreign => return native(directory, path),
        Resolution::Failed(error) => return fail(error.0),
        Resolution::Ours(entry) => entry,
    };
    if entry.kind == Kind::Managed {
        return fail(libc::EEXIST);
    }
    // A name that is excluded can be that of a directory with checkpoints in it.
    if !entry.is_zone || !entry.is_beside_mirror() {
        return redirect::natively(entry, directory, path, native);
    }
    let result =
        if entry.is_detour { native(AT_FDCWD, entry.real_path_and_end().as_ptr()) } else { native(directory, path) };
    if result == 0 {
        entry.make_mirror();
    }
    result
}
