//! Limits for DataFusion functions whose result can be far larger than their arguments, or that double a
//! value with each call. The memory pool does not see what a scalar function allocates, and planning folds
//! constants, so the size of the result is estimated before each call.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, FieldRef, TimeUnit};
use datafusion::common::Result as DataFusionResult;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::expr::{BinaryExpr, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature,
};
use datafusion::optimizer::AnalyzerRule;

use super::concatenation::concatenation;
use super::extent::Argument;
use crate::casts::DAY_NS;
use crate::error::{Error, ErrorKind, SqlState};

/// The largest single value.
const VALUE_BYTES_MAX: u64 = 64 << 20;
/// The largest column of one batch.
const COLUMN_BYTES_MAX: u64 = 512 << 20;
/// The least size of a list element.
const ELEMENT_BYTES: u64 = 8;

/// The longest text of a list element that is not text.
const ELEMENT_TEXT_BYTES: u64 = 48;
/// The longest output of one byte of a format: `%+` prints a whole timestamp.
const FORMATTED_BYTES: u64 = 16;

/// How the size of a row's result depends on its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Growth {
    /// `repeat(text, n)`.
    Repeat,
    /// `lpad(text, n)`, `rpad(text, n)`.
    Pad,
    /// `replace(text, from, to)`.
    Replace,
    /// `regexp_replace(text, pattern, to, flags)`.
    RegexpReplace,
    /// `generate_series(from, to, step)`, `range(...)`.
    Series,
    /// `array_repeat(element, n)`.
    List,
    /// `array_resize(list, n, element)`.
    Resize,
    /// `array_replace_all(list, from, to)` and its relatives.
    ReplaceElements,
    /// `array_to_string(list, delimiter, null)`.
    Join,
    /// `concat_ws(separator, text, ...)`.
    Separated,
    /// `encode(bytes, encoding)`.
    Encode,
    /// `to_char(time, format)`.
    Format,
    /// `concat(text, ...)`, `a || b`, and other functions that join their arguments.
    Sum,
}

const CAPPED: [(&str, Growth); 22] = [
    ("repeat", Growth::Repeat),
    ("lpad", Growth::Pad),
    ("rpad", Growth::Pad),
    ("replace", Growth::Replace),
    ("regexp_replace", Growth::RegexpReplace),
    ("range", Growth::Series),
    ("generate_series", Growth::Series),
    ("array_repeat", Growth::List),
    ("array_resize", Growth::Resize),
    ("array_replace", Growth::ReplaceElements),
    ("array_replace_n", Growth::ReplaceElements),
    ("array_replace_all", Growth::ReplaceElements),
    ("array_to_string", Growth::Join),
    ("concat_ws", Growth::Separated),
    ("encode", Growth::Encode),
    ("to_char", Growth::Format),
    ("concat", Growth::Sum),
    ("overlay", Growth::Sum),
    ("make_array", Growth::Sum),
    ("array_concat", Growth::Sum),
    ("array_append", Growth::Sum),
    ("array_prepend", Growth::Sum),
];

/// Returns the functions of `known` that need a limit, with the limit.
pub(crate) fn capped(known: impl Fn(&str) -> Option<Arc<ScalarUDF>>) -> Vec<Arc<ScalarUDF>> {
    CAPPED.into_iter().filter_map(|(name, _)| limited(&known(name)?)).collect()
}

/// Returns `function` with its limit; `None` when it needs none or already has it.
fn limited(function: &Arc<ScalarUDF>) -> Option<Arc<ScalarUDF>> {
    if function.inner().is::<Capped>() {
        return None;
    }
    let (_, growth) = CAPPED.into_iter().find(|(name, _)| *name == function.name())?;
    Some(Arc::new(ScalarUDF::new_from_impl(Capped { inner: Arc::clone(function), growth })))
}

/// Limits functions that the planner adds itself, as for `ARRAY[...]`, and the operator `||`.
#[derive(Debug)]
pub(crate) struct CapRule;

impl AnalyzerRule for CapRule {
    fn name(&self) -> &str {
        "kalam_capped"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> DataFusionResult<LogicalPlan> {
        plan.transform_up_with_subqueries(|node| {
            let names = NamePreserver::new(&node);
            node.map_expressions(|expr| {
                let name = names.save(&expr);
                let rewritten = expr.transform_up(|expr| Ok(limit(expr)))?;
                Ok(rewritten.update_data(|expr| name.restore(expr)))
            })
        })
        .map(|rewritten| rewritten.data)?
        .recompute_schema()
    }
}

fn limit(expr: Expr) -> Transformed<Expr> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::StringConcat, right }) => Transformed::yes(
            Expr::ScalarFunction(ScalarFunction::new_udf(concatenation(), vec![*left, *right])),
        ),
        Expr::ScalarFunction(call) => match limited(&call.func) {
            Some(func) => Transformed::yes(Expr::ScalarFunction(ScalarFunction { func, args: call.args })),
            None => Transformed::no(Expr::ScalarFunction(call)),
        },
        other => Transformed::no(other),
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Capped {
    inner: Arc<ScalarUDF>,
    growth: Growth,
}

impl ScalarUDFImpl for Capped {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> DataFusionResult<DataType> {
        self.inner.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> DataFusionResult<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, types: &[DataType]) -> DataFusionResult<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        self.growth.check(self.inner.name(), &args)?;
        self.inner.invoke_with_args(args)
    }
}

