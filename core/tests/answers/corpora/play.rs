//! Runs one file of a corpus, from its first record to its last.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use ::datafusion::arrow::array::RecordBatch;
use ::datafusion::arrow::datatypes::{DataType, SchemaRef};
use kalamdb_core::Session;
use kalamdb_core::ids::JobId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use regex::Regex;

use super::records::{Kind, Record, Records};
use super::{Corpus, Part, Wanted};
use crate::cells::{Failure, joined, lines};
use crate::watch::Watch;

/// Rows that are inserted at once where a file inserts them one by one.
const ROWS_AT_ONCE_MAX: usize = 500;
/// Statements that a failure shows before its query.
const STATEMENTS_SHOWN_MAX: usize = 60;

/// Captures the table or view that a statement creates.
static MADE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"(?is)^\s*create\s[^(]*?\b(?:table|view)\s+(?:if\s+not\s+exists\s+)?([\w."]+)"#).unwrap()
});
/// Captures the table that a statement changes.
static CHANGED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"(?is)^\s*(?:select\s+\*\s+into|insert\s+(?:or\s+\w+\s+)?into|replace\s+into|update|delete\s+from|truncate\s+table|copy|drop\s+(?:table|view)(?:\s+if\s+exists)?)\s+([\w."]+)"#)
        .unwrap()
});
static DROPPED: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?is)^\s*drop\s+(?:table|view)\b").unwrap());
/// Captures the parts of CREATE TABLE AS, which we do not have: name, columns if given, query.
static MADE_OF_QUERY: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?is)^\s*create\s+(or\s+replace\s+)?table\s+(?:if\s+not\s+exists\s+)?([\w.]+)\s*(\(.*?\))?\s*as\s*((?:select|with|values|\().*)$",
    )
    .unwrap()
});
/// Captures the parts of an INSERT of one row.
static INSERT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^(INSERT INTO \w+ VALUES) ?(\([^\n]*\))$").unwrap());

/// Why a table is missing or wrong: a reason of the rules, or `None` if a record failed.
type Lack = Option<usize>;

pub(super) struct Play<'a> {
    corpus: &'a Corpus,
    part: &'a Part,
    place: usize,
    watch: &'a Watch,
    text: &'a str,
    namespace: String,
    session: Arc<Session>,
    lacking: HashMap<String, Lack>,
    /// The head of an INSERT, and rows that wait to be inserted with it.
    inserts: Option<(String, Vec<String>)>,
    /// Whether hot rows have to be flushed.
    is_hot: bool,
}

impl<'a> Play<'a> {
    pub(super) async fn new(
        corpus: &'a Corpus,
        part: &'a Part,
        place: usize,
        watch: &'a Watch,
        text: &'a str,
    ) -> Self {
        let namespace = format!("file{place}");
        let session = Arc::new(corpus.database.session_for("root").unwrap());
        session.execute(&format!("CREATE NAMESPACE {namespace}"), ()).await.unwrap();
        session.set_namespace(&namespace).unwrap();
        Self {
            corpus,
            part,
            place,
            watch,
            text,
            namespace,
            session,
            lacking: HashMap::new(),
            inserts: None,
            is_hot: false,
        }
    }

    pub(super) async fn all(mut self) {
        let mut rng = SmallRng::seed_from_u64(self.part.seed);
        for record in Records::new(self.text, self.corpus.engine) {
            let is_query = matches!(record.kind, Kind::Query { .. });
            let is_chosen = !is_query || rng.random_bool(self.part.share);
            if !record.is_ours {
                self.corpus.report.lock().for_others += 1;
            } else if is_chosen {
                self.watch.note(format!("file {} {}:{}", self.place, self.part.file, record.line));
                self.corpus.report.lock().queries += 1;
                self.record(&record).await;
                self.watch.end();
            }
            if self.corpus.report.lock().is_enough(&self.corpus.run) {
                break;
            }
        }
        let drop = format!("DROP NAMESPACE {} CASCADE", self.namespace);
        self.session.execute(&drop, ()).await.unwrap();
    }

