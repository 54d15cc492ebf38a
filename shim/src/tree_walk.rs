//! Tree walks by fts(3), on the directory streams of this library.
//!
//! The C library's own walk opens directories inside, where no hook reaches. This one yields the same entries in the
//! same order, and never changes the working directory: fts(3) promises no particular one. Walks that were begun
//! without Sheaf stay the C library's.

use core::ffi::{CStr, c_char, c_int, c_long, c_void};
use core::mem::offset_of;
use core::ptr;

use libc::dirent;

use crate::configuration;
use crate::directory::{self, Compare};
use crate::hooks::{fail, real};
use crate::listing;
use crate::metadata;
use crate::paths::{is_directory, is_link, is_regular};
use crate::system::{self, Stat};

// Options of fts_open(3).
const FOLLOW_ROOTS: c_int = 0x01;
const LOGICAL: c_int = 0x02;
const NO_STAT: c_int = 0x08;
const PHYSICAL: c_int = 0x10;
const SEE_DOTS: c_int = 0x20;
const ONE_DEVICE: c_int = 0x40;
const OPTIONS: c_int = 0xff;
/// Of fts_children(3).
const NAMES_ONLY: c_int = 0x100;

// What is said of an entry.
const DIRECTORY: u16 = 1;
const CYCLE: u16 = 2;
const OTHER: u16 = 3;
const UNREADABLE: u16 = 4;
const DOT: u16 = 5;
const DIRECTORY_AFTER: u16 = 6;
const ERROR: u16 = 7;
const FILE: u16 = 8;
const BEFORE_FIRST: u16 = 9;
const NO_ANSWER: u16 = 10;
const NOT_ASKED: u16 = 11;
const LINK: u16 = 12;
const DANGLING: u16 = 13;

// What fts_set(3) can ask for.
const AGAIN: u16 = 1;
const FOLLOW: u16 = 2;
const NOTHING: u16 = 3;
const SKIP: u16 = 4;

/// The level of what a walk starts with; that of what is above is one less.
const ROOT: i16 = 0;

/// `FTSENT`: the name, what stat(2) says and the path follow in the same memory.
#[repr(C)]
pub struct Item {
    cycle: *mut Item,
    parent: *mut Item,
    link: *mut Item,
    number: c_long,
    pointer: *mut c_void,
    access_path: *mut c_char,
    path: *mut c_char,
    errno: c_int,
    link_descriptor: c_int,
    path_length: u16,
    name_length: u16,
    inode: u64,
    device: u64,
    links: libc::nlink_t,
    level: i16,
    info: u16,
    flags: u16,
    instruction: u16,
    stat: *mut Stat,
    name: [c_char; 1],
}

/// A walk of this library's; programs know only its address. `mark` tells it from one of the C library's.
#[repr(C)]
pub struct Walk {
    mark: *const u8,
    current: *mut Item,
    /// What fts_children(3) has listed, if fts_read(3) has not gone there yet.
    children: *mut Item,
    device: u64,
    options: c_int,
    compare: Compare,
}

/// What lies here marks a walk.
static MARK: u8 = 0;

/// fts_open(3).
pub unsafe fn open(roots: *const *mut c_char, options: c_int, compare: Compare) -> *mut Walk {
    if configuration::active().is_none() || roots.is_null() {
        // SAFETY: the program's arguments.
        return unsafe { real::fts_open(roots, options, compare) };
    }
    if options & !OPTIONS != 0 {
        return fail(libc::EINVAL);
    }
    // SAFETY: a vector of C strings that ends with a null; memory of our own.
    unsafe {
        let walk: *mut Walk = real::malloc(size_of::<Walk>()).cast();
        if walk.is_null() {
            return walk;
        }
        let (current, children) = (ptr::null_mut(), ptr::null_mut());
        walk.write(Walk { mark: &raw const MARK, current, children, device: 0, options, compare });
        match (*walk).begin(roots) {
            Some(()) => walk,
            None => {
                close(walk);
                ptr::null_mut()
            }
        }
    }
}

/// Whether a walk is one of this library's.
unsafe fn is_ours(walk: *mut Walk) -> bool {
    // SAFETY: the program's walk: either library's begins with an address.
    !walk.is_null() && ptr::eq(unsafe { (*walk).mark }, &raw const MARK)
}

/// fts_read(3).
pub unsafe fn read(walk: *mut Walk) -> *mut Item {
    // SAFETY: the program's walk.
    unsafe { if is_ours(walk) { (*walk).step() } else { real::fts_read(walk) } }
}

