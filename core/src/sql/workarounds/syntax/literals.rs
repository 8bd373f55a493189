//! Rewrites numbers and intervals in forms that the planner reads correctly.

use datafusion::sql::sqlparser::ast::{self, DateTimeField, Expr, UnaryOperator};

use super::{cast, number as written, text};
use crate::casts::{out_of_range, parse_decimal, times};
use crate::error::Result;

use datafusion::arrow::datatypes::{DataType, IntervalMonthDayNano, IntervalUnit};

/// Maximum precision of a DECIMAL.
const DIGITS_MAX: usize = 38;
const INTERVAL: DataType = DataType::Interval(IntervalUnit::MonthDayNano);
const NANOS: i64 = 1_000_000_000;
const MINUTE_NANOS: i64 = 60 * NANOS;

/// Rewrites a number with an exponent, which the planner gives a negative scale, or with more than 38 digits;
/// `None` for any other.
///
/// # Errors
/// 22003 for an integer part of more than 38 digits without an exponent.
pub(super) fn number(literal: &str) -> Result<Option<Expr>> {
    let (digits, exponent) = literal.split_once(['e', 'E']).unwrap_or((literal, "0"));
    let significant = digits.bytes().filter(u8::is_ascii_digit).count();
    if !literal.contains(['e', 'E']) && significant <= DIGITS_MAX {
        return Ok(None);
    }
    let fraction = digits.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    let whole = digits.split('.').next().unwrap_or_default().trim_start_matches('0').len();
    if exponent == "0" {
        if whole > DIGITS_MAX {
            return Err(out_of_range(&DataType::Decimal128(38, 0))
                .hint("write a number of more than 38 digits as 1.5e40"));
        }
        let scale = fraction.min(DIGITS_MAX - whole);
        return Ok(fixed(literal, scale).map(|text| written(&text)));
    }
    let scale = exponent
        .parse::<i64>()
        .ok()
        .map(|exponent| (i64::try_from(fraction).unwrap_or(i64::MAX) - exponent).max(0));
    let exact = scale
        .and_then(|scale| usize::try_from(scale).ok())
        .filter(|scale| *scale <= DIGITS_MAX)
        .and_then(|scale| fixed(literal, scale));
    Ok(Some(exact.map_or_else(|| double(literal), |text| written(&text))))
}

