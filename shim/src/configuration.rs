//! What the environment says, read once into memory that never changes again: the text when the library is loaded, what
//! it means on the file systems when the program first names a path.
//!
//! The flusher reads the same variables by the same rules: a path must come out byte-identical on both sides, because
//! the stage is named after the store's path. A bad value is one line on standard error, and then the library does
//! nothing. Nothing here may create a file or change the environment.

use core::ffi::{CStr, c_char, c_uint};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use sheaf_common::configuration::{self, Level, Reason, ValueError};
use sheaf_common::{layout, pattern, room};

use crate::durable;
use crate::log::{self, Shown};
use crate::paths;
use crate::reject;
use crate::scratch::Scratch;
use crate::system;

/// The tier when SHEAF_STAGE is unset.
const DEFAULT_TIER: &[u8] = b"/dev/shm";
/// Address space for the values; only what is used costs memory.
const ARENA_BYTES: usize = 1 << 20;
/// File systems that cannot hold a stage, by their statfs(2) magic: overlayfs and NFS.
const REFUSED_FILE_SYSTEMS: [u64; 2] = [0x794c_7630, 0x6969];
/// Where programs look for their own files, and nobody but the administrator makes links: paths that start so need no
/// look at the file system.
const SYSTEM_DIRECTORIES: [&[u8]; 8] =
    [b"/usr/", b"/lib", b"/etc/", b"/bin/", b"/sbin/", b"/sys/", b"/proc/", b"/dev/"];
/// The bits of their first letters, taken modulo 32.
const SYSTEM_INITIALS: u32 = {
    let (mut bits, mut index) = (0, 0);
    while index < SYSTEM_DIRECTORIES.len() {
        bits |= 1 << (SYSTEM_DIRECTORIES[index][1] % 32);
        index += 1;
    }
    bits
};

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// One entry of SHEAF_PATHS.
#[derive(Clone, Copy)]
pub struct Pattern {
    /// The pattern, its fixed prefix resolved.
    pub text: &'static [u8],
    /// The resolved fixed prefix without a final slash.
    pub prefix: &'static [u8],
    /// The fixed prefix as the user spelled it, without a final slash.
    pub spelled: &'static [u8],
}

/// Everything that the library needs to know.
pub struct Configuration {
    patterns: &'static [Pattern],
    excludes: &'static [Pattern],
    /// The bits of all names in fixed prefixes.
    prefix_names: u64,
    /// Which of the system directories hold no checkpoints.
    skipped: [bool; SYSTEM_DIRECTORIES.len()],
    /// The same, for the fast reject.
    rejected: reject::Table,
    /// The store's canonical path.
    pub store: &'static CStr,
    /// The effective user when the environment was read: whose the stage is.
    pub user: c_uint,
    /// The stage directory.
    pub stage: &'static [u8],
    /// The same, for the kernel.
    stage_path: &'static CStr,
    /// The directory of all stages of this user in the tier.
    stage_parent: &'static CStr,
    /// The tree in the stage.
    pub tree: &'static [u8],
    /// The stage directory as the kernel shows it, in /proc/self/fd for example.
    pub stage_shown: &'static [u8],
    /// How long a call of the program may wait for a silent flusher, or for room.
    pub timeout_ms: u64,
    /// What is said.
    pub log_level: Level,
    /// Where it is said; standard error when there is none.
    pub log_file: Option<&'static CStr>,
}

/// Copies of the variables that concern Sheaf, each with its NUL, an empty one last; null until they are made.
static VARIABLES: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());
/// How the variables that concern Sheaf start.
pub const VARIABLE_START: &[u8] = b"SHEAF_";
/// Whether the stage has been seen to be this user's alone.
static STAGE_SEEN: AtomicBool = AtomicBool::new(false);
/// Null until the environment was read.
static CURRENT: AtomicPtr<Configuration> = AtomicPtr::new(ptr::null_mut());
static NONE: u8 = 0;

/// What stands in [`CURRENT`] when the library is to do nothing.
fn none() -> *mut Configuration {
    (&raw const NONE).cast_mut().cast()
}

/// The configuration; `None` when the library is to do nothing.
#[inline]
pub fn active() -> Option<&'static Configuration> {
    let mut current = CURRENT.load(Ordering::Acquire);
    if current.is_null() {
        current = publish();
    }
    if current == none() {
        return None;
    }
    // SAFETY: whatever else is published is an initialised configuration that is never changed or freed.
    Some(unsafe { &*current })
}

