//! The writer's half: every offset and every byte of a segment but the data, decided before any data is read.
//!
//! Nothing here reads or writes files. What a plan says must not depend on anything but its arguments, so that a HEAD
//! has no byte that is unknown before the data is written: a torn write can only leave "absent" or "complete".

use std::fmt;

use zerocopy::IntoBytes;

use super::BLOCK;
use super::checksum::{FileChecksums, crc32c};
use super::entry::{Entry, Extent, HeaderPlace, Identity, Kind, Problem, Record};
use super::format_entry::{reserved_header, reserved_member, short_uuid};
use super::raw::{
    EXTENT_SIZE, HEAD_MAGIC, HEAD_OFFSET, HEAD_VOID, Head, LAYOUT_EXTENTS, LAYOUT_HIDDEN, RECORD_SIZE, RawExtent,
    RawRecord, TRAILER_MAGIC, TRAILER_SEALED, TRAILER_SIZE, Trailer, VERSION,
};
use super::reader::Segment;
use super::tar_header::{self, Member, SECTOR, TYPE_DIRECTORY, TYPE_FILE, TYPE_HARD_LINK, TYPE_SYMLINK, padded};
use super::tar_view::{Shape, TarNames};

/// Sequence of an aggregate's first segment.
pub const FIRST_SEQUENCE: u64 = 1;
/// Data of files of this size and more starts on a block.
pub const ALIGNED_SIZE: u64 = 32 << 10;
/// Name of the sealed index.
pub const INDEX_NAME: &[u8] = b".sheaf/index";

/// Why entries cannot be made a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanError {
    /// Which entry; `None` when it is their sum.
    pub index: Option<usize>,
    /// Its path.
    pub path: Vec<u8>,
    /// What is wrong with it.
    pub problem: Problem,
}

impl fmt::Display for PlanError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(_) => write!(formatter, "cannot record /{}: {}", self.path.escape_ascii(), self.problem),
            None => write!(formatter, "cannot make a segment: {}", self.problem),
        }
    }
}

impl std::error::Error for PlanError {}

/// Where an entry is in the segment.
#[derive(Clone, Copy, Debug, Default)]
struct Placed {
    header: Option<HeaderPlace>,
    hidden: bool,
    data_offset: Option<u64>,
}

/// Where everything in a segment lies.
#[derive(Clone, Debug)]
pub struct SegmentPlan {
    identity: Identity,
    sequence: u64,
    entries: Vec<Entry>,
    placed: Vec<Placed>,
    toc_offset: u64,
    length: u64,
}

impl SegmentPlan {
    /// Decides every offset. `names` belongs to the aggregate: the same one for each of its segments, in order; it is
    /// unchanged when planning fails.
    ///
    /// # Errors
    /// When an entry is none that can be recorded.
    pub fn new(
        identity: &Identity,
        sequence: u64,
        entries: Vec<Entry>,
        names: &mut TarNames,
    ) -> Result<SegmentPlan, PlanError> {
        for (index, entry) in entries.iter().enumerate() {
            let error = |problem| PlanError { index: Some(index), path: entry.path.clone(), problem };
            entry.check().map_err(error)?;
            if (entry.kind == Kind::Index) != (entry.path == INDEX_NAME) {
                return Err(error(Problem::Reserved));
            }
        }
        let too_large = PlanError { index: None, path: Vec::new(), problem: Problem::TooLarge };
        let mut plan = SegmentPlan {
            identity: identity.clone(),
            sequence,
            placed: Vec::with_capacity(entries.len()),
            entries,
            toc_offset: 0,
            length: 0,
        };
        plan.check_sums().ok_or(too_large)?;
        plan.place(names);
        Ok(plan)
    }

