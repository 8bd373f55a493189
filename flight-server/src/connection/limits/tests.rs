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
fn networks_and_sites_are_parts_of_ipv6_addresses_and_a_mapped_address_is_ipv4() {
    let of = |text: &str| [network, site].map(|cut| cut(text.parse().unwrap()).to_string());
    assert_eq!(of("10.1.2.3"), ["10.1.2.3", "10.1.2.3"]);
    assert_eq!(of("::ffff:10.1.2.3"), ["10.1.2.3", "10.1.2.3"]);
    assert_eq!(of("2001:db8:1:2:3:4:5:6"), ["2001:db8:1:2::", "2001:db8:1::"]);
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
fn who_repeats_wrong_passwords_keeps_nobody_out_and_not_its_own_network_either() {
    let open = OpenConnections::new(ConnectionLimits { anonymous_max: 4, ..limits() });
    let flood: Vec<_> = (0..4).map(|number| state(number, 1)).collect();
    assert!(flood.iter().all(|state| open.enter(state)));
    // They are never seen without a login that is being checked.
    let _logins: Vec<_> = flood.iter().map(|state| LoginGuard::new(Arc::clone(state))).collect();
    assert!(!open.enter(&state(10, 1)), "all are at their first login");
    for (place, failures) in [(0, 1), (1, 7), (2, 3)] {
        (0..failures).for_each(|_| flood[place].note_failed_login());
    }
    let neighbour = state(11, 1);
    assert!(open.enter(&neighbour) && flood[1].is_closing(), "seven wrong passwords");
    let other = state(12, 2);
    assert!(open.enter(&other) && flood[2].is_closing(), "three wrong passwords");
    // Who does nothing yet has failed less than who has failed.
    assert!(open.enter(&state(13, 2)) && flood[0].is_closing());
    assert!(![&neighbour, &other, &flood[3]].iter().any(|state| state.is_closing()));
    // The limit of an address counts in the same way.
    let limits = ConnectionLimits { connections_per_address_max: 2, ..limits() };
    let open = OpenConnections::new(limits);
    let both = [state(1, 1), state(2, 1)];
    let _logins: Vec<_> = both.iter().map(|state| LoginGuard::new(Arc::clone(state))).collect();
    assert!(both.iter().all(|state| open.enter(state)) && !open.enter(&state(3, 1)));
    both[1].note_failed_login();
    assert!(open.enter(&state(4, 1)) && both[1].is_closing());
}

#[test]
fn a_site_with_many_networks_is_a_crowd() {
    let at = |number: u64, address: &str| {
        Arc::new(State::new(number, SocketAddr::new(address.parse().unwrap(), 1)))
    };
    let limits = ConnectionLimits { anonymous_max: 6, anonymous_per_address_max: 3, ..limits() };
    let open = OpenConnections::new(limits);
    let guests = [at(0, "2001:db8:1::1"), at(1, "2001:db8:2::1")];
    assert!(guests.iter().all(|state| open.enter(state)));
    // Each connection of the flood has a /64 of its own.
    let flood: Vec<_> = (2..100).map(|number| at(number, &format!("2001:db8:9:{number:x}::1"))).collect();
    assert!(flood.iter().all(|state| open.enter(state)));
    assert!(!guests.iter().any(|state| state.is_closing()));
    // Within a site the crowded network goes first, although it is younger.
    let of_site = |state: &&Arc<State>| !state.is_closing();
    assert_eq!(flood.iter().filter(of_site).count(), 4);
    let twins = [at(100, "2001:db8:9:ffff::1"), at(101, "2001:db8:9:ffff::2")];
    assert!(twins.iter().all(|state| open.enter(state)));
    assert!(open.enter(&at(102, "10.0.0.1")));
    assert!(twins[0].is_closing() && !twins[1].is_closing());
}

#[test]
fn calls_that_wait_have_a_limit_of_all_and_of_a_site() {
    let open = Arc::new(OpenConnections::new(ConnectionLimits { shared_calls_max: 8, ..limits() }));
    let [first, second] = [state(1, 1), state(2, 1)];
    let calls = [&first, &second].map(|state| open.share(state).unwrap());
    assert!(open.share(&first).is_none(), "two are a quarter");
    let others: Vec<_> = (2..5).flat_map(|site| [(); 2].map(|()| open.share(&state(9, site)))).collect();
    assert!(others.iter().all(Option::is_some));
    assert!(open.share(&state(9, 9)).is_none(), "eight are all");
    drop(calls);
    let again = open.share(&first);
    assert!(again.is_some());
    drop((again, others));
    assert!(open.table.lock().shared_calls.is_empty());
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
    FailLogin(usize),
    Leave(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..NETWORKS).prop_map(Step::Enter),
        2 => (any::<usize>(), 0..4_u64).prop_map(|(which, user)| Step::LogIn(which, user)),
        1 => any::<usize>().prop_map(Step::BeginLogin),
        1 => any::<usize>().prop_map(Step::FailLogin),
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
                Step::FailLogin(which) if !alive.is_empty() => alive[which % alive.len()].note_failed_login(),
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
