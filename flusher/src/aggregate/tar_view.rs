//! Which records a plain tar reader gets to see, and under which name.
//!
//! The rule is that no stock reader may ever fail on an aggregate or overwrite one file through the name of another.
//! Tried with nine readers (ARCHITECTURE.md): a name that turns from file to directory or back stops four of them;
//! Python, 7z and busybox write through an existing symbolic or hard link; readers that guard against archives from
//! strangers stop at links that lead out of the place of extraction. Such entries are only in the TOC, and the data of
//! such files is under a reserved name.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

use super::entry::{Entry, FLAG_RENAMED, Kind};
use super::reader::Segment;

/// How an entry is in the tar view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Under its own name.
    Shown,
    /// Its data only, under a reserved name.
    Hidden,
    /// Not at all.
    Absent,
}

impl Shape {
    /// Whether an entry of this kind and shape may take a name away that was shown.
    pub(super) fn may_remove(self, kind: Kind) -> bool {
        self != Shape::Shown && !matches!(kind, Kind::SetAttributes | Kind::Watermark)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// A file; the number of the segment and of the renames and removals before it tell whether it is the live one.
    File {
        segment: u32,
        removals: u32,
    },
    /// A file that shares its data with another name.
    Linked,
    Directory,
    Symlink,
}

/// The names that a stock reader has made when it has extracted an aggregate up to its current end.
///
/// One per aggregate that is being written: each [`super::SegmentPlan`] looks into it and adds to it.
#[derive(Clone, Debug, Default)]
pub struct TarNames {
    names: HashMap<u64, Shown>,
}

impl TarNames {
    fn get(&self, path: &[u8]) -> Option<Shown> {
        self.names.get(&xxh3_64(path)).copied()
    }

    fn set(&mut self, path: &[u8], shown: Shown) {
        self.names.insert(xxh3_64(path), shown);
    }

    /// What plain tar readers have seen of these segments.
    pub fn after(segments: &[Segment]) -> TarNames {
        let mut names = TarNames::default();
        for segment in segments {
            let mut removals = 0;
            for record in &segment.records {
                let shape = names.shape(&record.entry, segment.sequence as u32, removals);
                removals += u32::from(shape.may_remove(record.entry.kind));
            }
        }
        names
    }

    /// Decides on the next entry of the segment `segment`; `removals` counts the renames and removals in it so far.
    pub(super) fn shape(&mut self, entry: &Entry, segment: u32, removals: u32) -> Shape {
        let shape = match entry.kind {
            Kind::Rename | Kind::Unlink | Kind::RemoveDirectory | Kind::SetAttributes | Kind::Watermark => {
                Shape::Absent
            }
            Kind::Index => Shape::Shown,
            _ if entry.flags & FLAG_RENAMED != 0 => absent_or_hidden(entry.kind),
            _ if !self.parents_are_directories(entry.shown_path()) => absent_or_hidden(entry.kind),
            Kind::File => self.shape_file(entry),
            Kind::Directory => match self.get(&entry.path) {
                None | Some(Shown::Directory) => Shape::Shown,
                Some(_) => Shape::Absent,
            },
            Kind::Symlink => match self.get(&entry.path) {
                Some(Shown::Directory) => Shape::Absent,
                _ if !stays_inside(&entry.path, &entry.target) => Shape::Absent,
                _ => Shape::Shown,
            },
            Kind::HardLink => self.shape_hard_link(entry, segment, removals),
        };
        if shape == Shape::Shown {
            self.note(entry, segment, removals);
        }
        shape
    }

    fn shape_file(&self, entry: &Entry) -> Shape {
        match self.get(entry.shown_path()) {
            None | Some(Shown::File { .. }) => Shape::Shown,
            Some(_) => Shape::Hidden,
        }
    }

    /// A link is shown when its file is right before it in the same segment, and the name is new.
    fn shape_hard_link(&self, entry: &Entry, segment: u32, removals: u32) -> Shape {
        let live = match self.get(&entry.target) {
            Some(Shown::File { segment: written, removals: then }) => written == segment && then == removals,
            _ => false,
        };
        if live && self.get(&entry.path).is_none() { Shape::Shown } else { Shape::Absent }
    }

