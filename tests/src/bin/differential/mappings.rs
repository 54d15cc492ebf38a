//! Shared mappings. The kernel moves the bytes, so that what lies beyond a file's end is an error and no signal.

use std::ffi::CStr;

use libc::{c_int, c_void};

use crate::answer::{Answer, Stop, done, last_error, number, summary};
use crate::files::{bytes, fstat};
use crate::worker::{SLOTS, Worker};

/// A mapping, and a descriptor that knows the file's size and keeps nobody from anything (`O_PATH`).
pub struct Mapping {
    address: *mut c_void,
    length: usize,
    file: c_int,
    writes: bool,
}

/// A file of this program's own, through which bytes go to and from mappings.
pub struct Memory(c_int);

impl Memory {
    pub fn new() -> Memory {
        const NAME: &CStr = c"between";
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(NAME.as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
        Memory(fd)
    }
}

impl Worker {
    pub fn map(&mut self, few: usize, fd: c_int, kind: &str, length: usize) -> Answer {
        if self.mappings[few].is_some() {
            self.unmap(few)?;
        }
        let (protection, flags) = match kind {
            "shared" => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED),
            "readonly" => (libc::PROT_READ, libc::MAP_SHARED),
            _ => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE),
        };
        // SAFETY: a new mapping at an address that the kernel chooses; nothing is replaced.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, 0) };
        if address == libc::MAP_FAILED {
            return Err(last_error());
        }
        let path = std::ffi::CString::new(format!("/proc/self/fd/{fd}")).expect("digits");
        // SAFETY: the path is a C string.
        let file = unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
        assert!(file >= 0, "an open descriptor can be opened again: {}", std::io::Error::last_os_error());
        self.mappings[few] = Some(Mapping { address, length, file, writes: kind == "shared" });
        self.announce_mappings();
        Ok(String::new())
    }

    pub fn announce_mappings(&self) {
        if self.is_native {
            return;
        }
        for (place, mapping) in self.mappings.iter().enumerate() {
            let kept = mapping.as_ref().and_then(|mapping| Some((fstat(mapping.file).ok()?, mapping.writes)));
            self.openings.note(SLOTS + place, kept.as_ref().map(|(stat, writes)| (stat, *writes)));
        }
    }

    /// The part of a mapping that lies in the file: what is behind its end on the same page is nobody's.
    fn mapped(&self, few: usize, offset: usize, length: usize) -> Result<(*mut c_void, usize), Stop> {
        let mapping = self.mappings[few].as_ref().ok_or(Stop::Errno(libc::EBADF))?;
        let size = usize::try_from(fstat(mapping.file)?.st_size).unwrap_or(0).min(mapping.length);
        let offset = offset.min(size);
        Ok((mapping.address.wrapping_byte_add(offset), length.min(size - offset)))
    }

    pub fn poke(&mut self, few: usize, offset: usize, length: usize, letter: &str) -> Answer {
        let (address, length) = self.mapped(few, offset, length)?;
        let bytes = bytes(length, letter);
        // SAFETY: the first call reads a buffer of that length; the second writes to a mapping of this plan, which no
        // reference of the program points into, and fails where it may not be written.
        let result = unsafe {
            number(libc::pwrite(self.memory.0, bytes.as_ptr().cast(), length, 0) as i64)?;
            libc::pread(self.memory.0, address, length, 0)
        };
        done(result as i64)
    }

    pub fn peek(&mut self, few: usize) -> Answer {
        let (address, length) = self.mapped(few, 0, usize::MAX)?;
        let mut bytes = vec![0u8; length];
        // SAFETY: the first call reads from a mapping of this plan and fails where there is nothing; the second writes
        // to a buffer of that length.
        let read = unsafe {
            number(libc::pwrite(self.memory.0, address, length, 0) as i64)?;
            number(libc::pread(self.memory.0, bytes.as_mut_ptr().cast(), length, 0) as i64)?
        };
        Ok(summary(&bytes[..read as usize]))
    }

    pub fn sync_mapping(&mut self, few: usize) -> Answer {
        let mapping = self.mappings[few].as_ref().ok_or(Stop::Errno(libc::EBADF))?;
        // SAFETY: the mapping's own bounds.
        done(unsafe { libc::msync(mapping.address, mapping.length, libc::MS_SYNC) })
    }

    pub fn unmap(&mut self, few: usize) -> Answer {
        let mapping = self.mappings[few].take().ok_or(Stop::Errno(libc::EBADF))?;
        // SAFETY: the mapping's own bounds, and nothing points into it; the descriptor is this program's own.
        let result = unsafe {
            libc::close(mapping.file);
            libc::munmap(mapping.address, mapping.length)
        };
        self.announce_mappings();
        done(result)
    }
}
