//! The rules of the physical optimizer: DataFusion's where they are right, and our own among them.

mod added_nulls;
mod build_reports;
mod filtered_statistics;
mod projections;
mod pushdown;
mod requirements;
mod scan_equalities;

use std::sync::Arc;

use datafusion::physical_optimizer::PhysicalOptimizerRule;

use self::added_nulls::AddedNulls;
use self::build_reports::BuildReports;
use self::filtered_statistics::UnfilteredStatistics;
use self::projections::FencedProjections;
use self::requirements::RepairingCheck;
use self::scan_equalities::ScanEqualities;

/// Returns the given physical optimizer rules with guards, and our rules among them.
pub(in crate::sql) fn physical_rules(
    rules: Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>>,
) -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    let mut guarded = vec![Arc::new(AddedNulls) as _];
    for rule in pushdown::guarded(rules) {
        match rule.name() {
            "ProjectionPushdown" => guarded.push(Arc::new(FencedProjections(rule)) as _),
            "SanityCheckPlan" => guarded.push(Arc::new(RepairingCheck(rule)) as _),
            "aggregate_statistics" => guarded.push(Arc::new(UnfilteredStatistics(rule)) as _),
            "FilterPushdown" => guarded.extend([rule, Arc::new(ScanEqualities) as _]),
            "FilterPushdown(Post)" => guarded.extend([rule, Arc::new(BuildReports) as _]),
            _ => guarded.push(rule),
        }
    }
    guarded
}
