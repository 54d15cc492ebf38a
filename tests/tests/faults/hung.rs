//! A parallel file system that does not answer, or only with errors: the program goes on, `sheaf run` gives up in its
//! time, and everything is published when the file system works again.

use std::fs;
use std::time::{Duration, Instant};

use sheaf_tests::scene::artefact;
use sheaf_tests::unreliable::Unreliable;
use sheaf_tests::{Engine, Scene, process};

/// What `sheaf run` returns when the program succeeded and its files could not be published.
const NOT_PUBLISHED: i32 = 120;
/// What `sheaf drain` returns then.
const NOT_DRAINED: i32 = 2;
const EARLIER: &str = "mkdir -p ckpt/set; seq 20000 >ckpt/earlier";
const WRITE: &str = "echo small >ckpt/set/small; \
                     for number in 1 2 3; do seq $number 60000 >ckpt/new; mv ckpt/new ckpt/state-$number; done; \
                     cat ckpt/state-3 >ckpt/copy";

/// A scene over a file system that has been used before, with what the program is to write on the native side.
fn used_before(engine: Engine, layout: &'static str) -> (Scene, Unreliable) {
    let scene = Scene::new(engine).in_layout(layout);
    let unreliable = Unreliable::new(scene.root(), &scene.checkpoints());
    for script in [EARLIER, WRITE] {
        scene.native(&["bash", "-c", script]).expect_success();
    }
    scene.preloaded(&["bash", "-c", EARLIER]).expect_success();
    scene.drain();
    (scene, unreliable)
}

fn assert_recovers(scene: &Scene, layout: &str) {
    scene.drain();
    if layout != "files" {
        scene.verify();
        scene.assert_no_captured_files_on_pfs();
    }
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
}

