//! The client side of the flusher: is it alive, start it, ask it.
//!
//! Every wait is bounded: SHEAF_TIMEOUT without a sign of life of the flusher, or a fixed time for its start. Who has
//! waited so long in vain notes it on the pulse; until the flusher takes the note away, nobody on the node waits for it
//! again. Nothing here may keep a connection or a process of its own, and every failure leaves the caller free to go on
//! without a flusher.

use core::ffi::c_int;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use sheaf_common::configuration::Level;
use sheaf_common::layout;
use sheaf_common::protocol::{HAS_CONTESTED, IN_PROGRESS, Kind, REPLY_HEADER, Reply, Request, STAGE_IS_TRANSIENT};

use crate::configuration::Configuration;
use crate::listing;
use crate::log::{self, Reason, Shown};
use crate::scratch::Scratch;
use crate::spawn;
use crate::store;
use crate::system::{self, Descriptor, Errno, Result};
use crate::told;

/// How long a flusher may take from its start until it answers.
const START_LIMIT_MS: u64 = 10_000;
/// Pause between two looks for a flusher that is starting.
const START_PAUSE_MS: u64 = 3;
/// How long others may take to start a flusher before this process does.
const TURN_LIMIT_MS: u64 = 3_000;
/// How long nobody may answer after the flusher that was started has ended, before another one is started.
const END_LIMIT_MS: u64 = 200;
/// How many flushers may end before they answer: a machine on which none can live is told from one that was killed.
const STARTS_MAX: u32 = 8;
/// How long a failed start is not tried again.
const START_HOLD_NS: u64 = 5_000_000_000;

/// Not zero while this process, or the one whose memory it uses, has said hello: the kernel empties it in a process
/// that is forked, which saves asking for the process id. Null until the first hello, and where the kernel cannot do
/// that.
static MARK: AtomicPtr<AtomicU32> = AtomicPtr::new(core::ptr::null_mut());
/// The process that has said hello, without [`MARK`].
static GREETED: AtomicI32 = AtomicI32::new(0);
/// The flusher that it was said to, as far as that is told; 0 if it is not.
static GREETED_FLUSHER: AtomicU32 = AtomicU32::new(0);
/// Directories that are remembered as those that the flusher was too late with.
const LATE_DIRECTORIES: usize = 16;
/// How long, in seconds: as long as a process has waited in vain.
const LATE_HOLD_S: u64 = 30;
/// The bits of a note that say when it was made; the others are the directory's hash.
const LATE_SECONDS: u64 = 0xff_ffff;

/// The flusher that the tree is known to have caught up with the store by, 0 for none, [`UNTOLD`] for one that does not
/// say that it lives.
static CAUGHT_UP: AtomicU32 = AtomicU32::new(0);
/// No thread has this number.
const UNTOLD: u32 = u32::MAX;
/// When, in seconds, no flusher could be had to catch up, 0 for never.
static BEHIND_SINCE_S: AtomicU64 = AtomicU64::new(0);
/// When it was last waited in vain for publication before a removal, or 0.
static UNSETTLED_SINCE_S: AtomicU64 = AtomicU64::new(0);

/// When, in seconds, the store had no answer to what other nodes have published, 0 for never.
static UNSEEN_SINCE_S: AtomicU64 = AtomicU64::new(0);

static LATE: [AtomicU64; LATE_DIRECTORIES] = [const { AtomicU64::new(0) }; LATE_DIRECTORIES];
/// The process that is starting a flusher, 0 for none.
static STARTER: AtomicI32 = AtomicI32::new(0);
/// When a start failed last, 0 for never.
static FAILED_AT_NS: AtomicU64 = AtomicU64::new(0);

/// Makes sure that a flusher lives and knows that this process captures. False when there can be none.
pub fn ensure(configuration: &Configuration) -> bool {
    if is_greeted() && lives(configuration) {
        return true;
    }
    let greeted = request(configuration, Kind::Hello, b"").is_ok();
    if greeted {
        told::look_again(configuration);
        GREETED_FLUSHER.store(told::flusher(configuration).unwrap_or(0), Ordering::Relaxed);
        note_greeted();
    }
    greeted
}

/// Whether the flusher lives that this process has greeted; where that is not told, whether any does.
fn lives(configuration: &Configuration) -> bool {
    match told::flusher(configuration) {
        Some(flusher) => flusher == GREETED_FLUSHER.load(Ordering::Relaxed),
        None => has_pulse(configuration),
    }
}

