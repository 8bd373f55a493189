//! One walk over a plan for all rewrites of expressions, subqueries included.

use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, ExprSchema, Result};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, Subquery};

use super::operations;
use crate::sql::limits::stack::deep;

/// A rewrite of one expression whose parts are already rewritten; `schema` has the columns it can reference.
pub(super) type Rewrite = fn(Expr, &DFSchema) -> Result<Transformed<Expr>>;

/// Applies the rewrites, in order, to every expression of a plan, innermost first. Columns keep their names.
pub(super) fn rewrite_expressions(plan: LogicalPlan, rewrites: &[Rewrite]) -> Result<LogicalPlan> {
    walk(plan, &[], rewrites)
}

fn walk(plan: LogicalPlan, outer: &[Arc<DFSchema>], rewrites: &[Rewrite]) -> Result<LogicalPlan> {
    deep(|| {
        let plan = plan.map_children(|child| walk(child, outer, rewrites).map(Transformed::yes))?.data;
        let schema = Arc::new(schema_of_inputs(&plan)?);
        let plan = plan
            .map_subqueries(|subquery| {
                let mut outer = outer.to_vec();
                outer.push(Arc::clone(&schema));
                let LogicalPlan::Subquery(subquery) = subquery else { return Ok(Transformed::no(subquery)) };
                let plan = walk(Arc::unwrap_or_clone(Arc::clone(&subquery.subquery)), &outer, rewrites)?;
                let outer_ref_columns = plan.all_out_ref_exprs();
                let subquery =
                    Subquery { subquery: Arc::new(plan), outer_ref_columns, spans: subquery.spans };
                Ok(Transformed::yes(LogicalPlan::Subquery(subquery)))
            })?
            .data;
        let names = NamePreserver::new(&plan);
        let plan = plan.map_expressions(|expr| {
            let name = names.save(&expr);
            let rewritten = expr.transform_up(|mut expr| {
                let mut transformed = false;
                if let Expr::OuterReferenceColumn(field, column) = &expr
                    && let Some(known) =
                        outer.iter().rev().find_map(|schema| schema.field_from_column(column).ok())
                    && known.data_type() != field.data_type()
                {
                    expr = Expr::OuterReferenceColumn(Arc::clone(known), column.clone());
                    transformed = true;
                }
                for rewrite in rewrites {
                    let rewritten = rewrite(expr, &schema)?;
                    transformed |= rewritten.transformed;
                    expr = rewritten.data;
                }
                Ok(Transformed::new_transformed(expr, transformed))
            })?;
            Ok(if rewritten.transformed {
                rewritten.update_data(|expr| name.restore(expr))
            } else {
                rewritten
            })
        })?;
        plan.data.recompute_schema()
    })
}

/// Whether a plan or one of its subqueries has a node for which `is_wanted` holds.
pub(super) fn has_node(plan: &LogicalPlan, is_wanted: impl Fn(&LogicalPlan) -> bool) -> Result<bool> {
    let found = plan.apply_with_subqueries(|node| {
        Ok(if is_wanted(node) { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found == TreeNodeRecursion::Stop)
}

/// Returns the columns that a node's expressions can reference.
pub(super) fn schema_of_inputs(plan: &LogicalPlan) -> Result<DFSchema> {
    let mut schema = DFSchema::empty();
    for input in plan.inputs() {
        schema.merge(input.schema());
    }
    if let LogicalPlan::TableScan(scan) = plan {
        schema.merge(&DFSchema::try_from_qualified_schema(scan.table_name.clone(), &scan.source.schema())?);
    }
    Ok(schema)
}

/// Returns the type of an expression, if it has one yet.
pub(super) fn type_of(expr: &Expr, schema: &DFSchema) -> Option<DataType> {
    // The planner would first write out each operand's name, again and again in a long chain.
    if let Expr::ScalarFunction(call) = expr
        && operations::is_checked(&call.func)
    {
        let types = call.args.iter().map(|arg| type_of(arg, schema)).collect::<Option<Vec<_>>>()?;
        return call.func.inner().return_type(&types).ok();
    }
    expr.get_type(schema).ok()
}
