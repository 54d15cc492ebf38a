//! A file that has no room in the stage moves to its real path on the parallel file system, under the descriptors that
//! the program has: offset, flags, O_APPEND, duplicates and a lock of flock(2) stay.
//!
//! Whether anybody else could write to the old file is not reasoned about: each descriptor is first replaced by one
//! that can only read, and then the kernel grants a lease exactly when no writer is left, neither a call under way in
//! another thread nor a mapping nor another process. What is copied after that cannot change. Until the new file is
//! complete and has its name, everything can be undone; what cannot be moved so is refused before a byte is lost:
//!
//! - a file that another process holds (after a fork, for example), because its offset could not be shared any more;
//! - a file with a writable mapping, with several names, with locks of fcntl(2), or with more descriptors than
//!   [`MOST`].
//!
//! Another thread that writes through such a descriptor meanwhile gets EBADF from the kernel; the hooks of `data` wait
//! then and repeat the call. A thread that closes one of the descriptors within the microsecond between a last look at
//! it and its replacement is not told from one that does not.

use core::ffi::{CStr, c_int};
use core::sync::atomic::{AtomicU64, Ordering};

use sheaf_common::configuration::Level;
use sheaf_common::layout::{self, STUB_BIT};

use crate::configuration::{self, Configuration};
use crate::log::{self, Reason, Shown};
use crate::open::start_in_stage;
use crate::scratch::{Scratch, Slot, Text, make_unique};
use crate::staged::{self, Access};
use crate::system::{self, AT_FDCWD, Descriptor, Errno, Result, Stat};
use crate::{copy, listing, replaced};

/// Most descriptors of one file that can be moved.
const MOST: usize = 16;
/// How long writes that are under way may take to end, in looks and milliseconds between them.
const LOOKS: u32 = 200;
const PAUSE_MS: u64 = 5;
/// The same for other processes: only the flusher lets go of a file by itself, and soon.
const LOOKS_ELSEWHERE: u32 = 10;
/// How long another thread of this process may take to move a file.
const TURN_LIMIT_MS: u64 = 600_000;
/// Flags of a description that open(2) takes and that the new one gets, too.
const KEPT_FLAGS: c_int = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_DIRECT
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_NOATIME;

/// The process and thread that move a file; 0 for none. A child that was forked meanwhile is another process.
static MOVER: AtomicU64 = AtomicU64::new(0);

/// This process and thread.
fn own() -> u64 {
    (system::process_id() as u64) << 32 | u64::from(system::thread_id() as u32)
}

/// Whether another thread of this process is moving a file.
pub fn is_under_way() -> bool {
    let mover = MOVER.load(Ordering::Acquire);
    mover >> 32 == system::process_id() as u64 && mover != own()
}

/// Waits until no other thread of this process moves a file; false when it takes too long.
pub fn wait() -> bool {
    let begin_ns = system::now_ns();
    while is_under_way() {
        if system::now_ns().saturating_sub(begin_ns) > TURN_LIMIT_MS * 1_000_000 {
            return false;
        }
        system::sleep_ms(1);
    }
    true
}

/// The right to move a file: one thread of a process has it.
struct Turn;

