//! INSERT, and appends of batches.
//!
//! The rows to insert are planned like any query, then cast to the columns' types. Omitted columns get their
//! defaults row by row, and all rows become one commit.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, RecordBatch, RecordBatchOptions, StringArray, TimestampMicrosecondArray, new_null_array,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::sql::planner::PlannerContext;
use datafusion::sql::sqlparser::ast;

use super::Attempts;
use super::rows::Rows;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::schema_registry::{ColumnDefault, ColumnDefinition, TableDefinition, TableSchemas};
use crate::sql::cursor::{QualifiedName, qualified};
use crate::sql::execution::Execution;
use crate::sql::parameters::Use;
use crate::sql::planner::{self, Planned, View};
use crate::sql::result::Affected;
use crate::sql::session::Session;
use crate::sql::statement::insert_target;
use crate::sql::typing::type_placeholders;
use crate::sql::workarounds::syntax;
use crate::tables::cast_column;
use crate::types::ColumnType;

/// The target table of an INSERT, and the sources of its columns.
pub(in crate::sql) struct Target {
    pub(in crate::sql) schemas: Arc<TableSchemas>,
    /// The position of each table column among the rows' columns; `None` for its default.
    sources: Vec<Option<usize>>,
}

impl Target {
    /// Returns a target for rows with `columns` in that order; when empty, with the table's first columns.
    pub(in crate::sql) fn new(
        schemas: Arc<TableSchemas>,
        columns: &[String],
        width: Option<usize>,
    ) -> Result<Self> {
        let definition = &schemas.definition;
        let mut sources = vec![None; definition.columns.len()];
        if columns.is_empty() {
            let width = width.unwrap_or(definition.columns.len());
            if width > definition.columns.len() {
                return Err(Error::syntax(format!(
                    "INSERT gives {width} values, table \"{}\" has {} columns",
                    definition.qualified_name(),
                    definition.columns.len()
                )));
            }
            for (place, source) in sources.iter_mut().take(width).enumerate() {
                *source = Some(place);
            }
            return Ok(Self { schemas, sources });
        }
        for (place, name) in columns.iter().enumerate() {
            let position = column_position(definition, name)?;
            let Some(source) = sources.get_mut(position) else { continue };
            if source.replace(place).is_some() {
                return Err(Error::new(
                    ErrorKind::InvalidSql,
                    SqlState::DUPLICATE_COLUMN,
                    format!("column \"{name}\" is named twice"),
                ));
            }
        }
        if let Some(width) = width
            && width != columns.len()
        {
            return Err(Error::syntax(format!(
                "INSERT names {} columns and gives {width} values",
                columns.len()
            )));
        }
        Ok(Self { schemas, sources })
    }

    /// Returns the table's columns in the order of the rows' columns.
    pub(in crate::sql) fn columns(&self) -> Vec<&ColumnDefinition> {
        let mut placed: Vec<_> = self
            .sources
            .iter()
            .zip(&self.schemas.definition.columns)
            .filter_map(|(source, column)| source.map(|place| (place, column)))
            .collect();
        placed.sort_by_key(|(place, _)| *place);
        placed.into_iter().map(|(_, column)| column).collect()
    }

    /// Returns the rows in the table's visible schema.
    pub(super) fn complete(&self, execution: &Execution, batch: &RecordBatch) -> Result<RecordBatch> {
        let columns = self
            .sources
            .iter()
            .zip(&self.schemas.definition.columns)
            .map(|(source, column)| match source.and_then(|place| batch.columns().get(place)) {
                Some(array) => cast_column(column, array),
                None => default_column(execution, column, batch.num_rows()),
            })
            .collect::<Result<Vec<_>>>()?;
        unchecked(&self.schemas, columns, batch.num_rows())
    }
}

/// Returns a batch of the visible schema, all nullable: the row writer refuses NULLs and names the column.
fn unchecked(schemas: &TableSchemas, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let fields: Vec<_> =
        schemas.visible.fields().iter().map(|field| Field::clone(field).with_nullable(true)).collect();
    let schema = Arc::new(datafusion::arrow::datatypes::Schema::new(fields));
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
}

fn column_position(definition: &TableDefinition, name: &str) -> Result<usize> {
    definition.columns.iter().position(|column| *column.name == *name).ok_or_else(|| {
        let names: Vec<_> = definition.columns.iter().take(12).map(|column| &*column.name).collect();
        Error::new(
            ErrorKind::NotFound,
            SqlState::UNDEFINED_COLUMN,
            format!("column \"{name}\" of table \"{}\" does not exist", definition.qualified_name()),
        )
        .hint(format!("columns are: {}", names.join(", ")))
    })
}

