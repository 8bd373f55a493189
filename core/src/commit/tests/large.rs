//! Large INSERTs: how the sequencer treats rows that were committed after the key check.

use std::future::Future;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::fixture::{ANN, Fixture, insert, key, state_of, stored};
use crate::change_log::{self, RowOp, columns_part};
use crate::cold_storage::{KeyIndex, NewSegment, Segment};
use crate::commit::{ColdWrite, LargeInsert, Receipt, WriteSet};
use crate::error::Result;
use crate::ids::{ScopeId, Seq};

const SHARED: ScopeId = ScopeId::SHARED;

/// Returns a large INSERT of rows with these ids. Nobody reads its object.
fn large(fixture: &Fixture, ids: &[i64]) -> WriteSet {
    let table = &fixture.shared;
    let row_keys: Vec<_> = ids.iter().map(|id| key(table, SHARED, *id)).collect();
    let mut keys = KeyIndex::default();
    keys.extend(&row_keys);
    let segment = Segment {
        id: fixture.committer.new_segment_id(),
        table: table.id,
        version: table.version,
        storage: Arc::from("local"),
        path: "nowhere".to_owned(),
        rows: ids.len() as u32,
        bytes: 1,
        first_key: row_keys[0].to_vec(),
        last_key: row_keys[row_keys.len() - 1].to_vec(),
        through: Seq::ZERO,
        commit: None,
        created_at: 0,
        checksums: Vec::new(),
    };
    let columns: [ArrayRef; 2] = [
        Arc::new(Int64Array::from(ids.to_vec())),
        Arc::new(StringArray::from_iter_values(ids.iter().map(|_| "large"))),
    ];
    let types: Vec<_> = table.columns.iter().map(|column| column.ty).collect();
    let log = vec![columns_part(table.version, &types, &row_keys, &columns).unwrap()];
    let added =
        vec![NewSegment { segment: Arc::new(segment), filter: vec![0; 32].into(), keys: Arc::new(keys) }];
    let mut set = WriteSet::new(ANN, fixture.snapshot().seq);
    set.cold =
        Some(ColdWrite::LargeInsert(LargeInsert { table: Arc::clone(table), scope: SHARED, added, log }));
    set
}