impl Turn {
    fn take() -> Result<Turn> {
        loop {
            let mover = MOVER.load(Ordering::Acquire);
            if mover == own() {
                // A signal handler in the middle of a move.
                return Err(Errno(libc::EBUSY));
            }
            if is_under_way() && !wait() {
                return Err(Errno(libc::ETIMEDOUT));
            }
            if MOVER.compare_exchange(mover, own(), Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Ok(Turn);
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        MOVER.store(0, Ordering::Release);
    }
}

/// One of the program's descriptors of the file.
#[derive(Clone, Copy)]
struct Held {
    fd: c_int,
    /// FD_CLOEXEC, as dup3(2) takes it.
    close_on_exec: c_int,
    /// Of its description.
    flags: c_int,
    /// Index of the first descriptor with the same description.
    first: usize,
}

/// All of them.
struct Descriptors {
    held: [Held; MOST],
    count: usize,
}

impl Descriptors {
    fn all(&self) -> &[Held] {
        self.held.get(..self.count).unwrap_or_default()
    }

    /// Finds the program's descriptors of the file; `own` is the library's.
    fn find(stat: &Stat, own: c_int) -> Result<Descriptors> {
        let nothing = Held { fd: -1, close_on_exec: 0, flags: 0, first: 0 };
        let mut found = Descriptors { held: [nothing; MOST], count: 0 };
        listing::each_name(c"/proc/self/fd", |name| {
            let Some(fd) = number(name).filter(|fd| *fd != own) else { return Ok(()) };
            if system::fstat(fd).is_ok_and(|other| is_same(&other, stat)) { found.add(fd) } else { Ok(()) }
        })?;
        Ok(found)
    }

    fn add(&mut self, fd: c_int) -> Result<()> {
        let flags = system::fcntl(fd, libc::F_GETFL, 0)?;
        let closes = system::fcntl(fd, libc::F_GETFD, 0)? & libc::FD_CLOEXEC != 0;
        let mut first = self.count;
        for (index, earlier) in self.all().iter().enumerate() {
            if system::is_same_description(earlier.fd, fd)? {
                first = index;
                break;
            }
        }
        let place = self.held.get_mut(self.count).ok_or(Errno(libc::EMFILE))?;
        *place = Held { fd, close_on_exec: if closes { libc::O_CLOEXEC } else { 0 }, flags, first };
        self.count += 1;
        Ok(())
    }

    /// New descriptions of `file`, one for each that the program has: with the flags that it has, or such as can only
    /// read.
    fn describe(&self, file: &Descriptor, only_reading: bool) -> Result<Descriptions> {
        let mut descriptions: Descriptions = [const { None }; MOST];
        for (index, (place, held)) in descriptions.iter_mut().zip(self.all()).enumerate() {
            if held.first == index {
                *place =
                    Some(reopen(file.number(), if only_reading { libc::O_RDONLY } else { held.flags & KEPT_FLAGS })?);
            }
        }
        Ok(descriptions)
    }

    /// Puts them in the place of the program's, at the same offsets.
    fn install(&self, descriptions: &Descriptions) -> Result<()> {
        for (index, description) in descriptions.iter().enumerate() {
            let (Some(description), Some(held)) = (description, self.held.get(index)) else { continue };
            system::seek(description.number(), system::seek(held.fd, 0, libc::SEEK_CUR)?, libc::SEEK_SET)?;
            for duplicate in self.all().iter().filter(|other| other.first == index) {
                system::duplicate(description.number(), duplicate.fd, duplicate.close_on_exec)?;
            }
        }
        Ok(())
    }
}

/// New descriptions, each at the index of the first descriptor that is to have it.
type Descriptions = [Option<Descriptor>; MOST];

fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// The number that a name is, if it is one.
fn number(name: &[u8]) -> Option<c_int> {
    name.iter().try_fold(0, |number: c_int, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(c_int::from(digit))
    })
}

/// Another description of an open file. What cannot be written past the cache is written through it.
fn reopen(fd: c_int, flags: c_int) -> Result<Descriptor> {
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    let path = &mut scratch.other;
    let mut digits = [0; 10];
    let number = configuration::decimal(fd as u32, &mut digits);
    path.set(b"/proc/self/fd/").and_then(|()| path.push(number)).map_err(|_| Errno(libc::ENAMETOOLONG))?;
    match system::open_own(path.c_str(), flags, 0) {
        Err(Errno(libc::EINVAL)) if flags & libc::O_DIRECT != 0 => {
            system::open_own(path.c_str(), flags & !libc::O_DIRECT, 0)
        }
        outcome => outcome,
    }
}

/// Moves the staged file behind a descriptor to its real path. Afterwards every descriptor of this process that led to
/// it leads to the new file.
pub fn move_file(configuration: &Configuration, fd: c_int) -> Result<()> {
    let _turn = Turn::take()?;
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    let Slot { tree, pending, other, .. } = &mut *scratch;
    if !staged::path_of(configuration, fd, Access::Any, other) {
        // Another thread has moved it.
        return Ok(());
    }
    let named = tree.set(configuration.tree).and_then(|()| tree.push(other.as_bytes()));
    named.map_err(|_| Errno(libc::ENAMETOOLONG))?;
    let real = tree.c_str_from(configuration.tree.len());
    let outcome = Move::begin(fd).and_then(|file| file.run(configuration, tree.c_str(), real, pending, other));
    let (level, what) = match outcome {
        Ok(()) => (Level::Info, "the stage is full: moved to the parallel file system"),
        Err(_) => (Level::Warn, "the stage is full, and the file cannot be moved to the parallel file system"),
    };
    let reason = Reason(outcome.err().unwrap_or(Errno(libc::ENOSPC)));
    log::say(configuration, level, format_args!("sheaf: {}: {what} ({reason})", Shown(real.to_bytes())));
    outcome
}

/// A file on the move.
struct Move {
    /// The old file, opened for reading by the library.
    old: Descriptor,
    stat: Stat,
    descriptors: Descriptors,
    /// LOCK_SH or LOCK_EX, if the program has such a lock of flock(2) on it.
    lock: Option<c_int>,
}

impl Move {
    /// Looks whether the file can be moved at all. Nothing has happened when this fails.
    fn begin(fd: c_int) -> Result<Move> {
        let stat = system::fstat(fd)?;
        if stat.st_nlink != 1 {
            return Err(Errno(libc::EMLINK));
        }
        if stat.st_mode & 0o600 != 0o600 {
            // Else it could not be opened once more; its own mode is set when it has moved, or has not.
            system::fchmod(fd, stat.st_mode & 0o7777 | 0o600)?;
        }
        let started = Move::prepare(fd, stat);
        if started.is_err() {
            let _ = system::fchmod(fd, stat.st_mode & 0o7777);
        }
        started
    }

