//! Asks PostgreSQL and three copies of our tables each statement; only known differences are allowed.

use std::sync::Arc;

use crate::cells::{Answer, Failure, difference, foreign_lines, joined};
use crate::choices::Choices;
use crate::differences::{self, Difference};
use crate::guard::{Report, Run};
use crate::postgres::Postgres;
use crate::questions::{Kind, Question, question};
use crate::random::{self, RandomGuard, Verdict};
use crate::test_database::{COPIES, Found, TestDatabase, config};
use crate::test_tables::{Engine, TestTables};
use crate::watch::Watch;

/// The SQLSTATE of a cancelled statement.
const POSTGRES_GAVE_UP: &str = "57014";

struct Differential {
    watch: Watch,
    database: Arc<TestDatabase>,
    postgres: Postgres,
    known: Vec<Difference>,
}

pub(crate) async fn guard(run: Run) -> Report {
    let Some(programs) = crate::postgres::programs() else {
        return Report::absent(&run, "PostgreSQL 15 is not installed (Debian package postgresql)");
    };
    let guard = Differential {
        watch: run.watch.clone(),
        database: Arc::new(TestDatabase::open(config(), &COPIES).await),
        postgres: Postgres::start(&programs).await,
        known: differences::all(),
    };
    let mut report = Report::new(&run);
    if let Err(problem) = guard.check_examples().await {
        report.failures.push(problem);
    }
    random::ask(&guard, &run, &mut report).await;
    report
}

impl RandomGuard for Differential {
    type Question = Question;

    const EXECUTIONS: u64 = 1 + COPIES.len() as u64;

    fn question(&self, choices: &mut Choices, test_tables: &TestTables) -> Question {
        question(choices, test_tables)
    }

    async fn load(&self, test_tables: &TestTables) {
        self.postgres.run("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await;
        for table in &test_tables.tables {
            self.postgres.run(&table.create("public", Engine::Postgres)).await;
            if let Some(insert) = table.insert("public", &table.rows) {
                self.postgres.run(&insert).await;
            }
        }
        self.database.load(test_tables).await;
    }

    async fn verdict(&self, question: &Question, test_tables: &Arc<TestTables>) -> Verdict {
        let foreign = question.foreign();
        self.watch.begin(format!("PostgreSQL: {foreign}"));
        let (expected, changed) = match &question.kind {
            Kind::Write(table) => match self.postgres.try_write(&foreign, table).await {
                Ok((changed, rows)) => (rows, Some(changed)),
                Err(failure) => (Answer::Failed(failure), None),
            },
            Kind::Select | Kind::Live(_) => (self.postgres.ask(&foreign).await, None),
        };
        if matches!(&expected, Answer::Failed(failure) if failure.sqlstate == POSTGRES_GAVE_UP) {
            return Verdict::TooMuch;
        }
        self.watch.begin(question.ours());
        let mut tasks = Vec::new();
        for copy in 0..COPIES.len() {
            let (database, question, test_tables) =
                (Arc::clone(&self.database), question.clone(), Arc::clone(test_tables));
            tasks.push(tokio::spawn(async move { database.ask(&question, &test_tables, copy).await }));
        }
        let mut verdict = Verdict::Same;
        // Wait for every copy, even after a difference: the next statement may change the tables.
        for (copy, task) in tasks.into_iter().enumerate() {
            let one = self.compare(question, &expected, changed, &joined(task).await);
            verdict = match (verdict, one) {
                (Verdict::Different(text), _) => Verdict::Different(text),
                (_, Verdict::Different(text)) => Verdict::Different(format!("{} copy: {text}", COPIES[copy])),
                (Verdict::Same, other) => other,
                (other, _) => other,
            };
        }
        verdict
    }

    fn script(&self, question: &Question) -> String {
        question.script()
    }
}

/// Returns whether a statement failed on a value or a subquery's second row that it may not have needed.
fn is_of_a_value(failure: &Failure) -> bool {
    failure.sqlstate.starts_with("22") || failure.sqlstate == "21000"
}

impl Differential {
    /// Checks that each known difference still exists.
    async fn check_examples(&self) -> Result<(), String> {
        for known in &self.known {
            let (sql, session) = (&known.example, self.database.session(0));
            if let Some(table) = &known.table {
                self.postgres.run(table).await;
                crate::test_database::run(session, table).await;
            }
            let expected = self.postgres.ask(sql).await;
            let found = crate::test_database::select(session, sql, ().into()).await;
            if known.table.is_some() {
                self.postgres.run("DROP TABLE difference").await;
                crate::test_database::run(session, "DROP TABLE difference").await;
            }
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
            (_, Err(failure)) if failure.is_internal() => {
                Verdict::Different(format!("internal error: {failure}"))
            }
            (Answer::Failed(_), Err(_)) => Verdict::BothFail,
            // The plan decides whether a value that cannot be computed is computed at all.
            (Answer::Failed(failure), Ok(_)) if is_of_a_value(failure) => Verdict::OneFails,
            // The same holds for a cast of NaN in a condition that another condition makes irrelevant.
            (Answer::Rows(_), Err(failure)) if failure.sqlstate == "22003" && sql.contains("CAST(") => {
                Verdict::OneFails
            }
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
}
