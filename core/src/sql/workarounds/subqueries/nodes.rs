//! Rewrites the nodes of a plan, from the bottom up.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{JoinType, Result};
use datafusion::logical_expr::expr::Sort as SortExpr;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{
    Distinct, DistinctOn, Expr, Filter, Join, LogicalPlan, LogicalPlanBuilder, lit,
};

use super::builders::{join, renamed, values_as_union, with_columns};
use super::outer::{has_column, has_subquery, lateral_side, outer_columns, subquery_of};
use super::{Input, Rewriter};
use crate::error::Error;
use crate::sql::limits::stack::deep;

impl Rewriter {
    /// Rewrites a plan.
    pub(super) fn plan(&mut self, plan: LogicalPlan) -> Result<LogicalPlan> {
        deep(|| {
            // A LATERAL that references nothing on its left.
            if let LogicalPlan::Subquery(subquery) = plan {
                return self.plan(Arc::unwrap_or_clone(subquery.subquery));
            }
            if let LogicalPlan::Join(node) = &plan
                && let Some((subquery, alias)) = lateral_side(node)?
            {
                return self.lateral(node.clone(), subquery, alias.cloned());
            }
            let plan = plan.map_children(|child| self.plan(child).map(Transformed::yes))?.data;
            if !has_any_subquery(&plan)? {
                return Ok(plan);
            }
            match plan {
                LogicalPlan::Values(values) => {
                    let rows = values_as_union(&values)?;
                    self.plan(rows)
                }
                LogicalPlan::Join(join) => self.join_node(join),
                LogicalPlan::Filter(filter) => self.filter_node(filter),
                LogicalPlan::Distinct(Distinct::On(distinct)) => self.distinct_on_node(distinct),
                node => self.other_node(node),
            }
        })
    }

