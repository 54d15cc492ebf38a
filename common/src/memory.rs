//! What a process's memory control groups leave it: pages of tmpfs are charged to the group of whoever writes them, and
//! beyond a group's limit the kernel kills instead of saying ENOSPC.
//!
//! Both versions of control groups are read, as cgroups(7) and the kernel's `cgroup-v1/memory.rst` and `cgroup-v2.rst`
//! describe them. Files are read by whoever asks, because the library has no heap.

use core::ffi::CStr;

use crate::configuration::parse_decimal;

/// `TMPFS_MAGIC` of statfs(2): file systems whose data is charged so.
pub const TMPFS: u64 = 0x0102_1994;

/// A limit from here on is none: the first version shows the largest number of pages.
const NO_LIMIT_BYTES: u64 = 1 << 60;

/// What the group leaves that leaves least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// What may be used yet, in bytes; what the kernel can drop counts.
    pub free_bytes: u64,
    /// The group's limit, in bytes.
    pub limit_bytes: u64,
}

impl Left {
    /// What is left where nothing is limited.
    pub const UNLIMITED: Left = Left { free_bytes: u64::MAX, limit_bytes: u64::MAX };
}

/// Memory for what is read; what does not fit is passed over.
pub struct Buffers<'a> {
    /// `/proc/PROCESS/cgroup`.
    pub groups: &'a mut [u8],
    /// The path of the file that is read.
    pub path: &'a mut [u8],
    /// The file itself: `memory.stat` has less than 4 KiB.
    pub text: &'a mut [u8],
}

/// What the groups of a process and those above them leave. `process` is its number, or `self`. Counters that take
/// long to gather are not asked for where `enough_bytes` are left without them. `read` reads a file from its beginning
/// and yields how much of the buffer that has filled.
pub fn left(
    process: &[u8],
    enough_bytes: u64,
    buffers: Buffers<'_>,
    read: &mut dyn FnMut(&CStr, &mut [u8]) -> Option<usize>,
) -> Left {
    let Buffers { groups, path, text } = buffers;
    let mut reader = Reader { path, text, read, enough_bytes };
    let Some(groups) = reader.listing(process, groups) else { return Left::UNLIMITED };
    let mut least = Left::UNLIMITED;
    for (files, group) in groups.split(|byte| *byte == b'\n').filter_map(group_of) {
        for group in and_above(group) {
            if let Some(left) = reader.left(files, group).filter(|left| left.free_bytes < least.free_bytes) {
                least = left;
            }
        }
    }
    least
}

/// The files of a memory group.
struct Files {
    mount: &'static [u8],
    limit: &'static [u8],
    usage: &'static [u8],
    /// Of the page cache's two counters in `memory.stat`, those that include the groups below.
    cache: [&'static [u8]; 2],
}

const FIRST_VERSION: Files = Files {
    mount: b"/sys/fs/cgroup/memory",
    limit: b"memory.limit_in_bytes",
    usage: b"memory.usage_in_bytes",
    cache: [b"total_inactive_file ", b"total_active_file "],
};
const SECOND_VERSION: Files = Files {
    mount: b"/sys/fs/cgroup",
    limit: b"memory.max",
    usage: b"memory.current",
    cache: [b"inactive_file ", b"active_file "],
};

/// What a line `ID:CONTROLLERS:/GROUP` says of memory: the files to look for, and the group without slashes around it.
fn group_of(line: &[u8]) -> Option<(&'static Files, &[u8])> {
    let mut fields = line.splitn(3, |byte| *byte == b':').skip(1);
    let (controllers, group) = (fields.next()?, fields.next()?.trim_ascii());
    let mut names = controllers.split(|byte| *byte == b',');
    let files = match controllers.is_empty() {
        true => &SECOND_VERSION,
        false if names.any(|name| name == b"memory") => &FIRST_VERSION,
        false => return None,
    };
    let group = group.strip_prefix(b"/").unwrap_or(group);
    Some((files, group.strip_suffix(b"/").unwrap_or(group)))
}

/// A group and those above it, the mount's own root last. In a container the path may be another than the mount shows;
/// then the root is the group.
fn and_above(group: &[u8]) -> impl Iterator<Item = &[u8]> {
    core::iter::successors(Some(group), |group| above(group))
}

fn above(group: &[u8]) -> Option<&[u8]> {
    match group.iter().rposition(|byte| *byte == b'/') {
        Some(end) => group.get(..end),
        None if group.is_empty() => None,
        None => Some(b""),
    }
}

struct Reader<'a> {
    path: &'a mut [u8],
    text: &'a mut [u8],
    read: &'a mut dyn FnMut(&CStr, &mut [u8]) -> Option<usize>,
    enough_bytes: u64,
}

impl Reader<'_> {
    fn listing<'b>(&mut self, process: &[u8], into: &'b mut [u8]) -> Option<&'b [u8]> {
        let path = joined(self.path, &[b"/proc/", process, b"/cgroup"])?;
        let length = (self.read)(path, into)?;
        into.get(..length)
    }

    /// `None` where there is no such group, or no limit.
    fn left(&mut self, files: &Files, group: &[u8]) -> Option<Left> {
        let limit_bytes = number(self.file(files, group, files.limit)?)?;
        if limit_bytes >= NO_LIMIT_BYTES {
            return None;
        }
        let used_bytes = number(self.file(files, group, files.usage)?)?;
        let free_bytes = limit_bytes.saturating_sub(used_bytes);
        if free_bytes >= self.enough_bytes {
            return Some(Left { free_bytes, limit_bytes });
        }
        let counters = self.file(files, group, b"memory.stat").unwrap_or_default();
        let counter = |name: &&[u8]| {
            let mut lines = counters.split(|byte| *byte == b'\n');
            lines.find_map(|line| line.strip_prefix(*name)).and_then(number).unwrap_or(0)
        };
        let droppable_bytes = files.cache.iter().map(counter).fold(0, u64::saturating_add);
        Some(Left { free_bytes: limit_bytes.saturating_sub(used_bytes.saturating_sub(droppable_bytes)), limit_bytes })
    }

    fn file(&mut self, files: &Files, group: &[u8], name: &[u8]) -> Option<&[u8]> {
        let path = joined(self.path, &[files.mount, b"/", group, b"/", name])?;
        let length = (self.read)(path, self.text)?;
        self.text.get(..length)
    }
}

