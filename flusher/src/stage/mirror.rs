//! Mirrors of directories: populate (stubs for what the store holds), and evict (a file's data leaves the stage).
//!
//! A mirror at or below a pattern's fixed prefix carries [`layout::POPULATED_BIT`]: it shows every name that Sheaf
//! holds in that directory, so a name that is absent in it is not held. It is built aside and moved in, complete, in
//! one step.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rustix::fs::{
    AtFlags, FallocateFlags, Gid, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid,
};
use rustix::io::Errno;
use sheaf_common::layout::{self, POPULATED_BIT, STUB_BIT};

use super::Stage;
use super::lease::{self, Lease};
use super::tracker::{Stubs, Tracker, is_at_or_below, join};
use crate::aggregate::Attributes;
use crate::store::{Link, Node, Version, View, split};

/// Longest name in a directory, in bytes. Only an aggregate that no flusher wrote has longer ones.
const NAME_MAX: usize = 255;
/// Name in the stage's scratch directory of what is about to be put into a mirror that is there already.
const CAUGHT_UP: &str = "caught-up";

/// What is to be populated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The directory.
    Directory,
    /// The directory and all that are below it.
    Subtree,
}

/// Makes the mirror of a directory and of all its ancestors down from its zone, each with what `view` holds in it; the
/// same for directories that hold other names of its files, so that every file has all its names. The stubs that it
/// made are added to `stubs`, also when it fails then.
///
/// # Errors
/// `ENOENT` when neither the parallel file system nor the store knows the directory, `EINVAL` when it is in no zone,
/// or what the file systems answer.
pub fn populate(
    stage: &Stage,
    tracker: &mut Tracker,
    zones: &[Vec<u8>],
    view: &View,
    (directory, extent): (&[u8], Extent),
    stubs: &mut Stubs,
) -> Result<(), Errno> {
    let mut filled = Filled { stubs, beside: Vec::new() };
    let mut directories = vec![directory.to_vec()];
    while let Some(directory) = directories.pop() {
        populate_path(stage, tracker, zones, view, &directory, &mut filled)?;
        if extent == Extent::Subtree {
            let below = view.children(&directory).filter(|(_, node)| matches!(node, Node::Directory(_)));
            let below = below.map(|(name, _)| join(&directory, name));
            // A mirror's directories are all real: one that is missing now was removed.
            let is_there = |path: &Vec<u8>| fs::symlink_metadata(absolute(path)).is_ok_and(|found| found.is_dir());
            directories.extend(below.filter(is_there));
        }
    }
    while let Some(beside) = filled.beside.pop() {
        // A file that has lost a name is still a file.
        if let Err(error) = populate_path(stage, tracker, zones, view, &beside, &mut filled) {
            log::warn!("/{}, with other names of files: {error}", beside.escape_ascii());
        }
    }
    Ok(())
}

/// What populating has made.
struct Filled<'a> {
    stubs: &'a mut Stubs,
    /// Directories that hold other names of the same files.
    beside: Vec<Vec<u8>>,
}

fn populate_path(
    stage: &Stage,
    tracker: &mut Tracker,
    zones: &[Vec<u8>],
    view: &View,
    directory: &[u8],
    filled: &mut Filled<'_>,
) -> Result<(), Errno> {
    let zone = zones
        .iter()
        .filter(|zone| is_at_or_below(directory, zone))
        .min_by_key(|zone| zone.len())
        .ok_or(Errno::INVAL)?;
    let walk = stage.tree_path(split(zone).0);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&walk).map_err(errno)?;
    let mut end = zone.len();
    loop {
        populate_one(stage, tracker, view, &directory[..end], filled)?;
        let Some(rest) = directory.get(end + 1..) else { return Ok(()) };
        end += 1 + rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    }
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

