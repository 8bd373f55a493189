//! Parses dates, times, timestamps, intervals and time zones as PostgreSQL does, in ISO order.
//!
//! Dates are `YYYY-MM-DD`, `YYYY/MM/DD` or `YYYYMMDD`; times `HH:MM[:SS[.f]]` or `HHMM[SS[.f]]`, perhaps AM
//! or PM; timestamps a date, perhaps `T` or spaces, time and zone. Fractions round to microseconds.

use std::str::FromStr;
use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::array::{ArrayRef, AsArray, Int64Array, PrimitiveArray, StringArray};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType,
    IntervalUnit, Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};
use chrono::{DateTime, Datelike, LocalResult, NaiveDate, NaiveDateTime, Offset, TimeZone};

use super::{DAY_US, arrow_cast, name_of};
use crate::error::{Error, ErrorKind, Result, SqlState};

const SECOND: i64 = 1_000_000;

/// Parses text as values of date, time, timestamp or interval type `to`.
pub(super) fn from_text(texts: &StringArray, to: &DataType) -> Result<ArrayRef> {
    use DataType as T;
    let values = match to {
        T::Date32 => read::<Date32Type>(texts, to, date)?,
        T::Time32(_) | T::Time64(_) => read::<Time64MicrosecondType>(texts, to, time)?,
        T::Timestamp(_, None) => read::<TimestampMicrosecondType>(texts, to, |text| {
            // TIMESTAMP keeps the wall-clock time and ignores a zone.
            Timestamp::parse(text).map(|read| read.wall_us)
        })?,
        T::Timestamp(_, Some(_)) => {
            let instants =
                read::<TimestampMicrosecondType>(texts, to, |text| Timestamp::parse(text)?.instant_us())?;
            arrow_cast(&instants, &T::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())))?
        }
        _ => {
            let intervals = read::<IntervalMonthDayNanoType>(texts, to, interval)?;
            arrow_cast(&intervals, &T::Interval(IntervalUnit::MonthDayNano))?
        }
    };
    super::cast(&values, to)
}

/// Casts timestamps to a coarser unit, rounding to the nearest; halves round away from 1970.
pub(super) fn rounded(times: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    let (DataType::Timestamp(from, _), DataType::Timestamp(unit, zone)) = (times.data_type(), to) else {
        return arrow_cast(times, to);
    };
    let step = units_a_second(*from) / units_a_second(*unit);
    let whole = arrow_cast(&arrow_cast(times, &DataType::Timestamp(*from, zone.clone()))?, &DataType::Int64)?;
    let near = |time: i64| {
        let away = if time < 0 { -step / 2 } else { step / 2 };
        time.saturating_add(away) / step
    };
    let near: Int64Array = whole.as_primitive::<Int64Type>().iter().map(|time| time.map(near)).collect();
    arrow_cast(&(Arc::new(near) as ArrayRef), to)
}

/// Returns whether a timestamp loses precision when it is cast from unit `from` to unit `to`.
pub(super) fn is_coarser(to: TimeUnit, from: TimeUnit) -> bool {
    units_a_second(to) < units_a_second(from)
}

fn units_a_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

fn read<T: ArrowPrimitiveType>(
    texts: &StringArray,
    to: &DataType,
    parse: impl Fn(&str) -> Option<T::Native>,
) -> Result<ArrayRef> {
    let value = |text: &str| parse(text).ok_or_else(|| malformed(text, to));
    let values = texts.iter().map(|text| text.map(value).transpose());
    Ok(Arc::new(values.collect::<Result<PrimitiveArray<T>>>()?))
}

/// Returns the error for text that is not a value of type `to`.
pub(crate) fn malformed(text: &str, to: &DataType) -> Error {
    let shown: String = text.chars().take(64).collect();
    Error::new(
        ErrorKind::InvalidArgument,
        SqlState::INVALID_DATETIME,
        format!("\"{shown}\" is not a value of type {}", name_of(to)),
    )
    .hint("write dates as 2024-01-31, times as 10:20:30.5, intervals as 1 day 02:03:04")
}

