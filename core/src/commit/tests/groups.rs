//! Which sets are refused, alone and within a group.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::fixture::{ANN, BOB, Fixture, dump, encoded, insert, key, put_user, state_of, stored, table};
use crate::change_log::{self, LogPosition, RowOp};
use crate::commit::{Receipt, RowWrite, TableWrite, WriteSet};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{ScopeId, Seq, TableId, UserId};
use crate::schema_registry::{CatalogChange, Durability, TableDefinition, TableKind};
use crate::storage::Partition;
use crate::storage::rows::row_seq;

const SHARED: ScopeId = ScopeId::SHARED;

/// Commits `sets` as one group, in order.
async fn as_one_group(fixture: &Fixture, sets: Vec<WriteSet>) -> Vec<Result<Receipt>> {
    let held = fixture.storage.hold_next_write();
    let mut first =
        fixture.committer.commit(fixture.set(&fixture.keyless, SHARED, vec![append(fixture)])).boxed();
    assert!(futures::poll!(&mut first).is_pending());
    held.entered();
    let writes = fixture.storage.writes.load(Ordering::SeqCst);
    let mut waiting: Vec<BoxFuture<'_, Result<Receipt>>> = Vec::new();
    for set in sets {
        let mut commit = fixture.committer.commit(set).boxed();
        assert!(futures::poll!(&mut commit).is_pending());
        waiting.push(commit);
    }
    held.release();
    first.await.unwrap();
    let results = futures::future::join_all(waiting).await;
    let writes = fixture.storage.writes.load(Ordering::SeqCst) - writes;
    assert!(writes <= 2, "the waiting sets were written as one group");
    results
}

fn append(fixture: &Fixture) -> RowWrite {
    RowWrite::Append { row: encoded(&fixture.keyless, 0, "first") }
}

fn states(results: &[Result<Receipt>]) -> Vec<&'static str> {
    results.iter().map(state_of).collect()
}

#[tokio::test]
async fn a_commit_is_readable_once_it_is_answered() {
    let fixture = Fixture::new().await;
    let before = fixture.snapshot();
    fixture.clock.advance(10);
    let receipt = fixture.insert(1, "one").await.unwrap();
    assert_eq!(receipt.seq, Seq(2));
    let after = fixture.snapshot();
    assert_eq!((after.seq, after.commit_ts), (receipt.seq, receipt.commit_ts));
    assert!(stored(&before, &fixture.shared, SHARED, 1).is_none());
    let (_, row) = stored(&after, &fixture.shared, SHARED, 1).unwrap();
    assert_eq!(row_seq(&row).unwrap(), receipt.seq);
    let record = &fixture.committer.commits().after(before.seq).unwrap()[0];
    assert_eq!(record.tables[0].rows[0].new.as_ref(), Some(&row));
    assert_eq!(change_log::read_record(&*after.storage, receipt.seq).unwrap().unwrap(), **record);
}

#[tokio::test]
async fn a_set_is_given_up_before_its_turn_or_its_outcome_is_told() {
    let fixture = Fixture::new().await;
    let set = |id| fixture.set(&fixture.shared, SHARED, vec![insert(&fixture.shared, SHARED, id, "x")]);
    let stop = |told: oneshot::Receiver<()>| async move {
        let _told = told.await;
        Error::invalid("given up")
    };
    let [(stop_first, first), (stop_second, second)] = [(); 2].map(|()| oneshot::channel());
    let held = fixture.storage.hold_next_write();
    let mut first = fixture.committer.commit_unless(set(1), stop(first)).boxed();
    assert!(futures::poll!(&mut first).is_pending());
    held.entered();
    let mut second = fixture.committer.commit_unless(set(2), stop(second)).boxed();
    assert!(futures::poll!(&mut second).is_pending());
    stop_first.send(()).unwrap();
    stop_second.send(()).unwrap();
    assert_eq!(second.await.unwrap_err().message(), "given up");
    assert!(futures::poll!(&mut first).is_pending(), "the sequencer works on it");
    held.release();
    first.await.unwrap();
    fixture.insert(3, "three").await.unwrap();
    let snapshot = fixture.snapshot();
    let found = [1, 2, 3].map(|id| stored(&snapshot, &fixture.shared, SHARED, id).is_some());
    assert_eq!(found, [true, false, true]);
}

#[tokio::test]
async fn time_never_goes_back_between_commits() {
    let fixture = Fixture::new().await;
    let first = fixture.insert(1, "one").await.unwrap();
    fixture.clock.advance(-5_000_000);
    let second = fixture.insert(2, "two").await.unwrap();
    assert!(second.commit_ts >= first.commit_ts && second.seq > first.seq);
}

