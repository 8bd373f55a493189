//! The parameters of a statement: read from a DoPut, kept with their statement, and carried by tickets.
//!
//! Parameters are bound by position; the client chooses column names and types, and the core casts them.
//! Tickets carry them as the messages that they came in (all lengths u32 little endian):
//!
//! ```text
//! schema header len | schema header | { batch header len | batch header | batch body len | batch body } ...
//! ```
//!
//! Invariant: the rows, values and bytes of one statement's parameters are limited, and input that does not
//! fit its statement is refused before any value is decoded.

use arrow::array::{ArrayRef, RecordBatch};
use arrow_flight::FlightData;
use bytes::Bytes;
use kalamdb_core::tables::batch_value_bytes;
use kalamdb_core::{Error, ErrorKind, Params, Prepared, Result, ScalarValue, SqlState, StatementKind};

use super::budget::Charge;
use super::inbound::Inbound;
use super::ticket::{get_bytes, put_bytes};
use crate::ipc_decoder::{self, Decoder};

/// Maximum parameter rows of one update.
const PARAMETER_ROWS_MAX: usize = 1_000_000;
/// Maximum parameter values of one update, rows times columns; each value takes 64 bytes, however small it
/// is.
const PARAMETER_VALUES_MAX: usize = 4_000_000;
/// Maximum bytes of one statement's parameters, both as received and as values.
const PARAMETER_BYTES_MAX: usize = 128 << 20;

/// Parameters as received.
pub(super) struct Parameters {
    /// Whether there were columns: some drivers send an empty schema for "no parameters".
    pub(super) were_sent: bool,
    /// The batches that have rows.
    batches: Vec<RecordBatch>,
    messages: ParameterMessages,
}

impl Parameters {
    /// Reads the stream to its end, because an earlier reply confuses drivers. Input that does not fit the
    /// statement is an immediate error, before any value is decoded.
    pub(super) async fn read(inbound: &mut Inbound, statement: &Prepared) -> Result<Self> {
        let mut decoder = Decoder::default();
        let mut limits = ParameterLimits::of(statement);
        let mut read = Self { were_sent: false, batches: Vec::new(), messages: ParameterMessages::default() };
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
                    read.messages.push(&data);
                    read.batches.push(batch);
                }
                None => read.messages.push(&data),
            }
        }
        Ok(read)
    }

    /// Returns the values of all rows.
    pub(super) fn rows(&self) -> Result<Vec<Vec<ScalarValue>>> {
        rows_of(&self.batches)
    }

    /// Converts to what a statement keeps: a single row as values, several rows as received.
    pub(super) fn into_bound(self, statement: &Prepared) -> Result<Bound> {
        let values = match self.batches.as_slice() {
            [batch] if batch.num_rows() == 1 => self.rows()?.pop(),
            _ => None,
        };
        let expected = statement.parameters().len();
        if values.is_none() && expected > 0 && statement.kind() != StatementKind::Update {
            return Err(Error::invalid("the statement's parameters are not bound")
                .hint(format!("bind {expected} parameters first")));
        }
        Ok(Bound::new(values, self.messages.into_bytes()))
    }
}

/// Parameters bound to a prepared statement.
#[derive(Debug, Default)]
pub(crate) struct Bound {
    /// The values, if they are one row.
    values: Option<Vec<ScalarValue>>,
    /// The same row, or several rows, as received.
    messages: Bytes,
    /// The budget charge, for as long as a statement, a ticket or a running query has the parameters.
    _charge: Option<Charge>,
}

impl Bound {
    pub(super) fn new(values: Option<Vec<ScalarValue>>, messages: Bytes) -> Self {
        Self { values, messages, _charge: None }
    }

    /// Reads the one row that a ticket carries.
    pub(super) fn of_messages(messages: Bytes) -> Result<Self> {
        let values = rows_of(&decode_messages(messages.clone())?)?.pop();
        Ok(Self::new(values, messages))
    }

