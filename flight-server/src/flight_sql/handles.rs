//! Prepared statements: each is named by 128 random bits and belongs to a session of a user.
//!
//! A gRPC client reconnects without telling its caller, and its session ends with the connection. So for some
//! minutes another session of the same user can go on with a handle whose session has ended in this way. On a
//! connection a new login begins a new session, which goes on with the handles of the connection.
//!
//! Invariants: the map is bounded in entries and bytes and drops the longest-idle entries first; entries idle
//! for too long are dropped even if there is room; nobody reaches an entry of another user, or of an open
//! session of another connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kalamdb_core::ids::UserId;
use kalamdb_core::{Error, ErrorKind, Prepared, Result, SqlState};
use parking_lot::Mutex;

use super::budget::{Budget, Charge};
use super::parameters::Bound;
use crate::idle_map::IdleMap;
use crate::sessions::OpenSession;

/// Prepared statements of the whole process; at this limit the longest-idle tenth is dropped.
const PREPARED_MAX: usize = 20_000;
/// Prepared statements of one user; at this limit the user's longest-idle statement is dropped, so that one
/// user cannot push out others' statements.
const PREPARED_PER_USER_MAX: usize = 2_000;
const PREPARED_IDLE_MAX: Duration = Duration::from_secs(3_600);
/// How long a statement waits for another session of its user after its connection was closed.
const ORPHANED_MAX: Duration = Duration::from_secs(300);

/// The name of a prepared statement.
pub(crate) type Handle = [u8; 16];

/// A prepared statement and its bound parameters.
#[derive(Clone)]
pub(crate) struct PreparedEntry {
    pub(crate) handle: Handle,
    pub(crate) prepared: Prepared,
    pub(crate) bound: Arc<Bound>,
    /// The session that may use it.
    session: OpenSession,
    /// When it was first noticed that the session has ended with its connection.
    orphaned_at: Option<Instant>,
    _charge: Arc<Charge>,
}

impl PreparedEntry {
    fn belongs_to(&self, session: &OpenSession) -> bool {
        self.owner() == session.user()
            && !self.has_ended()
            && (self.session.id() == session.id()
                || self.session.shares_connection_with(session)
                || self.is_orphaned())
    }

    fn owner(&self) -> UserId {
        self.session.user()
    }

    /// Whether its session, or the one that prepared it, has ended otherwise than with its connection.
    fn has_ended(&self) -> bool {
        self.session.has_ended() || self.prepared.session().has_ended()
    }

    fn is_orphaned(&self) -> bool {
        self.session.is_cut_off() && self.orphaned_at.is_none_or(|at| at.elapsed() <= ORPHANED_MAX)
    }

    /// Makes the session the owner of the statement.
    fn adopt(&mut self, session: &OpenSession) {
        self.session = session.clone();
        self.orphaned_at = None;
    }
}

/// The prepared statements of all users.
pub(crate) struct PreparedStatements {
    map: Mutex<IdleMap<Handle, PreparedEntry>>,
    budget: Arc<Budget>,
}

