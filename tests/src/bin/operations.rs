//! Random file operations in the current directory's `ckpt`, with every answer printed: `operations SEED COUNT`.
//!
//! Run natively and under the preloaded library with the same seed, it must print the same. Answers that may differ
//! between two directories of one file system (times, inode numbers, sizes of directories) are not printed.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::time::{Duration, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng, seq::IndexedRandom};

const DIRECTORIES: [&str; 4] = ["ckpt", "ckpt/one", "ckpt/one/two", "ckpt/three"];
const NAMES: [&str; 5] = ["a", "b", "c", "one", "three"];

fn main() {
    let arguments: Vec<u64> = std::env::args().skip(1).map(|text| text.parse().expect("a number")).collect();
    let [seed, count] = arguments[..] else { panic!("usage: operations SEED COUNT") };
    let mut random = StdRng::seed_from_u64(seed);
    for number in 0..count {
        let (what, result) = operation(&mut random);
        let answer = match result {
            Ok(answer) => answer,
            Err(error) => {
                format!("errno {}", error.raw_os_error().map_or(error.to_string(), |errno| errno.to_string()))
            }
        };
        println!("{number} {what}: {answer}");
    }
}

/// A name in one of the directories, now and then spelt in a roundabout way.
fn path(random: &mut StdRng) -> String {
    let directory = DIRECTORIES.choose(random).expect("not empty");
    let name = NAMES.choose(random).expect("not empty");
    match random.random_range(0..12) {
        0 => format!("./{directory}//{name}"),
        1 => format!("{directory}/../ckpt/./{name}"),
        2 => std::env::current_dir().expect("it exists").join(directory).join(name).display().to_string(),
        _ => format!("{directory}/{name}"),
    }
}

/// The path as it is printed: without the directory that the two sides do not share.
fn shown(path: &str) -> String {
    let here = std::env::current_dir().expect("it exists");
    path.replace(&format!("{}/", here.display()), "@/")
}

fn operation(random: &mut StdRng) -> (String, io::Result<String>) {
    let (first, second) = (path(random), path(random));
    let bytes = vec![random.random_range(b'a'..=b'z'); random.random_range(0..9000)];
    let number = random.random_range(0..5000);
    let (name, result) = match random.random_range(0..24) {
        0..=2 => ("write", fs::write(&first, &bytes).map(|()| String::new())),
        3 => ("append", append(&first, &bytes)),
        4 => ("update", update(&first, &bytes, number)),
        5 => ("create new", create_new(&first, &bytes)),
        6 => ("no create", truncate_existing(&first, &bytes)),
        7..=8 => ("read", read(&first)),
        9..=10 => ("stat", fs::metadata(&first).map(|metadata| describe(&metadata))),
        11 => ("lstat", fs::symlink_metadata(&first).map(|metadata| describe(&metadata))),
        12..=13 => ("rename", fs::rename(&first, &second).map(|()| String::new())),
        14 => ("link", fs::hard_link(&first, &second).map(|()| String::new())),
        15 => ("symlink", symlink(NAMES[number as usize % NAMES.len()], &first).map(|()| String::new())),
        16 => ("unlink", fs::remove_file(&first).map(|()| String::new())),
        17 => ("mkdir", fs::create_dir(DIRECTORIES[number as usize % 4]).map(|()| String::new())),
        18 => ("rmdir", fs::remove_dir(&first).map(|()| String::new())),
        19 => ("list", list(DIRECTORIES[number as usize % 4])),
        20 => ("truncate", truncate(&first, number)),
        21 => ("chmod", chmod(&first, number)),
        22 => ("readlink", fs::read_link(&first).map(|target| target.display().to_string())),
        _ => ("times", times(&first, number)),
    };
    (format!("{name} {} {} {number}", shown(&first), shown(&second)), result)
}

fn append(path: &str, bytes: &[u8]) -> io::Result<String> {
    let mut file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
    file.write_all(bytes)?;
    Ok(describe(&file.metadata()?))
}

fn update(path: &str, bytes: &[u8], offset: u64) -> io::Result<String> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    file.write_all_at(bytes, offset)?;
    file.seek(SeekFrom::Start(0))?;
    let mut whole = Vec::new();
    file.read_to_end(&mut whole)?;
    Ok(summary(&whole))
}

fn create_new(path: &str, bytes: &[u8]) -> io::Result<String> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    Ok(describe(&file.metadata()?))
}

fn truncate_existing(path: &str, bytes: &[u8]) -> io::Result<String> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(bytes)?;
    Ok(describe(&file.metadata()?))
}

fn read(path: &str) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut whole = Vec::new();
    file.read_to_end(&mut whole)?;
    let (by_name, by_file) = (fs::metadata(path)?, file.metadata()?);
    assert_eq!((by_name.dev(), by_name.ino()), (by_file.dev(), by_file.ino()), "stat and fstat of {path}");
    Ok(summary(&whole))
}

fn truncate(path: &str, length: u64) -> io::Result<String> {
    let name = CString::new(path)?;
    // SAFETY: the name is a C string that lives until after the call.
    if unsafe { libc::truncate(name.as_ptr(), length as libc::off_t) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(describe(&fs::metadata(path)?))
}

fn chmod(path: &str, number: u64) -> io::Result<String> {
    // Always accessible to the owner: what root may do and others may not is not the question here.
    let mode = 0o600 | (number as u32 & 0o077) | if fs::metadata(path)?.is_dir() { 0o100 } else { 0 };
    fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
    Ok(describe(&fs::metadata(path)?))
}

fn times(path: &str, number: u64) -> io::Result<String> {
    let name = CString::new(path)?;
    let time = libc::timespec { tv_sec: 1_000_000_000 + number as i64, tv_nsec: 123_456_789 };
    // SAFETY: the name and the two times live until after the call.
    if unsafe { libc::utimensat(libc::AT_FDCWD, name.as_ptr(), [time, time].as_ptr(), 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let modified = fs::metadata(path)?.modified()?;
    let expected = UNIX_EPOCH + Duration::new(1_000_000_000 + number, 123_456_789);
    Ok(format!("{}", modified == expected))
}

fn list(directory: &str) -> io::Result<String> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let letter = if kind.is_dir() {
            'd'
        } else if kind.is_symlink() {
            'l'
        } else {
            'f'
        };
        entries.push(format!("{letter}:{}", entry.file_name().display()));
    }
    entries.sort();
    Ok(entries.join(" "))
}

fn describe(metadata: &fs::Metadata) -> String {
    let mode = metadata.mode();
    if metadata.is_dir() {
        return format!("{mode:o}");
    }
    format!(
        "{mode:o} {} bytes, {} links, owner {}:{}",
        metadata.len(),
        metadata.nlink(),
        metadata.uid(),
        metadata.gid()
    )
}

/// The bytes in short: runs of equal letters.
fn summary(bytes: &[u8]) -> String {
    let runs = bytes.chunk_by(|one, next| one == next).map(|run| format!("{}x{}", run.len(), run[0]));
    runs.collect::<Vec<_>>().join(" ")
}
