//! Raw system calls. They bypass the C library, so that the library cannot re-enter itself and `errno` stays as it was.
//!
//! Nothing here may touch `errno` (but [`set_errno`]), retry on behalf of the caller (but [`retry`]), or allocate.

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use core::mem::MaybeUninit;

use sheaf_common::replaced::{FileIdentity, nanoseconds};

/// An error number of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub c_int);

/// What a system call yields.
pub type Result<T> = core::result::Result<T, Errno>;

/// The kernel's and the C library's `struct stat`, which agree on 64-bit.
pub type Stat = libc::stat;

/// Cycles of the processor's time counter in a [`moment`], as a power of two. The counters of aarch64 are slower.
#[cfg(target_arch = "x86_64")]
const MOMENT_BITS: u32 = 23;
#[cfg(not(target_arch = "x86_64"))]
const MOMENT_BITS: u32 = 20;

/// `F_SETSIG` of fcntl(2), which the libc crate lacks.
const F_SETSIG: c_int = 10;

/// Relative paths start at the working directory.
pub const AT_FDCWD: c_int = libc::AT_FDCWD;

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

/// The calling thread's `errno`.
pub fn errno() -> c_int {
    // SAFETY: the C library yields a valid pointer to the thread's own errno.
    unsafe { *__errno_location() }
}

/// Sets the calling thread's `errno`.
pub fn set_errno(number: c_int) {
    // SAFETY: as in `errno`.
    unsafe { *__errno_location() = number }
}

/// Makes a system call with up to six arguments; yields what the kernel puts into the result register.
///
/// # Safety
/// The arguments must be what the call `number` takes; pointers must be valid for what it reads and writes.
#[cfg(target_arch = "x86_64")]
#[inline]
pub unsafe fn syscall(number: c_long, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    // SAFETY: the kernel's calling convention: number in rax, arguments as below, rcx and r11 clobbered.
    unsafe {
        core::arch::asm!(
            "syscall", inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _, options(nostack)
        );
    }
    result
}

/// Makes a system call with up to six arguments; yields what the kernel puts into the result register.
///
/// # Safety
/// The arguments must be what the call `number` takes; pointers must be valid for what it reads and writes.
#[cfg(target_arch = "aarch64")]
#[inline]
pub unsafe fn syscall(number: c_long, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    // SAFETY: the kernel's calling convention: number in x8, arguments in x0 to x5, the result in x0.
    unsafe {
        core::arch::asm!(
            "svc 0", in("x8") number, inlateout("x0") a as isize => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f, options(nostack)
        );
    }
    result
}

/// The kernel's answer as a [`Result`].
fn check(result: isize) -> Result<usize> {
    if (-4095..0).contains(&result) { Err(Errno(-result as c_int)) } else { Ok(result as usize) }
}

macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {{
        let given = [$($argument as usize),*];
        let mut arguments = [0usize; 6];
        for (place, value) in arguments.iter_mut().zip(given) {
            *place = value;
        }
        check(syscall($number as c_long, arguments))
    }};
}

/// Repeats a call that a signal has interrupted.
pub fn retry<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match call() {
            Err(Errno(libc::EINTR)) => {}
            result => return result,
        }
    }
}

/// openat(2).
pub fn openat(directory: c_int, path: &CStr, flags: c_int, mode: c_uint) -> Result<c_int> {
    // SAFETY: the path is NUL-terminated and outlives the call.
    unsafe { call!(libc::SYS_openat, directory, path.as_ptr(), flags, mode) }.map(|fd| fd as c_int)
}

/// Opens a file for the library's own short use: closed on exec, and never one of the three standard numbers.
pub fn open_own(path: &CStr, flags: c_int, mode: c_uint) -> Result<Descriptor> {
    openat(AT_FDCWD, path, flags | libc::O_CLOEXEC, mode).and_then(Descriptor::own)
}

/// A file descriptor that is closed at the end of its scope.
pub struct Descriptor(c_int);

impl Descriptor {
    /// Takes a new descriptor over, moved away from the standard numbers: a program that closed its standard output
    /// may write to that number at any time.
    pub fn own(fd: c_int) -> Result<Descriptor> {
        let given = Descriptor(fd);
        if fd > 2 {
            return Ok(given);
        }
        fcntl(fd, libc::F_DUPFD_CLOEXEC, 3).map(Descriptor)
    }