/// Reads the environment; the first thread to finish wins.
#[cold]
fn publish() -> *mut Configuration {
    // SAFETY: a plain read of a pointer.
    if unsafe { environ }.is_null() && VARIABLES.load(Ordering::Acquire).is_null() {
        // Too early: the C library has not started.
        return none();
    }
    let read = read_variables().and_then(|(paths, log)| assemble(paths, log));
    let made = read.map_or(none(), |configuration| ptr::from_ref(configuration).cast_mut());
    match CURRENT.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            if made != none() {
                // SAFETY: as in `active`.
                let configuration = unsafe { &*made };
                match configuration.log_level {
                    Level::Trace => log::trace_calls(),
                    _ => configuration.rejected.use_always(),
                }
            }
            made
        }
        // The loser's few pages stay mapped: somebody may hold references into them by now.
        Err(earlier) => earlier,
    }
}

/// Reads the environment as the process was started with it, and says what is wrong with it. No file system is looked
/// at: most processes never name a path that matters. Only if every call is to be told, all is read now.
pub fn prepare() {
    // SAFETY: a plain read of a pointer.
    if unsafe { environ }.is_null() || !CURRENT.load(Ordering::Acquire).is_null() {
        return;
    }
    match read_variables() {
        None => drop(CURRENT.compare_exchange(ptr::null_mut(), none(), Ordering::AcqRel, Ordering::Acquire)),
        Some((_, (Level::Trace, _))) => drop(active()),
        Some(_) => {}
    }
}

/// The patterns and what is to be said where; nothing when the library is to do nothing, after a line that says why if
/// that is a mistake.
fn read_variables() -> Option<(&'static [u8], Log)> {
    // SAFETY: getauxval reads the process's own auxiliary vector.
    if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
        return None;
    }
    let paths = variable(c"SHEAF_PATHS")?;
    log::remember_standard_error();
    match check(paths) {
        Ok(log) => log.map(|log| (paths, log)),
        Err(error) => {
            log::complain(format_args!("{error}"));
            None
        }
    }
}

/// A variable's value; an empty one counts as unset.
fn variable(name: &'static CStr) -> Option<&'static [u8]> {
    let value_of = |text: &'static CStr| text.to_bytes().strip_prefix(name.to_bytes())?.strip_prefix(b"=");
    kept_variables().find_map(value_of).filter(|value| !value.is_empty())
}

/// The variables that concern Sheaf, as the process was started with them.
pub fn kept_variables() -> impl Iterator<Item = &'static CStr> {
    // SAFETY: `variables` yields C strings one behind the other, an empty one last, in memory that stays.
    let first = variables().map(|start| unsafe { CStr::from_ptr(start) });
    let next = |text: &&'static CStr| {
        // SAFETY: as above; this one was not the last.
        Some(unsafe { CStr::from_ptr(text.as_ptr().add(text.to_bytes_with_nul().len())) })
    };
    core::iter::successors(first, next).take_while(|text| !text.is_empty())
}

/// The variables that concern Sheaf, copied: programs change their environment, and write over it.
fn variables() -> Option<*const c_char> {
    let made = VARIABLES.load(Ordering::Acquire);
    if !made.is_null() {
        return Some(made);
    }
    let mut length = 1;
    each_variable(|text| length += text.len() + 1);
    if length == 1 {
        return None;
    }
    let copy = system::map(length).ok()?;
    let mut at = 0;
    each_variable(|text| {
        // SAFETY: the mapping has room for what was counted, and is zeroed behind each text; nobody else knows it.
        unsafe { ptr::copy_nonoverlapping(text.as_ptr(), copy.add(at), text.len()) };
        at += text.len() + 1;
    });
    match VARIABLES.compare_exchange(ptr::null_mut(), copy.cast(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Some(copy.cast()),
        Err(earlier) => {
            // SAFETY: another thread was faster, and nobody else knows this mapping.
            unsafe { system::unmap(copy, length) };
            Some(earlier)
        }
    }
}

/// Calls `visit` with every variable of the environment that concerns Sheaf.
fn each_variable(mut visit: impl FnMut(&[u8])) {
    // SAFETY: environ is null or a null-terminated vector of C strings.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            let text = CStr::from_ptr(*entry).to_bytes();
            if text.starts_with(VARIABLE_START) {
                visit(text);
            }
            entry = entry.add(1);
        }
    }
}

