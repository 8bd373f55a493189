//! B5: how many rows per second does a durable bulk ingest reach, and how much memory does it hold?
//!
//! CommandStatementIngest in append mode: each DoPut sends 8 columns in batches of 8,192 rows and is one
//! commit. The messages are encoded before the clock starts, for the floor as well, which reads and drops
//! them.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow_flight::FlightData;

use crate::floor::Floor;
use crate::host::Kalam;
use crate::report::{Report, Row, median, rate, ratio};
use crate::wire::{Wire, ingest, put_messages, resident_bytes};
use crate::{Result, Scale};

const BATCH_ROWS: usize = 8_192;
const GOAL: f64 = 1e6;

pub(crate) async fn run(kalam: &Kalam, floor: &Floor, scale: Scale, report: &mut Report) -> Result<()> {
    kalam
        .execute(&[
            "CREATE NAMESPACE ingest",
            "CREATE TABLE ingest.t (id BIGINT PRIMARY KEY, account BIGINT, kind INTEGER, amount DOUBLE, \
             rate DOUBLE, ok BOOLEAN, name TEXT, at TIMESTAMP)",
        ])
        .await?;
    let (mut ours, mut theirs) = (kalam.connect().await?, floor.connect().await?);
    let (mut our_rates, mut floor_rates) = (Vec::new(), Vec::new());
    let mut peak_bytes = 0;
    for ingest in 0..scale.ingests {
        let messages = messages(ingest * scale.ingest_rows, scale.ingest_rows)?;
        floor_rates.push(rows_per_second(&mut theirs, messages.clone(), scale.ingest_rows, None).await?);
        let before = resident_bytes("self");
        our_rates
            .push(rows_per_second(&mut ours, messages, scale.ingest_rows, Some(scale.ingest_rows)).await?);
        peak_bytes = peak_bytes.max(resident_bytes("self").saturating_sub(before));
    }
    let (our_rate, floor_rate) = (median(our_rates), median(floor_rates));
    report.add(Row {
        id: "B5",
        what: format!(
            "bulk ingest, 8 columns, {} statements of {} rows, durable",
            scale.ingests, scale.ingest_rows
        ),
        measured: format!(
            "{} rows; at most {} MB more resident after a statement",
            rate(our_rate),
            peak_bytes / 1_000_000
        ),
        floor: format!("DoPut to nowhere: {} rows", rate(floor_rate)),
        ratio: ratio(our_rate, floor_rate),
        target: ">= 1 M rows/s",
        met: Some(our_rate >= GOAL),
    });
    Ok(())
}

async fn rows_per_second(
    wire: &mut Wire,
    messages: Vec<FlightData>,
    rows: usize,
    counted: Option<usize>,
) -> Result<f64> {
    let start = Instant::now();
    let affected = wire.update(messages).await?;
    let elapsed = start.elapsed();
    if counted.is_some_and(|counted| i64::try_from(counted) != Ok(affected)) {
        return Err(format!("an ingest of {rows} rows affected {affected}").into());
    }
    Ok(rows as f64 / elapsed.as_secs_f64())
}

fn messages(first: usize, rows: usize) -> Result<Vec<FlightData>> {
    let command = ingest("ingest", "t");
    let batches = (first..first + rows)
        .step_by(BATCH_ROWS)
        .map(|start| batch(start, BATCH_ROWS.min(first + rows - start)))
        .collect::<Result<Vec<_>>>()?;
    put_messages(&command, batches)
}

fn batch(first: usize, rows: usize) -> Result<RecordBatch> {
    let ids = || (first..first + rows).map(|id| id as i64);
    let columns: [(&str, ArrayRef); 8] = [
        ("id", Arc::new(Int64Array::from_iter_values(ids()))),
        ("account", Arc::new(Int64Array::from_iter_values(ids().map(|id| id * 31 % 10_007)))),
        ("kind", Arc::new(Int32Array::from_iter_values((0..rows).map(|row| (row % 12) as i32)))),
        ("amount", Arc::new(Float64Array::from_iter_values(ids().map(|id| id as f64 * 0.01)))),
        ("rate", Arc::new(Float64Array::from_iter_values(ids().map(|id| 1.0 / (id as f64 + 1.0))))),
        ("ok", Arc::new(BooleanArray::from_iter(ids().map(|id| Some(id % 3 == 0))))),
        ("name", Arc::new(StringArray::from_iter_values(ids().map(|id| format!("customer {id}"))))),
        (
            "at",
            Arc::new(TimestampMicrosecondArray::from_iter_values(ids().map(|id| 1_700_000_000_000_000 + id))),
        ),
    ];
    Ok(RecordBatch::try_from_iter(columns)?)
}
