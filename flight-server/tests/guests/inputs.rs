//! The statements that once stopped the server or went on without their client, each alone.
//!
//! Two guests run the statement at the same time. Invariant: the server understands every statement; one
//! that it refuses is refused for its cost.

use std::time::{Duration, Instant};

use crate::bystander::{Bystander, WAIT_MAX};
use crate::fixture::{self, Fixture, GUEST};
use crate::guest::{self, Answer, Guest};
use crate::process::until_idle;
use crate::promises::Promise;
use crate::report::Report;
use crate::{limit, size, turn};

/// How long a statement runs before its clients vanish.
const RUNS: Duration = Duration::from_secs(1);
/// The limits of what a statement may work after its last client.
const END_MAX: Duration = Duration::from_secs(1);
const FUNCTION_END_MAX: Duration = Duration::from_secs(5);
/// How long the server is watched while no promise limits its work.
const WATCH: Duration = Duration::from_millis(1_500);

/// A statement that a guest may run.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) name: &'static str,
    pub(crate) sql: String,
    /// The promise that ends its work.
    pub(crate) ends: Promise,
    /// Whether it costs too much to be run at all.
    is_refused: bool,
}

impl Input {
    fn end_max(&self) -> Duration {
        if self.ends == Promise::FunctionsEnd { FUNCTION_END_MAX } else { END_MAX }
    }
}

const SCANS: [(&str, &str); 4] = [
    ("long series", "SELECT count(*) FROM generate_series(1, 1000000000000)"),
    (
        "endless recursion",
        "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 AS n FROM t WHERE n > 0) SELECT count(*) FROM t",
    ),
    (
        "groups of 1e9 rows",
        "SELECT count(*) FROM (SELECT value % 1000 AS k, count(*) AS n FROM generate_series(1, 1000000000) \
         GROUP BY value % 1000) g",
    ),
    (
        "regular expression",
        "SELECT count(*) FROM generate_series(1, 1000000000) WHERE CAST(value AS TEXT) ~ '(a|b|ab)*c'",
    ),
];

const OPERATORS: [(&str, &str); 7] = [
    ("sort of 20 M rows", "SELECT value FROM generate_series(1, 20000000) ORDER BY value % 1000003 DESC"),
    ("sort of 1e9 rows", "SELECT value FROM generate_series(1, 1000000000) ORDER BY value % 1000003 DESC"),
    ("distinct of 1e9 rows", "SELECT count(DISTINCT value) FROM generate_series(1, 1000000000)"),
    ("list of 1e9 rows", "SELECT cardinality(array_agg(value)) FROM generate_series(1, 1000000000)"),
    (
        "window over 1e9 rows",
        "SELECT max(r) FROM (SELECT row_number() OVER (ORDER BY value % 1009) AS r \
         FROM generate_series(1, 1000000000)) w",
    ),
    (
        "distinct of long texts",
        "SELECT count(*) FROM (SELECT DISTINCT repeat(CAST(value AS TEXT), 100) AS t \
         FROM generate_series(1, 10000000)) d",
    ),
    (
        "grouped long texts",
        "SELECT max(n) FROM (SELECT repeat(CAST(value AS TEXT), 50) AS t, count(*) AS n \
         FROM generate_series(1, 10000000) GROUP BY repeat(CAST(value AS TEXT), 50)) g",
    ),
];