    async fn record(&mut self, record: &Record<'_>) {
        let sql = self.corpus.rules.rewritten(record.sql);
        if let Some(reason) = self.corpus.rules.before(&self.part.file, &sql) {
            return self.leave_out(&sql, Some(reason));
        }
        if let Some(lack) = self.lack(&sql) {
            if DROPPED.is_match(&sql) {
                // Drop what exists of it, so that it can be created again.
                let _ = self.ask(&sql).await;
            }
            return self.leave_out(&sql, lack);
        }
        if let (Kind::Statement, Some(parts)) = (record.kind, INSERT.captures(&sql)) {
            return self.put_off(record, &parts[1], &parts[2]).await;
        }
        self.insert(record).await;
        if self.part.is_flushed && self.is_hot && !matches!(record.kind, Kind::Statement) {
            self.flush().await;
        }
        let found = match MADE_OF_QUERY.captures(&sql) {
            Some(parts) => {
                self.make_of_query(
                    &parts[2],
                    parts.get(3).map(|it| it.as_str()),
                    &parts[4],
                    parts.get(1).is_some(),
                )
                .await
            }
            None => self.ask(&sql).await,
        };
        match (&record.kind, found) {
            (_, Err(failure)) => self.failed(record, &sql, &failure),
            (Kind::Statement, Ok(_)) => {
                self.is_hot = true;
                self.corpus.report.lock().same += 1;
            }
            (Kind::Refused, Ok(_)) => match self.corpus.rules.different(&self.part.file, &sql) {
                Some(reason) => self.leave_out(&sql, Some(reason)),
                None => self.fail(record, &sql, "this should be refused"),
            },
            (Kind::Query { types, sort, expected }, Ok((_, batches))) => {
                let wanted = Wanted { sql: &sql, types, sort: *sort, expected };
                match (self.corpus.compare)(&wanted, &batches) {
                    Ok(()) => self.corpus.report.lock().same += 1,
                    Err(why) => match self.corpus.rules.different(&self.part.file, &sql) {
                        Some(reason) => self.leave_out(&sql, Some(reason)),
                        None => self.fail(record, &sql, &why),
                    },
                }
            }
        }
    }

    async fn ask(&self, sql: &str) -> Result<(SchemaRef, Vec<RecordBatch>), Failure> {
        self.watch.begin(sql);
        self.corpus.report.lock().executions += 1;
        let (session, sql) = (Arc::clone(&self.session), sql.to_owned());
        joined(tokio::spawn(async move { crate::test_database::rows(&session, &sql, ().into()).await })).await
    }

    /// Handles our failure where an answer or an error is expected.
    fn failed(&mut self, record: &Record<'_>, sql: &str, failure: &Failure) {
        if let Some(reason) = self.corpus.rules.failed(&self.part.file, sql, failure) {
            self.leave_out(sql, Some(reason));
        } else if matches!(record.kind, Kind::Refused) && !failure.is_internal() {
            self.corpus.report.lock().both_fail += 1;
        } else {
            self.fail(record, sql, &failure.to_string());
        }
    }

    /// Counts a skipped record and marks what depends on it.
    fn leave_out(&mut self, sql: &str, lack: Lack) {
        if let Some(reason) = lack {
            self.corpus.rules.count(reason);
        }
        self.corpus.report.lock().known += 1;
        self.lose(sql, lack);
    }

    /// Marks what a statement should have created or changed as wrong; forgets what it should have dropped.
    fn lose(&mut self, sql: &str, lack: Lack) {
        if DROPPED.is_match(sql) {
            self.lacking.retain(|name, _| !words(sql).any(|word| word == *name));
        } else if let Some(parts) = MADE.captures(sql).or_else(|| CHANGED.captures(sql)) {
            self.lacking.insert(name(&parts[1]), lack);
        }
    }

    /// Returns why a table that the statement needs is missing or wrong.
    fn lack(&mut self, sql: &str) -> Option<Lack> {
        if self.lacking.is_empty() {
            return None;
        }
        if let Some(made) = MADE.captures(sql) {
            self.lacking.remove(&name(&made[1]));
        }
        words(sql).find_map(|word| self.lacking.get(&word).copied())
    }

    /// Keeps a row, to insert it together with others.
    async fn put_off(&mut self, record: &Record<'_>, head: &str, row: &str) {
        let is_next = |(kept, rows): &(String, Vec<String>)| kept == head && rows.len() < ROWS_AT_ONCE_MAX;
        if !self.inserts.as_ref().is_some_and(is_next) {
            self.insert(record).await;
        }
        let (_, rows) = self.inserts.get_or_insert_with(|| (head.to_owned(), Vec::new()));
        rows.push(row.to_owned());
        self.corpus.report.lock().same += 1;
    }

