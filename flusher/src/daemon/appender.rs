//! An aggregate that is being written: made, given segments, sealed, or given up.
//!
//! Used by the flusher, by `sheaf prune` and by `sheaf merge`. Where nodes share files it is one's part of one:
//! [`Seat`] says where the next segment goes, and the rest is the same. It never appends to an aggregate that it has
//! not made itself, but for a merge that goes on with its own; after any error the aggregate must be abandoned: nothing
//! is known then about what it holds behind its published end.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::segment::{self, Input, Pace, SegmentError};
use super::shared::{self, Seat};
use crate::aggregate::{
    self, BLOCK, Entry, FIRST_SEQUENCE, FileChecksums, Identity, PlanError, Recovered, Segment, SegmentPlan, TarNames,
};
use crate::engine::{Data, Engine, Target, WriteError, sync_directory};
use crate::store::{Names, Sealed, remove_part};

/// End of the name of an aggregate whose first block is being written.
const ASIDE: &str = ".new";
/// An aggregate that has had no first block for this long is nobody's.
const ASIDE_LONGEST: Duration = Duration::from_secs(600);

/// See the module.
pub struct Appender {
    target: Arc<Target>,
    identity: Identity,
    /// Where the last segment ends, or the one that is being written begins.
    end: u64,
    sequence: u64,
    /// What plain tar readers have seen so far.
    names: TarNames,
    /// Where the file is shared with other nodes.
    seat: Option<Seat>,
}

impl Appender {
    /// Makes an aggregate of one block in a store, which is made if it is not there, and locks it.
    ///
    /// # Errors
    /// From the file system.
    pub fn create(store: &Path, origin: Origin) -> io::Result<Appender> {
        Appender::create_as(store, new_identity(&node_name(), origin)?)
    }

    /// As [`Appender::create`], one that goes on with what another has begun: for its stage, node and job.
    ///
    /// # Errors
    /// From the file system.
    pub fn create_like(store: &Path, other: &Identity) -> io::Result<Appender> {
        let Identity { uuid, created_ns, .. } = new_identity(&other.node, Origin::default())?;
        Appender::create_as(store, Identity { uuid, created_ns, incarnation: 1, ..other.clone() })
    }

    fn create_as(store: &Path, identity: Identity) -> io::Result<Appender> {
        fs::create_dir_all(store)?;
        let (identity, target) = publish_first_block(store, identity)?;
        sync_directory(store)?;
        Ok(Appender {
            target: Arc::new(target),
            identity,
            end: BLOCK,
            sequence: FIRST_SEQUENCE,
            names: TarNames::default(),
            seat: None,
        })
    }

    /// Begins an aggregate in one of `count` files that all nodes of a store write to. Nobody is waited for longer than
    /// `limit`.
    ///
    /// # Errors
    /// When nodes cannot share files there, or from the file system.
    pub fn share(store: &Path, count: u32, origin: Origin, limit: Duration) -> io::Result<Appender> {
        fs::create_dir_all(store)?;
        let identity = new_identity(&node_name(), origin)?;
        let (seat, target) = Seat::take(store, count, &identity, limit)?;
        Ok(Appender {
            target: Arc::new(target),
            identity,
            end: seat.first() + BLOCK,
            sequence: FIRST_SEQUENCE,
            names: TarNames::default(),
            seat: Some(seat),
        })
    }

    /// Makes an aggregate of one block under this very path, outside of any store. It must not exist.
    ///
    /// # Errors
    /// From the file system.
    pub fn create_apart(path: &Path, node: &str) -> io::Result<Appender> {
        let identity = new_identity(node, Origin::default())?;
        let target = Target::create(path)?;
        target.allocate(0, 2 * BLOCK)?;
        target.write_buffered(0, &aggregate::format_entry(&identity))?;
        target.sync_data()?;
        let names = TarNames::default();
        Ok(Appender { target: Arc::new(target), identity, end: BLOCK, sequence: FIRST_SEQUENCE, names, seat: None })
    }