const JOINS: [(&str, &str); 10] = [
    (
        "join with many matches",
        "SELECT count(*) AS n FROM generate_series(1,1000000) a(x) JOIN generate_series(1,1000000) b(y) \
         ON a.x % 10 = b.y % 10",
    ),
    (
        "join whose filter rejects all",
        "SELECT count(*) AS n FROM generate_series(1,1000000) a(x) JOIN generate_series(1,1000000) b(y) \
         ON a.x % 10 = b.y % 10 AND a.x + b.y < 0",
    ),
    (
        "left join whose filter rejects all",
        "SELECT count(b.y) AS n FROM generate_series(1,1000000) a(x) LEFT JOIN generate_series(1,1000000) b(y) \
         ON a.x % 10 = b.y % 10 AND a.x + b.y < 0",
    ),
    (
        "cross join with a condition",
        "SELECT COUNT(*) FROM generate_series(1,300000) a(x) CROSS JOIN generate_series(1,300000) b(y) \
         WHERE x + y = -1",
    ),
    (
        "larger cross join with a condition",
        "SELECT count(*) FROM generate_series(1,1000000) a CROSS JOIN generate_series(1,1000000) b \
         WHERE a.value+b.value=7",
    ),
    (
        "cross join, counted",
        "SELECT count(*) AS n FROM generate_series(1,1000000) a(x) CROSS JOIN generate_series(1,1000000) b(y)",
    ),
    (
        "EXISTS without an equality",
        "SELECT count(*) AS n FROM generate_series(1,300000) a(x) WHERE EXISTS \
         (SELECT 1 AS one FROM generate_series(1,300000) b(y) WHERE a.x + b.y < 0)",
    ),
    (
        "EXISTS whose filter rejects all",
        "SELECT count(*) AS n FROM generate_series(1,1000000) a(x) WHERE EXISTS \
         (SELECT 1 AS one FROM generate_series(1,1000000) b(y) WHERE a.x % 10 = b.y % 10 AND a.x + b.y < 0)",
    ),
    (
        "unnested lists",
        "SELECT count(*) FROM unnest(range(1,2000000)) a(x), unnest(range(1,200)) b(y) WHERE x+y=3",
    ),
    (
        "lists searched in a cross join",
        "SELECT count(array_position(range(1, 1000), a.x + b.y)) AS n FROM generate_series(1,100000) a(x) \
         CROSS JOIN generate_series(1,100000) b(y)",
    ),
];

/// Calls whose work grows with the product of their arguments.
const REFUSED: [(&str, &str); 6] = [
    ("levenshtein", "SELECT levenshtein(repeat('a',1000000),repeat('b',1000000)) AS n"),
    ("shorter levenshtein", "SELECT levenshtein(repeat('a',100000),repeat('b',100000)) AS n"),
    ("strpos", "SELECT strpos(repeat('a',2000000),repeat('a',1000000)||'b') AS n"),
    ("btrim", "SELECT length(btrim(repeat('a',1000000),repeat('b',1000000)||'a')) AS n"),
    ("array_has_all", "SELECT array_has_all(range(1,100000),range(1,100000)) AS b"),
    ("array_has_any", "SELECT array_has_any(range(1,100000),range(100001,200000)) AS b"),
];

const FUNCTIONS: [(&str, &str); 2] = [
    ("array_remove_all", "SELECT cardinality(array_remove_all(range(1,2000000),5)) AS n"),
    ("array_positions", "SELECT cardinality(array_positions(range(1,2000000),5)) AS n"),
];

/// Returns every input.
pub(crate) fn inputs() -> Vec<Input> {
    let mut all = [
        group(&SCANS, Promise::ScansEnd, false),
        group(&OPERATORS, Promise::OperatorsEnd, false),
        group(&JOINS, Promise::JoinsEnd, false),
        group(&REFUSED, Promise::FunctionsEnd, true),
        group(&FUNCTIONS, Promise::FunctionsEnd, false),
    ]
    .concat();
    let joins: Vec<String> =
        (1..30).map(|n| format!(" JOIN app.notes t{n} ON t{n}.id = t{}.id", n - 1)).collect();
    let sql = format!("SELECT count(*) AS n FROM app.notes t0{}", joins.concat());
    all.push(Input { name: "join of 30 tables", sql, ends: Promise::OperatorsEnd, is_refused: false });
    let sql = format!("SELECT {}1{} AS n", "(".repeat(5_000), ")".repeat(5_000));
    all.push(Input { name: "deep expression", sql, ends: Promise::ScansEnd, is_refused: false });
    all
}

