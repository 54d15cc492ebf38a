//! Nodes that die or hang over a file that others write to.

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sheaf_tests::{Engine, process};

use super::Nodes;

/// Calls by which a flusher reserves a range, writes it and makes it count, and every how many of them it is killed,
/// from a random one on; at every one with SHEAF_TEST_EVERY_STEP. The one that kills is not made.
const CALLS: [(&str, usize); 5] =
    [("fcntl", 4), ("fallocate", 1), ("pwrite64", 4), ("io_uring_enter", 5), ("fdatasync", 2)];
const MOST_STEPS: u32 = 60;

/// Kills the flusher of a node at its `step`th such call; another node goes on in the same file. False when none makes
/// that many.
fn killed_at(nodes: &Nodes, round: u32, call: &str, step: u32) -> bool {
    let write = format!("seq {round} 9000 >ckpt/one-{round}; echo {round} >ckpt/one-small; mkdir -p ckpt/set");
    let leave = format!("LD_PRELOAD={} bash -c '{write}'", sheaf_tests::scene::artefact("libsheaf.so").display());
    process::run(nodes.command("one", &["sh", "-c", &leave]).env("SHEAF_ON_EXIT", "leave")).expect_success();
    nodes.scene.kill_everything_in(&nodes.stage("one"));

    let log = nodes.scene.root().join("strace.log");
    let inject = format!("inject={call}:error=EINTR:signal=KILL:when={step}");
    let trace = format!("trace={call}");
    let options = ["strace", "-f", "-e", &trace, "-e", &inject, "-o", log.to_str().expect("ours")];
    let sheaf = sheaf_tests::scene::artefact("sheaf");
    // A flusher that dies is started again; whether that succeeds depends on the call.
    process::run(&mut nodes.command("one", &[&options[..], &[sheaf.to_str().expect("ours"), "drain"]].concat()));
    nodes.scene.kill_everything_in(&nodes.stage("one"));
    let what = format!("killed at {call} {step}");
    nodes.assert_archives(&what);

    // Another node goes on, and the node with what it had staged.
    nodes.run("two", &format!("seq {round} >ckpt/two; echo {round} >ckpt/two-small"));
    nodes.run("one", "true");
    nodes.scene.verify();
    let compare = format!(
        "seq {round} 9000 | cmp - ckpt/one-{round} && seq {round} | cmp - ckpt/two && cat ckpt/one-small ckpt/two-small"
    );
    let seen = nodes.seen_in_the_store(&compare);
    assert_eq!(seen, format!("{round}\n{round}\n"), "{what}");
    let log = fs::read_to_string(log).expect("strace writes its log");
    log.contains("killed by SIGKILL")
}

#[test]
fn killed_at_every_step_another_node_goes_on() {
    let nodes = Nodes::new(Engine::IoUring, "shared:1");
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut round = 0;
    for (call, stride) in CALLS {
        let stride = if std::env::var_os("SHEAF_TEST_EVERY_STEP").is_some() { 1 } else { stride };
        let first = random.random_range(1..=stride as u32);
        let mut is_killed = |step: &u32| {
            round += 1;
            killed_at(&nodes, round, call, *step)
        };
        let end = (first..=MOST_STEPS).step_by(stride).find(|step| !is_killed(step)).expect("a flusher ends");
        println!("fewer than {end} calls of {call}");
    }
    assert!(round > 10, "killed at {round} steps only");
    // Every node's every file, over all these deaths.
    let all: String = (1..=round).map(|round| format!("seq {round} 9000 | cmp - ckpt/one-{round}; ")).collect();
    nodes.seen_in_the_store(&format!("set -e; {all}"));
    // Nobody has come to write to a file of its own. When there are many void ranges in one that is shared, another
    // begins.
    assert_eq!(nodes.shared_files(), nodes.scene.store_aggregates());
}

/// Holds the lock of whoever reserves, as a node does that hangs.
fn hold(file: &Path) -> fs::File {
    let file = OpenOptions::new().read(true).write(true).open(file).expect("the scene is ours");
    // SAFETY: `flock` is a plain structure of integers; all zero is a valid one.
    let mut request: libc::flock = unsafe { std::mem::zeroed() };
    (request.l_type, request.l_len) = (libc::F_WRLCK as libc::c_short, 1);
    // SAFETY: the descriptor is open, and the call reads the structure that it is given.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) };
    assert_eq!(result, 0, "nobody else is here");
    file
}

#[test]
fn a_node_that_hangs_holds_nobody_up() {
    let nodes = Nodes::new(Engine::IoUring, "shared:1");
    nodes.run("one", "echo first >ckpt/first");
    let shared = nodes.shared_files();
    let held = hold(&shared[0]);
    let mut job = nodes.job("two", "seq 10000 >ckpt/second");
    process::run(job.env("SHEAF_TIMEOUT", "1")).expect_success();
    assert_eq!(nodes.scene.store_aggregates().len(), 2, "it writes to a file of its own");
    drop(held);
    nodes.run("three", "echo third >ckpt/third");
    assert_eq!(nodes.scene.store_aggregates().len(), 2);
    assert_eq!(nodes.seen_in_the_store("seq 10000 | cmp - ckpt/second; cat ckpt/first ckpt/third"), "first\nthird\n");
    nodes.scene.verify();
    nodes.assert_archives("after a lock that was held");
}

/// A flusher is stopped while it holds the lock, and goes on when others have not waited for it.
#[test]
fn a_flusher_that_is_stopped_over_a_reservation_goes_on_later() {
    let nodes = Nodes::new(Engine::IoUring, "shared:1");
    nodes.run("zero", "echo zero >ckpt/zero");
    let sheaf = sheaf_tests::scene::artefact("sheaf");
    let log = nodes.scene.root().join("strace.log");
    // Behind the lock, and before the header is durable.
    let options = ["-f", "-e", "trace=fdatasync", "-e", "inject=fdatasync:signal=STOP:when=1"];
    let script = "seq 20000 >ckpt/one";
    let arguments = [&["strace"], &options[..], &["-o", log.to_str().expect("ours")]].concat();
    let job = [&arguments[..], &[sheaf.to_str().expect("ours"), "run", "--", "bash", "-c", script]].concat();
    let mut stopped = process::start(&mut nodes.command("one", &job));
    while !fs::read_to_string(&log).is_ok_and(|log| log.contains("stopped by SIGSTOP")) {
        assert!(!stopped.wait_for(std::time::Duration::from_millis(20)), "it ends without a flusher that is stopped");
    }
    let mut job = nodes.job("two", "seq 10000 >ckpt/two");
    process::run(job.env("SHEAF_TIMEOUT", "1")).expect_success();
    nodes.assert_archives("while a reservation hangs");
    // Each of its threads is stopped once.
    while !stopped.wait_for(std::time::Duration::from_millis(20)) {
        nodes.scene.continue_flushers_in(&nodes.stage("one"));
    }
    stopped.finish().expect_success();
    let seen = "seq 10000 | cmp - ckpt/two; seq 20000 | cmp - ckpt/one; cat ckpt/zero";
    assert_eq!(nodes.seen_in_the_store(seen), "zero\n");
    nodes.scene.verify();
    nodes.assert_archives("after a reservation that hung");
}
