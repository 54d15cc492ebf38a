//! A store that cannot be written to: the program goes on, the exit code says so in a bounded time, and nothing is
//! lost.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;

use sheaf_tests::disk::Disk;
use sheaf_tests::scene::artefact;
use sheaf_tests::{Engine, Scene, process};

/// What `sheaf run` returns when the program succeeded and its files could not be published.
const NOT_PUBLISHED: i32 = 120;
/// The rename of a published file waits for the store; the first look into another directory must not.
const RENAME: &str = "mv ckpt/earlier ckpt/later";
const WRITE: &str = "for number in 1 2 3 4; do seq $number 200000 >ckpt/new; mv ckpt/new ckpt/state-$number; done; \
                     echo small >ckpt/set/small";

/// Breaks the store, runs a program over it, mends it, and publishes.
fn over_a_broken_store(
    (kind, engine, layout): (&str, Engine, &'static str),
    script: &str,
    break_it: impl Fn(&Scene, &Disk),
    mend: impl Fn(&Scene, &Disk),
) {
    let scene = Scene::new(engine).in_layout(layout);
    let disk = Disk::new(kind, &scene.root().join("disk"), &scene.checkpoints());
    // The store has been used before. Directories are real ones.
    const BEFORE: &str = "mkdir ckpt/set; echo earlier >ckpt/earlier";
    scene.native(&["bash", "-c", BEFORE]).expect_success();
    scene.preloaded(&["bash", "-c", BEFORE]).expect_success();
    scene.drain();
    break_it(&scene, &disk);
    let mut run = scene.sheaf_command();
    let finished = process::run(run.args(["run", "--store-timeout", "2", "--", "bash", "-c", script]));
    assert_eq!(finished.status.code(), Some(NOT_PUBLISHED), "{kind}, {engine:?}, {layout}: {}", finished.describe());
    mend(&scene, &disk);
    scene.drain();
    if layout != "files" {
        scene.verify();
        scene.assert_no_captured_files_on_pfs();
    }
    scene.wipe_stage();
    scene.native(&["bash", "-c", script]).expect_success();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{kind}, {engine:?}, {layout}");
}

/// Takes all the room there is.
fn fill(scene: &Scene) {
    fs::create_dir_all(scene.store()).expect("a directory fits");
    let file = File::create(scene.store().join("filler")).expect("an empty file fits");
    let mut chunk = vec![0; 1 << 20];
    let mut at = 0;
    while chunk.len() > 256 {
        match file.write_at(&chunk, at) {
            Ok(count) => at += count as u64,
            Err(_) => chunk.truncate(chunk.len() / 2),
        }
    }
    (&file).flush().expect("nothing is buffered");
    let _ = file.sync_all();
}

#[test]
fn full() {
    for broken in [
        ("ext4", Engine::IoUring, "node"),
        ("xfs", Engine::Pwrite, "node"),
        ("ext4", Engine::IoUring, "files"),
        ("xfs", Engine::IoUring, "shared:1"),
    ] {
        let mend = |scene: &Scene, _: &Disk| fs::remove_file(scene.store().join("filler")).expect("it is there");
        over_a_broken_store(broken, &format!("{RENAME}; {WRITE}"), |scene, _| fill(scene), mend);
    }
}

#[test]
fn read_only() {
    for broken in [
        ("ext4", Engine::Pwrite, "node"),
        ("xfs", Engine::IoUring, "node"),
        ("ext4", Engine::IoUring, "files"),
        ("xfs", Engine::Pwrite, "shared:1"),
    ] {
        // What layout `files` has published is an ordinary file, which cannot be renamed there, with or without Sheaf.
        let script = if broken.2 == "files" { WRITE.to_string() } else { format!("{RENAME}; {WRITE}") };
        over_a_broken_store(broken, &script, |_, disk| disk.remount("ro"), |_, disk| disk.remount("rw"));
    }
}

/// A quota of the file system is reached, as sites give one to each user or project; here one of btrfs.
#[test]
fn a_quota() {
    for broken in
        [("btrfs", Engine::IoUring, "node"), ("btrfs", Engine::Pwrite, "shared:1"), ("btrfs", Engine::IoUring, "files")]
    {
        let script = format!("{RENAME}; {WRITE}");
        over_a_broken_store(broken, &script, |_, disk| disk.limit("3M"), |_, disk| disk.limit("none"));
    }
}

/// Before anything is staged, and then as long as nothing has been published.
#[test]
fn a_wait_before_it_exists() {
    let scene = Scene::new(Engine::IoUring);
    let sheaf = format!("env -u LD_PRELOAD {}", artefact("sheaf").display());
    let script = format!(
        "{sheaf} wait; test ! -e ckpt/.sheaf; exec 3>ckpt/state; echo staged >&3; {sheaf} wait; exec 3>&-; {sheaf} wait; \
         test -e ckpt/.sheaf"
    );
    scene.preloaded(&["bash", "-exc", &script]).expect_success();
    scene.drain();
    scene.wipe_stage();
    assert_eq!(scene.preloaded(&["cat", "ckpt/state"]).expect_success().text(), "staged\n");
    scene.drain();
}
