//! Programs that rotate their checkpoints for long: the store stays small, whoever is killed when.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sheaf_tests::scene::helper;
use sheaf_tests::{Engine, Scene, process};

/// Checkpoints of one run. The whole, 1,000, is `SHEAF_TEST_ROTATIONS=1000`.
fn rotations() -> u32 {
    std::env::var("SHEAF_TEST_ROTATIONS").map_or(40, |text| text.parse().expect("a number of checkpoints"))
}

fn checkpoint(scene: &Scene, how: &str, number: u32) {
    let number = number.to_string();
    let mut captured = scene.preloaded_command(helper("rotate"));
    process::run(captured.args([how, &number])).expect_success();
    let mut native = scene.native_command(helper("rotate"));
    process::run(native.args([how, &number])).expect_success();
}

/// Bytes that the store takes on its disk, and files that are published under their own names.
fn store_bytes(scene: &Scene) -> u64 {
    // In layout `files` there is no store. What is being removed is gone.
    let entries = [scene.store(), scene.checkpoints()].into_iter().filter_map(|directory| fs::read_dir(directory).ok());
    entries.flatten().flatten().filter_map(|entry| Some(entry.metadata().ok()?.blocks() * 512)).sum()
}

/// Twice of what is alive, and one checkpoint.
fn bar_bytes(scene: &Scene) -> u64 {
    let files = fs::read_dir(scene.native_directory().join("ckpt")).expect("the scene is ours");
    let sizes: Vec<u64> = files.map(|file| file.and_then(|file| file.metadata()).expect("ours").len()).collect();
    2 * sizes.iter().sum::<u64>() + sizes.iter().max().expect("a checkpoint has been written")
}