    /// Plans the last segment of an aggregate: it carries the index that [`super::encode_index`] made, and a watermark.
    /// The caller writes the index's bytes at the data offset of entry 0.
    ///
    /// # Errors
    /// When the index is too large.
    pub fn seal(identity: &Identity, sequence: u64, index: &[u8], watermark: Entry) -> Result<SegmentPlan, PlanError> {
        let size = index.len() as u64;
        let attributes = reserved_member(identity, INDEX_NAME, size).attributes;
        let extents = Entry::dense_extents(size);
        let entry = Entry { size, extents, ..Entry::new(Kind::Index, INDEX_NAME.to_vec(), attributes, 0) };
        SegmentPlan::new(identity, sequence, vec![entry, watermark], &mut TarNames::default())
    }

    /// `None` when a number of the segment would not fit its field.
    fn check_sums(&self) -> Option<()> {
        u32::try_from(self.sequence).ok()?;
        u32::try_from(self.entries.len()).ok()?;
        let mut table = SECTOR + TRAILER_SIZE as u64;
        let mut content = 0u64;
        for entry in &self.entries {
            let listed = (entry.extents.len() * EXTENT_SIZE) as u64 + 4 * FileChecksums::chunk_count(entry.size);
            let texts = (entry.path.len() + entry.target.len()) as u64;
            table = table.checked_add(RECORD_SIZE as u64 + listed + texts)?;
            // Twice each text, the alignment and the sectors of a header are less than this.
            content = content.checked_add(padded(entry.size)?)?.checked_add(2 * texts + 4 * BLOCK)?;
        }
        u32::try_from(table).ok()?;
        content.checked_add(table + 3 * BLOCK).filter(|length| *length <= i64::MAX as u64).map(|_| ())
    }