    pub(super) fn filter_node(&mut self, filter: Filter) -> Result<LogicalPlan> {
        let columns = filter.input.schema().columns();
        let original = Arc::unwrap_or_clone(filter.input);
        let mut input = Input { plan: original.clone(), original };
        let mut conditions = Vec::new();
        for condition in split_conjunction_owned(filter.predicate) {
            conditions.push(self.condition(condition, &mut input)?);
        }
        let plan = match conjunction(conditions) {
            Some(predicate) => LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(input.plan))?),
            None => input.plan,
        };
        with_columns(plan, columns)
    }

    /// Rewrites any node with one input and expressions over it.
    fn other_node(&mut self, node: LogicalPlan) -> Result<LogicalPlan> {
        let columns = node.schema().columns();
        let Some(original) = node.inputs().first().map(|input| LogicalPlan::clone(input)) else {
            return Err(Error::unsupported("a subquery in this place").into());
        };
        let original = with_missing_columns(&node, original)?;
        let mut input = Input { plan: original.clone(), original };
        let exprs = node
            .expressions()
            .into_iter()
            .map(|expr| {
                let value = self.value(expr.clone(), &mut input)?;
                match &node {
                    LogicalPlan::Projection(_) | LogicalPlan::Aggregate(_) | LogicalPlan::Window(_) => {
                        renamed(&expr, value)
                    }
                    _ => Ok(value),
                }
            })
            .collect::<Result<Vec<_>>>()?;
        let node = node.with_new_exprs(exprs, vec![input.plan])?.recompute_schema()?;
        with_columns(node, columns)
    }

    fn distinct_on_node(&mut self, node: DistinctOn) -> Result<LogicalPlan> {
        let original = Arc::unwrap_or_clone(node.input);
        let mut input = Input { plan: original.clone(), original };
        let mut values = |exprs: Vec<Expr>, input: &mut Input| -> Result<Vec<Expr>> {
            exprs.into_iter().map(|expr| self.value(expr, input)).collect()
        };
        let on = values(node.on_expr, &mut input)?;
        let shown = node.select_expr.clone();
        let select = values(node.select_expr, &mut input)?;
        let select = shown.iter().zip(select).map(|(old, new)| renamed(old, new)).collect::<Result<_>>()?;
        let mut order = Vec::new();
        for sort in node.sort_expr.into_iter().flatten() {
            order.push(SortExpr { expr: self.value(sort.expr, &mut input)?, ..sort });
        }
        let order = (!order.is_empty()).then_some(order);
        let distinct = DistinctOn::try_new(on, select, order, Arc::new(input.plan))?;
        Ok(LogicalPlan::Distinct(Distinct::On(distinct)))
    }

    /// Subquery conditions of an inner join become a filter; those of an outer join must belong to one side.
    fn join_node(&mut self, node: Join) -> Result<LogicalPlan> {
        let (with, without): (Vec<Expr>, Vec<Expr>) =
            split_conjunction_owned(node.filter.unwrap_or_else(|| lit(true)))
                .into_iter()
                .partition(|condition| has_subquery(condition).unwrap_or(true));
        let columns = node.schema.columns();
        let (left, right) = (Arc::unwrap_or_clone(node.left), Arc::unwrap_or_clone(node.right));
        if node.join_type == JoinType::Inner {
            let joined =
                join(left, right, node.on, conjunction(without), JoinType::Inner, node.null_equality)?;
            let predicate = conjunction(with).unwrap_or_else(|| lit(true));
            return self.filter_node(Filter::try_new(predicate, Arc::new(joined))?);
        }
        let mut left = Input { plan: left.clone(), original: left };
        let mut right = Input { plan: right.clone(), original: right };
        let mut conditions = without;
        for condition in with {
            let side = [&mut left, &mut right]
                .into_iter()
                .find(|side| names_only(&condition, &side.original).unwrap_or(false));
            let Some(side) = side else {
                return Err(Error::unsupported("a subquery in ON of an outer join that names both tables")
                    .hint("compute it in a subquery in FROM first")
                    .into());
            };
            conditions.push(self.value(condition, side)?);
        }
        let filter = conjunction(conditions);
        let joined = join(left.plan, right.plan, node.on, filter, node.join_type, node.null_equality)?;
        with_columns(joined, columns)
    }
}

fn has_any_subquery(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_expressions(|expr| {
        found |= has_subquery(expr)?;
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Whether a condition references only columns of `plan`, also in its subqueries.
fn names_only(condition: &Expr, plan: &LogicalPlan) -> Result<bool> {
    let schema = plan.schema();
    let mut is_own = condition.column_refs().into_iter().all(|column| has_column(schema, column));
    condition.apply(|part| {
        if let Some(subquery) = subquery_of(part) {
            is_own &=
                outer_columns(&subquery.subquery)?.iter().all(|outer| has_column(schema, &outer.column));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(is_own)
}

/// Adds to a sort's input the columns that a subquery in ORDER BY references and the select list lacks.
fn with_missing_columns(node: &LogicalPlan, input: LogicalPlan) -> Result<LogicalPlan> {
    let (LogicalPlan::Sort(sort), LogicalPlan::Projection(projection)) = (node, &input) else {
        return Ok(input);
    };
    let mut exprs = projection.expr.clone();
    for sort in &sort.expr {
        sort.expr.apply(|part| {
            let Some(subquery) = subquery_of(part) else { return Ok(TreeNodeRecursion::Continue) };
            for outer in outer_columns(&subquery.subquery)? {
                let is_missing = !has_column(input.schema(), &outer.column)
                    && has_column(projection.input.schema(), &outer.column)
                    && !exprs.contains(&Expr::Column(outer.column.clone()));
                if is_missing {
                    exprs.push(Expr::Column(outer.column));
                }
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    if exprs.len() == projection.expr.len() {
        return Ok(input);
    }
    LogicalPlanBuilder::from(LogicalPlan::clone(&projection.input)).project(exprs)?.build()
}
