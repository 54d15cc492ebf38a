//! `libsheaf.so`: the preloaded library that redirects checkpoint paths to the stage.
//!
//! It hooks calls that take a path; the program gets real file descriptors on staged files, and the kernel does the
//! rest. Of calls that move data only the result is looked at, so that a full stage is never the program's concern. It
//! lives in somebody else's process, in signal handlers and between `vfork` and `exec`. So it has no thread, lock, heap
//! or lasting file descriptor of its own, keeps `errno`, uses little stack, and when anything of its own fails before
//! bytes are staged, the program's call runs untouched, unless it would then answer for the store.
//!
//! | module | concern |
//! | --- | --- |
//! | [`hooks`], [`loader`] | the one table of hooked symbols, and the real functions behind them |
//! | [`system`], [`scratch`], [`log`] | raw system calls, path buffers, lines for people |
//! | [`configuration`], [`paths`], [`reject`] | what the environment says; which name of ours a path means; which means none |
//! | [`flusher`], [`store`] | finding, starting and asking the flusher; what can be known of the store without one |
//! | [`concern`] | what the supervisor of trapped programs asks |
//! | [`open`], [`stdio`], [`metadata`], [`namespace`], [`directory`], [`names`], [`rare`], [`walk`], [`tree_walk`], [`raw_syscall`] | the calls |
//! | [`durable`], [`staged`] | close and fsync that wait until a file is in the store |
//! | [`data`], [`room`], [`growth`], [`group`], [`spill`] | what happens when the stage is full, or the memory that a job may use |
//! | [`exec`], [`actions`], [`kept`] | programs and libraries in checkpoint paths; files of programs that are started |
#![no_std]
#![deny(missing_docs)]

mod actions;
mod concern;
mod configuration;
mod copy;
mod data;
mod directory;
mod durable;
mod entries;
mod exec;
mod flusher;
mod group;
mod growth;
mod hooks;
mod kept;
mod listing;
mod loader;
mod log;
mod metadata;
mod moving;
mod names;
mod namespace;
mod open;
mod parallel;
mod paths;
mod rare;
mod raw_syscall;
mod redirect;
mod reject;
mod replaced;
mod room;
mod scratch;
mod sides;
mod spawn;
mod spill;
mod staged;
mod stdio;
mod store;
mod system;
mod told;
mod tree_walk;
mod walk;

/// A panic is a bug; nothing may unwind into the program.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    system::abort()
}

// Named by the unwinding tables of the precompiled core library, never called: nothing here unwinds.
core::arch::global_asm!(".globl rust_eh_personality", ".hidden rust_eh_personality", "rust_eh_personality:");
