//! Queries between GetFlightInfo and DoGet, and queries that run.
//!
//! What GetFlightInfo prepared is kept for a short while, so that DoGet does not plan it again; a ticket whose entry is gone
//! is planned from its own text. A running query can be cancelled by its owner over any connection.
//!
//! Invariant: neither map is needed for an answer to be right; losing an entry costs time, not results.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use kalamdb_core::Prepared;
use kalamdb_core::ids::UserId;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::encode::WireSchema;
use super::sessions::Bound;
use super::ticket::QueryId;

/// Prepared queries that wait for their DoGet; beyond it the oldest is forgotten.
const STARTED_MAX: usize = 512;

/// What GetFlightInfo prepared.
pub(crate) struct Started {
    pub(crate) prepared: Prepared,
    pub(crate) bound: Arc<Bound>,
    pub(crate) schema: WireSchema,
}

/// Queries that wait for their DoGet.
#[derive(Default)]
pub(crate) struct StartedQueries {
    inner: Mutex<StartedInner>,
}

#[derive(Default)]
struct StartedInner {
    entries: HashMap<QueryId, Started>,
    /// In the order they came. Ids already taken are skipped when they reach the front.
    order: VecDeque<QueryId>,
}

impl StartedQueries {
    pub(crate) fn put(&self, query: QueryId, started: Started) {
        let mut inner = self.inner.lock();
        while inner.order.len() >= STARTED_MAX {
            let Some(oldest) = inner.order.pop_front() else { break };
            inner.entries.remove(&oldest);
        }
        inner.order.push_back(query);
        inner.entries.insert(query, started);
    }

    pub(crate) fn take(&self, query: QueryId) -> Option<Started> {
        self.inner.lock().entries.remove(&query)
    }
}

/// Queries whose DoGet is open.
#[derive(Default)]
pub(crate) struct RunningQueries {
    map: Mutex<HashMap<QueryId, (UserId, CancellationToken)>>,
}

impl RunningQueries {
    /// Notes a query as running until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, query: QueryId, owner: UserId) -> RunningGuard {
        let token = CancellationToken::new();
        // Two DoGets of one ticket are one query; they share its cancellation, and the first to end takes the entry away.
        let mut map = self.map.lock();
        let (_, token) = map.entry(query).or_insert((owner, token));
        RunningGuard { running: Arc::clone(self), query, token: token.clone() }
    }

    /// Cancels a running query of `owner`; tells whether there was one.
    pub(crate) fn cancel(&self, query: QueryId, owner: UserId) -> bool {
        match self.map.lock().get(&query) {
            Some((running_owner, token)) if *running_owner == owner => {
                token.cancel();
                true
            }
            _ => false,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.map.lock().len()
    }
}

/// Keeps a query noted as running.
pub(crate) struct RunningGuard {
    running: Arc<RunningQueries>,
    query: QueryId,
    token: CancellationToken,
}

impl RunningGuard {
    /// Fires when the query is cancelled.
    pub(crate) fn token(&self) -> &CancellationToken {
        &self.token
    }
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.running.map.lock().remove(&self.query);
    }
}
