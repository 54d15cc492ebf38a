//! What a marker in `STAGE/replaced` says: under a name that the tree has, an older file still lies on the parallel
//! file system, and which one it is.
//!
//! The file goes with the name, or when its successor is published; the marker goes after it. A marker whose file is
//! gone, or that names another file than the one that lies there, removes nothing.

/// Bytes of a marker before the path.
pub const HEAD_LENGTH: usize = 32;

/// Which file is meant: whatever takes its name later is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// Number of its inode.
    pub inode: u64,
    /// When it was made, in nanoseconds; 0 where the file system does not say.
    pub born_ns: u64,
    /// When it was last written, in nanoseconds.
    pub modified_ns: u64,
}

impl FileIdentity {
    /// Of what is not there: equal to no file.
    pub const NONE: FileIdentity = FileIdentity { inode: 0, born_ns: 0, modified_ns: 0 };

    /// Whether both are the same file. It may have been written to meanwhile by another of its names; only where
    /// nothing tells when it was made, that makes it another.
    pub fn is_same(&self, other: &FileIdentity) -> bool {
        let is_one = match (self.born_ns, other.born_ns) {
            (0, _) | (_, 0) => self.modified_ns == other.modified_ns,
            (one, other) => one == other,
        };
        is_one && self.inode == other.inode && self.inode != 0
    }
}

/// Seconds and nanoseconds as one number, 0 when it does not fit.
pub fn nanoseconds(seconds: i64, nanoseconds: u32) -> u64 {
    u64::try_from(seconds)
        .ok()
        .and_then(|seconds| seconds.checked_mul(1_000_000_000))
        .map_or(0, |time_ns| time_ns.saturating_add(nanoseconds as u64))
}

/// One marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker<'a> {
    /// The older file.
    pub file: FileIdentity,
    /// Whether it only turned out to be older than what the store holds: then it waits for a version that is published
    /// from now on.
    pub is_found: bool,
    /// The inode in the tree of which it is what the flusher has published, and no older file (layout `files`); else 0.
    pub published_inode: u64,
    /// Its canonical path.
    pub path: &'a [u8],
}

impl<'a> Marker<'a> {
    /// What stands before the path.
    pub fn head(&self) -> [u8; HEAD_LENGTH] {
        let mut head = [0; HEAD_LENGTH];
        let numbers = [
            self.file.inode,
            self.file.born_ns,
            self.file.modified_ns,
            u64::from(self.is_found) | self.published_inode << 1,
        ];
        for (place, number) in head.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        head
    }

    /// Reads a marker; `None` when it is not whole, or of no absolute path.
    pub fn parse(bytes: &'a [u8]) -> Option<Marker<'a>> {
        let (head, path) = bytes.split_at_checked(HEAD_LENGTH).filter(|(_, path)| path.first() == Some(&b'/'))?;
        let mut numbers = [0; HEAD_LENGTH / 8];
        for (number, bytes) in numbers.iter_mut().zip(head.chunks_exact(8)) {
            *number = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        let [inode, born_ns, modified_ns, bits] = numbers;
        let file = FileIdentity { inode, born_ns, modified_ns };
        Some(Marker { file, is_found: bits & 1 != 0, published_inode: bits >> 1, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_say_what_they_were_told() {
        let file = FileIdentity { inode: 7, born_ns: u64::MAX, modified_ns: 9 };
        let marker = Marker { file, is_found: true, published_inode: 6, path: b"/a\n" };
        let bytes = [&marker.head()[..], marker.path].concat();
        assert_eq!(Marker::parse(&bytes), Some(marker));
        assert_eq!(Marker::parse(&bytes[..31]), None);
        let relative = [&marker.head()[..], b"a"].concat();
        assert_eq!(Marker::parse(&relative), None);
    }

    #[test]
    fn a_file_that_was_written_is_still_the_same_if_it_says_when_it_was_made() {
        let file = FileIdentity { inode: 7, born_ns: 8, modified_ns: 9 };
        assert!(file.is_same(&FileIdentity { modified_ns: 10, ..file }));
        assert!(!file.is_same(&FileIdentity { born_ns: 9, ..file }));
        let older = FileIdentity { born_ns: 0, ..file };
        assert!(older.is_same(&older));
        assert!(!older.is_same(&FileIdentity { modified_ns: 10, ..older }));
        assert!(!FileIdentity::NONE.is_same(&FileIdentity::NONE));
    }
}