/// The parts as one C string; `None` when the buffer is too small, or a part holds a NUL.
fn joined<'a>(buffer: &'a mut [u8], parts: &[&[u8]]) -> Option<&'a CStr> {
    let mut end = 0;
    for part in parts.iter().chain(&[&b"\0"[..]]) {
        buffer.get_mut(end..end + part.len())?.copy_from_slice(part);
        end += part.len();
    }
    CStr::from_bytes_with_nul(buffer.get(..end)?).ok()
}

/// A decimal number; `None` for `max`, and for whatever else is none.
fn number(text: &[u8]) -> Option<u64> {
    parse_decimal(text.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of what these files say; and how many were read.
    fn left_of(files: &[(&str, &str)], process: &str, enough_bytes: u64) -> (Left, usize) {
        let (mut groups, mut path, mut text) = ([0; 256], [0; 256], [0; 256]);
        let buffers = Buffers { groups: &mut groups, path: &mut path, text: &mut text };
        let mut reads = 0;
        let mut read = |path: &CStr, into: &mut [u8]| {
            let (_, text) = files.iter().find(|(name, _)| name.as_bytes() == path.to_bytes())?;
            reads += 1;
            into.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
            Some(text.len())
        };
        let left = left(process.as_bytes(), enough_bytes, buffers, &mut read);
        (left, reads)
    }

    const SECOND: [(&str, &str); 6] = [
        ("/proc/self/cgroup", "0::/job/step\n"),
        ("/sys/fs/cgroup/job/memory.max", "1000\n"),
        ("/sys/fs/cgroup/job/memory.current", "900\n"),
        ("/sys/fs/cgroup/job/memory.stat", "anon 400\nfile 500\ninactive_file 200\nactive_file 50\n"),
        ("/sys/fs/cgroup/job/step/memory.max", "max\n"),
        ("/sys/fs/cgroup/job/step/memory.current", "900\n"),
    ];

    #[test]
    fn the_least_on_the_way_up_counts() {
        assert_eq!(left_of(&SECOND, "self", u64::MAX).0, Left { free_bytes: 350, limit_bytes: 1000 });
        let tighter = [&[("/sys/fs/cgroup/job/step/memory.max", "901\n")], &SECOND[..]].concat();
        assert_eq!(left_of(&tighter, "self", u64::MAX).0, Left { free_bytes: 1, limit_bytes: 901 });
    }

    #[test]
    fn counters_are_not_asked_for_where_enough_is_left_without() {
        let (left, reads) = left_of(&SECOND, "self", 100);
        assert_eq!((left, reads), (Left { free_bytes: 100, limit_bytes: 1000 }, 4));
        assert_eq!(left_of(&SECOND, "self", 101).1, 5);
    }

    #[test]
    fn the_first_version_is_read_too_and_any_process() {
        let files = [
            ("/proc/42/cgroup", "5:cpu,cpuacct:/other\n4:memory:/job\n0::/\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "5000\n"),
            ("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "4096\n"),
            ("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "5000\n"),
            ("/sys/fs/cgroup/memory/job/memory.stat", "inactive_file 1\ntotal_inactive_file 1000\n"),
        ];
        assert_eq!(left_of(&files, "42", u64::MAX).0, Left { free_bytes: 96, limit_bytes: 4096 });
        assert_eq!(left_of(&files, "self", u64::MAX).0, Left::UNLIMITED);
    }

    #[test]
    fn in_a_container_the_mount_s_root_is_the_group() {
        let files = [
            ("/proc/self/cgroup", "4:memory:/elsewhere/job\n"),
            ("/sys/fs/cgroup/memory//memory.limit_in_bytes", "4096\n"),
            ("/sys/fs/cgroup/memory//memory.usage_in_bytes", "96\n"),
        ];
        assert_eq!(left_of(&files, "self", u64::MAX).0, Left { free_bytes: 4000, limit_bytes: 4096 });
    }

    #[test]
    fn without_a_limit_and_with_what_is_no_number_all_is_left() {
        assert_eq!(left_of(&[], "self", u64::MAX).0, Left::UNLIMITED);
        for limit in ["max", "", "-1", "99999999999999999999999"] {
            let files = [
                ("/proc/self/cgroup", "0::/\n"),
                ("/sys/fs/cgroup//memory.max", limit),
                ("/sys/fs/cgroup//memory.current", "1"),
            ];
            assert_eq!(left_of(&files, "self", u64::MAX).0, Left::UNLIMITED, "{limit}");
        }
        // A path that is too long for the buffer is passed over.
        let long = format!("0::/{}\n", "a".repeat(240));
        assert_eq!(left_of(&[("/proc/self/cgroup", &long)], "self", u64::MAX).0, Left::UNLIMITED);
    }
}
