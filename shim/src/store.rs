//! What can be known of the store without a flusher: whether it is there, and whether it may hold anything.
//!
//! Only the flusher knows names that are nowhere but in aggregates. When none can be asked, nothing here may say that
//! there are none unless a look has shown it: a program that believes so starts from zero, over its checkpoints.

use core::ffi::c_int;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use libc::dirent;
use sheaf_common::configuration::Level;

use crate::configuration::Configuration;
use crate::log::{self, Reason, Shown};
use crate::scratch::Scratch;
use crate::system::{self, Errno, Result};

/// How names of aggregates end.
const SUFFIX: &[u8] = b".tar";
/// How the store is opened to be listed.
const FLAGS: c_int = libc::O_RDONLY | libc::O_DIRECTORY;

static SEEN: AtomicBool = AtomicBool::new(false);
/// The process that has said that it cannot know what the store holds.
static TOLD: AtomicI32 = AtomicI32::new(0);
/// The process that has said that what it gets may be older than what the store holds.
static AGE_TOLD: AtomicI32 = AtomicI32::new(0);

/// Whether there is a store, or perhaps something that waits for one, as far as can be seen: then a directory without a
/// mirror may hold names that this node has not seen.
pub fn exists(configuration: &Configuration) -> bool {
    if SEEN.load(Ordering::Relaxed) {
        return true;
    }
    let look = system::access(configuration.store, libc::F_OK);
    if look.is_ok() {
        SEEN.store(true, Ordering::Relaxed);
    }
    !is_absent(look) || configuration.has_further_tier()
}

/// What a call fails with whose answer depends on what the store holds at `path`, when nobody could say for `error`;
/// `Ok` when the store holds nothing at all, and for a process that has become another user, to which Sheaf means
/// nothing. EIO is a flusher's word that it does not know: what the store does not have yet may wait in a further tier.
pub fn refuse(configuration: &Configuration, path: &[u8], error: Errno) -> Result<()> {
    let may_be_held = error == Errno(libc::EIO) || may_hold_names(configuration);
    if !may_be_held || system::user_id() != configuration.user {
        return Ok(());
    }
    let process = system::process_id();
    if TOLD.swap(process, Ordering::Relaxed) != process {
        log::say(
            configuration,
            Level::Error,
            format_args!(
                "sheaf: {}: only a flusher can say whether the store {} holds it, and none could be asked: {}; calls that \
                 depend on it fail with EIO until one can. 'sheaf doctor' says what keeps it from starting; files that \
                 are written anew need none",
                Shown(path),
                Shown(configuration.store.to_bytes()),
                Reason(error)
            ),
        );
    }
    Err(Errno(libc::EIO))
}

/// Says, once in a process, that what the tree holds at `path` may be older than what another node has published,
/// because nobody could look for `error`. It may be the only copy of what this node has captured: so it is what the
/// program gets.
pub fn warn_of_age(configuration: &Configuration, path: &[u8], error: Errno) {
    let process = system::process_id();
    if AGE_TOLD.swap(process, Ordering::Relaxed) == process || !may_hold_names(configuration) {
        return;
    }
    log::say(
        configuration,
        Level::Error,
        format_args!(
            "sheaf: {}: this is what the node holds; only a flusher can say whether another node has published a newer \
             version in the store {}, and none could be asked: {}. 'sheaf doctor' says what keeps it from starting",
            Shown(path),
            Shown(configuration.store.to_bytes()),
            Reason(error)
        ),
    );
}

fn is_absent<T>(look: Result<T>) -> bool {
    matches!(look, Err(Errno(libc::ENOENT | libc::ENOTDIR)))
}

/// Whether the store has an aggregate, or cannot be looked at.
fn may_hold_names(configuration: &Configuration) -> bool {
    match system::open_own(configuration.store, FLAGS, 0) {
        Ok(store) => has_aggregate(store.number()).unwrap_or(true),
        look => !is_absent(look),
    }
}

fn has_aggregate(store: c_int) -> Result<bool> {
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    let memory = scratch.other.as_memory();
    loop {
        // SAFETY: the kernel writes no more than there is room for.
        let length = unsafe { system::getdents(store, memory.as_mut_ptr(), memory.len())? };
        if length == 0 {
            return Ok(false);
        }
        if Names(memory.get(..length).unwrap_or_default()).any(|name| name.ends_with(SUFFIX)) {
            return Ok(true);
        }
    }
}

/// The names in records of a directory.
struct Names<'a>(&'a [u8]);

impl<'a> Iterator for Names<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let length = *self.0.get(offset_of!(dirent, d_reclen)..)?.first_chunk()?;
        let (record, rest) = self.0.split_at_checked(u16::from_ne_bytes(length).into())?;
        self.0 = rest;
        record.get(offset_of!(dirent, d_name)..)?.split(|&byte| byte == 0).next()
    }
}
