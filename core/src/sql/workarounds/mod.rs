//! Workarounds: corrects or refuses what DataFusion and sqlparser get wrong, each fault in one place.
//!
//! | step of a statement | files |
//! |---|---|
//! | parsing | `syntax` |
//! | plan before type coercion | `types`, `functions`, `aggregates`, `computed_groups`, `multisets` |
//! | | `ordering` (`frames`, `sorts` of aggregates), `subqueries` (NULL) |
//! | plan after type coercion | `types` (`casts`, `arithmetic`, `floats`), `functions` (`regex`, intervals) |
//! | | `guards` (FILTER), `ordering` (`sorts` of DISTINCT ON, `sort_keys`, `offsets`), `subqueries` |
//! | logical optimizer | `logical_rules`, and at its end `guards` |
//! | physical optimizer | `physical_rules` |
//!
//! All of them build on `walk`, on the checked `operations`, and on `identity`.
//!
//! docs/sql-correctness.md lists each workaround with its upstream issue. `tests/it/workarounds.rs` runs
//! DataFusion alone and fails once its answer is right, so that the workaround can go.
//!
//! Invariant: a rule here changes the result of a plan only where DataFusion's own plan gives a wrong one.

mod aggregates;
mod computed_groups;
mod functions;
mod guards;
mod identity;
mod logical_rules;
mod multisets;
mod operations;
mod ordering;
mod physical_rules;
mod subqueries;
pub(super) mod syntax;
mod types;
mod walk;

use std::borrow::Cow;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::SessionState;
use datafusion::logical_expr::planner::ExprPlanner;
use datafusion::logical_expr::{LogicalPlan, ScalarUDF};
use datafusion::optimizer::AnalyzerRule;
use datafusion::prelude::SessionConfig;

use self::ordering::{frames, offsets, sort_keys, sorts};
use self::types::{arithmetic, casts, comparisons, days, floats, recursion, sets, unification};
use self::walk::{Rewrite, has_node, rewrite_expressions};

pub(crate) use self::guards::{guard, guard_condition};
pub(super) use self::logical_rules::optimizer_rules;
pub(crate) use self::logical_rules::simplify;
pub(super) use self::physical_rules::physical_rules;
pub(super) use self::syntax::grammar;
pub(crate) use self::types::recursion::{FIRST_PART, NEXT_PART};
use crate::failpoint::is_planted;
use crate::sql::guests::functions::has_long_call;

/// Sets options under which DataFusion gives fewer wrong answers.
pub(super) fn configure(config: &mut SessionConfig) {
    let options = config.options_mut();
    // Read 4.07 as a decimal, not as the nearest double.
    options.sql_parser.parse_float_as_decimal = true;
    // Makes now() and to_timestamp() return TIMESTAMPTZ.
    options.execution.time_zone = Some("UTC".to_owned());
    // The logical plan's nullability is right; the physical plan's is too cautious and fails this check.
    options.execution.skip_physical_aggregate_schema_check = true;
    // An idle partition would read files of others, also below a LIMIT, where sorted files must stay apart.
    options.execution.enable_file_stream_work_stealing = false;
}

/// Returns the session state for making a physical plan from an optimised plan.
///
/// Below UNION, sorts drop columns that are constant in each input but differ between inputs. A merge above
/// gets these columns back; the LIMIT that the inputs share does not. So a UNION disables split sorts.
///
/// A statement with a function that can need long for a row has one partition, so it holds up one thread.
pub(super) fn state_for<'a>(plan: &LogicalPlan, state: &'a SessionState) -> Cow<'a, SessionState> {
    // Most statements need no other state, and a copy of one costs as much as a short query.
    let mut state = Cow::Borrowed(state);
    let (mut has_union, mut has_float_groups, mut calls_long) = (false, false, false);
    let _ = plan.apply_with_subqueries(|node| {
        has_union |= matches!(node, LogicalPlan::Union(_));
        has_float_groups |= matches!(node, LogicalPlan::Aggregate(_)) && has_float(node);
        calls_long = calls_long || has_long_call(node);
        Ok(TreeNodeRecursion::Continue)
    });
    if has_union && !is_planted("union_shares_its_limit") {
        state.to_mut().config_mut().options_mut().optimizer.repartition_sorts = false;
    }
    // The top-k aggregation queue does not find NaN again, and can panic.
    if has_float_groups {
        state.to_mut().config_mut().options_mut().optimizer.enable_topk_aggregation = false;
    }
    if calls_long {
        state.to_mut().config_mut().options_mut().execution.target_partitions = 1;
    }
    state
}

