//! Space: a stage that is smaller than the data, and names whose old content gives way to a new one.
//!
//! Whatever was evicted, replaced or moved over, a program reads the last version; nothing may grow without end.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sheaf_tests::process::{self, Running};
use sheaf_tests::scene::helper;
use sheaf_tests::{Engine, Scene};
use tempfile::TempDir;

/// How long anything that is awaited here may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a condition is left alone between two looks.
const GLANCE: Duration = Duration::from_millis(10);

/// Six files of 0.7 MB, and one that makes the shell itself a client.
const SIX_FILES: &str = "
    : >ckpt/empty
    for n in 1 2 3 4 5 6; do seq $((n * 100000)) $((n * 100000 + 99999)) >ckpt/state-$n; done";
/// Less than two of them.
const SMALL_LIMIT: u64 = 1 << 20;

/// A preloaded shell that has run its script and lives on, and with it the flusher.
struct Kept {
    running: Running,
    gate: File,
    /// Where the gate lies.
    _directory: TempDir,
}

impl Kept {
    fn start(scene: &Scene, variables: &[(&str, &str)], script: &str) -> Kept {
        let directory = tempfile::tempdir_in(scene.root()).expect("the scene is ours");
        let (path, reached) = (directory.path().join("gate"), directory.path().join("reached"));
        process::run(scene.native_command("mkfifo").arg(&path)).expect_success();
        // Open for both, so that neither side waits for the other to open it.
        let gate = File::options().read(true).write(true).open(&path).expect("the scene is ours");
        let script = format!("{script}\n: >$KEPT/reached; read -r _ <$KEPT/gate; cat <&3 2>/dev/null || true");
        let mut command = scene.preloaded_command("bash");
        command.args(["-ec", &script]).env("KEPT", directory.path()).envs(variables.iter().copied());
        let mut running = process::start(&mut command);
        await_that("the script is through", || {
            assert!(!running.wait_for(Duration::ZERO), "the script has failed");
            reached.exists()
        });
        Kept { running, gate, _directory: directory }
    }

    /// Lets the shell end; yields what it reads from its descriptor 3, if the script has opened that.
    fn end(mut self) -> Vec<u8> {
        self.gate.write_all(b"\n").expect("the gate is open on our side");
        self.running.finish().expect_success().stdout
    }
}

fn await_that(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(GLANCE);
    }
}

/// A command with a limit for the stage, for the flusher that it may start.
fn limited(mut command: Command, limit_bytes: u64) -> Command {
    command.env("SHEAF_STAGE_LIMIT", limit_bytes.to_string());
    command
}

/// The memory that the stage's files take.
fn stage_bytes(directory: &Path) -> u64 {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return 0,
        Err(error) => panic!("{}: {error}", directory.display()),
    };
    // The flusher is at work: what is gone by now takes nothing.
    let of = |path: &Path| match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => stage_bytes(path),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(|entry| of(&entry.path())).sum()
}

fn await_stage_below(scene: &Scene, limit_bytes: u64) {
    await_that("the stage is below its limit", || stage_bytes(scene.tier()) <= limit_bytes);
}

/// Bytes of all aggregates.
fn store_bytes(scene: &Scene) -> u64 {
    scene.store_aggregates().iter().map(|path| fs::metadata(path).expect("aggregates stay").len()).sum()
}

/// What a preloaded program reads from a checkpoint.
fn read(scene: &Scene, limit_bytes: u64, name: &str) -> Vec<u8> {
    let path = scene.checkpoints().join(name);
    process::run(limited(scene.preloaded_command("cat"), limit_bytes).arg(path)).expect_success().stdout
}

/// The captured side's snapshot, read under a limit.
fn snapshot(scene: &Scene, limit_bytes: u64) -> String {
    process::run(limited(scene.preloaded_command(helper("snapshot")), limit_bytes).arg("ckpt")).expect_success().text()
}

/// Whether a batch is being written now.
fn is_writing(scene: &Scene) -> bool {
    let report = scene.sheaf(&["status", "--json"]).expect_success();
    let status: serde_json::Value = serde_json::from_slice(&report.stdout).expect("one JSON text");
    status["in_flight"].as_u64().expect("a number") > 0
}

