//! What a process is told, or looks at only once: that a flusher lives, and that a name is free.
//! Nothing is lost, and nothing old is seen, when just then it is no longer so.

use std::fs::File;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use sheaf_tests::{Engine, Scene, process, seccomp};

/// How long an event may take that is bound to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// The next flusher that is not the one given.
fn await_flusher(scene: &Scene, except: u32) -> u32 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(flusher) = scene.flushers().into_iter().find(|flusher| *flusher != except) {
            return flusher;
        }
        assert!(Instant::now() < deadline, "no flusher was started within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

#[test]
fn a_file_made_just_after_the_flusher_was_killed() {
    after_the_flusher_was_killed(|_| ());
}

/// The kernel does not mark what the flusher has told: then programs must ask.
#[test]
fn a_file_made_just_after_the_flusher_was_killed_without_robust_futexes() {
    after_the_flusher_was_killed(|command| seccomp::forbid(command, libc::SYS_set_robust_list));
}

fn after_the_flusher_was_killed(change: impl Fn(&mut Command)) {
    let scene = Scene::new(Engine::IoUring);
    let gate = scene.root().join("gate");
    process::run(scene.native_command("mkfifo").arg(&gate)).expect_success();
    let mut open_gate = File::options().read(true).write(true).open(&gate).expect("the scene is ours");
    let script = r#"
        echo first >ckpt/first
        read -r flusher <$GATE
        echo before >ckpt/before; kill -9 $flusher; echo after >ckpt/after
        until echo again >ckpt/again; [ -e seen ]; do :; done"#;
    let mut command = scene.preloaded_command("bash");
    change(&mut command);
    let running = process::start(command.args(["-ec", script]).env("GATE", &gate));
    let killed = await_flusher(&scene, 0);
    writeln!(open_gate, "{killed}").expect("the gate is open on our side");
    await_flusher(&scene, killed);
    File::create(scene.captured_directory().join("seen")).expect("the scene is ours");
    running.finish().expect_success();
    scene.drain();
    scene.wipe_stage();
    let seen = scene.preloaded(&["cat", "ckpt/first", "ckpt/before", "ckpt/after", "ckpt/again"]).expect_success();
    assert_eq!(seen.text(), "first\nbefore\nafter\nagain\n");
    scene.assert_no_captured_files_on_pfs();
    scene.verify();
}

/// Of several processes one has the mirror made while the others have just looked in vain.
#[test]
fn many_append_to_a_file_that_nobody_has_looked_for_yet() {
    const DIRECTORIES: u32 = 12;
    let scene = Scene::new(Engine::IoUring);
    let make = format!("for d in $(seq {DIRECTORIES}); do mkdir ckpt/$d; echo first >ckpt/$d/file; done");
    scene.preloaded(&["sh", "-ec", &make]).expect_success();
    scene.drain();
    scene.wipe_stage();
    let append = format!(
        "for d in $(seq {DIRECTORIES}); do for i in 1 2 3 4 5 6; do echo more >>ckpt/$d/file & done; wait; done"
    );
    scene.preloaded(&["sh", "-ec", &append]).expect_success();
    let seen = scene.preloaded(&["sh", "-ec", "cat ckpt/*/file"]).expect_success();
    assert_eq!(seen.text(), format!("first\n{}", "more\n".repeat(6)).repeat(DIRECTORIES as usize));
    scene.drain();
    scene.assert_no_captured_files_on_pfs();
}
