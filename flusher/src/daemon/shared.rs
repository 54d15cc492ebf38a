//! A node's place in a file that other nodes write to, too (`SHEAF_LAYOUT=shared:M`): where its next segment goes.
//!
//! A range is reserved under a lock on the file, once per segment, and its header is durable before anybody can reserve
//! the next one: no crash of anything makes the archive end before it, and no two nodes get the same. Outside of the
//! ranges that it has reserved, a node never writes, and it never makes the file shorter.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::fstat;
use xxhash_rust::xxh3::xxh3_64;

use crate::aggregate::{
    BLOCK, Identity, Range, RangeState, archive_end, data_from, file_of, ranges, shared_format_entry,
};
use crate::engine::{Target, sync_directory};
use crate::stage::transient::mounts_of;
use crate::store::{LARGE, Lock, RESERVING, free_void, give_up, lock_byte, open_file, open_to_change};

/// The file grows by this, as a hole: most reservations then find it long enough.
const GROWTH: u64 = 16 << 20;
/// What is left of void ranges, a block of each, may take this of a file in any case, and a part of what is published
/// in it, but no more than a limit: else the next part begins another file, so that this one is removed one day.
const VOID_ALWAYS: u64 = 64 << 10;
const VOID_PART: u64 = 8;
const VOID_MOST: u64 = 16 << 20;
/// Nor does a part begin in a file of more ranges: each reader walks over all of them.
const RANGES_MAX: usize = 16_384;
/// How names of files end that have none yet: without a dot.
const ASIDE: &str = "-new";
/// How long to wait before a lock that somebody has is tried again: at first, and at most.
const POLL_FIRST: Duration = Duration::from_millis(1);
const POLL_LONGEST: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub(super) struct Seat {
    file: [u8; 16],
    /// Where this node's part begins.
    first: u64,
    /// The archive ends here or later.
    known_end: u64,
    /// How long somebody else may hold the lock.
    limit: Duration,
    /// The range that is being written.
    range: Option<Range>,
    /// Says that somebody writes this part.
    _lock: fs::File,
}

impl Seat {
    /// Begins a part in one of `count` shared files of a store.
    ///
    /// # Errors
    /// When nodes cannot share files there, or from the file system.
    pub fn take(store: &Path, count: u32, identity: &Identity, limit: Duration) -> io::Result<(Seat, Target)> {
        if locks_are_local(store)? {
            return Err(no_locks(store));
        }
        let slot = xxh3_64(identity.node.as_bytes()) % u64::from(count) + 1;
        let path = newest_file(store, slot, identity)?;
        let target = Target::join(&path)?;
        let file = file_of(target.file()).map_err(io::Error::other)?;
        let (lock, end) = reserve_at(&target, BLOCK, limit)?;
        let announcement = Range::announcement(identity, file, end);
        let Lock::Held(own) = lock_byte(open_to_change(&path)?, announcement.first) else {
            return Err(no_locks(&path));
        };
        extend(&target, &lock, announcement.end())?;
        write_reserved(&target, &announcement)?;
        drop(lock);
        let known_end = announcement.end();
        let mut seat = Seat { file, first: end, known_end, limit, range: Some(announcement), _lock: own };
        seat.publish(&target)?;
        Ok((seat, target))
    }

    /// Where its part begins.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Reserves a range for a segment of so many bytes, with room for those parts of it that will be written. Yields
    /// where the segment begins.
    ///
    /// # Errors
    /// From the file system, or when somebody holds the lock for too long. The part must then be given up.
    pub fn reserve(
        &mut self,
        target: &Target,
        (identity, sequence): (&Identity, u64),
        bytes: u64,
        written: &[(u64, u64)],
    ) -> io::Result<u64> {
        let (lock, end) = reserve_at(target, self.known_end, self.limit)?;
        let range = Range::of_segment(identity, (self.file, self.first), (end, sequence), bytes);
        let segment = range.offset + range.start;
        extend(target, &lock, range.end())?;
        for (from, to) in written {
            // What ends the archive is no part of it.
            let to = (*to).min(bytes);
            if to > *from {
                target.allocate(segment + from, to - from)?;
            }
        }
        write_reserved(target, &range)?;
        self.known_end = range.end();
        self.range = Some(range);
        Ok(segment)
    }

