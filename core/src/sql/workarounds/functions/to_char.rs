//! `to_char(time, format)` with PostgreSQL's format words. A format with `%` is strftime's, as in DataFusion.
//!
//! The words are those of <https://www.postgresql.org/docs/15/functions-formatting.html>, table 9.27, except
//! time zones and eras. Prefix `FM` and suffix `TH` are supported; text in double quotes is copied.

use std::sync::Arc;

use chrono::{DateTime, Datelike, NaiveDateTime, Timelike};
use datafusion::arrow::array::{Array, AsArray, StringBuilder};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use datafusion::common::{Result, ScalarValue};
use datafusion::functions::datetime::to_char as datafusion_to_char;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use crate::casts::cast as cast_value;
use crate::error::Error;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const ROMAN: [&str; 12] = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII"];

/// `to_char(time, format)`.
pub(super) fn function() -> ScalarUDF {
    ScalarUDF::new_from_impl(ToChar {
        strftime: datafusion_to_char(),
        signature: Signature::user_defined(Volatility::Immutable),
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ToChar {
    strftime: Arc<ScalarUDF>,
    signature: Signature,
}

impl ScalarUDFImpl for ToChar {
    fn name(&self) -> &str {
        "to_char"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(argument_types(types).unwrap_or_else(|_| types.to_vec()))
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        argument_types(types)?;
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [times, formats] = arrays.as_slice() else {
            return Err(Error::internal("to_char() takes two arguments").into());
        };
        let formats = cast(formats, &DataType::Utf8)?;
        let formats = formats.as_string::<i32>();
        if formats.iter().flatten().any(|format| format.contains('%')) {
            return self.strftime.invoke_with_args(args);
        }
        let zone = if let DataType::Timestamp(_, zone) = times.data_type() { zone.clone() } else { None };
        let times = match times.data_type() {
            DataType::Time32(_) | DataType::Time64(_) => {
                let times = cast(&cast(times, &DataType::Time64(TimeUnit::Microsecond))?, &DataType::Int64)?;
                cast(&times, &DataType::Timestamp(TimeUnit::Microsecond, None))?
            }
            DataType::Duration(_) | DataType::Interval(_) => {
                return Err(Error::unsupported("to_char() of an interval").into());
            }
            _ => cast_value(times, &DataType::Timestamp(TimeUnit::Microsecond, zone))?,
        };
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let mut builder = StringBuilder::new();
        for (time, format) in times.iter().zip(formats) {
            let time = time.and_then(DateTime::from_timestamp_micros).map(|time| time.naive_utc());
            match (time, format) {
                (Some(time), Some(format)) => builder.append_value(formatted(&time, format)?),
                _ => builder.append_null(),
            }
        }
        let texts = builder.finish();
        if is_constant && texts.len() == 1 {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&texts, 0)?));
        }
        Ok(ColumnarValue::Array(Arc::new(texts)))
    }
}

fn argument_types(types: &[DataType]) -> crate::error::Result<Vec<DataType>> {
    match types {
        [time, _] if time.is_temporal() || *time == DataType::Null => Ok(vec![time.clone(), DataType::Utf8]),
        [other, _] => Err(Error::unsupported(format!("to_char() of a value of type {other}"))
            .hint("to_char() supports dates, times and timestamps; use CAST(... AS TEXT) for numbers")),
        _ => Err(Error::invalid("to_char() takes two arguments: a time and a format")),
    }
}

