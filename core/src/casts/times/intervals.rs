//! Parses intervals as PostgreSQL does: in words, as `HH:MM:SS`, and in ISO format.

use arrow::datatypes::IntervalMonthDayNano;

use super::SECOND_US;
use super::timestamps::{micros_of, number};
use crate::casts::DAY_US;

/// Reads `1 year 2 mons -3 days 04:05:06.7`, `1 02:03`, `90 minutes`, `1-2`, `P1Y2M3DT4H5M6S`, `2 days ago`.
pub(crate) fn interval(text: &str) -> Option<IntervalMonthDayNano> {
    let text = text.trim();
    if text.starts_with(['P', 'p']) {
        return iso_interval(text.get(1..)?);
    }
    let mut total = Interval::default();
    let mut words = Words(text);
    let mut is_empty = true;
    let mut is_ago = false;
    while let Some(word) = words.next() {
        if is_ago {
            return None;
        }
        if word.eq_ignore_ascii_case("ago") && !is_empty {
            is_ago = true;
            continue;
        }
        if word == "@" && is_empty {
            continue;
        }
        is_empty = false;
        let (sign, unsigned) = signed(word);
        if unsigned.contains(':') {
            total.micros = total.micros.checked_add(sign.checked_mul(duration_us(unsigned)?)?)?;
        } else if let Some((years, months)) = unsigned.split_once('-') {
            total.months = total.months.checked_add(sign * (number(years)? * 12 + number(months)?))?;
        } else {
            let unit = match words.next_unit() {
                Some(unit) => unit,
                None if words.is_at_end() => "second",
                None if words.has_clock_next() => "day",
                None => return None,
            };
            total.add(sign, unsigned, unit)?;
        }
    }
    if is_empty {
        return None;
    }
    total.finish(if is_ago { -1 } else { 1 })
}

/// Splits text into words at spaces and where letters begin or end.
struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a str> {
        self.0 = self.0.trim_start();
        let is_word = self.0.starts_with(char::is_alphabetic);
        self.take(|at| at.is_whitespace() || at.is_alphabetic() != is_word)
    }

    /// Takes the next word if it consists of letters and is not `ago`.
    fn next_unit(&mut self) -> Option<&'a str> {
        let rest = self.0.trim_start();
        if !rest.starts_with(char::is_alphabetic) || rest.to_ascii_lowercase().starts_with("ago") {
            return None;
        }
        self.0 = rest;
        self.take(|at| !at.is_alphabetic())
    }

    fn is_at_end(&self) -> bool {
        let rest = self.0.trim();
        rest.is_empty() || rest.eq_ignore_ascii_case("ago")
    }

    /// Whether `02:03` or `2 hours` follows; a bare number before it counts days.
    fn has_clock_next(&self) -> bool {
        let mut ahead = Words(self.0);
        let is_clock = ahead.next().is_some_and(|word| word.contains(':'));
        is_clock || ahead.next_unit().is_some_and(|unit| unit.to_ascii_lowercase().starts_with('h'))
    }

    fn take(&mut self, ends: impl Fn(char) -> bool) -> Option<&'a str> {
        let end = self.0.find(ends).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at_checked(end)?;
        self.0 = rest;
        if word.is_empty() { None } else { Some(word) }
    }
}

fn signed(word: &str) -> (i64, &str) {
    match word.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, word.strip_prefix('+').unwrap_or(word)),
    }
}

/// Parses `HH:MM[:SS]` into microseconds; hours may exceed 24.
fn duration_us(text: &str) -> Option<i64> {
    let parts: Vec<&str> = text.split(':').collect();
    let (hours, minutes, seconds) = match parts.as_slice() {
        [hours, minutes] => (number(hours)?, number(minutes)?, 0),
        [hours, minutes, seconds] => (number(hours)?, number(minutes)?, micros_of(seconds)?),
        _ => return None,
    };
    if minutes >= 60 || seconds > 60 * SECOND_US {
        return None;
    }
    hours.checked_mul(3_600)?.checked_add(minutes * 60)?.checked_mul(SECOND_US)?.checked_add(seconds)
}

#[derive(Default)]
struct Interval {
    months: i64,
    days: i64,
    micros: i64,
}

impl Interval {
    /// Adds `amount` units; a fraction carries over into smaller units.
    fn add(&mut self, sign: i64, amount: &str, unit: &str) -> Option<()> {
        let (whole, fraction) = amount.split_once('.').unwrap_or((amount, ""));
        let whole = if whole.is_empty() && !fraction.is_empty() { 0 } else { number(whole)? };
        let fraction: f64 = if fraction.is_empty() { 0.0 } else { format!("0.{fraction}").parse().ok()? };
        let (months, days, micros) = unit_of(unit)?;
        let whole = sign.checked_mul(whole)?;
        self.months = self.months.checked_add(whole.checked_mul(months)?)?;
        self.days = self.days.checked_add(whole.checked_mul(days)?)?;
        self.micros = self.micros.checked_add(whole.checked_mul(micros)?)?;
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "fractions are rounded"
        )]
        if fraction > 0.0 {
            let fraction = if sign < 0 { -fraction } else { fraction };
            // For units longer than a month, the fraction is rounded to months.
            let (months, rest) = match months {
                2.. => ((fraction * months as f64).round_ties_even() as i64, 0.0),
                _ => split(fraction * months as f64),
            };
            self.months = self.months.checked_add(months)?;
            let (days, rest) = split(rest * 30.0 + fraction * days as f64);
            self.days = self.days.checked_add(days)?;
            let micros = (rest * DAY_US as f64 + fraction * micros as f64).round() as i64;
            self.micros = self.micros.checked_add(micros)?;
        }
        Some(())
    }

    fn finish(self, sign: i64) -> Option<IntervalMonthDayNano> {
        Some(IntervalMonthDayNano {
            months: i32::try_from(sign * self.months).ok()?,
            days: i32::try_from(sign * self.days).ok()?,
            nanoseconds: self.micros.checked_mul(sign * 1_000)?,
        })
    }
}

