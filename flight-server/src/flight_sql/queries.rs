//! Queries between GetFlightInfo and DoGet, and calls that run statements.
//!
//! A query planned by GetFlightInfo is kept until its ticket expires, so that DoGet does not plan it again;
//! without its entry a query is planned from the text in its ticket. The owner can cancel a running query
//! over any connection. Closing the handle of a prepared statement ends the calls that run it: it is the only
//! thing that some drivers do when a query takes too long.
//!
//! Invariant: losing an entry never makes an answer wrong. It costs time; only a query whose parameters do
//! not fit into its ticket fails.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use kalamdb_core::ids::UserId;
use kalamdb_core::workload::Limit;
use kalamdb_core::{Call, Prepared, SessionId, StopReason};
use parking_lot::Mutex;

use super::budget::{Budget, Charge};
use super::encode::WireSchema;
use super::handles::{Handle, statement_bytes};
use super::parameters::Bound;
use super::ticket::QueryId;

/// Planned queries that wait for their DoGet; beyond this the oldest is dropped.
const PLANNED_MAX: usize = 512;

/// A query planned by GetFlightInfo.
pub(crate) struct PlannedQuery {
    pub(crate) prepared: Prepared,
    pub(crate) bound: Arc<Bound>,
    pub(crate) schema: WireSchema,
    /// The handle of its prepared statement.
    pub(crate) handle: Option<Handle>,
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

    /// Keeps a query until its ticket expires.
    ///
    /// # Errors
    /// The limit of memory that it would exceed.
    pub(crate) fn put(
        &self,
        query: QueryId,
        owner: UserId,
        planned: PlannedQuery,
        expires_at: i64,
    ) -> Result<(), Limit> {
        let charge = self.budget.charge(owner, statement_bytes(&planned.prepared))?;
        let mut inner = self.inner.lock();
        while inner.order.len() >= PLANNED_MAX {
            let Some(oldest) = inner.order.pop_front() else { break };
            inner.entries.remove(&oldest);
        }
        inner.order.push_back(query);
        inner.entries.insert(query, Waiting { planned, expires_at, _charge: charge });
        Ok(())
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

/// A call that runs a statement.
#[derive(Clone)]
pub(crate) struct RunningCall {
    pub(crate) owner: UserId,
    pub(crate) session: SessionId,
    /// The query of its ticket.
    pub(crate) query: Option<QueryId>,
    /// The handle of its prepared statement.
    pub(crate) handle: Option<Handle>,
    pub(crate) call: Call,
}

/// The calls that run statements and can be ended by other calls.
#[derive(Default)]
pub(crate) struct RunningCalls {
    map: Mutex<RunningMap>,
}

#[derive(Default)]
struct RunningMap {
    calls: HashMap<u64, RunningCall>,
    last: u64,
}

impl RunningCalls {
    /// Registers a call as running until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, call: RunningCall) -> RunningGuard {
        let mut map = self.map.lock();
        map.last += 1;
        let number = map.last;
        map.calls.insert(number, call);
        RunningGuard { running: Arc::clone(self), number }
    }

    /// Cancels a running query of `owner`; returns whether there was one. Two DoGets of one ticket are one
    /// query.
    pub(crate) fn cancel(&self, query: QueryId, owner: UserId) -> bool {
        let is_it = |call: &RunningCall| call.query == Some(query) && call.owner == owner;
        self.end_all(is_it, StopReason::Cancelled)
    }

    /// Ends the calls of a session that run the statement of a handle.
    pub(crate) fn end_handle(&self, handle: &[u8], session: SessionId) {
        let is_it = |call: &RunningCall| {
            call.session == session && call.handle.is_some_and(|running| running == handle)
        };
        self.end_all(is_it, StopReason::HandleClosed);
    }

    fn end_all(&self, is_it: impl Fn(&RunningCall) -> bool, reason: StopReason) -> bool {
        let found: Vec<Call> = {
            let map = self.map.lock();
            map.calls.values().filter(|call| is_it(call)).map(|call| call.call.clone()).collect()
        };
        found.iter().for_each(|call| call.end(reason));
        !found.is_empty()
    }

    /// Returns the number of queries whose DoGet is open.
    pub(crate) fn queries(&self) -> usize {
        self.map.lock().calls.values().filter(|call| call.query.is_some()).count()
    }
}

/// Keeps a call registered as running.
pub(crate) struct RunningGuard {
    running: Arc<RunningCalls>,
    number: u64,
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.running.map.lock().calls.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use kalamdb_core::Database;

    use super::super::encode::SchemaEncodings;
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_nobody_came_for_goes_with_its_ticket() {
        let database = Database::open_in_memory().await.unwrap();
        let prepared = database.session_for("root").unwrap().prepare("SELECT 1").await.unwrap();
        let schema = &prepared.schema().unwrap().schema;
        let schema = WireSchema::of(schema, None, &SchemaEncodings::default());
        let planned = || PlannedQuery {
            prepared: prepared.clone(),
            bound: Arc::default(),
            schema: schema.clone(),
            handle: None,
        };
        let queries = PlannedQueries::new(Budget::for_test(1 << 20, 1 << 20));
        let [fetched, renewed, forgotten] = [1, 2, 3].map(|number| QueryId([number; 16]));
        for query in [fetched, renewed, forgotten] {
            queries.put(query, UserId(1), planned(), 100).unwrap();
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
        let full = PlannedQueries::new(Budget::for_test(1, 1));
        assert!(full.put(fetched, UserId(1), planned(), 100).is_err());
        database.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn only_its_owner_cancels_a_query_and_only_its_session_closes_its_handle() {
        let running = Arc::new(RunningCalls::default());
        let (query, handle) = (QueryId([1; 16]), [2; 16]);
        let call = |query, handle| RunningCall {
            owner: UserId(1),
            session: SessionId(5),
            query,
            handle,
            call: Call::default(),
        };
        let told = |call: &RunningCall| call.call.ended().now_or_never().is_some();
        let (one, other) = (call(Some(query), None), call(None, Some(handle)));
        let guards = [&one, &one, &other].map(|call| running.enter(call.clone()));
        assert_eq!(running.queries(), 2);
        assert!(!running.cancel(query, UserId(2)) && !running.cancel(QueryId([9; 16]), UserId(1)));
        running.end_handle(&handle, SessionId(6));
        running.end_handle(b"short", SessionId(5));
        assert!(!told(&one) && !told(&other));
        assert!(running.cancel(query, UserId(1)));
        assert!(told(&one) && !told(&other));
        running.end_handle(&handle, SessionId(5));
        assert!(told(&other));
        drop(guards);
        assert_eq!(running.queries(), 0);
        assert!(!running.cancel(query, UserId(1)));
    }
}
