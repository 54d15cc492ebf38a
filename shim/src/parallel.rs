//! Files that several processes open together by MPI-IO, and so by parallel HDF5 and its relatives: they are left
//! alone.
//!
//! What is captured is this node's own until it is published. Of a file that processes on several nodes write to, each
//! node would have a part; and Open MPI waits for ever when the file that one rank has made is not there for another.
//! MPI is not needed for this, and is not called unless the program does: the functions are looked for when they are.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem::transmute;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::loader;

/// MPI_ERR_OTHER, as Open MPI numbers it; any number but 0 is an error.
const ERROR_OTHER: c_int = 16;

/// `MPI_Comm`, `MPI_Info`: an int or a pointer, as the implementation has it. Passed on as they are, in a register.
type Handle = usize;
type FileOpen = unsafe extern "C" fn(Handle, *const c_char, c_int, Handle, *mut c_void) -> c_int;
type CommSize = unsafe extern "C" fn(Handle, *mut c_int) -> c_int;

/// How many threads of this process are opening a file together with other processes.
static OPENING: AtomicU32 = AtomicU32::new(0);

/// Whether new files are other processes', too, for now. A thread that makes one of its own meanwhile makes it
/// natively.
pub fn is_opening() -> bool {
    OPENING.load(Ordering::Relaxed) > 0
}

/// MPI_File_open (MPI 4.1, section 14.2.1) as the program sees it.
///
/// # Safety
/// As the function itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MPI_File_open(
    ranks: Handle,
    path: *const c_char,
    mode: c_int,
    info: Handle,
    file: *mut c_void,
) -> c_int {
    // SAFETY: the program's arguments.
    unsafe { open(c"MPI_File_open", ranks, path, mode, info, file) }
}

/// The same under the name that tools for profiling, and other languages' bindings, call.
///
/// # Safety
/// As the function itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PMPI_File_open(
    ranks: Handle,
    path: *const c_char,
    mode: c_int,
    info: Handle,
    file: *mut c_void,
) -> c_int {
    // SAFETY: the program's arguments.
    unsafe { open(c"PMPI_File_open", ranks, path, mode, info, file) }
}

unsafe fn open(name: &CStr, ranks: Handle, path: *const c_char, mode: c_int, info: Handle, file: *mut c_void) -> c_int {
    let Some(real) = loader::find_loaded(name) else { return ERROR_OTHER };
    // SAFETY: the function of this name, whose C declaration the type repeats.
    let real = unsafe { transmute::<*mut c_void, FileOpen>(real) };
    // SAFETY: as above: the program's communicator.
    let is_shared = unsafe { size(ranks) } != Some(1);
    OPENING.fetch_add(is_shared.into(), Ordering::Relaxed);
    // SAFETY: the program's arguments.
    let outcome = unsafe { real(ranks, path, mode, info, file) };
    OPENING.fetch_sub(is_shared.into(), Ordering::Relaxed);
    outcome
}

/// How many processes open the file, if that can be told.
unsafe fn size(ranks: Handle) -> Option<c_int> {
    let real = loader::find_loaded(c"PMPI_Comm_size")?;
    let mut size = 0;
    // SAFETY: the function of this name, whose C declaration the type repeats, with the program's communicator and a
    // place for the answer.
    let outcome = unsafe { transmute::<*mut c_void, CommSize>(real)(ranks, &mut size) };
    (outcome == 0).then_some(size)
}
