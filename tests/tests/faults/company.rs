//! Flushers that are not alone: several for one stage, two nodes of one name, two jobs with one store, another user;
//! and a node that comes back with its stage.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use sheaf_tests::disk::{Disk, as_root};
use sheaf_tests::scene::artefact;
use sheaf_tests::{Engine, Scene, process, snapshot};

/// A program that writes files of its own name, in its own stage.
fn writer(scene: &Scene, name: &str, stage: &Path) -> Command {
    let script =
        format!("for n in $(seq 20); do seq $n 5000 >ckpt/{name}-$n.new; mv ckpt/{name}-$n.new ckpt/{name}-$n; done");
    let mut command = scene.preloaded_command("bash");
    command.env("SHEAF_STAGE", stage).args(["-c", &script]);
    command
}

fn native(scene: &Scene, names: &[&str]) {
    for name in names {
        let script = format!("for n in $(seq 20); do seq $n 5000 >ckpt/{name}-$n; done");
        scene.native(&["bash", "-c", &script]).expect_success();
    }
}

/// Two jobs on one node, each with a /dev/shm of its own: what one has published since the other looked is nothing that
/// the other has removed, also when its flusher begins anew.
#[test]
fn a_stage_removes_nothing_that_another_of_the_node_has_published() {
    let scene = Scene::new(Engine::IoUring);
    let stages = ["one", "other"].map(|name| scene.tier().join(name));
    stages.iter().for_each(|stage| fs::create_dir(stage).expect("the tier is ours"));
    let run = |stage: &Path, script: &str| {
        let mut program = scene.preloaded_command("bash");
        process::run(program.env("SHEAF_STAGE", stage).args(["-c", script])).expect_success();
        process::run(scene.sheaf_command().env("SHEAF_STAGE", stage).arg("drain")).expect_success();
    };
    run(&stages[1], "echo other >ckpt/other; ls ckpt");
    run(&stages[0], "echo one >ckpt/one; mkdir ckpt/d; echo below >ckpt/d/below");
    run(&stages[1], "echo more >ckpt/more; rm ckpt/other");
    run(&stages[0], "for n in $(seq 20); do echo $n >ckpt/rotated; done; rm ckpt/one");
    run(&stages[1], "ls ckpt; echo last >ckpt/last");
    scene.kill_everything();
    scene.wipe_stage();
    let native =
        "mkdir ckpt/d; echo below >ckpt/d/below; echo more >ckpt/more; echo 20 >ckpt/rotated; echo last >ckpt/last";
    scene.native(&["bash", "-c", native]).expect_success();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
    scene.verify();
}

/// Each engine, and each layout.
const SIDES: [(Engine, &str); 5] = [
    (Engine::IoUring, "node"),
    (Engine::Pwrite, "node"),
    (Engine::IoUring, "shared:1"),
    (Engine::Pwrite, "shared:2"),
    (Engine::Pwrite, "files"),
];

/// What flushers have left when they have ended is whole, and in layout `files` under the files' own names.
fn assert_published(scene: &Scene, layout: &str) {
    if layout == "files" {
        let real = snapshot::take(&scene.checkpoints()).expect("the scene is ours");
        assert_eq!(real, scene.native_snapshot(), "without Sheaf");
        return;
    }
    scene.verify();
    scene.assert_no_captured_files_on_pfs();
}

