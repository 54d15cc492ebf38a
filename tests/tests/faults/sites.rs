//! Every call of the flusher on the parallel file system fails once, with each of the errors that file systems have:
//! nothing is lost, nothing hangs, and nothing wrong is read or shown, in each layout. The list of calls and outcomes
//! is printed.

use std::fs;
use std::panic::catch_unwind;
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sheaf_tests::unreliable::Unreliable;
use sheaf_tests::{Engine, Scene, process, snapshot};

/// What a call on a file system answers when something is wrong with it; the last one has been done all the same.
const ERRORS: [(&str, &str, i32); 6] = [
    ("ENOSPC", "", libc::ENOSPC),
    ("EDQUOT", "", libc::EDQUOT),
    ("EIO", "", libc::EIO),
    ("EROFS", "", libc::EROFS),
    ("ESTALE", "", libc::ESTALE),
    ("answer lost", "lost-", libc::EIO),
];
/// An older file that is replaced, files of all kinds, and what is written by one piece and by several.
const WRITE: &str = "echo new >ckpt/older; mkdir -p ckpt/set; seq 60000 >ckpt/set/large; echo small >ckpt/small; \
                     mv ckpt/small ckpt/set/small; ln -s set/small ckpt/latest";
/// What layout `files` has further calls for: second names, and a file of which a newer version comes from elsewhere.
const WRITE_FILES: &str =
    "ln ckpt/set/large ckpt/second; ln -P ckpt/latest ckpt/again; echo staged >ckpt/elsewhere; chmod 600 ckpt/older";

/// How the flusher writes, and where.
type Side = (Engine, &'static str);

/// What publishes each file as an ordinary one.
const FILES: Side = (Engine::Pwrite, "files");

/// The calls that count: in layout `files` those on the files themselves, too.
fn counting((_, layout): Side, rule: &str) -> String {
    if layout == FILES.1 { format!("everywhere\n{rule}") } else { rule.to_string() }
}

/// A scene over an unreliable file system, with something published before, and something staged.
fn staged(side: Side) -> (Scene, Unreliable) {
    let scene = Scene::new(side.0).in_layout(side.1);
    let unreliable = Unreliable::new(scene.root(), &scene.checkpoints());
    for directory in [scene.native_directory(), scene.captured_directory()] {
        fs::write(directory.join("ckpt/older"), "old\n").expect("the scene is ours");
    }
    let write =
        |command: &mut std::process::Command, script: &str| process::run(command.args(["-c", script])).expect_success();
    let written = if side == FILES { format!("{WRITE}; {WRITE_FILES}") } else { WRITE.to_string() };
    for script in ["seq 20000 >ckpt/earlier", &written] {
        write(&mut scene.native_command("bash"), script);
    }
    write(&mut scene.preloaded_command("bash"), "seq 20000 >ckpt/earlier");
    scene.drain();
    write(scene.preloaded_command("bash").env("SHEAF_ON_EXIT", "leave"), &written);
    scene.kill_flushers();
    if side == FILES {
        let later = SystemTime::now() + Duration::from_secs(60);
        for directory in [scene.native_directory(), scene.captured_directory()] {
            let path = directory.join("ckpt/elsewhere");
            fs::write(&path, "newer\n").expect("the scene is ours");
            let file = fs::File::options().write(true).open(&path).expect("the scene is ours");
            file.set_modified(later).expect("the scene is ours");
        }
    }
    (scene, unreliable)
}

/// A snapshot without what is known only when it is published.
fn without_elsewhere(snapshot: &str) -> Vec<&str> {
    snapshot.lines().filter(|line| !line.ends_with(" elsewhere")).collect()
}

/// What must hold when the store works again.
fn assert_whole(side: Side, scene: &Scene, unreliable: &Unreliable, what: &str) {
    unreliable.rule("");
    let whole = scene.native_snapshot();
    assert_eq!(without_elsewhere(&scene.captured_snapshot()), without_elsewhere(&whole), "{what}: at once");
    scene.drain();
    if side == FILES {
        let real = snapshot::take(&scene.checkpoints()).expect("the scene is ours");
        assert_eq!(real, whole, "{what}: without Sheaf");
    } else {
        scene.verify();
        scene.assert_no_captured_files_on_pfs();
    }
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), whole, "{what}: from the store alone");
}