fn has_float(plan: &LogicalPlan) -> bool {
    plan.schema().fields().iter().any(|field| field.data_type().is_floating())
}

/// Returns the functions to register: replacements for DataFusion's, and helpers that rewrites call.
pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    functions::all().into_iter().chain(recursion::functions()).collect()
}

/// Returns the operator planners, which run before DataFusion's.
pub(super) fn operators() -> Vec<Arc<dyn ExprPlanner>> {
    vec![Arc::new(comparisons::Operators)]
}

/// Returns the rewrites that run before type coercion, because they decide which types meet.
pub(super) fn before_coercion() -> Arc<dyn AnalyzerRule + Send + Sync> {
    Arc::new(BeforeCoercion)
}

/// Returns the rewrites that run after type coercion, because they need the casts that it adds.
pub(super) fn after_coercion() -> Arc<dyn AnalyzerRule + Send + Sync> {
    Arc::new(AfterCoercion)
}

#[derive(Debug)]
struct BeforeCoercion;

impl AnalyzerRule for BeforeCoercion {
    fn name(&self) -> &str {
        "kalam_before_coercion"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        const REWRITES: [Rewrite; 19] = [
            comparisons::check,
            subqueries::refuse_outer_aggregates,
            functions::refuse_formats,
            sorts::of_aggregate,
            days::compute,
            unification::unify,
            functions::flat_coalesce,
            functions::restore_uniform,
            functions::refuse_bytes,
            functions::short_booleans,
            functions::element_texts,
            functions::correct_padding,
            functions::correct_hexadecimal,
            arithmetic::quotients,
            aggregates::replace,
            functions::replace,
            functions::replace_date_part,
            functions::replace_rounding,
            frames::correct,
        ];
        let plan = plan
            .transform_up_with_subqueries(|node| {
                comparisons::check_keys(&node)?;
                recursion::check(&node)?;
                multisets::count_rows(node)?
                    .transform_data(sets::unify_values)?
                    .transform_data(subqueries::may_be_null)?
                    .transform_data(computed_groups::below_sets)
            })?
            .data;
        let plan = sets::unify_sets(rewrite_expressions(plan, &REWRITES)?)?;
        // Nodes above a union, and subqueries that name its columns, meet its new types.
        if has_node(&plan, |node| matches!(node, LogicalPlan::Union(_)))? {
            let plan = sets::unify_sets(rewrite_expressions(plan, &[unification::unify])?)?;
            return rewrite_expressions(plan, &[]);
        }
        Ok(plan)
    }
}

#[derive(Debug)]
struct AfterCoercion;

impl AnalyzerRule for AfterCoercion {
    fn name(&self) -> &str {
        "kalam_after_coercion"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        const REWRITES: [Rewrite; 6] = [
            casts::replace,
            arithmetic::checked,
            functions::replace_regex,
            functions::compare_intervals,
            floats::canonical,
            guards::guard_arguments,
        ];
        let plan = rewrite_expressions(plan, &REWRITES)?;
        let plan = plan
            .transform_up_with_subqueries(|node| {
                sorts::of_distinct_on(node).transform_data(functions::order_intervals)
            })?
            .data;
        let plan = subqueries::decorrelate(offsets::keep_sorts(plan)?)?;
        // Decorrelation makes comparisons too.
        Ok(plan.transform_up_with_subqueries(sort_keys::with_ranges)?.data)
    }
}
