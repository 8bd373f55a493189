//! The settings that statements can SET: their names, values and units, and the value that counts.
//!
//! The header of a call is stronger than SET, SET than ALTER USER, ALTER USER than the server's settings.
//! A value that an administrator has set for a user is also the most that the user can ask for.
//!
//! Invariant: a time that is 0 sets no limit, wherever it comes from.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::error::{Error, Result};

/// The most milliseconds of a time, as in PostgreSQL.
const TIME_MS_MAX: u64 = 2_147_483_647;
/// The longest `application_name`.
const APPLICATION_BYTES_MAX: usize = 128;
/// The units of times in milliseconds, the largest first. A microsecond is a thousandth.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1)];

/// A setting whose value is a time; users have these too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeSetting {
    Statement,
    IdleSession,
}

impl TimeSetting {
    pub(crate) const ALL: [Self; 2] = [Self::Statement, Self::IdleSession];

    /// Returns the name in SET and SHOW.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Statement => "statement_timeout",
            Self::IdleSession => "idle_session_timeout",
        }
    }
}

/// A setting of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    Time(TimeSetting),
    ApplicationName,
}

/// A setting and its new value; `None` for the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SetValue {
    /// In milliseconds.
    Time(TimeSetting, Option<u64>),
    ApplicationName(Option<String>),
}

impl Setting {
    pub(crate) const ALL: [Self; 3] =
        [Self::Time(TimeSetting::Statement), Self::Time(TimeSetting::IdleSession), Self::ApplicationName];

    /// Returns the setting with that name, ignoring case.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|setting| name.eq_ignore_ascii_case(setting.name()))
    }

    /// Returns the name in SET and SHOW.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Time(setting) => setting.name(),
            Self::ApplicationName => "application_name",
        }
    }

    /// Reads a value as text; `None` is the default.
    ///
    /// # Errors
    /// 22023 for a text that is no value of the setting.
    pub(crate) fn value(self, text: Option<&str>) -> Result<SetValue> {
        Ok(match self {
            Self::Time(setting) => {
                SetValue::Time(setting, text.map(|text| parse_time(setting.name(), text)).transpose()?)
            }
            Self::ApplicationName => SetValue::ApplicationName(text.map(application_name).transpose()?),
        })
    }
}

/// Reads a time: an integer or decimal number, and a unit unless it is in milliseconds. Returns milliseconds,
/// rounded.
///
/// # Errors
/// 22023 for anything else, and for more than 24 days.
pub fn parse_time(setting: &str, text: &str) -> Result<u64> {
    let invalid = || {
        Error::invalid(format!("value \"{text}\" of setting \"{setting}\" is not a time")).hint(
            "write milliseconds, or a number with one of the units us, ms, s, min, h and d; 0 sets no limit",
        )
    };
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at_checked(digits).ok_or_else(invalid)?;
    let number: f64 = number.parse().map_err(|_| invalid())?;
    let ms = match unit.trim() {
        "" => number,
        "us" => number / 1_000.0,
        unit => {
            let (_, factor) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
            number * factor as f64
        }
    };
    match Duration::try_from_secs_f64((ms.round() / 1_000.0).max(0.0)) {
        Ok(time) if time.as_millis() <= u128::from(TIME_MS_MAX) => {
            u64::try_from(time.as_millis()).map_err(|_| invalid())
        }
        _ => Err(Error::invalid(format!("value \"{text}\" of setting \"{setting}\" is too long"))
            .hint(format!("the longest time is {TIME_MS_MAX} ms; 0 sets no limit"))),
    }
}

/// Returns a time in the largest unit that divides it, as PostgreSQL shows it.
pub(crate) fn show_time(ms: u64) -> String {
    if ms == 0 {
        return "0".to_owned();
    }
    let unit = UNITS.into_iter().find(|(_, factor)| ms.is_multiple_of(*factor));
    unit.map_or_else(|| format!("{ms}ms"), |(name, factor)| format!("{}{name}", ms / factor))
}

fn application_name(text: &str) -> Result<String> {
    if text.len() > APPLICATION_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(Error::invalid("the value of setting \"application_name\" is not valid")
            .hint(format!("use at most {APPLICATION_BYTES_MAX} bytes and no control characters")));
    }
    Ok(text.to_owned())
}

/// Where the value of a time comes from, the strongest first.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TimeSources {
    /// Of the call.
    pub(crate) of_call: Option<u64>,
    /// Of SET.
    pub(crate) of_session: Option<u64>,
    /// Of ALTER USER.
    pub(crate) of_user: Option<u64>,
    /// Of the server.
    pub(crate) default: u64,
    /// Whether the user may ask for more than ALTER USER says.
    pub(crate) may_exceed: bool,
}

