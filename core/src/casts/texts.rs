//! Casts to text, in PostgreSQL's formats for `DateStyle = ISO` and `IntervalStyle = postgres`.

use std::fmt::Write as _;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::datatypes::{
    DataType, Date32Type, Float32Type, Float64Type, IntervalMonthDayNano, IntervalMonthDayNanoType,
    IntervalUnit, Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};

use super::{DAY_US, arrow_cast, times};
use crate::error::Result;

/// Casts a column to text.
pub(super) fn of(array: &ArrayRef) -> Result<StringArray> {
    use DataType as T;
    let micros = |to: &T| arrow_cast(array, to);
    Ok(match array.data_type() {
        T::Float64 => array.as_primitive::<Float64Type>().iter().map(|value| value.map(double)).collect(),
        T::Float16 | T::Float32 => {
            let reals = micros(&T::Float32)?;
            reals.as_primitive::<Float32Type>().iter().map(|value| value.map(real)).collect()
        }
        T::Binary | T::LargeBinary | T::BinaryView => {
            let bytes = micros(&T::Binary)?;
            bytes.as_binary::<i32>().iter().map(|value| value.map(hex)).collect()
        }
        T::FixedSizeBinary(16) => array
            .as_fixed_size_binary()
            .iter()
            .map(|value| value.map(|bytes| uuid::Uuid::from_slice(bytes).unwrap_or_default().to_string()))
            .collect(),
        T::Date32 | T::Date64 => {
            let dates = micros(&T::Date32)?;
            dates.as_primitive::<Date32Type>().iter().map(|day| day.map(date)).collect()
        }
        T::Time32(_) | T::Time64(_) => {
            let times = micros(&T::Time64(TimeUnit::Microsecond))?;
            times.as_primitive::<Time64MicrosecondType>().iter().map(|time| time.map(time_of_day)).collect()
        }
        T::Timestamp(_, zone) => {
            let has_zone = zone.is_some();
            let times = micros(&T::Timestamp(TimeUnit::Microsecond, zone.clone()))?;
            let times = times.as_primitive::<TimestampMicrosecondType>();
            times.iter().map(|time| time.map(|time| timestamp(time, has_zone))).collect()
        }
        T::Interval(_) | T::Duration(_) => {
            let intervals = micros(&T::Interval(IntervalUnit::MonthDayNano))?;
            let intervals = intervals.as_primitive::<IntervalMonthDayNanoType>();
            intervals.iter().map(|value| value.map(interval)).collect()
        }
        T::List(_) => {
            let lists = array.as_list::<i32>();
            lists
                .iter()
                .map(|list| list.map(|elements| list_text(&elements)).transpose())
                .collect::<Result<_>>()?
        }
        _ => arrow_cast(array, &T::Utf8)?.as_string::<i32>().clone(),
    })
}

/// Writes an array as PostgreSQL does: `{1,NULL,"a b"}`.
fn list_text(elements: &ArrayRef) -> Result<String> {
    let is_list = matches!(elements.data_type(), DataType::List(_));
    let is_boolean = *elements.data_type() == DataType::Boolean;
    let quoted = |text: &str| {
        let is_plain = !text.is_empty()
            && !text.eq_ignore_ascii_case("null")
            && !text.contains(|letter: char| letter.is_whitespace() || "{},\"\\".contains(letter));
        match is_plain || is_list {
            true => text.to_owned(),
            false => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        }
    };
    let texts = of(elements)?;
    let texts = texts.iter().map(|text| match text {
        None => "NULL".to_owned(),
        Some(text) if is_boolean => text.chars().take(1).collect(),
        Some(text) => quoted(text),
    });
    Ok(format!("{{{}}}", texts.collect::<Vec<_>>().join(",")))
}

fn double(value: f64) -> String {
    shortest(value, format!("{value:e}"), 15)
}

fn real(value: f32) -> String {
    shortest(f64::from(value), format!("{value:e}"), 6)
}

/// Writes the fewest digits that identify the float; an exponent only below -4 or from `exponent_max` up.
fn shortest(value: f64, scientific: String, exponent_max: i32) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..exponent_max).contains(&exponent) {
        let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |digits| ("-", digits));
        let digits: String = digits.chars().filter(char::is_ascii_digit).collect();
        return format!("{sign}{}", plain(&digits, exponent));
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

