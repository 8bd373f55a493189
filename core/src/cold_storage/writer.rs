//! Writes rows into a segment: Parquet, sorted by row key, with pages of at most [`BLOCK_ROWS`] rows.
//!
//! ```text
//! footer, schema: each column has a field id (PARQUET:field_id), by which readers find it
//!   1, 2, ...        a column of the table: its ColumnId, which is never reused
//!   2000000001       _seq
//!   2000000002       _user_id
//!   2000000003       _row_id
//! footer, key-value metadata
//!   kalamdb:format   "1"
//!   kalamdb:fences   base64 of the keys of rows 0, 2048, 4096, ...: each as length u32 LE, then its bytes
//! ```
//!
//! For the manifest, the writer also returns the checksums of the blocks and a filter over all row keys.
//!
//! Invariant: a written segment is not part of the database until the commit that adds it.

use std::io::{self, Write};

use arrow::record_batch::RecordBatch;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::bloom_filter::Sbbf;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::key_index::KeyIndex;
use super::layout::ReadSchema;
use super::object_storage::{ObjectStorage, Sink};
use super::segment::{BLOCK_ROWS, CHECKSUM_BLOCK_BYTES};
use crate::error::{Error, ErrorKind, Result, SqlState};

pub(super) const FORMAT_KEY: &str = "kalamdb:format";
pub(super) const FORMAT: &str = "1";
pub(super) const FENCES_KEY: &str = "kalamdb:fences";
/// Rows of a row group, which one thread reads at a time.
const ROW_GROUP_ROWS: usize = 128 << 10;
/// A row group ends at this many encoded bytes, which stay in memory until then.
const ROW_GROUP_BYTES: usize = 64 << 20;
/// A row group also ends at this many bytes before encoding: a reader may have to hold them all.
const ROW_GROUP_RAW_BYTES: usize = 256 << 20;
/// A column with a larger dictionary is written plain: reading one row would read the whole dictionary.
const DICTIONARY_BYTES: usize = 16 << 10;
/// The rate at which the key filter accepts an absent key; each such key costs a page read.
const FILTER_FALSE_POSITIVES: f64 = 0.001;

/// Writes one segment.
pub struct SegmentWriter {
    arrow: ArrowWriter<ChecksumSink>,
    keys: KeyIndex,
    /// Bytes in the current row group before encoding.
    group_bytes: usize,
}

/// A written segment that is not on stable storage yet.
pub struct WrittenSegment {
    sink: Sink,
    /// The length of the object.
    pub bytes: u64,
    /// As [`super::Segment::checksums`].
    pub checksums: Vec<u8>,
    /// The keys of the rows, by position.
    pub keys: KeyIndex,
    /// The bits of a split block Bloom filter over the keys.
    pub filter: Bytes,
}

impl WrittenSegment {
    /// Brings the segment to stable storage as the object `path`.
    ///
    /// # Errors
    /// 58030 on failure; the object then does not exist, or no commit names it.
    pub async fn publish(&mut self, storage: &ObjectStorage, path: &str) -> Result<()> {
        storage.publish(path, std::mem::replace(&mut self.sink, Sink::Memory(Vec::new()))).await
    }
}

