//! The first block of an aggregate: a text file that says to people and programs what the archive is.
//!
//! An aggregate whose first block does not check out is never read as one.

use super::BLOCK;
use super::checksum::{CHUNK, crc32c};
use super::entry::{Attributes, Identity};
use super::tar_header::{self, Member, SECTOR, TYPE_FILE};

const NAME: &[u8] = b".sheaf/FORMAT";
/// What a file needs that has ranges of several nodes.
const SHARED: &str = "shared";
const TITLE: &str = "SHEAF-AGGREGATE 1";
/// The last line, `crc32c XXXXXXXX`, covers the text before it.
const CRC_LINE: usize = 16;
/// Longest node or job name that is kept, in bytes.
const NAME_MAX: usize = 255;

/// Why a first block is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FormatError {
    /// It is all zero: an aggregate whose flusher died, or still works, before it wrote anything.
    Empty,
    /// It is not the first block of an aggregate.
    NotAnAggregate,
    /// It was one, and bytes of it changed.
    Damaged(&'static str),
    /// It needs a feature that this version does not have.
    Unsupported(String),
    /// It is the first block of a file that several nodes write to, with this uuid; see [`super::recover_shared`].
    Shared([u8; 16]),
}

/// Encodes the first block.
pub fn format_entry(identity: &Identity) -> Vec<u8> {
    block(reserved_header(identity, NAME, BLOCK - SECTOR), identity, "", "")
}

/// Encodes the first block of a file that several nodes write to.
pub fn shared_format_entry(identity: &Identity) -> Vec<u8> {
    block(reserved_header(identity, NAME, BLOCK - SECTOR), identity, SHARED, "")
}

/// A block that says whose something is, behind a tar header, with more lines.
pub(super) fn block(header: Vec<u8>, identity: &Identity, incompatible: &str, lines: &str) -> Vec<u8> {
    let mut block = header;
    block.extend_from_slice(text(identity, incompatible, lines).as_bytes());
    block.resize(BLOCK as usize - CRC_LINE, b'\n');
    let crc = crc32c(&block[SECTOR as usize..]);
    block.extend_from_slice(format!("crc32c {crc:08x}\n").as_bytes());
    block
}

/// The ustar header of one of Sheaf's own members.
pub(super) fn reserved_header(identity: &Identity, name: &[u8], size: u64) -> Vec<u8> {
    tar_header::encode(&reserved_member(identity, name, size), None)
}

/// One of Sheaf's own members.
pub(super) fn reserved_member<'a>(identity: &Identity, name: &'a [u8], size: u64) -> Member<'a> {
    // Never more than fits into ustar: these members have no `x` header.
    let mtime_seconds = (identity.created_ns / 1_000_000_000).min(tar_header::OCTAL_TIME_MAX) as i64;
    let attributes = Attributes { mode: 0o644, uid: 0, gid: 0, mtime_seconds, mtime_nanoseconds: 0 };
    Member { typeflag: TYPE_FILE, path: name.into(), link: b"".into(), attributes, size }
}

/// The first eight hexadecimal digits of the uuid: part of every reserved name, so that aggregates can be joined.
pub(super) fn short_uuid(identity: &Identity) -> String {
    hexadecimal(&identity.uuid[..4])
}

