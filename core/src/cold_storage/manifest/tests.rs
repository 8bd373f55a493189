//! Tests that a range pays for its own deleted rows, not for those of its segment.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::cold_storage::{STORAGE_LOCAL, put_mark};
use crate::ids::SchemaVersion;
use crate::storage::{Entries, RocksStorage, StorageBackend, StorageOptions, Visitor};

const TABLE: TableId = TableId(258);
const SEGMENT: SegmentId = SegmentId(7);
const ROWS: u32 = 100_000;

/// A snapshot that counts the entries that it gives to readers.
struct Counting {
    snapshot: Arc<dyn StorageSnapshot>,
    given: AtomicUsize,
}

impl StorageSnapshot for Counting {
    fn get(&self, partition: Partition, key: &[u8]) -> Result<Option<Bytes>> {
        self.snapshot.get(partition, key)
    }

    fn multi_get(&self, partition: Partition, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        let values = self.snapshot.multi_get(partition, keys)?;
        self.given.fetch_add(values.iter().flatten().count(), Ordering::Relaxed);
        Ok(values)
    }

    fn scan<'a>(&'a self, partition: Partition, range: KeyRange, direction: Direction) -> Entries<'a> {
        self.snapshot.scan(partition, range, direction)
    }

    fn visit(
        &self,
        partition: Partition,
        range: KeyRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        self.snapshot.visit(partition, range, direction, &mut |key, value| {
            self.given.fetch_add(1, Ordering::Relaxed);
            visit(key, value)
        })
    }
}

fn new_segment() -> NewSegment {
    let segment = Segment {
        id: SEGMENT,
        table: TABLE,
        version: SchemaVersion(1),
        storage: STORAGE_LOCAL.into(),
        path: "258/00000001-00000007.parquet".to_owned(),
        rows: ROWS,
        bytes: 2_048,
        first_key: vec![0],
        last_key: vec![9],
        through: Seq(41),
        commit: None,
        created_at: 5,
        checksums: Vec::new(),
    };
    NewSegment { segment: Arc::new(segment), filter: Bytes::new(), keys: Arc::default() }
}

/// Of three rows one is in the deletion vector and one has a mark; of six, one is in both.
fn is_in_vector(position: u32) -> bool {
    position.is_multiple_of(3)
}

fn has_mark(position: u32) -> bool {
    position % 3 == 1 || position.is_multiple_of(6)
}

#[test]
fn a_range_reads_the_marks_of_its_own_rows() {
    let mut batch = WriteBatch::new();
    let changes = [
        ColdChange::Flush { table: TABLE, through: Seq(41), added: vec![new_segment()] },
        ColdChange::ApplyMarks {
            table: TABLE,
            segment: SEGMENT,
            positions: (0..ROWS).filter(|position| is_in_vector(*position)).collect(),
        },
    ];
    let mut manifest = Manifest::empty(SegmentStore::in_memory(0));
    for (change, seq) in changes.iter().zip(42..) {
        manifest = manifest.apply(change, Seq(seq), &mut batch).unwrap().0;
    }
    for position in (0..ROWS).filter(|position| has_mark(*position)) {
        put_mark(&mut batch, Place { segment: SEGMENT, position }, Seq(44));
    }
    // The marks of the neighbours in the store.
    put_mark(&mut batch, Place { segment: SegmentId(6), position: u32::MAX }, Seq(44));
    put_mark(&mut batch, Place { segment: SegmentId(8), position: 0 }, Seq(44));
    let storage = RocksStorage::in_memory(StorageOptions::default()).unwrap();
    storage.write(batch, false).unwrap();
    let counting = Counting { snapshot: storage.snapshot(), given: AtomicUsize::new(0) };

    let check = |ranges: &[Range<u32>]| {
        let positions: Vec<u32> = ranges.iter().cloned().flatten().collect();
        let (mut deleted, mut marks) = (Vec::new(), 0);
        for position in positions {
            if is_in_vector(position) || has_mark(position) {
                deleted.push(position);
            }
            marks += usize::from(has_mark(position));
        }
        counting.given.store(0, Ordering::Relaxed);
        assert_eq!(manifest.deleted_in(&counting, TABLE, SEGMENT, ranges).unwrap(), deleted, "{ranges:?}");
        assert_eq!(counting.given.load(Ordering::Relaxed), marks, "the marks read for {ranges:?}");
    };
    let everything = 0..ROWS;
    check(&[]);
    check(&[0..1, 5..5]);
    check(&[4..5, 6..7, 99_999..ROWS]);
    check(&[7..19, 20..21, 50_000..50_100, ROWS - 9..ROWS]);
    check(std::slice::from_ref(&everything));
    let all: Vec<u32> = manifest.deleted(&counting, TABLE, SEGMENT).unwrap().into_iter().collect();
    let found = manifest.deleted_in(&counting, TABLE, SEGMENT, std::slice::from_ref(&everything)).unwrap();
    assert_eq!(found, all);
    let unknown = manifest.deleted_in(&counting, TABLE, SegmentId(5), std::slice::from_ref(&everything));
    assert_eq!(unknown.unwrap(), Vec::<u32>::new());
}
