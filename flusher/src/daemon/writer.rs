//! The flusher thread: writes batches as segments, publishes them, and never gives one up.
//!
//! A batch whose writing failed stays staged and is written again, to a new aggregate: after an error nothing is known
//! about what the old one holds behind its published end, and a failed fdatasync must never be tried again on the same
//! file (its dirty pages may have been dropped).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use sheaf_common::replaced::Marker;

use super::Shared;
use super::appender::Appender;
use super::files::Files;
use super::heap;
use super::reclaim::Reclaiming;
use super::segment::{Input, Pace, SegmentError, Throttle};
use super::spool::{Spooled, Taken, Work};
use crate::aggregate::{
    Entry, FLAG_ACKNOWLEDGED, FLAG_CONTINUED, FLAG_ENDED, FileChecksums, Kind, PlanError, Segment, SegmentPlan,
};
use crate::engine::{Engine, WriteError};
use crate::stage::lease;
use crate::stage::source::Source;
use crate::stage::tracker::{Batch, LeftOut, Replaced};
use crate::store::{AggregateId, Copied, WATERMARKS_MAX};

/// First and longest pause before a failed batch is written again.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(30);
/// How often a file in the spool is read that cannot be.
const SPOOL_ATTEMPTS: u32 = 3;

/// What the writer is told.
#[derive(Debug)]
pub enum Job {
    /// Publish this batch, known by this number.
    Batch(u64, Batch),
    /// The successors of these are published.
    Replaced(Vec<Replaced>),
    /// Nothing waits, and everything that happened up to this time is published.
    Watermark(u64),
    /// Somebody is about to be told that everything is published.
    Acknowledge,
    /// There may be something in the spool to be seen to.
    Look,
    /// Seal the aggregate: the flusher is about to end. With the time when nothing was left that this node would
    /// publish, if so. Answered when done, whether it worked or not.
    Seal(Option<u64>, Sender<()>),
}

/// The aggregate that is being written.
pub(super) struct Aggregate {
    pub appender: Appender,
    pub id: AggregateId,
    /// Whether anything but watermarks is published in it.
    has_records: bool,
    /// Bytes of watermarks that stand alone.
    watermark_bytes: u64,
}

/// The flusher thread's state.
pub struct Writer {
    pub(super) shared: Arc<Shared>,
    engine: Box<dyn Engine>,
    jobs: Receiver<Job>,
    pub(super) aggregate: Option<Aggregate>,
    /// Whether that is another stage's, of which nothing is known but what it said itself.
    is_apart: bool,
    throttle: Option<Throttle>,
    /// One that could not be written to and holds nothing: as long as there is no other, it says that there is this
    /// node.
    given_up: Option<Appender>,
    /// Bytes of the segments that are published.
    published_bytes: u64,
    reclaiming: Reclaiming,
    /// In layout `files`.
    files: Option<Files>,
}

/// Why a batch is not published yet.
pub(super) enum Failure {
    /// The store: try again later.
    Store(String),
    /// The stage is being deleted: removals are not the programs'.
    Destroyed,
    /// These entries' files were torn: go on without them, they will complete again.
    Entries(Vec<usize>),
    /// This entry's file cannot be read: go on without it.
    Unreadable(usize, String),
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Failure {
        log::error!("{error}");
        error.index.map_or_else(|| Failure::Store(error.to_string()), |index| Failure::Entries(vec![index]))
    }
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
    /// Everything it needs; `files` in the layout of that name.
    pub(super) fn new(
        shared: Arc<Shared>,
        engine: Box<dyn Engine>,
        jobs: Receiver<Job>,
        files: Option<Files>,
    ) -> Writer {
        let throttle = shared.settings.bandwidth.map(Throttle::new);
        Writer {
            shared,
            engine,
            jobs,
            aggregate: None,
            is_apart: false,
            given_up: None,
            throttle,
            published_bytes: 0,
            reclaiming: Reclaiming::default(),
            files,
        }
    }

