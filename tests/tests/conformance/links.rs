//! Links outside the checkpoint directories that lead into them: whoever goes through one sees what is captured, also a
//! program that has looked into the link's directory before and has taken it for none of Sheaf's business.

use std::fs;
use std::os::unix::fs::symlink;

use sheaf_tests::{Engine, Scene, process};

/// Runs a Python script on both sides, in the same surroundings; it must end well and say the same.
fn same(surroundings: &[(&str, &str)], script: &str) {
    let scene = Scene::new(Engine::IoUring);
    for side in [scene.native_directory(), scene.captured_directory()] {
        fs::create_dir(side.join("outside")).expect("the scene is ours");
        fs::write(side.join("outside/other"), "other\n").expect("the scene is ours");
        for (name, content) in surroundings {
            match content.strip_prefix("-> ") {
                Some(target) => symlink(target, side.join(name)).expect("the scene is ours"),
                None => fs::write(side.join(name), content).expect("the scene is ours"),
            }
        }
    }
    let native = scene.native(&["python3", "-c", script]).expect_success();
    let captured = scene.preloaded(&["python3", "-c", script]).expect_success();
    assert_eq!(captured.text(), native.text(), "{}", captured.describe());
}

#[test]
fn a_link_to_a_file_that_was_replaced() {
    let script = "
import os
os.stat('outside/other')
with open('ckpt/state', 'w') as state: state.write('new and longer')
for name in ['outside/link', 'outside/../outside/link', os.path.abspath('outside/link')]:
    print(open(name).read(), os.stat(name).st_size, os.lstat(name).st_size, os.path.getsize(name))
    print(os.readlink(name), os.path.samefile(name, 'ckpt/state'), os.access(name, os.W_OK))
os.chmod('outside/link', 0o640)
os.utime('outside/link', (5, 6))
print(oct(os.stat('ckpt/state').st_mode), os.stat('ckpt/state').st_mtime)
os.truncate('outside/link', 3)
with open('outside/link', 'r+') as state: state.write('N')
print(open('ckpt/state').read())
with open('outside/link', 'a') as state: state.write(' end')
print(open('ckpt/state').read())
";
    same(&[("ckpt/state", "old\n"), ("outside/link", "-> ../ckpt/state")], script);
}

#[test]
fn a_link_to_a_name_that_only_the_stage_has() {
    let script = "
import os
os.stat('outside/other')
with open('ckpt/state', 'w') as state: state.write('new')
os.symlink('state', 'ckpt/latest')
for name in ['outside/link', 'outside/chain', 'outside/way/latest', 'outside/way/../ckpt/state']:
    try: print(name, open(name).read(), os.stat(name).st_size, os.access(name, os.R_OK))
    except OSError as error: print(name, error.errno)
print(os.listdir('outside/way'), os.path.realpath('outside/chain') == os.path.realpath('ckpt/state'))
os.unlink('outside/chain')
print(sorted(os.listdir('outside')), os.path.exists('ckpt/state'))
";
    let surroundings =
        [("outside/link", "-> ../ckpt/state"), ("outside/chain", "-> link"), ("outside/way", "-> ../ckpt")];
    same(&surroundings, script);
}

#[test]
fn a_link_that_another_process_puts_in_the_place_of_a_file() {
    let script = "
import os, subprocess
with open('ckpt/state', 'w') as state: state.write('new')
print(open('outside/other').read())
subprocess.run(['ln', '-sf', '../ckpt/state', 'outside/other'], check=True, env={'PATH': os.environ['PATH']})
print(open('outside/other').read(), os.stat('outside/other').st_size)
";
    same(&[("ckpt/state", "old\n")], script);
}

#[test]
fn a_link_that_another_process_puts_in_the_place_of_a_directory_is_seen_in_the_end() {
    let scene = Scene::new(Engine::IoUring);
    let side = scene.captured_directory();
    fs::create_dir(side.join("way")).expect("the scene is ours");
    fs::write(side.join("way/state"), "outside").expect("the scene is ours");
    fs::write(side.join("ckpt/state"), "old").expect("the scene is ours");
    let script = "
import os, subprocess, time
with open('ckpt/state', 'w') as state: state.write('new')
assert open('way/state').read() == 'outside'
move = 'mv way away; ln -s ckpt way'
subprocess.run(['sh', '-c', move], check=True, env={'PATH': os.environ['PATH']})
deadline = time.monotonic() + 20
# All the time in use, so that the directory is never forgotten for want of interest.
while open('way/state').read() != 'new' or os.stat('way/state').st_size != 3:
    assert time.monotonic() < deadline, 'the old file is read for ever'
";
    process::run(scene.preloaded_command("python3").args(["-c", script])).expect_success();
}