    fn prepare(fd: c_int, stat: Stat) -> Result<Move> {
        let old = reopen(fd, libc::O_RDONLY)?;
        let descriptors = Descriptors::find(&stat, old.number())?;
        let lock = lock_of(&old)?;
        if lock.is_some() && descriptors.all().iter().any(|held| held.first != 0)
            || system::has_record_lock(old.number())
        {
            return Err(Errno(libc::ENOLCK));
        }
        for _ in 0..LOOKS_ELSEWHERE {
            // The flusher may be looking at the file at the moment.
            if !is_held_elsewhere(&stat)? {
                return Ok(Move { old, stat, descriptors, lock });
            }
            system::sleep_ms(PAUSE_MS);
        }
        Err(Errno(libc::EBUSY))
    }

    fn run(
        self,
        configuration: &Configuration,
        tree: &CStr,
        real: &CStr,
        temporary: &mut Text,
        buffer: &mut Text,
    ) -> Result<()> {
        let outcome = self.freeze().and_then(|()| {
            temporary.set(copy::directory_part(real.to_bytes())).map_err(|_| Errno(libc::ENAMETOOLONG))?;
            temporary.push(b".sheaf-move-").map_err(|_| Errno(libc::ENAMETOOLONG))?;
            let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
            let new = make_unique(temporary, |name| system::open_own(name, flags, 0o600))?;
            let moved = copy::copy_file_data(&self.old, &new, buffer)
                .and_then(|()| self.take_place(configuration, &new, (tree, real), temporary.c_str(), buffer));
            if moved.is_err() {
                let _ = system::unlink(temporary.c_str());
            }
            moved
        });
        if outcome.is_err() {
            // Nobody else has the file, so its descriptions can be made anew; not under our own lease.
            let _ = system::fcntl(self.old.number(), libc::F_SETLEASE, libc::F_UNLCK);
            let _ = self.descriptors.describe(&self.old, false).and_then(|anew| self.descriptors.install(&anew));
            let _ = system::fchmod(self.old.number(), self.stat.st_mode & 0o7777);
        }
        outcome
    }

    /// Takes the right to write away from every descriptor, and waits until the kernel says that nobody has it.
    fn freeze(&self) -> Result<()> {
        self.descriptors.install(&self.descriptors.describe(&self.old, true)?)?;
        for _ in 0..LOOKS {
            if system::lease_for_reading(self.old.number()).is_ok() {
                return Ok(());
            }
            system::sleep_ms(PAUSE_MS);
        }
        Err(Errno(libc::EBUSY))
    }

