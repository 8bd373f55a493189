//! Tests of the turns: examples, a simulation of fairness, and random calls against the invariant.

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const LIMITS: SlotLimits =
    SlotLimits { running_max: 8, running_per_user_max: 6, queued_max: 300, queued_per_user_max: 250 };
const GREEDY: UserId = UserId(1);
const NONE: [u64; 0] = [];

fn started(turns: &mut Turns) -> Vec<u64> {
    std::iter::from_fn(|| turns.next()).map(|statement| statement.0).collect()
}

/// Lets statements of a user arrive, and returns those that run at once.
fn arrive(turns: &mut Turns, user: UserId, statements: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let mut run = Vec::new();
    for statement in statements {
        turns.arrive(Ticket(statement), user, false);
        run.extend(started(turns));
    }
    run
}

#[test]
fn beside_a_greedy_user_another_finds_a_free_slot() {
    let mut turns = Turns::new(LIMITS);
    assert_eq!(arrive(&mut turns, GREEDY, 0..200), [0, 1, 2, 3, 4, 5]);
    assert_eq!(turns.of_user(GREEDY), (6, 194));
    assert_eq!(arrive(&mut turns, UserId(2), [200]), [200]);
    assert_eq!(arrive(&mut turns, UserId(3), [201]), [201]);
    assert_eq!(arrive(&mut turns, UserId(4), [202]), NONE);
    assert_eq!((turns.running(), turns.waiting()), (8, 195));
    turns.leave(Ticket(3));
    assert_eq!(started(&mut turns), [202], "the user with the fewest goes first, not the first that came");
    turns.leave(Ticket(200));
    assert_eq!(started(&mut turns), [6]);
    turns.leave(Ticket(7));
    assert_eq!(started(&mut turns), NONE, "a statement that waits leaves no slot");
    turns.leave(Ticket(4));
    assert_eq!(started(&mut turns), [8]);
}

#[test]
fn a_statement_that_has_run_before_goes_before_the_later_ones_of_its_user() {
    let mut turns = Turns::new(SlotLimits { running_max: 1, running_per_user_max: 1, ..LIMITS });
    assert_eq!(arrive(&mut turns, GREEDY, 1..4), [1]);
    turns.leave(Ticket(1));
    assert_eq!(started(&mut turns), [2]);
    assert_eq!(arrive(&mut turns, GREEDY, [1]), NONE);
    turns.leave(Ticket(2));
    assert_eq!(started(&mut turns), [1]);
}

#[test]
fn administrators_have_slots_when_all_others_are_taken() {
    let mut turns = Turns::new(LIMITS);
    arrive(&mut turns, GREEDY, 0..200);
    arrive(&mut turns, UserId(2), 200..250);
    assert_eq!(turns.running(), 8);
    let mut arrive_reserved = |statement| {
        turns.arrive(Ticket(statement), UserId(3), true);
        started(&mut turns)
    };
    assert_eq!(arrive_reserved(300), [300]);
    assert_eq!(arrive_reserved(301), [301]);
    assert_eq!(arrive_reserved(302), NONE);
    assert_eq!(turns.running(), 10);
    turns.leave(Ticket(300));
    assert_eq!(started(&mut turns), [302]);
    turns.leave(Ticket(301));
    assert_eq!(started(&mut turns), NONE, "nobody else gets a reserved slot");
}

#[test]
fn only_so_many_statements_wait() {
    let mut turns = Turns::new(LIMITS);
    arrive(&mut turns, GREEDY, 0..255);
    assert!(turns.has_room(GREEDY));
    arrive(&mut turns, GREEDY, [255]);
    assert!(!turns.has_room(GREEDY) && turns.has_room(UserId(2)));
    arrive(&mut turns, UserId(2), 256..308);
    assert_eq!(turns.waiting(), 300);
    assert!(!turns.has_room(UserId(3)));
}

