//! Operations on names: the plain function for plain paths, the `*at` function for those relative to a directory.

use std::ffi::{CStr, CString, c_void};
use std::io;

use libc::{AT_FDCWD, c_int, c_uint};

use sheaf_tests::differential::sides::ROOT;

use crate::answer::{Answer, Stop, c_string, done, last_error, number, status, summary};
use crate::files::{bytes, read_all};
use crate::worker::Worker;

/// A path as a plan gives it.
pub struct Place {
    pub directory: c_int,
    pub path: CString,
}

/// Calls the plain function for a plain path, else the `*at` function with the directory before the path.
macro_rules! either {
    ($place:expr, $plain:ident($($argument:expr),*), $at:ident($($at_argument:expr),*)) => {{
        let path = $place.path.as_ptr();
        // SAFETY: the path is a C string; all else that is given to these functions is numbers, or lives until after.
        unsafe {
            match $place.directory {
                AT_FDCWD => libc::$plain(path, $($argument),*),
                directory => libc::$at(directory, path, $($at_argument),*),
            }
        }
    }};
}

impl Place {
    pub fn stat(&self, follows: bool) -> io::Result<libc::stat> {
        let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
        let buffer = stat.as_mut_ptr();
        let result = match follows {
            true => either!(self, stat(buffer), fstatat(buffer, 0)),
            false => either!(self, lstat(buffer), fstatat(buffer, libc::AT_SYMLINK_NOFOLLOW)),
        };
        // SAFETY: the structure is filled when the call has succeeded.
        if result == 0 { Ok(unsafe { stat.assume_init() }) } else { Err(io::Error::last_os_error()) }
    }

    pub fn access(&self, mode: c_int) -> Answer {
        done(either!(self, access(mode), faccessat(mode, 0)))
    }

    pub fn chmod(&self, mode: libc::mode_t) -> Answer {
        done(either!(self, chmod(mode), fchmodat(mode, 0)))
    }

    pub fn set_times(&self, seconds: i64, follows: bool) -> Answer {
        let time = libc::timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
        let flags = if follows { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
        // SAFETY: a C string and two times.
        done(unsafe { libc::utimensat(self.directory, self.path.as_ptr(), [time, time].as_ptr(), flags) })
    }

    pub fn truncate(&self, size: i64) -> Answer {
        let path = self.plain()?;
        // SAFETY: the path is a C string.
        done(unsafe { libc::truncate(path.as_ptr(), size) })
    }

    pub fn symlink(&self, target: &CStr) -> Answer {
        let (target, path) = (target.as_ptr(), self.path.as_ptr());
        // SAFETY: both are C strings.
        done(unsafe {
            match self.directory {
                AT_FDCWD => libc::symlink(target, path),
                directory => libc::symlinkat(target, directory, path),
            }
        })
    }

    pub fn unlink(&self, flags: c_int) -> Answer {
        match flags {
            0 => done(either!(self, unlink(), unlinkat(flags))),
            _ => done(either!(self, rmdir(), unlinkat(flags))),
        }
    }

    pub fn remove(&self) -> Answer {
        let path = self.plain()?;
        // SAFETY: the path is a C string.
        done(unsafe { libc::remove(path.as_ptr()) })
    }

    pub fn mkdir(&self, mode: libc::mode_t) -> Answer {
        done(either!(self, mkdir(mode), mkdirat(mode)))
    }

    /// The path for functions that know no directory.
    pub fn plain(&self) -> Result<&CStr, Stop> {
        if self.directory == AT_FDCWD { Ok(&self.path) } else { Err(Stop::Errno(libc::EBADF)) }
    }

    /// Opens it; the descriptor is the caller's.
    pub fn open(&self, flags: c_int) -> Result<c_int, Stop> {
        Ok(number(either!(self, open(flags), openat(flags)))? as c_int)
    }
}

impl Worker {
    pub fn status_of(&self, place: &Place, name: &str) -> Answer {
        if name == "statx" {
            return self.extended_status(place);
        }
        let stat = place.stat(name == "stat")?;
        Ok(status(&stat, !self.is_native && !self.is_staged(&stat)))
    }

    fn extended_status(&self, place: &Place) -> Answer {
        let mut stat = std::mem::MaybeUninit::<libc::statx>::uninit();
        let (path, mask) = (place.path.as_ptr(), libc::STATX_BASIC_STATS);
        // SAFETY: a C string and room for the answer.
        number(unsafe { libc::statx(place.directory, path, 0, mask, stat.as_mut_ptr()) })?;
        // SAFETY: the call has succeeded.
        let stat = unsafe { stat.assume_init() };
        let is_file = c_uint::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFREG;
        let size = if is_file { stat.stx_size.to_string() } else { String::new() };
        Ok(format!("{:o} {}:{} {size}", stat.stx_mode, stat.stx_uid, stat.stx_gid))
    }

    /// The path as it would read on the other side.
    fn shown(&self, path: &str) -> String {
        let outside = self.root.strip_suffix(ROOT).unwrap_or(&self.root);
        path.replace(&self.root, "@").replace(outside, "@outside/")
    }

    pub fn read_link(&self, place: &Place) -> Answer {
        let mut target = [0u8; 4096];
        let buffer = target.as_mut_ptr().cast();
        let length = number(either!(place, readlink(buffer, 4096), readlinkat(buffer, 4096)) as i64)?;
        Ok(self.shown(&String::from_utf8_lossy(&target[..length as usize])))
    }

