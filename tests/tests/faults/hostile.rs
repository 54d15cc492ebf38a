//! Aggregates that somebody else has put into the store, with every checksum right: nothing is written outside the
//! directory of an extraction, nothing hangs, nothing dies, and what is intact beside them is still read.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use sheaf_tests::forge::{Aggregate, Record, field, kind, resign};
use sheaf_tests::{Engine, Finished, Scene, process};

/// Behind all times of real operations, and before any that would be refused.
const LATER_NS: u64 = 4_000_000_000_000_000_000;

/// A scene whose store holds one real aggregate, with the file `good`, and that aggregate, to be changed.
struct Forge {
    scene: Scene,
    real: Aggregate,
    /// Checkpoint directory without the leading slash.
    inside: String,
}

impl Forge {
    fn new() -> Forge {
        let scene = Scene::new(Engine::IoUring);
        scene.preloaded(&["bash", "-c", "echo good >ckpt/good"]).expect_success();
        scene.drain();
        let real = Aggregate::read(&fs::read(scene.the_aggregate()).expect("the scene is ours"));
        let inside = scene.checkpoints().to_str().expect("scenes have plain names").trim_start_matches('/').to_owned();
        Forge { scene, real, inside }
    }

    fn path(&self, name: &str) -> Vec<u8> {
        format!("{}/{name}", self.inside).into_bytes()
    }

    /// The real aggregate with more records.
    fn with(&self, records: impl IntoIterator<Item = Record>) -> Aggregate {
        let mut aggregate = self.real.clone();
        aggregate.segments[0].records.extend(records);
        aggregate
    }

    /// Puts bytes into a directory of their own, as an aggregate.
    fn single(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.scene.root().join(format!("{name}.tar"));
        fs::write(&path, bytes).expect("the scene is ours");
        path
    }

    /// Runs `sheaf` with little memory: what is asked for must follow from what is there.
    fn sheaf(&self, arguments: &[&str], paths: &[&Path]) -> Finished {
        let mut command = self.scene.sheaf_command();
        command.args(arguments).args(paths);
        limit_memory(&mut command);
        let finished = process::run(&mut command);
        assert!(finished.status.code().is_some(), "killed: {}", finished.describe());
        finished
    }

    fn extract(&self, aggregate: &Path, directory: &Path) -> Finished {
        self.sheaf(&["extract", "-C"], &[directory, aggregate])
    }

    /// Everything that reads an aggregate, on one that is not what any flusher writes.
    fn assert_refused(&self, what: &str, bytes: &[u8]) {
        let aggregate = self.single("refused", bytes);
        let out = self.scene.root().join("out");
        let before = names_below(self.scene.root());
        assert_eq!(self.sheaf(&["verify"], &[&aggregate]).status.code(), Some(1), "{what}");
        assert_ne!(self.sheaf(&["ls"], &[&aggregate]).status.code(), Some(0), "{what}");
        assert_ne!(self.extract(&aggregate, &out).status.code(), Some(0), "{what}");
        let after: Vec<_> = names_below(self.scene.root()).into_iter().filter(|path| !path.starts_with(&out)).collect();
        assert_eq!(after, before, "{what}: outside the directory");
        assert!(!out.join(&self.inside).join("good").exists(), "{what}: its segment was believed");
        let _ = fs::remove_dir_all(out);
    }
}

fn limit_memory(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let limit = libc::rlimit { rlim_cur: 2 << 30, rlim_max: 2 << 30 };
    // SAFETY: setrlimit is async-signal-safe and reads one structure, which the closure owns.
    unsafe { command.pre_exec(move || check(libc::setrlimit(libc::RLIMIT_AS, &limit))) };
}

