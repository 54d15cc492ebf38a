//! Reading many aggregates at once and applying their records in the order of time.
//!
//! Aggregates come and go while they are read: what was taken out of one by reclaiming is in another by then. So
//! reading is repeated until the store has the same aggregates before and after it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::catalog::Catalog;
use super::cut::counts;
use super::decision::Decision;
use super::recent::{self, Recent, is_shown};
use super::{Aggregate, AggregateId, Files, MergeKey, Store, View, open_file};
use crate::aggregate::{
    BLOCK, FormatError, Part, ReadError, Record, Recovered, Salvaged, Segment, SharedContent, Stop, Walked, identify,
    recover, recover_from, recover_shared, salvage,
};

/// Aggregates that are read at the same time: on a parallel file system the waiting counts, not the CPU.
pub(super) const READERS: usize = 16;
/// How often a store that changes meanwhile is read.
const READ_ATTEMPTS: usize = 100;

/// Something that is wrong with one aggregate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, in words.
    pub what: String,
    /// Whether it is an aggregate that is damaged; else it is foreign or cannot be read.
    pub damaged: bool,
    /// Whether it is no aggregate at all.
    pub foreign: bool,
}

impl Note {
    /// Whether the aggregate holds names that nobody can tell now, and that may be told later: it could not be read, or
    /// is of a later version. What is damaged stays so.
    pub fn hides_names(&self) -> bool {
        !self.damaged && !self.foreign
    }
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path.display(), self.what)
    }
}

fn note_of_error(path: &Path, error: &ReadError) -> Note {
    let damaged = matches!(error, ReadError::Format(FormatError::Damaged(_)));
    let is_irregular = || fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
    let foreign = matches!(error, ReadError::Format(FormatError::NotAnAggregate)) || is_irregular();
    Note { path: path.to_owned(), what: error.to_string(), damaged, foreign }
}

/// What was salvaged, as if it was all that there is.
fn recovered_from(salvaged: Salvaged) -> Recovered {
    let Salvaged { identity, segments, lost } = salvaged;
    let end = segments.last().map_or(BLOCK, |segment| segment.offset + segment.length);
    let ranges: Vec<String> = lost.iter().map(|(from, to)| format!("{from} to {to}")).collect();
    let stop = match ranges.is_empty() {
        true => Stop::End,
        false => Stop::Damaged(format!("nothing can be read of bytes {}", ranges.join(", "))),
    };
    Recovered { identity, length: end, segments, published_end: end, next_sequence: 0, stop }
}

/// What reading a file has found.
enum Content {
    Aggregate(Recovered),
    Shared(SharedContent, Walked),
}

/// What one aggregate adds.
#[derive(Debug)]
pub(super) struct Addition {
    pub id: AggregateId,
    pub uuid: [u8; 16],
    pub segments: Vec<Segment>,
}

/// A record in its place in the order of all.
pub(super) struct Step<'a> {
    pub key: MergeKey,
    pub id: AggregateId,
    pub segment: &'a Segment,
    pub record: &'a Record,
}

impl Step<'_> {
    /// The time at which the record takes effect.
    pub fn time_ns(&self) -> u64 {
        self.key.0
    }
}

/// All records in the order in which they apply: by time, the copies behind their originals, then by uuid and sequence.
/// The order within an aggregate is kept whatever its clock did; copies stand at the times of their originals.
pub(super) fn steps(additions: &[Addition]) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    for Addition { id, uuid, segments } in additions {
        let mut clock_ns = 0;
        let records = segments.iter().flat_map(|segment| segment.records.iter().map(move |record| (segment, record)));
        // The others are no part of the namespace.
        for (segment, record) in records.filter(|(_, record)| record.entry.is_operation()) {
            let (own_ns, moved) = (record.entry.operation_time_ns, record.entry.is_moved());
            if !moved {
                clock_ns = own_ns.max(clock_ns);
            }
            let time_ns = if moved { own_ns } else { clock_ns };
            steps.push(Step { key: (time_ns, moved, *uuid, record.sequence), id: *id, segment, record });
        }
    }
    steps.sort_unstable_by_key(|step| step.key);
    steps
}

