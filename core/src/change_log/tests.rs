//! The log: round trips, parts, separation by scope, floor and trimming, damaged and frozen bytes.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::codec::{decode_header, decode_part, header_key, part_key};
use super::*;
use crate::error::ErrorKind;
use crate::ids::NamespaceId;
use crate::storage::rows::{RowEncoder, set_row_seq};
use crate::storage::{
    Direction, KeyRange, Partition, RocksStorage, StorageBackend, StorageOptions, StorageSnapshot, WriteOp,
};
use crate::types::ColumnType;

const DATABASE: DatabaseId = DatabaseId(uuid::Uuid::from_bytes([7; 16]));

fn insert(key: &str, new: &[u8]) -> RowChange {
    RowChange {
        op: RowOp::Insert,
        key: key.to_owned().into(),
        old: None,
        new: Some(Bytes::copy_from_slice(new)),
    }
}

fn changes(table: u32, scope: u64, rows: Vec<RowChange>) -> TableChanges {
    TableChanges { table: TableId(table), version: SchemaVersion(1), scope: ScopeId(scope), rows }
}

fn record(seq: u64, tables: Vec<TableChanges>) -> CommitRecord {
    CommitRecord {
        seq: Seq(seq),
        commit_ts: 1_000 + seq as i64,
        epoch: Epoch(2),
        shard: Shard(0),
        principal: UserId(5),
        catalog: Vec::new(),
        tables,
        large_insert: None,
        stubs: Vec::new(),
    }
}

fn store_with(records: &[CommitRecord]) -> RocksStorage {
    let storage = RocksStorage::in_memory(StorageOptions::default()).unwrap();
    let mut batch = WriteBatch::new();
    for record in records {
        append(&mut batch, DATABASE, record, &[]).unwrap();
    }
    storage.write(batch, false).unwrap();
    storage
}

fn read_seqs(
    snapshot: &dyn StorageSnapshot,
    table: u32,
    scope: u64,
    after: u64,
    up_to: u64,
) -> Option<Vec<u64>> {
    let (place, after) = ((TableId(table), ScopeId(scope)), LogPosition::after(Seq(after)));
    let piece = read_piece(snapshot, place, after, Seq(up_to), usize::MAX).unwrap()?;
    assert_eq!(piece.next, after.max(LogPosition::after(Seq(up_to))));
    Some(piece.changes.iter().map(|(seq, _)| seq.0).collect())
}

/// Reads the log piece by piece; each commit of a piece is an entry of the result.
fn read_in_pieces(
    snapshot: &dyn StorageSnapshot,
    place: (TableId, ScopeId),
    up_to: Seq,
    mut bytes_max: impl FnMut() -> usize,
) -> Vec<(Seq, TableChanges)> {
    let mut changes = Vec::new();
    let mut position = LogPosition::after(Seq::ZERO);
    while position.seq <= up_to {
        let piece = read_piece(snapshot, place, position, up_to, bytes_max()).unwrap().unwrap();
        assert!(piece.next > position, "{position:?}");
        changes.extend(piece.changes);
        position = piece.next;
    }
    changes
}

/// Puts the pieces of each commit together.
fn joined(pieces: Vec<(Seq, TableChanges)>) -> Vec<(Seq, TableChanges)> {
    let mut whole: Vec<(Seq, TableChanges)> = Vec::new();
    for (seq, changes) in pieces {
        match whole.last_mut() {
            Some((last, before)) if *last == seq => before.rows.extend(changes.rows),
            _ => whole.push((seq, changes)),
        }
    }
    whole
}

