//! What the names of a program's directory may hold when it has died after so many steps.
//!
//! A death between two steps leaves exactly one state; a death within a step one of the step's few. Only a file that
//! was being written in place may be incomplete, as it may be without Sheaf.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use super::{Plan, Step};

/// What a name may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    /// These bytes.
    Whole(Arc<[u8]>),
    /// A beginning of these bytes, with zeros where nothing was written yet. As many as the number says are old: they
    /// are there in any case.
    Unfinished(Arc<[u8]>, usize),
    /// A symbolic link.
    Link(String),
}

/// Names and what they hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    names: BTreeMap<String, Content>,
}

/// What was found in a directory.
#[derive(Debug)]
pub struct Found {
    names: BTreeMap<String, Content>,
}

impl State {
    /// After the first `count` steps of a plan.
    pub fn after(plan: &Plan, count: usize) -> State {
        let older = plan.older.iter().map(|(name, bytes)| (name.clone(), Content::Whole(bytes.clone())));
        let mut state = State { names: older.collect() };
        plan.steps[..count].iter().for_each(|step| state.take(step));
        state
    }

    /// Names that are files.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let files = self.names.iter().filter(|(_, content)| matches!(content, Content::Whole(_)));
        files.map(|(name, _)| name.as_str())
    }

    /// The bytes of a file.
    pub fn bytes(&self, name: &str) -> Option<&Arc<[u8]>> {
        match self.names.get(name) {
            Some(Content::Whole(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// Names that are one file in this plan share their bytes; `Append` changes them all.
    fn take(&mut self, step: &Step) {
        match step {
            Step::Save(name, bytes, _) => self.fill(name, bytes.clone()),
            Step::Replace(name, bytes, _) => drop(self.names.insert(name.clone(), Content::Whole(bytes.clone()))),
            Step::Append(name, more) => {
                let old = self.bytes(name).map_or(&[][..], |bytes| bytes);
                self.fill(name, [old, more].concat().into());
            }
            Step::Rename(from, to) => {
                if let Some(content) = self.names.get(from).cloned()
                    && !self.are_one(from, to)
                {
                    self.names.remove(from);
                    self.names.insert(to.clone(), content);
                }
            }
            Step::Remove(name) => drop(self.names.remove(name)),
            Step::Link(from, to) => {
                if let Some(content) = self.names.get(from).cloned() {
                    self.names.insert(to.clone(), content);
                }
            }
            Step::Point(name, text) => drop(self.names.insert(name.clone(), Content::Link(text.clone()))),
            Step::Wait => {}
        }
    }

    /// Two names of one file: they share their bytes in memory.
    fn are_one(&self, one: &str, other: &str) -> bool {
        match (self.bytes(one), self.bytes(other)) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Puts bytes into the file of this name, under all its names.
    fn fill(&mut self, name: &str, bytes: Arc<[u8]>) {
        self.put(name, Content::Whole(bytes));
    }

    fn put(&mut self, name: &str, content: Content) {
        let names: Vec<String> = self.names.keys().filter(|other| self.are_one(name, other)).cloned().collect();
        for other in names {
            self.names.insert(other, content.clone());
        }
        self.names.insert(name.to_string(), content);
    }

    fn with(&self, name: &str, content: Content) -> State {
        let mut state = self.clone();
        state.put(name, content);
        state
    }

    /// All that may be there while `step` is under way, besides this state and the next one.
    fn within(&self, step: &Step) -> Vec<State> {
        match step {
            Step::Save(name, bytes, _) => vec![self.with(name, Content::Unfinished(bytes.clone(), 0))],
            Step::Append(name, more) => {
                let old = self.bytes(name).map_or(&[][..], |bytes| bytes);
                vec![self.with(name, Content::Unfinished([old, more].concat().into(), old.len()))]
            }
            Step::Replace(name, bytes, _) => {
                vec![self.with(&format!("{name}.part"), Content::Unfinished(bytes.clone(), 0))]
            }
            Step::Point(name, text) => vec![self.with(&format!("{name}.part"), Content::Link(text.clone()))],
            Step::Rename(..) | Step::Remove(_) | Step::Link(..) | Step::Wait => Vec::new(),
        }
    }

    fn allows(&self, found: &Found) -> Result<(), String> {
        let names: BTreeSet<_> = self.names.keys().chain(found.names.keys()).collect();
        names.into_iter().try_for_each(|name| self.allows_name(name, found))
    }

    fn allows_name(&self, name: &str, found: &Found) -> Result<(), String> {
        let (allowed, found) = (self.names.get(name), found.names.get(name));
        let fits = match (allowed, found) {
            (Some(Content::Unfinished(whole, old)), Some(Content::Whole(bytes))) => is_beginning(whole, *old, bytes),
            (allowed, found) => allowed == found,
        };
        if fits {
            return Ok(());
        }
        Err(format!("{name}: {} belongs there, {} is", describe(allowed), describe(found)))
    }
}

fn is_beginning(whole: &[u8], old: usize, bytes: &[u8]) -> bool {
    let may_be = |(at, byte): (usize, &u8)| *byte == whole[at] || at >= old && *byte == 0;
    (old..=whole.len()).contains(&bytes.len()) && bytes.iter().enumerate().all(may_be)
}

fn describe(content: Option<&Content>) -> String {
    let start = |bytes: &[u8]| format!("{:02x?}", &bytes[..bytes.len().min(8)]);
    match content {
        None => "nothing".to_string(),
        Some(Content::Whole(bytes)) => format!("{} bytes {}", bytes.len(), start(bytes)),
        Some(Content::Unfinished(bytes, old)) => format!("{old} to {} bytes {}", bytes.len(), start(bytes)),
        Some(Content::Link(text)) => format!("a link to {text}"),
    }
}

impl Found {
    /// Reads everything in a directory but the store.
    ///
    /// # Errors
    /// The first call that failed, with the name in the message.
    pub fn read(directory: &Path) -> io::Result<Found> {
        let mut names = BTreeMap::new();
        for entry in fs::read_dir(directory)? {
            let (name, path) = entry.map(|entry| (entry.file_name(), entry.path()))?;
            if name == ".sheaf" {
                continue;
            }
            let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            let content = match fs::symlink_metadata(&path).map_err(named)?.is_symlink() {
                true => Content::Link(fs::read_link(&path).map_err(named)?.to_string_lossy().into_owned()),
                false => Content::Whole(fs::read(&path).map_err(named)?.into()),
            };
            names.insert(name.to_string_lossy().into_owned(), content);
        }
        Ok(Found { names })
    }
}

/// Finds out after how many of a plan's steps a directory looks as it does: a number in `counts`, which may have died
/// within the next step.
///
/// # Errors
/// What is wrong, for each of `counts`.
pub fn judge(plan: &Plan, found: &Found, counts: RangeInclusive<usize>) -> Result<usize, String> {
    let mut problems = Vec::new();
    for count in counts.rev() {
        let state = State::after(plan, count);
        let verdict = state.allows(found);
        if verdict.is_ok() {
            return Ok(count);
        }
        problems.extend(verdict.err().map(|problem| format!("after {count} steps: {problem}")));
        let within = plan.steps.get(count).map_or_else(Vec::new, |step| state.within(step));
        if within.iter().any(|state| state.allows(found).is_ok()) {
            return Ok(count);
        }
    }
    Err(problems.join("\n"))
}

/// Whether each name is as it was after a number in `counts` of a plan's steps, or within the next one: another number
/// for each, as when a node is lost whose files take their places one by one.
///
/// # Errors
/// What is wrong.
pub fn judge_names(plan: &Plan, found: &Found, counts: RangeInclusive<usize>) -> Result<(), String> {
    let mut states = Vec::new();
    for count in counts.rev() {
        let state = State::after(plan, count);
        states.extend(plan.steps.get(count).map_or_else(Vec::new, |step| state.within(step)));
        states.push(state);
    }
    let names: BTreeSet<_> = states.iter().flat_map(|state| state.names.keys()).chain(found.names.keys()).collect();
    for name in names {
        let verdicts: Vec<_> = states.iter().map(|state| state.allows_name(name, found)).collect();
        if verdicts.iter().all(Result::is_err) {
            return Err(verdicts.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("\n"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campaign::Method;

    fn found(names: &[(&str, &[u8])]) -> Found {
        let content = |bytes: &[u8]| Content::Whole(bytes.into());
        Found { names: names.iter().map(|(name, bytes)| (name.to_string(), content(bytes))).collect() }
    }

    #[test]
    fn torn_and_lost_files_are_found() {
        let bytes = |text: &str| Arc::from(text.as_bytes());
        let steps = vec![
            Step::Replace("a".into(), bytes("first"), Method::Write),
            Step::Save("b".into(), bytes("second"), Method::Write),
            Step::Rename("a".into(), "c".into()),
        ];
        let plan = Plan { program: super::super::Program::Mixes, older: Vec::new(), steps };
        assert_eq!(judge(&plan, &found(&[]), 0..=0), Ok(0));
        assert_eq!(judge(&plan, &found(&[("a.part", b"fi\0s")]), 0..=0), Ok(0));
        assert!(judge(&plan, &found(&[("a", b"fi")]), 0..=1).is_err());
        assert_eq!(judge(&plan, &found(&[("a", b"first"), ("b", b"sec")]), 1..=1), Ok(1));
        assert!(judge(&plan, &found(&[("a", b"first"), ("b", b"sec")]), 2..=2).is_err());
        assert_eq!(judge(&plan, &found(&[("a", b"first")]), 0..=3), Ok(1));
        assert!(judge(&plan, &found(&[("b", b"second")]), 2..=3).is_err(), "neither under the old name nor the new");
        assert_eq!(judge(&plan, &found(&[("b", b"second"), ("c", b"first")]), 2..=3), Ok(3));
        assert_eq!(judge_names(&plan, &found(&[("b", b"second")]), 0..=2), Ok(()), "each by itself");
        assert!(judge_names(&plan, &found(&[("b", b"second")]), 1..=2).is_err(), "the first was there in any case");
        assert!(judge_names(&plan, &found(&[("a", b"fir"), ("b", b"second")]), 1..=2).is_err(), "torn");
    }
}
