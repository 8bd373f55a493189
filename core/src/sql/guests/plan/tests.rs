//! Tests that a guarded plan gives the same rows, pauses wherever it can work for long, and stops.

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::physical_plan::joins::NestedLoopJoinExec;
use datafusion::physical_plan::{collect, displayable};
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};

use super::*;
use crate::config::Config;
use crate::error::{Error, SqlState};
use crate::workload::StopReason;

const QUERIES: [&str; 20] = [
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
    "SELECT a.value, b.value FROM generate_series(1, 100) a LEFT JOIN generate_series(1, 50) b
     ON a.value = b.value AND a.value + b.value > 20",
    "SELECT a.value FROM generate_series(1, 100) a WHERE EXISTS
     (SELECT 1 FROM generate_series(5, 9) b WHERE a.value = b.value AND a.value + b.value > 12)",
    "SELECT a.value FROM generate_series(1, 100) a WHERE NOT EXISTS
     (SELECT 1 FROM generate_series(1, 90) b WHERE a.value < b.value)",
    JOIN_IN_RECURSION,
    "SELECT unnest(unnest(make_array(make_array(value, 1), make_array(value)))), value FROM generate_series(1, 200)",
    "SELECT value, sum(value) OVER (ORDER BY value ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING)
     FROM generate_series(1, 100)",
];
const JOIN_IN_RECURSION: &str =
    "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT r.n + 1 FROM r JOIN generate_series(1, 60) b
     ON r.n = b.value AND r.n + b.value > 0 WHERE r.n < 50) SELECT count(*), sum(n) FROM r";

fn context() -> SessionContext {
    SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2).with_batch_size(64))
}

/// Returns a context in which joins collect the side that a query names first.
fn context_in_order() -> SessionContext {
    let config = SessionConfig::new().with_target_partitions(1);
    SessionContext::new_with_config(config.set_bool("datafusion.optimizer.join_reordering", false))
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
            // A guard has the properties of its input, but starts nothing.
            let starts_tasks =
                !node.is::<GuestExec>() && node.properties().evaluation_type == EvaluationType::Eager;
            for input in node.children() {
                let is_long = works_long(input) || LONG.contains(&input.name());
                let is_below_guest = pauses(node) || node.name() == "WindowReleaseExec";
                assert!(!is_long || is_below_guest, "{query}: {}\n{shown}", input.name());
                assert!(!starts_tasks || pauses(input), "{query}: {}\n{shown}", input.name());
                assert!(!(pauses(node) && pauses(input)), "{query}\n{shown}");
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_analyze_shows_the_plain_plan_with_its_metrics() {
    let context = context();
    for query in QUERIES {
        let control = StatementControl::new(&Config::in_memory());
        let analyzed = planned(&context, &format!("EXPLAIN ANALYZE {query}")).await;
        let guarded = guard_plan(analyzed, &control).unwrap();
        let found = collect(guarded, context.task_ctx()).await;
        let found = found.unwrap_or_else(|error| panic!("{query}: {error}"));
        let shown = pretty_format_batches(&found).unwrap().to_string();
        assert!(shown.contains("output_rows="), "{query}\n{shown}");
        for name in ["Guest", "BuildMeter", "ProbeSlice", "UnnestSlice", "WindowCollect", "WindowRelease"] {
            assert!(!shown.contains(&format!("{name}Exec")), "{query}\n{shown}");
        }
    }
}

/// Nodes that work long and always get other guards, too.
const LONG: [&str; 4] = ["NestedLoopJoinExec", "CrossJoinExec", "WindowAggExec", "BoundedWindowAggExec"];

fn pauses(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.name() == "GuestExec"
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

/// Returns the names of the nodes of a plan that also pass rows on, but do not pause.
fn other_guards(plan: &Arc<dyn ExecutionPlan>) -> Vec<String> {
    let mut names = Vec::new();
    visit(plan, &mut |node| {
        let guest = node.downcast_ref::<GuestExec>().filter(|guest| !guest.pauses());
        names.extend(guest.map(|guest| guest.name().to_owned()));
    });
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_could_be_silent_is_measured_and_cut() {
    let context = context_in_order();
    let check = async |query: &str, expected: &[&str]| {
        let control = StatementControl::new(&Config::in_memory());
        let guarded = guard_plan(planned(&context, query).await, &control).unwrap();
        assert_eq!(other_guards(&guarded), expected, "{query}");
    };
    let join = ["BuildMeterExec", "ProbeSliceExec"];
    check(
        "SELECT a.value FROM generate_series(1, 9) a JOIN generate_series(1, 9) b ON a.value = b.value",
        &[],
    )
    .await;
    check(QUERIES[1], &join).await;
    check(QUERIES[3], &join).await;
    check(QUERIES[4], &join).await;
    check("SELECT unnest(make_array(1, 2))", &["UnnestSliceExec"]).await;
    check(QUERIES[6], &["WindowReleaseExec"]).await;
    check(QUERIES[7], &["WindowReleaseExec", "WindowCollectExec"]).await;
    check(JOIN_IN_RECURSION, &join).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_many_rows_cuts_the_probe_side() {
    let context = context_in_order();
    // 40,000 rows have one key, which no row of the other side has.
    let query = "SELECT count(*) FROM
        (SELECT CASE WHEN value <= 40000 THEN 0 ELSE value - 40000 END AS k FROM generate_series(1, 41000)) a
        JOIN generate_series(1, 1000) b ON a.k = b.value AND a.k + b.value > 0";
    let control = StatementControl::new(&Config::in_memory());
    let guarded = guard_plan(planned(&context, query).await, &control).unwrap();
    let found = collect(Arc::clone(&guarded), context.task_ctx()).await.unwrap();
    assert!(pretty_format_batches(&found).unwrap().to_string().contains("| 1000 "));
    let mut batches = Vec::new();
    visit(&guarded, &mut |node| {
        if let Some(join) = node.downcast_ref::<HashJoinExec>() {
            let metrics = join.metrics().unwrap();
            batches.extend(metrics.sum_by_name("input_batches").map(|batches| batches.as_usize()));
        }
    });
    // 16 Mi pairs are 419 rows with 40,000 matches each.
    assert_eq!(batches, [3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_filter_that_a_join_makes_reaches_the_scan() {
    let context = context_in_order();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("facts.parquet");
    let path = path.to_str().unwrap();
    let copy =
        format!("COPY (SELECT value AS k FROM generate_series(1, 1000)) TO '{path}' STORED AS PARQUET");
    context.sql(&copy).await.unwrap().collect().await.unwrap();
    context.register_parquet("facts", path, ParquetReadOptions::default()).await.unwrap();
    let query = "SELECT f.k FROM generate_series(1, 3) a JOIN facts f ON a.value = f.k AND a.value + f.k > 2";
    let control = StatementControl::new(&Config::in_memory());
    let guarded = guard_plan(planned(&context, query).await, &control).unwrap();
    assert_eq!(filter_makers(&guarded), 1);
    let found = collect(Arc::clone(&guarded), context.task_ctx()).await.unwrap();
    assert_eq!(found.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
    let shown = displayable(guarded.as_ref()).indent(true).to_string();
    let scan = shown.lines().find(|line| line.contains("DataSourceExec")).unwrap();
    assert!(scan.contains("DynamicFilter [") && !scan.contains("[ empty ]"), "{shown}");
}
