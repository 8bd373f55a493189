//! Joins as guests: a join measures its build side, gets its probe side in slices, and checks in its filter.
//!
//! A hash join that returns all its pairs needs nothing of this: it returns a batch of them at a time, and
//! the node above pauses.
//!
//! Invariant: the rows of the join stay the same.

use std::sync::Arc;

use datafusion::common::{JoinSide, JoinType, NullEquality, Result};
use datafusion::physical_expr::PhysicalExprRef;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, NestedLoopJoinExecBuilder,
};

use super::checked::CheckedExpr;
use super::exec::{GuestExec, Job};
use super::meter::Meter;
use super::slices::{Cut, Pairing, ProbeCut};
use crate::workload::StatementControl;

/// Returns a join with its guards; `None` for other nodes, and for a join that needs none. Its properties may
/// be other ones: nothing is known of the values of a checked expression.
pub(super) fn guarded_join(
    node: &Arc<dyn ExecutionPlan>,
    control: &Arc<StatementControl>,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    if let Some(join) = node.downcast_ref::<HashJoinExec>() {
        if join.filter().is_none() && returns_pairs(*join.join_type()) {
            return Ok(None);
        }
        let sides = Sides {
            pairing: Pairing::Hash,
            keys: join.on().iter().map(|(build, _)| Arc::clone(build)).collect(),
            nulls: join.null_equality(),
            // What is returned comes a batch at a time, however the input is cut.
            repeated: [JoinSide::Left, JoinSide::Right].map(|side| filtered(join.filter(), side)),
        };
        let inputs = sides.guarded(join.left(), join.right(), control).to_vec();
        let filter = join.filter().map(|filter| checked(filter, control));
        return join.builder().with_new_children(inputs)?.with_filter(filter).build_exec().map(Some);
    }
    if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>() {
        let sides = Sides::of_all(Pairing::Nested, Vec::new());
        let [build, probe] = sides.guarded(join.left(), join.right(), control);
        let join = NestedLoopJoinExecBuilder::new(build, probe, *join.join_type())
            .with_filter(join.filter().map(|filter| checked(filter, control)))
            .with_projection_ref(join.projection().clone())
            .build()?;
        return Ok(Some(Arc::new(join)));
    }
    if let Some(join) = node.downcast_ref::<CrossJoinExec>() {
        let columns = (0..join.left().schema().fields().len()).collect();
        let inputs = Sides::of_all(Pairing::Cross, columns).guarded(join.left(), join.right(), control);
        return replace_children_if_necessary(Arc::clone(node), inputs.to_vec()).map(Some);
    }
    Ok(None)
}

/// Whether a join returns each of its pairs as a row.
fn returns_pairs(join: JoinType) -> bool {
    matches!(join, JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full)
}

/// Returns the columns of a side that a filter uses.
fn filtered(filter: Option<&JoinFilter>, side: JoinSide) -> Vec<usize> {
    let columns = filter.into_iter().flat_map(JoinFilter::column_indices);
    columns.filter(|column| column.side == side).map(|column| column.index).collect()
}

fn checked(filter: &JoinFilter, control: &Arc<StatementControl>) -> JoinFilter {
    let expression = CheckedExpr::of(filter.expression(), control);
    JoinFilter::new(expression, filter.column_indices().to_vec(), Arc::clone(filter.schema()))
}

/// How the two sides of a join meet.
struct Sides {
    pairing: Pairing,
    /// The keys of the build side.
    keys: Vec<PhysicalExprRef>,
    nulls: NullEquality,
    /// The columns of the build and of the probe side that are repeated for each pair.
    repeated: [Vec<usize>; 2],
}

impl Sides {
    /// Returns the sides of a join that pairs all rows, with columns of the build side that are repeated.
    fn of_all(pairing: Pairing, columns: Vec<usize>) -> Self {
        let nulls = NullEquality::NullEqualsNothing;
        Self { pairing, keys: Vec::new(), nulls, repeated: [columns, Vec::new()] }
    }

    /// Returns the inputs of the join.
    fn guarded(
        self,
        build: &Arc<dyn ExecutionPlan>,
        probe: &Arc<dyn ExecutionPlan>,
        control: &Arc<StatementControl>,
    ) -> [Arc<dyn ExecutionPlan>; 2] {
        let Self { pairing, keys, nulls, repeated: [measured, columns] } = self;
        let partitions = build.properties().output_partitioning().partition_count();
        let meter = Meter::new(keys, nulls, measured, partitions);
        let build = GuestExec::above(Arc::clone(build), Job::Measure(Arc::clone(&meter)));
        let cut = Cut::Probe(ProbeCut { pairing, meter, columns });
        let probe = GuestExec::above(Arc::clone(probe), Job::Cut(Arc::new(cut)));
        [build, GuestExec::above(probe, Job::Pause(Arc::clone(control)))]
    }
}
