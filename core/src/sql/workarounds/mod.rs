//! What DataFusion and sqlparser get wrong, set right or refused, each thing in one place.
//!
//! | step of a statement | files |
//! |---|---|
//! | reading the text | `grammar`, `syntax` |
//! | the plan, before types are made equal | `comparisons`, `days`, `numbers`, `arithmetic` (quotients), `aggregates`, `functions`, `frames`, `computed_groups`, `recursion` |
//! | the plan, after that | `casts`, `arithmetic` (overflow), `regex`, `regex_syntax`, `floats`, `sorts`, `multisets`, `offsets`, `subqueries` |
//! | optimising the plan | `simplification`, `equalities`, `dependencies`, `same_types`, `constant_filters`, `null_equality`, and at its end `guards` |
//! | the physical plan | `added_nulls`, `filtered_statistics`, `projections`, `pushdown`, `scan_equalities`, `build_reports`, `requirements` |
//!
//! docs/sql-correctness.md has a line for each with its upstream issue; `tests/it/workarounds.rs` asks DataFusion alone and fails when its
//! answer has become right, so that the work-around can go.
//!
//! Invariant: a rule here changes what a plan gives only where DataFusion's own plan gives a wrong answer.

mod added_nulls;
mod aggregates;
mod arithmetic;
mod build_reports;
mod casts;
mod comparisons;
mod computed_groups;
mod constant_filters;
mod days;
mod dependencies;
mod equalities;
mod filtered_statistics;
mod floats;
mod frames;
mod functions;
pub(super) mod grammar;
mod guards;
mod multisets;
mod null_equality;
mod numbers;
mod offsets;
mod projections;
mod pushdown;
mod recursion;
mod regex;
mod regex_syntax;
mod requirements;
mod same_types;
mod scan_equalities;
mod simplification;
mod sorts;
mod subqueries;
pub(super) mod syntax;
mod walk;

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::SessionState;
use datafusion::logical_expr::planner::ExprPlanner;
use datafusion::logical_expr::{LogicalPlan, ScalarUDF};
use datafusion::optimizer::{AnalyzerRule, Optimizer, OptimizerRule};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::prelude::SessionConfig;

use self::added_nulls::AddedNulls;
use self::build_reports::BuildReports;
use self::constant_filters::GuardedPushDown;
use self::dependencies::WithoutDependencies;
use self::equalities::EqualitiesRule;
use self::filtered_statistics::UnfilteredStatistics;
use self::null_equality::{GuardedKeys, GuardedOrder};
use self::projections::FencedProjections;
use self::requirements::MendingCheck;
use self::same_types::SameTypes;
use self::scan_equalities::ScanEqualities;
use self::simplification::ShieldedSimplification;
use self::walk::{Rewrite, rewrite_expressions};

pub(crate) use self::guards::{guard, guard_condition};
pub(crate) use self::recursion::{FIRST_PART, NEXT_PART};
pub(crate) use self::simplification::simplify;
use crate::failpoint::is_planted;

/// Settings under which DataFusion is right more often.
pub(super) fn configure(config: &mut SessionConfig) {
    let options = config.options_mut();
    // 4.07 is the decimal, not the double next to it.
    options.sql_parser.parse_float_as_decimal = true;
    // now() and to_timestamp() are instants.
    options.execution.time_zone = Some("UTC".to_owned());
    // The logical plan is right about what can be NULL, the physical one is too careful, and the check takes that for a fault.
    options.execution.skip_physical_aggregate_schema_check = true;
}

