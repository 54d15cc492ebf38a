//! `sheaf cuts`: at which times a store is consistent over all nodes, and what is complete then.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;

use super::{Failure, environment, ls, offline};
use crate::settings::skew_from_environment;
use crate::store::{Cut, cuts};

/// Older cuts of a job are not listed.
const CUTS_MAX: usize = 20;

/// List the times at which a store is consistent over all nodes of a job, with what is complete then, the newest first
///
/// The first one of each job is what a new job sees if all nodes that have not ended are lost: `hidden` files of what
/// was published are not in it. SHEAF_CUT=complete shows a job everything, `sheaf ls --cut complete` lists it.
#[derive(Args, Debug)]
pub struct CutsArgs {
    /// Print one JSON array, with the names of the files
    #[arg(long)]
    json: bool,
    /// The store's directory, or aggregates of it
    #[arg(required = true, value_name = "STORE|AGGREGATE")]
    sources: Vec<PathBuf>,
}

#[derive(Serialize)]
struct JsonCut {
    job: String,
    time: String,
    time_ns: u64,
    nodes: usize,
    unended_nodes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden_files: Option<usize>,
    files: Vec<JsonFile>,
}

#[derive(Serialize)]
struct JsonFile {
    path: String,
    size_bytes: u64,
}

/// Lists; see [`CutsArgs`].
///
/// # Errors
/// When the store cannot be read.
pub fn run(arguments: &CutsArgs) -> Result<ExitCode, Failure> {
    offline::require(&arguments.sources)?;
    let cuts = cuts(&arguments.sources, skew_from_environment()?, CUTS_MAX)?;
    let mut out = io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &cuts.into_iter().map(JsonCut::from).collect::<Vec<_>>())?;
        out.write_all(b"\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = environment::table(&["cut", "UTC", "job", "nodes", "not ended", "files", "size", "hidden"]);
    for cut in &cuts {
        let bytes: u64 = cut.files.iter().map(|(_, size)| size).sum();
        table.add_row([
            seconds(cut.time_ns),
            ls::utc((cut.time_ns / 1_000_000_000) as i64),
            cut.job.clone(),
            cut.nodes.to_string(),
            cut.unended.to_string(),
            cut.files.len().to_string(),
            HumanBytes(bytes).to_string(),
            cut.hidden.map_or_else(String::new, |hidden| hidden.to_string()),
        ]);
    }
    writeln!(out, "{table}")?;
    Ok(ExitCode::SUCCESS)
}

/// As `--cut` and SHEAF_CUT take it.
fn seconds(time_ns: u64) -> String {
    format!("{}.{:09}", time_ns / 1_000_000_000, time_ns % 1_000_000_000)
}

impl From<Cut> for JsonCut {
    fn from(cut: Cut) -> JsonCut {
        let file = |(path, size_bytes): (Vec<u8>, u64)| JsonFile {
            path: format!("/{}", String::from_utf8_lossy(&path)),
            size_bytes,
        };
        JsonCut {
            job: cut.job,
            time: seconds(cut.time_ns),
            time_ns: cut.time_ns,
            nodes: cut.nodes,
            unended_nodes: cut.unended,
            hidden_files: cut.hidden,
            files: cut.files.into_iter().map(file).collect(),
        }
    }
}
