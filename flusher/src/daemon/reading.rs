//! Reading the store when the flusher starts, in a thread of its own, for as long as that takes.
//!
//! A store of which an aggregate or the directory itself cannot be read (EIO, ESTALE, EACCES, no answer) is read again
//! until all of it has been. Before that nobody may act on what is known of it: a name that it does not show may be in
//! what could not be read. So nothing is compared with it, published, evicted or reclaimed, and whoever asks for names
//! or data waits, and is then told that they cannot be had; never that they do not exist.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Shared;
use crate::store::{Choice, SpooledSegment, Store, prepare_catalog};

/// Pause before a store that could not be read is read again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long reading may take before the status says so.
const SLOW: Duration = Duration::from_secs(2);

/// How much is known of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Known {
    /// Nothing that could be relied on.
    Nothing,
    /// It has been read whole.
    Read,
    /// The tree has been compared with it: the versions of all stubs are known.
    Compared,
    /// The tree shows what other nodes had published.
    CaughtUp,
}

/// How far this flusher is with reading the store.
#[derive(Debug)]
pub struct Reading {
    known: Mutex<Known>,
    changed: Condvar,
    since: Instant,
}

impl Default for Reading {
    fn default() -> Reading {
        Reading { known: Mutex::new(Known::Nothing), changed: Condvar::new(), since: Instant::now() }
    }
}

impl Reading {
    /// Whether the store has been read whole.
    pub fn is_read(&self) -> bool {
        *self.known.lock() >= Known::Read
    }

    /// Whether the tree has been compared with the store.
    pub fn is_compared(&self) -> bool {
        *self.known.lock() >= Known::Compared
    }

    /// The tree has been compared with the store.
    pub fn compared(&self) {
        self.advance(Known::Compared);
    }

    /// Whether the tree shows what other nodes had published.
    pub fn has_caught_up(&self) -> bool {
        *self.known.lock() == Known::CaughtUp
    }

    /// The tree shows what other nodes had published.
    pub fn caught_up(&self) {
        self.advance(Known::CaughtUp);
    }

    /// Waits for so long at most until so much is known, and yields whether it is.
    pub fn await_for(&self, wanted: Known, limit: Duration) -> bool {
        let mut known = self.known.lock();
        let is_not = |known: &mut Known| *known < wanted;
        !self.changed.wait_while_for(&mut known, is_not, limit).timed_out()
    }

    /// Waits until the tree has been compared with the store. False when [`Reading::is_given_up`].
    pub fn await_compared(&self, limit: Duration) -> bool {
        let mut known = self.known.lock();
        while *known < Known::Compared {
            let left = limit.saturating_sub(self.since.elapsed());
            match *known {
                Known::Nothing if left.is_zero() => return false,
                Known::Nothing => drop(self.changed.wait_for(&mut known, left)),
                _ => self.changed.wait(&mut known),
            }
        }
        true
    }

    /// Whether nobody should wait for the store any more: it has not been read for so long since the flusher's start.
    /// Who comes later need not find that out once more.
    pub fn is_given_up(&self, limit: Duration) -> bool {
        !self.is_read() && self.since.elapsed() >= limit
    }

    fn advance(&self, known: Known) {
        let mut so_far = self.known.lock();
        *so_far = known.max(*so_far);
        drop(so_far);
        self.changed.notify_all();
    }
}

