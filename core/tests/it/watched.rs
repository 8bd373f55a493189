//! One user's rows of a table `t (id BIGINT PRIMARY KEY, v TEXT)`, read and followed during writes and moves.
//!
//! A reader asks again and again. Each answer must show one state of the rows, no older than the last state
//! acknowledged before the question and than the reader's last answer. A subscriber holds the rows of the
//! commit at each frontier. No commit reports a row it did not change: flushes and compactions report none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::Int64Type;
use datafusion::common::ScalarValue;
use futures::StreamExt;
use kalamdb_core::ids::Seq;
use kalamdb_core::live_query::{FrameBody, SubscribeRequest, SubscribeStart};
use kalamdb_core::{Database, Session};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::live::client::Client;
use crate::session::rows;

/// The rows by their keys.
pub(crate) type State = BTreeMap<i64, String>;

/// A query, and its answer for a state.
pub(crate) struct Question {
    pub(crate) sql: &'static str,
    pub(crate) answer: fn(&State) -> Vec<String>,
}

fn line((id, value): (&i64, &String)) -> String {
    format!("{id}|{value}")
}

pub(crate) const QUESTIONS: [Question; 7] = [
    Question { sql: "SELECT * FROM t ORDER BY id", answer: |state| state.iter().map(line).collect() },
    Question {
        sql: "SELECT * FROM t ORDER BY id DESC LIMIT 3",
        answer: |state| state.iter().rev().take(3).map(line).collect(),
    },
    Question {
        sql: "SELECT * FROM t WHERE id >= 20 AND id < 40 ORDER BY id",
        answer: |state| state.range(20..40).map(line).collect(),
    },
    Question {
        sql: "SELECT count(*), count(DISTINCT id) FROM t",
        answer: |state| vec![format!("{0}|{0}", state.len())],
    },
    Question { sql: "SELECT * FROM t WHERE id = 0", answer: |state| state.range(0..1).map(line).collect() },
    Question {
        sql: "SELECT * FROM t WHERE id = 30",
        answer: |state| state.range(30..31).map(line).collect(),
    },
    Question {
        sql: "SELECT * FROM t WHERE id = 1030",
        answer: |state| state.range(1030..1031).map(line).collect(),
    },
];

/// The history of the rows.
pub(crate) struct History {
    /// The state after each statement, from the empty one on; the last may be that of a running statement.
    states: Vec<State>,
    /// The last state whose statement is acknowledged.
    acknowledged: usize,
    /// The commits of successful statements, with the states after them.
    commits: BTreeMap<Seq, usize>,
}

impl History {
    /// Returns the current rows.
    pub(crate) fn now(&self) -> State {
        self.states[self.acknowledged].clone()
    }

    /// Notes that a statement begins, which leads to `after`.
    pub(crate) fn begin(&mut self, after: State) {
        self.states.push(after);
    }

    /// Notes that the statement ended with a commit, or changed nothing.
    pub(crate) fn acknowledge(&mut self, commit: Option<Seq>) {
        self.acknowledged = self.states.len() - 1;
        if let Some(seq) = commit {
            self.commits.insert(seq, self.acknowledged);
        }
    }

    fn at(&self, seq: Seq) -> &State {
        let commit = self.commits.range(..=seq).next_back();
        &self.states[commit.map_or(0, |(_, state)| *state)]
    }
}

/// One user's history and its watchers.
pub(crate) struct Watched {
    pub(crate) history: Arc<Mutex<History>>,
    /// `None` while it follows.
    follower: Option<Follower>,
    watching: Option<Watching>,
}

struct Watching {
    stop: CancellationToken,
    goal: watch::Sender<Option<Seq>>,
    reader: JoinHandle<()>,
    follower: JoinHandle<Follower>,
}

impl Watched {
    pub(crate) fn begin(database: &Database, user: &str) -> Self {
        let history = History { states: vec![State::new()], acknowledged: 0, commits: BTreeMap::new() };
        let mut watched = Self {
            history: Arc::new(Mutex::new(history)),
            follower: Some(Follower::default()),
            watching: None,
        };
        watched.resume(database, user);
        watched
    }

