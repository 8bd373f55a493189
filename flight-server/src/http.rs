//! Health and metrics over HTTP, for load balancers and Prometheus.
//!
//! Not here: anything that reads or writes rows. These pages need no credentials, so they must not name a
//! user, a table or a statement; they show only counts of the whole process.

use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use kalamdb_core::Database;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::probe::Health;

/// The content type of Prometheus' text format.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A bound HTTP port that does not serve yet.
pub struct HttpServer {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
    shutdown: CancellationToken,
}

impl HttpServer {
    /// Binds the port. `health_of_server` is that of the server beside it.
    ///
    /// # Errors
    /// When the address is in use or does not belong to this machine.
    pub async fn bind(
        listen: SocketAddr,
        database: Database,
        health_of_server: Health,
        shutdown: CancellationToken,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {listen} for HTTP: {error}"))
        })?;
        let address = listener.local_addr()?;
        let health_page: Router = Router::new().route("/healthz", get(health)).with_state(health_of_server);
        let router = Router::new().route("/metrics", get(metrics)).with_state(database).merge(health_page);
        Ok(Self { listener, address, router, shutdown })
    }

    /// Returns the bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until shutdown.
    pub fn serve(self) -> impl Future<Output = io::Result<()>> + Send {
        let Self { listener, router, shutdown, .. } = self;
        async move { axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await }
    }
}

/// `ok`, or 503 for a server that only a restart can help; then a line for each fault that its probe found.
async fn health(State(health): State<Health>) -> (StatusCode, String) {
    let faults = health.faults();
    let lines: String = faults.iter().map(|fault| format!("{}\n", fault.message())).collect();
    match faults.iter().any(|fault| fault.is_fatal()) {
        false => (StatusCode::OK, format!("ok\n{lines}")),
        true => (StatusCode::SERVICE_UNAVAILABLE, lines),
    }
}

async fn metrics(State(database): State<Database>) -> impl IntoResponse {
    ([(CONTENT_TYPE, PROMETHEUS_TEXT)], render(&database))
}

/// One value with its meaning.
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    value: u64,
}

/// Whether a value only grows.
#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

fn render(database: &Database) -> String {
    let mut text = String::new();
    for Metric { name, help, kind, value } in collect(database) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
    text
}

fn counter(name: &'static str, help: &'static str, value: u64) -> Metric {
    Metric { name, help, kind: Kind::Counter, value }
}

fn gauge(name: &'static str, help: &'static str, value: u64) -> Metric {
    Metric { name, help, kind: Kind::Gauge, value }
}

fn collect(database: &Database) -> Vec<Metric> {
    let context = database.context();
    let schemas = database.registry_counters();
    let live = context.live_queries.counters();
    let storage = context.committer.storage_metrics();
    let hot = context.committer.snapshot().hot.counters();
    let statements = context.admission.counters();
    let given_up = context.engine_threads.given_up() as u64;
    vec![
        gauge("kalamdb_up", "1 while the process serves.", 1),
        counter("kalamdb_commit_seq", "Number of the newest commit.", database.seq().0),
        gauge("kalamdb_commit_queue_length", "Queued write sets.", context.committer.queue_len() as u64),
        gauge("kalamdb_statements_running", "Statements that have a slot.", statements.running as u64),
        gauge("kalamdb_statements_waiting", "Statements that wait for a slot.", statements.waiting as u64),
        gauge("kalamdb_given_up_threads", "Threads of statements that do not end.", given_up),
        gauge("kalamdb_storage_disk_bytes", "Bytes of live data files, without the log.", storage.disk_bytes),
        gauge("kalamdb_storage_memtable_bytes", "Bytes in memtables.", storage.memtable_bytes),
        gauge("kalamdb_storage_cache_bytes", "Bytes in the block cache.", storage.cache_bytes),
        gauge("kalamdb_hot_tier_bytes", "Bytes of hot rows kept as columns.", hot.bytes as u64),
        counter("kalamdb_hot_tier_hits_total", "Row ranges that scans found in memory.", hot.hits),
        counter("kalamdb_hot_tier_misses_total", "Row ranges that scans read from the store.", hot.misses),
        gauge("kalamdb_storage_compactions_running", "Running compactions.", storage.compactions_running),
        gauge("kalamdb_change_log_bytes", "Approximate bytes of the change log.", storage.log_bytes),
        gauge("kalamdb_live_subscriptions", "Running live queries.", live.subscriptions as u64),
        gauge("kalamdb_live_distinct_queries", "Distinct running live queries.", live.groups as u64),
        gauge("kalamdb_live_ring_bytes", "Bytes of frames kept for subscribers.", live.ring_bytes as u64),
        gauge("kalamdb_live_held_bytes", "Bytes of frames that wait to be sent.", live.held_bytes as u64),
        counter(
            "kalamdb_live_evictions_total",
            "Frames that were dropped before they were sent, to be made again.",
            live.evictions,
        ),
        gauge("kalamdb_live_frontier_seq", "Newest commit matched with all live queries.", live.frontier.0),
        counter(
            "kalamdb_live_evaluations_total",
            "Evaluations of a query over new commits.",
            live.evaluations,
        ),
        counter("kalamdb_live_frames_total", "Frames delivered to subscribers.", live.frames),
        counter(
            "kalamdb_live_log_reads_total",
            "Reads of the change log, for slow subscribers and for large commits.",
            live.log_reads,
        ),
        counter("kalamdb_live_resets_total", "Live queries restarted from a new snapshot.", live.resets),
        counter("kalamdb_schema_hits_total", "Schema lookups that found a memoized schema.", schemas.hits),
        counter(
            "kalamdb_schema_misses_total",
            "Schema lookups that found no memoized schema.",
            schemas.misses,
        ),
        counter("kalamdb_schema_builds_total", "Arrow schemas built.", schemas.builds),
        counter("kalamdb_schema_encodings_total", "Arrow schemas encoded for the wire.", schemas.encodings),
        gauge("kalamdb_schema_bytes", "Approximate bytes of memoized schemas.", schemas.bytes as u64),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Fault, Part};

    #[tokio::test]
    async fn health_names_every_fault_and_is_503_only_for_a_fatal_one() {
        let (found, health_of_server) = Health::for_test();
        let page = || health(State(health_of_server.clone()));
        assert_eq!(page().await, (StatusCode::OK, "ok\n".to_owned()));
        let slow = Fault::Slow(Part::Statements);
        found.send_replace(vec![slow, Fault::WritesAreRefused]);
        let lines = format!("{}\n{}\n", slow.message(), Fault::WritesAreRefused.message());
        assert_eq!(page().await, (StatusCode::OK, format!("ok\n{lines}")));
        let stuck = Fault::Stuck(Part::Statements);
        found.send_replace(vec![stuck]);
        assert_eq!(page().await, (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", stuck.message())));
    }

    #[tokio::test]
    async fn metrics_are_prometheus_text() {
        let database = Database::open_in_memory().await.expect("database");
        let text = render(&database);
        assert!(text.contains("# TYPE kalamdb_commit_seq counter\nkalamdb_commit_seq "), "{text}");
        assert!(text.contains("\nkalamdb_given_up_threads 0\n"), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.split_once(' ').expect("name and value");
            assert!(name.starts_with("kalamdb_") && value.parse::<u64>().is_ok(), "{line}");
        }
        database.shutdown().await.expect("shutdown");
    }
}
