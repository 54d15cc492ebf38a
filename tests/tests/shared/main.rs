//! Layout `shared:M`: nodes that write to the same files, at once, and die over it.
//!
//! Each node is a host name and a stage of its own on this machine. At every moment each file is an archive that stock
//! tar readers walk to its end, and nothing that a node has published is lost or changed by another.

mod hostile;
mod kills;
mod room;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sheaf_tests::process::Running;
use sheaf_tests::scene::artefact;
use sheaf_tests::{Engine, Scene, process, snapshot};

/// Readers that must get to the end of every archive, with exit status 0.
const READERS: [&[&str]; 3] = [&["tar", "-tf"], &["bsdtar", "-tf"], &["python3", "-m", "tarfile", "-l"]];

/// What a node writes; `$1` is its name.
const WRITE: &str = r#"
mkdir ckpt/$1
for step in 1 2 3 4 5 6; do
    head -c $((step * 300001)) /dev/zero | tr '\0' "$step" >ckpt/$1/large.new
    mv ckpt/$1/large.new ckpt/$1/large
    for number in 1 2 3 4 5; do echo "$1 $step $number" >ckpt/$1/small-$step-$number; done
    sleep 0.05
done
ln -s large ckpt/$1/latest; ln ckpt/$1/large ckpt/$1/second; rm ckpt/$1/small-1-1
truncate -s 3M ckpt/$1/sparse; echo end >>ckpt/$1/sparse
"#;

/// Nodes over one store.
struct Nodes {
    scene: Scene,
}

impl Nodes {
    fn new(engine: Engine, layout: &'static str) -> Nodes {
        Nodes { scene: Scene::new(engine).in_layout(layout) }
    }

    fn stage(&self, node: &str) -> PathBuf {
        let stage = self.scene.tier().join(node);
        fs::create_dir_all(&stage).expect("the tier is ours");
        stage
    }

    /// A command on a node, with its variables; the program is to be named in the arguments.
    fn command(&self, node: &str, arguments: &[&str]) -> Command {
        let mut command: Command = self.scene.preloaded_command("unshare");
        command.env_remove("LD_PRELOAD").env("SHEAF_STAGE", self.stage(node)).env("SHEAF_SKEW_MS", "20");
        // What is cut off when nodes are lost is shown elsewhere.
        command.env("SHEAF_CUT", "complete");
        command.args(["--uts", "sh", "-c", "hostname \"$0\" && exec \"$@\"", node]).args(arguments);
        command
    }

    /// A job on a node: all of it is published when it ends.
    fn job(&self, node: &str, script: &str) -> Command {
        let sheaf = artefact("sheaf");
        self.command(node, &[sheaf.to_str().expect("ours"), "run", "--", "bash", "-c", script, "job", node])
    }

    fn run(&self, node: &str, script: &str) -> String {
        process::run(&mut self.job(node, script)).expect_success().text()
    }

    /// What a node sees that has nothing but the store.
    fn seen_in_the_store(&self, script: &str) -> String {
        let fresh = tempfile::Builder::new().prefix("fresh-").tempdir_in(self.scene.tier()).expect("the tier is ours");
        let name = fresh.path().file_name().and_then(|name| name.to_str()).expect("ours").to_owned();
        self.run(&name, script)
    }

    /// Every reader gets to the end of every file of the store.
    fn assert_archives(&self, what: &str) {
        for aggregate in self.scene.store_aggregates() {
            for reader in READERS {
                let mut command = self.scene.native_command(reader[0]);
                let finished = process::run(command.args(&reader[1..]).arg(&aggregate));
                // One that is not needed any more goes.
                assert!(finished.status.success() || !aggregate.exists(), "{what}: {}", finished.describe());
                assert!(finished.stderr.is_empty() || !aggregate.exists(), "{what}: {}", finished.describe());
            }
        }
    }

    /// The files of the store that are shared.
    fn shared_files(&self) -> Vec<PathBuf> {
        let is_shared = |path: &PathBuf| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("shared-"))
        };
        self.scene.store_aggregates().into_iter().filter(is_shared).collect()
    }
}

fn extract(scene: &Scene, archives: &[PathBuf]) -> PathBuf {
    let directory = tempfile::tempdir_in(scene.root()).expect("the scene is ours").keep();
    for archive in archives {
        let mut tar = scene.native_command("tar");
        process::run(tar.arg("-xf").arg(archive).current_dir(&directory)).expect_success();
    }
    directory.join(scene.checkpoints().strip_prefix("/").expect("scenes have absolute paths"))
}

