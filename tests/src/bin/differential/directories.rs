//! Listings, in every way that the C library offers, and whole trees. Order and the store are left out.

use std::ffi::CStr;

use libc::{c_char, c_int, dirent};

use crate::answer::{Answer, Stop, c_string, done, last_error, number, status, summary};
use crate::files::read_all;
use crate::names::Place;
use crate::worker::Worker;

/// The store lies among the checkpoints, on the captured side only.
const STORE: &CStr = c".sheaf";

type Select = Option<extern "C" fn(*const dirent) -> c_int>;
type Compare = Option<extern "C" fn(*mut *const dirent, *mut *const dirent) -> c_int>;

unsafe extern "C" {
    /// scandir(3), which the libc crate lacks.
    fn scandir(path: *const c_char, list: *mut *mut *mut dirent, select: Select, compare: Compare) -> c_int;
}

/// Name and kind of an entry; none for the store.
fn shown(entry: &dirent) -> Option<String> {
    // SAFETY: the C library ends the name with a NUL.
    let name = unsafe { CStr::from_ptr(entry.d_name.as_ptr()) };
    let kind = match entry.d_type {
        libc::DT_DIR => 'd',
        libc::DT_LNK => 'l',
        libc::DT_REG => 'f',
        _ => '?',
    };
    (name != STORE).then(|| format!("{kind}:{}", name.to_string_lossy()))
}

/// What is left in a stream, sorted.
fn rest_of(stream: *mut libc::DIR) -> Result<Vec<String>, Stop> {
    let mut names = Vec::new();
    loop {
        // SAFETY: errno is this thread's own; the stream is open; an entry is valid until the next call.
        let entry = unsafe {
            *libc::__errno_location() = 0;
            libc::readdir(stream).as_ref()
        };
        match entry {
            Some(entry) => names.extend(shown(entry)),
            None => match last_error() {
                Stop::Errno(0) => break,
                stop => return Err(stop),
            },
        }
    }
    names.sort();
    Ok(names)
}

/// Lists a stream from where it is; `how` says what is tried with its position.
fn list_stream(stream: *mut libc::DIR, how: &str) -> Answer {
    if how == "rewind" || how == "seek" {
        // SAFETY: the stream is open.
        unsafe {
            libc::readdir(stream);
            libc::readdir(stream);
        }
    }
    if how == "rewind" {
        // SAFETY: as above.
        unsafe { libc::rewinddir(stream) };
    }
    if how != "seek" {
        return Ok(rest_of(stream)?.join(" "));
    }
    // SAFETY: as above.
    let position = unsafe { libc::telldir(stream) };
    let before = rest_of(stream)?;
    // SAFETY: as above; the position is one of this stream's.
    unsafe { libc::seekdir(stream, position) };
    Ok(format!("again the same: {}", rest_of(stream)? == before))
}

fn scan(path: &CStr) -> Answer {
    let mut list: *mut *mut dirent = std::ptr::null_mut();
    // SAFETY: a C string and a place for the list.
    let count = number(unsafe { scandir(path.as_ptr(), &mut list, None, None) })?;
    let mut names = Vec::new();
    for index in 0..count as usize {
        // SAFETY: the list has that many entries; each is one allocation, freed once.
        unsafe {
            let entry = *list.add(index);
            names.extend(shown(&*entry));
            libc::free(entry.cast());
        }
    }
    // SAFETY: the list itself is one allocation, too.
    unsafe { libc::free(list.cast()) };
    names.sort();
    Ok(names.join(" "))
}

fn open_stream(place: &Place) -> Result<*mut libc::DIR, Stop> {
    let stream = match place.directory {
        // SAFETY: the path is a C string.
        libc::AT_FDCWD => unsafe { libc::opendir(place.path.as_ptr()) },
        _ => {
            let fd = place.open(libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC)?;
            // SAFETY: the descriptor was opened above and is the stream's from now on.
            unsafe { libc::fdopendir(fd) }
        }
    };
    if stream.is_null() { Err(last_error()) } else { Ok(stream) }
}

impl Worker {
    pub fn list(&self, place: &Place, how: &str) -> Answer {
        if how == "scandir" {
            return scan(place.plain()?);
        }
        let stream = open_stream(place)?;
        let answer = list_stream(stream, how);
        // SAFETY: opened above, closed once.
        unsafe { libc::closedir(stream) };
        answer
    }

    pub fn list_descriptor(&self, fd: c_int) -> Answer {
        // An own open file description: a stream moves its position.
        let place = Place { directory: if fd < 0 { -1 } else { fd }, path: c_string(".", &self.root) };
        self.list(&place, "plain")
    }

    pub fn open_stream(&mut self, few: usize, place: &Place) -> Answer {
        if !self.streams[few].is_null() {
            self.close_stream(few)?;
        }
        self.streams[few] = open_stream(place)?;
        Ok(String::new())
    }

    /// Lists what is there now, through a stream that was opened earlier.
    pub fn list_again(&mut self, few: usize) -> Answer {
        let stream = self.streams[few];
        if stream.is_null() {
            return Err(Stop::Errno(libc::EBADF));
        }
        // SAFETY: the stream is open.
        unsafe { libc::rewinddir(stream) };
        list_stream(stream, "plain")
    }

    pub fn close_stream(&mut self, few: usize) -> Answer {
        let stream = std::mem::replace(&mut self.streams[few], std::ptr::null_mut());
        if stream.is_null() {
            return Err(Stop::Errno(libc::EBADF));
        }
        // SAFETY: the stream is open and forgotten now.
        done(unsafe { libc::closedir(stream) })
    }

    /// Everything below the root, with every byte.
    pub fn tree(&self) -> Answer {
        let mut lines = Vec::new();
        for directory in ["@/ckpt", "@/out"] {
            self.below(directory, &mut lines)?;
        }
        Ok(lines.join("; "))
    }

    fn below(&self, directory: &str, lines: &mut Vec<String>) -> Result<(), Stop> {
        let listing = self.list(&self.place(directory), "plain")?;
        for entry in listing.split(' ').filter(|entry| !matches!(*entry, "d:." | "d:.." | "")) {
            let path = format!("{directory}/{}", &entry[2..]);
            let place = self.place(&path);
            let stat = place.stat(false)?;
            let text = status(&stat, !self.is_native && !self.is_staged(&stat));
            match &entry[..1] {
                "d" => {
                    lines.push(format!("{path} {text}"));
                    self.below(&path, lines)?;
                }
                "l" => lines.push(format!("{path} -> {}", self.read_link(&place)?)),
                _ => lines.push(format!("{path} {text} {}", whole(&place)?)),
            }
        }
        Ok(())
    }
}

fn whole(place: &Place) -> Answer {
    let fd = place.open(libc::O_RDONLY | libc::O_CLOEXEC)?;
    let content = read_all(fd);
    // SAFETY: opened above.
    unsafe { libc::close(fd) };
    Ok(summary(&content?))
}
