//! Asking a flusher to publish, and showing on standard error what it does meanwhile.
//!
//! A flusher that dies while it is asked is replaced: what is staged survives it.

use std::collections::HashSet;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use serde_json::Value;
use sheaf_common::protocol::Kind;

use crate::client::{self, Client, ClientError};
use crate::settings::Settings;

/// How many flushers may die over one request.
const FLUSHERS_MAX: u32 = 3;
/// How often the spinner moves.
const SPINNER_TICK: Duration = Duration::from_millis(200);

/// Sends [`Kind::Wait`] or [`Kind::Drain`] and waits for the end; returns how many files are still open for writing.
/// As a client the flusher is held for as long as this process lives; otherwise only for this request.
///
/// # Errors
/// When no flusher can be had, or it falls silent.
pub fn publish(settings: &Settings, stage: &Path, kind: Kind, as_client: bool) -> Result<u64, ClientError> {
    let mut monitor = Monitor::new(stage);
    let mut flushers = 0;
    loop {
        flushers += 1;
        let result = client::connect_or_start(settings, stage).and_then(|client| {
            if as_client {
                client.request(Kind::Hello, &[])?;
            }
            client.request_with_progress(kind, &[], &mut |_| monitor.look())
        });
        match result {
            Ok(reply) => return Ok(reply.value),
            Err(ClientError::Closed(_)) if flushers < FLUSHERS_MAX => {}
            Err(error) => return Err(error),
        }
    }
}

/// What is shown while a request takes its time.
struct Monitor<'stage> {
    stage: &'stage Path,
    bar: Option<ProgressBar>,
    errors_said: HashSet<String>,
}

impl Monitor<'_> {
    fn new(stage: &Path) -> Monitor<'_> {
        Monitor { stage, bar: None, errors_said: HashSet::new() }
    }

    /// Asks for the flusher's state and shows it: the work on a terminal, every error anywhere and once.
    fn look(&mut self) {
        let reply = Client::connect(self.stage).and_then(|client| client.request(Kind::Status, &[]));
        let Some(status) = reply.ok().and_then(|reply| serde_json::from_slice::<Value>(&reply.payload).ok()) else {
            return;
        };
        if let Some(error) = status["error"].as_str()
            && self.errors_said.insert(error.to_string())
        {
            self.say(&format!("sheaf: {error}"));
        }
        if std::io::stderr().is_terminal() {
            let number = |name: &str| status[name].as_u64().unwrap_or(0);
            self.bar.get_or_insert_with(spinner).set_message(format!(
                "{} published, {} files and operations to go",
                HumanBytes(number("published_bytes")),
                HumanCount(number("waiting"))
            ));
        }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Monitor<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} sheaf: {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(SPINNER_TICK);
    bar
}