    fn place(&mut self, names: &mut TarNames) {
        let mut position = BLOCK;
        let mut removals = 0;
        let mut header = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let shape = names.shape(entry, self.sequence as u32, removals);
            removals += u32::from(shape.may_remove(entry.kind));
            let mut placed = Placed { hidden: shape == Shape::Hidden, ..Placed::default() };
            if shape != Shape::Absent {
                let number = (self.sequence, index);
                encode_header(&mut header, &self.identity, number, entry, placed.hidden, position);
                let place = HeaderPlace { offset: position, length: header.len() as u32, crc: crc32c(&header) };
                placed.header = Some(place);
                position += header.len() as u64;
            }
            if entry.has_data() {
                placed.data_offset = Some(position);
                position += entry.size.next_multiple_of(SECTOR);
            }
            self.placed.push(placed);
        }
        self.toc_offset = position;
        let body = self.table_length() as u64;
        self.length = (position + SECTOR + body + TRAILER_SIZE as u64).next_multiple_of(BLOCK);
    }

    fn table_length(&self) -> usize {
        let listed = |entry: &Entry| {
            let extents = if is_dense(entry) { 0 } else { entry.extents.len() * EXTENT_SIZE };
            extents + 4 * FileChecksums::chunk_count(entry.size) as usize + entry.path.len() + entry.target.len()
        };
        self.entries.iter().map(|entry| RECORD_SIZE + listed(entry)).sum()
    }

    /// Bytes of the segment, a multiple of [`BLOCK`].
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The segment's sequence.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What the segment records.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Where the header of entry `index` lies in the segment, and its bytes. `None` for what is only in the TOC.
    pub fn header(&self, index: usize) -> Option<(u64, Vec<u8>)> {
        let mut header = Vec::new();
        self.header_into(index, &mut header).map(|offset| (offset, header))
    }

    /// The same, with the bytes in the place of what `header` holds.
    pub fn header_into(&self, index: usize, header: &mut Vec<u8>) -> Option<u64> {
        let placed = self.placed.get(index)?;
        let offset = placed.header?.offset;
        let number = (self.sequence, index);
        encode_header(header, &self.identity, number, &self.entries[index], placed.hidden, offset);
        Some(offset)
    }

    /// Where the data of entry `index` starts in the segment; `None` for what has no data. The bytes up to the next
    /// multiple of 512 behind the data are zero.
    pub fn data_offset(&self, index: usize) -> Option<u64> {
        self.placed.get(index)?.data_offset
    }

    /// Where the TOC starts in the segment.
    pub fn toc_offset(&self) -> u64 {
        self.toc_offset
    }

    /// The bytes from [`SegmentPlan::toc_offset`] to the segment's end.
    ///
    /// # Panics
    /// When an entry with data has no checksums, or not as many as its size asks for.
    pub fn toc(&self, checksums: &[Option<FileChecksums>]) -> Vec<u8> {
        let mut toc = reserved_header(&self.identity, &self.name("toc"), self.length - self.toc_offset - SECTOR);
        toc.reserve((self.length - self.toc_offset) as usize);
        self.push_records(&mut toc, checksums);
        for checksums in checksums.iter().flatten() {
            toc.extend(checksums.chunks.iter().flat_map(|chunk| chunk.to_le_bytes()));
        }
        for extent in self.entries.iter().filter(|entry| !is_dense(entry)).flat_map(|entry| &entry.extents) {
            let raw = RawExtent { offset: extent.offset.into(), length: extent.length.into() };
            toc.extend_from_slice(raw.as_bytes());
        }
        for entry in &self.entries {
            toc.extend_from_slice(&entry.path);
            toc.extend_from_slice(&entry.target);
        }
        toc.resize((self.length - self.toc_offset) as usize - TRAILER_SIZE, 0);
        let trailer = self.trailer(crc32c(&toc));
        toc.extend_from_slice(trailer.as_bytes());
        toc
    }

    fn push_records(&self, toc: &mut Vec<u8>, checksums: &[Option<FileChecksums>]) {
        let chunks: usize = self.entries.iter().map(|entry| FileChecksums::chunk_count(entry.size) as usize).sum();
        let listed = self.entries.iter().filter(|entry| !is_dense(entry)).map(|entry| entry.extents.len());
        let mut chunk_offset = RECORD_SIZE * self.entries.len();
        let mut extent_offset = chunk_offset + 4 * chunks;
        let mut path_offset = extent_offset + EXTENT_SIZE * listed.sum::<usize>();
        for (index, entry) in self.entries.iter().enumerate() {
            let checksums = checksums.get(index).and_then(Option::as_ref);
            let chunk_count = checksums.map_or(0, |checksums| checksums.chunks.len());
            assert_eq!(entry.has_data(), checksums.is_some(), "checksums of entry {index}");
            assert_eq!(chunk_count as u64, FileChecksums::chunk_count(entry.size), "chunks of entry {index}");
            let mut record = self.raw_record(index);
            record.data_crc = checksums.map_or(0, |checksums| checksums.whole).into();
            record.chunk_count = (chunk_count as u32).into();
            record.chunk_offset = (chunk_offset as u32).into();
            record.extent_offset = (extent_offset as u32).into();
            record.path_offset = (path_offset as u32).into();
            record.target_offset = ((path_offset + entry.path.len()) as u32).into();
            toc.extend_from_slice(record.as_bytes());
            chunk_offset += 4 * chunk_count;
            extent_offset += EXTENT_SIZE * record.extent_count.get() as usize;
            path_offset += entry.path.len() + entry.target.len();
        }
    }

    /// A record but for checksums and places in the TOC's body.
    fn raw_record(&self, index: usize) -> RawRecord {
        let entry = &self.entries[index];
        let placed = self.placed[index];
        let dense = is_dense(entry);
        let hidden = if placed.hidden { LAYOUT_HIDDEN } else { 0 };
        RawRecord {
            kind: entry.kind.number().into(),
            typeflag: if placed.header.is_some() { typeflag(entry.kind) } else { 0 },
            layout: hidden | if dense { 0 } else { LAYOUT_EXTENTS },
            flags: entry.flags.into(),
            mode: entry.attributes.mode.into(),
            uid: entry.attributes.uid.into(),
            gid: entry.attributes.gid.into(),
            mtime_nanoseconds: entry.attributes.mtime_nanoseconds.into(),
            mtime_seconds: entry.attributes.mtime_seconds.into(),
            sequence: record_sequence(self.sequence, index).into(),
            operation_time_ns: entry.operation_time_ns.into(),
            change_time_ns: entry.change_time_ns.into(),
            inode: entry.inode.into(),
            header_offset: placed.header.map_or(0, |header| header.offset).into(),
            header_length: placed.header.map_or(0, |header| header.length).into(),
            header_crc: placed.header.map_or(0, |header| header.crc).into(),
            data_offset: placed.data_offset.unwrap_or(0).into(),
            size: entry.size.into(),
            data_crc: 0.into(),
            chunk_count: 0.into(),
            chunk_offset: 0.into(),
            extent_count: if dense { 0 } else { entry.extents.len() as u32 }.into(),
            extent_offset: 0.into(),
            path_offset: 0.into(),
            target_offset: 0.into(),
            path_length: (entry.path.len() as u16).into(),
            target_length: (entry.target.len() as u16).into(),
        }
    }

    fn trailer(&self, table_crc: u32) -> Trailer {
        let index = self.entries.iter().position(|entry| entry.kind == Kind::Index);
        let mut trailer = Trailer {
            magic: TRAILER_MAGIC,
            sequence: (self.sequence as u32).into(),
            toc_offset: self.toc_offset.into(),
            length: self.length.into(),
            index_offset: index.and_then(|index| self.data_offset(index)).unwrap_or(0).into(),
            record_count: (self.entries.len() as u32).into(),
            table_crc: table_crc.into(),
            flags: if index.is_some() { TRAILER_SEALED } else { 0 }.into(),
            record_size: (RECORD_SIZE as u16).into(),
            uuid: self.identity.uuid,
            crc: 0.into(),
        };
        trailer.crc = crc32c(&trailer.as_bytes()[..TRAILER_SIZE - 4]).into();
        trailer
    }

    fn name(&self, suffix: &str) -> Vec<u8> {
        segment_name(&self.identity, self.sequence, suffix)
    }

    /// The first block of the segment. Writing it, when everything else is durable, publishes the segment.
    pub fn head(&self) -> Vec<u8> {
        head_block(
            &self.identity,
            &self.name("head"),
            BLOCK - SECTOR,
            head_structure(&self.identity, self.sequence, self.length, self.toc_offset, self.entries.len() as u64, 0),
        )
    }

    /// The first block as it must be until then: the same but for the first sector, which is zero.
    pub fn unpublished_head(&self) -> Vec<u8> {
        let mut head = self.head();
        head[..SECTOR as usize].fill(0);
        head
    }

    /// The segment, at its place in the aggregate, as a reader will get it back once it is published.
    pub fn into_segment(self, offset: u64, checksums: Vec<Option<FileChecksums>>) -> Segment {
        assert_eq!(self.entries.len(), checksums.len(), "checksums, or none, for each entry");
        let (length, sequence, toc_offset) = (self.length, self.sequence, self.toc_offset);
        let record_count = self.entries.len() as u64;
        let parts = self.entries.into_iter().zip(self.placed).zip(checksums).enumerate();
        let record = |(index, ((entry, placed), checksums)): (usize, ((Entry, Placed), _))| Record {
            entry,
            sequence: record_sequence(sequence, index),
            header: placed.header,
            hidden: placed.hidden,
            data_offset: placed.data_offset,
            checksums,
        };
        let records = parts.map(record).collect();
        Segment { offset, length, sequence, void: false, toc_offset, record_count, records }
    }
}

