//! Prepared statements. JDBC prepares everything it runs, so preparing must accept any statement and change
//! nothing.
//!
//! Parameters are bound by position; the client chooses column names and types, and the core casts them.
//! DoPut always returns the handle it received: a driver that replaced its handle would close the wrong one.
//!
//! Invariant: an update's dataset_schema is empty and a query's is not, because older drivers distinguish
//! them only by this.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow_flight::sql::{ActionCreatePreparedStatementRequest, DoPutPreparedStatementResult};
use bytes::Bytes;
use kalamdb_core::tables::batch_value_bytes;
use kalamdb_core::{Error, ErrorKind, Prepared, Result, ScalarValue, SqlState, StatementKind};
use prost::Message;

use super::decode::{Decoder, Frames, decode_frames};
use super::encode::encode_schema;
use super::messages::CreatePreparedStatementResult;
use super::service::Inbound;
use super::sessions::Bound;
use super::update::{self, Done};
use super::{Caller, FlightState};

/// Maximum parameter rows of one update.
const PARAMETER_ROWS_MAX: usize = 1_000_000;
/// Maximum parameter values of one update, rows times columns; each value takes 64 bytes, however small it
/// is.
const PARAMETER_VALUES_MAX: usize = 4_000_000;
/// Maximum bytes of one statement's parameters, both as received and as values.
const PARAMETER_BYTES_MAX: usize = 128 << 20;

impl FlightState {
    pub(super) async fn create_prepared(
        &self,
        caller: &Caller,
        request: ActionCreatePreparedStatementRequest,
    ) -> Result<CreatePreparedStatementResult> {
        super::actions::no_transaction(request.transaction_id.as_ref())?;
        let prepared = caller.session.prepare(&request.query).await?;
        let is_update = prepared.kind() == StatementKind::Update;
        let dataset_schema = if is_update { Bytes::new() } else { self.result_schema(&prepared)?.ipc() };
        let parameter_schema = parameter_schema(&prepared)?;
        let handle = self.prepared.open(&caller.identity, prepared)?;
        Ok(CreatePreparedStatementResult {
            prepared_statement_handle: Bytes::copy_from_slice(&handle),
            dataset_schema,
            parameter_schema,
            is_update: Some(is_update),
        })
    }

    /// DoPut of parameters for a query, or for an update that runs in a later call.
    pub(super) async fn bind(&self, caller: &Caller, handle: Bytes, inbound: &mut Inbound) -> Result<Bytes> {
        // Checked before the data is read, so that an unknown handle costs nothing.
        let entry = self.prepared.get(caller.user(), &handle)?;
        let parameters = Parameters::read(inbound, &entry.prepared).await?;
        self.prepared.bind(caller.user(), &handle, parameters.into_bound(&entry.prepared)?)?;
        let result = DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) };
        Ok(result.encode_to_vec().into())
    }

    /// DoPut of an update: each row of parameters is one execution; all of them are one commit.
    pub(super) async fn update_prepared(
        &self,
        caller: &Caller,
        handle: &[u8],
        inbound: &mut Inbound,
    ) -> Result<Done> {
        let entry = self.prepared.get(caller.user(), handle)?;
        let parameters = Parameters::read(inbound, &entry.prepared).await?;
        if parameters.were_sent {
            return update::run_rows(&entry.prepared, rows_of(&parameters.batches)?).await;
        }
        // The call carried no parameters: use the ones bound before.
        update::run_bound(&entry.prepared, &entry.bound).await
    }
}

/// Encodes the schema of a statement's parameters; always present, because drivers read a missing one as "not
/// supported".
fn parameter_schema(prepared: &Prepared) -> Result<Bytes> {
    encode_schema(&Schema::new(prepared.parameters().to_vec()))
}

/// Returns the bound row from a ticket's parameters.
pub(super) fn bound_of_frames(frames: Bytes) -> Result<Bound> {
    let values = rows_of_frames(frames.clone())?.pop();
    Ok(Bound::new(values, frames))
}

/// Decodes the rows of stored parameters.
pub(super) fn rows_of_frames(frames: Bytes) -> Result<Vec<Vec<ScalarValue>>> {
    rows_of(&decode_frames(frames)?)
}

