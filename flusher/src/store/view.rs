//! The namespace that results from the records of many aggregates, applied in order.
//!
//! Directories are a tree in an arena, so that listing a directory and renaming one cost what they move, not what lies
//! below; nothing recurses, whatever depth hostile records ask for. It holds no data and reads no file.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::contest::are_of_one_time;
use crate::aggregate::{
    ALIGNED_SIZE, Attributes, BLOCK, Entry, Extents, FLAG_CONTESTED, FileChecksums, Kind, PATH_MAX, Record, check_name,
};

/// A tar header, and a record of a TOC, in bytes.
const SMALL_HEADER: u64 = 512;
const RECORD_BYTES: usize = 128;

/// How many superseded versions of a path are remembered, to be named when the newest one is damaged.
const OLDER_MAX: usize = 2;

/// An aggregate of the store, as long as the store is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AggregateId(pub(crate) u32);

/// One version of a file. Hard links share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Which aggregate has the data.
    pub aggregate: AggregateId,
    /// The record's place in the order of that aggregate.
    pub sequence: u64,
    /// The path under which it was recorded.
    pub recorded_path: Box<[u8]>,
    /// Where the data starts in the aggregate.
    pub data_offset: u64,
    /// Bytes.
    pub size: u64,
    /// What is not a hole.
    pub extents: Extents,
    /// Checksums of all of it.
    pub checksums: FileChecksums,
    /// Mode, owner and time.
    pub attributes: Attributes,
    /// Number of the inode that it was staged in.
    pub inode: u64,
    /// `ctime` of that inode in nanoseconds, or 0 when it proves nothing.
    pub change_time_ns: i64,
    /// When it was complete.
    pub operation_time_ns: u64,
    /// Flags of its record, and [`FLAG_CONTESTED`] if other records make it so.
    pub flags: u32,
}

impl Version {
    /// What tells its content from that of other files of the same size and time: its checksum, as nanoseconds. A stub
    /// bears it in its access time.
    pub fn mark_ns(&self) -> u32 {
        self.checksums.whole % 1_000_000_000
    }

    /// Whether several nodes wrote to it at the same time: it is a part of what was written.
    pub fn is_contested(&self) -> bool {
        self.flags & FLAG_CONTESTED != 0
    }

    /// Whether both are the same version, wherever the data lies. No two operations of a node have the same time.
    pub fn is_copy_of(&self, other: &Version) -> bool {
        self.operation_time_ns == other.operation_time_ns
            && self.inode == other.inode
            && self.size == other.size
            && self.recorded_path == other.recorded_path
            && self.checksums == other.checksums
    }

    /// Bytes that it takes in an aggregate, with its header and record.
    pub fn stored_bytes(&self) -> u64 {
        let data: u64 = self.extents.iter().map(|extent| extent.length).sum();
        let header = if self.size >= ALIGNED_SIZE { BLOCK } else { 2 * SMALL_HEADER };
        data + header + (RECORD_BYTES + 4 * self.checksums.chunks.len() + self.recorded_path.len()) as u64
    }

    /// This copy with what was set on the original since.
    fn with_attributes_of(&self, original: &Version) -> Arc<Version> {
        let flags = self.flags | original.flags & FLAG_CONTESTED;
        Arc::new(Version { attributes: original.attributes.clone(), flags, ..self.clone() })
    }
}

/// What an aggregate holds that is in the namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Bytes that its files take.
    pub bytes: u64,
    /// Files, links and directories.
    pub records: u64,
}

/// Where the copy of a record is.
#[derive(Clone, Debug)]
pub(super) enum Moved {
    File(Arc<Version>),
    Other(AggregateId, u64),
}

impl Moved {
    fn place(&self) -> (AggregateId, u64) {
        match self {
            Moved::File(version) => (version.aggregate, version.sequence),
            Moved::Other(aggregate, sequence) => (*aggregate, *sequence),
        }
    }
}

/// A symbolic link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Which aggregate recorded it.
    pub aggregate: AggregateId,
    /// The record's place in the order of that aggregate.
    pub sequence: u64,
    /// Its text.
    pub target: Box<[u8]>,
    /// Owner and time.
    pub attributes: Attributes,
    /// When it was made.
    pub operation_time_ns: u64,
}

/// A directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// What was recorded of it; `None` when it is only known from names below it.
    pub recorded: Option<Box<RecordedDirectory>>,
}

