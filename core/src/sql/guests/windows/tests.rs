//! Tests that windows compute the same with guards, stop with their statement, and are charged to it.

use datafusion::arrow::array::{ArrayRef, Int64Array};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::functions_aggregate::array_agg::array_agg_udaf;
use datafusion::functions_aggregate::median::median_udaf;
use datafusion::logical_expr::expr::WindowFunctionParams;
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::{Accumulator, AggregateUDF, WindowFrame, WindowFrameBound, WindowFrameUnits};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::collect;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::*;
use crate::config::Config;
use crate::error::SqlState;
use crate::sql::guests::plan::guard_plan;
use crate::workload::StopReason;

const QUERIES: [&str; 11] = [
    "SELECT value, sum(value) OVER (ORDER BY value) FROM generate_series(1, 300)",
    "SELECT value, sum(value) OVER (ORDER BY value ROWS BETWEEN 3 PRECEDING AND 1 FOLLOWING)
     FROM generate_series(1, 300)",
    "SELECT value, avg(value) OVER (PARTITION BY value % 7 ORDER BY value DESC) FROM generate_series(1, 300)",
    "SELECT value, array_agg(value) OVER (PARTITION BY value % 7 ORDER BY value) FROM generate_series(1, 300)",
    "SELECT value, median(value) OVER (ORDER BY value) FROM generate_series(1, 300)",
    "SELECT value, count(DISTINCT value % 5) OVER (ORDER BY value), row_number() OVER (ORDER BY value)
     FROM generate_series(1, 300)",
    "SELECT value, max(value) FILTER (WHERE value % 2 = 0) OVER () AS m FROM generate_series(1, 300)",
    "SELECT value, first_value(value) OVER (ORDER BY value ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING),
     count(*) OVER (ORDER BY value) FROM generate_series(1, 300)",
    "SELECT value, lag(value, 2, -1) OVER (ORDER BY value), ntile(7) OVER (ORDER BY value),
     percent_rank() OVER (PARTITION BY value % 7 ORDER BY value) FROM generate_series(1, 300)",
    "SELECT value, last_value(x) IGNORE NULLS OVER (ORDER BY value), nth_value(x, 2) OVER (ORDER BY value)
     FROM (SELECT value, CASE WHEN value % 5 = 0 THEN value END AS x FROM generate_series(1, 300)) t",
    "SELECT (SELECT max(s) FROM (SELECT sum(value) OVER (ORDER BY value) AS s FROM generate_series(1, 9)) w) + 1",
];

fn context(partitions: usize) -> SessionContext {
    let config = SessionConfig::new().with_target_partitions(partitions).with_batch_size(64);
    SessionContext::new_with_config(config)
}

fn control(statement_memory_bytes: usize) -> Arc<StatementControl> {
    StatementControl::new(&Config { statement_memory_bytes, ..Config::in_memory() })
}

/// Plans a query with guards.
async fn guarded_plan(
    query: &str,
    partitions: usize,
    control: &Arc<StatementControl>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let context = context(partitions);
    let plan = guard_windows(context.sql(query).await?.into_optimized_plan()?, control)?;
    let state = context.state();
    guard_plan(state.query_planner().create_physical_plan(&plan, &state).await?, control)
}

