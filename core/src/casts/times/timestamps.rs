//! Parses dates, times and timestamps as PostgreSQL does, in ISO order.
//!
//! Dates are `YYYY-MM-DD`, `YYYY/MM/DD` or `YYYYMMDD`; times `HH:MM[:SS[.f]]` or `HHMM[SS[.f]]`, perhaps AM
//! or PM; timestamps a date, perhaps `T` or spaces, time and zone. Fractions round to microseconds.

use arrow::array::timezone::Tz;
use chrono::NaiveDate;

use super::SECOND_US;
use super::zones::{instant_us, zone};
use crate::casts::DAY_US;

/// A wall-clock time and its zone, if the text names one.
pub(super) struct Timestamp {
    pub(super) wall_us: i64,
    zone: Option<Zone>,
}

enum Zone {
    /// Microseconds ahead of UTC.
    Ahead(i64),
    Named(Tz),
}

impl Timestamp {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let end = text.find(|at: char| at.is_whitespace() || at == 'T' || at == 't').unwrap_or(text.len());
        let (day, rest) = text.split_at_checked(end)?;
        let day = i64::from(date(day)?);
        let rest = rest.trim_start_matches(['T', 't']).trim_start();
        let clock =
            rest.find(|at: char| !(at.is_ascii_digit() || at == ':' || at == '.')).unwrap_or(rest.len());
        let (clock, rest) = rest.split_at_checked(clock)?;
        let (half, zone) = split_am_pm(rest.trim_start());
        let time = match (clock.is_empty(), half) {
            (true, "") => 0,
            (true, _) => return None,
            (false, half) => clock_us(clock, half)?,
        };
        let zone = zone.trim();
        let zone = if zone.is_empty() { None } else { Some(Zone::parse(zone)?) };
        Some(Self { wall_us: day.checked_mul(DAY_US)?.checked_add(time)?, zone })
    }

    /// The instant in microseconds since 1970; a time without a zone is in UTC.
    pub(super) fn instant_us(&self) -> Option<i64> {
        match &self.zone {
            None => Some(self.wall_us),
            Some(Zone::Ahead(ahead)) => self.wall_us.checked_sub(*ahead),
            Some(Zone::Named(zone)) => instant_us(self.wall_us, zone),
        }
    }
}

impl Zone {
    fn parse(text: &str) -> Option<Self> {
        if text.eq_ignore_ascii_case("z") || text.eq_ignore_ascii_case("utc") {
            return Some(Self::Ahead(0));
        }
        let Some(sign) = text.chars().next().filter(|sign| matches!(sign, '+' | '-')) else {
            return zone(text).map(Self::Named);
        };
        let digits = text.get(1..)?;
        let parts: Vec<&str> = match digits.len() {
            4 if !digits.contains(':') => vec![digits.get(..2)?, digits.get(2..)?],
            _ => digits.split(':').collect(),
        };
        if parts.len() > 3 {
            return None;
        }
        let mut seconds = 0;
        for (part, unit) in parts.iter().zip([3_600, 60, 1]) {
            seconds += number(part).filter(|part| *part < 60)? * unit;
        }
        let ahead = seconds * SECOND_US;
        Some(Self::Ahead(if sign == '-' { -ahead } else { ahead }))
    }
}

/// Parses a date into its day number; 1970-01-01 is day 0.
pub(super) fn date(text: &str) -> Option<i32> {
    let text = text.trim();
    let separator = if text.contains('/') { '/' } else { '-' };
    let parts: Vec<&str> = text.split(separator).collect();
    let (year, month, day) = match parts.as_slice() {
        [year, month, day] if year.len() >= 3 => (*year, *month, *day),
        [all] if all.len() >= 8 && all.is_ascii() => {
            let (rest, day) = all.split_at(all.len() - 2);
            let (year, month) = rest.split_at(rest.len() - 2);
            (year, month, day)
        }
        _ => return None,
    };
    let field = |text: &str| number(text).and_then(|value| u32::try_from(value).ok());
    // There is no year 0.
    let year = number(year).filter(|year| *year > 0)?;
    let date = NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, field(month)?, field(day)?)?;
    i32::try_from(date.signed_duration_since(NaiveDate::default()).num_days()).ok()
}

/// Parses a time into microseconds since midnight.
pub(super) fn time(text: &str) -> Option<i64> {
    let text = text.trim();
    let end = text.find(|at: char| !(at.is_ascii_digit() || at == ':' || at == '.')).unwrap_or(text.len());
    let (clock, rest) = text.split_at_checked(end)?;
    let (half, rest) = split_am_pm(rest.trim_start());
    // 24:00 ends a day and is not a time in it.
    let micros = clock_us(clock, half).filter(|_| rest.is_empty())?;
    (micros < DAY_US).then_some(micros)
}

