//! `sheaf prune`: reclaims by hand what no flusher does any more: of nodes that do not come back, or of jobs that have
//! ended.
//!
//! By the flusher's own rules: an aggregate goes only when a replay of all records shows that no name changes by it,
//! and after what is alive in it has been copied. It never touches what somebody writes to.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;

use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;

use super::{Failure, environment, offline};
use crate::aggregate::{BLOCK, Entry, FLAG_ENDED};
use crate::client::Client;
use crate::daemon::{Appender, Input, Origin, Pace, node_name, parts};
use crate::engine::{self, Engine};
use crate::settings::{Settings, skew_from_environment};
use crate::store::{Candidate, Copied, Lock, Plan, Planner, lock_store};

/// Remove dead aggregates of a store that no flusher serves, after copying what is alive in them
///
/// Exit code 0: done, or nothing to do. 1: something that takes room in vain had to stay; the table says why. 2: a
/// flusher serves the store on this node, or it could not be done.
#[derive(Args, Debug)]
pub struct PruneArgs {
    /// Only say what would be freed
    #[arg(long)]
    dry_run: bool,
    /// Also aggregates of other nodes: nothing may be running on them that captures into this store
    #[arg(long)]
    all_nodes: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// The store's directory
    store: PathBuf,
}

/// Why an aggregate stays that would free less than it costs.
const MOSTLY_ALIVE: &str = "more than half of it is alive";

/// What becomes of one aggregate.
#[derive(Debug, Serialize)]
struct Row {
    aggregate: String,
    node: String,
    bytes: u64,
    live_bytes: u64,
    freed_bytes: u64,
    copied_records: usize,
    removed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stays: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    dry_run: bool,
    freed_bytes: u64,
    aggregates: Vec<Row>,
}

/// Prunes; see [`PruneArgs`].
///
/// # Errors
/// When a flusher serves the store, or it cannot be read or written.
pub fn run(arguments: PruneArgs) -> Result<ExitCode, Failure> {
    offline::require(std::slice::from_ref(&arguments.store))?;
    let store = arguments.store.canonicalize()?;
    refuse_served(&store)?;
    let _lock = match lock_store(&store)? {
        Lock::Busy => return Err(Failure::new("somebody else reclaims in this store at the moment; try again later")),
        lock => lock,
    };
    let mut planner = Planner::read(&store, skew_from_environment()?)?;
    if arguments.all_nodes {
        planner.nobody_else_writes();
    }
    let node = node_name();
    let candidates = planner.candidates(Some(&node).filter(|_| !arguments.all_nodes).map(String::as_str));
    let mut pruning = Pruning { store: &store, planner, output: None, dry_run: arguments.dry_run };
    let rows = candidates.iter().map(|candidate| pruning.prune(candidate)).collect::<Result<Vec<_>, _>>()?;
    pruning.finish()?;
    let freed_bytes = rows.iter().map(|row| row.freed_bytes).sum();
    let report = Report { dry_run: arguments.dry_run, freed_bytes, aggregates: rows };
    show(&report, arguments.json)?;
    let in_vain = |row: &Row| row.stays.is_some() && row.bytes > 2 * (row.live_bytes + 4 * BLOCK);
    Ok(offline::exit_code(!arguments.dry_run && report.aggregates.iter().any(in_vain)))
}

/// A flusher reclaims by itself, and keeps in mind where everything is.
fn refuse_served(store: &Path) -> Result<(), Failure> {
    let own = |name: &str| if name == "SHEAF_STORE" { Some(OsString::from(store)) } else { std::env::var_os(name) };
    let settings = Settings::from_lookup(own)?;
    let served = settings.existing_stage().is_some_and(|stage| Client::connect(&stage).is_ok());
    let message = "a flusher serves this store, and reclaims by itself; `sheaf drain` ends it";
    if served { Err(Failure::new(message)) } else { Ok(()) }
}

struct Pruning<'a> {
    store: &'a Path,
    planner: Planner,
    /// The aggregate that takes the copies, once there are any.
    output: Option<(Appender, Box<dyn Engine>)>,
    dry_run: bool,
}