/// The state for the physical plan of an optimised one.
///
/// Below UNION a sort leaves out columns that are constant in each input, but not the same in all of them. A merge above is given all of
/// them again; the limit that the inputs share is not.
pub(super) fn state_for(plan: &LogicalPlan, state: &SessionState) -> SessionState {
    let mut state = state.clone();
    let (mut has_union, mut has_float_groups) = (false, false);
    let _ = plan.apply_with_subqueries(|node| {
        has_union |= matches!(node, LogicalPlan::Union(_));
        has_float_groups |= matches!(node, LogicalPlan::Aggregate(_)) && has_float(node);
        Ok(TreeNodeRecursion::Continue)
    });
    if has_union && !is_planted("union_shares_its_limit") {
        state.config_mut().options_mut().optimizer.repartition_sorts = false;
    }
    // The queue that keeps the first groups in order alone does not find NaN again, and can end in a panic.
    if has_float_groups {
        state.config_mut().options_mut().optimizer.enable_topk_aggregation = false;
    }
    state
}

fn has_float(plan: &LogicalPlan) -> bool {
    plan.schema().fields().iter().any(|field| field.data_type().is_floating())
}

/// Functions that take the place of DataFusion's of the same name.
pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    functions::all().into_iter().chain(recursion::functions()).collect()
}

/// Planners of operators, to be asked before DataFusion's.
pub(super) fn operators() -> Vec<Arc<dyn ExprPlanner>> {
    vec![Arc::new(comparisons::Operators)]
}

/// Rewrites that come before type coercion, because they decide which types meet.
pub(super) fn before_coercion() -> Arc<dyn AnalyzerRule + Send + Sync> {
    Arc::new(BeforeCoercion)
}

/// Rewrites that come after type coercion, because they need to see the casts it makes.
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
        const REWRITES: [Rewrite; 20] = [
            comparisons::check,
            subqueries::refuse_outer_aggregates,
            functions::refuse_formats,
            functions::correct_current_time,
            sorts::of_aggregate,
            days::compute,
            numbers::unify,
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
                    .transform_data(numbers::unify_values)?
                    .transform_data(subqueries::may_be_null)?
                    .transform_data(computed_groups::below_sets)
            })?
            .data;
        let plan = numbers::unify_sets(rewrite_expressions(plan, &REWRITES)?)?;
        // What stands above a union, and in subqueries names its columns, has their types.
        if plan.exists(|node| Ok(matches!(node, LogicalPlan::Union(_))))? {
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
            regex::replace,
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
        subqueries::decorrelate(offsets::keep_sorts(plan)?)
    }
}

/// DataFusion's rules for logical plans, with ours among them.
pub(super) fn optimizer_rules() -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    let mut rules = Vec::new();
    for rule in Optimizer::new().rules {
        match rule.name() {
            "extract_equijoin_predicate" => rules.push(Arc::new(GuardedKeys(rule)) as _),
            "eliminate_cross_join" => rules.push(Arc::new(GuardedOrder(rule)) as _),
            "optimize_projections"
            | "replace_distinct_aggregate"
            | "eliminate_join"
            | "eliminate_duplicated_expr" => {
                rules.push(Arc::new(WithoutDependencies(rule)) as _);
            }
            "single_distinct_aggregation_to_group_by" => rules.push(Arc::new(SameTypes(rule)) as _),
            "simplify_expressions" => rules.push(Arc::new(ShieldedSimplification(rule)) as _),
            "push_down_filter" => {
                rules.extend([Arc::new(EqualitiesRule) as _, Arc::new(GuardedPushDown(rule)) as _]);
            }
            _ => rules.push(rule),
        }
    }
    rules
}

/// DataFusion's rules for physical plans, guarded.
pub(super) fn physical_rules(
    rules: Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>>,
) -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    let mut guarded = vec![Arc::new(AddedNulls) as _];
    for rule in pushdown::guarded(rules) {
        match rule.name() {
            "ProjectionPushdown" => guarded.push(Arc::new(FencedProjections(rule)) as _),
            "SanityCheckPlan" => guarded.push(Arc::new(MendingCheck(rule)) as _),
            "aggregate_statistics" => guarded.push(Arc::new(UnfilteredStatistics(rule)) as _),
            "FilterPushdown" => guarded.extend([rule, Arc::new(ScanEqualities) as _]),
            "FilterPushdown(Post)" => guarded.extend([rule, Arc::new(BuildReports) as _]),
            _ => guarded.push(rule),
        }
    }
    guarded
}
