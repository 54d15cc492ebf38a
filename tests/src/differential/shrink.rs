//! Makes a failing plan small: leaves out what the failure does not need, within a bounded number of runs.

use std::time::{Duration, Instant};

use super::{Plan, between};

/// Most runs, and the time after which no new one is started.
const RUNS_MAX: usize = 300;
const TIME_MAX: Duration = Duration::from_secs(120);

/// The smallest plan found that still fails. `fails` runs a plan; it must not be fooled by another failure.
pub fn shrink(plan: &Plan, mut fails: impl FnMut(&Plan) -> bool) -> Plan {
    let deadline = Instant::now() + TIME_MAX;
    let mut runs = 0;
    let mut may_try = |candidate: &Plan| {
        runs += 1;
        runs <= RUNS_MAX && Instant::now() < deadline && fails(candidate)
    };
    let mut small = plan.clone();
    let mut chunk = small.lines.len().div_ceil(2);
    while chunk > 0 {
        let before = small.lines.len();
        let mut start = 0;
        while start < small.lines.len() {
            match without(&small, start, chunk) {
                Some(candidate) if may_try(&candidate) => small = candidate,
                _ => start += chunk,
            }
        }
        chunk = if chunk == 1 && small.lines.len() < before { 1 } else { chunk / 2 };
    }
    small
}

/// The plan without some lines; ends of phases stay until single lines are tried, because they make the failure.
fn without(plan: &Plan, start: usize, count: usize) -> Option<Plan> {
    let end = (start + count).min(plan.lines.len());
    let stays = |index: usize| index < start || index >= end || count > 1 && between(&plan.lines[index]).is_some();
    let lines: Vec<String> =
        (0..plan.lines.len()).filter(|index| stays(*index)).map(|index| plan.lines[index].clone()).collect();
    (lines.len() < plan.lines.len()).then_some(Plan { lines })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_what_the_failure_needs() {
        let lines =
            (0..100).map(|number| format!("p0 {number}")).chain(["phase wipe".into(), "p0 end".into()]).collect();
        let needed = ["p0 17", "p0 63", "phase wipe", "p0 end"];
        let fails = |plan: &Plan| needed.iter().all(|line| plan.lines.iter().any(|other| other == line));
        assert_eq!(shrink(&Plan { lines }, fails).lines, needed);
    }
}
