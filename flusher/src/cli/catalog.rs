//! `sheaf catalog`: gathers what a restart reads of all aggregates of a store in one file.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use indicatif::HumanBytes;

use super::{Failure, offline};
use crate::store::{Built, Outcome, build_catalog};

/// Gather what a restart reads of all aggregates of a store in one file of it, so that nodes need not open each
///
/// A flusher that starts on a store with many aggregates does so itself. It is a shortcut only: it may be removed.
///
/// Exit code 0: it was made. 2: somebody makes one already, or reclaims, or it could not be done.
#[derive(Args, Debug)]
pub struct CatalogArgs {
    /// The store's directory
    store: PathBuf,
}

/// Makes the catalog; see [`CatalogArgs`].
///
/// # Errors
/// When the store cannot be read or written, or somebody else is at it.
pub fn run(arguments: &CatalogArgs) -> Result<ExitCode, Failure> {
    offline::require(std::slice::from_ref(&arguments.store))?;
    let store = arguments.store.display();
    match build_catalog(&arguments.store)? {
        Outcome::Built(Built { aggregates, left_out, bytes }) => {
            println!("{aggregates} aggregates are in the catalog of {store} ({})", HumanBytes(bytes));
            if left_out != 0 {
                println!("{left_out} are not: they are being written, were until just now, or cannot be read whole");
            }
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Busy => Err(Failure::new(format_args!(
            "somebody else makes a catalog of {store}, or reclaims in it, at the moment; try again later"
        ))),
        Outcome::NoLocks => Err(Failure::new(format_args!("the file system of {store} has no locks: no catalog"))),
    }
}
