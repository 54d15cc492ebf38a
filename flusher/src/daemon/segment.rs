//! Streams one segment to the engine: headers, data and TOC in file order, as few large aligned writes as possible.
//!
//! Aligned data of large files goes to the device straight from the staged file's pages. Everything between (headers,
//! smaller files, tails) is gathered in blocks. Ranges that are all hole are not written. The segment's head is not
//! written here but for its unpublished form: publishing is the caller's decision.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::aggregate::{ALIGNED_SIZE, BLOCK, CHUNK, Entry, FileChecksummer, FileChecksums, SegmentPlan};
use crate::engine::{BLOCK_SIZE, Block, Data, Engine, Target, WriteError};
use crate::stage::source::Source;
use crate::store::VersionReader;

/// Bytes of one write from a mapping.
const MAPPED_WRITE: u64 = 4 << 20;

/// A file of this size or less that has no holes is gathered with what is around it. Two writes of its own, for what
/// was gathered before it and for its data, cost more than a copy, and far more where each write is a question to a
/// server.
const GATHERED_MAX: u64 = 512 << 10;

/// Bytes read at once where a file cannot be mapped.
const READ_SIZE: u64 = 256 << 10;

/// Where the data of an entry comes from.
#[derive(Debug)]
pub enum Input<'a> {
    /// It has none.
    Nothing,
    /// A staged file.
    Staged(&'a Source),
    /// An aggregate.
    Stored(VersionReader),
}

impl<'a> From<&'a Option<Arc<Source>>> for Input<'a> {
    fn from(source: &'a Option<Arc<Source>>) -> Input<'a> {
        source.as_deref().map_or(Input::Nothing, Input::Staged)
    }
}

/// Why a segment could not be written.
#[derive(Debug)]
pub enum SegmentError {
    /// The aggregate could not be written.
    Write(WriteError),
    /// The data of this entry could not be read.
    Read(usize, io::Error),
}

impl std::fmt::Display for SegmentError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SegmentError::Write(error) => write!(formatter, "{error}"),
            SegmentError::Read(_, error) => write!(formatter, "{error}"),
        }
    }
}

impl std::error::Error for SegmentError {}

impl From<WriteError> for SegmentError {
    fn from(error: WriteError) -> Self {
        SegmentError::Write(error)
    }
}

/// Limits the flusher's writes to a rate (`SHEAF_BANDWIDTH`).
#[derive(Debug)]
pub struct Throttle {
    bytes_per_second: u64,
    next: Instant,
}

impl Throttle {
    /// A limit in bytes per second.
    pub fn new(bytes_per_second: u64) -> Throttle {
        Throttle { bytes_per_second, next: Instant::now() }
    }

    /// Waits until `bytes` more may be written.
    pub fn wait(&mut self, bytes: u64) {
        std::thread::sleep(self.reserve(Instant::now(), bytes));
    }

    /// How long to wait from `now` on before `bytes` more may be written; they count as written then.
    fn reserve(&mut self, now: Instant, bytes: u64) -> Duration {
        let start = self.next.max(now);
        self.next = start + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        start - now
    }
}

/// How fast may be written, and how far it has come.
#[derive(Debug)]
pub struct Pace<'a> {
    /// SHEAF_BANDWIDTH.
    pub throttle: Option<&'a mut Throttle>,
    /// What the store has taken is added to this.
    pub written_bytes: &'a AtomicU64,
}

/// Holes from this size on are kept out of the space that is reserved for a segment.
const HOLE_KEPT_MIN: u64 = 1 << 20;

/// The ranges of a planned segment that are worth reserving before they are written, and the zero block that follows
/// the segment: all but the large holes of its files. Relative to the segment.
pub fn written_ranges(plan: &SegmentPlan) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    let mut start = 0;
    for (index, entry) in plan.entries().iter().enumerate() {
        let Some(data) = plan.data_offset(index) else { continue };
        let mut end_of_data = 0;
        let ends = entry.extents.iter().map(|extent| (extent.offset, extent.offset + extent.length));
        for (from, to) in ends.chain([(entry.size / BLOCK * BLOCK, entry.size)]) {
            if from >= end_of_data + HOLE_KEPT_MIN {
                ranges.push((start, data + end_of_data));
                start = data + from;
            }
            end_of_data = to;
        }
    }
    ranges.push((start, plan.length() + BLOCK));
    ranges
}

