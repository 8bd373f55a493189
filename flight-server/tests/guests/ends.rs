//! What ends a statement, apart from a client that vanishes.

use std::time::Duration;

use arrow::array::RecordBatch;
use futures::TryStreamExt;

use crate::fixture::{Fixture, GUEST};
use crate::process::until_idle;
use crate::promises::Promise;
use crate::report::Report;
use crate::turn;

/// How long a statement may work after its end.
const END_MAX: Duration = Duration::from_secs(1);

/// A JDBC driver whose query times out does not reset the stream: it closes the handle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_handle_ends_its_query() {
    let _turn = turn().await;
    let mut report = Report::new("ends");
    let fixture = Fixture::start(&[]).await;
    let mut guest = fixture.user(GUEST).await;
    let sql = "SELECT count(*) AS n FROM generate_series(1, 1000000000000)";
    let mut prepared = guest.prepare(sql.to_owned(), None).await.expect("prepare");
    let info = prepared.execute().await.expect("execute");
    let ticket = info.endpoint.into_iter().find_map(|endpoint| endpoint.ticket).expect("a ticket");
    let reading = tokio::spawn(async move {
        let rows = guest.do_get(ticket).await?;
        rows.try_collect::<Vec<RecordBatch>>().await
    });
    let busy = until_idle(fixture.pid(), Duration::from_millis(500)).await.is_none();
    report.check(Promise::Alive, busy && !reading.is_finished(), "the query runs");
    prepared.close().await.expect("close the handle");
    let end = until_idle(fixture.pid(), END_MAX).await;
    let said = format!("work after the handle was closed: {end:?}, at most {END_MAX:?}");
    report.check(Promise::HandlesEndQueries, end.is_some_and(|end| end <= END_MAX), said);
    reading.abort();
    let left = until_idle(fixture.pid(), END_MAX).await;
    report.check(Promise::ScansEnd, left.is_some(), format!("work after the client: {left:?}"));
    fixture.stop(&mut report).await;
    report.finish();
}
