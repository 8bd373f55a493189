//! Tests of open segments: those with wrong columns are refused, older ones show the right rows, the cache
//! knows their size, and nobody waits for another who loads them.

use std::task::Poll;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use datafusion::common::ScalarValue;
use parquet::basic::Compression;

use super::super::segment::BLOCK_ROWS;
use super::*;
use crate::cold_storage::{
    AbsentColumn, COLUMN_ID_SEQ, ColdChange, Manifest, NewSegment, Place, ReadColumn, SegmentKeys,
    SegmentWriter, put_mark, selection,
};
use crate::error::SqlState;
use crate::ids::{ColumnId, SchemaVersion, ScopeId, Seq};
use crate::storage::keys::KeyEncoder;
use crate::storage::{KeyRange, RocksStorage, StorageBackend, StorageOptions, WriteBatch};
use crate::types::ColumnType;

const TABLE: TableId = TableId(1_000);
const ROWS: i64 = 5_000;

/// A segment with the keys 0 to `ROWS` - 1.
struct Written {
    storage: RocksStorage,
    manifest: Manifest,
    segment: Arc<Segment>,
}

/// Writes a segment of a table version, whatever its columns are, in memory.
async fn written(version: u32, columns: Vec<(&str, ColumnId, ArrayRef)>) -> Written {
    written_to(SegmentStore::in_memory(64 << 20), version, columns).await
}

async fn written_to(
    store: Arc<SegmentStore>,
    version: u32,
    columns: Vec<(&str, ColumnId, ArrayRef)>,
) -> Written {
    let ids = columns.iter().map(|(_, id, _)| ReadColumn { id: *id, absent: None }).collect();
    let batch =
        RecordBatch::try_from_iter(columns.into_iter().map(|(name, _, array)| (name, array))).unwrap();
    let (local, path) =
        (store.storage(STORAGE_LOCAL).unwrap(), SegmentStore::path(TABLE, Epoch(1), SegmentId(1)));
    let schema = ReadSchema::new(batch.schema(), ids).unwrap();
    let mut writer =
        SegmentWriter::new(local.create(&path).unwrap(), &schema, Compression::UNCOMPRESSED).unwrap();
    let numbers: Vec<Bytes> = (0..ROWS).map(key).collect();
    writer.push(&batch, &numbers).unwrap();
    let mut file = writer.finish().unwrap();
    file.publish(&local, &path).await.unwrap();
    let segment = Arc::new(Segment {
        id: SegmentId(1),
        table: TABLE,
        version: SchemaVersion(version),
        storage: STORAGE_LOCAL.into(),
        path,
        rows: u32::try_from(ROWS).unwrap(),
        bytes: file.bytes,
        first_key: key(0).to_vec(),
        last_key: key(ROWS - 1).to_vec(),
        through: Seq(1),
        commit: None,
        created_at: 0,
        checksums: file.checksums,
    });
    let new = NewSegment { segment: Arc::clone(&segment), filter: file.filter, keys: Arc::new(file.keys) };
    let added = ColdChange::Insert { table: TABLE, added: vec![new] };
    let mut batch = WriteBatch::new();
    let (manifest, _) = Manifest::empty(store).apply(&added, Seq(1), &mut batch).unwrap();
    let storage = RocksStorage::in_memory(StorageOptions::default()).unwrap();
    storage.write(batch, false).unwrap();
    Written { storage, manifest, segment }
}

fn encoder() -> KeyEncoder {
    KeyEncoder::new(&[ColumnType::BigInt]).unwrap()
}

fn keys() -> SegmentKeys {
    SegmentKeys::primary(TABLE, encoder(), vec![ColumnId(1)], false)
}

fn key(number: i64) -> Bytes {
    let value = ScalarValue::Int64(Some(number));
    encoder().encode_values(TABLE, ScopeId::SHARED, &[value]).unwrap().into()
}

fn numbers() -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(0..ROWS))
}

/// The columns of a sound segment: the key `id`, `v` with the numbers of the rows, and `_seq`.
fn sound() -> Vec<(&'static str, ColumnId, ArrayRef)> {
    vec![("id", ColumnId(1), numbers()), ("v", ColumnId(2), numbers()), ("_seq", COLUMN_ID_SEQ, numbers())]
}