    /// Takes a descriptor over that is meant for the program, whatever its number.
    pub fn take(fd: c_int) -> Descriptor {
        Descriptor(fd)
    }

    /// The number.
    pub fn number(&self) -> c_int {
        self.0
    }

    /// Gives the number up, to the program.
    pub fn release(self) -> c_int {
        let fd = self.0;
        core::mem::forget(self);
        fd
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        close(self.0);
    }
}

/// close(2). What it says is of no use to us.
pub fn close(fd: c_int) {
    // SAFETY: closes a descriptor that the caller owns; no memory is involved.
    let _ = unsafe { call!(libc::SYS_close, fd) };
}

/// newfstatat(2).
pub fn statat(directory: c_int, path: &CStr, flags: c_int) -> Result<Stat> {
    let mut stat = MaybeUninit::<Stat>::uninit();
    // SAFETY: the path is NUL-terminated, the buffer has the size of the kernel's structure.
    unsafe { call!(libc::SYS_newfstatat, directory, path.as_ptr(), stat.as_mut_ptr(), flags) }?;
    // SAFETY: the kernel has filled the structure.
    Ok(unsafe { stat.assume_init() })
}

/// lstat(2) of an absolute path.
pub fn lstat(path: &CStr) -> Result<Stat> {
    statat(AT_FDCWD, path, libc::AT_SYMLINK_NOFOLLOW)
}

/// fstat(2).
pub fn fstat(fd: c_int) -> Result<Stat> {
    statat(fd, c"", libc::AT_EMPTY_PATH)
}

/// statx(2) into the program's buffer.
///
/// # Safety
/// `buffer` must be valid for writing a `struct statx`.
pub unsafe fn statx(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    buffer: *mut c_void,
) -> Result<()> {
    // SAFETY: passed on from the caller; the kernel checks the path.
    unsafe { call!(libc::SYS_statx, directory, path, flags, mask, buffer) }.map(drop)
}

/// What tells the file at an absolute path from every other.
pub fn identity(path: &CStr) -> Result<FileIdentity> {
    let mut buffer = MaybeUninit::<libc::statx>::uninit();
    let mask = libc::STATX_INO | libc::STATX_MTIME | libc::STATX_BTIME;
    // SAFETY: the path is NUL-terminated, the buffer is the kernel's structure.
    match unsafe { statx(AT_FDCWD, path.as_ptr(), libc::AT_SYMLINK_NOFOLLOW, mask, buffer.as_mut_ptr().cast()) } {
        Ok(()) => {}
        Err(error @ Errno(libc::ENOENT | libc::ENOTDIR)) => return Err(error),
        Err(_) => {
            // Older kernels, and sandboxes that forbid the call.
            let stat = lstat(path)?;
            let modified_ns = nanoseconds(stat.st_mtime, stat.st_mtime_nsec as u32);
            return Ok(FileIdentity { inode: stat.st_ino, born_ns: 0, modified_ns });
        }
    }
    // SAFETY: the kernel has filled the structure.
    let found = unsafe { buffer.assume_init() };
    let time_ns = |time: libc::statx_timestamp| nanoseconds(time.tv_sec, time.tv_nsec);
    let born_ns = if found.stx_mask & libc::STATX_BTIME != 0 { time_ns(found.stx_btime) } else { 0 };
    Ok(FileIdentity { inode: found.stx_ino, born_ns, modified_ns: time_ns(found.stx_mtime) })
}

/// Whether an absolute path exists, following links.
pub fn exists(path: &CStr) -> bool {
    access(path, libc::F_OK).is_ok()
}

/// access(2) of an absolute path.
pub fn access(path: &CStr, mode: c_int) -> Result<()> {
    // SAFETY: the path is NUL-terminated.
    unsafe { call!(libc::SYS_faccessat, AT_FDCWD, path.as_ptr(), mode) }.map(drop)
}

/// faccessat2(2).
///
/// # Safety
/// `path` must be a pointer that the program handed to us as a path.
pub unsafe fn faccessat2(directory: c_int, path: *const c_char, mode: c_int, flags: c_int) -> Result<()> {
    // SAFETY: the kernel checks the path.
    unsafe { call!(libc::SYS_faccessat2, directory, path, mode, flags) }.map(drop)
}

