//! The flusher process: one per node and store. It starts when a process captures, and ends when nobody needs it.
//!
//! Threads: main (socket, clients' lives, the end), `watcher` (the tree), `flusher` (the store), `leases` (writers that
//! come back), `reader` (the store, at the start and when somebody asks), `spool` (the further tiers, if there are
//! any), and one per connection. It must never lose a staged file, and never stop a program for longer than a copy in
//! memory takes.

mod announce;
mod appender;
mod clients;
mod files;
mod heap;
mod hydrate;
mod reading;
mod reclaim;
mod refresh;
mod segment;
mod server;
mod shared;
mod spool;
mod stubs;
mod watcher;
mod writer;

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, bounded};
use parking_lot::{Mutex, RwLock};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use sheaf_common::configuration::{Layout, Level};
use sheaf_common::layout;
use sheaf_common::protocol::{HAS_CONTESTED, STAGE_IS_TRANSIENT};

use crate::aggregate::{Entry, Kind};
use crate::client::Client;
use crate::engine;
use crate::settings::{OnExit, Settings};
use crate::stage::Stage;
use crate::stage::alive::Alive;
use crate::stage::lease;
use crate::stage::moving;
use crate::stage::room::Room;
use crate::stage::source::LeaseKeeper;
use crate::stage::told::Telling;
use crate::stage::tracker::{Batch, Hydrated, LeftOut, Replaced, Tracker};
use crate::stage::transient;
use crate::store::Store;
use announce::Announcement;
use clients::Clients;
use files::Files;
use spool::{Spool, Spooler};
use stubs::StubVersions;
use watcher::{Command, Commands, Left, Watcher};
use writer::{Job, Writer};

pub use appender::{Appender, Origin, node_name};
pub use reclaim::parts;
pub use segment::{Input, Pace};

/// How long the flusher stays after the last client: a script's next command may capture again.
const LINGER: Duration = Duration::from_secs(2);
/// How long a new flusher waits for one that is about to end.
const LOCK_LIMIT: Duration = Duration::from_secs(60);
/// How long the last things may take when nobody can reach this flusher any more: another one may be waiting.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);
/// How often the end is considered while nothing else happens.
const TICK: Duration = Duration::from_millis(250);

/// What a status says of contested files, at most.
const CONTESTED_CHARS_MAX: usize = 2000;

/// What the threads share.
pub struct Shared {
    stage: Stage,
    settings: Settings,
    /// The fixed prefixes of the patterns, without their leading slash.
    zones: Vec<Vec<u8>>,
    /// Empty until it has been read whole.
    store: RwLock<Store>,
    reading: reading::Reading,
    refreshes: refresh::Refreshes,
    stubs: StubVersions,
    hydrations: hydrate::Hydrations,
    hydrated: Arc<Mutex<Hydrated>>,
    commands: Commands,
    clients: Mutex<Clients>,
    /// Connections that are being served.
    serving: AtomicUsize,
    /// Whether anything was asked since the main thread last looked. Questions about the state do not count: whoever
    /// watches the flusher must not keep it.
    needed: AtomicBool,
    draining: AtomicBool,
    /// What tells this stage from every other.
    stage_uuid: [u8; 16],
    announcement: Announcement,
    /// What has happened in this stage up to this time is published, and the store says so.
    watermark_ns: AtomicU64,
    /// When the newest operation of this stage that is published happened.
    newest_ns: AtomicU64,
    /// Up to which time the store says that somebody was told so.
    acknowledged_ns: AtomicU64,
    /// What a program has to be told, until one has been: how many names are not shown because nodes were lost, and
    /// [`STAGE_IS_TRANSIENT`], and [`HAS_CONTESTED`].
    news: AtomicU64,
    spool: Spool,
    /// The newest batch that this node's view shows. What is in the spool may be all that has it.
    published: AtomicU64,
    /// How many batches and segments the store has taken.
    stored: AtomicU64,
    written_bytes: AtomicU64,
    /// Files of the newest batch that were left out of it, by path and inode.
    left_out: Mutex<Vec<LeftOut>>,
    /// How many files were left out of batches.
    left_out_count: AtomicU64,
    /// Inodes of files that were left out of a batch and are not published since.
    unpublished: Mutex<HashSet<u64>>,
    status: Mutex<Status>,
    /// How many contested versions the view had when that was said.
    contested_said: AtomicU64,
    /// What goes wrong at present, by part.
    errors: Mutex<BTreeMap<&'static str, String>>,
    stage_limit: u64,
    main_wake: OwnedFd,
}

