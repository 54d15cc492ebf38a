//! Which names were touched lately, and by what: whether an operation that is learned of late, because another node has
//! published it later, can still be applied as if it had come in its place.
//!
//! Operations on names that have nothing to do with each other give the same in either order. Where that cannot be
//! shown the answer is no, and everything has to be applied anew.

use std::collections::BTreeMap;

use super::merge::Step;
use super::{MergeKey, Node, View};
use crate::aggregate::{Entry, Kind};

/// Names that are remembered at most; half of them stay when there are more.
pub(super) const NAMES_MAX: usize = 16_384;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// The newest operation on each name.
    touched: BTreeMap<Box<[u8]>, MergeKey>,
    /// The newest operation that concerned all names of one file.
    shared: Option<MergeKey>,
    /// Of operations up to this one the names are forgotten.
    floor: Option<MergeKey>,
}

/// The names that an operation is about.
pub(super) fn names_of(entry: &Entry) -> impl Iterator<Item = &[u8]> {
    let target = matches!(entry.kind, Kind::Rename | Kind::HardLink).then_some(&entry.target[..]);
    [&entry.path[..]].into_iter().chain(target)
}

/// Whether an operation concerns all names of a file, whichever it speaks of.
fn is_shared(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::HardLink | Kind::SetAttributes)
}

impl Recent {
    /// Takes note of an operation that has been applied.
    pub fn note(&mut self, entry: &Entry, key: MergeKey) {
        for name in names_of(entry) {
            // Most names are new: one search, and mostly the name is needed.
            self.touched.entry(name.into()).and_modify(|newest| *newest = key.max(*newest)).or_insert(key);
        }
        if is_shared(entry) {
            self.shared = self.shared.max(Some(key));
        }
        if self.touched.len() > NAMES_MAX {
            self.forget_half();
        }
    }

    /// Operations up to this one are not noted.
    pub fn forget_until(&mut self, key: MergeKey) {
        self.floor = self.floor.max(Some(key));
    }

    fn forget_half(&mut self) {
        let mut keys: Vec<MergeKey> = self.touched.values().copied().collect();
        let middle = keys.len() / 2;
        let median = *keys.select_nth_unstable(middle).1;
        self.touched.retain(|_, key| *key > median);
        self.forget_until(median);
    }

    /// Whether an operation that is older than some that were applied gives the same now as in its place.
    pub fn allows(&self, entry: &Entry, key: MergeKey) -> bool {
        let is_shared_since = is_shared(entry) && self.shared > Some(key);
        Some(key) > self.floor && !is_shared_since && !names_of(entry).any(|name| self.is_touched_since(name, key))
    }

    /// Whether anything newer concerns a name, a directory above it, or anything below it.
    fn is_touched_since(&self, name: &[u8], key: MergeKey) -> bool {
        let is_newer = |name: &[u8]| self.touched.get(name).is_some_and(|newest| *newest > key);
        let slashes = name.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(place, _)| place);
        if is_newer(name) || slashes.into_iter().any(|end| is_newer(&name[..end])) {
            return true;
        }
        let directory = [name, b"/"].concat();
        let below = self.touched.range(Box::from(&directory[..])..);
        below.take_while(|(path, _)| path.starts_with(&directory)).any(|(_, newest)| *newest > key)
    }
}

/// Whether what a record says is in the namespace already, by its original: reclaiming has made a copy of it. (A copy
/// stands at the time of its original, and no two operations of a node have the same.)
pub(super) fn is_shown(view: &View, step: &Step<'_>) -> bool {
    let entry = &step.record.entry;
    let time_ns = |path| match view.get(path) {
        Some(Node::File(version)) if entry.kind == Kind::File => Some(version.operation_time_ns),
        Some(Node::Symlink(link)) if entry.kind == Kind::Symlink => Some(link.operation_time_ns),
        Some(Node::Directory(directory)) if entry.kind == Kind::Directory => {
            directory.recorded.as_ref().map(|recorded| recorded.operation_time_ns)
        }
        _ => None,
    };
    // Of a file that has another name by now the record has that, too.
    [&entry.path[..], entry.shown_path()].into_iter().any(|path| time_ns(path) == Some(entry.operation_time_ns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::Attributes;

    fn entry(kind: Kind, path: &str, target: &str) -> Entry {
        let (path, target) = (path.into(), target.into());
        Entry { kind, path, target, attributes: Attributes::default(), ..Entry::watermark(0, 0) }
    }

    fn key(time_ns: u64) -> MergeKey {
        (time_ns, false, [0; 16], 1)
    }

    #[test]
    fn only_what_has_nothing_to_do_with_newer_operations_may_come_late() {
        let mut recent = Recent::default();
        recent.note(&entry(Kind::File, "c/a", ""), key(10));
        recent.note(&entry(Kind::Rename, "c/d", "c/e"), key(20));
        let may = |kind, path: &str, target: &str, at| recent.allows(&entry(kind, path, target), key(at));
        assert!(may(Kind::File, "c/b", "", 5));
        assert!(!may(Kind::File, "c/a", "", 5));
        assert!(may(Kind::File, "c/a", "", 15));
        assert!(!may(Kind::File, "c/d/x", "", 15) && !may(Kind::Unlink, "c/e/x", "", 15));
        assert!(!may(Kind::RemoveDirectory, "c", "", 15) && may(Kind::RemoveDirectory, "c-a", "", 15));
        assert!(!may(Kind::Rename, "c/x", "c/a", 5) && may(Kind::Rename, "c/x", "c/y", 5));
        assert!(may(Kind::SetAttributes, "c/y", "", 5));
        recent.note(&entry(Kind::SetAttributes, "c/z", ""), key(30));
        assert!(!recent.allows(&entry(Kind::HardLink, "c/y", "c/v"), key(5)));
    }

    #[test]
    fn what_is_forgotten_may_have_been_touched() {
        let mut recent = Recent::default();
        for number in 0..=NAMES_MAX as u64 {
            recent.note(&entry(Kind::File, &format!("c/{number}"), ""), key(number + 1));
        }
        let late = |at| recent.allows(&entry(Kind::File, "c/other", ""), key(at));
        assert!(!late(1) && !late(NAMES_MAX as u64 / 2));
        assert!(late(NAMES_MAX as u64 / 2 + 3));
    }
}
