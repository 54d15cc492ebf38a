//! Reclaiming: which aggregates may go, and what of them has to be copied first.
//!
//! Nothing is argued about an aggregate's records that could be tried: a plan replays all records of the store without
//! those that it would drop, and stands only if every name is then what it is now. What stays is copied with the time
//! of its original, so that everything recorded before and since, by whichever node, acts on the copy as it did on the
//! original: with the original still there, without it, and in every order of the two. Nothing here changes a file.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::cut::counts;
use super::lock::Lock;
use super::merge::{Addition, Step, steps};
use super::shared::{lock_place, remove_part};
use super::view::{Moved, version};
use super::{Aggregate, AggregateId, Live, Node, Sealed, Store, Version, VersionReader, View};
use crate::aggregate::{
    BLOCK, Entry, FIRST_SEQUENCE, FLAG_CONTESTED, FLAG_MOVED, FLAG_RENAMED, Identity, Kind, Segment, SegmentPlan,
    TarNames,
};
use crate::engine::sync_directory;
use crate::stage::tracker::is_at_or_below;

/// What is not worth an aggregate's end, in bytes: it is held against tiny checkpoints that would make and remove files
/// all the time.
const WORTHWHILE: u64 = 32 << 10;
/// A larger aggregate is closed, so that it can be reclaimed some day.
pub const LARGE: u64 = 64 << 30;
/// Watermarks of a node that has nothing to publish may take so many bytes in an aggregate; the next one goes to
/// another, and what only had watermarks is removed.
pub const WATERMARKS_MAX: u64 = 4 << 20;
/// More aggregates than this of one node are joined, smallest first, so that opening stays quick.
const AGGREGATES_MAX: usize = 16;
/// Larger ones are not copied for that.
const JOINED_MAX: u64 = 64 << 20;

/// One of a node's aggregates, as far as it matters for reclaiming.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its place in the store that it comes from.
    pub id: AggregateId,
    /// Its identity in every store.
    pub uuid: [u8; 16],
    /// Its file.
    pub path: PathBuf,
    /// Where it begins in a file that it shares with others.
    pub first: Option<u64>,
    /// Whose it is.
    pub node: String,
    /// Bytes that it takes, without those of watermarks that stand alone.
    pub written_bytes: u64,
    /// The latter.
    pub watermark_bytes: u64,
    /// Whether it was closed in peace.
    pub sealed: bool,
    /// What it holds that is in the namespace.
    pub live: Live,
}

impl Candidate {
    /// Locks it: nobody writes to one that can be locked.
    pub fn lock(&self) -> Lock {
        lock_place(&self.path, self.first)
    }

    /// Removes it for good: a power failure must not bring it back without what is removed after it.
    ///
    /// # Errors
    /// From the file system; none when it is not there any more.
    pub fn remove(&self) -> io::Result<()> {
        let removed = match self.first {
            None => fs::remove_file(&self.path).and_then(|()| self.path.parent().map_or(Ok(()), sync_directory)),
            Some(_) => remove_part(&self.path, self.uuid),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }

    fn dead_bytes(&self) -> u64 {
        self.written_bytes.saturating_sub(self.live.bytes)
    }

    fn is_dead(&self) -> bool {
        self.live == Live::default()
    }

    /// Whether the next segment should go to a new aggregate: this one is large, or has so much in it that is dead that
    /// it is better left to die.
    pub fn is_full(&self) -> bool {
        let mostly_dead = self.dead_bytes().saturating_sub(2 * BLOCK) >= self.written_bytes / 4;
        self.written_bytes >= LARGE
            || self.watermark_bytes >= WATERMARKS_MAX
            || (self.written_bytes > WORTHWHILE && mostly_dead)
    }
}

/// Why an aggregate is to be reclaimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Nothing in it is alive, or there is too much that is dead: it may only cost less than it frees.
    Space,
    /// There are too many aggregates.
    Number,
}

