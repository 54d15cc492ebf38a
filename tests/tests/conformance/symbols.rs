//! Every function that this machine's C library exports is hooked, or stands in `symbols.txt` with the reason why not.
//!
//! Nothing here may take a name for granted: what neither list knows fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use sheaf_tests::process;
use sheaf_tests::scene::{artefact, workspace};

const REVIEWED: &str = include_str!("symbols.txt");

/// The functions that a library exports, without those that only belong to another part of the same C library.
fn functions(library: &Path) -> BTreeSet<String> {
    let listing = process::run(Command::new("nm").args(["-D", "--defined-only"]).arg(library)).expect_success().text();
    let fields = listing.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields
        .filter_map(|fields| match fields[..] {
            [_, "T" | "W" | "i", name] if !name.ends_with("@GLIBC_PRIVATE") => Some(name),
            _ => None,
        })
        .map(|name| name.split('@').next().unwrap_or(name).to_string())
        .collect()
}

/// The C library that programs get: the one that this test was started with.
fn c_library() -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("every process has a map");
    let path = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("/libc.so.6"));
    path.expect("this test is linked to the C library").to_string()
}

/// The reviewed names, by reason.
fn reviewed() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut reason = None;
    for line in REVIEWED.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(text) => {
                assert!(groups.insert(text, Vec::new()).is_none(), "the reason '{text}' stands there twice");
                reason = Some(text);
            }
            None => {
                let reason = reason.unwrap_or_else(|| panic!("{line} stands above the first reason"));
                groups.entry(reason).or_default().push(line);
            }
        }
    }
    groups
}

#[test]
fn every_function_is_hooked_or_reviewed() {
    let hooked = functions(&artefact("libsheaf.so"));
    let reviewed: BTreeSet<String> = reviewed().into_values().flatten().map(str::to_string).collect();
    let exported = functions(Path::new(&c_library()));
    assert!(exported.contains("open") && exported.contains("malloc"), "this is no C library: {}", c_library());
    let unknown: Vec<_> = exported.iter().filter(|name| !hooked.contains(*name) && !reviewed.contains(*name)).collect();
    assert!(unknown.is_empty(), "neither hooked nor in symbols.txt: {unknown:?}");
    let both: Vec<_> = hooked.intersection(&reviewed).collect();
    assert!(both.is_empty(), "hooked, and yet in symbols.txt: {both:?}");
}

#[test]
fn the_reviewed_list_is_in_order() {
    let mut seen = BTreeSet::new();
    for (reason, names) in reviewed() {
        assert!(!names.is_empty(), "'{reason}' is the reason for nothing");
        for pair in names.windows(2) {
            assert!(pair[0] < pair[1], "'{}' stands above '{}' in '{reason}'", pair[0], pair[1]);
        }
        for name in names {
            assert!(seen.insert(name), "{name} stands there twice");
        }
    }
}

/// Every text below a directory.
fn texts_below(directory: &Path, texts: &mut Vec<String>) {
    for entry in fs::read_dir(directory).expect("sources are readable") {
        let path = entry.expect("sources are readable").path();
        if path.is_dir() {
            texts_below(&path, texts);
        } else if let Ok(text) = fs::read_to_string(&path) {
            texts.push(text);
        }
    }
}

/// A hook that no program of the tests names is one that nobody has tried.
#[test]
fn every_hooked_name_is_in_a_program_of_the_tests() {
    let mut texts = Vec::new();
    for directory in ["tests/apps", "tests/programs", "tests/src", "tests/tests/conformance", "tests/tests/programs"] {
        texts_below(&workspace().join(directory), &mut texts);
    }
    let is_part = |letter: char| !letter.is_ascii_alphanumeric() && letter != '_';
    let words: BTreeSet<&str> = texts.iter().flat_map(|text| text.split(is_part)).collect();
    let hooked = functions(&artefact("libsheaf.so"));
    let untried: Vec<_> =
        hooked.iter().filter(|name| !name.starts_with("sheaf_") && !words.contains(name.as_str())).collect();
    assert!(untried.is_empty(), "hooked, and in no program of the tests: {untried:?}");
}