    /// Returns the parameters with the charge for their bytes.
    pub(super) fn charged(self, charge: Charge) -> Self {
        Self { _charge: Some(charge), ..self }
    }

    /// Returns the bytes that the parameters take in memory.
    pub(super) fn bytes(&self) -> usize {
        let values = self.values.iter().flatten().map(ScalarValue::size);
        values.fold(self.messages.len(), usize::saturating_add)
    }

    /// Returns the parameters as received, for tickets. Empty when nothing was bound.
    pub(super) fn messages(&self) -> &Bytes {
        &self.messages
    }

    /// Returns the one row that a query takes.
    pub(super) fn params(&self) -> Params {
        self.values.clone().map_or(Params::None, Params::Positional)
    }

    /// Returns all rows; `None` when nothing was bound, which differs from no rows.
    pub(super) fn rows(&self) -> Result<Option<Vec<Vec<ScalarValue>>>> {
        match &self.values {
            Some(values) => Ok(Some(vec![values.clone()])),
            None if self.messages.is_empty() => Ok(None),
            None => rows_of(&decode_messages(self.messages.clone())?).map(Some),
        }
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
            format!("the statement has {} parameters, but {columns} values were given", self.columns),
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

/// Parameters as received, for a ticket. Empty when nothing was bound.
#[derive(Default)]
struct ParameterMessages {
    messages: Vec<(Bytes, Bytes)>,
}

impl ParameterMessages {
    fn push(&mut self, data: &FlightData) {
        if !data.data_header.is_empty() {
            self.messages.push((data.data_header.clone(), data.data_body.clone()));
        }
    }

    fn into_bytes(self) -> Bytes {
        let parts =
            self.messages.iter().map(|(header, body)| header.len() + body.len() + 2 * size_of::<u32>());
        let mut out = Vec::with_capacity(parts.sum());
        for (header, body) in &self.messages {
            put_bytes(&mut out, header);
            put_bytes(&mut out, body);
        }
        out.into()
    }
}

/// Decodes the bytes of [`ParameterMessages`].
fn decode_messages(mut messages: Bytes) -> Result<Vec<RecordBatch>> {
    let truncated = || ipc_decoder::malformed("the parameters are truncated");
    let mut decoder = Decoder::default();
    let mut batches = Vec::new();
    while !messages.is_empty() {
        let header = get_bytes(&mut messages).ok_or_else(truncated)?;
        let body = get_bytes(&mut messages).ok_or_else(truncated)?;
        batches.extend(decoder.ipc_message(&header, &body)?);
    }
    Ok(batches)
}

fn rows_of(batches: &[RecordBatch]) -> Result<Vec<Vec<ScalarValue>>> {
    let mut rows = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for batch in batches {
        for row in 0..batch.num_rows() {
            let value_of = |column: &ArrayRef| ScalarValue::try_from_array(column, row);
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
            "more than {PARAMETER_ROWS_MAX} rows, {PARAMETER_VALUES_MAX} values or {PARAMETER_BYTES_MAX} \
             bytes of parameters"
        ),
    )
    .hint("load many rows with bulk ingest, or split them into several calls")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};
    use arrow_flight::utils::batches_to_flight_data;

    use super::*;

    #[test]
    fn messages_bring_parameters_back() {
        let batch = RecordBatch::try_from_iter([
            ("0", Arc::new(Int64Array::from(vec![1])) as ArrayRef),
            ("1", Arc::new(StringArray::from(vec![Some("a")])) as ArrayRef),
        ])
        .unwrap();
        let mut parameters = ParameterMessages::default();
        let sent = batches_to_flight_data(&batch.schema(), vec![batch.clone()]).unwrap();
        sent.iter().for_each(|message| parameters.push(message));
        assert_eq!(decode_messages(parameters.into_bytes()).unwrap(), vec![batch]);
        assert!(decode_messages(Bytes::new()).unwrap().is_empty());
    }
}
