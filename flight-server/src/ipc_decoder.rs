//! Decodes Arrow IPC from clients: parameters and ingested batches.
//!
//! arrow-ipc panics on some malformed messages and trusts the declared sizes of compressed buffers, so input
//! is checked first: the flatbuffer's fields and types are validated, and compressed buffers and implausible
//! row counts are refused. The rest is decoded under `catch_unwind` with no lock held.
//!
//! Invariant: for any client input, decoding ends in batches or an error, never in a panic or an abort.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc;
use arrow::ipc::convert::fb_to_schema;
use arrow_flight::FlightData;
use bytes::Bytes;
use kalamdb_core::{Error, ErrorKind, Result, SqlState};

/// Maximum rows of one inbound batch. Columns of type Null have no bytes, so the message limit does not bound
/// them.
const BATCH_ROWS_MAX: i64 = 8_388_608;
/// Maximum elements of one inbound column; a list column may have more elements than the batch has rows.
const NODE_LENGTH_MAX: i64 = 1 << 26;
/// Maximum columns of one inbound schema.
const COLUMNS_MAX: usize = 10_000;
/// Maximum nesting depth of lists.
const NESTING_MAX: usize = 4;

/// Decodes the messages of one inbound stream, in order.
#[derive(Default)]
pub(crate) struct Decoder {
    schema: Option<SchemaRef>,
    dictionaries: HashMap<i64, ArrayRef>,
}

impl Decoder {
    /// Returns the stream's schema, once it has arrived.
    pub(crate) fn schema(&self) -> Option<&SchemaRef> {
        self.schema.as_ref()
    }

    /// Decodes one message; returns its batch, if it has one.
    ///
    /// # Errors
    /// Invalid argument for everything but well-formed, uncompressed Arrow IPC in the right order.
    pub(crate) fn message(&mut self, data: &FlightData) -> Result<Option<RecordBatch>> {
        self.ipc_message(&data.data_header, &data.data_body)
    }

    /// Decodes one message from its header and body, as [`Decoder::message`] does.
    pub(crate) fn ipc_message(&mut self, header: &Bytes, body: &Bytes) -> Result<Option<RecordBatch>> {
        if header.is_empty() {
            return if body.is_empty() { Ok(None) } else { Err(malformed("a body without a header")) };
        }
        let header = aligned(header);
        let message =
            ipc::root_as_message(&header).map_err(|_| malformed("the header is not an IPC message"))?;
        match message.header_type() {
            ipc::MessageHeader::NONE => Ok(None),
            ipc::MessageHeader::Schema => self.schema_message(message).map(|()| None),
            ipc::MessageHeader::DictionaryBatch => self.dictionary_message(message, body).map(|()| None),
            ipc::MessageHeader::RecordBatch => self.batch_message(message, body).map(Some),
            _ => Err(malformed("the header has an unknown type")),
        }
    }

    fn schema_message(&mut self, message: ipc::Message<'_>) -> Result<()> {
        if self.schema.is_some() {
            return Err(malformed("a second schema"));
        }
        let schema = message.header_as_schema().ok_or_else(|| malformed("the schema is missing"))?;
        check_schema(schema)?;
        self.schema = Some(Arc::new(guarded(|| Ok(fb_to_schema(schema)))?));
        Ok(())
    }

    fn dictionary_message(&mut self, message: ipc::Message<'_>, body: &Bytes) -> Result<()> {
        let schema = self.schema.as_ref().ok_or_else(|| malformed("a dictionary before the schema"))?;
        let dictionary =
            message.header_as_dictionary_batch().ok_or_else(|| malformed("the dictionary is missing"))?;
        check_batch(dictionary.data().ok_or_else(|| malformed("the dictionary is empty"))?)?;
        let buffer = aligned(body);
        // The map is replaced only as a whole, so a panic leaves the old one unchanged.
        let mut dictionaries = self.dictionaries.clone();
        self.dictionaries = guarded(|| {
            ipc::reader::read_dictionary(&buffer, dictionary, schema, &mut dictionaries, &message.version())?;
            Ok(dictionaries)
        })?;
        Ok(())
    }

    fn batch_message(&self, message: ipc::Message<'_>, body: &Bytes) -> Result<RecordBatch> {
        let schema = self.schema.as_ref().ok_or_else(|| malformed("a batch before the schema"))?;
        let batch = message.header_as_record_batch().ok_or_else(|| malformed("the batch is missing"))?;
        check_batch(batch)?;
        let buffer = aligned(body);
        guarded(|| {
            Ok(ipc::reader::read_record_batch(
                &buffer,
                batch,
                Arc::clone(schema),
                &self.dictionaries,
                None,
                &message.version(),
            )?)
        })
    }
}

