//! Ways to end with work in hand: buffers, descriptors, mappings and rings that are still open.

use crate::rows_of;

rows_of! { "endings.c":
    stream_left_open
    immediate_exit
    abort
    kill
    quick_exit
    exit_handler
    mapped_after_close
    ring_holds_the_file
}
