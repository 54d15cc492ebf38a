//! A file that several nodes write to: ranges, each of which says whose it is and how long, so that the archive can be
//! walked past those that are still being written, or whose writer died.
//!
//! The ranges of one writer make up an aggregate of their own, its *part* of the file. Who reserves ranges, and how
//! nobody ever gets the same, is decided elsewhere. Nothing here may panic on hostile bytes, or believe a number that
//! it has not checked.

use std::collections::HashMap;
use std::io;

use super::entry::Identity;
use super::format_entry::{self, FormatError, reserved_header, short_uuid};
use super::reader::{ReadAt, ReadError, Recovered, SegmentAt, Stop, segment_at};
use super::segment::FIRST_SEQUENCE;
use super::tar_header::{self, SECTOR};
use super::{BLOCK, Segment};

/// Sequence of the range that makes a part known; it has no segment.
pub const ANNOUNCEMENT: u64 = 0;
/// Segments of this size and more start on a multiple of it: nodes do not write to the same stripe of a file system.
const STRIPE: u64 = 1 << 20;

/// What stock readers see of a range, and whether it counts. Only the first sector of a range ever changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeState {
    /// Somebody writes to it, or has died over it: one member.
    Reserved,
    /// Its segment counts, and is the archive's.
    Published,
    /// It was given up, or what was in it is not needed any more: one member.
    Void,
}

const STATES: [(RangeState, &str); 3] =
    [(RangeState::Reserved, "reserved"), (RangeState::Published, "range"), (RangeState::Void, "void")];

/// A range of a shared file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The part that it belongs to.
    pub identity: Identity,
    /// The uuid of the file.
    pub file: [u8; 16],
    /// Where the part's first range is.
    pub first: u64,
    /// Where in the file.
    pub offset: u64,
    /// Where in the range its segment starts; its length if it has none.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// That of its segment, or [`ANNOUNCEMENT`].
    pub sequence: u64,
}

impl Range {
    /// The range at this offset that a segment of so many bytes takes.
    pub fn of_segment(identity: &Identity, (file, first): ([u8; 16], u64), at: (u64, u64), bytes: u64) -> Range {
        let (offset, sequence) = at;
        let next = offset + BLOCK;
        let segment = if bytes >= STRIPE { next.next_multiple_of(STRIPE) } else { next };
        let start = segment - offset;
        Range { identity: identity.clone(), file, first, offset, start, length: start + bytes, sequence }
    }

    /// The range at this offset that makes a part known.
    pub fn announcement(identity: &Identity, file: [u8; 16], offset: u64) -> Range {
        let identity = identity.clone();
        Range { identity, file, first: offset, offset, start: BLOCK, length: BLOCK, sequence: ANNOUNCEMENT }
    }

    /// Where it ends in the file.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// Its first sector.
    pub fn header(&self, state: RangeState) -> Vec<u8> {
        let length = if state == RangeState::Published { self.start } else { self.length };
        let word = STATES.iter().find(|(known, _)| *known == state).map_or("", |(_, word)| word);
        let name = format!(".sheaf/{word}/{}-{:010}", short_uuid(&self.identity), self.sequence);
        reserved_header(&self.identity, name.as_bytes(), length - SECTOR)
    }

    /// Its first block.
    pub fn block(&self, state: RangeState) -> Vec<u8> {
        format_entry::block(self.header(state), &self.identity, "", &self.lines())
    }

    fn lines(&self) -> String {
        let Range { first, offset, start, length, sequence, .. } = self;
        let file = format_entry::hexadecimal(&self.file);
        format!("file {file}\nfirst {first}\noffset {offset}\nstart {start}\nlength {length}\nsequence {sequence}\n")
    }

