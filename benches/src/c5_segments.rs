//! C5: what does a filtered SELECT over many segments cost?

use std::time::Instant;

use crate::host::Kalam;
use crate::peer::{Peer, same_rows};
use crate::report::{Report, Row, median, ratio, show};
use crate::wire::ad_hoc;
use crate::{Result, Scale};

const SEGMENTS: usize = 20;
const GOAL_S: f64 = 0.010;

pub(crate) async fn run(kalam: &Kalam, scale: Scale, report: &mut Report) -> Result<()> {
    kalam
        .execute(&[
            "CREATE NAMESPACE segments",
            "CREATE TABLE segments.t (id BIGINT PRIMARY KEY, kind INTEGER, amount DOUBLE, name TEXT) \
             WITH (FLUSH_POLICY = 'interval:86400')",
        ])
        .await?;
    let rows = scale.segment_rows;
    for segment in 0..SEGMENTS {
        let insert = format!(
            "INSERT INTO segments.t SELECT value * {SEGMENTS} + {segment}, CAST(value % 1000 AS INTEGER), \
             value * 0.25, 'name ' || CAST(value AS TEXT) FROM generate_series(1, {rows})"
        );
        kalam.execute(&[&insert]).await?;
        kalam.flush("segments", "t").await?;
    }
    let peer = Peer::new();
    peer.register_segments(kalam, "segments", "t").await?;
    let found = kalam.segments("segments", "t")?.len();
    let mut wire = kalam.connect().await?;
    let sql = |table: &str| format!("SELECT id, name, amount FROM {table} WHERE kind = 7 AND amount > 100");
    let command = ad_hoc(&sql("segments.t"));
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds * 10 {
        let begin = Instant::now();
        let rows = wire.rows(&command).await?;
        ours.push(begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        let expected = peer.rows(&sql("t")).await?;
        peers.push(begin.elapsed().as_secs_f64());
        same_rows("filtered SELECT over segments", &rows, &expected)?;
    }
    let (ours, peers) = (median(ours), median(peers));
    report.add(Row {
        id: "C5",
        what: format!("filtered SELECT over {found} segments with {} rows in all", rows * SEGMENTS),
        measured: show(std::time::Duration::from_secs_f64(ours)),
        floor: format!(
            "DataFusion in process on the same Parquet: {}",
            show(std::time::Duration::from_secs_f64(peers))
        ),
        ratio: ratio(ours, peers),
        target: "<= 10 ms",
        met: Some(ours <= GOAL_S),
    });
    Ok(())
}