impl Growth {
    /// Fails when the result of a call would be too large.
    pub(super) fn check(self, name: &str, args: &ScalarFunctionArgs) -> DataFusionResult<()> {
        let all_constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let rows = if all_constant { args.number_rows.min(1) } else { args.number_rows };
        let columns = args.args.iter().map(Argument::new).collect::<DataFusionResult<Vec<_>>>()?;
        if self == Self::Sum {
            let all = columns.iter().fold(0_u64, |all, column| all.saturating_add(column.all_bytes(rows)));
            if all <= VALUE_BYTES_MAX {
                return Ok(());
            }
        }
        let mut total = 0_u64;
        for row in 0..rows {
            if self == Self::Resize && columns.get(1).is_some_and(|size| size.number(row) < 0) {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    SqlState::INVALID_PARAMETER_VALUE,
                    "array_resize makes no array of fewer than 0 elements",
                )
                .into());
            }
            let bytes = self.bytes(&columns, row);
            total = total.saturating_add(bytes);
            if bytes > VALUE_BYTES_MAX || total > COLUMN_BYTES_MAX {
                return Err(Error::new(
                    ErrorKind::ResourceExhausted,
                    SqlState::PROGRAM_LIMIT_EXCEEDED,
                    format!("the result of {name} is too large"),
                )
                .hint(format!("a value has at most {} MiB", VALUE_BYTES_MAX >> 20))
                .into());
            }
        }
        Ok(())
    }

    fn bytes(self, arguments: &[Argument], row: usize) -> u64 {
        let number = |index: usize| arguments.get(index).map_or(0, |argument| argument.number(row));
        let bytes = |index: usize| arguments.get(index).map_or(1, |argument| argument.bytes(row));
        let count = |index: usize| u64::try_from(number(index)).unwrap_or(0);
        let elements = |index: usize| arguments.get(index).map_or(0, |argument| argument.elements(row));
        let sum = || arguments.iter().fold(0_u64, |sum, argument| sum.saturating_add(argument.bytes(row)));
        match self {
            Self::Repeat => count(1).saturating_mul(bytes(0)),
            Self::Pad => count(1).saturating_mul(4),
            Self::Replace => {
                let places = bytes(0) / bytes(1) + 1;
                places.saturating_mul(bytes(2)).saturating_add(bytes(0))
            }
            Self::RegexpReplace => regexp_replaced(arguments, row),
            Self::Series => series_len(arguments, row).saturating_mul(ELEMENT_BYTES),
            Self::List => count(1).saturating_mul(bytes(0).max(ELEMENT_BYTES)),
            Self::Resize => {
                let element = if arguments.len() > 2 { bytes(2) } else { bytes(0) };
                count(1).saturating_mul(element.max(ELEMENT_BYTES))
            }
            Self::ReplaceElements => bytes(0).saturating_add(elements(0).saturating_mul(bytes(2))),
            Self::Join => {
                let null = if arguments.len() > 2 { bytes(2) } else { 0 };
                let leaves = arguments.first().map_or(0, |argument| argument.leaves(row));
                let each = ELEMENT_TEXT_BYTES.saturating_add(bytes(1)).saturating_add(null);
                bytes(0).saturating_add(leaves.saturating_mul(each))
            }
            Self::Separated => sum().saturating_add(bytes(0).saturating_mul(arguments.len() as u64)),
            Self::Encode => bytes(0).saturating_mul(2),
            Self::Format => bytes(1).saturating_mul(FORMATTED_BYTES),
            Self::Sum => sum(),
        }
    }
}

/// Estimates the result of `regexp_replace`. Every position can match. A reference to a part of the match
/// takes two characters or more and inserts that part; over all matches that is at most the whole text.
fn regexp_replaced(arguments: &[Argument], row: usize) -> u64 {
    let bytes = |index: usize| arguments.get(index).map_or(0, |argument| argument.bytes(row));
    let has = |index: usize, wanted: &[char]| {
        arguments.get(index).and_then(|argument| argument.text(row)).is_some_and(|text| text.contains(wanted))
    };
    let (text, to) = (bytes(0), bytes(2));
    let places = if has(3, &['g']) { text.saturating_add(1) } else { 1 };
    let references = if has(2, &['$', '\\']) { to / 2 + 1 } else { 0 };
    text.saturating_add(places.saturating_mul(to)).saturating_add(references.saturating_mul(text))
}

fn series_len(arguments: &[Argument], row: usize) -> u64 {
    if arguments.iter().any(|argument| argument.is_null(row)) {
        return 0;
    }
    let unit = |argument: &Argument| nanoseconds(argument.data_type()).unwrap_or(1);
    let number = |index: usize| {
        arguments.get(index).map_or(0, |argument| i128::from(argument.number(row)) * unit(argument))
    };
    let (start, stop) = if arguments.len() == 1 { (0, number(0)) } else { (number(0), number(1)) };
    let step = match arguments.get(2) {
        Some(step) => step.interval_ns(row).unwrap_or_else(|| number(2)),
        None => arguments.first().map_or(1, unit),
    };
    let steps = (stop - start).unsigned_abs().checked_div(step.unsigned_abs()).unwrap_or(0);
    u64::try_from(steps).unwrap_or(u64::MAX).saturating_add(1)
}

/// The nanoseconds of one unit of a DATE or TIMESTAMP; `None` for any other type.
fn nanoseconds(ty: &DataType) -> Option<i128> {
    match ty {
        DataType::Date32 => Some(DAY_NS),
        DataType::Date64 | DataType::Timestamp(TimeUnit::Millisecond, _) => Some(1_000_000),
        DataType::Timestamp(TimeUnit::Second, _) => Some(1_000_000_000),
        DataType::Timestamp(TimeUnit::Microsecond, _) => Some(1_000),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => Some(1),
        _ => None,
    }
}
