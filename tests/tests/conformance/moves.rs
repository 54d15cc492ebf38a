//! What leaves the checkpoint directories is whole, whoever still writes to it, and names in the stage never collide.

use std::fs;

use sheaf_tests::{Engine, Scene};

/// Runs a Python script preloaded; yields what it says.
fn say(scene: &Scene, script: &str) -> String {
    scene.preloaded(&["python3", "-c", script]).expect_success().text()
}

/// A rename out of the checkpoint directory while `hold` writes: it works, or it is refused as between two file systems,
/// and then works when the writer is done. Nothing that was written is lost.
fn moved_while_written(hold: &str, write: &str, end: &str) {
    let scene = Scene::new(Engine::IoUring);
    let script = format!(
        "
import errno, mmap, os, subprocess
{hold}
try: os.rename('ckpt/state', 'out')
except OSError as error: assert error.errno == errno.EXDEV, error
assert os.path.exists('ckpt/state') != os.path.exists('out')
{write}
{end}
if os.path.exists('ckpt/state'): os.rename('ckpt/state', 'out')
print(open('out').read(), os.path.exists('ckpt/state'), sorted(os.listdir('.')), sorted(os.listdir('ckpt')))
"
    );
    assert_eq!(say(&scene, &script), "begin end False ['ckpt', 'out'] []\n");
    assert_eq!(fs::read_to_string(scene.captured_directory().join("out")).expect("it is outside"), "begin end");
}

#[test]
fn a_descriptor_that_writes() {
    let hold = "file = open('ckpt/state', 'w'); file.write('begin '); file.flush()";
    moved_while_written(hold, "file.write('end')", "file.close()");
}

#[test]
fn a_mapping_that_writes() {
    let hold = "
fd = os.open('ckpt/state', os.O_RDWR | os.O_CREAT); os.ftruncate(fd, 9)
memory = mmap.mmap(fd, 9); memory[:6] = b'begin '; os.close(fd)";
    moved_while_written(hold, "memory[6:] = b'end'", "memory.close()");
}

#[test]
fn another_process_that_writes() {
    let hold = "
other = subprocess.Popen(['sh', '-c', 'exec >ckpt/state; printf \"begin \"; echo ready >&2; read -r _; printf end'],
                         stdin=subprocess.PIPE, stderr=subprocess.PIPE)
other.stderr.readline()";
    moved_while_written(hold, "other.communicate(b'\\n')", "");
}

#[test]
fn mv_copies_what_is_still_written() {
    let scene = Scene::new(Engine::IoUring);
    let script = "exec 3>ckpt/state; echo begin >&3; mv ckpt/state out; cat out; test ! -e ckpt/state";
    assert_eq!(scene.preloaded(&["bash", "-ec", script]).expect_success().text(), "begin\n");
}

#[test]
fn names_that_are_taken_in_the_scratch_directory() {
    let scene = Scene::new(Engine::IoUring);
    scene.preloaded(&["bash", "-ec", "echo state >ckpt/state; echo other >ckpt/other"]).expect_success();
    scene.drain();
    scene.wipe_stage();
    // Truncating a stub and making a link go by way of the scratch directory, whose names an earlier process with the
    // same number has left.
    let script = format!(
        "
import glob, os
assert open('ckpt/other').read() == 'other\\n'
[scratch] = glob.glob({:?} + '/*/*/scratch')
numbers = '-'.join([str(os.getpid())] * 2)
for counter in range(40):
    with open(f'{{scratch}}/{{numbers}}-{{counter}}', 'x') as taken: taken.write('taken')
with open('ckpt/state', 'w') as state: state.write('new')
os.link('ckpt/other', 'ckpt/linked')
os.rename('ckpt/state', 'ckpt/renamed')
for counter in range(40):
    with open(f'.sheaf-move-{{numbers}}-{{counter}}', 'x') as taken: taken.write('taken')
os.rename('ckpt/other', 'out')
print(open('ckpt/renamed').read(), open('ckpt/linked').read(), open('out').read(), sorted(os.listdir('ckpt')))
",
        scene.tier()
    );
    assert_eq!(say(&scene, &script), "new other\n other\n ['linked', 'renamed']\n");
}