/// The columns `id`, `v` and `_seq` of a table, where `v` has an id and may be absent.
fn wanted(id: u32, absent: Option<AbsentColumn>) -> Arc<ReadSchema> {
    let fields = ["id", "v", "_seq"].map(|name| Field::new(name, DataType::Int64, name == "v"));
    let column = |id, absent| ReadColumn { id, absent };
    let columns = vec![column(ColumnId(1), None), column(ColumnId(id), absent), column(COLUMN_ID_SEQ, None)];
    Arc::new(ReadSchema::new(Arc::new(Schema::new(fields.to_vec())), columns).unwrap())
}

/// The column `v` was added in `version`; older rows have the value 7.
fn added_in(version: u32) -> Option<AbsentColumn> {
    let value = ScalarValue::Int64(Some(7));
    Some(AbsentColumn { since: SchemaVersion(version), value })
}

impl Written {
    fn store(&self) -> &Arc<SegmentStore> {
        self.manifest.store()
    }

    /// Reads rows of the segment as scans, compactions and point reads do.
    async fn read_rows(&self, wanted: &Arc<ReadSchema>) -> Vec<Result<()>> {
        let all = selection(std::slice::from_ref(&self.segment.positions()), &[], self.segment.rows);
        let stream = match self.store().stream(&self.segment, wanted, all).await {
            Ok(stream) => stream.try_for_each(|_| std::future::ready(Ok(()))).await,
            Err(error) => Err(error),
        };
        let storage = self.storage.snapshot();
        let row = self.manifest.find_row(&storage, TABLE, &keys(), wanted, &key(9)).await;
        vec![
            self.store().layout(&self.segment, wanted).await.map(|_| ()),
            self.store().statistics(&self.segment, wanted).await.map(|_| ()),
            stream,
            row.map(|_| ()),
        ]
    }

    /// Reads keys of the segment as commits, key ranges and checks do.
    async fn read_keys(&self) -> Vec<Result<()>> {
        let keys = keys();
        let storage = self.storage.snapshot();
        let found = self.manifest.find(&storage, TABLE, &keys, &[key(9)]).await;
        let range = KeyRange { start: key(9).to_vec(), end: Some(key(12).to_vec()) };
        let positions = self.store().positions(&self.segment, &keys, &range).await;
        let all = match self.store().keys(&self.segment, &keys).await {
            Ok(stream) => stream.try_for_each(|_| std::future::ready(Ok(()))).await,
            Err(error) => Err(error),
        };
        vec![found.map(|_| ()), positions.map(|_| ()), all]
    }
}

fn assert_read(outcomes: Vec<Result<()>>) {
    for outcome in outcomes {
        outcome.unwrap();
    }
}

fn assert_refused(outcomes: Vec<Result<()>>, problem: &str) {
    for outcome in outcomes {
        let error = outcome.unwrap_err();
        assert_eq!(error.sqlstate(), SqlState::DATA_CORRUPTED, "{error}");
        assert_eq!(error.message(), format!("segment \"1000/00000001-00000001.parquet\" {problem}"));
    }
}

#[tokio::test]
async fn a_segment_with_the_columns_of_its_table_is_read() {
    let test = written(1, sound()).await;
    assert_read(test.read_rows(&wanted(2, None)).await);
    assert_read(test.read_keys().await);
}

#[tokio::test]
async fn two_columns_with_one_id_are_refused() {
    let mut columns = sound();
    columns.insert(2, ("other", ColumnId(2), numbers()));
    let test = written(1, columns).await;
    assert_refused(test.read_rows(&wanted(2, None)).await, "has two columns with the id 2");
    assert_refused(test.read_keys().await, "has two columns with the id 2");
}

