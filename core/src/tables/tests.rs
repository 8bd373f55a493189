//! Writes rows and reads them back through DataFusion, over an in-memory store.

mod fixture;
mod overlays;

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray,
    FixedSizeListArray, Float32Array, Float64Array, Int16Array, Int32Array, RecordBatch, StringArray,
    Time64MicrosecondArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type};
use arrow::util::pretty::pretty_format_batches;
use bytes::Bytes;
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use futures::StreamExt;

use self::fixture::{ANN, BOB, Fixture, LIMITS, definition, numbers, texts};
use super::*;
use crate::commit::RowWrite;
use crate::error::{Result, SqlState};
use crate::ids::{ColumnId, SchemaVersion, ScopeId, SegmentId, Seq, TableId, UserId};
use crate::schema_registry::{ColumnDefinition, SystemTable, TableDefinition, TableKind, TableSchemas};
use crate::storage::{Direction, Entries, KeyRange, Partition, StorageSnapshot, Visitor};
use crate::types::ColumnType;

fn every_type() -> Vec<(ColumnType, ArrayRef)> {
    let embedding = FixedSizeListArray::try_new(
        Arc::new(Field::new_list_field(DataType::Float32, true)),
        2,
        Arc::new(Float32Array::from(vec![1.0, -2.5, 0.0, 0.0])),
        Some(vec![true, false].into()),
    );
    let decimal = Decimal128Array::from(vec![Some(-1234), None]).with_precision_and_scale(10, 2);
    vec![
        (ColumnType::BigInt, numbers([i64::MIN, i64::MAX])),
        (ColumnType::Boolean, Arc::new(BooleanArray::from(vec![Some(true), None]))),
        (ColumnType::SmallInt, Arc::new(Int16Array::from(vec![Some(-7), None]))),
        (ColumnType::Integer, Arc::new(Int32Array::from(vec![None, Some(i32::MIN)]))),
        (ColumnType::Real, Arc::new(Float32Array::from(vec![Some(-1.5), None]))),
        (ColumnType::Double, Arc::new(Float64Array::from(vec![Some(f64::INFINITY), None]))),
        (ColumnType::Decimal { precision: 10, scale: 2 }, Arc::new(decimal.unwrap())),
        (ColumnType::Text, Arc::new(StringArray::from(vec![Some("größe"), Some("")]))),
        (ColumnType::Bytes, Arc::new(BinaryArray::from(vec![Some(&b"\0\xff"[..]), None]))),
        (ColumnType::Json, Arc::new(StringArray::from(vec![Some("{\"a\": 1}"), None]))),
        (ColumnType::Timestamp, Arc::new(TimestampMicrosecondArray::from(vec![Some(-1), None]))),
        (
            ColumnType::TimestampTz,
            Arc::new(
                TimestampMicrosecondArray::from(vec![None, Some(1_700_000_000_000_000)]).with_timezone("UTC"),
            ),
        ),
        (ColumnType::Date, Arc::new(Date32Array::from(vec![Some(20_000), None]))),
        (ColumnType::Time, Arc::new(Time64MicrosecondArray::from(vec![None, Some(86_399_999_999)]))),
        (
            ColumnType::Uuid,
            Arc::new(
                FixedSizeBinaryArray::try_from_sparse_iter_with_size(
                    [Some([9_u8; 16]), None].into_iter(),
                    16,
                )
                .unwrap(),
            ),
        ),
        (ColumnType::Embedding(2), Arc::new(embedding.unwrap())),
        (ColumnType::File, Arc::new(StringArray::from(vec![None, Some("{}")]))),
    ]
}

#[tokio::test]
async fn every_type_survives_write_and_scan() {
    for key in [&[0][..], &[]] {
        let mut fixture = Fixture::new();
        let values = every_type();
        let names: Vec<String> = (0..values.len()).map(|i| format!("c{i}")).collect();
        let columns: Vec<(&str, ColumnType)> =
            names.iter().zip(&values).map(|(name, (ty, _))| (name.as_str(), *ty)).collect();
        let schemas = fixture.registry.schemas(&definition(TableKind::User, &columns, key));
        let arrays: Vec<ArrayRef> = values.iter().map(|(_, array)| Arc::clone(array)).collect();
        fixture.insert(&schemas, ANN, arrays.clone(), 0);
        let expected = RecordBatch::try_new(Arc::clone(&schemas.visible), arrays).unwrap();
        let provider = fixture.provider(&schemas, RowSchema::Visible, ANN, 0);
        let found = fixture.query(Arc::clone(&provider), "SELECT * FROM t").await;
        assert_eq!(found, [expected], "key {key:?}");
        assert!(Arc::ptr_eq(&provider.schema(), &schemas.visible));
        let others = fixture.provider(&schemas, RowSchema::Visible, BOB, 0);
        assert!(fixture.numbers(others, "SELECT c0 FROM t").await.is_empty());
    }
}

