//! The stored bytes about segments. Frozen: a database has them in its store and in its backups.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use bytes::Bytes;
use parquet::basic::Compression;
use parquet::bloom_filter::Sbbf;

use super::object_storage::Sink;
use super::*;
use crate::ids::{ColumnId, SchemaVersion, SegmentId, Seq, TableId};
use crate::storage::{
    Direction, KeyRange, Partition, RocksStorage, StorageBackend, StorageOptions, WriteBatch,
};

const TABLE: TableId = TableId(0x0102);

const SEGMENT_7: &str = concat!(
    r#"{"id":7,"table":258,"version":3,"storage":"local","path":"258/00000001-00000007.parquet","#,
    r#""rows":10,"bytes":2048,"first_key":"AAE=","last_key":"AAn/","through":41,"#,
    r#""created_at":5,"checksums":"AQIDBA=="}"#,
);
/// A segment of a large INSERT.
const SEGMENT_8: &str = concat!(
    r#"{"id":8,"table":258,"version":3,"storage":"archive","path":"258/00000001-00000008.parquet","#,
    r#""rows":10,"bytes":2048,"first_key":"AAE=","last_key":"AAn/","through":41,"commit":43,"#,
    r#""created_at":5,"checksums":"AQIDBA=="}"#,
);
const SEGMENT_9: &str = concat!(
    r#"{"id":9,"table":258,"version":3,"storage":"local","path":"258/00000001-00000009.parquet","#,
    r#""rows":10,"bytes":2048,"first_key":"AAE=","last_key":"AAn/","through":41,"#,
    r#""created_at":5,"checksums":"AQIDBA=="}"#,
);

fn segment(id: u32, storage: &str, commit: Option<Seq>) -> Segment {
    Segment {
        id: SegmentId(id),
        table: TABLE,
        version: SchemaVersion(3),
        storage: storage.into(),
        path: format!("258/00000001-{id:08x}.parquet"),
        rows: 10,
        bytes: 2_048,
        first_key: vec![0, 1],
        last_key: vec![0, 9, 0xFF],
        through: Seq(41),
        commit,
        created_at: 5,
        checksums: vec![1, 2, 3, 4],
    }
}

fn new_segment(segment: Segment) -> NewSegment {
    NewSegment { segment: Arc::new(segment), filter: Bytes::from(vec![0xAA; 32]), keys: Arc::default() }
}

/// The entries of a store with segments 7 and 8, and 9 retired.
fn entries() -> BTreeMap<Vec<u8>, Vec<u8>> {
    let entries: [(&[u8], &[u8]); 10] = [
        // The deletion vector of segment 7.
        (
            b"D\0\0\0\x07",
            &[
                0x3A, 0x30, 0, 0, // Roaring's mark of a bitmap without runs
                1, 0, 0, 0, // containers
                0, 0, 1, 0, // container 0: upper half of its positions, their number - 1
                16, 0, 0, 0, // offset of container 0
                1, 0, 0x2C, 1, // positions 1 and 300
            ],
        ),
        // The table: flushed seq, moved seq.
        (b"F\0\0\x01\x02", b"\0\0\0\0\0\0\0\x29\0\0\0\0\0\0\0\x2D"),
        // The retired segment.
        (b"G\0\0\0\x09", SEGMENT_9.as_bytes()),
        // The key filters.
        (b"K\0\0\0\x07", &[0xAA; 32]),
        (b"K\0\0\0\x08", &[0xAA; 32]),
        // A mark: row 3 of segment 8 was deleted by commit 46.
        (b"M\0\0\0\x08\0\0\0\x03", b"\0\0\0\0\0\0\0\x2E"),
        // The next segment.
        (b"N", b"\0\0\0\x0A"),
        // The manifest must be published: as of which seq, and in which storage.
        (b"P\0\0\x01\x02", b"\0\0\0\0\0\0\0\x2Darchive"),
        // The segments.
        (b"S\0\0\x01\x02\0\0\0\x07", SEGMENT_7.as_bytes()),
        (b"S\0\0\x01\x02\0\0\0\x08", SEGMENT_8.as_bytes()),
    ];
    entries.map(|(key, value)| (key.to_vec(), value.to_vec())).into()
}

fn stored(batch: WriteBatch) -> RocksStorage {
    let storage = RocksStorage::in_memory(StorageOptions::default()).unwrap();
    storage.write(batch, false).unwrap();
    storage
}