    /// What a block says of the range that it begins, whatever its first sector is; only if it lies where it says.
    fn decode(block: &[u8], at: u64) -> Option<Range> {
        let (identity, text) = format_entry::parse_body(block.get(SECTOR as usize..)?).ok()?;
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        let number = |key: &str| value(key)?.parse::<u64>().ok();
        let range = Range {
            identity,
            file: format_entry::parse_uuid(value("file")?)?,
            first: number("first")?,
            offset: number("offset")?,
            start: number("start")?,
            length: number("length")?,
            sequence: number("sequence")?,
        };
        let is_whole = |number: u64| number >= BLOCK && number.is_multiple_of(BLOCK);
        let is_possible = range.offset == at
            && [range.first, range.start, range.length].into_iter().all(is_whole)
            && range.start <= range.length
            && range.first <= at
            && at.checked_add(range.length).is_some();
        is_possible.then_some(range)
    }
}

/// What is at a place where a range may begin.
#[derive(Debug)]
enum Place {
    /// Nothing: the archive ends.
    End,
    /// A range.
    Range(Box<Range>, RangeState),
    /// So many bytes that were reserved when their writer died, before it could say more.
    Begun(u64),
    /// A range that no tar reader gets past.
    Hidden(Box<Range>),
    /// Something that is written to, and of which the file does not have all, as far as is known here.
    Short,
    /// Neither.
    Damaged,
}

/// The state that a first sector tells, and the bytes of the member.
fn member(sector: &[u8]) -> Option<(RangeState, u64)> {
    let (member, _) = tar_header::decode(sector).ok()?;
    let word = member.path.strip_prefix(b".sheaf/")?.split(|byte| *byte == b'/').next()?;
    let state = STATES.iter().find(|(_, known)| known.as_bytes() == word)?.0;
    let length = member.size.checked_add(SECTOR)?;
    length.is_multiple_of(BLOCK).then_some((state, length))
}

fn place(source: &dyn ReadAt, at: u64, file_length: u64) -> io::Result<Place> {
    if at.checked_add(BLOCK).is_none_or(|end| end > file_length) {
        return Ok(Place::End);
    }
    let mut block = vec![0; BLOCK as usize];
    source.read_exact_at(&mut block, at)?;
    let sector = &block[..SECTOR as usize];
    if sector.iter().all(|byte| *byte == 0) {
        return Ok(Place::End);
    }
    let (member, range) = (member(sector), Range::decode(&block, at));
    let length = range.as_ref().map(|range| range.length).or(member.map(|(_, length)| length)).unwrap_or(BLOCK);
    let Some(end) = at.checked_add(length) else { return Ok(Place::Damaged) };
    // The file may have become longer since it was looked at.
    let is_short = end > file_length && end > source.length()?;
    Ok(match (member, range) {
        (Some((RangeState::Reserved, _)), _) if is_short => Place::Short,
        _ if is_short => Place::Damaged,
        (Some((state, _)), Some(range)) if sector == range.header(state) => Place::Range(Box::new(range), state),
        (Some((RangeState::Reserved | RangeState::Void, _)), None) => Place::Begun(length),
        (_, Some(range)) => Place::Hidden(Box::new(range)),
        _ => Place::Damaged,
    })
}

/// Where the archive ends and the next range may begin, looked for from the end of some range on.
///
/// # Errors
/// From the file system; or when the file is damaged, so that nothing may be added to it.
pub fn archive_end(source: &dyn ReadAt, from: u64) -> io::Result<u64> {
    let length = source.length()?;
    let mut at = from;
    loop {
        at += match place(source, at, length)? {
            Place::End => return Ok(at),
            Place::Range(range, _) => range.length,
            Place::Begun(length) => length,
            Place::Hidden(_) | Place::Damaged | Place::Short => {
                return Err(io::Error::other(format!("the shared file is damaged at byte {at}")));
            }
        };
    }
}

/// Where data lies behind the end of an archive, if there is any: whoever writes data to a file that nodes share has a
/// durable header before it, so a header is damaged then, unless somebody has come in between. The block at the end may
/// be a header that a power failure has left half written: it is nobody's.
///
/// # Errors
/// From the file system.
pub fn data_from(source: &dyn ReadAt, end: u64) -> io::Result<Option<u64>> {
    let Some(start) = source.next_data(end.saturating_add(BLOCK))? else { return Ok(None) };
    // A file system that knows no holes calls zeros data; what somebody has written begins with something else.
    let count = source.length()?.saturating_sub(start).min(16 * BLOCK);
    let mut bytes = vec![0; count as usize];
    source.read_exact_at(&mut bytes, start)?;
    Ok(bytes.iter().any(|byte| *byte != 0).then_some(start))
}

