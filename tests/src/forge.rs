//! Aggregates that no flusher writes: a real one is taken apart, its records are changed, and every checksum is made
//! right again, so that nothing but the reader's own care stands between the contents and the files of a user.
//!
//! Written after FORMAT.md alone, with a CRC of its own: it must share no code with the reader that it tests. The fuzz
//! targets include this file as it is.

/// Bytes of a block.
pub const BLOCK: usize = 4096;
const SECTOR: usize = 512;
const HEAD: usize = 1024;
const RECORD: usize = 128;
const TRAILER: usize = 64;

/// Numbers of the kinds of records.
pub mod kind {
    /// A version of a file.
    pub const FILE: u16 = 1;
    /// A directory.
    pub const DIRECTORY: u16 = 2;
    /// A symbolic link.
    pub const SYMLINK: u16 = 3;
    /// A further name.
    pub const HARD_LINK: u16 = 4;
    /// Another name.
    pub const RENAME: u16 = 5;
    /// A file is gone.
    pub const UNLINK: u16 = 6;
}

/// Places of a record's numbers; see FORMAT.md.
pub mod field {
    /// Mode bits, 4 bytes.
    pub const MODE: usize = 8;
    /// Owner, 4 bytes.
    pub const UID: usize = 12;
    /// When it happened, 8 bytes.
    pub const OPERATION_TIME: usize = 40;
    /// Bytes of a file, 8 bytes.
    pub const SIZE: usize = 88;
    /// How many chunk checksums there are, 4 bytes.
    pub const CHUNK_COUNT: usize = 100;
    /// How many extents there are, 4 bytes.
    pub const EXTENT_COUNT: usize = 108;
}

/// One record of a table of contents, in pieces.
#[derive(Clone, Debug)]
pub struct Record {
    /// The fixed part. Places and lengths in it are filled in by [`Aggregate::write`].
    pub fixed: [u8; RECORD],
    /// Its name.
    pub path: Vec<u8>,
    /// Text of a link, new name of a rename.
    pub target: Vec<u8>,
    /// Checksums of its chunks, 4 bytes each.
    pub chunks: Vec<u8>,
    /// Its extents, 16 bytes each.
    pub extents: Vec<u8>,
}

impl Record {
    /// A record that is no member of the tar view.
    pub fn operation(kind: u16, path: &[u8], target: &[u8], time_ns: u64) -> Record {
        let mut fixed = [0; RECORD];
        fixed[0..2].copy_from_slice(&kind.to_le_bytes());
        let mode: u32 = if kind == self::kind::DIRECTORY { 0o755 } else { 0o644 };
        let mut record =
            Record { fixed, path: path.to_vec(), target: target.to_vec(), chunks: Vec::new(), extents: Vec::new() };
        record.set(field::MODE, &mode.to_le_bytes());
        record.set(field::OPERATION_TIME, &time_ns.to_le_bytes());
        record
    }

