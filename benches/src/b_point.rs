//! B1, B2: how far is a prepared SELECT by primary key from a server that does nothing?
//!
//! "Bound once" runs GetFlightInfo and DoGet per execution. "Bound each time" first sends the parameter with
//! DoPut, as JDBC does. The first measurements find all rows hot, the last one finds all rows flushed.

use std::sync::Arc;

use arrow::array::{Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;

use crate::floor::Floor;
use crate::host::Kalam;
use crate::load::{Load, Operation, duel};
use crate::report::{Report, Row, median, rate, ratio, show};
use crate::wire::{Wire, prepared_query, put_messages};
use crate::{Result, Scale};

const MANY: u64 = 16;

struct PointQuery {
    wire: Wire,
    command: Bytes,
    /// Whether each execution binds its key again.
    rebinds: bool,
    parameters: SchemaRef,
    keys: u64,
    next: u64,
}

impl PointQuery {
    async fn new(mut wire: Wire, rebinds: bool, keys: u64, client: u64) -> Result<Self> {
        let handle = wire.prepare("SELECT id, name, score FROM points.t WHERE id = $1").await?;
        let parameters = Arc::new(Schema::new(vec![Field::new("1", DataType::Int64, true)]));
        // Clients start at different keys and step by a number that visits them all.
        let mut query =
            Self { wire, command: prepared_query(&handle), rebinds, parameters, keys, next: client * 7_919 };
        query.bind().await?;
        Ok(query)
    }

    async fn bind(&mut self) -> Result<()> {
        self.next = (self.next + 7_919) % self.keys;
        let key = Int64Array::from(vec![i64::try_from(self.next)? + 1]);
        let batch = RecordBatch::try_new(Arc::clone(&self.parameters), vec![Arc::new(key)])?;
        self.wire.put(put_messages(&self.command, vec![batch])?).await?;
        Ok(())
    }
}

impl Operation for PointQuery {
    async fn run(&mut self) -> Result<()> {
        if self.rebinds {
            self.bind().await?;
        }
        match self.wire.query(&self.command).await? {
            1 => Ok(()),
            messages => Err(format!("a point query returned {messages} messages with rows").into()),
        }
    }
}

pub(crate) async fn run(kalam: &Kalam, floor: &Floor, scale: Scale, report: &mut Report) -> Result<()> {
    kalam
        .execute(&[
            "CREATE NAMESPACE points",
            "CREATE TABLE points.t (id BIGINT PRIMARY KEY, name TEXT, score DOUBLE) \
             WITH (FLUSH_POLICY = 'interval:86400')",
            &format!(
                "INSERT INTO points.t SELECT value, 'name ' || CAST(value AS TEXT), \
                 CAST(value AS DOUBLE) / 3 FROM generate_series(1, {})",
                scale.point_rows
            ),
        ])
        .await?;
    floor.answer_with(&answer()?)?;
    for rebinds in [false, true] {
        let how = if rebinds {
            "bound each time (DoPut, GetFlightInfo, DoGet)"
        } else {
            "bound once (GetFlightInfo, DoGet)"
        };
        let (ours, theirs) = contest(kalam, floor, scale, rebinds, 1).await?;
        latency(report, "hot", how, &ours, &theirs);
        let (ours, theirs) = contest(kalam, floor, scale, rebinds, MANY).await?;
        throughput(report, how, &ours, &theirs);
    }
    kalam.flush("points", "t").await?;
    let (ours, theirs) = contest(kalam, floor, scale, false, 1).await?;
    latency(report, "cold", "bound once (GetFlightInfo, DoGet)", &ours, &theirs);
    Ok(())
}

/// Returns a row of the same size as the database's answer.
fn answer() -> Result<RecordBatch> {
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("score", DataType::Float64, true),
    ]);
    Ok(RecordBatch::try_new(
        Arc::new(schema),
        vec![
            Arc::new(Int64Array::from(vec![50_000])),
            Arc::new(StringArray::from(vec!["name 50000"])),
            Arc::new(Float64Array::from(vec![16_666.6])),
        ],
    )?)
}

async fn contest(
    kalam: &Kalam,
    floor: &Floor,
    scale: Scale,
    rebinds: bool,
    clients: u64,
) -> Result<(Load, Load)> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for client in 0..clients {
        ours.push(PointQuery::new(kalam.connect().await?, rebinds, scale.point_rows, client).await?);
        theirs.push(PointQuery::new(floor.connect().await?, rebinds, scale.point_rows, client).await?);
    }
    duel(ours, theirs, scale.round, scale.rounds).await
}

fn latency(report: &mut Report, place: &str, how: &str, ours: &Load, floor: &Load) {
    let times = ratio(ours.samples.percentile(50).as_secs_f64(), floor.samples.percentile(50).as_secs_f64());
    report.add(Row {
        id: "B1",
        what: format!("prepared SELECT by key, {place} row, 1 client, {how}"),
        measured: ours.samples.summary(),
        floor: floor.samples.summary(),
        ratio: times,
        target: "p50 <= 2x floor",
        met: times.map(|times| times <= 2.0),
    });
}

fn throughput(report: &mut Report, how: &str, ours: &Load, floor: &Load) {
    let (our_rate, floor_rate) = (median(ours.rates.clone()), median(floor.rates.clone()));
    let times = ratio(our_rate, floor_rate);
    let (p50, p99) = (ours.samples.percentile(50), ours.samples.percentile(99));
    report.add(Row {
        id: "B2",
        what: format!("the same, {MANY} clients, {how}"),
        measured: format!("{}, p50 {}, p99 {}", rate(our_rate), show(p50), show(p99)),
        floor: format!("{}, {}", rate(floor_rate), floor.samples.summary()),
        ratio: times,
        target: ">= 0.6x the floor's rate; p99 <= 5x p50",
        met: times.map(|times| times >= 0.6 && p99 <= p50 * 5),
    });
}
