//! The stage: the node-local directory that holds captured files. It survives every process; it is the recovery log.
//!
//! Paths inside Sheaf are the canonical absolute path without its leading slash, as bytes: what an aggregate stores.
//! Nothing here may follow a symbolic link that another user could have planted, or remove a captured file.

pub mod alive;
pub mod lease;
mod links;
pub mod mirror;
#[cfg(test)]
mod mirror_tests;
pub mod moving;
pub mod room;
pub mod source;
pub mod spool;
pub mod told;
pub mod tracker;
#[cfg(test)]
mod tracker_tests;
pub mod transient;
pub mod watch;

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, Stat, Statx, StatxFlags};
use sheaf_common::layout;
use sheaf_common::replaced::{FileIdentity, Marker, nanoseconds};

use crate::aggregate::{Attributes, hexadecimal, parse_uuid};

/// How notes of times are named in the scratch directory; the inode's number follows.
const TIMES: &[u8] = b"times-";
/// What stands before a directory's name where those are noted in which segments wait: whether some may.
const SOMETHING_WAITS: u8 = b'+';
const NOTHING_WAITS: u8 = b'-';
/// File systems that cannot hold a stage, by their statfs(2) magic, with the reason.
const REFUSED_FILE_SYSTEMS: [(u64, &str); 2] = [
    (0x794c_7630, "overlayfs: it grants leases while a writable mapping is alive, so completion cannot be known"),
    (0x6969, "NFS: it is not node-local, and leases and inotify do not see other nodes"),
];

/// Why a directory cannot serve as a stage.
#[derive(Debug)]
pub struct StageError {
    /// The directory.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for StageError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "stage {}: {}", self.path.display(), self.problem)
    }
}

impl std::error::Error for StageError {}

/// A stage directory that has been checked: it is ours, private, and on a file system that tells when files are
/// complete.
#[derive(Clone, Debug)]
pub struct Stage {
    directory: PathBuf,
    /// The tree, so that looking at a file in it need not walk to it from the root each time.
    tree: Arc<OwnedFd>,
}

impl Stage {
    /// Makes the stage directory if it is missing, and checks it and its parent (`TIER/sheaf-UID`).
    ///
    /// # Errors
    /// When the file system is refused, when a directory belongs to somebody else, is a symbolic link or open to
    /// others, or cannot be made.
    pub fn create(directory: &Path, store: &Path) -> Result<Stage, StageError> {
        let failed = |problem: String| StageError { path: directory.to_path_buf(), problem };
        if directory.as_os_str().len() > layout::STAGE_PATH_MAX {
            return Err(failed(format!(
                "its path is longer than {} bytes, the most that a socket in it can have; choose a shorter SHEAF_STAGE",
                layout::STAGE_PATH_MAX
            )));
        }
        let parent = directory.parent().ok_or_else(|| failed("has no parent directory".to_string()))?;
        for private in [parent, directory] {
            make_private(private).map_err(|error| failed(error.to_string()))?;
        }
        refuse_file_system(directory).map_err(failed)?;
        for name in [layout::TREE, layout::SCRATCH, layout::LINKS, layout::MOVING, layout::REPLACED] {
            make_private(&directory.join(name)).map_err(|error| failed(error.to_string()))?;
        }
        let tree = open_tree(directory).map_err(|error| failed(error.to_string()))?;
        let stage = Stage { directory: directory.to_path_buf(), tree: Arc::new(tree) };
        let identity = stage.path(layout::IDENTITY);
        let mut text = store.as_os_str().as_bytes().to_vec();
        text.push(b'\n');
        if fs::read(&identity).ok().as_deref() != Some(&text) {
            fs::write(&identity, &text)
                .map_err(|error| failed(format!("cannot write {}: {error}", identity.display())))?;
        }
        Ok(stage)
    }

    /// Whether nobody has begun to delete the stage itself, as somebody does who cleans a node up. What then vanishes
    /// from the tree was removed by no program.
    pub fn is_intact(&self) -> bool {
        let own = [layout::IDENTITY, layout::LOCK, layout::SCRATCH, layout::LINKS, layout::REPLACED];
        let tree = fs::symlink_metadata(self.path(layout::TREE));
        tree.is_ok_and(|tree| rustix::fs::fstat(&self.tree).is_ok_and(|own| own.st_ino == tree.ino()))
            && own.iter().all(|name| fs::symlink_metadata(self.path(name)).is_ok())
    }

