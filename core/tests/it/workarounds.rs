//! Checks that DataFusion and sqlparser alone are still wrong where `core/src/sql` corrects or refuses them.
//!
//! `workarounds.toml` has a query for each fault. A plain DataFusion session answers it, with the dialect of
//! this database and otherwise DataFusion's own settings. A test fails when the answer becomes right, so that
//! the workaround can go, or when it becomes another wrong one, so that somebody looks at it. This database
//! gives the right answer. `docs/sql-correctness.md` lists all workarounds.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use kalamdb_core::{Config, Database, Outcome, Session};
use serde::Deserialize;

use crate::cold::flush;
use crate::session::{run, text};

/// How often DataFusion must be right about a fault before its work-around can go.
const ASKED: usize = 5;
const FILE: &str = include_str!("workarounds.toml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    fault: Vec<Fault>,
    refusal: Vec<Refusal>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refusal {
    name: String,
    query: String,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fault {
    name: String,
    /// The file of the workaround.
    file: String,
    #[serde(default)]
    setup: String,
    #[serde(default)]
    parquet: bool,
    #[serde(default)]
    settings: BTreeMap<String, String>,
    query: String,
    right: Option<Vec<String>>,
    refused: Option<String>,
    stock: Option<Vec<String>>,
    fails: Option<String>,
}

/// The answer to a query.
#[derive(Clone, PartialEq)]
enum Answer {
    Rows(Vec<String>),
    Error(String),
}

impl Display for Answer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows(rows) => write!(f, "{rows:?}"),
            Self::Error(error) => write!(f, "error: {error}"),
        }
    }
}

impl Fault {
    fn is_right(&self, answer: &Answer) -> bool {
        match answer {
            Answer::Rows(rows) => self.right.as_ref() == Some(rows),
            Answer::Error(error) => {
                self.refused.is_some() && !error.contains("panicked") && !self.is_known(answer)
            }
        }
    }

    fn is_known(&self, answer: &Answer) -> bool {
        match answer {
            Answer::Rows(rows) => self.stock.as_ref() == Some(rows),
            Answer::Error(error) => self.fails.as_ref().is_some_and(|words| error.contains(words)),
        }
    }

    /// Returns a report on an answer other than the known one.
    fn news(&self, answer: &Answer) -> Option<String> {
        let Self { name, file, query, .. } = self;
        let shows_here = cfg!(debug_assertions) || self.stock != self.right || self.right.is_none();
        if self.is_right(answer) && shows_here {
            Some(format!(
                "DataFusion is right about {name} now: the work-around {file} can go\n  {query}\n  {answer}"
            ))
        } else if self.is_known(answer) {
            None
        } else {
            Some(format!("DataFusion has another wrong answer for {name} ({file})\n  {query}\n  {answer}"))
        }
    }
}

fn file() -> File {
    toml::from_str(FILE).expect("workarounds.toml")
}

fn faults() -> Vec<Fault> {
    file().fault
}

fn stock(fault: &Fault) -> SessionContext {
    let config = SessionConfig::new()
        .with_target_partitions(4)
        .set_str("datafusion.sql_parser.dialect", "PostgreSQL")
        .with_information_schema(false);
    let config = fault.settings.iter().fold(config, |config, (name, value)| config.set_str(name, value));
    SessionContext::new_with_config(config)
}

fn statements(setup: &str) -> impl Iterator<Item = &str> {
    setup.split("; ").filter(|statement| !statement.is_empty())
}

async fn ask(fault: Fault) -> datafusion::common::Result<Vec<String>> {
    let context = stock(&fault);
    for statement in statements(&fault.setup) {
        context.sql(statement).await?.collect().await?;
    }
    let dir = tempfile::tempdir().unwrap();
    if fault.parquet {
        read_from_files(&context, dir.path()).await?;
    }
    let batches = context.sql(&fault.query).await?.collect().await?;
    Ok(text(&batches))
}

/// Replaces each table with a Parquet file.
async fn read_from_files(context: &SessionContext, dir: &Path) -> datafusion::common::Result<()> {
    let schema = context.catalog("datafusion").unwrap().schema("public").unwrap();
    for table in schema.table_names() {
        let path = dir.join(format!("{table}.parquet"));
        let path = path.to_str().unwrap();
        context.table(&table).await?.write_parquet(path, DataFrameWriteOptions::new(), None).await?;
        context.deregister_table(&table)?;
        context.register_parquet(&table, path, ParquetReadOptions::default()).await?;
    }
    Ok(())
}

/// Returns the answer of DataFusion alone; a panic counts as an error.
fn answer(fault: &Fault) -> Answer {
    let fault = fault.clone();
    // One thread, so that partitions are read in a fixed order.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match runtime.block_on(async { tokio::spawn(ask(fault)).await }) {
        Ok(Ok(rows)) => Answer::Rows(rows),
        Ok(Err(error)) => Answer::Error(error.to_string()),
        Err(error) => Answer::Error(format!("panicked: {error}")),
    }
}

