//! Lines for people: one fixed buffer on the stack, one write.
//!
//! Nothing here may allocate, block on a lock, or change what the program sees beyond its standard error.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sheaf_common::configuration::Level;

use crate::configuration::Configuration;
use crate::system::{self, Errno};

/// What the standard error is when the library is loaded: device and inode in one number, 0 as long as nobody has
/// looked.
static STANDARD_ERROR: AtomicU64 = AtomicU64::new(0);
/// Longest line; what is longer is cut.
const LINE_MAX: usize = 1024;

/// Bytes of a path, as text.
pub struct Shown<'a>(pub &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            formatter.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                formatter.write_str("\u{fffd}")?;
            }
        }
        Ok(())
    }
}

/// An error number, as text.
pub struct Reason(pub Errno);

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0.0 {
            libc::ENOENT => "no such file",
            libc::EACCES | libc::EPERM => "permission denied",
            libc::ECHILD => "it ended at once",
            libc::ETIMEDOUT => "it does not answer",
            libc::ECONNREFUSED => "nobody listens",
            libc::EAGAIN => "no more processes are allowed",
            libc::ENOMEM => "out of memory",
            libc::ENOSPC => "no space left",
            libc::EMFILE | libc::ENFILE => "too many open files",
            libc::EIO => "input/output error",
            libc::EPROTO => "it speaks another version: the program and the library must belong together",
            number => return write!(formatter, "error {number}"),
        };
        formatter.write_str(text)
    }
}

struct Line {
    length: usize,
    bytes: [u8; LINE_MAX],
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The last byte is kept for the end of the line.
        let room = LINE_MAX - 1 - self.length;
        let taken = text.len().min(room);
        let place = self.bytes.get_mut(self.length..self.length + taken).ok_or(fmt::Error)?;
        place.copy_from_slice(text.as_bytes().get(..taken).ok_or(fmt::Error)?);
        self.length += taken;
        Ok(())
    }
}

/// Remembers what the standard error is, before the program can use its number for something else.
pub fn remember_standard_error() {
    let _ = STANDARD_ERROR.compare_exchange(0, what_is_at(2), Ordering::Relaxed, Ordering::Relaxed);
}

/// Never 0; without a file, a number that no file has.
fn what_is_at(fd: core::ffi::c_int) -> u64 {
    system::fstat(fd).map_or(u64::MAX, |stat| (stat.st_dev.rotate_left(32) ^ stat.st_ino).max(1))
}

/// Whether lines for people still end where the program was told to put them: a program that has closed its standard
/// error may have any file of its own under that number.
fn has_standard_error() -> bool {
    let now = what_is_at(2);
    now != u64::MAX && now == STANDARD_ERROR.load(Ordering::Relaxed)
}

/// Says a line on standard error, whatever the level: for what is wrong with the configuration itself.
pub fn complain(arguments: fmt::Arguments<'_>) {
    write(None, arguments);
}

/// Says a line where SHEAF_LOG wants it, if its level is wanted.
pub fn say(configuration: &Configuration, level: Level, arguments: fmt::Arguments<'_>) {
    if level <= configuration.log_level {
        write(configuration.log_file, arguments);
    }
}

/// One decision about one call, for SHEAF_LOG=debug.
pub fn decision(configuration: &Configuration, call: &str, path: &[u8], what: &str) {
    if configuration.log_level >= Level::Debug {
        let process = system::process_id();
        write(configuration.log_file, format_args!("sheaf[{process}]: {call} {}: {what}", Shown(path)));
    }
}

/// Whether every call is to be told, once the configuration has been read.
static TRACES: AtomicBool = AtomicBool::new(false);

/// Has every call told from now on.
pub fn trace_calls() {
    TRACES.store(true, Ordering::Relaxed);
}

/// A hooked call begins.
#[inline]
pub fn call(name: &str) {
    if TRACES.load(Ordering::Relaxed) {
        trace(format_args!("{name}"));
    }
}

/// What the path of the call means.
#[inline]
pub fn meaning(path: &[u8], meaning: impl FnOnce() -> &'static str) {
    if TRACES.load(Ordering::Relaxed) {
        trace(format_args!("  {}: {}", Shown(path), meaning()));
    }
}

#[cold]
fn trace(arguments: fmt::Arguments<'_>) {
    let Some(configuration) = crate::configuration::active() else { return };
    let (process, thread) = (system::process_id(), system::thread_id());
    write(configuration.log_file, format_args!("sheaf[{process}:{thread}] {arguments}"));
}

#[inline(never)]
fn write(file: Option<&core::ffi::CStr>, arguments: fmt::Arguments<'_>) {
    let mut line = Line { length: 0, bytes: [0; LINE_MAX] };
    let _ = line.write_fmt(arguments);
    if let Some(end) = line.bytes.get_mut(line.length) {
        *end = b'\n';
    }
    let bytes = line.bytes.get(..=line.length).unwrap_or_default();
    // Nothing can be done about a line that cannot be written.
    match file {
        None if !has_standard_error() => {}
        None => drop(system::write(2, bytes)),
        Some(path) => {
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND;
            if let Ok(file) = system::open_own(path, flags, 0o644) {
                let _ = system::write(file.number(), bytes);
            }
        }
    }
}
