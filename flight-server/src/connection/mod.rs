//! Connections: accepted, counted, limited and, before a login, hardly read.
//!
//! | file | its one job |
//! |---|---|
//! | `state` | what the parts of the server share about one connection |
//! | `limits` | the table of open connections, which decides who stays |
//! | `gate` | the socket: reads little before a login, and ends when it must |
//! | `accept` | accepts sockets |
//!
//! The connection's number, not the peer's address, names its session: ports are reused, numbers are not.
//!
//! Clients that only connect must not use up memory or the slots of those that log in. So a connection
//! without a login has few calls and few bytes, keeps its slot only for a short time, and is the first to go.
//! A client that sends many calls at once on a new connection is not refused: they wait for its first login.
//!
//! Invariant: a connection is in the table from its acceptance until its socket is dropped or it is told to
//! close; it counts as one without a login until the first call with valid credentials.

mod accept;
mod gate;
mod limits;
mod state;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use kalamdb_core::ids::UserId;
use kalamdb_core::{Error, ErrorKind, SqlState};
use tokio::sync::SemaphorePermit;
use tonic::body::Body;

pub(crate) use self::accept::accept;
pub(crate) use self::limits::ConnectionLimits;
use self::limits::{OpenConnections, SharedCall, site};
use self::state::State;
pub(crate) use self::state::{CallGuard, LoginGuard};

/// Tells a handler on which connection a request arrived.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionInfo {
    state: Arc<State>,
    open: Arc<OpenConnections>,
}

impl ConnectionInfo {
    /// Returns the connection's number, never reused while the process lives.
    pub(crate) fn number(&self) -> u64 {
        self.state.number
    }

    /// Returns the address of the client.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.state.peer
    }

    /// Returns the site of the client: its IPv4 address or the /48 of its IPv6 address.
    pub(crate) fn site(&self) -> IpAddr {
        site(self.state.peer.ip())
    }

    /// Whether the connection is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.is_closed()
    }

    /// Records that the connection is closed.
    pub(crate) fn mark_closed(&self) {
        self.state.mark_closed();
        self.open.leave(&self.state);
    }

    /// Ends the connection, whatever its calls do.
    pub(crate) fn close(&self) {
        self.state.close();
    }

    /// Records a login of `user` on the connection, which from now on may stay and send.
    ///
    /// # Errors
    /// 53300 when the user has too many connections.
    pub(crate) fn mark_logged_in(&self, user: UserId) -> Result<(), Error> {
        if self.state.is_logged_in() || self.open.log_in(&self.state, user) {
            return Ok(());
        }
        let most = self.open.limits().connections_per_user_max;
        Err(Error::new(
            ErrorKind::ResourceExhausted,
            SqlState::TOO_MANY,
            format!("the user has {most} open connections"),
        )
        .hint("close some of them, or raise connections_per_user_max"))
    }

    /// Keeps the connection open while the credentials of a call are checked.
    pub(crate) fn begin_login(&self) -> LoginGuard {
        LoginGuard::new(Arc::clone(&self.state))
    }

    /// Waits until no other password of the connection is being checked, so that many calls at once cost one
    /// check. Nobody waits after a login.
    pub(crate) async fn login_turn(&self) -> Option<SemaphorePermit<'_>> {
        self.state.login_turn().await
    }

    /// Records that a password was wrong.
    pub(crate) fn note_failed_login(&self) {
        self.state.note_failed_login();
    }

    /// Counts a call that needs no credentials on a connection without a login; `None` after the login.
    ///
    /// # Errors
    /// 53300 when too many calls of the connection are in flight.
    pub(crate) fn begin_call(&self) -> Result<Option<CallGuard>, Error> {
        if self.state.is_logged_in() {
            return Ok(None);
        }
        self.own_call().map(Some).ok_or_else(|| self.too_many_calls())
    }

    /// Counts a call with credentials until they are checked; `None` after a login. It may be one more than
    /// the connection may have.
    ///
    /// # Errors
    /// 53300 when too many calls of all connections wait.
    pub(crate) fn begin_waiting(&self) -> Result<Option<WaitingCall>, Error> {
        if self.state.is_logged_in() {
            return Ok(None);
        }
        let own = self.own_call();
        let shared = if own.is_none() { self.open.share(&self.state) } else { None };
        if own.is_none() && shared.is_none() {
            return Err(self.too_many_calls());
        }
        Ok(Some(WaitingCall { _own: own, _shared: shared }))
    }

    fn own_call(&self) -> Option<CallGuard> {
        CallGuard::new(&self.state, self.open.limits().anonymous_calls_per_connection_max)
    }

    fn too_many_calls(&self) -> Error {
        let most = self.open.limits().anonymous_calls_per_connection_max;
        Error::new(
            ErrorKind::ResourceExhausted,
            SqlState::TOO_MANY,
            format!("{most} calls are in flight on a connection without a login"),
        )
        .hint("wait for the answer to the login before you send more calls")
    }

    /// Throws away what the client sends with a refused call, so that the connection can read its next one.
    pub(crate) fn discard(&self, body: Body) {
        if !self.state.is_logged_in() {
            tokio::spawn(gate::discard(Arc::clone(&self.state), body));
        }
    }

    /// Whether the connection was told to end.
    #[cfg(test)]
    pub(crate) fn is_closing(&self) -> bool {
        self.state.is_closing()
    }

    /// Returns a connection without a socket.
    #[cfg(test)]
    pub(crate) fn for_test(number: u64) -> Self {
        let state = Arc::new(State::new(number, SocketAddr::from(([127, 0, 0, 1], 0))));
        let open = Arc::new(OpenConnections::new(ConnectionLimits::default()));
        assert!(open.enter(&state));
        Self { state, open }
    }
}

/// A call with credentials on a connection without a login.
#[derive(Debug)]
pub(crate) struct WaitingCall {
    _own: Option<CallGuard>,
    _shared: Option<SharedCall>,
}
