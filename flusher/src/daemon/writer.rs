//! The flusher thread: writes batches as segments, publishes them, and never gives one up.
//!
//! A batch whose writing failed stays staged and is written again, to a new aggregate: after an error nothing is known
//! about what the old one holds behind its published end, and a failed fdatasync must never be tried again on the same
//! file (its dirty pages may have been dropped).

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use sheaf_common::replaced::Marker;

use super::Shared;
use super::segment::{self, Pace, SegmentError, Throttle};
use crate::aggregate::{self, BLOCK, Entry, FIRST_SEQUENCE, FileChecksums, Identity, Kind, SegmentPlan, TarNames};
use crate::engine::{Data, Engine, Target, WriteError};
use crate::stage::source::Source;
use crate::stage::tracker::{Batch, Replaced};
use crate::store::AggregateId;

/// First and longest pause before a failed batch is written again.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(30);

/// End of the name of an aggregate whose first block is being written.
const ASIDE: &str = ".new";
/// An aggregate that has had no first block for this long is nobody's.
const ASIDE_LONGEST: Duration = Duration::from_secs(600);

/// What the writer is told.
#[derive(Debug)]
pub enum Job {
    /// Publish this batch, known by this number.
    Batch(u64, Batch),
    /// The successors of these are published.
    Replaced(Vec<Replaced>),
    /// Seal the aggregate: the flusher is about to end. Answered when done, whether it worked or not.
    Seal(Sender<()>),
}

/// The aggregate that is being written.
struct Aggregate {
    target: Arc<Target>,
    identity: Identity,
    id: AggregateId,
    /// Where the next segment begins.
    end: u64,
    sequence: u64,
    /// What plain tar readers have seen so far.
    names: TarNames,
}

/// The flusher thread's state.
pub struct Writer {
    shared: Arc<Shared>,
    engine: Box<dyn Engine>,
    jobs: Receiver<Job>,
    aggregate: Option<Aggregate>,
    throttle: Option<Throttle>,
    /// Bytes of the segments that are published.
    published_bytes: u64,
    /// Inodes of files that were left out of a batch and are not published since.
    left_out: HashSet<u64>,
}

/// Why a batch is not published yet.
enum Failure {
    /// The store: try again later.
    Store(String),
    /// The stage is being deleted: removals are not the programs'.
    Destroyed,
    /// These entries' files were torn or could not be read: go on without them, they will complete again.
    Entries(Vec<usize>),
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Failure {
        Failure::Store(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Store(error.to_string())
    }
}

impl Writer {
    /// Everything it needs.
    pub fn new(shared: Arc<Shared>, engine: Box<dyn Engine>, jobs: Receiver<Job>) -> Writer {
        let throttle = shared.settings.bandwidth.map(Throttle::new);
        Writer { shared, engine, jobs, aggregate: None, throttle, published_bytes: 0, left_out: HashSet::new() }
    }

    /// Runs until the last sender of jobs is gone.
    pub fn run(mut self) {
        while let Ok(job) = self.jobs.recv() {
            match job {
                Job::Batch(number, batch) => self.publish(number, batch),
                Job::Replaced(replaced) => self.remove_replaced(&replaced),
                Job::Seal(reply) => {
                    if let Err(Failure::Store(text)) = self.seal() {
                        // Unsealed is as good as sealed, only slower to open.
                        log::warn!("the aggregate was not sealed: {text}");
                    }
                    let _ = reply.send(());
                }
            }
        }
    }

