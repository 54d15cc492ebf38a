//! Random histories of file operations by several processes, answered alike with and without Sheaf.
//!
//! A [`Plan`] is text, one operation a line, so that people can read it, cut it and keep it. The program `differential`
//! performs a plan; [`sides::compare`] has it do so on two twin directories and compares every answer. Nothing here may
//! depend on time: which process acts when is part of the plan.
//!
//! What two file systems cannot have in common is not performed natively either, when the captured side says so (its
//! answer then starts with `skipped`): see the module `guard` of the program.

pub mod generate;
pub mod shrink;
pub mod sides;

use std::fmt;
use std::str::FromStr;

/// How many processes act in a plan: `p0` and so on.
pub const PROCESSES: usize = 3;
/// The first word of a line that ends all processes; the second says what happens before the next ones start.
pub const PHASE: &str = "phase";
/// The words after [`PHASE`]: nothing; `sheaf drain`; `sheaf drain`, and then the stage is lost.
pub const BETWEEN: [&str; 3] = ["keep", "drain", "wipe"];

/// Lines `pN OPERATION ARGUMENTS`, and lines `phase WORD` between them. Empty lines and comments (`#`) mean nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The lines that mean something.
    pub lines: Vec<String>,
}

/// Operations of processes that live side by side, and what happens after they have ended.
#[derive(Clone, Copy, Debug)]
pub struct Phase<'a> {
    /// `pN OPERATION ARGUMENTS`.
    pub lines: &'a [String],
    /// One of [`BETWEEN`]; the last phase ends with the plan.
    pub after: Option<&'a str>,
}

impl Plan {
    /// The phases, in order.
    pub fn phases(&self) -> Vec<Phase<'_>> {
        let mut phases = Vec::new();
        let mut rest = &self.lines[..];
        while let Some(end) = rest.iter().position(|line| between(line).is_some()) {
            phases.push(Phase { lines: &rest[..end], after: between(&rest[end]) });
            rest = &rest[end + 1..];
        }
        phases.push(Phase { lines: rest, after: None });
        phases
    }
}

/// The second word of a line that ends a phase.
fn between(line: &str) -> Option<&str> {
    line.strip_prefix(PHASE).map(str::trim)
}

/// The number of the process that performs a line.
///
/// # Panics
/// When the line does not start with `pN`.
pub fn owner(line: &str) -> usize {
    let word = line.split(' ').next().unwrap_or_default();
    let number = word.strip_prefix('p').and_then(|digits| digits.parse().ok());
    number.filter(|number| *number < PROCESSES).unwrap_or_else(|| panic!("'{line}' does not start with a process"))
}

impl FromStr for Plan {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Plan, Self::Err> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Ok(Plan { lines: lines.map(str::to_string).collect() })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(formatter, "{line}"))
    }
}
