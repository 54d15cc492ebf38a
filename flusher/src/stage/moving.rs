//! Directories that take another name: the program moves the real directory, then its mirror. Of a program that was
//! killed in between, `STAGE/moving` tells, and the second step is taken here.
//!
//! Nothing here may move a mirror whose real directory has not moved.

use std::fs;
use std::io;
use std::path::Path;

use sheaf_common::layout;

use super::Stage;
use super::mirror::{absolute, rename_into};

/// Takes the steps that are missing.
///
/// # Errors
/// When the directory of words cannot be read.
pub fn finish(stage: &Stage) -> io::Result<()> {
    let words = match fs::read_dir(stage.path(layout::MOVING)) {
        // Somebody cleans the node up.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        words => words?,
    };
    for entry in words {
        let location = entry?.path();
        let Ok(content) = fs::read(&location) else { continue };
        let parts: Vec<&[u8]> = content.split(|byte| *byte == 0).collect();
        if let [from, to, b""] = parts[..]
            && let (Some(from), Some(to)) = (from.strip_prefix(b"/"), to.strip_prefix(b"/"))
            && has_moved(from, to)
        {
            // The program itself may be faster, or somebody has put something there meanwhile.
            match rename_into(&stage.tree_path(from), &stage.tree_path(to)) {
                Ok(()) => log::info!("the mirror of /{} follows to /{}", from.escape_ascii(), to.escape_ascii()),
                Err(error) => log::debug!("the mirror of /{} stays: {error}", from.escape_ascii()),
            }
        }
        if !is_alive(&location) {
            let _ = fs::remove_file(&location);
        }
    }
    Ok(())
}

/// Whether the real directory has taken its new name.
fn has_moved(from: &[u8], to: &[u8]) -> bool {
    let is_missing = fs::symlink_metadata(absolute(from)).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    is_missing && fs::symlink_metadata(absolute(to)).is_ok_and(|found| found.is_dir())
}

/// Whether the process that has left word, `PROCESS-...`, lives. One of another container seems not to: then its word
/// is taken away early, and what was to be done is done.
fn is_alive(location: &Path) -> bool {
    let name = location.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let process = name.split('-').next().unwrap_or_default();
    fs::read_link(Path::new("/proc").join(process).join("exe")).is_ok()
}
