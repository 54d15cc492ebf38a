//! A stage on a disk that does not yield what it was given: what can be read is published, nothing wrong is, and the
//! flusher lives.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sheaf_tests::disk::Disk;
use sheaf_tests::unreliable::Unreliable;
use sheaf_tests::{Engine, Scene, process};

/// What is mapped and what is read in one go.
const NAMES: [&str; 3] = ["large", "other", "small"];
/// They stay open, so that nothing is published before the flusher is lost.
const WRITE: &str = "exec 3>ckpt/large 4>ckpt/other 5>ckpt/small; seq 300000 >&3; seq 300000 >&4; seq 100 >&5; \
                     echo ready >said; sleep 1000";

/// Writes files that are complete when everything has been killed, and are not published.
fn staged(scene: &Scene) {
    let whole = "seq 300000 >ckpt/large; seq 300000 >ckpt/other; seq 100 >ckpt/small";
    scene.native(&["bash", "-c", whole]).expect_success();
    let mut program = process::start(scene.preloaded_command("bash").args(["-c", WRITE]));
    let deadline = Instant::now() + process::LIMIT;
    while !scene.captured_directory().join("said").exists() {
        assert!(!program.wait_for(Duration::from_millis(2)) && Instant::now() < deadline, "nothing was written");
    }
    scene.kill_everything();
}

/// Drops what the kernel holds in memory of a file.
fn forget(path: &Path) {
    let input = format!("if={}", path.display());
    process::run(Command::new("dd").arg(input).args(["iflag=nocache", "count=0", "status=none"])).expect_success();
}

/// Keeps a file's pages in memory, whatever the kernel would like to do with them.
struct Kept {
    address: *mut libc::c_void,
    length: usize,
}

impl Kept {
    fn new(path: &Path) -> Kept {
        let file = fs::File::open(path).expect("the file is there");
        let length = file.metadata().expect("it is open").len() as usize;
        // SAFETY: a new mapping at an address of the kernel's choice, which nobody reads or writes through.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert!(address != libc::MAP_FAILED, "{}: cannot be mapped", path.display());
        // SAFETY: the range is that of the mapping.
        assert_eq!(unsafe { libc::mlock(address, length) }, 0, "{}: its pages cannot be kept", path.display());
        Kept { address, length }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody has a reference into it.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

/// The staged file of this name.
fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).expect("the scene is ours").flatten();
    let mut found = entries.filter_map(|entry| match entry.file_type().expect("the scene is ours") {
        kind if kind.is_dir() => find(&entry.path(), name),
        kind => (kind.is_file() && entry.file_name() == name).then(|| entry.path()),
    });
    found.next()
}

#[test]
fn a_staged_file_that_cannot_be_read() {
    for (engine, lost) in [(Engine::IoUring, "large"), (Engine::Pwrite, "large"), (Engine::IoUring, "small")] {
        let scratch = Scene::new(engine);
        let [device, place] = ["device", "stage"].map(|name| scratch.root().join(name));
        for directory in [&device, &place] {
            fs::create_dir(directory).expect("the scene is ours");
        }
        let unreliable = Unreliable::new(scratch.root(), &device);
        // Calls meet rules in a directory of this name.
        fs::create_dir(device.join(".sheaf")).expect("it is mounted");
        let image = device.join(".sheaf/image");
        let _disk = Disk::new("ext4", &image, &place);
        let scene = Scene::staged_in(&place, engine);
        staged(&scene);

        process::run(Command::new("sync").arg("-f").arg(&place)).expect_success();
        let staged = find(&place, lost).expect("it was staged");
        let others = NAMES.iter().filter(|name| **name != lost);
        let kept: Vec<Kept> = others.map(|name| Kept::new(&find(&place, name).expect("it was staged"))).collect();
        forget(&staged);
        forget(&image);
        unreliable.rule(&format!("read * {}", libc::EIO));
        let drained = scene.sheaf(&["drain"]);
        assert_eq!(drained.status.code(), Some(2), "{engine:?}, {lost}: {}", drained.describe());
        assert!(fs::read(&staged).is_err(), "it can be read");
        for name in NAMES {
            let published = process::run(
                scene.sheaf_command().args(["cat"]).arg(scene.store()).arg(scene.checkpoints().join(name)),
            );
            let right = fs::read(scene.native_directory().join("ckpt").join(name)).expect("the scene is ours");
            let is_there = published.status.success() && published.text().as_bytes() == right;
            assert_eq!(is_there, name != lost, "{engine:?}, {lost}: {name}: {:.500}", published.describe());
        }

        unreliable.rule("");
        drop(kept);
        scene.drain();
        scene.verify();
        scene.assert_no_captured_files_on_pfs();
        scene.kill_everything();
        scene.wipe_stage();
        assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{engine:?}, {lost}");
        scene.kill_everything();
    }
}
