//! The further tiers: what the store does not take fast enough waits there, so that the first tier can be emptied.
//!
//! The `spool` thread writes batches there when room is needed that does not come; each is an aggregate of one segment,
//! made by the same rules as those of the store. The flusher thread copies them to the store, before everything that is
//! newer. What is only here is published for this node alone: nobody is told that it is safe, and nothing older goes
//! for it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use parking_lot::{Condvar, Mutex};

use super::appender::Appender;
use super::segment::{Input, Pace};
use super::writer::{Failure, Job, check_staged, leave_out, leave_out_removals, segment_failure};
use super::{Shared, Status};
use crate::aggregate::{Entry, Kind, Segment, identify};
use crate::engine::Engine;
use crate::settings::Settings;
use crate::stage::Stage;
use crate::stage::spool::{Found, SpoolDirectory, find, has_room_for, put_aside, segment_files};
use crate::stage::tracker::{Batch, Replaced};
use crate::store::{AggregateId, Copied, SpooledSegment};

/// How long the further tiers are left alone when none of them could take a batch.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// How long a directory may take to say what is in it, if the stage knows that nothing is.
const EMPTY_LIMIT: Duration = Duration::from_secs(1);
/// How long a further tier may take nothing of a segment before the status says so.
const SILENT: Duration = Duration::from_secs(2);
/// What a segment takes besides its data, at most, for each of its entries.
const ENTRY_BYTES: u64 = 16 << 10;

/// A segment that the store has to get.
#[derive(Debug)]
pub(super) struct Spooled {
    /// The batch; 0 if an earlier flusher has spooled it.
    pub number: u64,
    pub what: SpooledSegment,
    /// Up to which time everything is published with it, and whether somebody is told then.
    pub told: (u64, bool),
    /// How many files had been left out by then.
    pub known_left_out: u64,
    /// Whether it goes to an aggregate of its own stage, whatever this process publishes.
    pub is_apart: bool,
    pub files: u64,
    pub bytes: u64,
}

/// A batch that is in no segment yet.
struct Waiting {
    number: u64,
    batch: Batch,
    /// What may go with it besides.
    replaced: Vec<Replaced>,
    /// Whether the store has it.
    is_stored: bool,
}

/// What is on its way to the store, in this order: segments, then batches.
#[derive(Default)]
struct Route {
    segments: VecDeque<(Arc<Spooled>, Vec<Replaced>)>,
    waiting: VecDeque<Waiting>,
    /// Whether room is needed that the store does not make.
    is_wanted: bool,
    /// Until when no further tier is tried.
    refused_until: Option<Instant>,
    /// Where a segment is being written.
    writing: Option<PathBuf>,
    /// What the store has, and could not be removed.
    keeping: HashSet<PathBuf>,
}

/// A directory that has been asked for something, how much it had taken by then, and when.
struct Asked {
    place: PathBuf,
    taken_bytes: u64,
    since: Instant,
}

/// What the flusher thread has to do next.
pub(super) enum Work {
    /// Copy this to the store.
    Segment(Arc<Spooled>),
    /// Publish this batch.
    Batch(u64, Batch),
}

/// What became of a batch that the store has taken.
pub(super) enum Taken {
    /// It is published by that.
    Batch,
    /// It had been spooled meanwhile. It is where it belongs.
    Segment(Arc<Spooled>),
    /// It had been spooled meanwhile, and not all of it is in the store.
    InPart,
}

/// See the module.
pub(super) struct Spool {
    stage: Stage,
    /// Where something may have been left, as far as nobody has looked.
    places: Mutex<Vec<PathBuf>>,
    /// Where more can be put, when that is known.
    tiers: OnceLock<Vec<PathBuf>>,
    directories: Mutex<Vec<SpoolDirectory>>,
    route: Mutex<Route>,
    changed: Condvar,
    jobs: Sender<Job>,
    /// Whether anything can be on this way at all.
    is_used: bool,
    /// How many files cannot be read, and are nowhere else.
    lost: AtomicUsize,
    /// Who has not answered yet.
    asked: Mutex<Option<Asked>>,
    /// What further tiers have taken.
    taken_bytes: AtomicU64,
}