    /// Runs until the last sender of jobs is gone.
    pub fn run(mut self) {
        loop {
            // Also when jobs never end.
            let start = Instant::now();
            if self.reclaiming.due().is_some_and(|due| due <= start) && self.shared.spool.is_empty() {
                let all_done = self.reclaim();
                self.reclaiming.looked(start, all_done);
            }
            if self.files.as_ref().and_then(Files::due).is_some_and(|due| due <= start) {
                self.release_files();
            }
            match self.shared.spool.next_work() {
                Some(Work::Segment(segment)) => {
                    self.store_segment(&segment);
                    continue;
                }
                Some(Work::Batch(number, batch)) => {
                    self.publish_batch(number, batch);
                    continue;
                }
                None => {}
            }
            if self.jobs.is_empty() {
                self.engine.rest();
                heap::trim();
            }
            let due = self.reclaiming.due().into_iter().chain(self.files.as_ref().and_then(Files::due)).min();
            let job = match due {
                Some(due) => self.jobs.recv_deadline(due),
                None => self.jobs.recv().map_err(RecvTimeoutError::from),
            };
            match job {
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(job) => self.obey(job),
            }
        }
    }

    fn obey(&mut self, job: Job) {
        match job {
            Job::Batch(number, batch) => self.publish_batch(number, batch),
            // A successor takes the place of the older file itself.
            Job::Replaced(_) if self.files.is_some() => {}
            Job::Replaced(replaced) => {
                let replaced = self.shared.spool.put_off(replaced);
                self.remove_replaced(&replaced);
            }
            Job::Look => {}
            // A store without aggregates of this stage has nobody who asks.
            Job::Watermark(_) if self.files.is_some() && self.aggregate.is_none() => {}
            Job::Watermark(watermark_ns) => self.publish_watermark(watermark_ns),
            Job::Acknowledge => self.acknowledge(),
            Job::Seal(ended_ns, reply) => {
                self.release_files();
                if let Err(Failure::Store(text)) = self.end(ended_ns) {
                    // Unsealed is as good as sealed, only slower to open.
                    log::warn!("the aggregate was not sealed: {text}");
                }
                self.files.iter_mut().for_each(Files::end);
                let _ = reply.send(());
            }
        }
    }

    fn publish_batch(&mut self, number: u64, batch: Batch) {
        let before = self.reclaimable();
        let is_new = |entry: &Entry| matches!(entry.kind, Kind::File | Kind::Symlink);
        let all_new = batch.entries.iter().all(is_new);
        match self.files.is_some() {
            true => self.publish_files(number, batch),
            false => self.publish(number, batch),
        }
        self.reclaiming.published(!all_new || self.reclaimable() != before);
    }

    /// Publishes a batch, unless it is spooled meanwhile: then it is stored from there.
    fn publish(&mut self, number: u64, mut batch: Batch) {
        let mut pause = RETRY_FIRST;
        self.shared.mind_left_out(&mut batch);
        while !batch.entries.is_empty() {
            if self.shared.spool.holds(number) {
                return;
            }
            match self.write_segment(&batch.entries, &batch.sources, (batch.watermark_ns, batch.acknowledges)) {
                Ok((id, segment)) => match self.shared.spool.take_in(&self.shared, number, id, &segment) {
                    Taken::Batch => break,
                    Taken::Segment(spooled) => {
                        self.shared.discard(&spooled.what.path);
                        return self.segment_is_stored(&spooled);
                    }
                    Taken::InPart => return,
                },
                Err(Failure::Entries(indices)) => {
                    self.abandon();
                    leave_out(&self.shared, &mut batch, indices, None);
                }
                Err(Failure::Unreadable(index, reason)) => {
                    self.abandon();
                    leave_out(&self.shared, &mut batch, vec![index], Some(&reason));
                }
                Err(Failure::Destroyed) => {
                    self.abandon();
                    leave_out_removals(&mut batch);
                }
                Err(Failure::Store(text)) => self.pause(&text, &mut pause),
            }
        }
        self.shared.set_error("store", None);
        self.shared.look_for_contests();
        self.shared.forget_left_out(&batch.entries);
        self.remove_replaced(&batch.replaced);
        self.remove_replaced(&self.shared.spool.replaced(number));
        batch.sources.iter().flatten().for_each(|source| source.release());
        self.shared.count_published(batch.sources.iter().flatten().count() as u64, batch.bytes);
        self.shared.spool.batch_is_done(&self.shared, number);
        self.shared.commands.look();
    }