    fn publish(&mut self, number: u64, mut batch: Batch) {
        let mut pause = RETRY_FIRST;
        while !batch.entries.is_empty() {
            match self.write_segment(&batch.entries, &batch.sources) {
                Ok(()) => break,
                Err(Failure::Entries(indices)) => {
                    self.abandon();
                    self.leave_out(&mut batch, indices);
                }
                Err(Failure::Destroyed) => {
                    log::error!("somebody deletes the stage: nothing is removed from the store");
                    self.abandon();
                    let kept: Vec<bool> = batch.entries.iter().map(|entry| !is_removal(entry)).collect();
                    let mut keep = kept.iter();
                    batch.entries.retain(|_| *keep.next().expect("as many"));
                    let mut keep = kept.iter();
                    batch.sources.retain(|_| *keep.next().expect("as many"));
                }
                Err(Failure::Store(text)) => {
                    self.abandon();
                    let store = self.shared.settings.store.display();
                    let text = format!("cannot publish to {store}: {text}; everything stays staged");
                    log::error!("{text}; trying again in {} s", pause.as_secs());
                    self.shared.set_error("store", Some(text));
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(RETRY_LONGEST);
                }
            }
        }
        self.shared.set_error("store", None);
        for entry in batch.entries.iter().filter(|entry| entry.kind == Kind::File) {
            self.left_out.remove(&entry.inode);
        }
        self.remove_replaced(&batch.replaced);
        batch.sources.iter().flatten().for_each(|source| source.release());
        let mut status = self.shared.status.lock();
        status.published_bytes += batch.bytes;
        status.published_files += batch.sources.iter().flatten().count() as u64;
        drop(status);
        self.shared.set_published(number);
        self.shared.commands.look();
    }

    /// Goes on without files that could not be read as they were. They are published again, as they are then.
    fn leave_out(&mut self, batch: &mut Batch, mut indices: Vec<usize>) {
        indices.sort_unstable();
        for index in indices.into_iter().rev() {
            let entry = batch.entries.remove(index);
            batch.sources.remove(index);
            log::warn!("/{} could not be read as it was; it will be published again", entry.path.escape_ascii());
            self.left_out.insert(entry.inode);
            self.shared.left_out.lock().push((entry.path, entry.inode));
        }
    }

    /// Gives the aggregate up behind its published end. One that has published nothing is removed.
    fn abandon(&mut self) {
        let Some(aggregate) = self.aggregate.take() else { return };
        let target = &aggregate.target;
        let result = if aggregate.sequence == FIRST_SEQUENCE {
            fs::remove_file(target.path())
        } else {
            target.set_length(aggregate.end + BLOCK)
        };
        if let Err(error) = result {
            log::warn!("{} keeps room that nothing uses: {error}", target.path().display());
        }
    }

    /// Writes one segment and publishes it.
    fn write_segment(&mut self, entries: &[Entry], sources: &[Option<Arc<Source>>]) -> Result<(), Failure> {
        if self.aggregate.is_none() {
            self.aggregate = Some(self.create_aggregate()?);
        }
        let aggregate = self.aggregate.as_mut().expect("made above");
        let plan = SegmentPlan::new(&aggregate.identity, aggregate.sequence, entries.to_vec(), &mut aggregate.names)
            .map_err(|error| {
                log::error!("{error}");
                error.index.map_or_else(|| Failure::Store(error.to_string()), |index| Failure::Entries(vec![index]))
            })?;
        for (start, end) in segment::written_ranges(&plan) {
            aggregate.target.allocate(aggregate.end + start, end - start)?;
        }
        // What an attempt that failed has written does not count.
        self.shared.written_bytes.store(self.published_bytes, Ordering::Relaxed);
        let engine = self.engine.as_mut();
        let pace = Pace { throttle: self.throttle.as_mut(), written_bytes: &self.shared.written_bytes };
        let written = segment::write(engine, &aggregate.target, aggregate.end, &plan, sources, pace);
        let finished = engine.finish();
        let checksums = match written {
            Err(SegmentError::Read(index, error)) => {
                log::error!("/{}: {error}", entries[index].path.escape_ascii());
                return Err(Failure::Entries(vec![index]));
            }
            Err(SegmentError::Write(error)) => return Err(error.into()),
            Ok(checksums) => checksums,
        };
        finished?;
        aggregate.target.sync_data()?;
        let torn: Vec<usize> = (0..sources.len())
            .filter(|index| sources[*index].as_ref().is_some_and(|source| source.is_torn()))
            .collect();
        if !torn.is_empty() {
            return Err(Failure::Entries(torn));
        }
        if entries.iter().any(is_removal) && !self.shared.stage.is_intact() {
            return Err(Failure::Destroyed);
        }
        self.publish_head(&plan, &checksums)
    }

