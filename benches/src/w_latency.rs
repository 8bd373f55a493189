//! W1: how long do single durable INSERTs take while their table is flushed and its segments are compacted?
//!
//! One embedded client inserts row after row. After a while a job flushes the table, then another one
//! compacts its segments. The plot shows the 50th and 99th percentile of each quarter of a second on a
//! logarithmic scale.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use kalamdb_core::ScalarValue;
use kalamdb_core::ids::JobId;
use tokio_util::sync::CancellationToken;

use crate::host::Kalam;
use crate::report::{Report, Row, Samples, ratio, show};
use crate::{Result, Scale};

/// The time that one point of the plot covers.
const BUCKET: Duration = Duration::from_millis(250);

/// A job, with its start and end since the beginning of the run.
struct Phase {
    name: &'static str,
    from: Duration,
    to: Duration,
}

pub(crate) async fn run(kalam: &Kalam, scale: Scale, plot: Option<&Path>, report: &mut Report) -> Result<()> {
    fill(kalam, scale).await?;
    let begin = Instant::now();
    let stop = CancellationToken::new();
    let writer = kalam.runtime().spawn(write(kalam.database().session_for("root")?, begin, stop.clone()));
    let mut phases = Vec::new();
    let calm = scale.round * 3;
    tokio::time::sleep(calm).await;
    for name in ["flush", "compaction"] {
        if name == "compaction" {
            // Compaction skips large segments without deleted rows.
            kalam.execute(&["DELETE FROM moved.t WHERE id % 1000 = 1"]).await?;
            tokio::time::sleep(calm).await;
        }
        let from = begin.elapsed();
        let table = {
            let snapshot = kalam.database().context().committer.snapshot();
            std::sync::Arc::clone(snapshot.catalog.table("moved", "t").ok_or("the table does not exist")?)
        };
        let jobs = &kalam.database().context().jobs;
        let job: JobId =
            if name == "flush" { jobs.flush(&table).await? } else { jobs.compact(&table).await? };
        jobs.wait(&job).await;
        phases.push(Phase { name, from, to: begin.elapsed() });
        tokio::time::sleep(calm).await;
    }
    stop.cancel();
    let samples = writer.await??;
    let during = |from: Duration, to: Duration| {
        let mut chosen = Samples::default();
        samples.iter().filter(|(at, _)| (from..to).contains(at)).for_each(|(_, took)| chosen.push(*took));
        chosen
    };
    let before = during(Duration::ZERO, calm);
    let mut measured = format!("before {}", before.summary());
    let mut worst = Duration::ZERO;
    for phase in &phases {
        let moving = during(phase.from, phase.to);
        worst = worst.max(moving.percentile(50));
        write!(measured, "; {} of {}: {}", phase.name, show(phase.to - phase.from), moving.summary())?;
    }
    report.add(Row {
        id: "W1",
        what: format!("single-row durable INSERTs, embedded, while {} rows are moved", scale.moved_rows),
        measured,
        floor: "the same table before".to_owned(),
        ratio: ratio(worst.as_secs_f64(), before.percentile(50).as_secs_f64()),
        target: "a picture: docs/write-latency.svg (the ratio is of medians)",
        met: None,
    });
    if let Some(path) = plot {
        std::fs::write(path, picture(&samples, &phases)?)?;
    }
    Ok(())
}

/// Fills the table and flushes half of its rows early, so that compaction has several segments to join.
async fn fill(kalam: &Kalam, scale: Scale) -> Result<()> {
    kalam
        .execute(&[
            "CREATE NAMESPACE moved",
            "CREATE TABLE moved.t (id BIGINT PRIMARY KEY, body TEXT, score DOUBLE) \
             WITH (FLUSH_POLICY = 'interval:86400')",
        ])
        .await?;
    // Each INSERT is small enough for its rows to be hot.
    let (parts, rows) = (20, scale.moved_rows);
    for part in 0..parts {
        let insert = format!(
            "INSERT INTO moved.t SELECT value, 'forty characters of text, give or take ' || \
             CAST(value AS TEXT), value / 8.0 FROM generate_series({}, {})",
            part * rows / parts + 1,
            (part + 1) * rows / parts
        );
        kalam.execute(&[&insert]).await?;
        if part == 4 || part == 9 {
            kalam.flush("moved", "t").await?;
        }
    }
    Ok(())
}