#[tokio::test]
async fn a_taken_key_is_refused_and_named() {
    let fixture = Fixture::new().await;
    fixture.insert(1, "one").await.unwrap();
    let error = fixture.insert(1, "again").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "[23505] table \"public.shared\" already has a row with primary key (id) = (1) (use another key, or UPDATE the existing row)"
    );
    let twice = vec![insert(&fixture.shared, SHARED, 5, "a"), insert(&fixture.shared, SHARED, 5, "b")];
    let result = fixture.committer.commit(fixture.set(&fixture.shared, SHARED, twice)).await;
    assert_eq!(state_of(&result), "23505");
    assert!(stored(&fixture.snapshot(), &fixture.shared, SHARED, 5).is_none());
}

#[tokio::test]
async fn of_two_inserts_of_a_key_in_a_group_the_first_wins_and_others_are_unharmed() {
    let fixture = Fixture::new().await;
    let set = |ids: &[i64], note: &str| {
        let rows = ids.iter().map(|id| insert(&fixture.shared, SHARED, *id, note)).collect();
        fixture.set(&fixture.shared, SHARED, rows)
    };
    // The refused set is rolled back as a whole, so the key 3 it began with stays free.
    let sets = vec![set(&[1], "first"), set(&[3, 1], "second"), set(&[2], "third"), set(&[3], "fourth")];
    let results = as_one_group(&fixture, sets).await;
    assert_eq!(states(&results), ["ok", "23505", "ok", "ok"]);
    let seqs: Vec<u64> = results.iter().flatten().map(|receipt| receipt.seq.0).collect();
    assert_eq!(seqs, [seqs[0], seqs[0] + 1, seqs[0] + 2], "refused sets take no seq");
    let snapshot = fixture.snapshot();
    assert_eq!(snapshot.seq.0, seqs[2]);
    let (_, row) = stored(&snapshot, &fixture.shared, SHARED, 3).unwrap();
    assert_eq!(row[14..], encoded(&fixture.shared, 3, "fourth")[14..]);
    assert!(change_log::header(&*snapshot.storage, snapshot.seq.next()).unwrap().is_none());
}

#[tokio::test]
async fn a_row_that_changed_since_it_was_read_is_a_conflict() {
    let fixture = Fixture::new().await;
    fixture.insert(1, "one").await.unwrap();
    fixture.insert(2, "two").await.unwrap();
    let old = fixture.snapshot();
    fixture.committer.commit(fixture.update(&old, 1, "changed")).await.unwrap();
    let late = fixture.committer.commit(fixture.update(&old, 1, "late")).await;
    assert_eq!(state_of(&late), "40001");
    // Another row of the same table does not conflict.
    fixture.committer.commit(fixture.update(&old, 2, "fine")).await.unwrap();
}

#[tokio::test]
async fn of_two_updates_of_a_row_in_a_group_the_first_wins() {
    let fixture = Fixture::new().await;
    fixture.insert(1, "one").await.unwrap();
    let snapshot = fixture.snapshot();
    let (key, old) = stored(&snapshot, &fixture.shared, SHARED, 1).unwrap();
    let delete = RowWrite::Delete { key, expected: row_seq(&old).unwrap(), old, place: None };
    let sets = vec![
        fixture.update(&snapshot, 1, "first"),
        fixture.update(&snapshot, 1, "second"),
        fixture.set(&fixture.shared, SHARED, vec![delete.clone()]),
    ];
    assert_eq!(states(&as_one_group(&fixture, sets).await), ["ok", "40001", "40001"]);

    // A row deleted in a group can be inserted again in the same group.
    let (key, old) = stored(&fixture.snapshot(), &fixture.shared, SHARED, 1).unwrap();
    let delete = RowWrite::Delete { key, expected: row_seq(&old).unwrap(), old, place: None };
    let sets = vec![
        fixture.set(&fixture.shared, SHARED, vec![delete.clone()]),
        fixture.set(&fixture.shared, SHARED, vec![delete]),
        fixture.set(&fixture.shared, SHARED, vec![insert(&fixture.shared, SHARED, 1, "new")]),
    ];
    assert_eq!(states(&as_one_group(&fixture, sets).await), ["ok", "40001", "ok"]);
    let (_, row) = stored(&fixture.snapshot(), &fixture.shared, SHARED, 1).unwrap();
    assert_eq!(row[14..], encoded(&fixture.shared, 1, "new")[14..]);
}

