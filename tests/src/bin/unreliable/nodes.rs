//! The files behind the mount: each is held by a descriptor, whatever becomes of its names.

use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileHandle, FileType, INodeNo, TimeOrNow};

use super::{Outcome, errno};

/// The directory whose calls are counted: the store.
const STORE: &str = ".sheaf";
/// End of the names of the others: where segments wait in a further tier.
const SPOOL: &[u8] = b".spool";

/// Places in a file, and what lies there.
type Pieces = Vec<(u64, Vec<u8>)>;

/// See the module.
pub struct Nodes {
    /// Never closed and never replaced: paths lead through the descriptors' numbers, which must not become another
    /// file's meanwhile. No number of a file comes to mean another one either, since it is held.
    known: Mutex<HashMap<u64, File>>,
    counted: Mutex<HashSet<u64>>,
    open: Mutex<HashMap<u64, std::sync::Arc<File>>>,
    next: AtomicU64,
    /// Of each file what lay where it was written since it was made durable.
    unsynced: Mutex<HashMap<u64, Pieces>>,
}

impl Nodes {
    /// With the root alone.
    pub fn new(backing: &Path) -> io::Result<Nodes> {
        Ok(Nodes {
            known: Mutex::new(HashMap::from([(INodeNo::ROOT.0, handle_of(backing)?)])),
            counted: Mutex::default(),
            open: Mutex::default(),
            next: AtomicU64::new(1),
            unsynced: Mutex::default(),
        })
    }

    /// Whether calls on this file, or on this name in it, are counted.
    pub fn is_counted(&self, inode: INodeNo, name: Option<&OsStr>) -> bool {
        let begins = |name: &OsStr| name == STORE || name.as_encoded_bytes().ends_with(SPOOL);
        name.is_some_and(begins) || self.counted.lock().expect("no panics").contains(&inode.0)
    }

    /// A path that leads to the file, or to a name in it.
    pub fn path(&self, inode: INodeNo, name: Option<&OsStr>) -> Outcome<PathBuf> {
        let known = self.known.lock().expect("no panics");
        let node = known.get(&inode.0).ok_or(Errno::ESTALE)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", node.as_raw_fd()));
        Ok(name.map_or(path.clone(), |name| path.join(name)))
    }

    /// Takes note of the file of a name, and yields its attributes.
    pub fn find(&self, parent: INodeNo, name: &OsStr) -> Outcome<FileAttr> {
        let node = handle_of(&self.path(parent, Some(name))?).map_err(|error| errno(&error))?;
        let attributes = attributes(&node).map_err(|error| errno(&error))?;
        if self.is_counted(parent, Some(name)) {
            self.counted.lock().expect("no panics").insert(attributes.ino.0);
        }
        self.known.lock().expect("no panics").entry(attributes.ino.0).or_insert(node);
        Ok(attributes)
    }

    /// A file's attributes.
    pub fn attributes(&self, inode: INodeNo) -> Outcome<FileAttr> {
        let known = self.known.lock().expect("no panics");
        let node = known.get(&inode.0).ok_or(Errno::ESTALE)?;
        let found = attributes(node).map_err(|error| errno(&error))?;
        Ok(FileAttr { ino: inode, ..found })
    }

    /// A symbolic link's text.
    pub fn link_text(&self, inode: INodeNo) -> Outcome<OsString> {
        let known = self.known.lock().expect("no panics");
        let node = known.get(&inode.0).ok_or(Errno::ESTALE)?;
        let mut text = vec![0u8; libc::PATH_MAX as usize];
        // SAFETY: an empty path that ends with NUL, and a buffer of the length that is passed.
        let length = unsafe { libc::readlinkat(node.as_raw_fd(), c"".as_ptr(), text.as_mut_ptr().cast(), text.len()) };
        text.truncate(usize::try_from(length).map_err(|_| errno(&io::Error::last_os_error()))?);
        // SAFETY: these are the bytes of an operating system's string.
        Ok(unsafe { OsString::from_encoded_bytes_unchecked(text) })
    }

    /// Keeps an open file under a new number.
    pub fn keep(&self, file: File) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.lock().expect("no panics").insert(number, file.into());
        FileHandle(number)
    }

    /// The open file of a number.
    pub fn file(&self, handle: FileHandle) -> Outcome<std::sync::Arc<File>> {
        self.open.lock().expect("no panics").get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    /// Forgets an open file.
    pub fn close(&self, handle: FileHandle) {
        self.open.lock().expect("no panics").remove(&handle.0);
    }

    /// Takes note that what lay there is overwritten, and that this is not durable.
    pub fn note_write(&self, inode: INodeNo, offset: u64, before: Vec<u8>) {
        self.unsynced.lock().expect("no panics").entry(inode.0).or_default().push((offset, before));
    }

    /// What was overwritten since it was asked last, in order.
    pub fn take_unsynced(&self, inode: INodeNo) -> Pieces {
        self.unsynced.lock().expect("no panics").remove(&inode.0).unwrap_or_default()
    }
}

/// A path as C wants it.
pub fn cstring(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).expect("the kernel's names hold no NUL")
}

/// The outcome of a system call.
pub fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// utimensat(2), if there is anything to set.
pub fn set_times(path: &Path, accessed: Option<TimeOrNow>, modified: Option<TimeOrNow>) -> io::Result<()> {
    if accessed.is_none() && modified.is_none() {
        return Ok(());
    }
    let time = |time: Option<TimeOrNow>| match time {
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        Some(TimeOrNow::Now) => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            libc::timespec { tv_sec: since.as_secs() as i64, tv_nsec: since.subsec_nanos().into() }
        }
    };
    let (path, times) = (cstring(path), [time(accessed), time(modified)]);
    // SAFETY: the path ends with NUL, and there are two times.
    checked(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) })
}

/// A descriptor that stands for a file without opening it.
fn handle_of(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path).or_else(
        |error| match path.is_dir() {
            // The backing directory itself may be reached through a link.
            true => OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path),
            false => Err(error),
        },
    )
}

fn attributes(node: &File) -> io::Result<FileAttr> {
    let metadata = node.metadata()?;
    let time = |seconds: i64, nanoseconds: i64| {
        UNIX_EPOCH + Duration::new(seconds.max(0) as u64, nanoseconds.clamp(0, 999_999_999) as u32)
    };
    Ok(FileAttr {
        ino: INodeNo(metadata.ino()),
        size: metadata.size(),
        blocks: metadata.blocks(),
        atime: time(metadata.atime(), metadata.atime_nsec()),
        mtime: time(metadata.mtime(), metadata.mtime_nsec()),
        ctime: time(metadata.ctime(), metadata.ctime_nsec()),
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::from_std(metadata.file_type()).unwrap_or(FileType::RegularFile),
        perm: (metadata.mode() & 0o7777) as u16,
        nlink: metadata.nlink() as u32,
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: metadata.rdev() as u32,
        blksize: 4096,
        flags: 0,
    })
}
