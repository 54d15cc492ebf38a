//! A further tier: what a store does not take fast enough waits there, and nothing of it counts as published before the
//! store has it, whoever dies meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sheaf_tests::disk::Memory;
use sheaf_tests::unreliable::Unreliable;
use sheaf_tests::{Engine, Scene, process};

use super::full::{Measure, SMALL, compile, measured};

/// Half of a gibibyte through a sixteenth of one.
const LARGE: Measure = Measure { stage_bytes: 64 << 20, files: 128, file_bytes: 4 << 20, bandwidth: "1T" };

/// What the flusher says of itself.
pub fn status(scene: &Scene) -> serde_json::Value {
    let report = scene.sheaf(&["status", "--json"]).expect_success();
    serde_json::from_slice(&report.stdout).expect("one JSON text")
}

/// Whether `sheaf wait` says that all is published, or gives up because the store takes nothing.
pub fn is_acknowledged(scene: &Scene) -> bool {
    let mut wait = scene.sheaf_command();
    let wait = process::run(wait.env("SHEAF_STORE_TIMEOUT", "1").arg("wait"));
    match wait.status.code() {
        Some(0) => true,
        Some(2) if String::from_utf8_lossy(&wait.stderr).contains("taken nothing") => false,
        _ => panic!("{}", wait.describe()),
    }
}

/// GNU tar gets the same from the store's aggregates as a program has written natively.
fn assert_tar_extracts(scene: &Scene) {
    let out = scene.root().join("out");
    fs::create_dir(&out).expect("the scene is ours");
    for aggregate in scene.store_aggregates() {
        process::run(scene.native_command("tar").arg("xf").arg(aggregate).arg("-C").arg(&out)).expect_success();
    }
    let inside = scene.checkpoints();
    let extracted = out.join(inside.strip_prefix("/").expect("an absolute path"));
    let native = scene.native_directory().join("ckpt");
    process::run(scene.native_command("diff").arg("-r").args([extracted, native])).expect_success();
}

fn through_a_store_that_takes_nothing(engine: Engine, call: &str, measure: &Measure) {
    let scene = Scene::with_further_tier(engine);
    let stage = Memory::new(measure.stage_bytes, scene.tier());
    let unreliable = Unreliable::new(scene.root(), &scene.checkpoints());
    let program = compile(&scene, "gcc", "full.c");
    let run = |row: &str| {
        process::run(measured(scene.preloaded_command(&program).arg(row), measure)).expect_success();
    };
    process::run(measured(scene.native_command(&program).arg("write"), measure)).expect_success();
    unreliable.rule(&format!("{call} * hang"));
    run("write");
    run("check");
    scene.assert_no_captured_files_on_pfs();
    assert!(!is_acknowledged(&scene), "{engine:?}, {call}: the store has nothing");
    assert!(status(&scene)["spooled_bytes"].as_u64() > Some(0), "{}", status(&scene));
    unreliable.rule("");
    scene.sheaf(&["wait"]).expect_success();
    assert!(scene.spooled().is_empty(), "{:?}", scene.spooled());
    run("check");
    scene.drain();
    scene.verify();
    scene.assert_no_captured_files_on_pfs();
    assert_tar_extracts(&scene);
    scene.wipe_stage();
    run("check");
    scene.drain();
    drop(stage);
}

#[test]
fn a_store_that_takes_nothing() {
    for (engine, call) in [(Engine::IoUring, "write"), (Engine::Pwrite, "fsync")] {
        through_a_store_that_takes_nothing(engine, call, &SMALL);
    }
}

#[test]
#[ignore = "takes minutes: cargo test -p sheaf-tests --test faults -- --ignored half_a_gibibyte"]
fn half_a_gibibyte_while_the_store_takes_nothing() {
    through_a_store_that_takes_nothing(Engine::IoUring, "write", &LARGE);
}

/// What has a store take next to nothing, and a small stage have all that is written spooled.
pub const SLOW: [(&str, &str); 3] =
    [("SHEAF_BANDWIDTH", "1"), ("SHEAF_STAGE_LIMIT", "1K"), ("SHEAF_STORE_TIMEOUT", "1")];
/// More than the limit in the end.
pub const WRITE: &str = "mkdir -p ckpt/set; for number in 1 2 3 4 5 6; do seq $number 30000 >ckpt/new; mv ckpt/new ckpt/state-$number; done; \
                     ln ckpt/state-1 ckpt/set/link; ln -s state-1 ckpt/latest; seq 1000 >ckpt/set/small";
