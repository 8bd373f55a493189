//! What the WITH clause of a table can say, with defaults.
//!
//! Invariant: USER tables have user scope, SHARED and SYSTEM tables shared scope; a STREAM table has either, and a TTL.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::access::AccessLevel;
use crate::error::{Error, Result};

/// The kind of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableKind {
    /// Every user has rows of their own.
    User,
    /// One set of rows for all.
    Shared,
    /// Rows that expire.
    Stream,
    /// The database's own.
    System,
}

impl TableKind {
    /// The kind of a name as SQL spells it, in any case. SYSTEM is not one that SQL can ask for.
    ///
    /// # Errors
    /// 22023 for any other name.
    pub fn parse(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "user" => Ok(Self::User),
            "shared" => Ok(Self::Shared),
            "stream" => Ok(Self::Stream),
            _ => Err(Error::invalid(format!("table type \"{text}\" does not exist"))
                .hint("table types are USER, SHARED and STREAM")),
        }
    }

    /// The name in system tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Shared => "shared",
            Self::Stream => "stream",
            Self::System => "system",
        }
    }
}

impl fmt::Display for TableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether all users share the rows of a table or each has their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScopeKind {
    /// One set of rows.
    Shared,
    /// One set of rows for each user.
    User,
}

/// What an OK for a write means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// It is on disk.
    #[default]
    Durable,
    /// It survives the end of the process, but perhaps not of the machine.
    Relaxed,
}

impl Durability {
    /// The durability of a name as SQL spells it, in any case.
    ///
    /// # Errors
    /// 22023 for any other name.
    pub fn parse(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "durable" => Ok(Self::Durable),
            "relaxed" => Ok(Self::Relaxed),
            _ => Err(Error::invalid(format!("durability \"{text}\" does not exist"))
                .hint("durabilities are durable and relaxed")),
        }
    }

    /// The name in SQL and in system tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Durable => "durable",
            Self::Relaxed => "relaxed",
        }
    }
}

/// When hot rows are written to a segment: as soon as one part is reached. An absent part never is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FlushPolicy {
    /// Hot rows.
    pub rows: Option<u64>,
    /// Bytes of hot rows.
    pub bytes: Option<u64>,
    /// Seconds since the last flush.
    pub interval_s: Option<u64>,
}

impl Default for FlushPolicy {
    fn default() -> Self {
        Self { rows: Some(100_000), bytes: Some(64 << 20), interval_s: Some(3_600) }
    }
}

impl FlushPolicy {
    /// Reads `rows:N,bytes:N,interval:S`, any of the three in any order; bytes may end in KiB, MiB or GiB.
    ///
    /// # Errors
    /// 22023 for anything else, a zero or a part named twice.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid(format!("\"{text}\" is not a flush policy"))
                .hint("write for instance 'rows:100000,bytes:64MiB,interval:3600'")
        };
        let mut policy = Self { rows: None, bytes: None, interval_s: None };
        for part in text.split(',') {
            let (name, value) = part.split_once(':').ok_or_else(wrong)?;
            let (place, unit) = match name.trim().to_ascii_lowercase().as_str() {
                "rows" => (&mut policy.rows, 1),
                "bytes" => (&mut policy.bytes, byte_unit(value)),
                "interval" => (&mut policy.interval_s, 1),
                _ => return Err(wrong()),
            };
            let digits = if unit == 1 {
                value.trim()
            } else {
                value.trim().get(..value.trim().len() - 3).unwrap_or("")
            };
            let number = digits.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
            match number {
                Some(number) if number > 0 && place.is_none() => *place = Some(number),
                _ => return Err(wrong()),
            }
        }
        Ok(policy)
    }
}

fn byte_unit(value: &str) -> u64 {
    let value = value.trim().to_ascii_lowercase();
    match value.get(value.len().saturating_sub(3)..) {
        Some("kib") => 1 << 10,
        Some("mib") => 1 << 20,
        Some("gib") => 1 << 30,
        _ => 1,
    }
}