#[tokio::test]
async fn a_missing_column_is_refused_unless_it_was_added_later() {
    let mut columns = sound();
    columns.remove(1);
    let test = written(2, columns).await;
    for absent in [None, added_in(2)] {
        assert_refused(test.read_rows(&wanted(2, absent)).await, "lacks the column \"v\"");
    }
    assert_read(test.read_rows(&wanted(2, added_in(3))).await);
    assert_read(test.read_keys().await);
    let mut columns = sound();
    columns.remove(0);
    let test = written(1, columns).await;
    assert_refused(test.read_rows(&wanted(2, None)).await, "lacks the column \"id\"");
    assert_refused(test.read_keys().await, "lacks the key column with the id 1");
}

#[tokio::test]
async fn a_column_of_another_type_is_refused() {
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..ROWS).map(|row| row.to_string())));
    let mut columns = sound();
    columns[1].2 = Arc::clone(&texts);
    let test = written(1, columns).await;
    let problem = "has values of type Utf8 in column \"v\", not Int64";
    assert_refused(test.read_rows(&wanted(2, None)).await, problem);
    assert_read(test.read_keys().await);
    // Other columns may be narrower, keys may not.
    let narrow: ArrayRef = Arc::new(Int32Array::from_iter_values(0..i32::try_from(ROWS).unwrap()));
    for (stored, ty) in [(texts, "Utf8"), (narrow, "Int32")] {
        let mut columns = sound();
        columns[0].2 = stored;
        let test = written(1, columns).await;
        assert_refused(
            test.read_keys().await,
            &format!("has values of type {ty} in column \"id\", not Int64"),
        );
    }
}

/// Reads the row with a key. Returns its position, `id` and `v`.
async fn row(test: &Written, wanted: &Arc<ReadSchema>, number: i64) -> Option<(u32, i64, Option<i64>)> {
    let storage = test.storage.snapshot();
    let found = test.manifest.find_row(&storage, TABLE, &keys(), wanted, &key(number)).await.unwrap();
    let (place, row) = found?;
    assert!(Arc::ptr_eq(row.schema_ref(), wanted.schema()) && row.num_rows() == 1);
    let column = |place: usize| row.column(place).as_primitive::<Int64Type>();
    let v = column(1);
    Some((place.position, column(0).value(0), v.is_valid(0).then(|| v.value(0))))
}

/// The blocks of a segment with wide rows are not read as a whole.
#[tokio::test]
async fn deleted_rows_of_older_segments_are_judged_by_their_positions() {
    let pad = "x".repeat(600);
    let wide: ArrayRef = Arc::new(StringArray::from_iter_values((0..ROWS).map(|row| format!("{row}{pad}"))));
    let with_pad = [sound(), vec![("pad", ColumnId(3), wide)]].concat();
    for columns in [sound(), with_pad] {
        let mut test = written(1, columns).await;
        let block = i64::from(BLOCK_ROWS);
        let mut batch = WriteBatch::new();
        let marked = Place { segment: SegmentId(1), position: BLOCK_ROWS + 5 };
        put_mark(&mut batch, marked, Seq(2));
        let positions = [3, BLOCK_ROWS].into_iter().collect();
        let applied = ColdChange::ApplyMarks { table: TABLE, segment: SegmentId(1), positions };
        test.manifest = test.manifest.apply(&applied, Seq(2), &mut batch).unwrap().0;
        test.storage.write(batch, false).unwrap();
        // The column was dropped and added again.
        let again = wanted(4, added_in(2));
        for (wanted, has_old) in [(wanted(2, None), true), (again, false)] {
            for deleted in [3, block, block + 5] {
                assert_eq!(row(&test, &wanted, deleted).await, None, "{deleted}");
            }
            for alive in [0, 2, 4, block - 1, block + 1, block + 4, block + 6, ROWS - 1] {
                let v = if has_old { alive } else { 7 };
                let position = u32::try_from(alive).unwrap();
                assert_eq!(row(&test, &wanted, alive).await, Some((position, alive, Some(v))));
            }
            assert_eq!(row(&test, &wanted, ROWS).await, None);
        }
    }
}

