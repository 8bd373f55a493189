//! The entries of partition `Meta`. Frozen: every database has them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::fixture::{ANN, START_US, TestStorage, dump, open, put_user};
use crate::clock::ManualClock;
use crate::commit::WriteSet;
use crate::ids::{DatabaseId, Epoch, NamespaceId, Seq, TableId, UserId};
use crate::storage::{Partition, StorageBackend, WriteBatch};

/// The entries of a database that was created at `START_US` and opened twice. Its only commit created `ANN`.
fn entries(database: &[u8; 16]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let entries: [(&[u8], &[u8]); 9] = [
        (
            b"catalog/namespace/1",
            br#"{"put_namespace":{"id":1,"name":"public","revision":1,"created_at":1700000000000000}}"#,
        ),
        (
            b"catalog/namespace/2",
            br#"{"put_namespace":{"id":2,"name":"system","revision":1,"created_at":1700000000000000}}"#,
        ),
        (
            b"catalog/storage/local",
            concat!(
                r#"{"put_storage":{"id":"local","revision":1,"name":"Local","#,
                r#""description":"a folder of the data directory","#,
                r#""storage_type":"filesystem","base_directory":"","#,
                r#""created_at":1700000000000000,"updated_at":1700000000000000}}"#,
            )
            .as_bytes(),
        ),
        (
            b"catalog/user/1",
            concat!(
                r#"{"put_user":{"id":1,"username":"ann","revision":1,"role":"user","#,
                r#""created_at":1700000000000000,"updated_at":1700000000000000,"auth_generation":0}}"#,
            )
            .as_bytes(),
        ),
        (
            b"catalog_header",
            concat!(
                r#"{"created_at":1700000000000000,"next_namespace_id":10,"#,
                r#""next_table_id":1000,"next_user_id":2}"#,
            )
            .as_bytes(),
        ),
        (b"database_id", database),
        // The present epoch.
        (b"epoch", &[0, 0, 0, 2]),
        // The last commit of epoch 1.
        (b"epoch_end/\0\0\0\x01", &[0, 0, 0, 0, 0, 0, 0, 1]),
        // The last commit: its seq and its time.
        (b"last_commit", &[0, 0, 0, 0, 0, 0, 0, 1, 0, 6, 0x0A, 0x24, 0x18, 0x1E, 0x40, 0]),
    ];
    entries.map(|(key, value)| (key.to_vec(), value.to_vec())).into()
}

#[tokio::test]
async fn the_state_of_a_store_is_frozen() {
    let (storage, clock) = (TestStorage::new(), Arc::new(ManualClock::new(START_US)));
    let committer = open(&storage, &clock).unwrap();
    let mut set = WriteSet::new(UserId::SYSTEM, Seq::ZERO);
    set.catalog.push(put_user(ANN, "ann"));
    committer.commit(set).await.unwrap();
    let database = committer.database_id();
    committer.shutdown().await.unwrap();
    let committer = open(&storage, &clock).unwrap();
    let written = dump(&*committer.snapshot().storage, Partition::Meta, b"");
    assert_eq!(written, entries(database.0.as_bytes()));
}

#[tokio::test]
async fn the_frozen_state_is_read() {
    let (storage, clock) = (TestStorage::new(), Arc::new(ManualClock::new(START_US)));
    let mut batch = WriteBatch::new();
    for (key, value) in entries(&[7; 16]) {
        batch.put(Partition::Meta, key, value);
    }
    // The change log was trimmed up to the last commit.
    batch.put(Partition::Meta, &b"log_floor"[..], vec![0, 0, 0, 0, 0, 0, 0, 1]);
    storage.write(batch, true).unwrap();
    let committer = open(&storage, &clock).unwrap();
    let snapshot = committer.snapshot();
    assert_eq!(committer.database_id(), DatabaseId(uuid::Uuid::from_bytes([7; 16])));
    assert_eq!((snapshot.seq, snapshot.commit_ts, snapshot.epoch), (Seq(1), START_US, Epoch(3)));
    assert_eq!(snapshot.log_floor, Seq(1));
    let epochs = committer.epochs();
    assert!(epochs.contains(Epoch(1), Seq(1)) && !epochs.contains(Epoch(1), Seq(2)));
    let header = snapshot.catalog.header();
    assert_eq!((header.created_at, header.next_user_id), (START_US, UserId(2)));
    assert_eq!((header.next_namespace_id, header.next_table_id), (NamespaceId(10), TableId(1000)));
    assert_eq!(snapshot.catalog.user_by_name("ann").unwrap().id, ANN);
    assert!(snapshot.catalog.namespace("public").is_some() && snapshot.catalog.storage("local").is_some());
}
