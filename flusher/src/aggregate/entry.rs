//! What a segment is made of, as the writer gives it and as a reader gets it back.

use std::fmt;
use std::time::Duration;

use smallvec::SmallVec;

use super::BLOCK;
use super::checksum::FileChecksums;

/// Longest path or link text, in bytes (`PATH_MAX` without the terminating zero).
pub const PATH_MAX: usize = 4095;
/// Latest time of an operation: in the year 2262. Whoever goes on after the latest record can always count on from it.
const TIME_MAX_NS: u64 = i64::MAX as u64;
/// First component of every name in an aggregate that is not the user's.
pub const RESERVED: &[u8] = b".sheaf";

/// The file was never closed by the program that wrote it.
pub const FLAG_UNCLOSED: u32 = 1;
/// A copy of a record of an aggregate that may be gone. It stands at its own time, whatever was recorded before it in
/// its aggregate, and does what the original did there.
pub const FLAG_MOVED: u32 = 2;
/// A moved directory or link that was not at its path any more when it was copied: no member of the archive.
pub const FLAG_RENAMED: u32 = 4;
/// Of a watermark: all clients of the node had ended, and everything was published.
pub const FLAG_ENDED: u32 = 8;
/// Of a watermark: the stage goes on in another aggregate, which is there already.
pub const FLAG_CONTINUED: u32 = 16;
/// Of a watermark: it says something else, that somebody was told that what the node had done up to its time is safe.
pub const FLAG_ACKNOWLEDGED: u32 = 32;
/// Of a file: several nodes wrote to it at the same time, and this is what one of them wrote.
pub const FLAG_CONTESTED: u32 = 64;

/// How long a file had been written to, as flags: milliseconds, or with the highest bit seconds; 0 when it is not
/// known.
const WRITING_SHIFT: u32 = 16;
const WRITING_SECONDS: u32 = 1 << 15;

/// The aggregate that something belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Random, unique per aggregate.
    pub uuid: [u8; 16],
    /// Name of the node that writes it.
    pub node: String,
    /// The job, as the batch system names it; may be empty.
    pub job: String,
    /// Counts the flushers of this node and store, so that a later one can be told from an earlier one.
    pub incarnation: u64,
    /// When the aggregate was made, in nanoseconds since 1970.
    pub created_ns: u64,
    /// Random, the same for all aggregates that are written from one stage; all zero when it is not known.
    pub stage: [u8; 16],
    /// What this stage had done up to this time was published when the aggregate was made.
    pub watermark_ns: u64,
    /// Somebody was told by then that what this stage had done up to this time is safe.
    pub acknowledged_ns: u64,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A version of a file.
    File,
    /// A directory exists.
    Directory,
    /// A symbolic link exists.
    Symlink,
    /// `path` is a further name of the file at `target`.
    HardLink,
    /// What is at `path`, file or directory with all below it, is now at `target`.
    Rename,
    /// The file or link at `path` is gone.
    Unlink,
    /// The directory at `path` is gone.
    RemoveDirectory,
    /// Mode, owner and time of `path` changed.
    SetAttributes,
    /// What the node has done up to the record's time is published. Never part of a view.
    Watermark,
    /// The sealed index; see [`super::Index`]. Never part of a view.
    Index,
}

impl Kind {
    const NUMBERS: [(Kind, u16); 10] = [
        (Kind::File, 1),
        (Kind::Directory, 2),
        (Kind::Symlink, 3),
        (Kind::HardLink, 4),
        (Kind::Rename, 5),
        (Kind::Unlink, 6),
        (Kind::RemoveDirectory, 7),
        (Kind::SetAttributes, 8),
        (Kind::Watermark, 10),
        (Kind::Index, 11),
    ];

    /// The number in a record; 9 is reserved (FORMAT.md).
    pub fn number(self) -> u16 {
        Kind::NUMBERS.iter().find(|(kind, _)| *kind == self).map_or(0, |(_, number)| *number)
    }

    /// The kind of this number, if this version knows it.
    pub fn from_number(number: u16) -> Option<Kind> {
        Kind::NUMBERS.iter().find(|(_, known)| *known == number).map(|(kind, _)| *kind)
    }
}

/// Mode, owner and time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with set-uid, set-gid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of the data, whole seconds since 1970.
    pub mtime_seconds: i64,
    /// The rest of that time, below 1,000,000,000.
    pub mtime_nanoseconds: u32,
}

/// A range of a file that has data. What no extent covers is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// The extents of a file; most have one.
pub type Extents = SmallVec<[Extent; 1]>;

