//! `sheaf wait`: returns when everything that was complete is published.

use std::process::ExitCode;

use clap::Args;
use sheaf_common::protocol::Kind;

use super::environment::Location;
use super::{Failure, publication};

/// Wait until everything that is complete now is published
#[derive(Args, Debug)]
pub struct WaitArgs {
    #[command(flatten)]
    location: Location,
}

/// Waits; see [`WaitArgs`].
///
/// # Errors
/// When it cannot be published.
pub fn run(arguments: &WaitArgs) -> Result<ExitCode, Failure> {
    let settings = arguments.location.settings()?;
    let Some(stage) = settings.stage_to_serve() else {
        println!("nothing is staged for {} on this node", settings.store.display());
        return Ok(ExitCode::SUCCESS);
    };
    match publication::publish(&settings, &stage, Kind::Wait, false)? {
        0 => println!("everything is published in {}", settings.store.display()),
        open => println!("published in {}, but for {open} files still open for writing", settings.store.display()),
    }
    Ok(ExitCode::SUCCESS)
}
