//! `system.namespaces`: where tables live.

use datafusion::arrow::array::RecordBatch;

use super::columns::{self, integers, optional_text, text, times};
use crate::error::Result;
use crate::schema_registry::{Catalog, TableSchemas};

pub(super) fn batch(catalog: &Catalog, table: &TableSchemas) -> Result<RecordBatch> {
    let namespaces: Vec<_> = catalog.namespaces().collect();
    columns::batch(
        table,
        vec![
            text("namespace_id", namespaces.iter().map(|namespace| &*namespace.name)),
            text("name", namespaces.iter().map(|namespace| &*namespace.name)),
            times("created_at", namespaces.iter().map(|namespace| namespace.created_at)),
            optional_text("options", namespaces.iter().map(|namespace| namespace.options.as_deref())),
            integers(
                "table_count",
                namespaces.iter().map(|namespace| catalog.tables_in(&namespace.name).count()),
            ),
        ],
    )
}