impl TimeSources {
    /// Returns the milliseconds that count; 0 sets no limit.
    pub(crate) fn effective_ms(&self) -> u64 {
        let asked = self.of_call.or(self.of_session).or(self.of_user).unwrap_or(self.default);
        match self.of_user {
            Some(most) if most > 0 && !self.may_exceed => {
                if asked == 0 {
                    most
                } else {
                    asked.min(most)
                }
            }
            _ => asked,
        }
    }
}

/// Returns the time that ALTER USER has set for a user, from the settings of the user's record.
pub(crate) fn time_of_user(settings: &BTreeMap<String, String>, setting: TimeSetting) -> Option<u64> {
    settings.get(setting.name())?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_postgresql_reads_them() {
        for (text, ms) in [
            ("0", 0),
            ("5000", 5_000),
            (" 5s ", 5_000),
            ("5 s", 5_000),
            ("2min", 120_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
            ("1.5s", 1_500),
            ("250us", 0),
            ("1500us", 2),
            ("100ms", 100),
            ("2147483647", TIME_MS_MAX),
        ] {
            assert_eq!(parse_time("t", text).unwrap(), ms, "{text}");
        }
        let wrong =
            ["", "s", "5 seconds", "5S", "-1", "-5s", "1e3", "1..5s", "5s5", "2147483648", "25d", "inf"];
        for text in wrong {
            assert_eq!(parse_time("t", text).unwrap_err().sqlstate().0, "22023", "{text}");
        }
    }

    #[test]
    fn times_are_shown_in_the_largest_unit_and_read_back() {
        for (ms, text) in [
            (0, "0"),
            (1, "1ms"),
            (1_500, "1500ms"),
            (5_000, "5s"),
            (60_000, "1min"),
            (90_000, "90s"),
            (7_200_000, "2h"),
            (86_400_000, "1d"),
        ] {
            assert_eq!(show_time(ms), text);
            assert_eq!(parse_time("t", text).unwrap(), ms);
        }
    }

    #[test]
    fn the_strongest_source_counts_up_to_the_limit_of_the_user() {
        let plain = TimeSources { default: 9, ..TimeSources::default() };
        assert_eq!(plain.effective_ms(), 9);
        let set = TimeSources { of_session: Some(0), ..plain };
        assert_eq!(set.effective_ms(), 0);
        assert_eq!(TimeSources { of_call: Some(7), ..set }.effective_ms(), 7);
        let limited = TimeSources { of_user: Some(5), ..plain };
        assert_eq!(limited.effective_ms(), 5);
        for asked in [0, 6] {
            let asks = TimeSources { of_session: Some(asked), ..limited };
            assert_eq!(asks.effective_ms(), 5);
            assert_eq!(TimeSources { of_call: Some(asked), ..limited }.effective_ms(), 5);
            assert_eq!(TimeSources { may_exceed: true, ..asks }.effective_ms(), asked);
        }
        assert_eq!(TimeSources { of_session: Some(4), ..limited }.effective_ms(), 4);
        assert_eq!(TimeSources { of_user: Some(0), of_session: Some(6), ..plain }.effective_ms(), 6);
    }

    #[test]
    fn names_are_found_and_values_are_checked() {
        assert_eq!(Setting::parse("STATEMENT_timeout"), Some(Setting::Time(TimeSetting::Statement)));
        assert_eq!(Setting::parse("work_mem"), None);
        for setting in Setting::ALL {
            assert_eq!(Setting::parse(setting.name()), Some(setting));
        }
        let time = Setting::Time(TimeSetting::IdleSession);
        assert_eq!(time.value(Some("2s")).unwrap(), SetValue::Time(TimeSetting::IdleSession, Some(2_000)));
        assert_eq!(time.value(None).unwrap(), SetValue::Time(TimeSetting::IdleSession, None));
        let name = Setting::ApplicationName.value(Some("psql")).unwrap();
        assert_eq!(name, SetValue::ApplicationName(Some("psql".to_owned())));
        let long = "x".repeat(APPLICATION_BYTES_MAX + 1);
        for wrong in ["a\nb", long.as_str()] {
            assert!(Setting::ApplicationName.value(Some(wrong)).is_err());
        }
        let of_user = BTreeMap::from([("statement_timeout".to_owned(), "5000".to_owned())]);
        assert_eq!(time_of_user(&of_user, TimeSetting::Statement), Some(5_000));
        assert_eq!(time_of_user(&of_user, TimeSetting::IdleSession), None);
    }
}