/// What was recorded of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedDirectory {
    /// Which aggregate recorded it.
    pub aggregate: AggregateId,
    /// The record's place in the order of that aggregate.
    pub sequence: u64,
    /// Mode, owner and time.
    pub attributes: Attributes,
    /// When it was made.
    pub operation_time_ns: u64,
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A file.
    File(Arc<Version>),
    /// A directory, recorded or implied by what lies below it.
    Directory(Directory),
    /// A symbolic link.
    Symlink(Arc<Link>),
}

type Place = u32;

const ROOT: Place = 0;

impl Node {
    /// The record that made a file or link: the same for all its names.
    pub fn origin(&self) -> Option<(AggregateId, u64)> {
        match self {
            Node::File(version) => Some((version.aggregate, version.sequence)),
            Node::Symlink(link) => Some((link.aggregate, link.sequence)),
            Node::Directory(_) => None,
        }
    }

    /// The record that made it, also of a directory: what is only implied has none.
    pub(super) fn record(&self) -> Option<(AggregateId, u64)> {
        match self {
            Node::Directory(directory) => {
                directory.recorded.as_ref().map(|recorded| (recorded.aggregate, recorded.sequence))
            }
            node => node.origin(),
        }
    }
}

#[derive(Debug)]
struct Slot {
    node: Node,
    parent: Place,
    /// The aggregate of the rename or link that has given the name; without one it came with what is there.
    named_by: Option<AggregateId>,
    children: BTreeMap<Box<[u8]>, Place>,
}

impl Slot {
    fn new(node: Node, parent: Place) -> Slot {
        Slot { node, parent, named_by: None, children: BTreeMap::new() }
    }
}

/// Who wrote an aggregate: a node, and the stage from which, all zero where that is not known.
#[derive(Clone)]
struct Writer {
    node: Box<str>,
    stage: [u8; 16],
}

/// The resolved namespace.
pub struct View {
    /// Who wrote the aggregates.
    writers: Vec<Writer>,
    slots: Vec<Slot>,
    free: Vec<Place>,
    /// The places of versions that have, or had, several names.
    linked: HashMap<(AggregateId, u64), Vec<Place>>,
    older: HashMap<Box<[u8]>, Vec<Arc<Version>>>,
    newest_operation_time_ns: u64,
    /// How often a contested version was put at a path.
    contested: u64,
    /// What was recorded and has given way to something else, or to nothing.
    superseded: u64,
}

impl fmt::Debug for View {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("View").field("names", &(self.slots.len() - self.free.len())).finish_non_exhaustive()
    }
}

impl Default for View {
    fn default() -> View {
        View {
            writers: Vec::new(),
            slots: vec![Slot::new(Node::Directory(Directory::default()), ROOT)],
            free: Vec::new(),
            linked: HashMap::new(),
            older: HashMap::new(),
            newest_operation_time_ns: 0,
            contested: 0,
            superseded: 0,
        }
    }
}

impl View {
    /// An empty one, of the same aggregates.
    pub(super) fn emptied(&self) -> View {
        View { writers: self.writers.clone(), ..View::default() }
    }

    /// Takes note of who wrote the next aggregate, in the order of their numbers.
    pub(super) fn add_writer(&mut self, node: &str, stage: [u8; 16]) {
        self.writers.push(Writer { node: node.into(), stage });
    }

    /// Of how many aggregates it is known who wrote them.
    pub(super) fn writers(&self) -> usize {
        self.writers.len()
    }

    /// Applies the next record. Records that make no sense where they stand change nothing; yields whether it may have
    /// changed something.
    pub fn apply(&mut self, aggregate: AggregateId, segment_offset: u64, record: &Record) -> bool {
        let entry = &record.entry;
        self.newest_operation_time_ns = self.newest_operation_time_ns.max(entry.operation_time_ns);
        if check_name(&entry.path, false).is_err() {
            return false;
        }
        match entry.kind {
            Kind::File => {
                let Some(mut version) = version(aggregate, segment_offset, record) else { return false };
                let (parent, existing) = self.place_for(&entry.path);
                if existing.is_some_and(|place| self.is_contested_at(place, &entry.path, &version)) {
                    version.flags |= FLAG_CONTESTED;
                }
                self.contested += u64::from(version.is_contested());
                self.put_at((parent, existing), &entry.path, Node::File(Arc::new(version)));
                true
            }
            Kind::Symlink => {
                let link = Link {
                    aggregate,
                    sequence: record.sequence,
                    target: entry.target.as_slice().into(),
                    attributes: entry.attributes.clone(),
                    operation_time_ns: entry.operation_time_ns,
                };
                self.put(&entry.path, Node::Symlink(Arc::new(link)));
                true
            }
            Kind::Directory => {
                self.make_directory(aggregate, record);
                true
            }
            Kind::HardLink => self.link(aggregate, &entry.target, &entry.path),
            Kind::Rename => self.rename(aggregate, &entry.path, &entry.target),
            Kind::Unlink => self.unlink(&entry.path),
            Kind::RemoveDirectory => self.remove_directory(&entry.path),
            Kind::SetAttributes => self.set_attributes(&entry.path, &entry.attributes),
            Kind::Watermark | Kind::Index => false,
        }
    }