/// Whether the process may write to what is at an absolute path, by its effective ids.
pub fn may_write(path: &CStr) -> Result<()> {
    // SAFETY: the path is a C string.
    match unsafe { faccessat2(AT_FDCWD, path.as_ptr(), libc::W_OK, libc::AT_EACCESS) } {
        // Older kernels, and containers that do not know the call.
        Err(Errno(libc::ENOSYS | libc::EPERM)) => access(path, libc::W_OK),
        result => result,
    }
}

/// readlinkat(2); yields how many bytes were written.
pub fn readlinkat(directory: c_int, path: &CStr, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the path is NUL-terminated, the kernel writes at most the buffer's length.
    unsafe { call!(libc::SYS_readlinkat, directory, path.as_ptr(), buffer.as_mut_ptr(), buffer.len()) }
}

/// getcwd(2); yields the length with the final NUL.
pub fn getcwd(buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most the buffer's length.
    unsafe { call!(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) }
}

/// renameat(2), or renameat2(2) when there are flags: older kernels lack it.
pub fn rename(from: (c_int, &CStr), to: (c_int, &CStr), flags: c_uint) -> Result<()> {
    let number = if flags == 0 { libc::SYS_renameat } else { libc::SYS_renameat2 };
    // SAFETY: both paths are NUL-terminated.
    unsafe { call!(number, from.0, from.1.as_ptr(), to.0, to.1.as_ptr(), flags) }.map(drop)
}

/// unlinkat(2).
pub fn unlinkat(directory: c_int, path: &CStr, flags: c_int) -> Result<()> {
    // SAFETY: the path is NUL-terminated.
    unsafe { call!(libc::SYS_unlinkat, directory, path.as_ptr(), flags) }.map(drop)
}

/// unlink(2) of an absolute path.
pub fn unlink(path: &CStr) -> Result<()> {
    unlinkat(AT_FDCWD, path, 0)
}

/// rmdir(2) of an absolute path.
pub fn rmdir(path: &CStr) -> Result<()> {
    unlinkat(AT_FDCWD, path, libc::AT_REMOVEDIR)
}

/// mkdirat(2).
pub fn mkdirat(directory: c_int, path: &CStr, mode: c_uint) -> Result<()> {
    // SAFETY: the path is NUL-terminated.
    unsafe { call!(libc::SYS_mkdirat, directory, path.as_ptr(), mode) }.map(drop)
}

/// mknodat(2).
///
/// # Safety
/// `path` must be a pointer that the program handed to us as a path, or a C string.
pub unsafe fn mknodat(directory: c_int, path: *const c_char, mode: c_uint, device: libc::dev_t) -> Result<()> {
    // The kernel takes devices as 32 bits.
    let device = u32::try_from(device).map_err(|_| Errno(libc::EINVAL))?;
    // SAFETY: the kernel checks the path.
    unsafe { call!(libc::SYS_mknodat, directory, path, mode, device) }.map(drop)
}

/// linkat(2).
pub fn link(from: (c_int, &CStr), to: (c_int, &CStr), flags: c_int) -> Result<()> {
    // SAFETY: both paths are NUL-terminated.
    unsafe { call!(libc::SYS_linkat, from.0, from.1.as_ptr(), to.0, to.1.as_ptr(), flags) }.map(drop)
}

/// symlinkat(2).
pub fn symlinkat(target: &CStr, directory: c_int, path: &CStr) -> Result<()> {
    // SAFETY: both texts are NUL-terminated.
    unsafe { call!(libc::SYS_symlinkat, target.as_ptr(), directory, path.as_ptr()) }.map(drop)
}

/// fchmod(2).
pub fn fchmod(fd: c_int, mode: c_uint) -> Result<()> {
    // SAFETY: no memory is involved.
    unsafe { call!(libc::SYS_fchmod, fd, mode) }.map(drop)
}

/// chmod(2) of an absolute path, following links.
pub fn chmod(path: &CStr, mode: c_uint) -> Result<()> {
    // SAFETY: the path is NUL-terminated.
    unsafe { call!(libc::SYS_fchmodat, AT_FDCWD, path.as_ptr(), mode) }.map(drop)
}

