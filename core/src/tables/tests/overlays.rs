//! Random overlays over random hot and cold rows. What a reader finds is compared with a map, for every kind
//! of table and every way of reading.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use datafusion::common::ScalarValue;
use proptest::collection::vec;
use proptest::prelude::*;

use super::fixture::{ANN, BOB, Fixture, LIMITS, definition, numbers, texts};
use crate::cold_storage::Place;
use crate::commit::{RowWrite, Snapshot};
use crate::hot_tier::HotOptions;
use crate::ids::{ScopeId, Seq};
use crate::schema_registry::{TableKind, TableSchemas};
use crate::storage::keys::hidden_key;
use crate::storage::rows::set_row_seq;
use crate::tables::{KalamTable, Overlay, OverlayRow, PointReader, RowSchema, RowWriter};
use crate::types::ColumnType;

/// A condition, as SQL and as a function of the row number.
type Filter = (&'static str, fn(i64) -> bool);

/// A row is known by a number below this, which its key columns are made of.
const ROWS: i64 = 30;

/// A kind of table: its columns are `n`, which is different in every row ever written, and its key.
struct Kind {
    kind: TableKind,
    scope: ScopeId,
    columns: &'static [(&'static str, ColumnType)],
    key: &'static [usize],
    /// The key in ORDER BY, ascending and descending.
    order: [&'static str; 2],
}

const ONE: &[(&str, ColumnType)] = &[("id", ColumnType::BigInt), ("n", ColumnType::BigInt)];
const TWO: &[(&str, ColumnType)] =
    &[("n", ColumnType::BigInt), ("room", ColumnType::Text), ("id", ColumnType::BigInt)];
static KINDS: [Kind; 4] = [
    Kind {
        kind: TableKind::Shared,
        scope: ScopeId::SHARED,
        columns: ONE,
        key: &[0],
        order: ["id", "id DESC"],
    },
    Kind { kind: TableKind::User, scope: ANN, columns: ONE, key: &[0], order: ["id", "id DESC"] },
    Kind {
        kind: TableKind::User,
        scope: ANN,
        columns: TWO,
        key: &[1, 2],
        order: ["room, id", "room DESC, id DESC"],
    },
    Kind { kind: TableKind::Shared, scope: ScopeId::SHARED, columns: ONE, key: &[], order: ["n", "n DESC"] },
];

fn room(number: i64) -> String {
    ["a", "b", "c"][usize::try_from(number / 10).unwrap()].to_owned()
}

impl Kind {
    fn is_composite(&self) -> bool {
        self.key.len() == 2
    }

    /// Returns the number as the key column `id` has it.
    fn id(&self, number: i64) -> i64 {
        if self.is_composite() { number % 10 } else { number }
    }

    fn arrays(&self, rows: &[(i64, i64)]) -> Vec<ArrayRef> {
        let array = |name: &str| match name {
            "id" => numbers(rows.iter().map(|(number, _)| self.id(*number))),
            "room" => texts(rows.iter().map(|(number, _)| room(*number))),
            _ => numbers(rows.iter().map(|(_, n)| *n)),
        };
        self.columns.iter().map(|(name, _)| array(name)).collect()
    }

    fn key_values(&self, number: i64) -> Vec<ScalarValue> {
        let id = ScalarValue::Int64(Some(self.id(number)));
        if self.is_composite() { vec![ScalarValue::from(room(number)), id] } else { vec![id] }
    }
}

/// What happens before the transaction begins.
#[derive(Clone, Debug)]
enum Step {
    Put(Vec<i64>),
    Delete(Vec<i64>),
    Flush,
    Compact,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => vec(0..ROWS, 1..12).prop_map(Step::Put),
        1 => vec(0..ROWS, 1..5).prop_map(Step::Delete),
        2 => Just(Step::Flush),
        1 => Just(Step::Compact),
    ]
}

/// A row as a reader must find it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Expected {
    number: i64,
    n: i64,
    row: Bytes,
    place: Option<Place>,
}

