//! `scripts/bench.sh`: Sheaf beside what its users would pick instead, all in one run, in interleaved rounds.
//!
//! Figures are for people. It must never decide whether a change is good: machines are shared and noisy, so what it
//! says are medians with quartiles, and ratios within one run.

mod measures;
mod page;
mod readme;
mod reserve;
mod result;
mod scale;
mod site;
mod target;
mod work;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use result::Report;
use site::Site;
use target::{HugePages, Target, TargetKind};

/// Measures Sheaf beside writing to the target, to the stage, and fio, cp, tar and rsync.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Measure, and write results.json and index.html.
    Run(Options),
    /// Put the figures of a results.json into a README, between its marks.
    Readme {
        /// What `run` wrote.
        results: PathBuf,
        /// The page to change.
        readme: PathBuf,
    },
    /// Make stores of many simulated nodes, and print what reading them takes.
    Scale(scale::Scale),
    /// Have many simulated nodes write to a store; started by `scale`.
    #[command(hide = true)]
    Reserve(reserve::Reserve),
    /// One of the measured programs; started by `run`.
    #[command(subcommand, hide = true)]
    Work(work::Work),
}

#[derive(Debug, clap::Args)]
struct Options {
    /// Smaller data and fewer rounds: at most five minutes.
    #[arg(long)]
    quick: bool,
    /// Rounds of each comparison. [default: 5, or 3 with --quick]
    #[arg(long)]
    rounds: Option<usize>,
    /// Targets to measure. [default: all that this machine and user can make]
    #[arg(long, value_delimiter = ',')]
    targets: Vec<TargetKind>,
    /// An empty directory on the file system that the target `local` stands for.
    #[arg(long)]
    directory: PathBuf,
    /// Where results.json and index.html go.
    #[arg(long)]
    output: PathBuf,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Action::Run(options) => run(&options),
        Action::Readme { results, readme } => readme::update(&results, &readme),
        Action::Scale(options) => scale::run(&options),
        Action::Reserve(options) => reserve::run(&options),
        Action::Work(work) => return work::main(work),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sheaf-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What went wrong, as a sentence.
type Failure = Box<dyn std::error::Error>;

fn run(options: &Options) -> Result<(), Failure> {
    fs::create_dir_all(&options.directory)?;
    fs::create_dir_all(&options.output)?;
    let rounds = options.rounds.unwrap_or(if options.quick { 3 } else { 5 });
    let mut report = Report::new(options.quick, rounds);
    let all = options.targets.is_empty();
    let kinds = if all { TargetKind::ALL.to_vec() } else { options.targets.clone() };
    for kind in kinds {
        match Target::make(kind, &options.directory) {
            Ok(target) => measure_target(&mut report, target, options.quick, rounds)?,
            // A target that was asked for by name must be there.
            Err(error) if all => report.left_out.push(format!("{}: {error}", kind.name())),
            Err(error) => return Err(format!("target {}: {error}", kind.name()).into()),
        }
    }
    let json = serde_json::to_vec_pretty(&report)?;
    fs::write(options.output.join("results.json"), json)?;
    fs::write(options.output.join("index.html"), page::render(&report)?)?;
    print!("{}", report.to_text());
    println!("written: {0}/results.json and {0}/index.html", options.output.display());
    Ok(())
}

fn measure_target(report: &mut Report, target: Target, quick: bool, rounds: usize) -> Result<(), Failure> {
    let size = measures::Size::of(target.kind, quick);
    let mut site = Site::new(target)?;
    // What one measure writes, and something for what holds it.
    let touched_bytes = size.bytes() + size.bytes() / 4;
    site.set_touched_bytes(touched_bytes);
    eprintln!("{}: large files", site.target.describe());
    report.groups.push(measures::large::measure(&site, &size, rounds)?);
    eprintln!("{}: many small files", site.target.describe());
    site.set_touched_bytes(0);
    report.groups.push(measures::small::measure(&site, &size, rounds)?);
    if site.target.kind == TargetKind::Local {
        eprintln!("{}: programs that compute", site.target.describe());
        site.set_touched_bytes(touched_bytes);
        report.groups.push(measures::compute::measure(&site, &size, rounds)?);
        report.groups.push(measures::compute::measure_beside(&site, &size, rounds)?);
        eprintln!("{}: growth", site.target.describe());
        site.set_touched_bytes(0);
        report.groups.push(measures::growth::measure(&site, quick, rounds)?);
        report.groups.push(measures::growth::measure_sizes(&site, quick, rounds)?);
        measure_huge_pages(report, &mut site, &size, rounds)?;
    }
    Ok(())
}

/// A large checkpoint once more, in a stage on huge pages, where this user can mount one.
fn measure_huge_pages(
    report: &mut Report,
    site: &mut Site,
    size: &measures::Size,
    rounds: usize,
) -> Result<(), Failure> {
    let huge = match HugePages::mount() {
        Ok(huge) => huge,
        Err(error) => {
            report.left_out.push(format!("a stage with huge pages: {error}"));
            return Ok(());
        }
    };
    eprintln!("{}: huge pages", site.target.describe());
    site.move_stage(huge.place())?;
    report.groups.push(measures::large::measure_huge(site, size, rounds)?);
    site.move_stage(Path::new(site::MEMORY))
}
