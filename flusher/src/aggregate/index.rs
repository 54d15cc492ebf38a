//! The sealed index: what the live names of one aggregate are and where their data is, readable in two or three reads.
//!
//! It is a shortcut, never the truth: the TOCs are. Nothing may be cut off or thrown away because of an index.

use std::io;

use xxhash_rust::xxh3::xxh3_64;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::BLOCK;
use super::checksum::crc32c;
use super::entry::{Attributes, Kind};
use super::raw::{TRAILER_MAGIC, TRAILER_SEALED, TRAILER_SIZE, Trailer};
use super::reader::ReadAt;

const MAGIC: [u8; 8] = *b"SHEAFIDX";
const VERSION: u32 = 1;
const HEADER_SIZE: usize = size_of::<RawHeader>();
const ENTRY_SIZE: usize = size_of::<RawEntry>();

/// The index's start.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U32,
    entry_size: U32,
    entry_count: U64,
    /// Where the segment with the index starts: everything before it is described.
    published_end: U64,
    text_length: U64,
    uuid: [u8; 16],
    reserved: [u8; 4],
    /// Over everything behind this structure and the bytes of it before.
    crc: U32,
}

/// One live name; sorted by `hash`, then by path.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    hash: U64,
    data_offset: U64,
    size: U64,
    sequence: U64,
    mtime_seconds: I64,
    mtime_nanoseconds: U32,
    mode: U32,
    uid: U32,
    gid: U32,
    data_crc: U32,
    path_offset: U32,
    kind: U16,
    path_length: U16,
    target_length: U16,
    reserved: U16,
}

const _: () = assert!(HEADER_SIZE == 64);
const _: () = assert!(ENTRY_SIZE == 72);

/// One live name of an aggregate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Path without the leading slash.
    pub path: Vec<u8>,
    /// File, directory or symbolic link.
    pub kind: Kind,
    /// Text of a symbolic link.
    pub target: Vec<u8>,
    /// Mode, owner and time.
    pub attributes: Attributes,
    /// Bytes of a file.
    pub size: u64,
    /// Where a file's data starts in the aggregate.
    pub data_offset: u64,
    /// CRC-32C of a file's data.
    pub data_crc: u32,
    /// The record that holds the chunk checksums.
    pub sequence: u64,
}

/// Encodes the index of an aggregate whose segments end at `published_end`; `None` when it would be larger than its
/// fields allow (4 GiB of names).
pub fn encode(uuid: [u8; 16], published_end: u64, mut entries: Vec<IndexEntry>) -> Option<Vec<u8>> {
    entries.sort_by_cached_key(|entry| (xxh3_64(&entry.path), entry.path.clone()));
    let mut body = Vec::with_capacity(entries.len() * ENTRY_SIZE);
    let mut texts: Vec<u8> = Vec::new();
    for entry in &entries {
        let raw = RawEntry {
            hash: xxh3_64(&entry.path).into(),
            data_offset: entry.data_offset.into(),
            size: entry.size.into(),
            sequence: entry.sequence.into(),
            mtime_seconds: entry.attributes.mtime_seconds.into(),
            mtime_nanoseconds: entry.attributes.mtime_nanoseconds.into(),
            mode: entry.attributes.mode.into(),
            uid: entry.attributes.uid.into(),
            gid: entry.attributes.gid.into(),
            data_crc: entry.data_crc.into(),
            path_offset: u32::try_from(texts.len()).ok()?.into(),
            kind: entry.kind.number().into(),
            path_length: u16::try_from(entry.path.len()).ok()?.into(),
            target_length: u16::try_from(entry.target.len()).ok()?.into(),
            reserved: 0.into(),
        };
        body.extend_from_slice(raw.as_bytes());
        texts.extend_from_slice(&entry.path);
        texts.extend_from_slice(&entry.target);
    }
    let mut header = RawHeader {
        magic: MAGIC,
        version: VERSION.into(),
        entry_size: (ENTRY_SIZE as u32).into(),
        entry_count: (entries.len() as u64).into(),
        published_end: published_end.into(),
        text_length: (texts.len() as u64).into(),
        uuid,
        reserved: [0; 4],
        crc: 0.into(),
    };
    body.extend_from_slice(&texts);
    header.crc = index_crc(&header, &body).into();
    Some([header.as_bytes(), &body].concat())
}

fn index_crc(header: &RawHeader, body: &[u8]) -> u32 {
    let start = crc32c(&header.as_bytes()[..HEADER_SIZE - 4]);
    super::checksum::combine(start, crc32c(body), body.len() as u64)
}

/// A checked index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    bytes: Vec<u8>,
    entry_count: usize,
    published_end: u64,
}

impl Index {
    /// Checks an index's bytes; `None` when they are not an intact index of this aggregate.
    pub fn parse(uuid: [u8; 16], bytes: Vec<u8>) -> Option<Index> {
        let (header, body) = RawHeader::read_from_prefix(&bytes).ok()?;
        let known = header.magic == MAGIC && header.version.get() == VERSION && header.uuid == uuid;
        if !known || header.entry_size.get() as usize != ENTRY_SIZE || header.crc.get() != index_crc(&header, body) {
            return None;
        }
        let entry_count = usize::try_from(header.entry_count.get()).ok()?;
        let table = entry_count.checked_mul(ENTRY_SIZE)?;
        let total = (table as u64).checked_add(header.text_length.get())?;
        let published_end = header.published_end.get();
        (total == body.len() as u64).then_some(Index { bytes, entry_count, published_end })
    }