/// What is done to it when it is spooled.
const CHANGE: &str = "mv ckpt/state-2 ckpt/set/moved; rm ckpt/state-3; seq 7 25000 >ckpt/state-4; mv ckpt/state-5 ckpt/state-6; \
                      rm ckpt/set/link; seq 1000 >>ckpt/set/small";

pub fn preloaded_slowly(scene: &Scene, script: &str) {
    let mut command = scene.preloaded_command("bash");
    process::run(command.envs(SLOW).args(["-ec", script])).expect_success();
}

/// The same without a limit to what the store takes.
pub fn preloaded_in_little_room(scene: &Scene, script: &str) {
    let mut command = scene.preloaded_command("bash");
    process::run(command.env(SLOW[1].0, SLOW[1].1).args(["-ec", script])).expect_success();
}

/// What each of them writes last, and its size then.
pub const SCRIPTS: [(&str, (&str, usize)); 2] = [(WRITE, ("set/small", 3893)), (CHANGE, ("set/small", 7786))];

/// Waits until what was written last is in the further tier, with everything that the store does not have.
pub fn await_spooled(scene: &Scene, (name, size_bytes): (&str, usize)) {
    let deadline = Instant::now() + process::LIMIT;
    let path = scene.checkpoints().join(name);
    // One that is removed meanwhile, because the store has it, has nothing.
    let size_in = |file: &PathBuf| process::run(scene.sheaf_command().arg("cat").arg(file).arg(&path)).stdout.len();
    loop {
        let (status, files) = (status(scene), scene.spooled());
        let has_all = status["waiting"] == 0 && status["in_flight"] == files.len() && !files.is_empty();
        // One that was killed has left it where it was.
        if status["running"] == false || has_all && files.iter().any(|file| size_in(file) == size_bytes) {
            return;
        }
        assert!(Instant::now() < deadline, "{status}, {files:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A scene of which the store has next to nothing, and the further tier the rest.
pub fn spooled_scene(engine: Engine) -> Scene {
    let scene = Scene::with_further_tier(engine);
    for (script, last) in SCRIPTS {
        scene.native(&["bash", "-ec", script]).expect_success();
        preloaded_slowly(&scene, script);
        await_spooled(&scene, last);
    }
    scene
}

pub fn assert_recovers(scene: &Scene, what: &str) {
    scene.drain();
    assert!(scene.spooled().is_empty(), "{what}: {:?}", scene.spooled());
    scene.verify();
    scene.assert_no_captured_files_on_pfs();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{what}, from the aggregates alone");
}

#[test]
fn the_next_flusher_goes_on_with_what_is_spooled() {
    let scene = spooled_scene(Engine::IoUring);
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
    let listed = || process::run(scene.sheaf_command().arg("ls").arg(scene.store())).expect_success().text();
    assert!(!listed().contains("moved"), "other nodes see it: {}", listed());
    assert!(scene.kill_flushers() > 0);
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "by the next flusher");
    assert_recovers(&scene, "killed");
    assert!(listed().contains("moved"), "{}", listed());
}

/// As after a reboot of a node whose first tier was memory: what is left is brought to the store before anybody is
/// answered.
#[test]
fn the_first_tier_is_lost() {
    let scene = spooled_scene(Engine::Pwrite);
    scene.kill_flushers();
    scene.wipe_stage();
    assert_recovers(&scene, "lost");
    let scene = spooled_scene(Engine::IoUring);
    scene.kill_flushers();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "by the next program");
    assert_recovers(&scene, "lost, and used");
}

/// The store could not be made, and the first tier is lost: what waits in the further tier is all that there is. A
/// program that sees no store would start from zero, over it.
#[test]
fn what_waits_for_a_store_that_was_never_made() {
    let scene = Scene::with_further_tier(Engine::Pwrite);
    let unreliable = Unreliable::new(scene.root(), &scene.checkpoints());
    fs::create_dir(scene.checkpoints().join("set")).expect("the scene is ours");
    unreliable.rule(&format!("everywhere\nmkdir * {}", libc::EROFS));
    let (script, last) = SCRIPTS[0];
    scene.native(&["bash", "-ec", script]).expect_success();
    preloaded_slowly(&scene, script);
    await_spooled(&scene, last);
    scene.kill_flushers();
    scene.wipe_stage();
    unreliable.rule("");
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
    assert_recovers(&scene, "never made");
}

/// Bits flip in a file that only the further tier has: nobody gets them, everything else is kept, and who drains is
/// told.
#[test]
fn what_is_damaged_in_a_further_tier_is_told() {
    for memory_is_lost in [false, true] {
        let scene = spooled_scene(Engine::IoUring);
        scene.kill_flushers();
        let [before, after]: [&[u8]; 2] = [b"\x007\n8\n9\n10\n", b"\x007\n8\n9\n99\n"];
        let damaged = scene.spooled().into_iter().filter(|file| replace_in(file, before, after)).count();
        assert_eq!(damaged, 1, "state-4 is in one of them");
        if memory_is_lost {
            scene.wipe_stage();
        }
        let drain = scene.sheaf(&["drain"]);
        assert_eq!(drain.status.code(), Some(2), "{}", drain.describe());
        assert!(scene.spooled().is_empty(), "{:?}", scene.spooled());
        scene.verify();
        scene.wipe_stage();
        let read = |name: &str| process::run(scene.preloaded_command("cat").arg(format!("ckpt/{name}")));
        for name in ["state-1", "latest", "state-6", "set/moved", "set/small"] {
            let native = fs::read(scene.native_directory().join("ckpt").join(name)).expect("the scene is ours");
            assert!(read(name).expect_success().stdout == native, "{name}");
        }
        // The store has the version before it, if any.
        let older = process::run(scene.native_command("seq").args(["4", "30000"])).stdout;
        let found = read("state-4");
        assert!(!found.status.success() || found.stdout == older, "{}", found.describe());
        scene.drain();
    }
}

/// Replaces these bytes in a file, if it has them.
fn replace_in(file: &Path, before: &[u8], after: &[u8]) -> bool {
    let mut bytes = fs::read(file).expect("the scene is ours");
    let Some(at) = bytes.windows(before.len()).position(|window| window == before) else { return false };
    bytes[at..at + after.len()].copy_from_slice(after);
    fs::write(file, bytes).expect("the scene is ours");
    true
}

/// Calls that change the store or a tier. The one that kills is not made.
const CALLS: [&str; 7] = ["unlink", "renameat2", "fallocate", "pwrite64", "io_uring_enter", "fsync", "fdatasync"];

/// The same command, which loses a flusher when a thread of it makes its `step`th such call.
fn killed_at(scene: &Scene, call: &str, step: u32, command: &Command) -> Command {
    let (trace, log) = (format!("trace={call}"), trace_log(scene));
    let inject = format!("inject={call}:error=EINTR:signal=KILL:when={step}");
    scene.traced(&["-f", "-e", &trace, "-e", &inject, "-o", log.to_str().expect("ours")], command)
}

fn trace_log(scene: &Scene) -> PathBuf {
    scene.root().join("strace.log")
}

/// Whether a flusher was lost by that.
fn was_killed(scene: &Scene) -> bool {
    fs::read_to_string(trace_log(scene)).expect("strace writes its log").contains("killed by SIGKILL")
}

/// A flusher that is killed while it brings to the store what is spooled.
fn killed_while_storing(engine: Engine, call: &str, step: u32) -> bool {
    let scene = spooled_scene(engine);
    scene.kill_flushers();
    let mut drain = scene.sheaf_command();
    drain.arg("drain");
    process::run(&mut killed_at(&scene, call, step, &drain));
    let killed = was_killed(&scene);
    let what = format!("{engine:?}, storing, killed at {call} {step}");
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{what}");
    assert_recovers(&scene, &what);
    killed
}

/// A flusher that is killed while it spools.
fn killed_while_spooling(engine: Engine, call: &str, step: u32) -> bool {
    let scene = Scene::with_further_tier(engine);
    let mut flusher = scene.sheaf_command();
    let running = process::start(&mut killed_at(&scene, call, step, flusher.envs(SLOW).arg("flusher")));
    while status(&scene)["running"] != true && !trace_log(&scene).exists() {}
    for script in [WRITE, CHANGE] {
        scene.native(&["bash", "-ec", script]).expect_success();
        preloaded_slowly(&scene, script);
    }
    await_spooled(&scene, SCRIPTS[1].1);
    // Asked before the test itself kills.
    let killed = was_killed(&scene);
    scene.kill_flushers();
    running.finish();
    let what = format!("{engine:?}, spooling, killed at {call} {step}");
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{what}");
    assert_recovers(&scene, &what);
    killed
}

#[test]
fn a_flusher_that_is_killed() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for killed_while in [killed_while_spooling, killed_while_storing] {
        for _ in 0..3 {
            let engine = if random.random_bool(0.5) { Engine::IoUring } else { Engine::Pwrite };
            let (call, step) = (CALLS[random.random_range(0..CALLS.len())], random.random_range(1..9));
            killed_while(engine, call, step);
        }
    }
}

