//! Casts to dates, times, timestamps and intervals: from text, and between units of time.
//!
//! | file | job |
//! |---|---|
//! | `zones` | time zones: their names, and instants as wall-clock times |
//! | `timestamps` | text to dates, times and timestamps |
//! | `intervals` | text to intervals |

mod intervals;
mod timestamps;
mod zones;

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, PrimitiveArray, StringArray};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Int64Type, IntervalMonthDayNanoType, IntervalUnit,
    Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};

pub(crate) use self::intervals::{interval, unit_named};
use self::timestamps::{Timestamp, date, time};
pub(crate) use self::zones::{instant_us, wall_us, zone_at};
use super::{arrow_cast, name_of};
use crate::error::{Error, ErrorKind, Result, SqlState};

/// Microseconds of a second.
const SECOND_US: i64 = 1_000_000;

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
pub(super) fn date_of_day(day: i64) -> (i64, i64, i64) {
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
