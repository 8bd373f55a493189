//! Turns a planned SELECT into what a live query evaluates: one table, one condition, some expressions.
//!
//! Views, aliases and nested projections are flattened. What needs more than one row is refused by name.
//!
//! Invariant: the scope comes from the planner's table provider, so from the principal, never from the text.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::compute::can_cast_types;
use datafusion::arrow::datatypes::{DataType, Field, SchemaRef};
use datafusion::catalog::default_table_source::source_as_provider;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{
    Expr, ExprSchemable, LogicalPlan, TableScan, Volatility, cast, lit, utils::split_conjunction_owned,
};

use super::canonical::canonical_text;
use super::evaluator::{Evaluator, OutputColumn};
use super::token::Fingerprint;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::ScopeId;
use crate::schema_registry::{COLUMN_SEQ, SystemTable, TableSchemas};
use crate::tables::KalamTable;
use crate::types;

/// Functions with a fixed value per principal; planning replaces them by that value.
const SESSION_FUNCTIONS: [&str; 6] =
    ["current_user", "session_user", "current_role", "current_schema", "current_database", "current_catalog"];

/// How the statement layer planned the SELECT of a live query.
pub(crate) struct Planning<'a> {
    pub(crate) state: &'a SessionState,
    /// Evaluates the constant parts of an expression over the columns of a schema.
    pub(crate) simplify: fn(Expr, &Arc<DFSchema>, &SessionState) -> Result<Expr>,
    /// Moves the parts of a condition that can fail behind those that cannot.
    pub(crate) guard: fn(Expr) -> Result<Expr>,
    /// The right names of columns that have other names in the plan.
    pub(crate) renamed: &'a HashMap<String, String>,
}

/// A live query, ready to run. `LiveQueryPlan::extract` creates it.
#[derive(Clone, Debug)]
pub struct LiveQueryPlan {
    pub(crate) table: Arc<TableSchemas>,
    pub(crate) scope: ScopeId,
    /// The condition's conjuncts over the table's full schema, for pushdown into the scan of a snapshot.
    pub(crate) conjuncts: Vec<Expr>,
    /// The delivered expressions, with their names.
    outputs: Vec<(Expr, String)>,
    pub(crate) evaluator: Arc<Evaluator>,
    pub(crate) fingerprint: Fingerprint,
}

impl LiveQueryPlan {
    /// Extracts the live query from a SELECT with bound parameters, planned by
    /// `SessionState::statement_to_plan`.
    ///
    /// # Errors
    /// 0A000, naming the part, for anything but expressions over one table's row with an optional condition.
    pub(crate) fn extract(plan: &LogicalPlan, planning: &Planning<'_>) -> Result<Self> {
        let state = planning.state;
        let analysed = state.analyzer().execute_and_check(plan.clone(), state.config_options(), |_, _| {})?;
        let mut shape = QueryShape::of(&analysed)?;
        for (_, name) in &mut shape.outputs {
            if let Some(right) = planning.renamed.get(name) {
                right.clone_into(name);
            }
        }
        shape.into_plan(planning)
    }

    /// Returns the columns that subscribers of a SELECT get, before its parameters have values.
    ///
    /// # Errors
    /// As [`LiveQueryPlan::extract`].
    pub(crate) fn describe(plan: &LogicalPlan, planning: &Planning<'_>) -> Result<SchemaRef> {
        let with_nulls = plan.clone().transform_up(|node| {
            node.map_expressions(|expr| {
                expr.transform_up(|node| match &node {
                    Expr::Placeholder(parameter) => {
                        let data_type =
                            parameter.field.as_ref().map_or(&DataType::Null, |field| field.data_type());
                        Ok(Transformed::yes(lit(ScalarValue::try_from(data_type)?)))
                    }
                    _ => Ok(Transformed::no(node)),
                })
            })
        })?;
        let plan = with_nulls.data.recompute_schema()?;
        Ok(Arc::clone(Self::extract(&plan, planning)?.schema()))
    }

    /// Whether both deliver the same from the same table. Equal fingerprints say so as far as a hash can.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.table.definition.id == other.table.definition.id
            && self.scope == other.scope
            && self.conjuncts == other.conjuncts
            && self.outputs == other.outputs
    }

    /// Returns the columns that subscribers get: `_op`, `_seq` and the query's.
    pub fn schema(&self) -> &SchemaRef {
        self.evaluator.schema()
    }

    /// Returns [`LiveQueryPlan::schema`] as an encapsulated IPC message.
    pub fn schema_ipc(&self) -> Bytes {
        self.evaluator.schema_ipc()
    }
}

/// What a plan computes, as expressions over the columns of its one table.
struct QueryShape {
    table: Arc<TableSchemas>,
    scope: ScopeId,
    filter: Option<Expr>,
    /// The plan's columns with their names, in order.
    outputs: Vec<(Expr, String)>,
}

