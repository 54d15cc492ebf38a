//! One test's world: a directory on a real disk as parallel file system, a stage of its own, the built artefacts.
//!
//! It must share nothing with another scene, and leave neither processes nor files behind, passed or failed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{self, Finished};
use crate::{seccomp, snapshot};

/// How the flusher writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// As the kernel offers it.
    IoUring,
    /// With io_uring forbidden to everything that the scene starts.
    Pwrite,
}

/// See the module.
pub struct Scene {
    root: TempDir,
    tier: TempDir,
    engine: Engine,
    layout: &'static str,
    has_further_tier: bool,
}

impl Scene {
    /// An empty scene: `native/ckpt` and `captured/ckpt` on the disk, and an empty tier in memory.
    pub fn new(engine: Engine) -> Scene {
        Scene::staged_in(Path::new("/dev/shm"), engine)
    }

    /// As [`Scene::new`], with the tier in a directory of the caller's.
    pub fn staged_in(directory: &Path, engine: Engine) -> Scene {
        let disk = workspace().join("target/scenes");
        fs::create_dir_all(&disk).expect("the build directory is writable");
        let root = tempfile::Builder::new().prefix("scene-").tempdir_in(&disk).expect("a directory on the disk");
        let tier = tempfile::Builder::new().prefix("sheaf-test-").tempdir_in(directory).expect("room for a tier");
        let scene = Scene { root, tier, engine, layout: "node", has_further_tier: false };
        for side in [scene.native_directory(), scene.captured_directory()] {
            fs::create_dir_all(side.join("ckpt")).expect("the scene is ours");
        }
        scene
    }

    /// The same scene with another SHEAF_LAYOUT for everything in it.
    pub fn in_layout(self, layout: &'static str) -> Scene {
        let mut scene = self;
        scene.layout = layout;
        scene
    }

    /// As [`Scene::new`], with a further tier on the disk.
    pub fn with_further_tier(engine: Engine) -> Scene {
        let mut scene = Scene::new(engine);
        scene.has_further_tier = true;
        fs::create_dir(scene.further_tier()).expect("the scene is ours");
        scene
    }

    /// Where the further tier is, if the scene has one.
    pub fn further_tier(&self) -> PathBuf {
        self.root().join("further")
    }

    /// What waits in the further tier for the store.
    pub fn spooled(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        find_files(&self.further_tier(), Path::new(""), &mut files);
        files.retain(|path| path.extension() == Some(OsStr::new("tar")));
        files
    }

    /// The scene's own directory on the disk.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The tier that holds this scene's stage.
    pub fn tier(&self) -> &Path {
        self.tier.path()
    }

    /// Where programs run without Sheaf; they write to `ckpt` in it.
    pub fn native_directory(&self) -> PathBuf {
        self.root().join("native")
    }

    /// Where programs run with Sheaf; the checkpoint paths are everything in its `ckpt`.
    pub fn captured_directory(&self) -> PathBuf {
        self.root().join("captured")
    }

    /// The checkpoint directory of the captured side.
    pub fn checkpoints(&self) -> PathBuf {
        self.captured_directory().join("ckpt")
    }

    /// The store: the default place.
    pub fn store(&self) -> PathBuf {
        self.checkpoints().join(".sheaf")
    }

    /// A new FIFO called `gate` beside what is captured, where programs can wait for a line.
    pub fn gate(&self) -> PathBuf {
        let gate = self.captured_directory().join("gate");
        process::run(self.native_command("mkfifo").arg(&gate)).expect_success();
        gate
    }

    /// A command in the native side's directory.
    pub fn native_command(&self, program: impl AsRef<OsStr>) -> Command {
        self.command(program, &self.native_directory())
    }