#[tokio::test]
async fn the_cache_counts_all_that_an_open_segment_takes() {
    let test = written(1, sound()).await;
    let (store, segment) = (test.store(), &test.segment);
    let open = store.open(segment).await.unwrap();
    let parts = open.metadata.metadata().memory_size() + open.fences.bytes() + open.columns.bytes();
    assert!(open.bytes > parts as u64, "{} bytes", open.bytes);
    assert_eq!(store.opened.weight(), open.bytes);

    let later = wanted(4, added_in(2));
    let layout = store.layout(segment, &later).await.unwrap();
    let with_layout = open.bytes + layout.bytes() as u64;
    assert!(layout.bytes() > layout.scan_schema().fields().size());
    assert_eq!(store.opened.weight(), with_layout);
    assert!(Arc::ptr_eq(&layout, &store.layout(segment, &later).await.unwrap()));
    assert_eq!(store.opened.weight(), with_layout, "the layout is not made again");

    store.statistics(segment, &later).await.unwrap();
    let larger = store.open(segment).await.unwrap();
    let statistics = statistics_bytes(larger.statistics.as_ref().unwrap()) as u64;
    assert_eq!((store.opened.weight(), larger.bytes), (with_layout + statistics, with_layout + statistics));

    for _ in 0..2 * LAYOUTS_MAX {
        store.layout(segment, &wanted(4, added_in(2))).await.unwrap();
    }
    let all = open.bytes + statistics + (LAYOUTS_MAX * layout.bytes()) as u64;
    assert_eq!(store.opened.weight(), all);
    store.remove(segment).await.unwrap();
    assert_eq!(store.opened.weight(), 0);
}

#[tokio::test]
async fn nobody_waits_for_another_who_loads_a_segment() {
    let folder = tempfile::tempdir().unwrap();
    let (cold, spool) = (folder.path().join("cold"), folder.path().join("spool"));
    let store = SegmentStore::in_directory(&cold, &spool, 64 << 20).unwrap();
    let test = written_to(store, 1, sound()).await;
    let (store, storage) = (test.store(), test.storage.snapshot());
    // The first has begun, and its thread does not come back to it.
    let mut first =
        Box::pin(async { tokio::join!(store.open(&test.segment), store.filter(&storage, &test.segment)) });
    let polled = futures::poll!(&mut first);
    let second = async { tokio::join!(store.open(&test.segment), store.filter(&storage, &test.segment)) };
    let loaded = tokio::time::timeout(Duration::from_secs(60), second).await;
    let (open, filter) = loaded.expect("the first is not awaited");
    let (open, filter) = (open.unwrap(), filter.unwrap());
    // All share what is in the cache.
    let (first_open, first_filter) = match polled {
        Poll::Ready(loaded) => loaded,
        Poll::Pending => first.await,
    };
    assert!(Arc::ptr_eq(&open, &first_open.unwrap()) && Arc::ptr_eq(&filter, &first_filter.unwrap()));
    assert_eq!(store.opened.weight(), open.bytes);
}

#[tokio::test]
async fn how_wide_rows_are_is_known_however_small_their_object_is() {
    let same: ArrayRef = Arc::new(StringArray::from_iter_values((0..ROWS).map(|_| "x".repeat(5_000))));
    let test = written(1, [sound(), vec![("pad", ColumnId(3), same)]].concat()).await;
    assert!(test.segment.bytes < 1 << 20, "{} bytes", test.segment.bytes);
    let added = AbsentColumn { since: SchemaVersion(2), value: ScalarValue::from("y".repeat(7_000)) };
    let fields = [("id", DataType::Int64), ("pad", DataType::Utf8), ("added", DataType::Utf8)];
    let fields = fields.map(|(name, ty)| Field::new(name, ty, false)).to_vec();
    let columns = [(ColumnId(1), None), (ColumnId(3), None), (ColumnId(9), Some(added))];
    let columns = columns.map(|(id, absent)| ReadColumn { id, absent }).to_vec();
    let wanted = Arc::new(ReadSchema::new(Arc::new(Schema::new(fields)), columns).unwrap());
    let bytes =
        async |positions: &[usize]| test.store().row_bytes(&test.segment, &wanted, positions).await.unwrap();
    assert_eq!((bytes(&[]).await, bytes(&[0]).await, bytes(&[1]).await), (0, 8, 5_000));
    assert!((12_008..12_100).contains(&bytes(&[0, 1, 2]).await));
}
