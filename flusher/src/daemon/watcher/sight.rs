//! Showing in the tree what other nodes have published since it caught up with the store.
//!
//! None of it is news: published by this node it would be newer than what the other one does with it next. What this
//! node has done with a name, and the store does not know yet, is never touched; nor is what somebody has open. Such
//! names come later, when others ask again.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;

use crossbeam_channel::Sender;

use super::{StagedPath, Watcher, mirror, split};
use crate::store::{Changed, Node, Store};

/// What is still to be shown, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Sight {
    changed: Changed,
    /// Names of which nobody knows that another node has changed them: they may only come into the tree.
    unproven: BTreeSet<StagedPath>,
    waiting: Vec<Sender<()>>,
}

impl Sight {
    /// Takes note of what has changed; answers when it is shown, as far as it can be.
    pub fn ask(&mut self, changed: Changed, reply: Sender<()>) {
        self.changed.add(changed);
        self.waiting.push(reply);
    }

    /// Whether somebody waits.
    pub fn is_awaited(&self) -> bool {
        !self.waiting.is_empty()
    }
}

/// What came of showing a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// The tree has changed.
    Now,
    /// There was nothing to do.
    Already,
    /// Somebody uses it, or the store does not know yet what this node has done with it.
    Later,
}

impl Shown {
    fn now_or_later(is_done: bool) -> Shown {
        if is_done { Shown::Now } else { Shown::Later }
    }
}

/// Names of which this node has done something that the store does not show yet.
struct InMotion(HashSet<StagedPath>);

impl InMotion {
    fn concerns(&self, path: &[u8]) -> bool {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
        !self.0.is_empty() && (self.0.contains(path) || ends.into_iter().any(|end| self.0.contains(&path[..end])))
    }
}

impl Watcher {
    /// Shows what is to be shown, as soon as the tree is known.
    pub(super) fn show_news(&mut self) -> io::Result<()> {
        if !self.sight.is_awaited() || self.tracker.overflowed() || !self.shared.reading.has_caught_up() {
            return Ok(());
        }
        let shared = self.shared.clone();
        let store = shared.store.read();
        let [first, second, ..] = shared.stage_uuid;
        self.tracker.has_seen_lately(&store, u16::from_le_bytes([first, second]).into());
        let changed = std::mem::take(&mut self.sight.changed);
        let names = self.concerned(&store, &changed);
        let in_motion = self.in_motion();
        let mut shown = Vec::new();
        // First what is there, then what is missing, because that may be another name of it.
        for is_there in [true, false] {
            let concerned: Vec<_> = names.iter().filter(|path| self.tracker.knows(path) == is_there).cloned().collect();
            for path in concerned {
                let is_proven = changed.is_proven(&path);
                let outcome = match is_there {
                    true => self.update(&store, &path, &in_motion, is_proven, &mut shown),
                    false => self.add(&store, &path, &in_motion, is_proven),
                };
                let outcome = outcome.unwrap_or_else(|error| {
                    let path = path.escape_ascii();
                    log::error!("/{path}, which another node has changed, cannot be shown: {error}");
                    Shown::Later
                });
                log::debug!("/{}, which another node has changed: {outcome:?}", path.escape_ascii());
                match outcome {
                    Shown::Now => shown.push(path),
                    Shown::Already => {}
                    Shown::Later if is_proven => drop(self.sight.changed.names.insert(path)),
                    // What this node has done with it comes behind what the store has, or is found to dispute it.
                    Shown::Later if self.tracker.knows(&path) => {}
                    Shown::Later => drop(self.sight.unproven.insert(path)),
                }
            }
            // Or a name that goes and comes again would be taken for one that this node has removed.
            self.follow()?;
        }
        drop(store);
        for directory in changed.directories {
            if !mirror::remove_mirrors(&shared.stage, &mut self.tracker, &directory) {
                self.sight.changed.directories.insert(directory);
            }
        }
        let has_unshown = !self.sight.changed.is_empty() || !self.sight.unproven.is_empty();
        shared.refreshes.has_unshown.store(has_unshown, Ordering::SeqCst);
        self.tracker.caught_up(&shown)?;
        for waiting in self.sight.waiting.drain(..) {
            let _ = waiting.send(());
        }
        Ok(())
    }

