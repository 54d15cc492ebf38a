//! Lines for people: one fixed buffer on the stack, one write.
//!
//! Nothing here may allocate, block on a lock, or change what the program sees beyond its standard error.

use core::fmt::{self, Write};

use sheaf_common::configuration::Level;

use crate::configuration::Configuration;
use crate::system::{self, Errno};

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
    if configuration.log_level == Level::Debug {
        let process = system::process_id();
        write(configuration.log_file, format_args!("sheaf[{process}]: {call} {}: {what}", Shown(path)));
    }
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
        None => drop(system::write(2, bytes)),
        Some(path) => {
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND;
            if let Ok(file) = system::open_own(path, flags, 0o644) {
                let _ = system::write(file.number(), bytes);
            }
        }
    }
}
