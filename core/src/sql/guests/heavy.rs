//! Refuses statements that can hold a thread for long, while threads are given up. So the other threads stay
//! free for all other statements.
//!
//! Invariant: a statement is refused only while [`GIVEN_UP_MAX`] threads or more are given up.

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;

use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::workload::GIVEN_UP_MAX;

/// Whether a node of an optimised plan can work long for few rows.
pub(in crate::sql) fn works_long(node: &LogicalPlan) -> bool {
    match node {
        LogicalPlan::Join(join) => join.on.is_empty() || join.filter.is_some(),
        LogicalPlan::Unnest(_) | LogicalPlan::Window(_) | LogicalPlan::RecursiveQuery(_) => true,
        _ => false,
    }
}

/// Checks that a plan has no heavy node, while so many threads are given up.
///
/// # Errors
/// 53300 if it has one.
pub(in crate::sql) fn refuse_heavy(
    plan: &LogicalPlan,
    is_heavy: fn(&LogicalPlan) -> bool,
    given_up: usize,
) -> Result<()> {
    if given_up < GIVEN_UP_MAX {
        return Ok(());
    }
    let walked = plan.apply_with_subqueries(|node| {
        Ok(if is_heavy(node) { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    if walked != TreeNodeRecursion::Stop {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::TOO_MANY,
        format!("{given_up} threads are held by statements that do not end, and this one could hold another"),
    )
    .hint(
        "try again later, or without costly functions, windows, UNNEST, recursion and joins by more than \
         equal columns",
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use tokio::time::sleep;

    use crate::config::Config;
    use crate::database::Database;
    use crate::error::{Result, SqlState};
    use crate::sql::Session;
    use crate::workload::{GIVEN_UP_MAX, StatementControl};

    const HEAVY: [&str; 6] = [
        "SELECT count(*) FROM generate_series(1, 3) a(v), generate_series(1, 3) b(v)",
        "SELECT count(*) FROM generate_series(1, 3) a(v) JOIN generate_series(1, 3) b(v) ON a.v < b.v",
        "SELECT row_number() OVER (ORDER BY value) FROM generate_series(1, 3)",
        "SELECT x FROM unnest(ARRAY[1, 2]) AS t(x)",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT n FROM r",
        LONG_CALL,
    ];
    const LONG_CALL: &str = "SELECT levenshtein(repeat('a', 10), repeat('b', 10))";
    const LIGHT: [&str; 3] = [
        "SELECT 1",
        "SELECT count(*) FROM system.users",
        "SELECT count(*) FROM generate_series(1, 3) a(v) JOIN generate_series(1, 3) b(v) ON a.v = b.v",
    ];

    async fn run(session: &Session, sql: &str) -> Result<()> {
        session.execute(sql, ()).await?.rows()?.collect().await.map(|_| ())
    }

    #[tokio::test]
    async fn while_threads_are_given_up_heavy_statements_are_refused_and_others_run() {
        let config = Config { step_cpu_ms_max: 1_000, ..Config::in_memory() };
        let database = Database::open(config.clone()).await.unwrap();
        let session = database.session_for("root").unwrap();
        for sql in HEAVY.into_iter().chain(LIGHT) {
            run(&session, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        let threads = &database.context().engine_threads;
        let ends = Arc::new(AtomicBool::new(false));
        let stuck = [(); GIVEN_UP_MAX].map(|()| {
            let ends = Arc::clone(&ends);
            threads.spawn(&StatementControl::new(&config), async move {
                while !ends.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                Ok(())
            })
        });
        while threads.given_up() < GIVEN_UP_MAX {
            sleep(Duration::from_millis(1)).await;
        }
        for sql in HEAVY {
            let refused = run(&session, sql).await.expect_err(sql);
            assert_eq!(refused.sqlstate(), SqlState::TOO_MANY, "{sql}: {refused}");
            assert!(refused.message().starts_with("2 threads are held"), "{refused}");
        }
        // It would be computed while it is planned.
        assert_eq!(session.prepare(LONG_CALL).await.unwrap_err().sqlstate(), SqlState::TOO_MANY);
        for sql in LIGHT {
            run(&session, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        ends.store(true, Ordering::Relaxed);
        while threads.given_up() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
        run(&session, LONG_CALL).await.unwrap();
        drop(stuck);
        database.shutdown().await.unwrap();
    }
}