/// What `sheaf status` shows.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// Host name, as in the aggregates' names.
    pub node: String,
    /// The flusher's process.
    pub pid: u32,
    /// Directory of the aggregates.
    pub store: String,
    /// The stage directory.
    pub stage: String,
    /// Whether it lies in memory that only this job sees: what is not published when the job ends is lost.
    pub stage_ends_with_job: bool,
    /// `io_uring` or `pwrite`.
    pub engine: String,
    /// The aggregate being written.
    pub aggregate: Option<String>,
    /// Processes that have captured and still live.
    pub clients: usize,
    /// Files and operations that are in no batch yet.
    pub waiting: usize,
    /// Batches that are being written.
    pub in_flight: u64,
    /// Files open for writing.
    pub unfinished: usize,
    /// Directories watched.
    pub directories: usize,
    /// Files published since this flusher started.
    pub published_files: u64,
    /// Their bytes.
    pub published_bytes: u64,
    /// Bytes of published segments, and what the store has taken of the one that is being written.
    pub written_bytes: u64,
    /// Directories of further tiers that take what the store is too slow for.
    pub spool: Option<String>,
    /// Bytes of files that wait there for the store.
    pub spooled_bytes: u64,
    /// What goes wrong at present.
    pub error: Option<String>,
    /// What is not shown because nodes were lost.
    pub hidden: Option<String>,
    /// Files that several nodes wrote to at the same time.
    pub contested: Option<String>,
    #[serde(skip)]
    submitted: u64,
}

impl Shared {
    fn published(&self) -> u64 {
        self.published.load(Ordering::SeqCst)
    }

    fn set_published(&self, batch: u64) {
        self.published.store(batch, Ordering::SeqCst);
    }

    /// Whether everything up to a batch is in the store.
    fn has_stored(&self, batch: u64) -> bool {
        batch <= self.published() && self.spool.has_stored(batch)
    }

    fn count_published(&self, files: u64, bytes: u64) {
        let mut status = self.status.lock();
        status.published_files += files;
        status.published_bytes += bytes;
    }

    /// A file is not in the batch that it should be in.
    fn is_left_out(&self, file: LeftOut) {
        let mut left_out = self.left_out.lock();
        left_out.push(file);
        self.left_out_count.fetch_add(1, Ordering::SeqCst);
    }

    /// What was left out of earlier batches, without the tracker knowing of it when it made this one, happened before
    /// it.
    fn mind_left_out(&self, batch: &mut Batch) {
        if batch.known_left_out != self.left_out_count.load(Ordering::SeqCst) {
            batch.watermark_ns = 0;
        }
    }

    /// These are published again, if they were left out.
    fn forget_left_out(&self, entries: &[Entry]) {
        let mut unpublished = self.unpublished.lock();
        for entry in entries.iter().filter(|entry| entry.kind == Kind::File) {
            unpublished.remove(&entry.inode);
        }
    }

    /// Keeps those whose successors have not been left out.
    fn retain_published(&self, replaced: &mut Vec<Replaced>) {
        let unpublished = self.unpublished.lock();
        replaced.retain(|replaced| !unpublished.contains(&replaced.inode));
    }

    /// Whether the store knows of everything that is published that somebody was told so.
    fn is_acknowledged(&self) -> bool {
        let newest_ns = self.newest_ns.load(Ordering::SeqCst);
        self.acknowledged_ns.load(Ordering::SeqCst) >= newest_ns
    }

    /// Shows what goes wrong with `part` in the status, or that it goes right again.
    fn set_error(&self, part: &'static str, text: Option<String>) {
        let mut errors = self.errors.lock();
        match text {
            Some(text) => drop(errors.insert(part, text)),
            None => drop(errors.remove(part)),
        }
        let all: Vec<&str> = errors.values().map(String::as_str).collect();
        self.status.lock().error = (!all.is_empty()).then(|| all.join("; "));
    }

