//! `system.tables`: every table, the system tables included.

use datafusion::arrow::array::RecordBatch;
use serde_json::{Value, json};

use super::columns::{self, integers, optional_text, text, times};
use crate::error::{Error, Result};
use crate::schema_registry::{Catalog, TableDefinition, TableKind, TableSchemas};

pub(super) fn batch(catalog: &Catalog, table: &TableSchemas) -> Result<RecordBatch> {
    let tables: Vec<_> = catalog.tables().collect();
    let options = tables.iter().map(|table| options_json(table)).collect::<Result<Vec<_>>>()?;
    let shown_access = |table: &TableDefinition| {
        matches!(table.kind, TableKind::Shared | TableKind::Stream).then(|| table.options.access_level.name())
    };
    columns::batch(
        table,
        vec![
            text("table_id", tables.iter().map(|table| table.qualified_name())),
            text("table_name", tables.iter().map(|table| &*table.name)),
            text("namespace_id", tables.iter().map(|table| &*table.namespace)),
            text("table_type", tables.iter().map(|table| table.kind.name().to_lowercase())),
            times("created_at", tables.iter().map(|table| table.created_at)),
            integers("schema_version", tables.iter().map(|table| table.version.0 as usize)),
            text("columns", tables.iter().map(|table| columns_json(table).to_string())),
            optional_text("table_comment", tables.iter().map(|table| table.comment.as_deref())),
            times("updated_at", tables.iter().map(|table| table.updated_at)),
            text("options", options.iter()),
            optional_text("access_level", tables.iter().map(|table| shown_access(table))),
            text("storage_id", tables.iter().map(|table| &*table.options.storage_id)),
        ],
    )
}

fn columns_json(table: &TableDefinition) -> Value {
    let key_position = |id| table.primary_key.iter().position(|key| *key == id).map(|position| position + 1);
    let columns = table.columns.iter().map(|column| {
        json!({
            "id": column.id,
            "name": column.name,
            "type": column.ty.sql_name(),
            "nullable": column.nullable,
            "default": column.default.as_ref().map(|default| default.sql_text(column.ty)),
            "primary_key": key_position(column.id),
        })
    });
    Value::Array(columns.collect())
}

fn options_json(table: &TableDefinition) -> Result<String> {
    serde_json::to_string(&table.options)
        .map_err(|error| Error::internal("the options of a table are not JSON").source(error))
}
