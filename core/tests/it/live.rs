//! Live queries against their promise: folding a stream's frames gives the query's result at every
//! `complete_through`.
//!
//! The property test writes at random from several sessions, subscribes, disconnects, resumes and restarts
//! the database. Its rings are so small that subscribers fall back to the change log and to RESETs. At each
//! frontier a subscriber reaches, its rows are compared with a SELECT on that commit's snapshot, if one was
//! kept. `KALAMDB_SEED` and `KALAMDB_CASES` choose the cases; a failure names its seed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use datafusion::arrow::array::{Array, RecordBatch, UInt8Array};
use datafusion::common::ScalarValue;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt;
use kalamdb_core::commit::Snapshot;
use kalamdb_core::ids::{ScopeId, Seq};
use kalamdb_core::live_query::{
    CloseReason, Frame, FrameBody, OP_DELETE, OP_INSERT, OP_UPDATE, ResetReason, SnapshotMode,
    SubscribeRequest, SubscribeStart, Subscription,
};
use kalamdb_core::sql::Session;
use kalamdb_core::tables::{KalamTable, RowSchema};
use kalamdb_core::{Config, Database, ErrorKind};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// A row, as text without its system columns.
type Row = Vec<String>;

/// What a client holds: a map by key, or a multiset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Folded {
    /// The positions of the key columns in the row; `None` for a multiset.
    key: Option<Vec<usize>>,
    rows: BTreeMap<Row, (Row, usize)>,
}

impl Folded {
    fn identity(&self, row: &Row) -> Row {
        match &self.key {
            Some(key) => key.iter().map(|position| row[*position].clone()).collect(),
            None => row.clone(),
        }
    }

    /// Applies one row strictly: an insert must be new, an update must change its row, a delete must find it.
    fn apply(&mut self, op: u8, row: Row) -> Result<(), String> {
        let identity = self.identity(&row);
        let held = self.rows.get_mut(&identity);
        match (op, held, self.key.is_some()) {
            (OP_INSERT, None, _) => {
                self.rows.insert(identity, (row, 1));
            }
            (OP_INSERT, Some((_, count)), false) => *count += 1,
            (OP_UPDATE, Some((held, _)), true) if *held != row => *held = row,
            (OP_DELETE, Some((held, count)), _) if *held == row => {
                *count -= 1;
                if *count == 0 {
                    self.rows.remove(&identity);
                }
            }
            (op, held, _) => return Err(format!("operation {op} of {row:?} does not fit {held:?}")),
        }
        Ok(())
    }

    fn multiset(&self) -> BTreeMap<Row, usize> {
        self.rows.values().cloned().collect()
    }
}

/// A subscriber with the rows it was told and the token to resume from.
#[derive(Debug, Default)]
pub(crate) struct Client {
    complete: Folded,
    pub(crate) complete_through: Seq,
    pub(crate) token: Option<Bytes>,
    /// The rows of an incomplete snapshot or commit.
    partial: Vec<(u8, Row)>,
    in_snapshot: bool,
    /// The rows it held at each frontier.
    pub(crate) checkpoints: Vec<(Seq, BTreeMap<Row, usize>)>,
    resets: Vec<ResetReason>,
    closed: Option<CloseReason>,
}

impl Client {
    pub(crate) fn take(&mut self, frame: &Frame) -> Result<(), String> {
        // A stream that does not resume starts from nothing.
        if matches!(frame.body, FrameBody::Started { resumed: false, .. }) {
            (self.complete_through, self.token) = (Seq(0), None);
        }
        if frame.complete_through < self.complete_through {
            return Err(format!("went back from {} to {}", self.complete_through, frame.complete_through));
        }
        if !frame.more && frame.complete_through > self.complete_through && frame.resume_token.is_none() {
            return Err("moved without a token".to_owned());
        }
        match &frame.body {
            FrameBody::Started { schema, key_columns, resumed, .. } => {
                let names: Vec<_> =
                    schema.fields().iter().skip(2).map(|field| field.name().as_str()).collect();
                let position =
                    |key: &String| names.iter().position(|name| name == key).expect("the key is selected");
                let key = (!key_columns.is_empty()).then(|| key_columns.iter().map(position).collect());
                if *resumed && self.complete.key != key {
                    return Err("resumed with another key".to_owned());
                }
                if !*resumed {
                    self.complete = Folded { key, ..Folded::default() };
                    self.in_snapshot = true;
                }
                self.partial.clear();
                if *resumed || frame.complete_through > Seq(0) {
                    self.in_snapshot = false;
                }
            }
            FrameBody::Reset { reason, .. } => {
                self.resets.push(*reason);
                self.complete.rows.clear();
                self.partial.clear();
                self.in_snapshot = true;
            }
            FrameBody::Snapshot(rows) => self.partial.extend(rows_of(&rows.batch)),
            FrameBody::SnapshotEnd => {
                self.in_snapshot = false;
                self.apply_partial()?;
            }
            FrameBody::Delta(rows) => {
                if self.in_snapshot {
                    return Err("delta within a snapshot".to_owned());
                }
                check_seqs(&rows.batch, self.complete_through, frame)?;
                self.partial.extend(rows_of(&rows.batch));
                if !frame.more {
                    self.apply_partial()?;
                }
            }
            FrameBody::Progress | FrameBody::Notice(_) => {}
            FrameBody::Closed { reason, .. } => self.closed = Some(*reason),
        }
        if !frame.more && !self.in_snapshot && frame.complete_through > Seq(0) {
            self.complete_through = frame.complete_through;
            self.token.clone_from(&frame.resume_token);
            self.checkpoints.push((frame.complete_through, self.complete.multiset()));
        }
        Ok(())
    }