/// One thing to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What happened.
    pub kind: Kind,
    /// Canonical path without the leading slash.
    pub path: Vec<u8>,
    /// Text of a symbolic link; existing path of a hard link; new path of a rename; where a moved file was when it was
    /// copied, if not at its path; else empty.
    pub target: Vec<u8>,
    /// Mode, owner and time after it.
    pub attributes: Attributes,
    /// Bytes of a file.
    pub size: u64,
    /// Data of a file in ascending order, on whole blocks except at the end of the file.
    pub extents: Extents,
    /// When it happened, in nanoseconds since 1970, monotone on one node.
    pub operation_time_ns: u64,
    /// `ctime` of the staged inode in nanoseconds, or 0 when it proves nothing.
    pub change_time_ns: i64,
    /// Number of the staged inode.
    pub inode: u64,
    /// [`FLAG_UNCLOSED`], [`FLAG_MOVED`], [`FLAG_RENAMED`], [`FLAG_ENDED`], [`FLAG_CONTINUED`],
    /// [`FLAG_ACKNOWLEDGED`], [`FLAG_CONTESTED`], [`Entry::writing_flags`].
    pub flags: u32,
}

/// Where the header of a record's tar member lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderPlace {
    /// From the start of the segment.
    pub offset: u64,
    /// Bytes, with the `x` header.
    pub length: u32,
    /// CRC-32C of these bytes.
    pub crc: u32,
}

/// An entry as a reader gets it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What was recorded.
    pub entry: Entry,
    /// Orders all records of an aggregate: the segment's sequence in the upper half, the place in it in the lower.
    pub sequence: u64,
    /// The tar member's header, for records that are in the tar view.
    pub header: Option<HeaderPlace>,
    /// Whether the tar view has the data under a reserved name, because stock readers would stumble over its own.
    pub hidden: bool,
    /// Where the data of a file starts, from the start of the segment.
    pub data_offset: Option<u64>,
    /// Checksums of a file's data.
    pub checksums: Option<FileChecksums>,
}

impl Entry {
    /// A record with neither target nor data.
    pub fn new(kind: Kind, path: Vec<u8>, attributes: Attributes, operation_time_ns: u64) -> Entry {
        Entry {
            kind,
            path,
            target: Vec::new(),
            attributes,
            size: 0,
            extents: Extents::new(),
            operation_time_ns,
            change_time_ns: 0,
            inode: 0,
            flags: 0,
        }
    }

    /// Says that what the node has done up to this time is published.
    pub fn watermark(time_ns: u64, flags: u32) -> Entry {
        let time_ns = time_ns.min(TIME_MAX_NS);
        Entry { flags, ..Entry::new(Kind::Watermark, Vec::new(), Attributes::default(), time_ns) }
    }

    /// Whether it is something that was done to the namespace.
    pub fn is_operation(&self) -> bool {
        !matches!(self.kind, Kind::Watermark | Kind::Index)
    }

    /// Whether tar data goes with it.
    pub fn has_data(&self) -> bool {
        matches!(self.kind, Kind::File | Kind::Index)
    }

    /// The flags that say that a file was written to for so long.
    pub fn writing_flags(writing: Duration) -> u32 {
        let milliseconds = writing.as_millis().max(1);
        let value = match u32::try_from(milliseconds).ok().filter(|milliseconds| *milliseconds < WRITING_SECONDS) {
            Some(milliseconds) => milliseconds,
            None => WRITING_SECONDS | writing.as_secs().min(u64::from(WRITING_SECONDS) - 1) as u32,
        };
        value << WRITING_SHIFT
    }

    /// The time that such flags speak of, if they do.
    pub fn writing_time(flags: u32) -> Option<Duration> {
        let value = u64::from(flags >> WRITING_SHIFT);
        match value.checked_sub(WRITING_SECONDS.into()) {
            _ if value == 0 => None,
            None => Some(Duration::from_millis(value)),
            Some(seconds) => Some(Duration::from_secs(seconds)),
        }
    }

    /// Whether it is a copy; see [`FLAG_MOVED`].
    pub fn is_moved(&self) -> bool {
        self.flags & FLAG_MOVED != 0
    }

    /// The name under which stock readers of the archive find it.
    pub fn shown_path(&self) -> &[u8] {
        if self.kind == Kind::File && !self.target.is_empty() { &self.target } else { &self.path }
    }

    /// The one extent of a file without holes.
    pub fn dense_extents(size: u64) -> Extents {
        (size > 0).then_some(Extent { offset: 0, length: size }).into_iter().collect()
    }

