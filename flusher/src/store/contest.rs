//! Several nodes that write to one file: each has published what its own processes wrote, and nobody has the whole.
//!
//! It is told from what the records say, so that every reader comes to the same (FORMAT.md, "Several writers"). Nothing
//! is merged: which bytes count where both wrote, or where one has zeros, nobody can know. It must never be said of
//! nodes that wrote one after the other.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::{Node, Store, Version};
use crate::aggregate::{Entry, Extent};

/// By how much the clocks of two nodes may differ. A constant, and not the job's setting: all readers have to agree.
const CLOCKS_DIFFER: Duration = Duration::from_secs(1);

/// A file of which each of several nodes has published what its own processes wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contest {
    path: Box<[u8]>,
    /// Those that are still known.
    nodes: Vec<String>,
}

impl fmt::Display for Contest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, nodes) = (self.path.escape_ascii(), self.nodes.join(", "));
        write!(
            formatter,
            "/{path} was written by several nodes at the same time ({nodes}), each published its own part, and nobody can say what the whole \
             is: keep such files out with SHEAF_EXCLUDE"
        )
    }
}

impl Store {
    /// The contested files of the namespace.
    pub fn contests(&self) -> Vec<Contest> {
        let is_one = |version: &Version| version.is_contested();
        let contested = |(path, node): (Vec<u8>, &Node)| match node {
            Node::File(version) if is_one(version) => Some(self.contest(&path, version)),
            _ => None,
        };
        if self.view.contested() == 0 { Vec::new() } else { self.view.iter().filter_map(contested).collect() }
    }

    /// What a version is a part of, if it is one; also if that has turned out since it was taken from the view.
    pub(super) fn contest_of(&self, version: &Version) -> Option<Contest> {
        let path = &version.recorded_path;
        let is_now =
            || matches!(self.view.get(path), Some(Node::File(now)) if now.is_contested() && now.is_copy_of(version));
        (version.is_contested() || is_now()).then(|| self.contest(path, version))
    }

    fn contest(&self, path: &[u8], version: &Version) -> Contest {
        let older = self.view.older(&version.recorded_path).filter(|older| are_of_one_time(older, version));
        let writers = older.map(|older| older.aggregate).chain([version.aggregate]);
        let node = |id| Some(self.aggregate(id).ok()?.identity.node.clone());
        let nodes: BTreeSet<String> = writers.filter_map(node).collect();
        Contest { path: path.into(), nodes: nodes.into_iter().collect() }
    }
}

/// Whether two versions of one path from different nodes are parts of what was written to it at the same time.
pub(super) fn are_of_one_time(one: &Version, other: &Version) -> bool {
    if one.size == other.size && one.checksums == other.checksums {
        return false;
    }
    // How far each reaches beyond the other's begin.
    let (before, behind) = (reach_ns(one, other), reach_ns(other, one));
    let margin_ns = CLOCKS_DIFFER.as_nanos() as i128;
    let shortest = before.min(behind);
    shortest > margin_ns || shortest >= -margin_ns && complement(&one.extents, &other.extents)
}

/// From the begin of `other` to the end of `one`.
fn reach_ns(one: &Version, other: &Version) -> i128 {
    let writing = Entry::writing_time(other.flags).unwrap_or_default();
    let begin_ns = i128::from(other.operation_time_ns) - writing.as_nanos() as i128;
    i128::from(one.operation_time_ns) - begin_ns
}

/// Whether each has data where the other has none.
fn complement(one: &[Extent], other: &[Extent]) -> bool {
    lacks(one, other) && lacks(other, one)
}

/// Whether `data` has something outside of `cover`. Both ascend and do not touch themselves.
fn lacks(cover: &[Extent], data: &[Extent]) -> bool {
    let end = |extent: &Extent| extent.offset + extent.length;
    data.iter().any(|extent| {
        let at = cover.partition_point(|covering| end(covering) <= extent.offset);
        cover.get(at).is_none_or(|covering| covering.offset > extent.offset || end(covering) < end(extent))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::{Attributes, FileChecksums};
    use crate::store::AggregateId;

    const SECOND_NS: u64 = 1_000_000_000;

    /// Written from `begin` to `end`, in tenths of a second; what is in it is told by `whole`.
    fn written(begin: u64, end: u64, whole: u32, extents: &[(u64, u64)]) -> Version {
        let extents: Vec<_> =
            extents.iter().map(|(offset, length)| Extent { offset: *offset, length: *length }).collect();
        let flags = if begin == end { 0 } else { Entry::writing_flags(Duration::from_millis(100 * (end - begin))) };
        Version {
            aggregate: AggregateId(0),
            sequence: 1,
            recorded_path: b"shared"[..].into(),
            data_offset: 0,
            size: extents.last().map_or(0, |extent| extent.offset + extent.length),
            extents: extents.into(),
            checksums: FileChecksums { whole, chunks: Default::default() },
            attributes: Attributes::default(),
            inode: 1,
            change_time_ns: 0,
            operation_time_ns: 100 * SECOND_NS + end * SECOND_NS / 10,
            flags,
        }
    }

    fn are_contested(one: &Version, other: &Version) -> bool {
        let answer = are_of_one_time(one, other);
        assert_eq!(answer, are_of_one_time(other, one));
        answer
    }

    #[test]
    fn writers_that_follow_each_other_are_no_contest() {
        const DENSE: &[(u64, u64)] = &[(0, 8192)];
        let first = written(0, 100, 1, DENSE);
        for begin in [91, 100, 101, 500] {
            assert!(!are_contested(&first, &written(begin, begin + 50, 2, DENSE)), "{begin}");
        }
        assert!(!are_contested(&first, &written(0, 100, 1, DENSE)), "both wrote the same");
        assert!(!are_contested(&first, &written(100, 100, 2, DENSE)), "at its end");
        assert!(!are_contested(&first, &written(0, 5, 2, DENSE)), "perhaps before it");
    }

    #[test]
    fn a_change_while_another_node_writes_is_one() {
        const DENSE: &[(u64, u64)] = &[(0, 8192)];
        let long = written(0, 100, 1, DENSE);
        for (begin, end) in [(0, 100), (50, 50), (50, 51), (20, 300), (88, 200)] {
            assert!(are_contested(&long, &written(begin, end, 2, DENSE)), "{begin} to {end}");
        }
    }

    #[test]
    fn parts_that_complement_each_other_are_one() {
        let first = written(0, 1, 1, &[(0, 4096), (12288, 4096)]);
        for extents in [&[(4096, 4096)][..], &[(0, 8192)], &[(8192, 4096)], &[(0, 4096), (16384, 100)]] {
            assert!(are_contested(&first, &written(1, 1, 2, extents)), "{extents:?}");
            assert!(are_contested(&first, &written(10, 11, 2, extents)), "{extents:?}");
            assert!(!are_contested(&first, &written(30, 31, 2, extents)), "{extents:?}: long after it");
        }
        for extents in [&[][..], &[(0, 4096)], &[(0, 16384)], &[(0, 4096), (12288, 8192)]] {
            assert!(!are_contested(&first, &written(1, 1, 2, extents)), "{extents:?}");
        }
    }
}