    /// The same, unless something is shown of that part.
    fn set_error_if_none(&self, part: &'static str, text: impl FnOnce() -> String) {
        let is_shown = self.errors.lock().contains_key(part);
        if !is_shown {
            self.set_error(part, Some(text()));
        }
    }

    fn status_report(&self) -> Status {
        reading::watch(self);
        let mut status = self.status.lock().clone();
        status.clients = self.clients.lock().len();
        status.written_bytes = self.written_bytes.load(Ordering::Relaxed);
        let (segments, bytes) = self.spool.waiting();
        status.in_flight = status.submitted.saturating_sub(self.published()) + segments;
        self.spool.describe(&self.settings, &mut status);
        status.spooled_bytes = bytes;
        status.contested = self.contested();
        status
    }

    /// The files that several nodes wrote to at the same time, in words.
    fn contested(&self) -> Option<String> {
        let contests = self.store.read().contests();
        let first = contests.first()?;
        let others = contests.len() - 1;
        let mut text = if others == 0 { String::new() } else { format!("{others} files more, and ") };
        // A status has to fit into one message.
        text.extend(first.to_string().chars().take(CONTESTED_CHARS_MAX));
        Some(text)
    }

    /// Says what is contested, if there may be more of it than when that was said last.
    fn look_for_contests(&self) {
        let count = self.store.read().view().contested();
        if self.contested_said.swap(count, Ordering::SeqCst) != count
            && let Some(contested) = self.contested()
        {
            log::warn!("{contested}");
            self.news.fetch_or(HAS_CONTESTED, Ordering::SeqCst);
        }
    }

    /// Makes the main thread look around.
    fn wake(&self) {
        let _ = rustix::io::write(&self.main_wake, &1u64.to_ne_bytes());
    }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Serves the stage until nobody needs it. Returns at once when another flusher does.
pub fn run(settings: Settings) -> ExitCode {
    close_inherited();
    start_log(&settings);
    match serve(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("the flusher ends: {error}");
            ExitCode::from(2)
        }
    }
}

