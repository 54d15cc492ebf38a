//! Who acts when: each process performs its own lines, and hands the turn over when the next line is another's.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::process::exit;
use std::sync::atomic::AtomicU64;

use sheaf_tests::differential::{PROCESSES, owner};

use crate::answer::Stop;
use crate::guard::{OPEN_MAX, Openings};
use crate::worker::Worker;

/// What all processes share.
struct Stage<'a> {
    lines: &'a [String],
    /// The captured side's answers; only the native side has them.
    hints: Option<&'a [String]>,
    /// One pipe for each process: a byte in it is the turn.
    turns: Vec<(PipeReader, PipeWriter)>,
    log: File,
}

/// Performs the lines in processes of their own and ends this one with their status.
pub fn play(lines: &[String], hints: Option<&[String]>, log: File) {
    let turns = (0..PROCESSES).map(|_| io::pipe().expect("a pipe")).collect();
    let stage = Stage { lines, hints, turns, log };
    let openings = Openings::shared();
    let children: Vec<_> = (0..PROCESSES).map(|number| fork_player(&stage, number, openings)).collect();
    if let Some(first) = lines.first() {
        stage.pass_turn_to(owner(first));
    }
    for _ in 0..PROCESSES {
        // The first that fails takes the others along: they would wait for their turn for ever.
        if !is_success(wait_for(-1)) {
            for child in &children {
                // SAFETY: kill takes two integers; these are children of this process, none of them waited for twice.
                unsafe { libc::kill(*child, libc::SIGKILL) };
            }
            exit(1);
        }
    }
}

fn fork_player(stage: &Stage, number: usize, openings: &'static [AtomicU64]) -> libc::pid_t {
    let child = fork();
    if child != 0 {
        return child;
    }
    let mine: Vec<usize> = (0..stage.lines.len()).filter(|index| owner(&stage.lines[*index]) == number).collect();
    let own = &openings[number * OPEN_MAX..(number + 1) * OPEN_MAX];
    let worker = Worker::new(Openings { all: openings, own }, stage.hints.is_some());
    Player { stage, worker, unsaid: Vec::new(), has_turn: false }.perform(&mine);
    exit(0)
}

/// fork(2): this program has one thread, so the child may go on as it likes.
fn fork() -> libc::pid_t {
    // SAFETY: see above.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", io::Error::last_os_error());
    child
}

fn wait_for(child: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: the status is written to a local variable.
    let ended = unsafe { libc::waitpid(child, &mut status, 0) };
    assert!(ended > 0, "waitpid: {}", io::Error::last_os_error());
    status
}

fn is_success(status: i32) -> bool {
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

impl Stage<'_> {
    fn pass_turn_to(&self, process: usize) {
        (&self.turns[process].1).write_all(b".").expect("a pipe that this process itself can read");
    }
}

struct Player<'a> {
    stage: &'a Stage<'a>,
    worker: Worker,
    /// Answers that are not yet in the log.
    unsaid: Vec<u8>,
    has_turn: bool,
}

impl Player<'_> {
    fn perform(&mut self, mine: &[usize]) {
        let mut rest = mine;
        while let Some((index, after)) = rest.split_first() {
            self.await_turn(*index);
            let words: Vec<&str> = self.stage.lines[*index].split(' ').skip(1).collect();
            match words[..] {
                ["fork", count] => {
                    let count = count.parse::<usize>().expect("a number").min(after.len());
                    self.answer("in a child");
                    self.perform_in_a_child(*index, &after[..count]);
                    rest = &after[count..];
                    continue;
                }
                ["wait" | "kill"] => self.ask(words[0]),
                _ => self.operation(*index, &words),
            }
            self.finish(*index);
            rest = after;
        }
    }

    fn operation(&mut self, index: usize, words: &[&str]) {
        let skipped = self.stage.hints.and_then(|hints| hints.get(index)).filter(|hint| hint.starts_with("skipped"));
        let answer = match skipped {
            Some(hint) => {
                self.worker.skip(words);
                hint.clone()
            }
            None => match self.worker.perform(words) {
                Ok(answer) => answer,
                Err(Stop::Errno(number)) => format!("errno {number}"),
                Err(Stop::Skipped(why)) => {
                    self.worker.skip(words);
                    format!("skipped: {why}")
                }
            },
        };
        self.answer(&answer);
    }

    /// The child takes this process's turns for a while; this process waits for its end.
    fn perform_in_a_child(&mut self, index: usize, lines: &[usize]) {
        self.say();
        let child = fork();
        if child == 0 {
            self.finish(index);
            self.perform(lines);
            self.say();
            exit(0);
        }
        if !is_success(wait_for(child)) {
            exit(1);
        }
        self.has_turn = false;
        let last = lines.last().copied().unwrap_or(index);
        self.has_turn = self.next_owner(last) == Some(owner(&self.stage.lines[index]));
        self.worker.announce_all();
    }

    fn next_owner(&self, index: usize) -> Option<usize> {
        self.stage.lines.get(index + 1).map(|line| owner(line))
    }

    fn answer(&mut self, text: &str) {
        self.unsaid.extend_from_slice(text.as_bytes());
        self.unsaid.push(b'\n');
    }

    fn say(&mut self) {
        (&self.stage.log).write_all(&self.unsaid).expect("the log is writable");
        self.unsaid.clear();
    }

    fn await_turn(&mut self, index: usize) {
        if !self.has_turn {
            let process = owner(&self.stage.lines[index]);
            (&self.stage.turns[process].0).read_exact(&mut [0]).expect("a pipe that this process itself can write");
            self.has_turn = true;
        }
    }

    /// After a line: its successor may be another's, or nobody's.
    fn finish(&mut self, index: usize) {
        let next = self.next_owner(index);
        if next != Some(owner(&self.stage.lines[index])) {
            self.say();
            self.has_turn = false;
        }
        if let Some(next) = next.filter(|_| !self.has_turn) {
            self.stage.pass_turn_to(next);
        }
    }

    /// Has the test do something to Sheaf, on the captured side.
    fn ask(&mut self, what: &str) {
        if self.stage.hints.is_none() {
            println!("{what}");
            io::stdin().read_exact(&mut [0]).expect("the test answers");
        }
        self.answer(what);
    }
}
