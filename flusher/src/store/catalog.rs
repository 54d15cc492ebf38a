//! The catalog: what a reader looks at in aggregates that nobody writes to any more, gathered in one file of the store.
//!
//! A restart on a thousand nodes then lists the store and reads one file, where it would open ten thousand on each. It
//! is a shortcut, never the truth: an aggregate is read from it by the code that reads aggregates, with all its checks,
//! and what is missing or wrong in it is read from the aggregate itself. Nothing may be removed because of a catalog.
//!
//! A name that a catalog has is not given to another aggregate (see [`names_of`]), so a name in the listing says which
//! aggregate is meant. What people put in an aggregate's place has another inode, and is read itself.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::aside::Aside;
use super::lock::{Lock, lock_aggregate, lock_store};
use super::merge::{READERS, in_parallel};
use super::{Files, open_file};
use crate::aggregate::{ReadAt, Recovered, Stop, crc32c, recover};
use crate::engine::{give_name, sync_directory};

/// End of the names of catalogs in a store; before it stands a number, the newest has the largest.
pub(super) const SUFFIX: &str = "catalog";
const MAGIC: [u8; 8] = *b"SHEAFCAT";
const VERSION: u32 = 1;
const TRAILER_SIZE: usize = size_of::<Trailer>();
/// No block of LZ4 yields more for each byte of it.
const LARGEST_RATIO: u64 = 256;
/// Fewer aggregates are read one by one.
const WORTHWHILE: usize = 64;
/// After this time, aggregates that were being written when a catalog was made are looked at again.
const STALE: Duration = Duration::from_secs(600);
/// A change may bear the time of another that came so little earlier: some file systems have whole seconds.
const UNSURE_NS: i128 = 2_000_000_000;
/// How long a flusher waits for somebody else's catalog.
const BUILD_LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(100);

/// The end of a catalog.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Trailer {
    magic: [u8; 8],
    version: U32,
    /// Over the table, then the bytes of this structure before.
    crc: U32,
    /// Where the table starts; it reaches to this structure.
    table_offset: U64,
}

/// The table: which aggregates there were.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Table {
    created_s: u64,
    aggregates: Vec<Row>,
}

/// What a catalog has of one aggregate.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    name: String,
    inode: u64,
    /// Nothing when it was being written.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Content>,
}

/// Where the content of an aggregate is, compressed.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Content {
    offset: u64,
    stored_bytes: u64,
    bytes: u64,
    crc32c: u32,
    /// Length of the aggregate, and when it was last written. An unsealed one that has others is read itself.
    length: u64,
    modified_ns: i128,
    sealed: bool,
}

/// A catalog that was opened.
#[derive(Debug)]
pub(super) struct Catalog {
    number: u64,
    created: Duration,
    file: File,
    /// Where the table starts.
    contents_end: u64,
    rows: HashMap<String, Row>,
}

/// The number in a catalog's name.
fn number_of(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
}

impl Catalog {
    /// The newest catalog of a store that is intact, and of a version that is known.
    ///
    /// # Errors
    /// From the file system.
    pub fn newest(files: &Files) -> io::Result<Option<Catalog>> {
        let mut paths: Vec<_> = files.catalogs.iter().filter_map(|path| Some((number_of(path)?, path))).collect();
        paths.sort_unstable();
        for (number, path) in paths.into_iter().rev() {
            if let Some(catalog) = Catalog::open(number, path)? {
                return Ok(Some(catalog));
            }
        }
        Ok(None)
    }