/// The aggregate that should be reclaimed next, if any: one that is dead; else, when there is more than twice of what
/// is alive, the one with the largest part dead; else the smallest of too many. `current` is still written to;
/// `is_open` says which may still be tried.
pub fn next_victim(
    candidates: &[Candidate],
    current: Option<[u8; 16]>,
    is_open: impl Fn(&Candidate, Cause) -> bool,
) -> Option<(&Candidate, Cause)> {
    let open = |cause| {
        candidates.iter().filter({
            let is_open = &is_open;
            move |candidate: &&Candidate| is_open(candidate, cause)
        })
    };
    let is_closed = |candidate: &&Candidate| Some(candidate.uuid) != current;
    let mut for_space = open(Cause::Space).filter(|candidate| candidate.is_dead()).filter(is_closed);
    if let Some(dead) = for_space.next() {
        return Some((dead, Cause::Space));
    }
    let dead_part = |candidate: &&Candidate| candidate.dead_bytes() * 1000 / candidate.written_bytes.max(1);
    let mostly_dead = open(Cause::Space).filter(|_| is_too_much(candidates)).max_by_key(dead_part);
    if let Some(mostly_dead) = mostly_dead {
        return Some((mostly_dead, Cause::Space));
    }
    let joinable = open(Cause::Number).filter(is_closed).filter(|candidate| candidate.written_bytes <= JOINED_MAX);
    let smallest = joinable.min_by_key(|candidate| candidate.written_bytes);
    smallest.filter(|_| candidates.len() > AGGREGATES_MAX).map(|candidate| (candidate, Cause::Number))
}

/// Whether more than twice of what is alive is taken, and what is always there.
fn is_too_much(candidates: &[Candidate]) -> bool {
    let written: u64 = candidates.iter().map(|candidate| candidate.written_bytes).sum();
    let live: u64 = candidates.iter().map(|candidate| candidate.live.bytes).sum();
    written > 2 * (live + 2 * BLOCK) + WORTHWHILE
}

/// What must be copied before an aggregate may go.
#[derive(Debug)]
pub struct Plan {
    victim: AggregateId,
    /// Its file.
    pub path: PathBuf,
    /// The copies, in order. None is needed when this is empty.
    pub copies: Vec<Copied>,
    /// Bytes that the copies take.
    pub copied_bytes: u64,
}

impl Plan {
    /// Whether it is worth its cost: what stays, in an aggregate of its own, is less than half of what goes. So nothing
    /// can be copied again and again for little.
    pub fn frees_half_of(&self, written_bytes: u64) -> bool {
        self.copied_bytes == 0 || self.copied_bytes.saturating_add(2 * BLOCK) <= written_bytes / 2
    }
}

/// Bytes of a segment with these copies; holes are not written.
fn segment_bytes(identity: &Identity, copies: &[Copied]) -> u64 {
    if copies.is_empty() {
        return 0;
    }
    let entries: Vec<Entry> = copies.iter().map(|copy| copy.entry.clone()).collect();
    let holes: u64 = entries.iter().map(|entry| entry.size - data_bytes(entry)).sum();
    let plan = SegmentPlan::new(identity, FIRST_SEQUENCE, entries, &mut TarNames::default());
    // More than one segment can hold is more than anybody should copy at once.
    plan.map_or(u64::MAX, |plan| plan.length().saturating_sub(holes))
}

fn data_bytes(entry: &Entry) -> u64 {
    entry.extents.iter().map(|extent| extent.length).sum()
}

/// A record that is copied.
#[derive(Clone, Debug)]
pub struct Copied {
    /// The copy.
    pub entry: Entry,
    /// A file's data.
    pub version: Option<Arc<Version>>,
    /// Where the original is in its aggregate.
    pub sequence: u64,
}

/// Why an aggregate cannot be reclaimed now.
#[derive(Debug)]
pub struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

fn refuse<T>(why: impl fmt::Display) -> Result<T, Refusal> {
    Err(Refusal(why.to_string()))
}

/// The store as it is on disk, with every record: what a reader would see that came now.
pub struct Planner {
    store: Store,
    history: Vec<Addition>,
    nobody_else_writes: bool,
    /// How far the nodes' clocks may be apart.
    skew: Duration,
}

