//! One statement's view of the database: a snapshot, the principal, and the namespace of unqualified names.
//!
//! Invariant: a statement reads one snapshot and no other. Only this module resolves tables, and checks the
//! rights to read and write them.

use std::sync::Arc;

use super::cursor::QualifiedName;
use super::session::Session;
use crate::access::Principal;
use crate::app_context::AppContext;
use crate::commit::{Snapshot, WriteSet};
use crate::error::{Error, Result};
use crate::schema_registry::{NAMESPACE_SYSTEM, ScopeKind, TableDefinition, TableKind, TableSchemas};

/// The context of a statement.
#[derive(Clone)]
pub(crate) struct Execution {
    pub(crate) session: Session,
    pub(crate) snapshot: Arc<Snapshot>,
    /// The user, with the role in the snapshot.
    pub(crate) principal: Principal,
    pub(crate) namespace: Arc<str>,
    /// Microseconds since 1970: the value of `NOW()`, and the time that decides which rows have expired.
    pub(crate) now_us: i64,
}

impl Execution {
    pub(crate) fn ctx(&self) -> &Arc<AppContext> {
        self.session.ctx()
    }

    pub(crate) fn schemas(&self, definition: &Arc<TableDefinition>) -> Arc<TableSchemas> {
        self.ctx().schema_registry.schemas(definition)
    }

    /// Returns the namespace of a name: its own, else the current one.
    pub(crate) fn namespace_of<'a>(&'a self, name: &'a QualifiedName) -> &'a str {
        name.namespace.as_deref().unwrap_or(&self.namespace)
    }

    /// Returns the table of that name, without a check of rights.
    pub(crate) fn find(&self, name: &QualifiedName) -> Result<&Arc<TableDefinition>> {
        let namespace = self.namespace_of(name);
        match self.snapshot.catalog.table(namespace, &name.name) {
            Some(table) => Ok(table),
            None if name.namespace.is_some() && self.snapshot.catalog.namespace(namespace).is_none() => {
                Err(Error::namespace_not_found(namespace))
            }
            None => Err(Error::table_not_found(format!("{namespace}.{}", name.name))),
        }
    }

    /// Returns the table of that name if the principal may read it.
    pub(crate) fn readable(&self, name: &QualifiedName) -> Result<&Arc<TableDefinition>> {
        let table = self.find(name)?;
        if self.may_read(table) {
            return Ok(table);
        }
        Err(Error::permission_denied(format!(
            "permission denied to read table \"{}\"",
            table.qualified_name()
        ))
        .hint(self.role_hint(table, table.options.access_level.reader().name())))
    }

    /// Returns the table of that name if the principal may write it.
    pub(crate) fn writable(&self, name: &QualifiedName) -> Result<&Arc<TableDefinition>> {
        let table = self.find(name)?;
        if table.kind == TableKind::System {
            return Err(Error::permission_denied(format!(
                "permission denied to write table \"{}\"",
                table.qualified_name()
            ))
            .hint("system tables are written by the database alone"));
        }
        let allowed = match table.options.scope {
            ScopeKind::User => true,
            ScopeKind::Shared => self.principal.may_write_shared(table.options.access_level),
        };
        if allowed {
            return Ok(table);
        }
        Err(Error::permission_denied(format!(
            "permission denied to write table \"{}\"",
            table.qualified_name()
        ))
        .hint(self.role_hint(table, table.options.access_level.writer().name())))
    }

    fn role_hint(&self, table: &TableDefinition, role: &str) -> String {
        if table.kind == TableKind::System {
            return "system tables are for the roles dba and system".to_owned();
        }
        format!("its access level {} asks for the role {role}", table.options.access_level.name())
    }

    pub(crate) fn may_read(&self, table: &TableDefinition) -> bool {
        table.is_readable_by(&self.principal)
    }

    /// Returns the tables the principal may read, ordered by namespace and name.
    pub(crate) fn readable_tables(&self) -> impl Iterator<Item = &Arc<TableDefinition>> {
        self.snapshot.catalog.tables().filter(|table| self.may_read(table))
    }

    /// Returns the namespaces the principal may see, ordered by name.
    pub(crate) fn readable_namespaces(&self) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = self
            .snapshot
            .catalog
            .namespaces()
            .filter(|namespace| &*namespace.name != NAMESPACE_SYSTEM || self.principal.may_read_system())
            .map(|namespace| Arc::clone(&namespace.name))
            .collect();
        names.push(Arc::from(super::INFORMATION_SCHEMA));
        names.sort();
        names
    }

    /// Returns an empty write set, planned on this snapshot.
    pub(crate) fn write_set(&self) -> WriteSet {
        WriteSet::new(self.principal.user_id, self.snapshot.seq)
    }
}
