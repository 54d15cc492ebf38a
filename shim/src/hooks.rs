//! The one table of hooked symbols. Each line yields the exported function with its aliases, the address of the real
//! one, and a place in the list of those that are found when the library is loaded.
//!
//! A hooked symbol must work before and after that: the first that is called early has all found, and each answers
//! ENOSYS when this C library has none. Nothing else may be decided here.

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use libc::{DIR, FILE, dev_t, dirent, gid_t, iovec, key_t, mode_t, off_t, pid_t, size_t, ssize_t};
use libc::{timespec, timeval, uid_t, utimbuf};

use crate::directory::{Compare, Glob, GlobError, Select};
use crate::exec::{Actions, Attributes, Vector};
use crate::loader::Found;
use crate::open::OpenHow;
use crate::system::{Stat, set_errno};
use crate::walk::{Order, Visit, VisitPlace};
use crate::{
    actions, data, directory, durable, entries, exec, loader, log, metadata, names, namespace, open, rare, raw_syscall,
    reject, stdio, tree_walk, walk,
};

/// A function of the C library, or of another library that was preloaded behind this one.
pub struct Symbol {
    name: &'static CStr,
    hash: u32,
    address: AtomicPtr<c_void>,
}

/// What stands for "this C library has no such function": an address that nothing has.
const ABSENT: *mut c_void = ptr::without_provenance_mut(1);
/// syscall(2), which has a hook of its own kind.
static SYSCALL: Symbol = Symbol::new(c"syscall");

impl Symbol {
    const fn new(name: &'static CStr) -> Symbol {
        Symbol { name, hash: loader::hash(name), address: AtomicPtr::new(ptr::null_mut()) }
    }

    #[inline]
    fn get(&self) -> Option<*mut c_void> {
        self.found().or_else(|| self.find())
    }

    #[cold]
    fn find(&self) -> Option<*mut c_void> {
        if self.address.load(Ordering::Relaxed).is_null() {
            find_all();
        }
        self.found()
    }

    /// The address, if it has been found.
    #[inline(always)]
    fn found(&self) -> Option<*mut c_void> {
        Some(self.address.load(Ordering::Relaxed)).filter(|&address| address > ABSENT)
    }

    fn set(&self, address: *mut c_void) {
        self.address.store(if address.is_null() { ABSENT } else { address }, Ordering::Relaxed);
    }

    /// Asks the loader.
    fn ask(&self) {
        // SAFETY: the name is a C string; the lookup starts behind this library.
        self.set(unsafe { sheaf_dlsym(libc::RTLD_NEXT, self.name.as_ptr()) });
    }
}

/// Finds every real function. Whoever does it at the same time finds the same.
#[cold]
fn find_all() {
    let left = || symbols::ALL.iter().filter(|symbol| symbol.address.load(Ordering::Relaxed).is_null());
    let mut understood = false;
    if let Some(mut libraries) = loader::libraries_behind() {
        understood = libraries.all(|library| {
            let Some(library) = library else { return false };
            left().for_each(|symbol| match library.find(symbol.name, symbol.hash) {
                Found::Address(address) => symbol.set(address),
                Found::Unclear => symbol.ask(),
                Found::Nothing => {}
            });
            true
        });
    }
    left().for_each(|symbol| if understood { symbol.set(ptr::null_mut()) } else { symbol.ask() });
}

unsafe extern "C" {
    /// dlsym(3) in the version that every glibc has.
    fn sheaf_dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

// dlsym moved from libdl to libc in glibc 2.34 and got a new version there; libraries that ask for the first version
// load everywhere. A jump leaves the return address, by which dlsym knows its caller.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".symver sheaf_dlsym_bound, dlsym@GLIBC_2.2.5",
    ".text",
    ".globl sheaf_dlsym",
    ".hidden sheaf_dlsym",
    ".type sheaf_dlsym, @function",
    "sheaf_dlsym:",
    "jmp *sheaf_dlsym_bound@GOTPCREL(%rip)",
    ".size sheaf_dlsym, . - sheaf_dlsym",
    options(att_syntax)
);
#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".symver sheaf_dlsym_bound, dlsym@GLIBC_2.17",
    ".text",
    ".globl sheaf_dlsym",
    ".hidden sheaf_dlsym",
    ".type sheaf_dlsym, @function",
    "sheaf_dlsym:",
    "adrp x16, :got:sheaf_dlsym_bound",
    "ldr x16, [x16, :got_lo12:sheaf_dlsym_bound]",
    "br x16",
    ".size sheaf_dlsym, . - sheaf_dlsym",
);