#[test]
#[ignore = "takes minutes: cargo test -p sheaf-tests --test faults -- --ignored every_step_of_a_further_tier"]
fn every_step_of_a_further_tier() {
    for killed_while in [killed_while_spooling, killed_while_storing] {
        for engine in [Engine::IoUring, Engine::Pwrite] {
            for call in CALLS {
                let steps = (1..60).take_while(|step| killed_while(engine, call, *step)).count();
                println!("{engine:?}: {steps} calls of {call}");
            }
        }
    }
}

/// Each way in which the store can refuse what is brought to it from the further tier, some calls long.
#[test]
fn a_store_that_fails_while_it_gets_what_was_spooled() {
    for (engine, rule) in [
        (Engine::IoUring, format!("fsync 3 {}\nfsync 7 {}", libc::EIO, libc::EIO)),
        (Engine::Pwrite, format!("write 4 {}\nwrite 9 short\ncreate 2 {}", libc::ENOSPC, libc::EROFS)),
    ] {
        let scene = Scene::with_further_tier(engine);
        let unreliable = Unreliable::new(scene.root(), &scene.checkpoints());
        unreliable.rule("fsync * hang");
        for (script, last) in SCRIPTS {
            scene.native(&["bash", "-ec", script]).expect_success();
            preloaded_in_little_room(&scene, script);
            await_spooled(&scene, last);
        }
        unreliable.rule(&rule);
        assert_recovers(&scene, &rule);
    }
}

