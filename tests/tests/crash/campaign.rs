//! The campaign: programs of many kinds, killed with all that belongs to them at moments that a seed chooses.
//!
//! After each round, every file that was complete when the program died is there, byte for byte, in the stage and then
//! in the aggregates alone; what `sheaf wait` acknowledged survives the node; and nothing torn is offered as complete.
//! A few rounds run with the tests; `scripts/crash-campaign.sh` runs them all.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sheaf_tests::campaign::perform::Progress;
use sheaf_tests::campaign::{Plan, Program};
use sheaf_tests::disk::Disk;
use sheaf_tests::process::{self, Running};
use sheaf_tests::scene::{artefact, helper};
use sheaf_tests::{Engine, Scene};

/// Rounds without SHEAF_TEST_CAMPAIGN_ROUNDS: as many as fit into this time.
const SECONDS: u64 = 15;
/// What kills a program: calls that name a file, change one, or talk; and how often it may be made before, at most.
/// Loaders and libraries open and close a lot before a program begins.
const PROGRAM_CALLS: [(&str, u32); 18] = [
    ("openat", 60),
    ("close", 60),
    ("newfstatat", 80),
    ("readlinkat", 30),
    ("getcwd", 10),
    ("statfs", 8),
    ("statx", 6),
    ("fcntl", 20),
    ("write", 20),
    ("pwrite64", 6),
    ("ftruncate", 2),
    ("rename", 3),
    ("renameat2", 3),
    ("linkat", 2),
    ("symlink", 3),
    ("unlink", 3),
    ("connect", 3),
    ("sendto", 3),
];
/// The same for a flusher: calls of one of its threads.
const FLUSHER_CALLS: [(&str, u32); 19] = [
    ("openat", 20),
    ("statx", 12),
    ("getdents64", 10),
    ("fcntl", 16),
    ("flock", 3),
    ("mkdir", 6),
    ("renameat2", 3),
    ("unlink", 4),
    ("fallocate", 3),
    ("pwrite64", 3),
    ("write", 6),
    ("io_uring_enter", 8),
    ("fdatasync", 6),
    ("fsync", 3),
    ("inotify_add_watch", 4),
    ("accept4", 8),
    ("recvfrom", 4),
    ("sendto", 4),
    ("utimensat", 4),
];

/// Kinds of stages.
const TMPFS: &str = "tmpfs";
const TIERS: &str = "tmpfs and a further tier";
/// Layouts.
const FILES: &str = "files";
const LAYOUTS: [&str; 4] = ["node", "node", "shared:2", FILES];
/// What makes the further tier be used: a store that is slow, and a first tier that holds nothing.
const SLOW: [(&str, &str); 2] = [("SHEAF_BANDWIDTH", "200K"), ("SHEAF_STAGE_LIMIT", "1K")];

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
        match self.disks.get(random.random_range(0..self.disks.len() + 2)) {
            Some((kind, place, _)) => (kind, place),
            None => ([TMPFS, TIERS][random.random_range(0..2)], Path::new("/dev/shm")),
        }
    }
}

/// One life and death of a program.
struct Round {
    scene: Scene,
    seed: u64,
    plan: Plan,
    victims: Victims,
    loses_stage: bool,
    /// Files take their places one by one.
    is_single: bool,
    variables: &'static [(&'static str, &'static str)],
    what: String,
}

