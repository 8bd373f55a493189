//! `kalamdb sql`: runs statements over Flight SQL and prints their results.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::sql::client::{FlightSqlServiceClient, PreparedStatement};
use clap::Args;
use futures::TryStreamExt;
use kalamdb_core::sql::split_statements;

use super::client::{AuthorizedChannel, ConnectArgs, explain};
use super::output::Printer;
use super::{Failure, OutputFormat, OutputStyle, repl, runtime};

/// Runs SQL: a text with -c, a file with -f, otherwise typed or piped input.
#[derive(Debug, Args)]
pub(super) struct SqlArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// The statements to run
    #[arg(short = 'c', long = "command", value_name = "SQL", conflicts_with = "file")]
    command: Option<String>,
    /// A file of statements, each ended by a semicolon; the first that fails ends the run
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: Option<PathBuf>,
    /// How rows are printed; the default is table on a terminal, else csv
    #[arg(long, value_enum)]
    format: Option<OutputFormat>,
    /// Shows long values whole; else a table of more than two columns cuts them at 60 characters
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

/// Runs one statement; prints its rows on stdout, and its row count and duration on stderr. Ends early with
/// an error once `interrupted` completes.
pub(super) async fn run_statement(
    client: &mut FlightSqlServiceClient<AuthorizedChannel>,
    statement: &str,
    style: OutputStyle,
    interrupted: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let started = Instant::now();
    let mut interrupted = pin!(interrupted);
    let cancelled = || Failure::from("cancelled");
    let mut prepared = tokio::select! {
        prepared = client.prepare(statement.to_owned(), None) => prepared.map_err(explain)?,
        () = &mut interrupted => return Err(cancelled()),
    };
    let ended = tokio::select! {
        ended = run_prepared(client, &mut prepared, style) => ended,
        // Dropping the call cancels the query on the server.
        () = &mut interrupted => Err(cancelled()),
    };
    let elapsed = started.elapsed();
    // In any case, close the handle. If this call does not arrive, the server drops the idle handle later.
    let _ = prepared.close().await;
    writeln!(std::io::stderr(), "({}, {})", ended?, readable(elapsed))?;
    Ok(())
}

/// Returns the row count of a statement as text.
async fn run_prepared(
    client: &mut FlightSqlServiceClient<AuthorizedChannel>,
    prepared: &mut PreparedStatement<AuthorizedChannel>,
    style: OutputStyle,
) -> Result<String, Failure> {
    // The schema of an update has no columns.
    let has_rows = !prepared.dataset_schema().map_err(explain)?.fields().is_empty();
    if !has_rows {
        return Ok(match u64::try_from(prepared.execute_update().await.map_err(explain)?) {
            Ok(rows) => format!("OK, {} affected", count(rows, "row")),
            Err(_) => "OK".to_owned(),
        });
    }
    let info = prepared.execute().await.map_err(explain)?;
    let schema = Arc::new(info.clone().try_decode_schema()?);
    let stdout = std::io::BufWriter::new(std::io::stdout());
    let mut printer = Printer::new(style, &schema, stdout)?;
    for ticket in info.endpoint.into_iter().filter_map(|endpoint| endpoint.ticket) {
        let mut rows = client.do_get(ticket).await.map_err(explain)?;
        while let Some(batch) = rows.try_next().await.map_err(explain)? {
            printer.write(&batch)?;
        }
    }
    Ok(count(printer.finish()?, "row"))
}

fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn readable(elapsed: Duration) -> String {
    match elapsed.as_secs() {
        0 => format!("{:.1} ms", elapsed.as_secs_f64() * 1_000.0),
        _ => format!("{:.2} s", elapsed.as_secs_f64()),
    }
}
