//! Layout `files`: each finished file goes to its own path, by a file that is written aside and a rename.
//!
//! What is durable there leaves the tree, so that the name means the file on the parallel file system from then on. A
//! name is missing on neither side at any moment, and shows nothing that is not whole: the new file is on its path
//! before the staged one goes, and durable there. Nothing may leave the tree that somebody has open or that has changed
//! since it was read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Gid, Stat, Uid, flock};
use rustix::io::Errno;
use sheaf_common::layout;
use sheaf_common::replaced::{FileIdentity, nanoseconds};

use super::Shared;
use super::segment::Throttle;
use super::writer::Failure;
use crate::aggregate::{Attributes, Entry, FLAG_UNCLOSED, Kind};
use crate::engine::sync_directory;
use crate::stage::mirror::{absolute, times};
use crate::stage::source::{Opened, Source};
use crate::stage::tracker::{StagedPath, attributes, is_at_or_below};
use crate::stage::{Stage, identity, lease, moving};
use crate::store::split;

/// How names of files begin that are written aside in the store; then comes the stage's number.
const ASIDE: &str = ".file-";
/// A file that has been aside for so long without being written to is nobody's.
const ASIDE_LONGEST: Duration = Duration::from_secs(600);
/// Bytes that are copied at once.
const COPY_SIZE: u64 = 4 << 20;
/// How long programs may keep names on their side before a publication is tried again later.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
/// The same when what is published need not leave the tree yet.
const LOCK_LIMIT_SHORT: Duration = Duration::from_millis(20);
const LOCK_PAUSE: Duration = Duration::from_millis(1);
/// How long names stay on their side for sure: programs wait for at least a second, then they go on.
const LOCK_TRUSTED: Duration = Duration::from_millis(500);
/// How often it is looked whether what somebody had open can leave the tree.
const RELEASE_INTERVAL: Duration = Duration::from_millis(500);
/// Most files of which that is looked at: each takes a descriptor.
const KEPT_MAX: usize = 4096;
/// By how much the clocks of two nodes may differ.
const CLOCKS_DIFFER_NS: u64 = 2_000_000_000;

/// What the flusher thread needs for it.
pub(super) struct Files {
    shared: Arc<Shared>,
    /// `STAGE/names`.
    names: File,
    /// The tree as the kernel shows it.
    tree: PathBuf,
    /// How many files were written aside.
    count: u64,
    is_cleared: bool,
    throttle: Option<Throttle>,
    /// What is published and still in the tree, by inode.
    kept: BTreeMap<u64, Kept>,
    looked: Instant,
}

/// A published file or link that is still in the tree, and has not been written to since.
struct Kept {
    /// Nothing of a link.
    source: Option<Arc<Source>>,
    attributes: Attributes,
    /// Its names that are published.
    names: Vec<StagedPath>,
    real: FileIdentity,
}

impl Kept {
    /// Whether it is what was published, but for its names and attributes.
    fn is_unwritten(&self) -> bool {
        self.source.as_ref().is_none_or(|source| source.is_unwritten())
    }
}

/// What became of an entry.
enum Outcome {
    /// Its name is on the parallel file system; and the inode that may leave the tree.
    Placed(StagedPath),
    /// It has changed, or its name has: it is published again as it is then.
    Changed,
    /// It cannot be published at present, for this reason: others are.
    Refused(String),
    /// There is nothing to do on the parallel file system.
    Nothing,
}

/// All names stay on their side until this is dropped, or for as long as programs wait.
struct Locked<'a> {
    names: &'a File,
    since: Instant,
}

impl Locked<'_> {
    /// False when a program may have gone on meanwhile, because this process was stopped or the file system hung: then
    /// what was looked at counts no more.
    fn is_trusted(&self) -> bool {
        self.since.elapsed() < LOCK_TRUSTED
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let _ = flock(self.names, FlockOperation::Unlock);
    }
}

/// A file aside, which is removed unless it gets its name.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What a batch came to.
#[derive(Default)]
pub(super) struct Placed {
    /// Entries that are to be published again, with the reason if they cannot be at present.
    pub left_out: Vec<(usize, Option<String>)>,
    /// What readers of the store's aggregates must know.
    pub records: Vec<Entry>,
}

