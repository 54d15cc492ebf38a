//! `sheaf merge`: everything in a store as one aggregate, for moving or keeping a checkpoint as a single file.
//!
//! What is written is what the namespace holds now, each file checked as it is read; the result is checked once more
//! before it gets its name. The sources are never changed. An interrupted merge leaves `OUTPUT.part`, and the next one
//! goes on with it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;

use clap::Args;
use indicatif::HumanBytes;

use super::offline::{self, Progress};
use super::{Failure, verify};
use crate::aggregate::{Entry, FLAG_ENDED, Stop, recover};
use crate::daemon::{Appender, Input, Pace, parts};
use crate::engine::{self, Engine, Target, give_name, sync_directory};
use crate::store::{Copied, Store};

/// What a merged aggregate says instead of a node's name: it is no node's own.
const NODE: &str = "merged";
/// End of the name of a result that is not complete.
const PART: &str = ".part";

/// Write everything in a store to one aggregate
///
/// The result is a tar file like every aggregate; a directory that it is put into is a store. What is published in the
/// store when the merge starts is in it. Interrupted, it leaves OUTPUT.part, and the same command goes on from there.
#[derive(Args, Debug)]
pub struct MergeArgs {
    /// The store's directory, or aggregates of it
    #[arg(required = true, value_name = "STORE|AGGREGATE")]
    sources: Vec<PathBuf>,
    /// The file to make; it must not exist, nor lie in the store
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Merges; see [`MergeArgs`].
///
/// # Errors
/// When the store cannot be read whole, something in it is damaged, or the result cannot be written.
pub fn run(arguments: MergeArgs) -> Result<ExitCode, Failure> {
    let output = &arguments.output;
    let directory = directory_of(output)?;
    refuse_output(output, &directory, &arguments.sources)?;
    let store = offline::open(&arguments.sources)?;
    if store.notes().iter().any(|note| !note.foreign) {
        let advice = "`sheaf verify` says more, and `sheaf extract --salvage` gets what is left";
        return Err(Failure::new(format_args!("a store that cannot be read whole is not merged; {advice}")));
    }
    let wanted = store.content();
    let part = with_suffix(output, PART);
    let (appender, missing) = begin(&part, &wanted)?;
    if let Some(appender) = appender {
        let mut merging = Merging { store: &store, appender, engine: engine::probe().0 };
        merging.copy(&missing)?;
        merging.finish(&part)?;
    }
    check(&part, &wanted)?;
    give_name(&part, output).map_err(|error| told("name", output, &error))?;
    sync_directory(&directory)?;
    let bytes: u64 = wanted.iter().map(|copy| copy.entry.size).sum();
    let (names, sources) = (wanted.len(), store.aggregates().count());
    println!("{}: {names} names, {}, from {sources} aggregates", output.display(), HumanBytes(bytes));
    Ok(ExitCode::SUCCESS)
}

fn told(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(format_args!("cannot {what} {}: {error}", path.display()))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

fn directory_of(output: &Path) -> Result<PathBuf, Failure> {
    let directory = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    directory.canonicalize().map_err(|error| told("use", directory, &error))
}

fn refuse_output(output: &Path, directory: &Path, sources: &[PathBuf]) -> Result<(), Failure> {
    if output.symlink_metadata().is_ok() {
        return Err(Failure::new(format_args!("{} exists, and stays as it is", output.display())));
    }
    let holds_output = |source: &PathBuf| source.canonicalize().is_ok_and(|source| source == directory);
    if sources.iter().any(holds_output) {
        let why = "there it would be read as one of the store's own";
        return Err(Failure::new(format_args!(
            "{} is in the store: {why}; choose another directory",
            output.display()
        )));
    }
    Ok(())
}

/// The aggregate to write to, unless it is complete, and what is not in it yet. What an earlier merge has left is kept
/// if all of it is still wanted.
fn begin<'a>(part: &Path, wanted: &'a [Copied]) -> Result<(Option<Appender>, Vec<&'a Copied>), Failure> {
    match Target::reopen(part) {
        Ok(target) => {
            if let Some(begun) = go_on(target, part, wanted)? {
                return Ok(begun);
            }
            // It is of no use: the store has changed since, or it is none of ours.
            std::fs::remove_file(part).map_err(|error| told("remove", part, &error))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(Failure::new(format_args!("another merge writes {}", part.display())));
        }
        Err(error) => return Err(told("open", part, &error)),
    }
    let appender = Appender::create_apart(part, NODE).map_err(|error| told("create", part, &error))?;
    Ok((Some(appender), wanted.iter().collect()))
}

type Begun<'a> = (Option<Appender>, Vec<&'a Copied>);

