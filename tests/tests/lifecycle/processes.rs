//! Ways to make a process, and what they do to descriptors and environment.

use sheaf_tests::{Engine, Scene};

use crate::{Escapes, compile, row_with, rows_of, same_both_ways};

rows_of! { "processes.c":
    fork
    vfork
    raw_fork
    clone
    spawn
    daemon
    close_everything
    standard_streams_closed
    descriptor_in_flight
    shells
}

/// The policy is to leave the environment as the program wants it.
#[test]
fn clean_exec() {
    row_with("processes.c", "clean_exec", Escapes::Only("escaped"), |_| ());
}

/// Before Linux 4.14 the kernel does not empty memory in a new process: then it must be told from its parent otherwise.
#[test]
fn kernel_without_memory_that_fork_empties() {
    for name in ["fork", "raw_fork"] {
        let scene = Scene::new(Engine::IoUring);
        let program = compile(&scene, "processes.c", "program", &[]);
        let (mut native, mut captured) = (scene.native_command(&program), scene.preloaded_command(&program));
        native.arg(name);
        let refused = ["-f", "-o", "/dev/null", "-e", "trace=madvise", "-e", "inject=madvise:error=EINVAL"];
        let mut captured = scene.traced(&refused, captured.arg(name));
        same_both_ways(&scene, &mut native, &mut captured, Escapes::Nothing);
    }
}
