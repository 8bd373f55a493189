//! Tests of the list of running statements.

use super::*;
use crate::access::{Principal, Role};
use crate::clock::ManualClock;
use crate::error::SqlState;
use crate::workload::control::{StatementEnd, StatementState};
use crate::workload::memory::Memory;
use crate::workload::sessions::{SessionEnd, SessionInfo, SessionOrigin, Sessions};

struct Fixture {
    statements: Statements,
    sessions: Sessions,
    memory: Memory,
}

impl Fixture {
    fn new() -> Self {
        let config = Config::in_memory();
        let clock = Arc::new(ManualClock::new(1_000));
        Self {
            statements: Statements::new(&config, Arc::clone(&clock) as _),
            sessions: Sessions::new(clock),
            memory: Memory::new(&config),
        }
    }

    fn session(&self, user: u64) -> Arc<SessionInfo> {
        self.sessions.open(&principal(user), SessionOrigin::default(), "public")
    }

    fn begin(&self, session: &Arc<SessionInfo>, call: Option<&Call>) -> Result<Arc<StatementControl>> {
        self.begin_with(session, call, None)
    }

    fn begin_with(
        &self,
        session: &Arc<SessionInfo>,
        call: Option<&Call>,
        timeout: Option<Duration>,
    ) -> Result<Arc<StatementControl>> {
        let parts = StatementParts {
            session,
            principal: &principal(session.user().0),
            auth_generation: Some(3),
            kind: "SELECT",
            text: Some(Arc::from("SELECT 1")),
            timeout,
            memory: self.memory.statement(session.user()),
        };
        self.statements.begin(parts, call)
    }

    fn listed(&self) -> Vec<QueryId> {
        self.statements.list().iter().map(|control| control.id()).collect()
    }
}

fn principal(user: u64) -> Principal {
    Principal { user_id: UserId(user), username: Arc::from("ann"), role: Role::User }
}

#[tokio::test]
async fn a_statement_that_had_to_stop_and_failed_is_listed_until_nothing_works_for_it() {
    let fixture = Fixture::new();
    let session = fixture.session(7);
    let [stopped, failed, completed] = [(); 3].map(|()| fixture.begin(&session, None).unwrap());
    for control in [&stopped, &completed] {
        control.stop(StopReason::QueryKilled);
    }
    for control in [&stopped, &failed] {
        control.end(StatementEnd::Failed);
    }
    completed.end(StatementEnd::Completed);
    assert_eq!(fixture.listed(), [stopped.id()]);
    drop(stopped);
    assert!(fixture.listed().is_empty());
}

#[tokio::test]
async fn a_statement_is_listed_until_nothing_works_for_it_or_it_is_over() {
    let fixture = Fixture::new();
    let session = fixture.session(7);
    let [first, second] = [(); 2].map(|()| fixture.begin(&session, None).unwrap());
    assert_eq!((first.started_at(), first.state()), (1_000, StatementState::Planning));
    assert_eq!(fixture.listed(), [first.id(), second.id()]);
    let id = first.id();
    let works = Arc::clone(&first);
    drop(first);
    assert!(fixture.statements.get(id).is_some());
    drop(works);
    assert!(fixture.statements.get(id).is_none());
    second.end(StatementEnd::Completed);
    assert!(fixture.listed().is_empty());
    drop(fixture.statements.unlisted(StatementParts {
        session: &session,
        principal: &principal(7),
        auth_generation: None,
        kind: "",
        text: None,
        timeout: None,
        memory: fixture.memory.statement(session.user()),
    }));
    assert_eq!(session.statements(), 0);
}

#[tokio::test]
async fn what_ends_many_misses_none_and_spares_the_others() {
    let fixture = Fixture::new();
    let (one, two) = (fixture.session(7), fixture.session(8));
    let [a, b, c] = [&one, &one, &two].map(|session| fixture.begin(session, None).unwrap());
    one.end(SessionEnd::Killed);
    fixture.statements.stop_session(one.id(), StopReason::SessionKilled);
    assert_eq!([&a, &b].map(|control| control.reason()), [Some(StopReason::SessionKilled); 2]);
    assert_eq!(c.reason(), None);
    assert_eq!(fixture.begin(&one, None).unwrap_err().sqlstate(), SqlState::SHUTTING_DOWN);

    fixture.statements.stop_logged_out(|user| (user == UserId(8)).then_some(3));
    assert_eq!(c.reason(), None);
    fixture.statements.stop_logged_out(|_| Some(4));
    assert_eq!(c.reason(), Some(StopReason::LoggedOut));

    let call = Call::default();
    call.end(StopReason::Cancelled);
    let refused = fixture.begin(&two, Some(&call)).unwrap_err();
    assert_eq!(refused.sqlstate(), SqlState::QUERY_CANCELED);

    let last = fixture.begin(&two, None).unwrap();
    fixture.statements.close();
    assert_eq!(last.reason(), Some(StopReason::ShuttingDown));
    assert_eq!(fixture.begin(&two, None).unwrap_err().sqlstate(), SqlState::SHUTTING_DOWN);
    drop((a, b, c, last));
    assert!(fixture.listed().is_empty(), "also what was refused");
}

#[tokio::test]
async fn a_statement_is_stopped_in_time_unless_it_is_over() {
    let fixture = Fixture::new();
    let session = fixture.session(7);
    let timeout = Duration::from_millis(50);
    let [slow, quick] = [(); 2].map(|()| fixture.begin_with(&session, None, Some(timeout)).unwrap());
    quick.end(StatementEnd::Completed);
    slow.check().unwrap();
    slow.stopped().await;
    assert!(slow.elapsed() >= timeout);
    assert_eq!(slow.reason(), Some(StopReason::Timeout));
    assert!(slow.error().message().contains("50 ms"), "{}", slow.error());
    assert_eq!(quick.reason(), None);
}

#[tokio::test]
async fn lists_show_the_beginning_of_a_text_and_no_password() {
    let fixture = Fixture::new();
    let session = fixture.session(7);
    let with_text = |text: Option<&str>| {
        let parts = StatementParts {
            session: &session,
            principal: &principal(7),
            auth_generation: None,
            kind: "SELECT",
            text: text.map(Arc::from),
            timeout: None,
            memory: fixture.memory.statement(session.user()),
        };
        fixture.statements.begin(parts, None).unwrap()
    };
    assert_eq!(shown_text(&with_text(None)), HIDDEN);
    assert_eq!(shown_text(&with_text(Some("SELECT 1"))), "SELECT 1");
    let long = "é".repeat(SHOWN_BYTES_MAX);
    assert_eq!(shown_text(&with_text(Some(&long))).len(), SHOWN_BYTES_MAX);
    assert_eq!(shown_text(&with_text(Some(&format!("x{long}")))).len(), SHOWN_BYTES_MAX - 1);
    assert_eq!(fingerprint("SELECT 1").len(), 16);
    assert_ne!(fingerprint("SELECT 1"), fingerprint("SELECT 2"));
}