    /// Goes on with what [`Appender::create_apart`] began and nobody sealed: `target` is its file, and `recovered` what
    /// was published in it.
    ///
    /// # Errors
    /// From the file system.
    pub fn go_on(target: Target, recovered: &Recovered) -> io::Result<Appender> {
        // What was not published must read as zeros where the next segment has holes.
        target.set_length(recovered.published_end)?;
        target.set_length(recovered.published_end + BLOCK)?;
        Ok(Appender {
            target: Arc::new(target),
            identity: recovered.identity.clone(),
            end: recovered.published_end,
            sequence: recovered.next_sequence,
            names: TarNames::after(&recovered.segments),
            seat: None,
        })
    }

    /// Whose aggregate it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        self.target.path()
    }

    /// Its file, and where it begins if it shares that with others.
    pub fn place(&self) -> (&Path, Option<u64>) {
        (self.path(), self.seat.as_ref().map(Seat::first))
    }

    /// Where the last segment ends.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Plans the next segment.
    ///
    /// # Errors
    /// When an entry is none that can be recorded.
    pub fn plan(&mut self, entries: Vec<Entry>) -> Result<SegmentPlan, PlanError> {
        SegmentPlan::new(&self.identity, self.sequence, entries, &mut self.names)
    }

    /// Writes a planned segment and makes it durable; nobody sees it yet. Yields the checksums.
    ///
    /// # Errors
    /// The first failure; only [`Appender::abandon`] may follow.
    pub fn write(
        &mut self,
        engine: &mut dyn Engine,
        plan: &SegmentPlan,
        inputs: &[Input<'_>],
        pace: Pace<'_>,
    ) -> Result<Vec<Option<FileChecksums>>, SegmentError> {
        self.reserve(plan.length(), &segment::written_ranges(plan)).map_err(|error| self.error(&error))?;
        let written = segment::write(engine, &self.target, self.end, plan, inputs, pace);
        let finished = engine.finish();
        let checksums = written?;
        finished?;
        if self.seat.is_some() {
            // Readers pass over the whole range until its header says that it counts.
            self.write_through(engine, self.end, &plan.head())?;
        }
        self.target.sync_data().map_err(|error| self.error(&error))?;
        Ok(checksums)
    }

    /// Makes room for the next segment, of so many bytes, where these parts of it are written and the block behind it.
    fn reserve(&mut self, bytes: u64, written: &[(u64, u64)]) -> io::Result<()> {
        match &mut self.seat {
            None => written.iter().try_for_each(|(start, end)| self.target.allocate(self.end + start, end - start)),
            Some(seat) => {
                let place = (&self.identity, self.sequence);
                self.end = seat.reserve(&self.target, place, bytes, written)?;
                Ok(())
            }
        }
    }

    /// Makes the segment that was written visible, then durable as visible.
    ///
    /// # Errors
    /// As [`Appender::write`]; also when the aggregate has lost its name: nobody would find the segment.
    pub fn publish(
        &mut self,
        engine: &mut dyn Engine,
        plan: SegmentPlan,
        checksums: Vec<Option<FileChecksums>>,
    ) -> Result<Segment, WriteError> {
        match &mut self.seat {
            None => {
                self.write_through(engine, self.end, &plan.head())?;
                self.target.sync_data()
            }
            Some(seat) => seat.publish(&self.target),
        }
        .map_err(|error| self.error(&error))?;
        if self.target.is_removed() {
            return Err(self.error(&io::ErrorKind::NotFound.into()));
        }
        let segment = plan.into_segment(self.end, checksums);
        self.end += segment.length;
        self.sequence += 1;
        Ok(segment)
    }

    /// Adds the segment with the index that lets a reader open the aggregate in a few reads, and cuts the file to its
    /// end if it has it alone. `make` yields the segment that has a sequence and begins at an offset, which changes
    /// nothing of its length.
    ///
    /// # Errors
    /// From the file system. Unsealed is as good as sealed, only slower to open.
    pub fn seal(
        mut self,
        engine: &mut dyn Engine,
        make: impl Fn((u64, u64)) -> io::Result<Sealed>,
    ) -> io::Result<Sealed> {
        let mut segment = make((self.sequence, self.end))?;
        let length = segment.bytes.len() as u64;
        self.reserve(length, &[(0, length + BLOCK)])?;
        if let Some(seat) = &mut self.seat {
            segment = make((self.sequence, self.end))?;
            let bytes = [&segment.head[..], &segment.bytes[segment.head.len()..]].concat();
            write_through(engine, &self.target, self.end, &bytes).map_err(io::Error::other)?;
            self.target.sync_data()?;
            seat.publish(&self.target)?;
            return Ok(segment);
        }
        self.write_through(engine, self.end, &segment.bytes).map_err(io::Error::other)?;
        self.target.set_length(self.end + length + BLOCK)?;
        self.target.sync_data()?;
        self.write_through(engine, self.end, &segment.head).map_err(io::Error::other)?;
        self.target.sync_data()?;
        Ok(segment)
    }

    /// Whether nothing is published in it.
    pub fn is_empty(&self) -> bool {
        self.sequence == FIRST_SEQUENCE
    }

    /// Removes it: nothing that is published in it is needed.
    ///
    /// # Errors
    /// From unlink(2).
    pub fn remove(&self) -> io::Result<()> {
        if self.seat.is_some() {
            return remove_part(self.path(), self.identity.uuid);
        }
        // What has its name now may be another's.
        if self.target.is_removed() { Ok(()) } else { fs::remove_file(self.path()) }
    }

    /// Gives the aggregate up behind its published end. One that has published nothing is removed.
    pub fn abandon(mut self) {
        let given_up = self.seat.as_mut().map(|seat| seat.give_up(&self.target));
        let result = match (self.is_empty() || self.target.is_removed(), given_up) {
            (true, _) => self.remove(),
            (false, Some(given_up)) => given_up,
            // A head that may not be durable goes, too: what it stands for is written anew elsewhere.
            (false, None) => {
                let cut = self.target.set_length(self.end);
                cut.and_then(|()| self.target.set_length(self.end + BLOCK))
            }
        };
        if let Err(error) = result {
            log::warn!("{} keeps room that nothing uses: {error}", self.path().display());
        }
    }

    fn error(&self, error: &io::Error) -> WriteError {
        let errno = Errno::from_io_error(error).unwrap_or(Errno::NOENT);
        WriteError { offset: self.end, errno, path: self.path().to_owned() }
    }

    /// Writes bytes in whole blocks and waits for them.
    fn write_through(&self, engine: &mut dyn Engine, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
        write_through(engine, &self.target, offset, bytes)
    }
}