/// A format word and how to write it for a time.
type Word = (&'static str, fn(&NaiveDateTime) -> Written);

/// The value of a word.
enum Written {
    /// A number and its minimum number of digits.
    Number(i64, usize),
    /// Text and the width to which it is padded.
    Text(String, usize),
}

use Written::{Number, Text};

/// Longer words stand before their own prefixes.
const WORDS: [Word; 49] = [
    ("HH24", |time| Number(time.hour().into(), 2)),
    ("HH12", |time| Number(time.hour12().1.into(), 2)),
    ("HH", |time| Number(time.hour12().1.into(), 2)),
    ("MI", |time| Number(time.minute().into(), 2)),
    ("SSSSS", |time| Number(time.num_seconds_from_midnight().into(), 1)),
    ("SSSS", |time| Number(time.num_seconds_from_midnight().into(), 1)),
    ("SS", |time| Number(time.second().into(), 2)),
    ("MS", |time| Number((time.nanosecond() / 1_000_000).into(), 3)),
    ("US", |time| Number((time.nanosecond() / 1_000).into(), 6)),
    ("FF1", |time| Number((time.nanosecond() / 100_000_000).into(), 1)),
    ("FF2", |time| Number((time.nanosecond() / 10_000_000).into(), 2)),
    ("FF3", |time| Number((time.nanosecond() / 1_000_000).into(), 3)),
    ("FF4", |time| Number((time.nanosecond() / 100_000).into(), 4)),
    ("FF5", |time| Number((time.nanosecond() / 10_000).into(), 5)),
    ("FF6", |time| Number((time.nanosecond() / 1_000).into(), 6)),
    ("AM", |time| Text(half(time, "AM", "PM"), 0)),
    ("PM", |time| Text(half(time, "AM", "PM"), 0)),
    ("am", |time| Text(half(time, "am", "pm"), 0)),
    ("pm", |time| Text(half(time, "am", "pm"), 0)),
    ("A.M.", |time| Text(half(time, "A.M.", "P.M."), 0)),
    ("P.M.", |time| Text(half(time, "A.M.", "P.M."), 0)),
    ("a.m.", |time| Text(half(time, "a.m.", "p.m."), 0)),
    ("p.m.", |time| Text(half(time, "a.m.", "p.m."), 0)),
    ("Y,YYY", |time| Text(format!("{},{:03}", time.year() / 1_000, time.year() % 1_000), 0)),
    ("YYYY", |time| Number(time.year().into(), 4)),
    ("YYY", |time| Number((time.year() % 1_000).into(), 3)),
    ("YY", |time| Number((time.year() % 100).into(), 2)),
    ("Y", |time| Number((time.year() % 10).into(), 1)),
    ("IYYY", |time| Number(time.iso_week().year().into(), 4)),
    ("IYY", |time| Number((time.iso_week().year() % 1_000).into(), 3)),
    ("IY", |time| Number((time.iso_week().year() % 100).into(), 2)),
    ("MONTH", |time| Text(month(time).to_uppercase(), 9)),
    ("Month", |time| Text(month(time).to_owned(), 9)),
    ("month", |time| Text(month(time).to_lowercase(), 9)),
    ("MON", |time| Text(short(month(time)).to_uppercase(), 0)),
    ("Mon", |time| Text(short(month(time)).to_owned(), 0)),
    ("mon", |time| Text(short(month(time)).to_lowercase(), 0)),
    ("MM", |time| Number(time.month().into(), 2)),
    ("DAY", |time| Text(day(time).to_uppercase(), 9)),
    ("Day", |time| Text(day(time).to_owned(), 9)),
    ("day", |time| Text(day(time).to_lowercase(), 9)),
    ("DY", |time| Text(short(day(time)).to_uppercase(), 0)),
    ("Dy", |time| Text(short(day(time)).to_owned(), 0)),
    ("dy", |time| Text(short(day(time)).to_lowercase(), 0)),
    ("IDDD", |time| {
        let week = i64::from(time.iso_week().week());
        Number((week - 1) * 7 + i64::from(time.weekday().number_from_monday()), 3)
    }),
    ("DDD", |time| Number(time.ordinal().into(), 3)),
    ("DD", |time| Number(time.day().into(), 2)),
    ("RM", |time| Text(numeral(time), 4)),
    ("rm", |time| Text(numeral(time).to_lowercase(), 4)),
];

/// Words of one or two letters, after the longer words that begin with them.
const SHORT_WORDS: [Word; 9] = [
    ("ID", |time| Number(time.weekday().number_from_monday().into(), 1)),
    ("IW", |time| Number(time.iso_week().week().into(), 2)),
    ("I", |time| Number((time.iso_week().year() % 10).into(), 1)),
    ("D", |time| Number((time.weekday().num_days_from_sunday() + 1).into(), 1)),
    ("WW", |time| Number((time.ordinal0() / 7 + 1).into(), 2)),
    ("W", |time| Number((time.day0() / 7 + 1).into(), 1)),
    ("CC", |time| Number(((time.year() + 99) / 100).into(), 2)),
    ("Q", |time| Number(time.quarter().into(), 1)),
    ("J", |time| Number((time.num_days_from_ce() + 1_721_425).into(), 1)),
];

fn half(time: &NaiveDateTime, morning: &str, afternoon: &str) -> String {
    if time.hour() < 12 { morning } else { afternoon }.to_owned()
}

fn month(time: &NaiveDateTime) -> &'static str {
    usize::try_from(time.month0()).ok().and_then(|month| MONTHS.get(month)).unwrap_or(&"")
}

