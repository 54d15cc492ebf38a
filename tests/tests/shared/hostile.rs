//! Files that nodes share, and that somebody has changed, with every checksum right, or cut off: nobody dies, hangs, or
//! writes where it should not, what is read is what was written, and whoever publishes next loses nothing.

use std::fs;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use sheaf_tests::forge::{BLOCK, change_header, change_range, range_number, ranges};
use sheaf_tests::scene::artefact;
use sheaf_tests::{Engine, process};

use super::Nodes;

/// Every file, and the last of the numbers in it.
const FILES: [(&str, u32); 4] = [("a", 9000), ("b", 8000), ("c", 70_000), ("d", 500)];

fn numbers(last: u32) -> Vec<u8> {
    (1..=last).flat_map(|number| format!("{number}\n").into_bytes()).collect()
}

/// A shared file with ranges of two nodes in turn.
fn written() -> (Nodes, PathBuf, Vec<u8>) {
    let nodes = Nodes::new(Engine::IoUring, "shared:1");
    for (index, (name, last)) in FILES.iter().enumerate() {
        nodes.run(["one", "two"][index % 2], &format!("seq {last} >ckpt/{name}"));
    }
    let shared = nodes.shared_files().remove(0);
    let bytes = fs::read(&shared).expect("the scene is ours");
    (nodes, shared, bytes)
}

/// `sheaf` with little memory: what is asked for must follow from what is there. Yields the exit status.
fn tool(nodes: &Nodes, arguments: &[&str], paths: &[&Path], what: &str) -> i32 {
    let mut command = nodes.scene.preloaded_command("prlimit");
    command.env_remove("LD_PRELOAD").arg("--as=2147483648").arg(artefact("sheaf")).args(arguments).args(paths);
    let finished = process::run(&mut command);
    finished.status.code().unwrap_or_else(|| panic!("{what}: {}", finished.describe()))
}

/// Names of the scene's root, one of them left away.
fn names(nodes: &Nodes, but: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(nodes.scene.root()).expect("the scene is ours").flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path != but).collect();
    names.sort();
    names
}

/// Everything that reads the file, and two nodes that go on, one of which has written to it before.
fn assert_survived(nodes: &Nodes, what: &str) {
    let (store, out) = (nodes.scene.store(), nodes.scene.root().join("out"));
    let before = names(nodes, &out);
    for arguments in [&["verify"][..], &["ls"], &["cuts"]] {
        tool(nodes, arguments, &[&store], what);
    }
    for salvage in [&["extract", "-C"][..], &["extract", "--salvage", "-C"]] {
        tool(nodes, salvage, &[&out, &store], what);
        let place = out.join(nodes.scene.checkpoints().strip_prefix("/").expect("absolute"));
        for (name, last) in FILES {
            let read = fs::read(place.join(name));
            assert!(read.is_err() || read.is_ok_and(|bytes| bytes == numbers(last)), "{what}: {name}, {salvage:?}");
        }
        let _ = fs::remove_dir_all(&out);
    }
    assert_eq!(names(nodes, &out), before, "{what}: outside of the directory");
    // What is there is right, or refused, or not shown.
    let look: String = FILES
        .iter()
        .map(|(name, last)| format!("[ ! -e ckpt/{name} ] || ! cat ckpt/{name} >read || seq {last} | cmp - read; "))
        .collect();
    nodes.seen_in_the_store(&format!("set -e; {look}"));
    for node in ["one", "three"] {
        nodes.run(node, &format!("seq 20000 >ckpt/{node}"));
    }
    for node in ["one", "three"] {
        nodes.seen_in_the_store(&format!("seq 20000 | cmp - ckpt/{node}"));
    }
}

/// Has everybody use the file with other bytes; afterwards it is as it was written, and nothing else is in the store.
fn survive(nodes: &Nodes, (shared, whole): (&Path, &[u8]), bytes: &[u8], what: &str) {
    fs::write(shared, bytes).expect("the scene is ours");
    assert_survived(nodes, what);
    nodes.scene.kill_everything();
    nodes.scene.wipe_stage();
    for path in nodes.scene.store_aggregates() {
        fs::remove_file(path).expect("the scene is ours");
    }
    fs::write(shared, whole).expect("the scene is ours");
}

