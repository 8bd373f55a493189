//! The loop of a guard that asks random questions: it fills tables, asks, judges, and shrinks each failure to
//! a small script.

use std::sync::Arc;

use crate::choices::{Choices, shrink};
use crate::guard::{Report, Run};
use crate::test_tables::TestTables;

/// Questions asked of one set of tables.
const QUESTIONS_PER_WORLD: u64 = 100;
const TRIES_OF_SHRINKING: usize = 250;

/// The result of a question.
pub(crate) enum Verdict {
    Same,
    BothFail,
    /// One side failed to compute a value that the other did not need.
    OneFails,
    Known,
    /// The other engine takes too long.
    TooMuch,
    Different(String),
}

pub(crate) trait RandomGuard {
    type Question;

    /// The number of statements executed per question.
    const EXECUTIONS: u64;

    fn question(&self, choices: &mut Choices, test_tables: &TestTables) -> Self::Question;

    /// Replaces the tables with those of `test_tables`.
    async fn load(&self, test_tables: &TestTables);

    async fn verdict(&self, question: &Self::Question, test_tables: &Arc<TestTables>) -> Verdict;

    /// Returns the question as a script.
    fn script(&self, question: &Self::Question) -> String;
}

/// Asks the questions of a run.
pub(crate) async fn ask<G: RandomGuard>(guard: &G, run: &Run, report: &mut Report) {
    let mut test_tables = Arc::new(TestTables::new(run.seed));
    for number in 0..run.queries {
        if number % QUESTIONS_PER_WORLD == 0 {
            test_tables = Arc::new(TestTables::new(run.seed.wrapping_add(number)));
            load(guard, run, &test_tables).await;
        }
        let mut choices = Choices::random(run.seed.wrapping_mul(1_000_003).wrapping_add(number));
        let question = guard.question(&mut choices, &test_tables);
        if run.only.is_some_and(|only| only != number) {
            continue;
        }
        if run.only.is_some() {
            let script = guard.script(&question);
            println!("{}{script}", test_tables.script(&script));
        }
        run.watch.note(format!("query {number}"));
        report.queries += 1;
        report.executions += G::EXECUTIONS;
        match judged(guard, run, &question, &test_tables).await {
            Verdict::Same => report.same += 1,
            Verdict::BothFail => report.both_fail += 1,
            Verdict::OneFails => report.one_fails += 1,
            Verdict::Known => report.known += 1,
            Verdict::TooMuch => report.too_much += 1,
            Verdict::Different(why) => {
                let problem = match run.is_brief {
                    true => format!("{}-- {why}", guard.script(&question)),
                    false => shrunk(guard, run, choices.taken, &test_tables, &why).await,
                };
                report.failures.push(format!("query {number}:\n{problem}"));
                report.say_failures();
                load(guard, run, &test_tables).await;
                if report.is_enough(run) {
                    break;
                }
            }
        }
    }
    // Errors prove nothing about answers.
    if report.queries >= QUESTIONS_PER_WORLD && report.same * 2 < report.queries {
        report.failures.push(format!("only {} of {} queries have an answer", report.same, report.queries));
    }
}

async fn load<G: RandomGuard>(guard: &G, run: &Run, test_tables: &TestTables) {
    run.watch.begin("the tables are filled");
    guard.load(test_tables).await;
    run.watch.end();
}

async fn judged<G: RandomGuard>(
    guard: &G,
    run: &Run,
    question: &G::Question,
    test_tables: &Arc<TestTables>,
) -> Verdict {
    let verdict = guard.verdict(question, test_tables).await;
    run.watch.end();
    verdict
}

/// Returns the failure as a script with as few decisions and rows as possible.
async fn shrunk<G: RandomGuard>(
    guard: &G,
    run: &Run,
    taken: Vec<u32>,
    test_tables: &Arc<TestTables>,
    why: &str,
) -> String {
    let is_alike =
        |verdict: &Verdict| matches!(verdict, Verdict::Different(other) if kind(other) == kind(why));
    let original = guard.script(&guard.question(&mut Choices::given(taken.clone()), test_tables));
    let taken = shrink(taken, TRIES_OF_SHRINKING, async |candidate: &[u32]| {
        let question = guard.question(&mut Choices::given(candidate.to_vec()), test_tables);
        is_alike(&judged(guard, run, &question, test_tables).await)
    })
    .await;
    let question = guard.question(&mut Choices::given(taken), test_tables);
    let script = guard.script(&question);
    let mut small = TestTables::clone(test_tables);
    for place in 0..small.tables.len() {
        let mut length = small.tables[place].rows.len();
        if !script.contains(&small.tables[place].name) {
            continue;
        }
        while length > 0 {
            let mut at = 0;
            while at < small.tables[place].rows.len() && length > 0 {
                let mut fewer = small.clone();
                let end = (at + length).min(fewer.tables[place].rows.len());
                fewer.tables[place].rows.drain(at..end);
                load(guard, run, &fewer).await;
                let fewer = Arc::new(fewer);
                if is_alike(&judged(guard, run, &question, &fewer).await) {
                    small = Arc::unwrap_or_clone(fewer);
                } else {
                    at = end;
                }
            }
            length /= 2;
        }
    }
    load(guard, run, &small).await;
    let small = Arc::new(small);
    let why = match judged(guard, run, &question, &small).await {
        Verdict::Different(why) => why,
        _ => format!("this does not fail every time; before it was made smaller:\n{original}-- {why}"),
    };
    format!("{}{script}-- {why}", small.script(&script))
}

/// Returns the kind of a failure. A smaller script that fails in another way shows another fault.
fn kind(why: &str) -> &str {
    let words = ["missing", "internal error", "42P02", "PostgreSQL refuses", "PostgreSQL has"];
    words.into_iter().find(|words| why.contains(words)).unwrap_or("another")
}
