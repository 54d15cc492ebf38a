//! A stage that is smaller than what programs write, and a store that is slow: every program finishes, no call comes to
//! less than it was asked for, and all bytes are right, wherever they have ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sheaf_tests::disk::{Disk, Memory};
use sheaf_tests::scene::workspace;
use sheaf_tests::{Engine, Scene, process};

/// How much is written, and where.
pub struct Measure {
    pub stage_bytes: u64,
    pub files: u64,
    pub file_bytes: u64,
    /// Of the store, each second.
    pub bandwidth: &'static str,
}

/// Small enough for every run of the tests.
pub const SMALL: Measure = Measure { stage_bytes: 16 << 20, files: 96, file_bytes: 512 << 10, bandwidth: "40M" };
/// One file more than twice as large as the stage.
const SINGLE: Measure = Measure { files: 80, ..SMALL };
/// As users have it.
const LARGE: Measure = Measure { stage_bytes: 64 << 20, files: 256, file_bytes: 4 << 20, bandwidth: "100M" };

pub fn compile(scene: &Scene, compiler: &str, source: &str) -> PathBuf {
    let made = scene.root().join("full");
    let mut command = scene.native_command(compiler);
    command.args(["-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"]).arg(&made);
    process::run(command.arg(workspace().join("tests/programs").join(source))).expect_success();
    made
}

pub fn measured<'a>(command: &'a mut Command, measure: &Measure) -> &'a mut Command {
    command
        .env("FILES", measure.files.to_string())
        .env("SIZE", measure.file_bytes.to_string())
        .env("SHEAF_BANDWIDTH", measure.bandwidth)
}

/// Writes by one row and reads back by another: in the same stage, and in an empty one.
fn writes_more_than_the_stage_holds(measure: &Measure, (writer, row): (&str, &str), check: &str) {
    let scene = Scene::new(Engine::IoUring);
    let stage = Memory::new(measure.stage_bytes, scene.tier());
    let checker = compile(&scene, "gcc", "full.c");
    let program = if writer.ends_with(".f90") { compile_beside(&scene, writer) } else { checker.clone() };
    process::run(measured(scene.preloaded_command(&program).arg(row), measure)).expect_success();
    let read_back =
        || drop(process::run(measured(scene.preloaded_command(&checker).arg(check), measure)).expect_success());
    read_back();
    scene.drain();
    // A file that was larger than the stage never was in the store.
    if scene.store().exists() {
        scene.verify();
    }
    scene.wipe_stage();
    read_back();
    scene.drain();
    drop(stage);
}

fn compile_beside(scene: &Scene, source: &str) -> PathBuf {
    let made = scene.root().join("written-in-fortran");
    std::fs::rename(compile(scene, "gfortran", source), &made).expect("the scene is ours");
    compile(scene, "gcc", "full.c");
    made
}

macro_rules! rows {
    ($($name:ident: $measure:expr, $writer:expr, $check:expr;)*) => {$(
        #[test]
        fn $name() {
            writes_more_than_the_stage_holds(&$measure, $writer, $check);
        }
    )*};
}

rows! {
    written_with_write: SMALL, ("full.c", "write"), "check";
    written_with_pwrite: SMALL, ("full.c", "pwrite"), "check";
    written_through_streams: SMALL, ("full.c", "stdio"), "check";
    written_through_mappings: SMALL, ("full.c", "mmap"), "check";
    written_by_fortran: SMALL, ("full.f90", ""), "check";
    one_file_larger_than_the_stage: SINGLE, ("full.c", "single"), "check_single";
    one_file_that_is_appended_to: SINGLE, ("full.c", "append"), "check_single";
    one_file_of_several_threads: SINGLE, ("full.c", "threads"), "check_single";
    one_file_that_a_child_shares: SINGLE, ("full.c", "forked"), "check_single";
}

/// 1 GiB through 64 MiB, in each way.
#[test]
#[ignore = "writes and reads 12 GiB, which takes minutes: scripts/long-tests.sh"]
fn a_gibibyte_through_a_small_stage() {
    for row in [("full.c", "write"), ("full.c", "stdio"), ("full.c", "mmap"), ("full.f90", "")] {
        writes_more_than_the_stage_holds(&LARGE, row, "check");
    }
}

/// Files that were spilled are ordinary files of the parallel file system; their older versions are gone for good.
#[test]
fn a_spilled_file_supersedes_what_was_published() {
    let scene = Scene::new(Engine::IoUring);
    let _stage = Memory::new(SINGLE.stage_bytes, scene.tier());
    let program = compile(&scene, "gcc", "full.c");
    scene.preloaded(&["bash", "-c", "umask 027; echo old >ckpt/file.0; echo other >ckpt/other"]).expect_success();
    scene.drain();
    process::run(measured(scene.preloaded_command(&program).arg("single"), &SINGLE)).expect_success();
    scene.drain();
    assert!(
        is_real(&scene.checkpoints().join("file.0")),
        "it was larger than the stage, and is not where it should be"
    );
    assert!(!is_real(&scene.checkpoints().join("other")));
    scene.wipe_stage();
    process::run(measured(scene.preloaded_command(&program).arg("check_single"), &SINGLE)).expect_success();
    assert_eq!(scene.preloaded(&["cat", "ckpt/other"]).expect_success().text(), "other\n");
    let listed = process::run(scene.sheaf_command().arg("ls").arg(scene.store())).expect_success().text();
    assert!(listed.contains("other") && !listed.contains("file.0"), "{listed}");
    scene.drain();
}

fn is_real(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

/// A stage on a disk where the user has a quota, of which the file system's free space says nothing; here one of btrfs.
#[test]
fn a_quota_of_the_stage() {
    const PROGRAM: &str = "
import os
for number in range(12):
    file = os.open(f'ckpt/written-{number}', os.O_WRONLY | os.O_CREAT, 0o644)
    rest = b'%d' % number * 600000
    while rest:
        rest = rest[os.write(file, rest):]
    os.close(file)
    with open(f'ckpt/stream-{number}', 'wb') as stream:
        for _ in range(100):
            stream.write(b'%d' % number * 4000)
with open('ckpt/large', 'wb', buffering=0) as large:
    for number in range(10):
        assert large.write(b'%d' % number * (1 << 20)) == 1 << 20
";
    let scratch = Scene::new(Engine::IoUring);
    let place = scratch.root().join("stage");
    fs::create_dir(&place).expect("the scene is ours");
    let disk = Disk::new("btrfs", &scratch.root().join("image"), &place);
    disk.limit("6M");
    let scene = Scene::staged_in(&place, Engine::IoUring);
    scene.native(&["python3", "-c", PROGRAM]).expect_success();
    scene.preloaded(&["python3", "-c", PROGRAM]).expect_success();
    scene.drain();
    scene.verify();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
    scene.kill_everything();
}
