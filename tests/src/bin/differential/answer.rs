//! What an operation answers: text, an error number, or that it was not performed. Nothing in it may name the side.

use std::ffi::CString;
use std::fmt::Write as _;
use std::hash::Hasher;
use std::io;

/// Why an operation has no answer of its own.
pub enum Stop {
    /// The kernel's or the library's error number.
    Errno(i32),
    /// The two sides may differ here; why.
    Skipped(&'static str),
}

/// See the module.
pub type Answer = Result<String, Stop>;

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Errno(error.raw_os_error().unwrap_or(0))
    }
}

/// The error number of the call that has just failed.
pub fn last_error() -> Stop {
    Stop::from(io::Error::last_os_error())
}

/// The result of a call that yields -1 when it fails.
pub fn number(result: impl Into<i64>) -> Result<i64, Stop> {
    match result.into() {
        -1 => Err(last_error()),
        result => Ok(result),
    }
}

/// The same as an answer: nothing but the number.
pub fn done(result: impl Into<i64>) -> Answer {
    number(result).map(|result| result.to_string())
}

/// A plan's path with the root for `@`; `-` is the empty path.
pub fn c_string(text: &str, root: &str) -> CString {
    let text = if text == "-" { String::new() } else { text.replacen('@', root, 1) };
    CString::new(text).expect("a plan has no NUL")
}

/// Bytes in short: how many, and a hash.
pub fn summary(bytes: &[u8]) -> String {
    // Fixed keys: the same bytes have the same hash in every process.
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(bytes);
    format!("{} bytes {:016x}", bytes.len(), hasher.finish())
}

/// What must be equal of a file's status. Times that no plan has set, and sizes of directories and links, may differ;
/// so may the number of names of a file that Sheaf leaves where it is, because an older file may still wait there.
pub fn status(stat: &libc::stat, may_have_other_links: bool) -> String {
    let mut text = format!("{:o} {}:{}", stat.st_mode, stat.st_uid, stat.st_gid);
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return text;
    }
    let links = if may_have_other_links { "?".to_string() } else { stat.st_nlink.to_string() };
    write!(text, " size {} links {links}", stat.st_size).expect("a String takes everything");
    if stat.st_mtime < 1_500_000_000 {
        write!(text, " time {}.{}", stat.st_mtime, stat.st_mtime_nsec).expect("a String takes everything");
    }
    text
}
