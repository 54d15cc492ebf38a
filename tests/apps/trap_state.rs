//! A statically linked Rust program that writes and reads checkpoints in `ckpt`, and prints what it saw.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

fn show(directory: &Path) {
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let metadata = fs::symlink_metadata(&path).unwrap();
        println!("{} directory {} link {}", path.display(), metadata.is_dir(), metadata.is_symlink());
        if metadata.is_dir() {
            show(&path);
        } else {
            let bytes = fs::read(&path).unwrap();
            let sum = bytes.iter().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            println!("  {} bytes, {sum:x}", bytes.len());
        }
    }
}

fn write(directory: &Path) {
    fs::create_dir_all(directory.join("a/b/c")).unwrap();
    let ranks: Vec<_> = (0..4)
        .map(|rank| {
            let path = directory.join(format!("a/rank-{rank}"));
            std::thread::spawn(move || {
                for step in 0..20u8 {
                    let temporary = path.with_extension("tmp");
                    fs::write(&temporary, vec![step + rank as u8; 10_000 * (rank + 1)]).unwrap();
                    fs::rename(&temporary, &path).unwrap();
                }
            })
        })
        .collect();
    for rank in ranks {
        rank.join().unwrap();
    }
    let mut file = fs::OpenOptions::new().create_new(true).write(true).open(directory.join("a/b/seek")).unwrap();
    file.seek(SeekFrom::Start(100_000)).unwrap();
    file.write_all(b"end").unwrap();
    let exists = fs::OpenOptions::new().create_new(true).write(true).open(directory.join("a/b/seek")).unwrap_err();
    println!("again: {:?}", exists.kind());
    println!("missing: {:?}", fs::metadata(directory.join("missing")).unwrap_err().kind());
    std::os::unix::fs::symlink("a/b/seek", directory.join("link")).unwrap();
    fs::copy(directory.join("a/rank-0"), directory.join("copy")).unwrap();
    fs::write(directory.join("a/b/c/removed"), "x").unwrap();
    fs::remove_dir_all(directory.join("a/b/c")).unwrap();
    println!("canonical: {}", fs::canonicalize(directory.join("link")).unwrap().ends_with("ckpt/a/b/seek"));
}

fn main() {
    let directory = Path::new("ckpt");
    if std::env::args().nth(1).as_deref() == Some("write") {
        write(directory);
    }
    show(directory);
}
