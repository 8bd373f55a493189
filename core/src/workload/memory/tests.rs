//! Tests of memory accounts.

use proptest::prelude::*;

use super::*;
use crate::error::{ErrorKind, SqlState};

const STATEMENTS: usize = 4;

fn limit(level: Level, bytes_max: usize) -> Limit {
    Limit { level, bytes_max, noun: "memory", setting: "some_bytes" }
}

fn memory(server: usize, user: usize, statement: usize) -> Memory {
    Memory {
        users: UserAccounts::new(limit(Level::Server, server), limit(Level::User, user)),
        of_statement: limit(Level::Statement, statement),
    }
}

/// The user of a statement: two statements have the same.
fn user_of(statement: usize) -> UserId {
    UserId(statement as u64 / 2)
}

#[test]
fn each_level_refuses_in_its_own_name() {
    let memory = memory(100, 60, 40);
    let [ann, again, bob] = [1, 1, 2].map(|user| memory.statement(UserId(user)));
    let mut first = ann.charge(30).unwrap();
    assert_eq!(first.grow(11).unwrap_err().level, Level::Statement);
    first.grow(10).unwrap();
    let second = again.charge(20).unwrap();
    assert_eq!(again.charge(1).unwrap_err().level, Level::User);
    let third = bob.charge(40).unwrap();
    assert_eq!(memory.statement(UserId(3)).charge(1).unwrap_err().level, Level::Server);
    assert_eq!((first.bytes(), ann.used(), memory.users().all().used()), (40, 40, 100));

    first.shrink(15);
    assert_eq!((ann.used(), ann.peak(), memory.users().user(UserId(1)).used()), (25, 40, 45));
    drop((first, second, third));
    assert_eq!(memory.users().all().used(), 0);

    let error = Error::from(ann.charge(41).unwrap_err());
    assert_eq!((error.kind(), error.sqlstate()), (ErrorKind::ResourceExhausted, SqlState::OUT_OF_MEMORY));
    assert_eq!(error.message(), "the statement has reached its limit of 40 bytes of memory (some_bytes)");
}

#[test]
fn a_user_has_one_account_as_long_as_it_is_used() {
    let memory = memory(1_000, 1_000, 1_000);
    let held = memory.users().user(UserId(1)).charge(7).unwrap();
    for user in 2..1_000 {
        drop(memory.users().user(UserId(user)));
    }
    assert_eq!(memory.users().user(UserId(1)).used(), 7);
    assert!(memory.users.users.lock().accounts.len() <= USERS_MIN);
    drop(held);
    assert_eq!(memory.users().user(UserId(1)).used(), 0);
}

#[test]
fn held_bytes_count_beyond_the_limit() {
    let memory = memory(100, 100, 10);
    let statement = memory.statement(UserId(1));
    statement.take_held(30);
    assert_eq!((statement.used(), memory.users().all().used()), (30, 30));
    assert!(statement.charge(1).is_err());
    statement.give_back(30);
    assert_eq!((statement.used(), statement.peak()), (0, 30));
}

#[test]
fn limits_come_from_the_settings_or_from_the_machine() {
    let check = |config: &Config, machine: Option<u64>, expected: [usize; 3]| {
        assert_eq!(limits(config, machine).map(|limit| limit.bytes_max), expected);
    };
    let config = Config::in_memory();
    check(&config, None, [1 << 30, 1 << 29, 1 << 29]);
    check(&config, Some(64 << 30), [1 << 30, 1 << 29, 1 << 29]);
    check(&config, Some(1 << 30), [256 << 20, 128 << 20, 128 << 20]);
    let config = Config { query_memory_bytes: 1_000, ..config };
    check(&config, Some(1 << 30), [1_000, 500, 500]);
    let config = Config { user_memory_bytes: 900, statement_memory_bytes: 30, ..config };
    check(&config, None, [1_000, 900, 30]);
}

