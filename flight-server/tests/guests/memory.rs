//! What a user may hold in the server's memory.

use std::time::Duration;

use arrow_flight::Action;
use futures::TryStreamExt;

use crate::fixture::{Fixture, GUEST};
use crate::guest::Answer;
use crate::process::{resident, settled};
use crate::promises::Promise;
use crate::report::Report;
use crate::{size, turn};

/// What prepared statements of one user may take.
const PREPARED_BYTES_MAX: u64 = 256 << 20;
const EXPRESSIONS: usize = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_statements_count_by_what_they_hold() {
    let _turn = turn().await;
    let mut report = Report::new("memory");
    let fixture = Fixture::start(&[]).await;
    let pid = fixture.pid();
    let mut guest = fixture.user(GUEST).await;
    let before = resident(pid);
    let (mut refusal, mut prepared) = (None, 0);
    for number in 0..size(800, 2_000) {
        let expressions: Vec<String> =
            (0..EXPRESSIONS).map(|n| format!("id + {} AS c{n}", number + n)).collect();
        let sql = format!("SELECT {} FROM app.notes", expressions.join(", "));
        match guest.prepare(sql, None).await {
            Ok(_) => prepared += 1,
            Err(error) => {
                refusal = Some(Answer::of(&error));
                break;
            }
        }
    }
    let held = resident(pid);
    report.note(format!("{prepared} statements of {EXPRESSIONS} expressions, then {refusal:?}"));
    report.bytes(Promise::MemoryPerUser, "resident memory with them", held, before + PREPARED_BYTES_MAX);
    let refused = refusal.is_none_or(|answer| answer == Answer::Refused("53200".to_owned()));
    report.check(Promise::Alive, refused, "a refusal is 53200");

    let action = Action { r#type: "CloseSession".to_owned(), ..Action::default() };
    let closed = guest.do_action(action).await.expect("close the session");
    closed.try_collect::<Vec<arrow_flight::Result>>().await.expect("the session is closed");
    drop(guest);
    let wanted = before + before / 5;
    let after = settled(pid, wanted, Duration::from_secs(size(5, 60))).await;
    report.bytes(Promise::MemoryPerUser, "resident memory after the session", after, wanted);
    fixture.stop(&mut report).await;
    report.finish();
}
