//! `sheaf run`: starts a program under the preloaded library, and publishes what it wrote when it has ended.
//!
//! The program must not notice: same standard streams, same process group, same signals, and its own exit status.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::Value;
use sheaf_common::protocol::Kind;

use super::environment::{self, Behaviour, Location};
use super::{Failure, program_file, publication, report};
use crate::client::{self, Client};
use crate::settings::{OnExit, Settings};
use crate::signals::{self, BlockedSignals};

/// Exit code: the program succeeded, but what it wrote could not be published.
pub const NOT_PUBLISHED: u8 = 120;
/// Exit code: Sheaf could not start the program.
pub const NOT_STARTED: u8 = 125;
/// Exit code: the program was found but cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// Exit code: the program was not found.
pub const NOT_FOUND: u8 = 127;

/// How long a flusher may take to end when everything is published.
const END_LIMIT: Duration = Duration::from_secs(10);

/// When a program is trapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Trap {
    /// When it is a program that no library can be preloaded into.
    Needed,
    /// In any case.
    Always,
}

/// Run a program with its checkpoints captured, and publish them when it has ended
///
/// Returns the program's exit code. Signals that other processes send to `sheaf run` are passed on to the program.
#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    location: Location,
    #[command(flatten)]
    behaviour: Behaviour,
    /// Capture programs that no library can be preloaded into, too: static, Go and musl programs
    ///
    /// Their path calls go through a process of Sheaf's own; what moves data stays native. `needed` does so when the
    /// program's file says that it must be, `always` for every program, as for one that starts such programs.
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "needed")]
    pub(super) trap: Option<Trap>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    pub(super) program: Vec<OsString>,
}

/// Runs the program; see [`RunArgs`].
///
/// # Errors
/// When it cannot be started; the failure carries the exit code.
pub fn run(arguments: RunArgs) -> Result<ExitCode, Failure> {
    let not_started = |failure: Failure| failure.with_code(NOT_STARTED);
    let settings = checked_settings(&arguments).map_err(not_started)?;
    let library = library().map_err(not_started)?;
    let is_trapped = choose_trap(&arguments) && !environment::is_disabled();
    if !environment::is_disabled() {
        greet_flusher(&settings);
    }
    let started = SystemTime::now();
    let status = match is_trapped {
        true => supervise_trapped(&arguments.program, &settings, &library)?,
        false => {
            let command = command(&arguments.program, &settings, &library).map_err(not_started)?;
            supervise(command, &arguments.program)?
        }
    };
    let mut code = exit_code(status);
    if settings.on_exit == OnExit::Drain && !environment::is_disabled() {
        if let Some(stage) = settings.stage_to_serve() {
            match publish(&settings, &stage) {
                Ok(()) => report::say_escapes(&settings, started),
                // A file system that takes nothing may not answer questions either, and these could not be given up.
                Err(NotPublished) if code == 0 => code = NOT_PUBLISHED,
                Err(NotPublished) => {}
            }
        } else {
            report::say_escapes(&settings, started);
        }
    }
    Ok(ExitCode::from(code))
}

fn checked_settings(arguments: &RunArgs) -> Result<Settings, Failure> {
    let settings = environment::settings(&arguments.location, &arguments.behaviour)?;
    if settings.patterns.is_empty() {
        return Err(Failure::new("SHEAF_PATHS is not set: name the checkpoint paths with it or with --paths"));
    }
    settings.find_stage()?;
    Ok(settings)
}

/// The preloaded library that belongs to this program: beside it, or in `lib` beside its directory.
///
/// # Errors
/// Names the places that were looked at.
pub fn library() -> Result<PathBuf, Failure> {
    let program = env::current_exe()?;
    let directory = program.parent().unwrap_or(Path::new("/"));
    let places = [directory.join("libsheaf.so"), directory.join("../lib/libsheaf.so")];
    let found = places.iter().find_map(|place| place.canonicalize().ok()).ok_or_else(|| {
        let [beside, lib] = places.each_ref().map(|place| place.display().to_string());
        Failure::new(format!("the library that captures is neither {beside} nor {lib}; install it there"))
    })?;
    if found.as_os_str().as_bytes().iter().any(|byte| b" :".contains(byte)) {
        let text = format!("{}: a preloaded library's path must have no space and no colon; move it", found.display());
        return Err(Failure::new(text));
    }
    Ok(found)
}

