//! `sheaf trapped`: the process between `sheaf run --trap` and the program. Nobody else starts it.

use std::ffi::OsString;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use clap::Args;

use super::{Failure, run};
use crate::trap;

/// Runs a program whose path calls this process answers
#[derive(Args, Debug)]
pub struct TrappedArgs {
    /// Descriptor that the program's wait status is written to
    report: RawFd,
    /// The program and its arguments
    #[arg(required = true, last = true)]
    program: Vec<OsString>,
}

/// Runs the program; see [`TrappedArgs`].
///
/// # Errors
/// When it cannot be started.
pub fn run(arguments: TrappedArgs) -> Result<ExitCode, Failure> {
    // SAFETY: the launcher has left this descriptor open for us, and nothing else in this process knows it.
    let report = unsafe { OwnedFd::from_raw_fd(arguments.report) };
    rustix::io::fcntl_setfd(&report, rustix::io::FdFlags::CLOEXEC)?;
    trap::run(&arguments.program, report).map_err(|error| run::cannot_run(&arguments.program, &error))?;
    Ok(ExitCode::SUCCESS)
}
