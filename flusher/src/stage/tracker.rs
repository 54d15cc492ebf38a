//! What has to be published, in the order in which it happened.
//!
//! The tracker follows the tree's changes and keeps, per path, what the store already holds of it (`held`) and whether
//! a newer complete version waits (`dirty`). A batch is a prefix of the order of events, so a segment never shows
//! something without what happened before it. Contents are read late, when the batch is made: a file that is rewritten
//! ten times a second is published once, as it is at the cut.
//!
//! It must never forget a completed file, and never call a file published that could have changed since: when in
//! doubt it publishes again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, Stat};
use sheaf_common::layout::{self, STUB_BIT};
use sheaf_common::replaced::Marker;

use super::Stage;
use super::links::Links;
use super::source::{LeaseKeeper, Opened, Source};
use super::watch::{Change, Place, Watches};
use crate::aggregate::{ALIGNED_SIZE, Attributes, BLOCK, Entry, Extent, Extents, FLAG_UNCLOSED, Kind};
use crate::store::{Node, Store, Version, View, split};

/// A canonical path without its leading slash.
pub type StagedPath = Vec<u8>;

/// Most files in one batch: each holds a descriptor and a lease until it is published.
pub const BATCH_FILES_MAX: usize = 4096;
/// A batch is closed when its files hold this much, in bytes; a larger file is a batch of its own.
pub const BATCH_BYTES_MAX: u64 = 256 << 20;
/// However small the stage is.
const BATCH_BYTES_MIN: u64 = 1 << 20;
/// A file that changed less than this before it was read may change again within the same kernel time stamp.
const TIMESTAMP_GRAIN: Duration = Duration::from_millis(20);
/// In no batch yet.
const NO_BATCH: u64 = u64::MAX;
/// How long the close event of a hydration may take to be read.
const HYDRATION_SETTLES: Duration = Duration::from_secs(1);
/// By how much the clocks of two nodes may differ: of what happened closer together nobody can say which was first.
const CLOCKS_DIFFER: Duration = Duration::from_secs(2);
/// How long what came after a complete file waits while somebody writes to that file again.
const HOLD_BACK_MAX: Duration = Duration::from_secs(2);
/// How often a batch is made anew because a file in it changed while it was made.
const BATCH_ATTEMPTS: usize = 10;

/// What the store holds, or will hold when the batches under way are published, under a name of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    inode: u64,
    size: u64,
    attributes: Attributes,
    change_time_ns: i64,
    symlink: bool,
    /// Whether the data is in the stage too (not a stub).
    resident: bool,
    /// Position of the last rename that gave it its name.
    named_at: u64,
    /// The batch that carries it, or the rename that gave it its name; 0 for what was published before.
    batch: u64,
}

impl Held {
    fn new(stat: &Stat) -> Held {
        let symlink = is_symlink(stat);
        Held {
            inode: stat.st_ino,
            size: stat.st_size as u64,
            attributes: attributes(stat),
            change_time_ns: change_time_ns(stat),
            symlink,
            resident: !symlink && stat.st_mode & STUB_BIT == 0,
            named_at: 0,
            batch: 0,
        }
    }

    /// Whether both are the same content of the same inode.
    fn is_same(&self, other: &Held) -> bool {
        (self.inode, self.size, self.change_time_ns) == (other.inode, other.size, other.change_time_ns)
    }

    fn is_stub(&self) -> bool {
        !self.resident && !self.symlink
    }

    fn resident_bytes(&self) -> u64 {
        if self.resident { self.size } else { 0 }
    }
}

/// Hydrations whose own close event is still to come: by inode, the leased file and when that was.
pub type Hydrated = HashMap<u64, (fs::File, Instant)>;

/// Stubs by inode, with the version whose data they lack.
pub type Stubs = Vec<(u64, Arc<Version>)>;

/// Something that happened and is not in a batch yet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Work {
    /// A file, with the position at which it was complete first since it was in a batch, if it was.
    File(StagedPath, Option<u64>),
    Operation(Entry),
}

impl Work {
    fn complete_at(&self) -> Option<u64> {
        match self {
            Work::File(_, complete_at) => *complete_at,
            Work::Operation(_) => None,
        }
    }

    fn complete_file(&self) -> Option<(&StagedPath, u64)> {
        match self {
            Work::File(path, complete_at) => Some((path, (*complete_at)?)),
            Work::Operation(_) => None,
        }
    }
}

/// Whether somebody waits for what the next batch publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// Nobody does: it can wait for a file that is written again.
    None,
    /// It is made of what there is.
    Awaited,
}

/// A cut through the stage's history, ready to be written as one segment.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Records in the order of events.
    pub entries: Vec<Entry>,
    /// For each entry, the file whose data goes with it.
    pub sources: Vec<Option<Arc<Source>>>,
    /// Bytes of file data.
    pub bytes: u64,
    /// Older files on the parallel file system that may go when the batch is published.
    pub replaced: Vec<Replaced>,
    /// When it is published, so is everything that happened up to this time; 0 when that cannot be said.
    pub watermark_ns: u64,
    /// Whether somebody is told when it is published.
    pub acknowledges: bool,
    /// How many files the flusher thread had left out that the tracker knew of.
    pub known_left_out: u64,
    /// The name to which further names of a file were linked last, by inode: with thousands of names, each would be
    /// looked for among all others.
    targets: HashMap<u64, StagedPath>,
    /// Files of several names that are in the batch with their data, by inode.
    contents: HashMap<u64, (StagedPath, Arc<Source>)>,
}

/// A marker of an older file whose successor is published as soon as every batch so far is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The marker's content.
    pub marker: Vec<u8>,
    /// The successor's inode.
    pub inode: u64,
}

/// Follows the tree; owned by the watcher thread.
#[derive(Debug)]
pub struct Tracker {
    stage: Stage,
    watches: Watches,
    keeper: LeaseKeeper,
    /// The fixed prefixes of the patterns: only at and below them directories are mirrors.
    zones: Vec<StagedPath>,
    held: BTreeMap<StagedPath, Held>,
    /// The held names of every inode. Made when it is first needed: most programs make no links.
    held_names: Option<HashMap<u64, BTreeSet<StagedPath>>>,
    dirty: BTreeMap<StagedPath, u64>,
    work: BTreeMap<u64, Work>,
    /// Names of files with several.
    links: Links,
    /// Closed once, but open for writing again (or never closed yet).
    unfinished: HashSet<StagedPath>,
    /// For which file, complete once and open for writing again, newer work waits, and since when work does.
    held_back: Option<(StagedPath, Instant)>,
    /// Files that were complete, and that a batch was made without, with the position at which they were complete
    /// first: nothing waits for them any more, but no watermark passes them.
    left_out: HashMap<StagedPath, u64>,
    /// How many files the flusher thread has left out.
    known_left_out: u64,
    /// Files that wait at a later position than that at which they were complete first; or did.
    complete_earlier: BTreeSet<(u64, StagedPath)>,
    /// When the queue was read last: what had happened then has a position.
    followed_ns: u64,
    /// From a position on, what happened did so after this time.
    noticed: BTreeMap<u64, u64>,
    /// Files that are to be published as they are, even if somebody writes to them.
    wanted_now: HashSet<StagedPath>,
    /// Own hydrations whose close event is still to come: inode to the leased descriptor.
    hydrated: Arc<parking_lot::Mutex<Hydrated>>,
    next_position: u64,
    last_time_ns: u64,
    oldest_work: Option<Instant>,
    overflowed: bool,
    resident_bytes: u64,
    batch_files_max: usize,
    batch_bytes_max: u64,
    /// Batches made so far.
    batches: u64,
    /// Files that could not be read, with the reason: tried again while somebody waits for the end.
    failing: BTreeMap<StagedPath, String>,
    /// Names under which the store has a newer version, of another node, than the tree; with the inodes there.
    outdated: Vec<(StagedPath, u64)>,
    /// Mirrors that go because another node has moved or removed their directories.
    removed_elsewhere: HashSet<StagedPath>,
    /// Whether there are stubs of which nobody knows whose names they took.
    has_unclear: bool,
    /// What an earlier flusher left unchanged: by inode, the change time and the record that published it.
    proven: HashMap<u64, Proof>,
}

/// Change time of an inode, and sequence and operation time of the record that it still equals.
type Proof = (i64, u64, u64);

/// The keys at `directory` and below it.
fn below<V>(map: &BTreeMap<Vec<u8>, V>, directory: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    map.range(directory.to_vec()..)
        .take_while(move |(path, _)| path.starts_with(directory))
        .filter(move |(path, _)| is_at_or_below(path, directory))
        .map(|(path, _)| path.clone())
}

/// Removes from `map` what lies at `directory` and below it.
pub(super) fn take_below<V>(map: &mut BTreeMap<Vec<u8>, V>, directory: &[u8]) -> Vec<(Vec<u8>, V)> {
    let keys: Vec<Vec<u8>> = below(map, directory).collect();
    keys.into_iter().filter_map(|path| map.remove(&path).map(|value| (path, value))).collect()
}

/// Attributes of a staged file as programs see them.
pub fn attributes(stat: &Stat) -> Attributes {
    Attributes {
        mode: stat.st_mode & 0o7777 & !STUB_BIT,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_seconds: stat.st_mtime,
        mtime_nanoseconds: stat.st_mtime_nsec as u32,
    }
}

/// What tells one version from another without its data.
fn identity(version: &Version) -> (i64, u32, u64) {
    (version.attributes.mtime_seconds, version.attributes.mtime_nanoseconds, version.size)
}

/// The same of a stub.
fn stub_identity(stat: &Stat) -> (i64, u32, u64) {
    (stat.st_mtime, stat.st_mtime_nsec as u32, stat.st_size as u64)
}