    fn open(number: u64, path: &Path) -> io::Result<Option<Catalog>> {
        let file = open_file(path)?;
        let length = file.metadata()?.len();
        let Some(trailer_at) = length.checked_sub(TRAILER_SIZE as u64) else { return Ok(None) };
        let mut bytes = [0; TRAILER_SIZE];
        FileExt::read_exact_at(&file, &mut bytes, trailer_at)?;
        let Ok(trailer) = Trailer::read_from_bytes(&bytes) else { return Ok(None) };
        let table_bytes = trailer_at.checked_sub(trailer.table_offset.get());
        let Some(table_bytes) = table_bytes.filter(|_| trailer.magic == MAGIC && trailer.version.get() == VERSION)
        else {
            return Ok(None);
        };
        let mut table = vec![0; table_bytes as usize];
        FileExt::read_exact_at(&file, &mut table, trailer.table_offset.get())?;
        if trailer.crc != table_crc(&table, trailer) {
            return Ok(None);
        }
        let Ok(table) = serde_json::from_slice::<Table>(&table) else { return Ok(None) };
        let rows = table.aggregates.into_iter().map(|row| (row.name.clone(), row)).collect();
        let (created, contents_end) = (Duration::from_secs(table.created_s), trailer.table_offset.get());
        Ok(Some(Catalog { number, created, file, contents_end, rows }))
    }

    fn row(&self, path: &Path, inode: u64) -> Option<&Row> {
        self.rows.get(path.file_name()?.to_str()?).filter(|row| row.inode == inode)
    }

    /// What it has of an aggregate; the listing of the store has it under this path and inode.
    pub fn content(&self, path: &Path, inode: u64) -> Option<impl ReadAt> {
        let content = self.row(path, inode)?.content.as_ref()?;
        if !content.sealed {
            let metadata = fs::symlink_metadata(path).ok()?;
            if (metadata.len(), modified_ns(&metadata)) != (content.length, content.modified_ns) {
                return None;
            }
        }
        Gathered::decode(&self.stored(content).ok()?, content)
    }

    /// Reads an aggregate from it, if it has it.
    pub fn recover(&self, path: &Path, inode: u64) -> Option<Recovered> {
        let sealed = self.row(path, inode)?.content.as_ref()?.sealed;
        let recovered = recover(&self.content(path, inode)?).ok()?;
        let is_whole = !matches!(recovered.stop, Stop::Damaged(_)) && (!sealed || recovered.is_sealed());
        is_whole.then_some(recovered)
    }

    fn stored(&self, content: &Content) -> io::Result<Vec<u8>> {
        // Nobody allocates more than there is.
        if content.offset.checked_add(content.stored_bytes).is_none_or(|end| end > self.contents_end) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut stored = vec![0; content.stored_bytes as usize];
        FileExt::read_exact_at(&self.file, &mut stored, content.offset)?;
        Ok(stored)
    }

    /// How many aggregates of a listing it does not have, though it could.
    fn lacks(&self, files: &Files) -> usize {
        let is_stale = now().saturating_sub(self.created) > STALE;
        let is_had = |(path, inode): (&PathBuf, &u64)| {
            self.row(path, *inode).is_some_and(|row| row.content.is_some() || !is_stale)
        };
        files.aggregates.iter().zip(&files.inodes).filter(|file| !is_had(*file)).count()
    }
}

fn now() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

fn modified_ns(metadata: &fs::Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
}

fn table_crc(table: &[u8], trailer: Trailer) -> U32 {
    let trailer = Trailer { crc: 0.into(), ..trailer };
    let crc = crate::aggregate::combine(crc32c(table), crc32c(trailer.as_bytes()), TRAILER_SIZE as u64);
    crc.into()
}

/// The names that the newest catalog of a store has. A new aggregate must not get any of them, or who reads by the
/// catalog takes it for the one that had the name.
#[derive(Debug, Default)]
pub(crate) struct Names {
    catalog: u64,
    names: HashSet<String>,
}

impl Names {
    /// Reads them.
    ///
    /// # Errors
    /// From the file system.
    pub fn read(store: &Path) -> io::Result<Names> {
        let catalog = Catalog::newest(&Files::of(store)?)?;
        Ok(catalog.map_or_else(Names::default, |Catalog { number, rows, .. }| Names {
            catalog: number,
            names: rows.into_keys().collect(),
        }))
    }

