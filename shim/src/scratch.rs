//! Path buffers, because paths are too long for small stacks and there is no heap.
//!
//! A slot is claimed with one atomic exchange and given back at the end of its scope. A slot whose owner vanished (a
//! cancelled thread, other threads at a fork) is lost for good; when none is left, memory is mapped instead. Nothing
//! here may block or fail otherwise than by saying that there is no memory.

use core::cell::UnsafeCell;
use core::ffi::CStr;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::configuration;
use crate::system::{self, Errno, Stat};

/// Room for a path of PATH_MAX behind the tree's own path.
const CAPACITY: usize = 4096 + 512;
/// More than the deepest nesting of calls in as many threads as usually open files at once.
const SLOTS: usize = 48;

/// A NUL-terminated text in a fixed buffer. It never holds a NUL before its end.
pub struct Text {
    length: usize,
    bytes: [u8; CAPACITY],
}

/// A text did not fit.
#[derive(Clone, Copy, Debug)]
pub struct TooLong;

impl Text {
    const EMPTY: Text = Text { length: 0, bytes: [0; CAPACITY] };

    /// The text without its NUL.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// The text from `start` on, as a C string.
    pub fn c_str_from(&self, start: usize) -> &CStr {
        let bytes = self.bytes.get(start..self.length + 1).unwrap_or(b"\0");
        CStr::from_bytes_until_nul(bytes).unwrap_or_default()
    }

    /// The text as a C string.
    pub fn c_str(&self) -> &CStr {
        self.c_str_from(0)
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Makes it shorter.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
        self.terminate();
    }

    /// Replaces the text.
    pub fn set(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        self.length = 0;
        self.push(bytes)
    }

    /// Appends to the text.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        let end = self.length + bytes.len();
        if end >= CAPACITY {
            self.terminate();
            return Err(TooLong);
        }
        if let Some(place) = self.bytes.get_mut(self.length..end) {
            place.copy_from_slice(bytes);
        }
        self.length = end;
        self.terminate();
        Ok(())
    }

    /// Lets `fill` write the text (never a NUL in it) into all the room that there is; `fill` yields the length.
    pub fn fill<E>(&mut self, fill: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<(), E> {
        self.length = 0;
        let room = self.bytes.get_mut(..CAPACITY - 1).unwrap_or_default();
        let outcome = fill(room);
        if let Ok(length) = outcome {
            self.length = length.min(CAPACITY - 1);
        }
        self.terminate();
        outcome.map(drop)
    }

    /// Everything that there is room for, as plain memory; the text is lost.
    pub fn as_memory(&mut self) -> &mut [u8] {
        self.length = 0;
        &mut self.bytes
    }

    fn terminate(&mut self) {
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = 0;
        }
    }
}

/// Makes something by `make` under a name that starts with what is in `name`, and has not been used: `make` fails with
/// EEXIST where something is, for processes that died, and those of other containers, have the same numbers.
pub fn make_unique<T>(name: &mut Text, mut make: impl FnMut(&CStr) -> system::Result<T>) -> system::Result<T> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let start = name.len();
    loop {
        let numbers =
            [system::process_id() as u32, system::thread_id() as u32, COUNTER.fetch_add(1, Ordering::Relaxed)];
        name.truncate(start);
        for (separator, number) in [&b""[..], b"-", b"-"].into_iter().zip(numbers) {
            let pushed = name.push(separator).and_then(|()| name.push(configuration::decimal(number, &mut [0; 10])));
            pushed.map_err(|_| Errno(libc::ENAMETOOLONG))?;
        }
        match make(name.c_str()) {
            Err(Errno(libc::EEXIST)) => {}
            outcome => return outcome,
        }
    }
}

/// What is known of a file, once somebody has looked.
pub struct Known {
    is_known: bool,
    stat: Stat,
}

impl Known {
    // SAFETY: a struct stat is made of integers, for which zero is a value.
    const NOTHING: Known = Known { is_known: false, stat: unsafe { core::mem::zeroed() } };

    /// What is known, if anything.
    pub fn get(&self) -> Option<&Stat> {
        self.is_known.then_some(&self.stat)
    }

    /// Notes what a look has shown: nothing, if there was nothing.
    pub fn set(&mut self, seen: Option<Stat>) {
        self.is_known = seen.is_some();
        if let Some(stat) = seen {
            self.stat = stat;
        }
    }
}

/// What one resolution of a path needs.
pub struct Slot {
    /// A path in the tree: the tree's own path, then the canonical path.
    pub tree: Text,
    /// What is still to be walked.
    pub pending: Text,
    /// A symbolic link's target, and other short-lived text.
    pub other: Text,
    /// What is at the name in the tree.
    pub staged: Known,
    /// What is at the real path.
    pub real: Known,
}

impl Slot {
    const EMPTY: Slot = Slot {
        tree: Text::EMPTY,
        pending: Text::EMPTY,
        other: Text::EMPTY,
        staged: Known::NOTHING,
        real: Known::NOTHING,
    };

    fn clear(&mut self) {
        for text in [&mut self.tree, &mut self.pending, &mut self.other] {
            text.truncate(0);
        }
        self.staged.set(None);
        self.real.set(None);
    }
}

struct Cell {
    taken: AtomicBool,
    slot: UnsafeCell<Slot>,
}

// SAFETY: the slot is only touched by whoever changed `taken` from false to true, until they change it back.
unsafe impl Sync for Cell {}

static POOL: [Cell; SLOTS] =
    [const { Cell { taken: AtomicBool::new(false), slot: UnsafeCell::new(Slot::EMPTY) } }; SLOTS];

/// A slot of one's own, given back at the end of the scope.
pub struct Scratch {
    slot: NonNull<Slot>,
    cell: Option<&'static Cell>,
}

impl Scratch {
    /// Claims a slot; `None` when there is no memory.
    pub fn claim() -> Option<Scratch> {
        for cell in &POOL {
            if !cell.taken.load(Ordering::Relaxed) && !cell.taken.swap(true, Ordering::Acquire) {
                let mut scratch = Scratch { slot: NonNull::new(cell.slot.get())?, cell: Some(cell) };
                scratch.clear();
                return Some(scratch);
            }
        }
        let memory = system::map(size_of::<Slot>()).ok()?;
        // Zeroed memory is a valid slot of empty texts and nothing known; the kernel aligns it to a page.
        Some(Scratch { slot: NonNull::new(memory.cast())?, cell: None })
    }
}

impl Deref for Scratch {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        // SAFETY: the slot is initialised, and this value is its only owner.
        unsafe { self.slot.as_ref() }
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut Slot {
        // SAFETY: as in `deref`; the exclusive borrow of the owner makes the reference exclusive.
        unsafe { self.slot.as_mut() }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match self.cell {
            Some(cell) => cell.taken.store(false, Ordering::Release),
            // SAFETY: the mapping was made by `claim` with this length, and its only owner ends here.
            None => unsafe { system::unmap(self.slot.as_ptr().cast(), size_of::<Slot>()) },
        }
    }
}