fn populate_one(
    stage: &Stage,
    tracker: &mut Tracker,
    view: &View,
    directory: &[u8],
    filled: &mut Filled<'_>,
) -> Result<(), Errno> {
    let location = stage.tree_path(directory);
    let existing = fs::symlink_metadata(&location).ok();
    if existing.as_ref().is_some_and(|metadata| metadata.mode() & POPULATED_BIT != 0 || !metadata.is_dir()) {
        return Ok(());
    }
    let real = real_directory(view, directory)?;
    let aside = stage.path(layout::SCRATCH).join(OsStr::from_bytes(&layout::hex_name(directory)));
    let _ = fs::remove_dir_all(&aside);
    fs::DirBuilder::new().mode(0o700).create(&aside).map_err(errno)?;
    fill(stage, tracker, view, directory, &real, &aside, filled)?;
    let writable = rustix::fs::access(&real, rustix::fs::Access::WRITE_OK).is_ok();
    let mode = if writable { 0o700 } else { 0o500 } | take_group(&real, &aside);
    tracker.watches().add(directory, &aside).map_err(errno)?;
    if existing.is_some() {
        // A walk-through directory became a mirror because the patterns changed: what is in it goes along.
        for entry in fs::read_dir(&location).map_err(errno)? {
            let entry = entry.map_err(errno)?;
            fs::rename(entry.path(), aside.join(entry.file_name())).map_err(errno)?;
        }
    }
    rustix::fs::chmod(&aside, Mode::from_raw_mode(0o700 | POPULATED_BIT))?;
    match rename_into(&aside, &location) {
        // The program has just made it itself, and put something in it.
        Err(Errno::NOTEMPTY | Errno::EXIST) => return fs::remove_dir_all(&aside).map_err(errno),
        result => result?,
    }
    rustix::fs::chmod(&location, Mode::from_raw_mode(mode | POPULATED_BIT))
}

/// Files that are made in a directory with the set-group-ID bit get its group: so do those in its mirror, if it may
/// have that group. Yields the bit, if it is set.
fn take_group(real: &Path, mirror: &Path) -> u32 {
    match fs::metadata(real) {
        Ok(metadata) if metadata.mode() & libc::S_ISGID != 0 => {
            let group = Some(Gid::from_raw(metadata.gid()));
            rustix::fs::chown(mirror, None, group).map_or(0, |()| libc::S_ISGID)
        }
        _ => 0,
    }
}

/// Moves a mirror to its place, also into one whose real directory may not be written to.
pub(super) fn rename_into(aside: &Path, location: &Path) -> Result<(), Errno> {
    in_writable(location, || rustix::fs::rename(aside, location))
}

/// Moves something to its place in a mirror, also where the real directory may not be written to.
fn in_writable(location: &Path, act: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    let parent = location.parent().ok_or(Errno::INVAL)?;
    match act() {
        Err(Errno::ACCESS) => {}
        result => return result,
    }
    let mode = Mode::from_raw_mode(fs::metadata(parent).map_err(errno)?.mode() & 0o7777);
    rustix::fs::chmod(parent, mode | Mode::WUSR)?;
    let result = act();
    rustix::fs::chmod(parent, mode)?;
    result
}

/// The real directory, made anew when only the store knows it (a store that was moved to another file system).
fn real_directory(view: &View, directory: &[u8]) -> Result<PathBuf, Errno> {
    let real = absolute(directory);
    match fs::metadata(&real) {
        Ok(metadata) if metadata.is_dir() => return Ok(real),
        Ok(_) => return Err(Errno::NOTDIR),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(errno(error)),
        Err(_) => {}
    }
    let known = matches!(view.get(directory), Some(Node::Directory(_))) || view.children(directory).next().is_some();
    if !known {
        return Err(Errno::NOENT);
    }
    fs::create_dir_all(&real).map_err(errno)?;
    Ok(real)
}

/// The real path of a canonical path.
pub fn absolute(path: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec([b"/", path].concat()))
}

