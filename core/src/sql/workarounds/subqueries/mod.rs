//! Subqueries for which DataFusion's own decorrelation is wrong or missing.
//!
//! | subquery | DataFusion 55 | here |
//! |---|---|---|
//! | `NOT IN`, and `IN` whose NULL matters | two-valued, or for one key only | see [`membership`] |
//! | `EXISTS` over an aggregate, with OFFSET, below CASE or in the select list | wrong or refused | a count |
//! | scalar, with HAVING, LIMIT or several rows | wrong or refused | [`dependent`] |
//! | scalar, correlated by inequality or over two levels | wrong or refused | [`dependent`] |
//! | in ORDER BY, JOIN ON, VALUES | refused | computed below the node |
//! | LATERAL | wrong with a window or an outer join inside, or refused | [`lateral`] |
//!
//! DataFusion keeps uncorrelated scalar subqueries, and `EXISTS`, `NOT EXISTS` and `IN` as conditions of
//! WHERE over a plain SELECT, whatever correlates it: they become semi joins and anti joins.
//!
//! Invariant: after the rewrite, a correlated subquery stands only where DataFusion handles it correctly.

mod dependent;
mod equal;
mod grouping_sets;
mod lateral;
mod membership;
mod nullable;
mod outer;
mod single_row;

use std::sync::Arc;

use datafusion::catalog::cte_worktable::CteWorkTable;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, JoinType, NullEquality, Result};
use datafusion::datasource::source_as_provider;
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::logical_expr::expr::{
    AggregateFunction, Exists, InSubquery, SetComparison, Sort as SortExpr,
};
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{
    Aggregate, Distinct, DistinctOn, Expr, FetchType, Filter, Join, LogicalPlan, LogicalPlanBuilder,
    Projection, SkipType, Subquery, lit, when,
};

use self::dependent::{Domain, is_correlated, join, named, renamed, values_as_union};
use self::equal::EqualAggregate;
pub(super) use self::nullable::may_be_null;
use self::outer::{has_column, has_subquery, lateral_side, outer_columns, subquery_of, with_plan};
use crate::error::Error;
use crate::failpoint::is_planted;
use crate::sql::complexity::Copies;

/// Decorrelates the subqueries of a plan after type coercion.
pub(super) fn decorrelate(plan: LogicalPlan) -> Result<LogicalPlan> {
    if is_planted("subqueries_as_datafusion_has_them") {
        return Ok(plan);
    }
    Rewriter::default().plan(plan)
}

#[derive(Default)]
struct Rewriter {
    /// How many names were given so far; makes names unique.
    names: usize,
    copies: Copies,
}

/// The input of a node, before and after its subqueries add columns.
struct Input {
    /// Without added columns.
    original: LogicalPlan,
    /// With the columns that stand for subqueries.
    plan: LogicalPlan,
}

