//! A flusher that is killed at each of its steps: whatever it was about to do, nothing is lost and nothing torn is
//! seen.

use std::collections::BTreeSet;
use std::fs;

use sheaf_tests::{Engine, Scene, process, snapshot};

/// Calls that change the store, the stage or an aggregate. The one that kills is not made.
const CALLS: [&str; 13] = [
    "mkdir",
    "mknodat",
    "rename",
    "renameat2",
    "linkat",
    "unlink",
    "fallocate",
    "ftruncate",
    "pwrite64",
    "write",
    "io_uring_enter",
    "fsync",
    "fdatasync",
];
const MOST_STEPS: u32 = 100;
/// What there is to publish: new files, another that takes the name of an older one, a directory, links.
const WRITE: &str = "mkdir ckpt/set && head -c 100000 /dev/zero >ckpt/set/zeros && seq 30000 >ckpt/state.new && \
                     mv ckpt/state.new ckpt/state && ln -s state ckpt/latest && ln ckpt/state ckpt/set/state";

/// Loses a flusher when a thread of it makes its `step`th such call; false when none makes that many.
fn killed_at(engine: Engine, layout: &'static str, call: &str, step: u32) -> bool {
    let scene = Scene::new(engine).in_layout(layout);
    for directory in [scene.native_directory(), scene.captured_directory()] {
        fs::write(directory.join("ckpt/state"), "older\n").expect("the scene is ours");
    }
    scene.native(&["bash", "-c", WRITE]).expect_success();
    let mut program = scene.preloaded_command("bash");
    process::run(program.env("SHEAF_ON_EXIT", "leave").args(["-c", WRITE])).expect_success();
    scene.kill_flushers();

    let log = scene.root().join("strace.log");
    let inject = format!("inject={call}:error=EINTR:signal=KILL:when={step}");
    let options = ["-f", "-e", &format!("trace={call}"), "-e", &inject, "-o", log.to_str().expect("ours")];
    let mut drain = scene.sheaf_command();
    let mut traced = scene.traced(&options, drain.arg("drain"));
    // A flusher that dies is started again; whether that succeeds depends on the call.
    process::run(&mut traced);
    let log = fs::read_to_string(log).expect("strace writes its log");

    let whole = scene.native_snapshot();
    let described = format!("{engine:?}, {layout}, killed at {call} {step}");
    // On a slow machine the file was published before it got its last name, and readers of tar see it under both.
    let is_state = |line: &&str| line.starts_with("f ") && line.ends_with(" state");
    let before = whole.lines().find(is_state).expect("the script writes it").to_owned() + ".new";
    super::assert_nothing_torn(&scene, &whole.lines().chain([&before[..]]).collect::<BTreeSet<_>>());
    assert_eq!(scene.captured_snapshot(), whole, "{described}, at once");
    if layout == "files" {
        assert_nothing_torn_or_missing(&scene, &whole, &described);
    }
    scene.drain();
    match layout {
        "files" => {
            let real = snapshot::take(&scene.checkpoints()).expect("the scene is ours");
            assert_eq!(real, whole, "{described}, without Sheaf");
            assert!(!scene.store().exists(), "{described}: nothing that a killed flusher had begun stays");
        }
        _ => {
            scene.verify();
            scene.assert_no_captured_files_on_pfs();
        }
    }
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), whole, "{described}, from the store alone");
    log.contains("killed by SIGKILL")
}

/// What lies in the checkpoint directory is whole, and the older file is there until the new one is.
fn assert_nothing_torn_or_missing(scene: &Scene, whole: &str, described: &str) {
    let real = snapshot::take(&scene.checkpoints()).expect("the scene is ours");
    let older = fs::read(scene.checkpoints().join("state")).expect("there is one at any time") == b"older\n";
    let is_known = |line: &&str| {
        whole.lines().any(|known| known == *line) || older && line.ends_with(" state") || line.contains(" .sheaf")
    };
    let torn: Vec<_> = real.lines().filter(|line| !is_known(line)).collect();
    assert!(torn.is_empty(), "{described}: {torn:?}");
}

#[test]
fn flusher_killed_at_every_step_of_layout_files() {
    let mut steps = 0;
    for call in ["mkdir", "rename", "linkat", "symlinkat", "unlink", "ftruncate", "pwrite64", "fsync", "openat"] {
        // Most files that are opened are no step of a publication.
        let most = if call == "openat" { 12 } else { MOST_STEPS };
        let first_not = (1..=most).find(|step| !killed_at(Engine::Pwrite, "files", call, *step)).unwrap_or(most);
        steps += first_not - 1;
        println!("{} calls of {call}", first_not - 1);
    }
    assert!(steps > 20, "killed at {steps} steps only");
}

#[test]
fn flusher_killed_at_every_step() {
    for engine in [Engine::IoUring, Engine::Pwrite] {
        let mut steps = 0;
        for call in CALLS {
            let first_not =
                (1..=MOST_STEPS).find(|step| !killed_at(engine, "node", call, *step)).expect("a flusher ends");
            steps += first_not - 1;
            println!("{engine:?}: {} calls of {call}", first_not - 1);
        }
        assert!(steps > 20, "{engine:?}: killed at {steps} steps only");
    }
}
