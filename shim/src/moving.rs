//! Word of a directory that takes another name: the real directory moves first, then its mirror. A program that is
//! killed in between leaves its word behind, and the flusher takes the second step in its place.
//!
//! Nothing here may keep a directory from moving: without word it moves as before.

use libc::{O_CREAT, O_EXCL, O_NOFOLLOW, O_WRONLY};
use sheaf_common::layout;

use crate::configuration::Configuration;
use crate::open::start_in_stage;
use crate::scratch::{Scratch, make_unique};
use crate::system;

/// What was left; it is taken back at the end of its scope.
pub struct Word {
    scratch: Scratch,
}

impl Word {
    /// Says that the directory `from` is about to be `to`, both canonical.
    pub fn leave(configuration: &Configuration, from: &[u8], to: &[u8]) -> Option<Word> {
        let mut scratch = Scratch::claim()?;
        let name = &mut scratch.other;
        start_in_stage(configuration, layout::MOVING, name).ok()?;
        let file = make_unique(name, |name| system::open_own(name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600));
        let word = Word { scratch };
        let file = file.ok()?;
        // What is not whole means nothing: the end is the last part.
        let parts = [from, b"\0", to, b"\0"];
        let is_whole = |part: &&[u8]| system::write(file.number(), part) == Ok(part.len());
        parts.iter().all(is_whole).then_some(word)
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        let _ = system::unlink(self.scratch.other.c_str());
    }
}