    /// Makes a segment that is durable visible, then durable as visible.
    fn publish_head(&mut self, plan: &SegmentPlan, checksums: &[Option<FileChecksums>]) -> Result<(), Failure> {
        let aggregate = self.aggregate.as_mut().expect("a segment was written to it");
        write_through(self.engine.as_mut(), &aggregate.target, aggregate.end, &plan.head())?;
        aggregate.target.sync_data()?;
        let mut store = self.shared.store.write();
        store.publish(aggregate.id, aggregate.end, plan.length(), plan.sequence(), plan.records(checksums));
        drop(store);
        log::info!(
            "published segment {} of {}: {} records",
            plan.sequence(),
            aggregate.target.path().display(),
            plan.entries().len()
        );
        self.published_bytes = self.shared.written_bytes.load(Ordering::Relaxed);
        aggregate.end += plan.length();
        aggregate.sequence += 1;
        Ok(())
    }

    fn create_aggregate(&mut self) -> Result<Aggregate, Failure> {
        let directory = &self.shared.settings.store;
        fs::create_dir_all(directory)?;
        let (identity, target) = publish_first_block(directory, &node_name())?;
        File::open(directory)?.sync_all()?;
        let target = Arc::new(target);
        log::info!("writing to {} with {}", target.path().display(), self.engine.name());
        self.shared.status.lock().aggregate = Some(target.path().display().to_string());
        let id = self.shared.store.write().add_own(target.path(), &identity)?;
        Ok(Aggregate { target, identity, id, end: BLOCK, sequence: FIRST_SEQUENCE, names: TarNames::default() })
    }

    /// Removes older files on the parallel file system whose successors are published, and their markers.
    fn remove_replaced(&self, replaced: &[Replaced]) {
        for replaced in replaced.iter().filter(|replaced| !self.left_out.contains(&replaced.inode)) {
            let Some(marker) = Marker::parse(&replaced.marker) else { continue };
            let path = marker.path.escape_ascii();
            match self.shared.stage.remove_replaced(&marker) {
                Ok(true) => log::info!("removed {path}, its new version is published"),
                Ok(false) => {}
                Err(error) => log::warn!("{path} was left on the parallel file system: {error}"),
            }
        }
    }

    /// Adds the index that lets a reader open the aggregate in a few reads, and cuts the file to its end.
    fn seal(&mut self) -> Result<(), Failure> {
        let Some(aggregate) = self.aggregate.take() else { return Ok(()) };
        let (target, end) = (&aggregate.target, aggregate.end);
        let store = self.shared.store.read();
        let segment = store.seal_segment(aggregate.id, &aggregate.identity, aggregate.sequence, end)?;
        drop(store);
        let length = segment.bytes.len() as u64;
        target.allocate(end, length + BLOCK)?;
        write_through(self.engine.as_mut(), target, end, &segment.bytes)?;
        target.set_length(end + length + BLOCK)?;
        target.sync_data()?;
        write_through(self.engine.as_mut(), target, end, &segment.head)?;
        target.sync_data()?;
        Ok(())
    }
}

fn is_removal(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::Unlink | Kind::RemoveDirectory)
}

/// Writes bytes in whole blocks and waits for them.
fn write_through(engine: &mut dyn Engine, target: &Arc<Target>, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut block = engine.block()?;
        let at = offset + (bytes.len() - rest.len()) as u64;
        let count = block.append(rest);
        rest = &rest[count..];
        engine.write(target, at, Data::Block(block))?;
    }
    engine.finish()?;
    Ok(())
}

