//! Encodes results as FlightData: one schema message, then batches split by their encoded size.
//!
//! A table's schema message is memoized in the registry and sent unchanged; only other results' schemas are
//! encoded here. The core announces only types that every driver reads, so no type is changed here; every
//! batch gets exactly the announced schema.
//!
//! Invariant: dataset_schema, FlightInfo.schema, GetSchema and DoGet of one statement have the same schema,
//! including nullability.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_flight::FlightData;
use bytes::Bytes;
use kalamdb_core::schema_registry::encode_schema;
use kalamdb_core::tables::{batch_value_bytes, value_bytes};
use kalamdb_core::{Error, ErrorKind, Result, SqlState};

/// Target size of a message: plain gRPC clients stop at 4 MiB, and small messages let both sides overlap.
const MESSAGE_BYTES_TARGET: usize = 2 << 20;
/// A larger single row is refused: ADBC's driver reads at most 16 MiB.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Length of the marker and the length field before the header of an encapsulated message.
const PREFIX_BYTES: usize = 8;

/// Counts encoded schemas, so that tests can assert there were none.
#[derive(Debug, Default)]
pub(crate) struct SchemaEncodings(AtomicU64);

impl SchemaEncodings {
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A result's schema as clients see it.
#[derive(Clone, Debug)]
pub(crate) struct WireSchema {
    schema: SchemaRef,
    /// The encapsulated IPC message.
    ipc: Bytes,
}

impl WireSchema {
    /// Returns the wire form of a result's schema; `memoized` is the registry's message if the schema is a
    /// table's.
    pub(crate) fn of(schema: &SchemaRef, memoized: Option<&Bytes>, encodings: &SchemaEncodings) -> Self {
        let ipc = memoized.cloned().unwrap_or_else(|| {
            encodings.0.fetch_add(1, Ordering::Relaxed);
            encode_schema(schema)
        });
        Self { schema: Arc::clone(schema), ipc }
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Returns the encapsulated message, for FlightInfo, GetSchema and prepared statements.
    pub(crate) fn ipc(&self) -> Bytes {
        self.ipc.clone()
    }

    /// Returns the first message of a DoGet: the same bytes without encapsulation.
    pub(crate) fn message(&self, app_metadata: Bytes) -> FlightData {
        FlightData { data_header: header_of(&self.ipc), app_metadata, ..FlightData::default() }
    }

    /// Returns `batch` with exactly this schema.
    ///
    /// # Errors
    /// Internal when the batch does not fit, for example a NULL in a column advertised as non-nullable.
    fn stamp(&self, batch: RecordBatch) -> Result<RecordBatch> {
        if Arc::ptr_eq(batch.schema_ref(), &self.schema) {
            return Ok(batch);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), batch.columns().to_vec(), &options)
            .map_err(|error| Error::internal("a batch does not fit its result's schema").source(error))
    }
}

/// Returns the flatbuffer inside an encapsulated message, without a copy.
fn header_of(encapsulated: &Bytes) -> Bytes {
    let length: [u8; 4] =
        encapsulated.get(4..PREFIX_BYTES).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
    let start = PREFIX_BYTES.min(encapsulated.len());
    let end = start.saturating_add(u32::from_le_bytes(length) as usize).min(encapsulated.len());
    encapsulated.slice(start..end)
}

/// Encodes the batches of one DoGet.
pub(crate) struct BatchEncoder {
    schema: WireSchema,
    generator: IpcDataGenerator,
    tracker: DictionaryTracker,
    options: IpcWriteOptions,
    context: IpcWriteContext,
}

impl BatchEncoder {
    pub(crate) fn new(schema: WireSchema) -> Self {
        Self {
            schema,
            generator: IpcDataGenerator::default(),
            tracker: DictionaryTracker::new(false),
            options: IpcWriteOptions::default(),
            context: IpcWriteContext::default(),
        }
    }

    /// Encodes `batch` as one message, or as several if it is large.
    ///
    /// # Errors
    /// 54000 when a single row is too large for clients; the error names the largest column.
    pub(crate) fn encode(&mut self, batch: RecordBatch) -> Result<Vec<FlightData>> {
        let batch = self.schema.stamp(batch)?;
        let bytes = batch_value_bytes(&batch);
        if bytes <= MESSAGE_BYTES_TARGET || batch.num_rows() <= 1 {
            return Ok(vec![self.encode_one(&batch)?]);
        }
        let mut messages = Vec::new();
        // Slices still to encode, the next one last. Rows differ in size, so a slice that is still too large
        // is split.
        let mut pending = split(&batch, bytes.div_ceil(MESSAGE_BYTES_TARGET));
        pending.reverse();
        while let Some(slice) = pending.pop() {
            let bytes = batch_value_bytes(&slice);
            if bytes > 2 * MESSAGE_BYTES_TARGET && slice.num_rows() > 1 {
                pending.extend(split(&slice, 2).into_iter().rev());
                continue;
            }
            messages.push(self.encode_one(&slice)?);
        }
        Ok(messages)
    }

