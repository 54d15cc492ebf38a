//! No flusher can be had, and the store holds checkpoints: what only the store has is unknown, never missing. Programs
//! go on writing new checkpoints, and these are the newest when a flusher is back.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use sheaf_tests::process;
use sheaf_tests::scene::artefact;
use sheaf_tests::{Engine, Scene};

/// A library and a program of the scene's own, so that the program can be taken away.
pub struct Installation(PathBuf);

impl Installation {
    pub fn without_program(scene: &Scene) -> Installation {
        let directory = scene.root().join("installed");
        fs::create_dir(&directory).expect("the scene is ours");
        fs::copy(artefact("libsheaf.so"), directory.join("libsheaf.so")).expect("the scene is ours");
        Installation(directory)
    }

    pub fn add_program(&self) {
        // Complete at once: somebody may be looking.
        let aside = self.0.join("aside");
        fs::copy(artefact("sheaf"), &aside).expect("the scene is ours");
        fs::rename(aside, self.0.join("sheaf")).expect("the scene is ours");
    }

    pub fn remove_program(&self) {
        fs::remove_file(self.0.join("sheaf")).expect("the scene is ours");
    }

    pub fn library(&self) -> PathBuf {
        self.0.join("libsheaf.so")
    }

    /// A program in the place of `sheaf` that notes each start in the file `starts`, and goes on as `what`.
    pub fn add_counted(&self, what: &str) {
        let text = format!("#!/bin/sh\necho start >>'{}'\nexec {what} \"$@\"\n", self.0.join("starts").display());
        fs::write(self.0.join("sheaf"), text).expect("the scene is ours");
        fs::set_permissions(self.0.join("sheaf"), fs::Permissions::from_mode(0o755)).expect("the scene is ours");
    }

    /// How often that program has been started.
    pub fn starts(&self) -> usize {
        fs::read_to_string(self.0.join("starts")).map_or(0, |text| text.lines().count())
    }

    fn command(&self, scene: &Scene, arguments: &[&str]) -> Command {
        let mut command = scene.preloaded_command(arguments[0]);
        command.args(&arguments[1..]).env("LD_PRELOAD", self.0.join("libsheaf.so"));
        command
    }
}

/// A store that holds `old`, `other` and `deep/old`, and no stage.
fn stored() -> (Scene, Installation) {
    let scene = Scene::new(Engine::IoUring);
    let script = "mkdir ckpt/deep; for name in old other deep/old; do echo stored >ckpt/$name; done";
    scene.preloaded(&["bash", "-c", script]).expect_success();
    scene.drain();
    scene.wipe_stage();
    let installation = Installation::without_program(&scene);
    (scene, installation)
}

/// What all calls have in common: `expect(number, call)` ends the program unless the call fails with that error.
pub const CALLS: &str = r"
import ctypes, errno, os, sys, time
library = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), 'failed')
def expect(number, what, call):
    try:
        call()
    except OSError as error:
        if error.errno == number:
            return
        sys.exit('%s: %s' % (what, error))
    sys.exit('%s: no error' % what)
def read(path):
    with open(path) as file:
        return file.read()
def write(path, text):
    with open(path, 'w') as file:
        file.write(text)
";

