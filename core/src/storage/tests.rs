//! One contract, tested on every storage backend.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::*;

fn on_every_backend(check: impl Fn(&dyn StorageBackend)) {
    check(&RocksStorage::in_memory(StorageOptions::default()).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let directory = Arc::new(DataDirectory::open(folder.path()).unwrap());
    check(&RocksStorage::open(directory, StorageOptions::default()).unwrap());
}

fn put_all(storage: &dyn StorageBackend, partition: Partition, keys: &[&[u8]]) {
    let mut batch = WriteBatch::new();
    for key in keys {
        batch.put(partition, key.to_vec(), [b"value of ", *key].concat());
    }
    storage.write(batch, true).unwrap();
}

fn scanned(
    storage: &dyn StorageBackend,
    partition: Partition,
    range: KeyRange,
    direction: Direction,
) -> Vec<Vec<u8>> {
    let snapshot = storage.snapshot();
    let scanned: Vec<Vec<u8>> = snapshot
        .scan(partition, range.clone(), direction)
        .map(|entry| entry.map(|(key, _)| key.into_vec()))
        .collect::<Result<_>>()
        .unwrap();
    let mut visited = Vec::new();
    snapshot
        .visit(partition, range, direction, &mut |key, value| {
            assert_eq!(value, [b"value of ", key].concat());
            visited.push(key.to_vec());
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    assert_eq!(scanned, visited);
    scanned
}

#[test]
fn partitions_are_apart_and_batches_apply_in_order() {
    on_every_backend(|storage| {
        let mut batch = WriteBatch::new();
        batch.put(Partition::Meta, &b"k"[..], &b"meta"[..]);
        batch.put(Partition::Rows, &b"k"[..], &b"rows"[..]);
        batch.put(Partition::Log, &b"k"[..], &b"log"[..]);
        batch.delete(Partition::Log, &b"k"[..]);
        batch.delete_range(Partition::Meta, KeyRange::prefix("k"));
        batch.put(Partition::Meta, &b"k2"[..], &b"kept"[..]);
        storage.write(batch, false).unwrap();
        storage.sync().unwrap();
        let snapshot = storage.snapshot();
        assert_eq!(snapshot.get(Partition::Meta, b"k").unwrap(), None);
        assert_eq!(snapshot.get(Partition::Meta, b"k2").unwrap().as_deref(), Some(&b"kept"[..]));
        assert_eq!(snapshot.get(Partition::Rows, b"k").unwrap().as_deref(), Some(&b"rows"[..]));
        assert_eq!(snapshot.get(Partition::Log, b"k").unwrap(), None);
        assert!(storage.metrics().memtable_bytes > 0);
    });
}

#[test]
fn a_snapshot_does_not_change_and_outlives_its_store() {
    let folder = tempfile::tempdir().unwrap();
    let directory = Arc::new(DataDirectory::open(folder.path()).unwrap());
    let storage = RocksStorage::open(directory, StorageOptions::default()).unwrap();
    put_all(&storage, Partition::Rows, &[b"a"]);
    let snapshot = storage.snapshot();
    put_all(&storage, Partition::Rows, &[b"b"]);
    drop(storage);
    assert_eq!(snapshot.get(Partition::Rows, b"b").unwrap(), None);
    assert!(snapshot.get(Partition::Rows, b"a").unwrap().is_some());
    assert!(DataDirectory::open(folder.path()).is_err(), "the lock is held while a snapshot lives");
    drop(snapshot);
    let directory = Arc::new(DataDirectory::open(folder.path()).unwrap());
    let storage = RocksStorage::open(directory, StorageOptions::default()).unwrap();
    assert!(storage.snapshot().get(Partition::Rows, b"b").unwrap().is_some());
}

#[test]
fn what_is_in_memory_is_told_without_the_disk() {
    on_every_backend(|storage| {
        put_all(storage, Partition::Rows, &[b"a", b"b"]);
        let before = storage.snapshot();
        let mut batch = WriteBatch::new();
        batch.delete(Partition::Rows, &b"b"[..]);
        storage.write(batch, true).unwrap();
        let snapshot = storage.snapshot();
        let value = |key: &'static [u8]| Cached::Found(Bytes::from([b"value of ", key].concat()));
        assert_eq!(snapshot.get_cached(Partition::Rows, b"a").unwrap(), value(b"a"));
        assert_eq!(snapshot.get_cached(Partition::Rows, b"b").unwrap(), Cached::Absent);
        assert_eq!(snapshot.get_cached(Partition::Log, b"a").unwrap(), Cached::Absent);
        assert_eq!(before.get_cached(Partition::Rows, b"b").unwrap(), value(b"b"));
    });
}

#[test]
fn memory_never_contradicts_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let directory = Arc::new(DataDirectory::open(folder.path()).unwrap());
        RocksStorage::open(directory, StorageOptions::default()).unwrap()
    };
    let keys: Vec<Vec<u8>> = (0..10_000_u32).map(|number| number.to_be_bytes().to_vec()).collect();
    let storage = open();
    let refs: Vec<&[u8]> = keys.iter().step_by(2).map(Vec::as_slice).collect();
    put_all(&storage, Partition::Rows, &refs);
    drop(storage);
    // The values are in a file now, and no block of it is in memory.
    let storage = open();
    let snapshot = storage.snapshot();
    let mut unknown = 0;
    for key in &keys {
        let cached = snapshot.get_cached(Partition::Rows, key).unwrap();
        let stored = snapshot.get(Partition::Rows, key).unwrap();
        match cached {
            Cached::Found(value) => assert_eq!(Some(value), stored),
            Cached::Absent => assert_eq!(None, stored),
            Cached::Unknown => unknown += 1,
        }
        // The read has brought the block into memory.
        if let Some(stored) = stored {
            let cached = snapshot.get_cached(Partition::Rows, key).unwrap();
            assert_eq!(cached, Cached::Found(stored));
        }
    }
    assert!(unknown > 0, "no read needed the disk");
    assert!(unknown < keys.len() / 4, "{unknown} reads needed the disk");
}

#[test]
fn scans_keep_to_their_range_in_both_directions() {
    let prefix = |table: u8, rest: &[u8]| [&[0, 0, 0, table, 0, 0, 0, 0, 0, 0, 0, 1][..], rest].concat();
    on_every_backend(|storage| {
        let keys = [prefix(1, b"a"), prefix(1, b"b"), prefix(1, b"b\0"), prefix(1, b"c"), prefix(2, b"a")];
        let refs: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        put_all(storage, Partition::Rows, &refs);
        let ranges = [
            KeyRange::all(),
            KeyRange::prefix(prefix(1, b"")),
            KeyRange::prefix(prefix(1, b"b")),
            KeyRange::point(prefix(1, b"b")),
            KeyRange::prefix(vec![0, 0, 0, 2]),
            KeyRange { start: prefix(1, b"b"), end: Some(prefix(2, b"z")) },
            KeyRange { start: prefix(1, b"c"), end: Some(prefix(1, b"b")) },
            KeyRange { start: prefix(9, b""), end: None },
        ];
        for range in ranges {
            let mut expected: Vec<Vec<u8>> = keys.iter().filter(|key| range.contains(key)).cloned().collect();
            assert_eq!(scanned(storage, Partition::Rows, range.clone(), Direction::Forward), expected);
            expected.reverse();
            assert_eq!(scanned(storage, Partition::Rows, range, Direction::Reverse), expected);
        }
    });
}

#[test]
fn many_keys_are_read_in_the_order_asked() {
    on_every_backend(|storage| {
        put_all(storage, Partition::Rows, &[b"a", b"b", b"c", b"d", b"e"]);
        for wanted in
            [&["e", "x", "a", "a", "c"][..], &["a", "b"][..], &["a", "b", "c", "d", "zz"][..], &[][..]]
        {
            let keys: Vec<Bytes> = wanted.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect();
            let found = storage.snapshot().multi_get(Partition::Rows, &keys).unwrap();
            let expected: Vec<Option<Bytes>> = wanted
                .iter()
                .map(|key| (key.len() == 1 && *key < "f").then(|| format!("value of {key}").into()))
                .collect();
            assert_eq!(found, expected);
        }
    });
}

#[test]
fn compacting_leaves_nothing_of_what_nobody_sees_and_all_that_somebody_does() {
    on_every_backend(|storage| {
        let keys: Vec<Vec<u8>> = (0..1_000_u32).map(|key| key.to_be_bytes().to_vec()).collect();
        let slices: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        put_all(storage, Partition::Rows, &slices);
        let old = storage.snapshot();
        let mut batch = WriteBatch::new();
        keys.iter().skip(10).for_each(|key| batch.delete(Partition::Rows, key.clone()));
        storage.write(batch, true).unwrap();
        let range = KeyRange { start: Vec::new(), end: Some(vec![1]) };
        storage.compact(Partition::Rows, &range).unwrap();
        assert_eq!(old.scan(Partition::Rows, KeyRange::all(), Direction::Forward).count(), 1_000);
        drop(old);
        storage.compact(Partition::Rows, &range).unwrap();
        assert_eq!(scanned(storage, Partition::Rows, KeyRange::all(), Direction::Forward), keys[..10]);
        assert_eq!(storage.metrics().rows_estimate, 10);
        assert!(storage.compact(Partition::Rows, &KeyRange::all()).is_err());
    });
}

#[test]
fn a_visit_stops_when_told_and_passes_errors_on() {
    on_every_backend(|storage| {
        put_all(storage, Partition::Log, &[b"a", b"b", b"c"]);
        let mut seen = 0;
        storage
            .snapshot()
            .visit(Partition::Log, KeyRange::all(), Direction::Forward, &mut |_, _| {
                seen += 1;
                Ok(if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })
            .unwrap();
        assert_eq!(seen, 2);
        let error = storage
            .snapshot()
            .visit(Partition::Log, KeyRange::all(), Direction::Forward, &mut |_, _| {
                Err(Error::corruption("bad row"))
            })
            .unwrap_err();
        assert_eq!(error.message(), "bad row");
    });
}

#[test]
fn reopening_keeps_what_was_written_and_ends_older_snapshots() {
    on_every_backend(|storage| {
        put_all(storage, Partition::Rows, &[b"a", b"b"]);
        let old = storage.snapshot();
        storage.reopen().unwrap();
        let keys = [b"a", b"b", b"c", b"d"].map(|key| Bytes::from_static(key));
        let errors = [
            old.get(Partition::Rows, b"a").unwrap_err(),
            old.multi_get(Partition::Rows, &keys).unwrap_err(),
            old.scan(Partition::Rows, KeyRange::all(), Direction::Forward).next().unwrap().unwrap_err(),
            old.visit(Partition::Rows, KeyRange::all(), Direction::Forward, &mut |_, _| unreachable!())
                .unwrap_err(),
        ];
        assert!(
            errors.iter().all(|error| error.kind() == crate::error::ErrorKind::Unavailable),
            "{errors:?}"
        );
        assert_eq!(scanned(storage, Partition::Rows, KeyRange::all(), Direction::Forward).len(), 2);
        put_all(storage, Partition::Rows, &[b"c"]);
        storage.reopen().unwrap();
        assert_eq!(scanned(storage, Partition::Rows, KeyRange::all(), Direction::Reverse).len(), 3);
    });
}

#[test]
fn reopening_ends_reads_that_are_under_way() {
    on_every_backend(|storage| {
        put_all(storage, Partition::Rows, &[b"a", b"b"]);
        let snapshot = storage.snapshot();
        let (enter, entered) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                loop {
                    let visited =
                        snapshot.visit(Partition::Rows, KeyRange::all(), Direction::Forward, &mut |_, _| {
                            // The receiver is dropped after the reopen.
                            let _ = enter.send(());
                            Ok(ControlFlow::Continue(()))
                        });
                    if let Err(error) = visited {
                        return error;
                    }
                }
            });
            entered.recv().unwrap();
            storage.reopen().unwrap();
            drop(entered);
            assert_eq!(reader.join().unwrap().kind(), crate::error::ErrorKind::Unavailable);
        });
    });
}

#[test]
fn prefixes_end_where_the_next_begins() {
    assert_eq!(after_prefix(b"ab"), Some(b"ac".to_vec()));
    assert_eq!(after_prefix(&[1, 0xFF, 0xFF]), Some(vec![2]));
    assert_eq!(after_prefix(&[0xFF, 0xFF]), None);
    assert_eq!(after_prefix(b""), None);
    let both = KeyRange::prefix("b").intersect(&KeyRange { start: b"a".to_vec(), end: Some(b"bc".to_vec()) });
    assert_eq!(both, KeyRange { start: b"b".to_vec(), end: Some(b"bc".to_vec()) });
    assert!(KeyRange::point("x").contains(b"x") && !KeyRange::point("x").contains(b"x\0"));
}

#[tokio::test]
async fn blocking_work_that_panics_is_an_error() {
    let error =
        blocking(|| -> Result<()> { std::panic::resume_unwind(Box::new("broken")) }).await.unwrap_err();
    assert_eq!(error.kind(), crate::error::ErrorKind::Internal);
    assert_eq!(blocking(|| Ok(7)).await.unwrap(), 7);
}
