//! Compares chunks with a model of the rows in every snapshot. Scans read them step by step while commits
//! continue, and scans of other snapshots follow.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::subsequence;

use super::*;
use crate::change_log::{RowChange, RowOp, TableChanges};
use crate::ids::{Epoch, Shard, UserId};

const TABLE: TableId = TableId(1_000);
const SCOPE: ScopeId = ScopeId(7);
const SMALL: HotOptions = HotOptions { bytes_max: 1 << 20, chunk_rows: 5, chunk_rows_min: 2 };

#[derive(Clone, Copy, Debug)]
struct Row {
    value: i64,
    seq: u64,
    expires_at: Option<i64>,
}

#[derive(Clone, Debug)]
struct State {
    generation: Generation,
    rows: BTreeMap<u8, Row>,
}

/// The state after each commit, by seq.
struct Model {
    states: Vec<State>,
    hot: HotChunks,
}

/// A running scan.
struct Reading {
    scan: HotScan,
    wanted: Vec<usize>,
    rest: Option<KeyRange>,
    range: Range<u8>,
    rows: Vec<Vec<i64>>,
    /// The range read but not yet offered: start, end, columns.
    decoded: Option<(Vec<u8>, Vec<u8>, Vec<usize>)>,
    last_end: Vec<u8>,
}

fn key(key: u8) -> Vec<u8> {
    vec![1, key]
}

fn record(seq: u64, tables: Vec<(TableId, Vec<Vec<u8>>)>) -> CommitRecord {
    let tables = tables.into_iter().map(|(table, keys)| TableChanges {
        table,
        version: SchemaVersion(1),
        scope: SCOPE,
        rows: keys
            .into_iter()
            .map(|key| RowChange {
                op: RowOp::Update,
                key: Bytes::from(key),
                old: None,
                new: Some(Bytes::new()),
            })
            .collect(),
    });
    CommitRecord {
        seq: Seq(seq),
        commit_ts: 0,
        epoch: Epoch(1),
        shard: Shard(0),
        principal: UserId::ROOT,
        catalog: Vec::new(),
        tables: tables.collect(),
        large_insert: None,
        stubs: Vec::new(),
    }
}

impl Model {
    fn new(options: HotOptions, rows: u8) -> Self {
        let generation = Generation { version: SchemaVersion(1), flushed: Seq::ZERO };
        let row = |value: i64| Row { value, seq: 1, expires_at: None };
        let rows = (0..rows).map(|key| (key, row(i64::from(key)))).collect();
        let states = vec![State { generation, rows: BTreeMap::new() }, State { generation, rows }];
        Self { states, hot: HotChunks::new(options, Seq(1)) }
    }

    fn seq(&self) -> u64 {
        self.states.len() as u64 - 1
    }

    fn commit(&mut self, change: impl FnOnce(u64, &mut State) -> Vec<u8>) {
        let seq = self.seq() + 1;
        let mut state = self.states.last().unwrap().clone();
        let changed = change(seq, &mut state);
        self.hot.note(&record(seq, vec![(TABLE, changed.into_iter().map(key).collect())]));
        self.states.push(state);
    }

    /// Returns the rows of a range that a scan sees: the values of columns 0 (the key), 1 and 2 (the seq).
    fn shown(&self, scan: &HotScan, start: &[u8], end: &[u8]) -> Vec<(u8, [i64; 3], Option<i64>)> {
        let state = &self.states[usize::try_from(scan.seq.0).unwrap()];
        let version = i64::from(state.generation.version.0);
        state
            .rows
            .iter()
            .filter(|(id, row)| {
                let key = key(**id);
                *start <= *key && *key < *end && Seq(row.seq) > state.generation.flushed
            })
            .map(|(id, row)| {
                (*id, [i64::from(*id), row.value + 1_000 * version, row.seq.cast_signed()], row.expires_at)
            })
            .collect()
    }

