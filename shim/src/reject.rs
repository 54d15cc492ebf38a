//! The fast reject: a path that its first bytes tell from every checkpoint path, in few instructions and without a
//! frame.
//!
//! It knows the system directories, into which nobody but the administrator puts links. Nothing here may take a path
//! that could lead to a checkpoint; one that it does not take is looked at as if this were not there.

use core::ffi::c_char;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::paths::is_no_address;

/// The directories. Their fourth bytes, taken modulo [`PLACES`], are all different.
const DIRECTORIES: [&[u8]; 7] = [b"/usr/", b"/lib", b"/etc/", b"/bin/", b"/sbin/", b"/sys/", DEVICES];
const DEVICES: &[u8] = b"/dev/";
/// What is among the devices, and yet may lead anywhere.
const NO_DEVICES: [u64; 3] =
    [u64::from_le_bytes(*b"/dev/shm"), u64::from_le_bytes(*b"/dev/mqu"), u64::from_le_bytes(*b"/dev/fd/")];
/// Places in the table, a power of two.
const PLACES: usize = 32;
/// Bytes that are looked at at once, at the start of a path.
const WIDTH: usize = 16;
const SMALLEST_PAGE: usize = 4096;

/// How a directory starts: these bytes, where the mask has ones.
#[derive(Clone, Copy)]
struct Start {
    bytes: u64,
    mask: u64,
    is_devices: bool,
}

/// The directories that hold no checkpoints, each at its place.
pub struct Table([Start; PLACES]);

/// Bytes that nothing masked by zero can be.
const NOWHERE: Start = Start { bytes: 1, mask: 0, is_devices: false };
static EMPTY: Table = Table([NOWHERE; PLACES]);
static CURRENT: AtomicPtr<Table> = AtomicPtr::new((&raw const EMPTY).cast_mut());

impl Table {
    /// The directories of which `is_free` says that they hold no checkpoints.
    pub fn new(is_free: impl Fn(&[u8]) -> bool) -> Table {
        let mut table = Table([NOWHERE; PLACES]);
        for directory in DIRECTORIES.into_iter().filter(|directory| is_free(directory)) {
            let mut bytes = [[0; size_of::<u64>()]; 2];
            for (index, byte) in directory.iter().enumerate() {
                (bytes[0][index], bytes[1][index]) = (*byte, u8::MAX);
            }
            let [bytes, mask] = bytes.map(u64::from_le_bytes);
            table.0[directory[3] as usize % PLACES] = Start { bytes, mask, is_devices: directory == DEVICES };
        }
        table
    }

    /// Uses this table from now on, if the processor can.
    pub fn use_always(&'static self) {
        if scan::is_possible() {
            CURRENT.store((&raw const *self).cast_mut(), Ordering::Release);
        }
    }
}

/// Whether a path lies in one of the directories, without a component `..` or anything that could be one.
///
/// # Safety
/// `path` must be a C string, or [`is_no_address`].
#[inline(always)]
pub unsafe fn rejects(path: *const c_char) -> bool {
    if is_no_address(path) || path as usize % SMALLEST_PAGE > SMALLEST_PAGE - WIDTH {
        return false;
    }
    // SAFETY: all tables stay. The bytes lie in the page in which the path starts; what is behind its end is masked
    // out.
    unsafe {
        let table = &*CURRENT.load(Ordering::Acquire);
        let word = scan::word(path);
        let start = &table.0[(word >> 24) as usize % PLACES];
        word & start.mask == start.bytes && !(start.is_devices && is_no_device(word)) && !scan::has_two_dots(path)
    }
}

/// Whether what follows the directory of devices is not the name of one for certain.
#[inline(always)]
fn is_no_device(word: u64) -> bool {
    let next = word.to_le_bytes()[DEVICES.len()];
    NO_DEVICES.contains(&word) || next == b'/' || next == b'.'
}

#[cfg(target_arch = "x86_64")]
mod scan {
    use core::arch::asm;
    use core::arch::x86_64::{__cpuid, _mm_cvtsi32_si128};
    use core::ffi::c_char;

    /// The bit of CPUID that stands for SSE 4.2, which every processor since 2011 has.
    const SSE_4_2: u32 = 1 << 20;
    const TWO_DOTS: i32 = 0x2e2e;

    /// Whether the processor has the instructions.
    pub fn is_possible() -> bool {
        // Compilers before 1.94 think it unsafe.
        #[allow(unused_unsafe)]
        // SAFETY: every x86-64 processor has CPUID and this leaf.
        let leaf = unsafe { __cpuid(1) };
        leaf.ecx & SSE_4_2 != 0
    }

    /// The first eight bytes. The machine, not the language, knows those behind the end of the string.
    ///
    /// # Safety
    /// They must lie in one page with the first.
    #[inline(always)]
    pub unsafe fn word(path: *const c_char) -> u64 {
        let word;
        // SAFETY: the caller's contract.
        unsafe {
            asm!("mov {}, [{}]", out(reg) word, in(reg) path, options(pure, readonly, nostack, preserves_flags));
        }
        word
    }

    /// Whether a string has two dots side by side.
    ///
    /// # Safety
    /// `path` must be a C string whose first sixteen bytes lie in one page; the processor must have the instructions.
    #[inline(always)]
    pub unsafe fn has_two_dots(path: *const c_char) -> bool {
        let found: u8;
        // SAFETY: reads the string in blocks of sixteen bytes: the first as the caller allows, the others aligned, so
        // that each lies in a page into which the string reaches.
        unsafe {
            let dots = _mm_cvtsi32_si128(TWO_DOTS);
            asm!(
                "2:",
                // Where one stands in the other: carry if somewhere, zero if the string ends there.
                "pcmpistri {needle}, [{block}], 12",
                "jbe 4f",
                "3:",
                "and {block}, -16",
                "add {block}, 16",
                "jmp 2b",
                "4:",
                "setc {found}",
                "jnc 5f",
                // The last byte may have been the first of them.
                "cmp ecx, 15",
                "jne 5f",
                "cmp byte ptr [{block} + 16], 46",
                "jne 3b",
                "5:",
                needle = in(xmm_reg) dots, block = inout(reg) path => _, found = out(reg_byte) found, out("ecx") _,
                options(pure, readonly, nostack)
            );
        }
        found != 0
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod scan {
    use core::ffi::{CStr, c_char};

    /// Whether the processor has the instructions.
    pub fn is_possible() -> bool {
        true
    }

    /// The first eight bytes, zero behind the end of the string.
    ///
    /// # Safety
    /// `path` must be a C string.
    pub unsafe fn word(path: *const c_char) -> u64 {
        let mut bytes = [0; 8];
        // SAFETY: the caller's contract.
        let text = unsafe { CStr::from_ptr(path) }.to_bytes();
        bytes.iter_mut().zip(text).for_each(|(place, byte)| *place = *byte);
        u64::from_le_bytes(bytes)
    }

    /// Whether a string has two dots side by side.
    ///
    /// # Safety
    /// `path` must be a C string.
    pub unsafe fn has_two_dots(path: *const c_char) -> bool {
        // SAFETY: the caller's contract.
        unsafe { CStr::from_ptr(path) }.to_bytes().windows(2).any(|bytes| bytes == b"..")
    }
}