/// Decodes the parameters of a live query: an IPC stream of a schema and at most one batch of one row.
///
/// # Errors
/// Invalid argument for anything else.
pub(crate) fn decode_params(ipc_stream: &[u8]) -> Result<RecordBatch> {
    let mut input = Bytes::copy_from_slice(ipc_stream);
    let mut decoder = Decoder::default();
    let mut found: Option<RecordBatch> = None;
    while let Some((header, body)) = next_encapsulated(&mut input)? {
        if let Some(batch) = decoder.ipc_message(&header, &body)? {
            if found.is_some() || batch.num_rows() > 1 {
                return Err(malformed("more than one row of parameters"));
            }
            found = Some(batch);
        }
    }
    match (found, decoder.schema) {
        (Some(batch), _) => Ok(batch),
        (None, Some(schema)) => Ok(RecordBatch::new_empty(schema)),
        (None, None) => Ok(RecordBatch::new_empty(Arc::new(Schema::empty()))),
    }
}

/// Takes one encapsulated message (`0xFFFFFFFF | len i32 | header | body`) from `input`; `None` at the end.
fn next_encapsulated(input: &mut Bytes) -> Result<Option<(Bytes, Bytes)>> {
    let truncated = || malformed("the IPC stream is truncated");
    if input.is_empty() {
        return Ok(None);
    }
    let prefix = input.get(..8).ok_or_else(truncated)?;
    if prefix.get(..4) != Some([0xff; 4].as_slice()) {
        return Err(malformed("the IPC stream has no continuation marker"));
    }
    let len = prefix.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
    let len = usize::try_from(len).map_err(|_| truncated())?;
    if len == 0 {
        return Ok(None);
    }
    if input.len() - 8 < len {
        return Err(truncated());
    }
    let mut header = input.split_to(8 + len);
    let header = header.split_off(8);
    let body_len = {
        let header = aligned(&header);
        let message =
            ipc::root_as_message(&header).map_err(|_| malformed("the header is not an IPC message"))?;
        usize::try_from(message.bodyLength()).map_err(|_| truncated())?
    };
    if input.len() < body_len {
        return Err(truncated());
    }
    Ok(Some((header, input.split_to(body_len))))
}

/// Runs arrow-ipc on checked input and turns the remaining panics into errors.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(malformed("the message does not fit its schema").source(error)),
        Err(_) => Err(malformed("the message cannot be decoded")),
    }
}

/// Copies misaligned bytes: Arrow reads numbers in place, so buffers must be aligned, and bytes from the wire
/// may not be.
fn aligned(bytes: &Bytes) -> Buffer {
    if bytes.as_ptr().addr().is_multiple_of(64) {
        Buffer::from(bytes.clone())
    } else {
        Buffer::from(bytes.as_ref())
    }
}

fn check_schema(schema: ipc::Schema<'_>) -> Result<()> {
    if schema.endianness() != ipc::Endianness::Little {
        return Err(malformed("the schema is big endian"));
    }
    let fields = schema.fields().ok_or_else(|| malformed("the schema has no fields"))?;
    if fields.len() > COLUMNS_MAX {
        return Err(malformed("the schema has too many columns"));
    }
    for field in fields {
        check_field(field, 0)?;
    }
    Ok(())
}

fn check_field(field: ipc::Field<'_>, depth: usize) -> Result<()> {
    if depth > NESTING_MAX {
        return Err(malformed("the schema is nested too deeply"));
    }
    if let Some(dictionary) = field.dictionary() {
        let index = dictionary.indexType().ok_or_else(|| malformed("a dictionary has no index type"))?;
        check_int(index)?;
    }
    let children = field.children().map_or(0, |children| children.len());
    match field.type_type() {
        ipc::Type::Null if depth > 0 => Err(Error::unsupported("a list of Arrow type Null")),
        ipc::Type::Null
        | ipc::Type::Bool
        | ipc::Type::Utf8
        | ipc::Type::LargeUtf8
        | ipc::Type::Utf8View
        | ipc::Type::Binary
        | ipc::Type::LargeBinary
        | ipc::Type::BinaryView => Ok(()),
        ipc::Type::Int => check_int(field.type_as_int().ok_or_else(no_type)?),
        ipc::Type::FloatingPoint => field.type_as_floating_point().map(|_| ()).ok_or_else(no_type),
        ipc::Type::Date => field.type_as_date().map(|_| ()).ok_or_else(no_type),
        ipc::Type::Time => field.type_as_time().map(|_| ()).ok_or_else(no_type),
        ipc::Type::Timestamp => field.type_as_timestamp().map(|_| ()).ok_or_else(no_type),
        ipc::Type::Duration => field.type_as_duration().map(|_| ()).ok_or_else(no_type),
        ipc::Type::Decimal => {
            let decimal = field.type_as_decimal().ok_or_else(no_type)?;
            let sound = (1..=76).contains(&decimal.precision()) && (-76..=76).contains(&decimal.scale());
            sound.then_some(()).ok_or_else(|| malformed("a decimal's precision or scale is out of range"))
        }
        ipc::Type::FixedSizeBinary => {
            let width = field.type_as_fixed_size_binary().ok_or_else(no_type)?.byteWidth();
            (1..=1 << 20)
                .contains(&width)
                .then_some(())
                .ok_or_else(|| malformed("a fixed width is out of range"))
        }
        ipc::Type::FixedSizeList => {
            let size = field.type_as_fixed_size_list().ok_or_else(no_type)?.listSize();
            if !(1..=1 << 16).contains(&size) {
                return Err(malformed("a fixed list size is out of range"));
            }
            check_list(field, children, depth)
        }
        ipc::Type::List | ipc::Type::LargeList => check_list(field, children, depth),
        other => {
            let name = field.name().unwrap_or_default();
            let type_name = other.variant_name().unwrap_or("unknown");
            Err(Error::unsupported(format!("Arrow type {type_name} of column \"{name}\"")))
        }
    }
}

