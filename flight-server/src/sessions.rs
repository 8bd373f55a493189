//! The sessions of all clients: what a statement such as `USE` sets stays for the later calls of its session.
//!
//! A session is that of a connection and the bearer token sent over it, or has a name that its client sends;
//! see [`SessionKey`]. Flight SQL and live queries share the sessions.
//!
//! A session that ends by KILL SESSION or because it was idle takes its connection with it, unless others use
//! the connection. Its client is told first: by the status of what runs, or by that of the next call.
//!
//! A user with too many sessions loses the longest-idle ones among those that have a name, first those whose
//! last connection is closed. The session of an open connection is never dropped: its client could not know
//! that what it has set is gone, and would write into another namespace. Then a further session is refused.
//!
//! A session outlives a new password and a new role of its user. Each statement takes the role of the moment.
//!
//! Invariants: nobody reaches another user's session; the session of a closed connection ends, unless its
//! name was used; the map is bounded.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kalamdb_core::ids::UserId;
use kalamdb_core::{Call, Database, Error, ErrorKind, Result, Session, SessionKind, SessionOrigin, SqlState};
use parking_lot::Mutex;

use crate::auth::{Identity, SessionKey, SessionName, new_session_name};
use crate::connection::ConnectionInfo;
use crate::idle_map::IdleMap;

/// Sessions of the whole process: twice as many as connections.
const SESSIONS_MAX: usize = 20_000;
/// Sessions of one user, unless the user may have more than half as many connections.
const SESSIONS_PER_USER_MAX: usize = 2_000;
/// How long a session with a name lives without a call.
const SESSION_IDLE_MAX: Duration = Duration::from_secs(24 * 3_600);
/// How long a connection stays open after its session has ended, so that its calls get their status.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A session of the core, and what it is bound to.
#[derive(Clone)]
pub(crate) struct OpenSession {
    /// The connection on which it began; for a session that began with a name, the last one.
    connection: Option<ConnectionInfo>,
    name: Arc<Name>,
    /// When it was first noticed that the session has ended.
    ended_at: Option<Instant>,
    session: Session,
}

/// The name of a session, which all its clones share.
#[derive(Default)]
struct Name {
    /// The name it was given in addition to its connection.
    given: OnceLock<SessionName>,
    /// Whether a client has sent a name for it. From then on it outlives its connections.
    is_used: AtomicBool,
}

impl Deref for OpenSession {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl OpenSession {
    fn new(database: &Database, identity: &Identity) -> Self {
        let kind = match identity.session {
            SessionKey::Connection { .. } => SessionKind::Connection,
            SessionKey::Named(_) => SessionKind::Named,
        };
        let connection = identity.connection.clone();
        let address = connection.as_ref().map(|connection| connection.peer().ip());
        let origin = SessionOrigin { kind, address, application: identity.application.clone() };
        let session = database.session_from(&identity.principal, origin);
        Self { connection, name: Arc::default(), ended_at: None, session }
    }

    /// Returns the session's user.
    pub(crate) fn user(&self) -> UserId {
        self.session.principal().user_id
    }

    /// Returns the session for the statements of a call.
    pub(crate) fn in_call(self, call: &Call) -> Self {
        Self { session: self.session.in_call(call), ..self }
    }

    /// Whether the session has ended with its connection.
    pub(crate) fn is_cut_off(&self) -> bool {
        !self.name.is_used.load(Ordering::Acquire) && self.is_disconnected()
    }

    /// Whether both sessions are used over the same connection.
    pub(crate) fn shares_connection_with(&self, other: &Self) -> bool {
        other.connection.as_ref().is_some_and(|connection| self.is_of(connection))
    }

    fn is_disconnected(&self) -> bool {
        self.connection.as_ref().is_some_and(ConnectionInfo::is_closed)
    }

    fn is_of(&self, connection: &ConnectionInfo) -> bool {
        self.connection.as_ref().is_some_and(|own| own.number() == connection.number())
    }

    /// Records that a client has sent the session's name over a connection.
    fn note_name(&mut self, connection: Option<&ConnectionInfo>) {
        self.name.is_used.store(true, Ordering::Release);
        self.connection = connection.cloned();
    }
}

/// The sessions of all users.
pub(crate) struct Sessions {
    /// Sessions of one user.
    per_user_max: usize,
    map: Mutex<SessionMap>,
}

type SessionMap = IdleMap<(UserId, SessionKey), OpenSession>;

impl Sessions {
    /// Lets each user have the sessions of so many connections, and as many others.
    pub(crate) fn new(connections_per_user_max: usize) -> Self {
        let per_user_max = connections_per_user_max.saturating_mul(2).max(SESSIONS_PER_USER_MAX);
        Self { per_user_max, map: Mutex::default() }
    }