/// The host's name, fit for a file name.
pub fn node_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let fit = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    let name: String = name.chars().map(|character| if fit(character) { character } else { '_' }).collect();
    if name.is_empty() || name.starts_with('.') { format!("node{name}") } else { name }
}

/// Makes an aggregate of one block and no segment, under the first free `<node>-<n>.tar`. It is made aside and gets
/// that name last: readers of tar refuse a file that is empty.
fn publish_first_block(directory: &Path, node: &str) -> io::Result<(Identity, Target)> {
    let mut uuid = [0; 16];
    rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty())?;
    let job = std::env::var("SLURM_JOB_ID").unwrap_or_default();
    let mut identity = Identity { uuid, node: node.to_string(), job, incarnation: 1, created_ns: super::now_ns() };
    let mut target = Target::create(&directory.join(format!(".{node}-{:032x}{ASIDE}", u128::from_be_bytes(uuid))))?;
    remove_abandoned(directory, node, &target);
    let named = name_first_block(directory, &mut identity, &mut target);
    if named.is_err() {
        // It is one more that was abandoned.
        let _ = fs::remove_file(target.path());
    }
    named.map(|()| (identity, target))
}

/// Writes the first block for one number after the other, until one is free.
fn name_first_block(directory: &Path, identity: &mut Identity, target: &mut Target) -> io::Result<()> {
    target.allocate(0, 2 * BLOCK)?;
    loop {
        let path = directory.join(format!("{}-{}.tar", identity.node, identity.incarnation));
        if fs::symlink_metadata(&path).is_err() {
            target.write_buffered(0, &aggregate::format_entry(identity))?;
            target.sync_data()?;
            match target.give_name(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                outcome => return outcome,
            }
        }
        identity.incarnation += 1;
    }
}

/// Removes what flushers of this node that were killed in the middle of [`publish_first_block`] have left. Both times
/// are the file system's own.
fn remove_abandoned(directory: &Path, node: &str, own: &Target) {
    let modified = |path: &Path| fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    let (Ok(now), Ok(entries)) = (modified(own.path()), fs::read_dir(directory)) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let is_aside = name.starts_with(format!(".{node}-").as_bytes()) && name.ends_with(ASIDE.as_bytes());
        let is_old = || modified(&path).is_ok_and(|then| now.duration_since(then).is_ok_and(|age| age > ASIDE_LONGEST));
        if is_aside && is_old() {
            // A flusher that was this slow is told so when it gives the name, and begins again.
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn node_names_are_file_names() {
        let name = node_name();
        assert!(!name.is_empty() && !name.contains('/') && !name.starts_with('.'));
    }

    #[test]
    fn aggregates_are_numbered_without_overwriting() {
        let directory = tempfile::tempdir().unwrap();
        let (first, target) = publish_first_block(directory.path(), "n0").unwrap();
        let (second, _) = publish_first_block(directory.path(), "n0").unwrap();
        assert_eq!((first.incarnation, second.incarnation), (1, 2));
        assert_eq!(target.path(), directory.path().join("n0-1.tar"));
        let names = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert_eq!(names, ["n0-1.tar", "n0-2.tar"]);
        let recovered = aggregate::recover(&File::open(directory.path().join("n0-2.tar")).unwrap()).unwrap();
        assert_eq!(recovered.identity, second);
    }

    #[test]
    fn what_a_killed_flusher_left_is_removed_later() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str, age: Duration| {
            let file = File::create(directory.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        };
        let old = ASIDE_LONGEST + Duration::from_secs(60);
        for (name, age) in [(".n0-1.new", old), (".n0-2.new", Duration::ZERO), (".n1-1.new", old), ("n0-9.tar", old)] {
            make(name, age);
        }
        publish_first_block(directory.path(), "n0").unwrap();
        let left = |name: &str| directory.path().join(name).exists();
        assert_eq!([".n0-1.new", ".n0-2.new", ".n1-1.new", "n0-9.tar"].map(left), [false, true, true, true]);
    }
}
