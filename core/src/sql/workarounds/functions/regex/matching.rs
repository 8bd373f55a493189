//! Matches texts with patterns, row by row.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, BooleanBuilder, Int64Builder, ListBuilder, StringArray,
    StringBuilder,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int64Type};
use datafusion::logical_expr::ColumnarValue;
use regex::Regex;

use super::compiled::compiled;
use super::syntax::similar;
use super::{Operation, RegexFunction};
use crate::error::{Error, Result};

impl RegexFunction {
    /// Returns a value per row.
    pub(super) fn compute(&self, columns: &Columns, rows: usize) -> Result<ArrayRef> {
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

    fn matches(&self, columns: &Columns, rows: usize) -> Result<ArrayRef> {
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
                return Err(Error::invalid("regexp_match() does not support the flag \"g\""));
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

    fn replaced(&self, columns: &Columns, rows: usize) -> Result<ArrayRef> {
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

    fn numbers(&self, columns: &Columns, rows: usize) -> Result<ArrayRef> {
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

    fn substrings(&self, columns: &Columns, rows: usize) -> Result<ArrayRef> {
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

/// The arguments of a call.
pub(super) struct Columns(Vec<Column>);

struct Column {
    array: ArrayRef,
    is_constant: bool,
}

impl Columns {
    /// Reads the arguments: numbers as BIGINT, everything else as text.
    pub(super) fn of(args: &[ColumnarValue]) -> datafusion::common::Result<Self> {
        let columns = args
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
        Ok(Self(columns))
    }

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

/// One boolean per row; NULL if an argument is NULL.
fn booleans(
    columns: &Columns,
    rows: usize,
    matches: impl Fn(&str, &str, usize) -> Result<bool>,
) -> Result<BooleanArray> {
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
    fn replacements_know_groups_by_a_backslash() {
        let replaced = |text: &str, pattern: &str, to: &str, wanted: Option<usize>| {
            replace_in(text, &compiled(pattern, "").unwrap(), to, 0, wanted)
        };
        assert_eq!(replaced("abab", "b", "$1", Some(1)), "a$1ab");
        assert_eq!(replaced("abab", "(a)(b)", "\\2\\1", None), "baba");
        assert_eq!(replaced("abab", "b", "[\\&]", Some(2)), "aba[b]");
        assert_eq!(replaced("ab", "x*", "-", None), "-a-b-");
    }
}