/// Parameters as received.
struct Parameters {
    /// Whether there were columns: some drivers send an empty schema for "no parameters".
    were_sent: bool,
    /// The batches that have rows.
    batches: Vec<RecordBatch>,
    frames: Frames,
}

impl Parameters {
    /// Reads the stream to its end, because an earlier reply confuses drivers. Input that does not fit the
    /// statement is an immediate error, before any value is decoded.
    async fn read(inbound: &mut Inbound, statement: &Prepared) -> Result<Self> {
        let mut decoder = Decoder::default();
        let mut limits = ParameterLimits::of(statement);
        let mut read = Self { were_sent: false, batches: Vec::new(), frames: Frames::default() };
        while let Some(data) = inbound.next().await? {
            if inbound.bytes() > PARAMETER_BYTES_MAX {
                return Err(too_many_parameters());
            }
            let batch = decoder.message(&data)?;
            let columns = decoder.schema().map_or(0, |schema| schema.fields().len());
            if columns == 0 {
                continue;
            }
            read.were_sent = true;
            limits.check_columns(columns)?;
            match batch {
                // An empty batch has no parameters.
                Some(batch) if batch.num_rows() == 0 => {}
                Some(batch) => {
                    limits.count(&batch)?;
                    read.frames.push(&data);
                    read.batches.push(batch);
                }
                None => read.frames.push(&data),
            }
        }
        Ok(read)
    }

    /// Converts to what a statement keeps: a single row as values, several rows as received.
    fn into_bound(self, statement: &Prepared) -> Result<Bound> {
        let values = match self.batches.as_slice() {
            [batch] if batch.num_rows() == 1 => rows_of(&self.batches)?.pop(),
            _ => None,
        };
        let expected = statement.parameters().len();
        if values.is_none() && expected > 0 && statement.kind() != StatementKind::Update {
            return Err(Error::invalid(format!("no parameters were bound, the statement has {expected}")));
        }
        Ok(Bound::new(values, self.frames.into_bytes()))
    }
}

/// Limits of the parameters of one statement.
struct ParameterLimits {
    columns: usize,
    rows_max: usize,
    rows: usize,
    bytes: usize,
}

impl ParameterLimits {
    fn of(statement: &Prepared) -> Self {
        let columns = statement.parameters().len();
        let rows_max = match statement.kind() {
            StatementKind::Update => PARAMETER_ROWS_MAX.min(PARAMETER_VALUES_MAX / columns.max(1)),
            StatementKind::Query | StatementKind::Subscribe => 1,
        };
        Self { columns, rows_max, rows: 0, bytes: 0 }
    }

    fn check_columns(&self, columns: usize) -> Result<()> {
        if columns == self.columns {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidArgument,
            SqlState::UNDEFINED_PARAMETER,
            format!("the statement has {} parameters, {columns} values were given", self.columns),
        ))
    }

    fn count(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows = self.rows.saturating_add(batch.num_rows());
        if self.rows > self.rows_max {
            return Err(self.too_many_rows());
        }
        // Count the value behind a dictionary key each time it occurs.
        self.bytes = self.bytes.saturating_add(batch_value_bytes(batch));
        if self.bytes > PARAMETER_BYTES_MAX {
            return Err(too_many_parameters());
        }
        Ok(())
    }

    fn too_many_rows(&self) -> Error {
        if self.rows_max == 1 {
            return Error::unsupported("a query with several rows of parameters")
                .hint("bind one row, run the query, bind the next");
        }
        too_many_parameters()
    }
}

fn rows_of(batches: &[RecordBatch]) -> Result<Vec<Vec<ScalarValue>>> {
    let mut rows = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for batch in batches {
        for row in 0..batch.num_rows() {
            let value_of = |column: &Arc<dyn arrow::array::Array>| ScalarValue::try_from_array(column, row);
            rows.push(batch.columns().iter().map(value_of).collect::<std::result::Result<_, _>>()?);
        }
    }
    Ok(rows)
}

fn too_many_parameters() -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::PROGRAM_LIMIT_EXCEEDED,
        format!(
            "more than {PARAMETER_ROWS_MAX} rows, {PARAMETER_VALUES_MAX} values or {PARAMETER_BYTES_MAX} bytes of parameters"
        ),
    )
    .hint("load many rows with bulk ingest, or in several calls")
}