fn not_accepted(name: &'static str, value: &'static [u8]) -> ValueError<'static> {
    ValueError { name, value, reason: Reason::NotAccepted }
}

/// What is said, and to which file.
type Log = (Level, Option<&'static [u8]>);

/// Checks every value before anything is built from them. `Ok(None)` when there is nothing to do.
fn check(paths: &'static [u8]) -> Result<Option<Log>, ValueError<'static>> {
    match variable(c"SHEAF_DISABLE") {
        Some(b"1") => return Ok(None),
        None | Some(b"0") => {}
        Some(value) => return Err(not_accepted("SHEAF_DISABLE", value)),
    }
    configuration::check_patterns("SHEAF_PATHS", paths)?;
    if let Some(value) = variable(c"SHEAF_EXCLUDE") {
        configuration::check_patterns("SHEAF_EXCLUDE", value)?;
    }
    if let Some(value) = variable(c"SHEAF_STAGE") {
        configuration::check_directories("SHEAF_STAGE", value)?;
    }
    if let Some(value) = variable(c"SHEAF_STORE") {
        configuration::check_directories("SHEAF_STORE", value)?;
        if configuration::entries(value).count() != 1 {
            return Err(not_accepted("SHEAF_STORE", value));
        }
    }
    for (name, text) in [(c"SHEAF_STAGE_LIMIT", "SHEAF_STAGE_LIMIT"), (c"SHEAF_BANDWIDTH", "SHEAF_BANDWIDTH")] {
        if let Some(value) = variable(name).filter(|value| configuration::parse_size(value).is_none()) {
            return Err(not_accepted(text, value));
        }
    }
    if let Some(value) = variable(c"SHEAF_STORE_TIMEOUT")
        && configuration::parse_number(value).is_none()
    {
        return Err(not_accepted("SHEAF_STORE_TIMEOUT", value));
    }
    if let Some(value) = variable(c"SHEAF_TIMEOUT")
        && configuration::parse_timeout_ms(value).is_none()
    {
        return Err(not_accepted("SHEAF_TIMEOUT", value));
    }
    if let Some(value) = variable(c"SHEAF_DURABLE") {
        durable::set(configuration::parse_durable(value).ok_or(not_accepted("SHEAF_DURABLE", value))?);
    }
    if let Some(value) = variable(c"SHEAF_LAYOUT").filter(|value| configuration::parse_layout(value).is_none()) {
        return Err(not_accepted("SHEAF_LAYOUT", value));
    }
    match variable(c"SHEAF_ON_EXIT") {
        None | Some(b"drain" | b"leave") => {}
        Some(value) => return Err(not_accepted("SHEAF_ON_EXIT", value)),
    }
    match variable(c"SHEAF_DAMAGED") {
        None | Some(b"refuse" | b"older") => {}
        Some(value) => return Err(not_accepted("SHEAF_DAMAGED", value)),
    }
    match variable(c"SHEAF_LOG") {
        None => Ok(Some((Level::Warn, None))),
        Some(value) => configuration::parse_log(value).map(Some).ok_or_else(|| not_accepted("SHEAF_LOG", value)),
    }
}

/// Copies values into memory that stays.
struct Arena {
    next: *mut u8,
    left: usize,
}

impl Arena {
    fn new() -> Option<Arena> {
        Some(Arena { next: system::map(ARENA_BYTES).ok()?, left: ARENA_BYTES })
    }

    /// The concatenation of `parts`, with a NUL behind it.
    fn keep(&mut self, parts: &[&[u8]]) -> Option<&'static CStr> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let place = self.take(length + 1, 1)?;
        let mut at = 0;
        for part in parts {
            // SAFETY: `take` made room for all parts and the NUL; the mapping is new and not shared yet.
            unsafe { ptr::copy_nonoverlapping(part.as_ptr(), place.add(at), part.len()) };
            at += part.len();
        }
        // SAFETY: the bytes were just written, the mapping is zeroed behind them, and it is never unmapped.
        CStr::from_bytes_with_nul(unsafe { core::slice::from_raw_parts(place, length + 1) }).ok()
    }

    fn take(&mut self, length: usize, alignment: usize) -> Option<*mut u8> {
        let skip = self.next.align_offset(alignment);
        self.left = self.left.checked_sub(skip.checked_add(length)?)?;
        // SAFETY: the subtraction above has shown that this much is left of the mapping.
        let place = unsafe { self.next.add(skip) };
        // SAFETY: as above.
        self.next = unsafe { place.add(length) };
        Some(place)
    }
}

/// Finds out what the values mean on the file systems. Nothing when no stage can be, or when there is no memory.
fn assemble(paths: &'static [u8], log: Log) -> Option<&'static Configuration> {
    let mut arena = Arena::new()?;
    let place: *mut Configuration = arena.take(size_of::<Configuration>(), align_of::<Configuration>())?.cast();
    let patterns = read_patterns(&mut arena, paths)?;
    let excludes = read_patterns(&mut arena, variable(c"SHEAF_EXCLUDE").unwrap_or_default())?;
    let store = match variable(c"SHEAF_STORE").and_then(|value| configuration::entries(value).next()) {
        Some(directory) => canonical(&mut arena, directory)?,
        None => arena.keep(&[patterns.first()?.prefix, b"/", layout::STORE.as_bytes()])?,
    };
    let stage = find_stage(&mut arena, store)?;
    let tree = arena.keep(&[stage, b"/", layout::TREE.as_bytes()])?.to_bytes();
    let (stage_path, stage_parent) = (arena.keep(&[stage])?, arena.keep(&[parent(stage)])?);
    let configuration = Configuration {
        skipped: SYSTEM_DIRECTORIES.map(|directory| is_free(patterns, directory)),
        rejected: reject::Table::new(|directory| is_free(patterns, directory)),
        prefix_names: names_of(patterns).fold(0, |bits, name| bits | name_bit(name)),
        patterns,
        excludes,
        store,
        stage,
        stage_path,
        stage_parent,
        user: system::user_id(),
        tree,
        stage_shown: canonical(&mut arena, stage)?.to_bytes(),
        timeout_ms: variable(c"SHEAF_TIMEOUT")
            .and_then(configuration::parse_timeout_ms)
            .unwrap_or(configuration::TIMEOUT_MS),
        log_level: log.0,
        log_file: match log.1 {
            Some(file) => Some(arena.keep(&[file])?),
            None => None,
        },
    };
    // SAFETY: `take` made room of this size and alignment in a mapping that nobody else knows and that stays.
    unsafe {
        place.write(configuration);
        Some(&*place)
    }
}

fn read_patterns(arena: &mut Arena, value: &'static [u8]) -> Option<&'static [Pattern]> {
    let count = configuration::entries(value).count();
    let place: *mut Pattern = arena.take(count * size_of::<Pattern>(), align_of::<Pattern>())?.cast();
    for (index, entry) in configuration::entries(value).enumerate() {
        let pattern = read_pattern(arena, entry)?;
        // SAFETY: `take` made aligned room for all entries, and the index is below their number.
        unsafe { place.add(index).write(pattern) };
    }
    // SAFETY: all entries have just been written, and the mapping is never unmapped.
    Some(unsafe { core::slice::from_raw_parts(place, count) })
}

/// Resolves a pattern's fixed prefix. A resolved prefix may hold characters that are special in patterns.
fn read_pattern(arena: &mut Arena, entry: &'static [u8]) -> Option<Pattern> {
    let fixed = pattern::fixed_prefix(entry);
    let rest = entry.get(fixed.len()..)?;
    let rest = rest.strip_prefix(b"/").unwrap_or(rest);
    let resolved = canonical(arena, fixed)?.to_bytes();
    let prefix = if resolved == b"/" { b"" } else { resolved };
    let spelled = if fixed == b"/" { b"" } else { fixed };
    let mut scratch = Scratch::claim()?;
    let escaped = &mut scratch.other;
    for byte in prefix {
        if b"*?[\\".contains(byte) {
            escaped.push(b"\\").ok()?;
        }
        escaped.push(&[*byte]).ok()?;
    }
    let text = arena.keep(&[escaped.as_bytes(), b"/", rest])?.to_bytes();
    Some(Pattern { text, prefix, spelled })
}

/// `directory` with the symbolic links of its longest existing ancestor resolved.
fn canonical(arena: &mut Arena, directory: &[u8]) -> Option<&'static CStr> {
    let mut scratch = Scratch::claim()?;
    let mut ancestor = directory;
    while !paths::resolve_natively(&mut scratch, ancestor) && ancestor.len() > 1 {
        ancestor = parent(ancestor);
    }
    let rest = trim_end(trim_start(directory.get(ancestor.len()..)?));
    let resolved = scratch.tree.as_bytes();
    let resolved = if resolved == b"/" { b"" } else { resolved };
    match (resolved, rest) {
        (b"", b"") => arena.keep(&[b"/"]),
        (_, b"") => arena.keep(&[resolved]),
        _ => arena.keep(&[resolved, b"/", rest]),
    }
}

/// The directory part of an absolute path; `/` at the top.
fn parent(path: &[u8]) -> &[u8] {
    let path = trim_end(path);
    let end = path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
    match trim_end(path.get(..end).unwrap_or_default()) {
        b"" => b"/",
        shorter => shorter,
    }
}

fn trim_start(path: &[u8]) -> &[u8] {
    let start = path.iter().position(|&byte| byte != b'/').unwrap_or(path.len());
    path.get(start..).unwrap_or_default()
}

fn trim_end(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
    path.get(..end).unwrap_or_default()
}

/// The stage directory that exists, in the first tier that has one; else the one in the first tier that can serve and
/// has room, or that can serve at least.
fn find_stage(arena: &mut Arena, store: &CStr) -> Option<&'static [u8]> {
    let tiers = variable(c"SHEAF_STAGE").unwrap_or(DEFAULT_TIER);
    let name = layout::hex_name(store.to_bytes());
    let user = system::user_id();
    let mut digits = [0; 10];
    let user_text = decimal(user, &mut digits);
    let (mut usable, mut roomy) = (None, None);
    for tier in configuration::entries(tiers) {
        let tier = trim_end(tier);
        let parent = arena.keep(&[tier, b"/sheaf-", user_text])?;
        let stage = arena.keep(&[parent.to_bytes(), b"/", &name])?;
        match (holder(parent, user), holder(stage, user)) {
            (Holder::Own, Holder::Own) => return Some(stage.to_bytes()),
            (Holder::Stranger, _) | (_, Holder::Stranger) => continue,
            _ => {}
        }
        let tier = if tier.is_empty() { c"/" } else { arena.keep(&[tier])? };
        let fits = stage.to_bytes().len() <= layout::STAGE_PATH_MAX;
        if roomy.is_none() && fits && can_serve(tier) && has_safe_ancestors(arena, tier, user) {
            usable = usable.or(Some(stage.to_bytes()));
            roomy = has_room(tier).then_some(stage.to_bytes());
        }
    }
    let usable = roomy.or(usable);
    if usable.is_none() {
        log::complain(format_args!(
            "sheaf: SHEAF_STAGE: no directory of '{}' can hold the stage: it takes node-local directories on tmpfs, ext4 \
             or xfs that this user can write to, and in which nobody else has made 'sheaf-{user}' or can exchange it; \
             running without Sheaf",
            Shown(tiers)
        ));
    }
    usable
}

/// Whose a directory of the stage is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    Nobody,
    /// This user's alone.
    Own,
    /// Another user's, or open to others, or no directory: nothing in it is to be believed.
    Stranger,
}

