//! Under a real Slurm, on several nodes: each rank's file comes back on other nodes, whatever ended the job before.
//!
//! Slurm kills every process of a step when the step ends (proctrack/cgroup), also a flusher that is at work.

mod campaign;
mod layouts;
mod network;
mod writers;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sheaf_tests::cluster::Cluster;
use sheaf_tests::scene::{helper, workspace};
use sheaf_tests::{Engine, Finished, Scene, process};

const PATHS: &str = "SHEAF_PATHS=/mnt/shared/ckpt/**";
const PRELOAD: &str = "--export=ALL,LD_PRELOAD=/mnt/installed/libsheaf.so,SHEAF_PATHS=/mnt/shared/ckpt/**";
const SHEAF: &str = "/mnt/installed/sheaf";
const RUN: [&str; 5] = [SHEAF, "run", "--paths", "/mnt/shared/ckpt/**", "--"];
const NODES: [&str; 4] = ["n0", "n1", "n2", "n3"];

/// Four nodes, a program of four ranks, and what it leaves without Sheaf.
struct Site {
    cluster: Cluster,
    ranks: PathBuf,
    scene: Scene,
}

/// One of the MPI programs in tests/apps.
fn compile(scene: &Scene, name: &str) -> PathBuf {
    let program = scene.root().join(name);
    let source = workspace().join(format!("tests/apps/{name}.c"));
    process::run(scene.native_command("mpicc").arg("-O1").arg("-o").arg(&program).arg(source)).expect_success();
    program
}

impl Site {
    fn new(configuration: &str) -> Site {
        let scene = Scene::new(Engine::IoUring);
        let ranks = compile(&scene, "ranks");
        let cluster = Cluster::new(NODES.len(), &scene.captured_directory(), configuration);
        Site { cluster, ranks, scene }
    }

    /// What the program says without Sheaf.
    fn native(&self, phase: &str) -> String {
        let mut command = self.scene.native_command("mpirun");
        command.args(["-n", "4", "--oversubscribe", "--bind-to", "none"]).arg(&self.ranks).arg(phase);
        process::run(&mut command).expect_success().text()
    }

    /// `srun` of four ranks on two nodes, with options and a launcher before the program.
    fn ranks(&self, nodes: &str, options: &[&str], launcher: &[&str], phase: &str) -> Finished {
        let program = self.ranks.to_str().expect("a path of this test's own");
        let srun = ["srun", "--chdir=/mnt/shared", "--mpi=pmix", "-N2", "--ntasks-per-node=2", "-w", nodes];
        self.cluster.run(&[&srun, options, launcher, &[program, phase]].concat())
    }

    /// All stages are gone, as after the nodes' next start.
    fn wipe_stages(&self) {
        for node in NODES {
            self.cluster.on(node, &["sh", "-c", "rm -rf /dev/shm/sheaf-*"]).expect_success();
        }
    }

    /// What a program on a node sees of the checkpoints.
    fn seen_on(&self, node: &str) -> String {
        let snapshot = helper("snapshot");
        let snapshot = snapshot.to_str().expect("a path of this test's own");
        let srun = ["srun", "--chdir=/mnt/shared", "-N1", "-w", node];
        self.cluster.run(&[&srun[..], &RUN, &[snapshot, "ckpt"]].concat()).expect_success().text()
    }

    /// The nodes in the aggregates' names.
    fn nodes_with_aggregates(&self) -> BTreeSet<String> {
        let aggregates = self.scene.store_aggregates();
        let stems = aggregates.iter().filter_map(|path| path.file_stem()?.to_str()?.rsplit_once('-'));
        stems.map(|(node, _)| node.to_string()).collect()
    }

    /// Publishes by hand what a job has left on a node.
    fn drain_on(&self, node: &str) {
        self.cluster.on(node, &["env", PATHS, SHEAF, "drain"]).expect_success();
    }
}

