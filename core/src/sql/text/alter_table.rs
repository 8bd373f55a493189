//! `ALTER TABLE`: the table options that can change after creation.
//!
//! ```text
//! ALTER TABLE [IF EXISTS] [namespace.]table SET (option = value, ...)
//! ALTER TABLE [IF EXISTS] [namespace.]table RESET (option, ...)
//! ```
//!
//! Invariant: options that decide where rows are stored or who owns them never change.

use datafusion::sql::sqlparser::tokenizer::Token;

use super::cursor::{Cursor, QualifiedName};
use super::keywords;
use crate::access::AccessLevel;
use crate::error::{Error, Result};
use crate::schema_registry::{Durability, FlushPolicy, ScopeKind, TableKind, TableOptions};

/// New values for options of a table.
#[derive(Clone, Debug)]
pub(crate) struct AlterTable {
    pub(crate) name: QualifiedName,
    pub(crate) if_exists: bool,
    pub(crate) changes: Vec<OptionChange>,
}

/// A new value for one option; `None` resets it to its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OptionChange {
    FlushPolicy(Option<FlushPolicy>),
    TtlSeconds(Option<u64>),
    AccessLevel(Option<AccessLevel>),
    Durability(Option<Durability>),
}

/// Parses the part after `ALTER TABLE`.
pub(super) fn parse(cursor: &mut Cursor<'_>) -> Result<AlterTable> {
    let if_exists = cursor.keywords(&["IF", "EXISTS"]);
    let name = keywords::qualified_name(cursor, "table")?;
    let is_set = cursor.keyword("SET");
    if !(is_set || cursor.keyword("RESET")) || cursor.peek() != Some(&Token::LParen) {
        return Err(Error::unsupported("ALTER TABLE other than SET (...) or RESET (...)")
            .hint("SET changes the options FLUSH_POLICY, TTL_SECONDS, ACCESS_LEVEL and DURABILITY"));
    }
    let changes = match is_set {
        true => {
            let given = cursor.options()?;
            given.iter().map(|(name, value)| change(name, Some(value))).collect::<Result<_>>()?
        }
        false => {
            let names = cursor.names("option")?;
            names.iter().map(|name| change(name, None)).collect::<Result<_>>()?
        }
    };
    Ok(AlterTable { name, if_exists, changes })
}

fn change(name: &str, value: Option<&str>) -> Result<OptionChange> {
    match name {
        "type" | "scope" | "storage_id" => {
            Err(Error::unsupported(format!("changing the option {} of a table", name.to_uppercase()))
                .hint("it is fixed when the table is created: create another one, then INSERT ... SELECT"))
        }
        _ => OptionChange::parse(name, value),
    }
}

impl OptionChange {
    /// Returns the change of option `name`, in lower case; without a value the option gets its default.
    ///
    /// # Errors
    /// 22023 for an unknown option or an invalid value.
    pub(super) fn parse(name: &str, value: Option<&str>) -> Result<Self> {
        Ok(match name {
            "flush_policy" => Self::FlushPolicy(value.map(FlushPolicy::parse).transpose()?),
            "ttl_seconds" => Self::TtlSeconds(value.map(seconds).transpose()?),
            "access_level" => Self::AccessLevel(value.map(AccessLevel::parse).transpose()?),
            "durability" => Self::Durability(value.map(Durability::parse).transpose()?),
            _ => {
                return Err(Error::invalid(format!("a table has no option \"{name}\"")).hint(
                    "options are TYPE, STORAGE_ID, FLUSH_POLICY, TTL_SECONDS, ACCESS_LEVEL, SCOPE \
                     and DURABILITY",
                ));
            }
        })
    }

    /// Returns the option's name in SQL.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::FlushPolicy(_) => "FLUSH_POLICY",
            Self::TtlSeconds(_) => "TTL_SECONDS",
            Self::AccessLevel(_) => "ACCESS_LEVEL",
            Self::Durability(_) => "DURABILITY",
        }
    }

    /// Applies the change to the options of a table.
    ///
    /// # Errors
    /// 22023 for an option that does not apply to the table.
    pub(crate) fn apply(&self, kind: TableKind, options: &mut TableOptions) -> Result<()> {
        let default = TableOptions::defaults_for(kind);
        match self {
            Self::FlushPolicy(policy) => options.flush_policy = policy.unwrap_or(default.flush_policy),
            Self::TtlSeconds(seconds) => options.ttl_seconds = seconds.or(default.ttl_seconds),
            Self::AccessLevel(Some(_)) if options.scope == ScopeKind::User => {
                return Err(Error::invalid("ACCESS_LEVEL applies only to tables with shared rows")
                    .hint("each user sees only their own rows of this table"));
            }
            Self::AccessLevel(level) => options.access_level = level.unwrap_or(default.access_level),
            Self::Durability(durability) => options.durability = durability.unwrap_or(default.durability),
        }
        Ok(())
    }

    /// Returns the option's value in `options` as SQL spells it; empty when it is not set.
    pub(crate) fn value(&self, options: &TableOptions) -> String {
        match self {
            Self::FlushPolicy(_) => options.flush_policy.to_string(),
            Self::TtlSeconds(_) => options.ttl_seconds.map_or_else(String::new, |ttl| ttl.to_string()),
            Self::AccessLevel(_) => options.access_level.name().to_owned(),
            Self::Durability(_) => options.durability.name().to_owned(),
        }
    }
}

fn seconds(text: &str) -> Result<u64> {
    text.parse().map_err(|_| {
        Error::invalid(format!("TTL_SECONDS cannot be \"{text}\""))
            .hint("it must be a whole number of seconds")
    })
}