fn holder(path: &CStr, user: u32) -> Holder {
    match system::lstat(path) {
        Ok(stat) if paths::is_directory(&stat) && stat.st_uid == user && stat.st_mode & 0o077 == 0 => Holder::Own,
        Ok(_) => Holder::Stranger,
        Err(system::Errno(libc::ENOENT)) => Holder::Nobody,
        Err(_) => Holder::Stranger,
    }
}

fn can_serve(tier: &CStr) -> bool {
    let directory = system::statat(system::AT_FDCWD, tier, 0);
    directory.is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
        && system::access(tier, libc::W_OK | libc::X_OK).is_ok()
        && system::file_system(tier).is_ok_and(|kind| !REFUSED_FILE_SYSTEMS.contains(&kind))
}

/// Whether nobody can put another directory in the place of what lies in a tier: as the flusher checks it, who makes
/// the stage. It, everything above it, and every link on the way belong to root or to this user; what everybody may
/// write to has the sticky bit.
fn has_safe_ancestors(arena: &mut Arena, tier: &CStr, user: u32) -> bool {
    let Some(resolved) = canonical(arena, tier.to_bytes()) else { return false };
    let trusted = [0, user, system::lstat(layout::OF_ROOT).map_or(user, |stat| stat.st_uid)];
    let Some(mut scratch) = Scratch::claim() else { return false };
    let is_safe = |path: &[u8]| {
        if scratch.other.set(path).is_err() {
            return false;
        }
        system::lstat(scratch.other.c_str()).is_ok_and(|stat| {
            let is_link = stat.st_mode & libc::S_IFMT == libc::S_IFLNK;
            trusted.contains(&stat.st_uid) && (is_link || stat.st_mode & (libc::S_ISVTX | 0o002) != 0o002)
        })
    };
    let both = [tier.to_bytes(), resolved.to_bytes()];
    let mut ancestors = both
        .into_iter()
        .flat_map(|path| core::iter::successors(Some(path), |path| (path.len() > 1).then(|| parent(path))));
    ancestors.all(is_safe)
}

