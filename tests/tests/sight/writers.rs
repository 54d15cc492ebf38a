//! Several nodes that write to one file: what each has published is a part, and nobody is given a part for the whole.

use std::process::Output;

use super::agents::{Agent, Job};
use sheaf_tests::process;

const BLOCK: usize = 1 << 16;

/// Writes blocks of a shared file as MPI-IO does: each process its own, in one file that all open.
fn write_blocks(agent: &mut Agent, path: &str, letter: char, blocks: &str) {
    let write = format!("[os.pwrite(file, b'{letter}' * {BLOCK}, block * {BLOCK}) for block in {blocks}]");
    agent.act(&format!(
        "(lambda file: ({write}, os.close(file)) and None)(os.open('{path}', os.O_CREAT | os.O_WRONLY))"
    ));
}

fn tool(job: &Job, arguments: &[&str]) -> Output {
    let mut command = job.scene.sheaf_command();
    command.args(arguments).output().expect("it is built")
}

fn store(job: &Job) -> String {
    job.scene.store().display().to_string()
}

fn publish(job: &Job, nodes: &[&str]) {
    for node in nodes {
        job.sheaf(node, &["wait"]).expect_success();
    }
}

/// Whether `sheaf verify` finds that both nodes have written a file, and nothing else.
fn assert_contested(job: &Job, path: &str, nodes: [&str; 2]) {
    let output = tool(job, &["verify", "--json", &store(job)]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON text");
    assert_eq!((output.status.code(), &report["clean"]), (Some(1), &serde_json::Value::Bool(false)), "{report}");
    let contested = report["contested"].as_array().expect("a list");
    let text = contested[0].as_str().expect("words");
    assert!(contested.len() == 1 && [path, nodes[0], nodes[1]].iter().all(|word| text.contains(word)), "{report}");
    let damaged = |report: &serde_json::Value| report["damage"].as_array().is_none_or(|damage| !damage.is_empty());
    assert!(!report["aggregates"].as_array().expect("a list").iter().any(damaged), "{report}");
}

fn absolute(job: &Job, name: &str) -> String {
    job.scene.checkpoints().join(name).display().to_string()
}

#[test]
fn parts_of_a_file_are_not_the_file() {
    let job = Job::new(&[]);
    let (mut here, mut there) = (job.agent("here"), job.agent("there"));
    here.act("write('ckpt/own', 'of here')");
    write_blocks(&mut here, "ckpt/shared", 'h', "[0, 2]");
    write_blocks(&mut there, "ckpt/shared", 't', "[1, 3]");
    // What a node has written itself it can read.
    assert_eq!(there.ask(&format!("read('ckpt/shared')[{BLOCK}:{BLOCK} + 3]")), "'ttt'");
    publish(&job, &["here", "there"]);
    assert_contested(&job, &absolute(&job, "shared"), ["here", "there"]);
    drop((here, there));
    job.scene.wipe_stage();

    let mut next = job.agent("next");
    assert_eq!(next.ask(&format!("os.stat('ckpt/shared').st_size == 4 * {BLOCK}")), "True");
    assert_eq!(next.ask("read('ckpt/shared')"), "EIO");
    assert_eq!(next.ask("read('ckpt/own')"), "'of here'");
    let state = job.sheaf("next", &["status", "--json"]).expect_success().text();
    assert!(state.contains("(here, there)"), "{state}");
    let shared = absolute(&job, "shared");
    let output = tool(&job, &["cat", &store(&job), &shared]);
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    let extracted = job.scene.root().join("extracted");
    let output = tool(&job, &["extract", "-C", &extracted.display().to_string(), &store(&job)]);
    assert!(!output.status.success(), "{output:?}");
    let names = tool(&job, &["ls", "--json", &store(&job)]).stdout;
    let names: serde_json::Value = serde_json::from_slice(&names).expect("one JSON text");
    let contested = names.as_array().expect("a list").iter().filter(|name| name["contested"] == true);
    assert_eq!(contested.map(|name| name["path"].as_str().expect("a path")).collect::<Vec<_>>(), [&shared]);
    // Each part can be had by itself.
    for (node, letter) in [("here", b'h'), ("there", b't')] {
        let aggregates = job.scene.store_aggregates();
        let of_node = |path: &&std::path::PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{node}-")))
        };
        let aggregate = aggregates.iter().find(of_node).expect("it has published").display().to_string();
        let part = process::run(job.scene.sheaf_command().args(["cat", &aggregate, &shared])).expect_success().stdout;
        assert_eq!(part.iter().filter(|byte| **byte == letter).count(), 2 * BLOCK, "{node}");
    }
    // A new file of the name is whole, whatever there was.
    next.act("os.remove('ckpt/shared')");
    next.act("write('ckpt/shared', 'anew')");
    publish(&job, &["next"]);
    assert_eq!(job.agent("third").ask("read('ckpt/shared')"), "'anew'");
    job.scene.verify();
}

