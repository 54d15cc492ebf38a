//! `sheaf extract`: the files of a store as ordinary files below a directory.
//!
//! Never writes outside that directory, whatever the store says: every component is opened without following links,
//! and symbolic links are made when everything else is done. A file whose data is damaged is left out, with a message.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::Failure;
use super::offline::{self, Progress};
use crate::aggregate::{Attributes, check_name};
use crate::settings::Damaged;
use crate::store::{Choice, Link, Node, Store, Version};

/// Write the files of a store below a directory, checked, with their modes and times
///
/// /scratch/run/a.dat becomes DIR/scratch/run/a.dat.
#[derive(Args, Debug)]
pub struct ExtractArgs {
    /// The store's directory, or one aggregate of it
    #[arg(value_name = "STORE|AGGREGATE")]
    source: PathBuf,
    /// Read damaged aggregates, too: everything whose checksum is right, also behind what is damaged. Says what is
    /// lost; where that had renamed or removed names, they are as they were before
    #[arg(long)]
    salvage: bool,
    /// As it was at a consistent cut: `newest` (if all nodes that have not ended were lost), `complete` (everything
    /// that is published), or at a time in seconds since 1970, as `sheaf cuts` shows it
    #[arg(long, value_name = "CUT", value_parser = offline::parse_cut, conflicts_with = "salvage")]
    cut: Option<Choice>,
    /// Where to write; made if it is not there
    #[arg(short = 'C', long, value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// Only paths that match, and what is below them: `*` stays within a component, `**` does not
    #[arg(value_name = "PATTERN")]
    patterns: Vec<String>,
}

/// Extracts; see [`ExtractArgs`].
///
/// # Errors
/// When the store cannot be read, the directory cannot be made, or no name matches.
pub fn run(arguments: ExtractArgs) -> Result<ExitCode, Failure> {
    let sources = std::slice::from_ref(&arguments.source);
    let store = match arguments.salvage {
        true => offline::open_salvaged(sources)?,
        false => offline::open_cut(sources, arguments.cut)?,
    };
    let plan = Plan::new(&store, &matcher(&arguments.patterns)?);
    if plan.is_empty() && !arguments.patterns.is_empty() {
        return Err(Failure::new("no name in the store matches; `sheaf ls` lists them"));
    }
    let directory = &arguments.directory;
    std::fs::create_dir_all(directory)
        .map_err(|error| Failure::new(format_args!("cannot make {}: {error}", directory.display())))?;
    let extraction = Extraction {
        store: &store,
        root: File::open(directory)?.into(),
        privileged: rustix::process::geteuid().is_root(),
        damaged: Damaged::from_environment()?,
        progress: Progress::new(plan.files.iter().map(|(_, version)| version.size).sum()),
        failed: AtomicBool::new(false),
        unwritten: Mutex::default(),
    };
    extraction.extract(&plan);
    Ok(offline::exit_code(extraction.failed.into_inner() || !store.notes().is_empty()))
}

fn matcher(patterns: &[String]) -> Result<GlobSet, Failure> {
    let mut builder = GlobSetBuilder::new();
    for pattern in patterns {
        let pattern = pattern.trim_matches('/');
        builder.add(GlobBuilder::new(pattern).literal_separator(true).build()?);
    }
    Ok(builder.build()?)
}

