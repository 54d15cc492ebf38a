//! Where the real functions are: in the libraries that the loader has put behind this one.
//!
//! dlsym(3) finds the same, for a thousand instructions a name; it takes the loader's lock, and memory when it finds
//! nothing. This reads the loader's list of libraries and their hash tables instead, and only ever takes the default
//! version of a symbol, where dlsym before glibc 2.36 took the oldest. Nothing here may write, wait or guess: what it
//! does not understand it says, and that is left to dlsym.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;

// Of an entry of a dynamic section.
const DT_SYMBOLS: usize = 6;
const DT_STRINGS: usize = 5;
const DT_DEBUG: usize = 21;
const DT_GNU_HASH: usize = 0x6fff_fef5;
const DT_VERSIONS: usize = 0x6fff_fff0;

// Of a symbol.
const KIND_MASK: u8 = 0xf;
const KINDS_OF_ADDRESSES: core::ops::RangeInclusive<u8> = 0..=2;
const KIND_CHOSEN_BY_CODE: u8 = 10;
/// Set for every version but the default one.
const VERSION_IS_HIDDEN: u16 = 1 << 15;

/// `Elf64_Dyn`.
#[repr(C)]
struct Dynamic {
    tag: usize,
    value: usize,
}

/// The start of `struct link_map`, which is the same in every C library.
#[repr(C)]
struct Map {
    base: usize,
    name: *const c_char,
    dynamic: *const Dynamic,
    next: *const Map,
}

/// The start of `struct r_debug`.
#[repr(C)]
struct Debug {
    version: c_int,
    first: *const Map,
}

unsafe extern "C" {
    /// This library's own dynamic section; the linker makes the name.
    #[link_name = "_DYNAMIC"]
    static OWN_DYNAMIC: Dynamic;
}

/// What a library has under a name.
pub enum Found {
    /// Nothing.
    Nothing,
    /// This.
    Address(*mut c_void),
    /// Something that only the loader can find the address of.
    Unclear,
}

/// The hash under which a name stands in a library.
pub const fn hash(name: &CStr) -> u32 {
    let bytes = name.to_bytes();
    let (mut hash, mut index) = (5381u32, 0);
    while index < bytes.len() {
        hash = hash.wrapping_mul(33).wrapping_add(bytes[index] as u32);
        index += 1;
    }
    hash
}

/// The libraries behind this one, in the loader's order; `None` for one whose tables are of another kind. Nothing when
/// this library is not among those that were loaded with the program.
pub fn libraries_behind() -> Option<impl Iterator<Item = Option<Library>>> {
    // SAFETY: the loader's list, whose entries stay: it only grows while the program's own libraries are looked
    // through.
    let next = |map: &*const Map| unsafe { Some((**map).next).filter(|next| !next.is_null()) };
    let mut maps = core::iter::successors(first_map(), next);
    // SAFETY: as above.
    maps.find(|map| unsafe { ptr::eq((**map).dynamic, &raw const OWN_DYNAMIC) })?;
    // SAFETY: as above.
    Some(maps.map(|map| unsafe { Library::new(&*map) }))
}

/// The address of a function in a library behind this one, also in one that was loaded later, or for another library
/// alone. It may wait for the loader's lock.
pub fn find_loaded(name: &CStr) -> Option<*mut c_void> {
    // Not bound when this library is loaded: that would cost every program's start. The C library was loaded with the
    // program, so its entry in the list stays.
    const ITERATE: &CStr = c"dl_iterate_phdr";
    let iterate =
        libraries_behind()?.flatten().find_map(|library| match library.find(ITERATE, const { hash(ITERATE) }) {
            Found::Address(address) => Some(address),
            _ => None,
        })?;
    // SAFETY: the function of this name, whose C declaration the type repeats.
    let iterate = unsafe { core::mem::transmute::<*mut c_void, Iterate>(iterate) };
    let mut search = Search { name, hash: hash(name), is_behind: false, found: None };
    // SAFETY: `look` takes what it is given here, and the search outlives the call.
    unsafe { iterate(look, (&raw mut search).cast()) };
    search.found
}

/// Looks into one library, and ends the search if that yields anything but zero.
type Look = unsafe extern "C" fn(*mut libc::dl_phdr_info, usize, *mut c_void) -> c_int;
/// dl_iterate_phdr(3).
type Iterate = unsafe extern "C" fn(Look, *mut c_void) -> c_int;

struct Search<'a> {
    name: &'a CStr,
    hash: u32,
    /// Whether this library has been passed.
    is_behind: bool,
    found: Option<*mut c_void>,
}

