//! SHOW and DESCRIBE.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::sql::sqlparser::ast;

use crate::error::{Error, Result};
use crate::ids::Seq;
use crate::schema_registry::{SystemTable, TableSchemas};
use crate::sql::effect::Effect;
use crate::sql::execution::{Execution, TableVisibility};
use crate::sql::plan::catalog::system_sources;
use crate::sql::plan::planner;
use crate::sql::result::{ResultSchema, RowStream};
use crate::sql::syntax_tree::written_query;
use crate::sql::text::cursor::QualifiedName;
use crate::sql::text::statement::Show;
use crate::system_tables;

fn text(name: &str, nullable: bool) -> Field {
    Field::new(name, DataType::Utf8, nullable)
}

static NAMESPACES: LazyLock<SchemaRef> =
    LazyLock::new(|| Arc::new(Schema::new(vec![text("namespace", false)])));

static TABLES: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![text("namespace", false), text("table", false), text("type", false)]))
});

static SEARCH_PATH: LazyLock<SchemaRef> =
    LazyLock::new(|| Arc::new(Schema::new(vec![text("search_path", false)])));

static DESCRIBE: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        text("column_name", false),
        text("data_type", false),
        text("is_nullable", false),
        Field::new("key_position", DataType::Int32, true),
        text("column_default", true),
    ]))
});

/// Returns the query that SHOW runs, where it reads a system table.
fn query(show: &Show) -> Option<&'static str> {
    match show {
        Show::Users => Some("SELECT * FROM system.users ORDER BY username"),
        Show::Storages => Some("SELECT * FROM system.storages ORDER BY storage_id"),
        Show::Jobs => Some("SELECT * FROM system.jobs ORDER BY job_id"),
        Show::LiveQueries => Some("SELECT * FROM system.live_queries ORDER BY live_id"),
        Show::Stats => Some("SELECT * FROM system.stats ORDER BY metric_name"),
        Show::Namespaces
        | Show::Tables(_)
        | Show::Queries
        | Show::Sessions
        | Show::SearchPath
        | Show::Setting(_) => None,
    }
}

fn parsed(sql: &str) -> Result<ast::Query> {
    written_query(sql)
}

/// Returns the schema of SHOW.
pub(in crate::sql) fn schema(execution: &Execution, show: &Show) -> Result<ResultSchema> {
    if let Some(sql) = query(show) {
        return planner::query_schema(execution, &parsed(sql)?);
    }
    if let Some(table) = running(show) {
        let schemas = system_schemas(execution, table)?;
        return Ok(whole(&schemas));
    }
    Ok(ResultSchema { schema: own_schema(show), ipc: None })
}

fn own_schema(show: &Show) -> SchemaRef {
    match show {
        Show::Namespaces => Arc::clone(&NAMESPACES),
        Show::SearchPath => Arc::clone(&SEARCH_PATH),
        Show::Setting(setting) => Arc::new(Schema::new(vec![text(setting.name(), false)])),
        _ => Arc::clone(&TABLES),
    }
}

/// Returns the table of what runs now. It is shown whole, without a plan: whoever must end something must
/// be able to see it when all threads are busy.
fn running(show: &Show) -> Option<SystemTable> {
    match show {
        Show::Queries => Some(SystemTable::Queries),
        Show::Sessions => Some(SystemTable::Sessions),
        _ => None,
    }
}

fn system_schemas(execution: &Execution, table: SystemTable) -> Result<Arc<TableSchemas>> {
    let definition = execution.snapshot.catalog.table_by_id(table.id()).ok_or_else(|| {
        Error::corruption(format!("table \"system.{}\" is missing from the catalog", table.name()))
    })?;
    Ok(execution.schemas(definition))
}

/// Returns the schema of all visible columns.
fn whole(schemas: &TableSchemas) -> ResultSchema {
    ResultSchema { schema: Arc::clone(&schemas.visible), ipc: Some(schemas.visible_ipc()) }
}