    pub fn real_path(&self, place: &Place) -> Answer {
        let path = place.plain()?;
        // SAFETY: the path is a C string; the answer is allocated.
        let resolved = unsafe { libc::realpath(path.as_ptr(), std::ptr::null_mut()) };
        if resolved.is_null() {
            return Err(last_error());
        }
        // SAFETY: a C string that malloc has made for us; it is copied before it is freed.
        let text = unsafe { CStr::from_ptr(resolved).to_string_lossy().into_owned() };
        // SAFETY: as above.
        unsafe { libc::free(resolved.cast::<c_void>()) };
        Ok(self.shown(&text))
    }

    pub fn change_directory(&self, place: &Place) -> Answer {
        let path = place.plain()?;
        // SAFETY: the path is a C string.
        done(unsafe { libc::chdir(path.as_ptr()) })
    }

    pub fn working_directory(&self) -> Answer {
        Ok(self.shown(&std::env::current_dir()?.display().to_string()))
    }

    /// Everything in a file; and its status by name is that of its descriptor.
    pub fn cat(&self, place: &Place) -> Answer {
        let fd = place.open(libc::O_RDONLY | libc::O_CLOEXEC)?;
        let content = read_all(fd).map(|bytes| summary(&bytes));
        let is_same = match (place.stat(true), crate::files::fstat(fd)) {
            (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
            _ => false,
        };
        // SAFETY: opened above.
        unsafe { libc::close(fd) };
        Ok(format!("{} {is_same}", content?))
    }

    /// Writes through a stream of the C library, or a number of bytes of what can only be read.
    pub fn stream(&self, place: &Place, mode: &str, size: usize, letter: &str) -> Answer {
        if mode.starts_with('w') {
            self.guard_truncation(place)?;
        }
        let path = place.plain()?;
        let mode = CString::new(mode).expect("a plan has no NUL");
        // SAFETY: both are C strings.
        let stream = unsafe { libc::fopen(path.as_ptr(), mode.as_ptr()) };
        if stream.is_null() {
            return Err(last_error());
        }
        let bytes = bytes(size, letter);
        // SAFETY: the stream is open, the buffer as long as is said, and the stream is not used after it is closed.
        let (written, closed) =
            unsafe { (libc::fwrite(bytes.as_ptr().cast(), 1, bytes.len(), stream), libc::fclose(stream)) };
        Ok(format!("{written} {closed}"))
    }

    /// A file by a name of its own, which then takes another: how careful programs save.
    pub fn save(&mut self, slot: usize, directory: &str, name: &str, size: usize, letter: &str) -> Answer {
        if directory.contains(':') {
            // There is no mkstemp relative to a directory.
            return Err(Stop::Errno(libc::EBADF));
        }
        if self.slots[slot] >= 0 {
            self.close(slot)?;
        }
        let mut template = c_string(&format!("{directory}/save-XXXXXX"), &self.root).into_bytes_with_nul();
        // SAFETY: the template is a C string that may be changed.
        let fd = number(unsafe { libc::mkstemp(template.as_mut_ptr().cast()) })? as c_int;
        self.slots[slot] = fd;
        self.announce(slot);
        let written = self.write(fd, size, letter, None)?;
        let path = CString::from_vec_with_nul(template).expect("one NUL, at the end");
        let temporary = Place { directory: AT_FDCWD, path };
        let renamed = self.rename(&temporary, &self.place(&format!("{directory}/{name}")), None);
        if renamed.is_err() {
            temporary.unlink(0)?;
        }
        Ok(format!("{fd} {written} {}", renamed?))
    }

    pub fn rename(&self, from: &Place, to: &Place, words: Option<&str>) -> Answer {
        self.guard_departure(from, to)?;
        let (old, new) = (from.path.as_ptr(), to.path.as_ptr());
        let flag = |word| match word {
            "noreplace" => libc::RENAME_NOREPLACE,
            "exchange" => libc::RENAME_EXCHANGE,
            _ => panic!("'{word}' is no flag"),
        };
        let flags = words.map(|words| words.split('|').map(flag).fold(0, |all, one| all | one));
        let is_plain = from.directory == AT_FDCWD && to.directory == AT_FDCWD;
        // SAFETY: both are C strings.
        let result = unsafe {
            match flags {
                Some(flags) => libc::renameat2(from.directory, old, to.directory, new, flags),
                None if is_plain => libc::rename(old, new),
                None => libc::renameat(from.directory, old, to.directory, new),
            }
        };
        let exchanges = flags.is_some_and(|flags| flags & libc::RENAME_EXCHANGE != 0);
        done(result).map_err(|stop| self.guard_refusal((from, false), to, exchanges, stop))
    }

    pub fn link(&self, from: &Place, to: &Place, follows: bool) -> Answer {
        let (old, new) = (from.path.as_ptr(), to.path.as_ptr());
        let is_plain = from.directory == AT_FDCWD && to.directory == AT_FDCWD && !follows;
        let flags = if follows { libc::AT_SYMLINK_FOLLOW } else { 0 };
        // SAFETY: both are C strings.
        let result = unsafe {
            match is_plain {
                true => libc::link(old, new),
                false => libc::linkat(from.directory, old, to.directory, new, flags),
            }
        };
        done(result).map_err(|stop| self.guard_refusal((from, follows), to, false, stop))
    }
}