#[test]
fn the_launcher_publishes_one_aggregate_for_each_node_and_other_nodes_restart_from_them() {
    let site = Site::new("");
    let expected = site.native("write");
    assert_eq!(site.ranks("n0,n1", &[], &RUN, "write").expect_success().text(), expected);
    // A node may have rolled to another one: a version that was published before the next superseded it is dead.
    assert_eq!(site.nodes_with_aggregates(), ["n0", "n1"].map(String::from).into());
    site.scene.assert_no_captured_files_on_pfs();
    site.scene.verify();

    site.wipe_stages();
    assert_eq!(site.seen_on("n2"), site.scene.native_snapshot());
    let expected = site.native("restart");
    assert_eq!(site.ranks("n2,n3", &[], &RUN, "restart").expect_success().text(), expected);
    site.wipe_stages();
    assert_eq!(site.seen_on("n0"), site.scene.native_snapshot());
}

#[test]
fn what_a_step_left_when_its_flusher_was_killed_with_it_is_drained_by_hand() {
    let site = Site::new("");
    let expected = site.native("write");
    assert_eq!(site.ranks("n0,n1", &[PRELOAD], &[], "write").expect_success().text(), expected);
    for node in ["n0", "n1"] {
        let left = site.cluster.on(node, &["pgrep", "-x", "sheaf"]);
        assert!(!left.status.success(), "the step's end left a process: {}", left.describe());
        site.drain_on(node);
    }
    site.wipe_stages();
    assert_eq!(site.seen_on("n3"), site.scene.native_snapshot());
}

#[test]
fn the_next_job_on_the_nodes_publishes_what_a_step_left() {
    let site = Site::new("");
    site.native("write");
    site.ranks("n0,n1", &[PRELOAD], &[], "write").expect_success();
    // Any program: its launcher finds the stage.
    let next = ["srun", "--chdir=/mnt/shared", "-N2", "-w", "n0,n1"];
    site.cluster.run(&[&next[..], &RUN, &["true"]].concat()).expect_success();
    site.wipe_stages();
    assert_eq!(site.seen_on("n3"), site.scene.native_snapshot());
}

#[test]
fn the_example_job_script_goes_on_from_its_checkpoints_on_other_nodes() {
    let site = Site::new("");
    let script = workspace().join("scripts/slurm/job.sh");
    for (phase, nodes) in [("write", "n0,n1"), ("restart", "n2,n3")] {
        let expected = site.native(phase);
        let sbatch =
            ["sbatch", "--wait", "--chdir=/mnt/shared", "--output=said-%j", "--export=ALL,SHEAF=/mnt/installed/sheaf"];
        let program = [script.to_str().expect("UTF-8"), site.ranks.to_str().expect("UTF-8"), phase];
        let said = || process::run(site.scene.native_command("sh").args(["-c", "cat ../captured/said-*"])).text();
        let job = site.cluster.run(&[&sbatch[..], &["-w", nodes], &program].concat());
        assert!(job.status.success(), "{}\n{}", job.describe(), said());
        assert!(said().ends_with(&expected), "{}", said());
    }
    site.wipe_stages();
    assert_eq!(site.seen_on("n0"), site.scene.native_snapshot());
}

/// A user of the site, who is not root.
const USER: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

/// Writes, says so, and then ignores what asks it to end.
const STUBBORN: &str = r#"trap "" TERM; seq 200000 >ckpt/"$SLURMD_NODENAME"; touch wrote-"$SLURMD_NODENAME"
while :; do sleep 0.1; done"#;

