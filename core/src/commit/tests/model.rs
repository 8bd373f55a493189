//! Random write sets against a model, and the replay of their log.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use proptest::prelude::*;

use super::fixture::{
    ANN, BOB, Fixture, START_US, TestStorage, dump, encoded, insert, key, open, state_of, stored,
};
use crate::change_log;
use crate::commit::redo::redo;
use crate::commit::{RowWrite, Snapshot, TableWrite, WriteSet};
use crate::ids::{ScopeId, Seq};
use crate::schema_registry::{Catalog, TableDefinition};
use crate::storage::rows::{row_seq, set_row_seq};
use crate::storage::{Partition, StorageBackend, WriteBatch};

#[derive(Clone, Copy, Debug)]
enum Action {
    Insert,
    Update,
    Delete,
}

#[derive(Clone, Debug)]
struct PlannedSet {
    /// How many snapshots before the latest one it is planned on.
    age: usize,
    /// The owner (`None` for the shared table, `true` for Ann), the key, and the action.
    actions: Vec<(Option<bool>, i64, Action)>,
}

fn planned_set() -> impl Strategy<Value = PlannedSet> {
    let action = prop_oneof![3 => Just(Action::Insert), 2 => Just(Action::Update), 1 => Just(Action::Delete)];
    let actions = prop::collection::vec((any::<Option<bool>>(), 0_i64..5, action), 1..5);
    (0_usize..3, actions).prop_map(|(age, actions)| PlannedSet { age, actions })
}

/// Key to stored row.
type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Plans the set on `snapshot` as a statement would: it does not change missing rows.
fn plan(fixture: &Fixture, snapshot: &Snapshot, planned: &PlannedSet, note: &str) -> WriteSet {
    let mut set = WriteSet::new(ANN, snapshot.seq);
    for (owner, id, action) in &planned.actions {
        let (table, scope) = match owner {
            None => (&fixture.shared, ScopeId::SHARED),
            Some(true) => (&fixture.user, ScopeId::of(ANN)),
            Some(false) => (&fixture.user, ScopeId::of(BOB)),
        };
        let found = stored(snapshot, table, scope, *id);
        let row = match (action, found) {
            (Action::Insert, _) => insert(table, scope, *id, note),
            (Action::Update, Some((key, old))) => RowWrite::Update {
                key,
                expected: row_seq(&old).unwrap(),
                old,
                row: encoded(table, *id, note),
                place: None,
            },
            (Action::Delete, Some((key, old))) => {
                RowWrite::Delete { key, expected: row_seq(&old).unwrap(), old, place: None }
            }
            (Action::Update | Action::Delete, None) => continue,
        };
        set.tables.push(TableWrite { table: Arc::clone(table), scope, rows: vec![row] });
    }
    set
}

/// Returns the model after the set becomes commit `seq`, or the SQLSTATE of its refusal.
fn apply(model: &Model, set: &WriteSet, seq: Seq) -> Result<Model, &'static str> {
    let mut next = model.clone();
    for row in set.tables.iter().flat_map(|write| &write.rows) {
        let current = |key: &[u8]| next.get(key).map(|row| row_seq(row).unwrap());
        let stamped = |row: &[u8]| {
            let mut row = row.to_vec();
            set_row_seq(&mut row, seq).unwrap();
            row
        };
        match row {
            RowWrite::Insert { key, .. } if current(key).is_some() => return Err("23505"),
            RowWrite::Update { key, expected, .. } | RowWrite::Delete { key, expected, .. }
                if current(key) != Some(*expected) =>
            {
                return Err("40001");
            }
            RowWrite::Insert { key, row } | RowWrite::Update { key, row, .. } => {
                next.insert(key.to_vec(), stamped(row));
            }
            RowWrite::Delete { key, .. } => {
                next.remove(&key[..]);
            }
            RowWrite::Append { .. } => unreachable!("the plan has no keyless rows"),
        }
    }
    Ok(next)
}

/// Replays the log of `snapshot` into a new store.
fn replayed(snapshot: &Snapshot) -> Arc<TestStorage> {
    let storage = TestStorage::new();
    let mut catalog = Arc::new(Catalog::initial(START_US));
    for seq in 1..=snapshot.seq.0 {
        let record = change_log::read_record(&*snapshot.storage, Seq(seq)).unwrap().unwrap();
        let mut batch = WriteBatch::new();
        catalog = redo(&mut batch, &record, &catalog).unwrap();
        storage.write(batch, false).unwrap();
    }
    assert_eq!(catalog.records(), snapshot.catalog.records());
    storage
}

async fn check(groups: Vec<Vec<PlannedSet>>) {
    let fixture = Fixture::new().await;
    let mut model = Model::new();
    let mut snapshots = vec![fixture.snapshot()];
    let mut seq = fixture.committer.seq();
    for (number, group) in groups.iter().enumerate() {
        let mut commits = Vec::new();
        for planned in group {
            let snapshot = &snapshots[snapshots.len().saturating_sub(1 + planned.age)];
            let set = plan(&fixture, snapshot, planned, &format!("note {number}"));
            let expected = match set.is_empty() {
                true => "ok",
                false => match apply(&model, &set, seq.next()) {
                    Ok(next) => {
                        model = next;
                        seq = seq.next();
                        "ok"
                    }
                    Err(state) => state,
                },
            };
            // One poll puts the set into the queue, so sets commit in poll order, however they are grouped.
            let mut commit = fixture.committer.commit(set).boxed();
            let ready = futures::poll!(&mut commit);
            commits.push((ready, commit, expected));
        }
        for (ready, commit, expected) in commits {
            let result = match ready {
                std::task::Poll::Ready(result) => result,
                std::task::Poll::Pending => commit.await,
            };
            assert_eq!(state_of(&result), expected);
        }
        let snapshot = fixture.snapshot();
        assert_eq!(snapshot.seq, seq);
        assert_eq!(dump(&*snapshot.storage, Partition::Rows, b""), model);
        snapshots.push(snapshot);
    }
    let snapshot = fixture.snapshot();
    let replayed = replayed(&snapshot).snapshot();
    assert_eq!(dump(&*replayed, Partition::Rows, b""), model);
    assert_eq!(
        dump(&*replayed, Partition::Meta, b"catalog/user"),
        dump(&*snapshot.storage, Partition::Meta, b"catalog/user")
    );
    assert_eq!(
        dump(&*replayed, Partition::Meta, b"catalog/table"),
        dump(&*snapshot.storage, Partition::Meta, b"catalog/table")
    );
    old_snapshots_stay(&fixture.shared, &snapshots[0]);

    fixture.committer.shutdown().await.unwrap();
    let reopened = open(&fixture.storage, &fixture.clock).unwrap().snapshot();
    assert_eq!(reopened.seq, seq);
    assert_eq!(dump(&*reopened.storage, Partition::Rows, b""), model);
}

fn old_snapshots_stay(table: &TableDefinition, first: &Snapshot) {
    assert_eq!(first.storage.get(Partition::Rows, &key(table, ScopeId::SHARED, 0)).unwrap(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn random_sets_agree_with_a_model_and_with_the_replay_of_the_log(
        groups in prop::collection::vec(prop::collection::vec(planned_set(), 1..5), 1..8),
    ) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(check(groups));
    }
}