/// The integer part and the rest, after rounding to 9 decimals: 2.9999999999 has the integer part 3.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "the values are small")]
fn split(value: f64) -> (i64, f64) {
    let whole = (value * 1e9).round() / 1e9;
    let whole = whole.trunc() as i64;
    (whole, value - whole as f64)
}

/// Months, days and microseconds of a unit.
fn unit_of(name: &str) -> Option<(i64, i64, i64)> {
    let name = name.to_ascii_lowercase();
    Some(match name.as_str() {
        "millennium" | "millennia" | "mil" | "mils" => (12_000, 0, 0),
        "century" | "centuries" | "cent" | "c" => (1_200, 0, 0),
        "decade" | "decades" | "dec" | "decs" => (120, 0, 0),
        "year" | "years" | "yr" | "yrs" | "y" => (12, 0, 0),
        "quarter" | "quarters" | "qtr" => (3, 0, 0),
        "month" | "months" | "mon" | "mons" => (1, 0, 0),
        "week" | "weeks" | "w" => (0, 7, 0),
        "day" | "days" | "d" => (0, 1, 0),
        "hour" | "hours" | "hr" | "hrs" | "h" => (0, 0, 3_600 * SECOND_US),
        "minute" | "minutes" | "min" | "mins" | "m" => (0, 0, 60 * SECOND_US),
        "second" | "seconds" | "sec" | "secs" | "s" => (0, 0, SECOND_US),
        "millisecond" | "milliseconds" | "msec" | "msecs" | "ms" => (0, 0, 1_000),
        "microsecond" | "microseconds" | "usec" | "usecs" | "us" => (0, 0, 1),
        _ => return None,
    })
}

/// Returns the canonical name of a unit, `millisecond` for `msecs`; `None` for units longer than a year.
pub(crate) fn unit_named(name: &str) -> Option<&'static str> {
    let units =
        ["year", "quarter", "month", "week", "day", "hour", "minute", "second", "millisecond", "microsecond"];
    let wanted = unit_of(name.trim())?;
    units.into_iter().find(|unit| unit_of(unit) == Some(wanted))
}

fn iso_interval(text: &str) -> Option<IntervalMonthDayNano> {
    let mut total = Interval::default();
    let mut is_time = false;
    let mut is_empty = true;
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix(['T', 't']) {
            (is_time, rest) = (true, after);
            continue;
        }
        let end = rest.find(|at: char| at.is_ascii_alphabetic())?;
        let (amount, after) = rest.split_at_checked(end)?;
        let (unit, after) = after.split_at_checked(1)?;
        let unit = match (unit.to_ascii_uppercase().as_str(), is_time) {
            ("Y", false) => "year",
            ("M", false) => "month",
            ("W", false) => "week",
            ("D", false) => "day",
            ("H", true) => "hour",
            ("M", true) => "minute",
            ("S", true) => "second",
            _ => return None,
        };
        let (sign, amount) = signed(amount);
        total.add(sign, amount, unit)?;
        (rest, is_empty) = (after, false);
    }
    if is_empty { None } else { total.finish(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read() {
        let check = |text: &str, months: i32, days: i32, micros: i64| {
            let expected = IntervalMonthDayNano { months, days, nanoseconds: micros * 1_000 };
            assert_eq!(interval(text), Some(expected), "{text}");
        };
        check("1 day 02:03:04", 0, 1, 7_384_000_000);
        check("01:30:00", 0, 0, 5_400_000_000);
        check("90 minutes", 0, 0, 5_400_000_000);
        check("1 year 2 mons -3 days 4.5 hours", 14, -3, 16_200_000_000);
        check("1-2", 14, 0, 0);
        check("P1Y2M3DT4H5M6.5S", 14, 3, 14_706_500_000);
        check("1.5 months", 1, 15, 0);
        check("0.5 day", 0, 0, 43_200_000_000);
        check("2 hours ago", 0, 0, -7_200_000_000);
        check("1day2hours", 0, 1, 7_200_000_000);
        check("-1 days +02:00:00", 0, -1, 7_200_000_000);
        check("3", 0, 0, 3_000_000);
        for text in ["", "day", "1 fortnight", "P", "1 day ago 2", "1:60:00"] {
            assert_eq!(interval(text), None, "{text}");
        }
    }
}
