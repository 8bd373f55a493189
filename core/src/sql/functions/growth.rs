//! Estimates the size of a function's result before the call, and refuses results that are too large: the
//! memory pool does not see what a function allocates.

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::Result as DataFusionResult;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs};

use super::value_size::Argument;
use crate::casts::DAY_NS;
use crate::error::{Error, ErrorKind, SqlState};

/// The largest single value.
const VALUE_BYTES_MAX: u64 = 64 << 20;
/// The largest column of one batch.
pub(in crate::sql) const COLUMN_BYTES_MAX: u64 = 128 << 20;
/// The least size of a list element.
const ELEMENT_BYTES: u64 = 8;

/// The longest text of a list element that is not text.
const ELEMENT_TEXT_BYTES: u64 = 32;
/// The longest output of one byte of a format: `%+` prints a whole timestamp.
const FORMATTED_BYTES: u64 = 16;

/// How the size of a row's result depends on its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::sql) enum Growth {
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

impl Growth {
    /// Returns how the result of a function grows; `None` if it is not much larger than the arguments.
    pub(in crate::sql) fn of(function: &str) -> Option<Self> {
        Some(match function {
            "repeat" => Self::Repeat,
            "lpad" | "rpad" => Self::Pad,
            "replace" => Self::Replace,
            "regexp_replace" => Self::RegexpReplace,
            "range" | "generate_series" => Self::Series,
            "array_repeat" => Self::List,
            "array_resize" => Self::Resize,
            "array_replace" | "array_replace_n" | "array_replace_all" => Self::ReplaceElements,
            "array_to_string" => Self::Join,
            "concat_ws" => Self::Separated,
            "encode" => Self::Encode,
            "to_char" => Self::Format,
            "||" | "concat" | "overlay" | "make_array" | "array_concat" | "array_append"
            | "array_prepend" => Self::Sum,
            _ => return None,
        })
    }

    /// Returns the estimated bytes of a call's result.
    ///
    /// # Errors
    /// 54000 when the result would be too large.
    pub(in crate::sql) fn check(self, name: &str, args: &ScalarFunctionArgs) -> DataFusionResult<u64> {
        let all_constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let rows = if all_constant { 1 } else { args.number_rows };
        let columns = args.args.iter().map(Argument::new).collect::<DataFusionResult<Vec<_>>>()?;
        if self == Self::Sum {
            let all = columns.iter().fold(0_u64, |all, column| all.saturating_add(column.all_bytes(rows)));
            if all <= VALUE_BYTES_MAX {
                return Ok(all);
            }
        }
        let mut total = 0_u64;
        for row in 0..rows {
            if self == Self::Resize && columns.get(1).is_some_and(|size| size.number(row) < 0) {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    SqlState::INVALID_PARAMETER_VALUE,
                    "array_resize() cannot make an array of fewer than 0 elements",
                )
                .into());
            }
            let bytes = self.bytes(&columns, row);
            total = total.saturating_add(bytes);
            if bytes > VALUE_BYTES_MAX || total > COLUMN_BYTES_MAX {
                return Err(too_large(name).into());
            }
        }
        Ok(total)
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
                let is_text = arguments.first().is_some_and(Argument::has_text_leaves);
                let own = if is_text { 0 } else { ELEMENT_TEXT_BYTES };
                let each = own.saturating_add(bytes(1)).saturating_add(null);
                bytes(0).saturating_add(leaves.saturating_mul(each))
            }
            Self::Separated => sum().saturating_add(bytes(0).saturating_mul(arguments.len() as u64)),
            Self::Encode => bytes(0).saturating_mul(2),
            Self::Format => bytes(1).saturating_mul(FORMATTED_BYTES),
            Self::Sum => sum(),
        }
    }
}

/// Returns the error of a call whose result is too large.
pub(in crate::sql) fn too_large(function: &str) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::PROGRAM_LIMIT_EXCEEDED,
        format!("the result of {} is too large", shown(function)),
    )
    .hint(format!(
        "a value has at most {} MiB, all values of batch_rows rows have at most {} MiB",
        VALUE_BYTES_MAX >> 20,
        COLUMN_BYTES_MAX >> 20
    ))
}

/// Returns a function as messages show it: with parentheses unless it is an operator.
pub(super) fn shown(function: &str) -> String {
    let is_word = function.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if is_word { format!("{function}()") } else { function.to_owned() }
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