/// The parts may be published long after each other, and be in one order or the other.
#[test]
fn a_stub_that_turns_out_to_be_a_part() {
    let job = Job::new(&[("SHEAF_TIMEOUT", "1")]);
    let (mut here, mut there) = (job.agent("here"), job.agent("there"));
    let mut reader = job.agent("reader");
    here.act("write('ckpt/own', '')");
    there.act("write('ckpt/other', '')");
    publish(&job, &["here", "there"]);
    job.scene.stop_flushers_in(&job.stage("here"));
    write_blocks(&mut here, "ckpt/shared", 'h', "[0, 2]");
    write_blocks(&mut there, "ckpt/shared", 't', "[1, 3]");
    publish(&job, &["there"]);
    assert_eq!(reader.ask(&format!("os.stat('ckpt/shared').st_size == 4 * {BLOCK}")), "True");
    job.scene.continue_flushers_in(&job.stage("here"));
    publish(&job, &["here"]);
    // Who misses a name has the store looked at.
    assert_eq!(reader.ask("os.path.exists('ckpt/none')"), "False");
    assert_eq!(reader.ask("read('ckpt/shared')"), "EIO");
    assert_contested(&job, &absolute(&job, "shared"), ["here", "there"]);
}

/// Without holes nobody can tell by the data; by the time, if it lasts longer than clocks may differ.
#[test]
fn a_file_that_is_written_while_another_node_writes_it() {
    let job = Job::new(&[]);
    let (mut here, mut there) = (job.agent("here"), job.agent("there"));
    here.act("write('ckpt/log', 'older')");
    publish(&job, &["here", "there"]);
    here.act("os.remove('ckpt/log')");
    let begin = "globals().update(log=open('ckpt/log', 'w')) or log.write('begun\\n') and log.flush()";
    here.act(begin);
    let pass = "time.sleep(1.2)";
    here.act(pass);
    there.act("write('ckpt/log', 'of there, and nothing else\\n')");
    here.act(pass);
    here.act("log.write('done\\n') and log.close()");
    // One after the other is no contest, however short the time between them is.
    here.act("write('ckpt/turn', 'of here')");
    publish(&job, &["here", "there"]);
    there.act("write('ckpt/turn', 'of there')");
    publish(&job, &["there"]);
    assert_contested(&job, &absolute(&job, "log"), ["here", "there"]);
    let mut next = job.agent("next");
    assert_eq!(next.ask("read('ckpt/log')"), "EIO");
    assert_eq!(next.ask("read('ckpt/turn')"), "'of there'");
    // Who asks for what there was before gets neither part.
    let mut older = job.program("older", "cat");
    assert_eq!(process::run(older.arg("ckpt/log").env("SHEAF_DAMAGED", "older")).expect_success().text(), "older");
}

/// Reclaiming would make a part the whole, if it took the other one away.
#[test]
fn what_contests_a_file_is_not_reclaimed() {
    let job = Job::new(&[]);
    let (mut here, mut there) = (job.agent("here"), job.agent("there"));
    write_blocks(&mut here, "ckpt/shared", 'h', "[0, 2]");
    write_blocks(&mut there, "ckpt/shared", 't', "[1, 3]");
    publish(&job, &["here", "there"]);
    for round in 0..30 {
        here.act(&format!("write('ckpt/state', chr(65 + {round}) * 300000)"));
        publish(&job, &["here", "there"]);
    }
    for node in ["here", "there"] {
        job.sheaf(node, &["wait"]).expect_success();
    }
    assert_contested(&job, &absolute(&job, "shared"), ["here", "there"]);
    let merged = job.scene.root().join("merged.tar").display().to_string();
    tool(&job, &["merge", "-o", &merged, &store(&job)]);
    let output = tool(&job, &["cat", &merged, &absolute(&job, "shared")]);
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
}