#[test]
fn a_stage_smaller_than_the_data() {
    let scene = Scene::new(Engine::IoUring);
    scene.native(&["bash", "-ec", SIX_FILES]).expect_success();
    let kept = Kept::start(&scene, &[("SHEAF_STAGE_LIMIT", &SMALL_LIMIT.to_string())], SIX_FILES);
    scene.sheaf(&["wait"]).expect_success();
    await_stage_below(&scene, SMALL_LIMIT);
    assert_eq!(snapshot(&scene, SMALL_LIMIT), scene.native_snapshot());
    await_stage_below(&scene, SMALL_LIMIT);
    kept.end();
    scene.drain();
    scene.assert_no_captured_files_on_pfs();
    scene.verify();
}

#[test]
fn a_restart_from_a_wiped_stage_stays_below_the_limit() {
    let scene = Scene::new(Engine::IoUring);
    scene.preloaded(&["bash", "-ec", SIX_FILES]).expect_success();
    scene.drain();
    scene.wipe_stage();
    let limit = [("SHEAF_STAGE_LIMIT", &*SMALL_LIMIT.to_string())];
    let kept = Kept::start(&scene, &limit, ": <ckpt/empty; cat ckpt/state-* >/dev/null");
    await_stage_below(&scene, SMALL_LIMIT);
    kept.end();
}

#[test]
fn the_last_of_several_versions_of_the_same_size() {
    let scene = Scene::new(Engine::IoUring);
    let limit = 64 << 10;
    let variables = [("SHEAF_STAGE_LIMIT", &*limit.to_string())];
    let kept = Kept::start(&scene, &variables, ": >ckpt/empty; head -c 500000 /dev/zero | tr '\\0' 0 >ckpt/state");
    for version in 1..=4u8 {
        scene.sheaf(&["wait"]).expect_success();
        await_stage_below(&scene, limit);
        // By turns into the old content and in place of it.
        let mode = if version % 2 == 0 { "conv=notrunc" } else { "conv=fsync" };
        let script = format!(
            "head -c 500000 /dev/zero | tr '\\0' {version} | dd of=ckpt/state bs=100k iflag=fullblock status=none {mode}"
        );
        process::run(limited(scene.preloaded_command("bash"), limit).args(["-ec", &script])).expect_success();
        assert!(read(&scene, limit, "state") == vec![b'0' + version; 500_000], "version {version}");
    }
    scene.sheaf(&["wait"]).expect_success();
    await_stage_below(&scene, limit);
    assert!(read(&scene, limit, "state") == vec![b'4'; 500_000], "evicted");
    kept.end();
    scene.drain();
    scene.wipe_stage();
    assert!(read(&scene, limit, "state") == vec![b'4'; 500_000], "from the aggregates alone");
}

#[test]
fn a_version_that_waits_behind_others_is_not_evicted() {
    let scene = Scene::new(Engine::IoUring);
    let limit = 1_500_000;
    let variables = [("SHEAF_STAGE_LIMIT", &*limit.to_string()), ("SHEAF_BANDWIDTH", "1500K")];
    let kept = Kept::start(&scene, &variables, ": >ckpt/empty; head -c 1000000 /dev/zero | tr '\\0' 1 >ckpt/state");
    scene.sheaf(&["wait"]).expect_success();
    let write = |script: &str| drop(scene.preloaded(&["bash", "-ec", script]).expect_success());
    write("head -c 2000000 /dev/zero >ckpt/before");
    await_that("a batch is being written", || is_writing(&scene));
    // In place, so that only the bytes tell it from the published version, which may be evicted from now on.
    write("head -c 1000000 /dev/zero | tr '\\0' 2 >ckpt/state; head -c 1000000 /dev/zero >ckpt/behind");
    scene.sheaf(&["wait"]).expect_success();
    assert!(read(&scene, limit, "state") == vec![b'2'; 1_000_000], "published");
    kept.end();
    scene.drain();
    scene.wipe_stage();
    assert!(read(&scene, limit, "state") == vec![b'2'; 1_000_000], "from the aggregates alone");
}

