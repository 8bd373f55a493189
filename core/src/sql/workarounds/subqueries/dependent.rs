//! A correlated subquery as a plan without correlation: its rows for all values of the outer columns at once.
//!
//! The *domain* is the set of distinct values of the outer columns. It replaces the outer columns at the
//! bottom of the plan and is carried to the top: each operator does for every value of the domain what the
//! subquery does for one (Neumann and Kemper, "Unnesting Arbitrary Queries", BTW 2015).
//!
//! Invariant: for each value in the domain, the result rows with that value are the subquery's rows for it.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, JoinType, NullEquality, Result, Spans, TableReference};
use datafusion::functions_window::row_number::row_number_udwf;
use datafusion::logical_expr::expr::{Sort as SortExpr, WindowFunction};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{
    Aggregate, Distinct, DistinctOn, Expr, FetchType, Filter, Join, Limit, LogicalPlan, LogicalPlanBuilder,
    Operator, Projection, SkipType, Subquery, SubqueryAlias, Union, Window, WindowFrame, binary_expr, lit,
    when,
};

use super::builders::{default_of, join, named, renamed, values_as_union};
use super::grouping_sets;
use super::outer::{Bindings, bind, bind_within, is_correlated, lateral_side};
use crate::error::Error;
use crate::sql::limits::stack::deep;

/// The values of the outer columns of a subquery.
pub(super) struct Domain {
    /// One row per value; its columns are `names`, unqualified.
    pub(super) plan: LogicalPlan,
    /// The outer columns, and their unique names in the domain.
    pub(super) columns: Vec<(Column, String)>,
}

