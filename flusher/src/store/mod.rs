//! The store: the directory of aggregates, read as one namespace.
//!
//! Opening reads every aggregate's published records and merges them by time. Data leaves it only after its checksum
//! has been found right. Nothing here changes an aggregate, and one that is damaged or foreign never hides the others.

mod aside;
mod catalog;
mod content;
mod contest;
mod cut;
mod decision;
mod file;
mod lock;
mod merge;
mod read;
mod recent;
mod reclaim;
mod refresh;
mod shared;
mod spool;
mod view;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirEntryExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use catalog::Names;
pub use catalog::{Built, Outcome, build as build_catalog, prepare as prepare_catalog};
pub use contest::Contest;
pub use cut::{Choice, Cut, Hidden, NO_LIMIT, cuts};
pub use file::AggregateFile;
pub use lock::{Lock, lock_store, try_lock};
pub use merge::Note;
pub use read::{DataLoss, Helpers, Located, VersionReader};
pub use reclaim::{Candidate, Cause, Copied, LARGE, Plan, Planner, Refusal, WATERMARKS_MAX, next_victim};
pub use refresh::{Changed, refresh};
use shared::lock_place;
pub(crate) use shared::{RESERVING, free_void, give_up, lock_byte, open_to_change, remove_part};
pub use spool::SpooledSegment;
pub(crate) use view::split;
pub use view::{AggregateId, Directory, Iter, Link, Live, Node, RecordedDirectory, Version, View};

use crate::aggregate::{
    BLOCK, Entry, FIRST_SEQUENCE, FLAG_ACKNOWLEDGED, FLAG_CONTINUED, FLAG_ENDED, FileChecksummer, Identity, IndexEntry,
    Kind, ReadError, Record, Segment, SegmentPlan, Walked, encode_index, identify, is_removed,
};
use crate::daemon::node_name;
use crate::engine::forget_cached;
use decision::Decision;
use recent::{Recent, names_of};

/// Name suffix of the files in a store that are taken for aggregates.
const SUFFIX: &str = "tar";

/// An aggregate of the store.
#[derive(Clone, Debug)]
pub(crate) struct Aggregate {
    path: PathBuf,
    /// Where it begins in a file that it shares with others.
    first: Option<u64>,
    identity: Identity,
    published_end: u64,
    next_sequence: u64,
    /// Bytes of it that are no holes.
    written_bytes: u64,
    /// Bytes behind its published end when it was read: what a flusher that died had not published.
    tail_bytes: u64,
    /// The time of the latest operation.
    newest_ns: u64,
    /// Bytes of segments that say nothing but that there was nothing to say.
    watermark_bytes: u64,
    /// What its stage has done up to here is published.
    watermark_ns: u64,
    /// Somebody was told that what its stage has done up to here is safe.
    acknowledged_ns: u64,
    /// Whether its last word is that its node has done everything that it will, or that its stage goes on in another.
    ended: bool,
    /// Whether it was closed in peace: nobody adds to it.
    sealed: bool,
    /// Whether it has been removed.
    gone: bool,
    /// Whether this process writes to it, or did: what is in it is told, not read.
    is_own: bool,
    /// Whether it lies outside of the store, in a spool: nobody else knows of it.
    spooled: bool,
}

/// What merging compares: a record that is applied late must not come before one that was applied. Time, whether it is
/// a copy, the aggregate's uuid, and sequence.
type MergeKey = (u64, bool, [u8; 16], u64);

impl Aggregate {
    fn new(path: &Path, first: Option<u64>, identity: Identity) -> Aggregate {
        let mut aggregate = Aggregate {
            path: path.to_owned(),
            first,
            identity,
            published_end: 0,
            next_sequence: 0,
            written_bytes: 0,
            tail_bytes: 0,
            newest_ns: 0,
            watermark_bytes: 0,
            watermark_ns: 0,
            acknowledged_ns: 0,
            ended: false,
            sealed: false,
            gone: false,
            is_own: false,
            spooled: false,
        };
        aggregate.forget();
        aggregate
    }

    /// Forgets all segments.
    fn forget(&mut self) {
        (self.published_end, self.next_sequence) = (BLOCK, FIRST_SEQUENCE);
        (self.written_bytes, self.newest_ns, self.sealed) = (2 * BLOCK, 0, false);
        (self.watermark_bytes, self.ended) = (0, false);
        (self.watermark_ns, self.acknowledged_ns) = (self.identity.watermark_ns, self.identity.acknowledged_ns);
    }

