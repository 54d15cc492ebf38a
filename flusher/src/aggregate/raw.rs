//! The binary structures of a segment, byte for byte as FORMAT.md has them. Little-endian, no padding.
//!
//! Plain data only: what the numbers mean is decided in [`super::segment`] and [`super::reader`].

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First word of the structure in a HEAD.
pub const HEAD_MAGIC: [u8; 8] = *b"SHEAFSEG";
/// First word of the trailer.
pub const TRAILER_MAGIC: [u8; 4] = *b"STOC";
/// Version of both.
pub const VERSION: u32 = 1;
/// Where the structure lies in a HEAD.
pub const HEAD_OFFSET: usize = 1024;
/// The segment has no content: its range was given up.
pub const HEAD_VOID: u32 = 1;
/// The segment carries the sealed index.
pub const TRAILER_SEALED: u16 = 1;
/// The record's extents are listed; without it the whole file is data.
pub const LAYOUT_EXTENTS: u8 = 1;
/// The tar member has a reserved name.
pub const LAYOUT_HIDDEN: u8 = 2;

/// The structure in a HEAD.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Head {
    /// [`HEAD_MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: U32,
    /// [`HEAD_VOID`].
    pub flags: U32,
    /// The segment's place in the aggregate, from 1.
    pub sequence: U64,
    /// Bytes of the segment.
    pub length: U64,
    /// Where the TOC's tar header lies in the segment; 0 in a void one.
    pub toc_offset: U64,
    /// How many records the TOC has.
    pub record_count: U64,
    /// The aggregate's incarnation.
    pub incarnation: U64,
    /// The aggregate's uuid.
    pub uuid: [u8; 16],
    /// Zero.
    pub reserved: [u8; 52],
    /// CRC-32C of the bytes before.
    pub crc: U32,
}

/// A record of the TOC.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawRecord {
    /// Number of the kind.
    pub kind: U16,
    /// Type of the tar member; 0 when there is none.
    pub typeflag: u8,
    /// `LAYOUT_` bits.
    pub layout: u8,
    /// Flags of the entry.
    pub flags: U32,
    /// Mode bits.
    pub mode: U32,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
    /// Fraction of the time of change.
    pub mtime_nanoseconds: U32,
    /// Whole seconds of the time of change.
    pub mtime_seconds: I64,
    /// Order in the aggregate.
    pub sequence: U64,
    /// When it happened.
    pub operation_time_ns: U64,
    /// `ctime` of the staged inode.
    pub change_time_ns: I64,
    /// Number of the staged inode.
    pub inode: U64,
    /// Where the tar member's header lies in the segment; 0 when there is none.
    pub header_offset: U64,
    /// Bytes of that header.
    pub header_length: U32,
    /// Their CRC-32C.
    pub header_crc: U32,
    /// Where the data lies in the segment; 0 when there is none.
    pub data_offset: U64,
    /// Bytes of data.
    pub size: U64,
    /// CRC-32C of the whole data.
    pub data_crc: U32,
    /// How many chunk checksums there are.
    pub chunk_count: U32,
    /// Where they start in the TOC's body.
    pub chunk_offset: U32,
    /// How many extents there are.
    pub extent_count: U32,
    /// Where they start in the TOC's body.
    pub extent_offset: U32,
    /// Where the path starts in the TOC's body.
    pub path_offset: U32,
    /// Where the target starts in the TOC's body.
    pub target_offset: U32,
    /// Bytes of the path.
    pub path_length: U16,
    /// Bytes of the target.
    pub target_length: U16,
}

/// Bytes of a [`RawRecord`].
pub const RECORD_SIZE: usize = size_of::<RawRecord>();

/// An extent in the TOC.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawExtent {
    /// Where in the file.
    pub offset: U64,
    /// Bytes.
    pub length: U64,
}

/// Bytes of a [`RawExtent`].
pub const EXTENT_SIZE: usize = size_of::<RawExtent>();

/// The last bytes of a segment.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Trailer {
    /// [`TRAILER_MAGIC`].
    pub magic: [u8; 4],
    /// The segment's sequence.
    pub sequence: U32,
    /// Where the TOC's tar header lies in the segment.
    pub toc_offset: U64,
    /// Bytes of the segment.
    pub length: U64,
    /// Where the sealed index lies in the segment; 0 when there is none.
    pub index_offset: U64,
    /// How many records the TOC has.
    pub record_count: U32,
    /// CRC-32C from the TOC's tar header to the trailer.
    pub table_crc: U32,
    /// [`TRAILER_SEALED`].
    pub flags: U16,
    /// Bytes of a record.
    pub record_size: U16,
    /// The aggregate's uuid.
    pub uuid: [u8; 16],
    /// CRC-32C of the bytes before.
    pub crc: U32,
}

/// Bytes of a [`Trailer`].
pub const TRAILER_SIZE: usize = size_of::<Trailer>();

const _: () = assert!(size_of::<Head>() == 128);
const _: () = assert!(RECORD_SIZE == 128);
const _: () = assert!(EXTENT_SIZE == 16);
const _: () = assert!(TRAILER_SIZE == 64);