impl Store {
    pub(super) fn files(&self) -> io::Result<Files> {
        let mut files = Files::default();
        for source in &self.sources {
            if fs::metadata(source).is_ok_and(|metadata| !metadata.is_dir()) {
                files.aggregates.push(source.clone());
                files.inodes.push(0);
                continue;
            }
            let of_source = Files::of(source)?;
            files.aggregates.extend(of_source.aggregates);
            files.inodes.extend(of_source.inodes);
            files.decisions.extend(of_source.decisions);
            // A catalog speaks of the store that it lies in, by names.
            if self.sources.len() == 1 {
                files.catalogs = of_source.catalogs;
            }
        }
        Ok(files)
    }

    /// Reads what is new in the source's aggregates. When that contains something older than what was applied before,
    /// or an aggregate is gone, everything is read and applied again, in order.
    pub(super) fn load(&mut self) -> io::Result<()> {
        for _ in 0..READ_ATTEMPTS {
            let files = self.files()?;
            if !self.vanished(&files).is_empty() {
                self.begin_again(&files.aggregates);
            }
            let (mut additions, mut complete) = self.read_additions(&files);
            let has_limits = self.last_applied.is_none() || self.limits_on_disk() == self.limits;
            if !has_limits || !self.disputed.is_empty() || !self.may_add(&steps(&additions)) {
                self.begin_again(&files.aggregates);
                (additions, complete) = self.read_additions(&files);
            }
            self.apply(&additions);
            if complete && self.files()? == files {
                return Ok(());
            }
        }
        Err(io::Error::other("the store changes faster than it can be read"))
    }

    /// As [`Store::load`] into an empty store, but yields the records, too.
    pub(super) fn load_history(&mut self) -> io::Result<Vec<Addition>> {
        let history = self.read_history()?;
        self.apply(&history);
        Ok(history)
    }

    /// Reads all records, and applies none.
    pub(super) fn read_history(&mut self) -> io::Result<Vec<Addition>> {
        for _ in 0..READ_ATTEMPTS {
            let files = self.files()?;
            self.begin_again(&[]);
            let (additions, complete) = self.read_additions(&files);
            if complete && self.files()? == files {
                return Ok(additions);
            }
        }
        Err(io::Error::other("the store changes faster than it can be read"))
    }

    /// Forgets all that was read; aggregates that are not among `files` are gone.
    pub(super) fn begin_again(&mut self, files: &[PathBuf]) {
        let files: HashSet<&PathBuf> = files.iter().collect();
        self.view = View::default();
        self.last_applied = None;
        (self.recent, self.disputed, self.is_behind) = (Recent::default(), BTreeSet::new(), false);
        self.walked.clear();
        for aggregate in &mut self.aggregates {
            aggregate.forget();
            aggregate.gone |= !files.contains(&aggregate.path);
        }
    }

    /// The aggregates that are not there any more.
    pub(super) fn vanished(&self, files: &Files) -> Vec<usize> {
        let files: HashSet<&PathBuf> = files.aggregates.iter().collect();
        let is_gone = |aggregate: &Aggregate| !aggregate.gone && !files.contains(&aggregate.path);
        (0..self.aggregates.len()).filter(|index| is_gone(&self.aggregates[*index])).collect()
    }

