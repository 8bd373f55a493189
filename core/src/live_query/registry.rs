//! The registry of subscriptions and of the groups that share an evaluation, and the state they share.
//!
//! Invariant: a subscription is registered exactly as long as its [`Membership`] lives. A group lives exactly
//! as long as it has a member.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dashmap::DashMap;
use datafusion::execution::SessionState;
use datafusion::prelude::{SessionConfig, SessionContext};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{Instrument, debug, error};

use super::SubscribeRequest;
use super::frame::CloseReason;
use super::frame_maker::{FrameLimits, FrameMaker};
use super::group::{GroupKey, QueryGroup, RingTotal};
use super::held::Held;
use super::plan::LiveQueryPlan;
use super::stop::{Stop, Subscriber, cannot_begin, check_current};
use super::token::{Sealer, SecurityFingerprint, TokenScope};
use super::turns::Turns;
use crate::access::Principal;
use crate::clock::Clock;
use crate::commit::Committer;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{ScopeId, Seq, SessionId, SubscriptionId, TableId, UserId};
use crate::platform;
use crate::schema_registry::Catalog;
use crate::workload::{EngineThreads, SessionHold};

/// All rings together hold at most this many times the bytes of one ring.
const RINGS_MAX: usize = 64;
/// Pieces of the change log, and scans of snapshots, that are read at the same time; more if there are more
/// processors.
const READS_AT_ONCE: usize = 4;

/// The state shared by the manager, the matcher and the subscriptions.
pub(super) struct LiveState {
    pub(super) committer: Arc<Committer>,
    pub(super) clock: Arc<dyn Clock>,
    /// For scans of snapshots.
    pub(super) session: Arc<SessionState>,
    engine: Arc<EngineThreads>,
    /// Commits up to this one have been matched.
    pub(super) frontier: watch::Sender<Seq>,
    /// The groups that must see the changes of a table and scope.
    pub(super) by_table: DashMap<(TableId, ScopeId), Vec<Arc<QueryGroup>>>,
    /// New groups, for the matcher to adopt.
    pub(super) pending: Mutex<Vec<Arc<QueryGroup>>>,
    pub(super) counters: Counters,
    pub(super) subscriptions: DashMap<SubscriptionId, Arc<Registered>>,
    pub(super) members: Mutex<Members>,
    /// What subscribers hold.
    pub(super) held: Arc<Held>,
    /// For evaluations of the change log, each of which takes a bounded time.
    pub(super) log_turns: Turns,
    /// For reading snapshots.
    pub(super) scan_turns: Turns,
    /// Bytes of rows per piece of the change log.
    pub(super) piece_bytes: usize,
    sealer: Sealer,
    ring_bytes_max: usize,
    pub(super) rings: Arc<RingTotal>,
    subscriptions_max: usize,
    subscriptions_per_user_max: usize,
    last_id: AtomicU64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) evaluations: AtomicU64,
    pub(super) frames: AtomicU64,
    pub(super) log_reads: AtomicU64,
    pub(super) resets: AtomicU64,
}

/// Member counts, behind one lock so that joining and leaving a group cannot interleave.
#[derive(Default)]
pub(super) struct Members {
    pub(super) groups: HashMap<GroupKey, (Arc<QueryGroup>, usize)>,
    per_user: HashMap<UserId, usize>,
    pub(super) total: usize,
    /// Set at shutdown: nobody can join any more.
    pub(super) closed: bool,
}

impl LiveState {
    pub(super) fn new(
        committer: Arc<Committer>,
        clock: Arc<dyn Clock>,
        secret: &[u8; 32],
        engine: Arc<EngineThreads>,
        config: &Config,
    ) -> Self {
        let reads = READS_AT_ONCE.max(platform::processors());
        let mut session = SessionConfig::new().with_target_partitions(1).with_batch_size(config.batch_rows);
        session.options_mut().execution.parquet.schema_force_view_types = false;
        let snapshot = committer.snapshot();
        let frontier = snapshot.seq;
        let context = SessionContext::new_with_config(session);
        snapshot.cold.store().register(&context.runtime_env());
        Self {
            committer,
            clock,
            session: Arc::new(context.state()),
            engine,
            frontier: watch::Sender::new(frontier),
            by_table: DashMap::new(),
            pending: Mutex::default(),
            counters: Counters::default(),
            subscriptions: DashMap::new(),
            members: Mutex::default(),
            held: Held::new(config),
            log_turns: Turns::new(reads),
            scan_turns: Turns::new(reads),
            piece_bytes: config.live_piece_bytes.max(1),
            sealer: Sealer::new(secret),
            ring_bytes_max: config.live_ring_bytes,
            rings: Arc::new(RingTotal {
                bytes: AtomicUsize::new(0),
                bytes_max: config.live_ring_bytes.saturating_mul(RINGS_MAX),
            }),
            subscriptions_max: config.subscriptions_max,
            subscriptions_per_user_max: config.subscriptions_per_user_max,
            last_id: AtomicU64::new(0),
        }
    }

