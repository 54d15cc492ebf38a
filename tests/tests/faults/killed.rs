//! A program that is killed in the middle of a call that takes a name away: what an older file held never comes back.

use std::fs;

use sheaf_tests::process::Finished;
use sheaf_tests::{Engine, Scene, process};

/// The calls that change names. How often each is made is counted on its own; not more often than this.
const CALLS: [&str; 5] = ["unlink", "unlinkat", "rename", "renameat", "renameat2"];
const MOST_CALLS: u32 = 8;
/// Writes the new file and keeps it open, so that it cannot be published before the command ends.
const HELD_OPEN: &str = "exec 3>ckpt/state; echo new >&3";

/// Replaces an old file on the parallel file system, then runs a command that is killed when it makes its `when`th
/// `call`; that call is not made. What `write` writes is not published before.
fn killed((call, when): (&str, u32), write: &str, command: &str) -> (Scene, Finished) {
    let scene = Scene::new(Engine::IoUring);
    fs::write(scene.checkpoints().join("state"), "old\n").expect("the scene is ours");
    let inject = format!("inject={call}:error=EINTR:signal=KILL:when={when}");
    let options = ["-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject];
    let mut program = scene.preloaded_command("bash");
    program.args(["-c", &format!("{write}; exec {command}")]);
    let finished = process::run(&mut scene.traced(&options, &program));
    (scene, finished)
}

/// Kills a command in each of its calls that change names, and lets it end; `check` looks at what is there then, and at
/// whether it has ended well. Yields how many calls there are.
fn kill_everywhere(write: &str, command: &str, check: impl Fn(&Scene, &str, bool)) -> u32 {
    let mut calls = 0;
    for call in CALLS {
        let ends = |when: &u32| {
            let (scene, finished) = killed((call, *when), write, command);
            let is_whole = finished.status.success();
            check(&scene, &format!("{command} killed at {call} {when}"), is_whole);
            is_whole
        };
        calls += (1..=MOST_CALLS).find(ends).expect("it makes no more calls than the most") - 1;
    }
    calls
}

/// What a shell says.
fn say(scene: &Scene, script: &str) -> String {
    scene.preloaded(&["bash", "-c", &format!("{script}; :")]).expect_success().text()
}

/// The first name must be the new file or gone at any moment; yields how many moments there are.
fn never_old(write: &str, command: &str) -> u32 {
    kill_everywhere(write, command, |scene, moment, is_whole| {
        let look = || say(scene, "cat ckpt/state 2>/dev/null");
        let before = look();
        assert!(before.is_empty() || before == "new\n" && !is_whole, "{moment}: {before:?} is there");
        scene.drain();
        assert_eq!(look(), before, "{moment}, drained");
        scene.wipe_stage();
        assert_eq!(look(), before, "{moment}, from the aggregates alone");
    })
}

#[test]
fn removing_a_name_that_replaced_an_older_file() {
    assert!(never_old(HELD_OPEN, "rm ckpt/state") >= 2);
}

#[test]
fn renaming_a_name_that_replaced_an_older_file() {
    assert!(never_old(HELD_OPEN, "mv ckpt/state ckpt/moved") >= 2);
}

#[test]
fn moving_a_name_that_replaced_an_older_file_out() {
    // A file that is held open is not moved out, so the flusher may be faster, and then there is less to kill.
    assert!(never_old("echo new >ckpt/state", "mv ckpt/state moved") >= 1);
}

#[test]
fn moving_the_directory_of_a_name_that_replaced_an_older_file() {
    let write = "mkdir ckpt/d; mv ckpt/state ckpt/d; exec 3>ckpt/d/state; echo new >&3";
    let calls = kill_everywhere(write, "mv ckpt/d ckpt/e", |scene, moment, is_whole| {
        // A directory that has moved by half is moved to the end: its name and the file's belong together.
        let place = if scene.checkpoints().join("e").exists() { "ckpt/e/state" } else { "ckpt/d/state" };
        let look = || say(scene, "grep -H . ckpt/*/state 2>/dev/null");
        assert!(place == "ckpt/e/state" || !is_whole, "{moment}: it has not moved");
        scene.sheaf(&["wait"]).expect_success();
        assert_eq!(look(), format!("{place}:new\n"), "{moment}");
        scene.drain();
        assert_eq!(look(), format!("{place}:new\n"), "{moment}, drained");
        assert_eq!(say(scene, "rm -f ckpt/[de]/state; cat ckpt/*/state 2>/dev/null"), "", "{moment}");
        scene.drain();
        scene.wipe_stage();
        assert_ne!(say(scene, "cat ckpt/*/state 2>/dev/null"), "old\n", "{moment}");
    });
    assert!(calls >= 4, "a file, its marker and two directories");
}

#[test]
fn moving_a_file_from_elsewhere_over_a_name() {
    for write in [HELD_OPEN, "echo new >ckpt/state"] {
        let write = format!("{write}; echo newest >real");
        let calls = kill_everywhere(&write, "mv real ckpt/state", |scene, moment, is_whole| {
            let seen = say(scene, "cat ckpt/state real 2>/dev/null");
            let right: &[&str] = if is_whole { &["newest\n"] } else { &["new\nnewest\n", "new\n", "newest\n"] };
            assert!(right.contains(&&*seen), "{moment}: {seen:?} is there");
            scene.drain();
            assert_eq!(say(scene, "cat ckpt/state real 2>/dev/null"), seen, "{moment}, drained");
            assert_eq!(say(scene, "rm ckpt/state; cat ckpt/state 2>/dev/null"), "", "{moment}, removed");
            scene.drain();
            scene.wipe_stage();
            assert_eq!(say(scene, "cat ckpt/state 2>/dev/null"), "", "{moment}, from the aggregates alone");
        });
        assert!(calls >= 3, "the file, the captured name and the marker");
    }
}

/// A flusher that is killed before it removes an older file whose successor it has published, and a next one whose
/// writing thread is slow to begin: that has nothing to publish which would remove the file.
#[test]
fn an_older_file_that_a_killed_flusher_left() {
    let scene = Scene::new(Engine::IoUring);
    let older = scene.checkpoints().join("state");
    fs::write(&older, "old\n").expect("the scene is ours");
    let mut program = scene.preloaded_command("bash");
    process::run(program.env("SHEAF_ON_EXIT", "leave").args(["-c", "echo new >ckpt/state"])).expect_success();
    scene.kill_flushers();
    let drain = |options: &[&str]| {
        let options = [&["-f", "-qq", "-o", "/dev/null"], options].concat();
        process::run(&mut scene.traced(&options, scene.sheaf_command().arg("drain")))
    };
    let path = older.to_str().expect("a path of this test's own");
    drain(&["-P", path, "-e", "trace=unlink", "-e", "inject=unlink:error=EINTR:signal=KILL"]);
    assert_eq!(fs::read_to_string(&older).expect("nobody could remove it"), "old\n");
    // Only those that publish stand back, as the first thing that they do.
    drain(&["-e", "trace=setpriority", "-e", "inject=setpriority:delay_enter=1000000"]).expect_success();
    scene.assert_no_captured_files_on_pfs();
    scene.wipe_stage();
    assert_eq!(say(&scene, "cat ckpt/state"), "new\n");
}
