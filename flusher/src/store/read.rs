//! Reading one version's data: every chunk is checked before its bytes are handed out.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::file::AggregateFile;
use super::{Aggregate, Contest, Store, Version, open_file};
use crate::aggregate::{ChunkBuffer, DataError, FileData};
use crate::settings::Damaged;

/// Threads that help with one file, and with all files at once. Each has 4 MiB of memory.
const HELPERS_OF_ONE: u64 = 7;
const HELPERS_MAX: usize = 8;
/// What a thread is worth being started for, in chunks.
const HELPED_CHUNKS: u64 = 2;

/// How many threads help readers at the moment.
#[derive(Debug, Default)]
pub struct Helpers(AtomicUsize);

/// One of them, until it is dropped.
struct Helper<'a>(&'a Helpers);

impl Helpers {
    fn take(&self) -> Option<Helper<'_>> {
        let take = |busy: usize| (busy < HELPERS_MAX).then_some(busy + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok().map(|_| Helper(self))
    }
}

impl Drop for Helper<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Data that cannot be had intact.
#[derive(Debug)]
pub struct DataLoss {
    path: Box<[u8]>,
    aggregate: PathBuf,
    reason: Reason,
    /// When an older intact version was complete, and the aggregate that has it.
    older: Option<(u64, PathBuf)>,
}

/// Why data cannot be had.
#[derive(Debug)]
enum Reason {
    Data(DataError),
    Contested(Contest),
}

impl fmt::Display for DataLoss {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.escape_ascii();
        match &self.reason {
            Reason::Data(reason) => write!(formatter, "/{path} in aggregate {}: {reason}; ", self.aggregate.display())?,
            Reason::Contested(contest) => write!(formatter, "{contest}; ")?,
        }
        match &self.older {
            None => formatter.write_str("no older intact version of it is known"),
            Some((time_ns, aggregate)) => write!(
                formatter,
                "an older intact version of it, of {}.{:09} s since 1970, is in {}",
                time_ns / 1_000_000_000,
                time_ns % 1_000_000_000,
                aggregate.display()
            ),
        }
    }
}

impl std::error::Error for DataLoss {}

/// Where a version's data lies; see [`Store::locate`].
#[derive(Debug)]
pub struct Located {
    pub(super) version: Arc<Version>,
    pub(super) aggregate: Aggregate,
    pub(super) contest: Option<Contest>,
    pub(super) older: Vec<(Arc<Version>, PathBuf)>,
    /// Where the store is, to look for another copy.
    pub(super) sources: Vec<PathBuf>,
}

impl Located {
    /// The same for somebody who copies it as it is; see [`Store::copier`].
    pub fn as_it_is(self) -> Located {
        Located { contest: None, ..self }
    }

    /// Opens it, or the copy that was made before its aggregate was reclaimed.
    ///
    /// # Errors
    /// When the aggregate cannot be opened.
    pub fn open(&self) -> io::Result<VersionReader> {
        match self.open_here() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let now = Store::open_all(&self.sources)?;
                let copy = now.view.twins(&self.version).next().cloned().ok_or(error)?;
                Located { contest: self.contest.clone(), ..now.locate(&copy)? }.open_here()
            }
            result => result,
        }
    }

    fn open_here(&self) -> io::Result<VersionReader> {
        Ok(VersionReader {
            version: self.version.clone(),
            path: self.aggregate.path.clone(),
            file: self.aggregate.open()?.into(),
            contest: self.contest.clone(),
            older: self.older.clone(),
            sources: self.sources.clone(),
        })
    }
}

/// Reads a version's data; independent of the store that made it.
#[derive(Debug)]
pub struct VersionReader {
    version: Arc<Version>,
    path: PathBuf,
    file: AggregateFile,
    contest: Option<Contest>,
    older: Vec<(Arc<Version>, PathBuf)>,
    /// Where the store is, to look for another copy.
    sources: Vec<PathBuf>,
}

impl VersionReader {
    /// The version that is read.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// This reader, or one of an older version that is intact, if this one is not and `damaged` allows it. That takes
    /// reading all data once more.
    pub fn choose(self, damaged: Damaged) -> VersionReader {
        let is_fine = || self.copy(&mut |_, _| Ok(())).is_ok();
        if damaged == Damaged::Refuse || is_fine() {
            return self;
        }
        self.older().unwrap_or(self)
    }

    /// A reader of the newest older version that is intact.
    pub fn older(&self) -> Option<VersionReader> {
        let (version, path) = self.older.iter().find(|(version, path)| is_intact(version, path))?;
        let file = open_file(path).ok()?.into();
        let (version, path, sources) = (version.clone(), path.clone(), self.sources.clone());
        Some(VersionReader { version, path, file, contest: None, older: Vec::new(), sources })
    }

