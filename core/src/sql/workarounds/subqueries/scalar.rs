//! Scalar subqueries: each becomes a column of its node's input.

use std::sync::Arc;

use datafusion::catalog::cte_worktable::CteWorkTable;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, JoinType, NullEquality, Result, Spans};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, LogicalPlanBuilder, Subquery};

use super::builders::{first_column, join, named};
use super::dependent::Domain;
use super::equal::EqualAggregate;
use super::existence::has_one_row;
use super::outer::{OuterColumn, has_column, outer_columns};
use super::{Input, Rewriter, single_row};
use crate::error::Error;

impl Rewriter {
    /// The value of a scalar subquery; NULL if it has no row.
    pub(super) fn scalar_of(&mut self, plan: &LogicalPlan, input: &mut Input) -> Result<Expr> {
        let outer = outer_columns(plan)?;
        if outer.is_empty() {
            let subquery = self.plan(plan.clone())?;
            if !has_one_row(&subquery) {
                return self.single_value(subquery, input);
            }
            return Ok(Expr::ScalarSubquery(Subquery {
                subquery: Arc::new(subquery),
                outer_ref_columns: Vec::new(),
                spans: Spans::new(),
            }));
        }
        if let Some(aggregate) = EqualAggregate::of(plan)? {
            return self.equal_aggregate(&aggregate, input);
        }
        let domain = self.domain(&outer, input)?;
        let unnested = self.plan(domain.unnest(plan)?)?;
        self.join_unnested(plan, &domain, unnested, input)
    }

    /// The value of a subquery that should have one row; using it fails if there are more.
    fn single_value(&mut self, subquery: LogicalPlan, input: &mut Input) -> Result<Expr> {
        let (value_name, rows_name) = (self.name("value"), self.name("rows"));
        let aggregates = single_row::value_and_rows(&subquery, &value_name, &rows_name);
        let single = Aggregate::try_new(Arc::new(subquery), Vec::new(), aggregates)?;
        let left = std::mem::take(&mut input.plan);
        input.plan = LogicalPlanBuilder::from(left).cross_join(LogicalPlan::Aggregate(single))?.build()?;
        Ok(single_row::checked(named(&value_name), named(&rows_name)))
    }

    /// The domain of outer columns.
    pub(super) fn domain(&mut self, outer: &[OuterColumn], input: &Input) -> Result<Domain> {
        let schema = input.original.schema();
        if let Some(unknown) = outer.iter().find(|outer| !has_column(schema, &outer.column)) {
            let column = unknown.column.flat_name();
            return Err(Error::unsupported(format!(
                "column \"{column}\" of a query beyond the enclosing one"
            ))
            .into());
        }
        refuse_volatile(&input.original)?;
        refuse_recursion(&input.original)?;
        self.copies.add(&input.original)?;
        let columns: Vec<(Column, String)> =
            outer.iter().map(|outer| (outer.column.clone(), self.name("outer"))).collect();
        let values = columns.iter().map(|(column, name)| Expr::Column(column.clone()).alias(name));
        let plan = LogicalPlanBuilder::from(input.original.clone()).project(values)?.distinct()?.build()?;
        Ok(Domain { plan, columns })
    }

    /// Joins the rows of a subquery to the node's rows, at most one to each.
    fn join_unnested(
        &mut self,
        plan: &LogicalPlan,
        domain: &Domain,
        unnested: LogicalPlan,
        input: &mut Input,
    ) -> Result<Expr> {
        let (value_name, rows_name) = (self.name("value"), self.name("rows"));
        let is_single = plan.max_rows().is_some_and(|rows| rows <= 1);
        let groups = domain.columns.iter().map(|(_, name)| named(name));
        let right = if is_single {
            let exprs = groups.chain([first_column(plan).alias(&value_name)]);
            LogicalPlanBuilder::from(unnested).project(exprs)?.build()?
        } else {
            let aggregates = single_row::value_and_rows(plan, &value_name, &rows_name);
            LogicalPlan::Aggregate(Aggregate::try_new(Arc::new(unnested), groups.collect(), aggregates)?)
        };
        let on =
            domain.columns.iter().map(|(column, name)| (Expr::Column(column.clone()), named(name))).collect();
        let left = std::mem::take(&mut input.plan);
        input.plan = join(left, right, on, None, JoinType::Left, NullEquality::NullEqualsNull)?;
        let value = named(&value_name);
        Ok(if is_single { value } else { single_row::checked(value, named(&rows_name)) })
    }
}

/// Refuses to read the input of a recursive step twice; it can be read only once.
fn refuse_recursion(plan: &LogicalPlan) -> Result<()> {
    let is_step = |node: &LogicalPlan| match node {
        LogicalPlan::TableScan(scan) => {
            source_as_provider(&scan.source).is_ok_and(|table| table.downcast_ref::<CteWorkTable>().is_some())
        }
        _ => false,
    };
    if plan.exists(|node| Ok(is_step(node)))? {
        return Err(Error::unsupported("a correlated subquery in the recursive part of WITH RECURSIVE")
            .hint("join the tables instead")
            .into());
    }
    Ok(())
}

/// Refuses volatile functions in a plan that is computed twice: both results must be the same.
pub(super) fn refuse_volatile(plan: &LogicalPlan) -> Result<()> {
    let mut is_volatile = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            is_volatile |= expr.is_volatile();
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    if is_volatile {
        return Err(Error::unsupported("a subquery next to a function such as random() in this place")
            .hint("store one of the two results in a table first")
            .into());
    }
    Ok(())
}
