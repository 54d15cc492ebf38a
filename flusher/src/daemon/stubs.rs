//! Which version's data each stub lacks, by inode.
//!
//! Reclaiming moves versions while other threads handle them, so whoever names a version here holds the store that it
//! was taken from: one from before a move must never be written over one from after it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::store::{AggregateId, Located, Store, Version};

/// The versions of the stubs in the tree. Those of files that were brought back stay: they may be evicted again.
#[derive(Debug, Default)]
pub struct StubVersions {
    by_inode: Mutex<HashMap<u64, Arc<Version>>>,
}

impl StubVersions {
    /// Takes note of a stub's version, and yields what was known before. `_store` is where the version was found: it
    /// must not have changed since.
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

    /// Whether a file is, or was brought back as, this version.
    pub fn is_of(&self, inode: u64, version: &Version) -> bool {
        self.by_inode.lock().get(&inode).is_some_and(|known| known.is_copy_of(version))
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

    /// Where a stub's version lies now.
    ///
    /// # Errors
    /// When no version is known.
    pub fn locate(&self, store: &Store, inode: u64) -> io::Result<Located> {
        let version = self.by_inode.lock().get(&inode).cloned();
        store.locate(&version.ok_or_else(|| io::Error::other("no version in the store belongs to it"))?)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc::channel;
    use std::thread;

    use parking_lot::RwLock;

    use super::*;
    use crate::aggregate::{Attributes, Extents, FileChecksums};

    const INODE: u64 = 7;

    fn version(aggregate: u32) -> Arc<Version> {
        Arc::new(Version {
            aggregate: AggregateId(aggregate),
            sequence: 1,
            recorded_path: b"state"[..].into(),
            data_offset: 0,
            size: 0,
            extents: Extents::new(),
            checksums: FileChecksums::default(),
            attributes: Attributes::default(),
            inode: INODE,
            change_time_ns: 0,
            operation_time_ns: 1,
            flags: 0,
        })
    }

    /// The only version in the store, which reclaiming moves from one aggregate to the next.
    struct Moving {
        store: RwLock<(Store, u32)>,
        stubs: StubVersions,
    }

    impl Moving {
        fn relocate(&self) {
            let mut held = self.store.write();
            let (store, at) = &mut *held;
            let moved = HashMap::from([((AggregateId(*at), 1), version(*at + 1))]);
            *at += 1;
            self.stubs.moved(store, &moved);
        }

        fn note(&self) {
            let held = self.store.read();
            self.stubs.insert(&held.0, INODE, version(held.1));
        }

        fn is_right(&self) -> bool {
            let held = self.store.read();
            let known = self.stubs.by_inode.lock().get(&INODE).cloned();
            known.is_none_or(|known| known.aggregate == AggregateId(held.1))
        }
    }

    fn moving() -> Moving {
        Moving { store: RwLock::new((Store::unread(Path::new("/nowhere")), 0)), stubs: StubVersions::default() }
    }

    /// Why whoever notes a version must hold the store that it was taken from.
    #[test]
    fn a_version_from_before_a_move_is_wrong_after_it() {
        let moving = moving();
        let taken = version(moving.store.read().1);
        moving.relocate();
        moving.stubs.insert(&moving.store.read().0, INODE, taken);
        assert!(!moving.is_right());
    }

    /// Whoever holds it keeps it from being moved until what was taken is noted.
    #[test]
    fn nothing_moves_between_taking_a_version_and_noting_it() {
        let moving = moving();
        let (taken, is_taken) = channel();
        let (go_on, goes_on) = channel();
        thread::scope(|scope| {
            let moving = &moving;
            scope.spawn(move || {
                let held = moving.store.read();
                let version = version(held.1);
                taken.send(()).expect("it waits");
                let () = goes_on.recv().expect("it says so");
                moving.stubs.insert(&held.0, INODE, version);
            });
            is_taken.recv().expect("it is taken");
            assert!(moving.store.try_write().is_none(), "the store could be moved");
            scope.spawn(|| moving.relocate());
            go_on.send(()).expect("it waits");
        });
        assert!(moving.is_right());
    }

    #[test]
    fn many_threads_never_leave_a_version_from_before_a_move() {
        let moving = moving();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5_000).for_each(|_| moving.note()));
            }
            scope.spawn(|| (0..5_000).for_each(|_| moving.relocate()));
            scope.spawn(|| (0..5_000).for_each(|_| assert!(moving.is_right())));
        });
        assert!(moving.is_right());
    }
}
