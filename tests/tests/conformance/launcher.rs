//! `sheaf run`: the program's own status comes back, and by then everything is published.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use sheaf_tests::scene::{artefact, workspace};
use sheaf_tests::{Engine, Scene, process};

/// Runs a shell script by `sheaf run`, with patterns and stage from the environment; yields the exit code.
fn launch(scene: &Scene, script: &str) -> Option<i32> {
    scene.sheaf(&["run", "--", "bash", "-c", script]).status.code()
}

#[test]
fn statuses_come_back_and_the_drain_is_over() {
    for (script, code) in
        [("echo 1 >ckpt/a", 0), ("echo 1 >ckpt/a; exit 7", 7), ("echo 1 >ckpt/a; kill -9 $$", 137), ("exit 3", 3)]
    {
        let scene = Scene::new(Engine::IoUring);
        assert_eq!(launch(&scene, script), Some(code), "{script}");
        scene.assert_no_captured_files_on_pfs();
        if script.contains("ckpt") {
            scene.the_aggregate();
            scene.verify();
            let store = scene.store();
            let path = scene.checkpoints().join("a");
            let cat = process::run(scene.sheaf_command().arg("cat").arg(&store).arg(path));
            assert_eq!(cat.expect_success().text(), "1\n");
        }
        assert!(scene.flushers().is_empty(), "the flusher stays after the job");
    }
}

#[test]
fn what_cannot_be_started() {
    let scene = Scene::new(Engine::IoUring);
    assert_eq!(scene.sheaf(&["run", "--", "./no-such-program"]).status.code(), Some(127));
    fs::write(scene.captured_directory().join("plain"), "no program").expect("the scene is ours");
    assert_eq!(scene.sheaf(&["run", "--", "./plain"]).status.code(), Some(126));
    let mut refused = scene.sheaf_command();
    refused.env("SHEAF_PATHS", "ckpt/**").args(["run", "--", "true"]);
    assert_eq!(process::run(&mut refused).status.code(), Some(125));
}

#[test]
fn signals_reach_the_program() {
    let scene = Scene::new(Engine::IoUring);
    let script = "trap 'echo caught >ckpt/caught; exit 9' TERM; echo >started; while :; do sleep 0.05; done";
    let mut launcher = process::start(scene.sheaf_command().args(["run", "--", "bash", "-c", script]));
    let started = scene.captured_directory().join("started");
    while !started.exists() {
        assert!(!launcher.wait_for(Duration::from_millis(5)), "it ended before it started");
    }
    // SAFETY: kill takes two integers; the launcher is our own child and not yet reaped.
    unsafe { libc::kill(launcher.id() as libc::pid_t, libc::SIGTERM) };
    assert_eq!(launcher.finish().status.code(), Some(9));
    let read = scene.preloaded(&["cat", "ckpt/caught"]).expect_success();
    assert_eq!(read.text(), "caught\n");
}

#[test]
fn files_that_were_written_past_sheaf_are_reported() {
    let scene = Scene::new(Engine::IoUring);
    assert_eq!(launch(&scene, "echo 1 >ckpt/captured"), Some(0));
    assert_eq!(scene.sheaf(&["report"]).status.code(), Some(0));
    let finished =
        scene.sheaf(&["run", "--", "bash", "-c", "echo 2 >ckpt/a; env -u LD_PRELOAD bash -c 'echo 1 >ckpt/b'"]);
    assert_eq!(finished.status.code(), Some(0), "what escapes is said, and is no failure");
    let escaped = scene.checkpoints().join("b");
    assert!(String::from_utf8_lossy(&finished.stderr).contains(&*escaped.to_string_lossy()));
    let report = scene.sheaf(&["report", "--json"]);
    assert_eq!(report.status.code(), Some(1));
    let found: serde_json::Value = serde_json::from_str(&report.text()).expect("it is JSON");
    assert_eq!(found.as_array().map(Vec::len), Some(1));
    assert_eq!(found[0]["path"].as_str(), escaped.to_str());
    assert_eq!(scene.sheaf(&["report", "--since", "9999999999"]).status.code(), Some(0));
    assert_eq!(scene.sheaf(&["report", "--exclude", &escaped.to_string_lossy()]).status.code(), Some(0));
}

