//! The only way in which a commit changes the stored state: for new commits and for a replay of the log.
//!
//! ```text
//! Rows   key -> stored row                                        see storage::keys and storage::rows
//! Meta   "catalog/" record key -> CatalogChange as JSON           the last Put of every record
//!        "catalog_header" -> CatalogHeader as JSON
//! ```
//!
//! Invariant: the result depends only on the record and the catalog before it. Replaying the log gives the
//! same rows, except that those of a large INSERT are then hot.

use std::sync::Arc;

use bytes::Bytes;

use crate::change_log::CommitRecord;
use crate::error::{Error, Result};
use crate::ids::ScopeId;
use crate::schema_registry::{Catalog, CatalogChange, CatalogHeader, ScopeKind};
use crate::storage::{KeyRange, Partition, WriteBatch, keys};

pub(super) const CATALOG_PREFIX: &str = "catalog/";
pub(super) const CATALOG_HEADER_KEY: &[u8] = b"catalog_header";

/// Adds the changes of `record` to `batch` and returns the catalog after it.
///
/// # Errors
/// Any error of [`Catalog::apply`].
pub(super) fn redo(
    batch: &mut WriteBatch,
    record: &CommitRecord,
    catalog: &Arc<Catalog>,
) -> Result<Arc<Catalog>> {
    let mut catalog = Arc::clone(catalog);
    for change in &record.catalog {
        let next = catalog.apply(change)?;
        remove_rows(batch, change, &catalog);
        put_record(batch, change)?;
        if next.header() != catalog.header() {
            put_header(batch, next.header())?;
        }
        catalog = Arc::new(next);
    }
    for change in record.tables.iter().flat_map(|changes| &changes.rows) {
        match &change.new {
            Some(row) => batch.put(Partition::Rows, Bytes::clone(&change.key), Bytes::clone(row)),
            None => batch.delete(Partition::Rows, Bytes::clone(&change.key)),
        }
    }
    Ok(catalog)
}

/// Deletes the rows of a dropped table, or of a dropped user in all tables. Their numbers are never reused.
fn remove_rows(batch: &mut WriteBatch, change: &CatalogChange, catalog: &Catalog) {
    match change {
        CatalogChange::DropTable(table) => {
            batch.delete_range(Partition::Rows, KeyRange::prefix(keys::table_prefix(*table)));
        }
        CatalogChange::DropUser(user) => {
            for table in catalog.tables().filter(|table| table.options.scope == ScopeKind::User) {
                let prefix = keys::scope_prefix(table.id, ScopeId::of(*user));
                batch.delete_range(Partition::Rows, KeyRange::prefix(prefix));
            }
        }
        CatalogChange::PutNamespace(_)
        | CatalogChange::DropNamespace(_)
        | CatalogChange::PutTable(_)
        | CatalogChange::PutUser(_)
        | CatalogChange::PutStorage(_)
        | CatalogChange::DropStorage(_) => {}
    }
}

pub(super) fn put_record(batch: &mut WriteBatch, change: &CatalogChange) -> Result<()> {
    let key = format!("{CATALOG_PREFIX}{}", change.record_key());
    if change.is_drop() {
        batch.delete(Partition::Meta, key);
    } else {
        batch.put(Partition::Meta, key, json(change)?);
    }
    Ok(())
}

pub(super) fn put_header(batch: &mut WriteBatch, header: CatalogHeader) -> Result<()> {
    batch.put(Partition::Meta, CATALOG_HEADER_KEY, json(&header)?);
    Ok(())
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|error| Error::internal("a catalog record cannot be written").source(error))
}
