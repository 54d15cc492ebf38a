//! What can still be read of a damaged aggregate: every published segment whose TOC is intact, wherever it lies.
//!
//! A segment is found by its HEAD or, if that is damaged, by the trailer at its end. It counts as published only if its
//! first sector is not zero, or a published one lies behind it: an unpublished segment may hold data that was never
//! right, with checksums that fit. Data is checked when it is read, as ever.

use std::io;

use zerocopy::FromBytes;

use super::BLOCK;
use super::checksum::crc32c;
use super::entry::Identity;
use super::format_entry::FormatError;
use super::raw::{HEAD_MAGIC, HEAD_OFFSET, HEAD_VOID, Head, TRAILER_MAGIC, TRAILER_SIZE, Trailer};
use super::reader::{ReadAt, ReadError, Segment, identify, is_zero, listed};

/// What salvaging found.
#[derive(Clone, Debug)]
pub struct Salvaged {
    /// Whose aggregate it is; when its first block is damaged only the uuid is known.
    pub identity: Identity,
    /// The segments, in order.
    pub segments: Vec<Segment>,
    /// Where published bytes are that belong to none of them: from, to.
    pub lost: Vec<(u64, u64)>,
}

/// Looks for all segments of an aggregate.
///
/// # Errors
/// When the file cannot be read, or nothing in it tells that it is an aggregate.
pub fn salvage(source: &dyn ReadAt) -> Result<Salvaged, ReadError> {
    let identity = match identify(source) {
        Err(error @ ReadError::Format(FormatError::Shared(_))) => return Err(error),
        Err(ReadError::Format(error)) => {
            let uuid = first_uuid(source)?.ok_or(ReadError::Format(error))?;
            Identity {
                uuid,
                node: String::new(),
                job: String::new(),
                incarnation: 0,
                created_ns: 0,
                stage: [0; 16],
                watermark_ns: 0,
                acknowledged_ns: 0,
            }
        }
        result => result?,
    };
    let mut salvaged = Salvaged { identity, segments: Vec::new(), lost: Vec::new() };
    let (mut position, mut published) = (BLOCK, 0);
    while let Some(segment) = next_segment(source, &salvaged.identity, position, salvaged.segments.last())? {
        if segment.offset > position {
            salvaged.lost.push((position, segment.offset));
        }
        position = segment.offset + segment.length;
        let is_published = !is_zero(source, segment.offset)?;
        salvaged.segments.push(segment);
        if is_published {
            published = salvaged.segments.len();
        }
    }
    salvaged.segments.truncate(published);
    let end = salvaged.segments.last().map_or(BLOCK, |segment| segment.offset + segment.length);
    salvaged.lost.retain(|(from, _)| *from < end);
    // Behind the last one: an unpublished segment, or nothing, or one that is lost.
    if end + BLOCK <= source.length()? && !is_zero(source, end)? {
        salvaged.lost.push((end, source.length()?));
    }
    Ok(salvaged)
}

/// Where a published segment lies behind the place at which reading an aggregate has stopped, if there is one.
///
/// # Errors
/// When the file cannot be read.
pub fn published_behind(source: &dyn ReadAt, identity: &Identity, stop: u64) -> io::Result<Option<u64>> {
    let mut position = stop;
    while let Some(segment) = next_segment(source, identity, position, None)? {
        if segment.offset > stop && !is_zero(source, segment.offset)? {
            return Ok(Some(segment.offset));
        }
        position = segment.offset + segment.length;
    }
    Ok(None)
}

/// The uuid of the first HEAD in a file.
fn first_uuid(source: &dyn ReadAt) -> io::Result<Option<[u8; 16]>> {
    let mut block = vec![0; BLOCK as usize];
    for offset in (BLOCK..source.length()?.saturating_sub(BLOCK)).step_by(BLOCK as usize) {
        source.read_exact_at(&mut block, offset)?;
        if let Some(head) = head_in(&block) {
            return Ok(Some(head.uuid));
        }
    }
    Ok(None)
}

/// The HEAD in a block, if it is one.
pub(super) fn head_in(block: &[u8]) -> Option<Head> {
    let bytes = &block[HEAD_OFFSET..HEAD_OFFSET + size_of::<Head>()];
    let head = Head::read_from_bytes(bytes).ok()?;
    (head.magic == HEAD_MAGIC && head.crc.get() == crc32c(&bytes[..bytes.len() - 4])).then_some(head)
}

/// The trailer at the end of these bytes, if there is one.
pub(super) fn trailer_in(block: &[u8]) -> Option<Trailer> {
    let bytes = &block[block.len() - TRAILER_SIZE..];
    let trailer = Trailer::read_from_bytes(bytes).ok()?;
    (trailer.magic == TRAILER_MAGIC && trailer.crc.get() == crc32c(&bytes[..TRAILER_SIZE - 4])).then_some(trailer)
}

