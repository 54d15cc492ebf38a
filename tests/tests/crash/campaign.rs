//! The campaign: programs of many kinds, killed with all that belongs to them at moments that a seed chooses.
//!
//! After each round, every file that was complete when the program died is there, byte for byte, in the stage and then in
//! the aggregates alone; what `sheaf wait` acknowledged survives the node; and nothing torn is offered as complete. A few
//! rounds run with the tests; `scripts/crash-campaign.sh` runs them all.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sheaf_tests::campaign::Plan;
use sheaf_tests::campaign::perform::Progress;
use sheaf_tests::disk::Disk;
use sheaf_tests::process::{self, Running};
use sheaf_tests::scene::{artefact, helper};
use sheaf_tests::{Engine, Scene};

/// Rounds without SHEAF_TEST_CAMPAIGN_ROUNDS: as many as fit into this time.
const SECONDS: u64 = 30;
/// What kills: calls that name a file, change one, or talk.
const CALLS: [&str; 22] = [
    "openat",
    "mkdir",
    "rename",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "unlink",
    "unlinkat",
    "readlink",
    "newfstatat",
    "ftruncate",
    "fallocate",
    "write",
    "pwrite64",
    "fdatasync",
    "fsync",
    "io_uring_enter",
    "close",
    "connect",
    "sendto",
    "fcntl",
];

/// Whom a round kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victims {
    Program,
    Flusher,
    Launcher,
    ProgramAndFlusher,
    ProgramAndLauncher,
    LauncherAndFlusher,
    /// All of them, and with a stage in memory the stage.
    Node,
}

const VICTIMS: [Victims; 7] = [
    Victims::Program,
    Victims::Flusher,
    Victims::Launcher,
    Victims::ProgramAndFlusher,
    Victims::ProgramAndLauncher,
    Victims::LauncherAndFlusher,
    Victims::Node,
];

impl Victims {
    fn has_program(self) -> bool {
        matches!(self, Victims::Program | Victims::ProgramAndFlusher | Victims::ProgramAndLauncher | Victims::Node)
    }

    fn has_flusher(self) -> bool {
        matches!(self, Victims::Flusher | Victims::ProgramAndFlusher | Victims::LauncherAndFlusher | Victims::Node)
    }

    fn has_launcher(self) -> bool {
        matches!(self, Victims::Launcher | Victims::ProgramAndLauncher | Victims::LauncherAndFlusher | Victims::Node)
    }
}

/// Where the tier lies.
struct Stages {
    _scratch: Scene,
    disks: Vec<(&'static str, PathBuf, Disk)>,
}

impl Stages {
    fn new() -> Stages {
        let scratch = Scene::new(Engine::Pwrite);
        let disk = |kind| {
            let place = scratch.root().join(kind);
            fs::create_dir(&place).expect("the scene is ours");
            (kind, place.clone(), Disk::new(kind, &scratch.root().join(format!("{kind}.image")), &place))
        };
        let disks = vec![disk("ext4"), disk("xfs")];
        Stages { _scratch: scratch, disks }
    }

    fn choose(&self, random: &mut StdRng) -> (&'static str, &Path) {
        match self.disks.get(random.random_range(0..self.disks.len() + 1)) {
            Some((kind, place, _)) => (kind, place),
            None => ("tmpfs", Path::new("/dev/shm")),
        }
    }
}

/// One life and death of a program.
struct Round {
    scene: Scene,
    seed: u64,
    plan: Plan,
    victims: Victims,
    has_memory_stage: bool,
    what: String,
}

/// For the table: whom, where, on what stage, with which engine.
type Row = (Victims, String, &'static str, &'static str);

impl Round {
    fn new(stages: &Stages, seed: u64, random: &mut StdRng) -> (Round, Row) {
        let engine = if random.random_bool(0.5) { Engine::IoUring } else { Engine::Pwrite };
        let (kind, place) = stages.choose(random);
        let victims = VICTIMS[random.random_range(0..VICTIMS.len())];
        let plan = Plan::new(seed);
        let what = format!("seed {seed}: {:?}, {victims:?}, {kind}, {engine:?}", plan.program);
        let scene = Scene::staged_in(place, engine);
        for (name, bytes) in &plan.older {
            fs::write(scene.checkpoints().join(name), bytes).expect("the scene is ours");
        }
        let engine = if engine == Engine::IoUring { "io_uring" } else { "pwrite" };
        let row = (victims, String::new(), kind, engine);
        (Round { scene, seed, plan, victims, has_memory_stage: kind == "tmpfs", what }, row)
    }