#[tokio::test]
async fn every_provider_shows_the_memoized_schema() {
    let fixture = Fixture::new();
    let snapshot = fixture.snapshot();
    let system = SystemTable::ALL.map(|table| Arc::clone(snapshot.catalog.table_by_id(table.id()).unwrap()));
    let kinds = [TableKind::User, TableKind::Shared, TableKind::Stream];
    let columns = [("id", ColumnType::BigInt)];
    let tables = (1001..).zip(kinds).map(|(id, kind)| {
        let mut table = TableDefinition::clone(&definition(kind, &columns, &[0]));
        table.id = TableId(id);
        Arc::new(table)
    });
    let tables: Vec<_> = system.into_iter().chain(tables).collect();
    for table in &tables {
        let schemas = fixture.registry.schemas(table);
        for columns in [RowSchema::Visible, RowSchema::Full, RowSchema::Write] {
            let provider = fixture.provider(&schemas, columns, table.scope_for(UserId(7)), 0);
            assert!(Arc::ptr_eq(&provider.schema(), columns.of(&schemas)));
        }
        let computed =
            KalamTable::computed(Arc::clone(&snapshot), Arc::clone(&schemas), RowSchema::Visible, vec![]);
        let computed = Arc::new(computed.unwrap());
        assert!(Arc::ptr_eq(&computed.schema(), &schemas.visible));
        let context = fixture.context(computed);
        let plan = context.sql("SELECT * FROM t").await.unwrap().create_physical_plan().await.unwrap();
        assert!(
            Arc::ptr_eq(&plan.schema(), &schemas.visible),
            "the schema survives planning: {}",
            table.name
        );
    }
    assert_eq!(fixture.registry.counters().builds, 13);
}

