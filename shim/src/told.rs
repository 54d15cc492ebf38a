//! What the flusher tells unasked: one file of the stage, in memory.
//!
//! Nothing here may wait or make a call of the system once the file is mapped, and never may a flusher be said to live
//! that the kernel has seen end.

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use sheaf_common::layout::{self, FLUSHER_DIED, Told};

use crate::configuration::Configuration;
use crate::scratch::Scratch;
use crate::system;

/// What stands for "there is no such file".
static NOTHING: Told = Told {
    flusher: AtomicU32::new(0),
    caught_up: AtomicU32::new(0),
    owned: [const { AtomicU64::new(0) }; 4],
    publishes_files: AtomicU64::new(0),
};
/// The file; null until it was looked for.
static TOLD: AtomicPtr<Told> = AtomicPtr::new(ptr::null_mut());

/// Whether published names leave the tree for the parallel file system (layout `files`).
pub fn publishes_files(configuration: &Configuration) -> bool {
    told(configuration).publishes_files.load(Ordering::Relaxed) != 0
}

/// The thread that serves the stage, if it says so and lives.
pub fn flusher(configuration: &Configuration) -> Option<u32> {
    Some(told(configuration).flusher.load(Ordering::Acquire))
        .filter(|flusher| flusher & !FLUSHER_DIED == *flusher && *flusher != 0)
}

/// The same, if the mirrors show what other nodes had published when it started.
#[inline]
pub fn caught_up_flusher(configuration: &Configuration) -> Option<u32> {
    let told = told(configuration);
    let flusher = told.flusher.load(Ordering::Acquire);
    // A number that the kernel has marked is no thread's.
    (flusher != 0 && told.caught_up.load(Ordering::Acquire) == flusher).then_some(flusher)
}

fn told(configuration: &Configuration) -> &'static Told {
    let mut place = TOLD.load(Ordering::Acquire);
    if place.is_null() {
        place = map(configuration).unwrap_or((&raw const NOTHING).cast_mut());
        // Another thread's mapping is as good; this one's page stays.
        TOLD.store(place, Ordering::Release);
    }
    // SAFETY: either a static, or a shared mapping of one page of a file that nobody cuts, and that is never unmapped.
    unsafe { &*place }
}

/// Looks for the file again, if there was none: a flusher has answered, so there is one.
pub fn look_again(configuration: &Configuration) {
    let nothing = (&raw const NOTHING).cast_mut();
    if TOLD.load(Ordering::Acquire) == nothing
        && let Some(place) = map(configuration)
    {
        TOLD.store(place, Ordering::Release);
    }
}

fn map(configuration: &Configuration) -> Option<*mut Told> {
    if !configuration.has_stage() {
        return None;
    }
    let mut scratch = Scratch::claim()?;
    let path = &mut scratch.other;
    for part in [configuration.stage, b"/", layout::TOLD.as_bytes()] {
        path.push(part).ok()?;
    }
    let file = system::open_own(path.c_str(), libc::O_RDONLY | libc::O_NOFOLLOW, 0).ok()?;
    // Behind the file's end there is no memory.
    let is_whole = system::fstat(file.number()).is_ok_and(|stat| stat.st_size >= size_of::<Told>() as i64);
    if is_whole { system::map_file(file.number(), size_of::<Told>()).ok().map(<*mut u8>::cast) } else { None }
}