/// Inserts until `stop` fires; returns the start and the duration of each INSERT.
async fn write(
    session: kalamdb_core::Session,
    begin: Instant,
    stop: CancellationToken,
) -> Result<Vec<(Duration, Duration)>> {
    let prepared = session.prepare("INSERT INTO moved.t VALUES ($1, $2, $3)").await?;
    let mut samples = Vec::new();
    for id in 1_i64 << 40.. {
        if stop.is_cancelled() {
            break;
        }
        let values = vec![ScalarValue::from(id), ScalarValue::from("a new row"), ScalarValue::from(0.5)];
        let at = begin.elapsed();
        prepared.execute(values).await?.affected()?;
        samples.push((at, begin.elapsed() - at));
    }
    Ok(samples)
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 360.0;
/// Space for the labels on the left and below.
const MARGIN: f64 = 60.0;
/// Powers of ten on the latency axis, which starts at 0.1 ms.
const DECADES: f64 = 4.0;

/// Draws the samples as an SVG.
fn picture(samples: &[(Duration, Duration)], phases: &[Phase]) -> Result<String> {
    let end = samples.last().map_or(1.0, |(at, _)| at.as_secs_f64());
    let x = |at: f64| MARGIN + at / end * (WIDTH - MARGIN - 10.0);
    let y = |ms: f64| {
        HEIGHT - MARGIN - ((ms.max(0.1).log10() + 1.0) / DECADES).min(1.0) * (HEIGHT - MARGIN - 30.0)
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    for phase in phases {
        let (from, to) = (x(phase.from.as_secs_f64()), x(phase.to.as_secs_f64()));
        let (height, width) = (HEIGHT - MARGIN - 30.0, (to - from).max(1.0));
        writeln!(
            svg,
            "<rect x=\"{from:.1}\" y=\"30\" width=\"{width:.1}\" height=\"{height}\" fill=\"#eeeeee\"/>\n\
             <text x=\"{from:.1}\" y=\"24\">{}, {:.1} s</text>",
            phase.name,
            (phase.to - phase.from).as_secs_f64()
        )?;
    }
    for (ms, label) in [(0.1, "0.1 ms"), (1.0, "1 ms"), (10.0, "10 ms"), (100.0, "100 ms"), (1_000.0, "1 s")]
    {
        let (at, right) = (y(ms), WIDTH - 10.0);
        writeln!(
            svg,
            "<line x1=\"{MARGIN}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#cccccc\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            MARGIN - 6.0,
            at + 4.0
        )?;
    }
    let step = (end / 10.0).ceil().max(1.0);
    for second in (0..).map(|number| f64::from(number) * step).take_while(|second| *second <= end) {
        let below = HEIGHT - MARGIN + 18.0;
        writeln!(svg, "<text x=\"{:.1}\" y=\"{below}\" text-anchor=\"middle\">{second} s</text>", x(second))?;
    }
    for (percent, color, place) in [(99, "#c0392b", 260.0), (50, "#1f5fa8", 60.0)] {
        let mut points = String::new();
        for (middle, bucket) in buckets(samples) {
            let ms = bucket.percentile(percent).as_secs_f64() * 1e3;
            write!(points, "{:.1},{:.1} ", x(middle.as_secs_f64()), y(ms))?;
        }
        writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>\n\
             <text x=\"{place}\" y=\"{}\" fill=\"{color}\">{percent}th percentile of 250 ms</text>",
            points.trim_end(),
            HEIGHT - 14.0
        )?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// Groups the latencies by time; each group comes with the middle of its time.
fn buckets(samples: &[(Duration, Duration)]) -> Vec<(Duration, Samples)> {
    let mut buckets: Vec<(Duration, Samples)> = Vec::new();
    for (at, took) in samples {
        let middle =
            BUCKET * u32::try_from(at.as_nanos() / BUCKET.as_nanos()).unwrap_or(u32::MAX) + BUCKET / 2;
        match buckets.last_mut() {
            Some((last, bucket)) if *last == middle => bucket.push(*took),
            _ => {
                let mut bucket = Samples::default();
                bucket.push(*took);
                buckets.push((middle, bucket));
            }
        }
    }
    buckets
}