/// Creates a table with PRIMARY KEY (room, id) and 3 rooms of 10,000 rows each.
fn rooms(fixture: &mut Fixture) -> Arc<TableSchemas> {
    let columns = [("room", ColumnType::Text), ("id", ColumnType::BigInt), ("body", ColumnType::Text)];
    let schemas = fixture.registry.schemas(&definition(TableKind::User, &columns, &[0, 1]));
    for room in ["a", "b", "c"] {
        let rows = 10_000;
        let columns = vec![
            texts((0..rows).map(|_| room.to_owned())),
            numbers(0..rows),
            texts((0..rows).map(|id| format!("{room}{id}"))),
        ];
        fixture.insert(&schemas, ANN, columns, 0);
    }
    schemas
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_over_many_chunks_see_every_row_once() {
    let mut fixture = Fixture::new();
    let schemas = rooms(&mut fixture);
    let check = async |columns: RowSchema, sql: &str, expected: &[i64]| {
        let provider = fixture.provider(&schemas, columns, ANN, 0);
        assert_eq!(fixture.numbers(provider, sql).await, expected, "{sql}");
    };
    check(RowSchema::Visible, "SELECT count(*) FROM t", &[30_000]).await;
    check(RowSchema::Visible, "SELECT count(DISTINCT body) FROM t", &[30_000]).await;
    check(RowSchema::Visible, "SELECT count(*) FROM t WHERE room = 'b'", &[10_000]).await;
    check(RowSchema::Visible, "SELECT sum(id) FROM t WHERE room >= 'b'", &[99_990_000]).await;
    check(RowSchema::Visible, "SELECT id FROM t WHERE room = 'c' AND id = 9999", &[9_999]).await;
    check(RowSchema::Visible, "SELECT id FROM t WHERE room = 'c' AND id IN (5, 3, 99999, 3)", &[3, 5]).await;
    check(RowSchema::Visible, "SELECT id FROM t WHERE room = 'c' AND id > 9997", &[9_998, 9_999]).await;
    check(RowSchema::Visible, "SELECT id FROM t WHERE body = 'a77'", &[77]).await;
    check(RowSchema::Visible, "SELECT id FROM t WHERE room = 'b' ORDER BY id LIMIT 2 OFFSET 3", &[3, 4])
        .await;
    check(RowSchema::Visible, "SELECT id FROM t WHERE room = 'b' ORDER BY id DESC LIMIT 2", &[9_999, 9_998])
        .await;
    check(
        RowSchema::Visible,
        "SELECT id FROM t WHERE body LIKE '%8' ORDER BY room DESC, id DESC LIMIT 2",
        &[9_998, 9_988],
    )
    .await;
    check(RowSchema::Visible, "SELECT count(*) FROM (SELECT * FROM t LIMIT 20000)", &[20_000]).await;
    check(RowSchema::Full, "SELECT max(_seq) FROM t WHERE room = 'b'", &[2]).await;
    check(RowSchema::Full, "SELECT count(*) FROM t WHERE _seq > 1", &[20_000]).await;
}

#[tokio::test]
async fn key_order_replaces_sorting() {
    let mut fixture = Fixture::new();
    let schemas = rooms(&mut fixture);
    let plan =
        async |sql: &str| fixture.plan(fixture.provider(&schemas, RowSchema::Visible, ANN, 0), sql).await;
    let text = plan("SELECT id FROM t WHERE room = 'b' ORDER BY id LIMIT 2").await;
    assert!(!text.contains("Sort") && text.contains("fetch=2"), "{text}");
    let text = plan("SELECT room, id FROM t ORDER BY room DESC, id DESC LIMIT 2").await;
    assert!(!text.contains("Sort") && text.contains("reverse") && text.contains("fetch=2"), "{text}");
    let text = plan("SELECT id FROM t WHERE room = 'b' ORDER BY id DESC LIMIT 2").await;
    assert!(!text.contains("Sort") && text.contains("reverse"), "{text}");
    let text = plan("SELECT id FROM t ORDER BY id LIMIT 2").await;
    assert!(text.contains("Sort"), "{text}");
    let text = plan("SELECT id FROM t ORDER BY room, id DESC LIMIT 2").await;
    assert!(text.contains("Sort"), "{text}");
    let text = plan("SELECT * FROM t WHERE room = 'b' AND id = 5").await;
    assert!(text.contains("points=1") && !text.contains("Filter"), "{text}");
}

#[tokio::test]
async fn dropping_a_stream_ends_the_reading() {
    let mut fixture = Fixture::new();
    let schemas = rooms(&mut fixture);
    let provider = fixture.provider(&schemas, RowSchema::Visible, ANN, 0);
    let snapshot = Arc::downgrade(provider.snapshot());
    let context = fixture.context(provider);
    let mut stream = context.sql("SELECT * FROM t").await.unwrap().execute_stream().await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    assert!(first.num_rows() <= 8_192);
    drop((stream, context));
    // The read in progress ends on its own thread and then releases the snapshot.
    for _ in 0..100_000 {
        if snapshot.upgrade().is_none() {
            return;
        }
        tokio::task::yield_now().await;
    }
    assert!(snapshot.upgrade().is_none());
}

#[tokio::test]
async fn expired_rows_are_not_seen() {
    let mut fixture = Fixture::new();
    let schemas =
        fixture.registry.schemas(&definition(TableKind::Stream, &[("id", ColumnType::BigInt)], &[0]));
    fixture.insert(&schemas, ScopeId::SHARED, vec![numbers([1, 2])], 0);
    fixture.insert(&schemas, ScopeId::SHARED, vec![numbers([3])], 30_000_000);
    let seen = async |now_us: i64| {
        let provider = fixture.provider(&schemas, RowSchema::Visible, ScopeId::SHARED, now_us);
        fixture.numbers(provider, "SELECT id FROM t").await
    };
    assert_eq!(seen(59_999_999).await, [1, 2, 3]);
    assert_eq!(seen(60_000_000).await, [3]);
    assert!(seen(90_000_000).await.is_empty());
    let reader = Arc::new(PointReader::new(Arc::clone(&schemas), RowSchema::Visible).unwrap());
    let read = async |now_us: i64| {
        let snapshot = fixture.snapshot();
        let key = [ScalarValue::Int64(Some(1))];
        reader.read(&snapshot, None, ScopeId::SHARED, &key, now_us).await.unwrap().num_rows()
    };
    assert_eq!((read(0).await, read(60_000_000).await), (1, 0));
}

/// A store of which nothing is in memory.
struct OnDisk(Arc<dyn StorageSnapshot>);

impl StorageSnapshot for OnDisk {
    fn get(&self, partition: Partition, key: &[u8]) -> Result<Option<Bytes>> {
        self.0.get(partition, key)
    }

    fn multi_get(&self, partition: Partition, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        self.0.multi_get(partition, keys)
    }

    fn scan<'a>(&'a self, partition: Partition, range: KeyRange, direction: Direction) -> Entries<'a> {
        self.0.scan(partition, range, direction)
    }

    fn visit(
        &self,
        partition: Partition,
        range: KeyRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        self.0.visit(partition, range, direction, visit)
    }
}