/// A file from outside moved over a managed one, which is published before or not.
fn moved_over(published: bool) {
    let scene = Scene::new(Engine::IoUring);
    let outside = scene.captured_directory().join("outside");
    fs::write(&outside, "from outside\n").expect("the scene is ours");
    scene.preloaded(&["bash", "-ec", "echo managed >ckpt/state; echo other >ckpt/other"]).expect_success();
    if published {
        scene.drain();
    }
    let seen = scene.preloaded(&["bash", "-ec", "mv outside ckpt/state; cat ckpt/state; ls ckpt"]).expect_success();
    assert_eq!(seen.text(), "from outside\nother\nstate\n");
    assert!(!outside.exists());
    let real = scene.checkpoints().join("state");
    assert_eq!(fs::read_to_string(&real).expect("it lies where it was moved"), "from outside\n");
    scene.drain();
    let cat = |name: &str| {
        let path = scene.checkpoints().join(name);
        process::run(scene.sheaf_command().arg("cat").arg(scene.store()).arg(path))
    };
    assert!(!cat("state").status.success(), "the managed version is still held");
    assert_eq!(cat("other").expect_success().text(), "other\n");
    scene.wipe_stage();
    assert_eq!(read(&scene, SMALL_LIMIT, "state"), b"from outside\n");
    assert_eq!(read(&scene, SMALL_LIMIT, "other"), b"other\n");
    assert_eq!(fs::read_to_string(&real).expect("nobody removes it"), "from outside\n");
}

#[test]
fn a_file_from_outside_moved_over_a_staged_one() {
    moved_over(false);
}

#[test]
fn a_file_from_outside_moved_over_a_published_one() {
    moved_over(true);
}

#[test]
fn an_excluded_name_is_native_and_its_sibling_is_captured() {
    let scene = Scene::new(Engine::IoUring);
    let script = "mkdir ckpt/deep; for name in run.log state deep/run.log deep/state; do echo $name >ckpt/$name; done";
    scene.native(&["bash", "-ec", script]).expect_success();
    let excluding = |mut command: Command| {
        command.env("SHEAF_EXCLUDE", format!("{}/**/*.log", scene.checkpoints().display()));
        command
    };
    let seen = || process::run(excluding(scene.preloaded_command(helper("snapshot"))).arg("ckpt"));
    process::run(excluding(scene.preloaded_command("bash")).args(["-ec", script])).expect_success();
    assert_eq!(seen().expect_success().text(), scene.native_snapshot());
    process::run(excluding(scene.sheaf_command()).arg("drain")).expect_success();
    for name in ["run.log", "deep/run.log"] {
        let bytes = fs::read_to_string(scene.checkpoints().join(name)).expect("an excluded file is native");
        assert_eq!(bytes, format!("{name}\n"));
    }
    for name in ["state", "deep/state"] {
        assert!(!scene.checkpoints().join(name).exists(), "{name} was to be captured");
    }
    scene.wipe_stage();
    assert_eq!(seen().expect_success().text(), scene.native_snapshot());
    let listed = process::run(scene.sheaf_command().arg("ls").arg(scene.store())).expect_success().text();
    assert!(listed.contains("deep/state") && !listed.contains(".log"), "{listed}");
}

