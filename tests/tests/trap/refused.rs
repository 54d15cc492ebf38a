//! Where the trap cannot be set, or is not asked for: one line says so, and the program runs on the real paths.

use std::fs;
use std::process::Command;

use sheaf_tests::{Engine, Scene, process, seccomp};

const SCRIPT: &str = "echo natively >ckpt/file; /bin/busybox cat ckpt/file; exit 5";

/// Runs the script where `prepare` has made the trap impossible.
fn runs_natively(arguments: &[&str], prepare: impl Fn(&mut Command)) {
    let scene = Scene::new(Engine::IoUring);
    let mut command = scene.sheaf_command();
    command.args(["run"]).args(arguments).args(["--", "/bin/busybox", "sh", "-c", SCRIPT]);
    prepare(&mut command);
    let finished = process::run(&mut command);
    assert_eq!(finished.status.code(), Some(5), "{}", finished.describe());
    assert_eq!(finished.text(), "natively\n");
    // One line says why; the end of the run then reports the file that was written past Sheaf.
    let said = String::from_utf8_lossy(&finished.stderr).into_owned();
    let why = said.lines().take_while(|line| !line.contains("written past Sheaf")).count();
    assert_eq!(why, 1, "{}", finished.describe());
    let file = fs::read(scene.checkpoints().join("file")).expect("it is on the real path");
    assert_eq!(file, b"natively\n");
}

#[test]
fn nobody_asked() {
    runs_natively(&[], |_| ());
}

#[test]
fn seccomp_is_forbidden() {
    runs_natively(&["--trap"], |command| seccomp::forbid(command, libc::SYS_seccomp));
}

#[test]
fn somebody_listens_already() {
    runs_natively(&["--trap"], seccomp::listen);
}

/// Without the memory of the program nothing can be decided: all is left to the kernel.
#[test]
fn memory_cannot_be_read() {
    let scene = Scene::new(Engine::IoUring);
    let mut command = scene.trapped_command("/bin/busybox");
    seccomp::forbid(&mut command, libc::SYS_process_vm_readv);
    let finished = process::run(command.args(["sh", "-c", SCRIPT]));
    assert_eq!(finished.status.code(), Some(5), "{}", finished.describe());
    assert_eq!(fs::read(scene.checkpoints().join("file")).expect("it is on the real path"), b"natively\n");
}

/// A dynamic program needs no trap: the library is in it.
#[test]
fn a_dynamic_program_is_not_trapped() {
    let scene = Scene::new(Engine::IoUring);
    let script = "echo captured >ckpt/file; grep -c . ckpt/file; grep Seccomp: /proc/self/status";
    let mut command = scene.trapped_command("bash");
    let finished = process::run(command.args(["-c", script])).expect_success();
    assert_eq!(finished.text(), "1\nSeccomp:\t0\n", "{}", finished.describe());
    scene.assert_no_captured_files_on_pfs();
}