fn write_through(engine: &mut dyn Engine, target: &Arc<Target>, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut block = engine.block()?;
        let at = offset + (bytes.len() - rest.len()) as u64;
        let count = block.append(rest);
        rest = &rest[count..];
        engine.write(target, at, Data::Block(block))?;
    }
    engine.finish()
}

impl Drop for Appender {
    fn drop(&mut self) {
        self.target.unlock();
    }
}

/// The host's name, fit for a file name.
pub fn node_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let fit = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    let name: String = name.chars().map(|character| if fit(character) { character } else { '_' }).collect();
    if name.is_empty() || name.starts_with('.') { format!("node{name}") } else { name }
}

/// Whose an aggregate is, and what is told of its stage in others: see [`Identity`]. The default is for what no stage
/// publishes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin {
    /// See [`Identity`], also for the others.
    pub stage: [u8; 16],
    /// See there.
    pub watermark_ns: u64,
    /// See there.
    pub acknowledged_ns: u64,
}

fn new_identity(node: &str, origin: Origin) -> io::Result<Identity> {
    let Origin { stage, watermark_ns, acknowledged_ns } = origin;
    let mut uuid = [0; 16];
    rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty())?;
    let job = std::env::var("SLURM_JOB_ID").unwrap_or_default();
    let (node, created_ns) = (node.to_string(), super::now_ns());
    Ok(Identity { uuid, node, job, incarnation: 1, created_ns, stage, watermark_ns, acknowledged_ns })
}