    /// Runs work for a subscriber on the threads of statements and waits for it.
    pub(super) async fn on_engine<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let mut work = self.engine.spawn_task(work);
        std::future::poll_fn(|cx| work.poll_join(cx)).await
    }

    /// Finds or creates the group of equal subscriptions and counts the new member.
    pub(super) fn join(
        &self,
        principal: &Principal,
        plan: LiveQueryPlan,
        limits: FrameLimits,
    ) -> Result<Arc<QueryGroup>> {
        let definition = &plan.table.definition;
        let mut key = GroupKey {
            table: definition.id,
            version: definition.version,
            scope: plan.scope,
            fingerprint: plan.fingerprint,
            limits,
            ordinal: 0,
        };
        let mut members = self.members.lock();
        if members.closed {
            return Err(Error::shutting_down());
        }
        if members.total >= self.subscriptions_max {
            return Err(too_many("subscriptions_max", self.subscriptions_max));
        }
        let own = members.per_user.get(&principal.user_id).copied().unwrap_or_default();
        if own >= self.subscriptions_per_user_max {
            return Err(too_many("subscriptions_per_user_max", self.subscriptions_per_user_max));
        }
        members.total += 1;
        *members.per_user.entry(principal.user_id).or_default() += 1;
        while let Some((group, count)) = members.groups.get_mut(&key) {
            // Compared in full: a fingerprint collision must not show another query's rows.
            if group.plan.is_same(&plan) {
                *count += 1;
                return Ok(Arc::clone(group));
            }
            key.ordinal += 1;
        }
        let group = Arc::new(QueryGroup::new(
            key.clone(),
            plan.clone(),
            self.frame_maker(&plan, limits),
            self.ring_bytes_max,
            Arc::clone(&self.rings),
        ));
        // In this order, so that an adopted group sees all commits that follow.
        self.by_table.entry((key.table, key.scope)).or_default().push(Arc::clone(&group));
        self.pending.lock().push(Arc::clone(&group));
        members.groups.insert(key, (Arc::clone(&group), 1));
        Ok(group)
    }

    fn frame_maker(&self, plan: &LiveQueryPlan, limits: FrameLimits) -> FrameMaker {
        let definition = &plan.table.definition;
        FrameMaker {
            scope: TokenScope {
                database: self.committer.database_id(),
                query: plan.fingerprint,
                table: definition.id,
                version: definition.version,
                security: SecurityFingerprint::of(plan.scope),
            },
            committer: Arc::clone(&self.committer),
            sealer: self.sealer.clone(),
            clock: Arc::clone(&self.clock),
            limits,
        }
    }

    fn leave(&self, user: UserId, group: &Arc<QueryGroup>) {
        let mut members = self.members.lock();
        members.total = members.total.saturating_sub(1);
        if let Some(count) = members.per_user.get_mut(&user) {
            *count -= 1;
            if *count == 0 {
                members.per_user.remove(&user);
            }
        }
        let Some((_, count)) = members.groups.get_mut(&group.key) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        members.groups.remove(&group.key);
        self.pending.lock().retain(|pending| !Arc::ptr_eq(pending, group));
        let place = (group.key.table, group.key.scope);
        if let Some(mut groups) = self.by_table.get_mut(&place) {
            groups.retain(|other| !Arc::ptr_eq(other, group));
        }
        self.by_table.remove_if(&place, |_, groups| groups.is_empty());
    }

    /// Enters a member's subscription, unless its table or user has changed since it joined.
    pub(super) fn register(
        &self,
        subscriber: Subscriber,
        request: &SubscribeRequest,
        mut membership: Membership,
    ) -> Result<(Arc<Registered>, Membership)> {
        let id = SubscriptionId(self.last_id.fetch_add(1, Ordering::Relaxed) + 1);
        let now = self.clock.now_us();
        let registered = Arc::new(Registered {
            id,
            subscriber,
            session: membership.session.as_ref().map(|hold| hold.session().id()),
            group: Arc::clone(&membership.group),
            stop: watch::Sender::new(None),
            sql: request.sql.clone(),
            label: cut_label(&request.label),
            created_at: now,
            updated_at: AtomicU64::new(u64::try_from(now).unwrap_or_default()),
            changes: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            complete_through: AtomicU64::new(0),
        });
        membership.id = Some(id);
        self.subscriptions.insert(id, Arc::clone(&registered));
        // An earlier shutdown is seen here; a later one sees this entry in the registry.
        if self.members.lock().closed {
            return Err(Error::shutting_down());
        }
        // An earlier change of the catalog is seen here; a later one ends this subscription too.
        check_current(&registered.group.plan, &registered.subscriber, &self.committer.snapshot().catalog)
            .map_err(|stop| cannot_begin(&stop))?;
        // The same for the end of the session.
        if let Some(hold) = &membership.session {
            hold.session().check()?;
        }
        Ok((registered, membership))
    }

    /// Ends the subscriptions of a session.
    pub(super) fn end_session(&self, session: SessionId, message: &str) {
        for entry in &self.subscriptions {
            if entry.session == Some(session) {
                entry.end(Stop::new(CloseReason::Killed, message));
            }
        }
    }

    /// Ends subscriptions whose table or user was dropped or changed.
    pub(super) fn end_outdated(&self, catalog: &Catalog) {
        for entry in &self.subscriptions {
            if let Err(stop) = check_current(&entry.group.plan, &entry.subscriber, catalog) {
                entry.end(stop);
            }
        }
    }

    /// Ends all subscriptions of a group whose expressions failed on commits up to `through`. Subscriptions
    /// that are about to be registered find the gap that these commits leave, and fail on them by themselves.
    pub(super) fn end_group(&self, group: &Arc<QueryGroup>, through: Seq, stop: &Stop) {
        group.leave_gap(through);
        for entry in &self.subscriptions {
            if Arc::ptr_eq(&entry.group, group) {
                entry.end(stop.clone());
            }
        }
    }

    pub(super) fn has_subscriptions(&self, user: UserId) -> bool {
        self.members.lock().per_user.contains_key(&user)
    }
}