fn text(identity: &Identity, incompatible: &str, lines: &str) -> String {
    let Identity { uuid, node, job, incarnation, created_ns, stage, watermark_ns, acknowledged_ns } = identity;
    format!(
        "{TITLE}\n\
         uuid {}\n\
         node {}\n\
         job {}\n\
         incarnation {incarnation}\n\
         created_ns {created_ns}\n\
         stage {}\n\
         watermark_ns {watermark_ns}\n\
         acknowledged_ns {acknowledged_ns}\n\
         block {BLOCK}\n\
         chunk {CHUNK}\n\
         checksum crc32c\n\
         root /\n\
         compatible \n\
         incompatible {incompatible}\n\
         {lines}\
         \n\
         This is a tar archive. To extract: tar xf ARCHIVE --exclude=.sheaf\n\
         Names lack their leading slash. Where files were renamed or removed after they had\n\
         been written, only `sheaf extract` shows the final names.\n",
        hexadecimal(uuid),
        escape(node),
        escape(job),
        hexadecimal(stage),
    )
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Keeps a value on its line: everything but printable ASCII becomes `%XX`.
fn escape(value: &str) -> String {
    let end = (0..=value.len().min(NAME_MAX)).rev().find(|end| value.is_char_boundary(*end)).unwrap_or(0);
    value.as_bytes()[..end]
        .iter()
        .map(|byte| match byte {
            b'!'..=b'~' if *byte != b'%' => char::from(*byte).to_string(),
            _ => format!("%{byte:02x}"),
        })
        .collect()
}

fn unescape(value: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = value.as_bytes();
    while let Some((&first, others)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(others.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &others[2..];
        } else {
            bytes.push(first);
            rest = others;
        }
    }
    String::from_utf8(bytes).ok()
}

/// Decodes the first block.
///
/// # Errors
/// [`FormatError`].
pub fn parse(block: &[u8]) -> Result<Identity, FormatError> {
    if block.iter().all(|byte| *byte == 0) {
        return Err(FormatError::Empty);
    }
    let (header, body) = block.split_at_checked(SECTOR as usize).ok_or(FormatError::NotAnAggregate)?;
    if !header.starts_with(NAME) || body.len() != (BLOCK - SECTOR) as usize {
        return Err(FormatError::NotAnAggregate);
    }
    let (identity, text) = parse_body(body)?;
    if text.lines().any(|line| line.strip_prefix("incompatible ") == Some(SHARED)) {
        return Err(FormatError::Shared(identity.uuid));
    }
    if header != reserved_header(&identity, NAME, BLOCK - SECTOR) {
        return Err(FormatError::Damaged("the header of FORMAT does not belong to it"));
    }
    Ok(identity)
}

/// Decodes what stands behind the tar header.
pub(super) fn parse_body(body: &[u8]) -> Result<(Identity, &str), FormatError> {
    let split = body.len().checked_sub(CRC_LINE).ok_or(FormatError::NotAnAggregate)?;
    let (covered, crc_line) = body.split_at(split);
    if crc_line != format!("crc32c {:08x}\n", crc32c(covered)).as_bytes() {
        return Err(FormatError::Damaged("the checksum of FORMAT is wrong"));
    }
    let text = std::str::from_utf8(covered).map_err(|_| FormatError::Damaged("FORMAT is not text"))?;
    Ok((parse_text(text)?, text))
}

fn parse_text(text: &str) -> Result<Identity, FormatError> {
    let unsupported = |what: &str| Err(FormatError::Unsupported(what.to_owned()));
    let first_line = text.lines().next().unwrap_or_default();
    if first_line != TITLE {
        return unsupported(first_line);
    }
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.ok_or(FormatError::Damaged("FORMAT lacks a line"))
    };
    let number =
        |key: &str| value(key)?.parse::<u64>().map_err(|_| FormatError::Damaged("FORMAT has a malformed number"));
    if !["", SHARED].contains(&value("incompatible")?) {
        return unsupported(value("incompatible")?);
    }
    if number("block")? != BLOCK || number("chunk")? != CHUNK || value("checksum")? != "crc32c" {
        return unsupported("another block size, chunk size or checksum");
    }
    let name = |key: &str| unescape(value(key)?).ok_or(FormatError::Damaged("FORMAT has a malformed name"));
    Ok(Identity {
        uuid: parse_uuid(value("uuid")?).ok_or(FormatError::Damaged("FORMAT has a malformed uuid"))?,
        node: name("node")?,
        job: name("job")?,
        incarnation: number("incarnation")?,
        created_ns: number("created_ns")?,
        // Earlier aggregates lack these.
        stage: value("stage").ok().and_then(parse_uuid).unwrap_or_default(),
        watermark_ns: number("watermark_ns").unwrap_or_default(),
        acknowledged_ns: number("acknowledged_ns").unwrap_or_default(),
    })
}

pub(crate) fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: &[u8; 32] = text.as_bytes().try_into().ok()?;
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let node = "n\u{e9}%1 2\n".to_owned();
        Identity {
            uuid: *b"0123456789abcdef",
            node,
            job: String::new(),
            incarnation: 3,
            created_ns: u64::MAX,
            stage: *b"fedcba9876543210",
            watermark_ns: u64::MAX,
            acknowledged_ns: 6,
        }
    }

    #[test]
    fn the_block_gives_the_identity_back() {
        let block = format_entry(&identity());
        assert_eq!(block.len() as u64, BLOCK);
        assert_eq!(parse(&block), Ok(identity()));
        let long = Identity { node: "\u{1f600}".repeat(100), job: "\u{1f600}".repeat(100), ..identity() };
        let back = parse(&format_entry(&long)).unwrap();
        assert_eq!(back.node, "\u{1f600}".repeat(63));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let block = format_entry(&identity());
        for bit in 0..block.len() * 8 {
            let mut damaged = block.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn what_needs_a_later_version_is_refused_by_name() {
        let mut block = format_entry(&identity());
        let body =
            String::from_utf8(block[512..4080].to_vec()).unwrap().replacen("incompatible ", "incompatible lz4", 1);
        block.splice(512..4080, body.into_bytes()[..3568].to_vec());
        let crc = format!("{:08x}", crc32c(&block[512..4080]));
        block[4087..4095].copy_from_slice(crc.as_bytes());
        assert_eq!(parse(&block), Err(FormatError::Unsupported("lz4".to_owned())));
        assert_eq!(parse(b"scratch/a"), Err(FormatError::NotAnAggregate));
        assert_eq!(parse(&[1; 4096]), Err(FormatError::NotAnAggregate));
        assert_eq!(parse(&[0; 4096]), Err(FormatError::Empty));
        assert_eq!(parse(b""), Err(FormatError::Empty));
    }
}
