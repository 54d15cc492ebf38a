//! Every call of the flusher on the store fails once, with each of the errors that file systems have: nothing is lost,
//! nothing hangs, and nothing wrong is read or shown. The list of calls and outcomes is printed.

use std::fs;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sheaf_tests::unreliable::Unreliable;
use sheaf_tests::{Engine, Scene, process};

/// What a call on a file system answers when something is wrong with it.
const ERRORS: [(&str, i32); 5] = [
    ("ENOSPC", libc::ENOSPC),
    ("EDQUOT", libc::EDQUOT),
    ("EIO", libc::EIO),
    ("EROFS", libc::EROFS),
    ("ESTALE", libc::ESTALE),
];
/// An older file that is replaced, files of all kinds, and what is written by one piece and by several.
const WRITE: &str = "echo new >ckpt/older; mkdir -p ckpt/set; seq 60000 >ckpt/set/large; echo small >ckpt/small; \
                     mv ckpt/small ckpt/set/small; ln -s set/small ckpt/latest";

/// A scene over an unreliable file system, with something published before, and something staged.
fn staged(engine: Engine) -> (Scene, Unreliable) {
    let scene = Scene::new(engine);
    let unreliable = Unreliable::new(scene.root(), &scene.checkpoints());
    for directory in [scene.native_directory(), scene.captured_directory()] {
        fs::write(directory.join("ckpt/older"), "old\n").expect("the scene is ours");
    }
    let write =
        |command: &mut std::process::Command, script| process::run(command.args(["-c", script])).expect_success();
    for script in ["seq 20000 >ckpt/earlier", WRITE] {
        write(&mut scene.native_command("bash"), script);
    }
    write(&mut scene.preloaded_command("bash"), "seq 20000 >ckpt/earlier");
    scene.drain();
    write(scene.preloaded_command("bash").env("SHEAF_ON_EXIT", "leave"), WRITE);
    scene.kill_flushers();
    (scene, unreliable)
}

/// What must hold when the store works again.
fn assert_whole(scene: &Scene, unreliable: &Unreliable, what: &str) {
    unreliable.rule("");
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{what}: at once");
    scene.drain();
    scene.verify();
    scene.assert_no_captured_files_on_pfs();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{what}: from the aggregates alone");
}

/// Drains while one call fails; says how that went.
fn drained_with(engine: Engine, rule: &str) -> &'static str {
    let (scene, unreliable) = staged(engine);
    unreliable.rule(rule);
    let drained = scene.sheaf(&["drain"]);
    let outcome = match drained.status.code() {
        Some(0) if String::from_utf8_lossy(&drained.stderr).contains("cannot publish") => "published at the second try",
        Some(0) => "published",
        Some(_) => "refused aloud, published by the next flusher",
        None => panic!("{engine:?}, {rule}: {}", drained.describe()),
    };
    assert_whole(&scene, &unreliable, &format!("{engine:?}, {rule}"));
    outcome
}

/// The calls that a drain makes on the store, in order.
fn calls(engine: Engine) -> Vec<String> {
    let (scene, unreliable) = staged(engine);
    let before = unreliable.log().len();
    scene.drain();
    unreliable.log().split_off(before)
}

#[test]
fn every_call_on_the_store_fails_once() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let all = std::env::var_os("SHEAF_TEST_ALL_ERRORS").is_some();
    for engine in [Engine::IoUring, Engine::Pwrite] {
        let calls = calls(engine);
        assert!(calls.len() > 20, "{engine:?}: {calls:?}");
        for (index, call) in calls.iter().enumerate() {
            // With the tests, one in eight, with one error each.
            if !all && !random.random_bool(0.12) {
                continue;
            }
            let chosen = random.random_range(0..ERRORS.len());
            for (name, number) in ERRORS.iter().skip(if all { 0 } else { chosen }).take(if all { 5 } else { 1 }) {
                let outcome = drained_with(engine, &format!("* {} {number}", index + 1));
                println!("{engine:?}: call {} ({call}) fails with {name}: {outcome}", index + 1);
            }
        }
    }
}

/// What file systems may lack, and writes that always take half.
#[test]
fn a_file_system_that_lacks_something() {
    let lacking = [
        ("direct access", format!("open-direct * {}", libc::EINVAL)),
        ("room to be reserved", format!("fallocate * {}", libc::EOPNOTSUPP)),
        ("reserving", format!("fallocate * {}", libc::ENOSYS)),
        ("locks", format!("lock * {}", libc::ENOLCK)),
        ("renames that replace nothing", format!("rename-with-flags * {}", libc::EINVAL)),
        ("whole writes", "write * short".to_string()),
        ("whole first writes", "write 1 short\nwrite 3 short".to_string()),
        ("syncing directories", format!("fsync-directory * {}", libc::EINVAL)),
    ];
    for engine in [Engine::IoUring, Engine::Pwrite] {
        for (what, rule) in &lacking {
            println!("{engine:?}, without {what}: {}", drained_with(engine, rule));
        }
    }
}
