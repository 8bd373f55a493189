//! Sessions and prepared statements: what the server remembers between the calls of a client.
//!
//! A session is named by the bearer token of its Handshake or, for clients that send Basic on every call, by their connection.
//! A prepared statement is named by 128 random bits and belongs to a user.
//!
//! Invariants: both maps are bounded, in entries and in bytes, and forget what was idle longest; what is idle too long is forgotten
//! whether or not there is room; nobody reaches another user's entry.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kalamdb_core::ids::UserId;
use kalamdb_core::{Database, Error, ErrorKind, Params, Prepared, Result, ScalarValue, Session, SqlState};
use parking_lot::Mutex;

use super::budget::{Budget, Charge, Exhausted};
use crate::auth::{Identity, SessionKey};

/// Sessions of the whole process; beyond it the one idle longest is forgotten, which costs its namespace setting.
const SESSIONS_MAX: usize = 10_000;
/// Sessions of one user; beyond it the user's own that was idle longest is forgotten.
const SESSIONS_PER_USER_MAX: usize = 1_000;
const SESSION_IDLE_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Prepared statements of the whole process; beyond it the one idle longest is forgotten.
const PREPARED_MAX: usize = 20_000;
/// Prepared statements of one user; beyond it the user's own that was idle longest is forgotten, so that one user cannot push
/// out the others'.
const PREPARED_PER_USER_MAX: usize = 2_000;
const PREPARED_IDLE_MAX: Duration = Duration::from_secs(3_600);
/// A parsed text takes many times its length: a literal of two characters is a node of a tree.
const STATEMENT_BYTES_FACTOR: usize = 32;

/// A map that forgets what was idle longest.
struct IdleMap<K, V> {
    entries: HashMap<K, (Instant, V)>,
}

impl<K, V> Default for IdleMap<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new() }
    }
}

impl<K: Hash + Eq + Copy, V> IdleMap<K, V> {
    fn touch(&mut self, key: &K) -> Option<&mut V> {
        let (used_at, value) = self.entries.get_mut(key)?;
        *used_at = Instant::now();
        Some(value)
    }

    /// Inserts after making room: first what has been idle too long, then, if that was not enough, the oldest tenth.
    fn insert(&mut self, key: K, value: V, entries_max: usize, idle_max: Duration) {
        if self.entries.len() >= entries_max {
            self.entries.retain(|_, (used_at, _)| used_at.elapsed() <= idle_max);
        }
        if self.entries.len() >= entries_max {
            let mut ages: Vec<Instant> = self.entries.values().map(|(used_at, _)| *used_at).collect();
            let tenth = ages.len() / 10;
            let (_, cut, _) = ages.select_nth_unstable(tenth);
            let cut = *cut;
            self.entries.retain(|_, (used_at, _)| *used_at > cut);
        }
        self.entries.insert(key, (Instant::now(), value));
    }

    /// Forgets what has not been used for `idle_max` before `now`.
    fn sweep(&mut self, now: Instant, idle_max: Duration) {
        self.entries.retain(|_, (used_at, _)| now.saturating_duration_since(*used_at) <= idle_max);
    }

    /// Forgets the entry idle longest among those that `may_go`; tells whether there was one.
    fn forget_idlest(&mut self, may_go: impl Fn(&K, &V) -> bool) -> bool {
        let idle = self.entries.iter().filter(|(key, (_, value))| may_go(key, value));
        let oldest = idle.min_by_key(|(_, (used_at, _))| *used_at).map(|(key, _)| *key);
        oldest.is_some_and(|key| self.entries.remove(&key).is_some())
    }
}

/// The sessions of all users.
#[derive(Default)]
pub(crate) struct Sessions {
    map: Mutex<IdleMap<(UserId, SessionKey), Session>>,
}