#[test]
fn ranges_that_say_what_cannot_be() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (nodes, shared, whole) = written();
    let places = ranges(&whole);
    assert!(places.len() > 2 * FILES.len(), "{places:?}");
    let words = [0, 1, 4096, 8192, 12_288, whole.len() as u64, 1 << 40, (1 << 62) + 4096, u64::MAX - 4095, u64::MAX];
    let mut cases: Vec<(&str, u64)> = Vec::new();
    for key in ["first", "offset", "start", "length", "sequence"] {
        cases.extend(words.choose_multiple(&mut random, 2).map(|number| (key, *number)));
    }
    for (key, number) in cases {
        let at = *places.choose(&mut random).expect("there are some");
        let mut bytes = whole.clone();
        change_range(&mut bytes[at..at + BLOCK], key, &number.to_string());
        if key == "length" || key == "start" {
            // Tar readers are told the same.
            change_header(&mut bytes[at..at + 512], &str::to_owned, number.saturating_sub(512));
        }
        survive(&nodes, (&shared, &whole), &bytes, &format!("seed {seed}, {key} {number} at byte {at}"));
    }
}

#[test]
fn ranges_that_are_somebody_elses() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (nodes, shared, whole) = written();
    let places = ranges(&whole);
    let two = |random: &mut StdRng| {
        let chosen: Vec<usize> = places.choose_multiple(random, 2).copied().collect();
        (chosen[0], chosen[1])
    };
    let uuid_of = |at: usize| {
        let text = String::from_utf8_lossy(&whole[at..at + BLOCK]).into_owned();
        text.lines().find_map(|line| line.strip_prefix("uuid ").map(str::to_owned)).expect("each has one")
    };
    for round in 0..6 {
        let (one, other) = two(&mut random);
        let mut bytes = whole.clone();
        let what = match round {
            0 => {
                change_range(&mut bytes[one..one + BLOCK], "uuid", &uuid_of(other));
                "another part's uuid"
            }
            1 => {
                change_range(&mut bytes[one..one + BLOCK], "file", &"ab".repeat(16));
                "another file's uuid"
            }
            2 => {
                bytes.copy_within(other..other + BLOCK, one);
                "another range's header"
            }
            3 | 4 => {
                let word = if round == 3 { "void" } else { "reserved" };
                let size = range_number(&whole[one..one + BLOCK], "length").expect("it is whole") - 512;
                let name = |name: &str| name.replacen("range", word, 1);
                change_header(&mut bytes[one..one + 512], &name, size);
                "another state"
            }
            _ => {
                // Thousands of parts that hold nothing.
                let end = bytes.len();
                let announcement = whole[places[0]..places[0] + BLOCK].to_vec();
                for number in 0..5000 {
                    let mut block = announcement.clone();
                    let at = end + number * BLOCK;
                    change_range(&mut block, "uuid", &format!("{number:032x}"));
                    change_range(&mut block, "first", &at.to_string());
                    change_range(&mut block, "offset", &at.to_string());
                    let name = |_: &str| format!(".sheaf/range/{:08x}-0000000000", 0);
                    change_header(&mut block, &name, 4096 - 512);
                    bytes.extend_from_slice(&block);
                }
                bytes.resize(bytes.len() + BLOCK, 0);
                "thousands of parts"
            }
        };
        survive(&nodes, (&shared, &whole), &bytes, &format!("seed {seed}, {what}: {one}, {other}"));
    }
}

/// Cut off anywhere: all that lies before is read, and nothing is written over it.
#[test]
fn a_shared_file_that_is_cut_off() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (nodes, shared, whole) = written();
    let places = ranges(&whole);
    let mut lengths = vec![0, 1, BLOCK / 2, BLOCK, places[2], places[3] + BLOCK, whole.len() - BLOCK];
    lengths.extend((0..3).map(|_| random.random_range(0..whole.len())));
    for length in lengths {
        let before = places.iter().filter(|at| **at < length).count();
        survive(
            &nodes,
            (&shared, &whole),
            &whole[..length],
            &format!("seed {seed}, {length} bytes of {}, {before} ranges", whole.len()),
        );
    }
}