impl Files {
    /// Everything it needs.
    ///
    /// # Errors
    /// When the stage's lock file cannot be made.
    pub fn new(shared: Arc<Shared>) -> io::Result<Files> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let names = options.open(shared.stage.path(layout::NAMES))?;
        let tree = fs::canonicalize(shared.stage.path(layout::TREE))?;
        let throttle = shared.settings.bandwidth.map(Throttle::new);
        let (kept, looked) = (BTreeMap::new(), Instant::now());
        Ok(Files { shared, names, tree, count: 0, is_cleared: false, throttle, kept, looked })
    }

    /// Publishes a batch in its order, and has what can be missed in the tree leave it.
    pub fn publish(&mut self, entries: &[Entry], sources: &[Option<Arc<Source>>]) -> Result<Placed, Failure> {
        let (mut placed, mut directories) = (Placed::default(), BTreeSet::new());
        let mut names = Vec::new();
        for (index, (entry, source)) in entries.iter().zip(sources).enumerate() {
            match self.place(entry, source.as_ref())? {
                Outcome::Placed(path) => {
                    directories.insert(split(&path).0.to_vec());
                    names.push((index, path));
                }
                Outcome::Changed => placed.left_out.push((index, None)),
                Outcome::Refused(reason) => placed.left_out.push((index, Some(reason))),
                Outcome::Nothing => {}
            }
        }
        for directory in directories {
            match sync_directory(&absolute(&directory)) {
                // It was removed since, with all that was in it, or has moved: what is staged is published again then.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                outcome => outcome.map_err(|error| at(&absolute(&directory), &error))?,
            }
        }
        placed.records = self.records(entries, &names);
        placed.left_out.sort();
        Ok(placed)
    }

    /// Has what is published leave the tree. Yields those that have to be published again.
    pub fn release(&mut self) -> Vec<(StagedPath, u64)> {
        self.looked = Instant::now();
        let inodes: Vec<u64> = self.kept.keys().copied().collect();
        let mut changed = Vec::new();
        for inode in inodes {
            let set = self.set_attributes(inode);
            let Some(kept) = self.kept.get(&inode) else { continue };
            match set.and_then(|()| self.release_file(inode, kept)) {
                Ok(None) => {}
                Ok(Some(Released::Gone)) => drop(self.kept.remove(&inode)),
                Ok(Some(Released::Changed)) => {
                    let kept = self.kept.remove(&inode);
                    changed.extend(kept.and_then(|kept| Some((kept.names.into_iter().next()?, inode))));
                }
                Err(error) => log::warn!("a published file stays in the stage for now: {error}"),
            }
        }
        changed
    }

    /// When to look again whether something can leave the tree.
    pub fn due(&self) -> Option<Instant> {
        (!self.kept.is_empty()).then(|| self.looked + RELEASE_INTERVAL)
    }

    fn place(&mut self, entry: &Entry, source: Option<&Arc<Source>>) -> Result<Outcome, Failure> {
        match (entry.kind, source) {
            (Kind::File, Some(source)) => self.place_file(entry, source),
            (Kind::Symlink, _) => self.place_symlink(entry),
            (Kind::HardLink, _) => self.place_further_name(entry),
            (Kind::SetAttributes, _) => {
                let named =
                    self.kept.iter().find(|(_, kept)| kept.names.contains(&entry.path)).map(|(inode, _)| *inode);
                let outcome = named.map_or(Ok(()), |inode| self.set_attributes(inode));
                outcome.map(|()| Outcome::Nothing).map_err(|error| at(&absolute(&entry.path), &error))
            }
            (Kind::Rename, _) => {
                self.follow_rename(&entry.path, &entry.target);
                Ok(Outcome::Nothing)
            }
            _ => Ok(Outcome::Nothing),
        }
    }

    fn place_file(&mut self, entry: &Entry, source: &Arc<Source>) -> Result<Outcome, Failure> {
        let now = || source.stat_unwritten().map_or_else(|| entry.attributes.clone(), |stat| attributes(&stat));
        let (aside, attributes) = match self.write_aside(source, now)? {
            Ok(written) => written,
            Err(error) => {
                log::error!("/{}: {error}", entry.path.escape_ascii());
                return Ok(Outcome::Refused(error.to_string()));
            }
        };
        if source.is_torn(lease::trusted_time()) {
            return Ok(Outcome::Changed);
        }
        let outcome = self.move_in(&aside, entry, Some(source))?;
        if entry.flags & FLAG_UNCLOSED == 0 && self.kept.len() < KEPT_MAX {
            self.keep(entry.inode, &outcome, Some(source.clone()), attributes);
        }
        Ok(outcome)
    }

    /// What is published is to leave the tree.
    fn keep(&mut self, inode: u64, outcome: &Outcome, source: Option<Arc<Source>>, attributes: Attributes) {
        let Outcome::Placed(path) = outcome else { return };
        let real = identity(&absolute(path)).unwrap_or(FileIdentity::NONE);
        self.kept.insert(inode, Kept { source, attributes, names: vec![path.clone()], real });
    }

    /// Writes a file aside, durably, with the attributes that it has when it is copied. The inner error is the stage's.
    fn write_aside(
        &mut self,
        source: &Source,
        attributes: impl FnOnce() -> Attributes,
    ) -> Result<io::Result<(Aside, Attributes)>, Failure> {
        let (aside, file) = self.create_aside()?;
        if let Err(error) = self.copy(source, &file, &aside)? {
            return Ok(Err(error));
        }
        let attributes = attributes();
        let finished = set(&file, &attributes).and_then(|()| file.sync_all());
        finished.map_err(|error| at(&aside.0, &error))?;
        Ok(Ok((aside, attributes)))
    }

    /// Copies the data of a file. The inner error is the stage's.
    fn copy(&mut self, source: &Source, file: &File, aside: &Aside) -> Result<io::Result<()>, Failure> {
        let target = |error: io::Error| at(&aside.0, &error);
        file.set_len(source.size()).map_err(target)?;
        let ranges = match source.data_ranges() {
            Ok(ranges) => ranges,
            Err(error) => return Ok(Err(error)),
        };
        let mut buffer = Vec::new();
        for (start, end) in ranges {
            for position in (start..end).step_by(COPY_SIZE as usize) {
                let length = COPY_SIZE.min(end - position);
                buffer.resize(length as usize, 0);
                if let Err(error) = source.read_exact_at(&mut buffer, position) {
                    return Ok(Err(error));
                }
                if let Some(throttle) = &mut self.throttle {
                    throttle.wait(length);
                }
                file.write_all_at(&buffer, position).map_err(target)?;
                self.shared.written_bytes.fetch_add(length, Ordering::Relaxed);
            }
        }
        Ok(Ok(()))
    }

    fn place_symlink(&mut self, entry: &Entry) -> Result<Outcome, Failure> {
        let aside = Aside(self.name_aside()?);
        let target = std::ffi::OsStr::from_bytes(&entry.target);
        rustix::fs::symlink(target, &aside.0).map_err(|error| at(&aside.0, &error.into()))?;
        let attributes = &entry.attributes;
        let (user, group) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        let _ = rustix::fs::chownat(CWD, &aside.0, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW);
        let times = times(attributes.mtime_seconds, attributes.mtime_nanoseconds);
        // Some file systems keep no times of links.
        let _ = rustix::fs::utimensat(CWD, &aside.0, &times, AtFlags::SYMLINK_NOFOLLOW);
        let outcome = self.move_in(&aside, entry, None)?;
        self.keep(entry.inode, &outcome, None, attributes.clone());
        Ok(outcome)
    }

    /// A further name of a file or link: of what is published, if that is still what the tree has; else it is published
    /// once more.
    fn place_further_name(&mut self, entry: &Entry) -> Result<Outcome, Failure> {
        let first = self.kept.get(&entry.inode).filter(|kept| kept.is_unwritten());
        if let Some((first, real)) = first.map(|kept| (absolute(&kept.names[0]), kept.real))
            && identity(&first).is_ok_and(|found| found.is_same(&real))
        {
            let aside = Aside(self.name_aside()?);
            match rustix::fs::linkat(CWD, &first, CWD, &aside.0, AtFlags::empty()) {
                Ok(()) => {
                    let outcome = self.move_in(&aside, entry, None)?;
                    if let (Outcome::Placed(path), Some(kept)) = (&outcome, self.kept.get_mut(&entry.inode))
                        && !kept.names.contains(path)
                    {
                        kept.names.push(path.clone());
                    }
                    return Ok(outcome);
                }
                // Such a name is a file of its own where there are no links.
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK | Errno::NOENT) => {}
                Err(error) => return Err(at(&aside.0, &error.into())),
            }
        }
        match Source::open(&self.shared.stage, &entry.path) {
            Ok(Opened::Ready(source, stat)) => {
                let entry = Entry { kind: Kind::File, attributes: attributes(&stat), ..entry.clone() };
                let Ok((aside, _)) = self.write_aside(&source, || entry.attributes.clone())? else {
                    return Ok(Outcome::Changed);
                };
                match source.is_unwritten() {
                    true => self.move_in(&aside, &entry, Some(&source)),
                    false => Ok(Outcome::Changed),
                }
            }
            Ok(Opened::Symlink(_)) => {
                let target = fs::read_link(self.shared.stage.tree_path(&entry.path)).unwrap_or_default();
                let target = target.into_os_string().into_vec();
                self.place_symlink(&Entry { kind: Kind::Symlink, target, ..entry.clone() })
            }
            // A stub's further name is the aggregates' affair; what is written to is published when it is complete.
            _ => Ok(Outcome::Nothing),
        }
    }

    /// What was published is given the attributes that the staged file has now; the next look has it leave the tree.
    /// Also if the program has given it another name since, and when nobody was told: attributes that were changed and
    /// changed back.
    fn set_attributes(&mut self, inode: u64) -> io::Result<()> {
        let Some(kept) = self.kept.get(&inode) else { return Ok(()) };
        // What is written to is published again when it is complete.
        let now = kept.source.as_ref().and_then(|source| source.stat_unwritten()).map(|stat| attributes(&stat));
        let Some(now) = now else { return Ok(()) };
        if now == kept.attributes {
            return Ok(());
        }
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        for path in self.names_now(kept) {
            let file = match OpenOptions::new().read(true).custom_flags(flags).open(absolute(&path)) {
                Ok(file) if file.metadata()?.ino() == kept.real.inode => file,
                Err(error) if !concerns_one_name(&error) && error.kind() != io::ErrorKind::NotFound => {
                    return Err(error);
                }
                _ => continue,
            };
            set(&file, &now)?;
            file.sync_all()?;
            return self.kept.get_mut(&inode).map_or(Ok(()), |kept| {
                // The time tells it from others.
                kept.real.modified_ns = nanoseconds(now.mtime_seconds, now.mtime_nanoseconds);
                kept.attributes = now;
                Ok(())
            });
        }
        if let Some(kept) = self.kept.get_mut(&inode) {
            // It cannot be opened under any of its names: then it is published again.
            kept.real = FileIdentity::NONE;
        }
        Ok(())
    }

    /// What is published was renamed by the program itself, with the staged file.
    fn follow_rename(&mut self, from: &[u8], to: &[u8]) {
        for name in self.kept.values_mut().flat_map(|kept| &mut kept.names) {
            if is_at_or_below(name, from) {
                *name = [to, &name[from.len()..]].concat();
            }
        }
    }

    /// Gives a file aside the name that the staged one has now.
    fn move_in(&self, aside: &Aside, entry: &Entry, source: Option<&Arc<Source>>) -> Result<Outcome, Failure> {
        let Some(locked) = self.lock(LOCK_LIMIT) else {
            let text = "a program that was stopped keeps the names in the stage as they are".to_string();
            return Err(Failure::Store(text));
        };
        let stage = &self.shared.stage;
        let Some(path) = self.name_now(entry, source) else { return Ok(Outcome::Changed) };
        let real = absolute(&path);
        if real.parent().is_some_and(|parent| fs::symlink_metadata(parent).is_err()) {
            // Of a program that was killed while it moved the directory.
            moving::finish(stage)?;
            if self.name_now(entry, source).as_ref() != Some(&path) {
                return Ok(Outcome::Changed);
            }
        }
        let is_outdated =
            is_newer_outside(stage, &real, entry.operation_time_ns).map_err(|error| at(&real, &error.into()))?;
        if !locked.is_trusted() {
            return Ok(Outcome::Changed);
        }
        if is_outdated && source.is_some_and(|source| !source.is_unwritten()) {
            return Ok(Outcome::Changed);
        }
        if is_outdated {
            log::warn!("{} was written elsewhere after this node: that version stays", real.display());
            let _ = fs::remove_file(stage.tree_path(&path));
            return Ok(Outcome::Nothing);
        }
        let moved = identity(&aside.0).map_err(io::Error::from).and_then(|file| {
            stage.mark_published(real.as_os_str().as_bytes(), file, entry.inode)?;
            rename_into(&aside.0, &real)
        });
        match moved {
            Ok(()) => Ok(Outcome::Placed(path)),
            Err(error) if concerns_one_name(&error) => {
                Ok(Outcome::Refused(format!("it cannot take its place on the parallel file system: {error}")))
            }
            Err(error) => Err(at(&real, &error)),
        }
    }

    /// The name that a staged file has now, if it has one.
    fn name_now(&self, entry: &Entry, source: Option<&Arc<Source>>) -> Option<StagedPath> {
        let has = |path: &[u8]| self.shared.stage.stat(path).is_ok_and(|stat| stat.st_ino == entry.inode);
        let place = source.and_then(|source| source.place());
        let shown = place.and_then(|place| Some(place.strip_prefix(&self.tree).ok()?.as_os_str().as_bytes().to_vec()));
        shown.filter(|path| has(path)).or_else(|| has(&entry.path).then(|| entry.path.clone()))
    }

    /// The names of a published file: if it has one, the one that it has now.
    fn names_now(&self, kept: &Kept) -> Vec<StagedPath> {
        let mut names = kept.names.clone();
        if let [only] = &mut names[..]
            && let Some(place) = kept.source.as_ref().and_then(|source| source.place())
            && let Ok(path) = place.strip_prefix(&self.tree)
        {
            *only = path.as_os_str().as_bytes().to_vec();
        }
        names
    }

    /// Nothing when the file has to stay for now.
    fn release_file(&self, inode: u64, kept: &Kept) -> io::Result<Option<Released>> {
        if !kept.is_unwritten() {
            // It is published again when it is complete.
            return Ok(Some(Released::Gone));
        }
        let Some(locked) = self.lock(LOCK_LIMIT_SHORT) else { return Ok(None) };
        let (stage, names) = (&self.shared.stage, self.names_now(kept));
        let is_named = |path: &StagedPath| stage.stat(path).is_ok_and(|stat| stat.st_ino == inode);
        let staged: Vec<StagedPath> = names.into_iter().filter(is_named).collect();
        let is_ours = |path: &StagedPath| identity(&absolute(path)).is_ok_and(|found| found.is_same(&kept.real));
        // What has no name any more is nobody's; what has others is published under these.
        if staged.is_empty() || !staged.iter().all(is_ours) {
            return Ok(Some(Released::Changed));
        }
        // Under a name that was taken from it meanwhile, what is published still waits for the successor.
        if fs::symlink_metadata(absolute(&staged[0]))?.nlink() != staged.len() as u64 {
            return Ok(None);
        }
        let leave = |stat: &Stat| {
            let has_changed = attributes(stat) != kept.attributes || usize::try_from(stat.st_nlink) != Ok(staged.len());
            if has_changed || !locked.is_trusted() {
                return Ok(None);
            }
            for path in &staged {
                fs::remove_file(stage.tree_path(path))?;
                // Else a program may have marked what it is about to replace.
                if locked.is_trusted() {
                    stage.unmark(absolute(path).as_os_str().as_bytes());
                }
            }
            Ok(Some(Released::Gone))
        };
        let Some(source) = &kept.source else {
            // Nobody can have a link open.
            let Ok(stat) = stage.stat(&staged[0]) else { return Ok(Some(Released::Changed)) };
            return if attributes(&stat) == kept.attributes { leave(&stat) } else { Ok(Some(Released::Changed)) };
        };
        let released = source.exclusively(leave)?;
        if released.is_some() {
            source.release();
        }
        Ok(released)
    }

    /// What must be recorded in an aggregate because an older version, or the name itself, is in one.
    fn records(&self, entries: &[Entry], placed: &[(usize, StagedPath)]) -> Vec<Entry> {
        let store = self.shared.store.read();
        let (view, mut given, mut records) = (store.view(), Vec::<StagedPath>::new(), Vec::new());
        let placed: HashMap<usize, &StagedPath> = placed.iter().map(|(index, path)| (*index, path)).collect();
        for (index, entry) in entries.iter().enumerate() {
            let is_given = |path: &[u8]| given.iter().any(|given| is_at_or_below(path, given));
            let knows =
                |path: &[u8]| view.get(path).is_some() || view.children(path).next().is_some() || is_given(path);
            match (entry.kind, placed.get(&index)) {
                (_, Some(path)) if knows(path) => {
                    let time_ns = entry.operation_time_ns;
                    records.push(Entry::new(Kind::Unlink, (*path).clone(), Attributes::default(), time_ns));
                }
                (_, Some(_)) => {}
                (Kind::Unlink | Kind::RemoveDirectory | Kind::SetAttributes, None) if knows(&entry.path) => {
                    records.push(entry.clone());
                }
                (Kind::Rename, None) if knows(&entry.path) => {
                    given.push(entry.target.clone());
                    records.push(entry.clone());
                }
                (Kind::HardLink, None) if knows(&entry.target) => {
                    given.push(entry.path.clone());
                    records.push(entry.clone());
                }
                _ => {}
            }
        }
        records
    }

    fn lock(&self, limit: Duration) -> Option<Locked<'_>> {
        let start = Instant::now();
        while flock(&self.names, FlockOperation::NonBlockingLockExclusive).is_err() {
            if start.elapsed() >= limit {
                return None;
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        Some(Locked { names: &self.names, since: Instant::now() })
    }

    fn create_aside(&mut self) -> Result<(Aside, File), Failure> {
        // Whether there is one or not after an error: its answer may be lost.
        let aside = Aside(self.name_aside()?);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&aside.0).map_err(|error| at(&aside.0, &error))?;
        Ok((aside, file))
    }

    /// A new name in the store, which is made if it is not there.
    fn name_aside(&mut self) -> Result<PathBuf, Failure> {
        let store = &self.shared.settings.store;
        fs::create_dir_all(store).map_err(|error| at(store, &error))?;
        let own = self.own();
        if !self.is_cleared {
            clear(store, &own);
            self.is_cleared = true;
        }
        self.count += 1;
        Ok(store.join(format!("{own}{}", self.count)))
    }

    /// How the names begin of what this stage writes aside.
    fn own(&self) -> String {
        format!("{ASIDE}{:032x}-", u128::from_be_bytes(self.shared.stage_uuid))
    }

    /// The flusher's end: what could not be removed when it failed is tried again, and a store that holds nothing was
    /// only made for files on their way.
    pub fn end(&mut self) {
        clear(&self.shared.settings.store, &self.own());
        let _ = fs::remove_dir(&self.shared.settings.store);
    }
}