    /// What tells this stage from every other, made when it is first asked for. The caller holds the stage's lock.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn uuid(&self) -> io::Result<[u8; 16]> {
        let path = self.path(layout::UUID);
        if let Some(uuid) = fs::read_to_string(&path).ok().and_then(|text| parse_uuid(text.trim_end())) {
            return Ok(uuid);
        }
        let mut uuid = [0; 16];
        rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty())?;
        let aside = self.path(layout::SCRATCH).join(layout::UUID);
        fs::write(&aside, format!("{}\n", hexadecimal(&uuid)))?;
        fs::rename(aside, path)?;
        Ok(uuid)
    }

    /// When it was made, in nanoseconds since 1970; its uuid has been asked for before.
    ///
    /// # Errors
    /// From the file system.
    pub fn born_ns(&self) -> io::Result<u64> {
        let status = rustix::fs::stat(self.path(layout::UUID))?;
        Ok(nanoseconds(status.st_mtime, status.st_mtime_nsec as u32))
    }

    /// Whether nothing was captured in it, and nobody has looked into a checkpoint directory by it.
    ///
    /// # Errors
    /// When the tree cannot be read.
    pub fn is_fresh(&self) -> io::Result<bool> {
        Ok(fs::read_dir(self.path(layout::TREE))?.next().is_none())
    }

    /// Directories of further tiers in which something of this stage may wait for the store, wherever the tiers are by
    /// now; with whether it may, or nothing does.
    pub fn spools(&self) -> Vec<(PathBuf, bool)> {
        let text = fs::read(self.path(layout::SPOOLS)).unwrap_or_default();
        let noted = |line: &[u8]| {
            let (sign, path) = line.split_first()?;
            Some((PathBuf::from(OsStr::from_bytes(path)), *sign != NOTHING_WAITS))
        };
        text.split(|byte| *byte == b'\n').filter_map(noted).collect()
    }

    /// Takes note whether something may wait in such a directory. One that is noted already takes no room: there may be
    /// none.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn mark_spool(&self, directory: &Path, may_wait: bool) -> io::Result<()> {
        let (known, sign) = (self.spools(), [if may_wait { SOMETHING_WAITS } else { NOTHING_WAITS }]);
        let place = known.iter().position(|(path, _)| path == directory);
        if place.is_some_and(|place| known[place].1 == may_wait) {
            return Ok(());
        }
        let length = |(path, _): &(PathBuf, bool)| path.as_os_str().len() as u64 + 2;
        let start = known[..place.unwrap_or(known.len())].iter().map(length).sum();
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(self.path(layout::SPOOLS))?;
        match place {
            Some(_) => file.write_all_at(&sign, start)?,
            None => file.write_all_at(&[&sign, directory.as_os_str().as_bytes(), b"\n"].concat(), start)?,
        }
        // Before anything is put there.
        if may_wait { file.sync_data() } else { Ok(()) }
    }

    /// The stage directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A name in the stage directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Whether this file is in the tree under that name, with its data.
    pub fn holds(&self, path: &[u8], inode: u64) -> bool {
        self.stat(path).is_ok_and(|stat| stat.st_ino == inode && stat.st_mode & layout::STUB_BIT == 0)
    }

    /// Where `path` lies in the tree.
    pub fn tree_path(&self, path: &[u8]) -> PathBuf {
        let mut full = [self.directory.as_os_str().as_bytes(), b"/", layout::TREE.as_bytes(), b"/", path].concat();
        if path.is_empty() {
            full.pop();
        }
        PathBuf::from(std::ffi::OsString::from_vec(full))
    }

    /// The same for calls that take a directory and a path from there.
    pub fn in_tree<'a>(&'a self, path: &'a [u8]) -> (BorrowedFd<'a>, &'a [u8]) {
        (self.tree.as_fd(), if path.is_empty() { b"." } else { path })
    }

    /// lstat(2) of a path in the tree.
    ///
    /// # Errors
    /// From fstatat(2).
    pub fn stat(&self, path: &[u8]) -> rustix::io::Result<Stat> {
        let (tree, path) = self.in_tree(path);
        rustix::fs::statat(tree, path, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Locks the stage for the one flusher that may serve it. `None` when another process holds the lock.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn try_lock(&self) -> io::Result<Option<File>> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(self.path(layout::LOCK))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the reading end of the pulse: as long as it is open, processes that capture know that a flusher lives.
    ///
    /// # Errors
    /// When the FIFO cannot be made or opened.
    pub fn open_pulse(&self) -> io::Result<File> {
        let path = self.path(layout::PULSE);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.file_type().is_fifo() => {}
            Ok(_) => fs::remove_file(&path)?,
            Err(_) => {}
        }
        match rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::from_raw_mode(0o600)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(File::from(rustix::fs::open(&path, flags, Mode::empty())?))
    }

    /// The markers of older files on the parallel file system, as they were written. One that is not whole, or that
    /// names another path than its own hash says, is skipped.
    ///
    /// # Errors
    /// When the directory of markers cannot be read.
    pub fn replaced(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut markers = Vec::new();
        for entry in fs::read_dir(self.path(layout::REPLACED))? {
            let entry = entry?;
            let content = match fs::read(entry.path()) {
                // The program has removed the file meanwhile, and its marker.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => result?,
            };
            let path = Marker::parse(&content).map(|marker| layout::marker_name(marker.path));
            if path.is_some_and(|name| entry.file_name().as_bytes() == name) {
                markers.push(content);
            }
        }
        Ok(markers)
    }

    /// Removes the file that a marker means, if it is still there, then the marker. What has come in its place stays,
    /// and so does the marker: it goes with the name. True if a file was removed.
    ///
    /// # Errors
    /// When the file or the marker cannot be removed.
    pub fn remove_replaced(&self, marker: &Marker) -> io::Result<bool> {
        let real = Path::new(OsStr::from_bytes(marker.path));
        let is_it = match identity(real) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => false,
            Ok(file) if file.is_same(&marker.file) => true,
            Ok(_) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        for path in [is_it.then_some(real), Some(&self.marker_path(marker.path))].into_iter().flatten() {
            match fs::remove_file(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        Ok(is_it)
    }

    /// Keeps a stub's times safe while they are not in its inode. The note is a link's text: it is there whole or not
    /// at all, and takes no room of a stage that is full.
    ///
    /// # Errors
    /// When the note cannot be made.
    pub fn note_times(&self, inode: u64, attributes: &Attributes) -> io::Result<()> {
        let text = format!("{} {}", attributes.mtime_seconds, attributes.mtime_nanoseconds);
        self.forget_times(inode);
        std::os::unix::fs::symlink(text, self.note_path(inode))
    }

    /// Ends what [`Stage::note_times`] began.
    pub fn forget_times(&self, inode: u64) {
        // A note that stays repeats what the inode says.
        let _ = fs::remove_file(self.note_path(inode));
    }

    /// Removes what dead flushers have noted of files that are not there any more: another file may get the number.
    ///
    /// # Errors
    /// When the notes cannot be listed or removed.
    pub fn forget_all_times(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.path(layout::SCRATCH))? {
            let entry = entry?;
            if entry.file_name().as_bytes().starts_with(TIMES) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// The times of a stub that a flusher left half-changed, in seconds and nanoseconds.
    pub fn noted_times(&self, inode: u64) -> Option<(i64, u32)> {
        let text = fs::read_link(self.note_path(inode)).ok()?;
        let (seconds, nanoseconds) = text.to_str()?.split_once(' ')?;
        Some((seconds.parse().ok()?, nanoseconds.parse().ok()?))
    }

    fn note_path(&self, inode: u64) -> PathBuf {
        self.path(layout::SCRATCH).join(OsStr::from_bytes(&[TIMES, inode.to_string().as_bytes()].concat()))
    }

    /// Where the marker of a canonical absolute path lies.
    pub fn marker_path(&self, absolute: &[u8]) -> PathBuf {
        self.path(layout::REPLACED).join(OsStr::from_bytes(&layout::marker_name(absolute)))
    }

    /// Says that what is to come to `absolute` in a moment, `file`, is what is published of this inode in the tree.
    ///
    /// # Errors
    /// When the marker cannot be written.
    pub fn mark_published(&self, absolute: &[u8], file: FileIdentity, inode: u64) -> io::Result<()> {
        let marker = Marker { file, is_found: false, published_inode: inode, path: absolute };
        let aside = self.path(layout::SCRATCH).join(OsStr::from_bytes(&layout::marker_name(absolute)));
        fs::write(&aside, [&marker.head()[..], absolute].concat())?;
        fs::rename(&aside, self.marker_path(absolute))
    }

    /// The file that a marker at `absolute` means, if there is one.
    pub fn marked(&self, absolute: &[u8]) -> Option<FileIdentity> {
        let content = fs::read(self.marker_path(absolute)).ok()?;
        Marker::parse(&content).filter(|marker| marker.path == absolute).map(|marker| marker.file)
    }

    /// Takes the marker at `absolute` away.
    pub fn unmark(&self, absolute: &[u8]) {
        // One too many is harmless.
        let _ = fs::remove_file(self.marker_path(absolute));
    }

    /// Says that the file at `absolute` has turned out to be older than what the store holds, and is to go with the
    /// name.
    ///
    /// # Errors
    /// When there is no such file, or the marker cannot be written.
    pub fn mark_found(&self, absolute: &[u8]) -> io::Result<()> {
        let file = identity(Path::new(OsStr::from_bytes(absolute)))?;
        let marker = Marker { file, is_found: true, published_inode: 0, path: absolute };
        File::create(self.marker_path(absolute))?.write_all(&[&marker.head()[..], absolute].concat())
    }
}

/// What tells the file at a path from every other.
///
/// # Errors
/// From statx(2).
pub fn identity(path: &Path) -> Result<FileIdentity, rustix::io::Errno> {
    let flags = StatxFlags::INO | StatxFlags::MTIME | StatxFlags::BTIME;
    match rustix::fs::statx(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW, flags) {
        Ok(found) => {
            let modified_ns = nanoseconds(found.stx_mtime.tv_sec, found.stx_mtime.tv_nsec);
            Ok(FileIdentity { inode: found.stx_ino, born_ns: born_ns(&found), modified_ns })
        }
        // Older kernels, and sandboxes that forbid the call.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
            let stat = rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
            let modified_ns = nanoseconds(stat.st_mtime, stat.st_mtime_nsec as u32);
            Ok(FileIdentity { inode: stat.st_ino, born_ns: 0, modified_ns })
        }
        Err(error) => Err(error),
    }
}

/// fstat(2), and when the file was made, in nanoseconds since 1970 (0 where that is not known): in one call.
///
/// # Errors
/// From statx(2).
pub fn stat_and_birth(file: &File) -> Result<(Stat, u64), rustix::io::Errno> {
    let flags = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, flags) {
        Ok(found) => Ok((stat_of(&found), born_ns(&found))),
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => Ok((rustix::fs::fstat(file)?, 0)),
        Err(error) => Err(error),
    }
}

fn born_ns(found: &Statx) -> u64 {
    let is_known = found.stx_mask & StatxFlags::BTIME.bits() != 0;
    if is_known { nanoseconds(found.stx_btime.tv_sec, found.stx_btime.tv_nsec) } else { 0 }
}

/// What stat(2) says of the same file. The types of its fields differ between architectures.
fn stat_of(found: &Statx) -> Stat {
    // SAFETY: a Stat is numbers only, for which all bits zero are a value.
    let mut stat: Stat = unsafe { std::mem::zeroed() };
    stat.st_dev = rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor) as _;
    stat.st_rdev = rustix::fs::makedev(found.stx_rdev_major, found.stx_rdev_minor) as _;
    stat.st_ino = found.stx_ino as _;
    stat.st_mode = u32::from(found.stx_mode) as _;
    stat.st_nlink = found.stx_nlink as _;
    (stat.st_uid, stat.st_gid) = (found.stx_uid as _, found.stx_gid as _);
    stat.st_size = found.stx_size as _;
    stat.st_blksize = found.stx_blksize as _;
    stat.st_blocks = found.stx_blocks as _;
    (stat.st_atime, stat.st_atime_nsec) = (found.stx_atime.tv_sec as _, found.stx_atime.tv_nsec as _);
    (stat.st_mtime, stat.st_mtime_nsec) = (found.stx_mtime.tv_sec as _, found.stx_mtime.tv_nsec as _);
    (stat.st_ctime, stat.st_ctime_nsec) = (found.stx_ctime.tv_sec as _, found.stx_ctime.tv_nsec as _);
    stat
}

