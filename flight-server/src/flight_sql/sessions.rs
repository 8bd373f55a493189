//! Sessions and prepared statements: the state that the server keeps between a client's calls.
//!
//! A session is named by the bearer token of its Handshake or, for clients that send Basic on every call, by
//! their connection. A prepared statement is named by 128 random bits and belongs to a user.
//!
//! Invariants: both maps are bounded in entries, the statements also in bytes, and drop the longest-idle
//! entries first; entries idle for too long are dropped even if there is room; nobody reaches another user's
//! entry.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kalamdb_core::ids::UserId;
use kalamdb_core::{Database, Error, ErrorKind, Prepared, Result, Session, SqlState};
use parking_lot::Mutex;

use super::budget::{Budget, Charge, Exhausted};
use super::parameters::Bound;
use crate::auth::{Identity, SessionKey};

/// Sessions of the whole process; at this limit the longest-idle tenth is dropped, which costs them their
/// namespace setting.
const SESSIONS_MAX: usize = 10_000;
/// Sessions of one user; at this limit the user's longest-idle session is dropped.
const SESSIONS_PER_USER_MAX: usize = 1_000;
const SESSION_IDLE_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Prepared statements of the whole process; at this limit the longest-idle tenth is dropped.
const PREPARED_MAX: usize = 20_000;
/// Prepared statements of one user; at this limit the user's longest-idle statement is dropped, so that one
/// user cannot push out others' statements.
const PREPARED_PER_USER_MAX: usize = 2_000;
const PREPARED_IDLE_MAX: Duration = Duration::from_secs(3_600);
/// Factor from a text's length to the memory of its parsed form: a two-character literal is a tree node.
const STATEMENT_BYTES_FACTOR: usize = 32;

/// A map that drops the longest-idle entries.
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

    /// Makes room, then inserts: drops entries idle for too long, then, if needed, the oldest tenth.
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

    /// Drops entries that were not used for `idle_max` before `now`.
    fn sweep(&mut self, now: Instant, idle_max: Duration) {
        self.entries.retain(|_, (used_at, _)| now.saturating_duration_since(*used_at) <= idle_max);
    }

    /// Drops the longest-idle entry that `is_evictable`; returns whether there was one.
    fn evict_longest_idle(&mut self, is_evictable: impl Fn(&K, &V) -> bool) -> bool {
        let idle = self.entries.iter().filter(|(key, (_, value))| is_evictable(key, value));
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
    /// Returns the session of a request; a new one for its first request.
    pub(crate) fn resolve(&self, database: &Database, identity: &Identity) -> Session {
        let key = (identity.principal.user_id, identity.session);
        let mut map = self.map.lock();
        if let Some(session) = map.touch(&key) {
            // A changed role makes another principal, and a session never changes its principal.
            if *session.principal() == identity.principal {
                return session.clone();
            }
        }
        if map.entries.len() >= SESSIONS_PER_USER_MAX {
            let owner = identity.principal.user_id;
            let own = map.entries.keys().filter(|(user, _)| *user == owner).count();
            if own >= SESSIONS_PER_USER_MAX {
                map.evict_longest_idle(|(user, _), _| *user == owner);
            }
        }
        let session = database.session(&identity.principal);
        map.insert(key, session.clone(), SESSIONS_MAX, SESSION_IDLE_MAX);
        session
    }

    /// Drops sessions that have been idle for too long.
    pub(crate) fn sweep(&self, now: Instant) {
        self.map.lock().sweep(now, SESSION_IDLE_MAX);
    }

    /// Drops a session; returns whether it existed.
    pub(crate) fn close(&self, identity: &Identity) -> bool {
        let key = (identity.principal.user_id, identity.session);
        self.map.lock().entries.remove(&key).is_some()
    }
}

/// The name of a prepared statement.
pub(crate) type Handle = [u8; 16];

/// A prepared statement and its bound parameters.
#[derive(Clone)]
pub(crate) struct PreparedEntry {
    pub(crate) prepared: Prepared,
    pub(crate) bound: Arc<Bound>,
    owner: UserId,
    session: SessionKey,
    /// The connection that prepared it.
    connection: u64,
    _charge: Arc<Charge>,
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
    pub(crate) fn open(&self, identity: &Identity, prepared: Prepared) -> Result<Handle> {
        let owner = identity.principal.user_id;
        let handle = *uuid::Uuid::new_v4().as_bytes();
        let mut map = self.map.lock();
        // Count only when there are enough entries to exceed the limit.
        if map.entries.len() >= PREPARED_PER_USER_MAX {
            let open = map.entries.values().filter(|(_, entry)| entry.owner == owner).count();
            if open >= PREPARED_PER_USER_MAX {
                map.evict_longest_idle(|_, entry| entry.owner == owner);
            }
        }
        let charge = Arc::new(self.charge(&mut map, owner, statement_bytes(&prepared), None)?);
        let bound = Arc::default();
        let Identity { session, connection, .. } = *identity;
        let entry = PreparedEntry { prepared, bound, owner, session, connection, _charge: charge };
        map.insert(handle, entry, PREPARED_MAX, PREPARED_IDLE_MAX);
        Ok(handle)
    }

