//! Tree walks: ftw(3) and nftw(3), on the directory streams of this library.
//!
//! The C library's own walk opens directories inside, where no hook reaches; so this one does the same steps in the
//! same order through the hooks. Nothing here may differ from it for directories without managed names.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem::MaybeUninit;
use core::ptr;

use libc::{DIR, O_CLOEXEC, O_DIRECTORY, O_NONBLOCK, O_RDONLY};

use crate::configuration;
use crate::directory;
use crate::hooks::{fail, real};
use crate::listing;
use crate::paths::{self, Kind, Last, Resolution};
use crate::system::{self, AT_FDCWD, Stat};
use crate::{metadata, open, rare};

/// What ftw(3) calls.
pub type Visit = Option<unsafe extern "C" fn(*const c_char, *const Stat, c_int) -> c_int>;
/// What nftw(3) calls.
pub type VisitPlace = Option<unsafe extern "C" fn(*const c_char, *const Stat, c_int, *mut Place) -> c_int>;

/// Orders keys for tsearch(3).
pub type Order = Option<unsafe extern "C" fn(*const c_void, *const c_void) -> c_int>;

/// `struct FTW`.
#[repr(C)]
pub struct Place {
    base: c_int,
    level: c_int,
}

// Flags of nftw(3).
const PHYSICAL: c_int = 1;
const ONE_FILE_SYSTEM: c_int = 2;
const CHANGE_DIRECTORY: c_int = 4;
const DEPTH: c_int = 8;
const ACTIONS: c_int = 16;
const FLAGS: c_int = PHYSICAL | ONE_FILE_SYSTEM | CHANGE_DIRECTORY | DEPTH | ACTIONS;

// What is said of a name.
const FILE: c_int = 0;
const DIRECTORY: c_int = 1;
const UNREADABLE: c_int = 2;
const UNKNOWN: c_int = 3;
const LINK: c_int = 4;
const DIRECTORY_AFTER: c_int = 5;
const DANGLING: c_int = 6;

// What a visit can ask for, with ACTIONS.
const STOP: c_int = 1;
const SKIP_SUBTREE: c_int = 2;
const SKIP_SIBLINGS: c_int = 3;

/// What a walk fails with; the reason is in errno.
const FAILED: c_int = -1;

enum Visitor {
    Plain(unsafe extern "C" fn(*const c_char, *const Stat, c_int) -> c_int),
    WithPlace(unsafe extern "C" fn(*const c_char, *const Stat, c_int, *mut Place) -> c_int),
}

/// Memory from malloc that grows; freed at the end of its scope.
struct Memory {
    start: *mut u8,
    length: usize,
    room: usize,
}

impl Memory {
    const EMPTY: Memory = Memory { start: ptr::null_mut(), length: 0, room: 0 };

    /// Appends bytes; false, with errno set, when there is no memory.
    fn push(&mut self, bytes: &[u8]) -> bool {
        let wanted = self.length + bytes.len();
        if wanted > self.room {
            let room = wanted.max(2 * self.room).max(256);
            // SAFETY: null, or what realloc has yielded before.
            let grown = unsafe { real::realloc(self.start.cast(), room) };
            if grown.is_null() {
                return false;
            }
            (self.start, self.room) = (grown.cast(), room);
        }
        // SAFETY: there is room for all of it, and nobody else knows the memory.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(self.length), bytes.len()) };
        self.length = wanted;
        true
    }

