//! An aggregation by several grouping sets as one aggregation per set, for correlated subqueries: an empty
//! set has a row for each value of the outer columns, the others do not.

use std::sync::Arc;

use datafusion::common::{Column, Result, ScalarValue};
use datafusion::functions_aggregate::count::count;
use datafusion::logical_expr::utils::grouping_set_to_exprlist;
use datafusion::logical_expr::{
    Aggregate, Expr, ExprSchemable, GroupingSet, LogicalPlan, LogicalPlanBuilder, Union, cast, lit,
};

use super::builders::named;
use crate::error::Error;

/// Returns a UNION ALL with the same rows and columns.
pub(super) fn as_union(aggregate: &Aggregate) -> Result<LogicalPlan> {
    let [Expr::GroupingSet(sets)] = aggregate.group_expr.as_slice() else {
        return Err(Error::unsupported("a correlated subquery with several grouping sets").into());
    };
    let grouped: Vec<Expr> = grouping_set_to_exprlist(&aggregate.group_expr)?.into_iter().cloned().collect();
    let inputs = sets_of(sets)
        .into_iter()
        .map(|set| branch(aggregate, &grouped, &set).map(Arc::new))
        .collect::<Result<Vec<_>>>()?;
    let union = match inputs.as_slice() {
        [one] => LogicalPlan::clone(one),
        _ => LogicalPlan::Union(Union::try_new_with_loose_types(inputs)?),
    };
    let columns = aggregate.schema.columns().into_iter().enumerate();
    let columns =
        columns.map(|(place, column)| named(&name_of(place)).alias_qualified(column.relation, column.name));
    LogicalPlanBuilder::from(union).project(columns)?.build()
}

fn name_of(place: usize) -> String {
    format!("__grouped_{place}")
}

/// The aggregation by one set, with NULL for columns that only other sets have.
fn branch(aggregate: &Aggregate, grouped: &[Expr], set: &[Expr]) -> Result<LogicalPlan> {
    let input = &aggregate.input;
    let mut aggregates = aggregate.aggr_expr.clone();
    if set.is_empty() && aggregates.is_empty() {
        // An aggregation must compute something: with count(1) it returns its row.
        aggregates.push(count(lit(1_i64)));
    }
    let one = Aggregate::try_new(Arc::clone(input), set.to_vec(), aggregates)?;
    let mut exprs = Vec::with_capacity(aggregate.schema.fields().len());
    for expr in grouped {
        exprs.push(match set.iter().position(|own| own == expr) {
            Some(place) => column(&one, place),
            None => lit(ScalarValue::try_from(&expr.get_type(input.schema())?)?),
        });
    }
    // A bit is set for each column that the set lacks; the last column has the lowest bit.
    let bits = grouped.iter().fold(0_u64, |bits, expr| (bits << 1) | u64::from(!set.contains(expr)));
    exprs.push(cast(lit(bits), aggregate.schema.field(grouped.len()).data_type().clone()));
    exprs.extend((0..aggregate.aggr_expr.len()).map(|place| column(&one, set.len() + place)));
    let exprs = exprs.into_iter().enumerate().map(|(place, expr)| expr.alias(name_of(place)));
    LogicalPlanBuilder::from(LogicalPlan::Aggregate(one)).project(exprs)?.build()
}

fn column(aggregate: &Aggregate, place: usize) -> Expr {
    let (relation, field) = aggregate.schema.qualified_field(place);
    Expr::Column(Column::from((relation, field)))
}

fn sets_of(sets: &GroupingSet) -> Vec<Vec<Expr>> {
    match sets {
        GroupingSet::GroupingSets(sets) => sets.clone(),
        GroupingSet::Rollup(exprs) => {
            (0..=exprs.len()).rev().map(|len| exprs.iter().take(len).cloned().collect()).collect()
        }
        GroupingSet::Cube(exprs) => (0..1_u64 << exprs.len().min(16))
            .map(|set| {
                let is_in = |place: usize| (set >> place) & 1 == 0;
                exprs
                    .iter()
                    .enumerate()
                    .filter(|(place, _)| is_in(*place))
                    .map(|(_, expr)| expr.clone())
                    .collect()
            })
            .collect(),
    }
}
