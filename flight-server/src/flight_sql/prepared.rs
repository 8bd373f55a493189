//! Prepared statements: JDBC prepares everything it runs, so preparing must take any statement and change nothing.
//!
//! Parameters are bound by position; their column names and types are the client's business, the core casts them. DoPut
//! always answers the handle it was given: a driver that replaced its handle would close another one than it opened.
//!
//! Invariant: an update's dataset_schema is empty and a query's is not, because older drivers tell them apart by nothing
//! else.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow_flight::FlightData;
use arrow_flight::sql::{ActionCreatePreparedStatementRequest, DoPutPreparedStatementResult};
use bytes::Bytes;
use kalamdb_core::{Error, ErrorKind, Prepared, Result, ScalarValue, SqlState, StatementKind};
use prost::Message;

use super::decode::{Decoder, Frames, decode_frames};
use super::encode::encode_schema;
use super::messages::CreatePreparedStatementResult;
use super::service::Inbound;
use super::sessions::Bound;
use super::update::{self, Done};
use super::{Caller, FlightState};

/// Rows of parameters of one update.
const PARAMETER_ROWS_MAX: usize = 1_000_000;
/// Bytes of the parameters of one statement, as they came.
const PARAMETER_BYTES_MAX: usize = 256 << 20;

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

    /// DoPut of parameters for a query, or for an update that comes in a call of its own.
    pub(super) async fn bind(&self, caller: &Caller, handle: Bytes, inbound: &mut Inbound) -> Result<Bytes> {
        // Asked before the data is read, so that an unknown handle is not paid for.
        let entry = self.prepared.get(caller.user(), &handle)?;
        let parameters = Parameters::read(inbound).await?;
        let bound = match entry.prepared.kind() {
            StatementKind::Update => parameters.any_rows()?,
            StatementKind::Query | StatementKind::Subscribe => {
                parameters.one_row(entry.prepared.parameters().len())?
            }
        };
        self.prepared.bind(caller.user(), &handle, bound)?;
        let result = DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) };
        Ok(result.encode_to_vec().into())
    }

    /// DoPut of an update: every row of parameters is one execution, all of them one commit.
    pub(super) async fn update_prepared(
        &self,
        caller: &Caller,
        handle: &[u8],
        inbound: &mut Inbound,
    ) -> Result<Done> {
        let entry = self.prepared.get(caller.user(), handle)?;
        let parameters = Parameters::read(inbound).await?;
        if entry.prepared.parameters().is_empty() {
            return update::run(&entry.prepared, &Bound::default()).await;
        }
        // Nothing was sent with the call: what was bound before counts.
        let bound_before = matches!(parameters.columns, None | Some(0));
        match &*entry.bound {
            Bound { values, frames } if bound_before && (values.is_some() || frames.is_empty()) => {
                update::run(&entry.prepared, &entry.bound).await
            }
            Bound { frames, .. } => {
                let mut rows = if bound_before {
                    rows_of(&decode_frames(frames.clone())?)?
                } else {
                    parameters.rows()?
                };
                if entry.prepared.kind() == StatementKind::Update && rows.len() != 1 {
                    return Ok(entry.prepared.execute_batch(rows).await?.into());
                }
                let bound = Bound { values: rows.pop(), frames: Bytes::new() };
                update::run(&entry.prepared, &bound).await
            }
        }
    }
}

/// The IPC message of a statement's parameters; always there, because drivers take a missing one for "not supported".
fn parameter_schema(prepared: &Prepared) -> Result<Bytes> {
    encode_schema(&Schema::new(prepared.parameters().to_vec()))
}

/// The bound row of a ticket's parameters.
pub(super) fn bound_of_frames(frames: Bytes) -> Result<Bound> {
    let batches = decode_frames(frames.clone())?;
    let values = rows_of(&batches)?.pop();
    Ok(Bound { values, frames })
}

/// Parameters as they came.
struct Parameters {
    /// `None` when no schema came.
    columns: Option<usize>,
    batches: Vec<RecordBatch>,
    frames: Frames,
}

impl Parameters {
    /// Reads the stream to its end: a reply before it confuses drivers.
    async fn read(inbound: &mut Inbound) -> Result<Self> {
        let mut decoder = Decoder::default();
        let mut frames = Frames::default();
        let mut batches: Vec<RecordBatch> = Vec::new();
        let mut rows = 0_usize;
        while let Some(data) = inbound.next().await? {
            let data: FlightData = data;
            if let Some(batch) = decoder.message(&data)? {
                rows = rows.saturating_add(batch.num_rows());
                batches.push(batch);
            }
            frames.push(&data);
            if rows > PARAMETER_ROWS_MAX || frames.len() > PARAMETER_BYTES_MAX {
                return Err(too_many_parameters());
            }
        }
        let columns = decoder.schema().map(|schema| schema.fields().len());
        Ok(Self { columns, batches, frames })
    }

    fn rows(&self) -> Result<Vec<Vec<ScalarValue>>> {
        rows_of(&self.batches)
    }

    /// The rows an update takes: one of them as values, more as they came.
    fn any_rows(self) -> Result<Bound> {
        let mut rows = self.rows()?;
        let values = if rows.len() == 1 { rows.pop() } else { None };
        Ok(Bound { values, frames: self.frames.into_bytes() })
    }

    /// The one row a query takes.
    fn one_row(self, parameters: usize) -> Result<Bound> {
        let mut rows = self.rows()?;
        if rows.len() > 1 {
            return Err(Error::unsupported(format!("a query with {} rows of parameters", rows.len()))
                .hint("bind one row, run the query, bind the next"));
        }
        match rows.pop() {
            Some(values) => Ok(Bound { values: Some(values), frames: self.frames.into_bytes() }),
            None if parameters == 0 => Ok(Bound::default()),
            None => Err(Error::invalid(format!("no parameters were bound, the statement has {parameters}"))),
        }
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
        format!("more than {PARAMETER_ROWS_MAX} rows or {PARAMETER_BYTES_MAX} bytes of parameters"),
    )
    .hint("load many rows with bulk ingest, or in several calls")
}