/// fchown(2).
pub fn fchown(fd: c_int, user: c_uint, group: c_uint) -> Result<()> {
    // SAFETY: no memory is involved.
    unsafe { call!(libc::SYS_fchown, fd, user, group) }.map(drop)
}

/// Gives what is at an absolute path another group, following links.
pub fn change_group(path: &CStr, group: c_uint) -> Result<()> {
    // SAFETY: the path is NUL-terminated; an owner of all ones means that it stays.
    unsafe { call!(libc::SYS_fchownat, AT_FDCWD, path.as_ptr(), -1isize, group, 0) }.map(drop)
}

/// futimens(2).
pub fn futimens(fd: c_int, times: &[libc::timespec; 2]) -> Result<()> {
    // SAFETY: a null path means the descriptor itself; two valid times are read.
    unsafe { call!(libc::SYS_utimensat, fd, 0, times.as_ptr(), 0) }.map(drop)
}

/// ftruncate(2).
pub fn ftruncate(fd: c_int, length: i64) -> Result<()> {
    // SAFETY: no memory is involved.
    unsafe { call!(libc::SYS_ftruncate, fd, length) }.map(drop)
}

/// truncate(2).
pub fn truncate(path: &CStr, length: i64) -> Result<()> {
    // SAFETY: the path is NUL-terminated.
    unsafe { call!(libc::SYS_truncate, path.as_ptr(), length) }.map(drop)
}

/// fcntl(2) with an integer.
pub fn fcntl(fd: c_int, command: c_int, argument: c_int) -> Result<c_int> {
    // SAFETY: only commands that take an integer are used.
    unsafe { call!(libc::SYS_fcntl, fd, command, argument) }.map(|value| value as c_int)
}

/// Takes a read lease on a file of this user: granted when nobody can write to it. Who wants to write later waits until
/// the descriptor is closed; the kernel then sends this process a signal, and must send none that could end it.
pub fn lease_for_reading(fd: c_int) -> Result<()> {
    fcntl(fd, F_SETSIG, libc::SIGURG)?;
    fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK).map(drop)
}

/// Whether a read lease is still there, and nobody has asked to write.
pub fn is_read_leased(fd: c_int) -> bool {
    fcntl(fd, libc::F_GETLEASE, 0) == Ok(libc::F_RDLCK)
}

/// Takes a lock of the process on a whole file, or fails at once.
pub fn lock(file: &Descriptor) -> Result<()> {
    let (kind, whence) = (libc::F_WRLCK as libc::c_short, libc::SEEK_SET as libc::c_short);
    let lock = libc::flock { l_type: kind, l_whence: whence, l_start: 0, l_len: 0, l_pid: 0 };
    // SAFETY: the kernel reads one structure.
    unsafe { call!(libc::SYS_fcntl, file.number(), libc::F_SETLK, &raw const lock) }.map(drop)
}

/// read(2).
pub fn read(fd: c_int, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most the buffer's length.
    unsafe { call!(libc::SYS_read, fd, buffer.as_mut_ptr(), buffer.len()) }
}

/// Copies a program's vector, which may not be there: then EFAULT.
pub fn copy_vector(from: *const libc::iovec, into: &mut [libc::iovec]) -> Result<()> {
    let length = size_of_val(into);
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: length };
    let remote = libc::iovec { iov_base: from.cast_mut().cast(), iov_len: length };
    let process = process_id();
    // SAFETY: the kernel writes the slice's own bytes, of a type that any bits are a value of, and checks the others.
    let copied = unsafe { call!(libc::SYS_process_vm_readv, process, &raw const local, 1, &raw const remote, 1, 0) }?;
    if copied == length { Ok(()) } else { Err(Errno(libc::EFAULT)) }
}

/// write(2).
pub fn write(fd: c_int, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the kernel reads at most the slice's length.
    unsafe { call!(libc::SYS_write, fd, bytes.as_ptr(), bytes.len()) }
}

/// copy_file_range(2) at both files' own positions.
pub fn copy_file_range(from: c_int, to: c_int, length: usize) -> Result<usize> {
    // SAFETY: null offsets mean the files' own positions.
    unsafe { call!(libc::SYS_copy_file_range, from, 0, to, 0, length, 0) }
}

