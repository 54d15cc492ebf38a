//! Which name of ours a path means: whatever spelling reaches a file, it has one canonical path.
//!
//! Most paths of a program are rejected here without a system call. Of the others every component is looked at: where
//! Sheaf can hold names the tree first, then the real path. Nothing here may keep a file descriptor or change
//! anything, but ask the flusher to populate a directory of an existing store.

use core::ffi::{CStr, c_char, c_int};
use core::sync::atomic::{AtomicU64, Ordering};

use sheaf_common::layout::POPULATED_BIT;
use sheaf_common::pattern;

use crate::configuration::{self, Configuration};
use crate::durable;
use crate::flusher;
use crate::log;
use crate::scratch::{Scratch, Slot, Text, TooLong};
use crate::store;
use crate::system::{self, AT_FDCWD, Errno, Stat};

/// Longest path that the kernel takes, without its NUL.
const PATH_MAX: usize = 4095;
/// No processor that Linux runs on maps memory in smaller pieces.
const SMALLEST_PAGE: usize = 4096;
/// Symbolic links that one path may go through, as in the kernel.
const LINKS_MAX: u32 = 40;
/// What the kernel puts behind the path of a file that has been removed.
const DELETED: &[u8] = b" (deleted)";
/// Directories that are remembered as leading nowhere near a checkpoint; a power of two.
const FOREIGN_DIRECTORIES: usize = 4096;

static FOREIGN: [AtomicU64; FOREIGN_DIRECTORIES] = [const { AtomicU64::new(0) }; FOREIGN_DIRECTORIES];
/// Part of every hash, so that all that is remembered is forgotten at once.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// What to do with a symbolic link as the last component.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// The name itself is meant; with slashes behind it, what it leads to.
    Entry,
    /// The name in its directory is meant, whatever is there and also with slashes behind it.
    Name,
    /// What it leads to is meant.
    Follow,
}

/// What a path is resolved for.
#[derive(Clone, Copy)]
struct Aim {
    last: Last,
    /// To make a file, exclusively, if there is none: then what the tree has is looked at once less.
    creates: bool,
    /// To put something new in the place of whatever is there: then it need not be known what the store has.
    replaces: bool,
}

/// What is at a name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file or symbolic link in the tree.
    Managed,
    /// A directory that can hold managed names.
    Directory,
    /// Neither; perhaps something on the real path, perhaps nothing.
    Unmanaged,
}

/// A name that concerns Sheaf.
pub struct Entry {
    scratch: Scratch,
    base: usize,
    /// What is there.
    pub kind: Kind,
    /// Whether it is a checkpoint path.
    pub is_checkpoint: bool,
    /// Whether it is a directory (or would be one) that can hold managed names.
    pub is_zone: bool,
    /// Whether its directory has a mirror in the tree.
    pub has_parent_mirror: bool,
    /// Whether the path ends in a slash, so that only a directory will do.
    pub wants_directory: bool,
    /// Whether the path ends in a dot or two, so that it names no entry of a directory.
    pub ends_in_dots: bool,
    /// Whether the path goes through a managed symbolic link, which the kernel cannot follow.
    pub is_detour: bool,
}

/// What a path means to Sheaf.
pub enum Resolution {
    /// Nothing: the call runs untouched.
    Foreign,
    /// The call fails so.
    Failed(Errno),
    /// A name that concerns Sheaf.
    Ours(Entry),
}

impl Entry {
    /// The name in the tree.
    pub fn tree_path(&self) -> &CStr {
        self.scratch.tree.c_str()
    }

    /// The canonical path.
    pub fn real_path(&self) -> &CStr {
        match self.scratch.tree.c_str_from(self.base) {
            path if path.is_empty() => c"/",
            path => path,
        }
    }

    /// What the kernel is to be given in the place of a detour, and only then: the canonical path with the same end.
    pub fn real_path_and_end(&self) -> &CStr {
        self.scratch.pending.c_str()
    }

    /// The canonical path's bytes.
    pub fn canonical(&self) -> &[u8] {
        self.real_path().to_bytes()
    }

    /// The directory that holds the name, canonical; empty for the root.
    pub fn parent(&self) -> &[u8] {
        parent(self.canonical())
    }

    /// What is in the tree: of files and links as they are there, with the mark of a stub.
    pub fn staged(&self) -> Option<&Stat> {
        self.scratch.staged.get()
    }

    /// What is at the real path; not looked at when the tree has the name.
    pub fn real(&self) -> Option<&Stat> {
        self.scratch.real.get()
    }

    /// Puts what the kernel is to be given in the place of a detour where [`Entry::real_path_and_end`] finds it.
    fn keep_end(&mut self) -> Result<(), TooLong> {
        let Slot { tree, pending, .. } = &mut *self.scratch;
        pending.set(tree.as_bytes().get(self.base..).unwrap_or_default())?;
        match (self.ends_in_dots, self.wants_directory || pending.len() == 0) {
            (true, _) => pending.push(b"/."),
            (false, true) => pending.push(b"/"),
            (false, false) => Ok(()),
        }
    }

    /// The name in the tree, and a text buffer that the resolution no longer needs.
    pub fn tree_path_and_spare(&mut self) -> (&CStr, &mut Text) {
        let Slot { tree, pending, .. } = &mut *self.scratch;
        (tree.c_str(), pending)
    }