    /// Hands out all data in order, as offsets in the file and bytes; holes are left out. What cannot be had intact is
    /// read from another copy of the same version, if reclaiming has made one.
    ///
    /// # Errors
    /// What `out` returns, or an error with a [`DataLoss`] inside when the data cannot be had intact.
    pub fn copy(&self, out: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
        self.refuse_contested()?;
        let (mut buffer, copies) = (ChunkBuffer::default(), OnceLock::new());
        (0..file_data(&self.version).chunk_count()).try_for_each(|chunk| self.chunk(chunk, &mut buffer, &copies, out))
    }

    /// As [`VersionReader::copy`] in no particular order, by this thread and as many helpers as are worth it and free:
    /// what is read, checked and taken overlaps.
    ///
    /// # Errors
    /// As there.
    pub fn copy_unordered(
        &self,
        helpers: &Helpers,
        out: &(dyn Fn(u64, &[u8]) -> io::Result<()> + Sync),
    ) -> io::Result<()> {
        self.refuse_contested()?;
        let (next, failure, copies) = (AtomicU64::new(0), Mutex::new(None), OnceLock::new());
        let count = file_data(&self.version).chunk_count();
        let work = |before_each: &mut dyn FnMut(u64)| {
            let mut buffer = ChunkBuffer::default();
            loop {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                if chunk >= count {
                    return;
                }
                before_each(count - chunk);
                let copied = self.chunk(chunk, &mut buffer, &copies, &mut |offset, bytes| out(offset, bytes));
                if let Err(error) = copied {
                    // Nobody begins with another one.
                    next.store(count, Ordering::Relaxed);
                    failure.lock().get_or_insert(error);
                }
            }
        };
        std::thread::scope(|scope| {
            let mut started = 0;
            // Looked for again and again: other files' helpers become free.
            work(&mut |left| {
                while started < HELPERS_OF_ONE && left >= (started + 1) * HELPED_CHUNKS {
                    let Some(helper) = helpers.take() else { return };
                    let help = move || {
                        let _busy = helper;
                        work(&mut |_| ());
                    };
                    // Without a helper it takes longer.
                    let _ = std::thread::Builder::new().name("hydrate".into()).spawn_scoped(scope, help);
                    started += 1;
                }
            });
        });
        failure.into_inner().map_or(Ok(()), Err)
    }

    /// Hands out the data of a chunk.
    fn chunk(
        &self,
        chunk: u64,
        buffer: &mut ChunkBuffer,
        copies: &OnceLock<Vec<(Arc<Version>, AggregateFile)>>,
        out: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let data = file_data(&self.version);
        if data.chunk_extents(chunk).next().is_none() {
            return Ok(());
        }
        if let Err(reason) = data.read_chunk(&self.file, chunk, buffer) {
            let mut copies = copies.get_or_init(|| self.copies()).iter();
            if !copies.any(|(version, file)| file_data(version).read_chunk(file, chunk, buffer).is_ok()) {
                return Err(self.loss(Reason::Data(reason)));
            }
        }
        let start = chunk * crate::aggregate::CHUNK;
        for extent in data.chunk_extents(chunk) {
            let within = (extent.offset - start) as usize;
            out(extent.offset, &buffer[within..within + extent.length as usize])?;
        }
        Ok(())
    }

    /// Other copies of the version, as the store is now.
    fn copies(&self) -> Vec<(Arc<Version>, AggregateFile)> {
        let Ok(store) = Store::open_all(&self.sources) else { return Vec::new() };
        let open = |copy: &Arc<Version>| {
            let aggregate = store.aggregate(copy.aggregate).ok()?;
            let is_this = aggregate.path == self.path && copy.data_offset == self.version.data_offset;
            Some((copy.clone(), aggregate.open().ok().filter(|_| !is_this)?.into()))
        };
        store.view().twins(&self.version).filter_map(open).collect()
    }

    fn refuse_contested(&self) -> io::Result<()> {
        self.contest.as_ref().map_or(Ok(()), |contest| Err(self.loss(Reason::Contested(contest.clone()))))
    }

    fn loss(&self, reason: Reason) -> io::Error {
        let intact = self.older.iter().find(|(version, path)| is_intact(version, path));
        let kind = if matches!(&reason, Reason::Data(DataError::Io(_))) {
            io::ErrorKind::Other
        } else {
            io::ErrorKind::InvalidData
        };
        let older = intact.map(|(version, path)| (version.operation_time_ns, path.clone()));
        let path = self.version.recorded_path.clone();
        io::Error::new(kind, DataLoss { path, aggregate: self.path.clone(), reason, older })
    }
}

fn file_data(version: &Version) -> FileData<'_> {
    let Version { data_offset, size, extents, checksums, .. } = version;
    FileData { offset: *data_offset, size: *size, extents, checksums }
}

fn is_intact(version: &Version, path: &Path) -> bool {
    let Ok(file) = open_file(path).map(AggregateFile::from) else { return false };
    let data = file_data(version);
    let mut buffer = ChunkBuffer::default();
    (0..data.chunk_count()).all(|chunk| data.read_chunk(&file, chunk, &mut buffer).is_ok())
}
