//! A flusher that is stopped (SIGSTOP) at several moments: a program is held up for SHEAF_TIMEOUT once, not for each
//! file, and nothing is lost, whether it is captured or stays on the parallel file system.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sheaf_tests::disk::Memory;
use sheaf_tests::process::{self, Finished, Running};
use sheaf_tests::{Engine, Scene};

const TIMEOUT: &str = "1";
/// Many more files than a program could wait for one by one.
const FILES: u64 = 150;
/// A program that does not wait for each of them ends long before this, on any machine.
const PATIENCE: Duration = Duration::from_secs(100);

/// Mode bit of the pulse in the stage: somebody has waited for the flusher in vain.
const SILENT: u32 = 0o100;

/// A flusher that does nothing until it is let go.
struct Stopped {
    flusher: u32,
    tier: PathBuf,
}

impl Stopped {
    fn stop(scene: &Scene) -> Stopped {
        let flushers = scene.flushers();
        let [flusher] = flushers[..] else { panic!("one flusher: {flushers:?}") };
        signal(flusher, libc::SIGSTOP);
        // Delivered when no thread runs any more.
        while state_of(flusher) != Some('T') {
            std::thread::sleep(Duration::from_millis(1));
        }
        Stopped { flusher, tier: scene.tier().to_path_buf() }
    }
}

