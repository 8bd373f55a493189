//! Types parameters that are a column's whole value: each takes the type of its column.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::FieldRef;
use datafusion::logical_expr::expr::{Alias, Placeholder};
use datafusion::logical_expr::{Expr, LogicalPlan, Projection};

use super::parameter_types::ParameterUse;
use super::planner::Planned;
use crate::error::Result;

/// Types bare placeholders among a plan's output columns, each by its field in `fields`.
pub(crate) fn type_placeholders(mut planned: Planned, fields: &[FieldRef]) -> Result<Planned> {
    let LogicalPlan::Projection(Projection { expr, input, .. }) = planned.plan else { return Ok(planned) };
    let typed = expr
        .into_iter()
        .zip(fields.iter().map(Some).chain(std::iter::repeat(None)))
        .map(|(expr, field)| match field {
            Some(field) => typed(expr, field, &mut planned.uses),
            None => expr,
        })
        .collect();
    planned.plan = LogicalPlan::Projection(Projection::try_new(typed, input)?);
    Ok(planned)
}

fn typed(expr: Expr, field: &FieldRef, uses: &mut HashMap<String, ParameterUse>) -> Expr {
    match expr {
        Expr::Placeholder(Placeholder { id, field: None }) => {
            uses.insert(id.clone(), ParameterUse::Assigned);
            Expr::Placeholder(Placeholder { id, field: Some(Arc::clone(field)) })
        }
        Expr::Alias(Alias { expr, relation, name, metadata, .. })
            if matches!(*expr, Expr::Placeholder(_)) =>
        {
            Expr::Alias(Alias::new(typed(*expr, field, uses), relation, name).with_metadata(metadata))
        }
        other => other,
    }
}