#[test]
fn an_unmanaged_file_stays_whole_until_its_successor_is_published() {
    let scene = Scene::new(Engine::IoUring);
    let real = scene.checkpoints().join("state");
    let old = vec![b'o'; 700_000];
    fs::write(&real, &old).expect("the scene is ours");
    let script = ": >ckpt/empty; head -c 2000000 /dev/zero | tr '\\0' n >ckpt/state";
    let kept = Kept::start(&scene, &[("SHEAF_BANDWIDTH", "2M")], script);
    let mut looks = 0;
    let mut wait = process::start(scene.sheaf_command().arg("wait"));
    while !wait.wait_for(GLANCE) {
        match fs::read(&real) {
            Ok(bytes) => assert!(bytes == old, "the old file changed while its successor was being published"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
        }
        looks += 1;
    }
    assert!(looks > 0, "the publication was over before anybody looked");
    wait.finish().expect_success();
    assert!(read(&scene, SMALL_LIMIT, "state") == vec![b'n'; 2_000_000]);
    kept.end();
    scene.drain();
    assert!(!real.exists(), "the old file outlives its successor's publication");
    scene.wipe_stage();
    assert!(read(&scene, SMALL_LIMIT, "state") == vec![b'n'; 2_000_000], "from the aggregates alone");
}

#[test]
fn a_file_held_open_for_reading_is_published_once() {
    let scene = Scene::new(Engine::IoUring);
    let limit = 64 << 10;
    let script = ": >ckpt/empty; head -c 1000000 /dev/zero | tr '\\0' h >ckpt/state; exec 3<ckpt/state";
    let kept = Kept::start(&scene, &[("SHEAF_STAGE_LIMIT", &*limit.to_string())], script);
    for round in 1..=6 {
        scene.sheaf(&["wait"]).expect_success();
        // Each new publication is a reason to look for room.
        scene.preloaded(&["bash", "-ec", &format!("echo {round} >ckpt/small-{round}")]).expect_success();
    }
    scene.sheaf(&["wait"]).expect_success();
    assert!(kept.end() == vec![b'h'; 1_000_000], "the holder reads something else");
    scene.drain();
    let stored = store_bytes(&scene);
    assert!(stored < 1_500_000, "1 MB was published several times: {stored} bytes");
    assert!(read(&scene, limit, "state") == vec![b'h'; 1_000_000]);
}

#[test]
fn a_file_is_evicted_when_its_last_reader_is_gone() {
    let scene = Scene::new(Engine::IoUring);
    let limit = 64 << 10;
    let variables = [("SHEAF_STAGE_LIMIT", &*limit.to_string())];
    let kept = Kept::start(&scene, &variables, ": >ckpt/empty");
    let script = "head -c 500000 /dev/zero | tr '\\0' e >ckpt/state; exec 3<ckpt/state";
    let reader = Kept::start(&scene, &variables, script);
    // When the second is answered, the flusher has looked for room after the publication, and found the file in use.
    for _ in 0..2 {
        scene.sheaf(&["wait"]).expect_success();
    }
    assert!(reader.end() == vec![b'e'; 500_000], "the reader reads something else");
    await_stage_below(&scene, limit);
    assert!(read(&scene, limit, "state") == vec![b'e'; 500_000]);
    kept.end();
}

/// A memory control group of the test's own, whose processes may use this much.
struct MemoryGroup {
    directory: PathBuf,
}

impl MemoryGroup {
    fn new(name: &str, limit_bytes: u64) -> MemoryGroup {
        let (first, second) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let is_first = first.join("memory.limit_in_bytes").exists();
        let (root, limit) = if is_first { (first, "memory.limit_in_bytes") } else { (second, "memory.max") };
        if !is_first {
            fs::write(root.join("cgroup.subtree_control"), "+memory")
                .expect("root may have groups with a memory limit");
        }
        let directory = root.join(format!("sheaf-test-{name}-{}", std::process::id()));
        fs::create_dir(&directory).expect("root may make a group");
        let group = MemoryGroup { directory };
        fs::write(group.directory.join(limit), limit_bytes.to_string()).expect("a group takes a limit");
        group
    }

    /// The command, run in the group with everything that it starts.
    fn command(&self, command: &Command) -> Command {
        let mut inside = Command::new("bash");
        let enter = r#"echo $$ >"$0" && exec env "${@}""#;
        inside.arg("-c").arg(enter).arg(self.directory.join("cgroup.procs"));
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                inside.arg([name, value].join(OsStr::new("=")));
            }
        }
        inside.arg(command.get_program()).args(command.get_args());
        if let Some(directory) = command.get_current_dir() {
            inside.current_dir(directory);
        }
        inside
    }

    /// Runs a Python program without Sheaf, and with it in the group, there with further arguments: it says and leaves
    /// the same, and nobody is killed.
    fn assert_unnoticed(&self, scene: &Scene, script: &str, arguments: &[&OsStr]) {
        let native = scene.native(&["python3", "-c", script]).expect_success().text();
        let mut command = scene.preloaded_command("python3");
        command.args(["-c", script]).args(arguments);
        let text = process::run(&mut self.command(&command)).expect_success().text();
        assert_eq!(text, native, "{script}");
        scene.drain();
        assert_eq!(self.kills(), 0, "{script}");
        scene.verify();
        assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{script}");
    }

    /// How often the kernel has killed somebody in it.
    fn kills(&self) -> u64 {
        let read = |name: &str| fs::read_to_string(self.directory.join(name));
        let text = read("memory.oom_control").or_else(|_| read("memory.events")).expect("a group counts");
        text.lines().filter_map(|line| line.strip_prefix("oom_kill ")?.parse::<u64>().ok()).sum()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Only an empty group goes; the flusher of a scene that failed may be in it for a moment.
        let deadline = Instant::now() + PATIENCE;
        while fs::remove_dir(&self.directory).is_err() && Instant::now() < deadline {
            std::thread::sleep(GLANCE);
        }
    }
}

