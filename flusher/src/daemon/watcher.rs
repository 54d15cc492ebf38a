//! The watcher thread: follows the tree, makes batches, answers what needs the tree's state (populate, wait, evict).
//!
//! It never writes to an aggregate; a store that hangs does not stop it from following the tree.

mod sight;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Pid;

use super::Shared;
use super::writer::Job;
use crate::aggregate::{Attributes, Kind};
use crate::stage::mirror::{self, Extent};
use crate::stage::moving;
use crate::stage::room::Room;
use crate::stage::told::Telling;
use crate::stage::tracker::{BATCH_FILES_MAX, Haste, StagedPath, Stubs, Tracker, is_at_or_below};
use crate::store::{Changed, Node, Store, Version, split};
use sight::Sight;

/// How long finished work may wait for more, before it is written.
const BATCH_DELAY: Duration = Duration::from_millis(200);
/// Batches that may be leased and not published yet: one being written, one ready.
const IN_FLIGHT_MAX: u64 = 2;
/// How often room is made while nothing is published.
const EVICT_INTERVAL: Duration = Duration::from_secs(1);
/// How long room must be short before a further tier is used.
const SHORT_FOR: Duration = Duration::from_millis(500);
/// How often files that are still open are looked at while somebody waits for the end.
const RECHECK: Duration = Duration::from_millis(500);

/// Where the outcome of making a mirror goes.
type PopulateReply = Sender<Result<(), Errno>>;

/// Files that are not published although somebody asked for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Left {
    /// Open for writing.
    pub written: usize,
    /// What they hold cannot be read, in the stage or in a further tier.
    pub unreadable: usize,
}

/// What other threads ask of the watcher.
#[derive(Debug)]
pub enum Command {
    /// Make a mirror; answers when it is there.
    Populate(Vec<u8>, Extent, PopulateReply),
    /// Publish what is complete now; answers with what could not be.
    Wait(Sender<Left>),
    /// As `Wait`, after looking again at every file that was open: for the end of a job. That is no word to
    /// a program: what is published so is not acknowledged.
    Finish(Sender<Left>),
    /// Make room; answers when it is there, or when there can be none.
    Room {
        /// How much is to be free.
        wanted_bytes: u64,
        /// Who is to write it; `None` for the flusher itself.
        process: Option<Pid>,
        /// Where the answer goes.
        reply: Sender<Result<(), Errno>>,
    },
    /// Publish the file at this path as it is now; answers when it is durable.
    Sync(Vec<u8>, Sender<Result<(), Errno>>),
    /// Show what other nodes have changed; answers when it is shown, as far as it can be.
    Show(Changed, Sender<()>),
    /// Leave word for the next flusher of what need not be published again.
    Remember(Sender<()>),
}

/// Hands commands to the watcher thread and wakes it.
#[derive(Clone, Debug)]
pub struct Commands {
    sender: Sender<Command>,
    wake: Arc<OwnedFd>,
}

impl Commands {
    /// Commands, and the ends that the watcher keeps.
    ///
    /// # Errors
    /// From eventfd(2).
    pub fn new() -> io::Result<(Commands, Receiver<Command>)> {
        let (sender, receiver) = crossbeam_channel::bounded(1024);
        let wake = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok((Commands { sender, wake }, receiver))
    }

    /// Queues a command.
    pub fn send(&self, command: Command) {
        // The receiver lives as long as the process; a full queue waits.
        if self.sender.send(command).is_ok() {
            self.look();
        }
    }

    /// Makes the watcher look around: a batch has been published.
    pub fn look(&self) {
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }
}

struct Waiter {
    /// Everything before this position must be published.
    position: u64,
    /// The batch that carries the last of it, once it is known.
    batch: Option<u64>,
    /// Whether it must be known in the store, before it is answered, that somebody was told.
    is_told: bool,
    reply: WaitReply,
}

/// Where the end of a wait is reported.
enum WaitReply {
    /// How many files are still open for writing.
    Unfinished(Sender<Left>),
    /// Whether this file is durable.
    Durable(Vec<u8>, Sender<Result<(), Errno>>),
}

/// Somebody who waits for room in the stage.
struct RoomWaiter {
    wanted_bytes: u64,
    /// Who is to write; `None` for the flusher itself.
    process: Option<Pid>,
    since: Instant,
    reply: Sender<Result<(), Errno>>,
}

