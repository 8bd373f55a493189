//! Sessions and prepared statements: what the server remembers between the calls of a client.
//!
//! A session is named by the bearer token of its Handshake or, for clients that send Basic on every call, by their connection.
//! A prepared statement is named by 128 random bits and belongs to a user.
//!
//! Invariants: both maps are bounded and forget what was idle longest; nobody reaches another user's entry.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kalamdb_core::ids::UserId;
use kalamdb_core::{Database, Error, ErrorKind, Params, Prepared, Result, ScalarValue, Session, SqlState};
use parking_lot::Mutex;

use crate::auth::{Identity, SessionKey};

/// Sessions of the whole process; beyond it the one idle longest is forgotten, which costs its namespace setting.
const SESSIONS_MAX: usize = 10_000;
const SESSION_IDLE_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Prepared statements of the whole process; beyond it the one idle longest is forgotten.
const PREPARED_MAX: usize = 20_000;
/// Prepared statements of one user; beyond it preparing is refused, so that one user cannot push out the others'.
const PREPARED_PER_USER_MAX: usize = 2_000;
const PREPARED_IDLE_MAX: Duration = Duration::from_secs(3_600);

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
        let session = database.session(&identity.principal);
        map.insert(key, session.clone(), SESSIONS_MAX, SESSION_IDLE_MAX);
        session
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
}

impl Bound {
    pub(crate) fn new(values: Option<Vec<ScalarValue>>, frames: Bytes) -> Self {
        Self { values, frames }
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
}

/// The prepared statements of all users.
#[derive(Default)]
pub(crate) struct PreparedStatements {
    map: Mutex<IdleMap<Handle, PreparedEntry>>,
}

impl PreparedStatements {
    /// Keeps a statement under a new handle.
    ///
    /// # Errors
    /// 53300 when the user has too many open.
    pub(crate) fn open(&self, identity: &Identity, prepared: Prepared) -> Result<Handle> {
        let owner = identity.principal.user_id;
        let handle = *uuid::Uuid::new_v4().as_bytes();
        let entry = PreparedEntry { prepared, bound: Arc::default(), owner, session: identity.session };
        let mut map = self.map.lock();
        // Counting is only worth its time once there are enough to break the limit.
        if map.entries.len() >= PREPARED_PER_USER_MAX {
            map.entries.retain(|_, (used_at, _)| used_at.elapsed() <= PREPARED_IDLE_MAX);
            let open = map.entries.values().filter(|(_, entry)| entry.owner == owner).count();
            if open >= PREPARED_PER_USER_MAX {
                return Err(too_many());
            }
        }
        map.insert(handle, entry, PREPARED_MAX, PREPARED_IDLE_MAX);
        Ok(handle)
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
    /// As [`PreparedStatements::get`].
    pub(crate) fn bind(&self, user: UserId, handle: &[u8], bound: Bound) -> Result<()> {
        let key: Handle = handle.try_into().map_err(|_| unknown())?;
        let mut map = self.map.lock();
        match map.touch(&key) {
            Some(entry) if entry.owner == user => {
                entry.bound = Arc::new(bound);
                Ok(())
            }
            _ => Err(unknown()),
        }
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

    /// Forgets the statements of a session that ended.
    pub(crate) fn close_session(&self, identity: &Identity) {
        let owner = identity.principal.user_id;
        self.map
            .lock()
            .entries
            .retain(|_, (_, entry)| entry.owner != owner || entry.session != identity.session);
    }
}

fn unknown() -> Error {
    Error::new(ErrorKind::NotFound, SqlState::INVALID_STATEMENT_NAME, "the prepared statement does not exist")
        .hint("prepare it again; statements are forgotten after an hour without use and when the server restarts")
}

fn too_many() -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::TOO_MANY,
        format!("more than {PREPARED_PER_USER_MAX} prepared statements are open"),
    )
    .hint("close statements that are no longer used")
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
}