fn serve(settings: Settings) -> Result<(), Box<dyn std::error::Error>> {
    block_signals()?;
    heap::share();
    use_all_processors();
    let stage = Stage::create(&settings.find_stage()?, &settings.store)?;
    let Some(_lock) = lock(&stage)? else { return Ok(()) };
    let (stage_uuid, is_fresh) = (stage.uuid()?, stage.is_fresh()?);
    let watermark_ns = if is_fresh { now_ns() } else { 0 };
    let zones: Vec<Vec<u8>> = zones(&settings);
    let keeper = LeaseKeeper::start(stage.path(layout::SCRATCH))?;
    clear_scratch(&stage)?;
    moving::finish(&stage)?;
    let mut tracker = Tracker::new(stage.clone(), keeper, zones.clone())?;
    tracker.limit_batch_files(raise_limits() / 4);
    let (telling, stage_limit) = (Telling::create(&stage)?, stage_limit(&settings, &stage)?);
    telling.tell_publishes_files(settings.layout == Layout::Files)?;
    // What is published together can only be evicted together.
    tracker.limit_batch_bytes(stage_limit / 4);
    let (commands, command_receiver) = Commands::new()?;
    let (engine, why_not_io_uring) = engine::probe();
    if let Some(reason) = &why_not_io_uring {
        log::warn!("writing with pwrite: {reason}");
    }
    let status = first_status(&settings, &stage, engine.name());
    let (refreshes, refreshes_asked) = refresh::Refreshes::new();
    let (jobs, job_receiver) = bounded(1);
    let spool = Spool::new(&settings, &stage, jobs.clone());
    let shared = Arc::new(Shared {
        zones,
        spool,
        store: RwLock::new(Store::unread(&settings.store)),
        reading: reading::Reading::default(),
        refreshes,
        stubs: StubVersions::default(),
        hydrations: hydrate::Hydrations::default(),
        hydrated: tracker.hydrated(),
        commands: commands.clone(),
        clients: Mutex::new(Clients::default()),
        serving: AtomicUsize::new(0),
        needed: AtomicBool::new(false),
        written_bytes: AtomicU64::new(0),
        draining: AtomicBool::new(false),
        stage_uuid,
        announcement: Announcement::default(),
        watermark_ns: AtomicU64::new(watermark_ns),
        newest_ns: AtomicU64::new(0),
        acknowledged_ns: AtomicU64::new(0),
        news: AtomicU64::new(if status.stage_ends_with_job { STAGE_IS_TRANSIENT } else { 0 }),
        published: AtomicU64::new(0),
        stored: AtomicU64::new(0),
        left_out: Mutex::default(),
        left_out_count: AtomicU64::new(0),
        unpublished: Mutex::default(),
        errors: Mutex::default(),
        status: Mutex::new(status),
        contested_said: AtomicU64::new(0),
        stage_limit,
        main_wake: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        stage,
        settings,
    });
    let watcher = Watcher::new(shared.clone(), tracker, (&commands, command_receiver), jobs.clone(), telling);
    std::thread::Builder::new().name("watcher".to_string()).spawn(move || watcher.run())?;
    let files = (shared.settings.layout == Layout::Files).then(|| Files::new(shared.clone())).transpose()?;
    let writing = shared.clone();
    std::thread::Builder::new().name("flusher".to_string()).spawn(move || {
        run_beside_the_job();
        Writer::new(writing, engine, job_receiver, files).run();
    })?;
    if shared.settings.stage_tiers.len() > 1 {
        let spooler = Spooler::new(shared.clone(), engine::probe().0);
        std::thread::Builder::new().name("spool".to_string()).spawn(move || {
            run_beside_the_job();
            spooler.run();
        })?;
    }
    let reading = shared.clone();
    std::thread::Builder::new().name("reader".to_string()).spawn(move || {
        reading::read(&reading, is_fresh);
        refresh::serve(&reading, &refreshes_asked);
    })?;
    let listener = server::open(&shared)?;
    // From here on, processes that capture know that a flusher lives: by the pulse, which is closed when the process
    // ends, and by the word, without asking.
    let pulse = shared.stage.open_pulse()?;
    let alive = Alive::say(&shared.stage);
    if let Err(error) = &alive {
        log::warn!("programs must ask whether a flusher lives: {error}");
    }
    log::info!("serving {} for {}", shared.stage.directory().display(), shared.settings.store.display());
    until_nobody_needs_us(&shared, &listener, &pulse)?;
    leave(&shared, (listener, alive.ok()), &jobs)
}

/// The fixed prefixes of the patterns, as the tracker names directories.
fn zones(settings: &Settings) -> Vec<Vec<u8>> {
    settings.patterns.iter().map(|pattern| sheaf_common::pattern::fixed_prefix(pattern)[1..].to_vec()).collect()
}

fn first_status(settings: &Settings, stage: &Stage, engine: &str) -> Status {
    Status {
        node: node_name(),
        pid: std::process::id(),
        store: settings.store.display().to_string(),
        stage: stage.directory().display().to_string(),
        stage_ends_with_job: transient::is_transient(stage.directory()),
        engine: engine.to_string(),
        ..Status::default()
    }
}