    /// Inserts the rows that were kept.
    async fn insert(&mut self, record: &Record<'_>) {
        let Some((head, rows)) = self.inserts.take() else { return };
        let sql = format!("{head} {}", rows.join(", "));
        self.is_hot = true;
        if let Err(failure) = self.ask(&sql).await {
            self.failed(&Record { kind: Kind::Statement, ..*record }, &sql, &failure);
        }
    }

    async fn flush(&mut self) {
        let sql = format!("STORAGE FLUSH ALL IN {}", self.namespace);
        let (_, batches) = self.ask(&sql).await.unwrap_or_else(|failure| panic!("{sql}: {failure}"));
        for line in lines(&batches) {
            let job = JobId(line.split('|').next().unwrap().to_owned());
            self.corpus.database.context().jobs.wait(&job).await;
        }
        self.is_hot = false;
    }

    /// Creates a table with the given columns, or those of a query, and inserts the query's rows.
    async fn make_of_query(
        &self,
        table: &str,
        columns: Option<&str>,
        query: &str,
        is_replaced: bool,
    ) -> Result<(SchemaRef, Vec<RecordBatch>), Failure> {
        let columns = match columns {
            Some(columns) => columns.to_owned(),
            None => {
                let (schema, _) = self.ask(query).await?;
                let mut columns = Vec::new();
                for field in schema.fields() {
                    columns.push(format!(
                        "\"{}\" {}",
                        field.name().replace('"', "\"\""),
                        sql_type(field.data_type())?
                    ));
                }
                format!("({})", columns.join(", "))
            }
        };
        if is_replaced {
            self.ask(&format!("DROP TABLE IF EXISTS {table}")).await?;
        }
        self.ask(&format!("CREATE TABLE {table} {columns}")).await?;
        self.ask(&format!("INSERT INTO {table} {query}")).await
    }

    fn fail(&mut self, record: &Record<'_>, sql: &str, why: &str) {
        self.lose(sql, None);
        let copy = if self.part.is_flushed { "flushed" } else { "hot" };
        let mut failure = format!("{}:{} {copy}\n{}", self.part.file, record.line, self.script(record, sql));
        failure.push_str(&format!("{sql};\n-- {}", why.replace('\n', "\n-- ")));
        let mut report = self.corpus.report.lock();
        report.failures.push(failure);
        report.say_failures();
    }

    /// Returns the statements before a record that concern the tables it names.
    fn script(&self, failed: &Record<'_>, sql: &str) -> String {
        let names: HashSet<String> = words(sql).collect();
        let statements: Vec<String> = Records::new(self.text, self.corpus.engine)
            .take_while(|record| record.line < failed.line)
            .filter(|record| record.is_ours && matches!(record.kind, Kind::Statement))
            .filter_map(|record| {
                let about = MADE.captures(record.sql).or_else(|| CHANGED.captures(record.sql))?;
                names
                    .contains(&name(&about[1]))
                    .then(|| format!("{};\n", self.corpus.rules.rewritten(record.sql)))
            })
            .collect();
        let hidden = statements.len().saturating_sub(STATEMENTS_SHOWN_MAX);
        let note = if hidden > 0 { format!("-- {hidden} statements more\n") } else { String::new() };
        format!("{}{note}", statements[..statements.len() - hidden].concat())
    }
}

/// Returns the last part of a name, in the form of the keys of `lacking`.
fn name(written: &str) -> String {
    written.rsplit('.').next().unwrap_or_default().trim_matches('"').to_lowercase()
}

/// Returns the words of a statement, in lower case.
fn words(sql: &str) -> impl Iterator<Item = String> {
    sql.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
}

fn sql_type(ty: &DataType) -> Result<String, Failure> {
    let written = match ty {
        DataType::Boolean => "BOOLEAN",
        DataType::Int16 => "SMALLINT",
        DataType::Int32 => "INTEGER",
        DataType::Int64 => "BIGINT",
        DataType::Float32 => "REAL",
        DataType::Float64 => "DOUBLE",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "TEXT",
        DataType::Date32 => "DATE",
        DataType::Timestamp(_, None) => "TIMESTAMP",
        DataType::Timestamp(_, Some(_)) => "TIMESTAMPTZ",
        DataType::Binary | DataType::BinaryView => "BYTES",
        DataType::Decimal128(digits, scale) => return Ok(format!("DECIMAL({digits},{scale})")),
        other => {
            let text = format!("tables have no columns of type {other}");
            return Err(Failure { sqlstate: "0A000".to_owned(), text });
        }
    };
    Ok(written.to_owned())
}
