//! Closing and reopening: what is kept, what is refused.

use std::fs;
use std::sync::Arc;

use super::fixture::{ANN, Fixture, dump, insert, open, put_user, state_of, stored};
use crate::clock::SystemClock;
use crate::commit::{Committer, WriteSet};
use crate::config::Config;
use crate::error::ErrorKind;
use crate::ids::{Epoch, ScopeId, Seq, UserId};
use crate::schema_registry::CatalogChange;
use crate::storage::{DataDirectory, KeyRange, Partition, StorageBackend, WriteBatch};

const SHARED: ScopeId = ScopeId::SHARED;

#[tokio::test]
async fn reopening_keeps_every_commit_and_begins_an_epoch() {
    let fixture = Fixture::new().await;
    fixture.insert(1, "one").await.unwrap();
    let before = fixture.snapshot();
    let database = fixture.committer.database_id();
    fixture.committer.shutdown().await.unwrap();
    assert_eq!(fixture.insert(2, "late").await.unwrap_err().kind(), ErrorKind::Unavailable);

    let committer = open(&fixture.storage, &fixture.clock).unwrap();
    let after = committer.snapshot();
    assert_eq!((after.seq, after.commit_ts, after.epoch), (before.seq, before.commit_ts, Epoch(2)));
    assert_eq!(committer.database_id(), database);
    assert_eq!(after.catalog.header(), before.catalog.header());
    assert_eq!(after.catalog.records(), before.catalog.records());
    assert!(stored(&after, &fixture.shared, SHARED, 1).is_some());
    let epochs = committer.epochs();
    assert!(epochs.contains(Epoch(1), Seq(2)) && !epochs.contains(Epoch(1), Seq(3)));
    assert!(epochs.contains(Epoch(2), Seq(3)) && !epochs.contains(Epoch(3), Seq(1)));

    let duplicate = fixture.set(&fixture.shared, SHARED, vec![insert(&fixture.shared, SHARED, 1, "again")]);
    assert_eq!(state_of(&committer.commit(duplicate).await), "23505");
    let next = fixture.set(&fixture.shared, SHARED, vec![insert(&fixture.shared, SHARED, 2, "two")]);
    assert_eq!(committer.commit(next).await.unwrap().seq, before.seq.next());
}

#[tokio::test]
async fn numbers_of_dropped_users_are_not_given_out_after_reopening() {
    let fixture = Fixture::new().await;
    let mut drop = WriteSet::new(ANN, Seq(1));
    drop.catalog.push(CatalogChange::DropUser(UserId(2)));
    fixture.committer.commit(drop).await.unwrap();
    fixture.committer.shutdown().await.unwrap();
    let committer = open(&fixture.storage, &fixture.clock).unwrap();
    assert_eq!(committer.snapshot().catalog.next_user_id(), UserId(3));
    assert!(committer.snapshot().catalog.user(UserId(2)).is_none());
}

#[tokio::test]
async fn a_trimmed_log_can_be_reopened() {
    let fixture = Fixture::new().await;
    fixture.insert(1, "one").await.unwrap();
    let mut trim = WriteSet::new(UserId::SYSTEM, Seq(2));
    trim.trim_log_to = Some(Seq(2));
    fixture.committer.commit(trim).await.unwrap();
    fixture.committer.shutdown().await.unwrap();
    let committer = open(&fixture.storage, &fixture.clock).unwrap();
    assert_eq!((committer.seq(), committer.snapshot().log_floor), (Seq(3), Seq(2)));
}

#[tokio::test]
async fn a_store_that_does_not_fit_together_is_refused() {
    let damage: [fn(&mut WriteBatch); 4] = [
        |batch| batch.delete_range(Partition::Log, KeyRange::prefix("H")),
        |batch| batch.delete(Partition::Meta, &b"last_commit"[..]),
        |batch| batch.put(Partition::Meta, &b"catalog/user/1"[..], &b"{}"[..]),
        |batch| batch.delete(Partition::Meta, &b"database_id"[..]),
    ];
    for damage in damage {
        let fixture = Fixture::new().await;
        fixture.committer.shutdown().await.unwrap();
        let mut batch = WriteBatch::new();
        damage(&mut batch);
        fixture.storage.write(batch, false).unwrap();
        let error = open(&fixture.storage, &fixture.clock).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
    }
}

fn open_at(path: &std::path::Path) -> crate::Result<Arc<Committer>> {
    Committer::open_config(&Config::at(path), Arc::new(SystemClock))
}

async fn add_user(committer: &Committer, name: &str) -> Seq {
    let snapshot = committer.snapshot();
    let mut set = WriteSet::new(UserId::SYSTEM, snapshot.seq);
    set.catalog.push(put_user(snapshot.catalog.next_user_id(), name));
    committer.commit(set).await.unwrap().seq
}

#[tokio::test]
async fn a_database_on_disk_survives_and_is_held_by_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let committer = open_at(folder.path()).unwrap();
    let seq = add_user(&committer, "ann").await;
    let error = open_at(folder.path()).err().unwrap();
    assert!(error.to_string().contains("in use by another process"), "{error}");
    committer.shutdown().await.unwrap();
    let kept = dump(&*committer.snapshot().storage, Partition::Meta, b"catalog/");
    drop(committer);

    let committer = open_at(folder.path()).unwrap();
    assert_eq!((committer.seq(), committer.snapshot().epoch), (seq, Epoch(2)));
    assert_eq!(dump(&*committer.snapshot().storage, Partition::Meta, b"catalog/"), kept);
}

#[tokio::test]
async fn dropping_a_committer_closes_it() {
    let folder = tempfile::tempdir().unwrap();
    for epoch in 1..=3 {
        let committer = open_at(folder.path()).unwrap();
        assert_eq!(committer.snapshot().epoch, Epoch(epoch));
        add_user(&committer, &format!("user{epoch}")).await;
    }
}

#[tokio::test]
async fn a_store_older_than_the_synced_note_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let committer = open_at(folder.path()).unwrap();
    let seq = add_user(&committer, "ann").await;
    drop(committer);
    let directory = DataDirectory::open(folder.path()).unwrap();
    assert_eq!(directory.synced_seq(), Some((Epoch(1), seq)));
    directory.note_synced_seq(Epoch(1), seq.next());
    drop(directory);
    let error = open_at(folder.path()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corruption);
    assert_eq!(error.message(), "the store ends at commit 1, but commit 2 was synced to disk");
}

#[tokio::test]
async fn a_lost_store_is_not_taken_for_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let committer = open_at(folder.path()).unwrap();
    add_user(&committer, "ann").await;
    drop(committer);
    fs::remove_dir_all(folder.path().join("store")).unwrap();
    assert_eq!(open_at(folder.path()).err().unwrap().kind(), ErrorKind::Corruption);
}
