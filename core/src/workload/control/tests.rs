//! Tests of the controls of statements.

use std::sync::atomic::AtomicUsize;

use super::*;

fn control(step_cpu_ms_max: u64) -> Arc<StatementControl> {
    StatementControl::new(&Config { step_cpu_ms_max, ..Config::in_memory() })
}

#[tokio::test]
async fn the_first_reason_is_told_to_all() {
    let control = control(0);
    control.check().unwrap();
    control.stop(StopReason::SnapshotAge);
    control.stop(StopReason::ClientGone);
    control.stopped().await;
    control.stopped_owned().await;
    assert_eq!(control.reason(), Some(StopReason::SnapshotAge));
    assert_eq!(control.check().unwrap_err().sqlstate(), SqlState::LIMIT_EXCEEDED);
    assert_eq!(control.end_name(), StopReason::SnapshotAge.name());
}

#[test]
fn every_reason_is_kept_and_has_its_error() {
    for reason in StopReason::ALL {
        let control = control(0);
        control.stop(reason);
        assert_eq!(control.reason(), Some(reason));
        assert_eq!(control.state(), StatementState::Ending);
        let expected = match reason {
            StopReason::SnapshotAge => "53400",
            StopReason::StepTooLong => "54000",
            StopReason::LoggedOut => "28000",
            StopReason::SessionKilled | StopReason::ShuttingDown => "57P01",
            StopReason::SessionIdle => "57P05",
            StopReason::ClientGone
            | StopReason::Cancelled
            | StopReason::HandleClosed
            | StopReason::SessionClosed
            | StopReason::QueryKilled
            | StopReason::Timeout => "57014",
        };
        assert_eq!(control.check().unwrap_err().sqlstate().0, expected, "{reason:?}");
    }
}

#[test]
fn every_state_is_kept() {
    for state in StatementState::ALL {
        let control = control(0);
        control.set_state(state);
        assert_eq!(control.state(), state);
    }
    let control = control(0);
    control.set_state(StatementState::GivenUp);
    control.stop(StopReason::StepTooLong);
    assert_eq!(control.state(), StatementState::GivenUp);
}

#[test]
fn the_time_in_the_queue_counts_once_per_wait() {
    let control = control(0);
    control.set_state(StatementState::Queued);
    let began = control.elapsed();
    while control.elapsed() < began + Duration::from_millis(2) {
        std::hint::spin_loop();
    }
    control.set_state(StatementState::Running);
    let waited = control.queued_time();
    assert!(waited >= Duration::from_millis(2));
    control.set_state(StatementState::WaitingForClient);
    assert_eq!(control.queued_time(), waited);
}

#[test]
fn a_statement_ends_once_and_is_not_stopped_afterwards() {
    let ends = Arc::new(AtomicUsize::new(0));
    let (config, session) = (Config::in_memory(), SessionInfo::for_test());
    let counted = Arc::clone(&ends);
    let on_end: OnEnd = Arc::new(move |_: &StatementControl| {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let principal = Principal { user_id: session.user(), username: Arc::from("ann"), role: Role::User };
    let begin = || {
        let parts = StatementParts {
            session: &session,
            principal: &principal,
            auth_generation: Some(1),
            kind: "SELECT",
            text: Some(Arc::from("SELECT 1")),
            timeout: None,
            memory: crate::workload::memory::Memory::new(&config).statement(session.user()),
        };
        StatementControl::begin(QueryId(1), Limits::new(&config), 0, parts, Some(Arc::clone(&on_end)))
    };
    let control = begin();
    assert!(!control.may_use_reserved());
    assert_eq!(session.statements(), 1);
    control.end(StatementEnd::Failed);
    control.end(StatementEnd::Completed);
    control.stop(StopReason::QueryKilled);
    control.check().unwrap();
    assert_eq!((control.end_name(), session.statements()), ("failed", 0));
    drop(control);
    assert_eq!(ends.load(Ordering::SeqCst), 1);
    drop(begin());
    assert_eq!((ends.load(Ordering::SeqCst), session.statements()), (2, 0));
}

#[cfg(unix)]
#[test]
fn a_step_may_take_only_so_much_processor_time() {
    let (limited, unlimited) = (control(5), control(0));
    limited.check().unwrap();
    let step = Step::begin().unwrap();
    let mut sum = 0_u64;
    while step.cpu() < Duration::from_millis(10) || step.elapsed() < Duration::from_millis(10) {
        sum = std::hint::black_box(sum + 1);
    }
    unlimited.check().unwrap();
    assert_eq!(limited.check().unwrap_err().sqlstate(), SqlState::PROGRAM_LIMIT_EXCEEDED);
    assert_eq!(limited.reason(), Some(StopReason::StepTooLong));
    Step::end();
}
