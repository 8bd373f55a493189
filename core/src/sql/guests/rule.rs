//! Ends the planning of a statement that must stop. Planning folds constants, which can take long.
//!
//! Invariant: the rule changes no plan.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::Transformed;
use datafusion::logical_expr::LogicalPlan;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

use super::options::GuestOptions;

type Rule = Arc<dyn OptimizerRule + Send + Sync>;

/// Returns the rules with a check before the first, in the middle and after the last.
pub(in crate::sql) fn with_stops(mut rules: Vec<Rule>) -> Vec<Rule> {
    rules.insert(rules.len() / 2, Arc::new(StopRule));
    rules.insert(0, Arc::new(StopRule));
    rules.push(Arc::new(StopRule));
    rules
}

/// Fails when the statement must stop.
#[derive(Debug)]
struct StopRule;

impl OptimizerRule for StopRule {
    fn name(&self) -> &'static str {
        "kalam_stop"
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if let Some(control) = GuestOptions::control(&config.options()) {
            control.check()?;
        }
        Ok(Transformed::no(plan))
    }
}

#[cfg(test)]
mod tests {
    use datafusion::common::config::ConfigOptions;
    use datafusion::logical_expr::LogicalPlanBuilder;
    use datafusion::optimizer::{Optimizer, OptimizerContext};

    use super::*;
    use crate::config::Config;
    use crate::error::{Error, SqlState};
    use crate::workload::{StatementControl, StopReason};

    #[test]
    fn planning_ends_when_the_statement_must_stop() {
        let control = StatementControl::new(&Config::in_memory());
        let mut options = ConfigOptions::default();
        options.extensions.insert(GuestOptions(Arc::clone(&control)));
        let context = OptimizerContext::new_with_config_options(Arc::new(options));
        let optimizer = Optimizer::with_rules(with_stops(Optimizer::new().rules));
        let plan = LogicalPlanBuilder::empty(true).build().unwrap();
        optimizer.optimize(plan.clone(), &context, |_, _| {}).unwrap();
        control.stop(StopReason::ClientGone);
        let error = Error::from(optimizer.optimize(plan, &context, |_, _| {}).unwrap_err());
        assert_eq!(error.sqlstate(), SqlState::QUERY_CANCELED);
    }
}
