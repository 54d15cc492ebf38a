//! What the flusher tells the library unasked: the file that both map.
//!
//! Only the parts that are written with calls are here; who says that a flusher lives is [`super::alive`].

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::offset_of;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use sheaf_common::layout::{self, Told};

use super::Stage;

/// The file of a [`Told`].
#[derive(Debug)]
pub struct Telling {
    file: File,
}

impl Telling {
    /// Makes the file, without word that the tree has caught up with the store.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(stage: &Stage) -> io::Result<Telling> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let telling = Telling { file: options.open(stage.path(layout::TOLD))? };
        if telling.file.metadata()?.len() < size_of::<Told>() as u64 {
            telling.file.set_len(size_of::<Told>() as u64)?;
        }
        telling.tell_caught_up(0)?;
        Ok(telling)
    }

    /// Tells the library which thread's mirrors show what other nodes had published when it started.
    ///
    /// # Errors
    /// From pwrite(2).
    pub fn tell_caught_up(&self, thread: u32) -> io::Result<()> {
        self.file.write_all_at(&thread.to_ne_bytes(), offset_of!(Told, caught_up) as u64)
    }

    /// Tells the library whether published names leave the tree for the parallel file system.
    ///
    /// # Errors
    /// From pwrite(2).
    pub fn tell_publishes_files(&self, publishes_files: bool) -> io::Result<()> {
        let word = u64::from(publishes_files).to_ne_bytes();
        self.file.write_all_at(&word, offset_of!(Told, publishes_files) as u64)
    }
}
