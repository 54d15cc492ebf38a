//! `tests/ROWS.md` names a test for each row of the reference and each part of the task, or says why there is none. It
//! must tell the truth.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use sheaf_tests::scene::workspace;

/// How many ways to break programs the reference counts.
const FAILURES: usize = 25;
/// How many parts there are to build, and as many to show.
const PARTS: usize = 6;

fn table() -> Vec<Vec<String>> {
    let text = fs::read_to_string(workspace().join("tests/ROWS.md")).expect("tests/ROWS.md is in the repository");
    let rows = text.lines().filter(|line| {
        line.starts_with("| ")
            && !["| row ", "| part "].iter().any(|head| line.starts_with(head))
            && !line.contains("---")
    });
    rows.map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_string()).collect()).collect()
}

/// The names in a cell: what stands in backticks and has the form of a test's path.
fn names(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).filter(|name| name.contains("::")).collect()
}

fn sources(program: &str) -> Vec<PathBuf> {
    let directory = workspace().join("tests/tests").join(program);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let paths = entries.map(|entry| entry.expect("sources are readable").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// Whether a source defines a test: as a function, or as a line of a macro that makes functions.
fn defines(source: &Path, name: &str) -> bool {
    let text = fs::read_to_string(source).expect("sources are readable");
    let function = format!("fn {name}(");
    text.lines().map(str::trim).any(|line| {
        line.starts_with(&function)
            || line == name
            || line.strip_prefix(name).is_some_and(|rest| rest.starts_with(": "))
    })
}

#[test]
fn every_failure_has_a_test_or_a_reason() {
    let rows = table();
    let numbered: Vec<usize> = rows.iter().filter_map(|row| row[0].parse().ok()).collect();
    assert_eq!(numbered, (1..=FAILURES).collect::<Vec<_>>());
    for row in &rows {
        assert_eq!(row.len(), 3, "{row:?}");
        assert!(!names(&row[2]).is_empty() || row[2].starts_with("none: "), "{row:?}");
    }
}

#[test]
fn every_part_has_rows() {
    let rows = table();
    for part in (1..=PARTS).flat_map(|number| [format!("build {number}"), format!("shown {number}")]) {
        assert!(rows.iter().any(|row| row[0] == part), "no row of tests/ROWS.md is about {part}");
    }
}

/// Files and scripts that a row speaks of.
#[test]
fn named_files_exist() {
    for row in table() {
        for name in row[2].split('`').skip(1).step_by(2).filter(|name| name.contains('/') && !name.starts_with('/')) {
            assert!(workspace().join(name).exists(), "there is no {name}");
        }
    }
}

#[test]
fn named_tests_exist() {
    for name in table().iter().flat_map(|row| names(&row[2])) {
        let (program, rest) = name.split_once("::").expect("names have the form of paths");
        let test = rest.rsplit("::").next().expect("a split yields something");
        assert!(sources(program).iter().any(|source| defines(source, test)), "there is no test {name}");
    }
}

/// A test that no row names has been forgotten in the table.
#[test]
fn tests_of_lifecycle_are_named() {
    let table = table();
    let named: BTreeSet<&str> = table.iter().flat_map(|row| names(&row[2])).collect();
    for source in sources("lifecycle") {
        let module = source.file_stem().and_then(|stem| stem.to_str()).expect("sources have ASCII names");
        let text = fs::read_to_string(&source).expect("sources are readable");
        let tests = text.split("#[test]\nfn ").skip(1).filter_map(|rest| rest.split('(').next());
        let listed = text.split("rows_of! {").skip(1).flat_map(|rest| {
            let list = rest.split('}').next().unwrap_or_default();
            list.lines().skip(1).map(str::trim).filter(|line| !line.is_empty())
        });
        for test in tests.chain(listed).filter(|_| !["main", "rows"].contains(&module)) {
            let path = format!("lifecycle::{module}::{test}");
            assert!(named.contains(path.as_str()), "no row of tests/ROWS.md names {path}");
        }
    }
}
