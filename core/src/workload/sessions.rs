//! The sessions of a database: whose they are, what they have set, what they do now, and how they end.
//!
//! Invariants: a session is listed as long as somebody holds it. A session that has ended begins no more
//! statements.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use parking_lot::RwLock;

use super::reason::StopReason;
use crate::access::Principal;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{SessionId, UserId};

/// What a session belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionKind {
    /// A program that embeds the database.
    #[default]
    Embedded,
    /// A connection of a client.
    Connection,
    /// A client that names its session, over any connection.
    Named,
}

impl SessionKind {
    /// Returns the kind as `system.sessions` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Connection => "connection",
            Self::Named => "named",
        }
    }
}

/// Where a session comes from.
#[derive(Clone, Debug, Default)]
pub struct SessionOrigin {
    /// What the session belongs to.
    pub kind: SessionKind,
    /// The address of the client.
    pub address: Option<IpAddr>,
    /// What the client calls itself, the default of `application_name`.
    pub application: Option<String>,
}

/// What statements such as SET change for a session.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The namespace of unqualified table names.
    pub(crate) namespace: Arc<str>,
    /// In milliseconds, 0 for no limit; `None` leaves it to the user and the server.
    pub(crate) statement_timeout_ms: Option<u64>,
    /// As `statement_timeout_ms`.
    pub(crate) idle_session_timeout_ms: Option<u64>,
    /// What the client calls itself.
    pub(crate) application_name: Arc<str>,
}

/// Why a session has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum SessionEnd {
    /// Its client has closed it.
    Closed = 1,
    /// KILL SESSION.
    Killed = 2,
    /// It was idle for longer than `idle_session_timeout`.
    Idle = 3,
}

/// In place of an end: the session is open.
const OPEN: u8 = 0;

impl SessionEnd {
    /// Returns why the statements of the session stop.
    pub(crate) fn reason(self) -> StopReason {
        match self {
            Self::Closed => StopReason::SessionClosed,
            Self::Killed => StopReason::SessionKilled,
            Self::Idle => StopReason::SessionIdle,
        }
    }

    /// Returns what the client is told.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::Closed => "the session was closed",
            Self::Killed => "the session was ended by KILL SESSION",
            Self::Idle => "the session was idle for longer than idle_session_timeout",
        }
    }

    fn error(self) -> Error {
        let sqlstate = match self {
            Self::Closed => SqlState::CONNECTION_EXCEPTION,
            Self::Killed => SqlState::SHUTTING_DOWN,
            Self::Idle => SqlState::IDLE_SESSION_TIMEOUT,
        };
        Error::new(ErrorKind::Cancelled, sqlstate, self.message())
            .hint("connect again; what the session has set and prepared is gone")
    }
}

type Listed = Arc<DashMap<SessionId, Weak<SessionInfo>>>;

/// A session, as the server sees it.
pub(crate) struct SessionInfo {
    id: SessionId,
    principal: Principal,
    kind: SessionKind,
    address: Option<IpAddr>,
    /// The value of `application_name` before SET and after RESET.
    application: Arc<str>,
    settings: RwLock<Settings>,
    began: Instant,
    /// Microseconds since 1970 UTC.
    started_at: i64,
    /// When it last began or ended a statement, in milliseconds since `began`.
    last_active_ms: AtomicU64,
    statements: AtomicUsize,
    live_queries: AtomicUsize,
    prepared: AtomicUsize,
    /// The memory of the prepared statements.
    prepared_bytes: AtomicUsize,
    /// [`OPEN`], or a [`SessionEnd`].
    end: AtomicU8,
    listed: Listed,
}

impl SessionInfo {
    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    pub(crate) fn user(&self) -> UserId {
        self.principal.user_id
    }

    pub(crate) fn username(&self) -> &str {
        &self.principal.username
    }

    pub(crate) fn kind(&self) -> SessionKind {
        self.kind
    }

    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Returns what the client calls itself.
    pub(crate) fn application_name(&self) -> Arc<str> {
        Arc::clone(&self.settings.read().application_name)
    }

    /// Returns what the client called itself at the start, the default of `application_name`.
    pub(crate) fn application(&self) -> &Arc<str> {
        &self.application
    }

    pub(crate) fn settings(&self) -> &RwLock<Settings> {
        &self.settings
    }

    /// Returns the start, in microseconds since 1970 UTC.
    pub(crate) fn started_at(&self) -> i64 {
        self.started_at
    }

