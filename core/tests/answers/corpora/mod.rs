//! Two corpora of queries with answers: SQLite's and DataFusion's. Each file runs in its own namespace, over
//! hot or flushed tables. Each record must be answered as it says, or is skipped for a reason in a TOML file
//! beside this one.

pub(crate) mod datafusion;
mod play;
mod records;
mod rules;
pub(crate) mod sqlite;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ::datafusion::arrow::array::RecordBatch;
use kalamdb_core::Database;
use md5::{Digest, Md5};
use parking_lot::Mutex;

use crate::guard::{Report, Run};
use crate::watch::Watch;
use play::Play;
use records::Sort;
use rules::Rules;

/// Files that run at the same time.
const PLAYERS: usize = 2;
/// How often a long run reports its progress.
const PROGRESS: Duration = Duration::from_secs(60);
/// From this percentage on, each reason must match a record.
const PERCENT_OF_ALL_REASONS: u64 = 20;

/// Compares an answer with the expected one. The error says how they differ.
type Compare = fn(&Wanted<'_>, &[RecordBatch]) -> Result<(), String>;

/// The expected answer of a query.
struct Wanted<'a> {
    sql: &'a str,
    types: &'a str,
    sort: Sort,
    expected: &'a str,
}

/// One run of one file.
#[derive(Clone)]
struct Part {
    file: String,
    is_flushed: bool,
    /// The share of its queries that is asked.
    share: f64,
    seed: u64,
}

struct Corpus {
    run: Run,
    rules: Rules,
    /// The engine name under which we read the files.
    engine: &'static str,
    compare: Compare,
    /// Reads the text of a file.
    load: Box<dyn Fn(&str) -> String + Send + Sync>,
    database: Database,
    report: Mutex<Report>,
    next: AtomicUsize,
    /// The parts that are running.
    playing: Mutex<[usize; PLAYERS]>,
    said_at: Mutex<Instant>,
}

/// Returns a folder in the user's home.
fn home(folder: &str) -> PathBuf {
    PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(folder)
}

/// Returns whether the values have the expected hash; `None` if the record lists the values themselves.
fn is_same_hash(expected: &str, values: &[String]) -> Option<bool> {
    let (count, hash) = expected.trim_end().split_once(" values hashing to ")?;
    let mut digest = Md5::new();
    for value in values {
        digest.update(value);
        digest.update("\n");
    }
    let found: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Some(count == values.len().to_string() && found == hash)
}

impl Corpus {
    async fn new(
        run: Run,
        rules: &str,
        engine: &'static str,
        compare: Compare,
        load: Box<dyn Fn(&str) -> String + Send + Sync>,
    ) -> Self {
        let first = usize::try_from(run.from).unwrap();
        Self {
            rules: Rules::new(rules),
            engine,
            compare,
            load,
            database: Database::open(crate::test_database::config()).await.unwrap(),
            report: Mutex::new(Report::new(&run)),
            next: AtomicUsize::new(first),
            playing: Mutex::new([first; PLAYERS]),
            said_at: Mutex::new(Instant::now()),
            run,
        }
    }

    /// Runs the parts, from the first one that the run asks for.
    async fn play(self, parts: Vec<Part>) -> Report {
        let corpus = Arc::new(self);
        let parts = Arc::new(parts);
        let players = (0..PLAYERS).map(|player| {
            let (corpus, parts) = (Arc::clone(&corpus), Arc::clone(&parts));
            tokio::spawn(async move { corpus.player(player, &parts).await })
        });
        for player in players.collect::<Vec<_>>() {
            player.await.unwrap();
        }
        let corpus = Arc::into_inner(corpus).expect("the players have ended");
        let mut report = corpus.report.into_inner();
        report.reasons = corpus.rules.counts();
        let is_whole = corpus.run.from == 0 && corpus.run.file.is_none();
        if is_whole && report.failures.is_empty() && corpus.run.percent >= PERCENT_OF_ALL_REASONS {
            let unmet = report.reasons.iter().filter(|(_, count)| **count == 0);
            let unmet: Vec<_> =
                unmet.map(|(reason, _)| format!("no record meets this reason: {reason}")).collect();
            report.failures.extend(unmet);
        }
        report
    }

    async fn player(&self, player: usize, parts: &[Part]) {
        let watch = Watch::start(format!("{} seed {}", self.run.guard, self.run.seed));
        while !self.report.lock().is_enough(&self.run) {
            let place = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = parts.get(place) else { break };
            if self.run.file.as_ref().is_some_and(|wanted| !part.file.contains(wanted.as_str())) {
                continue;
            }
            self.playing.lock()[player] = place;
            let text = (self.load)(&part.file);
            Play::new(self, part, place, &watch, &text).await.all().await;
            self.say_progress(parts.len());
        }
        self.playing.lock()[player] = usize::MAX;
    }

    fn say_progress(&self, parts: usize) {
        let mut said_at = self.said_at.lock();
        if said_at.elapsed() < PROGRESS {
            return;
        }
        *said_at = Instant::now();
        let from = self.playing.lock().iter().copied().min().unwrap_or_default();
        let report = self.report.lock();
        println!(
            "{} seed {}: {from} of {parts} files, {} records, {} failures; --from {from} goes on here",
            self.run.guard,
            self.run.seed,
            report.queries,
            report.failures.len()
        );
    }
}
