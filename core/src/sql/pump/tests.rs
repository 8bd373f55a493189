//! Tests of the way from a query to its reader: results, errors, and who is told what when.

use std::time::Duration;

use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array};
use datafusion::arrow::datatypes::Int64Type;
use futures::stream;
use tokio::sync::oneshot;

use super::*;
use crate::config::Config;
use crate::error::{Error, SqlState};
use crate::workload::Admission;

fn batch(number: i64) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from(vec![number]));
    RecordBatch::try_from_iter([("number", column)]).unwrap()
}

fn number(batch: &RecordBatch) -> i64 {
    batch.column(0).as_primitive::<Int64Type>().value(0)
}

fn started(snapshot_age_max_s: u64) -> (Arc<EngineThreads>, Arc<StatementControl>) {
    let config =
        Config { statements_running_max: 1, query_partitions: 1, snapshot_age_max_s, ..Config::in_memory() };
    (EngineThreads::start(&config).unwrap(), StatementControl::new(&config))
}

fn query(
    threads: &Arc<EngineThreads>,
    control: &Arc<StatementControl>,
    batches: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
) -> Query {
    Query::new(threads, control, move || Ok(batches.boxed()))
}

/// Returns batches that stall after the first, and a receiver that learns when they are dropped.
fn stalled() -> (Batches, oneshot::Receiver<()>) {
    let (alive, gone) = oneshot::channel();
    let stall = stream::poll_fn(move |_| {
        let _ = &alive;
        Poll::Pending
    });
    (stream::iter([Ok(batch(1))]).chain(stall).boxed(), gone)
}

#[tokio::test]
async fn results_come_in_order_and_an_error_is_the_last() {
    let (threads, control) = started(600);
    let batches = stream::iter([Ok(batch(1)), Ok(batch(2)), Err(Error::internal("broken")), Ok(batch(3))]);
    // The batch 1 makes one result, the batch 2 makes two.
    let repeat = |batch: RecordBatch| Ok(vec![number(&batch); usize::try_from(number(&batch)).unwrap()]);
    let seen: Vec<_> = query(&threads, &control, batches)
        .start(repeat)
        .map(|item| item.map_err(|error| error.sqlstate()))
        .collect()
        .await;
    assert_eq!(seen, [Ok(1), Ok(2), Ok(2), Err(SqlState::INTERNAL)]);
}

#[tokio::test]
async fn a_batch_without_results_is_skipped() {
    let (threads, control) = started(600);
    let batches = stream::iter((1..=5).map(|number| Ok(batch(number))));
    let odd =
        |batch: RecordBatch| Ok(if number(&batch) % 2 == 1 { vec![number(&batch)] } else { Vec::new() });
    let seen: Vec<i64> =
        query(&threads, &control, batches).start(odd).map(|item| item.unwrap()).collect().await;
    assert_eq!(seen, [1, 3, 5]);
}

#[tokio::test]
async fn an_error_of_the_plan_or_a_panic_reaches_the_reader() {
    let (threads, control) = started(600);
    let refused = Query::new(&threads, &control, || Err(Error::invalid("no")));
    let mut reader = refused.start(|batch| Ok(vec![batch]));
    assert_eq!(reader.next().await.unwrap().unwrap_err().sqlstate(), SqlState::INVALID_PARAMETER_VALUE);
    assert!(reader.next().await.is_none());

    let defect =
        |batch: RecordBatch| Ok(vec![std::hint::black_box(batch.num_rows()).checked_sub(2).unwrap()]);
    let mut reader = query(&threads, &control, stream::iter([Ok(batch(1))])).start(defect);
    assert_eq!(reader.next().await.unwrap().unwrap_err().sqlstate(), SqlState::INTERNAL);
}