    /// Returns a message without rows that carries `app_metadata`, for clients that read only batches.
    pub(crate) fn encode_empty(&mut self, app_metadata: Bytes) -> Result<FlightData> {
        let batch = RecordBatch::new_empty(Arc::clone(self.schema.schema()));
        let mut message = self.encode_one(&batch)?;
        message.app_metadata = app_metadata;
        Ok(message)
    }

    fn encode_one(&mut self, batch: &RecordBatch) -> Result<FlightData> {
        if batch.num_rows() == 1 && batch_value_bytes(batch) > MESSAGE_BYTES_MAX {
            return Err(row_too_large(batch));
        }
        let (dictionaries, data) = self
            .generator
            .encode(batch, &mut self.tracker, &self.options, &mut self.context)
            .map_err(|error| Error::internal("a batch cannot be encoded").source(error))?;
        if !dictionaries.is_empty() {
            // The core announces no dictionaries.
            return Err(Error::internal("a result has a dictionary"));
        }
        Ok(data.into())
    }
}

/// Splits `batch` into about `parts` slices with equal numbers of rows.
fn split(batch: &RecordBatch, parts: usize) -> Vec<RecordBatch> {
    let rows = batch.num_rows();
    let slice_rows = rows.div_ceil(parts.max(1)).max(1);
    (0..rows).step_by(slice_rows).map(|start| batch.slice(start, slice_rows.min(rows - start))).collect()
}

fn row_too_large(batch: &RecordBatch) -> Error {
    let sizes = batch.columns().iter().map(|column| value_bytes(column));
    let largest = sizes.zip(batch.schema_ref().fields()).max_by_key(|(bytes, _)| *bytes);
    let name = largest.map_or("", |(_, field)| field.name());
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::PROGRAM_LIMIT_EXCEEDED,
        format!("a row is larger than {MESSAGE_BYTES_MAX} bytes, most of it in column \"{name}\""),
    )
    .hint("select less of it, for example with substr()")
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{
        Array, ArrayRef, BooleanArray, FixedSizeListArray, Float32Array, Int64Array, ListArray, MapArray,
        StringArray, StringViewArray, StructArray,
    };
    use arrow::buffer::{NullBuffer, OffsetBuffer};
    use arrow::datatypes::{DataType, Field, Schema};
    use arrow_flight::utils::flight_data_to_batches;
    use proptest::prelude::*;

    fn wire(schema: &SchemaRef) -> WireSchema {
        WireSchema::of(schema, None, &SchemaEncodings::default())
    }

    #[test]
    fn a_batch_has_exactly_the_announced_schema() {
        let announced = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let schema = wire(&announced);
        let column = Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef;
        let batch = RecordBatch::try_from_iter([("other", column)]).unwrap();
        let mut messages = vec![schema.message(Bytes::new())];
        messages.extend(BatchEncoder::new(schema.clone()).encode(batch).unwrap());
        let read = flight_data_to_batches(&messages).unwrap();
        assert_eq!(read[0].schema(), announced);
        assert_eq!(read[0].num_rows(), 3);

        let view = Arc::new(StringViewArray::from(vec!["x"])) as ArrayRef;
        let batch = RecordBatch::try_from_iter([("n", view)]).unwrap();
        assert!(BatchEncoder::new(schema).encode(batch).is_err());
    }

    #[test]
    fn a_memoized_schema_is_sent_as_it_is() {
        let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
        let memoized = encode_schema(&schema);
        let encodings = SchemaEncodings::default();
        let wire = WireSchema::of(&schema, Some(&memoized), &encodings);
        assert_eq!(wire.ipc().as_ptr(), memoized.as_ptr());
        assert_eq!(wire.message(Bytes::new()).data_header.as_ptr(), memoized[PREFIX_BYTES..].as_ptr());
        assert_eq!(encodings.count(), 0);
    }

    #[test]
    fn messages_are_cut_by_their_rows_and_not_by_the_buffers_behind_them() {
        let text = "x".repeat(1_000);
        let values: StringArray = (0..20_000).map(|_| Some(text.as_str())).collect();
        let batch = RecordBatch::try_from_iter([("text", Arc::new(values) as ArrayRef)]).unwrap();
        let mut encoder = BatchEncoder::new(wire(&batch.schema()));

        let messages = encoder.encode(batch.clone()).unwrap();
        assert!((9..=11).contains(&messages.len()), "{}", messages.len());
        assert!(messages.iter().all(|message| message.data_body.len() <= MESSAGE_BYTES_TARGET + 4_096));
        // A slice of ten rows is one small message, whatever the size of its buffers.
        let few = encoder.encode(batch.slice(5_000, 10)).unwrap();
        assert_eq!(few.len(), 1);
        assert!(few[0].data_body.len() < 20_000);
    }