    /// Whether nothing is known but that it was there.
    fn is_forgotten(&self) -> bool {
        self.next_sequence == FIRST_SEQUENCE
    }

    /// Opens its file. One that has been given its name since is another.
    fn open(&self) -> io::Result<File> {
        let path = self.path.display();
        let told = |error: io::Error| io::Error::new(error.kind(), format!("cannot open aggregate {path}: {error}"));
        if self.gone {
            return Err(told(io::ErrorKind::NotFound.into()));
        }
        let file = open_file(&self.path).map_err(told)?;
        if let Some(first) = self.first {
            return match is_removed(&file, first, self.identity.uuid).map_err(told)? {
                true => Err(told(io::ErrorKind::NotFound.into())),
                false => Ok(file),
            };
        }
        match identify(&file) {
            Err(ReadError::Io(error)) => Err(told(error)),
            Ok(identity) if identity.uuid != self.identity.uuid => Err(told(io::ErrorKind::NotFound.into())),
            // What its first block says no longer counts; the data has checksums of its own.
            _ => Ok(file),
        }
    }

    /// Locks it: nobody writes to one that can be locked.
    fn lock(&self) -> Lock {
        lock_place(&self.path, self.first)
    }

    /// Takes note of its next segment.
    fn take_in(&mut self, segment: &Segment) {
        self.published_end = segment.offset + segment.length;
        self.next_sequence = segment.sequence + 1;
        let is_idle = |record: &Record| record.entry.kind == Kind::Watermark;
        if !segment.records.is_empty() && segment.records.iter().all(is_idle) {
            self.watermark_bytes += segment.length;
        } else {
            self.written_bytes += segment.length;
        }
        for Record { entry, .. } in &segment.records {
            if entry.flags & FLAG_ACKNOWLEDGED != 0 && entry.kind == Kind::Watermark {
                self.acknowledged_ns = self.acknowledged_ns.max(entry.operation_time_ns);
                continue;
            }
            if entry.kind == Kind::Watermark {
                self.watermark_ns = self.watermark_ns.max(entry.operation_time_ns);
                self.ended = entry.flags & (FLAG_ENDED | FLAG_CONTINUED) != 0;
                continue;
            }
            let data: u64 = entry.extents.iter().map(|extent| extent.length).sum();
            self.written_bytes -= (entry.size - data).min(self.written_bytes);
            self.newest_ns = self.newest_ns.max(entry.operation_time_ns);
            self.sealed |= entry.kind == Kind::Index;
        }
    }
}

/// The aggregates of one directory, and the namespace that they make up.
#[derive(Debug)]
pub struct Store {
    sources: Vec<PathBuf>,
    aggregates: Vec<Aggregate>,
    view: View,
    notes: Vec<Note>,
    /// How far files that several nodes write to have been read.
    walked: HashMap<PathBuf, Walked>,
    /// Parts of them that have been removed.
    removed: HashSet<[u8; 16]>,
    last_applied: Option<MergeKey>,
    /// What was applied last, by name.
    recent: Recent,
    /// Names of which the view may not show what the order says: everything has to be applied anew.
    disputed: BTreeSet<Vec<u8>>,
    /// Whether something was read that is not in the view.
    is_behind: bool,
    /// The name of the node that this process publishes for.
    node: String,
    /// Whether what lies behind damage is read, too.
    salvages: bool,
    /// Whether aggregates that a catalog has need not be read themselves.
    trusts_catalog: bool,
    /// What has been decided to count of aggregates whose nodes are lost.
    decisions: Vec<Decision>,
    /// The stage that this process publishes for: nothing of it is hidden from it.
    own_stage: Option<[u8; 16]>,
    /// When that stage was made.
    born_ns: u64,
    /// Whether everything counts, whatever has been decided.
    is_complete: bool,
    /// What has been chosen to count besides, by uuid.
    chosen: HashMap<[u8; 16], u64>,
    /// What counted when the view was made: up to which time, by uuid.
    limits: HashMap<[u8; 16], u64>,
}

/// The aggregates behind a path: all `*.tar` of a directory, or the file itself. A directory that is missing has none.
///
/// # Errors
/// When a directory cannot be listed.
pub fn aggregate_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_dir()) {
        return Ok(vec![path.to_owned()]);
    }
    Ok(Files::of(path)?.aggregates)
}

/// What there is to read in a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Files {
    aggregates: Vec<PathBuf>,
    /// Their inodes, as the listing has them.
    inodes: Vec<u64>,
    decisions: Vec<PathBuf>,
    catalogs: Vec<PathBuf>,
}