    /// Writes a number into the fixed part.
    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.fixed[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// A published segment, in pieces.
#[derive(Clone, Debug)]
pub struct Segment {
    head: Vec<u8>,
    /// The tar members, from the segment's first block on.
    pub members: Vec<u8>,
    /// What the table of contents says.
    pub records: Vec<Record>,
}

impl Segment {
    /// Adds a file with its member. `header` is what tar readers are told.
    pub fn add_file(&mut self, path: &[u8], content: &[u8], time_ns: u64, header: &[u8; SECTOR]) -> &mut Record {
        let offset = (BLOCK + self.members.len()) as u64;
        self.members.extend_from_slice(header);
        self.members.extend_from_slice(content);
        self.members.resize(self.members.len().next_multiple_of(SECTOR), 0);
        let mut record = Record::operation(kind::FILE, path, b"", time_ns);
        record.fixed[2] = b'0';
        record.set(64, &offset.to_le_bytes());
        record.set(72, &(SECTOR as u32).to_le_bytes());
        record.set(76, &crc32c(header).to_le_bytes());
        record.set(80, &(offset + SECTOR as u64).to_le_bytes());
        record.set(field::SIZE, &(content.len() as u64).to_le_bytes());
        record.set(96, &crc32c(content).to_le_bytes());
        record.chunks = content.chunks(4 << 20).flat_map(|chunk| crc32c(chunk).to_le_bytes()).collect();
        self.records.push(record);
        self.records.last_mut().expect("one was just added")
    }
}

/// An aggregate, in pieces.
#[derive(Clone, Debug)]
pub struct Aggregate {
    format: Vec<u8>,
    /// Its published segments. The sealed index is left away: it is a shortcut, never the truth.
    pub segments: Vec<Segment>,
}

impl Aggregate {
    /// Takes an intact aggregate apart.
    pub fn read(bytes: &[u8]) -> Aggregate {
        let mut segments = Vec::new();
        let mut at = BLOCK;
        while at + BLOCK <= bytes.len() && bytes[at] != 0 {
            let length = number(bytes, at + HEAD + 24) as usize;
            let segment = read_segment(&bytes[at..at + length]);
            at += length;
            let is_index = segment.records.iter().any(|record| record.fixed[0] == 11);
            segments.extend((!is_index).then_some(segment));
        }
        Aggregate { format: bytes[..BLOCK].to_vec(), segments }
    }

    /// Puts it together: places, lengths and checksums are right, whatever the records say.
    pub fn write(&self) -> Vec<u8> {
        let mut bytes = self.format.clone();
        for (index, segment) in self.segments.iter().enumerate() {
            write_segment(&mut bytes, segment, index as u64 + 1);
        }
        bytes.resize(bytes.len() + BLOCK, 0);
        resign(&mut bytes);
        bytes
    }
}

fn read_segment(bytes: &[u8]) -> Segment {
    let toc = number(bytes, HEAD + 32) as usize;
    let count = number(bytes, HEAD + 40) as usize;
    let body = &bytes[toc + SECTOR..];
    let piece = |at: usize, length: usize| body[at..at + length].to_vec();
    let records = body.chunks_exact(RECORD).take(count).map(|fixed| {
        let word = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]) as usize;
        let half = |at: usize| usize::from(u16::from_le_bytes([fixed[at], fixed[at + 1]]));
        Record {
            fixed: fixed.try_into().expect("records have one size"),
            path: piece(word(116), half(124)),
            target: piece(word(120), half(126)),
            chunks: piece(word(104), 4 * word(field::CHUNK_COUNT)),
            extents: piece(word(112), 16 * word(field::EXTENT_COUNT)),
        }
    });
    Segment { head: bytes[..BLOCK].to_vec(), members: bytes[BLOCK..toc].to_vec(), records: records.collect() }
}