impl SegmentWriter {
    /// Returns a writer for rows with these columns; [`super::ObjectStorage::compression`] gives the
    /// compression.
    ///
    /// # Errors
    /// XX000 when Parquet lacks a type of the schema.
    pub fn new(sink: Sink, columns: &ReadSchema, compression: Compression) -> Result<Self> {
        let schema = columns.file_schema();
        let block_rows = BLOCK_ROWS as usize;
        let mut properties = WriterProperties::builder()
            .set_created_by(concat!("kalamdb ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_compression(compression)
            .set_dictionary_page_size_limit(DICTIONARY_BYTES)
            .set_data_page_row_count_limit(block_rows)
            .set_write_batch_size(block_rows / 2)
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_max_row_group_bytes(Some(ROW_GROUP_BYTES));
        for field in schema.fields().iter().filter(|field| field.data_type().is_floating()) {
            // Parquet's bounds omit NaN, SQL's largest number: a filter would skip its rows.
            let column = ColumnPath::from(field.name().as_str());
            properties = properties.set_column_statistics_enabled(column, EnabledStatistics::None);
        }
        let properties = Some(properties.build());
        let arrow = ArrowWriter::try_new(ChecksumSink::new(sink), schema, properties).map_err(unwritable)?;
        Ok(Self { arrow, keys: KeyIndex::default(), group_bytes: 0 })
    }

    /// Adds the rows of `batch` with their `keys`, each greater than all before.
    ///
    /// # Errors
    /// 58030 when the bytes cannot be written.
    pub fn push(&mut self, batch: &RecordBatch, keys: &[Bytes]) -> Result<()> {
        if batch.num_rows() != keys.len() {
            return Err(Error::internal("a segment needs one key per row"));
        }
        self.keys.extend(keys);
        self.arrow.write(batch).map_err(unwritable)?;
        self.group_bytes += batch.get_array_memory_size();
        if self.group_bytes >= ROW_GROUP_RAW_BYTES {
            self.group_bytes = 0;
            self.arrow.flush().map_err(unwritable)?;
        }
        Ok(())
    }

    /// Returns the number of rows so far.
    pub fn rows(&self) -> usize {
        self.keys.len()
    }

    /// Returns the approximate number of bytes so far.
    pub fn bytes(&self) -> usize {
        self.arrow.bytes_written() + self.arrow.in_progress_size()
    }

    /// Writes the rest of the segment.
    ///
    /// # Errors
    /// As [`SegmentWriter::push`].
    pub fn finish(mut self) -> Result<WrittenSegment> {
        self.arrow.append_key_value_metadata(KeyValue::new(FORMAT_KEY.to_owned(), FORMAT.to_owned()));
        self.arrow.append_key_value_metadata(KeyValue::new(FENCES_KEY.to_owned(), fences(&self.keys)?));
        let sink = self.arrow.into_inner().map_err(unwritable)?;
        let (sink, bytes, checksums) = sink.finish().map_err(|error| unwritable(error.into()))?;
        let mut filter =
            Sbbf::new_with_ndv_fpp(self.keys.len() as u64, FILTER_FALSE_POSITIVES).map_err(unwritable)?;
        self.keys.iter().for_each(|key| filter.insert(key));
        let mut bits = Vec::new();
        filter.write_bitset(&mut bits).map_err(unwritable)?;
        Ok(WrittenSegment { sink, bytes, checksums, keys: self.keys, filter: bits.into() })
    }
}

fn fences(keys: &KeyIndex) -> Result<String> {
    let mut bytes = Vec::new();
    for position in (0..keys.len()).step_by(BLOCK_ROWS as usize) {
        let key = keys.get(position).unwrap_or_default();
        let length =
            u32::try_from(key.len()).map_err(|_| Error::internal("a row key is longer than 4 GiB"))?;
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(key);
    }
    Ok(STANDARD.encode(bytes))
}

/// Returns the keys of [`FENCES_KEY`]; `None` when they are damaged.
pub(super) fn read_fences(text: &str) -> Option<KeyIndex> {
    let bytes = Bytes::from(STANDARD.decode(text).ok()?);
    let mut fences = KeyIndex::default();
    let mut at = 0_usize;
    while at < bytes.len() {
        let length = usize::try_from(u32::from_le_bytes(*bytes.get(at..)?.first_chunk::<4>()?)).ok()?;
        let (start, end) = (at + 4, (at + 4).checked_add(length)?);
        if end > bytes.len() {
            return None;
        }
        fences.extend([&bytes.slice(start..end)]);
        at = end;
    }
    Some(fences)
}

fn unwritable(error: ParquetError) -> Error {
    Error::new(ErrorKind::Unavailable, SqlState::IO_ERROR, "a segment cannot be written")
        .hint("check the free space and the permissions of the segments' folder")
        .source(error)
}

/// Counts the written bytes and computes their checksums.
struct ChecksumSink {
    sink: Sink,
    bytes: u64,
    block: crc32fast::Hasher,
    checksums: Vec<u8>,
}

impl ChecksumSink {
    fn new(sink: Sink) -> Self {
        Self { sink, bytes: 0, block: crc32fast::Hasher::new(), checksums: Vec::new() }
    }

    fn end_block(&mut self) {
        let hasher = std::mem::take(&mut self.block);
        self.checksums.extend_from_slice(&hasher.finalize().to_le_bytes());
    }

    fn finish(mut self) -> io::Result<(Sink, u64, Vec<u8>)> {
        self.sink.flush()?;
        if !self.bytes.is_multiple_of(CHECKSUM_BLOCK_BYTES) {
            self.end_block();
        }
        Ok((self.sink, self.bytes, self.checksums))
    }
}

impl Write for ChecksumSink {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.sink.write(buffer)?;
        let mut rest = buffer.get(..written).unwrap_or_default();
        while !rest.is_empty() {
            let room = CHECKSUM_BLOCK_BYTES - self.bytes % CHECKSUM_BLOCK_BYTES;
            let (piece, after) = rest.split_at(rest.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            self.block.update(piece);
            self.bytes += piece.len() as u64;
            if self.bytes.is_multiple_of(CHECKSUM_BLOCK_BYTES) {
                self.end_block();
            }
            rest = after;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, FixedSizeBinaryArray, Int64Array, StringArray};
    use parquet::file::metadata::ParquetMetaDataReader;

    use super::*;
    use crate::cold_storage::{COLUMN_ID_ROW, COLUMN_ID_SEQ, COLUMN_ID_USER, ReadColumn};
    use crate::ids::ColumnId;

    #[test]
    fn the_field_ids_are_frozen() {
        let row_ids = FixedSizeBinaryArray::try_from(vec![&[0_u8; 12]]).unwrap();
        let columns: [(&str, ArrayRef, ColumnId); 5] = [
            ("body", Arc::new(StringArray::from(vec!["x"])), ColumnId(7)),
            ("n", Arc::new(Int64Array::from(vec![1])), ColumnId(3)),
            ("_seq", Arc::new(Int64Array::from(vec![9])), COLUMN_ID_SEQ),
            ("_user_id", Arc::new(Int64Array::from(vec![2])), COLUMN_ID_USER),
            ("_row_id", Arc::new(row_ids), COLUMN_ID_ROW),
        ];
        let ids = columns.iter().map(|(_, _, id)| ReadColumn { id: *id, absent: None }).collect();
        let batch = RecordBatch::try_from_iter(columns.map(|(name, array, _)| (name, array))).unwrap();
        let schema = ReadSchema::new(batch.schema(), ids).unwrap();
        let sink = Sink::Memory(Vec::new());
        let mut writer = SegmentWriter::new(sink, &schema, Compression::UNCOMPRESSED).unwrap();
        writer.push(&batch, &[Bytes::from_static(b"k")]).unwrap();
        let Sink::Memory(bytes) = writer.finish().unwrap().sink else { panic!("the sink is memory") };
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&Bytes::from(bytes)).unwrap();
        let fields = metadata.file_metadata().schema_descr().root_schema().get_fields();
        let ids: Vec<(&str, i32)> =
            fields.iter().map(|field| (field.name(), field.get_basic_info().id())).collect();
        let expected = [
            ("body", 7),
            ("n", 3),
            ("_seq", 2_000_000_001),
            ("_user_id", 2_000_000_002),
            ("_row_id", 2_000_000_003),
        ];
        assert_eq!(ids, expected);
    }

    #[test]
    fn fences_come_back() {
        let keys: Vec<Bytes> = (0..5_000_u32).map(|key| Bytes::from(key.to_be_bytes().to_vec())).collect();
        let mut index = KeyIndex::default();
        index.extend(&keys);
        let text = fences(&index).unwrap();
        let read = read_fences(&text).unwrap();
        let expected: Vec<&[u8]> = keys.iter().step_by(2_048).map(|key| &**key).collect();
        assert_eq!(read.iter().collect::<Vec<_>>(), expected);
        assert!(read_fences(&STANDARD.encode([9, 0, 0, 0, 1])).is_none());
    }

    #[test]
    fn the_fences_are_frozen() {
        let mut index = KeyIndex::default();
        index.extend(&[Bytes::from_static(&[0, 1]), Bytes::from_static(&[0, 2])]);
        // Of each 2,048 rows, the key of the first: its length, 2, as u32 LE, then 0x00 0x01.
        assert_eq!(fences(&index).unwrap(), "AgAAAAAB");
        assert_eq!(read_fences("AgAAAAAB").unwrap().iter().collect::<Vec<_>>(), [&[0_u8, 1]]);
    }

    #[test]
    fn every_block_has_its_checksum() {
        let data: Vec<u8> = (0..200_000_u32).map(|number| (number % 251) as u8).collect();
        let mut sink = ChecksumSink::new(Sink::Memory(Vec::new()));
        data.chunks(777).for_each(|piece| sink.write_all(piece).unwrap());
        let (_, bytes, checksums) = sink.finish().unwrap();
        assert_eq!(bytes, 200_000);
        let expected: Vec<u8> =
            data.chunks(64 << 10).flat_map(|chunk| crc32fast::hash(chunk).to_le_bytes()).collect();
        assert_eq!(checksums, expected);
    }
}
