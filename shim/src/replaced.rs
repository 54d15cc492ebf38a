//! Markers of older files that lie under captured names on the parallel file system until they may go.
//!
//! Whoever takes such a name away takes the older file first and the marker last. A marker too many is harmless,
//! because it says which file it means; one too few brings an old file back. So whatever is killed here leaves one too
//! many.

use core::ffi::CStr;

use libc::{O_CREAT, O_NOFOLLOW, O_TRUNC, O_WRONLY};
use sheaf_common::layout;
use sheaf_common::replaced::{FileIdentity, Marker};

use crate::configuration::{self, Configuration};
use crate::listing;
use crate::open::start_in_stage;
use crate::scratch::{Scratch, Slot, Text, TooLong};
use crate::system::{self, Errno, Result};

/// The marker's path for a canonical path.
fn marker_path(configuration: &Configuration, path: &[u8], marker: &mut Text) -> core::result::Result<(), TooLong> {
    start_in_stage(configuration, layout::REPLACED, marker)?;
    marker.push(&layout::marker_name(path))
}

/// Says that the file on the real path is superseded by what the tree has, or will have in a moment.
pub fn mark(configuration: &Configuration, path: &CStr) -> Result<()> {
    let file = system::identity(path)?;
    write(configuration, &Marker { file, is_found: false, published_inode: 0, path: path.to_bytes() })
}

/// Says that what comes to the real path is to go with the name that the tree has.
pub fn mark_whatever_comes(configuration: &Configuration, path: &CStr) -> Result<()> {
    write(
        configuration,
        &Marker { file: FileIdentity::NONE, is_found: false, published_inode: 0, path: path.to_bytes() },
    )
}

/// Says that the file on the real path is what is published of this inode in the tree.
pub fn mark_published(configuration: &Configuration, path: &CStr, published_inode: u64) -> Result<()> {
    let file = system::identity(path)?;
    write(configuration, &Marker { file, is_found: false, published_inode, path: path.to_bytes() })
}

/// Whether the file on the real path is what is published of this inode in the tree.
pub fn is_published(configuration: &Configuration, path: &[u8], inode: u64) -> bool {
    let Some(mut scratch) = Scratch::claim() else { return false };
    let Slot { other: name, pending: content, .. } = &mut *scratch;
    marker_path(configuration, path, name).is_ok()
        && read(name.c_str(), content).is_some_and(|marker| marker.published_inode == inode && marker.path == path)
}

fn write(configuration: &Configuration, marker: &Marker) -> Result<()> {
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    let name = &mut scratch.other;
    marker_path(configuration, marker.path, name).map_err(|_| Errno(libc::ENAMETOOLONG))?;
    let file = system::open_own(name.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0o600)?;
    for part in [&marker.head()[..], marker.path] {
        match system::write(file.number(), part) {
            Ok(written) if written == part.len() => {}
            outcome => {
                let _ = system::unlink(name.c_str());
                return Err(outcome.err().unwrap_or(Errno(libc::ENOSPC)));
            }
        }
    }
    Ok(())
}

/// Whether an older file on the real path is superseded by what the tree has.
pub fn is_marked(configuration: &Configuration, path: &[u8]) -> bool {
    let Some(mut scratch) = Scratch::claim() else { return false };
    let marker = &mut scratch.other;
    marker_path(configuration, path, marker).is_ok() && system::lstat(marker.c_str()).is_ok()
}

/// Takes the marker of a canonical path away.
pub fn unmark(configuration: &Configuration, path: &[u8]) {
    let Some(mut scratch) = Scratch::claim() else { return };
    let marker = &mut scratch.other;
    if marker_path(configuration, path, marker).is_ok() {
        let _ = system::unlink(marker.c_str());
    }
}

/// Before a directory moves: takes away what lies under captured names below it, with the markers, which would not move
/// along. What is published of the very files in the tree moves with the directory, to `to`, and is marked there.
pub fn remove_below(configuration: &Configuration, directory: &[u8], to: Option<&[u8]>) -> Result<()> {
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    let Slot { tree: markers, other: name, pending: content, .. } = &mut *scratch;
    start_in_stage(configuration, layout::REPLACED, markers).map_err(|_| Errno(libc::ENAMETOOLONG))?;
    listing::each_name(markers.c_str(), |file_name| {
        let named = name.set(markers.as_bytes()).and_then(|()| name.push(file_name));
        named.map_err(|_| Errno(libc::ENAMETOOLONG))?;
        match read(name.c_str(), content) {
            Some(marker) if !configuration::is_at_or_below(marker.path, directory) => Ok(()),
            Some(marker) if marker.published_inode != 0 => mark_moved(configuration, &marker, directory, to),
            Some(marker) => remove(configuration, marker.path),
            None => Ok(()),
        }
    })
}

/// Says in advance what will be published under the name that a file has when its directory has moved. The old marker
/// stays, which is harmless.
fn mark_moved(configuration: &Configuration, marker: &Marker, directory: &[u8], to: Option<&[u8]>) -> Result<()> {
    let Some(to) = to else { return Ok(()) };
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    let path = &mut scratch.other;
    let rest = marker.path.get(directory.len()..).unwrap_or_default();
    [to, rest].into_iter().try_for_each(|part| path.push(part)).map_err(|_| Errno(libc::ENAMETOOLONG))?;
    write(configuration, &Marker { path: path.as_bytes(), ..*marker })
}

/// Takes away what lies under a name, and the marker last, if the tree has the name.
fn remove(configuration: &Configuration, path: &[u8]) -> Result<()> {
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    let staged = &mut scratch.tree;
    staged.set(configuration.tree).and_then(|()| staged.push(path)).map_err(|_| Errno(libc::ENAMETOOLONG))?;
    if system::lstat(staged.c_str()).is_err() {
        return Ok(());
    }
    match system::unlink(staged.c_str_from(configuration.tree.len())) {
        Ok(()) | Err(Errno(libc::ENOENT)) => unmark(configuration, path),
        error => return error,
    }
    Ok(())
}

/// Reads a marker; `None` when it is gone or not whole.
fn read<'a>(name: &CStr, content: &'a mut Text) -> Option<Marker<'a>> {
    let file = system::open_own(name, libc::O_RDONLY | O_NOFOLLOW, 0).ok()?;
    let memory = content.as_memory();
    let length = system::read(file.number(), memory).ok()?;
    Marker::parse(memory.get(..length)?)
}
