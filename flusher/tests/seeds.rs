//! The fuzz targets' seeds, as ordinary tests: what the fuzzers start from, and what they once found.
//!
//! Each seed is also cut and changed in a few places, by a rule and not by chance, so that a failure can be repeated.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/src/lib.rs"]
mod targets;

fn each_seed(target: &str, run: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let mut names: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert!(!names.is_empty(), "no seeds in {}", directory.display());
    for name in names {
        println!("{}", name.display());
        let seed = fs::read(&name).unwrap();
        run(&seed);
        for step in 1..40 {
            let place = seed.len() * step / 40;
            run(&seed[..place]);
            let mut changed = seed.clone();
            for byte in changed.iter_mut().skip(place).take(step % 9) {
                *byte = byte.wrapping_add(step as u8).rotate_left(3);
            }
            run(&changed);
        }
    }
}

#[test]
fn aggregate() {
    each_seed("aggregate", targets::aggregate);
}

#[test]
fn messages() {
    each_seed("messages", targets::messages);
}

#[test]
fn patterns() {
    each_seed("patterns", targets::patterns);
}

#[test]
fn environment() {
    each_seed("environment", targets::environment);
}
