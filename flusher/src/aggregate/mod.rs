//! The aggregate file: a tar archive made of published segments. FORMAT.md, beside this file, has every byte.
//!
//! A library with no policy of its own about input and output: [`SegmentPlan`] says what a segment's bytes are, the
//! caller writes them; [`recover`] reads through [`ReadAt`]. It must never trust a length, an offset or a checksum
//! that it has not checked, allocate more than the input is large, or panic on hostile bytes.

mod check;
mod checksum;
mod data;
mod entry;
mod format_entry;
mod index;
mod raw;
mod reader;
mod salvage;
mod segment;
mod shared;
mod tar_header;
mod tar_view;

pub use check::{Damage, check_record};
pub use checksum::{CHUNK, FileChecksummer, FileChecksums, combine, crc32c, of_zeros};
pub use data::{ChunkBuffer, DataError, FileData};
pub use entry::{
    Attributes, Entry, Extent, Extents, FLAG_ACKNOWLEDGED, FLAG_CONTESTED, FLAG_CONTINUED, FLAG_ENDED, FLAG_MOVED,
    FLAG_RENAMED, FLAG_UNCLOSED, HeaderPlace, Identity, Kind, PATH_MAX, Problem, RESERVED, Record, check_name,
};
pub use format_entry::{FormatError, format_entry, shared_format_entry};
pub(crate) use format_entry::{hexadecimal, parse_uuid};
pub use index::{Index, IndexEntry, encode as encode_index};
pub use reader::{ReadAt, ReadError, Recovered, Segment, Stop, identify, recover, recover_from};
pub use salvage::{Salvaged, published_behind, salvage};
pub use segment::{ALIGNED_SIZE, FIRST_SEQUENCE, INDEX_NAME, PlanError, SegmentPlan, void_head};
pub use shared::{
    Part, Range, RangeState, SharedContent, Walked, archive_end, data_from, file_of, is_removed, ranges, recover_shared,
};
pub use tar_view::TarNames;

/// Everything in an aggregate that can be written or published on its own starts on a multiple of this, in bytes.
pub const BLOCK: u64 = 4096;

#[cfg(test)]
pub(crate) mod tests;
