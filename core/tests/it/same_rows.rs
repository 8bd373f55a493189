//! A query returns the same rows whether they are hot, flushed, mixed after updates and deletes, or
//! compacted.
//!
//! `KALAMDB_SEED` and `KALAMDB_QUERIES` choose the queries; a failure names its seed.

use std::sync::Arc;

use kalamdb_core::{Database, Session};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::cold::{complete, flush};
use crate::random_query::Type::*;
use crate::random_query::{Questions, Shape, Type};
use crate::session::{rows, run, text};

const SHAPES: [Shape; 5] = [
    Shape {
        name: "every",
        columns: &[
            ("id", Integer),
            ("b", Boolean),
            ("s", Integer),
            ("i", Integer),
            ("r", Float),
            ("d", Float),
            ("m", Decimal),
            ("t", Text),
            ("v", Bytes),
            ("at", Timestamp),
            ("atz", TimestampTz),
            ("day", Date),
            ("clock", Time),
            ("u", Uuid),
            ("j", Json),
            ("e", Embedding),
        ],
        key: 1,
    },
    Shape {
        name: "own",
        columns: &[("i", Integer), ("t", Text), ("d", Float), ("day", Date), ("b", Boolean)],
        key: 2,
    },
    Shape {
        name: "floats",
        columns: &[("d", Float), ("at", Timestamp), ("v", Bytes), ("i", Integer), ("t", Text)],
        key: 3,
    },
    Shape {
        name: "keyless",
        columns: &[("i", Integer), ("t", Text), ("d", Float), ("m", Decimal), ("b", Boolean)],
        key: 0,
    },
    Shape { name: "many", columns: &[("id", Integer), ("i", Integer), ("t", Text), ("d", Float)], key: 1 },
];

/// How a table is created, and how its rows can be wrong for a while and be corrected again.
struct Table {
    create: &'static str,
    /// A non-key column, and an expression that undoes itself when applied twice.
    toggle: (&'static str, &'static str),
    /// For rows deleted again: a column, its value in them, the rows they copy, and how to find them.
    extra: (&'static str, &'static str, &'static str, &'static str),
}

const TABLES: [Table; 5] = [
    Table {
        create: "CREATE TABLE {}.every (id BIGINT PRIMARY KEY, b BOOLEAN, s SMALLINT, i INTEGER, r REAL, d DOUBLE, \
                 m DECIMAL(20, 4), t TEXT, v BYTES, at TIMESTAMP, atz TIMESTAMPTZ, day DATE, clock TIME, u UUID, j JSON, \
                 e EMBEDDING(3)) WITH (ACCESS_LEVEL = 'public')",
        toggle: ("b", "NOT b"),
        extra: ("id", "id + 1000000", "id BETWEEN 10 AND 60", "id > 900000 AND id < 2000000"),
    },
    Table {
        create: "CREATE USER TABLE {}.own (i INTEGER, t TEXT, d DOUBLE, day DATE, b BOOLEAN, PRIMARY KEY (i, t))",
        toggle: ("d", "-d"),
        extra: ("i", "i + 100000", "i < 20", "i > 90000"),
    },
    Table {
        create: "CREATE TABLE {}.floats (d DOUBLE, at TIMESTAMP, v BYTES, i INTEGER, t TEXT, PRIMARY KEY (d, at, v)) \
                 WITH (ACCESS_LEVEL = 'public')",
        toggle: ("i", "-i"),
        extra: ("d", "12345.0", "d = 0.5", "d = 12345.0"),
    },
    Table {
        create: "CREATE TABLE {}.keyless (i INTEGER, t TEXT, d DOUBLE, m DECIMAL(10, 2), b BOOLEAN) \
                 WITH (ACCESS_LEVEL = 'public')",
        toggle: ("b", "NOT b"),
        extra: ("t", "'gone'", "b", "t = 'gone'"),
    },
    Table {
        create: "CREATE TABLE {}.many (id BIGINT PRIMARY KEY, i INTEGER, t TEXT, d DOUBLE) WITH (ACCESS_LEVEL = 'public')",
        toggle: ("i", "-i"),
        extra: ("id", "id + 1000000", "id % 2 = 0", "id > 900000"),
    },
];

/// Rows for at least two pages.
const MANY: &str = "INSERT INTO hot.many SELECT value * 3 - 900, \
     CASE WHEN value % 11 = 0 THEN NULL ELSE value % 40 END, \
     CASE WHEN value % 5 = 0 THEN NULL WHEN value % 7 = 0 THEN '' ELSE 'text ' || CAST(value % 100 AS TEXT) END, \
     CASE WHEN value % 13 = 0 THEN CAST('NaN' AS DOUBLE) ELSE value / 8.0 END FROM generate_series(1, 5000)";

