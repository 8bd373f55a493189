//! Regular expressions with PostgreSQL's semantics and errors, on the crate `regex`.
//!
//! | | DataFusion 55 | here |
//! |---|---|---|
//! | a malformed pattern | an internal error | 2201B |
//! | look-around, back references | an internal error | 0A000 |
//! | `.` and a line break | do not match | match, unless flag `n`, `m` or `p` |
//! | `s ~ '.*'` of NULL | false | NULL |
//! | an unmatched group in `regexp_match` | left out | NULL |
//! | `$1` in a replacement | a group | two characters; a group is `\1` |
//! | `SIMILAR TO` | any regular expression, anywhere in the text | SQL's pattern, for the whole text |
//!
//! Of several alternatives the first match counts, not the longest.

mod compiled;
mod matching;
mod syntax;

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{BinaryExpr, Like, ScalarFunction};
use datafusion::logical_expr::{
    ColumnarValue, Expr, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};

use self::compiled::compiled;
use self::matching::Columns;
use crate::error::{Error, ErrorKind, SqlState};

/// Replaces `~`, its variants and SIMILAR TO by functions. Runs after type coercion: both sides are text.
pub(in crate::sql::workarounds) fn replace(expr: Expr, _: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (name, flags) = match op {
                Operator::RegexMatch => ("~", ""),
                Operator::RegexIMatch => ("~*", "i"),
                Operator::RegexNotMatch => ("!~", ""),
                Operator::RegexNotIMatch => ("!~*", "i"),
                _ => return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right }))),
            };
            if let Expr::Literal(pattern, _) = &*right
                && let Some(Some(pattern)) = pattern.try_as_str()
            {
                compiled(pattern, flags)?;
            }
            Ok(Transformed::yes(regex_call(Operation::Matches { name, flags }, vec![*left, *right])))
        }
        Expr::SimilarTo(Like { negated, expr, pattern, escape_char, .. }) => {
            let escape = lit(escape_char.unwrap_or('\\').to_string());
            let similar = regex_call(Operation::Similar, vec![*expr, *pattern, escape]);
            Ok(Transformed::yes(if negated { Expr::Not(Box::new(similar)) } else { similar }))
        }
        other => Ok(Transformed::no(other)),
    }
}

/// Returns the functions that replace DataFusion's.
pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    [
        Operation::Like,
        Operation::Match,
        Operation::Replace,
        Operation::Count,
        Operation::Position,
        Operation::Substring,
    ]
    .into_iter()
    .map(function)
    .collect()
}

fn function(operation: Operation) -> Arc<ScalarUDF> {
    let signature = Signature::user_defined(Volatility::Immutable);
    Arc::new(ScalarUDF::new_from_impl(RegexFunction { operation, signature }))
}

fn regex_call(operation: Operation, args: Vec<Expr>) -> Expr {
    Expr::ScalarFunction(ScalarFunction { func: function(operation), args })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Operation {
    /// `text ~ pattern`.
    Matches { name: &'static str, flags: &'static str },
    /// `text SIMILAR TO pattern ESCAPE escape`.
    Similar,
    /// `regexp_like(text, pattern [, flags])`.
    Like,
    /// `regexp_match(text, pattern [, flags])`.
    Match,
    /// `regexp_replace(text, pattern, replacement [, start [, n]] [, flags])`.
    Replace,
    /// `regexp_count(text, pattern [, start [, flags]])`.
    Count,
    /// `regexp_instr(text, pattern [, start [, n [, end [, flags [, group]]]]])`.
    Position,
    /// `regexp_substr(text, pattern [, start [, n [, flags [, group]]]])`.
    Substring,
}

/// The kind of an argument.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Argument {
    Text,
    Number,
}

impl Operation {
    /// The arguments of a call with `types`; `None` if there is no such call.
    fn arguments(self, types: &[DataType]) -> Option<Vec<Argument>> {
        use Argument::{Number, Text};
        let is_number = |place: usize| types.get(place).is_some_and(DataType::is_numeric);
        let all: &[Argument] = match self {
            Self::Matches { .. } => &[Text, Text],
            Self::Similar => &[Text, Text, Text],
            Self::Like | Self::Match => &[Text, Text, Text],
            Self::Replace if is_number(4) => &[Text, Text, Text, Number, Number, Text],
            Self::Replace if is_number(3) => &[Text, Text, Text, Number, Text],
            Self::Replace => &[Text, Text, Text, Text],
            Self::Count => &[Text, Text, Number, Text],
            Self::Position => &[Text, Text, Number, Number, Number, Text, Number],
            Self::Substring => &[Text, Text, Number, Number, Text, Number],
        };
        let least = match self {
            Self::Similar | Self::Replace => 3,
            _ => 2,
        };
        (least..=all.len()).contains(&types.len()).then(|| all.iter().copied().take(types.len()).collect())
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct RegexFunction {
    operation: Operation,
    signature: Signature,
}

impl ScalarUDFImpl for RegexFunction {
    fn name(&self) -> &str {
        match self.operation {
            Operation::Matches { name, .. } => name,
            Operation::Similar => "SIMILAR TO",
            Operation::Like => "regexp_like",
            Operation::Match => "regexp_match",
            Operation::Replace => "regexp_replace",
            Operation::Count => "regexp_count",
            Operation::Position => "regexp_instr",
            Operation::Substring => "regexp_substr",
        }
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let names: Vec<String> = args.iter().map(|arg| arg.schema_name().to_string()).collect();
        Ok(match (self.operation, names.as_slice()) {
            (Operation::Matches { .. } | Operation::Similar, [left, right, ..]) => {
                format!("{left} {} {right}", self.name())
            }
            _ => format!("{}({})", self.name(), names.join(",")),
        })
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let Some(arguments) = self.operation.arguments(types) else { return Ok(types.to_vec()) };
        Ok(arguments
            .into_iter()
            .map(|argument| if argument == Argument::Text { DataType::Utf8 } else { DataType::Int64 })
            .collect())
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        if self.operation.arguments(types).is_none() {
            return Err(Error::new(
                ErrorKind::NotFound,
                SqlState::UNDEFINED_FUNCTION,
                format!(
                    "function {}() with {} arguments of these types does not exist",
                    self.name(),
                    types.len()
                ),
            )
            .into());
        }
        Ok(match self.operation {
            Operation::Matches { .. } | Operation::Similar | Operation::Like => DataType::Boolean,
            Operation::Match => DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true))),
            Operation::Replace | Operation::Substring => DataType::Utf8,
            Operation::Count | Operation::Position => DataType::Int64,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let rows = if is_constant { 1 } else { args.number_rows };
        let result = self.compute(&Columns::of(&args)?, rows)?;
        if is_constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?));
        }
        Ok(ColumnarValue::Array(result))
    }
}