    fn journal(&self) -> PathBuf {
        self.scene.captured_directory().join("journal")
    }

    fn stepper(&self, mut command: Command, from: usize, to: usize) -> Command {
        command.arg("do").args([self.seed, from as u64, to as u64].map(|number| number.to_string()));
        command.arg("ckpt").arg(self.journal()).env("SHEAF", artefact("sheaf"));
        command
    }

    /// The program from this step on, preloaded or under `sheaf run`.
    fn program(&self, from: usize) -> Command {
        if !self.victims.has_launcher() {
            return self.stepper(self.scene.preloaded_command(helper("stepper")), from, self.plan.steps.len());
        }
        let mut run = self.scene.sheaf_command();
        run.args(["run", "--"]).arg(helper("stepper"));
        self.stepper(run, from, self.plan.steps.len())
    }

    /// How the directory looks through the library; panics when it must not look so.
    fn look(&self, (low, high): (usize, usize), when: &str) -> usize {
        let mut command = self.scene.preloaded_command(helper("stepper"));
        command.arg("judge").args([self.seed, low as u64, high as u64].map(|number| number.to_string())).arg("ckpt");
        let verdict = process::run(&mut command);
        assert!(verdict.status.success(), "{}: {low} to {high} steps, {when}: {}", self.what, verdict.describe());
        verdict.text().trim().parse().expect("a number of steps")
    }

    /// Steps that are done before anything is killed: none, or some, and then perhaps the stage is lost once.
    fn first_life(&self, random: &mut StdRng) -> usize {
        let steps = random.random_range(0..=self.plan.steps.len() / 2);
        if steps > 0 {
            let mut program = self.stepper(self.scene.preloaded_command(helper("stepper")), 0, steps);
            process::run(&mut program).expect_success();
            if random.random_bool(0.4) {
                self.scene.drain();
                self.scene.kill_everything();
                self.scene.wipe_stage();
            }
        }
        steps
    }

    /// Runs the program, and kills; yields where.
    fn second_life(&self, from: usize, random: &mut StdRng) -> String {
        let alone = matches!(self.victims, Victims::Program | Victims::Flusher);
        match random.random_range(0..3) {
            0 | 1 if alone => self.kill_at_call(from, random),
            _ => self.kill_at_moment(from, random),
        }
    }

    /// The victim dies at its nth call of a kind, before the call is made.
    fn kill_at_call(&self, from: usize, random: &mut StdRng) -> String {
        let log = self.scene.root().join("strace.log");
        let call = CALLS[random.random_range(0..CALLS.len())];
        // Loaders and libraries open and close a lot before a program begins.
        let most = if ["openat", "close", "newfstatat"].contains(&call) { 60 } else { 8 };
        let inject = format!("inject={call}:error=EINTR:signal=KILL:when={}", random.random_range(1..=most));
        // Whom the program starts is not traced: where no flusher can live at all, files go past Sheaf.
        let follow: &[&str] = if self.victims == Victims::Flusher { &["-f"] } else { &[] };
        let trace = format!("trace={call}");
        let options = [follow, &["-e", &trace, "-e", &inject, "-o", log.to_str().expect("ours")]].concat();
        if self.victims == Victims::Program {
            process::run(&mut self.scene.traced(&options, &self.program(from)));
        } else {
            let mut flusher = self.scene.sheaf_command();
            let flusher = process::start(&mut self.scene.traced(&options, flusher.arg("wait")));
            process::run(&mut self.program(from)).expect_success();
            self.scene.drain();
            flusher.finish();
        }
        killed_at(&log, call)
    }

    /// The victims die after a while, in any order.
    fn kill_at_moment(&self, from: usize, random: &mut StdRng) -> String {
        let mut program = process::start(&mut self.program(from));
        // A launcher that dies before it has started anything is of no interest.
        while self.victims.has_launcher() && steppers(program.id()).is_empty() && !program.wait_for(Duration::ZERO) {}
        let until = Instant::now() + Duration::from_millis(random.random_range(0..150));
        while Instant::now() < until && !program.wait_for(Duration::from_millis(1)) {}
        let flusher_first = random.random_bool(0.5);
        if self.victims.has_flusher() && flusher_first {
            self.scene.kill_flushers();
        }
        self.kill_program_and_launcher(&mut program);
        if self.victims.has_flusher() && !flusher_first {
            self.scene.kill_flushers();
        }
        if self.victims == Victims::Node {
            self.scene.kill_everything();
            if self.has_memory_stage {
                self.scene.wipe_stage();
            }
        }
        "a moment".to_string()
    }