/// What was found in a directory in which something may have been left.
enum Left {
    Nothing,
    Something(SpoolDirectory),
    /// Another flusher has it.
    Taken {
        /// And this stage has left something in it.
        is_ours: bool,
    },
    Refused(String),
}

impl Spool {
    /// With everything that can be known without asking a further tier: it may not answer.
    pub fn new(settings: &Settings, stage: &Stage, jobs: Sender<Job>) -> Spool {
        let mut places: Vec<PathBuf> = settings.stage_tiers.iter().map(|tier| settings.spool_directory(tier)).collect();
        places.extend(stage.spools().into_iter().map(|(place, _)| place));
        places.sort();
        places.dedup();
        let beside = stage.directory().parent();
        // The tier that the stage lies in answers.
        let can_hold = |place: &PathBuf| place.parent() != beside || matches!(find(place), Ok(Found::Own));
        let is_used = places.iter().any(can_hold);
        Spool {
            stage: stage.clone(),
            places: Mutex::new(places),
            tiers: OnceLock::new(),
            directories: Mutex::default(),
            route: Mutex::default(),
            changed: Condvar::new(),
            jobs,
            is_used,
            lost: AtomicUsize::new(0),
            asked: Mutex::default(),
            taken_bytes: AtomicU64::new(0),
        }
    }

    /// Takes the directories in which something may have been left, as far as that has not been done.
    ///
    /// # Errors
    /// When one of them cannot be looked at, and something may wait there: that is newer than what the store has, and
    /// without it nobody may be told what is the newest.
    pub fn take(&self, shared: &Shared) -> io::Result<()> {
        let noted = self.stage.spools();
        let places = self.places.lock().clone();
        for place in places {
            let may_wait = noted.iter().find(|(known, _)| *known == place).is_none_or(|(_, may_wait)| *may_wait);
            let problem = match self.look_into(&place, shared, may_wait) {
                Ok(Left::Nothing) => None,
                Ok(Left::Something(directory)) => {
                    self.directories.lock().push(directory);
                    None
                }
                Ok(Left::Taken { is_ours: true }) => {
                    let text = format!("another flusher is bringing to the store what waits in {}", place.display());
                    return Err(io::Error::other(text));
                }
                Ok(Left::Taken { is_ours: false }) => {
                    Some("another flusher has it; what waits there is not shown".to_string())
                }
                Ok(Left::Refused(text)) => Some(text),
                Err(error) if may_wait => return Err(io::Error::other(format!("{}: {error}", place.display()))),
                Err(error) => Some(error.to_string()),
            };
            if let Some(text) = problem {
                let text = format!("{} is not used: {text}", place.display());
                log::warn!("{text}");
                shared.set_error("tiers", Some(text));
            }
            self.places.lock().retain(|other| *other != place);
        }
        Ok(())
    }

    /// Looks into a directory, for as long as it takes if something may wait there; and has the stage know what does.
    fn look_into(&self, place: &Path, shared: &Shared, may_wait: bool) -> io::Result<Left> {
        let (directory, store, stage) = (place.to_owned(), shared.settings.store.clone(), shared.stage_uuid);
        let look = move || match find(&directory)? {
            Found::Nothing => Ok((Left::Nothing, false)),
            Found::Refused(text) => Ok((Left::Refused(text), may_wait)),
            Found::Own => match SpoolDirectory::open(&directory, &store)? {
                Some(opened) => Ok((Left::Something(opened), !segment_files(&directory)?.is_empty())),
                None => {
                    let is_ours = segment_files(&directory)?.iter().any(|file| may_be_of(file, stage));
                    Ok((Left::Taken { is_ours }, is_ours))
                }
            },
        };
        let asked = self.ask(place);
        let (left, waits) = if may_wait { look()? } else { within(EMPTY_LIMIT, look)? };
        drop(asked);
        if let Err(error) = self.stage.mark_spool(place, waits) {
            log::warn!("only SHEAF_STAGE tells the next flusher of {}: {error}", place.display());
        }
        Ok(left)
    }