    /// Whether what is at a place, which has this path, makes a new version of it contested: it is of the same time and
    /// of another node, or the new one only changes what was contested.
    fn is_contested_at(&self, place: Place, path: &[u8], new: &Version) -> bool {
        let Node::File(current) = &self.slot(place).node else { return false };
        if current.is_copy_of(new) {
            return current.is_contested();
        }
        let writers = (self.writer(current.aggregate), self.writer(new.aggregate));
        // What one node does has an order, whichever of its stages has it by now.
        let is_of_two = matches!(writers, (Some(one), Some(other)) if one.node != other.node);
        is_of_two && are_of_one_time(current, new)
            || current.is_contested()
                && [current].into_iter().chain(self.older(path)).any(|old| self.is_same_file(old, new))
    }

    /// Whether both were staged in the same inode.
    fn is_same_file(&self, one: &Version, other: &Version) -> bool {
        let writers = (self.writer(one.aggregate), self.writer(other.aggregate));
        one.inode == other.inode && matches!(writers, (Some(one), Some(other)) if one.stage == other.stage)
    }

    fn writer(&self, aggregate: AggregateId) -> Option<&Writer> {
        self.writers.get(aggregate.0 as usize).filter(|writer| writer.stage != [0; 16])
    }

    /// Everything there is, in no order.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.slots.iter().map(|slot| &slot.node)
    }

    /// What each aggregate holds that is in the namespace: bytes that its files take, and records.
    pub fn live(&self) -> HashMap<AggregateId, Live> {
        let mut live: HashMap<AggregateId, Live> = HashMap::new();
        let mut counted = HashSet::new();
        for slot in &self.slots {
            // What is free has none either.
            let Some(origin) = slot.node.record() else { continue };
            let of_aggregate = live.entry(origin.0).or_default();
            of_aggregate.records += 1;
            if self.linked.contains_key(&origin) && !counted.insert(origin) {
                // A further name, which is a record, and mostly a member.
                of_aggregate.bytes += 2 * SMALL_HEADER + RECORD_BYTES as u64;
                continue;
            }
            if let Node::File(version) = &slot.node {
                of_aggregate.bytes += version.stored_bytes();
            }
        }
        live
    }

    /// Takes note that records have been copied: each is known by its old place, with the version that the copy makes,
    /// or its new place.
    pub(super) fn relocate(&mut self, moved: &HashMap<(AggregateId, u64), Moved>) {
        // All names of a file share one version.
        let mut copies: HashMap<(AggregateId, u64), Arc<Version>> = HashMap::new();
        for slot in &mut self.slots {
            match &mut slot.node {
                Node::File(version) => {
                    let origin = (version.aggregate, version.sequence);
                    if let Some(Moved::File(copy)) = moved.get(&origin) {
                        *version = copies.entry(origin).or_insert_with(|| copy.with_attributes_of(version)).clone();
                    }
                }
                Node::Symlink(link) => {
                    if let Some(Moved::Other(aggregate, sequence)) = moved.get(&(link.aggregate, link.sequence)) {
                        *link = Arc::new(Link { aggregate: *aggregate, sequence: *sequence, ..(**link).clone() });
                    }
                }
                Node::Directory(Directory { recorded: Some(recorded) }) => {
                    if let Some(Moved::Other(aggregate, sequence)) = moved.get(&(recorded.aggregate, recorded.sequence))
                    {
                        (recorded.aggregate, recorded.sequence) = (*aggregate, *sequence);
                    }
                }
                Node::Directory(_) => {}
            }
        }
        for version in self.older.values_mut().flatten() {
            if let Some(Moved::File(copy)) = moved.get(&(version.aggregate, version.sequence)) {
                *version = copy.clone();
            }
        }
        let linked = std::mem::take(&mut self.linked);
        let place = |origin| moved.get(&origin).map_or(origin, Moved::place);
        self.linked = linked.into_iter().map(|(origin, places)| (place(origin), places)).collect();
    }

    /// Forgets superseded versions whose aggregate is gone.
    pub(super) fn forget_older(&mut self, gone: AggregateId) {
        self.older.values_mut().for_each(|versions| versions.retain(|version| version.aggregate != gone));
        self.older.retain(|_, versions| !versions.is_empty());
    }

    /// Other copies of a version, if reclaiming has made any.
    pub(super) fn twins(&self, version: &Version) -> impl Iterator<Item = &Arc<Version>> {
        let current = self.slots.iter().filter_map(|slot| match &slot.node {
            Node::File(version) => Some(version),
            _ => None,
        });
        current.chain(self.older.values().flatten()).filter(move |other| other.is_copy_of(version))
    }

    /// What is at a path; the empty path is the root.
    pub fn get(&self, path: &[u8]) -> Option<&Node> {
        self.find(path).map(|place| &self.slot(place).node)
    }

    /// The aggregate of the rename or link that has given the last name of a path to what is there, if one has.
    pub fn named_by(&self, path: &[u8]) -> Option<AggregateId> {
        self.find(path).and_then(|place| self.slot(place).named_by)
    }

    /// The names in a directory with what they are, in byte order. Nothing for what is no directory.
    pub fn children(&self, directory: &[u8]) -> impl Iterator<Item = (&[u8], &Node)> {
        let place = self.find(directory);
        let children = place.into_iter().flat_map(|place| &self.slot(place).children);
        children.map(|(name, place)| (&name[..], &self.slot(*place).node))
    }

    /// Everything but the root: each directory before what is in it, names in byte order. What hostile renames have
    /// given a longer path than a file can have is left out, with all below it.
    pub fn iter(&self) -> Iter<'_> {
        Iter { view: self, stack: vec![self.slot(ROOT).children.iter()], path: Vec::new(), lengths: vec![0] }
    }

    /// Superseded or removed versions of a path, the newest first.
    pub fn older(&self, path: &[u8]) -> impl Iterator<Item = &Arc<Version>> {
        self.older.get(path).into_iter().flatten().rev()
    }

    /// The latest time of all records that were applied.
    pub fn newest_operation_time_ns(&self) -> u64 {
        self.newest_operation_time_ns
    }

    /// How many contested versions there have been.
    pub fn contested(&self) -> u64 {
        self.contested
    }

    /// How many files, links and recorded directories have given way to something else, or to nothing.
    pub fn superseded(&self) -> u64 {
        self.superseded
    }

    fn slot(&self, place: Place) -> &Slot {
        &self.slots[place as usize]
    }

    fn slot_mut(&mut self, place: Place) -> &mut Slot {
        &mut self.slots[place as usize]
    }

    fn find(&self, path: &[u8]) -> Option<Place> {
        let mut components = path.split(|byte| *byte == b'/').filter(|_| !path.is_empty());
        components.try_fold(ROOT, |place, name| self.slot(place).children.get(name).copied())
    }

    /// The place of a directory, made if it is not there. Something else under its name gives way.
    fn directory(&mut self, path: &[u8]) -> Place {
        let mut place = ROOT;
        let components = path.split(|byte| *byte == b'/').filter(|_| !path.is_empty());
        for name in components {
            place = match self.slot(place).children.get(name).copied() {
                Some(child) if matches!(self.slot(child).node, Node::Directory(_)) => child,
                Some(other) => {
                    self.exchange(other, Node::Directory(Directory::default()));
                    other
                }
                None => self.insert(place, name, Node::Directory(Directory::default())),
            };
        }
        place
    }

    fn insert(&mut self, parent: Place, name: &[u8], node: Node) -> Place {
        let slot = Slot::new(node, parent);
        let place = match self.free.pop() {
            Some(place) => {
                self.slots[place as usize] = slot;
                place
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as Place
            }
        };
        self.slot_mut(parent).children.insert(name.into(), place);
        place
    }

    /// The place of the directory of a path, which is made, and of what is at the path.
    fn place_for(&mut self, path: &[u8]) -> (Place, Option<Place>) {
        let (directory, name) = split(path);
        let parent = self.directory(directory);
        (parent, self.slot(parent).children.get(name).copied())
    }

    /// Puts a file or link at a path, in the place of whatever was there.
    fn put(&mut self, path: &[u8], node: Node) -> Place {
        let places = self.place_for(path);
        self.put_at(places, path, node)
    }

    /// The same where [`View::place_for`] has been asked just before.
    fn put_at(&mut self, (parent, existing): (Place, Option<Place>), path: &[u8], node: Node) -> Place {
        let Some(place) = existing else { return self.insert(parent, split(path).1, node) };
        self.remember_older(path, place, &node);
        self.clear_below(place);
        self.exchange(place, node);
        self.slot_mut(place).named_by = None;
        place
    }

    fn make_directory(&mut self, aggregate: AggregateId, record: &Record) {
        let place = self.directory(&record.entry.path);
        let attributes = record.entry.attributes.clone();
        let operation_time_ns = record.entry.operation_time_ns;
        let recorded = RecordedDirectory { aggregate, sequence: record.sequence, attributes, operation_time_ns };
        self.slot_mut(place).node = Node::Directory(Directory { recorded: Some(Box::new(recorded)) });
    }

    fn link(&mut self, aggregate: AggregateId, existing: &[u8], new: &[u8]) -> bool {
        let Some(first) = self.find(existing).filter(|_| existing != new) else { return false };
        let node = self.slot(first).node.clone();
        let Some(key) = node.origin() else { return false };
        let second = self.put(new, node);
        self.slot_mut(second).named_by = Some(aggregate);
        // Making room for the new name may have taken the first one away.
        for place in [first, second] {
            let still = self.slot(place).node.origin() == Some(key);
            let places = self.linked.entry(key).or_default();
            if still && !places.contains(&place) {
                places.push(place);
            }
        }
        true
    }

    fn rename(&mut self, aggregate: AggregateId, from: &[u8], to: &[u8]) -> bool {
        // Below itself, or over one of its own parents: no file system does that.
        let senseless = is_at_or_below(to, from) || is_at_or_below(from, to);
        let Some(place) = self.find(from).filter(|_| !senseless) else { return false };
        let (directory, name) = split(to);
        let parent = self.directory(directory);
        // Making room for the new name may have taken the old one away.
        if self.find(from) != Some(place) {
            return true;
        }
        if let Some(replaced) = self.slot(parent).children.get(name).copied() {
            let node = self.slot(place).node.clone();
            self.remember_older(to, replaced, &node);
            self.remove(replaced, name);
        }
        let (_, old_name) = split(from);
        let old_parent = self.slot(place).parent;
        self.slot_mut(old_parent).children.remove(old_name);
        let slot = self.slot_mut(place);
        (slot.parent, slot.named_by) = (parent, Some(aggregate));
        self.slot_mut(parent).children.insert(name.into(), place);
        true
    }

    fn unlink(&mut self, path: &[u8]) -> bool {
        let Some(place) = self.find(path) else { return false };
        if matches!(self.slot(place).node, Node::Directory(_)) {
            return false;
        }
        let gone = Node::Directory(Directory::default());
        self.remember_older(path, place, &gone);
        self.remove(place, split(path).1);
        true
    }

    /// A directory that another node still has names in stays, as one that is implied.
    fn remove_directory(&mut self, path: &[u8]) -> bool {
        let Some(place) = self.find(path) else { return false };
        let slot = self.slot_mut(place);
        match &mut slot.node {
            Node::Directory(directory) if !slot.children.is_empty() => directory.recorded = None,
            Node::Directory(_) => self.remove(place, split(path).1),
            _ => return false,
        }
        true
    }

    fn set_attributes(&mut self, path: &[u8], attributes: &Attributes) -> bool {
        let Some(place) = self.find(path) else { return false };
        match &mut self.slot_mut(place).node {
            Node::Directory(directory) => {
                let Some(recorded) = &mut directory.recorded else { return false };
                recorded.attributes = attributes.clone();
            }
            Node::Symlink(link) => {
                Arc::make_mut(link).attributes = attributes.clone();
                let changed = Node::Symlink(link.clone());
                self.share_among_names(&changed);
            }
            Node::File(version) => {
                let changed = Arc::new(Version { attributes: attributes.clone(), ..(**version).clone() });
                *version = changed.clone();
                self.share_among_names(&Node::File(changed));
            }
        }
        true
    }

    /// All names of a file or link, when it has several.
    pub fn names(&self, node: &Node) -> Vec<Vec<u8>> {
        let places = node.origin().and_then(|origin| self.linked.get(&origin));
        places.into_iter().flatten().map(|place| self.path(*place)).collect()
    }

    /// The path of a place. Looks through the directories on the way, so it is for the few that have several names.
    fn path(&self, place: Place) -> Vec<u8> {
        let mut names = Vec::new();
        let mut place = place;
        while place != ROOT {
            let parent = self.slot(place).parent;
            let children = &self.slot(parent).children;
            names.extend(children.iter().find(|(_, child)| **child == place).map(|(name, _)| &name[..]));
            place = parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// Every name of a file or link shows the changed one.
    fn share_among_names(&mut self, changed: &Node) {
        let places = changed.origin().and_then(|origin| self.linked.get(&origin));
        for place in places.into_iter().flatten() {
            self.slots[*place as usize].node = changed.clone();
        }
    }

    fn remember_older(&mut self, path: &[u8], place: Place, successor: &Node) {
        let Node::File(version) = &self.slot(place).node else { return };
        let version = version.clone();
        if matches!(successor, Node::File(new) if Arc::ptr_eq(new, &version)) {
            return;
        }
        let versions = self.older.entry(path.into()).or_default();
        if versions.len() == OLDER_MAX {
            versions.remove(0);
        }
        versions.push(version);
    }

    fn remove(&mut self, place: Place, name: &[u8]) {
        self.clear_below(place);
        let parent = self.slot(place).parent;
        self.slot_mut(parent).children.remove(name);
        self.release(place);
    }

    fn clear_below(&mut self, place: Place) {
        let mut waiting: Vec<Place> = std::mem::take(&mut self.slot_mut(place).children).into_values().collect();
        while let Some(place) = waiting.pop() {
            waiting.extend(std::mem::take(&mut self.slot_mut(place).children).into_values());
            self.release(place);
        }
    }

    /// Frees a place that no directory leads to any more.
    fn release(&mut self, place: Place) {
        self.exchange(place, Node::Directory(Directory::default()));
        self.free.push(place);
    }

    fn exchange(&mut self, place: Place, node: Node) {
        let old = std::mem::replace(&mut self.slot_mut(place).node, node);
        self.superseded += u64::from(old != Node::Directory(Directory::default()));
        let Some(key) = old.origin() else { return };
        if let Some(places) = self.linked.get_mut(&key) {
            places.retain(|other| *other != place);
            if places.is_empty() {
                self.linked.remove(&key);
            }
        }
    }
}

fn is_at_or_below(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// The directory of a path and the name in it.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

pub(super) fn version(aggregate: AggregateId, segment_offset: u64, record: &Record) -> Option<Version> {
    let Entry { path, attributes, size, extents, operation_time_ns, change_time_ns, inode, flags, .. } = &record.entry;
    Some(Version {
        aggregate,
        sequence: record.sequence,
        recorded_path: path.as_slice().into(),
        data_offset: segment_offset.checked_add(record.data_offset?)?,
        size: *size,
        extents: extents.clone(),
        checksums: record.checksums.clone()?,
        attributes: attributes.clone(),
        inode: *inode,
        change_time_ns: *change_time_ns,
        operation_time_ns: *operation_time_ns,
        flags: *flags,
    })
}

/// Walks a [`View`]; see [`View::iter`].
#[derive(Debug)]
pub struct Iter<'a> {
    view: &'a View,
    stack: Vec<std::collections::btree_map::Iter<'a, Box<[u8]>, Place>>,
    path: Vec<u8>,
    /// Length of the path of the directory at each level of the stack.
    lengths: Vec<usize>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (Vec<u8>, &'a Node);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let level = self.stack.last_mut()?;
            let Some((name, place)) = level.next() else {
                self.stack.pop();
                self.lengths.pop();
                continue;
            };
            self.path.truncate(self.lengths.last().copied().unwrap_or(0));
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name);
            if self.path.len() > PATH_MAX {
                // Renames can make it; no file system could, and nobody could open it.
                continue;
            }
            let slot = self.view.slot(*place);
            if !slot.children.is_empty() {
                self.stack.push(slot.children.iter());
                self.lengths.push(self.path.len());
            }
            return Some((self.path.clone(), &slot.node));
        }
    }
}
