//! Whether the server can serve, tried out again and again: both health checks say what the last try found.
//!
//! A flag that somebody must set is not enough: a thread that has died or is stuck sets none. So a try sends
//! work through everything that a client's call needs, and waits for it only so long. A part that does not
//! answer in time is *slow*: one large change, or many statements, may be ahead of the try. Only a part that
//! has done nothing at all for a minute is *stuck*, so no user's work makes the server look dead.
//!
//! Invariant: asking for the health costs nothing and waits for nothing, however busy the server is.

use std::convert::Infallible;
use std::time::{Duration, Instant};

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
/// A part that does nothing for so long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// A part of the server that calls need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The threads that answer calls.
    Calls,
    /// The threads that run statements.
    Statements,
    /// The sequencer.
    Commits,
}

/// What is wrong with the server, in no particular order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The part works, but did not answer the last try in time.
    Slow(Part),
    /// The part has done nothing for a minute.
    Stuck(Part),
    /// The sequencer's thread has ended.
    SequencerHasEnded,
    /// A failed write awaits a reopening, or the disk is full.
    WritesAreRefused,
}

impl Fault {
    /// Whether the server cannot serve, and only a restart can help.
    pub fn is_fatal(self) -> bool {
        matches!(self, Self::Stuck(_) | Self::SequencerHasEnded)
    }

    /// Returns the fault in words for an operator.
    pub fn message(self) -> &'static str {
        match self {
            Self::Slow(Part::Calls) => "calls are slow: all threads for them are busy",
            Self::Slow(Part::Statements) => "statements are slow: all threads for them are busy",
            Self::Slow(Part::Commits) => "writes are slow: a large one is ahead, or the disk is slow",
            Self::Stuck(Part::Calls) => "calls are not answered: no thread has been free for a minute",
            Self::Stuck(Part::Statements) => "statements are not run: none has gone on for a minute",
            Self::Stuck(Part::Commits) => "writes are not answered: the disk or a commit is stuck",
            Self::SequencerHasEnded => "writes are refused: the sequencer has ended; restart the server",
            Self::WritesAreRefused => "writes are refused: the disk is full, or a write failed",
        }
    }
}

/// The health of a server, as of the last try.
#[derive(Clone, Debug)]
pub struct Health(watch::Receiver<Vec<Fault>>);

impl Health {
    /// Returns what is wrong; nothing if the server is well.
    pub fn faults(&self) -> Vec<Fault> {
        self.0.borrow().clone()
    }

    /// Whether the server can serve, well or not.
    pub fn is_serving(&self) -> bool {
        !self.0.borrow().iter().any(|fault| fault.is_fatal())
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
    stuck_after: Duration,
}

impl Probe {
    /// Creates a probe that has found nothing yet.
    pub(crate) fn new() -> Self {
        Self { found: watch::Sender::new(Vec::new()), stuck_after: STUCK_AFTER }
    }

    /// Returns a reader of what the probe finds.
    pub(crate) fn health(&self) -> Health {
        Health(self.found.subscribe())
    }

    /// Tries out the server while it is polled. Calls run on `calls`.
    pub(crate) async fn run(&self, database: &Database, calls: &Handle) -> Infallible {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut paces = [Part::Calls, Part::Statements, Part::Commits].map(|part| Pace::new(part, self));
        loop {
            ticks.tick().await;
            let faults = faults(database, calls, &mut paces).await;
            self.found.send_if_modified(|found| {
                if *found == faults {
                    return false;
                }
                match faults.as_slice() {
                    [] => info!("the server is healthy again"),
                    faults if faults.iter().any(|fault| fault.is_fatal()) => {
                        warn!(?faults, "the server is not healthy");
                    }
                    faults => info!(?faults, "the server is slow or refuses writes"),
                }
                *found = faults;
                true
            });
        }
    }
}

/// How a part has answered so far.
struct Pace {
    part: Part,
    stuck_after: Duration,
    /// What it had done when it last did not answer.
    done: u64,
    /// Since when it has neither answered nor done anything.
    still_since: Option<Instant>,
}

impl Pace {
    fn new(part: Part, probe: &Probe) -> Self {
        Self { part, stuck_after: probe.stuck_after, done: 0, still_since: None }
    }