fn mark() -> Option<&'static AtomicU32> {
    // SAFETY: null, or a mapping of at least four bytes, aligned to a page, that is never unmapped.
    unsafe { MARK.load(Ordering::Acquire).as_ref() }
}

fn is_greeted() -> bool {
    match mark() {
        Some(mark) => mark.load(Ordering::Relaxed) != 0,
        None => GREETED.load(Ordering::Relaxed) == system::process_id(),
    }
}

fn note_greeted() {
    if mark().is_none()
        && let Ok(page) = system::map_emptied_by_fork(size_of::<AtomicU32>())
        && MARK.compare_exchange(core::ptr::null_mut(), page.cast(), Ordering::Release, Ordering::Relaxed).is_err()
    {
        // SAFETY: another thread was faster, and nobody knows of this mapping.
        unsafe { system::unmap(page, size_of::<AtomicU32>()) };
    }
    match mark() {
        Some(mark) => mark.store(1, Ordering::Relaxed),
        None => GREETED.store(system::process_id(), Ordering::Relaxed),
    }
}

/// Whether the mirrors show what other nodes had published when the flusher started that lives now. Costs no call of
/// the system.
#[inline]
pub fn has_caught_up(configuration: &Configuration) -> bool {
    let Some(flusher) = told::caught_up_flusher(configuration) else { return false };
    if CAUGHT_UP.load(Ordering::Relaxed) != flusher {
        CAUGHT_UP.store(flusher, Ordering::Relaxed);
    }
    true
}

/// Whether something was waited for in vain at this time, so that it is not tried again for a while; 0 for never.
fn is_held(since_s: &AtomicU64) -> bool {
    let since_s = since_s.load(Ordering::Relaxed);
    since_s != 0 && now_seconds().saturating_sub(since_s) < LATE_HOLD_S
}

/// Has the mirrors show what other nodes have published since they were made, by a flusher that is started if none
/// lives. True when they may show something else now. A process that has looked into mirrors that had caught up goes on
/// with them if no flusher can be had; for any other this fails then: what another node has published meanwhile is
/// unknown.
#[cold]
pub fn catch_up(configuration: &Configuration) -> Result<bool> {
    let known = CAUGHT_UP.load(Ordering::Relaxed);
    if has_caught_up(configuration) || known == UNTOLD || !store::exists(configuration) {
        return Ok(false);
    }
    let is_held = is_held(&BEHIND_SINCE_S);
    let outcome = if is_held { Err(Errno(libc::ETIMEDOUT)) } else { request(configuration, Kind::CatchUp, b"") };
    log::decision(
        configuration,
        "catch up",
        configuration.stage,
        if outcome.is_ok() { "done" } else { "not possible" },
    );
    match outcome {
        Ok(()) => {
            CAUGHT_UP.store(told::caught_up_flusher(configuration).unwrap_or(UNTOLD), Ordering::Relaxed);
            BEHIND_SINCE_S.store(0, Ordering::Relaxed);
            Ok(true)
        }
        Err(error) => {
            if !is_held {
                BEHIND_SINCE_S.store(now_seconds(), Ordering::Relaxed);
            }
            if known == 0 { Err(error) } else { Ok(false) }
        }
    }
}

/// Has the mirrors show what other nodes have published until now, as far as that can be had: false when nothing may
/// have changed. For a mirror that has not caught up see [`catch_up`].
#[cold]
pub fn refresh(configuration: &Configuration) -> bool {
    let has_caught_up = has_caught_up(configuration) || CAUGHT_UP.load(Ordering::Relaxed) == UNTOLD;
    if is_held(&UNSEEN_SINCE_S) || !has_caught_up {
        return false;
    }
    let outcome = request(configuration, Kind::Refresh, b"");
    log::decision(configuration, "refresh", configuration.stage, if outcome.is_ok() { "done" } else { "not possible" });
    let since_s = if outcome == Err(Errno(libc::ETIMEDOUT)) { now_seconds() } else { 0 };
    if since_s != UNSEEN_SINCE_S.load(Ordering::Relaxed) {
        UNSEEN_SINCE_S.store(since_s, Ordering::Relaxed);
    }
    outcome.is_ok()
}

/// Has the flusher make the mirror of a directory. False when it says that there is no such directory, or none that can
/// hold what Sheaf manages; fails when nobody can say what the store holds there.
pub fn populate(configuration: &Configuration, directory: &[u8]) -> Result<bool> {
    make_mirrors(configuration, Kind::Populate, directory)
}

