//! A program of which everything is known that it may leave behind when it dies: for the campaign of kills.
//!
//! A [`Plan`] is made from a seed alone, so that the program, the test and whoever looks at the remains all know it.
//! What may be there after a death is said by [`model`]; what the program really does stands in [`perform`].

pub mod model;
pub mod perform;

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// What kind of program it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// Writes each checkpoint under a temporary name and renames it to one of its own.
    Renames,
    /// Keeps two checkpoints and overwrites the older one by turns.
    Alternates,
    /// Keeps the last three: `state.2` goes, `state.1` becomes `state.2`, and so on.
    Rotates,
    /// Opens the same file with `O_TRUNC` for each checkpoint.
    Rewrites,
    /// Appends to one file.
    Appends,
    /// As `Alternates`, but every checkpoint is written by a forked child, as databases do.
    Forks,
    /// Everything that the others do, links, and removals, in no order.
    Mixes,
}

/// All of them.
pub const PROGRAMS: [Program; 7] = [
    Program::Renames,
    Program::Alternates,
    Program::Rotates,
    Program::Rewrites,
    Program::Appends,
    Program::Forks,
    Program::Mixes,
];

/// How bytes get into a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// write(2), in pieces.
    Write,
    /// pwrite(2), in pieces.
    Pwrite,
    /// A C stream.
    Stream,
    /// A shared mapping.
    Mapping,
}

/// One thing that a program does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Truncates or makes a file, writes it and closes it.
    Save(String, Arc<[u8]>, Method),
    /// Saves under `NAME.part` and renames that.
    Replace(String, Arc<[u8]>, Method),
    /// Adds to the end of a file.
    Append(String, Arc<[u8]>),
    /// rename(2).
    Rename(String, String),
    /// unlink(2).
    Remove(String),
    /// link(2) of the first name as the second.
    Link(String, String),
    /// A symbolic link with this text, made aside and renamed: `latest`.
    Point(String, String),
    /// `sheaf wait`: from here on what came before is acknowledged.
    Wait,
}

/// What a program does, from its seed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its kind.
    pub program: Program,
    /// Files that are there before it starts, on the parallel file system itself.
    pub older: Vec<(String, Arc<[u8]>)>,
    /// What it does, one after the other.
    pub steps: Vec<Step>,
}

const METHODS: [Method; 4] = [Method::Write, Method::Pwrite, Method::Stream, Method::Mapping];

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64) -> Plan {
        let mut random = StdRng::seed_from_u64(seed);
        let program = PROGRAMS[random.random_range(0..PROGRAMS.len())];
        // What changes without O_TRUNC, or loses its name, is changed on the parallel file system at once.
        let replaced: &[&str] = match program {
            Program::Renames => &["state-0", "state-3"],
            Program::Alternates | Program::Forks => &["state.1"],
            Program::Rewrites => &["state"],
            Program::Rotates | Program::Appends | Program::Mixes => &[],
        };
        let replaced = replaced.iter().map(|name| (name.to_string(), content(&mut random)));
        let older = replaced.collect();
        let mut plan = Plan { program, older, steps: Vec::new() };
        for number in 0..random.random_range(6..20) {
            plan.checkpoint(number, &mut random);
            if random.random_bool(0.2) {
                plan.steps.push(Step::Wait);
            }
        }
        plan
    }

    /// Adds what one checkpoint of this kind of program takes.
    fn checkpoint(&mut self, number: usize, random: &mut StdRng) {
        let method = METHODS[random.random_range(0..METHODS.len())];
        let bytes = content(random);
        let state = |number: usize| format!("state.{number}");
        match self.program {
            Program::Renames => {
                self.steps.push(Step::Replace(format!("state-{number}"), bytes, method));
                self.steps.push(Step::Point("latest".to_string(), format!("state-{number}")));
            }
            Program::Alternates | Program::Forks => self.steps.push(Step::Save(state(number % 2), bytes, method)),
            Program::Rotates => {
                let known = self.names();
                let old = (0..2).rev().filter(|index| known.contains(&state(*index)));
                self.steps.extend(old.map(|index| Step::Rename(state(index), state(index + 1))));
                self.steps.push(Step::Save(state(0), bytes, method));
            }
            Program::Rewrites => self.steps.push(Step::Save("state".to_string(), bytes, method)),
            Program::Appends => self.steps.push(Step::Append("log".to_string(), bytes)),
            Program::Mixes => {
                let step = self.any_step(bytes, method, random);
                self.steps.push(step);
            }
        }
    }

    fn any_step(&self, bytes: Arc<[u8]>, method: Method, random: &mut StdRng) -> Step {
        let known = self.names();
        let new = format!("state-{}", random.random_range(0..6));
        let old = if known.is_empty() { None } else { Some(known[random.random_range(0..known.len())].clone()) };
        match (random.random_range(0..8), old) {
            (0 | 1, _) | (_, None) => Step::Save(new, bytes, method),
            (2, _) => Step::Replace(new, bytes, method),
            (3, Some(old)) => Step::Append(old, bytes),
            (4, Some(old)) if old != new => Step::Rename(old, new),
            (5, Some(old)) => Step::Remove(old),
            (6, Some(old)) if !known.contains(&new) => Step::Link(old, new),
            (_, Some(old)) => Step::Point("latest".to_string(), old),
        }
    }

    /// Names of files after all steps so far.
    fn names(&self) -> Vec<String> {
        let state = model::State::after(self, self.steps.len());
        state.files().map(str::to_string).collect()
    }
}

/// Mostly small, now and then larger, sometimes empty.
fn content(random: &mut StdRng) -> Arc<[u8]> {
    let length = match random.random_range(0..12) {
        0 => 0,
        1 | 2 => random.random_range(32_000..300_000),
        _ => random.random_range(1..9000),
    };
    let mut words: u64 = random.random();
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // Any generator does, if it is fast in a build for development.
        words = words.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // No zeros: what was not written yet can be told from what was.
        bytes.extend_from_slice(&(words | 0x0101_0101_0101_0101).to_ne_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}