    /// Whether what is new gives the same behind what was applied as in its place.
    pub(super) fn may_add(&self, steps: &[Step<'_>]) -> bool {
        let late = steps.iter().take_while(|step| Some(step.key) < self.last_applied);
        late.filter(|step| counts(&self.limits, step)).all(|step| self.is_repeated(step) || self.may_come_late(step))
    }

    fn may_come_late(&self, step: &Step<'_>) -> bool {
        !step.record.entry.is_moved() && self.recent.allows(&step.record.entry, step.key)
    }

    /// Whether a record is the copy of one that has been applied.
    fn is_repeated(&self, step: &Step<'_>) -> bool {
        step.record.entry.is_moved() && is_shown(&self.view, step)
    }

    /// The place of each aggregate by its file, if it has that alone.
    pub(super) fn positions(&self) -> HashMap<&Path, usize> {
        let known = self.aggregates.iter().enumerate();
        let whole = known.filter(|(_, aggregate)| !aggregate.gone && aggregate.first.is_none());
        whole.map(|(index, aggregate)| (aggregate.path.as_path(), index)).collect()
    }

    fn part_position(&self, file: &Path, uuid: [u8; 16]) -> Option<usize> {
        let is_it = |aggregate: &Aggregate| aggregate.first.is_some() && !aggregate.gone && aggregate.path == file;
        self.aggregates.iter().position(|aggregate| is_it(aggregate) && aggregate.identity.uuid == uuid)
    }

    fn note_of_stop(&self, path: &Path, recovered: &Recovered) -> Option<Note> {
        let Stop::Damaged(reason) = &recovered.stop else { return None };
        let end = recovered.published_end;
        let what = if self.salvages {
            format!("{reason}; all other segments are shown")
        } else {
            format!(
                "the segment at byte {end} is damaged ({reason}); it and what follows in this aggregate are not shown"
            )
        };
        Some(Note { path: path.to_owned(), what, damaged: true, foreign: false })
    }

    /// Yields what is new, and whether every file was still there.
    pub(super) fn read_additions(&mut self, files: &Files) -> (Vec<Addition>, bool) {
        let positions = self.positions();
        let known: Vec<Option<usize>> =
            files.aggregates.iter().map(|file| positions.get(file.as_path()).copied()).collect();
        let results = self.read_all(files, &known);
        let Files { aggregates: files, decisions, .. } = files;
        self.notes.clear();
        let mut complete = self.read_decisions(decisions);
        let mut additions = Vec::new();
        for ((file, known), result) in files.iter().zip(known).zip(results) {
            let recovered = match result {
                Ok(Content::Aggregate(recovered)) => recovered,
                Ok(Content::Shared(content, walked)) => {
                    self.walked.insert(file.clone(), walked);
                    complete &= self.take_in_parts(file, content, &mut additions);
                    continue;
                }
                Err(ReadError::Format(FormatError::Empty)) => continue,
                Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                    complete = false;
                    continue;
                }
                Err(error) => {
                    self.notes.push(note_of_error(file, &error));
                    continue;
                }
            };
            // Another aggregate has been given the name meanwhile; what the old one held is forgotten in the next
            // round.
            if let Some(known) = known
                && self.aggregates[known].identity.uuid != recovered.identity.uuid
            {
                self.aggregates[known].path = PathBuf::new();
                complete = false;
                continue;
            }
            self.notes.extend(self.note_of_stop(file, &recovered));
            let index = known.unwrap_or(self.aggregates.len());
            if known.is_none() {
                self.aggregates.push(Aggregate::new(file, None, recovered.identity));
            }
            let aggregate = &mut self.aggregates[index];
            recovered.segments.iter().for_each(|segment| aggregate.take_in(segment));
            aggregate.tail_bytes = recovered.length.saturating_sub(recovered.published_end + BLOCK);
            let uuid = aggregate.identity.uuid;
            additions.push(Addition { id: AggregateId(index as u32), uuid, segments: recovered.segments });
        }
        (additions, complete)
    }

    /// Yields whether all that was removed had been so before: else there may be copies of it that were not there yet
    /// when other files were read.
    fn take_in_parts(&mut self, file: &Path, content: SharedContent, additions: &mut Vec<Addition>) -> bool {
        let mut complete = true;
        if let Some(at) = content.damaged {
            let what = format!("bytes from {at} on are damaged; what other nodes have written behind them is shown");
            self.notes.push(Note { path: file.to_owned(), what, damaged: true, foreign: false });
        }
        for Part { first, recovered, removed } in content.parts {
            let known = self.part_position(file, recovered.identity.uuid);
            if removed {
                complete &= !self.removed.insert(recovered.identity.uuid);
                // What it held is forgotten in the next round.
                known.into_iter().for_each(|known| self.aggregates[known].path = PathBuf::new());
                complete &= known.is_none();
                continue;
            }
            self.notes.extend(self.note_of_stop(file, &recovered));
            let index = known.unwrap_or(self.aggregates.len());
            if known.is_none() {
                self.aggregates.push(Aggregate::new(file, Some(first), recovered.identity));
            }
            let aggregate = &mut self.aggregates[index];
            recovered.segments.iter().for_each(|segment| aggregate.take_in(segment));
            aggregate.tail_bytes = recovered.length;
            let uuid = aggregate.identity.uuid;
            additions.push(Addition { id: AggregateId(index as u32), uuid, segments: recovered.segments });
        }
        complete
    }

