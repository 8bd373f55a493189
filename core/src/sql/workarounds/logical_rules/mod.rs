//! The rules of the logical optimizer: DataFusion's where they are right, and our own among them.

mod constant_filters;
mod dependencies;
mod equalities;
mod null_equality;
mod same_types;
mod simplification;

use std::sync::Arc;

use datafusion::optimizer::{Optimizer, OptimizerRule};

use self::constant_filters::GuardedPushDown;
use self::dependencies::WithoutDependencies;
use self::equalities::EqualitiesRule;
use self::null_equality::{GuardedKeys, GuardedOrder};
use self::same_types::SameTypes;
use self::simplification::ShieldedSimplification;

pub(crate) use self::simplification::simplify;

/// Returns DataFusion's logical optimizer rules, with our rules among them.
pub(in crate::sql) fn optimizer_rules() -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
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
