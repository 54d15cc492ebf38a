//! How trapped programs end, and what they leave behind.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::time::{Duration, Instant};

use sheaf_tests::{Engine, Scene, process};

const BUSYBOX: &str = "/bin/busybox";

/// Waits until a file outside the checkpoint paths is there.
fn await_file(scene: &Scene, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !scene.captured_directory().join(name).exists() {
        assert!(Instant::now() < deadline, "{name} does not appear");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn statuses_come_back_and_the_drain_is_over() {
    for (script, code) in
        [("echo 1 >ckpt/a", 0), ("echo 1 >ckpt/a; exit 7", 7), ("echo 1 >ckpt/a; kill -9 $$", 137), ("exit 3", 3)]
    {
        let scene = Scene::new(Engine::IoUring);
        let finished = process::run(scene.trapped_command(BUSYBOX).args(["sh", "-c", script]));
        assert_eq!(finished.status.code(), Some(code), "{}", finished.describe());
        scene.assert_no_captured_files_on_pfs();
        if script.contains("ckpt") {
            scene.the_aggregate();
            assert_eq!(scene.preloaded(&["cat", "ckpt/a"]).expect_success().text(), "1\n");
        }
    }
}

#[test]
fn what_cannot_be_started() {
    let scene = Scene::new(Engine::IoUring);
    for (program, code) in [("./no-such-program", 127), ("./plain", 126)] {
        fs::write(scene.captured_directory().join("plain"), "no program").expect("the scene is ours");
        let finished = scene.sheaf(&["run", "--trap=always", "--", program]);
        assert_eq!(finished.status.code(), Some(code), "{}", finished.describe());
    }
}

#[test]
fn signals_reach_the_program() {
    let scene = Scene::new(Engine::IoUring);
    let script =
        "trap 'echo caught >ckpt/caught; exit 9' TERM; echo >started; while :; do /bin/busybox sleep 0.05; done";
    let launcher = process::start(scene.trapped_command(BUSYBOX).args(["sh", "-c", script]));
    await_file(&scene, "started");
    // SAFETY: kill takes two integers; the launcher is our own child and not yet reaped.
    unsafe { libc::kill(launcher.id() as libc::pid_t, libc::SIGTERM) };
    let finished = launcher.finish();
    assert_eq!(finished.status.code(), Some(9), "{}", finished.describe());
    assert_eq!(scene.preloaded(&["cat", "ckpt/caught"]).expect_success().text(), "caught\n");
}

/// What a program leaves behind is served for as long as it lives, and nobody longer.
#[test]
fn programs_left_behind_are_served() {
    let scene = Scene::new(Engine::IoUring);
    let script = "
        /bin/busybox mkfifo gate
        (read line <gate; echo $line >ckpt/late; /bin/busybox cat ckpt/late >read; echo >done) </dev/null >/dev/null 2>&1 &
        echo early >ckpt/early";
    process::run(scene.trapped_command(BUSYBOX).args(["sh", "-c", script])).expect_success();
    let mut gate = OpenOptions::new().write(true).open(scene.captured_directory().join("gate")).expect("it is read");
    gate.write_all(b"later\n").expect("it is read");
    await_file(&scene, "done");
    let read = fs::read_to_string(scene.captured_directory().join("read")).expect("the scene is ours");
    assert_eq!(read, "later\n");
    scene.assert_no_captured_files_on_pfs();
    let deadline = Instant::now() + Duration::from_secs(20);
    while scene.supervisors() > 0 {
        assert!(Instant::now() < deadline, "the supervisor stays after all that it served have ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    scene.drain();
    assert_eq!(scene.preloaded(&["cat", "ckpt/early", "ckpt/late"]).expect_success().text(), "early\nlater\n");
}

/// Calls that wait hold up nobody but their callers.
#[test]
fn waiting_calls_hold_up_nobody_else() {
    let scene = Scene::new(Engine::IoUring);
    let script = "
        each='1 2 3 4 5 6 7 8 9 10 11 12'
        for n in $each; do /bin/busybox mkfifo ckpt/pipe-$n; done
        for n in $each; do (read line <ckpt/pipe-$n; echo $line >ckpt/got-$n) & done
        echo still served >ckpt/served
        /bin/busybox cat ckpt/served
        # In a process without children: this shell's calls end early when one of its children ends.
        /bin/busybox sh -c 'for n in '\"$each\"'; do echo $n >ckpt/pipe-$n; done'
        wait; for n in $each; do /bin/busybox rm ckpt/pipe-$n; /bin/busybox cat ckpt/got-$n; done";
    let trapped = process::run(scene.trapped_command(BUSYBOX).args(["sh", "-c", script])).expect_success();
    let native = process::run(scene.native_command(BUSYBOX).args(["sh", "-c", script])).expect_success();
    assert_eq!(trapped.text(), native.text());
}
