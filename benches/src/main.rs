//! Measures KalamDB against its floors, in one run, and prints one table.
//!
//! ```text
//! cargo run --release -p kalamdb-benches              # make bench: about a minute
//! cargo run -p kalamdb-benches -- --quick             # a smoke test: seconds, figures mean nothing
//! cargo run --release -p kalamdb-benches -- B1 D1     # only these
//! ```
//!
//! Set-up: one process; the database's server, the floor's server and the clients each have a tokio runtime of their own with
//! two threads, and talk over loopback TCP. The floor is a tonic server that answers the very same RPCs from constants. What
//! is compared alternates in short rounds, so a noisy neighbour hits both. One file per question. No figure fails a run.

mod a1_schema;
mod b5_ingest;
mod b_insert;
mod b_point;
mod c3_hot_scan;
mod d1_live;
mod floor;
mod host;
mod load;
mod report;
mod wire;

use std::time::Duration;

use clap::Parser;
use report::Report;

/// Whatever stops a benchmark.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Measures KalamDB against its floors and prints a markdown table.
#[derive(Parser)]
struct Arguments {
    /// Runs everything for a moment only: shows that it works, measures nothing.
    #[arg(long)]
    quick: bool,
    /// Ids to run, such as B1; all when none is given.
    only: Vec<String>,
}

/// How long and how much.
#[derive(Clone, Copy)]
struct Scale {
    /// One round of one contestant.
    round: Duration,
    /// Rounds of each contestant.
    rounds: usize,
    /// Rows of the table that is looked up in.
    point_rows: u64,
    /// Rows of one ingest statement.
    ingest_rows: usize,
    /// Ingest statements.
    ingests: usize,
    /// Rows of the table that C3 scans.
    hot_rows: u64,
    /// Tables of A3.
    tables: usize,
    /// Repetitions where a fixed number is counted.
    repeats: usize,
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
    };
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let scale = if arguments.quick { Scale::QUICK } else { Scale::FULL };
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
    report.print();
    floor.stop();
    kalam.stop()
}
