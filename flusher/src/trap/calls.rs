//! The trapped calls: where each has its paths, and how it is made here in the program's stead.
//!
//! Each is made by the C library's function of the same meaning, on an absolute path. The preloaded library hooks that
//! function: every rule about captured names is the library's, and none is repeated here.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};

use libc::{AT_FDCWD, c_int, c_long};

use super::listing::{self, Listings};
use super::notification::Answer;
use super::target::Target;

/// Most bytes of an extended attribute or a link's target that are handed over.
const RESULT_MAX: usize = 64 * 1024;
/// fchmodat2(2), the same everywhere; not every architecture's list has it yet.
const FCHMODAT2: c_long = 452;

/// Where a call has a path.
#[derive(Clone, Copy)]
pub enum Place {
    /// A path in this argument, relative to the working directory.
    Path(usize),
    /// A path in the second of these arguments, relative to the descriptor in the first.
    At(usize, usize),
    /// What this descriptor is open on.
    Descriptor(usize),
}

/// One call of the table.
pub struct Kind {
    /// Its number.
    pub number: c_long,
    /// The path that it is about.
    pub first: Place,
    /// The other one.
    pub second: Option<Place>,
    /// Whether it can change what names mean.
    pub changes_names: bool,
    /// Whether it reads a link.
    pub reads_link: bool,
    /// Makes the call.
    pub perform: fn(&Call<'_>) -> io::Result<Answer>,
}

/// A call that is about a captured name, or could be.
pub struct Call<'a> {
    /// Who makes it.
    pub target: &'a Target,
    /// What it was given.
    pub arguments: [u64; 6],
    /// The path that it is about, absolute.
    pub path: &'a CStr,
    /// The other one; empty when there is none.
    pub other: &'a CStr,
    /// Directories that are being listed.
    pub listings: &'a Listings,
    /// Whether the caller still waits: its thread's number may be another's by now.
    pub is_waiting: &'a dyn Fn() -> bool,
}

impl Call<'_> {
    fn argument(&self, index: usize) -> u64 {
        self.arguments.get(index).copied().unwrap_or_default()
    }

    fn number(&self, index: usize) -> c_int {
        self.argument(index) as c_int
    }

    fn mode(&self, index: usize) -> libc::mode_t {
        self.argument(index) as libc::mode_t
    }

    /// Writes a result to where the program wants it.
    fn deliver(&self, index: usize, bytes: &[u8], value: i64) -> io::Result<Answer> {
        self.require_caller()?;
        self.target.write(self.argument(index), bytes)?;
        Ok(Answer::Value(value))
    }

    /// Ends a call whose caller is gone. To be asked before anything is written to its memory, and after everything was
    /// read from there that is to be acted on.
    pub fn require_caller(&self) -> io::Result<()> {
        if (self.is_waiting)() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    }

    /// Reads a string that an argument points to, besides the paths.
    fn string(&self, index: usize) -> io::Result<CString> {
        let text = self.target.read_string(self.argument(index))?;
        self.require_caller().map(|()| text)
    }

    /// Reads numbers that an argument points to.
    fn numbers<const COUNT: usize>(&self, index: usize) -> io::Result<[i64; COUNT]> {
        let numbers = self.target.read_numbers(self.argument(index))?;
        self.require_caller().map(|()| numbers)
    }

    /// Gives this thread the umask of the program, for files that are about to be made.
    fn take_umask(&self) -> io::Result<()> {
        let identity = self.target.identity().ok_or(io::ErrorKind::NotFound)?;
        // SAFETY: takes an integer.
        unsafe { libc::umask(identity.umask) };
        Ok(())
    }
}