/// fts_children(3).
pub unsafe fn children(walk: *mut Walk, options: c_int) -> *mut Item {
    // SAFETY: the program's walk; items live until it goes on.
    unsafe {
        if !is_ours(walk) {
            return real::fts_children(walk, options);
        }
        let walk = &mut *walk;
        if options & !NAMES_ONLY != 0 {
            return fail(libc::EINVAL);
        }
        system::set_errno(0);
        match walk.current.as_ref() {
            Some(current) if current.info == BEFORE_FIRST => return current.link,
            Some(current) if current.info == DIRECTORY => {}
            _ => return ptr::null_mut(),
        }
        free_list(walk.children);
        walk.options = walk.options & !NAMES_ONLY | options;
        walk.children = walk.list(options != 0).unwrap_or(ptr::null_mut());
        walk.children
    }
}

/// fts_set(3).
pub unsafe fn set(walk: *mut Walk, item: *mut Item, instruction: c_int) -> c_int {
    // SAFETY: the program's walk, and an item of it.
    unsafe {
        if !is_ours(walk) {
            return real::fts_set(walk, item, instruction);
        }
        if !(0..=c_int::from(SKIP)).contains(&instruction) {
            system::set_errno(libc::EINVAL);
            return 1;
        }
        (*item).instruction = instruction as u16;
    }
    0
}

/// fts_close(3).
pub unsafe fn close(walk: *mut Walk) -> c_int {
    // SAFETY: the program's walk, which it gives up; every item is in one list only.
    unsafe {
        if !is_ours(walk) {
            return real::fts_close(walk);
        }
        free_list((*walk).children);
        let mut item = (*walk).current;
        while !item.is_null() {
            let next = if (*item).link.is_null() { (*item).parent } else { (*item).link };
            real::free(item.cast());
            item = next;
        }
        real::free(walk.cast());
    }
    0
}

/// Frees a list of items that the walk has not gone into.
unsafe fn free_list(mut item: *mut Item) {
    while !item.is_null() {
        // SAFETY: items of a walk, which come from malloc.
        unsafe {
            let next = (*item).link;
            real::free(item.cast());
            item = next;
        }
    }
}

fn text<'a>(text: *const c_char) -> &'a [u8] {
    // SAFETY: items hold C strings, which live as long as they do.
    unsafe { CStr::from_ptr(text) }.to_bytes()
}

impl Walk {
    fn is(&self, option: c_int) -> bool {
        self.options & option != 0
    }

    /// Makes the items of the roots, with one before and one above them.
    unsafe fn begin(&mut self, mut roots: *const *mut c_char) -> Option<()> {
        // SAFETY: the program's vector; new items.
        unsafe {
            let above = self.item(ptr::null_mut(), b"", b"")?;
            (*above).level = ROOT - 1;
            self.current = above;
            let before = self.item(above, b"", b"")?;
            (*before).info = BEFORE_FIRST;
            self.current = before;
            let mut end: *mut *mut Item = &raw mut (*before).link;
            let mut count = 0;
            while !(*roots).is_null() {
                let path = text(*roots);
                if path.is_empty() {
                    return fail_with(libc::ENOENT);
                }
                let root = self.item(above, path, path)?;
                end.write(root);
                end = &raw mut (*root).link;
                (*root).info = match self.look(root, self.is(FOLLOW_ROOTS)) {
                    DOT => DIRECTORY,
                    info => info,
                };
                roots = roots.add(1);
                count += 1;
            }
            (*before).link = self.sorted((*before).link, count);
            Some(())
        }
    }

    /// A new item below `parent`; nothing, with errno set, when there is no memory or the path is too long.
    unsafe fn item(&self, parent: *mut Item, path: &[u8], name: &[u8]) -> Option<*mut Item> {
        let Ok(path_length) = u16::try_from(path.len()) else { return fail_with(libc::ENAMETOOLONG) };
        let stat_start = (offset_of!(Item, name) + name.len() + 1).next_multiple_of(align_of::<Stat>());
        let path_start = stat_start + size_of::<Stat>();
        let length = path_start + path.len() + 1;
        // SAFETY: the parts lie behind each other in new memory of that length; zeroed, the head is an item.
        unsafe {
            let memory: *mut u8 = real::malloc(length).cast();
            if memory.is_null() {
                return None;
            }
            ptr::write_bytes(memory, 0, length);
            ptr::copy_nonoverlapping(name.as_ptr(), memory.add(offset_of!(Item, name)), name.len());
            ptr::copy_nonoverlapping(path.as_ptr(), memory.add(path_start), path.len());
            let item: *mut Item = memory.cast();
            (*item).parent = parent;
            (*item).level = if parent.is_null() { ROOT } else { (*parent).level + 1 };
            (*item).path = memory.add(path_start).cast();
            (*item).access_path = (*item).path;
            (*item).path_length = path_length;
            (*item).name_length = name.len() as u16;
            (*item).instruction = NOTHING;
            (*item).info = NOT_ASKED;
            if !self.is(NO_STAT) {
                (*item).stat = memory.add(stat_start).cast();
            }
            Some(item)
        }
    }