    /// Returns the session of a request; a new one for its first request.
    ///
    /// # Errors
    /// 57P01 or 57P05 when the session has ended, once; a connection whose session has ended is closed soon.
    /// 53300 when there are too many sessions.
    pub(crate) fn resolve(&self, database: &Database, identity: &Identity) -> Result<OpenSession> {
        let key = (identity.principal.user_id, identity.session);
        let mut map = self.map.lock();
        if let Some(open) = map.touch(&key) {
            if let Err(error) = open.session.touch() {
                // The one of a connection stays until the connection is closed.
                if identity.has_named_session() || open.connection.is_none() {
                    map.entries.remove(&key);
                }
                return Err(error);
            }
            if identity.has_named_session() {
                open.note_name(identity.connection.as_ref());
            }
            return Ok(open.clone());
        }
        self.make_room(&mut map, identity.principal.user_id)?;
        let mut open = OpenSession::new(database, identity);
        if identity.has_named_session() {
            open.note_name(identity.connection.as_ref());
        }
        map.insert(key, open.clone(), SESSIONS_MAX, SESSION_IDLE_MAX);
        Ok(open)
    }

    /// Gives a session a name in addition, the same each time, and returns it; `None` if there is no room. A
    /// client that sends the name stays in the session, also over other connections; a client that does not
    /// send it stays in the session of its connection.
    pub(crate) fn name(&self, open: &OpenSession) -> Option<SessionName> {
        let name = *open.name.given.get_or_init(new_session_name);
        let key = (open.user(), SessionKey::Named(name));
        let mut map = self.map.lock();
        if map.touch(&key).is_none() {
            self.make_room(&mut map, open.user()).ok()?;
            map.insert(key, open.clone(), SESSIONS_MAX, SESSION_IDLE_MAX);
        }
        Some(name)
    }

    /// Ends sessions that do nothing for too long, and drops those that nobody can use any more. Closes
    /// connections whose session has ended.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut map = self.map.lock();
        drop_cut_off(&mut map);
        map.entries.retain(|(_, key), (used_at, _)| {
            !key.is_named() || now.saturating_duration_since(*used_at) <= SESSION_IDLE_MAX
        });
        let mut over = Vec::new();
        for (key, (_, open)) in &mut map.entries {
            open.session.end_if_idle();
            if open.session.has_ended() {
                let ended_at = *open.ended_at.get_or_insert(now);
                if now.saturating_duration_since(ended_at) >= LAST_WORDS && !key.1.is_named() {
                    over.extend(open.connection.clone().map(|connection| (*key, connection)));
                }
            }
        }
        for (key, connection) in over {
            map.entries.remove(&key);
            let is_shared =
                map.entries.values().any(|(_, other)| other.is_of(&connection) && !other.session.has_ended());
            if !is_shared {
                connection.close();
            }
        }
    }

    /// Ends the session of a request, and forgets it.
    pub(crate) fn close(&self, open: &OpenSession) {
        open.session.close();
        let id = open.session.id();
        self.map.lock().entries.retain(|_, (_, other)| other.session.id() != id);
    }

    /// Makes room for a new session of `owner`: drops what is cut off, then a session with a name.
    ///
    /// # Errors
    /// 53300 when there is none.
    fn make_room(&self, map: &mut SessionMap, owner: UserId) -> Result<()> {
        let most = self.per_user_max;
        // Count only when there are enough sessions to exceed a limit.
        if map.entries.len() < most.min(SESSIONS_MAX) {
            return Ok(());
        }
        if map.entries.len() >= SESSIONS_MAX || count_of(map, owner) >= most {
            drop_cut_off(map);
        }
        if count_of(map, owner) >= most && !evict(map, Some(owner)) {
            return Err(too_many(format!("the user has {most} sessions of open connections")));
        }
        if map.entries.len() >= SESSIONS_MAX && !evict(map, None) {
            return Err(too_many(format!("there are {SESSIONS_MAX} sessions of open connections")));
        }
        Ok(())
    }
}

#[cfg(test)]
impl Default for Sessions {
    fn default() -> Self {
        Self::new(1_000)
    }
}

fn count_of(map: &SessionMap, owner: UserId) -> usize {
    map.entries.keys().filter(|(user, _)| *user == owner).count()
}

