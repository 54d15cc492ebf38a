//! Headers of POSIX tar: ustar, and `x` headers with standard keywords where ustar has no room.
//!
//! Which features are used, and how, was chosen by trying nine tar readers (ARCHITECTURE.md): no `g` headers, no vendor
//! keywords, at most one `x` header per member, and the ustar size is always the true size (base-256 from 8 GiB on).
//! Nothing here may panic on hostile bytes.

use std::borrow::Cow;

use super::entry::Attributes;

/// Bytes of a tar record; everything in an archive is a multiple of it.
pub const SECTOR: u64 = 512;
/// Type of a regular file.
pub const TYPE_FILE: u8 = b'0';
/// Type of a further name of a file.
pub const TYPE_HARD_LINK: u8 = b'1';
/// Type of a symbolic link.
pub const TYPE_SYMLINK: u8 = b'2';
/// Type of a directory.
pub const TYPE_DIRECTORY: u8 = b'5';
/// Type of the header with pax records for the member behind it.
const TYPE_EXTENDED: u8 = b'x';

const NAME_MAX: usize = 100;
const OCTAL_SIZE_MAX: u64 = (1 << 33) - 1;
/// Latest time that ustar has room for, in seconds since 1970.
pub const OCTAL_TIME_MAX: u64 = (1 << 33) - 1;
const OCTAL_ID_MAX: u32 = (1 << 21) - 1;
/// Largest body of an `x` header that is accepted when reading: two paths and an alignment comment are far below.
const EXTENDED_BODY_MAX: u64 = 64 << 10;
/// Longest header of a member, in bytes.
pub const HEADER_MAX: usize = EXTENDED_BODY_MAX as usize + 2 * SECTOR as usize;

/// What tar says about a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// One of the `TYPE_` constants.
    pub typeflag: u8,
    /// Name, with a trailing slash for directories.
    pub path: Cow<'a, [u8]>,
    /// Text of a symbolic link, or the existing name for a hard link.
    pub link: Cow<'a, [u8]>,
    /// Mode, owner and time.
    pub attributes: Attributes,
    /// Bytes of data behind the header.
    pub size: u64,
}

/// `length` rounded up to whole sectors; `None` when that is no 64-bit number.
pub fn padded(length: u64) -> Option<u64> {
    length.checked_next_multiple_of(SECTOR)
}

/// Encodes a member's header: `x` header and body if needed, and the ustar header.
///
/// With `alignment` (where the header will lie, and a block size), the `x` body grows by a `comment` so that the data
/// behind the header starts on a multiple of the block size.
pub fn encode(member: &Member<'_>, alignment: Option<(u64, u64)>) -> Vec<u8> {
    let mut header = Vec::with_capacity(3 * SECTOR as usize);
    encode_into(&mut header, member, alignment);
    header
}

/// The same, in the place of what `header` holds.
pub fn encode_into(header: &mut Vec<u8>, member: &Member<'_>, alignment: Option<(u64, u64)>) {
    const FIRST: usize = SECTOR as usize;
    // The body is made where it will be.
    header.clear();
    header.resize(FIRST, 0);
    extended_records(member, header);
    if let Some((position, block)) = alignment {
        pad_for_alignment(header, position, block);
    }
    let size = header.len() - FIRST;
    if size > 0 {
        let name = [b"PaxHeaders/", extended_name(&member.path)];
        let attributes = Attributes { mode: 0o644, mtime_nanoseconds: 0, ..member.attributes.clone() };
        put_ustar(&mut header[..FIRST], TYPE_EXTENDED, &name, b"", &attributes, size as u64);
        header.resize(header.len().next_multiple_of(FIRST), 0);
        header.resize(header.len() + FIRST, 0);
    }
    let last = header.len() - FIRST;
    put_ustar(&mut header[last..], member.typeflag, &[&member.path], &member.link, &member.attributes, member.size);
}

