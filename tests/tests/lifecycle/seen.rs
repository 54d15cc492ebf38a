//! What a program can see of its files beside their bytes: names, error numbers, descriptor flags.

use crate::rows_of;

rows_of! { "seen.c":
    names
    errno_is_kept
    direct
    flags
}
