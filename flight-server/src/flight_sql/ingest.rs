//! Bulk loading: CommandStatementIngest in append mode.
//!
//! Columns are matched by name, missing ones take their defaults, and one call is one commit. So rows are
//! collected until the end of the stream, and a limit bounds what one call may send.
//!
//! Invariant: when a call returns, all of its rows are in the table or none of them.

use std::pin::pin;

use arrow::array::RecordBatch;
use arrow_flight::sql::{
    CommandStatementIngest, TableDefinitionOptions, TableExistsOption, TableNotExistOption,
};
use kalamdb_core::{Config, Error, ErrorKind, Result, Session, SqlState};

use super::inbound::Inbound;
use super::update::WriteOutcome;
use super::wire::{CATALOG, no_transaction};
use crate::ipc_decoder::Decoder;

/// Appends the stream's rows to a table.
///
/// # Errors
/// 0A000 for modes that create or replace a table; 42P01 and 42501 before any data is read; 54000 for more
/// rows or bytes than one commit takes.
pub(super) async fn ingest(
    session: &Session,
    config: &Config,
    command: CommandStatementIngest,
    inbound: &mut Inbound,
) -> Result<WriteOutcome> {
    check(&command)?;
    // Begun before the data is read, so that forbidden rows cost nothing and the upload can be ended.
    let appending = session.begin_append(command.schema.as_deref(), &command.table)?;
    let mut stopped = pin!(appending.stopped());
    let mut decoder = Decoder::default();
    let mut batches: Vec<RecordBatch> = Vec::new();
    let mut rows = 0_usize;
    loop {
        let data = tokio::select! {
            biased;
            error = &mut stopped => return Err(error),
            data = inbound.next() => data?,
        };
        let Some(data) = data else { break };
        if inbound.bytes() > config.statement_bytes_max {
            return Err(too_large(config.statement_rows_max, config.statement_bytes_max));
        }
        let Some(batch) = decoder.message(&data)? else { continue };
        rows = rows.saturating_add(batch.num_rows());
        if rows > config.statement_rows_max {
            return Err(too_large(config.statement_rows_max, config.statement_bytes_max));
        }
        // A batch without rows carries only columns, and all batches have the same.
        if batch.num_rows() > 0 || batches.is_empty() {
            batches.push(batch);
        }
    }
    Ok(appending.finish(batches).await?.into())
}

fn check(command: &CommandStatementIngest) -> Result<()> {
    no_transaction(command.transaction_id.as_ref())?;
    if command.temporary {
        return Err(Error::unsupported("a temporary table as the target of an ingest"));
    }
    if let Some(catalog) =
        command.catalog.as_deref().filter(|catalog| !catalog.is_empty() && *catalog != CATALOG)
    {
        return Err(Error::new(
            ErrorKind::NotFound,
            SqlState::INVALID_SCHEMA_NAME,
            format!("catalog \"{catalog}\" does not exist"),
        )
        .hint(format!("the only catalog is \"{CATALOG}\"")));
    }
    let options = command.table_definition_options.unwrap_or_default();
    let TableDefinitionOptions { if_not_exist, if_exists } = options;
    let append = if_exists == TableExistsOption::Append as i32;
    if append && if_not_exist == TableNotExistOption::Fail as i32 {
        return Ok(());
    }
    if if_exists == TableExistsOption::Unspecified as i32
        || if_not_exist == TableNotExistOption::Unspecified as i32
    {
        return Err(Error::invalid("the ingest does not say what to do if the table exists or is missing")
            .hint("use append mode"));
    }
    Err(Error::unsupported("an ingest that creates or replaces a table")
        .hint("create the table with CREATE TABLE, then ingest in append mode"))
}

fn too_large(rows_max: usize, bytes_max: usize) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::PROGRAM_LIMIT_EXCEEDED,
        format!("the ingest has more than {rows_max} rows or {bytes_max} bytes"),
    )
    .hint("split it into several calls; each is one commit")
}