#[test]
fn the_epilog_drains_as_its_user_what_a_cancelled_job_left() {
    let epilog = workspace().join("scripts/slurm/epilog.sh");
    let site = Site::new("Epilog=/mnt/local/epilog");
    let shared = site.scene.captured_directory();
    for directory in [shared.clone(), shared.join("ckpt")] {
        std::os::unix::fs::chown(directory, Some(65534), Some(65534)).expect("this test is run by root");
    }
    for node in NODES {
        let text = format!("printf '#!/bin/sh\\nSHEAF={SHEAF} exec {}\\n' >$0; chmod 755 $0", epilog.display());
        site.cluster.on(node, &["sh", "-c", &text, "/mnt/local/epilog"]).expect_success();
    }
    let srun = ["srun", "-J", "stubborn", "--chdir=/mnt/shared", "-N2", "-w", "n0,n1", PRELOAD, "bash", "-c", STUBBORN];
    let mut job = site.cluster.start(&[&USER[..], &srun].concat());
    let written = || ["n0", "n1"].iter().all(|node| shared.join(format!("wrote-{node}")).exists());
    while !written() {
        assert!(!job.wait_for(Duration::from_millis(20)), "the job ended too early");
    }
    site.cluster.run(&["scancel", "-n", "stubborn"]).expect_success();
    job.finish();
    // The nodes are free when their epilogs have ended.
    let deadline = Instant::now() + Duration::from_secs(60);
    while site.cluster.run(&["sinfo", "-h", "-t", "idle", "-o", "%D"]).text().trim() != "4" {
        assert!(Instant::now() < deadline, "{}", site.cluster.run(&["sinfo"]).describe());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(site.nodes_with_aggregates(), ["n0", "n1"].map(String::from).into());
    for aggregate in site.scene.store_aggregates() {
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(aggregate).expect("it is there"));
        assert_eq!(owner, 65534, "written as the job's user");
    }
    site.wipe_stages();
    let expected = process::run(site.scene.native_command("seq").arg("200000")).expect_success().stdout;
    for file in ["n0", "n1"] {
        let path = format!("/mnt/shared/ckpt/{file}");
        let srun = ["srun", "--chdir=/mnt/shared", "-N1", "-w", "n3"];
        let read = site.cluster.run(&[&USER[..], &srun, &RUN, &["cat", &path]].concat()).expect_success();
        assert!(read.stdout == expected, "{file} differs");
    }
}

#[test]
fn the_prolog_drains_what_was_left_before_the_next_job_of_the_user_starts() {
    let prolog = workspace().join("scripts/slurm/prolog.sh");
    let site = Site::new("Prolog=/mnt/local/prolog");
    let expected = site.native("write");
    // Before there is anything to drain, too.
    for node in NODES {
        let text = format!("printf '#!/bin/sh\nSHEAF={SHEAF} exec {}\n' >$0; chmod 755 $0", prolog.display());
        site.cluster.on(node, &["sh", "-c", &text, "/mnt/local/prolog"]).expect_success();
    }
    assert_eq!(site.ranks("n0,n1", &[PRELOAD], &[], "write").expect_success().text(), expected);
    // The job itself has nothing to do with Sheaf.
    site.cluster.run(&["srun", "--chdir=/mnt/shared", "-N2", "-w", "n0,n1", "true"]).expect_success();
    site.wipe_stages();
    assert_eq!(site.seen_on("n3"), site.scene.native_snapshot());
}

#[test]
#[ignore = "takes two minutes, which is as short as a time limit can be; scripts/long-tests.sh"]
fn the_time_limit_ends_a_job_and_nothing_is_lost() {
    let site = Site::new("");
    let written = |node: &str, name: &str| {
        let write = format!("seq 200000 >ckpt/{node}{name}");
        process::run(site.scene.native_command("sh").args(["-c", &write])).expect_success();
    };
    let stays = "seq 200000 >ckpt/$SLURMD_NODENAME-stays; while :; do sleep 0.1; done";
    let limited = |nodes: &str, more: &[&str], script: &str| {
        let srun = ["srun", "--chdir=/mnt/shared", "--time=1", "-N2", "-w", nodes];
        site.cluster.start(&[&srun[..], more, &RUN, &["bash", "-c", script]].concat())
    };
    // One is told before, and writes what it has; the other is ended.
    let (told, ended) = (limited("n0,n1", &["--signal=USR1@30"], TOLD), limited("n2,n3", &[], stays));
    told.finish().expect_success();
    assert!(!ended.finish().status.success(), "it was ended");
    for node in ["n0", "n1"] {
        written(node, "");
    }
    for node in ["n2", "n3"] {
        written(node, "-stays");
    }
    site.wipe_stages();
    assert_eq!(site.seen_on("n3"), site.scene.native_snapshot());
}

