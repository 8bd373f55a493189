//! Tests that a guarded plan gives the same rows, pauses wherever it can work for long, and stops.

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::physical_plan::{collect, displayable};
use datafusion::prelude::{SessionConfig, SessionContext};

use super::*;
use crate::config::Config;
use crate::error::{Error, SqlState};
use crate::workload::StopReason;

const QUERIES: [&str; 14] = [
    "SELECT count(*), sum(value) FROM generate_series(1, 10000)",
    "SELECT a.value FROM generate_series(1, 100) a JOIN generate_series(1, 50) b
     ON a.value = b.value AND a.value + b.value > 20",
    "SELECT a.value FROM generate_series(1, 100) a WHERE a.value NOT IN (SELECT value FROM generate_series(5, 9))",
    "SELECT count(*) FROM generate_series(1, 100) a JOIN generate_series(1, 100) b ON a.value < b.value",
    "SELECT count(*), min(a.value + b.value) FROM generate_series(1, 100) a CROSS JOIN generate_series(1, 100) b",
    "SELECT value % 7 AS k, count(*), sum(value) FROM generate_series(1, 10000) GROUP BY value % 7",
    "SELECT value, row_number() OVER (PARTITION BY value % 3 ORDER BY value) FROM generate_series(1, 100)",
    "SELECT value, sum(value) OVER () FROM generate_series(1, 100)",
    "SELECT upper(x), x, 7 FROM (VALUES ('a'), ('b')) AS t(x)",
    "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 100) SELECT sum(n) FROM r",
    "SELECT unnest(make_array(value, value + 1)) FROM generate_series(1, 10)",
    "SELECT value FROM generate_series(1, 1000) ORDER BY value % 10, value DESC LIMIT 5",
    "SELECT (SELECT max(value) FROM generate_series(1, 10)) + 1",
    "SELECT value FROM generate_series(1, 5) UNION ALL SELECT -value FROM generate_series(1, 5)",
];

fn context() -> SessionContext {
    SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2).with_batch_size(64))
}

/// Plans a query. A plan is executed once: joins keep the rows of a side.
async fn planned(context: &SessionContext, query: &str) -> Arc<dyn ExecutionPlan> {
    let query = context.sql(query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
    query.create_physical_plan().await.unwrap()
}

fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let mut lines: Vec<String> =
        pretty_format_batches(batches).unwrap().to_string().lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

fn visit(plan: &Arc<dyn ExecutionPlan>, check: &mut dyn FnMut(&Arc<dyn ExecutionPlan>)) {
    check(plan);
    plan.children().into_iter().for_each(|input| visit(input, check));
}

/// Returns the number of nodes that make a filter for others while they run.
fn filter_makers(plan: &Arc<dyn ExecutionPlan>) -> usize {
    let mut count = 0;
    visit(plan, &mut |node| count += usize::from(!node.dynamic_expressions_produced().is_empty()));
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_properties_stay_the_same() {
    let context = context();
    for query in QUERIES {
        let plain = planned(&context, query).await;
        let control = StatementControl::new(&Config::in_memory());
        let guarded = guard_plan(planned(&context, query).await, &control).unwrap();
        assert_eq!(guarded.schema(), plain.schema(), "{query}");
        assert_eq!(filter_makers(&guarded), filter_makers(&plain), "{query}");
        let expected = collect(plain, context.task_ctx()).await.unwrap();
        let found = collect(Arc::clone(&guarded), context.task_ctx()).await;
        let found = found.unwrap_or_else(|error| panic!("{query}: {error}"));
        assert_eq!(lines(&found), lines(&expected), "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_reads_or_works_long_is_below_a_guest() {
    let context = context();
    for query in QUERIES {
        let control = StatementControl::new(&Config::in_memory());
        let guarded = guard_plan(planned(&context, query).await, &control).unwrap();
        let shown = displayable(guarded.as_ref()).indent(false).to_string();
        assert!(guarded.is::<GuestExec>(), "{query}\n{shown}");
        visit(&guarded, &mut |node| {
            let starts_tasks = node.properties().evaluation_type == EvaluationType::Eager;
            for input in node.children() {
                let needs_one = (works_long(input) || starts_tasks) && !input.is::<GuestExec>();
                assert!(!needs_one || node.is::<GuestExec>(), "{query}: {}\n{shown}", input.name());
                assert!(!(node.is::<GuestExec>() && input.is::<GuestExec>()), "{query}\n{shown}");
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_statement_returns_no_rows() {
    let context = context();
    for query in QUERIES {
        let control = StatementControl::new(&Config::in_memory());
        let guarded = guard_plan(planned(&context, query).await, &control).unwrap();
        control.stop(StopReason::ClientGone);
        let error = Error::from(collect(guarded, context.task_ctx()).await.unwrap_err());
        assert_eq!(error.sqlstate(), SqlState::QUERY_CANCELED, "{query}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_filter_of_a_join_is_checked() {
    let context = context();
    let filtered = |query: &'static str| {
        let context = &context;
        async move {
            let control = StatementControl::new(&Config::in_memory());
            let guarded = guard_plan(planned(context, query).await, &control).unwrap();
            let mut checked = 0;
            visit(&guarded, &mut |node| {
                let hash = node.downcast_ref::<HashJoinExec>().and_then(HashJoinExec::filter);
                let nested = node.downcast_ref::<NestedLoopJoinExec>().and_then(NestedLoopJoinExec::filter);
                checked +=
                    hash.or(nested).map_or(0, |filter| usize::from(filter.expression().is::<CheckedExpr>()));
            });
            checked
        }
    };
    assert_eq!(filtered(QUERIES[1]).await, 1);
    assert_eq!(filtered(QUERIES[3]).await, 1);
    assert_eq!(filtered(QUERIES[0]).await, 0);
}