fn group(inputs: &[(&'static str, &str)], ends: Promise, is_refused: bool) -> Vec<Input> {
    inputs.iter().map(|&(name, sql)| Input { name, sql: sql.to_owned(), ends, is_refused }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_alone_stops_nobody_and_ends_with_its_client() {
    let _turn = turn().await;
    let mut report = Report::new("alone");
    let mut world = World::begin().await;
    for input in inputs() {
        let guests = [(); 2].map(|()| Guest::arrive(&world.fixture.server.address, &world.token, &input.sql));
        tokio::time::sleep(RUNS / 2).await;
        let figures = world.bystander.once().await;
        let waited = figures.longest();
        tokio::time::sleep(RUNS / 2).await;
        let mut answers = Vec::new();
        for guest in guests {
            answers.extend(guest.leave().await);
        }
        let watched = if input.ends.is_kept() { input.end_max() } else { WATCH };
        let idle = until_idle(world.fixture.pid(), watched).await;

        let Input { name, ends, .. } = input;
        report.within(Promise::RunsApart, format!("{name}: others waited"), waited, WAIT_MAX);
        if !figures.failures.is_empty() {
            report.check(Promise::RunsApart, false, format!("{name}: {:?}", figures.failures));
        }
        match idle {
            Some(after) => {
                report.within(ends, format!("{name}: work after the client"), after, input.end_max())
            }
            None => report.check(ends, false, format!("{name}: still at work after {watched:?}")),
        }
        let expected = answers.iter().all(|answer| !answer.is_internal() && !answer.is_misunderstood());
        report.check(Promise::Alive, expected, format!("{name}: answers {answers:?}"));
        if input.is_refused {
            let refused = Answer::Refused("54000".to_owned());
            let all = answers.len() == 2 && answers.iter().all(|answer| *answer == refused);
            report.check(ends, all, format!("{name}: both refused with 54000"));
        }
        // What is still at work would spoil the next input.
        if idle.is_none() || !figures.failures.is_empty() {
            drop(world);
            world = World::begin().await;
        }
    }
    world.fixture.stop(&mut report).await;
    report.finish();
}

/// A server with a guest's token and the bystander.
struct World {
    fixture: Fixture,
    token: String,
    bystander: Bystander,
}

impl World {
    async fn begin() -> Self {
        let fixture = Fixture::start(&[("query_memory_bytes", "268435456")]).await;
        let token = fixture::log_in(&fixture.server.address, GUEST).await.expect("log in");
        let bystander = Bystander::of(&fixture).await;
        Self { fixture, token, bystander }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_a_thousand_columns_is_planned_quickly() {
    let _turn = turn().await;
    let mut report = Report::new("wide rows");
    let mut fixture = Fixture::start(&[]).await;
    let columns = size(300, 1_000);
    let definitions: Vec<String> = (1..columns).map(|n| format!("c{n} BIGINT")).collect();
    let sql = format!("CREATE USER TABLE app.wide (id BIGINT PRIMARY KEY, {})", definitions.join(", "));
    fixture.root.run(&sql).await.expect("create a wide table");
    let mut guest = fixture.user(GUEST).await;
    guest.execute_update("INSERT INTO app.wide (id) VALUES (1), (2)".to_owned(), None).await.expect("insert");
    let mut times = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        assert_eq!(guest::ask(&mut guest, "SELECT * FROM app.wide").await, Answer::Rows);
        times.push(began.elapsed());
    }
    times.sort_unstable();
    let max = limit(WAIT_MAX / 4, Duration::from_millis(100));
    report.within(Promise::WideRows, format!("SELECT * of {columns} columns, median"), times[2], max);
    drop(guest);
    fixture.stop(&mut report).await;
    report.finish();
}
