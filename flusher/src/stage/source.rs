//! A completed file on its way into a segment: its bytes cannot change while a [`Source`] lives.
//!
//! The guarantee is a read lease. When a program comes back to write, it waits in the kernel; the [`LeaseKeeper`] then
//! copies the file aside, lets the flush go on from the copy, and releases the lease: the program is held up for the
//! time of a copy in memory, not of a write to the parallel file system. A source whose lease the kernel took away
//! before that (`lease-break-time`) is torn: it must not be published.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, MemfdFlags, Mode, OFlags, Stat};
use rustix::io::Errno;
use sheaf_common::layout::{self, STUB_BIT};

use super::lease::{self, Lease, Notice, Notices};
use super::{Stage, stat_and_birth};
use crate::engine::Mapping;

/// A program that truncates replaces the inode instead of waiting; the keeper gives it this long before it copies.
const REPLACEMENT_GRACE: Duration = Duration::from_millis(10);

/// What opening a completed file came to.
#[derive(Debug)]
pub enum Opened {
    /// Its bytes are fixed now; `Stat` was taken under the lease.
    Ready(Arc<Source>, Box<Stat>),
    /// A copy of what somebody still writes to; `Stat` was taken before it was made.
    Unclosed(Arc<Source>, Box<Stat>),
    /// Somebody still writes: it will complete again.
    StillWritten,
    /// A stub: its data is in an aggregate already.
    Stub(Box<Stat>),
    /// A symbolic link.
    Symlink(Box<Stat>),
    /// Neither a regular file nor a link of that name.
    Gone,
    /// It cannot be opened or leased, for this reason.
    Failed(String),
}

impl Opened {
    /// Bytes of data that go into a batch.
    pub fn size(&self) -> u64 {
        match self {
            Opened::Ready(source, _) | Opened::Unclosed(source, _) => source.size(),
            _ => 0,
        }
    }
}

/// A leased file, or the copy that stands in for it.
#[derive(Debug)]
pub struct Source {
    size: u64,
    born_ns: u64,
    /// A moment before the lease was taken.
    opened: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Until it is released.
    file: Option<File>,
    leased: bool,
    mapping: Option<Arc<Mapping>>,
    /// When the kernel will have taken the lease away, once somebody has asked for it.
    deadline: Option<Instant>,
    torn: bool,
}

impl State {
    fn file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::Error::other("the file has been released"))
    }

    /// Whether nobody has asked for the lease.
    fn is_whole(&self) -> bool {
        self.leased && self.file.as_ref().is_some_and(|file| lease::is_whole(file.as_fd()))
    }

    /// Closing takes the lease away, unless a mapping keeps the file.
    fn release(&mut self) {
        let is_mapped = self.mapping.take().is_some();
        if let Some(file) = self.file.take()
            && self.leased
            && is_mapped
        {
            lease::release(file.as_fd());
        }
        self.leased = false;
    }
}

impl Source {
    fn new(file: File, (size, born_ns): (u64, u64), leased: bool, opened: Instant) -> Arc<Source> {
        let state = State { file: Some(file), leased, mapping: None, deadline: None, torn: false };
        Arc::new(Source { size, born_ns, opened, state: Mutex::new(state) })
    }

    /// Opens `path` in the tree and takes a read lease on it.
    ///
    /// # Errors
    /// Anything that is neither "gone" nor "still written".
    pub fn open(stage: &Stage, path: &[u8]) -> io::Result<Opened> {
        let file = match open_for_reading(stage, path) {
            Ok(file) => file,
            Err(Errno::LOOP) => {
                let link =
                    stage.stat(path).ok().filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
                return Ok(link.map_or(Opened::Gone, |stat| Opened::Symlink(Box::new(stat))));
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NXIO) => return Ok(Opened::Gone),
            Err(error) => return Err(error.into()),
        };
        let opened = Instant::now();
        match lease::take_read(file.as_fd()) {
            Ok(Lease::Granted) => {}
            Ok(Lease::StillWritten) => return Ok(Opened::StillWritten),
            Err(error) => {
                // Only regular files can be leased.
                let is_regular = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::RegularFile;
                return if is_regular { Err(error) } else { Ok(Opened::Gone) };
            }
        }
        let (stat, born_ns) = stat_and_birth(&file)?;
        if stat.st_mode & STUB_BIT != 0 {
            return Ok(Opened::Stub(Box::new(stat)));
        }
        Ok(Opened::Ready(Source::new(file, (stat.st_size as u64, born_ns), true, opened), Box::new(stat)))
    }

