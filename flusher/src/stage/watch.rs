//! inotify(7) on the tree: one ordered queue of what happened, one watch per directory.
//!
//! Names are resolved late: a directory's rename changes the path of every event behind it in the queue. So a change
//! keeps the watch descriptor, and [`Watches::path`] turns it into a path when the change is applied.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// A name in a watched directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    watch: i32,
    name: Vec<u8>,
}

/// One thing that happened in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The last descriptor that could write through this name has been closed.
    Closed(Place),
    /// A name appeared: file, link or directory.
    Created(Place, IsDirectory),
    /// A name is gone.
    Deleted(Place, IsDirectory),
    /// A name moved inside the tree.
    Moved(Place, Place, IsDirectory),
    /// A name came from outside the tree (`STAGE/scratch`).
    MovedIn(Place, IsDirectory),
    /// A name came from `STAGE/links`: another name of the file with this inode, or nothing if it lies in a directory
    /// that is not watched.
    Linked(u64, Option<Place>),
    /// A name left the tree.
    MovedOut(Place, IsDirectory),
    /// Mode, owner, times or link count changed.
    Attributes(Place),
    /// The kernel dropped events: the tree must be scanned.
    Overflow,
    /// The kernel removed a watch: its directory is gone.
    Ignored(i32),
}

impl Change {
    /// Whether it is about a file or link, and so about nothing that a scan of the tree would not find.
    pub fn is_of_file(&self) -> bool {
        match self {
            Change::Closed(_) | Change::Linked(..) | Change::Attributes(_) => true,
            Change::Created(_, directory)
            | Change::Deleted(_, directory)
            | Change::Moved(_, _, directory)
            | Change::MovedIn(_, directory)
            | Change::MovedOut(_, directory) => !directory,
            Change::Overflow | Change::Ignored(_) => false,
        }
    }

    /// Whether a name moved inside the tree.
    pub fn is_move(&self) -> bool {
        matches!(self, Change::Moved(..))
    }
}

/// Whether a changed name is a directory.
pub type IsDirectory = bool;

/// The inotify queue and the directories behind its watch descriptors.
#[derive(Debug)]
pub struct Watches {
    inotify: OwnedFd,
    paths: HashMap<i32, Watched>,
    descriptors: BTreeMap<Vec<u8>, i32>,
    /// The watch on `STAGE/links`.
    links: Option<i32>,
}

#[derive(Debug)]
struct Watched {
    path: Vec<u8>,
    inode: u64,
}

/// Changes as they are read. A move is known to leave the tree only when its second half never comes.
#[derive(Debug, Default)]
struct Drained {
    changes: Vec<Option<Change>>,
    /// Where the first halves of moves stand in `changes`, by cookie.
    unpaired: HashMap<u32, usize>,
}

impl Drained {
    fn push(&mut self, change: Change) {
        self.changes.push(Some(change));
    }

    fn moved_from(&mut self, cookie: u32, place: Place, directory: IsDirectory) {
        self.unpaired.insert(cookie, self.changes.len());
        self.push(Change::MovedOut(place, directory));
    }

    fn moved_to(&mut self, cookie: u32, to: Place, directory: IsDirectory) {
        let first_half = self.unpaired.remove(&cookie).and_then(|index| self.changes[index].take());
        self.push(match first_half {
            Some(Change::MovedOut(from, _)) => Change::Moved(from, to, directory),
            _ => Change::MovedIn(to, directory),
        });
    }
}

const BUFFER: usize = 256 * 1024;
/// How long the second half of a move may come after the first: the kernel queues both in one go.
const PAIR_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

impl Watches {
    /// # Errors
    /// From inotify_init1(2), `EMFILE` when the user's instances are used up (`fs.inotify.max_user_instances`).
    pub fn new() -> io::Result<Watches> {
        let inotify = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        Ok(Watches { inotify, paths: HashMap::new(), descriptors: BTreeMap::new(), links: None })
    }