    /// Makes what was written to the range count, durably.
    ///
    /// # Errors
    /// From the file system.
    pub fn publish(&mut self, target: &Target) -> io::Result<()> {
        let range = self.range.as_ref().ok_or_else(|| io::Error::other("nothing is reserved"))?;
        target.write_buffered(range.offset, &range.header(RangeState::Published))?;
        target.sync_data()?;
        self.range = None;
        Ok(())
    }

    /// Gives the range up that is being written, if there is one. Where its header has not outlived a failed sync, the
    /// archive ended there, and the place may be another node's by now.
    ///
    /// # Errors
    /// From the file system. It does not count in any case.
    pub fn give_up(&mut self, target: &Target) -> io::Result<()> {
        let Some(range) = self.range.take() else { return Ok(()) };
        let is_it = |(found, _): &(Range, RangeState)| {
            (found.offset, found.sequence) == (range.offset, range.sequence)
                && found.identity.uuid == range.identity.uuid
        };
        if ranges(target.file())?.iter().any(is_it) { give_up(target.file(), &range) } else { Ok(()) }
    }
}

fn no_locks(path: &Path) -> io::Error {
    let path = path.display();
    io::Error::new(io::ErrorKind::Unsupported, format!("the file system of {path} has no locks that nodes can share"))
}

/// Whether the file system of a directory is mounted so that locks are this node's alone.
fn locks_are_local(directory: &Path) -> io::Result<bool> {
    let device = fs::metadata(directory)?.dev();
    // Without the table nobody can tell.
    Ok(fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| has_local_locks(&mounts, device)))
}

fn has_local_locks(mounts: &str, device: u64) -> bool {
    const LOCAL: [&str; 4] = ["nolock", "local_lock=all", "local_lock=posix", "localflock"];
    mounts_of(mounts, device).flat_map(|line| line.split([' ', ','])).any(|option| LOCAL.contains(&option))
}

