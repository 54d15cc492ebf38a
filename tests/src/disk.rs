//! A small disk of its own file system, mounted over a directory, which can lose its power; and a small memory file
//! system.
//!
//! Needs root, or sudo that asks nothing. Nothing of it may stay mounted after a test, whatever happens.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::process;

/// Of every disk. Enough for the smallest xfs.
pub const SIZE_BYTES: u64 = 400 << 20;
/// How long a file system may stay busy that nobody uses any more.
const PATIENCE: Duration = Duration::from_secs(20);

/// A mounted disk; it is unmounted and gone when dropped.
pub struct Disk {
    image: PathBuf,
    place: PathBuf,
}

impl Disk {
    /// Makes an empty file system of a kind (`ext4`, `xfs`, `btrfs`) in the file `image` and mounts it over `place`.
    pub fn new(kind: &str, image: &Path, place: &Path) -> Disk {
        let file = fs::File::create_new(image).expect("a new image");
        file.set_len(SIZE_BYTES).expect("a sparse file");
        process::run(Command::new(format!("/usr/sbin/mkfs.{kind}")).arg("-q").arg(image)).expect_success();
        let disk = Disk { image: image.to_path_buf(), place: place.to_path_buf() };
        disk.mount();
        // SAFETY: take nothing.
        let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
        process::run(as_root("chown").arg(format!("{user}:{group}")).arg(place)).expect_success();
        process::run(as_root("rm").arg("-rf").arg(place.join("lost+found"))).expect_success();
        disk
    }

    /// Mounts a file system that is there already over `place`; it recovers as after a loss of power.
    pub fn of(image: &Path, place: &Path) -> Disk {
        let disk = Disk { image: image.to_path_buf(), place: place.to_path_buf() };
        disk.mount();
        disk
    }

    /// Unmounts it. Nobody may hold a file of it open; the kernel itself may for a moment: what a killed process had in
    /// its io_uring is given back by a worker of the kernel's after the process has ended, which nothing announces.
    pub fn unmount(&self) {
        const BUSY: i32 = 32;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let unmounted = process::run(as_root("umount").arg(&self.place));
            if unmounted.status.code() != Some(BUSY) || deadline < Instant::now() {
                unmounted.expect_success();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn mount(&self) {
        process::run(as_root("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.place)).expect_success();
    }

    /// Gives whoever uses a disk of btrfs a quota, as `6M`, or none (`none`). The free space of the file system does
    /// not show it.
    pub fn limit(&self, limit: &str) {
        process::run(as_root("btrfs").args(["quota", "enable"]).arg(&self.place)).expect_success();
        process::run(as_root("btrfs").args(["qgroup", "limit", limit]).arg(&self.place)).expect_success();
    }

    /// Changes how the disk is mounted, as by `ro`.
    pub fn remount(&self, option: &str) {
        let option = format!("remount,{option}");
        process::run(as_root("mount").args(["-o", &option]).arg(&self.place)).expect_success();
    }

    /// From now on nothing reaches the disk, not even what the journal has not written yet.
    pub fn lose_power(&self) {
        process::run(as_root("/usr/sbin/xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.place)).expect_success();
    }

    /// From now on whoever changes anything on the disk waits until what this yields is dropped.
    pub fn freeze(&self) -> Frozen<'_> {
        process::run(as_root("/usr/sbin/fsfreeze").arg("--freeze").arg(&self.place)).expect_success();
        Frozen { place: &self.place }
    }

    /// The power is back: the file system is mounted again, and recovers. Nobody may hold a file of it open.
    pub fn recover(&self) {
        self.unmount();
        self.mount();
    }
}

/// A disk on which nothing changes; see [`Disk::freeze`].
pub struct Frozen<'a> {
    place: &'a Path,
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = as_root("/usr/sbin/fsfreeze").arg("--unfreeze").arg(self.place).status();
    }
}

/// A program that only root may run.
pub fn as_root(program: &str) -> Command {
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } == 0 {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-n", program]);
    command
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: whoever still holds a file of it dies with the scene.
        let _ = as_root("umount").arg("--lazy").arg(&self.place).stderr(Stdio::null()).status();
    }
}

/// A memory file system of a size of its own, mounted over a directory; it is unmounted when dropped.
pub struct Memory {
    place: PathBuf,
}

impl Memory {
    /// Mounts it for this user.
    pub fn new(size_bytes: u64, place: &Path) -> Memory {
        // SAFETY: take nothing.
        let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
        let options = format!("size={size_bytes},mode=0700,uid={user},gid={group}");
        process::run(as_root("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(place)).expect_success();
        Memory { place: place.to_path_buf() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Lazily: after a failure somebody may still have a file of it open.
        let _ = as_root("umount").arg("-l").arg(&self.place).status();
    }
}