impl PreparedStatements {
    /// Creates an empty map whose entries are charged to `budget`.
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self { map: Mutex::default(), budget }
    }

    /// Keeps a statement under a new handle.
    ///
    /// # Errors
    /// 53200 when it does not fit even after all droppable statements were dropped.
    pub(crate) fn open(&self, session: &OpenSession, prepared: Prepared) -> Result<Handle> {
        let owner = session.user();
        let handle = *uuid::Uuid::new_v4().as_bytes();
        let mut map = self.map.lock();
        // Count only when there are enough entries to exceed the limit.
        if map.entries.len() >= PREPARED_PER_USER_MAX {
            let open = map.entries.values().filter(|(_, entry)| entry.owner() == owner).count();
            if open >= PREPARED_PER_USER_MAX {
                map.evict_longest_idle(|_, entry| entry.owner() == owner);
            }
        }
        let charge = Arc::new(self.charge(&mut map, owner, statement_bytes(&prepared), None)?);
        let entry = PreparedEntry {
            handle,
            prepared,
            bound: Arc::default(),
            session: session.clone(),
            orphaned_at: None,
            _charge: charge,
        };
        map.insert(handle, entry, PREPARED_MAX, PREPARED_IDLE_MAX);
        Ok(handle)
    }

    /// Charges bytes to the budget, and drops longest-idle statements when the budget is used up: first the
    /// user's own, and others' only if the limit of all is reached. `kept` is never dropped. Memory that is
    /// used up otherwise costs nobody a statement.
    fn charge(
        &self,
        map: &mut IdleMap<Handle, PreparedEntry>,
        owner: UserId,
        bytes: usize,
        kept: Option<Handle>,
    ) -> Result<Charge> {
        loop {
            let limit = match self.budget.charge(owner, bytes) {
                Ok(charge) => return Ok(charge),
                Err(limit) => limit,
            };
            let is_of_all = limit == self.budget.of_all();
            let is_evictable = |handle: &Handle, _: &PreparedEntry| Some(*handle) != kept;
            let is_own = |handle: &Handle, entry: &PreparedEntry| {
                entry.owner() == owner && is_evictable(handle, entry)
            };
            let is_of_budget = is_of_all || limit == self.budget.of_user();
            let made_room = (is_of_budget && map.evict_longest_idle(is_own))
                || (is_of_all && map.evict_longest_idle(is_evictable));
            if !made_room {
                return Err(limit.into());
            }
        }
    }

    /// Drops statements that have been idle for too long, or whose session has ended, some minutes ago if it
    /// ended with its connection.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut map = self.map.lock();
        map.sweep(now, PREPARED_IDLE_MAX);
        map.entries.retain(|_, (_, entry)| {
            if entry.has_ended() {
                return false;
            }
            if !entry.session.is_cut_off() {
                return true;
            }
            let orphaned_at = *entry.orphaned_at.get_or_insert(now);
            now.saturating_duration_since(orphaned_at) <= ORPHANED_MAX
        });
    }

    /// Returns the statement of a handle of this session.
    ///
    /// # Errors
    /// 26000, the same for an unknown handle, another user's and that of another connection's open session.
    pub(crate) fn get(&self, session: &OpenSession, handle: &[u8]) -> Result<PreparedEntry> {
        let key: Handle = handle.try_into().map_err(|_| unknown())?;
        Ok(find(&mut self.map.lock(), session, key)?.clone())
    }

    /// Replaces the parameters bound to a handle of this session.
    ///
    /// # Errors
    /// As for [`PreparedStatements::get`], and 53200 when they do not fit even after all droppable statements
    /// were dropped.
    pub(crate) fn bind(&self, session: &OpenSession, handle: &[u8], bound: Bound) -> Result<()> {
        let key: Handle = handle.try_into().map_err(|_| unknown())?;
        let mut map = self.map.lock();
        // Release the old parameters first, to make room.
        find(&mut map, session, key)?.bound = Arc::default();
        let charge = self.charge(&mut map, session.user(), bound.bytes(), Some(key))?;
        map.touch(&key).ok_or_else(unknown)?.bound = Arc::new(bound.charged(charge));
        Ok(())
    }

    /// Drops a handle of this session. An unknown handle is not an error: drivers close twice.
    pub(crate) fn close(&self, session: &OpenSession, handle: &[u8]) {
        let Ok(key) = Handle::try_from(handle) else {
            return;
        };
        let mut map = self.map.lock();
        if map.entries.get(&key).is_some_and(|(_, entry)| entry.belongs_to(session)) {
            map.entries.remove(&key);
        }
    }

    /// Drops the statements of a session that ends.
    pub(crate) fn close_session(&self, session: &OpenSession) {
        self.map.lock().entries.retain(|_, (_, entry)| entry.session.id() != session.id());
    }
}

/// Returns the entry of a handle. A session that uses an orphaned one becomes its owner.
fn find<'a>(
    map: &'a mut IdleMap<Handle, PreparedEntry>,
    session: &OpenSession,
    key: Handle,
) -> Result<&'a mut PreparedEntry> {
    match map.touch(&key) {
        Some(entry) if entry.belongs_to(session) => {
            if entry.session.id() != session.id() {
                entry.adopt(session);
            }
            Ok(entry)
        }
        _ => Err(unknown()),
    }
}

