//! Owns all live queries: who subscribes to what, within which limits, and how subscriptions end.
//!
//! Invariant: a [`Subscription`] holds its place in the registry, so dropping it ends it everywhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::SubscribeRequest;
use super::frame::CloseReason;
use super::frame_maker::FrameLimits;
use super::matcher;
use super::plan::LiveQueryPlan;
use super::registry::{LiveState, Membership, Registered};
use super::start::Start;
use super::stop::{Stop, Subscriber, cannot_begin, check_current};
use super::subscription::Subscription;
use crate::access::Principal;
use crate::clock::Clock;
use crate::commit::Committer;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{Seq, SessionId, SubscriptionId, UserId};
use crate::workload::{EngineThreads, SessionInfo};

/// How often it is checked which subscribers are idle.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// The arguments of [`LiveQueryManager::start`].
pub struct LiveQueryParts<'a> {
    /// The commit order to follow.
    pub committer: Arc<Committer>,
    /// The clock of the times in frames.
    pub clock: Arc<dyn Clock>,
    /// The database's secret, which seals resume tokens.
    pub secret: [u8; 32],
    /// The threads that read snapshots and the change log.
    pub engine_threads: Arc<EngineThreads>,
    /// Limits.
    pub config: &'a Config,
}

/// All live queries of a database.
pub struct LiveQueryManager {
    state: Arc<LiveState>,
    stop: CancellationToken,
    /// The matcher, and the task that takes from idle subscribers what they hold.
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// One running live query, as `system.live_queries` shows it.
#[derive(Clone, Debug)]
pub struct LiveQueryInfo {
    /// The number `KILL LIVE QUERY` takes.
    pub id: SubscriptionId,
    /// The subscriber.
    pub principal: Principal,
    /// The namespace of its table.
    pub namespace: Arc<str>,
    /// Its table.
    pub table: Arc<str>,
    /// 32 hexadecimal digits, the same for equal queries.
    pub query_id: String,
    /// Its statement.
    pub sql: String,
    /// The label that the client chose.
    pub label: String,
    /// The start time, microseconds UTC.
    pub created_at: i64,
    /// When the last frame was delivered, microseconds UTC.
    pub updated_at: i64,
    /// Rows delivered after the snapshot.
    pub changes: u64,
    /// Frames delivered.
    pub frames: u64,
    /// Commits up to this one have been delivered.
    pub complete_through: Seq,
    /// Subscriptions that share its evaluation, including itself.
    pub shared_by: usize,
}

/// Counters of all live queries since the database was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveCounters {
    /// Running subscriptions.
    pub subscriptions: usize,
    /// Distinct queries among them.
    pub groups: usize,
    /// Evaluations of a query over new commits.
    pub evaluations: u64,
    /// Frames delivered to subscribers.
    pub frames: u64,
    /// Reads of the change log by subscribers whose position was not in a ring.
    pub log_reads: u64,
    /// Frames and scans that were taken from subscribers who had not sent them yet.
    pub evictions: u64,
    /// Bytes that subscribers hold: of frames that were made for them and wait to be sent.
    pub held_bytes: usize,
    /// RESETs, each followed by a fresh snapshot.
    pub resets: u64,
    /// Bytes in all rings.
    pub ring_bytes: usize,
    /// Commits up to this one have been matched.
    pub frontier: Seq,
}

impl LiveQueryManager {
    /// Starts the matcher. Must be called within a tokio runtime.
    pub fn start(parts: LiveQueryParts<'_>) -> Arc<Self> {
        let LiveQueryParts { committer, clock, secret, engine_threads, config } = parts;
        let state = Arc::new(LiveState::new(committer, clock, &secret, engine_threads, config));
        let stop = CancellationToken::new();
        let matcher = tokio::spawn(matcher::run(Arc::clone(&state), stop.clone()));
        let sweeper = tokio::spawn(sweep(Arc::clone(&state), stop.clone()));
        Arc::new(Self { state, stop, tasks: Mutex::new(vec![matcher, sweeper]) })
    }

    /// Starts a live query of `principal` in a session. The caller has checked its right to read the table.
    ///
    /// # Errors
    /// 53300 beyond the limits; 22023 for a start or token that does not fit the query; 40001 when the table
    /// changed since the query was planned; the end of the session.
    pub(crate) fn subscribe(
        &self,
        principal: &Principal,
        session: &Arc<SessionInfo>,
        plan: LiveQueryPlan,
        request: &SubscribeRequest,
    ) -> Result<Subscription> {
        let state = &self.state;
        let group = state.join(principal, plan, frame_limits(request))?;
        // The snapshot is taken after joining, so the matcher shows all later commits to the group.
        let membership = Membership {
            state: Arc::clone(state),
            user: principal.user_id,
            group,
            id: None,
            session: Some(session.hold_live_query()),
        };
        let snapshot = state.committer.snapshot();
        let subscriber = Subscriber::as_of(principal, &snapshot.catalog);
        check_current(&membership.group.plan, &subscriber, &snapshot.catalog)
            .map_err(|stop| cannot_begin(&stop))?;
        let start = Start::of(request, &membership.group.maker, &snapshot)?;
        let position = match &start {
            Start::Snapshot { .. } => snapshot.seq,
            Start::After { seq, .. } => *seq,
        };
        if request.up_to_seq.is_some_and(|up_to| up_to < position) {
            return Err(Error::invalid(format!(
                "up_to_seq is before the start of the live query, which is {position}"
            )));
        }
        let (registered, membership) = state.register(subscriber, request, membership)?;
        debug!(subscription = registered.id.0, user = principal.user_id.0, "live query began");
        Ok(Subscription::new(Arc::clone(state), registered, membership, start, snapshot, request))
    }

