//! The thread that orders all commits.
//!
//! Per group: validate, number, write once, sync once, install, publish, answer. A refused set does not
//! affect the others of its group. Answers to refused sets wait for the write too, because they may mention
//! rows that the group wrote. Publishing comes before answering, so a client that has its answer finds the
//! commit in the feed. Publishing never blocks.
//!
//! Sets that make the store grow are refused when the disk has too little free space.
//!
//! Invariant: after a failed write nothing is written until a reopening: what reached the disk is unknown.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::group::{CommitGroup, GroupContext};
use super::recovery::{OpenStore, put_last_commit};
use super::reopening::{Backoff, reopen_until_it_works};
use super::state::{CommitState, Pending, QueueItem, outcome_unknown, poisoned};
use super::validation::{GroupState, LastChanges};
use super::{Snapshot, WriteSet};
use crate::error::Result;
use crate::failpoint;
use crate::schema_registry::StorageRecord;
use crate::storage::Room;

/// The most sets in one group; the others wait for the next group.
const GROUP_LEN_MAX: usize = 4_096;
/// A group of this many bytes takes no more sets.
const GROUP_BYTES_MAX: usize = 16 << 20;

/// What the thread works on.
pub(super) struct Sequencer {
    pub(super) store: OpenStore,
    pub(super) state: Arc<CommitState>,
    pub(super) last_changes: LastChanges,
    pub(super) backoff: Backoff,
}

impl Sequencer {
    /// Runs until every sender of the queue is gone and the queue is empty.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<QueueItem>) {
        while let Some(first) = queue.blocking_recv() {
            let (mut group, mut bytes, mut pings) = (Vec::new(), 0, Vec::new());
            let mut next = Some(first);
            while let Some(item) = next {
                match item {
                    QueueItem::Set(pending) => {
                        bytes += pending.bytes;
                        group.push(*pending);
                    }
                    QueueItem::Ping(answer) => pings.push(answer),
                }
                let is_full = group.len() >= GROUP_LEN_MAX || bytes >= GROUP_BYTES_MAX;
                next = if is_full { None } else { queue.try_recv().ok() };
            }
            if !group.is_empty() {
                self.commit(group);
            }
            for answer in pings {
                // Whoever asked may have stopped waiting.
                let _ = answer.send(());
            }
            if self.state.is_poisoned()
                && let Some(seq) =
                    reopen_until_it_works(&self.store, &self.state, &mut self.backoff, &mut queue)
            {
                self.last_changes = LastChanges::unknown_before(seq);
            }
        }
        if !self.state.is_poisoned()
            && let Err(error) = self.store.storage.sync()
        {
            tracing::error!(%error, "could not sync the store while closing");
        }
    }

    fn commit(&mut self, pendings: Vec<Pending>) {
        let before = self.state.snapshot.load_full();
        // Expiry is judged by the clock itself, as in queries.
        let now_us = self.store.clock.now_us();
        let mut group = CommitGroup::after(&before, now_us, pendings.len());
        let mut answers = Vec::with_capacity(pendings.len());
        let context = GroupContext { before: &before, state: &self.state };
        let mut group_state = GroupState::new(&*before.storage, &self.last_changes, now_us);
        for pending in pendings {
            // The caller stopped waiting before the set's turn, or gave it up.
            if pending.answer.is_closed() || !pending.turn.decide() {
                continue;
            }
            let Pending { prepared, answer, _permit, .. } = pending;
            let result = match self.check_room(&prepared.set) {
                Ok(()) => group.add(&mut group_state, prepared, &context),
                Err(error) => Err(error),
            };
            answers.push((answer, result, _permit));
            self.state.note_step();
        }
        drop(group_state);
        let written = self.write(&mut group);
        self.state.note_step();
        let failed = written.is_err();
        let synced = (group.sync && !failed).then_some(group.seq);
        failpoint::kill_point("commit::installed");
        if !failed {
            self.state.feed.publish(group.records);
        }
        for (answer, result, permit) in answers {
            let result = match result {
                Ok(_) if failed => Err(outcome_unknown()),
                Err(_) if failed => Err(poisoned()),
                result => result,
            };
            drop(permit);
            // If the caller stopped waiting, the commit still stands.
            let _ = answer.send(result);
        }
        failpoint::kill_point("commit::answered");
        if let (Some(seq), Some(directory)) = (synced, &self.store.directory) {
            directory.note_synced_seq(before.epoch, seq);
        }
    }

    /// Refuses a set if the disk has no room for it.
    fn check_room(&self, set: &WriteSet) -> Result<()> {
        let Some(disk) = &self.state.disk else { return Ok(()) };
        match disk.room() {
            Room::Enough => Ok(()),
            Room::Low if set.only_deletes() => Ok(()),
            Room::Low | Room::Reserve if !set.grows() => Ok(()),
            Room::Low | Room::Reserve => Err(disk.full()),
        }
    }

    /// Writes and installs the group.
    fn write(&mut self, group: &mut CommitGroup) -> Result<()> {
        if group.records.is_empty() {
            return Ok(());
        }
        put_last_commit(&mut group.batch, group.seq, group.commit_ts);
        let batch = std::mem::take(&mut group.batch);
        if let Some(disk) = &self.state.disk {
            disk.note_written(batch.bytes());
        }
        let written =
            failpoint::step("commit::write").and_then(|()| self.store.storage.write(batch, group.sync));
        if let Err(error) = written {
            self.state.poisoned.store(true, Ordering::Release);
            let source = std::error::Error::source(&error).map(ToString::to_string);
            let seq = group.seq.0;
            tracing::error!(%error, source, seq, "a write failed; the store is reopened before the next one");
            return Err(error);
        }
        failpoint::kill_point("commit::written");
        let before = self.state.snapshot.load_full();
        group.records.iter().for_each(|record| before.hot.note(record));
        let snapshot = Snapshot {
            seq: group.seq,
            commit_ts: group.commit_ts,
            epoch: before.epoch,
            catalog: Arc::clone(&group.catalog),
            storage: self.store.storage.snapshot(),
            hot: Arc::clone(&before.hot),
            cold: Arc::clone(&group.cold),
            log_floor: group.log_floor,
        };
        if group.has_new_storages() {
            let locations = group.catalog.storages().map(StorageRecord::location);
            group.cold.store().set_storages(self.state.database, locations);
        }
        group.cold.store().retire(group.retired.drain(..));
        self.state.snapshot.store(Arc::new(snapshot));
        for record in &group.records {
            self.state.moves.note(record);
            for changes in &record.tables {
                self.last_changes.note(changes.table, changes.scope, record.seq);
            }
        }
        Ok(())
    }
}