    fn bytes(&self) -> &[u8] {
        if self.start.is_null() {
            return &[];
        }
        // SAFETY: this many bytes have been written there.
        unsafe { core::slice::from_raw_parts(self.start, self.length) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: null, or what realloc has yielded.
        unsafe { real::free(self.start.cast::<c_void>()) };
    }
}

/// A directory on the way.
struct Level {
    stream: *mut DIR,
    fd: c_int,
}

struct Walk {
    /// The path of what is visited, with its NUL.
    path: Memory,
    place: Place,
    flags: c_int,
    visitor: Visitor,
    /// Streams that may still be opened.
    streams: c_int,
    /// Where the walk began.
    device: u64,
    /// Device and inode of every directory that was entered, when links are followed: a tree of tsearch(3).
    entered: *mut c_void,
}

impl Drop for Walk {
    fn drop(&mut self) {
        // SAFETY: the walk's own tree, whose keys came from malloc.
        unsafe { real::tdestroy(self.entered, Some(libc::free)) };
    }
}

/// Orders what was entered.
unsafe extern "C" fn compare(one: *const c_void, other: *const c_void) -> c_int {
    // SAFETY: both are keys of the tree.
    unsafe { one.cast::<[u64; 2]>().read().cmp(&other.cast::<[u64; 2]>().read()) as c_int }
}

/// ftw(3).
pub unsafe fn ftw(path: *const c_char, visit: Visit, streams: c_int) -> c_int {
    let Some(function) = visit.filter(|_| configuration::active().is_some() && !path.is_null()) else {
        // SAFETY: the program's arguments.
        return unsafe { real::ftw(path, visit, streams) };
    };
    // SAFETY: the program's path.
    unsafe { walk(CStr::from_ptr(path), Visitor::Plain(function), streams, 0) }
}

/// nftw(3).
pub unsafe fn nftw(path: *const c_char, visit: VisitPlace, streams: c_int, flags: c_int) -> c_int {
    let Some(function) = visit.filter(|_| configuration::active().is_some() && !path.is_null()) else {
        // SAFETY: the program's arguments.
        return unsafe { real::nftw(path, visit, streams, flags) };
    };
    if flags & !FLAGS != 0 {
        return fail(libc::EINVAL);
    }
    // SAFETY: the program's path.
    unsafe { walk(CStr::from_ptr(path), Visitor::WithPlace(function), streams, flags) }
}

unsafe fn walk(path: &CStr, visitor: Visitor, streams: c_int, flags: c_int) -> c_int {
    let text = path.to_bytes();
    if text.is_empty() {
        return fail(libc::ENOENT);
    }
    let end = text.iter().rposition(|&byte| byte != b'/').map_or(1, |last| last + 1);
    let text = text.get(..end).unwrap_or_default();
    let base = text.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let mut walk = Walk {
        path: Memory::EMPTY,
        place: Place { base: base as c_int, level: 0 },
        flags,
        visitor,
        streams: streams.max(1),
        device: 0,
        entered: ptr::null_mut(),
    };
    if !walk.path.push(text) || !walk.path.push(b"\0") {
        return FAILED;
    }
    let home = match flags & CHANGE_DIRECTORY {
        0 => None,
        _ => match system::open_own(c".", O_RDONLY | O_DIRECTORY, 0) {
            Ok(home) => Some(home),
            Err(error) => return fail(error.0),
        },
    };
    // SAFETY: the walk's own path.
    let result = unsafe { walk.begin(base) };
    if let Some(home) = home {
        let number = system::errno();
        // SAFETY: no memory is involved.
        if unsafe { libc::fchdir(home.number()) } != 0 && result == 0 {
            return FAILED;
        }
        system::set_errno(number);
    }
    result
}

impl Walk {
    fn is(&self, flag: c_int) -> bool {
        self.flags & flag != 0
    }

    /// The path, from a position on.
    fn path_from(&self, start: usize) -> *const c_char {
        self.path.bytes().get(start..).unwrap_or(b"\0").as_ptr().cast()
    }

    fn visit(&mut self, stat: &Stat, kind: c_int) -> c_int {
        let path = self.path_from(0);
        match self.visitor {
            // SAFETY: the program's function, with what ftw(3) promises it; other kinds are not known to it.
            Visitor::Plain(function) => unsafe { function(path, stat, kind_for_ftw(kind)) },
            // SAFETY: the program's function, with what nftw(3) promises it.
            Visitor::WithPlace(function) => unsafe { function(path, stat, kind, &raw mut self.place) },
        }
    }

    unsafe fn begin(&mut self, base: usize) -> c_int {
        if self.is(CHANGE_DIRECTORY) && base > 0 {
            // SAFETY: the walk's own path.
            if unsafe { self.enter_parent(base) } != 0 {
                return FAILED;
            }
        }
        let start = match self.is(CHANGE_DIRECTORY) {
            true if self.path.length == base + 1 => c".".as_ptr(),
            true => self.path_from(base),
            false => self.path_from(0),
        };
        // SAFETY: a C string of our own.
        let (kind, stat) = match unsafe { self.look(AT_FDCWD, start) } {
            // Nothing can be said about what is not there.
            Ok((UNKNOWN, _)) | Err(()) => return FAILED,
            Ok(seen) => seen,
        };
        let result = match kind {
            DIRECTORY => {
                self.device = stat.st_dev;
                if !self.is(PHYSICAL) && self.note(&stat).is_none() {
                    return FAILED;
                }
                // SAFETY: the path is that of a directory.
                unsafe { self.directory(&stat, AT_FDCWD, start) }
            }
            kind => self.visit(&stat, kind),
        };
        if self.is(ACTIONS) && matches!(result, SKIP_SUBTREE | SKIP_SIBLINGS) { 0 } else { result }
    }