fn go_on<'a>(target: Target, part: &Path, wanted: &'a [Copied]) -> Result<Option<Begun<'a>>, Failure> {
    let recovered = match recover(target.file()) {
        Ok(recovered) if recovered.identity.node == NODE && !matches!(recovered.stop, Stop::Damaged(_)) => recovered,
        _ => return Ok(None),
    };
    let written = Store::open_all(&[part.to_owned()])?.content();
    let written: HashMap<&[u8], &Copied> = written.iter().map(|copy| (&copy.entry.path[..], copy)).collect();
    let is_written = |copy: &&Copied| written.get(&copy.entry.path[..]).is_some_and(|there| there.is_same(copy));
    let missing: Vec<&Copied> = wanted.iter().filter(|copy| !is_written(copy)).collect();
    if missing.len() + written.len() != wanted.len() {
        return Ok(None);
    }
    if recovered.is_sealed() {
        return Ok(missing.is_empty().then_some((None, missing)));
    }
    eprintln!("sheaf: going on with {}: {} of {} names are there", part.display(), written.len(), wanted.len());
    Ok(Some((Some(Appender::go_on(target, &recovered)?), missing)))
}

struct Merging<'a> {
    store: &'a Store,
    appender: Appender,
    engine: Box<dyn Engine>,
}

impl Merging<'_> {
    fn copy(&mut self, missing: &[&Copied]) -> Result<(), Failure> {
        let progress = Progress::new(missing.iter().map(|copy| copy.entry.size).sum());
        let copies: Vec<Copied> = missing.iter().map(|copy| (*copy).clone()).collect();
        for part in parts(&copies) {
            self.copy_part(part)?;
            progress.add(part.iter().map(|copy| copy.entry.size).sum());
        }
        progress.finish();
        Ok(())
    }

    fn copy_part(&mut self, copies: &[Copied]) -> Result<(), Failure> {
        let open = |copy: &Copied| match &copy.version {
            Some(version) => self.store.copier(version).map(Input::Stored),
            None => Ok(Input::Nothing),
        };
        let inputs = copies.iter().map(open).collect::<io::Result<Vec<Input<'_>>>>()?;
        let entries: Vec<_> = copies.iter().map(|copy| copy.entry.clone()).collect();
        let plan = self.appender.plan(entries)?;
        let pace = Pace { throttle: None, written_bytes: &AtomicU64::new(0) };
        let checksums = self.appender.write(self.engine.as_mut(), &plan, &inputs, pace)?;
        self.appender.publish(self.engine.as_mut(), plan, checksums)?;
        Ok(())
    }

    /// Seals what was written.
    fn finish(mut self, part: &Path) -> Result<(), Failure> {
        let written = Store::open_all(&[part.to_owned()])?;
        let (id, _) = written.aggregates().next().ok_or_else(|| Failure::new("the result cannot be read back"))?;
        let identity = self.appender.identity().clone();
        let make = |place| written.seal_segment(id, &identity, place, Entry::watermark(0, FLAG_ENDED));
        self.appender.seal(self.engine.as_mut(), make)?;
        Ok(())
    }
}

/// Reads the result back: every byte, and that it holds what the sources hold.
fn check(part: &Path, wanted: &[Copied]) -> Result<(), Failure> {
    let is_whole = verify::is_clean(part)?;
    let written = Store::open_all(&[part.to_owned()])?.content();
    let by_path = |copies: &[Copied]| -> HashMap<Vec<u8>, Copied> {
        copies.iter().map(|copy| (copy.entry.path.clone(), copy.clone())).collect()
    };
    let (written, wanted) = (by_path(&written), by_path(wanted));
    let is_there = |(path, copy): (&Vec<u8>, &Copied)| written.get(path).is_some_and(|there| there.is_same(copy));
    if is_whole && written.len() == wanted.len() && wanted.iter().all(is_there) {
        return Ok(());
    }
    let advice = "it was not given its name; `sheaf verify` says more. Remove it and try again";
    Err(Failure::new(format_args!("{} is not what was to be written: {advice}", part.display())))
}
