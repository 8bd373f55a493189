//! The table of connections: who goes, and a random model of the counts.

use std::net::SocketAddr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::state::LoginGuard;
use super::*;

const NETWORKS: u8 = 4;

fn state(number: u64, network: u8) -> Arc<State> {
    Arc::new(State::new(number, SocketAddr::from(([10, 0, 0, network], 1))))
}

fn limits() -> ConnectionLimits {
    ConnectionLimits {
        connections_max: 12,
        connections_per_address_max: 6,
        connections_per_user_max: 3,
        anonymous_max: 8,
        anonymous_per_address_max: 2,
        ..ConnectionLimits::default()
    }
}

#[test]
fn an_ipv6_network_is_a_half_address_and_a_mapped_address_is_ipv4() {
    let of = |text: &str| network(text.parse().unwrap()).to_string();
    assert_eq!(of("10.1.2.3"), "10.1.2.3");
    assert_eq!(of("::ffff:10.1.2.3"), "10.1.2.3");
    assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
}

#[test]
fn a_flood_from_one_network_closes_its_own_connections() {
    let limits = ConnectionLimits { anonymous_max: 4, connections_per_address_max: 0, ..limits() };
    let open = OpenConnections::new(limits);
    let guest = state(0, 1);
    assert!(open.enter(&guest));
    let flood: Vec<_> = (1..100).map(|number| state(number, 2)).collect();
    assert!(flood.iter().all(|state| open.enter(state)));
    assert!(!guest.is_closing());
    let left: Vec<u64> = flood.iter().filter(|state| !state.is_closing()).map(|state| state.number).collect();
    assert_eq!(left, [97, 98, 99], "the oldest went");
    // Others take the place of the flood too.
    let other = state(100, 3);
    assert!(open.enter(&other) && flood[96].is_closing() && !guest.is_closing());
}

#[test]
fn who_is_logging_in_is_spared() {
    let open = OpenConnections::new(ConnectionLimits { anonymous_max: 3, ..limits() });
    let flood = [state(1, 1), state(2, 1), state(3, 1)];
    let logins: Vec<_> = flood.iter().map(|state| LoginGuard::new(Arc::clone(state))).collect();
    assert!(flood.iter().all(|state| open.enter(state)));
    assert!(!open.enter(&state(4, 1)), "the newcomer's own network is full of logins");
    assert!(open.enter(&state(5, 2)));
    assert!(flood[2].is_closing(), "the youngest of the crowded network");
    drop(logins);
    assert!(open.enter(&state(6, 3)));
    assert!(flood[0].is_closing() && !flood[1].is_closing(), "the oldest that does nothing");
}

#[test]
fn a_network_and_a_user_have_their_own_limits() {
    let open = OpenConnections::new(limits());
    let own: Vec<_> = (1..=6).map(|number| state(number, 1)).collect();
    assert!(own.iter().all(|state| open.enter(state)));
    let next = state(7, 1);
    assert!(open.enter(&next) && own[0].is_closing());
    let ann = UserId(1);
    assert!(own[1..4].iter().all(|state| open.log_in(state, ann)));
    assert!(!open.log_in(&own[4], ann) && open.log_in(&own[4], UserId(2)));
    assert!(open.log_in(&own[1], ann), "it is logged in already");
    open.leave(&own[1]);
    assert!(open.log_in(&own[5], ann));
    assert!(open.log_in(&next, UserId(2)));
    let eighth = state(8, 1);
    assert!(open.enter(&eighth) && open.log_in(&eighth, UserId(3)));
    assert!(!open.enter(&state(9, 1)), "all of the network have logged in");
}

#[derive(Clone, Debug)]
enum Step {
    Enter(u8),
    LogIn(usize, u64),
    BeginLogin(usize),
    Leave(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..NETWORKS).prop_map(Step::Enter),
        2 => (any::<usize>(), 0..4_u64).prop_map(|(which, user)| Step::LogIn(which, user)),
        1 => any::<usize>().prop_map(Step::BeginLogin),
        2 => any::<usize>().prop_map(Step::Leave),
    ]
}

fn check(open: &OpenConnections, alive: &[Arc<State>]) {
    let table = open.table.lock();
    let limits = open.limits();
    let counted = table.anonymous.len() + table.logged_in.len();
    assert_eq!(counted, alive.iter().filter(|state| !state.is_closing()).count());
    assert!(counted <= limits.connections_max && table.anonymous.len() <= limits.anonymous_max);
    let mut networks: HashMap<IpAddr, NetworkCounts> = HashMap::new();
    for state in alive.iter().filter(|state| !state.is_closing()) {
        let counts = networks.entry(network(state.peer.ip())).or_default();
        counts.open += 1;
        counts.anonymous += usize::from(!state.is_logged_in());
        assert_eq!(table.anonymous.contains_key(&state.number), !state.is_logged_in());
    }
    assert_eq!(table.networks, networks);
    assert!(networks.values().all(|counts| counts.open <= limits.connections_per_address_max));
    let mut users: HashMap<UserId, usize> = HashMap::new();
    for logged_in in table.logged_in.values() {
        *users.entry(logged_in.user).or_default() += 1;
    }
    assert_eq!(table.users, users);
    assert!(users.values().all(|count| *count <= limits.connections_per_user_max));
}

proptest! {
    #[test]
    fn the_counts_are_those_of_the_connections(steps in vec(step(), 0..200)) {
        let open = OpenConnections::new(limits());
        let mut alive: Vec<Arc<State>> = Vec::new();
        let mut logins: Vec<LoginGuard> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Enter(network) => {
                    let state = state(number as u64, network);
                    if open.enter(&state) {
                        alive.push(state);
                    }
                }
                Step::LogIn(which, user) if !alive.is_empty() => {
                    open.log_in(&alive[which % alive.len()], UserId(user));
                }
                Step::BeginLogin(which) if !alive.is_empty() => {
                    logins.push(LoginGuard::new(Arc::clone(&alive[which % alive.len()])));
                }
                Step::Leave(which) if !alive.is_empty() => {
                    let state = alive.swap_remove(which % alive.len());
                    open.leave(&state);
                }
                _ => logins.clear(),
            }
            check(&open, &alive);
        }
        for state in &alive {
            open.leave(state);
        }
        let table = open.table.lock();
        prop_assert!(table.networks.is_empty() && table.users.is_empty());
    }
}
