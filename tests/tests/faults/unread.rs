//! A store that a flusher cannot read when it starts: what it holds is never taken for missing, what is written goes on
//! and is kept, and everything is as natively once the store can be read.

use std::process::Command;
use std::time::{Duration, Instant};

use sheaf_tests::unreliable::Unreliable;
use sheaf_tests::{Engine, Scene, process};

/// One call on the store fails, all that open it do, or they get no answer.
const RULES: [&str; 4] = ["open * 5", "open 2 116", "open-directory * 13", "open * hang"];
/// Ends with the errno of the first call that fails; else prints what it has read.
const READ: &str = "import os, sys
try:
    for name in sys.argv[1:]:
        if name.endswith('/'):
            print(sorted(entry for entry in os.listdir(name) if entry != '.sheaf'))
        else:
            os.stat(name)
            print(open(name).read())
except OSError as error:
    sys.exit(error.errno)";
pub const EIO: Option<i32> = Some(libc::EIO);

pub fn reader(scene: &Scene, names: &[&str]) -> Command {
    let mut command = scene.preloaded_command("python3");
    command.args(["-c", READ]).args(names);
    command
}

/// A store of two aggregates that lies on an unreliable file system.
fn published_twice(engine: Engine) -> (Scene, Unreliable) {
    let scene = Scene::new(engine);
    let unreliable = Unreliable::new(scene.root(), &scene.checkpoints());
    for script in ["mkdir ckpt/set; echo first >ckpt/set/first", "echo second >ckpt/second; echo plain >ckpt/plain"] {
        scene.native(&["bash", "-c", script]).expect_success();
        scene.preloaded(&["bash", "-c", script]).expect_success();
        scene.drain();
    }
    (scene, unreliable)
}

fn assert_recovers(scene: &Scene, unreliable: &Unreliable, what: &str) {
    unreliable.rule("");
    await_status(scene, |says_error| !says_error);
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{what}: at once");
    scene.drain();
    scene.verify();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{what}: from the store alone");
}

/// Waits until the flusher says that the store cannot be read, or does not say so.
fn await_status(scene: &Scene, wanted: impl Fn(bool) -> bool) {
    let deadline = Instant::now() + process::LIMIT;
    while !wanted(scene.sheaf(&["status", "--json"]).expect_success().text().contains("the store ")) {
        assert!(Instant::now() < deadline, "the flusher's state stays as it is");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_it_holds_is_not_missing() {
    for rule in RULES.iter().filter(|rule| rule.contains('*')) {
        let (scene, unreliable) = published_twice(Engine::IoUring);
        scene.wipe_stage();
        unreliable.rule(rule);
        for name in ["ckpt/second", "ckpt/set/first", "ckpt/set/", "ckpt/"] {
            let read = process::run(reader(&scene, &[name]).env("SHEAF_TIMEOUT", "1"));
            assert_eq!(read.status.code(), EIO, "{rule}, {name}: {}", read.describe());
        }
        // A program that begins anew where there is nothing must not do so, nor one that only adds something.
        for script in ["set -C; echo anew >ckpt/second", "echo more >>ckpt/second", "mv ckpt/set ckpt/sets"] {
            let begun = process::run(scene.preloaded_command("bash").args(["-c", script]).env("SHEAF_TIMEOUT", "1"));
            assert_eq!(begun.status.code(), Some(1), "{rule}, {script}: {}", begun.describe());
        }
        assert_recovers(&scene, &unreliable, rule);
    }
}

#[test]
fn it_is_waited_for() {
    for rule in RULES {
        let (scene, unreliable) = published_twice(Engine::Pwrite);
        scene.wipe_stage();
        unreliable.rule(rule);
        let read = process::start(&mut reader(&scene, &["ckpt/set/first", "ckpt/second", "ckpt/"]));
        if rule.contains('*') {
            await_status(&scene, |says_error| says_error);
            unreliable.rule("");
        }
        let text = read.finish().expect_success().text();
        assert_eq!(text, "first\n\nsecond\n\n['plain', 'second', 'set']\n", "{rule}");
        assert_recovers(&scene, &unreliable, rule);
    }
}

/// Makes these changes when the file `ready`, which it makes, has gone.
const WRITE: &str = "import os, time
def write(name, text):
    with open(name, 'w') as file:
        file.write(text)
os.listdir('ckpt')
write('ready', '')
while os.path.exists('ready'):
    time.sleep(0.005)
write('ckpt/new', 'new')
os.rename('ckpt/plain', 'ckpt/plain.old')
write('ckpt/plain', 'again')
os.rename('ckpt/second', 'ckpt/2')
write('ckpt/second.new', 'replaced')
assert not os.path.exists('ckpt/none')
os.rename('ckpt/second.new', 'ckpt/second')
os.unlink('ckpt/set/other')";

/// In a stage that a flusher leaves which is killed, for a process that has looked into it. Stubs and staged files are
/// there.
#[test]
fn what_is_written_goes_on_and_is_kept() {
    for rule in RULES {
        let (scene, unreliable) = published_twice(Engine::IoUring);
        // Stubs, one of which has its data.
        scene.wipe_stage();
        process::run(&mut reader(&scene, &["ckpt/set/", "ckpt/", "ckpt/plain"])).expect_success();
        for mut command in [scene.native_command("bash"), scene.preloaded_command("bash")] {
            process::run(command.args(["-c", "echo other >ckpt/set/other"])).expect_success();
        }
        scene.sheaf(&["wait"]).expect_success();
        let ready = [scene.native_directory(), scene.captured_directory()].map(|side| side.join("ready"));
        let start = |mut command: Command| process::start(command.args(["-c", WRITE]).env("SHEAF_TIMEOUT", "1"));
        let native = start(scene.native_command("python3")).await_file(&ready[0]);
        let captured = start(scene.preloaded_command("python3")).await_file(&ready[1]);
        scene.kill_flushers();
        unreliable.rule(rule);
        ready.iter().for_each(|file| std::fs::remove_file(file).expect("the scene is ours"));
        native.finish().expect_success();
        captured.finish().expect_success();
        if rule.contains('*') {
            await_status(&scene, |says_error| says_error);
            for command in ["wait", "drain"] {
                let said = scene.sheaf(&[command, "--store-timeout", "1"]);
                assert_eq!(said.status.code(), Some(2), "{rule}, {command}: {}", said.describe());
            }
            // Another process has not seen what the store held then.
            for name in ["ckpt/2", "ckpt/none"] {
                let read = process::run(reader(&scene, &[name]).env("SHEAF_TIMEOUT", "1"));
                assert_eq!(read.status.code(), EIO, "{rule}: {}", read.describe());
            }
            scene.kill_flushers();
        }
        assert_recovers(&scene, &unreliable, rule);
    }
}
