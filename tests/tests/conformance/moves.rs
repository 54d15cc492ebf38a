//! What leaves the checkpoint directories is whole, whoever still writes to it, and names in the stage never collide.

use std::fs;

use sheaf_tests::{Engine, Scene};

/// Runs a Python script preloaded; yields what it says.
fn say(scene: &Scene, script: &str) -> String {
    scene.preloaded(&["python3", "-c", script]).expect_success().text()
}

/// A rename out of the checkpoint directory while `hold` writes: it works, or it is refused as between two file
/// systems, and then works when the writer is done. Nothing that was written is lost.
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

/// Two real directories of which one has captured files: their mirrors cannot be exchanged with them, so neither are
/// they.
#[test]
fn exchanging_directories_is_refused_where_one_has_captured_files() {
    let scene = Scene::new(Engine::IoUring);
    let script = "
import ctypes, errno, os
library = ctypes.CDLL(None, use_errno=True)
os.mkdir('ckpt/one'); os.mkdir('ckpt/two')
open('ckpt/one/state', 'w').write('captured')
for names in [(b'ckpt/one', b'ckpt/two'), (b'ckpt/two', b'ckpt/one')]:
    assert library.renameat2(-100, names[0], -100, names[1], 2) == -1
    print(errno.errorcode[ctypes.get_errno()], os.listdir('ckpt/one'), os.listdir('ckpt/two'), open('ckpt/one/state').read())
";
    assert_eq!(say(&scene, script), "EXDEV ['state'] [] captured\n".repeat(2));
    scene.drain();
    scene.wipe_stage();
    assert_eq!(say(&scene, "print(open('ckpt/one/state').read())"), "captured\n");
    scene.drain();
}

/// What comes from elsewhere in the place of the patterns' directory itself is real and stays so; what is written in it
/// then is captured. Where the store lies in that directory, it is not empty.
#[test]
fn a_directory_that_takes_the_place_of_the_checkpoint_directory() {
    let scene = Scene::new(Engine::IoUring);
    let script = "
import os
os.mkdir('other'); os.mkdir('other/set')
for name in ['other/state', 'other/set/state']: open(name, 'w').write('real')
os.listdir('ckpt')
os.rename('other', 'ckpt')
for name in ['ckpt/new', 'ckpt/set/new', 'ckpt/state']: open(name, 'w').write('new')
print(sorted(os.listdir('ckpt')), sorted(os.listdir('ckpt/set')), open('ckpt/state').read(), open('ckpt/set/state').read())
";
    let native = scene.native(&["python3", "-c", script]).expect_success();
    assert_eq!(say(&scene, script), native.text());
    scene.drain();
    assert_eq!(fs::read(scene.checkpoints().join("set/state")).expect("real"), b"real");
    assert!(!scene.checkpoints().join("set/new").exists(), "it is captured");
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
    scene.drain();
    let again = "
import errno, os
os.mkdir('third')
try: os.rename('third', 'ckpt')
except OSError as error: print(errno.errorcode[error.errno])
";
    assert_eq!(say(&scene, again), "ENOTEMPTY\n");
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
    scene.drain();
}
