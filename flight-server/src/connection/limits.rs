//! The table of open connections: how many there may be, and who goes when there are too many.
//!
//! A newcomer is not refused while connections without a login stand in its way: one of them is closed. Those
//! whose credentials are being checked are spared, and clients of a crowded network go first, so a flood
//! from one network closes its own connections.
//!
//! Invariant: the counts are those of the connections in the table, and none exceeds its limit.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use kalamdb_core::ids::UserId;
use parking_lot::Mutex;
use tracing::debug;

use super::state::State;
use crate::config::ServerConfig;

/// All connections.
const CONNECTIONS_MAX: usize = 10_000;
/// Connections without a login.
const ANONYMOUS_MAX: usize = 1_000;
/// How long a connection may stay without a login.
const LOGIN_TIME: Duration = Duration::from_secs(10);

/// Limits of connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    /// All connections.
    pub(crate) connections_max: usize,
    /// Connections of one network; 0 means no limit.
    pub(crate) connections_per_address_max: usize,
    /// Connections with a login of one user.
    pub(crate) connections_per_user_max: usize,
    /// Connections without a login.
    pub(crate) anonymous_max: usize,
    /// Connections without a login of one network that are kept when there are too many in all.
    pub(crate) anonymous_per_address_max: usize,
    /// Bytes that are read of a connection before a login.
    pub(crate) anonymous_read_bytes_max: usize,
    /// Calls in flight on a connection before a login.
    pub(crate) anonymous_calls_per_connection_max: usize,
    /// How long a connection may stay without a login, not counting the time in which one is checked.
    pub(crate) login_time: Duration,
}

impl From<&ServerConfig> for ConnectionLimits {
    fn from(config: &ServerConfig) -> Self {
        Self {
            connections_max: CONNECTIONS_MAX,
            connections_per_address_max: config.connections_per_address_max,
            connections_per_user_max: config.connections_per_user_max,
            anonymous_max: ANONYMOUS_MAX,
            anonymous_per_address_max: config.anonymous_per_address_max,
            anonymous_read_bytes_max: config.anonymous_read_bytes_max,
            anonymous_calls_per_connection_max: config.anonymous_calls_per_connection_max,
            login_time: LOGIN_TIME,
        }
    }
}

#[cfg(test)]
impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX,
            connections_per_address_max: 0,
            connections_per_user_max: 1_000,
            anonymous_max: ANONYMOUS_MAX,
            anonymous_per_address_max: 256,
            anonymous_read_bytes_max: 48 << 10,
            anonymous_calls_per_connection_max: 8,
            login_time: LOGIN_TIME,
        }
    }
}

/// Returns the part of an address that one client cannot change at will: an IPv4 address, or the first half
/// of an IPv6 address.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let host = u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(u128::from(address) & !host))
        }
        address => address,
    }
}

/// The open connections.
#[derive(Debug)]
pub(super) struct OpenConnections {
    limits: ConnectionLimits,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Connections without a login, by number and so by age.
    anonymous: BTreeMap<u64, Anonymous>,
    /// Connections with a login, by number.
    logged_in: HashMap<u64, LoggedIn>,
    networks: HashMap<IpAddr, NetworkCounts>,
    users: HashMap<UserId, usize>,
}

