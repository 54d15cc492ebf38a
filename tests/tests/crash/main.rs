//! Processes that die: the flusher during LAMMPS, the program itself; and many that work at once.
//!
//! What was written is there in the end, and nothing torn is visible at any time.

mod campaign;
mod reclaim;
mod steps;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sheaf_tests::disk::Disk;
use sheaf_tests::scene::{helper, workspace};
use sheaf_tests::{Engine, Finished, Scene, process, snapshot};

const LAMMPS: [&str; 11] =
    ["mpirun", "-n", "2", "--oversubscribe", "--bind-to", "none", "lmp", "-log", "none", "-in", "lammps-ranks.in"];

fn copy_inputs(directory: &Path, names: &[&str]) {
    for name in names {
        fs::copy(workspace().join("tests/apps").join(name), directory.join(name)).expect("the input is there");
    }
}

/// LAMMPS' table of steps.
fn thermo(finished: &Finished) -> Vec<String> {
    let text = finished.text();
    let rows = text.lines().filter(|line| line.split_whitespace().all(|column| column.parse::<f64>().is_ok()));
    rows.map(str::to_string).collect()
}

/// What GNU tar extracts from a copy of an aggregate must be whole files of the run.
fn assert_nothing_torn(scene: &Scene, whole: &BTreeSet<&str>) {
    for aggregate in scene.store_aggregates() {
        let directory = tempfile::tempdir_in(scene.root()).expect("the scene is ours");
        let copy = directory.path().join("copy.tar");
        match fs::copy(&aggregate, &copy) {
            // One in which nothing had been published goes when its flusher ends.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            copied => copied.expect("an aggregate can be copied at any time"),
        };
        let mut tar = scene.native_command("tar");
        process::run(tar.arg("-xf").arg(&copy).current_dir(directory.path())).expect_success();
        let checkpoints = scene.checkpoints();
        let extracted = directory.path().join(checkpoints.strip_prefix("/").expect("scenes have absolute paths"));
        if extracted.exists() {
            let found = snapshot::take(&extracted).expect("extracted files are readable");
            let torn: Vec<_> = found.lines().filter(|line| !whole.contains(line)).collect();
            assert!(torn.is_empty(), "{}: {torn:?}", aggregate.display());
        }
    }
}

/// One run of LAMMPS whose flusher is killed at random moments; yields how many were.
fn lammps_round(engine: Engine, random: &mut StdRng, whole: &str, table: &[String]) -> usize {
    let lines: BTreeSet<_> = whole.lines().collect();
    let scene = Scene::new(engine);
    copy_inputs(&scene.captured_directory(), &["lammps-liquid.in", "lammps-ranks.in"]);
    let mut program = process::start(scene.preloaded_command(LAMMPS[0]).args(&LAMMPS[1..]));
    let mut killed = 0;
    while !program.wait_for(Duration::from_millis(random.random_range(1..250))) {
        killed += scene.kill_flushers();
        if random.random_bool(0.3) {
            assert_nothing_torn(&scene, &lines);
        }
    }
    let finished = program.finish().expect_success();
    println!("{}", String::from_utf8_lossy(&finished.stderr));
    assert_eq!(thermo(&finished), table, "{}", finished.describe());
    assert_eq!(scene.captured_snapshot(), whole, "right after the program");
    scene.drain();
    scene.verify();
    scene.assert_no_captured_files_on_pfs();
    assert_nothing_torn(&scene, &lines);
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), whole, "from the aggregates alone");
    killed
}

#[test]
fn flusher_killed_during_lammps() {
    let rounds = std::env::var("SHEAF_TEST_CRASH_ROUNDS").map_or(100, |text| text.parse().expect("a number of rounds"));
    let seed: u64 = rand::random();
    println!("seed {seed}, {rounds} rounds");
    let mut random = StdRng::seed_from_u64(seed);
    let scene = Scene::new(Engine::IoUring);
    copy_inputs(&scene.native_directory(), &["lammps-liquid.in", "lammps-ranks.in"]);
    let native = scene.native(&LAMMPS).expect_success();
    let (whole, table) = (scene.native_snapshot(), thermo(&native));
    let mut killed = 0;
    for round in 0..rounds {
        let engine = if round % 4 == 3 { Engine::Pwrite } else { Engine::IoUring };
        killed += lammps_round(engine, &mut random, &whole, &table);
    }
    assert!(killed >= rounds, "only {killed} flushers were caught alive in {rounds} rounds");
}

