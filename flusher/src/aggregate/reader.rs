//! The reader's half: from an aggregate's bytes to its published prefix.
//!
//! Everything is checked before it is believed: a segment that does not check out ends the prefix, and so does
//! everything behind it, because later records build on earlier ones. It never reads past what checked lengths justify.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use zerocopy::FromBytes;

use super::BLOCK;
use super::checksum::{FileChecksums, crc32c};
use super::entry::{Attributes, Entry, Extent, Extents, HeaderPlace, Identity, Kind, Record};
use super::format_entry::{self, FormatError, reserved_header};
use super::raw::{
    EXTENT_SIZE, HEAD_OFFSET, HEAD_VOID, Head, LAYOUT_EXTENTS, LAYOUT_HIDDEN, RECORD_SIZE, RawExtent, RawRecord,
    TRAILER_MAGIC, TRAILER_SEALED, TRAILER_SIZE, Trailer,
};
use super::salvage::{head_in, trailer_in};
use super::segment::{FIRST_SEQUENCE, expected_head, segment_name};
use super::tar_header::{SECTOR, padded};
use crate::engine::forget_cached;

/// Bytes at offsets.
pub trait ReadAt {
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// As reading a file; `UnexpectedEof` when there are fewer bytes.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Fills the first `length` bytes of `buffer` from `offset`. Up to the next whole block the rest of the buffer may
    /// be used for that.
    ///
    /// # Errors
    /// As [`ReadAt::read_exact_at`].
    fn read_blocks_at(&self, buffer: &mut [u8], length: usize, offset: u64) -> io::Result<()> {
        self.read_exact_at(&mut buffer[..length], offset)
    }

    /// Bytes that there are.
    ///
    /// # Errors
    /// As asking a file.
    fn length(&self) -> io::Result<u64>;

    /// Where data begins from a place on, holes left out as far as they can be told.
    ///
    /// # Errors
    /// As [`ReadAt::read_exact_at`].
    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        Ok((from < self.length()?).then_some(from))
    }

    /// Has what is read next be what is there by then.
    fn forget(&self) {}
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(self, SeekFrom::Data(from)) {
            Err(Errno::NXIO) => Ok(None),
            start => Ok(Some(start.unwrap_or(from))),
        }
    }

    fn forget(&self) {
        forget_cached(self);
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl ReadAt for [u8] {
    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        let rest = usize::try_from(from).ok().and_then(|start| self.get(start..)).unwrap_or_default();
        Ok(rest.iter().position(|byte| *byte != 0).map(|place| from + place as u64))
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let bytes = start.and_then(|start| self.get(start..start.checked_add(buffer.len())?));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self[..].read_exact_at(buffer, offset)
    }

    fn length(&self) -> io::Result<u64> {
        self[..].length()
    }

    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        self[..].next_data(from)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }

    fn length(&self) -> io::Result<u64> {
        (**self).length()
    }

    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        (**self).next_data(from)
    }

    fn forget(&self) {
        (**self).forget();
    }
}

/// Why an aggregate cannot be read at all.
#[derive(Debug)]
pub enum ReadError {
    /// The file could not be read.
    Io(io::Error),
    /// Its first block is not the one of an aggregate that this version reads.
    Format(FormatError),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> ReadError {
        ReadError::Io(error)
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Io(error) => write!(formatter, "cannot be read: {error}"),
            ReadError::Format(FormatError::Empty) => formatter.write_str("holds nothing yet"),
            ReadError::Format(FormatError::NotAnAggregate) => formatter.write_str("is not an aggregate of Sheaf"),
            ReadError::Format(FormatError::Damaged(what)) => write!(formatter, "is damaged at its start: {what}"),
            ReadError::Format(FormatError::Unsupported(what)) => {
                write!(formatter, "needs a later version of Sheaf: {}", what.escape_default())
            }
            ReadError::Format(FormatError::Shared(_)) => formatter.write_str("is shared by several nodes"),
        }
    }
}

impl std::error::Error for ReadError {}

/// Why the published prefix ends where it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The next segment is not published.
    Unpublished,
    /// The next segment was published, and is not what was written.
    Damaged(String),
    /// The file ends.
    End,
}

