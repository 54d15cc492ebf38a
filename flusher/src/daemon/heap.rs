//! How the flusher uses the C library's heap: the memory that it takes is the simulation's.
//!
//! Only glibc has this; without it everything works, with more memory.

/// Has all threads share one heap: what the watcher makes the flusher thread frees, and in heaps of their own a fifth
/// stays unused. To be called before there are others. It costs no time as long as a small file takes few allocations;
/// with three times as many, the heap's lock took a third of it.
pub fn share() {
    // SAFETY: sets a number of the allocator; nobody else uses it yet.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what a large batch has used, when nothing is to be done.
pub fn trim() {
    // SAFETY: the allocator locks its own heap; what is in use stays where it is.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