    fn apply_partial(&mut self) -> Result<(), String> {
        self.partial.drain(..).try_for_each(|(op, row)| self.complete.apply(op, row))
    }
}

/// Checks that delta rows belong to commits after the last frontier, and to none after the frame's.
fn check_seqs(batch: &RecordBatch, after: Seq, frame: &Frame) -> Result<(), String> {
    let limit = if frame.more { Seq(frame.complete_through.0 + 1) } else { frame.complete_through };
    for row in 0..batch.num_rows() {
        let ScalarValue::Int64(Some(seq)) =
            ScalarValue::try_from_array(batch.column(1), row).expect("a value")
        else {
            return Err("_seq is not a BIGINT".to_owned());
        };
        let seq = Seq(u64::try_from(seq).expect("a seq"));
        if seq <= after || seq > limit {
            return Err(format!("a row of commit {seq} in a frame from {after} to {limit}"));
        }
    }
    Ok(())
}

fn rows_of(batch: &RecordBatch) -> Vec<(u8, Row)> {
    let ops = batch.column(0).as_any().downcast_ref::<UInt8Array>().expect("_op is UInt8");
    let shown = batch.project(&(2..batch.num_columns()).collect::<Vec<_>>()).expect("columns");
    (0..batch.num_rows()).map(|row| (ops.value(row), text_row(&shown, row))).collect()
}

fn text_row(batch: &RecordBatch, row: usize) -> Row {
    let value =
        |column: &Arc<dyn Array>| format!("{:?}", ScalarValue::try_from_array(column, row).expect("a value"));
    batch.columns().iter().map(value).collect()
}

/// Returns the result of the same SELECT on a pinned snapshot, planned by DataFusion itself.
async fn select(
    context: &SessionContext,
    database: &Database,
    snapshot: &Arc<Snapshot>,
    table: &str,
    scope: ScopeId,
    query: &Query,
) -> BTreeMap<Row, usize> {
    let definition = snapshot.catalog.table("app", table).expect("the table exists");
    let schemas = database.context().schema_registry.schemas(definition);
    let provider = KalamTable::stored(Arc::clone(snapshot), schemas, RowSchema::Full, scope, i64::MIN);
    snapshot.cold.store().register(&context.runtime_env());
    context.deregister_table("t").expect("deregistered");
    context.register_table("t", Arc::new(provider)).expect("registered");
    let batches = context.sql(&query.sql("t")).await.expect("planned").collect().await.expect("selected");
    let mut rows = BTreeMap::new();
    for batch in &batches {
        for row in 0..batch.num_rows() {
            *rows.entry(text_row(batch, row)).or_default() += 1;
        }
    }
    rows
}

#[derive(Clone, Debug)]
struct Query {
    projection: &'static str,
    condition: &'static str,
}

impl Query {
    fn sql(&self, table: &str) -> String {
        match self.condition {
            "" => format!("SELECT {} FROM {table}", self.projection),
            condition => format!("SELECT {} FROM {table} WHERE {condition}", self.projection),
        }
    }

    fn random(random: &mut StdRng) -> Self {
        const PROJECTIONS: [&str; 7] = [
            "id, a, b, c",
            "a, id",
            "b",
            "id, a + 1 AS more, upper(b) AS loud",
            "a % 3 AS class, b",
            "id, CASE WHEN c > 0.5 THEN 'high' ELSE 'low' END AS level",
            "id AS number, coalesce(b, 'none') AS name",
        ];
        const CONDITIONS: [&str; 10] = [
            "",
            "",
            "a > 5",
            "a BETWEEN 3 AND 8 AND c < 0.7",
            "b = 'red'",
            "b IS NULL OR a = 2",
            "id < 10",
            "id IN (1, 2, 3, 5, 8, 13)",
            "b LIKE 'r%' OR length(b) > 4",
            "a % 2 = 0 AND NOT (c > 0.9)",
        ];
        Self {
            projection: PROJECTIONS.choose(random).expect("some"),
            condition: CONDITIONS.choose(random).expect("some"),
        }
    }
}

/// One table of a case, and how it is written.
#[derive(Clone, Debug)]
struct Table {
    name: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    User,
    Shared,
    Keyless,
    Stream,
}

