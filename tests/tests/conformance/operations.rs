//! Random operations answered alike on both sides: from the stage, after a drain, and from the aggregates alone.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use sheaf_tests::scene::helper;
use sheaf_tests::{Engine, Scene, process, snapshot};

/// Fails at the first answer that differs, with those before it.
fn assert_same_answers(seed: u64, native: &str, captured: &str) {
    let first = native.lines().zip(captured.lines()).position(|(one, other)| one != other);
    let Some(first) = first else {
        return assert_eq!(captured.lines().count(), native.lines().count(), "seed {seed}: one side ended early");
    };
    let before: Vec<_> = native.lines().take(first).collect();
    let before = before[before.len().saturating_sub(40)..].join("\n");
    let (one, other) = (native.lines().nth(first), captured.lines().nth(first));
    panic!("seed {seed}: answers differ after\n{before}\nnative:   {one:?}\ncaptured: {other:?}");
}

fn same_answers(scene: &Scene, seed: u64) {
    let answers = |mut command: Command| process::run(command.args([seed.to_string(), "300".to_string()]));
    let native = answers(scene.native_command(helper("operations")));
    let captured = answers(scene.preloaded_command(helper("operations")));
    assert_same_answers(seed, &native.text(), &captured.text());
    assert!(native.status.success(), "{}", native.describe());
    assert!(captured.status.success(), "{}", captured.describe());
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "seed {seed}");
}

/// The native file system itself is what is looked at when all is published. (How many names a file has is not
/// compared: one that another file has taken counts until that is published.)
#[test]
fn random_operations_as_files() {
    for round in 0..6 {
        let seed = seed_of(round);
        println!("round {round}, seed {seed}");
        let scene = Scene::new(Engine::IoUring).in_layout("files");
        for step in 0..=2 {
            let seed = seed.wrapping_add(step);
            let answers = |mut command: Command| process::run(command.args([seed.to_string(), "300".to_string()]));
            let native = answers(scene.native_command(helper("operations"))).expect_success().text();
            let captured = answers(scene.preloaded_command(helper("operations"))).expect_success().text();
            assert_same_answers(seed, &without_links(&native), &without_links(&captured));
            scene.drain();
            let real = snapshot::take(&scene.checkpoints()).expect("the scene is ours");
            assert_eq!(real, scene.native_snapshot(), "seed {seed}, drained, {step}");
            if step == 1 {
                scene.wipe_stage();
            }
        }
    }
}

/// Does something again and again while a program runs.
fn meanwhile(again: impl Fn() + Sync, act: impl FnOnce()) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                again();
            }
        });
        let over = OnDrop(&is_over);
        act();
        drop(over);
    });
}

/// While names are published and leave the stage as fast as they can, and flushers are killed or not, every answer is
/// still the native one.
#[test]
fn random_operations_while_files_are_published() {
    for round in 0..4 {
        let seed = seed_of(round);
        println!("round {round}, seed {seed}");
        let scene = Scene::new(Engine::IoUring).in_layout("files");
        let publish = || {
            // There may be no flusher yet.
            scene.sheaf(&["wait"]);
            if round % 2 == 1 {
                scene.kill_flushers();
            }
        };
        let answers = |mut command: Command| process::run(command.args([seed.to_string(), "1000".to_string()]));
        let native = answers(scene.native_command(helper("operations"))).expect_success();
        meanwhile(publish, || {
            let captured = answers(scene.preloaded_command(helper("operations")));
            assert_same_answers(seed, &without_links(&native.text()), &without_links(&captured.text()));
            assert!(captured.status.success(), "{}", captured.describe());
        });
        assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "seed {seed}");
        scene.drain();
        let real = snapshot::take(&scene.checkpoints()).expect("the scene is ours");
        assert_eq!(real, scene.native_snapshot(), "seed {seed}, drained");
        scene.wipe_stage();
        assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "seed {seed}, from the files alone");
    }
}

/// The answers without how many names a file has, and without whether a time that was given stays: that of a directory
/// does not when a file is published in it.
fn without_links(answers: &str) -> String {
    let without = |line: &str| match line.split_once(": ") {
        Some((call, "true" | "false")) if call.contains(" times ") => call.to_string(),
        _ => without_links_in(line),
    };
    answers.lines().map(without).collect::<Vec<_>>().join("\n")
}

fn without_links_in(line: &str) -> String {
    match line.split_once(" bytes, ") {
        Some((before, after)) => format!("{before} bytes, {}", after.split_once(", ").map_or("", |(_, rest)| rest)),
        None => line.to_string(),
    }
}

/// Says that it is over, also when the test fails.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// `SHEAF_TEST_SEED` runs the rounds of an earlier run again.
fn seed_of(round: u64) -> u64 {
    let given = std::env::var("SHEAF_TEST_SEED").ok();
    given.map_or_else(rand::random, |text| text.parse::<u64>().expect("a number").wrapping_add(10 * round))
}

#[test]
fn random_operations() {
    for round in 0..12 {
        let seed = seed_of(round);
        println!("round {round}, seed {seed}");
        let scene = Scene::new(if round % 2 == 0 { Engine::IoUring } else { Engine::Pwrite });
        same_answers(&scene, seed);
        scene.drain();
        assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "seed {seed}, drained");
        for step in 1..=2 {
            same_answers(&scene, seed.wrapping_add(step));
            scene.drain();
            scene.assert_no_captured_files_on_pfs();
            scene.verify();
            scene.wipe_stage();
            assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "seed {seed}, from the aggregates, {step}");
        }
    }
}