type Rows = BTreeMap<Bytes, Expected>;

fn find(rows: &Rows, number: i64) -> Option<Bytes> {
    rows.iter().find(|(_, row)| row.number == number).map(|(key, _)| Bytes::clone(key))
}

/// A table, and the rows that it must have.
struct World {
    kind: &'static Kind,
    fixture: Fixture,
    schemas: Arc<TableSchemas>,
    writer: RowWriter,
    rows: Rows,
    last_n: i64,
}

impl World {
    fn new(kind: &'static Kind) -> Self {
        let mut fixture = Fixture::new();
        fixture.hot_options = HotOptions { bytes_max: 1 << 20, chunk_rows: 4, chunk_rows_min: 2 };
        fixture.batch_rows = 3;
        let schemas = fixture.registry.schemas(&definition(kind.kind, kind.columns, kind.key));
        let writer = RowWriter::new(Arc::clone(&schemas), LIMITS).unwrap();
        if kind.kind == TableKind::User {
            let rows: Vec<(i64, i64)> = (0..ROWS).map(|number| (number, -1 - number)).collect();
            fixture.insert(&schemas, BOB, kind.arrays(&rows), 0);
        }
        Self { kind, fixture, schemas, writer, rows: Rows::new(), last_n: 0 }
    }

    /// Returns a new row with its key, which a table without a key does not give.
    fn encode(&mut self, number: i64) -> (i64, Option<Bytes>, Vec<u8>) {
        self.last_n += 1;
        let arrays = self.kind.arrays(&[(number, self.last_n)]);
        let batch = RecordBatch::try_new(Arc::clone(&self.schemas.visible), arrays).unwrap();
        match self.writer.inserts(self.kind.scope, &batch, 0).unwrap().remove(0) {
            RowWrite::Insert { key, row } => (self.last_n, Some(key), row),
            RowWrite::Append { row } => (self.last_n, None, row),
            write => panic!("{write:?}"),
        }
    }

    async fn apply(&mut self, step: &Step) {
        match step {
            Step::Put(numbers) => self.put(numbers),
            Step::Delete(numbers) => self.delete(numbers),
            Step::Flush => {
                self.fixture.flush(&self.schemas).await;
                self.find_places().await;
            }
            Step::Compact => {
                self.fixture.compact(&self.schemas).await;
                self.find_places().await;
            }
        }
    }

    fn put(&mut self, numbers: &[i64]) {
        let (mut writes, mut changed) = (Vec::new(), Vec::new());
        let seq = Seq(self.fixture.seq + 1);
        let mut numbers = numbers.to_vec();
        numbers.sort_unstable();
        numbers.dedup();
        for (ordinal, number) in (0..).zip(numbers) {
            let (n, key, row) = self.encode(number);
            let mut stored = row.clone();
            set_row_seq(&mut stored, seq).unwrap();
            let key = if let Some(key) = find(&self.rows, number) {
                let Expected { row: old, place, .. } = self.rows[&key].clone();
                writes.push(RowWrite::Update { key: key.clone(), expected: Seq::ZERO, old, row, place });
                key
            } else if let Some(key) = key {
                writes.push(RowWrite::Insert { key: key.clone(), row });
                key
            } else {
                writes.push(RowWrite::Append { row });
                hidden_key(self.schemas.definition.id, self.kind.scope, seq, ordinal).into()
            };
            changed.push((key, Expected { number, n, row: stored.into(), place: None }));
        }
        self.fixture.commit(&self.schemas.definition, self.kind.scope, writes);
        self.rows.extend(changed);
    }

    fn delete(&mut self, numbers: &[i64]) {
        let mut writes = Vec::new();
        for number in numbers {
            let Some(key) = find(&self.rows, *number) else { continue };
            let Expected { row: old, place, .. } = self.rows.remove(&key).unwrap();
            writes.push(RowWrite::Delete { key, expected: Seq::ZERO, old, place });
        }
        self.fixture.commit(&self.schemas.definition, self.kind.scope, writes);
    }