impl Sessions {
    /// The session of a request; a fresh one if this is its first.
    pub(crate) fn resolve(&self, database: &Database, identity: &Identity) -> Session {
        let key = (identity.principal.user_id, identity.session);
        let mut map = self.map.lock();
        if let Some(session) = map.touch(&key) {
            // A role that changed since makes another principal, and a session never changes its principal.
            if *session.principal() == identity.principal {
                return session.clone();
            }
        }
        if map.entries.len() >= SESSIONS_PER_USER_MAX {
            let owner = identity.principal.user_id;
            let own = map.entries.keys().filter(|(user, _)| *user == owner).count();
            if own >= SESSIONS_PER_USER_MAX {
                map.forget_idlest(|(user, _), _| *user == owner);
            }
        }
        let session = database.session(&identity.principal);
        map.insert(key, session.clone(), SESSIONS_MAX, SESSION_IDLE_MAX);
        session
    }

    /// Forgets sessions that have been idle too long.
    pub(crate) fn sweep(&self, now: Instant) {
        self.map.lock().sweep(now, SESSION_IDLE_MAX);
    }

    /// Forgets a session; tells whether it was there.
    pub(crate) fn close(&self, identity: &Identity) -> bool {
        let key = (identity.principal.user_id, identity.session);
        self.map.lock().entries.remove(&key).is_some()
    }
}

/// The name of a prepared statement.
pub(crate) type Handle = [u8; 16];

/// Parameters bound to a prepared statement.
#[derive(Debug, Default)]
pub(crate) struct Bound {
    /// The values, when they are one row.
    values: Option<Vec<ScalarValue>>,
    /// The same, or several rows, as they came.
    frames: Bytes,
    /// What it takes of the budget while a statement, a ticket or a running query has it.
    _charge: Option<Charge>,
}

impl Bound {
    pub(crate) fn new(values: Option<Vec<ScalarValue>>, frames: Bytes) -> Self {
        Self { values, frames, _charge: None }
    }

    fn bytes(&self) -> usize {
        let values = self.values.iter().flatten().map(ScalarValue::size);
        values.fold(self.frames.len(), usize::saturating_add)
    }

    /// As they came, for tickets. Empty when nothing was bound.
    pub(crate) fn frames(&self) -> &Bytes {
        &self.frames
    }

    /// The one row a query takes.
    pub(crate) fn params(&self) -> Params {
        self.values.clone().map_or(Params::None, Params::Positional)
    }

    /// All rows; `None` when nothing was bound, which is not the same as no rows.
    pub(crate) fn rows(&self) -> Result<Option<Vec<Vec<ScalarValue>>>> {
        match &self.values {
            Some(values) => Ok(Some(vec![values.clone()])),
            None if self.frames.is_empty() => Ok(None),
            None => super::prepared::rows_of_frames(self.frames.clone()).map(Some),
        }
    }
}

/// A prepared statement and what is bound to it.
#[derive(Clone)]
pub(crate) struct PreparedEntry {
    pub(crate) prepared: Prepared,
    pub(crate) bound: Arc<Bound>,
    owner: UserId,
    session: SessionKey,
    /// The connection it was prepared by.
    connection: u64,
    _charge: Arc<Charge>,
}

/// The prepared statements of all users.
pub(crate) struct PreparedStatements {
    map: Mutex<IdleMap<Handle, PreparedEntry>>,
    budget: Arc<Budget>,
}

