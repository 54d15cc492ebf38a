//! Performs one phase of a plan in the current directory: `differential PLAN PHASE ANSWERS [CAPTURED]`.
//!
//! Every answer is appended to ANSWERS, in the order of the plan's lines. CAPTURED are the answers of the captured
//! side: given, this is the native side, and what was skipped there is skipped here. Three processes take turns;
//! nothing may depend on how long anything takes, and no descriptor of this program's own may get a number between the
//! plan's.

mod answer;
mod directories;
mod files;
mod guard;
mod mappings;
mod names;
mod turns;
mod worker;

use std::fs::{self, OpenOptions};
use std::path::Path;

use sheaf_tests::differential::Plan;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (plan, phase, answers, captured) = match &arguments[..] {
        [plan, phase, answers] => (plan, phase, answers, None),
        [plan, phase, answers, captured] => (plan, phase, answers, Some(captured)),
        _ => panic!("usage: differential PLAN PHASE ANSWERS [CAPTURED]"),
    };
    let text = fs::read_to_string(plan).expect("the plan is readable");
    let plan: Plan = text.parse().expect("any text is a plan");
    let phases = plan.phases();
    let lines = phases[phase.parse::<usize>().expect("a number")].lines;
    let hints = captured.map(|path| read_lines(Path::new(path)));
    let log = OpenOptions::new().append(true).create(true).open(answers).expect("a place for the answers");
    turns::play(lines, hints.as_deref(), log);
}

fn read_lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("the captured side's answers are readable");
    text.lines().map(str::to_string).collect()
}
