//! `system.storages`: where segments live. `credentials` is a prefix of environment variables, no secret.

use datafusion::arrow::array::RecordBatch;

use serde_json::json;

use super::columns::{self, optional_text, text, times};
use crate::error::Result;
use crate::schema_registry::{Catalog, StorageRecord, TableSchemas};

pub(super) fn batch(catalog: &Catalog, table: &TableSchemas) -> Result<RecordBatch> {
    let storages: Vec<_> = catalog.storages().collect();
    columns::batch(
        table,
        vec![
            text("storage_id", storages.iter().map(|storage| &*storage.id)),
            text("storage_name", storages.iter().map(|storage| &storage.name)),
            optional_text("description", storages.iter().map(|storage| storage.description.as_deref())),
            text("storage_type", storages.iter().map(|storage| &storage.storage_type)),
            text("base_directory", storages.iter().map(|storage| &storage.base_directory)),
            optional_text("credentials", storages.iter().map(|storage| storage.credentials.as_deref())),
            optional_text("config_json", storages.iter().map(|storage| options(storage))),
            text("shared_tables_template", storages.iter().map(|storage| storage.template())),
            text("user_tables_template", storages.iter().map(|storage| storage.template())),
            times("created_at", storages.iter().map(|storage| storage.created_at)),
            times("updated_at", storages.iter().map(|storage| storage.updated_at)),
        ],
    )
}

fn options(storage: &StorageRecord) -> Option<String> {
    (!storage.options.is_empty()).then(|| json!(storage.options).to_string())
}