impl Files {
    /// Those of a directory, sorted by name.
    fn of(directory: &Path) -> io::Result<Files> {
        let mut files = Files::default();
        let mut aggregates = Vec::new();
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
            result => result?,
        };
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            match path.extension() {
                Some(extension) if extension == SUFFIX => aggregates.push((path, entry.ino())),
                Some(extension) if extension == decision::SUFFIX => files.decisions.push(path),
                Some(extension) if extension == catalog::SUFFIX => files.catalogs.push(path),
                _ => {}
            }
        }
        aggregates.sort();
        (files.aggregates, files.inodes) = aggregates.into_iter().unzip();
        files.decisions.sort();
        files.catalogs.sort();
        Ok(files)
    }
}

/// Opens an aggregate's file, to read what is in it by now. What only has the name of one, and would keep a reader
/// waiting, is refused.
///
/// # Errors
/// From open(2), or when it is no regular file.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    forget_cached(&file);
    Ok(file)
}

impl Store {
    /// Reads all aggregates (`*.tar`) of a directory. One that is missing is an empty store.
    ///
    /// # Errors
    /// When the directory cannot be listed. What is wrong with single aggregates is in [`Store::notes`].
    pub fn open(directory: &Path) -> io::Result<Store> {
        Store::open_all(&[directory.to_owned()])
    }

    /// Reads a store of which everything has to be known, for the flusher of a stage: see [`Note::hides_names`].
    ///
    /// # Errors
    /// As [`Store::open`], and when an aggregate cannot be read.
    pub fn open_whole(directory: &Path, stage: [u8; 16]) -> io::Result<Store> {
        let store = Store::open_for(directory, stage)?;
        match store.notes.iter().find(|note| note.hides_names()) {
            Some(note) => Err(io::Error::other(note.to_string())),
            None => Ok(store),
        }
    }

    /// A store that has not been read yet, and shows nothing.
    pub fn unread(directory: &Path) -> Store {
        Store::empty(&[directory.to_owned()])
    }

