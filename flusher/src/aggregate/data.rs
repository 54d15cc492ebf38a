//! Reading a file's data, chunk by chunk, each checked before anybody sees it.
//!
//! Bytes whose checksum is wrong never leave this module.

use std::fmt;
use std::io;
use std::ops::Deref;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::BLOCK;
use super::checksum::{CHUNK, FileChecksums, crc32c};
use super::entry::Extent;
use super::reader::ReadAt;

/// What must be known of a file to read its data.
#[derive(Clone, Copy, Debug)]
pub struct FileData<'a> {
    /// Where the data starts in the source.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// What is not a hole.
    pub extents: &'a [Extent],
    /// Checksums of all of it.
    pub checksums: &'a FileChecksums,
}

/// Memory for one chunk, aligned so that it can be read past the page cache.
#[derive(Debug, Default)]
pub struct ChunkBuffer {
    pages: Vec<Page>,
    length: usize,
}

#[derive(Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; BLOCK as usize]);

impl ChunkBuffer {
    /// All memory, at least `length` bytes in whole blocks, and the first `length` of them in use. It holds old bytes.
    fn prepare(&mut self, length: usize) -> &mut [u8] {
        let pages = length.div_ceil(size_of::<Page>());
        if self.pages.len() < pages {
            self.pages.reserve_exact(pages - self.pages.len());
            self.pages.resize_with(pages, Page::new_zeroed);
        }
        self.length = length;
        self.pages.as_mut_bytes()
    }
}

impl Deref for ChunkBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pages.as_bytes()[..self.length]
    }
}

/// Why data cannot be had.
#[derive(Debug)]
pub enum DataError {
    /// Reading failed.
    Io(io::Error),
    /// A chunk is not what was written: where it starts in the file.
    Checksum(u64),
}

impl fmt::Display for DataError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                formatter.write_str("the aggregate is shorter than it was")
            }
            DataError::Io(error) => write!(formatter, "{error}"),
            DataError::Checksum(offset) => write!(formatter, "wrong checksum of the 4 MiB from byte {offset} on"),
        }
    }
}

impl From<io::Error> for DataError {
    fn from(error: io::Error) -> DataError {
        DataError::Io(error)
    }
}

impl FileData<'_> {
    /// How many chunks the file has.
    pub fn chunk_count(&self) -> u64 {
        FileChecksums::chunk_count(self.size)
    }

    /// The data ranges of a chunk: what its extents cover of it.
    pub fn chunk_extents(&self, chunk: u64) -> impl Iterator<Item = Extent> {
        let start = chunk * CHUNK;
        let end = self.size.min(start.saturating_add(CHUNK));
        let first = self.extents.partition_point(|extent| extent.offset + extent.length <= start);
        self.extents[first..].iter().take_while(move |extent| extent.offset < end).map(move |extent| {
            let offset = extent.offset.max(start);
            Extent { offset, length: (extent.offset + extent.length).min(end) - offset }
        })
    }

    /// Reads a chunk's data into `buffer`, holes as zeros, and checks it.
    ///
    /// # Errors
    /// When it cannot be read or is not what was written; the buffer's content is then meaningless.
    pub fn read_chunk(&self, source: &dyn ReadAt, chunk: u64, buffer: &mut ChunkBuffer) -> Result<(), DataError> {
        let (start, length) = self.place(chunk);
        let memory = buffer.prepare(length);
        let mut end_of_data = 0;
        for extent in self.chunk_extents(chunk) {
            let within = (extent.offset - start) as usize;
            memory[end_of_data..within].fill(0);
            end_of_data = within + extent.length as usize;
            // Only the last extent of a file ends within a block: what else is read then lies behind the chunk's end.
            let memory = &mut memory[within..];
            source.read_blocks_at(memory, extent.length as usize, self.offset + extent.offset)?;
        }
        memory[end_of_data..length].fill(0);
        self.check(chunk, buffer)
    }

    /// As [`FileData::read_chunk`], but the holes are read, too: stock readers do not know of them.
    ///
    /// # Errors
    /// As there.
    pub fn read_whole_chunk(&self, source: &dyn ReadAt, chunk: u64, buffer: &mut ChunkBuffer) -> Result<(), DataError> {
        let (start, length) = self.place(chunk);
        source.read_blocks_at(buffer.prepare(length), length, self.offset + start)?;
        self.check(chunk, buffer)
    }

    /// Where a chunk starts in the file, and its length.
    fn place(&self, chunk: u64) -> (u64, usize) {
        let start = chunk * CHUNK;
        (start, CHUNK.min(self.size - start) as usize)
    }

    fn check(&self, chunk: u64, buffer: &[u8]) -> Result<(), DataError> {
        match self.checksums.chunks.get(chunk as usize) {
            Some(expected) if *expected == crc32c(buffer) => Ok(()),
            _ => Err(DataError::Checksum(chunk * CHUNK)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::FileChecksummer;

    #[test]
    fn chunks_are_read_with_their_holes_and_checked() {
        let size = 2 * CHUNK + 10_000;
        let extents = [Extent { offset: 4096, length: CHUNK }, Extent { offset: 2 * CHUNK, length: 10_000 }];
        let mut file = vec![0u8; size as usize];
        for extent in &extents {
            file[extent.offset as usize..(extent.offset + extent.length) as usize].fill(3);
        }
        let mut checksummer = FileChecksummer::default();
        checksummer.data(&file);
        let checksums = checksummer.finish();
        let mut source = [vec![9; 512], file.clone()].concat();
        let data = FileData { offset: 512, size, extents: &extents, checksums: &checksums };
        let mut buffer = ChunkBuffer::default();
        for chunk in 0..3 {
            data.read_chunk(&source, chunk, &mut buffer).unwrap();
            let start = (chunk * CHUNK) as usize;
            assert_eq!(*buffer, file[start..file.len().min(start + CHUNK as usize)]);
            data.read_whole_chunk(&source, chunk, &mut buffer).unwrap();
        }
        let lengths: Vec<u64> =
            (0..3).flat_map(|chunk| data.chunk_extents(chunk)).map(|extent| extent.length).collect();
        assert_eq!(lengths, [CHUNK - 4096, 4096, 10_000]);
        source[512] = 1;
        assert!(data.read_chunk(&source, 0, &mut buffer).is_ok());
        assert!(matches!(data.read_whole_chunk(&source, 0, &mut buffer), Err(DataError::Checksum(0))));
        source[512 + 2 * CHUNK as usize] = 4;
        assert!(matches!(data.read_chunk(&source, 2, &mut buffer), Err(DataError::Checksum(at)) if at == 2 * CHUNK));
        source.truncate(600);
        assert!(matches!(data.read_chunk(&source, 1, &mut buffer), Err(DataError::Io(_))));
    }
}
