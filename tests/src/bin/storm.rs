//! Many processes that write and rename checkpoint files at once.
//!
//! `storm run DIRECTORY PROCESSES FILES` writes them, and reads each back at once; `storm check` with the same
//! arguments finds exactly what must be there afterwards. Any wrong byte or name ends it with a panic, so with a
//! failing status.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [task, directory, processes, files] = arguments.as_slice() else {
        panic!("usage: storm run|check|INDEX DIRECTORY PROCESSES FILES");
    };
    let count = |text: &str| text.parse::<usize>().expect("a number");
    let directory = Path::new(directory);
    match task.as_str() {
        "run" => run(directory, processes, files),
        "check" => check(directory, count(processes), count(files)),
        index => work(directory, count(index), count(files)),
    }
}

/// Starts all processes, lets them go at one moment, and wants each to succeed.
fn run(directory: &Path, processes: &str, files: &str) {
    let program = std::env::current_exe().expect("a running program has a path");
    let start = |index: usize| {
        let mut command = Command::new(&program);
        command.arg(index.to_string()).arg(directory).args([processes, files]);
        command.stdin(Stdio::piped()).spawn().expect("processes can be started")
    };
    let mut children: Vec<_> = (0..processes.parse().expect("a number")).map(start).collect();
    // The end of its input is what each is waiting for.
    children.iter_mut().for_each(|child| drop(child.stdin.take()));
    let failed = children.iter_mut().filter_map(|child| {
        let status = child.wait().expect("the child is ours");
        (!status.success()).then_some(status)
    });
    let failed: Vec<_> = failed.collect();
    assert!(failed.is_empty(), "{} processes failed: {failed:?}", failed.len());
}

fn work(directory: &Path, process: usize, files: usize) {
    let mut go = Vec::new();
    std::io::stdin().read_to_end(&mut go).expect("the parent closes the pipe");
    for file in 0..files {
        let bytes = content(process, file);
        let temporary = directory.join(format!(".part-{process}"));
        fs::write(&temporary, &bytes).expect("a temporary file");
        fs::rename(&temporary, target(directory, process, file)).expect("a rename");
        assert!(fs::symlink_metadata(&temporary).is_err(), "{} is still there", temporary.display());
        expect(&target(directory, process, file), &bytes);

        let latest = directory.join(format!("latest-{process}"));
        fs::write(&temporary, &bytes).expect("a temporary file");
        fs::rename(&temporary, &latest).expect("a rename over an older file");
        expect(&latest, &bytes);

        // One name that all want: whoever wins, it is whole.
        fs::write(&temporary, [process as u8; 5000]).expect("a temporary file");
        fs::rename(&temporary, directory.join("contest")).expect("a rename over somebody's file");
        expect_uniform(&directory.join("contest"));
    }
}

fn check(directory: &Path, processes: usize, files: usize) {
    let mut names = BTreeSet::from(["contest".to_string()]);
    for process in 0..processes {
        names.insert(format!("latest-{process}"));
        expect(&directory.join(format!("latest-{process}")), &content(process, files - 1));
        for file in 0..files {
            let path = target(directory, process, file);
            names.insert(path.file_name().expect("it has one").to_str().expect("plain names").to_string());
            expect(&path, &content(process, file));
        }
    }
    expect_uniform(&directory.join("contest"));
    let entries = fs::read_dir(directory).expect("the directory is there");
    let found: BTreeSet<_> = entries.map(|e| e.expect("readable").file_name().into_string().expect("plain")).collect();
    assert_eq!(found, names);
}

fn target(directory: &Path, process: usize, file: usize) -> PathBuf {
    directory.join(format!("state-{process}-{file}"))
}

/// Mostly small, now and then large, sometimes empty; every byte depends on whose it is.
fn content(process: usize, file: usize) -> Vec<u8> {
    let length = match (process + file) % 16 {
        0 => 0,
        1 => 150_000 + file,
        other => other * 300 + process,
    };
    (0..length).map(|index| (index * 31 + process * 7 + file * 13 + index / 256) as u8).collect()
}

fn expect(path: &Path, bytes: &[u8]) {
    let found = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(found == bytes, "{}: wrong bytes, {} of them where {} belong", path.display(), found.len(), bytes.len());
}

fn expect_uniform(path: &Path) {
    let found = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(found.len() == 5000 && found.iter().all(|byte| *byte == found[0]), "{} is torn", path.display());
}
