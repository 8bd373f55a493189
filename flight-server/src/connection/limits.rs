//! The table of open connections: how many there may be, and who goes when there are too many.
//!
//! A newcomer is not refused while connections without a login stand in its way: one of them is closed. The
//! one with the most wrong passwords goes first, then one that does nothing, at a crowded site, so a flood
//! from one site closes its own connections. A connection whose first password is being checked is spared,
//! unless its site has more than the newcomer's.
//!
//! A *network* is what one client can change at will: an IPv4 address or the /64 of an IPv6 address. A *site*
//! may have many of them: it is an IPv4 address or the /48 of an IPv6 address.
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
/// Calls that wait for the login of their connections beyond those that each connection may have.
const SHARED_CALLS_MAX: usize = 4_096;
/// The part of them that one site may have.
const SHARED_CALLS_PARTS: usize = 4;
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
    /// Connections without a login of one site that are kept when there are too many in all.
    pub(crate) anonymous_per_address_max: usize,
    /// Bytes that are read of a connection before a login.
    pub(crate) anonymous_read_bytes_max: usize,
    /// Calls in flight on a connection before a login.
    pub(crate) anonymous_calls_per_connection_max: usize,
    /// Calls with credentials beyond those, of all connections.
    pub(crate) shared_calls_max: usize,
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
            shared_calls_max: SHARED_CALLS_MAX,
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
            shared_calls_max: SHARED_CALLS_MAX,
            login_time: LOGIN_TIME,
        }
    }
}

/// Returns the network of an address: an IPv4 address, or the /64 of an IPv6 address.
fn network(address: IpAddr) -> IpAddr {
    cut(address, 64)
}

/// Returns the site of an address: an IPv4 address, or the /48 of an IPv6 address.
pub(super) fn site(address: IpAddr) -> IpAddr {
    cut(address, 48)
}

/// Returns the first bits of an IPv6 address; a whole IPv4 address.
fn cut(address: IpAddr, bits: u32) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let others = u128::MAX >> bits;
            IpAddr::V6(Ipv6Addr::from(u128::from(address) & !others))
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
    /// Calls beyond those that each connection may have, by site.
    shared_calls: HashMap<IpAddr, usize>,
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
            let Some(number) = table.least_welcome_of(network) else { return false };
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

    /// Counts a call beyond those that its connection may have. `None` if there are too many, in all or of
    /// its site.
    pub(super) fn share(self: &Arc<Self>, state: &State) -> Option<SharedCall> {
        let (site, most) = (site(state.peer.ip()), self.limits.shared_calls_max);
        let mut table = self.table.lock();
        let of_site = table.shared_calls.get(&site).copied().unwrap_or_default();
        let all: usize = table.shared_calls.values().sum();
        if all >= most || of_site >= most.div_ceil(SHARED_CALLS_PARTS) {
            return None;
        }
        table.shared_calls.insert(site, of_site + 1);
        Some(SharedCall { open: Arc::clone(self), site })
    }
}

/// A call beyond those that its connection may have.
#[derive(Debug)]
pub(super) struct SharedCall {
    open: Arc<OpenConnections>,
    site: IpAddr,
}

impl Drop for SharedCall {
    fn drop(&mut self) {
        let mut table = self.open.table.lock();
        if let Some(of_site) = table.shared_calls.get_mut(&self.site) {
            *of_site -= 1;
            if *of_site == 0 {
                table.shared_calls.remove(&self.site);
            }
        }
    }
}

/// Which connection without a login goes first: the one of the greatest rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    failed_logins: u32,
    is_idle: bool,
    /// Connections without a login of its site.
    of_site: usize,
    of_network: usize,
    age: u64,
    number: u64,
    network: IpAddr,
}

impl Rank {
    /// Whether it goes for any newcomer: it has failed, or does nothing.
    fn may_always_go(&self) -> bool {
        self.failed_logins > 0 || self.is_idle
    }
}

impl Table {
    fn counts(&self, network: IpAddr) -> NetworkCounts {
        self.networks.get(&network).copied().unwrap_or_default()
    }

    /// Returns the connection without a login that goes to make room for a newcomer. `None` if the newcomer
    /// must go: its site has enough connections, or as many as any other, and all are at their first login.
    fn least_welcome(&self, newcomer: IpAddr, per_site_max: usize) -> Option<u64> {
        let sites = self.sites();
        let own = sites.get(&site(newcomer)).copied().unwrap_or_default();
        let may_go = |of: IpAddr| own <= per_site_max || site(of) == site(newcomer);
        let last = self.ranks(&sites).filter(|rank| may_go(rank.network)).max()?;
        (last.may_always_go() || last.of_site > own + 1).then_some(last.number)
    }

    /// As [`Table::least_welcome`], but only among the connections of the newcomer's network.
    fn least_welcome_of(&self, newcomer: IpAddr) -> Option<u64> {
        let sites = self.sites();
        let last = self.ranks(&sites).filter(|rank| rank.network == newcomer).max()?;
        last.may_always_go().then_some(last.number)
    }

    /// Returns the number of connections without a login at each site.
    fn sites(&self) -> HashMap<IpAddr, usize> {
        let mut sites: HashMap<IpAddr, usize> = HashMap::new();
        for anonymous in self.anonymous.values() {
            *sites.entry(site(anonymous.network)).or_default() += 1;
        }
        sites
    }

    fn ranks(&self, sites: &HashMap<IpAddr, usize>) -> impl Iterator<Item = Rank> {
        self.anonymous.iter().map(move |(number, Anonymous { network, state })| {
            let is_idle = !state.is_logging_in();
            Rank {
                failed_logins: state.failed_logins(),
                is_idle,
                of_site: sites.get(&site(*network)).copied().unwrap_or_default(),
                of_network: self.counts(*network).anonymous,
                // The oldest of those that do nothing; the youngest of the others, which has waited least.
                age: if is_idle { u64::MAX - number } else { *number },
                number: *number,
                network: *network,
            }
        })
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
