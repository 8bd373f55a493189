//! Measures KalamDB against its floors, in one run, and prints one table.
//!
//! ```text
//! cargo run --release -p kalamdb-benches              # make bench: some minutes
//! cargo run -p kalamdb-benches -- --quick             # a smoke test: seconds, figures mean nothing
//! cargo run --release -p kalamdb-benches -- B1 D1     # only these
//! ```
//!
//! Set-up: one process. The database server, the floor server and the clients each have their own tokio
//! runtime with two threads and talk over loopback TCP. The floor is a tonic server that answers the same
//! RPCs with constants. Contestants alternate in short rounds, so a noisy neighbour slows both. Each question
//! has its own file. No figure fails a run.

mod a1_schema;
mod b5_ingest;
mod b_insert;
mod b_point;
mod c3_hot_scan;
mod c5_segments;
mod c6_users;
mod c7_prices;
mod c_tpch;
mod d1_live;
mod e_idle;
mod floor;
mod host;
mod load;
mod peer;
mod report;
mod tpch;
mod w_latency;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use report::Report;

/// The result of a benchmark step; any error ends the run.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Measures KalamDB against its floors and prints a markdown table.
#[derive(Parser)]
struct Arguments {
    /// Runs everything only briefly: shows that the benchmarks work, measures nothing.
    #[arg(long)]
    quick: bool,
    /// File for the plot of W1; without it no plot is written.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Scale factor of TPC-H, instead of 1.
    #[arg(long)]
    scale_factor: Option<f64>,
    /// Ids to run, such as B1; all when none is given.
    only: Vec<String>,
}

/// Durations and sizes of a run.
#[derive(Clone, Copy)]
struct Scale {
    /// Duration of one contestant's round.
    round: Duration,
    /// Rounds of each contestant.
    rounds: usize,
    /// Rows of the table for point lookups.
    point_rows: u64,
    /// Rows of one ingest statement.
    ingest_rows: usize,
    /// Ingest statements.
    ingests: usize,
    /// Rows of the table that C3 scans.
    hot_rows: u64,
    /// Tables of A3.
    tables: usize,
    /// Repetitions in benchmarks that run a fixed number of calls.
    repeats: usize,
    /// Scale factor of TPC-H.
    scale_factor: f64,
    /// Rows of each segment of C5.
    segment_rows: usize,
    /// Users of C6.
    users: u64,
    /// Rows of W1's table when its flush begins.
    moved_rows: usize,
}

impl Scale {
    const FULL: Self = Self {
        round: Duration::from_millis(1_000),
        rounds: 3,
        point_rows: 100_000,
        ingest_rows: 250_000,
        ingests: 4,
        hot_rows: 1_000_000,
        tables: 1_000,
        repeats: 1_000,
        scale_factor: 1.0,
        segment_rows: 10_000,
        users: 100_000,
        moved_rows: 2_000_000,
    };
    const QUICK: Self = Self {
        round: Duration::from_millis(100),
        rounds: 1,
        point_rows: 1_000,
        ingest_rows: 5_000,
        ingests: 2,
        hot_rows: 20_000,
        tables: 20,
        repeats: 50,
        scale_factor: 0.01,
        segment_rows: 500,
        users: 200,
        moved_rows: 10_000,
    };
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut scale = if arguments.quick { Scale::QUICK } else { Scale::FULL };
    scale.scale_factor = arguments.scale_factor.unwrap_or(scale.scale_factor);
    let wanted = |id: &str| {
        arguments.only.is_empty() || arguments.only.iter().any(|only| only.eq_ignore_ascii_case(id))
    };
    let clients = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let kalam = host::Kalam::start()?;
    let floor = floor::Floor::start()?;
    let mut report = Report::new(arguments.quick);

    if ["A1", "A2", "A3", "A4"].into_iter().any(wanted) {
        clients.block_on(a1_schema::run(&kalam, scale, &mut report))?;
    }
    if ["B1", "B2"].into_iter().any(wanted) {
        clients.block_on(b_point::run(&kalam, &floor, scale, &mut report))?;
    }
    if ["B3", "B4"].into_iter().any(wanted) {
        clients.block_on(b_insert::run(&kalam, &floor, scale, &mut report))?;
    }
    if wanted("B5") {
        clients.block_on(b5_ingest::run(&kalam, &floor, scale, &mut report))?;
    }
    if wanted("C3") {
        kalam.runtime().block_on(c3_hot_scan::run(&kalam, scale, &mut report))?;
    }
    if wanted("D1") {
        clients.block_on(d1_live::run(&kalam, &floor, scale, &mut report))?;
    }
    if ["C1", "C2", "C4", "C7"].into_iter().any(wanted) {
        clients.block_on(c_tpch::run(&kalam, scale, wanted, &mut report))?;
    }
    if wanted("C5") {
        // With a check every hour, no compaction starts during the run.
        let own = host::Kalam::start_with(|config| config.flush_check_interval_ms = 3_600_000)?;
        clients.block_on(c5_segments::run(&own, scale, &mut report))?;
        own.stop()?;
    }
    if wanted("C6") {
        clients.block_on(c6_users::run(&kalam, scale, &mut report))?;
    }
    if wanted("W1") {
        clients.block_on(w_latency::run(&kalam, scale, arguments.plot.as_deref(), &mut report))?;
    }
    if wanted("E1") {
        clients.block_on(e_idle::run(scale, &mut report))?;
    }
    report.print();
    floor.stop();
    kalam.stop()
}
