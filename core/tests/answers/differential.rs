//! Every statement is asked of PostgreSQL and of three copies of our tables; the answers are equal or known to differ.

use std::sync::Arc;

use crate::cells::{Answer, Failure, difference, foreign_lines};
use crate::choices::{Choices, shrink};
use crate::differences::{self, Difference};
use crate::guard::{Report, Run};
use crate::ours::{COPIES, Found, Ours, config};
use crate::postgres::Postgres;
use crate::queries::{Kind, Question, question};
use crate::world::{Engine, World};

/// Statements asked of one set of tables.
const QUESTIONS_PER_WORLD: u64 = 100;
/// The SQLSTATE of a statement that was ended.
const POSTGRES_GAVE_UP: &str = "57014";
const TRIES_OF_SHRINKING: usize = 250;

struct Differential {
    run: Run,
    ours: Arc<Ours>,
    postgres: Postgres,
    known: Vec<Difference>,
}

/// What came of a statement.
enum Verdict {
    Same,
    BothFail,
    Known,
    /// PostgreSQL takes too long.
    TooMuch,
    Different(String),
}

pub(crate) async fn guard(run: Run) -> Report {
    let Some(programs) = crate::postgres::programs() else {
        return Report::absent(&run, "PostgreSQL 15 is not installed (Debian package postgresql)");
    };
    let postgres = Postgres::start(&programs).await;
    let ours = Arc::new(Ours::open(config()).await);
    let guard = Differential { run, ours, postgres, known: differences::all() };
    let mut report = Report::new(&guard.run);
    if let Err(problem) = guard.check_examples().await {
        report.failures.push(problem);
    }
    let mut world = Arc::new(World::new(guard.run.seed));
    for number in 0..guard.run.queries {
        if number % QUESTIONS_PER_WORLD == 0 {
            world = Arc::new(World::new(guard.run.seed.wrapping_add(number)));
            guard.load(&world).await;
        }
        let mut choices = Choices::random(guard.run.seed.wrapping_mul(1_000_003).wrapping_add(number));
        let question = question(&mut choices, &world);
        if guard.run.only.is_some_and(|only| only != number) {
            continue;
        }
        if guard.run.only.is_some() {
            println!("{}{};", world.script(&question.ours()), question.ours());
        }
        guard.run.watch.note(format!("query {number}"));
        report.queries += 1;
        report.executions += 1 + COPIES.len() as u64;
        match guard.verdict(&question, &world).await {
            Verdict::Same => report.same += 1,
            Verdict::BothFail => report.both_fail += 1,
            Verdict::Known => report.known += 1,
            Verdict::TooMuch => report.too_much += 1,
            Verdict::Different(_) => {
                let problem = guard.shrunk(choices.taken, &world).await;
                report.failures.push(format!("query {number}:\n{problem}"));
                guard.load(&world).await;
                if report.is_enough(&guard.run) {
                    break;
                }
            }
        }
    }
    report
}

