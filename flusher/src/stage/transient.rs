//! Whether a stage ends with the job: a /dev/shm that only the job's own mount namespace has, as Slurm's
//! `job_container/tmpfs` makes it. Never says so when it cannot tell.

use std::path::Path;

use sheaf_common::memory::TMPFS;

/// Whether the directory lies in memory that the node's first process does not see: the kernel frees that when the last
/// process ends that does.
pub fn is_transient(directory: &Path) -> bool {
    let is_memory = rustix::fs::statfs(directory).is_ok_and(|status| status.f_type as u64 == TMPFS);
    // Not readable where /proc hides other users' processes (`hidepid`).
    let (Ok(stat), Ok(mounts)) = (rustix::fs::stat(directory), std::fs::read_to_string("/proc/1/mountinfo")) else {
        return false;
    };
    is_memory && mounts_of(&mounts, stat.st_dev).next().is_none()
}

/// The mounts of a device in a table of them: proc_pid_mountinfo(5), of which the third field tells.
pub fn mounts_of(mounts: &str, device: u64) -> impl Iterator<Item = &str> {
    let wanted = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    mounts.lines().filter(move |line| line.split(' ').nth(2) == Some(&wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_told_by_their_device() {
        let mounts = "22 1 0:21 / /proc rw - proc proc rw\n30 22 0:251 / /dev/shm rw,nosuid - tmpfs tmpfs rw\n";
        let is_mounted = |mounts, device| mounts_of(mounts, device).next().is_some();
        assert!(is_mounted(mounts, rustix::fs::makedev(0, 251)));
        assert!(!is_mounted(mounts, rustix::fs::makedev(0, 25)));
        assert!(!is_mounted("", rustix::fs::makedev(0, 21)));
    }

    #[test]
    fn what_the_node_has_is_not_the_jobs_own() {
        assert!(!is_transient(Path::new("/dev/shm")));
        assert!(!is_transient(Path::new("/nowhere")));
    }
}