    /// Whether the tree holds a file without its data.
    pub fn is_stub(&self) -> bool {
        self.staged().is_some_and(is_stub)
    }

    /// Whether the tree holds a regular file.
    pub fn is_regular(&self) -> bool {
        self.staged().is_some_and(is_regular)
    }

    /// Whether the directory itself has a mirror.
    pub fn has_mirror(&self) -> bool {
        is_mirror(self.tree_path())
    }

    /// Makes a mirror of the directory, which is new or empty, so that nothing is missing in it.
    pub fn make_mirror(&self) {
        let _ = system::mkdirat(AT_FDCWD, self.tree_path(), POPULATED_BIT | 0o700);
        self.update_mirror_mode();
    }

    /// Gives the mirror its mode: what the program may do in it is what it may do in the real directory. The umask has
    /// no part in it. Files that are made in a directory with the set-group-ID bit get its group: so do those in its
    /// mirror.
    pub fn update_mirror_mode(&self) {
        let access = if system::may_write(self.real_path()).is_ok() { 0o700 } else { 0o500 };
        let inherited = match system::lstat(self.real_path()) {
            Ok(stat) if stat.st_mode & libc::S_ISGID != 0 => {
                system::change_group(self.tree_path(), stat.st_gid).map_or(0, |()| libc::S_ISGID)
            }
            _ => 0,
        };
        let _ = system::chmod(self.tree_path(), POPULATED_BIT | access | inherited);
    }

    /// Has the tree show what the store may hold in the directory itself. EIO when it may, and nobody can say what.
    pub fn populate_from_store(&self, configuration: &Configuration) -> system::Result<()> {
        let has_mirror = self.has_mirror();
        if has_mirror {
            flusher::refresh(configuration);
        }
        learn(configuration, has_mirror, self.canonical())
            .or_else(|error| store::refuse(configuration, self.canonical(), error))
    }

    /// Fails with EIO where the store may hold the name, and nobody can say whether it does.
    pub fn expect_known(&self, configuration: &Configuration) -> system::Result<()> {
        let may_be_held = self.is_checkpoint || self.is_zone;
        if !may_be_held || !configuration.is_zone(self.parent()) {
            return Ok(());
        }
        learn(configuration, self.has_parent_mirror, self.parent())
            .or_else(|error| store::refuse(configuration, self.canonical(), error))
    }

    /// Whether the directory that holds the name has a mirror, also where the name itself is excluded: such a name is
    /// not looked for in the tree.
    pub fn is_beside_mirror(&mut self) -> bool {
        let Slot { tree, other, .. } = &mut *self.scratch;
        self.has_parent_mirror || other.set(parent(tree.as_bytes())).is_ok() && is_mirror(other.c_str())
    }

    /// Gives the directory that holds the name a mirror; false when there can be none.
    pub fn make_parent_mirror(&mut self, configuration: &Configuration) -> bool {
        if !self.has_parent_mirror {
            self.has_parent_mirror = flusher::populate(configuration, self.parent()) == Ok(true);
        }
        self.has_parent_mirror
    }
}

/// Has the tree show what the store may hold in a directory, with or without a mirror so far.
fn learn(configuration: &Configuration, has_mirror: bool, directory: &[u8]) -> system::Result<()> {
    match has_mirror {
        true if flusher::has_caught_up(configuration) => Ok(()),
        true => flusher::catch_up(configuration).map(drop),
        false if store::exists(configuration) => flusher::populate(configuration, directory).map(drop),
        false => Ok(()),
    }
}

/// What is at a path in the tree; nothing in a stage that a stranger has made.
fn look_into_tree(path: &CStr) -> system::Result<Stat> {
    match configuration::active() {
        Some(configuration) if configuration.has_stage() => system::lstat(path),
        _ => Err(Errno(libc::ENOENT)),
    }
}

/// Whether a path in the tree is a mirror that shows every name that Sheaf holds in its directory. Others are only
/// there to be walked through.
fn is_mirror(path: &CStr) -> bool {
    look_into_tree(path).is_ok_and(|stat| is_directory(&stat) && stat.st_mode & POPULATED_BIT != 0)
}

/// Whether this is a regular file.
pub fn is_regular(stat: &Stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFREG
}

/// Whether this is a directory.
pub fn is_directory(stat: &Stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

/// Whether this is a symbolic link.
pub fn is_link(stat: &Stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFLNK
}

/// Whether this is a file in the tree without its data.
pub fn is_stub(stat: &Stat) -> bool {
    is_regular(stat) && stat.st_mode & sheaf_common::layout::STUB_BIT != 0
}

/// The directory part of an absolute path without its final slash; empty for the root.
#[inline]
pub fn parent(path: &[u8]) -> &[u8] {
    pattern::last_slash(path).and_then(|slash| path.get(..slash)).unwrap_or_default()
}

/// The last name of a path, without slashes behind it; empty for the root.
fn last_name(path: &[u8]) -> &[u8] {
    path.split(|&byte| byte == b'/').rfind(|name| !name.is_empty()).unwrap_or_default()
}

/// Forgets which directories are foreign: the program changes what names mean.
pub fn forget_foreign() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// Of a directory's path, for as long as it may be remembered: other processes change what names mean, too, and nobody
/// tells this one.
fn hash(bytes: &[u8]) -> u64 {
    let fold = |hash: u64, word: u64| {
        let product = u128::from(hash ^ word) * 0x9e37_79b9_7f4a_7c15;
        product as u64 ^ (product >> 64) as u64
    };
    let age = system::moment().rotate_right(16) ^ GENERATION.load(Ordering::Relaxed);
    let start = fold(age, bytes.len() as u64);
    let words = bytes.as_chunks().0.iter().fold(start, |hash, word| fold(hash, u64::from_le_bytes(*word)));
    // The last word overlaps the one before.
    let hash = match bytes.last_chunk() {
        Some(word) => fold(words, u64::from_le_bytes(*word)),
        None => bytes.iter().fold(words, |hash, byte| fold(hash, u64::from(*byte))),
    };
    hash | 1
}

fn foreign_entry(hash: u64) -> Option<&'static AtomicU64> {
    FOREIGN.get((hash >> 40) as usize % FOREIGN_DIRECTORIES)
}