    /// Whether a new aggregate may have this name.
    pub fn allow(&self, name: &str) -> bool {
        !self.names.contains(name)
    }

    /// Whether there is no newer catalog by now.
    ///
    /// # Errors
    /// From the file system.
    pub fn are_newest(&self, store: &Path) -> io::Result<bool> {
        let files = Files::of(store)?;
        Ok(files.catalogs.iter().filter_map(|path| number_of(path)).max().unwrap_or(0) <= self.catalog)
    }
}

/// The parts of an aggregate that reading it takes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Gathered {
    length: u64,
    ranges: BTreeMap<u64, Vec<u8>>,
}

impl ReadAt for Gathered {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let found = self.ranges.range(..=offset).next_back().and_then(|(start, bytes)| {
            let start = usize::try_from(offset - start).ok()?;
            bytes.get(start..start.checked_add(buffer.len())?)
        });
        buffer.copy_from_slice(found.ok_or_else(|| io::Error::other("the catalog lacks this part"))?);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.length)
    }
}

impl Gathered {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (offset, range) in &self.ranges {
            bytes.extend_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&(range.len() as u64).to_le_bytes());
            bytes.extend_from_slice(range);
        }
        bytes
    }

    fn decode(stored: &[u8], content: &Content) -> Option<Gathered> {
        if crc32c(stored) != content.crc32c || content.bytes > LARGEST_RATIO * stored.len() as u64 {
            return None;
        }
        let bytes = lz4_flex::block::decompress(stored, content.bytes as usize).ok()?;
        let mut rest = &bytes[..];
        let mut ranges = BTreeMap::new();
        while let Some((numbers, others)) = rest.split_first_chunk::<16>() {
            let number = |at: usize| Some(u64::from_le_bytes(numbers[at..at + 8].try_into().ok()?));
            let (range, others) = others.split_at_checked(usize::try_from(number(8)?).ok()?)?;
            ranges.insert(number(0)?, range.to_vec());
            rest = others;
        }
        rest.is_empty().then_some(Gathered { length: content.length, ranges })
    }
}

/// An aggregate's file that keeps what is read of it.
struct Recorder<'a> {
    file: &'a File,
    ranges: Mutex<BTreeMap<u64, Vec<u8>>>,
}

impl ReadAt for Recorder<'_> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self.file, buffer, offset)?;
        let mut ranges = self.ranges.lock();
        // The trailer of a TOC is read first, and once more with the TOC.
        ranges.entry(offset).and_modify(|range| *range = buffer.to_vec()).or_insert_with(|| buffer.to_vec());
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        ReadAt::length(self.file)
    }
}

/// What becomes of one aggregate in a catalog.
enum Part {
    Row(Row, Vec<u8>),
    /// It went away, or cannot be read, or is damaged, or no aggregate: whoever reads the store sees to that.
    Nothing,
}

/// Reads what a reader of an aggregate would. `now_ns` is the file system's time.
fn gather(path: &Path, inode: u64, now_ns: i128) -> Part {
    let Some(name) = path.file_name().and_then(OsStr::to_str).map(str::to_owned) else { return Part::Nothing };
    match read_finished(path, now_ns) {
        Ok(Some((metadata, sealed, gathered))) => {
            let bytes = gathered.encode();
            let stored = lz4_flex::block::compress(&bytes);
            let content = Content {
                offset: 0,
                stored_bytes: stored.len() as u64,
                bytes: bytes.len() as u64,
                crc32c: crc32c(&stored),
                length: gathered.length,
                modified_ns: modified_ns(&metadata),
                sealed,
            };
            Part::Row(Row { name, inode, content: Some(content) }, stored)
        }
        Ok(None) => Part::Row(Row { name, inode, content: None }, Vec::new()),
        Err(_) => Part::Nothing,
    }
}

