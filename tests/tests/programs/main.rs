//! Real programs that were not written for checkpoints: version control, databases, compilers, archivers, editors,
//! runtimes.
//!
//! Each is run twice, without and with Sheaf; both ways must agree on exit status, output, names and bytes. Then again
//! from the aggregates alone, with an empty stage.

use std::fs;

use sheaf_tests::scene::workspace;
use sheaf_tests::{Engine, Scene};

/// A program and what of its files cannot be the same in two directories.
struct Program {
    /// How it is run; the phase is added: `write`, then `restart`.
    command: &'static [&'static str],
    /// The file of this directory that it reads, copied beside `ckpt`.
    input: &'static str,
    /// Ends of names whose bytes tell inode numbers, times or random numbers: only kind, mode and name are compared
    /// with the native ones.
    private: &'static [&'static str],
}

/// See the module.
fn both_ways(program: &Program) {
    let scene = Scene::new(Engine::IoUring);
    for side in [scene.native_directory(), scene.captured_directory()] {
        let source = workspace().join("tests/tests/programs").join(program.input);
        fs::copy(source, side.join(program.input)).expect("the input is there");
    }
    for phase in ["write", "restart"] {
        let command: Vec<_> = program.command.iter().copied().chain([program.input, phase]).collect();
        let native = scene.native(&command).expect_success();
        let captured = scene.preloaded(&command);
        assert_eq!(captured.status, native.status, "{phase}: {}", captured.describe());
        assert_eq!(captured.text(), native.text(), "{phase}: {}", captured.describe());
        let written = scene.captured_snapshot();
        assert_eq!(shared(program, &written), shared(program, &scene.native_snapshot()), "after {phase}");
        scene.drain();
        scene.verify();
        scene.wipe_stage();
        assert_eq!(scene.captured_snapshot(), written, "what the aggregates yield after {phase}");
    }
    scene.drain();
}

/// A snapshot without the sizes and bytes of private files.
fn shared(program: &Program, snapshot: &str) -> String {
    let is_private = |line: &str| program.private.iter().any(|end| line.ends_with(end));
    let shorten = |line: &str| {
        let words: Vec<_> = line.splitn(5, ' ').collect();
        match words[..] {
            ["f", mode, _, _, name] if is_private(line) => format!("f {mode} {name}\n"),
            _ => format!("{line}\n"),
        }
    };
    snapshot.lines().map(shorten).collect()
}

macro_rules! programs {
    ($($name:ident: $command:expr, $input:expr, $private:expr;)*) => { $(
        #[test]
        fn $name() {
            both_ways(&Program { command: &$command, input: $input, private: &$private });
        }
    )* };
}

programs! {
    coreutils_and_tar: ["bash"], "tools.sh", [];
    git: ["bash"], "git.sh", ["/index"];
    sqlite: ["bash"], "sqlite.sh", ["-wal", "-shm", "-journal"];
    gcc_and_make: ["bash"], "build.sh", [];
    zip_and_other_archivers: ["bash"], "archives.sh", [];
    vim: ["bash"], "editor.sh", [];
    perl: ["perl"], "states.pl", [];
    node: ["node"], "states.js", [];
    java: ["java"], "States.java", [];
    netcdf: ["bash"], "grids.sh", [];
    torch: ["python3"], "networks.py", [" old.pt", " script.pt"];
    stress_ng: ["bash"], "stress.sh", [];
}
