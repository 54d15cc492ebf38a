//! Layout `files`: what is published leaves the tree for its own path on the parallel file system. Whoever takes a name
//! or changes what it means keeps it on its side meanwhile, by a lock that the flusher needs for the moment in which a
//! name changes sides.
//!
//! Nobody may wait here for longer than for a flusher, and nobody may ask the flusher for anything while names are
//! held.

use core::ffi::CStr;

use sheaf_common::layout;

use crate::configuration::Configuration;
use crate::flusher;
use crate::open::start_in_stage;
use crate::paths::{Entry, Kind};
use crate::scratch::Scratch;
use crate::system::{self, AT_FDCWD, Descriptor, Errno, Result, Stat};
use crate::told;

/// Pause between two attempts.
const PAUSE_MS: u64 = 1;

/// Names stay on their side until this is dropped; not without the lock.
pub struct Held(Option<Descriptor>);

impl Held {
    /// Whether a call has failed because the name could not be kept in the tree, and has left it between the look and
    /// the call. The next look does not find it there any more.
    pub fn was_in_vain<T>(held: Option<&Held>, outcome: &Result<T>, entry: &Entry) -> bool {
        held.is_some_and(|held| held.0.is_none())
            && matches!(outcome, Err(Errno(libc::ENOENT)))
            && matches!(system::lstat(entry.tree_path()), Err(Errno(libc::ENOENT)))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A child that was made meanwhile has the descriptor, too, and would keep the lock.
        if let Some(file) = &self.0 {
            let _ = system::flock(file.number(), libc::LOCK_UN);
        }
    }
}

/// Holds all names, where that is needed. Without the lock, because somebody has kept it for as long as a flusher may
/// be silent, the call goes on; it may have taken that long, so what was looked at before is to be looked at again in
/// any case.
pub fn hold(configuration: &Configuration) -> Option<Held> {
    if !told::publishes_files(configuration) {
        return None;
    }
    let file = {
        let mut scratch = Scratch::claim()?;
        let path = &mut scratch.other;
        start_in_stage(configuration, "", path).ok()?;
        path.push(layout::NAMES.as_bytes()).ok()?;
        system::open_own(path.c_str(), libc::O_RDONLY | libc::O_NOFOLLOW, 0).ok()?
    };
    let begin_ns = system::now_ns();
    loop {
        match system::flock(file.number(), libc::LOCK_SH | libc::LOCK_NB) {
            Ok(()) => return Some(Held(Some(file))),
            Err(Errno(libc::EAGAIN)) if !flusher::is_over(begin_ns, configuration.timeout_ms) => {
                system::sleep_ms(PAUSE_MS);
            }
            Err(_) => return Some(Held(None)),
        }
    }
}

/// Holds all names if one of these is in the tree: then they are to be looked at again, because they may have left it.
/// The flusher is started first, which takes its time, and whether that succeeds or not: another process may start one.
/// A directory, for whose names it is asked, can neither replace a file nor be replaced by one.
pub fn hold_for(configuration: &Configuration, entries: [Option<&Entry>; 2]) -> Option<Held> {
    let is = |kind: Kind| entries.iter().flatten().any(|entry| entry.kind == kind);
    if !is(Kind::Managed) || is(Kind::Directory) {
        return None;
    }
    flusher::ensure(configuration);
    hold(configuration)
}

/// Whether a name that is not in the tree may be that of a published file.
pub fn may_be_published(configuration: &Configuration, entry: &Entry) -> bool {
    entry.is_checkpoint && entry.real().is_some() && told::publishes_files(configuration)
}

/// Gives a new file in the stage the name of an old one; ENOENT when the old one has left the tree.
pub fn take_place(configuration: &Configuration, new: &CStr, (name, old): (&CStr, &Stat)) -> Result<()> {
    let held = hold(configuration);
    if held.is_some() && system::lstat(name)?.st_ino != old.st_ino {
        return Err(Errno(libc::ENOENT));
    }
    system::rename((AT_FDCWD, new), (AT_FDCWD, name), 0)
}
