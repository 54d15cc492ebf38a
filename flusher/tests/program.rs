//! The program as users and scripts meet it: exit codes, signals, environment. Nothing is captured here; the library
//! beside the program is an empty file, which the loader refuses with a line on standard error and goes on.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// An installation of the program, a checkpoint directory and a stage tier, all empty.
struct Scene {
    directory: TempDir,
    tier: TempDir,
}

impl Scene {
    fn new() -> Scene {
        let built = Path::new(env!("CARGO_BIN_EXE_sheaf"));
        let directory = tempfile::tempdir_in(built.parent().unwrap()).unwrap();
        fs::hard_link(built, directory.path().join("sheaf")).unwrap();
        fs::write(directory.path().join("libsheaf.so"), "").unwrap();
        fs::create_dir(directory.path().join("ckpt")).unwrap();
        Scene { directory, tier: tempfile::tempdir_in("/dev/shm").unwrap() }
    }

    fn sheaf(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.directory.path().join("sheaf"));
        command.args(arguments).env_remove("LD_PRELOAD").env("SHEAF_STAGE", self.tier.path());
        command.env("SHEAF_PATHS", self.directory.path().join("ckpt/**"));
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.sheaf(arguments).output().unwrap()
    }

    fn code(&self, arguments: &[&str]) -> Option<i32> {
        self.output(arguments).status.code()
    }
}

#[test]
fn run_returns_what_the_program_returns() {
    let scene = Scene::new();
    assert_eq!(scene.code(&["run", "--", "true"]), Some(0));
    assert_eq!(scene.code(&["run", "--", "sh", "-c", "exit 7"]), Some(7));
    assert_eq!(scene.code(&["run", "--", "sh", "-c", "kill -KILL $$"]), Some(128 + 9));
    assert_eq!(fs::read_dir(scene.tier.path()).unwrap().count(), 0, "nothing was captured, so no stage was made");
}

#[test]
fn run_tells_why_there_is_no_program() {
    let scene = Scene::new();
    assert_eq!(scene.code(&["run", "--", "/nowhere-sheaf/program"]), Some(127));
    assert_eq!(scene.code(&["run", "--", "/etc/passwd"]), Some(126));
    for refused in [&["run"][..], &["run", "--paths", "x/*", "true"], &["run", "--stage", "/nowhere-sheaf", "true"]] {
        let output = scene.output(refused);
        assert_eq!(output.status.code(), Some(125), "{refused:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
    fs::remove_file(scene.directory.path().join("libsheaf.so")).unwrap();
    assert_eq!(scene.code(&["run", "true"]), Some(125));
}

#[test]
fn run_hands_the_variables_and_the_library_to_the_program() {
    let scene = Scene::new();
    let output = scene.output(&["run", "--bandwidth=4M", "sh", "-c", "echo $LD_PRELOAD; echo $SHEAF_BANDWIDTH"]);
    let library = scene.directory.path().join("libsheaf.so").canonicalize().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{}\n4M\n", library.display()));
}

#[test]
fn run_passes_signals_on() {
    let scene = Scene::new();
    let script = "trap 'exit 9' USR1; echo ready; read line";
    for (signal, expected) in [(libc::SIGUSR1, 9), (libc::SIGTERM, 128 + libc::SIGTERM)] {
        let mut command = scene.sheaf(&["run", "--", "sh", "-c", script]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        // SAFETY: the child has not been waited for, so its number is still its own.
        unsafe { libc::kill(child.id() as libc::pid_t, signal) };
        let status = child.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(expected), None));
        drop(input);
    }
}

#[test]
fn the_program_starts_with_the_signal_mask_that_run_was_given() {
    let scene = Scene::new();
    let blocked = ["sh", "-c", "grep SigBlk /proc/self/status"];
    let native = Command::new(blocked[0]).args(&blocked[1..]).output().unwrap();
    let under = scene.output(&[&["run", "--"], &blocked[..]].concat());
    assert_eq!(native.stdout, under.stdout);
}

#[test]
fn where_nothing_is_staged_there_is_nothing_to_wait_for() {
    let scene = Scene::new();
    for command in ["status", "wait", "drain"] {
        assert_eq!(scene.code(&[command]), Some(0), "{command}");
        assert_eq!(scene.code(&[command, "--paths", "relative/*"]), Some(2), "{command}");
    }
    let status: serde_json::Value = serde_json::from_slice(&scene.output(&["status", "--json"]).stdout).unwrap();
    assert_eq!((&status["running"], &status["stage"]), (&false.into(), &serde_json::Value::Null));
}

#[test]
fn a_dead_jobs_stage_is_drained_by_a_flusher_of_its_own() {
    let scene = Scene::new();
    let settings = sheaf_flusher::settings::Settings::from_lookup(|name| match name {
        "SHEAF_PATHS" => Some(scene.directory.path().join("ckpt/**").into()),
        "SHEAF_STAGE" => Some(scene.tier.path().into()),
        _ => None,
    })
    .unwrap();
    let stage = settings.find_stage().unwrap();
    let staged = scene.directory.path().join("ckpt").canonicalize().unwrap();
    let tree = stage.join("tree").join(staged.strip_prefix("/").unwrap());
    fs::create_dir_all(&tree).unwrap();
    fs::write(tree.join("r7.dat"), b"left behind").unwrap();
    for private in [&stage, &stage.parent().unwrap().to_path_buf(), &stage.join("tree")] {
        fs::set_permissions(private, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    }
    let output = scene.output(&["drain"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let aggregates: Vec<_> = fs::read_dir(staged.join(".sheaf")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(aggregates.len(), 1);
    let mut archive = tar::Archive::new(fs::File::open(&aggregates[0]).unwrap());
    let mut entries = archive.entries().unwrap().map(Result::unwrap);
    let mut found = entries.find(|entry| entry.path().unwrap().ends_with("ckpt/r7.dat")).unwrap();
    let mut content = String::new();
    std::io::Read::read_to_string(&mut found, &mut content).unwrap();
    assert_eq!(content, "left behind");
    assert!(!stage.join("socket").exists(), "the flusher has ended");
}

#[test]
fn help_and_usage_have_their_exit_codes() {
    let scene = Scene::new();
    for (arguments, code) in
        [(&["--help"][..], 0), (&["help", "env"], 0), (&["help", "drain"], 0), (&["help", "nothing"], 2), (&["fly"], 2)]
    {
        assert_eq!(scene.code(arguments), Some(code), "{arguments:?}");
    }
    let help = String::from_utf8(scene.output(&["help", "env"]).stdout).unwrap();
    assert!(help.contains("SHEAF_STAGE_LIMIT"));
}

#[test]
fn the_doctor_finds_a_program_that_cannot_be_captured() {
    let scene = Scene::new();
    assert_eq!(scene.code(&["doctor", "--", env!("CARGO_BIN_EXE_sheaf")]), Some(0));
    assert_eq!(scene.code(&["doctor", "--", "/etc/passwd"]), Some(1));
    assert_eq!(scene.code(&["doctor", "--stage", "/nowhere-sheaf"]), Some(1));
}
