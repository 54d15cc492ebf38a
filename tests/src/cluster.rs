//! A Slurm cluster of a test's own: `scripts/slurm-cluster.sh`, whose nodes see one directory of the test as
//! /mnt/shared and the built library and program in /mnt/installed. Needs root.
//!
//! It must share nothing with another cluster, and be gone after the test, whatever happens.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::process::{self, Finished, Running};
use crate::scene::{artefact, workspace};

/// See the module.
pub struct Cluster {
    state: TempDir,
}

impl Cluster {
    /// Starts nodes `n0`, `n1`, ... with more lines for slurm.conf.
    pub fn new(nodes: usize, shared: &Path, configuration: &str) -> Cluster {
        Cluster::start_with(nodes, shared, &[("SLURM_EXTRA", configuration)])
    }

    /// Starts nodes that have `/mnt/network`, too: a file system of this kind, see `scripts/network-file-system.sh`.
    pub fn with_network(nodes: usize, shared: &Path, kind: &str) -> Cluster {
        Cluster::start_with(nodes, shared, &[("NETWORK", kind)])
    }

    fn start_with(nodes: usize, shared: &Path, variables: &[(&str, &str)]) -> Cluster {
        let state = tempfile::Builder::new().prefix("sheaf-cluster-").tempdir().expect("room for the cluster's state");
        // Users of the cluster reach the socket of munge in it.
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(state.path(), everybody).expect("the directory is ours");
        let cluster = Cluster { state };
        let library = artefact("libsheaf.so");
        let mut command = cluster.command("up");
        command.arg(nodes.to_string()).envs(variables.iter().copied()).env("SHARED", shared);
        command.env("INSTALLED", library.parent().expect("artefacts lie in a directory"));
        process::run(command.env("OWNER", std::process::id().to_string())).expect_success();
        cluster
    }

    /// Starts a command beside the controller.
    pub fn start(&self, arguments: &[&str]) -> Running {
        process::start(self.command("run").args(arguments))
    }

    /// Runs a command beside the controller: srun, scancel, squeue.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        self.start(arguments).finish()
    }

    /// Runs a command on a node, outside of any job.
    pub fn on(&self, node: &str, arguments: &[&str]) -> Finished {
        process::run(self.command("on").arg(node).args(arguments))
    }

    /// A node is gone at once, with its memory and its disk.
    pub fn crash(&self, node: &str) {
        process::run(self.command("crash").arg(node)).expect_success();
    }

    /// Starts a node again that has crashed.
    pub fn boot(&self, node: &str) {
        process::run(self.command("boot").arg(node)).expect_success();
    }

    /// The cluster's own directory, in which all nodes see the same.
    pub fn state(&self) -> &Path {
        self.state.path()
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(workspace().join("scripts/slurm-cluster.sh"));
        for (variable, _) in std::env::vars_os() {
            let text = variable.to_string_lossy();
            if ["SHEAF_", "SLURM_", "LD_PRELOAD"].iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&variable);
            }
        }
        command.env("LC_ALL", "C.UTF-8").arg(self.state.path()).arg(name);
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let down = process::run(&mut self.command("down"));
        if !std::thread::panicking() {
            down.expect_success();
        }
    }
}