#[test]
fn two_nodes_of_one_name_and_two_jobs_with_one_store() {
    for (engine, layout) in SIDES {
        let scene = Scene::new(engine).in_layout(layout);
        let stages = ["one", "other"].map(|name| scene.tier().join(name));
        stages.iter().for_each(|stage| fs::create_dir(stage).expect("the tier is ours"));
        let programs = [("a", &stages[0]), ("b", &stages[1])]
            .map(|(name, stage)| process::start(&mut writer(&scene, name, stage)));
        for program in programs {
            program.finish().expect_success();
        }
        let drains = stages.each_ref().map(|stage| {
            let mut drain = scene.sheaf_command();
            process::start(drain.env("SHEAF_STAGE", stage).arg("drain"))
        });
        for drain in drains {
            drain.finish().expect_success();
        }
        native(&scene, &["a", "b"]);
        assert_published(&scene, layout);
        let aggregates = scene.store_aggregates().len();
        match layout {
            "node" => assert_eq!(aggregates, 2, "each flusher has an aggregate of its own"),
            "shared:1" => assert_eq!(aggregates, 1, "both write to one file"),
            "shared:2" => assert!((1..=2).contains(&aggregates), "{aggregates} files"),
            _ => assert_eq!(aggregates, 0, "there are no aggregates"),
        }
        assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{engine:?}, {layout}, from the store alone");
    }
}

#[test]
fn many_flushers_for_one_stage() {
    for (engine, layout) in SIDES {
        let scene = Scene::new(engine).in_layout(layout);
        let flusher = |_| {
            let mut command = scene.sheaf_command();
            command.arg("flusher").stdin(Stdio::null());
            process::start(&mut command)
        };
        let program = process::start(&mut writer(&scene, "a", scene.tier()));
        // One serves, and the others find that out and end.
        let flushers: Vec<_> = (0..5).map(flusher).collect();
        program.finish().expect_success();
        scene.drain();
        flushers.into_iter().for_each(|flusher| drop(flusher.finish().expect_success()));
        native(&scene, &["a"]);
        assert_published(&scene, layout);
        scene.wipe_stage();
        assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{engine:?}, {layout}");
    }
}

/// Another user's drain neither publishes nor takes away what is staged, and its flusher is not reached.
#[test]
fn another_user() {
    let scene = Scene::new(Engine::IoUring);
    let mut leaving = writer(&scene, "a", scene.tier());
    process::run(leaving.env("SHEAF_ON_EXIT", "leave")).expect_success();
    scene.kill_flushers();
    let written = || -> Vec<_> {
        let length = |path: &std::path::PathBuf| fs::metadata(path).expect("ours").len();
        scene.store_aggregates().iter().map(length).collect()
    };
    let before = written();
    let public = tempfile::Builder::new().prefix("sheaf-test-").tempdir_in("/dev/shm").expect("room in /dev/shm");
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("ours");
    open(public.path());
    open(scene.tier());
    let program = public.path().join("sheaf");
    fs::copy(artefact("sheaf"), &program).expect("room in /dev/shm");
    let mut drain = as_root("setpriv");
    drain.args(["--reuid=65534", "--regid=65534", "--clear-groups", "env"]);
    drain.arg(format!("SHEAF_STAGE={}", scene.tier().display()));
    drain.arg(format!("SHEAF_PATHS={}/**", scene.checkpoints().display()));
    process::run(drain.arg(&program).arg("drain"));
    assert_eq!(written(), before, "somebody else has published");
    native(&scene, &["a"]);
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
    scene.drain();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
}

/// A node with its stage on a disk ends everything, starts again, and nobody but an epilog looks after the stage.
#[test]
fn a_node_that_comes_back_with_its_stage() {
    for (kind, (engine, layout)) in ["ext4", "xfs"].into_iter().cycle().zip(SIDES) {
        let scratch = Scene::new(engine);
        let place = scratch.root().join("stage");
        fs::create_dir(&place).expect("the scene is ours");
        let disk = Disk::new(kind, &scratch.root().join("image"), &place);
        let scene = Scene::staged_in(&place, engine).in_layout(layout);
        process::run(&mut writer(&scene, "a", scene.tier())).expect_success();
        scene.sheaf(&["wait"]).expect_success();
        process::run(writer(&scene, "b", scene.tier()).env("SHEAF_ON_EXIT", "leave")).expect_success();
        scene.kill_everything();
        disk.recover();
        scene.drain();
        native(&scene, &["a", "b"]);
        assert_published(&scene, layout);
        scene.wipe_stage();
        assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{kind}, {engine:?}, {layout}");
        scene.kill_everything();
    }
}
