//! What was measured: all rounds of everything, and the ratios that mean something.

use std::fmt::Write as _;

use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};

/// One run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Whether it was the small run.
    pub quick: bool,
    /// Rounds of each comparison.
    pub rounds: usize,
    /// Processors, memory and kernel.
    pub machine: String,
    /// Comparisons.
    pub groups: Vec<Group>,
    /// Targets that could not be made here, with the reason.
    pub left_out: Vec<String>,
}

/// One comparison on one target.
#[derive(Debug, Serialize, Deserialize)]
pub struct Group {
    /// What is compared.
    pub title: String,
    /// File system, how it was made, synced or not.
    pub target: String,
    /// What was measured.
    pub rows: Vec<Row>,
    /// What follows.
    pub ratios: Vec<Ratio>,
}

/// One quantity in all rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// What it is.
    pub what: String,
    /// `s`, `s/GiB`, `MiB`, `files/s`, ...
    pub unit: String,
    /// One value a round.
    pub values: Vec<f64>,
}

/// A ratio of medians, or a median, against what is aimed at.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ratio {
    /// What against what.
    pub what: String,
    /// The figure.
    pub value: f64,
    /// What is aimed at, if anything.
    pub bar: Option<Bar>,
}

/// A figure that is aimed at.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Bar {
    /// Not more than this.
    AtMost(f64),
    /// Not less than this.
    AtLeast(f64),
}

impl Bar {
    fn is_met(self, value: f64) -> bool {
        match self {
            Bar::AtMost(limit) => value <= limit,
            Bar::AtLeast(limit) => value >= limit,
        }
    }

    fn text(self) -> String {
        match self {
            Bar::AtMost(limit) => format!("<= {limit}"),
            Bar::AtLeast(limit) => format!(">= {limit}"),
        }
    }
}

impl Ratio {
    /// What was aimed at and whether it was reached, as a cell of a table.
    pub fn verdict(&self) -> String {
        self.bar.map_or(String::new(), |bar| {
            format!("{}: {}", bar.text(), if bar.is_met(self.value) { "met" } else { "MISSED" })
        })
    }
}

impl Row {
    /// A quantity without values yet.
    pub fn new(what: &str, unit: &str) -> Row {
        Row { what: what.to_string(), unit: unit.to_string(), values: Vec::new() }
    }

    /// The value at a fraction of the sorted values: 0.5 is the median.
    pub fn quantile(&self, fraction: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1) as f64;
        sorted.get((last * fraction).round() as usize).copied().unwrap_or(f64::NAN)
    }

    /// The median.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

/// A figure with as many places as mean something.
pub fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        size if size >= 0.001 => format!("{value:.4}"),
        _ => format!("{value:.6}"),
    }
}

impl Group {
    /// The row of this name.
    pub fn row(&mut self, what: &str) -> &mut Row {
        self.rows.iter_mut().find(|row| row.what == what).expect("rows are named where they are made")
    }

    /// Adds the ratio of two rows' medians.
    pub fn compare(&mut self, what: &str, over: &str, under: &str, bar: Option<Bar>) {
        let value = self.row(over).median() / self.row(under).median();
        self.tell(what, value, bar);
    }

    /// Adds a row's own median against what is aimed at, if anything.
    pub fn judge(&mut self, what: &str, row: &str, bar: impl Into<Option<Bar>>) {
        let value = self.row(row).median();
        self.tell(what, value, bar.into());
    }

    /// Sets a value that was made of rows beside what is aimed at.
    pub fn tell(&mut self, what: &str, value: f64, bar: Option<Bar>) {
        self.ratios.push(Ratio { what: what.to_string(), value, bar });
    }
}

impl Report {
    /// An empty report of this machine.
    pub fn new(quick: bool, rounds: usize) -> Report {
        Report { quick, rounds, machine: machine(), groups: Vec::new(), left_out: Vec::new() }
    }

    /// Everything, for a terminal.
    pub fn to_text(&self) -> String {
        let mut text = format!("{}\n", self.machine);
        for group in &self.groups {
            let _ = writeln!(text, "\n{} ({})", group.title, group.target);
            let mut table = Table::new();
            table.load_preset(presets::ASCII_MARKDOWN).set_header(["what", "unit", "median", "quartiles"]);
            for row in &group.rows {
                let quartiles = format!("{} .. {}", figure(row.quantile(0.25)), figure(row.quantile(0.75)));
                table.add_row([&row.what, &row.unit, &figure(row.median()), &quartiles]);
            }
            let _ = writeln!(text, "{table}");
            if group.ratios.is_empty() {
                continue;
            }
            let mut table = Table::new();
            table.load_preset(presets::ASCII_MARKDOWN).set_header(["ratio", "", "aimed at"]);
            for ratio in &group.ratios {
                table.add_row([&ratio.what, &figure(ratio.value), &ratio.verdict()]);
            }
            let _ = writeln!(text, "{table}");
        }
        for reason in &self.left_out {
            let _ = writeln!(text, "left out: {reason}");
        }
        text
    }
}

fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let memory_kib: u64 = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{processors} processors, {} GiB of memory, Linux {}", memory_kib >> 20, kernel.trim())
}