/// The watcher thread's state.
pub struct Watcher {
    shared: Arc<Shared>,
    tracker: Tracker,
    commands: Receiver<Command>,
    wake: Arc<OwnedFd>,
    jobs: Sender<Job>,
    waiters: Vec<Waiter>,
    /// How much the store had taken when the writer was last asked to acknowledge what is published.
    acknowledging: Option<u64>,
    /// Mirrors that cannot be made yet; see [`Watcher::knows_names_in`].
    populates: Vec<(Vec<u8>, Extent, PopulateReply)>,
    rooms: Vec<RoomWaiter>,
    /// What other nodes have changed and the tree does not show yet.
    sight: Sight,
    /// Tells the library that the mirrors show what other nodes have published.
    telling: Telling,
    submitted: u64,
    /// Renames that are handed to the writer and not published yet: the batch, both names.
    renaming: Vec<(u64, StagedPath, StagedPath)>,
    /// The same for removals.
    removing: Vec<(u64, StagedPath)>,
    /// Whether older files may lie about whose successors are published, and the writer has not been asked to remove them.
    replaced_is_due: bool,
    /// Batches published when room was last made, and when that was.
    evict_published: u64,
    evict_time: Instant,
    /// Since when there has been too little room, though everything was evicted that could be.
    short_since: Option<Instant>,
    last_recheck: Instant,
    /// When the store was last told, or is about to be told, that everything is published.
    watermark_told: Instant,
}

impl Watcher {
    /// Everything it needs; `tracker` scans the tree as soon as the store has been read.
    pub fn new(
        shared: Arc<Shared>,
        tracker: Tracker,
        commands: (&Commands, Receiver<Command>),
        jobs: Sender<Job>,
        telling: Telling,
    ) -> Watcher {
        Watcher {
            shared,
            tracker,
            wake: commands.0.wake.clone(),
            commands: commands.1,
            jobs,
            waiters: Vec::new(),
            acknowledging: None,
            populates: Vec::new(),
            rooms: Vec::new(),
            sight: Sight::default(),
            telling,
            submitted: 0,
            renaming: Vec::new(),
            removing: Vec::new(),
            replaced_is_due: false,
            evict_published: 0,
            evict_time: Instant::now(),
            short_since: None,
            last_recheck: Instant::now(),
            watermark_told: Instant::now(),
        }
    }

    /// Runs until the process ends.
    pub fn run(mut self) {
        loop {
            let result = self.step();
            let text = result.as_ref().err().map(|error| format!("cannot follow the stage: {error}"));
            self.shared.set_error("stage", text);
            if let Err(error) = result {
                log::error!("watcher: {error}; trying again in a second");
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }

    /// Has older files removed whose successors an earlier flusher has published, or that a scan has found to be so. It
    /// is tried again while the writer is busy, unless a batch does it.
    fn remove_replaced(&mut self) -> io::Result<()> {
        if self.replaced_is_due {
            let replaced = self.tracker.replaced()?;
            self.replaced_is_due = !replaced.is_empty() && self.jobs.try_send(Job::Replaced(replaced)).is_err();
        }
        Ok(())
    }

    fn step(&mut self) -> io::Result<()> {
        self.sleep()?;
        self.follow()?;
        self.tracker.settle_hydrations();
        let left_out = std::mem::take(&mut *self.shared.left_out.lock());
        if !left_out.is_empty() {
            self.tracker.publish_again(&left_out);
            // Who waits for the batch that they were in waits for them, too.
            self.wait_anew();
        }
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command)?;
        }
        if self.tracker.overflowed() && self.shared.reading.is_read() {
            self.scan()?;
        }
        if !self.tracker.overflowed() {
            self.submit()?;
        }
        self.remove_replaced()?;
        if self.shared.reading.is_compared() {
            self.show_missing()?;
        }
        self.show_news()?;
        self.answer_populates();
        self.answer_waiters();
        self.make_room()?;
        self.tell_watermark();
        self.report();
        Ok(())
    }

    /// As long as programs live that others may depend on, the store is told now and then that everything is published.
    fn tell_watermark(&mut self) {
        let is_due = self.watermark_told.elapsed() >= self.shared.settings.watermark_interval;
        if !is_due || self.tracker.waiting() > 0 || !self.shared.has_stored(self.submitted) {
            return;
        }
        // Filled before the batch counts as published.
        if !self.shared.left_out.lock().is_empty() || self.shared.clients.lock().is_empty() {
            return;
        }
        let watermark_ns = self.tracker.watermark_ns();
        let is_news = watermark_ns > self.shared.watermark_ns.load(Ordering::SeqCst);
        if is_news && self.jobs.try_send(Job::Watermark(watermark_ns)).is_ok() {
            self.watermark_told = Instant::now();
        }
    }