    /// A command in the captured side's directory, with the variables that users set.
    pub fn preloaded_command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.sheaf_command_for(program);
        command.env("LD_PRELOAD", artefact("libsheaf.so"));
        command
    }

    /// `sheaf run --trap` of a program, with arguments to be added.
    pub fn trapped_command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.sheaf_command();
        command.args(["run", "--trap", "--"]).arg(program);
        command
    }

    /// The same command, followed by `strace` with these options; the command's variables are not for strace itself.
    pub fn traced(&self, options: &[&str], command: &Command) -> Command {
        let mut strace = self.command("strace", &self.captured_directory());
        strace.args(options);
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                strace.arg("-E").arg([name, value].join(OsStr::new("=")));
            }
        }
        strace.arg(command.get_program()).args(command.get_args());
        strace
    }

    /// Runs a program without Sheaf.
    pub fn native(&self, arguments: &[&str]) -> Finished {
        process::run(self.native_command(arguments[0]).args(&arguments[1..]))
    }

    /// Runs a program with Sheaf.
    pub fn preloaded(&self, arguments: &[&str]) -> Finished {
        process::run(self.preloaded_command(arguments[0]).args(&arguments[1..]))
    }

    /// `sheaf` with the scene's variables, and arguments to be added.
    pub fn sheaf_command(&self) -> Command {
        self.sheaf_command_for(artefact("sheaf"))
    }

    /// Runs `sheaf` with the scene's variables.
    pub fn sheaf(&self, arguments: &[&str]) -> Finished {
        process::run(self.sheaf_command().args(arguments))
    }

    /// `sheaf drain`: everything is published and the flusher is gone.
    pub fn drain(&self) {
        self.sheaf(&["drain"]).expect_success();
        self.await_flushers();
    }

    /// After `sheaf drain`: waits for flushers that were started for a program that has ended, and came too late to be
    /// told. They find nothing to do.
    pub fn await_flushers(&self) {
        for flusher in self.flushers() {
            let ended = process::poll_end(flusher, Duration::from_secs(20)).unwrap_or(true);
            assert!(ended, "a flusher stays after `sheaf drain`");
        }
    }

    /// Deletes the stage, as a reboot does: flushers are killed. No program may be using it.
    pub fn wipe_stage(&self) {
        while self.kill_flushers() > 0 {}
        for entry in fs::read_dir(self.tier.path()).expect("the tier is ours") {
            fs::remove_dir_all(entry.expect("the tier is ours").path()).expect("the tier is ours");
        }
    }

    /// The store's aggregates, sorted by name.
    pub fn store_aggregates(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.store()) else { return Vec::new() };
        let paths = entries.map(|entry| entry.expect("the store is readable").path());
        let mut aggregates: Vec<_> = paths.filter(|path| path.extension() == Some(OsStr::new("tar"))).collect();
        aggregates.sort();
        aggregates
    }

    /// The one aggregate of a job on one node.
    pub fn the_aggregate(&self) -> PathBuf {
        let aggregates = self.store_aggregates();
        assert_eq!(aggregates.len(), 1, "one node and one store make one aggregate: {aggregates:?}");
        aggregates[0].clone()
    }

    /// The real checkpoint directory holds directories and the store, nothing else.
    pub fn assert_no_captured_files_on_pfs(&self) {
        let mut strays = Vec::new();
        find_files(&self.checkpoints(), &self.store(), &mut strays);
        assert!(strays.is_empty(), "captured, and yet on the parallel file system: {strays:?}");
    }

    /// `sheaf verify` finds the store clean.
    pub fn verify(&self) {
        let store = self.store();
        process::run(self.sheaf_command().arg("verify").arg(store)).expect_success();
    }

    /// The snapshot of the native side's checkpoints.
    pub fn native_snapshot(&self) -> String {
        snapshot::take(&self.native_directory().join("ckpt")).expect("the native side is readable")
    }

    /// The snapshot of the captured side's checkpoints, as a preloaded program sees it.
    pub fn captured_snapshot(&self) -> String {
        let mut command = self.preloaded_command(helper("snapshot"));
        process::run(command.arg("ckpt")).expect_success().text()
    }

    /// What a preloaded program sees is what the native side has: at once, when all is published, and if `wipes`, when
    /// the stage has been lost after that.
    pub fn assert_lasts(&self, wipes: bool, what: &str) {
        let assert_same = |when: &str| assert_eq!(self.captured_snapshot(), self.native_snapshot(), "{what}, {when}");
        assert_same("at once");
        self.drain();
        assert_same("drained");
        self.drain();
        if wipes {
            self.wipe_stage();
            assert_same("without the stage");
            self.drain();
        }
    }

    /// Process ids of this scene's flushers.
    pub fn flushers(&self) -> Vec<u32> {
        self.processes().into_iter().filter(|process| is_command(*process, b"flusher")).collect()
    }

    /// How many processes answer the calls of trapped programs.
    pub fn supervisors(&self) -> usize {
        self.processes().into_iter().filter(|process| is_command(*process, b"trapped")).count()
    }

    /// Kills this scene's flushers like a crash; yields how many there were.
    pub fn kill_flushers(&self) -> usize {
        let flushers = self.flushers();
        flushers.iter().for_each(|process| kill_and_await(*process));
        flushers.len()
    }

    /// Kills everything of this scene at once, as a node's death does.
    pub fn kill_everything(&self) {
        self.kill_everything_in(self.tier.path());
    }

    /// The same of what has its stage in this directory, which is the scene's tier or lies in it.
    pub fn kill_everything_in(&self, tier: &Path) {
        // One that was being made while others were killed is seen the next time.
        for _ in 0..20 {
            let processes = processes_in(tier);
            if processes.is_empty() {
                break;
            }
            processes.into_iter().for_each(kill_and_await);
        }
    }

    /// Kills the flushers that have their stage in this directory, which is the scene's tier or lies in it; yields how
    /// many there were.
    pub fn kill_flushers_in(&self, tier: &Path) -> usize {
        let flushers = processes_in(tier).into_iter().filter(|process| is_command(*process, b"flusher"));
        flushers.inspect(|process| kill_and_await(*process)).count()
    }

    /// Stops the flushers that have their stage in this directory, which is the scene's tier or lies in it, until they
    /// are killed.
    pub fn stop_flushers_in(&self, tier: &Path) {
        signal_flushers_in(tier, libc::SIGSTOP);
    }

    /// The same flushers go on.
    pub fn continue_flushers_in(&self, tier: &Path) {
        signal_flushers_in(tier, libc::SIGCONT);
    }

    /// Processes that carry this scene's tier in their environment.
    fn processes(&self) -> Vec<u32> {
        processes_in(self.tier.path())
    }

    fn sheaf_command_for(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.command(program, &self.captured_directory());
        command.env("SHEAF_PATHS", self.checkpoints().join("**")).env("SHEAF_STAGE", self.tier.path());
        command.env("SHEAF_LAYOUT", self.layout);
        if self.has_further_tier {
            let further = self.further_tier();
            command.env("SHEAF_STAGE", [self.tier.path().as_os_str(), further.as_os_str()].join(OsStr::new(":")));
        }
        command
    }

    /// A command with none of the caller's Sheaf in its environment, and Debian's Python first.
    fn command(&self, program: impl AsRef<OsStr>, directory: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"SHEAF_")) {
            command.env_remove(name);
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let python = workspace().join("target/test-venv/bin");
        command
            .env_remove("LD_PRELOAD")
            .env("PATH", format!("{}:{path}:/usr/sbin", python.display()))
            .env("LC_ALL", "C.UTF-8")
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
            .current_dir(directory);
        if self.engine == Engine::Pwrite {
            seccomp::forbid_io_uring(&mut command);
        }
        command
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.kill_everything();
    }
}

