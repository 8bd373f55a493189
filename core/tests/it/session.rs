//! Test helpers for statements: what they change, what they return as text, how they fail.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use kalamdb_core::{Error, Outcome, Params, Session};

/// Runs a statement that must succeed. Returns the number of rows it changed.
pub(crate) async fn run(session: &Session, sql: &str) -> u64 {
    match session.execute(sql, ()).await {
        Ok(Outcome::Affected(affected)) => affected.rows,
        other => panic!("{sql}: {other:?}"),
    }
}

/// Runs a statement that must fail. Returns its error.
pub(crate) async fn fails(session: &Session, sql: &str) -> Error {
    match session.execute(sql, ()).await {
        Err(error) => error,
        Ok(Outcome::Rows(rows)) => match rows.collect().await {
            Err(error) => error,
            Ok(_) => panic!("{sql} did not fail"),
        },
        Ok(other) => panic!("{sql} did not fail: {other:?}"),
    }
}

/// Formats rows as lines, with bars between the columns.
pub(crate) fn text(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let mut lines = Vec::new();
    for batch in batches {
        let columns: Vec<_> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        for row in 0..batch.num_rows() {
            let cells: Vec<_> = columns.iter().map(|column| column.value(row).to_string()).collect();
            lines.push(cells.join("|"));
        }
    }
    lines
}

/// Returns the rows of a query that must succeed, formatted by [`text`].
pub(crate) async fn rows(session: &Session, sql: &str, params: impl Into<Params>) -> Vec<String> {
    let outcome = session.execute(sql, params).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let rows = outcome.rows().unwrap();
    let schema = Arc::clone(&rows.schema);
    let batches = rows.collect().await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    assert!(batches.iter().all(|batch| Arc::ptr_eq(batch.schema_ref(), &schema)), "{sql}: one schema");
    text(&batches)
}