/// Has the flusher make the mirrors of a directory and of all below it; false and failure as for [`populate`].
pub fn populate_below(configuration: &Configuration, directory: &[u8]) -> Result<bool> {
    make_mirrors(configuration, Kind::PopulateBelow, directory)
}

fn make_mirrors(configuration: &Configuration, kind: Kind, directory: &[u8]) -> Result<bool> {
    let directory = if directory.is_empty() { b"/" } else { directory };
    if is_late(directory) {
        return Err(Errno(libc::ETIMEDOUT));
    }
    let outcome = match request_status(configuration, kind, directory) {
        Ok(0) => Ok(true),
        Ok(libc::ENOENT | libc::ENOTDIR | libc::EINVAL) => Ok(false),
        Ok(status) => {
            if status == libc::ETIMEDOUT {
                note_late(directory);
            }
            Err(Errno(status))
        }
        Err(error) => Err(error),
    };
    let what = match outcome {
        Ok(true) => "done",
        Ok(false) => "there is nothing to mirror",
        Err(_) => "not possible",
    };
    log::decision(configuration, "populate", directory, what);
    outcome
}

/// Where a directory is noted that the flusher was too late with, and its hash.
fn late_place(directory: &[u8]) -> Option<(&'static AtomicU64, u64)> {
    let hash = listing::hash(directory);
    LATE.get(hash % LATE_DIRECTORIES).map(|place| (place, hash as u64))
}

/// Notes that the flusher had no answer about a directory in its time, because the store does not get on.
fn note_late(directory: &[u8]) {
    if let Some((place, hash)) = late_place(directory) {
        place.store(hash & !LATE_SECONDS | now_seconds() & LATE_SECONDS, Ordering::Relaxed);
    }
}

/// Whether that was so just now.
fn is_late(directory: &[u8]) -> bool {
    late_place(directory).is_some_and(|(place, hash)| {
        let noted = place.load(Ordering::Relaxed);
        noted != 0
            && (noted ^ hash) & !LATE_SECONDS == 0
            && now_seconds().wrapping_sub(noted) & LATE_SECONDS < LATE_HOLD_S
    })
}

fn now_seconds() -> u64 {
    system::now_ns() / 1_000_000_000
}

/// Has the flusher bring a stub's data back. Fails as a program may see it: ENOENT when the name is gone, else EIO.
pub fn hydrate(configuration: &Configuration, path: &[u8]) -> Result<()> {
    let outcome = request(configuration, Kind::Hydrate, path);
    if let Err(error) = outcome {
        log::say(
            configuration,
            Level::Error,
            format_args!(
                "sheaf: {}: its data cannot be brought back from the store: {}; 'sheaf verify' says what is left of it",
                Shown(path),
                Reason(error)
            ),
        );
    }
    outcome.map_err(|error| Errno(if error.0 == libc::ENOENT { libc::ENOENT } else { libc::EIO }))
}

/// Has the flusher publish what is in a file now; returns when it is durable. EIO when it is not to be had.
pub fn sync(configuration: &Configuration, path: &[u8]) -> Result<()> {
    let outcome = request(configuration, Kind::Sync, path);
    log::decision(configuration, "sync", path, if outcome.is_ok() { "durable" } else { "not durable" });
    if let Err(error) = outcome {
        log::say(
            configuration,
            Level::Error,
            format_args!(
                "sheaf: {}: not in the store yet: {}; it stays staged, and 'sheaf status' says what is wrong",
                Shown(path),
                Reason(error)
            ),
        );
    }
    outcome.map_err(|_| Errno(libc::EIO))
}

/// Has the flusher make room in the stage; waits for it no longer than SHEAF_TIMEOUT.
pub fn make_room(configuration: &Configuration, wanted_bytes: u64) -> Result<()> {
    let outcome = request(configuration, Kind::Room, &wanted_bytes.to_le_bytes());
    let what = if outcome.is_ok() { "made" } else { "not to be had" };
    log::decision(configuration, "room", configuration.stage, what);
    outcome
}