/// Runs work for a subscriber as a task. It goes on while nobody polls the returned future, and ends when
/// the future is dropped.
pub(super) async fn in_task<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let mut task = JoinSet::new();
    task.spawn(work.in_current_span());
    match task.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(failure)) if failure.is_panic() => {
            error!(%failure, "a live query panicked");
            Err(Error::internal("the live query could not be evaluated").source(failure))
        }
        Some(Err(_)) | None => Err(Error::shutting_down()),
    }
}

/// The registry's entry of a subscription.
pub(super) struct Registered {
    pub(super) id: SubscriptionId,
    pub(super) subscriber: Subscriber,
    pub(super) session: Option<SessionId>,
    pub(super) group: Arc<QueryGroup>,
    pub(super) stop: watch::Sender<Option<Stop>>,
    pub(super) sql: String,
    pub(super) label: String,
    pub(super) created_at: i64,
    pub(super) updated_at: AtomicU64,
    pub(super) changes: AtomicU64,
    pub(super) frames: AtomicU64,
    pub(super) complete_through: AtomicU64,
}

impl Registered {
    /// Ends the subscription. The first reason wins.
    pub(super) fn end(&self, stop: Stop) {
        self.stop.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(stop);
            }
            first
        });
    }
}

/// A place in the registry, released on drop.
pub(super) struct Membership {
    pub(super) state: Arc<LiveState>,
    pub(super) user: UserId,
    pub(super) group: Arc<QueryGroup>,
    pub(super) id: Option<SubscriptionId>,
    /// Counts the live query for its session.
    pub(super) session: Option<SessionHold>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.state.subscriptions.remove(&id);
            debug!(subscription = id.0, user = self.user.0, "live query ended");
        }
        self.state.leave(self.user, &self.group);
    }
}

fn cut_label(label: &str) -> String {
    let mut end = label.len().min(SubscribeRequest::LABEL_BYTES_MAX);
    while !label.is_char_boundary(end) {
        end -= 1;
    }
    label.get(..end).unwrap_or_default().to_owned()
}

fn too_many(setting: &str, limit: usize) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::TOO_MANY,
        format!("there are already {limit} live queries"),
    )
    .hint(format!("end one, or raise {setting}"))
}
