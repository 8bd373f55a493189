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

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, BooleanBuilder, Int64Builder, ListBuilder, StringArray,
    StringBuilder,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Int64Type};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{BinaryExpr, Like, ScalarFunction};
use datafusion::logical_expr::{
    ColumnarValue, Expr, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};
use quick_cache::sync::Cache;
use regex::{Regex, RegexBuilder};

use super::regex_syntax::{similar, translated};
use crate::error::{Error, ErrorKind, SqlState};

/// Maximum number of cached patterns.
const COMPILED_MAX: usize = 256;
/// Maximum size of a compiled pattern, in bytes.
const COMPILED_BYTES_MAX: usize = 1 << 20;

static COMPILED: LazyLock<Cache<(String, String), Arc<Regex>>> = LazyLock::new(|| Cache::new(COMPILED_MAX));

/// Replaces `~`, its variants and SIMILAR TO by functions. Runs after type coercion: both sides are text.
pub(super) fn replace(expr: Expr, _: &DFSchema) -> Result<Transformed<Expr>> {
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
            Ok(Transformed::yes(call(Operation::Matches { name, flags }, vec![*left, *right])))
        }
        Expr::SimilarTo(Like { negated, expr, pattern, escape_char, .. }) => {
            let escape = lit(escape_char.unwrap_or('\\').to_string());
            let similar = call(Operation::Similar, vec![*expr, *pattern, escape]);
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

fn call(operation: Operation, args: Vec<Expr>) -> Expr {
    Expr::ScalarFunction(ScalarFunction { func: function(operation), args })
}

/// Returns the compiled pattern, cached. Flags: `i` ignores case; `n`, `m` and `p` make line breaks special;
/// `x` allows comments; `q` takes the pattern literally. `c` and `s` are the default; the caller reads `g`.
fn compiled(pattern: &str, flags: &str) -> crate::error::Result<Arc<Regex>> {
    COMPILED
        .get_or_insert_with(&(pattern.to_owned(), flags.to_owned()), || compile(pattern, flags).map(Arc::new))
}

fn compile(pattern: &str, flags: &str) -> crate::error::Result<Regex> {
    if let Some(unknown) = flags.chars().find(|flag| !"cginmpqsx".contains(*flag)) {
        return Err(Error::invalid(format!("a regular expression has no flag \"{unknown}\"")));
    }
    let pattern = if flags.contains('q') { Cow::Owned(regex::escape(pattern)) } else { translated(pattern)? };
    let by_line = flags.contains(['n', 'm']);
    RegexBuilder::new(&pattern)
        .case_insensitive(flags.contains('i'))
        .multi_line(by_line)
        .dot_matches_new_line(!by_line && !flags.contains('p'))
        .ignore_whitespace(flags.contains('x'))
        .size_limit(COMPILED_BYTES_MAX)
        .build()
        .map_err(|error| invalid(&pattern, &error))
}

fn invalid(pattern: &str, error: &regex::Error) -> Error {
    let shown: String = pattern.chars().take(64).collect();
    if let regex::Error::CompiledTooBig(_) = error {
        return Error::new(
            ErrorKind::ResourceExhausted,
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!("the regular expression \"{shown}\" is too large"),
        );
    }
    Error::new(
        ErrorKind::InvalidArgument,
        SqlState::INVALID_REGULAR_EXPRESSION,
        format!("invalid regular expression \"{shown}\""),
    )
    .source(error.to_string())
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
        let columns = args
            .args
            .iter()
            .map(|value| {
                let ty = if value.data_type().is_numeric() { DataType::Int64 } else { DataType::Utf8 };
                let array = match value {
                    ColumnarValue::Array(array) => Arc::clone(array),
                    ColumnarValue::Scalar(scalar) => scalar.to_array()?,
                };
                Ok(Column {
                    array: cast(&array, &ty)?,
                    is_constant: matches!(value, ColumnarValue::Scalar(_)),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let result = self.compute(&Columns(columns), rows)?;
        if is_constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?));
        }
        Ok(ColumnarValue::Array(result))
    }
}

struct Column {
    array: ArrayRef,
    is_constant: bool,
}

/// The arguments of a call.
struct Columns(Vec<Column>);

impl Columns {
    fn len(&self) -> usize {
        self.0.len()
    }

    /// `None` for NULL and for an omitted argument.
    fn text(&self, place: usize, row: usize) -> Option<&str> {
        let column = self.0.get(place)?;
        let row = if column.is_constant { 0 } else { row };
        let texts: &StringArray = column.array.as_string_opt()?;
        texts.is_valid(row).then(|| texts.value(row))
    }

    fn number(&self, place: usize, row: usize) -> Option<i64> {
        let column = self.0.get(place)?;
        let row = if column.is_constant { 0 } else { row };
        let numbers = column.array.as_primitive_opt::<Int64Type>()?;
        numbers.is_valid(row).then(|| numbers.value(row))
    }

    /// Whether any argument of the call is NULL.
    fn has_null(&self, row: usize) -> bool {
        self.0.iter().any(|column| column.array.is_null(if column.is_constant { 0 } else { row }))
    }

    /// A number that is at least `least`, or `default` if omitted.
    fn count(&self, place: usize, row: usize, default: usize, least: usize) -> crate::error::Result<usize> {
        let Some(number) = self.number(place, row) else { return Ok(default) };
        usize::try_from(number).ok().filter(|number| *number >= least).ok_or_else(|| {
            Error::invalid(format!("{number} is no position in a text"))
                .hint(format!("it is at least {least}"))
        })
    }

    /// The byte at which matching starts; the argument at `place` counts characters from 1.
    fn start(&self, place: usize, row: usize, text: &str) -> crate::error::Result<usize> {
        let start = self.count(place, row, 1, 1)?;
        Ok(text.char_indices().nth(start - 1).map_or(text.len(), |(byte, _)| byte))
    }
}

impl RegexFunction {
    fn compute(&self, columns: &Columns, rows: usize) -> crate::error::Result<ArrayRef> {
        Ok(match self.operation {
            Operation::Matches { name, flags } => {
                let negated = name.starts_with('!');
                Arc::new(booleans(columns, rows, |text, pattern, _| {
                    Ok(compiled(pattern, flags)?.is_match(text) != negated)
                })?)
            }
            Operation::Similar => Arc::new(booleans(columns, rows, |text, pattern, row| {
                let escape = columns.text(2, row).and_then(|escape| escape.chars().next());
                Ok(compiled(&similar(pattern, escape), "")?.is_match(text))
            })?),
            Operation::Like => Arc::new(booleans(columns, rows, |text, pattern, row| {
                Ok(compiled(pattern, columns.text(2, row).unwrap_or_default())?.is_match(text))
            })?),
            Operation::Match => self.matches(columns, rows)?,
            Operation::Replace => self.replaced(columns, rows)?,
            Operation::Count | Operation::Position => self.numbers(columns, rows)?,
            Operation::Substring => self.substrings(columns, rows)?,
        })
    }

    fn matches(&self, columns: &Columns, rows: usize) -> crate::error::Result<ArrayRef> {
        let mut builder = ListBuilder::new(StringBuilder::new());
        for row in 0..rows {
            let (Some(text), Some(pattern), false) =
                (columns.text(0, row), columns.text(1, row), columns.has_null(row))
            else {
                builder.append_null();
                continue;
            };
            let flags = columns.text(2, row).unwrap_or_default();
            if flags.contains('g') {
                return Err(Error::invalid("regexp_match() has no flag \"g\""));
            }
            let Some(found) = compiled(pattern, flags)?.captures(text) else {
                builder.append_null();
                continue;
            };
            let first = usize::from(found.len() > 1);
            for group in found.iter().skip(first) {
                builder.values().append_option(group.map(|group| group.as_str()));
            }
            builder.append(true);
        }
        Ok(Arc::new(builder.finish()))
    }

    fn replaced(&self, columns: &Columns, rows: usize) -> crate::error::Result<ArrayRef> {
        let mut builder = StringBuilder::new();
        for row in 0..rows {
            let (Some(text), Some(pattern), Some(replacement), false) =
                (columns.text(0, row), columns.text(1, row), columns.text(2, row), columns.has_null(row))
            else {
                builder.append_null();
                continue;
            };
            let flags = columns.text(columns.len().max(4) - 1, row).unwrap_or_default();
            let regex = compiled(pattern, flags)?;
            let start = columns.start(3, row, text)?;
            let wanted = columns.count(4, row, 1, 0)?;
            let has_number = columns.number(4, row).is_some();
            let is_all = if has_number { wanted == 0 } else { flags.contains('g') };
            builder.append_value(replace_in(
                text,
                &regex,
                replacement,
                start,
                if is_all { None } else { Some(wanted) },
            ));
        }
        Ok(Arc::new(builder.finish()))
    }

    fn numbers(&self, columns: &Columns, rows: usize) -> crate::error::Result<ArrayRef> {
        let mut builder = Int64Builder::with_capacity(rows);
        for row in 0..rows {
            let (Some(text), Some(pattern), false) =
                (columns.text(0, row), columns.text(1, row), columns.has_null(row))
            else {
                builder.append_null();
                continue;
            };
            let start = columns.start(2, row, text)?;
            let flags =
                columns.text(if self.operation == Operation::Count { 3 } else { 5 }, row).unwrap_or_default();
            let regex = compiled(pattern, flags)?;
            let rest = text.get(start..).unwrap_or_default();
            let number = if self.operation == Operation::Count {
                regex.find_iter(rest).count()
            } else {
                let wanted = columns.count(3, row, 1, 1)?;
                let at_end = columns.number(4, row) == Some(1);
                let group = columns.count(6, row, 0, 0)?;
                let found = regex.captures_iter(rest).nth(wanted - 1).and_then(|found| found.get(group));
                found.map_or(0, |found| {
                    let byte = start + if at_end { found.end() } else { found.start() };
                    text.get(..byte).map_or(0, |before| before.chars().count()) + 1
                })
            };
            builder.append_value(i64::try_from(number).unwrap_or(i64::MAX));
        }
        Ok(Arc::new(builder.finish()))
    }

    fn substrings(&self, columns: &Columns, rows: usize) -> crate::error::Result<ArrayRef> {
        let mut builder = StringBuilder::new();
        for row in 0..rows {
            let (Some(text), Some(pattern), false) =
                (columns.text(0, row), columns.text(1, row), columns.has_null(row))
            else {
                builder.append_null();
                continue;
            };
            let start = columns.start(2, row, text)?;
            let wanted = columns.count(3, row, 1, 1)?;
            let group = columns.count(5, row, 0, 0)?;
            let regex = compiled(pattern, columns.text(4, row).unwrap_or_default())?;
            let rest = text.get(start..).unwrap_or_default();
            let found = regex.captures_iter(rest).nth(wanted - 1).and_then(|found| found.get(group));
            builder.append_option(found.map(|found| found.as_str()));
        }
        Ok(Arc::new(builder.finish()))
    }
}

/// One boolean per row; NULL if an argument is NULL.
fn booleans(
    columns: &Columns,
    rows: usize,
    matches: impl Fn(&str, &str, usize) -> crate::error::Result<bool>,
) -> crate::error::Result<BooleanArray> {
    let mut builder = BooleanBuilder::with_capacity(rows);
    for row in 0..rows {
        match (columns.text(0, row), columns.text(1, row)) {
            (Some(text), Some(pattern)) if !columns.has_null(row) => {
                builder.append_value(matches(text, pattern, row)?);
            }
            _ => builder.append_null(),
        }
    }
    Ok(builder.finish())
}

/// Replaces match number `wanted` after byte `start` of `text`, or all matches for `None`.
fn replace_in(text: &str, regex: &Regex, replacement: &str, start: usize, wanted: Option<usize>) -> String {
    let (before, rest) = text.split_at_checked(start).unwrap_or((text, ""));
    let mut result = String::from(before);
    let mut end = 0;
    for (index, found) in regex.captures_iter(rest).enumerate() {
        if wanted.is_some_and(|wanted| wanted != index + 1) {
            continue;
        }
        let Some(whole) = found.get(0) else { continue };
        result.push_str(rest.get(end..whole.start()).unwrap_or_default());
        end = whole.end();
        let mut chars = replacement.chars();
        while let Some(char) = chars.next() {
            if char != '\\' {
                result.push(char);
                continue;
            }
            let group = |number: usize| found.get(number).map_or("", |group| group.as_str());
            match chars.next() {
                Some('&') => result.push_str(whole.as_str()),
                Some(digit @ '1'..='9') => {
                    result.push_str(group(
                        digit.to_digit(10).and_then(|digit| usize::try_from(digit).ok()).unwrap_or(0),
                    ));
                }
                Some('\\') | None => result.push('\\'),
                Some(other) => result.extend(['\\', other]),
            }
        }
        if wanted.is_some() {
            break;
        }
    }
    result.push_str(rest.get(end..).unwrap_or_default());
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_to_is_a_pattern_for_the_whole_text() {
        let matches =
            |text: &str, pattern: &str| compiled(&similar(pattern, Some('\\')), "").unwrap().is_match(text);
        for (text, pattern, expected) in [
            ("xaxbx", "axb", false),
            ("ab", "a%b", true),
            ("abc", "b", false),
            ("ab", "a_", true),
            ("abc", "(ab|b)c", true),
            ("a.c", "a.c", true),
            ("abc", "a.c", false),
            ("aaa", "a{2,3}", true),
            ("a%", "a\\%", true),
            ("ab", "a\\%", false),
            ("a-b", "a[-+]b", true),
            ("^a", "^a", true),
        ] {
            assert_eq!(matches(text, pattern), expected, "{text} {pattern}");
        }
    }

    #[test]
    fn replacements_know_groups_by_a_backslash() {
        let replaced = |text: &str, pattern: &str, to: &str, wanted: Option<usize>| {
            replace_in(text, &compiled(pattern, "").unwrap(), to, 0, wanted)
        };
        assert_eq!(replaced("abab", "b", "$1", Some(1)), "a$1ab");
        assert_eq!(replaced("abab", "(a)(b)", "\\2\\1", None), "baba");
        assert_eq!(replaced("abab", "b", "[\\&]", Some(2)), "aba[b]");
        assert_eq!(replaced("ab", "x*", "-", None), "-a-b-");
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        let state = |pattern: &str| compiled(pattern, "").unwrap_err().sqlstate();
        assert_eq!(state("("), SqlState::INVALID_REGULAR_EXPRESSION);
        assert_eq!(state("a(?=b)"), SqlState::FEATURE_NOT_SUPPORTED);
        assert_eq!(state("(a)\\1"), SqlState::FEATURE_NOT_SUPPORTED);
        assert!(compiled("\\ma\\M", "i").unwrap().is_match("B A b"));
    }
}
