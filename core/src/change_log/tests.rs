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
    let slice =
        read(snapshot, TableId(table), ScopeId(scope), Seq(after), Seq(up_to), usize::MAX).unwrap()?;
    assert_eq!(slice.complete_through, Seq(up_to.max(after)));
    Some(slice.changes.iter().map(|(seq, _)| seq.0).collect())
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
            let slice = read(&*snapshot, table.table, table.scope, Seq(8), Seq(9), 0).unwrap().unwrap();
            prop_assert_eq!(slice.changes, vec![(Seq(9), table.clone())]);
        }
        let header = last_header(&*snapshot).unwrap().unwrap();
        prop_assert_eq!((header.database, header.seq, header.principal), (DATABASE, Seq(9), UserId(5)));
        prop_assert_eq!(header.catalog, record.catalog);
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
fn a_read_ends_at_a_commit_once_it_has_enough() {
    let commits: Vec<_> =
        (1..=4).map(|seq| record(seq, vec![changes(1, 0, vec![insert("k", &[0; 100])])])).collect();
    let snapshot = store_with(&commits).snapshot();
    let read = |after| read(&*snapshot, TableId(1), ScopeId(0), Seq(after), Seq(9), 150).unwrap().unwrap();
    let first = read(0);
    assert_eq!((first.changes.len(), first.complete_through), (2, Seq(2)));
    let second = read(2);
    assert_eq!((second.changes.len(), second.complete_through), (2, Seq(9)));
}

#[test]
fn large_commits_are_cut_into_parts_and_read_as_one() {
    let rows: Vec<_> =
        (0..5).map(|row| insert(&format!("k{row}"), &vec![row; PART_BYTES_MAX * 2 / 5])).collect();
    let mut rows_with_giant = rows.clone();
    rows_with_giant.insert(2, insert("giant", &vec![9; PART_BYTES_MAX + 1]));
    let record = record(1, vec![changes(1, 0, rows_with_giant)]);
    let snapshot = store_with(std::slice::from_ref(&record)).snapshot();
    assert_eq!(header(&*snapshot, Seq(1)).unwrap().unwrap().tables[0].parts, 4);
    let slice = read(&*snapshot, TableId(1), ScopeId(0), Seq(0), Seq(1), 1).unwrap().unwrap();
    assert_eq!(slice.changes, vec![(Seq(1), record.tables[0].clone())]);
    assert_eq!(read_record(&*snapshot, Seq(1)).unwrap().unwrap(), record);
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