fn has_room(tier: &CStr) -> bool {
    system::space(tier).is_ok_and(|space| space.free_bytes >= room::reserve_bytes(space.total_bytes))
}

/// A number in decimal digits.
pub fn decimal<const N: usize>(number: impl Into<u64>, digits: &mut [u8; N]) -> &[u8] {
    let mut number = number.into();
    let mut start = digits.len();
    for place in digits.iter_mut().rev() {
        *place = b'0' + (number % 10) as u8;
        number /= 10;
        start -= 1;
        if number == 0 {
            break;
        }
    }
    digits.get(start..).unwrap_or_default()
}

/// The names in the fixed prefixes, as resolved and as spelled.
fn names_of(patterns: &[Pattern]) -> impl Iterator<Item = &[u8]> {
    patterns.iter().flat_map(|entry| [entry.prefix, entry.spelled]).flat_map(pattern::components)
}

/// One bit of 64 that tells most names apart, in few instructions.
#[inline]
fn name_bit(name: &[u8]) -> u64 {
    let last = name.last().copied().unwrap_or_default();
    1 << ((name.len() + 4 * usize::from(last)) % 64)
}

/// Whether a system directory holds no checkpoints.
fn is_free(patterns: &[Pattern], directory: &[u8]) -> bool {
    patterns.iter().all(|pattern| {
        [pattern.prefix, pattern.spelled].iter().all(|prefix| {
            let common = directory.len().min(prefix.len());
            prefix.get(..common) != directory.get(..common)
        })
    })
}