    /// Returns when the session last began or ended a statement, in microseconds since 1970 UTC.
    pub(crate) fn last_active_at(&self) -> i64 {
        let after_ms = i64::try_from(self.last_active_ms.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        self.started_at.saturating_add(after_ms.saturating_mul(1_000))
    }

    pub(crate) fn statements(&self) -> usize {
        self.statements.load(Ordering::Acquire)
    }

    pub(crate) fn live_queries(&self) -> usize {
        self.live_queries.load(Ordering::Acquire)
    }

    pub(crate) fn prepared(&self) -> usize {
        self.prepared.load(Ordering::Acquire)
    }

    /// Returns the memory of the prepared statements, in bytes.
    pub(crate) fn prepared_bytes(&self) -> usize {
        self.prepared_bytes.load(Ordering::Relaxed)
    }

    /// Counts a call of the client as activity.
    pub(crate) fn touch(&self) {
        let now_ms = millis(self.began.elapsed());
        self.last_active_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Returns how long the session has had neither a statement nor a live query; `None` while it has one.
    pub(crate) fn idle_time(&self) -> Option<Duration> {
        if self.statements() > 0 || self.live_queries() > 0 {
            return None;
        }
        let last = Duration::from_millis(self.last_active_ms.load(Ordering::Relaxed));
        Some(self.began.elapsed().saturating_sub(last))
    }

    /// Counts a statement until [`SessionInfo::leave_statement`].
    pub(super) fn enter_statement(&self) {
        self.statements.fetch_add(1, Ordering::AcqRel);
        self.touch();
    }

    pub(super) fn leave_statement(&self) {
        self.touch();
        self.statements.fetch_sub(1, Ordering::AcqRel);
    }

    /// Counts a live query until the returned value is dropped.
    pub(crate) fn hold_live_query(self: &Arc<Self>) -> SessionHold {
        SessionHold::new(self, Held::LiveQuery)
    }

    /// Counts a prepared statement that takes so many bytes, until the returned value is dropped.
    pub(crate) fn hold_prepared(self: &Arc<Self>, bytes: usize) -> SessionHold {
        SessionHold::new(self, Held::Prepared(bytes))
    }

    /// Ends the session, unless it has ended. Returns whether it was open.
    pub(crate) fn end(&self, end: SessionEnd) -> bool {
        self.end.compare_exchange(OPEN, end as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Returns why the session has ended, if it has.
    pub(crate) fn ended(&self) -> Option<SessionEnd> {
        match self.end.load(Ordering::Acquire) {
            OPEN => None,
            1 => Some(SessionEnd::Closed),
            2 => Some(SessionEnd::Killed),
            _ => Some(SessionEnd::Idle),
        }
    }

    /// Checks that the session is open.
    ///
    /// # Errors
    /// 57P01, 57P05 or 08000, depending on how it has ended.
    pub(crate) fn check(&self) -> Result<()> {
        self.ended().map_or(Ok(()), |end| Err(end.error()))
    }

    /// Returns a session of root that no list has.
    #[cfg(test)]
    pub(crate) fn for_test() -> Arc<Self> {
        let user_id = UserId::ROOT;
        let principal = Principal { user_id, username: Arc::from("root"), role: crate::access::Role::System };
        Sessions::new(Arc::new(crate::clock::SystemClock)).open(
            &principal,
            SessionOrigin::default(),
            "public",
        )
    }
}

impl Drop for SessionInfo {
    fn drop(&mut self) {
        self.listed.remove(&self.id);
    }
}

impl fmt::Debug for SessionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionInfo")
            .field("id", &self.id)
            .field("user", &self.principal.username)
            .finish_non_exhaustive()
    }
}

/// What a session has besides statements.
#[derive(Clone, Copy, Debug)]
enum Held {
    LiveQuery,
    /// A prepared statement that takes so many bytes.
    Prepared(usize),
}

/// Counts something of a session until it is dropped.
#[derive(Debug)]
pub(crate) struct SessionHold {
    session: Arc<SessionInfo>,
    held: Held,
}

impl SessionHold {
    fn new(session: &Arc<SessionInfo>, held: Held) -> Self {
        let hold = Self { session: Arc::clone(session), held };
        hold.count().fetch_add(1, Ordering::AcqRel);
        session.prepared_bytes.fetch_add(hold.bytes(), Ordering::Relaxed);
        hold
    }

    fn count(&self) -> &AtomicUsize {
        match self.held {
            Held::LiveQuery => &self.session.live_queries,
            Held::Prepared(_) => &self.session.prepared,
        }
    }

    fn bytes(&self) -> usize {
        match self.held {
            Held::LiveQuery => 0,
            Held::Prepared(bytes) => bytes,
        }
    }

    /// Returns the session.
    pub(crate) fn session(&self) -> &Arc<SessionInfo> {
        &self.session
    }
}

impl Drop for SessionHold {
    fn drop(&mut self) {
        if let Held::LiveQuery = self.held {
            self.session.touch();
        }
        self.count().fetch_sub(1, Ordering::AcqRel);
        self.session.prepared_bytes.fetch_sub(self.bytes(), Ordering::Relaxed);
    }
}

/// All sessions.
pub(crate) struct Sessions {
    listed: Listed,
    last_id: AtomicU64,
    clock: Arc<dyn Clock>,
}

impl Sessions {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { listed: Arc::default(), last_id: AtomicU64::new(0), clock }
    }

    /// Opens a session of a user, in a namespace.
    pub(crate) fn open(
        &self,
        principal: &Principal,
        origin: SessionOrigin,
        namespace: &str,
    ) -> Arc<SessionInfo> {
        let id = SessionId(self.last_id.fetch_add(1, Ordering::Relaxed) + 1);
        let application: Arc<str> = Arc::from(origin.application.unwrap_or_default());
        let settings = Settings {
            namespace: Arc::from(namespace),
            statement_timeout_ms: None,
            idle_session_timeout_ms: None,
            application_name: Arc::clone(&application),
        };
        let session = Arc::new(SessionInfo {
            id,
            principal: principal.clone(),
            kind: origin.kind,
            address: origin.address,
            application,
            settings: RwLock::new(settings),
            began: Instant::now(),
            started_at: self.clock.now_us(),
            last_active_ms: AtomicU64::new(0),
            statements: AtomicUsize::new(0),
            live_queries: AtomicUsize::new(0),
            prepared: AtomicUsize::new(0),
            prepared_bytes: AtomicUsize::new(0),
            end: AtomicU8::new(OPEN),
            listed: Arc::clone(&self.listed),
        });
        self.listed.insert(id, Arc::downgrade(&session));
        session
    }

    /// Returns an open session.
    pub(crate) fn get(&self, id: SessionId) -> Option<Arc<SessionInfo>> {
        let session = self.listed.get(&id).and_then(|listed| listed.upgrade());
        session.filter(|session| session.ended().is_none())
    }

    /// Returns the open sessions, oldest first.
    pub(crate) fn list(&self) -> Vec<Arc<SessionInfo>> {
        // The last owner of a session removes it from the map, so none is dropped while the map is read.
        let mut sessions: Vec<_> = self.listed.iter().filter_map(|listed| listed.upgrade()).collect();
        sessions.retain(|session| session.ended().is_none());
        sessions.sort_by_key(|session| session.id);
        sessions
    }
}

/// Returns a time in milliseconds.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Role;
    use crate::clock::ManualClock;

