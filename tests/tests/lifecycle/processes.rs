//! Ways to make a process, and what they do to descriptors and environment.

use crate::{Escapes, row_with, rows_of};

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