impl Domain {
    /// Returns what the outer columns are in `schema`.
    fn bindings(&self, schema: &DFSchema) -> Bindings {
        self.columns.iter().map(|(column, name)| (column.clone(), found(name, schema))).collect()
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|(_, name)| name.as_str())
    }

    /// Returns the domain's columns of a node with `schema`.
    fn own_columns(&self, schema: &DFSchema) -> Vec<Expr> {
        self.names().map(|name| found(name, schema)).collect()
    }

    /// Returns the domain's columns of a node with `schema`, under their names.
    fn own_columns_named(&self, schema: &DFSchema) -> Vec<Expr> {
        let column = |name| match found(name, schema) {
            Expr::Column(Column { relation: None, .. }) => named(name),
            qualified => qualified.alias(name),
        };
        self.names().map(column).collect()
    }

    /// Returns the plan of a subquery with the domain's columns beside its own.
    ///
    /// # Errors
    /// 0A000 for a correlated part that cannot be rewritten.
    pub(super) fn unnest(&self, plan: &LogicalPlan) -> Result<LogicalPlan> {
        deep(|| self.unnest_over(plan))
    }

    fn unnest_over(&self, plan: &LogicalPlan) -> Result<LogicalPlan> {
        if !is_correlated(plan)? {
            return LogicalPlanBuilder::from(self.plan.clone()).cross_join(plan.clone())?.build();
        }
        match plan {
            LogicalPlan::Filter(filter) => {
                let input = self.unnest(&filter.input)?;
                let predicate = self.bound(filter.predicate.clone(), &input)?;
                Ok(LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(input))?))
            }
            LogicalPlan::Projection(projection) => {
                let input = self.unnest(&projection.input)?;
                let mut exprs = self.all_bound_named(&projection.expr, &input)?;
                exprs.extend(self.own_columns_named(input.schema()));
                Ok(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input))?))
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let input = self.unnest(&alias.input)?;
                Ok(LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(Arc::new(input), alias.alias.clone())?))
            }
            LogicalPlan::Aggregate(aggregate) => self.unnest_aggregate(aggregate),
            LogicalPlan::Join(join) => self.unnest_join(join),
            LogicalPlan::Limit(limit) => self.unnest_limit(limit),
            // Only a limit needs the order, and it looks for the sort itself.
            LogicalPlan::Sort(sort) if sort.fetch.is_none() => self.unnest(&sort.input),
            LogicalPlan::Distinct(Distinct::All(input)) => {
                let input = self.unnest(input)?;
                Ok(LogicalPlan::Distinct(Distinct::All(Arc::new(input))))
            }
            LogicalPlan::Distinct(Distinct::On(distinct)) => self.unnest_distinct_on(distinct),
            LogicalPlan::Union(union) => self.unnest_union(union),
            LogicalPlan::Window(window) => self.unnest_window(window),
            LogicalPlan::Values(values) => self.unnest(&values_as_union(values)?),
            LogicalPlan::Subquery(subquery) => self.unnest(&subquery.subquery),
            other => Err(Error::unsupported(format!("a correlated subquery with {}", name_of(other))).into()),
        }
    }

    /// Replaces outer columns in a node's expression by the domain's columns, which `input` has.
    fn bound(&self, expr: Expr, input: &LogicalPlan) -> Result<Expr> {
        bind(expr, &self.bindings(input.schema()), input.schema())
    }

    /// Binds expressions; they keep their names.
    fn all_bound_named(&self, exprs: &[Expr], input: &LogicalPlan) -> Result<Vec<Expr>> {
        exprs.iter().map(|expr| renamed(expr, self.bound(expr.clone(), input)?)).collect()
    }

    fn unnest_aggregate(&self, aggregate: &Aggregate) -> Result<LogicalPlan> {
        if aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) {
            return self.unnest(&grouping_sets::as_union(aggregate)?);
        }
        let input = self.unnest(&aggregate.input)?;
        let mut groups = self.all_bound_named(&aggregate.group_expr, &input)?;
        groups.extend(self.own_columns_named(input.schema()));
        let aggregates = self.all_bound_named(&aggregate.aggr_expr, &input)?;
        let grouped = Aggregate::try_new(Arc::new(input), groups, aggregates)?;
        let grouped = LogicalPlan::Aggregate(grouped);
        if !aggregate.group_expr.is_empty() {
            return Ok(grouped);
        }
        self.with_empty_groups(aggregate, grouped)
    }

    /// Adds the row that an aggregation without GROUP BY returns for a value without rows.
    fn with_empty_groups(&self, aggregate: &Aggregate, grouped: LogicalPlan) -> Result<LogicalPlan> {
        const FOUND: &str = "__found";
        let other = |name: &str| format!("{name}_of_group");
        let mut exprs = vec![lit(true).alias(FOUND)];
        exprs.extend(self.names().map(|name| named(name).alias(other(name))));
        let mut results = Vec::with_capacity(aggregate.aggr_expr.len());
        for (position, column) in aggregate.schema.columns().into_iter().enumerate() {
            let place = format!("__aggregate_{position}");
            exprs.push(Expr::Column(column.clone()).alias(&place));
            let ty = aggregate.schema.field(position).data_type();
            let default = aggregate.aggr_expr.get(position).and_then(|expr| default_of(expr, ty));
            let value = named(&place);
            let value = match default {
                None => value,
                Some(default) => when(named(FOUND).is_not_true(), default).otherwise(value)?,
            };
            results.push(value.alias_qualified(column.relation, column.name));
        }
        let grouped = LogicalPlanBuilder::from(grouped).project(exprs)?.build()?;
        let on = self.names().map(|name| (named(name), named(&other(name)))).collect();
        let joined =
            join(self.plan.clone(), grouped, on, None, JoinType::Left, NullEquality::NullEqualsNull)?;
        results.extend(self.own_columns_named(joined.schema()));
        LogicalPlanBuilder::from(joined).project(results)?.build()
    }

    /// The left side carries the domain; the subquery references it there.
    fn unnest_lateral(
        &self,
        original: &Join,
        subquery: &LogicalPlan,
        alias: Option<&TableReference>,
    ) -> Result<LogicalPlan> {
        let left = self.unnest(&original.left)?;
        let plan = bind_within(subquery, &self.bindings(left.schema()), left.schema())?;
        let outer_ref_columns = plan.all_out_ref_exprs();
        let subquery = Subquery { subquery: Arc::new(plan), outer_ref_columns, spans: Spans::new() };
        let mut right = LogicalPlanBuilder::from(LogicalPlan::Subquery(subquery));
        if let Some(alias) = alias {
            right = right.alias(alias.clone())?;
        }
        let equal = original.on.iter().map(|(left, right)| left.clone().eq(right.clone()));
        let condition = conjunction(equal.chain(original.filter.clone()));
        self.joined(original, left, right.build()?, condition, (true, false))
    }

    fn unnest_join(&self, original: &Join) -> Result<LogicalPlan> {
        if let Some((subquery, alias)) = lateral_side(original)? {
            return self.unnest_lateral(original, subquery, alias);
        }
        let (left, right) = (is_correlated(&original.left)?, is_correlated(&original.right)?);
        let (keeps_left, keeps_right) = match original.join_type {
            JoinType::Inner => (false, false),
            JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => (true, false),
            JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => {
                (false, true)
            }
            JoinType::Full => (true, true),
        };
        // A preserved side needs the domain. If only the condition is correlated, the left side gets it.
        let unnests_left = left || keeps_left || !right && !keeps_right;
        let unnests_right = right || keeps_right;
        let left =
            if unnests_left { self.unnest(&original.left)? } else { LogicalPlan::clone(&original.left) };
        let right =
            if unnests_right { self.unnest(&original.right)? } else { LogicalPlan::clone(&original.right) };
        let equal = |(left, right): &(Expr, Expr)| match original.null_equality {
            NullEquality::NullEqualsNothing => left.clone().eq(right.clone()),
            NullEquality::NullEqualsNull => {
                binary_expr(left.clone(), Operator::IsNotDistinctFrom, right.clone())
            }
        };
        let conditions = original.on.iter().map(equal).chain(original.filter.clone());
        self.joined(original, left, right, conjunction(conditions), (unnests_left, unnests_right))
    }

    fn joined(
        &self,
        original: &Join,
        left: LogicalPlan,
        right: LogicalPlan,
        condition: Option<Expr>,
        unnested: (bool, bool),
    ) -> Result<LogicalPlan> {
        let bound =
            |condition: Option<Expr>, left: &LogicalPlan, right: &LogicalPlan| -> Result<Option<Expr>> {
                let schema = left.schema().join(right.schema())?;
                condition.map(|condition| bind(condition, &self.bindings(&schema), &schema)).transpose()
            };
        if unnested != (true, true) {
            let filter = bound(condition, &left, &right)?;
            return join(left, right, Vec::new(), filter, original.join_type, original.null_equality);
        }
        let other = |name: &str| format!("{name}_of_right");
        let columns = right.schema().columns().into_iter().map(|column| {
            if self.names().any(|name| name == column.name) {
                Expr::Column(column.clone()).alias(other(&column.name))
            } else {
                Expr::Column(column)
            }
        });
        let right = LogicalPlanBuilder::from(right.clone()).project(columns)?.build()?;
        let filter = bound(condition, &left, &right)?;
        let on = self.names().map(|name| (named(name), named(&other(name)))).collect();
        let joined = join(left, right, on, filter, original.join_type, NullEquality::NullEqualsNull)?;
        if matches!(original.join_type, JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark) {
            return Ok(joined);
        }
        let mut exprs: Vec<Expr> = original.schema.columns().into_iter().map(Expr::Column).collect();
        for name in self.names() {
            let value = match original.join_type {
                JoinType::Full => {
                    when(named(name).is_not_null(), named(name)).otherwise(named(&other(name)))?
                }
                JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => {
                    named(&other(name))
                }
                _ => named(name),
            };
            exprs.push(value.alias(name));
        }
        LogicalPlanBuilder::from(joined).project(exprs)?.build()
    }

    /// Numbers the rows of each value in their order, and keeps those that LIMIT and OFFSET select.
    fn unnest_limit(&self, limit: &Limit) -> Result<LogicalPlan> {
        const NUMBER: &str = "__row_of_value";
        let (SkipType::Literal(skip), FetchType::Literal(fetch)) =
            (limit.get_skip_type()?, limit.get_fetch_type()?)
        else {
            return Err(Error::unsupported("a non-constant LIMIT in a correlated subquery").into());
        };
        if let LogicalPlan::Projection(projection) = &*limit.input
            && matches!(*projection.input, LogicalPlan::Sort(_))
        {
            // The projection may have dropped the sort columns.
            let inner = Limit { input: Arc::clone(&projection.input), ..limit.clone() };
            let mut outer = projection.clone();
            outer.input = Arc::new(LogicalPlan::Limit(inner));
            return self.unnest(&LogicalPlan::Projection(outer));
        }
        let (order, rows) = match &*limit.input {
            LogicalPlan::Sort(sort) if sort.fetch.is_none() => (sort.expr.clone(), &sort.input),
            LogicalPlan::Distinct(Distinct::On(distinct)) => (order_of(distinct)?, &limit.input),
            _ => (Vec::new(), &limit.input),
        };
        let input = self.unnest(rows)?;
        let columns: Vec<Expr> = input.schema().columns().into_iter().map(Expr::Column).collect();
        // Computed sort keys become columns first: a window finds its order only by columns.
        let mut shown = columns.clone();
        let mut by = Vec::with_capacity(order.len());
        for (position, sort) in order.into_iter().enumerate() {
            let expr = match self.bound(sort.expr, &input)? {
                column @ Expr::Column(_) => column,
                computed => {
                    let name = format!("__order_of_value_{position}");
                    shown.push(computed.alias(&name));
                    named(&name)
                }
            };
            by.push(SortExpr { expr, ..sort });
        }
        let input = LogicalPlanBuilder::from(input).project(shown)?.build()?;
        let mut number = WindowFunction::new(row_number_udwf(), Vec::new());
        number.params.partition_by = self.own_columns(input.schema());
        number.params.window_frame = WindowFrame::new(Some(true));
        number.params.order_by = by;
        let number = Expr::WindowFunction(Box::new(number)).alias(NUMBER);
        let as_u64 = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let mut wanted = named(NUMBER).gt(lit(as_u64(skip)));
        if let Some(fetch) = fetch {
            wanted = wanted.and(named(NUMBER).lt_eq(lit(as_u64(skip).saturating_add(as_u64(fetch)))));
        }
        LogicalPlanBuilder::from(input).window([number])?.filter(wanted)?.project(columns)?.build()
    }

    fn unnest_distinct_on(&self, distinct: &DistinctOn) -> Result<LogicalPlan> {
        let input = self.unnest(&distinct.input)?;
        let mut on = self.own_columns(input.schema());
        on.extend(
            distinct
                .on_expr
                .iter()
                .map(|expr| self.bound(expr.clone(), &input))
                .collect::<Result<Vec<_>>>()?,
        );
        let mut select = self.all_bound_named(&distinct.select_expr, &input)?;
        select.extend(self.own_columns_named(input.schema()));
        let order = match &distinct.sort_expr {
            None => None,
            Some(order) => {
                let mut all: Vec<SortExpr> = self
                    .own_columns(input.schema())
                    .into_iter()
                    .map(|column| column.sort(true, false))
                    .collect();
                for sort in order {
                    all.push(SortExpr { expr: self.bound(sort.expr.clone(), &input)?, ..sort.clone() });
                }
                Some(all)
            }
        };
        let unnested = DistinctOn::try_new(on, select, order, Arc::new(input))?;
        Ok(LogicalPlan::Distinct(Distinct::On(unnested)))
    }

    fn unnest_union(&self, union: &Union) -> Result<LogicalPlan> {
        let inputs = union
            .inputs
            .iter()
            .map(|input| {
                let unnested = self.unnest(input)?;
                let mut columns: Vec<Expr> = input.schema().columns().into_iter().map(Expr::Column).collect();
                columns.extend(self.own_columns_named(unnested.schema()));
                Ok(Arc::new(LogicalPlanBuilder::from(unnested).project(columns)?.build()?))
            })
            .collect::<Result<Vec<_>>>()?;
        let unnested = Union::try_new_with_loose_types(inputs)?;
        // The union's columns are unqualified, even if its inputs' are not.
        Ok(LogicalPlan::Union(unnested))
    }

    fn unnest_window(&self, window: &Window) -> Result<LogicalPlan> {
        let input = self.unnest(&window.input)?;
        let exprs = window
            .window_expr
            .iter()
            .map(|expr| {
                let bound = self.bound(expr.clone(), &input)?;
                let partitioned = bound.transform_down(|part| match part {
                    Expr::WindowFunction(mut call) => {
                        call.params.partition_by.extend(self.own_columns(input.schema()));
                        Ok(Transformed::yes(Expr::WindowFunction(call)))
                    }
                    other => Ok(Transformed::no(other)),
                })?;
                renamed(expr, partitioned.data)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(LogicalPlan::Window(Window::try_new(exprs, Arc::new(input))?))
    }
}

/// The order of the rows of a DISTINCT ON, over its output columns.
fn order_of(distinct: &DistinctOn) -> Result<Vec<SortExpr>> {
    let columns = distinct.schema.columns();
    let shown = |sort: &SortExpr| {
        let position = distinct.select_expr.iter().position(|expr| expr.clone().unalias() == sort.expr)?;
        columns.get(position).map(|column| SortExpr { expr: Expr::Column(column.clone()), ..sort.clone() })
    };
    let order = distinct.sort_expr.iter().flatten().map(shown).collect::<Option<Vec<_>>>();
    order.ok_or_else(|| {
        Error::unsupported(
            "LIMIT over DISTINCT ON in a correlated subquery sorted by an expression \
             missing from its select list",
        )
        .hint("add the sort expression to its select list")
        .into()
    })
}

/// Returns the column with a name in `schema`, where an alias may have qualified it.
fn found(name: &str, schema: &DFSchema) -> Expr {
    match schema.qualified_field_with_unqualified_name(name) {
        Ok(field) => Expr::Column(Column::from(field)),
        Err(_) => named(name),
    }
}

fn name_of(plan: &LogicalPlan) -> &'static str {
    match plan {
        LogicalPlan::RecursiveQuery(_) => "a recursive query",
        LogicalPlan::Unnest(_) => "UNNEST",
        LogicalPlan::TableScan(_) => "a table function of an outer column",
        _ => "this clause",
    }
}