/// What reading an aggregate takes, and whether it is sealed; nothing unless it is whole, and nobody adds to it.
fn read_finished(path: &Path, now_ns: i128) -> io::Result<Option<(fs::Metadata, bool, Gathered)>> {
    let file = open_file(path)?;
    let record = || {
        let recorder = Recorder { file: &file, ranges: Mutex::default() };
        let whole = recover(&recorder).ok().filter(|recovered| !matches!(recovered.stop, Stop::Damaged(_)));
        let ranges = recorder.ranges.into_inner();
        whole.map(|recovered| (recovered.is_sealed(), Gathered { length: recovered.length, ranges }))
    };
    match record() {
        None => return Ok(None),
        Some((true, gathered)) => return Ok(Some((file.metadata()?, true, gathered))),
        Some(_) => {}
    }
    // A writer would have it locked.
    let Lock::Held(_lock) = lock_aggregate(path) else { return Ok(None) };
    let metadata = file.metadata()?;
    let is_sure = now_ns - modified_ns(&metadata) >= UNSURE_NS;
    Ok(record().filter(|_| is_sure).map(|(sealed, gathered)| (metadata, sealed, gathered)))
}

/// As [`gather`], from an older catalog if it has the aggregate as it is.
fn gather_by(old: Option<&Catalog>, path: &Path, inode: u64, now_ns: i128) -> Part {
    let known = old.and_then(|old| {
        let row = old.row(path, inode)?;
        old.content(path, inode)?;
        Some((row.clone(), old.stored(row.content.as_ref()?).ok()?))
    });
    known.map_or_else(|| gather(path, inode, now_ns), |(row, stored)| Part::Row(row, stored))
}

/// A catalog that was made.
#[derive(Clone, Copy, Debug)]
pub struct Built {
    /// Aggregates that it has.
    pub aggregates: usize,
    /// Aggregates that are being written, cannot be read, or are damaged.
    pub left_out: usize,
    /// Size of its file.
    pub bytes: u64,
}

/// What became of an attempt to make a catalog.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// It is there.
    Built(Built),
    /// Somebody else makes one, or reclaims.
    Busy,
    /// The file system has no locks.
    NoLocks,
}

/// Makes the catalog of a store anew, with what the old one has. While it is made nobody reclaims: what it names is
/// there when it gets its name.
///
/// # Errors
/// From the file system.
pub fn build(store: &Path) -> io::Result<Outcome> {
    let _lock = match lock_store(store)? {
        Lock::Held(lock) => lock,
        Lock::Busy => return Ok(Outcome::Busy),
        Lock::Unknown => return Ok(Outcome::NoLocks),
    };
    let files = Files::of(store)?;
    let old = Catalog::newest(&files)?;
    let aside = Aside::create(store)?;
    let mut built = write(&aside.file, &files, old.as_ref())?;
    built.bytes = aside.file.metadata()?.len();
    aside.file.sync_all()?;
    let numbers = files.catalogs.iter().filter_map(|path| number_of(path));
    let number = numbers.max().unwrap_or(0) + 1;
    give_name(&aside.path, &store.join(format!("{number:010}.{SUFFIX}")))?;
    sync_directory(store)?;
    for path in &files.catalogs {
        // Whoever has it open reads on; a larger number makes it void in any case.
        let _ = fs::remove_file(path);
    }
    Ok(Outcome::Built(built))
}

fn write(file: &File, files: &Files, old: Option<&Catalog>) -> io::Result<Built> {
    let mut out = BufWriter::new(file);
    let now_ns = modified_ns(&file.metadata()?);
    let mut table = Table { created_s: now().as_secs(), aggregates: Vec::new() };
    let mut end = 0;
    let all: Vec<(&PathBuf, u64)> = files.aggregates.iter().zip(files.inodes.iter().copied()).collect();
    // So many at once that little memory is taken.
    for some in all.chunks(8 * READERS) {
        for part in in_parallel(some, &|(path, inode)| gather_by(old, path, inode, now_ns)) {
            let Part::Row(mut row, stored) = part else { continue };
            if let Some(content) = &mut row.content {
                content.offset = end;
                end += stored.len() as u64;
                out.write_all(&stored)?;
            }
            table.aggregates.push(row);
        }
    }
    let aggregates = table.aggregates.iter().filter(|row| row.content.is_some()).count();
    let table = serde_json::to_vec(&table)?;
    let trailer = Trailer { magic: MAGIC, version: VERSION.into(), crc: 0.into(), table_offset: end.into() };
    let trailer = Trailer { crc: table_crc(&table, trailer), ..trailer };
    out.write_all(&table)?;
    out.write_all(trailer.as_bytes())?;
    out.flush()?;
    Ok(Built { aggregates, left_out: all.len() - aggregates, bytes: 0 })
}