    fn report(&mut self) {
        let failing = self.tracker.failing();
        let text = failing.iter().next().map(|(path, reason)| {
            format!("{} staged files cannot be read, first /{}: {reason}", failing.len(), path.escape_ascii())
        });
        self.shared.set_error("files", text);
        if let Some(place) = self.shared.spool.silent().filter(|_| self.shared.reading.is_read()) {
            let text = || format!("{} has taken nothing for a while: its file system may hang", place.display());
            self.shared.set_error_if_none("spool", text);
        }
        let mut status = self.shared.status.lock();
        status.waiting = self.tracker.waiting();
        status.submitted = self.submitted;
        status.unfinished = self.tracker.unfinished();
        status.directories = self.tracker.watches().len();
    }

    fn sleep(&mut self) -> io::Result<()> {
        let timeout = match self.tracker.oldest_work() {
            Some(oldest) if self.has_room() => BATCH_DELAY.saturating_sub(oldest.elapsed()),
            _ => self.shared.settings.watermark_interval.min(Duration::from_secs(1)),
        };
        let quiet = self.waiters.is_empty()
            && self.rooms.is_empty()
            && self.populates.is_empty()
            && !self.sight.is_awaited()
            && !self.replaced_is_due
            && !(self.tracker.overflowed() && self.shared.reading.is_read())
            && self.shared.hydrated.lock().is_empty();
        let timeout = if quiet { timeout } else { timeout.min(Duration::from_millis(50)) };
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        let mut ends = [
            PollFd::from_borrowed_fd(self.tracker.watches().as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
        ];
        match poll(&mut ends, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut count = [0; 8];
        let _ = rustix::io::read(&*self.wake, &mut count);
        Ok(())
    }

    /// Takes in what has happened in the tree.
    fn follow(&mut self) -> io::Result<()> {
        let changes = self.tracker.drain()?;
        self.tracker.apply_all(changes)
    }

    /// Scans the tree, as soon as what the scan is compared with shows everything that is known to have happened: the
    /// operations that wait are published first, and what was handed to the writer. Never waits for the store.
    fn scan(&mut self) -> io::Result<()> {
        self.tracker.forget_files();
        while self.tracker.first_position().is_some() && self.has_room() {
            self.submit_one(Haste::Awaited)?;
            self.tracker.forget_files();
        }
        if self.tracker.first_position().is_some() || self.shared.published() < self.submitted {
            return Ok(());
        }
        log::info!("what happened in the stage is not clear from its events: scanning it");
        {
            let store = self.shared.store.read();
            let stubs = self.tracker.rescan(&store)?;
            self.shared.stubs.extend(&store, stubs);
        }
        self.wait_anew();
        if !self.tracker.overflowed() {
            if !self.shared.reading.is_compared() {
                // Nothing has been hydrated or evicted yet, and every stub has the times that were noted for it.
                self.shared.stage.forget_all_times()?;
            }
            let outcome = self.show_newer().and_then(|()| self.show_missing());
            self.shared.reading.compared();
            outcome?;
        }
        self.replaced_is_due = true;
        Ok(())
    }

    /// Has the tree show what other nodes have published since under names that it has. What cannot be shown is left as
    /// it was.
    fn show_newer(&mut self) -> io::Result<()> {
        let shared = self.shared.clone();
        let store = shared.store.read();
        let mut handled = Vec::new();
        for (path, inode) in self.tracker.take_outdated() {
            let outcome = self.supersede(&store, &path, inode);
            let what = match outcome {
                Ok(true) => "another node's newer version has taken its place".to_string(),
                Ok(false) => "another node has a newer version, but it is in use".to_string(),
                Err(error) => format!("another node's newer version cannot take its place: {error}"),
            };
            log::info!("/{}: {what}", path.escape_ascii());
            handled.push(path);
        }
        self.tracker.caught_up(&handled)
    }

    /// Has the tree show names that another node has published and a mirror lacks, once: later on their absence is the
    /// news. As long as renames of this node wait, nobody can say which these are; who looks for a name waits until
    /// then.
    fn show_missing(&mut self) -> io::Result<()> {
        let is_unpublished = self.shared.published() < self.submitted || self.tracker.has_renames();
        if self.shared.reading.has_caught_up() || self.tracker.overflowed() || is_unpublished {
            return Ok(());
        }
        let shared = self.shared.clone();
        let store = shared.store.read();
        let mut handled = Vec::new();
        for (path, node) in self.missing(&store) {
            let mut know = |inode| {
                if let Node::File(version) = node {
                    shared.stubs.insert(&store, inode, version.clone());
                }
            };
            let wanted = (&path[..], node);
            if let Err(error) = mirror::add(&shared.stage, &mut self.tracker, store.view(), wanted, &mut know) {
                log::error!("/{}, which another node has published, cannot be shown: {error}", path.escape_ascii());
            }
            handled.push(path);
        }
        self.tracker.caught_up(&handled)?;
        // The thread that serves the stage is the process's first.
        self.telling.tell_caught_up(std::process::id())?;
        shared.reading.caught_up();
        Ok(())
    }

    /// Names in mirrors that another node has published and that this node neither has nor took away.
    fn missing<'a>(&self, store: &'a Store) -> Vec<(StagedPath, &'a Node)> {
        let Some(removals) = self.tracker.removals() else { return Vec::new() };
        let is_removed = |path: &[u8]| {
            let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
            removals.contains(path) || ends.into_iter().any(|end| removals.contains(&path[..end]))
        };
        let is_wanted = |(path, node): &(StagedPath, &Node)| {
            let is_theirs = !matches!(node, Node::Directory(_)) && store.is_of_another_node(path);
            is_theirs && !self.tracker.knows(path) && !is_removed(path) && self.tracker.is_mirror(split(path).0)
        };
        store.view().iter().filter(is_wanted).collect()
    }

    fn supersede(&mut self, store: &Store, path: &[u8], inode: u64) -> io::Result<bool> {
        let (stage, stubs) = (&self.shared.stage, &self.shared.stubs);
        match store.view().get(path) {
            Some(Node::File(version)) => {
                // Known before the file shows as a stub of it.
                let known = stubs.insert(store, inode, version.clone());
                let outcome = mirror::supersede(stage, &mut self.tracker, path, inode, version);
                if let (Ok(false), Some(known)) = (&outcome, known) {
                    stubs.restore(store, inode, Some(known));
                }
                outcome
            }
            Some(Node::Symlink(link)) => Ok(mirror::supersede_link(stage, &mut self.tracker, path, inode, link)?),
            _ => Ok(false),
        }
    }

    fn has_room(&self) -> bool {
        self.submitted - self.shared.published() < IN_FLIGHT_MAX
    }

    fn obey(&mut self, command: Command) -> io::Result<()> {
        // Whoever asks must not miss what is still under its directory's old name.
        moving::finish(&self.shared.stage)?;
        match command {
            Command::Populate(directory, extent, reply) => {
                self.follow()?;
                self.populates.push((directory, extent, reply));
                self.answer_populates();
            }
            Command::Wait(reply) => {
                self.follow()?;
                self.await_all(WaitReply::Unfinished(reply), true);
            }
            Command::Room { wanted_bytes, process, reply } => {
                self.follow()?;
                self.rooms.push(RoomWaiter { wanted_bytes, process, since: Instant::now(), reply });
            }
            Command::Sync(path, reply) => {
                self.follow()?;
                self.tracker.publish_as_it_is(&path);
                self.await_all(WaitReply::Durable(path, reply), true);
            }
            Command::Show(changed, reply) => {
                self.follow()?;
                self.sight.ask(changed, reply);
                self.show_news()?;
            }
            Command::Remember(reply) => {
                self.follow()?;
                // Without it the next flusher publishes again what was only read back.
                if self.tracker.overflowed() {
                    log::debug!(
                        "the word that an earlier flusher left stays: the tree has not been compared with the store"
                    );
                } else if let Err(error) = self.tracker.write_proofs(self.shared.store.read().view()) {
                    log::warn!("cannot leave word of what is published: {error}");
                }
                let _ = reply.send(());
            }
            Command::Finish(reply) => {
                self.follow()?;
                if self.last_recheck.elapsed() >= RECHECK {
                    self.tracker.recheck_unfinished();
                    self.last_recheck = Instant::now();
                }
                self.await_all(WaitReply::Unfinished(reply), false);
            }
        }
        Ok(())
    }

    /// Work that somebody waits for has become work again: all who wait, wait for it.
    fn wait_anew(&mut self) {
        let position = self.tracker.end_position();
        self.waiters.iter_mut().for_each(|waiter| (waiter.position, waiter.batch) = (position, None));
    }

    /// Answers when everything that is known now is published.
    fn await_all(&mut self, reply: WaitReply, is_told: bool) {
        self.waiters.push(Waiter { position: self.tracker.end_position(), batch: None, is_told, reply });
    }

    /// Whether the store's view has the names in a directory where they are now. Until a rename is published it has
    /// what only the store holds under the old name: a mirror that was made then would lack it for good. A directory in
    /// which the store holds nothing, and that no such rename concerns, need not wait for the store.
    fn knows_names_in(&self, directory: &[u8]) -> bool {
        if self.tracker.overflowed() || self.has_lost_names_in(directory) {
            return false;
        }
        let under_way = self.renaming.iter().map(|(_, from, to)| (from.as_slice(), to.as_slice()));
        let mut renames = self.tracker.renames().chain(under_way).peekable();
        if renames.peek().is_none() {
            return true;
        }
        let concerns = |path| is_at_or_below(path, directory) || is_at_or_below(directory, path);
        let is_untouched = renames.all(|(from, to)| !concerns(from) && !concerns(to));
        is_untouched && self.shared.store.read().view().children(directory).next().is_none()
    }

    /// Whether the store's view still has names that were removed from a directory which has no mirror any more, and so
    /// would give them to the directory that has taken its name.
    fn has_lost_names_in(&self, directory: &[u8]) -> bool {
        let under_way = self.removing.iter().map(|(_, path)| path.as_slice());
        let mut holders = self.tracker.removed().chain(under_way).map(|path| split(path).0);
        let concerns = |holder| is_at_or_below(holder, directory) || is_at_or_below(directory, holder);
        holders.any(|holder| concerns(holder) && !self.tracker.is_mirror(holder))
    }

    fn answer_populates(&mut self) {
        let published = self.shared.published();
        self.renaming.retain(|(batch, ..)| *batch > published);
        self.removing.retain(|(batch, _)| *batch > published);
        for (directory, extent, reply) in std::mem::take(&mut self.populates) {
            if self.knows_names_in(&directory) {
                let _ = reply.send(self.populate(&directory, extent));
            } else if self.has_given_up() {
                let _ = reply.send(Err(Errno::IO));
            } else {
                self.populates.push((directory, extent, reply));
            }
        }
    }

    /// Whether the store cannot be read, and nobody should wait for it any more.
    fn has_given_up(&self) -> bool {
        self.shared.reading.is_given_up(self.shared.settings.timeout)
    }

    fn populate(&mut self, directory: &[u8], extent: Extent) -> Result<(), Errno> {
        let (store, zones, mut stubs) = (self.shared.store.read(), &self.shared.zones, Stubs::new());
        let wanted = (directory, extent);
        self.tracker.has_seen(&store);
        let outcome = mirror::populate(&self.shared.stage, &mut self.tracker, zones, store.view(), wanted, &mut stubs);
        // Those that were made before it failed are in the tree, too.
        self.shared.stubs.extend(&store, stubs);
        outcome
    }

    /// Makes batches while there is something to write and room for it.
    fn submit(&mut self) -> io::Result<()> {
        while self.has_room() && self.is_due() && !self.tracker.overflowed() {
            let haste = self.haste();
            self.submit_one(haste)?;
            self.assign_batches();
            if haste == Haste::None && self.tracker.is_held_back() {
                break;
            }
        }
        self.assign_batches();
        Ok(())
    }

    fn submit_one(&mut self, haste: Haste) -> io::Result<()> {
        let mut batch = self.tracker.next_batch(haste)?;
        if batch.entries.is_empty() {
            return Ok(());
        }
        batch.acknowledges = self.waiters.iter().any(|waiter| waiter.is_told);
        self.submitted += 1;
        self.replaced_is_due = false;
        self.watermark_told = Instant::now();
        let renames = batch.entries.iter().filter(|entry| entry.kind == Kind::Rename);
        self.renaming.extend(renames.map(|entry| (self.submitted, entry.path.clone(), entry.target.clone())));
        let removals = batch.entries.iter().filter(|entry| matches!(entry.kind, Kind::Unlink | Kind::RemoveDirectory));
        self.removing.extend(removals.map(|entry| (self.submitted, entry.path.clone())));
        log::debug!("batch {}: {} records, {} bytes", self.submitted, batch.entries.len(), batch.bytes);
        if self.shared.spool.is_used() {
            self.shared.spool.submit(self.submitted, batch);
            return Ok(());
        }
        let job = Job::Batch(self.submitted, batch);
        self.jobs.send(job).map_err(|_| io::Error::other("the writer thread has ended"))
    }

    fn is_due(&self) -> bool {
        let Some(oldest) = self.tracker.oldest_work() else { return false };
        self.haste() == Haste::Awaited || oldest.elapsed() >= BATCH_DELAY || self.tracker.waiting() >= BATCH_FILES_MAX
    }

    fn haste(&self) -> Haste {
        let is_awaited = !self.populates.is_empty()
            || !self.rooms.is_empty()
            || self.waiters.iter().any(|waiter| waiter.batch.is_none());
        if is_awaited { Haste::Awaited } else { Haste::None }
    }

    /// A waiter whose last piece of work is in a batch waits for the newest batch.
    fn assign_batches(&mut self) {
        let first = self.tracker.first_position();
        for waiter in &mut self.waiters {
            if waiter.batch.is_none() && first.is_none_or(|first| first >= waiter.position) {
                waiter.batch = Some(self.submitted);
            }
        }
    }

    fn answer_waiters(&mut self) {
        // Filled before the batch counts as published: what is in it comes first.
        if !self.shared.left_out.lock().is_empty() {
            return;
        }
        let unreadable = self.tracker.failing().len() + self.shared.spool.lost();
        let left = Left { written: self.tracker.unfinished(), unreadable };
        let shared = self.shared.clone();
        let is_published = |waiter: &Waiter| waiter.batch.is_some_and(|batch| shared.has_stored(batch));
        let is_acknowledged = self.shared.is_acknowledged();
        if !is_acknowledged && self.waiters.iter().any(|waiter| waiter.is_told && is_published(waiter)) {
            self.acknowledge();
        }
        self.waiters.retain(|waiter| {
            let done = is_published(waiter) && (is_acknowledged || !waiter.is_told) && !self.replaced_is_due;
            match &waiter.reply {
                _ if !done => {}
                WaitReply::Unfinished(reply) => drop(reply.send(left)),
                WaitReply::Durable(path, reply) => {
                    let failed = self.tracker.failing().contains_key(path);
                    let _ = reply.send(if failed { Err(Errno::IO) } else { Ok(()) });
                }
            }
            !done
        });
    }

    /// Has the store told, before anybody is, that what is published is safe: no cut may hide it.
    fn acknowledge(&mut self) {
        let stored = self.shared.stored.load(Ordering::SeqCst);
        if self.acknowledging.replace(stored) != Some(stored) && self.jobs.try_send(Job::Acknowledge).is_err() {
            self.acknowledging = None;
        }
    }

    /// Evicts published files, oldest first, when the stage holds more than its limit, when little is free, and when
    /// somebody waits for room. It goes on until there is some room more than that, so that it need not begin again at
    /// once.
    fn make_room(&mut self) -> io::Result<()> {
        let published = self.shared.published();
        // What was brought back a moment ago is about to be read; what is in use now may not be a second later.
        let too_soon = published == self.evict_published && self.evict_time.elapsed() < EVICT_INTERVAL;
        if too_soon && self.rooms.is_empty() {
            return Ok(());
        }
        let (process, room) = self.neediest()?;
        let wanted_bytes = self.rooms.iter().map(|room| room.wanted_bytes).max().unwrap_or(0);
        let least_bytes = wanted_bytes.max(room.reserve());
        let limit = self.shared.stage_limit;
        if self.tracker.resident_bytes() > limit || room.free < least_bytes {
            (self.evict_published, self.evict_time) = (published, Instant::now());
            self.evict(published, limit - limit / 8, (process, least_bytes.saturating_mul(2)))?;
            let is_short =
                Room::look_for(&self.shared.stage, process)?.free < least_bytes || self.unpublished_bytes() > limit;
            self.use_further_tiers(is_short);
        } else {
            self.use_further_tiers(false);
        }
        self.answer_rooms()
    }

    /// Bytes of what only the stage has.
    fn unpublished_bytes(&self) -> u64 {
        let published = self.shared.published();
        let of_published: u64 = self.tracker.resident(published).map(|(_, _, size, _)| size).sum();
        self.tracker.resident_bytes().saturating_sub(of_published)
    }

    /// Has batches go to further tiers when room has been short for a while and the store has not caught up, or at once
    /// when some are there already.
    fn use_further_tiers(&mut self, is_short: bool) {
        if !self.shared.spool.has_tiers() {
            return;
        }
        if !is_short || self.shared.has_stored(self.submitted) {
            self.short_since = None;
            return self.shared.spool.want(false);
        }
        let since = *self.short_since.get_or_insert_with(Instant::now);
        self.shared.spool.want(since.elapsed() >= SHORT_FOR || !self.shared.spool.is_empty());
    }

    /// Of this process and those that wait, the one that finds least room, and what it finds.
    fn neediest(&self) -> io::Result<(Option<Pid>, Room)> {
        let mut least = (None, Room::look(&self.shared.stage)?);
        for process in self.rooms.iter().filter_map(|waiter| waiter.process) {
            let room = Room::look_for(&self.shared.stage, Some(process))?;
            if room.free < least.1.free {
                least = (Some(process), room);
            }
        }
        Ok(least)
    }

    /// Evicts until the stage holds no more than `resident_most` bytes and `free_least` are free for `process`, as far
    /// as it goes.
    fn evict(
        &mut self,
        published: u64,
        resident_most: u64,
        (process, free_least): (Option<Pid>, u64),
    ) -> io::Result<()> {
        let stage = self.shared.stage.clone();
        let has_room = || Room::look_for(&stage, process).map(|room| room.free >= free_least);
        let mut candidates = Vec::new();
        {
            let store = self.shared.store.read();
            for (path, inode, size, attributes) in self.tracker.resident(published) {
                if let Some(version) = same_version(&store, path, size, attributes) {
                    candidates.push((version.operation_time_ns, path.clone(), (inode, size, attributes.clone())));
                }
            }
        }
        candidates.sort_by_key(|(time_ns, ..)| *time_ns);
        for (_, path, published_as) in candidates {
            if self.tracker.resident_bytes() <= resident_most && has_room()? {
                break;
            }
            self.evict_one(&path, published_as)?;
        }
        Ok(())
    }

    fn evict_one(&mut self, path: &[u8], (inode, size, attributes): (u64, u64, Attributes)) -> io::Result<()> {
        let shared = self.shared.clone();
        let store = shared.store.read();
        let Some(version) = same_version(&store, path, size, &attributes) else { return Ok(()) };
        // Known before the file shows as a stub, so that a hydration can never come too early.
        let known = shared.stubs.insert(&store, inode, version.clone());
        if mirror::evict(&shared.stage, &mut self.tracker, path, inode, version)? {
            log::debug!("evicted /{}", path.escape_ascii());
        } else {
            // A name that is gone by now may be that of a file which was evicted a moment ago by its other name.
            shared.stubs.restore(&store, inode, known);
        }
        Ok(())
    }

    /// Room comes when what waits is published, and is then evicted. When nothing waits, no more will come.
    fn answer_rooms(&mut self) -> io::Result<()> {
        if self.rooms.is_empty() {
            return Ok(());
        }
        let stage = &self.shared.stage;
        let has_room = |waiter: &RoomWaiter| {
            Room::look_for(stage, waiter.process).is_ok_and(|room| room.free >= waiter.wanted_bytes)
        };
        let is_idle = self.tracker.first_position().is_none() && self.shared.published() == self.submitted;
        let nothing_comes = is_idle && !self.tracker.overflowed() || self.has_given_up();
        let limit = self.shared.settings.timeout;
        self.rooms.retain(|room| {
            let answer = match has_room(room) {
                true => Some(Ok(())),
                false if nothing_comes || room.since.elapsed() >= limit => Some(Err(Errno::NOSPC)),
                false => None,
            };
            if let Some(answer) = answer {
                let _ = room.reply.send(answer);
            }
            answer.is_none()
        });
        Ok(())
    }
}

/// The store's version of a staged file, if it is what the file is.
fn same_version<'a>(store: &'a Store, path: &[u8], size: u64, attributes: &Attributes) -> Option<&'a Arc<Version>> {
    match store.view().get(path) {
        Some(Node::File(version)) if size > 0 && version.size == size && version.attributes == *attributes => {
            Some(version)
        }
        _ => None,
    }
}