    fn kill_program_and_launcher(&self, program: &mut Running) {
        let steppers = if self.victims.has_launcher() { steppers(program.id()) } else { vec![program.id()] };
        if self.victims.has_launcher() {
            kill(program.id());
        }
        if self.victims.has_program() {
            steppers.iter().for_each(|stepper| kill(*stepper));
        }
        // Whoever was not killed ends on its own.
        for process in steppers.into_iter().chain([program.id()]) {
            let ended = process::poll_end(process, process::LIMIT).unwrap_or(true);
            assert!(ended, "{}: process {process} does not end", self.what);
        }
    }

    /// All that must hold afterwards.
    fn judge(&self, random: &mut StdRng) {
        let progress = Progress::read(&self.journal());
        let done = progress.done;
        if !self.victims.has_program() && !self.victims.has_launcher() {
            assert_eq!(done, self.plan.steps.len(), "{}: the program did not come to its end", self.what);
        }
        // The call that was under way may have been made.
        let most = done + usize::from(progress.begun);
        let is_lost = self.victims == Victims::Node && self.has_memory_stage;
        let mut bounds = if is_lost { (progress.acknowledged, most) } else { (done, most) };
        // Half of the time nobody looks before it is drained.
        if random.random_bool(0.5) {
            let count = self.look(bounds, "at once");
            bounds = (count, count);
        }
        self.scene.drain();
        if self.scene.store().exists() {
            self.scene.verify();
        }
        let count = self.look(bounds, "drained");
        self.scene.drain();
        self.scene.kill_everything();
        self.scene.wipe_stage();
        self.look((count, count), "from the aggregates alone");
        self.scene.drain();
    }
}

/// Where the table says that somebody was killed, by strace's log: at this call, or not at all.
fn killed_at(log: &Path, call: &str) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    if text.contains("killed by SIGKILL") { call.to_string() } else { "not reached".to_string() }
}

/// Children of a launcher that are the program.
fn steppers(launcher: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap_or_default();
    let children = text.split_whitespace().filter_map(|number| number.parse().ok());
    let is_stepper =
        |child: &u32| fs::read_link(format!("/proc/{child}/exe")).is_ok_and(|exe| exe == helper("stepper"));
    children.filter(is_stepper).collect()
}

fn kill(process: u32) {
    // SAFETY: kill takes two integers; the process was started by this round and is not reaped before its end.
    unsafe { libc::kill(process as libc::pid_t, libc::SIGKILL) };
}

fn play(stages: &Stages, seed: u64) -> Row {
    let mut random = StdRng::seed_from_u64(seed);
    let (round, mut row) = Round::new(stages, seed, &mut random);
    let steps = round.first_life(&mut random);
    row.1 = round.second_life(steps, &mut random);
    round.judge(&mut random);
    row
}

#[test]
#[ignore = "in a thousand rounds about one still fails (ARCHITECTURE, known limits); scripts/crash-campaign.sh runs it"]
fn campaign() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let rounds = number("SHEAF_TEST_CAMPAIGN_ROUNDS");
    let first = number("SHEAF_TEST_CAMPAIGN_SEED").unwrap_or_else(|| rand::random_range(0..1 << 48));
    println!("seeds from {first} on; once more with SHEAF_TEST_CAMPAIGN_SEED and SHEAF_TEST_CAMPAIGN_ROUNDS=1");
    let stages = Stages::new();
    let end = Instant::now() + Duration::from_secs(SECONDS);
    let mut table: BTreeMap<Row, u32> = BTreeMap::new();
    let mut failed = Vec::new();
    for seed in first.. {
        let played = seed - first;
        let is_over = rounds.map_or_else(|| Instant::now() > end && played > 0, |rounds| played >= rounds);
        if is_over {
            println!("{played} rounds");
            break;
        }
        match catch_unwind(AssertUnwindSafe(|| play(&stages, seed))) {
            Ok(row) => *table.entry(row).or_default() += 1,
            Err(_) => failed.push(seed),
        }
    }
    for ((victims, place, stage, engine), count) in table {
        println!("{victims:?} at {place}, stage on {stage}, {engine}: {count}");
    }
    assert!(failed.is_empty(), "{} rounds failed, of the seeds {failed:?}", failed.len());
}
