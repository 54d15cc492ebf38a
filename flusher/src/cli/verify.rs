//! `sheaf verify`: is every published byte what was written?
//!
//! Reads everything, changes nothing. Clean means that the chain of segments, every TOC, every header and what it says,
//! every file's data and all padding were checked.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use indicatif::HumanBytes;
use parking_lot::Mutex;
use serde::Serialize;

use super::offline::{self, Progress};
use super::{COULD_NOT, FOUND_A_PROBLEM, Failure};
use crate::aggregate::{
    BLOCK, Damage, FormatError, ReadAt, ReadError, Record, Recovered, Segment, Stop, Walked, archive_end, check_record,
    data_from, is_removed, published_behind, recover, recover_from, recover_shared,
};
use crate::store::{AggregateFile, Store, aggregate_files, open_file};

/// Check every published byte of a store or of single aggregates
///
/// Also says which files several nodes wrote to at the same time: nobody has the whole of them. Exit code 0: all is
/// what was written. 1: damage, or such a file, was found. 2: something could not be read.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// The store's directory, or aggregates of it
    #[arg(required = true, value_name = "STORE|AGGREGATE")]
    sources: Vec<PathBuf>,
}

/// What was found in one aggregate.
#[derive(Debug, Default, Serialize)]
struct Report {
    aggregate: String,
    segments: usize,
    records: usize,
    published_bytes: u64,
    damage: Vec<Finding>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
}

#[derive(Debug, Serialize)]
struct Finding {
    /// Byte in the aggregate.
    offset: u64,
    /// The file concerned, if it is a single one.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    what: String,
}

#[derive(Debug, Serialize)]
struct Reports {
    clean: bool,
    aggregates: Vec<Report>,
    /// Files that several nodes wrote to at the same time, in words.
    contested: Vec<String>,
}

/// Verifies; see [`VerifyArgs`].
///
/// # Errors
/// When a source is not there or cannot be listed.
pub fn run(arguments: VerifyArgs) -> Result<ExitCode, Failure> {
    let mut reports = inspect(&arguments.sources)?;
    // A store that cannot be read as one has been found unreadable, or changes.
    let contests = Store::open_all(&arguments.sources).map(|store| store.contests()).unwrap_or_default();
    reports.contested = contests.iter().map(ToString::to_string).collect();
    reports.clean &= reports.contested.is_empty();
    let mut out = io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &reports)?;
        out.write_all(b"\n")?;
    } else {
        reports.aggregates.iter().try_for_each(|report| print(&mut out, report))?;
        reports.contested.iter().try_for_each(|contest| writeln!(out, "{contest}"))?;
    }
    Ok(ExitCode::from(reports.code()))
}

/// Whether every published byte of an aggregate is what was written.
///
/// # Errors
/// As [`run`].
pub(super) fn is_clean(aggregate: &Path) -> Result<bool, Failure> {
    Ok(inspect(&[aggregate.to_owned()])?.clean)
}

fn inspect(sources: &[PathBuf]) -> Result<Reports, Failure> {
    offline::require(sources)?;
    let mut files = Vec::new();
    for source in sources {
        files.extend(aggregate_files(source)?);
    }
    let sizes = files.iter().filter_map(|file| Some(file.metadata().ok()?.len()));
    let progress = Progress::new(sizes.sum());
    let aggregates: Vec<Report> = files.iter().filter_map(|file| verify(file, &progress)).collect();
    progress.finish();
    let clean = aggregates.iter().all(|report| report.damage.is_empty() && report.unreadable.is_none());
    Ok(Reports { clean, aggregates, contested: Vec::new() })
}

impl Reports {
    fn code(&self) -> u8 {
        match !self.contested.is_empty() || self.aggregates.iter().any(|report| !report.damage.is_empty()) {
            _ if self.clean => 0,
            true => FOUND_A_PROBLEM,
            false => COULD_NOT,
        }
    }
}