/// Runs a program while every call that `rule` names does what it says, and publishes when that is over.
fn over_a_lasting_fault((engine, layout): (Engine, &'static str), call: &str, action: &str) {
    let what = format!("{engine:?}, {layout}, {call} {action}");
    let (scene, unreliable) = used_before(engine, layout);
    let everywhere = if layout == "files" { "everywhere\n" } else { "" };
    unreliable.rule(&format!("{everywhere}{call} * {action}"));
    let mut run = scene.sheaf_command();
    run.args(["run", "--store-timeout", "2", "--", "bash", "-c", WRITE]).env("SHEAF_TIMEOUT", "3");
    let finished = process::run(&mut run);
    assert_eq!(finished.status.code(), Some(NOT_PUBLISHED), "{what}: {}", finished.describe());
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{what}: while it lasts");
    scene.sheaf(&["status"]).expect_success();
    if action != "hang" {
        // What hangs in a call cannot be killed; here, the next flusher meets the same, and then publishes.
        scene.kill_flushers();
        let drained = process::run(scene.sheaf_command().arg("drain").env("SHEAF_STORE_TIMEOUT", "1"));
        assert_eq!(drained.status.code(), Some(NOT_DRAINED), "{what}: {}", drained.describe());
        scene.kill_flushers();
    }
    unreliable.rule("");
    assert_recovers(&scene, layout);
}

/// Every call that changes the store hangs, as when the servers of the data are down and that of the names is not.
#[test]
fn whatever_changes_the_store_hangs() {
    for (side, calls) in [
        ((Engine::IoUring, "node"), ["write", "fallocate", "fsync"]),
        ((Engine::Pwrite, "node"), ["create", "rename-with-flags", "fsync-directory"]),
    ] {
        for call in calls {
            over_a_lasting_fault(side, call, "hang");
        }
    }
}

/// As above, where nodes share aggregates, and where each file is published under its own name.
#[test]
fn whatever_changes_the_store_hangs_in_other_layouts() {
    for (side, call) in [((Engine::IoUring, "shared:1"), "write"), ((Engine::IoUring, "files"), "fsync")] {
        over_a_lasting_fault(side, call, "hang");
    }
}

/// Each write, or each flush, is answered with an error until somebody mends the store.
#[test]
fn errors_last() {
    for (side, call, error) in [
        ((Engine::Pwrite, "shared:2"), "fsync", libc::EIO),
        ((Engine::Pwrite, "shared:1"), "write", libc::EDQUOT),
        ((Engine::IoUring, "files"), "fsync", libc::EIO),
    ] {
        over_a_lasting_fault(side, call, &error.to_string());
    }
}

/// What a program writes whose publication then hangs.
const STATE: &str = "seq 9000 >ckpt/state";

/// Writes [`STATE`], and returns when the call that is to give the file its real name hangs, as it does until there is
/// another rule.
fn hang_in_rename(scene: &Scene, unreliable: &Unreliable) {
    let before = unreliable.log().len();
    unreliable.rule("everywhere\nrename * hang\nrename-with-flags * hang");
    let mut write = scene.preloaded_command("bash");
    process::run(write.args(["-c", STATE]).env("SHEAF_ON_EXIT", "leave")).expect_success();
    let deadline = Instant::now() + process::LIMIT;
    while !unreliable.log()[before..].iter().any(|call| call.starts_with("rename") && call.ends_with("Hang")) {
        assert!(Instant::now() < deadline, "{}: nothing is published", scene.root().display());
        std::thread::yield_now();
    }
}

/// Layout `files`: the call that gives a file its real name hangs, a program goes on with the name, and then the call
/// is done after all.
#[test]
fn a_rename_that_is_done_late() {
    for script in ["rm ckpt/state", "mv ckpt/state ckpt/other", "seq 5 >ckpt/next; mv ckpt/next ckpt/state"] {
        let (scene, unreliable) = used_before(Engine::Pwrite, "files");
        scene.preloaded(&["bash", "-c", WRITE]).expect_success();
        scene.drain();
        for script in [STATE, script] {
            scene.native(&["bash", "-c", script]).expect_success();
        }
        hang_in_rename(&scene, &unreliable);
        let mut change = scene.preloaded_command("bash");
        let mut program = process::start(change.args(["-c", script]).env("SHEAF_TIMEOUT", "1"));
        // It may have to wait for the directory, as natively.
        program.wait_for(Duration::from_secs(2));
        unreliable.rule("");
        program.finish().expect_success();
        scene.drain();
        assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{script}");
        scene.wipe_stage();
        assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{script}: the stage is lost");
    }
}

/// Layout `files`: a program has waited for the names in vain, has found its own in the tree, and before it does
/// anything with it, the name leaves the tree after all.
#[test]
fn a_name_that_leaves_after_a_wait_in_vain() {
    const CALLS: &str = "unlink,unlinkat,rename,renameat,renameat2,link,linkat";
    for change in [&["rm", "ckpt/state"][..], &["mv", "ckpt/state", "ckpt/other"], &["ln", "ckpt/state", "ckpt/other"]]
    {
        let (scene, unreliable) = used_before(Engine::Pwrite, "files");
        scene.preloaded(&["bash", "-c", WRITE]).expect_success();
        scene.drain();
        for command in [&["bash", "-c", STATE][..], change] {
            scene.native(command).expect_success();
        }
        hang_in_rename(&scene, &unreliable);
        let mut command = scene.preloaded_command(change[0]);
        command.args(&change[1..]).env("SHEAF_TIMEOUT", "1");
        let (calls, late) = (format!("trace={CALLS}"), format!("inject={CALLS}:delay_enter=2000000:when=1"));
        let options = ["-f", "-qq", "-o", "/dev/null", "-e", &calls, "-e", &late];
        let mut program = process::start(&mut scene.traced(&options, &command));
        // Its wait is over then, and its call has begun.
        program.wait_for(Duration::from_millis(1500));
        unreliable.rule("");
        program.finish().expect_success();
        scene.drain();
        assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{change:?}");
        scene.wipe_stage();
        assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{change:?}: the stage is lost");
    }
}

/// Layout `files`: a move that cannot be made is not made again and again while the names cannot be had.
#[test]
fn a_move_to_nowhere_while_a_rename_hangs() {
    let (scene, unreliable) = used_before(Engine::Pwrite, "files");
    scene.preloaded(&["bash", "-c", WRITE]).expect_success();
    scene.drain();
    scene.native(&["bash", "-c", STATE]).expect_success();
    hang_in_rename(&scene, &unreliable);
    let mut change = scene.preloaded_command("mv");
    let moved = process::run(change.args(["ckpt/state", "nowhere/state"]).env("SHEAF_TIMEOUT", "1"));
    assert_eq!(moved.status.code(), Some(1), "{}", moved.describe());
    unreliable.rule("");
    assert_recovers(&scene, "files");
}

/// Layout `files`: what is written again and again, because it cannot be synced, is no progress: whoever waits for
/// progress would never give up.
#[test]
fn what_was_written_in_vain_does_not_count() {
    const LARGE: &str = "seq 60000 >ckpt/large";
    let (scene, unreliable) = used_before(Engine::Pwrite, "files");
    scene.preloaded(&["bash", "-c", WRITE]).expect_success();
    scene.drain();
    unreliable.rule(&format!("everywhere\nfsync * {}", libc::EIO));
    let before = unreliable.log().len();
    scene.native(&["bash", "-c", LARGE]).expect_success();
    let script = format!("{LARGE}; read line <gate");
    let gate = scene.gate();
    let program = process::start(scene.preloaded_command("bash").args(["-c", &script]));
    let deadline = Instant::now() + process::LIMIT;
    let has_failed = || unreliable.log()[before..].iter().filter(|call| call.starts_with("fsync Fail")).count();
    while has_failed() < 3 {
        assert!(Instant::now() < deadline, "nothing is tried");
        std::thread::sleep(Duration::from_millis(5));
    }
    let report = scene.sheaf(&["status", "--json"]).expect_success();
    let status: serde_json::Value = serde_json::from_slice(&report.stdout).expect("one JSON text");
    let once_bytes = fs::metadata(scene.native_directory().join("ckpt/large")).expect("the scene is ours").len();
    let written_bytes = status["written_bytes"].as_u64().expect("a flusher lives");
    assert!(written_bytes < 2 * once_bytes, "{written_bytes}");
    unreliable.rule("");
    fs::write(&gate, "\n").expect("the program reads it");
    program.finish().expect_success();
    assert_recovers(&scene, "files");
}

/// `sheaf drain` waits for programs as long as they live. When they are gone, and what the last one has left cannot be
/// published, it waits for the store no longer than for anything else.
#[test]
fn what_the_last_program_leaves_is_not_waited_for_without_end() {
    let (scene, unreliable) = used_before(Engine::IoUring, "node");
    let gate = scene.gate();
    let script = format!("{WRITE}; echo ready >ready; read line <gate; seq 30000 >ckpt/late; kill -9 $$");
    let program = process::start(scene.preloaded_command("bash").args(["-c", &script]));
    let program = program.await_file(&scene.captured_directory().join("ready"));
    let said = scene.captured_directory().join("said");
    let mut drain = scene.preloaded_command("bash");
    drain.args(["-c", "exec \"$0\" drain 2>said"]).arg(artefact("sheaf"));
    let mut drain = process::start(drain.env_remove("LD_PRELOAD").env("SHEAF_STORE_TIMEOUT", "2"));
    let deadline = Instant::now() + process::LIMIT;
    while !fs::read_to_string(&said).is_ok_and(|text| text.contains("waiting for programs")) {
        assert!(Instant::now() < deadline && !drain.wait_for(Duration::from_millis(5)), "it does not wait");
    }
    unreliable.rule("write * hang");
    fs::write(&gate, "\n").expect("the program reads it");
    program.finish();
    let drained = drain.finish();
    assert_eq!(drained.status.code(), Some(NOT_DRAINED), "{}", drained.describe());
    unreliable.rule("");
    scene.native(&["bash", "-c", &format!("{WRITE}; seq 30000 >ckpt/late")]).expect_success();
    assert_recovers(&scene, "node");
}

/// The whole file system stops while the program runs. Names that the program has not used since are looked for there,
/// with or without Sheaf; what it has open, and `sheaf`, goes on.
#[test]
fn everything_hangs() {
    let (scene, unreliable) = used_before(Engine::IoUring, "node");
    let gate = scene.gate();
    let wait = format!(
        "exec 3>ckpt/open; echo begin >&3; {WRITE}; echo ready >ready; read line <gate; seq 60000 >&3; exec 3>&-"
    );
    scene.native(&["bash", "-c", "echo begin >ckpt/open; seq 60000 >>ckpt/open"]).expect_success();
    // Nothing is published before the file system stops.
    unreliable.rule("fsync * hang");
    let mut run = scene.sheaf_command();
    let program = process::start(run.args(["run", "--store-timeout", "2", "--", "bash", "-c", &wait]));
    let deadline = Instant::now() + process::LIMIT;
    while !scene.captured_directory().join("ready").exists() {
        assert!(Instant::now() < deadline, "the program does not get on");
        std::thread::yield_now();
    }
    unreliable.stop();
    fs::write(&gate, "\n").expect("the program reads it");
    let finished = program.finish();
    assert_eq!(finished.status.code(), Some(NOT_PUBLISHED), "{}", finished.describe());
    scene.sheaf(&["status"]).expect_success();
    unreliable.rule("");
    unreliable.go_on();
    assert_recovers(&scene, "node");
}

/// A published file is renamed while the store takes nothing: a directory of the store that is looked into for the
/// first time is not known before that is published, and then nobody waits for it again and again.
#[test]
fn a_directory_that_must_wait_is_waited_for_once() {
    let (scene, unreliable) = used_before(Engine::IoUring, "node");
    scene.preloaded(&["bash", "-c", "seq 100 >ckpt/set/stored"]).expect_success();
    scene.drain();
    scene.wipe_stage();
    unreliable.rule("fsync * hang");
    let script = "import errno, os
os.rename('ckpt/earlier', 'ckpt/renamed')
for turn in range(20):
    try:
        os.stat('ckpt/set/stored')
        raise AssertionError('known')
    except OSError as error:
        assert error.errno == errno.EIO, error";
    let begin = Instant::now();
    process::run(scene.preloaded_command("python3").args(["-c", script]).env("SHEAF_TIMEOUT", "5")).expect_success();
    assert!(begin.elapsed() < Duration::from_secs(20 * 5), "it waits again and again");
    unreliable.rule("");
    let script = "seq 20000 | cmp - ckpt/renamed && cat ckpt/set/stored";
    let seen = scene.preloaded(&["bash", "-c", script]).expect_success();
    assert_eq!(seen.text().lines().count(), 100);
    scene.drain();
}
