//! Whether the server can serve, tried out again and again: both health checks say what the last try found.
//!
//! A flag that somebody must set is not enough: a thread that has died or is stuck sets none. So a try sends
//! work through everything that a client's call needs, and waits for it only so long.
//!
//! Invariant: asking for the health costs nothing and waits for nothing, however busy the server is.

use std::convert::Infallible;
use std::time::Duration;

use kalamdb_core::Database;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

/// How often the server is tried out.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long a call may wait for a thread.
const CALL_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long a commit may wait for the sequencer, and a statement for the engine.
const WORK_WAIT_MAX: Duration = Duration::from_secs(2);

/// Why the server cannot serve, in no particular order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The threads that answer calls do not.
    CallsAreStuck,
    /// The threads that run statements do not.
    StatementsAreStuck,
    /// The sequencer does not answer.
    CommitsAreStuck,
    /// The sequencer's thread has ended.
    SequencerHasEnded,
    /// A failed write awaits a reopening, or the disk is full.
    WritesAreRefused,
}

impl Fault {
    /// Returns the fault in words for an operator.
    pub fn message(self) -> &'static str {
        match self {
            Self::CallsAreStuck => "calls are not answered: all threads for them are busy",
            Self::StatementsAreStuck => "statements are not run: all threads for them are busy",
            Self::CommitsAreStuck => "writes are not answered: the disk or a commit is stuck",
            Self::SequencerHasEnded => "writes are refused: the sequencer has ended; restart the server",
            Self::WritesAreRefused => "writes are refused: the disk is full, or a write failed",
        }
    }
}

/// The health of a server, as of the last try.
#[derive(Clone, Debug)]
pub struct Health(watch::Receiver<Vec<Fault>>);

impl Health {
    /// Returns what keeps the server from serving; nothing if it is well.
    pub fn faults(&self) -> Vec<Fault> {
        self.0.borrow().clone()
    }

    /// Returns a health that a test decides.
    #[cfg(test)]
    pub(crate) fn for_test() -> (watch::Sender<Vec<Fault>>, Self) {
        let found = watch::Sender::new(Vec::new());
        let health = Self(found.subscribe());
        (found, health)
    }

    /// Waits until the faults have changed since the last call.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // The probe has ended with the server, so nothing changes any more.
            std::future::pending::<()>().await;
        }
    }
}

/// Tries out a server.
pub(crate) struct Probe {
    found: watch::Sender<Vec<Fault>>,
}

impl Probe {
    /// Creates a probe that has found nothing yet.
    pub(crate) fn new() -> Self {
        Self { found: watch::Sender::new(Vec::new()) }
    }

    /// Returns a reader of what the probe finds.
    pub(crate) fn health(&self) -> Health {
        Health(self.found.subscribe())
    }

    /// Tries out the server while it is polled. Calls run on `calls`.
    pub(crate) async fn run(&self, database: &Database, calls: &Handle) -> Infallible {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let faults = faults(database, calls).await;
            self.found.send_if_modified(|found| {
                if *found == faults {
                    return false;
                }
                match faults.as_slice() {
                    [] => info!("the server is healthy again"),
                    faults => warn!(?faults, "the server is not healthy"),
                }
                *found = faults;
                true
            });
        }
    }
}

/// Tries out everything at the same time.
async fn faults(database: &Database, calls: &Handle) -> Vec<Fault> {
    let context = database.context();
    let (call, statement, commit) = tokio::join!(
        timeout(CALL_WAIT_MAX, calls.spawn(async {})),
        timeout(WORK_WAIT_MAX, context.engine_threads.ping()),
        timeout(WORK_WAIT_MAX, context.committer.ping()),
    );
    // Only the time counts. An error is an answer: the database is closing.
    let mut faults = Vec::new();
    if call.is_err() {
        faults.push(Fault::CallsAreStuck);
    }
    if statement.is_err() {
        faults.push(Fault::StatementsAreStuck);
    }
    if context.committer.sequencer_has_ended() {
        faults.push(Fault::SequencerHasEnded);
    } else if commit.is_err() {
        faults.push(Fault::CommitsAreStuck);
    } else if !context.committer.accepts_writes() {
        faults.push(Fault::WritesAreRefused);
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_healthy_server_has_no_faults_and_a_closed_database_is_not_stuck() {
        let database = Database::open_in_memory().await.unwrap();
        assert!(faults(&database, &Handle::current()).await.is_empty());
        database.shutdown().await.unwrap();
        assert!(faults(&database, &Handle::current()).await.is_empty());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn calls_that_find_no_thread_are_noticed_and_so_is_their_return() {
        let database = Database::open_in_memory().await.unwrap();
        let calls = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (ends, end) = std::sync::mpsc::channel::<()>();
        calls.spawn(async move { end.recv().is_err() });
        let probe = Probe::new();
        let mut health = probe.health();
        let (database_of_probe, handle) = (database.clone(), calls.handle().clone());
        let probing = tokio::spawn(async move { probe.run(&database_of_probe, &handle).await });
        health.changed().await;
        assert_eq!(health.faults(), [Fault::CallsAreStuck]);
        drop(ends);
        health.changed().await;
        assert!(health.faults().is_empty());
        probing.abort();
        calls.shutdown_background();
        database.shutdown().await.unwrap();
    }
}
