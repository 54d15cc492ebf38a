//! A file system that passes everything through to a directory, and fails where it is told to.
//!
//! `unreliable BACKING PLACE CONTROL` mounts `BACKING` over `PLACE` until it is unmounted. What goes wrong stands in
//! `CONTROL/rules`, which is read before each call; only calls on a store count (`.sheaf` and what is in it), and on
//! where segments wait for one in a further tier (`*.spool`), if the rules do not say otherwise; they are named in
//! `CONTROL/log`. Root may mount; others need `fusermount3`.

mod nodes;
mod rules;

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use nodes::{Nodes, checked, cstring};
use rules::{Action, Rules};

/// Nothing is remembered: every look asks.
const NO_TIME: Duration = Duration::ZERO;
/// Calls that may hang at the same time, and some that go on.
const THREADS: usize = 24;

type Outcome<T> = Result<T, Errno>;

struct Unreliable {
    nodes: Nodes,
    rules: Rules,
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

/// What lies there, with zeros behind the end of the file.
fn read_at_most(file: &fs::File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let (mut bytes, mut done) = (vec![0; length], 0);
    while done < length {
        match file.read_at(&mut bytes[done..], offset + done as u64)? {
            0 => break,
            count => done += count,
        }
    }
    Ok(bytes)
}

/// What the caller is told of a call that was made.
fn answered<T>(action: Option<Action>, value: T) -> Outcome<T> {
    match action {
        Some(Action::Lose(number)) => Err(Errno::from_i32(number)),
        _ => Ok(value),
    }
}

impl Unreliable {
    /// Asks the rules about a call on a file or on a name in it; an error is what they want.
    fn pass(&self, call: &str, inode: INodeNo, name: Option<&OsStr>) -> Outcome<Option<Action>> {
        if !self.nodes.is_counted(inode, name) && !self.rules.is_everywhere() {
            return Ok(None);
        }
        match self.rules.ask(call) {
            Some(Action::Fail(number)) => Err(Errno::from_i32(number)),
            action => Ok(action),
        }
    }