fn check_list(field: ipc::Field<'_>, children: usize, depth: usize) -> Result<()> {
    if children != 1 {
        return Err(malformed("a list must have exactly one child"));
    }
    field.children().into_iter().flatten().try_for_each(|child| check_field(child, depth + 1))
}

fn check_int(int: ipc::Int<'_>) -> Result<()> {
    matches!(int.bitWidth(), 8 | 16 | 32 | 64)
        .then_some(())
        .ok_or_else(|| malformed("an integer's width is unknown"))
}

fn check_batch(batch: ipc::RecordBatch<'_>) -> Result<()> {
    if batch.compression().is_some() {
        return Err(
            Error::unsupported("a compressed IPC body").hint("send batches without LZ4 or ZSTD compression")
        );
    }
    if !(0..=BATCH_ROWS_MAX).contains(&batch.length()) {
        return Err(too_many_rows());
    }
    let nodes = batch.nodes().into_iter().flatten();
    for node in nodes {
        if !(0..=NODE_LENGTH_MAX).contains(&node.length())
            || !(0..=node.length()).contains(&node.null_count())
        {
            return Err(malformed("a column's length is out of range"));
        }
    }
    Ok(())
}

fn too_many_rows() -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::PROGRAM_LIMIT_EXCEEDED,
        format!("a batch has more than {BATCH_ROWS_MAX} rows"),
    )
    .hint("send smaller batches")
}

fn no_type() -> Error {
    malformed("a column's type is missing")
}

/// Returns the error for Arrow data that cannot be read.
pub(crate) fn malformed(what: &str) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        SqlState::DATA_EXCEPTION,
        format!("the Arrow data cannot be read: {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field};
    use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
    use arrow_flight::utils::batches_to_flight_data;
    use proptest::prelude::*;

    fn batch() -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![
            Field::new("0", DataType::Int64, true),
            Field::new("1", DataType::Utf8, true),
        ]));
        let columns: Vec<ArrayRef> =
            vec![Arc::new(Int64Array::from(vec![1])), Arc::new(StringArray::from(vec![Some("a")]))];
        RecordBatch::try_new(schema, columns).unwrap()
    }

    fn messages() -> Vec<FlightData> {
        batches_to_flight_data(&batch().schema(), vec![batch()]).unwrap()
    }

    #[test]
    fn an_ipc_stream_of_one_row_is_parameters() {
        let mut stream = Vec::new();
        let mut writer = StreamWriter::try_new(&mut stream, &batch().schema()).unwrap();
        writer.write(&batch()).unwrap();
        writer.finish().unwrap();
        drop(writer);
        assert_eq!(decode_params(&stream).unwrap(), batch());
        assert_eq!(decode_params(&[]).unwrap().num_columns(), 0);
        for end in 1..stream.len() - 8 {
            // Wherever the stream is cut, decoding fails or yields no row.
            if let Ok(cut) = decode_params(&stream[..end]) {
                assert_eq!(cut.num_rows(), 0, "{end}");
            }
        }
    }

    #[test]
    fn a_compressed_body_is_refused_before_it_is_read() {
        let options =
            IpcWriteOptions::default().try_with_compression(Some(ipc::CompressionType::LZ4_FRAME)).unwrap();
        let mut stream = Vec::new();
        let Ok(mut writer) = StreamWriter::try_new_with_options(&mut stream, &batch().schema(), options)
        else {
            return;
        };
        if writer.write(&batch()).is_err() {
            // The codec is not compiled in, so there is nothing to refuse.
            return;
        }
        writer.finish().unwrap();
        drop(writer);
        let error = decode_params(&stream).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }

    proptest! {
        #[test]
        fn flipped_bytes_never_panic(which in 0usize..2, position: prop::sample::Index, value: u8) {
            let mut messages = messages();
            let message = &mut messages[which];
            let mut header = message.data_header.to_vec();
            let at = position.index(header.len());
            header[at] = value;
            message.data_header = header.into();
            let mut decoder = Decoder::default();
            for message in &messages {
                if decoder.message(message).is_err() {
                    break;
                }
            }
        }

        #[test]
        fn any_header_is_refused_quietly(header: Vec<u8>, body: Vec<u8>) {
            let (data_header, data_body) = (header.into(), body.into());
            let data = FlightData { data_header, data_body, ..Default::default() };
            let _ = Decoder::default().message(&data);
        }
    }
}
