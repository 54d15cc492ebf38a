//! How much room a stage has: what its file system has free, and on tmpfs what the memory cgroup lets a job use.
//!
//! Pages of tmpfs are charged to the cgroup of whoever writes them; beyond its limit the kernel kills instead of saying
//! ENOSPC. What the library must know of that stands in one file of the stage, so that a capture need not read cgroups.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::offset_of;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use sheaf_common::layout::{self, Told};
use sheaf_common::room;

use super::Stage;

/// `TMPFS_MAGIC` of statfs(2).
pub(super) const TMPFS: u64 = 0x0102_1994;
/// A limit from here on is none: cgroup v1 shows the largest number of pages.
const NO_LIMIT: u64 = 1 << 60;

/// Room in a stage, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What can be written yet.
    pub free: u64,
    /// What there is altogether.
    pub total: u64,
    /// What the file system may hold so that the memory cgroup has room left; `u64::MAX` without a limit.
    pub ceiling: u64,
}

impl Room {
    /// Looks at the stage's file system and at this process's cgroup, in which the job runs, too.
    ///
    /// # Errors
    /// From statvfs(3).
    pub fn look(stage: &Stage) -> io::Result<Room> {
        let status = rustix::fs::statvfs(stage.directory())?;
        let is_memory = rustix::fs::statfs(stage.directory())?.f_type as u64 == TMPFS;
        let headroom = if is_memory { memory_headroom(Path::new("/")) } else { None };
        let used = (status.f_blocks - status.f_bfree) * status.f_frsize;
        let ceiling = headroom.map_or(u64::MAX, |headroom| used.saturating_add(headroom));
        Ok(Room {
            free: (status.f_bavail * status.f_frsize).min(headroom.unwrap_or(u64::MAX)),
            total: (status.f_blocks * status.f_frsize).min(ceiling),
            ceiling,
        })
    }

    /// What is kept free.
    pub fn reserve(&self) -> u64 {
        room::reserve_bytes(self.total)
    }
}

/// The file that tells the library of the ceiling.
#[derive(Debug)]
pub struct Ceiling {
    file: File,
    written: u64,
}

impl Ceiling {
    /// Makes the file, without a limit in it, and without word that the tree has caught up with the store.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(stage: &Stage) -> io::Result<Ceiling> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let ceiling = Ceiling { file: options.open(stage.path(layout::CEILING))?, written: u64::MAX };
        ceiling.file.write_all_at(&u64::MAX.to_ne_bytes(), 0)?;
        if ceiling.file.metadata()?.len() < size_of::<Told>() as u64 {
            ceiling.file.set_len(size_of::<Told>() as u64)?;
        }
        ceiling.tell_caught_up(0)?;
        Ok(ceiling)
    }

    /// Tells the library which thread's mirrors show what other nodes had published when it started.
    ///
    /// # Errors
    /// From pwrite(2).
    pub fn tell_caught_up(&self, thread: u32) -> io::Result<()> {
        self.file.write_all_at(&thread.to_ne_bytes(), offset_of!(Told, caught_up) as u64)
    }

    /// Tells the library whether published names leave the tree for the parallel file system.
    ///
    /// # Errors
    /// From pwrite(2).
    pub fn tell_publishes_files(&self, publishes_files: bool) -> io::Result<()> {
        let word = u64::from(publishes_files).to_ne_bytes();
        self.file.write_all_at(&word, offset_of!(Told, publishes_files) as u64)
    }

    /// Tells the library.
    ///
    /// # Errors
    /// From pwrite(2).
    pub fn tell(&mut self, room: &Room) -> io::Result<()> {
        if self.written != room.ceiling {
            self.file.write_all_at(&room.ceiling.to_ne_bytes(), 0)?;
            self.written = room.ceiling;
        }
        Ok(())
    }
}

