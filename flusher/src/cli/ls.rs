//! `sheaf ls`: the names that a store holds.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{Failure, offline};
use crate::aggregate::{Attributes, FLAG_UNCLOSED};
use crate::store::{Choice, Node, View};

/// List the files in a store or in single aggregates
#[derive(Args, Debug)]
pub struct LsArgs {
    /// Show mode, owner, size and time of change (UTC)
    #[arg(short, long)]
    long: bool,
    /// Print one JSON array
    #[arg(long, conflicts_with = "long")]
    json: bool,
    /// As it was at a consistent cut: `newest` (if all nodes that have not ended were lost), `complete` (everything
    /// that is published), or at a time in seconds since 1970, as `sheaf cuts` shows it
    #[arg(long, value_name = "CUT", value_parser = offline::parse_cut)]
    cut: Option<Choice>,
    /// The store's directory, or aggregates of it
    #[arg(required = true, value_name = "STORE|AGGREGATE")]
    sources: Vec<PathBuf>,
}

/// Lists; see [`LsArgs`].
///
/// # Errors
/// When the store cannot be read.
pub fn run(arguments: LsArgs) -> Result<ExitCode, Failure> {
    let store = offline::open_cut(&arguments.sources, arguments.cut)?;
    let mut out = BufWriter::new(io::stdout().lock());
    if arguments.json {
        let names: Vec<JsonName> = listed(store.view()).map(|(path, node)| JsonName::new(&path, node)).collect();
        serde_json::to_writer_pretty(&mut out, &names)?;
        out.write_all(b"\n")?;
    } else {
        for (path, node) in listed(store.view()) {
            if arguments.long {
                write!(out, "{} ", long_form(node))?;
            }
            out.write_all(b"/")?;
            out.write_all(&offline::printable(&path))?;
            match node {
                Node::Symlink(link) if arguments.long => {
                    out.write_all(b" -> ")?;
                    out.write_all(&offline::printable(&link.target))?;
                }
                Node::Directory(_) => out.write_all(b"/")?,
                _ => {}
            }
            out.write_all(b"\n")?;
        }
    }
    out.flush()?;
    Ok(offline::exit_code(!store.notes().is_empty()))
}

/// Everything that was recorded: not the directories that are only the way to something.
fn listed(view: &View) -> impl Iterator<Item = (Vec<u8>, &Node)> {
    view.iter().filter(|(_, node)| !matches!(node, Node::Directory(directory) if directory.recorded.is_none()))
}

struct Facts<'a> {
    letter: char,
    attributes: Option<&'a Attributes>,
    size: u64,
}

fn facts(node: &Node) -> Facts<'_> {
    match node {
        Node::File(version) => Facts { letter: '-', attributes: Some(&version.attributes), size: version.size },
        Node::Symlink(link) => {
            Facts { letter: 'l', attributes: Some(&link.attributes), size: link.target.len() as u64 }
        }
        Node::Directory(directory) => {
            let recorded = directory.recorded.as_ref();
            Facts { letter: 'd', attributes: recorded.map(|recorded| &recorded.attributes), size: 0 }
        }
    }
}

fn long_form(node: &Node) -> String {
    let Facts { letter, attributes, size } = facts(node);
    let attributes = attributes.cloned().unwrap_or_default();
    format!(
        "{letter}{} {:>5} {:>5} {size:>12} {}",
        mode_letters(attributes.mode),
        attributes.uid,
        attributes.gid,
        utc(attributes.mtime_seconds)
    )
}

fn mode_letters(mode: u32) -> String {
    let triple = |shift: u32, special: bool, letter: char| {
        let bits = mode >> shift;
        let execute = match (bits & 1 != 0, special) {
            (true, false) => 'x',
            (false, false) => '-',
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
        };
        let read = if bits & 4 != 0 { 'r' } else { '-' };
        let write = if bits & 2 != 0 { 'w' } else { '-' };
        [read, write, execute].iter().collect::<String>()
    };
    triple(6, mode & 0o4000 != 0, 's') + &triple(3, mode & 0o2000 != 0, 's') + &triple(0, mode & 0o1000 != 0, 't')
}

/// Seconds since 1970 as date and time, by the proleptic Gregorian calendar.
pub(super) fn utc(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Counted from 0000-03-01 in eras of 400 years, so that leap days come last.
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

#[derive(Serialize)]
struct JsonName {
    /// With characters replaced where it is not UTF-8; `path_hexadecimal` is then exact.
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hexadecimal: Option<String>,
    kind: &'static str,
    size_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtime_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtime_nanoseconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crc32c: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unclosed: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    contested: bool,
}

impl JsonName {
    fn new(path: &[u8], node: &Node) -> JsonName {
        let Facts { letter, attributes, size } = facts(node);
        let absolute = [b"/", path].concat();
        let exact = std::str::from_utf8(path).is_err();
        let hexadecimal = || absolute.iter().map(|byte| format!("{byte:02x}")).collect();
        let version = if let Node::File(version) = node { Some(version) } else { None };
        JsonName {
            path: String::from_utf8_lossy(&absolute).into_owned(),
            path_hexadecimal: exact.then(hexadecimal),
            kind: match letter {
                'd' => "directory",
                'l' => "symlink",
                _ => "file",
            },
            size_bytes: size,
            target: if let Node::Symlink(link) = node {
                Some(String::from_utf8_lossy(&link.target).into_owned())
            } else {
                None
            },
            mode: attributes.map(|attributes| attributes.mode),
            uid: attributes.map(|attributes| attributes.uid),
            gid: attributes.map(|attributes| attributes.gid),
            mtime_seconds: attributes.map(|attributes| attributes.mtime_seconds),
            mtime_nanoseconds: attributes.map(|attributes| attributes.mtime_nanoseconds),
            crc32c: version.map(|version| version.checksums.whole),
            unclosed: version.is_some_and(|version| version.flags & FLAG_UNCLOSED != 0),
            contested: version.is_some_and(|version| version.is_contested()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_700_000_000, "2023-11-14 22:13:20"),
            (-1, "1969-12-31 23:59:59"),
            (4_107_542_399, "2100-02-28 23:59:59"),
        ] {
            assert_eq!(utc(seconds), text);
        }
        assert_eq!(utc(i64::MIN).chars().last(), Some('2'));
        assert!(!utc(i64::MAX).is_empty());
    }

    #[test]
    fn modes_are_letters() {
        assert_eq!(mode_letters(0o640), "rw-r-----");
        assert_eq!(mode_letters(0o7755), "rwsr-sr-t");
        assert_eq!(mode_letters(0o6600), "rwS--S---");
    }
}