/// Puts a stub or link for each name that the store holds into the directory being built.
fn fill(
    stage: &Stage,
    tracker: &mut Tracker,
    view: &View,
    directory: &[u8],
    real: &Path,
    aside: &Path,
    filled: &mut Filled<'_>,
) -> Result<(), Errno> {
    let mut unmanaged: HashMap<Vec<u8>, PathBuf> = HashMap::new();
    if view.children(directory).next().is_some() {
        for entry in fs::read_dir(real).map_err(errno)? {
            let entry = entry.map_err(errno)?;
            unmanaged.insert(entry.file_name().into_vec(), entry.path());
        }
    }
    let mut origins: HashMap<_, PathBuf> = HashMap::new();
    for (name, node) in view.children(directory) {
        let path = join(directory, name);
        let place = aside.join(OsStr::from_bytes(name));
        if name.len() > NAME_MAX {
            log::error!("/{}: no file can have a name of {} bytes", path.escape_ascii(), name.len());
            continue;
        }
        if let Some(beside) = unmanaged.get(name)
            && newer_outside(stage, &path, node, beside)
        {
            tracker.superseded_outside(&path);
            continue;
        }
        if matches!(node, Node::Directory(_)) {
            // Afterwards a directory that the store knows and that is missing is one that a program removed.
            match fs::create_dir(real.join(OsStr::from_bytes(name))) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(errno(error)),
                _ => continue,
            }
        }
        let stat = match origins.get(&node.origin()) {
            Some(first) => link(first, &place)?,
            None => {
                // All names of a file are looked for once: a directory may hold thousands of them.
                let names = view.names(node);
                let others = names.iter().map(|name| split(name).0).filter(|d| *d != directory);
                filled.beside.extend(others.map(<[u8]>::to_vec));
                if !names.is_empty() {
                    origins.insert(node.origin(), place.clone());
                }
                match other_name(stage, tracker, &names, &path) {
                    Some(first) => link(&first, &place)?,
                    None => make(&place, node)?,
                }
            }
        };
        if let Node::File(version) = node {
            filled.stubs.push((stat.st_ino, version.clone()));
        }
        tracker.populated(path, &stat);
    }
    Ok(())
}

/// Puts a name into a mirror that another node has published since the mirror was made. `know` hears of the stub before
/// anybody can open it. Never takes the place of anything. False when the name is there by now, or a newer file on its
/// real path.
///
/// # Errors
/// From the file system of the stage.
pub fn add(
    stage: &Stage,
    tracker: &mut Tracker,
    view: &View,
    (path, node): (&[u8], &Node),
    know: &mut dyn FnMut(u64),
) -> Result<bool, Errno> {
    if newer_outside(stage, path, node, &absolute(path)) {
        if fs::symlink_metadata(absolute(path)).is_ok_and(|real| !real.is_dir()) {
            tracker.superseded_outside(path);
        }
        return Ok(false);
    }
    let aside = stage.path(layout::SCRATCH).join(CAUGHT_UP);
    remove_if_there(&aside)?;
    let stat = match other_name(stage, tracker, &view.names(node), path) {
        Some(first) => link(&first, &aside)?,
        None => make(&aside, node)?,
    };
    know(stat.st_ino);
    tracker.populated(path.to_vec(), &stat);
    let location = stage.tree_path(path);
    let moved = in_writable(&location, || {
        rustix::fs::renameat_with(rustix::fs::CWD, &aside, rustix::fs::CWD, &location, RenameFlags::NOREPLACE)
    });
    if moved.is_err() {
        tracker.not_populated(path);
        remove_if_there(&aside)?;
    }
    match moved {
        Err(Errno::EXIST) => Ok(false),
        result => result.map(|()| true),
    }
}

/// Has a file of the tree stand for the newer version that another node has published under its name: the same inode
/// becomes that version's stub. False when somebody uses the file, or it has changed.
///
/// # Errors
/// From the file system of the stage.
pub fn supersede(stage: &Stage, tracker: &mut Tracker, path: &[u8], inode: u64, version: &Version) -> io::Result<bool> {
    let Some(attributes) = look_unused(&stage.tree_path(path), inode) else { return Ok(false) };
    let Some(file) = open_emptied(stage, tracker, path, (inode, &attributes))? else { return Ok(false) };
    file.set_len(version.size)?;
    restore_stub(&file, &version.attributes, version)?;
    tracker.populated(path.to_vec(), &rustix::fs::fstat(&file)?);
    lease::release(file.as_fd());
    Ok(true)
}

/// The same for a symbolic link, which nobody can have open. (A link that a program puts there between the look and the
/// move is taken for the one that was there.)
///
/// # Errors
/// From the file system of the stage.
pub fn supersede_link(
    stage: &Stage,
    tracker: &mut Tracker,
    path: &[u8],
    inode: u64,
    link: &Link,
) -> Result<bool, Errno> {
    let (aside, location) = (stage.path(layout::SCRATCH).join(CAUGHT_UP), stage.tree_path(path));
    remove_if_there(&aside)?;
    make_symlink(&aside, link)?;
    let stat = lstat(&aside)?;
    if !lstat(&location).is_ok_and(|present| present.st_ino == inode) {
        return remove_if_there(&aside).map(|()| false);
    }
    rename_into(&aside, &location)?;
    tracker.populated(path.to_vec(), &stat);
    Ok(true)
}

