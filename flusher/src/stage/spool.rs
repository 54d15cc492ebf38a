//! The directory of a further tier in which segments wait for the store: `TIER/sheaf-UID/HASH.spool`, beside where a
//! stage would be.
//!
//! It outlives processes, jobs and the first tier. One flusher at a time has it; it must be as private as a stage.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use sheaf_common::{layout, room};

use super::{check_private, make_private};

/// What the directory's name has behind that of a stage of the same store.
pub const SUFFIX: &str = ".spool";
/// How long the directory may be another flusher's that has just ended.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
/// Name suffix of what waits.
const SEGMENT: &str = "tar";
/// What a segment is called of which not everything could be read.
const DAMAGED: &str = "damaged";

/// See the module.
#[derive(Debug)]
pub struct SpoolDirectory {
    path: PathBuf,
    /// Locked for as long as it is open.
    _lock: File,
}

impl SpoolDirectory {
    /// Makes the directory if it is missing, checks it, and takes it for this process. Nothing when another flusher has
    /// it.
    ///
    /// # Errors
    /// When it is not private, or cannot be made or locked.
    pub fn open(path: &Path, store: &Path) -> io::Result<Option<SpoolDirectory>> {
        for private in [path.parent().unwrap_or(path), path] {
            make_private(private)?;
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let lock = options.open(path.join(layout::LOCK))?;
        let start = Instant::now();
        while let Err(error) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            match error {
                Errno::WOULDBLOCK if start.elapsed() >= LOCK_LIMIT => return Ok(None),
                Errno::WOULDBLOCK | Errno::INTR => std::thread::sleep(Duration::from_millis(10)),
                error => return Err(error.into()),
            }
        }
        let mut identity = OpenOptions::new();
        identity.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        identity.open(path.join(layout::IDENTITY))?.write_all(&[store.as_os_str().as_bytes(), b"\n"].concat())?;
        Ok(Some(SpoolDirectory { path: path.to_owned(), _lock: lock }))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether so much fits into a tier, and as much is left for others as is always kept free in a stage.
pub fn has_room_for(directory: &Path, bytes: u64) -> bool {
    rustix::fs::statvfs(directory).is_ok_and(|status| {
        let reserve = room::reserve_bytes(status.f_blocks * status.f_frsize);
        status.f_bavail * status.f_frsize >= bytes.saturating_add(reserve)
    })
}

/// What is found where such a directory would be.
#[derive(Debug)]
pub enum Found {
    /// Nothing of this user's.
    Nothing,
    /// Something that is not to be believed, for this reason.
    Refused(String),
    /// The directory, this user's alone.
    Own,
}

/// Looks for such a directory.
///
/// # Errors
/// When the file system does not say.
pub fn find(path: &Path) -> io::Result<Found> {
    for private in [path.parent().unwrap_or(path), path] {
        match check_private(private) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Found::Nothing);
            }
            // What it says itself, and not the file system.
            Err(error) if error.raw_os_error().is_none() => return Ok(Found::Refused(error.to_string())),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(Found::Nothing),
            Err(error) => return Err(error),
        }
    }
    Ok(Found::Own)
}

/// The files in which segments wait. A directory that is missing has none; what is not private holds nothing of ours.
///
/// # Errors
/// When the directory cannot be listed.
pub fn segment_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !matches!(find(path)?, Found::Own) {
        return Ok(Vec::new());
    }
    let paths = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path()));
    let mut files: Vec<PathBuf> = paths.collect::<io::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == SEGMENT));
    files.sort();
    Ok(files)
}

/// Keeps a segment of which not everything could be read, for `sheaf extract --salvage`; nobody takes it for one that
/// waits.
///
/// # Errors
/// From rename(2).
pub fn put_aside(file: &Path) -> io::Result<PathBuf> {
    let aside = file.with_extension(DAMAGED);
    fs::rename(file, &aside)?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn one_flusher_at_a_time_has_it() {
        let tier = tempfile::tempdir().unwrap();
        let path = tier.path().join("sheaf-0/0123456789abcdef.spool");
        assert!(segment_files(&path).unwrap().is_empty());
        let first = SpoolDirectory::open(&path, Path::new("/s")).unwrap().expect("nobody has it");
        assert!(SpoolDirectory::open(&path, Path::new("/s")).unwrap().is_none());
        assert!(has_room_for(&path, 0) && !has_room_for(&path, u64::MAX));
        for name in ["n-2.tar", "n-1.tar", ".n-3.new"] {
            fs::write(first.path().join(name), "").unwrap();
        }
        let kept = put_aside(&path.join("n-2.tar")).unwrap();
        assert_eq!(segment_files(&path).unwrap(), [path.join("n-1.tar")]);
        assert!(kept.exists());
        drop(first);
        assert!(SpoolDirectory::open(&path, Path::new("/s")).unwrap().is_some());
    }

    #[test]
    fn one_that_others_can_enter_is_refused_and_not_read() {
        let tier = tempfile::tempdir().unwrap();
        let path = tier.path().join("sheaf-0/0123456789abcdef.spool");
        drop(SpoolDirectory::open(&path, Path::new("/s")).unwrap());
        fs::write(path.join("n-1.tar"), "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(SpoolDirectory::open(&path, Path::new("/s")).is_err());
        assert!(segment_files(&path).unwrap().is_empty());
    }
}
