//! What a namespace holds, as records that make the same one: what `sheaf merge` writes.
//!
//! Only what is there, not how it came about: no renames, no removals, nothing that was superseded. Nothing here reads
//! data or changes a file.

use std::collections::HashMap;
use std::sync::Arc;

use super::reclaim::Copied;
use super::{AggregateId, Directory, Link, Node, RecordedDirectory, Store, Version};
use crate::aggregate::{Attributes, Entry, FLAG_CONTESTED, FLAG_MOVED, FLAG_UNCLOSED, Kind};

impl Store {
    /// Everything in the namespace: directories, then files and links in the order in which their data lies in the
    /// aggregates, a file's further names right behind it. Directories that are only the way to something go without
    /// saying.
    pub fn content(&self) -> Vec<Copied> {
        let mut directories = Vec::new();
        // Files and links with the names they have, by their origin.
        let mut rest: HashMap<(AggregateId, u64), Vec<Copied>> = HashMap::new();
        for (path, node) in self.view().iter() {
            match (node, node.origin()) {
                (Node::Directory(Directory { recorded: Some(recorded) }), _) => {
                    directories.push(directory(path, recorded));
                }
                (node, Some(origin)) => {
                    let names = rest.entry(origin).or_default();
                    let copy = match (names.first(), node) {
                        (Some(first), node) => further_name(path, &first.entry, node),
                        (None, Node::Symlink(link)) => symlink(path, link),
                        (None, Node::File(version)) => file(path, version),
                        (None, Node::Directory(_)) => unreachable!("directories have no origin"),
                    };
                    names.push(copy);
                }
                _ => {}
            }
        }
        let mut rest: Vec<_> = rest.into_iter().collect();
        rest.sort_by_key(|(origin, _)| *origin);
        directories.into_iter().chain(rest.into_iter().flat_map(|(_, names)| names)).collect()
    }
}

impl Copied {
    /// Whether both make the same name, with the same data.
    pub fn is_same(&self, other: &Copied) -> bool {
        let checksums = |copy: &Copied| copy.version.as_ref().map(|version| version.checksums.clone());
        self.entry == other.entry && checksums(self) == checksums(other)
    }
}

/// A copy has the time of its original: see FORMAT.md.
fn entry(kind: Kind, path: Vec<u8>, attributes: &Attributes, operation_time_ns: u64) -> Entry {
    Entry { flags: FLAG_MOVED, ..Entry::new(kind, path, attributes.clone(), operation_time_ns) }
}

fn directory(path: Vec<u8>, recorded: &RecordedDirectory) -> Copied {
    let entry = entry(Kind::Directory, path, &recorded.attributes, recorded.operation_time_ns);
    Copied { entry, version: None, sequence: recorded.sequence }
}

fn symlink(path: Vec<u8>, link: &Link) -> Copied {
    let made = entry(Kind::Symlink, path, &link.attributes, link.operation_time_ns);
    Copied { entry: Entry { target: link.target.to_vec(), ..made }, version: None, sequence: link.sequence }
}

fn file(path: Vec<u8>, version: &Arc<Version>) -> Copied {
    let made = entry(Kind::File, path, &version.attributes, version.operation_time_ns);
    let entry = Entry {
        size: version.size,
        extents: version.extents.clone(),
        change_time_ns: version.change_time_ns,
        inode: version.inode,
        flags: version.flags & (FLAG_UNCLOSED | FLAG_CONTESTED) | FLAG_MOVED,
        ..made
    };
    Copied { entry, version: Some(version.clone()), sequence: version.sequence }
}

fn further_name(path: Vec<u8>, first: &Entry, node: &Node) -> Copied {
    let made = entry(Kind::HardLink, path, &first.attributes, first.operation_time_ns);
    let sequence = node.origin().map_or(0, |(_, sequence)| sequence);
    Copied { entry: Entry { target: first.path.clone(), ..made }, version: None, sequence }
}