impl PreparedStatements {
    /// None yet; what they take will come out of `budget`.
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self { map: Mutex::default(), budget }
    }

    /// Keeps a statement under a new handle.
    ///
    /// # Errors
    /// 53200 when it does not fit although all that may be forgotten was.
    pub(crate) fn open(&self, identity: &Identity, prepared: Prepared) -> Result<Handle> {
        let owner = identity.principal.user_id;
        let handle = *uuid::Uuid::new_v4().as_bytes();
        let mut map = self.map.lock();
        // Counting is only worth its time once there are enough to break the limit.
        if map.entries.len() >= PREPARED_PER_USER_MAX {
            let open = map.entries.values().filter(|(_, entry)| entry.owner == owner).count();
            if open >= PREPARED_PER_USER_MAX {
                map.forget_idlest(|_, entry| entry.owner == owner);
            }
        }
        let charge = Arc::new(self.charge(&mut map, owner, statement_bytes(&prepared), None)?);
        let bound = Arc::default();
        let Identity { session, connection, .. } = *identity;
        let entry = PreparedEntry { prepared, bound, owner, session, connection, _charge: charge };
        map.insert(handle, entry, PREPARED_MAX, PREPARED_IDLE_MAX);
        Ok(handle)
    }

    /// Takes bytes out of the budget, at the cost of statements that were idle longest: first the user's own, and others' only
    /// when it is the server that is full. `kept` is not forgotten.
    fn charge(
        &self,
        map: &mut IdleMap<Handle, PreparedEntry>,
        owner: UserId,
        bytes: usize,
        kept: Option<Handle>,
    ) -> Result<Charge> {
        loop {
            let exhausted = match self.budget.charge(owner, bytes) {
                Ok(charge) => return Ok(charge),
                Err(exhausted) => exhausted,
            };
            let may_go = |handle: &Handle, _: &PreparedEntry| Some(*handle) != kept;
            let made_room = map.forget_idlest(|handle, entry| entry.owner == owner && may_go(handle, entry))
                || (exhausted == Exhausted::ByAll && map.forget_idlest(may_go));
            if !made_room {
                return Err(too_much());
            }
        }
    }

    /// Forgets statements that have been idle too long.
    pub(crate) fn sweep(&self, now: Instant) {
        self.map.lock().sweep(now, PREPARED_IDLE_MAX);
    }

    /// The statement of a handle of this user.
    ///
    /// # Errors
    /// 26000, the same for an unknown handle as for another user's.
    pub(crate) fn get(&self, user: UserId, handle: &[u8]) -> Result<PreparedEntry> {
        let key: Handle = handle.try_into().map_err(|_| unknown())?;
        let mut map = self.map.lock();
        match map.touch(&key) {
            Some(entry) if entry.owner == user => Ok(entry.clone()),
            _ => Err(unknown()),
        }
    }

    /// Replaces what is bound to a handle of this user.
    ///
    /// # Errors
    /// As [`PreparedStatements::get`], and 53200 when it does not fit although all that may be forgotten was.
    pub(crate) fn bind(&self, user: UserId, handle: &[u8], mut bound: Bound) -> Result<()> {
        let key: Handle = handle.try_into().map_err(|_| unknown())?;
        let mut map = self.map.lock();
        match map.touch(&key) {
            // What was bound before makes room first.
            Some(entry) if entry.owner == user => entry.bound = Arc::default(),
            _ => return Err(unknown()),
        }
        bound._charge = Some(self.charge(&mut map, user, bound.bytes(), Some(key))?);
        map.touch(&key).ok_or_else(unknown)?.bound = Arc::new(bound);
        Ok(())
    }

    /// Forgets a handle of this user. Closing what is not there is no error: drivers close twice.
    pub(crate) fn close(&self, user: UserId, handle: &[u8]) {
        let Ok(key) = Handle::try_from(handle) else {
            return;
        };
        let mut map = self.map.lock();
        if map.entries.get(&key).is_some_and(|(_, entry)| entry.owner == user) {
            map.entries.remove(&key);
        }
    }

    /// Forgets the statements of a session that ended, as far as they were prepared by the connection that ends it: drivers that
    /// were given a token send it on every connection, and each closes "its" session.
    pub(crate) fn close_session(&self, identity: &Identity) {
        self.map.lock().entries.retain(|_, (_, entry)| {
            entry.owner != identity.principal.user_id
                || entry.session != identity.session
                || entry.connection != identity.connection
        });
    }
}

fn unknown() -> Error {
    Error::new(ErrorKind::NotFound, SqlState::INVALID_STATEMENT_NAME, "the prepared statement does not exist")
        .hint("prepare it again; statements are forgotten after an hour without use and when the server restarts")
}

/// What a statement takes that is kept in parsed form.
pub(super) fn statement_bytes(prepared: &Prepared) -> usize {
    size_of::<PreparedEntry>() + prepared.sql().len().saturating_mul(STATEMENT_BYTES_FACTOR)
}

