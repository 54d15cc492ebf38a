//! What is wrong around Sheaf: values that are refused, a stage that cannot be, bytes that changed in an aggregate.
//!
//! The program always gets what it would get without Sheaf; a reader never gets a wrong byte.

mod company;
mod damage;
mod failing_tiers;
mod full;
mod hostile;
mod hung;
mod killed;
mod leftover;
mod nodes;
mod sides;
mod sites;
mod standard_error;
mod stopped;
mod store;
mod strangers;
mod tiers;
mod unknown;
mod unread;
mod unreadable;

use std::fs;
use std::os::unix::fs::FileExt;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sheaf_tests::scene::workspace;
use sheaf_tests::{Engine, Scene, process};

const WRITE: [&str; 3] = ["bash", "-c", "echo state >ckpt/state && cat ckpt/state"];

/// Runs a small program with one variable changed: it works, and its file lies on the parallel file system.
fn passes_through(name: &str, value: impl Fn(&Scene) -> Option<String>, lines_said: usize) {
    let scene = Scene::new(Engine::IoUring);
    let mut command = scene.preloaded_command(WRITE[0]);
    match value(&scene) {
        Some(value) => command.env(name, value),
        None => command.env_remove(name),
    };
    let finished = process::run(command.args(&WRITE[1..])).expect_success();
    assert_eq!(finished.text(), "state\n", "{}", finished.describe());
    assert_eq!(fs::read(scene.checkpoints().join("state")).expect("written natively"), b"state\n");
    // bash and cat are two processes.
    let said = String::from_utf8_lossy(&finished.stderr).lines().count();
    assert_eq!(said, 2 * lines_said, "{}", finished.describe());
    assert!(scene.store_aggregates().is_empty());
    assert!(scene.flushers().is_empty());
}

#[test]
fn no_patterns() {
    passes_through("SHEAF_PATHS", |_| None, 0);
}

#[test]
fn disabled() {
    passes_through("SHEAF_DISABLE", |_| Some("1".to_string()), 0);
}

#[test]
fn refused_pattern() {
    passes_through("SHEAF_PATHS", |_| Some("ckpt/**".to_string()), 1);
}

#[test]
fn refused_stage() {
    passes_through("SHEAF_STAGE", |_| Some("relative".to_string()), 1);
}

#[test]
fn excluded_paths() {
    passes_through("SHEAF_EXCLUDE", |scene| Some(format!("{}/**", scene.checkpoints().display())), 0);
}

#[test]
fn a_file_that_was_there_before_is_replaced_only_when_published() {
    let scene = Scene::new(Engine::IoUring);
    for side in [scene.native_directory(), scene.captured_directory()] {
        fs::write(side.join("ckpt/state"), "old and longer\n").expect("the scene is ours");
        fs::write(side.join("ckpt/other"), "untouched\n").expect("the scene is ours");
    }
    let script =
        ["bash", "-c", "cat ckpt/state; echo new >ckpt/state; cat ckpt/state; echo more >>ckpt/other; ls ckpt"];
    let native = scene.native(&script).expect_success();
    let captured = scene.preloaded(&script).expect_success();
    assert_eq!(captured.text(), native.text());
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
    scene.drain();
    assert!(!scene.checkpoints().join("state").exists(), "the old file outlives its successor's publication");
    assert_eq!(fs::read(scene.checkpoints().join("other")).expect("passed through"), b"untouched\nmore\n");
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
}

#[test]
fn changed_bytes_are_found() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let scene = Scene::new(Engine::IoUring);
    let script = workspace().join("tests/apps/variety.py");
    let mut write = scene.preloaded_command("python3");
    process::run(write.arg(script)).expect_success();
    scene.drain();
    scene.verify();
    let aggregate = scene.the_aggregate();
    let file = fs::File::options().read(true).write(true).open(&aggregate).expect("the scene is ours");
    let length = file.metadata().expect("it is open").len();
    for _ in 0..60 {
        // The last block is the zeros that end the archive.
        let offset = random.random_range(0..length - 4096);
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).expect("inside the file");
        let changed = [byte[0] ^ 1 << random.random_range(0..8)];
        file.write_all_at(&changed, offset).expect("the scene is ours");
        let verdict = process::run(scene.sheaf_command().arg("verify").arg(&aggregate));
        assert_eq!(verdict.status.code(), Some(1), "a bit at {offset} of {length}: {}", verdict.describe());
        file.write_all_at(&byte, offset).expect("the scene is ours");
    }
    scene.verify();
}

#[test]
fn a_damaged_file_is_refused_and_the_others_are_read() {
    let scene = Scene::new(Engine::IoUring);
    let script = "for n in 1 2 3; do head -c 100000 /dev/zero | tr '\\0' $n >ckpt/$n; done";
    scene.preloaded(&["bash", "-c", script]).expect_success();
    scene.drain();
    scene.wipe_stage();
    let aggregate = scene.the_aggregate();
    let bytes = fs::read(&aggregate).expect("the scene is ours");
    let middle = bytes.windows(4096).position(|window| window == [b'2'; 4096]).expect("the data of 2 is in there");
    let file = fs::File::options().write(true).open(&aggregate).expect("the scene is ours");
    file.write_all_at(b"!", middle as u64 + 70_000).expect("the scene is ours");

    let store = scene.store();
    let inside = scene.checkpoints();
    let cat = |name: &str| {
        let path = inside.join(name);
        process::run(scene.sheaf_command().arg("cat").arg(&store).arg(path))
    };
    assert!(!cat("2").status.success(), "wrong bytes with a good status");
    assert!(!cat("2").stdout.contains(&b'!'), "a wrong byte was handed out");
    assert_eq!(cat("1").expect_success().stdout, vec![b'1'; 100_000]);
    assert_eq!(cat("3").expect_success().stdout, vec![b'3'; 100_000]);
    let read = scene.preloaded(&["bash", "-c", "cat ckpt/1 >/dev/null && cat ckpt/3 >/dev/null && ! cat ckpt/2"]);
    assert!(!read.expect_success().stdout.contains(&b'!'), "a wrong byte was handed out");
}
