//! What the tree adds to a directory's listing: a snapshot of the mirror, kept beside the program's directory stream.
//!
//! Streams are found by their address in a fixed table, so nothing is allocated and nothing blocks. A snapshot belongs
//! to one stream and changes only under the program's own calls on it, which it must not make at the same time.

use core::ffi::{CStr, c_long};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use libc::{DIR, dirent};

use crate::configuration::Configuration;
use crate::paths::{self, Entry};
use crate::system;

/// Streams of directories with managed names that can be open at a time; further ones show the real names only.
const STREAMS: usize = 256;
/// First size of a snapshot.
const FIRST_BYTES: usize = 64 * 1024;
/// Room that one more portion of names takes.
const PORTION_BYTES: usize = 32 * 1024;
/// High half of the positions that are handed out in snapshots. No real file system uses it.
const POSITION_MARK: u64 = 0x7ea5_5eaf_0000_0000;

struct Place {
    stream: AtomicPtr<DIR>,
    listing: AtomicPtr<Listing>,
}

static PLACES: [Place; STREAMS] =
    [const { Place { stream: AtomicPtr::new(ptr::null_mut()), listing: AtomicPtr::new(ptr::null_mut()) } }; STREAMS];
static ACTIVE: AtomicUsize = AtomicUsize::new(0);

/// The head of a snapshot's memory. The names follow as the kernel has listed them, then the index.
pub struct Listing {
    /// Bytes of the whole mapping.
    length: usize,
    /// End of the names, from the start of the mapping.
    end: usize,
    /// Slots of the index; a power of two, or none.
    slots: usize,
    /// The next name to show.
    position: usize,
    /// Whether the real names have all been shown.
    pub is_staged: bool,
    /// The store's name, if the store lies in this directory.
    store_name: &'static [u8],
}

const HEAD: usize = size_of::<Listing>().next_multiple_of(align_of::<dirent>());

/// Remembers what the tree adds to a stream.
pub fn attach(stream: *mut DIR, entry: &Entry, configuration: &'static Configuration) {
    if stream.is_null() || !entry.is_zone {
        return;
    }
    entry.populate_from_store(configuration);
    let store = configuration.store.to_bytes();
    let store_directory = paths::parent(store);
    let store_name = match store_directory == entry.canonical() {
        true => store.get(store_directory.len() + 1..).unwrap_or_default(),
        false => b"",
    };
    let Some(listing) = Listing::take(entry.tree_path(), store_name) else { return };
    // SAFETY: `take` has just made it, and nobody else knows it.
    if unsafe { (*listing).is_useless() } || !remember(stream, listing) {
        // SAFETY: as above.
        unsafe { Listing::free(listing) };
    }
}

fn remember(stream: *mut DIR, listing: *mut Listing) -> bool {
    for place in places(stream) {
        let free = ptr::null_mut();
        if place.stream.compare_exchange(free, stream, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            place.listing.store(listing, Ordering::Release);
            ACTIVE.fetch_add(1, Ordering::Relaxed);
            return true;
        }
    }
    false
}

/// All places, the likeliest first.
fn places(stream: *mut DIR) -> impl Iterator<Item = &'static Place> {
    let first = (stream as usize >> 4) % STREAMS;
    PLACES.get(first..).unwrap_or_default().iter().chain(PLACES.get(..first).unwrap_or_default())
}

fn find(stream: *mut DIR) -> Option<&'static Place> {
    if ACTIVE.load(Ordering::Relaxed) == 0 {
        return None;
    }
    places(stream).find(|place| place.stream.load(Ordering::Acquire) == stream)
}

/// What the tree adds to a stream; `None` when it adds nothing.
pub fn of<'a>(stream: *mut DIR) -> Option<&'a mut Listing> {
    let listing = find(stream)?.listing.load(Ordering::Acquire);
    // SAFETY: it was made by `take`, is freed only when its stream is closed, and a program must not use a stream from
    // two threads at once.
    unsafe { listing.as_mut() }
}

/// Forgets a stream, which is about to be closed or read anew.
pub fn detach(stream: *mut DIR) {
    let Some(place) = find(stream) else { return };
    let listing = place.listing.swap(ptr::null_mut(), Ordering::AcqRel);
    place.stream.store(ptr::null_mut(), Ordering::Release);
    ACTIVE.fetch_sub(1, Ordering::Relaxed);
    if !listing.is_null() {
        // SAFETY: the swap made this call its only owner.
        unsafe { Listing::free(listing) };
    }
}

