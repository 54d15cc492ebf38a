//! Performs a plan on both sides and compares. The captured side goes first: it says what cannot be compared.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Phase, Plan};
use crate::process::poll_end;
use crate::scene::{artefact, helper, workspace};
use crate::{Engine, Scene};

/// How long a process may do nothing before the plan counts as hanging.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where each side's root lies below its directory: so deep that no `..` of a plan leads out.
pub const ROOT: &str = "one/two/three/four/root";

/// What a comparison has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Operations, on both sides together.
    pub operations: usize,
    /// Of these, how many the captured side refused to compare.
    pub skipped: usize,
}

/// Where the sides differ.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The phase.
    pub phase: usize,
    /// What the two sides say, and about which line.
    pub what: String,
}

impl Difference {
    /// What failures of the same reason have in common: the operation, and how each side's answer starts.
    pub fn kind(&self) -> Vec<&str> {
        let words = self.what.lines().map(|line| line.split_whitespace().skip(1));
        words.enumerate().flat_map(|(number, words)| words.take(if number == 0 { 1 } else { 2 })).collect()
    }
}

/// How the captured side is run.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// How the flusher writes.
    pub engine: Engine,
    /// The stage's limit in bytes: published files are evicted beyond it.
    pub limit_bytes: Option<u64>,
}

impl Setting {
    /// The setting that goes with a seed.
    pub fn of(seed: u64) -> Setting {
        let engine = if seed.is_multiple_of(2) { Engine::IoUring } else { Engine::Pwrite };
        Setting { engine, limit_bytes: (!(seed / 2).is_multiple_of(3)).then_some(32 << 10) }
    }
}

/// Performs a plan on both sides; what failed is copied to `keep` before it goes.
///
/// # Errors
/// The first difference.
pub fn compare(plan: &Plan, setting: Setting, keep: Option<&Path>) -> Result<Counts, Difference> {
    let sides = Sides::new(plan, setting);
    let mut counts = Counts::default();
    for (number, phase) in plan.phases().iter().enumerate() {
        if let Err(what) = sides.phase(number, phase, &mut counts) {
            if let Some(keep) = keep {
                sides.keep(keep);
            }
            return Err(Difference { phase: number, what });
        }
    }
    Ok(counts)
}

struct Sides {
    scene: Scene,
    /// The native side: on the file system that the stage is on, so that only Sheaf can make a difference.
    native: TempDir,
    setting: Setting,
}

impl Sides {
    fn new(plan: &Plan, setting: Setting) -> Sides {
        let scene = Scene::new(setting.engine);
        let native = tempfile::Builder::new().prefix("sheaf-test-").tempdir_in("/dev/shm").expect("room in /dev/shm");
        fs::write(scene.root().join("plan"), plan.to_string()).expect("the scene is ours");
        let sides = Sides { scene, native, setting };
        furnish(&sides.native_root());
        furnish(&sides.captured_root());
        sides
    }

    fn native_root(&self) -> PathBuf {
        self.native.path().join(ROOT)
    }

    fn captured_root(&self) -> PathBuf {
        self.scene.captured_directory().join(ROOT)
    }

    fn phase(&self, number: usize, phase: &Phase, counts: &mut Counts) -> Result<(), String> {
        let captured = self.answers("captured", number);
        let native = self.answers("native", number);
        self.perform(self.with_variables(self.scene.preloaded_command(helper("differential"))), number, None)?;
        let mut command = self.scene.native_command(helper("differential"));
        command.current_dir(self.native_root());
        self.perform(command, number, Some(&captured))?;
        compare_answers(phase, &read(&native), &read(&captured), counts)?;
        match phase.after {
            None | Some("keep") => Ok(()),
            Some("drain") => self.drain(),
            Some("wipe") => {
                self.drain()?;
                self.scene.wipe_stage();
                Ok(())
            }
            Some(other) => panic!("'{other}' is nothing that can happen between phases"),
        }
    }

    fn answers(&self, side: &str, phase: usize) -> PathBuf {
        self.scene.root().join(format!("{side}-answers.{phase}"))
    }

    fn with_variables(&self, mut command: Command) -> Command {
        let checkpoints = self.captured_root().join("ckpt");
        command.current_dir(self.captured_root());
        command.env("SHEAF_PATHS", checkpoints.join("**")).env("SHEAF_EXCLUDE", checkpoints.join("**/*.raw"));
        command.env("SHEAF_LOG", format!("debug,{}", self.scene.root().join("log").display()));
        if let Some(limit) = self.setting.limit_bytes {
            command.env("SHEAF_STAGE_LIMIT", limit.to_string());
        }
        command
    }

