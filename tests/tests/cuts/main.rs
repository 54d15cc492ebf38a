//! A job over several nodes loses one: what the next job sees is consistent, whichever node knew more.
//!
//! Each node is a host name and a stage of its own on this machine. A node dies with its stage. Time decides nothing
//! here but which of the states that there may be is found.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sheaf_tests::process::Running;
use sheaf_tests::{Engine, Finished, Scene, process};

/// A program of several ranks: each writes its file of a step, then rank 0 writes which step is whole, and so on. `$1`
/// is the rank, `$2` how many there are, `$3` the first step, `$4` the last, `$5` the pause between two.
const PROGRAM: &str = r#"
meet() {
    : >"../meeting/$1-$rank"
    for other in $(seq 0 $((ranks - 1))); do until [ -e "../meeting/$1-$other" ]; do sleep 0.01; done; done
}
rank=$1 ranks=$2
cd ckpt
for step in $(seq "$3" "$4"); do
    until [ -e "../gate-$step" ] || [ -e ../gate ]; do sleep 0.01; done
    printf "$step of $rank %4000s\n" >"$step-$rank"
    meet "$step-written"
    if [ "$rank" = 0 ]; then echo "$step" >latest.new; mv latest.new latest; fi
    meet "$step-named"
    sleep "$5"
done
: >"../done-$rank"
exec sleep 600
"#;

/// A job of several nodes over one store.
struct Job {
    scene: Scene,
    ranks: usize,
}

/// One node: what runs on it has its host name and its stage.
struct Node<'a> {
    job: &'a Job,
    name: String,
}

impl Job {
    fn new(ranks: usize) -> Job {
        Job::in_layout(ranks, "node")
    }

    fn in_layout(ranks: usize, layout: &'static str) -> Job {
        let scene = Scene::new(Engine::IoUring).in_layout(layout);
        fs::create_dir(scene.captured_directory().join("meeting")).expect("the scene is ours");
        Job { scene, ranks }
    }

    fn node(&self, name: &str) -> Node<'_> {
        let node = Node { job: self, name: name.to_owned() };
        fs::create_dir(node.stage()).expect("the tier is ours");
        node
    }

    /// A node that was there before.
    fn node_again(&self, name: &str) -> Node<'_> {
        Node { job: self, name: name.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scene.captured_directory().join(name)
    }

    fn open_gate(&self, name: &str) {
        fs::write(self.path(name), "").expect("the scene is ours");
    }

    /// Tools that need no node.
    fn sheaf(&self, arguments: &[&str]) -> Finished {
        let mut command = self.scene.sheaf_command();
        process::run(command.env("SHEAF_SKEW_MS", "20").args(arguments).arg(self.scene.store()))
    }

    /// Waits until a file in the store has this content. Unlike after `sheaf wait`, nobody has been told that it is
    /// safe.
    fn await_published(&self, name: &str, content: &str) {
        let path = self.scene.checkpoints().join(name);
        until("it is not published", || {
            let mut command = self.scene.sheaf_command();
            let cat = process::run(command.arg("cat").arg(self.scene.store()).arg(&path));
            cat.stdout == content.as_bytes()
        });
    }

    /// The files of the newest consistent cut.
    fn newest_cut(&self) -> Vec<String> {
        let cuts: serde_json::Value = serde_json::from_str(&self.sheaf(&["cuts", "--json"]).text()).unwrap_or_default();
        let files = cuts[0]["files"].as_array().cloned().unwrap_or_default();
        let prefix = format!("{}/", self.scene.checkpoints().display());
        files.iter().filter_map(|file| Some(file["path"].as_str()?.strip_prefix(&prefix)?.to_owned())).collect()
    }
}

