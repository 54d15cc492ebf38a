//! What both sides of Sheaf must agree on: the preloaded library (`shim/`) and the flusher (`flusher/`).
//!
//! Everything here runs inside foreign processes, in signal handlers and between `vfork` and `exec`: it must never
//! allocate, lock, panic, or make a system call.
#![cfg_attr(not(test), no_std)]
#![deny(missing_docs)]

pub mod configuration;
pub mod layout;
pub mod memory;
pub mod pattern;
pub mod protocol;
pub mod replaced;
pub mod room;