/// What is staged in memory counts as the job's, and beyond its limit the kernel kills: a program that writes several
/// times as much, as fast as it can, must not notice.
#[test]
fn a_memory_group_smaller_than_the_data() {
    let scene = Scene::new(Engine::IoUring);
    let group = MemoryGroup::new("small", 160 << 20);
    let script = "
import os
block = bytes(range(256)) * 4096
for number in range(24):
    with open(f'ckpt/state-{number}', 'wb') as file:
        for _ in range(24):
            file.write(block)
        file.write(b'%d' % number)";
    group.assert_unnoticed(&scene, script, &[]);
}

/// What others free in the stage's file system is no room for a group that has reached its limit.
#[test]
fn a_memory_group_beside_others_that_free_room() {
    let scene = Scene::new(Engine::IoUring);
    let group = MemoryGroup::new("beside", 160 << 20);
    let others = tempfile::tempdir_in("/dev/shm").expect("tests may use the node's memory");
    let held = others.path().join("held");
    fs::write(&held, vec![b'h'; 512 << 20]).expect("there is room for half a GiB");
    let script = "
import os, sys
block = bytes(range(256)) * 4096
for number in range(24):
    with open(f'ckpt/state-{number}', 'wb') as file:
        for _ in range(24):
            file.write(block)
    if number == 0 and len(sys.argv) > 1:
        os.remove(sys.argv[1])";
    group.assert_unnoticed(&scene, script, &[held.as_os_str()]);
    assert!(!held.exists(), "the program has not removed it");
}

/// A file that is larger than what the group may use, in whatever way it grows: no call fails where a group is full, so
/// the library has to know before.
#[test]
fn a_file_larger_than_its_memory_group() {
    let growths = [
        ("write", "for _ in range(240): os.write(file, block)"),
        ("write-at-once", "os.write(file, block * 100); os.write(file, b'end')"),
        ("pwrite", "for place in range(240): os.pwrite(file, block, place << 20)"),
        ("writev", "for _ in range(8): os.writev(file, [block] * 30)"),
        ("pwritev", "for place in range(8): os.pwritev(file, [block] * 30, place * 30 << 20)"),
        ("posix_fallocate", "os.posix_fallocate(file, 0, 240 << 20); os.write(file, block)"),
        ("ftruncate", "os.ftruncate(file, 240 << 20); mmap.mmap(file, 240 << 20)[0::4096] = b'x' * (240 << 8)"),
        ("sendfile", "[os.sendfile(file, source, 0, 1 << 30) for _ in range(3)]"),
        ("copy_file_range", "for _ in range(6): copy(file)"),
    ];
    for (name, growth) in growths {
        let scene = Scene::new(Engine::IoUring);
        let group = MemoryGroup::new(name, 160 << 20);
        let script = format!(
            "
import errno, mmap, os
block = bytes(range(256)) * 4096
with open('source', 'wb') as file:
    for _ in range(80): file.write(block)
source = os.open('source', os.O_RDONLY)
with open('ckpt/part', 'wb') as file:
    for _ in range(40): file.write(block)
part = os.open('ckpt/part', os.O_RDONLY)
def copy(to):
    try:
        os.copy_file_range(part, to, 1 << 30, 0)
    except OSError as error:
        assert error.errno == errno.EXDEV
        os.sendfile(to, part, 0, 1 << 30)
with open('ckpt/before', 'wb') as file: file.write(block)
file = os.open('ckpt/state', os.O_RDWR | os.O_CREAT, 0o640)
{growth}
os.write(file, b'behind')
os.close(file)
with open('ckpt/after', 'wb') as file: file.write(block)"
        );
        group.assert_unnoticed(&scene, &script, &[]);
    }
}

