//! `syscall(2)`, the function: path calls go the way of their hooks, everything else is passed on by a jump.
//!
//! A frame around other calls could break them: some come back twice, or on another stack.

use core::ffi::{c_char, c_int, c_long, c_uint};
use core::sync::atomic::{AtomicPtr, Ordering};

use libc::mode_t;

use crate::hooks::fail;
use crate::{entries, exec, log, metadata, names, namespace, open, rare, system};

/// Numbers of calls that are looked at are below this.
const NUMBERS: usize = 512;

/// Calls of every architecture that have a hook: those that take a path, and the listing of directories.
const EVERYWHERE: [c_long; 33] = [
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_mkdirat,
    libc::SYS_readlinkat,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_truncate,
    libc::SYS_utimensat,
    libc::SYS_chdir,
    libc::SYS_statfs,
    libc::SYS_mknodat,
    libc::SYS_inotify_add_watch,
    libc::SYS_name_to_handle_at,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_getdents64,
];

/// Calls that only older architectures have.
#[cfg(target_arch = "x86_64")]
const OLDER: [c_long; 20] = [
    libc::SYS_open,
    libc::SYS_creat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_rename,
    libc::SYS_unlink,
    libc::SYS_rmdir,
    libc::SYS_mkdir,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_readlink,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_mknod,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_getdents,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: [c_long; 0] = [];

/// 1 for every number that is looked at.
static LOOKED_AT: [u8; NUMBERS] = {
    let mut table = [0; NUMBERS];
    let mut index = 0;
    while index < EVERYWHERE.len() {
        table[EVERYWHERE[index] as usize] = 1;
        index += 1;
    }
    index = 0;
    while index < OLDER.len() {
        table[OLDER[index] as usize] = 1;
        index += 1;
    }
    table
};

type Function = unsafe extern "C" fn(c_long, c_long, c_long, c_long, c_long, c_long, c_long) -> c_long;

/// Where calls are passed on to.
static NEXT: AtomicPtr<()> = AtomicPtr::new(plain as Function as *mut ());

/// Has calls passed on to the real function, once it is known.
pub fn pass_on_to(address: *mut core::ffi::c_void) {
    NEXT.store(address.cast(), Ordering::Relaxed);
}

/// The call itself, until the real function is known.
unsafe extern "C" fn plain(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long {
    // SAFETY: the program's call.
    match unsafe { system::syscall(number, [a, b, c, d, e, f].map(|argument| argument as usize)) } {
        error @ -4095..0 => fail(-error as c_int),
        result => result as c_long,
    }
}

/// `syscall` as the program sees it.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall() {
    core::arch::naked_asm!(
        "cmp rdi, {numbers}",
        "jae 2f",
        "lea rax, [rip + {table}]",
        "cmp byte ptr [rax + rdi], 0",
        "jne {hooked}",
        "2:",
        "jmp qword ptr [rip + {next}]",
        numbers = const NUMBERS,
        table = sym LOOKED_AT,
        hooked = sym hooked,
        next = sym NEXT,
    )
}

/// `syscall` as the program sees it.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall() {
    core::arch::naked_asm!(
        "cmp x0, #{numbers}",
        "b.hs 2f",
        "adrp x9, {table}",
        "add x9, x9, :lo12:{table}",
        "ldrb w9, [x9, x0]",
        "cbz w9, 2f",
        "b {hooked}",
        "2:",
        "adrp x9, {next}",
        "ldr x9, [x9, :lo12:{next}]",
        "br x9",
        numbers = const NUMBERS,
        table = sym LOOKED_AT,
        hooked = sym hooked,
        next = sym NEXT,
    )
}

/// A call that takes a path, with the arguments where the C library's function has them.
unsafe extern "C" fn hooked(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    log::call("syscall");
    let directory = a as c_int;
    let path = |argument: c_long| argument as *const c_char;
    // SAFETY: the program's arguments, in the order that the kernel documents for the number.
    let result = unsafe {
        match number {
            libc::SYS_openat => open::openat(directory, path(b), c as c_int, d as mode_t),
            libc::SYS_openat2 => open::openat2(directory, path(b), c as *const _, d as usize),
            libc::SYS_newfstatat => metadata::fstatat(directory, path(b), c as *mut _, d as c_int),
            libc::SYS_statx => metadata::statx(directory, path(b), c as c_int, d as c_uint, e as *mut _),
            libc::SYS_faccessat => metadata::faccessat(directory, path(b), c as c_int, 0),
            libc::SYS_faccessat2 => metadata::faccessat(directory, path(b), c as c_int, d as c_int),
            libc::SYS_renameat => namespace::renameat(directory, path(b), c as c_int, path(d)),
            libc::SYS_renameat2 => namespace::renameat2(directory, path(b), c as c_int, path(d), e as c_uint),
            libc::SYS_unlinkat => namespace::unlinkat(directory, path(b), c as c_int),
            libc::SYS_linkat => namespace::linkat(directory, path(b), c as c_int, path(d), e as c_int),
            libc::SYS_symlinkat => namespace::symlinkat(path(a), b as c_int, path(c)),
            libc::SYS_mkdirat => namespace::mkdirat(directory, path(b), c as mode_t),
            libc::SYS_readlinkat => return names::readlinkat(directory, path(b), c as *mut _, d as usize) as c_long,
            libc::SYS_fchmodat => metadata::fchmodat(directory, path(b), c as mode_t, 0),
            libc::SYS_fchownat => metadata::fchownat(directory, path(b), c as u32, d as u32, e as c_int),
            libc::SYS_truncate => metadata::truncate(path(a), b),
            // A null path means the descriptor itself here, which the C library's function refuses.
            libc::SYS_utimensat if b == 0 => return plain(number, a, b, c, d, e, f),
            libc::SYS_utimensat => metadata::utimensat(directory, path(b), c as *const _, d as c_int),
            _ => return hooked_further(number, [a, b, c, d, e, f]),
        }
    };
    c_long::from(result)
}

