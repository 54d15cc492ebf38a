//! `sheaf doctor`: tries here, on this node, everything that Sheaf relies on, and says what to do about what fails.
//!
//! Leaves nothing behind: every file it makes is removed again.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use indicatif::HumanBytes;
use sheaf_common::layout;

use super::environment::{Location, table};
use super::{FOUND_A_PROBLEM, Failure, imports, program_file, run};
use crate::engine::{self, ALIGNMENT, Data, Target};
use crate::settings::{Settings, SettingsError};
use crate::stage::transient::is_transient;
use crate::stage::{lease, spool};

/// File systems by their statfs(2) magic; those that carry a stage well come first.
const FILE_SYSTEMS: [(u64, &str); 11] = [
    (0x0102_1994, "tmpfs"),
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x794c_7630, "overlayfs"),
    (0x6969, "NFS"),
    (0x0bd0_0bd0, "Lustre"),
    (0x00c3_6400, "CephFS"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
    (0x6573_5546, "FUSE"),
];
/// How many of [`FILE_SYSTEMS`] are known to carry a stage.
const STAGE_FILE_SYSTEMS: usize = 3;
/// Stages with less room than this are worth a warning.
const SMALL_STAGE: u64 = 1 << 30;
/// inotify limits below these are worth a warning: one watch is needed for each checkpoint directory.
const INOTIFY_LIMITS: [(&str, u64); 3] =
    [("max_user_watches", 8192), ("max_user_instances", 16), ("max_queued_events", 16_384)];
/// Linux from this version on has all that Sheaf uses.
const KERNEL: (u32, u32) = (5, 6);

/// Check whether Sheaf can work on this node, and with this program
#[derive(Args, Debug)]
pub struct DoctorArgs {
    #[command(flatten)]
    location: Location,
    /// A program to look at: can its files be captured?
    #[arg(last = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Warning,
    Bad,
}

/// One row of the report.
#[derive(Debug)]
struct Finding {
    subject: String,
    verdict: Verdict,
    /// What was found, and what to do about it.
    text: String,
}

fn good(subject: impl Into<String>, text: impl Into<String>) -> Finding {
    Finding { subject: subject.into(), verdict: Verdict::Good, text: text.into() }
}

fn warning(subject: impl Into<String>, text: impl Into<String>) -> Finding {
    Finding { subject: subject.into(), verdict: Verdict::Warning, text: text.into() }
}

fn bad(subject: impl Into<String>, text: impl Into<String>) -> Finding {
    Finding { subject: subject.into(), verdict: Verdict::Bad, text: text.into() }
}

/// Checks everything; see [`DoctorArgs`].
///
/// # Errors
/// When the report cannot be made at all.
pub fn run(arguments: &DoctorArgs) -> Result<ExitCode, Failure> {
    let mut findings = vec![kernel(), library(), io_uring()];
    findings.extend(INOTIFY_LIMITS.map(|(name, least)| inotify_limit(name, least)));
    let (settings, remark) = settings(&arguments.location);
    findings.extend(remark);
    match settings {
        Ok(settings) => {
            findings.extend(stage(&settings));
            findings.push(store(&settings));
        }
        Err(error) => findings.push(bad("settings", error.to_string())),
    }
    findings.extend(arguments.program.first().map(program).unwrap_or_default());
    let mut rows = table(&["what", "", "found"]);
    for finding in &findings {
        let mark = match finding.verdict {
            Verdict::Good => "ok",
            Verdict::Warning => "warn",
            Verdict::Bad => "fail",
        };
        rows.add_row([finding.subject.as_str(), mark, finding.text.as_str()]);
    }
    println!("{rows}");
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Bad);
    Ok(if failed { ExitCode::from(FOUND_A_PROBLEM) } else { ExitCode::SUCCESS })
}

/// The settings, or those of a store in the current directory when nothing says where checkpoints are.
fn settings(location: &Location) -> (Result<Settings, SettingsError>, Option<Finding>) {
    let mut location = location.clone();
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let known = location.paths.is_some() || location.store.is_some() || is_set("SHEAF_PATHS") || is_set("SHEAF_STORE");
    let remark = (!known).then(|| {
        location.store = std::env::current_dir().ok().map(|directory| directory.join(layout::STORE).into());
        warning(
            "settings",
            "SHEAF_PATHS is not set: nothing would be captured; the current directory is checked instead",
        )
    });
    (location.settings(), remark)
}