    /// Takes note that a directory is being asked for something, until the answer is there.
    fn ask(&self, place: &Path) -> impl Drop + '_ {
        let taken_bytes = self.taken_bytes.load(Ordering::Relaxed);
        *self.asked.lock() = Some(Asked { place: place.to_owned(), taken_bytes, since: Instant::now() });
        Answered(self)
    }

    /// The directory that has not answered yet.
    pub fn asked(&self) -> Option<PathBuf> {
        self.asked.lock().as_ref().map(|asked| asked.place.clone())
    }

    /// The same, if it has taken nothing for a while.
    pub fn silent(&self) -> Option<PathBuf> {
        let mut asked = self.asked.lock();
        let asked = asked.as_mut()?;
        let taken_bytes = self.taken_bytes.load(Ordering::Relaxed);
        if taken_bytes != asked.taken_bytes {
            (asked.taken_bytes, asked.since) = (taken_bytes, Instant::now());
        }
        (asked.since.elapsed() >= SILENT).then(|| asked.place.clone())
    }

    /// Finds out where more can be put.
    fn look_at_tiers(&self, settings: &Settings) {
        let tiers = settings.further_tiers(self.stage.directory());
        self.tiers.get_or_init(|| tiers);
    }

    fn tiers(&self) -> &[PathBuf] {
        self.tiers.get().map_or(&[], Vec::as_slice)
    }

    /// Whether there are further tiers.
    pub fn has_tiers(&self) -> bool {
        !self.tiers().is_empty()
    }

    /// Whether batches go this way.
    pub fn is_used(&self) -> bool {
        self.is_used
    }

    /// Takes note that a file, or a segment of them, cannot be read: whoever drains is told.
    pub fn has_lost(&self) {
        self.lost.fetch_add(1, Ordering::SeqCst);
    }

    /// How many there are.
    pub fn lost(&self) -> usize {
        self.lost.load(Ordering::SeqCst)
    }

    /// The directories that this process has.
    fn taken(&self) -> Vec<PathBuf> {
        self.directories.lock().iter().map(|directory| directory.path().to_owned()).collect()
    }

    /// What earlier flushers have left, as far as the store is not known to have it. What another stage has left is for
    /// its own flusher, or if it is gone, for one whose stage `is_fresh`: in one that is not, names that it lacks count
    /// as removed.
    ///
    /// # Errors
    /// When a directory cannot be listed.
    pub fn files(&self, shared: &Shared, is_fresh: bool) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for directory in self.taken() {
            files.extend(segment_files(&directory)?);
        }
        let route = self.route.lock();
        files.retain(|file| !route.keeping.contains(file));
        drop(route);
        let count = files.len();
        files.retain(|file| is_fresh || may_be_of(file, shared.stage_uuid));
        if files.len() < count {
            let others = count - files.len();
            log::warn!("{others} segments of other stages wait for their own flushers, or for one of a new stage");
        }
        Ok(files)
    }

    /// Takes what earlier flushers have left, oldest first.
    pub fn load(&self, segments: Vec<SpooledSegment>, stage: [u8; 16], is_apart: bool) {
        let mut route = self.route.lock();
        for what in segments {
            let word = what.segment.records.iter().rev().find(|record| record.entry.kind == Kind::Watermark);
            let told = (word.map_or(0, |word| word.entry.operation_time_ns), false);
            let files = what.segment.records.iter().filter(|record| record.entry.kind == Kind::File);
            let (files, bytes) = files.fold((0, 0), |(files, bytes), record| (files + 1, bytes + record.entry.size));
            let is_apart = is_apart || what.identity.stage != stage;
            route.segments.push_back((
                Arc::new(Spooled { number: 0, what, told, known_left_out: 0, is_apart, files, bytes }),
                Vec::new(),
            ));
        }
        self.mark(&route);
        drop(route);
        self.wake_flusher();
    }

    /// Has the stage know in which directories something waits.
    fn mark(&self, route: &Route) {
        for place in self.taken() {
            let is_in = |file: &Path| file.parent() == Some(&place);
            let waits = route.keeping.iter().any(|file| is_in(file))
                || route.writing.as_ref() == Some(&place)
                || route.segments.iter().any(|(segment, _)| is_in(&segment.what.path));
            if let Err(error) = self.stage.mark_spool(&place, waits) {
                log::warn!("the stage cannot say whether something waits in {}: {error}", place.display());
            }
        }
    }

    /// Begins to write a segment in a directory, or ends it.
    fn writes(&self, place: Option<&Path>) {
        let mut route = self.route.lock();
        route.writing = place.map(Path::to_owned);
        self.mark(&route);
    }

    /// The store has what is in a file, which cannot be removed.
    fn keeps(&self, file: &Path) {
        self.route.lock().keeping.insert(file.to_owned());
    }

    /// Waits until the store has all segments.
    pub fn await_stored(&self) {
        let mut route = self.route.lock();
        self.changed.wait_while(&mut route, |route| !route.segments.is_empty());
    }

    /// The number of segments that the store has to get yet, and their bytes.
    pub fn waiting(&self) -> (u64, u64) {
        let route = self.route.lock();
        (route.segments.len() as u64, route.segments.iter().map(|(segment, _)| segment.bytes).sum())
    }

    /// Says where segments wait, or could.
    pub fn describe(&self, settings: &Settings, status: &mut Status) {
        let mut places: Vec<PathBuf> = self.tiers().iter().map(|tier| settings.spool_directory(tier)).collect();
        for directory in self.taken() {
            if !places.contains(&directory) {
                places.push(directory);
            }
        }
        let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        status.spool = (!places.is_empty()).then(|| places.join(":"));
    }

    /// Whether the store has all that was spooled up to a batch.
    pub fn has_stored(&self, number: u64) -> bool {
        self.route.lock().segments.front().is_none_or(|(segment, _)| segment.number > number)
    }

    /// Whether a batch is in a segment that the store does not have yet.
    pub fn holds(&self, number: u64) -> bool {
        self.route.lock().segments.iter().any(|(segment, _)| segment.number == number)
    }

    /// Whether anything is to be copied to the store.
    pub fn is_empty(&self) -> bool {
        self.route.lock().segments.is_empty()
    }

    /// Takes the next batch.
    pub fn submit(&self, number: u64, batch: Batch) {
        self.route.lock().waiting.push_back(Waiting { number, batch, replaced: Vec::new(), is_stored: false });
        self.changed.notify_all();
        self.wake_flusher();
    }

    /// Keeps word of older files until everything that was there before is stored; yields what may go now.
    pub fn put_off(&self, replaced: Vec<Replaced>) -> Vec<Replaced> {
        let mut route = self.route.lock();
        let route = &mut *route;
        let last = route.waiting.back_mut().map(|waiting| &mut waiting.replaced);
        match last.or(route.segments.back_mut().map(|(_, replaced)| replaced)) {
            Some(later) => later.extend(replaced),
            None => return replaced,
        }
        Vec::new()
    }

    /// Whether room is needed that the store does not make.
    pub fn want(&self, is_wanted: bool) {
        let mut route = self.route.lock();
        let is_refused = route.refused_until.is_some_and(|until| Instant::now() < until);
        if route.is_wanted != (is_wanted && !is_refused) {
            route.is_wanted = is_wanted && !is_refused;
            self.changed.notify_all();
        }
    }

    /// What the flusher thread has to do next, if anything.
    pub fn next_work(&self) -> Option<Work> {
        let route = self.route.lock();
        if let Some((segment, _)) = route.segments.front() {
            return Some(Work::Segment(segment.clone()));
        }
        let first = route.waiting.front()?;
        Some(Work::Batch(first.number, first.batch.clone()))
    }

    /// The store has a batch, as this segment. Has the view show it, unless that is shown from the spool by now.
    pub fn take_in(&self, shared: &Shared, number: u64, id: AggregateId, segment: &Segment) -> Taken {
        let mut route = self.route.lock();
        if let Some(first) = route.waiting.front_mut().filter(|first| first.number == number) {
            first.is_stored = true;
            shared.store.write().publish(id, segment);
            return Taken::Batch;
        }
        match route.segments.front() {
            Some((spooled, _)) if spooled.number == number => {
                let (copies, is_whole) = same_operations(spooled, segment);
                let copies = if is_whole { copies } else { Vec::new() };
                let mut store = shared.store.write();
                let moved = store.publish_copies(id, segment, spooled.what.id, &copies);
                shared.stubs.moved(&mut store, &moved);
                if is_whole { Taken::Segment(spooled.clone()) } else { Taken::InPart }
            }
            _ => {
                shared.store.write().publish(id, segment);
                Taken::Batch
            }
        }
    }

    /// What may go besides, now that the store has the first batch or segment.
    pub fn replaced(&self, number: u64) -> Vec<Replaced> {
        let mut route = self.route.lock();
        if let Some((_, replaced)) = route.segments.front_mut().filter(|(segment, _)| segment.number == number) {
            return std::mem::take(replaced);
        }
        let first = route.waiting.front_mut().filter(|first| first.number == number);
        first.map(|first| std::mem::take(&mut first.replaced)).unwrap_or_default()
    }

    /// Nothing is left to be done for a batch that the store has.
    pub fn batch_is_done(&self, shared: &Shared, number: u64) {
        let mut route = self.route.lock();
        if route.waiting.front().is_some_and(|first| first.number == number) {
            route.waiting.pop_front();
        }
        shared.set_published(number);
        shared.stored.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// The same for the first segment.
    pub fn segment_is_done(&self, shared: &Shared) {
        let mut route = self.route.lock();
        route.segments.pop_front();
        self.mark(&route);
        drop(route);
        shared.stored.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Whether more segments wait behind the first that go to the same aggregate.
    pub fn is_last_of_its_kind(&self) -> bool {
        self.route.lock().segments.get(1).is_none_or(|(segment, _)| !segment.is_apart)
    }

    fn wake_flusher(&self) {
        // If there is a job already, it looks afterwards.
        let _ = self.jobs.try_send(Job::Look);
    }

    /// Waits for a batch that is to be spooled.
    fn await_batch(&self) -> (u64, Batch) {
        let mut route = self.route.lock();
        loop {
            let first = route.waiting.front().filter(|first| route.is_wanted && !first.is_stored);
            if let Some(found) = first.map(|first| (first.number, first.batch.clone())) {
                return found;
            }
            self.changed.wait(&mut route);
        }
    }
}

/// Takes back what [`Spool::ask`] has noted.
struct Answered<'spool>(&'spool Spool);

