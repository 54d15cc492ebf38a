//! `sheaf report`: checkpoint files that lie on the parallel file system itself, because they did not pass through
//! Sheaf.
//!
//! It reads names and times there, nothing else, and only for a bounded time.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use indicatif::HumanBytes;
use serde::{Serialize, Serializer};
use sheaf_common::configuration::Layout;
use sheaf_common::pattern;

use super::environment::{Behaviour, Location};
use super::{Failure, offline};
use crate::settings::Settings;

/// How long `sheaf report` looks.
const REPORT_LIMIT: Duration = Duration::from_secs(600);
/// How long the end of a program may be put off by a look.
const RUN_LIMIT: Duration = Duration::from_secs(5);
/// Files that `sheaf run` names; the rest it counts.
const NAMED_MAX: usize = 10;
/// Clocks of nodes and servers may differ by this much: what is this little older than a program counts as its own.
const CLOCK_SKEW: Duration = Duration::from_secs(1);
/// Variables by which launchers number the processes of a job: one of them is enough to look.
const RANKS: [&str; 4] = ["SLURM_PROCID", "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"];

/// List checkpoint files that did not pass through Sheaf
///
/// They match SHEAF_PATHS and lie on the parallel file system as ordinary files. Exit code 1 when there are any.
#[derive(Args, Debug)]
pub struct ReportArgs {
    #[command(flatten)]
    location: Location,
    /// Paths that are left out, as SHEAF_EXCLUDE
    #[arg(long, value_name = "GLOBS")]
    exclude: Option<std::ffi::OsString>,
    /// Only what changed at or after this time, in seconds since 1970; by default since the store was made
    #[arg(long, value_name = "SECONDS")]
    since: Option<u64>,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

/// A file that was written past Sheaf.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Escape {
    #[serde(rename = "path", serialize_with = "as_text")]
    place: PathBuf,
    size_bytes: u64,
    changed_seconds: i64,
}

/// JSON knows no other text than UTF-8.
fn as_text<S: Serializer>(place: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&place.to_string_lossy())
}

/// What a look at the parallel file system has found.
#[derive(Debug, Default)]
struct Found {
    escapes: Vec<Escape>,
    /// Why not everything was looked at.
    problems: Vec<String>,
}

/// Lists them; see [`ReportArgs`].
///
/// # Errors
/// When the settings are refused, or name no patterns.
pub fn run(arguments: &ReportArgs) -> Result<ExitCode, Failure> {
    let behaviour = Behaviour { exclude: arguments.exclude.clone(), ..Behaviour::default() };
    let settings = super::environment::settings(&arguments.location, &behaviour)?;
    if settings.patterns.is_empty() {
        return Err(Failure::new("SHEAF_PATHS is not set: name the checkpoint paths with it or with --paths"));
    }
    if settings.layout == Layout::Files {
        return Err(Failure::new(
            "SHEAF_LAYOUT is `files`: what passes through Sheaf lies on the parallel file system as what does not, and cannot be told",
        ));
    }
    let since = match arguments.since {
        Some(seconds) => UNIX_EPOCH + Duration::from_secs(seconds),
        // A file system that does not know when a directory was made: everything is listed.
        None => fs::metadata(&settings.store).and_then(|store| store.created()).unwrap_or(UNIX_EPOCH),
    };
    let found = look(&settings, since, REPORT_LIMIT);
    found.problems.iter().for_each(|problem| eprintln!("sheaf: {problem}"));
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&found.escapes)?);
    } else {
        for escape in &found.escapes {
            let path = offline::printable(escape.place.as_os_str().as_bytes());
            println!("{}  {}", HumanBytes(escape.size_bytes), String::from_utf8_lossy(&path));
        }
    }
    Ok(offline::exit_code(!found.escapes.is_empty()))
}