    /// Notes what is at an item's path, and yields what it is.
    unsafe fn look(&self, item: *mut Item, follows: bool) -> u16 {
        let mut stat = core::mem::MaybeUninit::<Stat>::zeroed();
        // SAFETY: the item's own path, and a buffer for a struct stat, of which zero is a value.
        unsafe {
            let path = (*item).access_path;
            let follows = follows || self.is(LOGICAL);
            let result = match follows {
                true => metadata::stat(path, stat.as_mut_ptr()),
                false => metadata::lstat(path, stat.as_mut_ptr()),
            };
            if result != 0 {
                let number = system::errno();
                if follows && metadata::lstat(path, stat.as_mut_ptr()) == 0 {
                    system::set_errno(0);
                    self.keep(item, stat.assume_init());
                    return DANGLING;
                }
                (*item).errno = number;
                self.keep(item, core::mem::zeroed());
                return NO_ANSWER;
            }
            let stat = stat.assume_init();
            self.keep(item, stat);
            match &stat {
                stat if is_directory(stat) => look_at_directory(item, stat),
                stat if is_link(stat) => LINK,
                stat if is_regular(stat) => FILE,
                _ => OTHER,
            }
        }
    }

    unsafe fn keep(&self, item: *mut Item, stat: Stat) {
        // SAFETY: an item of the walk, with room for it or none.
        unsafe {
            if !(*item).stat.is_null() {
                (*item).stat.write(stat);
            }
        }
    }

    /// The next entry; null at the end.
    unsafe fn step(&mut self) -> *mut Item {
        let item = self.current;
        if item.is_null() {
            return item;
        }
        // SAFETY: the walk's own items.
        unsafe {
            let instruction = core::mem::replace(&mut (*item).instruction, NOTHING);
            match (instruction, (*item).info) {
                (AGAIN, _) => {
                    (*item).info = self.look(item, false);
                    item
                }
                (FOLLOW, LINK | DANGLING) => {
                    (*item).info = self.look(item, true);
                    item
                }
                (_, DIRECTORY) => {
                    if instruction == SKIP || self.is(ONE_DEVICE) && (*item).device != self.device {
                        free_list(core::mem::replace(&mut self.children, ptr::null_mut()));
                        (*item).info = DIRECTORY_AFTER;
                        return item;
                    }
                    self.enter(item)
                }
                _ => self.go_on(item),
            }
        }
    }

    /// Goes into a directory; yields the directory itself when nothing is there.
    unsafe fn enter(&mut self, item: *mut Item) -> *mut Item {
        // SAFETY: the walk's own items.
        unsafe {
            if self.is(NAMES_ONLY) {
                self.options &= !NAMES_ONLY;
                free_list(core::mem::replace(&mut self.children, ptr::null_mut()));
            }
            if self.children.is_null() {
                system::set_errno(0);
                self.children = match self.list(false) {
                    Some(children) => children,
                    None => {
                        (*item).info = UNREADABLE;
                        (*item).errno = system::errno();
                        return item;
                    }
                };
            }
            let first = core::mem::replace(&mut self.children, ptr::null_mut());
            if first.is_null() {
                (*item).info = DIRECTORY_AFTER;
                return item;
            }
            self.arrive(first)
        }
    }

    /// Makes an item the current one.
    unsafe fn arrive(&mut self, item: *mut Item) -> *mut Item {
        self.current = item;
        // SAFETY: the walk's own item.
        unsafe {
            if (*item).level == ROOT {
                self.device = (*item).device;
                shorten_name(item);
            }
        }
        item
    }

    /// Leaves an item for the next one in its directory, or for the directory.
    unsafe fn go_on(&mut self, item: *mut Item) -> *mut Item {
        // SAFETY: the walk's own items; nobody may use one that the walk has left.
        unsafe {
            let (next, parent) = ((*item).link, (*item).parent);
            real::free(item.cast());
            if !next.is_null() {
                match (*next).instruction {
                    SKIP if (*next).level > ROOT => return self.go_on(next),
                    FOLLOW if (*next).level > ROOT => {
                        ((*next).instruction, (*next).info) = (NOTHING, self.look(next, true));
                    }
                    _ => {}
                }
                return self.arrive(next);
            }
            if (*parent).level < ROOT {
                real::free(parent.cast());
                self.current = ptr::null_mut();
                system::set_errno(0);
                return ptr::null_mut();
            }
            (*parent).info = if (*parent).errno == 0 { DIRECTORY_AFTER } else { ERROR };
            self.current = parent;
            parent
        }
    }