impl Differential {
    async fn load(&self, world: &World) {
        self.postgres.run("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await;
        for table in &world.tables {
            self.postgres.run(&table.create("public", Engine::Postgres)).await;
            if let Some(insert) = table.insert("public", &table.rows) {
                self.postgres.run(&insert).await;
            }
        }
        self.ours.load(world).await;
    }

    /// Each known difference is there.
    async fn check_examples(&self) -> Result<(), String> {
        for known in &self.known {
            let sql = &known.example;
            let expected = self.postgres.ask(sql).await;
            let found = crate::ours::select(self.ours.session(0), sql, ().into()).await;
            let expected_failure = match &expected {
                Answer::Failed(failure) => Some(failure),
                Answer::Rows(_) => None,
            };
            let is_same = match (&expected, &found) {
                (Answer::Rows(rows), Ok(found)) => foreign_lines(rows, &found.notations) == found.lines,
                _ => false,
            };
            if is_same || !known.is_met(sql, found.as_ref().err(), expected_failure) {
                return Err(format!(
                    "the example of a known difference does not show it: {}\n{sql}\nPostgreSQL: {expected:?}\nwe: {found:?}",
                    known.reason
                ));
            }
        }
        Ok(())
    }

    async fn verdict(&self, question: &Question, world: &Arc<World>) -> Verdict {
        let foreign = question.foreign();
        self.run.watch.begin(format!("PostgreSQL: {foreign}"));
        let (expected, changed) = match &question.kind {
            Kind::Write(table) => match self.postgres.try_write(&foreign, table).await {
                Ok((changed, rows)) => (rows, Some(changed)),
                Err(failure) => (Answer::Failed(failure), None),
            },
            Kind::Select | Kind::Live => (self.postgres.ask(&foreign).await, None),
        };
        if matches!(&expected, Answer::Failed(failure) if failure.sqlstate == POSTGRES_GAVE_UP) {
            return Verdict::TooMuch;
        }
        self.run.watch.begin(question.ours());
        let mut tasks = Vec::new();
        for copy in 0..COPIES.len() {
            let (ours, question, world) = (Arc::clone(&self.ours), question.clone(), Arc::clone(world));
            tasks.push(tokio::spawn(async move { ours.ask(&question, &world, copy).await }));
        }
        let mut verdict = Verdict::Same;
        for (copy, task) in tasks.into_iter().enumerate() {
            let found = match task.await {
                Ok(found) => found,
                Err(panicked) => Err(Failure { sqlstate: "XX000".to_owned(), text: panicked.to_string() }),
            };
            let one = self.compare(question, &expected, changed, &found);
            verdict = match one {
                Verdict::Different(text) => Verdict::Different(format!("{} copy: {text}", COPIES[copy])),
                other if matches!(verdict, Verdict::Same) => other,
                _ => verdict,
            };
            if matches!(verdict, Verdict::Different(_)) {
                break;
            }
        }
        self.run.watch.end();
        verdict
    }

    fn compare(
        &self,
        question: &Question,
        expected: &Answer,
        changed: Option<u64>,
        found: &Result<Found, Failure>,
    ) -> Verdict {
        let sql = question.ours();
        let known = |ours: Option<&Failure>, postgresql: Option<&Failure>| {
            self.known.iter().any(|known| known.is_met(&sql, ours, postgresql))
        };
        match (expected, found) {
            (_, Err(failure)) if failure.sqlstate == "XX000" => {
                Verdict::Different(format!("internal error: {failure}"))
            }
            (Answer::Failed(_), Err(_)) => Verdict::BothFail,
            // Whether a value is computed that cannot be, is a matter of the plan.
            (Answer::Failed(failure), Ok(_)) if failure.sqlstate.starts_with("22") => Verdict::BothFail,
            (Answer::Failed(failure), Ok(found)) => match known(None, Some(failure)) {
                true => Verdict::Known,
                false => Verdict::Different(format!(
                    "PostgreSQL refuses: {failure}; we answer with {} rows",
                    found.lines.len()
                )),
            },
            (Answer::Rows(rows), Err(failure)) => match known(Some(failure), None) {
                true => Verdict::Known,
                false => Verdict::Different(format!("PostgreSQL has {} rows, we: {failure}", rows.len())),
            },
            (Answer::Rows(rows), Ok(found)) => {
                let mut right = foreign_lines(rows, &found.notations);
                let mut lines = found.lines.clone();
                if !question.is_ordered {
                    right.sort_unstable();
                    lines.sort_unstable();
                }
                let is_count_right = changed.is_none() || changed == found.changed;
                if (right == lines && is_count_right) || known(None, None) {
                    return Verdict::Same;
                }
                let count = if is_count_right {
                    String::new()
                } else {
                    format!("{:?} rows changed, {:?} are right; ", found.changed, changed)
                };
                Verdict::Different(format!("{count}{}", difference(&right, &lines)))
            }
        }
    }

    /// The failure with as few decisions and rows as it needs, as a script.
    async fn shrunk(&self, taken: Vec<u32>, world: &Arc<World>) -> String {
        if self.run.is_brief {
            let question = question(&mut Choices::given(taken), world);
            return question.ours();
        }
        let taken = shrink(taken, TRIES_OF_SHRINKING, async |candidate: &[u32]| {
            let question = question(&mut Choices::given(candidate.to_vec()), world);
            matches!(self.verdict(&question, world).await, Verdict::Different(_))
        })
        .await;
        let question = question(&mut Choices::given(taken), world);
        let mut small = World::clone(world);
        for place in 0..small.tables.len() {
            let mut length = small.tables[place].rows.len();
            if !question.ours().contains(&small.tables[place].name) {
                continue;
            }
            while length > 0 {
                let mut at = 0;
                while at < small.tables[place].rows.len() && length > 0 {
                    let mut fewer = small.clone();
                    let end = (at + length).min(fewer.tables[place].rows.len());
                    fewer.tables[place].rows.drain(at..end);
                    self.load(&fewer).await;
                    let fewer = Arc::new(fewer);
                    if matches!(self.verdict(&question, &fewer).await, Verdict::Different(_)) {
                        small = Arc::unwrap_or_clone(fewer);
                    } else {
                        at = end;
                    }
                }
                length /= 2;
            }
        }
        self.load(&small).await;
        let small = Arc::new(small);
        let why = match self.verdict(&question, &small).await {
            Verdict::Different(why) => why,
            _ => "it failed before it was made smaller, and does not fail now".to_owned(),
        };
        let values: Vec<_> = question.parameters.iter().map(|parameter| parameter.value.clone()).collect();
        let given = if values.is_empty() { String::new() } else { format!("-- with {values:?}\n") };
        format!("{}{given}{};\n-- {why}", small.script(&question.ours()), question.ours())
    }
}
