//! C1, C2, C4, and C7 on their tables: what do queries over Parquet segments cost compared with DataFusion in
//! this process on the same files?
//!
//! C1 sends 8 columns of all `lineitem` rows to a Flight client that decodes them. C2 runs the 22 TPC-H
//! queries over Flight SQL and compares each answer with the peer's. C4 repeats C2 after 1% of the rows of
//! the two large tables were updated, or deleted and inserted again, so the answers must stay the same.

use std::time::{Duration, Instant};

use arrow::array::RecordBatch;

use crate::c7_prices;
use crate::host::Kalam;
use crate::peer::{Peer, same_rows};
use crate::report::{Report, Row, median, rate, ratio, show};
use crate::tpch::{NAMESPACE, TABLES, append, load, queries};
use crate::wire::{Wire, ad_hoc};
use crate::{Result, Scale};

const COLUMNS: &str =
    "l_orderkey, l_partkey, l_linenumber, l_quantity, l_extendedprice, l_shipdate, l_shipmode, l_comment";

/// Runs the wanted ones of C1, C2, C4 and C7.
pub(crate) async fn run(
    kalam: &Kalam,
    scale: Scale,
    wanted: impl Fn(&str) -> bool,
    report: &mut Report,
) -> Result<()> {
    let mut wire = kalam.connect().await?;
    load(kalam, &mut wire, scale.scale_factor).await?;
    let peer = Peer::new();
    for (table, _) in TABLES {
        peer.register_segments(kalam, NAMESPACE, table).await?;
    }
    if wanted("C1") {
        scan(&mut wire, &peer, scale, report).await?;
    }
    if wanted("C7") {
        c7_prices::run(&mut wire, &peer, scale, report).await?;
    }
    if wanted("C2") || wanted("C4") {
        let flushed = all_queries(&mut wire, &peer, scale).await?;
        report.add(Row {
            id: "C2",
            what: format!(
                "TPC-H at scale factor {}, 22 queries over Flight SQL, flushed",
                scale.scale_factor
            ),
            measured: format!("22 right, total {}; {}", show(flushed.ours), flushed.slowest),
            floor: format!("DataFusion in process on the same Parquet: {}", show(flushed.peers)),
            ratio: ratio(flushed.ours.as_secs_f64(), flushed.peers.as_secs_f64()),
            target: "22 of 22 right; total <= 1.15x DataFusion",
            met: Some(flushed.ours <= flushed.peers.mul_f64(1.15)),
        });
        let rows = overwrite(kalam, &mut wire).await?;
        let changed = all_queries(&mut wire, &peer, scale).await?;
        report.add(Row {
            id: "C4",
            what: format!("the same with {rows} rows updated, or deleted and put back, after the flush"),
            measured: format!("22 right, total {}; {}", show(changed.ours), changed.slowest),
            floor: format!("C2: {}", show(flushed.ours)),
            ratio: ratio(changed.ours.as_secs_f64(), flushed.ours.as_secs_f64()),
            target: "<= 1.3x C2",
            met: Some(changed.ours <= flushed.ours.mul_f64(1.3)),
        });
    }
    Ok(())
}

async fn scan(wire: &mut Wire, peer: &Peer, scale: Scale, report: &mut Report) -> Result<()> {
    let (mut ours, mut peers, mut rows) = (Vec::new(), Vec::new(), 0);
    let sql = format!("SELECT {COLUMNS} FROM lineitem");
    let command = ad_hoc(&sql);
    for _ in 0..scale.rounds {
        let begin = Instant::now();
        rows = wire.count(&command).await?;
        ours.push(rows as f64 / begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        let expected = peer.count(&sql).await?;
        peers.push(expected as f64 / begin.elapsed().as_secs_f64());
        if rows != expected {
            return Err(format!("{rows} of {expected} rows arrived").into());
        }
    }
    let (our_rate, peer_rate) = (median(ours), median(peers));
    let times = ratio(our_rate, peer_rate);
    report.add(Row {
        id: "C1",
        what: format!("SELECT of 8 columns of {rows} flushed rows to a Flight client"),
        measured: format!("{} rows", rate(our_rate)),
        floor: format!("DataFusion in process on the same Parquet: {} rows", rate(peer_rate)),
        ratio: times,
        target: ">= 6 M rows/s and >= 0.7x DataFusion",
        met: times.map(|times| times >= 0.7 && our_rate >= 6e6),
    });
    Ok(())
}

/// The sums of all queries' medians.
struct Totals {
    ours: Duration,
    peers: Duration,
    /// The queries that lose most time against the peer, with their ratios.
    slowest: String,
}

async fn all_queries(wire: &mut Wire, peer: &Peer, scale: Scale) -> Result<Totals> {
    let mut medians = Vec::new();
    for (index, sql) in queries().enumerate() {
        let command = ad_hoc(sql);
        let (mut ours, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..scale.rounds {
            let (rows, took) = timed(wire.rows(&command)).await?;
            ours.push(took.as_secs_f64());
            let (expected, took) = timed(peer.rows(sql)).await?;
            peers.push(took.as_secs_f64());
            same_rows(&format!("TPC-H query {}", index + 1), &rows, &expected)?;
        }
        medians.push((index + 1, median(ours), median(peers)));
    }
    if medians.len() != 22 {
        return Err(format!("TPC-H has 22 queries, not {}", medians.len()).into());
    }
    let sum = |of: fn(&(usize, f64, f64)) -> f64| Duration::from_secs_f64(medians.iter().map(of).sum());
    let (ours, peers) = (sum(|query| query.1), sum(|query| query.2));
    for (number, ours, peers) in &medians {
        eprintln!("  Q{number}: {:.1} ms, peer {:.1} ms, {:.2}x", ours * 1e3, peers * 1e3, ours / peers);
    }
    // Queries that lose most time against the peer come first.
    medians.sort_by(|left, right| (right.1 - right.2).total_cmp(&(left.1 - left.2)));
    let slowest = medians
        .iter()
        .take(3)
        .map(|(number, ours, peers)| format!("Q{number} {:.2}x", ours / peers))
        .collect::<Vec<_>>()
        .join(", ");
    Ok(Totals { ours, peers, slowest: format!("most over the peer: {slowest}") })
}

async fn timed(
    answer: impl Future<Output = Result<Vec<RecordBatch>>>,
) -> Result<(Vec<RecordBatch>, Duration)> {
    let begin = Instant::now();
    let rows = answer.await?;
    Ok((rows, begin.elapsed()))
}

/// Updates one row in 200 and deletes and reinserts another one in both large tables; returns the number of
/// changed rows.
async fn overwrite(kalam: &Kalam, wire: &mut Wire) -> Result<u64> {
    let session = kalam.database().session_for("root")?;
    let mut changed = 0;
    for (table, key, comment) in
        [("lineitem", "l_orderkey", "l_comment"), ("orders", "o_orderkey", "o_comment")]
    {
        // Of every 32 consecutive order keys only the first 8 exist.
        let update =
            format!("UPDATE {NAMESPACE}.{table} SET {comment} = {comment} WHERE {key} / 32 % 200 = 7");
        changed += session.execute(&update, ()).await?.affected()?.rows;
        let some = format!("{NAMESPACE}.{table} WHERE {key} / 32 % 200 = 113");
        let rows = session.execute(&format!("SELECT * FROM {some}"), ()).await?.rows()?.collect().await?;
        changed += session.execute(&format!("DELETE FROM {some}"), ()).await?.affected()?.rows;
        append(wire, table, rows).await?;
    }
    Ok(changed)
}
