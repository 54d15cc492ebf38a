//! Refreshing: what other nodes have published is read when a program is about to be told that a name does not exist.
//!
//! One thread reads, for all who have asked before it begins, and at most half of the time; so a program that asks for
//! thousands of names, or for one in a loop, is slowed down, and not the store. Nobody waits for a store that does not
//! answer for longer than SHEAF_TIMEOUT.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::Mutex;
use rustix::io::Errno;

use super::Shared;
use super::watcher::Command;
use crate::store;

/// Where the outcome of a refresh goes.
pub type Reply = Sender<Result<(), Errno>>;

/// How many may wait for the next one.
const WAITING_MAX: usize = 4096;
/// Pause for each aggregate that was looked at: on thousands of nodes each looks at those of all others.
const PAUSE_PER_AGGREGATE: Duration = Duration::from_micros(100);
/// The longest pause.
const PAUSE_LONGEST: Duration = Duration::from_secs(1);

/// Who waits for a refresh.
#[derive(Debug)]
pub struct Refreshes {
    sender: Sender<Reply>,
    /// Since when one is under way.
    since: Mutex<Option<Instant>>,
    /// Whether something that was read could not be shown yet.
    pub has_unshown: AtomicBool,
}

impl Refreshes {
    /// With the end that [`serve`] takes.
    pub fn new() -> (Refreshes, Receiver<Reply>) {
        let (sender, receiver) = bounded(WAITING_MAX);
        (Refreshes { sender, since: Mutex::default(), has_unshown: AtomicBool::new(false) }, receiver)
    }

    /// Asks for a refresh that begins from here on. False when too many wait.
    pub fn ask(&self, reply: Reply) -> bool {
        !matches!(self.sender.try_send(reply), Err(TrySendError::Full(_)))
    }

    /// How long to wait for one that may take so long: whoever comes later need not find out once more that the store
    /// does not answer.
    pub fn limit(&self, limit: Duration) -> Duration {
        self.since.lock().map_or(limit, |since| limit.saturating_sub(since.elapsed()))
    }
}

/// Refreshes as often as somebody asks, until the process ends. The store has been read before.
pub fn serve(shared: &Shared, asked: &Receiver<Reply>) {
    let mut not_before = Instant::now();
    while let Ok(first) = asked.recv() {
        std::thread::sleep(not_before.saturating_duration_since(Instant::now()));
        let all: Vec<Reply> = std::iter::once(first).chain(asked.try_iter()).collect();
        let start = Instant::now();
        *shared.refreshes.since.lock() = Some(start);
        let outcome = refresh(shared);
        *shared.refreshes.since.lock() = None;
        let looked_at = shared.store.read().growing_count() as u32;
        let pause = start.elapsed().max(PAUSE_PER_AGGREGATE * looked_at).min(PAUSE_LONGEST);
        not_before = Instant::now() + pause;
        for reply in all {
            // Who has given up hears nothing.
            let _ = reply.send(outcome);
        }
    }
}

fn refresh(shared: &Shared) -> Result<(), Errno> {
    let changed = store::refresh(&shared.store).map_err(|error| {
        let store = shared.settings.store.display();
        let text = format!("cannot see what other nodes have published to {store}: {error}");
        log::warn!("{text}");
        shared.set_error("refresh", Some(text));
        Errno::IO
    })?;
    shared.set_error("refresh", None);
    if changed.is_empty() && !shared.refreshes.has_unshown.load(Ordering::SeqCst) {
        return Ok(());
    }
    shared.look_for_contests();
    log::debug!("other nodes have changed {} names", changed.names.len());
    let (sender, receiver) = bounded(1);
    shared.commands.send(Command::Show(changed, sender));
    receiver.recv().map_err(|_| Errno::IO)
}
