//! Whether DataFusion and sqlparser alone are still wrong about what `core/src/sql` sets right or refuses.
//!
//! `workarounds.toml` has a query for each fault. It is asked of a plain session of DataFusion, with the dialect of this database and
//! else with DataFusion's own settings. A test here fails when the answer has become right, so that the work-around can go, and when it
//! has become another wrong one, so that somebody looks at it. `docs/sql-correctness.md` is the ledger of all of them.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::{Path, PathBuf};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::Result;
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use serde::Deserialize;

const FILE: &str = include_str!("workarounds.toml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    fault: Vec<Fault>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fault {
    name: String,
    /// The work-around.
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

/// What a query gives.
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
            Answer::Error(error) => self.refused.is_some() && !error.contains("panicked"),
        }
    }

    fn is_known(&self, answer: &Answer) -> bool {
        match answer {
            Answer::Rows(rows) => self.stock.as_ref() == Some(rows),
            Answer::Error(error) => self.fails.as_ref().is_some_and(|words| error.contains(words)),
        }
    }

    /// What is to be said about an answer that is not the known one.
    fn news(&self, answer: &Answer) -> Option<String> {
        let Self { name, file, query, .. } = self;
        if self.is_right(answer) {
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

fn faults() -> Vec<Fault> {
    let file: File = toml::from_str(FILE).expect("workarounds.toml");
    file.fault
}

fn stock(fault: &Fault) -> SessionContext {
    let config = SessionConfig::new()
        .with_target_partitions(4)
        .set_str("datafusion.sql_parser.dialect", "PostgreSQL")
        .with_information_schema(false);
    let config = fault.settings.iter().fold(config, |config, (name, value)| config.set_str(name, value));
    SessionContext::new_with_config(config)
}

async fn ask(fault: Fault) -> Result<Vec<String>> {
    let context = stock(&fault);
    for statement in fault.setup.split("; ").filter(|statement| !statement.is_empty()) {
        context.sql(statement).await?.collect().await?;
    }
    let dir = tempfile::tempdir().unwrap();
    if fault.parquet {
        read_from_files(&context, dir.path()).await?;
    }
    let batches = context.sql(&fault.query).await?.collect().await?;
    Ok(batches.iter().flat_map(rows).collect())
}

/// Puts a Parquet file in the place of each table.
async fn read_from_files(context: &SessionContext, dir: &Path) -> Result<()> {
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

fn rows(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let cells: Vec<ArrayFormatter<'_>> =
        batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
    let row = |row: usize| cells.iter().map(|cell| cell.value(row).to_string()).collect::<Vec<_>>().join("|");
    (0..batch.num_rows()).map(row).collect()
}

/// The answer of DataFusion alone; a panic is one as well.
fn answer(fault: &Fault) -> Answer {
    let fault = fault.clone();
    // On one thread, so that partitions are read in one order.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match runtime.block_on(async { tokio::spawn(ask(fault)).await }) {
        Ok(Ok(rows)) => Answer::Rows(rows),
        Ok(Err(error)) => Answer::Error(error.to_string()),
        Err(error) => Answer::Error(format!("panicked: {error}")),
    }
}

#[test]
fn datafusion_alone_is_still_wrong() {
    let news: Vec<String> = faults().iter().filter_map(|fault| fault.news(&answer(fault))).collect();
    assert!(news.is_empty(), "{}", news.join("\n"));
}

#[test]
fn each_fault_has_one_right_answer_and_one_wrong() {
    let mut names = HashSet::new();
    for fault in faults() {
        let name = &fault.name;
        assert!(names.insert(name.clone()), "{name} is there twice");
        assert!(fault.right.is_some() != fault.refused.is_some(), "{name}");
        assert!(fault.stock.is_some() != fault.fails.is_some(), "{name}");
        let file = root().join("core/src/sql/workarounds").join(&fault.file);
        assert!(file.is_file(), "{name} names {}", fault.file);
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The paths of all files below a folder.
fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The lines of the ledger's tables, without heads.
fn ledger_lines(ledger: &str) -> Vec<Vec<&str>> {
    let cells = |line: &str| line.trim_matches('|').split(" | ").collect::<Vec<_>>();
    let lines = ledger.lines().filter(|line| line.starts_with("| ")).map(cells);
    lines.filter(|cells| cells.len() == 5 && cells.first() != Some(&"what you would have met")).collect()
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
    let known: HashSet<String> = faults().into_iter().map(|fault| fault.name).collect();
    let mut named = HashSet::new();
    for cells in ledger_lines(&ledger) {
        let tests = cells[3];
        for name in quoted(tests) {
            let is_file = root().join("flight-server/tests/slt/sql").join(format!("{name}.slt")).is_file();
            assert!(is_file || known.contains(name), "the ledger names a test that is not there: {name}");
            named.insert(name.to_owned());
        }
        assert!(quoted(tests).next().is_some(), "a line without a test: {}", cells[0]);
    }
    let missing: Vec<&String> = known.iter().filter(|name| !named.contains(*name)).collect();
    assert!(missing.is_empty(), "docs/sql-correctness.md does not name {missing:?}");
}
