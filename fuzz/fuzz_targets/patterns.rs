//! See `patterns` in ../src/lib.rs.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sheaf_fuzz::patterns(input));