fn command(program: &[OsString], settings: &Settings, library: &Path) -> Result<Command, Failure> {
    let (name, arguments) = program.split_first().ok_or_else(|| Failure::new("no program was named"))?;
    let mut command = Command::new(name);
    command.args(arguments);
    command.envs(settings.variables().iter().map(|(name, value)| (name, value)));
    command.env("LD_PRELOAD", preload_list(library, env::var_os("LD_PRELOAD")));
    Ok(command)
}

/// LD_PRELOAD with our library first, once.
fn preload_list(library: &Path, present: Option<OsString>) -> OsString {
    let mut list = library.as_os_str().to_os_string();
    let present = present.unwrap_or_default();
    let others = present.as_bytes().split(|byte| b" :".contains(byte));
    for other in others.filter(|other| !other.is_empty() && *other != library.as_os_str().as_bytes()) {
        list.push(":");
        list.push(OsStr::from_bytes(other));
    }
    list
}

/// Whether the program is to be trapped. Says so when it will not be captured.
fn choose_trap(arguments: &RunArgs) -> bool {
    let path = arguments.program.first().and_then(|name| program_file::find(name));
    let found = path.and_then(|path| program_file::inspect(&path).ok());
    let Some((path, obstacle)) = found.and_then(|found| Some((found.path, found.obstacle?))) else {
        return arguments.trap == Some(Trap::Always);
    };
    match (arguments.trap, obstacle.can_be_trapped) {
        (Some(_), true) => return true,
        (None, true) => eprintln!(
            "sheaf: warning: {} {obstacle}; its files are not captured: `sheaf run --trap` would",
            path.display()
        ),
        (_, false) => eprintln!("sheaf: warning: {} {obstacle}; its files are not captured", path.display()),
    }
    // What it starts may be another matter. Privileges would be lost, and with them perhaps the program's purpose.
    arguments.trap == Some(Trap::Always) && !obstacle.has_privileges
}

/// Where something may have been left by an earlier run, the flusher is wanted before the program starts. Where
/// there is nothing yet, the library starts one when it captures.
fn greet_flusher(settings: &Settings) {
    let Ok(stage) = settings.find_stage() else { return };
    if !stage.exists() && !settings.store.exists() && !settings.has_spooled() {
        return;
    }
    let was_there = stage.exists();
    let greeted = client::connect_or_start(settings, &stage).and_then(|client| {
        let reply = client.request(Kind::Hello, &[])?;
        if reply.value > 0 {
            tell(&client);
        }
        Ok(client)
    });
    match greeted {
        Err(error) => eprintln!("sheaf: warning: {error}"),
        // Mirrors that an earlier run has left show what other nodes have published since, as soon as this is answered.
        // What it answers concerns the program, if it comes to that.
        Ok(client) if was_there => {
            for pattern in &settings.patterns {
                let _ = client.request(Kind::Populate, sheaf_common::pattern::fixed_prefix(pattern));
            }
        }
        Ok(_) => {}
    }
}

/// There is news of the flusher's, and this process is the first that hears of it.
fn tell(client: &Client) {
    let status = client.status().unwrap_or_default();
    if let Some(hidden) = status["hidden"].as_str() {
        eprintln!("sheaf: {hidden}");
    }
    if let Some(contested) = status["contested"].as_str() {
        eprintln!("sheaf: {contested}");
    }
    if status["stage_ends_with_job"] == Value::Bool(true) {
        let stage = status["stage"].as_str().unwrap_or_default();
        eprintln!("sheaf: the stage {stage} is this job's own and ends with it; what is not published by then is lost");
    }
}