/// Whether a directory of the tree holds no name at all.
pub fn is_empty(directory: &CStr) -> bool {
    match Listing::take(directory, b"") {
        None => true,
        Some(listing) => {
            // SAFETY: `take` has just made it, and nobody else knows it.
            unsafe {
                let is_empty = (*listing).is_useless() && system::lstat(directory).is_ok_and(|stat| stat.st_nlink <= 2);
                Listing::free(listing);
                is_empty
            }
        }
    }
}

fn hash(name: &[u8]) -> usize {
    name.iter().fold(0xcbf2_9ce4_8422_2325usize, |hash, byte| (hash ^ *byte as usize).wrapping_mul(0x0100_0000_01b3))
}

impl Listing {
    /// A snapshot of a mirror; one without names when there is no mirror.
    fn take(directory: &CStr, store_name: &'static [u8]) -> Option<*mut Listing> {
        let listing: *mut Listing = system::map(FIRST_BYTES).ok()?.cast();
        let head = Listing { length: FIRST_BYTES, end: HEAD, slots: 0, position: HEAD, is_staged: false, store_name };
        // SAFETY: a new mapping, large enough and aligned to a page.
        unsafe { listing.write(head) };
        let Ok(mirror) = system::open_own(directory, libc::O_RDONLY | libc::O_DIRECTORY, 0) else {
            return Some(listing);
        };
        // SAFETY: the mapping is ours alone until it is returned.
        let complete = unsafe { Listing::read(listing, mirror.number()) };
        // SAFETY: as above; `read` has left a valid mapping behind.
        match unsafe { Listing::index(complete) } {
            Some(listing) => Some(listing),
            None => {
                // SAFETY: as above.
                unsafe { Listing::free(complete) };
                None
            }
        }
    }

    unsafe fn free(listing: *mut Listing) {
        // SAFETY: the caller owns the mapping; the head is read before it goes.
        unsafe { system::unmap(listing.cast(), (*listing).length) };
    }

    /// Makes room for `bytes` behind the names; the snapshot may move.
    unsafe fn reserve(listing: *mut Listing, bytes: usize) -> Option<*mut Listing> {
        // SAFETY: the caller owns the mapping, and has no reference into it.
        unsafe {
            let (length, wanted) = ((*listing).length, (*listing).end + bytes);
            if wanted <= length {
                return Some(listing);
            }
            let new_length = wanted.max(length * 2);
            let moved: *mut Listing = system::remap(listing.cast(), length, new_length).ok()?.cast();
            (*moved).length = new_length;
            Some(moved)
        }
    }

    /// Reads all names but those of directories, which are real and listed as such.
    unsafe fn read(mut listing: *mut Listing, mirror: i32) -> *mut Listing {
        // SAFETY: the caller owns the mapping; the kernel writes into the room that `reserve` has made.
        unsafe {
            loop {
                let Some(roomy) = Listing::reserve(listing, PORTION_BYTES) else { return listing };
                listing = roomy;
                let end = (*listing).end;
                let room = listing.cast::<u8>().add(end);
                match system::getdents(mirror, room, PORTION_BYTES) {
                    Ok(length) if length > 0 => (*listing).keep_names(end, end + length, mirror),
                    _ => return listing,
                }
            }
        }
    }

    /// Closes up the names in a portion that was just read, leaving out what is not to be shown.
    unsafe fn keep_names(&mut self, start: usize, end: usize, mirror: i32) {
        let base: *mut u8 = ptr::from_mut(self).cast();
        let mut from = start;
        while from < end {
            // SAFETY: the kernel has put whole, aligned records between start and end; they only move downwards.
            unsafe {
                let record: *mut dirent = base.add(from).cast();
                let length = usize::from((*record).d_reclen);
                if is_shown(record, mirror) {
                    ptr::copy(base.add(from), base.add(self.end), length);
                    let kept: *mut dirent = base.add(self.end).cast();
                    self.end += length;
                    (*kept).d_off = (POSITION_MARK | self.end as u64) as i64;
                }
                from += length;
            }
        }
    }

