//! A stage that somebody else may have made, before the program starts or while it runs: nothing in it is believed.
//!
//! In the first tests, open to others stands for another user's; in the others, who need root, real ones try.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sheaf_tests::{Engine, Scene, process};

/// A scene whose stage holds a file that no program has written, and word that a flusher lives and has caught up; and
/// the directory of all stages, open to others.
fn planted() -> (Scene, PathBuf) {
    let scene = Scene::new(Engine::IoUring);
    scene.preloaded(&["bash", "-c", "echo state >ckpt/state"]).expect_success();
    scene.drain();
    let entries = fs::read_dir(scene.tier()).expect("the tier is ours");
    let stages = entries.map(|entry| entry.expect("the tier is ours").path()).next().expect("there is a stage");
    let stage = fs::read_dir(&stages).expect("ours").map(|entry| entry.expect("ours").path()).next().expect("a stage");
    let inside = scene.checkpoints();
    let mirror = stage.join("tree").join(inside.strip_prefix("/").expect("scenes have absolute paths"));
    fs::write(mirror.join("planted"), "planted\n").expect("the mirror is there");
    let words = [1, 1].map(u32::to_ne_bytes).concat();
    fs::File::options().write(true).open(stage.join("told")).expect("ours").write_all(&words).expect("ours");
    fs::set_permissions(&stages, fs::Permissions::from_mode(0o777)).expect("ours");
    (scene, stages)
}

const LOOK: &str = "
import os
print(os.path.exists('ckpt/planted'), os.listdir('ckpt').count('planted'), os.path.exists('ckpt/planted/..'))
with open('ckpt/fresh', 'w') as fresh: fresh.write('fresh')
os.mkdir('ckpt/deep')
print(open('ckpt/fresh').read(), sorted(os.listdir('ckpt/deep')))
";

/// What the store holds cannot be learned while a stranger has the stage's place; new files need nobody.
const LOOK_IN_VAIN: &str = "
import errno, os
for call in [lambda: os.stat('ckpt/planted'), lambda: os.listdir('ckpt'), lambda: os.mkdir('ckpt/deep')]:
    try:
        print(call())
    except OSError as error:
        print(errno.errorcode[error.errno])
with open('ckpt/fresh', 'w') as fresh: fresh.write('fresh')
print(open('ckpt/fresh').read())
";

fn assert_passes_by(scene: &Scene, script: &str, expected: &str) {
    let seen = process::run(scene.preloaded_command("python3").args(["-c", script])).expect_success();
    assert_eq!(seen.text(), expected, "{}", seen.describe());
    let fresh = fs::read_to_string(scene.checkpoints().join("fresh")).expect("it is where it would be without Sheaf");
    assert_eq!(fresh, "fresh");
}

#[test]
fn a_stage_that_was_there_before() {
    let (scene, _stages) = planted();
    assert_passes_by(&scene, LOOK, "False 0 False\nfresh []\n");
}

#[test]
fn a_stage_that_appears_while_the_program_runs() {
    let (scene, stages) = planted();
    let aside = scene.tier().join("aside");
    fs::rename(&stages, &aside).expect("ours");
    let appear = format!("import os; os.stat('ckpt'); os.rename({aside:?}, {stages:?})\n");
    assert_passes_by(&scene, &format!("{appear}{LOOK_IN_VAIN}"), "EIO\nEIO\nEIO\nfresh\n");
}

#[test]
fn the_next_tier_serves() {
    let (scene, stages) = planted();
    let second = tempfile::Builder::new().prefix("sheaf-test-").tempdir_in("/dev/shm").expect("room in /dev/shm");
    let tiers = format!("{}:{}", scene.tier().display(), second.path().display());
    let mut command = scene.preloaded_command("bash");
    command.env("SHEAF_STAGE", &tiers).args(["-c", "echo second >ckpt/second; cat ckpt/state ckpt/second"]);
    assert_eq!(process::run(&mut command).expect_success().text(), "state\nsecond\n");
    let mut drain = scene.sheaf_command();
    process::run(drain.env("SHEAF_STAGE", &tiers).arg("drain")).expect_success();
    scene.assert_no_captured_files_on_pfs();
    assert!(stages.exists());
}

// From here on the strangers are real: these tests need root.

/// A user whom no file says anything of.
pub const STRANGER: u32 = 54_321;

/// A command that another user runs.
fn as_stranger(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).uid(STRANGER).gid(STRANGER).env_remove("LD_PRELOAD").current_dir("/");
    command
}