    /// Charges bytes to the budget and drops longest-idle statements if needed: first the user's own, and
    /// others' only if the total limit is reached. `kept` is never dropped.
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
            let is_evictable = |handle: &Handle, _: &PreparedEntry| Some(*handle) != kept;
            let is_own =
                |handle: &Handle, entry: &PreparedEntry| entry.owner == owner && is_evictable(handle, entry);
            let made_room = map.evict_longest_idle(is_own)
                || (exhausted == Exhausted::ByAll && map.evict_longest_idle(is_evictable));
            if !made_room {
                return Err(too_much());
            }
        }
    }

    /// Drops statements that have been idle for too long.
    pub(crate) fn sweep(&self, now: Instant) {
        self.map.lock().sweep(now, PREPARED_IDLE_MAX);
    }

    /// Returns the statement of a handle of this user.
    ///
    /// # Errors
    /// 26000, the same for an unknown handle and another user's.
    pub(crate) fn get(&self, user: UserId, handle: &[u8]) -> Result<PreparedEntry> {
        let key: Handle = handle.try_into().map_err(|_| unknown())?;
        let mut map = self.map.lock();
        match map.touch(&key) {
            Some(entry) if entry.owner == user => Ok(entry.clone()),
            _ => Err(unknown()),
        }
    }

    /// Replaces the parameters bound to a handle of this user.
    ///
    /// # Errors
    /// As for [`PreparedStatements::get`], and 53200 when they do not fit even after all droppable statements
    /// were dropped.
    pub(crate) fn bind(&self, user: UserId, handle: &[u8], bound: Bound) -> Result<()> {
        let key: Handle = handle.try_into().map_err(|_| unknown())?;
        let mut map = self.map.lock();
        match map.touch(&key) {
            // Release the old parameters first, to make room.
            Some(entry) if entry.owner == user => entry.bound = Arc::default(),
            _ => return Err(unknown()),
        }
        let charge = self.charge(&mut map, user, bound.bytes(), Some(key))?;
        map.touch(&key).ok_or_else(unknown)?.bound = Arc::new(bound.charged(charge));
        Ok(())
    }

    /// Drops a handle of this user. An unknown handle is not an error: drivers close twice.
    pub(crate) fn close(&self, user: UserId, handle: &[u8]) {
        let Ok(key) = Handle::try_from(handle) else {
            return;
        };
        let mut map = self.map.lock();
        if map.entries.get(&key).is_some_and(|(_, entry)| entry.owner == user) {
            map.entries.remove(&key);
        }
    }

    /// Drops the statements of an ended session that the same connection prepared: drivers that were given a
    /// token send it on every connection, and each connection closes "its" session.
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
        .hint("prepare it again; statements expire after an hour without use and when the server restarts")
}

/// Estimates the memory of a statement in parsed form, in bytes.
pub(super) fn statement_bytes(prepared: &Prepared) -> usize {
    size_of::<PreparedEntry>() + prepared.sql().len().saturating_mul(STATEMENT_BYTES_FACTOR)
}

/// Returns the error for statements and parameters that find no room.
pub(super) fn too_much() -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::OUT_OF_MEMORY,
        "prepared statements and their parameters exceed the server's limit",
    )
    .hint("close unused statements, and load rows with bulk ingest")
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
        // Binding again replaces the parameters; parameters that can never fit are refused.
        statements.bind(user, &handles[2], bound(20_000)).unwrap();
        assert!(statements.get(user, &handles[1]).is_ok());
        let error = statements.bind(user, &handles[2], bound(50_001)).unwrap_err();
        assert_eq!(error.sqlstate(), SqlState::OUT_OF_MEMORY, "{error}");
        assert!(statements.get(bob.principal.user_id, &of_bob).is_ok());

        // A running statement keeps its parameters after it is closed.
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
        // The first one was used just now, so the second one is the longest idle.
        statements.get(user, &handles[0]).unwrap();
        let newest = statements.open(&ann, prepared).unwrap();
        assert!(statements.get(user, &handles[1]).is_err());
        for handle in [handles[0], handles[2], newest] {
            assert!(statements.get(user, &handle).is_ok());
        }
        database.shutdown().await.unwrap();
    }
}
