//! Queues statements that retry after a conflict, one at a time per table, to avoid further conflicts.
//!
//! Invariant: a turn only saves time. A statement that gets no turn within [`WAIT_MAX`] goes on without one,
//! so a slow statement delays the others no longer than that.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::time::timeout;

use crate::ids::TableId;

/// The longest wait for a turn.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The turn of a table, released when dropped.
pub(crate) type RetryTurn = OwnedMutexGuard<()>;

/// The queues of all tables.
#[derive(Default)]
pub(crate) struct RetryQueues(Mutex<HashMap<TableId, Weak<AsyncMutex<()>>>>);

impl RetryQueues {
    /// Waits for the turn of `table`; `None` after [`WAIT_MAX`].
    pub(crate) async fn take(&self, table: TableId) -> Option<RetryTurn> {
        self.take_within(table, WAIT_MAX).await
    }

    async fn take_within(&self, table: TableId, wait: Duration) -> Option<RetryTurn> {
        timeout(wait, self.of(table).lock_owned()).await.ok()
    }

    fn of(&self, table: TableId) -> Arc<AsyncMutex<()>> {
        let mut queues = self.0.lock();
        if let Some(turn) = queues.get(&table).and_then(Weak::upgrade) {
            return turn;
        }
        // Keeps only tables whose turn is held or awaited.
        queues.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        queues.insert(table, Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_table_has_one_turn_at_a_time() {
        let queues = RetryQueues::default();
        let first = queues.take(TableId(1)).await;
        assert!(first.is_some());
        assert!(queues.take(TableId(2)).await.is_some(), "another table has its own");
        assert!(queues.take_within(TableId(1), Duration::ZERO).await.is_none(), "nobody waits for ever");
        drop(first);
        assert!(queues.take(TableId(1)).await.is_some());
        assert!(queues.0.lock().len() <= 2);
    }
}