impl fmt::Display for FlushPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [("rows", self.rows), ("bytes", self.bytes), ("interval", self.interval_s)];
        let mut separator = "";
        for (name, value) in parts {
            if let Some(value) = value {
                write!(f, "{separator}{name}:{value}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

/// What the WITH clause of a table says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TableOptions {
    /// Where its segments go.
    pub storage_id: Arc<str>,
    /// When they are written.
    pub flush_policy: FlushPolicy,
    /// How long a row lives, of STREAM tables only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Who may use a SHARED table.
    pub access_level: AccessLevel,
    /// Whether each user has rows of their own.
    pub scope: ScopeKind,
    /// What an OK means.
    pub durability: Durability,
}

/// What is wrong with options; the table's name is added by who asked.
#[derive(Debug)]
pub(crate) struct OptionProblem(&'static str, &'static str);

impl OptionProblem {
    pub(crate) fn message(&self) -> &'static str {
        self.0
    }

    pub(crate) fn hint(&self) -> &'static str {
        self.1
    }
}

/// A hundred years: beyond it expiry times would leave the range of timestamps clients can show.
const TTL_SECONDS_MAX: u64 = 100 * 366 * 86_400;

impl TableOptions {
    /// What a table of `kind` has when the WITH clause says nothing. A STREAM table still needs a TTL.
    pub fn of(kind: TableKind) -> Self {
        let mut flush_policy = FlushPolicy::default();
        if kind == TableKind::System {
            // A flush writes job rows: by time they would call for the next flush, for ever.
            flush_policy.interval_s = None;
        }
        Self {
            storage_id: Arc::from("local"),
            flush_policy,
            ttl_seconds: None,
            access_level: AccessLevel::default(),
            scope: if kind == TableKind::User { ScopeKind::User } else { ScopeKind::Shared },
            durability: if kind == TableKind::Stream { Durability::Relaxed } else { Durability::Durable },
        }
    }

    pub(crate) fn validate(&self, kind: TableKind) -> Result<(), OptionProblem> {
        let scope_fits = match kind {
            TableKind::User => self.scope == ScopeKind::User,
            TableKind::Shared | TableKind::System => self.scope == ScopeKind::Shared,
            TableKind::Stream => true,
        };
        if !scope_fits {
            return Err(OptionProblem(
                "has a SCOPE that does not fit its type",
                "only STREAM tables choose their SCOPE",
            ));
        }
        match (kind, self.ttl_seconds) {
            (TableKind::Stream, None) => Err(OptionProblem(
                "is a STREAM table without TTL_SECONDS",
                "add for instance WITH (TTL_SECONDS=60)",
            )),
            (TableKind::Stream, Some(ttl)) if ttl == 0 || ttl > TTL_SECONDS_MAX => Err(OptionProblem(
                "has TTL_SECONDS out of range",
                "it is a number of seconds from 1 to a hundred years",
            )),
            (TableKind::Stream, Some(_)) | (_, None) => Ok(()),
            (_, Some(_)) => Err(OptionProblem(
                "has TTL_SECONDS but is not a STREAM table",
                "create it with CREATE STREAM TABLE",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_policy_honours_each_part_alone() {
        let policy = FlushPolicy::parse("rows:5, bytes:2MiB").unwrap();
        assert_eq!(policy, FlushPolicy { rows: Some(5), bytes: Some(2 << 20), interval_s: None });
        assert_eq!(policy.to_string(), "rows:5,bytes:2097152");
        assert_eq!(FlushPolicy::parse(&FlushPolicy::default().to_string()).unwrap(), FlushPolicy::default());
        for wrong in ["", "rows", "rows:0", "rows:x", "rows:1,rows:2", "days:1", "bytes:MiB", "rows:5MiB"] {
            assert!(FlushPolicy::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_streams_expire() {
        let mut options = TableOptions::of(TableKind::Stream);
        assert!(options.validate(TableKind::Stream).is_err());
        options.ttl_seconds = Some(60);
        assert!(options.validate(TableKind::Stream).is_ok());
        assert!(options.validate(TableKind::Shared).is_err());
        options.ttl_seconds = Some(u64::MAX);
        assert!(options.validate(TableKind::Stream).is_err());
    }
}
