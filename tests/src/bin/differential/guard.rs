//! What may differ between one file system and a stage in front of another, on purpose. The captured side finds out
//! that an operation is such a case and skips it; the native side follows.
//!
//! | case | why |
//! | --- | --- |
//! | a checkpoint leaves the checkpoint directories while it is open or has another name | it is copied |
//! | truncation by name of a file that is open only for reading, or that lies in its place and is open | a new inode |
//! | O_PATH on a captured file | it is opened for reading |
//! | truncation of a file that is not staged to the size that it has | its times are the file system's affair |
//! | links, exchanges, moved directories and in-kernel copies between stage and parallel file system | refused: EXDEV |

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::answer::Stop;
use crate::names::Place;
use crate::worker::Worker;

/// Descriptors, mappings and streams of one process that can keep a file.
pub const OPEN_MAX: usize = 16;
/// In an opening: it can write.
const WRITER: u64 = 1;

/// Which files are open anywhere, in memory that all processes share: the file's number twice, plus [`WRITER`].
pub struct Openings {
    /// Those of all processes.
    pub all: &'static [AtomicU64],
    /// Those of this one.
    pub own: &'static [AtomicU64],
}

impl Openings {
    /// Memory for all processes, to be asked for before they fork.
    pub fn shared() -> &'static [AtomicU64] {
        let count = OPEN_MAX * sheaf_tests::differential::PROCESSES;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        let length = count * size_of::<AtomicU64>();
        // SAFETY: fresh anonymous memory; nothing is replaced.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        assert!(memory != libc::MAP_FAILED, "no memory to share");
        // SAFETY: the mapping is as long, aligned to pages, zeroed and never unmapped; atomics may be shared.
        unsafe { std::slice::from_raw_parts(memory.cast(), count) }
    }

    /// Notes what one of this process's places keeps open; `None` when nothing.
    pub fn note(&self, place: usize, kept: Option<(&libc::stat, bool)>) {
        let value = kept.map_or(0, |(stat, writes)| key(stat) | if writes { WRITER } else { 0 });
        self.own[place].store(value, Ordering::SeqCst);
    }

    /// Whether a file is open anywhere, and whether for writing.
    fn of(&self, stat: &libc::stat) -> (bool, bool) {
        let values = self.all.iter().map(|value| value.load(Ordering::SeqCst));
        let kept: Vec<u64> = values.filter(|value| value & !WRITER == key(stat)).collect();
        (!kept.is_empty(), kept.iter().any(|value| value & WRITER != 0))
    }
}

fn key(stat: &libc::stat) -> u64 {
    (stat.st_dev.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ stat.st_ino.wrapping_mul(0xff51_afd7_ed55_8ccd)) << 1
}

fn is_directory(stat: &libc::stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

impl Worker {
    /// Whether a file lies in the stage.
    pub fn is_staged(&self, stat: &libc::stat) -> bool {
        !self.is_native && stat.st_dev != self.root_device
    }

    /// Before a truncation by name.
    pub fn guard_truncation(&self, place: &Place) -> Result<(), Stop> {
        if self.is_native {
            return Ok(());
        }
        let Ok(stat) = place.stat(true) else { return Ok(()) };
        match self.openings.of(&stat) {
            (true, writes) if !writes || !self.is_staged(&stat) => Err(Stop::Skipped("truncated while open")),
            _ => Ok(()),
        }
    }

    /// Before an open that yields no more than a place: a captured file is opened for reading then, because nothing
    /// else keeps its data in the stage.
    pub fn guard_place(&self, place: &Place, flags: libc::c_int) -> Result<(), Stop> {
        let is_staged_file = |stat: libc::stat| stat.st_mode & libc::S_IFMT == libc::S_IFREG && self.is_staged(&stat);
        let is_place = !self.is_native && flags & libc::O_PATH != 0;
        if is_place && place.stat(flags & libc::O_NOFOLLOW == 0).is_ok_and(is_staged_file) {
            return Err(Stop::Skipped("a place of a captured file"));
        }
        Ok(())
    }

    /// Before a truncation that is not part of an open: to the size that a file has already, some file systems set
    /// times then and others do not. A file that is not staged lies on another one than its twin.
    pub fn guard_size(&self, stat: std::io::Result<libc::stat>, size: i64) -> Result<(), Stop> {
        let is_kept = |stat: libc::stat| stat.st_size == size && !self.is_staged(&stat);
        let is_other = !self.is_native && stat.is_ok_and(is_kept);
        if is_other { Err(Stop::Skipped("truncated to its size")) } else { Ok(()) }
    }

    /// Before a rename.
    pub fn guard_departure(&self, from: &Place, to: &Place) -> Result<(), Stop> {
        if self.is_native {
            return Ok(());
        }
        let Ok(stat) = from.stat(false) else { return Ok(()) };
        let is_free = stat.st_nlink == 1 && !self.openings.of(&stat).0;
        if is_free || is_directory(&stat) || !self.is_staged(&stat) || self.is_checkpoint(to) {
            return Ok(());
        }
        Err(Stop::Skipped("leaves while open or linked"))
    }

    /// After an operation on two names: whether a refusal is one between two file systems. `follows`: what the first
    /// name leads to is meant.
    pub fn guard_refusal(&self, (from, follows): (&Place, bool), to: &Place, exchanges: bool, stop: Stop) -> Stop {
        let is_candidate = match stop {
            Stop::Errno(libc::EXDEV) => true,
            Stop::Errno(_) => exchanges,
            Stop::Skipped(_) => false,
        };
        if self.is_native || !is_candidate {
            return stop;
        }
        let (source, target) = (from.stat(follows), to.stat(false));
        let Ok(source) = source else { return stop };
        let crosses = match &target {
            Ok(target) => source.st_dev != target.st_dev || is_directory(target),
            Err(_) => self.is_staged(&source) != self.is_checkpoint(to),
        };
        if crosses || exchanges || is_directory(&source) { Stop::Skipped("refused between file systems") } else { stop }
    }

    /// Whether a name is one that the patterns of the test match.
    fn is_checkpoint(&self, place: &Place) -> bool {
        let Some(path) = self.canonical(place) else { return true };
        path.starts_with(Path::new(&self.root).join("ckpt")) && path.extension().is_none_or(|end| end != "raw")
    }

    fn canonical(&self, place: &Place) -> Option<PathBuf> {
        let start = match place.directory {
            // A working directory that is gone does not matter then.
            _ if place.path.to_bytes().starts_with(b"/") => PathBuf::new(),
            libc::AT_FDCWD => std::env::current_dir().ok()?,
            descriptor => std::fs::read_link(format!("/proc/self/fd/{descriptor}")).ok()?,
        };
        let path = start.join(place.path.to_str().ok()?);
        let name = path.file_name()?;
        Some(path.parent()?.canonicalize().ok()?.join(name))
    }
}
