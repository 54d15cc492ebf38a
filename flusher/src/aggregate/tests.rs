//! Whole aggregates: what is written comes back, stock tar sees the same, and damage is never mistaken for data.

use std::io::Read;

use proptest::prelude::*;

use super::*;

/// Builds aggregates in memory; also used by the tests of the store.
pub(crate) struct Builder {
    pub identity: Identity,
    pub bytes: Vec<u8>,
    pub names: TarNames,
    pub sequence: u64,
    pub published: Vec<Segment>,
}

impl Builder {
    pub fn new(number: u8) -> Builder {
        let identity = Identity {
            uuid: [number; 16],
            node: format!("node{number}"),
            job: "42".to_owned(),
            incarnation: 1,
            created_ns: 1_700_000_000_000_000_000,
            stage: [0; 16],
            watermark_ns: 0,
            acknowledged_ns: 0,
        };
        let bytes = format_entry(&identity);
        Builder { identity, bytes, names: TarNames::default(), sequence: FIRST_SEQUENCE, published: Vec::new() }
    }

    /// Appends a segment that is complete but for its publication. Returns its plan and checksums.
    pub fn prepare(&mut self, entries: Vec<(Entry, Vec<u8>)>) -> (SegmentPlan, Vec<Option<FileChecksums>>) {
        let (entries, contents): (Vec<Entry>, Vec<Vec<u8>>) = entries.into_iter().unzip();
        let plan = SegmentPlan::new(&self.identity, self.sequence, entries, &mut self.names).unwrap();
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&plan.unpublished_head());
        self.bytes.resize(start + plan.length() as usize, 0);
        let mut checksums = Vec::new();
        for (index, content) in contents.iter().enumerate() {
            if let Some((offset, header)) = plan.header(index) {
                self.put(start + offset as usize, &header);
            }
            checksums.push(plan.data_offset(index).map(|offset| {
                self.put(start + offset as usize, content);
                let mut checksummer = FileChecksummer::default();
                checksummer.data(content);
                checksummer.finish()
            }));
        }
        self.put(start + plan.toc_offset() as usize, &plan.toc(&checksums));
        (plan, checksums)
    }

    pub fn segment(&mut self, entries: Vec<(Entry, Vec<u8>)>) {
        let start = self.bytes.len();
        let (plan, checksums) = self.prepare(entries);
        self.put(start, &plan.head());
        self.published.push(plan.into_segment(start as u64, checksums));
        self.sequence += 1;
    }

    pub fn void(&mut self, length: u64) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&void_head(&self.identity, self.sequence, length));
        self.bytes.resize(start + length as usize, 0xee);
        let (offset, sequence) = (start as u64, self.sequence);
        self.published.push(Segment {
            offset,
            length,
            sequence,
            void: true,
            toc_offset: 0,
            record_count: 0,
            records: Vec::new(),
        });
        self.sequence += 1;
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub fn finished(&self) -> Vec<u8> {
        [&self.bytes[..], &[0; BLOCK as usize]].concat()
    }
}

pub(crate) fn entry(kind: Kind, path: &str, target: &str, time_ns: u64) -> (Entry, Vec<u8>) {
    let attributes =
        Attributes { mode: 0o640, uid: 1000, gid: 100, mtime_seconds: 1_700_000_001, mtime_nanoseconds: 5 };
    let entry = Entry {
        kind,
        path: path.into(),
        target: target.into(),
        attributes,
        size: 0,
        extents: Extents::new(),
        operation_time_ns: time_ns,
        change_time_ns: -7,
        inode: 99,
        flags: 0,
    };
    (entry, Vec::new())
}

pub(crate) fn file(path: &str, content: &[u8], time_ns: u64) -> (Entry, Vec<u8>) {
    let (mut entry, _) = entry(Kind::File, path, "", time_ns);
    entry.size = content.len() as u64;
    entry.extents = Entry::dense_extents(entry.size);
    (entry, content.to_vec())
}

pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 131 + index / 251) as u8 | 1).collect()
}

