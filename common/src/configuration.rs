//! The environment variables: one table that yields the parser, `sheaf help env` and the README's table.
//!
//! A bad value is reported once, by [`ValueError::write`], and the program then runs without Sheaf.

use core::fmt;

use crate::pattern::{self, PatternError};

/// One environment variable, as documented to users.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What it accepts.
    pub accepts: &'static str,
    /// What holds when it is unset.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

/// Every variable that Sheaf reads.
pub const VARIABLES: [Variable; 17] = [
    Variable {
        name: "SHEAF_PATHS",
        accepts: "absolute globs, colon-separated: `*`, `?`, `[a-z]`, and `**` for any number of directories",
        default: "unset: Sheaf does nothing",
        meaning: "the checkpoint paths to capture",
    },
    Variable {
        name: "SHEAF_EXCLUDE",
        accepts: "absolute globs, colon-separated",
        default: "none",
        meaning: "paths that SHEAF_PATHS matches and that must stay untouched",
    },
    Variable {
        name: "SHEAF_STAGE",
        accepts: "absolute directories on node-local storage, colon-separated; the first usable one with room serves",
        default: "/dev/shm",
        meaning: "where captured files live until they are published; the directories behind it take what the store is too slow for",
    },
    Variable {
        name: "SHEAF_STAGE_LIMIT",
        accepts: "a size in bytes, with K, M, G or T (powers of 1024)",
        default: "half of what is free when the flusher starts",
        meaning: "published files are evicted from the stage, oldest first, when it holds more than this, or when room is needed",
    },
    Variable {
        name: "SHEAF_STORE",
        accepts: "an absolute directory on the parallel file system",
        default: "`.sheaf` under the fixed prefix of the first pattern",
        meaning: "where the aggregates are written",
    },
    Variable {
        name: "SHEAF_LAYOUT",
        accepts: "`node`, `shared:M` (M from 1 to 9999) or `files`",
        default: "node",
        meaning: "`node`: each node writes aggregates of its own; `shared:M`: all nodes write to M files; the store's file system must lock files over all nodes; `files`: no aggregates, each file goes to its own path on the parallel file system, an ordinary file that is read without Sheaf (and there is no consistent cut over several nodes)",
    },
    Variable {
        name: "SHEAF_DURABLE",
        accepts: "`async`, `fsync` or `close`",
        default: "async",
        meaning: "`fsync`: fsync and fdatasync on a captured file return when it is published and durable in the store; `close`: close and fclose do so, too; they fail with EIO when that cannot be, and the file stays staged",
    },
    Variable {
        name: "SHEAF_ON_EXIT",
        accepts: "`drain` or `leave`",
        default: "drain",
        meaning: "what the flusher does when the last program has ended: publish everything, or leave it staged for `sheaf drain`",
    },
    Variable {
        name: "SHEAF_BANDWIDTH",
        accepts: "a size per second, with K, M, G or T",
        default: "unlimited",
        meaning: "how fast the flusher may write to the store",
    },
    Variable {
        name: "SHEAF_STORE_TIMEOUT",
        accepts: "whole seconds, at least 1",
        default: "600",
        meaning: "how long the store may take nothing before `sheaf run`, `wait` and `drain` give up; what is staged stays",
    },
    Variable {
        name: "SHEAF_TIMEOUT",
        accepts: "whole seconds, at least 1",
        default: "30",
        meaning: "how long a call of the program may wait for a flusher that says nothing, or for room in a full stage; then it goes on without",
    },
    Variable {
        name: "SHEAF_DAMAGED",
        accepts: "`refuse` or `older`",
        default: "refuse",
        meaning: "what to read when the newest version of a file is damaged in the store: nothing (an error), or an older version that is intact",
    },
    Variable {
        name: "SHEAF_CUT",
        accepts: "`newest`, `complete`, or a time in seconds since 1970, as `sheaf cuts` shows it",
        default: "newest",
        meaning: "what a job sees of one over several nodes that lost some, where it begins on an empty stage: `newest`: the newest state that is consistent over all nodes, and whatever somebody was told is safe (a line says what is not shown); `complete`: everything that was published, also what was hidden before, though files of one time may lack others; or the newest consistent state of that time. Decided once for each job that is over",
    },
    Variable {
        name: "SHEAF_SKEW_MS",
        accepts: "whole milliseconds, at least 1",
        default: "1000",
        meaning: "how far the clocks of two nodes may be apart: a cut is only made where what different nodes did is further apart",
    },
    Variable {
        name: "SHEAF_WATERMARK_MS",
        accepts: "whole milliseconds, at least 1",
        default: "5000",
        meaning: "how often a node that has nothing to publish tells the store so, while its programs live; what others did later than that is not in the cut if the node is lost",
    },
    Variable {
        name: "SHEAF_LOG",
        accepts: "`error`, `warn`, `info`, `debug` or `trace`, and optionally `,FILE` (absolute)",
        default: "warn, to the program's standard error; the flusher logs only to a FILE",
        meaning: "what is said, and where; `trace` says for each call what was decided and why",
    },
    Variable {
        name: "SHEAF_DISABLE",
        accepts: "`1` or `0`",
        default: "0",
        meaning: "`1` makes the preloaded library do nothing",
    },
];