#[derive(Debug)]
struct Anonymous {
    network: IpAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct LoggedIn {
    network: IpAddr,
    user: UserId,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct NetworkCounts {
    open: usize,
    anonymous: usize,
}

impl OpenConnections {
    /// Creates an empty table.
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self { limits, table: Mutex::default() }
    }

    pub(super) fn limits(&self) -> &ConnectionLimits {
        &self.limits
    }

    /// Enters a newcomer and, if needed, closes another connection for it. Returns whether there is room.
    pub(super) fn enter(&self, state: &Arc<State>) -> bool {
        let limits = &self.limits;
        let network = network(state.peer.ip());
        let mut table = self.table.lock();
        let per_address_max = limits.connections_per_address_max;
        if per_address_max > 0 && table.counts(network).open >= per_address_max {
            let Some(number) = table.oldest_idle_of(network) else { return false };
            table.close(number);
        }
        let is_full = |table: &Table| {
            let all = table.anonymous.len() + table.logged_in.len();
            all >= limits.connections_max || table.anonymous.len() >= limits.anonymous_max
        };
        if is_full(&table) {
            let Some(number) = table.least_welcome(network, limits.anonymous_per_address_max) else {
                return false;
            };
            table.close(number);
        }
        table.anonymous.insert(state.number, Anonymous { network, state: Arc::clone(state) });
        let counts = table.networks.entry(network).or_default();
        counts.open += 1;
        counts.anonymous += 1;
        true
    }

    /// Records a login. Returns false if the user has too many connections.
    pub(super) fn log_in(&self, state: &State, user: UserId) -> bool {
        let mut table = self.table.lock();
        // Another call on the connection was first, or the connection is about to be closed.
        if !table.anonymous.contains_key(&state.number) {
            return true;
        }
        let of_user = table.users.entry(user).or_default();
        if *of_user >= self.limits.connections_per_user_max {
            return false;
        }
        *of_user += 1;
        if let Some(Anonymous { network, .. }) = table.anonymous.remove(&state.number) {
            if let Some(counts) = table.networks.get_mut(&network) {
                counts.anonymous -= 1;
            }
            table.logged_in.insert(state.number, LoggedIn { network, user });
        }
        state.mark_logged_in();
        true
    }

    /// Removes a connection whose socket is gone.
    pub(super) fn leave(&self, state: &State) {
        self.table.lock().remove(state.number);
    }
}

impl Table {
    fn counts(&self, network: IpAddr) -> NetworkCounts {
        self.networks.get(&network).copied().unwrap_or_default()
    }

    fn idle(&self) -> impl DoubleEndedIterator<Item = (u64, IpAddr)> {
        let idle = self.anonymous.iter().filter(|(_, anonymous)| !anonymous.state.is_logging_in());
        idle.map(|(number, anonymous)| (*number, anonymous.network))
    }

    fn oldest_idle_of(&self, network: IpAddr) -> Option<u64> {
        self.idle().find(|(_, of)| *of == network).map(|(number, _)| number)
    }

    /// Returns the connection without a login that goes to make room for a newcomer. `None` if all of them
    /// are logging in and no network has more than the newcomer's.
    fn least_welcome(&self, newcomer: IpAddr, per_address_max: usize) -> Option<u64> {
        let own = self.counts(newcomer).anonymous;
        if own > per_address_max
            && let Some(number) = self.oldest_idle_of(newcomer)
        {
            return Some(number);
        }
        // The last of the largest wins: the oldest, because the youngest comes first.
        let crowd = |network: IpAddr| self.counts(network).anonymous;
        if let Some((number, _)) = self.idle().rev().max_by_key(|(_, network)| crowd(*network)) {
            return Some(number);
        }
        // All are logging in. The youngest has waited least.
        let (number, youngest) =
            self.anonymous.iter().max_by_key(|(_, anonymous)| crowd(anonymous.network))?;
        (crowd(youngest.network) > own + 1).then_some(*number)
    }

    /// Tells a connection without a login to close, and forgets it.
    fn close(&mut self, number: u64) {
        if let Some(anonymous) = self.anonymous.get(&number) {
            debug!(peer = %anonymous.state.peer, "closed a connection without a login to make room");
            anonymous.state.close();
        }
        self.remove(number);
    }

    fn remove(&mut self, number: u64) {
        let (network, user) = match (self.anonymous.remove(&number), self.logged_in.remove(&number)) {
            (Some(anonymous), _) => (anonymous.network, None),
            (None, Some(logged_in)) => (logged_in.network, Some(logged_in.user)),
            // It was told to close before its socket was gone.
            (None, None) => return,
        };
        if let Some(counts) = self.networks.get_mut(&network) {
            counts.open -= 1;
            counts.anonymous -= usize::from(user.is_none());
            if counts.open == 0 {
                self.networks.remove(&network);
            }
        }
        if let Some(user) = user
            && let Some(of_user) = self.users.get_mut(&user)
        {
            *of_user -= 1;
            if *of_user == 0 {
                self.users.remove(&user);
            }
        }
    }
}

#[cfg(test)]
mod tests;
