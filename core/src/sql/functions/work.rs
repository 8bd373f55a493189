//! Estimates the work of a call before it is made. A step takes about a nanosecond.
//!
//! | class | steps for a row |
//! |---|---|
//! | `Linear` | not counted: the arguments are in memory, and constants are expanded for few rows at a time |
//! | `Product` | bytes of the first argument times bytes of the second |
//! | `Search` | the same, but many bytes at once |
//! | `Lists` | elements of the first list times elements of the second |
//! | `Quantified` | elements of the list times bytes of the value |
//! | `Sorted` | n log n |
//! | `Pattern` | bytes of the text times bytes of the pattern |
//!
//! Invariant: arguments that are made for it do not let a call take much longer than its estimate.

use std::ops::Range;

use datafusion::common::Result as DataFusionResult;
use datafusion::logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs};

use super::growth::shown;
use super::value_size::Argument;
use crate::error::{Error, ErrorKind, SqlState};
use crate::types::heap_bytes;

/// The most steps that are made without a check, unless a single row needs more.
const SLICE_STEPS: u64 = 1 << 25;
/// The most bytes to which constants are expanded at a time, unless those of a single row have more.
const SLICE_BYTES: u64 = 16 << 20;
/// The steps to compile a pattern, for patterns that differ between rows.
const COMPILATION_STEPS: u64 = SLICE_STEPS / 64;
/// The length from which on a longer pattern does not slow matching down.
const PATTERN_BYTES_MAX: u64 = 1_000;
/// The steps to compare a value with an element of a list, and to match it with one.
const COMPARISON_STEPS: u64 = 16;
const MATCH_STEPS: u64 = 2_000;
/// A larger constant can make a call long.
const SMALL_BYTES_MAX: usize = 4 << 10;

/// How the work of a call depends on its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::sql) enum Work {
    /// Functions that look at each argument once.
    Linear,
    /// `levenshtein(a, b)`, `btrim(text, characters)` and its relatives.
    Product,
    /// `strpos(text, part)`.
    Search,
    /// `array_has_all(a, b)`, `array_has_any(a, b)`.
    Lists,
    /// `any_of(operator, value, list)`, `all_of(...)`.
    Quantified,
    /// `array_sort(list)`.
    Sorted,
    /// Regular expressions, LIKE and SIMILAR TO.
    Pattern,
}

impl Work {
    /// Returns the class of a function.
    pub(in crate::sql) fn of(function: &str) -> Self {
        match function {
            "levenshtein" | "btrim" | "ltrim" | "rtrim" => Self::Product,
            "strpos" => Self::Search,
            "array_has_all" | "array_has_any" => Self::Lists,
            "any_of" | "all_of" => Self::Quantified,
            "array_sort" => Self::Sorted,
            "~" | "~*" | "!~" | "!~*" | "SIMILAR TO" | "like" | "regexp_count" | "regexp_instr"
            | "regexp_like" | "regexp_match" | "regexp_replace" | "regexp_substr" => Self::Pattern,
            _ => Self::Linear,
        }
    }

    /// Returns how many rows to compute at a time, in order, so that there is a check in between.
    ///
    /// # Errors
    /// 54000 when a row needs more than `steps_max` steps.
    pub(in crate::sql) fn slices(
        self,
        function: &str,
        args: &ScalarFunctionArgs,
        steps_max: u64,
    ) -> DataFusionResult<Vec<usize>> {
        let all_constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let rows = if all_constant { 1 } else { args.number_rows };
        let constants = args.args.iter().map(constant_bytes).fold(0, u64::saturating_add);
        let rows_max = usize::try_from(SLICE_BYTES / constants.max(1)).unwrap_or(usize::MAX).max(1);
        if self == Self::Linear {
            return Ok(even_slices(rows, rows_max));
        }
        let arguments = args.args.iter().map(Argument::new).collect::<DataFusionResult<Vec<_>>>()?;
        let is_compiled_once = self != Self::Pattern || arguments.get(1).is_none_or(Argument::is_constant);
        let compilation = if is_compiled_once { 0 } else { COMPILATION_STEPS };
        let compilations = compilation.saturating_mul(u64::try_from(rows).unwrap_or(u64::MAX));
        let all_steps = self.steps(&arguments, 0..rows).saturating_add(compilations);
        if all_steps <= SLICE_STEPS.min(steps_max) {
            return Ok(even_slices(rows, rows_max));
        }
        let (mut slices, mut len, mut sum) = (Vec::new(), 0, 0_u64);
        for row in 0..rows {
            let steps = self.steps(&arguments, row..row + 1);
            if steps > steps_max {
                return Err(too_long(function, steps, steps_max).into());
            }
            let steps = steps.saturating_add(compilation);
            if len > 0 && (len >= rows_max || sum.saturating_add(steps) > SLICE_STEPS) {
                slices.push(len);
                (len, sum) = (0, 0);
            }
            len += 1;
            sum = sum.saturating_add(steps);
        }
        slices.push(len);
        Ok(slices)
    }