    /// Goes to the directory that holds the start.
    unsafe fn enter_parent(&mut self, base: usize) -> c_int {
        if base == 1 {
            // SAFETY: a C string.
            return unsafe { rare::chdir(c"/".as_ptr()) };
        }
        // SAFETY: the byte before the base is a slash in the walk's own path; it is put back at once.
        unsafe {
            let slash = self.path.start.add(base - 1);
            slash.write(0);
            let result = rare::chdir(self.path_from(0));
            slash.write(b'/');
            result
        }
    }

    /// What is at a name; `Err` with errno when the walk cannot go on.
    unsafe fn look(&self, directory: c_int, name: *const c_char) -> Result<(c_int, Stat), ()> {
        let mut stat = MaybeUninit::<Stat>::zeroed();
        let flags = if self.is(PHYSICAL) { libc::AT_SYMLINK_NOFOLLOW } else { 0 };
        // SAFETY: the caller's name; the buffer is one for a struct stat, and zero is a value of it.
        unsafe {
            let seen = metadata::fstatat(directory, name, stat.as_mut_ptr(), flags) == 0;
            let number = system::errno();
            if seen {
                let stat = stat.assume_init();
                return Ok((kind_of(&stat), stat));
            }
            if !matches!(number, libc::EACCES | libc::ENOENT) {
                return Err(());
            }
            let again = libc::AT_SYMLINK_NOFOLLOW;
            let is_dangling = !self.is(PHYSICAL)
                && metadata::fstatat(directory, name, stat.as_mut_ptr(), again) == 0
                && paths::is_link(stat.assume_init_ref());
            system::set_errno(number);
            Ok((if is_dangling { DANGLING } else { UNKNOWN }, stat.assume_init()))
        }
    }

    /// Notes a directory that is entered: whether it is the first time, or nothing when there is no memory.
    fn note(&mut self, stat: &Stat) -> Option<bool> {
        let key = [stat.st_dev, stat.st_ino];
        // SAFETY: memory for the key, which the tree owns from then on if it is new; the root is the walk's own.
        unsafe {
            let entry: *mut [u64; 2] = real::malloc(size_of_val(&key)).cast();
            if entry.is_null() {
                return None;
            }
            entry.write(key);
            let node: *mut *mut c_void = real::tsearch(entry.cast(), &raw mut self.entered, Some(compare)).cast();
            let is_new = !node.is_null() && *node == entry.cast();
            if !is_new {
                real::free(entry.cast());
            }
            (!node.is_null()).then_some(is_new)
        }
    }

    /// Opens a directory's stream.
    unsafe fn open(&mut self, directory: c_int, name: *const c_char) -> Option<Level> {
        // SAFETY: the caller's name.
        let fd = unsafe { open::openat(directory, name, O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC, 0) };
        if fd < 0 {
            return None;
        }
        // SAFETY: a new descriptor of a directory.
        let stream = unsafe { directory::fdopendir(fd) };
        if stream.is_null() {
            system::close(fd);
            return None;
        }
        Some(Level { stream, fd })
    }

    /// Visits a directory and all that is below it.
    unsafe fn directory(&mut self, stat: &Stat, directory: c_int, name: *const c_char) -> c_int {
        // SAFETY: the caller's name.
        let Some(level) = (unsafe { self.open(directory, name) }) else {
            return if system::errno() == libc::EACCES { self.visit(stat, UNREADABLE) } else { FAILED };
        };
        let mut result = if self.is(DEPTH) { 0 } else { self.visit(stat, DIRECTORY) };
        // SAFETY: no memory is involved.
        if result == 0 && self.is(CHANGE_DIRECTORY) && unsafe { libc::fchdir(level.fd) } != 0 {
            result = FAILED;
        }
        if result != 0 {
            close(&level);
            return result;
        }
        // SAFETY: the stream is open.
        result = unsafe { self.below(level) };
        if self.is(ACTIONS) && result == SKIP_SIBLINGS {
            result = 0;
        }
        if result == 0 && self.is(DEPTH) {
            result = self.visit(stat, DIRECTORY_AFTER);
        }
        result
    }