/// sendfile(2) at both files' own positions.
pub fn sendfile(from: c_int, to: c_int, length: usize) -> Result<usize> {
    // SAFETY: a null offset means the file's own position.
    unsafe { call!(libc::SYS_sendfile, to, from, 0, length) }
}

/// getdents64(2) into memory of our own.
///
/// # Safety
/// `buffer` must be valid for writing `length` bytes.
pub unsafe fn getdents(fd: c_int, buffer: *mut u8, length: usize) -> Result<usize> {
    // SAFETY: passed on from the caller.
    unsafe { call!(libc::SYS_getdents64, fd, buffer, length) }
}

/// New private memory, zeroed, of which only touched pages cost anything.
pub fn map(length: usize) -> Result<*mut u8> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping touches no memory that exists.
    unsafe { call!(libc::SYS_mmap, 0, length, protection, flags, -1isize, 0) }.map(|address| address as *mut u8)
}

/// New memory, zeroed, and zeroed once more in every process that is forked: MADV_WIPEONFORK of madvise(2), from Linux
/// 4.14 on.
pub fn map_emptied_by_fork(length: usize) -> Result<*mut u8> {
    let address = map(length)?;
    // SAFETY: the mapping is whole pages of private memory that nobody else knows of.
    let advised = unsafe { call!(libc::SYS_madvise, address, length, libc::MADV_WIPEONFORK) };
    advised.map(|_| address).inspect_err(|_| {
        // SAFETY: made above, and known to nobody.
        unsafe { unmap(address, length) }
    })
}

/// Gives memory back.
///
/// # Safety
/// `address` and `length` must be a mapping from [`map`] or [`remap`] that nobody uses any more.
pub unsafe fn unmap(address: *mut u8, length: usize) {
    // SAFETY: passed on from the caller.
    let _ = unsafe { call!(libc::SYS_munmap, address, length) };
}

/// Makes memory larger; it may move.
///
/// # Safety
/// `address` and `length` must be a mapping from [`map`], and no reference into it may be left.
pub unsafe fn remap(address: *mut u8, length: usize, new_length: usize) -> Result<*mut u8> {
    // SAFETY: passed on from the caller.
    unsafe { call!(libc::SYS_mremap, address, length, new_length, libc::MREMAP_MAYMOVE) }.map(|moved| moved as *mut u8)
}

/// The process id, from the kernel: a copy would be wrong after fork.
pub fn process_id() -> c_int {
    // SAFETY: takes nothing, cannot fail.
    unsafe { syscall(libc::SYS_getpid, [0; 6]) as c_int }
}

/// The thread id.
pub fn thread_id() -> c_int {
    // SAFETY: takes nothing, cannot fail.
    unsafe { syscall(libc::SYS_gettid, [0; 6]) as c_int }
}

/// The effective user id.
pub fn user_id() -> c_uint {
    // SAFETY: takes nothing, cannot fail.
    unsafe { syscall(libc::SYS_geteuid, [0; 6]) as c_uint }
}

/// Fills a buffer with random bytes; false when the kernel cannot.
pub fn random(buffer: &mut [u8]) -> bool {
    // SAFETY: the kernel writes at most the buffer's length.
    let got = unsafe { call!(libc::SYS_getrandom, buffer.as_mut_ptr(), buffer.len(), libc::GRND_NONBLOCK) };
    got == Ok(buffer.len())
}

/// The processor's time counter, which costs no call. It may jump, and no unit is promised.
#[cfg(target_arch = "x86_64")]
#[inline]
fn cycles() -> u64 {
    // SAFETY: reads a counter that every x86-64 processor has.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The processor's time counter, which costs no call. It may jump, and no unit is promised.
#[cfg(target_arch = "aarch64")]
#[inline]
fn cycles() -> u64 {
    let count: u64;
    // SAFETY: reads a counter that Linux lets every program read.
    unsafe { core::arch::asm!("mrs {}, cntvct_el0", out(reg) count, options(nomem, nostack)) };
    count
}

/// A number that changes every few milliseconds, on aarch64 every few tens, and costs no call: for what other processes
/// change without telling, and what is remembered for a short time therefore.
#[inline]
pub fn moment() -> u64 {
    cycles() >> MOMENT_BITS
}

/// A monotonic time, in nanoseconds.
pub fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    let _ = unsafe { call!(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Sleeps; a signal may end it early.
pub fn sleep_ms(duration_ms: u64) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: (duration_ms * 1_000_000) as libc::c_long };
    // SAFETY: the kernel reads one timespec.
    let _ = unsafe { call!(libc::SYS_nanosleep, &raw const time, 0) };
}

/// How large a file system is and what it has room for, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// What this user can write yet.
    pub free_bytes: u64,
    /// What there is altogether.
    pub total_bytes: u64,
}

