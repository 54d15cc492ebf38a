//! Tells every process of the node that a flusher lives, so that none need ask.
//!
//! The word is a robust futex: when the thread that owns it ends, however that happens, the kernel marks it. Nothing
//! here may leave a word that names a thread that has ended, or whose stage another flusher may serve.

use std::fs::OpenOptions;
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags};
use sheaf_common::layout::{self, Told};

use super::Stage;

/// Size of `struct robust_list_head`.
const HEAD_BYTES: usize = 3 * size_of::<u64>();

/// The word that says so, until this is dropped or the thread that has made it ends. That is the thread which must drop
/// it.
#[derive(Debug)]
pub struct Alive {
    told: &'static Told,
    /// Other threads have other lists.
    _of_this_thread: PhantomData<*const ()>,
}

impl Alive {
    /// Says that the calling thread serves the stage. It must end with the process.
    ///
    /// # Errors
    /// When the kernel knows no robust futexes, or the file cannot be mapped; then programs ask the pulse.
    pub fn say(stage: &Stage) -> io::Result<Alive> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(stage.path(layout::TOLD))?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping of one page touches no memory that exists.
        let page = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), size_of::<Told>(), protection, MapFlags::SHARED, &file, 0)?
        };
        // SAFETY: the file is at least that long, nobody cuts it, and the mapping stays; every bit pattern is a `Told`.
        let told: &'static Told = unsafe { &*page.cast::<Told>() };
        told.flusher.store(0, Ordering::Relaxed);
        own(told)?;
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        told.flusher.store(thread as u32, Ordering::Release);
        Ok(Alive { told, _of_this_thread: PhantomData })
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.told.flusher.store(0, Ordering::Release);
        // The next flusher puts its own list there.
        // SAFETY: the kernel takes no list for an empty one.
        unsafe { libc::syscall(libc::SYS_set_robust_list, std::ptr::null::<u64>(), HEAD_BYTES) };
    }
}

/// Has the kernel mark the word when this thread ends. The C library's own list of the thread, of robust mutexes that a
/// dead thread held, is given up for it: the flusher has none.
fn own(told: &'static Told) -> io::Result<()> {
    let [first, futex_offset, pending, entry] = &told.owned;
    let address = |place: &AtomicU64| place.as_ptr() as u64;
    // `struct robust_list_head`, and behind it the only entry, which leads back to the head.
    first.store(address(entry), Ordering::Relaxed);
    futex_offset.store((told.flusher.as_ptr() as u64).wrapping_sub(address(entry)), Ordering::Relaxed);
    pending.store(0, Ordering::Relaxed);
    entry.store(address(first), Ordering::Relaxed);
    // SAFETY: a head of this size, in memory that stays; the kernel only reads it, and the word that it leads to.
    let result = unsafe { libc::syscall(libc::SYS_set_robust_list, first.as_ptr(), HEAD_BYTES) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sheaf_common::layout::FLUSHER_DIED;
    use tempfile::TempDir;

    use super::*;
    use crate::stage::told::Telling;

    fn stage() -> (TempDir, Stage) {
        let tier = tempfile::tempdir_in("/dev/shm").expect("room for a stage");
        let directory = tier.path().join("sheaf-0/0123456789abcdef");
        let stage = Stage::create(&directory, Path::new("/s")).expect("the tier is ours");
        Telling::create(&stage).expect("the stage is ours");
        (tier, stage)
    }

    #[test]
    fn the_kernel_marks_the_word_of_a_thread_that_ends() {
        let (_tier, stage) = stage();
        let told = std::thread::scope(|scope| {
            let serving = scope.spawn(|| {
                let alive = Alive::say(&stage).expect("this kernel knows robust futexes");
                assert_eq!(alive.told.flusher.load(Ordering::Acquire), rustix::thread::gettid().as_raw_pid() as u32);
                let told = alive.told;
                std::mem::forget(alive);
                told
            });
            serving.join().expect("it only says so")
        });
        assert_eq!(told.flusher.load(Ordering::Acquire), FLUSHER_DIED);
    }

    #[test]
    fn what_is_taken_back_is_not_marked() {
        let (_tier, stage) = stage();
        let word = || {
            let bytes = std::fs::read(stage.path(layout::TOLD)).expect("the stage is ours");
            u32::from_ne_bytes(bytes[..4].try_into().expect("four bytes"))
        };
        let alive = Alive::say(&stage).expect("this kernel knows robust futexes");
        assert_ne!(word(), 0);
        drop(alive);
        assert_eq!(word(), 0);
    }
}
