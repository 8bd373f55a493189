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

pub(crate) use self::accept::accept;
pub(crate) use self::limits::ConnectionLimits;
use self::limits::{OpenConnections, network};
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

    /// Returns the network of the client, which shares limits: its IPv4 address or the /64 of its IPv6
    /// address.
    pub(crate) fn network(&self) -> IpAddr {
        network(self.state.peer.ip())
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

    /// Counts a call of a connection without a login; `None` after the login.
    ///
    /// # Errors
    /// 53300 when too many such calls are in flight.
    pub(crate) fn begin_call(&self) -> Result<Option<CallGuard>, Error> {
        if self.state.is_logged_in() {
            return Ok(None);
        }
        let most = self.open.limits().anonymous_calls_per_connection_max;
        match CallGuard::new(&self.state, most) {
            Some(guard) => Ok(Some(guard)),
            None => Err(Error::new(
                ErrorKind::ResourceExhausted,
                SqlState::TOO_MANY,
                format!("{most} calls are in flight on a connection without a login"),
            )
            .hint("wait for the answer to the login before you send more calls")),
        }
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