impl Drop for Answered<'_> {
    fn drop(&mut self) {
        *self.0.asked.lock() = None;
    }
}

/// Whether a segment is one of this stage's, or cannot be asked.
fn may_be_of(file: &Path, stage: [u8; 16]) -> bool {
    let identity = File::open(file).ok().and_then(|file| identify(&file).ok());
    identity.is_none_or(|identity| identity.stage == stage)
}

/// What `look` yields, if it does so in time.
fn within<T: Send + 'static>(limit: Duration, look: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (sender, receiver) = bounded(1);
    std::thread::Builder::new().name("look".to_string()).spawn(move || {
        // Nobody may be waiting any more.
        let _ = sender.send(look());
    })?;
    receiver.recv_timeout(limit).unwrap_or_else(|_| Err(io::Error::other("its file system does not answer")))
}

impl Shared {
    /// The store has everything that a spooled segment holds.
    pub(super) fn discard(&self, file: &Path) {
        match std::fs::remove_file(file) {
            Err(error) => {
                log::warn!("{} is not needed any more, and stays: {error}", file.display());
                self.spool.keeps(file);
            }
            Ok(()) => log::info!("{} is in the store", file.display()),
        }
    }

    /// Not everything that a spooled segment holds can be read: it is kept for people.
    pub(super) fn keep_damaged(&self, file: &Path) {
        match put_aside(file) {
            Ok(aside) => log::error!("{} cannot be read whole, and is kept as {}", file.display(), aside.display()),
            Err(error) => log::error!("{} cannot be read whole, and is kept under its name: {error}", file.display()),
        }
    }
}

