//! Options that stand in for environment variables, and the help that documents these.
//!
//! An option always wins over its variable; nothing else is changed in the environment.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use sheaf_common::configuration::VARIABLES;

use super::Failure;
use crate::settings::{Settings, SettingsError};

/// Columns of a table that is not shown on a terminal.
const PAGE_WIDTH: u16 = 120;

/// Which stage is meant. Without any of these, the environment says.
#[derive(Args, Clone, Debug, Default)]
pub struct Location {
    /// Checkpoint paths to capture, as SHEAF_PATHS
    #[arg(long, value_name = "GLOBS")]
    pub paths: Option<OsString>,
    /// Where captured files live until they are published, as SHEAF_STAGE
    #[arg(long, value_name = "DIRECTORIES")]
    pub stage: Option<OsString>,
    /// Directory of the aggregates, as SHEAF_STORE
    #[arg(long, value_name = "DIRECTORY")]
    pub store: Option<OsString>,
}

/// How programs are captured and flushed. Without any of these, the environment says.
#[derive(Args, Clone, Debug, Default)]
pub struct Behaviour {
    /// Paths that stay untouched, as SHEAF_EXCLUDE
    #[arg(long, value_name = "GLOBS")]
    pub exclude: Option<OsString>,
    /// Size of the stage from which published files are evicted, as SHEAF_STAGE_LIMIT
    #[arg(long, value_name = "SIZE")]
    pub stage_limit: Option<OsString>,
    /// `node`, `shared:M` or `files`: which files the nodes write to, as SHEAF_LAYOUT
    #[arg(long, value_name = "LAYOUT")]
    pub layout: Option<OsString>,
    /// `drain` or `leave`, as SHEAF_ON_EXIT
    #[arg(long, value_name = "ACTION")]
    pub on_exit: Option<OsString>,
    /// Most bytes per second that are written to the store, as SHEAF_BANDWIDTH
    #[arg(long, value_name = "SIZE")]
    pub bandwidth: Option<OsString>,
    /// Seconds that the store may take nothing before it is given up, as SHEAF_STORE_TIMEOUT
    #[arg(long, value_name = "SECONDS")]
    pub store_timeout: Option<OsString>,
    /// Seconds that a program waits for a silent flusher or for room, as SHEAF_TIMEOUT
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<OsString>,
    /// `async`, `fsync` or `close`: which calls wait for the store, as SHEAF_DURABLE
    #[arg(long, value_name = "CALLS")]
    pub durable: Option<OsString>,
    /// `refuse` or `older`, as SHEAF_DAMAGED
    #[arg(long, value_name = "CHOICE")]
    pub damaged: Option<OsString>,
    /// What is seen of a job that lost nodes: `newest`, `complete` or a time, as SHEAF_CUT
    #[arg(long, value_name = "CUT")]
    pub cut: Option<OsString>,
    /// How far the nodes' clocks may be apart, as SHEAF_SKEW_MS
    #[arg(long, value_name = "MILLISECONDS")]
    pub skew_ms: Option<OsString>,
    /// Milliseconds between two words to the store of a node that has nothing to publish, as SHEAF_WATERMARK_MS
    #[arg(long, value_name = "MILLISECONDS")]
    pub watermark_ms: Option<OsString>,
    /// How much is said and where, as SHEAF_LOG
    #[arg(long, value_name = "LEVEL[,FILE]")]
    pub log: Option<OsString>,
}

/// The value of a variable: from the options, else from the environment.
fn lookup(name: &str, location: &Location, behaviour: &Behaviour) -> Option<OsString> {
    let option = match name {
        "SHEAF_PATHS" => &location.paths,
        "SHEAF_STAGE" => &location.stage,
        "SHEAF_STORE" => &location.store,
        "SHEAF_EXCLUDE" => &behaviour.exclude,
        "SHEAF_STAGE_LIMIT" => &behaviour.stage_limit,
        "SHEAF_LAYOUT" => &behaviour.layout,
        "SHEAF_ON_EXIT" => &behaviour.on_exit,
        "SHEAF_BANDWIDTH" => &behaviour.bandwidth,
        "SHEAF_STORE_TIMEOUT" => &behaviour.store_timeout,
        "SHEAF_TIMEOUT" => &behaviour.timeout,
        "SHEAF_DURABLE" => &behaviour.durable,
        "SHEAF_DAMAGED" => &behaviour.damaged,
        "SHEAF_CUT" => &behaviour.cut,
        "SHEAF_SKEW_MS" => &behaviour.skew_ms,
        "SHEAF_WATERMARK_MS" => &behaviour.watermark_ms,
        "SHEAF_LOG" => &behaviour.log,
        _ => &None,
    };
    option.clone().or_else(|| std::env::var_os(name))
}

/// The settings that hold with these options.
///
/// # Errors
/// When a value is refused; see [`Settings::from_environment`].
pub fn settings(location: &Location, behaviour: &Behaviour) -> Result<Settings, SettingsError> {
    Settings::from_lookup(|name| lookup(name, location, behaviour))
}

impl Location {
    /// The settings that hold with these options.
    ///
    /// # Errors
    /// When a value is refused; see [`Settings::from_environment`].
    pub fn settings(&self) -> Result<Settings, SettingsError> {
        settings(self, &Behaviour::default())
    }
}

/// Show the help of a command, or of the environment variables
#[derive(Args, Debug)]
pub struct HelpArgs {
    /// A command, or `env` for the environment variables
    topic: Option<String>,
}

/// Shows what [`HelpArgs`] asks for.
///
/// # Errors
/// When there is no such topic.
pub fn help(arguments: &HelpArgs, mut program: clap::Command) -> Result<ExitCode, Failure> {
    program.build();
    match arguments.topic.as_deref() {
        None => program.print_help()?,
        Some("env") => println!("{}", variables_table()),
        Some(topic) => program
            .find_subcommand_mut(topic)
            .ok_or_else(|| Failure::new(format!("there is no command '{topic}'; `sheaf help` lists them")))?
            .print_help()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn variables_table() -> Table {
    let mut table = table(&["variable", "meaning", "accepts", "when unset"]);
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    for variable in VARIABLES {
        table.add_row([variable.name, variable.meaning, variable.accepts, variable.default]);
    }
    table
}

/// A table that fits the terminal, or a page where there is none.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    if !table.is_tty() {
        table.set_width(PAGE_WIDTH);
    }
    table
}

/// Whether SHEAF_DISABLE tells Sheaf to do nothing.
pub fn is_disabled() -> bool {
    std::env::var_os("SHEAF_DISABLE").as_deref() == Some(OsStr::new("1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variable_but_the_kill_switch_has_an_option() {
        let value = || Some(OsString::from("given"));
        let location = Location { paths: value(), stage: value(), store: value() };
        let behaviour = Behaviour {
            exclude: value(),
            stage_limit: value(),
            layout: value(),
            on_exit: value(),
            bandwidth: value(),
            store_timeout: value(),
            timeout: value(),
            durable: value(),
            damaged: value(),
            cut: value(),
            skew_ms: value(),
            watermark_ms: value(),
            log: value(),
        };
        for variable in VARIABLES.iter().filter(|variable| variable.name != "SHEAF_DISABLE") {
            assert_eq!(lookup(variable.name, &location, &behaviour), value(), "{}", variable.name);
        }
    }

    #[test]
    fn the_table_names_every_variable() {
        let text = variables_table().to_string();
        assert!(VARIABLES.iter().all(|variable| text.contains(variable.name)));
    }
}
