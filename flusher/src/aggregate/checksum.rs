//! CRC-32C over file data: per chunk and over the whole, with holes counted as the zeros that they read as.
//!
//! Checksums combine, so chunks may be computed apart and in any order. Nothing here reads or writes files.

use crc_fast::CrcAlgorithm::Crc32Iscsi;
use smallvec::SmallVec;

/// Bytes of a file that one chunk checksum covers.
pub const CHUNK: u64 = 4 << 20;

/// CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(Crc32Iscsi, bytes) as u32
}

/// The checksum of two ranges, one behind the other, from the checksums of each.
pub fn combine(first: u32, second: u32, second_length: u64) -> u32 {
    multiply(first, shift(second_length)) ^ second
}

/// The checksum of `length` zeros, in a time that grows with the logarithm of `length`.
pub fn of_zeros(length: u64) -> u32 {
    !multiply(!0, shift(length))
}

/// The Castagnoli polynomial without its highest term, the coefficient of x^0 in the highest bit, as in all that
/// follows.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The product of two polynomials over GF(2), modulo [`POLYNOMIAL`].
fn multiply(one: u32, other: u32) -> u32 {
    let (mut product, mut term) = (0, other);
    for power in 0..u32::BITS {
        product ^= term & (one >> (u32::BITS - 1 - power) & 1).wrapping_neg();
        term = (term >> 1) ^ (POLYNOMIAL & (term & 1).wrapping_neg());
    }
    product
}

/// By what a checksum is multiplied when `length` bytes follow: x to the power of their bits.
fn shift(length: u64) -> u32 {
    const ONE: u32 = 1 << 31;
    let (mut result, mut square, mut rest) = (ONE, ONE >> 8, length);
    while rest > 0 {
        if rest & 1 == 1 {
            result = multiply(result, square);
        }
        square = multiply(square, square);
        rest >>= 1;
    }
    result
}

/// The checksums of a file's chunks; most files have one, or few.
pub type Chunks = SmallVec<[u32; 4]>;

/// The checksums of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileChecksums {
    /// Over all bytes of the file.
    pub whole: u32,
    /// Over each [`CHUNK`] of the file; the last one may be shorter.
    pub chunks: Chunks,
}

impl FileChecksums {
    /// How many chunk checksums a file of this size has.
    pub fn chunk_count(size_bytes: u64) -> u64 {
        size_bytes.div_ceil(CHUNK)
    }

    /// Puts chunk checksums that were computed apart together.
    pub fn from_chunks(chunks: Chunks, size_bytes: u64) -> FileChecksums {
        // One chunk is the whole.
        let mut whole = chunks.first().copied().unwrap_or(0);
        for (index, chunk) in chunks.iter().enumerate().skip(1) {
            whole = combine(whole, *chunk, CHUNK.min(size_bytes - index as u64 * CHUNK));
        }
        FileChecksums { whole, chunks }
    }
}

/// Computes [`FileChecksums`] from a file's data and holes, given in order.
#[derive(Clone, Debug, Default)]
pub struct FileChecksummer {
    chunk: u32,
    chunk_length: u64,
    size: u64,
    chunks: Chunks,
}

impl FileChecksummer {
    /// The next bytes of the file.
    pub fn data(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let length = bytes.len().min((CHUNK - self.chunk_length) as usize);
            let (now, later) = bytes.split_at(length);
            self.append(crc32c(now), length as u64);
            bytes = later;
        }
    }

    /// The next `length` bytes of the file are a hole.
    pub fn hole(&mut self, mut length: u64) {
        while length > 0 {
            let now = length.min(CHUNK - self.chunk_length);
            self.append(of_zeros(now), now);
            length -= now;
        }
    }

    /// Bytes taken in so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn append(&mut self, checksum: u32, length: u64) {
        self.chunk = if self.chunk_length == 0 { checksum } else { combine(self.chunk, checksum, length) };
        self.chunk_length += length;
        self.size += length;
        if self.chunk_length == CHUNK {
            self.chunks.push(self.chunk);
            self.chunk_length = 0;
        }
    }

    /// The checksums of everything that was taken in.
    pub fn finish(mut self) -> FileChecksums {
        if self.chunk_length > 0 {
            self.chunks.push(self.chunk);
        }
        FileChecksums::from_chunks(self.chunks, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn zeros_are_computed_without_zeros() {
        for length in [0usize, 1, 2, 3, 511, 4096, 65537, CHUNK as usize, CHUNK as usize + 1] {
            assert_eq!(of_zeros(length as u64), crc32c(&vec![0; length]), "{length}");
        }
    }

    #[test]
    fn pieces_and_holes_give_the_checksum_of_the_whole() {
        let mut file: Vec<u8> = (0..2 * CHUNK as usize + 12345).map(|index| ((index * 31) >> 3) as u8).collect();
        file[100_000..5_000_000].fill(0);
        let mut checksummer = FileChecksummer::default();
        checksummer.data(&file[..7]);
        checksummer.data(&file[7..100_000]);
        checksummer.hole(4_900_000);
        checksummer.data(&file[5_000_000..]);
        assert_eq!(checksummer.size(), file.len() as u64);
        let checksums = checksummer.finish();
        assert_eq!(checksums.whole, crc32c(&file));
        let chunks: Vec<u32> = file.chunks(CHUNK as usize).map(crc32c).collect();
        assert_eq!(checksums.chunks[..], chunks[..]);
        assert_eq!(FileChecksummer::default().finish(), FileChecksums::default());
    }
}
