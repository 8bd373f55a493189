//! Time zones: their names, and the instants of wall-clock times.

use std::str::FromStr;

use arrow::array::timezone::Tz;
use chrono::{DateTime, Datelike, LocalResult, NaiveDate, NaiveDateTime, Offset, TimeZone};

use super::SECOND_US;
use crate::casts::DAY_US;

/// Finds a zone by its IANA name, in any case, or by an offset such as `+02:00`.
pub(super) fn zone(name: &str) -> Option<Tz> {
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
    wall_us.checked_sub(i64::from(ahead.fix().local_minus_utc()) * SECOND_US)
}

/// Returns the wall-clock time in a zone at an instant.
pub(crate) fn wall_us(instant_us: i64, zone: &Tz) -> Option<i64> {
    let ahead = zone.offset_from_utc_datetime(&naive(instant_us)?);
    instant_us.checked_add(i64::from(ahead.fix().local_minus_utc()) * SECOND_US)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::casts::times::timestamps::Timestamp;

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
}