/// See [`Look`].
unsafe extern "C" fn look(info: *mut libc::dl_phdr_info, _size: usize, search: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr passes a library's headers, which stay mapped while it runs, and what `find_loaded` gave
    // it.
    let (info, search) = unsafe { (&*info, &mut *search.cast::<Search<'_>>()) };
    // SAFETY: as above.
    let headers = unsafe { core::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let Some(header) = headers.iter().find(|header| header.p_type == libc::PT_DYNAMIC) else { return 0 };
    let base = info.dlpi_addr as usize;
    let dynamic = base.wrapping_add(header.p_vaddr as usize) as *const Dynamic;
    if ptr::eq(dynamic, &raw const OWN_DYNAMIC) {
        search.is_behind = true;
    } else if search.is_behind {
        // SAFETY: the loader's own values, from which the map is made as the loader makes it.
        let library = unsafe { Library::new(&Map { base, name: ptr::null(), dynamic, next: ptr::null() }) };
        if let Some(Found::Address(address)) = library.map(|library| library.find(search.name, search.hash)) {
            search.found = Some(address);
        }
    }
    search.found.is_some().into()
}

/// The loader leaves word in the program's own dynamic section, for debuggers.
fn first_map() -> Option<*const Map> {
    // SAFETY: getauxval reads the process's own auxiliary vector.
    let [headers, count] = [libc::AT_PHDR, libc::AT_PHNUM].map(|kind| unsafe { libc::getauxval(kind) } as usize);
    if headers == 0 {
        return None;
    }
    // SAFETY: the program's headers, which the kernel has mapped.
    let headers = unsafe { core::slice::from_raw_parts(headers as *const libc::Elf64_Phdr, count) };
    let find = |kind| headers.iter().find(|header| header.p_type == kind);
    let base = (headers.as_ptr() as usize).wrapping_sub(find(libc::PT_PHDR)?.p_vaddr as usize);
    let dynamic = base.wrapping_add(find(libc::PT_DYNAMIC)?.p_vaddr as usize) as *const Dynamic;
    // SAFETY: the program's dynamic section.
    let debug: *const Debug = unsafe { value(dynamic, DT_DEBUG) }? as *const Debug;
    // SAFETY: the loader's structure, if it has left any.
    unsafe { debug.as_ref() }.map(|debug| debug.first).filter(|first| !first.is_null())
}

/// The value of a tag.
///
/// # Safety
/// `entry` must be a dynamic section, which ends with an entry of zero.
unsafe fn value(mut entry: *const Dynamic, tag: usize) -> Option<usize> {
    // SAFETY: the caller's contract.
    unsafe {
        while (*entry).tag != 0 {
            if (*entry).tag == tag {
                return Some((*entry).value);
            }
            entry = entry.add(1);
        }
    }
    None
}

/// The tables of one library.
pub struct Library {
    base: usize,
    symbols: *const libc::Elf64_Sym,
    strings: *const c_char,
    versions: *const u16,
    /// Number of buckets, first symbol, number of words of the filter, its shift; then the filter, buckets and chains.
    table: *const u32,
}

impl Library {
    /// # Safety
    /// The map must be one of the loader's.
    unsafe fn new(map: &Map) -> Option<Library> {
        // Some loaders leave the addresses as they are in the file.
        let at = |value: usize| if value < map.base { value + map.base } else { value };
        // SAFETY: the library's dynamic section.
        let find = |tag| unsafe { value(map.dynamic, tag) }.map(at);
        let table = find(DT_GNU_HASH)? as *const u32;
        // SAFETY: every such table starts with these four numbers.
        let is_usable = unsafe { table.read() != 0 && table.add(2).read() != 0 };
        is_usable.then_some(Library {
            base: map.base,
            symbols: find(DT_SYMBOLS)? as *const libc::Elf64_Sym,
            strings: find(DT_STRINGS)? as *const c_char,
            versions: find(DT_VERSIONS).unwrap_or(0) as *const u16,
            table,
        })
    }

    /// What is exported under a name in its default version.
    pub fn find(&self, name: &CStr, hash: u32) -> Found {
        // SAFETY: the table is one of the loader's, which trusts it as this does: bucket and filter word are taken
        // modulo their numbers, chains end with an odd hash, and every chain has its symbol.
        unsafe {
            let (buckets, start) = (self.table.read(), self.table.add(1).read());
            let (words, shift) = (self.table.add(2).read(), self.table.add(3).read());
            let filter = self.table.add(4).cast::<u64>();
            let mask = 1 << (hash % 64) | 1 << ((hash >> (shift % 32)) % 64);
            if filter.add((hash / 64 % words) as usize).read() & mask != mask {
                return Found::Nothing;
            }
            let bucket = filter.add(words as usize).cast::<u32>();
            let chain = bucket.add(buckets as usize);
            let mut index = bucket.add((hash % buckets) as usize).read();
            while index >= start {
                let entry = chain.add((index - start) as usize).read();
                if (entry ^ hash) >> 1 == 0 && self.is_default(index, name) {
                    return self.address(index);
                }
                if entry & 1 == 1 {
                    break;
                }
                index += 1;
            }
        }
        Found::Nothing
    }

    /// Whether a symbol has this name, is defined here, and is what a program without versions gets.
    unsafe fn is_default(&self, index: u32, name: &CStr) -> bool {
        // SAFETY: the caller has the index from the library's own table.
        unsafe {
            let symbol = &*self.symbols.add(index as usize);
            let is_hidden =
                !self.versions.is_null() && self.versions.add(index as usize).read() & VERSION_IS_HIDDEN != 0;
            let is_defined = symbol.st_shndx != 0 && symbol.st_value != 0;
            is_defined && !is_hidden && CStr::from_ptr(self.strings.add(symbol.st_name as usize)) == name
        }
    }

    unsafe fn address(&self, index: u32) -> Found {
        // SAFETY: the caller has the index from the library's own table.
        let symbol = unsafe { &*self.symbols.add(index as usize) };
        match symbol.st_info & KIND_MASK {
            kind if KINDS_OF_ADDRESSES.contains(&kind) => {
                Found::Address(self.base.wrapping_add(symbol.st_value as usize) as *mut c_void)
            }
            KIND_CHOSEN_BY_CODE => Found::Unclear,
            _ => Found::Nothing,
        }
    }
}