/// Layout `files`, before a published file is removed, which happens at once: waits until what is complete in the stage
/// is published, because a node that is lost meanwhile would lose both. Not for longer than SHEAF_TIMEOUT, and then not
/// again for a while.
pub fn settle(configuration: &Configuration) {
    if is_held(&UNSETTLED_SINCE_S) || told::flusher(configuration).is_none() {
        return;
    }
    let outcome = request(configuration, Kind::Wait, b"");
    UNSETTLED_SINCE_S.store(if outcome.is_err() { now_seconds() } else { 0 }, Ordering::Relaxed);
    log::decision(
        configuration,
        "settle",
        configuration.stage,
        if outcome.is_ok() { "published" } else { "not published" },
    );
}

/// The end of the pulse that can only be opened while a flusher holds the other.
fn open_pulse(configuration: &Configuration) -> Result<Descriptor> {
    if !configuration.has_stage() {
        return Err(Errno(libc::ENOENT));
    }
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    let path = &mut scratch.other;
    for part in [configuration.stage, b"/", layout::PULSE.as_bytes()] {
        path.push(part).map_err(|_| Errno(libc::ENAMETOOLONG))?;
    }
    system::open_own(path.c_str(), libc::O_WRONLY | libc::O_NONBLOCK | libc::O_NOFOLLOW, 0)
}

/// Whether a flusher holds the reading end of the pulse.
fn has_pulse(configuration: &Configuration) -> bool {
    open_pulse(configuration).is_ok()
}

/// Whether a flusher lives of which somebody has heard nothing for SHEAF_TIMEOUT.
fn is_silent(configuration: &Configuration) -> bool {
    let pulse = open_pulse(configuration).and_then(|pulse| system::fstat(pulse.number()));
    pulse.is_ok_and(|stat| stat.st_mode & layout::SILENT_BIT != 0)
}

/// Notes for everybody on the node that the flusher says nothing.
fn note_silence(configuration: &Configuration) {
    log::say(
        configuration,
        Level::Warn,
        format_args!(
            "sheaf: the flusher of the stage {} has said nothing for {} s; going on without it until it is back",
            Shown(configuration.stage),
            configuration.timeout_ms / 1000
        ),
    );
    if let Ok(pulse) = open_pulse(configuration) {
        let _ = system::fchmod(pulse.number(), 0o600 | layout::SILENT_BIT);
    }
}

/// Sends one request and waits until it is done.
fn request(configuration: &Configuration, kind: Kind, payload: &[u8]) -> Result<()> {
    match request_status(configuration, kind, payload)? {
        0 => Ok(()),
        status => Err(Errno(status)),
    }
}

/// Sends one request, to a new flusher if none lives, and waits for the final answer: 0, or what the flusher has failed
/// with. It fails by itself only when no flusher could be asked.
fn request_status(configuration: &Configuration, kind: Kind, payload: &[u8]) -> Result<c_int> {
    if is_silent(configuration) {
        return Err(Errno(libc::ETIMEDOUT));
    }
    let begin_ns = system::now_ns();
    loop {
        match reach(configuration).and_then(|socket| ask(configuration, &socket, kind, payload)) {
            // It ended while it was asked: it had nothing to do, or it crashed. Another one is started.
            Err(Errno(libc::EPIPE | libc::ECONNRESET)) => {}
            outcome => return outcome,
        }
        if system::now_ns().saturating_sub(begin_ns) >= start_limit_ms(configuration) * 1_000_000 {
            return Err(Errno(libc::ECONNRESET));
        }
    }
}

fn start_limit_ms(configuration: &Configuration) -> u64 {
    START_LIMIT_MS.min(configuration.timeout_ms)
}

fn address(configuration: &Configuration) -> libc::sockaddr_un {
    let mut address = libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    let name = configuration.stage.iter().chain(b"/").chain(layout::SOCKET.as_bytes());
    // The stage's path is short enough: STAGE_PATH_MAX. The last byte stays NUL.
    for (place, byte) in address.sun_path.iter_mut().take(107).zip(name) {
        *place = *byte as libc::c_char;
    }
    address
}

fn connect(configuration: &Configuration) -> Result<Descriptor> {
    if configuration.has_strangers_stage() {
        return Err(Errno(libc::EACCES));
    }
    let socket = system::packet_socket()?;
    // Else it waits for good when as many wait already as a socket lets wait.
    system::limit_sending(&socket, configuration.timeout_ms)?;
    system::retry(|| system::connect(&socket, &address(configuration)))?;
    // Whoever has exchanged a directory since it was looked at: what answers must be this user's.
    if system::peer_user(&socket)? != system::user_id() {
        return Err(Errno(libc::EACCES));
    }
    Ok(socket)
}