/// Accepts connections until no client lives and everything is published.
fn until_nobody_needs_us(shared: &Arc<Shared>, listener: &OwnedFd, pulse: &File) -> io::Result<()> {
    let mut idle_since = Instant::now();
    let mut finishing: Option<Receiver<Left>> = None;
    take_note_of_silence_away(pulse);
    loop {
        wait_for_events(shared, listener)?;
        // Before anybody is answered: who has an answer knows that others wait for one again.
        take_note_of_silence_away(pulse);
        while server::accept_one(shared, listener).unwrap_or_else(|error| {
            // Out of descriptors or threads: whoever waits is served when some are free again.
            log::warn!("cannot take a connection: {error}");
            std::thread::sleep(Duration::from_millis(10));
            false
        }) {}
        if !shared.stage.is_intact() {
            // Whoever captures from now on starts a flusher for a new stage.
            return Ok(());
        }
        // Read first: whoever says hello is registered before it stops being served.
        let serving = shared.serving.load(Ordering::SeqCst) > 0;
        shared.clients.lock().forget_dead();
        if shared.clients.lock().have_ended() {
            moving::finish(&shared.stage)?;
        }
        if shared.needed.swap(false, Ordering::SeqCst) || !shared.clients.lock().is_empty() {
            idle_since = Instant::now();
            finishing = None;
            continue;
        }
        if serving {
            continue;
        }
        let linger = if shared.draining.load(Ordering::SeqCst) { Duration::ZERO } else { LINGER };
        if idle_since.elapsed() < linger {
            continue;
        }
        let leave = shared.settings.on_exit == OnExit::Leave && !shared.draining.load(Ordering::SeqCst);
        if leave {
            return Ok(());
        }
        match finishing.as_ref().map(|receiver| receiver.try_recv()) {
            // What cannot be read is left to the next flusher.
            Some(Ok(left)) if left.written == 0 => return Ok(()),
            // Somebody who never said hello still writes: look again.
            Some(Ok(_)) | None => {
                let (sender, receiver) = bounded(1);
                shared.commands.send(Command::Finish(sender));
                finishing = Some(receiver);
            }
            Some(Err(_)) => {}
        }
    }
}

/// Somebody has waited for this flusher in vain, while it was stopped for example: now it answers.
fn take_note_of_silence_away(pulse: &File) {
    let stat = rustix::fs::fstat(pulse);
    if stat.is_ok_and(|stat| stat.st_mode & layout::SILENT_BIT != 0) {
        let _ = rustix::fs::fchmod(pulse, rustix::fs::Mode::from_raw_mode(0o600));
    }
}

