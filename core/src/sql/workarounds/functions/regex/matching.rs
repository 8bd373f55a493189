//! Matches texts with patterns, row by row.
//!
//! The next match can be as far away as the end of the text. So finding all matches can take a time that
//! grows with the square of the text, and checks that the statement may go on.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, ListBuilder, StringArray, StringBuilder,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int64Type};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs};
use regex::{Captures, Regex};

use super::compiled::compiled;
use super::syntax::similar;
use super::{Operation, RegexFunction};
use crate::error::{Error, Result};
use crate::sql::guests::options::GuestOptions;
use crate::workload::StatementControl;

/// After this many matches there is a check.
const MATCHES_MAX: usize = 64;

impl RegexFunction {
    /// Returns a value per row.
    pub(super) fn compute(&self, columns: &Columns, rows: usize) -> Result<ArrayRef> {
        Ok(match self.operation {
            Operation::Matches { name, flags } => {
                let negated = name.starts_with('!');
                Arc::new(per_row::<BooleanArray, _>(columns, rows, |text, pattern, _| {
                    Ok(Some(compiled(pattern, flags)?.is_match(text) != negated))
                })?)
            }
            Operation::Similar => {
                Arc::new(per_row::<BooleanArray, _>(columns, rows, |text, pattern, row| {
                    let escape = columns.text(2, row).and_then(|escape| escape.chars().next());
                    Ok(Some(compiled(&similar(pattern, escape), "")?.is_match(text)))
                })?)
            }
            Operation::Like => Arc::new(per_row::<BooleanArray, _>(columns, rows, |text, pattern, row| {
                let flags = columns.text(2, row).unwrap_or_default();
                Ok(Some(compiled(pattern, flags)?.is_match(text)))
            })?),
            Operation::Match => matches(columns, rows)?,
            Operation::Replace => replaced(columns, rows)?,
            Operation::Count | Operation::Position => self.numbers(columns, rows)?,
            Operation::Substring => substrings(columns, rows)?,
        })
    }

    fn numbers(&self, columns: &Columns, rows: usize) -> Result<ArrayRef> {
        let is_count = self.operation == Operation::Count;
        let numbers = per_row::<Int64Array, _>(columns, rows, |text, pattern, row| {
            let start = columns.start(2, row, text)?;
            let flags = columns.text(if is_count { 3 } else { 5 }, row).unwrap_or_default();
            let regex = compiled(pattern, flags)?;
            let rest = text.get(start..).unwrap_or_default();
            let number = if is_count {
                checked(regex.find_iter(rest), columns.control())
                    .try_fold(0, |count, found| found.map(|_| count + 1))?
            } else {
                let wanted = columns.count(3, row, 1, 1)?;
                let at_end = columns.number(4, row) == Some(1);
                let group = columns.count(6, row, 0, 0)?;
                let found = nth(&regex, rest, wanted, columns.control())?;
                found.and_then(|found| found.get(group)).map_or(0, |found| {
                    let byte = start + if at_end { found.end() } else { found.start() };
                    text.get(..byte).map_or(0, |before| before.chars().count()) + 1
                })
            };
            Ok(Some(i64::try_from(number).unwrap_or(i64::MAX)))
        });
        Ok(Arc::new(numbers?))
    }
}

fn matches(columns: &Columns, rows: usize) -> Result<ArrayRef> {
    let found = per_row::<Vec<_>, _>(columns, rows, |text, pattern, row| {
        let flags = columns.text(2, row).unwrap_or_default();
        if flags.contains('g') {
            return Err(Error::invalid("regexp_match() does not support the flag \"g\""));
        }
        let groups = compiled(pattern, flags)?.captures(text).map(|found| {
            let first = usize::from(found.len() > 1);
            found.iter().skip(first).map(|group| group.map(|group| group.as_str())).collect::<Vec<_>>()
        });
        Ok(groups)
    });
    let mut builder = ListBuilder::new(StringBuilder::new());
    builder.extend(found?);
    Ok(Arc::new(builder.finish()))
}

fn replaced(columns: &Columns, rows: usize) -> Result<ArrayRef> {
    let replaced = per_row::<StringArray, _>(columns, rows, |text, pattern, row| {
        let replacement = columns.text(2, row).unwrap_or_default();
        let flags = columns.text(columns.len().max(4) - 1, row).unwrap_or_default();
        let regex = compiled(pattern, flags)?;
        let start = columns.start(3, row, text)?;
        let wanted = columns.count(4, row, 1, 0)?;
        let has_number = columns.number(4, row).is_some();
        let is_all = if has_number { wanted == 0 } else { flags.contains('g') };
        let wanted = if is_all { None } else { Some(wanted) };
        replace_in(text, &regex, replacement, start, wanted, columns.control()).map(Some)
    });
    Ok(Arc::new(replaced?))
}

fn substrings(columns: &Columns, rows: usize) -> Result<ArrayRef> {
    let substrings = per_row::<StringArray, _>(columns, rows, |text, pattern, row| {
        let start = columns.start(2, row, text)?;
        let wanted = columns.count(3, row, 1, 1)?;
        let group = columns.count(5, row, 0, 0)?;
        let regex = compiled(pattern, columns.text(4, row).unwrap_or_default())?;
        let rest = text.get(start..).unwrap_or_default();
        let found = nth(&regex, rest, wanted, columns.control())?.and_then(|found| found.get(group));
        Ok(found.map(|found| found.as_str()))
    });
    Ok(Arc::new(substrings?))
}