/// Reads the store until it has been read whole. In a stage that `is_fresh` it is decided first what counts of jobs
/// that lost nodes; one that is still there from before is shown as it is.
pub fn read(shared: &Shared, is_fresh: bool) {
    let mut said = None;
    prepare_catalog(&shared.settings.store);
    loop {
        let read = read_once(shared, is_fresh).and_then(|read| Ok((read, shared.stage.born_ns()?)));
        let error = match read {
            Ok(((mut store, segments), born_ns)) => {
                store.know_birth(born_ns);
                let (watermark_ns, newest_ns, acknowledged_ns) = store.told_of(shared.stage_uuid);
                shared.watermark_ns.fetch_max(watermark_ns, Ordering::SeqCst);
                shared.newest_ns.fetch_max(newest_ns, Ordering::SeqCst);
                shared.acknowledged_ns.fetch_max(acknowledged_ns, Ordering::SeqCst);
                *shared.store.write() = store;
                // Known before anything is published.
                shared.spool.load(segments, shared.stage_uuid, false);
                shared.look_for_contests();
                shared.reading.advance(Known::Read);
                shared.set_error("reading", None);
                return shared.commands.look();
            }
            Err(error) => error,
        };
        let store = shared.settings.store.display();
        let text = format!("cannot read the store {store}: {error}; everything stays staged until it can be read");
        if said.as_ref() != Some(&text) {
            log::error!("{text}; trying again each second");
        }
        shared.set_error("reading", Some(text.clone()));
        said = Some(text);
        std::thread::sleep(PAUSE);
    }
}

/// Reads the store, and what earlier flushers have left in further tiers. What a stage left that is gone is brought to
/// the store first: by what is there it is decided which part of it counts.
fn read_once(shared: &Shared, is_fresh: bool) -> io::Result<(Store, Vec<SpooledSegment>)> {
    let (directory, stage) = (&shared.settings.store, shared.stage_uuid);
    shared.spool.take(shared)?;
    let files = shared.spool.files(shared, is_fresh)?;
    if is_fresh && !files.is_empty() {
        let (store, segments) = with_spool(shared, &files)?;
        *shared.store.write() = store;
        shared.spool.load(segments, stage, true);
        shared.spool.await_stored();
        return read_once(shared, is_fresh);
    }
    if !files.is_empty() && shared.settings.cut != Choice::Complete {
        return with_spool(shared, &files);
    }
    let mut store = Store::open_whole(directory, stage)?;
    if shared.settings.cut == Choice::Complete {
        store.show_everything()?;
    }
    if is_fresh && let Some(hidden) = store.decide(shared.settings.cut, shared.settings.skew)? {
        log::warn!("{hidden}");
        shared.news.fetch_add(hidden.files as u64, Ordering::SeqCst);
        shared.status.lock().hidden = Some(hidden.to_string());
    }
    if files.is_empty() { Ok((store, Vec::new())) } else { with_spool(shared, &files) }
}

fn with_spool(shared: &Shared, files: &[PathBuf]) -> io::Result<(Store, Vec<SpooledSegment>)> {
    let (store, segments) = Store::open_with_spool(&shared.settings.store, shared.stage_uuid, files)?;
    for file in files.iter().filter(|file| !segments.iter().any(|segment| segment.path == **file)) {
        match store.notes().iter().find(|note| note.path == *file) {
            Some(note) => {
                shared.keep_damaged(file);
                shared.spool.has_lost();
                // No watermark of what was spooled after it may be told to the store.
                shared.left_out_count.fetch_add(1, Ordering::SeqCst);
                shared.set_error("spooled", Some(format!("{note}; what it held is lost unless it is staged")));
            }
            // The store has what is in it.
            None => shared.discard(file),
        }
    }
    Ok((store, segments))
}

/// Has the status say that reading takes long, for as long as it does and nothing worse is known.
pub fn watch(shared: &Shared) {
    if !shared.reading.is_given_up(SLOW.min(shared.settings.timeout)) {
        return;
    }
    let (store, asked) = (shared.settings.store.display(), shared.spool.asked());
    let asked = asked.map_or_else(String::new, |place| format!(", with what waits for it in {}", place.display()));
    shared.set_error_if_none("reading", || {
        format!("the store {store}{asked} is still being read: a file system may hang")
    });
    // It may have been read meanwhile.
    if shared.reading.is_read() {
        shared.set_error("reading", None);
    }
}