/// Makes an aggregate of one block and no segment, under the first free `<node>-<n>.tar`. It is made aside and gets
/// that name last: readers of tar refuse a file that is empty.
fn publish_first_block(directory: &Path, mut identity: Identity) -> io::Result<(Identity, Target)> {
    let node = identity.node.clone();
    let mut target = Target::create(&aside(directory, &node, identity.uuid))?;
    remove_abandoned(directory, &node, &target);
    let named = name_first_block(directory, &mut identity, &mut target);
    if named.is_err() {
        // It is one more that was abandoned.
        let _ = fs::remove_file(target.path());
    }
    named.map(|()| (identity, target))
}

/// The name of a file that has none yet; what a killed process leaves is removed by [`remove_abandoned`].
fn aside(directory: &Path, node: &str, uuid: [u8; 16]) -> PathBuf {
    directory.join(format!(".{node}-{:032x}{ASIDE}", u128::from_be_bytes(uuid)))
}

/// Gives it a name that is free: no file has it, nor the newest catalog.
fn name_first_block(directory: &Path, identity: &mut Identity, target: &mut Target) -> io::Result<()> {
    target.allocate(0, 2 * BLOCK)?;
    loop {
        let taken = Names::read(directory)?;
        let name = give_free_name(directory, identity, target, &taken)?;
        // A catalog that was made meanwhile may have the name, for an aggregate that was reclaimed since.
        if taken.are_newest(directory)? || Names::read(directory)?.allow(&name) {
            return Ok(());
        }
        identity.incarnation += 1;
    }
}

