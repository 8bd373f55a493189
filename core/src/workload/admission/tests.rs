//! Tests of the wait for a slot: who is refused, who is told to stop, and where a slot goes.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::poll;

use super::*;
use crate::access::{Principal, Role};
use crate::clock::ManualClock;
use crate::ids::{QueryId, UserId};
use crate::workload::control::{Limits, StatementParts};
use crate::workload::memory::Memory;
use crate::workload::reason::StopReason;
use crate::workload::sessions::{SessionOrigin, Sessions};

fn control_of(user: u64, role: Role) -> Arc<StatementControl> {
    let config = Config::in_memory();
    let username = Arc::from(format!("user-{user}"));
    let principal = Principal { user_id: UserId(user), username, role };
    let sessions = Sessions::new(Arc::new(ManualClock::new(0)));
    let session = sessions.open(&principal, SessionOrigin::default(), "public");
    let parts = StatementParts {
        session: &session,
        principal: &principal,
        auth_generation: None,
        kind: "SELECT",
        text: None,
        timeout: None,
        memory: Memory::new(&config).statement(UserId(user)),
    };
    StatementControl::begin(QueryId(0), Limits::new(&config), 0, parts, None)
}

fn control(user: u64) -> Arc<StatementControl> {
    control_of(user, Role::User)
}

fn admission(statements_running_max: usize) -> Arc<Admission> {
    Admission::new(&Config { statements_running_max, statement_queue_timeout_ms: 0, ..Config::in_memory() })
}

/// Returns a new statement of a user that asks for a slot when it is polled.
fn enter(admission: &Arc<Admission>, control: &Arc<StatementControl>) -> BoxFuture<'static, Result<Slot>> {
    let (admission, control) = (Arc::clone(admission), Arc::clone(control));
    async move { admission.enter(&control).await }.boxed()
}

fn counted(admission: &Admission) -> (usize, usize) {
    let AdmissionCounters { running, waiting } = admission.counters();
    (running, waiting)
}

#[tokio::test]
async fn one_user_keeps_nobody_out() {
    let admission = admission(4);
    let (greedy, other, administrator) = (control(1), control(2), control_of(3, Role::Dba));
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(admission.enter(&greedy).await.unwrap());
    }
    let mut waits = enter(&admission, &greedy);
    assert!(poll!(&mut waits).is_pending());
    assert_eq!(greedy.state(), StatementState::Queued);
    held.push(admission.enter(&other).now_or_never().expect("a free slot").unwrap());
    held.push(admission.enter(&administrator).now_or_never().expect("a reserved slot").unwrap());
    assert_eq!(counted(&admission), (5, 1));
    held.remove(0);
    held.push(waits.await.unwrap());
    assert_ne!(greedy.state(), StatementState::Queued);
    assert_eq!(counted(&admission), (5, 0));
    drop(held);
    assert_eq!(counted(&admission), (0, 0));
}

#[tokio::test]
async fn who_waits_too_long_learns_how_long_and_for_whom() {
    let admission = Admission::new(&Config {
        statements_running_max: 3,
        statement_queue_timeout_ms: 20,
        ..Config::in_memory()
    });
    let (greedy, other) = (control(1), control(2));
    let [_first, _second] = [(); 2].map(|()| admission.enter(&greedy).now_or_never().unwrap().unwrap());
    let _third = admission.enter(&other).await.unwrap();
    let error = admission.enter(&greedy).await.unwrap_err();
    assert_eq!(error.sqlstate(), SqlState::TOO_MANY);
    let (waited, runs) = error.message().split_once("; ").unwrap();
    assert!(waited.starts_with("the statement waited ") && waited.ends_with(" s"), "{error}");
    assert_eq!(runs, "2 statements of user \"user-1\" and 3 in all were running");
    assert!(error.hint_text().is_some_and(|hint| hint.contains("statements_running_max")), "{error}");
    assert_eq!(counted(&admission), (3, 0));
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let admission = Admission::new(&Config {
        statements_running_max: 1,
        statements_queued_max: 3,
        statements_queued_per_user_max: 2,
        ..Config::in_memory()
    });
    let _runs = admission.enter(&control(1)).await.unwrap();
    let mut waiting: Vec<_> = [1, 1, 2].map(|user| enter(&admission, &control(user))).into();
    for waits in &mut waiting {
        assert!(poll!(waits).is_pending());
    }
    for (user, message) in
        [(1, "2 statements of user \"user-1\" wait for their turn"), (3, "3 statements wait for their turn")]
    {
        let refused = admission.enter(&control(user)).now_or_never().expect("no wait").unwrap_err();
        assert_eq!((refused.sqlstate(), refused.message()), (SqlState::TOO_MANY, message));
    }
    assert_eq!(counted(&admission), (1, 3));
}