    fn note(&mut self, entry: &Entry, segment: u32, removals: u32) {
        let shown = match entry.kind {
            Kind::Directory => Shown::Directory,
            Kind::Symlink => Shown::Symlink,
            Kind::HardLink => Shown::Linked,
            _ => Shown::File { segment, removals },
        };
        let path = entry.shown_path();
        self.set(path, shown);
        if entry.kind == Kind::HardLink {
            self.set(&entry.target, Shown::Linked);
        }
        for (index, _) in path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/') {
            if self.get(&path[..index]).is_some() {
                break;
            }
            self.set(&path[..index], Shown::Directory);
        }
    }

    fn parents_are_directories(&self, path: &[u8]) -> bool {
        for (index, _) in path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/') {
            match self.get(&path[..index]) {
                None => {}
                // Its own parents were looked at when it was noted.
                Some(Shown::Directory) => return true,
                Some(_) => return false,
            }
        }
        true
    }
}

fn absent_or_hidden(kind: Kind) -> Shape {
    if kind == Kind::File { Shape::Hidden } else { Shape::Absent }
}

/// Whether a symbolic link leads to a place below the root of the archive.
fn stays_inside(path: &[u8], target: &[u8]) -> bool {
    let mut depth = path.iter().filter(|byte| **byte == b'/').count();
    for component in target.split(|byte| *byte == b'/').enumerate() {
        match component {
            (0, b"") => return false,
            (_, b"" | b".") => {}
            (_, b"..") if depth == 0 => return false,
            (_, b"..") => depth -= 1,
            _ => depth += 1,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::{Attributes, Extents};

    fn entry(kind: Kind, path: &str, target: &str) -> Entry {
        Entry {
            kind,
            path: path.into(),
            target: target.into(),
            attributes: Attributes::default(),
            size: 0,
            extents: Extents::new(),
            operation_time_ns: 0,
            change_time_ns: 0,
            inode: 0,
            flags: 0,
        }
    }

    #[test]
    fn names_that_change_their_kind_are_kept_from_stock_readers() {
        let mut names = TarNames::default();
        let mut shape = |kind, path, target| names.shape(&entry(kind, path, target), 1, 0);
        assert_eq!(shape(Kind::File, "a/b", ""), Shape::Shown);
        assert_eq!(shape(Kind::File, "a/b", ""), Shape::Shown);
        assert_eq!(shape(Kind::File, "a", ""), Shape::Hidden);
        assert_eq!(shape(Kind::File, "a/b/c", ""), Shape::Hidden);
        assert_eq!(shape(Kind::Directory, "a/b", ""), Shape::Absent);
        assert_eq!(shape(Kind::Directory, "a", ""), Shape::Shown);
        assert_eq!(shape(Kind::Symlink, "a", "x"), Shape::Absent);
        assert_eq!(shape(Kind::Symlink, "a/b", "x"), Shape::Shown);
        assert_eq!(shape(Kind::Symlink, "a/b", "y"), Shape::Shown);
        assert_eq!(shape(Kind::File, "a/b", ""), Shape::Hidden);
        assert_eq!(shape(Kind::Unlink, "a/b", ""), Shape::Absent);
    }

    #[test]
    fn hard_links_are_shown_when_their_file_is_the_live_one() {
        let mut names = TarNames::default();
        assert_eq!(names.shape(&entry(Kind::File, "a", ""), 1, 0), Shape::Shown);
        assert_eq!(names.shape(&entry(Kind::File, "b", ""), 1, 0), Shape::Shown);
        assert_eq!(names.shape(&entry(Kind::HardLink, "l", "a"), 1, 0), Shape::Shown);
        assert_eq!(names.shape(&entry(Kind::HardLink, "b", "a"), 1, 0), Shape::Absent);
        assert_eq!(names.shape(&entry(Kind::File, "a", ""), 1, 0), Shape::Hidden);
        assert_eq!(names.shape(&entry(Kind::HardLink, "m", "b"), 1, 1), Shape::Absent);
        assert_eq!(names.shape(&entry(Kind::HardLink, "m", "b"), 2, 0), Shape::Absent);
        assert_eq!(names.shape(&entry(Kind::HardLink, "m", "none"), 1, 0), Shape::Absent);
    }

    #[test]
    fn links_that_lead_outside_are_not_shown() {
        for (path, target, inside) in [
            ("a/l", "x", true),
            ("a/l", "../x/./y", true),
            ("a/l", "../../x", false),
            ("l", "..", false),
            ("a/l", "/a/x", false),
            ("a/l", "x/../../..", false),
        ] {
            assert_eq!(stays_inside(path.as_bytes(), target.as_bytes()), inside, "{path} -> {target}");
        }
    }
}