#[tokio::test]
async fn a_row_that_only_the_disk_has_is_found_by_its_key() {
    let mut fixture = Fixture::new();
    let columns = [("id", ColumnType::BigInt), ("n", ColumnType::BigInt)];
    let schemas = fixture.registry.schemas(&definition(TableKind::Shared, &columns, &[0]));
    fixture.insert(&schemas, ScopeId::SHARED, vec![numbers([1, 2]), numbers([10, 20])], 0);
    fixture.flush(&schemas).await;
    fixture.insert(&schemas, ScopeId::SHARED, vec![numbers([3]), numbers([30])], 0);
    let mut snapshot = Arc::into_inner(fixture.snapshot()).unwrap();
    snapshot.storage = Arc::new(OnDisk(snapshot.storage));
    let (snapshot, reader) = (Arc::new(snapshot), PointReader::new(schemas, RowSchema::Visible).unwrap());
    for (id, expected) in [(1, vec![10_i64]), (2, vec![20]), (3, vec![30]), (4, vec![])] {
        let key = [ScalarValue::Int64(Some(id))];
        let row = reader.read(&snapshot, None, ScopeId::SHARED, &key, 0).await.unwrap();
        assert_eq!(row.column(1).as_primitive::<Int64Type>().values(), &expected[..], "{id}");
    }
}

#[tokio::test]
async fn updates_move_keys_and_deletes_remove_rows() {
    let mut fixture = Fixture::new();
    let columns = [("id", ColumnType::BigInt), ("n", ColumnType::BigInt)];
    let schemas = fixture.registry.schemas(&definition(TableKind::Shared, &columns, &[0]));
    fixture.insert(&schemas, ScopeId::SHARED, vec![numbers([1, 2, 3]), numbers([10, 20, 30])], 0);
    let writer = RowWriter::new(Arc::clone(&schemas), LIMITS).unwrap();
    let all = |fixture: &Fixture| fixture.provider(&schemas, RowSchema::Write, ScopeId::SHARED, 0);

    let before = fixture.query(all(&fixture), "SELECT _seq, _key, _value, _place FROM t").await.remove(0);
    let after = [numbers([2, 3, 3 + 1]), numbers([10, 20, 30])].to_vec();
    let after = RecordBatch::try_new(Arc::clone(&schemas.visible), after).unwrap();
    let writes = writer.updates(ScopeId::SHARED, &before, &after).unwrap();
    assert!(matches!(&writes[..], [RowWrite::Delete { .. }, .., RowWrite::Insert { .. }]));
    fixture.commit(&schemas.definition, ScopeId::SHARED, writes);
    assert_eq!(fixture.numbers(all(&fixture), "SELECT id * 100 + n FROM t").await, [210, 320, 430]);

    let before = fixture.query(all(&fixture), "SELECT * FROM t WHERE id = 3").await.remove(0);
    let after = RecordBatch::try_new(Arc::clone(&schemas.visible), vec![numbers([3]), numbers([7])]).unwrap();
    let writes = writer.updates(ScopeId::SHARED, &before, &after).unwrap();
    assert!(matches!(&writes[..], [RowWrite::Update { expected: Seq(2), .. }]), "{writes:?}");
    fixture.commit(&schemas.definition, ScopeId::SHARED, writes);

    let gone = fixture.query(all(&fixture), "SELECT * FROM t WHERE id < 4").await;
    let writes = gone.iter().flat_map(|batch| writer.deletes(batch).unwrap()).collect();
    fixture.commit(&schemas.definition, ScopeId::SHARED, writes);
    assert_eq!(fixture.numbers(all(&fixture), "SELECT id FROM t").await, [4]);
}

