//! The command line: `kalamdb serve`, `sql`, `watch`, `restore`, `check`.
//!
//! Results go to stdout, messages for people to stderr. A failed command prints the reason in one line on
//! stderr and exits with 1. Invariant: only `serve`, `restore` and `check` use a data directory; the others
//! read at most the file with root's password.

mod client;
mod maintenance;
mod output;
mod platform;
mod repl;
mod serve;
mod sql;
mod statement;
mod ticker;
mod watch;

use std::error::Error;
use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use tokio::runtime::Runtime;

/// Why a command failed.
type Failure = Box<dyn Error + Send + Sync>;

/// Stack of each runtime thread: planning a long but permitted statement recurses deeply.
const THREAD_STACK_BYTES: usize = 16 << 20;

/// KalamDB: a realtime SQL database whose native wire format is Arrow.
#[derive(Debug, Parser)]
#[command(name = "kalamdb", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts the server.
    Serve(serve::ServeArgs),
    /// Runs SQL: a string, a file, or interactive input.
    Sql(sql::SqlArgs),
    /// Shows a query's result and then every change to it.
    Watch(watch::WatchArgs),
    /// Restores a backup into a new data directory.
    Restore(maintenance::RestoreArgs),
    /// Checks a database that no server has open.
    Check(maintenance::CheckArgs),
}

/// How rows are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// Aligned columns, for people.
    Table,
    /// Comma-separated values with a header line.
    Csv,
    /// One JSON object a line.
    Json,
    /// An Arrow IPC stream.
    Arrow,
}

/// How rows are printed, and whether values are truncated.
#[derive(Clone, Copy, Debug)]
struct OutputStyle {
    format: OutputFormat,
    /// Whether a table shows long values in full.
    full: bool,
}

impl OutputFormat {
    /// Returns the chosen format; the default is readable on a terminal and easy to parse elsewhere.
    fn or_default(chosen: Option<Self>) -> Self {
        use std::io::IsTerminal;
        chosen.unwrap_or(if io::stdout().is_terminal() { Self::Table } else { Self::Csv })
    }
}

/// Runs the program with the process's arguments.
pub fn run() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(args) => serve::run(&args),
        Command::Sql(args) => sql::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Restore(args) => maintenance::restore(&args),
        Command::Check(args) => maintenance::check(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output stopped reading, which is not a failure.
        Err(failure) if is_broken_pipe(failure.as_ref()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("kalamdb: {}", describe(failure.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(failure: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(failure);
    while let Some(current) = cause {
        if current.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
        {
            return true;
        }
        cause = current.source();
    }
    false
}

/// Formats the failure and its causes without repeating any of them.
fn describe(failure: &(dyn Error + 'static)) -> String {
    let mut text = failure.to_string();
    let mut cause = failure.source();
    while let Some(current) = cause {
        let more = current.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = current.source();
    }
    text
}

fn runtime() -> io::Result<Runtime> {
    runtime_of("kalam-worker")
}

fn runtime_of(thread: &str) -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name(thread)
        .thread_stack_size(THREAD_STACK_BYTES)
        .build()
}
