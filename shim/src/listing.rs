//! What the tree adds to a directory's listing: a snapshot of the mirror, kept beside the program's directory stream.
//!
//! Streams are found by their address in tables, so nothing is allocated and nothing blocks. A snapshot belongs to one
//! stream and changes only under the program's own calls on it, which it must not make at the same time. A listing is
//! whole or fails: nothing here may leave names out because a descriptor or memory was missing.

use core::ffi::{CStr, c_long};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use libc::{DIR, dirent};

use crate::configuration::Configuration;
use crate::paths::{self, Entry, Kind};
use crate::system::{self, Errno, Result};

/// Streams in one table.
const STREAMS: usize = 256;
/// First size of a snapshot.
const FIRST_BYTES: usize = 64 * 1024;
/// Room that one more portion of names takes.
const PORTION_BYTES: usize = 32 * 1024;
/// How mirrors are opened.
const MIRROR_FLAGS: i32 = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
/// High half of the positions that are handed out in snapshots. No real file system uses it.
const POSITION_MARK: u64 = 0x7ea5_5eaf_0000_0000;

struct Place {
    /// Null when the place is free, [`reserved`] before the stream is known.
    stream: AtomicPtr<DIR>,
    listing: AtomicPtr<Listing>,
}

/// Zeroed memory is an empty table.
struct Table {
    places: [Place; STREAMS],
    next: AtomicPtr<Table>,
}

static FIRST_TABLE: Table = Table {
    places: [const { Place { stream: AtomicPtr::new(ptr::null_mut()), listing: AtomicPtr::new(ptr::null_mut()) } };
        STREAMS],
    next: AtomicPtr::new(ptr::null_mut()),
};
static ACTIVE: AtomicUsize = AtomicUsize::new(0);

/// No stream lies here.
fn reserved() -> *mut DIR {
    (&raw const FIRST_TABLE).cast_mut().cast()
}

impl Table {
    /// The next table, which is made if need be.
    fn next_or_new(&self) -> Result<&'static Table> {
        if let Some(next) = self.next() {
            return Ok(next);
        }
        let made: *mut Table = system::map(size_of::<Table>())?.cast();
        let outcome = self.next.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire);
        if outcome.is_err() {
            // SAFETY: another thread was faster, and nobody else knows this mapping.
            unsafe { system::unmap(made.cast(), size_of::<Table>()) };
        }
        self.next().ok_or(Errno(libc::ENOMEM))
    }

    fn next(&self) -> Option<&'static Table> {
        // SAFETY: null, or a mapping of this size that is never unmapped, in which zeros are a table.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }
}

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

/// What the tree adds to a directory, with a place for the stream that it will belong to.
pub struct Snapshot {
    listing: *mut Listing,
    place: &'static Place,
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.place.stream.store(ptr::null_mut(), Ordering::Release);
        // SAFETY: as long as this value lives, nobody else knows the listing.
        unsafe { Listing::free(self.listing) };
    }
}

/// What the tree adds to a directory; `None` when it adds nothing.
pub fn of_directory(entry: &Entry, configuration: &'static Configuration) -> Result<Option<Snapshot>> {
    // What is missing must not be made by asking for its names.
    if !entry.is_zone || entry.kind != Kind::Directory {
        return Ok(None);
    }
    let listing = taken(entry, configuration)?;
    // SAFETY: `take` has just made it, and nobody else knows it.
    let place = unsafe { if (*listing).is_useless() { Ok(None) } else { reserve().map(Some) } };
    match place {
        Ok(Some(place)) => Ok(Some(Snapshot { listing, place })),
        outcome => {
            // SAFETY: as above.
            unsafe { Listing::free(listing) };
            outcome.map(|_| None)
        }
    }
}

/// What the tree adds to a directory of a zone, and hides in it.
fn taken(entry: &Entry, configuration: &'static Configuration) -> Result<*mut Listing> {
    entry.populate_from_store(configuration)?;
    let store = configuration.store.to_bytes();
    let store_directory = paths::parent(store);
    let store_name = match store_directory == entry.canonical() {
        true => store.get(store_directory.len() + 1..).unwrap_or_default(),
        false => b"",
    };
    let mirror = configuration.has_stage().then(|| entry.tree_path());
    Listing::take(mirror, store_name)
}

/// All names that a directory of a zone shows, real ones and those of the tree.
pub struct Names(*mut Listing);

impl Drop for Names {
    fn drop(&mut self) {
        // SAFETY: this value is the listing's only owner.
        unsafe { Listing::free(self.0) };
    }
}