    /// To be polled for reading.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Watches the directory at `location`, known as `path`. Yields the path under which it was known before, if that
    /// was another.
    ///
    /// # Errors
    /// From open(2) and inotify_add_watch(2); `ENOSPC` when `fs.inotify.max_user_watches` is used up.
    pub fn add(&mut self, path: &[u8], location: &Path) -> io::Result<Option<Vec<u8>>> {
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR
            | WatchFlags::EXCL_UNLINK;
        let open_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(location, open_flags, Mode::empty())?;
        let inode = rustix::fs::fstat(&directory)?.st_ino;
        // By way of the descriptor: between two looks at a path, another directory can take it.
        let watch = inotify::add_watch(&self.inotify, format!("/proc/self/fd/{}", directory.as_raw_fd()), flags)?;
        let old = self.paths.insert(watch, Watched { path: path.to_vec(), inode });
        let old = old.map(|old| old.path).filter(|old| old != path);
        if let Some(old) = &old
            && self.descriptors.get(old) == Some(&watch)
        {
            self.descriptors.remove(old);
        }
        self.descriptors.insert(path.to_vec(), watch);
        Ok(old)
    }

    /// Watches the directory from which second names come, `STAGE/links`.
    ///
    /// # Errors
    /// From inotify_add_watch(2).
    pub fn add_links(&mut self, location: &Path) -> io::Result<()> {
        self.links = Some(inotify::add_watch(&self.inotify, location, WatchFlags::MOVED_FROM | WatchFlags::ONLYDIR)?);
        Ok(())
    }

    /// What a pair of events means, of which the first may be about `STAGE/links`.
    fn understood(&self, change: Change) -> Option<Change> {
        let is_link = |place: &Place| Some(place.watch) == self.links;
        let linked = |from: &Place| {
            let number = from.name.split(|byte| *byte == b'-').next().unwrap_or_default();
            std::str::from_utf8(number).ok()?.parse().ok()
        };
        match change {
            Change::MovedOut(from, _) if is_link(&from) => Some(Change::Linked(linked(&from)?, None)),
            Change::Moved(from, to, directory) if is_link(&from) => {
                let change = linked(&from).map(|inode| Change::Linked(inode, Some(to.clone())));
                Some(change.unwrap_or(Change::MovedIn(to, directory)))
            }
            change => Some(change),
        }
    }

    /// The inode of the directory that is watched as `path`.
    pub fn inode(&self, path: &[u8]) -> Option<u64> {
        self.descriptors.get(path).and_then(|watch| self.paths.get(watch)).map(|watched| watched.inode)
    }

    /// Whether the directory `path` is watched.
    pub fn contains(&self, path: &[u8]) -> bool {
        self.descriptors.contains_key(path)
    }

    /// The number of watched directories.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Whether nothing is watched.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Forgets a watch whose directory is gone.
    pub fn forget(&mut self, watch: i32) {
        if let Some(gone) = self.paths.remove(&watch)
            && self.descriptors.get(&gone.path) == Some(&watch)
        {
            self.descriptors.remove(&gone.path);
        }
    }

    /// Takes note that the directory `from` and all below it are now known as `to`.
    pub fn rename(&mut self, from: &[u8], to: &[u8]) {
        for (path, watch) in super::tracker::take_below(&mut self.descriptors, from) {
            let renamed = [to, &path[from.len()..]].concat();
            if let Some(watched) = self.paths.get_mut(&watch) {
                watched.path.clone_from(&renamed);
            }
            self.descriptors.insert(renamed, watch);
        }
    }

    /// The path of a place, if its directory is still known.
    pub fn path(&self, place: &Place) -> Option<Vec<u8>> {
        let directory = &self.paths.get(&place.watch)?.path;
        if directory.is_empty() {
            return Some(place.name.clone());
        }
        Some([directory, &b"/"[..], &place.name].concat())
    }

