//! One statement's view of the database: a snapshot, the principal, and the namespace of unqualified names;
//! and the settings of its session.
//!
//! Invariant: a statement reads one snapshot and no other. Only this module resolves tables, and checks the
//! rights to read and write them.

use std::sync::Arc;
use std::time::Duration;

use super::engine::Engine;
use super::settings::{SetValue, Setting, TimeSetting, TimeSources, show_time, time_of_user};
use super::text::cursor::QualifiedName;
use crate::access::Principal;
use crate::app_context::AppContext;
use crate::commit::{Snapshot, WriteSet};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::ids::TableId;
use crate::schema_registry::{
    NAMESPACE_PUBLIC, ScopeKind, TableDefinition, TableKind, TableSchemas, UserRecord,
};
use crate::workload::{Call, SessionInfo, Settings, StatementControl, StatementParts, StopReason, millis};

/// How tables appear to a statement.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TableVisibility {
    /// Tables have the column `_seq`, for a statement that names it.
    pub(crate) names_seq: bool,
    /// The table that an UPDATE or DELETE changes; it has the columns a write needs.
    pub(crate) target: Option<TableId>,
}

/// What a session gives to its statements.
pub(crate) struct Origin<'a> {
    pub(crate) ctx: &'a Arc<AppContext>,
    pub(crate) engine: &'a Arc<Engine>,
    pub(crate) session: &'a Arc<SessionInfo>,
    /// The user, as of the login.
    pub(crate) principal: &'a Principal,
    /// In place of the namespace that the session has set.
    pub(crate) namespace: Option<&'a Arc<str>>,
    /// The call of the client.
    pub(crate) call: Option<&'a Call>,
}

impl Origin<'_> {
    /// Returns the namespace of unqualified table names.
    pub(crate) fn namespace(&self) -> Arc<str> {
        match self.namespace {
            Some(namespace) => Arc::clone(namespace),
            None => Arc::clone(&self.session.settings().read().namespace),
        }
    }
}

/// The context of a statement.
#[derive(Clone)]
pub(crate) struct Execution {
    ctx: Arc<AppContext>,
    pub(crate) engine: Arc<Engine>,
    /// Stops the statement, in all its attempts.
    pub(crate) control: Arc<StatementControl>,
    pub(crate) snapshot: Arc<Snapshot>,
    /// The user, with the role in the snapshot.
    pub(crate) principal: Principal,
    pub(crate) namespace: Arc<str>,
    /// Microseconds since 1970: the value of `NOW()`, and the time that decides which rows have expired.
    pub(crate) now_us: i64,
    /// The hash of the password that the statement sets, once it is computed.
    pub(crate) password_hash: Option<String>,
}

impl Execution {
    /// Begins a statement: lists it, and returns its view of the database, as of now. `text` is `None` for
    /// one that may contain a password.
    ///
    /// # Errors
    /// 28000 when the user no longer exists, or has another password or role since just now; 57P01, 57P05 or
    /// 08000 when the session has ended; 57014 when the call was ended.
    pub(crate) fn begin(origin: &Origin<'_>, kind: &'static str, text: Option<Arc<str>>) -> Result<Self> {
        let Origin { ctx, session, call, .. } = *origin;
        let snapshot = ctx.committer.snapshot();
        let principal = current(origin.principal, &snapshot)?;
        let user = snapshot.catalog.user(principal.user_id);
        let timeout = statement_timeout(origin, user.map(|user| &**user));
        let parts = StatementParts {
            session,
            principal: &principal,
            auth_generation: user.map(|user| user.auth_generation),
            kind,
            text,
            timeout,
            memory: ctx.memory.statement(principal.user_id),
        };
        let control = ctx.statements.begin(parts, call)?;
        let execution = Self::resume(origin, control)?;
        // Who follows the changes of users sees a statement that is listed. This one changed before.
        let generation = execution.snapshot.catalog.user(principal.user_id).map(|user| user.auth_generation);
        if generation != execution.control.auth_generation() {
            return Err(StopReason::LoggedOut.error());
        }
        Ok(execution)
    }

    /// Returns the view of the database of work that is no statement, as of now.
    ///
    /// # Errors
    /// 28000 when the user no longer exists.
    pub(crate) fn view(origin: &Origin<'_>) -> Result<Self> {
        let Origin { ctx, session, principal, .. } = *origin;
        let control = ctx.statements.unlisted(StatementParts {
            session,
            principal,
            auth_generation: None,
            kind: "",
            text: None,
            timeout: None,
            memory: ctx.memory.statement(principal.user_id),
        });
        Self::resume(origin, control)
    }

