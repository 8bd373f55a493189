//! Parameters that stand alone as a value for a column take the column's type.

use std::sync::Arc;

use datafusion::arrow::datatypes::FieldRef;
use datafusion::logical_expr::expr::{Alias, Placeholder};
use datafusion::logical_expr::{Expr, LogicalPlan, Projection};

use crate::error::Result;

/// Types the placeholders that are a plan's columns by themselves; the plan's columns are `fields`, in order.
pub(crate) fn type_placeholders(plan: LogicalPlan, fields: &[FieldRef]) -> Result<LogicalPlan> {
    let LogicalPlan::Projection(Projection { expr, input, .. }) = plan else { return Ok(plan) };
    let typed = expr
        .into_iter()
        .zip(fields.iter().map(Some).chain(std::iter::repeat(None)))
        .map(|(expr, field)| match field {
            Some(field) => typed(expr, field),
            None => expr,
        })
        .collect();
    Ok(LogicalPlan::Projection(Projection::try_new(typed, Arc::clone(&input))?))
}

fn typed(expr: Expr, field: &FieldRef) -> Expr {
    match expr {
        Expr::Placeholder(Placeholder { id, field: None }) => {
            Expr::Placeholder(Placeholder { id, field: Some(Arc::clone(field)) })
        }
        Expr::Alias(Alias { expr, relation, name, metadata, .. })
            if matches!(*expr, Expr::Placeholder(_)) =>
        {
            Expr::Alias(Alias::new(typed(*expr, field), relation, name).with_metadata(metadata))
        }
        other => other,
    }
}
