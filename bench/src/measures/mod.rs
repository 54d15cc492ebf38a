//! What is measured. Each measure makes one group of rows, in interleaved rounds.

pub mod compute;
pub mod growth;
pub mod large;
pub mod small;

use std::path::Path;
use std::time::Instant;

use crate::Failure;
use crate::result::Group;
use crate::site::{Site, drop_caches};
use crate::target::TargetKind;

/// How much is written.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Processes that write large files, one each.
    pub ranks: usize,
    /// Bytes of each large file.
    pub file_bytes: u64,
    /// Small files, of [`SMALL_BYTES`] each.
    pub small_files: usize,
}

/// Bytes of a small file.
pub const SMALL_BYTES: u64 = 4096;

impl Size {
    /// What suits a target.
    pub fn of(kind: TargetKind, quick: bool) -> Size {
        let (file_mib, small_files) = match (kind, quick) {
            (TargetKind::Local | TargetKind::Xfs, false) => (256, 100_000),
            (TargetKind::Local | TargetKind::Xfs, true) => (64, 10_000),
            (TargetKind::Capped, false) => (64, 10_000),
            (TargetKind::Capped, true) => (32, 2_000),
            (TargetKind::Moosefs, false) => (64, 10_000),
            (TargetKind::Moosefs, true) => (32, 1_000),
        };
        Size { ranks: 4, file_bytes: file_mib << 20, small_files }
    }

    /// Bytes of all large files.
    pub fn bytes(&self) -> u64 {
        self.ranks as u64 * self.file_bytes
    }

    /// The same in GiB.
    pub fn gib(&self) -> f64 {
        self.bytes() as f64 / (1u64 << 30) as f64
    }
}

/// Arguments of a measured program, by the directory that it works in.
type Arguments<'a> = &'a dyn Fn(&Path) -> Vec<String>;

/// A checkpoint under Sheaf, and a restart from the store alone: how long the programs are held up, the time from their
/// start until everything is published, and, cold, what reading takes.
///
/// # Errors
/// When anything of it cannot be run.
pub fn checkpoint(
    site: &Site,
    processes: usize,
    (write, read): (Arguments<'_>, Arguments<'_>),
    [captured, published, restart]: [&str; 3],
    group: &mut Group,
) -> Result<(), Failure> {
    let place = site.place("ckpt")?;
    let programs = site.start(processes, true, &write(&place))?;
    let start = Instant::now();
    group.row(captured).values.push(programs.go()?);
    site.sheaf(&["wait"])?;
    group.row(published).values.push(start.elapsed().as_secs_f64());
    site.sheaf(&["drain"])?;
    site.wipe_stage()?;
    drop_caches();
    group.row(restart).values.push(site.run(processes, true, &read(&place))?);
    site.clear()
}

/// Arguments of the measured program that writes: each process a prefix of its own.
pub fn write(directory: &Path, files: usize, size_bytes: u64, sync: bool) -> Vec<String> {
    let mut arguments = vec![
        "write".to_string(),
        directory.display().to_string(),
        "RANK".to_string(),
        files.to_string(),
        size_bytes.to_string(),
    ];
    arguments.extend(sync.then(|| "--sync".to_string()));
    arguments
}

/// Arguments of the measured program that reads the same.
pub fn read(directory: &Path, files: usize) -> Vec<String> {
    vec!["read".to_string(), directory.display().to_string(), "RANK".to_string(), files.to_string()]
}

/// Arguments of the program that writes one file of which only the start and the end have data.
pub fn sparse(directory: &Path, size_bytes: u64) -> Vec<String> {
    vec!["sparse".to_string(), directory.display().to_string(), "RANK".to_string(), size_bytes.to_string()]
}

/// Arguments of the program that reads the end of one file.
pub fn read_end(directory: &Path) -> Vec<String> {
    vec!["read-end".to_string(), directory.display().to_string(), "RANK".to_string()]
}

/// Arguments of the program that makes the calls of a capture that nothing can spare; see [`crate::work::Work::Floor`].
pub fn floor(directory: &Path, files: usize, size_bytes: u64, real: &Path) -> Vec<String> {
    let mut arguments = write(directory, files, size_bytes, false);
    arguments[0] = "floor".to_string();
    arguments.push(real.display().to_string());
    arguments
}

/// Arguments of the program that opens, reads and closes staged files.
pub fn take(directory: &Path, files: usize, size_bytes: u64) -> Vec<String> {
    let mut arguments = write(directory, files, size_bytes, false);
    arguments[0] = "take".to_string();
    arguments
}

/// Processors that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