/// Writes the first block for one number after the other, until one is free. Yields the name.
fn give_free_name(directory: &Path, identity: &mut Identity, target: &mut Target, taken: &Names) -> io::Result<String> {
    loop {
        let name = format!("{}-{}.tar", identity.node, identity.incarnation);
        let path = directory.join(&name);
        if taken.allow(&name) && fs::symlink_metadata(&path).is_err() {
            target.write_buffered(0, &aggregate::format_entry(identity))?;
            target.sync_data()?;
            match target.give_name(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                outcome => return outcome.map(|()| name),
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
        let is_own = name.starts_with(format!(".{node}-").as_bytes()) && name.ends_with(ASIDE.as_bytes());
        let is_old = || modified(&path).is_ok_and(|then| now.duration_since(then).is_ok_and(|age| age > ASIDE_LONGEST));
        if (is_own || shared::is_aside(name)) && is_old() {
            // A flusher that was this slow is told so when it gives the name, and begins again.
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::atomic::AtomicU64;
    use std::time::SystemTime;

    use parking_lot::RwLock;

    use super::*;
    use crate::aggregate::{Attributes, Extents, Kind};
    use crate::store::{Outcome, Store, build_catalog, refresh};

    fn identity() -> Identity {
        new_identity("n0", Origin::default()).unwrap()
    }

    #[test]
    fn a_head_that_may_not_be_durable_goes_when_the_aggregate_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let mut appender = Appender::create(directory.path(), Origin::default()).unwrap();
        let mut engine = crate::engine::probe().0;
        let mut write = |appender: &mut Appender, time_ns| {
            let plan = appender.plan(vec![Entry::watermark(time_ns, 0)]).unwrap();
            let pace = Pace { throttle: None, written_bytes: &AtomicU64::new(0) };
            let checksums = appender.write(engine.as_mut(), &plan, &[Input::Nothing], pace).unwrap();
            (plan, checksums)
        };
        let (plan, checksums) = write(&mut appender, 1);
        appender.publish(crate::engine::probe().0.as_mut(), plan, checksums).unwrap();
        let (plan, _) = write(&mut appender, 2);
        // As far as a publication comes whose sync fails.
        appender.write_through(crate::engine::probe().0.as_mut(), appender.end, &plan.head()).unwrap();
        let path = appender.path().to_owned();
        let segments = || aggregate::recover(&File::open(&path).unwrap()).unwrap().segments.len();
        assert_eq!(segments(), 2);
        appender.abandon();
        assert_eq!(segments(), 1);
    }

    #[test]
    fn node_names_are_file_names() {
        let name = node_name();
        assert!(!name.is_empty() && !name.contains('/') && !name.starts_with('.'));
    }

    #[test]
    fn aggregates_are_numbered_without_overwriting() {
        let directory = tempfile::tempdir().unwrap();
        let (first, target) = publish_first_block(directory.path(), identity()).unwrap();
        let (second, _) = publish_first_block(directory.path(), identity()).unwrap();
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
    fn a_name_that_a_catalog_has_is_not_given_again() {
        let directory = tempfile::tempdir().unwrap();
        publish_first_block(directory.path(), identity()).unwrap();
        assert!(matches!(build_catalog(directory.path()), Ok(Outcome::Built(_))));
        fs::remove_file(directory.path().join("n0-1.tar")).unwrap();
        let (next, _) = publish_first_block(directory.path(), identity()).unwrap();
        assert_eq!(next.incarnation, 2);
    }

    #[test]
    fn what_a_killed_flusher_left_is_removed_later() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str, age: Duration| {
            let file = File::create(directory.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        };
        let old = ASIDE_LONGEST + Duration::from_secs(60);
        let shared = ".shared-1-1.tar.0f-new";
        for (name, age) in
            [(".n0-1.new", old), (".n0-2.new", Duration::ZERO), (".n1-1.new", old), ("n0-9.tar", old), (shared, old)]
        {
            make(name, age);
        }
        publish_first_block(directory.path(), identity()).unwrap();
        let left = |name: &str| directory.path().join(name).exists();
        let names = [".n0-1.new", ".n0-2.new", ".n1-1.new", "n0-9.tar", shared];
        assert_eq!(names.map(left), [false, true, true, true, false]);
    }

    /// Publishes a directory, which has no data.
    fn publish(appender: &mut Appender, path: &str, operation_time_ns: u64) -> Segment {
        let entry = Entry {
            kind: Kind::Directory,
            path: path.into(),
            target: Vec::new(),
            attributes: Attributes::default(),
            size: 0,
            extents: Extents::new(),
            operation_time_ns,
            change_time_ns: 0,
            inode: 1,
            flags: 0,
        };
        let mut engine = crate::engine::probe().0;
        let plan = appender.plan(vec![entry]).unwrap();
        let pace = Pace { throttle: None, written_bytes: &AtomicU64::new(0) };
        let checksums = appender.write(engine.as_mut(), &plan, &[Input::Nothing], pace).unwrap();
        appender.publish(engine.as_mut(), plan, checksums).unwrap()
    }

    #[test]
    fn what_this_process_publishes_in_a_shared_file_is_no_news_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let share = |number: u8| {
            let origin = Origin { stage: [number; 16], ..Origin::default() };
            Appender::share(directory.path(), 1, origin, Duration::from_secs(60)).unwrap()
        };
        let mut other = share(2);
        publish(&mut other, "run/before", 10);
        let store = RwLock::new(Store::open_whole(directory.path(), [1; 16]).unwrap());
        let mut own = share(1);
        // Neither as long as it is not told of, nor then.
        assert!(refresh(&store).unwrap().is_empty());
        let (path, first) = own.place();
        let id = store.write().add_own(path, first, own.identity()).unwrap();
        for number in 0..3 {
            let segment = publish(&mut own, &format!("run/own-{number}"), 20 + number);
            assert!(refresh(&store).unwrap().is_empty());
            store.write().publish(id, &segment);
            assert!(refresh(&store).unwrap().is_empty());
        }
        publish(&mut other, "run/after", 30);
        let changed = refresh(&store).unwrap();
        assert_eq!(changed.names.into_iter().collect::<Vec<_>>(), [b"run/after".to_vec()]);
        let names: Vec<_> =
            store.read().view().children(b"run").map(|(name, _)| name.escape_ascii().to_string()).collect();
        assert_eq!(names, ["after", "before", "own-0", "own-1", "own-2"]);
        // Everything is read anew, also where this process has closed a part in peace.
        let identity = own.identity().clone();
        let last_word = || Entry::watermark(40, crate::aggregate::FLAG_CONTINUED);
        let make = |place| store.read().seal_segment(id, &identity, place, last_word());
        let sealed = own.seal(crate::engine::probe().0.as_mut(), make).unwrap();
        store.write().sealed(id, &sealed);
        publish(&mut other, "run/own-0", 5);
        assert!(refresh(&store).unwrap().is_all);
        assert_eq!(store.read().view().children(b"run").count(), 5);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