impl Space {
    fn of(status: &libc::statfs) -> Space {
        let bytes = |blocks: u64| blocks.saturating_mul(status.f_bsize as u64);
        Space { free_bytes: bytes(status.f_bavail), total_bytes: bytes(status.f_blocks) }
    }
}

/// The type of the file system that holds an absolute path.
pub fn file_system(path: &CStr) -> Result<u64> {
    statfs(path).map(|status| status.f_type as u64)
}

/// The space of the file system that holds an absolute path.
pub fn space(path: &CStr) -> Result<Space> {
    statfs(path).map(|status| Space::of(&status))
}

fn statfs(path: &CStr) -> Result<libc::statfs> {
    let mut status = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path is NUL-terminated, the buffer has the size of the kernel's structure.
    unsafe { call!(libc::SYS_statfs, path.as_ptr(), status.as_mut_ptr()) }?;
    // SAFETY: the kernel has filled the structure.
    Ok(unsafe { status.assume_init() })
}

/// The space of the file system that holds an open file.
pub fn space_of(fd: c_int) -> Result<Space> {
    let mut status = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the buffer has the size of the kernel's structure.
    unsafe { call!(libc::SYS_fstatfs, fd, status.as_mut_ptr()) }?;
    // SAFETY: the kernel has filled the structure.
    Ok(Space::of(&unsafe { status.assume_init() }))
}

/// lseek(2).
pub fn seek(fd: c_int, offset: i64, whence: c_int) -> Result<i64> {
    // SAFETY: no memory is involved.
    unsafe { call!(libc::SYS_lseek, fd, offset, whence) }.map(|position| position as i64)
}

/// dup3(2).
pub fn duplicate(from: c_int, to: c_int, flags: c_int) -> Result<()> {
    // SAFETY: no memory is involved.
    retry(|| unsafe { call!(libc::SYS_dup3, from, to, flags) }).map(drop)
}

/// flock(2).
pub fn flock(fd: c_int, operation: c_int) -> Result<()> {
    // SAFETY: no memory is involved.
    unsafe { call!(libc::SYS_flock, fd, operation) }.map(drop)
}

/// Reserves the blocks of a file up to a length.
pub fn fallocate(fd: c_int, length: i64) -> Result<()> {
    // SAFETY: no memory is involved.
    retry(|| unsafe { call!(libc::SYS_fallocate, fd, 0, 0, length) }).map(drop)
}

/// `KCMP_FILE` of kcmp(2).
const KCMP_FILE: c_int = 0;

/// Whether two descriptors of this process share one description, with its offset and flags.
pub fn is_same_description(one: c_int, other: c_int) -> Result<bool> {
    let process = process_id();
    // SAFETY: no memory is involved.
    unsafe { call!(libc::SYS_kcmp, process, process, KCMP_FILE, one, other) }.map(|order| order == 0)
}

/// Whether anybody has a lock of fcntl(2) on any part of a file, as seen from a description that has none.
pub fn has_record_lock(fd: c_int) -> bool {
    let (kind, whence) = (libc::F_WRLCK as libc::c_short, libc::SEEK_SET as libc::c_short);
    let mut lock = libc::flock { l_type: kind, l_whence: whence, l_start: 0, l_len: 0, l_pid: 0 };
    // SAFETY: the kernel reads and writes one structure.
    let asked = unsafe { call!(libc::SYS_fcntl, fd, libc::F_OFD_GETLK, &raw mut lock) };
    asked.is_err() || lock.l_type != libc::F_UNLCK as libc::c_short
}