    async fn find_places(&mut self) {
        let snapshot = self.fixture.snapshot();
        let wanted: Vec<Bytes> = self.rows.keys().cloned().collect();
        let definition = &self.schemas.definition;
        let keys = definition.segment_keys().unwrap();
        let found = snapshot.cold.find(&snapshot.storage, definition.id, &keys, &wanted).await.unwrap();
        for (row, place) in self.rows.values_mut().zip(found) {
            row.place = place;
        }
    }

    /// Returns an overlay, and the rows with it. A change is a row's number, and whether the row is put.
    fn overlay(&mut self, changes: &[(i64, bool)]) -> (Overlay, Rows) {
        let mut rows = self.rows.clone();
        let mut changed = Vec::new();
        for (ordinal, (number, is_put)) in (0..).zip(changes) {
            let (n, key, row) = self.encode(*number);
            let row = Bytes::from(row);
            let (id, scope) = (self.schemas.definition.id, self.kind.scope);
            let new_key = || Bytes::from(hidden_key(id, scope, Seq(1 << 40), ordinal));
            let key = find(&rows, *number).or(key).unwrap_or_else(new_key);
            let replaced = self.rows.get(&key).and_then(|row| row.place);
            let row = is_put.then_some(row);
            match &row {
                None => rows.remove(&key),
                Some(row) => {
                    let row = Expected { number: *number, n, row: row.clone(), place: None };
                    rows.insert(key.clone(), row)
                }
            };
            changed.push(OverlayRow { key, row, replaced });
        }
        (Overlay::new(changed), rows)
    }

    async fn check(&self, snapshot: &Arc<Snapshot>, overlay: Option<Arc<Overlay>>, rows: &Rows) {
        let table = |columns: RowSchema| {
            let (snapshot, schemas) = (Arc::clone(snapshot), Arc::clone(&self.schemas));
            let table = KalamTable::stored(snapshot, schemas, columns, self.kind.scope, 0);
            Arc::new(match &overlay {
                Some(overlay) => table.with_overlay(Arc::clone(overlay)),
                None => table,
            })
        };
        let found = async |sql: &str| self.fixture.numbers(table(RowSchema::Visible), sql).await;
        let expected = |is_wanted: &dyn Fn(&Expected) -> bool| -> Vec<i64> {
            rows.values().filter(|row| is_wanted(row)).map(|row| row.n).collect()
        };
        let sorted = |mut numbers: Vec<i64>| {
            numbers.sort_unstable();
            numbers
        };
        let is_keyless = self.kind.key.is_empty();
        let all = expected(&|_| true);
        let in_order = if is_keyless { sorted(all.clone()) } else { all.clone() };
        let reversed: Vec<i64> = in_order.iter().rev().copied().collect();
        for (order, expected) in self.kind.order.iter().zip([&in_order, &reversed]) {
            let sql = format!("SELECT n FROM t ORDER BY {order}");
            assert_eq!(found(&sql).await, *expected, "{sql}");
            let expected: Vec<i64> = expected.iter().skip(2).take(5).copied().collect();
            assert_eq!(found(&format!("{sql} LIMIT 5 OFFSET 2")).await, expected, "{sql} LIMIT 5 OFFSET 2");
        }
        let count = i64::try_from(all.len()).unwrap();
        assert_eq!(found("SELECT count(*) FROM t").await, [count]);
        assert_eq!(sorted(found("SELECT n FROM t").await), sorted(all.clone()));
        let some = found("SELECT n FROM t LIMIT 4").await;
        assert_eq!(some.len(), all.len().min(4));
        assert!(some.iter().all(|n| all.contains(n)), "{some:?} of {all:?}");
        let middle = self.last_n / 2;
        let above = sorted(expected(&|row| row.n > middle));
        assert_eq!(sorted(found(&format!("SELECT n FROM t WHERE n > {middle}")).await), above);
        let count_above = format!("SELECT count(*) FROM t WHERE n > {middle}");
        assert_eq!(found(&count_above).await, [i64::try_from(above.len()).unwrap()]);
        let filters: [Filter; 3] = match self.kind.is_composite() {
            true => [
                ("room = 'b' AND id > 4", |number| number > 14 && number < 20),
                ("room >= 'b'", |number| number >= 10),
                ("room = 'a' AND id IN (1, 4, 4, 9, 11)", |number| [1, 4, 9].contains(&number)),
            ],
            false => [
                ("id BETWEEN 5 AND 14", |number| (5..=14).contains(&number)),
                ("id > 21", |number| number > 21),
                ("id IN (0, 7, 8, 29, 99)", |number| [0, 7, 8, 29].contains(&number)),
            ],
        };
        for (filter, is_wanted) in filters {
            let wanted = expected(&|row| is_wanted(row.number));
            let sql = format!("SELECT n FROM t WHERE {filter}");
            assert_eq!(sorted(found(&sql).await), sorted(wanted), "{sql}");
        }
        self.check_images(table(RowSchema::Write), rows).await;
        if !is_keyless {
            self.check_points(snapshot, overlay.as_deref(), rows).await;
        }
    }