impl Drop for Stopped {
    /// Lets the flusher go, and waits until it has taken away what programs noted in vain: on a busy machine it may
    /// need longer for that than the next program for its first call, which then does without it once more.
    fn drop(&mut self) {
        signal(self.flusher, libc::SIGCONT);
        while state_of(self.flusher).is_some_and(|state| state != 'Z') && is_silent(&self.tier) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether the pulse of any stage in the tier says so.
fn is_silent(tier: &Path) -> bool {
    let entries = |directory: &Path| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let pulses = entries(tier).flat_map(|users| entries(&users)).map(|stage| fs::metadata(stage.join("pulse")));
    pulses.flatten().any(|pulse| pulse.mode() & SILENT != 0)
}

fn signal(process: u32, signal: libc::c_int) {
    // SAFETY: kill takes two integers; the process is a flusher of this test's own scene.
    unsafe { libc::kill(process as libc::pid_t, signal) };
}

fn state_of(process: u32) -> Option<char> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    text.rsplit_once(") ")?.1.chars().next()
}

fn command(scene: &Scene, script: &str) -> Command {
    let mut command = scene.preloaded_command("bash");
    command.args(["-c", script]).env("SHEAF_TIMEOUT", TIMEOUT).env("FILES", FILES.to_string());
    command
}

/// Runs a script that must not wait for each of its files.
fn run(scene: &Scene, script: &str) -> Finished {
    run_command(&mut command(scene, script))
}

fn run_command(command: &mut Command) -> Finished {
    let begin = Instant::now();
    let finished = process::run(command);
    assert!(begin.elapsed() < PATIENCE, "held up for {:?}: {}", begin.elapsed(), finished.describe());
    finished
}

/// A program that has captured, and that lives: the flusher stays.
fn start_company(scene: &Scene) -> Running {
    let script = "mkdir -p ckpt/deep; echo first >ckpt/first; echo deep >ckpt/deep/first; touch ready; sleep 1000";
    let mut command = command(scene, script);
    // What it writes is small; it sleeps until it is dropped.
    let mut company = process::start(&mut command);
    while !scene.captured_directory().join("ready").exists() {
        assert!(!company.wait_for(Duration::from_millis(5)), "the company has ended");
    }
    scene.sheaf(&["wait"]).expect_success();
    company
}

const WRITE_MANY: &str = "for n in $(seq $FILES); do echo $n >ckpt/file.$n || exit 1; done";
const READ_MANY: &str = "for n in $(seq $FILES); do [ $(cat ckpt/file.$n) = $n ] || exit 1; done; cat ckpt/first";

/// With a flusher that is back, with none, and from the store alone.
fn assert_nothing_is_lost(scene: &Scene, company: Running) {
    let read = || assert_eq!(run(scene, READ_MANY).expect_success().text(), "first\n");
    read();
    drop(company);
    scene.drain();
    read();
    scene.drain();
    scene.verify();
    scene.wipe_stage();
    read();
}

#[test]
fn before_a_program_says_hello() {
    let scene = Scene::new(Engine::IoUring);
    let company = start_company(&scene);
    let stopped = Stopped::stop(&scene);
    run(&scene, WRITE_MANY).expect_success();
    drop(stopped);
    assert_nothing_is_lost(&scene, company);
}

#[test]
fn with_many_programs() {
    let scene = Scene::new(Engine::IoUring);
    let company = start_company(&scene);
    let stopped = Stopped::stop(&scene);
    // Each file by a process of its own.
    run(&scene, "for n in $(seq $FILES); do bash -c \"echo $n >ckpt/file.$n\" || exit 1; done").expect_success();
    drop(stopped);
    assert_nothing_is_lost(&scene, company);
}

#[test]
fn before_a_directory_is_populated() {
    let scene = Scene::new(Engine::IoUring);
    drop(start_company(&scene));
    scene.drain();
    scene.wipe_stage();
    fs::remove_file(scene.captured_directory().join("ready")).expect("the company made it");
    let script = "echo other >ckpt/other; touch ready; sleep 1000";
    let mut company = process::start(&mut command(&scene, script));
    while !scene.captured_directory().join("ready").exists() {
        assert!(!company.wait_for(Duration::from_millis(5)), "the company has ended");
    }
    let stopped = Stopped::stop(&scene);
    let script = "for n in $(seq $FILES); do echo $n >ckpt/deep/file.$n || exit 1; done; cat ckpt/other";
    assert_eq!(run(&scene, script).expect_success().text(), "other\n");
    // What the store has there is unknown: nobody may take it for missing, and begin anew over it.
    let script = "import errno, os
for number in range(int(os.environ['FILES'])):
    for flags in [os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_APPEND, os.O_WRONLY | os.O_CREAT | os.O_EXCL]:
        try:
            os.open('ckpt/deep/first', flags)
        except OSError as error:
            assert error.errno == errno.EIO, error
        else:
            raise AssertionError('opened')";
    let mut python = scene.preloaded_command("python3");
    python.args(["-c", script]).env("SHEAF_TIMEOUT", TIMEOUT).env("FILES", FILES.to_string());
    run_command(&mut python).expect_success();
    // Whoever tries again finds it as soon as the flusher goes on.
    let script = "until read -r line <ckpt/deep/first; do touch tried; done; echo $line";
    let mut patient = process::start(&mut command(&scene, script));
    while !scene.captured_directory().join("tried").exists() {
        assert!(!patient.wait_for(Duration::from_millis(5)), "it has read what nobody could know");
    }
    drop(stopped);
    assert_eq!(patient.finish().expect_success().text(), "deep\n");
    let script = "for n in $(seq $FILES); do [ $(cat ckpt/deep/file.$n) = $n ] || exit 1; done; cat ckpt/deep/first";
    assert_eq!(run(&scene, script).expect_success().text(), "deep\n");
    drop(company);
    scene.drain();
}

#[test]
fn before_data_is_brought_back() {
    let scene = Scene::new(Engine::IoUring);
    let company = start_company(&scene);
    run(&scene, WRITE_MANY).expect_success();
    drop(company);
    scene.drain();
    scene.wipe_stage();
    let mut company = command(&scene, "ls ckpt >/dev/null; echo other >ckpt/other; touch ready2; sleep 1000");
    let mut company = process::start(&mut company);
    while !scene.captured_directory().join("ready2").exists() {
        assert!(!company.wait_for(Duration::from_millis(5)), "the company has ended");
    }
    let stopped = Stopped::stop(&scene);
    // What cannot be had is said so; never is something else read.
    let finished = run(&scene, "for n in $(seq $FILES); do cat ckpt/file.$n && exit 1; done; exit 0").expect_success();
    assert_eq!(finished.text(), "");
    drop(stopped);
    assert_nothing_is_lost(&scene, company);
}

/// The kernel would let a writer wait for 45 s for each of these files.
#[test]
fn while_it_holds_the_files_that_it_flushes() {
    let scene = Scene::new(Engine::IoUring);
    let script =
        "for n in 1 2 3 4; do head -c 500000 /dev/zero | tr '\\0' $n >ckpt/large.$n; done; touch ready; sleep 1000";
    let mut company = command(&scene, script);
    let mut company = process::start(company.env("SHEAF_BANDWIDTH", "20K"));
    let is_writing = || {
        let report = scene.sheaf(&["status", "--json"]);
        let status: Option<serde_json::Value> = serde_json::from_slice(&report.stdout).ok();
        status.is_some_and(|status| status["in_flight"].as_u64() > Some(0) && status["waiting"].as_u64() == Some(0))
    };
    while !(scene.captured_directory().join("ready").exists() && is_writing()) {
        assert!(!company.wait_for(Duration::from_millis(5)), "the company has ended");
    }
    let stopped = Stopped::stop(&scene);
    run(&scene, "for n in 1 2 3 4; do echo more >>ckpt/large.$n || exit 1; done").expect_success();
    let check = "for n in 1 2 3 4; do
        { head -c 500000 /dev/zero | tr '\\0' $n; echo more; } | cmp - ckpt/large.$n || exit 1; done";
    run(&scene, check).expect_success();
    drop(stopped);
    run(&scene, check).expect_success();
    drop(company);
    scene.kill_flushers();
    scene.drain();
    scene.wipe_stage();
    run(&scene, check).expect_success();
}

#[test]
fn while_a_program_waits_for_room() {
    let scene = Scene::new(Engine::IoUring);
    let _stage = Memory::new(8 << 20, scene.tier());
    let company = start_company(&scene);
    let stopped = Stopped::stop(&scene);
    let script =
        "for n in $(seq 40); do head -c 500000 /dev/zero | tr '\\0' $((n % 10)) >ckpt/large.$n || exit 1; done";
    run(&scene, &format!("{script}; {WRITE_MANY}")).expect_success();
    drop(stopped);
    let script = "for n in $(seq 40); do
        head -c 500000 /dev/zero | tr '\\0' $((n % 10)) | cmp - ckpt/large.$n || exit 1; done";
    run(&scene, script).expect_success();
    assert_nothing_is_lost(&scene, company);
    run(&scene, script).expect_success();
    scene.drain();
}

#[test]
fn during_a_close_that_waits_for_the_store() {
    let scene = Scene::new(Engine::IoUring);
    let company = start_company(&scene);
    let stopped = Stopped::stop(&scene);
    // The shell says that a redirection could not be undone; the bytes are staged all the same.
    let script = "import os, sys
for number in range(1, int(os.environ['FILES']) + 1):
    fd = os.open('ckpt/file.%d' % number, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, b'%d\\n' % number)
    try:
        os.close(fd)
    except OSError as error:
        print(error.errno)";
    let mut python = scene.preloaded_command("python3");
    python.args(["-c", script]).env("SHEAF_TIMEOUT", TIMEOUT).env("FILES", FILES.to_string());
    let finished = run_command(python.env("SHEAF_DURABLE", "close")).expect_success();
    // Files that were not captured, because the flusher could not be told, close natively.
    let errors = finished.text();
    assert!(errors.lines().all(|line| line == libc::EIO.to_string()), "{errors}");
    drop(stopped);
    assert_nothing_is_lost(&scene, company);
}
