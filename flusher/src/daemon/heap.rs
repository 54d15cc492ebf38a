//! How the flusher uses the C library's heap: the memory that it takes is the simulation's.
//!
//! Only glibc has this; without it everything works, with more memory.

/// Gives back what a large batch has used, when nothing is to be done.
pub fn trim() {
    // SAFETY: the allocator locks its own heap; what is in use stays where it is.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
