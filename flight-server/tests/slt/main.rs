//! Runs every `.slt` file under `tests/slt/sql` over the real wire.
//!
//! Each file gets the real `kalamdb` binary on a free port with an empty data directory, so files do not
//! depend on each other or on their order. Statements go through an ordinary Flight SQL client. DDL is not
//! prepared; every other statement is. The server's updates run as updates, queries with parameters run
//! prepared and other queries ad hoc, so all paths are used.
//!
//! Every file runs three times with the same results: unchanged, with hot rows; as `flushed::NAME`, where all
//! tables are flushed after every statement, so queries, updates and deletes read only cold rows; and as
//! `flushed_late::NAME`, where tables are flushed only before queries, so updates and deletes also meet hot
//! rows.
//!
//! `tests/slt/README.md` describes the extensions of plain sqllogictest. All failures of a file are reported,
//! not only the first, and a log line of level ERROR also fails the file.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
mod format;
mod server;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use sqllogictest::harness::{Arguments, Failed, Trial};
use sqllogictest::{Connection, Record, Runner, parse_file, strict_column_validator};

use client::FlightConnection;
use format::WireType;
use server::Server;

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slt/sql");
    let mut trials = Vec::new();
    for path in slt_files(&folder) {
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        for (prefix, rows) in [
            ("", Rows::AsTheyAre),
            ("flushed::", Rows::FlushedAfterStatements),
            ("flushed_late::", Rows::FlushedBeforeQueries),
        ] {
            let path = path.clone();
            trials.push(Trial::test(format!("{prefix}{name}"), move || run_file(&path, rows)));
        }
    }
    trials.push(Trial::test("the_folder_has_files", move || {
        let found = slt_files(&folder).len();
        if found >= 20 {
            Ok(())
        } else {
            Err(format!("only {found} .slt files in {}", folder.display()).into())
        }
    }));
    sqllogictest::harness::run(&Arguments::from_args(), trials).exit();
}

fn slt_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "slt"));
    files.sort();
    files
}

/// Where the queried rows are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// Where the server puts them.
    AsTheyAre,
    /// In segments: all tables are flushed after every statement.
    FlushedAfterStatements,
    /// In segments: all tables are flushed before the first query after a statement.
    FlushedBeforeQueries,
}

fn run_file(path: &Path, rows: Rows) -> Result<(), Failed> {
    let records = parse_file::<WireType>(path).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut failures = Vec::new();
    let server = Server::start()?;
    runtime.block_on(run_records(&server, records, rows, &mut failures));
    // The connections end with their runtime; a draining server waits for open ones.
    drop(runtime);
    failures.extend(server.stop());
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
}

async fn run_records(
    server: &Server,
    records: Vec<Record<WireType>>,
    rows: Rows,
    failures: &mut Vec<String>,
) {
    // The factory does not get the connection's name, so the loop stores the next record's name here.
    let current = Arc::new(Mutex::new(Connection::Default));
    let address = server.address().to_owned();
    let mut runner = {
        let current = Arc::clone(&current);
        Runner::new(move || {
            let (name, address) = (current.lock().expect("no panics while held").clone(), address.clone());
            async move { FlightConnection::open(&address, &name).await }
        })
    };
    runner.with_column_validator(strict_column_validator);
    let mut flusher = match rows {
        Rows::AsTheyAre => None,
        _ => match FlightConnection::open(server.address(), &Connection::Default).await {
            Ok(flusher) => Some(flusher),
            Err(error) => return failures.push(error.to_string()),
        },
    };
    let mut is_written = false;
    for record in records {
        let is_query = matches!(&record, Record::Query { .. });
        if rows == Rows::FlushedBeforeQueries && is_query && std::mem::take(&mut is_written) {
            failures.extend(flush_all(&mut flusher).await);
        }
        is_written |= matches!(&record, Record::Statement { .. });
        match &record {
            Record::Halt { .. } => break,
            Record::Statement { connection, .. }
            | Record::Query { connection, .. }
            | Record::Let { connection, .. } => {
                *current.lock().expect("no panics while held") = connection.clone();
            }
            _ => {}
        }
        if let Err(error) = runner.run_async(record).await {
            failures.push(error.display(false).to_string());
        }
        if rows == Rows::FlushedAfterStatements && std::mem::take(&mut is_written) {
            failures.extend(flush_all(&mut flusher).await);
        }
    }
    runner.shutdown_async().await;
}

/// Flushes all tables; returns the error message of a failure.
async fn flush_all(flusher: &mut Option<FlightConnection>) -> Option<String> {
    let error = flusher.as_mut()?.flush_all().await.err()?;
    Some(format!("a flush failed: {error}"))
}
