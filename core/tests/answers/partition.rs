//! A condition is true, false or unknown for each row, so the three parts of a query make up the whole query.
//! And a filter keeps exactly the rows for which the condition, selected as a column, is true.

use std::sync::Arc;

use crate::cells::{Failure, Lines, difference, joined};
use crate::choices::Choices;
use crate::guard::{Report, Run};
use crate::questions::{Parts, parts};
use crate::random::{self, RandomGuard, Verdict};
use crate::test_database::{COPIES, Found, TestDatabase, config, select};
use crate::test_tables::TestTables;
use crate::watch::Watch;

struct Partition {
    watch: Watch,
    database: Arc<TestDatabase>,
}

pub(crate) async fn guard(run: Run) -> Report {
    let database = Arc::new(TestDatabase::open(config(), &COPIES).await);
    let mut report = Report::new(&run);
    random::ask(&Partition { watch: run.watch.clone(), database }, &run, &mut report).await;
    report
}

impl RandomGuard for Partition {
    type Question = Parts;

    const EXECUTIONS: u64 = 6 * COPIES.len() as u64;

    fn question(&self, choices: &mut Choices, test_tables: &TestTables) -> Parts {
        parts(choices, test_tables)
    }

    async fn load(&self, test_tables: &TestTables) {
        self.database.load(test_tables).await;
    }

    async fn verdict(&self, parts: &Parts, _: &Arc<TestTables>) -> Verdict {
        self.watch.begin(parts.filtered());
        let mut verdict = Verdict::Same;
        for (copy, name) in COPIES.iter().enumerate() {
            let one = match self.check(parts, copy).await {
                Ok(None) => continue,
                Ok(Some(why)) => Verdict::Different(format!("{name} copy: {why}")),
                Err(failure) if failure.is_internal() => {
                    Verdict::Different(format!("{name} copy: internal error: {failure}"))
                }
                // The plan decides whether a value that cannot be computed is computed at all.
                Err(failure) if failure.sqlstate.starts_with("22") => Verdict::BothFail,
                // If the whole query and the column query succeed, no part may be refused.
                Err(failure) => {
                    let whole = self.rows(parts.whole(), copy).await;
                    match whole.and(self.rows(parts.column(), copy).await) {
                        Ok(_) => Verdict::Different(format!("{name} copy: a part is refused: {failure}")),
                        Err(_) => Verdict::BothFail,
                    }
                }
            };
            verdict = match (verdict, one) {
                (_, Verdict::Different(why)) => return Verdict::Different(why),
                (_, other) => other,
            };
        }
        verdict
    }

    fn script(&self, parts: &Parts) -> String {
        format!("{};\n{};\n", parts.whole(), parts.filtered())
    }
}

impl Partition {
    /// Describes a mismatch, if there is one.
    async fn check(&self, parts: &Parts, copy: usize) -> Result<Option<String>, Failure> {
        let mut whole = self.rows(parts.whole(), copy).await?.lines;
        let [met, unmet, unknown] = parts.parts();
        let met = self.rows(met, copy).await?.lines;
        let met_count = met.len();
        let mut together: Lines = met;
        together.extend(self.rows(unmet, copy).await?.lines);
        together.extend(self.rows(unknown, copy).await?.lines);
        whole.sort_unstable();
        together.sort_unstable();
        if whole != together {
            return Ok(Some(format!("the parts are not the whole: {}", difference(&whole, &together))));
        }
        let counted = self.rows(parts.filtered(), copy).await?.lines;
        let column = self.rows(parts.column(), copy).await?.lines;
        let is_true = column.iter().filter(|line| *line == "true").count();
        if met_count != is_true || counted != [crate::cells::number(&is_true.to_string())] {
            return Ok(Some(format!(
                "the filter keeps {met_count} rows, count(*) says {counted:?}, the condition is true for {is_true}"
            )));
        }
        Ok(None)
    }

    async fn rows(&self, sql: String, copy: usize) -> Result<Found, Failure> {
        let database = Arc::clone(&self.database);
        joined(tokio::spawn(async move { select(database.session(copy), &sql, ().into()).await })).await
    }
}