    /// Copies what is in `path` now, while others may write to it: for a program that waits until that is durable.
    ///
    /// # Errors
    /// When the file cannot be read, or shrinks meanwhile, or there is no room for a copy, neither in the stage nor in
    /// memory.
    pub fn snapshot(stage: &Stage, path: &[u8]) -> io::Result<Opened> {
        let file = match open_for_reading(stage, path) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Opened::Gone),
            Err(error) => return Err(error.into()),
        };
        let (stat, born_ns) = stat_and_birth(&file)?;
        let size = stat.st_size as u64;
        let copy = copy_aside(&file, size, &stage.path(layout::SCRATCH)).or_else(|_| copy_into_memory(&file, size))?;
        Ok(Opened::Unclosed(Source::new(copy, (size, born_ns), false, Instant::now()), Box::new(stat)))
    }

    /// The file's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The ranges of the file that hold data, by SEEK_DATA and SEEK_HOLE (lseek(2)); the rest reads as zeros.
    ///
    /// # Errors
    /// From lseek(2).
    pub fn data_ranges(&self) -> io::Result<Vec<(u64, u64)>> {
        let state = self.state.lock();
        let file = state.file()?;
        let mut ranges = Vec::new();
        let mut position = 0;
        while position < self.size {
            let start = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(position)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start))?.min(self.size);
            ranges.push((start, end));
            position = end;
        }
        Ok(ranges)
    }

    /// Reads exactly `buffer.len()` bytes at `offset`.
    ///
    /// # Errors
    /// From pread(2); `UnexpectedEof` when the file is shorter than it was under the lease.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.state.lock().file()?.read_exact_at(buffer, offset)
    }

    /// The file's pages, to be written from where they lie. The keeper does not release the lease while a clone of
    /// the mapping is in use.
    ///
    /// # Errors
    /// From mmap(2).
    pub fn mapping(&self) -> io::Result<Arc<Mapping>> {
        let mut state = self.state.lock();
        if let Some(mapping) = &state.mapping {
            return Ok(mapping.clone());
        }
        let mapping = Arc::new(Mapping::new(state.file()?.as_fd(), self.size)?);
        state.mapping = Some(mapping.clone());
        Ok(mapping)
    }

    /// Whether the bytes may have changed before they were read, because the kernel took the lease away. Before
    /// `trusted` ([`lease::trusted_time`]) has passed it takes none; later one that somebody wants, and that the keeper
    /// has not seen to, counts as taken.
    pub fn is_torn(&self, trusted: Duration) -> bool {
        let state = self.state.lock();
        let is_taken = || match state.deadline {
            Some(deadline) => Instant::now() >= deadline,
            None => self.opened.elapsed() >= trusted && !state.is_whole(),
        };
        state.torn || (state.leased && is_taken())
    }

    /// Whether nobody can have written to the file since it was opened here: the lease is still whole.
    pub fn is_unwritten(&self) -> bool {
        self.state.lock().is_whole()
    }

    /// When the file was made, in nanoseconds since 1970; 0 where its file system does not tell.
    pub fn born_ns(&self) -> u64 {
        self.born_ns
    }

    /// Where the kernel says that the file is now, if it has a name.
    pub fn place(&self) -> Option<PathBuf> {
        let descriptor = self.descriptor()?;
        std::fs::read_link(format!("/proc/self/fd/{descriptor}")).ok()
    }

    /// What the file is like now, as long as nobody has asked to write to it.
    pub fn stat_unwritten(&self) -> Option<Stat> {
        let state = self.state.lock();
        let file = state.file.as_ref().filter(|_| state.is_whole())?;
        rustix::fs::fstat(file).ok()
    }

    /// Does `act` while no other descriptor of any kind has the file open, and none can be opened: whoever tries waits
    /// until [`Source::release`]. Nothing when somebody has it open, or has asked to write to it.
    ///
    /// # Errors
    /// From `act`. The file can be opened again then.
    pub fn exclusively<T>(&self, act: impl FnOnce(&Stat) -> io::Result<Option<T>>) -> io::Result<Option<T>> {
        let state = self.state.lock();
        let Some(file) = state.file.as_ref().filter(|_| state.is_whole()) else { return Ok(None) };
        if !lease::take_write(file.as_fd()).is_ok_and(|lease| lease == Lease::Granted) {
            return Ok(None);
        }
        let outcome = rustix::fs::fstat(file).map_err(io::Error::from).and_then(|stat| act(&stat));
        if !matches!(outcome, Ok(Some(_))) {
            // If somebody waits already, this gives the lease back; then the file counts as written to.
            let _ = lease::take_read(file.as_fd());
        }
        outcome
    }

    /// The descriptor that lease notices name.
    fn descriptor(&self) -> Option<RawFd> {
        self.state.lock().file.as_ref().map(File::as_raw_fd)
    }

    /// Gives the lease back, closes the file and frees the pages, once the bytes are in a published segment.
    pub fn release(&self) {
        self.state.lock().release();
    }

    /// Makes way for a writer who asked at `asked`: goes on from a copy, and releases the lease when nothing reads the
    /// old pages any more.
    fn step_aside(self: &Arc<Self>, scratch: &Path, asked: Instant) {
        if !self.is_wanted() || self.wait_for_replacement(asked) {
            return;
        }
        let mut state = self.state.lock();
        if !state.leased {
            return;
        }
        let deadline = *state.deadline.get_or_insert(asked + lease::trusted_time());
        let Ok(copy) = state.file().and_then(|file| copy_aside(file, self.size, scratch)) else {
            // No room for a copy: the flush goes on from the file itself, and the writer waits for it.
            return;
        };
        // The copy is of a file that could be written again.
        state.torn |= Instant::now() >= deadline;
        let old_mapping = state.mapping.take().map(|mapping| Arc::downgrade(&mapping));
        let Some(old) = state.file.replace(copy) else { return };
        state.leased = false;
        drop(state);
        if old_mapping.as_ref().is_none_or(|mapping| mapping.strong_count() == 0) {
            return lease::release(old.as_fd());
        }
        let source = self.clone();
        let release = move || source.release_when_read(&old, old_mapping.as_ref(), deadline);
        // Without a thread the descriptor closes here, and the lease with it: what is still read of it is torn.
        if std::thread::Builder::new().name("release".to_string()).spawn(release).is_err() {
            self.state.lock().torn = true;
        }
    }

    /// Whether somebody waits for the lease.
    fn is_wanted(&self) -> bool {
        let state = self.state.lock();
        state.leased && !state.is_whole()
    }

    fn release_when_read(&self, old: &File, mapping: Option<&Weak<Mapping>>, deadline: Instant) {
        while mapping.is_some_and(|mapping| mapping.strong_count() > 0) {
            if Instant::now() >= deadline {
                self.state.lock().torn = true;
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        lease::release(old.as_fd());
    }

    /// Waits a moment for the writer to put a new inode in this one's place. Then nobody can write to ours any more.
    fn wait_for_replacement(&self, asked: Instant) -> bool {
        loop {
            let mut state = self.state.lock();
            if !state.leased {
                return true;
            }
            let Ok(file) = state.file() else { return true };
            if rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink == 0) {
                lease::release(file.as_fd());
                state.leased = false;
                return true;
            }
            drop(state);
            if asked.elapsed() >= REPLACEMENT_GRACE {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.release();
    }
}

/// Opens a file for reading even if its mode forbids that to its owner (a program may create files with mode 0200).
fn open_for_reading(stage: &Stage, path: &[u8]) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let (tree, path) = stage.in_tree(path);
    match rustix::fs::openat(tree, path, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {}
        result => return result.map(File::from),
    }
    let mode = Mode::from_raw_mode(stage.stat(path)?.st_mode & 0o7777);
    rustix::fs::chmodat(tree, path, mode | Mode::RUSR, AtFlags::empty())?;
    let result = rustix::fs::openat(tree, path, flags, Mode::empty());
    rustix::fs::chmodat(tree, path, mode, AtFlags::empty())?;
    result.map(File::from)
}

/// Copies a file into an unnamed one in `scratch`, data ranges only.
fn copy_aside(file: &File, size: u64, scratch: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let copy = File::from(rustix::fs::open(scratch, flags, Mode::from_raw_mode(0o600))?);
    copy_data(file, &copy, size)?;
    Ok(copy)
}

/// The same, into memory that no file system limits.
fn copy_into_memory(file: &File, size: u64) -> io::Result<File> {
    let copy = File::from(rustix::fs::memfd_create("sheaf", MemfdFlags::CLOEXEC)?);
    copy_data(file, &copy, size)?;
    Ok(copy)
}

/// Copies the data ranges of a file into an empty one.
fn copy_data(file: &File, copy: &File, size: u64) -> io::Result<()> {
    copy.set_len(size)?;
    let mut position = 0;
    while position < size {
        let start = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start))?.min(size);
        copy_range(file, copy, start, end)?;
        position = end;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; (1 << 20).min((end - start) as usize)];
    let mut position = start;
    while position < end {
        let count = buffer.len().min((end - position) as usize);
        from.read_exact_at(&mut buffer[..count], position)?;
        to.write_all_at(&buffer[..count], position)?;
        position += count as u64;
    }
    Ok(())
}

