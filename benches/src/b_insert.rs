//! B3, B4: what does a durable single-row INSERT cost beyond its fsync and its RPC?
//!
//! Over the wire, a prepared INSERT sends one row per DoPut. Embedded, the same statement runs without a
//! wire. The figures stand beside three floors: a server that stores nothing, fdatasync on the data
//! directory's file system, and RocksDB with a sync for every write.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arrow::array::{Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use kalamdb_core::ScalarValue;
use kalamdb_core::sql::Prepared;

use crate::floor::{Floor, fdatasync, rocksdb_synced};
use crate::host::Kalam;
use crate::load::{Load, Operation, duel, round};
use crate::report::{Report, Row, median, rate, ratio, show};
use crate::wire::{Wire, prepared_update, put_messages};
use crate::{Result, Scale};

const MANY: u64 = 64;
const INSERT: &str = "INSERT INTO inserts.t VALUES ($1, $2, $3)";

/// The next unused key; all inserters share it, so no key is used twice.
static NEXT_KEY: AtomicI64 = AtomicI64::new(0);

fn next_key() -> i64 {
    NEXT_KEY.fetch_add(1, Ordering::Relaxed)
}

pub(crate) struct WireInsert {
    wire: Wire,
    command: Bytes,
    parameters: SchemaRef,
}

impl WireInsert {
    pub(crate) async fn new(mut wire: Wire, sql: &str) -> Result<Self> {
        let handle = wire.prepare(sql).await?;
        let parameters = Arc::new(Schema::new(vec![
            Field::new("1", DataType::Int64, true),
            Field::new("2", DataType::Utf8, true),
            Field::new("3", DataType::Float64, true),
        ]));
        Ok(Self { wire, command: prepared_update(&handle), parameters })
    }
}

impl Operation for WireInsert {
    async fn run(&mut self) -> Result<()> {
        let batch = RecordBatch::try_new(
            Arc::clone(&self.parameters),
            vec![
                Arc::new(Int64Array::from(vec![next_key()])),
                Arc::new(StringArray::from(vec!["forty characters of text, give or take 1"])),
                Arc::new(Float64Array::from(vec![0.5])),
            ],
        )?;
        match self.wire.update(put_messages(&self.command, vec![batch])?).await? {
            1 => Ok(()),
            rows => Err(format!("an INSERT of one row affected {rows}").into()),
        }
    }
}

struct EmbeddedInsert {
    prepared: Prepared,
}

impl Operation for EmbeddedInsert {
    async fn run(&mut self) -> Result<()> {
        let values = vec![
            ScalarValue::Int64(Some(next_key())),
            ScalarValue::Utf8(Some("forty characters of text, give or take 1".to_owned())),
            ScalarValue::Float64(Some(0.5)),
        ];
        self.prepared.execute(values).await?.affected()?;
        Ok(())
    }
}

pub(crate) async fn run(kalam: &Kalam, floor: &Floor, scale: Scale, report: &mut Report) -> Result<()> {
    kalam
        .execute(&[
            "CREATE NAMESPACE inserts",
            "CREATE TABLE inserts.t (id BIGINT PRIMARY KEY, body TEXT, score DOUBLE)",
        ])
        .await?;
    let folder = kalam.folder().to_owned();
    let length = scale.round;
    let sync = tokio::task::spawn_blocking(move || fdatasync(&folder, length)).await??;
    let alone = rocksdb(kalam, 1, length).await?;
    let (ours, theirs) = contest(kalam, floor, scale, 1).await?;
    let (p50, sync_p50) = (ours.samples.percentile(50), sync.percentile(50));
    let allowed = theirs.samples.percentile(50) + sync_p50.mul_f64(1.5);
    report.add(Row {
        id: "B3",
        what: "single-row INSERT, durable, 1 client".to_owned(),
        measured: ours.samples.summary(),
        floor: format!(
            "RPC {}; fdatasync {}; RocksDB synced write {}",
            show(theirs.samples.percentile(50)),
            show(sync_p50),
            show(alone.samples.percentile(50))
        ),
        ratio: ratio(p50.as_secs_f64(), allowed.as_secs_f64()),
        target: "p50 < 1 ms and <= RPC + 1.5x fdatasync (the ratio is to that sum)",
        met: Some(p50 < Duration::from_millis(1) && p50 <= allowed),
    });
    many(kalam, floor, scale, report).await
}

async fn many(kalam: &Kalam, floor: &Floor, scale: Scale, report: &mut Report) -> Result<()> {
    let (ours, theirs) = contest(kalam, floor, scale, MANY).await?;
    let (our_rate, floor_rate) = (median(ours.rates.clone()), median(theirs.rates.clone()));
    let times = ratio(our_rate, floor_rate);
    report.add(Row {
        id: "B4",
        what: format!("the same, {MANY} clients"),
        measured: format!("{}, {}", rate(our_rate), ours.samples.summary()),
        floor: format!("{}, {}", rate(floor_rate), theirs.samples.summary()),
        ratio: times,
        target: ">= 0.7x the floor's rate",
        met: times.map(|times| times >= 0.7),
    });
    let embedded = embedded(kalam, scale).await?;
    let synced = rocksdb(kalam, MANY, scale.round).await?;
    let (our_rate, floor_rate) = (median(embedded.rates.clone()), median(synced.rates.clone()));
    report.add(Row {
        id: "B4",
        what: format!("the same embedded, {MANY} tasks"),
        measured: format!("{}, {}", rate(our_rate), embedded.samples.summary()),
        floor: format!("RocksDB, {MANY} threads each syncing: {}", rate(floor_rate)),
        ratio: ratio(our_rate, floor_rate),
        target: ">= 50 k/s",
        met: Some(our_rate >= 50_000.0),
    });
    Ok(())
}

async fn contest(kalam: &Kalam, floor: &Floor, scale: Scale, clients: u64) -> Result<(Load, Load)> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..clients {
        ours.push(WireInsert::new(kalam.connect().await?, INSERT).await?);
        theirs.push(WireInsert::new(floor.connect().await?, INSERT).await?);
    }
    duel(ours, theirs, scale.round, scale.rounds).await
}

async fn embedded(kalam: &Kalam, scale: Scale) -> Result<Load> {
    let session = kalam.database().session_for("root")?;
    let prepared = session.prepare(INSERT).await?;
    let mut clients: Vec<_> = (0..MANY).map(|_| EmbeddedInsert { prepared: prepared.clone() }).collect();
    let mut load = Load::default();
    for _ in 0..scale.rounds {
        // The work runs on the database's runtime, as in a program that embeds it.
        let length = scale.round;
        let (back, result) = kalam
            .runtime()
            .spawn(async move {
                let mut load = Load::default();
                let clients = round(clients, length, &mut load).await?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>((clients, load))
            })
            .await??;
        clients = back;
        load.samples.append(result.samples);
        load.rates.extend(result.rates);
    }
    Ok(load)
}

async fn rocksdb(kalam: &Kalam, threads: u64, length: Duration) -> Result<Load> {
    let folder = kalam.folder().to_owned();
    tokio::task::spawn_blocking(move || rocksdb_synced(&folder, threads, length)).await?
}
