//! C3: how far is a GROUP BY over hot rows from DataFusion's own in-memory table?
//!
//! Embedded, so no wire is measured. The peer holds the same rows in as many partitions as a plan has, uses
//! the same runtime, and also plans its query each time. A first measurement covers the first scan, which
//! reads the store and fills the hot tier, and compares it with the same scan without a hot tier.

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use kalamdb_core::commit::Snapshot;
use kalamdb_core::hot_tier::{HotChunks, HotOptions};
use kalamdb_core::ids::ScopeId;
use kalamdb_core::tables::{KalamTable, RowSchema};
use kalamdb_core::{Config, Session};

use crate::host::Kalam;
use crate::report::{Report, Row, Samples, ratio, show};
use crate::{Result, Scale};

const REPEATS: usize = 15;
/// Number of INSERTs; each is small enough for its rows to stay hot.
const INSERTS: u64 = 20;
/// Repetitions of the scan that reads the store.
const STORE_REPEATS: usize = 3;
const LIMIT: Duration = Duration::from_millis(80);
/// The queries, each with its number of groups.
const QUERIES: [(&str, &str); 2] = [
    ("12 groups", "SELECT kind, count(*), sum(amount), max(id) FROM hot.t GROUP BY kind"),
    ("10,007 groups", "SELECT account, count(*), sum(amount) FROM hot.t GROUP BY account"),
];

pub(crate) async fn run(kalam: &Kalam, scale: Scale, report: &mut Report) -> Result<()> {
    kalam
        .execute(&[
            "CREATE NAMESPACE hot",
            "CREATE TABLE hot.t (id BIGINT PRIMARY KEY, account BIGINT, kind INTEGER, amount DOUBLE, \
             name TEXT) WITH (FLUSH_POLICY = 'interval:86400')",
        ])
        .await?;
    for part in 0..INSERTS {
        let (first, last) = (part * scale.hot_rows / INSERTS + 1, (part + 1) * scale.hot_rows / INSERTS);
        let insert = format!(
            "INSERT INTO hot.t SELECT value, value * 31 % 10007, CAST(value % 12 AS INTEGER), \
             CAST(value AS DOUBLE) * 0.01, 'customer ' || value FROM generate_series({first}, {last})"
        );
        kalam.execute(&[&insert]).await?;
    }
    if !kalam.segments("hot", "t")?.is_empty() {
        return Err("the rows to scan are not hot".into());
    }
    let session = kalam.database().session_for("root")?;
    first_scan(kalam, scale, report).await?;
    let memory = memory_table(&session).await?;
    for (groups, sql) in QUERIES {
        ours(&session, sql).await?;
        theirs(&memory, sql).await?;
        let (mut our_samples, mut their_samples) = (Samples::default(), Samples::default());
        for _ in 0..REPEATS {
            our_samples.push(ours(&session, sql).await?);
            their_samples.push(theirs(&memory, sql).await?);
        }
        let (our_p50, their_p50) = (our_samples.percentile(50), their_samples.percentile(50));
        let times = ratio(our_p50.as_secs_f64(), their_p50.as_secs_f64());
        report.add(Row {
            id: "C3",
            what: format!("GROUP BY over {} hot rows, {groups}, embedded", scale.hot_rows),
            measured: our_samples.summary(),
            floor: format!("DataFusion's MemTable: {}", their_samples.summary()),
            ratio: times,
            target: "<= 3x MemTable and <= 80 ms",
            met: times.map(|times| times <= 3.0 && our_p50 <= LIMIT),
        });
    }
    Ok(())
}

/// Measures the first scan of rows that no scan has read yet.
async fn first_scan(kalam: &Kalam, scale: Scale, report: &mut Report) -> Result<()> {
    let (mut first, mut direct) = (Samples::default(), Samples::default());
    for repeat in 0..=STORE_REPEATS {
        let without = read_with(kalam, HotOptions::of_bytes(0)).await?;
        let with = read_with(kalam, HotOptions::of_bytes(Config::default().hot_cache_bytes)).await?;
        // The first repetition only warms up the store.
        if repeat > 0 {
            direct.push(without);
            first.push(with);
        }
    }
    report.add(Row {
        id: "C3",
        what: format!("the first such scan of {} rows, which reads the store", scale.hot_rows),
        measured: show(first.percentile(50)),
        floor: format!("without keeping what it reads: {}", show(direct.percentile(50))),
        ratio: ratio(first.percentile(50).as_secs_f64(), direct.percentile(50).as_secs_f64()),
        target: "<= 1.2x",
        met: ratio(first.percentile(50).as_secs_f64(), direct.percentile(50).as_secs_f64())
            .map(|times| times <= 1.2),
    });
    Ok(())
}

/// Runs one scan with an empty hot tier of its own.
async fn read_with(kalam: &Kalam, options: HotOptions) -> Result<Duration> {
    let context = kalam.database().context();
    let snapshot = context.committer.snapshot();
    let definition = snapshot.catalog.table("hot", "t").ok_or("the table does not exist")?;
    let schemas = context.schema_registry.schemas(definition);
    let snapshot = Snapshot {
        seq: snapshot.seq,
        commit_ts: snapshot.commit_ts,
        epoch: snapshot.epoch,
        catalog: Arc::clone(&snapshot.catalog),
        storage: Arc::clone(&snapshot.storage),
        hot: Arc::new(HotChunks::new(options, snapshot.seq)),
        cold: Arc::clone(&snapshot.cold),
        log_floor: snapshot.log_floor,
    };
    let table =
        KalamTable::stored(Arc::new(snapshot), schemas, RowSchema::Visible, ScopeId::SHARED, i64::MIN);
    let peer = peer();
    peer.register_table("t", Arc::new(table))?;
    let [(_, sql), _] = QUERIES;
    theirs(&peer, &sql.replace("hot.t", "t")).await
}

/// Returns a plain DataFusion context with the database's settings.
fn peer() -> SessionContext {
    let config = Config::default();
    let settings = SessionConfig::new()
        .with_target_partitions(config.query_partitions)
        .with_batch_size(config.batch_rows);
    SessionContext::new_with_config(settings)
}

async fn memory_table(session: &Session) -> Result<SessionContext> {
    let rows = session.execute("SELECT * FROM hot.t", ()).await?.rows()?;
    let schema = Arc::clone(&rows.schema);
    let batches = rows.collect().await?;
    let partitions = Config::default().query_partitions;
    let per_partition = batches.len().div_ceil(partitions).max(1);
    let partitions = batches.chunks(per_partition).map(<[_]>::to_vec).collect();
    let peer = peer();
    peer.register_table("t", Arc::new(MemTable::try_new(schema, partitions)?))?;
    Ok(peer)
}

async fn ours(session: &Session, sql: &str) -> Result<Duration> {
    let start = Instant::now();
    let rows = session.execute(sql, ()).await?.rows()?;
    let groups: usize = rows.collect().await?.iter().map(|batch| batch.num_rows()).sum();
    let elapsed = start.elapsed();
    if groups == 0 { Err("the query returned no groups".into()) } else { Ok(elapsed) }
}

async fn theirs(peer: &SessionContext, sql: &str) -> Result<Duration> {
    let sql = sql.replace("hot.t", "t");
    let start = Instant::now();
    let groups: usize = peer.sql(&sql).await?.collect().await?.iter().map(|batch| batch.num_rows()).sum();
    let elapsed = start.elapsed();
    if groups == 0 { Err("the query returned no groups".into()) } else { Ok(elapsed) }
}