impl Planner {
    /// Reads the whole store.
    ///
    /// # Errors
    /// When it cannot be listed, or changes faster than it can be read.
    pub fn read(directory: &Path, skew: Duration) -> io::Result<Planner> {
        // Nothing is removed because of a catalog.
        let mut store = Store { trusts_catalog: false, ..Store::empty(&[directory.to_owned()]) };
        let history = store.load_history()?;
        Ok(Planner { store, history, nobody_else_writes: false, skew })
    }

    /// The caller knows that no other node adds to the store, though some have not closed their aggregates.
    pub fn nobody_else_writes(&mut self) {
        self.nobody_else_writes = true;
    }

    /// As [`Store::seal_segment`], for an aggregate that copies were published in.
    ///
    /// # Errors
    /// As there.
    pub fn seal_segment(&self, identity: &Identity, place: (u64, u64), watermark: Entry) -> io::Result<Sealed> {
        let (id, _) = self.store.by_uuid(identity.uuid).ok_or(io::ErrorKind::NotFound)?;
        self.store.seal_segment(id, identity, place, watermark)
    }

    /// The aggregates of a node, or of all.
    pub fn candidates(&self, node: Option<&str>) -> Vec<Candidate> {
        self.store.candidates(node)
    }

    /// Plans to reclaim an aggregate. `needed` are places in it that somebody needs besides the namespace; `own` is the
    /// aggregate that the caller writes to.
    ///
    /// # Errors
    /// Why it cannot be done now.
    pub fn plan(&self, uuid: [u8; 16], needed: &HashSet<u64>, own: Option<[u8; 16]>) -> Result<Plan, Refusal> {
        if let Some(note) = self.store.notes.iter().find(|note| !note.foreign) {
            return refuse(format_args!("nothing is reclaimed while something in the store cannot be read ({note})"));
        }
        let Some((victim, aggregate)) = self.store.by_uuid(uuid) else { return refuse("it is not there any more") };
        let unknown = |segment: &Segment| segment.record_count != segment.records.len() as u64;
        let of_victim = self.history.iter().filter(|addition| addition.id == victim);
        if of_victim.flat_map(|addition| &addition.segments).any(unknown) {
            return refuse("it has records of a later version of Sheaf");
        }
        if self.store.is_last_word(aggregate, self.nobody_else_writes) {
            return refuse("it is the last that is known of its node");
        }
        let view = self.store.view();
        let mut live = origins(view, victim);
        live.extend(needed);
        let mut all = steps(&self.history);
        all.retain(|step| counts(&self.store.limits, step));
        let everything = if self.store.limits.is_empty() { Vec::new() } else { steps(&self.history) };
        let is_cut = all.len() < everything.len() && !self.nobody_else_writes;
        let mut whole = view.emptied();
        if is_cut {
            if everything.iter().any(|step| step.id == victim && !counts(&self.store.limits, step)) {
                return refuse("it holds what was cut off when nodes were lost");
            }
            for step in &everything {
                whole.apply(step.id, step.segment.offset, step.record);
            }
            live.extend(origins(&whole, victim));
        }
        let (copies, without) = replay_without(&all, victim, &live, view.emptied())?;
        self.check_settled(&all, victim, (&live, &copies), self.settled_ns(aggregate, own, &all))?;
        if !is_same(view, &without) {
            return refuse("what is dead in it still decides what other records mean");
        }
        if is_cut {
            // What was cut off counts again if no node turns out to be lost.
            let (needed, without) = replay_without(&everything, victim, &live, view.emptied())?;
            let places = |steps: &[&Step<'_>]| steps.iter().map(|step| step.record.sequence).collect::<Vec<_>>();
            if places(&needed) != places(&copies) || !is_same(&whole, &without) {
                return refuse("what was cut off when nodes were lost may need it");
            }
        }
        let names = names(view, victim);
        let copies: Vec<Copied> = copies.into_iter().map(|step| copy_of(step, view, &names)).collect();
        let copied_bytes = segment_bytes(&aggregate.identity, &copies);
        Ok(Plan { victim, path: aggregate.path.clone(), copies, copied_bytes })
    }

    /// The one place that asks whether what superseded something is published on every node of the job: no cut that is
    /// made from here on, whichever of the nodes are lost, can be older than this time. Of nodes that tell no
    /// watermarks everything is known up to the newest operation that is published: each publishes in the order of its
    /// operations.
    fn settled_ns(&self, victim: &Aggregate, own: Option<[u8; 16]>, all: &[Step<'_>]) -> u64 {
        if self.nobody_else_writes {
            return u64::MAX;
        }
        let is_written = |other: &&Aggregate| {
            let elsewhere = other.identity.node != victim.identity.node;
            elsewhere || matches!(other.lock(), Lock::Busy)
        };
        let open = self.store.aggregates.iter().filter(|other| !other.gone && !other.sealed);
        let others = open.filter(|other| {
            other.identity.job == victim.identity.job
                && other.identity.stage == [0; 16]
                && other.identity.uuid != victim.identity.uuid
                && Some(other.identity.uuid) != own
        });
        let cut_ns = self.store.settled_cut_ns(&victim.identity.job, all, self.skew);
        others.filter(is_written).map(|other| other.newest_ns).chain([cut_ns]).min().unwrap_or(u64::MAX)
    }

    /// What is dropped must be older than the time up to which every operation is known, and must have been dead then:
    /// what is published late may still need what is newer.
    fn check_settled(
        &self,
        all: &[Step<'_>],
        victim: AggregateId,
        (live, staying): (&HashSet<u64>, &[&Step<'_>]),
        settled_ns: u64,
    ) -> Result<(), Refusal> {
        if all.last().is_none_or(|step| step.time_ns() <= settled_ns) {
            return Ok(());
        }
        let newer = |step: &&Step<'_>| step.id == victim && step.time_ns() > settled_ns;
        let is_dropped = all.iter().filter(newer).count() > staying.iter().copied().filter(newer).count();
        let mut then = self.store.view.emptied();
        for step in all.iter().take_while(|step| step.time_ns() <= settled_ns) {
            then.apply(step.id, step.segment.offset, step.record);
        }
        if is_dropped || !origins(&then, victim).is_subset(live) {
            return refuse("another node of the job has not published everything of that time");
        }
        Ok(())
    }

    /// Opens the data of a version that a plan names.
    ///
    /// # Errors
    /// As [`Store::reader`].
    pub fn reader(&self, version: &Arc<Version>) -> io::Result<VersionReader> {
        self.store.copier(version)
    }

    /// Takes note that copies have been published in this segment of an aggregate.
    ///
    /// # Errors
    /// When there are more aggregates than can be counted.
    pub fn copied(
        &mut self,
        (path, first): (&Path, Option<u64>),
        identity: &Identity,
        segment: &Segment,
    ) -> io::Result<()> {
        let known = self.store.by_uuid(identity.uuid).map(|(id, _)| id);
        let id = known.map_or_else(|| self.store.add_own(path, first, identity), Ok)?;
        self.store.aggregates[id.0 as usize].take_in(segment);
        self.history.push(Addition { id, uuid: identity.uuid, segments: vec![segment.clone()] });
        Ok(())
    }

    /// Takes note that an aggregate has been removed.
    pub fn removed(&mut self, plan: &Plan) {
        self.history.retain(|addition| addition.id != plan.victim);
        self.store.aggregates[plan.victim.0 as usize].gone = true;
        self.store.view = View::default();
        self.store.apply(&self.history);
    }
}

/// Whether a record is something in the namespace, not something that is done to it.
fn is_content(step: &Step<'_>) -> bool {
    matches!(step.record.entry.kind, Kind::File | Kind::Symlink | Kind::Directory)
}

/// The records of an aggregate that the namespace shows.
fn origins(view: &View, aggregate: AggregateId) -> HashSet<u64> {
    view.nodes().filter_map(Node::record).filter(|(of, _)| *of == aggregate).map(|(_, sequence)| sequence).collect()
}

/// Replays all records without those of an aggregate that need not stay. Yields those that must, and the namespace.
fn replay_without<'a, 'b>(
    all: &'b [Step<'a>],
    victim: AggregateId,
    live: &HashSet<u64>,
    empty: View,
) -> Result<(Vec<&'b Step<'a>>, View), Refusal> {
    let (mut view, mut staying) = (empty, Vec::new());
    for (index, step) in all.iter().enumerate() {
        let apply = |view: &mut View| view.apply(step.id, step.segment.offset, step.record);
        if step.id != victim {
            apply(&mut view);
            continue;
        }
        let stays = if is_content(step) {
            live.contains(&step.record.sequence) && apply(&mut view)
        } else {
            // What a copy of it does already, or what does nothing, is not needed.
            let copied = at_the_same_time(all, index).any(|other| other.id != victim && is_copy(other, step));
            !copied && apply(&mut view)
        };
        if stays {
            // A copy stands right behind its original. With others of the same time it might stand behind these: clocks
            // tick every few milliseconds, and nodes write their checkpoints at once.
            if at_the_same_time(all, index).any(|other| !is_copy(other, step) && !commute(other, step)) {
                return refuse("two records have the same time");
            }
            staying.push(step);
        }
    }
    Ok((staying, view))
}

/// The other records of the same time.
fn at_the_same_time<'a, 'b>(all: &'b [Step<'a>], index: usize) -> impl Iterator<Item = &'b Step<'a>> {
    let time_ns = all[index].time_ns();
    let before = all[..index].iter().rev().take_while(move |step| step.time_ns() == time_ns);
    before.chain(all[index + 1..].iter().take_while(move |step| step.time_ns() == time_ns))
}

/// Whether one of two records of the same time is a copy of the other, or both of a third.
fn is_copy(one: &Step<'_>, other: &Step<'_>) -> bool {
    let (first, second) = (&one.record.entry, &other.record.entry);
    let same_target = first.kind == Kind::File || first.target == second.target;
    (first.is_moved() || second.is_moved()) && first.kind == second.kind && first.path == second.path && same_target
}

/// Whether two records give the same in either order, as far as that is plain: they are about names that have nothing
/// to do with each other. What concerns a file by any of its names is not.
fn commute(one: &Step<'_>, other: &Step<'_>) -> bool {
    let (Some(first), Some(second)) = (concerned(&one.record.entry), concerned(&other.record.entry)) else {
        return false;
    };
    let touch = |one: &[u8], other: &[u8]| is_at_or_below(one, other) || is_at_or_below(other, one);
    !first.iter().any(|name| second.iter().any(|other| touch(name, other)))
}

/// The names that a record is about, the same one twice if there is no other; nothing where a file's further names may
/// matter.
fn concerned(entry: &Entry) -> Option<[&[u8]; 2]> {
    match entry.kind {
        Kind::File | Kind::Directory | Kind::Symlink | Kind::Unlink | Kind::RemoveDirectory => {
            Some([&entry.path, &entry.path])
        }
        Kind::Rename => Some([&entry.path, &entry.target]),
        _ => None,
    }
}

/// Whether two views show the same. Directories of which only names below them tell go without saying.
fn is_same(one: &View, other: &View) -> bool {
    let shown =
        |(_, node): &(Vec<u8>, &Node)| !matches!(node, Node::Directory(directory) if directory.recorded.is_none());
    one.iter().filter(shown).eq(other.iter().filter(shown))
}

/// A name of each file of an aggregate.
fn names(view: &View, aggregate: AggregateId) -> HashMap<u64, Vec<u8>> {
    let mut names = HashMap::new();
    for (path, node) in view.iter() {
        if let Node::File(version) = node
            && version.aggregate == aggregate
        {
            names.entry(version.sequence).or_insert(path);
        }
    }
    names
}

/// The copy of a record. Stock readers of the archive see it as it is now.
fn copy_of(step: &Step<'_>, view: &View, names: &HashMap<u64, Vec<u8>>) -> Copied {
    let origin = Some((step.id, step.record.sequence));
    let mut entry = step.record.entry.clone();
    entry.operation_time_ns = step.time_ns();
    entry.flags = entry.flags & !FLAG_RENAMED | FLAG_MOVED;
    let at_its_path = view.get(&entry.path);
    let in_place = match entry.kind {
        Kind::File | Kind::Symlink => at_its_path.is_some_and(|node| node.origin() == origin),
        Kind::HardLink => at_its_path.is_some_and(|node| node.origin().is_some()),
        _ => true,
    };
    let mut data = None;
    if entry.kind == Kind::File {
        data = version(step.id, step.segment.offset, step.record).map(Arc::new);
        let name = names.get(&step.record.sequence).filter(|_| !in_place);
        entry.target = name.cloned().unwrap_or_default();
    }
    let is_shown_elsewhere = entry.kind == Kind::File && !entry.target.is_empty();
    if !in_place && !is_shown_elsewhere {
        entry.flags |= FLAG_RENAMED;
    }
    let name = names.get(&step.record.sequence);
    if matches!(name.and_then(|name| view.get(name)), Some(Node::File(version)) if version.is_contested()) {
        // Who copies it may be another stage, or nobody's, and what contests it may go with its name.
        entry.flags |= FLAG_CONTESTED;
    }
    Copied { entry, version: data, sequence: step.record.sequence }
}

impl Store {
    fn by_uuid(&self, uuid: [u8; 16]) -> Option<(AggregateId, &Aggregate)> {
        let is_it = |(_, aggregate): &(usize, &Aggregate)| !aggregate.gone && aggregate.identity.uuid == uuid;
        self.aggregates.iter().enumerate().find(is_it).map(|(index, found)| (AggregateId(index as u32), found))
    }

    /// The aggregates of a node, or of all, with what is alive in them. Copies would be this stage's, and what it lacks
    /// of them removed: so what other stages of the node publish is theirs to reclaim.
    pub fn candidates(&self, node: Option<&str>) -> Vec<Candidate> {
        let mut live = self.view.live();
        let is_there = |(_, aggregate): &(usize, &Aggregate)| !aggregate.gone && !aggregate.spooled;
        let numbered = self.aggregates.iter().enumerate().filter(is_there);
        let is_of = |aggregate: &Aggregate, node: &str| aggregate.identity.node == node && !self.is_beside(aggregate);
        let wanted = numbered.filter(|(_, aggregate)| node.is_none_or(|node| is_of(aggregate, node)));
        wanted
            .map(|(index, aggregate)| Candidate {
                id: AggregateId(index as u32),
                uuid: aggregate.identity.uuid,
                path: aggregate.path.clone(),
                first: aggregate.first,
                node: aggregate.identity.node.clone(),
                sealed: aggregate.sealed,
                written_bytes: aggregate.written_bytes + aggregate.tail_bytes,
                watermark_bytes: aggregate.watermark_bytes,
                live: live.remove(&AggregateId(index as u32)).unwrap_or_default(),
            })
            .collect()
    }

    /// The records of an aggregate that this store's namespace shows.
    pub fn shown_of(&self, aggregate: AggregateId) -> HashSet<u64> {
        origins(&self.view, aggregate)
    }

    /// Takes in a segment of copies that this process has just published, and yields the files' versions by their old
    /// places.
    pub fn publish_copies(
        &mut self,
        id: AggregateId,
        segment: &Segment,
        victim: AggregateId,
        copies: &[Copied],
    ) -> HashMap<(AggregateId, u64), Arc<Version>> {
        let Some(aggregate) = self.aggregates.get_mut(id.0 as usize) else { return HashMap::new() };
        aggregate.take_in(segment);
        let mut moved = HashMap::new();
        let mut versions = HashMap::new();
        for (copy, record) in copies.iter().zip(&segment.records) {
            let origin = (victim, copy.sequence);
            match version(id, segment.offset, record).map(Arc::new) {
                Some(version) => {
                    versions.insert(origin, version.clone());
                    moved.insert(origin, Moved::File(version));
                }
                None => drop(moved.insert(origin, Moved::Other(id, record.sequence))),
            }
        }
        self.view.relocate(&moved);
        versions
    }

    /// Takes note that an aggregate is about to be removed.
    pub fn forget(&mut self, gone: AggregateId) {
        if let Some(aggregate) = self.aggregates.get_mut(gone.0 as usize) {
            aggregate.gone = true;
        }
        self.view.forget_older(gone);
    }
}
