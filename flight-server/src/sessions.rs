//! The sessions of all clients: what a statement such as `USE` sets stays for the later calls of its session.
//!
//! A session is that of a connection and the bearer token sent over it, or has a name that its client sends;
//! see [`SessionKey`]. Flight SQL and live queries share the sessions.
//!
//! Invariants: nobody reaches another user's session; the session of a closed connection ends; the map is
//! bounded and drops the longest-idle sessions first.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kalamdb_core::ids::UserId;
use kalamdb_core::{Database, Session};
use parking_lot::Mutex;

use crate::auth::{Identity, SessionKey, SessionName, new_session_name};
use crate::connection::ConnectionInfo;
use crate::idle_map::IdleMap;

/// Sessions of the whole process; at this limit the longest-idle tenth is dropped, which costs them their
/// namespace setting.
const SESSIONS_MAX: usize = 10_000;
/// Sessions of one user; at this limit the user's longest-idle session is dropped.
const SESSIONS_PER_USER_MAX: usize = 1_000;
const SESSION_IDLE_MAX: Duration = Duration::from_secs(24 * 3_600);

/// The number of a session, never reused while the process lives. A session keeps it when it gets a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SessionId(u64);

/// A session of the core, and what it is bound to.
#[derive(Clone)]
pub(crate) struct OpenSession {
    pub(crate) id: SessionId,
    /// The connection it ends with. A session whose name was used once outlives its connections.
    pub(crate) connection: Option<ConnectionInfo>,
    /// The name it was given in addition.
    name: Arc<OnceLock<SessionName>>,
    session: Session,
}

impl Deref for OpenSession {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl OpenSession {
    /// Returns the session's user.
    pub(crate) fn user(&self) -> UserId {
        self.session.principal().user_id
    }

    /// Whether the connection that the session belongs to is closed.
    pub(crate) fn has_ended(&self) -> bool {
        self.connection.as_ref().is_some_and(ConnectionInfo::is_closed)
    }
}

/// The sessions of all users.
#[derive(Default)]
pub(crate) struct Sessions {
    map: Mutex<SessionMap>,
    last_id: AtomicU64,
}

type SessionMap = IdleMap<(UserId, SessionKey), OpenSession>;

impl Sessions {
    /// Returns the session of a request; a new one for its first request.
    pub(crate) fn resolve(&self, database: &Database, identity: &Identity) -> OpenSession {
        let key = (identity.principal.user_id, identity.session);
        let mut map = self.map.lock();
        if let Some(open) = map.touch(&key) {
            // A changed role makes another principal, and a session never changes its principal.
            if *open.session.principal() == identity.principal {
                if identity.has_named_session() {
                    open.connection = None;
                }
                return open.clone();
            }
        }
        make_room(&mut map, identity.principal.user_id);
        let open = OpenSession {
            id: SessionId(self.last_id.fetch_add(1, Ordering::Relaxed)),
            connection: match identity.session {
                SessionKey::Connection { .. } => identity.connection.clone(),
                SessionKey::Named(_) => None,
            },
            name: Arc::default(),
            session: database.session(&identity.principal),
        };
        map.insert(key, open.clone(), SESSIONS_MAX, SESSION_IDLE_MAX);
        open
    }

    /// Gives a session a name in addition, the same each time, and returns it. A client that sends the name
    /// stays in the session, also over other connections; a client that does not send it stays in the session
    /// of its connection.
    pub(crate) fn name(&self, open: &OpenSession) -> SessionName {
        let name = *open.name.get_or_init(new_session_name);
        let key = (open.user(), SessionKey::Named(name));
        let mut map = self.map.lock();
        if map.touch(&key).is_none() {
            make_room(&mut map, open.user());
            map.insert(key, open.clone(), SESSIONS_MAX, SESSION_IDLE_MAX);
        }
        name
    }

    /// Drops sessions that have been idle for too long or whose connection is closed.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut map = self.map.lock();
        map.sweep(now, SESSION_IDLE_MAX);
        drop_ended(&mut map);
    }