fn print(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let Report { aggregate, segments, records, published_bytes, damage, unreadable } = report;
    if let Some(reason) = unreadable {
        writeln!(out, "{aggregate}: {reason}")?;
    }
    for Finding { offset, path, what } in damage {
        match path {
            Some(path) => {
                let shown = offline::printable(path.as_bytes());
                writeln!(out, "{aggregate}: byte {offset}: {}: {what}", String::from_utf8_lossy(&shown))?;
            }
            None => writeln!(out, "{aggregate}: byte {offset}: {what}")?,
        }
    }
    if unreadable.is_none() && damage.is_empty() {
        let size = HumanBytes(*published_bytes);
        writeln!(out, "{aggregate}: clean ({segments} segments, {records} records, {size})")?;
    }
    Ok(())
}

/// `None` for an aggregate that has been reclaimed since it was listed.
fn verify(path: &Path, progress: &Progress) -> Option<Report> {
    let aggregate = path.display().to_string();
    let recovered = open_file(path).map_err(ReadError::from).and_then(|file| Ok((recover(&file)?, file.into())));
    Some(match recovered {
        Ok((recovered, file)) => {
            let mut report = Report {
                segments: recovered.segments.len(),
                records: recovered.segments.iter().map(|segment| segment.records.len()).sum(),
                published_bytes: recovered.published_end,
                ..Report { aggregate, ..Report::default() }
            };
            check(&recovered, &file, progress, &mut report);
            report
        }
        Err(ReadError::Format(FormatError::Shared(_))) => {
            let mut report = Report { aggregate, ..Report::default() };
            if let Err(error) = verify_shared(path, progress, &mut report) {
                report.unreadable = Some(error.to_string());
            }
            report
        }
        Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => return None,
        // Its flusher has not written anything yet, or never came to it.
        Err(ReadError::Format(FormatError::Empty)) => Report { aggregate, ..Report::default() },
        Err(ReadError::Format(FormatError::Damaged(what))) => {
            let finding = Finding { offset: 0, path: None, what: what.to_owned() };
            Report { aggregate, damage: vec![finding], ..Report::default() }
        }
        Err(error) => Report { aggregate, unreadable: Some(error.to_string()), ..Report::default() },
    })
}

/// A file that several nodes write to: all that each has published in it, and that the archive can be walked to its
/// end.
fn verify_shared(path: &Path, progress: &Progress, report: &mut Report) -> Result<(), ReadError> {
    let file = AggregateFile::from(open_file(path)?);
    let content = recover_shared(file.file(), &mut Walked::default(), &|_| None, false)?;
    for part in content.parts.iter().filter(|part| !part.removed) {
        let segments = &part.recovered.segments;
        report.segments += segments.len();
        report.records += segments.iter().map(|segment| segment.records.len()).sum::<usize>();
        let mut found = Report::default();
        check_records(&part.recovered, &file, progress, &mut found);
        // Unless it has just been reclaimed.
        if !is_removed(file.file(), part.first, part.recovered.identity.uuid)? {
            report.damage.append(&mut found.damage);
            report.unreadable = report.unreadable.take().or(found.unreadable);
        }
    }
    report.published_bytes = content.end;
    if let Some(offset) = content.damaged {
        let what = "what is here says whose it is no more; tar readers do not get past it".to_owned();
        report.damage.push(Finding { offset, path: None, what });
    }
    // Somebody may have gone on meanwhile.
    let mut end = content.end;
    while let Some(offset) = data_from(file.file(), end)? {
        match archive_end(file.file(), end) {
            Ok(next) if next > end => end = next,
            _ => {
                let what = format!("data behind the archive's end at byte {end}: what says whose it is, is gone");
                report.damage.push(Finding { offset, path: None, what });
                break;
            }
        }
    }
    let length = file.file().metadata()?.len();
    if length < content.end + BLOCK {
        let what = format!("the {BLOCK} zero bytes that end the archive are cut off");
        report.damage.push(Finding { offset: content.end, path: None, what });
    }
    Ok(())
}

fn check(recovered: &Recovered, file: &AggregateFile, progress: &Progress, report: &mut Report) {
    check_records(recovered, file, progress, report);
    if report.unreadable.is_none() && !matches!(recovered.stop, Stop::Damaged(_)) {
        match check_end(recovered, file.file()) {
            Ok(found) => report.damage.extend(found),
            Err(error) => report.unreadable = Some(format!("cannot be read: {error}")),
        }
    }
}

