//! Intended differences from PostgreSQL, each with a reason and an example that every run checks.

use regex::Regex;
use serde::Deserialize;

use crate::cells::Failure;

const FILE: &str = include_str!("differences.toml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    difference: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    reason: String,
    /// A pattern of our error; without it we answer with rows.
    ours: Option<String>,
    /// A pattern of PostgreSQL's error; without it PostgreSQL answers with rows.
    postgresql: Option<String>,
    /// A pattern of the statement.
    sql: Option<String>,
    /// The statement that creates the table `difference` of the example, if it needs one.
    table: Option<String>,
    example: String,
}

pub(crate) struct Difference {
    pub(crate) reason: String,
    pub(crate) table: Option<String>,
    pub(crate) example: String,
    ours: Option<Regex>,
    postgresql: Option<Regex>,
    sql: Option<Regex>,
}

/// Returns the differences of the file.
pub(crate) fn all() -> Vec<Difference> {
    let file: File = toml::from_str(FILE).expect("differences.toml");
    let regex = |text: Option<String>| text.map(|text| Regex::new(&text).expect("a regular expression"));
    file.difference
        .into_iter()
        .map(|entry| Difference {
            reason: entry.reason,
            table: entry.table,
            example: entry.example,
            ours: regex(entry.ours),
            postgresql: regex(entry.postgresql),
            sql: regex(entry.sql),
        })
        .collect()
}

impl Difference {
    pub(crate) fn is_met(&self, sql: &str, ours: Option<&Failure>, postgresql: Option<&Failure>) -> bool {
        let says = |wanted: &Option<Regex>, failure: Option<&Failure>| match (wanted, failure) {
            (None, None) => true,
            (Some(wanted), Some(failure)) => wanted.is_match(&failure.to_string()),
            _ => false,
        };
        says(&self.ours, ours)
            && says(&self.postgresql, postgresql)
            && self.sql.as_ref().is_none_or(|wanted| wanted.is_match(sql))
    }
}
