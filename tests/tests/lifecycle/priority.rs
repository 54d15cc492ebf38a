//! How urgently the flusher's threads run, and where: what programs wait for must not stand behind a job that computes on
//! all processors.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use sheaf_tests::{Engine, Scene, process};

/// By how much those that publish stand back.
const NICE: i64 = 10;

/// The name of a thread and its nice value, field 19 of its `stat` (proc(5)). `None` when it has ended.
fn priority(thread: &Path) -> Option<(String, i64)> {
    let text = fs::read_to_string(thread.join("stat")).ok()?;
    let (name, fields) = text.rsplit_once(')').expect("the name in parentheses");
    let name = name.split_once('(').expect("the name in parentheses").1;
    let nice = fields.split_whitespace().nth(16).expect("19 fields").parse().expect("a number");
    Some((name.to_owned(), nice))
}

/// The processors that a thread may run on. `None` when it has ended.
fn processors(thread: &Path) -> Option<String> {
    let text = fs::read_to_string(thread.join("status")).ok()?;
    Some(text.lines().find(|line| line.starts_with("Cpus_allowed:")).expect("the kernel says so").to_owned())
}

#[test]
fn only_what_publishes_stands_back() {
    let scene = Scene::with_further_tier(Engine::IoUring);
    let gate = scene.gate();
    let mut program = scene.preloaded_command("taskset");
    program.args(["-c", "0", "bash", "-c", "echo state >ckpt/state; : >written; read -r line <gate"]);
    let program = process::start(&mut program).await_file(&scene.captured_directory().join("written"));
    let [flusher] = scene.flushers()[..] else { panic!("one flusher serves the program") };
    let (flusher, own) = (format!("/proc/{flusher}"), Path::new("/proc/self"));
    let tasks = fs::read_dir(Path::new(&flusher).join("task")).expect("it lives");
    // Those of clients come and go.
    let tasks: Vec<_> = tasks.filter_map(|task| Some(task.ok()?.path())).collect();
    let named: BTreeMap<String, i64> = tasks.iter().filter_map(|task| priority(task)).collect();
    let nice = priority(own).expect("it is this one").1;
    for (name, expected) in
        [("flusher", nice + NICE), ("spool", nice + NICE), ("watcher", nice), ("reader", nice), ("leases", nice)]
    {
        assert_eq!(named.get(name), Some(&expected.min(19)), "{name} of {named:?}");
    }
    assert_eq!(priority(Path::new(&flusher)).expect("it lives").1, nice, "who takes questions");
    for found in tasks.iter().filter_map(|task| processors(task)) {
        assert_eq!(Some(found), processors(own), "not only those of the program");
    }
    fs::write(gate, "\n").expect("the program reads it");
    program.finish().expect_success();
}