    /// Returns the steps for some rows, at least the sum of the steps for each of them.
    fn steps(self, arguments: &[Argument], rows: Range<usize>) -> u64 {
        let bytes = |index: usize| arguments.get(index).map_or(1, |argument| argument.bytes_in(rows.clone()));
        let elements =
            |index: usize| arguments.get(index).map_or(0, |argument| argument.elements_in(rows.clone()));
        match self {
            Self::Linear => 0,
            Self::Product => bytes(0).saturating_mul(bytes(1)),
            Self::Search => bytes(0).saturating_mul(bytes(1)) / 16,
            Self::Lists => elements(0).max(bytes(0) / 16).saturating_mul(elements(1)),
            Self::Quantified => {
                let matches =
                    arguments.first().and_then(|op| op.text(0)).is_some_and(|op| op.ends_with("LIKE"));
                let each = if matches { MATCH_STEPS } else { COMPARISON_STEPS };
                elements(2).saturating_mul(bytes(1).saturating_add(each))
            }
            Self::Sorted => {
                let count = elements(0);
                count.saturating_mul(4 * u64::from(u64::BITS - count.leading_zeros()))
            }
            Self::Pattern => bytes(0).saturating_mul(bytes(1).min(PATTERN_BYTES_MAX)) / 16,
        }
    }

    /// Whether a row of a call can need many steps: both operands that it combines are large or unknown.
    pub(in crate::sql) fn can_be_long(self, args: &[Expr]) -> bool {
        let (left, right) = match self {
            Self::Linear | Self::Sorted => return false,
            Self::Quantified => (1, 2),
            Self::Product | Self::Search | Self::Lists | Self::Pattern => (0, 1),
        };
        let is_small = |index: usize| match args.get(index) {
            Some(Expr::Literal(value, _)) => value.size() <= SMALL_BYTES_MAX,
            Some(_) => false,
            None => true,
        };
        !is_small(left) && !is_small(right)
    }
}

/// Returns the bytes of a constant that a function may expand for each row.
fn constant_bytes(value: &ColumnarValue) -> u64 {
    match value {
        ColumnarValue::Scalar(value) => u64::try_from(heap_bytes(value)).unwrap_or(u64::MAX),
        ColumnarValue::Array(_) => 0,
    }
}

fn even_slices(rows: usize, rows_max: usize) -> Vec<usize> {
    (0..rows).step_by(rows_max).map(|start| rows_max.min(rows - start)).collect()
}

