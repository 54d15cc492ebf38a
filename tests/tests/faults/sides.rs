//! Layout `files`: a name leaves the stage for the parallel file system between two calls of the library, or while a
//! flusher that moves it is stopped. The program gets what it would get natively, and nothing comes back that it has
//! removed.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sheaf_tests::process::{self, Running};
use sheaf_tests::unreliable::Unreliable;
use sheaf_tests::{Engine, Scene};

use crate::unknown::Installation;

/// Where the stage's tree has a checkpoint's name.
fn staged(scene: &Scene, name: &str) -> PathBuf {
    let within =
        |directory: PathBuf| fs::read_dir(directory).expect("the tier is ours").map(|entry| entry.unwrap().path());
    let mut stages = within(scene.tier().to_path_buf()).flat_map(within);
    let tree = stages.next().expect("there is a stage").join("tree");
    let real = scene.checkpoints().join(name);
    tree.join(real.strip_prefix("/").expect("scenes have absolute paths"))
}

/// Runs a script whose files stay in the stage, without a flusher: it was too slow for them.
fn leave_staged(scene: &Scene, script: &str) {
    let mut leave = scene.preloaded_command("bash");
    leave.env("SHEAF_ON_EXIT", "leave").env("SHEAF_BANDWIDTH", "1").args(["-c", script]);
    process::run(&mut leave).expect_success();
    scene.kill_flushers();
}

fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + process::LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A program that is stopped behind its `when`th call of a kind on a path.
struct Stopped<'a> {
    scene: &'a Scene,
    running: Running,
}

impl Stopped<'_> {
    /// Nothing when it makes fewer such calls; then it has ended.
    fn start<'a>(scene: &'a Scene, command: &Command, (call, path, when): (&str, &Path, u32)) -> Option<Stopped<'a>> {
        let log = scene.root().join("strace.log");
        let _ = fs::remove_file(&log);
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=STOP:when={when}"));
        let path = path.to_str().expect("plain names");
        let options = ["-f", "-P", path, "-e", &trace, "-e", &inject, "-o", log.to_str().expect("plain names")];
        let stopped = Stopped { scene, running: process::start(&mut scene.traced(&options, command)) };
        stopped.await_stop(&log)
    }

    /// The same of the scene's flusher; `begin` has it do what it is to be stopped at.
    fn attach<'a>(scene: &'a Scene, (call, path): (&str, &Path), begin: impl FnOnce()) -> Stopped<'a> {
        let log = scene.root().join("strace.log");
        let mut strace = scene.native_command("strace");
        strace.args(["-f", "-p", &scene.flushers()[0].to_string(), "-P"]).arg(path).arg("-o").arg(&log);
        strace.args(["-e", &format!("trace={call}"), "-e", &format!("inject={call}:signal=STOP:when=1")]);
        let stopped = Stopped { scene, running: process::start(&mut strace) };
        let status = format!("/proc/{}/status", scene.flushers()[0]);
        let is_traced = || fs::read_to_string(&status).is_ok_and(|text| !text.contains("TracerPid:\t0\n"));
        await_that("it is not traced", is_traced);
        begin();
        stopped.await_stop(&log).expect("it comes to that call")
    }

    fn await_stop(mut self, log: &Path) -> Option<Self> {
        while !fs::read_to_string(log).is_ok_and(|log| log.contains("stopped by SIGSTOP")) {
            if self.running.wait_for(Duration::from_millis(2)) {
                self.running.finish().expect_success();
                return None;
            }
        }
        Some(self)
    }

    /// Lets it, and a flusher that it has started, go on.
    fn resume(&self) {
        // SAFETY: kill takes two integers; the group is that of our own child.
        unsafe { libc::kill(-(self.running.id() as libc::pid_t), libc::SIGCONT) };
        self.scene.continue_flushers_in(self.scene.tier());
    }

    /// The same, to the end.
    fn go_on(mut self) -> process::Finished {
        loop {
            self.resume();
            // Each of its threads is stopped once.
            if self.running.wait_for(Duration::from_millis(20)) {
                return self.running.finish();
            }
        }
    }
}

/// A flusher moves the file at the moment at which the program opens it: here the test, which holds it as a flusher
/// does.
#[test]
fn a_file_that_is_truncated_while_it_leaves() {
    let scene = Scene::new(Engine::Pwrite).in_layout("files");
    let installation = Installation::without_program(&scene);
    leave_staged(&scene, "echo old >ckpt/state");
    let (tree, real) = (staged(&scene, "state"), scene.checkpoints().join("state"));
    let lease = fs::File::open(&tree).expect("it is staged");
    // SAFETY: both calls take integers. Whoever breaks the lease sends a signal, which would end this process.
    let result = unsafe {
        libc::signal(libc::SIGIO, libc::SIG_IGN);
        libc::fcntl(lease.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK)
    };
    assert_eq!(result, 0, "nobody else has it open");
    let mut again = scene.preloaded_command("sh");
    again.args(["-c", "echo new >ckpt/state"]).env("LD_PRELOAD", installation.library());
    let stopped = Stopped::start(&scene, &again, ("openat", &tree, 1)).expect("it opens the file");
    fs::write(&real, "old\n").expect("the scene is ours");
    fs::remove_file(&tree).expect("the scene is ours");
    drop(lease);
    stopped.go_on().expect_success();
    assert_eq!(scene.preloaded(&["cat", "ckpt/state"]).expect_success().text(), "new\n");
    scene.drain();
    assert_eq!(fs::read_to_string(real).expect("it is published"), "new\n");
}

