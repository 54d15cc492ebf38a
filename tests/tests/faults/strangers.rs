//! A stage that somebody else may have made, before the program starts or while it runs: nothing in it is believed.
//!
//! Open to others stands for another user's: the tests need not be root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use sheaf_tests::{Engine, Scene, process};

/// A scene whose stage holds a file that no program has written, and the directory of all stages, open to others.
fn planted() -> (Scene, PathBuf) {
    let scene = Scene::new(Engine::IoUring);
    scene.preloaded(&["bash", "-c", "echo state >ckpt/state"]).expect_success();
    scene.drain();
    let entries = fs::read_dir(scene.tier()).expect("the tier is ours");
    let stages = entries.map(|entry| entry.expect("the tier is ours").path()).next().expect("there is a stage");
    let stage = fs::read_dir(&stages).expect("ours").map(|entry| entry.expect("ours").path()).next().expect("a stage");
    let inside = scene.checkpoints();
    let mirror = stage.join("tree").join(inside.strip_prefix("/").expect("scenes have absolute paths"));
    fs::write(mirror.join("planted"), "planted\n").expect("the mirror is there");
    fs::set_permissions(&stages, fs::Permissions::from_mode(0o777)).expect("ours");
    (scene, stages)
}

const LOOK: &str = "
import os
print(os.path.exists('ckpt/planted'), os.listdir('ckpt').count('planted'), os.path.exists('ckpt/planted/..'))
with open('ckpt/fresh', 'w') as fresh: fresh.write('fresh')
os.mkdir('ckpt/deep')
print(open('ckpt/fresh').read(), sorted(os.listdir('ckpt/deep')))
";

fn assert_native(scene: &Scene, script: &str) {
    let seen = process::run(scene.preloaded_command("python3").args(["-c", script])).expect_success();
    assert_eq!(seen.text(), "False 0 False\nfresh []\n", "{}", seen.describe());
    let fresh = fs::read_to_string(scene.checkpoints().join("fresh")).expect("it is where it would be without Sheaf");
    assert_eq!(fresh, "fresh");
}

#[test]
fn a_stage_that_was_there_before() {
    let (scene, _stages) = planted();
    assert_native(&scene, LOOK);
}

#[test]
fn a_stage_that_appears_while_the_program_runs() {
    let (scene, stages) = planted();
    let aside = scene.tier().join("aside");
    fs::rename(&stages, &aside).expect("ours");
    let appear = format!("import os; os.stat('ckpt'); os.rename({aside:?}, {stages:?})\n");
    assert_native(&scene, &format!("{appear}{LOOK}"));
}

#[test]
fn the_next_tier_serves() {
    let (scene, stages) = planted();
    let second = tempfile::Builder::new().prefix("sheaf-test-").tempdir_in("/dev/shm").expect("room in /dev/shm");
    let tiers = format!("{}:{}", scene.tier().display(), second.path().display());
    let mut command = scene.preloaded_command("bash");
    command.env("SHEAF_STAGE", &tiers).args(["-c", "echo second >ckpt/second; cat ckpt/state ckpt/second"]);
    assert_eq!(process::run(&mut command).expect_success().text(), "state\nsecond\n");
    let mut drain = scene.sheaf_command();
    process::run(drain.env("SHEAF_STAGE", &tiers).arg("drain")).expect_success();
    scene.assert_no_captured_files_on_pfs();
    assert!(stages.exists());
}