/// Takes away a name that another node has removed, or moved. False when somebody uses the file, or it is another.
///
/// # Errors
/// From the file system of the stage.
pub fn remove(stage: &Stage, tracker: &mut Tracker, path: &[u8], inode: u64) -> io::Result<bool> {
    let location = stage.tree_path(path);
    let Ok(stat) = rustix::fs::lstat(&location) else { return Ok(false) };
    let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile;
    let is_used = is_file && stat.st_nlink == 1 && look_unused(&location, inode).is_none();
    if stat.st_ino != inode || is_used {
        return Ok(false);
    }
    // Its removal is none of this node's.
    tracker.not_populated(path);
    in_writable(&location, || rustix::fs::unlink(&location))?;
    Ok(true)
}

/// Takes away the mirrors, at a directory and below it, of what another node has moved or removed. False when there is
/// something left in one of them.
pub fn remove_mirrors(stage: &Stage, tracker: &mut Tracker, directory: &[u8]) -> bool {
    let mut is_done = true;
    for mirror in tracker.mirrors_below(directory) {
        if fs::symlink_metadata(absolute(&mirror)).is_ok() {
            continue;
        }
        let location = stage.tree_path(&mirror);
        tracker.expect_removed(&mirror, true);
        if in_writable(&location, || rustix::fs::rmdir(&location)).is_err() {
            tracker.expect_removed(&mirror, false);
            is_done = false;
        }
    }
    is_done
}

fn remove_if_there(place: &Path) -> Result<(), Errno> {
    match rustix::fs::unlink(place) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// Where the same file lies in the tree under another of its `names`, unchanged since it was published.
fn other_name(stage: &Stage, tracker: &Tracker, names: &[Vec<u8>], path: &[u8]) -> Option<PathBuf> {
    let others = names.iter().filter(|name| *name != path && tracker.is_clean(name));
    others.map(|name| stage.tree_path(name)).find(|place| fs::symlink_metadata(place).is_ok())
}

/// A name that both the store and the parallel file system hold: whichever is newer counts. An older unmanaged file is
/// marked, so that it goes with the next publication.
fn newer_outside(stage: &Stage, path: &[u8], node: &Node, beside: &Path) -> bool {
    let Ok(metadata) = fs::symlink_metadata(beside) else { return false };
    if metadata.is_dir() {
        return !matches!(node, Node::Directory(_));
    }
    // A program may give what it writes an older time, and then its name; but nobody can set when a file was made.
    let born = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let written_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    let outside_ns = written_ns.max(born.map_or(0, |age| age.as_nanos() as i128));
    let held_ns = match node {
        Node::File(version) => i128::from(version.operation_time_ns),
        Node::Symlink(link) => i128::from(link.operation_time_ns),
        Node::Directory(_) => return true,
    };
    if outside_ns > held_ns {
        return true;
    }
    // Without the marker the older file stays, hidden: untidy, not wrong.
    let _ = stage.mark_found(&[b"/", path].concat());
    false
}

/// Gives what is at one place a second name, and yields what that is.
fn link(existing: &Path, place: &Path) -> Result<Stat, Errno> {
    rustix::fs::link(existing, place)?;
    lstat(place)
}

fn lstat(place: &Path) -> Result<Stat, Errno> {
    rustix::fs::statat(rustix::fs::CWD, place, AtFlags::SYMLINK_NOFOLLOW)
}

/// Makes what stands for a file or link until its data is asked for, and yields what it is.
fn make(place: &Path, node: &Node) -> Result<Stat, Errno> {
    match node {
        Node::File(version) => make_stub(place, version),
        Node::Symlink(link) => make_symlink(place, link),
        Node::Directory(_) => Err(Errno::ISDIR),
    }
}

/// A symbolic link with its owner (if we may set it) and times.
fn make_symlink(place: &Path, link: &Link) -> Result<Stat, Errno> {
    rustix::fs::symlink(OsStr::from_bytes(&link.target), place)?;
    let (user, group) = (Uid::from_raw(link.attributes.uid), Gid::from_raw(link.attributes.gid));
    let _ = rustix::fs::chownat(rustix::fs::CWD, place, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW);
    let times = times(link.attributes.mtime_seconds, link.attributes.mtime_nanoseconds);
    rustix::fs::utimensat(rustix::fs::CWD, place, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    lstat(place)
}

/// Sets the times of the stub with this inode, and never those of another file that has its name by now.
///
/// # Errors
/// `ESTALE` when it is another one, or what the file system of the stage answers.
pub fn set_times_of(location: &Path, inode: u64, times: &Timestamps) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(location, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    if stat.st_ino != inode || stat.st_mode & STUB_BIT == 0 {
        return Err(Errno::STALE);
    }
    let place = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::utimensat(rustix::fs::CWD, place, times, AtFlags::empty())
}

/// A modification time; the access time stays as it is, because it tells what a stub stands for ([`restore_stub`]).
pub fn times(seconds: i64, nanoseconds: u32) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
    }
}

