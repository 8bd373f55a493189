//! Many statements of one user at a time, from clients that vanish at any moment.
//!
//! The mix has the inputs whose end the server promises, so it grows with the promises.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use crate::bystander::Bystander;
use crate::fixture::{self, Fixture, GUEST};
use crate::guest::{self, Answer};
use crate::inputs::{Input, inputs};
use crate::process::{peak_during, resident, settled, until_idle};
use crate::promises::Promise;
use crate::report::Report;
use crate::{seed, size, turn};

/// Statements on one connection.
const PER_CLIENT: usize = 4;
/// How long the server may work after the last client.
const END_MAX: Duration = Duration::from_secs(5);
/// The life of a client and the patience of a statement.
const LIFE_MS: std::ops::Range<u64> = 50..5_000;
const PATIENCE_MS: std::ops::Range<u64> = 5..3_000;

/// How often each answer came.
type Answers = Arc<Mutex<BTreeMap<Answer, u64>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_who_vanish_stop_nobody() {
    let _turn = turn().await;
    let mut report = Report::new("mix");
    let seed = seed();
    report.note(format!("seed {seed} (KALAMDB_SEED)"));
    let guests = size(40, 200);
    let kept: Vec<Input> = inputs().into_iter().filter(|input| input.ends.is_kept()).collect();
    let waiting = inputs().len() - kept.len();
    report.note(format!("{guests} statements at a time, of {} kinds; {waiting} kinds wait", kept.len()));

    let fixture = Fixture::start(&[("query_memory_bytes", "268435456")]).await;
    let pid = fixture.pid();
    let token = fixture::log_in(&fixture.server.address, GUEST).await.expect("log in");
    let mut bystander = Bystander::of(&fixture).await;
    let idle = bystander.watch_for(Duration::from_secs(size(4, 20))).await;
    let before = resident(pid);

    let answers = Answers::default();
    let mut clients = JoinSet::new();
    for number in 0..guests / PER_CLIENT {
        let visit = Visit {
            address: fixture.server.address.clone(),
            token: token.clone(),
            inputs: kept.clone().into(),
            answers: Arc::clone(&answers),
        };
        clients.spawn(client(visit, seed.wrapping_add(number as u64)));
    }
    let (beside, peak) = peak_during(pid, bystander.watch_for(Duration::from_secs(size(15, 120)))).await;
    clients.shutdown().await;
    let end = until_idle(pid, END_MAX).await;

    beside.check(&mut report, &idle);
    let said = format!("work after the last client: {end:?}, at most {END_MAX:?}");
    report.check(Promise::ScansEnd, end.is_some_and(|end| end <= END_MAX), said);
    let answers = answers.lock().clone();
    report.note(format!("answers {answers:?}"));
    let understood = answers.keys().all(|answer| !answer.is_internal() && !answer.is_misunderstood());
    report.check(Promise::Alive, understood, "every answer is rows or a refusal for its cost");
    report.check(Promise::Alive, !answers.is_empty(), "guests were answered");
    report.note(format!("resident memory: {} MiB before, at most {} MiB", before >> 20, peak >> 20));
    let wanted = before + before / 5;
    let after = settled(pid, wanted, Duration::from_secs(size(5, 60))).await;
    report.bytes(Promise::MemoryPerUser, "resident memory a minute later", after, wanted);
    fixture.stop(&mut report).await;
    report.finish();
}

/// What a client needs.
#[derive(Clone)]
struct Visit {
    address: String,
    token: String,
    inputs: Arc<[Input]>,
    answers: Answers,
}

/// Connects, runs statements and vanishes, again and again.
async fn client(visit: Visit, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    loop {
        let mut statements = JoinSet::new();
        for _ in 0..PER_CLIENT {
            statements.spawn(statements_of(visit.clone(), random.random()));
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(LIFE_MS))).await;
        // All statements are cut off wherever they are.
        statements.shutdown().await;
    }
}

/// Runs one statement after the other; leaves each when its patience ends, read or not.
async fn statements_of(visit: Visit, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut client = loop {
        match fixture::client(&visit.address, &visit.token).await {
            Ok(client) => break client,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    loop {
        let input = &visit.inputs[random.random_range(0..visit.inputs.len())];
        let patience = Duration::from_millis(random.random_range(PATIENCE_MS));
        let stay = async {
            let opened = guest::open(&mut client, &input.sql).await;
            let answer = match &opened {
                Ok(_) => Answer::Rows,
                Err(error) => match Answer::of(error) {
                    Answer::Lost(_) => Answer::Lost("connection".to_owned()),
                    answer => answer,
                },
            };
            *visit.answers.lock().entry(answer).or_default() += 1;
            if opened.is_ok() {
                // A reader that stops: the stream stays open and unread.
                std::future::pending::<()>().await;
            }
        };
        if tokio::time::timeout(patience, stay).await.is_ok() {
            // After a refusal an honest client pauses, too.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