/// On nodes that look at the same time, processes have the same numbers: what one tries is not in the other's way.
#[test]
fn doctors_of_two_nodes() {
    let scene = Scene::new(Engine::IoUring);
    for directory in [scene.checkpoints(), scene.tier().to_owned()] {
        for number in 1..20 {
            fs::write(directory.join(format!(".sheaf-doctor-{number}")), "another node's").expect("the scene is ours");
        }
    }
    let mut doctor = scene.preloaded_command("unshare");
    doctor.env_remove("LD_PRELOAD").args(["--pid", "--fork"]).arg(artefact("sheaf")).arg("doctor");
    process::run(&mut doctor).expect_success();
}

#[test]
fn doctor_finds_this_machine_fit() {
    let scene = Scene::new(Engine::IoUring);
    scene.sheaf(&["doctor"]).expect_success();
    let program = artefact("sheaf");
    process::run(scene.sheaf_command().args(["doctor", "--"]).arg(program)).expect_success();
}

/// What it says of a program: its exit code, and whether the trap would help.
fn doctor_says(scene: &Scene, program: &Path) -> (Option<i32>, bool) {
    let finished = process::run(scene.sheaf_command().args(["doctor", "--"]).arg(program));
    (finished.status.code(), finished.text().contains("--trap"))
}

#[test]
fn doctor_knows_which_programs_can_be_preloaded() {
    let scene = Scene::new(Engine::IoUring);
    let source = workspace().join("tests/programs/small.c");
    let make = |compiler: &str, name: &str, flags: &[&str]| {
        let made = scene.root().join(name);
        process::run(scene.native_command(compiler).arg("-o").arg(&made).arg(&source).args(flags)).expect_success();
        made
    };
    assert_eq!(doctor_says(&scene, &make("gcc", "dynamic", &[])), (Some(0), false));
    assert_eq!(doctor_says(&scene, &make("gcc", "static", &["-static"])), (Some(1), true));
    assert_eq!(doctor_says(&scene, &make("musl-gcc", "static-musl", &["-static"])), (Some(1), true));
    let headers = ["-m32", "-isystem", "/usr/include/x86_64-linux-gnu"];
    assert_eq!(doctor_says(&scene, &make("gcc", "of-32-bits", &headers)), (Some(1), false));
    let set_uid = make("gcc", "set-uid", &[]);
    chown(&set_uid, Some(65_534), None).expect("only root can make a program of another user's");
    fs::set_permissions(&set_uid, Permissions::from_mode(0o4755)).expect("the scene is ours");
    assert_eq!(doctor_says(&scene, &set_uid), (Some(1), false));
}

/// Deletes everything in the tier, as somebody does who cleans a node up.
fn delete_stage(scene: &Scene) {
    for entry in fs::read_dir(scene.tier()).expect("the tier is ours") {
        fs::remove_dir_all(entry.expect("the tier is ours").path()).expect("nobody else deletes it");
    }
}

const WRITE: &str = "mkdir -p ckpt/set; for n in 1 2 3; do echo $n >ckpt/set/file-$n; done; ln -sfn set ckpt/latest";

/// What an epilog does.
#[test]
fn a_stage_that_is_deleted_after_the_job_takes_nothing_with_it() {
    let scene = Scene::new(Engine::IoUring);
    scene.native(&["bash", "-c", WRITE]).expect_success();
    for _ in 0..5 {
        assert_eq!(launch(&scene, WRITE), Some(0));
        delete_stage(&scene);
        assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
        scene.drain();
        scene.wipe_stage();
    }
}

/// Too early: the program still runs, and its flusher sees the deletion.
#[test]
fn a_stage_that_is_deleted_under_a_program_takes_nothing_published_with_it() {
    let scene = Scene::new(Engine::IoUring);
    scene.native(&["bash", "-c", WRITE]).expect_success();
    let script = format!("{WRITE}; read -r line <go");
    process::run(scene.native_command("mkfifo").arg(scene.captured_directory().join("go"))).expect_success();
    let program = process::start(scene.preloaded_command("bash").args(["-c", &script]));
    let deadline = Instant::now() + process::LIMIT;
    while !scene.sheaf(&["ls", scene.store().to_str().expect("ours")]).text().contains("latest") {
        assert!(Instant::now() < deadline, "nothing is published");
    }
    delete_stage(&scene);
    for flusher in scene.flushers() {
        assert!(process::poll_end(flusher, Duration::from_secs(60)).unwrap_or(true), "the flusher stays");
    }
    fs::write(scene.captured_directory().join("go"), "go\n").expect("bash reads it");
    program.finish().expect_success();
    scene.drain();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
}