fn check(result: i32) -> std::io::Result<()> {
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn names_below(directory: &Path) -> Vec<PathBuf> {
    let (mut found, mut waiting) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).expect("the scene is ours") {
            let entry = entry.expect("the scene is ours");
            if entry.file_type().expect("the scene is ours").is_dir() {
                waiting.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// What tar readers are told of a member in these tests: nothing.
const HEADER: [u8; 512] = [b'h'; 512];

#[test]
fn names_that_lead_elsewhere() {
    let forge = Forge::new();
    for name in
        [&b"../escaped"[..], b"/escaped", b"a/../../escaped", b"a//b", b"./a", b"a/.", b"", b"a\0b", b".sheaf/x"]
    {
        let what = name.escape_ascii().to_string();
        let mut aggregate = forge.real.clone();
        aggregate.segments[0].add_file(name, b"bad", LATER_NS, &HEADER);
        forge.assert_refused(&what, &aggregate.write());
        let directory = Record::operation(kind::DIRECTORY, name, b"", LATER_NS);
        forge.assert_refused(&what, &forge.with([directory]).write());
        let link = Record::operation(kind::SYMLINK, name, b"good", LATER_NS);
        forge.assert_refused(&what, &forge.with([link]).write());
        let good = forge.path("good");
        let renamed = Record::operation(kind::RENAME, &good, name, LATER_NS);
        forge.assert_refused(&what, &forge.with([renamed]).write());
        let linked = Record::operation(kind::HARD_LINK, &forge.path("l"), name, LATER_NS);
        forge.assert_refused(&what, &forge.with([linked]).write());
    }
}

#[test]
fn records_that_cannot_be() {
    let forge = Forge::new();
    let refuse = |what: &str, change: &dyn Fn(&mut Record)| {
        let mut aggregate = forge.real.clone();
        let record = aggregate.segments[0].add_file(&forge.path("bad"), &[b'x'; 9000], LATER_NS, &HEADER);
        change(record);
        forge.assert_refused(what, &aggregate.write());
    };
    let extents = |ranges: &[(u64, u64)]| -> Vec<u8> {
        ranges.iter().flat_map(|(offset, length)| [offset.to_le_bytes(), length.to_le_bytes()].concat()).collect()
    };
    for size in [9217, 1 << 40, i64::MAX as u64, u64::MAX] {
        refuse("a size that is not there", &|record| record.set(field::SIZE, &size.to_le_bytes()));
    }
    for ranges in [
        &[(0, 8192), (4096, 4904)][..],
        &[(4096, 4096), (0, 4096)],
        &[(0, 1 << 40)],
        &[(u64::MAX - 4095, 8192)],
        &[(0, 0)],
        &[(1, 8)],
    ] {
        refuse("extents that overlap or lie outside", &|record| {
            record.fixed[3] |= 1;
            record.extents = extents(ranges);
        });
    }
    refuse("too few checksums", &|record| record.chunks.clear());
    refuse("too many checksums", &|record| record.chunks.extend([0; 4]));
    refuse("a kind that has no data", &|record| record.fixed[0] = kind::SYMLINK as u8);
    refuse("no header", &|record| record.fixed[2] = 0);
    refuse("a mode with a type", &|record| record.set(field::MODE, &0o060_644u32.to_le_bytes()));
    // Whatever comes after it would be older: the clock of every later flusher would stand still.
    refuse("a time at the end of all times", &|record| record.set(field::OPERATION_TIME, &u64::MAX.to_le_bytes()));
}

#[test]
fn counts_that_nothing_justifies() {
    let forge = Forge::new();
    let intact = forge.real.write();
    for (at, value) in
        [(1064, 1u64 << 24), (1064, u64::from(u32::MAX)), (1064, u64::MAX), (1048, 1 << 40), (1056, 1 << 40)]
    {
        let mut bytes = intact.clone();
        bytes[4096 + at..4096 + at + 8].copy_from_slice(&value.to_le_bytes());
        resign(&mut bytes);
        forge.assert_refused(&format!("{value} at {at}"), &bytes);
    }
}

#[test]
fn links_are_never_followed_while_writing() {
    let forge = Forge::new();
    let (out, outside) = (forge.scene.root().join("out"), forge.scene.root().join("outside"));
    fs::create_dir(&outside).expect("the scene is ours");
    fs::write(outside.join("victim"), b"keep").expect("the scene is ours");
    let target = outside.to_str().expect("plain").as_bytes();
    let link = Record::operation(kind::SYMLINK, &forge.path("d"), target, LATER_NS);
    let leading = forge.single("leading", &forge.with([link.clone()]).write());
    // A link, and then a file below it: one of them counts, and neither leads outside.
    let mut both = forge.with([link]);
    both.segments[0].add_file(&forge.path("d/victim"), b"bad", LATER_NS + 1, &HEADER).fixed[3] |= 2;
    let both = forge.single("both", &both.write());
    let mut below = forge.real.clone();
    below.segments[0].add_file(&forge.path("d/victim"), b"bad", LATER_NS, &HEADER);
    let mut directory = Record::operation(kind::DIRECTORY, &forge.path("d"), b"", LATER_NS);
    directory.set(field::MODE, &0o777u32.to_le_bytes());
    below.segments[0].records.push(directory);
    let below = forge.single("below", &below.write());

    forge.extract(&both, &out).expect_success();
    assert_eq!(fs::read(out.join(&forge.inside).join("d/victim")).expect("a real directory"), b"bad");
    fs::remove_dir_all(&out).expect("the scene is ours");
    // The link is made by one extraction, and lies in the way of the next.
    forge.extract(&leading, &out).expect_success();
    assert!(fs::symlink_metadata(out.join(&forge.inside).join("d")).expect("made").is_symlink());
    assert_eq!(forge.extract(&below, &out).status.code(), Some(1));
    // A further name of a file outside is replaced, not written to.
    fs::remove_file(out.join(&forge.inside).join("d")).expect("made");
    fs::create_dir(out.join(&forge.inside).join("d")).expect("the scene is ours");
    fs::hard_link(outside.join("victim"), out.join(&forge.inside).join("d/victim")).expect("one file system");
    forge.extract(&below, &out).expect_success();
    assert_eq!(fs::read(out.join(&forge.inside).join("d/victim")).expect("extracted"), b"bad");

    assert_eq!(fs::read(outside.join("victim")).expect("it is there"), b"keep");
    assert_eq!(names_below(&outside), [outside.join("victim")]);
    assert_ne!(fs::metadata(&outside).expect("it is there").mode() & 0o777, 0o777);
}

#[test]
fn directories_that_are_exchanged_for_links_meanwhile() {
    let forge = Forge::new();
    let (out, outside) = (forge.scene.root().join("out"), forge.scene.root().join("outside"));
    fs::create_dir(&outside).expect("the scene is ours");
    let mut aggregate = forge.real.clone();
    for number in 0..200 {
        aggregate.segments[0].add_file(&forge.path(&format!("d/{number}")), b"x", LATER_NS, &HEADER);
    }
    let aggregate = forge.single("many", &aggregate.write());
    let place = out.join(&forge.inside);
    fs::create_dir_all(place.join("d")).expect("the scene is ours");
    symlink(&outside, place.join("link")).expect("the scene is ours");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for (from, to) in [("d", "aside"), ("link", "d"), ("d", "link"), ("aside", "d")] {
                    // The extraction may have made a directory of that name meanwhile.
                    let _ = fs::rename(place.join(from), place.join(to));
                }
            }
        });
        for _ in 0..10 {
            forge.extract(&aggregate, &out);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(names_below(&outside), Vec::<PathBuf>::new());
}

#[test]
fn no_file_gets_the_rights_of_its_owner() {
    let forge = Forge::new();
    let mut aggregate = forge.real.clone();
    let record = aggregate.segments[0].add_file(&forge.path("shell"), b"#!/bin/sh\n", LATER_NS, &HEADER);
    record.set(field::MODE, &0o6755u32.to_le_bytes());
    record.set(field::UID, &0u32.to_le_bytes());
    let out = forge.scene.root().join("out");
    forge.extract(&forge.single("shell", &aggregate.write()), &out).expect_success();
    let mode = fs::metadata(out.join(&forge.inside).join("shell")).expect("extracted").mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn operations_that_go_round_in_circles() {
    let forge = Forge::new();
    let rename = |from: &str, to: &str| Record::operation(kind::RENAME, &forge.path(from), &forge.path(to), LATER_NS);
    let link = |new: &str, old: &str| Record::operation(kind::HARD_LINK, &forge.path(new), &forge.path(old), LATER_NS);
    let directory = |name: &str| Record::operation(kind::DIRECTORY, &forge.path(name), b"", LATER_NS);
    let mut records = vec![directory("d"), directory("d/e"), link("d/l", "good"), link("d/l", "d/l")];
    for _ in 0..200 {
        records.extend([
            rename("d", "d/e/f"),
            rename("d/e", "d"),
            rename("d", "x"),
            rename("x", "d"),
            rename("d", "d"),
        ]);
        records.extend([
            link("d/m", "d/l"),
            link("d/l", "d/m"),
            link("good/below", "good"),
            link("good", "good/below"),
        ]);
        records.extend([rename("good", "good/below/it"), directory("d"), directory("d/e")]);
    }
    // Each makes the tree deeper than any path can be.
    let deep = format!("{}leaf", "n/".repeat(1000));
    for number in 0..50 {
        records.extend([directory(&deep), rename("n", &format!("t{number}")), directory("n")]);
        records.push(rename(&format!("t{number}"), &format!("{deep}/t")));
    }
    let aggregate = forge.single("circles", &forge.with(records).write());
    let out = forge.scene.root().join("out");
    forge.sheaf(&["ls"], &[&aggregate]).expect_success();
    forge.extract(&aggregate, &out);
    assert!(out.join(&forge.inside).join("d/e").is_dir());
}

#[test]
fn links_that_lead_to_themselves() {
    let forge = Forge::new();
    let link = |name: &str, to: &str| Record::operation(kind::SYMLINK, &forge.path(name), to.as_bytes(), LATER_NS);
    let records = [link("a", "b"), link("b", "a"), link("up", &"../".repeat(1000)), link("long", &"x/".repeat(2000))];
    let aggregate = forge.single("links", &forge.with(records).write());
    for name in ["a", "up", "long"] {
        let path = forge.scene.checkpoints().join(name);
        assert_ne!(forge.sheaf(&["cat"], &[&aggregate, &path]).status.code(), Some(0), "{name}");
    }
}

#[test]
fn a_tar_view_that_says_something_else() {
    let forge = Forge::new();
    let mut aggregate = forge.real.clone();
    aggregate.segments[0].add_file(&forge.path("shown"), b"what the table says", LATER_NS, &HEADER);
    let mut lying = forge.real.clone();
    let members = &mut lying.segments[0].members;
    let position = members.windows(5).position(|window| window == b"good\0").expect("the member's name");
    members[position..position + 4].copy_from_slice(b"evil");
    for (name, aggregate) in [("no header", aggregate), ("another name", lying)] {
        let single = forge.single("lying", &aggregate.write());
        assert_eq!(forge.sheaf(&["verify"], &[&single]).status.code(), Some(1), "{name}");
        let path = forge.scene.checkpoints().join("good");
        assert_eq!(forge.sheaf(&["cat"], &[&single, &path]).expect_success().text(), "good\n", "{name}");
    }
}

/// Names that exist in no file system, a tree as deep as paths can be, a name that is first one thing and then another:
/// the rest of the store is read all the same, and what is written afterwards is kept.
#[test]
fn a_program_goes_on_beside_them() {
    let forge = Forge::new();
    let mut evil = forge.real.clone();
    // Another aggregate than the real one.
    let segment = &mut evil.segments[0];
    segment.add_file(&forge.path(&"n".repeat(300)), b"no file system has such names", LATER_NS, &HEADER);
    segment.add_file(&forge.path("twice"), b"first", LATER_NS, &HEADER);
    segment.add_file(&forge.path("twice"), b"second", LATER_NS + 1, &HEADER);
    segment.add_file(&forge.path("turned"), b"file", LATER_NS, &HEADER);
    segment.add_file(&forge.path("turned/below"), b"below", LATER_NS + 1, &HEADER);
    segment.add_file(&forge.path(&format!("{}leaf", "d/".repeat(200))), b"deep", LATER_NS, &HEADER);
    let records = (0..500).map(|number| {
        let name = forge.path(&format!("link{number}"));
        Record::operation(kind::HARD_LINK, &name, &forge.path("twice"), LATER_NS + 2)
    });
    segment.records.extend(records);
    let mut later = Record::operation(kind::FILE, &forge.path("later version"), b"", LATER_NS);
    later.set(0, &9u16.to_le_bytes());
    segment.records.push(later);
    fs::write(forge.scene.the_aggregate(), evil.write()).expect("the scene is ours");
    // Nor does anything wait for what only has the name of an aggregate.
    process::run(Command::new("mkfifo").arg(forge.scene.store().join("pipe.tar"))).expect_success();
    symlink("/dev/zero", forge.scene.store().join("endless.tar")).expect("the scene is ours");
    forge.scene.wipe_stage();

    let script = "cat ckpt/good ckpt/twice ckpt/turned/below ckpt/link499
        echo new >ckpt/new; echo newer >ckpt/twice; ls -R ckpt >list";
    let seen = forge.scene.preloaded(&["bash", "-c", script]).expect_success();
    assert_eq!(seen.text(), "good\nsecondbelowsecond", "{}", seen.describe());
    forge.scene.drain();
    forge.scene.wipe_stage();
    let seen = forge.scene.preloaded(&["cat", "ckpt/new", "ckpt/twice", "ckpt/link1"]).expect_success();
    assert_eq!(seen.text(), "new\nnewer\nnewer\n", "{}", seen.describe());
    let listed = forge.sheaf(&["ls"], &[&forge.scene.store()]);
    assert_eq!(listed.status.code(), Some(1), "two files are no aggregates: {}", listed.describe());
    let out = forge.scene.root().join("out");
    assert_eq!(forge.extract(&forge.scene.store(), &out).status.code(), Some(1));
    assert_eq!(fs::read(out.join(&forge.inside).join("good")).expect("extracted"), b"good\n");
}
