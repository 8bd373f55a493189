//! The database under test. Tables have three copies: hot, flushed, half of each after updates and deletes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{ArrayRef, AsArray, RecordBatch, UInt64Array};
use datafusion::arrow::datatypes::{Schema, SchemaRef, UInt8Type};
use futures::StreamExt;
use kalamdb_core::ids::JobId;
use kalamdb_core::live_query::OP_DELETE;
use kalamdb_core::{
    Config, Database, FrameBody, Outcome, Params, ScalarValue, Session, SnapshotMode, SubscribeRequest,
};

use crate::cells::{Failure, Lines, Notation, difference, lines, notations};
use crate::questions::{Kind, Question};
use crate::test_tables::{Engine, Table, TestTables};

pub(crate) const COPIES: [&str; 3] = ["hot", "flushed", "half"];

/// Larger tables are not changed under a live query.
const ROWS_CHANGED_MAX: usize = 12;

/// Rows with the notation of their columns.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) lines: Lines,
    pub(crate) notations: Vec<Notation>,
    /// How many rows a write changed.
    pub(crate) changed: Option<u64>,
}

pub(crate) struct TestDatabase {
    database: Database,
    root: Session,
    copies: Vec<&'static str>,
    /// One session per copy, with the copy's namespace as default.
    sessions: Vec<Arc<Session>>,
}

/// Small batches and several partitions, so that little data takes the code paths of much data.
pub(crate) fn config() -> Config {
    let mut config = Config { batch_rows: 16, query_partitions: 3, ..Config::in_memory() };
    // To debug a failure: `GUARDS_PLANNER='setting=value,-rule'`.
    for setting in
        std::env::var("GUARDS_PLANNER").unwrap_or_default().split(',').filter(|text| !text.is_empty())
    {
        match setting.split_once('=') {
            Some((name, value)) => config.planner.options.push((name.to_owned(), value.to_owned())),
            None => config.planner.rules_off.push(setting.trim_start_matches('-').to_owned()),
        }
    }
    config
}

