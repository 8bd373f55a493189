//! `kalamdb sql`: runs statements over Flight SQL and prints what they give.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::sql::client::FlightSqlServiceClient;
use clap::Args;
use futures::TryStreamExt;
use kalamdb_core::sql::split_statements;

use super::client::{AuthorizedChannel, ConnectArgs, explain};
use super::output::Printer;
use super::{Failure, OutputFormat, OutputStyle, repl, runtime};

/// Runs SQL: a text with -c, a file with -f, else what is typed or piped in.
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

/// Runs one text of statements, or a conversation.
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
    // The last statement needs no semicolon; a text that cannot be read is for the server to refuse.
    let statements: Vec<String> =
        split.statements.into_iter().chain(Some(split.rest).filter(|rest| !rest.is_empty())).collect();
    if statements.is_empty() {
        return Err("there is no statement to run".into());
    }
    for statement in &statements {
        run_statement(&mut client, statement, style).await?;
    }
    Ok(())
}

/// Runs one statement, prints its rows on stdout, and how much it did and how long it took on stderr.
pub(super) async fn run_statement(
    client: &mut FlightSqlServiceClient<AuthorizedChannel>,
    statement: &str,
    style: OutputStyle,
) -> Result<(), Failure> {
    let started = Instant::now();
    let mut prepared = client.prepare(statement.to_owned(), None).await.map_err(explain)?;
    // An update says that it has no rows by a schema without columns.
    let has_rows = !prepared.dataset_schema().map_err(explain)?.fields().is_empty();
    let summary = if has_rows {
        let info = prepared.execute().await.map_err(explain)?;
        let schema = Arc::new(info.clone().try_decode_schema()?);
        let stdout = std::io::BufWriter::new(std::io::stdout().lock());
        let mut printer = Printer::new(style, &schema, stdout)?;
        for ticket in info.endpoint.into_iter().filter_map(|endpoint| endpoint.ticket) {
            let mut rows = client.do_get(ticket).await.map_err(explain)?;
            while let Some(batch) = rows.try_next().await.map_err(explain)? {
                printer.write(&batch)?;
            }
        }
        count(printer.finish()?, "row")
    } else {
        match u64::try_from(prepared.execute_update().await.map_err(explain)?) {
            Ok(rows) => format!("OK, {} affected", count(rows, "row")),
            Err(_) => "OK".to_owned(),
        }
    };
    let elapsed = started.elapsed();
    // The server forgets the handle by itself when the connection ends.
    let _ = prepared.close().await;
    writeln!(std::io::stderr(), "({summary}, {})", readable(elapsed))?;
    Ok(())
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