/// A file with its size, mode and times, and no data.
fn make_stub(place: &Path, version: &Version) -> Result<Stat, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    // Mostly there is nothing to change in it then.
    let mode = Mode::from_raw_mode(mode(&version.attributes, version.size > 0));
    let file = File::from(rustix::fs::open(place, flags, mode)?);
    rustix::fs::ftruncate(&file, version.size)?;
    restore_stub(&file, &version.attributes, version)
}

/// Sets what a file's record says about it; as a stub when its data is missing.
///
/// # Errors
/// From fchmod(2) or futimens(2). Owners that we may not set are left.
pub fn restore(file: &File, attributes: &Attributes, stub: bool) -> io::Result<()> {
    set(file, attributes, stub, &times(attributes.mtime_seconds, attributes.mtime_nanoseconds))?;
    Ok(())
}

/// The same for one that becomes a stub of a version (without any data it is none). It bears the version's mark from
/// then on, in the nanoseconds of its access time: names, sizes and modification times of files can be alike, and a
/// flusher that dies may leave a stub under another's name.
fn restore_stub(file: &File, attributes: &Attributes, version: &Version) -> Result<Stat, Errno> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: version.attributes.mtime_seconds, tv_nsec: version.mark_ns().into() },
        ..times(attributes.mtime_seconds, attributes.mtime_nanoseconds)
    };
    set(file, attributes, version.size > 0, &times)
}

/// The permissions of a file in the tree, with the mark if it is a stub.
fn mode(attributes: &Attributes, stub: bool) -> u32 {
    attributes.mode & 0o7777 & !STUB_BIT | if stub { STUB_BIT } else { 0 }
}

/// Sets times, owner and mode, and yields what the file is then.
fn set(file: &File, attributes: &Attributes, stub: bool, times: &Timestamps) -> Result<Stat, Errno> {
    rustix::fs::futimens(file, times)?;
    let (stat, mode) = (rustix::fs::fstat(file)?, mode(attributes, stub));
    let has_owner = (stat.st_uid, stat.st_gid) == (attributes.uid, attributes.gid);
    if has_owner && stat.st_mode & 0o7777 == mode {
        return Ok(stat);
    }
    if !has_owner {
        let _ = rustix::fs::fchown(file, Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)));
    }
    // Behind the owner: a change of that takes bits away.
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
    rustix::fs::fstat(file)
}

/// Frees all data of a file and keeps its size.
///
/// # Errors
/// From fallocate(2).
pub fn drop_data(file: &File, size: u64) -> io::Result<()> {
    // A partial page at the end would be zeroed and kept; pages have at most 64 KiB.
    let length = size.max(1).next_multiple_of(64 * 1024);
    Ok(rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, length)?)
}