impl TestDatabase {
    /// Opens a database with the given copies.
    pub(crate) async fn open(config: Config, copies: &[&'static str]) -> Self {
        let database = Database::open(config).await.unwrap();
        let root = database.session_for("root").unwrap();
        let mut sessions = Vec::new();
        for copy in copies {
            run(&root, &format!("CREATE NAMESPACE {copy}")).await;
            let session = database.session_for("root").unwrap();
            session.set_namespace(copy).unwrap();
            sessions.push(Arc::new(session));
        }
        Self { database, root, copies: copies.to_vec(), sessions }
    }

    pub(crate) fn session(&self, copy: usize) -> &Arc<Session> {
        &self.sessions[copy]
    }

    /// Replaces the tables with those of `test_tables`.
    pub(crate) async fn load(&self, test_tables: &TestTables) {
        for copy in 0..self.copies.len() {
            for table in &test_tables.tables {
                let name = format!("{}.{}", self.copies[copy], table.name);
                run(&self.root, &format!("DROP TABLE IF EXISTS {name}")).await;
                run(&self.root, &table.create(self.copies[copy], Engine::Kalam)).await;
                self.fill(table, copy).await;
            }
        }
    }

    /// Inserts a table's rows into its empty copy.
    pub(crate) async fn fill(&self, table: &Table, copy: usize) {
        let name = format!("{}.{}", self.copies[copy], table.name);
        if self.copies[copy] != "half" {
            if let Some(insert) = table.insert(self.copies[copy], &table.rows) {
                run(&self.root, &insert).await;
            }
            if self.copies[copy] == "flushed" {
                self.flush(&name).await;
            }
            return;
        }
        // Two segments and some hot rows; some of the flushed rows are deleted and inserted again.
        let third = table.rows.len().div_ceil(3).max(1);
        let mut parts = table.rows.chunks(third);
        for is_flushed in [true, true, false] {
            let Some(part) = parts.next() else { break };
            if let Some(insert) = table.insert(self.copies[copy], part) {
                run(&self.root, &insert).await;
            }
            if is_flushed {
                self.flush(&name).await;
            }
        }
        let again = &table.rows[..(third / 2).min(table.rows.len())];
        if let Some(insert) = table.insert(self.copies[copy], again) {
            let place = table.columns.iter().position(|column| column.name == "id").unwrap();
            let ids: Vec<_> = again.iter().map(|row| row[place].as_str()).collect();
            run(&self.root, &format!("DELETE FROM {name} WHERE id IN ({})", ids.join(", "))).await;
            run(&self.root, &insert).await;
        }
    }

    async fn flush(&self, table: &str) {
        let outcome = self.root.execute(&format!("STORAGE FLUSH TABLE {table}"), ()).await.unwrap();
        let batches = outcome.rows().unwrap().collect().await.unwrap();
        let job = JobId(lines(&batches)[0].split('|').next().unwrap().to_owned());
        self.database.context().jobs.wait(&job).await;
    }

    /// Asks one copy the question.
    pub(crate) async fn ask(
        &self,
        question: &Question,
        test_tables: &TestTables,
        copy: usize,
    ) -> Result<Found, Failure> {
        let params: Vec<_> = question.parameters.iter().map(|parameter| parameter.value.clone()).collect();
        match &question.kind {
            Kind::Select => select(self.session(copy), &question.ours(), Params::Positional(params)).await,
            Kind::Live(name) => {
                let table = test_tables.tables.iter().find(|table| table.name == *name).unwrap();
                self.live(table, &question.ours(), params, copy).await
            }
            Kind::Write(name) => {
                let table = test_tables.tables.iter().find(|table| table.name == *name).unwrap();
                self.write(table, &question.ours(), params, copy).await
            }
        }
    }

    /// Returns the snapshot of a live query. Checks that the changes behind its rows fold to the same rows.
    async fn live(
        &self,
        table: &Table,
        sql: &str,
        params: Vec<ScalarValue>,
        copy: usize,
    ) -> Result<Found, Failure> {
        // A short interval reports the frontier often while no rows arrive.
        let heartbeat = Duration::from_millis(5);
        let request = |snapshot| SubscribeRequest {
            params: params.clone(),
            snapshot,
            heartbeat,
            ..SubscribeRequest::new(sql)
        };
        let mut batches = Vec::new();
        let mut subscription =
            self.session(copy).subscribe(request(SnapshotMode::Only)).await.map_err(failure)?;
        while let Some(frame) = subscription.next().await {
            if let FrameBody::Snapshot(rows) = &frame.map_err(failure)?.body {
                batches.push(without_system_columns(&rows.batch().unwrap()));
            }
        }
        let notations = batches.first().map_or_else(Vec::new, |batch| notations(&batch.schema()));
        let found = Found { lines: lines(&batches), notations, changed: None };

        run(self.session(copy), &format!("DELETE FROM {}", table.name)).await;
        let mut subscription =
            self.session(copy).subscribe(request(SnapshotMode::Skip)).await.map_err(failure)?;
        self.fill(table, copy).await;
        self.change_and_change_back(table, copy).await;
        let last = self.database.seq();
        let id = table.columns.iter().position(|column| column.name == "id").unwrap();
        let mut folded = BTreeMap::new();
        while let Some(frame) = subscription.next().await {
            let frame = frame.map_err(failure)?;
            if let FrameBody::Delta(rows) = &frame.body {
                let batch = rows.batch().unwrap();
                let ops = batch.column(0).as_primitive::<UInt8Type>();
                for (op, line) in ops.values().iter().zip(lines(&[without_system_columns(&batch)])) {
                    let key = line.split('|').nth(id).unwrap().to_owned();
                    match *op {
                        OP_DELETE => folded.remove(&key),
                        _ => folded.insert(key, line),
                    };
                }
            }
            if frame.complete_through >= last && !frame.more {
                break;
            }
        }
        let mut changes: Lines = folded.into_values().collect();
        let mut snapshot = found.lines.clone();
        changes.sort_unstable();
        snapshot.sort_unstable();
        if changes != snapshot {
            let text = format!("the changes are not the snapshot: {}", difference(&snapshot, &changes));
            return Err(Failure { sqlstate: "XX000".to_owned(), text });
        }
        Ok(found)
    }

    /// Makes rows leave the live queries of a table and come back.
    async fn change_and_change_back(&self, table: &Table, copy: usize) {
        let places = 0..table.columns.len();
        let free: Vec<usize> =
            places.skip(table.key).filter(|place| table.columns[*place].is_nullable).collect();
        if free.is_empty() || table.rows.len() > ROWS_CHANGED_MAX {
            return;
        }
        let id = table.columns.iter().position(|column| column.name == "id").unwrap();
        let update = |value: &dyn Fn(usize) -> String, condition: &str| {
            let set = |place: &usize| format!("{} = {}", table.columns[*place].name, value(*place));
            let sets: Vec<_> = free.iter().map(set).collect();
            format!("UPDATE {} SET {} WHERE {condition}", table.name, sets.join(", "))
        };
        let mut statements = vec![update(&|_| "NULL".to_owned(), "id % 2 = 0")];
        for row in table.rows.iter().filter(|row| row[id].parse::<u64>().unwrap() % 2 == 0) {
            statements.push(update(&|place| row[place].clone(), &format!("id = {}", row[id])));
        }
        for sql in statements {
            run(self.session(copy), &sql).await;
        }
    }

    /// Returns the rows of a table after a write, then restores the table.
    async fn write(
        &self,
        table: &Table,
        sql: &str,
        params: Vec<ScalarValue>,
        copy: usize,
    ) -> Result<Found, Failure> {
        let session = self.session(copy);
        let changed = match session.execute(sql, Params::Positional(params)).await {
            Ok(Outcome::Affected(affected)) => affected.rows,
            Ok(_) => 0,
            Err(error) => return Err(failure(error)),
        };
        let found = select(session, &format!("SELECT * FROM {}", table.name), ().into()).await?;
        if changed > 0 {
            run(session, &format!("DELETE FROM {}", table.name)).await;
            self.fill(table, copy).await;
        }
        Ok(Found { changed: Some(changed), ..found })
    }
}

pub(crate) async fn select(session: &Session, sql: &str, params: Params) -> Result<Found, Failure> {
    let (schema, batches) = rows(session, sql, params).await?;
    Ok(Found { lines: lines(&batches), notations: notations(&schema), changed: None })
}

/// Runs any statement. A statement without rows returns one row: the number of rows it changed.
pub(crate) async fn rows(
    session: &Session,
    sql: &str,
    params: Params,
) -> Result<(SchemaRef, Vec<RecordBatch>), Failure> {
    match session.execute(sql, params).await.map_err(failure)? {
        Outcome::Rows(rows) => {
            let schema = Arc::clone(&rows.schema);
            Ok((schema, rows.collect().await.map_err(failure)?))
        }
        Outcome::Affected(affected) => {
            let count: ArrayRef = Arc::new(UInt64Array::from(vec![affected.rows]));
            let batch = RecordBatch::try_from_iter([("count", count)]).unwrap();
            Ok((batch.schema(), vec![batch]))
        }
        Outcome::Subscription(_) => Ok((Arc::new(Schema::empty()), Vec::new())),
    }
}

/// Converts an error together with its sources, which clients do not see.
pub(crate) fn failure(error: kalamdb_core::Error) -> Failure {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    Failure { sqlstate: error.sqlstate().to_string(), text }
}

/// Removes the operation and the commit, which precede a live query's own columns.
fn without_system_columns(batch: &RecordBatch) -> RecordBatch {
    let positions: Vec<usize> = (2..batch.num_columns()).collect();
    batch.project(&positions).unwrap()
}

pub(crate) async fn run(session: &Session, sql: &str) {
    if let Err(error) = session.execute(sql, ()).await {
        panic!("{sql}: {error}");
    }
}