fn record_sequence(segment: u64, index: usize) -> u64 {
    segment << 32 | index as u64
}

/// Whether the extents need not be listed.
fn is_dense(entry: &Entry) -> bool {
    match &entry.extents[..] {
        [] => entry.size == 0,
        [Extent { offset: 0, length }] => *length == entry.size,
        _ => false,
    }
}

fn typeflag(kind: Kind) -> u8 {
    match kind {
        Kind::Directory => TYPE_DIRECTORY,
        Kind::Symlink => TYPE_SYMLINK,
        Kind::HardLink => TYPE_HARD_LINK,
        _ => TYPE_FILE,
    }
}

pub(super) fn segment_name(identity: &Identity, sequence: u64, suffix: &str) -> Vec<u8> {
    format!(".sheaf/seg/{}-{sequence:010}.{suffix}", short_uuid(identity)).into_bytes()
}

pub(super) fn void_name(sequence: u64) -> Vec<u8> {
    format!(".sheaf/void/{sequence:010}").into_bytes()
}

/// The tar member of an entry that is in the tar view.
pub(super) fn member<'a>(
    identity: &Identity,
    sequence: u64,
    index: usize,
    entry: &'a Entry,
    hidden: bool,
) -> Member<'a> {
    let path = if hidden {
        format!(".sheaf/data/{}-{sequence:010}/{index}", short_uuid(identity)).into_bytes().into()
    } else if entry.kind == Kind::Directory {
        [entry.shown_path(), b"/"].concat().into()
    } else {
        entry.shown_path().into()
    };
    Member {
        typeflag: typeflag(entry.kind),
        path,
        link: if entry.kind == Kind::File { b"".into() } else { entry.target[..].into() },
        attributes: entry.attributes.clone(),
        size: entry.size,
    }
}