/// An aggregate's published prefix.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Whose it is.
    pub identity: Identity,
    /// Bytes of the file when reading began.
    pub length: u64,
    /// The segments that were read, in order.
    pub segments: Vec<Segment>,
    /// Where the published prefix ends.
    pub published_end: u64,
    /// The sequence that the next segment has.
    pub next_sequence: u64,
    /// Why it ends.
    pub stop: Stop,
}

impl Recovered {
    /// Whether it was closed in peace: nothing follows.
    pub fn is_sealed(&self) -> bool {
        let is_index = |record: &Record| record.entry.kind == Kind::Index;
        self.segments.last().is_some_and(|segment| segment.records.iter().any(is_index))
    }
}

/// A published segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts in the aggregate.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Its place in the aggregate.
    pub sequence: u64,
    /// Its range was given up; it has no content.
    pub void: bool,
    /// Where its TOC starts, from the segment's start; 0 when void.
    pub toc_offset: u64,
    /// How many records it has, with those of kinds that this version does not know.
    pub record_count: u64,
    /// What it records.
    pub records: Vec<Record>,
}

/// Something between "cannot be read" and "is damaged".
enum Failure {
    Io(io::Error),
    Damage(&'static str),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Failure::Damage("the file is shorter than the segment"),
            _ => Failure::Io(error),
        }
    }
}

impl From<&'static str> for Failure {
    fn from(reason: &'static str) -> Failure {
        Failure::Damage(reason)
    }
}

/// Reads the published prefix of an aggregate.
///
/// # Errors
/// When the file cannot be read, or is no aggregate. Damage behind the first block is no error: see [`Stop`].
pub fn recover(source: &dyn ReadAt) -> Result<Recovered, ReadError> {
    recover_from(source, BLOCK, FIRST_SEQUENCE)
}

/// Reads an aggregate's first block: whose it is.
///
/// # Errors
/// As [`recover`].
pub fn identify(source: &dyn ReadAt) -> Result<Identity, ReadError> {
    let mut first = vec![0; BLOCK.min(source.length()?) as usize];
    source.read_exact_at(&mut first, 0)?;
    format_entry::parse(&first).map_err(ReadError::Format)
}

/// Reads the segments that were published behind `end`, the first of which has the sequence `next_sequence`.
///
/// # Errors
/// As [`recover`].
pub fn recover_from(source: &dyn ReadAt, end: u64, next_sequence: u64) -> Result<Recovered, ReadError> {
    let length = source.length()?;
    let identity = identify(source)?;
    let mut recovered =
        Recovered { identity, length, segments: Vec::new(), published_end: end, next_sequence, stop: Stop::End };
    recovered.stop = loop {
        let at = SegmentAt { offset: recovered.published_end, sequence: recovered.next_sequence };
        match read_segment(source, length, &recovered.identity, at) {
            Ok(Step::Segment(segment)) => {
                recovered.published_end += segment.length;
                recovered.next_sequence += 1;
                recovered.segments.push(segment);
            }
            Ok(Step::Stop(Stop::Unpublished)) if was_published(source, &recovered.identity, at)? => {
                // Unless its writer has come to it since it was looked at, and to the next one.
                source.forget();
                if is_zero(source, at.offset)? {
                    break Stop::Damaged("its HEAD is lost".to_owned());
                }
            }
            Ok(Step::Stop(stop)) => break stop,
            Err(Failure::Damage(reason)) => break Stop::Damaged(reason.to_owned()),
            Err(Failure::Io(error)) => return Err(error.into()),
        }
    };
    Ok(recovered)
}

