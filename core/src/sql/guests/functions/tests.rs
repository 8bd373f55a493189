//! Tests that every function has a class, and that a guarded one gives what the plain one gives, within its
//! limits.

use datafusion::arrow::array::StringArray;
use datafusion::arrow::datatypes::Field;
use datafusion::common::DFSchema;
use datafusion::execution::SessionState;
use datafusion::functions::core::{get_field, named_struct};
use datafusion::functions::string::{concat as concat_texts, repeat, starts_with, upper};
use datafusion::functions::unicode::{left, strpos};
use datafusion::logical_expr::{LogicalPlanBuilder, col, lit};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;

use super::*;
use crate::database::Database;
use crate::error::SqlState;
use crate::sql::Engine;
use crate::sql::workarounds::state_for;
use crate::workload::StopReason;

/// Functions whose work is in proportion to the bytes of their arguments, or to a result that is limited.
const LINEAR: &str = "
    abs acos acosh array_add array_any_value array_append array_avg array_compact array_concat array_dims
    array_distance array_distinct array_element array_empty array_except array_has array_intersect
    array_length array_max array_min array_ndims array_normalize array_pop_back array_pop_front
    array_position array_positions array_prepend array_product array_remove array_remove_all
    array_remove_n array_repeat array_replace array_replace_all array_replace_n array_resize
    array_reverse array_scale array_slice array_subtract array_sum array_to_string array_union arrays_zip
    arrow_cast arrow_field arrow_metadata arrow_try_cast arrow_typeof ascii asin asinh atan atan2 atanh
    bit_length cardinality cast_to_type cbrt ceil character_length chr coalesce concat concat_ws contains
    cos cosh cosine_distance cot current_date current_time date_bin date_part date_trunc decode degrees
    digest empty encode ends_with exp factorial find_in_set first_part flatten floor from_unixtime gcd
    generate_series greatest initcap inner_product isnan iszero lcm least left like_pattern ln log10 log2
    lower lpad make_array make_date make_time map map_entries map_extract map_keys map_values md5
    named_cast nanvl next_part now nullif nvl nvl2 octet_length overlay pi radians random range repeat
    replace reverse right round rpad sha224 sha256 sha384 sha512 signum sin sinh snowflake_id split_part
    sqrt starts_with string_to_array substr substr_index tan tanh timezone to_char to_date to_hex
    to_local_time to_time to_timestamp to_timestamp_micros to_timestamp_millis to_timestamp_nanos
    to_timestamp_seconds to_unixtime translate trunc try_cast_to_type ulid union_extract union_tag upper
    uuid uuid_v7 version with_metadata
";
const STEPS_MAX: u64 = 500_000_000;

async fn state_of_a_statement() -> (Database, SessionState) {
    let database = Database::open_in_memory().await.unwrap();
    let engine = Engine::new(database.context()).unwrap();
    let state = engine.state(0, &control());
    (database, state)
}

fn control() -> Arc<StatementControl> {
    StatementControl::new(&Config::in_memory())
}

/// Guards a call, and returns its function.
fn guarded(call: Expr) -> Arc<ScalarUDF> {
    match guard_calls(call, STEPS_MAX).unwrap().data {
        Expr::ScalarFunction(call) => call.func,
        other => panic!("no call: {other}"),
    }
}

fn is_guarded(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarFunction(call) if call.func.inner().is::<Guarded>())
}

fn texts(column: &[String]) -> ColumnarValue {
    ColumnarValue::Array(Arc::new(column.iter().map(Some).collect::<StringArray>()))
}

fn call(args: Vec<ColumnarValue>, rows: usize, ty: DataType, options: ConfigOptions) -> ScalarFunctionArgs {
    let of_type = |ty| Arc::new(Field::new("", ty, true));
    ScalarFunctionArgs {
        arg_fields: args.iter().map(|value| of_type(value.data_type())).collect(),
        args,
        number_rows: rows,
        return_field: of_type(ty),
        config_options: Arc::new(options),
    }
}