fn is_foreign(hash: u64) -> bool {
    foreign_entry(hash).is_some_and(|entry| entry.load(Ordering::Relaxed) == hash)
}

/// Whether no text can be at an address: null, an error number, or close to either. The kernel answers such calls with
/// EFAULT, where a look would crash.
#[inline]
pub fn is_no_address(text: *const c_char) -> bool {
    (text as usize).wrapping_add(SMALLEST_PAGE) < 2 * SMALLEST_PAGE
}

/// Whether a path ends in a slash.
///
/// # Safety
/// `path` must be a C string, or [`is_no_address`].
pub unsafe fn ends_in_slash(path: *const c_char) -> bool {
    // SAFETY: the caller's contract.
    !is_no_address(path) && unsafe { CStr::from_ptr(path) }.to_bytes().last() == Some(&b'/')
}

/// What the path `path` relative to `directory` means.
///
/// # Safety
/// `path` must be a C string, or [`is_no_address`].
#[inline]
pub unsafe fn resolve(directory: c_int, path: *const c_char, last: Last) -> Resolution {
    // SAFETY: the caller's contract.
    unsafe { resolve_for(directory, path, Aim { last, creates: false, replaces: false }) }
}

/// The same, for who puts something new in the place of whatever is there.
///
/// # Safety
/// As for [`resolve`].
#[inline]
pub unsafe fn resolve_to_replace(directory: c_int, path: *const c_char, last: Last) -> Resolution {
    // SAFETY: the caller's contract.
    unsafe { resolve_for(directory, path, Aim { last, creates: false, replaces: true }) }
}

/// The same, for who makes a file at a name that neither the tree nor the real path has, with O_EXCL, and looks again
/// when it is there; with `replaces` as [`resolve_to_replace`].
///
/// # Safety
/// As for [`resolve`].
#[inline]
pub unsafe fn resolve_to_create(directory: c_int, path: *const c_char, last: Last, replaces: bool) -> Resolution {
    // SAFETY: the caller's contract.
    unsafe { resolve_for(directory, path, Aim { last, creates: true, replaces }) }
}

/// What costs most calls nothing more than this decision stands here, the rest in another frame.
#[inline]
unsafe fn resolve_for(directory: c_int, path: *const c_char, aim: Aim) -> Resolution {
    let Some(configuration) = configuration::active() else { return Resolution::Foreign };
    if is_no_address(path) {
        return Resolution::Foreign;
    }
    // SAFETY: the caller's contract.
    let path = unsafe { CStr::from_ptr(path) };
    if is_plainly_foreign(configuration, path, aim.last) {
        log::meaning(path.to_bytes(), || Resolution::Foreign.meaning());
        return Resolution::Foreign;
    }
    let resolution = resolve_further(configuration, directory, path, aim).unwrap_or(Resolution::Foreign);
    log::meaning(path.to_bytes(), || resolution.meaning());
    resolution
}

impl Resolution {
    /// Whether the path went, or may have gone, through a managed link.
    fn is_led_astray(&self) -> bool {
        match self {
            Resolution::Foreign => false,
            Resolution::Failed(_) => true,
            Resolution::Ours(entry) => entry.is_detour,
        }
    }

    /// The decision, for people.
    fn meaning(&self) -> &'static str {
        match self {
            Resolution::Foreign => {
                "none of Sheaf's: it matches no pattern, is excluded, or lies in a directory that leads nowhere near one"
            }
            Resolution::Failed(_) => {
                "the call fails: as it would natively, or because what the store holds cannot be learned"
            }
            Resolution::Ours(entry) => match entry.kind {
                Kind::Managed if entry.is_stub() => {
                    "captured, its data only in the store: brought back when it is opened"
                }
                Kind::Managed => "captured: in the stage",
                Kind::Directory => "a directory that can hold captured files: real, with their names added",
                Kind::Unmanaged if !entry.is_checkpoint => {
                    "beside checkpoint paths, but it matches no pattern or is excluded: left alone"
                }
                Kind::Unmanaged if entry.real().is_some() => {
                    "a checkpoint path with a file from before: captured when it is written anew"
                }
                Kind::Unmanaged => "a checkpoint path that does not exist: captured when it is made",
            },
        }
    }
}

/// Whether an absolute path can be told without a look at its directory.
#[inline]
fn is_plainly_foreign(configuration: &Configuration, path: &CStr, last: Last) -> bool {
    let text = path.to_bytes();
    text.first() == Some(&b'/')
        && (configuration.is_system_path(text) || leads_nowhere(configuration, text, path, last))
}