/// The workspace's root.
pub fn workspace() -> PathBuf {
    let member = Path::new(env!("CARGO_MANIFEST_DIR"));
    member.parent().expect("tests/ is a member of the workspace").to_path_buf()
}

/// A built `libsheaf.so` or `sheaf`: in `SHEAF_TEST_BIN`, else in the release directory beside this test's profile.
pub fn artefact(name: &str) -> PathBuf {
    let directory = match std::env::var_os("SHEAF_TEST_BIN") {
        Some(directory) => PathBuf::from(directory),
        None => profile_directory().parent().expect("profiles lie in the target directory").join("release"),
    };
    let path = directory.join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --release` first", path.display());
    path
}

/// One of this crate's own programs.
pub fn helper(name: &str) -> PathBuf {
    profile_directory().join(name)
}

/// The directory of this test's build profile: tests lie in its `deps`.
fn profile_directory() -> PathBuf {
    let program = std::env::current_exe().expect("a running program has a path");
    let deps = program.parent().expect("a program lies in a directory");
    deps.parent().expect("tests lie in deps").to_path_buf()
}

fn find_files(directory: &Path, except: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("the scene is ours") {
        let entry = entry.expect("the scene is ours");
        let path = entry.path();
        match entry.file_type().expect("the scene is ours") {
            _ if path == except => {}
            kind if kind.is_dir() => find_files(&path, except, found),
            _ => found.push(path),
        }
    }
}

fn signal_flushers_in(tier: &Path, signal: libc::c_int) {
    for flusher in processes_in(tier).into_iter().filter(|process| is_command(*process, b"flusher")) {
        // SAFETY: kill takes two integers; the process carries the mark of its scene in its environment.
        unsafe { libc::kill(flusher as libc::pid_t, signal) };
    }
}

/// Processes that carry this tier in their environment, or a directory in it.
fn processes_in(tier: &Path) -> Vec<u32> {
    let mark = [b"SHEAF_STAGE=", tier.as_os_str().as_bytes()].concat();
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|process| holds_path(*process, &mark)).collect()
}

fn holds_path(process: u32, path: &[u8]) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{process}/environ")) else { return false };
    let is_it = |rest: &[u8]| rest.first().is_none_or(|byte| b"/:".contains(byte));
    environment.split(|byte| *byte == 0).any(|entry| entry.strip_prefix(path).is_some_and(is_it))
}

/// Whether a process is `sheaf` with this subcommand.
fn is_command(process: u32, name: &[u8]) -> bool {
    let Ok(arguments) = fs::read(format!("/proc/{process}/cmdline")) else { return false };
    arguments.split(|byte| *byte == 0).nth(1) == Some(name)
}

fn kill_and_await(process: u32) {
    // SAFETY: kill takes two integers; the process carries the mark of this scene in its environment.
    unsafe { libc::kill(process as libc::pid_t, libc::SIGKILL) };
    // ESRCH means that it is gone already, which is what is wanted.
    let _ = process::poll_end(process, Duration::from_secs(10));
}
