//! Live queries against their promise: folding a stream's frames gives the query's result at every
//! `complete_through`.
//!
//! The property test writes at random from several sessions, subscribes, pauses, disconnects, resumes and
//! restarts the database. Its rings are so small that subscribers fall back to the change log and to RESETs.
//! Commits are read in pieces of a few rows, and frames that wait to be sent are dropped and made again. At
//! each frontier a subscriber reaches, its rows are compared with a SELECT on that commit's snapshot, if one
//! was kept. `KALAMDB_SEED` and `KALAMDB_CASES` choose the cases; a failure names its seed.

pub(crate) mod client;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt;
use kalamdb_core::commit::Snapshot;
use kalamdb_core::ids::{ScopeId, Seq};
use kalamdb_core::live_query::{SubscribeRequest, SubscribeStart};
use kalamdb_core::sql::Session;
use kalamdb_core::tables::{KalamTable, RowSchema};
use kalamdb_core::{Config, Database, ErrorKind};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use self::client::{Client, Row, text_row};

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
        live_piece_bytes: *[1, 150, 600, 1 << 20].choose(random).expect("some"),
        live_held_bytes_max: *[1, 6_000, 64 << 20].choose(random).expect("some"),
        live_held_per_user_bytes_max: *[1, 3_000, 16 << 20].choose(random).expect("some"),
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
    evictions: u64,
    resets: u64,
}

impl Totals {
    /// Adds the counters of a database, before it is shut down.
    fn add(&mut self, database: &Database) {
        let live = database.context().live_queries.counters();
        self.frames += live.frames;
        self.log_reads += live.log_reads;
        self.evictions += live.evictions;
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
        assert!(totals.evictions > 0, "frames were made again: {totals:?}");
    }
}