fn sample() -> Builder {
    let mut builder = Builder::new(1);
    builder.segment(vec![
        file("run/a", b"alpha", 1),
        entry(Kind::Directory, "run/d", "", 2),
        file("run/empty", b"", 3),
    ]);
    builder.segment(vec![file("run/big", &pattern(40_000), 4), entry(Kind::HardLink, "run/l", "run/big", 5)]);
    builder.segment(vec![
        entry(Kind::Rename, "run/a", "run/b", 6),
        entry(Kind::Symlink, "run/latest", "b", 7),
        file("run/c", &pattern(700), 8),
    ]);
    builder
}

fn damages(bytes: &[u8]) -> Result<Vec<Damage>, Stop> {
    let recovered = recover(&bytes).map_err(|error| Stop::Damaged(error.to_string()))?;
    if let Stop::Damaged(_) = recovered.stop {
        return Err(recovered.stop);
    }
    let mut damages = Vec::new();
    for segment in &recovered.segments {
        for record in &segment.records {
            damages.extend(check_record(&bytes, &recovered.identity, segment, record, &mut |_| {}).unwrap());
        }
    }
    Ok(damages)
}

#[test]
fn what_is_written_comes_back() {
    let builder = sample();
    let recovered = recover(&builder.finished()).unwrap();
    assert_eq!(recovered.identity, builder.identity);
    assert_eq!(recovered.segments, builder.published);
    assert_eq!(recovered.stop, Stop::Unpublished);
    assert_eq!((recovered.published_end, recovered.next_sequence), (builder.bytes.len() as u64, 4));
    assert_eq!(recover(&builder.bytes).unwrap().stop, Stop::End);
    assert_eq!(damages(&builder.finished()), Ok(Vec::new()));
    let big = &recovered.segments[1].records[0];
    assert_eq!((builder.published[1].offset + big.data_offset.unwrap()) % BLOCK, 0);
}

#[test]
fn a_time_that_nothing_can_come_after_is_refused() {
    let mut builder = Builder::new(1);
    for time_ns in [1 << 63, u64::MAX] {
        let (entry, _) = entry(Kind::Unlink, "run/a", "", time_ns);
        let plan = SegmentPlan::new(&builder.identity, 1, vec![entry], &mut builder.names);
        assert_eq!(plan.map(|_| ()).unwrap_err().problem, Problem::Attributes);
    }
}

#[test]
fn an_aggregate_that_grows_is_read_on_from_its_last_end() {
    let mut builder = sample();
    let before = recover(&builder.finished()).unwrap();
    builder.void(3 * BLOCK);
    builder.segment(vec![file("run/late", b"late", 9)]);
    let after = recover_from(&builder.finished(), before.published_end, before.next_sequence).unwrap();
    assert_eq!(after.segments, builder.published[3..]);
    assert!(after.segments[0].void);
    assert_eq!(recover(&builder.finished()).unwrap().segments, builder.published);
}

/// A file that grows by whole segments between the first look at its length and the first byte read.
struct Growing {
    bytes: Vec<u8>,
    first_length: u64,
    looks: std::cell::Cell<u32>,
}

impl ReadAt for Growing {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.bytes.read_exact_at(buffer, offset)
    }

    fn length(&self) -> std::io::Result<u64> {
        self.looks.set(self.looks.get() + 1);
        if self.looks.get() == 1 { Ok(self.first_length) } else { self.bytes.length() }
    }
}

#[test]
fn an_aggregate_that_grows_while_it_is_read_is_not_damaged() {
    let builder = sample();
    let bytes = builder.finished();
    let whole = recover(&bytes).unwrap();
    for first_length in (BLOCK..=bytes.len() as u64).step_by(BLOCK as usize) {
        let growing = Growing { bytes: bytes.clone(), first_length, looks: 0.into() };
        let found = recover(&growing).unwrap();
        assert!(!matches!(found.stop, Stop::Damaged(_)), "{first_length}: {:?}", found.stop);
        assert!(whole.segments.starts_with(&found.segments), "{first_length}");
    }
}

