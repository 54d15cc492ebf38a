//! Which names of the tree belong to one file, as far as events have told.
//!
//! It never looks at the tree: a name may be gone already, and the change that says so is still in the queue.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::tracker::{StagedPath, take_below};

/// Names of files that have, or had, several.
#[derive(Debug, Default)]
pub struct Links {
    names: HashMap<u64, BTreeSet<StagedPath>>,
    inodes: BTreeMap<StagedPath, u64>,
}

impl Links {
    /// Whether an inode is known to have several names.
    pub fn knows(&self, inode: u64) -> bool {
        self.names.contains_key(&inode)
    }

    /// Takes note that `path` is a name of `inode`, and of no other.
    pub fn add(&mut self, inode: u64, path: StagedPath) {
        if let Some(old) = self.inodes.insert(path.clone(), inode) {
            self.forget(old, &path);
        }
        self.names.entry(inode).or_default().insert(path);
    }

    /// Forgets a name, and everything below it.
    pub fn remove(&mut self, path: &[u8]) {
        for (path, inode) in take_below(&mut self.inodes, path) {
            self.forget(inode, &path);
        }
    }

    fn forget(&mut self, inode: u64, path: &[u8]) {
        if let Some(names) = self.names.get_mut(&inode) {
            names.remove(path);
            if names.is_empty() {
                self.names.remove(&inode);
            }
        }
    }

    /// Takes note that `from`, and everything below it, is now `to`.
    pub fn rename(&mut self, from: &[u8], to: &[u8]) {
        for (path, inode) in take_below(&mut self.inodes, from) {
            let renamed = [to, &path[from.len()..]].concat();
            self.forget(inode, &path);
            self.add(inode, renamed);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.names.clear();
        self.inodes.clear();
    }

    /// Whether the file of this name has others.
    pub fn is_one_of_several(&self, path: &[u8]) -> bool {
        self.inodes.get(path).and_then(|inode| self.names.get(inode)).is_some_and(|names| names.len() > 1)
    }

    /// The names of the file that has, or had, this name.
    pub fn names_with(&self, path: &[u8]) -> impl Iterator<Item = &StagedPath> {
        self.inodes.get(path).and_then(|inode| self.names.get(inode)).into_iter().flatten()
    }

    /// The names of an inode.
    pub fn names_of(&self, inode: u64) -> impl Iterator<Item = &StagedPath> {
        self.names.get(&inode).into_iter().flatten()
    }
}
