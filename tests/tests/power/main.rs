//! The parallel file system's disk loses its power, and the node dies with it: what was acknowledged is there, right,
//! and nothing that was not published is seen.

mod durable;
mod flushes;
mod shared;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sheaf_tests::disk::Disk;
use sheaf_tests::{Engine, Scene, process};

const ROUNDS: usize = 6;
/// Writes one checkpoint after the other under the same name, and notes which are acknowledged.
const PROGRAM: &str = r#"
for number in $(seq 1000); do
    seq $number $((number + 30000)) >ckpt/state.new
    mv ckpt/state.new ckpt/state
    echo $number >ckpt/number-$number
    env -u LD_PRELOAD "$SHEAF" wait && echo $number >>acknowledged
done
"#;

fn acknowledged(scene: &Scene) -> u32 {
    let text = fs::read_to_string(scene.captured_directory().join("acknowledged")).unwrap_or_default();
    text.lines().last().map_or(0, |number| number.parse().expect("a number"))
}

/// Takes the power away from a program after a few acknowledged checkpoints and a moment, and stops everything; yields
/// how many were acknowledged.
fn lose_everything(scene: &Scene, disk: &Disk, program: &mut Command, random: &mut StdRng) -> u32 {
    let mut program = process::start(program);
    let count = random.random_range(1..5);
    while acknowledged(scene) < count {
        assert!(!program.wait_for(Duration::from_millis(5)), "the program ended too early");
    }
    let moment = Instant::now() + Duration::from_millis(random.random_range(0..400));
    while Instant::now() < moment {
        assert!(!program.wait_for(Duration::from_millis(1)), "the program ended too early");
    }
    disk.lose_power();
    drop(program);
    let count = acknowledged(scene);
    scene.kill_flushers();
    scene.wipe_stage();
    count
}

fn round(kind: &str, engine: Engine, layout: &'static str, random: &mut StdRng) {
    let scene = Scene::new(engine).in_layout(layout);
    let disk = Disk::new(kind, &scene.root().join("disk"), &scene.checkpoints());
    let mut program = scene.preloaded_command("bash");
    program.args(["-c", PROGRAM]).env("SHEAF", sheaf_tests::scene::artefact("sheaf"));
    let count = lose_everything(&scene, &disk, &mut program, random);
    disk.recover();
    assert_acknowledged(&scene, count, &format!("{kind}, {engine:?}, {layout}"));
}

/// Everything that was acknowledged is there, right, and nothing is seen by half.
fn assert_acknowledged(scene: &Scene, count: u32, what: &str) {
    // In layout `files` there is none.
    if !scene.store_aggregates().is_empty() {
        scene.verify();
    }
    for aggregate in scene.store_aggregates() {
        process::run(scene.native_command("tar").arg("-tf").arg(aggregate)).expect_success();
    }
    let seen = scene.preloaded(&["bash", "-c", "head -n 1 ckpt/state; md5sum <ckpt/state; ls ckpt"]).expect_success();
    let text = seen.text();
    let mut lines = text.lines();
    if count == 0 && lines.clone().next().is_none_or(|line| line.parse::<u32>().is_err()) {
        return;
    }
    let number: u32 = lines.next().and_then(|line| line.parse().ok()).unwrap_or_else(|| panic!("{}", seen.describe()));
    assert!(number >= count, "{what}: {count} was acknowledged, {number} is there");
    let expected = scene.native(&["bash", "-c", &format!("seq {number} {} | md5sum", number + 30000)]);
    assert_eq!(lines.next(), expected.text().lines().next(), "{what}: checkpoint {number}");
    let names: Vec<_> = lines.collect();
    for number in 1..=count {
        assert!(names.contains(&&*format!("number-{number}")), "{what}: {number} of {count}, {names:?}");
    }
}

#[test]
fn power_is_lost_at_random_moments() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..ROUNDS {
        for (kind, engine) in [("ext4", Engine::IoUring), ("xfs", Engine::Pwrite), ("xfs", Engine::IoUring)] {
            round(kind, engine, "node", &mut random);
        }
        round("ext4", Engine::IoUring, "shared:2", &mut random);
        round("xfs", Engine::Pwrite, "files", &mut random);
    }
}
