//! Stock tar readers on the aggregates of real runs: they list and extract them byte-exact, with exit status 0.
//!
//! After the end, and on copies taken while the flusher is appending.

mod catalog;
mod merge;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sheaf_tests::scene::workspace;
use sheaf_tests::{Engine, Scene, process, snapshot};

/// How each reader lists and extracts `{archive}`; extraction is into the current directory.
const READERS: [(&str, &[&str], &[&str]); 6] = [
    ("GNU tar", &["tar", "-tf", "{archive}"], &["tar", "-xf", "{archive}"]),
    ("bsdtar", &["bsdtar", "-tf", "{archive}"], &["bsdtar", "-xf", "{archive}"]),
    (
        "tarfile",
        &["python3", "-m", "tarfile", "-l", "{archive}"],
        &["python3", "-m", "tarfile", "-e", "{archive}", "."],
    ),
    ("7-Zip", &["7zz", "l", "{archive}"], &["7zz", "x", "-y", "{archive}"]),
    ("busybox", &["busybox", "tar", "-tf", "{archive}"], &["busybox", "tar", "-xf", "{archive}"]),
    ("ratarmount", &["python3", "{ratarmount}", "{archive}"], &["python3", "{ratarmount}", "{archive}", "."]),
];

fn input(name: &str) -> String {
    workspace().join("tests/apps").join(name).to_str().expect("the workspace's path is text").to_string()
}

/// Lists and extracts with every reader; yields the extracted checkpoint directories.
fn extract_with_all(scene: &Scene, archive: &Path) -> Vec<(&'static str, PathBuf)> {
    let ratarmount = input("ratarmount_extract.py");
    let archive = archive.to_str().expect("scenes have plain names");
    let run = |arguments: &[&str], directory: &Path| {
        let arguments = arguments.iter().map(|argument| match *argument {
            "{archive}" => archive,
            "{ratarmount}" => &ratarmount,
            other => other,
        });
        let arguments: Vec<_> = arguments.collect();
        let mut command = scene.native_command(arguments[0]);
        process::run(command.args(&arguments[1..]).current_dir(directory)).expect_success()
    };
    let mut extracted = Vec::new();
    for (name, list, extract) in READERS {
        let directory = tempfile::tempdir_in(scene.root()).expect("the scene is ours").keep();
        let listing = run(list, &directory).text();
        assert!(listing.contains(".sheaf"), "{name} lists no FORMAT entry: {listing}");
        run(extract, &directory);
        let checkpoints = scene.checkpoints();
        let inside = checkpoints.strip_prefix("/").expect("scenes have absolute paths");
        extracted.push((name, directory.join(inside)));
    }
    extracted
}

/// A snapshot's lines without the modes, which readers change by umask.
fn without_modes(snapshot: &str) -> BTreeSet<String> {
    let line = |line: &str| match line.split_at_checked(7) {
        Some((start, rest)) if !start.starts_with('l') => format!("{}{rest}", &start[..2]),
        _ => line.to_string(),
    };
    snapshot.lines().map(line).collect()
}

fn assert_exact(scene: &Scene, archive: &Path) {
    let expected = without_modes(&scene.native_snapshot());
    for (name, directory) in extract_with_all(scene, archive) {
        let found = without_modes(&snapshot::take(&directory).expect("extracted files are readable"));
        let (less, more): (Vec<_>, Vec<_>) =
            (expected.difference(&found).collect(), found.difference(&expected).collect());
        assert!(
            less.is_empty() && more.is_empty(),
            "{name} on {}: {less:?} missing, {more:?} wrong",
            archive.display()
        );
    }
}

#[test]
fn lammps_after_the_end() {
    let scene = Scene::new(Engine::IoUring);
    for side in [scene.native_directory(), scene.captured_directory()] {
        for name in ["lammps-liquid.in", "lammps-ranks.in"] {
            fs::copy(input(name), side.join(name)).expect("the input is there");
        }
    }
    let command =
        ["mpirun", "-n", "2", "--oversubscribe", "--bind-to", "none", "lmp", "-log", "none", "-in", "lammps-ranks.in"];
    scene.native(&command).expect_success();
    scene.preloaded(&command).expect_success();
    scene.drain();
    assert_exact(&scene, &scene.the_aggregate());
}

#[test]
fn files_of_every_kind_after_the_end() {
    for (engine, layout) in [(Engine::IoUring, "node"), (Engine::Pwrite, "node"), (Engine::IoUring, "shared:1")] {
        let scene = Scene::new(engine).in_layout(layout);
        let script = input("variety.py");
        scene.native(&["python3", &script]).expect_success();
        scene.preloaded(&["python3", &script]).expect_success();
        scene.drain();
        scene.verify();
        assert_exact(&scene, &scene.the_aggregate());
    }
}

#[test]
fn copies_taken_while_the_flusher_appends() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let scene = Scene::new(Engine::IoUring);
    let script = input("appender.py");
    scene.native(&["python3", &script, "1000", "0"]).expect_success();
    let whole = without_modes(&scene.native_snapshot());

    let mut program = process::start(scene.preloaded_command("python3").args([&script, "1000", "0.004"]));
    let mut copies = Vec::new();
    while !program.wait_for(Duration::from_millis(random.random_range(0..300))) {
        // Publishes what is complete, so that segments keep coming.
        scene.sheaf(&["wait"]).expect_success();
        for aggregate in scene.store_aggregates() {
            let copy = scene.root().join(format!("copy-{}.tar", copies.len()));
            fs::copy(&aggregate, &copy).expect("an aggregate can be copied at any time");
            copies.push(copy);
        }
    }
    program.finish().expect_success();
    scene.drain();
    assert_exact(&scene, &scene.the_aggregate());
    assert!(copies.len() >= 3, "only {} copies while the program ran", copies.len());

    // The readers take long: a few copies from the whole time are enough.
    let step = copies.len().div_ceil(4);
    let mut most = 0;
    for copy in copies.iter().step_by(step).chain(copies.last()) {
        for (name, directory) in extract_with_all(&scene, copy) {
            let found = match directory.exists() {
                true => without_modes(&snapshot::take(&directory).expect("extracted files are readable")),
                false => BTreeSet::new(),
            };
            let wrong: Vec<_> = found.difference(&whole).collect();
            assert!(wrong.is_empty(), "{name} on {}: {wrong:?}", copy.display());
            assert!(found.len() >= most, "{name} on {}: an aggregate lost files", copy.display());
            most = found.len();
        }
    }
    assert!(most > 0, "no copy held a file");
}
