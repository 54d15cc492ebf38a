//! Parallel HDF5 over nodes: what all ranks write together by MPI-IO is left alone, what each writes by itself is
//! captured.

use std::fs;

use sheaf_tests::scene::workspace;
use sheaf_tests::{Finished, process};

use super::{RUN, Site};

const PYTHON: &str = "/usr/bin/python3";

fn write(site: &Site, options: &[&str], component: &str) -> Finished {
    let srun = ["srun", "--chdir=/mnt/shared", "--mpi=pmix", "-N2", "--ntasks-per-node=2", "-w", "n0,n1"];
    let run = [&RUN[..4], options, &RUN[4..]].concat();
    let component = format!("OMPI_MCA_io={component}");
    site.cluster.run(&[&srun[..], &run, &["env", &component, PYTHON, "parallel.py", "write"]].concat())
}

fn read(site: &Site, launcher: &[&str]) -> Finished {
    let srun = ["srun", "--chdir=/mnt/shared", "-N1", "-w", "n3"];
    site.cluster.run(&[&srun[..], launcher, &[PYTHON, "parallel.py", "read"]].concat())
}

/// By itself, and by the user's word. A rank that does not find the file that another one has made would wait for ever.
#[test]
fn parallel_hdf5_is_left_alone() {
    let site = Site::new("");
    for directory in [site.scene.native_directory(), site.scene.captured_directory()] {
        fs::copy(workspace().join("tests/apps/parallel.py"), directory.join("parallel.py")).expect("the scene is ours");
    }
    let mut native = site.scene.native_command("mpirun");
    native.args(["-n", "4", "--oversubscribe", "--bind-to", "none", PYTHON, "parallel.py", "write"]);
    process::run(&mut native).expect_success();
    let mut native = site.scene.native_command(PYTHON);
    let expected = process::run(native.args(["parallel.py", "read"])).expect_success().text();
    // Open MPI's two ways of MPI-IO; the second time the file is there.
    let exclude = ["--exclude", "/mnt/shared/ckpt/shared.h5*"];
    for (options, component) in [(&[][..], "ompio"), (&["--durable", "close"], "romio321"), (&exclude, "ompio")] {
        write(&site, options, component).expect_success();
        let names = fs::read_dir(site.scene.checkpoints()).expect("it is there");
        let mut names: Vec<_> = names.map(|entry| entry.expect("it is ours").file_name()).collect();
        names.sort();
        assert_eq!(names, [".sheaf", "shared.h5"], "{options:?}: the ranks' own files are captured");
        site.wipe_stages();
        assert_eq!(read(&site, &RUN).expect_success().text(), expected, "{options:?}");
        assert_eq!(read(&site, &[]).expect_success().text(), expected, "{options:?}: it lies where it was written");
        let own = |node: &str, rank: usize| {
            let srun = ["srun", "--chdir=/mnt/shared", "-N1", "-w", node];
            let path = format!("ckpt/rank-{rank}");
            site.cluster.run(&[&srun[..], &RUN, &["cat", &path]].concat()).expect_success().text()
        };
        assert_eq!([own("n2", 0), own("n3", 3)], ["of rank 0\n", "of rank 3\n"]);
        site.scene.verify();
    }
}