/// For the table: whom, where, on what stage, with which engine, in which layout.
type Row = (Victims, String, &'static str, &'static str, &'static str);

impl Round {
    fn new(stages: &Stages, seed: u64, random: &mut StdRng) -> (Round, Row) {
        let engine = if random.random_bool(0.5) { Engine::IoUring } else { Engine::Pwrite };
        let (kind, place) = stages.choose(random);
        let victims = VICTIMS[random.random_range(0..VICTIMS.len())];
        // Files do not wait in a further tier: what finds no room overtakes on the parallel file system.
        let layouts = if kind == TIERS { &LAYOUTS[..3] } else { &LAYOUTS[..] };
        let layout = layouts[random.random_range(0..layouts.len())];
        let plan = Plan::new(seed);
        let what = format!("seed {seed}: {:?}, {victims:?}, {kind}, {engine:?}, {layout}", plan.program);
        let scene = if kind == TIERS { Scene::with_further_tier(engine) } else { Scene::staged_in(place, engine) };
        let scene = scene.in_layout(layout);
        for (name, bytes) in &plan.older {
            fs::write(scene.checkpoints().join(name), bytes).expect("the scene is ours");
        }
        let engine = if engine == Engine::IoUring { "io_uring" } else { "pwrite" };
        let row = (victims, String::new(), kind, engine, layout);
        // As files, renames and links of what is published overtake what is not: no state of the program's own is left
        // then.
        let overtakes = layout == FILES && [Program::Rotates, Program::Mixes].contains(&plan.program);
        let loses_stage = victims == Victims::Node && [TMPFS, TIERS].contains(&kind) && !overtakes;
        let variables: &[(&str, &str)] = if kind == TIERS { &SLOW } else { &[] };
        (Round { scene, seed, plan, victims, loses_stage, is_single: layout == FILES, variables, what }, row)
    }

    fn journal(&self) -> PathBuf {
        self.scene.captured_directory().join("journal")
    }

    fn stepper(&self, mut command: Command, from: usize, to: usize) -> Command {
        command.arg("do").args([self.seed, from as u64, to as u64].map(|number| number.to_string()));
        command.arg("ckpt").arg(self.journal()).env("SHEAF", artefact("sheaf"));
        command.envs(self.variables.iter().copied());
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

    /// Of what a lost node had not published, each name is as it was at some time.
    fn judges_names(&self) -> bool {
        self.loses_stage && self.is_single
    }

    /// How the directory looks through the library; panics when it must not look so.
    fn look(&self, (low, high): (usize, usize), when: &str) -> usize {
        let mut command = self.scene.preloaded_command(helper("stepper"));
        let verb = if self.judges_names() { "judge-names" } else { "judge" };
        command.arg(verb).args([self.seed, low as u64, high as u64].map(|number| number.to_string())).arg("ckpt");
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
        let has_calls = matches!(self.victims, Victims::Program | Victims::Flusher | Victims::ProgramAndFlusher);
        match random.random_range(0..3) {
            0 | 1 if has_calls => self.kill_at_call(from, random),
            _ => self.kill_at_moment(from, random),
        }
    }

    /// Each victim dies at its nth call of a kind, before the call is made.
    fn kill_at_call(&self, from: usize, random: &mut StdRng) -> String {
        let flusher = self.victims.has_flusher().then(|| self.start_hunted_flusher(random));
        let program = self.victims.has_program().then(|| {
            // Whom it executes is not followed: where no flusher can live at all, there is nothing to be tested.
            let forks = self.plan.program == Program::Forks;
            let follow: &[&str] = if forks { &["-f", "-b", "execve"] } else { &[] };
            Hunter::new(&self.scene, "program", &PROGRAM_CALLS, follow, random)
        });
        match &program {
            Some(hunter) => drop(process::run(&mut hunter.around(&self.scene, &self.program(from)))),
            None => drop(process::run(&mut self.program(from)).expect_success()),
        }
        let mut killed: Vec<_> = program.iter().map(Hunter::killed_at).collect();
        if let Some((hunter, mut running)) = flusher {
            // Not everything is to be published each time. A flusher that was not killed yet is killed at a moment.
            let is_over = program.is_none() || running.wait_for(Duration::ZERO);
            if program.is_some() {
                self.scene.kill_flushers();
            } else {
                self.scene.drain();
            }
            running.finish();
            killed.push(hunter.killed_at().filter(|_| is_over));
        }
        match killed[..] {
            [one] => one.unwrap_or("not reached").to_string(),
            _ => format!("{} of two calls", killed.iter().flatten().count()),
        }
    }

    /// A flusher that serves the stage until it is killed.
    fn start_hunted_flusher(&self, random: &mut StdRng) -> (Hunter, Running) {
        self.scene.kill_flushers();
        let hunter = Hunter::new(&self.scene, "flusher", &FLUSHER_CALLS, &["-f"], random);
        let mut flusher = self.scene.sheaf_command();
        flusher.arg("flusher").envs(self.variables.iter().copied());
        let mut running = process::start(&mut hunter.around(&self.scene, &flusher));
        let serves = || {
            let status = self.scene.sheaf(&["status", "--json"]).expect_success();
            serde_json::from_str::<serde_json::Value>(&status.text()).expect("JSON")["running"] == true
        };
        while !running.wait_for(Duration::from_millis(1)) && !serves() {}
        (hunter, running)
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
            if self.loses_stage {
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
        let mut bounds = if self.loses_stage { (progress.acknowledged, most) } else { (done, most) };
        // Half of the time nobody looks before it is drained.
        if random.random_bool(0.5) {
            let count = self.look(bounds, "at once");
            bounds = if self.judges_names() { bounds } else { (count, count) };
        }
        self.scene.drain();
        if !self.scene.store_aggregates().is_empty() {
            self.scene.verify();
        }
        let count = self.look(bounds, "drained");
        bounds = if self.judges_names() { bounds } else { (count, count) };
        self.scene.drain();
        self.scene.kill_everything();
        self.scene.wipe_stage();
        self.look(bounds, "from the aggregates alone");
        self.scene.drain();
    }
}

/// A tracer that kills whom it runs at one call.
struct Hunter {
    call: &'static str,
    log: PathBuf,
    options: Vec<String>,
}

impl Hunter {
    fn new(scene: &Scene, who: &str, calls: &[(&'static str, u32)], follow: &[&str], random: &mut StdRng) -> Hunter {
        let (call, most) = calls[random.random_range(0..calls.len())];
        let log = scene.root().join(format!("{who}.log"));
        let inject = format!("inject={call}:error=EINTR:signal=KILL:when={}", random.random_range(1..=most));
        let trace = format!("trace={call}");
        let options = [follow, &["-e", &trace, "-e", &inject, "-o", log.to_str().expect("ours")]].concat();
        Hunter { call, options: options.into_iter().map(str::to_string).collect(), log }
    }

    fn around(&self, scene: &Scene, command: &Command) -> Command {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        scene.traced(&options, command)
    }

    /// The call, if it was made often enough. The tracer has ended.
    fn killed_at(&self) -> Option<&'static str> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.contains("killed by SIGKILL").then_some(self.call)
    }
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
    for ((victims, place, stage, engine, layout), count) in table {
        println!("{victims:?} at {place}, stage on {stage}, {engine}, layout {layout}: {count}");
    }
    assert!(failed.is_empty(), "{} rounds failed, of the seeds {failed:?}", failed.len());
}
