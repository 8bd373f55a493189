//! A query returns the same rows under every plan (rules off, other joins, any partitions) and repeatedly.

use std::sync::Arc;

use kalamdb_core::{Config, PlannerOverrides};

use crate::cells::{Failure, difference, joined};
use crate::choices::Choices;
use crate::guard::{Report, Run};
use crate::questions::{Question, select_question};
use crate::random::{self, RandomGuard, Verdict};
use crate::test_database::{Found, TestDatabase, config};
use crate::test_tables::TestTables;
use crate::watch::Watch;

/// The copy of the tables with hot rows, flushed rows, and flushed rows that were written again.
const COPY: &str = "half";
/// How often the usual plan answers a repeated question, since partitions race.
const REPEATS: usize = 20;
/// One question in this many is repeated.
const REPEATED: usize = 8;

/// A variant of the plan, and how it differs from the usual one.
struct PlanVariant {
    name: &'static str,
    partitions: usize,
    batch_rows: usize,
    options: &'static [(&'static str, &'static str)],
    rules_off: &'static [&'static str],
}

/// Joins that the usual plan never uses. They do not support every type, and not every filter.
const SORT_MERGE_JOINS: &str = "sort-merge joins";

/// The first is the usual one.
const PLAN_VARIANTS: [PlanVariant; 8] = [
    PlanVariant { name: "usual", partitions: 3, batch_rows: 16, options: &[], rules_off: &[] },
    PlanVariant { name: "one partition", partitions: 1, batch_rows: 8_192, options: &[], rules_off: &[] },
    PlanVariant {
        name: SORT_MERGE_JOINS,
        partitions: 2,
        batch_rows: 16,
        options: &[("datafusion.optimizer.prefer_hash_join", "false")],
        rules_off: &[],
    },
    PlanVariant {
        name: "nothing moved or left out",
        partitions: 2,
        batch_rows: 64,
        options: &[],
        rules_off: &[
            "push_down_filter",
            "push_down_limit",
            "eliminate_outer_join",
            "eliminate_cross_join",
            "eliminate_join",
            "filter_null_join_keys",
            "propagate_empty_relation",
            "common_sub_expression_eliminate",
            "single_distinct_aggregation_to_group_by",
            "eliminate_group_by_constant",
            "eliminate_duplicated_expr",
        ],
    },
    PlanVariant {
        name: "filters and unions as written",
        partitions: 3,
        batch_rows: 16,
        options: &[],
        rules_off: &["optimize_unions", "unions_to_filter", "eliminate_filter"],
    },
    PlanVariant {
        name: "nothing decided while it runs",
        partitions: 3,
        batch_rows: 16,
        options: &[
            ("datafusion.optimizer.enable_dynamic_filter_pushdown", "false"),
            ("datafusion.optimizer.enable_topk_aggregation", "false"),
            ("datafusion.optimizer.repartition_joins", "false"),
        ],
        rules_off: &["join_selection", "aggregate_statistics", "LimitedDistinctAggregation"],
    },
    PlanVariant {
        name: "sorts kept",
        partitions: 4,
        batch_rows: 3,
        options: &[
            ("datafusion.optimizer.prefer_existing_sort", "true"),
            ("datafusion.optimizer.repartition_windows", "false"),
        ],
        rules_off: &[],
    },
    PlanVariant {
        name: "partitions for every row",
        partitions: 7,
        batch_rows: 2,
        options: &[
            ("datafusion.execution.coalesce_batches", "false"),
            ("datafusion.optimizer.hash_join_single_partition_threshold", "0"),
            ("datafusion.optimizer.hash_join_single_partition_threshold_rows", "0"),
        ],
        rules_off: &["push_down_filter"],
    },
];

struct Plans {
    watch: Watch,
    /// One database per plan variant.
    databases: Vec<Arc<TestDatabase>>,
}

pub(crate) async fn guard(run: Run) -> Report {
    let mut databases = Vec::new();
    for variant in &PLAN_VARIANTS {
        databases.push(Arc::new(TestDatabase::open(variant.config(), &[COPY]).await));
    }
    let mut report = Report::new(&run);
    random::ask(&Plans { watch: run.watch.clone(), databases }, &run, &mut report).await;
    report
}