fn kernel() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|character: char| !character.is_ascii_digit()).map_while(|part| part.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < KERNEL => {
            let (major, minor) = KERNEL;
            warning(
                "kernel",
                format!("{release}: before {major}.{minor} it has no io_uring that serves; pwrite is used"),
            )
        }
        _ => good("kernel", release),
    }
}

fn library() -> Finding {
    match run::library() {
        Ok(path) => good("library", path.display().to_string()),
        Err(failure) => bad("library", failure.to_string()),
    }
}

fn io_uring() -> Finding {
    match engine::probe() {
        (engine, None) => good("writing", engine.name()),
        (engine, Some(reason)) => warning("writing", format!("{}, which costs more CPU: {reason}", engine.name())),
    }
}

fn inotify_limit(name: &str, least: u64) -> Finding {
    let subject = format!("inotify {name}");
    let path = format!("/proc/sys/fs/inotify/{name}");
    match fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok()) {
        None => warning(subject, format!("{path} cannot be read")),
        Some(value) if value < least => warning(
            subject,
            format!("{value} is low; the administrator can raise it: sysctl fs.inotify.{name}={least}"),
        ),
        Some(value) => good(subject, value.to_string()),
    }
}

fn stage(settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    for tier in &settings.stage_tiers {
        let subject = format!("stage {}", tier.display());
        match settings.refuse_tier(tier) {
            Some(problem) => findings.push(warning(subject, problem)),
            None => findings.push(tier_finding(subject, tier)),
        }
    }
    match settings.find_stage() {
        Ok(stage) => {
            findings.push(stage_finding(&stage));
            findings.extend(further_tiers(settings, &stage));
        }
        Err(error) => findings.push(bad("stage", error.to_string())),
    }
    findings
}

fn stage_finding(stage: &Path) -> Finding {
    let state = if stage.exists() { "exists" } else { "will be made by the first capture" };
    good("stage", format!("{} {state}", stage.display()))
}

/// The tiers that take what the store is too slow for, with what waits there.
fn further_tiers(settings: &Settings, stage: &Path) -> Vec<Finding> {
    let finding = |tier: &PathBuf| {
        let subject = format!("further tier {}", tier.display());
        match spool::segment_files(&settings.spool_directory(tier)) {
            Err(error) => bad(subject, error.to_string()),
            Ok(files) if files.is_empty() => good(subject, "takes what the store is too slow for"),
            Ok(files) => good(subject, format!("{} segments wait there for the store", files.len())),
        }
    };
    settings.further_tiers(stage).iter().map(finding).collect()
}

/// A tier that can serve: its file system, its room, and whether it tells when a file is complete.
fn tier_finding(subject: String, tier: &Path) -> Finding {
    let (name, tested) = file_system(tier);
    let free = rustix::fs::statvfs(tier).map_or(0, |status| status.f_bavail.saturating_mul(status.f_frsize));
    let text = format!("{name}, {} free", HumanBytes(free));
    match leases_work(tier) {
        Err(error) => bad(subject, format!("{text}; cannot be tried: {error}")),
        Ok(false) => {
            bad(subject, format!("{text}; it does not say when a file is complete (leases); name another tier"))
        }
        Ok(true) if !tested => warning(subject, format!("{text}; Sheaf is not tested on it as a stage")),
        Ok(true) if is_transient(tier) => {
            warning(subject, format!("{text}; only this job sees it: what is not published when the job ends is lost"))
        }
        Ok(true) if free < SMALL_STAGE => warning(subject, format!("{text}: little room for checkpoints")),
        Ok(true) => good(subject, text),
    }
}

/// The name of the file system under a path, and whether it is known to carry a stage.
fn file_system(path: &Path) -> (String, bool) {
    let magic = rustix::fs::statfs(path).map_or(0, |status| status.f_type as u64);
    match FILE_SYSTEMS.iter().position(|(known, _)| *known == magic) {
        Some(index) => (FILE_SYSTEMS[index].1.to_string(), index < STAGE_FILE_SYSTEMS),
        None => (format!("file system {magic:#x}"), false),
    }
}

/// A file that is removed again.
struct Trial(PathBuf);

impl Trial {
    /// Processes of several nodes have the same numbers.
    fn new(directory: &Path) -> io::Result<Trial> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        Ok(Trial(directory.join(format!(".sheaf-doctor-{:016x}", u64::from_ne_bytes(random)))))
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // It is not there when it could not be made.
        let _ = fs::remove_file(&self.0);
    }
}