#[test]
fn program_killed_while_it_holds_a_file() {
    for engine in [Engine::IoUring, Engine::Pwrite] {
        let scene = Scene::new(engine);
        copy_inputs(&scene.captured_directory(), &["holder.py"]);
        let said = scene.captured_directory().join("said");
        let mut program = process::start(scene.preloaded_command("python3").arg("holder.py"));
        let deadline = Instant::now() + process::LIMIT;
        while fs::read(&said).ok().as_deref() != Some(b"ready") {
            assert!(!program.wait_for(Duration::from_millis(5)), "the program ended before it was killed");
            assert!(Instant::now() < deadline, "the program has written nothing");
        }
        // SAFETY: kill takes two integers; the process is our own child and not yet reaped.
        unsafe { libc::kill(program.id() as libc::pid_t, libc::SIGKILL) };
        assert_eq!(program.finish().status.signal(), Some(libc::SIGKILL));
        scene.drain();
        scene.verify();
        scene.assert_no_captured_files_on_pfs();
        scene.wipe_stage();

        let native = scene.native_directory().join("ckpt");
        for number in 0..30u8 {
            let bytes = vec![number; usize::from(number) * 1000];
            fs::write(native.join(format!("closed.{number}")), bytes).expect("the scene is ours");
        }
        fs::write(native.join("open"), b"never closed\n".repeat(9999)).expect("the scene is ours");
        assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
    }
}

#[test]
fn sixty_four_processes_at_once() {
    for engine in [Engine::IoUring, Engine::Pwrite] {
        let scene = Scene::new(engine);
        let storm = |task: &str| {
            let mut command = scene.preloaded_command(helper("storm"));
            process::run(command.args([task, "ckpt", "64", "100"])).expect_success();
        };
        storm("run");
        storm("check");
        scene.drain();
        scene.verify();
        scene.assert_no_captured_files_on_pfs();
        scene.wipe_stage();
        storm("check");
    }
}

fn batches_in_flight(scene: &Scene) -> u64 {
    let status = scene.sheaf(&["status", "--json"]).expect_success();
    let status: serde_json::Value = serde_json::from_str(&status.text()).expect("JSON");
    status["in_flight"].as_u64().unwrap_or(0)
}

/// A store that takes nothing until the storm is over: one segment is being written, the next one is leased and waits.
#[test]
fn sixty_four_processes_and_two_flushes_in_flight() {
    for engine in [Engine::IoUring, Engine::Pwrite] {
        let scene = Scene::new(engine);
        let disk = Disk::new("ext4", &scene.root().join("disk"), &scene.checkpoints());
        // From here on this node is known in the store: nobody waits for that once more.
        scene.preloaded(&["bash", "-c", "mkdir ckpt/storm; echo before >ckpt/before"]).expect_success();
        scene.sheaf(&["wait"]).expect_success();
        let frozen = disk.freeze();
        let deadline = Instant::now() + process::LIMIT;
        for (count, name) in [(1, "first"), (2, "second")] {
            scene.preloaded(&["bash", "-c", &format!("echo {name} >ckpt/{name}")]).expect_success();
            while batches_in_flight(&scene) < count {
                assert!(Instant::now() < deadline, "{engine:?}: never {count} batches under way");
            }
        }
        let storm = |task: &str| {
            let mut command = scene.preloaded_command(helper("storm"));
            process::run(command.args([task, "ckpt/storm", "64", "100"])).expect_success();
        };
        storm("run");
        storm("check");
        assert_eq!(batches_in_flight(&scene), 2, "{engine:?}: before anything is taken again");
        drop(frozen);
        scene.drain();
        scene.verify();
        scene.assert_no_captured_files_on_pfs();
        scene.wipe_stage();
        storm("check");
        let both = scene.preloaded(&["cat", "ckpt/first", "ckpt/second"]).expect_success();
        assert_eq!(both.text(), "first\nsecond\n");
    }
}
