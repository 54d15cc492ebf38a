//! Random operations answered alike on both sides: from the stage, after a drain, and from the aggregates alone.

use std::process::Command;

use sheaf_tests::scene::helper;
use sheaf_tests::{Engine, Scene, process};

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