fn too_long(function: &str, steps: u64, steps_max: u64) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::PROGRAM_LIMIT_EXCEEDED,
        format!(
            "{} of these arguments takes about {steps} steps, function_cost_max is {steps_max}",
            shown(function)
        ),
    )
    .hint("pass shorter arguments, or raise function_cost_max")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{ArrayRef, StringArray};
    use datafusion::arrow::datatypes::{DataType, Field};
    use datafusion::common::ScalarValue;
    use datafusion::common::config::ConfigOptions;
    use datafusion::logical_expr::{col, lit};

    use super::*;

    fn call(args: Vec<ColumnarValue>, number_rows: usize) -> ScalarFunctionArgs {
        ScalarFunctionArgs {
            arg_fields: Vec::new(),
            args,
            number_rows,
            return_field: Arc::new(Field::new("", DataType::Null, true)),
            config_options: Arc::new(ConfigOptions::new()),
        }
    }

    fn constant(bytes: usize) -> ColumnarValue {
        ColumnarValue::Scalar(ScalarValue::from("x".repeat(bytes)))
    }

    fn column(bytes: &[usize]) -> ColumnarValue {
        let texts: StringArray = bytes.iter().map(|bytes| Some("x".repeat(*bytes))).collect();
        ColumnarValue::Array(Arc::new(texts) as ArrayRef)
    }

    #[test]
    fn a_row_of_too_many_steps_is_refused_by_name() {
        let check = |args: Vec<ColumnarValue>, rows: usize| {
            let slices = Work::Product.slices("levenshtein", &call(args, rows), 1_000_000);
            slices.map_err(Error::from)
        };
        assert_eq!(check(vec![constant(1_000), constant(1_000)], 8_192).unwrap(), [1]);
        assert_eq!(check(vec![column(&[1_000, 10]), column(&[1_000, 900])], 2).unwrap(), [2]);
        for (args, rows) in [
            (vec![constant(1_001), constant(1_000)], 1),
            // Constants are computed even for no rows.
            (vec![constant(1_001), constant(1_000)], 0),
            (vec![column(&[1, 1, 1_001]), constant(1_000)], 3),
        ] {
            let error = check(args, rows).unwrap_err();
            assert_eq!(error.sqlstate(), SqlState::PROGRAM_LIMIT_EXCEEDED);
            for part in ["levenshtein()", "1001000 steps", "function_cost_max is 1000000"] {
                assert!(error.message().contains(part), "{error}");
            }
        }
    }

    #[test]
    fn slices_cover_all_rows_and_have_few_steps() {
        let rows: Vec<usize> = (0..100).map(|row| row * 100).collect();
        let args = call(vec![column(&rows), column(&rows)], 100);
        let slices = Work::Product.slices("levenshtein", &args, u64::MAX).unwrap();
        assert_eq!(slices.iter().sum::<usize>(), 100);
        let mut rows = rows.as_slice();
        for len in slices {
            let (slice, rest) = rows.split_at(len);
            let steps = slice.iter().map(|bytes| (bytes * bytes) as u64).sum::<u64>();
            assert!(len == 1 || steps <= SLICE_STEPS, "{len} rows of {steps} steps");
            rows = rest;
        }
        // Each of these patterns is compiled.
        let args = call(vec![column(&[1; 200]), column(&[1; 200])], 200);
        assert_eq!(Work::Pattern.slices("~", &args, u64::MAX).unwrap(), [64, 64, 64, 8]);
        let args = call(vec![column(&[1; 200]), constant(1)], 200);
        assert_eq!(Work::Pattern.slices("~", &args, u64::MAX).unwrap(), [200]);
    }

    #[test]
    fn constants_are_expanded_for_few_rows_at_a_time() {
        let slices = |bytes: usize, rows: usize| {
            Work::Linear
                .slices("left", &call(vec![constant(bytes), column(&vec![1; rows])], rows), 1)
                .unwrap()
        };
        assert_eq!(slices(10, 8_192), [8_192]);
        assert_eq!(slices(8 << 20, 5), [2, 2, 1]);
        assert_eq!(slices(64 << 20, 3), [1, 1, 1]);
        assert!(slices(10, 0).is_empty());
    }

    #[test]
    fn a_call_of_a_small_constant_is_not_long() {
        let (column, constant, large) = (col("a"), lit("x"), lit("x".repeat(100_000)));
        for (work, args, expected) in [
            (Work::Product, [&column, &column], true),
            (Work::Product, [&column, &constant], false),
            (Work::Pattern, [&constant, &column], false),
            (Work::Pattern, [&column, &large], true),
            (Work::Linear, [&column, &column], false),
        ] {
            let args = args.map(Expr::clone);
            assert_eq!(work.can_be_long(&args), expected, "{work:?} {args:?}");
        }
        assert!(!Work::Product.can_be_long(&[column]));
    }
}
