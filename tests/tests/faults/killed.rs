//! A program that is killed in the middle of a call that takes a name away: what an older file held never comes back.

use std::fs;

use sheaf_tests::process::Finished;
use sheaf_tests::{Engine, Scene, process};

/// Any call that changes names, with its number of changes at most.
const CALLS: &str = "unlink,unlinkat,rename,renameat,renameat2";
const MOST_CALLS: u32 = 8;
/// Writes the new file and keeps it open, so that it cannot be published before the command ends.
const HELD_OPEN: &str = "exec 3>ckpt/state; echo new >&3";

/// Replaces an old file on the parallel file system, then runs a command that is killed when it makes its `when`th call
/// that changes names; that call is not made. What `write` writes is not published before.
fn killed(when: u32, write: &str, command: &str) -> (Scene, Finished) {
    let scene = Scene::new(Engine::IoUring);
    fs::write(scene.checkpoints().join("state"), "old\n").expect("the scene is ours");
    let inject = format!("inject={CALLS}:error=EINTR:signal=KILL:when={when}");
    let options = ["-qq", "-o", "/dev/null", "-e", &format!("trace={CALLS}"), "-e", &inject];
    let mut program = scene.preloaded_command("bash");
    program.args(["-c", &format!("{write}; exec {command}")]);
    let finished = process::run(&mut scene.traced(&options, &program));
    (scene, finished)
}

/// The first name must be the new file or gone at any moment; yields how many moments there are.
fn never_old(write: &str, command: &str) -> u32 {
    for when in 1..=MOST_CALLS {
        let (scene, finished) = killed(when, write, command);
        let look = |moment: &str| {
            let seen = scene.preloaded(&["bash", "-c", "cat ckpt/state 2>/dev/null; :"]).expect_success().text();
            assert!(seen == "new\n" || seen.is_empty(), "{command} killed at {when}, {moment}: {seen:?} is there");
            seen
        };
        let before = look("at once");
        scene.drain();
        assert_eq!(look("drained"), before);
        scene.wipe_stage();
        assert_eq!(look("from the aggregates alone"), before);
        if finished.status.success() {
            assert!(before.is_empty(), "{command} was not killed, and has done nothing");
            return when - 1;
        }
    }
    panic!("{command} makes more than {MOST_CALLS} calls");
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
