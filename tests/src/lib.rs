//! The harness of the tests that do what users do: real programs, the built library, the built program.
//!
//! A [`Scene`] is one private "parallel file system" with a native and a captured side, and one private stage.
//! Nothing here knows how Sheaf works inside: it looks at bytes, names and exit codes. Every wait is bounded.

pub mod campaign;
pub mod cluster;
pub mod differential;
pub mod disk;
pub mod forge;
pub mod process;
pub mod scene;
pub mod seccomp;
pub mod snapshot;
pub mod unreliable;

pub use process::{Finished, LIMIT};
pub use scene::{Engine, Scene};