fn write_segment(bytes: &mut Vec<u8>, segment: &Segment, sequence: u64) {
    let start = bytes.len();
    bytes.extend_from_slice(&segment.head);
    bytes.extend_from_slice(&segment.members);
    let toc = bytes.len();
    let records = &segment.records;
    let mut chunks = RECORD * records.len();
    let mut extents = chunks + records.iter().map(|record| record.chunks.len()).sum::<usize>();
    let mut texts = extents + records.iter().map(|record| record.extents.len()).sum::<usize>();
    bytes.resize(toc + SECTOR, 0);
    for (index, record) in records.iter().enumerate() {
        let mut fixed = record.clone();
        fixed.set(32, &(sequence << 32 | index as u64).to_le_bytes());
        fixed.set(field::CHUNK_COUNT, &(record.chunks.len() as u32 / 4).to_le_bytes());
        fixed.set(104, &(chunks as u32).to_le_bytes());
        fixed.set(field::EXTENT_COUNT, &(record.extents.len() as u32 / 16).to_le_bytes());
        fixed.set(112, &(extents as u32).to_le_bytes());
        fixed.set(116, &(texts as u32).to_le_bytes());
        fixed.set(120, &((texts + record.path.len()) as u32).to_le_bytes());
        fixed.set(124, &(record.path.len() as u16).to_le_bytes());
        fixed.set(126, &(record.target.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&fixed.fixed);
        chunks += record.chunks.len();
        extents += record.extents.len();
        texts += record.path.len() + record.target.len();
    }
    bytes.extend(records.iter().flat_map(|record| &record.chunks));
    bytes.extend(records.iter().flat_map(|record| &record.extents));
    bytes.extend(records.iter().flat_map(|record| record.path.iter().chain(&record.target)));
    bytes.resize((bytes.len() + TRAILER).next_multiple_of(BLOCK), 0);
    let length = (bytes.len() - start) as u64;
    put(bytes, start + HEAD + 24, &length.to_le_bytes());
    put(bytes, start + HEAD + 32, &((toc - start) as u64).to_le_bytes());
    put(bytes, start + HEAD + 40, &(records.len() as u64).to_le_bytes());
}

/// Makes every checksum, and every number that is there twice, right again in what may be anything. Data stays as it
/// is.
pub fn resign(bytes: &mut [u8]) {
    if bytes.len() < BLOCK {
        return;
    }
    let text = format!("crc32c {:08x}\n", crc32c(&bytes[SECTOR..BLOCK - 16]));
    put(bytes, BLOCK - 16, text.as_bytes());
    let own = Own::of(bytes);
    let mut start = BLOCK;
    for sequence in 1u64.. {
        if start + BLOCK > bytes.len() || bytes[start..start + SECTOR].iter().all(|byte| *byte == 0) {
            return;
        }
        let length = number(bytes, start + HEAD + 24) as usize;
        let fits = (BLOCK..=bytes.len() - start).contains(&length);
        let end = if fits { start + length } else { start + BLOCK };
        sign_segment(&mut bytes[start..end], &own, sequence);
        if !fits {
            return;
        }
        start += length;
    }
}

fn sign_segment(segment: &mut [u8], own: &Own, sequence: u64) {
    let length = segment.len();
    let toc = number(segment, HEAD + 32) as usize;
    let is_void = segment[HEAD + 12] & 1 != 0;
    let header = if is_void {
        own.header(&format!(".sheaf/void/{sequence:010}"), length - SECTOR)
    } else {
        own.header(&own.segment_name(sequence, "head"), BLOCK - SECTOR)
    };
    put(segment, 0, &header);
    put(segment, HEAD + 16, &sequence.to_le_bytes());
    put(segment, HEAD + 56, &own.uuid);
    let crc = crc32c(&segment[HEAD..HEAD + 124]);
    put(segment, HEAD + 124, &crc.to_le_bytes());
    if is_void || toc < BLOCK || toc > length.saturating_sub(SECTOR + TRAILER) {
        return;
    }
    let header = own.header(&own.segment_name(sequence, "toc"), length - toc - SECTOR);
    put(segment, toc, &header);
    let count = number(segment, HEAD + 40) as u32;
    let trailer = length - TRAILER;
    let table_crc = crc32c(&segment[toc..trailer]);
    put(segment, trailer, b"STOC");
    put(segment, trailer + 4, &(sequence as u32).to_le_bytes());
    put(segment, trailer + 8, &(toc as u64).to_le_bytes());
    put(segment, trailer + 16, &(length as u64).to_le_bytes());
    put(segment, trailer + 32, &count.to_le_bytes());
    put(segment, trailer + 36, &table_crc.to_le_bytes());
    put(segment, trailer + 42, &(RECORD as u16).to_le_bytes());
    put(segment, trailer + 44, &own.uuid);
    let crc = crc32c(&segment[trailer..length - 4]);
    put(segment, length - 4, &crc.to_le_bytes());
}

/// Where the ranges of a file begin that several nodes write to, as their texts tell.
pub fn ranges(bytes: &[u8]) -> Vec<usize> {
    let (mut found, mut at) = (Vec::new(), BLOCK);
    while let Some(length) = bytes.get(at..at + BLOCK).and_then(|block| range_number(block, "length")) {
        found.push(at);
        at += length as usize;
    }
    found
}

/// A number that a range's text tells.
pub fn range_number(block: &[u8], key: &str) -> Option<u64> {
    let text = std::str::from_utf8(&block[SECTOR..]).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?.parse().ok()
}

/// Gives a line of a range's text another value, and makes its checksum right.
pub fn change_range(block: &mut [u8], key: &str, value: &str) {
    let text = String::from_utf8_lossy(&block[SECTOR..BLOCK - 16]).into_owned();
    let is_it = |line: &str| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(' '));
    let changed = |line: &str| if is_it(line) { format!("{key} {value}\n") } else { format!("{line}\n") };
    let mut text: Vec<u8> = text.trim_end().lines().flat_map(|line| changed(line).into_bytes()).collect();
    text.resize(BLOCK - 16 - SECTOR, b'\n');
    let sum = format!("crc32c {:08x}\n", crc32c(&text));
    put(block, SECTOR, &text);
    put(block, BLOCK - 16, sum.as_bytes());
}