#[test]
fn the_entries_of_the_manifest_are_frozen() {
    let changes = [
        ColdChange::Flush {
            table: TABLE,
            through: Seq(41),
            added: vec![new_segment(segment(7, "local", None)), new_segment(segment(9, "local", None))],
        },
        ColdChange::Insert { table: TABLE, added: vec![new_segment(segment(8, "archive", Some(Seq(43))))] },
        ColdChange::ApplyMarks {
            table: TABLE,
            segment: SegmentId(7),
            positions: [1, 300].into_iter().collect(),
        },
        ColdChange::Compact { table: TABLE, removed: vec![SegmentId(9)], added: Vec::new() },
    ];
    let mut manifest = Manifest::empty(SegmentStore::in_memory(0));
    let mut batch = WriteBatch::new();
    for (change, seq) in changes.iter().zip(42..) {
        manifest = manifest.apply(change, Seq(seq), &mut batch).unwrap().0;
    }
    put_mark(&mut batch, Place { segment: SegmentId(8), position: 3 }, Seq(46));
    let storage = stored(batch);
    let snapshot = storage.snapshot();
    let written: BTreeMap<Vec<u8>, Vec<u8>> = snapshot
        .scan(Partition::Cold, KeyRange::all(), Direction::Forward)
        .map(|entry| entry.map(|(key, value)| (key.into_vec(), value.into_vec())).unwrap())
        .collect();
    assert_eq!(written, entries());
}

#[test]
fn the_frozen_entries_are_read() {
    let mut batch = WriteBatch::new();
    for (key, value) in entries() {
        batch.put(Partition::Cold, key, value);
    }
    let storage = stored(batch);
    let snapshot = storage.snapshot();
    let manifest = restore(&*snapshot, SegmentStore::in_memory(0), None).unwrap();
    let segments: Vec<&Segment> = manifest.segments(TABLE).iter().map(|segment| &**segment).collect();
    assert_eq!(segments, [&segment(7, "local", None), &segment(8, "archive", Some(Seq(43)))]);
    assert_eq!((manifest.flushed(TABLE), manifest.moved(TABLE)), (Seq(41), Seq(45)));
    assert_eq!(manifest.next(), SegmentId(10));
    let due = manifest.unpublished().get(&TABLE).unwrap();
    assert_eq!(*due, Unpublished { seq: Seq(45), storage: "archive".into() });
    assert_eq!(manifest.store().retired_paths(), ["258/00000001-00000009.parquet"]);
    let deleted = |id| manifest.deleted(&*snapshot, TABLE, SegmentId(id)).unwrap();
    assert_eq!(deleted(7).into_iter().collect::<Vec<_>>(), [1, 300]);
    assert_eq!(deleted(8).into_iter().collect::<Vec<_>>(), [3]);
    assert_eq!(marked_after(&*snapshot, SegmentId(8), Seq::ZERO).unwrap(), [(3, Seq(46))]);
    assert_eq!(inconsistencies(&*snapshot, &manifest).unwrap(), Vec::<String>::new());
    // A text without a storage means `local`.
    let text = SEGMENT_7.replace(r#""storage":"local","#, "");
    assert_eq!(serde_json::from_str::<Segment>(&text).unwrap(), segment(7, "local", None));
}

#[test]
fn a_key_filter_is_frozen() {
    const FILTER: [u8; 64] = [
        0x16, 0x42, 0x00, 0xB2, 0xC0, 0x01, 0x48, 0x18, 0x4A, 0x28, 0x49, 0x00, 0x27, 0x40, 0x60, 0x10, 0x80,
        0x30, 0x4A, 0x07, 0x19, 0x86, 0x01, 0x02, 0x30, 0x0A, 0x08, 0x06, 0x04, 0x02, 0x46, 0x50, 0x38, 0x28,
        0x04, 0xE1, 0x09, 0x3B, 0x02, 0x00, 0x2C, 0x03, 0x50, 0xA0, 0x35, 0xE9, 0xA0, 0x00, 0x02, 0x37, 0x1D,
        0x20, 0x4A, 0xC4, 0x0C, 0x82, 0x14, 0x14, 0x94, 0x36, 0xE2, 0x44, 0x08, 0x0A,
    ];
    let keys: Vec<Bytes> = (0..20_u32).map(|key| Bytes::from(key.to_be_bytes().to_vec())).collect();
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(0..20));
    let batch = RecordBatch::try_from_iter([("id", column)]).unwrap();
    let columns = vec![ReadColumn { id: ColumnId(1), absent: None }];
    let schema = ReadSchema::new(batch.schema(), columns).unwrap();
    let sink = Sink::Memory(Vec::new());
    let mut writer = SegmentWriter::new(sink, &schema, Compression::UNCOMPRESSED).unwrap();
    writer.push(&batch, &keys).unwrap();
    assert_eq!(*writer.finish().unwrap().filter, FILTER);
    let filter = Sbbf::new(&FILTER);
    assert!(keys.iter().all(|key| filter.check(&**key)));
    assert!(!(20..1_000_u32).any(|key| filter.check(&key.to_be_bytes()[..])));
}