/// Every kind of question about names that the store has, and about one that it has not.
const ASK: &str = r"
os.mkdir('beside')
write('beside/file', 'beside\n')
os.mkdir('beside/directory')
how = (ctypes.c_uint64 * 3)(os.O_RDONLY, 0, 4)
for name in ['ckpt/old', 'ckpt/deep/old', 'ckpt/none']:
    spawned = [(os.POSIX_SPAWN_OPEN, 0, name, os.O_RDONLY, 0)]
    for what, call in {
        'open': lambda: os.open(name, os.O_RDONLY),
        'append': lambda: os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        'update': lambda: os.open(name, os.O_RDWR | os.O_CREAT),
        'exclusive': lambda: os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
        'exclusive and empty': lambda: os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_TRUNC),
        'truncate without creating': lambda: os.open(name, os.O_WRONLY | os.O_TRUNC),
        'openat2': lambda: checked(library.syscall(437, -100, name.encode(), ctypes.byref(how), 24)),
        'stat': lambda: os.stat(name),
        'lstat': lambda: os.lstat(name),
        'access': lambda: checked(library.access(name.encode(), os.F_OK)),
        'readlink': lambda: os.readlink(name),
        'chmod': lambda: os.chmod(name, 0o600),
        'utime': lambda: os.utime(name),
        'truncate': lambda: os.truncate(name, 0),
        'unlink': lambda: os.unlink(name),
        'rmdir': lambda: os.rmdir(name),
        'mkdir': lambda: os.mkdir(name),
        'mkfifo': lambda: os.mkfifo(name),
        'symlink': lambda: os.symlink('old', name),
        'link from': lambda: os.link(name, 'ckpt/linked'),
        'link to': lambda: os.link('beside/file', name),
        'rename from': lambda: os.rename(name, 'ckpt/renamed'),
        'rename from, to beside': lambda: os.rename(name, 'beside/renamed'),
        'rename and keep': lambda: checked(library.renameat2(-100, b'beside/file', -100, name.encode(), 1)),
        'exchange': lambda: checked(library.renameat2(-100, b'beside/file', -100, name.encode(), 2)),
        'rename a directory': lambda: os.rename('beside/directory', name),
        'mkstemp': lambda: checked(library.mkstemp(ctypes.create_string_buffer((name + '-XXXXXX').encode()))),
        'mkostemps': lambda: checked(library.mkostemps(ctypes.create_string_buffer((name + 'XXXXXX.b').encode()), 2, 0)),
        'mkdtemp': lambda: library.mkdtemp(ctypes.create_string_buffer((name + '-XXXXXX').encode())) or checked(-1),
        'statvfs': lambda: os.statvfs(name),
        'execute': lambda: os.execv(name, [name]),
        'spawn': lambda: os.posix_spawn('/bin/cat', ['cat'], os.environ, file_actions=spawned),
        'below': lambda: os.stat(name + '/below'),
    }.items():
        expect(errno.EIO, what + ' ' + name, call)
watcher = library.inotify_init1(0)
for directory in ['ckpt', 'ckpt/deep']:
    for what, call in {
        'list': lambda: os.listdir(directory),
        'list by descriptor': lambda: os.listdir(os.open(directory, os.O_RDONLY)),
        'watch': lambda: checked(library.inotify_add_watch(watcher, directory.encode(), 0x100)),
        'rename': lambda: os.rename(directory, 'beside/taken'),
        'rename onto': lambda: os.rename('beside/directory', directory),
    }.items():
        expect(errno.EIO, what + ' ' + directory, call)
    os.stat(directory)
expect(errno.EIO, 'rmdir', lambda: os.rmdir('ckpt/deep'))
";

/// Programs go on, by both ways that programs write checkpoints.
const WRITE: &str = r"
write('ckpt/old', 'new\n')
write('ckpt/deep/new', 'new\n')
os.utime('ckpt/deep/new', (1, 1))
os.rename('ckpt/deep/new', 'ckpt/deep/old')
for name in ['ckpt/old', 'ckpt/deep/old']:
    assert read(name) == 'new\n'
    os.stat(name)
with open('ckpt/old', 'a') as file:
    file.write('more\n')
os.rename('ckpt/old', 'ckpt/older')
os.rename('ckpt/older', 'ckpt/old')
";

const AWAIT_OTHER: &str = r"
print('ready', flush=True)
write('ready', '')
while True:
    try:
        sys.exit(read('ckpt/other') != 'stored\n')
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    time.sleep(0.01)
";

fn assert_newest_is_found(scene: &Scene) {
    let script = "cat ckpt/old ckpt/deep/old ckpt/other; ls ckpt ckpt/deep";
    let expected = "new\nmore\nnew\nstored\nckpt:\ndeep\nold\nother\n\nckpt/deep:\nold\n";
    assert_eq!(scene.preloaded(&["bash", "-c", script]).expect_success().text(), expected);
}

