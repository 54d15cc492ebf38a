//! Paths that must outlive the call: of a program that is executed, and of a library that the loader takes over.
//!
//! The memory stays, also in the parent of a vforked child; each text is kept once, however often it is asked for.
//! Nothing here may change or free a text that was handed out.

use core::ffi::CStr;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::system;

/// The head of a text's memory; the text follows, with its NUL.
struct Kept {
    next: *const Kept,
    length: usize,
}

/// The text that was kept last; each leads to the one before.
static LAST: AtomicPtr<Kept> = AtomicPtr::new(ptr::null_mut());

impl Kept {
    /// The text.
    ///
    /// # Safety
    /// `self` must be the head of memory that [`keep`] has made.
    unsafe fn text(&self) -> &'static CStr {
        let start = ptr::from_ref(self).cast::<u8>();
        // SAFETY: `keep` has written this many bytes behind the head, the last of them NUL; they are never changed.
        let bytes = unsafe { core::slice::from_raw_parts(start.add(size_of::<Kept>()), self.length) };
        CStr::from_bytes_until_nul(bytes).unwrap_or_default()
    }
}

/// A copy of a text that stays for ever; `None` when there is no memory.
pub fn keep(text: &CStr) -> Option<&'static CStr> {
    let mut entry = LAST.load(Ordering::Acquire).cast_const();
    // SAFETY: null, or made below and never freed.
    while let Some(kept) = unsafe { entry.as_ref() } {
        // SAFETY: as above.
        let known = unsafe { kept.text() };
        if known == text {
            return Some(known);
        }
        entry = kept.next;
    }
    let bytes = text.to_bytes_with_nul();
    let place: *mut Kept = system::map(size_of::<Kept>() + bytes.len()).ok()?.cast();
    // SAFETY: a new mapping with room for the head and the text, aligned to a page, that nobody else knows yet.
    unsafe {
        ptr::copy_nonoverlapping(bytes.as_ptr(), place.cast::<u8>().add(size_of::<Kept>()), bytes.len());
        let mut last = LAST.load(Ordering::Acquire);
        loop {
            place.write(Kept { next: last, length: bytes.len() });
            match LAST.compare_exchange(last, place, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some((*place).text()),
                Err(newer) => last = newer,
            }
        }
    }
}