/// The mark that a stub bears, if no program has set its access time.
fn mark_ns(stat: &Stat) -> u32 {
    stat.st_atime_nsec as u32
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

fn is_stub(stat: &Stat) -> bool {
    is_file(stat) && stat.st_mode & STUB_BIT != 0
}

/// Whether a file or link is in the tree with what is in it.
fn is_resident(stat: &Stat) -> bool {
    is_symlink(stat) || stat.st_mode & STUB_BIT == 0
}

fn is_symlink(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Symlink
}

fn change_time_ns(stat: &Stat) -> i64 {
    stat.st_ctime.saturating_mul(1_000_000_000).saturating_add(stat.st_ctime_nsec as i64)
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

impl Tracker {
    /// A tracker that knows nothing of the tree yet: it has to be compared with the store ([`Tracker::rescan`]) first.
    ///
    /// # Errors
    /// When nothing can be watched.
    pub fn new(stage: Stage, keeper: LeaseKeeper, zones: Vec<StagedPath>) -> io::Result<Tracker> {
        let mut tracker = Tracker {
            stage,
            watches: Watches::new()?,
            keeper,
            zones,
            held: BTreeMap::new(),
            held_names: None,
            dirty: BTreeMap::new(),
            work: BTreeMap::new(),
            links: Links::default(),
            unfinished: HashSet::new(),
            held_back: None,
            left_out: HashMap::new(),
            known_left_out: 0,
            complete_earlier: BTreeSet::new(),
            followed_ns: 0,
            noticed: BTreeMap::new(),
            wanted_now: HashSet::new(),
            hydrated: Arc::default(),
            next_position: 1,
            last_time_ns: 0,
            oldest_work: None,
            overflowed: true,
            resident_bytes: 0,
            batch_files_max: BATCH_FILES_MAX,
            batch_bytes_max: BATCH_BYTES_MAX,
            batches: 0,
            failing: BTreeMap::new(),
            outdated: Vec::new(),
            removed_elsewhere: HashSet::new(),
            has_unclear: false,
            proven: HashMap::new(),
        };
        tracker.proven = tracker.read_proofs();
        tracker.watches.add_links(&tracker.stage.path(layout::LINKS))?;
        Ok(tracker)
    }

    /// The queue of changes, to be polled.
    pub fn watches(&mut self) -> &mut Watches {
        &mut self.watches
    }

    /// Where hydrations leave the descriptors by which their own close events are told from programs'.
    pub fn hydrated(&self) -> Arc<parking_lot::Mutex<Hydrated>> {
        self.hydrated.clone()
    }

    /// Makes batches smaller, for a process that may not have so many files open.
    pub fn limit_batch_files(&mut self, files: usize) {
        self.batch_files_max = files.clamp(1, BATCH_FILES_MAX);
    }

    /// Makes batches smaller, for a stage that has little room.
    pub fn limit_batch_bytes(&mut self, bytes: u64) {
        self.batch_bytes_max = bytes.clamp(BATCH_BYTES_MIN, BATCH_BYTES_MAX);
    }

    /// Ends the wait for close events of hydrations that will not come (the name is gone), or that a writer cannot wait
    /// for. What somebody wants to write to counts as changed.
    pub fn settle_hydrations(&mut self) {
        let hydrated = self.hydrated.clone();
        let mut wanted = Vec::new();
        hydrated.lock().retain(|inode, (file, since)| {
            let whole = super::lease::is_whole(std::os::fd::AsFd::as_fd(file));
            if !whole {
                wanted.push(*inode);
            }
            whole && since.elapsed() < HYDRATION_SETTLES
        });
        for inode in wanted {
            if let Some(name) = self.name_of(b"", inode) {
                self.mark_dirty(name);
            }
        }
    }

    /// When the oldest thing that is not in a batch happened.
    pub fn oldest_work(&self) -> Option<Instant> {
        self.oldest_work
    }

    /// How many files and operations wait for a batch.
    pub fn waiting(&self) -> usize {
        self.work.len()
    }

    /// How many files are open for writing, as far as is known.
    pub fn unfinished(&self) -> usize {
        self.unfinished.len()
    }

    /// Looks again at the files that were open for writing: those that nobody writes any more become dirty.
    pub fn recheck_unfinished(&mut self) {
        let failing = std::mem::take(&mut self.failing).into_keys();
        for path in std::mem::take(&mut self.unfinished).into_iter().chain(failing) {
            self.mark_dirty(path);
        }
    }

    /// Has the next batch take a file as it is, complete or not: somebody waits until what it holds now is durable.
    /// What is in a batch already, and has no writer, cannot have changed: its closing would have been seen.
    pub fn publish_as_it_is(&mut self, path: &[u8]) {
        let is_written = || matches!(Source::open(&self.stage, path), Ok(Opened::StillWritten));
        if self.stat(path).is_some() && (!self.is_clean(path) || is_written()) {
            self.wanted_now.insert(path.to_vec());
            self.mark_dirty(path.to_vec());
        }
    }

    /// Files that could not be read, with the reason.
    pub fn failing(&self) -> &BTreeMap<StagedPath, String> {
        &self.failing
    }

    /// Publishes files again that were left out of a batch: they are known by inode, their names may have changed.
    /// Those that cannot be read wait until [`Tracker::recheck_unfinished`].
    pub fn publish_again(&mut self, left_out: &[LeftOut]) {
        self.known_left_out += left_out.len() as u64;
        for LeftOut { path, inode, unreadable } in left_out {
            match (self.name_of(path, *inode), unreadable) {
                (None, _) => {}
                // It was complete nobody knows when.
                (Some(name), None) => self.mark_dirty_since(name, Some(0)),
                (Some(name), Some(reason)) => {
                    self.left_out.insert(name.clone(), 0);
                    // What was written to it meanwhile is tried as it comes.
                    if !self.dirty.contains_key(&name) {
                        self.unhold(&name);
                        self.failing.insert(name, reason.clone());
                    }
                }
            }
        }
    }

    /// The name under which an inode is held; the first that is looked at is `likely`.
    fn name_of(&self, likely: &[u8], inode: u64) -> Option<StagedPath> {
        let is_it = |held: &Held| held.inode == inode;
        match self.held.get(likely).is_some_and(is_it) {
            true => Some(likely.to_vec()),
            false => self.held.iter().find(|(_, held)| is_it(held)).map(|(name, _)| name.clone()),
        }
    }

    fn position(&mut self) -> u64 {
        self.oldest_work.get_or_insert_with(Instant::now);
        self.next_position += 1;
        self.next_position - 1
    }

    /// A time for the next record: the kernel's stamp if there is one, never earlier than what was handed out before.
    fn operation_time_ns(&mut self, stamp_ns: u64) -> u64 {
        self.last_time_ns = stamp_ns.max(self.last_time_ns + 1);
        self.last_time_ns
    }

    /// Reads what has happened since the last time. It is to be applied before the next time.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn drain(&mut self) -> io::Result<Vec<Change>> {
        self.noticed.insert(self.next_position, self.followed_ns);
        let now_ns = now_ns();
        let changes = self.watches.drain()?;
        self.followed_ns = now_ns;
        Ok(changes)
    }

    /// Up to this time everything that happened is in a batch, and what comes will be later; 0 when that cannot be
    /// said. What was complete and is not in a batch, because it waits, is held back or was left out, happened later.
    pub fn watermark_ns(&mut self) -> u64 {
        if self.overflowed {
            return 0;
        }
        let missing = self.first_missing();
        let noticed = self.noticed.range(..=missing.unwrap_or(self.next_position)).next_back();
        let (from, noticed_ns) = noticed.map_or((0, 0), |(from, time_ns)| (*from, *time_ns));
        self.noticed = self.noticed.split_off(&from);
        let watermark_ns = match missing {
            Some(_) => noticed_ns,
            // What the queue did not have then had not returned to its program: it may well count as later.
            None => self.last_time_ns.max(self.followed_ns),
        };
        self.last_time_ns = self.last_time_ns.max(watermark_ns);
        watermark_ns
    }

    /// The position of the oldest thing that happened, or was complete, and is in no batch.
    fn first_missing(&mut self) -> Option<u64> {
        let waits_since = |(position, path): &(u64, StagedPath)| {
            let work = self.dirty.get(path).and_then(|waits_at| self.work.get(waits_at));
            work.and_then(Work::complete_at) == Some(*position)
        };
        while self.complete_earlier.first().is_some_and(|first| !waits_since(first)) {
            self.complete_earlier.pop_first();
        }
        let (dirty, unfinished, failing) = (&self.dirty, &self.unfinished, &self.failing);
        self.left_out
            .retain(|path, _| dirty.contains_key(path) || unfinished.contains(path) || failing.contains_key(path));
        let earlier = self.complete_earlier.first().map(|(position, _)| *position);
        self.first_position().into_iter().chain(earlier).chain(self.left_out.values().copied()).min()
    }

    /// Programs are about to see what other nodes have published, too: whatever happens from here on is later, even if
    /// this node's clock is behind theirs.
    pub fn has_seen(&mut self, store: &Store) {
        self.last_time_ns = self.last_time_ns.max(store.newest_time_ns());
    }

    /// The same where only what was published just now can be later than what happens here from here on; what waits
    /// keeps the time at which it happened. Nodes that see the same are not to give the same times: `offset_ns` is this
    /// one's.
    pub fn has_seen_lately(&mut self, store: &Store, offset_ns: u64) {
        let newest_ns = store.newest_time_ns();
        if newest_ns.saturating_add(TIMESTAMP_GRAIN.as_nanos() as u64) > now_ns() {
            self.last_time_ns = self.last_time_ns.max(newest_ns.saturating_add(offset_ns));
        }
    }

    fn mark_dirty(&mut self, path: StagedPath) {
        self.mark_dirty_since(path, None);
    }

    /// The same for a file that is complete now.
    fn mark_complete(&mut self, path: StagedPath) {
        self.mark_dirty_since(path, Some(self.next_position));
    }

    /// The same for one that was complete first at a position.
    fn mark_dirty_since(&mut self, path: StagedPath, complete_at: Option<u64>) {
        let position = self.position();
        self.unfinished.remove(&path);
        self.failing.remove(&path);
        let old = self.dirty.insert(path.clone(), position).and_then(|old| self.work.remove(&old));
        let since = old.as_ref().and_then(Work::complete_at).or(complete_at);
        if let Some(since) = since.filter(|since| *since < position) {
            self.complete_earlier.insert((since, path.clone()));
        }
        self.work.insert(position, Work::File(path, since));
    }

    /// What the name had to be published for, if anything.
    fn unmark_dirty(&mut self, path: &[u8]) -> Option<Work> {
        self.unfinished.remove(path);
        self.failing.remove(path);
        self.dirty.remove(path).and_then(|position| self.work.remove(&position))
    }

    /// Whether a name has, or has had since it was in a batch, complete content.
    fn was_complete(&self, path: &[u8]) -> bool {
        match self.dirty.get(path).and_then(|position| self.work.get(position)) {
            Some(work) => work.complete_at().is_some(),
            None => self.held.contains_key(path),
        }
    }

    fn operate(&mut self, kind: Kind, path: &[u8], target: &[u8], attributes: Attributes) {
        let stamp_ns = self.stamp_ns(kind, path, target);
        self.operate_at(stamp_ns, record(kind, path, target, attributes));
    }

    fn operate_at(&mut self, stamp_ns: u64, entry: Entry) {
        let position = self.position();
        self.work.insert(position, Work::Operation(Entry { operation_time_ns: stamp_ns, ..entry }));
    }

    /// When an operation happened: the kernel's stamp of it on what it was done to, or, when that is gone, on the
    /// directory that it went from. Whatever was changed again since has a later stamp, but none that is later than
    /// now.
    fn stamp_ns(&self, kind: Kind, path: &[u8], target: &[u8]) -> u64 {
        let stamped = match kind {
            Kind::Rename => target,
            Kind::Unlink | Kind::RemoveDirectory => split(path).0,
            _ => path,
        };
        let now_ns = now_ns();
        self.stat(stamped).map_or(now_ns, |stat| (change_time_ns(&stat).max(0) as u64).min(now_ns))
    }

    fn stat(&self, path: &[u8]) -> Option<Stat> {
        self.stage.stat(path).ok()
    }

    /// Applies one change.
    ///
    /// # Errors
    /// When a new directory cannot be watched or read.
    fn apply(&mut self, change: Change) -> io::Result<()> {
        if self.overflowed && change.is_of_file() {
            // It belongs to names that are not known any more: recorded as a move or removal, it would concern another
            // file than the one that it happened to. The scan finds what has come of it.
            return Ok(());
        }
        match change {
            Change::Overflow => self.overflowed = true,
            Change::Ignored(watch) => self.watches.forget(watch),
            Change::Closed(place) => {
                if let Some(path) = self.watches.path(&place) {
                    self.closed(path);
                }
            }
            Change::Created(place, directory) => match self.watches.path(&place) {
                Some(path) if directory => self.directory_created(path)?,
                Some(path) => self.created(path),
                None => {}
            },
            Change::MovedIn(place, directory) => match self.watches.path(&place) {
                // A mirror that was populated aside is watched before it is moved in.
                Some(path) if directory && !self.watches.contains(&path) => self.directory_created(path)?,
                Some(path) if !directory => self.created(path),
                _ => {}
            },
            Change::Linked(inode, place) => match place.map(|place| self.watches.path(&place)) {
                Some(Some(path)) => self.linked(inode, path),
                Some(None) => {}
                // Perhaps the only name that it will have: a scan finds it, while the store has the data under the old
                // one.
                None => self.overflowed |= self.is_held_stub(inode),
            },
            // Perhaps only the second half of a move has not been seen: a scan finds directories and stubs again.
            Change::MovedOut(place, directory) if directory || self.is_stub(&place) => self.overflowed = true,
            Change::Deleted(place, directory) | Change::MovedOut(place, directory) => {
                if let Some(path) = self.watches.path(&place) {
                    if directory { self.directory_deleted(&path) } else { self.deleted(&path) }
                }
            }
            Change::Moved(from, to, directory) => {
                if let (Some(from), Some(to)) = (self.watches.path(&from), self.watches.path(&to)) {
                    if directory { self.directory_moved(&from, &to) } else { self.moved(&from, &to) }
                }
            }
            Change::Attributes(place) => {
                if let Some(path) = self.watches.path(&place) {
                    self.attributes_changed(&path);
                }
            }
        }
        Ok(())
    }

    fn is_held_stub(&mut self, inode: u64) -> bool {
        let names = self.held_names_of(inode);
        names.iter().any(|name| self.held.get(name).is_some_and(Held::is_stub))
    }

    fn is_stub(&self, place: &Place) -> bool {
        let held = self.watches.path(place).and_then(|path| self.held.get(&path));
        held.is_some_and(Held::is_stub)
    }

    fn closed(&mut self, path: StagedPath) {
        let mut hydrated = self.hydrated.lock();
        if !hydrated.is_empty()
            && let Some(stat) = self.stat(&path)
            && let Some((leased, _)) = hydrated.remove(&stat.st_ino)
        {
            drop(hydrated);
            if let Some(held) = self.held.get_mut(&path)
                && !held.resident
            {
                held.resident = true;
                self.resident_bytes += held.size;
            }
            // The lease was taken before any program could open the file: if it is whole, the event is our own.
            if super::lease::is_whole(std::os::fd::AsFd::as_fd(&leased)) {
                return;
            }
        } else {
            drop(hydrated);
        }
        // What was written through one name is to be read under the others, whatever becomes of this one.
        for name in self.known_others(&path).into_iter().chain(self.named_since(&path)) {
            self.mark_complete(name);
        }
        self.mark_complete(path);
    }

    /// The other names that the file of this name is known to have, or had.
    fn known_others(&self, path: &[u8]) -> Vec<StagedPath> {
        let others = |name: &&StagedPath| *name != path;
        self.links.names_with(path).filter(others).cloned().collect()
    }

    /// The names of a file that had none when it was opened: of such a one (O_TMPFILE) the kernel says for ever that it
    /// is called "#" and its inode's number.
    fn named_since(&self, path: &[u8]) -> Vec<StagedPath> {
        let number = split(path).1.strip_prefix(b"#").and_then(|digits| std::str::from_utf8(digits).ok());
        let Some(inode) = number.and_then(|digits| digits.parse().ok()) else { return Vec::new() };
        let unfinished = self.unfinished.iter().filter(|name| self.is_name_of(name, inode));
        self.links.names_of(inode).chain(unfinished).cloned().collect()
    }

    /// A file got another name. By now the name may be gone again, and what was written through it must not be missed.
    fn linked(&mut self, inode: u64, path: StagedPath) {
        self.remember_links(&path, inode);
        self.link_stub(inode, &path);
        self.mark_named(path);
    }

    /// A new name of a file with several is complete if one of the others is.
    fn mark_named(&mut self, path: StagedPath) {
        let is_complete = self.links.names_with(&path).any(|name| *name != path && self.was_complete(name));
        match is_complete {
            true => self.mark_complete(path),
            false => self.mark_dirty(path),
        }
    }

    /// Records a new name of a stub as long as the name is known by which the store holds its data: that one may be the
    /// next to go.
    fn link_stub(&mut self, inode: u64, path: &[u8]) {
        let is_stub = |held: &&Held| held.inode == inode && held.is_stub();
        let held_as = |name: &StagedPath| Some((name.clone(), self.held.get(name).filter(is_stub)?.clone()));
        let Some((target, held)) = self.other_names(path, inode).find_map(held_as) else { return };
        if self.held.get(path).is_some_and(|known| known.inode == inode) {
            return;
        }
        let entry = Entry { inode, ..record(Kind::HardLink, path, &target, held.attributes.clone()) };
        self.hold(path.to_vec(), Held { named_at: self.next_position, batch: NO_BATCH, ..held });
        self.operate_at(self.stamp_ns(Kind::HardLink, path, &target), entry);
    }

    /// A new name may be a file that is being written, a link to one that is complete, or a symbolic link; and it may
    /// have moved on since. The next batch looks at what is there.
    fn created(&mut self, path: StagedPath) {
        // A stub is not new: it had a name before, if only for a moment more.
        let links = self.stat(&path).filter(|stat| stat.st_nlink > 1 || is_stub(stat));
        match links {
            Some(stat) => self.linked(stat.st_ino, path),
            None => self.mark_dirty(path),
        }
    }

    /// Takes note that `path` is one of several names of an inode, and finds the names that are already held.
    fn remember_links(&mut self, path: &[u8], inode: u64) {
        if !self.links.knows(inode) {
            for name in self.held_names_of(inode) {
                self.links.add(inode, name);
            }
        }
        self.links.add(inode, path.to_vec());
    }

    fn held_names_of(&mut self, inode: u64) -> BTreeSet<StagedPath> {
        let held_names = self.held_names.get_or_insert_with(|| {
            let mut names: HashMap<_, BTreeSet<_>> = HashMap::new();
            for (name, held) in &self.held {
                names.entry(held.inode).or_default().insert(name.clone());
            }
            names
        });
        held_names.get(&inode).cloned().unwrap_or_default()
    }

    fn deleted(&mut self, path: &[u8]) {
        self.unmark_dirty(path);
        self.forget_link(path);
        self.wanted_now.remove(path);
        self.left_out.remove(path);
        if let Some(held) = self.unhold(path) {
            self.operate(Kind::Unlink, path, b"", held.attributes);
        }
    }

    /// A name goes that may be one of several. Whoever has the file open by this name writes on, and nothing tells when
    /// that ends: the other names are to be looked at again.
    fn forget_link(&mut self, path: &[u8]) {
        for name in self.known_others(path) {
            self.mark_dirty(name);
        }
        self.links.remove(path);
    }

    fn moved(&mut self, from: &[u8], to: &[u8]) {
        let waited = self.unmark_dirty(from);
        let left_out = self.left_out.remove(from);
        let was_unfinished = waited.is_none() && !self.held.contains_key(from);
        self.unmark_dirty(to);
        self.left_out.remove(to);
        self.left_out.extend(left_out.map(|position| (to.to_vec(), position)));
        self.forget_link(to);
        self.links.rename(from, to);
        self.wanted_now.remove(to);
        if self.wanted_now.remove(from) {
            self.publish_as_it_is(to);
        }
        if let Some(mut held) = self.unhold(from) {
            (held.named_at, held.batch) = (self.next_position, NO_BATCH);
            self.operate(Kind::Rename, from, to, held.attributes.clone());
            // The kernel merges two moves to one name if nothing is seen between them (inotify(7) compares no cookies):
            // then what is there now came with the second.
            let is_another = self.stat(to).is_some_and(|stat| stat.st_ino != held.inode);
            // A name that was recorded while this one could not be found is to be linked to it.
            let is_one_of_several = self.links.is_one_of_several(to);
            self.hold(to.to_vec(), held);
            if is_another || is_one_of_several {
                self.mark_dirty(to.to_vec());
            }
            self.attributes_changed(to);
        }
        // An older published version under `to` stays until the file that took its name is complete and published.
        if waited.is_some() || was_unfinished {
            self.created(to.to_vec());
        }
        if let Some(complete_at) = waited.and_then(|work| work.complete_at()) {
            self.mark_dirty_since(to.to_vec(), Some(complete_at));
        }
        // Two names that were exchanged, or a new file: the events of an exchange are those of two moves, of which the
        // second would take away what the first has brought.
        if self.stat(from).is_some() && !self.held.contains_key(from) {
            self.created(from.to_vec());
        }
    }

    /// Records new attributes. When the file has moved on, the change that says so looks again; when this name is gone,
    /// the file may still have others.
    fn attributes_changed(&mut self, path: &[u8]) {
        let still_there = |name: StagedPath| {
            let (held, stat) = (self.held.get(&name)?, self.stat(&name)?);
            (held.inode == stat.st_ino).then_some((name, stat))
        };
        let mut names = std::iter::once(path.to_vec()).chain(self.known_others(path));
        let Some((name, stat)) = names.find_map(still_there) else { return };
        let now = attributes(&stat);
        if !self.dirty.contains_key(&name)
            && let Some(held) = self.held.get_mut(&name)
            && held.attributes != now
        {
            held.attributes = now.clone();
            self.operate(Kind::SetAttributes, &name, b"", now);
        }
    }

    /// Whether `directory` is at or below the fixed prefix of a pattern.
    pub fn in_zone(&self, directory: &[u8]) -> bool {
        self.zones.iter().any(|zone| is_at_or_below(directory, zone))
    }

    /// A directory that the library made in the tree is the mirror of one that the program has just made. Those above
    /// the zones are there only to be walked through.
    fn directory_created(&mut self, path: StagedPath) -> io::Result<()> {
        let Some(stat) = self.stat(&path) else {
            self.missed_directory(&path);
            return Ok(());
        };
        if self.in_zone(&path) {
            let real = rustix::fs::stat(super::mirror::absolute(&path)).unwrap_or(stat);
            self.operate(Kind::Directory, &path, b"", attributes(&real));
        }
        self.watch_and_scan(&path)
    }

    /// Watches a directory whose content is not known, then looks at what is in it.
    fn watch_and_scan(&mut self, path: &[u8]) -> io::Result<()> {
        match self.watches.add(path, &self.stage.tree_path(path)) {
            Err(error) if is_gone(&error) => {
                self.missed_directory(path);
                return Ok(());
            }
            Ok(Some(old)) => self.directory_found(&old, path),
            result => drop(result?),
        }
        for (name, kind) in list(&self.stage, path)? {
            let child = join(path, &name);
            if kind.is_dir() {
                // A mirror that was populated meanwhile is watched, and complete.
                if !self.watches.contains(&child) {
                    self.directory_created(child)?;
                }
            } else {
                self.created(child);
            }
        }
        // If it moved on meanwhile, not everything in it has been seen.
        self.overflowed |= !self.is_where_it_was(path);
        Ok(())
    }

    /// A new directory was gone before it could be watched. If it moved or was removed, its parent's events say so; if
    /// the parent moved, none tells what is in it.
    fn missed_directory(&mut self, path: &[u8]) {
        self.overflowed |= !self.is_where_it_was(split(path).0);
    }

    /// Whether the directory that is watched as `path` is still there.
    fn is_where_it_was(&self, path: &[u8]) -> bool {
        self.stat(path).is_some_and(|stat| self.watches.inode(path) == Some(stat.st_ino))
    }

    fn directory_deleted(&mut self, path: &[u8]) {
        let is_news = !self.removed_elsewhere.remove(path);
        // Its names were deleted one by one before; what is left in the tables was never watched.
        for (gone, _) in self.unhold_below(path) {
            self.operate(Kind::Unlink, &gone, b"", Attributes::default());
        }
        for (_, position) in take_below(&mut self.dirty, path) {
            self.work.remove(&position);
        }
        self.links.remove(path);
        if is_news {
            self.operate(Kind::RemoveDirectory, path, b"", Attributes::default());
        }
    }

    /// The mirrors at a directory and below it, those that lie deepest first.
    pub fn mirrors_below(&self, directory: &[u8]) -> Vec<StagedPath> {
        let mut found = Vec::new();
        let mut waiting = vec![directory.to_vec()];
        while let Some(directory) = waiting.pop().filter(|directory| self.in_zone(directory)) {
            if self.is_mirror(&directory) {
                let names = list(&self.stage, &directory).unwrap_or_default();
                waiting.extend(names.iter().filter(|(_, kind)| kind.is_dir()).map(|(name, _)| join(&directory, name)));
                found.push(directory);
            }
        }
        found.reverse();
        found
    }

    /// Whether the removal of this mirror, if it comes, is that of another node, and no news.
    pub fn expect_removed(&mut self, mirror: &[u8], is_expected: bool) {
        match is_expected {
            true => drop(self.removed_elsewhere.insert(mirror.to_vec())),
            false => drop(self.removed_elsewhere.remove(mirror)),
        }
    }

    /// A directory that was watched as `from` turns out to be at `to`, before any event said so: into a directory that
    /// was not watched, none will. What was seen where is to be looked at again; what only the store holds moves along.
    fn directory_found(&mut self, from: &[u8], to: &[u8]) {
        self.overflowed = true;
        self.watches.rename(from, to);
        self.operate(Kind::Rename, from, to, Attributes::default());
    }

    fn directory_moved(&mut self, from: &[u8], to: &[u8]) {
        if !self.watches.contains(from) {
            // It moved before it could be watched, so the store knows nothing in it; or it has been found already.
            self.overflowed = true;
            return;
        }
        self.watches.rename(from, to);
        // Else a directory moved that had not been watched, and what is watched took its name.
        self.overflowed |= !self.is_where_it_was(to);
        self.operate(Kind::Rename, from, to, Attributes::default());
        let renamed = |path: &[u8]| [to, &path[from.len()..]].concat();
        // The directory that was replaced was empty: what is known below that name came with this one, and was seen
        // there before this change was read. It has to follow the rename in the records, too.
        let early: Vec<StagedPath> = below(&self.held, to).chain(below(&self.dirty, to)).collect();
        for path in early {
            self.mark_dirty(path);
        }
        self.links.rename(from, to);
        let mut moved = Vec::new();
        for (path, mut held) in self.unhold_below(from) {
            (held.named_at, held.batch) = (self.next_position, NO_BATCH);
            self.hold(renamed(&path), held);
            moved.push(renamed(&path));
        }
        let mut dirty = take_below(&mut self.dirty, from);
        dirty.sort_by_key(|(_, position)| *position);
        for (path, position) in dirty {
            let complete_at = self.work.remove(&position).and_then(|work| work.complete_at());
            self.mark_dirty_since(renamed(&path), complete_at);
        }
        for path in moved {
            if self.links.is_one_of_several(&path) {
                self.mark_dirty(path);
            } else {
                self.attributes_changed(&path);
            }
        }
        let inside = |path: &[u8]| path.starts_with(from) && path.get(from.len()) == Some(&b'/');
        let follow = |path: StagedPath| if inside(&path) { renamed(&path) } else { path };
        for paths in [&mut self.unfinished, &mut self.wanted_now] {
            *paths = std::mem::take(paths).into_iter().map(follow).collect();
        }
        let left_out = std::mem::take(&mut self.left_out).into_iter();
        self.left_out = left_out.map(|(path, position)| (follow(path), position)).collect();
    }

    /// Compares the tree with the store's view: at start, and when events were dropped or are not clear. Whatever
    /// cannot be shown to be published as it is becomes dirty; names that the store holds and a mirror lacks were
    /// removed, but for those of other nodes' files: these may have been published after the mirror was made. Yields
    /// the stubs that it found, with their versions. When the tree changed so that the comparison proves nothing,
    /// [`Tracker::overflowed`] still asks for a scan.
    ///
    /// # Errors
    /// When the tree cannot be watched or read.
    pub fn rescan(&mut self, store: &Store) -> io::Result<Stubs> {
        assert!(
            self.work.values().all(|work| matches!(work, Work::File(..))),
            "operations are published before a scan"
        );
        self.has_seen(store);
        // Until the scan has come to its end.
        self.overflowed = true;
        self.forget_files();
        let mut scan = self.look_at_tree(store)?;
        let changes = self.drain()?;
        // Of what it finds nobody knows when that happened.
        self.noticed.insert(self.next_position, 0);
        // Directories that were found under new names: once that is published, a scan compares what belongs together.
        let gone: HashSet<&StagedPath> = scan.gone.iter().collect();
        let upsets = |change| self.upsets(change, &gone) || (change.is_move() && !scan.orphans.is_empty());
        let is_clear = self.first_position().is_none() && !changes.iter().any(upsets);
        if is_clear {
            self.match_orphans(store, &mut scan);
            for path in std::mem::take(&mut scan.gone) {
                self.operate(Kind::Unlink, &path, b"", Attributes::default());
            }
            for path in std::mem::take(&mut scan.gone_directories) {
                self.operate(Kind::RemoveDirectory, &path, b"", Attributes::default());
            }
            for (path, attributes) in std::mem::take(&mut scan.attributes) {
                self.operate(Kind::SetAttributes, &path, b"", attributes);
            }
            self.outdated = std::mem::take(&mut scan.outdated);
            scan.changed.sort();
            for (_, path) in scan.changed {
                self.mark_dirty(path);
            }
            self.overflowed = false;
        }
        self.apply_all(changes)?;
        Ok(scan.stubs)
    }

    /// Compares every name in the tree with what the store holds.
    fn look_at_tree(&mut self, store: &Store) -> io::Result<Scan> {
        let (view, mut scan) = (store.view(), Scan::default());
        let mut directories = vec![StagedPath::new()];
        while let Some(directory) = directories.pop() {
            match self.watches.add(&directory, &self.stage.tree_path(&directory)) {
                // Removed or renamed since it was listed; the queue says which.
                Err(error) if is_gone(&error) => continue,
                Ok(Some(old)) => self.directory_found(&old, &directory),
                result => drop(result?),
            }
            // Whether what is under a name is a directory.
            let mut present = HashMap::new();
            for (name, kind) in list(&self.stage, &directory)? {
                let path = join(&directory, &name);
                if kind.is_dir() {
                    directories.push(path);
                } else if let Some(stat) = self.stat(&path) {
                    let stat = self.restore_times(&path, stat);
                    self.compare(path, &stat, store, &mut scan);
                } else {
                    // Gone since it was listed.
                    continue;
                }
                present.insert(name, kind.is_dir());
            }
            if self.is_mirror(&directory) {
                // A file took a directory's name, or the other way round: what was there is gone, whatever comes of
                // this.
                let is_absent =
                    |name: &[u8], node: &Node| present.get(name) != Some(&matches!(node, Node::Directory(_)));
                let absent = view.children(&directory).filter(|(name, node)| is_absent(name, node));
                for (name, node) in absent {
                    scan.note_gone(store, join(&directory, name), node);
                }
            }
        }
        Ok(scan)
    }

    /// Whether something happened during a scan that makes it unclear which names the tree lacks. A file that moved or
    /// got a name only matters when it is a stub: others are published anew. (While a stub is not where the store holds
    /// it, any move matters: it could be the one that has taken it there, and would take another along when it is
    /// applied.)
    fn upsets(&self, change: &Change, gone: &HashSet<&StagedPath>) -> bool {
        let may_be_stub = |place: &Place| {
            let stat = self.watches.path(place).and_then(|path| self.stat(&path));
            stat.is_none_or(|stat| stat.st_mode & STUB_BIT != 0)
        };
        match change {
            Change::Overflow | Change::Moved(_, _, true) | Change::MovedOut(..) | Change::Linked(_, None) => true,
            Change::Linked(_, Some(place)) => may_be_stub(place),
            Change::Moved(from, to, false) => {
                let from = self.watches.path(from);
                from.is_some_and(|from| gone.contains(&from)) && may_be_stub(to)
            }
            _ => false,
        }
    }

    /// Before a scan, which finds all files again. Operations stay, because they move what only the store holds; they
    /// must be published before [`Tracker::rescan`].
    pub fn forget_files(&mut self) {
        self.held.clear();
        self.held_names = None;
        self.resident_bytes = 0;
        self.links.clear();
        self.unfinished.clear();
        for (path, position) in self.work.values().filter_map(Work::complete_file) {
            self.left_out.entry(path.clone()).and_modify(|first| *first = position.min(*first)).or_insert(position);
        }
        self.complete_earlier.clear();
        self.held_back = None;
        self.failing.clear();
        self.dirty.clear();
        self.work.retain(|_, work| matches!(work, Work::Operation(_)));
    }

    /// A stub that does not fit what the store holds under its name was renamed shortly before a flusher died. Its
    /// version is one of the same size and time that is not where the store holds it; see [`Lost::take`]. As long as it
    /// is not clear which, none of them is removed.
    fn match_orphans(&mut self, store: &Store, scan: &mut Scan) {
        let view = store.view();
        self.has_unclear = false;
        if scan.orphans.is_empty() {
            return;
        }
        let mut lost: HashMap<_, Lost> = HashMap::new();
        for (path, node) in view.iter() {
            // Where another node has moved a file it is, whatever stub it has left here.
            if let Node::File(version) = node
                && !scan.matched.contains(&path)
                && !store.is_renamed_by_another_node(&path)
            {
                lost.entry(identity(version)).or_default().names.push((path, version.clone()));
            }
        }
        let orphans = self.keep_unmarked(store, scan, &mut lost);
        let (mut found, mut unclear) = (Vec::new(), Vec::new());
        for (path, stat) in orphans {
            match lost.get_mut(&stub_identity(&stat)).and_then(|lost| lost.take(mark_ns(&stat))) {
                Some((old, version)) => {
                    scan.gone.retain(|gone| *gone != old);
                    scan.stubs.push((stat.st_ino, version));
                    found.push((old, path, stat));
                }
                None => unclear.push((path, stat)),
            }
        }
        for (path, stat) in unclear {
            if scan.stubs.iter().any(|(inode, _)| *inode == stat.st_ino) {
                // One more name of a file that is known: it is to be linked.
                scan.changed.push((change_time_ns(&stat), path));
            } else if let Some(lost) = lost.get(&stub_identity(&stat)) {
                self.has_unclear = true;
                scan.gone.retain(|gone| !lost.names.iter().any(|(name, _)| name == gone));
            } else if store.is_of_another_node(&path) {
                // What it stood for is gone from the store: another node has superseded it.
                scan.outdated.push((path.clone(), stat.st_ino));
                self.hold(path, Held::new(&stat));
            }
        }
        // By way of names of their own, because one's new name may be another's old one.
        let aside = |index: usize, path: &[u8]| [path, format!(".sheaf-moving-{index}").as_bytes()].concat();
        for (index, (old, path, _)) in found.iter().enumerate() {
            self.operate(Kind::Rename, old, &aside(index, path), Attributes::default());
        }
        for (index, (_, path, stat)) in found.into_iter().enumerate() {
            self.operate(Kind::Rename, &aside(index, &path), &path, Attributes::default());
            self.hold(path, Held::new(&stat));
        }
    }

    /// A stub whose mark a program has overwritten is what its name says, as long as its size and time say so, too.
    /// Yields the others.
    fn keep_unmarked(
        &mut self,
        store: &Store,
        scan: &mut Scan,
        lost: &mut HashMap<(i64, u32, u64), Lost>,
    ) -> Vec<(StagedPath, Stat)> {
        let mut orphans = std::mem::take(&mut scan.orphans);
        orphans.retain(|(path, stat)| {
            let Some(Node::File(version)) = store.view().get(path) else { return true };
            let Some(candidates) = lost.get_mut(&stub_identity(stat)) else { return true };
            if identity(version) != stub_identity(stat) || candidates.has_mark(mark_ns(stat)) {
                return true;
            }
            candidates.names.retain(|(name, _)| name != path);
            scan.found(path, stat, version);
            self.hold(path.clone(), Held::new(stat));
            false
        });
        orphans
    }

    /// Directories above every pattern are in the tree only to be walked through: what they lack says nothing.
    pub fn is_mirror(&self, directory: &[u8]) -> bool {
        self.stat(directory).is_some_and(|stat| stat.st_mode & sheaf_common::layout::POPULATED_BIT != 0)
    }

    /// Gives a stub back the times that a flusher had noted before it died.
    fn restore_times(&self, path: &[u8], stat: Stat) -> Stat {
        if !is_stub(&stat) {
            return stat;
        }
        let Some((seconds, nanoseconds)) = self.stage.noted_times(stat.st_ino) else { return stat };
        let times = super::mirror::times(seconds, nanoseconds);
        if super::mirror::set_times_of(&self.stage.tree_path(path), stat.st_ino, &times).is_ok() {
            self.stage.forget_times(stat.st_ino);
        }
        self.stat(path).unwrap_or(stat)
    }

    /// Whether the store has a version of another node that is newer than what the tree has under this name. A file
    /// that is what a superseded record says is older, whatever its change time: it may have been brought back since.
    /// Of others the change time tells, if it differs by more than clocks do.
    fn is_outdated(&self, path: &[u8], stat: &Stat, node: &Node, store: &Store) -> bool {
        let newer_ns = match node {
            Node::File(version) => version.operation_time_ns,
            Node::Symlink(link) => link.operation_time_ns,
            Node::Directory(_) => return false,
        };
        if !store.is_of_another_node(path) {
            return false;
        }
        let is_known = |older: &Arc<Version>| {
            older.operation_time_ns < newer_ns && is_file(stat) && identity(older) == stub_identity(stat)
        };
        let changed_ns = change_time_ns(stat);
        let proof = self.proven.get(&stat.st_ino).filter(|(proven_ns, ..)| *proven_ns == changed_ns);
        store.view().older(path).any(is_known)
            || proof.is_some_and(|(.., time_ns)| *time_ns < newer_ns)
            || is_resident(stat) && changed_ns.max(0) as u64 + (CLOCKS_DIFFER.as_nanos() as u64) < newer_ns
    }

    fn compare(&mut self, path: StagedPath, stat: &Stat, store: &Store, scan: &mut Scan) {
        let view = store.view();
        let symlink = is_symlink(stat);
        let stub = !symlink && stat.st_mode & STUB_BIT != 0;
        if stat.st_nlink > 1 {
            self.remember_links(&path, stat.st_ino);
        }
        match view.get(&path) {
            Some(Node::File(version)) if stub && identity(version) == stub_identity(stat) => {
                if version.mark_ns() != mark_ns(stat) {
                    return scan.orphans.push((path, *stat));
                }
                scan.found(&path, stat, version);
            }
            Some(node) if stub && self.is_outdated(&path, stat, node, store) => {
                scan.outdated.push((path.clone(), stat.st_ino));
            }
            _ if stub => return scan.orphans.push((path, *stat)),
            Some(node @ Node::File(version)) if !symlink => {
                let unchanged = version.inode == stat.st_ino
                    && version.size == stat.st_size as u64
                    && version.change_time_ns != 0
                    && version.change_time_ns == change_time_ns(stat);
                let proof = (change_time_ns(stat), version.sequence, version.operation_time_ns);
                if unchanged || self.proven.get(&stat.st_ino) == Some(&proof) {
                    scan.matched.insert(path.clone());
                } else if self.is_outdated(&path, stat, node, store) {
                    scan.outdated.push((path.clone(), stat.st_ino));
                } else {
                    scan.changed.push((change_time_ns(stat), path.clone()));
                }
            }
            Some(node @ Node::Symlink(known)) if symlink => {
                let target = fs::read_link(self.stage.tree_path(&path)).unwrap_or_default();
                if target.as_os_str().as_bytes() == &known.target[..] {
                    // As it is.
                } else if self.is_outdated(&path, stat, node, store) {
                    scan.outdated.push((path.clone(), stat.st_ino));
                } else {
                    scan.changed.push((change_time_ns(stat), path.clone()));
                }
            }
            None | Some(Node::Directory(_)) => return scan.changed.push((change_time_ns(stat), path)),
            // Something else than the store holds: until it is published, a rename or removal concerns what is held.
            Some(_) => scan.changed.push((change_time_ns(stat), path.clone())),
        }
        self.hold(path, Held::new(stat));
    }

    /// Leaves word of what need not be published again, for the next flusher. Files that were brought back from the
    /// store have other inodes than their records say: without this each restart would write them once more.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_proofs(&self, view: &View) -> io::Result<()> {
        let mut text = String::new();
        for path in self.held.keys().filter(|path| self.is_clean(path)) {
            let (Some(node), Some(stat)) = (view.get(path), self.stat(path)) else { continue };
            let changed_ns = change_time_ns(&stat);
            let settled = now_ns().saturating_sub(changed_ns.max(0) as u64) > TIMESTAMP_GRAIN.as_nanos() as u64;
            if settled && let Some((sequence, time_ns)) = self.record_of(path, &stat, node) {
                let _ = writeln!(text, "{} {changed_ns} {sequence} {time_ns}", stat.st_ino);
            }
        }
        let aside = self.stage.path(layout::SCRATCH).join(layout::CLEAN);
        fs::write(&aside, text)?;
        fs::rename(aside, self.stage.path(layout::CLEAN))
    }

    /// Sequence and time of the record that a file or link in the tree equals.
    fn record_of(&self, path: &[u8], stat: &Stat, node: &Node) -> Option<(u64, u64)> {
        match node {
            Node::File(version) => {
                let is_same = version.size == stat.st_size as u64 && version.attributes == attributes(stat);
                let is_whole = is_file(stat) && stat.st_mode & STUB_BIT == 0;
                (is_whole && is_same).then_some((version.sequence, version.operation_time_ns))
            }
            Node::Symlink(link) => {
                let target = fs::read_link(self.stage.tree_path(path)).ok()?;
                let is_same = is_symlink(stat) && target.as_os_str().as_bytes() == &link.target[..];
                is_same.then_some((link.sequence, link.operation_time_ns))
            }
            Node::Directory(_) => None,
        }
    }

    /// What the last flusher left; a line that is not understood proves nothing.
    fn read_proofs(&self) -> HashMap<u64, Proof> {
        let text = fs::read_to_string(self.stage.path(layout::CLEAN)).unwrap_or_default();
        let proof = |line: &str| {
            let mut words = line.split(' ');
            let inode = words.next()?.parse().ok()?;
            let changed_ns = words.next()?.parse().ok()?;
            Some((inode, (changed_ns, words.next()?.parse().ok()?, words.next()?.parse().ok()?)))
        };
        text.lines().filter_map(proof).collect()
    }

    /// Takes note of a name that populating has just put into a new mirror.
    pub fn populated(&mut self, path: StagedPath, stat: &Stat) {
        if stat.st_nlink > 1 {
            self.remember_links(&path, stat.st_ino);
        }
        self.hold(path, Held::new(stat));
    }

    /// The same when it could not be put there.
    pub fn not_populated(&mut self, path: &[u8]) {
        self.links.remove(path);
        self.unhold(path);
    }

    /// What has been put under these names, or changed there, for what the store holds is no news: published by this
    /// node, it would be newer than what the other node does with it meanwhile. Whatever else happened to them is.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn caught_up(&mut self, paths: &[StagedPath]) -> io::Result<()> {
        let is_as_held = |held: &Held, stat: &Stat| {
            held.inode == stat.st_ino && held.size == stat.st_size as u64 && held.attributes == attributes(stat)
        };
        for path in paths {
            if let (Some(held), Some(stat)) = (self.held.get(path), self.stat(path))
                && is_as_held(held, &stat)
            {
                self.hold(path.clone(), Held::new(&stat));
            }
        }
        let changes = self.drain()?;
        self.apply_all(changes)?;
        for path in paths {
            if let (Some(held), Some(stat)) = (self.held.get(path), self.stat(path))
                && held.is_same(&Held::new(&stat))
                && is_as_held(held, &stat)
            {
                self.unmark_dirty(path);
            }
        }
        Ok(())
    }

    /// The names under which the last scan found the store to have a newer version of another node, with their inodes
    /// in the tree.
    pub fn take_outdated(&mut self) -> Vec<(StagedPath, u64)> {
        std::mem::take(&mut self.outdated)
    }

    /// Whether there are stubs of which nobody knows whose names they took.
    pub fn has_unclear(&self) -> bool {
        self.has_unclear
    }

    /// The inode of a name of which nothing is known that the store does not have, with batches up to `published`.
    pub fn settled(&self, path: &[u8], published: u64) -> Option<u64> {
        let held = self.held.get(path).filter(|held| held.batch <= published)?;
        let is_unsettled = self.failing.contains_key(path) || self.left_out.contains_key(path) || !self.is_clean(path);
        (!is_unsettled).then_some(held.inode)
    }

    /// Whether what is held under a name is what this record says of it, unchanged.
    pub fn is_published_as(&self, path: &[u8], version: &Version) -> bool {
        let is_same = |held: &Held| {
            (held.inode, held.size, held.change_time_ns) == (version.inode, version.size, version.change_time_ns)
        };
        version.change_time_ns != 0 && self.held.get(path).is_some_and(is_same)
    }

    /// The inode that is held under a name.
    pub fn inode(&self, path: &[u8]) -> Option<u64> {
        self.held.get(path).map(|held| held.inode)
    }

    /// The other names of a file that are known and of which nothing waits.
    pub fn other_clean_names(&self, path: &[u8]) -> Vec<StagedPath> {
        let mut names = self.known_others(path);
        names.retain(|name| self.is_clean(name));
        names
    }

    /// Whether what is held under a name is a symbolic link.
    pub fn is_link(&self, path: &[u8]) -> bool {
        self.held.get(path).is_some_and(|held| held.symlink)
    }

    /// The names that are held below a directory.
    pub fn names_below(&self, directory: &[u8]) -> Vec<StagedPath> {
        if directory.is_empty() { self.held.keys().cloned().collect() } else { below(&self.held, directory).collect() }
    }

    /// Whether names have moved without this being published yet.
    pub fn has_renames(&self) -> bool {
        let is_rename = |work: &Work| matches!(work, Work::Operation(entry) if entry.kind == Kind::Rename);
        self.work.values().any(is_rename)
    }

    /// What this node has removed without having published it yet. Nothing when names have moved, or may have: then
    /// nobody can say of a name that the tree lacks whether this node took it away.
    pub fn removals(&self) -> Option<HashSet<&[u8]>> {
        if self.has_renames() {
            return None;
        }
        let mut removed = HashSet::new();
        for work in self.work.values() {
            match work {
                Work::Operation(entry) if matches!(entry.kind, Kind::Unlink | Kind::RemoveDirectory) => {
                    removed.insert(&entry.path[..]);
                }
                _ => {}
            }
        }
        (!self.has_unclear).then_some(removed)
    }

    /// Whether anything of this name is known.
    pub fn knows(&self, path: &[u8]) -> bool {
        self.held.contains_key(path) || self.dirty.contains_key(path) || self.unfinished.contains(path)
    }

    /// Records that the store's version of `path` has been superseded by a newer unmanaged file.
    pub fn superseded_outside(&mut self, path: &[u8]) {
        // The stage has no stamp of what happened outside of it.
        self.operate_at(now_ns(), record(Kind::Unlink, path, b"", Attributes::default()));
    }

    /// The clean resident files of batches up to `published`, as (path, inode, size, attributes): what could be
    /// evicted.
    pub fn resident(&self, published: u64) -> impl Iterator<Item = (&StagedPath, u64, u64, &Attributes)> {
        self.held
            .iter()
            .filter(move |(_, held)| held.resident && !held.symlink && held.batch <= published)
            .filter(|(path, _)| !self.dirty.contains_key(*path))
            .map(|(path, held)| (path, held.inode, held.size, &held.attributes))
    }

    /// Takes note that a file's data has left the stage.
    pub fn evicted(&mut self, path: &[u8]) {
        if let Some(held) = self.held.get_mut(path)
            && held.resident
        {
            held.resident = false;
            self.resident_bytes -= held.size;
        }
    }

    /// Whether nothing newer than the published version of `path` is known.
    pub fn is_clean(&self, path: &[u8]) -> bool {
        self.held.contains_key(path) && !self.dirty.contains_key(path) && !self.unfinished.contains(path)
    }

    /// Makes the next batch: a prefix of the order of events, with its files leased. Empty when nothing is ready, or
    /// when it can wait and a file that was complete has to come first.
    ///
    /// # Errors
    /// When the queue or a staged file cannot be read.
    pub fn next_batch(&mut self, haste: Haste) -> io::Result<Batch> {
        let (markers, was_overflowed) = (self.markers(), self.overflowed);
        let mut minimum_end = 0;
        if haste == Haste::None && self.is_held_back() {
            self.oldest_work = Some(Instant::now());
            return Ok(Batch::default());
        }
        for _ in 0..BATCH_ATTEMPTS {
            let mut candidate = self.open_prefix(minimum_end);
            let is_held_back = haste == Haste::None && self.hold_back(&mut candidate, minimum_end);
            let changes = self.drain()?;
            if !changes.iter().any(|change| self.touches(change, &candidate)) {
                let mut batch = self.commit(candidate);
                if !is_held_back {
                    self.held_back = None;
                }
                // Nothing that happened may be forgotten, and no batch: after an error a scan finds the rest.
                self.overflowed |= batch.is_err();
                if let Err(error) = self.apply_all(changes) {
                    log::warn!("following the stage: {error}; scanning it");
                }
                if let Ok(batch) = &mut batch {
                    batch.replaced = self.successors(markers);
                    batch.watermark_ns = self.watermark_ns();
                    batch.known_left_out = self.known_left_out;
                }
                return batch;
            }
            drop(candidate);
            self.apply_all(changes)?;
            if self.overflowed && !was_overflowed {
                // Where the cut has to be is not known any more.
                break;
            }
            // What was read of the changed file is newer than the cut: the cut must move past the change.
            minimum_end = self.next_position;
        }
        Ok(Batch::default())
    }

    /// The older files on the parallel file system whose successors are published once all batches so far are.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn replaced(&mut self) -> io::Result<Vec<Replaced>> {
        let markers = self.markers();
        let changes = self.drain()?;
        self.apply_all(changes)?;
        Ok(self.successors(markers))
    }

    fn markers(&self) -> Vec<Vec<u8>> {
        self.stage.replaced().unwrap_or_else(|error| {
            log::warn!("older files stay on the parallel file system: {error}");
            Vec::new()
        })
    }

    /// Those of the markers whose successor is in a batch. A marker is made before its name is taken: as all that had
    /// happened when it was read is applied, what is held under the name is what took it.
    fn successors(&self, markers: Vec<Vec<u8>>) -> Vec<Replaced> {
        let successor = |content: Vec<u8>| {
            let marker = Marker::parse(&content)?;
            let path = marker.path.strip_prefix(b"/")?;
            let held = self.held.get(path).filter(|_| !self.overflowed && self.is_clean(path))?;
            let is_published = held.batch <= self.batches && (held.batch > 0 || !marker.is_found);
            is_published.then_some(Replaced { inode: held.inode, marker: content })
        };
        markers.into_iter().filter_map(successor).collect()
    }

    /// Applies changes in order. Afterwards [`Tracker::overflowed`] may ask for a scan.
    ///
    /// # Errors
    /// When a new directory cannot be watched or read; the other changes are applied, and a scan is asked for.
    pub fn apply_all(&mut self, changes: Vec<Change>) -> io::Result<()> {
        let mut result = Ok(());
        let mut changes = changes.into_iter().peekable();
        while let Some(change) = changes.next() {
            // Of most files: what is there is looked at when it is published, and the close says as much as the
            // creation.
            if let (Change::Created(place, false), Some(Change::Closed(next))) = (&change, changes.peek())
                && place == next
                && self.hydrated.lock().is_empty()
            {
                continue;
            }
            if let Err(error) = self.apply(change) {
                self.overflowed = true;
                result = Err(error);
            }
        }
        result
    }

    /// Whether events were dropped or could not be understood since the last [`Tracker::rescan`].
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// Work from here on is newer than everything that is known now.
    pub fn end_position(&self) -> u64 {
        self.next_position
    }

    /// The oldest work that is in no batch.
    pub fn first_position(&self) -> Option<u64> {
        self.work.keys().next().copied()
    }

    /// Both names of everything that is renamed and in no batch yet.
    pub fn renames(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.work.values().filter_map(|work| match work {
            Work::Operation(entry) if entry.kind == Kind::Rename => Some((&entry.path[..], &entry.target[..])),
            _ => None,
        })
    }

    /// The names of everything that is removed and in no batch yet.
    pub fn removed(&self) -> impl Iterator<Item = &[u8]> {
        self.work.values().filter_map(|work| match work {
            Work::Operation(entry) if matches!(entry.kind, Kind::Unlink | Kind::RemoveDirectory) => {
                Some(&entry.path[..])
            }
            _ => None,
        })
    }

    /// Bytes of the held files whose data is in the stage.
    pub fn resident_bytes(&self) -> u64 {
        self.resident_bytes
    }

    fn hold(&mut self, path: StagedPath, held: Held) {
        self.unhold(&path);
        self.resident_bytes += held.resident_bytes();
        if let Some(names) = &mut self.held_names {
            names.entry(held.inode).or_default().insert(path.clone());
        }
        self.held.insert(path, held);
    }

    fn unhold(&mut self, path: &[u8]) -> Option<Held> {
        let held = self.held.remove(path)?;
        self.resident_bytes -= held.resident_bytes();
        if let Some(held_names) = &mut self.held_names
            && let Some(names) = held_names.get_mut(&held.inode)
        {
            names.remove(path);
            if names.is_empty() {
                held_names.remove(&held.inode);
            }
        }
        Some(held)
    }

    fn unhold_below(&mut self, directory: &[u8]) -> Vec<(StagedPath, Held)> {
        let paths: Vec<StagedPath> = below(&self.held, directory).collect();
        paths.into_iter().filter_map(|path| self.unhold(&path).map(|held| (path, held))).collect()
    }

    fn touches(&self, change: &Change, candidate: &Candidate) -> bool {
        let end = candidate.items.last().map_or(0, |(position, _)| *position);
        let is_in = |path: StagedPath| self.dirty.get(&path).is_some_and(|position| *position <= end);
        let known = |place| self.watches.path(place).is_some_and(is_in);
        match change {
            Change::Closed(place)
            | Change::MovedIn(place, false)
            | Change::Linked(_, Some(place))
            | Change::Created(place, false) => known(place),
            Change::Moved(from, to, false) => known(from) || known(to),
            Change::Moved(_, _, true) | Change::Overflow => true,
            _ => false,
        }
    }

    /// Opens and leases the files of the longest prefix that fits into a batch, at least up to `minimum_end`. The
    /// newest is leased first: it is the likeliest to be written again before its turn.
    fn open_prefix(&self, minimum_end: u64) -> Candidate {
        let mut candidate = Candidate::default();
        let within = |(index, (position, _)): &(usize, (&u64, &Work))| {
            *index < self.batch_files_max || (**position < minimum_end && *index < 2 * self.batch_files_max)
        };
        let prefix: Vec<_> = self.work.iter().enumerate().take_while(within).map(|(_, item)| item).collect();
        for (&position, work) in prefix.into_iter().rev() {
            let opened = match work {
                Work::File(path, _) => self.open_source(path).unwrap_or_else(|error| Opened::Failed(error.to_string())),
                Work::Operation(_) => Opened::Gone,
            };
            if let Opened::Ready(source, _) = &opened {
                self.keeper.register(source);
            }
            candidate.items.push((position, opened));
        }
        candidate.items.reverse();
        candidate.cut_to_size(minimum_end, self.batch_bytes_max);
        candidate
    }

    /// Leaves out of a candidate what came after the completion of a file that somebody has opened for writing again
    /// before it could be read: without that file it would be a cut that never was. Nothing waits so for longer than
    /// [`HOLD_BACK_MAX`], or one file could keep everything from being published. False when nothing is left out.
    fn hold_back(&mut self, candidate: &mut Candidate, minimum_end: u64) -> bool {
        let blocks = |(position, opened): &(u64, Opened)| match self.work.get(position) {
            Some(Work::File(path, Some(complete_at))) if matches!(opened, Opened::StillWritten) => {
                (!self.left_out.contains_key(path)).then(|| (*complete_at, path.clone()))
            }
            _ => None,
        };
        let Some((mut cut, path)) = candidate.items.iter().filter_map(blocks).min() else { return false };
        let since = self.held_back.as_ref().map_or_else(Instant::now, |(_, since)| *since);
        if since.elapsed() >= HOLD_BACK_MAX {
            return false;
        }
        // Nor may a file be missing that was complete before the cut and has been completed again behind it.
        while let Some(earlier) = self.work.range(cut..).filter_map(|(_, work)| work.complete_at()).min()
            && earlier < cut
        {
            cut = earlier;
        }
        self.held_back = Some((path, since));
        candidate.items.retain(|(position, _)| *position < cut && cut >= minimum_end);
        candidate.count_bytes();
        true
    }

    /// Whether work waits for a file that is open for writing.
    pub fn is_held_back(&self) -> bool {
        self.held_back.as_ref().is_some_and(|(path, since)| {
            since.elapsed() < HOLD_BACK_MAX && matches!(Source::open(&self.stage, path), Ok(Opened::StillWritten))
        })
    }

    fn open_source(&self, path: &[u8]) -> io::Result<Opened> {
        match Source::open(&self.stage, path)? {
            Opened::StillWritten if self.wanted_now.contains(path) => Source::snapshot(&self.stage, path),
            opened => Ok(opened),
        }
    }

    /// Turns a candidate into a batch: its files count as held from now on.
    fn commit(&mut self, candidate: Candidate) -> io::Result<Batch> {
        let mut batch = Batch { bytes: candidate.bytes, ..Batch::default() };
        for (position, opened) in candidate.items {
            let Some(work) = self.work.remove(&position) else { continue };
            match (work, opened) {
                (Work::Operation(mut entry), _) => {
                    match entry.kind {
                        Kind::Rename => self.commit_rename(position, &entry.target),
                        Kind::HardLink => self.commit_rename(position, &entry.path),
                        _ => {}
                    }
                    entry.operation_time_ns = self.operation_time_ns(entry.operation_time_ns);
                    batch.entries.push(entry);
                    batch.sources.push(None);
                }
                (Work::File(path, complete_at), opened) => {
                    self.dirty.remove(&path);
                    self.wanted_now.remove(&path);
                    let first_complete_at = complete_at.into_iter().chain(self.left_out.remove(&path)).min();
                    match opened {
                        Opened::Ready(source, stat) => {
                            self.commit_file(&mut batch, position, path, source, &stat, 0)?;
                        }
                        Opened::Unclosed(source, stat) => {
                            self.commit_file(&mut batch, position, path.clone(), source, &stat, FLAG_UNCLOSED)?;
                            self.unfinished.insert(path);
                        }
                        Opened::Symlink(stat) => self.commit_symlink(&mut batch, position, path, &stat),
                        Opened::StillWritten => {
                            self.left_out.extend(first_complete_at.map(|position| (path.clone(), position)));
                            self.unfinished.insert(path);
                        }
                        Opened::Stub(stat) => self.commit_stub(&mut batch, position, path, &stat),
                        Opened::Failed(reason) => {
                            self.left_out.insert(path.clone(), first_complete_at.unwrap_or(position));
                            self.failing.insert(path, reason);
                        }
                        Opened::Gone => {}
                    }
                }
            }
        }
        self.oldest_work = if self.work.is_empty() { None } else { Some(Instant::now()) };
        self.batches += u64::from(!batch.entries.is_empty());
        Ok(batch)
    }

    fn commit_file(
        &mut self,
        batch: &mut Batch,
        position: u64,
        path: StagedPath,
        source: Arc<Source>,
        stat: &Stat,
        flags: u32,
    ) -> io::Result<()> {
        let changed_ns = change_time_ns(stat);
        let aged = now_ns().saturating_sub(changed_ns.max(0) as u64) > TIMESTAMP_GRAIN.as_nanos() as u64;
        // What changes under a writer's hands is not known again by its time.
        let settled = aged && flags & FLAG_UNCLOSED == 0;
        let entry = Entry {
            kind: Kind::File,
            path: path.clone(),
            target: Vec::new(),
            attributes: attributes(stat),
            size: source.size(),
            extents: data_extents(&source, stat)?,
            operation_time_ns: self.operation_time_ns(changed_ns.max(0) as u64),
            change_time_ns: if settled { changed_ns } else { 0 },
            inode: stat.st_ino,
            flags: flags | self.writing_flags(&path, &source, stat),
        };
        self.hold(path.clone(), Held { batch: self.batches + 1, ..Held::new(stat) });
        if stat.st_nlink == 1 {
            batch.entries.push(entry);
            batch.sources.push(Some(source));
            return Ok(());
        }
        self.remember_links(&path, stat.st_ino);
        if flags & FLAG_UNCLOSED == 0
            && let Some(first) = self.same_content(batch, position, &path, stat)
        {
            let extents = Extents::new();
            batch.entries.push(Entry {
                kind: Kind::HardLink,
                target: first,
                size: 0,
                extents,
                change_time_ns: 0,
                ..entry
            });
            batch.sources.push(None);
            return Ok(());
        }
        batch.entries.push(entry);
        batch.contents.insert(stat.st_ino, (path.clone(), source.clone()));
        batch.sources.push(Some(source));
        // The other names show the new content, too. Those that wait already are linked to this one in their turn.
        let settled = |name: &&StagedPath| !self.dirty.contains_key(*name) && self.is_name_of(name, stat.st_ino);
        let others: Vec<_> = self.other_names(&path, stat.st_ino).filter(settled).cloned().collect();
        for name in others {
            self.mark_dirty(name);
        }
        Ok(())
    }

    /// Says for how long a file has been written to that the store has nothing of yet. Since when one was written to
    /// anew that was there before, nobody knows.
    fn writing_flags(&self, path: &[u8], source: &Source, stat: &Stat) -> u32 {
        let born_ns = source.born_ns();
        if born_ns == 0 || self.held.get(path).is_some_and(|held| held.inode == stat.st_ino) {
            return 0;
        }
        let writing_ns = change_time_ns(stat).saturating_sub(born_ns as i64);
        u64::try_from(writing_ns).map_or(0, |writing_ns| Entry::writing_flags(Duration::from_nanos(writing_ns)))
    }

    /// The other names of a file with several, as far as they are known.
    fn other_names<'a>(&'a self, path: &'a [u8], inode: u64) -> impl Iterator<Item = &'a StagedPath> {
        self.links.names_of(inode).filter(move |name| *name != path)
    }

    /// Whether a name is still one of this inode.
    fn is_name_of(&self, name: &[u8], inode: u64) -> bool {
        self.stat(name).is_some_and(|stat| stat.st_ino == inode)
    }

    /// Another name of the same file, to which `path` can be linked: one that is held as `fits` demands, since before
    /// `position`, or the record would point to what does not exist yet. It may be gone by now.
    fn link_target(
        &self,
        batch: &mut Batch,
        (position, path): (u64, &[u8]),
        inode: u64,
        fits: impl Fn(&StagedPath, &Held) -> bool,
    ) -> Option<StagedPath> {
        let is_target =
            |name: &&StagedPath| self.held.get(*name).is_some_and(|held| held.named_at < position && fits(name, held));
        let last = batch.targets.get(&inode).filter(|name| *name != path);
        let target = last.into_iter().chain(self.other_names(path, inode)).find(is_target)?.clone();
        batch.targets.insert(inode, target.clone());
        Some(target)
    }

    /// Another name of the same file under which its present content is published, or is about to be.
    /// A lease proves that, too: a file's names come and go, and each changes its change time.
    fn same_content(&self, batch: &mut Batch, position: u64, path: &[u8], stat: &Stat) -> Option<StagedPath> {
        if let Some((name, source)) = batch.contents.get(&stat.st_ino)
            && name != path
            && source.is_unwritten()
        {
            return Some(name.clone());
        }
        let present = Held::new(stat);
        let is_same = |name: &StagedPath, held: &Held| {
            held.is_same(&present) && !self.dirty.contains_key(name) && self.is_name_of(name, stat.st_ino)
        };
        self.link_target(batch, (position, path), stat.st_ino, is_same)
    }

    /// A new name of a file whose data is only in the store: a link to the name that is held.
    fn commit_stub(&mut self, batch: &mut Batch, position: u64, path: StagedPath, stat: &Stat) {
        if self.held.get(&path).is_some_and(|held| held.inode == stat.st_ino) {
            self.attributes_changed(&path);
            return;
        }
        self.remember_links(&path, stat.st_ino);
        let is_stub = |_: &StagedPath, held: &Held| held.inode == stat.st_ino && held.is_stub();
        let Some(target) = self.link_target(batch, (position, &path), stat.st_ino, is_stub) else {
            self.overflowed = true;
            return;
        };
        let operation_time_ns = self.operation_time_ns(change_time_ns(stat).max(0) as u64);
        let entry = record(Kind::HardLink, &path, &target, attributes(stat));
        batch.entries.push(Entry { operation_time_ns, inode: stat.st_ino, ..entry });
        batch.sources.push(None);
        self.hold(path, Held::new(stat));
    }

    /// From the next batch on, the store knows what was renamed or linked to `target` by its new name.
    fn commit_rename(&mut self, position: u64, target: &[u8]) {
        let renamed: Vec<StagedPath> = below(&self.held, target).collect();
        for path in renamed {
            if let Some(held) = self.held.get_mut(&path)
                && held.batch == NO_BATCH
                && held.named_at <= position + 1
            {
                held.batch = self.batches + 1;
            }
        }
    }

    fn commit_symlink(&mut self, batch: &mut Batch, position: u64, path: StagedPath, stat: &Stat) {
        // Gone again: its removal is in the queue.
        let Ok(target) = fs::read_link(self.stage.tree_path(&path)) else { return };
        let mut entry = record(Kind::Symlink, &path, target.as_os_str().as_bytes(), attributes(stat));
        entry.operation_time_ns = self.operation_time_ns(change_time_ns(stat).max(0) as u64);
        entry.inode = stat.st_ino;
        if stat.st_nlink > 1 {
            self.remember_links(&path, stat.st_ino);
            let is_clean =
                |name: &StagedPath, _: &Held| !self.dirty.contains_key(name) && self.is_name_of(name, stat.st_ino);
            if let Some(first) = self.link_target(batch, (position, &path), stat.st_ino, is_clean) {
                (entry.kind, entry.target) = (Kind::HardLink, first);
            }
        }
        batch.entries.push(entry);
        batch.sources.push(None);
        self.hold(path, Held::new(stat));
    }
}