impl PlanVariant {
    fn config(&self) -> Config {
        let owned = |text: &&str| (*text).to_owned();
        let mut config =
            Config { batch_rows: self.batch_rows, query_partitions: self.partitions, ..config() };
        let PlannerOverrides { options, rules_off } = &mut config.planner;
        options.extend(self.options.iter().map(|(name, value)| (owned(name), owned(value))));
        rules_off.extend(self.rules_off.iter().map(owned));
        config
    }
}

/// A question, and how often the usual plan answers it.
struct Repeated {
    question: Question,
    times: usize,
}

impl RandomGuard for Plans {
    type Question = Repeated;

    const EXECUTIONS: u64 = PLAN_VARIANTS.len() as u64 + (REPEATS / REPEATED) as u64;

    fn question(&self, choices: &mut Choices, test_tables: &TestTables) -> Repeated {
        let times = if choices.once_in(REPEATED) { REPEATS } else { 1 };
        Repeated { question: select_question(choices, test_tables), times }
    }

    async fn load(&self, test_tables: &TestTables) {
        for database in &self.databases {
            database.load(test_tables).await;
        }
    }

    async fn verdict(&self, repeated: &Repeated, test_tables: &Arc<TestTables>) -> Verdict {
        let question = &repeated.question;
        self.watch.begin(question.ours());
        let mut usual: Option<Result<Found, Failure>> = None;
        let again = std::iter::repeat_n(0, repeated.times - 1);
        for variant in (0..PLAN_VARIANTS.len()).chain(again) {
            let (database, question, test_tables) =
                (Arc::clone(&self.databases[variant]), question.clone(), Arc::clone(test_tables));
            let name = PLAN_VARIANTS[variant].name;
            self.watch.note_more(name);
            let task = tokio::spawn(async move { database.ask(&question, &test_tables, 0).await });
            let mut found = joined(task).await;
            if let Ok(found) = &mut found
                && !repeated.question.is_ordered
            {
                found.lines.sort_unstable();
            }
            let Some(usual) = &usual else {
                if let Err(failure) = &found
                    && failure.is_internal()
                {
                    return Verdict::Different(format!("{name}: internal error: {failure}"));
                }
                usual = Some(found);
                continue;
            };
            if !(name == SORT_MERGE_JOINS && is_missing(&found))
                && let Some(why) = differs(usual, &found)
            {
                return Verdict::Different(format!("{name}: {why}"));
            }
        }
        if usual.is_some_and(|usual| usual.is_err()) { Verdict::BothFail } else { Verdict::Same }
    }

    fn script(&self, repeated: &Repeated) -> String {
        repeated.question.script()
    }
}

/// Whether a join refused what it does not support, by name or by a panic.
fn is_missing(found: &Result<Found, Failure>) -> bool {
    found.as_ref().is_err_and(|failure| failure.is_internal() || failure.sqlstate == "0A000")
}

/// Describes how an answer differs from the usual one. Errors of values, and of subqueries with more than one
/// row, depend on the plan and are allowed.
fn differs(usual: &Result<Found, Failure>, found: &Result<Found, Failure>) -> Option<String> {
    let is_value = |failure: &Failure| failure.sqlstate.starts_with("22") || failure.sqlstate == "21000";
    match (usual, found) {
        (_, Err(failure)) if failure.is_internal() => Some(format!("internal error: {failure}")),
        (Ok(usual), Ok(found)) => {
            (usual.lines != found.lines).then(|| difference(&usual.lines, &found.lines))
        }
        (Err(_), Err(_)) => None,
        (Err(failure), Ok(_)) | (Ok(_), Err(failure)) if is_value(failure) => None,
        (Err(failure), Ok(found)) => {
            Some(format!("the usual plan ends with {failure}, this one has {} rows", found.lines.len()))
        }
        (Ok(usual), Err(failure)) => {
            Some(format!("the usual plan has {} rows, this one ends with {failure}", usual.lines.len()))
        }
    }
}
