//! The flusher's reclaiming: closes aggregates that are mostly dead, copies what is alive out of them, removes them.
//!
//! It runs between two publications. Whatever fails in it is tried again later: until an aggregate's last file is
//! copied and published, the aggregate stays as it is, and a copy beside its original changes nothing.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use super::node_name;
use super::segment::Input;
use super::writer::{Failure, Writer};
use crate::stage::tracker::{BATCH_BYTES_MAX, BATCH_FILES_MAX};
use crate::store::{Candidate, Cause, Copied, LARGE, Lock, Plan, Planner, lock_store, next_victim};

/// How long to wait after something could not be reclaimed: at first, and at most.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_LONGEST: Duration = Duration::from_secs(600);

/// When to look for what may be reclaimed.
#[derive(Debug)]
pub(super) struct Reclaiming {
    /// Whether everything has been looked at since this flusher started.
    looked: bool,
    due: Option<Instant>,
    earliest: Instant,
    pause: Duration,
}

impl Default for Reclaiming {
    fn default() -> Reclaiming {
        Reclaiming { looked: false, due: None, earliest: Instant::now(), pause: PAUSE_FIRST }
    }
}

impl Reclaiming {
    /// When to look next, if something has been published since it was last looked.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Something has been published. Looking takes time in proportion to all names: it is left out when nothing can
    /// have died.
    pub fn published(&mut self, may_have_superseded: bool) {
        if may_have_superseded || !self.looked {
            self.due = Some(self.earliest);
        }
    }

    /// Looked from `start` on, and found all done or not. It takes at most half of the time.
    pub fn looked(&mut self, start: Instant, all_done: bool) {
        let now = Instant::now();
        self.looked = true;
        if all_done {
            (self.due, self.earliest, self.pause) = (None, now + (now - start), PAUSE_FIRST);
        } else {
            self.earliest = now + self.pause.max(now - start);
            self.due = Some(self.earliest);
            self.pause = (2 * self.pause).min(PAUSE_LONGEST);
        }
    }
}

/// What became of reclaiming one aggregate.
enum Outcome {
    /// It is gone.
    Done,
    /// It stays: that would free too little.
    Poor,
    /// It has to stay for now.
    Refused,
}

/// The store as it is on disk, and the lock under which it was read: one reclaims at a time.
struct Planning {
    planner: Planner,
    _lock: File,
}

impl Writer {
    /// Reclaims what is due. Yields whether nothing is left.
    pub(super) fn reclaim(&mut self) -> bool {
        match self.reclaim_all() {
            Ok(all_done) => all_done,
            Err(failure) => {
                // Nothing is known of what was written last.
                self.abandon();
                if let Failure::Store(text) = failure {
                    log::warn!("nothing is reclaimed for now: {text}");
                }
                false
            }
        }
    }