/// Whether a lease is refused while a writer is there, and granted when it is gone.
fn leases_work(tier: &Path) -> io::Result<bool> {
    let trial = Trial::new(tier)?;
    let writer = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&trial.0)?;
    let reader = File::open(&trial.0)?;
    let while_written = lease::take_read(reader.as_fd());
    drop(writer);
    let afterwards = lease::take_read(reader.as_fd());
    Ok(matches!((while_written, afterwards), (Ok(lease::Lease::StillWritten), Ok(lease::Lease::Granted))))
}

/// Writes a block where the aggregates will lie.
fn store(settings: &Settings) -> Finding {
    let subject = format!("store {}", settings.store.display());
    let Some(directory) = settings.store.ancestors().find(|ancestor| ancestor.is_dir()) else {
        return bad(subject, "no directory above it exists");
    };
    let name = file_system(directory).0;
    let written = Trial::new(directory).and_then(|trial| {
        let target = Arc::new(Target::create(&trial.0)?);
        write_block(&target)?;
        Ok(target.is_direct())
    });
    match written {
        Ok(true) => good(subject, format!("{name}, written past the page cache (O_DIRECT)")),
        Ok(false) => warning(subject, format!("{name}, takes no O_DIRECT: writing costs more CPU and page cache")),
        Err(error) => bad(subject, format!("{name}; cannot write in {}: {error}", directory.display())),
    }
}

fn write_block(target: &Arc<Target>) -> io::Result<()> {
    let (mut engine, _) = engine::probe();
    let mut block = engine.block().map_err(io::Error::other)?;
    block.append(&[0; ALIGNMENT]);
    engine.write(target, 0, Data::Block(block)).and_then(|()| engine.finish()).map_err(io::Error::other)?;
    target.sync_data()
}

/// Whether a program can be captured, and what it imports that matters.
fn program(name: &OsString) -> Vec<Finding> {
    let subject = format!("program {}", name.to_string_lossy());
    let Some(path) = program_file::find(name) else { return vec![bad(subject, "not found")] };
    let found = match program_file::inspect(&path) {
        Ok(found) => found,
        Err(error) => return vec![bad(subject, format!("{}: {error}", path.display()))],
    };
    let shown = found.path.display();
    if let Some(obstacle) = found.obstacle {
        let remedy = if obstacle.can_be_trapped { "; `sheaf run --trap` captures them" } else { "" };
        return vec![bad(subject, format!("{shown} {obstacle}: its files are not captured{remedy}"))];
    }
    match imports::of(&found.path) {
        Err(error) => vec![bad(subject, format!("{shown}: {error}"))],
        Ok(imports) => {
            let openers = match &imports.openers[..] {
                [] => "its libraries open its files".to_string(),
                names => format!("it opens files by {}", names.join(", ")),
            };
            let first = good(subject.clone(), format!("{shown} is dynamically linked; {openers}"));
            let remarks = imports.remarks.into_iter().map(|remark| warning(subject.clone(), remark));
            std::iter::once(first).chain(remarks).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_tier_is_recognised_and_left_clean() {
        let tier = tempfile::tempdir_in("/dev/shm").unwrap();
        assert!(leases_work(tier.path()).unwrap());
        assert_eq!(file_system(tier.path()), ("tmpfs".to_string(), true));
        assert_eq!(fs::read_dir(tier.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_store_that_does_not_exist_yet_is_tried_above_and_left_clean() {
        let scene = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let place = OsString::from(scene.path().join("new/.sheaf"));
        let settings = Settings::from_lookup(|name| (name == "SHEAF_STORE").then(|| place.clone())).unwrap();
        assert_ne!(store(&settings).verdict, Verdict::Bad);
        assert_eq!(fs::read_dir(scene.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_must_be_mended_is_bad() {
        assert_eq!(program(&OsString::from("no-such-program-of-sheaf"))[0].verdict, Verdict::Bad);
        let settings = |name: &str| {
            let (stage, store) = (OsString::from("/nowhere-sheaf"), OsString::from("/nowhere-sheaf/.sheaf"));
            match name {
                "SHEAF_STAGE" => Some(stage),
                "SHEAF_STORE" => Some(store),
                _ => None,
            }
        };
        let settings = Settings::from_lookup(settings).unwrap();
        assert!(stage(&settings).iter().any(|finding| finding.verdict == Verdict::Bad));
    }
}