#[test]
fn what_was_acknowledged_survives_the_crash_of_its_node() {
    let site = Site::new("");
    let shared = site.scene.captured_directory();
    let program = format!(
        r#"for n in $(seq 100000); do seq $n $((n + 20000)) >ckpt/$SLURMD_NODENAME-$n
        env -u LD_PRELOAD {SHEAF} wait || exit 1; echo $n >>acknowledged-$SLURMD_NODENAME; done"#
    );
    let srun = ["srun", "--chdir=/mnt/shared", "-N2", "-w", "n0,n1", PRELOAD, "bash", "-c", &program];
    let mut job = site.cluster.start(&srun);
    let acknowledged = |node: &str| -> usize {
        let text = fs::read_to_string(shared.join(format!("acknowledged-{node}"))).unwrap_or_default();
        text.lines().count()
    };
    while ["n0", "n1"].iter().any(|node| acknowledged(node) < 3) {
        assert!(!job.wait_for(Duration::from_millis(5)), "the job ended too early");
    }
    site.cluster.crash("n1");
    let counts = [("n1", acknowledged("n1")), ("n0", acknowledged("n0"))];
    site.cluster.run(&["scancel", "--full", "--user=root"]).expect_success();
    drop(job);
    site.scene.verify();
    for (node, count) in counts {
        for number in 1..=count {
            let path = shared.join(format!("ckpt/{node}-{number}"));
            let script = format!("cmp ckpt/{node}-{number} <(seq {number} {})", number + 20000);
            assert!(!path.exists(), "it is captured");
            let srun = ["srun", "--chdir=/mnt/shared", "-N1", "-w", "n3", PRELOAD, "bash", "-c", &script];
            site.cluster.run(&srun).expect_success();
        }
    }
}

#[test]
fn tasks_of_an_array_share_nodes_and_store() {
    let site = Site::new("");
    let write = "seq $SLURM_ARRAY_TASK_ID 100000 >ckpt/task-$SLURM_ARRAY_TASK_ID";
    for task in 0..6 {
        let mut command = site.scene.native_command("sh");
        process::run(command.env("SLURM_ARRAY_TASK_ID", task.to_string()).args(["-c", write])).expect_success();
    }
    let script = format!("srun {SHEAF} run --paths '/mnt/shared/ckpt/**' -- sh -c '{write}'");
    let sbatch = ["sbatch", "--wait", "--array=0-5", "--chdir=/mnt/shared", "--output=said-%A_%a", "--wrap", &script];
    site.cluster.run(&sbatch).expect_success();
    site.wipe_stages();
    assert_eq!(site.seen_on("n3"), site.scene.native_snapshot());
}

/// Writes its checkpoint when it is told that its time is over.
const TOLD: &str = r#"trap 'trap "" USR1; seq 200000 >ckpt/$SLURMD_NODENAME; exit 0' USR1
touch ready-$SLURMD_NODENAME; while :; do sleep 0.1; done"#;

#[test]
fn a_checkpoint_that_a_signal_before_the_end_asks_for_is_published() {
    let site = Site::new("");
    let run = |srun: &[&str], nodes: &[&str], signal: &[&str]| {
        let mut job = site.cluster.start(srun);
        for node in nodes {
            while !site.scene.captured_directory().join(format!("ready-{node}")).exists() {
                assert!(!job.wait_for(Duration::from_millis(20)), "{}", job.finish().describe());
            }
            let write = format!("seq 200000 >ckpt/{node}");
            process::run(site.scene.native_command("sh").args(["-c", &write])).expect_success();
        }
        site.cluster.run(&[&["scancel", "--signal=USR1"], signal].concat()).expect_success();
        job.finish().expect_success();
    };
    // To the tasks of a step, as `--signal` does when the time is nearly over.
    let srun = ["srun", "-J", "step", "--chdir=/mnt/shared", "-N2", "-w", "n0,n1"];
    run(&[&srun[..], &RUN, &["bash", "-c", TOLD]].concat(), &["n0", "n1"], &["-n", "step"]);
    // To a batch script and all that it has started, the flusher's launcher among them.
    fs::write(site.scene.captured_directory().join("told"), TOLD).expect("the scene is ours");
    let script = format!("exec {SHEAF} run --paths '/mnt/shared/ckpt/**' -- bash told");
    let sbatch = ["sbatch", "--wait", "-J", "batch", "--chdir=/mnt/shared", "-w", "n2", "--wrap", &script];
    run(&sbatch, &["n2"], &["-n", "batch", "--full"]);
    site.wipe_stages();
    assert_eq!(site.seen_on("n3"), site.scene.native_snapshot());
}