    /// Copies a segment from the spool to the store.
    fn store_segment(&mut self, spooled: &Arc<Spooled>) {
        let (mut pause, mut failures) = (RETRY_FIRST, 0);
        let mut copies = spooled.what.copies();
        let count = copies.len();
        loop {
            match self.copy_segment(spooled, &copies) {
                Ok(()) => break,
                Err(Failure::Store(text)) => self.pause(&text, &mut pause),
                Err(Failure::Unreadable(index, reason)) => {
                    self.abandon();
                    failures += 1;
                    let path = copies[index].entry.path.escape_ascii().to_string();
                    self.shared.set_error("spooled", Some(format!("/{path} cannot be read in the spool: {reason}")));
                    if failures < SPOOL_ATTEMPTS {
                        std::thread::sleep(RETRY_FIRST);
                        continue;
                    }
                    self.give_up(copies.remove(index).entry, &reason);
                    failures = 0;
                }
                // There are no staged files, and what was recorded once can be again.
                Err(Failure::Entries(_) | Failure::Destroyed) => {
                    self.pause("a segment of the spool cannot be written anew", &mut pause);
                }
            }
        }
        self.shared.set_error("store", None);
        match copies.len() < count {
            true => self.shared.keep_damaged(&spooled.what.path),
            false => self.shared.discard(&spooled.what.path),
        }
        self.segment_is_stored(spooled);
        self.reclaiming.published(true);
    }

    /// A file in the spool cannot be read. Unless it is staged still, and published again from there, it is lost.
    fn give_up(&mut self, Entry { path, inode, .. }: Entry, reason: &str) {
        if !self.shared.stage.holds(&path, inode) {
            log::error!("/{} is lost: {reason}", path.escape_ascii());
            self.shared.spool.has_lost();
        }
        self.shared.is_left_out(LeftOut { path, inode, unreadable: None });
    }

    fn copy_segment(&mut self, spooled: &Spooled, copies: &[Copied]) -> Result<(), Failure> {
        let has_stage = |aggregate: &Aggregate| aggregate.appender.identity().stage == spooled.what.identity.stage;
        if spooled.is_apart && !(self.is_apart && self.aggregate.as_ref().is_some_and(has_stage)) {
            self.aggregate = None;
            let appender = Appender::create_like(&self.shared.settings.store, &spooled.what.identity)?;
            self.aggregate = Some(self.take_over(appender)?);
            self.is_apart = true;
        }
        let entries: Vec<Entry> = copies.iter().map(|copy| copy.entry.clone()).collect();
        let open = |(index, copy): (usize, &Copied)| match &copy.version {
            Some(version) => {
                let located = self.shared.store.read().locate(version);
                let opened = located.and_then(|located| located.as_it_is().open());
                opened.map(Input::Stored).map_err(|error| Failure::Unreadable(index, error.to_string()))
            }
            None => Ok(Input::Nothing),
        };
        let inputs = copies.iter().enumerate().map(open).collect::<Result<Vec<Input<'_>>, Failure>>()?;
        // What was left out since, of this one or of one before it, happened earlier.
        let is_all = spooled.known_left_out == self.shared.left_out_count.load(Ordering::SeqCst);
        let told = if is_all { spooled.told } else { (0, spooled.told.1) };
        let (plan, checksums) = self.write_unpublished(&entries, inputs, told)?;
        let (id, segment) = self.publish_head(plan, checksums)?;
        let mut store = self.shared.store.write();
        let moved = store.publish_copies(id, &segment, spooled.what.id, copies);
        self.shared.stubs.moved(&mut store, &moved);
        Ok(())
    }

