//! Asking a flusher to publish, and showing on standard error what it does meanwhile.
//!
//! A flusher that dies while it is asked is replaced: what is staged survives it.

use std::collections::HashSet;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

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
/// When no flusher can be had, it falls silent, or the store takes nothing for [`Settings::store_timeout`].
pub fn publish(settings: &Settings, stage: &Path, kind: Kind, as_client: bool) -> Result<u64, ClientError> {
    let mut monitor = Monitor::new(settings, stage);
    let mut flushers = 0;
    loop {
        flushers += 1;
        monitor.begin();
        let result = client::connect_or_start(settings, stage).and_then(|client| {
            if as_client {
                client.request(Kind::Hello, &[])?;
            }
            client.request_with_progress(kind, &[], &mut |_| match monitor.look() {
                Err(stuck @ ClientError::Stuck(..)) => Err(stuck),
                // Whether it lives shows by what it says of the request itself.
                _ => Ok(()),
            })
        });
        match result {
            Ok(reply) => {
                tell_contested(stage);
                return Ok(reply.value);
            }
            Err(ClientError::Closed(_)) if flushers < FLUSHERS_MAX => {}
            Err(error) => return Err(error),
        }
    }
}

/// Says which files several nodes wrote to at the same time, as far as the flusher knows, if it is still there.
fn tell_contested(stage: &Path) {
    let status = Client::connect(stage).and_then(|client| client.status());
    if let Some(contested) = status.unwrap_or_default()["contested"].as_str() {
        eprintln!("sheaf: {contested}");
    }
}

/// What keeps a flusher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Programs that capture, or have a file open for writing.
    Programs,
    /// Its own work, if anything.
    Unused,
}

/// What is shown while something takes its time, and how long that may be.
pub(super) struct Monitor<'stage> {
    settings: &'stage Settings,
    stage: &'stage Path,
    /// What the store has taken so far, and since when it is no more than that.
    written_bytes: u64,
    since: Instant,
    bar: Option<ProgressBar>,
    errors_said: HashSet<String>,
}

impl<'stage> Monitor<'stage> {
    /// For the flusher of a stage.
    pub(super) fn new(settings: &'stage Settings, stage: &'stage Path) -> Self {
        Monitor { settings, stage, written_bytes: 0, since: Instant::now(), bar: None, errors_said: HashSet::new() }
    }

    /// A flusher begins, with nothing written; or it may take its time anew.
    pub(super) fn begin(&mut self) {
        (self.written_bytes, self.since) = (0, Instant::now());
    }

    /// Asks for the flusher's state and shows it.
    ///
    /// # Errors
    /// [`ClientError::Stuck`] when the store has taken nothing for too long; else when there is no answer.
    pub(super) fn look(&mut self) -> Result<Use, ClientError> {
        let status = Client::connect(self.stage).and_then(|client| client.status());
        if let Ok(status) = &status {
            self.show(status);
            let written_bytes = status["written_bytes"].as_u64().unwrap_or(0);
            if written_bytes > self.written_bytes {
                (self.written_bytes, self.since) = (written_bytes, Instant::now());
            }
        }
        let timeout = self.settings.store_timeout;
        if self.since.elapsed() >= timeout {
            return Err(ClientError::Stuck(self.settings.store.clone(), timeout));
        }
        let is_used = |name: &str, status: &Value| status[name].as_u64().unwrap_or(0) > 0;
        status.map(|status| match is_used("clients", &status) || is_used("unfinished", &status) {
            true => Use::Programs,
            false => Use::Unused,
        })
    }

    /// The work on a terminal, every error anywhere and once.
    fn show(&mut self, status: &Value) {
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