    /// Puts an index behind the names, so that real names can be compared with them quickly.
    unsafe fn index(listing: *mut Listing) -> Option<*mut Listing> {
        // SAFETY: the caller owns the mapping.
        unsafe {
            let mut count = 0usize;
            (*listing).each(|_| count += 1);
            if count == 0 {
                return Some(listing);
            }
            let slots = (2 * count).next_power_of_two();
            let listing = Listing::reserve(listing, slots * size_of::<u32>())?;
            (*listing).slots = slots;
            let table: *mut u32 = listing.cast::<u8>().add((*listing).end).cast();
            // What is behind the names may hold remains of records that were left out.
            ptr::write_bytes(table, 0, slots);
            let listing_end = (*listing).end;
            (*listing).each(|offset| {
                let name = name_of(listing.cast::<u8>().add(offset).cast());
                let mut slot = hash(name) & (slots - 1);
                while *table.add(slot) != 0 {
                    slot = (slot + 1) & (slots - 1);
                }
                // Offsets are never 0, and a snapshot of more than 4 GiB would have been refused by `try_from`.
                *table.add(slot) = u32::try_from(offset).unwrap_or_default();
            });
            (listing_end <= u32::MAX as usize).then_some(listing)
        }
    }

    /// Calls `visit` with the offset of every name.
    unsafe fn each(&self, mut visit: impl FnMut(usize)) {
        let base: *const u8 = ptr::from_ref(self).cast();
        let mut offset = HEAD;
        while offset < self.end {
            visit(offset);
            // SAFETY: `keep_names` has left whole records up to the end.
            offset += usize::from(unsafe { (*base.add(offset).cast::<dirent>()).d_reclen });
        }
    }

    fn is_useless(&self) -> bool {
        self.slots == 0 && self.store_name.is_empty()
    }

    /// Whether a real name is not to be shown: it is the store's, or the tree has its own.
    pub fn hides(&self, name: &[u8]) -> bool {
        if !self.store_name.is_empty() && name == self.store_name {
            return true;
        }
        if self.slots == 0 {
            return false;
        }
        let base: *const u8 = ptr::from_ref(self).cast();
        let mut slot = hash(name) & (self.slots - 1);
        loop {
            // SAFETY: `index` has made this many slots behind the names, at least one of them 0; the others are offsets
            // of records.
            unsafe {
                let offset = *base.add(self.end).cast::<u32>().add(slot);
                if offset == 0 {
                    return false;
                }
                if name_of(base.add(offset as usize).cast()) == name {
                    return true;
                }
            }
            slot = (slot + 1) & (self.slots - 1);
        }
    }

    /// The next name of the tree; null at the end.
    pub fn next(&mut self) -> *mut dirent {
        if self.position >= self.end {
            return ptr::null_mut();
        }
        let base: *mut u8 = ptr::from_mut(self).cast();
        // SAFETY: positions are those of whole records.
        unsafe {
            let record: *mut dirent = base.add(self.position).cast();
            self.position += usize::from((*record).d_reclen);
            record
        }
    }

    /// Where the stream stands, if the real names have all been shown.
    pub fn tell(&self) -> Option<c_long> {
        self.is_staged.then_some((POSITION_MARK | self.position as u64) as c_long)
    }

    /// Goes to a position; false when it is one of the real stream.
    pub fn seek(&mut self, position: c_long) -> bool {
        let position = position as u64;
        self.is_staged = position & 0xffff_ffff_0000_0000 == POSITION_MARK;
        self.position = HEAD;
        if self.is_staged {
            // Only positions that were handed out are whole records; others end the listing.
            let wanted = (position & 0xffff_ffff) as usize;
            let mut found = self.end;
            // SAFETY: the snapshot is complete.
            unsafe { self.each(|offset| found = if offset == wanted { wanted } else { found }) };
            self.position = found;
        }
        self.is_staged
    }
}

/// The name in a record of the kernel.
///
/// # Safety
/// The record must be whole, and live as long as the result is used.
pub unsafe fn name_of<'a>(record: *const dirent) -> &'a [u8] {
    // SAFETY: the kernel ends every name with a NUL.
    unsafe { CStr::from_ptr((&raw const (*record).d_name).cast()) }.to_bytes()
}

/// Whether a record of a mirror is shown: files and links are.
unsafe fn is_shown(record: *const dirent, mirror: i32) -> bool {
    // SAFETY: the caller passes a whole record.
    let (kind, name) = unsafe { ((*record).d_type, CStr::from_ptr((&raw const (*record).d_name).cast())) };
    match kind {
        libc::DT_DIR => false,
        libc::DT_UNKNOWN => {
            system::statat(mirror, name, libc::AT_SYMLINK_NOFOLLOW).is_ok_and(|stat| !paths::is_directory(&stat))
        }
        _ => true,
    }
}