/// What a scan of the tree found.
#[derive(Default)]
struct Scan {
    stubs: Stubs,
    /// What is to be published, with its time of change: the order in which it is published.
    changed: Vec<(i64, StagedPath)>,
    /// Stubs whose mode or owner is another than the store's.
    attributes: Vec<(StagedPath, Attributes)>,
    /// Names under which the store has a newer version, of another node.
    outdated: Vec<(StagedPath, u64)>,
    /// Stubs that do not fit what the store holds under their name.
    orphans: Vec<(StagedPath, Stat)>,
    /// Names under which the tree has what the store holds.
    matched: HashSet<StagedPath>,
    /// Names that the store holds in a mirrored directory and the mirror lacks.
    gone: Vec<StagedPath>,
    /// The same for directories, the deepest first.
    gone_directories: Vec<StagedPath>,
}

/// Versions of one size and time that are not where the store holds them, with their names there.
#[derive(Default)]
struct Lost {
    names: Vec<(StagedPath, Arc<Version>)>,
}

impl Lost {
    /// The version that a stub with this mark stands for, with a name that no other stub has taken. Nothing when
    /// several could be meant. A mark that none has was set by a program.
    fn take(&mut self, mark_ns: u32) -> Option<(StagedPath, Arc<Version>)> {
        let origin = |version: &Version| (version.aggregate, version.sequence);
        let is_known = self.has_mark(mark_ns);
        let may_be = |version: &Version| !is_known || version.mark_ns() == mark_ns;
        let first = self.names.iter().position(|(_, version)| may_be(version))?;
        let expected = origin(&self.names[first].1);
        let is_clear = self.names.iter().all(|(_, version)| !may_be(version) || origin(version) == expected);
        is_clear.then(|| self.names.remove(first))
    }

