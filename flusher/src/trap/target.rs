//! A trapped program, looked at from outside: its memory, its directories, and whether its calls are ours to make.
//!
//! Everything here is read while one of its threads waits for an answer. System calls are raw (rustix), so the library
//! that is preloaded into this process has no part in them.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Longest path that the kernel takes, without its NUL.
pub const PATH_MAX: usize = 4095;
/// Memory is mapped in multiples of this everywhere.
const PAGE: usize = 4096;
/// The name of the preloaded library, as it ends a line of /proc/PID/maps.
const LIBRARY: &[u8] = b"/libsheaf.so";

/// One thread of a program, which waits for an answer.
pub struct Target {
    thread: u32,
}

/// What is common to a program's threads, and matters for files that it makes.
pub struct Identity {
    /// The process.
    pub process: u32,
    /// Bits that are taken from the modes of new files.
    pub umask: libc::mode_t,
}

/// What decides what names mean, and who may use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surroundings {
    user: u32,
    group: u32,
    mounts: u64,
}

impl Target {
    /// The thread with this number.
    pub fn new(thread: u32) -> Target {
        Target { thread }
    }

    fn proc(&self, name: impl std::fmt::Display) -> String {
        format!("/proc/{}/{name}", self.thread)
    }

    fn link(&self, name: impl std::fmt::Display) -> Option<Vec<u8>> {
        rustix::fs::readlink(self.proc(name), Vec::new()).ok().map(CString::into_bytes)
    }