impl Table {
    fn create(&self) -> String {
        let name = &self.name;
        let columns = "a INT, b TEXT, c DOUBLE PRECISION";
        match self.kind {
            Kind::User => format!("CREATE USER TABLE app.{name} (id BIGINT PRIMARY KEY, {columns})"),
            Kind::Shared => {
                format!(
                    "CREATE SHARED TABLE app.{name} (id BIGINT PRIMARY KEY, {columns}) WITH (ACCESS_LEVEL='public')"
                )
            }
            Kind::Keyless => {
                format!("CREATE SHARED TABLE app.{name} (id BIGINT, {columns}) WITH (ACCESS_LEVEL='public')")
            }
            Kind::Stream => {
                format!("CREATE STREAM TABLE app.{name} (id BIGINT, {columns}) WITH (TTL_SECONDS=1)")
            }
        }
    }

    fn statement(&self, random: &mut StdRng) -> String {
        let table = format!("app.{}", self.name);
        let choice = random.random_range(0..10);
        if choice < 5 || (self.kind == Kind::Stream && choice < 8) {
            let rows: Vec<_> = (0..random.random_range(1..8)).map(|_| random_values(random)).collect();
            return format!("INSERT INTO {table} VALUES {}", rows.join(", "));
        }
        let condition = match random.random_range(0..4) {
            0 => format!("id = {}", random.random_range(0..30)),
            1 => format!("a > {}", random.random_range(0..10)),
            2 => format!("id BETWEEN {0} AND {0} + 5", random.random_range(0..30)),
            _ => "b = 'red' OR c < 0.2".to_owned(),
        };
        if choice < 8 {
            let change = match random.random_range(0..5) {
                0 => "a = a + 1".to_owned(),
                1 => format!("b = {}", random_text(random)),
                2 => format!("a = {}, c = c / 2", random.random_range(0..10)),
                3 => "b = b".to_owned(),
                _ => "id = id + 1".to_owned(),
            };
            return format!("UPDATE {table} SET {change} WHERE {condition}");
        }
        format!("DELETE FROM {table} WHERE {condition}")
    }
}

fn random_text(random: &mut StdRng) -> &'static str {
    ["'red'", "'green'", "'rust'", "'violet'", "''", "NULL"].choose(random).copied().expect("some")
}

fn random_values(random: &mut StdRng) -> String {
    format!(
        "({}, {}, {}, {})",
        random.random_range(0..30),
        random.random_range(0..10),
        random_text(random),
        f64::from(random.random_range(0..20)) / 20.0
    )
}

/// One user's subscription to one table, across reconnects.
struct Subscriber {
    session: Session,
    table: Table,
    query: Query,
    client: Client,
    random: StdRng,
}

impl Subscriber {
    fn request(&mut self) -> SubscribeRequest {
        let mut request = SubscribeRequest::new(self.query.sql(&format!("app.{}", self.table.name)));
        request.max_rows = *[0, 1, 3].choose(&mut self.random).expect("some");
        request.max_bytes = *[0, 0, 600].choose(&mut self.random).expect("some");
        request.heartbeat = Duration::from_millis(*[0, 1, 20].choose(&mut self.random).expect("some"));
        if let Some(token) = &self.client.token {
            request.start = SubscribeStart::Token(token.clone());
        }
        request
    }

    /// Follows until everything up to `goal` has arrived, with pauses and reconnects.
    async fn follow(&mut self, mut goal: tokio::sync::watch::Receiver<Option<Seq>>) -> Result<(), String> {
        loop {
            let request = self.request();
            let mut stream = self.session.subscribe(request).await.map_err(|error| error.to_string())?;
            let frames_until_disconnect = self.random.random_range(1..40);
            for _ in 0..frames_until_disconnect {
                // Mark the goal as seen before the check. It becomes known after the last commit, perhaps
                // after that commit's frame, and without a heartbeat no other frame follows.
                let goal_seq = *goal.borrow_and_update();
                if goal_seq.is_some_and(|goal| self.client.complete_through >= goal) {
                    return Ok(());
                }
                let frame = tokio::select! {
                    frame = tokio::time::timeout(Duration::from_secs(20), stream.next()) => frame
                        .map_err(|_| format!("no frame after {}, goal {goal_seq:?}", self.client.complete_through))?
                        .ok_or("the stream ended")?
                        .map_err(|error| error.to_string())?,
                    changed = goal.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return Err("there is no goal any more".to_owned()),
                    },
                };
                self.client.take(&frame)?;
                if self.random.random_ratio(1, 8) {
                    tokio::time::sleep(Duration::from_millis(self.random.random_range(0..4))).await;
                }
            }
        }
    }

    /// Compares the rows held at each frontier whose snapshot was kept. Returns how many were compared.
    async fn check(
        &mut self,
        database: &Database,
        pinned: &BTreeMap<Seq, Arc<Snapshot>>,
    ) -> Result<usize, String> {
        /// Spread evenly over all frontiers, including the last; each costs a SELECT.
        const COMPARED_MAX: usize = 40;
        let mut compared = 0;
        // All SELECTs share one context: creating one costs more than a SELECT.
        let mut config = SessionConfig::new().with_target_partitions(1);
        config.options_mut().execution.parquet.schema_force_view_types = false;
        let context = SessionContext::new_with_config(config);
        let checkpoints = std::mem::take(&mut self.client.checkpoints);
        let step = checkpoints.len().div_ceil(COMPARED_MAX).max(1);
        for (seq, held) in checkpoints.into_iter().rev().step_by(step) {
            let Some(snapshot) = pinned.get(&seq) else { continue };
            let Some(definition) = snapshot.catalog.table("app", &self.table.name) else { continue };
            let scope = definition.scope_for(self.session.principal().user_id);
            let selected = select(&context, database, snapshot, &self.table.name, scope, &self.query).await;
            if held != selected {
                let query = self.query.sql(&self.table.name);
                return Err(format!("{query} at {seq}: held {held:#?}, selected {selected:#?}"));
            }
            compared += 1;
        }
        Ok(compared)
    }
}

