//! `sheaf run`: starts a program under the preloaded library, and publishes what it wrote when it has ended.
//!
//! The program must not notice: same standard streams, same process group, same signals, and its own exit status.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};

use clap::Args;
use sheaf_common::protocol::Kind;

use super::environment::{self, Behaviour, Location};
use super::{Failure, program_file, publication};
use crate::client;
use crate::settings::{OnExit, Settings};

/// Exit code: the program succeeded, but what it wrote could not be published.
pub const NOT_PUBLISHED: u8 = 120;
/// Exit code: Sheaf could not start the program.
pub const NOT_STARTED: u8 = 125;
/// Exit code: the program was found but cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// Exit code: the program was not found.
pub const NOT_FOUND: u8 = 127;

/// Passed on to the program.
const FORWARDED: [libc::c_int; 6] =
    [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// Run a program with its checkpoints captured, and publish them when it has ended
///
/// Returns the program's exit code. Signals that other processes send to `sheaf run` are passed on to the program.
#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    location: Location,
    #[command(flatten)]
    behaviour: Behaviour,
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
    let command = command(&arguments.program, &settings, &library).map_err(not_started)?;
    warn_of_escape(&arguments.program);
    if !environment::is_disabled() {
        greet_flusher(&settings);
    }
    let status = supervise(command, &arguments.program)?;
    let code = exit_code(status);
    let wanted = settings.on_exit == OnExit::Drain && !environment::is_disabled();
    match settings.existing_stage().filter(|_| wanted) {
        Some(stage) => Ok(ExitCode::from(publish(&settings, &stage, code))),
        None => Ok(ExitCode::from(code)),
    }
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

/// Says so when the library cannot be loaded into the program: it runs, but nothing is captured.
fn warn_of_escape(program: &[OsString]) {
    let inspected = program.first().and_then(|name| program_file::find(name)).map(|path| program_file::inspect(&path));
    if let Some(Ok(found)) = inspected
        && let Some(obstacle) = found.obstacle
    {
        eprintln!("sheaf: warning: {} {obstacle}; its files are not captured", found.path.display());
    }
}

/// Where something may have been left by an earlier run, the flusher is wanted before the program starts. Where
/// there is nothing yet, the library starts one when it captures.
fn greet_flusher(settings: &Settings) {
    let Ok(stage) = settings.find_stage() else { return };
    if !stage.exists() && !settings.store.exists() {
        return;
    }
    let greeted = client::connect_or_start(settings, &stage).and_then(|client| client.request(Kind::Hello, &[]));
    if let Err(error) = greeted {
        eprintln!("sheaf: warning: {error}");
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
    let name = program.first().map_or_else(Default::default, |name| name.to_string_lossy());
    let mut child = command.spawn().map_err(|error| {
        let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
        Failure::new(format!("cannot run {name}: {error}")).with_code(code)
    })?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        forward(&child, &mask.wait()?);
    }
}

/// Passes a signal on, unless the terminal has sent it: that has reached the whole process group.
fn forward(child: &Child, signal: &libc::siginfo_t) {
    let sent_by_process = signal.si_code <= 0;
    if signal.si_signo != libc::SIGCHLD && sent_by_process {
        // SAFETY: the child has not been waited for, so its number is still its own.
        unsafe { libc::kill(child.id() as libc::pid_t, signal.si_signo) };
    }
}

/// The signals that are waited for instead of handled, for as long as this lives.
struct BlockedSignals {
    set: libc::sigset_t,
    original: libc::sigset_t,
}

impl BlockedSignals {
    fn new() -> io::Result<BlockedSignals> {
        // SAFETY: signal sets are plain data, initialised by sigemptyset and sigprocmask before they are read. No
        // handler is involved: a parent may have left SIGCHLD ignored, which would hide the program's end.
        unsafe {
            let mut set = std::mem::zeroed();
            let mut original = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in FORWARDED.into_iter().chain([libc::SIGCHLD]) {
                libc::sigaddset(&mut set, signal);
            }
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            match libc::sigprocmask(libc::SIG_BLOCK, &set, &mut original) {
                0 => Ok(BlockedSignals { set, original }),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    fn wait(&self) -> io::Result<libc::siginfo_t> {
        loop {
            // SAFETY: siginfo_t is plain data that the call fills in; the set is valid.
            let (result, information) = unsafe {
                let mut information = std::mem::zeroed::<libc::siginfo_t>();
                (libc::sigwaitinfo(&self.set, &mut information), information)
            };
            match io::Error::last_os_error() {
                _ if result > 0 => return Ok(information),
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            }
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the mask was filled in by sigprocmask.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &self.original, std::ptr::null_mut()) };
    }
}

/// The program's exit code as a shell would say it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Publishes what the program left in the stage; returns the exit code of it all.
fn publish(settings: &Settings, stage: &Path, code: u8) -> u8 {
    match publication::publish(settings, stage, Kind::Drain, true) {
        Ok(0) => code,
        Ok(open) => {
            eprintln!("sheaf: {open} files are still open for writing; they are published when they are closed");
            code
        }
        Err(error) => {
            eprintln!("sheaf: {error}");
            eprintln!("sheaf: what was captured stays in {}; `sheaf drain` publishes it", stage.display());
            if code == 0 { NOT_PUBLISHED } else { code }
        }
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
