//! A node makes itself known in the store before anything of it is published there.
//!
//! A node that dies before its first publication would else be one that nobody misses: the cut would show what others
//! did after it. But no program may be held up for longer than SHEAF_TIMEOUT and a moment by a store that does not
//! answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sheaf_common::configuration::Layout;

use super::{Appender, Origin, Shared};

/// How long programs are held up for it. It goes on afterwards.
const LIMIT: Duration = Duration::from_secs(2);

/// Whether this flusher's stage is known in the store.
#[derive(Default)]
pub(super) struct Announcement {
    is_made: AtomicBool,
    /// Since when somebody has been trying.
    since: Mutex<Option<Instant>>,
    /// The aggregate that was made for it, until the first segment is written to it.
    spare: Mutex<Option<Appender>>,
}

impl Announcement {
    /// The aggregate that was made for it, if nothing has been written to it.
    pub fn take(&self) -> Option<Appender> {
        self.spare.lock().take()
    }

    /// An aggregate has been made.
    pub fn is_made(&self) {
        self.is_made.store(true, Ordering::SeqCst);
    }

    /// Makes an aggregate that says whose it is, if none has been made. Calls `done` when it is durable or cannot be
    /// made; the next one who asks tries again. Yields how long that may be waited for: not at all if it is made.
    pub fn make(shared: &Arc<Shared>, done: impl FnOnce() + Send + 'static) -> Option<Duration> {
        let announcement = &shared.announcement;
        // In layout `files` no cut asks which nodes there were.
        if announcement.is_made.load(Ordering::SeqCst) || shared.settings.layout == Layout::Files {
            return None;
        }
        let start = *announcement.since.lock().get_or_insert_with(Instant::now);
        let limit = LIMIT.checked_sub(start.elapsed())?;
        let working = shared.clone();
        let thread = std::thread::Builder::new().name("announce".to_string()).spawn(move || {
            // Others must be able to tell this node from those that were there before.
            if working.reading.await_compared(working.settings.timeout) {
                working.announce();
            }
            *working.announcement.since.lock() = None;
            done();
        });
        thread.is_ok().then_some(limit)
    }
}

impl Shared {
    fn announce(&self) {
        let mut spare = self.announcement.spare.lock();
        if self.announcement.is_made.load(Ordering::SeqCst) {
            return;
        }
        match self.create_appender() {
            Ok(appender) => {
                *spare = Some(appender);
                self.announcement.is_made();
            }
            Err(error) => {
                let store = self.settings.store.display();
                log::warn!("{store} does not know of this node yet: {error}");
            }
        }
    }

    /// What a new aggregate of this stage says of it.
    pub(super) fn origin(&self) -> Origin {
        Origin {
            stage: self.stage_uuid,
            watermark_ns: self.watermark_ns.load(Ordering::SeqCst),
            acknowledged_ns: self.acknowledged_ns.load(Ordering::SeqCst),
        }
    }

    /// A new aggregate of this stage.
    pub(super) fn create_appender(&self) -> std::io::Result<Appender> {
        let origin = self.origin();
        let (store, limit) = (&self.settings.store, self.settings.timeout);
        let Layout::Shared(count) = self.settings.layout else { return Appender::create(store, origin) };
        Appender::share(store, count, origin, limit).or_else(|error| {
            log::warn!("nodes cannot share a file in {}: {error}; this one writes to its own", store.display());
            Appender::create(store, origin)
        })
    }
}