fn encode_header(
    header: &mut Vec<u8>,
    identity: &Identity,
    (sequence, index): (u64, usize),
    entry: &Entry,
    hidden: bool,
    position: u64,
) {
    let aligned = entry.kind == Kind::Index || entry.size >= ALIGNED_SIZE;
    let member = member(identity, sequence, index, entry, hidden);
    tar_header::encode_into(header, &member, aligned.then_some((position, BLOCK)));
}

fn head_structure(
    identity: &Identity,
    sequence: u64,
    length: u64,
    toc_offset: u64,
    record_count: u64,
    flags: u32,
) -> Head {
    let mut head = Head {
        magic: HEAD_MAGIC,
        version: VERSION.into(),
        flags: flags.into(),
        sequence: sequence.into(),
        length: length.into(),
        toc_offset: toc_offset.into(),
        record_count: record_count.into(),
        incarnation: identity.incarnation.into(),
        uuid: identity.uuid,
        reserved: [0; 52],
        crc: 0.into(),
    };
    head.crc = crc32c(&head.as_bytes()[..size_of::<Head>() - 4]).into();
    head
}

fn head_block(identity: &Identity, name: &[u8], size: u64, head: Head) -> Vec<u8> {
    let mut block = reserved_header(identity, name, size);
    block.resize(BLOCK as usize, 0);
    block[HEAD_OFFSET..HEAD_OFFSET + size_of::<Head>()].copy_from_slice(head.as_bytes());
    block
}

/// The first block of a segment whose range is given up: every reader walks past it.
pub fn void_head(identity: &Identity, sequence: u64, length: u64) -> Vec<u8> {
    let head = head_structure(identity, sequence, length, 0, 0, HEAD_VOID);
    head_block(identity, &void_name(sequence), length - SECTOR, head)
}

/// The first block that a HEAD with this structure must have.
pub(super) fn expected_head(identity: &Identity, head: &Head) -> Vec<u8> {
    let (sequence, length) = (head.sequence.get(), head.length.get());
    if head.flags.get() & HEAD_VOID != 0 {
        return void_head(identity, sequence, length);
    }
    let structure =
        head_structure(identity, sequence, length, head.toc_offset.get(), head.record_count.get(), head.flags.get());
    head_block(identity, &segment_name(identity, sequence, "head"), BLOCK - SECTOR, structure)
}