    /// Everything that has happened since the last call, in order.
    ///
    /// # Errors
    /// From reading the queue.
    pub fn drain(&mut self) -> io::Result<Vec<Change>> {
        let mut drained = Drained::default();
        self.read_queue(&mut drained)?;
        if !drained.unpaired.is_empty() {
            poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], Some(&PAIR_WAIT))?;
            self.read_queue(&mut drained)?;
        }
        Ok(drained.changes.into_iter().flatten().filter_map(|change| self.understood(change)).collect())
    }

    fn read_queue(&self, drained: &mut Drained) -> io::Result<()> {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        let inotify = self.inotify.as_fd();
        let mut reader = inotify::Reader::new(inotify, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::WOULDBLOCK) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                drained.push(Change::Overflow);
                continue;
            }
            if flags.contains(ReadFlags::IGNORED) {
                drained.push(Change::Ignored(event.wd()));
                continue;
            }
            // Events about a watched directory itself carry no name; its parent's watch tells the same.
            let Some(name) = event.file_name() else { continue };
            let place = Place { watch: event.wd(), name: name.to_bytes().to_vec() };
            let directory = flags.contains(ReadFlags::ISDIR);
            let cookie = event.cookie();
            if flags.contains(ReadFlags::MOVED_FROM) {
                drained.moved_from(cookie, place, directory);
            } else if flags.contains(ReadFlags::MOVED_TO) {
                drained.moved_to(cookie, place, directory);
            } else if flags.contains(ReadFlags::CREATE) {
                drained.push(Change::Created(place, directory));
            } else if flags.contains(ReadFlags::DELETE) {
                drained.push(Change::Deleted(place, directory));
            } else if flags.contains(ReadFlags::CLOSE_WRITE) {
                drained.push(Change::Closed(place));
            } else if flags.contains(ReadFlags::ATTRIB) {
                drained.push(Change::Attributes(place));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn names(watches: &Watches, change: &Change) -> String {
        let text = |place: &Place| String::from_utf8(watches.path(place).unwrap()).unwrap();
        match change {
            Change::Closed(place) => format!("closed {}", text(place)),
            Change::Created(place, directory) => format!("created {} {directory}", text(place)),
            Change::Deleted(place, directory) => format!("deleted {} {directory}", text(place)),
            Change::Moved(from, to, directory) => format!("moved {} {} {directory}", text(from), text(to)),
            Change::MovedIn(place, directory) => format!("in {} {directory}", text(place)),
            Change::Linked(inode, place) => format!("linked {inode} {}", place.as_ref().map_or("".into(), text)),
            Change::MovedOut(place, directory) => format!("out {} {directory}", text(place)),
            Change::Attributes(place) => format!("attributes {}", text(place)),
            Change::Overflow => "overflow".to_string(),
            Change::Ignored(_) => "ignored".to_string(),
        }
    }

    #[test]
    fn changes_come_in_order_with_paths() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let (tree, outside) = (directory.path().join("tree"), directory.path().join("scratch"));
        fs::create_dir_all(tree.join("a")).unwrap();
        fs::create_dir(&outside).unwrap();
        let mut watches = Watches::new().unwrap();
        watches.add(b"", &tree).unwrap();
        watches.add(b"a", &tree.join("a")).unwrap();

        fs::write(tree.join("a/x"), b"1").unwrap();
        fs::rename(tree.join("a/x"), tree.join("y")).unwrap();
        fs::write(outside.join("z"), b"1").unwrap();
        fs::rename(outside.join("z"), tree.join("z")).unwrap();
        fs::rename(tree.join("y"), outside.join("y")).unwrap();
        fs::remove_file(tree.join("z")).unwrap();
        let changes = watches.drain().unwrap();
        let seen: Vec<String> = changes.iter().map(|change| names(&watches, change)).collect();
        let expected =
            ["created a/x false", "closed a/x", "moved a/x y false", "in z false", "out y false", "deleted z false"];
        assert_eq!(seen.iter().filter(|text| !text.starts_with("attributes")).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_renamed_directory_renames_what_is_below() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        fs::create_dir_all(directory.path().join("a/b")).unwrap();
        let mut watches = Watches::new().unwrap();
        watches.add(b"", directory.path()).unwrap();
        watches.add(b"a", &directory.path().join("a")).unwrap();
        watches.add(b"a/b", &directory.path().join("a/b")).unwrap();
        fs::rename(directory.path().join("a"), directory.path().join("c")).unwrap();
        fs::write(directory.path().join("c/b/f"), b"").unwrap();
        let changes = watches.drain().unwrap();
        watches.rename(b"a", b"c");
        assert_eq!(names(&watches, changes.last().unwrap()), "closed c/b/f");
        assert!(watches.contains(b"c/b") && !watches.contains(b"a/b"));
    }
}