/// The spooled operations in the order in which a segment of the store has them, and whether it has them all.
fn same_operations(spooled: &Spooled, segment: &Segment) -> (Vec<Copied>, bool) {
    let copies = spooled.what.copies();
    let count = copies.len();
    let mut by_time: HashMap<u64, Copied> =
        copies.into_iter().map(|copy| (copy.entry.operation_time_ns, copy)).collect();
    // What is there besides was not spooled: nothing is known by that place.
    let unknown = |entry: &Entry| Copied { entry: entry.clone(), version: None, sequence: u64::MAX };
    let found: Vec<Copied> = segment
        .records
        .iter()
        .map(|record| by_time.remove(&record.entry.operation_time_ns).unwrap_or_else(|| unknown(&record.entry)))
        .collect();
    let is_whole = by_time.is_empty() && found.iter().filter(|copy| copy.sequence != u64::MAX).count() == count;
    (found, is_whole)
}

/// The `spool` thread's state.
pub(super) struct Spooler {
    shared: Arc<Shared>,
    engine: Box<dyn Engine>,
}

impl Spooler {
    /// Everything it needs.
    pub fn new(shared: Arc<Shared>, engine: Box<dyn Engine>) -> Spooler {
        Spooler { shared, engine }
    }

    /// Runs until the process ends.
    pub fn run(mut self) {
        self.shared.spool.look_at_tiers(&self.shared.settings);
        loop {
            let (number, batch) = self.shared.spool.await_batch();
            let outcome = self.spool(number, batch);
            if let Err(text) = &outcome {
                let mut route = self.shared.spool.route.lock();
                route.is_wanted = false;
                route.refused_until = Some(Instant::now() + REFUSED_PAUSE);
                log::warn!("batch {number} waits for the store: {text}");
            }
            self.shared.set_error("spool", outcome.err().map(|text| format!("no further tier takes anything: {text}")));
            self.engine.rest();
            self.shared.spool.wake_flusher();
            self.shared.commands.look();
        }
    }

