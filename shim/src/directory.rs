//! Directory streams: the real names, then those that only the tree has.
//!
//! The stream and its descriptor are the C library's own, on the real directory.

use core::ffi::{c_char, c_int, c_long, c_void};
use core::ptr;

use libc::{DIR, dirent, size_t};

use crate::configuration;
use crate::hooks::{fail, real};
use crate::listing::{self, Listing, Snapshot};
use crate::metadata;
use crate::paths::{self, Entry, Kind, Last, Resolution};
use crate::system::{self, AT_FDCWD, Errno, Result, Stat};

/// Chooses entries for scandir(3).
pub type Select = Option<unsafe extern "C" fn(*const dirent) -> c_int>;
/// Orders entries for scandir(3).
pub type Compare = Option<unsafe extern "C" fn(*mut *const dirent, *mut *const dirent) -> c_int>;
/// Hears of errors in glob(3).
pub type GlobError = Option<unsafe extern "C" fn(*const c_char, c_int) -> c_int>;

/// Entries that a listing for scandir(3) starts with.
const FIRST_ENTRIES: usize = 64;
/// glob(3): the functions in the structure are to be used.
const GLOB_ALTDIRFUNC: c_int = 1 << 9;
/// glob(3): memory ran out.
const GLOB_NOSPACE: c_int = 1;