fn numeral(time: &NaiveDateTime) -> String {
    let numeral = usize::try_from(time.month0()).ok().and_then(|month| ROMAN.get(month)).unwrap_or(&"");
    (*numeral).to_owned()
}

fn day(time: &NaiveDateTime) -> &'static str {
    let number = usize::try_from(time.weekday().num_days_from_sunday()).unwrap_or(0);
    DAYS.get(number).unwrap_or(&"")
}

fn short(name: &str) -> &str {
    name.get(..3).unwrap_or(name)
}

fn formatted(time: &NaiveDateTime, format: &str) -> crate::error::Result<String> {
    let mut written = String::with_capacity(format.len() + 8);
    let mut rest = format;
    let mut is_unpadded = false;
    while let Some(char) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("FM").or_else(|| rest.strip_prefix("fm")) {
            (is_unpadded, rest) = (true, after);
            continue;
        }
        if let Some(quoted) = rest.strip_prefix('"') {
            let (text, after) = quoted.split_once('"').unwrap_or((quoted, ""));
            written.push_str(text);
            rest = after;
            continue;
        }
        let Some((value, after)) = word(time, rest) else {
            if char.is_ascii_alphabetic() {
                return Err(unknown(rest));
            }
            written.push(char);
            rest = rest.get(char.len_utf8()..).unwrap_or_default();
            continue;
        };
        rest = after;
        let number = if let Number(number, _) = value { Some(number) } else { None };
        written.push_str(&match value {
            Number(number, _) if is_unpadded => number.to_string(),
            Number(number, digits) => format!("{number:0digits$}"),
            Text(text, _) if is_unpadded => text,
            Text(text, width) => format!("{text:width$}"),
        });
        is_unpadded = false;
        if let Some(number) = number {
            if let Some(after) = rest.strip_prefix("TH") {
                (rest, written) = (after, written + &ordinal(number).to_uppercase());
            } else if let Some(after) = rest.strip_prefix("th") {
                (rest, written) = (after, written + ordinal(number));
            }
        }
    }
    Ok(written)
}

/// Splits off the word that a format begins with. Numeric words are read in any case.
fn word<'a>(time: &NaiveDateTime, format: &'a str) -> Option<(Written, &'a str)> {
    let words = || WORDS.iter().chain(&SHORT_WORDS);
    let exact = words().find(|(name, _)| format.starts_with(name));
    let found = exact.or_else(|| {
        words().find(|(name, value)| {
            let begins = format.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
            begins && matches!(value(time), Number(..))
        })
    });
    found.map(|(name, value)| (value(time), format.get(name.len()..).unwrap_or_default()))
}

fn ordinal(number: i64) -> &'static str {
    match (number % 100, number % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    }
}

fn unknown(rest: &str) -> Error {
    let word: String = rest.chars().take_while(char::is_ascii_alphabetic).take(16).collect();
    Error::unsupported(format!("\"{word}\" in a format of to_char()"))
        .hint("put literal text in double quotes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_those_of_postgres() {
        let time = DateTime::from_timestamp_micros(1_704_434_828_250_000).unwrap().naive_utc();
        for (format, expected) in [
            ("YYYY-MM-DD", "2024-01-05"),
            ("yyyy-mm-dd hh24:mi:ss.ms", "2024-01-05 06:07:08.250"),
            ("HH12:MI AM", "06:07 AM"),
            ("Day, DDth FMMonth", "Friday   , 05th January"),
            ("FMDay FMDD Mon YY", "Friday 5 Jan 24"),
            ("Q \"of\" YYYY, IW IYYY DDD", "1 of 2024, 01 2024 005"),
            ("US J D ID CC", "250000 2460315 6 5 21"),
        ] {
            assert_eq!(formatted(&time, format).unwrap(), expected, "{format}");
        }
        assert!(formatted(&time, "YYYY x").is_err());
    }
}