/// What was published behind it tells that a HEAD is lost, or the index that the aggregate was sealed with.
#[test]
fn a_head_that_is_lost_does_not_look_unpublished() {
    let builder = sample();
    let whole = builder.finished();
    let last = builder.published.len() - 1;
    for (index, segment) in builder.published.iter().enumerate() {
        let mut lost = whole.clone();
        lost[segment.offset as usize..][..512].fill(0);
        let found = recover(&lost).unwrap();
        assert_eq!(found.segments, builder.published[..index]);
        assert_eq!(matches!(found.stop, Stop::Damaged(_)), index != last, "{index}: {:?}", found.stop);
    }
}

#[test]
fn an_unpublished_segment_is_invisible() {
    let mut builder = sample();
    let expected = builder.published.clone();
    let start = builder.bytes.len();
    let (plan, _) = builder.prepare(vec![file("run/new", &pattern(5000), 9)]);
    let recovered = recover(&builder.finished()).unwrap();
    assert_eq!((recovered.segments, recovered.stop), (expected, Stop::Unpublished));
    assert_eq!(tar_members(&builder.finished()).len(), tar_members(&sample().finished()).len());
    let (head, unpublished) = (plan.head(), plan.unpublished_head());
    assert_eq!(head[512..], unpublished[512..]);
    assert!(unpublished[..1024].iter().all(|byte| *byte == 0));
    builder.put(start, &head);
    assert_eq!(recover(&builder.finished()).unwrap().segments.len(), 4);
}

