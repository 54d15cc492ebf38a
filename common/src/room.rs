//! How much room a stage must have: one rule for the library, which asks before it captures, and for the flusher, which
//! evicts.

/// Room that is kept for what no hook sees, in bytes: a stream's own writes, stores into mappings.
const RESERVE_MAX: u64 = 1 << 30;

/// What must be free in a stage on a file system of this size before another file is captured, in bytes.
pub fn reserve_bytes(total_bytes: u64) -> u64 {
    (total_bytes / 8).min(RESERVE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_a_part_of_a_small_stage_and_bounded_in_a_large_one() {
        assert_eq!(reserve_bytes(64 << 20), 8 << 20);
        assert_eq!(reserve_bytes(1 << 40), 1 << 30);
        assert_eq!(reserve_bytes(0), 0);
    }
}
