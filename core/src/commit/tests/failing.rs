//! A failed write: what callers are told, and how writes resume.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::fixture::{ANN, Fault, Fixture, insert, state_of, stored};
use crate::commit::WriteSet;
use crate::error::ErrorKind;
use crate::ids::{Epoch, ScopeId, Seq};
use crate::schema_registry::{CatalogChange, Durability};

const SHARED: ScopeId = ScopeId::SHARED;

/// Waits until the store was reopened `times` times.
async fn reopened(fixture: &Fixture, times: u64) {
    let waiting = async {
        while fixture.committer.reopenings() < times {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_leaves_the_outcome_unknown_and_the_store_is_reopened() {
    for fault in [Fault::Lost, Fault::Kept] {
        let fixture = Fixture::new().await;
        fixture.insert(1, "kept").await.unwrap();
        let before = fixture.snapshot();
        let mut published = fixture.committer.commits().watch();
        *fixture.storage.fault.lock() = Some(fault);
        assert_eq!(state_of(&fixture.insert(2, "unknown").await), "08007");
        reopened(&fixture, 1).await;

        let after = fixture.snapshot();
        let expected = match fault {
            Fault::Lost => before.seq,
            Fault::Kept => before.seq.next(),
        };
        assert_eq!((after.seq, after.epoch), (expected, Epoch(2)), "{fault:?}");
        assert!(stored(&after, &fixture.shared, SHARED, 1).is_some());
        assert_eq!(stored(&after, &fixture.shared, SHARED, 2).is_some(), fault == Fault::Kept);
        assert_eq!(*published.borrow_and_update(), expected);
        let epochs = fixture.committer.epochs();
        assert_eq!(epochs.current(), Epoch(2));
        assert!(epochs.contains(Epoch(1), expected) && !epochs.contains(Epoch(1), expected.next()));
        // Followers go on, through the log if the failed commit turns out to be kept.
        let followed = fixture.committer.commits().after(before.seq);
        assert_eq!(followed.is_none(), fault == Fault::Kept);

        let again = if fault == Fault::Kept { "23505" } else { "ok" };
        assert_eq!(state_of(&fixture.insert(2, "again").await), again);
        let receipt = fixture.insert(3, "after").await.unwrap();
        assert!(stored(&fixture.snapshot(), &fixture.shared, SHARED, 3).is_some());
        assert_eq!(fixture.committer.commits().published(), receipt.seq);
        let error = before.storage.get(crate::storage::Partition::Meta, b"epoch").unwrap_err();
        assert_eq!(error.sqlstate().0, "58030", "older snapshots are told");
        fixture.committer.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_cannot_be_reopened_reads_go_on_and_writes_say_why_not() {
    let fixture = Fixture::new().await;
    fixture.insert(1, "kept").await.unwrap();
    fixture.storage.reopen_fails.store(true, Ordering::SeqCst);
    *fixture.storage.fault.lock() = Some(Fault::Lost);
    assert_eq!(state_of(&fixture.insert(2, "unknown").await), "08007");
    assert!(fixture.committer.is_poisoned() && !fixture.committer.accepts_writes());
    for _ in 0..3 {
        let error = fixture.insert(3, "refused").await.unwrap_err();
        assert_eq!((error.kind(), error.sqlstate().0), (ErrorKind::Unavailable, "58030"));
        assert!(stored(&fixture.snapshot(), &fixture.shared, SHARED, 1).is_some());
    }
    fixture.storage.reopen_fails.store(false, Ordering::SeqCst);
    reopened(&fixture, 1).await;
    assert!(fixture.committer.accepts_writes());
    fixture.insert(3, "after").await.unwrap();
    // A second failure is no different.
    *fixture.storage.fault.lock() = Some(Fault::Kept);
    assert_eq!(state_of(&fixture.insert(4, "unknown").await), "08007");
    reopened(&fixture, 2).await;
    assert_eq!(fixture.snapshot().epoch, Epoch(3));
    assert!(stored(&fixture.snapshot(), &fixture.shared, SHARED, 4).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ping_is_answered_after_the_sets_before_it_and_also_while_writes_are_refused() {
    let fixture = Fixture::new().await;
    let held = fixture.storage.hold_next_write();
    let mut insert = Box::pin(fixture.insert(1, "held"));
    assert!(futures::poll!(&mut insert).is_pending());
    held.entered();
    let steps = fixture.committer.steps();
    let mut ping = Box::pin(fixture.committer.ping());
    assert!(futures::poll!(&mut ping).is_pending());
    held.release();
    insert.await.unwrap();
    ping.await.unwrap();
    assert!(fixture.committer.steps() > steps, "it has done something meanwhile");

    fixture.storage.reopen_fails.store(true, Ordering::SeqCst);
    *fixture.storage.fault.lock() = Some(Fault::Lost);
    assert_eq!(state_of(&fixture.insert(2, "unknown").await), "08007");
    fixture.committer.ping().await.unwrap();
    assert!(fixture.committer.is_poisoned());
    fixture.committer.shutdown().await.unwrap();
    assert_eq!(fixture.committer.ping().await.unwrap_err().sqlstate().0, "57P01");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_sequencer_has_ended_writes_say_so_and_reads_go_on() {
    let fixture = Fixture::new().await;
    fixture.insert(1, "kept").await.unwrap();
    assert!(fixture.committer.accepts_writes());
    fixture.storage.write_panics.store(true, Ordering::SeqCst);
    assert_eq!(state_of(&fixture.insert(2, "unknown").await), "08007");
    let ended = async {
        while !fixture.committer.sequencer_has_ended() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
    assert!(!fixture.committer.accepts_writes());
    for error in
        [fixture.insert(3, "refused").await.unwrap_err(), fixture.committer.ping().await.unwrap_err()]
    {
        assert_eq!((error.kind(), error.sqlstate().0), (ErrorKind::Unavailable, "58030"), "{error}");
        assert!(error.to_string().contains("restart the server"), "{error}");
    }
    assert!(stored(&fixture.snapshot(), &fixture.shared, SHARED, 1).is_some());
    assert!(fixture.committer.shutdown().await.is_err(), "the panic is not hidden");
    assert!(!fixture.committer.sequencer_has_ended(), "it is closed now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_store_cannot_be_reopened_can_be_closed() {
    let fixture = Fixture::new().await;
    fixture.storage.reopen_fails.store(true, Ordering::SeqCst);
    *fixture.storage.fault.lock() = Some(Fault::Lost);
    assert_eq!(state_of(&fixture.insert(1, "unknown").await), "08007");
    fixture.committer.shutdown().await.unwrap();
    assert!(fixture.committer.is_poisoned());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_flush_is_abandoned() {
    use crate::commit::ColdWrite;
    let fixture = Fixture::new().await;
    fixture.insert(1, "row").await.unwrap();
    let moving = fixture.committer.begin_flush(fixture.shared.id).unwrap();
    *fixture.storage.fault.lock() = Some(Fault::Kept);
    assert_eq!(state_of(&fixture.insert(2, "unknown").await), "08007");
    reopened(&fixture, 1).await;
    let mut set = WriteSet::new(ANN, moving.snapshot().seq);
    let through = moving.snapshot().seq;
    set.cold = Some(ColdWrite::Flush { table: fixture.shared.id, through, added: Vec::new() });
    assert_eq!(state_of(&fixture.committer.commit(set.clone()).await), "40001");
    drop(moving);
    let moving = fixture.committer.begin_flush(fixture.shared.id).unwrap();
    set.cold = Some(ColdWrite::Flush {
        table: fixture.shared.id,
        through: moving.snapshot().seq,
        added: Vec::new(),
    });
    assert_eq!(state_of(&fixture.committer.commit(set).await), "ok");
}

/// The sets as the floor of the disk tells them apart.
#[tokio::test]
async fn what_grows_is_told_from_what_does_not() {
    let fixture = Fixture::new().await;
    let rows = vec![insert(&fixture.shared, SHARED, 1, "row")];
    let grows = fixture.set(&fixture.shared, SHARED, rows);
    assert!(grows.grows() && !grows.only_deletes());
    let mut deletes = grows.clone();
    let (key, old) = (b"k".to_vec().into(), b"v".to_vec().into());
    deletes.tables[0].rows =
        vec![crate::commit::RowWrite::Delete { key, expected: Seq(1), old, place: None }];
    assert!(deletes.grows() && deletes.only_deletes());
    let mut drops = WriteSet::new(ANN, Seq(1));
    drops.catalog.push(CatalogChange::DropTable(fixture.shared.id));
    assert!(!drops.grows());
    drops.catalog.push(CatalogChange::PutTable(fixture.shared.as_ref().clone()));
    assert!(drops.grows() && !drops.only_deletes());
    let mut trim = WriteSet::new(ANN, Seq(1));
    (trim.trim_log_to, trim.durability) = (Some(Seq(1)), Durability::Relaxed);
    assert!(!trim.grows());
}