impl Names {
    /// Reads the real directory from the descriptor `real`, and its mirror.
    pub fn of_directory(entry: &Entry, configuration: &'static Configuration, real: i32) -> Result<Names> {
        let staged = Names(taken(entry, configuration)?);
        let mut all = Names(Listing::take(None, b"")?);
        // SAFETY: both listings are ours alone; records are read while their listing lives.
        unsafe {
            Listing::read(&mut all.0, real, |record| !(*staged.0).hides(name_of(record)))?;
            Listing::reserve(&mut all.0, (*staged.0).end - HEAD)?;
            let length = (*staged.0).end - HEAD;
            ptr::copy_nonoverlapping(staged.0.cast::<u8>().add(HEAD), all.0.cast::<u8>().add((*all.0).end), length);
            (*all.0).end += length;
        }
        Ok(all)
    }

    /// The records, each behind the number that `number` makes from its name: all that get one, in no order.
    pub fn numbered(&mut self, number: impl Fn(&[u8]) -> Option<u32>) -> Result<Numbered<'_>> {
        // SAFETY: the listing is ours alone; the numbers lie behind the records, aligned as these are, in the room that
        // `reserve` has made, and nothing else is put there.
        unsafe {
            u32::try_from((*self.0).end).map_err(|_| Errno(libc::ENOMEM))?;
            let mut count = 0;
            (*self.0).each(|_| count += 1);
            Listing::reserve(&mut self.0, count * size_of::<u64>())?;
            let base = self.0.cast::<u8>();
            let numbers: *mut u64 = base.add((*self.0).end).cast();
            count = 0;
            (*self.0).each(|offset| {
                if let Some(number) = number(name_of(base.add(offset).cast())) {
                    numbers.add(count).write(u64::from(number) << 32 | offset as u64);
                    count += 1;
                }
            });
            Ok(Numbered { base, numbers: core::slice::from_raw_parts_mut(numbers, count) })
        }
    }
}

/// Records with numbers.
pub struct Numbered<'a> {
    /// Where their offsets count from.
    pub base: *const u8,
    /// Each a number in the high half, and an offset in the low one.
    pub numbers: &'a mut [u64],
}

fn reserve() -> Result<&'static Place> {
    let mut table = &FIRST_TABLE;
    loop {
        for place in &table.places {
            let free = ptr::null_mut();
            if place.stream.compare_exchange(free, reserved(), Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Ok(place);
            }
        }
        table = table.next_or_new()?;
    }
}

/// Remembers what the tree adds to a new stream, or to one that is read anew. What an older stream at this address had
/// is forgotten: it may have been closed where nobody saw it.
pub fn attach(stream: *mut DIR, snapshot: Option<Snapshot>) {
    detach(stream);
    if let Some(snapshot) = snapshot {
        snapshot.place.listing.store(snapshot.listing, Ordering::Release);
        snapshot.place.stream.store(stream, Ordering::Release);
        ACTIVE.fetch_add(1, Ordering::Relaxed);
        // From here on it belongs to the stream.
        core::mem::forget(snapshot);
    }
}

fn find(stream: *mut DIR) -> Option<&'static Place> {
    if ACTIVE.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let tables = core::iter::successors(Some(&FIRST_TABLE), |table| table.next());
    tables.flat_map(|table| &table.places).find(|place| place.stream.load(Ordering::Acquire) == stream)
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
pub fn is_empty(directory: &CStr) -> Result<bool> {
    let listing = Listing::take(Some(directory), b"")?;
    // SAFETY: `take` has just made it, and nobody else knows it.
    let is_useless = unsafe {
        let is_useless = (*listing).is_useless();
        Listing::free(listing);
        is_useless
    };
    match system::lstat(directory) {
        Err(Errno(libc::ENOENT)) => Ok(true),
        seen => Ok(is_useless && seen?.st_nlink <= 2),
    }
}

/// Calls `visit` with every name that a directory of the stage has now.
pub fn each_name(directory: &CStr, mut visit: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let listing = Listing::take(Some(directory), b"")?;
    let mut outcome = Ok(());
    // SAFETY: `take` has just made it, and nobody else knows it; records live as long as the listing.
    unsafe {
        loop {
            let record = (*listing).next();
            if record.is_null() || outcome.is_err() {
                break;
            }
            outcome = visit(name_of(record));
        }
        Listing::free(listing);
    }
    outcome
}

/// A number made from a name.
pub fn hash(name: &[u8]) -> usize {
    name.iter().fold(0xcbf2_9ce4_8422_2325usize, |hash, byte| (hash ^ *byte as usize).wrapping_mul(0x0100_0000_01b3))
}

