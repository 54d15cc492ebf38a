//! The programs that are measured: they write and read files as applications do, and say how long that held them up.
//!
//! They know nothing of Sheaf. Each says `ready`, waits for a line, works, and prints its seconds.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Subcommand;

/// One program.
#[derive(Debug, Subcommand)]
pub enum Work {
    /// Write files, one after the other.
    Write {
        /// Where to.
        directory: PathBuf,
        /// What the files' names begin with.
        prefix: String,
        /// How many.
        files: usize,
        /// Bytes of each.
        size_bytes: u64,
        /// fdatasync each before it is closed.
        #[arg(long)]
        sync: bool,
    },
    /// Write one file that has data at its start and end only.
    Sparse {
        /// Where to.
        directory: PathBuf,
        /// What the file's name begins with.
        prefix: String,
        /// Bytes from its start to its end.
        size_bytes: u64,
    },
    /// Read the same files.
    Read {
        /// Where from.
        directory: PathBuf,
        /// What the files' names begin with.
        prefix: String,
        /// How many.
        files: usize,
    },
    /// Read the last MiB of the first of them.
    ReadEnd {
        /// Where from.
        directory: PathBuf,
        /// What the file's name begins with.
        prefix: String,
    },
    /// Write files on the stage's file system with no more calls than a capture cannot do without: is there room, is
    /// there a real file of that name. The floor of what a captured file can cost.
    Floor {
        /// Where to.
        directory: PathBuf,
        /// What the files' names begin with.
        prefix: String,
        /// How many.
        files: usize,
        /// Bytes of each.
        size_bytes: u64,
        /// Where the real files would be.
        real: PathBuf,
    },
    /// Open, read and close files that are staged, all in one thread. The floor of what publishing them can cost.
    Take {
        /// Where from.
        directory: PathBuf,
        /// What the files' names begin with.
        prefix: String,
        /// How many.
        files: usize,
        /// Bytes of each, at most.
        size_bytes: usize,
    },
    /// Map each file of a directory and compute the CRC-32C of its pages; prints processor seconds.
    Checksum {
        /// Which directory.
        directory: PathBuf,
    },
}

/// Bytes of one write or read.
const BLOCK: usize = 1 << 20;

/// Runs one program.
pub fn main(work: Work) -> ExitCode {
    match perform(&work) {
        Ok(seconds) => {
            println!("{seconds}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{work:?}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn perform(work: &Work) -> io::Result<f64> {
    let mut block: Vec<u8> = (0..BLOCK as u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    if let Work::Write { directory, prefix, .. } | Work::Sparse { directory, prefix, .. } = work {
        // An application has touched its checkpoint directory before: what is measured is a checkpoint, not the first.
        File::create(name(directory, prefix, usize::MAX))?.write_all(b"warm")?;
    }
    println!("ready");
    io::stdin().lock().read_line(&mut String::new())?;
    let start = Instant::now();
    match work {
        Work::Write { directory, prefix, files, size_bytes, sync } => {
            for index in 0..*files {
                write_file(&name(directory, prefix, index), &block, *size_bytes, *sync)?;
            }
        }
        Work::Sparse { directory, prefix, size_bytes } => {
            let file = File::create(name(directory, prefix, 0))?;
            file.write_all_at(&block, 0)?;
            file.write_all_at(&block, size_bytes.saturating_sub(block.len() as u64))?;
        }
        Work::Read { directory, prefix, files } => {
            for index in 0..*files {
                let mut file = File::open(name(directory, prefix, index))?;
                while file.read(&mut block)? > 0 {}
            }
        }
        Work::ReadEnd { directory, prefix } => {
            let file = File::open(name(directory, prefix, 0))?;
            let size_bytes = file.metadata()?.len();
            let length = size_bytes.min(block.len() as u64);
            file.read_exact_at(&mut block[..length as usize], size_bytes - length)?;
        }
        Work::Floor { directory, prefix, files, size_bytes, real } => {
            for index in 0..*files {
                look(directory, &name(real, prefix, index))?;
                write_file(&name(directory, prefix, index), &block, *size_bytes, false)?;
            }
        }
        Work::Take { directory, prefix, files, size_bytes } => {
            for index in 0..*files {
                File::open(name(directory, prefix, index))?.read_exact(&mut block[..*size_bytes])?;
            }
        }
        Work::Checksum { directory } => {
            let start_s = processor_s();
            for entry in fs::read_dir(directory)? {
                std::hint::black_box(checksum(&File::open(entry?.path())?)?);
            }
            return Ok(processor_s() - start_s);
        }
    }
    Ok(start.elapsed().as_secs_f64())
}

fn name(directory: &Path, prefix: &str, index: usize) -> PathBuf {
    directory.join(if index == usize::MAX { format!("{prefix}.warm") } else { format!("{prefix}.{index}") })
}

/// Asks for room on the stage's file system, and whether there is a real file of that name.
fn look(stage: &Path, real: &Path) -> io::Result<()> {
    let stage = CString::new(stage.as_os_str().as_bytes())?;
    // SAFETY: all-zero bytes are a valid statfs.
    let mut room: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero byte, and `room` is a valid place for the answer.
    if unsafe { libc::statfs(stage.as_ptr(), &mut room) } != 0 {
        return Err(io::Error::last_os_error());
    }
    std::hint::black_box((room.f_bavail, fs::symlink_metadata(real).is_ok()));
    Ok(())
}

/// Processor seconds of this program so far.
fn processor_s() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The checksum of a file's pages where they lie.
fn checksum(file: &File) -> io::Result<u64> {
    let length = file.metadata()?.len() as usize;
    if length == 0 {
        return Ok(0);
    }
    // SAFETY: a new mapping at a place that the kernel chooses; the descriptor is open.
    let pages = unsafe {
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, flags, file.as_raw_fd(), 0)
    };
    if pages == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is this long, and nobody writes to the file or shortens it: it is the benchmark's own.
    let bytes = unsafe { std::slice::from_raw_parts(pages.cast::<u8>(), length) };
    let checksum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    // SAFETY: nothing refers to the mapping any more.
    unsafe { libc::munmap(pages, length) };
    Ok(checksum)
}

fn write_file(path: &Path, block: &[u8], size_bytes: u64, sync: bool) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut left = size_bytes;
    while left > 0 {
        let count = left.min(block.len() as u64) as usize;
        file.write_all(&block[..count])?;
        left -= count as u64;
    }
    if sync { file.sync_data() } else { Ok(()) }
}