    /// Yields whether nothing is left that would be due.
    fn reclaim_all(&mut self) -> Result<bool, Failure> {
        let (mut refused, mut poor) = (HashSet::new(), HashSet::new());
        let mut planning = None;
        let mut candidates = self.candidates();
        if self.is_full(&candidates) {
            // The next segment goes to a new aggregate.
            self.roll()?;
            candidates = self.candidates();
        }
        // What is made meanwhile is left to the next publication: so this comes to an end.
        let there: HashSet<[u8; 16]> = candidates.iter().map(|candidate| candidate.uuid).collect();
        loop {
            let is_open = |candidate: &Candidate, cause: Cause| {
                let tried =
                    refused.contains(&candidate.uuid) || cause == Cause::Space && poor.contains(&candidate.uuid);
                there.contains(&candidate.uuid) && !tried
            };
            let Some((victim, cause)) = next_victim(&candidates, self.current(), is_open) else {
                return Ok(refused.is_empty());
            };
            let victim = victim.clone();
            match self.reclaim_one(&victim, cause, &mut planning)? {
                Outcome::Done => {}
                Outcome::Poor => drop(poor.insert(victim.uuid)),
                Outcome::Refused => drop(refused.insert(victim.uuid)),
            }
            candidates = self.candidates();
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        self.shared.store.read().candidates(Some(&node_name()))
    }

    /// The aggregate that is written to.
    fn current(&self) -> Option<[u8; 16]> {
        self.aggregate.as_ref().map(|aggregate| aggregate.appender.identity().uuid)
    }

    /// Whether the aggregate that is written to is large or mostly dead.
    fn is_full(&self, candidates: &[Candidate]) -> bool {
        let current = self.current();
        self.is_large() || candidates.iter().any(|candidate| Some(candidate.uuid) == current && candidate.is_full())
    }

    /// Whether the file that is written to has become large.
    fn is_large(&self) -> bool {
        self.aggregate.as_ref().is_some_and(|aggregate| aggregate.appender.end() >= LARGE)
    }

    /// What there is to be reclaimed depends on this, as long as only new files are published: the aggregate that is
    /// written to, whether it is large, and how much has been superseded.
    pub(super) fn reclaimable(&self) -> (Option<[u8; 16]>, bool, u64) {
        (self.current(), self.is_large(), self.shared.store.read().view().superseded())
    }

    fn reclaim_one(
        &mut self,
        victim: &Candidate,
        cause: Cause,
        planning: &mut Option<Planning>,
    ) -> Result<Outcome, Failure> {
        if self.current() == Some(victim.uuid) {
            self.roll()?;
        }
        let store = &self.shared.settings.store;
        let Lock::Held(_victim) = victim.lock() else {
            log::debug!("{} is in use, or cannot be locked", victim.path.display());
            return Ok(Outcome::Refused);
        };
        if planning.is_none() {
            let Lock::Held(_lock) = lock_store(store)? else {
                log::debug!("{} is reclaimed by somebody else, or cannot be locked", store.display());
                return Ok(Outcome::Refused);
            };
            *planning = Some(Planning { planner: Planner::read(store, self.shared.settings.skew)?, _lock });
        }
        let planner = &mut planning.as_mut().expect("made above").planner;
        let needed = self.shared.store.read().shown_of(victim.id);
        let plan = match planner.plan(victim.uuid, &needed, self.current()) {
            Ok(plan) if cause == Cause::Space && !plan.frees_half_of(victim.written_bytes) => {
                log::debug!("{} would free too little", victim.path.display());
                return Ok(Outcome::Poor);
            }
            Ok(plan) => plan,
            Err(refusal) => {
                log::debug!("{} stays: {refusal}", victim.path.display());
                return Ok(Outcome::Refused);
            }
        };
        for part in parts(&plan.copies) {
            if !self.copy(victim, part, planner)? {
                return Ok(Outcome::Refused);
            }
        }
        self.remove(victim, &plan, planner)?;
        Ok(Outcome::Done)
    }

    /// Copies records of the victim into the aggregate, as one segment. False when something in it is damaged: then the
    /// victim has to stay.
    fn copy(&mut self, victim: &Candidate, copies: &[Copied], planner: &mut Planner) -> Result<bool, Failure> {
        let entries: Vec<_> = copies.iter().map(|copy| copy.entry.clone()).collect();
        let open = |copy: &Copied| match &copy.version {
            Some(version) => planner.reader(version).map(Input::Stored),
            None => Ok(Input::Nothing),
        };
        let inputs = copies.iter().map(open).collect::<io::Result<Vec<Input<'_>>>>()?;
        let (segment_plan, checksums) = match self.write_unpublished(&entries, inputs, (0, false)) {
            Err(Failure::Entries(_) | Failure::Unreadable(..)) => {
                self.abandon();
                log::error!("{} is damaged and stays; `sheaf verify` says more", victim.path.display());
                return Ok(false);
            }
            result => result?,
        };
        let (id, segment) = self.publish_head(segment_plan, checksums)?;
        {
            let mut store = self.shared.store.write();
            let moved = store.publish_copies(id, &segment, victim.id, copies);
            self.shared.stubs.moved(&mut store, &moved);
        }
        let aggregate = self.aggregate.as_ref().expect("a segment was published in it");
        planner.copied(aggregate.appender.place(), aggregate.appender.identity(), &segment)?;
        Ok(true)
    }

    /// Removes an aggregate of which nothing is needed any more, for good before anything else is: a power failure must
    /// not bring it back without what was removed after it.
    fn remove(&mut self, victim: &Candidate, plan: &Plan, planner: &mut Planner) -> Result<(), Failure> {
        self.shared.store.write().forget(victim.id);
        victim.remove()?;
        planner.removed(plan);
        log::info!("reclaimed {}: {} records copied", victim.path.display(), plan.copies.len());
        Ok(())
    }
}

/// Copies in the sizes of segments.
pub fn parts(copies: &[Copied]) -> Vec<&[Copied]> {
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, copy) in copies.iter().enumerate() {
        let more = copy.entry.size;
        if index > start && (index - start == BATCH_FILES_MAX || bytes + more > BATCH_BYTES_MAX) {
            parts.push(&copies[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += more;
    }
    if start < copies.len() {
        parts.push(&copies[start..]);
    }
    parts
}
