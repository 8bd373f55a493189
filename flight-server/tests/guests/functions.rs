//! Every scalar function of the server with large arguments, as constants and from columns.
//!
//! The names come from `information_schema.routines`, so a new function is tested without being named here.
//! Most calls have arguments of wrong types and are refused while they are planned.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch};
use arrow_flight::error::FlightError;
use futures::TryStreamExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::fixture::{Fixture, FlightClient, GUEST};
use crate::guest::{self, Answer};
use crate::process::{Work, resident, until_idle};
use crate::promises::Promise;
use crate::report::Report;
use crate::{is_whole, seed, size, turn};

/// Letters of [`argument`], a text for each list of arguments.
const LISTS: [&str; 38] = [
    "", "T", "TT", "TTT", "TTTT", "TK", "TN", "TKK", "TKT", "TNT", "TTK", "TTN", "K", "KK", "N", "NN", "NNN",
    "KN", "F", "FF", "FFF", "FK", "L", "LL", "LLL", "LK", "LN", "KL", "LKK", "LKN", "LT", "TL", "S", "SS",
    "TS", "ST", "D", "TD",
];
/// No call may take more CPU time.
const CPU_MAX: Duration = Duration::from_secs(5);
/// No call may hold more memory; a result has at most 128 MiB, and its arguments are as large.
const MEMORY_MAX: u64 = 1 << 30;

/// Returns an argument: a text of 1 MB, a list of 2 million numbers, large numbers, extreme values.
fn argument(letter: char, from_columns: bool) -> &'static str {
    match (letter, from_columns) {
        ('T', false) => "repeat('ab', 500000)",
        ('T', true) => "repeat(a, 500000)",
        ('L', false) => "range(1, 2000000)",
        ('L', true) => "range(one, 2000000)",
        ('K', false) => "100000",
        ('K', true) => "k",
        ('N', false) => "9223372036854775807",
        ('N', true) => "n",
        ('F', false) => "CAST('NaN' AS DOUBLE PRECISION)",
        ('F', true) => "f",
        ('S', false) => "TIMESTAMP '9999-12-31 23:59:59'",
        ('S', true) => "s",
        ('D', false) => "DATE '9999-12-31'",
        ('D', true) => "d",
        (letter, _) => panic!("no argument {letter}"),
    }
}

fn call(function: &str, arguments: &str, from_columns: bool) -> String {
    let arguments: Vec<&str> = arguments.chars().map(|letter| argument(letter, from_columns)).collect();
    let source = if from_columns { " FROM app.extremes" } else { "" };
    format!("SELECT {function}({}) AS v{source}", arguments.join(", "))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_with_large_arguments_end() {
    let _turn = turn().await;
    let mut report = Report::new("functions");
    let seed = seed();
    report.note(format!("seed {seed} (KALAMDB_SEED)"));
    let mut fixture = start().await;
    let mut guest = fixture.user(GUEST).await;
    let names = names(&mut guest).await.unwrap_or_else(|error| panic!("the names of the functions: {error}"));
    report.check(Promise::Alive, names.len() >= 200, format!("{} functions", names.len()));
    let mut calls: Vec<(String, &str, bool)> = Vec::new();
    for name in &names {
        for list in LISTS {
            calls.extend([false, true].map(|from_columns| (name.clone(), list, from_columns)));
        }
    }
    calls.shuffle(&mut StdRng::seed_from_u64(seed));
    if !is_whole() {
        calls.truncate(500);
    }

    let patience = if Promise::FunctionsEnd.is_kept() { 2 * CPU_MAX } else { Duration::from_secs(1) };
    let until = Instant::now() + Duration::from_secs(size(60, 3_600));
    let (mut asked, mut rows, mut endless, mut failed, mut peak) = (0, 0, Vec::new(), Vec::new(), 0);
    for (name, list, from_columns) in &calls {
        if Instant::now() > until {
            break;
        }
        asked += 1;
        let sql = call(name, list, *from_columns);
        let earlier = Work::of_all(fixture.pid());
        let answer = tokio::time::timeout(patience, guest::ask(&mut guest, &sql)).await;
        peak = peak.max(resident(fixture.pid()));
        let worked = Work::of_all(fixture.pid()).since(&earlier);
        if worked > CPU_MAX || answer.is_err() {
            endless.push(format!("{sql}: {worked:.1?}"));
        }
        match answer {
            Ok(Answer::Rows) => rows += 1,
            Ok(Answer::Refused(state)) if !state.starts_with("XX") => {}
            Ok(answer) => {
                failed.push(format!("{sql}: {answer:?}"));
                guest = fixture.user(GUEST).await;
            }
            // What is still at work would be counted for the next call.
            Err(_) => {
                if until_idle(fixture.pid(), Duration::from_secs(1)).await.is_none() {
                    drop(guest);
                    drop(fixture);
                    fixture = start().await;
                    guest = fixture.user(GUEST).await;
                }
            }
        }
    }
    report.note(format!("{asked} calls of {}, {rows} with rows", calls.len()));
    let said =
        format!("{} calls over {CPU_MAX:?} {:?}", endless.len(), endless.iter().take(20).collect::<Vec<_>>());
    report.check(Promise::FunctionsEnd, endless.is_empty(), said);
    let said = format!("{} internal errors {:?}", failed.len(), failed.iter().take(20).collect::<Vec<_>>());
    report.check(Promise::FunctionsEnd, failed.is_empty(), said);
    report.bytes(Promise::FunctionsEnd, "resident memory", peak, MEMORY_MAX);
    drop(guest);
    drop(fixture);
    report.finish();
}

async fn start() -> Fixture {
    let mut fixture = Fixture::start(&[]).await;
    let table = "CREATE USER TABLE app.extremes (one BIGINT PRIMARY KEY, a TEXT, k BIGINT, n BIGINT, \
        f DOUBLE PRECISION, s TIMESTAMP, d DATE)";
    fixture.root.run(table).await.expect("create the table");
    let row = "INSERT INTO app.extremes VALUES (1, 'ab', 100000, 9223372036854775807, \
        CAST('NaN' AS DOUBLE PRECISION), TIMESTAMP '9999-12-31 23:59:59', DATE '9999-12-31')";
    let mut guest = fixture.user(GUEST).await;
    guest.execute_update(row.to_owned(), None).await.expect("insert the row");
    fixture
}

/// Returns the names of the scalar functions.
async fn names(client: &mut FlightClient) -> Result<BTreeSet<String>, FlightError> {
    let sql = "SELECT routine_name FROM information_schema.routines WHERE function_type = 'SCALAR'";
    let info = client.execute(sql.to_owned(), None).await?;
    let mut names = BTreeSet::new();
    for ticket in info.endpoint.into_iter().filter_map(|endpoint| endpoint.ticket) {
        let stream = client.do_get(ticket).await?;
        for batch in stream.try_collect::<Vec<RecordBatch>>().await? {
            let column = batch.column(0).as_string::<i32>();
            names.extend(column.iter().flatten().map(str::to_owned));
        }
    }
    Ok(names)
}