const fn about(number: c_long, first: Place, perform: fn(&Call<'_>) -> io::Result<Answer>) -> Kind {
    Kind { number, first, second: None, changes_names: false, reads_link: false, perform }
}

const fn naming(number: c_long, first: Place, perform: fn(&Call<'_>) -> io::Result<Answer>) -> Kind {
    Kind { number, first, second: None, changes_names: true, reads_link: false, perform }
}

const fn both(number: c_long, first: Place, second: Place, perform: fn(&Call<'_>) -> io::Result<Answer>) -> Kind {
    Kind { number, first, second: Some(second), changes_names: true, reads_link: false, perform }
}

use Place::{At, Descriptor, Path};

/// Every trapped call of every architecture.
const EVERYWHERE: &[Kind] = &[
    about(libc::SYS_openat, At(0, 1), |call| open(call, call.number(2), call.mode(3))),
    about(libc::SYS_openat2, At(0, 1), openat2),
    about(libc::SYS_newfstatat, At(0, 1), |call| stat(call, 2, call.number(3))),
    about(libc::SYS_statx, At(0, 1), statx),
    about(libc::SYS_faccessat, At(0, 1), |call| access(call, call.number(2), 0)),
    about(libc::SYS_faccessat2, At(0, 1), |call| access(call, call.number(2), call.number(3))),
    both(libc::SYS_renameat2, At(0, 1), At(2, 3), |call| rename(call, call.argument(4) as u32)),
    both(libc::SYS_linkat, At(0, 1), At(2, 3), |call| link(call, call.number(4))),
    naming(libc::SYS_symlinkat, At(1, 2), symlink),
    naming(libc::SYS_unlinkat, At(0, 1), |call| unlink(call, call.number(2))),
    naming(libc::SYS_mkdirat, At(0, 1), |call| mkdir(call, call.mode(2))),
    Kind { reads_link: true, ..about(libc::SYS_readlinkat, At(0, 1), |call| readlink(call, 2)) },
    about(libc::SYS_truncate, Path(0), truncate),
    about(libc::SYS_fchmodat, At(0, 1), |call| chmod(call, call.mode(2), 0)),
    about(FCHMODAT2, At(0, 1), |call| chmod(call, call.mode(2), call.number(3))),
    about(libc::SYS_fchownat, At(0, 1), |call| chown(call, 2, call.number(4))),
    about(libc::SYS_utimensat, At(0, 1), utimensat),
    about(libc::SYS_getxattr, Path(0), |call| getxattr(call, libc::getxattr)),
    about(libc::SYS_lgetxattr, Path(0), |call| getxattr(call, libc::lgetxattr)),
    about(libc::SYS_setxattr, Path(0), |call| setxattr(call, libc::setxattr)),
    about(libc::SYS_lsetxattr, Path(0), |call| setxattr(call, libc::lsetxattr)),
    about(libc::SYS_listxattr, Path(0), |call| listxattr(call, libc::listxattr)),
    about(libc::SYS_llistxattr, Path(0), |call| listxattr(call, libc::llistxattr)),
    about(libc::SYS_removexattr, Path(0), |call| removexattr(call, libc::removexattr)),
    about(libc::SYS_lremovexattr, Path(0), |call| removexattr(call, libc::lremovexattr)),
    about(libc::SYS_getdents64, Descriptor(0), |call| {
        listing::read(call, call.number(0), call.argument(1), call.argument(2) as u32)
    }),
];

/// Those that only older architectures have.
#[cfg(target_arch = "x86_64")]
const OLDER: &[Kind] = &[
    about(libc::SYS_open, Path(0), |call| open(call, call.number(1), call.mode(2))),
    about(libc::SYS_creat, Path(0), |call| open(call, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, call.mode(1))),
    about(libc::SYS_stat, Path(0), |call| stat(call, 1, 0)),
    about(libc::SYS_lstat, Path(0), |call| stat(call, 1, libc::AT_SYMLINK_NOFOLLOW)),
    about(libc::SYS_access, Path(0), |call| access(call, call.number(1), 0)),
    both(libc::SYS_rename, Path(0), Path(1), |call| rename(call, 0)),
    both(libc::SYS_renameat, At(0, 1), At(2, 3), |call| rename(call, 0)),
    both(libc::SYS_link, Path(0), Path(1), |call| link(call, 0)),
    naming(libc::SYS_symlink, Path(1), symlink),
    naming(libc::SYS_unlink, Path(0), |call| unlink(call, 0)),
    naming(libc::SYS_rmdir, Path(0), |call| unlink(call, libc::AT_REMOVEDIR)),
    naming(libc::SYS_mkdir, Path(0), |call| mkdir(call, call.mode(1))),
    Kind { reads_link: true, ..about(libc::SYS_readlink, Path(0), |call| readlink(call, 1)) },
    about(libc::SYS_chmod, Path(0), |call| chmod(call, call.mode(1), 0)),
    about(libc::SYS_chown, Path(0), |call| chown(call, 1, 0)),
    about(libc::SYS_lchown, Path(0), |call| chown(call, 1, libc::AT_SYMLINK_NOFOLLOW)),
    about(libc::SYS_utime, Path(0), utime),
    about(libc::SYS_utimes, Path(0), |call| utimes(call, 1)),
    about(libc::SYS_futimesat, At(0, 1), |call| utimes(call, 2)),
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[Kind] = &[both(libc::SYS_renameat, At(0, 1), At(2, 3), |call| rename(call, 0))];

/// The whole table.
pub fn all() -> impl Iterator<Item = &'static Kind> {
    EVERYWHERE.iter().chain(OLDER)
}

/// The call with this number.
pub fn find(number: c_int) -> Option<&'static Kind> {
    all().find(|kind| kind.number == c_long::from(number))
}

fn open(call: &Call<'_>, flags: c_int, mode: libc::mode_t) -> io::Result<Answer> {
    let makes_file = flags & libc::O_CREAT != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE;
    if makes_file {
        call.take_umask()?;
    }
    if flags & libc::O_PATH != 0 && is_directory(call) {
        return Ok(Answer::Native);
    }
    // The kernel hands no O_PATH descriptors to other processes; one for reading can do all that such a one can.
    let shared = if flags & libc::O_PATH != 0 { flags & !libc::O_PATH | libc::O_NONBLOCK } else { flags };
    // SAFETY: a C string.
    let number = unsafe { libc::openat(AT_FDCWD, call.path.as_ptr(), shared | libc::O_CLOEXEC, mode) };
    if number < 0 {
        return Ok(Answer::last_error());
    }
    // SAFETY: the C library has just made it for us.
    let file = unsafe { OwnedFd::from_raw_fd(number) };
    Ok(Answer::Descriptor { file, is_closed_at_exec: flags & libc::O_CLOEXEC != 0 })
}

/// Whether the call is about a directory: directories are real.
fn is_directory(call: &Call<'_>) -> bool {
    let mut found = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: a C string, and room for the structure, which is valid even where nothing was written.
    let mode = unsafe {
        libc::fstatat(AT_FDCWD, call.path.as_ptr(), found.as_mut_ptr(), 0);
        found.assume_init().st_mode
    };
    mode & libc::S_IFMT == libc::S_IFDIR
}

/// Restrictions on the way to the file are the kernel's to keep, as in the library.
fn openat2(call: &Call<'_>) -> io::Result<Answer> {
    let [flags, mode, resolve] = call.numbers(2)?;
    let has_more = call.argument(3) != size_of::<[i64; 3]>() as u64;
    if has_more || resolve != 0 || c_int::try_from(flags).is_err() {
        return Ok(Answer::Native);
    }
    open(call, flags as c_int, mode as libc::mode_t)
}

/// The bytes of a plain structure.
fn bytes_of<T>(value: &MaybeUninit<T>) -> &[u8] {
    // SAFETY: the structures of the kernel that are passed here were zeroed, so every byte of them is initialised.
    unsafe { std::slice::from_raw_parts(value.as_ptr().cast(), size_of::<T>()) }
}

fn stat(call: &Call<'_>, buffer: usize, flags: c_int) -> io::Result<Answer> {
    let mut found = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: a C string, and room for the structure.
    match unsafe { libc::fstatat(AT_FDCWD, call.path.as_ptr(), found.as_mut_ptr(), flags) } {
        0 => call.deliver(buffer, bytes_of(&found), 0),
        _ => Ok(Answer::last_error()),
    }
}

fn statx(call: &Call<'_>) -> io::Result<Answer> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let (flags, mask) = (call.number(2), call.argument(3) as u32);
    // SAFETY: a C string, and room for the structure.
    match unsafe { libc::statx(AT_FDCWD, call.path.as_ptr(), flags, mask, found.as_mut_ptr()) } {
        0 => call.deliver(4, bytes_of(&found), 0),
        _ => Ok(Answer::last_error()),
    }
}

fn access(call: &Call<'_>, mode: c_int, flags: c_int) -> io::Result<Answer> {
    // SAFETY: a C string.
    Ok(Answer::of(unsafe { libc::faccessat(AT_FDCWD, call.path.as_ptr(), mode, flags) }))
}

fn rename(call: &Call<'_>, flags: u32) -> io::Result<Answer> {
    // SAFETY: C strings.
    Ok(Answer::of(unsafe { libc::renameat2(AT_FDCWD, call.path.as_ptr(), AT_FDCWD, call.other.as_ptr(), flags) }))
}

/// A file that is named by its descriptor alone is reached through /proc; see [`super::supervisor`].
fn link(call: &Call<'_>, flags: c_int) -> io::Result<Answer> {
    let by_descriptor = flags & libc::AT_EMPTY_PATH != 0 && call.path.to_bytes().starts_with(b"/proc/");
    let flags = if by_descriptor { libc::AT_SYMLINK_FOLLOW } else { flags };
    // SAFETY: C strings.
    Ok(Answer::of(unsafe { libc::linkat(AT_FDCWD, call.path.as_ptr(), AT_FDCWD, call.other.as_ptr(), flags) }))
}

fn symlink(call: &Call<'_>) -> io::Result<Answer> {
    let text = call.string(0)?;
    // SAFETY: C strings.
    Ok(Answer::of(unsafe { libc::symlinkat(text.as_ptr(), AT_FDCWD, call.path.as_ptr()) }))
}

fn unlink(call: &Call<'_>, flags: c_int) -> io::Result<Answer> {
    // SAFETY: a C string.
    Ok(Answer::of(unsafe { libc::unlinkat(AT_FDCWD, call.path.as_ptr(), flags) }))
}

fn mkdir(call: &Call<'_>, mode: libc::mode_t) -> io::Result<Answer> {
    call.take_umask()?;
    // SAFETY: a C string.
    Ok(Answer::of(unsafe { libc::mkdirat(AT_FDCWD, call.path.as_ptr(), mode) }))
}

fn readlink(call: &Call<'_>, buffer: usize) -> io::Result<Answer> {
    let mut text = vec![0u8; usize::try_from(call.number(buffer + 1)).unwrap_or_default().min(RESULT_MAX)];
    // SAFETY: a C string, and a buffer of this length.
    let length = unsafe { libc::readlinkat(AT_FDCWD, call.path.as_ptr(), text.as_mut_ptr().cast(), text.len()) } as i64;
    match text.get(..usize::try_from(length).unwrap_or_default()) {
        Some(text) if length > 0 => call.deliver(buffer, text, length),
        _ => Ok(Answer::of(length)),
    }
}

fn truncate(call: &Call<'_>) -> io::Result<Answer> {
    // SAFETY: a C string.
    Ok(Answer::of(unsafe { libc::truncate(call.path.as_ptr(), call.argument(1) as libc::off_t) }))
}

fn chmod(call: &Call<'_>, mode: libc::mode_t, flags: c_int) -> io::Result<Answer> {
    // SAFETY: a C string.
    Ok(Answer::of(unsafe { libc::fchmodat(AT_FDCWD, call.path.as_ptr(), mode, flags) }))
}

fn chown(call: &Call<'_>, user: usize, flags: c_int) -> io::Result<Answer> {
    let (user, group) = (call.argument(user) as libc::uid_t, call.argument(user + 1) as libc::gid_t);
    // SAFETY: a C string.
    Ok(Answer::of(unsafe { libc::fchownat(AT_FDCWD, call.path.as_ptr(), user, group, flags) }))
}

/// Sets times, as the newest of the calls does; `None` means now.
fn set_times(call: &Call<'_>, times: Option<[libc::timespec; 2]>, flags: c_int) -> io::Result<Answer> {
    let times = times.as_ref().map_or(std::ptr::null(), |times| times.as_ptr());
    // SAFETY: a C string, and null or two times.
    Ok(Answer::of(unsafe { libc::utimensat(AT_FDCWD, call.path.as_ptr(), times, flags) }))
}

fn utimensat(call: &Call<'_>) -> io::Result<Answer> {
    let times = match call.argument(2) {
        0 => None,
        _ => {
            let [first, first_ns, second, second_ns] = call.numbers(2)?;
            let time = |tv_sec, tv_nsec| libc::timespec { tv_sec, tv_nsec };
            Some([time(first, first_ns), time(second, second_ns)])
        }
    };
    set_times(call, times, call.number(3))
}

#[cfg(target_arch = "x86_64")]
fn utimes(call: &Call<'_>, index: usize) -> io::Result<Answer> {
    let times = match call.argument(index) {
        0 => None,
        _ => {
            let [first, first_us, second, second_us] = call.numbers(index)?;
            if [first_us, second_us].iter().any(|part| !(0..1_000_000).contains(part)) {
                return Ok(Answer::Error(libc::EINVAL));
            }
            let time = |tv_sec, us: i64| libc::timespec { tv_sec, tv_nsec: us * 1000 };
            Some([time(first, first_us), time(second, second_us)])
        }
    };
    set_times(call, times, 0)
}

#[cfg(target_arch = "x86_64")]
fn utime(call: &Call<'_>) -> io::Result<Answer> {
    let times = match call.argument(1) {
        0 => None,
        _ => {
            let times: [i64; 2] = call.numbers(1)?;
            Some(times.map(|tv_sec| libc::timespec { tv_sec, tv_nsec: 0 }))
        }
    };
    set_times(call, times, 0)
}

type Get = unsafe extern "C" fn(*const libc::c_char, *const libc::c_char, *mut libc::c_void, usize) -> isize;
type Set = unsafe extern "C" fn(*const libc::c_char, *const libc::c_char, *const libc::c_void, usize, c_int) -> c_int;
type List = unsafe extern "C" fn(*const libc::c_char, *mut libc::c_char, usize) -> isize;
type Remove = unsafe extern "C" fn(*const libc::c_char, *const libc::c_char) -> c_int;

/// Hands over what `get` puts into a buffer of the size that the program has, in the arguments behind `buffer`. Without
/// room it only says how much there is.
fn fetch(call: &Call<'_>, buffer: usize, get: impl Fn(*mut u8, usize) -> isize) -> io::Result<Answer> {
    let mut bytes = vec![0u8; (call.argument(buffer + 1) as usize).min(RESULT_MAX)];
    let length = get(bytes.as_mut_ptr(), bytes.len()) as i64;
    match bytes.get(..usize::try_from(length).unwrap_or_default()) {
        Some(bytes) if !bytes.is_empty() => call.deliver(buffer, bytes, length),
        _ => Ok(Answer::of(length)),
    }
}

fn getxattr(call: &Call<'_>, get: Get) -> io::Result<Answer> {
    let name = call.string(1)?;
    // SAFETY: C strings, and a buffer of this length.
    fetch(call, 2, |bytes, length| unsafe { get(call.path.as_ptr(), name.as_ptr(), bytes.cast(), length) })
}

fn listxattr(call: &Call<'_>, list: List) -> io::Result<Answer> {
    // SAFETY: a C string, and a buffer of this length.
    fetch(call, 1, |bytes, length| unsafe { list(call.path.as_ptr(), bytes.cast(), length) })
}

fn setxattr(call: &Call<'_>, set: Set) -> io::Result<Answer> {
    let name = call.string(1)?;
    let size = call.argument(3) as usize;
    if size > RESULT_MAX {
        return Ok(Answer::Error(libc::E2BIG));
    }
    let mut value = vec![0u8; size];
    call.target.read(call.argument(2), &mut value)?;
    call.require_caller()?;
    // SAFETY: C strings, and a buffer of this length.
    let result = unsafe { set(call.path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), call.number(4)) };
    Ok(Answer::of(result))
}

fn removexattr(call: &Call<'_>, remove: Remove) -> io::Result<Answer> {
    let name = call.string(1)?;
    // SAFETY: C strings.
    Ok(Answer::of(unsafe { remove(call.path.as_ptr(), name.as_ptr()) }))
}