/// Writes everything of a planned segment but its published head. Returns the checksums, one per entry.
///
/// # Errors
/// The first failure; the range is then undefined and must not be published.
pub fn write(
    engine: &mut dyn Engine,
    target: &Arc<Target>,
    offset: u64,
    plan: &SegmentPlan,
    inputs: &[Input<'_>],
    pace: Pace<'_>,
) -> Result<Vec<Option<FileChecksums>>, SegmentError> {
    assert_eq!(inputs.len(), plan.entries().len(), "one input per entry");
    let mut stream = Stream { engine, target, pace, position: offset, block: None };
    stream.copy(&plan.unpublished_head())?;
    let mut checksums = Vec::with_capacity(inputs.len());
    let mut header = Vec::new();
    for (index, input) in inputs.iter().enumerate() {
        if let Some(at) = plan.header_into(index, &mut header) {
            stream.zeros_until(offset + at)?;
            stream.copy(&header)?;
        }
        let Some(at) = plan.data_offset(index) else {
            checksums.push(None);
            continue;
        };
        stream.zeros_until(offset + at)?;
        let entry = &plan.entries()[index];
        checksums.push(match input {
            Input::Staged(source) => Some(stream.file(index, entry, source)?),
            Input::Stored(reader) => Some(stream.stored_file(index, entry, reader)?),
            Input::Nothing => None,
        });
    }
    stream.zeros_until(offset + plan.toc_offset())?;
    stream.copy(&plan.toc(&checksums))?;
    assert_eq!(stream.position, offset + plan.length(), "the plan and what was written agree");
    stream.flush()?;
    Ok(checksums)
}

struct Stream<'a> {
    engine: &'a mut dyn Engine,
    target: &'a Arc<Target>,
    pace: Pace<'a>,
    /// Where the next byte goes in the aggregate.
    position: u64,
    /// Gathered bytes that end at `position`; it starts on a block boundary.
    block: Option<Block>,
}

