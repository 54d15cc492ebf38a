//! The programs that are measured: they write and read files as applications do, and say how long that held them up.
//!
//! They know nothing of Sheaf. Each says `ready`, waits for a line, works, and prints its seconds.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
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
    /// Read the same files.
    Read {
        /// Where from.
        directory: PathBuf,
        /// What the files' names begin with.
        prefix: String,
        /// How many.
        files: usize,
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
    if let Work::Write { directory, prefix, .. } = work {
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
        Work::Read { directory, prefix, files } => {
            for index in 0..*files {
                let mut file = File::open(name(directory, prefix, index))?;
                while file.read(&mut block)? > 0 {}
            }
        }
    }
    Ok(start.elapsed().as_secs_f64())
}

fn name(directory: &Path, prefix: &str, index: usize) -> PathBuf {
    directory.join(if index == usize::MAX { format!("{prefix}.warm") } else { format!("{prefix}.{index}") })
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