    /// Reads the index at the end of a sealed aggregate; `Ok(None)` when there is none, or none that can be trusted.
    ///
    /// # Errors
    /// When the aggregate cannot be read.
    pub fn read(source: &dyn ReadAt, uuid: [u8; 16]) -> io::Result<Option<Index>> {
        let Some(end) = source.length()?.checked_sub(BLOCK) else { return Ok(None) };
        let Some(trailer_at) = end.checked_sub(TRAILER_SIZE as u64) else { return Ok(None) };
        let mut bytes = [0; TRAILER_SIZE];
        source.read_exact_at(&mut bytes, trailer_at)?;
        let Ok(trailer) = Trailer::read_from_bytes(&bytes) else { return Ok(None) };
        let intact = trailer.magic == TRAILER_MAGIC && trailer.crc.get() == crc32c(&bytes[..TRAILER_SIZE - 4]);
        if !intact || trailer.flags.get() & TRAILER_SEALED == 0 || trailer.uuid != uuid {
            return Ok(None);
        }
        let Some(start) = end.checked_sub(trailer.length.get()) else { return Ok(None) };
        let size = trailer.toc_offset.get().checked_sub(trailer.index_offset.get());
        let Some(size) = size.filter(|_| trailer.toc_offset.get() <= trailer.length.get()) else { return Ok(None) };
        let mut bytes = vec![0; size as usize];
        source.read_exact_at(&mut bytes, start + trailer.index_offset.get())?;
        let Ok((header, _)) = RawHeader::read_from_prefix(&bytes) else { return Ok(None) };
        // Behind the index lies at most the padding to the next sector.
        let table = header.entry_count.get().checked_mul(ENTRY_SIZE as u64);
        let length =
            table.and_then(|table| table.checked_add(header.text_length.get())?.checked_add(HEADER_SIZE as u64));
        bytes.truncate(length.map_or(0, |length| length.min(size) as usize));
        Ok(Index::parse(uuid, bytes).filter(|index| index.published_end == start))
    }

    /// How many names it has.
    pub fn len(&self) -> usize {
        self.entry_count
    }

    /// Whether it has no names.
    pub fn is_empty(&self) -> bool {
        self.entry_count == 0
    }

    /// The published end of the segments that it describes.
    pub fn published_end(&self) -> u64 {
        self.published_end
    }

    fn raw(&self, number: usize) -> Option<RawEntry> {
        let start = HEADER_SIZE + number * ENTRY_SIZE;
        RawEntry::read_from_bytes(self.bytes.get(start..start + ENTRY_SIZE)?).ok()
    }

    fn text(&self, offset: usize, length: usize) -> Option<&[u8]> {
        let start = (HEADER_SIZE + self.entry_count * ENTRY_SIZE).checked_add(offset)?;
        self.bytes.get(start..start.checked_add(length)?)
    }

    /// The entry of this number, in the order of path hashes.
    pub fn entry(&self, number: usize) -> Option<IndexEntry> {
        if number >= self.entry_count {
            return None;
        }
        let raw = self.raw(number)?;
        let (path_offset, path_length) = (raw.path_offset.get() as usize, usize::from(raw.path_length.get()));
        Some(IndexEntry {
            path: self.text(path_offset, path_length)?.to_vec(),
            kind: Kind::from_number(raw.kind.get())?,
            target: self.text(path_offset + path_length, raw.target_length.get().into())?.to_vec(),
            attributes: Attributes {
                mode: raw.mode.get(),
                uid: raw.uid.get(),
                gid: raw.gid.get(),
                mtime_seconds: raw.mtime_seconds.get(),
                mtime_nanoseconds: raw.mtime_nanoseconds.get(),
            },
            size: raw.size.get(),
            data_offset: raw.data_offset.get(),
            data_crc: raw.data_crc.get(),
            sequence: raw.sequence.get(),
        })
    }

    /// Finds a path by bisection.
    pub fn get(&self, path: &[u8]) -> Option<IndexEntry> {
        let hash = xxh3_64(path);
        let (mut low, mut high) = (0, self.entry_count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.raw(middle)?.hash.get() < hash { low = middle + 1 } else { high = middle }
        }
        (low..self.entry_count)
            .take_while(|number| self.raw(*number).is_some_and(|raw| raw.hash.get() == hash))
            .filter_map(|number| self.entry(number))
            .find(|entry| entry.path == path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(count: u64) -> Vec<IndexEntry> {
        (0..count)
            .map(|number| IndexEntry {
                path: format!("scratch/ckpt/r{number}.dat").into_bytes(),
                kind: if number % 3 == 0 { Kind::Symlink } else { Kind::File },
                target: if number % 3 == 0 { b"x".to_vec() } else { Vec::new() },
                attributes: Attributes { mode: 0o600, uid: 1, gid: 2, mtime_seconds: -3, mtime_nanoseconds: 4 },
                size: number,
                data_offset: number << 20,
                data_crc: number as u32,
                sequence: number,
            })
            .collect()
    }

    #[test]
    fn every_name_is_found_and_no_other() {
        for count in [0, 1, 2, 1000] {
            let index = Index::parse([7; 16], encode([7; 16], 9, entries(count)).unwrap()).unwrap();
            assert_eq!((index.len() as u64, index.published_end()), (count, 9));
            for entry in entries(count) {
                assert_eq!(index.get(&entry.path), Some(entry));
            }
            assert_eq!(index.get(b"scratch/ckpt/none"), None);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let bytes = encode([7; 16], 9, entries(3)).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Index::parse([7; 16], damaged), None, "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(Index::parse([7; 16], bytes[..length].to_vec()), None);
        }
        assert_eq!(Index::parse([8; 16], bytes), None);
    }
}