#[tokio::test]
async fn a_statement_that_must_stop_does_not_wait() {
    let (admission, control) = (admission(1), control(1));
    let mut held = admission.enter(&control).await.unwrap();
    let waits = control_of(1, Role::User);
    let mut waiting = enter(&admission, &waits);
    assert!(poll!(&mut waiting).is_pending());
    waits.stop(StopReason::QueryKilled);
    assert_eq!(waiting.await.unwrap_err().sqlstate(), SqlState::QUERY_CANCELED);
    assert_eq!(counted(&admission), (1, 0));

    held.give_back();
    let _other = admission.enter(&waits).await.unwrap();
    control.stop(StopReason::ShuttingDown);
    assert_eq!(held.take_back().await.unwrap_err().sqlstate(), SqlState::SHUTTING_DOWN);
    drop(held);
    assert_eq!(counted(&admission), (1, 0));
}

#[tokio::test]
async fn a_slot_that_the_next_does_not_want_goes_to_the_one_after() {
    let (admission, control) = (admission(1), control(1));
    let runs = admission.enter(&control).await.unwrap();
    let [mut first, mut second] = [(); 2].map(|()| enter(&admission, &control));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    drop(runs);
    drop(first);
    assert!(poll!(&mut second).is_ready());
}

#[tokio::test]
async fn who_has_given_a_slot_back_goes_before_the_later_ones() {
    let (admission, control) = (admission(1), control(1));
    let mut early = admission.enter(&control).await.unwrap();
    let [mut second, mut third] = [(); 2].map(|()| enter(&admission, &control));
    assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
    early.give_back();
    early.give_back();
    let second = second.await.unwrap();
    {
        let mut back = early.take_back().boxed();
        assert!(poll!(&mut back).is_pending() && poll!(&mut third).is_pending());
        drop(second);
        back.await.unwrap();
    }
    early.take_back().await.unwrap();
    assert!(poll!(&mut third).is_pending());
    assert_eq!(counted(&admission), (1, 1));
    drop(early);
    assert!(poll!(&mut third).is_ready());
}

#[tokio::test]
async fn the_slot_of_a_statement_that_is_given_up_is_free_at_once() {
    let (admission, stuck, next) = (admission(1), control(1), control(1));
    let slot = admission.enter(&stuck).await.unwrap();
    let waits = enter(&admission, &next);
    let waits = tokio::spawn(waits);
    admission.give_up(&stuck);
    let _runs = waits.await.unwrap().unwrap();
    // Its step has ended after all.
    drop(slot);
    assert_eq!(counted(&admission), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_the_same_time_no_more_run_than_may() {
    let admission = Admission::new(&Config {
        statements_running_max: 4,
        statements_running_per_user_max: 2,
        ..Config::in_memory()
    });
    let running: Arc<([AtomicUsize; 3], AtomicUsize)> = Arc::default();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..300_u64 {
        let (admission, running) = (Arc::clone(&admission), Arc::clone(&running));
        tasks.spawn(async move {
            let user = number % 3;
            let (of_users, in_all) = &*running;
            let of_user = &of_users[usize::try_from(user).unwrap()];
            let mut slot = admission.enter(&control(user)).await.unwrap();
            for _ in 0..3 {
                assert!(of_user.fetch_add(1, Ordering::SeqCst) < 2);
                assert!(in_all.fetch_add(1, Ordering::SeqCst) < 4);
                tokio::task::yield_now().await;
                of_user.fetch_sub(1, Ordering::SeqCst);
                in_all.fetch_sub(1, Ordering::SeqCst);
                slot.give_back();
                slot.take_back().await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(counted(&admission), (0, 0));
}

#[tokio::test]
async fn large_writes_of_one_user_leave_turns_to_others_and_nobody_is_refused() {
    let (large_writes, greedy, other) = (Admission::of_large_writes(), control(1), control(2));
    let mut asked: Vec<_> = (0..BLOCKING_THREADS_MAX).map(|_| enter(&large_writes, &greedy)).collect();
    let mut held = Vec::new();
    for turn in &mut asked {
        held.extend(turn.now_or_never().map(|turn| turn.unwrap()));
    }
    assert_eq!(held.len(), LARGE_WRITES_PER_USER_MAX);
    let _others = large_writes.enter(&other).now_or_never().expect("a turn is free").unwrap();
    assert_eq!(counted(&large_writes), (held.len() + 1, BLOCKING_THREADS_MAX - held.len()));
}