    /// The store has a segment of the spool.
    fn segment_is_stored(&mut self, spooled: &Spooled) {
        let what = &spooled.what;
        self.remove_replaced(&self.shared.spool.replaced(spooled.number));
        self.shared.count_published(spooled.files, spooled.bytes);
        self.shared.store.write().forget(what.id);
        if spooled.is_apart && self.shared.spool.is_last_of_its_kind() {
            // What this stage publishes goes to its own.
            (self.aggregate, self.is_apart) = (None, false);
        }
        self.shared.spool.segment_is_done(&self.shared);
        self.shared.commands.look();
    }

    /// The same in layout `files`. What was published by an attempt that failed is published again: the outcome is the
    /// same.
    fn publish_files(&mut self, number: u64, mut batch: Batch) {
        let mut pause = RETRY_FIRST;
        let before_bytes = self.published_bytes;
        let placed = loop {
            let Some(files) = &mut self.files else { return };
            // What an attempt that failed has written does not count: `sheaf wait` would never give up.
            self.published_bytes = before_bytes;
            self.shared.written_bytes.store(before_bytes, Ordering::Relaxed);
            let outcome = files.publish(&batch.entries, &batch.sources).and_then(|placed| {
                self.published_bytes = self.shared.written_bytes.load(Ordering::Relaxed);
                if !placed.records.is_empty() {
                    let no_sources = vec![None; placed.records.len()];
                    self.write_segment(&placed.records, &no_sources, (0, batch.acknowledges))?;
                }
                Ok(placed)
            });
            match outcome {
                Ok(placed) => break placed,
                Err(Failure::Store(text)) => self.pause(&text, &mut pause),
                Err(Failure::Destroyed) => {
                    log::error!("somebody deletes the stage: nothing is removed from the store");
                    self.abandon();
                    batch.entries.clear();
                    batch.sources.clear();
                }
                // Records of names have no data that could be read.
                Err(Failure::Entries(_) | Failure::Unreadable(..)) => {
                    self.pause("a name cannot be recorded", &mut pause)
                }
            }
        };
        self.shared.set_error("store", None);
        for (index, reason) in placed.left_out.into_iter().rev() {
            leave_out(&self.shared, &mut batch, vec![index], reason.as_deref());
        }
        self.release_files();
        let bytes = batch.sources.iter().flatten().map(|source| source.size()).sum();
        self.shared.count_published(batch.sources.iter().flatten().count() as u64, bytes);
        self.shared.spool.batch_is_done(&self.shared, number);
        self.shared.commands.look();
    }

    /// Has published files leave the tree.
    fn release_files(&mut self) {
        let Some(files) = &mut self.files else { return };
        let changed = files.release();
        if changed.is_empty() {
            return;
        }
        let again = |(path, inode)| LeftOut { path, inode, unreadable: None };
        changed.into_iter().map(again).for_each(|file| self.shared.is_left_out(file));
        self.shared.commands.look();
    }

    /// The store has not taken what it was to take.
    fn pause(&mut self, text: &str, pause: &mut Duration) {
        self.abandon();
        let store = self.shared.settings.store.display();
        let text = format!("cannot publish to {store}: {text}; everything stays staged");
        log::error!("{text}; trying again in {} s", pause.as_secs());
        self.shared.set_error("store", Some(text));
        std::thread::sleep(*pause);
        *pause = (*pause * 2).min(RETRY_LONGEST);
    }

    /// Has the store know that what is published is safe, whatever becomes of other nodes.
    fn acknowledge(&mut self) {
        let mut pause = RETRY_FIRST;
        while !self.shared.is_acknowledged() {
            match self.write_segment(&[], &[], (0, true)) {
                Ok((id, segment)) => {
                    self.shared.store.write().publish(id, &segment);
                    self.shared.set_error("store", None);
                }
                Err(Failure::Store(text)) => self.pause(&text, &mut pause),
                // It has none.
                Err(Failure::Destroyed | Failure::Entries(_) | Failure::Unreadable(..)) => break,
            }
        }
        self.shared.commands.look();
    }

