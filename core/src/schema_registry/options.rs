//! The options of a table's WITH clause and their defaults.
//!
//! Invariant: USER tables have user scope, SHARED and SYSTEM tables shared scope; STREAM tables either, and a
//! TTL.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::access::AccessLevel;
use crate::error::{Error, Result};

/// The kind of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableKind {
    /// Each user has their own rows.
    User,
    /// All users share the rows.
    Shared,
    /// Rows that expire.
    Stream,
    /// A table of namespace `system`.
    System,
}

impl TableKind {
    /// Parses a kind's SQL name, ignoring case. SQL cannot ask for SYSTEM.
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

    /// Returns the name in system tables.
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

/// Whether all users share a table's rows or each has their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScopeKind {
    /// One set of rows for all users.
    Shared,
    /// One set of rows for each user.
    User,
}

/// What a successful write guarantees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The write is on disk.
    #[default]
    Durable,
    /// The write survives the end of the process, but perhaps not of the machine.
    Relaxed,
}

impl Durability {
    /// Parses a durability's SQL name, ignoring case.
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

    /// Returns the name in SQL and in system tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Durable => "durable",
            Self::Relaxed => "relaxed",
        }
    }
}

/// When hot rows are flushed to segments: as soon as one limit is reached. An absent limit never is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FlushPolicy {
    /// The number of hot rows.
    pub rows: Option<u64>,
    /// The bytes of hot rows.
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
    /// Parses `rows:N,bytes:N,interval:S`: any of the three, in any order. Bytes may end in KiB, MiB or GiB.
    ///
    /// # Errors
    /// 22023 for anything else, a zero, or a part named twice.
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

/// The options of a table's WITH clause.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TableOptions {
    /// The storage of its segments.
    pub storage_id: Arc<str>,
    /// When hot rows are flushed.
    pub flush_policy: FlushPolicy,
    /// How long a row lives; only for STREAM tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Who may use a SHARED table.
    pub access_level: AccessLevel,
    /// Whether each user has their own rows.
    pub scope: ScopeKind,
    /// What a successful write guarantees.
    pub durability: Durability,
}

/// A problem with options. The caller adds the table's name.
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

/// A hundred years. Longer TTLs would put expiry times outside the timestamps that clients can show.
const TTL_SECONDS_MAX: u64 = 100 * 366 * 86_400;

impl TableOptions {
    /// Returns the options of a `kind` table without a WITH clause. A STREAM table still needs a TTL.
    pub fn defaults_for(kind: TableKind) -> Self {
        let mut flush_policy = FlushPolicy::default();
        if kind == TableKind::System {
            // A flush writes job rows, so an interval would trigger flushes of `system.jobs` forever.
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
        let mut options = TableOptions::defaults_for(TableKind::Stream);
        assert!(options.validate(TableKind::Stream).is_err());
        options.ttl_seconds = Some(60);
        assert!(options.validate(TableKind::Stream).is_ok());
        assert!(options.validate(TableKind::Shared).is_err());
        options.ttl_seconds = Some(u64::MAX);
        assert!(options.validate(TableKind::Stream).is_err());
    }
}