/// Drops the sessions of closed connections, and names that were not used on them.
fn drop_cut_off(map: &mut SessionMap) {
    map.entries.retain(|(_, key), (_, open)| match key {
        SessionKey::Connection { .. } => !open.is_disconnected(),
        SessionKey::Named(_) => !open.is_cut_off(),
    });
}

/// Drops the longest-idle session with a name, of a user or of all, first one whose last connection is
/// closed. Returns whether there was one.
fn evict(map: &mut SessionMap, owner: Option<UserId>) -> bool {
    let may_go =
        |(user, key): &(UserId, SessionKey)| key.is_named() && owner.is_none_or(|owner| owner == *user);
    map.evict_longest_idle(|key, open| may_go(key) && open.is_disconnected())
        || map.evict_longest_idle(|key, _| may_go(key))
}

fn too_many(message: String) -> Error {
    Error::new(ErrorKind::ResourceExhausted, SqlState::TOO_MANY, message)
        .hint("close connections, or end sessions with CloseSession")
}

#[cfg(test)]
mod tests {
    use kalamdb_core::Role;

    use super::*;

    fn identity(database: &Database, session: SessionKey, connection: &ConnectionInfo) -> Identity {
        let principal = database.session_for("root").unwrap().principal().clone();
        Identity {
            principal,
            session,
            connection: Some(connection.clone()),
            application: Some("test".to_owned()),
            statement_timeout: None,
        }
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
        let one = sessions.resolve(&database, &over_first).unwrap();
        let id = |identity: &Identity| sessions.resolve(&database, identity).unwrap().id();
        assert_eq!(id(&over_first), one.id());
        assert_ne!(id(&over_second), one.id(), "one token, two connections");

        let name = sessions.name(&one).unwrap();
        assert_eq!(sessions.name(&one), Some(name));
        let named = identity(&database, SessionKey::Named(name), &second);
        assert_eq!(id(&named), one.id());
        first.mark_closed();
        sessions.sweep(Instant::now());
        assert_eq!(id(&named), one.id(), "the name outlives the connection");
        assert_eq!(sessions.map.lock().entries.len(), 2, "the second connection's, and the named one");
        // A name that nobody uses ends with the connection.
        sessions.name(&sessions.resolve(&database, &over_second).unwrap()).unwrap();
        second.mark_closed();
        sessions.sweep(Instant::now());
        assert_eq!(sessions.map.lock().entries.len(), 1);

        let mut of_another = named;
        of_another.principal.user_id = UserId(of_another.principal.user_id.0 + 1);
        assert_ne!(id(&of_another), one.id());
        database.shutdown().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_new_role_and_a_closed_name_are_those_of_the_whole_session() {
        let database = Database::open_in_memory().await.unwrap();
        let sessions = Sessions::default();
        let connection = ConnectionInfo::for_test(1);
        let mut identity_of_call = identity(&database, of_connection(&connection, None), &connection);
        let open = sessions.resolve(&database, &identity_of_call).unwrap();
        open.set_namespace("information_schema").unwrap();
        identity_of_call.principal.role = Role::User;
        let later = sessions.resolve(&database, &identity_of_call).unwrap();
        assert_eq!((later.id(), &*later.namespace()), (open.id(), "information_schema"));

        // Closed under either of its keys, it is gone under both.
        let name = sessions.name(&open).unwrap();
        let named = identity(&database, SessionKey::Named(name), &connection);
        sessions.close(&sessions.resolve(&database, &named).unwrap());
        assert!(open.has_ended() && sessions.map.lock().entries.is_empty());
        for identity in [&named, &identity_of_call] {
            assert_ne!(sessions.resolve(&database, identity).unwrap().id(), open.id());
        }
        database.shutdown().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn connections_that_come_and_go_push_out_nobody() {
        let database = Database::open_in_memory().await.unwrap();
        let sessions = Sessions { per_user_max: 10, ..Sessions::default() };
        let stays = ConnectionInfo::for_test(0);
        let staying = identity(&database, of_connection(&stays, None), &stays);
        let id = sessions.resolve(&database, &staying).unwrap().id();
        for number in 1..=100 {
            let connection = ConnectionInfo::for_test(number);
            let other = identity(&database, of_connection(&connection, None), &connection);
            sessions.resolve(&database, &other).unwrap();
            connection.mark_closed();
        }
        assert_eq!(sessions.resolve(&database, &staying).unwrap().id(), id);
        assert!(sessions.map.lock().entries.len() <= sessions.per_user_max);
        database.shutdown().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_has_too_many_sessions_loses_none_of_an_open_connection() {
        let database = Database::open_in_memory().await.unwrap();
        let sessions = Sessions { per_user_max: 4, ..Sessions::default() };
        let (open, closed) = (ConnectionInfo::for_test(1), ConnectionInfo::for_test(2));
        let of = |token: u8| identity(&database, of_connection(&open, Some([token; 16])), &open);
        let named =
            |name: u8, over: &ConnectionInfo| identity(&database, SessionKey::Named([name; 16]), over);
        let id = |identity: &Identity| sessions.resolve(&database, identity).map(|session| session.id());
        // The oldest is that of the connection, then come the names.
        let (first, over_open, over_closed) = (of(1), named(1, &open), named(2, &closed));
        let [first_id, open_id, closed_id] =
            [&first, &over_open, &over_closed].map(|identity| id(identity).unwrap());
        closed.mark_closed();
        id(&of(2)).unwrap();
        id(&of(3)).unwrap();
        let has = |name: u8| {
            let key = (first.principal.user_id, SessionKey::Named([name; 16]));
            sessions.map.lock().entries.contains_key(&key)
        };
        assert!(has(1) && !has(2), "{open_id} and {closed_id}");
        id(&of(4)).unwrap();
        assert!(!has(1));
        let refused = id(&of(5)).unwrap_err();
        assert_eq!(refused.sqlstate(), SqlState::TOO_MANY, "{refused}");
        assert_eq!(id(&first).unwrap(), first_id);
        // Options can still be set; there is only no name for them.
        assert_eq!(sessions.name(&sessions.resolve(&database, &first).unwrap()), None);
        open.mark_closed();
        assert!(id(&named(3, &ConnectionInfo::for_test(3))).is_ok());
        database.shutdown().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_names_end_for_want_of_use() {
        let database = Database::open_in_memory().await.unwrap();
        let sessions = Sessions::default();
        let connection = ConnectionInfo::for_test(1);
        let of_connection = identity(&database, of_connection(&connection, None), &connection);
        let named = identity(&database, SessionKey::Named([9; 16]), &connection);
        let id = |identity: &Identity| sessions.resolve(&database, identity).unwrap().id();
        let (first, second) = (id(&of_connection), id(&named));
        sessions.sweep(Instant::now() + SESSION_IDLE_MAX + Duration::from_secs(1));
        assert_eq!(id(&of_connection), first);
        assert_ne!(id(&named), second);
        database.shutdown().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_session_that_ends_takes_its_connection_with_it_unless_others_use_it() {
        let database = Database::open_in_memory().await.unwrap();
        let sessions = Sessions::default();
        let (alone, shared) = (ConnectionInfo::for_test(1), ConnectionInfo::for_test(2));
        let of = |connection: &ConnectionInfo, token: u8| {
            identity(&database, of_connection(connection, Some([token; 16])), connection)
        };
        let (first, second, third) = (of(&alone, 1), of(&shared, 2), of(&shared, 3));
        let resolve = |identity: &Identity| sessions.resolve(&database, identity);
        let [one, two, three] = [&first, &second, &third].map(|identity| resolve(identity).unwrap());
        let killer = database.session_for("root").unwrap();
        for session in [&one, &two] {
            killer.execute(&format!("KILL SESSION {}", session.id()), ()).await.unwrap();
        }
        for _ in 0..2 {
            assert_eq!(resolve(&first).err().unwrap().sqlstate().0, "57P01");
        }
        let now = Instant::now();
        sessions.sweep(now);
        assert!(!alone.is_closing());
        sessions.sweep(now + LAST_WORDS);
        assert!(alone.is_closing() && !shared.is_closing());
        assert_eq!(resolve(&third).unwrap().id(), three.id());
        assert_ne!(resolve(&second).unwrap().id(), two.id(), "the connection goes on in a new session");
        database.shutdown().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_idle_session_ends_and_its_next_call_is_told() {
        let database = Database::open_in_memory().await.unwrap();
        let sessions = Sessions::default();
        let connection = ConnectionInfo::for_test(1);
        let named = identity(&database, SessionKey::Named([9; 16]), &connection);
        let open = sessions.resolve(&database, &named).unwrap();
        open.set_option("idle_session_timeout", Some("1ms")).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        let told = sessions.resolve(&database, &named).err().unwrap();
        assert_eq!(told.sqlstate().0, "57P05", "{told}");
        let next = sessions.resolve(&database, &named).unwrap();
        assert_ne!(next.id(), open.id());
        assert!(open.has_ended() && open.execute("SELECT 1", ()).await.is_err());
        database.shutdown().await.unwrap();
    }
}
