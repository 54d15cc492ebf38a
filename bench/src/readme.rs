//! Puts measured figures into the README, so that nobody types them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::Failure;
use crate::result::{Report, figure};

const BEGIN: &str = "<!-- measured -->";
const END: &str = "<!-- /measured -->";

/// Replaces what stands between the marks.
///
/// # Errors
/// When a file cannot be read or written, or the marks are missing.
pub fn update(results: &Path, readme: &Path) -> Result<(), Failure> {
    let report: Report = serde_json::from_slice(&fs::read(results)?)?;
    let text = fs::read_to_string(readme)?;
    let missing = || format!("{}: the marks {BEGIN} and {END} are missing", readme.display());
    let (before, rest) = text.split_once(BEGIN).ok_or_else(missing)?;
    let (_, after) = rest.split_once(END).ok_or_else(missing)?;
    fs::write(readme, format!("{before}{BEGIN}\n{}{END}{after}", table(&report)))?;
    Ok(())
}

fn table(report: &Report) -> String {
    let run = if report.quick { " --quick" } else { "" };
    let mut text = format!("`scripts/bench.sh{run}`: {}, medians of {} rounds.\n", report.machine, report.rounds);
    for group in &report.groups {
        let _ = write!(text, "\n**{}**; target: {}\n\n", group.title, group.target);
        let _ = writeln!(text, "| what | median | quartiles |\n| --- | ---: | --- |");
        for row in &group.rows {
            let [low, median, high] = [0.25, 0.5, 0.75].map(|fraction| figure(row.quantile(fraction)));
            let _ = writeln!(text, "| {} | {median} {} | {low} .. {high} |", row.what, row.unit);
        }
        if !group.ratios.is_empty() {
            let _ = writeln!(text, "\n| ratio | | aimed at |\n| --- | ---: | --- |");
        }
        for ratio in &group.ratios {
            let _ = writeln!(text, "| {} | {} | {} |", ratio.what, figure(ratio.value), ratio.verdict());
        }
    }
    for reason in &report.left_out {
        let _ = writeln!(text, "\nLeft out: {reason}");
    }
    text
}