/// What a function returns when it fails.
pub trait Failure {
    /// That value.
    fn failure() -> Self;
    /// Whether this is that value.
    fn is_failure(&self) -> bool;
}

macro_rules! failure_is_minus_one {
    ($($kind:ty)*) => {$(
        impl Failure for $kind {
            fn failure() -> $kind {
                -1
            }

            fn is_failure(&self) -> bool {
                *self == -1
            }
        }
    )*};
}
failure_is_minus_one!(c_int c_long isize);

impl<T> Failure for *mut T {
    fn failure() -> *mut T {
        ptr::null_mut()
    }

    fn is_failure(&self) -> bool {
        self.is_null()
    }
}

impl Failure for () {
    fn failure() {}

    fn is_failure(&self) -> bool {
        false
    }
}

/// Fails with an error number, as the C library does.
pub fn fail<T: Failure>(number: c_int) -> T {
    set_errno(number);
    T::failure()
}

macro_rules! export {
    ($name:ident ($($argument:ident: $kind:ty),*) $result:ty, $hook:path) => {
        #[doc = concat!("`", stringify!($name), "` as the program sees it.")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $kind),*) -> $result {
            log::call(stringify!($name));
            // SAFETY: the program's arguments are passed on; their validity is the program's contract with libc.
            unsafe { $hook($($argument),*) }
        }
    };
}

/// The same for a function whose call on a `path` that the fast reject takes is the real one's: then it is only a jump.
macro_rules! export_quick {
    ($real:ident as $name:ident ($($argument:ident: $kind:ty),*) $result:ty, $hook:path) => {
        #[doc = concat!("`", stringify!($name), "` as the program sees it.")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $kind),*) -> $result {
            #[inline(never)]
            unsafe extern "C" fn looked_at($($argument: $kind),*) -> $result {
                log::call(stringify!($name));
                // SAFETY: as in `export`.
                unsafe { $hook($($argument),*) }
            }
            // SAFETY: as in `export`, and in `real`.
            unsafe {
                match symbols::$real.found() {
                    Some(address) if reject::rejects(path!($($argument $argument)*)) => {
                        core::mem::transmute::<*mut c_void, unsafe extern "C" fn($($kind),*) -> $result>(address)(
                            $($argument),*
                        )
                    }
                    _ => looked_at($($argument),*),
                }
            }
        }
    };
}

/// For calls that are made too often to be told: they name no path.
macro_rules! export_plain {
    ($name:ident ($($argument:ident: $kind:ty),*) $result:ty, $hook:path) => {
        #[doc = concat!("`", stringify!($name), "` as the program sees it.")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $kind),*) -> $result {
            // SAFETY: as in `export`.
            unsafe { $hook($($argument),*) }
        }
    };
}

/// Of arguments, each given twice, the one that is called `path`.
macro_rules! path {
    ($argument:ident path $($rest:ident)*) => { $argument };
    ($argument:ident $other:ident $($rest:ident)*) => { path!($($rest)*) };
}

macro_rules! real {
    ($name:ident ($($argument:ident: $kind:ty),*) $result:ty) => {
        /// The real function.
        ///
        /// # Safety
        /// As the function of this name in the C library.
        #[inline]
        pub unsafe fn $name($($argument: $kind),*) -> $result {
            let Some(address) = super::symbols::$name.get() else { return super::fail(libc::ENOSYS) };
            // SAFETY: the address is that of the function of this name, whose C declaration this type repeats; the
            // arguments are the caller's responsibility.
            unsafe {
                core::mem::transmute::<*mut c_void, unsafe extern "C" fn($($kind),*) -> $result>(address)(
                    $($argument),*
                )
            }
        }
    };
}