impl QueryShape {
    fn of(plan: &LogicalPlan) -> Result<Self> {
        match plan {
            LogicalPlan::Projection(projection) => {
                let mut shape = Self::of(&projection.input)?;
                shape.outputs = projection
                    .expr
                    .iter()
                    .zip(projection.schema.fields())
                    .map(|(expr, field)| {
                        let expr = shape.over_table(expr, projection.input.schema())?;
                        Ok((expr, field.name().clone()))
                    })
                    .collect::<Result<_>>()?;
                Ok(shape)
            }
            LogicalPlan::Filter(filter) => {
                let mut shape = Self::of(&filter.input)?;
                let predicate = shape.over_table(&filter.predicate, filter.input.schema())?;
                shape.filter = Some(match shape.filter.take() {
                    Some(inner) => inner.and(predicate),
                    None => predicate,
                });
                Ok(shape)
            }
            LogicalPlan::SubqueryAlias(alias) => Self::of(&alias.input),
            LogicalPlan::TableScan(scan) => Self::of_scan(scan),
            other => Err(refused(node_name(other))),
        }
    }

    fn of_scan(scan: &TableScan) -> Result<Self> {
        if scan.fetch.is_some() {
            return Err(refused("LIMIT"));
        }
        let provider = source_as_provider(&scan.source)?;
        let any: &dyn std::any::Any = provider.as_ref();
        let Some(table) = any.downcast_ref::<KalamTable>() else {
            return Err(Error::unsupported(format!("a live query of \"{}\"", scan.table_name))
                .hint("subscribe to a USER, SHARED or STREAM table"));
        };
        let filter = scan.filters.iter().map(unqualified).reduce(Expr::and);
        let outputs = scan
            .projected_schema
            .fields()
            .iter()
            .map(|field| (column(field.name()), field.name().clone()))
            .collect();
        Ok(Self { table: Arc::clone(table.schemas()), scope: table.scope(), filter, outputs })
    }

    /// Rewrites an expression over `schema`, whose columns are this shape's outputs, into one over the table.
    fn over_table(&self, expr: &Expr, schema: &DFSchema) -> Result<Expr> {
        let rewritten = expr.clone().transform_up(|node| {
            let Expr::Column(wanted) = &node else { return Ok(Transformed::no(node)) };
            let position = schema.index_of_column(wanted)?;
            match self.outputs.get(position) {
                Some((expr, _)) => Ok(Transformed::yes(expr.clone())),
                None => Err(Error::internal(format!("column \"{wanted}\" is not in the plan")).into()),
            }
        })?;
        Ok(rewritten.data.unalias_nested().data)
    }

    fn into_plan(self, planning: &Planning<'_>) -> Result<LiveQueryPlan> {
        let definition = &self.table.definition;
        if SystemTable::from_id(definition.id).is_some_and(|table| !table.is_stored()) {
            return Err(Error::unsupported(format!("a live query of \"{}\"", definition.qualified_name()))
                .hint("of the system tables, only jobs and audit_logs support live queries"));
        }
        let full = Arc::new(DFSchema::try_from(Arc::clone(&self.table.full))?);
        let simplified = |expr: Expr| -> Result<Expr> {
            check_expression(&expr, BeforeFolding)?;
            let expr = (planning.simplify)(expr, &full, planning.state)?;
            check_expression(&expr, AfterFolding)?;
            Ok(expr)
        };
        // A condition that is always true is dropped.
        let filter = self.filter.map(simplified).transpose()?.filter(|filter| *filter != lit(true));
        let filter = filter.map(planning.guard).transpose()?;
        let mut outputs = Vec::with_capacity(self.outputs.len());
        for (expr, name) in self.outputs {
            let expr = as_wire_type(simplified(expr)?, &full, &name)?;
            outputs.push((expr, name));
        }
        let text = canonical_text(&self.table, self.scope, filter.as_ref(), &outputs)?;
        let named = name_outputs(outputs.clone(), &full)?;
        let evaluator = Evaluator::new(&self.table, filter.clone(), named, planning.state)?;
        Ok(LiveQueryPlan {
            table: self.table,
            scope: self.scope,
            conjuncts: filter.map(split_conjunction_owned).unwrap_or_default(),
            outputs,
            evaluator: Arc::new(evaluator),
            fingerprint: Fingerprint::of(&text),
        })
    }
}

/// Checks names, and gives each output its field.
fn name_outputs(outputs: Vec<(Expr, String)>, full: &DFSchema) -> Result<Vec<OutputColumn>> {
    let mut named: Vec<OutputColumn> = Vec::with_capacity(outputs.len());
    for (expr, name) in outputs {
        // `_seq` already leads every row. Selecting it only makes a change of `_seq` alone count.
        let hidden = matches!(&expr, Expr::Column(column) if column.name == COLUMN_SEQ) && name == COLUMN_SEQ;
        if !hidden && matches!(name.as_str(), COLUMN_SEQ | "_op") {
            return Err(Error::new(
                ErrorKind::InvalidSql,
                SqlState::DUPLICATE_COLUMN,
                format!("column \"{name}\" is reserved in live queries"),
            )
            .hint("choose another alias"));
        }
        let (_, field) = expr.to_field(full)?;
        // Whether an expression can be NULL may depend on parameters, but the announced schema must not.
        let nullable = field.is_nullable() || !matches!(expr, Expr::Column(_));
        let field =
            Field::new(&name, field.data_type().clone(), nullable).with_metadata(field.metadata().clone());
        named.push(OutputColumn { expr, field, hidden });
    }
    Ok(named)
}