/// Polls commits until `count` sets wait for the sequencer.
async fn until_queued(fixture: &Fixture, commits: &mut [BoxFuture<'_, Result<Receipt>>], count: usize) {
    while fixture.committer.queue_len() < count {
        for commit in commits.iter_mut() {
            assert!(futures::poll!(commit).is_pending());
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_rows_are_those_of_its_commit_in_manifest_and_log() {
    let fixture = Fixture::new().await;
    let receipt = fixture.committer.commit(large(&fixture, &[1, 5, 9])).await.unwrap();
    let snapshot = fixture.snapshot();
    let segments = snapshot.cold.segments(fixture.shared.id);
    assert_eq!(segments.iter().map(|segment| segment.commit).collect::<Vec<_>>(), [Some(receipt.seq)]);
    assert_eq!(snapshot.cold.unpublished().get(&fixture.shared.id).map(|due| due.seq), Some(receipt.seq));
    assert!(stored(&snapshot, &fixture.shared, SHARED, 5).is_none());
    let record = change_log::read_record(&*snapshot.storage, receipt.seq).unwrap().unwrap();
    let rows = &record.changes_of(fixture.shared.id, SHARED).unwrap().rows;
    let keys: Vec<_> = rows.iter().map(|row| (row.op, row.key.clone())).collect();
    assert_eq!(keys, [1, 5, 9].map(|id| (RowOp::Insert, key(&fixture.shared, SHARED, id))));
    let followed = fixture.committer.commits().after(Seq(receipt.seq.0 - 1)).unwrap();
    assert_eq!(followed[0].large_insert.map(|insert| insert.summary.rows), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_came_after_its_keys_were_looked_for_is_found() {
    for (id, expected) in [(5, "23505"), (6, "ok")] {
        let fixture = Fixture::new().await;
        let held = fixture.storage.hold_next_write();
        let mut row = fixture.insert(id, "first").boxed();
        assert!(futures::poll!(&mut row).is_pending());
        held.entered();
        let mut waiting = [fixture.committer.commit(large(&fixture, &[1, 5, 9])).boxed()];
        until_queued(&fixture, &mut waiting, 1).await;
        held.release();
        row.await.unwrap();
        let [large] = waiting;
        assert_eq!(state_of(&large.await), expected);
    }
}

/// Followers see only a stub of a large commit, so its keys are unknown to them.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_commit_that_is_not_in_memory_the_keys_are_looked_up_again() {
    let fixture = Fixture::new().await;
    let held = fixture.storage.hold_next_write();
    let note = "x".repeat(9 << 20);
    let mut row = fixture.insert(5, &note).boxed();
    assert!(futures::poll!(&mut row).is_pending());
    held.entered();
    let mut waiting = vec![fixture.committer.commit(large(&fixture, &[1, 5, 9])).boxed()];
    until_queued(&fixture, &mut waiting, 1).await;
    held.release();
    let receipt = row.await.unwrap();
    assert_eq!(fixture.committer.commits().after(Seq(receipt.seq.0 - 1)).unwrap()[0].stubs.len(), 1);
    let results = all(waiting).await;
    assert_eq!(results.iter().map(state_of).collect::<Vec<_>>(), ["40001"]);
    for (ids, expected) in [([1, 5, 9], "23505"), ([1, 6, 9], "ok")] {
        assert_eq!(state_of(&fixture.committer.commit(large(&fixture, &ids)).await), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_its_own_group_are_found() {
    for (id, expected) in [(5, "23505"), (6, "ok")] {
        let fixture = Fixture::new().await;
        let held = fixture.storage.hold_next_write();
        let mut first = fixture.insert(100, "holds").boxed();
        assert!(futures::poll!(&mut first).is_pending());
        held.entered();
        let row = fixture.set(&fixture.shared, SHARED, vec![insert(&fixture.shared, SHARED, id, "row")]);
        let mut waiting = vec![fixture.committer.commit(row).boxed()];
        until_queued(&fixture, &mut waiting, 1).await;
        waiting.push(fixture.committer.commit(large(&fixture, &[1, 5, 9])).boxed());
        until_queued(&fixture, &mut waiting, 2).await;
        held.release();
        first.await.unwrap();
        let results = all(waiting).await;
        assert_eq!(results.iter().map(state_of).collect::<Vec<_>>(), ["ok", expected]);
    }
}

/// The sets behind it in its group were planned on other segments.
#[tokio::test(flavor = "multi_thread")]
async fn inserts_behind_it_in_its_group_are_planned_anew() {
    let fixture = Fixture::new().await;
    let held = fixture.storage.hold_next_write();
    let mut first = fixture.insert(100, "holds").boxed();
    assert!(futures::poll!(&mut first).is_pending());
    held.entered();
    let mut waiting = vec![fixture.committer.commit(large(&fixture, &[1, 5, 9])).boxed()];
    until_queued(&fixture, &mut waiting, 1).await;
    let row = fixture.set(&fixture.shared, SHARED, vec![insert(&fixture.shared, SHARED, 5, "row")]);
    waiting.push(fixture.committer.commit(row).boxed());
    waiting.push(fixture.committer.commit(large(&fixture, &[5, 7])).boxed());
    until_queued(&fixture, &mut waiting, 3).await;
    held.release();
    first.await.unwrap();
    let results = all(waiting).await;
    assert_eq!(results.iter().map(state_of).collect::<Vec<_>>(), ["ok", "40001", "40001"]);
}

async fn all(commits: Vec<impl Future<Output = Result<Receipt>>>) -> Vec<Result<Receipt>> {
    futures::future::join_all(commits).await
}
