//! A directory as text: one line for each name, with kind, mode, size and a hash of the bytes.
//!
//! Two directories are equal when their snapshots are. The program `snapshot` prints it, so that a test can look
//! through the preloaded library; it must read every byte through the ordinary calls and skip nothing.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// The snapshot of everything below `directory`, sorted by name.
///
/// # Errors
/// The first call that failed, with the path in the message.
pub fn take(directory: &Path) -> io::Result<String> {
    let mut text = String::new();
    below(directory, "", &mut text)?;
    Ok(text)
}

fn below(directory: &Path, prefix: &str, text: &mut String) -> io::Result<()> {
    let entries = fs::read_dir(directory).map_err(|error| named(directory, error))?;
    let mut names: Vec<OsString> = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    names.sort();
    for name in names {
        let path = directory.join(&name);
        let shown = format!("{prefix}{}", name.display());
        let metadata = fs::symlink_metadata(&path).map_err(|error| named(&path, error))?;
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.is_dir() {
            writeln!(text, "d {mode:04o} {shown}").expect("a String takes everything");
            below(&path, &format!("{shown}/"), text)?;
        } else if metadata.is_symlink() {
            let target = fs::read_link(&path).map_err(|error| named(&path, error))?;
            writeln!(text, "l {shown} -> {}", target.display()).expect("a String takes everything");
        } else {
            let (read, hash) = content(&path).map_err(|error| named(&path, error))?;
            if read != metadata.size() {
                return Err(io::Error::other(format!("{shown}: {} bytes by stat, {read} read", metadata.size())));
            }
            writeln!(text, "f {mode:04o} {read} {hash:016x} {shown}").expect("a String takes everything");
        }
    }
    Ok(())
}

/// Length and hash of a file's bytes.
fn content(path: &Path) -> io::Result<(u64, u64)> {
    let mut file = File::open(path)?;
    // Fixed keys: the same bytes have the same hash in every process.
    let mut hasher = std::hash::DefaultHasher::new();
    let mut buffer = vec![0; 1 << 16];
    let mut read = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok((read, hasher.finish()));
        }
        hasher.write(&buffer[..count]);
        read += count as u64;
    }
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