    /// What is in the current directory, as a list; nothing, with errno set, when that cannot be read.
    unsafe fn list(&self, names_only: bool) -> Option<*mut Item> {
        let mut first = ptr::null_mut();
        let mut count = 0;
        // SAFETY: the walk's own items and stream; records are whole and live until the next call.
        unsafe {
            let directory = self.current;
            let stream = directory::opendir((*directory).access_path);
            if stream.is_null() {
                return None;
            }
            let mut end: *mut *mut Item = &raw mut first;
            loop {
                let record = directory::readdir(stream);
                if record.is_null() {
                    break;
                }
                let name = listing::name_of(record);
                if matches!(name, b"." | b"..") && !self.is(SEE_DOTS) {
                    continue;
                }
                let Some(item) = self.child(directory, name) else {
                    let number = system::errno();
                    directory::closedir(stream);
                    free_list(first);
                    return fail_with(number);
                };
                if !names_only && !self.is_enough(record) {
                    (*item).info = self.look(item, false);
                }
                end.write(item);
                end = &raw mut (*item).link;
                count += 1;
            }
            directory::closedir(stream);
            Some(self.sorted(first, count))
        }
    }

    /// Whether the kind that a record tells is all that the program wants to know.
    unsafe fn is_enough(&self, record: *const dirent) -> bool {
        // SAFETY: the caller's record is whole.
        let kind = unsafe { (*record).d_type };
        self.is(NO_STAT) && self.is(PHYSICAL) && !matches!(kind, libc::DT_DIR | libc::DT_UNKNOWN)
    }

    unsafe fn child(&self, directory: *mut Item, name: &[u8]) -> Option<*mut Item> {
        // SAFETY: the walk's own item; memory of our own, long enough for both and a slash.
        unsafe {
            let above = text((*directory).path);
            let memory: *mut u8 = real::malloc(above.len() + 1 + name.len()).cast();
            if memory.is_null() {
                return None;
            }
            let slash = usize::from(above.last() != Some(&b'/'));
            ptr::copy_nonoverlapping(above.as_ptr(), memory, above.len());
            memory.add(above.len()).write(b'/');
            ptr::copy_nonoverlapping(name.as_ptr(), memory.add(above.len() + slash), name.len());
            let path = core::slice::from_raw_parts(memory, above.len() + slash + name.len());
            let item = self.item(directory, path, name);
            real::free(memory.cast());
            item
        }
    }

    /// The list in the program's order.
    unsafe fn sorted(&self, first: *mut Item, count: usize) -> *mut Item {
        if self.compare.is_none() || count < 2 {
            return first;
        }
        // SAFETY: the list has that many items; the program's function orders pointers to pointers to them.
        unsafe {
            let array: *mut *mut Item = real::malloc(count * size_of::<*mut Item>()).cast();
            if array.is_null() {
                return first;
            }
            let mut item = first;
            for index in 0..count {
                array.add(index).write(item);
                item = (*item).link;
            }
            real::qsort(array.cast(), count, size_of::<*mut Item>(), self.compare);
            for index in 0..count {
                let next = if index + 1 < count { *array.add(index + 1) } else { ptr::null_mut() };
                (**array.add(index)).link = next;
            }
            let first = *array;
            real::free(array.cast());
            first
        }
    }
}

/// Fails with an error number where nothing is yielded.
fn fail_with<T>(number: c_int) -> Option<T> {
    system::set_errno(number);
    None
}

/// What is said of a directory: it may be one that the walk is in already.
unsafe fn look_at_directory(item: *mut Item, stat: &Stat) -> u16 {
    // SAFETY: a walk's own items, up to the one above the roots.
    unsafe {
        ((*item).device, (*item).inode, (*item).links) = (stat.st_dev, stat.st_ino, stat.st_nlink);
        if matches!(text((&raw const (*item).name).cast()), b"." | b"..") {
            return DOT;
        }
        let mut above = (*item).parent;
        while (*above).level >= ROOT {
            if ((*above).inode, (*above).device) == (stat.st_ino, stat.st_dev) {
                (*item).cycle = above;
                return CYCLE;
            }
            above = (*above).parent;
        }
    }
    DIRECTORY
}

/// A root is called by the last part of its path from when the walk gets there.
unsafe fn shorten_name(item: *mut Item) {
    // SAFETY: the item's own name, which gets shorter.
    unsafe {
        let name: *mut c_char = (&raw mut (*item).name).cast();
        let bytes = text(name);
        let Some(slash) = bytes.iter().rposition(|&byte| byte == b'/').filter(|_| bytes.len() > 1) else { return };
        let length = bytes.len() - slash - 1;
        ptr::copy(name.add(slash + 1), name, length + 1);
        (*item).name_length = length as u16;
    }
}
