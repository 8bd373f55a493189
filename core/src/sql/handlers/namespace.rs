//! CREATE NAMESPACE and DROP NAMESPACE.

use std::sync::Arc;

use serde_json::json;

use super::{Attempts, audit_row, denied, nothing_to_do};
use crate::access::Role;
use crate::error::{Error, Result};
use crate::schema_registry::{CatalogChange, NAMESPACE_SYSTEM, NamespaceRecord, validate_new_namespace};
use crate::sql::result::Outcome;
use crate::sql::session::Session;

pub(in crate::sql) async fn create(session: &Session, name: &str, if_not_exists: bool) -> Result<Outcome> {
    let mut attempts = Attempts::new(session);
    loop {
        let execution = session.begin()?;
        if let Err(error) = execution.principal.require(Role::Dba, format!("create namespace \"{name}\"")) {
            return Err(denied(&execution, "CREATE NAMESPACE", name, error).await);
        }
        if if_not_exists && execution.snapshot.catalog.namespace(name).is_some() {
            return Ok(nothing_to_do(&execution));
        }
        validate_new_namespace(name)?;
        let mut set = execution.write_set();
        set.catalog.push(CatalogChange::PutNamespace(NamespaceRecord {
            id: execution.snapshot.catalog.next_namespace_id(),
            name: Arc::from(name),
            revision: 1,
            options: None,
            created_at: execution.now_us,
        }));
        set.tables.push(audit_row(&execution, "CREATE NAMESPACE", name, None, None)?);
        if let Some(affected) = attempts.commit(set, 0).await? {
            return Ok(Outcome::Affected(affected));
        }
    }
}

pub(in crate::sql) async fn drop(
    session: &Session,
    name: &str,
    if_exists: bool,
    cascade: bool,
) -> Result<Outcome> {
    let mut attempts = Attempts::new(session);
    loop {
        let execution = session.begin()?;
        if let Err(error) = execution.principal.require(Role::Dba, format!("drop namespace \"{name}\"")) {
            return Err(denied(&execution, "DROP NAMESPACE", name, error).await);
        }
        let catalog = &execution.snapshot.catalog;
        let Some(namespace) = catalog.namespace(name) else {
            if if_exists {
                return Ok(nothing_to_do(&execution));
            }
            return Err(Error::namespace_not_found(name));
        };
        let mut set = execution.write_set();
        let mut dropped = Vec::new();
        if cascade && name != NAMESPACE_SYSTEM {
            for table in catalog.tables_in(name) {
                set.catalog.push(CatalogChange::DropTable(table.id));
                dropped.push(Arc::clone(table));
            }
        }
        set.catalog.push(CatalogChange::DropNamespace(namespace.id));
        let details =
            json!({ "tables": dropped.iter().map(|table| table.qualified_name()).collect::<Vec<_>>() });
        set.tables.push(audit_row(&execution, "DROP NAMESPACE", name, Some(details), None)?);
        if let Some(affected) = attempts.commit(set, 0).await? {
            for table in dropped {
                session.ctx().schema_registry.invalidate(table.id);
            }
            return Ok(Outcome::Affected(affected));
        }
    }
}