/// The hash of a path's directory part, if the last component is a plain name and not on the way to a checkpoint.
fn directory_hash(configuration: &Configuration, text: &[u8]) -> Option<u64> {
    let directory = parent(text);
    match text.get(directory.len() + 1..) {
        None | Some(b"" | b"." | b"..") => None,
        Some(name) if configuration.is_in_prefix(name) => None,
        Some(_) => Some(hash(directory)),
    }
}

/// Whether the directory part is known as foreign, and the last component does not lead away from it.
fn leads_nowhere(configuration: &Configuration, text: &[u8], path: &CStr, last: Last) -> bool {
    if !directory_hash(configuration, text).is_some_and(is_foreign) {
        return false;
    }
    // One byte is enough to learn whether it is a link.
    last != Last::Follow || system::readlinkat(AT_FDCWD, path, &mut [0]).is_err()
}

#[inline(never)]
fn resolve_further(
    configuration: &'static Configuration,
    directory: c_int,
    path: &CStr,
    aim: Aim,
) -> Option<Resolution> {
    let text = path.to_bytes();
    if text.first()? != &b'/' {
        return resolve_relative(configuration, directory, text, aim);
    }
    if text.len() > PATH_MAX {
        return None;
    }
    let mut scratch = Scratch::claim()?;
    scratch.pending.set(text).ok()?;
    Some(walk(configuration, scratch, configuration.starts_in_zone(text), aim))
}

fn resolve_relative(
    configuration: &'static Configuration,
    directory: c_int,
    path: &[u8],
    aim: Aim,
) -> Option<Resolution> {
    let mut scratch = Scratch::claim()?;
    let path = set_to_start(&mut scratch, directory, path)?;
    let pending = &mut scratch.pending;
    if pending.as_bytes().first() != Some(&b'/') {
        return None;
    }
    if pending.len() > 1 {
        pending.push(b"/").ok()?;
    }
    pending.push(path).ok()?;
    let text = pending.as_bytes();
    let start = configuration.starts_in_zone(text);
    if start.is_none()
        && (configuration.is_system_path(text) || leads_nowhere(configuration, text, pending.c_str(), aim.last))
    {
        return None;
    }
    match walk(configuration, scratch, start, aim) {
        // A file's name may be a managed link by now.
        resolution if directory != AT_FDCWD && resolution.is_led_astray() && !is_open_directory(directory) => None,
        resolution => Some(resolution),
    }
}

fn is_open_directory(fd: c_int) -> bool {
    system::fstat(fd).is_ok_and(|stat| is_directory(&stat))
}

/// Puts the path of a directory into the slot's pending text; yields what is left of `path`, which starts there.
fn set_to_start<'a>(slot: &mut Slot, directory: c_int, path: &'a [u8]) -> Option<&'a [u8]> {
    let current = |room: &mut [u8]| system::getcwd(room).map(|length| length.saturating_sub(1));
    if directory == AT_FDCWD && slot.pending.fill(current).is_ok() {
        return Some(path);
    }
    read_descriptor(slot, directory)?;
    if slot.pending.as_bytes().ends_with(DELETED) { set_above_removed(slot, directory, path) } else { Some(path) }
}

/// From a directory that has been removed, only the one that held it can be reached.
#[cold]
fn set_above_removed<'a>(slot: &mut Slot, directory: c_int, path: &'a [u8]) -> Option<&'a [u8]> {
    let is_at = |path: &CStr, stat: Stat| {
        system::statat(AT_FDCWD, path, 0).is_ok_and(|seen| (seen.st_dev, seen.st_ino) == (stat.st_dev, stat.st_ino))
    };
    if is_at(slot.pending.c_str(), system::statat(directory, c".", 0).ok()?) {
        return Some(path);
    }
    let mut rest = path;
    while let Some(left) = rest.strip_prefix(b"./") {
        rest = left.get(left.iter().take_while(|&&byte| byte == b'/').count()..)?;
    }
    let rest = rest.strip_prefix(b"..").filter(|rest| matches!(rest.first(), None | Some(b'/')))?;
    let length = parent(slot.pending.as_bytes()).len();
    slot.pending.truncate(length);
    if !is_at(slot.pending.c_str(), system::statat(directory, c"..", 0).ok()?) {
        return None;
    }
    Some(if rest.iter().all(|&byte| byte == b'/') { b"." } else { rest })
}

/// What the kernel calls the file behind a descriptor, in the slot's pending text.
pub fn path_of(fd: c_int) -> Option<Scratch> {
    let mut scratch = Scratch::claim()?;
    read_descriptor(&mut scratch, fd)?;
    Some(scratch)
}

/// What a symbolic link says, in the slot's pending text; of those below /proc, what the kernel calls the open file.
pub fn target_of(directory: c_int, path: &CStr) -> Option<Scratch> {
    let mut scratch = Scratch::claim()?;
    scratch.pending.fill(|room| system::readlinkat(directory, path, room)).ok()?;
    Some(scratch)
}

/// A path that leads to the open file itself, whatever its name.
pub fn set_to_descriptor(path: &mut Text, fd: c_int) -> Option<()> {
    if fd == AT_FDCWD {
        return path.set(b"/proc/self/cwd").ok();
    }
    path.set(b"/proc/self/fd/").ok()?;
    path.push(configuration::decimal(u32::try_from(fd).ok()?, &mut [0; 10])).ok()
}