/// Whether a segment that looks unpublished has lost its first sector: a later one of the same aggregate was begun to
/// be sealed with, or, as far as what is left tells where that is, published. It takes no search: what is lost without
/// either is found by [`super::published_behind`] alone.
fn was_published(source: &dyn ReadAt, identity: &Identity, at: SegmentAt) -> io::Result<bool> {
    let length = source.length()?;
    if seal_at(source, identity, length)?.is_some_and(|start| start > at.offset) {
        return Ok(true);
    }
    let head = head_at(source, at.offset)?.filter(|head| head.uuid == identity.uuid);
    let next = head.and_then(|head| at.offset.checked_add(head.length.get()));
    let fits = |next: &u64| next.checked_add(BLOCK).is_some_and(|end| end <= length);
    let Some(next) = next.filter(fits) else { return Ok(false) };
    let is_next = |head: Head| head.uuid == identity.uuid && head.sequence.get() == at.sequence + 1;
    Ok(head_at(source, next)?.is_some_and(is_next) && !is_zero(source, next)?)
}

/// Where the segment begins that an aggregate was sealed with, published or not: the trailer at its end tells.
fn seal_at(source: &dyn ReadAt, identity: &Identity, length: u64) -> io::Result<Option<u64>> {
    let Some(end) = length.checked_sub(BLOCK).filter(|end| *end >= 2 * BLOCK) else { return Ok(None) };
    let mut last = [0; TRAILER_SIZE];
    source.read_exact_at(&mut last, end - TRAILER_SIZE as u64)?;
    let trailer = trailer_in(&last).filter(|trailer| trailer.uuid == identity.uuid);
    let sealing = trailer.filter(|trailer| trailer.flags.get() & TRAILER_SEALED != 0);
    Ok(sealing.and_then(|trailer| end.checked_sub(trailer.length.get())))
}

fn head_at(source: &dyn ReadAt, offset: u64) -> io::Result<Option<Head>> {
    let mut block = vec![0; BLOCK as usize];
    source.read_exact_at(&mut block, offset)?;
    Ok(head_in(&block))
}

/// Whether the first sector at a place is zero.
pub(super) fn is_zero(source: &dyn ReadAt, offset: u64) -> io::Result<bool> {
    let mut sector = [0; SECTOR as usize];
    source.read_exact_at(&mut sector, offset)?;
    Ok(sector.iter().all(|byte| *byte == 0))
}

/// Where a segment must be, and which.
#[derive(Clone, Copy, Debug)]
pub(super) struct SegmentAt {
    pub offset: u64,
    pub sequence: u64,
}

/// A segment that is published, or what is wrong with it.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn segment_at(
    source: &dyn ReadAt,
    file_length: u64,
    identity: &Identity,
    at: SegmentAt,
) -> io::Result<Result<Segment, String>> {
    match read_segment(source, file_length, identity, at) {
        Ok(Step::Segment(segment)) => Ok(Ok(segment)),
        Ok(Step::Stop(_)) => Ok(Err("it has no HEAD".to_owned())),
        Err(Failure::Damage(reason)) => Ok(Err(reason.to_owned())),
        Err(Failure::Io(error)) => Err(error),
    }
}

enum Step {
    Segment(Segment),
    Stop(Stop),
}

fn read_segment(source: &dyn ReadAt, file_length: u64, identity: &Identity, at: SegmentAt) -> Result<Step, Failure> {
    let offset = at.offset;
    if offset.checked_add(BLOCK).is_none_or(|end| end > file_length) {
        return Ok(Step::Stop(Stop::End));
    }
    let mut block = vec![0; BLOCK as usize];
    source.read_exact_at(&mut block, offset)?;
    if block[..SECTOR as usize].iter().all(|byte| *byte == 0) {
        return Ok(Step::Stop(Stop::Unpublished));
    }
    let head = check_head(&block, identity, at.sequence)?;
    let length = head.length.get();
    let end = offset.checked_add(length).ok_or("its length reaches past the end of any file")?;
    // A segment that was being written when the length was taken may be published by now: its head comes last.
    if end > file_length && end > source.length()? {
        return Err("its length reaches past the end of the file".into());
    }
    let mut segment = Segment {
        offset,
        length,
        sequence: head.sequence.get(),
        void: head.flags.get() & HEAD_VOID != 0,
        toc_offset: head.toc_offset.get(),
        record_count: if head.flags.get() & HEAD_VOID != 0 { 0 } else { head.record_count.get() },
        records: Vec::new(),
    };
    if !segment.void {
        segment.records = read_toc(source, identity, &segment, head.record_count.get())?;
    }
    Ok(Step::Segment(segment))
}