/// Starts the program, passes signals on, and waits for its end.
fn supervise(mut command: Command, program: &[OsString]) -> Result<ExitStatus, Failure> {
    let mask = BlockedSignals::new()?;
    let original = mask.original;
    // SAFETY: between fork and exec the closure only calls sigprocmask, which is async-signal-safe, on a copied value.
    unsafe {
        command.pre_exec(move || match libc::sigprocmask(libc::SIG_SETMASK, &original, std::ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let mut child = command.spawn().map_err(|error| cannot_run(program, &error))?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        signals::forward(child.id() as libc::pid_t, &mask.wait()?);
    }
}

/// Starts the supervisor, which starts the program, and waits for the program's end. The supervisor stays for as long
/// as others are trapped, which the program may have left behind.
fn supervise_trapped(program: &[OsString], settings: &Settings, library: &Path) -> Result<ExitStatus, Failure> {
    let mask = BlockedSignals::new()?;
    let (mut reader, writer) = io::pipe()?;
    let number = writer.as_raw_fd();
    let own: Vec<_> = [env::current_exe()?.into(), "trapped".into(), number.to_string().into(), "--".into()].into();
    let mut command = command(&[&own, program].concat(), settings, library)?;
    let original = mask.original;
    // SAFETY: between fork and exec the closure only calls sigprocmask and fcntl, which are async-signal-safe, on
    // copied values.
    unsafe {
        command.pre_exec(move || {
            let failed = libc::sigprocmask(libc::SIG_SETMASK, &original, std::ptr::null_mut()) != 0
                || libc::fcntl(number, libc::F_SETFD, 0) != 0;
            if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    let mut supervisor = command.spawn()?;
    drop(writer);
    mask.forward_to(supervisor.id() as libc::pid_t);
    let mut status = [0; size_of::<i32>()];
    match reader.read_exact(&mut status) {
        Ok(()) => Ok(ExitStatus::from_raw(i32::from_ne_bytes(status))),
        // It could not start the program, and has said why.
        Err(_) => Ok(supervisor.wait()?),
    }
}

/// What is to be said and returned when the program cannot be started.
pub(super) fn cannot_run(program: &[OsString], error: &io::Error) -> Failure {
    let name = program.first().map_or_else(Default::default, |name| name.to_string_lossy());
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
    Failure::new(format!("cannot run {name}: {error}")).with_code(code)
}

/// The program's exit code as a shell would say it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// The store did not take what was captured, which has been said.
struct NotPublished;

/// Publishes what the program left in the stage.
fn publish(settings: &Settings, stage: &Path) -> Result<(), NotPublished> {
    match publication::publish(settings, stage, Kind::Drain, true) {
        Ok(0) => {
            await_end(stage);
            Ok(())
        }
        Ok(open) => {
            eprintln!("sheaf: {open} files are still open for writing; they are published when they are closed");
            Ok(())
        }
        Err(error) => {
            eprintln!("sheaf: {error}");
            eprintln!("sheaf: what was captured stays in {}; `sheaf drain` publishes it", stage.display());
            Err(NotPublished)
        }
    }
}

/// Whoever starts a program this way may delete the stage as soon as this process has ended: if no other process on the
/// node captures, nobody is to be at work in the stage by then.
fn await_end(stage: &Path) {
    let left = Client::connect(stage).and_then(|client| client.request(Kind::Goodbye, &[]));
    if left.is_ok_and(|reply| reply.value == 0) {
        // A flusher that is still there takes a deleted stage for what it is, too; see `Stage::is_intact`.
        let _ = client::wait_for_end(stage, END_LIMIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_library_comes_first_and_once() {
        let library = Path::new("/opt/lib/libsheaf.so");
        for (present, expected) in [
            (None, "/opt/lib/libsheaf.so"),
            (Some("/a.so /b.so"), "/opt/lib/libsheaf.so:/a.so:/b.so"),
            (Some("/a.so:/opt/lib/libsheaf.so"), "/opt/lib/libsheaf.so:/a.so"),
        ] {
            assert_eq!(preload_list(library, present.map(OsString::from)), expected);
        }
    }

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(libc::SIGTERM)), 128 + 15);
    }

    #[test]
    fn a_program_that_is_not_there_or_not_executable_is_told_apart() {
        let failed = |path: &str| {
            let program = [OsString::from(path)];
            supervise(Command::new(path), &program).unwrap_err()
        };
        assert_eq!(failed("/nowhere-sheaf/program").code, NOT_FOUND);
        assert_eq!(failed("/etc/passwd").code, NOT_EXECUTABLE);
    }
}