fn read_descriptor(slot: &mut Slot, fd: c_int) -> Option<()> {
    let Slot { pending, other, .. } = slot;
    set_to_descriptor(other, fd)?;
    pending.fill(|room| system::readlinkat(AT_FDCWD, other.c_str(), room)).ok()
}

/// What the directory behind a descriptor means.
pub fn resolve_descriptor(fd: c_int) -> Resolution {
    let Some(configuration) = configuration::active() else { return Resolution::Foreign };
    let Some(scratch) = path_of(fd) else { return Resolution::Foreign };
    match configuration.starts_in_zone(scratch.pending.as_bytes()) {
        None => Resolution::Foreign,
        start => walk(configuration, scratch, start, Aim { last: Last::Entry, creates: false, replaces: false }),
    }
}

/// Resolves an existing absolute path as the kernel does, into the slot's tree text. False when it does not exist.
pub fn resolve_natively(slot: &mut Slot, path: &[u8]) -> bool {
    slot.tree.truncate(0);
    if slot.pending.set(path).is_err() {
        return false;
    }
    let mut walker = Walker::new(None, slot, 0);
    let found = walker.go(Last::Follow).is_ok();
    found && system::exists(walker.real()) && (walker.slot.tree.len() > 0 || walker.slot.tree.set(b"/").is_ok())
}

/// Why a walk ended early.
enum Stop {
    /// The kernel will say what is wrong, or the path is none of ours.
    Foreign,
    /// The tree says what is wrong.
    Failed(Errno),
}

impl From<TooLong> for Stop {
    fn from(_: TooLong) -> Stop {
        Stop::Foreign
    }
}

/// One walk along a path. The slot's tree text grows to the name in the tree.
struct Walker<'a> {
    configuration: Option<&'static Configuration>,
    slot: &'a mut Slot,
    /// Length of the tree's own path.
    base: usize,
    /// How much of the pending text has been walked.
    position: usize,
    links: u32,
    creates: bool,
    replaces: bool,
    /// Whether the mirrors show what other nodes had published when the walk began.
    is_fresh: bool,
    is_detour: bool,
    wants_directory: bool,
    ends_in_dots: bool,
    /// Where the walk goes on behind the directory that was not looked at yet.
    skipped: Option<usize>,
    /// What was seen of the last component, if it is known to be in a mirror, or to be missing there.
    seen_in_mirror: Option<system::Result<Stat>>,
    /// Why nobody could say what the store holds in the directory that was looked at last.
    unknown: Option<Errno>,
    /// The hash of the path's directory part, to be remembered if it turns out to be foreign.
    directory_hash: Option<u64>,
}