fn check_head(block: &[u8], identity: &Identity, sequence: u64) -> Result<Head, &'static str> {
    let bytes = &block[HEAD_OFFSET..HEAD_OFFSET + size_of::<Head>()];
    let head = Head::read_from_bytes(bytes).map_err(|_| "its HEAD is malformed")?;
    if head.crc.get() != crc32c(&bytes[..size_of::<Head>() - 4]) {
        return Err("the checksum of its HEAD is wrong");
    }
    if head.uuid != identity.uuid || head.sequence.get() != sequence {
        return Err("its HEAD belongs to another aggregate or place");
    }
    let (length, toc_offset) = (head.length.get(), head.toc_offset.get());
    if length < BLOCK || !length.is_multiple_of(BLOCK) {
        return Err("its HEAD has an impossible length");
    }
    let toc_minimum = SECTOR + TRAILER_SIZE as u64;
    let toc_fits =
        toc_offset >= BLOCK && toc_offset.is_multiple_of(SECTOR) && toc_offset <= length.saturating_sub(toc_minimum);
    if head.flags.get() & HEAD_VOID == 0 && !toc_fits {
        return Err("its HEAD has an impossible place for the TOC");
    }
    if block != expected_head(identity, &head) {
        return Err("its HEAD has bytes that do not belong there");
    }
    Ok(head)
}

fn read_toc(
    source: &dyn ReadAt,
    identity: &Identity,
    segment: &Segment,
    record_count: u64,
) -> Result<Vec<Record>, Failure> {
    let (header, records) = read_records(source, identity, segment, record_count)?;
    let name = segment_name(identity, segment.sequence, "toc");
    let size = segment.length - segment.toc_offset;
    if header != reserved_header(identity, &name, size - SECTOR) {
        return Err("the tar header of its TOC does not belong to it".into());
    }
    Ok(records)
}

/// The tar header of a TOC, and the records in it.
fn read_records(
    source: &dyn ReadAt,
    identity: &Identity,
    segment: &Segment,
    record_count: u64,
) -> Result<(Vec<u8>, Vec<Record>), Failure> {
    let size = segment.length - segment.toc_offset;
    let mut last = [0; TRAILER_SIZE];
    source.read_exact_at(&mut last, segment.offset + segment.length - TRAILER_SIZE as u64)?;
    let trailer = check_trailer(&last, identity, segment, record_count)?;
    let size = u32::try_from(size).map_err(|_| "its TOC is impossibly large")? as usize;
    let mut toc = vec![0; size];
    source.read_exact_at(&mut toc, segment.offset + segment.toc_offset)?;
    toc.truncate(size - TRAILER_SIZE);
    if crc32c(&toc) != trailer.table_crc.get() {
        return Err("the checksum of its TOC is wrong".into());
    }
    let body = toc.split_off(SECTOR as usize);
    let records = decode_records(&body, segment, record_count)?;
    Ok((toc, records))
}

/// The segment with its records, if its TOC is intact, whatever became of its HEAD.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn listed(source: &dyn ReadAt, identity: &Identity, mut segment: Segment) -> io::Result<Option<Segment>> {
    let toc_minimum = SECTOR + TRAILER_SIZE as u64;
    let (toc_offset, length) = (segment.toc_offset, segment.length);
    if toc_offset < BLOCK || !toc_offset.is_multiple_of(SECTOR) || toc_offset > length.saturating_sub(toc_minimum) {
        return Ok(None);
    }
    match read_records(source, identity, &segment, segment.record_count) {
        Ok((_, records)) => {
            segment.records = records;
            Ok(Some(segment))
        }
        Err(Failure::Damage(_)) => Ok(None),
        Err(Failure::Io(error)) => Err(error),
    }
}

