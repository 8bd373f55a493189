//! CREATE NAMESPACE and DROP NAMESPACE.

use std::sync::Arc;

use serde_json::json;

use crate::access::Role;
use crate::error::{Error, Result};
use crate::schema_registry::{CatalogChange, NAMESPACE_SYSTEM, NamespaceRecord, validate_new_namespace};
use crate::sql::effect::{Change, Effect};
use crate::sql::execution::Execution;

pub(in crate::sql) fn create(execution: &Execution, name: &str, if_not_exists: bool) -> Result<Effect> {
    if let Err(error) = execution.principal.require(Role::Dba, format!("create namespace \"{name}\"")) {
        return Effect::denied("CREATE NAMESPACE", name, error);
    }
    if if_not_exists && execution.snapshot.catalog.namespace(name).is_some() {
        return Ok(Effect::nothing(execution));
    }
    validate_new_namespace(name)?;
    let mut change = Change::new(execution);
    change.set.catalog.push(CatalogChange::PutNamespace(NamespaceRecord {
        id: execution.snapshot.catalog.next_namespace_id(),
        name: Arc::from(name),
        revision: 1,
        options: None,
        created_at: execution.now_us,
    }));
    change.note("CREATE NAMESPACE", name, None, None);
    Ok(change.into())
}

pub(in crate::sql) fn drop(
    execution: &Execution,
    name: &str,
    if_exists: bool,
    cascade: bool,
) -> Result<Effect> {
    if let Err(error) = execution.principal.require(Role::Dba, format!("drop namespace \"{name}\"")) {
        return Effect::denied("DROP NAMESPACE", name, error);
    }
    let catalog = &execution.snapshot.catalog;
    let Some(namespace) = catalog.namespace(name) else {
        if if_exists {
            return Ok(Effect::nothing(execution));
        }
        return Err(Error::namespace_not_found(name));
    };
    let mut change = Change::new(execution);
    let mut dropped = Vec::new();
    if cascade && name != NAMESPACE_SYSTEM {
        for table in catalog.tables_in(name) {
            change.set.catalog.push(CatalogChange::DropTable(table.id));
            dropped.push(Arc::clone(table));
        }
    }
    change.set.catalog.push(CatalogChange::DropNamespace(namespace.id));
    let details = json!({ "tables": dropped.iter().map(|table| table.qualified_name()).collect::<Vec<_>>() });
    change.note("DROP NAMESPACE", name, Some(details), None);
    Ok(change.into())
}
