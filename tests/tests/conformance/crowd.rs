//! Many processes at one stub, and a program that is interrupted by signals all the time: right bytes, and no error
//! that a program would not see natively.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;

use sheaf_tests::scene::workspace;
use sheaf_tests::{Engine, Scene, process};

/// Bytes of the file that all read.
const LARGE_BYTES: u64 = 24 << 20;

/// The files of `crowd.c`, only in the aggregates.
fn written(engine: Engine) -> (Scene, PathBuf) {
    let scene = Scene::new(engine);
    let program = scene.root().join("crowd");
    let mut gcc = scene.native_command("gcc");
    gcc.args(["-O1", "-o"]).arg(&program).arg(workspace().join("tests/apps/crowd.c"));
    process::run(&mut gcc).expect_success();
    process::run(scene.native_command(&program).arg("write")).expect_success();
    process::run(scene.preloaded_command(&program).arg("write")).expect_success();
    scene.drain();
    scene.wipe_stage();
    (scene, program)
}

#[test]
fn sixty_four_processes_open_one_stub_at_once() {
    let (scene, program) = written(Engine::IoUring);
    // Somebody who captures keeps the flusher, so that what it has read can be counted.
    let mut keeper = scene.preloaded_command("bash");
    keeper.args(["-c", "exec 3>ckpt/kept; echo ready; read -r end"]);
    let mut keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("bash starts");
    keeper.stdout.take().expect("piped").read_exact(&mut [0; 5]).expect("it has captured");
    let finished = process::run(scene.preloaded_command(&program).arg("together")).expect_success();
    assert_eq!(finished.text(), "64 of 64\n0 failures\n", "{}", finished.describe());
    let flushers = scene.flushers();
    assert_eq!(flushers.len(), 1, "one flusher serves them all");
    let counts = fs::read_to_string(format!("/proc/{}/io", flushers[0])).expect("it lives");
    let read_bytes: u64 =
        counts.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("counted").parse().expect("a number");
    assert!((LARGE_BYTES..2 * LARGE_BYTES).contains(&read_bytes), "{read_bytes} bytes were read for one file");
    drop(keeper.stdin.take());
    keeper.wait().expect("it ends");
    scene.drain();
}

#[test]
fn interruptions_are_not_seen() {
    let (scene, program) = written(Engine::Pwrite);
    let native = process::run(scene.native_command(&program).arg("interrupted")).expect_success();
    let captured = process::run(scene.preloaded_command(&program).arg("interrupted")).expect_success();
    assert_eq!(captured.text(), native.text(), "{}", captured.describe());
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
    scene.drain();
    scene.verify();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "from the aggregates");
}
