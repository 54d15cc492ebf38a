//! Every call of the flusher on the store fails once, with each of the errors that file systems have: nothing is lost,
//! nothing hangs, and nothing wrong is read or shown. The list of calls and outcomes is printed.

use std::fs;
use std::panic::catch_unwind;

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

/// Drains while one call fails; says how that went: published, published at the second try, or refused aloud and
/// published by the next flusher.
fn drained_with(engine: Engine, rule: &str) -> &'static str {
    let (scene, unreliable) = staged(engine);
    unreliable.rule(rule);
    let drained = scene.sheaf(&["drain"]);
    let outcome = match drained.status.code() {
        Some(0) if String::from_utf8_lossy(&drained.stderr).contains("cannot publish") => "second try",
        Some(0) => "published",
        Some(_) => "next flusher",
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

/// How a drain ends for each of these errors of one call, in order; prints it as a row of a table.
fn row(engine: Engine, (index, call): (usize, &str), errors: &[(&str, i32)]) -> Vec<String> {
    let number = index + 1;
    let outcome = |(name, error): &(&str, i32)| {
        let drained = catch_unwind(|| drained_with(engine, &format!("* {number} {error}")));
        (name.to_string(), drained.unwrap_or("WRONG"))
    };
    let outcomes: Vec<_> = errors.iter().map(outcome).collect();
    let columns: Vec<_> = ERRORS
        .iter()
        .map(|(name, _)| outcomes.iter().find(|(known, _)| known == name).map_or("", |(_, outcome)| outcome))
        .collect();
    println!("| {engine:?} {number} | {call} | {} |", columns.join(" | "));
    let wrong = outcomes.iter().filter(|(_, outcome)| *outcome == "WRONG");
    wrong.map(|(name, _)| format!("{engine:?}, call {number} ({call}), {name}")).collect()
}

/// `scripts/fault-sites.sh` writes the whole table that this makes into `tests/SITES.md`.
#[test]
fn every_call_on_the_store_fails_once() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let all = std::env::var_os("SHEAF_TEST_ALL_ERRORS").is_some();
    println!("| call | what | {} |", ERRORS.map(|(name, _)| name).join(" | "));
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let mut wrong = Vec::new();
    for engine in [Engine::IoUring, Engine::Pwrite] {
        let calls = calls(engine);
        assert!(calls.len() > 20, "{engine:?}: {calls:?}");
        for (index, call) in calls.iter().enumerate() {
            // With the tests, one in eight, with one error each.
            let chosen = random.random_range(0..ERRORS.len());
            if all {
                wrong.extend(row(engine, (index, call), &ERRORS));
            } else if random.random_bool(0.12) {
                wrong.extend(row(engine, (index, call), &ERRORS[chosen..=chosen]));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
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