    fn plain(
        &self,
        call: &str,
        (inode, name): (INodeNo, Option<&OsStr>),
        act: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Outcome<()> {
        let action = self.pass(call, inode, name)?;
        act(&self.nodes.path(inode, name)?).map_err(|error| errno(&error))?;
        answered(action, ())
    }

    fn entry(
        &self,
        call: &str,
        (parent, name): (INodeNo, &OsStr),
        make: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Outcome<FileAttr> {
        self.plain(call, (parent, Some(name)), make)?;
        self.nodes.find(parent, name)
    }

    /// Opens the file behind a path. Direct access is the caller's: here it would want aligned buffers.
    fn open_file(&self, path: &Path, flags: i32, mode: u32) -> Outcome<FileHandle> {
        let kept = flags & (libc::O_EXCL | libc::O_TRUNC | libc::O_CREAT);
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let mut options = OpenOptions::new();
        let options = options.read(true).write(writes).custom_flags(kept | libc::O_CLOEXEC).mode(mode);
        options.open(path).map(|file| self.nodes.keep(file)).map_err(|error| errno(&error))
    }

    fn read_some(&self, inode: INodeNo, handle: FileHandle, offset: u64, size: u32) -> Outcome<Vec<u8>> {
        self.pass("read", inode, None)?;
        let file = self.nodes.file(handle)?;
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let left = length.saturating_sub(offset).min(size.into());
        read_at_most(&file, offset, left as usize).map_err(|error| errno(&error))
    }

    fn write_some(&self, inode: INodeNo, handle: FileHandle, offset: u64, data: &[u8]) -> Outcome<u32> {
        let action = self.pass("write", inode, None)?;
        let length = match action {
            Some(Action::Short) => data.len().div_ceil(2),
            _ => data.len(),
        };
        let file = self.nodes.file(handle)?;
        let before = read_at_most(&file, offset, length).map_err(|error| errno(&error))?;
        file.write_all_at(&data[..length], offset).map_err(|error| errno(&error))?;
        self.nodes.note_write(inode, offset, before);
        self.rules.record(offset, &data[..length]);
        answered(action, length as u32)
    }

    /// An fsync that fails loses what was written since the last one, as disks and network file systems do: what was
    /// there before is there again, or zeros. The next one succeeds and brings nothing back.
    fn sync(&self, inode: INodeNo, handle: FileHandle) -> Outcome<()> {
        let unsynced = self.nodes.take_unsynced(inode);
        let action = match self.pass("fsync", inode, None) {
            Ok(action) => action,
            Err(error) => {
                let file = self.nodes.file(handle)?;
                for (offset, before) in unsynced.into_iter().rev() {
                    let _ = file.write_all_at(&before, offset);
                }
                return Err(error);
            }
        };
        self.rules.record_flush();
        answered(action, ())
    }

    fn list(&self, inode: INodeNo) -> Outcome<Vec<(INodeNo, FileType, OsString)>> {
        let failed = |error: io::Error| errno(&error);
        let mut names =
            vec![(inode, FileType::Directory, OsString::from(".")), (inode, FileType::Directory, OsString::from(".."))];
        for entry in fs::read_dir(self.nodes.path(inode, None)?).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().ok().and_then(FileType::from_std).unwrap_or(FileType::RegularFile);
            let number = std::os::unix::fs::DirEntryExt::ino(&entry);
            names.push((INodeNo(number), kind, entry.file_name()));
        }
        names[2..].sort_by(|one, other| one.2.cmp(&other.2));
        Ok(names)
    }
}

/// Sends what came out of it: the value by the call that is named, or the error.
macro_rules! answer {
    ($reply:ident, $outcome:expr, $value:pat => $well:expr) => {
        match $outcome {
            Ok($value) => $well,
            Err(error) => $reply.error(error),
        }
    };
}

impl Filesystem for Unreliable {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Locks are asked for here, so that they can be refused.
        for flag in [InitFlags::FUSE_POSIX_LOCKS, InitFlags::FUSE_FLOCK_LOCKS, InitFlags::FUSE_ATOMIC_O_TRUNC] {
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.pass("lookup", parent, Some(name)).and_then(|_| self.nodes.find(parent, name));
        answer!(reply, found, attributes => reply.entry(&NO_TIME, &attributes, Generation(0)));
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.pass("getattr", inode, None).and_then(|_| self.nodes.attributes(inode));
        answer!(reply, found, attributes => reply.attr(&NO_TIME, &attributes));
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = |path: &Path| {
            if let Some(size) = size {
                OpenOptions::new().write(true).open(path)?.set_len(size)?;
            }
            if let Some(mode) = mode {
                fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))?;
            }
            if uid.is_some() || gid.is_some() {
                std::os::unix::fs::chown(path, uid, gid)?;
            }
            nodes::set_times(path, accessed, modified)
        };
        let call = if size.is_some() { "truncate" } else { "setattr" };
        let changed = self.plain(call, (inode, None), change).and_then(|()| self.nodes.attributes(inode));
        answer!(reply, changed, attributes => reply.attr(&NO_TIME, &attributes));
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        let text = self.pass("readlink", inode, None).and_then(|_| self.nodes.link_text(inode));
        answer!(reply, text, text => reply.data(text.as_encoded_bytes()));
    }

