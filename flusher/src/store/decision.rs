//! A decision: what counts of aggregates whose nodes are lost, the same for everybody who reads the store from then on.
//!
//! Who begins on what another job left decides once, in a file of the store, before anybody acts on what is seen. What
//! is cut off then does not come back by accident; but it is still there, and counts again if all the nodes turn out
//! not to have been lost, or somebody asks for all of it. Else a decision is never changed, and two who decide at once
//! about the same aggregates decide alike.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use sheaf_common::layout;

use super::NO_LIMIT;
use super::aside::Aside;
use crate::aggregate::{crc32c, hexadecimal, parse_uuid};
use crate::engine::{give_name, sync_directory};

/// End of the names of decisions in a store.
pub(super) const SUFFIX: &str = "cut";
const TITLE: &str = "SHEAF-CUT 1";

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// The stages that were taken for lost.
    pub lost: Vec<[u8; 16]>,
    /// What it is about, in ascending order.
    pub aggregates: Vec<Decided>,
}

/// What has been decided of one aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Decided {
    /// Which one.
    pub uuid: [u8; 16],
    /// The sequence that its next segment would have had.
    pub next_sequence: u64,
    /// No later operation counts.
    pub limit_ns: u64,
}

impl Decision {
    /// What it is about.
    pub fn uuids(&self) -> impl Iterator<Item = [u8; 16]> {
        self.aggregates.iter().map(|decided| decided.uuid)
    }

    /// The sequence that the next segment of an aggregate would have had, if it is about this one.
    pub fn next_sequence(&self, uuid: [u8; 16]) -> Option<u64> {
        let place = self.aggregates.binary_search_by_key(&uuid, |decided| decided.uuid).ok()?;
        Some(self.aggregates[place].next_sequence)
    }

    /// Its file in the store: named after what it is about.
    pub fn path(&self, store: &Path) -> PathBuf {
        let about: Vec<u8> = self.uuids().flatten().collect();
        let name = layout::hex_name(&about);
        store.join(format!("{}.{SUFFIX}", String::from_utf8_lossy(&name)))
    }

    fn encode(&self) -> String {
        let mut text = format!("{TITLE}\n");
        for stage in &self.lost {
            let _ = writeln!(text, "lost {}", hexadecimal(stage));
        }
        for Decided { uuid, next_sequence, limit_ns } in &self.aggregates {
            let _ = writeln!(text, "aggregate {} {next_sequence} {limit_ns}", hexadecimal(uuid));
        }
        let crc = crc32c(text.as_bytes());
        let _ = writeln!(text, "crc32c {crc:08x}");
        text
    }

    fn parse(text: &str) -> Option<Decision> {
        let (covered, crc) = text.split_at_checked(text.len().checked_sub("crc32c 00000000\n".len())?)?;
        if crc != format!("crc32c {:08x}\n", crc32c(covered.as_bytes())) {
            return None;
        }
        let mut lines = covered.lines();
        if lines.next() != Some(TITLE) {
            return None;
        }
        let mut decision = Decision::default();
        for line in lines {
            match line.split_once(' ')? {
                ("lost", stage) => decision.lost.push(parse_uuid(stage)?),
                ("aggregate", rest) => {
                    let (uuid, rest) = rest.split_once(' ')?;
                    let (next_sequence, limit_ns) = rest.split_once(' ')?;
                    decision.aggregates.push(Decided {
                        uuid: parse_uuid(uuid)?,
                        next_sequence: next_sequence.parse().ok()?,
                        limit_ns: limit_ns.parse().ok()?,
                    });
                }
                _ => return None,
            }
        }
        decision.aggregates.is_sorted().then_some(decision)
    }

    /// Reads a decision. `Ok(None)` for what is none that this version understands.
    ///
    /// # Errors
    /// From the file system.
    pub fn read(path: &Path) -> io::Result<Option<Decision>> {
        let text = io::read_to_string(super::open_file(path)?);
        match text {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
            text => Ok(Decision::parse(&text?)),
        }
    }

    /// Makes it durable, unless the same has been decided already.
    ///
    /// # Errors
    /// From the file system.
    pub fn write(&self, store: &Path) -> io::Result<()> {
        self.write_by(store, give_name)
    }

    /// Takes it back for good: everything counts.
    ///
    /// # Errors
    /// From the file system.
    pub fn take_back(&self, store: &Path) -> io::Result<()> {
        let all = |decided: &Decided| Decided { limit_ns: NO_LIMIT, ..*decided };
        let aggregates = self.aggregates.iter().map(all).collect();
        Decision { aggregates, lost: self.lost.clone() }.write_by(store, |aside, path| fs::rename(aside, path))
    }

    /// Whether it hides anything.
    pub fn is_limit(&self) -> bool {
        self.aggregates.iter().any(|decided| decided.limit_ns != NO_LIMIT)
    }

    fn write_by(&self, store: &Path, give_name: impl Fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
        let mut aside = Aside::create(store)?;
        aside.file.write_all(self.encode().as_bytes())?;
        aside.file.sync_all()?;
        let named = give_name(&aside.path, &self.path(store));
        match named {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => sync_directory(store),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision() -> Decision {
        let decided = |number, next_sequence, limit_ns| Decided { uuid: [number; 16], next_sequence, limit_ns };
        Decision { lost: vec![[1; 16]], aggregates: vec![decided(2, 3, 5), decided(4, u64::MAX, 7)] }
    }

    #[test]
    fn a_decision_comes_back_and_is_made_once() {
        let store = tempfile::tempdir().unwrap();
        decision().write(store.path()).unwrap();
        // Another one about the same comes too late.
        Decision { lost: Vec::new(), ..decision() }.write(store.path()).unwrap();
        let path = decision().path(store.path());
        assert_eq!(Decision::read(&path).unwrap(), Some(decision()));
        assert_eq!(fs::read_dir(store.path()).unwrap().count(), 1);
        decision().take_back(store.path()).unwrap();
        let back = Decision::read(&path).unwrap().unwrap();
        assert!(decision().is_limit() && !back.is_limit() && back.lost == decision().lost);
        assert_eq!((decision().next_sequence([4; 16]), decision().next_sequence([3; 16])), (Some(u64::MAX), None));
    }

    #[test]
    fn what_is_cut_off_or_changed_is_no_decision() {
        let text = decision().encode();
        for length in 0..text.len() {
            assert_eq!(Decision::parse(&text[..length]), None, "{length} bytes");
        }
        assert_eq!(Decision::parse(&text.replace(" 3 5\n", " 3 6\n")), None);
    }
}