/// Goes on from its newest checkpoint; when it was started again, for three more.
const COUNTER: &str = r#"last=$(cat ckpt/latest || echo 0)
[ "$last" = 0 ] || cmp ckpt/step-$last <(seq $last $((last + 20000))) || exit 9
echo "$SLURMD_NODENAME $last" >>started
for n in $(seq $((last + 1)) 100000); do
    seq $n $((n + 20000)) >ckpt/step-$n && echo $n >ckpt/.latest && mv ckpt/.latest ckpt/latest || exit 8
    env -u LD_PRELOAD $SHEAF wait || exit 7
    echo $n >>acknowledged
    [ -z "$SLURM_RESTART_COUNT" ] || [ $n -lt $((last + 3)) ] || exit 0
done"#;

#[test]
fn a_job_that_is_requeued_when_its_node_crashes_goes_on_elsewhere() {
    let site = Site::new("");
    let shared = site.scene.captured_directory();
    fs::write(shared.join("counter"), COUNTER).expect("the scene is ours");
    let script = format!("SHEAF={SHEAF} srun {SHEAF} run --paths '/mnt/shared/ckpt/**' -- bash counter");
    let sbatch = ["sbatch", "--wait", "--requeue", "--chdir=/mnt/shared", "--output=said-%j", "--wrap", &script];
    let mut job = site.cluster.start(&sbatch);
    let lines = |file: &str| fs::read_to_string(shared.join(file)).unwrap_or_default();
    while lines("acknowledged").lines().count() < 3 {
        assert!(!job.wait_for(Duration::from_millis(20)), "{}", job.finish().describe());
    }
    let first = lines("started").split(' ').next().expect("it has said so").to_owned();
    site.cluster.crash(&first);
    // What the controller finds out by itself in a minute.
    let down = ["scontrol", "update", &format!("NodeName={first}"), "State=DOWN", "Reason=crashed"];
    site.cluster.run(&down).expect_success();
    let acknowledged = lines("acknowledged").lines().count();
    job.finish().expect_success();
    let started = lines("started");
    let again: Vec<&str> = started.lines().nth(1).expect("it was started again").split(' ').collect();
    assert_ne!(again[0], first);
    let last: usize = again[1].parse().expect("a number");
    assert!(last >= acknowledged, "{acknowledged} were acknowledged, and it went on from {last}");
    site.scene.verify();
}

/// Starts the rest of the line with a /dev/shm of its own, as `job_container/tmpfs` does for each job.
const PRIVATE: [&str; 6] =
    ["unshare", "--mount", "sh", "-c", r#"mount -t tmpfs -o mode=1777 shm /dev/shm && exec "$@""#, "-"];

#[test]
fn who_has_a_shared_memory_of_the_jobs_own_is_told_what_survives() {
    let site = Site::new("");
    let write = "for name in a b c; do seq 200000 >ckpt/$SLURMD_NODENAME-$name; done";
    for node in ["n0", "n1"] {
        let mut command = site.scene.native_command("sh");
        process::run(command.env("SLURMD_NODENAME", node).args(["-c", write])).expect_success();
    }
    let told = |finished: &Finished| String::from_utf8_lossy(&finished.stderr).matches("this job's own").count();
    let srun = |words: &[&str]| {
        let srun = ["srun", "--chdir=/mnt/shared", "-N2", "-w", "n0,n1"];
        site.cluster.run(&[&srun[..], &PRIVATE, words].concat()).expect_success()
    };
    // One line for each node, whatever the number of processes.
    let several = format!("({write}); ({write}); exec env -u LD_PRELOAD {SHEAF} wait");
    let preload = ["env", "LD_PRELOAD=/mnt/installed/libsheaf.so", PATHS];
    let preloaded = srun(&[&preload[..], &["sh", "-c", &several]].concat());
    assert_eq!(told(&preloaded), 2, "{}", preloaded.describe());
    let launched = srun(&[&RUN[..], &["sh", "-c", write]].concat());
    assert_eq!(told(&launched), 2, "{}", launched.describe());
    assert_eq!(site.seen_on("n3"), site.scene.native_snapshot());
    let doctor = srun(&["env", PATHS, SHEAF, "doctor"]).text();
    assert_eq!(doctor.matches("only this job sees it").count(), 2, "{doctor}");
    let outside = site.cluster.on("n2", &["env", PATHS, SHEAF, "doctor"]).text();
    assert!(!outside.contains("only this job sees it"), "{outside}");
}

/// LAMMPS' table of steps: the rest of what it prints is times and memory.
fn thermo(finished: &Finished) -> String {
    let text = finished.text();
    let is_row = |line: &&str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        columns.len() == 5 && columns.iter().all(|column| column.parse::<f64>().is_ok())
    };
    let rows: Vec<_> = text.lines().filter(is_row).collect();
    assert!(rows.len() >= 4, "no table of steps: {}", finished.describe());
    rows.join("\n")
}