fn check_trailer(
    bytes: &[u8; TRAILER_SIZE],
    identity: &Identity,
    segment: &Segment,
    record_count: u64,
) -> Result<Trailer, &'static str> {
    let trailer = Trailer::read_from_bytes(bytes).map_err(|_| "the trailer of its TOC is malformed")?;
    if trailer.magic != TRAILER_MAGIC || trailer.crc.get() != crc32c(&bytes[..TRAILER_SIZE - 4]) {
        return Err("the trailer of its TOC is damaged");
    }
    let belongs = trailer.uuid == identity.uuid
        && u64::from(trailer.sequence.get()) == segment.sequence
        && trailer.toc_offset.get() == segment.toc_offset
        && trailer.length.get() == segment.length
        && u64::from(trailer.record_count.get()) == record_count;
    if !belongs {
        return Err("the trailer of its TOC contradicts its HEAD");
    }
    if (trailer.record_size.get() as usize) < RECORD_SIZE {
        return Err("the records of its TOC are too small");
    }
    if usize::from(trailer.record_size.get()) > RECORD_SIZE {
        return Err("the records of its TOC are of a later version");
    }
    Ok(trailer)
}

/// Takes a TOC's lists apart in the one order that they may have, so that no byte is used twice: what is decoded is
/// never larger than what was read.
struct Lists<'a> {
    body: &'a [u8],
    chunks: usize,
    extents: usize,
    texts: usize,
}

fn range<'a>(body: &'a [u8], at: &mut usize, claimed: u32, length: usize) -> Result<&'a [u8], &'static str> {
    let end = at.checked_add(length).ok_or("a list of its TOC is impossibly long")?;
    let bytes = body.get(*at..end).ok_or("a list of its TOC reaches past its end")?;
    if claimed as usize != *at {
        return Err("a list of its TOC is not where it must be");
    }
    *at = end;
    Ok(bytes)
}

fn decode_records(body: &[u8], segment: &Segment, record_count: u64) -> Result<Vec<Record>, &'static str> {
    let count = usize::try_from(record_count).map_err(|_| "its TOC has too many records")?;
    let table = count.checked_mul(RECORD_SIZE).and_then(|size| body.get(..size)).ok_or("its TOC is too short")?;
    let raw_records = || table.chunks_exact(RECORD_SIZE).filter_map(|bytes| RawRecord::read_from_bytes(bytes).ok());
    let chunks: u64 = raw_records().map(|raw| 4 * u64::from(raw.chunk_count.get())).sum();
    let extents: u64 = raw_records().map(|raw| EXTENT_SIZE as u64 * u64::from(raw.extent_count.get())).sum();
    if chunks + extents > body.len() as u64 {
        return Err("its TOC is too short");
    }
    let mut lists = Lists {
        body,
        chunks: table.len(),
        extents: table.len() + chunks as usize,
        texts: table.len() + (chunks + extents) as usize,
    };
    let (extents_start, texts_start) = (lists.extents, lists.texts);
    let mut position = BLOCK;
    let mut records = Vec::with_capacity(count);
    for (index, raw) in raw_records().enumerate() {
        let record = decode_record(&raw, &mut lists, &mut position)?;
        if raw.sequence.get() != segment.sequence << 32 | index as u64 {
            return Err("a record of its TOC is out of order");
        }
        records.extend(record);
    }
    let complete = lists.chunks == extents_start && lists.extents == texts_start && position == segment.toc_offset;
    let rest_is_zero = body[lists.texts..].iter().all(|byte| *byte == 0);
    if complete && rest_is_zero { Ok(records) } else { Err("its TOC does not account for all of the segment") }
}