#[tokio::test]
async fn a_key_can_move_onto_one_that_moves_away() {
    let fixture = Fixture::new().await;
    let rows = vec![insert(&fixture.shared, SHARED, 1, "one"), insert(&fixture.shared, SHARED, 2, "two")];
    fixture.committer.commit(fixture.set(&fixture.shared, SHARED, rows)).await.unwrap();
    let snapshot = fixture.snapshot();
    let delete = |id| {
        let (key, old) = stored(&snapshot, &fixture.shared, SHARED, id).unwrap();
        RowWrite::Delete { key, expected: row_seq(&old).unwrap(), old, place: None }
    };
    let rows = vec![
        delete(1),
        delete(2),
        insert(&fixture.shared, SHARED, 2, "one"),
        insert(&fixture.shared, SHARED, 3, "two"),
    ];
    fixture.committer.commit(fixture.set(&fixture.shared, SHARED, rows)).await.unwrap();
    let snapshot = fixture.snapshot();
    let present: Vec<bool> =
        (1..=3).map(|id| stored(&snapshot, &fixture.shared, SHARED, id).is_some()).collect();
    assert_eq!(present, [false, true, true]);
}

#[tokio::test]
async fn a_plan_older_than_a_drop_or_an_alter_is_refused() {
    let fixture = Fixture::new().await;
    fixture.insert(1, "one").await.unwrap();
    let snapshot = fixture.snapshot();
    let mut drop = WriteSet::new(ANN, snapshot.seq);
    drop.catalog.push(CatalogChange::DropTable(fixture.shared.id));
    let altered = fixture.user.next_version(0, |_| Ok(())).unwrap();
    let mut alter = WriteSet::new(ANN, snapshot.seq);
    alter.catalog.push(CatalogChange::PutTable(altered));
    let ann = ScopeId::of(ANN);
    let sets = vec![
        fixture.set(&fixture.shared, SHARED, vec![insert(&fixture.shared, SHARED, 7, "before the drop")]),
        drop,
        fixture.update(&snapshot, 1, "after the drop"),
        alter,
        fixture.set(&fixture.user, ann, vec![insert(&fixture.user, ann, 1, "old version")]),
    ];
    assert_eq!(states(&as_one_group(&fixture, sets).await), ["ok", "ok", "40001", "ok", "40001"]);
    let snapshot = fixture.snapshot();
    assert!(snapshot.catalog.table_by_id(fixture.shared.id).is_none());
    assert!(dump(&*snapshot.storage, Partition::Rows, &fixture.shared.id.0.to_be_bytes()).is_empty());
}

#[tokio::test]
async fn a_dropped_user_leaves_no_rows_and_writes_none() {
    let fixture = Fixture::new().await;
    let row = |user| {
        let scope = ScopeId::of(user);
        fixture.set(&fixture.user, scope, vec![insert(&fixture.user, scope, 1, "mine")])
    };
    fixture.committer.commit(row(ANN)).await.unwrap();
    fixture.committer.commit(row(BOB)).await.unwrap();
    let mut drop = WriteSet::new(ANN, fixture.committer.seq());
    drop.catalog.push(CatalogChange::DropUser(BOB));
    fixture.committer.commit(drop).await.unwrap();
    let refused = fixture.committer.commit(row(BOB)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthenticated);
    let rows = dump(&*fixture.snapshot().storage, Partition::Rows, &fixture.user.id.0.to_be_bytes());
    assert_eq!(rows.into_keys().collect::<Vec<_>>(), [key(&fixture.user, ScopeId::of(ANN), 1).to_vec()]);
    // The name can be reused; the number, and so the rows, cannot.
    let mut again = WriteSet::new(ANN, fixture.committer.seq());
    again.catalog.push(put_user(BOB, "bob"));
    assert_eq!(state_of(&fixture.committer.commit(again).await), "40001");
}

#[tokio::test]
async fn a_set_can_create_a_table_and_fill_it() {
    let fixture = Fixture::new().await;
    let made = table(TableId(1003), "made", TableKind::Shared, &[0]);
    let mut set = fixture.set(&made, SHARED, vec![insert(&made, SHARED, 1, "row")]);
    set.catalog.push(CatalogChange::PutTable(TableDefinition::clone(&made)));
    fixture.committer.commit(set.clone()).await.unwrap();
    assert!(stored(&fixture.snapshot(), &made, SHARED, 1).is_some());
    let again = fixture.committer.commit(set).await;
    assert_eq!(state_of(&again), "40001");
}

#[tokio::test]
async fn keyless_rows_get_keys_in_the_order_they_came() {
    let fixture = Fixture::new().await;
    let rows = (0..3).map(|id| RowWrite::Append { row: encoded(&fixture.keyless, id, "same") }).collect();
    fixture.committer.commit(fixture.set(&fixture.keyless, SHARED, rows)).await.unwrap();
    fixture.committer.commit(fixture.set(&fixture.keyless, SHARED, vec![append(&fixture)])).await.unwrap();
    let rows = dump(&*fixture.snapshot().storage, Partition::Rows, &fixture.keyless.id.0.to_be_bytes());
    let ids: Vec<u8> = rows.values().map(|row| row[15]).collect();
    assert_eq!(ids, [0, 1, 2, 0]);
}

