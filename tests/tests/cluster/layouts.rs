//! What each layout asks of a file system with servers of its own, beside a file for each process: files and operations
//! of one checkpoint, as the servers count them, and the time until it is durable. Judges nothing by time.

use std::fs;
use std::path::Path;

use sheaf_tests::cluster::Cluster;
use sheaf_tests::{Engine, Scene};

use super::network::{LAYOUTS, SHEAF, place};

const NODES: usize = 4;
const ROUNDS: usize = 3;
const CHECKPOINTS: usize = 5;
/// Of each node in a checkpoint, of 64 KiB each.
const FILES: usize = 16;
/// Without Sheaf.
const DIRECT: &str = "file per process";
/// Writes the files of a checkpoint; those of one that nobody else makes durable are synced.
const WRITE: &str = "
import os, sys
start, is_synced = sys.argv[1], sys.argv[2] == 'fsync'
for number in range(int(sys.argv[3])):
    with open(f'{start}-{number}', 'wb') as file:
        file.write(os.urandom(65536))
        if is_synced:
            file.flush()
            os.fsync(file.fileno())
";

/// What one run of all nodes took.
struct Taken {
    /// Of each checkpoint of each node, until it is durable.
    times_ms: Vec<f64>,
    operations: u64,
    files: usize,
}

/// A file system of one kind, on all nodes.
struct Site<'a> {
    kind: &'a str,
    scene: Scene,
    cluster: Cluster,
    /// Where it is mounted.
    root: &'static str,
}

impl Site<'_> {
    fn new(kind: &str) -> Site<'_> {
        let scene = Scene::new(Engine::IoUring);
        fs::write(scene.captured_directory().join("write.py"), WRITE).expect("the scene is ours");
        if kind == "local" {
            let cluster = Cluster::new(NODES, &scene.captured_directory(), "");
            return Site { kind, scene, cluster, root: "/mnt/shared" };
        }
        let cluster = Cluster::with_network(NODES, &scene.captured_directory(), kind);
        Site { kind, scene, cluster, root: "/mnt/network" }
    }

    /// What its servers have been asked for so far; nothing counts that for a local directory.
    fn operations(&self) -> u64 {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/network-file-system.sh");
        let state = self.cluster.state().join("network");
        let [script, state] = [&script, state.as_path()].map(|path| path.to_str().expect("ours"));
        let count = [script, state, "count", self.kind, self.root];
        let counted: Vec<_> = match self.kind {
            "moosefs" => (0..NODES).map(|node| self.cluster.on(&format!("n{node}"), &count)).collect(),
            "glusterfs" => vec![self.cluster.run(&count)],
            _ => Vec::new(),
        };
        counted.into_iter().map(|one| one.expect_success().text().trim().parse::<u64>().expect("a number")).sum()
    }

    /// All nodes write their checkpoints, and wait for each until it is durable.
    fn take(&self, layout: &str, round: usize) -> Taken {
        let directory = format!("{}/{}-{round}", self.root, place(layout).replace(' ', "-"));
        self.cluster.on("n0", &["mkdir", &directory]).expect_success();
        let is_direct = layout == DIRECT;
        let (wait, end) = if is_direct { ("true", "true") } else { ("sheaf wait", "sheaf drain") };
        let script = format!(
            "set -e; sheaf() {{ env -u LD_PRELOAD {SHEAF} $1; }}; \
             for n in $(seq {CHECKPOINTS}); do before=$(date +%s%N); \
             python3 /mnt/shared/write.py {directory}/$(hostname)-$n {} {FILES}; {wait}; \
             echo $(($(date +%s%N) - before)) >>/mnt/shared/times; done; {end} >/dev/null",
            if is_direct { "fsync" } else { "later" }
        );
        let times = self.scene.captured_directory().join("times");
        fs::write(&times, "").expect("the scene is ours");
        let export = match is_direct {
            true => "--export=ALL".to_string(),
            false => format!(
                "--export=ALL,LD_PRELOAD=/mnt/installed/libsheaf.so,SHEAF_LAYOUT={layout},SHEAF_PATHS={directory}/**"
            ),
        };
        let nodes = format!("-N{NODES}");
        let before = self.operations();
        self.cluster.run(&["srun", "--chdir=/mnt/shared", &nodes, &export, "bash", "-c", &script]).expect_success();
        let operations = self.operations() - before;
        let text = fs::read_to_string(times).expect("the scene is ours");
        let times_ms: Vec<f64> = text.lines().map(|line| line.parse::<f64>().expect("a number") / 1e6).collect();
        assert_eq!(times_ms.len(), NODES * CHECKPOINTS, "{text}");
        let listed = self.cluster.on("n1", &["find", &directory, "-type", "f"]).expect_success().text();
        Taken { times_ms, operations, files: listed.lines().count() }
    }

    /// A row for each layout: medians over the rounds, in which they take turns.
    fn compare(&self) {
        let layouts: Vec<&str> = [DIRECT].into_iter().chain(LAYOUTS).collect();
        let mut taken: Vec<Vec<Taken>> = layouts.iter().map(|_| Vec::new()).collect();
        for round in 0..ROUNDS {
            for (layout, taken) in layouts.iter().zip(&mut taken) {
                taken.push(self.take(layout, round));
            }
        }
        for (layout, taken) in layouts.iter().zip(&taken) {
            let files = median(taken.iter().map(|one| one.files as f64));
            let operations = median(taken.iter().map(|one| one.operations as f64 / CHECKPOINTS as f64));
            let time_ms = median(taken.iter().flat_map(|one| one.times_ms.iter().copied()));
            let operations = if self.kind == "local" { "-".to_string() } else { format!("{operations:.0}") };
            println!("| {} | {layout} | {files:.0} | {operations} | {time_ms:.0} |", self.kind);
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// `scripts/layouts.sh` writes the table that this makes into `tests/LAYOUTS.md`.
#[test]
#[ignore = "measures, for some minutes: scripts/layouts.sh"]
fn what_the_layouts_ask_of_file_systems() {
    println!(
        "| file system | layout | files after {CHECKPOINTS} checkpoints | operations per checkpoint | ms until durable |"
    );
    println!("| --- | --- | ---: | ---: | ---: |");
    for kind in ["local", "moosefs", "glusterfs"] {
        Site::new(kind).compare();
    }
}
