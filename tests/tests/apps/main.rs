//! Real programs, twice on the same input, without and with Sheaf; then again from the aggregate alone.
//!
//! Both ways must agree on exit status, output, names and bytes, through both of the flusher's engines.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sheaf_tests::scene::workspace;
use sheaf_tests::{Engine, Finished, Scene, process};

/// A program, its input, and how it is run for the first and for the second time.
struct Program {
    /// Files of `tests/apps` that it reads; copied beside `ckpt`.
    inputs: &'static [&'static str],
    /// More input, made on the spot.
    prepare: fn(&Path),
    /// How it is built, in the scene's root; the sources lie in `native`.
    build: &'static [&'static str],
    /// The first run.
    write: &'static [&'static str],
    /// The second run.
    restart: &'static [&'static str],
    /// What of its output must be equal.
    output: fn(&Finished) -> String,
}

const PROGRAM: Program =
    Program { inputs: &[], prepare: |_| (), build: &[], write: &[], restart: &[], output: Finished::text };

/// Both ways through both phases; see the module.
fn whole_way(engine: Engine, program: &Program) {
    let scene = Scene::new(engine);
    set_up(&scene, program);

    same_both_ways(&scene, program, program.write);
    let written = scene.native_snapshot();
    assert_eq!(scene.captured_snapshot(), written, "what a program sees after the first run");
    scene.drain();
    assert!((1..=2).contains(&scene.store_aggregates().len()), "one aggregate; two where it was rolled");
    scene.assert_no_captured_files_on_pfs();
    scene.verify();

    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), written, "what the aggregate alone yields");
    same_both_ways(&scene, program, program.restart);
    let rewritten = scene.native_snapshot();
    assert_eq!(scene.captured_snapshot(), rewritten, "what a program sees after the restart");
    scene.drain();
    assert!((1..=3).contains(&scene.store_aggregates().len()), "what is dead is reclaimed");
    scene.assert_no_captured_files_on_pfs();
    scene.verify();

    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), rewritten, "what the aggregates yield after both runs");
    scene.drain();
}

fn set_up(scene: &Scene, program: &Program) {
    for side in [scene.native_directory(), scene.captured_directory()] {
        for input in program.inputs {
            fs::copy(workspace().join("tests/apps").join(input), side.join(input)).expect("the input is there");
        }
        (program.prepare)(&side);
    }
    if let [builder, arguments @ ..] = program.build {
        let mut command = scene.native_command(builder);
        process::run(command.args(arguments).current_dir(scene.root())).expect_success();
    }
}

fn same_both_ways(scene: &Scene, program: &Program, phase: &[&str]) {
    let native = scene.native(phase).expect_success();
    let captured = scene.preloaded(phase);
    assert_eq!(captured.status, native.status, "{}", captured.describe());
    assert_eq!((program.output)(&captured), (program.output)(&native), "{}", captured.describe());
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

/// A directory for rsync: small, large and empty files, a link, modes and times of their own.
fn rsync_source(side: &Path) {
    let source = side.join("source");
    fs::create_dir_all(source.join("sub/deeper")).expect("the scene is ours");
    for (name, size, mode) in
        [("one", 10, 0o644), ("two", 700_000, 0o600), ("sub/three", 40_000, 0o755), ("sub/deeper/none", 0, 0o444)]
    {
        let bytes: Vec<u8> = (0..size).map(|index: u32| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        fs::write(source.join(name), bytes).expect("the scene is ours");
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(mode)).expect("the scene is ours");
    }
    std::os::unix::fs::symlink("sub/three", source.join("link")).expect("the scene is ours");
}

macro_rules! over_both_engines {
    ($($name:ident: $program:expr;)*) => { $(
        mod $name {
            use super::*;

            #[test]
            fn io_uring() {
                whole_way(Engine::IoUring, &$program);
            }

            #[test]
            fn pwrite() {
                whole_way(Engine::Pwrite, &$program);
            }
        }
    )* };
}

macro_rules! on_two_ranks {
    ($($argument:expr),*) => {
        &["mpirun", "-n", "2", "--oversubscribe", "--bind-to", "none", $($argument),*]
    };
}

over_both_engines! {
    lammps_files_of_ranks: Program {
        inputs: &["lammps-liquid.in", "lammps-ranks.in", "lammps-ranks-restart.in"],
        write: on_two_ranks!("lmp", "-log", "none", "-in", "lammps-ranks.in"),
        restart: on_two_ranks!("lmp", "-log", "none", "-in", "lammps-ranks-restart.in"),
        output: thermo,
        ..PROGRAM
    };
    lammps_two_files_in_turn: Program {
        inputs: &["lammps-liquid.in", "lammps-toggle.in", "lammps-toggle-restart.in"],
        write: on_two_ranks!("lmp", "-log", "none", "-in", "lammps-toggle.in"),
        restart: on_two_ranks!("lmp", "-log", "none", "-in", "lammps-toggle-restart.in"),
        output: thermo,
        ..PROGRAM
    };
    mpi_one_file_for_each_rank: Program {
        inputs: &["ranks.c"],
        build: &["mpicc", "-O1", "-o", "ranks", "native/ranks.c"],
        write: on_two_ranks!("../ranks", "write"),
        restart: on_two_ranks!("../ranks", "restart"),
        ..PROGRAM
    };
    fortran_units: Program {
        inputs: &["units.f90"],
        build: &["gfortran", "-O1", "-o", "units", "native/units.f90"],
        write: &["../units", "write"],
        restart: &["../units", "restart"],
        ..PROGRAM
    };
    python: Program {
        inputs: &["checkpoints.py"],
        write: &["python3", "checkpoints.py", "write"],
        restart: &["python3", "checkpoints.py", "restart"],
        ..PROGRAM
    };
    python_multiprocessing: Program {
        inputs: &["pool.py"],
        write: &["python3", "pool.py", "write"],
        restart: &["python3", "pool.py", "restart"],
        ..PROGRAM
    };
    hdf5: Program {
        inputs: &["fields_h5.py"],
        write: &["python3", "fields_h5.py", "write"],
        restart: &["python3", "fields_h5.py", "restart"],
        ..PROGRAM
    };
    bash_script: Program {
        inputs: &["job.sh"],
        write: &["bash", "job.sh", "write"],
        restart: &["bash", "job.sh", "restart"],
        ..PROGRAM
    };
    rsync: Program {
        inputs: &["rsync.sh"],
        prepare: rsync_source,
        write: &["bash", "rsync.sh", "write"],
        restart: &["bash", "rsync.sh", "restart"],
        ..PROGRAM
    };
}
