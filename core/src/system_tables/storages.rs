//! `system.storages`: where segments live. Credentials are not shown to anybody.

use datafusion::arrow::array::RecordBatch;

use super::columns::{self, null_text, optional_text, text, times};
use crate::error::Result;
use crate::schema_registry::{Catalog, TableSchemas};

pub(super) fn batch(catalog: &Catalog, table: &TableSchemas) -> Result<RecordBatch> {
    let storages: Vec<_> = catalog.storages().collect();
    let rows = storages.len();
    columns::batch(
        table,
        vec![
            text("storage_id", storages.iter().map(|storage| &*storage.id)),
            text("storage_name", storages.iter().map(|storage| &storage.name)),
            optional_text("description", storages.iter().map(|storage| storage.description.as_deref())),
            text("storage_type", storages.iter().map(|storage| &storage.storage_type)),
            text("base_directory", storages.iter().map(|storage| &storage.base_directory)),
            null_text("credentials", rows),
            null_text("config_json", rows),
            text("shared_tables_template", storages.iter().map(|storage| &storage.shared_tables_template)),
            text("user_tables_template", storages.iter().map(|storage| &storage.user_tables_template)),
            times("created_at", storages.iter().map(|storage| storage.created_at)),
            times("updated_at", storages.iter().map(|storage| storage.updated_at)),
        ],
    )
}