    /// Writes a batch to the first further tier that takes it; the text says why none does.
    fn spool(&mut self, number: u64, mut batch: Batch) -> Result<(), String> {
        let mut problems = Vec::new();
        self.shared.mind_left_out(&mut batch);
        for tier in self.shared.spool.tiers().to_vec() {
            loop {
                let written = self.write(&tier, number, &batch);
                self.shared.spool.writes(None);
                match written {
                    Ok(()) => return Ok(()),
                    Err(Failure::Entries(indices)) => leave_out(&self.shared, &mut batch, indices, None),
                    Err(Failure::Unreadable(index, reason)) => {
                        leave_out(&self.shared, &mut batch, vec![index], Some(&reason));
                    }
                    Err(Failure::Destroyed) => leave_out_removals(&mut batch),
                    Err(Failure::Store(text)) => {
                        problems.push(format!("{}: {text}", tier.display()));
                        break;
                    }
                }
                self.left_out(number, &batch);
            }
        }
        Err(problems.join("; "))
    }

    /// What was left out is left out wherever the batch is published.
    fn left_out(&self, number: u64, batch: &Batch) {
        let mut route = self.shared.spool.route.lock();
        if let Some(first) = route.waiting.front_mut().filter(|first| first.number == number) {
            first.batch = batch.clone();
        }
    }