/// What is to be made, by kind.
#[derive(Debug, Default)]
struct Plan<'a> {
    directories: Vec<(Vec<u8>, &'a Attributes)>,
    files: Vec<(Vec<u8>, &'a Arc<Version>)>,
    /// A further name, and the first one.
    hard_links: Vec<(Vec<u8>, Vec<u8>)>,
    symlinks: Vec<(Vec<u8>, &'a Link)>,
}

impl<'a> Plan<'a> {
    fn new(store: &'a Store, matcher: &GlobSet) -> Plan<'a> {
        let mut plan = Plan::default();
        let mut first_names: HashMap<*const Version, Vec<u8>> = HashMap::new();
        for (path, node) in store.view().iter().filter(|(path, _)| wanted(path, matcher)) {
            match node {
                Node::Directory(directory) => {
                    plan.directories.extend(directory.recorded.as_ref().map(|recorded| (path, &recorded.attributes)));
                }
                Node::Symlink(link) => plan.symlinks.push((path, link)),
                Node::File(version) => match first_names.get(&Arc::as_ptr(version)) {
                    Some(first) => plan.hard_links.push((path, first.clone())),
                    None => {
                        if Arc::strong_count(version) > 1 {
                            first_names.insert(Arc::as_ptr(version), path.clone());
                        }
                        plan.files.push((path, version));
                    }
                },
            }
        }
        plan
    }

    fn is_empty(&self) -> bool {
        self.directories.is_empty() && self.files.is_empty() && self.symlinks.is_empty()
    }
}

fn wanted(path: &[u8], matcher: &GlobSet) -> bool {
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(index, _)| index);
    matcher.is_empty() || ends.chain([path.len()]).any(|end| matcher.is_match(OsStr::from_bytes(&path[..end])))
}

struct Extraction<'a> {
    store: &'a Store,
    root: OwnedFd,
    privileged: bool,
    damaged: Damaged,
    progress: Progress,
    failed: AtomicBool,
    /// Files that could not be extracted: what lies under their names was there before, and gets no further ones.
    unwritten: Mutex<HashSet<Vec<u8>>>,
}

impl Extraction<'_> {
    fn extract(&self, plan: &Plan<'_>) {
        for (path, _) in &plan.directories {
            self.note(path, self.directory(path).map(drop));
        }
        offline::in_parallel(plan.files.len(), |index| {
            let (path, version) = &plan.files[index];
            let outcome = self.file(path, version);
            if outcome.is_err() {
                self.unwritten.lock().insert(path.clone());
            }
            self.note(path, outcome);
        });
        for (path, first) in &plan.hard_links {
            self.note(path, self.hard_link(path, first));
        }
        for (path, link) in &plan.symlinks {
            self.note(path, self.symlink(path, link));
        }
        // Last, and the deepest first: its own mode may forbid, and its time would not survive, what came before.
        for (path, attributes) in plan.directories.iter().rev() {
            self.note(
                path,
                self.directory(path).and_then(|directory| self.restore(directory.as_fd(), attributes, 0o3777)),
            );
        }
        self.progress.finish();
    }

    fn note(&self, path: &[u8], result: io::Result<()>) {
        if let Err(error) = result {
            self.failed.store(true, Ordering::Relaxed);
            self.progress.say(&format!("cannot extract /{}: {error}", path.escape_ascii()));
        }
    }

    /// Opens a directory below the root, made if it is not there.
    fn directory(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut directory = self.root.try_clone()?;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let opened = rustix::fs::openat(&directory, name, flags, Mode::empty());
            directory = match opened {
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o777)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    rustix::fs::openat(&directory, name, flags, Mode::empty())?
                }
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    let name = name.escape_ascii();
                    return Err(io::Error::other(format!("{name} is in the way: it is no directory")));
                }
                result => result?,
            };
        }
        Ok(directory)
    }

    /// Opens the directory of a path, with no file or link left under the name.
    fn place<'p>(&self, path: &'p [u8]) -> io::Result<(OwnedFd, &'p [u8])> {
        check_name(path, false).map_err(|problem| io::Error::other(problem.to_string()))?;
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        let directory = self.directory(parent)?;
        match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok((directory, name)),
            Err(error) => Err(error.into()),
        }
    }

    fn file(&self, path: &[u8], version: &Arc<Version>) -> io::Result<()> {
        let reader = self.store.reader(version)?.choose(self.damaged);
        if reader.version().operation_time_ns != version.operation_time_ns {
            let path = path.escape_ascii();
            self.progress.say(&format!("/{path}: the newest version is damaged; this is an older one (SHEAF_DAMAGED)"));
        }
        let version = reader.version();
        let (directory, name) = self.place(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o600))?);
        let written = file.set_len(version.size).and_then(|()| {
            reader.copy(&mut |offset, bytes| {
                self.progress.add(bytes.len() as u64);
                file.write_all_at(bytes, offset)
            })
        });
        if let Err(error) = written {
            rustix::fs::unlinkat(&directory, name, AtFlags::empty())?;
            return Err(error);
        }
        self.restore(file.as_fd(), &version.attributes, 0o777)
    }

    fn hard_link(&self, path: &[u8], first: &[u8]) -> io::Result<()> {
        if self.unwritten.lock().contains(first) {
            return Err(io::Error::other(format!("it is another name of /{}", first.escape_ascii())));
        }
        let (directory, name) = self.place(path)?;
        let slash = first.iter().rposition(|byte| *byte == b'/');
        let first_directory = self.directory(slash.map_or(b"", |slash| &first[..slash]))?;
        let first_name = slash.map_or(first, |slash| &first[slash + 1..]);
        Ok(rustix::fs::linkat(&first_directory, first_name, &directory, name, AtFlags::empty())?)
    }

    fn symlink(&self, path: &[u8], link: &Link) -> io::Result<()> {
        let (directory, name) = self.place(path)?;
        rustix::fs::symlinkat(&link.target[..], &directory, name)?;
        if self.privileged {
            let (uid, gid) = owner(&link.attributes);
            rustix::fs::chownat(&directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        let times = times(&link.attributes);
        Ok(rustix::fs::utimensat(&directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Owners only for those who may set them. `kept` are the mode bits that may be: no file gets set-id bits, because
    /// whoever may write to the store could make root hand out its rights.
    fn restore(&self, file: std::os::fd::BorrowedFd<'_>, attributes: &Attributes, kept: u32) -> io::Result<()> {
        let mut mode = attributes.mode & kept;
        if self.privileged {
            let (uid, gid) = owner(attributes);
            rustix::fs::fchown(file, uid, gid)?;
        } else {
            mode &= 0o777;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
        Ok(rustix::fs::futimens(file, &times(attributes))?)
    }
}

fn owner(attributes: &Attributes) -> (Option<Uid>, Option<Gid>) {
    // All ones means "leave it" to the system, and is no owner.
    let valid = |id: u32| (id != u32::MAX).then_some(id);
    (valid(attributes.uid).map(Uid::from_raw), valid(attributes.gid).map(Gid::from_raw))
}

fn times(attributes: &Attributes) -> Timestamps {
    let modification = Timespec { tv_sec: attributes.mtime_seconds, tv_nsec: attributes.mtime_nanoseconds.into() };
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: modification }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names_and_what_is_below() {
        let matcher = matcher(&["/scratch/*/ckpt".to_owned(), "**/*.dat".to_owned()]).unwrap();
        for (path, expected) in [
            ("scratch/a/ckpt", true),
            ("scratch/a/ckpt/x/y", true),
            ("scratch/a/b/ckpt/x", false),
            ("scratch/a", false),
            ("a/b.dat", true),
            ("b.dat", true),
            ("b.data", false),
        ] {
            assert_eq!(wanted(path.as_bytes(), &matcher), expected, "{path}");
        }
    }

    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;

    use crate::aggregate::Kind;
    use crate::aggregate::tests::{Builder, entry, file, pattern};

    fn extract(aggregate: &Builder, directory: &Path, patterns: &[&str]) -> String {
        let source = directory.with_extension("tar");
        fs::write(&source, aggregate.finished()).unwrap();
        let patterns = patterns.iter().map(|pattern| pattern.to_string()).collect();
        match run(ExtractArgs { source, salvage: false, cut: None, directory: directory.to_owned(), patterns }) {
            Ok(code) => format!("{code:?}"),
            Err(failure) => failure.to_string(),
        }
    }

    fn success() -> String {
        format!("{:?}", ExitCode::SUCCESS)
    }

    #[test]
    fn everything_is_there_again_with_modes_and_times() {
        let scratch = tempfile::tempdir().unwrap();
        let mut aggregate = Builder::new(1);
        aggregate.segment(vec![
            entry(Kind::Directory, "run/d", "", 1),
            file("run/d/a", &pattern(50_000), 2),
            entry(Kind::HardLink, "run/l", "run/d/a", 3),
            entry(Kind::Symlink, "run/s", "d/a", 4),
            file("run/old", b"old", 5),
            entry(Kind::Rename, "run/old", "run/new", 6),
        ]);
        let directory = scratch.path().join("out");
        assert_eq!(extract(&aggregate, &directory, &[]), success());
        assert_eq!(fs::read(directory.join("run/s")).unwrap(), pattern(50_000));
        assert_eq!(fs::read(directory.join("run/new")).unwrap(), b"old");
        assert!(!directory.join("run/old").exists());
        let (first, second) =
            (fs::metadata(directory.join("run/d/a")).unwrap(), fs::metadata(directory.join("run/l")).unwrap());
        assert_eq!(first.ino(), second.ino());
        assert_eq!((first.mode() & 0o7777, first.mtime(), first.mtime_nsec()), (0o640, 1_700_000_001, 5));
        let made = fs::metadata(directory.join("run/d")).unwrap();
        assert_eq!((made.mode() & 0o7777, made.mtime()), (0o640, 1_700_000_001));
        let only = scratch.path().join("only");
        assert_eq!(extract(&aggregate, &only, &["/run/n*"]), success());
        assert_eq!(fs::read_dir(only.join("run")).unwrap().count(), 1);
        assert!(extract(&aggregate, &only, &["nothing"]).contains("no name"));
    }

    #[test]
    fn nothing_is_written_through_links_that_lie_in_the_way() {
        let scratch = tempfile::tempdir().unwrap();
        let (directory, outside) = (scratch.path().join("out"), scratch.path().join("outside"));
        fs::create_dir_all(directory.join("run")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("victim"), b"keep").unwrap();
        symlink(&outside, directory.join("run/d")).unwrap();
        symlink(outside.join("victim"), directory.join("run/a")).unwrap();
        let mut aggregate = Builder::new(1);
        aggregate.segment(vec![file("run/d/victim", b"bad", 1), file("run/a", b"new", 2)]);
        assert_eq!(extract(&aggregate, &directory, &[]), format!("{:?}", ExitCode::from(1)));
        assert_eq!(fs::read(outside.join("victim")).unwrap(), b"keep");
        assert_eq!(fs::read(directory.join("run/a")).unwrap(), b"new");
        assert!(!fs::symlink_metadata(directory.join("run/a")).unwrap().is_symlink());
    }

    #[test]
    fn what_was_there_before_gets_no_further_names() {
        let scratch = tempfile::tempdir().unwrap();
        let mut aggregate = Builder::new(1);
        aggregate.segment(vec![file("a", b"new", 1), entry(Kind::HardLink, "b", "a", 2)]);
        let (source, out) = (scratch.path().join("n.tar"), scratch.path().join("out"));
        fs::write(&source, aggregate.finished()).unwrap();
        let store = Store::open(scratch.path()).unwrap();
        fs::remove_file(&source).unwrap();
        fs::create_dir(&out).unwrap();
        fs::write(out.join("a"), b"before").unwrap();
        let extraction = Extraction {
            store: &store,
            root: File::open(&out).unwrap().into(),
            privileged: false,
            damaged: Damaged::Refuse,
            progress: Progress::new(0),
            failed: AtomicBool::new(false),
            unwritten: Mutex::default(),
        };
        extraction.extract(&Plan::new(&store, &matcher(&[]).unwrap()));
        assert!(extraction.failed.into_inner());
        assert!(!out.join("b").exists(), "an older file under a new name");
    }

    #[test]
    fn a_damaged_file_is_left_out() {
        let scratch = tempfile::tempdir().unwrap();
        let mut aggregate = Builder::new(1);
        aggregate.segment(vec![file("a", &pattern(100), 1), file("b", b"fine", 2)]);
        let segment = &aggregate.published[0];
        let place = (segment.offset + segment.records[0].data_offset.unwrap()) as usize;
        aggregate.bytes[place] ^= 1;
        let directory = scratch.path().join("out");
        assert_eq!(extract(&aggregate, &directory, &[]), format!("{:?}", ExitCode::from(1)));
        assert!(!directory.join("a").exists());
        assert_eq!(fs::read(directory.join("b")).unwrap(), b"fine");
    }
}
