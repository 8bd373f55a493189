//! UPDATE and DELETE: a query reads the columns that a write needs of each row, then a commit changes the
//! rows. When another commit has changed one of them, the commit fails and the statement runs again.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::common::ScalarValue;
use datafusion::sql::planner::PlannerContext;
use datafusion::sql::sqlparser::ast;

use super::insert::{default_expression, parameter_type};
use super::rows::Rows;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::schema_registry::{COLUMN_KEY, COLUMN_PLACE, COLUMN_SEQ, COLUMN_VALUE, TableKind, TableSchemas};
use crate::sql::effect::Effect;
use crate::sql::execution::{Execution, TableVisibility};
use crate::sql::plan::planner::{self, Planned};
use crate::sql::plan::typing::type_placeholders;
use crate::sql::syntax_tree::{self, fold};
use crate::sql::text::cursor::qualified;
use crate::sql::text::statement::{Delete, Update};
use crate::tables::cast_column;

/// The columns of a stored row that a write needs.
const WRITE_COLUMNS: [&str; 4] = [COLUMN_SEQ, COLUMN_KEY, COLUMN_VALUE, COLUMN_PLACE];

/// Plans an UPDATE: the new values of the table's columns, and the columns in [`WRITE_COLUMNS`].
pub(in crate::sql) fn plan_update(
    execution: &Execution,
    update: &Update,
    visibility: TableVisibility,
) -> Result<(Arc<TableSchemas>, Planned)> {
    let Update { table, assignments, selection } = update;
    let (schemas, from) = target(execution, table)?;
    let definition = &schemas.definition;
    if definition.kind == TableKind::Stream {
        return Err(Error::unsupported(format!(
            "UPDATE of STREAM table \"{}\"",
            definition.qualified_name()
        ))
        .hint("insert another row"));
    }
    let mut assigned = HashMap::new();
    for assignment in assignments {
        let ast::AssignmentTarget::ColumnName(name) = &assignment.target else {
            return Err(Error::unsupported("UPDATE ... SET (a, b) = (...)"));
        };
        let Some(name) = name.0.last().and_then(|part| part.as_ident()).map(fold) else {
            return Err(Error::syntax(format!("{name} is not a column name")));
        };
        let Some(column) = definition.column(&name) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                SqlState::UNDEFINED_COLUMN,
                format!("column \"{name}\" of table \"{}\" does not exist", definition.qualified_name()),
            ));
        };
        let is_default = matches!(&assignment.value, ast::Expr::Identifier(ident)
            if ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default"));
        let value = if is_default { default_expression(column)? } else { assignment.value.clone() };
        if assigned.insert(name.clone(), value).is_some() {
            return Err(Error::syntax(format!("column \"{name}\" is set twice")));
        }
    }
    let mut projection = Vec::with_capacity(definition.columns.len() + WRITE_COLUMNS.len());
    let mut fields = Vec::with_capacity(definition.columns.len());
    for column in &definition.columns {
        let name = ast::Ident::with_quote('"', &*column.name);
        let value = assigned.remove(&*column.name).unwrap_or_else(|| ast::Expr::Identifier(name.clone()));
        projection.push(ast::SelectItem::ExprWithAlias { expr: value, alias: name });
        fields.push(Arc::new(Field::new(&*column.name, parameter_type(column.ty), true)));
    }
    projection.extend(WRITE_COLUMNS.iter().map(|name| stored(name)));
    let planned = plan(execution, &schemas, projection, from, selection.clone(), visibility)?;
    Ok((schemas, type_placeholders(planned, &fields)?))
}

/// Plans a DELETE: the columns in [`WRITE_COLUMNS`] of the rows to remove.
pub(in crate::sql) fn plan_delete(
    execution: &Execution,
    delete: &Delete,
    visibility: TableVisibility,
) -> Result<(Arc<TableSchemas>, Planned)> {
    let Delete { table, selection } = delete;
    let (schemas, from) = target(execution, table)?;
    let projection = WRITE_COLUMNS.iter().map(|name| stored(name)).collect();
    let planned = plan(execution, &schemas, projection, from, selection.clone(), visibility)?;
    Ok((schemas, planned))
}

fn stored(name: &str) -> ast::SelectItem {
    ast::SelectItem::UnnamedExpr(ast::Expr::Identifier(ast::Ident::with_quote('"', name)))
}

fn target(
    execution: &Execution,
    table: &ast::TableWithJoins,
) -> Result<(Arc<TableSchemas>, ast::TableWithJoins)> {
    let ast::TableFactor::Table { name, args: None, alias, .. } = &table.relation else {
        return Err(Error::unsupported("UPDATE or DELETE of anything but a table"));
    };
    if !table.joins.is_empty() || alias.as_ref().is_some_and(|alias| !alias.columns.is_empty()) {
        return Err(Error::unsupported("UPDATE or DELETE of a join"));
    }
    let definition = execution.writable(&qualified(name, "table")?)?;
    Ok((execution.schemas(definition), table.clone()))
}

fn plan(
    execution: &Execution,
    schemas: &TableSchemas,
    projection: Vec<ast::SelectItem>,
    from: ast::TableWithJoins,
    selection: Option<ast::Expr>,
    visibility: TableVisibility,
) -> Result<Planned> {
    let query = syntax_tree::select(projection, from, selection);
    let visibility = TableVisibility { target: Some(schemas.definition.id), ..visibility };
    planner::plan(execution, ast::Statement::Query(Box::new(query)), visibility, &mut PlannerContext::new())
}

/// Runs an UPDATE once per row of parameters.
pub(in crate::sql) async fn update(
    execution: &Execution,
    statement: &Update,
    visibility: TableVisibility,
    params: &[Vec<ScalarValue>],
) -> Result<Effect> {
    let (schemas, planned) = plan_update(execution, statement, visibility)?;
    let mut rows = Rows::new(execution, Arc::clone(&schemas))?;
    planned
        .each_batch(params, |batch| {
            let (before, after) = split(&schemas, &batch)?;
            rows.update(&before, &after)
        })
        .await?;
    if params.len() > 1 {
        rows.check_distinct()?;
    }
    Ok(rows.change().await?.into())
}

/// Runs a DELETE once per row of parameters.
pub(in crate::sql) async fn delete(
    execution: &Execution,
    statement: &Delete,
    visibility: TableVisibility,
    params: &[Vec<ScalarValue>],
) -> Result<Effect> {
    let (schemas, planned) = plan_delete(execution, statement, visibility)?;
    let mut rows = Rows::new(execution, schemas)?;
    planned.each_batch(params, |batch| rows.delete(&batch)).await?;
    if params.len() > 1 {
        rows.check_distinct()?;
    }
    Ok(rows.change().await?.into())
}

/// Splits a planned batch into the stored rows and the new rows.
fn split(schemas: &TableSchemas, batch: &RecordBatch) -> Result<(RecordBatch, RecordBatch)> {
    let columns = &schemas.definition.columns;
    let width = columns.len();
    let positions: Vec<usize> = (width..width + WRITE_COLUMNS.len()).collect();
    let before = batch.project(&positions)?;
    let after = columns
        .iter()
        .zip(batch.columns())
        .map(|(column, array)| cast_column(column, array))
        .collect::<Result<Vec<_>>>()?;
    let fields: Vec<_> =
        schemas.visible.fields().iter().map(|field| Field::clone(field).with_nullable(true)).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let after = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), after, &options)?;
    Ok((before, after))
}