fn unknown() -> Error {
    Error::new(ErrorKind::NotFound, SqlState::INVALID_STATEMENT_NAME, "the prepared statement does not exist")
        .hint("prepare it again; a statement ends with its session, after an unused hour and at a restart")
}

/// Returns the memory of a statement that is kept, in bytes.
pub(super) fn statement_bytes(prepared: &Prepared) -> usize {
    size_of::<PreparedEntry>() + prepared.size()
}

#[cfg(test)]
mod tests {
    use kalamdb_core::{Database, Principal};

    use super::*;
    use crate::auth::{Identity, SessionKey};
    use crate::connection::ConnectionInfo;
    use crate::sessions::Sessions;

    /// A database with sessions of root, and of a user that does not exist.
    struct Fixture {
        database: Database,
        sessions: Sessions,
        root: Principal,
        nobody: Principal,
    }

    impl Fixture {
        async fn new() -> Self {
            let database = Database::open_in_memory().await.unwrap();
            let root = database.session_for("root").unwrap().principal().clone();
            let nobody = Principal { user_id: UserId(root.user_id.0 + 1), ..root.clone() };
            Self { database, sessions: Sessions::default(), root, nobody }
        }

        /// Returns the session of a user's connection.
        fn session(&self, principal: &Principal, connection: &ConnectionInfo) -> OpenSession {
            let key = SessionKey::Connection { token: None, connection: connection.number() };
            self.session_of(principal, key, connection)
        }

        fn session_of(
            &self,
            principal: &Principal,
            session: SessionKey,
            connection: &ConnectionInfo,
        ) -> OpenSession {
            let connection = Some(connection.clone());
            let identity = Identity {
                principal: principal.clone(),
                session,
                connection,
                application: None,
                statement_timeout: None,
            };
            self.sessions.resolve(&self.database, &identity).unwrap()
        }

        async fn prepared(&self, sql: &str) -> Prepared {
            self.database.session_for("root").unwrap().prepare(sql).await.unwrap()
        }
    }

