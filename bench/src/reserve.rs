//! `sheaf-bench reserve`: many simulated nodes that write to one store at once, by the flusher's own code.
//!
//! Each has a host name of its own, in a namespace of this process: that takes root. All nodes begin, then each
//! publishes its first checkpoint, then its second, then its end: so each finds what the others have reserved
//! meanwhile. Only names are written. `sheaf-bench scale` counts the calls of this program on the store.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use sheaf_flusher::aggregate::{Attributes, Entry, FLAG_ENDED, Kind};
use sheaf_flusher::daemon::{Appender, Input, Origin, Pace};
use sheaf_flusher::engine::{self, Engine};

use crate::Failure;

/// Checkpoints of each node.
pub const CHECKPOINTS: u64 = 2;
/// Names in each.
const NAMES: u64 = 10;
/// Longer nobody has to wait for a lock here.
const LIMIT: Duration = Duration::from_secs(10);

/// Has simulated nodes write to a store.
#[derive(Debug, clap::Args)]
pub struct Reserve {
    /// How many.
    #[arg(long)]
    nodes: u64,
    /// Into how many files that all share; 0: each has files of its own.
    #[arg(long)]
    shared: u32,
    /// An empty directory.
    #[arg(long)]
    store: PathBuf,
}

/// See [`Reserve`].
///
/// # Errors
/// When something cannot be written.
pub fn run(options: &Reserve) -> Result<(), Failure> {
    allow_open_files()?;
    // SAFETY: unshare takes flags; this process has one thread.
    checked(unsafe { libc::unshare(libc::CLONE_NEWUTS) })?;
    fs::create_dir_all(&options.store)?;
    let mut engine = engine::probe().0;
    let mut nodes = (0..options.nodes).map(|node| begin(options, node)).collect::<Result<Vec<Appender>, Failure>>()?;
    for checkpoint in 0..CHECKPOINTS {
        for (node, appender) in nodes.iter_mut().enumerate() {
            let entries = (0..NAMES).map(|number| entry(&options.store, node, checkpoint, number)).collect();
            publish(appender, engine.as_mut(), entries)?;
        }
    }
    let end = |appender: &mut Appender| publish(appender, engine.as_mut(), vec![Entry::watermark(1 << 60, FLAG_ENDED)]);
    nodes.iter_mut().try_for_each(end)
}

/// Each has a file open, and one more.
fn allow_open_files() -> Result<(), Failure> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer.
    checked(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a limit.
    checked(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })
}

fn checked(result: libc::c_int) -> Result<(), Failure> {
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

fn begin(options: &Reserve, node: u64) -> Result<Appender, Failure> {
    let name = format!("node{node}");
    // SAFETY: the name and its length.
    checked(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })?;
    let mut stage = [1; 16];
    stage[..8].copy_from_slice(&node.to_be_bytes());
    let origin = Origin { stage, ..Origin::default() };
    Ok(match options.shared {
        0 => Appender::create(&options.store, origin)?,
        count => Appender::share(&options.store, count, origin, LIMIT)?,
    })
}

fn entry(store: &Path, node: usize, checkpoint: u64, number: u64) -> Entry {
    let path = format!("run/{node}-{checkpoint}-{number}").into_bytes();
    let made = Entry::new(Kind::Symlink, path, Attributes::default(), 1 + checkpoint * NAMES + number);
    Entry { target: store.as_os_str().as_encoded_bytes().to_vec(), ..made }
}

fn publish(appender: &mut Appender, engine: &mut dyn Engine, entries: Vec<Entry>) -> Result<(), Failure> {
    let inputs: Vec<Input<'_>> = entries.iter().map(|_| Input::Nothing).collect();
    let plan = appender.plan(entries).map_err(|error| format!("{error:?}"))?;
    let pace = Pace { throttle: None, written_bytes: &AtomicU64::new(0) };
    let checksums = appender.write(engine, &plan, &inputs, pace).map_err(|error| format!("{error:?}"))?;
    appender.publish(engine, plan, checksums).map_err(|error| format!("{error:?}"))?;
    Ok(())
}
