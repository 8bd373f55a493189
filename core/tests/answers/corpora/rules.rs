//! The rules of a corpus: reasons to skip or rewrite a record, and answers that differ on purpose.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use regex::Regex;
use serde::Deserialize;

use crate::cells::Failure;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    #[serde(default)]
    skip: Vec<SkipEntry>,
    #[serde(default)]
    rewrite: Vec<RewriteEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SkipEntry {
    reason: String,
    /// A pattern of the file's name.
    file: Option<String>,
    /// A pattern of the statement.
    sql: Option<String>,
    /// A pattern of our error. The rule applies only after we failed with it, and never to an internal error.
    error: Option<String>,
    /// The rule applies only after our answer differed.
    #[serde(default)]
    differs: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RewriteEntry {
    reason: String,
    /// The rule applies only to statements that match this pattern.
    within: Option<String>,
    sql: String,
    with: String,
}

/// When a rule applies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Before,
    Failed,
    Different,
}

struct Skip {
    reason: String,
    file: Option<Regex>,
    sql: Option<Regex>,
    error: Option<Regex>,
    when: When,
    used: AtomicU64,
}

struct Rewrite {
    reason: String,
    within: Option<Regex>,
    sql: Regex,
    with: String,
    used: AtomicU64,
}

/// The rules of one corpus.
pub(crate) struct Rules {
    skips: Vec<Skip>,
    rewrites: Vec<Rewrite>,
}

impl Rules {
    /// Reads the file with the rules.
    pub(crate) fn new(contents: &str) -> Self {
        let contents: Contents = toml::from_str(contents).expect("a file of reasons");
        let regex = |text: String| Regex::new(&text).expect("a regular expression");
        let skips = contents.skip.into_iter().map(|entry| Skip {
            reason: entry.reason,
            when: match (&entry.error, entry.differs) {
                (Some(_), _) => When::Failed,
                (None, true) => When::Different,
                (None, false) => When::Before,
            },
            file: entry.file.map(regex),
            sql: entry.sql.map(regex),
            error: entry.error.map(regex),
            used: AtomicU64::new(0),
        });
        let rewrites = contents.rewrite.into_iter().map(|entry| Rewrite {
            reason: entry.reason,
            within: entry.within.map(regex),
            sql: regex(entry.sql),
            with: entry.with,
            used: AtomicU64::new(0),
        });
        Self { skips: skips.collect(), rewrites: rewrites.collect() }
    }

    fn find(&self, when: When, file: &str, sql: &str, error: &str) -> Option<usize> {
        let has = |wanted: &Option<Regex>, text: &str| wanted.as_ref().is_none_or(|it| it.is_match(text));
        self.skips.iter().position(|skip| {
            skip.when == when && has(&skip.file, file) && has(&skip.sql, sql) && has(&skip.error, error)
        })
    }

    /// Returns the reason to skip a record without asking it.
    pub(crate) fn before(&self, file: &str, sql: &str) -> Option<usize> {
        self.find(When::Before, file, sql, "")
    }

    /// Returns the reason for which a record may fail this way.
    pub(crate) fn failed(&self, file: &str, sql: &str, failure: &Failure) -> Option<usize> {
        if failure.is_internal() {
            return None;
        }
        self.find(When::Failed, file, sql, &failure.to_string())
    }

    /// Returns the reason for which an answer may differ.
    pub(crate) fn different(&self, file: &str, sql: &str) -> Option<usize> {
        self.find(When::Different, file, sql, "")
    }

    /// Counts a record that was skipped for a reason.
    pub(crate) fn count(&self, place: usize) {
        self.skips[place].used.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the statement with all rewrites applied.
    pub(crate) fn rewritten(&self, sql: &str) -> String {
        let mut sql = sql.to_owned();
        for rewrite in &self.rewrites {
            if rewrite.within.as_ref().is_none_or(|within| within.is_match(&sql))
                && rewrite.sql.is_match(&sql)
            {
                sql = rewrite.sql.replace_all(&sql, rewrite.with.as_str()).into_owned();
                rewrite.used.fetch_add(1, Ordering::Relaxed);
            }
        }
        sql
    }

    /// Returns how many records each reason matched.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for skip in &self.skips {
            *counts.entry(skip.reason.clone()).or_default() += skip.used.load(Ordering::Relaxed);
        }
        for rewrite in &self.rewrites {
            *counts.entry(rewrite.reason.clone()).or_default() += rewrite.used.load(Ordering::Relaxed);
        }
        counts
    }
}
