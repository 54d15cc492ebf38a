//! What the tools share that read a store without a flusher: opening it, saying what is wrong with it, and a bar.
//!
//! None of them changes an aggregate.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;

use super::{FOUND_A_PROBLEM, Failure};
use crate::settings::skew_from_environment;
use crate::store::{Choice, Store};

/// Work that takes longer than this shows a bar.
const BAR_AFTER: Duration = Duration::from_secs(1);

/// Refuses sources that are not there: a missing store is no empty one to somebody who names it.
pub(super) fn require(sources: &[PathBuf]) -> Result<(), Failure> {
    for source in sources {
        fs::metadata(source).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => "; checkpoints of SHEAF_LAYOUT=files are ordinary files, and need no store",
                _ => "",
            };
            Failure::new(format_args!("{}: {error}{hint}", source.display()))
        })?;
    }
    Ok(())
}

/// Opens a store, or single aggregates, and says on standard error what cannot be shown of it.
pub(super) fn open(sources: &[PathBuf]) -> Result<Store, Failure> {
    open_by(Store::open_all, sources)
}

/// As [`open`], as of a cut if one is named.
pub(super) fn open_cut(sources: &[PathBuf], cut: Option<Choice>) -> Result<Store, Failure> {
    let Some(choice) = cut else { return open(sources) };
    let skew = skew_from_environment()?;
    open_by(|sources| Store::open_cut(sources, choice, skew), sources)
}

/// Reads the argument of `--cut`.
pub(super) fn parse_cut(text: &str) -> Result<Choice, String> {
    Choice::parse(text).ok_or_else(|| "it takes `newest`, `complete`, or seconds since 1970".to_owned())
}

/// As [`open`], with what can be read of damaged aggregates.
pub(super) fn open_salvaged(sources: &[PathBuf]) -> Result<Store, Failure> {
    open_by(Store::salvage, sources)
}

fn open_by(read: impl Fn(&[PathBuf]) -> io::Result<Store>, sources: &[PathBuf]) -> Result<Store, Failure> {
    require(sources)?;
    let store = read(sources)?;
    for note in store.notes() {
        eprintln!("sheaf: {note}");
    }
    for contest in store.contests() {
        eprintln!("sheaf: {contest}");
    }
    if store.aggregates().next().is_none() && !store.notes().is_empty() {
        return Err(Failure::new("none of the aggregates could be read"));
    }
    Ok(store)
}

/// Success, or the code for "done, and a problem was found".
pub(super) fn exit_code(found_a_problem: bool) -> ExitCode {
    if found_a_problem { ExitCode::from(FOUND_A_PROBLEM) } else { ExitCode::SUCCESS }
}

/// A canonical path without its slash, from what somebody typed.
pub(super) fn stored_path(path: &[u8]) -> &[u8] {
    let start = path.iter().position(|byte| *byte != b'/').unwrap_or(path.len());
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(start, |last| last + 1);
    &path[start..end]
}

/// A path as a line on a terminal: control characters cannot play tricks there. Programs get the bytes as they are.
pub(super) fn printable(path: &[u8]) -> Vec<u8> {
    if io::stdout().is_terminal() && !is_plain(path) {
        return path.escape_ascii().to_string().into_bytes();
    }
    path.to_vec()
}

/// Whether a terminal shows nothing but text: terminals obey control characters in two bytes, too.
fn is_plain(path: &[u8]) -> bool {
    std::str::from_utf8(path).is_ok_and(|text| !text.chars().any(char::is_control))
}

/// Does `count` jobs on all CPUs, in no particular order.
pub(super) fn in_parallel(count: usize, job: impl Fn(usize) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count);
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    job(index);
                }
            });
        }
    });
}

/// A bar on standard error, if that is a terminal and the work takes long enough to ask for one.
pub(super) struct Progress {
    bar: ProgressBar,
    hidden_since: Mutex<Option<Instant>>,
}

impl Progress {
    pub(super) fn new(total_bytes: u64) -> Progress {
        let bar = ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
            bar.set_style(style);
        }
        let hidden_since = Mutex::new(io::stderr().is_terminal().then(Instant::now));
        Progress { bar, hidden_since }
    }

    pub(super) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
        let mut hidden_since = self.hidden_since.lock();
        if hidden_since.is_some_and(|start| start.elapsed() > BAR_AFTER) {
            *hidden_since = None;
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    /// Prints a line without tearing the bar.
    pub(super) fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("sheaf: {line}"));
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_paths_lose_their_outer_slashes() {
        for (typed, stored) in [("/a/b", "a/b"), ("a/b/", "a/b"), ("//a//", "a"), ("/", ""), ("", "")] {
            assert_eq!(stored_path(typed.as_bytes()), stored.as_bytes());
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_not_plain() {
        assert!(is_plain("/a b/\u{e9}".as_bytes()));
        for path in [&b"/a\x1b[2J"[..], b"/a\n", "/a\u{9b}2J".as_bytes(), b"/a\xff", b"/a\x7f"] {
            assert!(!is_plain(path), "{}", path.escape_ascii());
        }
    }

    #[test]
    fn every_job_is_done_once() {
        let done: Vec<_> = (0..1000).map(|_| std::sync::atomic::AtomicUsize::new(0)).collect();
        in_parallel(done.len(), |index| {
            done[index].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(done.into_iter().all(|count| count.into_inner() == 1));
        in_parallel(0, |_| unreachable!());
    }
}