/// More of them: those on one path that is the first argument, and a few others.
unsafe fn hooked_further(number: c_long, arguments: [c_long; 6]) -> c_long {
    let [a, b, c, d, e, f] = arguments;
    let path = |argument: c_long| argument as *const c_char;
    // SAFETY: as in `hooked`.
    let result = unsafe {
        match number {
            libc::SYS_chdir => rare::chdir(path(a)),
            libc::SYS_statfs => rare::statfs(path(a), b as *mut _),
            libc::SYS_mknodat => rare::mknodat(a as c_int, path(b), c as mode_t, libc::dev_t::from(d as u32)),
            libc::SYS_inotify_add_watch => rare::inotify_add_watch(a as c_int, path(b), c as u32),
            libc::SYS_name_to_handle_at => {
                rare::name_to_handle_at(a as c_int, path(b), c as *mut _, d as *mut _, e as c_int)
            }
            libc::SYS_getxattr => return metadata::getxattr(path(a), path(b), c as *mut _, d as usize) as c_long,
            libc::SYS_lgetxattr => return metadata::lgetxattr(path(a), path(b), c as *mut _, d as usize) as c_long,
            libc::SYS_setxattr => metadata::setxattr(path(a), path(b), c as *const _, d as usize, e as c_int),
            libc::SYS_lsetxattr => metadata::lsetxattr(path(a), path(b), c as *const _, d as usize, e as c_int),
            libc::SYS_listxattr => return metadata::listxattr(path(a), b as *mut _, c as usize) as c_long,
            libc::SYS_llistxattr => return metadata::llistxattr(path(a), b as *mut _, c as usize) as c_long,
            libc::SYS_removexattr => metadata::removexattr(path(a), path(b)),
            libc::SYS_lremovexattr => metadata::lremovexattr(path(a), path(b)),
            libc::SYS_execve => exec::execve(path(a), b as *const _, c as *const _),
            libc::SYS_execveat => exec::execveat(a as c_int, path(b), c as *const _, d as *const _, e as c_int),
            libc::SYS_getdents64 => {
                return entries::getdents64(a as c_int, b as *mut _, c as c_uint as usize) as c_long;
            }
            _ => return hooked_older(number, [a, b, c, d, e, f]),
        }
    };
    c_long::from(result)
}

#[cfg(target_arch = "x86_64")]
unsafe fn hooked_older(number: c_long, arguments: [c_long; 6]) -> c_long {
    let [a, b, c, d, e, f] = arguments;
    let path = |argument: c_long| argument as *const c_char;
    // SAFETY: as in `hooked`.
    let result = unsafe {
        match number {
            libc::SYS_open => open::open(path(a), b as c_int, c as mode_t),
            libc::SYS_creat => open::creat(path(a), b as mode_t),
            libc::SYS_stat => metadata::stat(path(a), b as *mut _),
            libc::SYS_lstat => metadata::lstat(path(a), b as *mut _),
            libc::SYS_access => metadata::access(path(a), b as c_int),
            libc::SYS_rename => namespace::rename(path(a), path(b)),
            libc::SYS_unlink => namespace::unlink(path(a)),
            libc::SYS_rmdir => namespace::rmdir(path(a)),
            libc::SYS_mkdir => namespace::mkdir(path(a), b as mode_t),
            libc::SYS_link => namespace::link(path(a), path(b)),
            libc::SYS_symlink => namespace::symlink(path(a), path(b)),
            libc::SYS_readlink => return names::readlink(path(a), b as *mut _, c as usize) as c_long,
            libc::SYS_chmod => metadata::chmod(path(a), b as mode_t),
            libc::SYS_chown => metadata::chown(path(a), b as u32, c as u32),
            libc::SYS_lchown => metadata::lchown(path(a), b as u32, c as u32),
            libc::SYS_mknod => rare::mknod(path(a), b as mode_t, libc::dev_t::from(c as u32)),
            libc::SYS_utime => metadata::utime(path(a), b as *const _),
            libc::SYS_utimes => metadata::utimes(path(a), b as *const _),
            // A null path means the descriptor itself here.
            libc::SYS_futimesat if b == 0 => return plain(number, a, b, c, d, e, f),
            libc::SYS_futimesat => metadata::futimesat(a as c_int, path(b), c as *const _),
            libc::SYS_getdents => return entries::getdents(a as c_int, b as *mut _, c as c_uint) as c_long,
            _ => return plain(number, a, b, c, d, e, f),
        }
    };
    c_long::from(result)
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn hooked_older(number: c_long, arguments: [c_long; 6]) -> c_long {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the program's call.
    unsafe { plain(number, a, b, c, d, e, f) }
}
