//! Operations on descriptors. They are the program's own calls: the kernel gets them as they are in the plan.

use std::io;

use libc::c_int;

use crate::answer::{Answer, Stop, done, last_error, number, status, summary};
use crate::worker::{SLOTS, Worker};

const FLAGS: [(&str, c_int); 14] = [
    ("RDONLY", libc::O_RDONLY),
    ("WRONLY", libc::O_WRONLY),
    ("RDWR", libc::O_RDWR),
    ("CREAT", libc::O_CREAT),
    ("EXCL", libc::O_EXCL),
    ("TRUNC", libc::O_TRUNC),
    ("APPEND", libc::O_APPEND),
    ("NOFOLLOW", libc::O_NOFOLLOW),
    ("DIRECTORY", libc::O_DIRECTORY),
    ("CLOEXEC", libc::O_CLOEXEC),
    ("NONBLOCK", libc::O_NONBLOCK),
    ("SYNC", libc::O_SYNC),
    ("NOATIME", libc::O_NOATIME),
    ("PATH", libc::O_PATH),
];
/// Most bytes that one operation writes.
const BYTES_MAX: usize = 8 << 20;

/// The flags that a plan names.
fn flags(text: &str) -> c_int {
    let value = |word| FLAGS.iter().find(|(name, _)| *name == word).map(|(_, value)| *value);
    text.split('|')
        .map(|word| value(word).unwrap_or_else(|| panic!("'{word}' is no flag")))
        .fold(0, |all, one| all | one)
}

/// What an operation writes.
pub fn bytes(size: usize, letter: &str) -> Vec<u8> {
    vec![letter.as_bytes()[0]; size.min(BYTES_MAX)]
}

