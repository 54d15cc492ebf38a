//! The flusher and the tools behind the `sheaf` program, as a library.

#![deny(missing_docs)]
pub mod aggregate;
pub mod cli;
pub mod client;
pub mod daemon;
pub mod engine;
pub mod settings;
mod signals;
pub mod stage;
pub mod store;
mod trap;