/// Locks a shared file against others that reserve, and finds where the archive ends, from a place on where a range
/// ends.
fn reserve_at(target: &Target, from: u64, limit: Duration) -> io::Result<(fs::File, u64)> {
    let path = target.path();
    let (since, mut pause) = (Instant::now(), POLL_FIRST);
    loop {
        match lock_byte(open_to_change(path)?, RESERVING) {
            // Whoever removes it does so under the lock. What lies under another file's lock is nobody's.
            Lock::Held(lock) if fstat(&lock)?.st_nlink == 0 || !target.is_same(&lock) => {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the shared file's name leads elsewhere now"));
            }
            Lock::Held(lock) => {
                let end = archive_end(&lock, from)?;
                // What is there is somebody's, whose header is damaged, or hidden from this node by its file system.
                if let Some(at) = data_from(&lock, end)? {
                    let text = format!("the shared file is damaged: it ends at byte {end}, and has data at byte {at}");
                    return Err(io::Error::other(text));
                }
                return Ok((lock, end));
            }
            Lock::Unknown => return Err(no_locks(path)),
            Lock::Busy if since.elapsed() >= limit => {
                let text = format!("another node holds the lock of {} for {} s", path.display(), limit.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            Lock::Busy => std::thread::sleep(pause),
        }
        pause = (2 * pause).min(POLL_LONGEST);
    }
}

/// Sees to it that the file reaches behind a range, with the zeros that end the archive, before anybody may find the
/// range. The lock is held, so nobody else changes its length; what it is, is asked where the file was opened for the
/// lock.
fn extend(target: &Target, lock: &fs::File, end: u64) -> io::Result<()> {
    if lock.metadata()?.len() < end + BLOCK {
        // Never by setting a length where that can be helped: the file must not become shorter.
        target.allocate((end + BLOCK).next_multiple_of(GROWTH) - BLOCK, BLOCK)?;
        // Not after the header: a power failure must not leave one that leads behind the file's end.
        target.sync_data()?;
    }
    Ok(())
}

fn write_reserved(target: &Target, range: &Range) -> io::Result<()> {
    target.write_buffered(range.offset, &range.block(RangeState::Reserved))?;
    target.sync_data()
}

/// The file of a slot that the next part goes to; it is made if there is none that has room.
fn newest_file(store: &Path, slot: u64, identity: &Identity) -> io::Result<PathBuf> {
    let mut number = 1;
    let prefix = format!("shared-{slot}-");
    for entry in fs::read_dir(store)? {
        let name = entry?.file_name();
        let of_slot = name.to_str().and_then(|name| name.strip_prefix(&*prefix)?.strip_suffix(".tar")?.parse().ok());
        number = number.max(of_slot.unwrap_or(0));
    }
    loop {
        let path = store.join(format!("{prefix}{number}.tar"));
        match open_file(&path) {
            Ok(file) if file.metadata()?.len() < LARGE && file_of(&file).is_ok() => {
                let all = ranges(&file)?;
                // Also where no part begins any more: there is nobody else who would.
                free_void(&path, &all, &identity.node);
                if !is_worn(&all) {
                    return Ok(path);
                }
                number += 1;
            }
            // Another node's own aggregate may have the name, if that is what the node is called.
            Ok(_) => number += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => match make(store, &path, identity) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                outcome => return outcome.map(|()| path),
            },
            Err(error) => return Err(error),
        }
    }
}

/// Whether so much in a file of these ranges is void that it is better left to go.
fn is_worn(all: &[(Range, RangeState)]) -> bool {
    let of = |wanted: RangeState| all.iter().filter(move |(_, state)| *state == wanted).map(|(range, _)| range);
    let void = of(RangeState::Void).count() as u64 * BLOCK;
    let published: u64 = of(RangeState::Published).map(|range| range.length).sum();
    all.len() > RANGES_MAX || void > VOID_MOST.min(VOID_ALWAYS + published / VOID_PART)
}

/// The name of a shared file that has none yet. GlusterFS places files by a hash of their names, and takes
/// `.NAME.anything` for `NAME` (`cluster.rsync-hash-regex`): placed elsewhere, the file has its lasting name for a
/// moment on one of its bricks only, and whoever looks for it then takes that name away again.
fn aside(store: &Path, path: &Path, uuid: [u8; 16]) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    store.join(format!(".{name}.{:032x}{ASIDE}", u128::from_be_bytes(uuid)))
}

/// Whether it is such a name.
pub(super) fn is_aside(name: &[u8]) -> bool {
    name.starts_with(b".shared-") && name.ends_with(ASIDE.as_bytes())
}