/// Casts types that are sent in another form than they are stored, so that rows can be encoded one by one and
/// match the announced schema.
fn as_wire_type(expr: Expr, full: &DFSchema, name: &str) -> Result<Expr> {
    let ty = expr.get_type(full)?;
    let wire = types::wire_type(&ty);
    if wire == ty {
        return Ok(expr);
    }
    if !can_cast_types(&ty, &wire) {
        return Err(Error::unsupported(format!("the encoded type of column \"{name}\" in a live query"))
            .hint("cast it to another type"));
    }
    Ok(cast(expr, wire))
}

use Folding::{AfterFolding, BeforeFolding};

/// Whether functions with a fixed value have been replaced by that value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Folding {
    BeforeFolding,
    AfterFolding,
}

/// Refuses subqueries by name. The plan must not be analyzed yet: the analyzer turns them into joins.
///
/// # Errors
/// 0A000 for a subquery.
pub(crate) fn refuse_subqueries(plan: &LogicalPlan) -> Result<()> {
    plan.apply(|node| {
        node.apply_expressions(|expr| {
            let is_subquery = expr.exists(|expr| {
                Ok(matches!(
                    expr,
                    Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_) | Expr::ScalarSubquery(_)
                ))
            })?;
            if is_subquery { Err(refused("a subquery").into()) } else { Ok(TreeNodeRecursion::Continue) }
        })
    })?;
    Ok(())
}

/// Refuses expressions whose value does not depend on one row alone.
fn check_expression(expr: &Expr, folding: Folding) -> Result<()> {
    expr.apply(|node| {
        let refused_part = match node {
            Expr::OuterReferenceColumn(..) => Some("a subquery".to_owned()),
            Expr::AggregateFunction(call) => Some(format!("the aggregate function {}()", call.func.name())),
            Expr::WindowFunction(call) => Some(format!("the window function {}()", call.fun.name())),
            Expr::Unnest(_) => Some("UNNEST".to_owned()),
            Expr::GroupingSet(_) => Some("GROUP BY".to_owned()),
            Expr::ScalarVariable(..) => Some("a variable".to_owned()),
            Expr::Placeholder(placeholder) => {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    SqlState::UNDEFINED_PARAMETER,
                    format!("parameter {} has no value", placeholder.id),
                )
                .into());
            }
            Expr::ScalarFunction(call) => {
                let fixed = folding == BeforeFolding && SESSION_FUNCTIONS.contains(&call.func.name());
                let immutable = call.func.signature().volatility == Volatility::Immutable;
                (!immutable && !fixed).then(|| format!("the function {}()", call.func.name()))
            }
            _ => None,
        };
        match refused_part {
            Some(part) => Err(refused(&part).into()),
            None => Ok(TreeNodeRecursion::Continue),
        }
    })?;
    Ok(())
}

fn refused(part: &str) -> Error {
    Error::unsupported(format!("{part} in a live query")).hint(
        "a live query is SELECT expressions FROM one_table [WHERE condition], with functions that depend \
         on the row alone",
    )
}

fn node_name(plan: &LogicalPlan) -> &'static str {
    match plan {
        LogicalPlan::Join(_) => "JOIN",
        LogicalPlan::Aggregate(_) => "an aggregate or GROUP BY",
        LogicalPlan::Sort(_) => "ORDER BY",
        LogicalPlan::Limit(_) => "LIMIT",
        LogicalPlan::Distinct(_) => "DISTINCT",
        LogicalPlan::Window(_) => "a window function",
        LogicalPlan::Union(_) => "UNION",
        LogicalPlan::Unnest(_) => "UNNEST",
        LogicalPlan::RecursiveQuery(_) => "a recursive query",
        LogicalPlan::EmptyRelation(_) | LogicalPlan::Values(_) => "a SELECT without a table",
        LogicalPlan::Subquery(_) => "a subquery",
        _ => "this statement",
    }
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

/// Returns `expr` with its columns unqualified, since there is only one table.
fn unqualified(expr: &Expr) -> Expr {
    let stripped = expr.clone().transform_up(|node| match node {
        Expr::Column(wanted) => Ok(Transformed::yes(column(&wanted.name))),
        node => Ok(Transformed::no(node)),
    });
    stripped.map_or_else(|_| expr.clone(), |rewritten| rewritten.data)
}