    fn begin(&self, back: u64, range: Range<u8>, wanted: Vec<usize>, now_us: i64) -> Reading {
        let seq = self.seq().saturating_sub(back).max(1);
        let scan = HotScan {
            table: TABLE,
            scope: SCOPE,
            generation: self.states[usize::try_from(seq).unwrap()].generation,
            seq: Seq(seq),
            now_us,
            turn: self.hot.begin().unwrap(),
        };
        let rest = Some(KeyRange { start: key(range.start), end: Some(key(range.end)) });
        Reading { scan, wanted, rest, range, rows: Vec::new(), decoded: None, last_end: Vec::new() }
    }

    /// Works like a cursor, one chunk at a time: offers the rows of the previous step, then reads.
    fn step(&self, reading: &mut Reading) {
        self.offer(reading);
        let Some(range) = reading.rest.take().filter(|range| !range.is_empty()) else { return };
        let read_to = match self.hot.find(&reading.scan, &range, &reading.wanted) {
            Found::Chunk { columns, rows, end } => {
                for row in 0..rows {
                    let value = |column: &ArrayRef| column.as_primitive::<Int64Type>().value(row);
                    reading.rows.push(columns.iter().map(value).collect());
                }
                reading.last_end = end.clone();
                end
            }
            Found::Store { end, positions } => {
                let end = end.unwrap();
                let mut shown = self.shown(&reading.scan, &range.start, &end);
                shown.retain(|(_, _, expires_at)| expires_at.is_none_or(|at| at > reading.scan.now_us));
                let cut = shown.get(self.hot.options().chunk_rows).map(|_| {
                    let last = shown[self.hot.options().chunk_rows - 1].0;
                    [key(last), vec![0]].concat()
                });
                let is_whole = cut.is_none();
                let read_to = cut.unwrap_or(end);
                let read = shown.iter().filter(|(id, _, _)| key(*id) < read_to);
                let rows = read.map(|(_, values, _)| reading.wanted.iter().map(|at| values[*at]).collect());
                let rows: Vec<Vec<i64>> = rows.collect();
                if rows.len() >= 2 || (is_whole && reading.last_end == range.start) {
                    reading.decoded = Some((range.start.clone(), read_to.clone(), positions));
                }
                reading.rows.extend(rows);
                read_to
            }
        };
        reading.rest = Some(KeyRange { start: read_to, end: range.end });
    }

