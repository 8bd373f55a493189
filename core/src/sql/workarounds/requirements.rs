//! Rules that move projections can take from a node above the order or distribution it needs, after the rule that sees to it has run.
//!
//! A union that gets a projection pushed below it no longer knows that two of its columns are the same, so a window above that sorts by
//! both is without its order, and DataFusion's last check refuses the plan. Then what is missing is put in once more.

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::{DataFusionError, Result};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::ensure_requirements::EnsureRequirements;
use datafusion::physical_plan::ExecutionPlan;

/// DataFusion's check `SanityCheckPlan`, which mends before it refuses.
#[derive(Debug)]
pub(super) struct MendingCheck(pub(super) Arc<dyn PhysicalOptimizerRule + Send + Sync>);

impl PhysicalOptimizerRule for MendingCheck {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if let Ok(checked) = self.0.optimize(Arc::clone(&plan), config) {
            return Ok(checked);
        }
        let mended = EnsureRequirements::new().optimize(plan, config)?;
        // A plan that cannot be run is no mistake of who asks.
        self.0.optimize(mended, config).map_err(|error| DataFusionError::Internal(error.to_string()))
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn schema_check(&self) -> bool {
        self.0.schema_check()
    }
}