impl Rewriter {
    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("__{what}_{}", self.names)
    }

    fn plan(&mut self, plan: LogicalPlan) -> Result<LogicalPlan> {
        crate::sql::stack::deep(|| {
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

    fn filter_node(&mut self, filter: Filter) -> Result<LogicalPlan> {
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
                    .hint("compute it in a subquery of FROM first")
                    .into());
            };
            conditions.push(self.value(condition, side)?);
        }
        let filter = conjunction(conditions);
        let joined = join(left.plan, right.plan, node.on, filter, node.join_type, node.null_equality)?;
        with_columns(joined, columns)
    }

    /// Rewrites a condition of WHERE, where NULL counts as false.
    fn condition(&mut self, condition: Expr, input: &mut Input) -> Result<Expr> {
        let (condition, negated) = match condition {
            Expr::Not(inner) if matches!(*inner, Expr::Exists(_) | Expr::InSubquery(_)) => (*inner, true),
            other => (other, false),
        };
        match condition {
            Expr::Exists(Exists { subquery, negated: is_not }) => {
                let negated = negated != is_not;
                match existence(&subquery.subquery)? {
                    Existence::Known(exists) => Ok(lit(exists != negated)),
                    Existence::Of(plan) if is_plain_correlation(&plan, &input.original)? => {
                        let plan = self.plan(plan)?;
                        with_plan(Expr::Exists(Exists { subquery, negated }), plan)
                    }
                    Existence::Of(plan) => {
                        let exists = self.exists(&plan, input)?;
                        Ok(if negated { Expr::Not(Box::new(exists)) } else { exists })
                    }
                }
            }
            Expr::InSubquery(InSubquery { expr, subquery, negated: is_not }) => {
                let expr = self.value(*expr, input)?;
                if negated != is_not {
                    self.not_in_condition(expr, &subquery, input)
                } else {
                    self.in_condition(expr, subquery, input)
                }
            }
            other => {
                let value = self.value(other, input)?;
                Ok(if negated { Expr::Not(Box::new(value)) } else { value })
            }
        }
    }

    /// Replaces the subqueries of an expression by columns; every value is exact, NULL included.
    fn value(&mut self, expr: Expr, input: &mut Input) -> Result<Expr> {
        if !has_subquery(&expr)? {
            return Ok(expr);
        }
        let rewritten = expr.transform_up(|part| match part {
            Expr::ScalarSubquery(subquery) => self.scalar(&subquery, input).map(Transformed::yes),
            Expr::Exists(Exists { subquery, negated }) => {
                let exists = match existence(&subquery.subquery)? {
                    Existence::Known(exists) => lit(exists),
                    Existence::Of(plan) => self.exists(&plan, input)?,
                };
                Ok(Transformed::yes(if negated { Expr::Not(Box::new(exists)) } else { exists }))
            }
            Expr::InSubquery(InSubquery { expr, subquery, negated }) => {
                let within = self.in_value(*expr, &subquery, input)?;
                Ok(Transformed::yes(if negated { Expr::Not(Box::new(within)) } else { within }))
            }
            Expr::SetComparison(comparison) => self.set_comparison(comparison, input).map(Transformed::yes),
            other => Ok(Transformed::no(other)),
        })?;
        Ok(rewritten.data)
    }

    /// Whether a subquery has rows.
    fn exists(&mut self, plan: &LogicalPlan, input: &mut Input) -> Result<Expr> {
        let plan = if is_correlated(plan)? {
            plan.clone()
        } else {
            // One row is enough to know.
            LogicalPlanBuilder::from(plan.clone()).limit(0, Some(1))?.build()?
        };
        let count = Expr::AggregateFunction(AggregateFunction::new_udf(
            count_udaf(),
            vec![lit(1_i64)],
            false,
            None,
            Vec::new(),
            None,
        ));
        let name = self.name("count");
        let counted = Aggregate::try_new(Arc::new(plan), Vec::new(), vec![count.alias(name)])?;
        let count = self.scalar_of(&LogicalPlan::Aggregate(counted), input)?;
        Ok(count.gt(lit(0_i64)))
    }

    fn scalar(&mut self, subquery: &Subquery, input: &mut Input) -> Result<Expr> {
        self.scalar_of(&subquery.subquery, input)
    }

    /// The value of a scalar subquery; NULL if it has no row.
    fn scalar_of(&mut self, plan: &LogicalPlan, input: &mut Input) -> Result<Expr> {
        let outer = outer_columns(plan)?;
        if outer.is_empty() {
            let subquery = self.plan(plan.clone())?;
            if !has_one_row(&subquery) {
                return self.single_value(subquery, input);
            }
            return Ok(Expr::ScalarSubquery(Subquery {
                subquery: Arc::new(subquery),
                outer_ref_columns: Vec::new(),
                spans: datafusion::common::Spans::new(),
            }));
        }
        if let Some(aggregate) = EqualAggregate::of(plan)? {
            return self.equal_aggregate(&aggregate, input);
        }
        let domain = self.domain(&outer, input)?;
        let spread = self.plan(domain.spread(plan)?)?;
        self.join_spread(plan, &domain, spread, input)
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
    fn domain(&mut self, outer: &[outer::OuterColumn], input: &Input) -> Result<Domain> {
        let schema = input.original.schema();
        if let Some(unknown) = outer.iter().find(|outer| !has_column(schema, &outer.column)) {
            let column = unknown.column.flat_name();
            return Err(Error::unsupported(format!(
                "column \"{column}\" of a query further out, in this place"
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
    fn join_spread(
        &mut self,
        plan: &LogicalPlan,
        domain: &Domain,
        spread: LogicalPlan,
        input: &mut Input,
    ) -> Result<Expr> {
        let (relation, field) = plan.schema().qualified_field(0);
        let value = Expr::Column(Column::from((relation, field)));
        let (value_name, rows_name) = (self.name("value"), self.name("rows"));
        let is_single = plan.max_rows().is_some_and(|rows| rows <= 1);
        let groups = domain.columns.iter().map(|(_, name)| named(name));
        let right = if is_single {
            let exprs = groups.chain([value.alias(&value_name)]);
            LogicalPlanBuilder::from(spread).project(exprs)?.build()?
        } else {
            let aggregates = single_row::value_and_rows(plan, &value_name, &rows_name);
            LogicalPlan::Aggregate(Aggregate::try_new(Arc::new(spread), groups.collect(), aggregates)?)
        };
        let on =
            domain.columns.iter().map(|(column, name)| (Expr::Column(column.clone()), named(name))).collect();
        let left = std::mem::take(&mut input.plan);
        input.plan = join(left, right, on, None, JoinType::Left, NullEquality::NullEqualsNull)?;
        let value = named(&value_name);
        Ok(if is_single { value } else { single_row::checked(value, named(&rows_name)) })
    }

    /// Replaces an aggregation over rows equal to the outer columns by a LEFT JOIN with its groups.
    fn equal_aggregate(&mut self, shape: &EqualAggregate, input: &mut Input) -> Result<Expr> {
        let (value_name, found_name) = (self.name("value"), self.name("found"));
        let keys: Vec<(Column, Expr, String)> =
            shape.keys.iter().map(|(column, key)| (column.clone(), key.clone(), self.name("key"))).collect();
        let rows = self.plan(shape.rows.clone())?;
        let groups = keys.iter().map(|(_, key, name)| key.clone().alias(name)).collect();
        let grouped = Aggregate::try_new(Arc::new(rows), groups, shape.aggregates.clone())?;
        let mut exprs: Vec<Expr> = keys.iter().map(|(_, _, name)| named(name)).collect();
        exprs.push(shape.value.clone().alias(&value_name));
        exprs.push(lit(true).alias(&found_name));
        let right = LogicalPlanBuilder::from(LogicalPlan::Aggregate(grouped)).project(exprs)?.build()?;
        let on = keys.iter().map(|(column, _, name)| (Expr::Column(column.clone()), named(name))).collect();
        let left = std::mem::take(&mut input.plan);
        input.plan = join(left, right, on, None, JoinType::Left, NullEquality::NullEqualsNothing)?;
        let value = named(&value_name);
        Ok(match &shape.value_of_none {
            None => value,
            Some(none) => when(named(&found_name).is_null(), none.clone()).otherwise(value)?,
        })
    }
}

/// Refuses an aggregate of outer columns only, which in SQL belongs to the enclosing query.
///
/// # Errors
/// 0A000.
pub(super) fn refuse_outer_aggregates(expr: Expr, _: &DFSchema) -> Result<Transformed<Expr>> {
    if let Expr::AggregateFunction(call) = &expr {
        let args = &call.params.args;
        let is_outer = args.iter().any(Expr::contains_outer);
        if is_outer && args.iter().all(|arg| arg.column_refs().is_empty()) {
            return Err(Error::unsupported(format!("{}() of columns of the query around", call.func.name()))
                .hint("compute it in a subquery of FROM of that query")
                .into());
        }
    }
    Ok(Transformed::no(expr))
}

/// What is known about whether a subquery has rows.
enum Existence {
    Known(bool),
    /// Rows exist if this plan has rows.
    Of(LogicalPlan),
}

/// Removes operators that do not affect whether rows exist.
fn existence(plan: &LogicalPlan) -> Result<Existence> {
    match plan {
        LogicalPlan::Sort(sort) => match sort.fetch {
            Some(0) => Ok(Existence::Known(false)),
            _ => existence(&sort.input),
        },
        LogicalPlan::SubqueryAlias(alias) => existence(&alias.input),
        LogicalPlan::Distinct(Distinct::All(input)) => existence(input),
        LogicalPlan::Projection(projection) if !projection.expr.iter().any(has_unnest) => {
            existence(&projection.input)
        }
        LogicalPlan::Limit(limit) => match (limit.get_skip_type()?, limit.get_fetch_type()?) {
            (_, FetchType::Literal(Some(0))) => Ok(Existence::Known(false)),
            (SkipType::Literal(0), FetchType::Literal(_)) => existence(&limit.input),
            _ => Ok(Existence::Of(plan.clone())),
        },
        LogicalPlan::Aggregate(aggregate) if aggregate.group_expr.is_empty() => Ok(Existence::Known(true)),
        LogicalPlan::EmptyRelation(empty) => Ok(Existence::Known(empty.produce_one_row)),
        LogicalPlan::Values(values) => Ok(Existence::Known(!values.values.is_empty())),
        other => Ok(Existence::Of(other.clone())),
    }
}

fn has_unnest(expr: &Expr) -> bool {
    expr.exists(|part| Ok(matches!(part, Expr::Unnest(_)))).unwrap_or(true)
}

/// Whether a plan returns exactly one row, whatever its tables contain.
fn has_one_row(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Aggregate(aggregate) => aggregate.group_expr.is_empty(),
        LogicalPlan::EmptyRelation(empty) => empty.produce_one_row,
        LogicalPlan::Values(values) => values.values.len() == 1,
        LogicalPlan::Projection(projection) => {
            !projection.expr.iter().any(has_unnest) && has_one_row(&projection.input)
        }
        LogicalPlan::SubqueryAlias(alias) => has_one_row(&alias.input),
        LogicalPlan::Sort(sort) => sort.fetch != Some(0) && has_one_row(&sort.input),
        _ => false,
    }
}

/// Whether a subquery is a plain SELECT with outer columns only in WHERE, so that one join replaces it.
fn is_plain_correlation(plan: &LogicalPlan, outer: &LogicalPlan) -> Result<bool> {
    let mut below = plan;
    while let LogicalPlan::Projection(Projection { input, expr, .. }) = below {
        if expr.iter().any(|expr| expr.contains_outer() || has_subquery(expr).unwrap_or(true)) {
            return Ok(false);
        }
        below = input;
    }
    let mut is_plain = is_correlated(plan)?;
    while let LogicalPlan::Filter(filter) = below {
        let schema = filter.input.schema();
        filter.predicate.apply(|part| {
            if let Expr::InSubquery(InSubquery { expr, .. })
            | Expr::SetComparison(SetComparison { expr, .. }) = part
            {
                is_plain &= !expr.contains_outer();
            }
            if let Some(subquery) = subquery_of(part) {
                // A nested subquery may reference only columns of this one.
                let inner = outer_columns(&subquery.subquery)?;
                is_plain &= inner.iter().all(|inner| has_column(schema, &inner.column));
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        below = &filter.input;
    }
    is_plain &= !is_correlated(below)?;
    below.apply(|node| {
        is_plain &= matches!(
            node,
            LogicalPlan::Projection(_)
                | LogicalPlan::SubqueryAlias(_)
                | LogicalPlan::TableScan(_)
                | LogicalPlan::Filter(_)
        ) || matches!(node, LogicalPlan::Join(join) if join.join_type == JoinType::Inner);
        Ok(if is_plain { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    let known = outer_columns(plan)?.iter().all(|column| has_column(outer.schema(), &column.column));
    Ok(is_plain && known)
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

/// Projects `plan` to these columns.
fn with_columns(plan: LogicalPlan, columns: Vec<Column>) -> Result<LogicalPlan> {
    if plan.schema().fields().len() == columns.len() {
        return Ok(plan);
    }
    LogicalPlanBuilder::from(plan).project(columns.into_iter().map(Expr::Column))?.build()
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
fn refuse_volatile(plan: &LogicalPlan) -> Result<()> {
    let mut is_volatile = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            is_volatile |= expr.is_volatile();
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    if is_volatile {
        return Err(Error::unsupported("a subquery beside a function such as random() in this place")
            .hint("store the rows of one in a table first")
            .into());
    }
    Ok(())
}