    fn offer(&self, reading: &mut Reading) {
        let Some((start, end, positions)) = reading.decoded.take() else { return };
        let mut times = Times::ALWAYS;
        let mut rows = self.shown(&reading.scan, &start, &end);
        rows.retain(|(_, _, expires_at)| {
            expires_at.iter().for_each(|at| times.narrow(*at, reading.scan.now_us));
            expires_at.is_none_or(|at| at > reading.scan.now_us)
        });
        let column = |at: &usize| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, values, _)| values[*at])))
        };
        let columns: Vec<ArrayRef> = positions.iter().map(column).collect();
        let decoded = Decoded {
            start: &start,
            end: &end,
            positions: &positions,
            columns: &columns,
            rows: rows.len(),
            times,
        };
        self.hot.offer(&reading.scan, &decoded);
        reading.last_end = end;
    }

    fn finish(&self, mut reading: Reading) {
        while reading.rest.is_some() || reading.decoded.is_some() {
            self.step(&mut reading);
        }
        let (start, end) = (key(reading.range.start), key(reading.range.end));
        let expected: Vec<Vec<i64>> = self
            .shown(&reading.scan, &start, &end)
            .into_iter()
            .filter(|(_, _, expires_at)| expires_at.is_none_or(|at| at > reading.scan.now_us))
            .map(|(_, values, _)| reading.wanted.iter().map(|at| values[*at]).collect())
            .collect();
        assert_eq!(reading.rows, expected, "{:?} of {:?}", reading.range, reading.scan);
        self.hot.chunks.lock().check();
    }

    /// Runs a whole scan; returns how many ranges it read from the store.
    fn scan(&self, back: u64, range: Range<u8>, wanted: Vec<usize>) -> u64 {
        let before = self.hot.counters().misses;
        self.finish(self.begin(back, range, wanted, 0));
        self.hot.counters().misses - before
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// Puts or removes rows.
    Commit(Vec<(u8, bool, Option<i64>)>),
    Flush,
    Alter,
    Begin {
        back: u64,
        range: Range<u8>,
        wanted: Vec<usize>,
        now_us: i64,
    },
    Step(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let change = (0_u8..40, prop::bool::weighted(0.7), prop::option::weighted(0.2, 0_i64..10));
    let range = prop_oneof![Just(0_u8..40), (0_u8..40, 0_u8..40).prop_map(|(a, b)| a.min(b)..a.max(b))];
    prop_oneof![
        4 => vec(change, 1..4).prop_map(Op::Commit),
        1 => Just(Op::Flush),
        1 => Just(Op::Alter),
        6 => (0_u64..3, range, subsequence(vec![0, 1, 2], 0..=3), 0_i64..10)
            .prop_map(|(back, range, wanted, now_us)| Op::Begin { back, range, wanted, now_us }),
        24 => (0_usize..8).prop_map(Op::Step),
    ]
}

fn run(options: HotOptions, ops: Vec<Op>) {
    let mut model = Model::new(options, 30);
    let mut readings: Vec<Reading> = Vec::new();
    for op in ops {
        match op {
            Op::Commit(changes) => model.commit(|seq, state| {
                for (id, is_put, expires_at) in &changes {
                    if *is_put {
                        let row = Row { value: seq.cast_signed(), seq, expires_at: *expires_at };
                        state.rows.insert(*id, row);
                    } else {
                        state.rows.remove(id);
                    }
                }
                changes.iter().map(|(id, _, _)| *id).collect()
            }),
            Op::Flush => model.commit(|seq, state| {
                state.generation.flushed = Seq(seq - 1);
                Vec::new()
            }),
            Op::Alter => model.commit(|_, state| {
                state.generation.version.0 += 1;
                Vec::new()
            }),
            Op::Begin { back, range, wanted, now_us } => {
                readings.push(model.begin(back, range, wanted, now_us));
            }
            Op::Step(index) if !readings.is_empty() => {
                let index = index % readings.len();
                model.step(&mut readings[index]);
            }
            Op::Step(_) => {}
        }
        model.hot.chunks.lock().check();
    }
    readings.into_iter().for_each(|reading| model.finish(reading));
    model.scan(0, 0..40, vec![0, 1, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn scans_see_exactly_their_snapshot(ops in vec(op(), 1..80)) {
        run(SMALL, ops);
    }

    #[test]
    fn scans_see_exactly_their_snapshot_while_chunks_make_room(ops in vec(op(), 1..80)) {
        run(HotOptions { bytes_max: 4_000, ..SMALL }, ops);
    }
}

#[test]
fn a_second_scan_reads_nothing_and_a_change_costs_one_chunk() {
    let mut model = Model::new(SMALL, 30);
    assert_eq!(model.scan(0, 0..30, vec![0, 1]), 6);
    assert_eq!(model.scan(0, 0..30, vec![1]), 0);
    assert_eq!(model.scan(0, 5..10, vec![1]), 2, "both its ends are inside chunks, of which a part is read");
    model.commit(|seq, state| {
        state.rows.insert(12, Row { value: -1, seq, expires_at: None });
        vec![12]
    });
    assert_eq!(model.scan(1, 0..30, vec![0, 1]), 1, "an older snapshot reads what it saw there");
    assert_eq!(model.scan(0, 0..30, vec![0, 1]), 1);
    assert_eq!(model.scan(0, 0..30, vec![0, 1]), 0);
    let counters = model.hot.counters();
    assert_eq!(counters.chunks, 6);
}

#[test]
fn columns_are_added_when_they_are_asked_for() {
    let model = Model::new(SMALL, 30);
    assert_eq!(model.scan(0, 0..30, vec![]), 6);
    assert_eq!(model.scan(0, 0..30, vec![1]), 6);
    assert_eq!(model.scan(0, 0..30, vec![2]), 6);
    assert_eq!(model.scan(0, 0..30, vec![1, 2]), 0);
    assert_eq!(model.scan(0, 0..30, vec![]), 0);
}

#[test]
fn chunks_are_made_while_other_rows_change() {
    let mut model = Model::new(SMALL, 30);
    let change = |model: &mut Model, id: u8| {
        model.commit(|seq, state| {
            state.rows.insert(id, Row { value: 0, seq, expires_at: None });
            vec![id]
        });
    };
    // The change list starts with the first offer.
    model.scan(0, 0..30, vec![0]);
    let mut reading = model.begin(0, 0..30, vec![0, 1], 0);
    for _ in 0..6 {
        change(&mut model, 29);
        model.step(&mut reading);
    }
    model.finish(reading);
    assert_eq!(model.scan(0, 0..30, vec![0, 1]), 1, "chunks without the changed key were kept");
}

#[test]
fn a_change_after_the_snapshot_refuses_the_chunk() {
    let mut model = Model::new(SMALL, 30);
    model.scan(0, 0..30, vec![0]);
    let mut reading = model.begin(0, 0..5, vec![0, 1], 0);
    model.step(&mut reading);
    model.commit(|_, state| {
        state.rows.remove(&3);
        vec![3]
    });
    model.finish(reading);
    assert!(model.scan(0, 0..5, vec![0, 1]) > 0);
}

#[test]
fn dropped_tables_and_users_and_flushed_rows_leave_nothing() {
    let mut model = Model::new(SMALL, 30);
    let drops = [CatalogChange::DropTable(TABLE), CatalogChange::DropUser(UserId(7))];
    for change in drops {
        model.scan(0, 0..30, vec![0, 1, 2]);
        assert!(model.hot.counters().bytes > 0);
        let mut dropped = record(model.seq(), Vec::new());
        dropped.catalog.push(change);
        model.hot.note(&dropped);
        assert_eq!(model.hot.counters().bytes, 0);
    }
    model.scan(0, 0..30, vec![0, 1, 2]);
    model.commit(|seq, state| {
        state.generation.flushed = Seq(seq - 1);
        Vec::new()
    });
    model.scan(0, 0..1, vec![0]);
    assert_eq!(model.hot.counters().bytes, 0);
}

#[test]
fn a_table_larger_than_the_cache_keeps_what_fits() {
    let model = Model::new(HotOptions { bytes_max: 4_000, ..SMALL }, 200);
    let first = model.scan(0, 0..200, vec![0, 1]);
    assert_eq!(first, 40);
    let again: Vec<u64> = (0..3).map(|_| model.scan(0, 0..200, vec![0, 1])).collect();
    assert!(again.iter().all(|misses| *misses < first), "{again:?}");
    assert!(model.hot.counters().bytes <= 4_000);
}

#[test]
fn large_commits_are_remembered_as_a_range() {
    let mut model = Model::new(SMALL, 200);
    model.scan(0, 0..10, vec![0]);
    let (mut inside, mut outside) =
        (model.begin(0, 100..105, vec![0], 0), model.begin(0, 20..25, vec![0], 0));
    model.step(&mut inside);
    model.step(&mut outside);
    model.commit(|_, state| {
        (50..150).for_each(|id| {
            state.rows.remove(&id);
        });
        (50..150).collect()
    });
    model.finish(inside);
    model.finish(outside);
    assert_eq!(model.scan(0, 20..25, vec![0]), 0);
    assert_eq!(model.scan(0, 0..10, vec![0]), 0);
}

#[test]
fn nothing_is_kept_without_memory() {
    assert_eq!(HotChunks::new(HotOptions::of_bytes(0), Seq(1)).begin(), None);
}