    /// Publishes nothing but that all is published. It is tried only once: the next one says more.
    fn publish_watermark(&mut self, watermark_ns: u64) {
        match self.write_segment(&[], &[], (watermark_ns, false)) {
            Ok((id, segment)) => {
                self.shared.store.write().publish(id, &segment);
                let watermark_bytes = self.aggregate.as_ref().map_or(0, |aggregate| aggregate.watermark_bytes);
                if watermark_bytes >= WATERMARKS_MAX {
                    self.reclaiming.published(true);
                }
            }
            Err(failure) => {
                self.abandon();
                if let Failure::Store(text) = failure {
                    log::warn!("the store could not be told that all is published: {text}");
                }
            }
        }
    }

    /// Gives the aggregate up behind its published end.
    pub(super) fn abandon(&mut self) {
        let Some(Aggregate { appender, .. }) = self.aggregate.take() else { return };
        match appender.is_empty() {
            true => self.given_up.replace(appender).into_iter().for_each(Appender::abandon),
            false => appender.abandon(),
        }
    }

    /// Writes one segment and publishes it; the caller has the view show it. When it is published, so is everything up
    /// to the time that is `told`, and somebody is told so, or not.
    fn write_segment(
        &mut self,
        entries: &[Entry],
        sources: &[Option<Arc<Source>>],
        told: (u64, bool),
    ) -> Result<(AggregateId, Segment), Failure> {
        let inputs: Vec<Input<'_>> = sources.iter().map(Input::from).collect();
        let (plan, checksums) = self.write_unpublished(entries, inputs, told)?;
        check_staged(&self.shared, entries, sources)?;
        self.publish_head(plan, checksums)
    }

    /// Writes a segment to the aggregate, which is made if there is none. Nobody sees it yet. What it tells is as for
    /// [`Writer::write_segment`], or what the store was told last.
    pub(super) fn write_unpublished(
        &mut self,
        entries: &[Entry],
        mut inputs: Vec<Input<'_>>,
        (watermark_ns, acknowledges): (u64, bool),
    ) -> Result<(SegmentPlan, Vec<Option<FileChecksums>>), Failure> {
        if self.aggregate.is_none() {
            self.aggregate = Some(self.create_aggregate()?);
        }
        let aggregate = self.aggregate.as_mut().expect("made above");
        let known = |of: &AtomicU64| if self.is_apart { 0 } else { of.load(Ordering::SeqCst) };
        let newest_ns = newest_ns(entries).max(known(&self.shared.newest_ns));
        let acknowledgment = acknowledges.then(|| Entry::watermark(newest_ns, FLAG_ACKNOWLEDGED));
        let watermark = Entry::watermark(watermark_ns.max(known(&self.shared.watermark_ns)), 0);
        let words: Vec<Entry> = acknowledgment.into_iter().chain([watermark]).collect();
        inputs.extend(words.iter().map(|_| Input::Nothing));
        let plan = aggregate.appender.plan([entries, &words].concat())?;
        // What an attempt that failed has written does not count.
        self.shared.written_bytes.store(self.published_bytes, Ordering::Relaxed);
        let pace = Pace { throttle: self.throttle.as_mut(), written_bytes: &self.shared.written_bytes };
        let written = aggregate.appender.write(self.engine.as_mut(), &plan, &inputs, pace);
        let checksums = written.map_err(|error| segment_failure(error, entries))?;
        Ok((plan, checksums))
    }