pub(in crate::sql) async fn show(execution: &Execution, show: &Show) -> Result<Effect> {
    if let Some(sql) = query(show) {
        let planned = planner::plan_query(execution, &parsed(sql)?, TableVisibility::default())?;
        return Ok(Effect::Rows(planned.rows(execution, &[]).await?));
    }
    if let Some(table) = running(show) {
        let schemas = system_schemas(execution, table)?;
        let batch = system_tables::batch(&system_sources(execution), &schemas)?
            .ok_or_else(|| Error::internal("SHOW has nothing to show"))?;
        return Ok(Effect::Rows(RowStream::of(whole(&schemas), execution.snapshot.seq, batch)));
    }
    let columns: Vec<ArrayRef> = match show {
        Show::Setting(setting) => {
            vec![Arc::new(StringArray::from_iter_values([execution.setting(*setting)]))]
        }
        Show::Namespaces => {
            let names = execution.readable_namespaces();
            vec![Arc::new(StringArray::from_iter_values(names.iter().map(|name| &**name)))]
        }
        Show::SearchPath => vec![Arc::new(StringArray::from_iter_values([&*execution.namespace]))],
        Show::Tables(namespace) => tables(execution, namespace.as_deref())?,
        _ => return Err(Error::internal("SHOW has nothing to show")),
    };
    rows(execution.snapshot.seq, &own_schema(show), columns)
}

fn tables(execution: &Execution, namespace: Option<&str>) -> Result<Vec<ArrayRef>> {
    if let Some(name) = namespace
        && execution.snapshot.catalog.namespace(name).is_none()
    {
        return Err(Error::namespace_not_found(name));
    }
    let tables: Vec<_> = execution
        .readable_tables()
        .filter(|table| namespace.is_none_or(|namespace| *table.namespace == *namespace))
        .collect();
    Ok(vec![
        Arc::new(StringArray::from_iter_values(tables.iter().map(|table| &*table.namespace))),
        Arc::new(StringArray::from_iter_values(tables.iter().map(|table| &*table.name))),
        Arc::new(StringArray::from_iter_values(tables.iter().map(|table| table.kind.name()))),
    ])
}

/// Returns the schema of DESCRIBE.
pub(in crate::sql) fn describe_schema() -> SchemaRef {
    Arc::clone(&DESCRIBE)
}

pub(in crate::sql) fn describe(execution: &Execution, table: &QualifiedName) -> Result<Effect> {
    let definition = execution.readable(table)?;
    let columns = &definition.columns;
    let key_position = |id| {
        let position = definition.primary_key.iter().position(|key| *key == id)?;
        i32::try_from(position + 1).ok()
    };
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(columns.iter().map(|column| &*column.name))),
        Arc::new(StringArray::from_iter_values(columns.iter().map(|column| match column.length_max {
            Some(length) => format!("VARCHAR({length})"),
            None => column.ty.sql_name(),
        }))),
        Arc::new(StringArray::from_iter_values(
            columns.iter().map(|column| if column.nullable { "YES" } else { "NO" }),
        )),
        Arc::new(Int32Array::from_iter(columns.iter().map(|column| key_position(column.id)))),
        Arc::new(StringArray::from_iter(
            columns.iter().map(|column| column.default.as_ref().map(|default| default.sql_text(column.ty))),
        )),
    ];
    rows(execution.snapshot.seq, &DESCRIBE, arrays)
}

/// Returns these columns as the result of a statement, as of commit `seq`.
pub(in crate::sql) fn rows(seq: Seq, schema: &SchemaRef, columns: Vec<ArrayRef>) -> Result<Effect> {
    row_stream(seq, schema, columns).map(Effect::Rows)
}

/// Returns these columns as rows, as of commit `seq`.
pub(in crate::sql) fn row_stream(seq: Seq, schema: &SchemaRef, columns: Vec<ArrayRef>) -> Result<RowStream> {
    let batch = RecordBatch::try_new(Arc::clone(schema), columns)?;
    let schema = ResultSchema { schema: Arc::clone(schema), ipc: None };
    Ok(RowStream::of(schema, seq, batch))
}
