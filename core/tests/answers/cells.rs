//! One notation for the values of two engines, so that equal values are equal texts.

use std::collections::HashMap;

use chrono::{DateTime, NaiveDateTime, Timelike};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float64Type, Int64Type, SchemaRef, TimeUnit,
    TimestampMicrosecondType,
};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use tokio::task::JoinHandle;

/// Floats are compared to this many digits: a sum depends on the order of its terms.
const DIGITS_COMPARED: usize = 12;

/// Why a statement failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) sqlstate: String,
    pub(crate) text: String,
}

impl Failure {
    /// Returns whether the error is internal, which is always our defect.
    pub(crate) fn is_internal(&self) -> bool {
        self.sqlstate == "XX000"
    }
}

/// Awaits a statement that runs in its own task, so that a panic counts as its failure.
pub(crate) async fn joined<T>(task: JoinHandle<Result<T, Failure>>) -> Result<T, Failure> {
    task.await
        .unwrap_or_else(|panicked| Err(Failure { sqlstate: "XX000".to_owned(), text: panicked.to_string() }))
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}] {}", self.sqlstate, self.text)
    }
}

/// PostgreSQL's answer to a query, with values as it writes them.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Rows(Vec<Vec<Option<String>>>),
    Failed(Failure),
}

/// Rows as lines.
pub(crate) type Lines = Vec<String>;

/// The notation of a column's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notation {
    Number,
    Float,
    Boolean,
    Date,
    Timestamp,
    Other,
}

/// Returns the notations of a result's columns.
pub(crate) fn notations(schema: &SchemaRef) -> Vec<Notation> {
    let notation = |ty: &DataType| match ty {
        DataType::Boolean => Notation::Boolean,
        DataType::Date32 => Notation::Date,
        DataType::Timestamp(..) => Notation::Timestamp,
        ty if ty.is_floating() => Notation::Float,
        ty if ty.is_numeric() => Notation::Number,
        _ => Notation::Other,
    };
    schema.fields().iter().map(|field| notation(field.data_type())).collect()
}

/// Returns the rows of our own answer as lines.
pub(crate) fn lines(batches: &[RecordBatch]) -> Lines {
    let mut lines = Vec::new();
    for batch in batches {
        let columns: Vec<Vec<String>> = batch.columns().iter().map(column).collect();
        lines.extend(
            (0..batch.num_rows())
                .map(|row| columns.iter().map(|column| column[row].as_str()).collect::<Vec<_>>().join("|")),
        );
    }
    lines
}

fn column(array: &ArrayRef) -> Vec<String> {
    let text = |row: usize| -> String {
        match array.data_type() {
            DataType::Boolean => array.as_boolean().value(row).to_string(),
            DataType::Date32 => array.as_primitive::<Date32Type>().value_as_date(row).unwrap().to_string(),
            DataType::Timestamp(..) => {
                let plain =
                    cast(&array.slice(row, 1), &DataType::Timestamp(TimeUnit::Microsecond, None)).unwrap();
                let us = plain.as_primitive::<TimestampMicrosecondType>().value(0);
                timestamp(DateTime::from_timestamp_micros(us).unwrap().naive_utc())
            }
            ty if ty.is_floating() => float(
                cast(&array.slice(row, 1), &DataType::Float64)
                    .unwrap()
                    .as_primitive::<Float64Type>()
                    .value(0),
            ),
            ty if ty.is_integer() => number(
                &cast(&array.slice(row, 1), &DataType::Int64)
                    .unwrap()
                    .as_primitive::<Int64Type>()
                    .value(0)
                    .to_string(),
            ),
            DataType::Decimal128(..) => number(&array.as_primitive::<Decimal128Type>().value_as_string(row)),
            DataType::Binary => {
                let hex: String =
                    array.as_binary::<i32>().value(row).iter().map(|byte| format!("{byte:02x}")).collect();
                format!("\\x{hex}")
            }
            _ => ArrayFormatter::try_new(array, &FormatOptions::default()).unwrap().value(row).to_string(),
        }
    };
    (0..array.len()).map(|row| if array.is_null(row) { "NULL".to_owned() } else { text(row) }).collect()
}

/// Returns the rows of PostgreSQL's answer as lines in our notation.
pub(crate) fn foreign_lines(rows: &[Vec<Option<String>>], notations: &[Notation]) -> Lines {
    let cell = |(place, value): (usize, &Option<String>)| {
        let Some(value) = value else { return "NULL".to_owned() };
        match notations.get(place).copied().unwrap_or(Notation::Other) {
            Notation::Number => number(value),
            Notation::Float => value.parse().map_or_else(|_| value.clone(), float),
            Notation::Boolean => match value.as_str() {
                "t" => "true".to_owned(),
                "f" => "false".to_owned(),
                other => other.to_owned(),
            },
            Notation::Timestamp => {
                let plain = value.trim_end_matches("+00");
                match NaiveDateTime::parse_from_str(plain, "%Y-%m-%d %H:%M:%S%.f") {
                    Ok(read) => timestamp(read),
                    Err(_) => value.clone(),
                }
            }
            Notation::Date | Notation::Other => value.clone(),
        }
    };
    rows.iter().map(|row| row.iter().enumerate().map(cell).collect::<Vec<_>>().join("|")).collect()
}

fn timestamp(value: NaiveDateTime) -> String {
    let whole = value.format("%Y-%m-%d %H:%M:%S");
    match value.nanosecond() / 1_000 {
        0 => whole.to_string(),
        us => format!("{whole}.{us:06}"),
    }
}

fn float(value: f64) -> String {
    if !value.is_finite() || value == 0.0 {
        return if value == 0.0 { "0".to_owned() } else { value.to_string().to_lowercase() };
    }
    number(&format!("{value:.*e}", DIGITS_COMPARED - 1))
}

/// Writes a number without insignificant zeros.
pub(crate) fn number(text: &str) -> String {
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let Ok(exponent) = exponent.parse::<i64>() else { return text.to_owned() };
    let (sign, unsigned) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    if !unsigned.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return text.to_lowercase();
    }
    let mut point = i64::try_from(whole.len()).unwrap() + exponent;
    let all = format!("{whole}{fraction}");
    let digits = all.trim_start_matches('0');
    point -= i64::try_from(all.len() - digits.len()).unwrap();
    let digits = digits.trim_end_matches('0');
    if digits.is_empty() {
        return "0".to_owned();
    }
    format!("{sign}0.{digits}e{point}")
}

/// Describes which rows only one of two answers has, a few of each.
pub(crate) fn difference(expected: &[String], found: &[String]) -> String {
    let mut counts: HashMap<&str, i64> = HashMap::new();
    for line in expected {
        *counts.entry(line).or_default() += 1;
    }
    for line in found {
        *counts.entry(line).or_default() -= 1;
    }
    let mut missing: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).map(|(line, _)| *line).collect();
    let mut extra: Vec<_> = counts.iter().filter(|(_, count)| **count < 0).map(|(line, _)| *line).collect();
    missing.sort_unstable();
    extra.sort_unstable();
    missing.truncate(4);
    extra.truncate(4);
    format!(
        "{} rows are right, {} came; missing {missing:?}, not right {extra:?}",
        expected.len(),
        found.len()
    )
}