/// A value that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueError<'a> {
    /// The variable.
    pub name: &'static str,
    /// The part of its value that was refused.
    pub value: &'a [u8],
    /// Why.
    pub reason: Reason,
}

/// Why a value was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A pattern that cannot be used.
    Pattern(PatternError),
    /// Something else than the variable accepts.
    NotAccepted,
    /// More patterns or longer ones than there is room for.
    TooMany,
}

impl fmt::Display for ValueError<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sheaf: {}: '", self.name)?;
        for chunk in self.value.utf8_chunks() {
            formatter.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                formatter.write_str("\u{fffd}")?;
            }
        }
        match self.reason {
            Reason::Pattern(error) => write!(formatter, "' is refused: {}", error.advice())?,
            Reason::TooMany => {
                write!(formatter, "' is refused: at most {PATTERNS_MAX} entries of {PATTERN_MAX} bytes")?
            }
            Reason::NotAccepted => {
                let accepts = VARIABLES.iter().find(|variable| variable.name == self.name).map_or("", |v| v.accepts);
                write!(formatter, "' is refused: it takes {accepts}")?;
            }
        }
        formatter.write_str("; running without Sheaf")
    }
}

/// Most entries in SHEAF_PATHS, in SHEAF_EXCLUDE, and in SHEAF_STAGE.
pub const PATTERNS_MAX: usize = 16;
/// Longest pattern or directory, in bytes.
pub const PATTERN_MAX: usize = 1024;

/// The entries of a colon-separated value; empty entries are skipped.
pub fn entries(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b':').filter(|entry| !entry.is_empty())
}

/// Checks a list of patterns (SHEAF_PATHS, SHEAF_EXCLUDE).
///
/// # Errors
/// Names the first entry that is refused.
pub fn check_patterns<'a>(name: &'static str, value: &'a [u8]) -> Result<(), ValueError<'a>> {
    check_count(name, value)?;
    for entry in entries(value) {
        pattern::validate(entry).map_err(|error| ValueError { name, value: entry, reason: Reason::Pattern(error) })?;
    }
    Ok(())
}

/// Checks a list of absolute directories (SHEAF_STAGE, SHEAF_STORE).
///
/// # Errors
/// Names the first entry that is refused.
pub fn check_directories<'a>(name: &'static str, value: &'a [u8]) -> Result<(), ValueError<'a>> {
    check_count(name, value)?;
    match entries(value).find(|entry| entry.first() != Some(&b'/')) {
        Some(entry) => Err(ValueError { name, value: entry, reason: Reason::NotAccepted }),
        None => Ok(()),
    }
}

fn check_count<'a>(name: &'static str, value: &'a [u8]) -> Result<(), ValueError<'a>> {
    if let Some(entry) = entries(value).find(|entry| entry.len() > PATTERN_MAX) {
        return Err(ValueError { name, value: entry, reason: Reason::TooMany });
    }
    if entries(value).count() > PATTERNS_MAX {
        return Err(ValueError { name, value, reason: Reason::TooMany });
    }
    Ok(())
}

/// A size in bytes: digits, then optionally `K`, `M`, `G` or `T` (powers of 1024). Zero is refused.
pub fn parse_size(value: &[u8]) -> Option<u64> {
    let (digits, shift) = match value.split_last()? {
        (b'K' | b'k', rest) => (rest, 10),
        (b'M' | b'm', rest) => (rest, 20),
        (b'G' | b'g', rest) => (rest, 30),
        (b'T' | b't', rest) => (rest, 40),
        _ => (value, 0),
    };
    parse_number(digits)?.checked_mul(1 << shift)
}

/// Parses a whole number that is not zero, as for a time in seconds.
pub fn parse_number(digits: &[u8]) -> Option<u64> {
    parse_decimal(digits).filter(|number| *number > 0)
}

/// Parses a whole number: at least one digit, and nothing else.
pub fn parse_decimal(digits: &[u8]) -> Option<u64> {
    let add = |number: u64, byte: &u8| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    };
    if digits.is_empty() { None } else { digits.iter().try_fold(0, add) }
}

/// How long a program waits for a silent flusher or for room in the stage when SHEAF_TIMEOUT is unset, in milliseconds.
pub const TIMEOUT_MS: u64 = 30_000;

/// Reads SHEAF_TIMEOUT as milliseconds.
pub fn parse_timeout_ms(value: &[u8]) -> Option<u64> {
    parse_number(value)?.checked_mul(1000)
}

/// When a call of the program waits until what was written is in the store (SHEAF_DURABLE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durable {
    /// Never.
    Async,
    /// In fsync(2) and fdatasync(2).
    Fsync,
    /// In these, and whenever a file is closed.
    Close,
}