/// Writes `digits`, with the point after the first, times 10^`exponent`, without an exponent.
fn plain(digits: &str, exponent: i32) -> String {
    let Ok(whole) = usize::try_from(exponent) else {
        let zeros = usize::try_from(-exponent - 1).unwrap_or(0);
        return format!("0.{}{digits}", "0".repeat(zeros));
    };
    match digits.split_at_checked(whole + 1) {
        Some((whole, "")) => whole.to_owned(),
        Some((whole, fraction)) => format!("{whole}.{fraction}"),
        None => format!("{digits}{}", "0".repeat(whole + 1 - digits.len())),
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("\\x");
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn date(day: i32) -> String {
    let (text, era) = date_and_era(i64::from(day));
    format!("{text}{era}")
}

/// The date, and ` BC` for years before 1.
fn date_and_era(day: i64) -> (String, &'static str) {
    let (year, month, day) = times::date_of_day(day);
    if year > 0 {
        (format!("{year:04}-{month:02}-{day:02}"), "")
    } else {
        (format!("{:04}-{month:02}-{day:02}", 1 - year), " BC")
    }
}

fn time_of_day(micros: i64) -> String {
    let seconds = micros / 1_000_000;
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}{}", fraction(micros % 1_000_000))
}

/// `.25`, or an empty string for 0.
fn fraction(micros: i64) -> String {
    if micros == 0 {
        return String::new();
    }
    format!(".{micros:06}").trim_end_matches('0').to_owned()
}

fn timestamp(micros: i64, has_zone: bool) -> String {
    let (date, era) = date_and_era(micros.div_euclid(DAY_US));
    let zone = if has_zone { "+00" } else { "" };
    format!("{date} {}{zone}{era}", time_of_day(micros.rem_euclid(DAY_US)))
}

fn interval(value: IntervalMonthDayNano) -> String {
    let IntervalMonthDayNano { months, days, nanoseconds } = value;
    let mut parts = Vec::new();
    let mut is_after_negative = false;
    let mut unit = |count: i32, one: &str, many: &str| {
        if count != 0 {
            let sign = if is_after_negative && count > 0 { "+" } else { "" };
            parts.push(format!("{sign}{count} {}", if count == 1 { one } else { many }));
            is_after_negative = count < 0;
        }
    };
    unit(months / 12, "year", "years");
    unit(months % 12, "mon", "mons");
    unit(days, "day", "days");
    let micros = nanoseconds / 1_000;
    if micros != 0 || parts.is_empty() {
        let sign = if micros < 0 {
            "-"
        } else if is_after_negative {
            "+"
        } else {
            ""
        };
        let micros = i64::try_from(micros.unsigned_abs()).unwrap_or(i64::MAX);
        parts.push(format!("{sign}{}", time_of_day(micros)));
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_with_the_fewest_digits() {
        for (value, expected) in [
            (1.0, "1"),
            (-0.0, "-0"),
            (0.1, "0.1"),
            (1234.5, "1234.5"),
            (1e14, "100000000000000"),
            (1e15, "1e+15"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.000_012_5, "1.25e-05"),
            (-0.000_1, "-0.0001"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(double(value), expected);
        }
        assert_eq!(real(1e6), "1e+06");
        assert_eq!(real(123_456.0), "123456");
        assert_eq!(real(0.1), "0.1");
    }

    #[test]
    fn times_are_written_as_iso_says() {
        assert_eq!(timestamp(1_704_103_200_250_000, false), "2024-01-01 10:00:00.25");
        assert_eq!(timestamp(-1, true), "1969-12-31 23:59:59.999999+00");
        assert_eq!(date(-719_528), "0001-01-01 BC");
        assert_eq!(date(2_932_896), "9999-12-31");
    }

    #[test]
    fn intervals_are_written_in_units() {
        let check = |months, days, micros: i64, expected: &str| {
            let value = IntervalMonthDayNano { months, days, nanoseconds: micros * 1_000 };
            assert_eq!(interval(value), expected);
        };
        check(0, 0, 0, "00:00:00");
        check(14, 3, 14_706_789_000, "1 year 2 mons 3 days 04:05:06.789");
        check(-1, 2, -1, "-1 mons +2 days -00:00:00.000001");
        check(0, -1, 7_200_000_000, "-1 days +02:00:00");
        check(0, 1, 0, "1 day");
    }
}