/// What the `x` header itself is called behind "PaxHeaders/", which only readers that do not know `x` would show.
fn extended_name(path: &[u8]) -> &[u8] {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let base = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    &base[..base.len().min(NAME_MAX - b"PaxHeaders/".len())]
}

/// Appends what only an `x` header can say.
fn extended_records(member: &Member<'_>, body: &mut Vec<u8>) {
    let attributes = &member.attributes;
    let long_path = member.path.len() > NAME_MAX;
    let long_link = member.link.len() > NAME_MAX;
    let binary = |text: &[u8]| std::str::from_utf8(text).is_err();
    if long_path && binary(&member.path) || long_link && binary(&member.link) {
        push_record(body, b"hdrcharset", b"BINARY");
    }
    if long_path {
        push_record(body, b"path", &member.path);
    }
    if long_link {
        push_record(body, b"linkpath", &member.link);
    }
    if attributes.uid > OCTAL_ID_MAX {
        push_record(body, b"uid", attributes.uid.to_string().as_bytes());
    }
    if attributes.gid > OCTAL_ID_MAX {
        push_record(body, b"gid", attributes.gid.to_string().as_bytes());
    }
    if attributes.mtime_nanoseconds != 0 || octal_time(attributes.mtime_seconds).is_none() {
        push_time(body, attributes);
    }
}

fn octal_time(seconds: i64) -> Option<u64> {
    u64::try_from(seconds).ok().filter(|seconds| *seconds <= OCTAL_TIME_MAX)
}

/// The record of a time: seconds with their decimal fraction, as pax has it; the fraction of a negative time counts
/// away from zero.
fn push_time(body: &mut Vec<u8>, attributes: &Attributes) {
    let nanoseconds = i128::from(attributes.mtime_seconds) * 1_000_000_000 + i128::from(attributes.mtime_nanoseconds);
    let (seconds, fraction) = (nanoseconds.unsigned_abs() / 1_000_000_000, nanoseconds.unsigned_abs() % 1_000_000_000);
    let mut text = [b'-'; 1 + u64::MAX.ilog10() as usize + 1 + ".123456789".len()];
    let start = usize::from(nanoseconds >= 0);
    let digits = decimal_digits(seconds as usize);
    put_digits(&mut text[1..1 + digits], seconds as u64, 10);
    let mut end = 1 + digits;
    if fraction > 0 {
        text[end] = b'.';
        put_digits(&mut text[end + 1..end + 10], fraction as u64, 10);
        end += 10;
    }
    push_record(body, b"mtime", &text[start..end]);
}

fn push_record(body: &mut Vec<u8>, keyword: &[u8], value: &[u8]) {
    let rest = keyword.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + decimal_digits(length) {
        length = rest + decimal_digits(length);
    }
    push_decimal(body, length as u64);
    body.push(b' ');
    body.extend_from_slice(keyword);
    body.push(b'=');
    body.extend_from_slice(value);
    body.push(b'\n');
}

fn decimal_digits(number: usize) -> usize {
    number.checked_ilog10().map_or(1, |digits| digits as usize + 1)
}

fn push_decimal(text: &mut Vec<u8>, number: u64) {
    let start = text.len();
    text.resize(start + decimal_digits(number as usize), b'0');
    put_digits(&mut text[start..], number, 10);
}

/// Fills `field` with the digits of `number`. By way of strings it was a good part of what a small file costs.
fn put_digits(field: &mut [u8], number: u64, base: u64) {
    let mut rest = number;
    for digit in field.iter_mut().rev() {
        *digit = b'0' + (rest % base) as u8;
        rest /= base;
    }
    assert_eq!(rest, 0, "{number} has room in its field");
}