    /// Drops a session; returns whether it existed.
    pub(crate) fn close(&self, identity: &Identity) -> bool {
        let key = (identity.principal.user_id, identity.session);
        self.map.lock().entries.remove(&key).is_some()
    }
}

/// Makes room for a new session of `owner`: drops what has ended, then the owner's longest-idle session.
fn make_room(map: &mut SessionMap, owner: UserId) {
    if map.entries.len() < SESSIONS_PER_USER_MAX {
        return;
    }
    if map.entries.len() >= SESSIONS_MAX || count_of(map, owner) >= SESSIONS_PER_USER_MAX {
        drop_ended(map);
    }
    if count_of(map, owner) >= SESSIONS_PER_USER_MAX {
        map.evict_longest_idle(|(user, _), _| *user == owner);
    }
}

fn count_of(map: &SessionMap, owner: UserId) -> usize {
    map.entries.keys().filter(|(user, _)| *user == owner).count()
}

fn drop_ended(map: &mut SessionMap) {
    map.entries.retain(|_, (_, open)| !open.has_ended());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(database: &Database, session: SessionKey, connection: &ConnectionInfo) -> Identity {
        let principal = database.session_for("root").unwrap().principal().clone();
        Identity { principal, session, connection: Some(connection.clone()) }
    }

    fn of_connection(connection: &ConnectionInfo, token: Option<[u8; 16]>) -> SessionKey {
        SessionKey::Connection { token, connection: connection.number() }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_session_ends_with_its_connection_and_a_named_one_does_not() {
        let database = Database::open_in_memory().await.unwrap();
        let sessions = Sessions::default();
        let (first, second) = (ConnectionInfo::for_test(1), ConnectionInfo::for_test(2));
        let token = Some([7; 16]);
        let over_first = identity(&database, of_connection(&first, token), &first);
        let over_second = identity(&database, of_connection(&second, token), &second);
        let one = sessions.resolve(&database, &over_first);
        assert_eq!(sessions.resolve(&database, &over_first).id, one.id);
        assert_ne!(sessions.resolve(&database, &over_second).id, one.id, "one token, two connections");

        let name = sessions.name(&one);
        assert_eq!(sessions.name(&one), name);
        let named = identity(&database, SessionKey::Named(name), &second);
        assert_eq!(sessions.resolve(&database, &named).id, one.id);
        first.mark_closed();
        sessions.sweep(Instant::now());
        assert_eq!(sessions.resolve(&database, &named).id, one.id, "the name outlives the connection");
        assert_eq!(sessions.map.lock().entries.len(), 2, "the second connection's, and the named one");
        // A name that nobody uses ends with the connection.
        sessions.name(&sessions.resolve(&database, &over_second));
        second.mark_closed();
        sessions.sweep(Instant::now());
        assert_eq!(sessions.map.lock().entries.len(), 1);

        let mut of_another = named;
        of_another.principal.user_id = UserId(of_another.principal.user_id.0 + 1);
        assert_ne!(sessions.resolve(&database, &of_another).id, one.id);
        database.shutdown().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn connections_that_come_and_go_push_out_nobody() {
        let database = Database::open_in_memory().await.unwrap();
        let sessions = Sessions::default();
        let stays = ConnectionInfo::for_test(0);
        let staying = identity(&database, of_connection(&stays, None), &stays);
        let id = sessions.resolve(&database, &staying).id;
        for number in 1..=2 * SESSIONS_PER_USER_MAX as u64 {
            let connection = ConnectionInfo::for_test(number);
            sessions.resolve(&database, &identity(&database, of_connection(&connection, None), &connection));
            connection.mark_closed();
        }
        assert_eq!(sessions.resolve(&database, &staying).id, id);
        assert!(sessions.map.lock().entries.len() <= SESSIONS_PER_USER_MAX);
        database.shutdown().await.unwrap();
    }
}
