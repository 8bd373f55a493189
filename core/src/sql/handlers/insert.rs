//! INSERT, and appends of batches.
//!
//! The rows to insert are planned like any query, then cast to the columns' types. Omitted columns get their
//! defaults row by row, and all rows become one commit.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::sql::planner::PlannerContext;
use datafusion::sql::sqlparser::ast;

use super::rows::Rows;
use super::target::Target;
use crate::error::{Error, Result};
use crate::schema_registry::{ColumnDefault, ColumnDefinition};
use crate::sql::effect::Effect;
use crate::sql::execution::{Execution, TableVisibility};
use crate::sql::plan::parameter_types::ParameterUse;
use crate::sql::plan::planner::{self, Planned};
use crate::sql::plan::typing::type_placeholders;
use crate::sql::syntax_tree;
use crate::sql::text::cursor::QualifiedName;
use crate::sql::text::statement::Insert;
use crate::sql::workarounds::syntax;
use crate::types::ColumnType;

/// Plans the rows of an INSERT.
pub(in crate::sql) fn plan(
    execution: &Execution,
    insert: &Insert,
    visibility: TableVisibility,
) -> Result<(Target, Planned)> {
    let Insert { table, columns, source } = insert;
    let schemas = execution.schemas(execution.writable(table)?);
    let Some(source) = source else {
        let values = vec![vec![default_keyword(); schemas.definition.columns.len()]];
        let target = Target::new(schemas, columns, None)?;
        let planned = plan_values(execution, &target, values, visibility)?;
        return Ok((target, planned));
    };
    if let ast::SetExpr::Values(values) = &*source.body
        && is_bare(source)
    {
        let rows: Vec<Vec<ast::Expr>> = values.rows.iter().map(|row| row.content.clone()).collect();
        let width = rows.first().map_or(0, Vec::len);
        if rows.iter().any(|row| row.len() != width) {
            return Err(Error::syntax("the rows of VALUES have different lengths"));
        }
        let target = Target::new(schemas, columns, Some(width))?;
        let planned = plan_values(execution, &target, rows, visibility)?;
        return Ok((target, planned));
    }
    let planned = planner::plan_query(execution, source, visibility)?;
    let target = Target::new(schemas, columns, Some(planned.plan.schema().fields().len()))?;
    let planned = type_placeholders(planned, &fields(&target, parameter_type))?;
    Ok((target, planned))
}

/// Whether a query is its body alone.
pub(in crate::sql) fn is_bare(query: &ast::Query) -> bool {
    let ast::Query {
        with,
        body: _,
        order_by,
        limit_clause,
        fetch,
        // The parser refuses these.
        locks: _,
        for_clause: _,
        settings: _,
        format_clause: _,
        pipe_operators: _,
    } = query;
    with.is_none() && order_by.is_none() && limit_clause.is_none() && fetch.is_none()
}

fn default_keyword() -> ast::Expr {
    ast::Expr::Identifier(ast::Ident::new("DEFAULT"))
}

fn fields(target: &Target, ty: impl Fn(ColumnType) -> DataType) -> Vec<FieldRef> {
    let columns = target.columns().into_iter();
    columns.map(|column| Arc::new(Field::new(&*column.name, ty(column.ty), true))).collect()
}

/// Returns the type that a parameter for a column is bound in; the row's cast does the rest.
pub(in crate::sql) fn parameter_type(ty: ColumnType) -> DataType {
    match ty {
        ColumnType::Uuid => DataType::Utf8,
        other => other.arrow(),
    }
}