fn wait_for_events(shared: &Arc<Shared>, listener: &OwnedFd) -> io::Result<()> {
    let deaths = shared.clients.lock().descriptors();
    let mut ends = vec![
        PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(shared.main_wake.as_fd(), PollFlags::IN),
    ];
    ends.extend(deaths.iter().map(|death| PollFd::from_borrowed_fd(death.as_fd(), PollFlags::IN)));
    let tick = if shared.draining.load(Ordering::SeqCst) { Duration::from_millis(10) } else { TICK };
    let timeout = Timespec { tv_sec: 0, tv_nsec: tick.subsec_nanos().into() };
    match poll(&mut ends, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut count = [0; 8];
    let _ = rustix::io::read(&shared.main_wake, &mut count);
    Ok(())
}

/// The end: nobody can connect any more, what came in meanwhile is published, the aggregate is sealed.
fn leave(
    shared: &Arc<Shared>,
    presence: (OwnedFd, Option<Alive>),
    jobs: &crossbeam_channel::Sender<Job>,
) -> Result<(), Box<dyn std::error::Error>> {
    drop(presence);
    if shared.stage.is_intact() {
        for name in [layout::PULSE, layout::SOCKET] {
            let _ = std::fs::remove_file(shared.stage.path(name));
        }
    }
    while shared.serving.load(Ordering::SeqCst) > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut ended_ns = None;
    if shared.settings.on_exit == OnExit::Drain || shared.draining.load(Ordering::SeqCst) {
        let (sender, receiver) = bounded(1);
        shared.commands.send(Command::Finish(sender));
        match receiver.recv_timeout(LEAVE_LIMIT) {
            Ok(left) => {
                let nothing = left.written == 0 && left.unreadable == 0;
                ended_ns = (nothing && shared.stage.is_intact()).then(now_ns);
            }
            Err(_) => {
                log::warn!("leaving with files staged: the store does not answer; the next flusher publishes them");
                return Ok(());
            }
        }
    }
    let (sender, receiver) = bounded(1);
    shared.commands.send(Command::Remember(sender));
    let _ = receiver.recv_timeout(LEAVE_LIMIT);
    let (sender, receiver) = bounded(1);
    if jobs.send_timeout(Job::Seal(ended_ns, sender), LEAVE_LIMIT).is_ok() {
        // Unsealed is as good as sealed, only slower to open.
        let _ = receiver.recv_timeout(LEAVE_LIMIT);
    }
    log::info!("done");
    Ok(())
}

/// Takes the stage's lock. `None` when a living flusher serves the stage.
fn lock(stage: &Stage) -> io::Result<Option<File>> {
    let start = Instant::now();
    loop {
        if let Some(lock) = stage.try_lock()? {
            return Ok(Some(lock));
        }
        if Client::connect(stage.directory()).is_ok() {
            return Ok(None);
        }
        if start.elapsed() > LOCK_LIMIT {
            let text = format!("{} is locked by a process that does not answer", stage.path(layout::LOCK).display());
            return Err(io::Error::other(text));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a flusher or a program that died left half-made.
fn clear_scratch(stage: &Stage) -> io::Result<()> {
    for entry in std::fs::read_dir(stage.path(layout::SCRATCH))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    // `INODE-PROCESS-...`: a program that was killed while it made a link.
    for entry in std::fs::read_dir(stage.path(layout::LINKS))? {
        let name = entry?.file_name();
        let process = name.to_str().and_then(|name| name.split('-').nth(1)).unwrap_or_default();
        if !std::path::Path::new("/proc").join(process).exists() {
            std::fs::remove_file(stage.path(layout::LINKS).join(&name))?;
        }
    }
    Ok(())
}

fn stage_limit(settings: &Settings, stage: &Stage) -> io::Result<u64> {
    match settings.stage_limit {
        Some(limit) => Ok(limit),
        None => Ok(Room::look(stage)?.free / 2),
    }
}

/// The program that started us must not be held up by descriptors that we inherited, nor srun by its pipes.
fn close_inherited() {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    if let Ok(null) = null {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    // SAFETY: no other thread runs yet, and nothing of ours holds a descriptor above 2.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } == 0 {
        return;
    }
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .map(|entries| entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
        .unwrap_or_default();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // SAFETY: as above; closing one that is closed already does nothing.
        unsafe { libc::close(descriptor) };
    }
}

/// Blocks what a terminal or a batch system sends to the job: the flusher ends when its work is done, or by SIGKILL.
fn block_signals() -> io::Result<()> {
    // SAFETY: sigset_t is plain data that sigemptyset initialises; only this thread exists and its old mask is
    // unwanted.
    let result = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [
            libc::SIGHUP,
            libc::SIGINT,
            libc::SIGQUIT,
            libc::SIGTERM,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGPIPE,
            libc::SIGALRM,
            libc::SIGTSTP,
            libc::SIGTTIN,
            libc::SIGTTOU,
            libc::SIGXCPU,
            libc::SIGXFSZ,
        ] {
            libc::sigaddset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut())
    };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    lease::block_signals()
}

/// Lifts the limits that the program runs under as far as this process may, and yields how many files it may open.
fn raise_limits() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    for resource in [Resource::Nofile, Resource::As, Resource::Fsize, Resource::Cpu, Resource::Data] {
        let maximum = getrlimit(resource).maximum;
        let _ = setrlimit(resource, Rlimit { current: maximum, maximum });
    }
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |files| files as usize)
}

/// On every processor of the job step, not only on those of the rank that happened to start us.
fn use_all_processors() {
    let mut all = rustix::thread::CpuSet::new();
    for processor in 0..rustix::thread::CpuSet::MAX_CPU {
        all.set(processor);
    }
    let _ = rustix::thread::sched_setaffinity(None, &all);
}

/// Low priority for the calling thread and those that it starts (setpriority(2): on Linux each thread has its own). It is
/// for those that publish. Programs wait for the others, while the job's other ranks may compute on all processors.
fn run_beside_the_job() {
    let _ = rustix::process::nice(10);
}

fn start_log(settings: &Settings) {
    let Some(path) = &settings.log_file else { return };
    let Ok(file) = OpenOptions::new().create(true).append(true).open(path) else { return };
    let level = match settings.log_level {
        Level::Error => simplelog::LevelFilter::Error,
        Level::Warn => simplelog::LevelFilter::Warn,
        Level::Info => simplelog::LevelFilter::Info,
        Level::Debug => simplelog::LevelFilter::Debug,
        Level::Trace => simplelog::LevelFilter::Trace,
    };
    // Fails only when a logger is set already, and none is.
    let _ = simplelog::WriteLogger::init(level, simplelog::Config::default(), file);
}