#[test]
fn datafusion_alone_is_still_wrong() {
    // A plan can depend on the order in which DataFusion walks its hash maps, which differs each time.
    let news_each_time = |fault: &Fault| {
        let mut news = (0..ASKED).map(|_| fault.news(&answer(fault)));
        let first = news.next().flatten()?;
        news.all(|news| news.is_some()).then_some(first)
    };
    let news: Vec<String> = faults().iter().filter_map(news_each_time).collect();
    assert!(news.is_empty(), "{}", news.join("\n"));
}

/// Runs `CREATE TABLE t (...) AS ...` as two statements.
async fn create_and_fill(session: &Session, statement: &str) {
    let (table, rows) = statement.split_once(" AS ").unwrap();
    let name = table.split(' ').nth(2).unwrap();
    run(session, table).await;
    run(session, &format!("INSERT INTO {name} {rows}")).await;
}

/// Returns the rows this database gives, or the SQLSTATE of its error.
async fn ours(session: &Session, sql: &str) -> Result<Vec<String>, String> {
    let state = |error: kalamdb_core::Error| error.sqlstate().to_string();
    match session.execute(sql, ()).await.map_err(state)? {
        Outcome::Rows(rows) => Ok(text(&rows.collect().await.map_err(state)?)),
        other => panic!("{sql}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn this_database_is_right() {
    let database = Database::open_in_memory().await.unwrap();
    let root = database.session_for("root").unwrap();
    let mut wrong = Vec::new();
    for fault in faults() {
        let Fault { name, setup, query, right, refused, .. } = fault;
        run(&root, &format!("CREATE NAMESPACE {name}")).await;
        run(&root, &format!("USE {name}")).await;
        for statement in statements(&setup) {
            create_and_fill(&root, statement).await;
        }
        let answer = ours(&root, &query).await;
        if answer.clone().ok() != right || answer.clone().err() != refused {
            wrong.push(format!("{name}: {query}\n  {answer:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Returns the rows of a script's last statement, in plans with three partitions.
async fn ask_in_partitions(config: Config, script: &str) -> Vec<String> {
    let config = Config { batch_rows: 16, query_partitions: 3, ..config };
    let database = Database::open(config).await.unwrap();
    let root = database.session_for("root").unwrap();
    let (setup, query) = script.trim_end().trim_end_matches(';').rsplit_once(";\n").unwrap();
    for statement in setup.split(";\n") {
        match statement.strip_prefix("STORAGE FLUSH TABLE ") {
            Some(table) => flush(&database, &format!("public.{table}")).await,
            None => drop(run(&root, statement).await),
        }
    }
    ours(&root, query).await.unwrap()
}

/// No query of DataFusion alone is known that hangs like this one.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_below_an_empty_build_side_ends() {
    let mut found = ask_in_partitions(Config::in_memory(), include_str!("empty_build_side.sql")).await;
    found.sort_unstable();
    assert_eq!(found, ["2||2024-01-31", "2||2024-01-31"]);
    let mut without = Config::in_memory();
    without.planner.rules_off.push("kalam_build_reports".to_owned());
    let stuck = ask_in_partitions(without, include_str!("empty_build_side.sql"));
    let is_stuck = tokio::time::timeout(Duration::from_secs(2), stuck).await.is_err();
    assert!(is_stuck, "DataFusion no longer waits for a partition that nobody asks: build_reports.rs can go");
}

/// Half of the rows are hot, so the projection goes below a union.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_over_a_column_that_is_there_twice_has_its_order() {
    let script = "CREATE TABLE t (id INT PRIMARY KEY, b TEXT, c DECIMAL(10,2));\n\
         INSERT INTO t VALUES (1, 'ab', 1.00), (2, 'b', 2.00);\n\
         STORAGE FLUSH TABLE t;\n\
         INSERT INTO t VALUES (3, 'a', 3.00);\n\
         CREATE TABLE u (id INT PRIMARY KEY, b TEXT);\n\
         INSERT INTO u VALUES (3, 'a');\n\
         SELECT b AS c1, b AS c2, CASE WHEN b = 'b' THEN c ELSE coalesce(id, id) END AS c3 FROM t WHERE b LIKE 'a%' \
         INTERSECT ALL SELECT b AS c1, b AS c2, id AS c3 FROM u";
    assert_eq!(ask_in_partitions(Config::in_memory(), script).await, ["a|a|3.00"]);
}

/// The check repairs this plan, and must not lose the order of its result.
#[tokio::test(flavor = "multi_thread")]
async fn a_repaired_plan_keeps_the_order_of_its_result() {
    let found = ask_in_partitions(Config::in_memory(), include_str!("repaired_order.sql")).await;
    assert_eq!(found, ["9007199254740992.0|2024-02-29|1.5000", "-1.5|2024-02-29|3.0000"]);
}

/// With DataFusion's own setting, about one of 500 answers is wrong. Its limit_pushdown still drops
/// `preserve_order` of a sorted scan below a merge; once it does not, the setting can go.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_reads_sorted_files_apart() {
    let config = Config { query_partitions: 2, ..Config::in_memory() };
    let database = Database::open(config).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE TABLE t (id INT PRIMARY KEY, n INT)").await;
    for rows in ["(15, 7), (24, 8)", "(2, 2), (3, 3), (5, 4), (6, 5), (22, 9)"] {
        run(&root, &format!("INSERT INTO t VALUES {rows}")).await;
        flush(&database, "public.t").await;
    }
    run(&root, "INSERT INTO t VALUES (9, 6), (1, 1)").await;
    for _ in 0..500 {
        let found = ours(&root, "SELECT n FROM t ORDER BY id LIMIT 5 OFFSET 2").await.unwrap();
        assert_eq!(found, ["3", "4", "5", "6", "7"]);
    }
}

/// The planner groups by all columns that a key in GROUP BY determines. They are removed again.
#[tokio::test(flavor = "multi_thread")]
async fn rows_are_grouped_by_a_key_without_what_it_determines() {
    let database = Database::open_in_memory().await.unwrap();
    let root = database.session_for("root").unwrap();
    for table in ["t", "u"] {
        run(&root, &format!("CREATE TABLE {table} (id INT PRIMARY KEY, a TEXT, b TEXT)")).await;
    }
    for query in [
        "SELECT t.id, count(u.id) FROM t LEFT JOIN u ON u.a = t.a GROUP BY t.id",
        "SELECT t.id, count(*) FROM t JOIN u ON u.a = t.a WHERE u.id IN (SELECT id FROM u GROUP BY id) GROUP BY t.id",
    ] {
        let plan = ours(&root, &format!("EXPLAIN {query}")).await.unwrap().join("\n");
        assert!(plan.contains("gby=[id@0 as id], aggr=[count("), "{query}\n{plan}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_does_right_is_refused_by_name() {
    let database = Database::open_in_memory().await.unwrap();
    let root = database.session_for("root").unwrap();
    let mut answered = Vec::new();
    for Refusal { name, query } in file().refusal {
        let answer = ours(&root, &query).await;
        if answer != Err("0A000".to_owned()) {
            answered.push(format!("{name}: {query}\n  {answer:?}"));
        }
    }
    assert!(answered.is_empty(), "{}", answered.join("\n"));
}

#[test]
fn each_fault_has_a_right_answer_and_a_wrong_one() {
    let mut names = HashSet::new();
    for fault in faults() {
        let name = &fault.name;
        assert!(names.insert(name.clone()), "{name} is there twice");
        assert!(fault.right.is_some() != fault.refused.is_some(), "{name}");
        assert!(fault.stock.is_some() || fault.fails.is_some(), "{name}");
        let file = root().join("core/src/sql/workarounds").join(&fault.file);
        assert!(file.is_file(), "{name} names {}", fault.file);
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Collects the paths of all files below a folder.
fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

/// Returns the texts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Returns names of tests: the texts between backticks in the last column of a table's lines.
fn tests_named(ledger: &str) -> Vec<&str> {
    let lines = ledger.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what"));
    lines
        .flat_map(|line| line.trim_matches('|').split(" | ").last().map(quoted).into_iter().flatten())
        .collect()
}

#[test]
fn every_workaround_is_in_the_ledger() {
    let ledger = fs::read_to_string(root().join("docs/sql-correctness.md")).unwrap();
    let dir = root().join("core/src/sql/workarounds");
    let mut files = Vec::new();
    files_below(&dir, &mut files);
    assert!(!files.is_empty());
    for file in files {
        let name = file.strip_prefix(&dir).unwrap().to_str().unwrap();
        assert!(quoted(&ledger).any(|word| word == name), "docs/sql-correctness.md does not name {name}");
    }
}

#[test]
fn the_ledger_and_the_tests_name_each_other() {
    let ledger = fs::read_to_string(root().join("docs/sql-correctness.md")).unwrap();
    let File { fault, refusal } = file();
    let known: HashSet<String> =
        fault.into_iter().map(|one| one.name).chain(refusal.into_iter().map(|one| one.name)).collect();
    let named = tests_named(&ledger);
    for name in &named {
        let is_file = root().join("flight-server/tests/slt/sql").join(format!("{name}.slt")).is_file();
        let is_here = include_str!("workarounds.rs").contains(&format!("async fn {name}()"));
        assert!(
            is_file || is_here || known.contains(*name),
            "the ledger names a test that is not there: {name}"
        );
    }
    let missing: Vec<&String> = known.iter().filter(|name| !named.contains(&name.as_str())).collect();
    assert!(missing.is_empty(), "docs/sql-correctness.md does not name {missing:?}");
}
