//! Random histories by several processes are answered alike with and without Sheaf; see `sheaf_tests::differential`.
//!
//! A failure leaves `target/differential/SEED/`: the plan, made small if it fails again, and all that the sides had.
//! `SHEAF_TEST_SEED` runs that one plan again, `SHEAF_TEST_PLAN` one from a file. Every run performs the same plans, so
//! that a change is judged by its own merits; `SHEAF_TEST_FIRST_SEED` chooses others, for a search.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use sheaf_tests::differential::Plan;
use sheaf_tests::differential::generate;
use sheaf_tests::differential::shrink::shrink;
use sheaf_tests::differential::sides::{Setting, compare, failures};

/// Operations of one run, both sides together: a million with Sheaf.
const OPERATIONS: usize = 2_000_000;
/// Phases of a plan, the last of which only looks, and operations of the others.
const PHASES: usize = 5;
const OPERATIONS_OF_PHASE: usize = 2000;
/// The seed of the first plan; the others follow.
const FIRST_SEED: u64 = 20_000;
/// Plans that are performed at the same time.
const THREADS: usize = 2;

/// Performs a plan in the setting that goes with a seed; what fails is made small, kept and reported.
fn check(name: &str, plan: &Plan, seed: u64, done: &AtomicUsize, skipped: &AtomicUsize) {
    let (directory, setting) = (failures().join(name), Setting::of(seed));
    let difference = match compare(plan, setting, Some(&directory)) {
        Ok(counts) => {
            done.fetch_add(counts.operations, Ordering::Relaxed);
            skipped.fetch_add(counts.skipped, Ordering::Relaxed);
            return;
        }
        Err(difference) => difference,
    };
    let keep = |name: &str, plan: &Plan| fs::write(directory.join(name), format!("# seed {seed}\n{plan}"));
    keep("failed.plan", plan).expect("the build directory is writable");
    let kind = difference.kind();
    let fails = |plan: &Plan| compare(plan, setting, None).is_err_and(|found| found.kind() == kind);
    let small = if (0..3).any(|_| fails(plan)) { Some(shrink(plan, fails)) } else { None };
    let place = directory.display();
    let report = match small {
        Some(small) => {
            keep("small.plan", &small).expect("the build directory is writable");
            let again = compare(&small, setting, None).err().map_or("(not always)".to_string(), |found| found.what);
            format!("made small ({place}/small.plan):\n{small}{again}")
        }
        None => format!("it did not fail again in three runs; {place}/failed.plan"),
    };
    panic!("{name}, {setting:?}, phase {}: {}\n{report}", difference.phase, difference.what);
}

fn seed_of(text: &str) -> u64 {
    let seed = text.lines().find_map(|line| line.strip_prefix("# seed ")).and_then(|text| text.trim().parse().ok());
    seed.unwrap_or(0)
}

fn check_file(path: &Path) {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let plan = text.parse().expect("any text is a plan");
    let (done, skipped) = Default::default();
    let name = path.file_stem().expect("a file has a name").to_string_lossy();
    check(&name, &plan, seed_of(&text), &done, &skipped);
}

/// Plans that failed once. `# seed N` in them chooses the setting.
#[test]
fn plans_that_failed_once() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential/plans");
    let mut paths: Vec<_> =
        fs::read_dir(directory).expect("the plans").map(|entry| entry.expect("a plan").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "there are plans");
    paths.iter().for_each(|path| check_file(path));
}

#[test]
fn random_plans() {
    if let Some(path) = std::env::var_os("SHEAF_TEST_PLAN") {
        return check_file(Path::new(&path));
    }
    let number_in = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let one = number_in("SHEAF_TEST_SEED");
    let next_seed = AtomicU64::new(one.or(number_in("SHEAF_TEST_FIRST_SEED")).unwrap_or(FIRST_SEED));
    let (done, skipped, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let perform = || {
        let mut is_first = true;
        while done.load(Ordering::Relaxed) < OPERATIONS
            && !failed.load(Ordering::Relaxed)
            && (one.is_none() || is_first)
        {
            is_first = false;
            let seed = next_seed.fetch_add(1, Ordering::Relaxed);
            println!("seed {seed}");
            let plan = generate::plan(seed, PHASES, OPERATIONS_OF_PHASE);
            let failing = Failing(&failed);
            check(&seed.to_string(), &plan, seed, &done, &skipped);
            std::mem::forget(failing);
        }
    };
    std::thread::scope(|scope| (0..if one.is_some() { 1 } else { THREADS }).for_each(|_| drop(scope.spawn(perform))));
    let (done, skipped) = (done.into_inner(), skipped.into_inner());
    println!("{done} operations, {skipped} of them not comparable");
    assert!(skipped * 10 < done, "too much is not compared");
}

/// Tells the other threads when a check panics.
struct Failing<'a>(&'a AtomicBool);

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