/// Adds what is wrong in published segments to a report.
fn check_records(recovered: &Recovered, file: &AggregateFile, progress: &Progress, report: &mut Report) {
    let records: Vec<(&Segment, &Record)> = recovered
        .segments
        .iter()
        .flat_map(|segment| segment.records.iter().map(move |record| (segment, record)))
        .collect();
    let found: Mutex<Vec<Damage>> = Mutex::default();
    let failed: Mutex<Option<String>> = Mutex::default();
    offline::in_parallel(records.len(), |index| {
        let (segment, record) = records[index];
        match check_record(file, &recovered.identity, segment, record, &mut |bytes| progress.add(bytes)) {
            Ok(damages) => found.lock().extend(damages),
            Err(error) => *failed.lock() = Some(format!("cannot be read: {error}")),
        }
    });
    let finding = |damage: Damage| Finding {
        offset: damage.offset,
        path: Some(format!("/{}", String::from_utf8_lossy(&damage.path))),
        what: damage.what,
    };
    report.damage.extend(found.into_inner().into_iter().map(finding));
    report.damage.sort_by_key(|finding| finding.offset);
    if let Stop::Damaged(reason) = &recovered.stop {
        let what = format!("the segment here is damaged: {reason}; it and what follows cannot be read");
        report.damage.push(Finding { offset: recovered.published_end, path: None, what });
    }
    report.unreadable = report.unreadable.take().or(failed.into_inner());
}

/// Checks what lies behind the published segments: the zeros that end the archive; nothing more if it was closed;
/// nothing that was published.
fn check_end(recovered: &Recovered, file: &File) -> io::Result<Option<Finding>> {
    let (end, length) = (recovered.published_end, file.metadata()?.len());
    let finding = |offset: u64, what: String| Ok(Some(Finding { offset, path: None, what }));
    if length < end + BLOCK {
        let left = length.saturating_sub(end);
        return finding(end, format!("of the {BLOCK} zero bytes that end the archive {left} are left"));
    }
    if recovered.is_sealed() {
        let mut block = vec![0; BLOCK as usize];
        file.read_exact_at(&mut block, end)?;
        let is_right = length == end + BLOCK && block.iter().all(|byte| *byte == 0);
        return if is_right { Ok(None) } else { finding(end, "bytes follow that do not belong to it".to_owned()) };
    }
    let Some(behind) = published_behind(file, &recovered.identity, end)? else { return Ok(None) };
    // Unless a flusher has just published both.
    match recover_from(file, end, recovered.next_sequence) {
        Ok(now) if now.published_end == end => {
            let what = format!("the segment here has lost its head, and another one that was published is at {behind}");
            finding(end, format!("{what}; `sheaf extract --salvage` gets both"))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::tests::{Builder, file, pattern};

    fn code(sources: &[PathBuf]) -> u8 {
        inspect(sources).map(|reports| reports.code()).unwrap_or(u8::MAX)
    }

    #[test]
    fn exit_codes_tell_clean_damaged_and_unreadable() {
        let directory = tempfile::tempdir().unwrap();
        let store = [directory.path().to_owned()];
        let aggregate = directory.path().join("n-1.tar");
        let mut builder = Builder::new(1);
        builder.segment(vec![file("a", &pattern(40_000), 1), file("b", b"b", 2)]);
        std::fs::write(&aggregate, builder.finished()).unwrap();
        std::fs::write(directory.path().join("n-2.tar"), b"").unwrap();
        assert_eq!(code(&store), 0);
        for place in [600, 4096, 4096 + 2048, builder.bytes.len() - 1, builder.bytes.len() - 10_000] {
            let mut damaged = builder.finished();
            damaged[place] ^= 1;
            std::fs::write(&aggregate, damaged).unwrap();
            assert_eq!(code(&store), FOUND_A_PROBLEM, "byte {place}");
        }
        std::fs::write(&aggregate, pattern(10_000)).unwrap();
        assert_eq!(code(&store), COULD_NOT);
        assert!(inspect(&[directory.path().join("none")]).is_err());
    }
}