    #[test]
    fn one_enormous_row_is_refused_by_name() {
        let text = "x".repeat(MESSAGE_BYTES_MAX + 1);
        let batch = RecordBatch::try_from_iter([
            ("id", Arc::new(Int64Array::from(vec![1])) as ArrayRef),
            ("story", Arc::new(StringArray::from(vec![text])) as ArrayRef),
        ])
        .unwrap();
        let error = BatchEncoder::new(wire(&batch.schema())).encode(batch).unwrap_err();
        assert!(error.message().contains("\"story\""), "{error}");
    }

    #[test]
    fn a_null_where_none_was_promised_is_an_error_and_not_sent() {
        let promised = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let batch = RecordBatch::try_from_iter_with_nullable([(
            "n",
            Arc::new(Int64Array::from(vec![None])) as ArrayRef,
            true,
        )])
        .unwrap();
        assert!(BatchEncoder::new(wire(&promised)).encode(batch).is_err());
    }

    /// Columns of every shape: flat, with and without NULLs, and nested lists, structs and maps.
    fn nested(rows: usize, lengths: &[usize], nulls: &[bool]) -> RecordBatch {
        let lengths = || lengths.iter().copied().cycle().take(rows);
        let nulls = NullBuffer::from_iter(nulls.iter().copied().cycle().take(rows));
        let elements: usize = lengths().sum();
        let offsets = || OffsetBuffer::from_lengths(lengths());
        let texts = |count: usize| -> ArrayRef {
            Arc::new(StringArray::from_iter_values((0..count).map(|number| "x".repeat(number % 7))))
        };
        let field = |data_type: &DataType| Arc::new(Field::new_list_field(data_type.clone(), true));
        let list: ArrayRef =
            Arc::new(ListArray::new(field(&DataType::Utf8), offsets(), texts(elements), Some(nulls.clone())));
        let structs: ArrayRef = Arc::new(
            StructArray::try_from(vec![
                ("flag", Arc::new(BooleanArray::from(vec![true; rows])) as ArrayRef),
                ("list", Arc::clone(&list)),
            ])
            .unwrap(),
        );
        let keys: ArrayRef = texts(elements);
        let values: ArrayRef = Arc::new(Int64Array::from_iter_values(0..elements as i64));
        let entries = StructArray::from(vec![
            (Arc::new(Field::new("keys", DataType::Utf8, false)), keys),
            (Arc::new(Field::new("values", DataType::Int64, true)), values),
        ]);
        let entries_field = Arc::new(Field::new("entries", entries.data_type().clone(), false));
        let map = MapArray::new(entries_field, offsets(), entries, None, false);
        let floats = Arc::new(Float32Array::from(vec![0.5; rows * 3]));
        let fixed = FixedSizeListArray::new(field(&DataType::Float32), 3, floats, Some(nulls.clone()));
        let outer = ListArray::new(
            field(structs.data_type()),
            OffsetBuffer::from_lengths(std::iter::repeat_n(1, rows)),
            Arc::clone(&structs),
            None,
        );
        let numbers = Int64Array::new((0..rows as i64).collect(), Some(nulls));
        let columns: [(&str, ArrayRef); 7] = [
            ("number", Arc::new(numbers)),
            ("text", texts(rows)),
            ("list", list),
            ("struct", structs),
            ("map", Arc::new(map)),
            ("fixed", Arc::new(fixed)),
            ("outer", Arc::new(outer)),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    proptest! {
        /// The measured size of rows is their size on the wire, except for padding.
        #[test]
        fn rows_take_what_they_are_measured_to_take(
            lengths in prop::collection::vec(0_usize..9, 1..8),
            nulls in prop::collection::vec(any::<bool>(), 1..8),
            rows in 1_usize..60,
            (start, length) in (0_usize..60, 0_usize..60),
        ) {
            let batch = nested(rows, &lengths, &nulls);
            let start = start.min(rows);
            let part = batch.slice(start, length.min(rows - start));
            let measured = batch_value_bytes(&part);
            let encoded = BatchEncoder::new(wire(&batch.schema())).encode_one(&part).unwrap().data_body.len();
            // About 50 buffers, each padded to 64 bytes.
            prop_assert!(measured <= encoded && encoded <= measured + 50 * 64, "{measured} {encoded}");
        }
    }

    #[test]
    fn results_with_lists_go_out_in_few_messages() {
        // 60,000 lists of 100 numbers: each row's slice shares one buffer of 24 MB.
        let lengths = std::iter::repeat_n(100, 60_000);
        let values = Arc::new(Float32Array::from(vec![0.5; 6_000_000]));
        let field = Arc::new(Field::new_list_field(DataType::Float32, true));
        let lists = ListArray::new(field, OffsetBuffer::from_lengths(lengths), values, None);
        let batch = RecordBatch::try_from_iter([("list", Arc::new(lists) as ArrayRef)]).unwrap();
        let mut encoder = BatchEncoder::new(wire(&batch.schema()));
        let messages = encoder.encode(batch.clone()).unwrap();
        assert!((11..=14).contains(&messages.len()), "{}", messages.len());
        assert_eq!(encoder.encode(batch.slice(30_000, 1)).unwrap().len(), 1);
    }
}