#[test]
fn a_cut_at_any_sector_leaves_the_published_prefix() {
    let builder = sample();
    let whole = builder.finished();
    for cut in (builder.published[1].offset as usize..builder.bytes.len()).step_by(512) {
        let complete = builder.published.iter().filter(|segment| segment.offset + segment.length <= cut as u64).count();
        let mut zeroed = whole.clone();
        zeroed[cut..].fill(0);
        for bytes in [whole[..cut].to_vec(), zeroed] {
            let recovered = recover(&bytes).unwrap();
            assert_eq!(recovered.segments, builder.published[..complete], "cut at {cut}");
            assert_eq!(recovered.published_end, builder.published[complete].offset);
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_in_a_published_segment_is_found() {
    let builder = sample();
    let whole = builder.finished();
    // A prime step keeps the test short and still meets every kind of field.
    let data_start = (builder.published[1].offset + BLOCK * 2) as usize;
    let data_end = data_start + 30_000;
    let mut offset = 0;
    while offset < builder.bytes.len() {
        let mut damaged = whole.clone();
        damaged[offset] ^= 1 << (offset % 8);
        let found = damages(&damaged);
        assert!(found.as_ref().is_err() || found.is_ok_and(|damages| !damages.is_empty()), "byte {offset}");
        offset += if (data_start..data_end).contains(&offset) { 499 } else { 5 };
    }
}

#[test]
fn a_header_that_says_something_else_than_the_toc_is_found() {
    let builder = sample();
    let record = &builder.published[0].records[0];
    let place = record.header.unwrap();
    let mut other = record.clone();
    other.entry.path = b"run/x".to_vec();
    let bytes = builder.finished();
    let found = check_record(&bytes, &builder.identity, &builder.published[0], &other, &mut |_| {}).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].offset, builder.published[0].offset + place.offset);
}

#[test]
fn a_sealed_aggregate_has_an_index() {
    let mut builder = sample();
    let end = builder.bytes.len() as u64;
    let names = vec![IndexEntry {
        path: b"run/b".to_vec(),
        kind: Kind::File,
        target: Vec::new(),
        attributes: Attributes::default(),
        size: 5,
        data_offset: builder.published[0].offset + builder.published[0].records[0].data_offset.unwrap(),
        data_crc: crc32c(b"alpha"),
        sequence: 1 << 32,
    }];
    let index = encode_index(builder.identity.uuid, end, names.clone()).unwrap();
    assert_eq!(Index::read(&builder.finished(), builder.identity.uuid).unwrap(), None);
    let plan = SegmentPlan::seal(&builder.identity, builder.sequence, &index, Entry::watermark(9, FLAG_ENDED)).unwrap();
    let start = builder.bytes.len();
    builder.bytes.resize(start + plan.length() as usize, 0);
    builder.put(start, &plan.head());
    let (header_offset, header) = plan.header(0).unwrap();
    builder.put(start + header_offset as usize, &header);
    builder.put(start + plan.data_offset(0).unwrap() as usize, &index);
    let mut checksummer = FileChecksummer::default();
    checksummer.data(&index);
    builder.put(start + plan.toc_offset() as usize, &plan.toc(&[Some(checksummer.finish()), None]));
    let bytes = builder.finished();
    assert_eq!(plan.data_offset(0).unwrap() % BLOCK, 0);
    assert_eq!(damages(&bytes), Ok(Vec::new()));
    let index = Index::read(&bytes, builder.identity.uuid).unwrap().unwrap();
    assert_eq!(index.get(b"run/b"), Some(names[0].clone()));
    let found = names[0].data_offset as usize;
    assert_eq!(&bytes[found..found + 5], b"alpha");
    assert_eq!(recover(&bytes).unwrap().segments.len(), 4);
}

#[test]
fn a_huge_void_is_walked_past() {
    let identity = sample().identity;
    let head = void_head(&identity, 1, 12 << 30);
    assert_eq!(head.len() as u64, BLOCK);
    let mut archive = tar::Archive::new(&head[..]);
    let member = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(member.size(), (12 << 30) - 512);
    assert_eq!(&*member.path_bytes(), b".sheaf/void/0000000001");
}

#[test]
fn reserved_and_impossible_names_are_refused_with_their_place() {
    let identity = sample().identity;
    let entries = vec![file("ok", b"", 1).0, file(".sheaf/x", b"", 2).0];
    let mut names = TarNames::default();
    let error = SegmentPlan::new(&identity, 1, entries, &mut names).unwrap_err();
    assert_eq!((error.index, error.problem), (Some(1), Problem::Reserved));
    let huge = Entry { size: i64::MAX as u64, extents: Extents::new(), ..file("a", b"", 1).0 };
    let error = SegmentPlan::new(&identity, 1, vec![huge], &mut names).unwrap_err();
    assert_eq!((error.index, error.problem), (None, Problem::TooLarge));
}

/// What the `tar` crate sees: path, type, link, size, mtime in nanoseconds, bytes.
type TarMember = (Vec<u8>, u8, Vec<u8>, u64, i128, Vec<u8>);

fn tar_members(bytes: &[u8]) -> Vec<TarMember> {
    let mut archive = tar::Archive::new(bytes);
    let mut members = Vec::new();
    for member in archive.entries().unwrap() {
        let mut member = member.unwrap();
        let path = member.path_bytes().into_owned();
        if path.starts_with(b".sheaf/") && !path.starts_with(b".sheaf/data/") {
            continue;
        }
        let mut mtime = i128::from(member.header().mtime().unwrap()) * 1_000_000_000;
        if let Some(extensions) = member.pax_extensions().unwrap() {
            for extension in extensions.map(Result::unwrap).filter(|extension| extension.key_bytes() == b"mtime") {
                mtime = pax_time(extension.value().unwrap());
            }
        }
        let link = member.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default();
        let (typeflag, size) = (member.header().entry_type().as_byte(), member.size());
        let mut content = Vec::new();
        member.read_to_end(&mut content).unwrap();
        members.push((path, typeflag, link, size, mtime, content));
    }
    members
}

/// Decimal seconds as nanoseconds, written apart from the encoder.
fn pax_time(text: &str) -> i128 {
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let fraction: i128 = fraction.parse::<i128>().unwrap() * 10i128.pow(9 - fraction.len() as u32);
    sign * (seconds.parse::<i128>().unwrap() * 1_000_000_000 + fraction)
}

fn name_strategy() -> impl Strategy<Value = Vec<u8>> {
    let component = prop_oneof![
        8 => prop::sample::select(vec![b"a".to_vec(), b"b".to_vec(), b"c d".to_vec()]),
        // No line break: the `tar` crate splits pax records at line breaks instead of by their length.
        1 => Just("caf\u{e9}\t".as_bytes().to_vec()),
        1 => Just(b"raw\xff\xfe".to_vec()),
        1 => (90usize..130).prop_map(|length| vec![b'n'; length]),
        1 => Just(vec![0xc3; 200]),
    ];
    prop::collection::vec(component, 1..4).prop_map(|components| components.join(&b'/'))
}

fn attributes_strategy() -> impl Strategy<Value = Attributes> {
    let id = prop_oneof![Just(0u32), Just(1000), Just(1 << 21), Just(u32::MAX)];
    let seconds = prop_oneof![4 => 0i64..4_000_000_000, 1 => -4_000_000_000i64..0, 1 => Just(1 << 40)];
    let nanoseconds = prop_oneof![Just(0u32), 1u32..1_000_000_000];
    (0u32..0o10000, id.clone(), id, seconds, nanoseconds).prop_map(
        |(mode, uid, gid, mtime_seconds, mtime_nanoseconds)| Attributes {
            mode,
            uid,
            gid,
            mtime_seconds,
            mtime_nanoseconds,
        },
    )
}

fn content_strategy() -> impl Strategy<Value = (Vec<u8>, Extents)> {
    let small = (0usize..1500).prop_map(|length| (pattern(length), Entry::dense_extents(length as u64)));
    let large = (32_000usize..50_000).prop_map(|length| (pattern(length), Entry::dense_extents(length as u64)));
    let sparse = (prop::collection::vec(any::<bool>(), 9..14), 1usize..=4096).prop_map(|(blocks, last)| {
        let size = (blocks.len() - 1) * BLOCK as usize + last;
        let mut content = pattern(size);
        let mut extents = Extents::new();
        for (block, is_data) in
            content.chunks_mut(BLOCK as usize).zip(blocks).enumerate().map(|(i, (b, d))| ((i, b), d))
        {
            let ((index, bytes), offset) = (block, block_offset(&extents));
            let start = index as u64 * BLOCK;
            match (is_data, extents.last_mut()) {
                (false, _) => bytes.fill(0),
                (true, Some(last)) if offset == start => last.length += bytes.len() as u64,
                (true, _) => extents.push(Extent { offset: start, length: bytes.len() as u64 }),
            }
        }
        (content, extents)
    });
    prop_oneof![5 => small, 1 => large, 1 => sparse]
}

fn block_offset(extents: &[Extent]) -> u64 {
    extents.last().map_or(u64::MAX, |extent| extent.offset + extent.length)
}

fn entry_strategy() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let kind = prop::sample::select(vec![
        Kind::File,
        Kind::File,
        Kind::File,
        Kind::Directory,
        Kind::Symlink,
        Kind::HardLink,
        Kind::Rename,
        Kind::Unlink,
        Kind::RemoveDirectory,
        Kind::SetAttributes,
    ]);
    let times = (0..=i64::MAX as u64, any::<i64>(), any::<u64>(), any::<u32>());
    (kind, name_strategy(), name_strategy(), attributes_strategy(), content_strategy(), times).prop_map(
        |(kind, path, target, attributes, (content, extents), (operation_time_ns, change_time_ns, inode, flags))| {
            let is_file = kind == Kind::File;
            let has_target = matches!(kind, Kind::Symlink | Kind::HardLink | Kind::Rename);
            let entry = Entry {
                kind,
                path,
                target: if has_target { target } else { Vec::new() },
                attributes,
                size: if is_file { content.len() as u64 } else { 0 },
                extents: if is_file { extents } else { Extents::new() },
                operation_time_ns,
                change_time_ns,
                inode,
                flags,
            };
            (entry, if is_file { content } else { Vec::new() })
        },
    )
}

