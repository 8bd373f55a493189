//! The limits that are checked before a statement is planned.

use super::*;
use crate::config::Config;
use crate::sql::text::parse::parse;
use crate::sql::text::statement::Statement;

fn state(sql: &str) -> String {
    let Statement::Query(query) = parse(sql, &Config::default()).unwrap().statement else {
        panic!("{sql} is no query")
    };
    match check_statement(&ast::Statement::Query(query), 1_000) {
        Ok(()) => "ok".to_owned(),
        Err(error) => error.sqlstate().to_string(),
    }
}

/// Returns `WITH c0 AS (first), c1 AS (next), ... last`; `{}` stands for the name of the previous step.
fn steps(count: usize, first: &str, next: &str, last: &str) -> String {
    let steps: Vec<_> = (1..=count)
        .map(|step| format!("c{step} AS ({})", next.replace("{}", &format!("c{}", step - 1))))
        .collect();
    format!("WITH c0 AS ({first}), {} {}", steps.join(", "), last.replace("{}", &format!("c{count}")))
}

#[test]
fn common_table_expressions_count_as_often_as_they_are_named() {
    let double = "SELECT * FROM {}, {} AS x";
    assert_eq!(state(&steps(8, "SELECT 1", double, "SELECT * FROM {}")), "ok");
    for count in [16, 40, 190] {
        assert_eq!(state(&steps(count, "SELECT 1", double, "SELECT * FROM {}")), "54001", "{count}");
        assert_eq!(state(&steps(count, "SELECT 1", double, "SELECT 1")), "54001", "{count}");
        let within = "SELECT 1 WHERE 1 IN (SELECT 1 FROM {}) OR EXISTS (SELECT 1 FROM \"{}\")";
        assert_eq!(state(&steps(count, "SELECT 1", within, "SELECT * FROM {}")), "54001", "{count}");
    }
    assert_eq!(state(&steps(190, "SELECT 1", "SELECT * FROM {}", "SELECT * FROM {}")), "ok");
    // Each step alone is within the limits; nested in one another they are not.
    let long = format!("SELECT 1 FROM {{}}{}", ", t".repeat(500));
    assert_eq!(state(&steps(3, "SELECT 1", &long, "SELECT * FROM {}")), "ok");
    assert_eq!(state(&steps(6, "SELECT 1", &long, "SELECT * FROM {}")), "54001");
    let unions = format!("SELECT 1 FROM {{}}{}", " UNION ALL VALUES (1)".repeat(300));
    assert_eq!(state(&steps(9, "SELECT 1", &unions, "SELECT * FROM {}")), "54001");
    // A name in an inner query, and a name with a period.
    let inner = "SELECT * FROM (SELECT * FROM {}, {} AS x) AS y";
    assert_eq!(state(&steps(30, "SELECT 1", inner, "SELECT * FROM {}")), "54001");
    let mut sql = "WITH \"a.c0\" AS (SELECT 1)".to_owned();
    for step in 1..=40 {
        sql.push_str(&format!(", \"a.c{step}\" AS (SELECT * FROM a.c{0}, A.C{0} AS x)", step - 1));
    }
    assert_eq!(state(&format!("{sql} SELECT * FROM a.c40")), "54001");
    // The name of a recursive query means itself only inside that query.
    let recursive = "WITH RECURSIVE r AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM r, r AS s WHERE a < 9) \
                     SELECT * FROM r, r AS t";
    assert_eq!(state(recursive), "ok");
}

#[test]
fn subqueries_of_expressions_double_with_each_level() {
    let nested =
        |count: usize, before: &str| format!("SELECT {}1{}", before.repeat(count), ")".repeat(count));
    assert_eq!(state(&nested(10, "(SELECT ")), "ok");
    assert_eq!(state(&nested(30, "(SELECT ")), "54001");
    assert_eq!(state(&nested(30, "EXISTS (SELECT ")), "54001");
}

#[test]
fn grouping_sets_multiply() {
    let columns = |count: usize| vec!["a"; count].join(", ");
    let by = |parts: &str| state(&format!("SELECT 1 FROM t GROUP BY {parts}"));
    assert_eq!(by(&format!("CUBE ({})", columns(12))), "ok");
    assert_eq!(by(&format!("CUBE ({})", columns(13))), "54001");
    assert_eq!(by(&format!("CUBE ({})", columns(63))), "54001");
    assert_eq!(by(&format!("CUBE ({})", columns(64))), "54001");
    assert_eq!(by(&format!("CUBE ({0}), CUBE ({0})", columns(6))), "ok");
    assert_eq!(by(&format!("CUBE ({0}), CUBE ({0}), a", columns(7))), "54001");
    assert_eq!(by(&format!("ROLLUP ({})", columns(300))), "ok");
    assert_eq!(by(&format!("ROLLUP ({})", columns(10_000))), "54001");
    assert_eq!(by(&format!("ROLLUP ({0}), ROLLUP ({0}), ROLLUP ({0})", columns(20))), "54001");
    assert_eq!(by(&["GROUPING SETS ((a), (b))"; 13].join(", ")), "54001");
    assert_eq!(by(&["GROUPING SETS ((a), (b))"; 5].join(", ")), "ok");
    assert_eq!(by(&columns(5_000)), "ok");
}

#[test]
fn wildcards_are_counted() {
    assert_eq!(state(&format!("SELECT {} FROM t", vec!["*"; 100].join(", "))), "ok");
    assert_eq!(state(&format!("SELECT {} FROM t", vec!["t.*"; 101].join(", "))), "54001");
}
