//! Public test suites for file systems, natively on the stage's kind of file system and inside a checkpoint directory.
//!
//! Both ways must give the same answers. Where they do not, `pjdfstest.txt` says so and why; a difference that is not
//! listed fails, and so does one that is listed and gone. Nothing here may judge the suites themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sheaf_tests::scene::workspace;
use sheaf_tests::{Engine, Scene, process, snapshot};
use tempfile::TempDir;

/// A file beside this one.
fn beside(name: &str) -> PathBuf {
    workspace().join("tests/tests/suites").join(name)
}

/// A suite that `scripts/install-test-dependencies.sh` has built.
fn tool(name: &str) -> PathBuf {
    let path = workspace().join("target/tools/bin").join(name);
    assert!(path.exists(), "{} is missing: run scripts/install-test-dependencies.sh", path.display());
    path
}

/// A directory in memory that every user may walk through: the suites become other users.
fn directory_in_memory() -> TempDir {
    let directory = tempfile::Builder::new().prefix("sheaf-test-").tempdir_in("/dev/shm").expect("room in /dev/shm");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("the directory is ours");
    directory
}

/// Operations of one fsx run; ten runs make the 200,000 that this suite is for.
const OPERATIONS: &str = "20000";

/// Random reads, writes, mappings, truncations and holes in one file, each checked by fsx itself. The stage holds less
/// than the file, so what is closed and opened again has been evicted whenever the flusher was quick enough.
fn fsx(engine: Engine) {
    let (scene, native) = (Scene::new(engine), directory_in_memory());
    for round in 0..5 {
        let seed: u32 = rand::random();
        println!("round {round}, seed {seed}");
        let run = |mut command: Command, directory: &Path| {
            command.arg("-f").arg(beside("fsx.toml")).args(["-q", "-N", OPERATIONS, "-S", &seed.to_string()]);
            process::run(command.arg(directory.join(round.to_string()))).expect_success()
        };
        let mut command = scene.preloaded_command(tool("fsx"));
        command.env("SHEAF_STAGE_LIMIT", "64K");
        run(command, &scene.checkpoints());
        run(scene.native_command(tool("fsx")), native.path());
    }
    let expected = snapshot::take(native.path()).expect("the directory is ours");
    assert_eq!(scene.captured_snapshot(), expected);
    scene.drain();
    scene.assert_no_captured_files_on_pfs();
    scene.verify();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), expected, "from the aggregates");
    scene.drain();
}

#[test]
fn fsx_io_uring() {
    fsx(Engine::IoUring);
}

#[test]
fn fsx_pwrite() {
    fsx(Engine::Pwrite);
}

/// What pjdfstest says about each of its tests: `ok`, `FAILED` or `skipped`.
fn pjdfstest(mut command: Command, directory: &Path) -> BTreeMap<String, String> {
    command.env("NO_COLOR", "1").arg("-c").arg(beside("pjdfstest.toml")).arg("-p").arg(directory);
    let finished = process::run(&mut command);
    let text = finished.text();
    let mut answers = BTreeMap::new();
    for line in text.lines().filter(|line| line.contains("::")) {
        if let [name, answer @ ("ok" | "FAILED" | "skipped")] = line.split_whitespace().collect::<Vec<_>>()[..] {
            answers.insert(name.to_string(), answer.to_string());
        }
    }
    let total = text.lines().find_map(|line| line.strip_suffix(" total")?.rsplit(' ').next()?.parse().ok());
    assert_eq!(total, Some(answers.len()), "{}", finished.describe());
    answers
}

/// The tests in `pjdfstest.txt`; each stands below the reason why its answer differs.
fn known_differences() -> BTreeSet<String> {
    let text = fs::read_to_string(beside("pjdfstest.txt")).expect("it lies beside this file");
    let mut has_reason = false;
    let mut names = BTreeSet::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        has_reason |= line.starts_with('#');
        assert!(has_reason, "{line} is listed without a reason");
        if !line.starts_with('#') {
            assert!(names.insert(line.to_string()), "{line} is listed twice");
        }
    }
    names
}

#[test]
fn pjdfstest_test_by_test() {
    let (native, captured) = (directory_in_memory(), directory_in_memory());
    let native = pjdfstest(Command::new(tool("pjdfstest")), native.path());
    let scene = Scene::new(Engine::IoUring);
    // Both directories in memory, so that what differs is Sheaf and not the file system below it.
    let patterns = captured.path().join("**");
    let mut command = scene.preloaded_command(tool("pjdfstest"));
    command.env("SHEAF_PATHS", &patterns);
    let captured = pjdfstest(command, captured.path());
    process::run(scene.sheaf_command().env("SHEAF_PATHS", &patterns).arg("drain")).expect_success();

    assert_eq!(captured.keys().collect::<Vec<_>>(), native.keys().collect::<Vec<_>>());
    let differs = |name: &&String| captured[*name] != native[*name];
    let differences: BTreeSet<_> = native.keys().filter(differs).cloned().collect();
    // Tests that need root are skipped on both sides for everybody else.
    let is_run = |name: &String| native.get(name).is_none_or(|answer| answer != "skipped");
    let known: BTreeSet<_> = known_differences().into_iter().filter(is_run).collect();
    let fresh: Vec<_> = differences.difference(&known).collect();
    let gone: Vec<_> = known.difference(&differences).collect();
    assert!(fresh.is_empty(), "differ from the native file system, and are not listed: {fresh:?}");
    assert!(gone.is_empty(), "listed as different, and agree: {gone:?}; take them off pjdfstest.txt");
}