    /// Yields whether every decision was still there.
    fn read_decisions(&mut self, files: &[PathBuf]) -> bool {
        self.decisions.clear();
        for file in files {
            let (what, damaged) = match Decision::read(file) {
                Ok(Some(decision)) => {
                    self.decisions.push(decision);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
                Ok(None) => ("says what counts of lost nodes, and is damaged: everything does".to_owned(), true),
                Err(error) => (format!("says what counts of lost nodes, and cannot be read: {error}"), false),
            };
            self.notes.push(Note { path: file.clone(), what, damaged, foreign: false });
        }
        true
    }

    fn read_all(&self, files: &Files, known: &[Option<usize>]) -> Vec<Result<Content, ReadError>> {
        // What cannot be read of a catalog is read of the aggregates.
        let catalog = if self.trusts_catalog { Catalog::newest(files).ok().flatten() } else { None };
        let all: Vec<_> = files.aggregates.iter().zip(&files.inodes).zip(known).collect();
        in_parallel(&all, &|((file, inode), known)| {
            let by_catalog = || catalog.as_ref()?.recover(file, *inode);
            if let Some(walked) = self.walked.get(file) {
                return self.read_shared(file, walked.clone());
            }
            let recovered = match known
                .map(|index| &self.aggregates[index])
                .filter(|aggregate| !aggregate.is_forgotten())
            {
                Some(aggregate) => recover_from(&open_file(file)?, aggregate.published_end, aggregate.next_sequence),
                None if self.salvages => return self.salvage_file(file),
                None => by_catalog().map_or_else(|| recover(&open_file(file)?), Ok),
            };
            match recovered {
                Err(ReadError::Format(FormatError::Shared(_))) => self.read_shared(file, Walked::default()),
                recovered => recovered.map(Content::Aggregate),
            }
        })
    }

    fn salvage_file(&self, file: &Path) -> Result<Content, ReadError> {
        let source = open_file(file)?;
        if identify(&source).is_err()
            && let Ok(Content::Shared(content, walked)) = self.read_shared(file, Walked::default())
            && !content.parts.is_empty()
        {
            // Also if its first block is damaged.
            return Ok(Content::Shared(content, walked));
        }
        salvage(&source).map(recovered_from).map(Content::Aggregate)
    }

    fn read_shared(&self, file: &Path, mut walked: Walked) -> Result<Content, ReadError> {
        let parts = self.aggregates.iter().filter(|part| part.first.is_some() && !part.gone && part.path == file);
        let known: HashMap<_, _> = parts.map(|part| (part.identity.uuid, part.next_sequence)).collect();
        let next_sequence = |uuid| known.get(&uuid).copied();
        let content = recover_shared(&open_file(file)?, &mut walked, &next_sequence, self.salvages)?;
        Ok(Content::Shared(content, walked))
    }

    pub(super) fn apply(&mut self, additions: &[Addition]) {
        self.limits = self.limits_on_disk();
        self.tell_writers();
        let steps = steps(additions);
        let noted_from = steps.len().saturating_sub(recent::NAMES_MAX);
        if let Some(last) = steps[..noted_from].last() {
            self.recent.forget_until(last.key);
        }
        for (index, step) in steps.iter().enumerate().filter(|(_, step)| counts(&self.limits, step)) {
            if Some(step.key) < self.last_applied && self.is_repeated(step) {
                continue;
            }
            self.view.apply(step.id, step.segment.offset, step.record);
            if index >= noted_from {
                self.recent.note(&step.record.entry, step.key);
            }
            self.last_applied = self.last_applied.max(Some(step.key));
        }
    }
}

/// Does the same with each, by as many threads as a store is read by.
pub(super) fn in_parallel<T: Copy + Sync, R: Send>(all: &[T], work: &(dyn Fn(T) -> R + Sync)) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<R>>> = all.iter().map(|_| Mutex::new(None)).collect();
    let go_on = || {
        while let Some(index) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|index| *index < all.len()) {
            *results[index].lock() = Some(work(all[index]));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..READERS.min(all.len()) {
            // Without a helper it takes longer.
            let _ = std::thread::Builder::new().spawn_scoped(scope, go_on);
        }
        go_on();
    });
    results.into_iter().filter_map(Mutex::into_inner).collect()
}