    /// Returns the view of the database of a statement that has begun, as of now.
    ///
    /// # Errors
    /// 28000 when the user no longer exists.
    pub(crate) fn resume(origin: &Origin<'_>, control: Arc<StatementControl>) -> Result<Self> {
        let Origin { ctx, engine, .. } = *origin;
        let snapshot = ctx.committer.snapshot();
        let principal = current(origin.principal, &snapshot)?;
        let namespace = origin.namespace();
        let (ctx, engine, now_us) = (Arc::clone(ctx), Arc::clone(engine), ctx.clock.now_us());
        Ok(Self { ctx, engine, control, snapshot, principal, namespace, now_us, password_hash: None })
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
        self.session().settings().write().namespace = name;
        Ok(())
    }

    /// Returns the session.
    pub(crate) fn session(&self) -> &Arc<SessionInfo> {
        self.control.session()
    }

    /// Changes a setting of the session.
    pub(crate) fn set(&self, value: &SetValue) {
        let session = self.session();
        let mut settings = session.settings().write();
        match value {
            SetValue::Time(TimeSetting::Statement, ms) => settings.statement_timeout_ms = *ms,
            SetValue::Time(TimeSetting::IdleSession, ms) => settings.idle_session_timeout_ms = *ms,
            SetValue::ApplicationName(name) => {
                settings.application_name = match name {
                    Some(name) => Arc::from(name.as_str()),
                    None => Arc::clone(session.application()),
                };
            }
        }
    }

    /// Gives all settings of the session their defaults.
    pub(crate) fn reset_all(&self) {
        let session = self.session();
        *session.settings().write() = Settings {
            namespace: Arc::from(NAMESPACE_PUBLIC),
            statement_timeout_ms: None,
            idle_session_timeout_ms: None,
            application_name: Arc::clone(session.application()),
        };
    }

    /// Returns the value of a setting that counts for the session, as text.
    pub(crate) fn setting(&self, setting: Setting) -> String {
        match setting {
            Setting::Time(setting) => show_time(session_time_ms(setting, &self.ctx, self.session())),
            Setting::ApplicationName => self.session().settings().read().application_name.to_string(),
        }
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

    /// Returns the namespaces, ordered by name. All users may see them: everybody reads some system tables.
    pub(crate) fn readable_namespaces(&self) -> Vec<Arc<str>> {
        let namespaces = self.snapshot.catalog.namespaces();
        let mut names: Vec<Arc<str>> = namespaces.map(|namespace| Arc::clone(&namespace.name)).collect();
        names.push(Arc::from(super::INFORMATION_SCHEMA));
        names.sort();
        names
    }

    /// Returns an empty write set, planned on this snapshot.
    pub(crate) fn write_set(&self) -> WriteSet {
        WriteSet::new(self.principal.user_id, self.snapshot.seq)
    }
}

/// Returns how long a statement of a user may take.
fn statement_timeout(origin: &Origin<'_>, user: Option<&UserRecord>) -> Option<Duration> {
    let of_call = origin.call.and_then(Call::timeout);
    let of_call = of_call.map(millis);
    let sources = time_sources(TimeSetting::Statement, &origin.ctx.config, origin.session, user);
    let ms = TimeSources { of_call, ..sources }.effective_ms();
    (ms > 0).then(|| Duration::from_millis(ms))
}

/// Returns the time that counts for a session, in milliseconds; 0 sets no limit.
pub(crate) fn session_time_ms(setting: TimeSetting, ctx: &AppContext, session: &SessionInfo) -> u64 {
    let snapshot = ctx.committer.snapshot();
    let user = snapshot.catalog.user(session.user()).map(|user| &**user);
    time_sources(setting, &ctx.config, session, user).effective_ms()
}

fn time_sources(
    setting: TimeSetting,
    config: &Config,
    session: &SessionInfo,
    user: Option<&UserRecord>,
) -> TimeSources {
    let settings = session.settings().read();
    let (of_session, default) = match setting {
        TimeSetting::Statement => (settings.statement_timeout_ms, config.statement_timeout_ms),
        TimeSetting::IdleSession => (settings.idle_session_timeout_ms, config.idle_session_timeout_ms),
    };
    TimeSources {
        of_call: None,
        of_session,
        of_user: user.and_then(|user| time_of_user(&user.settings, setting)),
        default,
        may_exceed: user.is_some_and(|user| user.principal().may_administer()),
    }
}

/// Returns the principal with its role in a snapshot.
fn current(principal: &Principal, snapshot: &Snapshot) -> Result<Principal> {
    match snapshot.catalog.user(principal.user_id) {
        Some(user) => Ok(Principal { role: user.role, ..principal.clone() }),
        None => Err(Error::user_not_found(&principal.username)),
    }
}