#[tokio::test]
async fn a_reader_keeps_the_threads_of_its_query() {
    let (threads, control) = started(600);
    let batches = stream::iter((1..=9).map(|number| Ok(batch(number))));
    let reader = query(&threads, &control, batches).start(|batch| Ok(vec![number(&batch)]));
    drop(threads);
    let seen: Vec<i64> = reader.map(|item| item.unwrap()).collect().await;
    assert_eq!(seen, (1..=9).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_query_without_a_reader_ends() {
    let (threads, control) = started(600);
    let (batches, gone) = stalled();
    let mut reader = query(&threads, &control, batches).start(|batch| Ok(vec![batch]));
    assert_eq!(number(&reader.next().await.unwrap().unwrap()), 1);
    drop(reader);
    assert!(gone.await.is_err(), "the sender was dropped");
    assert_eq!(control.reason(), Some(StopReason::ClientGone));

    let (threads, control) = started(600);
    let (batches, gone) = stalled();
    drop(query(&threads, &control, batches));
    assert!(gone.await.is_err(), "a query that has not begun holds nothing either");
}

#[tokio::test]
async fn a_query_nobody_reads_lets_go_and_says_so_when_somebody_does() {
    for is_begun in [false, true] {
        let (threads, control) = started(0);
        let (batches, gone) = stalled();
        let query = query(&threads, &control, batches);
        if !is_begun {
            assert!(gone.await.is_err(), "the sender was dropped");
            let mut reader = query.start(|batch| Ok(vec![batch]));
            assert_eq!(reader.next().await.unwrap().unwrap_err().sqlstate(), SqlState::LIMIT_EXCEEDED);
            assert!(reader.next().await.is_none());
            continue;
        }
        let reader = query.start(|batch| Ok(vec![batch]));
        assert!(gone.await.is_err(), "the sender was dropped");
        // The first batch may have come in time.
        let last = reader.map(|item| item.map_err(|error| error.sqlstate())).collect::<Vec<_>>().await.pop();
        assert_eq!(last.unwrap().unwrap_err(), SqlState::LIMIT_EXCEEDED);
    }
}

#[tokio::test]
async fn who_waits_for_a_busy_query_is_told() {
    let (threads, control) = started(600);
    let (ends, end) = std::sync::mpsc::channel::<()>();
    let busy = stream::poll_fn(move |_| {
        // A step that never pauses.
        let _ended = end.recv();
        Poll::Ready(None)
    });
    let mut reader = query(&threads, &control, busy).start(|batch| Ok(vec![batch]));
    let waited = tokio::time::timeout(Duration::from_millis(20), reader.next()).await;
    assert!(waited.is_err());
    control.stop(StopReason::SnapshotAge);
    assert_eq!(reader.next().await.unwrap().unwrap_err().sqlstate(), SqlState::LIMIT_EXCEEDED);
    assert!(reader.next().await.is_none());
    drop(ends);
    // Nothing works for it any more, although somebody still has its reader.
    while Arc::strong_count(&control) > 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(reader);
}

#[tokio::test]
async fn while_its_reader_takes_its_time_a_query_lets_others_run() {
    for is_begun in [false, true] {
        let (threads, control) = started(600);
        let admission = Admission::new(&Config { statements_running_max: 1, ..Config::in_memory() });
        let other = StatementControl::new(&Config::in_memory());
        let slot = admission.enter(&control).await.unwrap();
        // Administrators have two slots more.
        let _reserved = [(); 2].map(|()| admission.enter(&other).now_or_never().unwrap().unwrap());
        let endless = stream::repeat_with(|| Ok(batch(7)));
        let mut query = Some(query(&threads, &control, endless).in_slot(slot));
        let mut start = || query.take().unwrap().start(|batch| Ok(vec![batch]));
        let reader = is_begun.then(&mut start);
        let others = admission.enter(&other).await.unwrap();
        let mut reader = reader.unwrap_or_else(start);
        let made_ahead = if is_begun { ITEMS_AHEAD_MAX } else { 0 };
        for _ in 0..made_ahead {
            reader.next().await.unwrap().unwrap();
        }
        while control.state() != StatementState::Queued {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(reader.next().now_or_never().is_none(), "the slot is taken");
        drop(others);
        assert_eq!(number(&reader.next().await.unwrap().unwrap()), 7);
        assert_eq!(control.state(), StatementState::Running);
    }
}