/// Whoever adds a function decides here or in [`Work::of`] what a call of it can cost.
#[tokio::test]
async fn every_function_has_a_class() {
    let linear: Vec<&str> = LINEAR.split_whitespace().collect();
    for name in &linear {
        assert!(Work::of(name) == Work::Linear && !RECOGNISED.contains(name), "{name} has two classes");
    }
    assert!(RECOGNISED.is_sorted());
    let (_database, state) = state_of_a_statement().await;
    assert!(state.scalar_functions().len() >= 150);
    let mut unknown: Vec<&str> = state
        .scalar_functions()
        .values()
        .map(|function| function.name())
        .filter(|name| Work::of(name) == Work::Linear && !RECOGNISED.contains(name) && !linear.contains(name))
        .collect();
    unknown.sort_unstable();
    assert!(unknown.is_empty(), "functions in none of the classes: {unknown:?}");
}

#[test]
fn slices_give_the_values_of_the_whole() {
    let rows = 20;
    let columns = |last: &str| {
        let column: Vec<String> = (0..rows).map(|row| format!("{}{row}{last}", "x".repeat(30_000))).collect();
        texts(&column)
    };
    let args = || {
        let args = vec![columns("yz"), columns("y")];
        call(args, rows, DataType::Int32, ConfigOptions::new())
    };
    assert!(Work::Search.slices("strpos", &args(), STEPS_MAX).unwrap().len() > 1);
    let plain = strpos().invoke_with_args(args()).unwrap().into_array(rows).unwrap();
    let sliced = guarded(strpos().call(vec![col("a"), col("b")])).invoke_with_args(args()).unwrap();
    assert_eq!(&sliced.into_array(rows).unwrap(), &plain);
}

#[test]
fn constants_are_not_expanded_beyond_the_limit_of_a_column() {
    const ROWS: usize = 300;
    let left = guarded(left().call(vec![col("a"), col("n")]));
    let invoke = |count: i64| {
        let text = ColumnarValue::Scalar(ScalarValue::from("x".repeat(1 << 20)));
        let counts = ScalarValue::Int64(Some(count)).to_array_of_size(ROWS).unwrap();
        let args = vec![text, ColumnarValue::Array(counts)];
        let args = call(args, ROWS, DataType::Utf8, ConfigOptions::new());
        left.invoke_with_args(args).map_err(Error::from)
    };
    assert_eq!(invoke(1).unwrap().into_array(ROWS).unwrap().len(), ROWS);
    let refused = invoke(1 << 20).unwrap_err();
    assert_eq!(refused.sqlstate(), SqlState::PROGRAM_LIMIT_EXCEEDED, "{refused}");
    assert!(refused.message().contains("left()"), "{refused}");
}

#[test]
fn a_call_of_a_stopped_statement_fails() {
    let control = control();
    let mut options = ConfigOptions::new();
    options.extensions.insert(GuestOptions(Arc::clone(&control)));
    let upper = guarded(upper().call(vec![col("a")]));
    let invoke = || {
        let args = call(vec![texts(&["a".to_owned()])], 1, DataType::Utf8, options.clone());
        upper.invoke_with_args(args).map_err(Error::from)
    };
    invoke().unwrap();
    control.stop(StopReason::ClientGone);
    assert_eq!(invoke().unwrap_err().sqlstate(), SqlState::QUERY_CANCELED);
}

#[test]
fn a_large_result_counts_as_memory_of_its_statement() {
    let control = StatementControl::new(&Config { statement_memory_bytes: 1 << 20, ..Config::in_memory() });
    let mut options = ConfigOptions::new();
    options.extensions.insert(GuestOptions(Arc::clone(&control)));
    let repeat = guarded(repeat().call(vec![col("a"), col("n")]));
    let invoke = |times: i64| {
        let text = ColumnarValue::Scalar(ScalarValue::from("x"));
        let times = ColumnarValue::Scalar(ScalarValue::Int64(Some(times)));
        let args = call(vec![text, times], 1, DataType::Utf8, options.clone());
        repeat.invoke_with_args(args).map_err(Error::from)
    };
    invoke(1 << 20).unwrap();
    assert_eq!(control.memory().used(), 0);
    assert_eq!(invoke(1 << 21).unwrap_err().sqlstate(), SqlState::OUT_OF_MEMORY);
}