    /// Checks everything about an entry that does not depend on other entries.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), Problem> {
        match self.kind {
            Kind::Watermark if !self.path.is_empty() => return Err(Problem::Name),
            Kind::Watermark => {}
            _ => check_name(&self.path, self.kind == Kind::Index)?,
        }
        match self.kind {
            Kind::HardLink | Kind::Rename => check_name(&self.target, false)?,
            Kind::Symlink if self.target.is_empty() || self.target.contains(&0) => return Err(Problem::LinkText),
            Kind::Symlink if self.target.len() > PATH_MAX => return Err(Problem::TooLong),
            Kind::Symlink => {}
            Kind::File if self.is_moved() && !self.target.is_empty() => check_name(&self.target, false)?,
            _ if !self.target.is_empty() => return Err(Problem::LinkText),
            _ => {}
        }
        let in_range = self.attributes.mtime_nanoseconds < 1_000_000_000 && self.operation_time_ns <= TIME_MAX_NS;
        if !in_range || self.attributes.mode > 0o7777 {
            return Err(Problem::Attributes);
        }
        if !self.has_data() && (self.size != 0 || !self.extents.is_empty()) {
            return Err(Problem::Extents);
        }
        self.check_extents()
    }

    fn check_extents(&self) -> Result<(), Problem> {
        if self.size > i64::MAX as u64 {
            return Err(Problem::TooLarge);
        }
        let mut end = 0;
        for (index, extent) in self.extents.iter().enumerate() {
            let extent_end = extent.offset.checked_add(extent.length).ok_or(Problem::Extents)?;
            let ascending = index == 0 || extent.offset > end;
            let aligned =
                extent.offset.is_multiple_of(BLOCK) && (extent_end.is_multiple_of(BLOCK) || extent_end == self.size);
            if extent.length == 0 || !ascending || !aligned || extent_end > self.size {
                return Err(Problem::Extents);
            }
            end = extent_end;
        }
        Ok(())
    }
}

/// What makes an entry impossible to record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Empty, absolute, or with an empty, `.` or `..` component or a zero byte.
    Name,
    /// The first component is `.sheaf`.
    Reserved,
    /// Longer than [`PATH_MAX`].
    TooLong,
    /// The target is missing, is superfluous or has a zero byte.
    LinkText,
    /// Mode or nanoseconds out of range.
    Attributes,
    /// Extents that overlap, touch, are not on whole blocks or lie outside the file.
    Extents,
    /// More than a segment can hold.
    TooLarge,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Problem::Name => "the name is empty or absolute, or has an empty, '.' or '..' component or a zero byte",
            Problem::Reserved => "the name '.sheaf' is reserved; choose another one for checkpoints",
            Problem::TooLong => "the name or link text is longer than 4095 bytes",
            Problem::LinkText => "its target is missing, superfluous or has a zero byte",
            Problem::Attributes => "its mode or time is out of range",
            Problem::Extents => "its data ranges are not ascending whole blocks inside the file",
            Problem::TooLarge => "it is more than one segment can hold",
        })
    }
}

/// Whether a path may be recorded: relative, canonical, and not in the reserved directory unless it `may_be_reserved`.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(path: &[u8], may_be_reserved: bool) -> Result<(), Problem> {
    if path.len() > PATH_MAX {
        return Err(Problem::TooLong);
    }
    if path.contains(&0) {
        return Err(Problem::Name);
    }
    if path.split(|byte| *byte == b'/').any(|component| matches!(component, b"" | b"." | b"..")) {
        return Err(Problem::Name);
    }
    if !may_be_reserved && path.split(|byte| *byte == b'/').next() == Some(RESERVED) {
        return Err(Problem::Reserved);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_the_place_of_extraction_are_refused() {
        for name in [&b""[..], b"/a", b"a//b", b"a/", b"../a", b"a/./b", b"a/..", b"a\0b"] {
            assert_eq!(check_name(name, false), Err(Problem::Name), "{}", name.escape_ascii());
        }
        assert_eq!(check_name(b".sheaf/x", false), Err(Problem::Reserved));
        assert_eq!(check_name(b".sheaf", false), Err(Problem::Reserved));
        assert_eq!(check_name(&[b'a'; 4096], false), Err(Problem::TooLong));
        for name in [&b"a"[..], b"a/.sheaf", b".sheafs/b", b"...", b"a b\n\xff"] {
            assert_eq!(check_name(name, false), Ok(()));
        }
    }

    #[test]
    fn the_time_of_writing_keeps_its_order_of_magnitude() {
        assert_eq!(Entry::writing_time(FLAG_UNCLOSED | FLAG_CONTESTED), None);
        for (time_ms, kept_ms) in [(0, 1), (1, 1), (32_767, 32_767), (32_768, 32_000), (7_200_900, 7_200_000)] {
            let flags = Entry::writing_flags(Duration::from_millis(time_ms)) | FLAG_MOVED;
            assert_eq!(Entry::writing_time(flags), Some(Duration::from_millis(kept_ms)), "{time_ms} ms");
            assert_eq!(flags & 0xffff, FLAG_MOVED);
        }
        assert_eq!(Entry::writing_time(Entry::writing_flags(Duration::MAX)), Some(Duration::from_secs(32_767)));
    }

    #[test]
    fn kinds_keep_their_numbers() {
        for number in 0..20 {
            let kind = Kind::from_number(number);
            assert_eq!(kind.is_some(), (1..=8).contains(&number) || [10, 11].contains(&number));
            assert!(kind.is_none_or(|kind| kind.number() == number));
        }
    }
}