impl Node<'_> {
    fn stage(&self) -> PathBuf {
        self.job.scene.tier().join(&self.name)
    }

    /// Has a command run on this node.
    fn put(&self, command: &mut Command) {
        command.env("SHEAF_STAGE", self.stage()).env("SHEAF_SKEW_MS", "20").env("SHEAF_WATERMARK_MS", "20");
    }

    /// A preloaded program on this node.
    fn program(&self, script: &str, arguments: &[&str]) -> Command {
        let mut command = self.job.scene.preloaded_command("unshare");
        command.args(["--uts", "sh", "-c", "hostname \"$0\" && exec bash -c \"$@\"", &self.name, script, "program"]);
        command.args(arguments);
        self.put(&mut command);
        command
    }

    /// A rank of the job's program.
    fn start(&self, rank: usize, steps: (usize, usize), pause: &str) -> Running {
        let ranks = self.job.ranks.to_string();
        let steps = [steps.0.to_string(), steps.1.to_string()];
        process::start(&mut self.program(PROGRAM, &[&rank.to_string(), &ranks, &steps[0], &steps[1], pause]))
    }

    fn sheaf(&self, arguments: &[&str]) {
        let mut command = self.job.scene.sheaf_command();
        self.put(&mut command);
        process::run(command.args(arguments)).expect_success();
    }

    /// Its flusher hangs from now on.
    fn stop_flusher(&self) {
        self.job.scene.stop_flushers_in(&self.stage());
    }

    /// It goes on.
    fn continue_flusher(&self) {
        self.job.scene.continue_flushers_in(&self.stage());
    }

    /// Its processes die.
    fn kill(&self) {
        self.job.scene.kill_everything_in(&self.stage());
    }

    /// It dies with its stage.
    fn lose(&self) {
        self.kill();
        fs::remove_dir_all(self.stage()).expect("nobody uses it");
    }

    /// What a program that restarts there sees: the names, which step is said to be whole, and its files.
    fn restart(&self, cut: &str) -> String {
        self.look(cut).text()
    }

    fn look(&self, cut: &str) -> Finished {
        let files: Vec<String> = (0..self.job.ranks).map(|rank| format!("\"$step-{rank}\"")).collect();
        let script = format!(
            "cd ckpt; echo *; step=$(cat latest 2>/dev/null) || exit 0; echo \"step $step\"; cat {} 2>/dev/null",
            files.join(" ")
        );
        process::run(self.program(&script, &[]).env("SHEAF_CUT", cut))
    }
}

/// What is in a rank's file of a step.
fn content(step: usize, rank: usize) -> String {
    format!("{step} of {rank} {:4000}\n", "")
}

/// What a restart sees behind the names when a step is whole.
fn whole(step: usize, ranks: usize) -> String {
    let files: String = (0..ranks).map(|rank| content(step, rank)).collect();
    format!("step {step}\n{files}")
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + process::LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Two steps of two ranks. When the first is safe, the second node's flusher hangs, and the first node publishes that
/// the second step is whole; perhaps somebody was told that this is safe. Then everything dies, the first node with its
/// stage, the second without.
fn crashed_job(somebody_was_told: bool) -> Job {
    let job = Job::new(2);
    let nodes = [job.node("a"), job.node("b")];
    let programs = [nodes[0].start(0, (1, 2), "0"), nodes[1].start(1, (1, 2), "0")];
    job.open_gate("gate-1");
    until("the first step is in no cut", || job.newest_cut().contains(&"latest".to_owned()));
    nodes[1].stop_flusher();
    job.open_gate("gate-2");
    until("the programs do not get on", || (0..2).all(|rank| job.path(&format!("done-{rank}")).exists()));
    job.await_published("latest", "2\n");
    if somebody_was_told {
        nodes[0].sheaf(&["wait"]);
    }
    nodes[0].lose();
    nodes[1].kill();
    drop(programs);
    job
}

#[test]
fn what_is_seen_is_what_no_lost_node_is_missing_in() {
    let job = crashed_job(false);
    fs::remove_dir_all(job.node_again("b").stage()).expect("nobody uses it");
    assert_eq!(job.sheaf(&["ls", "--cut", "complete"]).text().lines().count(), 4, "the second step is half there");
    let first = job.sheaf(&["ls", "--cut", "newest"]).text();
    assert_eq!(first.lines().count(), 3, "{first}");

    let node = job.node("c");
    let restarted = node.look("newest");
    assert_eq!(restarted.text(), format!("1-0 1-1 latest\n{}", whole(1, 2)));
    let said = String::from_utf8_lossy(&restarted.stderr).into_owned();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("not shown (2)") && said.contains("SHEAF_CUT=complete"), "{said}");
    // It goes on from there. What was cut off does not come back by itself, and nobody is told again.
    process::run(&mut node.program("echo more >ckpt/more", &[])).expect_success();
    node.sheaf(&["drain"]);
    node.lose();
    let next = job.node("d").look("newest");
    assert_eq!((next.text(), next.stderr), (format!("1-0 1-1 latest more\n{}", whole(1, 2)), Vec::new()));
    job.node_again("d").sheaf(&["drain"]);
    job.scene.verify();
    let directory = job.path("extracted");
    let extract = ["extract", "-C", directory.to_str().expect("UTF-8")];
    job.sheaf(&extract).expect_success();
    let extracted =
        |name: &str| directory.join(job.scene.checkpoints().strip_prefix("/").expect("absolute")).join(name);
    assert!(extracted("more").exists() && !extracted("2-0").exists());
    job.sheaf(&[&extract[..], &["--cut", "complete"]].concat()).expect_success();
    assert_eq!(fs::read_to_string(extracted("2-0")).expect("it is published"), content(2, 0));

    // It comes back for everybody when somebody wants all, also into a stage that has been used meanwhile.
    let everything = format!("1-0 1-1 2-0 latest more\nstep 2\n{}", content(2, 0));
    let used = job.node_again("d");
    used.sheaf(&["run", "--cut", "complete", "--", "true"]);
    for node in [used, job.node("e")] {
        assert_eq!(node.restart("newest"), everything, "{}", node.name);
        node.sheaf(&["drain"]);
    }
}