    pub(crate) fn resume(&mut self, database: &Database, user: &str) {
        let (stop, (goal, goals)) = (CancellationToken::new(), watch::channel(None));
        let session = || database.session_for(user).unwrap();
        let reader = read(session(), Arc::clone(&self.history), stop.clone());
        let follower = self.follower.take().unwrap().follow(session(), goals);
        self.watching =
            Some(Watching { stop, goal, reader: tokio::spawn(reader), follower: tokio::spawn(follower) });
    }

    /// Waits until the subscriber has everything, then ends the watching.
    pub(crate) async fn end(&mut self, database: &Database) {
        let watching = self.watching.take().unwrap();
        watching.goal.send_replace(Some(database.seq()));
        watching.stop.cancel();
        watching.reader.await.unwrap();
        self.follower = Some(watching.follower.await.unwrap());
    }

    /// Compares the rows that the subscriber held with the history.
    pub(crate) fn check(&mut self) {
        let (history, follower) = (self.history.lock(), self.follower.take().unwrap());
        assert!(!follower.client.checkpoints.is_empty());
        for (seq, held) in &follower.client.checkpoints {
            let text = |(id, value): (&i64, &String)| {
                let row = vec![
                    format!("{:?}", ScalarValue::Int64(Some(*id))),
                    format!("{:?}", ScalarValue::Utf8(Some(value.clone()))),
                ];
                (row, 1)
            };
            let expected: BTreeMap<_, _> = history.at(*seq).iter().map(text).collect();
            assert_eq!(*held, expected, "at commit {seq}");
        }
        let commits: BTreeSet<Seq> = history.commits.keys().copied().collect();
        let others: Vec<_> = follower.told_of.difference(&commits).collect();
        assert!(others.is_empty(), "commits {others:?} changed no row");
    }
}

async fn read(session: Session, history: Arc<Mutex<History>>, stop: CancellationToken) {
    let mut last = 0;
    for question in QUESTIONS.iter().cycle() {
        if stop.is_cancelled() {
            return;
        }
        let first = history.lock().acknowledged.max(last);
        let answer = rows(&session, question.sql, ()).await;
        let history = history.lock();
        let state =
            (first..history.states.len()).find(|state| (question.answer)(&history.states[*state]) == answer);
        last = state.unwrap_or_else(|| {
            panic!("{}: {answer:?} is of no state from {:?} on", question.sql, history.states[first])
        });
    }
}

/// A subscriber and the commits it was told of.
#[derive(Default)]
struct Follower {
    client: Client,
    told_of: BTreeSet<Seq>,
}

impl Follower {
    /// Follows until it has reached the goal.
    async fn follow(mut self, session: Session, mut goal: watch::Receiver<Option<Seq>>) -> Self {
        let mut request = SubscribeRequest::new("SELECT id, v FROM t");
        // Each commit is reported at once, even one that changes nothing.
        request.heartbeat = Duration::ZERO;
        if let Some(token) = &self.client.token {
            request.start = SubscribeStart::Token(token.clone());
        }
        let mut stream = session.subscribe(request).await.unwrap();
        while goal.borrow_and_update().is_none_or(|goal| self.client.complete_through < goal) {
            tokio::select! {
                frame = tokio::time::timeout(Duration::from_secs(20), stream.next()) => {
                    let frame = frame.expect("a frame in time").expect("a frame").unwrap();
                    if let FrameBody::Delta(rows) = &frame.body {
                        self.told_of.extend(seqs(&rows.batch().unwrap()));
                    }
                    self.client.take(&frame).unwrap();
                }
                changed = goal.changed() => changed.unwrap(),
            }
        }
        self
    }
}

fn seqs(batch: &RecordBatch) -> Vec<Seq> {
    let seqs = batch.column(1).as_primitive::<Int64Type>().values();
    seqs.iter().map(|seq| Seq(u64::try_from(*seq).unwrap())).collect()
}