/// Runs statements. Duplicate keys and lost conflicts are expected.
async fn write(session: Session, tables: Vec<Table>, seed: u64, statements: usize) -> Result<(), String> {
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..statements {
        let table = tables.choose(&mut random).expect("some");
        // Live queries do not see moves of rows.
        let sql = match random.random_range(0..24) {
            0 | 1 => format!("FLUSH TABLE app.{}", table.name),
            2 => format!("STORAGE COMPACT TABLE app.{}", table.name),
            _ => table.statement(&mut random),
        };
        if let Err(error) = session.execute(&sql, ()).await {
            let expected = matches!(
                error.kind(),
                ErrorKind::AlreadyExists
                    | ErrorKind::Conflict
                    | ErrorKind::PermissionDenied
                    | ErrorKind::Unsupported
            );
            if !expected {
                return Err(format!("{sql}: {error}"));
            }
        }
        if random.random_ratio(1, 10) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    Ok(())
}

/// Keeps the snapshot of every commit it sees.
async fn pin(
    database: Arc<Database>,
    stop: tokio_util::sync::CancellationToken,
) -> BTreeMap<Seq, Arc<Snapshot>> {
    let mut pinned = BTreeMap::new();
    let mut heads = database.context().committer.commits().watch();
    loop {
        heads.borrow_and_update();
        let snapshot = database.context().committer.snapshot();
        pinned.insert(snapshot.seq, snapshot);
        tokio::select! {
            () = stop.cancelled() => return pinned,
            changed = heads.changed() => if changed.is_err() { return pinned },
        }
    }
}

/// Cases that share a database, and so its users and ring sizes.
const CASES_PER_DATABASE: u64 = 10;
const USERS: [&str; 3] = ["root", "ann", "bob"];

fn random_config(random: &mut StdRng, data_dir: Option<std::path::PathBuf>) -> Config {
    Config {
        data_dir,
        root_password: Some("correct horse".to_owned()),
        commit_ring_bytes: *[0, 2_000, 32 << 20].choose(random).expect("some"),
        large_insert_bytes: *[1, 100, 16 << 20].choose(random).expect("some"),
        live_ring_bytes: *[0, 1_500, 4 << 20].choose(random).expect("some"),
        change_log_bytes_max: *[3_000, 40_000, 4 << 30].choose(random).expect("some"),
        trim_interval_ms: 20,
        expiry_interval_ms: 50,
        ..Config::default()
    }
}

#[derive(Debug, Default)]
struct Totals {
    compared: usize,
    frames: u64,
    log_reads: u64,
    resets: u64,
}

impl Totals {
    /// Adds the counters of a database, before it is shut down.
    fn add(&mut self, database: &Database) {
        let live = database.context().live_queries.counters();
        self.frames += live.frames;
        self.log_reads += live.log_reads;
        self.resets += live.resets;
    }
}

async fn run_case(
    database: &Arc<Database>,
    subscribers: &mut [Subscriber],
    tables: &[Table],
    random: &mut StdRng,
    totals: &mut Totals,
) -> Result<(), String> {
    let stop = tokio_util::sync::CancellationToken::new();
    let pins = tokio::spawn(pin(Arc::clone(database), stop.clone()));
    let (goal, goals) = tokio::sync::watch::channel(None);
    let writers = async {
        let mut tasks = tokio::task::JoinSet::new();
        for user in USERS {
            let session = database.session_for(user).map_err(|error| error.to_string())?;
            tasks.spawn(write(session, tables.to_vec(), random.random(), random.random_range(3..14)));
        }
        while let Some(done) = tasks.join_next().await {
            done.map_err(|error| error.to_string())??;
        }
        goal.send_replace(Some(database.seq()));
        Ok::<(), String>(())
    };
    let followers = futures::future::try_join_all(
        subscribers.iter_mut().map(|subscriber| subscriber.follow(goals.clone())),
    );
    let outcome = futures::future::try_join(writers, followers).await;
    stop.cancel();
    let pinned = pins.await.map_err(|error| error.to_string())?;
    outcome?;
    for subscriber in subscribers {
        totals.compared += subscriber.check(database, &pinned).await?;
    }
    Ok(())
}

async fn run_database(
    seed: u64,
    cases: std::ops::Range<u64>,
    totals: &mut Totals,
) -> Result<(), (u64, String)> {
    let first = cases.start;
    let failed = |case: u64| move |error: kalamdb_core::Error| (case, error.to_string());
    let mut random = StdRng::seed_from_u64(seed ^ first);
    let directory = tempfile::tempdir().expect("a directory");
    let on_disk = random.random_ratio(2, 3);
    let config = random_config(&mut random, on_disk.then(|| directory.path().join("data")));
    let mut database = Arc::new(Database::open(config.clone()).await.map_err(failed(first))?);
    let root = database.session_for("root").map_err(failed(first))?;
    root.execute("CREATE NAMESPACE app", ()).await.map_err(failed(first))?;
    for user in ["ann", "bob"] {
        let sql = format!("CREATE USER {user} WITH PASSWORD 'correct horse' ROLE service");
        root.execute(&sql, ()).await.map_err(failed(first))?;
    }
    drop(root);
    for case in cases {
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(case));
        let tables: Vec<_> = [Kind::User, Kind::Shared, Kind::Keyless, Kind::Stream]
            .into_iter()
            .filter(|kind| *kind != Kind::Stream || random.random_ratio(1, 3))
            .map(|kind| Table { name: format!("{kind:?}_{case}").to_lowercase(), kind })
            .collect();
        let root = database.session_for("root").map_err(failed(case))?;
        for table in &tables {
            root.execute(&table.create(), ()).await.map_err(failed(case))?;
        }
        drop(root);
        let mut subscribers: Vec<Subscriber> = Vec::new();
        for _ in 0..random.random_range(2..5) {
            let user = USERS.choose(&mut random).expect("some");
            subscribers.push(Subscriber {
                session: database.session_for(user).map_err(failed(case))?,
                table: tables.choose(&mut random).expect("some").clone(),
                query: Query::random(&mut random),
                client: Client::default(),
                random: StdRng::seed_from_u64(random.random()),
            });
        }
        let phases = if on_disk && random.random_ratio(1, 2) { 2 } else { 1 };
        for phase in 0..phases {
            if phase > 0 {
                totals.add(&database);
                database = reopen(database, &config, &mut subscribers).await.map_err(failed(case))?;
            }
            run_case(&database, &mut subscribers, &tables, &mut random, totals)
                .await
                .map_err(|error| (case, error))?;
        }
        let live = database.context().live_queries.counters();
        if live.subscriptions != 0 {
            return Err((case, format!("{} subscriptions are left", live.subscriptions)));
        }
    }
    totals.add(&database);
    database.shutdown().await.map_err(failed(first))
}