#[test]
fn wrong_rows_are_refused() {
    let fixture = Fixture::new();
    let check = |ty: ColumnType,
                 change: &dyn Fn(&mut ColumnDefinition),
                 values: ArrayRef,
                 sqlstate: SqlState| {
        let columns = [("id", ColumnType::BigInt), ("c", ty)];
        let mut table = TableDefinition::clone(&definition(TableKind::Shared, &columns, &[0]));
        change(&mut table.columns[1]);
        let schemas = fixture.registry.schemas(&Arc::new(table));
        let writer = RowWriter::new(Arc::clone(&schemas), LIMITS).unwrap();
        let ids = numbers(0..i64::try_from(values.len()).unwrap());
        let fields =
            vec![Field::new("id", DataType::Int64, true), Field::new("c", values.data_type().clone(), true)];
        let schema = Arc::new(arrow::datatypes::Schema::new(fields));
        let batch = RecordBatch::try_new(schema, vec![ids, values]).unwrap();
        let error = writer.inserts(ScopeId::SHARED, &batch, 0).unwrap_err();
        assert_eq!(error.sqlstate(), sqlstate, "{error}");
        assert!(error.message().contains("\"c\"") || error.message().contains("app.notes"), "{error}");
    };
    let text = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text])) };
    let as_is = |_: &mut ColumnDefinition| {};
    let null: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None]));
    check(ColumnType::Text, &|column| column.nullable = false, null, SqlState::NOT_NULL_VIOLATION);
    check(ColumnType::Text, &|column| column.length_max = Some(3), text("größe"), SqlState::STRING_TOO_LONG);
    check(ColumnType::Text, &as_is, text(&"x".repeat(1 << 20)), SqlState::PROGRAM_LIMIT_EXCEEDED);
    check(ColumnType::Json, &as_is, text("{"), SqlState::INVALID_TEXT_REPRESENTATION);
    check(ColumnType::Integer, &as_is, text("5"), SqlState::INTERNAL);
    let decimal = Decimal128Array::from(vec![12_345]).with_data_type(DataType::Decimal128(4, 2));
    check(
        ColumnType::Decimal { precision: 4, scale: 2 },
        &as_is,
        Arc::new(decimal),
        SqlState::NUMERIC_OUT_OF_RANGE,
    );
    let embedding = FixedSizeListArray::try_new(
        Arc::new(Field::new_list_field(DataType::Float32, true)),
        2,
        Arc::new(Float32Array::from(vec![Some(1.0), None])),
        None,
    );
    check(ColumnType::Embedding(2), &as_is, Arc::new(embedding.unwrap()), SqlState::NOT_NULL_VIOLATION);
}

#[test]
fn a_key_twice_in_a_batch_is_refused_by_name() {
    let fixture = Fixture::new();
    let schemas = fixture.registry.schemas(&definition(TableKind::User, &[("id", ColumnType::BigInt)], &[0]));
    let writer = RowWriter::new(Arc::clone(&schemas), LIMITS).unwrap();
    let batch = RecordBatch::try_new(Arc::clone(&schemas.visible), vec![numbers([4, 5, 4])]).unwrap();
    let error = writer.inserts(ANN, &batch, 0).unwrap_err();
    assert_eq!(error.sqlstate(), SqlState::UNIQUE_VIOLATION);
    assert_eq!(error.message(), "duplicate key in table \"app.notes\": (id)=(4)");
}

#[tokio::test]
async fn rows_of_older_versions_are_read_in_the_new_shape() {
    let mut fixture = Fixture::new();
    let columns = [("id", ColumnType::BigInt), ("gone", ColumnType::Text)];
    let old = definition(TableKind::Shared, &columns, &[0]);
    let old_schemas = fixture.registry.schemas(&old);
    fixture.insert(&old_schemas, ScopeId::SHARED, vec![numbers([1]), texts(["x".to_owned()])], 0);
    let new = old.next_version(2, |table| {
        let mut added = ColumnDefinition::new(table.next_column_id, "n", ColumnType::BigInt, false);
        added.initial = Some("5".to_owned());
        table.next_column_id = ColumnId(4);
        table.columns.pop();
        table.columns.push(added);
        Ok(())
    });
    let schemas = fixture.registry.schemas(&Arc::new(new.unwrap()));
    fixture.insert(&schemas, ScopeId::SHARED, vec![numbers([2]), numbers([6])], 0);
    let provider = fixture.provider(&schemas, RowSchema::Visible, ScopeId::SHARED, 0);
    assert_eq!(fixture.numbers(provider, "SELECT id * 10 + n FROM t").await, [15, 26]);
}

