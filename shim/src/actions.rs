//! File actions of posix_spawn(3): the child opens inside the C library, so paths are rewritten when they are added.
//!
//! The actions themselves are the C library's own. What must be known of them when the child starts stands in a fixed
//! table beside them; when that is full, actions are added as the program gives them. Nothing here may keep a
//! descriptor beyond the start of the child.

use core::ffi::{CStr, c_char, c_int};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use libc::{O_CLOEXEC, O_CREAT, O_EXCL, O_NOFOLLOW, O_RDONLY, O_TMPFILE, mode_t};

use crate::configuration::{self, Configuration};
use crate::exec::Actions;
use crate::flusher;
use crate::hooks::real;
use crate::paths::{self, Entry, Kind, Last, Resolution};
use crate::system::{AT_FDCWD, Descriptor, Errno};
use crate::{kept, open, system};

/// Notes that can stand at a time, of all actions that live.
const NOTES: usize = 128;
/// Files of one child that are held open until it runs.
const HELD: usize = 16;

/// What is to be known of actions.
struct Note {
    /// Whose note it is; null when it is free.
    actions: AtomicPtr<Actions>,
    /// The file that must have its data when the child starts; null: the child changes its directory.
    file: AtomicPtr<c_char>,
}

static TABLE: [Note; NOTES] =
    [const { Note { actions: AtomicPtr::new(ptr::null_mut()), file: AtomicPtr::new(ptr::null_mut()) } }; NOTES];

/// Whether it was once impossible to note that a child changes its directory: from then on all of them may.
static LOST: AtomicBool = AtomicBool::new(false);

/// What a note says while it is being written.
static UNFINISHED: u8 = 0;

fn unfinished() -> *mut c_char {
    (&raw const UNFINISHED).cast_mut().cast()
}

/// The notes of some actions.
fn notes(actions: *const Actions) -> impl Iterator<Item = &'static Note> {
    TABLE.iter().filter(move |note| note.actions.load(Ordering::Acquire).cast_const() == actions)
}

/// Writes a note; false when the table is full.
fn note(actions: *mut Actions, file: Option<&'static CStr>) -> bool {
    let file = file.map_or(ptr::null_mut(), |file| file.as_ptr().cast_mut());
    for place in &TABLE {
        let free = ptr::null_mut();
        if place.actions.compare_exchange(free, actions, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            place.file.store(file, Ordering::Release);
            return true;
        }
    }
    false
}

/// Forgets what was noted: the actions are new, or gone.
fn forget(actions: *const Actions) {
    for note in notes(actions) {
        note.file.store(unfinished(), Ordering::Release);
        note.actions.store(ptr::null_mut(), Ordering::Release);
    }
}

/// Whether the child changes its directory before it opens relative paths.
pub fn changes_directory(actions: *const Actions) -> bool {
    !actions.is_null()
        && (LOST.load(Ordering::Relaxed) || notes(actions).any(|note| note.file.load(Ordering::Acquire).is_null()))
}

fn note_change_of_directory(actions: *mut Actions) {
    if !note(actions, None) {
        LOST.store(true, Ordering::Relaxed);
    }
}

/// Has a file's data brought back, and holds it.
fn hold_file(file: *const c_char) -> Option<Descriptor> {
    // SAFETY: the caller passes a text that is kept for ever.
    let opened = unsafe { open::attempt(AT_FDCWD, file, O_RDONLY | O_CLOEXEC, 0) };
    opened.and_then(|result| result.and_then(Descriptor::own).ok())
}

/// Has the data of files that the child opens brought back, and holds them until the result goes.
pub fn hold(actions: *const Actions) -> [Option<Descriptor>; HELD] {
    let mut held = [const { None }; HELD];
    if actions.is_null() {
        return held;
    }
    let files = notes(actions).map(|note| note.file.load(Ordering::Acquire).cast_const());
    let files = files.filter(|file| !file.is_null() && *file != unfinished());
    for (place, file) in held.iter_mut().zip(files) {
        *place = hold_file(file);
    }
    held
}

/// posix_spawn_file_actions_init(3).
pub unsafe fn initialise(actions: *mut Actions) -> c_int {
    forget(actions);
    // SAFETY: the program's memory.
    unsafe { real::posix_spawn_file_actions_init(actions) }
}