#[test]
fn a_plan_knows_of_a_guarded_function_what_it_knows_of_the_plain_one() {
    let plain = starts_with();
    let guarded = guarded(plain.call(vec![col("a"), col("b")]));
    assert!(guarded.inner().is::<Guarded>());
    assert_eq!(guarded.name(), plain.name());
    assert_eq!(guarded.aliases(), plain.aliases());
    assert_eq!(guarded.signature(), plain.signature());
    assert_eq!(guarded.is_strict(), plain.is_strict());
    assert_eq!(format!("{guarded:?}"), format!("{plain:?}"));
    assert_ne!(*guarded, *plain);
    let again = guard_calls(guarded.call(vec![col("a"), col("b")]), STEPS_MAX).unwrap();
    assert!(!again.transformed);
}

#[test]
fn functions_that_are_recognised_by_type_stay_plain() {
    let row = named_struct().call(vec![lit("f"), upper().call(vec![col("a")])]);
    let field = guard_calls(get_field().call(vec![row, lit("f")]), STEPS_MAX).unwrap().data;
    let mut names = Vec::new();
    field
        .apply(|part| {
            if let Expr::ScalarFunction(call) = part {
                names.push((call.func.name().to_owned(), is_guarded(part)));
            }
            Ok(TreeNodeRecursion::Continue)
        })
        .unwrap();
    let expected = [("get_field", false), ("named_struct", false), ("upper", true)];
    assert_eq!(names, expected.map(|(name, is_guarded)| (name.to_owned(), is_guarded)));
}

fn simplified(expr: Expr) -> Expr {
    let field = |name: &str| Field::new(name, DataType::Utf8, true);
    let schema = DFSchema::from_unqualified_fields(vec![field("a"), field("b")].into(), Default::default());
    let context = SimplifyContext::builder().with_schema(Arc::new(schema.unwrap())).build();
    ExprSimplifier::new(context).simplify(guard_calls(expr, STEPS_MAX).unwrap().data).unwrap()
}

#[test]
fn what_a_function_is_simplified_to_is_guarded_too() {
    let joined = simplified(concat_texts().call(vec![lit("x"), lit("y"), col("a")]));
    assert!(is_guarded(&joined), "{joined}");
    assert!(joined.to_string().contains("xy"), "{joined}");
    let doubled = Expr::BinaryExpr(BinaryExpr::new(
        Box::new(col("a")),
        Operator::StringConcat,
        Box::new(upper().call(vec![col("b")])),
    ));
    let doubled = simplified(doubled);
    assert!(is_guarded(&doubled), "{doubled}");
    assert_eq!(doubled.schema_name().to_string(), "a || upper(b)");
}

#[test]
fn only_costly_patterns_of_like_are_guarded() {
    for (pattern, expected) in [
        (col("b"), true),
        (upper().call(vec![col("b")]), true),
        (lit("x".repeat(1_000)), true),
        (lit("x%"), false),
        (upper().call(vec![lit("x%")]), false),
        (lit(ScalarValue::Utf8(None)), false),
    ] {
        for like in [col("a").like(pattern.clone()), col("a").not_ilike(pattern.clone())] {
            let name = like.schema_name().to_string();
            let simplified = simplified(like.clone());
            assert_eq!(is_guarded(&simplified), expected, "{name}");
            let guarded = guard_calls(like, STEPS_MAX).unwrap().data;
            assert_eq!(guarded.schema_name().to_string(), name);
        }
    }
}

#[tokio::test]
async fn a_plan_that_calls_a_long_function_has_one_partition() {
    let (_database, state) = state_of_a_statement().await;
    let plan = |expr: Expr| {
        let values = LogicalPlanBuilder::values(vec![vec![lit("a"), lit("b")]]).unwrap();
        let plan = values.project([expr.alias("v")]).unwrap().build().unwrap();
        GuardRule { steps_max: STEPS_MAX }.analyze(plan, &ConfigOptions::new()).unwrap()
    };
    let partitions =
        |plan: &LogicalPlan| state_for(plan, &state).config_options().execution.target_partitions;
    let long = plan(strpos().call(vec![col("column1"), col("column2")]));
    assert!(has_long_call(&long));
    assert_eq!(partitions(&long), 1);
    let short = plan(strpos().call(vec![col("column1"), lit("b")]));
    assert!(!has_long_call(&short));
    assert_eq!(partitions(&short), Config::in_memory().query_partitions);
}
