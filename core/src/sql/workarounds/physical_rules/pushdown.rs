//! DataFusion pushes filters down a physical plan by column name, not by position.
//!
//! In a node with two columns of one name, such as a join of two tables with `id`, its two pushdown rules
//! take the first one. Rows are lost, also by the filters that a join makes from its keys at run time
//! (apache/datafusion#25244, #21246, #25296).
//!
//! Invariant: within one run of a rule, no filter passes a node in which a name means two columns. A filter
//! need not be pushed down, so each part of a plan above such a node gets its own run.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::arrow::datatypes::Schema;
use datafusion::common::config::ConfigOptions;
use datafusion::common::{JoinType, Result};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};

use crate::failpoint::is_planted;

/// DataFusion's rules that run only where they are right.
const GUARDED: [&str; 2] = ["FilterPushdown", "FilterPushdown(Post)"];

type Rule = Arc<dyn PhysicalOptimizerRule + Send + Sync>;

/// Guards the rules that push filters down by name.
pub(super) fn guarded(rules: Vec<Rule>) -> Vec<Rule> {
    let guard = |rule: Rule| -> Rule {
        if GUARDED.contains(&rule.name()) { Arc::new(GuardedPushdown(rule)) } else { rule }
    };
    rules.into_iter().map(guard).collect()
}

#[derive(Debug)]
struct GuardedPushdown(Rule);

impl PhysicalOptimizerRule for GuardedPushdown {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if is_planted("filters_go_by_name") {
            return self.0.optimize(plan, config);
        }
        Ok(self.run(plan, config)?.plan)
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn schema_check(&self) -> bool {
        self.0.schema_check()
    }
}

/// A visited part of a plan.
struct Seen {
    plan: Arc<dyn ExecutionPlan>,
    /// Whether a filter may pass through all of it.
    is_clean: bool,
    /// Whether the rule must still run, from here or from above.
    is_due: bool,
}

impl GuardedPushdown {
    /// Runs the rule on the largest parts of the plan through which all filters may pass.
    fn run(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Seen> {
        let seen = self.visit(plan, config)?;
        self.finish(seen, config)
    }

    /// Leaves a node with only clean inputs to the run of its parents.
    fn visit(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Seen> {
        let children: Vec<Seen> = plan
            .children()
            .into_iter()
            .map(|child| self.visit(Arc::clone(child), config))
            .collect::<Result<_>>()?;
        let below_is_clean = children.iter().all(|child| child.is_clean);
        let can_run_here = below_is_clean && passes_own(&plan);
        if can_run_here {
            let is_clean = has_unique_names(&plan.schema());
            return Ok(Seen { plan, is_clean, is_due: true });
        }
        let children: Vec<Arc<dyn ExecutionPlan>> =
            children.into_iter().map(|child| Ok(self.finish(child, config)?.plan)).collect::<Result<_>>()?;
        let plan = replace_children_if_necessary(plan, children)?;
        Ok(Seen { plan, is_clean: false, is_due: false })
    }

    fn finish(&self, seen: Seen, config: &ConfigOptions) -> Result<Seen> {
        if !seen.is_due {
            return Ok(seen);
        }
        let plan = self.0.optimize(seen.plan, config)?;
        Ok(Seen { plan, is_due: false, ..seen })
    }
}

fn has_unique_names(schema: &Schema) -> bool {
    let mut names = HashSet::with_capacity(schema.fields().len());
    schema.fields().iter().all(|field| names.insert(field.name()))
}

/// Whether filters that reach this node, or start here, find the right columns below it.
fn passes_own(plan: &Arc<dyn ExecutionPlan>) -> bool {
    if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        return keys_are_told_apart(join);
    }
    if let Some(aggregate) = plan.downcast_ref::<AggregateExec>() {
        return groups_keep_names(aggregate);
    }
    if plan.is::<UnionExec>() {
        let names = plan.schema();
        return plan.children().into_iter().all(|child| {
            let schema = child.schema();
            schema.fields().len() == names.fields().len()
                && schema.fields().iter().zip(names.fields()).all(|(own, name)| own.name() == name.name())
        });
    }
    true
}

/// A semi join also pushes filters on its keys to the other side, and looks there for its own side's name.
fn keys_are_told_apart(join: &HashJoinExec) -> bool {
    let (left, right) = (join.left().schema(), join.right().schema());
    let name =
        |key: &Arc<dyn PhysicalExpr>| key.downcast_ref::<Column>().map(|column| column.name().to_owned());
    join.on().iter().all(|(left_key, right_key)| {
        let (own, other, key, other_key) = match join.join_type() {
            JoinType::LeftSemi => (&left, &right, left_key, right_key),
            JoinType::RightSemi => (&right, &left, right_key, left_key),
            _ => return true,
        };
        let Some(key) = name(key) else { return true };
        let is_one = own.fields().iter().filter(|field| *field.name() == key).count() == 1;
        is_one && (other.column_with_name(&key).is_none() || name(other_key).as_ref() == Some(&key))
    })
}

/// Whether each group's name below the aggregation is its own column, or no column.
fn groups_keep_names(aggregate: &AggregateExec) -> bool {
    let below = aggregate.input().schema();
    aggregate.group_expr().expr().iter().all(|(expr, name)| {
        let is_own = expr.downcast_ref::<Column>().is_some_and(|column| column.name() == name);
        is_own || below.column_with_name(name).is_none()
    })
}