/// A connection to a living flusher, which is started if there is none.
fn reach(configuration: &Configuration) -> Result<Descriptor> {
    let first = connect(configuration);
    if !matches!(first, Err(Errno(libc::ENOENT | libc::ECONNREFUSED))) {
        return first;
    }
    let failed_at_ns = FAILED_AT_NS.load(Ordering::Relaxed);
    if failed_at_ns != 0 && system::now_ns().saturating_sub(failed_at_ns) < START_HOLD_NS {
        return Err(Errno(libc::ECONNREFUSED));
    }
    let outcome = start_and_connect(configuration);
    match &outcome {
        Ok(_) => FAILED_AT_NS.store(0, Ordering::Relaxed),
        Err(error) => {
            FAILED_AT_NS.store(system::now_ns(), Ordering::Relaxed);
            log::say(
                configuration,
                Level::Warn,
                format_args!(
                    "sheaf: no flusher serves the stage {}: {}; files go straight to the parallel file system. \
                     SHEAF_LOG=info,FILE makes the flusher say more",
                    Shown(configuration.stage),
                    Reason(*error)
                ),
            );
        }
    }
    outcome
}

/// Connects to a flusher as soon as there is one. Starts it, unless somebody else is about to.
fn start_and_connect(configuration: &Configuration) -> Result<Descriptor> {
    let begin_ns = system::now_ns();
    let mut turn = None;
    let mut started = None;
    let mut starts = 0;
    let mut lived_ns = begin_ns;
    loop {
        match connect(configuration) {
            Err(Errno(libc::ENOENT | libc::ECONNREFUSED)) => {}
            outcome => return outcome,
        }
        let now_ns = system::now_ns();
        let waited_ms = now_ns.saturating_sub(begin_ns) / 1_000_000;
        if waited_ms >= start_limit_ms(configuration) {
            return Err(Errno(libc::ETIMEDOUT));
        }
        let has_pulse = has_pulse(configuration);
        if turn.is_none() && !has_pulse {
            turn = Turn::take(configuration, waited_ms >= TURN_LIMIT_MS);
        }
        if turn.is_some() && started.is_none() && !has_pulse {
            started = Some(spawn::start_flusher(configuration)?);
            starts += 1;
            lived_ns = system::now_ns();
        }
        // One that finds another at work ends at once: that one will answer soon, or be killed in its turn.
        if has_pulse || started.is_none_or(is_running) {
            lived_ns = now_ns;
        } else if now_ns.saturating_sub(lived_ns) >= END_LIMIT_MS * 1_000_000 {
            if starts >= STARTS_MAX {
                return Err(Errno(libc::ECHILD));
            }
            started = None;
        }
        system::sleep_ms(START_PAUSE_MS);
    }
}

/// Whether a process runs a program. One that has ended does not, even if nobody has reaped it, as in a container whose
/// first process does not.
fn is_running(process: c_int) -> bool {
    let Some(mut scratch) = Scratch::claim() else { return true };
    let path = &mut scratch.other;
    let number = u32::try_from(process).unwrap_or_default();
    let mut digits = [0; 10];
    for part in [&b"/proc/"[..], crate::configuration::decimal(number, &mut digits), b"/exe"] {
        if path.push(part).is_err() {
            return true;
        }
    }
    system::readlinkat(system::AT_FDCWD, path.c_str(), &mut [0]) != Err(Errno(libc::ENOENT))
}

/// The right to start a flusher: one thread of one process has it, so that a job's many processes do not start as many.
struct Turn {
    _file: Option<Descriptor>,
}