    /// Gives the new file the old one's attributes, its name and its descriptors, and takes the old name away.
    fn take_place(
        &self,
        configuration: &Configuration,
        new: &Descriptor,
        (tree, real): (&CStr, &CStr),
        temporary: &CStr,
        aside: &mut Text,
    ) -> Result<()> {
        // Opened before the file has its mode, which may forbid that. From its new name on, nothing that can fail is
        // left.
        let descriptions = self.descriptors.describe(new, false)?;
        copy::copy_attributes(&self.old, new)?;
        // Whoever is killed in the next steps leaves both: then what has come goes with the name, and both are alike.
        let was_marked = replaced::is_marked(configuration, real.to_bytes());
        if !was_marked {
            let _ = replaced::mark_whatever_comes(configuration, real);
        }
        system::rename((AT_FDCWD, temporary), (AT_FDCWD, real), 0)?;
        if let Err(error) = self.take_name_away(configuration, tree, aside) {
            // What stays in the tree is what counts.
            let _ = system::unlink(real);
            return Err(error);
        }
        self.descriptors.install(&descriptions)?;
        if let Some((lock, held)) = self.lock.zip(self.descriptors.all().first()) {
            // Some parallel file systems have no such locks, for no program.
            let _ = system::flock(held.fd, lock | libc::LOCK_NB);
        }
        system::fchmod(new.number(), self.stat.st_mode & 0o7777 & !STUB_BIT)?;
        replaced::unmark(configuration, real.to_bytes());
        Ok(())
    }

    /// Takes the old file out of the tree; one that has taken its name meanwhile stays. On a disk that is full, or
    /// where the user has reached a quota, nothing can be moved aside, but it can be removed.
    fn take_name_away(&self, configuration: &Configuration, tree: &CStr, aside: &mut Text) -> Result<()> {
        start_in_stage(configuration, layout::SCRATCH, aside).map_err(|_| Errno(libc::ENAMETOOLONG))?;
        let rename = |name: &CStr| system::rename((AT_FDCWD, tree), (AT_FDCWD, name), libc::RENAME_NOREPLACE);
        match make_unique(aside, rename) {
            Ok(()) => {}
            Err(Errno(libc::ENOENT)) => return Ok(()),
            Err(_) => {
                return match system::lstat(tree) {
                    Ok(there) if is_same(&there, &self.stat) => system::unlink(tree),
                    _ => Ok(()),
                };
            }
        }
        match system::lstat(aside.c_str()) {
            Ok(taken) if !is_same(&taken, &self.stat) => {
                let _ = system::rename((AT_FDCWD, aside.c_str()), (AT_FDCWD, tree), libc::RENAME_NOREPLACE);
            }
            _ => drop(system::unlink(aside.c_str())),
        }
        Ok(())
    }
}

/// The lock of flock(2) that somebody has on the file: as nobody else has the file, it is the program's.
fn lock_of(file: &Descriptor) -> Result<Option<c_int>> {
    for (attempt, found) in [(libc::LOCK_EX, None), (libc::LOCK_SH, Some(libc::LOCK_SH))] {
        match system::flock(file.number(), attempt | libc::LOCK_NB) {
            Ok(()) => return system::flock(file.number(), libc::LOCK_UN).map(|()| found),
            Err(Errno(libc::EAGAIN)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(libc::LOCK_EX))
}

/// Whether another process has the file open. Those of other users cannot be looked at, and cannot have opened it.
fn is_held_elsewhere(stat: &Stat) -> Result<bool> {
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    let Slot { tree: directory, other: path, .. } = &mut *scratch;
    let own = system::process_id();
    let mut is_held = false;
    listing::each_name(c"/proc", |process| {
        if is_held || number(process).is_none_or(|process| process == own) {
            return Ok(());
        }
        let parts = [&b"/proc/"[..], process, b"/fd"];
        directory.truncate(0);
        parts.into_iter().try_for_each(|part| directory.push(part)).map_err(|_| Errno(libc::ENAMETOOLONG))?;
        // It may have ended, or be another user's.
        let _ = listing::each_name(directory.c_str(), |fd| {
            let named = path.set(directory.as_bytes()).and_then(|()| path.push(b"/")).and_then(|()| path.push(fd));
            if named.is_ok() && system::statat(AT_FDCWD, path.c_str(), 0).is_ok_and(|other| is_same(&other, stat)) {
                is_held = true;
            }
            Ok(())
        });
        Ok(())
    })?;
    Ok(is_held)
}
