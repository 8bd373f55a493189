//! The control of one statement: what it is and does, and whether it must stop. Everything that works for the
//! statement checks it, and whoever waits for the statement waits for it too.
//!
//! Invariants: the first reason to stop is the one that everybody is told. A statement that is over is not
//! stopped any more. A statement is over at the latest when nothing works for it.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::memory::Account;
use super::reason::StopReason;
use super::sessions::SessionInfo;
use super::step::Step;
use crate::access::{Principal, Role};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{QueryId, UserId};

/// What a statement does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum StatementState {
    /// It is planned, or what needs no plan is done.
    Planning,
    /// It waits for its turn to run.
    Queued,
    /// It runs.
    Running,
    /// It lost against another commit, and waits for its turn to try again.
    Retrying,
    /// Its change waits for the sequencer.
    Committing,
    /// Its rows wait for the client.
    WaitingForClient,
    /// It must stop, and some of its work has not noticed yet.
    Ending,
    /// It must stop, and a thread that does not notice was given up.
    GivenUp,
}

impl StatementState {
    const ALL: [Self; 8] = [
        Self::Planning,
        Self::Queued,
        Self::Running,
        Self::Retrying,
        Self::Committing,
        Self::WaitingForClient,
        Self::Ending,
        Self::GivenUp,
    ];

    fn of(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::Running)
    }

    /// Returns the state as `system.queries` shows it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Planning => "planning",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Committing => "committing",
            Self::WaitingForClient => "waiting_for_client",
            Self::Ending => "ending",
            Self::GivenUp => "given_up",
        }
    }

    /// Returns what a statement in this state waits for.
    pub(crate) fn wait_event(self) -> Option<&'static str> {
        match self {
            Self::Queued => Some("admission"),
            Self::Retrying => Some("retry_turn"),
            Self::Committing => Some("commit"),
            Self::WaitingForClient => Some("client"),
            Self::Planning | Self::Running | Self::Ending | Self::GivenUp => None,
        }
    }
}

/// How a statement ended that was not told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum StatementEnd {
    Completed = 1,
    Failed = 2,
}

/// In place of a reason or an end: there is none.
const NONE: u8 = 0;

/// Limits of the settings that each statement has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    snapshot_age_max: Duration,
    /// The most processor time of a step; zero sets no limit.
    step_cpu_max: Duration,
}

impl Limits {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            snapshot_age_max: Duration::from_secs(config.snapshot_age_max_s),
            step_cpu_max: Duration::from_millis(config.step_cpu_ms_max),
        }
    }
}

/// What is known about a statement when it begins.
pub(crate) struct StatementParts<'a> {
    pub(crate) session: &'a Arc<SessionInfo>,
    /// The user, with the present role.
    pub(crate) principal: &'a Principal,
    /// The generation of the user's password and role; `None` for a user that is not in the catalog.
    pub(crate) auth_generation: Option<u32>,
    /// What it is, in SQL words.
    pub(crate) kind: &'static str,
    /// The text; `None` for one that may contain a password.
    pub(crate) text: Option<Arc<str>>,
    /// How long it may take.
    pub(crate) timeout: Option<Duration>,
    /// The account of its memory.
    pub(crate) memory: Arc<Account>,
}

/// Called once, when a listed statement is over.
pub(super) type OnEnd = Arc<dyn Fn(&StatementControl) + Send + Sync>;

/// The control of one statement.
pub(crate) struct StatementControl {
    id: QueryId,
    session: Arc<SessionInfo>,
    may_use_reserved: bool,
    auth_generation: Option<u32>,
    kind: &'static str,
    text: Option<Arc<str>>,
    timeout: Option<Duration>,
    limits: Limits,
    began: Instant,
    /// Microseconds since 1970 UTC.
    started_at: i64,
    /// [`NONE`], or a [`StopReason`].
    reason: AtomicU8,
    stopped: CancellationToken,
    /// A [`StatementState`].
    state: AtomicU8,
    /// When it was queued last, in microseconds since it began.
    queued_at_us: AtomicU64,
    queued_us: AtomicU64,
    rows: AtomicU64,
    cpu_us: AtomicU64,
    spill_bytes: AtomicU64,
    memory: Arc<Account>,
    /// Stops the statement in time.
    timer: OnceLock<AbortHandle>,
    /// [`NONE`], or a [`StatementEnd`].
    end: AtomicU8,
    /// `None` for work that is no statement of its session.
    on_end: Option<OnEnd>,
}