/// posix_spawn_file_actions_destroy(3).
pub unsafe fn destroy(actions: *mut Actions) -> c_int {
    forget(actions);
    // SAFETY: the program's actions.
    unsafe { real::posix_spawn_file_actions_destroy(actions) }
}

/// posix_spawn_file_actions_addopen(3).
pub unsafe fn add_open(actions: *mut Actions, fd: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let errno = system::errno();
    // SAFETY: the program's arguments.
    let found = unsafe { find(actions, path, flags) };
    system::set_errno(errno);
    let staged = match found {
        Ok(staged) => staged,
        Err(Errno(number)) => return number,
    };
    let path = staged.map_or(path, CStr::as_ptr);
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { real::posix_spawn_file_actions_addopen(actions, fd, path, flags, mode) }
}

/// Where the child finds a file, if the program's path does not lead it there. Fails where it cannot be known what the
/// path means.
unsafe fn find(actions: *mut Actions, path: *const c_char, flags: c_int) -> system::Result<Option<&'static CStr>> {
    let Some(configuration) = configuration::active() else { return Ok(None) };
    // SAFETY: the program's path.
    if paths::is_no_address(path) || unsafe { *path } != b'/' as c_char && changes_directory(actions) {
        return Ok(None);
    }
    let is_new = flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL;
    let last = if is_new || flags & O_NOFOLLOW != 0 { Last::Entry } else { Last::Follow };
    // SAFETY: the program's path.
    let resolution = unsafe {
        match open::replaces(flags) {
            true => paths::resolve_to_replace(AT_FDCWD, path, last),
            false => paths::resolve(AT_FDCWD, path, last),
        }
    };
    match resolution {
        Resolution::Ours(entry) => Ok(find_entry(configuration, actions, entry, flags)),
        // What the store holds cannot be learned. Of other errors the child will hear.
        Resolution::Failed(error @ Errno(libc::EIO)) => Err(error),
        _ => Ok(None),
    }
}

fn find_entry(
    configuration: &Configuration,
    actions: *mut Actions,
    mut entry: Entry,
    flags: c_int,
) -> Option<&'static CStr> {
    if entry.kind == Kind::Managed || flags & O_CREAT != 0 && can_be_made(&mut entry, flags) {
        flusher::ensure(configuration);
        if entry.is_regular() {
            let file = kept::keep(entry.real_path())?;
            drop(hold_file(file.as_ptr()));
            if !note(actions, Some(file)) {
                return None;
            }
        }
        return kept::keep(entry.tree_path());
    }
    if entry.is_detour { kept::keep(entry.real_path()) } else { None }
}

/// Whether the child can make the file in the tree.
fn can_be_made(entry: &mut Entry, flags: c_int) -> bool {
    let is_free = entry.kind == Kind::Unmanaged && entry.real().is_none() && !entry.wants_directory;
    let captures = is_free && entry.is_checkpoint && flags & O_TMPFILE != O_TMPFILE;
    captures && configuration::active().is_some_and(|c| flusher::ensure(c) && entry.make_parent_mirror(c))
}

/// posix_spawn_file_actions_addchdir_np(3).
pub unsafe fn add_chdir(actions: *mut Actions, path: *const c_char) -> c_int {
    // SAFETY: the program's path.
    let relative = unsafe { !paths::is_no_address(path) && *path != b'/' as c_char };
    let kept = match relative && changes_directory(actions) {
        true => None,
        // SAFETY: the program's path.
        false => match unsafe { paths::resolve(AT_FDCWD, path, Last::Follow) } {
            Resolution::Ours(entry) if entry.is_detour => kept::keep(entry.real_path()),
            _ => None,
        },
    };
    let path = kept.map_or(path, CStr::as_ptr);
    note_change_of_directory(actions);
    // SAFETY: the program's arguments, or a path of our own.
    unsafe { real::posix_spawn_file_actions_addchdir_np(actions, path) }
}

/// posix_spawn_file_actions_addfchdir_np(3).
pub unsafe fn add_fchdir(actions: *mut Actions, fd: c_int) -> c_int {
    note_change_of_directory(actions);
    // SAFETY: the program's arguments.
    unsafe { real::posix_spawn_file_actions_addfchdir_np(actions, fd) }
}
