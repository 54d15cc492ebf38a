//! Reading a file's data, chunk by chunk, each checked before anybody sees it.
//!
//! Bytes whose checksum is wrong never leave this module.

use std::fmt;
use std::io;

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
    pub fn read_chunk(&self, source: &dyn ReadAt, chunk: u64, buffer: &mut Vec<u8>) -> Result<(), DataError> {
        let start = self.prepare(chunk, buffer);
        for extent in self.chunk_extents(chunk) {
            let within = (extent.offset - start) as usize;
            let part = &mut buffer[within..within + extent.length as usize];
            source.read_exact_at(part, self.offset + extent.offset)?;
        }
        self.check(chunk, buffer)
    }

    /// As [`FileData::read_chunk`], but the holes are read, too: stock readers do not know of them.
    ///
    /// # Errors
    /// As there.
    pub fn read_whole_chunk(&self, source: &dyn ReadAt, chunk: u64, buffer: &mut Vec<u8>) -> Result<(), DataError> {
        let start = self.prepare(chunk, buffer);
        source.read_exact_at(buffer, self.offset + start)?;
        self.check(chunk, buffer)
    }

    fn prepare(&self, chunk: u64, buffer: &mut Vec<u8>) -> u64 {
        let start = chunk * CHUNK;
        buffer.clear();
        buffer.resize(CHUNK.min(self.size - start) as usize, 0);
        start
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
        let mut buffer = Vec::new();
        for chunk in 0..3 {
            data.read_chunk(&source, chunk, &mut buffer).unwrap();
            let start = (chunk * CHUNK) as usize;
            assert_eq!(buffer, file[start..file.len().min(start + CHUNK as usize)]);
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