/// At the end of a program: says on standard error what it wrote past Sheaf.
pub fn say_escapes(settings: &Settings, started: SystemTime) {
    let is_another_rank = RANKS.iter().any(|name| std::env::var(name).is_ok_and(|rank| rank != "0"));
    // In layout `files` what is published looks just so.
    if is_another_rank || settings.layout == Layout::Files {
        return;
    }
    let found = look(settings, started.checked_sub(CLOCK_SKEW).unwrap_or(UNIX_EPOCH), RUN_LIMIT);
    if found.escapes.is_empty() {
        return;
    }
    let files = match found.escapes.len() {
        1 => "1 checkpoint file was".to_string(),
        count => format!("{count} checkpoint files were"),
    };
    eprintln!("sheaf: {files} written past Sheaf, straight to the parallel file system:");
    for escape in found.escapes.iter().take(NAMED_MAX) {
        eprintln!("sheaf:   {}", escape.place.as_os_str().as_bytes().escape_ascii());
    }
    eprintln!("sheaf: `sheaf report`, with the same SHEAF_PATHS, lists them all");
    eprintln!("sheaf: `sheaf doctor -- PROGRAM` says whether a program can be captured, and how");
}

/// Looks through the directories that can hold checkpoint files.
fn look(settings: &Settings, since: SystemTime, limit: Duration) -> Found {
    let deadline = Instant::now() + limit;
    let mut found = Found::default();
    let mut waiting: Vec<PathBuf> = Vec::new();
    for pattern in &settings.patterns {
        let prefix = PathBuf::from(std::ffi::OsStr::from_bytes(pattern::fixed_prefix(pattern)));
        if !waiting.iter().any(|other| prefix.starts_with(other)) {
            waiting.retain(|other| !other.starts_with(&prefix));
            waiting.push(prefix);
        }
    }
    while let Some(directory) = waiting.pop() {
        if Instant::now() > deadline {
            let seconds = limit.as_secs();
            found.problems.push(format!("stopped after {seconds} s: not all checkpoint directories were looked at"));
            break;
        }
        if let Err(error) = look_into(settings, &directory, since, &mut waiting, &mut found.escapes)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            found.problems.push(format!("{}: {error}", directory.display()));
        }
    }
    found.escapes.sort_by(|one, other| one.place.cmp(&other.place));
    found
}

fn look_into(
    settings: &Settings,
    directory: &Path,
    since: SystemTime,
    waiting: &mut Vec<PathBuf>,
    escapes: &mut Vec<Escape>,
) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        let bytes = path.as_os_str().as_bytes();
        if path == settings.store {
            continue;
        }
        if entry.file_type()?.is_dir() {
            if settings.patterns.iter().any(|text| pattern::may_contain(text, bytes)) {
                waiting.push(path);
            }
            continue;
        }
        let matches = |patterns: &[Vec<u8>]| patterns.iter().any(|text| pattern::matches(text, bytes));
        if !matches(&settings.patterns) || matches(&settings.excludes) {
            continue;
        }
        let Ok(metadata) = entry.metadata() else { continue };
        let changed = UNIX_EPOCH + Duration::from_secs(metadata.ctime().max(0) as u64 + 1);
        if changed > since {
            escapes.push(Escape { place: path, size_bytes: metadata.len(), changed_seconds: metadata.ctime() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    #[test]
    fn only_what_matches_and_is_new_is_found() {
        let scene = tempfile::tempdir().unwrap();
        let root = scene.path().canonicalize().unwrap();
        for directory in ["ckpt/deep", "ckpt/.sheaf", "other"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        for file in ["ckpt/a.dat", "ckpt/deep/b.dat", "ckpt/c.txt", "ckpt/.sheaf/x.dat", "other/d.dat", "ckpt/skip.dat"]
        {
            fs::write(root.join(file), b"12345").unwrap();
        }
        let lookup = |name: &str| match name {
            "SHEAF_PATHS" => Some(OsString::from(root.join("ckpt/**/*.dat"))),
            "SHEAF_EXCLUDE" => Some(OsString::from(root.join("ckpt/skip*"))),
            _ => None,
        };
        let settings = Settings::from_lookup(lookup).unwrap();
        let found = look(&settings, UNIX_EPOCH, REPORT_LIMIT);
        let names: Vec<_> = found.escapes.iter().map(|escape| escape.place.clone()).collect();
        assert_eq!(names, [root.join("ckpt/a.dat"), root.join("ckpt/deep/b.dat")]);
        assert_eq!(found.escapes[0].size_bytes, 5);
        let later = SystemTime::now() + Duration::from_secs(10);
        assert_eq!(look(&settings, later, REPORT_LIMIT).escapes, []);
        assert_eq!(look(&settings, UNIX_EPOCH, Duration::ZERO).problems.len(), 1);
    }
}