/// Four nodes at once; readers of tar look all the time.
fn four_nodes(engine: Engine, layout: &'static str, files: usize) {
    let nodes = Nodes::new(engine, layout);
    let names = ["a1", "b2", "c3", "d4"];
    let mut running: Vec<Running> = names.iter().map(|node| process::start(&mut nodes.job(node, WRITE))).collect();
    let mut looks = 0;
    while !running.iter_mut().all(|job| job.wait_for(Duration::ZERO)) {
        nodes.assert_archives(layout);
        looks += 1;
    }
    running.into_iter().for_each(|job| drop(job.finish().expect_success()));
    println!("{engine:?}, {layout}: the archives were walked {looks} times meanwhile");
    for node in names {
        nodes.scene.native(&["bash", "-c", WRITE, "job", node]).expect_success();
    }
    let aggregates = nodes.scene.store_aggregates();
    assert!(aggregates.len() <= files && nodes.shared_files() == aggregates, "{layout}: {aggregates:?}");
    nodes.scene.verify();
    nodes.assert_archives(layout);
    let native = nodes.scene.native_snapshot();
    let helper = sheaf_tests::scene::helper("snapshot");
    assert_eq!(nodes.seen_in_the_store(&format!("{} ckpt", helper.display())), native, "{engine:?}, {layout}");
    // Tools that need no node, and what was there before is kept with what comes.
    nodes.run("a1", "cat ckpt/*/large | md5sum >ckpt/a1/sum; rm -r ckpt/b2");
    for arguments in [["ls"], ["cuts"], ["catalog"]] {
        let mut command = nodes.scene.sheaf_command();
        process::run(command.args(arguments).arg(nodes.scene.store())).expect_success();
    }
    let merged = nodes.scene.root().join("merged.tar");
    let mut merge = nodes.scene.sheaf_command();
    process::run(merge.arg("merge").arg(nodes.scene.store()).arg("-o").arg(&merged)).expect_success();
    nodes.scene.native(&["bash", "-c", "cat ckpt/*/large | md5sum >ckpt/a1/sum; rm -r ckpt/b2"]).expect_success();
    assert_same_files(&extract(&nodes.scene, &[merged]), &nodes.scene.native_directory().join("ckpt"));
    let seen = nodes.seen_in_the_store("cat ckpt/a1/sum; ls ckpt");
    let native = nodes.scene.native(&["bash", "-c", "cat ckpt/a1/sum; ls ckpt"]).expect_success();
    assert_eq!(seen, native.text(), "{engine:?}, {layout}");
}

fn assert_same_files(one: &Path, other: &Path) {
    let [one, other] = [one, other].map(|directory| snapshot::take(directory).expect("what was extracted is readable"));
    assert_eq!(one, other);
}

#[test]
fn four_nodes_in_one_file() {
    four_nodes(Engine::IoUring, "shared:1", 1);
}

#[test]
fn four_nodes_in_two_files() {
    four_nodes(Engine::Pwrite, "shared:2", 2);
}

/// A store in which an earlier job had another layout, either way.
#[test]
fn layouts_go_together_in_a_store() {
    let nodes = Nodes::new(Engine::IoUring, "node");
    nodes.run("one", "echo first >ckpt/first; echo old >ckpt/state");
    let nodes = Nodes { scene: nodes.scene.in_layout("shared:2") };
    nodes.run("one", "cat ckpt/first; echo new >ckpt/state; echo second >ckpt/second");
    nodes.run("two", "echo third >ckpt/third");
    let nodes = Nodes { scene: nodes.scene.in_layout("node") };
    nodes.run("three", "cat ckpt/state ckpt/third >ckpt/both");
    assert_eq!(
        nodes.seen_in_the_store("cat ckpt/first ckpt/state ckpt/second ckpt/both"),
        "first\nnew\nsecond\nnew\nthird\n"
    );
    assert!(!nodes.shared_files().is_empty() && nodes.shared_files() != nodes.scene.store_aggregates());
    nodes.scene.verify();
    nodes.assert_archives("layouts in turn");
}

/// A node that lives sees what another one publishes in the same file meanwhile, also what was moved there by
/// reclaiming.
#[test]
fn what_another_node_publishes_meanwhile_is_seen() {
    let nodes = Nodes::new(Engine::IoUring, "shared:1");
    let look = "for number in 1 2 3 4 5 6; do until cat ckpt/$number 2>/dev/null; do sleep 0.02; done; : >seen-$number; done; \
                cmp <(head -c 500000 /dev/zero | tr '\\0' 6) ckpt/state && cat ckpt/keep";
    let mut looking = process::start(&mut nodes.job("two", look));
    let write = "head -c 60000 /dev/zero | tr '\\0' k >ckpt/keep; for number in 1 2 3 4 5 6; do \
                 head -c 500000 /dev/zero | tr '\\0' $number >ckpt/state; echo $number >ckpt/$number; \
                 until [ -e seen-$number ]; do sleep 0.02; done; done";
    nodes.run("one", write);
    while !looking.wait_for(Duration::from_millis(20)) {}
    let kept = "k".repeat(60_000);
    assert_eq!(looking.finish().expect_success().text(), format!("1\n2\n3\n4\n5\n6\n{kept}"));
    nodes.scene.verify();
}