/// A tier as `/dev/shm` is: everybody's, with the sticky bit.
fn public_tier() -> Scene {
    let scene = Scene::new(Engine::IoUring);
    fs::set_permissions(scene.tier(), fs::Permissions::from_mode(0o1777)).expect("ours");
    scene
}

const WRITE: [&str; 3] = ["bash", "-c", "mkdir -p ckpt/d; echo secret >ckpt/d/state; cat ckpt/d/state"];

/// The program has what it wrote, on the parallel file system, and nobody flushes.
fn assert_passed_through(scene: &Scene, what: &str) {
    let seen = scene.preloaded(&WRITE).expect_success();
    assert_eq!(seen.text(), "secret\n", "{what}: {}", seen.describe());
    let state = fs::read_to_string(scene.checkpoints().join("d/state"));
    assert_eq!(state.expect("it is where it would be without Sheaf"), "secret\n", "{what}");
    assert!(scene.flushers().is_empty(), "{what}");
    fs::remove_dir_all(scene.checkpoints().join("d")).expect("ours");
}

#[test]
fn names_that_a_stranger_has_made_first() {
    let scene = public_tier();
    let name = scene.tier().join("sheaf-0");
    let place = name.to_str().expect("plain");
    let own = tempfile::Builder::new().prefix("sheaf-test-").tempdir_in("/dev/shm").expect("room in /dev/shm");
    let private = own.path().to_str().expect("plain");
    for (what, make) in [
        ("a private directory", format!("mkdir -m 700 {place}")),
        ("an open directory", format!("mkdir -m 777 {place}")),
        ("a link to a private directory of ours", format!("ln -s {private} {place}")),
        ("a link to nowhere", format!("ln -s {place}-none {place}")),
        ("a file", format!("echo x >{place}; chmod 666 {place}")),
        ("a pipe", format!("mkfifo -m 666 {place}")),
    ] {
        process::run(&mut as_stranger("sh", &["-c", &make])).expect_success();
        assert_passed_through(&scene, what);
        assert!(!scene.sheaf(&["drain"]).stdout.contains(&b'{'), "{what}");
        process::run(Command::new("rm").arg("-rf").arg(&name)).expect_success();
        assert_eq!(fs::read_dir(own.path()).expect("ours").count(), 0, "{what}: something was put into it");
    }
    // Without the stranger's name, the same tier serves.
    scene.preloaded(&WRITE).expect_success();
    scene.drain();
    scene.assert_no_captured_files_on_pfs();
}

#[test]
fn tiers_in_which_a_stranger_can_exchange_the_stage() {
    let scene = Scene::new(Engine::IoUring);
    fs::set_permissions(scene.tier(), fs::Permissions::from_mode(0o777)).expect("ours");
    assert_passed_through(&scene, "no sticky bit");
    fs::set_permissions(scene.tier(), fs::Permissions::from_mode(0o1777)).expect("ours");
    chown(scene.tier(), Some(STRANGER), None).expect("we are root");
    assert_passed_through(&scene, "a stranger's tier");
    // Below it as well, and behind a stranger's link.
    let below = scene.tier().join("below");
    fs::create_dir(&below).expect("ours");
    let link = below.join("link");
    symlink("/dev/shm", &link).expect("ours");
    lchown(&link, Some(STRANGER), None).expect("we are root");
    for tier in [&below, &link] {
        let mut command = scene.preloaded_command(WRITE[0]);
        let seen = process::run(command.env("SHEAF_STAGE", tier).args(&WRITE[1..])).expect_success();
        assert_eq!(seen.text(), "secret\n", "{}", seen.describe());
        assert!(scene.checkpoints().join("d/state").exists(), "captured in {}", tier.display());
        fs::remove_dir_all(scene.checkpoints().join("d")).expect("ours");
        let mut doctor = scene.sheaf_command();
        let refused = process::run(doctor.env("SHEAF_STAGE", tier).args(["run", "--", "true"]));
        assert!(!refused.status.success(), "{}", refused.describe());
    }
    chown(scene.tier(), Some(0), None).expect("we are root");
    lchown(&link, Some(0), None).expect("we are root");
    scene.preloaded(&WRITE).expect_success();
    scene.drain();
    scene.assert_no_captured_files_on_pfs();
}

