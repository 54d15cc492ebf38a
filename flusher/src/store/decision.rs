//! A decision: what counts of aggregates whose nodes are lost, the same for everybody who reads the store from then on.
//!
//! Who begins on what another job left decides once, in a file of the store, before anybody acts on what is seen. What is cut
//! off then does not come back by accident; but it is still there, and counts again if all the nodes turn out not to have been
//! lost. A decision is never changed, and two who decide at once about the same aggregates decide alike.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use sheaf_common::layout;

use crate::aggregate::{crc32c, hexadecimal, parse_uuid};
use crate::engine::sync_directory;

/// End of the names of decisions in a store.
pub(super) const SUFFIX: &str = "cut";
const TITLE: &str = "SHEAF-CUT 1";

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// Of the aggregates no later operation counts.
    pub cut_ns: u64,
    /// The stages that were taken for lost.
    pub lost: Vec<[u8; 16]>,
    /// What it is about: each aggregate's uuid, in ascending order, and the sequence that its next segment would have had.
    pub aggregates: Vec<([u8; 16], u64)>,
}

impl Decision {
    /// What it is about.
    pub fn uuids(&self) -> impl Iterator<Item = [u8; 16]> {
        self.aggregates.iter().map(|(uuid, _)| *uuid)
    }

    /// The sequence that the next segment of an aggregate would have had, if it is about this one.
    pub fn next_sequence(&self, uuid: [u8; 16]) -> Option<u64> {
        let place = self.aggregates.binary_search_by_key(&uuid, |(uuid, _)| *uuid).ok()?;
        Some(self.aggregates[place].1)
    }

    /// Its file in the store: named after what it is about.
    pub fn path(&self, store: &Path) -> PathBuf {
        let about: Vec<u8> = self.uuids().flatten().collect();
        let name = layout::hex_name(&about);
        store.join(format!("{}.{SUFFIX}", String::from_utf8_lossy(&name)))
    }

    fn encode(&self) -> String {
        let mut text = format!("{TITLE}\ncut_ns {}\n", self.cut_ns);
        for stage in &self.lost {
            let _ = writeln!(text, "lost {}", hexadecimal(stage));
        }
        for (uuid, next_sequence) in &self.aggregates {
            let _ = writeln!(text, "aggregate {} {next_sequence}", hexadecimal(uuid));
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
        let mut decision =
            Decision { cut_ns: lines.next()?.strip_prefix("cut_ns ")?.parse().ok()?, ..Decision::default() };
        for line in lines {
            match line.split_once(' ')? {
                ("lost", stage) => decision.lost.push(parse_uuid(stage)?),
                ("aggregate", rest) => {
                    let (uuid, next_sequence) = rest.split_once(' ')?;
                    decision.aggregates.push((parse_uuid(uuid)?, next_sequence.parse().ok()?));
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
        let path = self.path(store);
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let aside = store.join(format!(".{:016x}.new", u64::from_ne_bytes(random)));
        let mut file = File::create(&aside)?;
        file.write_all(self.encode().as_bytes())?;
        file.sync_all()?;
        let named = match renameat_with(CWD, &aside, CWD, &path, RenameFlags::NOREPLACE) {
            // Not every network file system can. A second name that is made never replaces one either.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::hard_link(&aside, &path),
            outcome => outcome.map_err(io::Error::from),
        };
        let _ = fs::remove_file(&aside);
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
        Decision { cut_ns: 5, lost: vec![[1; 16]], aggregates: vec![([2; 16], 3), ([4; 16], u64::MAX)] }
    }

    #[test]
    fn a_decision_comes_back_and_is_made_once() {
        let store = tempfile::tempdir().unwrap();
        decision().write(store.path()).unwrap();
        // Another one about the same comes too late.
        Decision { cut_ns: 6, ..decision() }.write(store.path()).unwrap();
        let path = decision().path(store.path());
        assert_eq!(Decision::read(&path).unwrap(), Some(decision()));
        assert_eq!(fs::read_dir(store.path()).unwrap().count(), 1);
        assert_eq!((decision().next_sequence([4; 16]), decision().next_sequence([3; 16])), (Some(u64::MAX), None));
    }

    #[test]
    fn what_is_cut_off_or_changed_is_no_decision() {
        let text = decision().encode();
        for length in 0..text.len() {
            assert_eq!(Decision::parse(&text[..length]), None, "{length} bytes");
        }
        assert_eq!(Decision::parse(&text.replace("cut_ns 5", "cut_ns 6")), None);
    }
}