    /// Reads memory; an error when not all of it is there.
    ///
    /// # Errors
    /// EFAULT, or that this process may not look.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        // SAFETY: bytes of zero are valid for every buffer, and the kernel writes at most as many as there is room for.
        self.transfer(address, bytes.as_mut_ptr(), bytes.len(), libc::process_vm_readv)
    }

    /// Writes memory.
    ///
    /// # Errors
    /// As in [`Target::read`].
    pub fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        self.transfer(address, bytes.as_ptr().cast_mut(), bytes.len(), libc::process_vm_writev)
    }

    fn transfer(&self, address: u64, bytes: *mut u8, length: usize, copy: Copy) -> io::Result<()> {
        let local = libc::iovec { iov_base: bytes.cast(), iov_len: length };
        let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: length };
        // SAFETY: the callers pass a buffer of this length, which is written only when it was borrowed mutably; the
        // kernel checks the other process's addresses.
        let copied = unsafe { copy(self.thread as libc::pid_t, &local, 1, &remote, 1, 0) };
        match usize::try_from(copied) {
            Ok(copied) if copied == length => Ok(()),
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// Reads a structure of plain numbers.
    ///
    /// # Errors
    /// As in [`Target::read`].
    pub fn read_numbers<const COUNT: usize>(&self, address: u64) -> io::Result<[i64; COUNT]> {
        let mut numbers = [0; COUNT];
        for (index, number) in numbers.iter_mut().enumerate() {
            let mut bytes = [0; size_of::<i64>()];
            self.read(address.wrapping_add((index * bytes.len()) as u64), &mut bytes)?;
            *number = i64::from_ne_bytes(bytes);
        }
        Ok(numbers)
    }

    /// Reads a C string of a path's length, page by page: the next page need not be there.
    ///
    /// # Errors
    /// ENAMETOOLONG, or as in [`Target::read`].
    pub fn read_string(&self, address: u64) -> io::Result<CString> {
        let mut text = vec![0; PATH_MAX + 1];
        let mut length = 0;
        while length < text.len() {
            let start = address.wrapping_add(length as u64);
            let end = text.len().min(length + PAGE - start as usize % PAGE);
            let Some(part) = text.get_mut(length..end) else { break };
            self.read(start, part)?;
            if let Some(found) = part.iter().position(|byte| *byte == 0) {
                text.truncate(length + found);
                return CString::new(text).map_err(io::Error::other);
            }
            length = end;
        }
        Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG))
    }

    /// What a path of the program is called in this process; `None` when there is no such name.
    pub fn absolute(&self, directory: i32, path: &CString) -> Option<CString> {
        let bytes = path.as_bytes();
        let own = [(&b"/proc/self/"[..], ""), (b"/proc/thread-self/", ""), (b"/dev/fd/", "fd/")];
        if let Some((rest, at)) = own.iter().find_map(|(own, at)| Some((bytes.strip_prefix(*own)?, at))) {
            return CString::new([self.proc(at).as_bytes(), rest].concat()).ok();
        }
        if bytes.first()? == &b'/' {
            return Some(path.clone());
        }
        let mut name = match directory {
            libc::AT_FDCWD => self.link("cwd")?,
            number => self.link(format_args!("fd/{number}"))?,
        };
        if name.first() != Some(&b'/') {
            return None;
        }
        name.push(b'/');
        name.extend_from_slice(bytes);
        if name.len() > PATH_MAX { None } else { CString::new(name).ok() }
    }

    /// What the kernel calls the file behind a descriptor.
    pub fn path_of_descriptor(&self, number: i32) -> Option<CString> {
        self.link(format_args!("fd/{number}"))
            .filter(|path| path.first() == Some(&b'/'))
            .and_then(|path| CString::new(path).ok())
    }

    /// The name in /proc of a descriptor.
    pub fn name_of_descriptor(&self, number: i32) -> Option<CString> {
        CString::new(self.proc(format_args!("fd/{number}"))).ok()
    }

    /// The program's own descriptor, shared.
    ///
    /// # Errors
    /// When this process may not have it.
    pub fn share_descriptor(&self, process: u32, number: i32) -> io::Result<OwnedFd> {
        let process = Pid::from_raw(process as i32).ok_or(io::ErrorKind::NotFound)?;
        let handle = pidfd_open(process, PidfdFlags::empty())?;
        Ok(pidfd_getfd(handle, number, PidfdGetfdFlags::empty())?)
    }

    /// What new files depend on.
    pub fn identity(&self) -> Option<Identity> {
        let text = fs::read_to_string(self.proc("status")).ok()?;
        let field = |name| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let umask = libc::mode_t::from_str_radix(field("Umask:")?, 8).ok()?;
        Some(Identity { process: field("Tgid:")?.parse().ok()?, umask })
    }

    /// The file that it executes.
    pub fn executable(&self) -> Option<OsString> {
        self.link("exe").map(OsString::from_vec)
    }

    /// Whose permissions it has, and which mounts it sees; `None` when it has another root directory.
    pub fn surroundings(&self) -> Option<Surroundings> {
        let owner = rustix::fs::stat(self.proc("")).ok()?;
        let mounts = rustix::fs::stat(self.proc("ns/mnt")).ok()?;
        self.link("root").filter(|root| root == b"/")?;
        Some(Surroundings { user: owner.st_uid, group: owner.st_gid, mounts: mounts.st_ino })
    }

    /// Whether the preloaded library has seen the call that was made at `instruction`, or makes it: then it is none of
    /// ours. Calls that such a program or one of its other libraries makes itself, past its C library, the library has
    /// not seen.
    pub fn is_served_by_library(&self, instruction: u64) -> bool {
        let Ok(maps) = fs::read(self.proc("maps")) else { return false };
        let mut lines = maps.split(|byte| *byte == b'\n');
        let is_here = |line: &&[u8]| range(line).is_some_and(|range| range.contains(&instruction));
        let caller = lines.clone().find(is_here).and_then(mapped_file);
        lines.any(|line| line.ends_with(LIBRARY)) && caller.is_none_or(makes_calls_of_others)
    }
}

/// Whether a file's code makes system calls in the name of others: the C library (called libc.so.6 or libc-2.31.so, and
/// in pieces before 2.34), its loader, and the preloaded library.
fn makes_calls_of_others(file: &[u8]) -> bool {
    let name = file.rsplit(|byte| *byte == b'/').next().unwrap_or(file);
    let starts: [&[u8]; 6] = [b"libc.so", b"libc-2.", b"libpthread.so", b"libpthread-2.", b"ld-", b"ld.so"];
    file.ends_with(LIBRARY) || starts.iter().any(|start| name.starts_with(start))
}