    /// Whether any of them has this mark.
    fn has_mark(&self, mark_ns: u32) -> bool {
        self.names.iter().any(|(_, version)| version.mark_ns() == mark_ns)
    }
}

impl Scan {
    /// A stub is where the store holds its version.
    fn found(&mut self, path: &[u8], stat: &Stat, version: &Arc<Version>) {
        self.matched.insert(path.to_vec());
        self.stubs.push((stat.st_ino, version.clone()));
        if version.attributes != attributes(stat) {
            self.attributes.push((path.to_vec(), attributes(stat)));
        }
    }

    /// A directory without a mirror was removed or renamed only if the real one is missing: populating its parent has
    /// made those that only the store knew.
    fn note_gone(&mut self, store: &Store, path: StagedPath, node: &Node) {
        if !matches!(node, Node::Directory(_)) {
            if !store.is_of_another_node(&path) {
                self.gone.push(path);
            }
            return;
        }
        if fs::symlink_metadata(super::mirror::absolute(&path)).is_ok_and(|real| real.is_dir()) {
            return;
        }
        for (name, below) in store.view().children(&path) {
            self.note_gone(store, join(&path, name), below);
        }
        self.gone_directories.push(path);
    }
}

/// A file that a batch was published without.
#[derive(Clone, Debug)]
pub struct LeftOut {
    /// Its name in the batch.
    pub path: StagedPath,
    /// Which file it is.
    pub inode: u64,
    /// Why it cannot be read; nothing when it had changed.
    pub unreadable: Option<String>,
}