/// fstat(2).
pub fn fstat(fd: c_int) -> io::Result<libc::stat> {
    let mut stat = std::mem::MaybeUninit::uninit();
    // SAFETY: the kernel fills the structure when it succeeds.
    match unsafe { libc::fstat(fd, stat.as_mut_ptr()) } {
        // SAFETY: as above.
        0 => Ok(unsafe { stat.assume_init() }),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Worker {
    pub fn open(&mut self, slot: usize, path: &str, words: &str, mode: libc::mode_t) -> Answer {
        let place = self.place(path);
        if self.slots[slot] >= 0 {
            self.close(slot)?;
        }
        let flags = flags(words);
        if flags & libc::O_TRUNC != 0 {
            self.guard_truncation(&place)?;
        }
        self.guard_place(&place, flags)?;
        self.slots[slot] = match place.directory {
            // SAFETY: the path is a C string.
            libc::AT_FDCWD => unsafe { libc::open(place.path.as_ptr(), flags, mode) },
            // SAFETY: as above.
            directory => unsafe { libc::openat(directory, place.path.as_ptr(), flags, mode) },
        };
        let answer = done(self.slots[slot]);
        self.announce(slot);
        answer
    }

    pub fn close(&mut self, slot: usize) -> Answer {
        // SAFETY: a descriptor of this program's own, or -1.
        let result = unsafe { libc::close(self.slots[slot]) };
        let answer = done(result);
        self.slots[slot] = -1;
        self.announce(slot);
        answer
    }

    /// Notes for all processes what a slot keeps open.
    pub fn announce(&self, slot: usize) {
        if self.is_native {
            return;
        }
        let fd = self.slots[slot];
        let stat = if fd < 0 { None } else { fstat(fd).ok() };
        // SAFETY: takes integers.
        let access = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        let writes = access & libc::O_PATH == 0 && access & libc::O_ACCMODE != libc::O_RDONLY;
        self.openings.note(slot, stat.as_ref().map(|stat| (stat, writes)));
    }

    /// The same for everything, after a child has used this process's notes.
    pub fn announce_all(&self) {
        (0..SLOTS).for_each(|slot| self.announce(slot));
        self.announce_mappings();
    }

    pub fn dup(&mut self, slot: usize, other: usize) -> Answer {
        // SAFETY: takes an integer.
        let fd = number(unsafe { libc::dup(self.slots[slot]) })?;
        if self.slots[other] >= 0 {
            self.close(other)?;
        }
        self.slots[other] = fd as c_int;
        self.announce(other);
        Ok(fd.to_string())
    }

    pub fn dup_onto(&mut self, slot: usize, other: usize, is_dup3: bool) -> Answer {
        let (from, to) = (self.slots[slot], self.number_for(other));
        // SAFETY: the number is a slot's own descriptor, or one that nothing of this program has.
        let fd = number(unsafe { if is_dup3 { libc::dup3(from, to, libc::O_CLOEXEC) } else { libc::dup2(from, to) } })?;
        self.slots[other] = fd as c_int;
        self.announce(other);
        Ok(fd.to_string())
    }

    pub fn set_flags(&self, fd: c_int, words: &str) -> Answer {
        // SAFETY: takes integers.
        done(unsafe { libc::fcntl(fd, libc::F_SETFL, flags(words)) })
    }

    pub fn get_flags(&self, fd: c_int) -> Answer {
        // SAFETY: takes integers.
        let (flags, descriptor) = unsafe { (libc::fcntl(fd, libc::F_GETFL), libc::fcntl(fd, libc::F_GETFD)) };
        Ok(format!("{:o} {descriptor}", number(flags)?))
    }

    pub fn write(&self, fd: c_int, size: usize, letter: &str, offset: Option<i64>) -> Answer {
        let bytes = bytes(size, letter);
        let data = bytes.as_ptr().cast();
        // SAFETY: the buffer is as long as is said.
        done(unsafe {
            match offset {
                Some(offset) => libc::pwrite(fd, data, bytes.len(), offset),
                None => libc::write(fd, data, bytes.len()),
            }
        } as i64)
    }

    pub fn read(&self, fd: c_int, size: usize, offset: Option<i64>) -> Answer {
        let mut bytes = vec![0u8; size];
        let data = bytes.as_mut_ptr().cast();
        // SAFETY: the buffer is as long as is said.
        let read = number(unsafe {
            match offset {
                Some(offset) => libc::pread(fd, data, size, offset),
                None => libc::read(fd, data, size),
            }
        } as i64)?;
        Ok(summary(&bytes[..read as usize]))
    }

    pub fn seek(&self, fd: c_int, offset: i64, whence: &str) -> Answer {
        let whence = match whence {
            "set" => libc::SEEK_SET,
            "cur" => libc::SEEK_CUR,
            _ => libc::SEEK_END,
        };
        if self.is_directory(fd) {
            // What a position in a directory means is the file system's own affair.
            return Ok("a directory".to_string());
        }
        // SAFETY: takes integers.
        done(unsafe { libc::lseek(fd, offset, whence) })
    }

    fn is_directory(&self, fd: c_int) -> bool {
        fstat(fd).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
    }

    pub fn truncate_file(&self, fd: c_int, size: i64) -> Answer {
        self.guard_size(fstat(fd), size)?;
        // SAFETY: takes integers.
        done(unsafe { libc::ftruncate(fd, size) })
    }

    pub fn allocate(&self, fd: c_int, mode: &str, offset: i64, size: i64) -> Answer {
        let mode = match mode {
            "plain" => 0,
            "keep" => libc::FALLOC_FL_KEEP_SIZE,
            "punch" => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            // SAFETY: takes integers, and yields an error number.
            _ => return Ok(unsafe { libc::posix_fallocate(fd, offset, size) }.to_string()),
        };
        // SAFETY: takes integers.
        done(unsafe { libc::fallocate(fd, mode, offset, size) })
    }

    pub fn file_status(&self, fd: c_int) -> Answer {
        let stat = fstat(fd)?;
        Ok(status(&stat, !self.is_native && !self.is_staged(&stat)))
    }

    pub fn file_mode(&self, fd: c_int, mode: libc::mode_t) -> Answer {
        // SAFETY: takes integers.
        done(unsafe { libc::fchmod(fd, mode) })
    }

    pub fn file_times(&self, fd: c_int, seconds: i64) -> Answer {
        let time = libc::timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
        // SAFETY: two times, as the call wants.
        done(unsafe { libc::futimens(fd, [time, time].as_ptr()) })
    }

    pub fn sync(&self, fd: c_int, only_data: bool) -> Answer {
        // SAFETY: takes an integer.
        done(unsafe { if only_data { libc::fdatasync(fd) } else { libc::fsync(fd) } })
    }

    pub fn send(&self, to: c_int, from: c_int, size: usize) -> Answer {
        // SAFETY: takes integers; no offset is given.
        done(unsafe { libc::sendfile(to, from, std::ptr::null_mut(), size) } as i64)
    }

    pub fn copy_range(&self, to: c_int, from: c_int, size: usize) -> Answer {
        let none = std::ptr::null_mut();
        // SAFETY: takes integers; no offsets are given.
        let result = unsafe { libc::copy_file_range(from, none, to, none, size, 0) };
        match done(result as i64) {
            Err(Stop::Errno(libc::EXDEV)) if !self.is_native => Err(Stop::Skipped("between file systems")),
            answer => answer,
        }
    }
}

/// Reads a descriptor to its end.
pub fn read_all(fd: c_int) -> Result<Vec<u8>, Stop> {
    let mut all = Vec::new();
    let mut buffer = [0u8; 1 << 14];
    loop {
        // SAFETY: the buffer is as long as is said.
        match unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) } {
            0 => return Ok(all),
            -1 => return Err(last_error()),
            count => all.extend_from_slice(&buffer[..count as usize]),
        }
    }
}