fn walk(
    configuration: &'static Configuration,
    mut scratch: Scratch,
    start: Option<(&'static [u8], usize)>,
    aim: Aim,
) -> Resolution {
    if scratch.tree.set(configuration.tree).is_err() {
        return Resolution::Foreign;
    }
    let base = configuration.tree.len();
    let mut walker = Walker::new(Some(configuration), &mut scratch, base);
    (walker.creates, walker.replaces) = (aim.creates, aim.replaces);
    match start {
        Some((prefix, length)) => {
            walker.position = length;
            if walker.slot.tree.push(prefix).is_err() {
                return Resolution::Foreign;
            }
        }
        None => {
            let text = walker.slot.pending.as_bytes();
            // Directories of processes change with every chdir, open and close.
            walker.directory_hash =
                directory_hash(configuration, text).filter(|_| !configuration::goes_through_process(text));
        }
    }
    let outcome = walker.go(aim.last);
    if matches!(outcome, Err(Stop::Foreign)) {
        // It ends at a directory that is missing or that nobody may enter.
        walker.remember_foreign();
    }
    let (is_detour, end) = (walker.is_detour, (walker.wants_directory, walker.ends_in_dots));
    match outcome {
        Ok(has_parent_mirror) => conclude(configuration, (scratch, base), has_parent_mirror, is_detour, end, aim.last),
        Err(Stop::Failed(error)) => Resolution::Failed(error),
        Err(Stop::Foreign) if is_detour => Resolution::Failed(Errno(libc::ENOENT)),
        Err(Stop::Foreign) => Resolution::Foreign,
    }
}

fn conclude(
    configuration: &Configuration,
    (scratch, base): (Scratch, usize),
    has_parent_mirror: bool,
    is_detour: bool,
    (wants_directory, ends_in_dots): (bool, bool),
    last: Last,
) -> Resolution {
    let kind = match (scratch.staged.get(), scratch.real.get()) {
        (Some(stat), _) if is_directory(stat) => Kind::Directory,
        (Some(_), _) => Kind::Managed,
        (None, Some(stat)) if is_directory(stat) => Kind::Directory,
        (None, _) => Kind::Unmanaged,
    };
    let (is_checkpoint, is_zone) = (false, false);
    let mut entry = Entry {
        scratch,
        base,
        kind,
        is_checkpoint,
        is_zone,
        has_parent_mirror,
        wants_directory,
        ends_in_dots,
        is_detour,
    };
    let path = entry.canonical();
    entry.is_checkpoint = configuration.is_checkpoint(path);
    entry.is_zone = configuration.is_zone(if entry.canonical() == b"/" { b"" } else { entry.canonical() });
    if kind == Kind::Managed && wants_directory && (last != Last::Name || ends_in_dots) {
        return Resolution::Failed(Errno(libc::ENOTDIR));
    }
    if is_detour && entry.keep_end().is_err() {
        return Resolution::Failed(Errno(libc::ENAMETOOLONG));
    }
    if kind == Kind::Managed || entry.is_checkpoint || entry.is_zone || is_detour {
        Resolution::Ours(entry)
    } else {
        Resolution::Foreign
    }
}

impl<'a> Walker<'a> {
    fn new(configuration: Option<&'static Configuration>, slot: &'a mut Slot, base: usize) -> Walker<'a> {
        Walker {
            configuration,
            slot,
            base,
            position: 0,
            links: 0,
            creates: false,
            replaces: false,
            is_fresh: false,
            is_detour: false,
            wants_directory: false,
            ends_in_dots: false,
            skipped: None,
            seen_in_mirror: None,
            unknown: None,
            directory_hash: None,
        }
    }

    /// The canonical path so far.
    fn canonical(&self) -> &[u8] {
        self.slot.tree.as_bytes().get(self.base..).unwrap_or_default()
    }

    fn real(&self) -> &CStr {
        match self.slot.tree.c_str_from(self.base) {
            path if path.is_empty() => c"/",
            path => path,
        }
    }

    fn is_in_zone(&self) -> bool {
        self.configuration.is_some_and(|configuration| configuration.is_zone(self.canonical()))
    }

    /// Walks to the end; yields whether the directory at the end has a mirror.
    fn go(&mut self, last: Last) -> Result<bool, Stop> {
        loop {
            let Some((start, end)) = self.next_component() else {
                self.wants_directory = true;
                self.ends_in_dots = matches!(last_name(self.slot.pending.as_bytes()), b"" | b"." | b"..");
                let in_zone = self.configuration.is_some_and(|c| c.is_zone(parent(self.canonical())));
                return self.look(in_zone);
            };
            if self.slot.pending.as_bytes().get(start..end) == Some(b"..") {
                self.expect_directory()?;
                let length = self.base + parent(self.canonical()).len();
                self.slot.tree.truncate(length);
                continue;
            }
            let in_zone = self.is_in_zone();
            let is_last = self.is_last();
            if is_last {
                self.remember_foreign();
            }
            self.push(start, end)?;
            if !is_last {
                if in_zone && self.creates && self.is_before_last() {
                    self.skipped = Some(self.position);
                } else {
                    self.pass(in_zone)?;
                }
                continue;
            }
            if let Some(position) = self.skipped.take()
                && !self.look_in_mirror()
            {
                self.position = position;
                let length = self.base + parent(self.canonical()).len();
                self.slot.tree.truncate(length);
                self.pass(true)?;
                continue;
            }
            let follows = match last {
                Last::Follow => true,
                Last::Entry => self.wants_directory,
                Last::Name => self.ends_in_dots,
            };
            if let Some(has_parent_mirror) = self.arrive(in_zone, follows)? {
                return Ok(has_parent_mirror);
            }
        }
    }

    /// Whether one more component is left, and nothing behind it.
    fn is_before_last(&self) -> bool {
        let rest = self.slot.pending.as_bytes().get(self.position + 1..).unwrap_or_default();
        !matches!(rest, b"" | b"." | b"..") && !rest.contains(&b'/')
    }

    /// Looks at the last component before its directory: a call less, where that is a mirror, and so no link. False
    /// where it is not.
    fn look_in_mirror(&mut self) -> bool {
        if self.configuration.is_none_or(|configuration| configuration.is_excluded(self.canonical())) {
            return false;
        }
        let seen = look_into_tree(self.slot.tree.c_str());
        let is_known = matches!(seen, Ok(_) | Err(Errno(libc::ENOENT))) && self.parent_mirror_exists();
        self.seen_in_mirror = is_known.then_some(seen);
        is_known
    }

    /// What `..` is applied to must be a directory; in a zone only the tree knows.
    fn expect_directory(&self) -> Result<(), Stop> {
        let in_zone = self.configuration.is_some_and(|configuration| configuration.is_zone(parent(self.canonical())));
        let staged = if in_zone { look_into_tree(self.slot.tree.c_str()).ok() } else { None };
        match staged.map_or_else(|| system::lstat(self.real()), Ok) {
            Ok(stat) if !is_directory(&stat) => Err(Stop::Failed(Errno(libc::ENOTDIR))),
            _ => Ok(()),
        }
    }

    /// Bounds of the next component that means something.
    fn next_component(&mut self) -> Option<(usize, usize)> {
        let text = self.slot.pending.as_bytes();
        loop {
            let rest = text.get(self.position..)?;
            let start = self.position + rest.iter().position(|&byte| byte != b'/')?;
            let name = text.get(start..)?;
            let length = name.iter().position(|&byte| byte == b'/').unwrap_or(name.len());
            self.position = start + length;
            if name.get(..length) != Some(b".") {
                return Some((start, self.position));
            }
        }
    }

    /// Whether only slashes and dots are left; then, if any, the name must be a directory.
    fn is_last(&mut self) -> bool {
        let rest = self.slot.pending.as_bytes().get(self.position..).unwrap_or_default();
        let mut components = rest.split(|&byte| byte == b'/');
        let is_last = components.all(|component| component.is_empty() || component == b".");
        self.wants_directory = is_last && !rest.is_empty();
        self.ends_in_dots = is_last && rest.contains(&b'.');
        is_last
    }

    fn push(&mut self, start: usize, end: usize) -> Result<(), Stop> {
        let Slot { tree, pending, .. } = &mut *self.slot;
        tree.push(b"/")?;
        tree.push(pending.as_bytes().get(start..end).unwrap_or_default())?;
        Ok(())
    }

    /// The directory part of the path as it was given has been walked. What only a detour leads to is not foreign: the
    /// kernel cannot go there.
    fn remember_foreign(&mut self) {
        if let Some((hash, configuration)) = self.directory_hash.take().zip(self.configuration)
            && !self.is_detour
            && !configuration.is_below_prefix(self.canonical())
            && let Some(entry) = foreign_entry(hash)
        {
            entry.store(hash, Ordering::Relaxed);
        }
    }

    /// Goes through a component that is not the last.
    fn pass(&mut self, in_zone: bool) -> Result<(), Stop> {
        if in_zone {
            let mut seen = self.read_link(true);
            if seen.is_ok() && (self.catch_up() || self.is_to_be_newest() && self.refresh()) {
                seen = self.read_link(true);
            }
            match seen {
                Ok(()) => {
                    self.is_detour = true;
                    return self.splice();
                }
                Err(Errno(libc::EINVAL)) => return Ok(()),
                Err(Errno(libc::ENOTDIR)) => return Err(Stop::Failed(Errno(libc::ENOTDIR))),
                Err(_) => {}
            }
        }
        match self.read_link(false) {
            Ok(()) => self.splice(),
            Err(Errno(libc::EINVAL)) => Ok(()),
            // Somebody else may have made the mirror since the look at the tree.
            Err(Errno(libc::ENOENT)) if in_zone && (self.populate_parent() || self.parent_mirror_exists()) => {
                self.catch_up();
                let mut seen = self.read_link(true);
                if seen == Err(Errno(libc::ENOENT)) && self.refresh() {
                    seen = self.read_link(true);
                }
                match seen {
                    Ok(()) => {
                        self.is_detour = true;
                        self.splice()
                    }
                    Err(Errno(libc::EINVAL)) => Ok(()),
                    // Populating has made the real directory, if the store knows it.
                    Err(_) if self.read_link(false) == Err(Errno(libc::EINVAL)) => Ok(()),
                    Err(_) => {
                        self.expect_known()?;
                        Err(Stop::Foreign)
                    }
                }
            }
            Err(error @ Errno(libc::ENOTDIR)) if self.is_detour => Err(Stop::Failed(error)),
            Err(error) => {
                if in_zone && error == Errno(libc::ENOENT) {
                    self.expect_known()?;
                }
                Err(Stop::Foreign)
            }
        }
    }

    /// Looks at the last component; `None` when it was a link that leads on.
    fn arrive(&mut self, in_zone: bool, follows: bool) -> Result<Option<bool>, Stop> {
        if !in_zone && follows && self.read_link(false).is_ok() {
            self.splice()?;
            return Ok(None);
        }
        let has_parent_mirror = self.look(in_zone)?;
        let is_managed = self.slot.staged.get().is_some();
        let seen = self.slot.staged.get().or(self.slot.real.get());
        if !(follows && seen.is_some_and(is_link)) {
            return Ok(Some(has_parent_mirror));
        }
        match self.read_link(is_managed) {
            Ok(()) => self.is_detour |= is_managed,
            // It has been published meanwhile, and lies on its own path.
            Err(Errno(libc::ENOENT)) if is_managed && self.read_link(false).is_ok() => {}
            Err(_) => return Ok(Some(has_parent_mirror)),
        }
        self.splice()?;
        Ok(None)
    }

    /// Notes what is at the name: in the tree, else (after a look at the store) at the real path. Yields whether the
    /// directory that holds the name has a mirror.
    fn look(&mut self, in_zone: bool) -> Result<bool, Stop> {
        let Some(configuration) = self.configuration else { return Ok(false) };
        self.unknown = None;
        self.slot.staged.set(None);
        self.slot.real.set(None);
        let mut has_parent_mirror = false;
        if in_zone && !configuration.is_excluded(self.canonical()) {
            has_parent_mirror = self.look_in_tree()?;
            if self.slot.staged.get().is_some() {
                return Ok(has_parent_mirror);
            }
        } else if in_zone && matches!(system::lstat(self.slot.tree.c_str()), Err(Errno(libc::ENOTDIR))) {
            // An excluded name below what only the tree knows to be a file.
            return Err(Stop::Failed(Errno(libc::ENOTDIR)));
        }
        if in_zone || self.is_in_zone() || self.is_detour {
            match system::lstat(self.real()) {
                Ok(stat) => {
                    self.slot.real.set(Some(stat));
                    if has_parent_mirror && self.creates {
                        self.look_once_more();
                    }
                }
                Err(Errno(libc::ENOENT)) if self.replaces => {}
                Err(Errno(libc::ENOENT)) => {
                    if has_parent_mirror && self.refresh() {
                        self.look_once_more();
                    }
                    if self.slot.staged.get().is_none() {
                        self.expect_known()?;
                    }
                }
                Err(error @ Errno(libc::ENOTDIR)) if self.is_detour => return Err(Stop::Failed(error)),
                Err(_) => return Err(Stop::Foreign),
            }
        }
        Ok(has_parent_mirror)
    }

    fn look_in_tree(&mut self) -> Result<bool, Stop> {
        let early = self.seen_in_mirror.take();
        match early.unwrap_or_else(|| look_into_tree(self.slot.tree.c_str())) {
            Ok(stat) => {
                self.slot.staged.set(Some(stat));
                if is_directory(&stat) {
                    // It needs the mirror only for what is made in it.
                    return Ok(self.parent_mirror_exists());
                }
                if self.catch_up() || !self.replaces && self.is_to_be_newest() && self.refresh() {
                    self.look_once_more();
                }
                Ok(true)
            }
            Err(Errno(libc::ENOTDIR)) => Err(Stop::Failed(Errno(libc::ENOTDIR))),
            // The mirror may be younger than the look: only what is missing now is missing. Who makes a file where
            // there is none will see.
            Err(_) if early.is_some() || self.parent_mirror_exists() => {
                if self.catch_up() || !self.creates {
                    self.look_once_more();
                }
                Ok(true)
            }
            Err(_) if self.populate_parent() => {
                self.look_once_more();
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }

    fn look_once_more(&mut self) {
        let seen = look_into_tree(self.slot.tree.c_str()).ok();
        self.slot.staged.set(seen);
    }

    fn parent_mirror_exists(&mut self) -> bool {
        let Slot { tree, other, .. } = &mut *self.slot;
        other.set(parent(tree.as_bytes())).is_ok() && is_mirror(other.c_str())
    }

    /// Has the mirrors show what other nodes have published, before anything is concluded from what they hold at a
    /// checkpoint's name, or lack. True when they may show something else now. If that cannot be had, what the tree
    /// holds counts, and what it lacks is unknown.
    fn catch_up(&mut self) -> bool {
        let Some(configuration) = self.configuration else { return false };
        let path = self.canonical();
        if flusher::has_caught_up(configuration) || !(configuration.is_checkpoint(path) || configuration.is_zone(path))
        {
            return false;
        }
        match flusher::catch_up(configuration) {
            Ok(has_changed) => {
                self.is_fresh |= has_changed;
                has_changed
            }
            Err(error) => {
                self.unknown = Some(error);
                if look_into_tree(self.slot.tree.c_str()).is_ok() {
                    store::warn_of_age(configuration, self.canonical(), error);
                }
                false
            }
        }
    }

    /// Whether also a name that the tree has must show the newest version of all nodes.
    fn is_to_be_newest(&self) -> bool {
        durable::is_close_to_open()
    }

    /// Has the mirrors show what other nodes have published until now, once for each walk, before a checkpoint's name
    /// is said not to exist. True when they may show something else now; if that cannot be had, what the tree holds
    /// counts.
    fn refresh(&mut self) -> bool {
        let Some(configuration) = self.configuration else { return false };
        let path = self.canonical();
        let may_be_held = configuration.is_checkpoint(path) || configuration.is_zone(path);
        let is_first = may_be_held && !self.is_fresh;
        self.is_fresh |= is_first;
        is_first && flusher::refresh(configuration)
    }

    /// Has the flusher make the mirror of the name's directory, if it is missing and the store may know names in it.
    fn populate_parent(&mut self) -> bool {
        self.unknown = None;
        let Some(configuration) = self.configuration else { return false };
        if self.parent_mirror_exists() || !store::exists(configuration) {
            return false;
        }
        let outcome = flusher::populate(configuration, parent(self.canonical()));
        self.unknown = outcome.err();
        outcome == Ok(true)
    }

    /// Fails when there is nothing at the name but what the store may hold, and nobody could say whether it does.
    fn expect_known(&self) -> Result<(), Stop> {
        let (Some(error), Some(configuration)) = (self.unknown, self.configuration) else { return Ok(()) };
        let path = self.canonical();
        let may_be_held = configuration.is_checkpoint(path) || configuration.is_zone(path);
        if may_be_held { store::refuse(configuration, path, error).map_err(Stop::Failed) } else { Ok(()) }
    }

    /// Reads the link at the name, in the tree or at the real path.
    fn read_link(&mut self, in_tree: bool) -> system::Result<()> {
        let Slot { tree, other, .. } = &mut *self.slot;
        if in_tree && !self.configuration.is_some_and(|configuration| configuration.has_stage()) {
            return Err(Errno(libc::ENOENT));
        }
        let path = if in_tree { tree.c_str() } else { tree.c_str_from(self.base) };
        other.fill(|room| system::readlinkat(AT_FDCWD, path, room))
    }

    /// Puts the target that was read in place of the component.
    fn splice(&mut self) -> Result<(), Stop> {
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(if self.is_detour { Stop::Failed(Errno(libc::ELOOP)) } else { Stop::Foreign });
        }
        let Slot { tree, pending, other, .. } = &mut *self.slot;
        let rest = pending.as_bytes().get(self.position..).unwrap_or_default();
        if !rest.is_empty() {
            other.push(b"/")?;
            other.push(rest)?;
        }
        let canonical = tree.as_bytes().get(self.base..).unwrap_or_default();
        let is_absolute = other.as_bytes().first() == Some(&b'/');
        let length = if is_absolute { self.base } else { self.base + parent(canonical).len() };
        tree.truncate(length);
        pending.set(other.as_bytes())?;
        self.position = 0;
        Ok(())
    }
}