#[test]
fn threads_that_charge_and_give_back_leave_nothing() {
    let memory = memory(1_000, 600, 400);
    let statements = [0, 1, 2, 3].map(|statement| memory.statement(user_of(statement)));
    std::thread::scope(|scope| {
        for statement in &statements {
            scope.spawn(move || {
                for bytes in 0..2_000 {
                    let charge = statement.charge(bytes % 450);
                    assert!(charge.is_ok() || charge.is_err_and(|limit| limit.bytes_max >= 400));
                }
            });
        }
    });
    assert!(statements.iter().all(|statement| statement.used() == 0));
    assert_eq!(memory.users().all().used(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Charge { statement: usize, bytes: usize },
    Grow { charge: usize, bytes: usize },
    Shrink { charge: usize, bytes: usize },
    Drop { charge: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = || prop_oneof![8 => 0_usize..300, 1 => Just(usize::MAX)];
    prop_oneof![
        (0..STATEMENTS, bytes()).prop_map(|(statement, bytes)| Step::Charge { statement, bytes }),
        (any::<usize>(), bytes()).prop_map(|(charge, bytes)| Step::Grow { charge, bytes }),
        (any::<usize>(), bytes()).prop_map(|(charge, bytes)| Step::Shrink { charge, bytes }),
        any::<usize>().prop_map(|charge| Step::Drop { charge }),
    ]
}

/// The bytes of the live charges of some statements.
fn sum(live: &[(usize, Charge)], of: impl Fn(usize) -> bool) -> usize {
    live.iter().filter(|(statement, _)| of(*statement)).map(|(_, charge)| charge.bytes()).sum()
}

/// The level that must refuse so many more bytes of a statement.
fn refusal(live: &[(usize, Charge)], statement: usize, bytes: usize) -> Option<Level> {
    let exceeds = |held: usize, max: usize| held.checked_add(bytes).is_none_or(|all| all > max);
    let user = user_of(statement);
    if exceeds(sum(live, |other| other == statement), 400) {
        Some(Level::Statement)
    } else if exceeds(sum(live, |other| user_of(other) == user), 600) {
        Some(Level::User)
    } else if exceeds(sum(live, |_| true), 1_000) {
        Some(Level::Server)
    } else {
        None
    }
}

proptest! {
    #[test]
    fn accounts_hold_the_sum_of_the_live_charges(steps in prop::collection::vec(step(), 1..200)) {
        let memory = memory(1_000, 600, 400);
        let statements = [0, 1, 2, 3].map(|statement| memory.statement(user_of(statement)));
        let mut live: Vec<(usize, Charge)> = Vec::new();
        for step in steps {
            let count = live.len();
            match step {
                Step::Charge { statement, bytes } => {
                    let expected = refusal(&live, statement, bytes);
                    match statements[statement].charge(bytes) {
                        Ok(charge) => {
                            prop_assert_eq!(expected, None);
                            live.push((statement, charge));
                        }
                        Err(limit) => prop_assert_eq!(expected, Some(limit.level)),
                    }
                }
                Step::Grow { charge, bytes } if count > 0 => {
                    let expected = refusal(&live, live[charge % count].0, bytes);
                    let grown = live[charge % count].1.grow(bytes);
                    prop_assert_eq!(expected, grown.err().map(|limit| limit.level));
                }
                Step::Shrink { charge, bytes } if count > 0 => live[charge % count].1.shrink(bytes),
                Step::Drop { charge } if count > 0 => drop(live.swap_remove(charge % count)),
                _ => {}
            }
            for (statement, account) in statements.iter().enumerate() {
                prop_assert_eq!(account.used(), sum(&live, |other| other == statement));
                prop_assert!(account.peak() >= account.used() && account.peak() <= 400);
                let user = user_of(statement);
                let of_user = sum(&live, |other| user_of(other) == user);
                prop_assert_eq!(memory.users().user(user).used(), of_user);
            }
            prop_assert_eq!(memory.users().all().used(), sum(&live, |_| true));
        }
    }
}