    /// Visits what is in a directory; the stream is closed behind it.
    unsafe fn below(&mut self, level: Level) -> c_int {
        let (before, base) = (self.path.length, self.place.base);
        self.path.length -= 1;
        if self.path.bytes().last() != Some(&b'/') && !self.path.push(b"/") {
            close(&level);
            return FAILED;
        }
        self.place.base = self.path.length as c_int;
        self.place.level += 1;
        let mut names = Memory::EMPTY;
        // SAFETY: the stream is open.
        let mut result = unsafe { read_names(&level, &mut names) };
        self.streams -= 1;
        let keeps_stream = self.streams > 0;
        if !keeps_stream {
            close(&level);
        }
        let mut left = names.bytes();
        while result == 0
            && let Some(length) = left.iter().position(|&byte| byte == 0)
        {
            let (name, rest) = left.split_at_checked(length + 1).unwrap_or_default();
            left = rest;
            // SAFETY: the stream is open if it is to be used.
            result = unsafe { self.entry(name, keeps_stream.then_some(&level)) };
        }
        self.streams += 1;
        if keeps_stream {
            close(&level);
        }
        self.place.level -= 1;
        self.place.base = base;
        self.path.length = before - 1;
        // What was there fits again.
        self.path.push(b"\0");
        result
    }

    /// Visits one name of a directory.
    unsafe fn entry(&mut self, name: &[u8], level: Option<&Level>) -> c_int {
        self.path.length = self.place.base as usize;
        if !self.path.push(name) {
            return FAILED;
        }
        let (directory, start) = match level {
            Some(level) => (level.fd, self.place.base as usize),
            None if self.is(CHANGE_DIRECTORY) => (AT_FDCWD, self.place.base as usize),
            None => (AT_FDCWD, 0),
        };
        // SAFETY: a C string of our own.
        let Ok((kind, stat)) = (unsafe { self.look(directory, self.path_from(start)) }) else { return FAILED };
        let is_elsewhere = kind != UNKNOWN && self.is(ONE_FILE_SYSTEM) && stat.st_dev != self.device;
        // SAFETY: as above.
        if is_elsewhere && unsafe { !is_managed(directory, self.path_from(start)) } {
            return 0;
        }
        let is_first = if kind == DIRECTORY && !self.is(PHYSICAL) { self.note(&stat) } else { Some(true) };
        let result = match (kind, is_first) {
            (_, None) => FAILED,
            (DIRECTORY, Some(false)) => 0,
            (DIRECTORY, _) => {
                // SAFETY: as above; the directory is opened before the path changes.
                let result = unsafe { self.directory(&stat, directory, self.path_from(start)) };
                let goes_on = result == 0 || self.is(ACTIONS) && result != FAILED && result != STOP;
                if goes_on && self.is(CHANGE_DIRECTORY) && !go_back(level) { FAILED } else { result }
            }
            _ => self.visit(&stat, kind),
        };
        if self.is(ACTIONS) && result == SKIP_SUBTREE { 0 } else { result }
    }
}

/// Back from a directory to the one that holds it.
fn go_back(level: Option<&Level>) -> bool {
    // SAFETY: no memory but a C string is involved.
    unsafe {
        match level {
            Some(level) => libc::fchdir(level.fd) == 0,
            None => libc::chdir(c"..".as_ptr()) == 0,
        }
    }
}

/// Whether a name is staged: that is on another file system than its directory, which the program must not notice.
unsafe fn is_managed(directory: c_int, name: *const c_char) -> bool {
    // SAFETY: the caller passes a C string.
    let resolution = unsafe { paths::resolve(directory, name, Last::Entry) };
    matches!(resolution, Resolution::Ours(entry) if entry.kind == Kind::Managed)
}

fn close(level: &Level) {
    let number = system::errno();
    // SAFETY: the walk's own stream, which nobody uses any more.
    unsafe { directory::closedir(level.stream) };
    system::set_errno(number);
}

/// All names of a directory but the two dots, each with its NUL.
unsafe fn read_names(level: &Level, names: &mut Memory) -> c_int {
    loop {
        // SAFETY: the walk's own stream; a record is whole and lives until the next call.
        let name = unsafe {
            let record = directory::readdir(level.stream);
            if record.is_null() {
                return 0;
            }
            listing::name_of(record)
        };
        let is_kept = matches!(name, b"." | b"..") || names.push(name) && names.push(b"\0");
        if !is_kept {
            return FAILED;
        }
    }
}

fn kind_of(stat: &Stat) -> c_int {
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => DIRECTORY,
        libc::S_IFLNK => LINK,
        _ => FILE,
    }
}

/// ftw(3) knows fewer kinds.
fn kind_for_ftw(kind: c_int) -> c_int {
    match kind {
        LINK => FILE,
        DIRECTORY_AFTER => DIRECTORY,
        DANGLING => UNKNOWN,
        kind => kind,
    }
}