type Segments = Vec<Vec<(Entry, Vec<u8>)>>;

fn build(segments: Segments) -> Builder {
    let mut builder = Builder::new(9);
    for (number, entries) in segments.into_iter().enumerate() {
        if number == 2 {
            builder.void(2 * BLOCK);
        }
        builder.segment(entries);
    }
    builder
}

fn segments_strategy() -> impl Strategy<Value = Segments> {
    prop::collection::vec(prop::collection::vec(entry_strategy(), 0..8), 0..5)
}

fn expected_member(segment: &Segment, record: &Record, bytes: &[u8]) -> Option<TarMember> {
    record.header?;
    let entry = &record.entry;
    let (typeflag, mut path) = match entry.kind {
        Kind::Directory => (b'5', [&entry.path[..], b"/"].concat()),
        Kind::Symlink => (b'2', entry.path.clone()),
        Kind::HardLink => (b'1', entry.path.clone()),
        _ => (b'0', entry.path.clone()),
    };
    if record.hidden {
        let name = format!(".sheaf/data/09090909-{:010}/{}", segment.sequence, record.sequence & 0xffff_ffff);
        path = name.into_bytes();
    }
    let start = (segment.offset + record.data_offset.unwrap_or(0)) as usize;
    let content = bytes[start..start + entry.size as usize].to_vec();
    let attributes = &entry.attributes;
    let mtime = i128::from(attributes.mtime_seconds) * 1_000_000_000 + i128::from(attributes.mtime_nanoseconds);
    Some((path, typeflag, entry.target.clone(), entry.size, mtime, content))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_entries_come_back_and_stock_tar_sees_the_same(segments in segments_strategy()) {
        let builder = build(segments);
        let bytes = builder.finished();
        let recovered = recover(&bytes).unwrap();
        prop_assert_eq!(&recovered.segments, &builder.published);
        prop_assert_eq!(damages(&bytes), Ok(Vec::new()));
        let records = builder.published.iter().flat_map(|segment| segment.records.iter().map(move |record| (segment, record)));
        let expected: Vec<TarMember> =
            records.filter_map(|(segment, record)| expected_member(segment, record, &bytes)).collect();
        prop_assert_eq!(tar_members(&bytes), expected);
        for segment in &builder.published {
            for record in segment.records.iter().filter(|record| record.entry.size >= ALIGNED_SIZE) {
                prop_assert_eq!(record.data_offset.unwrap() % BLOCK, 0);
            }
        }
    }

    #[test]
    fn hostile_bytes_are_survived(
        segments in prop::collection::vec(prop::collection::vec(entry_strategy(), 1..4), 1..3),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        mend in any::<bool>(),
    ) {
        let builder = build(segments);
        let mut bytes = builder.finished();
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if mend {
            mend_checksums(&mut bytes, &builder);
        }
        if let Ok(recovered) = recover(&bytes) {
            for segment in &recovered.segments {
                for record in &segment.records {
                    let _ = check_record(&bytes, &recovered.identity, segment, record, &mut |_| {});
                }
            }
        }
        let _ = Index::read(&bytes, builder.identity.uuid);
    }

    #[test]
    fn noise_is_no_aggregate(noise in prop::collection::vec(any::<u8>(), 0..20_000)) {
        prop_assert!(recover(&noise).is_err());
        let mut bytes = Builder::new(3).bytes;
        bytes.extend_from_slice(&noise);
        prop_assert_eq!(recover(&bytes).unwrap().segments, Vec::new());
        let _ = Index::read(&bytes, [3; 16]);
    }
}

/// Makes the checksums of damaged TOCs right again, so that what they say is looked at.
fn mend_checksums(bytes: &mut [u8], builder: &Builder) {
    for segment in builder.published.iter().filter(|segment| !segment.void) {
        let start = (segment.offset + segment.toc_offset) as usize;
        let trailer = (segment.offset + segment.length) as usize - 64;
        let table = crc32c(&bytes[start..trailer]).to_le_bytes();
        bytes[trailer + 36..trailer + 40].copy_from_slice(&table);
        let crc = crc32c(&bytes[trailer..trailer + 60]).to_le_bytes();
        bytes[trailer + 60..trailer + 64].copy_from_slice(&crc);
    }
}