    /// Notes a try at `now`. `done` grows while the part works.
    fn note(&mut self, has_answered: bool, done: u64, now: Instant) -> Option<Fault> {
        if has_answered {
            self.still_since = None;
            return None;
        }
        let still_since = match self.still_since {
            Some(since) if self.done == done => since,
            _ => now,
        };
        (self.done, self.still_since) = (done, Some(still_since));
        let is_stuck = now.saturating_duration_since(still_since) >= self.stuck_after;
        Some(if is_stuck { Fault::Stuck(self.part) } else { Fault::Slow(self.part) })
    }
}

/// Tries out everything at the same time.
async fn faults(database: &Database, calls: &Handle, paces: &mut [Pace; 3]) -> Vec<Fault> {
    let context = database.context();
    let (call, statement, commit) = tokio::join!(
        timeout(CALL_WAIT_MAX, calls.spawn(async {})),
        timeout(WORK_WAIT_MAX, context.engine_threads.ping()),
        timeout(WORK_WAIT_MAX, context.committer.ping()),
    );
    let now = Instant::now();
    let [of_calls, of_statements, of_commits] = paces;
    // Only the time counts. An error is an answer: the database is closing.
    let mut faults = Vec::new();
    faults.extend(of_calls.note(call.is_ok(), 0, now));
    faults.extend(of_statements.note(statement.is_ok(), context.engine_threads.steps(), now));
    let slow = of_commits.note(commit.is_ok(), context.committer.steps(), now);
    if context.committer.sequencer_has_ended() {
        faults.push(Fault::SequencerHasEnded);
    } else if !context.committer.accepts_writes() {
        faults.push(Fault::WritesAreRefused);
    } else {
        faults.extend(slow);
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_healthy_server_has_no_faults_and_a_closed_database_is_not_stuck() {
        let database = Database::open_in_memory().await.unwrap();
        let probe = Probe::new();
        let mut paces = [Part::Calls, Part::Statements, Part::Commits].map(|part| Pace::new(part, &probe));
        assert!(faults(&database, &Handle::current(), &mut paces).await.is_empty());
        database.shutdown().await.unwrap();
        assert!(faults(&database, &Handle::current(), &mut paces).await.is_empty());
    }

    #[test]
    fn who_works_is_slow_and_only_who_does_nothing_for_long_is_stuck() {
        let mut pace = Pace::new(Part::Commits, &Probe::new());
        let (slow, stuck) = (Some(Fault::Slow(Part::Commits)), Some(Fault::Stuck(Part::Commits)));
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        // A long line of work: never stuck, however long the try waits.
        for done in 0..10 {
            assert_eq!(pace.note(false, done, at(done * 50)), slow);
        }
        assert_eq!(pace.note(false, 9, at(509)), slow);
        assert_eq!(pace.note(false, 9, at(510)), stuck);
        assert_eq!(pace.note(false, 10, at(511)), slow, "it goes on");
        assert_eq!(pace.note(true, 10, at(512)), None);
        assert_eq!(pace.note(false, 10, at(600)), slow, "the time counts from the last answer");
        assert_eq!(pace.note(false, 10, at(660)), stuck);
    }

    #[test]
    fn what_a_user_can_cause_is_not_fatal() {
        for part in [Part::Calls, Part::Statements, Part::Commits] {
            let (found, health) = Health::for_test();
            found.send_replace(vec![Fault::Slow(part), Fault::WritesAreRefused]);
            assert!(health.is_serving());
            found.send_replace(vec![Fault::WritesAreRefused, Fault::Stuck(part)]);
            assert!(!health.is_serving());
        }
        assert!(Fault::SequencerHasEnded.is_fatal());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn calls_that_find_no_thread_are_noticed_and_so_is_their_return() {
        let database = Database::open_in_memory().await.unwrap();
        let calls = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (ends, end) = std::sync::mpsc::channel::<()>();
        calls.spawn(async move { end.recv().is_err() });
        // Longer than one try, so that the first one finds the calls slow.
        let probe = Probe { stuck_after: CALL_WAIT_MAX, ..Probe::new() };
        let mut health = probe.health();
        let (database_of_probe, handle) = (database.clone(), calls.handle().clone());
        let probing = tokio::spawn(async move { probe.run(&database_of_probe, &handle).await });
        for fault in [Fault::Slow(Part::Calls), Fault::Stuck(Part::Calls)] {
            health.changed().await;
            assert_eq!(health.faults(), [fault]);
        }
        drop(ends);
        health.changed().await;
        assert!(health.faults().is_empty());
        probing.abort();
        calls.shutdown_background();
        database.shutdown().await.unwrap();
    }
}
