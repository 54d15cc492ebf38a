//! Ways to live and to die, companions in the process, and strange userlands: the same with Sheaf as without.
//!
//! `tests/ROWS.md` says which test shows which row of the reference; [`rows`] holds it to that.

mod company;
mod endings;
mod priority;
mod processes;
mod rows;
mod seen;
mod strangers;
mod tight;
mod userlands;

use std::path::{Path, PathBuf};
use std::process::Command;

use sheaf_tests::scene::workspace;
use sheaf_tests::{Engine, Finished, Scene, process};

/// What a scene's captured side must look like in the end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Escapes {
    /// Everything was captured.
    Nothing,
    /// This one name is on the parallel file system, because no preloaded library could know of it.
    Only(&'static str),
    /// Nothing was captured, because no flusher can live.
    Everything,
}

/// Compiles a program of `tests/programs` into the scene's root.
pub fn compile(scene: &Scene, source: &str, output: &str, flags: &[&str]) -> PathBuf {
    compile_with(scene.native_command("gcc"), scene, source, output, flags)
}

/// The same, with another compiler.
pub fn compile_with(mut compiler: Command, scene: &Scene, source: &str, output: &str, flags: &[&str]) -> PathBuf {
    let (programs, made) = (workspace().join("tests/programs"), scene.root().join(output));
    compiler.args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"]).arg(&made);
    process::run(compiler.arg(programs.join(source)).args(flags)).expect_success();
    made
}

/// One row of a program: both ways, then from the aggregate alone.
pub fn row(source: &str, name: &str) {
    row_with(source, name, Escapes::Nothing, |_| ());
}

/// The same, with something changed in both commands.
pub fn row_with(source: &str, name: &str, escapes: Escapes, change: impl Fn(&mut Command)) {
    let scene = Scene::new(Engine::IoUring);
    let program = compile(&scene, source, "program", &[]);
    let (mut native, mut captured) = (scene.native_command(&program), scene.preloaded_command(&program));
    change(native.arg(name));
    change(captured.arg(name));
    same_both_ways(&scene, &mut native, &mut captured, escapes);
}

/// Runs both; then everything must be equal now, and after the stage is lost.
pub fn same_both_ways(scene: &Scene, native: &mut Command, captured: &mut Command, escapes: Escapes) -> Finished {
    let (native, captured) = (process::run(native), process::run(captured));
    assert_eq!(captured.status, native.status, "natively:\n{}\n\n{}", native.describe(), captured.describe());
    assert_eq!(captured.text(), native.text(), "{}", captured.describe());
    let written = scene.native_snapshot();
    assert!(!written.is_empty(), "the program wrote nothing: {}", native.describe());
    assert_eq!(scene.captured_snapshot(), written, "what a program sees afterwards: {}", captured.describe());
    assert_comes_back(scene, &written, escapes);
    captured
}

/// Publishes everything, loses the stage, and compares what the aggregate yields.
pub fn assert_comes_back(scene: &Scene, written: &str, escapes: Escapes) {
    scene.drain();
    match escapes {
        Escapes::Nothing => scene.assert_no_captured_files_on_pfs(),
        Escapes::Only(name) => assert_eq!(strays(scene), [scene.checkpoints().join(name)], "what was not captured"),
        Escapes::Everything => assert!(!strays(scene).is_empty(), "captured, although no flusher can live"),
    }
    if escapes != Escapes::Everything {
        scene.verify();
    }
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), written, "what the aggregate alone yields");
    scene.drain();
}

/// Files on the real side of the checkpoint directory, the store's aside.
fn strays(scene: &Scene) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(scene.checkpoints()).expect("the scene is ours");
    let paths = entries.map(|entry| entry.expect("the scene is ours").path());
    paths.filter(|path| path.is_file() && !path.starts_with(scene.store())).collect()
}

/// A list of libraries to preload, in this order.
pub fn preload(command: &mut Command, libraries: &[&Path]) {
    let joined: Vec<_> = libraries.iter().map(|library| library.as_os_str()).collect();
    command.env("LD_PRELOAD", joined.join(std::ffi::OsStr::new(":")));
}

/// Tests that run one row of a program of `tests/programs`.
#[macro_export]
macro_rules! rows_of {
    ($source:literal: $($name:ident)*) => { $(
        #[test]
        fn $name() {
            $crate::row($source, stringify!($name));
        }
    )* };
}
