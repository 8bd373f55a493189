//! Queries between GetFlightInfo and DoGet, and running queries.
//!
//! A query planned by GetFlightInfo is kept until its ticket expires, so that DoGet does not plan it again;
//! without its entry a query is planned from the text in its ticket. The owner can cancel a running query
//! over any connection.
//!
//! Invariant: losing an entry never makes an answer wrong. It costs time; only a query whose parameters do
//! not fit into its ticket fails.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use kalamdb_core::Prepared;
use kalamdb_core::ids::UserId;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::budget::{Budget, Charge};
use super::encode::WireSchema;
use super::handles::statement_bytes;
use super::parameters::Bound;
use super::ticket::QueryId;

/// Planned queries that wait for their DoGet; beyond this the oldest is dropped.
const PLANNED_MAX: usize = 512;

/// A query planned by GetFlightInfo.
pub(crate) struct PlannedQuery {
    pub(crate) prepared: Prepared,
    pub(crate) bound: Arc<Bound>,
    pub(crate) schema: WireSchema,
}

/// Queries that wait for their DoGet.
pub(crate) struct PlannedQueries {
    inner: Mutex<PlannedInner>,
    budget: Arc<Budget>,
}

#[derive(Default)]
struct PlannedInner {
    entries: HashMap<QueryId, Waiting>,
    /// In order of arrival. Ids that were already taken are skipped at the front.
    order: VecDeque<QueryId>,
}

struct Waiting {
    planned: PlannedQuery,
    /// Expiry of its ticket, in microseconds UTC.
    expires_at: i64,
    _charge: Charge,
}

impl PlannedQueries {
    /// Creates an empty map whose entries are charged to `budget`.
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self { inner: Mutex::default(), budget }
    }

    /// Keeps a query until its ticket expires; returns false if the budget has no room for it.
    pub(crate) fn put(&self, query: QueryId, owner: UserId, planned: PlannedQuery, expires_at: i64) -> bool {
        let Ok(charge) = self.budget.charge(owner, statement_bytes(&planned.prepared)) else { return false };
        let mut inner = self.inner.lock();
        while inner.order.len() >= PLANNED_MAX {
            let Some(oldest) = inner.order.pop_front() else { break };
            inner.entries.remove(&oldest);
        }
        inner.order.push_back(query);
        inner.entries.insert(query, Waiting { planned, expires_at, _charge: charge });
        true
    }

    pub(crate) fn take(&self, query: QueryId) -> Option<PlannedQuery> {
        self.inner.lock().entries.remove(&query).map(|waiting| waiting.planned)
    }

    /// Keeps a query as long as its renewed ticket.
    pub(crate) fn renew(&self, query: QueryId, expires_at: i64) {
        if let Some(waiting) = self.inner.lock().entries.get_mut(&query) {
            waiting.expires_at = expires_at;
        }
    }

    /// Drops queries whose tickets have expired at `now_us`.
    pub(crate) fn sweep(&self, now_us: i64) {
        let mut inner = self.inner.lock();
        let PlannedInner { entries, order } = &mut *inner;
        entries.retain(|_, waiting| waiting.expires_at > now_us);
        order.retain(|query| entries.contains_key(query));
    }
}

/// Queries whose DoGet is open.
#[derive(Default)]
pub(crate) struct RunningQueries {
    map: Mutex<HashMap<QueryId, (UserId, CancellationToken)>>,
}

impl RunningQueries {
    /// Registers a query as running until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, query: QueryId, owner: UserId) -> RunningGuard {
        let token = CancellationToken::new();
        // Two DoGets of one ticket are one query: they share its cancellation, and the first one to end
        // removes the entry.
        let mut map = self.map.lock();
        let (_, token) = map.entry(query).or_insert((owner, token));
        RunningGuard { running: Arc::clone(self), query, token: token.clone() }
    }

    /// Cancels a running query of `owner`; returns whether there was one.
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

/// Keeps a query registered as running.
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

#[cfg(test)]
mod tests {
    use kalamdb_core::Database;

    use super::super::encode::SchemaEncodings;
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_nobody_came_for_goes_with_its_ticket() {
        let database = Database::open_in_memory().await.unwrap();
        let prepared = database.session_for("root").unwrap().prepare("SELECT 1").await.unwrap();
        let schema = &prepared.schema().unwrap().schema;
        let schema = WireSchema::of(schema, None, &SchemaEncodings::default());
        let planned =
            || PlannedQuery { prepared: prepared.clone(), bound: Arc::default(), schema: schema.clone() };
        let queries = PlannedQueries::new(Budget::new(1 << 20, 1 << 20));
        let [fetched, renewed, forgotten] = [1, 2, 3].map(|number| QueryId([number; 16]));
        for query in [fetched, renewed, forgotten] {
            assert!(queries.put(query, UserId(1), planned(), 100));
        }
        assert!(queries.take(fetched).is_some() && queries.take(fetched).is_none());
        queries.renew(renewed, 200);
        queries.sweep(99);
        assert_eq!(queries.inner.lock().entries.len(), 2);
        queries.sweep(100);
        assert!(queries.take(forgotten).is_none());
        assert_eq!(Vec::from(queries.inner.lock().order.clone()), [renewed]);
        assert!(queries.take(renewed).is_some());
        assert_eq!(queries.budget.held(), 0);

        // Without room a query is not kept, and it pushes out nothing else.
        let full = PlannedQueries::new(Budget::new(1, 1));
        assert!(!full.put(fetched, UserId(1), planned(), 100));
        database.shutdown().await.unwrap();
    }
}
