//! A file of the store that is written under another name first, so that nobody ever reads a part of it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::daemon::node_name;

/// A file under a name that nobody reads, which is removed unless it gets another.
pub(super) struct Aside {
    /// Where it is.
    pub path: PathBuf,
    /// The file, open for writing.
    pub file: File,
}

impl Aside {
    /// Makes it, empty.
    ///
    /// # Errors
    /// From the file system.
    pub fn create(store: &Path) -> io::Result<Aside> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        // Named like an aggregate that is being made: what a killed process leaves is removed in the same way.
        let path = store.join(format!(".{}-{:016x}.new", node_name(), u64::from_ne_bytes(random)));
        Ok(Aside { file: File::create_new(&path)?, path })
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