macro_rules! hooks {
    (
        quick { $($quick:ident [$($quick_alias:ident)*] $quick_arguments:tt -> $quick_result:ty = $quick_hook:path;)* }
        hooked { $($name:ident [$($alias:ident)*] $arguments:tt -> $result:ty = $hook:path;)* }
        plain { $($plain:ident [$($plain_alias:ident)*] $plain_arguments:tt -> $plain_result:ty = $plain_hook:path;)* }
        answered { $($answered:ident $answered_arguments:tt -> $answered_result:ty = $answering_hook:path;)* }
        called { $($called:ident $called_arguments:tt -> $called_result:ty;)* }
    ) => {
        mod exports {
            use super::*;
            $(
                export_quick!($quick as $quick $quick_arguments $quick_result, $quick_hook);
                $(export_quick!($quick as $quick_alias $quick_arguments $quick_result, $quick_hook);)*
            )*
            $(
                export!($name $arguments $result, $hook);
                $(export!($alias $arguments $result, $hook);)*
            )*
            $(
                export_plain!($plain $plain_arguments $plain_result, $plain_hook);
                $(export_plain!($plain_alias $plain_arguments $plain_result, $plain_hook);)*
            )*
            $(export!($answered $answered_arguments $answered_result, $answering_hook);)*
        }

        /// The functions behind the hooks.
        pub mod real {
            use super::*;
            // The allocator that the program itself uses: it may stand before this library, even in the program.
            pub use libc::{free, malloc, realloc};
            $(real!($quick $quick_arguments $quick_result);)*
            $(real!($name $arguments $result);)*
            $(real!($plain $plain_arguments $plain_result);)*
            $(real!($called $called_arguments $called_result);)*
        }

        // The names are those of the C library.
        #[allow(non_upper_case_globals)]
        mod symbols {
            use super::Symbol;

            const fn c_name(text: &'static str) -> &'static core::ffi::CStr {
                match core::ffi::CStr::from_bytes_with_nul(text.as_bytes()) {
                    Ok(name) => name,
                    Err(_) => panic!("a symbol's name ends with its only NUL"),
                }
            }

            $(pub static $quick: Symbol = Symbol::new(const { c_name(concat!(stringify!($quick), "\0")) });)*
            $(pub static $name: Symbol = Symbol::new(const { c_name(concat!(stringify!($name), "\0")) });)*
            $(pub static $plain: Symbol = Symbol::new(const { c_name(concat!(stringify!($plain), "\0")) });)*
            $(pub static $called: Symbol = Symbol::new(const { c_name(concat!(stringify!($called), "\0")) });)*

            /// All of them; the last is one that every C library has, so that dlerror(3) has nothing to report.
            pub static ALL: &[&Symbol] = &[&super::SYSCALL, $(&$quick,)* $(&$name,)* $(&$plain,)* $(&$called,)*];
        }
    };
}

hooks! {
    // Not here: tmpfile, whose file has no name and lies in /tmp; tempnam and tmpnam, which only make up names.
    quick {
        open [open64 __open __open64] (path: *const c_char, flags: c_int, mode: mode_t) -> c_int = open::open;
        __open_2 [__open64_2] (path: *const c_char, flags: c_int) -> c_int = open::open_2;
        openat [openat64] (directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int = open::openat;
        __openat_2 [__openat64_2] (directory: c_int, path: *const c_char, flags: c_int) -> c_int = open::openat_2;
        openat2 [] (directory: c_int, path: *const c_char, how: *const OpenHow, size: size_t) -> c_int = open::openat2;
        creat [creat64] (path: *const c_char, mode: mode_t) -> c_int = open::creat;

        fopen [fopen64 _IO_fopen] (path: *const c_char, mode: *const c_char) -> *mut FILE = stdio::fopen;

        stat [stat64] (path: *const c_char, buffer: *mut Stat) -> c_int = metadata::stat;
        lstat [lstat64] (path: *const c_char, buffer: *mut Stat) -> c_int = metadata::lstat;
        fstatat [fstatat64] (directory: c_int, path: *const c_char, buffer: *mut Stat, flags: c_int) -> c_int
            = metadata::fstatat;
        __xstat [__xstat64] (version: c_int, path: *const c_char, buffer: *mut Stat) -> c_int = metadata::old_stat;
        __lxstat [__lxstat64] (version: c_int, path: *const c_char, buffer: *mut Stat) -> c_int = metadata::old_lstat;
        __fxstatat [__fxstatat64] (
            version: c_int, directory: c_int, path: *const c_char, buffer: *mut Stat, flags: c_int
        ) -> c_int = metadata::old_fstatat;
        statx [] (directory: c_int, path: *const c_char, flags: c_int, mask: c_uint, buffer: *mut libc::statx) -> c_int
            = metadata::statx;
        access [] (path: *const c_char, mode: c_int) -> c_int = metadata::access;
        eaccess [euidaccess] (path: *const c_char, mode: c_int) -> c_int = metadata::eaccess;
        faccessat [] (directory: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int = metadata::faccessat;
        truncate [truncate64] (path: *const c_char, length: off_t) -> c_int = metadata::truncate;
        chmod [] (path: *const c_char, mode: mode_t) -> c_int = metadata::chmod;
        lchmod [] (path: *const c_char, mode: mode_t) -> c_int = metadata::lchmod;
        fchmodat [] (directory: c_int, path: *const c_char, mode: mode_t, flags: c_int) -> c_int = metadata::fchmodat;
        chown [] (path: *const c_char, user: uid_t, group: gid_t) -> c_int = metadata::chown;
        lchown [] (path: *const c_char, user: uid_t, group: gid_t) -> c_int = metadata::lchown;
        fchownat [] (directory: c_int, path: *const c_char, user: uid_t, group: gid_t, flags: c_int) -> c_int
            = metadata::fchownat;
        utime [] (path: *const c_char, times: *const utimbuf) -> c_int = metadata::utime;
        utimes [] (path: *const c_char, times: *const timeval) -> c_int = metadata::utimes;
        lutimes [] (path: *const c_char, times: *const timeval) -> c_int = metadata::lutimes;
        futimesat [] (directory: c_int, path: *const c_char, times: *const timeval) -> c_int = metadata::futimesat;
        utimensat [] (directory: c_int, path: *const c_char, times: *const timespec, flags: c_int) -> c_int
            = metadata::utimensat;

        getxattr [] (path: *const c_char, name: *const c_char, value: *mut c_void, size: size_t) -> ssize_t
            = metadata::getxattr;
        lgetxattr [] (path: *const c_char, name: *const c_char, value: *mut c_void, size: size_t) -> ssize_t
            = metadata::lgetxattr;
        setxattr [] (
            path: *const c_char, name: *const c_char, value: *const c_void, size: size_t, flags: c_int
        ) -> c_int = metadata::setxattr;
        lsetxattr [] (
            path: *const c_char, name: *const c_char, value: *const c_void, size: size_t, flags: c_int
        ) -> c_int = metadata::lsetxattr;
        listxattr [] (path: *const c_char, list: *mut c_char, size: size_t) -> ssize_t = metadata::listxattr;
        llistxattr [] (path: *const c_char, list: *mut c_char, size: size_t) -> ssize_t = metadata::llistxattr;
        removexattr [] (path: *const c_char, name: *const c_char) -> c_int = metadata::removexattr;
        lremovexattr [] (path: *const c_char, name: *const c_char) -> c_int = metadata::lremovexattr;
    }
    hooked {
        freopen [freopen64] (path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE
            = stdio::freopen;
        fchmod [] (fd: c_int, mode: mode_t) -> c_int = metadata::fchmod;

        rename [] (from: *const c_char, to: *const c_char) -> c_int = namespace::rename;
        renameat [] (from_directory: c_int, from: *const c_char, to_directory: c_int, to: *const c_char) -> c_int
            = namespace::renameat;
        renameat2 [] (
            from_directory: c_int, from: *const c_char, to_directory: c_int, to: *const c_char, flags: c_uint
        ) -> c_int = namespace::renameat2;
        link [] (from: *const c_char, to: *const c_char) -> c_int = namespace::link;
        linkat [] (
            from_directory: c_int, from: *const c_char, to_directory: c_int, to: *const c_char, flags: c_int
        ) -> c_int = namespace::linkat;
        symlink [] (target: *const c_char, path: *const c_char) -> c_int = namespace::symlink;
        symlinkat [] (target: *const c_char, directory: c_int, path: *const c_char) -> c_int = namespace::symlinkat;
        unlink [] (path: *const c_char) -> c_int = namespace::unlink;
        unlinkat [] (directory: c_int, path: *const c_char, flags: c_int) -> c_int = namespace::unlinkat;
        remove [] (path: *const c_char) -> c_int = namespace::remove;
        rmdir [] (path: *const c_char) -> c_int = namespace::rmdir;
        mkdir [] (path: *const c_char, mode: mode_t) -> c_int = namespace::mkdir;
        mkdirat [] (directory: c_int, path: *const c_char, mode: mode_t) -> c_int = namespace::mkdirat;

        opendir [] (path: *const c_char) -> *mut DIR = directory::opendir;
        fdopendir [] (fd: c_int) -> *mut DIR = directory::fdopendir;
        readdir [readdir64] (stream: *mut DIR) -> *mut dirent = directory::readdir;
        readdir_r [readdir64_r] (stream: *mut DIR, entry: *mut dirent, result: *mut *mut dirent) -> c_int
            = directory::readdir_r;
        rewinddir [] (stream: *mut DIR) -> () = directory::rewinddir;
        seekdir [] (stream: *mut DIR, position: c_long) -> () = directory::seekdir;
        telldir [] (stream: *mut DIR) -> c_long = directory::telldir;
        closedir [] (stream: *mut DIR) -> c_int = directory::closedir;
        scandir [scandir64] (
            path: *const c_char, list: *mut *mut *mut dirent, select: Select, compare: Compare
        ) -> c_int = directory::scandir;
        scandirat [scandirat64] (
            directory: c_int, path: *const c_char, list: *mut *mut *mut dirent, select: Select, compare: Compare
        ) -> c_int = directory::scandirat;
        glob [glob64] (pattern: *const c_char, flags: c_int, error: GlobError, found: *mut Glob) -> c_int
            = directory::glob;

        realpath [] (path: *const c_char, resolved: *mut c_char) -> *mut c_char = names::realpath;
        __realpath_chk [] (path: *const c_char, resolved: *mut c_char, size: size_t) -> *mut c_char
            = names::realpath_checked;
        canonicalize_file_name [] (path: *const c_char) -> *mut c_char = names::canonicalize_file_name;
        readlink [] (path: *const c_char, buffer: *mut c_char, size: size_t) -> ssize_t = names::readlink;
        __readlink_chk [] (path: *const c_char, buffer: *mut c_char, size: size_t, room: size_t) -> ssize_t
            = names::readlink_checked;
        readlinkat [] (directory: c_int, path: *const c_char, buffer: *mut c_char, size: size_t) -> ssize_t
            = names::readlinkat;
        __readlinkat_chk [] (
            directory: c_int, path: *const c_char, buffer: *mut c_char, size: size_t, room: size_t
        ) -> ssize_t = names::readlinkat_checked;
        mkstemp [mkstemp64] (template: *mut c_char) -> c_int = names::mkstemp;
        mkostemp [mkostemp64] (template: *mut c_char, flags: c_int) -> c_int = names::mkostemp;
        mkstemps [mkstemps64] (template: *mut c_char, suffix_length: c_int) -> c_int = names::mkstemps;
        mkostemps [mkostemps64] (template: *mut c_char, suffix_length: c_int, flags: c_int) -> c_int
            = names::mkostemps;
        mkdtemp [] (template: *mut c_char) -> *mut c_char = names::mkdtemp;
        mktemp [] (template: *mut c_char) -> *mut c_char = names::mktemp;

        ftw [ftw64] (path: *const c_char, visit: Visit, streams: c_int) -> c_int = walk::ftw;
        nftw [nftw64] (path: *const c_char, visit: VisitPlace, streams: c_int, flags: c_int) -> c_int = walk::nftw;
        fts_open [fts64_open] (roots: *const *mut c_char, options: c_int, compare: Compare) -> *mut tree_walk::Walk
            = tree_walk::open;
        fts_read [fts64_read] (walk: *mut tree_walk::Walk) -> *mut tree_walk::Item = tree_walk::read;
        fts_children [fts64_children] (walk: *mut tree_walk::Walk, options: c_int) -> *mut tree_walk::Item
            = tree_walk::children;
        fts_set [fts64_set] (walk: *mut tree_walk::Walk, item: *mut tree_walk::Item, instruction: c_int) -> c_int
            = tree_walk::set;
        fts_close [fts64_close] (walk: *mut tree_walk::Walk) -> c_int = tree_walk::close;
        chdir [] (path: *const c_char) -> c_int = rare::chdir;
        statfs [statfs64 __statfs] (path: *const c_char, buffer: *mut libc::statfs) -> c_int = rare::statfs;
        statvfs [statvfs64] (path: *const c_char, buffer: *mut libc::statvfs) -> c_int = rare::statvfs;
        pathconf [] (path: *const c_char, name: c_int) -> c_long = rare::pathconf;
        mkfifo [] (path: *const c_char, mode: mode_t) -> c_int = rare::mkfifo;
        mkfifoat [] (directory: c_int, path: *const c_char, mode: mode_t) -> c_int = rare::mkfifoat;
        ftok [] (path: *const c_char, project: c_int) -> key_t = rare::ftok;
        inotify_add_watch [] (watcher: c_int, path: *const c_char, mask: u32) -> c_int = rare::inotify_add_watch;
        name_to_handle_at [] (
            directory: c_int, path: *const c_char, handle: *mut libc::file_handle, mount: *mut c_int, flags: c_int
        ) -> c_int = rare::name_to_handle_at;

        // Further ones, of any number of arguments, are in `exec`.
        execve [] (path: *const c_char, arguments: Vector, environment: Vector) -> c_int = exec::execve;
        execvpe [] (file: *const c_char, arguments: Vector, environment: Vector) -> c_int = exec::execvpe;
        posix_spawn [] (
            process: *mut pid_t, path: *const c_char, actions: *const Actions, attributes: *const Attributes,
            arguments: Vector, environment: Vector
        ) -> c_int = exec::posix_spawn;
        posix_spawnp [] (
            process: *mut pid_t, file: *const c_char, actions: *const Actions, attributes: *const Attributes,
            arguments: Vector, environment: Vector
        ) -> c_int = exec::posix_spawnp;
        posix_spawn_file_actions_init [] (actions: *mut Actions) -> c_int = actions::initialise;
        posix_spawn_file_actions_destroy [] (actions: *mut Actions) -> c_int = actions::destroy;
        posix_spawn_file_actions_addopen [] (
            actions: *mut Actions, fd: c_int, path: *const c_char, flags: c_int, mode: mode_t
        ) -> c_int = actions::add_open;
        posix_spawn_file_actions_addchdir_np [] (actions: *mut Actions, path: *const c_char) -> c_int
            = actions::add_chdir;
        posix_spawn_file_actions_addfchdir_np [] (actions: *mut Actions, fd: c_int) -> c_int = actions::add_fchdir;
    }
    plain {
        // One branch each: is the stage full?
        write [__write] (fd: c_int, buffer: *const c_void, count: size_t) -> ssize_t = data::write;
        pwrite [pwrite64 __pwrite64] (fd: c_int, buffer: *const c_void, count: size_t, offset: off_t) -> ssize_t
            = data::pwrite;
        writev [] (fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t = data::writev;
        pwritev [pwritev64] (fd: c_int, pieces: *const iovec, count: c_int, offset: off_t) -> ssize_t
            = data::pwritev;
        pwritev2 [pwritev64v2] (
            fd: c_int, pieces: *const iovec, count: c_int, offset: off_t, flags: c_int
        ) -> ssize_t = data::pwritev2;
        ftruncate [ftruncate64] (fd: c_int, length: off_t) -> c_int = data::ftruncate;
        fallocate [fallocate64] (fd: c_int, mode: c_int, offset: off_t, length: off_t) -> c_int = data::fallocate;
        posix_fallocate [posix_fallocate64] (fd: c_int, offset: off_t, length: off_t) -> c_int
            = data::posix_fallocate;
        copy_file_range [] (
            from: c_int, from_offset: *mut off_t, to: c_int, to_offset: *mut off_t, length: size_t, flags: c_uint
        ) -> ssize_t = data::copy_file_range;
        sendfile [sendfile64] (to: c_int, from: c_int, offset: *mut off_t, length: size_t) -> ssize_t = data::sendfile;

        // One branch each, unless SHEAF_DURABLE says otherwise.
        close [__close] (fd: c_int) -> c_int = durable::close;
        dup2 [__dup2] (from: c_int, to: c_int) -> c_int = durable::dup2;
        dup3 [] (from: c_int, to: c_int, flags: c_int) -> c_int = durable::dup3;
        fclose [_IO_fclose] (stream: *mut FILE) -> c_int = durable::fclose;
        fsync [] (fd: c_int) -> c_int = durable::fsync;
        fdatasync [] (fd: c_int) -> c_int = durable::fdatasync;
    }
    // Another function or a system call does what is left to do natively.
    answered {
        getdents64 (fd: c_int, buffer: *mut c_void, size: size_t) -> ssize_t = entries::getdents64;
        getdirentries (fd: c_int, buffer: *mut c_void, size: size_t, base: *mut off_t) -> ssize_t
            = entries::getdirentries;
        getdirentries64 (fd: c_int, buffer: *mut c_void, size: size_t, base: *mut off_t) -> ssize_t
            = entries::getdirentries;
        mknod (path: *const c_char, mode: mode_t, device: dev_t) -> c_int = rare::mknod;
        mknodat (directory: c_int, path: *const c_char, mode: mode_t, device: dev_t) -> c_int = rare::mknodat;
        __xmknod (version: c_int, path: *const c_char, mode: mode_t, device: *mut dev_t) -> c_int
            = rare::old_mknod;
        __xmknodat (
            version: c_int, directory: c_int, path: *const c_char, mode: mode_t, device: *mut dev_t
        ) -> c_int = rare::old_mknodat;
        execv (path: *const c_char, arguments: Vector) -> c_int = exec::execv;
        execvp (file: *const c_char, arguments: Vector) -> c_int = exec::execvp;
        execveat (
            directory: c_int, path: *const c_char, arguments: Vector, environment: Vector, flags: c_int
        ) -> c_int = exec::execveat;
    }
    called {
        fileno (stream: *mut FILE) -> c_int;
        fdopen (fd: c_int, mode: *const c_char) -> *mut FILE;
        dirfd (stream: *mut DIR) -> c_int;
        qsort (base: *mut c_void, count: size_t, size: size_t, compare: Compare) -> ();
        dlopen (path: *const c_char, flags: c_int) -> *mut c_void;
        tsearch (key: *const c_void, root: *mut *mut c_void, compare: Order) -> *mut c_void;
        tdestroy (root: *mut c_void, free: Option<unsafe extern "C" fn(*mut c_void)>) -> ();
    }
}

/// Where dlopen(3) is, for who must jump there.
pub fn dlopen_address() -> *mut c_void {
    symbols::dlopen.get().unwrap_or(real::dlopen as unsafe fn(_, _) -> _ as *mut c_void)
}

/// Finds every real function while the loader still works alone.
extern "C" fn initialise() {
    find_all();
    if let Some(address) = SYSCALL.get() {
        raw_syscall::pass_on_to(address);
    }
    crate::configuration::prepare();
}

#[used]
#[unsafe(link_section = ".init_array")]
static INITIALISE: extern "C" fn() = initialise;