/// Reads SHEAF_DURABLE.
pub fn parse_durable(value: &[u8]) -> Option<Durable> {
    match value {
        b"async" => Some(Durable::Async),
        b"fsync" => Some(Durable::Fsync),
        b"close" => Some(Durable::Close),
        _ => None,
    }
}

/// What finished files become on the parallel file system (SHEAF_LAYOUT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Each node writes to its own aggregates.
    Node,
    /// All nodes write to this many.
    Shared(u32),
    /// Ordinary files at their own paths.
    Files,
}

/// Most files that nodes share.
const SHARED_MAX: u64 = 9999;

/// Reads SHEAF_LAYOUT.
pub fn parse_layout(value: &[u8]) -> Option<Layout> {
    match value.strip_prefix(b"shared:") {
        None if value == b"files" => Some(Layout::Files),
        None => (value == b"node").then_some(Layout::Node),
        Some(count) => {
            let count = parse_number(count).filter(|count| *count <= SHARED_MAX)?;
            u32::try_from(count).ok().map(Layout::Shared)
        }
    }
}

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What needs somebody's attention.
    Error,
    /// What a user should know once.
    Warn,
    /// Starts, ends and publications.
    Info,
    /// Every decision about a checkpoint path.
    Debug,
    /// Every hooked call, with what its path means and why.
    Trace,
}

/// Reads SHEAF_LOG: a level and the file to write to, if one is named.
pub fn parse_log(value: &[u8]) -> Option<(Level, Option<&[u8]>)> {
    let (level, file) = match value.iter().position(|&byte| byte == b',') {
        Some(comma) => (value.get(..comma)?, Some(value.get(comma + 1..)?)),
        None => (value, None),
    };
    let level = match level {
        b"error" => Level::Error,
        b"warn" => Level::Warn,
        b"info" => Level::Info,
        b"debug" => Level::Debug,
        b"trace" => Level::Trace,
        _ => return None,
    };
    if file.is_some_and(|file| file.first() != Some(&b'/')) {
        return None;
    }
    Some((level, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size(b"4096"), Some(4096));
        assert_eq!(parse_size(b"2G"), Some(2 << 30));
        assert_eq!((parse_number(b"600"), parse_number(b"1M"), parse_number(b"")), (Some(600), None, None));
        for refused in ["", "G", "0", "-1", "1.5G", "1GB", "99999999999T"] {
            assert_eq!(parse_size(refused.as_bytes()), None, "{refused}");
        }
    }

    #[test]
    fn times_and_durability() {
        assert_eq!((parse_timeout_ms(b"2"), parse_timeout_ms(b"0"), parse_timeout_ms(b"1s")), (Some(2000), None, None));
        assert_eq!(parse_timeout_ms(b"18446744073709551615"), None);
        assert_eq!((parse_durable(b"close"), parse_durable(b"never")), (Some(Durable::Close), None));
    }

    #[test]
    fn layouts() {
        assert_eq!((parse_layout(b"node"), parse_layout(b"shared:2")), (Some(Layout::Node), Some(Layout::Shared(2))));
        for refused in ["", "shared", "shared:", "shared:0", "shared:10000", "shared:1x", "Node", "node "] {
            assert_eq!(parse_layout(refused.as_bytes()), None, "{refused}");
        }
    }

    #[test]
    fn log_levels() {
        assert_eq!(parse_log(b"debug"), Some((Level::Debug, None)));
        assert_eq!(parse_log(b"trace"), Some((Level::Trace, None)));
        assert_eq!(parse_log(b"info,/tmp/x"), Some((Level::Info, Some(&b"/tmp/x"[..]))));
        assert_eq!(parse_log(b"loud"), None);
        assert_eq!(parse_log(b"info,x"), None);
    }

    #[test]
    fn errors_name_the_variable_the_value_and_what_is_accepted() {
        let error = check_patterns("SHEAF_PATHS", b"/a/**:ckpt/*").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("SHEAF_PATHS") && text.contains("'ckpt/*'") && text.contains("absolute"), "{text}");
        let error = check_directories("SHEAF_STAGE", b"nvme").unwrap_err();
        assert!(error.to_string().contains("absolute directories"), "{error}");
        let many = "/a:".repeat(PATTERNS_MAX + 1);
        assert_eq!(check_patterns("SHEAF_PATHS", many.as_bytes()).unwrap_err().reason, Reason::TooMany);
    }

    #[test]
    fn the_readme_shows_this_table() {
        let mut table = String::from("| variable | accepts | default | meaning |\n| --- | --- | --- | --- |\n");
        for variable in VARIABLES {
            let Variable { name, accepts, default, meaning } = variable;
            table.push_str(&format!("| `{name}` | {accepts} | {default} | {meaning} |\n"));
        }
        let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
        let after = readme.split("<!-- variables -->\n").nth(1).unwrap();
        let shown = after.split("<!-- /variables -->").next().unwrap();
        assert_eq!(shown, table, "put the right-hand table between the markers in README.md");
    }
}