/// The hot copy comes first: the others are made from it and compared with it.
const COPIES: [&str; 4] = ["hot", "cold", "mixed", "compacted"];
/// For each copy, the copy with the second table of a query.
const PARTNERS: [&str; 4] = ["hot", "mixed", "hot", "cold"];

struct World {
    database: Database,
    /// Root and two users. Root writes the shared tables; the users write their own rows.
    sessions: Vec<Arc<Session>>,
}

impl World {
    async fn new(random: &mut StdRng) -> Self {
        let database = Database::open_in_memory().await.unwrap();
        let root = database.session_for("root").unwrap();
        for copy in COPIES {
            run(&root, &format!("CREATE NAMESPACE {copy}")).await;
            for table in &TABLES {
                run(&root, &table.create.replacen("{}", copy, 1)).await;
            }
        }
        let mut sessions = vec![Arc::new(root)];
        for name in ["ann", "bob"] {
            run(&sessions[0], &format!("CREATE USER '{name}' WITH PASSWORD 'a password'")).await;
            sessions.push(Arc::new(database.session_for(name).unwrap()));
        }
        let world = Self { database, sessions };
        for (shape, table) in SHAPES.iter().zip(&TABLES) {
            for session in world.writers(shape) {
                fill(session, shape, random).await;
            }
            world.make_cold(shape).await;
            world.make_mixed(shape, table).await;
            world.make_compacted(shape, table).await;
        }
        world
    }

    fn writers(&self, shape: &Shape) -> &[Arc<Session>] {
        if shape.name == "own" { &self.sessions[1..] } else { &self.sessions[..1] }
    }

    async fn each(&self, shape: &Shape, sql: &str) {
        for session in self.writers(shape) {
            run(session, sql).await;
        }
    }

    async fn segments(&self, copy: &str, shape: &Shape) -> Vec<String> {
        rows(&self.sessions[0], &format!("SHOW MANIFEST FOR {copy}.{}", shape.name), ()).await
    }

    async fn make_cold(&self, shape: &Shape) {
        let name = shape.name;
        self.each(shape, &format!("INSERT INTO cold.{name} SELECT * FROM hot.{name}")).await;
        flush(&self.database, &format!("cold.{name}")).await;
        assert_eq!(self.segments("cold", shape).await.len(), 1);
        assert_eq!(self.segments("hot", shape).await, Vec::<String>::new());
    }

    /// Deletes and rewrites a third of the flushed rows, updates a third, and deletes some for good.
    async fn make_mixed(&self, shape: &Shape, table: &Table) {
        let name = shape.name;
        let (column, toggled) = table.toggle;
        let stale = format!("CASE WHEN abs(i) % 3 = 1 THEN {toggled} ELSE {column} END");
        self.each(shape, &copy("mixed", shape, column, &stale, "true")).await;
        let (column, other, some, gone) = table.extra;
        self.each(shape, &copy("mixed", shape, column, other, some)).await;
        flush(&self.database, &format!("mixed.{name}")).await;
        let (column, toggled) = table.toggle;
        for sql in [
            format!("UPDATE mixed.{name} SET {column} = {toggled} WHERE abs(i) % 3 = 1"),
            format!("DELETE FROM mixed.{name} WHERE {gone}"),
            format!("DELETE FROM mixed.{name} WHERE i % 3 = 0"),
            format!("INSERT INTO mixed.{name} SELECT * FROM hot.{name} WHERE i % 3 = 0"),
        ] {
            self.each(shape, &sql).await;
        }
    }

    /// Flushes three times, with updates and deletes in between, then compacts into one segment.
    async fn make_compacted(&self, shape: &Shape, table: &Table) {
        let name = shape.name;
        let (column, toggled) = table.toggle;
        let (extra, other, some, gone) = table.extra;
        let full_name = format!("compacted.{name}");
        self.each(shape, &copy("compacted", shape, column, toggled, "i % 3 = 0")).await;
        self.each(shape, &copy("compacted", shape, extra, other, some)).await;
        flush(&self.database, &full_name).await;
        self.each(shape, &copy("compacted", shape, column, column, "i % 3 <> 0")).await;
        self.each(
            shape,
            &format!(
                "UPDATE compacted.{name} SET {column} = {toggled} WHERE i % 3 = 0 AND ({gone}) IS NOT TRUE"
            ),
        )
        .await;
        flush(&self.database, &full_name).await;
        self.each(shape, &format!("DELETE FROM compacted.{name} WHERE {gone}")).await;
        self.each(shape, &copy("compacted", shape, column, column, "i IS NULL")).await;
        flush(&self.database, &full_name).await;
        complete(&self.database, "COMPACT", &full_name).await;
        assert_eq!(self.segments("compacted", shape).await.len(), 1);
    }
}