#[test]
fn what_somebody_was_told_is_safe_is_seen() {
    let job = crashed_job(true);
    fs::remove_dir_all(job.node_again("b").stage()).expect("nobody uses it");
    let restarted = job.node("c").look("newest");
    assert_eq!(restarted.text(), format!("1-0 1-1 2-0 latest\nstep 2\n{}", content(2, 0)));
    assert_eq!(restarted.stderr, b"", "nothing is hidden");
}

/// One node dies again and again, with its stage: what is in the store is seen, whatever happened when. Every third
/// time another one begins while the flusher still lives.
#[test]
fn nothing_is_hidden_from_one_node() {
    let job = Job::new(1);
    let node = job.node("a");
    for number in 0..12 {
        let script =
            format!("echo {number} >ckpt/file-{number}; mv ckpt/file-{number} ckpt/kept-{number}; exec sleep 600");
        let program = process::start(&mut node.program(&script, &[]));
        job.await_published(&format!("kept-{number}"), &format!("{number}\n"));
        match number % 3 {
            0 => {
                let gone = job.scene.tier().join(format!("gone-{number}"));
                fs::rename(node.stage(), &gone).expect("the tier is ours");
            }
            1 => node.kill(),
            _ => node.stop_flusher(),
        }
        if number % 3 != 0 {
            node.lose();
        }
        fs::create_dir(node.stage()).expect("the tier is ours");
        let seen = node.look("newest");
        let expected = (0..=number).map(|number| format!("kept-{number}")).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(
            seen.text().trim_end().split(' ').map(str::to_owned).collect::<std::collections::BTreeSet<_>>(),
            expected
        );
        assert_eq!(seen.stderr, b"");
        drop(program);
    }
}

/// Stores of versions that told nothing of stages and watermarks are read as they always were.
#[test]
fn a_store_that_tells_nothing_is_seen_whole() {
    let job = crashed_job(false);
    fs::remove_dir_all(job.node_again("b").stage()).expect("nobody uses it");
    for aggregate in job.scene.store_aggregates() {
        forget_stage(&aggregate);
    }
    assert_eq!(job.sheaf(&["cuts", "--json"]).text().trim_end(), "[]");
    let everything = format!("1-0 1-1 2-0 latest\nstep 2\n{}", content(2, 0));
    let restarted = job.node("c").look("newest");
    assert_eq!((restarted.text(), restarted.stderr), (everything, Vec::new()));
    let decisions = fs::read_dir(job.scene.store()).expect("it is there").flatten();
    assert_eq!(decisions.filter(|entry| entry.path().extension() == Some("cut".as_ref())).count(), 0);
}

