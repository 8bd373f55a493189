//! C7: what does each correction of DataFusion's answers cost?
//!
//! Each query needs one of the workarounds on the path of rows (docs/sql-correctness.md); the first needs
//! none. They run over TPC-H's flushed tables, beside DataFusion in this process on the same files. Rows come
//! over Flight SQL, as in C2. Answers are not compared, because DataFusion's own are wrong for some rows.

use std::time::Instant;

use crate::peer::Peer;
use crate::report::{Report, Row, median, ratio};
use crate::wire::{Wire, ad_hoc};
use crate::{Result, Scale};

const QUERIES: [(&str, &str); 19] = [
    ("no work-around: sum(INTEGER)", "SELECT sum(l_linenumber) FROM lineitem"),
    ("decimal literals", "SELECT count(*) FROM lineitem WHERE l_discount < 0.05"),
    ("sum(BIGINT), checked", "SELECT sum(l_orderkey) FROM lineitem"),
    (
        "sum(DECIMAL) of more than 28 digits, checked",
        "SELECT sum(l_extendedprice * l_discount * l_tax) FROM lineitem",
    ),
    ("BIGINT + BIGINT, checked", "SELECT max(l_orderkey + l_partkey) FROM lineitem"),
    ("DECIMAL / DECIMAL, 16 digits", "SELECT max(l_extendedprice / l_quantity) FROM lineitem"),
    ("avg(DECIMAL), 16 digits", "SELECT avg(l_quantity) FROM lineitem"),
    ("avg(DECIMAL) of groups", "SELECT l_suppkey, avg(l_quantity) FROM lineitem GROUP BY l_suppkey"),
    (
        "max(DOUBLE) of groups, with NaN",
        "SELECT l_suppkey, max(CAST(l_quantity AS DOUBLE)) FROM lineitem GROUP BY l_suppkey",
    ),
    (
        "arithmetic of DOUBLE, one zero and one NaN",
        "SELECT max(CAST(l_quantity AS DOUBLE) * 2) FROM lineitem",
    ),
    (
        "a sum of doubles over a moving frame",
        "SELECT max(s) FROM (SELECT sum(CAST(o_totalprice AS DOUBLE)) OVER (ORDER BY o_orderkey \
         ROWS 9 PRECEDING) AS s FROM orders) q",
    ),
    (
        "an argument that can fail, behind FILTER",
        "SELECT l_suppkey, sum(l_extendedprice / l_quantity) FILTER (WHERE l_quantity <> 0) \
         FROM lineitem GROUP BY l_suppkey",
    ),
    ("CAST(DECIMAL AS BIGINT), rounded", "SELECT max(CAST(l_extendedprice AS BIGINT)) FROM lineitem"),
    ("a regular expression", "SELECT count(*) FROM lineitem WHERE l_comment ~ 'foxes.*deposits'"),
    (
        "a condition that can fail",
        "SELECT count(*) FROM lineitem WHERE l_quantity <> 0 AND l_extendedprice / l_quantity > 1500",
    ),
    (
        "a projection above its filter",
        "SELECT sum(p) FROM (SELECT l_quantity, l_extendedprice * 2 AS p FROM lineitem \
         WHERE l_quantity > 25) q",
    ),
    (
        "NOT IN with three values",
        "SELECT count(*) FROM lineitem WHERE l_partkey NOT IN (SELECT p_partkey FROM part WHERE p_size < 3)",
    ),
    (
        "a join whose tables have equal names",
        "SELECT count(*) FROM lineitem a JOIN lineitem b ON a.l_orderkey = b.l_orderkey \
         AND a.l_linenumber = b.l_linenumber WHERE b.l_quantity > 49",
    ),
    (
        "ORDER BY with OFFSET below an aggregation",
        "SELECT max(o_totalprice) FROM (SELECT o_totalprice FROM orders ORDER BY o_orderdate, o_orderkey \
         OFFSET 1000000) q",
    ),
];

/// Runs each query, in alternation with the peer.
pub(crate) async fn run(wire: &mut Wire, peer: &Peer, scale: Scale, report: &mut Report) -> Result<()> {
    for (what, sql) in QUERIES {
        let command = ad_hoc(sql);
        let (mut ours, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..scale.rounds {
            let begin = Instant::now();
            wire.count(&command).await?;
            ours.push(begin.elapsed().as_secs_f64());
            let begin = Instant::now();
            peer.count(sql).await?;
            peers.push(begin.elapsed().as_secs_f64());
        }
        let (ours, peers) = (median(ours), median(peers));
        report.add(Row {
            id: "C7",
            what: format!("{what}: `{sql}`"),
            measured: format!("{:.1} ms", ours * 1e3),
            floor: format!("DataFusion in process on the same Parquet: {:.1} ms", peers * 1e3),
            ratio: ratio(ours, peers),
            target: "",
            met: None,
        });
    }
    Ok(())
}