    /// Checks the rows as UPDATE and DELETE read them: with keys, stored bytes and places.
    async fn check_images(&self, table: Arc<KalamTable>, rows: &Rows) {
        let batches = self.fixture.query(table, "SELECT n, _key, _value, _place FROM t").await;
        let mut found = BTreeMap::new();
        for batch in &batches {
            let [n, places] = [0, 3].map(|column| batch.column(column).as_primitive::<Int64Type>());
            let [keys, values] = [1, 2].map(|column| batch.column(column).as_binary::<i32>());
            for row in 0..batch.num_rows() {
                let place = places.is_valid(row).then(|| Place::from_u64(places.value(row).cast_unsigned()));
                let image = (n.value(row), Bytes::copy_from_slice(values.value(row)), place);
                let double = found.insert(Bytes::copy_from_slice(keys.value(row)), image);
                assert_eq!(double, None);
            }
        }
        let expected = rows.iter().map(|(key, row)| (key.clone(), (row.n, row.row.clone(), row.place)));
        assert_eq!(found, expected.collect::<BTreeMap<_, _>>());
    }

    async fn check_points(&self, snapshot: &Arc<Snapshot>, overlay: Option<&Overlay>, rows: &Rows) {
        let position = self.schemas.visible.index_of("n").unwrap();
        for columns in [RowSchema::Visible, RowSchema::Write] {
            let reader = Arc::new(PointReader::new(Arc::clone(&self.schemas), columns).unwrap());
            for number in 0..ROWS {
                let key = self.kind.key_values(number);
                let row = reader.read(snapshot, overlay, self.kind.scope, &key, 0).await.unwrap();
                let found: Vec<i64> = row.column(position).as_primitive::<Int64Type>().values().to_vec();
                let expected = rows.values().filter(|row| row.number == number).map(|row| row.n);
                assert_eq!(found, expected.collect::<Vec<_>>(), "{columns:?} of row {number}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_transaction_reads_its_own_rows_everywhere(
        kind in 0..KINDS.len(),
        steps in vec(step(), 1..8),
        changes in vec((0..ROWS, any::<bool>()), 0..16),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(&KINDS[kind]);
            for step in &steps {
                world.apply(step).await;
            }
            let rows = world.rows.clone();
            let (overlay, changed) = world.overlay(&changes);
            let snapshot = world.fixture.snapshot();
            // The first check leaves chunks in the hot tier, with and without changed keys in them.
            world.check(&snapshot, None, &rows).await;
            world.check(&snapshot, Some(Arc::new(overlay)), &changed).await;
            world.check(&snapshot, None, &rows).await;
        });
    }
}