/// Gives a tar header another name, as long as the one before at most, and size, and makes its checksum right.
pub fn change_header(sector: &mut [u8], name: &dyn Fn(&str) -> String, size: u64) {
    let length = sector[..100].iter().position(|byte| *byte == 0).unwrap_or(100);
    let changed = name(&String::from_utf8_lossy(&sector[..length]));
    sector[..100].fill(0);
    put(sector, 0, changed.as_bytes());
    if size < 1 << 33 {
        put(sector, 124, format!("{size:011o}\0").as_bytes());
    } else {
        put(sector, 124, &[0x80, 0, 0, 0]);
        put(sector, 128, &size.to_be_bytes());
    }
    sector[148..156].fill(b' ');
    let sum: u32 = sector[..SECTOR].iter().map(|byte| u32::from(*byte)).sum();
    put(sector, 148, format!("{sum:06o}\0 ").as_bytes());
}

/// What an aggregate's own members have in common.
struct Own {
    template: [u8; SECTOR],
    uuid: [u8; 16],
}

impl Own {
    fn of(bytes: &[u8]) -> Own {
        let template = bytes[..SECTOR].try_into().expect("a sector has one size");
        Own { template, uuid: uuid_of(bytes) }
    }

    fn segment_name(&self, sequence: u64, suffix: &str) -> String {
        let [one, two, three, four, ..] = self.uuid;
        format!(".sheaf/seg/{one:02x}{two:02x}{three:02x}{four:02x}-{sequence:010}.{suffix}")
    }

    /// The header of FORMAT with another name and size.
    fn header(&self, name: &str, size: usize) -> [u8; SECTOR] {
        let mut header = self.template;
        header[..100].fill(0);
        put(&mut header, 0, name.as_bytes());
        put(&mut header, 124, format!("{size:011o}\0").as_bytes());
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut header, 148, format!("{sum:06o}\0 ").as_bytes());
        header
    }
}

/// The uuid in FORMAT's text; zeros when there is none.
fn uuid_of(bytes: &[u8]) -> [u8; 16] {
    let text = &bytes[SECTOR..BLOCK];
    let at = text.windows(6).position(|window| window == b"\nuuid ").map_or(0, |start| start + 6);
    let digit = |index: usize| text.get(at + index).and_then(|byte| (*byte as char).to_digit(16)).unwrap_or(0) as u8;
    std::array::from_fn(|index| digit(2 * index) << 4 | digit(2 * index + 1))
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// CRC-32C, bit by bit over a table.
pub fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let (mut crc, mut bit) = (index as u32, 0);
            while bit < 8 {
                crc = if crc & 1 != 0 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[index] = crc;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, byte| crc >> 8 ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize])
}