#[test]
fn the_program_cannot_be_found_until_it_is_there_again() {
    let (scene, installation) = stored();
    let script = [CALLS, ASK, WRITE, AWAIT_OTHER].concat();
    let mut program = process::start(&mut installation.command(&scene, &["python3", "-c", &script]));
    while !scene.captured_directory().join("ready").exists() {
        if program.wait_for(Duration::from_millis(5)) {
            panic!("{}", program.finish().describe());
        }
    }
    installation.add_program();
    let finished = program.finish().expect_success();
    let said = String::from_utf8_lossy(&finished.stderr).into_owned();
    assert_eq!(said.lines().filter(|line| line.contains("EIO")).count(), 1, "{said}");
    assert_newest_is_found(&scene);
    scene.drain();
    scene.wipe_stage();
    assert_newest_is_found(&scene);
    scene.drain();
    scene.verify();
}

const ASK_ONCE: &str = "expect(getattr(errno, sys.argv[1]), 'open', lambda: read('ckpt/old'))
expect(getattr(errno, sys.argv[1]), 'stat', lambda: os.stat('ckpt/old'))";

fn ask(command: &mut Command, expected: &str) {
    command.args(["-c", &[CALLS, ASK_ONCE].concat(), expected]);
    process::run(command).expect_success();
}

#[test]
fn a_flusher_that_ends_at_once_answers_nothing() {
    let (scene, installation) = stored();
    symlink("/bin/false", installation.0.join("sheaf")).expect("the scene is ours");
    ask(&mut installation.command(&scene, &["python3"]), "EIO");
}

#[test]
fn a_store_that_cannot_be_looked_at_may_hold_anything() {
    let (scene, installation) = stored();
    let place = scene.captured_directory().join("loop");
    symlink(&place, &place).expect("the scene is ours");
    ask(installation.command(&scene, &["python3"]).env("SHEAF_STORE", place), "EIO");
}

#[test]
fn a_store_without_aggregates_holds_nothing() {
    let (scene, installation) = stored();
    for aggregate in scene.store_aggregates() {
        fs::remove_file(aggregate).expect("the scene is ours");
    }
    ask(&mut installation.command(&scene, &["python3"]), "ENOENT");
    let script =
        "echo first >>ckpt/old; mkdir ckpt/new; echo second >ckpt/new/file; cat ckpt/old ckpt/new/file; ls ckpt";
    let finished = process::run(&mut installation.command(&scene, &["bash", "-c", script])).expect_success();
    assert_eq!(finished.text(), "first\nsecond\ndeep\nnew\nold\n");
}

/// What glob(3) says, without and with GLOB_ERR; then what Python's says, which takes no notice of errors.
const GLOB: &str = r"
import glob
class Found(ctypes.Structure):
    _fields_ = [('count', ctypes.c_size_t), ('rest', ctypes.c_size_t * 16)]
for pattern in [b'ckpt/*', b'ckpt/deep/*', b'ckpt/none*']:
    for flags in [0, 1]:
        found = Found()
        print(pattern, flags, library.glob(pattern, flags, None, ctypes.byref(found)), found.count)
    print(glob.glob(pattern.decode()))
";

/// A pattern over an unknown directory has the answer that it has natively over a directory that cannot be read.
#[test]
fn patterns_over_it_are_answered_as_over_what_cannot_be_read() {
    let (scene, installation) = stored();
    let script = [CALLS, GLOB].concat();
    let captured = process::run(&mut installation.command(&scene, &["python3", "-c", &script])).expect_success();
    let said = String::from_utf8_lossy(&captured.stderr).into_owned();
    assert_eq!(said.lines().filter(|line| line.contains("EIO")).count(), 1, "{said}");
    fs::create_dir_all(scene.native_directory().join("ckpt/deep")).expect("the scene is ours");
    let mut native = scene.native_command("strace");
    native.args(["-qq", "-o", "/dev/null", "-P", "ckpt", "-P", "ckpt/deep", "-e", "inject=openat:error=EIO"]);
    let native = process::run(native.args(["python3", "-c", &script])).expect_success();
    assert_eq!(captured.text(), native.text());
}