/// Makes an aggregate's first block one of a version that did not tell whose it is.
fn forget_stage(aggregate: &Path) {
    let mut bytes = fs::read(aggregate).expect("it is ours");
    let text = String::from_utf8(bytes[512..4080].to_vec()).expect("text");
    let is_new = |line: &&str| ["stage ", "watermark_ns ", "acknowledged_ns "].iter().any(|key| line.starts_with(key));
    assert_eq!(text.lines().filter(is_new).count(), 3);
    let mut older: String = text.lines().filter(|line| !is_new(line)).map(|line| format!("{line}\n")).collect();
    older.extend(std::iter::repeat_n('\n', text.len() - older.len()));
    bytes[512..4080].copy_from_slice(older.as_bytes());
    let crc = older.bytes().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ ((crc & 1) * 0x82f6_3b78))
    });
    bytes[4080..4096].copy_from_slice(format!("crc32c {:08x}\n", !crc).as_bytes());
    fs::write(aggregate, bytes).expect("it is ours");
}

#[test]
fn without_the_cut_a_name_leads_to_what_was_lost() {
    let job = crashed_job(false);
    fs::remove_dir_all(job.node_again("b").stage()).expect("nobody uses it");
    assert_eq!(job.node("c").restart("complete"), format!("1-0 1-1 2-0 latest\nstep 2\n{}", content(2, 0)));
}

#[test]
fn a_node_that_was_not_lost_takes_the_cut_back() {
    let job = crashed_job(false);
    let first = job.node("c");
    assert_eq!(first.restart("newest"), format!("1-0 1-1 latest\n{}", whole(1, 2)));
    process::run(&mut first.program("echo more >ckpt/more", &[])).expect_success();
    first.sheaf(&["drain"]);
    // The first node is gone for good, but nothing of it is missing that the second one knows of.
    job.node_again("b").sheaf(&["drain"]);
    let listed = job.sheaf(&["ls"]).text();
    assert!(listed.contains("/2-1\n") && listed.contains("/more\n"), "{listed}");
    job.scene.verify();
}

/// A file is complete, and before it can be published somebody writes to it again, for a long time. Nothing waits for
/// it for ever; but what another node says of it must not be seen without it.
#[test]
fn a_file_that_is_written_again_before_it_was_published_is_missed() {
    let job = Job::new(2);
    let nodes = [job.node("a"), job.node("b")];
    let begin = |node: &Node<'_>, script: &str| {
        let until = r#"until_there() { until [ -e "$1" ]; do sleep 0.01; done; }; cd ckpt"#;
        process::start(&mut node.program(&format!("{until}; {script}; exec sleep 600"), &[]))
    };
    let writer = "echo 1 >first; until_there ../stopped; echo 2 >data; exec 3>>data; : >../written; until_there ../named; \
                  echo 3 >after";
    let namer = "until_there ../written; echo data >latest; : >../named";
    let programs = [begin(&nodes[0], namer), begin(&nodes[1], writer)];
    job.await_published("first", "1\n");
    nodes[1].stop_flusher();
    job.open_gate("stopped");
    job.await_published("latest", "data\n");
    until("the programs do not get on", || job.path("named").exists());
    nodes[1].continue_flusher();
    job.await_published("after", "3\n");
    nodes.iter().for_each(Node::lose);
    drop(programs);
    assert_eq!(job.sheaf(&["ls", "--cut", "complete"]).text().lines().count(), 3, "the data is not published");
    assert_eq!(job.node("c").restart("newest"), "first\n");
}

#[test]
fn a_node_that_dies_before_it_has_published_anything_is_missed() {
    let job = Job::new(2);
    let nodes = [job.node("a"), job.node("b")];
    // A file that is not complete: the flusher is greeted, and has nothing to publish.
    let programs: Vec<Running> = (0..2)
        .map(|rank| {
            let program = format!("exec 3>ckpt/open-{rank}; : >begun-{rank}; {PROGRAM}");
            process::start(&mut nodes[rank].program(&program, &[&rank.to_string(), "2", "1", "1", "0"]))
        })
        .collect();
    until("the programs do not begin", || (0..2).all(|rank| job.path(&format!("begun-{rank}")).exists()));
    assert_eq!(job.scene.store_aggregates().len(), 2, "both nodes are known");
    nodes[1].stop_flusher();
    job.open_gate("gate");
    until("the programs do not get on", || (0..2).all(|rank| job.path(&format!("done-{rank}")).exists()));
    job.await_published("latest", "1\n");
    nodes.iter().for_each(Node::lose);
    drop(programs);
    assert_eq!(
        job.node("c").restart("newest"),
        "*\n",
        "the file of rank 0 and the name are there, that of rank 1 is not"
    );
}