/// `glob_t`, with the functions that glob(3) can be told to use.
#[repr(C)]
pub struct Glob {
    count: size_t,
    paths: *mut *mut c_char,
    reserved: size_t,
    flags: c_int,
    functions: GlobFunctions,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct GlobFunctions {
    closedir: Option<unsafe extern "C" fn(*mut c_void)>,
    readdir: Option<unsafe extern "C" fn(*mut c_void) -> *mut dirent>,
    opendir: Option<unsafe extern "C" fn(*const c_char) -> *mut c_void>,
    lstat: Option<unsafe extern "C" fn(*const c_char, *mut Stat) -> c_int>,
    stat: Option<unsafe extern "C" fn(*const c_char, *mut Stat) -> c_int>,
}

/// opendir(3).
pub unsafe fn opendir(path: *const c_char) -> *mut DIR {
    let native = |path| {
        // SAFETY: the program's path, or one of our own.
        unsafe { real::opendir(path) }
    };
    // SAFETY: the program's path.
    let entry = match unsafe { paths::resolve(AT_FDCWD, path, Last::Follow) } {
        Resolution::Foreign => return opened(native(path), None),
        Resolution::Failed(error) => return fail(error.0),
        Resolution::Ours(entry) => entry,
    };
    if entry.kind == Kind::Managed {
        return fail(libc::ENOTDIR);
    }
    match snapshot_of(&entry) {
        Ok(snapshot) => opened(native(if entry.is_detour { entry.real_path().as_ptr() } else { path }), snapshot),
        Err(Errno(number)) => fail(number),
    }
}

/// What the tree adds to a directory. It is taken before there is a stream, so that what fails, fails before.
fn snapshot_of(entry: &Entry) -> Result<Option<Snapshot>> {
    configuration::active().map_or(Ok(None), |configuration| listing::of_directory(entry, configuration))
}

/// A stream that the C library has just opened, if it has.
fn opened(stream: *mut DIR, snapshot: Option<Snapshot>) -> *mut DIR {
    if !stream.is_null() {
        listing::attach(stream, snapshot);
    }
    stream
}

/// fdopendir(3).
pub unsafe fn fdopendir(fd: c_int) -> *mut DIR {
    match snapshot_by_descriptor(fd) {
        // SAFETY: no memory is involved.
        Ok(snapshot) => opened(unsafe { real::fdopendir(fd) }, snapshot),
        Err(Errno(number)) => fail(number),
    }
}

fn snapshot_by_descriptor(fd: c_int) -> Result<Option<Snapshot>> {
    match paths::resolve_descriptor(fd) {
        Resolution::Ours(entry) => snapshot_of(&entry),
        _ => Ok(None),
    }
}

/// readdir(3).
pub unsafe fn readdir(stream: *mut DIR) -> *mut dirent {
    let Some(listing) = listing::of(stream) else {
        // SAFETY: the program's stream.
        return unsafe { real::readdir(stream) };
    };
    if !listing.is_staged {
        let errno = system::errno();
        system::set_errno(0);
        // SAFETY: the program's stream.
        let record = unsafe { next_real(stream, listing) };
        if !record.is_null() || system::errno() != 0 {
            if !record.is_null() {
                system::set_errno(errno);
            }
            return record;
        }
        system::set_errno(errno);
        listing.is_staged = true;
    }
    listing.next()
}

/// The next real name that is to be shown; null at the end, or with errno set.
unsafe fn next_real(stream: *mut DIR, listing: &Listing) -> *mut dirent {
    loop {
        // SAFETY: the program's stream; a record is whole and lives until the next call.
        unsafe {
            let record = real::readdir(stream);
            if record.is_null() || !listing.hides(listing::name_of(record)) {
                return record;
            }
        }
    }
}

/// readdir_r(3).
pub unsafe fn readdir_r(stream: *mut DIR, entry: *mut dirent, result: *mut *mut dirent) -> c_int {
    let Some(listing) = listing::of(stream) else {
        // SAFETY: the program's arguments.
        return unsafe { real::readdir_r(stream, entry, result) };
    };
    // SAFETY: the program's arguments; `entry` has room for a whole record, as readdir_r(3) demands.
    unsafe {
        while !listing.is_staged {
            let error = real::readdir_r(stream, entry, result);
            if error != 0 {
                return error;
            }
            if (*result).is_null() {
                listing.is_staged = true;
            } else if !listing.hides(listing::name_of(entry)) {
                return 0;
            }
        }
        let record = listing.next();
        *result = if record.is_null() { ptr::null_mut() } else { entry };
        if !record.is_null() {
            let length = usize::from((*record).d_reclen).min(size_of::<dirent>());
            ptr::copy_nonoverlapping(record.cast::<u8>(), entry.cast::<u8>(), length);
        }
    }
    0
}

/// rewinddir(3): as if the directory was opened anew.
pub unsafe fn rewinddir(stream: *mut DIR) {
    // SAFETY: the program's stream.
    let fd = unsafe {
        real::rewinddir(stream);
        real::dirfd(stream)
    };
    match snapshot_by_descriptor(fd) {
        Ok(snapshot) => listing::attach(stream, snapshot),
        // rewinddir cannot fail: the names that were there before are better than none.
        Err(_) => drop(listing::of(stream).map(Listing::rewind)),
    }
}

/// seekdir(3).
pub unsafe fn seekdir(stream: *mut DIR, position: c_long) {
    if !listing::of(stream).is_some_and(|listing| listing.seek(position)) {
        // SAFETY: the program's stream.
        unsafe { real::seekdir(stream, position) };
    }
}

/// telldir(3).
pub unsafe fn telldir(stream: *mut DIR) -> c_long {
    match listing::of(stream).and_then(|listing| listing.tell()) {
        Some(position) => position,
        // SAFETY: the program's stream.
        None => unsafe { real::telldir(stream) },
    }
}

/// closedir(3).
pub unsafe fn closedir(stream: *mut DIR) -> c_int {
    listing::detach(stream);
    // SAFETY: the program's stream.
    unsafe { real::closedir(stream) }
}

/// scandir(3).
pub unsafe fn scandir(path: *const c_char, list: *mut *mut *mut dirent, select: Select, compare: Compare) -> c_int {
    // SAFETY: the program's arguments.
    unsafe { scan(AT_FDCWD, path, list, select, compare, || real::scandir(path, list, select, compare)) }
}

/// scandirat(3).
pub unsafe fn scandirat(
    directory: c_int,
    path: *const c_char,
    list: *mut *mut *mut dirent,
    select: Select,
    compare: Compare,
) -> c_int {
    // SAFETY: the program's arguments.
    unsafe { scan(directory, path, list, select, compare, || real::scandirat(directory, path, list, select, compare)) }
}

unsafe fn scan(
    directory: c_int,
    path: *const c_char,
    list: *mut *mut *mut dirent,
    select: Select,
    compare: Compare,
    native: impl Fn() -> c_int,
) -> c_int {
    // SAFETY: the program's path.
    let entry = match unsafe { paths::resolve(directory, path, Last::Follow) } {
        Resolution::Foreign => return native(),
        Resolution::Failed(error) => return fail(error.0),
        Resolution::Ours(entry) => entry,
    };
    if entry.kind == Kind::Managed {
        return fail(libc::ENOTDIR);
    }
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let fd = match system::openat(AT_FDCWD, entry.real_path(), flags, 0) {
        Err(error) => return fail(error.0),
        Ok(fd) => fd,
    };
    drop(entry);
    // SAFETY: a new descriptor of a directory.
    let stream = unsafe { fdopendir(fd) };
    if stream.is_null() {
        system::close(fd);
        return -1;
    }
    let errno = system::errno();
    let mut collection = Collection { entries: ptr::null_mut(), count: 0, capacity: 0 };
    // SAFETY: our own stream, the program's functions.
    let outcome = unsafe { collection.fill(stream, select) };
    // SAFETY: as above; nobody uses the stream any more.
    unsafe { closedir(stream) };
    if let Err(Errno(number)) = outcome {
        collection.free();
        return fail(number);
    }
    system::set_errno(errno);
    // SAFETY: the entries are an array of that many pointers; the program's place takes it over.
    unsafe {
        if compare.is_some() && collection.count > 0 {
            real::qsort(collection.entries.cast(), collection.count, size_of::<*mut dirent>(), compare);
        }
        list.write(collection.entries);
    }
    collection.count as c_int
}

/// Entries in memory that the program will free.
struct Collection {
    entries: *mut *mut dirent,
    count: usize,
    capacity: usize,
}

impl Collection {
    /// Reads a stream to its end.
    unsafe fn fill(&mut self, stream: *mut DIR, select: Select) -> Result<()> {
        loop {
            system::set_errno(0);
            // SAFETY: the caller's stream; a record is whole and lives until the next call.
            let record = unsafe { readdir(stream) };
            if record.is_null() {
                return match system::errno() {
                    0 => Ok(()),
                    number => Err(Errno(number)),
                };
            }
            // SAFETY: the program's function, on a whole record.
            if select.is_none_or(|select| unsafe { select(record) } != 0) {
                // SAFETY: as above.
                unsafe { self.add(record) }.ok_or(Errno(libc::ENOMEM))?;
            }
        }
    }