/// Frees the data of a published file: the file becomes a stub. False when somebody has it open, or it has changed, or
/// the stage has no room for a note of its times.
///
/// # Errors
/// From the file system of the stage.
pub fn evict(stage: &Stage, tracker: &mut Tracker, path: &[u8], inode: u64, version: &Version) -> io::Result<bool> {
    let location = stage.tree_path(path);
    // First what leaves no trace when it fails: closing a file that was opened for writing looks like a change.
    let Some(attributes) = look_unused(&location, inode) else { return Ok(false) };
    if let Err(error) = stage.note_times(inode, &attributes) {
        log::warn!("/{} is not evicted: its times cannot be noted: {error}", path.escape_ascii());
        return Ok(false);
    }
    // If it fails in the middle, the note says what the times were.
    let evicted = evict_noted(stage, tracker, path, (inode, &attributes), version)?;
    stage.forget_times(inode);
    Ok(evicted)
}

fn evict_noted(
    stage: &Stage,
    tracker: &mut Tracker,
    path: &[u8],
    (inode, attributes): (u64, &Attributes),
    version: &Version,
) -> io::Result<bool> {
    let Some(file) = open_emptied(stage, tracker, path, (inode, attributes))? else { return Ok(false) };
    restore_stub(&file, attributes, version)?;
    tracker.evicted(path);
    lease::release(file.as_fd());
    Ok(true)
}

/// Opens a file as [`open_unused`] does, marked as a stub and with its data gone.
fn open_emptied(
    stage: &Stage,
    tracker: &mut Tracker,
    path: &[u8],
    known: (u64, &Attributes),
) -> io::Result<Option<File>> {
    let Some(file) = open_unused(stage, tracker, path, known)? else { return Ok(None) };
    let stat = rustix::fs::fstat(&file)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(stat.st_mode & 0o7777 | STUB_BIT))?;
    drop_data(&file, stat.st_size as u64)?;
    Ok(Some(file))
}

/// Opens a file under a lease that keeps everybody else from opening it. Nothing when somebody has it open, it is
/// another or has changed. A first look ([`look_unused`]) has said what it is like.
fn open_unused(
    stage: &Stage,
    tracker: &mut Tracker,
    path: &[u8],
    (inode, attributes): (u64, &Attributes),
) -> io::Result<Option<File>> {
    let Ok(file) = open_for_writing(&stage.tree_path(path)) else { return Ok(None) };
    // A program that changes the mode of such a file cannot open it, and so cannot keep it from being changed
    // meanwhile.
    if file.metadata()?.mode() & 0o600 == 0 {
        return Ok(None);
    }
    if !lease::take_write(file.as_fd()).is_ok_and(|lease| lease == Lease::Granted) {
        return Ok(None);
    }
    // Nobody can have the file open now. Whatever was written to it before is in the queue.
    let changes = tracker.drain()?;
    tracker.apply_all(changes)?;
    let stat = rustix::fs::fstat(&file)?;
    let is_same = stat.st_ino == inode && stat.st_nlink == 1 && super::tracker::attributes(&stat) == *attributes;
    if tracker.overflowed() || !tracker.is_clean(path) || !is_same {
        lease::release(file.as_fd());
        return Ok(None);
    }
    Ok(Some(file))
}

/// What a file is like that no descriptor has open. Files of several names are left alone, too.
fn look_unused(location: &Path, inode: u64) -> Option<Attributes> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(location, flags, Mode::empty()) else {
        // One that its owner may not read can only be looked at.
        let stat = rustix::fs::lstat(location).ok()?;
        return (stat.st_ino == inode && stat.st_nlink == 1).then(|| super::tracker::attributes(&stat));
    };
    let unused = lease::take_write(file.as_fd()).is_ok_and(|lease| lease == Lease::Granted);
    lease::release(file.as_fd());
    let stat = rustix::fs::fstat(&file).ok()?;
    (unused && stat.st_ino == inode && stat.st_nlink == 1).then(|| super::tracker::attributes(&stat))
}

/// Opens a file for writing even if its mode forbids that to its owner.
fn open_for_writing(location: &Path) -> Result<File, Errno> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(location, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {}
        result => return result.map(File::from),
    }
    let mode = Mode::from_raw_mode(fs::symlink_metadata(location).map_err(errno)?.mode() & 0o7777);
    rustix::fs::chmod(location, mode | Mode::RUSR | Mode::WUSR)?;
    let result = rustix::fs::open(location, flags, Mode::empty());
    rustix::fs::chmod(location, mode)?;
    result.map(File::from)
}