/// Writes a number with a point and without an exponent; `None` if it has too many digits.
fn fixed(literal: &str, scale: usize) -> Option<String> {
    let value = parse_decimal(literal, 38, i8::try_from(scale).ok()?)?;
    let digits = format!("{value:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at_checked(digits.len() - scale)?;
    Some(format!("{whole}.{fraction}"))
}

fn double(literal: &str) -> Expr {
    cast(text(literal), ast::DataType::DoublePrecision)
}

/// Writes out each part of an interval, times `sign`.
///
/// # Errors
/// 22007 for text that is not an interval.
pub(super) fn interval(interval: &mut ast::Interval, sign: i32) -> Result<()> {
    let (literal, sign) = match signed(&interval.value, sign) {
        Some(literal) => literal,
        None => return Ok(()),
    };
    let read = read(&literal, interval.leading_field.as_ref(), interval.last_field.as_ref())
        .and_then(|value| negated(value, sign))
        .ok_or_else(|| {
            times::malformed(&literal, &INTERVAL).hint("write it as in INTERVAL '1 day 02:03:04'")
        })?;
    *interval = ast::Interval {
        value: Box::new(text(parts(read))),
        leading_field: None,
        leading_precision: None,
        last_field: None,
        fractional_seconds_precision: None,
    };
    Ok(())
}

/// The text of a literal, and its sign; `None` for other expressions.
fn signed(value: &Expr, sign: i32) -> Option<(String, i32)> {
    match value {
        Expr::Value(value) => match &value.value {
            ast::Value::SingleQuotedString(text) | ast::Value::EscapedStringLiteral(text) => {
                Some((text.clone(), sign))
            }
            ast::Value::Number(text, _) => Some((text.clone(), sign)),
            _ => None,
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => signed(expr, -sign),
        Expr::UnaryOp { op: UnaryOperator::Plus, expr } | Expr::Nested(expr) => signed(expr, sign),
        _ => None,
    }
}

/// Reads `'5' DAY`, `'1:30' MINUTE TO SECOND`: a bare number counts the last field; finer units are cut off.
fn read(
    literal: &str,
    first: Option<&DateTimeField>,
    last: Option<&DateTimeField>,
) -> Option<IntervalMonthDayNano> {
    let Some(finest) = last.or(first) else { return times::interval(literal) };
    let trimmed = literal.trim();
    let is_plain = |part: &str| {
        let digits = part.trim_start_matches(['+', '-']);
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    let name_of = |field: &DateTimeField| field.to_string().to_ascii_lowercase();
    let unit = Unit::of(finest);
    let value = match (is_plain(trimmed), first, unit) {
        (true, _, _) => times::interval(&format!("{trimmed} {}", name_of(finest)))?,
        (false, Some(DateTimeField::Minute), Some(Unit::Second)) if trimmed.matches(':').count() == 1 => {
            let (sign, clock) = trimmed.strip_prefix('-').map_or(("", trimmed), |clock| ("-", clock));
            times::interval(&format!("{sign}00:{clock}"))?
        }
        _ => times::interval(&match trimmed.rsplit_once(' ') {
            // A trailing number without a unit also counts the finest field.
            Some((_, last)) if is_plain(last) => format!("{trimmed} {}", name_of(finest)),
            _ => trimmed.to_owned(),
        })?,
    };
    Some(unit.map_or(value, |unit| unit.cut(value)))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Year,
    Month,
    Day,
    Hour,
    Minute,
    Second,
}

impl Unit {
    /// A field that PostgreSQL allows after an interval.
    fn of(field: &DateTimeField) -> Option<Self> {
        Some(match field {
            DateTimeField::Year | DateTimeField::Years => Self::Year,
            DateTimeField::Month | DateTimeField::Months => Self::Month,
            DateTimeField::Day | DateTimeField::Days => Self::Day,
            DateTimeField::Hour | DateTimeField::Hours => Self::Hour,
            DateTimeField::Minute | DateTimeField::Minutes => Self::Minute,
            DateTimeField::Second | DateTimeField::Seconds => Self::Second,
            _ => return None,
        })
    }

    fn cut(self, value: IntervalMonthDayNano) -> IntervalMonthDayNano {
        let IntervalMonthDayNano { months, days, nanoseconds } = value;
        let to = |unit: i64| nanoseconds / unit * unit;
        let (months, days, nanoseconds) = match self {
            Self::Year => (months / 12 * 12, 0, 0),
            Self::Month => (months, 0, 0),
            Self::Day => (months, days, 0),
            Self::Hour => (months, days, to(60 * MINUTE_NANOS)),
            Self::Minute => (months, days, to(MINUTE_NANOS)),
            Self::Second => (months, days, nanoseconds),
        };
        IntervalMonthDayNano { months, days, nanoseconds }
    }
}

fn negated(value: IntervalMonthDayNano, sign: i32) -> Option<IntervalMonthDayNano> {
    Some(IntervalMonthDayNano {
        months: value.months.checked_mul(sign)?,
        days: value.days.checked_mul(sign)?,
        nanoseconds: value.nanoseconds.checked_mul(i64::from(sign))?,
    })
}

/// Writes an interval as the planner reads it: each part with its own sign and unit.
fn parts(value: IntervalMonthDayNano) -> String {
    let IntervalMonthDayNano { months, days, nanoseconds } = value;
    let mut parts = Vec::new();
    if months != 0 {
        parts.push(format!("{months} months"));
    }
    if days != 0 {
        parts.push(format!("{days} days"));
    }
    if nanoseconds != 0 || parts.is_empty() {
        let sign = if nanoseconds < 0 { "-" } else { "" };
        let (seconds, rest) =
            (nanoseconds.unsigned_abs() / 1_000_000_000, nanoseconds.unsigned_abs() % 1_000_000_000);
        let fraction = format!("{rest:09}");
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() { "" } else { "." };
        parts.push(format!("{sign}{seconds}{point}{fraction} seconds"));
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_value() {
        for (literal, expected) in [
            ("1e5", "100000."),
            ("1.5e-3", "0.0015"),
            ("12E2", "1200."),
            ("4.07e0", "4.07"),
            ("1e400", "CAST('1e400' AS DOUBLE PRECISION)"),
            ("1e-40", "CAST('1e-40' AS DOUBLE PRECISION)"),
            ("0.12345678901234567890123456789012345678901", "0.12345678901234567890123456789012345679"),
        ] {
            assert_eq!(number(literal).unwrap().unwrap().to_string(), expected, "{literal}");
        }
        for literal in ["1", "1.5", ".5", "99999999999999999999999999999999999999"] {
            assert_eq!(number(literal).unwrap(), None, "{literal}");
        }
        assert!(number("999999999999999999999999999999999999999").is_err());
    }

    #[test]
    fn intervals_are_written_out() {
        let check =
            |literal: &str, first: Option<DateTimeField>, last: Option<DateTimeField>, expected: &str| {
                let read = read(literal, first.as_ref(), last.as_ref()).unwrap();
                assert_eq!(parts(read), expected, "{literal}");
            };
        check("1 day 02:03:04", None, None, "1 days 7384 seconds");
        check("-1.5 hours", None, None, "-5400 seconds");
        check("5", Some(DateTimeField::Day), None, "5 days");
        check("1-2", Some(DateTimeField::Year), Some(DateTimeField::Month), "14 months");
        check(
            "3 04:05:06.7",
            Some(DateTimeField::Day),
            Some(DateTimeField::Second),
            "3 days 14706.7 seconds",
        );
        check("1:30", Some(DateTimeField::Minute), Some(DateTimeField::Second), "90 seconds");
        check("1 day 2 hours", Some(DateTimeField::Day), None, "1 days");
        check("0", Some(DateTimeField::Day), None, "0 seconds");
        assert_eq!(read("soon", None, None), None);
    }
}