/// Returns the values of an omitted column.
pub(in crate::sql) fn default_column(
    execution: &Execution,
    column: &ColumnDefinition,
    rows: usize,
) -> Result<ArrayRef> {
    let generator = &execution.session.engine().generator;
    let array: ArrayRef = match &column.default {
        None => return Ok(new_null_array(&column.ty.arrow(), rows)),
        Some(default @ ColumnDefault::Literal(_)) => {
            let value = default.literal(column.ty)?.unwrap_or(ScalarValue::Null);
            value.to_array_of_size(rows)?
        }
        Some(ColumnDefault::Now) => {
            let now = TimestampMicrosecondArray::from_value(execution.now_us, rows);
            let now: ArrayRef = Arc::new(now.with_timezone("UTC"));
            match column.ty.arrow() {
                // Keeps the instant itself, not its local time in some zone.
                plain @ DataType::Timestamp(_, None) => {
                    cast(&now, &DataType::Int64).and_then(|now| cast(&now, &plain))?
                }
                other => cast(&now, &other)?,
            }
        }
        Some(ColumnDefault::SnowflakeId) => generator.snowflake_ids(rows),
        Some(ColumnDefault::UuidV7) => generator.uuids(rows),
        Some(ColumnDefault::Ulid) => generator.ulids(rows),
        Some(ColumnDefault::CurrentUser) => {
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(&*execution.principal.username, rows)))
        }
    };
    cast_column(column, &array)
}

/// Plans the rows of an INSERT.
pub(in crate::sql) fn plan(
    execution: &Execution,
    insert: &ast::Insert,
    view: View,
) -> Result<(Target, Planned)> {
    let name = insert_target(insert)?;
    let schemas = execution.schemas(execution.writable(&name)?);
    let columns = insert
        .columns
        .iter()
        .map(|column| Ok(qualified(column, "column")?.name))
        .collect::<Result<Vec<_>>>()?;
    let Some(source) = &insert.source else {
        let values = vec![vec![default_keyword(); schemas.definition.columns.len()]];
        let target = Target::new(schemas, &columns, None)?;
        let planned = plan_values(execution, &target, values, view)?;
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
        let target = Target::new(schemas, &columns, Some(width))?;
        let planned = plan_values(execution, &target, rows, view)?;
        return Ok((target, planned));
    }
    let planned = planner::plan_query(execution, source, view)?;
    let target = Target::new(schemas, &columns, Some(planned.plan.schema().fields().len()))?;
    let planned = type_placeholders(planned, &fields(&target, parameter_type))?;
    Ok((target, planned))
}

pub(in crate::sql) fn is_bare(query: &ast::Query) -> bool {
    query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none() && query.fetch.is_none()
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
    view: View,
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
                uses.insert(format!("${}", index + 1), Use::Assigned);
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
    let planned = planner::plan(execution, values, view, &mut context)?;
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
    matches!(value, ast::Expr::Value(value)
        if matches!(value.value, ast::Value::SingleQuotedString(_) | ast::Value::EscapedStringLiteral(_) | ast::Value::Null))
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
    crate::sql::cursor::expression(&text)
}

fn values_query(rows: Vec<Vec<ast::Expr>>) -> ast::Query {
    let rows = rows.into_iter().map(ast::Parens::with_empty_span).collect();
    let values = ast::Values { explicit_row: false, value_keyword: false, rows };
    crate::sql::cursor::query(ast::SetExpr::Values(values))
}

/// Runs an INSERT once per row of parameters, in one commit.
pub(in crate::sql) async fn insert(
    session: &Session,
    statement: &ast::Insert,
    view: View,
    params: &[Vec<ScalarValue>],
) -> Result<Affected> {
    let mut attempts = Attempts::new(session);
    loop {
        let execution = session.begin()?;
        let (target, planned) = plan(&execution, statement, view)?;
        let mut rows = Rows::new(&execution, Arc::clone(&target.schemas))?;
        planned.each_batch(params, |batch| rows.insert(&target, &batch)).await?;
        if let Some(affected) = rows.commit(&mut attempts).await? {
            return Ok(affected);
        }
    }
}

/// Checks that rows can be appended to a table: it exists, and the principal may write it.
pub(in crate::sql) fn check_append(session: &Session, namespace: Option<&str>, table: &str) -> Result<()> {
    let name = QualifiedName { namespace: namespace.map(str::to_owned), name: table.to_owned() };
    session.begin()?.writable(&name).map(|_| ())
}

/// Appends batches, whose columns are matched by name.
pub(in crate::sql) async fn append(
    session: &Session,
    namespace: Option<&str>,
    table: &str,
    batches: Vec<RecordBatch>,
) -> Result<Affected> {
    let name = QualifiedName { namespace: namespace.map(str::to_owned), name: table.to_owned() };
    let mut attempts = Attempts::new(session);
    loop {
        let execution = session.begin()?;
        let schemas = execution.schemas(execution.writable(&name)?);
        let mut rows = Rows::new(&execution, Arc::clone(&schemas))?;
        for batch in &batches {
            let schema = batch.schema();
            let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
            if names.is_empty() {
                return Err(Error::invalid("the rows to append have no columns"));
            }
            let target = Target::new(Arc::clone(&schemas), &names, None)?;
            rows.insert(&target, batch)?;
        }
        if let Some(affected) = rows.commit(&mut attempts).await? {
            return Ok(affected);
        }
    }
}