    fn bound(bytes: usize) -> Bound {
        Bound::new(None, vec![0; bytes].into())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn parameters_push_out_the_users_idlest_statements_and_nobody_elses() {
        let fixture = Fixture::new().await;
        let connection = ConnectionInfo::for_test(1);
        let ann = fixture.session(&fixture.root, &connection);
        let bob = fixture.session(&fixture.nobody, &connection);
        let prepared = fixture.prepared("SELECT $1").await;
        let size = statement_bytes(&prepared);
        let budget = Budget::for_test(200_000, 3 * size + 50_000);
        let statements = PreparedStatements::new(budget);
        let of_bob = statements.open(&bob, prepared.clone()).unwrap();
        let handles: Vec<Handle> = (0..3).map(|_| statements.open(&ann, prepared.clone()).unwrap()).collect();
        for handle in &handles {
            statements.bind(&ann, handle, bound(20_000)).unwrap();
        }
        assert!(statements.get(&ann, &handles[0]).is_err(), "it was idle longest");
        assert!(statements.get(&ann, &handles[1]).is_ok() && statements.get(&ann, &handles[2]).is_ok());
        // Binding again replaces the parameters; parameters that can never fit are refused.
        statements.bind(&ann, &handles[2], bound(20_000)).unwrap();
        assert!(statements.get(&ann, &handles[1]).is_ok());
        let error = statements.bind(&ann, &handles[2], bound(2 * size + 50_001)).unwrap_err();
        assert_eq!(error.sqlstate(), SqlState::OUT_OF_MEMORY, "{error}");
        assert!(error.message().starts_with("the user has reached its limit"), "{error}");
        assert!(statements.get(&bob, &of_bob).is_ok());

        // A running statement keeps its parameters after it is closed.
        statements.bind(&ann, &handles[2], bound(20_000)).unwrap();
        let running = statements.get(&ann, &handles[2]).unwrap();
        statements.close(&ann, &handles[2]);
        assert!(statements.budget.held() >= 20_000);
        drop(running);
        assert!(statements.budget.held() < 20_000);
        statements.sweep(Instant::now() + PREPARED_IDLE_MAX + Duration::from_secs(1));
        assert_eq!(statements.budget.held(), 0);
        fixture.database.shutdown().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_user_who_opens_more_and_more_loses_the_idlest() {
        let fixture = Fixture::new().await;
        let ann = fixture.session(&fixture.root, &ConnectionInfo::for_test(1));
        let prepared = fixture.prepared("SELECT 1").await;
        let statements = PreparedStatements::new(Budget::for_test(1 << 30, 1 << 30));
        let handles: Vec<Handle> =
            (0..PREPARED_PER_USER_MAX).map(|_| statements.open(&ann, prepared.clone()).unwrap()).collect();
        // The first one was used just now, so the second one is the longest idle.
        statements.get(&ann, &handles[0]).unwrap();
        let newest = statements.open(&ann, prepared).unwrap();
        assert!(statements.get(&ann, &handles[1]).is_err());
        for handle in [handles[0], handles[2], newest] {
            assert!(statements.get(&ann, &handle).is_ok());
        }
        fixture.database.shutdown().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn another_session_takes_over_a_handle_only_when_its_connection_is_closed() {
        let fixture = Fixture::new().await;
        let (first, second) = (ConnectionInfo::for_test(1), ConnectionInfo::for_test(2));
        let one = fixture.session(&fixture.root, &first);
        let other = fixture.session(&fixture.root, &second);
        let stranger = fixture.session(&fixture.nobody, &second);
        let prepared = fixture.prepared("SELECT 1").await;
        let statements = PreparedStatements::new(Budget::for_test(1 << 20, 1 << 20));
        let [used, unused] = [(); 2].map(|()| statements.open(&one, prepared.clone()).unwrap());

        let error = statements.get(&other, &used).err().unwrap();
        assert_eq!(error.sqlstate(), SqlState::INVALID_STATEMENT_NAME);
        statements.close(&other, &used);
        assert!(statements.bind(&other, &used, bound(1)).is_err());
        assert!(statements.get(&one, &used).is_ok());

        first.mark_closed();
        assert!(statements.get(&stranger, &used).is_err());
        assert!(statements.get(&other, &used).is_ok());
        assert!(statements.get(&one, &used).is_err(), "it has a new owner");
        let now = Instant::now();
        statements.sweep(now);
        statements.sweep(now + ORPHANED_MAX + Duration::from_secs(1));
        assert!(statements.get(&other, &unused).is_err(), "nobody came for it");
        assert!(statements.get(&other, &used).is_ok());
        statements.close_session(&other);
        assert!(statements.get(&other, &used).is_err());
        fixture.database.shutdown().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_new_login_on_a_connection_goes_on_with_its_handles() {
        let fixture = Fixture::new().await;
        let connection = ConnectionInfo::for_test(1);
        let login = |user: &Principal, token: u8| {
            let key = SessionKey::Connection { token: Some([token; 16]), connection: connection.number() };
            fixture.session_of(user, key, &connection)
        };
        let (before, after) = (login(&fixture.root, 1), login(&fixture.root, 2));
        assert_ne!(before.id(), after.id());
        let statements = PreparedStatements::new(Budget::for_test(1 << 20, 1 << 20));
        let handle = statements.open(&before, fixture.prepared("SELECT 1").await).unwrap();
        assert!(statements.get(&login(&fixture.nobody, 3), &handle).is_err());
        assert!(statements.get(&after, &handle).is_ok());
        statements.close_session(&after);
        assert!(statements.get(&before, &handle).is_err(), "it was the new session's");
        fixture.database.shutdown().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_handle_lives_as_long_as_a_session_whose_name_is_used() {
        let fixture = Fixture::new().await;
        let (first, second) = (ConnectionInfo::for_test(1), ConnectionInfo::for_test(2));
        let open = fixture.session(&fixture.root, &first);
        let statements = PreparedStatements::new(Budget::for_test(1 << 20, 1 << 20));
        let handle = statements.open(&open, fixture.prepared("SELECT 1").await).unwrap();
        let name = fixture.sessions.name(&open).unwrap();
        let by_name = || fixture.session_of(&fixture.root, SessionKey::Named(name), &second);
        by_name();
        first.mark_closed();
        let now = Instant::now();
        statements.sweep(now);
        statements.sweep(now + ORPHANED_MAX + Duration::from_secs(1));
        assert!(statements.get(&by_name(), &handle).is_ok());
        fixture.database.shutdown().await.unwrap();
    }
}