/// Drains while one call fails; says how that went: published, published at the second try, or refused aloud and
/// published by the next flusher.
fn drained_with(side: Side, rule: &str) -> &'static str {
    let (scene, unreliable) = staged(side);
    unreliable.rule(&counting(side, rule));
    let drained = scene.sheaf(&["drain"]);
    let outcome = match drained.status.code() {
        Some(0) if String::from_utf8_lossy(&drained.stderr).contains("cannot publish") => "second try",
        Some(0) => "published",
        Some(_) => "next flusher",
        None => panic!("{side:?}, {rule}: {}", drained.describe()),
    };
    assert_whole(side, &scene, &unreliable, &format!("{side:?}, {rule}"));
    outcome
}

/// The calls that a drain makes, in order.
fn calls(side: Side) -> Vec<String> {
    let (scene, unreliable) = staged(side);
    unreliable.rule(&counting(side, ""));
    let before = unreliable.log().len();
    scene.drain();
    unreliable.log().split_off(before)
}

/// How a drain ends for each of these errors of one call, in order; prints it as a row of a table.
fn row(side: Side, (index, call): (usize, &str), errors: &[(&str, &str, i32)]) -> Vec<String> {
    let (number, (engine, layout)) = (index + 1, side);
    let outcome = |(name, how, error): &(&str, &str, i32)| {
        let drained = catch_unwind(|| drained_with(side, &format!("* {number} {how}{error}")));
        (name.to_string(), drained.unwrap_or("WRONG"))
    };
    let outcomes: Vec<_> = errors.iter().map(outcome).collect();
    let columns: Vec<_> = ERRORS
        .iter()
        .map(|(name, ..)| outcomes.iter().find(|(known, _)| known == name).map_or("", |(_, outcome)| outcome))
        .collect();
    println!("| {layout} {engine:?} {number} | {call} | {} |", columns.join(" | "));
    let wrong = outcomes.iter().filter(|(_, outcome)| *outcome == "WRONG");
    wrong.map(|(name, _)| format!("{side:?}, call {number} ({call}), {name}")).collect()
}

/// `scripts/fault-sites.sh` writes the whole table that this makes into `tests/SITES.md`.
#[test]
fn every_call_on_the_store_fails_once() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let all = std::env::var_os("SHEAF_TEST_ALL_ERRORS").is_some();
    println!("| call | what | {} |", ERRORS.map(|(name, ..)| name).join(" | "));
    println!("| --- | --- |{}", " --- |".repeat(ERRORS.len()));
    let mut wrong = Vec::new();
    // With the tests, some calls, with one error each.
    let sides = [
        ((Engine::IoUring, "shared:1"), 0.05),
        (FILES, 0.05),
        ((Engine::IoUring, "node"), 0.1),
        ((Engine::Pwrite, "node"), 0.1),
    ];
    for (side, share) in sides {
        let calls = calls(side);
        assert!(calls.len() > 20, "{side:?}: {calls:?}");
        for (index, call) in calls.iter().enumerate() {
            let chosen = random.random_range(0..ERRORS.len());
            if all {
                wrong.extend(row(side, (index, call), &ERRORS));
            } else if random.random_bool(share) {
                wrong.extend(row(side, (index, call), &ERRORS[chosen..=chosen]));
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
        ("second names", format!("link * {}", libc::EPERM)),
    ];
    for (index, (what, rule)) in lacking.iter().enumerate() {
        let other = [FILES, (Engine::IoUring, "shared:1")][index % 2];
        for side in [(Engine::IoUring, "node"), (Engine::Pwrite, "node"), other] {
            println!("{side:?}, without {what}: {}", drained_with(side, rule));
        }
    }
}
