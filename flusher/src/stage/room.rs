//! How much room a stage has: what its file system has free, and on tmpfs what the memory control groups leave of those
//! who write there.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;

use rustix::process::Pid;
use sheaf_common::memory::{self, Buffers, Left, TMPFS};
use sheaf_common::room;

use super::Stage;

/// Room in a stage, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What can be written yet.
    pub free: u64,
    /// What there is altogether.
    pub total: u64,
}

impl Room {
    /// Looks at the stage's file system and at this process's groups.
    ///
    /// # Errors
    /// From statvfs(3).
    pub fn look(stage: &Stage) -> io::Result<Room> {
        Room::look_for(stage, None)
    }

    /// The same for a process that writes, whose groups may be others: what both can write.
    ///
    /// # Errors
    /// From statvfs(3).
    pub fn look_for(stage: &Stage, process: Option<Pid>) -> io::Result<Room> {
        let status = rustix::fs::statvfs(stage.directory())?;
        let is_memory = rustix::fs::statfs(stage.directory())?.f_type as u64 == TMPFS;
        let mut room = Room { free: status.f_bavail * status.f_frsize, total: status.f_blocks * status.f_frsize };
        if is_memory {
            let names =
                ["self".to_string()].into_iter().chain(process.map(|process| process.as_raw_nonzero().to_string()));
            names.for_each(|name| room.limit(memory_left(&name)));
        }
        Ok(room)
    }

    fn limit(&mut self, left: Left) {
        self.free = self.free.min(left.free_bytes);
        self.total = self.total.min(left.limit_bytes);
    }

    /// What is kept free.
    pub fn reserve(&self) -> u64 {
        room::reserve_bytes(self.total)
    }
}

fn memory_left(process: &str) -> Left {
    let (mut groups, mut path, mut text) = ([0; 8192], [0; 4352], [0; 8192]);
    let buffers = Buffers { groups: &mut groups, path: &mut path, text: &mut text };
    memory::left(process.as_bytes(), u64::MAX, buffers, &mut read)
}

/// Reads a file of the kernel's, as far as there is room.
fn read(path: &CStr, into: &mut [u8]) -> Option<usize> {
    let mut file = File::open(OsStr::from_bytes(path.to_bytes())).ok()?;
    let mut length = 0;
    loop {
        match file.read(&mut into[length..]).ok()? {
            0 => return Some(length),
            more => length += more,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_reserve_is_a_part_of_what_there_is() {
        let tier = tempfile::tempdir_in("/dev/shm").unwrap();
        let stage = Stage::create(&tier.path().join("sheaf-0/0123456789abcdef"), Path::new("/s")).unwrap();
        let mut room = Room::look_for(&stage, Some(rustix::process::getpid())).unwrap();
        assert!(room.free <= room.total && room.reserve() <= room.total);
        room.limit(Left { free_bytes: 5, limit_bytes: 16 });
        assert_eq!((room, room.reserve()), (Room { free: 5, total: 16 }, 2));
    }
}