/// Pads the body of an `x` header, which follows its sector in `header`, so that the data behind both headers is
/// aligned.
fn pad_for_alignment(header: &mut Vec<u8>, position: u64, block: u64) {
    let body_length = header.len() - SECTOR as usize;
    let data_after = |body_length: usize| {
        let extended = if body_length == 0 { 0 } else { SECTOR + (body_length as u64).next_multiple_of(SECTOR) };
        position + extended + SECTOR
    };
    if data_after(body_length).is_multiple_of(block) {
        return;
    }
    // One sector more than needed leaves room for the shortest comment.
    let mut wanted = (body_length.next_multiple_of(SECTOR as usize)) + SECTOR as usize;
    while !data_after(wanted).is_multiple_of(block) {
        wanted += SECTOR as usize;
    }
    let length = wanted - body_length;
    let fill = length - decimal_digits(length) - b" comment=\n".len();
    push_decimal(header, length as u64);
    header.extend_from_slice(b" comment=");
    header.resize(header.len() + fill, b' ');
    header.push(b'\n');
}

/// Fills a sector of zeros with a ustar header; `path` is in parts.
fn put_ustar(header: &mut [u8], typeflag: u8, path: &[&[u8]], link: &[u8], attributes: &Attributes, size: u64) {
    let header: &mut [u8; SECTOR as usize] = header.try_into().expect("a whole sector");
    put_text(&mut header[0..100], path);
    put_octal(&mut header[100..108], u64::from(attributes.mode & 0o7777));
    put_octal(&mut header[108..116], u64::from(attributes.uid.min(OCTAL_ID_MAX)));
    put_octal(&mut header[116..124], u64::from(attributes.gid.min(OCTAL_ID_MAX)));
    put_size(&mut header[124..136], size);
    let time = octal_time(attributes.mtime_seconds);
    put_octal(&mut header[136..148], time.unwrap_or(if attributes.mtime_seconds < 0 { 0 } else { OCTAL_TIME_MAX }));
    header[156] = typeflag;
    put_text(&mut header[157..257], &[link]);
    header[257..265].copy_from_slice(b"ustar\x0000");
    put_octal(&mut header[329..337], 0);
    put_octal(&mut header[337..345], 0);
    let sum = checksum(header);
    put_octal(&mut header[148..155], sum.into());
    header[155] = b' ';
}

/// A text that is too long is in an `x` record; what is left of it must not look like a directory.
fn put_text(field: &mut [u8], parts: &[&[u8]]) {
    let mut left = &mut field[..];
    for part in parts {
        let count = part.len().min(left.len());
        left[..count].copy_from_slice(&part[..count]);
        left = &mut left[count..];
    }
    let is_cut = parts.iter().map(|part| part.len()).sum::<usize>() > field.len();
    if let Some(last) = field.last_mut().filter(|last| is_cut && **last == b'/') {
        *last = b'_';
    }
}

fn put_octal(field: &mut [u8], number: u64) {
    let digits = field.len() - 1;
    put_digits(&mut field[..digits], number, 8);
}

fn put_size(field: &mut [u8], size: u64) {
    if size <= OCTAL_SIZE_MAX {
        put_octal(field, size);
    } else {
        field[0] = 0x80;
        field[4..12].copy_from_slice(&size.to_be_bytes());
    }
}

/// Sum of the header's bytes with the checksum field taken as spaces.
fn checksum(header: &[u8; SECTOR as usize]) -> u32 {
    // Eight bytes at a time, in four sums of 16 bits: each takes two bytes of each of 64 words.
    const EVEN: u64 = 0x00ff_00ff_00ff_00ff;
    let words = header.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")));
    let sums: u64 = words.map(|word| (word & EVEN) + (word >> 8 & EVEN)).sum();
    let sum: u32 = (0..4).map(|part| (sums >> (16 * part)) as u32 & 0xffff).sum();
    let field: u32 = header[148..156].iter().map(|byte| u32::from(*byte)).sum();
    sum - field + 8 * u32::from(b' ')
}