/// Answers lease notices for every source that is on its way. Clones share one register.
#[derive(Clone, Debug)]
pub struct LeaseKeeper {
    sources: Arc<Mutex<HashMap<RawFd, Weak<Source>>>>,
    scratch: PathBuf,
}

impl LeaseKeeper {
    /// Starts the thread that answers. [`lease::block_signals`] must have been called before any thread was made.
    ///
    /// # Errors
    /// When the thread or its signal descriptor cannot be made.
    pub fn start(scratch: PathBuf) -> io::Result<LeaseKeeper> {
        let keeper = LeaseKeeper { sources: Arc::default(), scratch };
        let notices = Notices::new()?;
        let answering = keeper.clone();
        std::thread::Builder::new().name("leases".to_string()).spawn(move || answering.answer(&notices))?;
        Ok(keeper)
    }

    /// Registers a source, and looks once whether its lease was broken before it was known here.
    pub fn register(&self, source: &Arc<Source>) {
        let Some(descriptor) = source.descriptor() else { return };
        let mut sources = self.sources.lock();
        if sources.len() > 4 * 1024 && sources.len().is_multiple_of(1024) {
            sources.retain(|_, known| known.strong_count() > 0);
        }
        sources.insert(descriptor, Arc::downgrade(source));
        drop(sources);
        source.step_aside(&self.scratch, Instant::now());
    }