    /// The names that may be concerned, those of directories before what is in them.
    fn concerned(&mut self, store: &Store, changed: &Changed) -> BTreeSet<StagedPath> {
        let mut names = std::mem::take(&mut self.sight.unproven);
        names.extend(changed.names.iter().cloned());
        if changed.is_all {
            names.extend(store.view().iter().map(|(path, _)| path));
            names.extend(self.tracker.names_below(b""));
        }
        for directory in &changed.directories {
            names.extend(self.tracker.names_below(directory));
            let mut directories = vec![directory.clone()];
            while let Some(directory) = directories.pop() {
                for (name, node) in store.view().children(&directory) {
                    let path = crate::stage::tracker::join(&directory, name);
                    if matches!(node, Node::Directory(_)) {
                        directories.push(path.clone());
                    }
                    names.insert(path);
                }
            }
        }
        names
    }

    fn in_motion(&self) -> InMotion {
        let renames = self.tracker.renames().chain(self.renaming.iter().map(|(_, from, to)| (&from[..], &to[..])));
        let removals = self.tracker.removed().chain(self.removing.iter().map(|(_, path)| &path[..]));
        InMotion(renames.flat_map(|(from, to)| [from, to]).chain(removals).map(<[u8]>::to_vec).collect())
    }

    /// Has a name of the tree show what the store has under it. It goes only if it is proven that another node has
    /// removed it; it goes, too, where it comes again as one of several names, or as a link.
    fn update(
        &mut self,
        store: &Store,
        path: &[u8],
        in_motion: &InMotion,
        is_proven: bool,
        shown: &mut Vec<StagedPath>,
    ) -> io::Result<Shown> {
        let Some(inode) = self.tracker.settled(path, self.shared.published()) else { return Ok(Shown::Later) };
        let wanted = store.view().get(path).filter(|node| !matches!(node, Node::Directory(_)));
        match wanted {
            _ if in_motion.concerns(path) => Ok(Shown::Later),
            Some(_) if !is_proven && !store.is_of_another_node(path) => Ok(Shown::Already),
            Some(node) if self.is_shown(node, path, inode) => Ok(Shown::Already),
            None if !is_proven => Ok(Shown::Already),
            Some(node) if self.is_alike(store, node, path) => {
                self.supersede(store, path, inode).map(Shown::now_or_later)
            }
            _ => {
                // The file has lost a name, and nothing else: that is no news, either.
                let others = self.tracker.other_clean_names(path);
                let is_gone = mirror::remove(&self.shared.stage, &mut self.tracker, path, inode)?;
                shown.extend(others.into_iter().filter(|_| is_gone));
                Ok(Shown::now_or_later(is_gone))
            }
        }
    }

    /// Whether one can become the other: both are files of one name, or links.
    fn is_alike(&self, store: &Store, node: &Node, path: &[u8]) -> bool {
        let is_link = matches!(node, Node::Symlink(_));
        let is_one_of_several = store.view().names(node).len() > 1 || !self.tracker.other_clean_names(path).is_empty();
        self.tracker.is_link(path) == is_link && !is_one_of_several
    }

    /// Whether what the tree has under a name is what the store has there.
    fn is_shown(&self, node: &Node, path: &[u8], inode: u64) -> bool {
        match node {
            Node::File(version) => {
                self.shared.stubs.is_of(inode, version) || self.tracker.is_published_as(path, version)
            }
            Node::Symlink(link) => std::fs::read_link(self.shared.stage.tree_path(path))
                .is_ok_and(|text| text.as_os_str().as_bytes() == &link.target[..]),
            Node::Directory(_) => false,
        }
    }

    /// Puts a name into its mirror that the tree lacks.
    fn add(&mut self, store: &Store, path: &[u8], in_motion: &InMotion, is_proven: bool) -> io::Result<Shown> {
        // Of what another node has moved with its directory, the content may be this node's.
        let is_theirs = is_proven || store.is_of_another_node(path);
        let Some(node @ (Node::File(_) | Node::Symlink(_))) = store.view().get(path).filter(|_| is_theirs) else {
            return Ok(Shown::Already);
        };
        if !self.tracker.is_mirror(split(path).0) {
            // Who looks there first has a mirror made.
            return Ok(Shown::Already);
        }
        // Another name of the file may be older here, and in use.
        let names = store.view().names(node);
        let is_older = |name: &&StagedPath| {
            name.as_slice() != path && self.tracker.inode(name).is_some_and(|inode| !self.is_shown(node, name, inode))
        };
        if in_motion.concerns(path) || self.tracker.has_unclear() || names.iter().any(|name| is_older(&name)) {
            return Ok(Shown::Later);
        }
        let shared = self.shared.clone();
        let mut know = |inode| {
            if let Node::File(version) = node {
                shared.stubs.insert(store, inode, version.clone());
            }
        };
        mirror::add(&shared.stage, &mut self.tracker, store.view(), (path, node), &mut know)?;
        Ok(Shown::Now)
    }
}