/// Decodes what [`encode`] makes: the member's header at the start of `bytes`. Returns the member and the length of
/// its header.
///
/// # Errors
/// What is wrong with the header, in words.
pub fn decode(bytes: &[u8]) -> Result<(Member<'static>, usize), &'static str> {
    let mut member = decode_ustar(bytes)?;
    if member.typeflag != TYPE_EXTENDED {
        return Ok((member, SECTOR as usize));
    }
    if member.size == 0 || member.size > EXTENDED_BODY_MAX {
        return Err("an x header of impossible size");
    }
    let body_end = SECTOR as usize + member.size as usize;
    let body = bytes.get(SECTOR as usize..body_end).ok_or("the x header is cut off")?;
    let next = body_end.next_multiple_of(SECTOR as usize);
    let padding = bytes.get(body_end..next).ok_or("the x header is cut off")?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err("the padding of the x header is not zero");
    }
    member = decode_ustar(&bytes[next..])?;
    if member.typeflag == TYPE_EXTENDED {
        return Err("two x headers in a row");
    }
    apply_records(&mut member, body)?;
    Ok((member, next + SECTOR as usize))
}

fn decode_ustar(bytes: &[u8]) -> Result<Member<'static>, &'static str> {
    let header: &[u8; SECTOR as usize] = bytes.first_chunk().ok_or("the header is cut off")?;
    if get_octal(&header[148..156]) != Some(u64::from(checksum(header))) {
        return Err("the header's checksum is wrong");
    }
    if &header[257..265] != b"ustar\x0000" {
        return Err("not a ustar header");
    }
    let number = |field: &[u8]| get_octal(field).ok_or("a number in the header is malformed");
    let mtime_seconds = number(&header[136..148])? as i64;
    Ok(Member {
        typeflag: header[156],
        path: get_text(&header[0..100]).into(),
        link: get_text(&header[157..257]).into(),
        attributes: Attributes {
            mode: number(&header[100..108])? as u32,
            uid: number(&header[108..116])? as u32,
            gid: number(&header[116..124])? as u32,
            mtime_seconds,
            mtime_nanoseconds: 0,
        },
        size: get_size(&header[124..136]).ok_or("the size in the header is malformed")?,
    })
}

fn get_text(field: &[u8]) -> Vec<u8> {
    field.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

fn get_octal(field: &[u8]) -> Option<u64> {
    let end = field.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(field.len());
    let digits = std::str::from_utf8(&field[..end]).ok().filter(|digits| !digits.starts_with('+'))?;
    u64::from_str_radix(digits, 8).ok()
}

fn get_size(field: &[u8]) -> Option<u64> {
    if field[0] != 0x80 {
        return get_octal(field);
    }
    let high = field[1..4].iter().all(|byte| *byte == 0);
    high.then(|| field[4..12].iter().fold(0, |size, byte| size << 8 | u64::from(*byte)))
}

fn apply_records(member: &mut Member<'_>, mut body: &[u8]) -> Result<(), &'static str> {
    while !body.is_empty() {
        let (keyword, value, rest) = split_record(body).ok_or("a record of the x header is malformed")?;
        body = rest;
        let text = std::str::from_utf8(value).ok();
        let number = || text.and_then(|text| text.parse::<u32>().ok()).ok_or("an owner in the x header is malformed");
        match keyword {
            b"path" => member.path = value.to_vec().into(),
            b"linkpath" => member.link = value.to_vec().into(),
            b"uid" => member.attributes.uid = number()?,
            b"gid" => member.attributes.gid = number()?,
            b"mtime" => {
                let time = text.and_then(parse_time).ok_or("the time in the x header is malformed")?;
                (member.attributes.mtime_seconds, member.attributes.mtime_nanoseconds) = time;
            }
            b"comment" | b"hdrcharset" => {}
            _ => return Err("an x record with an unexpected keyword"),
        }
    }
    Ok(())
}

fn split_record(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = body.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&body[..space]).ok()?.parse().ok()?;
    let record = body.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &body[length..]))
}

fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: i128 = format!("{fraction:0<9}").parse().ok()?;
    let total = whole.parse::<u64>().ok()? as i128 * 1_000_000_000 + nanoseconds;
    let total = if negative { -total } else { total };
    let seconds = i64::try_from(total.div_euclid(1_000_000_000)).ok()?;
    Some((seconds, total.rem_euclid(1_000_000_000) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Member<'static> {
        Member {
            typeflag: TYPE_FILE,
            path: b"scratch/a.dat".into(),
            link: b"".into(),
            attributes: Attributes { mode: 0o640, uid: 7, gid: 8, mtime_seconds: 1_700_000_000, mtime_nanoseconds: 0 },
            size: 12,
        }
    }

    fn round_trip(member: &Member<'_>) -> usize {
        let header = encode(member, None);
        assert_eq!(decode(&header), Ok((member.clone(), header.len())));
        header.len()
    }

    #[test]
    fn plain_members_need_one_sector() {
        assert_eq!(round_trip(&member()), 512);
        assert_eq!(round_trip(&Member { path: vec![b'p'; 100].into(), ..member() }), 512);
        assert_eq!(round_trip(&Member { path: b"caf\xe9".into(), ..member() }), 512);
        assert_eq!(round_trip(&Member { size: OCTAL_SIZE_MAX, ..member() }), 512);
    }

    #[test]
    fn sizes_from_eight_gibibytes_on_are_base_256() {
        let large = Member { size: OCTAL_SIZE_MAX + 1, ..member() };
        assert_eq!(round_trip(&large), 512);
        assert_eq!(encode(&large, None)[124..136], [0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
        round_trip(&Member { size: i64::MAX as u64, ..member() });
    }

    #[test]
    fn what_ustar_has_no_room_for_is_in_an_x_header() {
        let with = |change: fn(&mut Attributes)| {
            let mut member = member();
            change(&mut member.attributes);
            member
        };
        for member in [
            with(|attributes| attributes.mtime_nanoseconds = 1),
            with(|attributes| attributes.mtime_seconds = -1),
            with(|attributes| (attributes.mtime_seconds, attributes.mtime_nanoseconds) = (-2, 500_000_000)),
            with(|attributes| attributes.mtime_seconds = 1 << 40),
            with(|attributes| (attributes.uid, attributes.gid) = (u32::MAX - 1, 1 << 21)),
            Member { path: [vec![b'd'; 99], b"/name".to_vec()].concat().into(), ..member() },
            Member { path: vec![b'\xff'; 300].into(), ..member() },
            Member { path: vec![b'\n'; 300].into(), ..member() },
            Member { typeflag: TYPE_SYMLINK, link: vec![b'l'; 4095].into(), size: 0, ..member() },
        ] {
            assert!(round_trip(&member) >= 1536);
        }
        let negative = encode(
            &with(|attributes| (attributes.mtime_seconds, attributes.mtime_nanoseconds) = (-2, 500_000_000)),
            None,
        );
        assert!(negative.windows(20).any(|window| window == b"22 mtime=-1.50000000"));
    }

    #[test]
    fn a_comment_aligns_the_data() {
        for path_length in [10, 99, 101, 480, 490, 495, 500, 505, 510, 1000] {
            for position in (0..16384).step_by(512) {
                let member = Member { path: vec![b'p'; path_length].into(), ..member() };
                let header = encode(&member, Some((position, 4096)));
                assert!((position + header.len() as u64).is_multiple_of(4096));
                assert!(header.len() <= 6144 + path_length);
                assert_eq!(decode(&header), Ok((member, header.len())));
            }
        }
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let header = encode(&Member { path: vec![b'p'; 120].into(), ..member() }, Some((512, 4096)));
        for length in 0..header.len() {
            assert!(decode(&header[..length]).is_err());
        }
        for text in
            ["", "x", "9 path=a", "3 a", "999 path=b\n", "99999999999999999999999 path=b\n", "8 path=\n", "5 p=\n"]
        {
            let _ = apply_records(&mut member(), text.as_bytes());
        }
    }
}