    /// Makes a segment that is durable visible, then durable as visible.
    pub(super) fn publish_head(
        &mut self,
        plan: SegmentPlan,
        checksums: Vec<Option<FileChecksums>>,
    ) -> Result<(AggregateId, Segment), Failure> {
        let aggregate = self.aggregate.as_mut().expect("a segment was written to it");
        let segment = aggregate.appender.publish(self.engine.as_mut(), plan, checksums)?;
        let path = aggregate.appender.path().display();
        log::info!("published segment {} of {path}: {} records", segment.sequence, segment.record_count);
        self.published_bytes = self.shared.written_bytes.load(Ordering::Relaxed);
        let entries = || segment.records.iter().map(|record| &record.entry);
        match entries().any(Entry::is_operation) {
            true => aggregate.has_records = true,
            false => aggregate.watermark_bytes += segment.length,
        }
        let told = |of: u32| {
            let words = entries().filter(|entry| entry.kind == Kind::Watermark);
            words
                .filter(|word| word.flags & FLAG_ACKNOWLEDGED == of)
                .map(|word| word.operation_time_ns)
                .max()
                .unwrap_or(0)
        };
        if !self.is_apart {
            self.shared.watermark_ns.fetch_max(told(0), Ordering::SeqCst);
            self.shared.newest_ns.fetch_max(newest_ns(entries()), Ordering::SeqCst);
            self.shared.acknowledged_ns.fetch_max(told(FLAG_ACKNOWLEDGED), Ordering::SeqCst);
        }
        Ok((aggregate.id, segment))
    }

    pub(super) fn create_aggregate(&mut self) -> Result<Aggregate, Failure> {
        let appender = match self.shared.announcement.take() {
            Some(appender) => appender,
            None => self.shared.create_appender()?,
        };
        self.shared.announcement.is_made();
        self.given_up.take().into_iter().for_each(Appender::abandon);
        self.take_over(appender)
    }

    /// Has the view know of an aggregate that was made.
    fn take_over(&self, appender: Appender) -> Result<Aggregate, Failure> {
        let (path, first) = appender.place();
        log::info!("writing to {} with {}", path.display(), self.engine.name());
        self.shared.status.lock().aggregate = Some(path.display().to_string());
        let id = self.shared.store.write().add_own(path, first, appender.identity())?;
        Ok(Aggregate { appender, id, has_records: false, watermark_bytes: 0 })
    }

    /// Removes older files on the parallel file system whose successors are published, and their markers.
    fn remove_replaced(&self, replaced: &[Replaced]) {
        let mut replaced = replaced.to_vec();
        self.shared.retain_published(&mut replaced);
        for replaced in replaced {
            let Some(marker) = Marker::parse(&replaced.marker) else { continue };
            let path = marker.path.escape_ascii();
            match self.shared.stage.remove_replaced(&marker) {
                Ok(true) => log::info!("removed {path}, its new version is published"),
                Ok(false) => {}
                Err(error) => log::warn!("{path} was left on the parallel file system: {error}"),
            }
        }
    }

    /// Goes on in a new aggregate, and closes the old one in peace.
    pub(super) fn roll(&mut self) -> Result<(), Failure> {
        // First of all: its node must always be known, and not as one that has ended.
        let next = self.create_aggregate()?;
        match self.aggregate.replace(next) {
            Some(old) => self.seal(old, Entry::watermark(self.told_ns(), FLAG_CONTINUED)),
            None => Ok(()),
        }
    }

    /// What the store has been told.
    fn told_ns(&self) -> u64 {
        self.shared.watermark_ns.load(Ordering::SeqCst)
    }

    /// Closes an aggregate in peace, with this last word.
    fn seal(&mut self, aggregate: Aggregate, last_word: Entry) -> Result<(), Failure> {
        let Aggregate { appender, id, .. } = aggregate;
        let identity = appender.identity().clone();
        let make = |place| self.shared.store.read().seal_segment(id, &identity, place, last_word.clone());
        let segment = appender.seal(self.engine.as_mut(), make)?;
        self.shared.store.write().sealed(id, &segment);
        Ok(())
    }

