//! One statement's view of the database: a snapshot, who asks, and what unqualified names mean.
//!
//! Invariant: a statement reads one snapshot and no other. Tables are resolved here and nowhere else, so a right that is not
//! checked here does not exist.

use std::sync::Arc;

use super::cursor::QualifiedName;
use super::session::Session;
use crate::access::Principal;
use crate::app_context::AppContext;
use crate::commit::{Snapshot, WriteSet};
use crate::error::{Error, Result};
use crate::schema_registry::{NAMESPACE_SYSTEM, ScopeKind, TableDefinition, TableKind, TableSchemas};

/// What a statement runs in.
#[derive(Clone)]
pub(crate) struct Execution {
    pub(crate) session: Session,
    pub(crate) snapshot: Arc<Snapshot>,
    /// With the role of the snapshot.
    pub(crate) principal: Principal,
    pub(crate) namespace: Arc<str>,
    /// The statement's time, in microseconds since 1970: what `NOW()` is, and what has expired.
    pub(crate) now_us: i64,
}

impl Execution {
    pub(crate) fn ctx(&self) -> &Arc<AppContext> {
        self.session.ctx()
    }

    pub(crate) fn schemas(&self, definition: &Arc<TableDefinition>) -> Arc<TableSchemas> {
        self.ctx().schema_registry.schemas(definition)
    }

    /// The namespace a name means.
    pub(crate) fn namespace_of<'a>(&'a self, name: &'a QualifiedName) -> &'a str {
        name.namespace.as_deref().unwrap_or(&self.namespace)
    }

    /// The table of that name, without a check of rights.
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

    /// The table of that name, which the principal may read.
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

    /// The table of that name, which the principal may write.
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

    /// The tables the principal may read, by namespace and name.
    pub(crate) fn readable_tables(&self) -> impl Iterator<Item = &Arc<TableDefinition>> {
        self.snapshot.catalog.tables().filter(|table| self.may_read(table))
    }

    /// The namespaces the principal may look into, by name.
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

    /// An empty set of changes planned on this snapshot.
    pub(crate) fn write_set(&self) -> WriteSet {
        WriteSet::new(self.principal.user_id, self.snapshot.seq)
    }
}