    /// Has one side perform a phase; the captured one when there are no answers yet to follow.
    fn perform(&self, mut command: Command, phase: usize, captured: Option<&Path>) -> Result<(), String> {
        let side = if captured.is_some() { "native" } else { "captured" };
        let said = self.scene.root().join(format!("{side}-said.{phase}"));
        command
            .arg(self.scene.root().join("plan"))
            .arg(phase.to_string())
            .arg(self.answers(side, phase))
            .args(captured);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        command.stderr(fs::File::create(&said).expect("the scene is ours"));
        let mut acting = Acting::start(&mut command);
        while let Some(request) = acting.next_request()? {
            match &*request {
                "wait" => self.sheaf("wait")?,
                _ => drop(self.scene.kill_flushers()),
            }
            acting.answer();
        }
        let status = acting.end()?;
        if status { Ok(()) } else { Err(format!("the {side} side failed in phase {phase}: {}", read(&said))) }
    }

    fn drain(&self) -> Result<(), String> {
        self.sheaf("drain")?;
        self.scene.await_flushers();
        Ok(())
    }

    fn sheaf(&self, what: &str) -> Result<(), String> {
        let mut command = self.with_variables(self.scene.sheaf_command());
        let finished = crate::process::run(command.arg(what));
        if finished.status.success() { Ok(()) } else { Err(finished.describe()) }
    }

    /// Copies everything for those who look for the reason.
    fn keep(&self, directory: &Path) {
        self.scene.kill_flushers();
        fs::create_dir_all(directory).expect("the build directory is writable");
        let from = [self.scene.root(), self.scene.tier(), self.native.path()];
        crate::process::run(Command::new("cp").arg("-a").args(from).arg(directory)).expect_success();
    }
}

/// What both sides find: directories, files from before Sheaf, and links that lead in from outside.
fn furnish(root: &Path) {
    for directory in ["ckpt/d/e", "ckpt/f", "out"] {
        fs::create_dir_all(root.join(directory)).expect("the scene is ours");
    }
    for (name, size) in [("ckpt/a", 5000), ("ckpt/d/b", 100), ("ckpt/g.raw", 3000), ("out/a", 10_000)] {
        fs::write(root.join(name), vec![b'#'; size]).expect("the scene is ours");
    }
    for (target, name) in [("ckpt", "link"), ("../ckpt/d", "out/in")] {
        std::os::unix::fs::symlink(target, root.join(name)).expect("the scene is ours");
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// Every answer is the same, but for the words that the captured side replaces with `?`.
fn compare_answers(phase: &Phase, native: &str, captured: &str, counts: &mut Counts) -> Result<(), String> {
    let (native, captured): (Vec<_>, Vec<_>) = (native.lines().collect(), captured.lines().collect());
    for (index, line) in phase.lines.iter().enumerate() {
        let (one, other) = (native.get(index).unwrap_or(&"nothing"), captured.get(index).unwrap_or(&"nothing"));
        counts.operations += 2;
        counts.skipped += if other.starts_with("skipped") { 2 } else { 0 };
        if !is_same(one, other) {
            return Err(format!("{line}\n  native:   {one}\n  captured: {other}"));
        }
    }
    Ok(())
}

fn is_same(native: &str, captured: &str) -> bool {
    native == captured || {
        let (one, other): (Vec<_>, Vec<_>) = (native.split(' ').collect(), captured.split(' ').collect());
        one.len() == other.len() && one.iter().zip(&other).all(|(one, other)| one == other || *other == "?")
    }
}

/// The program at work. Its whole process group is gone when this is dropped.
struct Acting {
    child: Child,
    requests: Receiver<String>,
}

impl Acting {
    fn start(command: &mut Command) -> Acting {
        let mut child = command.spawn().expect("the program is built");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (sender, requests) = channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Acting { child, requests }
    }

    /// The next thing that the program wants done; `None` when all its processes have closed their output.
    fn next_request(&self) -> Result<Option<String>, String> {
        match self.requests.recv_timeout(PATIENCE) {
            Ok(request) => Ok(Some(request)),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Ok(None),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Err("it hangs".to_string()),
        }
    }

    fn answer(&mut self) {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        // A program that has died meanwhile is found out by its status.
        let _ = stdin.write_all(b".");
    }

    fn end(&mut self) -> Result<bool, String> {
        let deadline = Instant::now() + PATIENCE;
        if !poll_end(self.child.id(), deadline - Instant::now()).expect("a pidfd of our own child") {
            return Err("it does not end".to_string());
        }
        Ok(self.child.wait().expect("the child is ours").success())
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // SAFETY: kill takes two integers; the group is that of our own, not yet reaped child.
            unsafe { libc::kill(-(self.child.id() as libc::pid_t), libc::SIGKILL) };
            let _ = self.child.wait();
        }
    }
}

/// Where failures are kept: beside what was built.
pub fn failures() -> PathBuf {
    let _ = artefact("sheaf");
    workspace().join("target/differential")
}