/// Makes an empty shared file, aside, and gives it its name last. Whoever has that name keeps it.
fn make(store: &Path, path: &Path, identity: &Identity) -> io::Result<()> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut uuid = [0; 16];
    rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty())?;
    let first = Identity { uuid, node: name, stage: [0; 16], watermark_ns: 0, acknowledged_ns: 0, ..identity.clone() };
    let mut target = Target::create(&aside(store, path, uuid))?;
    target.set_length(GROWTH)?;
    target.write_buffered(0, &shared_format_entry(&first))?;
    target.sync_data()?;
    let named = target.give_name(path);
    target.unlock();
    match named {
        Ok(()) => sync_directory(store),
        Err(error) => {
            // It is one more that was abandoned.
            let _ = fs::remove_file(target.path());
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::makedev;

    use super::*;

    #[test]
    fn mounts_with_locks_of_one_node_are_told() {
        let mounts = "30 1 0:25 / /a rw,relatime shared:1 - nfs s:/a rw,vers=3,nolock,local_lock=all,addr=::1\n\
                      31 1 0:26 / /b rw,relatime - nfs4 s:/b rw,vers=4.2,local_lock=none,addr=::1\n\
                      32 1 0:27 / /c rw - lustre m@tcp:/c rw,localflock\n\
                      33 1 8:1 / /nolock rw - ext4 /dev/sda1 rw\n";
        let local =
            [(0, 25), (0, 26), (0, 27), (8, 1)].map(|(major, minor)| has_local_locks(mounts, makedev(major, minor)));
        assert_eq!(local, [true, false, true, false]);
        assert!(!locks_are_local(Path::new("/")).unwrap());
    }

    /// As a job that rotates small checkpoints leaves it, or a node that has had nothing to say for months.
    #[test]
    fn no_part_begins_in_a_file_of_little_but_void_ranges() {
        for (state, count, is_worn) in [
            (RangeState::Void, VOID_ALWAYS / BLOCK, false),
            (RangeState::Void, VOID_ALWAYS / BLOCK + 1, true),
            (RangeState::Published, RANGES_MAX as u64, false),
            (RangeState::Published, RANGES_MAX as u64 + 1, true),
        ] {
            let store = tempfile::tempdir_in("/dev/shm").unwrap();
            let identity = crate::aggregate::tests::Builder::new(0).identity;
            let path = newest_file(store.path(), 1, &identity).unwrap();
            let file = open_to_change(&path).unwrap();
            let uuid = file_of(&file).unwrap();
            for number in 1..=count {
                let range = Range::announcement(&identity, uuid, number * BLOCK);
                std::os::unix::fs::FileExt::write_all_at(&file, &range.block(state), range.offset).unwrap();
            }
            let next = newest_file(store.path(), 1, &identity).unwrap();
            assert_eq!(next != path, is_worn, "{state:?} {count}");
        }
    }

    /// Whoever made the last range void died before its room was free, and by then the file was worn.
    #[test]
    fn a_worn_file_keeps_no_room_of_void_ranges() {
        let store = tempfile::tempdir_in("/dev/shm").unwrap();
        let identity = crate::aggregate::tests::Builder::new(0).identity;
        let path = newest_file(store.path(), 1, &identity).unwrap();
        let file = open_to_change(&path).unwrap();
        let uuid = file_of(&file).unwrap();
        let write_at = |bytes: &[u8], offset| std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset).unwrap();
        let worn = VOID_ALWAYS / BLOCK + 1;
        for number in 1..=worn {
            let range = Range::announcement(&identity, uuid, number * BLOCK);
            write_at(&range.block(RangeState::Void), range.offset);
        }
        let length = 64 * BLOCK;
        let last = Range { length, ..Range::announcement(&identity, uuid, (worn + 1) * BLOCK) };
        write_at(&last.block(RangeState::Void), last.offset);
        write_at(&vec![1; (length - BLOCK) as usize], last.offset + BLOCK);
        assert_ne!(newest_file(store.path(), 1, &identity).unwrap(), path);
        let room = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512;
        assert!(room <= (worn + 2) * BLOCK, "{room} bytes");
    }

    #[test]
    fn nodes_that_come_at_once_share_as_many_files_as_they_are_told() {
        let store = tempfile::tempdir().unwrap();
        let limit = Duration::from_secs(60);
        let take = &|node: usize| {
            let node = format!("n{node}");
            let mut identity = crate::aggregate::tests::Builder::new(0).identity;
            rustix::rand::getrandom(&mut identity.uuid, rustix::rand::GetRandomFlags::empty()).unwrap();
            identity.node = node;
            let (mut seat, target) = Seat::take(store.path(), 2, &identity, limit).unwrap();
            let mut ranges = vec![(target.path().to_owned(), seat.first(), seat.first() + BLOCK)];
            for sequence in 1..4 {
                let bytes = if sequence == 2 { 3 << 20 } else { 2 * BLOCK };
                let start = seat.reserve(&target, (&identity, sequence), bytes, &[(0, bytes + BLOCK)]).unwrap();
                ranges.push((target.path().to_owned(), start, start + bytes));
            }
            ranges
        };
        let mut ranges: Vec<_> = std::thread::scope(|scope| {
            let nodes: Vec<_> = (0..16).map(|node| scope.spawn(move || take(node))).collect();
            nodes.into_iter().flat_map(|node| node.join().unwrap()).collect()
        });
        ranges.sort();
        assert!(ranges.windows(2).all(|pair| pair[0].0 != pair[1].0 || pair[0].2 <= pair[1].1), "{ranges:?}");
        assert!(fs::read_dir(store.path()).unwrap().count() <= 2);
    }
}