/// Year, month and day of a day number; 1970-01-01 is day 0.
pub(super) fn civil(day: i64) -> (i64, i64, i64) {
    // Counts days from 0000-03-01 in eras of 400 years: https://howardhinnant.github.io/date_algorithms.html
    let shifted = day + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// A wall-clock time and its zone, if the text names one.
struct Timestamp {
    wall_us: i64,
    zone: Option<Zone>,
}

enum Zone {
    /// Microseconds ahead of UTC.
    Ahead(i64),
    Named(Tz),
}

impl Timestamp {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let end = text.find(|at: char| at.is_whitespace() || at == 'T' || at == 't').unwrap_or(text.len());
        let (day, rest) = text.split_at_checked(end)?;
        let day = i64::from(date(day)?);
        let rest = rest.trim_start_matches(['T', 't']).trim_start();
        let clock =
            rest.find(|at: char| !(at.is_ascii_digit() || at == ':' || at == '.')).unwrap_or(rest.len());
        let (clock, rest) = rest.split_at_checked(clock)?;
        let (half, zone) = half_of_day(rest.trim_start());
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
    fn instant_us(&self) -> Option<i64> {
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
        let ahead = seconds * SECOND;
        Some(Self::Ahead(if sign == '-' { -ahead } else { ahead }))
    }
}

/// Finds a zone by its IANA name, in any case, or by an offset such as `+02:00`.
pub(crate) fn zone(name: &str) -> Option<Tz> {
    let name = name.trim();
    let by_any_case = || {
        let known = chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name());
        known
            .clone()
            .find(|known| known.eq_ignore_ascii_case(name))
            .and_then(|known| Tz::from_str(known).ok())
    };
    Tz::from_str(name).ok().or_else(by_any_case)
}

/// Finds a zone as AT TIME ZONE names it. An abbreviation is a fixed offset, whatever the season. An offset
/// has POSIX's sign, which counts westwards.
pub(crate) fn zone_at(name: &str) -> Option<Tz> {
    let name = name.trim();
    let abbreviation = ABBREVIATIONS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    if let Some((_, offset)) = abbreviation {
        return Tz::from_str(offset).ok();
    }
    match name.as_bytes().first()? {
        b'+' => Tz::from_str(&format!("-{}", name.get(1..)?)).ok(),
        b'-' => Tz::from_str(&format!("+{}", name.get(1..)?)).ok(),
        _ => zone(name),
    }
}

/// Common ones from <https://www.postgresql.org/docs/15/datetime-config-files.html>, its default set.
const ABBREVIATIONS: [(&str, &str); 47] = [
    ("ACDT", "+10:30"),
    ("ACST", "+09:30"),
    ("ADT", "-03:00"),
    ("AEDT", "+11:00"),
    ("AEST", "+10:00"),
    ("AKDT", "-08:00"),
    ("AKST", "-09:00"),
    ("AST", "-04:00"),
    ("AWST", "+08:00"),
    ("BST", "+01:00"),
    ("CDT", "-05:00"),
    ("CEST", "+02:00"),
    ("CET", "+01:00"),
    ("CETDST", "+02:00"),
    ("CST", "-06:00"),
    ("EDT", "-04:00"),
    ("EEST", "+03:00"),
    ("EET", "+02:00"),
    ("EST", "-05:00"),
    ("GMT", "+00:00"),
    ("HKT", "+08:00"),
    ("HST", "-10:00"),
    ("IDT", "+03:00"),
    ("IST", "+02:00"),
    ("JST", "+09:00"),
    ("KST", "+09:00"),
    ("MDT", "-06:00"),
    ("MET", "+01:00"),
    ("MEST", "+02:00"),
    ("MSK", "+03:00"),
    ("MST", "-07:00"),
    ("NDT", "-02:30"),
    ("NST", "-03:30"),
    ("NZDT", "+13:00"),
    ("NZST", "+12:00"),
    ("PDT", "-07:00"),
    ("PHT", "+08:00"),
    ("PKT", "+05:00"),
    ("PST", "-08:00"),
    ("SAST", "+02:00"),
    ("SGT", "+08:00"),
    ("UCT", "+00:00"),
    ("UT", "+00:00"),
    ("UTC", "+00:00"),
    ("WEST", "+01:00"),
    ("WET", "+00:00"),
    ("Z", "+00:00"),
];

/// The instant of a wall-clock time; a gap uses the offset before it, an ambiguous time the later instant.
pub(crate) fn instant_us(wall_us: i64, zone: &Tz) -> Option<i64> {
    let wall = naive(wall_us)?;
    let ahead =
        match zone.offset_from_local_datetime(&wall) {
            LocalResult::Single(offset) => offset,
            // The smaller offset, standard time, gives the later instant.
            LocalResult::Ambiguous(one, other) => {
                if one.fix().local_minus_utc() < other.fix().local_minus_utc() { one } else { other }
            }
            LocalResult::None => zone.offset_from_utc_datetime(&naive(wall_us.checked_sub(DAY_US)?)?),
        };
    wall_us.checked_sub(i64::from(ahead.fix().local_minus_utc()) * SECOND)
}