/// Restarts the database. Subscribers keep what they hold and get new sessions.
async fn reopen(
    database: Arc<Database>,
    config: &Config,
    subscribers: &mut Vec<Subscriber>,
) -> kalamdb_core::Result<Arc<Database>> {
    let mut kept = Vec::new();
    for subscriber in subscribers.drain(..) {
        let Subscriber { session, table, query, client, random } = subscriber;
        kept.push((session.principal().username.to_string(), table, query, client, random));
    }
    database.shutdown().await?;
    drop(database);
    let database = Arc::new(Database::open(config.clone()).await?);
    for (user, table, query, client, random) in kept {
        let session = database.session_for(&user)?;
        subscribers.push(Subscriber { session, table, query, client, random });
    }
    Ok(database)
}

pub(crate) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folding_the_frames_gives_the_query_at_every_frontier() {
    let seed = setting("KALAMDB_SEED", rand::random_range(0..1 << 32));
    let cases = setting("KALAMDB_CASES", 200);
    let mut totals = Totals::default();
    let mut start = 0;
    while start < cases {
        let end = cases.min(start + CASES_PER_DATABASE);
        if let Err((case, message)) = run_database(seed, start..end, &mut totals).await {
            panic!("case {case} of KALAMDB_SEED={seed} KALAMDB_CASES={cases} failed: {message}");
        }
        start = end;
    }
    println!("KALAMDB_SEED={seed}: {cases} cases, {totals:?}");
    assert!(totals.compared as u64 >= cases, "frontiers were compared: {totals:?}");
    if cases >= 100 {
        assert!(totals.log_reads > 0 && totals.resets > 0, "the change log and RESETs were used: {totals:?}");
    }
}

/// Opens an in-memory database with a shared table `app.t`.
async fn with_table() -> (Database, Session) {
    with_table_and(Config::in_memory()).await
}

async fn with_table_and(config: Config) -> (Database, Session) {
    let config = Config { root_password: Some("correct horse".to_owned()), ..config };
    let database = Database::open(config).await.expect("open");
    let root = database.session_for("root").expect("root");
    for sql in [
        "CREATE NAMESPACE app",
        "CREATE SHARED TABLE app.t (id BIGINT PRIMARY KEY, a INT, b TEXT, c DOUBLE PRECISION) WITH (ACCESS_LEVEL='public')",
    ] {
        root.execute(sql, ()).await.expect(sql);
    }
    (database, root)
}

async fn next(stream: &mut Subscription) -> Arc<Frame> {
    tokio::time::timeout(Duration::from_secs(20), stream.next())
        .await
        .expect("a frame in time")
        .expect("a frame")
        .expect("no error")
}

