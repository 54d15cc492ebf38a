//! getdents64(2) and its relatives: directories listed by descriptor, without a stream.
//!
//! Names come in the order of numbers that are made from them, and where a listing stands is the number of the next
//! name, kept as the offset of the program's own descriptor. So lseek, dup, fork and exec need nothing, close leaves
//! nothing behind, and a name that comes or goes between two calls moves no other. The price is that each call lists
//! the whole directory. Nothing may be kept here between two calls.

use core::ffi::{c_int, c_void};
use core::mem::offset_of;
use core::ptr;

use libc::{c_long, dirent, off_t, size_t, ssize_t};

use crate::configuration;
use crate::hooks::fail;
use crate::listing::{self, Names};
use crate::paths::{self, Kind, Resolution};
use crate::system::{self, Errno, Result};

/// Numbers are below this. Every file system takes offsets of 31 bits for a directory.
const NUMBERS: usize = 0x7fff_ffff;
/// How the real directory is opened once more.
const REAL_FLAGS: c_int = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;

/// Of the two calls of the kernel, which lay out records differently.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// getdents64: the type stands before the name.
    New,
    /// getdents: the type is the last byte of the record.
    #[cfg(target_arch = "x86_64")]
    Old,
}

impl Layout {
    fn call(self) -> c_long {
        match self {
            Layout::New => libc::SYS_getdents64,
            #[cfg(target_arch = "x86_64")]
            Layout::Old => libc::SYS_getdents,
        }
    }
}

/// getdents64(2).
pub unsafe fn getdents64(fd: c_int, buffer: *mut c_void, size: size_t) -> ssize_t {
    // SAFETY: the program's buffer.
    unsafe { list(fd, buffer.cast(), size.min(c_int::MAX as usize), Layout::New) }
}

/// getdents(2), which only syscall(2) calls.
#[cfg(target_arch = "x86_64")]
pub unsafe fn getdents(fd: c_int, buffer: *mut c_void, size: core::ffi::c_uint) -> ssize_t {
    // SAFETY: the program's buffer.
    unsafe { list(fd, buffer.cast(), (size as usize).min(c_int::MAX as usize), Layout::Old) }
}

/// getdirentries(3).
pub unsafe fn getdirentries(fd: c_int, buffer: *mut c_void, size: size_t, base: *mut off_t) -> ssize_t {
    let before = system::seek(fd, 0, libc::SEEK_CUR).unwrap_or(-1);
    // SAFETY: the program's arguments.
    unsafe {
        let length = getdents64(fd, buffer, size);
        if length >= 0 {
            base.write(before);
        }
        length
    }
}

unsafe fn list(fd: c_int, buffer: *mut u8, size: usize, layout: Layout) -> ssize_t {
    let outcome = match names_of(fd) {
        // SAFETY: the program's buffer.
        Some(names) => names.and_then(|names| unsafe { hand_over(fd, names, buffer, size, layout) }),
        // SAFETY: the program's call.
        None => match unsafe { system::syscall(layout.call(), [fd as usize, buffer as usize, size, 0, 0, 0]) } {
            error @ -4095..0 => Err(Errno(-error as c_int)),
            length => Ok(length as usize),
        },
    };
    match outcome {
        Ok(length) => length as ssize_t,
        Err(Errno(number)) => fail(number),
    }
}

/// All names of a directory; `None` when it is none in which something can be captured. What was listed by numbers once
/// is always listed so, whether or not the tree holds something: else offsets would change their meaning.
fn names_of(fd: c_int) -> Option<Result<Names>> {
    let configuration = configuration::active()?;
    let Resolution::Ours(entry) = paths::resolve_descriptor(fd) else { return None };
    let is_path_only = system::fcntl(fd, libc::F_GETFL, 0).is_ok_and(|flags| flags & libc::O_PATH != 0);
    if !entry.is_zone || entry.kind != Kind::Directory || is_path_only {
        return None;
    }
    // The program's own descriptor must not be read from: its offset is the program's, and of all who share it.
    let real = system::openat(fd, c".", REAL_FLAGS, 0).and_then(system::Descriptor::own);
    Some(real.and_then(|real| Names::of_directory(&entry, configuration, real.number())))
}

