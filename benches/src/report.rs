//! The table that a run prints, and its few statistics.

use std::time::Duration;

/// One measurement and its comparison.
pub(crate) struct Row {
    /// The target's id.
    pub(crate) id: &'static str,
    /// The question.
    pub(crate) what: String,
    /// The answer.
    pub(crate) measured: String,
    /// The same question put to the floor.
    pub(crate) floor: String,
    /// Measured over floor, in the direction of the target.
    pub(crate) ratio: Option<f64>,
    /// The target.
    pub(crate) target: &'static str,
    /// Whether the target is met; `None` when the row has no target.
    pub(crate) met: Option<bool>,
}

/// Collects rows and prints them at the end.
pub(crate) struct Report {
    quick: bool,
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(quick: bool) -> Self {
        Self { quick, rows: Vec::new() }
    }

    /// Adds a row and shows it on stderr at once.
    pub(crate) fn add(&mut self, row: Row) {
        eprintln!("{}: {}: {}", row.id, row.what, row.measured);
        self.rows.push(row);
    }

    pub(crate) fn print(&self) {
        if self.quick || cfg!(debug_assertions) {
            println!(
                "These figures come from a quick run or an unoptimised build: they show that the \
                 benchmarks work, nothing else.\n"
            );
        }
        println!("{}\n", machine());
        println!("| id | what | measured | floor | ratio | target | met |");
        println!("|---|---|---|---|---|---|---|");
        for row in &self.rows {
            let ratio = row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}x"));
            let met = match row.met {
                Some(true) => "yes",
                Some(false) => "no",
                None => "",
            };
            println!(
                "| {} | {} | {} | {} | {ratio} | {} | {met} |",
                row.id, row.what, row.measured, row.floor, row.target
            );
        }
    }
}

fn machine() -> String {
    let threads = std::thread::available_parallelism().map_or(0, usize::from);
    let model = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("an unknown processor", |rest| rest.trim_start_matches([' ', '\t', ':']));
    format!(
        "{threads} hardware threads, {model}; server, floor and clients in one process, each with its own \
         runtime of 2 threads"
    )
}

/// Durations of single operations.
#[derive(Default)]
pub(crate) struct Samples {
    durations: Vec<Duration>,
}

impl Samples {
    pub(crate) fn push(&mut self, duration: Duration) {
        self.durations.push(duration);
    }

    pub(crate) fn append(&mut self, mut other: Samples) {
        self.durations.append(&mut other.durations);
    }

    pub(crate) fn len(&self) -> usize {
        self.durations.len()
    }

    /// Returns the duration that `percent` of the operations did not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.durations.clone();
        sorted.sort_unstable();
        let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(index).copied().unwrap_or_default()
    }

    pub(crate) fn summary(&self) -> String {
        format!("p50 {}, p99 {}", show(self.percentile(50)), show(self.percentile(99)))
    }
}

/// Returns the middle value of several rounds.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Formats a duration with a fitting unit.
pub(crate) fn show(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    match nanos {
        0..1_000 => format!("{nanos} ns"),
        1_000..1_000_000 => format!("{:.1} us", duration.as_secs_f64() * 1e6),
        _ => format!("{:.2} ms", duration.as_secs_f64() * 1e3),
    }
}

/// Formats a rate with a fitting unit.
pub(crate) fn rate(per_second: f64) -> String {
    if per_second >= 1e6 {
        format!("{:.2} M/s", per_second / 1e6)
    } else if per_second >= 1e4 {
        format!("{:.1} k/s", per_second / 1e3)
    } else {
        format!("{per_second:.0}/s")
    }
}

/// Returns `measured / floor`, or `None` when the floor is not positive.
pub(crate) fn ratio(measured: f64, floor: f64) -> Option<f64> {
    (floor > 0.0).then(|| measured / floor)
}