#[test]
fn a_job_that_ends_in_peace_has_no_cut_and_one_that_only_looked_leaves_nothing() {
    let job = Job::new(2);
    let nodes = [job.node("a"), job.node("b")];
    job.open_gate("gate");
    let program = PROGRAM.replace("exec sleep 600", "");
    let programs =
        [0, 1].map(|rank| process::start(&mut nodes[rank].program(&program, &[&rank.to_string(), "2", "1", "3", "0"])));
    for program in programs {
        program.finish().expect_success();
    }
    nodes.iter().for_each(|node| node.sheaf(&["drain"]));
    nodes.iter().for_each(Node::lose);
    let before = job.scene.store_aggregates();
    let seen = job.node("c").restart("newest");
    assert!(seen.ends_with(&whole(3, 2)), "{seen}");
    job.node_again("c").sheaf(&["drain"]);
    assert_eq!(job.scene.store_aggregates(), before);
}

const RANKS: usize = 4;

/// `SHEAF_TEST_CUT_ROUNDS` says how many. With `SHEAF_TEST_CUT=complete` some must fail.
#[test]
fn rounds_of_nodes_that_die_at_any_moment() {
    let rounds = std::env::var("SHEAF_TEST_CUT_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    let first: u64 = std::env::var("SHEAF_TEST_FIRST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let cut = std::env::var("SHEAF_TEST_CUT").unwrap_or_else(|_| "newest".to_owned());
    let failed: Vec<String> = (first..first + rounds).filter_map(|seed| round(seed, &cut).err()).collect();
    println!("SHEAF_CUT={cut}: {} of {rounds} rounds failed", failed.len());
    match cut.as_str() {
        "newest" => assert!(failed.is_empty(), "{failed:#?}"),
        _ => assert!(!failed.is_empty(), "these rounds show nothing"),
    }
}

/// A program of one rank on each node loses a node, and the others with it or a little later. Others, and those that
/// are left with an empty stage, begin anew.
fn round(seed: u64, cut: &str) -> Result<(), String> {
    let mut random = StdRng::seed_from_u64(seed);
    let job = Job::in_layout(RANKS, if random.random_bool(0.5) { "node" } else { "shared:2" });
    let nodes: Vec<Node<'_>> = (0..RANKS).map(|rank| job.node(&format!("n{rank}"))).collect();
    job.open_gate("gate");
    let programs: Vec<Running> = (0..RANKS).map(|rank| nodes[rank].start(rank, (1, 1000), "0.05")).collect();
    until("nothing is written", || job.path("meeting/1-named-0").exists());
    let pause = |random: &mut StdRng, most: u64| {
        std::thread::sleep(Duration::from_millis(random.random_range(0..most)));
    };
    pause(&mut random, 600);
    let victim = random.random_range(0..RANKS);
    // One that dies slowly, as nodes do.
    if random.random_bool(0.5) {
        nodes[victim].stop_flusher();
        pause(&mut random, 400);
    }
    nodes[victim].lose();
    pause(&mut random, 200);
    let survivors = || (0..RANKS).filter(|rank| *rank != victim);
    let are_drained = random.random_bool(0.3);
    drop(programs);
    for survivor in survivors() {
        if are_drained {
            nodes[survivor].sheaf(&["drain"]);
        }
        nodes[survivor].lose();
    }
    let survivor = survivors().nth(random.random_range(0..RANKS - 1)).expect("there are as many");
    fs::create_dir(nodes[survivor].stage()).expect("the tier is ours");
    for node in [&job.node("spare"), &nodes[survivor]] {
        let seen = node.restart(cut);
        let (_, behind_names) = seen.split_once('\n').expect("the names");
        let step: Option<usize> =
            behind_names.strip_prefix("step ").and_then(|rest| rest.split_once('\n')?.0.parse().ok());
        println!("seed {seed}, on {}: step {step:?}", node.name);
        if behind_names != step.map(|step| whole(step, RANKS)).unwrap_or_default() {
            return Err(format!("seed {seed}: step {step:?} is not whole"));
        }
    }
    Ok(())
}