/// Waits until the store has settled below the bar; yields the bytes.
fn settle(scene: &Scene, what: &str) -> u64 {
    let (bar, deadline) = (bar_bytes(scene), Instant::now() + process::LIMIT);
    loop {
        let bytes = store_bytes(scene);
        if bytes <= bar {
            return bytes;
        }
        assert!(Instant::now() < deadline, "{what}: {bytes} bytes, {bar} are allowed");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn rotate(engine: Engine, how: &str, kills: u32) {
    rotate_in((engine, "node"), how, kills);
}

fn rotate_in((engine, layout): (Engine, &'static str), how: &str, kills: u32) {
    let scene = Scene::new(engine).in_layout(layout);
    let seed: u64 = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let (count, mut largest) = (rotations(), 0);
    for number in 1..=count {
        let what = format!("{engine:?}, {layout}, {how}, seed {seed}, checkpoint {number}");
        checkpoint(&scene, how, number);
        if kills > 0 && number % (count / kills).max(1) == 0 {
            std::thread::sleep(Duration::from_millis(random.random_range(0..300)));
            scene.kill_flushers();
            scene.drain();
            assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{what}");
        }
        scene.sheaf(&["wait"]).expect_success();
        largest = largest.max(settle(&scene, &what));
    }
    println!("{engine:?}, {layout}, {how}: at most {largest} bytes in the store, {} allowed", bar_bytes(&scene));
    scene.drain();
    if layout != "files" {
        scene.verify();
    }
    settle(&scene, how);
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{engine:?}, {layout}, {how}, seed {seed}");
}

#[test]
fn rewriting_one_file_in_place() {
    rotate(Engine::IoUring, "in-place", 0);
}

#[test]
fn taking_turns_between_two_files() {
    rotate(Engine::Pwrite, "two", 0);
}

#[test]
fn keeping_the_last_four_by_renaming() {
    rotate(Engine::IoUring, "chain", 0);
}

#[test]
fn rotations_with_twenty_kills() {
    rotate(Engine::IoUring, "chain", if rotations() < 100 { 10 } else { 20 });
}

#[test]
fn rotations_with_kills_in_a_shared_file() {
    rotate_in((Engine::IoUring, "shared:1"), "chain", 5);
}

#[test]
fn rotations_in_other_layouts() {
    rotate_in((Engine::Pwrite, "shared:2"), "in-place", 3);
    rotate_in((Engine::IoUring, "shared:1"), "two", 0);
    rotate_in((Engine::Pwrite, "files"), "in-place", 3);
    rotate_in((Engine::Pwrite, "files"), "two", 0);
}

/// Every flusher opens a new aggregate: few of them stay.
#[test]
fn a_job_that_is_restarted_often() {
    let scene = Scene::new(Engine::IoUring);
    for number in 0..30 {
        for directory in [scene.native_directory(), scene.captured_directory()] {
            let native = directory == scene.native_directory();
            let mut command = if native { scene.native_command("bash") } else { scene.preloaded_command("bash") };
            process::run(command.args(["-c", &format!("echo {number} >ckpt/log.{number}")])).expect_success();
        }
        // Some end in peace, some do not.
        if number % 3 == 0 {
            scene.sheaf(&["wait"]).expect_success();
            scene.kill_flushers();
        } else {
            scene.drain();
        }
        assert!(scene.store_aggregates().len() <= 18, "{:?}", scene.store_aggregates());
    }
    scene.drain();
    scene.verify();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
}

/// A first job; what it leaves is half dead after the second.
const BEFORE: &str = "mkdir ckpt/d && seq 30000 >ckpt/d/keep && ln ckpt/d/keep ckpt/link && ln -s d/keep ckpt/latest && \
                      head -c 900000 /dev/zero | tr '\\0' x >ckpt/state && seq 9 >ckpt/gone && mv ckpt/d ckpt/e";
const AFTER: &str = "seq 40000 >ckpt/state && rm ckpt/gone && mv ckpt/e/keep ckpt/e/kept && chmod 600 ckpt/e/kept";

/// What tells one aggregate from any other.
fn first_block(aggregate: &Path) -> Vec<u8> {
    let mut bytes = fs::read(aggregate).expect("the store is readable");
    bytes.truncate(4096);
    bytes
}

/// Loses a flusher that reclaims when it makes its `step`th such call; false when it makes fewer.
fn killed_at(engine: Engine, layout: &'static str, call: &str, step: u32) -> bool {
    let scene = Scene::new(engine).in_layout(layout);
    for command in [BEFORE, AFTER] {
        scene.native(&["bash", "-c", command]).expect_success();
    }
    scene.preloaded(&["bash", "-c", BEFORE]).expect_success();
    scene.drain();
    let old = first_block(&scene.the_aggregate());
    let mut program = scene.preloaded_command("bash");
    process::run(program.env("SHEAF_ON_EXIT", "leave").args(["-c", AFTER])).expect_success();
    scene.kill_flushers();

    let log = scene.root().join("strace.log");
    let inject = format!("inject={call}:error=EINTR:signal=KILL:when={step}");
    let options = ["-f", "-e", &format!("trace={call}"), "-e", &inject, "-o", log.to_str().expect("ours")];
    let mut drain = scene.sheaf_command();
    // A flusher that dies is started again; whether that succeeds depends on the call.
    process::run(&mut scene.traced(&options, drain.arg("drain")));
    let log = fs::read_to_string(log).expect("strace writes its log");

    let (whole, described) = (scene.native_snapshot(), format!("{engine:?}, {layout}, killed at {call} {step}"));
    assert_eq!(scene.captured_snapshot(), whole, "{described}, at once");
    scene.drain();
    scene.verify();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), whole, "{described}, from the aggregates alone");
    // Whoever publishes next finishes it.
    for command in [scene.native_command("bash"), scene.preloaded_command("bash")].iter_mut() {
        process::run(command.args(["-c", "echo more >>ckpt/more"])).expect_success();
    }
    scene.drain();
    if layout == "node" {
        // Its name may have been given to another.
        let first_blocks = scene.store_aggregates().into_iter().map(|path| first_block(&path));
        assert!(!first_blocks.collect::<Vec<_>>().contains(&old), "{described}: the old aggregate stays");
    }
    // Less than the old one alone.
    assert!(store_bytes(&scene) < 900_000, "{described}: {} bytes in the store", store_bytes(&scene));
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{described}, in the end");
    log.contains("killed by SIGKILL")
}

#[test]
fn flusher_killed_at_every_step_of_reclaiming() {
    let calls = [
        (Engine::Pwrite, &["unlink", "fsync", "fdatasync", "pwrite64", "renameat2", "flock"][..]),
        (Engine::IoUring, &["io_uring_enter"]),
    ];
    for (engine, calls) in calls {
        for call in calls {
            let first_not = (1..100).find(|step| !killed_at(engine, "node", call, *step)).expect("a flusher ends");
            println!("{engine:?}: {} calls of {call}", first_not - 1);
            assert!(first_not > 1, "{engine:?}: never killed at {call}");
        }
    }
}

/// Every few of them, from a random one on; at every one with SHEAF_TEST_EVERY_STEP.
#[test]
fn flusher_killed_while_it_reclaims_in_a_shared_file() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let every_step = std::env::var_os("SHEAF_TEST_EVERY_STEP").is_some();
    for (engine, call) in [
        (Engine::Pwrite, "fdatasync"),
        (Engine::Pwrite, "pwrite64"),
        (Engine::Pwrite, "fallocate"),
        (Engine::Pwrite, "fcntl"),
        (Engine::IoUring, "io_uring_enter"),
    ] {
        let stride = if every_step { 1 } else { 6 };
        let first = random.random_range(1..=stride as u32);
        let is_killed = |step: &u32| killed_at(engine, "shared:1", call, *step);
        let end = (first..200).step_by(stride).find(|step| !is_killed(step)).expect("a flusher ends");
        println!("{engine:?}: fewer than {end} calls of {call}");
    }
}