#[test]
fn a_missing_directory_that_becomes_a_link() {
    let script = "
import os
with open('ckpt/state', 'w') as state: state.write('new')
for _ in range(3):
    try: open('outside/missing/state')
    except OSError as error: print(error.errno)
os.symlink('../ckpt', 'outside/missing')
print(open('outside/missing/state').read())
os.unlink('outside/missing')
os.mkdir('outside/missing')
try: open('outside/missing/state')
except OSError as error: print(error.errno)
";
    same(&[("ckpt/state", "old\n")], script);
}

#[test]
fn a_link_where_everybody_may_make_links_in_system_directories() {
    let script = "
import os, tempfile
with open('ckpt/state', 'w') as state: state.write('new and longer')
for where in ['/var/tmp', '/dev/shm', '/dev//shm', '/dev/./shm', '/run/lock']:
    with tempfile.TemporaryDirectory(dir=where) as directory:
        open(directory + '/other', 'w').close()
        os.symlink(os.path.abspath('ckpt/state'), directory + '/file')
        os.symlink(os.path.abspath('ckpt'), directory + '/way')
        for name in ['/file', '/way/state']:
            print(open(directory + name).read(), os.stat(directory + name).st_size, os.path.exists(directory + '/other'))
";
    same(&[("ckpt/state", "old\n")], script);
}

#[test]
fn links_of_the_kernel_to_where_a_process_is() {
    let script = "
import os
with open('ckpt/state', 'w') as state: state.write('new and longer')
start, directory = os.getcwd(), os.open('ckpt', os.O_RDONLY)
for way in ['/proc/self/cwd/ckpt', f'/proc/self/fd/{directory}', f'/dev/fd/{directory}', f'/dev/.//fd/{directory}',
            '/proc//self/./cwd/ckpt', '/proc/self/root' + start + '/ckpt']:
    print(open(way + '/state').read(), os.stat(way + '/state').st_size)
os.chdir('/')
print(os.path.exists('/proc/self/cwd/state'))
os.chdir(start + '/ckpt')
print(os.path.exists('/proc/self/cwd/state'), open('/proc/self/cwd/state').read())
file = os.open('state', os.O_RDONLY)
print(open(f'/proc/self/fd/{file}').read(), open(f'/dev/fd/{file}').read())
";
    same(&[("ckpt/state", "old\n")], script);
}

/// The path out of the system directory is told from others wherever its dots lie in memory.
#[test]
fn a_path_that_leaves_a_system_directory() {
    let script = "
import os
with open('ckpt/state', 'w') as state: state.write('new and longer')
path = os.path.abspath('ckpt/state')
for length in range(70):
    for start in ['/usr/', '/etc/', '/usr/lib/../']:
        name = start + './' * (length // 2) + '/' * (length % 2) + '..' + path
        assert os.stat(name).st_size == 14 and open(name).read() == 'new and longer', name
        assert not os.path.exists('/usr/x' + 'x' * length + '..')
print('all')
";
    same(&[("ckpt/state", "old\n")], script);
}

/// Thousands of names of one file and thousands of links, of which most go again, also while the flusher reads them.
/// The flusher once looked at every name for every name, and was hours behind.
#[test]
fn thousands_of_names() {
    const SCRIPT: &str = "
import os, random
random.seed(5)
with open('ckpt/file', 'w') as file: file.write('content')
for number in range(6000):
    os.link('ckpt/file', f'ckpt/hard-{number}')
    os.symlink('file', f'ckpt/soft-{number}')
print(os.stat('ckpt/file').st_nlink)
for number in random.sample(range(6000), 5000):
    os.unlink(f'ckpt/hard-{number}')
    os.rename(f'ckpt/soft-{number}', 'ckpt/soft')
with open('ckpt/file', 'a') as file: file.write(' and more')
os.makedirs('ckpt/below')
for number in range(300):
    with open(f'ckpt/below/{number}', 'w') as file: file.write(str(number))
for number in range(300): os.link(f'ckpt/below/{number}', f'ckpt/below/second-{number}')
print(os.stat('ckpt/file').st_nlink, os.stat('ckpt/below/7').st_nlink, len(os.listdir('ckpt')))
";
    let scene = Scene::new(Engine::IoUring);
    let native = scene.native(&["python3", "-c", SCRIPT]).expect_success();
    let captured = scene.preloaded(&["python3", "-c", SCRIPT]).expect_success();
    assert_eq!(captured.text(), native.text(), "{}", captured.describe());
    scene.drain();
    scene.verify();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "from the aggregates");
    let links = "import os; print(os.stat('ckpt/file').st_nlink, os.stat('ckpt/below/second-9').st_nlink)";
    let restarted = scene.preloaded(&["python3", "-c", links]).expect_success();
    assert_eq!(restarted.text(), "1001 2\n");
    scene.drain();
}
