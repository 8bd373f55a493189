//! One statement of `kalamdb sql`: runs it over Flight SQL and prints its result.
//!
//! Invariant: the handle of a statement is closed even if the statement fails or is interrupted.

use std::io::Write;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::sql::client::{FlightSqlServiceClient, PreparedStatement};
use futures::TryStreamExt;

use super::client::{AuthorizedChannel, explain};
use super::output::Printer;
use super::{Failure, OutputStyle};

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