/// The beginning of a file, as it is and will be, in memory that stays.
pub fn map_file(fd: c_int, length: usize) -> Result<*mut u8> {
    // SAFETY: a new mapping touches no memory that exists.
    unsafe { call!(libc::SYS_mmap, 0, length, libc::PROT_READ, libc::MAP_SHARED, fd, 0) }
        .map(|address| address as *mut u8)
}

/// A new `SOCK_SEQPACKET` Unix socket.
pub fn packet_socket() -> Result<Descriptor> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is involved.
    unsafe { call!(libc::SYS_socket, libc::AF_UNIX, kind, 0) }.and_then(|fd| Descriptor::own(fd as c_int))
}

/// Lets connect(2) and send(2) wait no longer than this; they fail with EAGAIN then.
pub fn limit_sending(socket: &Descriptor, limit_ms: u64) -> Result<()> {
    let seconds = (limit_ms / 1000) as libc::time_t;
    let time = libc::timeval { tv_sec: seconds, tv_usec: (limit_ms % 1000 * 1000) as libc::suseconds_t };
    let (level, option, size) = (libc::SOL_SOCKET, libc::SO_SNDTIMEO, size_of::<libc::timeval>());
    // SAFETY: the kernel reads one timeval.
    unsafe { call!(libc::SYS_setsockopt, socket.number(), level, option, &raw const time, size) }.map(drop)
}

/// connect(2) to a Unix address.
pub fn connect(socket: &Descriptor, address: &libc::sockaddr_un) -> Result<()> {
    let length = size_of::<libc::sockaddr_un>();
    // SAFETY: the kernel reads one address of the given length.
    unsafe { call!(libc::SYS_connect, socket.number(), &raw const *address, length) }.map(drop)
}

/// Whose process listened on the socket that this one is connected to: its effective user id at that time.
pub fn peer_user(socket: &Descriptor) -> Result<c_uint> {
    let mut peer = libc::ucred { pid: 0, uid: c_uint::MAX, gid: c_uint::MAX };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    let (level, name, value) = (libc::SOL_SOCKET, libc::SO_PEERCRED, &raw mut peer);
    // SAFETY: the kernel writes at most the given length of the structure, and the length.
    unsafe { call!(libc::SYS_getsockopt, socket.number(), level, name, value, &raw mut length) }?;
    Ok(peer.uid)
}

/// send(2) without SIGPIPE.
pub fn send(socket: &Descriptor, bytes: &[u8]) -> Result<usize> {
    let flags = libc::MSG_NOSIGNAL;
    // SAFETY: the kernel reads at most the slice's length; there is no address.
    unsafe { call!(libc::SYS_sendto, socket.number(), bytes.as_ptr(), bytes.len(), flags, 0, 0) }
}

/// recv(2).
pub fn receive(socket: &Descriptor, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most the buffer's length; no address is asked for.
    unsafe { call!(libc::SYS_recvfrom, socket.number(), buffer.as_mut_ptr(), buffer.len(), 0, 0, 0) }
}

/// Waits until a descriptor can be read; false when the time is over.
pub fn wait_readable(fd: &Descriptor, timeout_ms: u64) -> Result<bool> {
    let mut entry = libc::pollfd { fd: fd.number(), events: libc::POLLIN, revents: 0 };
    let seconds = (timeout_ms / 1000) as libc::time_t;
    let time = libc::timespec { tv_sec: seconds, tv_nsec: (timeout_ms % 1000 * 1_000_000) as libc::c_long };
    // SAFETY: one pollfd and one timespec; no signal mask.
    unsafe { call!(libc::SYS_ppoll, &raw mut entry, 1, &raw const time, 0, 0) }.map(|ready| ready > 0)
}

/// A set of signals, as the kernel counts them.
pub type Signals = u64;

/// Sets the thread's blocked signals; yields those that were blocked before.
pub fn set_blocked_signals(signals: Signals) -> Signals {
    let mut before: Signals = 0;
    let how = libc::SIG_SETMASK;
    // SAFETY: the kernel reads and writes sets of eight bytes.
    let _ = unsafe { call!(libc::SYS_rt_sigprocmask, how, &raw const signals, &raw mut before, size_of::<Signals>()) };
    before
}

/// Waits for a child of any kind to end.
pub fn wait_for_child(process: c_int) {
    // SAFETY: no status and no usage is asked for.
    let _ = retry(|| unsafe { call!(libc::SYS_wait4, process, 0, libc::__WALL, 0) });
}