/// Decodes one record; `None` for a kind that a later version added. `position` is where its header must lie.
fn decode_record(raw: &RawRecord, lists: &mut Lists<'_>, position: &mut u64) -> Result<Option<Record>, &'static str> {
    let body = lists.body;
    let chunk_bytes = range(body, &mut lists.chunks, raw.chunk_offset.get(), 4 * raw.chunk_count.get() as usize)?;
    let extent_length = EXTENT_SIZE * raw.extent_count.get() as usize;
    let extent_bytes = range(body, &mut lists.extents, raw.extent_offset.get(), extent_length)?;
    let path = range(body, &mut lists.texts, raw.path_offset.get(), raw.path_length.get().into())?;
    let target = range(body, &mut lists.texts, raw.target_offset.get(), raw.target_length.get().into())?;
    let header = decode_header_place(raw, position)?;
    let Some(kind) = Kind::from_number(raw.kind.get()) else {
        skip_data(raw, position)?;
        return Ok(None);
    };
    let entry = Entry {
        kind,
        path: path.to_vec(),
        target: target.to_vec(),
        attributes: Attributes {
            mode: raw.mode.get(),
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            mtime_seconds: raw.mtime_seconds.get(),
            mtime_nanoseconds: raw.mtime_nanoseconds.get(),
        },
        size: raw.size.get(),
        extents: decode_extents(raw, extent_bytes)?,
        operation_time_ns: raw.operation_time_ns.get(),
        change_time_ns: raw.change_time_ns.get(),
        inode: raw.inode.get(),
        flags: raw.flags.get(),
    };
    entry.check().map_err(|_| "a record of its TOC is impossible")?;
    let hidden = raw.layout & LAYOUT_HIDDEN != 0;
    if entry.has_data() && header.is_none() || hidden && kind != Kind::File {
        return Err("a record of its TOC is impossible");
    }
    let data_offset = entry.has_data().then_some(*position);
    skip_data(raw, position)?;
    let checksums = decode_checksums(raw, &entry, chunk_bytes)?;
    Ok(Some(Record { entry, sequence: raw.sequence.get(), header, hidden, data_offset, checksums }))
}

fn decode_header_place(raw: &RawRecord, position: &mut u64) -> Result<Option<HeaderPlace>, &'static str> {
    let place =
        HeaderPlace { offset: raw.header_offset.get(), length: raw.header_length.get(), crc: raw.header_crc.get() };
    if raw.typeflag == 0 {
        let none = HeaderPlace { offset: 0, length: 0, crc: 0 };
        return if place == none { Ok(None) } else { Err("a record of its TOC has a header without a type") };
    }
    let whole_sectors = u64::from(place.length).is_multiple_of(SECTOR) && place.length > 0;
    if place.offset != *position || !whole_sectors {
        return Err("a header in its TOC is not where it must be");
    }
    *position = position.checked_add(place.length.into()).ok_or("its TOC has an impossible offset")?;
    Ok(Some(place))
}

fn skip_data(raw: &RawRecord, position: &mut u64) -> Result<(), &'static str> {
    if raw.data_offset.get() == 0 {
        return if raw.size.get() == 0 { Ok(()) } else { Err("a record of its TOC has a size and no data") };
    }
    if raw.data_offset.get() != *position {
        return Err("data in its TOC is not where it must be");
    }
    let end = padded(raw.size.get()).and_then(|size| position.checked_add(size));
    *position = end.ok_or("its TOC has an impossible size")?;
    Ok(())
}

fn decode_extents(raw: &RawRecord, bytes: &[u8]) -> Result<Extents, &'static str> {
    if raw.layout & LAYOUT_EXTENTS == 0 {
        let size = raw.size.get();
        return if bytes.is_empty() { Ok(Entry::dense_extents(size)) } else { Err("its TOC has superfluous extents") };
    }
    let extents = bytes.chunks_exact(EXTENT_SIZE).filter_map(|bytes| RawExtent::read_from_bytes(bytes).ok());
    Ok(extents.map(|raw| Extent { offset: raw.offset.get(), length: raw.length.get() }).collect())
}

fn decode_checksums(raw: &RawRecord, entry: &Entry, bytes: &[u8]) -> Result<Option<FileChecksums>, &'static str> {
    let expected = if entry.has_data() { FileChecksums::chunk_count(entry.size) } else { 0 };
    if u64::from(raw.chunk_count.get()) != expected {
        return Err("a record of its TOC has the wrong number of checksums");
    }
    if entry.has_data() != (raw.data_offset.get() != 0) {
        return Err("a record of its TOC has data that its kind cannot have");
    }
    let chunks = bytes.chunks_exact(4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    Ok(entry.has_data().then(|| FileChecksums { whole: raw.data_crc.get(), chunks: chunks.collect() }))
}