#[tokio::test]
async fn rows_enter_change_and_leave_a_condition() {
    let (database, root) = with_table().await;
    root.execute("INSERT INTO app.t VALUES (1, 1, 'x', 0.0), (2, 9, 'y', 0.0)", ()).await.expect("insert");
    let mut stream = root
        .subscribe(SubscribeRequest::new("SELECT id, a FROM app.t WHERE a > 5"))
        .await
        .expect("subscribe");
    assert!(matches!(next(&mut stream).await.body, FrameBody::Started { .. }));
    assert!(matches!(&next(&mut stream).await.body, FrameBody::Snapshot(rows) if rows.rows == 1));
    assert!(matches!(next(&mut stream).await.body, FrameBody::SnapshotEnd));
    for (sql, expected) in [
        ("UPDATE app.t SET a = 7 WHERE id = 1", vec![(OP_INSERT, 1, 7)]),
        ("UPDATE app.t SET a = 8 WHERE id = 1", vec![(OP_UPDATE, 1, 8)]),
        ("UPDATE app.t SET a = 0", vec![(OP_DELETE, 1, 8), (OP_DELETE, 2, 9)]),
    ] {
        root.execute(sql, ()).await.expect(sql);
        let frame = next(&mut stream).await;
        let FrameBody::Delta(rows) = &frame.body else { panic!("{sql}: {frame:?}") };
        let text = |value: ScalarValue| format!("{value:?}");
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(op, id, a)| {
                (op, vec![text(ScalarValue::Int64(Some(id))), text(ScalarValue::Int32(Some(a)))])
            })
            .collect();
        assert_eq!(rows_of(&rows.batch), expected, "{sql}");
        assert_eq!(frame.complete_through, database.seq(), "{sql}");
    }
    // A change of an unselected column sends nothing; the next frame reports the change after it.
    root.execute("UPDATE app.t SET a = 6 WHERE id = 1", ()).await.expect("enter");
    assert!(matches!(next(&mut stream).await.body, FrameBody::Delta(_)));
    root.execute("UPDATE app.t SET b = 'other' WHERE id = 1", ()).await.expect("unselected");
    root.execute("DELETE FROM app.t WHERE id = 1", ()).await.expect("delete");
    let frame = next(&mut stream).await;
    assert!(
        matches!(&frame.body, FrameBody::Delta(rows) if rows_of(&rows.batch)[0].0 == OP_DELETE),
        "{frame:?}"
    );
}

#[tokio::test]
async fn equal_live_queries_are_evaluated_once_and_share_their_frames() {
    let (database, root) = with_table().await;
    let mut streams = Vec::new();
    for sql in ["SELECT id FROM app.t WHERE a = 1 + 1", "SELECT t.id FROM app.t AS t WHERE a = 2"] {
        let mut request = SubscribeRequest::new(sql);
        request.snapshot = SnapshotMode::Skip;
        let mut stream = root.subscribe(request).await.expect(sql);
        next(&mut stream).await;
        streams.push(stream);
    }
    root.execute("INSERT INTO app.t VALUES (1, 2, 'x', 0.0)", ()).await.expect("insert");
    let frames = [next(&mut streams[0]).await, next(&mut streams[1]).await];
    assert!(Arc::ptr_eq(&frames[0], &frames[1]));
    let counters = database.context().live_queries.counters();
    assert_eq!((counters.subscriptions, counters.groups, counters.evaluations), (2, 1, 1));
}

#[tokio::test]
async fn a_dropped_stream_is_unregistered_at_once() {
    let (database, root) = with_table().await;
    root.execute("INSERT INTO app.t VALUES (1, 2, 'x', 0.0)", ()).await.expect("insert");
    let live = &database.context().live_queries;
    let numbers = || (live.counters().subscriptions, live.counters().groups, live.list().len());
    let subscribe = async |sql: &str| root.subscribe(SubscribeRequest::new(sql)).await.expect(sql);
    // One was never polled; of two equal ones, one is within its snapshot and one waits for changes.
    let fresh = subscribe("SELECT id, a FROM app.t").await;
    let mut in_snapshot = subscribe("SELECT id FROM app.t").await;
    let mut waiting = subscribe("SELECT id FROM app.t").await;
    next(&mut in_snapshot).await;
    while !matches!(next(&mut waiting).await.body, FrameBody::SnapshotEnd) {}
    assert!(futures::poll!(waiting.next()).is_pending());
    assert_eq!(numbers(), (3, 2, 3));
    drop(fresh);
    assert_eq!(numbers(), (2, 1, 2));
    drop(waiting);
    assert_eq!(numbers(), (1, 1, 1));
    drop(in_snapshot);
    assert_eq!(numbers(), (0, 0, 0));
}

#[tokio::test]
async fn without_a_heartbeat_commits_that_change_nothing_are_reported_from_the_log_too() {
    // No commit stays in memory, so every subscriber reads the change log.
    let (database, root) = with_table_and(Config { commit_ring_bytes: 0, ..Config::in_memory() }).await;
    let mut request = SubscribeRequest::new("SELECT id FROM app.t WHERE a > 5");
    request.heartbeat = Duration::ZERO;
    let mut stream = root.subscribe(request).await.expect("subscribe");
    assert!(matches!(next(&mut stream).await.body, FrameBody::Started { .. }));
    assert!(matches!(next(&mut stream).await.body, FrameBody::SnapshotEnd));
    for id in 1..4 {
        root.execute(&format!("INSERT INTO app.t VALUES ({id}, 1, 'x', 0.0)"), ()).await.expect("insert");
        let frame = next(&mut stream).await;
        assert!(matches!(frame.body, FrameBody::Progress), "{frame:?}");
        assert_eq!(frame.complete_through, database.seq());
        assert!(frame.resume_token.is_some());
    }
    assert!(database.context().live_queries.counters().log_reads > 0);
}