fn shown(batches: &[RecordBatch]) -> Vec<String> {
    let table = pretty_format_batches(batches).unwrap().to_string();
    let mut lines: Vec<String> = table.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

#[tokio::test]
async fn values_and_names_stay_the_same_and_nothing_stays_charged() {
    for query in QUERIES {
        let expected = context(2).sql(query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
        let expected = expected.collect().await.unwrap();
        let control = control(0);
        let plan = guarded_plan(query, 2, &control).await.unwrap();
        let found = collect(plan, context(2).task_ctx()).await.unwrap();
        assert_eq!(shown(&found), shown(&expected), "{query}");
        assert_eq!(control.memory().used(), 0, "{query}");
    }
}

#[tokio::test]
async fn what_a_window_holds_is_charged_to_its_statement() {
    let few_bytes = 1 << 20;
    for query in [
        // Copies of frames.
        "SELECT array_agg(value) OVER (ORDER BY value) FROM generate_series(1, 4000)",
        // Copies of small frames, of which the window holds all.
        "SELECT array_agg(value) OVER (PARTITION BY value % 100 ORDER BY value),
         sum(value) OVER (PARTITION BY value % 100 ORDER BY value
         ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) FROM generate_series(1, 4000)",
        // All rows of the input.
        "SELECT sum(value) OVER () FROM generate_series(1, 200000)",
    ] {
        let control = control(few_bytes);
        let plan = guarded_plan(query, 1, &control).await.unwrap();
        let error = collect(plan, context(1).task_ctx()).await.unwrap_err();
        assert_eq!(Error::from(error).sqlstate(), SqlState::OUT_OF_MEMORY, "{query}");
        assert_eq!(control.memory().used(), 0, "{query}");
    }
    // What is passed on is not held.
    let control = control(few_bytes);
    let query = "SELECT count(*), sum(s) FROM
        (SELECT sum(value) OVER (ORDER BY value ROWS 10 PRECEDING) AS s FROM generate_series(1, 200000)) w";
    let plan = guarded_plan(query, 1, &control).await.unwrap();
    assert_eq!(collect(plan, context(1).task_ctx()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_value_that_is_repeated_counts_in_each_row() {
    let long = "(SELECT value, CASE WHEN value = 1 THEN repeat('x', 100000) ELSE 'y' END AS t
        FROM generate_series(1, 1000)) s";
    for function in [
        "min(t) OVER ()",
        "min(t) OVER (PARTITION BY value % 2)",
        "min(t) FILTER (WHERE value = 1) OVER ()",
        "min(t) OVER (ORDER BY value)",
        "first_value(t) OVER (ORDER BY value)",
        "last_value(t) IGNORE NULLS OVER (ORDER BY value DESC ROWS BETWEEN 9 PRECEDING AND UNBOUNDED FOLLOWING)",
    ] {
        let (long, short) = (format!("SELECT {function} FROM {long}"), long.replace("100000", "10"));
        let control = control(4 << 20);
        let plan = guarded_plan(&long, 1, &control).await.unwrap();
        let error = collect(plan, context(1).task_ctx()).await.unwrap_err();
        assert_eq!(Error::from(error).sqlstate(), SqlState::OUT_OF_MEMORY, "{function}");
        let plan = guarded_plan(&format!("SELECT {function} FROM {short}"), 1, &control).await.unwrap();
        collect(plan, context(1).task_ctx()).await.unwrap();
    }
}

fn guarded_aggregate(func: &Arc<AggregateUDF>, control: &Arc<StatementControl>) -> Arc<AggregateUDF> {
    let unbounded = WindowFrameBound::Preceding(ScalarValue::UInt64(None));
    let params = WindowFunctionParams {
        args: Vec::new(),
        partition_by: Vec::new(),
        order_by: Vec::new(),
        window_frame: WindowFrame::new_bounds(
            WindowFrameUnits::Rows,
            unbounded,
            WindowFrameBound::CurrentRow,
        ),
        filter: None,
        null_treatment: None,
        distinct: false,
    };
    let (control, held) = (Arc::clone(control), Held::nothing(control).unwrap());
    aggregates::guarded(func, &params, Values { control, held, unchecked: 0 })
}

/// Returns an accumulator of integers with guards.
fn accumulator(func: &Arc<AggregateUDF>, control: &Arc<StatementControl>) -> Box<dyn Accumulator> {
    let guarded = guarded_aggregate(func, control);
    let field = Arc::new(Field::new("n", DataType::Int64, true));
    let exprs: [Arc<dyn PhysicalExpr>; 1] = [Arc::new(Column::new("n", 0))];
    let args = AccumulatorArgs {
        return_field: guarded.return_field(&[Arc::clone(&field)]).unwrap(),
        schema: &Schema::new(vec![Arc::clone(&field)]),
        ignore_nulls: false,
        order_bys: &[],
        is_reversed: false,
        name: "f",
        is_distinct: false,
        exprs: &exprs,
        expr_fields: &[field],
    };
    guarded.accumulator(args).unwrap()
}

fn numbers(rows: i64) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(0..rows))
}

#[test]
fn a_stopped_statement_computes_no_large_frame() {
    for func in [median_udaf(), array_agg_udaf()] {
        let control = control(0);
        let [mut small, mut large] = [(); 2].map(|()| accumulator(&func, &control));
        small.update_batch(&[numbers(10)]).unwrap();
        large.update_batch(&[numbers(ROWS_UNCHECKED_MAX as i64)]).unwrap();
        large.evaluate().unwrap();
        control.stop(StopReason::ClientGone);
        small.evaluate().unwrap();
        let error = Error::from(large.evaluate().unwrap_err());
        assert_eq!(error.sqlstate(), SqlState::QUERY_CANCELED);
        let many = (0..ROWS_UNCHECKED_MAX).find_map(|_| small.evaluate().err());
        assert_eq!(Error::from(many.unwrap()).sqlstate(), SqlState::QUERY_CANCELED);
    }
}

#[test]
fn values_are_charged_even_when_they_are_small() {
    let control = control(0);
    let mut median = accumulator(&median_udaf(), &control);
    median.update_batch(&[numbers(1)]).unwrap();
    let values = 5_000;
    for _ in 0..values {
        median.evaluate().unwrap();
    }
    let held = values * size_of::<ScalarValue>();
    let charged = control.memory().used();
    assert!((held - BYTES_UNCHARGED_MAX..=held * 2).contains(&charged), "{charged} of {held}");
}

#[test]
fn a_guarded_aggregate_is_equal_to_one_of_the_same_function() {
    let guarded = |func: Arc<AggregateUDF>| guarded_aggregate(&func, &control(0));
    assert_eq!(guarded(median_udaf()), guarded(median_udaf()));
    assert_ne!(guarded(median_udaf()), guarded(array_agg_udaf()));
    assert_ne!(guarded(median_udaf()), median_udaf());
}
