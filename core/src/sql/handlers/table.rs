//! CREATE TABLE, ALTER TABLE and DROP TABLE.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::storages;
use crate::access::Role;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::schema_registry::{
    CatalogChange, NAMESPACE_SYSTEM, RESERVED_NAMESPACES, ScopeKind, TableDefinition, TableKind, TableOptions,
};
use crate::sql::effect::{Change, Effect};
use crate::sql::execution::Execution;
use crate::sql::text::alter_table::AlterTable;
use crate::sql::text::create_table::CreateTable;
use crate::sql::text::cursor::QualifiedName;

pub(in crate::sql) fn create(execution: &Execution, table: &CreateTable) -> Result<Effect> {
    let namespace = execution.namespace_of(&table.name).to_owned();
    let full_name = format!("{namespace}.{}", table.name.name);
    if let Err(error) = may_create(execution, table, &full_name) {
        return Effect::denied("CREATE TABLE", &full_name, error);
    }
    let catalog = &execution.snapshot.catalog;
    if catalog.namespace(&namespace).is_none() && !RESERVED_NAMESPACES.contains(&namespace.as_str()) {
        return Err(Error::namespace_not_found(&namespace));
    }
    if RESERVED_NAMESPACES.contains(&namespace.as_str()) {
        return Err(Error::permission_denied(format!("permission denied to create table \"{full_name}\""))
            .hint(format!("namespace \"{namespace}\" belongs to the database")));
    }
    if catalog.table(&namespace, &table.name.name).is_some() {
        if table.if_not_exists {
            return Ok(Effect::nothing(execution));
        }
        return Err(Error::new(
            ErrorKind::AlreadyExists,
            SqlState::DUPLICATE_TABLE,
            format!("table \"{full_name}\" already exists"),
        )
        .hint("add IF NOT EXISTS, or drop it first"));
    }
    storages::find(execution, &table.options.storage_id)?;
    let flush_policy = table.flush_policy.unwrap_or(execution.ctx().flush_policy);
    let definition = TableDefinition::create(
        catalog.next_table_id(),
        Arc::from(namespace.as_str()),
        Arc::from(table.name.name.as_str()),
        table.kind,
        table.columns.clone(),
        &table.primary_key,
        TableOptions { flush_policy, ..table.options.clone() },
        execution.principal.user_id,
        execution.now_us,
    )?;
    let details = json!({ "type": table.kind.name(), "columns": table.columns.len() });
    let mut change = Change::new(execution);
    change.note("CREATE TABLE", &full_name, Some(details), None);
    change.set.catalog.push(CatalogChange::PutTable(definition));
    Ok(change.into())
}

fn may_create(execution: &Execution, table: &CreateTable, full_name: &str) -> Result<()> {
    let allowed = match table.options.scope {
        ScopeKind::User => execution.principal.may_create_table(),
        ScopeKind::Shared => execution.principal.may_create_shared(),
    };
    if allowed {
        return Ok(());
    }
    Err(Error::permission_denied(format!("permission denied to create table \"{full_name}\"")).hint(
        "only the roles service, dba and system may create tables with shared rows; \
         everybody may use CREATE USER TABLE",
    ))
}

pub(in crate::sql) fn alter(execution: &Execution, statement: &AlterTable) -> Result<Effect> {
    let table = match execution.find(&statement.name) {
        Ok(table) => table,
        Err(error) if statement.if_exists && error.kind() == ErrorKind::NotFound => {
            return Ok(Effect::nothing(execution));
        }
        Err(error) => return Err(error),
    };
    let full_name = table.qualified_name();
    if let Err(error) = may_alter(execution, table) {
        return Effect::denied("ALTER TABLE", &full_name, error);
    }
    let mut options = table.options.clone();
    for change in &statement.changes {
        change.apply(table.kind, &mut options)?;
    }
    if options == table.options {
        return Ok(Effect::nothing(execution));
    }
    let definition = table.with_options(execution.now_us, options)?;
    let values = statement
        .changes
        .iter()
        .map(|change| (change.name().to_owned(), Value::String(change.value(&definition.options))));
    let details = json!({ "options": values.collect::<Map<_, _>>() });
    let mut change = Change::new(execution);
    change.note("ALTER TABLE", &full_name, Some(details), None);
    change.set.catalog.push(CatalogChange::PutTable(definition));
    Ok(change.into())
}

/// Options affect all users of a table, so a principal with the role user may alter only tables it created.
fn may_alter(execution: &Execution, table: &TableDefinition) -> Result<()> {
    let principal = &execution.principal;
    let refused = || {
        Error::permission_denied(format!("permission denied to alter table \"{}\"", table.qualified_name()))
    };
    let allowed = match (table.kind, table.options.scope) {
        (TableKind::System, _) => return Err(refused().hint("system tables belong to the database")),
        (_, ScopeKind::Shared) => principal.may_write_shared(table.options.access_level),
        (_, ScopeKind::User) => principal.role >= Role::Service || table.created_by == principal.user_id,
    };
    if allowed {
        return Ok(());
    }
    Err(refused().hint("a table can be altered by its creator, if they may write it, and by the role dba"))
}

pub(in crate::sql) fn drop(
    execution: &Execution,
    names: &[QualifiedName],
    if_exists: bool,
) -> Result<Effect> {
    let mut change = Change::new(execution);
    for name in names {
        let full_name = format!("{}.{}", execution.namespace_of(name), name.name);
        if let Err(error) = may_drop(execution, &full_name) {
            return Effect::denied("DROP TABLE", &full_name, error);
        }
        let table = match execution.find(name) {
            Ok(table) => table,
            Err(error) if if_exists && error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if table.kind == TableKind::System || &*table.namespace == NAMESPACE_SYSTEM {
            return Err(Error::permission_denied(format!("permission denied to drop table \"{full_name}\""))
                .hint("system tables always exist"));
        }
        change.set.catalog.push(CatalogChange::DropTable(table.id));
        change.note("DROP TABLE", &full_name, None, None);
    }
    if change.set.catalog.is_empty() {
        return Ok(Effect::nothing(execution));
    }
    Ok(change.into())
}

fn may_drop(execution: &Execution, full_name: &str) -> Result<()> {
    if execution.principal.may_administer() {
        return Ok(());
    }
    Err(Error::permission_denied(format!("permission denied to drop table \"{full_name}\""))
        .hint("only the roles dba and system may drop tables"))
}