/// What this process's memory cgroup and those above it leave, in bytes: the least of all, page cache that can be
/// dropped counted as free. `None` without a limit. `root` is where `/proc` and `/sys` are.
fn memory_headroom(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let group_of = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        let is_first_version = controllers.split(',').any(|controller| controller == "memory");
        match (is_first_version, controllers.is_empty()) {
            (true, _) => Some((root.join("sys/fs/cgroup/memory"), path.to_string(), &FIRST_VERSION)),
            (_, true) => Some((root.join("sys/fs/cgroup"), path.to_string(), &SECOND_VERSION)),
            _ => None,
        }
    };
    groups.lines().filter_map(group_of).filter_map(|(mount, path, files)| least_headroom(&mount, &path, files)).min()
}

/// The files of a memory cgroup.
struct Files {
    limit: &'static str,
    usage: &'static str,
    /// Prefix of the counters in `memory.stat` that include the groups below.
    counters: &'static str,
}

const FIRST_VERSION: Files =
    Files { limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", counters: "total_" };
const SECOND_VERSION: Files = Files { limit: "memory.max", usage: "memory.current", counters: "" };

/// The least headroom of a group and those above it. In a container the path may be another than the mount shows: then
/// the mount's own root is the group.
fn least_headroom(mount: &Path, path: &str, files: &Files) -> Option<u64> {
    let deepest = mount.join(path);
    let groups = deepest.ancestors().take_while(|group| group.starts_with(mount));
    groups.filter_map(|group| headroom(group, files)).min()
}

fn headroom(group: &Path, files: &Files) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number(files.limit).filter(|limit| *limit < NO_LIMIT)?;
    let used = number(files.usage)?;
    let statistics = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let counter = |name: &str| {
        let line = statistics.lines().find_map(|line| line.strip_prefix(files.counters)?.strip_prefix(name));
        line.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let droppable = counter("inactive_file ") + counter("active_file ");
    Some(limit.saturating_sub(used.saturating_sub(droppable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn the_least_headroom_on_the_way_up_counts() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                ("proc/self/cgroup", "0::/job/step\n"),
                ("sys/fs/cgroup/job/memory.max", "1000\n"),
                ("sys/fs/cgroup/job/memory.current", "900\n"),
                ("sys/fs/cgroup/job/memory.stat", "anon 400\nfile 500\ninactive_file 200\nactive_file 50\n"),
                ("sys/fs/cgroup/job/step/memory.max", "max\n"),
                ("sys/fs/cgroup/job/step/memory.current", "900\n"),
            ],
        );
        assert_eq!(memory_headroom(root.path()), Some(350));
    }

    #[test]
    fn the_first_version_is_read_too() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                ("proc/self/cgroup", "5:cpu,cpuacct:/other\n4:memory:/job\n0::/\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", "5000\n"),
                ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "4096\n"),
                ("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "5000\n"),
                ("sys/fs/cgroup/memory/job/memory.stat", "inactive_file 1\ntotal_inactive_file 1000\n"),
            ],
        );
        assert_eq!(memory_headroom(root.path()), Some(96));
    }

    #[test]
    fn without_a_limit_there_is_none() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(memory_headroom(root.path()), None);
        write(root.path(), &[("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "max\n")]);
        assert_eq!(memory_headroom(root.path()), None);
    }

    #[test]
    fn the_ceiling_is_what_is_used_and_what_is_left() {
        let tier = tempfile::tempdir_in("/dev/shm").unwrap();
        let stage = Stage::create(&tier.path().join("sheaf-0/0123456789abcdef"), Path::new("/s")).unwrap();
        let room = Room::look(&stage).unwrap();
        assert!(room.free <= room.total && room.reserve() <= room.total);
        let mut ceiling = Ceiling::create(&stage).unwrap();
        ceiling.tell(&Room { ceiling: 12345, ..room }).unwrap();
        // It is the first number of what is told.
        assert_eq!(fs::read(stage.path(layout::CEILING)).unwrap()[..8], 12345u64.to_ne_bytes());
    }
}
