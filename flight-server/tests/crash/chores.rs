//! Work beside the writers: a table that is created, flushed and dropped; compactions; rows that expire.
//!
//! The chores have their own model: for the table, the two states that a crash may leave; for expiring rows,
//! the times between which they are visible.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow_flight::error::FlightError;

use crate::server::Client;
use crate::tables::{self, State};
use crate::world::Crash;

const FADING: &str = "crash.fading_rows";
const FADING_LIFE: Duration = Duration::from_secs(1);
/// Maximum difference between the clock of a statement and the clock of this test.
const CLOCK_SLACK: Duration = Duration::from_millis(20);
/// Rows of the passing table, alternating: few enough to be hot and then flushed, and enough to become a
/// segment at once.
const PASSING_ROWS: [i64; 2] = [15, 30];

/// The work beside the writers, and what is known about it.
#[derive(Default)]
pub(crate) struct Chores {
    /// The number of the current or the last table.
    table: u64,
    /// The table's rows; `None` when it is dropped.
    known: Option<State>,
    /// The state that a statement without an answer would produce.
    attempted: Option<Option<State>>,
    fading: Vec<Fading>,
    next_id: i64,
}

/// A row that expires.
struct Fading {
    id: i64,
    sent: Instant,
    acknowledged: Option<Instant>,
}

/// Returns the statement that creates the table with expiring rows.
pub(crate) fn create() -> String {
    format!("CREATE STREAM TABLE {FADING} (id BIGINT PRIMARY KEY) WITH (TTL_SECONDS = 1)")
}

impl Chores {
    /// Works until a call fails; a call may fail only once `may_fail` is true.
    pub(crate) async fn run(mut self, mut client: Client, may_fail: Arc<AtomicBool>) -> Self {
        loop {
            if let Err(error) = self.round(&mut client).await {
                assert!(may_fail.load(Ordering::SeqCst), "a living server refused a chore: {error}");
                return self;
            }
        }
    }

    async fn round(&mut self, client: &mut Client) -> Result<(), FlightError> {
        self.fade(client).await?;
        if self.known.is_none() {
            self.table += 1;
            let sql = format!(
                "CREATE SHARED TABLE {} (writer BIGINT NOT NULL, id BIGINT PRIMARY KEY, value BIGINT NOT NULL)",
                self.passing()
            );
            self.change(client, &sql, Some(State::new())).await?;
        }
        let mut state = self.known.clone().unwrap_or_default();
        let mut sql = format!("INSERT INTO {} (writer, id, value) VALUES ", self.passing());
        for row in 0..PASSING_ROWS[usize::from(self.table % 2 == 1)] {
            self.next_id += 1;
            let comma = if row == 0 { "" } else { ", " };
            write!(sql, "{comma}(0, {0}, {0})", self.next_id).expect("write to a string");
            state.insert(self.next_id, self.next_id);
        }
        self.change(client, &sql, Some(state)).await?;
        move_rows(client, &format!("FLUSH TABLE {}", self.passing())).await?;
        for table in tables::COLD {
            move_rows(client, &format!("STORAGE COMPACT TABLE {}", table.name())).await?;
        }
        self.change(client, &format!("DROP TABLE {}", self.passing()), None).await
    }

    async fn change(
        &mut self,
        client: &mut Client,
        sql: &str,
        after: Option<State>,
    ) -> Result<(), FlightError> {
        self.attempted = Some(after);
        client.run(sql).await?;
        self.known = self.attempted.take().flatten();
        Ok(())
    }

    async fn fade(&mut self, client: &mut Client) -> Result<(), FlightError> {
        self.next_id += 1;
        self.fading.push(Fading { id: self.next_id, sent: Instant::now(), acknowledged: None });
        client.run(&format!("INSERT INTO {FADING} (id) VALUES ({})", self.next_id)).await?;
        if let Some(row) = self.fading.last_mut() {
            row.acknowledged = Some(Instant::now());
        }
        Ok(())
    }

    fn passing(&self) -> String {
        format!("crash.passing_{}", self.table)
    }

    /// Compares the state after a crash with what is known, or returns how they differ.
    pub(crate) async fn check(&mut self, client: &mut Client, crash: Crash) -> Result<(), String> {
        let found = self.read_passing(client).await?;
        match self.attempted.take() {
            Some(after) if found == after => self.known = after,
            _ if found == self.known => {}
            attempted => {
                let known = &self.known;
                return Err(format!(
                    "{}: acknowledged {known:?}, attempted {attempted:?}, found {found:?}",
                    self.passing()
                ));
            }
        }
        self.check_fading(client, crash).await
    }

    /// Reads the passing table and checks that no dropped one came back.
    async fn read_passing(&self, client: &mut Client) -> Result<Option<State>, String> {
        let sql = "SELECT table_name FROM information_schema.tables \
                   WHERE table_schema = 'crash' AND table_name LIKE 'passing%'";
        let names = texts(client, sql, 0).await;
        let Some(name) = names.first() else { return Ok(None) };
        let name = format!("crash.{name}");
        if names.len() > 1 || name != self.passing() {
            return Err(format!("dropped tables came back: {names:?}"));
        }
        Ok(Some(tables::read(client, &name).await.remove(&0).unwrap_or_default()))
    }

    async fn check_fading(&mut self, client: &mut Client, crash: Crash) -> Result<(), String> {
        let before = Instant::now();
        let sql = format!("SELECT id FROM {FADING}");
        let batches = client.query(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let after = Instant::now();
        let mut found: BTreeSet<i64> = batches
            .iter()
            .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
            .collect();
        for Fading { id, sent, acknowledged } in &self.fading {
            let is_there = found.remove(id);
            let Some(acknowledged) = acknowledged else { continue };
            if is_there && *acknowledged + FADING_LIFE + CLOCK_SLACK < before {
                return Err(format!("{FADING}: row {id} is visible after it has expired"));
            }
            // Relaxed rows survive the end of the process, but not a power loss.
            if !is_there && crash == Crash::Kill && *sent + FADING_LIFE > after + CLOCK_SLACK {
                return Err(format!("{FADING}: row {id} is lost before it has expired"));
            }
        }
        self.fading.retain(|row| row.sent + 2 * FADING_LIFE > before);
        if found.is_empty() { Ok(()) } else { Err(format!("{FADING}: rows of nobody: {found:?}")) }
    }
}

/// Runs a statement that moves rows, and waits until its jobs have ended.
pub(crate) async fn move_rows(client: &mut Client, sql: &str) -> Result<(), FlightError> {
    let batches = client.query(sql).await?;
    let jobs: Vec<String> = batches
        .iter()
        .flat_map(|batch| batch.column(0).as_string::<i32>().iter().flatten().map(str::to_owned))
        .collect();
    let waiting = format!(
        "SELECT job_id FROM system.jobs WHERE job_id IN ('{}') AND completed_at IS NULL",
        jobs.join("', '")
    );
    while client.query(&waiting).await?.iter().any(|batch| batch.num_rows() > 0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Returns a text column of a query.
pub(crate) async fn texts(client: &mut Client, sql: &str, column: usize) -> Vec<String> {
    let batches = client.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let values = |batch: &arrow::array::RecordBatch| {
        let values: Vec<String> =
            batch.column(column).as_string::<i32>().iter().flatten().map(str::to_owned).collect();
        values
    };
    batches.iter().flat_map(values).collect()
}
