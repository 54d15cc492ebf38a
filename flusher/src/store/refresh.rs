//! Taking in what other nodes have published, while this process publishes to the same store.
//!
//! Reading holds nobody up: it is made on an outline of the store, and what was read is taken in afterwards. Of this
//! process's own aggregates nothing is read, because what is in them is told as it is published. What a cut hides stays
//! hidden, and where the order of all operations cannot be kept by adding to what is known, everything is read anew.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::Path;
use std::time::Duration;

use parking_lot::RwLock;

use super::merge::{Addition, steps};
use super::recent::{Recent, names_of};
use super::{Aggregate, AggregateId, Files, Store, View};
use crate::aggregate::{Entry, Kind};

/// How often something is read that changes meanwhile.
const ATTEMPTS: usize = 100;
/// Pause before it is read again.
const PAUSE: Duration = Duration::from_millis(5);

/// What was read and is not taken in yet.
#[derive(Debug)]
struct News {
    /// The aggregates as they are now, and what has been decided.
    outline: Store,
    /// How many of them were known.
    known: usize,
    additions: Vec<Addition>,
    vanished: Vec<usize>,
}

/// Of which names other nodes have changed what is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Names that were put, moved or removed.
    pub names: BTreeSet<Vec<u8>>,
    /// Directories of which everything below may have changed, too.
    pub directories: BTreeSet<Vec<u8>>,
    /// Whether nobody can say which others: everything was read anew.
    pub is_all: bool,
}

impl Changed {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.directories.is_empty() && !self.is_all
    }

    /// Whether another node has done something with a name, or with a directory above it.
    pub fn is_proven(&self, path: &[u8]) -> bool {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(place, _)| place);
        self.names.contains(path) || slashes.into_iter().any(|end| self.directories.contains(&path[..end]))
    }

    /// Adds what else has changed.
    pub fn add(&mut self, other: Changed) {
        self.names.extend(other.names);
        self.directories.extend(other.directories);
        self.is_all |= other.is_all;
    }

    fn note(&mut self, entry: &Entry) {
        self.names.extend(names_of(entry).map(<[u8]>::to_vec));
        if matches!(entry.kind, Kind::Rename | Kind::RemoveDirectory) {
            self.directories.extend(names_of(entry).map(<[u8]>::to_vec));
        }
    }
}

/// Has a store that others use meanwhile show what other nodes have published until now. Yields which names that
/// concerns.
///
/// # Errors
/// As [`Store::open_whole`].
pub fn refresh(store: &RwLock<Store>) -> io::Result<Changed> {
    let outline = store.read().outline();
    let news = read(outline)?;
    let mut changed = Changed::default();
    for step in steps(&news.additions) {
        changed.note(&step.record.entry);
    }
    let mut held = store.write();
    changed.names.extend(held.disputed.iter().cloned());
    if held.take_in(news) {
        return Ok(changed);
    }
    // Whatever becomes of it, adding to what is known is not enough any more.
    held.is_behind = true;
    held.disputed.extend(changed.names.iter().cloned());
    // What is spooled has no place in the store that could be read.
    if held.aggregates.iter().any(|aggregate| aggregate.spooled && !aggregate.gone) {
        return Err(io::Error::other("what waits in a further tier has to be stored first"));
    }
    drop(held);
    changed.is_all = true;
    read_anew(store)?;
    Ok(changed)
}

/// Reads what others have published since the outline was made.
fn read(mut outline: Store) -> io::Result<News> {
    let known = outline.aggregates.len();
    for _ in 0..ATTEMPTS {
        let files = outline.files()?;
        let vanished = outline.vanished(&files);
        let vanished = vanished.into_iter().filter(|index| !outline.aggregates[*index].is_own).collect();
        let mut now = outline.outline();
        let (mut additions, complete) = now.read_additions(&now.growing(files));
        // In a file that nodes share there is what this process has published, too.
        additions.retain(|addition| !now.is_own(addition.id, known));
        if let Some(note) = now.notes.iter().find(|note| note.hides_names()) {
            return Err(io::Error::other(note.to_string()));
        }
        if complete {
            return Ok(News { outline: now, known, additions, vanished });
        }
        outline.removed = now.removed;
        // What has lost its name to another is gone.
        for (before, after) in outline.aggregates.iter_mut().zip(now.aggregates) {
            before.path = after.path;
        }
    }
    Err(io::Error::other("the store changes faster than it can be read"))
}

/// Reads everything, and puts it in the place of what is known as soon as it has all that this process has published.
fn read_anew(store: &RwLock<Store>) -> io::Result<()> {
    let begin = || -> io::Result<Store> {
        let mut anew = store.read().outline();
        let files = anew.files()?;
        anew.begin_again(&files.aggregates);
        Ok(anew)
    };
    let mut anew = begin()?;
    for _ in 0..ATTEMPTS {
        anew.load()?;
        if let Some(note) = anew.notes.iter().find(|note| note.hides_names()) {
            return Err(io::Error::other(note.to_string()));
        }
        let mut held = store.write();
        if held.is_equalled_by(&mut anew) {
            let node = std::mem::take(&mut held.node);
            *held = Store { node, ..anew };
            return Ok(());
        }
        // A new aggregate of this process has no place in it.
        let has_place = held.aggregates.len() <= anew.aggregates.len();
        drop(held);
        if !has_place {
            anew = begin()?;
        }
        std::thread::sleep(PAUSE);
    }
    Err(io::Error::other("this node publishes faster than the store can be read"))
}