type Copy = unsafe extern "C" fn(
    libc::pid_t,
    *const libc::iovec,
    libc::c_ulong,
    *const libc::iovec,
    libc::c_ulong,
    libc::c_ulong,
) -> libc::ssize_t;

/// The addresses of a line of /proc/PID/maps.
fn range(line: &[u8]) -> Option<Range<u64>> {
    let text = std::str::from_utf8(line.split(|byte| *byte == b' ').next()?).ok()?;
    let (start, end) = text.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

/// The file of a line of /proc/PID/maps.
fn mapped_file(line: &[u8]) -> Option<&[u8]> {
    line.get(line.iter().position(|byte| *byte == b'/')?..)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn own() -> Target {
        Target::new(rustix::thread::gettid().as_raw_nonzero().get() as u32)
    }

    #[test]
    fn memory_is_read_and_written() {
        let (target, text) = (own(), CString::new("/a/path").unwrap());
        assert_eq!(target.read_string(text.as_ptr() as u64).unwrap(), text);
        let mut numbers = [1i64, 2, 3];
        target.write(numbers.as_mut_ptr() as u64, &7i64.to_ne_bytes()).unwrap();
        assert_eq!(target.read_numbers::<3>(numbers.as_ptr() as u64).unwrap(), [7, 2, 3]);
        let error = target.read_string(8).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    }

    #[test]
    fn a_string_may_end_where_memory_ends() {
        // SAFETY: two new pages, of which the second is given back; the write stays inside the first.
        let start = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let start = libc::mmap(std::ptr::null_mut(), 2 * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_eq!(libc::munmap(start.add(PAGE), PAGE), 0);
            start.cast::<u8>().add(PAGE - 3).copy_from_nonoverlapping(c"/x".as_ptr().cast(), 3);
            start as u64
        };
        assert_eq!(own().read_string(start + PAGE as u64 - 3).unwrap().as_bytes(), b"/x");
    }

    #[test]
    fn names_become_absolute() {
        let directory = std::env::current_dir().unwrap();
        let absolute = |path: &str| own().absolute(libc::AT_FDCWD, &CString::new(path).unwrap());
        assert_eq!(absolute("a/b").unwrap().as_bytes(), directory.join("a/b").as_os_str().as_bytes());
        assert_eq!(absolute("/a//b").unwrap().as_bytes(), b"/a//b");
        assert_eq!(absolute(""), None);
        assert!(absolute("/proc/self/fd/3").unwrap().as_bytes().ends_with(b"/fd/3"));
        assert_eq!(absolute("/dev/fd/3"), absolute("/proc/self/fd/3"));
        assert_eq!(own().absolute(1 << 20, &CString::new("a").unwrap()), None);
    }

    #[test]
    fn this_process_has_its_own_surroundings_and_no_library() {
        let target = own();
        let main = Target::new(std::process::id());
        assert!(target.surroundings().is_some());
        assert_eq!(target.surroundings(), main.surroundings());
        let identity = target.identity().unwrap();
        assert_eq!(identity.process, std::process::id());
        assert!(!target.is_served_by_library(0));
    }

    #[test]
    fn the_c_library_makes_the_calls_of_others() {
        for file in [
            "/lib/libc.so.6",
            "/lib/x86_64-linux-gnu/libpthread-2.31.so",
            "/lib64/ld-linux-x86-64.so.2",
            "/opt/libsheaf.so",
        ] {
            assert!(makes_calls_of_others(file.as_bytes()), "{file}");
        }
        for file in ["/bin/program", "/lib/libcrypto.so.3", "/venv/_safetensors_rust.abi3.so"] {
            assert!(!makes_calls_of_others(file.as_bytes()), "{file}");
        }
    }
}