/// What the link leads to is only in the stage, because somebody writes to it.
#[test]
fn a_link_that_leaves_while_it_is_followed() {
    let scene = Scene::new(Engine::Pwrite).in_layout("files");
    let gate = scene.gate();
    // It has greeted the flusher, and does not wait for one that is stopped.
    const WRITE: &str = "import os
state = open('ckpt/state', 'w')
state.write('data\\n')
state.flush()
os.mknod('ready')
open('gate').read()
os.symlink('state', 'ckpt/latest')
os.mknod('linked')
open('gate').read()";
    let mut company = scene.preloaded_command("python3");
    let company = process::start(company.args(["-c", WRITE]).env("SHEAF_TIMEOUT", "1"));
    let company = company.await_file(&scene.captured_directory().join("ready"));
    scene.stop_flushers_in(scene.tier());
    fs::write(&gate, "").expect("the company reads it");
    let company = company.await_file(&scene.captured_directory().join("linked"));
    let tree = staged(&scene, "latest");
    let mut look = scene.preloaded_command("sh");
    look.args(["-c", "read line <ckpt/latest && echo $line"]).env("SHEAF_TIMEOUT", "1");
    let stopped = Stopped::start(&scene, &look, ("newfstatat", &tree, 1)).expect("it looks at the link");
    scene.continue_flushers_in(scene.tier());
    await_that("the link stays in the stage", || fs::symlink_metadata(&tree).is_err());
    assert_eq!(stopped.go_on().expect_success().text(), "data\n");
    fs::write(&gate, "").expect("the company reads it");
    company.finish().expect_success();
    scene.drain();
}

/// A program that can start no flusher, while somebody else's publishes what it renames and removes.
#[test]
fn names_that_leave_without_a_flusher_of_ones_own() {
    let (rename, remove) = ("import os; os.rename('ckpt/one', 'ckpt/two')", "import os; os.unlink('ckpt/one')");
    for (script, left) in [(rename, "two\n"), (remove, "")] {
        let scene = Scene::new(Engine::Pwrite).in_layout("files");
        let installation = Installation::without_program(&scene);
        leave_staged(&scene, "echo one >ckpt/one");
        let mut program = scene.preloaded_command("python3");
        program.args(["-c", script]).env("LD_PRELOAD", installation.library());
        let at = ("newfstatat", &*staged(&scene, "one"), 1);
        let stopped = Stopped::start(&scene, &program, at).expect("it looks at the name");
        scene.drain();
        stopped.go_on().expect_success();
        let real = scene.checkpoints().join("two");
        assert_eq!(fs::read_to_string(real).ok().as_deref(), if left.is_empty() { None } else { Some("one\n") });
        assert_eq!(scene.preloaded(&["ls", "ckpt"]).expect_success().text(), left);
        scene.drain();
    }
}

/// A flusher is stopped when a published file has left the stage, and before it forgets that it was there. Who writes
/// the file anew meanwhile, and renames it later, leaves nothing under the name.
#[test]
fn a_file_that_is_written_anew_before_the_old_one_is_forgotten() {
    let scene = Scene::new(Engine::Pwrite).in_layout("files");
    let unreliable = Unreliable::new(scene.root(), &scene.checkpoints());
    unreliable.rule("fsync * hang");
    let (gate, made) = (scene.gate(), scene.captured_directory().join("made"));
    const PROGRAM: &str = "import os
with open('ckpt/state', 'w') as state: state.write('old')
open('gate').read()
with open('ckpt/state', 'w') as state:
    state.write('new')
    os.mknod('made')
    open('gate').read()
    os.rename('ckpt/state', 'ckpt/other')";
    let mut program = scene.preloaded_command("python3");
    let program = process::start(program.args(["-c", PROGRAM]).env("SHEAF_TIMEOUT", "1"));
    await_that("nothing is published", || unreliable.log().iter().any(|call| call.starts_with("fsync Hang")));
    let stopped = Stopped::attach(&scene, ("unlink", &staged(&scene, "state")), || unreliable.rule(""));
    fs::write(&gate, "").expect("the program reads it");
    let program = program.await_file(&made);
    stopped.resume();
    scene.sheaf(&["status"]).expect_success();
    fs::write(&gate, "").expect("the program reads it");
    program.finish().expect_success();
    scene.drain();
    stopped.go_on();
    assert_eq!(scene.preloaded(&["ls", "ckpt"]).expect_success().text(), "other\n");
    assert_eq!(fs::read_to_string(scene.checkpoints().join("other")).expect("it is published"), "new");
    scene.drain();
}

/// Stops a flusher at one of its looks at the place that a file is about to take, for longer than the program waits
/// that removes the file. False when it makes fewer.
fn removed_while_stopped(when: u32) -> bool {
    let scene = Scene::new(Engine::Pwrite).in_layout("files");
    leave_staged(&scene, "echo state >ckpt/state");
    let mut drain = scene.sheaf_command();
    let at = ("statx", &*scene.checkpoints().join("state"), when);
    let Some(stopped) = Stopped::start(&scene, drain.arg("drain"), at) else { return false };
    let mut remove = scene.preloaded_command("rm");
    process::run(remove.arg("ckpt/state").env("SHEAF_TIMEOUT", "1")).expect_success();
    stopped.go_on().expect_success();
    scene.await_flushers();
    scene.drain();
    assert!(!scene.checkpoints().join("state").exists(), "stopped at look {when}: it is back");
    assert_eq!(scene.preloaded(&["ls", "ckpt"]).expect_success().text(), "", "stopped at look {when}");
    scene.drain();
    true
}

#[test]
fn what_was_removed_while_a_flusher_was_stopped_stays_away() {
    let stopped = std::thread::scope(|scope| {
        let rounds = [1, 2, 3, 4, 5, 6].map(|when| scope.spawn(move || removed_while_stopped(when)));
        rounds.map(|round| round.join().expect("it is back"))
    });
    assert!(stopped[0] && !stopped[5], "{stopped:?}");
}