    fn mknod(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, device: u32, reply: ReplyEntry) {
        let made = self.entry("mknod", (parent, name), |path| {
            let path = cstring(path);
            // SAFETY: the path ends with NUL; the other arguments are integers.
            checked(unsafe { libc::mknod(path.as_ptr(), mode & !umask, device.into()) })
        });
        answer!(reply, made, attributes => reply.entry(&NO_TIME, &attributes, Generation(0)));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let make = |path: &Path| DirBuilder::new().mode(mode & !umask).create(path);
        let made = self.entry("mkdir", (parent, name), make);
        answer!(reply, made, attributes => reply.entry(&NO_TIME, &attributes, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.plain("unlink", (parent, Some(name)), |path| fs::remove_file(path)), () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.plain("rmdir", (parent, Some(name)), |path| fs::remove_dir(path)), () => reply.ok());
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = self.entry("symlink", (parent, name), |path| std::os::unix::fs::symlink(target, path));
        answer!(reply, made, attributes => reply.entry(&NO_TIME, &attributes, Generation(0)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let call = if flags.is_empty() { "rename" } else { "rename-with-flags" };
        let renamed = self.nodes.path(new_parent, Some(new_name)).and_then(|to| {
            self.plain(call, (parent, Some(name)), |from| {
                let (from, to, at) = (cstring(from), cstring(&to), libc::AT_FDCWD);
                // SAFETY: both paths end with NUL; the other arguments are integers.
                checked(unsafe { libc::renameat2(at, from.as_ptr(), at, to.as_ptr(), flags.bits()) })
            })
        });
        answer!(reply, renamed, () => reply.ok());
    }

    fn link(&self, _: &Request, inode: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let linked = self.nodes.path(inode, None).and_then(|from| {
            self.entry("link", (new_parent, new_name), |to| {
                let (from, to, at) = (cstring(&from), cstring(to), libc::AT_FDCWD);
                // SAFETY: both paths end with NUL; the other arguments are integers.
                checked(unsafe { libc::linkat(at, from.as_ptr(), at, to.as_ptr(), libc::AT_SYMLINK_FOLLOW) })
            })
        });
        answer!(reply, linked, attributes => reply.entry(&NO_TIME, &attributes, Generation(0)));
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let call = if flags.0 & libc::O_DIRECT == 0 { "open" } else { "open-direct" };
        let path = self.pass(call, inode, None).and_then(|_| self.nodes.path(inode, None));
        let opened =
            path.and_then(|path| self.open_file(&path, flags.0 & libc::O_TRUNC | flags.0 & libc::O_ACCMODE, 0));
        answer!(reply, opened, handle => reply.opened(handle, FopenFlags::empty()));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.pass("create", parent, Some(name)).and_then(|action| {
            let path = self.nodes.path(parent, Some(name))?;
            let handle = self.open_file(&path, flags | libc::O_CREAT, mode & !umask)?;
            answered(action, (handle, self.nodes.find(parent, name)?))
        });
        answer!(reply, made, (handle, attributes) => {
            reply.created(&NO_TIME, &attributes, Generation(0), handle, FopenFlags::empty())
        });
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answer!(reply, self.read_some(inode, handle, offset, size), bytes => reply.data(&bytes));
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        answer!(reply, self.write_some(inode, handle, offset, data), size => reply.written(size));
    }

    fn flush(&self, _: &Request, inode: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        answer!(reply, self.pass("flush", inode, None), _ => reply.ok());
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.nodes.close(handle);
        reply.ok();
    }

    fn fsync(&self, _: &Request, inode: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.sync(inode, handle), () => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.pass("fsync-directory", inode, None), _ => reply.ok());
    }

    fn opendir(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let passed = self.pass("open-directory", inode, None);
        answer!(reply, passed, _ => reply.opened(FileHandle(0), FopenFlags::empty()));
    }

    fn readdir(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let names = self.pass("read-directory", inode, None).and_then(|_| self.list(inode));
        answer!(reply, names, names => {
            for (index, (number, kind, name)) in names.iter().enumerate().skip(offset as usize) {
                if reply.add(*number, index as u64 + 1, *kind, name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _: &Request, inode: INodeNo, reply: ReplyStatfs) {
        let found = self.pass("statfs", inode, None).and_then(|_| self.nodes.path(inode, None)).and_then(|path| {
            // SAFETY: statvfs is plain data, for which zeros are valid.
            let mut status: libc::statvfs = unsafe { std::mem::zeroed() };
            // SAFETY: the path ends with NUL, and the buffer is a statvfs.
            checked(unsafe { libc::statvfs(cstring(&path).as_ptr(), &mut status) }).map_err(|error| errno(&error))?;
            Ok(status)
        });
        answer!(reply, found, status => reply.statfs(
            status.f_blocks,
            status.f_bfree,
            status.f_bavail,
            status.f_files,
            status.f_ffree,
            status.f_bsize as u32,
            255,
            status.f_frsize as u32,
        ));
    }

    fn setlk(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        _: bool,
        reply: ReplyEmpty,
    ) {
        answer!(reply, self.pass("lock", inode, None), _ => reply.ok());
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let file = self.pass("fallocate", inode, None).and_then(|_| self.nodes.file(handle));
        let allocated = file.and_then(|file| {
            // SAFETY: the descriptor is open; the other arguments are integers.
            checked(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, length as i64) })
                .map_err(|error| errno(&error))
        });
        answer!(reply, allocated, () => reply.ok());
    }

    fn lseek(&self, _: &Request, inode: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let file = self.pass("lseek", inode, None).and_then(|_| self.nodes.file(handle));
        let found = file.and_then(|file| {
            // SAFETY: the descriptor is open; the other arguments are integers.
            match unsafe { libc::lseek(file.as_raw_fd(), offset, whence) } {
                -1 => Err(errno(&io::Error::last_os_error())),
                offset => Ok(offset),
            }
        });
        answer!(reply, found, offset => reply.offset(offset));
    }
}

fn main() {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [backing, place, control] = arguments.as_slice() else { panic!("usage: unreliable BACKING PLACE CONTROL") };
    // SAFETY: takes an integer; modes are the callers' business.
    unsafe { libc::umask(0) };
    let nodes = Nodes::new(backing).expect("the backing directory is there");
    let rules = Rules::new(control).expect("the control directory is there");
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("unreliable".to_string()), MountOption::DefaultPermissions];
    config.n_threads = Some(THREADS);
    fuser::mount(Unreliable { nodes, rules }, place, &config).expect("it can be mounted");
}