/// Four users always have 50 statements waiting, and a fifth runs one after the other.
#[test]
fn slots_are_shared_max_min_fairly() {
    const MODEST: UserId = UserId(5);
    for seed in 1..=3 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut turns = Turns::new(LIMITS);
        let mut last = 0;
        let mut add = |turns: &mut Turns, user| {
            last += 1;
            turns.arrive(Ticket(last), user, false);
        };
        let mut starts = HashMap::<UserId, u32>::new();
        for step in 0..10_000 {
            for user in 1..=4 {
                while turns.of_user(UserId(user)).1 < 50 {
                    add(&mut turns, UserId(user));
                }
            }
            if turns.of_user(MODEST) == (0, 0) {
                add(&mut turns, MODEST);
            }
            for statement in started(&mut turns) {
                *starts.entry(turns.statements[&Ticket(statement)].user).or_default() += 1;
            }
            if step > 100 {
                let running = (1..=4).map(|user| turns.of_user(UserId(user)).0);
                assert!(running.clone().all(|running| running == 1 || running == 2), "seed {seed}");
                assert_eq!(running.sum::<usize>() + turns.of_user(MODEST).0, 8, "seed {seed}");
                assert_eq!(turns.of_user(MODEST).0, 1, "the next slot was for the one without any");
            }
            let runs = turns.statements.iter().filter(|(_, known)| known.place == Place::Slot);
            let mut runs: Vec<_> = runs.map(|(statement, _)| *statement).collect();
            runs.sort();
            turns.leave(runs[random.random_range(0..runs.len())]);
        }
        let of_greedy = (1..=4).map(|user| starts[&UserId(user)]);
        let (least, most) = (of_greedy.clone().min().unwrap(), of_greedy.max().unwrap());
        assert!(least * 5 > most * 4, "seed {seed}: {starts:?}");
    }
}

#[derive(Clone, Debug)]
enum Call {
    Arrive { user: u64, is_administrator: bool },
    Leave(prop::sample::Index),
    ArriveAgain(prop::sample::Index),
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        3 => (1..6_u64, prop::bool::weighted(0.1))
            .prop_map(|(user, is_administrator)| Call::Arrive { user, is_administrator }),
        2 => any::<prop::sample::Index>().prop_map(Call::Leave),
        1 => any::<prop::sample::Index>().prop_map(Call::ArriveAgain),
    ]
}

/// Checks the counts, and that nobody waits who may run.
fn check(turns: &Turns) {
    let count = |place| turns.statements.values().filter(|known| known.place == place).count();
    assert_eq!(turns.running, count(Place::Slot));
    assert_eq!(turns.reserved, count(Place::ReservedSlot));
    assert_eq!(turns.waiting, count(Place::Queue));
    assert!(turns.running <= LIMITS.running_max && turns.reserved <= RESERVED_SLOTS);
    for (id, user) in &turns.users {
        let of_user = |place| {
            let known = turns.statements.values();
            known.filter(|known| known.user == *id && known.place == place).count()
        };
        assert_eq!((user.running, user.waiting.len()), (of_user(Place::Slot), of_user(Place::Queue)));
        assert!(user.running + user.waiting.len() > 0, "a user without statements is forgotten");
        assert!(user.running <= LIMITS.running_per_user_max);
        if turns.running < LIMITS.running_max {
            assert!(user.waiting.is_empty() || user.running == LIMITS.running_per_user_max);
        }
    }
    assert!(turns.privileged.is_empty() || turns.reserved == RESERVED_SLOTS);
    let ranks = turns.users.iter().filter_map(|(id, user)| user.rank(*id, LIMITS.running_per_user_max));
    assert_eq!(turns.ranks, ranks.collect::<BTreeSet<_>>());
}

proptest! {
    #[test]
    fn whatever_comes_and_goes_the_limits_hold(calls in prop::collection::vec(call(), 1..200)) {
        let mut turns = Turns::new(LIMITS);
        let mut statements: Vec<(u64, u64, bool)> = Vec::new();
        for call in calls {
            match call {
                Call::Arrive { user, is_administrator } => {
                    let statement = statements.len() as u64;
                    statements.push((statement, user, is_administrator));
                    turns.arrive(Ticket(statement), UserId(user), is_administrator);
                }
                Call::Leave(which) if !statements.is_empty() => {
                    turns.leave(Ticket(which.get(&statements).0));
                }
                Call::ArriveAgain(which) if !statements.is_empty() => {
                    let (statement, user, is_administrator) = *which.get(&statements);
                    turns.arrive(Ticket(statement), UserId(user), is_administrator);
                }
                Call::Leave(_) | Call::ArriveAgain(_) => {}
            }
            started(&mut turns);
            check(&turns);
        }
        for (statement, ..) in statements {
            turns.leave(Ticket(statement));
            started(&mut turns);
        }
        prop_assert!(turns.statements.is_empty() && turns.users.is_empty() && turns.ranks.is_empty());
    }
}
