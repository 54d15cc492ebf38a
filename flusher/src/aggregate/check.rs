//! Checks what recovery does not read: headers, data and padding of a published segment.
//!
//! Together with recovery every byte of a segment is covered by some check.

use std::io;

use super::checksum::{FileChecksums, crc32c};
use super::data::{ChunkBuffer, DataError, FileData};
use super::entry::{HeaderPlace, Identity, Record};
use super::reader::{ReadAt, Segment};
use super::segment::member;
use super::tar_header::{self, HEADER_MAX, SECTOR};

/// Something in a published segment that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Path of the record.
    pub path: Vec<u8>,
    /// Where it is in the aggregate.
    pub offset: u64,
    /// What is wrong, in words.
    pub what: String,
}

/// Checks one record of a segment against the aggregate: its tar header, all its data and the padding behind it.
/// `progress` is told bytes as they are read.
///
/// # Errors
/// When the aggregate cannot be read.
pub fn check_record(
    source: &dyn ReadAt,
    identity: &Identity,
    segment: &Segment,
    record: &Record,
    progress: &mut dyn FnMut(u64),
) -> io::Result<Vec<Damage>> {
    let mut damages = Vec::new();
    let mut note = |offset: u64, what: String| {
        damages.push(Damage { path: record.entry.path.clone(), offset: segment.offset + offset, what });
    };
    if let Some(place) = record.header
        && let Some(what) = check_header(source, identity, segment, record, place)?
    {
        note(place.offset, what.to_owned());
    }
    if let (Some(offset), Some(checksums)) = (record.data_offset, &record.checksums) {
        let Some(absolute) = segment.offset.checked_add(offset) else { return Ok(damages) };
        let extents = &record.entry.extents;
        let data = FileData { offset: absolute, size: record.entry.size, extents, checksums };
        for (at, what) in check_data(source, &data, progress)? {
            note(offset + at, what);
        }
    }
    Ok(damages)
}

fn check_header(
    source: &dyn ReadAt,
    identity: &Identity,
    segment: &Segment,
    record: &Record,
    place: HeaderPlace,
) -> io::Result<Option<&'static str>> {
    if place.length as usize > HEADER_MAX {
        return Ok(Some("its tar header is impossibly long"));
    }
    let mut header = vec![0; place.length as usize];
    match source.read_exact_at(&mut header, segment.offset + place.offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Some("the aggregate is cut off")),
        result => result?,
    }
    if crc32c(&header) != place.crc {
        return Ok(Some("its tar header has a wrong checksum"));
    }
    let index = record.sequence as u32 as usize;
    let expected = member(identity, segment.sequence, index, &record.entry, record.hidden);
    Ok(match tar_header::decode(&header) {
        Ok((found, length)) if found == expected && length == header.len() => None,
        Ok(_) => Some("its tar header says something else than the TOC"),
        Err(what) => Some(what),
    })
}

fn check_data(
    source: &dyn ReadAt,
    data: &FileData<'_>,
    progress: &mut dyn FnMut(u64),
) -> io::Result<Vec<(u64, String)>> {
    let mut found = Vec::new();
    let mut buffer = ChunkBuffer::default();
    for chunk in 0..data.chunk_count() {
        match data.read_whole_chunk(source, chunk, &mut buffer) {
            Ok(()) => {}
            Err(DataError::Io(error)) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            Err(DataError::Io(_)) => {
                found.push((data.size, "the aggregate is cut off in its data".to_owned()));
                return Ok(found);
            }
            Err(error @ DataError::Checksum(at)) => found.push((at, error.to_string())),
        }
        progress(buffer.len() as u64);
    }
    if FileChecksums::from_chunks(data.checksums.chunks.clone(), data.size) != *data.checksums {
        found.push((0, "its checksums contradict each other".to_owned()));
    }
    let mut padding = vec![0; (data.size.next_multiple_of(SECTOR) - data.size) as usize];
    source.read_exact_at(&mut padding, data.offset + data.size)?;
    if padding.iter().any(|byte| *byte != 0) {
        found.push((data.size, "the padding behind its data is not zero".to_owned()));
    }
    Ok(found)
}