/// Sees to it that a store with many aggregates has a catalog before it is read: of all who come at once, one makes it
/// and the others wait for that, for a bounded time. Whatever fails, the store is read without.
pub fn prepare(store: &Path) {
    let since = Instant::now();
    while since.elapsed() < BUILD_LIMIT {
        match is_worthwhile(store).and_then(|worthwhile| worthwhile.then(|| build(store)).transpose()) {
            Ok(Some(Outcome::Busy)) => std::thread::sleep(POLL),
            Ok(_) => return,
            Err(error) => return log::debug!("no catalog of {}: {error}", store.display()),
        }
    }
}

fn is_worthwhile(store: &Path) -> io::Result<bool> {
    let files = Files::of(store)?;
    if files.aggregates.len() < WORTHWHILE {
        return Ok(false);
    }
    let catalog = Catalog::newest(&files)?;
    let (had, lacking) =
        catalog.map_or((0, files.aggregates.len()), |catalog| (catalog.rows.len(), catalog.lacks(&files)));
    Ok(lacking >= WORTHWHILE.max(had / 4))
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::time::SystemTime;

    use super::*;
    use crate::aggregate::tests::{Builder, file};
    use crate::aggregate::{Entry, FLAG_ENDED};
    use crate::store::{Node, Store};

    /// An aggregate with a file of its own, sealed if its number is odd; the others were left some time ago.
    fn add(store: &Path, number: u8) -> PathBuf {
        let mut builder = Builder::new(number);
        builder.segment(vec![file(&format!("run/{number}"), &[number; 100], u64::from(number))]);
        let path = store.join(format!("n-{number}.tar"));
        fs::write(&path, builder.finished()).unwrap();
        if number % 2 == 1 {
            let of_it = Store::open_all(std::slice::from_ref(&path)).unwrap();
            let (id, _) = of_it.aggregates().next().unwrap();
            let place = (builder.sequence, builder.bytes.len() as u64);
            let sealed = of_it.seal_segment(id, &builder.identity, place, Entry::watermark(0, FLAG_ENDED)).unwrap();
            let mut seal = sealed.bytes.clone();
            seal[..sealed.head.len()].copy_from_slice(&sealed.head);
            fs::write(&path, [&builder.bytes[..], &seal, &[0; 4096]].concat()).unwrap();
        }
        let then = SystemTime::now() - Duration::from_secs(100);
        File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
        path
    }

    fn names(store: &Path) -> Vec<String> {
        let store = Store::open(store).unwrap();
        let files = store.view().iter().filter(|(_, node)| matches!(node, Node::File(_)));
        files.map(|(path, _)| String::from_utf8(path).unwrap()).collect()
    }

    fn built(store: &Path) -> Built {
        let Outcome::Built(built) = build(store).unwrap() else { panic!("nobody else is here") };
        built
    }

    fn catalogs(store: &Path) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        Files::of(store).unwrap().catalogs.iter().map(name).collect()
    }

    /// Makes an aggregate unreadable without anybody being told.
    fn spoil(path: &Path) {
        let metadata = fs::metadata(path).unwrap();
        let file = OpenOptions::new().write(true).open(path).unwrap();
        FileExt::write_all_at(&file, &[0xff; 4096], 0).unwrap();
        file.set_modified(metadata.modified().unwrap()).unwrap();
    }

    #[test]
    fn aggregates_are_read_from_it() {
        let store = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (1..=4).map(|number| add(store.path(), number)).collect();
        let before = names(store.path());
        assert_eq!(before, ["run/1", "run/2", "run/3", "run/4"]);
        let Built { aggregates, left_out, .. } = built(store.path());
        assert_eq!((aggregates, left_out), (4, 0));
        paths.iter().for_each(|path| spoil(path));
        assert_eq!(names(store.path()), before);
        // An unsealed one that has changed is read itself, and so is one in the place of another.
        File::options().write(true).open(&paths[1]).unwrap().set_modified(SystemTime::now()).unwrap();
        fs::copy(&paths[2], store.path().join("copy")).unwrap();
        fs::rename(store.path().join("copy"), &paths[2]).unwrap();
        assert_eq!(names(store.path()), ["run/1", "run/4"]);
    }

    #[test]
    fn it_is_made_anew_from_the_old_one_and_what_is_new() {
        let store = tempfile::tempdir().unwrap();
        let first = add(store.path(), 1);
        let second = add(store.path(), 2);
        built(store.path());
        assert_eq!(catalogs(store.path()), ["0000000001.catalog"]);
        spoil(&first);
        fs::remove_file(second).unwrap();
        add(store.path(), 3);
        assert_eq!(built(store.path()).aggregates, 2);
        assert_eq!(catalogs(store.path()), ["0000000002.catalog"]);
        assert_eq!(names(store.path()), ["run/1", "run/3"]);
    }

    #[test]
    fn what_is_being_written_or_was_just_now_is_left_out() {
        let store = tempfile::tempdir().unwrap();
        let locked = add(store.path(), 2);
        let recent = add(store.path(), 4);
        File::options().write(true).open(recent).unwrap().set_modified(SystemTime::now()).unwrap();
        let Lock::Held(_lock) = lock_aggregate(&locked) else { panic!("nobody else is here") };
        assert_eq!((built(store.path()).aggregates, built(store.path()).left_out), (0, 2));
        assert_eq!(names(store.path()), ["run/2", "run/4"]);
    }

    #[test]
    fn a_damaged_one_changes_nothing() {
        let store = tempfile::tempdir().unwrap();
        (1..=3).for_each(|number| drop(add(store.path(), number)));
        let before = names(store.path());
        built(store.path());
        let path = store.path().join("0000000001.catalog");
        let intact = fs::read(&path).unwrap();
        for at in 0..intact.len() {
            let mut damaged = intact.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&path, damaged).unwrap();
            assert_eq!(names(store.path()), before, "a bit of byte {at}");
        }
        for length in 0..intact.len() {
            fs::write(&path, &intact[..length]).unwrap();
            assert_eq!(names(store.path()), before, "{length} bytes");
        }
    }

    #[test]
    fn of_many_who_need_it_one_makes_it() {
        let store = tempfile::tempdir().unwrap();
        (0..WORTHWHILE as u8).for_each(|number| drop(add(store.path(), number)));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| prepare(store.path()));
            }
        });
        assert_eq!(catalogs(store.path()), ["0000000001.catalog"]);
        assert_eq!(names(store.path()).len(), WORTHWHILE);
    }

    #[test]
    fn no_name_of_it_is_given_again() {
        let store = tempfile::tempdir().unwrap();
        fs::remove_file(add(store.path(), 1)).unwrap();
        assert!(Names::read(store.path()).unwrap().allow("n-1.tar"));
        let path = add(store.path(), 1);
        let earlier = Names::read(store.path()).unwrap();
        built(store.path());
        fs::remove_file(path).unwrap();
        assert!(!earlier.are_newest(store.path()).unwrap());
        let now = Names::read(store.path()).unwrap();
        assert!(now.are_newest(store.path()).unwrap() && !now.allow("n-1.tar") && now.allow("n-2.tar"));
    }
}