/// The tree of a stage.
fn open_tree(stage: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(stage.join(layout::TREE), flags, Mode::empty())
}

/// Makes a directory that only we can enter, or checks that it is one.
fn make_private(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(io::Error::other(format!("cannot make {}: {error}", path.display())))
        }
        _ => check_private(path),
    }
}

/// Checks that a directory is ours and that nobody else can enter it.
///
/// # Errors
/// Why it is not to be believed, with what to do about it.
pub fn check_private(path: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let owner = rustix::process::geteuid().as_raw();
    if !metadata.is_dir() {
        return Err(io::Error::other(format!("{} is not a directory; remove it", path.display())));
    }
    if metadata.uid() != owner {
        return Err(io::Error::other(format!(
            "{} belongs to user {}, not to {owner}; choose another SHEAF_STAGE",
            path.display(),
            metadata.uid()
        )));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(io::Error::other(format!(
            "{} is open to others (mode {:o}); make it private with chmod 700",
            path.display(),
            metadata.mode() & 0o7777
        )));
    }
    Ok(())
}

/// Checks that nobody can put another directory in the place of what lies in `tier`: it, everything above it, and every
/// link on the way belong to root or to this user, and what everybody may write to has the sticky bit. Groups are whom
/// the owner has put into them.
///
/// # Errors
/// Which directory is not to be trusted, with what to do about it.
pub fn check_ancestors(tier: &Path) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    let trusted = [0, own, root_number().unwrap_or(own)];
    let resolved = tier.canonicalize()?;
    for path in tier.ancestors().chain(resolved.ancestors()) {
        let metadata = fs::symlink_metadata(path)?;
        if !trusted.contains(&metadata.uid()) {
            return Err(io::Error::other(format!(
                "{} belongs to user {}, who can exchange what is in it; choose another SHEAF_STAGE",
                path.display(),
                metadata.uid()
            )));
        }
        if !metadata.is_symlink() && metadata.mode() & 0o1002 == 0o002 {
            return Err(io::Error::other(format!(
                "{} is open to everybody (mode {:o}), who can exchange what is in it; set its sticky bit with chmod +t",
                path.display(),
                metadata.mode() & 0o7777
            )));
        }
    }
    Ok(())
}

