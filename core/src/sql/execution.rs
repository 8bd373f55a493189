//! One statement's view of the database: a snapshot, the principal, and the namespace of unqualified names.
//!
//! Invariant: a statement reads one snapshot and no other. Only this module resolves tables, and checks the
//! rights to read and write them.

use std::sync::Arc;

use parking_lot::RwLock;

use super::engine::Engine;
use super::text::cursor::QualifiedName;
use crate::access::Principal;
use crate::app_context::AppContext;
use crate::commit::{Snapshot, WriteSet};
use crate::error::{Error, Result};
use crate::ids::TableId;
use crate::schema_registry::{
    NAMESPACE_PUBLIC, NAMESPACE_SYSTEM, ScopeKind, TableDefinition, TableKind, TableSchemas,
};
use crate::workload::StatementControl;

/// How tables appear to a statement.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TableVisibility {
    /// Tables have the column `_seq`, for a statement that names it.
    pub(crate) names_seq: bool,
    /// The table that an UPDATE or DELETE changes; it has the columns a write needs.
    pub(crate) target: Option<TableId>,
}

/// The settings of a session.
pub(crate) struct Settings {
    namespace: RwLock<Arc<str>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { namespace: RwLock::new(Arc::from(NAMESPACE_PUBLIC)) }
    }
}

impl Settings {
    /// Returns the namespace of unqualified table names.
    pub(crate) fn namespace(&self) -> Arc<str> {
        Arc::clone(&self.namespace.read())
    }
}

/// The context of a statement.
#[derive(Clone)]
pub(crate) struct Execution {
    ctx: Arc<AppContext>,
    pub(crate) engine: Arc<Engine>,
    /// Stops the statement, in all its attempts.
    pub(crate) control: Arc<StatementControl>,
    settings: Arc<Settings>,
    pub(crate) snapshot: Arc<Snapshot>,
    /// The user, with the role in the snapshot.
    pub(crate) principal: Principal,
    pub(crate) namespace: Arc<str>,
    /// Microseconds since 1970: the value of `NOW()`, and the time that decides which rows have expired.
    pub(crate) now_us: i64,
}

impl Execution {
    /// Returns a statement's view of the database, as of now.
    ///
    /// # Errors
    /// 28000 when the user no longer exists.
    pub(crate) fn begin(
        ctx: &Arc<AppContext>,
        engine: &Arc<Engine>,
        principal: &Principal,
        settings: &Arc<Settings>,
    ) -> Result<Self> {
        let snapshot = ctx.committer.snapshot();
        let principal = current(principal, &snapshot)?;
        let (ctx, engine, settings) = (Arc::clone(ctx), Arc::clone(engine), Arc::clone(settings));
        let (namespace, now_us) = (settings.namespace(), ctx.clock.now_us());
        let control = StatementControl::new(&ctx.config);
        Ok(Self { ctx, engine, control, settings, snapshot, principal, namespace, now_us })
    }

    /// Returns the view of the same statement, at the same time, on the newest snapshot.
    ///
    /// # Errors
    /// 28000 when the user no longer exists.
    pub(crate) fn refreshed(&self) -> Result<Self> {
        let snapshot = self.ctx.committer.snapshot();
        let principal = current(&self.principal, &snapshot)?;
        Ok(Self { snapshot, principal, ..self.clone() })
    }

    /// Changes the session's namespace of unqualified table names.
    ///
    /// # Errors
    /// 3F000 when it does not exist.
    pub(crate) fn set_namespace(&self, namespace: &str) -> Result<()> {
        let known = self.snapshot.catalog.namespace(namespace).map(|record| Arc::clone(&record.name));
        let name = match known {
            Some(name) => name,
            None if namespace == super::INFORMATION_SCHEMA => Arc::from(namespace),
            None => return Err(Error::namespace_not_found(namespace)),
        };
        *self.settings.namespace.write() = name;
        Ok(())
    }

    pub(crate) fn ctx(&self) -> &Arc<AppContext> {
        &self.ctx
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
        .hint(self.role_hint(table, table.options.access_level.min_reader().name())))
    }

    /// Returns the table of that name if the principal may write it.
    pub(crate) fn writable(&self, name: &QualifiedName) -> Result<&Arc<TableDefinition>> {
        let table = self.find(name)?;
        if table.kind == TableKind::System {
            return Err(Error::permission_denied(format!(
                "permission denied to write table \"{}\"",
                table.qualified_name()
            ))
            .hint("only the database writes system tables"));
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
        .hint(self.role_hint(table, table.options.access_level.min_writer().name())))
    }

    fn role_hint(&self, table: &TableDefinition, role: &str) -> String {
        if table.kind == TableKind::System {
            return "only the roles dba and system may read system tables".to_owned();
        }
        format!("access level {} requires role {role}", table.options.access_level.name())
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

/// Returns the principal with its role in a snapshot.
fn current(principal: &Principal, snapshot: &Snapshot) -> Result<Principal> {
    match snapshot.catalog.user(principal.user_id) {
        Some(user) => Ok(Principal { role: user.role, ..principal.clone() }),
        None => Err(Error::user_not_found(&principal.username)),
    }
}