    fn answer(&self, notices: &Notices) {
        loop {
            let notice = notices.next();
            let asked = Instant::now();
            match notice {
                // The number may have been given to another file since: then its lease is whole.
                Ok(Notice::Broken(descriptor)) => {
                    let source = self.sources.lock().get(&descriptor).and_then(Weak::upgrade);
                    if let Some(source) = source {
                        source.step_aside(&self.scratch, asked);
                    }
                }
                Ok(Notice::LookAtAll) => {
                    let all: Vec<_> = self.sources.lock().values().filter_map(Weak::upgrade).collect();
                    all.iter().for_each(|source| source.step_aside(&self.scratch, asked));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Without notices a writer waits until the flush ends or the kernel breaks the lease: slower, never
                // wrong.
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    fn scene() -> (tempfile::TempDir, Stage) {
        lease::block_signals().unwrap();
        let tier = tempfile::tempdir_in("/dev/shm").unwrap();
        let stage = Stage::create(&tier.path().join("sheaf-0/0123456789abcdef"), Path::new("/s")).unwrap();
        (tier, stage)
    }

    fn ready(stage: &Stage, path: &[u8]) -> Arc<Source> {
        match Source::open(stage, path).unwrap() {
            Opened::Ready(source, _) => source,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn states_of_a_file() {
        let (_tier, stage) = scene();
        assert!(matches!(Source::open(&stage, b"a").unwrap(), Opened::Gone));
        let mut writer = File::create(stage.tree_path(b"a")).unwrap();
        writer.write_all(b"data").unwrap();
        assert!(matches!(Source::open(&stage, b"a").unwrap(), Opened::StillWritten));
        drop(writer);
        assert_eq!(ready(&stage, b"a").size(), 4);
        fs::create_dir(stage.tree_path(b"d")).unwrap();
        assert!(matches!(Source::open(&stage, b"d").unwrap(), Opened::Gone));
        let location = stage.tree_path(b"a");
        rustix::fs::chmod(&location, Mode::from_raw_mode(0o200)).unwrap();
        assert_eq!(ready(&stage, b"a").size(), 4);
        rustix::fs::chmod(&location, Mode::from_raw_mode(0o600 | STUB_BIT)).unwrap();
        assert!(matches!(Source::open(&stage, b"a").unwrap(), Opened::Stub(_)));
    }

    #[test]
    fn a_writer_that_comes_back_goes_on_and_the_source_keeps_the_old_bytes() {
        let (_tier, stage) = scene();
        let keeper = LeaseKeeper::start(stage.path("scratch")).unwrap();
        fs::write(stage.tree_path(b"a"), vec![7u8; 100_000]).unwrap();
        let source = ready(&stage, b"a");
        let location = stage.tree_path(b"a");
        let refused = std::os::unix::fs::OpenOptionsExt::custom_flags(OpenOptions::new().write(true), libc::O_NONBLOCK)
            .open(&location);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        keeper.register(&source);
        let mut writer = OpenOptions::new().write(true).open(&location).unwrap();
        writer.write_all(b"new").unwrap();
        let mut bytes = vec![0; 100_000];
        source.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7) && !source.is_torn(lease::trusted_time()));
        let mapping = source.mapping().unwrap();
        // SAFETY: the source has gone over to a copy that nobody else can open.
        assert_eq!(unsafe { mapping.bytes() }[..4], [7; 4]);
    }

    #[test]
    fn a_replaced_inode_needs_no_copy() {
        let (_tier, stage) = scene();
        fs::write(stage.tree_path(b"a"), b"old").unwrap();
        let source = ready(&stage, b"a");
        fs::write(stage.path("scratch").join("n"), b"new").unwrap();
        fs::rename(stage.path("scratch").join("n"), stage.tree_path(b"a")).unwrap();
        let refused = std::os::unix::fs::OpenOptionsExt::custom_flags(OpenOptions::new().write(true), libc::O_NONBLOCK)
            .open(format!("/proc/self/fd/{}", source.descriptor().unwrap()));
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        source.step_aside(&stage.path("scratch"), Instant::now());
        let mut bytes = [0; 3];
        source.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"old");
    }

    #[test]
    fn holes_are_seen() {
        let (_tier, stage) = scene();
        let file = File::create(stage.tree_path(b"a")).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(b"x", 512 * 1024).unwrap();
        drop(file);
        assert_eq!(ready(&stage, b"a").data_ranges().unwrap(), vec![(512 * 1024, 512 * 1024 + 4096)]);
    }
}