/// The next segment that can be read, from a block boundary on.
fn next_segment(
    source: &dyn ReadAt,
    identity: &Identity,
    from: u64,
    before: Option<&Segment>,
) -> io::Result<Option<Segment>> {
    let length = source.length()?;
    let mut block = vec![0; BLOCK as usize];
    let mut offset = from;
    while offset.checked_add(BLOCK).is_some_and(|end| end <= length) {
        source.read_exact_at(&mut block, offset)?;
        let by_head = head_in(&block).filter(|head| head.uuid == identity.uuid);
        let by_trailer = trailer_in(&block).filter(|trailer| trailer.uuid == identity.uuid);
        let found = match (by_head, by_trailer) {
            (Some(head), _) => of_head(source, identity, offset, &head, length)?,
            (None, Some(trailer)) => of_trailer(source, identity, (from, offset + BLOCK), &trailer)?,
            (None, None) => None,
        };
        match found {
            Some(segment) if before.is_none_or(|before| before.sequence < segment.sequence) => {
                return Ok(Some(segment));
            }
            _ => offset += BLOCK,
        }
    }
    Ok(None)
}

fn of_head(
    source: &dyn ReadAt,
    identity: &Identity,
    offset: u64,
    head: &Head,
    file_length: u64,
) -> io::Result<Option<Segment>> {
    let void = head.flags.get() & HEAD_VOID != 0;
    let segment = Segment {
        offset,
        length: head.length.get(),
        sequence: head.sequence.get(),
        void,
        toc_offset: head.toc_offset.get(),
        record_count: head.record_count.get(),
        records: Vec::new(),
    };
    let fits = segment.length >= BLOCK
        && segment.length.is_multiple_of(BLOCK)
        && offset.checked_add(segment.length).is_some_and(|end| end <= file_length);
    if !fits || void {
        return Ok(Some(segment).filter(|_| fits));
    }
    listed(source, identity, segment)
}

fn of_trailer(
    source: &dyn ReadAt,
    identity: &Identity,
    (from, end): (u64, u64),
    trailer: &Trailer,
) -> io::Result<Option<Segment>> {
    let length = trailer.length.get();
    let Some(offset) = end.checked_sub(length).filter(|offset| *offset >= from) else { return Ok(None) };
    let segment = Segment {
        offset,
        length,
        sequence: trailer.sequence.get().into(),
        void: false,
        toc_offset: trailer.toc_offset.get(),
        record_count: trailer.record_count.get().into(),
        records: Vec::new(),
    };
    if length < BLOCK || !length.is_multiple_of(BLOCK) { Ok(None) } else { listed(source, identity, segment) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::tests::{Builder, file, pattern};

    fn three() -> Builder {
        let mut builder = Builder::new(1);
        builder.segment(vec![file("a", &pattern(40_000), 1)]);
        builder.segment(vec![file("b", &pattern(50_000), 2)]);
        builder.segment(vec![file("c", &pattern(60_000), 3)]);
        builder
    }

    fn names(bytes: &[u8]) -> (Vec<String>, usize) {
        let salvaged = salvage(&bytes).unwrap();
        let records = salvaged.segments.iter().flat_map(|segment| &segment.records);
        (records.map(|record| String::from_utf8(record.entry.path.clone()).unwrap()).collect(), salvaged.lost.len())
    }

    #[test]
    fn what_lies_behind_a_damaged_segment_is_found() {
        let builder = three();
        let whole = builder.finished();
        let all = ["a", "b", "c"].map(str::to_owned).to_vec();
        assert_eq!(names(&whole), (all.clone(), 0));
        let (start, end) = (builder.published[1].offset as usize, builder.published[2].offset as usize);
        // The first sector of the HEAD, or the whole, or the first block of the aggregate: all is found by the rest.
        for range in [start..start + 512, start..start + 4096, 0..512, 0..4096] {
            let mut damaged = whole.clone();
            damaged[range].fill(0);
            assert_eq!(names(&damaged), (all.clone(), 0));
        }
        for place in [end - 1, end - 100] {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            assert_eq!(names(&damaged), (["a", "c"].map(str::to_owned).to_vec(), 1), "byte {place}");
        }
        let mut cut = whole.clone();
        cut.truncate(whole.len() - 10_000);
        assert_eq!(names(&cut), (["a", "b"].map(str::to_owned).to_vec(), 1));
    }

    #[test]
    fn what_was_never_published_stays_unseen() {
        let mut builder = three();
        builder.prepare(vec![file("d", &pattern(70_000), 4)]);
        assert_eq!(names(&builder.finished()).0, ["a", "b", "c"]);
        let stop = builder.published[2].offset + builder.published[2].length;
        let identity = builder.identity.clone();
        assert_eq!(published_behind(&builder.finished(), &identity, stop).unwrap(), None);
        let (second, third) = (builder.published[1].offset, builder.published[2].offset);
        builder.bytes[second as usize..second as usize + 512].fill(0);
        assert_eq!(published_behind(&builder.finished(), &identity, second).unwrap(), Some(third));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            cases: 200, failure_persistence: None, ..Default::default()
        })]

        #[test]
        fn damage_never_makes_records_that_were_not_written(
            places in proptest::collection::vec((proptest::prelude::any::<usize>(), proptest::prelude::any::<u8>()), 1..40)
        ) {
            let builder = three();
            let mut bytes = builder.finished();
            for (place, value) in places {
                let place = place % bytes.len();
                bytes[place] = value;
            }
            if let Ok(salvaged) = salvage(&bytes) {
                for segment in salvaged.segments {
                    proptest::prop_assert!(builder.published.contains(&segment));
                }
            }
        }
    }
}
