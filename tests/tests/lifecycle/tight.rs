//! Little stack, calls that are interrupted or cancelled, and limits that are low or huge.

use crate::{Escapes, row_with, rows_of};

rows_of! { "tight.c":
    small_stack
    checkpoint_on_term
    checkpoints_on_a_timer
    cancelled_in_open
    many_descriptors_allowed
    few_descriptors_allowed
    no_locked_memory
    little_address_space
    small_files_only
}

/// No flusher can live under such limits, and none may lift them: the program writes where it would without Sheaf.
#[test]
fn few_descriptors_for_good() {
    row_with("tight.c", "few_descriptors_for_good", Escapes::Everything, |_| ());
}

/// As above.
#[test]
fn little_address_space_for_good() {
    row_with("tight.c", "little_address_space_for_good", Escapes::Everything, |_| ());
}