#[tokio::test]
async fn a_subscriber_that_reads_nothing_holds_no_more_than_the_ring() {
    const RING_BYTES: usize = 8_000;
    let (database, root) =
        with_table_and(Config { live_ring_bytes: RING_BYTES, ..Config::in_memory() }).await;
    let live = &database.context().live_queries;
    let mut slow = root.subscribe(SubscribeRequest::new("SELECT id FROM app.t")).await.expect("subscribe");
    let mut quick = root.subscribe(SubscribeRequest::new("SELECT id FROM app.t")).await.expect("subscribe");
    for stream in [&mut slow, &mut quick] {
        while !matches!(next(stream).await.body, FrameBody::SnapshotEnd) {}
    }
    for id in 0..200 {
        root.execute(&format!("INSERT INTO app.t VALUES ({id}, 1, 'x', 0.0)"), ()).await.expect("insert");
        // Once the quick subscriber has the commit, the ring has it too.
        assert_eq!(next(&mut quick).await.complete_through, database.seq());
        let held = live.counters().ring_bytes;
        assert!(held <= RING_BYTES, "{held} bytes after row {id}");
    }
    assert_eq!(live.counters().log_reads, 0, "who keeps up is served from memory");
    let mut ids = Vec::new();
    while ids.len() < 200 {
        let frame = next(&mut slow).await;
        let FrameBody::Delta(rows) = &frame.body else { panic!("{frame:?}") };
        ids.extend(rows_of(&rows.batch).into_iter().map(|(op, row)| (op, row[0].clone())));
    }
    let expected: Vec<_> =
        (0..200).map(|id| (OP_INSERT, format!("{:?}", ScalarValue::Int64(Some(id))))).collect();
    assert_eq!(ids, expected);
    let counters = live.counters();
    assert!(
        counters.log_reads > 0 && counters.resets == 0,
        "who does not reads the change log: {counters:?}"
    );
}

#[tokio::test]
async fn a_commit_that_no_ring_holds_is_evaluated_once_for_all_who_are_equal() {
    let (database, root) = with_table_and(Config { live_ring_bytes: 1_000, ..Config::in_memory() }).await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut request = SubscribeRequest::new("SELECT id, b FROM app.t WHERE a = 1");
        request.max_rows = 100;
        let mut stream = root.subscribe(request).await.expect("subscribe");
        while !matches!(next(&mut stream).await.body, FrameBody::SnapshotEnd) {}
        streams.push(stream);
    }
    let insert = "INSERT INTO app.t SELECT value, 1, repeat('x', 500), 0.0 FROM generate_series(1, 2000)";
    root.execute(insert, ()).await.expect("insert");
    let mut first = Vec::new();
    for stream in &mut streams {
        first.push(next(stream).await);
    }
    assert!(first.iter().all(|frame| Arc::ptr_eq(frame, &first[0])), "all deliver the same frames");
    let mut last = Vec::new();
    for stream in &mut streams {
        let FrameBody::Delta(delta) = &first[0].body else { panic!("{:?}", first[0]) };
        let mut rows = delta.rows;
        loop {
            let frame = next(stream).await;
            let FrameBody::Delta(delta) = &frame.body else { panic!("{frame:?}") };
            rows += delta.rows;
            if !frame.more {
                assert_eq!((rows, frame.complete_through), (2_000, database.seq()));
                last.push(frame);
                break;
            }
        }
    }
    assert!(last.iter().all(|frame| Arc::ptr_eq(frame, &last[0])));
    let counters = database.context().live_queries.counters();
    assert_eq!((counters.groups, counters.log_reads, counters.resets), (1, 5, 0));
}

#[tokio::test]
async fn what_cannot_be_kept_up_to_date_is_refused_by_name() {
    let (_database, root) = with_table().await;
    for (sql, part) in [
        ("SELECT count(*) FROM app.t", "aggregate"),
        ("SELECT id FROM app.t ORDER BY id", "ORDER BY"),
        ("SELECT id FROM app.t LIMIT 1", "LIMIT"),
        ("SELECT DISTINCT a FROM app.t", "DISTINCT"),
        ("SELECT x.id FROM app.t x JOIN app.t y ON x.id = y.id", "JOIN"),
        ("SELECT id FROM app.t WHERE a > random()", "random()"),
        ("SELECT id, now() FROM app.t", "now()"),
        ("SELECT id FROM app.t WHERE id IN (SELECT a FROM app.t)", "subquery"),
        ("SELECT 1", "without a table"),
        ("SELECT * FROM system.stats", "system.stats"),
    ] {
        let error = root.subscribe(SubscribeRequest::new(sql)).await.expect_err(sql);
        assert_eq!(error.sqlstate().0, "0A000", "{sql}: {error}");
        assert!(error.message().contains(part), "{sql}: {error}");
        assert!(error.hint_text().is_some(), "{sql}: {error}");
    }
}