impl Turn {
    /// Takes the turn if nobody has it, or in any case when it is `overdue`.
    fn take(configuration: &Configuration, overdue: bool) -> Option<Turn> {
        let (process, holder) = (system::process_id(), STARTER.load(Ordering::Relaxed));
        // What a parent process left here at a fork is nobody's.
        let is_free = holder != process || overdue;
        if !is_free || STARTER.compare_exchange(holder, process, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return None;
        }
        match lock_starting(configuration) {
            Ok(file) => Some(Turn { _file: Some(file) }),
            Err(Errno(libc::EAGAIN | libc::EACCES)) if !overdue => {
                STARTER.store(0, Ordering::Release);
                None
            }
            // There is no stage yet.
            Err(_) => Some(Turn { _file: None }),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        STARTER.store(0, Ordering::Release);
    }
}

fn lock_starting(configuration: &Configuration) -> Result<Descriptor> {
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    let path = &mut scratch.other;
    for part in [configuration.stage, b"/", layout::STARTING.as_bytes()] {
        path.push(part).map_err(|_| Errno(libc::ENAMETOOLONG))?;
    }
    let file = system::open_own(path.c_str(), libc::O_RDWR | libc::O_CREAT | libc::O_NOFOLLOW, 0o600)?;
    system::lock(&file)?;
    Ok(file)
}

fn ask(configuration: &Configuration, socket: &Descriptor, kind: Kind, payload: &[u8]) -> Result<c_int> {
    send(socket, kind, payload)?;
    let begin_ns = system::now_ns();
    loop {
        let reply = receive(configuration, socket)?;
        match reply.status {
            // These are waited for as long as for a sign of life, and no longer.
            IN_PROGRESS if matches!(kind, Kind::Room | Kind::Wait) && is_over(begin_ns, configuration.timeout_ms) => {
                return Err(Errno(libc::ENOSPC));
            }
            IN_PROGRESS => {}
            status if status >= 0 => {
                if matches!(kind, Kind::Hello | Kind::Populate | Kind::PopulateBelow) && reply.value > 0 {
                    tell(configuration, reply.value);
                }
                return Ok(status);
            }
            _ => return Err(Errno(libc::EPROTO)),
        }
    }
}

/// There is news, and this process is the first that hears of it.
fn tell(configuration: &Configuration, news: u64) {
    let files = news & !(STAGE_IS_TRANSIENT | HAS_CONTESTED);
    if files > 0 {
        tell_what_is_hidden(configuration, files);
    }
    if news & HAS_CONTESTED != 0 {
        log::say(
            configuration,
            Level::Warn,
            format_args!(
                "sheaf: several nodes wrote to the same file at the same time: nobody has the whole of it, and reading it gives an \
                 error; 'sheaf status' says which, SHEAF_EXCLUDE keeps such files out"
            ),
        );
    }
    if news & STAGE_IS_TRANSIENT != 0 {
        log::say(
            configuration,
            Level::Warn,
            format_args!(
                "sheaf: the stage {} is this job's own and ends with it: only what is published by then survives ('sheaf run' \
                 waits for that; SHEAF_STAGE can name storage that outlives jobs)",
                Shown(configuration.stage)
            ),
        );
    }
}

/// The flusher has cut something off.
fn tell_what_is_hidden(configuration: &Configuration, files: u64) {
    log::say(
        configuration,
        Level::Warn,
        format_args!(
            "sheaf: an earlier job lost a node: files that its other nodes published later are not shown ({files}), so that \
             what is shown belongs together; 'sheaf cuts' says more, SHEAF_CUT=complete shows all"
        ),
    );
}

/// Whether so much time has passed.
pub fn is_over(begin_ns: u64, limit_ms: u64) -> bool {
    system::now_ns().saturating_sub(begin_ns) >= limit_ms.saturating_mul(1_000_000)
}

fn send(socket: &Descriptor, kind: Kind, payload: &[u8]) -> Result<()> {
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    let packet = scratch.other.as_memory();
    let header = Request { kind, payload_length: payload.len() }.encode();
    let length = header.len() + payload.len();
    for (place, byte) in
        packet.get_mut(..length).ok_or(Errno(libc::ENAMETOOLONG))?.iter_mut().zip(header.iter().chain(payload))
    {
        *place = *byte;
    }
    system::retry(|| system::send(socket, packet.get(..length).unwrap_or_default())).map(drop)
}

/// The next packet.
fn receive(configuration: &Configuration, socket: &Descriptor) -> Result<Reply> {
    let deadline_ns = system::now_ns().saturating_add(configuration.timeout_ms.saturating_mul(1_000_000));
    loop {
        let left_ms = deadline_ns.saturating_sub(system::now_ns()) / 1_000_000;
        match system::wait_readable(socket, left_ms) {
            Ok(true) => break,
            Ok(false) => {
                note_silence(configuration);
                return Err(Errno(libc::ETIMEDOUT));
            }
            Err(Errno(libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
    // The answers to what this side asks carry no payload.
    let mut packet = [0; REPLY_HEADER];
    match system::retry(|| system::receive(socket, &mut packet))? {
        0 => Err(Errno(libc::ECONNRESET)),
        length => {
            let reply = packet.get(..length).map(Reply::decode);
            reply.and_then(|reply| reply.ok()).ok_or(Errno(libc::EPROTO))
        }
    }
}