/// A batch in the making.
#[derive(Debug, Default)]
struct Candidate {
    items: Vec<(u64, Opened)>,
    bytes: u64,
}

impl Candidate {
    fn count_bytes(&mut self) {
        self.bytes = self.items.iter().map(|(_, opened)| opened.size()).sum();
    }

    /// Leaves out what is too much for one batch; a large file is a batch of its own.
    fn cut_to_size(&mut self, minimum_end: u64, bytes_max: u64) {
        let mut length = 0;
        for (position, opened) in &self.items {
            let size = opened.size();
            let full = self.bytes >= bytes_max || (self.bytes > 0 && size > bytes_max);
            if full && *position >= minimum_end {
                break;
            }
            self.bytes += size;
            length += 1;
        }
        self.items.truncate(length);
    }
}

/// The data of a file as extents that start and end on blocks (but for the file's end), so that holes of whole blocks
/// stay holes in the aggregate. They are not looked for where the file takes as much room as it is long: what room
/// behind its end could hide is written as zeros. Nor in a small file that takes more.
fn data_extents(source: &Source, stat: &Stat) -> io::Result<Extents> {
    let allocated = (stat.st_blocks as u64).saturating_mul(512);
    let is_dense = allocated == source.size().next_multiple_of(BLOCK);
    if is_dense || (source.size() < ALIGNED_SIZE && allocated >= source.size()) {
        return Ok(Entry::dense_extents(source.size()));
    }
    let mut extents = Extents::new();
    for (start, end) in source.data_ranges()? {
        let start = start / BLOCK * BLOCK;
        let end = end.next_multiple_of(BLOCK).min(source.size());
        match extents.last_mut() {
            Some(last) if last.offset + last.length >= start => last.length = end - last.offset,
            _ => extents.push(Extent { offset: start, length: end - start }),
        }
    }
    Ok(extents)
}

/// A record without data and time.
fn record(kind: Kind, path: &[u8], target: &[u8], attributes: Attributes) -> Entry {
    Entry { target: target.to_vec(), ..Entry::new(kind, path.to_vec(), attributes, 0) }
}

/// Whether `path` is `directory` or lies below it.
pub fn is_at_or_below(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// The path of a name in a directory.
pub fn join(directory: &[u8], name: &[u8]) -> StagedPath {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// Whether a directory is no longer where it was: nothing has its name, or a file or link has it or that of one above.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The names in a directory of the tree with their kinds; a directory that is gone is empty.
fn list(stage: &Stage, directory: &[u8]) -> io::Result<Vec<(Vec<u8>, fs::FileType)>> {
    let entries = match fs::read_dir(stage.tree_path(directory)) {
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        result => result?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = match entry {
            // Removed while it was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
            result => result?,
        };
        if let Ok(kind) = entry.file_type()
            && (kind.is_dir() || kind.is_file() || kind.is_symlink())
        {
            names.push((entry.file_name().as_bytes().to_vec(), kind));
        }
    }
    Ok(names)
}