impl Pruning<'_> {
    fn prune(&mut self, candidate: &Candidate) -> Result<Row, Failure> {
        let mut row = Row {
            aggregate: candidate.path.display().to_string(),
            node: candidate.node.clone(),
            bytes: candidate.written_bytes,
            live_bytes: candidate.live.bytes,
            freed_bytes: 0,
            copied_records: 0,
            removed: false,
            stays: None,
        };
        let _lock = match candidate.lock() {
            Lock::Busy => return Ok(Row { stays: Some("somebody writes to it".to_owned()), ..row }),
            Lock::Unknown if !candidate.sealed => {
                return Ok(Row {
                    stays: Some("it was not closed, and this file system has no locks".to_owned()),
                    ..row
                });
            }
            lock => lock,
        };
        // A plan replays the whole store, and this one would copy all that is alive.
        if candidate.live.bytes > candidate.written_bytes / 2 {
            return Ok(Row { stays: Some(MOSTLY_ALIVE.to_owned()), ..row });
        }
        let own = self.output.as_ref().map(|(appender, _)| appender.identity().uuid);
        let plan = match self.planner.plan(candidate.uuid, &HashSet::new(), own) {
            Ok(plan) => plan,
            Err(refusal) => return Ok(Row { stays: Some(refusal.to_string()), ..row }),
        };
        row.copied_records = plan.copies.len();
        if !plan.frees_half_of(candidate.written_bytes) {
            return Ok(Row { stays: Some(MOSTLY_ALIVE.to_owned()), ..row });
        }
        if !self.dry_run {
            if let Err(error) = self.copy(&plan) {
                return Ok(Row { stays: Some(error.to_string()), ..row });
            }
            self.remove(candidate, &plan)?;
            row.removed = true;
        }
        Ok(Row { freed_bytes: candidate.written_bytes - plan.copied_bytes, ..row })
    }

    fn copy(&mut self, plan: &Plan) -> Result<(), Failure> {
        for part in parts(&plan.copies) {
            if let Err(failure) = self.copy_part(part) {
                // Nothing is known of what was written last.
                if let Some((appender, _)) = self.output.take() {
                    appender.abandon();
                }
                return Err(failure);
            }
        }
        Ok(())
    }

    fn copy_part(&mut self, copies: &[Copied]) -> Result<(), Failure> {
        let open = |copy: &Copied| match &copy.version {
            Some(version) => self.planner.reader(version).map(Input::Stored),
            None => Ok(Input::Nothing),
        };
        let inputs = copies.iter().map(open).collect::<io::Result<Vec<Input<'_>>>>()?;
        let entries: Vec<_> = copies.iter().map(|copy| copy.entry.clone()).collect();
        if self.output.is_none() {
            self.output = Some((Appender::create(self.store, Origin::default())?, engine::probe().0));
        }
        let (appender, engine) = self.output.as_mut().expect("made above");
        let plan = appender.plan(entries)?;
        let pace = Pace { throttle: None, written_bytes: &AtomicU64::new(0) };
        let checksums = appender.write(engine.as_mut(), &plan, &inputs, pace)?;
        let segment = appender.publish(engine.as_mut(), plan, checksums)?;
        Ok(self.planner.copied(appender.place(), appender.identity(), &segment)?)
    }

    fn remove(&mut self, candidate: &Candidate, plan: &Plan) -> Result<(), Failure> {
        let path = candidate.path.display();
        candidate.remove().map_err(|error| Failure::new(format_args!("cannot remove {path}: {error}")))?;
        self.planner.removed(plan);
        Ok(())
    }

    /// Seals what was written.
    fn finish(&mut self) -> Result<(), Failure> {
        let Some((appender, mut engine)) = self.output.take() else { return Ok(()) };
        let identity = appender.identity().clone();
        let make = |place| self.planner.seal_segment(&identity, place, Entry::watermark(0, FLAG_ENDED));
        appender.seal(engine.as_mut(), make)?;
        Ok(())
    }
}

fn show(report: &Report, json: bool) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, report)?;
        return Ok(out.write_all(b"\n")?);
    }
    let mut table = environment::table(&["aggregate", "node", "size", "alive", "freed", "what"]);
    for row in &report.aggregates {
        let what = match &row.stays {
            Some(reason) => format!("stays: {reason}"),
            None if row.copied_records == 0 => "removed".to_owned(),
            None => format!("removed, {} records copied", row.copied_records),
        };
        let sizes = [row.bytes, row.live_bytes, row.freed_bytes].map(|bytes| HumanBytes(bytes).to_string());
        let [size, alive, freed] = sizes;
        table.add_row([row.aggregate.clone(), row.node.clone(), size, alive, freed, what]);
    }
    writeln!(out, "{table}")?;
    let verb = if report.dry_run { "would be freed" } else { "freed" };
    writeln!(out, "{} {verb}", HumanBytes(report.freed_bytes))?;
    Ok(())
}