    unsafe fn add(&mut self, record: *const dirent) -> Option<()> {
        // SAFETY: realloc gets what it has yielded before, and indexes stay below the capacity.
        unsafe {
            if self.count == self.capacity {
                let capacity = (self.capacity * 2).max(FIRST_ENTRIES);
                let grown = real::realloc(self.entries.cast(), capacity * size_of::<*mut dirent>());
                if grown.is_null() {
                    return None;
                }
                (self.entries, self.capacity) = (grown.cast(), capacity);
            }
            let length = usize::from((*record).d_reclen);
            let copy = real::malloc(length);
            if copy.is_null() {
                return None;
            }
            ptr::copy_nonoverlapping(record.cast::<u8>(), copy.cast::<u8>(), length);
            self.entries.add(self.count).write(copy.cast());
            self.count += 1;
        }
        Some(())
    }

    fn free(&mut self) {
        for index in 0..self.count {
            // SAFETY: all of them came from malloc.
            unsafe { real::free((*self.entries.add(index)).cast()) };
        }
        // SAFETY: null, or from realloc.
        unsafe { real::free(self.entries.cast()) };
    }
}

unsafe extern "C" fn glob_closedir(stream: *mut c_void) {
    // SAFETY: glob passes what `glob_opendir` has yielded.
    unsafe { closedir(stream.cast()) };
}

unsafe extern "C" fn glob_readdir(stream: *mut c_void) -> *mut dirent {
    // SAFETY: as in `glob_closedir`.
    unsafe { readdir(stream.cast()) }
}

unsafe extern "C" fn glob_opendir(path: *const c_char) -> *mut c_void {
    // SAFETY: glob passes a C string.
    unsafe { opendir(path) }.cast()
}

unsafe extern "C" fn glob_lstat(path: *const c_char, buffer: *mut Stat) -> c_int {
    // SAFETY: glob passes a C string and a buffer.
    unsafe { metadata::lstat(path, buffer) }
}

unsafe extern "C" fn glob_stat(path: *const c_char, buffer: *mut Stat) -> c_int {
    // SAFETY: glob passes a C string and a buffer.
    unsafe { metadata::stat(path, buffer) }
}

const OWN_FUNCTIONS: GlobFunctions = GlobFunctions {
    closedir: Some(glob_closedir),
    readdir: Some(glob_readdir),
    opendir: Some(glob_opendir),
    lstat: Some(glob_lstat),
    stat: Some(glob_stat),
};

/// glob(3): the C library's own, on the streams of this library.
pub unsafe fn glob(pattern: *const c_char, flags: c_int, error: GlobError, found: *mut Glob) -> c_int {
    if configuration::active().is_none() || flags & GLOB_ALTDIRFUNC != 0 {
        // SAFETY: the program's arguments.
        return unsafe { real::glob(pattern, flags, error, found) };
    }
    if found.is_null() {
        return GLOB_NOSPACE;
    }
    // SAFETY: the program's structure, which glob fills; what is behind the flags is put back as it was.
    unsafe {
        let functions = (&raw mut (*found).functions).cast::<core::mem::MaybeUninit<GlobFunctions>>();
        let before = functions.read();
        functions.write(core::mem::MaybeUninit::new(OWN_FUNCTIONS));
        let result = real::glob(pattern, flags | GLOB_ALTDIRFUNC, error, found);
        functions.write(before);
        (*found).flags &= !GLOB_ALTDIRFUNC;
        result
    }
}