    /// Reads several aggregates, or directories of them, as one.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_all(sources: &[PathBuf]) -> io::Result<Store> {
        let mut store = Store::empty(sources);
        store.load()?;
        Ok(store)
    }

    fn open_for(directory: &Path, stage: [u8; 16]) -> io::Result<Store> {
        let mut store = Store { own_stage: Some(stage), ..Store::empty(&[directory.to_owned()]) };
        store.load()?;
        Ok(store)
    }

    /// As [`Store::open_all`], with everything that can be read of damaged aggregates. Where a damaged segment had
    /// renamed or removed names, they are as they were before it.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn salvage(sources: &[PathBuf]) -> io::Result<Store> {
        let mut store = Store { salvages: true, trusts_catalog: false, ..Store::empty(sources) };
        store.load()?;
        Ok(store)
    }

    fn empty(sources: &[PathBuf]) -> Store {
        Store {
            sources: sources.to_vec(),
            aggregates: Vec::new(),
            view: View::default(),
            notes: Vec::new(),
            walked: HashMap::new(),
            removed: HashSet::new(),
            last_applied: None,
            recent: Recent::default(),
            disputed: BTreeSet::new(),
            is_behind: false,
            node: node_name(),
            salvages: false,
            trusts_catalog: true,
            decisions: Vec::new(),
            own_stage: None,
            born_ns: u64::MAX,
            is_complete: false,
            chosen: HashMap::new(),
            limits: HashMap::new(),
        }
    }

    /// Takes in what was published since.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn refresh(&mut self) -> io::Result<()> {
        self.load()
    }

    /// The namespace.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The latest time that any aggregate speaks of, of an operation or a watermark.
    pub fn newest_time_ns(&self) -> u64 {
        let watermarks = self.aggregates.iter().map(|aggregate| aggregate.watermark_ns);
        watermarks.fold(self.view.newest_operation_time_ns(), u64::max)
    }

    /// What is wrong with single aggregates.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// The aggregates that were read, with their files.
    pub fn aggregates(&self) -> impl Iterator<Item = (AggregateId, &Path)> {
        let numbered = self.aggregates.iter().enumerate().filter(|(_, aggregate)| !aggregate.gone);
        numbered.map(|(index, aggregate)| (AggregateId(index as u32), aggregate.path.as_path()))
    }

    fn aggregate(&self, id: AggregateId) -> io::Result<&Aggregate> {
        self.aggregates.get(id.0 as usize).ok_or_else(|| io::Error::other("no such aggregate in this store"))
    }

    /// Takes note of an aggregate that this process has just made, and where it begins if it shares its file;
    /// [`Store::publish`] says what is in it.
    ///
    /// # Errors
    /// When there are more aggregates than can be counted.
    pub fn add_own(&mut self, path: &Path, first: Option<u64>, identity: &Identity) -> io::Result<AggregateId> {
        let id = u32::try_from(self.aggregates.len()).map_err(|_| io::Error::other("too many aggregates"))?;
        self.aggregates.push(Aggregate { is_own: true, ..Aggregate::new(path, first, identity.clone()) });
        self.tell_writers();
        self.node.clone_from(&identity.node);
        Ok(AggregateId(id))
    }

    /// Has the view know who wrote the aggregates.
    fn tell_writers(&mut self) {
        for aggregate in &self.aggregates[self.view.writers()..] {
            self.view.add_writer(&aggregate.identity.node, aggregate.identity.stage);
        }
    }

    /// The same for one that lies in a spool.
    ///
    /// # Errors
    /// As [`Store::add_own`].
    pub fn add_spooled(&mut self, path: &Path, identity: &Identity) -> io::Result<AggregateId> {
        let id = self.add_own(path, None, identity)?;
        self.aggregates[id.0 as usize].spooled = true;
        Ok(id)
    }

    /// Whether another node than this process's has put under this name what is there: a file or link, with its content
    /// or by a rename.
    pub fn is_of_another_node(&self, path: &[u8]) -> bool {
        let content = || self.view.get(path).and_then(Node::origin).map(|(aggregate, _)| aggregate);
        self.view.named_by(path).or_else(content).is_some_and(|aggregate| self.is_another_nodes(aggregate))
    }

    /// Whether another node has moved there what is under this name.
    pub fn is_renamed_by_another_node(&self, path: &[u8]) -> bool {
        self.view.named_by(path).is_some_and(|aggregate| self.is_another_nodes(aggregate))
    }

    /// Takes note when this process's stage was made, in nanoseconds since 1970: what another stage of the node's has
    /// published since then may never have been seen in this one.
    pub fn know_birth(&mut self, born_ns: u64) {
        self.born_ns = born_ns;
    }

    fn is_another_nodes(&self, aggregate: AggregateId) -> bool {
        self.aggregate(aggregate)
            .is_ok_and(|aggregate| aggregate.identity.node != self.node || self.is_beside(aggregate))
    }

    /// Whether another stage of this node has published it, or a part of it, since there is this process's: such as a
    /// job's that has a /dev/shm of its own, or somebody who has moved aggregates.
    fn is_beside(&self, aggregate: &Aggregate) -> bool {
        let newest_ns = aggregate.newest_ns.max(aggregate.identity.created_ns);
        self.own_stage.is_some_and(|stage| stage != aggregate.identity.stage) && newest_ns > self.born_ns
    }

    /// Takes in a segment that this process has just published.
    pub fn publish(&mut self, id: AggregateId, segment: &Segment) {
        let Some(aggregate) = self.aggregates.get_mut(id.0 as usize) else { return };
        aggregate.take_in(segment);
        let uuid = aggregate.identity.uuid;
        for record in segment.records.iter().filter(|record| record.entry.is_operation()) {
            let key = (record.entry.operation_time_ns, false, uuid, record.sequence);
            if Some(key) < self.last_applied && !self.recent.allows(&record.entry, key) {
                // Another node's newer operation is known already.
                self.disputed.extend(names_of(&record.entry).map(<[u8]>::to_vec));
            }
            self.view.apply(id, segment.offset, record);
            self.recent.note(&record.entry, key);
            self.last_applied = self.last_applied.max(Some(key));
        }
    }

    /// Takes note that this process has sealed an aggregate.
    pub fn sealed(&mut self, id: AggregateId, sealed: &Sealed) {
        let length = sealed.bytes.len() as u64;
        if let Some(aggregate) = self.aggregates.get_mut(id.0 as usize) {
            (aggregate.sealed, aggregate.ended) = (true, sealed.ended);
            aggregate.published_end = sealed.end;
            aggregate.written_bytes += length;
        }
    }

    /// As [`Store::reader`], for somebody who copies a version as it is: a part that several nodes have written stays
    /// one.
    ///
    /// # Errors
    /// As there.
    pub fn copier(&self, version: &Arc<Version>) -> io::Result<VersionReader> {
        self.locate(version)?.as_it_is().open()
    }

    /// Opens a version's data. The reader is independent of the store. When the aggregate has been reclaimed since the
    /// store was read, it reads the copy that was made before. What is contested cannot be read.
    ///
    /// # Errors
    /// When the aggregate cannot be opened.
    pub fn reader(&self, version: &Arc<Version>) -> io::Result<VersionReader> {
        self.locate(version)?.open()
    }

    /// Where a version's data lies, to be opened as by [`Store::reader`] while nobody holds the store: a file system
    /// may not answer.
    ///
    /// # Errors
    /// When it is no version of this store.
    pub fn locate(&self, version: &Arc<Version>) -> io::Result<Located> {
        let aggregate = self.aggregate(version.aggregate)?.clone();
        let contest = self.contest_of(version);
        // Other parts of the same are no older versions of it.
        let is_older = |older: &&Arc<Version>| match contest {
            Some(_) => !older.is_contested() && !contest::are_of_one_time(older, version),
            None => !older.is_copy_of(version),
        };
        let older = self.view.older(&version.recorded_path).filter(is_older);
        let older = older.filter_map(|older| Some((older.clone(), self.aggregate(older.aggregate).ok()?.path.clone())));
        let older = older.collect();
        Ok(Located { version: version.clone(), aggregate, contest, older, sources: self.sources.clone() })
    }

    /// The segment that seals an aggregate with the index of its live names, and a last watermark. It has this
    /// sequence, and begins at this offset.
    ///
    /// # Errors
    /// When there are more names than an index can hold.
    pub fn seal_segment(
        &self,
        id: AggregateId,
        identity: &Identity,
        (sequence, offset): (u64, u64),
        watermark: Entry,
    ) -> io::Result<Sealed> {
        let ended = watermark.flags & (FLAG_ENDED | FLAG_CONTINUED) != 0;
        let too_large = || io::Error::other("too many names for the index of one aggregate");
        let index = encode_index(identity.uuid, offset, self.live_names(id)).ok_or_else(too_large)?;
        let plan = SegmentPlan::seal(identity, sequence, &index, watermark).map_err(io::Error::other)?;
        let mut bytes = plan.unpublished_head();
        let (header_offset, header) = plan.header(0).ok_or_else(too_large)?;
        let data_offset = plan.data_offset(0).ok_or_else(too_large)?;
        bytes.resize(header_offset as usize, 0);
        bytes.extend_from_slice(&header);
        bytes.resize(data_offset as usize, 0);
        bytes.extend_from_slice(&index);
        bytes.resize(plan.toc_offset() as usize, 0);
        let mut checksummer = FileChecksummer::default();
        checksummer.data(&index);
        bytes.extend_from_slice(&plan.toc(&[Some(checksummer.finish()), None]));
        let end = offset + bytes.len() as u64;
        Ok(Sealed { bytes, head: plan.head(), end, ended })
    }

    fn live_names(&self, id: AggregateId) -> Vec<IndexEntry> {
        let entry = |path: Vec<u8>, node: &Node| match node {
            Node::File(version) if version.aggregate == id => Some(IndexEntry {
                path,
                kind: Kind::File,
                target: Vec::new(),
                attributes: version.attributes.clone(),
                size: version.size,
                data_offset: version.data_offset,
                data_crc: version.checksums.whole,
                sequence: version.sequence,
            }),
            Node::Symlink(link) if link.aggregate == id => Some(IndexEntry {
                path,
                kind: Kind::Symlink,
                target: link.target.to_vec(),
                attributes: link.attributes.clone(),
                size: 0,
                data_offset: 0,
                data_crc: 0,
                sequence: link.sequence,
            }),
            Node::Directory(Directory { recorded: Some(recorded) }) if recorded.aggregate == id => Some(IndexEntry {
                path,
                kind: Kind::Directory,
                target: Vec::new(),
                attributes: recorded.attributes.clone(),
                size: 0,
                data_offset: 0,
                data_crc: 0,
                sequence: recorded.sequence,
            }),
            _ => None,
        };
        self.view.iter().filter_map(|(path, node)| entry(path, node)).collect()
    }
}

/// The bytes that seal an aggregate.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// The whole segment, not published.
    pub bytes: Vec<u8>,
    /// The block that publishes it.
    pub head: Vec<u8>,
    /// Where it ends in the file.
    pub end: u64,
    /// Whether it says that its node has done everything that it will, or that its stage goes on in another.
    pub ended: bool,
}

#[cfg(test)]
mod reclaim_tests;
#[cfg(test)]
mod refresh_tests;
#[cfg(test)]
mod tests;
