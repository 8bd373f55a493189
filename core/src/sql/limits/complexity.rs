//! Limits on the plan that a short text can grow into: common table expressions that name each other twice,
//! grouping sets, expressions over expressions of subqueries. Each of these doubles with every step, so a
//! kilobyte of text can ask for a plan that fits into no memory.
//!
//! Invariant: a statement that passes [`check_statement`] is planned in bounded time, and a plan that passes
//! [`check_plan`] is optimised in bounded time and has bounded depth.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::rc::Rc;

use datafusion::common::Column;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Distinct, Expr, LogicalPlan};
use datafusion::sql::sqlparser::ast::{
    self, GroupByExpr, Query, Select, SetExpr, TableFactor, Visit, Visitor,
};

use crate::error::{Error, ErrorKind, Result, SqlState};

/// Tables, subqueries and set operations, each counted as often as it is read; also the nodes of a plan.
const PLAN_NODES_MAX: u64 = 20_000;
/// The same for all common table expressions together, which are planned even when nothing reads them.
const WITH_NODES_MAX: u64 = 10 * PLAN_NODES_MAX;
/// Parts of one expression, after the expressions of subqueries are substituted for their columns.
const EXPRESSION_NODES_MAX: u64 = 50_000;
/// Functions whose arguments the optimizer duplicates.
const DOUBLED: [&str; 4] = ["coalesce", "nullif", "nvl", "nvl2"];
/// Grouping sets of one SELECT; a CUBE of 12 columns has as many.
const GROUPING_SETS_MAX: u64 = 1 << 12;
/// Expressions in all grouping sets of one SELECT.
const GROUPED_EXPRESSIONS_MAX: u64 = 1 << 16;
/// `*` and `t.*` in one SELECT; each expands to all columns of its tables.
const WILDCARDS_MAX: usize = 100;

/// Checks a statement before it is planned. `operators_max` is the depth that the guard allows; with common
/// table expressions inlined, a statement may be twice as deep.
///
/// # Errors
/// 54001 when its plan would be too large or too deep.
pub(in crate::sql) fn check_statement(statement: &ast::Statement, operators_max: usize) -> Result<()> {
    let depth_max = (operators_max as u64).saturating_mul(2);
    let queries = vec![Relation::default()];
    let mut relations = Relations { depth_max, with_nodes: 0, is_expression_next: false, queries };
    match statement.visit(&mut relations) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(()),
    }
}

/// The cost of a query with all common table expressions inlined.
#[derive(Clone, Copy, Default)]
struct Cost {
    nodes: u64,
    depth: u64,
}

/// A query that is being visited.
#[derive(Default)]
struct Relation {
    nodes: u64,
    /// It is a subquery in an expression: type coercion visits it twice, and one nested in it four times.
    is_expression: bool,
    /// The depth of this query alone.
    own_depth: u64,
    /// The depth of the deepest relation it reads.
    inner_depth: u64,
    /// Names of its common table expressions that are not visited yet: they come first and in this order.
    unread: VecDeque<String>,
    known: HashMap<String, Cost>,
}

impl Relation {
    fn add(&mut self, cost: Cost) {
        self.nodes = self.nodes.saturating_add(cost.nodes);
        self.inner_depth = self.inner_depth.max(cost.depth);
    }
}

struct Relations {
    depth_max: u64,
    with_nodes: u64,
    /// Whether the next query is a subquery in an expression.
    is_expression_next: bool,
    /// The open queries, outermost first.
    queries: Vec<Relation>,
}

impl Relations {
    /// Returns the cost of a common table expression. The planner compares names in lower case, quoted or
    /// not; among names that differ only in case, the larger one counts.
    fn named(&self, name: &str) -> Option<Cost> {
        let known = self.queries.iter().filter_map(|query| query.known.get(name));
        known.copied().max_by_key(|cost| cost.nodes)
    }