impl Stream<'_> {
    fn submit(&mut self, offset: u64, data: Data, length: u64) -> Result<(), WriteError> {
        if let Some(throttle) = self.pace.throttle.as_deref_mut() {
            std::thread::sleep(throttle.reserve(Instant::now(), length));
        }
        self.engine.write(self.target, offset, data)?;
        self.pace.written_bytes.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// Room for gathered bytes at `position`: never empty.
    fn room(&mut self) -> Result<&mut Block, WriteError> {
        if self.block.as_ref().is_some_and(|block| block.len() == BLOCK_SIZE) {
            self.flush()?;
        }
        if self.block.is_none() {
            assert_eq!(self.position % BLOCK, 0, "gathering starts on a block boundary");
            self.block = Some(self.engine.block()?);
        }
        Ok(self.block.as_mut().expect("made above"))
    }

    fn copy(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = self.room()?.append(rest);
            self.position += count as u64;
            rest = &rest[count..];
        }
        Ok(())
    }

    fn zeros_until(&mut self, end: u64) -> Result<(), WriteError> {
        const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];
        assert!(end >= self.position, "a segment is written in order");
        while self.position < end {
            let count = (end - self.position).min(BLOCK) as usize;
            self.copy(&ZEROS[..count])?;
        }
        Ok(())
    }

    /// Hands the gathered bytes to the engine.
    fn flush(&mut self) -> Result<(), WriteError> {
        let Some(block) = self.block.take() else { return Ok(()) };
        let length = block.len() as u64;
        self.submit(self.position - length, Data::Block(block), length)
    }

    fn file(&mut self, index: usize, entry: &Entry, source: &Source) -> Result<FileChecksums, SegmentError> {
        let is_dense =
            matches!(entry.extents.as_slice(), [extent] if extent.offset == 0 && extent.length == entry.size);
        // A limit to the rate holds between writes, which must not become larger then.
        let is_gathered = entry.size <= GATHERED_MAX && is_dense && self.pace.throttle.is_none();
        if entry.size >= ALIGNED_SIZE && !is_gathered {
            return self.large_file(index, entry, source);
        }
        let size = entry.size as usize;
        let mut checksums = FileChecksummer::default();
        if size > 0 && self.room()?.left() >= size {
            // Where it is written from.
            let bytes = self.room()?.extend(size);
            source.read_exact_at(bytes, 0).map_err(|error| SegmentError::Read(index, error))?;
            checksums.data(bytes);
            self.position += size as u64;
        } else {
            let mut bytes = vec![0; size];
            source.read_exact_at(&mut bytes, 0).map_err(|error| SegmentError::Read(index, error))?;
            checksums.data(&bytes);
            self.copy(&bytes)?;
        }
        Ok(checksums.finish())
    }

    fn large_file(&mut self, index: usize, entry: &Entry, source: &Source) -> Result<FileChecksums, SegmentError> {
        let start = self.position;
        let mut checksums = FileChecksummer::default();
        for extent in &entry.extents {
            self.skip_hole(start + extent.offset)?;
            checksums.hole(extent.offset - checksums.size());
            let end = extent.offset + extent.length;
            let mut offset = extent.offset;
            while offset < end {
                let piece_end = end.min((offset / CHUNK + 1) * CHUNK).min(offset + MAPPED_WRITE);
                self.piece(index, source, start, offset, piece_end, &mut checksums)?;
                offset = piece_end;
            }
        }
        checksums.hole(entry.size - checksums.size());
        self.skip_hole(start + entry.size / BLOCK * BLOCK)?;
        self.zeros_until(start + entry.size)?;
        Ok(checksums.finish())
    }

    /// A file that is copied from another aggregate: checked as it is read, and the same in the end.
    fn stored_file(
        &mut self,
        index: usize,
        entry: &Entry,
        reader: &VersionReader,
    ) -> Result<FileChecksums, SegmentError> {
        let start = self.position;
        let mut checksums = FileChecksummer::default();
        let mut failure = None;
        let copied = reader.copy(&mut |offset, bytes| {
            checksums.hole(offset - checksums.size());
            checksums.data(bytes);
            let written = self.gap_until(start + offset, entry.size).and_then(|()| self.copy(bytes));
            written.map_err(|error| {
                failure = Some(error);
                io::Error::other("the copy cannot be written")
            })
        });
        if let Some(failure) = failure {
            return Err(failure.into());
        }
        copied.map_err(|error| SegmentError::Read(index, error))?;
        checksums.hole(entry.size - checksums.size());
        self.gap_until(start + entry.size / BLOCK * BLOCK, entry.size)?;
        self.zeros_until(start + entry.size)?;
        let checksums = checksums.finish();
        if checksums != reader.version().checksums {
            return Err(SegmentError::Read(index, io::Error::other("its checksums contradict each other")));
        }
        Ok(checksums)
    }

    /// Passes over a hole: in large files whole blocks stay unwritten.
    fn gap_until(&mut self, end: u64, file_size: u64) -> Result<(), WriteError> {
        if file_size >= ALIGNED_SIZE { self.skip_hole(end) } else { self.zeros_until(end.max(self.position)) }
    }

    /// One piece of a large file: whole blocks straight from the mapping, what is left over through the gathered block.
    fn piece(
        &mut self,
        index: usize,
        source: &Source,
        start: u64,
        offset: u64,
        end: u64,
        checksums: &mut FileChecksummer,
    ) -> Result<(), SegmentError> {
        // Asked for anew for each piece: the lease keeper may have moved the source to a copy.
        let Ok(mapping) = source.mapping() else {
            return self.copied_piece(index, source, offset, end, checksums);
        };
        mapping.fetch(offset, end).map_err(|error| SegmentError::Read(index, error))?;
        // SAFETY: the source's lease (or its private copy) keeps the file from shrinking while this clone lives. Should
        // the kernel take the lease away from a flusher that was stopped for long, reading here may end the flusher;
        // the next one publishes the file.
        let bytes = unsafe { mapping.bytes() };
        checksums.data(&bytes[offset as usize..end as usize]);
        let whole_end = offset + (end - offset) / BLOCK * BLOCK;
        if whole_end > offset {
            self.flush()?;
            let length = whole_end - offset;
            assert_eq!(self.position, start + offset, "pieces follow each other");
            let data = Data::Mapped { mapping: mapping.clone(), offset, length: length as usize };
            self.submit(self.position, data, length)?;
            self.position += length;
        }
        self.copy(&bytes[whole_end as usize..end as usize])?;
        Ok(())
    }

    /// A piece that could not be mapped (an address space limit) is read.
    fn copied_piece(
        &mut self,
        index: usize,
        source: &Source,
        offset: u64,
        end: u64,
        checksums: &mut FileChecksummer,
    ) -> Result<(), SegmentError> {
        let mut bytes = vec![0; (end - offset).min(READ_SIZE) as usize];
        let mut offset = offset;
        while offset < end {
            let count = (end - offset).min(READ_SIZE) as usize;
            source.read_exact_at(&mut bytes[..count], offset).map_err(|error| SegmentError::Read(index, error))?;
            checksums.data(&bytes[..count]);
            self.copy(&bytes[..count])?;
            offset += count as u64;
        }
        Ok(())
    }

    /// Leaves whole blocks up to `end` unwritten: they read as zeros.
    fn skip_hole(&mut self, end: u64) -> Result<(), WriteError> {
        if end <= self.position {
            return Ok(());
        }
        assert_eq!(end % BLOCK, 0, "holes end on blocks");
        self.zeros_until(end.min(self.position.next_multiple_of(BLOCK)))?;
        if end > self.position {
            self.flush()?;
            self.position = end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::{Attributes, Extent, Identity, Kind, TarNames};

    #[test]
    fn a_rate_is_kept_over_bursts_and_pauses() {
        let mut throttle = Throttle::new(1000);
        let start = throttle.next;
        let second = Duration::from_secs(1);
        assert_eq!(throttle.reserve(start, 1000), Duration::ZERO);
        assert_eq!(throttle.reserve(start, 500), second);
        assert_eq!(throttle.reserve(start + second, 500), second / 2);
        // A pause is not saved up.
        assert_eq!(throttle.reserve(start + 100 * second, 1000), Duration::ZERO);
        assert_eq!(throttle.reserve(start + 100 * second, 1), second);
    }

    #[test]
    fn large_holes_are_not_reserved() {
        let mebibyte = 1 << 20;
        let entry = Entry {
            kind: Kind::File,
            path: b"s/sparse".to_vec(),
            target: Vec::new(),
            attributes: Attributes::default(),
            size: 64 * mebibyte,
            extents: [(0, BLOCK), (32 * mebibyte, mebibyte)]
                .map(|(offset, length)| Extent { offset, length })
                .into_iter()
                .collect(),
            operation_time_ns: 1,
            change_time_ns: 0,
            inode: 1,
            flags: 0,
        };
        let identity = Identity {
            uuid: [1; 16],
            node: "n".into(),
            job: String::new(),
            incarnation: 1,
            created_ns: 1,
            stage: [0; 16],
            watermark_ns: 0,
            acknowledged_ns: 0,
        };
        let plan = SegmentPlan::new(&identity, 1, vec![entry], &mut TarNames::default()).unwrap();
        let data = plan.data_offset(0).unwrap();
        assert_eq!(
            written_ranges(&plan),
            [
                (0, data + BLOCK),
                (data + 32 * mebibyte, data + 33 * mebibyte),
                (data + 64 * mebibyte, plan.length() + BLOCK)
            ]
        );
    }
}