/// Computes a value per row from its text, its pattern and its number; NULL if an argument is NULL.
fn per_row<'a, A: FromIterator<Option<T>>, T>(
    columns: &'a Columns,
    rows: usize,
    value: impl Fn(&'a str, &'a str, usize) -> Result<Option<T>>,
) -> Result<A> {
    (0..rows)
        .map(|row| match (columns.text(0, row), columns.text(1, row)) {
            (Some(text), Some(pattern)) if !columns.has_null(row) => value(text, pattern, row),
            _ => Ok(None),
        })
        .collect()
}

/// The arguments of a call.
pub(super) struct Columns {
    columns: Vec<Column>,
    /// The control of the statement, if the call belongs to one.
    control: Option<Arc<StatementControl>>,
}

struct Column {
    array: ArrayRef,
    is_constant: bool,
}

impl Columns {
    /// Reads the arguments: numbers as BIGINT, everything else as text.
    pub(super) fn of(args: &ScalarFunctionArgs) -> datafusion::common::Result<Self> {
        let columns = args
            .args
            .iter()
            .map(|value| {
                let ty = if value.data_type().is_numeric() { DataType::Int64 } else { DataType::Utf8 };
                let array = match value {
                    ColumnarValue::Array(array) => Arc::clone(array),
                    ColumnarValue::Scalar(scalar) => scalar.to_array()?,
                };
                let is_constant = matches!(value, ColumnarValue::Scalar(_));
                Ok(Column { array: cast(&array, &ty)?, is_constant })
            })
            .collect::<datafusion::common::Result<Vec<_>>>()?;
        Ok(Self { columns, control: GuestOptions::control(&args.config_options).map(Arc::clone) })
    }

    fn len(&self) -> usize {
        self.columns.len()
    }

    fn control(&self) -> Option<&StatementControl> {
        self.control.as_deref()
    }

    /// `None` for NULL and for an omitted argument.
    fn text(&self, place: usize, row: usize) -> Option<&str> {
        let column = self.columns.get(place)?;
        let row = if column.is_constant { 0 } else { row };
        let texts: &StringArray = column.array.as_string_opt()?;
        texts.is_valid(row).then(|| texts.value(row))
    }

    fn number(&self, place: usize, row: usize) -> Option<i64> {
        let column = self.columns.get(place)?;
        let row = if column.is_constant { 0 } else { row };
        let numbers = column.array.as_primitive_opt::<Int64Type>()?;
        numbers.is_valid(row).then(|| numbers.value(row))
    }

    /// Whether any argument of the call is NULL.
    fn has_null(&self, row: usize) -> bool {
        self.columns.iter().any(|column| column.array.is_null(if column.is_constant { 0 } else { row }))
    }

    /// A number that is at least `least`, or `default` if omitted.
    fn count(&self, place: usize, row: usize, default: usize, least: usize) -> Result<usize> {
        let Some(number) = self.number(place, row) else { return Ok(default) };
        usize::try_from(number).ok().filter(|number| *number >= least).ok_or_else(|| {
            Error::invalid(format!("argument {} cannot be {number}", place + 1))
                .hint(format!("it must be at least {least}"))
        })
    }

    /// The byte at which matching starts; the argument at `place` counts characters from 1.
    fn start(&self, place: usize, row: usize, text: &str) -> Result<usize> {
        let start = self.count(place, row, 1, 1)?;
        Ok(text.char_indices().nth(start - 1).map_or(text.len(), |(byte, _)| byte))
    }
}

/// Passes matches on while the statement may go on.
fn checked<T>(
    matches: impl Iterator<Item = T>,
    control: Option<&StatementControl>,
) -> impl Iterator<Item = Result<T>> {
    matches.enumerate().map(move |(index, found)| {
        if let Some(control) = control
            && index % MATCHES_MAX == 0
        {
            control.check()?;
        }
        Ok(found)
    })
}

/// Returns match number `wanted`, counted from 1.
fn nth<'t>(
    regex: &Regex,
    text: &'t str,
    wanted: usize,
    control: Option<&StatementControl>,
) -> Result<Option<Captures<'t>>> {
    for (index, found) in checked(regex.captures_iter(text), control).enumerate() {
        let found = found?;
        if index + 1 == wanted {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Replaces match number `wanted` after byte `start` of `text`, or all matches for `None`.
fn replace_in(
    text: &str,
    regex: &Regex,
    replacement: &str,
    start: usize,
    wanted: Option<usize>,
    control: Option<&StatementControl>,
) -> Result<String> {
    let (before, rest) = text.split_at_checked(start).unwrap_or((text, ""));
    let mut result = String::from(before);
    let mut end = 0;
    for (index, found) in checked(regex.captures_iter(rest), control).enumerate() {
        let found = found?;
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
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacements_know_groups_by_a_backslash() {
        let replaced = |text: &str, pattern: &str, to: &str, wanted: Option<usize>| {
            replace_in(text, &compiled(pattern, "").unwrap(), to, 0, wanted, None).unwrap()
        };
        assert_eq!(replaced("abab", "b", "$1", Some(1)), "a$1ab");
        assert_eq!(replaced("abab", "(a)(b)", "\\2\\1", None), "baba");
        assert_eq!(replaced("abab", "b", "[\\&]", Some(2)), "aba[b]");
        assert_eq!(replaced("ab", "x*", "-", None), "-a-b-");
    }
}
