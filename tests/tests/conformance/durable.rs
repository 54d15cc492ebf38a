//! SHEAF_DURABLE: what a program has been told is durable is in the store, whatever dies then. And files that nobody
//! closes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sheaf_tests::{Engine, Scene, process};

/// Writes one file in the way that the first argument names, says so, and waits.
const PROGRAM: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
how, text = sys.argv[1], sys.argv[2].encode()
fd = os.open('ckpt/state', os.O_RDWR | os.O_CREAT, 0o644)
os.write(fd, text)
if how == 'close':
    os.close(fd)
elif how in ('fsync', 'fdatasync'):
    getattr(os, how)(fd)
elif how == 'fclose':
    os.close(fd)
    for name in ('fopen', 'fdopen'):
        getattr(libc, name).restype = ctypes.c_void_p
    stream = libc.fopen(b'ckpt/state', b'w')
    libc.fputs(text, ctypes.c_void_p(stream))
    assert libc.fclose(ctypes.c_void_p(stream)) == 0
elif how == 'dup':
    kept = os.dup(fd)
    os.close(fd)
print('done', flush=True)
sys.stdin.readline()
"#;

/// What the store holds of a file, with nothing but the store.
fn in_store(scene: &Scene, name: &str) -> Option<String> {
    let mut command = scene.sheaf_command();
    let finished = process::run(command.arg("cat").arg(scene.store()).arg(scene.checkpoints().join(name)));
    finished.status.success().then(|| finished.text())
}

fn program(scene: &Scene, how: &str, policy: &str) -> Command {
    let mut command = scene.preloaded_command("python3");
    command.args(["-c", PROGRAM, how, "what was written"]).env("SHEAF_DURABLE", policy);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// Everything dies right after the call has returned.
fn is_durable_when_the_call_returns(how: &str, policy: &str) {
    let scene = Scene::new(Engine::IoUring);
    let mut child = program(&scene, how, policy).spawn().expect("python3 is installed");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a pipe");
    scene.kill_flushers();
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    assert_eq!(line, "done\n");
    assert_eq!(in_store(&scene, "state").as_deref(), Some("what was written"), "{how}");
    scene.kill_flushers();
    scene.wipe_stage();
    assert_eq!(scene.preloaded(&["cat", "ckpt/state"]).expect_success().text(), "what was written");
}

#[test]
fn what_was_closed_is_durable() {
    is_durable_when_the_call_returns("close", "close");
}

#[test]
fn what_a_stream_wrote_is_durable() {
    is_durable_when_the_call_returns("fclose", "close");
}

#[test]
fn what_was_synced_is_durable_while_the_file_is_open() {
    is_durable_when_the_call_returns("fsync", "fsync");
    is_durable_when_the_call_returns("fdatasync", "close");
}

#[test]
fn what_one_of_two_descriptors_has_closed_is_durable() {
    is_durable_when_the_call_returns("dup", "close");
}

/// An open file is published as it is at each fsync, marked, and once more when it is closed.
#[test]
fn an_open_file_is_published_anew_at_each_fsync() {
    let scene = Scene::new(Engine::IoUring);
    let script = "import os
fd = os.open('ckpt/log', os.O_WRONLY | os.O_CREAT, 0o644)
for step in range(5):
    os.write(fd, b'step %d\\n' % step)
    os.fsync(fd)
    os.system('env -u LD_PRELOAD $SHEAF cat $STORE $CKPT/log | wc -l')
os.system('env -u LD_PRELOAD $SHEAF ls --json $STORE')
os.write(fd, b'last\\n')
";
    let mut command = scene.preloaded_command("python3");
    command.args(["-u", "-c", script]).env("SHEAF_DURABLE", "fsync").env("STORE", scene.store());
    command.env("SHEAF", sheaf_tests::scene::artefact("sheaf")).env("CKPT", scene.checkpoints());
    let text = process::run(&mut command).expect_success().text();
    let mut lines = text.lines();
    assert_eq!(lines.by_ref().take(5).collect::<Vec<_>>(), ["1", "2", "3", "4", "5"], "{text}");
    assert!(lines.any(|line| line.replace(' ', "").contains("\"unclosed\":true")), "{text}");
    scene.drain();
    assert_eq!(in_store(&scene, "log").expect("it was published").lines().last(), Some("last"));
    let listed = process::run(scene.sheaf_command().args(["ls", "--json"]).arg(scene.store())).expect_success().text();
    assert!(!listed.replace(' ', "").contains("\"unclosed\":true"), "{listed}");
}

/// A store that takes nothing: the program is told, and what it wrote stays staged.
#[test]
fn a_store_that_takes_nothing_is_an_error_of_close() {
    let scene = Scene::new(Engine::IoUring);
    // No directory can be made where a file is.
    fs::write(scene.store(), "in the way").expect("the scene is ours");
    let mut command = program(&scene, "close", "close");
    command.env("SHEAF_STORE_TIMEOUT", "1");
    let mut child = command.stderr(Stdio::piped()).spawn().expect("python3 is installed");
    child.stdin.take().expect("piped").write_all(b"\n").expect("a pipe");
    let output = child.wait_with_output().expect("it is ours");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Input/output error"), "{said}");
    fs::remove_file(scene.store()).expect("the scene is ours");
    scene.drain();
    assert_eq!(in_store(&scene, "state").as_deref(), Some("what was written"));
}

/// A file that its program never closes is flushed when the program is gone.
#[test]
fn a_file_that_is_never_closed_is_flushed_when_its_program_is_gone() {
    let scene = Scene::new(Engine::IoUring);
    let mut child = program(&scene, "never", "async").spawn().expect("python3 is installed");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a pipe");
    assert_eq!(line, "done\n");
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    let deadline = Instant::now() + Duration::from_secs(60);
    while in_store(&scene, "state").as_deref() != Some("what was written") {
        assert!(Instant::now() < deadline, "it is not in the store");
        std::thread::sleep(Duration::from_millis(50));
    }
}