#[tokio::test]
async fn computed_rows_have_limits_filters_and_a_seq() -> Result<()> {
    let mut fixture = Fixture::new();
    fixture.seq = 9;
    let snapshot = fixture.snapshot();
    let table = snapshot.catalog.table_by_id(SystemTable::Stats.id()).unwrap();
    let schemas = fixture.registry.schemas(table);
    let batch = |from: usize| {
        let names = texts((from..from + 3).map(|i| format!("m{i}")));
        RecordBatch::try_new(Arc::clone(&schemas.visible), vec![Arc::clone(&names), names]).unwrap()
    };
    let provider = |columns: RowSchema| {
        KalamTable::computed(Arc::clone(&snapshot), Arc::clone(&schemas), columns, vec![batch(0), batch(3)])
            .map(Arc::new)
    };
    let show = async |columns: RowSchema, sql: &str| -> Result<String> {
        let batches = fixture.query(provider(columns)?, sql).await;
        Ok(pretty_format_batches(&batches)?.to_string())
    };
    assert_eq!(fixture.numbers(provider(RowSchema::Visible)?, "SELECT count(*) FROM t").await, [6]);
    assert_eq!(fixture.numbers(provider(RowSchema::Full)?, "SELECT _seq FROM t LIMIT 4").await, [9, 9, 9, 9]);
    let shown = show(RowSchema::Visible, "SELECT metric_name FROM t WHERE metric_name > 'm4'").await?;
    assert!(shown.contains("m5") && !shown.contains("m4"), "{shown}");
    assert_eq!(provider(RowSchema::Write).unwrap_err().sqlstate(), SqlState::INSUFFICIENT_PRIVILEGE);
    Ok(())
}

#[test]
fn images_are_decoded_in_the_full_schema() {
    let mut fixture = Fixture::new();
    let schemas =
        fixture.registry.schemas(&definition(TableKind::Shared, &[("id", ColumnType::BigInt)], &[0]));
    fixture.insert(&schemas, ScopeId::SHARED, vec![numbers([1, 2])], 0);
    let snapshot = fixture.snapshot();
    let stored: Vec<(Bytes, Bytes)> = snapshot
        .storage
        .scan(Partition::Rows, KeyRange::all(), Direction::Forward)
        .map(|entry| entry.map(|(key, row)| (Bytes::from(key), Bytes::from(row))).unwrap())
        .collect();
    let batch = decode_images(&schemas, stored.iter().map(|(key, row)| (key, row))).unwrap();
    assert!(Arc::ptr_eq(&batch.schema(), &schemas.full));
    assert_eq!(batch.column(0).as_primitive::<Int64Type>().values(), &[1, 2]);
    assert_eq!(batch.column(1).as_primitive::<Int64Type>().values(), &[1, 1]);
}

#[test]
fn what_clients_send_is_cast_to_the_column() {
    let check = |ty: ColumnType, given: ArrayRef, expected: Result<ArrayRef, SqlState>| {
        let column = ColumnDefinition::new(ColumnId(1), "c", ty, true);
        let cast = cast_column(&column, &given);
        assert_eq!(cast.map_err(|error| error.sqlstate()), expected, "{ty}");
    };
    let text = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![Some(text), None])) };
    check(ColumnType::BigInt, Arc::new(Int32Array::from(vec![5])), Ok(numbers([5])));
    check(ColumnType::Bytes, text("\\x00"), Ok(Arc::new(BinaryArray::from(vec![Some(&b"\0"[..]), None]))));
    check(ColumnType::Integer, text("many"), Err(SqlState::INVALID_TEXT_REPRESENTATION));
    check(ColumnType::Uuid, text("many"), Err(SqlState::INVALID_TEXT_REPRESENTATION));
    check(ColumnType::Date, Arc::new(BooleanArray::from(vec![true])), Err(SqlState::DATATYPE_MISMATCH));
}

#[test]
fn a_scan_can_be_described_as_text() {
    let description = ScanDescription {
        table: TableId(1000),
        version: SchemaVersion(3),
        scope: ANN,
        columns: RowSchema::Full,
        projection: Some(vec![2, 0]),
        ranges: vec![KeyRange::point("a"), KeyRange { start: b"b".to_vec(), end: None }],
        pinned: 1,
        segments: vec![SegmentRows { segment: SegmentId(7), selected: vec![0..5, 7..9], deleted: vec![3] }],
        seq: Seq(9),
        flushed: Seq(4),
        now_us: 5,
        limit: None,
    };
    let text = serde_json::to_string(&description).unwrap();
    assert_eq!(serde_json::from_str::<ScanDescription>(&text).unwrap(), description);
}