    /// The flusher's end. A node that has done everything that it will says so, unless nobody would miss it.
    fn end(&mut self, ended_ns: Option<u64>) -> Result<(), Failure> {
        let Some(ended_ns) = ended_ns else {
            let told_ns = self.told_ns();
            return self
                .aggregate
                .take()
                .map_or(Ok(()), |aggregate| self.seal(aggregate, Entry::watermark(told_ns, 0)));
        };
        let own = self.aggregate.as_ref().map(|aggregate| aggregate.appender.identity().uuid);
        let would_be_missed = self.shared.store.read().is_unended(self.shared.stage_uuid, own);
        if would_be_missed && self.aggregate.is_none() {
            self.aggregate = Some(self.create_aggregate()?);
        }
        self.given_up.take().into_iter().for_each(Appender::abandon);
        self.shared.announcement.take().into_iter().for_each(Appender::abandon);
        let Some(aggregate) = self.aggregate.take() else { return Ok(()) };
        if !aggregate.has_records && !would_be_missed {
            return Ok(aggregate.appender.remove()?);
        }
        self.seal(aggregate, Entry::watermark(ended_ns.max(self.told_ns()), FLAG_ENDED))
    }
}

/// When the newest of these operations happened; of copies it is not told anew.
fn newest_ns<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> u64 {
    let own = entries.into_iter().filter(|entry| entry.is_operation() && !entry.is_moved());
    own.map(|entry| entry.operation_time_ns).max().unwrap_or(0)
}

/// What a segment's entries were read from, after all of it was: nothing may have changed, and nobody may be deleting
/// the stage if anything is removed.
pub(super) fn check_staged(shared: &Shared, entries: &[Entry], sources: &[Option<Arc<Source>>]) -> Result<(), Failure> {
    let trusted = lease::trusted_time();
    let is_torn = |index: &usize| sources[*index].as_ref().is_some_and(|source| source.is_torn(trusted));
    let torn: Vec<usize> = (0..sources.len()).filter(is_torn).collect();
    if !torn.is_empty() {
        return Err(Failure::Entries(torn));
    }
    if entries.iter().any(is_removal) && !shared.stage.is_intact() {
        return Err(Failure::Destroyed);
    }
    Ok(())
}

/// Why a segment with these entries is not written.
pub(super) fn segment_failure(error: SegmentError, entries: &[Entry]) -> Failure {
    match error {
        SegmentError::Read(index, error) => {
            log::error!("/{}: {error}", entries[index].path.escape_ascii());
            Failure::Unreadable(index, error.to_string())
        }
        SegmentError::Write(error) => error.into(),
    }
}

/// Goes on without files that could not be read as they were. They are published again, as they are then; those that
/// cannot be read at all when somebody asks for what is left.
pub(super) fn leave_out(shared: &Shared, batch: &mut Batch, mut indices: Vec<usize>, unreadable: Option<&str>) {
    indices.sort_unstable();
    // They happened before it, and will be published behind it.
    batch.watermark_ns = 0;
    for index in indices.into_iter().rev() {
        let entry = batch.entries.remove(index);
        batch.sources.remove(index);
        log::warn!("/{} could not be read as it was; it will be published again", entry.path.escape_ascii());
        shared.unpublished.lock().insert(entry.inode);
        let unreadable = unreadable.map(str::to_string);
        shared.is_left_out(LeftOut { path: entry.path, inode: entry.inode, unreadable });
    }
}

/// Goes on without removals: they are nobody's but of whoever deletes the stage.
pub(super) fn leave_out_removals(batch: &mut Batch) {
    log::error!("somebody deletes the stage: nothing is removed from the store");
    batch.watermark_ns = 0;
    let kept: Vec<bool> = batch.entries.iter().map(|entry| !is_removal(entry)).collect();
    let mut keep = kept.iter();
    batch.entries.retain(|_| *keep.next().expect("as many"));
    let mut keep = kept.iter();
    batch.sources.retain(|_| *keep.next().expect("as many"));
}

fn is_removal(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::Unlink | Kind::RemoveDirectory)
}