fn row_change() -> impl Strategy<Value = RowChange> {
    let image = || prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from);
    (image(), prop_oneof![Just(RowOp::Insert), Just(RowOp::Update), Just(RowOp::Delete)], image(), image())
        .prop_map(|(key, op, old, new)| RowChange {
            op,
            key,
            old: (op != RowOp::Insert).then_some(old),
            new: (op != RowOp::Delete).then_some(new),
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn records_come_back_as_they_were(
        tables in prop::collection::vec(
            (1_u32..4, 0_u64..3, prop::collection::vec(row_change(), 1..9)),
            0..4,
        )
    ) {
        let mut seen = std::collections::HashSet::new();
        let tables: Vec<_> = tables
            .into_iter()
            .filter(|(table, scope, _)| seen.insert((*table, *scope)))
            .map(|(table, scope, rows)| changes(table, scope, rows))
            .collect();
        let mut record = record(9, tables);
        record.catalog = vec![CatalogChange::DropNamespace(NamespaceId(12))];
        let snapshot = store_with(std::slice::from_ref(&record)).snapshot();
        prop_assert_eq!(read_record(&*snapshot, Seq(9)).unwrap().unwrap(), record.clone());
        for table in &record.tables {
            let place = (table.table, table.scope);
            let from = LogPosition::after(Seq(8));
            let piece = read_piece(&*snapshot, place, from, Seq(9), usize::MAX).unwrap().unwrap();
            prop_assert_eq!(piece.changes, vec![(Seq(9), table.clone())]);
        }
        let header = last_header(&*snapshot).unwrap().unwrap();
        prop_assert_eq!((header.database, header.seq, header.principal), (DATABASE, Seq(9), UserId(5)));
        prop_assert_eq!(header.catalog, record.catalog);
    }

    #[test]
    fn pieces_of_any_size_are_the_whole_log(
        commits in prop::collection::vec(prop::collection::vec(row_change(), 0..12), 1..6),
        sizes in prop::collection::vec(0_usize..200, 1..8),
    ) {
        let record = |(seq, rows)| record(seq, vec![changes(1, 7, rows)]);
        let commits: Vec<_> = (1..).zip(commits).map(record).collect();
        let snapshot = store_with(&commits).snapshot();
        let mut sizes = sizes.iter().copied().cycle();
        let (place, up_to) = ((TableId(1), ScopeId(7)), Seq(commits.len() as u64));
        let pieces = read_in_pieces(&*snapshot, place, up_to, || sizes.next().unwrap());
        let expected: Vec<_> = commits
            .iter()
            .filter(|commit| !commit.tables[0].rows.is_empty())
            .map(|commit| (commit.seq, commit.tables[0].clone()))
            .collect();
        prop_assert_eq!(joined(pieces), expected);
    }

    #[test]
    fn damaged_entries_are_errors(bytes in prop::collection::vec(any::<u8>(), 0..120), cut in 0_usize..90) {
        let with_format = |format| {
            let mut bytes = bytes.clone();
            bytes.first_mut().into_iter().for_each(|first| *first = format);
            bytes
        };
        let whole = store_with(&[record(1, vec![changes(1, 0, vec![insert("k", b"v")])])]);
        let mut inputs = vec![with_format(1), with_format(2), bytes];
        for entry in whole.snapshot().scan(Partition::Log, KeyRange::all(), Direction::Forward) {
            let value = entry.unwrap().1;
            inputs.push(value[..cut.min(value.len() - 1)].to_vec());
        }
        for input in inputs {
            let header = decode_header(&input).map(drop);
            let part = decode_part(&input.into(), Seq(1), &mut Vec::new()).map(drop);
            for result in [header, part] {
                if let Err(error) = result {
                    prop_assert_eq!(error.kind(), ErrorKind::Corruption);
                }
            }
        }
    }
}

#[test]
fn a_scope_reads_only_its_own_changes() {
    let one = |table, scope| vec![changes(table, scope, vec![insert("k", b"v")])];
    let storage = store_with(&[
        record(1, one(1, 7)),
        record(2, one(1, 8)),
        record(3, one(2, 7)),
        record(4, [one(1, 7), one(1, 8)].concat()),
        record(5, one(1, 7)),
    ]);
    let snapshot = storage.snapshot();
    assert_eq!(read_seqs(&*snapshot, 1, 7, 0, 5), Some(vec![1, 4, 5]));
    assert_eq!(read_seqs(&*snapshot, 1, 7, 1, 4), Some(vec![4]));
    assert_eq!(read_seqs(&*snapshot, 1, 8, 0, 5), Some(vec![2, 4]));
    assert_eq!(read_seqs(&*snapshot, 2, 7, 3, 5), Some(vec![]));
    assert_eq!(read_seqs(&*snapshot, 1, 7, 5, 5), Some(vec![]));
    let headers = headers(&*snapshot, Seq(1), Seq(4), 2).unwrap().unwrap();
    assert_eq!(headers.iter().map(|header| header.seq.0).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn a_piece_ends_within_a_commit_once_it_has_enough() {
    let rows = |seq: u64| (0..3).map(|row| insert(&format!("{seq}{row}"), &[0; 98])).collect();
    let commits: Vec<_> = (1..=2).map(|seq| record(seq, vec![changes(1, 0, rows(seq))])).collect();
    let snapshot = store_with(&commits).snapshot();
    let read = |from| {
        let piece = read_piece(&*snapshot, (TableId(1), ScopeId(0)), from, Seq(9), 150).unwrap().unwrap();
        let rows: Vec<_> = piece.changes.iter().map(|(seq, changes)| (seq.0, changes.rows.len())).collect();
        (rows, piece.next)
    };
    let at = |seq: u64, row: u32| LogPosition { seq: Seq(seq), part: 0, row };
    assert_eq!(read(LogPosition::after(Seq(0))), (vec![(1, 2)], at(1, 2)));
    assert_eq!(read(at(1, 2)), (vec![(1, 1), (2, 1)], at(2, 1)));
    assert_eq!(read(at(2, 1)), (vec![(2, 2)], LogPosition::after(Seq(9))));
    assert_eq!(at(2, 1).complete(), Seq(1));
    assert!(!at(2, 1).is_between_commits() && at(2, 0).is_between_commits());
    // A commit that is complete says so, also when the piece ends with it.
    assert_eq!(read(at(1, 1)), (vec![(1, 2)], at(2, 0)));
    let beyond = read_piece(&*snapshot, (TableId(1), ScopeId(0)), at(1, 4), Seq(9), 150);
    assert_eq!(beyond.unwrap_err().kind(), ErrorKind::Corruption);
}

#[test]
fn large_commits_are_cut_into_parts_and_read_in_pieces_or_as_one() {
    let rows: Vec<_> =
        (0..5).map(|row| insert(&format!("k{row}"), &vec![row; PART_BYTES_MAX * 2 / 5])).collect();
    let mut rows_with_giant = rows.clone();
    rows_with_giant.insert(2, insert("giant", &vec![9; PART_BYTES_MAX + 1]));
    let record = record(1, vec![changes(1, 0, rows_with_giant)]);
    let snapshot = store_with(std::slice::from_ref(&record)).snapshot();
    assert_eq!(header(&*snapshot, Seq(1)).unwrap().unwrap().tables[0].parts, 4);
    let place = (TableId(1), ScopeId(0));
    for bytes_max in [1, PART_BYTES_MAX / 2, PART_BYTES_MAX, usize::MAX] {
        let pieces = read_in_pieces(&*snapshot, place, Seq(1), || bytes_max);
        for (_, piece) in &pieces {
            let but_last: usize = piece.rows.iter().rev().skip(1).map(RowChange::bytes).sum();
            assert!(but_last < bytes_max, "only the last row may exceed the limit");
        }
        assert_eq!(joined(pieces), vec![(Seq(1), record.tables[0].clone())]);
    }
    assert_eq!(read_record(&*snapshot, Seq(1)).unwrap().unwrap(), record);
}

#[test]
fn rows_as_columns_are_read_in_pieces() {
    const ROWS: usize = 1_000;
    let keys: Vec<Bytes> = (0..ROWS).map(|row| format!("k{row:04}").into()).collect();
    let values: ArrayRef = Arc::new(StringArray::from_iter_values((0..ROWS).map(|row| row.to_string())));
    let part = columns_part(SchemaVersion(1), &[ColumnType::Text], &keys, &[values]).unwrap();
    let mut record = record(1, Vec::new());
    let (table, scope, version) = (TableId(1), ScopeId(0), SchemaVersion(1));
    let summary = TableSummary { table, scope, version, parts: 1, rows: ROWS as u64 };
    record.large_insert = Some(LoggedInsert { summary, bytes: part.len() as u64 });
    let storage = RocksStorage::in_memory(StorageOptions::default()).unwrap();
    let mut batch = WriteBatch::new();
    append(&mut batch, DATABASE, &record, std::slice::from_ref(&part)).unwrap();
    storage.write(batch, false).unwrap();
    let mut all = Vec::new();
    decode_part(&part, Seq(1), &mut all).unwrap();
    let pieces = read_in_pieces(&*storage.snapshot(), (table, scope), Seq(1), || 1_000);
    assert!(pieces.len() > 2);
    assert_eq!(joined(pieces), vec![(Seq(1), changes(1, 0, all))]);
}

#[test]
fn a_position_within_a_trimmed_commit_is_gone() {
    let rows = |seq: u64| vec![insert(&format!("a{seq}"), b"v"), insert(&format!("b{seq}"), b"v")];
    let storage = store_with(&[1, 2, 3].map(|seq| record(seq, vec![changes(1, 0, rows(seq))])));
    storage.write(trim(&*storage.snapshot(), Seq(2)).unwrap().unwrap().batch, false).unwrap();
    let snapshot = storage.snapshot();
    let read = |seq, row| {
        let from = LogPosition { seq: Seq(seq), part: 0, row };
        let piece = read_piece(&*snapshot, (TableId(1), ScopeId(0)), from, Seq(3), usize::MAX).unwrap();
        piece.map(|piece| piece.changes[0].1.rows.len())
    };
    assert_eq!([read(2, 0), read(2, 1), read(3, 0), read(3, 1)], [None, None, Some(2), Some(1)]);
}

#[test]
fn a_stub_says_what_the_record_changed() {
    let update =
        RowChange { op: RowOp::Update, key: "k".into(), old: Some("old".into()), new: Some("n".into()) };
    let delete = RowChange { op: RowOp::Delete, key: "d".into(), old: Some("x".into()), new: None };
    let record = record(1, vec![changes(1, 7, vec![insert("i", b"vv"), update, delete])]);
    let stub = record.stub();
    let [changed] = stub.stubs[..] else { panic!("{stub:?}") };
    assert_eq!((changed.table, changed.scope), (TableId(1), ScopeId(7)));
    assert_eq!((changed.written_rows, changed.written_bytes), (2, 5));
    assert!(stub.tables.is_empty() && stub.bytes() < record.bytes());
    assert!(stub.logged_bytes() >= record.logged_bytes());
    assert!(stub.is_only_logged(TableId(1), ScopeId(7)) && !stub.is_only_logged(TableId(1), ScopeId(8)));
    assert!(!record.is_only_logged(TableId(1), ScopeId(7)));
    assert_eq!(stub.stub(), stub);
}

#[test]
fn trimming_moves_the_floor_and_readers_below_it_are_told() {
    let commits: Vec<_> =
        (1..=4).map(|seq| record(seq, vec![changes(1, 7, vec![insert("k", b"v")])])).collect();
    let storage = store_with(&commits);
    let before = storage.snapshot();
    let step = trim(&*before, Seq(2)).unwrap().unwrap();
    assert_eq!(step.floor, Seq(2));
    storage.write(step.batch, false).unwrap();
    let after = storage.snapshot();
    assert_eq!(floor(&*after).unwrap(), Seq(2));
    assert_eq!(read_seqs(&*after, 1, 7, 1, 4), None);
    assert_eq!(headers(&*after, Seq(1), Seq(4), 9).unwrap(), None);
    assert_eq!(read_seqs(&*after, 1, 7, 2, 4), Some(vec![3, 4]));
    assert_eq!(read_seqs(&*before, 1, 7, 0, 4), Some(vec![1, 2, 3, 4]));
    assert!(header(&*after, Seq(2)).unwrap().is_none());
    assert_eq!(after.scan(Partition::Log, KeyRange::all(), Direction::Forward).count(), 4);
    assert!(trim(&*after, Seq(2)).unwrap().is_none());
    assert_eq!(trim(&*after, Seq(99)).unwrap().unwrap().floor, Seq(4));
}

#[test]
fn the_bytes_are_frozen() {
    let update =
        RowChange { op: RowOp::Update, key: "k".into(), old: Some("o".into()), new: Some("nn".into()) };
    let delete = RowChange { op: RowOp::Delete, key: "d".into(), old: Some("x".into()), new: None };
    let mut record = record(258, vec![changes(1000, 7, vec![insert("i", b"v"), update, delete])]);
    record.catalog =
        vec![CatalogChange::DropTable(TableId(1001)), CatalogChange::DropStorage(Arc::from("s"))];
    let mut batch = WriteBatch::new();
    append(&mut batch, DATABASE, &record, &[]).unwrap();
    let put = |key: Vec<u8>, value: Vec<u8>| WriteOp::Put {
        partition: Partition::Log,
        key: key.into(),
        value: value.into(),
    };
    assert_eq!(
        part_key(TableId(1000), ScopeId(7), Seq(258), 0),
        *b"C\0\0\x03\xE8\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\x01\x02\0\0\0\0"
    );
    assert_eq!(header_key(Seq(258)), *b"H\0\0\0\0\0\0\x01\x02");
    let part = [
        &[1, 1, 0, 0, 0, 3, 0, 0, 0][..],
        b"\x01\x01\0\0\0i\x01\0\0\0v",
        b"\x03\x01\0\0\0k\x01\0\0\0o\x02\0\0\0nn",
        b"\x02\x01\0\0\0d\x01\0\0\0x",
    ];
    let json = br#"[{"drop_table":1001},{"drop_storage":"s"}]"#;
    let header = [
        &[1, 0][..],
        &[7; 16],
        &[2, 0, 0, 0],
        &[0, 0],
        &[2, 1, 0, 0, 0, 0, 0, 0],
        &1_258_i64.to_le_bytes(),
        &[5, 0, 0, 0, 0, 0, 0, 0],
        &[json.len() as u8, 0, 0, 0],
        json,
        &[1, 0, 0, 0],
        &1000_u32.to_le_bytes(),
        &[7, 0, 0, 0, 0, 0, 0, 0],
        &[1, 0, 0, 0],
        &[1, 0, 0, 0],
        &[3, 0, 0, 0, 0, 0, 0, 0],
    ];
    assert_eq!(
        batch.ops(),
        [
            put(part_key(TableId(1000), ScopeId(7), Seq(258), 0), part.concat()),
            put(header_key(Seq(258)), header.concat()),
        ]
    );
    let mut rows = Vec::new();
    assert_eq!(decode_part(&part.concat().into(), Seq(258), &mut rows).unwrap(), SchemaVersion(1));
    assert_eq!(rows, record.tables[0].rows);
    let decoded = decode_header(&header.concat()).unwrap();
    assert_eq!((decoded.database, decoded.epoch, decoded.shard), (DATABASE, Epoch(2), Shard(0)));
    assert_eq!((decoded.seq, decoded.commit_ts, decoded.principal), (Seq(258), 1_258, UserId(5)));
    assert_eq!(decoded.catalog, record.catalog);
    let (table, scope, version) = (TableId(1000), ScopeId(7), SchemaVersion(1));
    assert_eq!(decoded.tables, [TableSummary { table, scope, version, parts: 1, rows: 3 }]);

    // With flag bit 0, the id of the client's transaction stands before the catalog changes.
    let mut flagged = header;
    let named = [&[2, 0, 0, 0][..], b"id", &[json.len() as u8, 0, 0, 0]].concat();
    flagged[0] = &[1, 1];
    flagged[7] = &named;
    assert_eq!(decode_header(&flagged.concat()).unwrap(), decoded);
}

#[test]
fn the_floor_is_frozen() {
    let mut batch = WriteBatch::new();
    put_floor(&mut batch, Seq(258));
    let (key, value) = (Bytes::from_static(b"log_floor"), Bytes::from_static(&[0, 0, 0, 0, 0, 0, 1, 2]));
    assert_eq!(batch.ops(), [WriteOp::Put { partition: Partition::Meta, key, value }]);
    let storage = RocksStorage::in_memory(StorageOptions::default()).unwrap();
    storage.write(batch, false).unwrap();
    assert_eq!(floor(&*storage.snapshot()).unwrap(), Seq(258));
}

/// The rows are compressed by zstd, whose versions write different bytes. So what counts is that a part is
/// read; only the bytes before the rows must be written again as they are.
#[test]
fn the_bytes_of_rows_as_columns_are_frozen() {
    // 2 | version 4 | 2 rows | checksum | length 18, the types | the rows: ("a", 258, "x"), ("b", NULL, NULL)
    let part = STANDARD
        .decode(concat!(
            "AgQAAAACAAAAAvQ/jBIAAABbImJpZ19pbnQiLCJ0ZXh0Il0otS/9YFABRQcAsgsdI5ApaQ3/x/ru7k7fXo8D9VNbr/W1",
            "rgPfGmnDzW55t0Y2ITIFv20bqo5SSKg6CqkHUYK1MRVYl8cR6ILwpUEigKjOtjUdFhiOLKZiUF88USPg6ai0qHgq0zaI",
            "D1x5SuptEgV/OLL5eY6aesYzqYgyfvrEtgU6IPCCESLzBs4YsiQYSGYZbTMZgHwyK8s8gQiMZlc3GPjABj6wgRn4wAfW",
            "QPHB9oxcJlxa8IfPZigH/G8G+nCFPJF5yAVCc1Hc25YjC0ZPwd20E3csHpAxLjc/bdP7BXbvOzuZqu0EiPU8/znZLxks",
            "Aw==",
        ))
        .unwrap();
    let mut rows = Vec::new();
    assert_eq!(decode_part(&part.clone().into(), Seq(9), &mut rows).unwrap(), SchemaVersion(4));
    let header: [u8; 14] = [1, 0, 4, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
    let first = [&header[..], &[0], &[2, 1, 0, 0, 0, 0, 0, 0], &[1, 0, 0, 0], b"x"].concat();
    let second = [&header[..], &[0b11]].concat();
    assert_eq!(rows, [insert("a", &first), insert("b", &second)]);

    let columns: [ArrayRef; 2] = [
        Arc::new(Int64Array::from(vec![Some(258), None])),
        Arc::new(StringArray::from(vec![Some("x"), None])),
    ];
    let types = [ColumnType::BigInt, ColumnType::Text];
    let keys = ["a", "b"].map(|key| Bytes::from(key.to_owned()));
    let written = columns_part(SchemaVersion(4), &types, &keys, &columns).unwrap();
    let (checksum, zstd_magic_end) = (9..13, 39);
    assert_eq!(written[..checksum.start], part[..checksum.start]);
    assert_eq!(written[checksum.end..zstd_magic_end], part[checksum.end..zstd_magic_end]);
}

#[test]
fn rows_as_columns_come_back_or_are_known_to_be_damaged() {
    let types = [ColumnType::BigInt, ColumnType::Json];
    let columns: [ArrayRef; 2] = [
        Arc::new(Int64Array::from(vec![Some(1), None, Some(-3)])),
        Arc::new(StringArray::from(vec![Some("[1]"), Some("null"), None])),
    ];
    let keys = ["a", "b", "c"].map(|key| Bytes::from(key.to_owned()));
    let part = columns_part(SchemaVersion(4), &types, &keys, &columns).unwrap();
    let mut rows = Vec::new();
    assert_eq!(decode_part(&part, Seq(9), &mut rows).unwrap(), SchemaVersion(4));
    let mut encoded = RowEncoder::new(SchemaVersion(4), types.to_vec()).encode(&columns, 3, None).unwrap();
    encoded.iter_mut().for_each(|row| set_row_seq(row, Seq(9)).unwrap());
    let expected: Vec<RowChange> = keys
        .iter()
        .zip(encoded)
        .map(|(key, row)| RowChange { op: RowOp::Insert, key: key.clone(), old: None, new: Some(row.into()) })
        .collect();
    assert_eq!(rows, expected);
    for place in 0..part.len() {
        let mut damaged = part.to_vec();
        damaged[place] ^= 1;
        let error = decode_part(&damaged.into(), Seq(9), &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corruption, "byte {place}");
    }
}