    fn write(&mut self, tier: &Path, number: u64, batch: &Batch) -> Result<(), Failure> {
        let shared = self.shared.clone();
        let place = shared.settings.spool_directory(tier);
        // No lock is held while the tier is asked: it may not answer.
        let _asked = shared.spool.ask(&place);
        if !shared.spool.taken().contains(&place) {
            let opened = SpoolDirectory::open(&place, &shared.settings.store)?;
            let opened = opened.ok_or_else(|| Failure::Store("another flusher has it".to_string()))?;
            shared.spool.directories.lock().push(opened);
        }
        let needed_bytes = batch.bytes + batch.entries.len() as u64 * ENTRY_BYTES;
        if !has_room_for(&place, needed_bytes) {
            return Err(Failure::Store("too little room".to_string()));
        }
        shared.spool.writes(Some(&place));
        let mut appender = Appender::create(&place, shared.origin())?;
        match self.fill(&mut appender, number, batch) {
            Ok(true) => Ok(()),
            // If it stays, the next flusher sees that the store has what is in it.
            Ok(false) => Ok(appender.remove()?),
            Err(failure) => {
                appender.abandon();
                Err(failure)
            }
        }
    }

    /// Writes and publishes the segment. False when the store was faster.
    fn fill(&mut self, appender: &mut Appender, number: u64, batch: &Batch) -> Result<bool, Failure> {
        let shared = self.shared.clone();
        let watermark_ns = batch.watermark_ns.max(shared.watermark_ns.load(Ordering::SeqCst));
        let mut inputs: Vec<Input<'_>> = batch.sources.iter().map(Input::from).collect();
        inputs.push(Input::Nothing);
        let entries = [&batch.entries[..], &[Entry::watermark(watermark_ns, 0)]].concat();
        let plan = appender.plan(entries)?;
        // Only what the store takes counts as progress.
        let pace = Pace { throttle: None, written_bytes: &shared.spool.taken_bytes };
        let written = appender.write(self.engine.as_mut(), &plan, &inputs, pace);
        let checksums = written.map_err(|error| segment_failure(error, &batch.entries))?;
        check_staged(&shared, &batch.entries, &batch.sources)?;
        let segment = appender.publish(self.engine.as_mut(), plan, checksums)?;
        let mut route = shared.spool.route.lock();
        let Some(first) = route.waiting.front().filter(|first| first.number == number && !first.is_stored) else {
            return Ok(false);
        };
        let mut replaced = [&batch.replaced[..], &first.replaced].concat();
        shared.forget_left_out(&batch.entries);
        shared.retain_published(&mut replaced);
        let (path, identity) = (appender.path().to_owned(), appender.identity().clone());
        log::info!("batch {number} waits for the store in {}", path.display());
        let mut store = shared.store.write();
        let id = store.add_spooled(&path, &identity)?;
        store.publish(id, &segment);
        drop(store);
        let files = batch.sources.iter().flatten().count() as u64;
        let told = (batch.watermark_ns, batch.acknowledges);
        let what = SpooledSegment { id, path, identity, segment };
        let known_left_out = shared.left_out_count.load(Ordering::SeqCst);
        let spooled = Spooled { number, what, told, known_left_out, is_apart: false, files, bytes: batch.bytes };
        route.segments.push_back((Arc::new(spooled), replaced));
        route.waiting.pop_front();
        shared.set_published(number);
        Ok(true)
    }
}