    fn read(&mut self, cost: Cost) -> ControlFlow<Error> {
        if cost.nodes > PLAN_NODES_MAX || cost.depth > self.depth_max {
            return ControlFlow::Break(too_complex(format!(
                "its tables and subqueries, each as often as it is named, are more than {PLAN_NODES_MAX} \
                 or stand deeper than {} in one another",
                self.depth_max
            )));
        }
        let Some(outer) = self.queries.last_mut() else { return ControlFlow::Continue(()) };
        let Some(name) = outer.unread.pop_front() else {
            outer.add(cost);
            return ControlFlow::Continue(());
        };
        let known = outer.known.entry(name).or_default();
        *known = Cost { nodes: known.nodes.max(cost.nodes), depth: known.depth.max(cost.depth) };
        self.with_nodes = self.with_nodes.saturating_add(cost.nodes);
        if self.with_nodes > WITH_NODES_MAX {
            return ControlFlow::Break(too_complex("its common table expressions are too large".to_owned()));
        }
        ControlFlow::Continue(())
    }
}

impl Visitor for Relations {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Error> {
        let names = query.with.iter().flat_map(|with| &with.cte_tables);
        let unread = names.map(|cte| cte.alias.name.value.to_lowercase()).collect();
        let sets = set_operations(&query.body);
        let is_expression = std::mem::take(&mut self.is_expression_next);
        let (nodes, own_depth) = (1 + sets, 1 + sets);
        self.queries.push(Relation { nodes, is_expression, own_depth, unread, ..Relation::default() });
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<Error> {
        let is_query =
            matches!(expr, ast::Expr::Subquery(_) | ast::Expr::Exists { .. } | ast::Expr::InSubquery { .. });
        self.is_expression_next |= is_query;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<Error> {
        let Some(query) = self.queries.pop() else { return ControlFlow::Continue(()) };
        let nodes = query.nodes.saturating_mul(if query.is_expression { 2 } else { 1 });
        self.read(Cost { nodes, depth: query.own_depth.saturating_add(query.inner_depth) })
    }

    fn pre_visit_table_factor(&mut self, table: &TableFactor) -> ControlFlow<Error> {
        let mut cost = Cost { nodes: 1, depth: 1 };
        if let TableFactor::Table { name, .. } = table {
            let parts: Vec<String> = name
                .0
                .iter()
                .map(|part| part.as_ident().map_or_else(|| part.to_string(), |ident| ident.value.clone()))
                .collect();
            if let Some(named) = self.named(&parts.join(".").to_lowercase()) {
                cost.nodes = cost.nodes.saturating_add(named.nodes);
                cost.depth = cost.depth.saturating_add(named.depth);
            }
        }
        if let Some(query) = self.queries.last_mut() {
            query.own_depth = query.own_depth.saturating_add(1);
            query.add(cost);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Error> {
        let wildcards = select.projection.iter().filter(|item| {
            matches!(item, ast::SelectItem::Wildcard(_) | ast::SelectItem::QualifiedWildcard(..))
        });
        if wildcards.count() > WILDCARDS_MAX {
            return ControlFlow::Break(too_complex(format!(
                "a SELECT has more than {WILDCARDS_MAX} wildcards"
            )));
        }
        let GroupByExpr::Expressions(by, _) = &select.group_by else { return ControlFlow::Continue(()) };
        match check_grouping_sets(by) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }
}

fn set_operations(body: &SetExpr) -> u64 {
    match body {
        SetExpr::SetOperation { left, right, .. } => 1 + set_operations(left) + set_operations(right),
        _ => 0,
    }
}

/// Checks GROUP BY, whose parts multiply: each set of one is combined with each set of the others.
fn check_grouping_sets(by: &[ast::Expr]) -> Result<()> {
    let (mut sets, mut expressions) = (1_u64, 0_u64);
    for part in by {
        let len = |parts: &[Vec<ast::Expr>]| parts.len() as u64;
        let (part_sets, part_expressions) = match part {
            ast::Expr::Cube(parts) => {
                let power =
                    1_u64.checked_shl(u32::try_from(parts.len()).unwrap_or(u32::MAX)).unwrap_or(u64::MAX);
                (power, (power / 2).saturating_mul(len(parts)))
            }
            ast::Expr::Rollup(parts) => (len(parts) + 1, len(parts).saturating_mul(len(parts) + 1) / 2),
            ast::Expr::GroupingSets(parts) => (len(parts), parts.iter().map(|set| set.len() as u64).sum()),
            _ => (1, 1),
        };
        expressions =
            expressions.saturating_mul(part_sets).saturating_add(part_expressions.saturating_mul(sets));
        sets = sets.saturating_mul(part_sets);
    }
    if sets > GROUPING_SETS_MAX || expressions > GROUPED_EXPRESSIONS_MAX {
        return Err(too_complex(format!(
            "GROUP BY makes more than {GROUPING_SETS_MAX} grouping sets \
             or {GROUPED_EXPRESSIONS_MAX} expressions in them"
        )));
    }
    Ok(())
}

fn too_complex(reason: String) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::STATEMENT_TOO_COMPLEX,
        format!("the statement is too complex: {reason}"),
    )
    .hint("use several statements, or store repeated parts in a table")
}

/// Checks a plan before it is optimised. `operators_max` is the depth of an expression as written; with
/// substituted subqueries it may be twice as deep.
///
/// Plans share their inputs, but every walk visits a shared input once per use, and the optimizer substitutes
/// the expressions of a subquery for its columns wherever they are named.
///
/// # Errors
/// 54001 when the plan, or an expression after substitution, is too large or too deep.
pub(in crate::sql) fn check_plan(plan: &LogicalPlan, operators_max: usize) -> Result<()> {
    let mut plans = Plans { depth_max: (operators_max as u64).saturating_mul(2), known: HashMap::new() };
    plans.size(plan).map(drop)
}

/// The nodes that a rewrite of a plan has copied so far.
#[derive(Default)]
pub(in crate::sql) struct Copies {
    nodes: u64,
}

impl Copies {
    /// Counts a copy of a plan.
    ///
    /// # Errors
    /// 54001 when all copies together are too large.
    pub(in crate::sql) fn add(&mut self, plan: &LogicalPlan) -> Result<()> {
        plan.apply_with_subqueries(|_| {
            self.nodes += 1;
            let is_enough = self.nodes > PLAN_NODES_MAX;
            Ok(if is_enough { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })?;
        if self.nodes > PLAN_NODES_MAX {
            return Err(too_complex(format!("its subqueries need more than {PLAN_NODES_MAX} plan nodes")));
        }
        Ok(())
    }
}

/// The size of an expression with all its columns substituted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    nodes: u64,
    depth: u64,
}

impl Size {
    const ONE: Self = Self { nodes: 1, depth: 1 };