/// The number of a name.
fn number(name: &[u8]) -> u32 {
    match name {
        b"." => 0,
        b".." => 1,
        _ => (2 + listing::hash(name) % (NUMBERS - 2)) as u32,
    }
}

/// Writes as many records as there is room for, and moves the program's offset behind them. Names of the same number
/// are given in one call, because there is no offset between them.
unsafe fn hand_over(fd: c_int, mut names: Names, buffer: *mut u8, size: usize, layout: Layout) -> Result<usize> {
    let position = system::seek(fd, 0, libc::SEEK_CUR)?;
    let listed = names.numbered(|name| Some(number(name)).filter(|&number| i64::from(number) >= position))?;
    let mut order = Order { heap: listed.numbers };
    order.arrange();
    let (mut complete, mut written, mut next) = (0, 0, position);
    let mut is_full = false;
    while let Some(entry) = order.take() {
        let number = (entry >> 32) as i64;
        // SAFETY: the offset is that of a whole record; there is room for it in the program's buffer, as is checked.
        unsafe {
            let record: *const dirent = listed.base.add(entry as u32 as usize).cast();
            let length = usize::from((*record).d_reclen);
            is_full = written + length > size;
            if is_full {
                break;
            }
            let is_last = order.next_number() != Some(number);
            put(record, number + i64::from(is_last), buffer.add(written), layout);
            written += length;
            if is_last {
                (complete, next) = (written, number + 1);
            }
        }
    }
    if complete == 0 {
        return if is_full { Err(Errno(libc::EINVAL)) } else { Ok(0) };
    }
    system::seek(fd, next, libc::SEEK_SET)?;
    Ok(complete)
}

/// Writes one record, which takes the same room in both layouts.
unsafe fn put(record: *const dirent, next: i64, to: *mut u8, layout: Layout) {
    const OFFSET: usize = offset_of!(dirent, d_off);
    // SAFETY: the record is whole, and the caller has made sure of room for it at `to`.
    unsafe {
        let length = usize::from((*record).d_reclen);
        ptr::copy_nonoverlapping(record.cast::<u8>(), to, length);
        to.add(OFFSET).cast::<i64>().write_unaligned(next);
        #[cfg(target_arch = "x86_64")]
        if layout == Layout::Old {
            const TYPE: usize = offset_of!(dirent, d_type);
            ptr::copy(to.add(TYPE + 1), to.add(TYPE), length - TYPE - 1);
            to.add(length - 1).write((*record).d_type);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = layout;
    }
}

/// Numbers from the lowest on: a heap in the memory that they lie in.
struct Order<'a> {
    heap: &'a mut [u64],
}

impl Order<'_> {
    fn arrange(&mut self) {
        for index in (0..self.heap.len() / 2).rev() {
            self.sink(index);
        }
    }

    /// Moves an entry down until nothing below it is lower.
    fn sink(&mut self, mut index: usize) {
        loop {
            let below = [2 * index + 1, 2 * index + 2];
            let lower = below.into_iter().filter(|&child| child < self.heap.len());
            let Some(child) = lower.min_by_key(|&child| self.heap.get(child).copied()) else { return };
            if self.heap.get(child) >= self.heap.get(index) {
                return;
            }
            self.swap(child, index);
            index = child;
        }
    }

    fn swap(&mut self, one: usize, other: usize) {
        let (Some(&first), Some(&second)) = (self.heap.get(one), self.heap.get(other)) else { return };
        for (index, entry) in [(one, second), (other, first)] {
            if let Some(place) = self.heap.get_mut(index) {
                *place = entry;
            }
        }
    }

    /// The lowest entry, which goes.
    fn take(&mut self) -> Option<u64> {
        let lowest = *self.heap.first()?;
        let last = self.heap.len() - 1;
        self.swap(0, last);
        let heap = core::mem::take(&mut self.heap);
        self.heap = heap.get_mut(..last).unwrap_or_default();
        self.sink(0);
        Some(lowest)
    }

    /// The number of the lowest entry.
    fn next_number(&self) -> Option<i64> {
        self.heap.first().map(|entry| (entry >> 32) as i64)
    }
}