/// Returns an INSERT of some rows of the hot copy, with another value in one column.
fn copy(into: &str, shape: &Shape, column: &str, value: &str, which: &str) -> String {
    let columns = shape.columns.iter().map(|(name, _)| if *name == column { value } else { name });
    let columns = columns.collect::<Vec<_>>().join(", ");
    format!("INSERT INTO {into}.{0} SELECT {columns} FROM hot.{0} WHERE {which}", shape.name)
}

/// Fills the hot copy, often with values that conditions ask for.
async fn fill(session: &Session, shape: &Shape, random: &mut StdRng) {
    const ROWS: usize = 300;
    if shape.name == "many" {
        run(session, MANY).await;
        return;
    }
    let mut keys = std::collections::BTreeSet::new();
    let mut values = Vec::new();
    while values.len() < ROWS {
        let mut row: Vec<String> = shape
            .columns
            .iter()
            .enumerate()
            .map(|(place, (_, ty))| value(random, *ty, place < shape.key))
            .collect();
        if shape.name == "floats" {
            // There are few floats, times and bytes: their combinations are the keys.
            row[1] = format!("TIMESTAMP '2026-01-02 03:04:{:02}'", random.random_range(0..60));
        }
        // 0.0 and -0.0 are one key.
        let key = row.iter().take(shape.key).map(|value| value.replace("CAST('-0.0' AS DOUBLE)", "0.0"));
        if shape.key == 0 || keys.insert(key.collect::<Vec<_>>()) {
            values.push(format!("({})", row.join(", ")));
        }
    }
    run(session, &format!("INSERT INTO hot.{} VALUES {}", shape.name, values.join(", "))).await;
}

fn value(random: &mut StdRng, ty: Type, is_key: bool) -> String {
    use rand::seq::IndexedRandom;
    match ty {
        _ if !is_key && random.random_ratio(1, 5) => "NULL".to_owned(),
        Integer if is_key => random.random_range(-20..900).to_string(),
        ty => ty.values().choose(random).unwrap().to_string(),
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_give_the_same_rows_wherever_the_rows_are() {
    let seed = setting("KALAMDB_SEED").unwrap_or_else(|| rand::random::<u32>().into());
    let queries = setting("KALAMDB_QUERIES").unwrap_or(2_000);
    println!("KALAMDB_SEED={seed} KALAMDB_QUERIES={queries}");
    let mut random = StdRng::seed_from_u64(seed);
    let world = World::new(&mut random).await;
    let mut questions = Questions { random, shapes: &SHAPES };
    let (mut problems, mut not_empty) = (Vec::new(), 0_u64);
    for number in 0..queries {
        let question = questions.next();
        let session = &world.sessions[1 + (number % 2) as usize];
        let mut tasks = Vec::new();
        for (copy, partner) in COPIES.into_iter().zip(PARTNERS) {
            let sql = question.sql.replace("{a}", copy).replace("{b}", partner);
            let session = Arc::clone(session);
            tasks.push(tokio::spawn(async move { answer(&session, &sql).await }));
        }
        let mut answers = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                Ok(mut answer) => {
                    if !question.is_ordered {
                        answer.sort_unstable();
                    }
                    answers.push(answer);
                }
                Err(error) => problems.push(format!("query {number}: {}\n  {error}", question.sql)),
            }
        }
        if answers.len() < COPIES.len() {
            continue;
        }
        not_empty += u64::from(!answers[0].is_empty());
        for (copy, answer) in COPIES.iter().zip(&answers).skip(1) {
            if *answer != answers[0] {
                let difference = difference(&answers[0], answer);
                problems.push(format!("query {number} on {copy}: {}\n{difference}", question.sql));
            }
        }
    }
    let shown = problems.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
    assert!(problems.is_empty(), "KALAMDB_SEED={seed}: {} problems\n{shown}", problems.len());
    assert!(not_empty * 2 > queries, "only {not_empty} of {queries} queries gave rows");
}

/// Returns the rows of a query as lines, or why it failed.
async fn answer(session: &Session, sql: &str) -> Result<Vec<String>, String> {
    let rows = async { session.execute(sql, ()).await?.rows()?.collect().await };
    rows.await.map(|batches| text(&batches)).map_err(|error| error.to_string())
}

/// Shows the first rows that only one of two answers has.
fn difference(hot: &[String], other: &[String]) -> String {
    let only = |left: &[String], right: &[String]| -> Vec<String> {
        left.iter().filter(|row| !right.contains(row)).take(3).cloned().collect()
    };
    format!(
        "  {} rows hot, {} here; only hot {:?}; only here {:?}",
        hot.len(),
        other.len(),
        only(hot, other),
        only(other, hot)
    )
}
