//! All layouts on file systems with servers of their own, by FUSE mounts on every node, one of which crashes.

use std::fs;
use std::time::Duration;

use sheaf_tests::cluster::Cluster;
use sheaf_tests::process::Running;
use sheaf_tests::{Engine, Scene};

pub const SHEAF: &str = "/mnt/installed/sheaf";
pub const LAYOUTS: [&str; 4] = ["node", "shared:1", "shared:2", "files"];
/// What each node has acknowledged before the crash; the one that is left acknowledges one more after it.
const ENOUGH: usize = 3;

/// The name of a layout's directory: no colon, which stands between patterns.
pub fn place(layout: &str) -> String {
    layout.replace(':', "-")
}

/// Two nodes that write, one of which crashes, and two that read.
struct Site {
    scene: Scene,
    cluster: Cluster,
}

impl Site {
    fn new(kind: &str) -> Site {
        let scene = Scene::new(Engine::IoUring);
        let cluster = Cluster::with_network(4, &scene.captured_directory(), kind);
        Site { scene, cluster }
    }

    fn acknowledged(&self, layout: &str, node: &str) -> usize {
        let file = self.scene.captured_directory().join(format!("{}-{node}", place(layout)));
        fs::read_to_string(file).unwrap_or_default().lines().count()
    }

    fn srun(layout: &str, place: &str, node: &str, script: &str) -> Vec<String> {
        let export = format!(
            "--export=ALL,LD_PRELOAD=/mnt/installed/libsheaf.so,SHEAF_LAYOUT={layout},SHEAF_PATHS=/mnt/network/{place}/**"
        );
        let words = ["srun", "--chdir=/mnt/shared", "-N1", "-w", node, &export, "bash", "-c", script];
        words.map(str::to_string).to_vec()
    }

    fn run(&self, words: &[String]) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.cluster.run(&words).expect_success();
    }

    /// Starts a program that writes checkpoint after checkpoint, and notes which of them are acknowledged.
    fn start_writer(&self, layout: &str, node: &str) -> Running {
        let place = place(layout);
        let script = format!(
            "set -e; cd /mnt/network/{place}; for n in $(seq 100000); do seq $n $((n + 20000)) >{node}-$n; echo $n >{node}.part; \
             mv {node}.part {node}; env -u LD_PRELOAD {SHEAF} wait; echo $n >>/mnt/shared/{place}-{node}; done"
        );
        let words = Site::srun(layout, &place, node, &script);
        self.cluster.start(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Waits until a node has acknowledged so many.
    fn await_count(&self, layout: &str, node: &str, count: usize, mut job: Running) -> Running {
        while self.acknowledged(layout, node) < count {
            if job.wait_for(Duration::from_millis(5)) {
                panic!("{layout}: {}", job.finish().describe());
            }
        }
        job
    }

    fn check_all(&self) {
        for layout in LAYOUTS {
            self.check(layout);
            if layout != LAYOUTS[LAYOUTS.len() - 1] {
                self.cluster.boot("n1");
            }
        }
    }

    /// What was acknowledged is there and right on other nodes, though a node of the job crashed while it wrote.
    fn check(&self, layout: &str) {
        let place = place(layout);
        self.cluster.on("n0", &["mkdir", &format!("/mnt/network/{place}")]).expect_success();
        let start = |node: &str| self.await_count(layout, node, ENOUGH, self.start_writer(layout, node));
        let (left, lost) = (start("n0"), start("n1"));
        self.cluster.crash("n1");
        drop(lost);
        let count = self.acknowledged(layout, "n0") + 1;
        drop(self.await_count(layout, "n0", count, left));
        self.cluster.run(&["scancel", "--full", "--user=root"]).expect_success();
        for node in ["n0", "n1"] {
            let count = self.acknowledged(layout, node);
            let read = format!(
                "set -e; cd /mnt/network/{place}; for n in $(seq {count}); do cmp {node}-$n <(seq $n $((n + 20000))); done; \
                 test $(cat {node}) -ge {count}"
            );
            // Readers write to no file that the lost node had a lock of.
            self.run(&Site::srun("node", &place, if node == "n0" { "n2" } else { "n3" }, &read));
        }
        if layout != "files" {
            let store = format!("/mnt/network/{place}/.sheaf");
            self.cluster.on("n2", &[SHEAF, "verify", &store]).expect_success();
            let tar = format!("set -e; for file in {store}/*.tar; do tar -tf $file >/dev/null; done");
            self.cluster.on("n3", &["bash", "-c", &tar]).expect_success();
        }
    }
}

/// Slow: its clients wait for locks of one that is gone (up to a minute each time).
#[test]
#[ignore = "takes two minutes; scripts/long-tests.sh"]
fn all_layouts_on_moosefs() {
    let site = Site::new("moosefs");
    site.check_all();
}

#[test]
fn all_layouts_on_glusterfs() {
    let site = Site::new("glusterfs");
    site.check_all();
}