/// Calls that the kernel refuses, or makes in part, in a group that is nearly full: what is looked at before them must
/// not change what comes of them.
#[test]
fn calls_that_fail_in_a_memory_group() {
    let scene = Scene::new(Engine::IoUring);
    let group = MemoryGroup::new("fail", 160 << 20);
    let script = "
import ctypes, mmap, os
libc = ctypes.CDLL(None, use_errno=True)
class Piece(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]
block = bytes(range(256)) * 4096
file = os.open('ckpt/large', os.O_RDWR | os.O_CREAT, 0o640)
for _ in range(100): os.write(file, block)
readable = os.open('ckpt/large', os.O_RDONLY)
# One page, and none behind it.
page = libc.mmap; page.restype = ctypes.c_void_p
page = page(None, ctypes.c_size_t(2 << 20), 3, 0x22, -1, ctypes.c_long(0))
libc.munmap(ctypes.c_void_p(page + (1 << 20)), ctypes.c_size_t(1 << 20))
def tell(result): print(result, ctypes.get_errno() if result < 0 else 0)
def write(fd, count): tell(ctypes.c_ssize_t(libc.write(fd, ctypes.c_void_p(page), ctypes.c_size_t(count))).value)
def writev(fd, pieces, count): tell(ctypes.c_ssize_t(libc.writev(fd, pieces, count)).value)
libc.write.restype = libc.writev.restype = ctypes.c_ssize_t
pieces = lambda *lengths: (Piece * len(lengths))(*[Piece(page, length) for length in lengths])
for fd in (file, readable, 99):
    for count in (2**64 - 1, 2**63, 0, 1 << 20, (1 << 20) + 4096): write(fd, count)
    writev(fd, pieces(10, 20), 2); writev(fd, pieces(*[1] * 1025), 1025); writev(fd, None, 1); writev(fd, pieces(1), -1)
    writev(fd, pieces(1, 2**63), 2); writev(fd, pieces(1 << 19, (1 << 20) + 4096, 5), 3)
print(os.lseek(file, 0, os.SEEK_CUR), os.fstat(file).st_size)
os.close(file)";
    group.assert_unnoticed(&scene, script, &[]);
}

/// Ranks that write all they have at once, each with one call: what one of them may use is not what all may.
#[test]
fn a_memory_group_whose_processes_write_at_once() {
    for growth in ["os.pwrite(file, data, 0)", "os.writev(file, [view[:99], view[99:]])"] {
        let scene = Scene::new(Engine::IoUring);
        let group = MemoryGroup::new("at-once", 400 << 20);
        let script = format!(
            "
import os
data = bytes(range(256)) * 256 * 1024
view = memoryview(data)
with open('ckpt/first', 'wb') as file: file.write(data[:1 << 20])
gate, opened = os.pipe()
ranks = []
for number in range(8):
    rank = os.fork()
    if rank == 0:
        os.close(opened)
        file = os.open(f'ckpt/state-{{number}}', os.O_WRONLY | os.O_CREAT, 0o640)
        os.read(gate, 1)
        assert {growth} == len(data)
        os.close(file)
        os._exit(0)
    ranks.append(rank)
os.close(opened)
assert all(os.waitpid(rank, 0)[1] == 0 for rank in ranks)"
        );
        group.assert_unnoticed(&scene, &script, &[]);
    }
}

/// A job that takes more memory than it may is killed, with whatever of it the kernel chooses, and has lost nothing
/// that it wrote.
#[test]
fn what_is_killed_for_want_of_memory_has_lost_nothing() {
    let scene = Scene::new(Engine::IoUring);
    let group = MemoryGroup::new("killed", 160 << 20);
    let script = "
import sys
block = bytes(range(256)) * 4096
for number in range(8):
    with open(f'ckpt/state-{number}', 'wb') as file:
        file.write(block * 4 + b'%d' % number)
hog = [bytearray(b'x' * (1 << 20)) for _ in range(int(sys.argv[1]))]";
    scene.native(&["python3", "-c", script, "0"]).expect_success();
    let mut command = scene.sheaf_command();
    command.args(["run", "--", "python3", "-c", script, "10000"]);
    let killed = process::run(&mut group.command(&command));
    assert_eq!(killed.status.code(), Some(128 + libc::SIGKILL), "{}", killed.describe());
    assert!(group.kills() > 0);
    scene.drain();
    scene.verify();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
}
