//! `sheaf drain`: publishes a stage, also one that a dead job left, and returns when its flusher has ended.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use sheaf_common::protocol::Kind;

use super::Failure;
use super::environment::Location;
use super::publication::{self, Monitor, Use};
use crate::client::{self, ClientError};
use crate::settings::Settings;

/// How often it is looked whether a flusher lives, and what it waits for.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a flusher that listens no more may take to seal its aggregate and end.
const LEAVE_LIMIT: Duration = Duration::from_secs(60);

/// Publish everything and wait until the flusher has ended; for a dead job's stage, too
#[derive(Args, Debug)]
pub struct DrainArgs {
    #[command(flatten)]
    location: Location,
}

/// Drains; see [`DrainArgs`].
///
/// # Errors
/// When it cannot be published, or the flusher does not end.
pub fn run(arguments: &DrainArgs) -> Result<ExitCode, Failure> {
    let settings = arguments.location.settings()?;
    let Some(stage) = settings.stage_to_serve() else {
        println!("nothing is staged for {} on this node", settings.store.display());
        return Ok(ExitCode::SUCCESS);
    };
    match publication::publish(&settings, &stage, Kind::Drain, false) {
        Ok(_) => until_gone(&settings, &stage)?,
        Err(ClientError::Refused(_, rustix::io::Errno::IO)) => {
            until_gone(&settings, &stage)?;
            return Err(Failure::new(format!(
                "files in the stage {} or in a further tier cannot be read and stay there; the rest is published. `sheaf \
                 drain` tries again; what is kept as *.damaged can be given to `sheaf extract --salvage`",
                stage.display()
            )));
        }
        Err(error) => return Err(error.into()),
    }
    println!("everything is published in {}", settings.store.display());
    Ok(ExitCode::SUCCESS)
}

/// Waits for the end of a flusher that has been told to drain. It stays for as long as its programs live; if there are
/// none, [`Settings::store_timeout`] bounds the time in which the store takes nothing.
fn until_gone(settings: &Settings, stage: &Path) -> Result<(), Failure> {
    let mut monitor = Monitor::new(settings, stage);
    let mut said = false;
    while !client::wait_for_end(stage, LOOK_INTERVAL)? {
        match monitor.look() {
            Ok(Use::Programs) => {
                if !std::mem::replace(&mut said, true) {
                    eprintln!("sheaf: everything is published; waiting for programs that may still capture");
                }
                monitor.begin();
            }
            Ok(Use::Unused) => {}
            Err(ClientError::NoFlusher(_) | ClientError::Closed(_)) => {
                if client::wait_for_end(stage, LEAVE_LIMIT)? {
                    return Ok(());
                }
                let limit = LEAVE_LIMIT.as_secs();
                return Err(Failure::new(format!("the flusher of {} does not end within {limit} s", stage.display())));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
