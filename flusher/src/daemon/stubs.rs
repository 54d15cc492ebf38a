//! Which version's data each stub lacks, by inode.
//!
//! Reclaiming moves versions while other threads handle them, so whoever names a version here holds the store that it was
//! taken from: one from before a move must never be written over one from after it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::store::{AggregateId, Store, Version, VersionReader};

/// The versions of the stubs in the tree. Those of files that were brought back stay: they may be evicted again.
#[derive(Debug, Default)]
pub struct StubVersions {
    by_inode: Mutex<HashMap<u64, Arc<Version>>>,
}

impl StubVersions {
    /// Takes note of a stub's version, and yields what was known before. `_store` is where the version was found: it must
    /// not have changed since.
    pub fn insert(&self, _store: &Store, inode: u64, version: Arc<Version>) -> Option<Arc<Version>> {
        self.by_inode.lock().insert(inode, version)
    }

    /// Takes note of many.
    pub fn extend(&self, _store: &Store, stubs: Vec<(u64, Arc<Version>)>) {
        self.by_inode.lock().extend(stubs);
    }

    /// Takes an [`StubVersions::insert`] back; `_store` is the same that it was made with.
    pub fn restore(&self, _store: &Store, inode: u64, known: Option<Arc<Version>>) {
        let mut by_inode = self.by_inode.lock();
        match known {
            Some(known) => by_inode.insert(inode, known),
            None => by_inode.remove(&inode),
        };
    }

    /// Whether a version is known for an inode.
    pub fn knows(&self, inode: u64) -> bool {
        self.by_inode.lock().contains_key(&inode)
    }

    /// Forgets what an inode was a stub of: it is one no longer.
    pub fn forget(&self, inode: u64) {
        self.by_inode.lock().remove(&inode);
    }

    /// Takes note that versions lie elsewhere now, by the aggregate and sequence of their old records.
    pub fn moved(&self, _store: &mut Store, moved: &HashMap<(AggregateId, u64), Arc<Version>>) {
        for version in self.by_inode.lock().values_mut() {
            if let Some(copy) = moved.get(&(version.aggregate, version.sequence)) {
                *version = copy.clone();
            }
        }
    }

    /// A reader of a stub's version, wherever it lies now.
    ///
    /// # Errors
    /// When no version is known, or its aggregate cannot be opened.
    pub fn reader(&self, store: &Store, inode: u64) -> io::Result<VersionReader> {
        let version = self.by_inode.lock().get(&inode).cloned();
        store.reader(&version.ok_or_else(|| io::Error::other("no version in the store belongs to it"))?)
    }
}