/// As [`place`], but for an end that is none: a header is lost there.
fn place_or_lost(source: &dyn ReadAt, at: u64, file_length: u64) -> io::Result<Place> {
    let found = place(source, at, file_length)?;
    if !matches!(found, Place::End) || data_from(source, at)?.is_none() {
        return Ok(found);
    }
    // Unless somebody has begun a range since it was looked at.
    source.forget();
    match place(source, at, source.length()?)? {
        Place::End => Ok(Place::Damaged),
        found => Ok(found),
    }
}

/// All ranges of a file that can be told, with their states.
///
/// # Errors
/// From the file system.
pub fn ranges(source: &dyn ReadAt) -> io::Result<Vec<(Range, RangeState)>> {
    let (length, mut at, mut found) = (source.length()?, BLOCK, Vec::new());
    loop {
        match place_or_lost(source, at, length)? {
            Place::End | Place::Short => return Ok(found),
            Place::Range(range, state) => {
                at = range.end();
                found.push((*range, state));
            }
            Place::Begun(length) => at += length,
            Place::Hidden(range) => at = range.end(),
            Place::Damaged => match next_range(source, None, at, length)? {
                Some(next) => at = next,
                None => return Ok(found),
            },
        }
    }
}

/// Where the next range begins behind something that cannot be read.
fn next_range(source: &dyn ReadAt, file: Option<[u8; 16]>, from: u64, length: u64) -> io::Result<Option<u64>> {
    let mut block = vec![0; BLOCK as usize];
    for at in (from.saturating_add(BLOCK)..length.saturating_sub(BLOCK)).step_by(BLOCK as usize) {
        source.read_exact_at(&mut block, at)?;
        let is_it = |range: Range| file.is_none_or(|file| file == range.file) && range.end() <= length;
        if block.starts_with(b".sheaf/") && Range::decode(&block, at).is_some_and(is_it) {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// How far a shared file has been read.
#[derive(Clone, Debug)]
pub struct Walked {
    /// All before has been looked at.
    end: u64,
    /// Where ranges begin that have to be looked at again.
    pending: Vec<u64>,
}

impl Default for Walked {
    fn default() -> Walked {
        Walked { end: BLOCK, pending: Vec::new() }
    }
}

/// What was found of a part.
#[derive(Clone, Debug)]
pub struct Part {
    /// Where its first range is.
    pub first: u64,
    /// What is new in it.
    pub recovered: Recovered,
    /// It was removed: nothing in it counts.
    pub removed: bool,
}

/// What was found in a shared file.
#[derive(Debug, Default)]
pub struct SharedContent {
    /// The parts of which there is something new, and those that were not known.
    pub parts: Vec<Part>,
    /// Where bytes begin that belong to nothing, if there are any.
    pub damaged: Option<u64>,
    /// Where the archive ends.
    pub end: u64,
}

/// Reads what is new in a shared file. `next_sequence` tells of a part that is known how far it has been read. With
/// `all`, what lies behind a damaged segment of a part is read, too.
///
/// # Errors
/// When the file cannot be read.
pub fn recover_shared(
    source: &dyn ReadAt,
    walked: &mut Walked,
    next_sequence: &dyn Fn([u8; 16]) -> Option<u64>,
    all: bool,
) -> Result<SharedContent, ReadError> {
    let file = file_of(source).ok();
    let length = source.length()?;
    let mut walk = Walk { source, length, next_sequence, all, pending: Vec::new(), parts: HashMap::new() };
    for at in std::mem::take(&mut walked.pending) {
        if let Place::Range(range, state) = place(source, at, length)? {
            walk.take(*range, state)?;
        } else {
            walk.pending.push(at);
        }
    }
    let mut damaged = None;
    loop {
        let at = walked.end;
        walked.end = match place_or_lost(source, at, length)? {
            Place::End | Place::Short => break,
            Place::Range(range, state) => {
                let end = range.end();
                walk.take(*range, state)?;
                end
            }
            Place::Begun(length) => {
                walk.pending.push(at);
                at + length
            }
            Place::Hidden(range) => {
                let end = range.end();
                damaged.get_or_insert(at);
                // Nobody can tell whether it counts.
                if all {
                    walk.take(*range, RangeState::Published)?;
                }
                end
            }
            Place::Damaged => {
                damaged.get_or_insert(at);
                match next_range(source, file, at, length)? {
                    Some(next) => next,
                    // What comes here one day is looked for again.
                    None => break,
                }
            }
        };
    }
    walked.pending = walk.pending;
    if damaged.is_some() {
        // It is told again the next time.
        *walked = Walked::default();
    }
    let end = walked.end;
    let mut parts = Vec::new();
    for Found { mut part, is_doubtful, .. } in walk.parts.into_values() {
        part.removed |= is_doubtful && is_removed(source, part.first, part.recovered.identity.uuid)?;
        parts.push(part);
    }
    parts.sort_by_key(|part| part.first);
    Ok(SharedContent { parts, damaged, end })
}

/// The uuid of a shared file.
///
/// # Errors
/// When it cannot be read, or is none.
pub fn file_of(source: &dyn ReadAt) -> Result<[u8; 16], ReadError> {
    match super::identify(source) {
        Err(ReadError::Format(FormatError::Shared(uuid))) => Ok(uuid),
        Err(error) => Err(error),
        Ok(_) => Err(ReadError::Format(FormatError::NotAnAggregate)),
    }
}

/// Whether a part that begins at this place has been removed, as far as can be told: what is damaged may be there
/// still.
///
/// # Errors
/// When the file cannot be read.
pub fn is_removed(source: &dyn ReadAt, first: u64, uuid: [u8; 16]) -> io::Result<bool> {
    Ok(match place_or_lost(source, first, source.length()?)? {
        Place::End => true,
        Place::Range(range, state) => state != RangeState::Published || range.identity.uuid != uuid,
        Place::Begun(_) | Place::Hidden(_) | Place::Short | Place::Damaged => false,
    })
}

struct Found {
    part: Part,
    /// A range of it is still reserved: it has the sequence that comes next.
    waits: bool,
    /// What was found is so if it has just been removed.
    is_doubtful: bool,
}

struct Walk<'a> {
    source: &'a dyn ReadAt,
    length: u64,
    next_sequence: &'a dyn Fn([u8; 16]) -> Option<u64>,
    all: bool,
    pending: Vec<u64>,
    parts: HashMap<[u8; 16], Found>,
}

impl Walk<'_> {
    fn take(&mut self, range: Range, state: RangeState) -> Result<(), ReadError> {
        let known = (self.next_sequence)(range.identity.uuid);
        let found = self.parts.entry(range.identity.uuid).or_insert_with(|| Found {
            part: Part {
                first: range.first,
                recovered: Recovered {
                    identity: range.identity.clone(),
                    length: 0,
                    segments: Vec::new(),
                    published_end: range.first + BLOCK,
                    next_sequence: known.unwrap_or(FIRST_SEQUENCE),
                    stop: Stop::End,
                },
                removed: false,
            },
            waits: false,
            is_doubtful: false,
        });
        if range.sequence == ANNOUNCEMENT {
            found.part.removed |= state == RangeState::Void;
            if state == RangeState::Reserved {
                self.pending.push(range.offset);
                found.part.removed = true;
            }
            return Ok(());
        }
        let recovered = &mut found.part.recovered;
        let is_known = range.sequence < recovered.next_sequence;
        if found.part.removed || is_known || state == RangeState::Void {
            found.is_doubtful |= !is_known;
            return Ok(());
        }
        recovered.length += range.length;
        if state == RangeState::Reserved || found.waits {
            // What its writer publishes later comes after it.
            found.waits = true;
            self.pending.push(range.offset);
            return Ok(());
        }
        match read(self.source, self.length, &range, recovered, self.all)? {
            Ok(segment) => {
                recovered.length -= range.length;
                recovered.published_end = range.end();
                recovered.next_sequence = segment.sequence + 1;
                recovered.segments.push(segment);
            }
            Err(reason) => {
                recovered.stop = Stop::Damaged(reason);
                found.is_doubtful = true;
                // It is told again the next time.
                self.pending.push(range.offset);
            }
        }
        Ok(())
    }
}

/// The segment of a range that is published, or what is wrong with it.
fn read(
    source: &dyn ReadAt,
    file_length: u64,
    range: &Range,
    recovered: &Recovered,
    all: bool,
) -> Result<Result<Segment, String>, ReadError> {
    if range.sequence != recovered.next_sequence && !all {
        return Ok(Err(format!("segment {} of its node is missing", recovered.next_sequence)));
    }
    let at = SegmentAt { offset: range.offset + range.start, sequence: range.sequence };
    Ok(match segment_at(source, file_length, &range.identity, at)? {
        Ok(segment) if segment.length == range.length - range.start => Ok(segment),
        Ok(_) => Err("its HEAD has another length than its range".to_owned()),
        Err(reason) => Err(reason),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Builder, file};
    use super::*;

    const FILE: [u8; 16] = [0xf1; 16];

    /// A shared file that is being written.
    struct Shared {
        bytes: Vec<u8>,
        end: u64,
    }

    impl Shared {
        fn new() -> Shared {
            let identity = Identity { uuid: FILE, ..Builder::new(0).identity };
            let mut bytes = super::super::shared_format_entry(&identity);
            bytes.resize(4 << 20, 0);
            Shared { bytes, end: BLOCK }
        }

        fn put(&mut self, at: u64, bytes: &[u8]) {
            self.bytes[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        }

        fn add(&mut self, range: &Range, state: RangeState) {
            self.put(range.offset, &range.block(state));
            self.end = range.end();
        }

        fn announce(&mut self, builder: &Builder) -> u64 {
            let range = Range::announcement(&builder.identity, FILE, self.end);
            self.add(&range, RangeState::Published);
            range.first
        }

        /// A range of which all is written but whether it counts.
        fn reserve(&mut self, builder: &mut Builder, first: u64, path: &str, content: &[u8], time: u64) -> Range {
            let sequence = builder.sequence;
            let before = builder.bytes.len();
            builder.segment(vec![file(path, content, time)]);
            let segment = builder.bytes.split_off(before);
            let range = Range::of_segment(&builder.identity, (FILE, first), (self.end, sequence), segment.len() as u64);
            self.add(&range, RangeState::Reserved);
            self.put(range.offset + range.start, &segment);
            range
        }

        fn set(&mut self, range: &Range, state: RangeState) {
            self.put(range.offset, &range.header(state));
        }

        /// Of each part: its node's name and the paths in it, in order.
        fn found(&self, walked: &mut Walked, known: &HashMap<[u8; 16], u64>) -> Vec<(String, Vec<String>)> {
            let content = recover_shared(&self.bytes, walked, &|uuid| known.get(&uuid).copied(), false).unwrap();
            let paths = |part: &Part| {
                let records = part.recovered.segments.iter().flat_map(|segment| &segment.records);
                records.map(|record| String::from_utf8(record.entry.path.clone()).unwrap()).collect()
            };
            let there = content.parts.iter().filter(|part| !part.removed);
            there.map(|part| (part.recovered.identity.node.clone(), paths(part))).collect()
        }

        fn all(&self) -> Vec<(String, Vec<String>)> {
            self.found(&mut Walked::default(), &HashMap::new())
        }

        /// What a tar reader lists.
        fn listed(&self) -> Vec<String> {
            let mut archive = tar::Archive::new(&self.bytes[..]);
            let entries = archive.entries().unwrap();
            let path = |entry: io::Result<tar::Entry<'_, &[u8]>>| entry.unwrap().path().unwrap().display().to_string();
            entries.map(path).filter(|path| !path.starts_with(".sheaf")).collect()
        }
    }

    fn expected(parts: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
        let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        parts.iter().map(|(node, paths)| ((*node).to_owned(), owned(paths))).collect()
    }

    #[test]
    fn ranges_of_several_nodes_are_told_apart_and_those_that_are_written_passed_over() {
        let (mut one, mut two) = (Builder::new(1), Builder::new(2));
        let mut shared = Shared::new();
        let (first, second) = (shared.announce(&one), shared.announce(&two));
        let large = vec![7; 1 << 20];
        let a = shared.reserve(&mut one, first, "a", &large, 1);
        assert!((a.offset + a.start).is_multiple_of(STRIPE), "large segments start on a stripe");
        let b = shared.reserve(&mut two, second, "b", b"b", 2);
        let mut walked = Walked::default();
        assert_eq!(shared.found(&mut walked, &HashMap::new()), expected(&[("node1", &[]), ("node2", &[])]));
        shared.set(&b, RangeState::Published);
        assert_eq!(
            (shared.all(), shared.listed()),
            (expected(&[("node1", &[]), ("node2", &["b"])]), vec!["b".to_owned()])
        );
        let c = shared.reserve(&mut one, first, "c", b"c", 3);
        // Published meanwhile, and looked at only then: what is before it comes first.
        shared.set(&c, RangeState::Published);
        assert_eq!(shared.all()[0], expected(&[("node1", &[])])[0]);
        let known = HashMap::from([(one.identity.uuid, 1), (two.identity.uuid, 1)]);
        assert_eq!(shared.found(&mut walked, &known), expected(&[("node1", &[]), ("node2", &["b"])]));
        shared.set(&a, RangeState::Published);
        let known = HashMap::from([(one.identity.uuid, 1), (two.identity.uuid, 2)]);
        assert_eq!(shared.found(&mut walked, &known), expected(&[("node1", &["a", "c"])]));
        assert_eq!(shared.listed(), ["a", "b", "c"]);
        assert_eq!(archive_end(&shared.bytes, BLOCK).unwrap(), shared.end);
    }

    #[test]
    fn a_part_whose_first_range_is_void_is_gone() {
        let (mut one, mut two) = (Builder::new(1), Builder::new(2));
        let mut shared = Shared::new();
        let (first, second) = (shared.announce(&one), shared.announce(&two));
        for (builder, first, path) in [(&mut one, first, "a"), (&mut two, second, "b")] {
            let range = shared.reserve(builder, first, path, b"x", 1);
            shared.set(&range, RangeState::Published);
        }
        let announcement = Range::announcement(&one.identity, FILE, first);
        shared.set(&announcement, RangeState::Void);
        assert_eq!(shared.all(), expected(&[("node2", &["b"])]));
        assert_eq!(shared.listed(), ["a", "b"], "stock readers see its files until they are gone, too");
        assert!(is_removed(&shared.bytes, first, one.identity.uuid).unwrap());
        assert!(!is_removed(&shared.bytes, second, two.identity.uuid).unwrap());
    }

    /// What a power failure leaves of a block that was being written is walked past or over, and the next range
    /// follows.
    #[test]
    fn torn_reservations_end_nothing() {
        let mut one = Builder::new(1);
        let mut shared = Shared::new();
        let first = shared.announce(&one);
        let end = shared.end;
        let range = shared.reserve(&mut one, first, "a", b"a", 1);
        // Nothing else is written before it is durable.
        shared.put(range.offset + range.start, &vec![0; (range.length - range.start) as usize]);
        let whole = shared.bytes.clone();
        for sectors in 0..8u32 {
            for kept in [(1u32 << sectors) - 1, !((1 << sectors) - 1)] {
                shared.bytes.clone_from(&whole);
                for sector in (0..8).filter(|sector| kept >> sector & 1 == 0) {
                    shared.put(end + sector * SECTOR, &[0; SECTOR as usize]);
                }
                let next = archive_end(&shared.bytes, BLOCK).unwrap();
                assert_eq!(next, if kept & 1 == 0 { end } else { range.end() }, "{kept:b}");
                assert_eq!((shared.all(), shared.listed().len()), (expected(&[("node1", &[])]), 0));
            }
        }
    }

    #[test]
    fn damage_hides_nothing_of_other_nodes() {
        let (mut one, mut two) = (Builder::new(1), Builder::new(2));
        let mut shared = Shared::new();
        let (first, second) = (shared.announce(&one), shared.announce(&two));
        let mut places = vec![first, first + 700];
        for (path, time) in [("a", 1), ("b", 2)] {
            let range = shared.reserve(&mut one, first, path, b"x", time);
            shared.set(&range, RangeState::Published);
            let segment = range.offset + range.start;
            places.extend([range.offset, range.offset + 700, segment, segment + 1100, range.end() - 64]);
            let range = shared.reserve(&mut two, second, &format!("{path}2"), b"y", time);
            shared.set(&range, RangeState::Published);
        }
        let whole = shared.bytes.clone();
        for at in places {
            shared.bytes.clone_from(&whole);
            shared.bytes[at as usize] ^= 0x40;
            let found = shared.all();
            let of = |name: &str| found.iter().find(|(node, _)| node == name).map(|(_, paths)| &paths[..]);
            assert_eq!(of("node2"), Some(&["a2".to_owned(), "b2".to_owned()][..]), "byte {at}");
            assert!(of("node1").is_none_or(|paths| ["a".to_owned(), "b".to_owned()].starts_with(paths)), "byte {at}");
        }
    }

    /// A header of zeros looks like the archive's end: what lies behind it tells that it is none.
    #[test]
    fn a_header_that_is_gone_does_not_end_the_archive() {
        let (mut one, mut two) = (Builder::new(1), Builder::new(2));
        let mut shared = Shared::new();
        let first = shared.announce(&one);
        let a = shared.reserve(&mut one, first, "a", b"x", 1);
        shared.set(&a, RangeState::Published);
        let second = shared.announce(&two);
        let b = shared.reserve(&mut two, second, "b", b"y", 2);
        shared.set(&b, RangeState::Published);
        let whole = shared.bytes.clone();
        for (lost, expected) in [
            (first, expected(&[("node1", &["a"]), ("node2", &["b"])])),
            (a.offset, expected(&[("node1", &[]), ("node2", &["b"])])),
            (second, expected(&[("node1", &["a"]), ("node2", &["b"])])),
            (b.offset, expected(&[("node1", &["a"]), ("node2", &[])])),
        ] {
            for bytes in [SECTOR, BLOCK] {
                shared.bytes.clone_from(&whole);
                shared.put(lost, &vec![0; bytes as usize]);
                let content = recover_shared(&shared.bytes, &mut Walked::default(), &|_| None, false).unwrap();
                // What is left of the text tells whose it was.
                let is_told =
                    content.damaged == Some(lost) || content.parts.iter().any(|part| part.recovered.stop != Stop::End);
                assert!(is_told, "{lost}");
                assert_eq!(shared.all(), expected, "byte {lost}, {bytes} bytes");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn damage_never_makes_records_that_were_not_written(
            places in proptest::collection::vec((0usize..40_000, proptest::prelude::any::<u8>()), 1..40)
        ) {
            let mut one = Builder::new(1);
            let mut shared = Shared::new();
            let first = shared.announce(&one);
            for (path, time) in [("a", 1), ("b", 2)] {
                let range = shared.reserve(&mut one, first, path, b"x", time);
                shared.set(&range, RangeState::Published);
            }
            shared.bytes.truncate(64 << 10);
            for (place, value) in places {
                shared.bytes[place] = value;
            }
            for all in [false, true] {
                let content = recover_shared(&shared.bytes, &mut Walked::default(), &|_| None, all);
                for segment in content.into_iter().flat_map(|content| content.parts).flat_map(|part| part.recovered.segments) {
                    let records = one.published.iter().map(|published| &published.records);
                    proptest::prop_assert!(records.clone().any(|records| *records == segment.records));
                }
            }
            let _ = archive_end(&shared.bytes, BLOCK);
            let _ = ranges(&shared.bytes);
        }
    }
}
