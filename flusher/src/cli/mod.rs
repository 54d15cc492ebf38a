//! The command line of `sheaf`: one file per subcommand, each with its arguments and a `run` function.
//!
//! What is printed on standard output is what was asked for; everything else goes to standard error.

pub mod cat;
pub mod catalog;
pub mod cuts;
pub mod doctor;
pub mod drain;
pub mod environment;
pub mod extract;
mod imports;
pub mod ls;
pub mod merge;
mod offline;
pub mod program_file;
pub mod prune;
pub mod publication;
pub mod report;
pub mod run;
pub mod status;
mod trapped;
pub mod verify;
pub mod wait;

use std::fmt;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::daemon;
use crate::settings::Settings;

/// Exit code of a command that did its work and found something wrong.
pub const FOUND_A_PROBLEM: u8 = 1;
/// Exit code of a command that was used wrongly or could not do its work.
pub const COULD_NOT: u8 = 2;

const EXIT_CODES: &str = "\
Exit codes:
  0        done, and all is well
  1        done, and a problem was found (verify: damage; doctor: something that must be mended;
           report: files that were not captured)
  2        used wrongly, or it could not be done
  `sheaf run` returns the exit code of the program, 128+N when signal N killed it, or
  120      the program succeeded, but what it wrote could not be published: it stays staged
  125      Sheaf could not start the program
  126      the program was found but cannot be executed
  127      the program was not found

`sheaf help env` lists the environment variables.";

/// Why a command could not do its work: a line for people, without the program's name in front.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// A failure with exit code 2.
    pub fn new(message: impl fmt::Display) -> Failure {
        Failure { message: message.to_string(), code: COULD_NOT }
    }

    /// The same failure with another exit code.
    pub fn with_code(self, code: u8) -> Failure {
        Failure { code, ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

// `Failure` itself is no `Error`, so that every error turns into one with `?`.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::new(error)
    }
}

/// Captures checkpoints on node-local storage and writes them in the background, one tar file per node.
#[derive(Debug, Parser)]
#[command(name = "sheaf", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArgs>),
    Ls(ls::LsArgs),
    Cat(cat::CatArgs),
    Extract(extract::ExtractArgs),
    Merge(merge::MergeArgs),
    Verify(verify::VerifyArgs),
    Cuts(cuts::CutsArgs),
    Catalog(catalog::CatalogArgs),
    Prune(prune::PruneArgs),
    Status(status::StatusArgs),
    Wait(wait::WaitArgs),
    Drain(drain::DrainArgs),
    Report(report::ReportArgs),
    Doctor(doctor::DoctorArgs),
    Help(environment::HelpArgs),
    /// Serves the stage; started by whoever captures first.
    #[command(hide = true)]
    Flusher,
    #[command(hide = true)]
    Trapped(trapped::TrappedArgs),
}

/// Runs the command that the command line asks for.
pub fn main() -> ExitCode {
    restore_broken_pipe();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse_usage(&error),
    };
    let result = match arguments.command {
        Command::Run(arguments) => run::run(*arguments),
        Command::Ls(arguments) => ls::run(arguments),
        Command::Cat(arguments) => cat::run(arguments),
        Command::Extract(arguments) => extract::run(arguments),
        Command::Merge(arguments) => merge::run(arguments),
        Command::Verify(arguments) => verify::run(arguments),
        Command::Cuts(arguments) => cuts::run(&arguments),
        Command::Catalog(arguments) => catalog::run(&arguments),
        Command::Prune(arguments) => prune::run(arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Wait(arguments) => wait::run(&arguments),
        Command::Drain(arguments) => drain::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Help(arguments) => environment::help(&arguments, Arguments::command()),
        Command::Trapped(arguments) => trapped::run(arguments),
        Command::Flusher => Settings::from_environment().map(daemon::run).map_err(Failure::from),
    };
    result.unwrap_or_else(|failure| {
        eprintln!("sheaf: {failure}");
        ExitCode::from(failure.code)
    })
}

/// Shows what clap has to say. Under `sheaf run`, code 2 would look like the program's own.
fn refuse_usage(error: &clap::Error) -> ExitCode {
    // Nobody is left to be told when even this cannot be written.
    let _ = error.print();
    let runs = std::env::args_os().nth(1).is_some_and(|word| word == "run");
    match (error.use_stderr(), runs) {
        (false, _) => ExitCode::SUCCESS,
        (true, true) => ExitCode::from(run::NOT_STARTED),
        (true, false) => ExitCode::from(COULD_NOT),
    }
}

/// A reader that goes away ends us quietly, as with every other tool; Rust programs start with SIGPIPE ignored.
fn restore_broken_pipe() {
    // SAFETY: no other thread runs yet, and the default disposition runs no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_program_and_its_options_are_not_taken_for_ours() {
        for words in [&["sheaf", "run", "--paths=/a/**", "--", "app", "--json"][..], &["sheaf", "run", "app", "--json"]]
        {
            let Command::Run(arguments) = Arguments::try_parse_from(words).unwrap().command else {
                panic!("{words:?}")
            };
            assert_eq!(arguments.program, ["app", "--json"]);
        }
        assert!(Arguments::try_parse_from(["sheaf", "run"]).is_err());
    }
}