impl Listing {
    /// A snapshot of a mirror; one without names when there is no mirror.
    fn take(directory: Option<&CStr>, store_name: &'static [u8]) -> Result<*mut Listing> {
        let mirror = match directory.map(|path| system::open_own(path, MIRROR_FLAGS, 0)) {
            None | Some(Err(Errno(libc::ENOENT | libc::ENOTDIR))) => None,
            Some(opened) => Some(opened?),
        };
        let listing: *mut Listing = system::map(FIRST_BYTES)?.cast();
        let head = Listing { length: FIRST_BYTES, end: HEAD, slots: 0, position: HEAD, is_staged: false, store_name };
        // SAFETY: a new mapping, large enough and aligned to a page; ours alone until it is returned.
        unsafe {
            listing.write(head);
            match mirror {
                None => Ok(listing),
                Some(mirror) => Listing::fill(listing, mirror.number()),
            }
        }
    }

    /// Reads a mirror; the snapshot moves, or goes when that fails.
    unsafe fn fill(mut listing: *mut Listing, mirror: i32) -> Result<*mut Listing> {
        // SAFETY: the caller owns the mapping; `read` and `index` leave a valid one behind, where they say.
        unsafe {
            let outcome = Listing::read(&mut listing, mirror, |record| is_shown(record, mirror))
                .and_then(|()| Listing::index(&mut listing));
            if outcome.is_err() {
                Listing::free(listing);
            }
            outcome.map(|()| listing)
        }
    }

    unsafe fn free(listing: *mut Listing) {
        // SAFETY: the caller owns the mapping; the head is read before it goes.
        unsafe { system::unmap(listing.cast(), (*listing).length) };
    }

    /// Makes room for `bytes` behind the names; the snapshot may move.
    unsafe fn reserve(listing: &mut *mut Listing, bytes: usize) -> Result<()> {
        // SAFETY: the caller owns the mapping, and has no reference into it.
        unsafe {
            let (length, wanted) = ((**listing).length, (**listing).end + bytes);
            if wanted > length {
                let new_length = wanted.max(length * 2);
                *listing = system::remap(listing.cast(), length, new_length)?.cast();
                (**listing).length = new_length;
            }
        }
        Ok(())
    }

    /// Reads all names of a directory that are to be kept.
    unsafe fn read(listing: &mut *mut Listing, directory: i32, is_kept: impl Fn(*const dirent) -> bool) -> Result<()> {
        // SAFETY: the caller owns the mapping; the kernel writes into the room that `reserve` has made.
        unsafe {
            loop {
                Listing::reserve(listing, PORTION_BYTES)?;
                let end = (**listing).end;
                let length = system::getdents(directory, listing.cast::<u8>().add(end), PORTION_BYTES)?;
                if length == 0 {
                    return Ok(());
                }
                (**listing).keep_names(end, end + length, &is_kept);
            }
        }
    }

    /// Closes up the names in a portion that was just read, leaving out what is not to be kept.
    unsafe fn keep_names(&mut self, start: usize, end: usize, is_kept: &impl Fn(*const dirent) -> bool) {
        let base: *mut u8 = ptr::from_mut(self).cast();
        let mut from = start;
        while from < end {
            // SAFETY: the kernel has put whole, aligned records between start and end; they only move downwards.
            unsafe {
                let record: *mut dirent = base.add(from).cast();
                let length = usize::from((*record).d_reclen);
                if is_kept(record) {
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
    unsafe fn index(listing: &mut *mut Listing) -> Result<()> {
        // SAFETY: the caller owns the mapping; the index lies in the room that `reserve` has made.
        unsafe {
            let mut count = 0usize;
            (**listing).each(|_| count += 1);
            if count == 0 {
                return Ok(());
            }
            // Offsets are kept in four bytes.
            u32::try_from((**listing).end).map_err(|_| Errno(libc::ENOMEM))?;
            let slots = (2 * count).next_power_of_two();
            Listing::reserve(listing, slots * size_of::<u32>())?;
            let listing = *listing;
            (*listing).slots = slots;
            let table: *mut u32 = listing.cast::<u8>().add((*listing).end).cast();
            // What is behind the names may hold remains of records that were left out.
            ptr::write_bytes(table, 0, slots);
            (*listing).each(|offset| {
                let name = name_of(listing.cast::<u8>().add(offset).cast());
                let mut slot = hash(name) & (slots - 1);
                while *table.add(slot) != 0 {
                    slot = (slot + 1) & (slots - 1);
                }
                *table.add(slot) = offset as u32;
            });
        }
        Ok(())
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

    /// Starts again, with the real names first.
    pub fn rewind(&mut self) {
        self.is_staged = false;
        self.position = HEAD;
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

/// Whether a record of a mirror is shown: files and links are. Directories are real, and listed as such.
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