impl Store {
    /// What has to be known to read what is new: everything but the namespace.
    fn outline(&self) -> Store {
        Store {
            sources: self.sources.clone(),
            aggregates: self.aggregates.clone(),
            view: View::default(),
            notes: Vec::new(),
            walked: self.walked.clone(),
            removed: self.removed.clone(),
            recent: Recent::default(),
            disputed: BTreeSet::new(),
            node: self.node.clone(),
            decisions: self.decisions.clone(),
            chosen: self.chosen.clone(),
            limits: self.limits.clone(),
            ..*self
        }
    }

    /// Those of the files to which another process may have added something.
    fn growing(&self, files: Files) -> Files {
        let positions = self.positions();
        let is_growing = |file: &Path| match positions.get(file) {
            Some(index) => !self.aggregates[*index].is_own && !self.aggregates[*index].sealed,
            None => true,
        };
        let kept = files.aggregates.into_iter().zip(files.inodes).filter(|(file, _)| is_growing(file));
        let (aggregates, inodes) = kept.unzip();
        Files { aggregates, inodes, ..files }
    }

    /// Whether an aggregate is this process's, also if it was made when only so many were known.
    fn is_own(&self, id: AggregateId, known: usize) -> bool {
        let aggregate = &self.aggregates[id.0 as usize];
        aggregate.is_own || id.0 as usize >= known && self.own_stage == Some(aggregate.identity.stage)
    }

    /// How many aggregates a refresh looks at.
    pub fn growing_count(&self) -> usize {
        let is_growing = |aggregate: &&Aggregate| !aggregate.gone && !aggregate.is_own && !aggregate.sealed;
        self.aggregates.iter().filter(is_growing).count()
    }

    /// Takes news in; false when adding them to what is known would not give what the order of all operations gives.
    fn take_in(&mut self, news: News) -> bool {
        let News { outline, known, mut additions, vanished } = news;
        let uuids: HashSet<[u8; 16]> = self.aggregates.iter().map(|aggregate| aggregate.identity.uuid).collect();
        let mut places = HashMap::new();
        for (index, aggregate) in outline.aggregates.into_iter().enumerate() {
            if index >= known {
                // What this process has made, or is about to remove, is none of the news.
                let is_own = self.own_stage == Some(aggregate.identity.stage);
                if !is_own && !uuids.contains(&aggregate.identity.uuid) {
                    places.insert(index, self.aggregates.len());
                    // What is behind its end is about to be published.
                    self.aggregates.push(Aggregate { tail_bytes: 0, ..aggregate });
                }
            } else if !self.aggregates[index].is_own {
                let Aggregate { gone, tail_bytes, .. } = self.aggregates[index];
                places.insert(index, index);
                self.aggregates[index] = Aggregate { gone, tail_bytes, ..aggregate };
            }
        }
        additions.retain_mut(|addition| match places.get(&(addition.id.0 as usize)) {
            Some(place) => {
                addition.id = AggregateId(*place as u32);
                true
            }
            None => false,
        });
        (self.decisions, self.walked, self.removed) = (outline.decisions, outline.walked, outline.removed);
        let is_in_order = !self.is_behind && self.disputed.is_empty() && self.limits_on_disk() == self.limits;
        if !is_in_order || !self.may_add(&steps(&additions)) {
            return false;
        }
        self.apply(&additions);
        let vanished: HashSet<AggregateId> = vanished.into_iter().map(|index| AggregateId(index as u32)).collect();
        if vanished.is_empty() {
            return true;
        }
        if self.view.nodes().any(|node| node.record().is_some_and(|(id, _)| vanished.contains(&id))) {
            return false;
        }
        vanished.into_iter().for_each(|id| self.forget(id));
        true
    }

    /// Whether a store that was read anew has everything that is known of this process's own aggregates. Those that it
    /// has not told of yet are left out there.
    fn is_equalled_by(&self, anew: &mut Store) -> bool {
        let known = self.aggregates.len();
        if anew.aggregates.len() < known {
            return false;
        }
        for aggregate in &mut anew.aggregates[known..] {
            if self.own_stage == Some(aggregate.identity.stage) {
                aggregate.gone |= aggregate.is_forgotten();
                if !aggregate.gone {
                    return false;
                }
            }
        }
        self.aggregates.iter().zip(&mut anew.aggregates).all(|(own, read)| {
            // What somebody has reserved is no leftover.
            read.tail_bytes = own.tail_bytes;
            own.identity.uuid == read.identity.uuid
                && (!own.gone || read.gone)
                && (!own.is_own || own.gone || own.published_end == read.published_end)
        })
    }
}