#[tokio::test]
async fn streams_say_why_they_end() {
    let (database, root) = with_table().await;
    let ended = async |mut stream: Subscription| loop {
        if let FrameBody::Closed { reason, .. } = next(&mut stream).await.body {
            // An error follows a failure, so that no client takes it for a normal end.
            let failed = stream.next().await.is_some_and(|item| item.is_err());
            assert_eq!(failed, reason == CloseReason::Failed);
            return reason;
        }
    };
    let subscribe =
        async || root.subscribe(SubscribeRequest::new("SELECT * FROM app.t")).await.expect("subscribe");

    let stream = subscribe().await;
    root.execute(&format!("KILL LIVE QUERY '{}'", stream.id()), ()).await.expect("kill");
    assert_eq!(ended(stream).await, CloseReason::Killed);

    let mut only = SubscribeRequest::new("SELECT * FROM app.t");
    only.snapshot = SnapshotMode::Only;
    assert_eq!(ended(root.subscribe(only).await.expect("only")).await, CloseReason::Completed);

    let mut bounded = SubscribeRequest::new("SELECT * FROM app.t");
    bounded.up_to_seq = Some(Seq(database.seq().0 + 1));
    let bounded = root.subscribe(bounded).await.expect("bounded");
    root.execute("INSERT INTO app.t VALUES (1, 2, 'x', 0.0)", ()).await.expect("insert");
    assert_eq!(ended(bounded).await, CloseReason::Completed);

    let failing =
        root.subscribe(SubscribeRequest::new("SELECT 1 / a AS one FROM app.t")).await.expect("divide");
    let dropped = subscribe().await;
    root.execute("INSERT INTO app.t VALUES (2, 0, 'x', 0.0)", ()).await.expect("insert zero");
    assert_eq!(ended(failing).await, CloseReason::Failed);
    let create = "CREATE SHARED TABLE app.u (id BIGINT PRIMARY KEY) WITH (ACCESS_LEVEL='public')";
    root.execute(create, ()).await.expect("another table");
    let other = root.subscribe(SubscribeRequest::new("SELECT * FROM app.u")).await.expect("subscribe to it");
    root.execute("DROP TABLE app.t", ()).await.expect("drop");
    assert_eq!(ended(dropped).await, CloseReason::TableDropped);
    // No other stream ends with it.
    root.execute("INSERT INTO app.u VALUES (1)", ()).await.expect("insert");
    let mut other = other;
    while !matches!(next(&mut other).await.body, FrameBody::Delta(_)) {}
    drop(other);

    for (user, sql, reason) in [
        ("ann", "ALTER USER 'ann' SET ROLE dba", CloseReason::AccessChanged),
        ("cid", "ALTER USER 'cid' SET PASSWORD 'another password'", CloseReason::AccessChanged),
        ("bob", "DROP USER 'bob'", CloseReason::UserDropped),
        ("eve", "ALTER TABLE app.u SET (ACCESS_LEVEL = 'dba')", CloseReason::AccessChanged),
    ] {
        let create = format!("CREATE USER {user} WITH PASSWORD 'correct horse' ROLE service");
        root.execute(&create, ()).await.expect("create a user");
        let session = database.session_for(user).expect("a session");
        let mut stream =
            session.subscribe(SubscribeRequest::new("SELECT * FROM app.u")).await.expect("subscribe");
        next(&mut stream).await;
        root.execute(sql, ()).await.expect(sql);
        assert_eq!(ended(stream).await, reason, "{sql}");
    }

    let stream = root.subscribe(SubscribeRequest::new("SELECT * FROM system.jobs")).await.expect("jobs");
    database.shutdown().await.expect("shutdown");
    assert_eq!(ended(stream).await, CloseReason::Shutdown);
}

#[tokio::test]
async fn tokens_of_other_queries_and_forged_ones_are_refused() {
    let (_database, root) = with_table().await;
    let mut stream = root.subscribe(SubscribeRequest::new("SELECT id FROM app.t")).await.expect("subscribe");
    next(&mut stream).await;
    let token = next(&mut stream).await.resume_token.clone().expect("the end of the snapshot has a token");
    let resume = async |sql: &str, token: Bytes| {
        let mut request = SubscribeRequest::new(sql);
        request.start = SubscribeStart::Token(token);
        root.subscribe(request).await
    };
    assert!(resume("SELECT id FROM app.t", token.clone()).await.is_ok());
    let other = resume("SELECT id, a FROM app.t", token.clone()).await.expect_err("another query");
    assert_eq!(other.kind(), ErrorKind::InvalidArgument, "{other}");
    let mut forged = token.to_vec();
    *forged.last_mut().expect("bytes") ^= 1;
    let forged = resume("SELECT id FROM app.t", forged.into()).await.expect_err("a forged token");
    assert_eq!(forged.kind(), ErrorKind::InvalidArgument, "{forged}");
}