/// Whether a path in a system directory may lead out of it: where anybody makes links, or by the kernel's own links to
/// where a process or one of its directories is.
fn leads_elsewhere(path: &[u8]) -> bool {
    let is_shared = match names(path).next() {
        Some(b"dev") => matches!(names(path).nth(1), Some(b"shm" | b"mqueue")),
        _ => false,
    };
    is_shared || goes_through_process(path)
}

/// Whether a path goes, by the kernel's own links, to where a process or one of its directories is.
pub fn goes_through_process(path: &[u8]) -> bool {
    let mut names = names(path);
    match names.next() {
        Some(b"proc") => {}
        Some(b"dev") => return names.next() == Some(b"fd") && names.count() > 1,
        _ => return false,
    }
    while let Some(name) = names.next() {
        if matches!(name, b"cwd" | b"root") || name == b"fd" && names.clone().count() > 1 {
            return true;
        }
    }
    false
}

/// The names in a path that mean something.
fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    path.split(|&byte| byte == b'/').filter(|name| !matches!(*name, b"" | b"."))
}

/// Whether a component of a path may be `..`: whether one starts so.
#[inline]
fn has_parent(path: &[u8]) -> bool {
    // Looks at everything, because that takes fewer instructions than to stop early.
    let next = path.get(1..).unwrap_or_default();
    let has_dot = path.iter().zip(next).fold(false, |found, (one, other)| found | ((*one == b'/') & (*other == b'.')));
    has_dot && path.windows(3).any(|bytes| bytes == b"/..")
}

/// Whether `path` is `directory` or lies below it; the empty directory is the root.
pub fn is_at_or_below(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
}

impl Configuration {
    /// Whether segments may wait for the store in a further tier. None is looked at: it may hang, and only the flusher
    /// has a bound for that.
    #[cold]
    pub fn has_further_tier(&self) -> bool {
        configuration::entries(variable(c"SHEAF_STAGE").unwrap_or(DEFAULT_TIER)).nth(1).is_some()
    }

