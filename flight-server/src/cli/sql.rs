//! `kalamdb sql`: its arguments, and statements from a string, a file or a pipe.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use arrow_flight::sql::client::FlightSqlServiceClient;
use clap::Args;
use kalamdb_core::sql::split_statements;

use super::client::{AuthorizedChannel, ConnectArgs};
use super::statement::run_statement;
use super::{Failure, OutputFormat, OutputStyle, repl, runtime};

/// Runs SQL: a string with -c, a file with -f, otherwise interactive or piped input.
#[derive(Debug, Args)]
pub(super) struct SqlArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// The statements to run
    #[arg(short = 'c', long = "command", value_name = "SQL", conflicts_with = "file")]
    command: Option<String>,
    /// A file of statements, each ended by a semicolon; stops at the first error
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Output format; the default is table on a terminal, otherwise csv
    #[arg(long, value_enum)]
    format: Option<OutputFormat>,
    /// Shows long values in full; otherwise a table of more than two columns truncates them to 60 characters
    #[arg(long)]
    full: bool,
}

/// Runs one text of statements, or the interactive mode.
pub(super) fn run(args: &SqlArgs) -> Result<(), Failure> {
    let style = OutputStyle { format: OutputFormat::or_default(args.format), full: args.full };
    let text = match (&args.command, &args.file) {
        (Some(text), _) => Some(text.clone()),
        (None, Some(path)) => Some(
            std::fs::read_to_string(path)
                .map_err(|error| format!("cannot read \"{}\": {error}", path.display()))?,
        ),
        (None, None) if std::io::stdin().is_terminal() => None,
        (None, None) => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            Some(text)
        }
    };
    let runtime = runtime()?;
    let client = runtime.block_on(args.connect.connect())?.flight_sql();
    match text {
        Some(text) => runtime.block_on(run_all(client, &text, style)),
        None => repl::run(&runtime, client, style),
    }
}

async fn run_all(
    mut client: FlightSqlServiceClient<AuthorizedChannel>,
    text: &str,
    style: OutputStyle,
) -> Result<(), Failure> {
    let split = split_statements(text);
    // The last statement needs no semicolon; the server refuses text that does not parse.
    let statements: Vec<String> =
        split.statements.into_iter().chain(Some(split.rest).filter(|rest| !rest.is_empty())).collect();
    if statements.is_empty() {
        return Err("there is no statement to run".into());
    }
    for statement in &statements {
        run_statement(&mut client, statement, style, std::future::pending()).await?;
    }
    Ok(())
}
