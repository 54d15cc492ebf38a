//! Prints the snapshot of a directory. A program of its own, so that it can run under the preloaded library.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1) else {
        eprintln!("usage: snapshot DIRECTORY");
        return ExitCode::from(2);
    };
    match sheaf_tests::snapshot::take(Path::new(&directory)) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("snapshot: {error}");
            ExitCode::FAILURE
        }
    }
}