    /// If an absolute path starts with a fixed prefix, as spelled or as resolved: the resolved prefix, and how many
    /// bytes of the path it stands for.
    #[inline]
    pub fn starts_in_zone(&self, path: &[u8]) -> Option<(&'static [u8], usize)> {
        self.patterns.iter().find_map(|pattern| {
            let spelled = [pattern.prefix, pattern.spelled].into_iter().find(|prefix| is_at_or_below(path, prefix))?;
            Some((pattern.prefix, spelled.len()))
        })
    }

    /// Whether an absolute path lies in a system directory that holds no checkpoints.
    #[inline]
    pub fn is_system_path(&self, path: &[u8]) -> bool {
        let initial = path.get(1).copied().unwrap_or_default();
        if SYSTEM_INITIALS >> (initial % 32) & 1 == 0 {
            return false;
        }
        let is_start = |directory: &&[u8]| path.starts_with(directory);
        let found = SYSTEM_DIRECTORIES.iter().position(is_start);
        found.and_then(|index| self.skipped.get(index)) == Some(&true) && !has_parent(path) && !leads_elsewhere(path)
    }

    /// Whether a canonical directory can hold something that Sheaf manages: it is at or below a fixed prefix and a
    /// path in it can match. Such a directory has a mirror, once it is populated.
    pub fn is_zone(&self, directory: &[u8]) -> bool {
        let inside = self.patterns.iter().any(|pattern| {
            is_at_or_below(directory, pattern.prefix)
                && pattern::may_contain(pattern.text, if directory.is_empty() { b"/" } else { directory })
        });
        inside && !self.is_own(directory)
    }

    /// Whether a canonical directory is at or below a fixed prefix.
    pub fn is_below_prefix(&self, directory: &[u8]) -> bool {
        self.patterns.iter().any(|pattern| is_at_or_below(directory, pattern.prefix))
    }

    /// Whether a name occurs in a fixed prefix: in whatever directory it is found, it may be on the way there.
    #[inline]
    pub fn is_in_prefix(&self, name: &[u8]) -> bool {
        self.prefix_names & name_bit(name) != 0 && self.is_prefix_name(name)
    }

    /// In a frame of its own, because few names come so far.
    #[inline(never)]
    fn is_prefix_name(&self, name: &[u8]) -> bool {
        names_of(self.patterns).any(|other| other == name)
    }

    /// Whether a canonical path is a checkpoint path.
    pub fn is_checkpoint(&self, path: &[u8]) -> bool {
        self.patterns.iter().any(|entry| pattern::matches(entry.text, path)) && !self.is_excluded(path)
    }

    /// Whether a canonical path must be left alone: excluded by the user, or Sheaf's own.
    pub fn is_excluded(&self, path: &[u8]) -> bool {
        self.is_own(path) || self.excludes.iter().any(|entry| pattern::matches(entry.text, path))
    }

    fn is_own(&self, path: &[u8]) -> bool {
        let own = [self.store.to_bytes(), self.stage, self.stage_shown];
        own.into_iter().any(|directory| is_at_or_below(path, directory))
    }

    /// The stage directory, for the kernel.
    pub fn stage_path(&self) -> &CStr {
        self.stage_path
    }

    /// Whether there is a stage, and it is this user's alone. Once it is, nobody else can put another in its place.
    pub fn has_stage(&self) -> bool {
        if STAGE_SEEN.load(Ordering::Relaxed) {
            return true;
        }
        let is_own = self.stage_holder() == Holder::Own;
        if is_own {
            STAGE_SEEN.store(true, Ordering::Relaxed);
        }
        is_own
    }

    /// Whether a stranger has made what is at the stage's place: nobody there is to be talked to.
    pub fn has_strangers_stage(&self) -> bool {
        !self.has_stage() && self.stage_holder() == Holder::Stranger
    }

    fn stage_holder(&self) -> Holder {
        let user = system::user_id();
        match holder(self.stage_parent, user) {
            Holder::Own => holder(self.stage_path, user),
            other => other,
        }
    }

    /// What the kernel shows of a staged file, without the tree's own path: the name that the program knows.
    pub fn without_tree<'a>(&self, shown: &'a [u8]) -> Option<&'a [u8]> {
        let rest = shown.strip_prefix(self.stage_shown)?.strip_prefix(b"/")?.strip_prefix(layout::TREE.as_bytes())?;
        Some(rest).filter(|rest| rest.first() == Some(&b'/'))
    }
}