/// How a file left the tree.
enum Released {
    /// It is not there any more, or not the file that was published.
    Gone,
    /// What was published is not there any more.
    Changed,
}

/// Removes what dead flushers have left aside: those of this stage, and those of others that nobody has written to for
/// long. One that was only slow makes its file anew.
fn clear(store: &Path, own: &str) {
    let Ok(entries) = fs::read_dir(store) else { return };
    let Ok(now) = fs::symlink_metadata(store).and_then(|metadata| metadata.modified()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_own = name.as_bytes().starts_with(own.as_bytes());
        let is_old = || {
            let then = entry.metadata().and_then(|metadata| metadata.modified());
            then.is_ok_and(|then| now.duration_since(then).is_ok_and(|age| age > ASIDE_LONGEST))
        };
        if name.as_bytes().starts_with(ASIDE.as_bytes()) && (is_own || is_old()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether what lies at a path has come from elsewhere, later than what is about to take its place.
fn is_newer_outside(stage: &Stage, real: &Path, operation_time_ns: u64) -> Result<bool, Errno> {
    let found = match identity(real) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
        found => found?,
    };
    let is_known = stage.marked(real.as_os_str().as_bytes()).is_some_and(|known| known.is_same(&found));
    Ok(!is_known && found.born_ns.max(found.modified_ns) > operation_time_ns.saturating_add(CLOCKS_DIFFER_NS))
}

/// Renames also into a directory that is missing, or that its owner may not write to.
fn rename_into(aside: &Path, real: &Path) -> io::Result<()> {
    let rename = || fs::rename(aside, real);
    let Some(parent) = real.parent() else { return rename() };
    match rename() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(parent)?;
            rename()
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let metadata = fs::metadata(parent)?;
            if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o200 != 0 {
                return Err(error);
            }
            let mode = rustix::fs::Mode::from_raw_mode(metadata.mode() & 0o7777);
            rustix::fs::chmod(parent, mode | rustix::fs::Mode::WUSR)?;
            let outcome = rename();
            rustix::fs::chmod(parent, mode)?;
            outcome
        }
        outcome => outcome,
    }
}

/// Whether an error says something about this name, and nothing about others.
fn concerns_one_name(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::ACCESS | Errno::PERM | Errno::ISDIR | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::XDEV | Errno::LOOP
        )
    )
}

/// Sets what a file's record says about it. Owners that we may not set are left.
fn set(file: &File, attributes: &Attributes) -> io::Result<()> {
    let metadata = file.metadata()?;
    if (metadata.uid(), metadata.gid()) != (attributes.uid, attributes.gid) {
        let _ = rustix::fs::fchown(file, Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)));
    }
    rustix::fs::futimens(file, &times(attributes.mtime_seconds, attributes.mtime_nanoseconds))?;
    Ok(rustix::fs::fchmod(file, rustix::fs::Mode::from_raw_mode(attributes.mode & 0o7777))?)
}

fn at(path: &Path, error: &io::Error) -> Failure {
    Failure::Store(format!("{}: {error}", path.display()))
}
