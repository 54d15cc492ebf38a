//! Segments that wait in a spool for the store, read as part of it.
//!
//! Each lies in an aggregate of its own, outside of the store. A flusher that died may have copied one to the store
//! before it could remove it: what is there already is told by its records, of which no two of a node have the same
//! time; and where the store has dropped records since, by its word up to which time it has everything of the stage.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::merge::Addition;
use super::reclaim::Copied;
use super::view::version;
use super::{AggregateId, Store};
use crate::aggregate::{Identity, Record, Segment};

/// A published segment in a spool.
#[derive(Clone, Debug)]
pub struct SpooledSegment {
    /// Its aggregate, in the store that it was read with.
    pub id: AggregateId,
    /// The aggregate's file.
    pub path: PathBuf,
    /// Whose it is.
    pub identity: Identity,
    /// What it holds.
    pub segment: Segment,
}

impl SpooledSegment {
    /// Its operations, as what is to be copied.
    pub fn copies(&self) -> Vec<Copied> {
        let operations = self.segment.records.iter().filter(|record| record.entry.is_operation());
        let copied = |record: &Record| Copied {
            entry: record.entry.clone(),
            version: version(self.id, self.segment.offset, record).map(Arc::new),
            sequence: record.sequence,
        };
        operations.map(copied).collect()
    }

    /// What orders those of a stage as they were written: what the store is told with one holds for all before it.
    fn order(&self) -> (u64, u64) {
        let operations = self.segment.records.iter().filter(|record| record.entry.is_operation());
        let earliest_ns = operations.map(|record| record.entry.operation_time_ns).min().unwrap_or(0);
        (self.identity.created_ns, earliest_ns)
    }
}

/// What tells an operation from every other.
fn key(record: &Record) -> (u64, u64, &[u8]) {
    (record.entry.operation_time_ns, record.entry.inode, &record.entry.path)
}

impl Store {
    /// As [`Store::open_whole`], with what lies in these files of a spool. Yields the segments that the store lacks,
    /// oldest first; files that have none are not needed any more.
    ///
    /// # Errors
    /// As [`Store::open_whole`], also of the spool.
    pub fn open_with_spool(
        directory: &Path,
        stage: [u8; 16],
        files: &[PathBuf],
    ) -> io::Result<(Store, Vec<SpooledSegment>)> {
        let sources: Vec<PathBuf> = std::iter::once(directory.to_owned()).chain(files.iter().cloned()).collect();
        let mut store = Store { own_stage: Some(stage), ..Store::empty(&sources) };
        let history = store.read_history()?;
        if let Some(note) = store.notes.iter().find(|note| note.hides_names()) {
            return Err(io::Error::other(note.to_string()));
        }
        for aggregate in store.aggregates.iter_mut().filter(|aggregate| files.contains(&aggregate.path)) {
            (aggregate.spooled, aggregate.is_own) = (true, true);
        }
        let is_spooled = |addition: &Addition| store.aggregates[addition.id.0 as usize].spooled;
        let (spooled, mut stored): (Vec<Addition>, Vec<Addition>) = history.into_iter().partition(is_spooled);
        let known: HashSet<_> = stored
            .iter()
            .flat_map(|addition| &addition.segments)
            .flat_map(|segment| &segment.records)
            .map(key)
            .collect();
        let (mut waiting, mut segments) = (Vec::new(), Vec::new());
        for addition in spooled {
            let operations = || {
                let records = addition.segments.iter().flat_map(|segment| &segment.records);
                records.filter(|record| record.entry.is_operation())
            };
            let told_ns = store.told_of(store.aggregates[addition.id.0 as usize].identity.stage).0;
            let is_told = |record: &Record| record.entry.operation_time_ns <= told_ns;
            if operations().all(|record| known.contains(&key(record)) || is_told(record)) {
                store.aggregates[addition.id.0 as usize].gone = true;
                continue;
            }
            let aggregate = &store.aggregates[addition.id.0 as usize];
            for segment in &addition.segments {
                if segment.record_count != segment.records.len() as u64 {
                    let path = aggregate.path.display();
                    return Err(io::Error::other(format!("{path} has records of a later version of Sheaf")));
                }
                let (path, identity) = (aggregate.path.clone(), aggregate.identity.clone());
                segments.push(SpooledSegment { id: addition.id, path, identity, segment: segment.clone() });
            }
            waiting.push(addition);
        }
        drop(known);
        stored.extend(waiting);
        store.apply(&stored);
        store.sources.truncate(1);
        segments.sort_by_key(SpooledSegment::order);
        Ok((store, segments))
    }
}
