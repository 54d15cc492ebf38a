//! Reading many aggregates at once and applying their records in the order of time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{Aggregate, AggregateId, MergeKey, Store, View, aggregate_files, open_file};
use crate::aggregate::{
    BLOCK, FIRST_SEQUENCE, FormatError, ReadError, Record, Recovered, Segment, Stop, recover, recover_from,
};

/// Aggregates that are read at the same time: on a parallel file system the waiting counts, not the CPU.
const READERS: usize = 16;

/// Something that is wrong with one aggregate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, in words.
    pub what: String,
    /// Whether it is an aggregate that is damaged; else it is foreign or cannot be read.
    pub damaged: bool,
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path.display(), self.what)
    }
}

fn note_of_error(path: &Path, error: &ReadError) -> Note {
    let damaged = matches!(error, ReadError::Format(FormatError::Damaged(_)));
    Note { path: path.to_owned(), what: error.to_string(), damaged }
}

fn note_of_stop(path: &Path, recovered: &Recovered) -> Option<Note> {
    let Stop::Damaged(reason) = &recovered.stop else { return None };
    let what = format!(
        "the segment at byte {} is damaged ({reason}); it and what follows in this aggregate are not shown",
        recovered.published_end
    );
    Some(Note { path: path.to_owned(), what, damaged: true })
}

/// What one aggregate adds.
struct Addition {
    id: AggregateId,
    uuid: [u8; 16],
    segments: Vec<Segment>,
}

impl Store {
    /// Reads what is new in the source's aggregates. When that contains something older than what was applied before,
    /// everything is read and applied again, in order.
    pub(super) fn load(&mut self) -> io::Result<()> {
        let mut files = Vec::new();
        for source in &self.sources {
            files.extend(aggregate_files(source)?);
        }
        let additions = self.read_additions(&files);
        let oldest = additions.iter().filter_map(first_key).min();
        if oldest < self.last_applied && oldest.is_some() {
            self.view = View::default();
            self.last_applied = None;
            for aggregate in &mut self.aggregates {
                (aggregate.published_end, aggregate.next_sequence) = (BLOCK, FIRST_SEQUENCE);
            }
            let additions = self.read_additions(&files);
            self.apply(additions);
        } else {
            self.apply(additions);
        }
        Ok(())
    }

    fn read_additions(&mut self, files: &[PathBuf]) -> Vec<Addition> {
        let known: Vec<Option<usize>> =
            files.iter().map(|file| self.aggregates.iter().position(|aggregate| aggregate.path == *file)).collect();
        let results = self.read_all(files, &known);
        self.notes.clear();
        let mut additions = Vec::new();
        for ((file, known), result) in files.iter().zip(known).zip(results) {
            let recovered = match result {
                Ok(recovered) => recovered,
                Err(ReadError::Format(FormatError::Empty)) => continue,
                Err(error) => {
                    self.notes.push(note_of_error(file, &error));
                    continue;
                }
            };
            self.notes.extend(note_of_stop(file, &recovered));
            let index = known.unwrap_or(self.aggregates.len());
            let aggregate = Aggregate {
                path: file.clone(),
                identity: recovered.identity,
                published_end: recovered.published_end,
                next_sequence: recovered.next_sequence,
            };
            let uuid = aggregate.identity.uuid;
            match self.aggregates.get_mut(index) {
                Some(place) => *place = aggregate,
                None => self.aggregates.push(aggregate),
            }
            additions.push(Addition { id: AggregateId(index as u32), uuid, segments: recovered.segments });
        }
        additions
    }

    fn read_all(&self, files: &[PathBuf], known: &[Option<usize>]) -> Vec<Result<Recovered, ReadError>> {
        let next = AtomicUsize::new(0);
        let results: Vec<_> = files.iter().map(|_| Mutex::new(None)).collect();
        std::thread::scope(|scope| {
            for _ in 0..READERS.min(files.len()) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(file) = files.get(index) else { break };
                        *results[index].lock() = Some(self.read_one(file, known[index]));
                    }
                });
            }
        });
        let missing = || Err(ReadError::Io(io::Error::other("was not read")));
        results.into_iter().map(|result| result.into_inner().unwrap_or_else(missing)).collect()
    }

    fn read_one(&self, file: &Path, known: Option<usize>) -> Result<Recovered, ReadError> {
        let source = open_file(file)?;
        match known.map(|index| &self.aggregates[index]) {
            Some(aggregate) => recover_from(&source, aggregate.published_end, aggregate.next_sequence),
            None => recover(&source),
        }
    }

    /// Applies records in the order of (time, uuid, sequence). The order within an aggregate is kept whatever its
    /// clock did.
    fn apply(&mut self, additions: Vec<Addition>) {
        let mut cursors: Vec<Cursor<'_>> = additions.iter().map(Cursor::new).collect();
        let mut heap: BinaryHeap<Reverse<(MergeKey, usize)>> = BinaryHeap::new();
        for (index, cursor) in cursors.iter_mut().enumerate() {
            heap.extend(cursor.advance().map(|key| Reverse((key, index))));
        }
        while let Some(Reverse((key, index))) = heap.pop() {
            let cursor = &mut cursors[index];
            if let Some((segment, record)) = cursor.current {
                self.view.apply(cursor.addition.id, segment.offset, record);
            }
            self.last_applied = self.last_applied.max(Some(key));
            heap.extend(cursor.advance().map(|key| Reverse((key, index))));
        }
    }
}

fn first_key(addition: &Addition) -> Option<MergeKey> {
    Cursor::new(addition).advance()
}

/// Walks the records of one aggregate.
struct Cursor<'a> {
    addition: &'a Addition,
    segment: usize,
    record: usize,
    time_ns: u64,
    current: Option<(&'a Segment, &'a Record)>,
}

impl<'a> Cursor<'a> {
    fn new(addition: &'a Addition) -> Cursor<'a> {
        Cursor { addition, segment: 0, record: 0, time_ns: 0, current: None }
    }

    /// Moves to the next record and yields its key.
    fn advance(&mut self) -> Option<MergeKey> {
        self.current = None;
        while let Some(segment) = self.addition.segments.get(self.segment) {
            if let Some(record) = segment.records.get(self.record) {
                self.record += 1;
                self.current = Some((segment, record));
                self.time_ns = self.time_ns.max(record.entry.operation_time_ns);
                return Some((self.time_ns, self.addition.uuid, record.sequence));
            }
            self.segment += 1;
            self.record = 0;
        }
        None
    }
}
