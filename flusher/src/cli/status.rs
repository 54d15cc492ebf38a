//! `sheaf status`: what the flusher of this node is doing.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Value, json};
use sheaf_common::protocol::Kind;

use super::Failure;
use super::environment::{Location, table};
use crate::client::{Client, ClientError};

/// Show what the flusher of this node is doing
#[derive(Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    location: Location,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Shows the state; see [`StatusArgs`].
///
/// # Errors
/// When a flusher runs but does not answer.
pub fn run(arguments: &StatusArgs) -> Result<ExitCode, Failure> {
    let settings = arguments.location.settings()?;
    let stage = settings.existing_stage();
    let mut status = match &stage {
        Some(stage) => ask(stage)?,
        None => None,
    };
    let running = status.is_some();
    let mut idle = || json!({ "store": settings.store.to_string_lossy(), "stage": stage });
    let shown = status.get_or_insert_with(&mut idle);
    shown["running"] = Value::Bool(running);
    if arguments.json {
        println!("{shown}");
        return Ok(ExitCode::SUCCESS);
    }
    match (&stage, running) {
        (_, true) => println!("{}", render(shown)),
        (None, false) if settings.has_spooled() => println!(
            "no flusher runs; what a stage that is gone has left in a further tier is kept. `sheaf drain` publishes it in {}",
            settings.store.display()
        ),
        (None, false) => println!("nothing is staged for {} on this node", settings.store.display()),
        (Some(stage), false) => println!(
            "no flusher runs; the stage {} is kept. `sheaf drain` publishes what is not yet in {}",
            stage.display(),
            settings.store.display()
        ),
    }
    Ok(ExitCode::SUCCESS)
}

/// The flusher's state; `None` when none runs.
fn ask(stage: &Path) -> Result<Option<Value>, Failure> {
    match Client::connect(stage).and_then(|client| client.request(Kind::Status, &[])) {
        Ok(reply) => Ok(Some(serde_json::from_slice(&reply.payload)?)),
        Err(ClientError::NoFlusher(_) | ClientError::Closed(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// One row per field, in words.
fn render(status: &Value) -> String {
    let mut rows = table(&["what", "now"]);
    for (name, value) in status.as_object().into_iter().flatten() {
        let text = match value {
            Value::Null => "-".to_string(),
            Value::String(text) => text.clone(),
            Value::Number(number) if name.ends_with("_bytes") => {
                HumanBytes(number.as_u64().unwrap_or_default()).to_string()
            }
            Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_string(),
            other => other.to_string(),
        };
        rows.add_row([name.replace('_', " "), text]);
    }
    rows.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_shown_in_words() {
        let text = render(&json!({ "published_bytes": 3 << 20, "in_flight": 2, "error": null, "node": "n1" }));
        for part in ["published bytes", "3.00 MiB", "in flight", "n1", "-"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