    fn principal() -> Principal {
        Principal { user_id: UserId(7), username: Arc::from("ann"), role: Role::User }
    }

    #[test]
    fn a_session_is_listed_while_somebody_holds_it_and_until_it_ends() {
        let sessions = Sessions::new(Arc::new(ManualClock::new(5_000)));
        let origin = SessionOrigin { application: Some("app".to_owned()), ..SessionOrigin::default() };
        let [first, second, third] = [(); 3].map(|()| sessions.open(&principal(), origin.clone(), "public"));
        assert_eq!((first.id(), first.started_at(), &**first.application()), (SessionId(1), 5_000, "app"));
        let ids = || sessions.list().iter().map(|session| session.id()).collect::<Vec<_>>();
        assert_eq!(ids(), [first.id(), second.id(), third.id()]);
        let dropped = second.id();
        drop(second);
        assert!(sessions.get(dropped).is_none());

        third.check().unwrap();
        assert!(third.end(SessionEnd::Idle) && !third.end(SessionEnd::Killed), "the first end counts");
        assert_eq!(third.check().unwrap_err().sqlstate(), SqlState::IDLE_SESSION_TIMEOUT);
        assert_eq!(ids(), [first.id()]);
    }

    #[test]
    fn every_end_is_kept() {
        for end in [SessionEnd::Closed, SessionEnd::Killed, SessionEnd::Idle] {
            let session = SessionInfo::for_test();
            assert!(session.end(end));
            assert_eq!(session.ended(), Some(end));
        }
    }

    #[test]
    fn a_session_with_a_statement_or_a_live_query_is_not_idle() {
        let session = SessionInfo::for_test();
        assert!(session.idle_time().is_some());
        session.enter_statement();
        assert!(session.idle_time().is_none());
        session.leave_statement();
        let live = session.hold_live_query();
        assert_eq!((session.live_queries(), session.idle_time()), (1, None));
        drop(live);
        let prepared = session.hold_prepared(50);
        assert_eq!((session.live_queries(), session.prepared(), session.prepared_bytes()), (0, 1, 50));
        assert!(session.idle_time().is_some());
        drop(prepared);
        assert_eq!((session.prepared(), session.prepared_bytes()), (0, 0));
    }
}