    fn max(self, other: Self) -> Self {
        Self { nodes: self.nodes.max(other.nodes), depth: self.depth.max(other.depth) }
    }
}

/// The size of a plan, with shared inputs counted at each use.
struct PlanSize {
    nodes: u64,
    /// The size of the expression behind each column; `None` when all are plain columns.
    columns: Option<Vec<Size>>,
}

struct Plans {
    depth_max: u64,
    /// Sizes by the address of the plan.
    known: HashMap<usize, Rc<PlanSize>>,
}

impl Plans {
    fn shared(&mut self, plan: &LogicalPlan) -> Result<Rc<PlanSize>> {
        let address = std::ptr::from_ref(plan).addr();
        if let Some(known) = self.known.get(&address) {
            return Ok(Rc::clone(known));
        }
        let size = Rc::new(self.size(plan)?);
        self.known.insert(address, Rc::clone(&size));
        Ok(size)
    }

    fn size(&mut self, plan: &LogicalPlan) -> Result<PlanSize> {
        let inputs = plan
            .inputs()
            .into_iter()
            .map(|input| Ok((input, self.shared(input)?)))
            .collect::<Result<Vec<_>>>()?;
        let mut nodes = inputs.iter().fold(1_u64, |nodes, (_, input)| nodes.saturating_add(input.nodes));
        let mut sizes = Vec::new();
        let mut failure = None;
        plan.apply_expressions(|expr| {
            match self.expression(expr, &inputs, &mut nodes) {
                Ok(size) => sizes.push(size),
                Err(error) => failure = Some(error),
            }
            Ok(if failure.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        if nodes > PLAN_NODES_MAX {
            return Err(too_complex(format!("its plan has more than {PLAN_NODES_MAX} nodes")));
        }
        let columns =
            columns(plan, &inputs, &sizes).filter(|columns| columns.iter().any(|size| *size != Size::ONE));
        Ok(PlanSize { nodes, columns })
    }

    /// Returns the size of an expression over `inputs`; adds the plans of its subqueries to `nodes`.
    fn expression(&mut self, expr: &Expr, inputs: &Inputs<'_>, nodes: &mut u64) -> Result<Size> {
        if let Expr::Column(column) = expr {
            return Ok(column_size(column, inputs));
        }
        let subquery = match expr {
            Expr::ScalarSubquery(subquery) => Some(subquery),
            Expr::Exists(exists) => Some(&exists.subquery),
            Expr::InSubquery(within) => Some(&within.subquery),
            Expr::SetComparison(comparison) => Some(&comparison.subquery),
            _ => None,
        };
        if let Some(subquery) = subquery {
            *nodes = nodes.saturating_add(self.shared(&subquery.subquery)?.nodes);
        }
        let mut size = Size::ONE;
        let mut failure = None;
        expr.apply_children(|child| {
            match self.expression(child, inputs, nodes) {
                Ok(found) => {
                    size.nodes =
                        size.nodes.saturating_add(found.nodes.saturating_mul(times_written(child, expr)));
                    size.depth = size.depth.max(found.depth.saturating_add(1));
                }
                Err(error) => failure = Some(error),
            }
            Ok(if failure.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })?;
        match failure {
            Some(error) => Err(error),
            None if size.nodes > EXPRESSION_NODES_MAX || size.depth > self.depth_max => {
                Err(too_complex(format!(
                    "an expression, with those of subqueries in the place of their columns, has more than \
                 {EXPRESSION_NODES_MAX} parts or is deeper than {}",
                    self.depth_max
                )))
            }
            None => Ok(size),
        }
    }
}

/// How often the optimizer writes the argument `value` of the expression `within`.
fn times_written(value: &Expr, within: &Expr) -> u64 {
    let name = |expr: &Expr| match expr {
        Expr::ScalarFunction(call) => DOUBLED.iter().find(|name| **name == call.func.name()).copied(),
        _ => None,
    };
    match name(within) {
        // Nested calls become one.
        Some("coalesce") if name(value) == Some("coalesce") => 1,
        Some(_) => 2,
        None => 1,
    }
}

/// The inputs of a plan, with their sizes.
type Inputs<'a> = Vec<(&'a LogicalPlan, Rc<PlanSize>)>;

fn column_size(column: &Column, inputs: &Inputs<'_>) -> Size {
    for (input, size) in inputs {
        if let Some(columns) = &size.columns
            && let Some(position) =
                input.schema().index_of_column_by_name(column.relation.as_ref(), &column.name)
        {
            return columns.get(position).copied().unwrap_or(Size::ONE);
        }
    }
    Size::ONE
}

/// Returns the sizes of a plan's columns, given those of its expressions; `None` when all are plain.
fn columns(plan: &LogicalPlan, inputs: &Inputs<'_>, expressions: &[Size]) -> Option<Vec<Size>> {
    let width = plan.schema().fields().len();
    let of_inputs = || inputs.iter().filter_map(|(_, input)| input.columns.as_ref());
    let padded = |columns: &[Size]| {
        columns.iter().copied().chain(std::iter::repeat(Size::ONE)).take(width).collect::<Vec<_>>()
    };
    match plan {
        LogicalPlan::Projection(_) => Some(expressions.to_vec()),
        // Group expressions precede the aggregates, which count as plain: nothing is substituted for them.
        LogicalPlan::Aggregate(aggregate)
            if !aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) =>
        {
            Some(padded(expressions.get(..aggregate.group_expr.len())?))
        }
        LogicalPlan::Filter(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Repartition(_)
        | LogicalPlan::Subquery(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Window(_)
        | LogicalPlan::Distinct(Distinct::All(_)) => of_inputs().next().map(|columns| padded(columns)),
        LogicalPlan::Join(join) => {
            of_inputs().next()?;
            let sides = [&join.left, &join.right].into_iter().zip(inputs);
            let columns: Vec<Size> = sides
                .flat_map(|(side, (_, size))| match &size.columns {
                    Some(columns) => columns.clone(),
                    None => vec![Size::ONE; side.schema().fields().len()],
                })
                .collect();
            // Some joins output only one side.
            if columns.len() == width { Some(columns) } else { Some(vec![greatest(columns); width]) }
        }
        LogicalPlan::TableScan(_) | LogicalPlan::Values(_) => None,
        _ => {
            let sizes = of_inputs().flatten().chain(expressions).copied();
            Some(vec![greatest(sizes); width])
        }
    }
}

fn greatest(sizes: impl IntoIterator<Item = Size>) -> Size {
    sizes.into_iter().fold(Size::ONE, Size::max)
}

#[cfg(test)]
mod tests;