/// The number under which root owns files here; see [`layout::OF_ROOT`].
fn root_number() -> Option<u32> {
    rustix::fs::lstat(layout::OF_ROOT).ok().map(|stat| stat.st_uid)
}

/// Says why the file system under `directory` cannot hold a stage, if so.
///
/// # Errors
/// The reason, ready to be shown.
pub fn refuse_file_system(directory: &Path) -> Result<(), String> {
    let status = rustix::fs::statfs(directory).map_err(|error| format!("statfs failed: {error}"))?;
    match REFUSED_FILE_SYSTEMS.iter().find(|(magic, _)| *magic == status.f_type as u64) {
        Some((_, reason)) => Err(format!("refused, it is on {reason}; set SHEAF_STAGE to tmpfs, ext4 or xfs")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn scene() -> (tempfile::TempDir, PathBuf) {
        let tier = tempfile::tempdir_in("/dev/shm").unwrap();
        let directory = tier.path().join("sheaf-0").join("0123456789abcdef");
        (tier, directory)
    }

    #[test]
    fn one_call_says_what_two_do() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = File::create(directory.path().join("file")).unwrap();
        file.set_len(12345).unwrap();
        let (found, born_ns) = stat_and_birth(&file).unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        assert_eq!(format!("{found:?}"), format!("{stat:?}"));
        assert_eq!(born_ns, identity(&directory.path().join("file")).unwrap().born_ns);
    }

    #[test]
    fn a_stage_is_made_private_and_found_again() {
        let (_tier, directory) = scene();
        let stage = Stage::create(&directory, Path::new("/scratch/.sheaf")).unwrap();
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::read(stage.path(layout::IDENTITY)).unwrap(), b"/scratch/.sheaf\n");
        assert_eq!(stage.tree_path(b"scratch/a"), directory.join("tree/scratch/a"));
        Stage::create(&directory, Path::new("/scratch/.sheaf")).unwrap();
    }

    #[test]
    fn a_planted_link_or_an_open_directory_is_refused() {
        let (tier, directory) = scene();
        let elsewhere = tier.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, directory.parent().unwrap()).unwrap();
        assert!(Stage::create(&directory, Path::new("/s")).is_err());
        fs::remove_file(directory.parent().unwrap()).unwrap();
        fs::create_dir(directory.parent().unwrap()).unwrap();
        fs::set_permissions(directory.parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Stage::create(&directory, Path::new("/s")).is_err());
    }

    #[test]
    fn it_is_noted_where_something_waits() {
        let (_tier, directory) = scene();
        let stage = Stage::create(&directory, Path::new("/s")).unwrap();
        assert!(stage.spools().is_empty());
        let [first, second] = ["/nvme/a.spool", "/b.spool"].map(PathBuf::from);
        for (place, may_wait) in [(&first, false), (&second, true), (&first, true), (&second, false), (&second, false)]
        {
            stage.mark_spool(place, may_wait).unwrap();
        }
        assert_eq!(stage.spools(), [(first.clone(), true), (second.clone(), false)]);
        assert_eq!(fs::read(stage.path(layout::SPOOLS)).unwrap(), b"+/nvme/a.spool\n-/b.spool\n");
        stage.mark_spool(&first, false).unwrap();
        assert_eq!(stage.spools(), [(first, false), (second, false)]);
    }

    #[test]
    fn only_one_flusher_holds_the_lock() {
        let (_tier, directory) = scene();
        let stage = Stage::create(&directory, Path::new("/s")).unwrap();
        let first = stage.try_lock().unwrap();
        assert!(first.is_some());
        assert!(stage.try_lock().unwrap().is_none());
        drop(first);
        assert!(stage.try_lock().unwrap().is_some());
    }

    #[test]
    fn a_marker_removes_the_file_that_it_means_and_no_other() {
        let (tier, directory) = scene();
        let stage = Stage::create(&directory, Path::new("/s")).unwrap();
        let real = tier.path().join("old");
        fs::write(&real, "old").unwrap();
        stage.mark_found(real.as_os_str().as_bytes()).unwrap();
        fs::write(stage.path(layout::REPLACED).join("0000000000000000"), [&[0; 32][..], b"/forged"].concat()).unwrap();
        fs::write(stage.path(layout::REPLACED).join("0000000000000001"), b"torn").unwrap();
        let markers = stage.replaced().unwrap();
        let [content] = &markers[..] else { panic!("{markers:?}") };
        let marker = Marker::parse(content).unwrap();
        assert_eq!(marker.path, real.as_os_str().as_bytes());
        fs::rename(&real, tier.path().join("kept")).unwrap();
        fs::write(&real, "another").unwrap();
        assert!(!stage.remove_replaced(&marker).unwrap());
        assert!(real.exists() && stage.marker_path(marker.path).exists());
        fs::rename(tier.path().join("kept"), &real).unwrap();
        assert!(stage.remove_replaced(&marker).unwrap());
        assert!(!real.exists() && !stage.marker_path(marker.path).exists());
    }

    #[test]
    fn a_long_path_is_refused_with_advice() {
        let (tier, _) = scene();
        let directory = tier.path().join("x".repeat(80)).join("y");
        let error = Stage::create(&directory, Path::new("/s")).unwrap_err();
        assert!(error.to_string().contains("SHEAF_STAGE"));
    }
}