/// What finds no room in any tier goes to the parallel file system, as with one tier.
#[test]
fn a_further_tier_that_is_full() {
    let scene = Scene::with_further_tier(Engine::IoUring);
    let tiers = [(SMALL.stage_bytes, scene.tier()), (36 << 20, &scene.further_tier())];
    let tiers = tiers.map(|(bytes, place)| Memory::new(bytes, place));
    let unreliable = Unreliable::new(scene.root(), &scene.checkpoints());
    let program = compile(&scene, "gcc", "full.c");
    let run = |row: &str| {
        let mut command = scene.preloaded_command(&program);
        process::run(measured(command.arg(row), &SMALL).env("SHEAF_TIMEOUT", "1")).expect_success();
    };
    unreliable.rule("write * hang");
    run("write");
    assert!(!scene.spooled().is_empty());
    let is_real = |number: &u64| scene.checkpoints().join(format!("file.{number}")).exists();
    let escaped = (0..SMALL.files).filter(is_real).count();
    assert!(escaped > 0 && escaped < 40, "{escaped} files found no room");
    unreliable.rule("");
    run("check");
    scene.drain();
    run("check");
    scene.drain();
    scene.wipe_stage();
    run("check");
    scene.drain();
    drop(tiers);
}

/// A spooled file is not durable, and what it replaces is needed for as long as the store does not have it.
#[test]
fn what_is_spooled_is_not_published() {
    let scene = Scene::with_further_tier(Engine::IoUring);
    let real = scene.checkpoints().join("older");
    fs::write(&real, "older\n").expect("the scene is ours");
    preloaded_slowly(&scene, "seq 30000 >ckpt/first; seq 30000 >ckpt/older; seq 30000 >ckpt/last");
    await_spooled(&scene, ("last", 168_894));
    assert_eq!(fs::read_to_string(&real).expect("the store does not have its successor"), "older\n");
    assert!(!is_acknowledged(&scene));
    let script = "
import os
file = os.open('ckpt/durable', os.O_CREAT | os.O_WRONLY)
os.write(file, b'durable' * 1000)
try:
    os.fsync(file)
except OSError as error:
    print(error.errno)";
    let mut durable = scene.preloaded_command("python3");
    durable.env("SHEAF_DURABLE", "fsync").env("SHEAF_STORE_TIMEOUT", "1").envs(SLOW);
    let said = process::run(durable.args(["-c", script])).expect_success().text();
    assert_eq!(said, format!("{}\n", libc::EIO));
    scene.kill_flushers();
    scene.drain();
    assert!(!real.exists());
    scene.wipe_stage();
    assert_eq!(
        scene.preloaded(&["bash", "-c", "cat ckpt/older | tail -1; wc -c <ckpt/durable"]).expect_success().text(),
        "30000\n7000\n"
    );
}