#[test]
fn lammps_goes_on_elsewhere_when_a_node_crashes_in_its_run() {
    let site = Site::new("");
    let (native, captured) = (site.scene.native_directory(), site.scene.captured_directory());
    for input in ["lammps-liquid.in", "lammps-ranks.in", "lammps-ranks-restart.in"] {
        let text = fs::read_to_string(workspace().join("tests/apps").join(input)).expect("the input is there");
        fs::write(native.join(input), &text).expect("the scene is ours");
        // One that is still at work when the node crashes.
        fs::write(captured.join(input), text.replace("\nrun             120", "\nrun             1000000"))
            .expect("the scene is ours");
    }
    let lammps = |input: &'static str| ["lmp", "-log", "none", "-in", input];
    let alone = |input| {
        let mut command = site.scene.native_command("mpirun");
        command.args(["-n", "4", "--oversubscribe", "--bind-to", "none"]).args(lammps(input));
        process::run(&mut command).expect_success()
    };
    alone("lammps-ranks.in");

    let srun = ["srun", "--chdir=/mnt/shared", "--mpi=pmix", "-N2", "--ntasks-per-node=2"];
    let run = |nodes, input| {
        let sheaf = [&RUN[..2], &["--skew-ms", "100", "--watermark-ms", "100"], &RUN[2..]].concat();
        [&srun[..], &["-w", nodes], &sheaf, &lammps(input)].concat()
    };
    let run_first = run("n0,n1", "lammps-ranks.in");
    let mut job = site.cluster.start(&run_first);
    // When the newest cut that has the whole checkpoint was made, if there is one.
    let cut_ns = || {
        let mut cuts = site.scene.sheaf_command();
        cuts.env("SHEAF_SKEW_MS", "100").args(["cuts", "--json"]).arg(site.scene.store());
        let cuts: serde_json::Value = serde_json::from_str(&process::run(&mut cuts).text()).unwrap_or_default();
        let listed = cuts[0]["files"].to_string();
        let is_whole =
            ["base", "0", "1", "2", "3"].iter().all(|part| listed.contains(&format!("/liquid.100.{part}\"")));
        cuts[0]["time_ns"].as_u64().filter(|_| is_whole)
    };
    let mut first_ns = None;
    // None that is made later is older by more than ten times the skew.
    let is_safe = |first_ns: &mut Option<u64>| {
        let Some(now_ns) = cut_ns() else { return false };
        now_ns > *first_ns.get_or_insert(now_ns) + 1_000_000_000
    };
    while !is_safe(&mut first_ns) {
        assert!(!job.wait_for(Duration::from_millis(50)), "the run ended too early: {}", job.finish().describe());
    }
    site.cluster.crash("n1");
    drop(job);
    site.cluster.run(&["scancel", "--user=root"]).expect_success();

    let restarted = site.cluster.run(&run("n2,n3", "lammps-ranks-restart.in")).expect_success();
    assert_eq!(thermo(&restarted), thermo(&alone("lammps-ranks-restart.in")));
}