/// Two users, one tier: neither sees, reads, nor changes what the other has staged; each reads his own back.
#[test]
fn two_users_of_one_tier() {
    let scene = public_tier();
    scene.preloaded(&WRITE).expect_success();
    let stages = scene.tier().join("sheaf-0");
    let script = format!(
        "ls {0} || ls {0}/*/ || cat {0}/*/lock || echo x >{0}/*/tree/x || flock -n {0}/*/lock true || mv {0} {0}-mine || rmdir {0}",
        stages.display()
    );
    let tried = process::run(&mut as_stranger("sh", &["-c", &script]));
    assert!(!tried.status.success() && tried.stdout.is_empty(), "{}", tried.describe());
    for entry in walk(&stages) {
        let metadata = fs::symlink_metadata(&entry).expect("ours");
        let inside = entry.strip_prefix(&stages).is_ok_and(|rest| rest.components().count() > 1);
        assert!(inside || metadata.mode() & 0o077 == 0, "{} is open to others", entry.display());
    }
    scene.drain();
    scene.assert_no_captured_files_on_pfs();
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let (mut found, mut waiting) = (vec![directory.to_owned()], vec![directory.to_owned()]);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).expect("ours").flatten() {
            if entry.file_type().expect("ours").is_dir() {
                waiting.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found
}

/// Makes, exchanges and removes the names that the stage would have, as fast as it can, until its input ends.
const RACE: &str = "
import os, select, shutil, sys
tier, name = sys.argv[1], sys.argv[1] + '/sheaf-0'
mine = tier + '/mine'
os.makedirs(mine, 0o777, exist_ok=True)
print('ready', flush=True)
step = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    step += 1
    for action in (
        lambda: os.mkdir(name, 0o777),
        lambda: os.rename(name, tier + '/moved'),
        lambda: os.symlink(mine, name),
        lambda: os.unlink(name),
        lambda: os.rename(mine, name),
        lambda: os.rename(name, mine),
        lambda: os.rmdir(tier + '/moved'),
    ):
        try: action()
        except OSError: pass
seen = [path for base, _, files in os.walk(tier) for path in files]
print(len(seen), flush=True)
";

#[test]
fn a_stranger_who_exchanges_names_all_the_time() {
    let scene = public_tier();
    let tier = scene.tier().to_str().expect("plain").to_owned();
    let mut stranger = as_stranger("python3", &["-c", RACE, &tier]);
    let mut stranger = stranger.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 is installed");
    let mut said = BufReader::new(stranger.stdout.take().expect("piped")).lines();
    assert_eq!(said.next().expect("it says so").expect("text"), "ready");
    for round in 0..12 {
        let seen = scene.preloaded(&WRITE).expect_success();
        assert_eq!(seen.text(), "secret\n", "round {round}: {}", seen.describe());
        let again = scene.preloaded(&["cat", "ckpt/d/state"]).expect_success();
        assert_eq!(again.text(), "secret\n", "round {round}: {}", again.describe());
        // Whoever won this round, the next one is open again.
        scene.kill_flushers();
        scene.sheaf(&["drain"]);
        let _ = fs::remove_dir_all(scene.tier().join("sheaf-0"));
    }
    drop(stranger.stdin.take());
    let found = said.next().expect("it says so").expect("text");
    assert_eq!(found, "0", "files that the stranger can see");
    assert!(stranger.wait().expect("our child").success());
}

/// Listens in the stage as another user: bound by root, who has to be on the stranger's side for that.
const IMPOSTOR: &str = "
import os, socket, struct, sys
os.chdir(sys.argv[1])
if os.path.exists('socket'): os.unlink('socket')
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.bind('socket')
os.mkfifo('pulse') if not os.path.exists('pulse') else None
pulse = os.open('pulse', os.O_RDONLY | os.O_NONBLOCK)
os.seteuid(54321)
server.listen(64)
print('ready', flush=True)
while True:
    peer, _ = server.accept()
    try:
        while peer.recv(20000): peer.send(struct.pack('<IHHiIQ', int.from_bytes(b'SHF1', 'little'), 1, 0, 0, 0, 0))
    except OSError: pass
";

#[test]
fn answers_of_a_stranger_are_not_believed() {
    let scene = Scene::new(Engine::IoUring);
    scene.preloaded(&WRITE).expect_success();
    scene.drain();
    let stage = fs::read_dir(scene.tier().join("sheaf-0")).expect("ours").flatten().next().expect("a stage").path();
    let mut impostor = Command::new("python3");
    impostor.args(["-c", IMPOSTOR]).arg(&stage).stdout(Stdio::piped());
    let mut impostor = impostor.spawn().expect("python3 is installed");
    let mut said = BufReader::new(impostor.stdout.take().expect("piped")).lines();
    assert_eq!(said.next().expect("it says so").expect("text"), "ready");
    let seen = scene.preloaded(&["bash", "-c", "echo fresh >ckpt/d/fresh; cat ckpt/d/fresh"]).expect_success();
    assert_eq!(seen.text(), "fresh\n", "{}", seen.describe());
    let status = scene.sheaf(&["wait"]);
    impostor.kill().expect("our child");
    impostor.wait().expect("our child");
    assert!(!status.status.success(), "{}", status.describe());
    // Wherever it was put, it is found again, and published, when the stranger has gone.
    scene.preloaded(&["true"]).expect_success();
    scene.drain();
    let seen = scene.preloaded(&["cat", "ckpt/d/fresh", "ckpt/d/state"]).expect_success();
    assert_eq!(seen.text(), "fresh\nsecret\n", "{}", seen.describe());
}

/// Connects as another user, who has got at the socket by the file system rights of root.
const FLOOD: &str = "
import ctypes, os, socket, sys
os.seteuid(54321)
ctypes.CDLL(None).setfsuid(0)
refused = 0
for _ in range(300):
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.connect(sys.argv[1] + '/socket')
    try:
        peer.send(bytes.fromhex('5348463101000500000000000000000000000000')[:16])
        refused += peer.recv(20000) == b''
    except OSError: refused += 1
print(refused)
";

/// What no client sends, from ourselves.
const NONSENSE: &str = "
import os, random, socket, sys
seed = int.from_bytes(os.urandom(4), 'little'); print('seed', seed); choice = random.Random(seed)
for _ in range(200):
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.connect(sys.argv[1] + '/socket')
    packet = bytearray(choice.randbytes(choice.randrange(1, 64)))
    if choice.random() < 0.7: packet[:6] = b'SHF1\\1\\0'
    if choice.random() < 0.3:
        path = choice.choice([b'/../../etc', b'/', b'etc', b'/a//b', b'/' + b'x' * 5000, b'/a\\0b', b'/etc/passwd'])
        packet = bytearray(b'SHF1\\1\\0' + bytes([choice.choice([2, 3]), 0]) + bytes(4) + len(path).to_bytes(4, 'little') + path)
    try: peer.send(packet)
    except OSError: pass
    peer.close()
";

#[test]
fn connections_of_strangers_and_nonsense() {
    let scene = Scene::new(Engine::IoUring);
    // The flusher lives as long as this program does.
    let mut program = scene.preloaded_command("bash");
    let script = "echo first >ckpt/first; echo ready; read; echo second >ckpt/second; cat ckpt/first ckpt/second";
    let mut program = program.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("bash");
    let mut said = BufReader::new(program.stdout.take().expect("piped")).lines();
    assert_eq!(said.next().expect("it says so").expect("text"), "ready");
    let flushers = scene.flushers();
    let stage = fs::read_dir(scene.tier().join("sheaf-0")).expect("ours").flatten().next().expect("a stage").path();
    let mut flood = Command::new("python3");
    let refused = process::run(flood.args(["-c", FLOOD]).arg(&stage)).expect_success();
    assert_eq!(refused.text(), "300\n", "{}", refused.describe());
    let mut nonsense = Command::new("python3");
    process::run(nonsense.args(["-c", NONSENSE]).arg(&stage)).expect_success();
    assert_eq!(scene.flushers(), flushers, "the flusher has died of it");
    drop(program.stdin.take());
    let rest: Vec<String> = said.map(|line| line.expect("text")).collect();
    assert_eq!(rest, ["first", "second"]);
    program.wait().expect("our child");
    scene.drain();
    scene.assert_no_captured_files_on_pfs();
}

/// A stranger has filled the tier: the program goes on without it, or in what is left of it.
#[test]
fn a_tier_that_a_stranger_has_filled() {
    let scene = Scene::new(Engine::IoUring);
    let place = scene.tier().join("small");
    fs::create_dir(&place).expect("ours");
    process::run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m,mode=1777", "none"]).arg(&place))
        .expect_success();
    let fill = format!("head -c 4M /dev/zero >{}/full", place.display());
    assert!(!process::run(&mut as_stranger("sh", &["-c", &fill])).status.success(), "there is room left");
    let script = "head -c 300000 /dev/zero | tr '\\0' x >ckpt/state && cksum <ckpt/state";
    let mut command = scene.preloaded_command("bash");
    let seen = process::run(command.env("SHEAF_STAGE", &place).args(["-c", script]));
    process::run(Command::new("umount").arg("--lazy").arg(&place)).expect_success();
    let native = scene.native(&["bash", "-c", script]).expect_success();
    assert_eq!(seen.expect_success().text(), native.text());
}