/// Returns the wall-clock time in a zone at an instant.
pub(crate) fn wall_us(instant_us: i64, zone: &Tz) -> Option<i64> {
    let ahead = zone.offset_from_utc_datetime(&naive(instant_us)?);
    instant_us.checked_add(i64::from(ahead.fix().local_minus_utc()) * SECOND)
}

/// The last year for which the zone database lists offset changes.
const LISTED_YEAR_MAX: i32 = 2099;

/// A time to look up in the zone database. The last rules hold after the listed years, so a later time is
/// moved to a listed year with the same calendar.
fn naive(micros: i64) -> Option<NaiveDateTime> {
    let time = DateTime::from_timestamp_micros(micros)?.naive_utc();
    if time.year() <= LISTED_YEAR_MAX {
        return Some(time);
    }
    let calendar =
        |year| NaiveDate::from_ymd_opt(year, 1, 1).map(|first| (first.weekday(), first.leap_year()));
    // Any 28 years within one century contain every calendar.
    let same = (LISTED_YEAR_MAX - 27..=LISTED_YEAR_MAX).find(|year| calendar(*year) == calendar(time.year()));
    time.with_year(same?)
}

fn date(text: &str) -> Option<i32> {
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

fn time(text: &str) -> Option<i64> {
    let text = text.trim();
    let end = text.find(|at: char| !(at.is_ascii_digit() || at == ':' || at == '.')).unwrap_or(text.len());
    let (clock, rest) = text.split_at_checked(end)?;
    let (half, rest) = half_of_day(rest.trim_start());
    // 24:00 ends a day and is not a time in it.
    let micros = clock_us(clock, half).filter(|_| rest.is_empty())?;
    (micros < DAY_US).then_some(micros)
}

/// Splits off `AM` or `PM`: returns it in lower case, or an empty string, and the rest.
fn half_of_day(text: &str) -> (&'static str, &str) {
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
    let micros = (hours * 3_600 + minutes * 60) * SECOND + seconds;
    (minutes < 60 && seconds <= 60 * SECOND && micros <= DAY_US).then_some(micros)
}

/// Parses seconds such as `1.25` into microseconds, rounded.
fn micros_of(seconds: &str) -> Option<i64> {
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
    whole.checked_mul(SECOND)?.checked_add(micros + i64::from(is_up))
}

/// Parses an integer of 1 to 18 digits, without a sign.
fn number(text: &str) -> Option<i64> {
    let is_number = !text.is_empty() && text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

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
    if minutes >= 60 || seconds > 60 * SECOND {
        return None;
    }
    hours.checked_mul(3_600)?.checked_add(minutes * 60)?.checked_mul(SECOND)?.checked_add(seconds)
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
        "hour" | "hours" | "hr" | "hrs" | "h" => (0, 0, 3_600 * SECOND),
        "minute" | "minutes" | "min" | "mins" | "m" => (0, 0, 60 * SECOND),
        "second" | "seconds" | "sec" | "secs" | "s" => (0, 0, SECOND),
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

    #[test]
    fn changes_of_the_clock_follow_the_rule() {
        let zone = zone("America/New_York").unwrap();
        let at = |text: &str| Timestamp::parse(text).unwrap().wall_us;
        // A time in the gap uses the offset before it; an ambiguous time means the later instant.
        assert_eq!(instant_us(at("2024-03-10 02:30:00"), &zone), Some(at("2024-03-10 07:30:00")));
        assert_eq!(instant_us(at("2024-11-03 01:30:00"), &zone), Some(at("2024-11-03 06:30:00")));
        assert_eq!(wall_us(at("2024-07-01 18:00:00"), &zone), Some(at("2024-07-01 14:00:00")));
        // The last rule holds after the listed years.
        assert_eq!(wall_us(at("2172-07-01 18:00:00"), &zone), Some(at("2172-07-01 14:00:00")));
        assert_eq!(wall_us(at("2172-02-29 18:00:00"), &zone), Some(at("2172-02-29 13:00:00")));
        assert_eq!(instant_us(at("2150-03-08 02:30:00"), &zone), Some(at("2150-03-08 07:30:00")));
    }

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
