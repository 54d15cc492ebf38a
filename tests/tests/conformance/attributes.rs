//! What is set on a file stays: while its data is on the way back, and where a directory gives its group.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use sheaf_tests::{Engine, Scene, process};

/// Files of a restart, in a stage that knows only their names.
fn stubs(count: usize, bytes: usize) -> Scene {
    let scene = Scene::new(Engine::IoUring);
    let script = format!("for n in $(seq {count}); do head -c {bytes} /dev/zero | tr '\\0' x >ckpt/state-$n; done");
    scene.preloaded(&["bash", "-ec", &script]).expect_success();
    scene.drain();
    scene.wipe_stage();
    scene
}

#[test]
fn what_is_set_while_the_data_comes_back_stays() {
    let bytes = 150_000_000;
    let scene = stubs(1, bytes);
    // One process reads, which brings the data back; another sets mode, times and group as soon as the first of it is
    // there.
    let change = format!(
        "
import glob, os, stat, time
[path] = glob.glob({:?} + '/*/*/tree') or [None]
path += os.path.abspath('ckpt/state-1')
open('ready', 'w').close()
deadline = time.monotonic() + 60
while os.stat(path).st_blocks == 0: assert time.monotonic() < deadline
os.chmod('ckpt/state-1', 0o1640)
os.utime('ckpt/state-1', (1000, 2000))
os.chown('ckpt/state-1', -1, os.getgid())
",
        scene.tier()
    );
    // A look that makes the stub, and brings nothing back.
    scene.preloaded(&["stat", "ckpt/state-1"]).expect_success();
    let mut changer = process::start(scene.preloaded_command("python3").args(["-c", &change]));
    while !scene.captured_directory().join("ready").exists() {
        assert!(!changer.wait_for(Duration::from_millis(5)), "it ended before it was ready");
    }
    let read = scene.preloaded(&["bash", "-ec", "cat ckpt/state-1 | wc -c"]).expect_success();
    assert_eq!(read.text(), format!("{bytes}\n"));
    changer.finish().expect_success();
    let assert_kept = |when: &str| {
        let script = "stat -c '%a %Y %s' ckpt/state-1; tr -d x <ckpt/state-1 | wc -c";
        let seen = scene.preloaded(&["bash", "-ec", script]);
        assert_eq!(seen.text(), format!("640 2000 {bytes}\n0\n"), "{when}: {}", seen.describe());
    };
    assert_kept("at once");
    scene.drain();
    assert_kept("drained");
    scene.wipe_stage();
    assert_kept("from the aggregates alone");
}

#[test]
fn a_mode_that_forbids_everything() {
    let scene = stubs(1, 100_000);
    let script = "chmod 0 ckpt/state-1; stat -c %a ckpt/state-1; chmod 400 ckpt/state-1; stat -c %a ckpt/state-1; \
                  wc -c <ckpt/state-1";
    assert_eq!(scene.preloaded(&["bash", "-ec", script]).expect_success().text(), "0\n400\n100000\n");
}

/// A group of this user's other than the first, if there is one.
fn other_group() -> u32 {
    let groups = Command::new("id").arg("-G").output().expect("id runs").stdout;
    let groups = String::from_utf8(groups).expect("numbers");
    // Root may give any group.
    let other = groups.split_whitespace().nth(1).map(|group| group.parse().expect("a number"));
    other.unwrap_or_else(|| if groups.trim() == "0" { 12345 } else { groups.trim().parse().expect("a number") })
}

#[test]
fn a_directory_gives_its_group_to_what_is_made_in_it() {
    let scene = Scene::new(Engine::IoUring);
    let group = other_group();
    for side in [scene.native_directory(), scene.captured_directory()] {
        for name in ["ckpt", "ckpt/before"] {
            let directory = side.join(name);
            fs::create_dir_all(&directory).expect("the scene is ours");
            std::os::unix::fs::chown(&directory, None, Some(group)).expect("a group of ours");
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o2755)).expect("ours");
        }
        fs::write(side.join("ckpt/old"), "old").expect("ours");
        std::os::unix::fs::chown(side.join("ckpt/old"), None, Some(group)).expect("a group of ours");
    }
    let script = "
import os
os.makedirs('ckpt/inside/deep'); os.makedirs('ckpt/plain'); os.chmod('ckpt/plain', 0o755)
os.makedirs('ckpt/turned'); os.chmod('ckpt/turned', 0o755); open('ckpt/turned/first', 'w').close()
os.chown('ckpt/turned', -1, os.getgid()); os.chmod('ckpt/turned', 0o2755)
names = ['ckpt/new', 'ckpt/old', 'ckpt/before/new', 'ckpt/inside/new', 'ckpt/inside/deep/new', 'ckpt/turned/second',
         'ckpt/turned/first']
for name in names:
    with open(name, 'w') as file: file.write('new')
os.symlink('new', 'ckpt/link'); os.link('ckpt/new', 'ckpt/linked'); os.rename('ckpt/new', 'ckpt/turned/moved')
for name in names[1:] + ['ckpt/link', 'ckpt/linked', 'ckpt/turned/moved']:
    print(name, os.lstat(name).st_gid, oct(os.lstat(name).st_mode))
for name in ['ckpt', 'ckpt/before', 'ckpt/inside', 'ckpt/inside/deep', 'ckpt/plain', 'ckpt/turned']:
    print(name, os.stat(name).st_gid, oct(os.stat(name).st_mode))
";
    let native = scene.native(&["python3", "-c", script]).expect_success();
    let captured = scene.preloaded(&["python3", "-c", script]).expect_success();
    assert_eq!(captured.text(), native.text(), "{}", captured.describe());
}