impl StatementControl {
    pub(super) fn begin(
        id: QueryId,
        limits: Limits,
        started_at: i64,
        parts: StatementParts<'_>,
        on_end: Option<OnEnd>,
    ) -> Arc<Self> {
        let StatementParts { session, principal, auth_generation, kind, text, timeout, memory } = parts;
        if on_end.is_some() {
            session.enter_statement();
        }
        Arc::new(Self {
            id,
            session: Arc::clone(session),
            may_use_reserved: principal.role >= Role::Dba,
            auth_generation,
            kind,
            text,
            timeout,
            limits,
            began: Instant::now(),
            started_at,
            reason: AtomicU8::new(NONE),
            stopped: CancellationToken::new(),
            state: AtomicU8::new(StatementState::Planning as u8),
            queued_at_us: AtomicU64::new(0),
            queued_us: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            cpu_us: AtomicU64::new(0),
            spill_bytes: AtomicU64::new(0),
            memory,
            timer: OnceLock::new(),
            end: AtomicU8::new(NONE),
            on_end,
        })
    }

    /// Returns the control of a statement of root that no list has.
    #[cfg(test)]
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        let session = SessionInfo::for_test();
        let principal =
            Principal { user_id: session.user(), username: Arc::from("root"), role: Role::System };
        let parts = StatementParts {
            session: &session,
            principal: &principal,
            auth_generation: None,
            kind: "SELECT",
            text: None,
            timeout: None,
            memory: super::memory::Memory::new(config).statement(session.user()),
        };
        Self::begin(QueryId(0), Limits::new(config), 0, parts, None)
    }

    /// Returns the number of the statement.
    pub(crate) fn id(&self) -> QueryId {
        self.id
    }

    /// Returns the session that the statement belongs to.
    pub(crate) fn session(&self) -> &Arc<SessionInfo> {
        &self.session
    }

    /// Returns the user that the statement runs for.
    pub(crate) fn user(&self) -> UserId {
        self.session.user()
    }

    /// Whether the statement may use what is kept free for administrators.
    pub(crate) fn may_use_reserved(&self) -> bool {
        self.may_use_reserved
    }

    /// Returns the generation of the user's password and role at the start.
    pub(crate) fn auth_generation(&self) -> Option<u32> {
        self.auth_generation
    }

    /// Returns what the statement is, in SQL words.
    pub(crate) fn kind(&self) -> &'static str {
        self.kind
    }

    /// Returns the text; `None` for one that may contain a password.
    pub(crate) fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// Returns how long the statement may take.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Returns the start, in microseconds since 1970 UTC.
    pub(crate) fn started_at(&self) -> i64 {
        self.started_at
    }

    /// Returns how long the statement has taken.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Returns the account of the memory that works for the statement.
    pub(crate) fn memory(&self) -> &Arc<Account> {
        &self.memory
    }

    /// Returns how long the statement may hold its snapshot.
    pub(crate) fn snapshot_age_max(&self) -> Duration {
        self.limits.snapshot_age_max
    }

    /// Counts rows that the statement returns or writes.
    pub(crate) fn add_rows(&self, rows: usize) {
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// Counts processor time, in microseconds.
    pub(crate) fn add_cpu(&self, us: u64) {
        self.cpu_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Returns the processor time, in microseconds.
    pub(crate) fn cpu_us(&self) -> u64 {
        self.cpu_us.load(Ordering::Relaxed)
    }

    /// Counts bytes that the statement has written to the spill folder.
    pub(crate) fn add_spill(&self, bytes: u64) {
        self.spill_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn spill_bytes(&self) -> u64 {
        self.spill_bytes.load(Ordering::Relaxed)
    }

    /// Records what the statement does now.
    pub(crate) fn set_state(&self, state: StatementState) {
        let queued = StatementState::Queued as u8;
        let before = self.state.swap(state as u8, Ordering::Relaxed);
        if before == state as u8 {
            return;
        }
        if state as u8 == queued {
            self.queued_at_us.store(self.elapsed_us(), Ordering::Relaxed);
        } else if before == queued {
            let waited = self.elapsed_us().saturating_sub(self.queued_at_us.load(Ordering::Relaxed));
            self.queued_us.fetch_add(waited, Ordering::Relaxed);
        }
    }

    /// Returns what the statement does now.
    pub(crate) fn state(&self) -> StatementState {
        match StatementState::of(self.state.load(Ordering::Relaxed)) {
            StatementState::GivenUp => StatementState::GivenUp,
            _ if self.reason().is_some() => StatementState::Ending,
            state => state,
        }
    }

    /// Returns how long the statement has waited for its turn to run.
    pub(crate) fn queued_time(&self) -> Duration {
        Duration::from_micros(self.queued_us.load(Ordering::Relaxed))
    }

    fn elapsed_us(&self) -> u64 {
        u64::try_from(self.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Tells the statement to stop, unless it was told already or is over.
    pub(crate) fn stop(&self, reason: StopReason) {
        if self.ended().is_some() {
            return;
        }
        let first =
            self.reason.compare_exchange(NONE, reason as u8, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if first {
            self.stopped.cancel();
        }
    }

    /// Returns the reason to stop, if there is one.
    pub(crate) fn reason(&self) -> Option<StopReason> {
        match self.reason.load(Ordering::Relaxed) {
            NONE => None,
            reason => StopReason::of(reason),
        }
    }

    /// Checks that the statement may go on. Costs some tens of nanoseconds.
    ///
    /// # Errors
    /// The error of the reason to stop; 54000 if the current step has taken too much processor time.
    pub(crate) fn check(&self) -> Result<()> {
        let step_cpu_max = self.limits.step_cpu_max;
        if self.reason().is_none()
            && !step_cpu_max.is_zero()
            && let Some(step) = Step::current()
            // The thread may have waited for a processor: only the slower clock of the thread knows.
            && step.elapsed() > step_cpu_max
            && step.cpu() > step_cpu_max
        {
            self.stop(StopReason::StepTooLong);
        }
        self.reason().map_or(Ok(()), |_| Err(self.error()))
    }

    /// Waits until the statement must stop.
    pub(crate) async fn stopped(&self) {
        self.stopped.cancelled().await;
    }

    /// [`StatementControl::stopped`] as a future that owns what it needs.
    pub(crate) fn stopped_owned(&self) -> WaitForCancellationFutureOwned {
        self.stopped.clone().cancelled_owned()
    }

    /// Waits until the statement must stop, and returns its error.
    pub(crate) fn stop_error(self: &Arc<Self>) -> impl Future<Output = Error> + Send + use<> {
        let control = Arc::clone(self);
        async move {
            control.stopped().await;
            control.error()
        }
    }

    /// Returns the error of a statement that must stop.
    pub(crate) fn error(&self) -> Error {
        match self.reason() {
            Some(StopReason::SnapshotAge) => Error::new(
                ErrorKind::ResourceExhausted,
                SqlState::LIMIT_EXCEEDED,
                format!(
                    "the query exceeded the maximum snapshot age of {} s",
                    self.limits.snapshot_age_max.as_secs()
                ),
            )
            .hint("read the rows faster or select fewer, or raise snapshot_age_max_s"),
            Some(StopReason::StepTooLong) => Error::new(
                ErrorKind::ResourceExhausted,
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                format!(
                    "a step of the statement took more than {} ms of processor time",
                    self.limits.step_cpu_max.as_millis()
                ),
            )
            .hint("combine fewer rows at a time, or raise step_cpu_ms_max"),
            Some(StopReason::Timeout) => Error::new(
                ErrorKind::Cancelled,
                SqlState::QUERY_CANCELED,
                format!(
                    "the statement took longer than its statement_timeout of {} ms",
                    self.timeout.unwrap_or_default().as_millis()
                ),
            )
            .hint("select less, read the rows faster, or SET statement_timeout to more"),
            Some(reason) => reason.error(),
            None => StopReason::ClientGone.error(),
        }
    }

    /// Stops the statement in time; the timer ends with the statement.
    pub(super) fn set_timer(&self, timer: AbortHandle) {
        if let Err(timer) = self.timer.set(timer) {
            timer.abort();
        }
    }

    /// Records that the statement is over, unless it is. From now on it cannot be stopped, although its plan
    /// may live on in a live query. One that was told to stop and failed is over once nothing works for it.
    pub(crate) fn end(&self, end: StatementEnd) {
        if end == StatementEnd::Failed && self.reason().is_some() {
            return;
        }
        if self.end.compare_exchange(NONE, end as u8, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return;
        }
        if let Some(timer) = self.timer.get() {
            timer.abort();
        }
        if let Some(on_end) = &self.on_end {
            self.session.leave_statement();
            on_end(self);
        }
    }

    fn ended(&self) -> Option<StatementEnd> {
        match self.end.load(Ordering::Acquire) {
            NONE => None,
            1 => Some(StatementEnd::Completed),
            _ => Some(StatementEnd::Failed),
        }
    }

    /// Returns how the statement ended, in words.
    pub(crate) fn end_name(&self) -> &'static str {
        match (self.reason(), self.ended()) {
            (Some(reason), _) => reason.name(),
            (None, Some(StatementEnd::Failed)) => "failed",
            (None, Some(StatementEnd::Completed) | None) => "completed",
        }
    }
}

impl Drop for StatementControl {
    fn drop(&mut self) {
        self.end(StatementEnd::Completed);
    }
}

impl fmt::Debug for StatementControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatementControl")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("reason", &self.reason())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