/// Splits off `AM` or `PM`: returns it in lower case, or an empty string, and the rest.
fn split_am_pm(text: &str) -> (&'static str, &str) {
    for half in ["am", "pm"] {
        if let Some((start, rest)) = text.split_at_checked(2)
            && start.eq_ignore_ascii_case(half)
            && !rest.starts_with(char::is_alphabetic)
        {
            return (half, rest.trim_start());
        }
    }
    ("", text)
}

/// Microseconds since midnight, at most `24:00:00`.
fn clock_us(text: &str, half: &str) -> Option<i64> {
    let mut parts = text.split(':');
    let (hours, minutes) = (parts.next()?, parts.next());
    let (hours, minutes, seconds) = match (minutes, parts.next(), parts.next()) {
        (Some(minutes), seconds, None) => (hours, minutes, seconds.unwrap_or("0")),
        (None, None, None) if matches!(hours.len(), 4 | 6..) && hours.is_ascii() => {
            (hours.get(..2)?, hours.get(2..4)?, hours.get(4..).filter(|rest| !rest.is_empty()).unwrap_or("0"))
        }
        _ => return None,
    };
    let (mut hours, minutes) = (number(hours)?, number(minutes)?);
    if !half.is_empty() {
        if !(1..=12).contains(&hours) {
            return None;
        }
        hours = hours % 12 + if half == "pm" { 12 } else { 0 };
    }
    let seconds = micros_of(seconds)?;
    let micros = (hours * 3_600 + minutes * 60) * SECOND_US + seconds;
    (minutes < 60 && seconds <= 60 * SECOND_US && micros <= DAY_US).then_some(micros)
}

/// Parses seconds such as `1.25` into microseconds, rounded.
pub(super) fn micros_of(seconds: &str) -> Option<i64> {
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let mut micros = 0;
    for place in 0..6 {
        micros = micros * 10 + i64::from(fraction.as_bytes().get(place).map_or(0, |digit| digit - b'0'));
    }
    let is_up = fraction.as_bytes().get(6).is_some_and(|digit| *digit >= b'5');
    let whole = if whole.is_empty() && !fraction.is_empty() { 0 } else { number(whole)? };
    whole.checked_mul(SECOND_US)?.checked_add(micros + i64::from(is_up))
}

/// Parses an integer of 1 to 18 digits, without a sign.
pub(super) fn number(text: &str) -> Option<i64> {
    let is_number = !text.is_empty() && text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times_are_read() {
        assert_eq!(date("2024-01-05"), Some(19_727));
        assert_eq!(date("2024-1-5"), Some(19_727));
        assert_eq!(date("2024/01/05"), Some(19_727));
        assert_eq!(date("20240105"), Some(19_727));
        assert_eq!(date("1969-12-31"), Some(-1));
        assert_eq!(time("10:20"), Some(37_200_000_000));
        assert_eq!(time("10:20:30.1234565"), Some(37_230_123_457));
        assert_eq!(time("1:05 PM"), Some(47_100_000_000));
        for text in ["2023-02-29", "2024-13-01", "24-01-01", "x", "", "2024-01"] {
            assert_eq!(date(text), None, "{text}");
        }
        for text in ["24:00:00", "10", "10:60", "13:00 PM", "10:00x", ""] {
            assert_eq!(time(text), None, "{text}");
        }
    }

    #[test]
    fn timestamps_are_read_with_and_without_zones() {
        let instant = |text: &str| Timestamp::parse(text).and_then(|read| read.instant_us());
        let ten = Some(1_704_103_200_000_000);
        for text in [
            "2024-01-01 10:00",
            "2024-01-01T10:00:00",
            "2024-01-01 10:00:00Z",
            "2024-01-01 12:00:00+02",
            "2024-01-01 12:00:00 +02:00",
            "2024-01-01 15:30+0530",
            "2024-01-01 05:00:00 America/New_York",
            "2024-01-01 10:00 AM",
        ] {
            assert_eq!(instant(text), ten, "{text}");
        }
        assert_eq!(instant("2024-01-01"), Some(1_704_067_200_000_000));
        assert_eq!(instant("2024-01-01 24:00:00"), instant("2024-01-02"));
        for text in ["2024-01-01 25:00", "2024-01-01 10:00 Nowhere", "2024-01-01 PM", "tomorrow"] {
            assert_eq!(instant(text), None, "{text}");
        }
    }
}