/// setsid(2).
pub fn new_session() {
    // SAFETY: takes nothing.
    let _ = unsafe { call!(libc::SYS_setsid) };
}

/// chdir(2).
pub fn change_directory(path: &CStr) {
    // SAFETY: the path is NUL-terminated.
    let _ = unsafe { call!(libc::SYS_chdir, path.as_ptr()) };
}

/// dup3(2); `to` must differ from `from`.
pub fn duplicate_to(from: c_int, to: c_int) {
    // SAFETY: no memory is involved.
    let _ = unsafe { call!(libc::SYS_dup3, from, to, 0) };
}

/// Sets a signal's action to the default.
pub fn default_action(signal: c_int) {
    // The kernel's structure: handler, flags, restorer, mask; all zero is SIG_DFL.
    let action = [0usize; 4];
    // SAFETY: the kernel reads a structure of at most four words.
    let _ = unsafe { call!(libc::SYS_rt_sigaction, signal, action.as_ptr(), 0, size_of::<Signals>()) };
}

/// Whether this process's files may have any length.
pub fn may_write_any_length() -> bool {
    let mut limit = [0u64; 2];
    // SAFETY: the kernel writes its structure: two 64-bit numbers, the limit and its maximum.
    let known = unsafe { call!(libc::SYS_prlimit64, 0, libc::RLIMIT_FSIZE, 0, limit.as_mut_ptr()) };
    known.is_ok() && limit[0] == libc::RLIM_INFINITY
}

/// Lifts a limit of the calling process as far as it may be lifted; it stays as it was when that fails.
pub fn lift_limit(resource: libc::__rlimit_resource_t) {
    let mut limit = [0u64; 2];
    // SAFETY: the kernel writes its structure: two 64-bit numbers, the limit and its maximum.
    let known = unsafe { call!(libc::SYS_prlimit64, 0, resource, 0, limit.as_mut_ptr()) };
    limit[0] = limit[1];
    if known.is_ok() {
        // SAFETY: the kernel reads the structure that it has just written.
        let _ = unsafe { call!(libc::SYS_prlimit64, 0, resource, limit.as_ptr(), 0) };
    }
}

/// The entries of a vector of arguments or variables, without its null; none of a null vector.
///
/// # Safety
/// `vector` must be null, or end with a null.
pub unsafe fn vector_length(vector: *const *const c_char) -> usize {
    let mut count = 0;
    // SAFETY: the caller's contract.
    while !vector.is_null() && unsafe { !(*vector.add(count)).is_null() } {
        count += 1;
    }
    count
}

/// execve(2); yields only when it fails.
///
/// # Safety
/// Both vectors must end with a null pointer and hold valid C strings.
pub unsafe fn execute(path: &CStr, arguments: *const *const c_char, environment: *const *const c_char) -> Errno {
    // SAFETY: passed on from the caller.
    match unsafe { call!(libc::SYS_execve, path.as_ptr(), arguments, environment) } {
        Err(error) => error,
        Ok(_) => Errno(libc::EIO),
    }
}

/// execveat(2); yields only when it fails.
///
/// # Safety
/// As for the function of this name in the C library; `path` may be whatever the program handed to us as a path.
pub unsafe fn execute_at(
    directory: c_int,
    path: *const c_char,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    flags: c_int,
) -> Errno {
    // SAFETY: passed on from the caller.
    match unsafe { call!(libc::SYS_execveat, directory, path, arguments, environment, flags) } {
        Err(error) => error,
        Ok(_) => Errno(libc::EIO),
    }
}

/// Ends the calling thread, or the process of a single thread, without running anything.
pub fn exit_thread() -> ! {
    loop {
        // SAFETY: does not return.
        unsafe { syscall(libc::SYS_exit, [0; 6]) };
    }
}

/// Ends the process with SIGABRT, as abort(3) does.
pub fn abort() -> ! {
    default_action(libc::SIGABRT);
    set_blocked_signals(0);
    loop {
        // SAFETY: no memory is involved.
        let _ = unsafe { call!(libc::SYS_tgkill, process_id(), thread_id(), libc::SIGABRT) };
    }
}