pub(super) fn too_much() -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::OUT_OF_MEMORY,
        "prepared statements and their parameters take more than the server keeps",
    )
    .hint("close statements that are no longer used, and load rows with bulk ingest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_forgets_the_idle_and_keeps_the_used() {
        let mut map = IdleMap::default();
        for key in 0..100_u32 {
            map.insert(key, (), 100, Duration::from_secs(60));
        }
        map.touch(&0);
        map.insert(100, (), 100, Duration::from_secs(60));
        assert!(map.entries.len() <= 100);
        assert!(map.entries.contains_key(&0));
        assert!(map.entries.contains_key(&100));
        assert!(!map.entries.contains_key(&1));
    }

    #[test]
    fn what_was_idle_too_long_goes_though_there_is_room() {
        let mut map = IdleMap::default();
        map.insert(1, (), 100, Duration::from_secs(60));
        let now = Instant::now();
        map.sweep(now + Duration::from_secs(59), Duration::from_secs(60));
        assert_eq!(map.entries.len(), 1);
        map.sweep(now + Duration::from_secs(61), Duration::from_secs(60));
        assert!(map.entries.is_empty());
    }

    async fn prepared(sql: &str) -> (Database, Identity, Prepared) {
        let database = Database::open_in_memory().await.unwrap();
        let session = database.session_for("root").unwrap();
        let principal = session.principal().clone();
        let identity = Identity { principal, session: SessionKey::Connection(1), connection: 1 };
        let prepared = session.prepare(sql).await.unwrap();
        (database, identity, prepared)
    }

    fn bound(bytes: usize) -> Bound {
        Bound::new(None, vec![0; bytes].into())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn parameters_push_out_the_users_idlest_statements_and_nobody_elses() {
        let (database, ann, prepared) = prepared("SELECT $1").await;
        let user = ann.principal.user_id;
        let mut bob = ann.clone();
        bob.principal.user_id = UserId(user.0 + 1);
        let statements = PreparedStatements::new(Budget::new(100_000, 50_000));
        let of_bob = statements.open(&bob, prepared.clone()).unwrap();
        let handles: Vec<Handle> = (0..3).map(|_| statements.open(&ann, prepared.clone()).unwrap()).collect();
        for handle in &handles {
            statements.bind(user, handle, bound(20_000)).unwrap();
        }
        assert!(statements.get(user, &handles[0]).is_err(), "it was idle longest");
        assert!(statements.get(user, &handles[1]).is_ok() && statements.get(user, &handles[2]).is_ok());
        // Binding again replaces, and what does not fit at all is refused.
        statements.bind(user, &handles[2], bound(20_000)).unwrap();
        assert!(statements.get(user, &handles[1]).is_ok());
        let error = statements.bind(user, &handles[2], bound(50_001)).unwrap_err();
        assert_eq!(error.sqlstate(), SqlState::OUT_OF_MEMORY, "{error}");
        assert!(statements.get(bob.principal.user_id, &of_bob).is_ok());

        // Whoever runs a statement still has its parameters when it is closed.
        statements.bind(user, &handles[2], bound(20_000)).unwrap();
        let running = statements.get(user, &handles[2]).unwrap();
        statements.close(user, &handles[2]);
        assert!(statements.budget.held() >= 20_000);
        drop(running);
        assert!(statements.budget.held() < 20_000);
        statements.sweep(Instant::now() + PREPARED_IDLE_MAX + Duration::from_secs(1));
        assert_eq!(statements.budget.held(), 0);
        database.shutdown().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_user_who_opens_more_and_more_loses_the_idlest() {
        let (database, ann, prepared) = prepared("SELECT 1").await;
        let user = ann.principal.user_id;
        let statements = PreparedStatements::new(Budget::new(1 << 30, 1 << 30));
        let handles: Vec<Handle> =
            (0..PREPARED_PER_USER_MAX).map(|_| statements.open(&ann, prepared.clone()).unwrap()).collect();
        // The first is in use, so the second is idle longest.
        statements.get(user, &handles[0]).unwrap();
        let newest = statements.open(&ann, prepared).unwrap();
        assert!(statements.get(user, &handles[1]).is_err());
        for handle in [handles[0], handles[2], newest] {
            assert!(statements.get(user, &handle).is_ok());
        }
        database.shutdown().await.unwrap();
    }
}