#[tokio::test]
async fn rows_never_land_in_another_table_or_scope() {
    let fixture = Fixture::new().await;
    let (ann, bob) = (ScopeId::of(ANN), ScopeId::of(BOB));
    for set in [
        fixture.set(&fixture.user, ann, vec![insert(&fixture.user, bob, 1, "foreign")]),
        fixture.set(&fixture.user, SHARED, vec![insert(&fixture.user, SHARED, 1, "no scope")]),
        fixture.set(&fixture.shared, ann, vec![insert(&fixture.shared, ann, 1, "scoped")]),
        fixture.set(&fixture.shared, SHARED, vec![insert(&fixture.user, ann, 1, "other table")]),
        fixture.set(&fixture.shared, SHARED, vec![append(&fixture)]),
    ] {
        assert_eq!(fixture.committer.commit(set).await.unwrap_err().kind(), ErrorKind::Internal);
    }
    assert_eq!(fixture.committer.seq(), Seq(1));
}

#[tokio::test]
async fn only_groups_with_a_durable_set_are_synced() {
    let fixture = Fixture::new().await;
    let synced = || fixture.storage.synced_writes.load(Ordering::SeqCst);
    let before = synced();
    let mut relaxed = fixture.set(&fixture.shared, SHARED, vec![insert(&fixture.shared, SHARED, 1, "a")]);
    relaxed.durability = Durability::Relaxed;
    fixture.committer.commit(relaxed).await.unwrap();
    assert_eq!(synced(), before);
    let mut relaxed = fixture.set(&fixture.shared, SHARED, vec![insert(&fixture.shared, SHARED, 2, "a")]);
    relaxed.durability = Durability::Relaxed;
    let durable = fixture.set(&fixture.shared, SHARED, vec![insert(&fixture.shared, SHARED, 3, "a")]);
    as_one_group(&fixture, vec![relaxed, durable]).await;
    assert_eq!(synced(), before + 2);
}

#[tokio::test]
async fn a_set_that_changes_nothing_takes_no_seq() {
    let fixture = Fixture::new().await;
    let receipt = fixture.committer.commit(WriteSet::new(ANN, Seq(1))).await.unwrap();
    assert_eq!(receipt.seq, Seq(1));
    let empty = fixture.set(&fixture.shared, SHARED, Vec::new());
    assert_eq!(fixture.committer.commit(empty).await.unwrap().seq, Seq(1));
}

#[tokio::test]
async fn two_writes_of_a_table_in_a_set_are_one_entry_of_the_log() {
    let fixture = Fixture::new().await;
    let mut set = fixture.set(&fixture.shared, SHARED, vec![insert(&fixture.shared, SHARED, 1, "a")]);
    let rows = vec![insert(&fixture.shared, SHARED, 2, "b")];
    set.tables.push(TableWrite { table: Arc::clone(&fixture.shared), scope: SHARED, rows });
    let receipt = fixture.committer.commit(set).await.unwrap();
    let record = change_log::read_record(&*fixture.snapshot().storage, receipt.seq).unwrap().unwrap();
    assert_eq!(record.tables.len(), 1);
    assert!(record.tables[0].rows.iter().all(|change| change.op == RowOp::Insert));
}

#[tokio::test]
async fn trimming_is_a_commit_that_moves_the_floor() {
    let fixture = Fixture::new().await;
    for id in 0..4 {
        fixture.insert(id, "row").await.unwrap();
    }
    let mut trim = WriteSet::new(UserId::SYSTEM, fixture.committer.seq());
    trim.trim_log_to = Some(Seq(3));
    let old = fixture.snapshot();
    let receipt = fixture.committer.commit(trim.clone()).await.unwrap();
    assert_eq!(receipt.seq, Seq(6));
    let new = fixture.snapshot();
    assert_eq!((old.log_floor, new.log_floor), (Seq::ZERO, Seq(3)));
    let read = |snapshot: &crate::commit::Snapshot, after| {
        let (place, from) = ((fixture.shared.id, SHARED), LogPosition::after(Seq(after)));
        let piece =
            change_log::read_piece(&*snapshot.storage, place, from, snapshot.seq, usize::MAX).unwrap();
        piece.map(|piece| piece.changes.len())
    };
    assert_eq!((read(&old, 0), read(&new, 0), read(&new, 3)), (Some(4), None, Some(2)));
    assert_eq!(fixture.committer.commit(trim).await.unwrap().seq, Seq(6), "there is nothing more to trim");
    assert!(stored(&new, &fixture.shared, SHARED, 0).is_some(), "rows outlive their log");
}