/// Plans VALUES in the columns' types, so that `('1'), (2)` fit the same column.
fn plan_values(
    execution: &Execution,
    target: &Target,
    mut rows: Vec<Vec<ast::Expr>>,
    visibility: TableVisibility,
) -> Result<Planned> {
    let columns = target.columns();
    let mut only_text = vec![true; columns.len()];
    let mut parameters: Vec<Option<FieldRef>> = Vec::new();
    let mut uses = HashMap::new();
    for row in &mut rows {
        for ((value, column), only_text) in row.iter_mut().zip(&columns).zip(&mut only_text) {
            if is_default(value) {
                *value = default_expression(column)?;
            }
            if column.ty == ColumnType::Uuid && is_cast(value) {
                // It is planned as its text, as a literal is.
                *value = syntax::cast(value.clone(), ast::DataType::Text);
            }
            *only_text &= is_text(value);
            if let Some(index) = placeholder_index(value) {
                uses.insert(format!("${}", index + 1), ParameterUse::Assigned);
                if parameters.len() <= index {
                    parameters.resize(index + 1, None);
                }
                if let Some(parameter) = parameters.get_mut(index) {
                    *parameter = Some(Arc::new(Field::new(&*column.name, parameter_type(column.ty), true)));
                }
            }
        }
    }
    // The row's cast parses text for these types, because it knows their notation.
    let ty = |column: &ColumnDefinition, only_text: bool| match column.ty {
        ColumnType::Uuid => DataType::Utf8,
        ColumnType::Bytes | ColumnType::Embedding(_) if only_text => DataType::Utf8,
        other => other.arrow(),
    };
    let types =
        columns.iter().zip(only_text).map(|(column, text)| Field::new(&*column.name, ty(column, text), true));
    let schema = DFSchema::from_unqualified_fields(types.map(Arc::new).collect(), HashMap::new())?;
    let mut context = PlannerContext::new().with_prepare_param_data_types(parameters);
    context.set_table_schema(Some(Arc::new(schema)));
    let values = ast::Statement::Query(Box::new(values_query(rows)));
    let planned = planner::plan(execution, values, visibility, &mut context)?;
    Ok(Planned { uses, ..planned })
}

fn is_cast(value: &ast::Expr) -> bool {
    match value {
        ast::Expr::Nested(inner) => is_cast(inner),
        other => matches!(other, ast::Expr::Cast { .. }),
    }
}

fn is_default(value: &ast::Expr) -> bool {
    matches!(value, ast::Expr::Identifier(ident)
        if ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default"))
}

fn is_text(value: &ast::Expr) -> bool {
    use ast::Value as V;
    matches!(value, ast::Expr::Value(value)
        if matches!(value.value, V::SingleQuotedString(_) | V::EscapedStringLiteral(_) | V::Null))
}

fn placeholder_index(value: &ast::Expr) -> Option<usize> {
    let ast::Expr::Value(value) = value else { return None };
    let ast::Value::Placeholder(name) = &value.value else { return None };
    name.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1)
}

/// Returns the expression that DEFAULT stands for.
pub(in crate::sql) fn default_expression(column: &ColumnDefinition) -> Result<ast::Expr> {
    let text = match &column.default {
        None => return Ok(ast::Expr::value(ast::Value::Null)),
        Some(ColumnDefault::Literal(text)) => {
            return Ok(ast::Expr::value(ast::Value::SingleQuotedString(text.clone())));
        }
        Some(function) => function.sql_text(column.ty),
    };
    syntax_tree::expression(&text)
}

fn values_query(rows: Vec<Vec<ast::Expr>>) -> ast::Query {
    let rows = rows.into_iter().map(ast::Parens::with_empty_span).collect();
    let values = ast::Values { explicit_row: false, value_keyword: false, rows };
    syntax_tree::query(ast::SetExpr::Values(values))
}

/// Runs an INSERT once per row of parameters.
pub(in crate::sql) async fn insert(
    execution: &Execution,
    statement: &Insert,
    visibility: TableVisibility,
    params: &[Vec<ScalarValue>],
) -> Result<Effect> {
    let (target, planned) = plan(execution, statement, visibility)?;
    let mut rows = Rows::new(execution, Arc::clone(&target.schemas))?;
    planned.each_batch(params, |batch| rows.insert(&target, &batch)).await?;
    Ok(rows.change().await?.into())
}

/// Rows to append to a table.
pub(in crate::sql) struct Append {
    pub(in crate::sql) table: QualifiedName,
    /// Their columns are matched by name.
    pub(in crate::sql) batches: Vec<RecordBatch>,
}

/// Appends rows.
pub(in crate::sql) async fn append(execution: &Execution, append: &Append) -> Result<Effect> {
    let schemas = execution.schemas(execution.writable(&append.table)?);
    let mut rows = Rows::new(execution, Arc::clone(&schemas))?;
    for batch in &append.batches {
        let schema = batch.schema();
        let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        if names.is_empty() {
            return Err(Error::invalid("the rows to append have no columns"));
        }
        let target = Target::new(Arc::clone(&schemas), &names, None)?;
        rows.insert(&target, batch)?;
    }
    Ok(rows.change().await?.into())
}
