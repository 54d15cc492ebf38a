//! Jobs on one node after jobs on another, with stages that stay: what another node has published since is seen, and
//! what is older stays superseded.

use std::path::Path;
use std::process::Command;

use sheaf_tests::scene::artefact;
use sheaf_tests::{Engine, Finished, Scene, process};
use tempfile::TempDir;

/// The scene's own node, and another one with a stage of its own.
pub struct Nodes {
    pub scene: Scene,
    other: TempDir,
}

impl Nodes {
    pub fn new() -> Nodes {
        let other = tempfile::Builder::new().prefix("sheaf-test-").tempdir_in("/dev/shm").expect("room for a tier");
        Nodes { scene: Scene::new(Engine::IoUring), other }
    }

    /// A job on a node; published when it has ended. No file changes again within one time stamp of the kernel, so that
    /// what is published needs not be so once more.
    fn job(&self, host: &str, tier: &Path, script: &str) -> Finished {
        let script = format!("{script}; sleep 0.1");
        let mut command = self.on_node(host, "");
        command.env("SHEAF_STAGE", tier).arg(artefact("sheaf"));
        process::run(command.args(["run", "--", "bash", "-c", &script])).expect_success()
    }

    /// A command on a node, whose program and arguments are to be added; preloaded with a library, if it is named.
    fn on_node(&self, host: &str, library: &str) -> Command {
        let mut command: Command = self.scene.preloaded_command("unshare");
        command.env_remove("LD_PRELOAD").args(["--uts", "bash", "-c"]);
        command.arg(format!("hostname {host} && LD_PRELOAD='{library}' exec \"$@\"")).arg("-");
        command
    }

    /// A program here under LD_PRELOAD alone.
    pub fn preloaded_here(&self, library: &Path, arguments: &[&str]) -> Command {
        let mut command = self.on_node("here", library.to_str().expect("ours"));
        command.args(arguments);
        command
    }

    pub fn here(&self, script: &str) -> String {
        self.job("here", self.scene.tier(), script).text()
    }

    pub fn there(&self, script: &str) -> String {
        self.job("there", self.other.path(), script).text()
    }

    /// As if the flusher here had been killed.
    fn forget_what_is_published(&self) {
        let mut words = Command::new("find");
        let found = process::run(words.arg(self.scene.tier()).args(["-name", "clean", "-print", "-delete"]));
        assert_eq!(found.expect_success().text().lines().count(), 1, "the word of one flusher");
    }

    /// What both nodes see, and one that sees only the store.
    fn assert_everywhere(&self, script: &str, expected: &str) {
        let aggregates = self.scene.store_aggregates();
        assert_eq!(self.here(script), expected, "here");
        assert_eq!(self.there(script), expected, "there");
        // Nothing was taken for news: nobody has published anything.
        assert_eq!(self.scene.store_aggregates(), aggregates);
        self.scene.verify();
        let fresh = tempfile::Builder::new().prefix("sheaf-test-").tempdir_in("/dev/shm").expect("room for a tier");
        assert_eq!(self.job("fresh", fresh.path(), script).text(), expected, "from the store alone");
    }
}

#[test]
fn what_another_node_has_published_since_is_there() {
    let nodes = Nodes::new();
    nodes.here("mkdir ckpt/set; echo 0 >ckpt/0; echo 00 >ckpt/set/0");
    nodes.there("cat ckpt/0; echo 1 >ckpt/1; echo 11 >ckpt/set/1; ln -s 1 ckpt/link; ln ckpt/1 ckpt/second");
    nodes.assert_everywhere(
        "ls ckpt ckpt/set; cat ckpt/1 ckpt/set/1 ckpt/link ckpt/second; stat -c %h ckpt/1",
        "ckpt:\n0\n1\nlink\nsecond\nset\n\nckpt/set:\n0\n1\n1\n11\n1\n1\n2\n",
    );
    // And its removal here is one everywhere.
    nodes.here("rm ckpt/set/1 ckpt/link ckpt/0; mv ckpt/1 ckpt/moved");
    let gone = "ls ckpt ckpt/set; cat ckpt/moved ckpt/second";
    let expected = "ckpt:\nmoved\nsecond\nset\n\nckpt/set:\n0\n1\n1\n";
    assert_eq!(nodes.here(gone), expected);
    assert_eq!(nodes.here("echo again >ckpt/1; cat ckpt/1"), "again\n");
}

/// Files of which this node has an older version, with and without its data, and a link.
#[test]
fn what_another_node_has_published_since_is_the_newest() {
    for killed in [false, true] {
        let nodes = Nodes::new();
        nodes.here("echo old >ckpt/own; echo old >ckpt/stub; ln -s own ckpt/latest");
        nodes.there("echo old >ckpt/theirs; cat ckpt/own ckpt/stub");
        // Brought back here, or only a stub.
        assert_eq!(nodes.here("cat ckpt/theirs"), "old\n");
        // Without the word that says what of it is published, only times that differ by more than clocks do tell.
        let later = if killed { "sleep 2.1; " } else { "" };
        if killed {
            nodes.forget_what_is_published();
        }
        let newer = "for n in own stub theirs; do echo newer $n >ckpt/$n; done; ln -sfn stub ckpt/latest";
        nodes.there(&format!("{later}{newer}"));
        nodes.assert_everywhere(
            "cat ckpt/own ckpt/stub ckpt/theirs; readlink ckpt/latest",
            "newer own\nnewer stub\nnewer theirs\nstub\n",
        );
        // And what is written here then is the newest.
        nodes.here("for n in own stub theirs; do echo newest $n >ckpt/$n; done; ln -sfn theirs ckpt/latest");
        nodes.assert_everywhere(
            "cat ckpt/own ckpt/stub ckpt/theirs ckpt/latest",
            "newest own\nnewest stub\nnewest theirs\nnewest theirs\n",
        );
    }
}

/// Rotations by one rank, of the files of all nodes.
#[test]
fn what_another_node_has_renamed_is_not_taken_for_removed() {
    for is_stub in [false, true] {
        for killed in [false, true] {
            let nodes = Nodes::new();
            nodes.here("echo first >ckpt/state; echo kept >ckpt/kept; echo other >ckpt/other");
            if is_stub {
                nodes.scene.wipe_stage();
                nodes.here("stat ckpt/state ckpt/kept ckpt/other");
            } else if killed {
                nodes.forget_what_is_published();
            }
            let later = if killed { "sleep 2.1; " } else { "" };
            nodes.there(&format!(
                "{later}mv ckpt/state ckpt/older; echo second >ckpt/state; mv ckpt/kept ckpt/moved; mv ckpt/other ckpt/1; mv ckpt/1 ckpt/2"
            ));
            let look = "cat ckpt/state ckpt/older ckpt/moved ckpt/2";
            for _ in 0..2 {
                assert_eq!(nodes.here(look), "second\nfirst\nkept\nother\n", "here, {is_stub}, {killed}");
                assert_eq!(nodes.there(look), "second\nfirst\nkept\nother\n", "there, {is_stub}, {killed}");
            }
            nodes.here("mv ckpt/moved ckpt/once; rm ckpt/older");
            let fresh = tempfile::Builder::new().prefix("sheaf-test-").tempdir_in("/dev/shm").expect("room for a tier");
            let seen = nodes.job("fresh", fresh.path(), "cat ckpt/state ckpt/once ckpt/2; ls ckpt/older || echo gone");
            assert_eq!(seen.text(), "second\nkept\nother\ngone\n", "from the store alone, {is_stub}, {killed}");
            nodes.scene.verify();
        }
    }
}