    /// Ends a live query; the last frame of its stream gives the reason.
    ///
    /// # Errors
    /// 42704 when no live query has this number.
    pub fn kill(&self, id: SubscriptionId) -> Result<()> {
        let Some(registered) = self.state.subscriptions.get(&id).map(|entry| Arc::clone(entry.value()))
        else {
            return Err(Error::new(
                ErrorKind::NotFound,
                SqlState::UNDEFINED_OBJECT,
                format!("live query \"{id}\" does not exist"),
            )
            .hint("SELECT live_id FROM system.live_queries lists them"));
        };
        registered.end(Stop::new(CloseReason::Killed, "the live query was ended by KILL LIVE QUERY"));
        Ok(())
    }

    /// Ends the live queries of a session; the last frame of each has the message.
    pub(crate) fn end_session(&self, session: SessionId, message: &str) {
        self.state.end_session(session, message);
    }

    /// Returns the owner of a live query; `None` if no live query has this number.
    pub fn owner(&self, id: SubscriptionId) -> Option<UserId> {
        self.state.subscriptions.get(&id).map(|entry| entry.subscriber.principal.user_id)
    }

    /// Returns the running live queries, oldest first.
    pub fn list(&self) -> Vec<LiveQueryInfo> {
        let registered: Vec<_> =
            self.state.subscriptions.iter().map(|entry| Arc::clone(entry.value())).collect();
        let members = self.state.members.lock();
        let mut infos: Vec<_> = registered
            .iter()
            .map(|registered| {
                let shared_by = members.groups.get(&registered.group.key).map_or(1, |(_, count)| *count);
                registered.info(shared_by)
            })
            .collect();
        drop(members);
        infos.sort_by_key(|info| info.id);
        infos
    }

    /// Returns the counters of all live queries.
    pub fn counters(&self) -> LiveCounters {
        let state = &self.state;
        let (subscriptions, groups) = {
            let members = state.members.lock();
            (members.total, members.groups.len())
        };
        LiveCounters {
            subscriptions,
            groups,
            evaluations: state.counters.evaluations.load(Ordering::Relaxed),
            frames: state.counters.frames.load(Ordering::Relaxed),
            log_reads: state.counters.log_reads.load(Ordering::Relaxed),
            evictions: state.held.evictions(),
            held_bytes: state.held.bytes(),
            resets: state.counters.resets.load(Ordering::Relaxed),
            ring_bytes: state.rings.bytes.load(Ordering::Relaxed),
            frontier: *state.frontier.borrow(),
        }
    }

    /// Ends all live queries with `Closed{Shutdown}`, then the tasks. Nobody can subscribe afterwards.
    pub async fn shutdown(&self) {
        self.state.members.lock().closed = true;
        for entry in &self.state.subscriptions {
            entry.end(Stop::new(CloseReason::Shutdown, "the server is shutting down"));
        }
        self.stop.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            if let Err(failure) = task.await {
                error!(%failure, "a task of the live queries failed");
            }
        }
    }
}

/// Takes from idle subscribers what they hold, until `stop`.
async fn sweep(state: Arc<LiveState>, stop: CancellationToken) {
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => state.held.evict_idle(Instant::now()),
        }
    }
}

impl Drop for LiveQueryManager {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Registered {
    fn info(&self, shared_by: usize) -> LiveQueryInfo {
        let definition = &self.group.plan.table.definition;
        LiveQueryInfo {
            id: self.id,
            principal: self.subscriber.principal.clone(),
            namespace: Arc::clone(&definition.namespace),
            table: Arc::clone(&definition.name),
            query_id: self.group.key.fingerprint.to_string(),
            sql: self.sql.clone(),
            label: self.label.clone(),
            created_at: self.created_at,
            updated_at: i64::try_from(self.updated_at.load(Ordering::Relaxed)).unwrap_or(i64::MAX),
            changes: self.changes.load(Ordering::Relaxed),
            frames: self.frames.load(Ordering::Relaxed),
            complete_through: Seq(self.complete_through.load(Ordering::Relaxed)),
            shared_by,
        }
    }
}

fn frame_limits(request: &SubscribeRequest) -> FrameLimits {
    let or = |value: usize, default: usize| if value == 0 { default } else { value };
    FrameLimits {
        rows_max: or(request.max_rows, SubscribeRequest::MAX_ROWS),
        bytes_max: or(request.max_bytes, SubscribeRequest::MAX_BYTES).min(SubscribeRequest::MAX_BYTES_LIMIT),
    }
}

#[cfg(test)]
mod tests;
