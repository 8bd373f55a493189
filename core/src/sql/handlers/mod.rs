//! What each statement does: plain functions from an [`Execution`] to an [`Effect`], one file per family.
//!
//! Invariant: no handler commits. [`run`](super::run) does.

pub(super) mod admin;
pub(super) mod insert;
pub(super) mod namespace;
mod pieces;
pub(super) mod query;
pub(super) mod rows;
pub(super) mod show;
pub(super) mod storage;
pub(super) mod storages;
pub(super) mod subscribe;
pub(super) mod table;
pub(super) mod target;
pub(super) mod update_delete;
pub(super) mod user;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::ScalarValue;
use datafusion::sql::planner::PlannerContext;
use datafusion::sql::sqlparser::ast;

use super::effect::{Effect, FollowUp};
use super::execution::{Execution, TableVisibility};
use super::plan::description::{Description, StatementKind, announce};
use super::plan::planner::{Planned, plan, plan_live_query, plan_query, query_description};
use super::result::{Affected, Outcome, ResultSchema};
use super::text::statement::{Parsed, Show, Statement};
use crate::app_context::AppContext;
use crate::error::{Error, Result};
use crate::ids::Seq;
use crate::live_query::LiveQueryPlan;
use crate::workload::{SessionEnd, StopReason};

/// Returns the effect of a statement. Only INSERT, UPDATE and DELETE take several rows of parameters.
pub(super) async fn effect(
    execution: &Execution,
    parsed: &Parsed,
    params: &[Vec<ScalarValue>],
) -> Result<Effect> {
    let visibility = TableVisibility { names_seq: parsed.names_seq, target: None };
    let one_row = || match params {
        [params] => Ok(params.as_slice()),
        _ => Err(Error::internal("a statement other than a write has several rows of parameters")),
    };
    match &parsed.statement {
        Statement::Query(statement) => query::select(execution, statement, visibility, one_row()?).await,
        Statement::Explain(statement) => query::explain(execution, statement, visibility, one_row()?).await,
        Statement::Insert(statement) => insert::insert(execution, statement, visibility, params).await,
        Statement::Update(statement) => update_delete::update(execution, statement, visibility, params).await,
        Statement::Delete(statement) => update_delete::delete(execution, statement, visibility, params).await,
        Statement::CreateNamespace { name, if_not_exists } => {
            namespace::create(execution, name, *if_not_exists)
        }
        Statement::DropNamespace { name, if_exists, cascade } => {
            namespace::drop(execution, name, *if_exists, *cascade)
        }
        Statement::CreateTable(statement) => table::create(execution, statement),
        Statement::AlterTable(statement) => table::alter(execution, statement),
        Statement::DropTable { names, if_exists } => table::drop(execution, names, *if_exists),
        Statement::CreateUser(statement) => user::create(execution, statement),
        Statement::AlterUser { name, change } => user::alter(execution, name, change),
        Statement::DropUser { name, if_exists } => user::drop(execution, name, *if_exists),
        Statement::CreateStorage(statement) => storages::create(execution, statement),
        Statement::AlterStorage { name, options } => storages::alter(execution, name, options),
        Statement::DropStorage { name, if_exists } => storages::drop(execution, name, *if_exists),
        Statement::CheckStorage { name } => storages::check(execution, name).await,
        Statement::Use { namespace } => admin::use_namespace(execution, namespace),
        Statement::Set(value) => Ok(admin::set(execution, value)),
        Statement::ResetAll => Ok(admin::reset_all(execution)),
        Statement::Show(what) => show::show(execution, what).await,
        Statement::Describe { table } => show::describe(execution, table),
        Statement::KillQuery { id } => admin::kill_query(execution, id),
        Statement::KillSession { id } => admin::kill_session(execution, id),
        Statement::KillLiveQuery { id } => admin::kill_live_query(execution, id),
        Statement::KillJob { id } => storage::kill_job(execution, id),
        Statement::Maintain(kind, target) => storage::maintain(execution, *kind, target),
        Statement::Backup(url) => storage::back_up(execution, url),
        Statement::ShowManifest { table } => storage::show_manifest(execution, table).await,
        Statement::Subscribe(statement) => subscribe::statement(execution, statement, visibility, one_row()?),
    }
}

/// Whether a statement plans nothing and does little, so that it needs no thread of the engine. Among them
/// are the statements that show and end others: they must run when all threads are busy.
pub(super) fn is_quick(statement: &Statement) -> bool {
    match statement {
        Statement::Use { .. }
        | Statement::Set(_)
        | Statement::ResetAll
        | Statement::KillQuery { .. }
        | Statement::KillSession { .. }
        | Statement::KillLiveQuery { .. }
        | Statement::KillJob { .. } => true,
        Statement::Show(show) => {
            matches!(show, Show::Queries | Show::Sessions | Show::SearchPath | Show::Setting(_))
        }
        _ => false,
    }
}

/// Returns the parameters and the result schema of a statement, without running it. The schema of a query is
/// that for the values of its parameters, if there are any.
pub(super) fn describe(
    execution: &Execution,
    parsed: &Parsed,
    values: Option<&[ScalarValue]>,
) -> Result<Description> {
    let visibility = TableVisibility { names_seq: parsed.names_seq, target: None };
    let count = parsed.parameters.count;
    let fixed = |schema: SchemaRef| Description::of_rows(ResultSchema { schema, ipc: None });
    let write =
        |planned: Planned| planned.resolve(count).map(|(types, _)| Description::of_write(parsed, &types));
    match &parsed.statement {
        Statement::Query(statement) => {
            query_description(execution, parsed, plan_query(execution, statement, visibility)?, values)
        }
        Statement::Explain(statement) => {
            let statement = ast::Statement::clone(statement);
            let planned = plan(execution, statement, visibility, &mut PlannerContext::new())?;
            query_description(execution, parsed, planned, values)
        }
        Statement::Insert(statement) => write(insert::plan(execution, statement, visibility)?.1),
        Statement::Update(statement) => {
            write(update_delete::plan_update(execution, statement, visibility)?.1)
        }
        Statement::Delete(statement) => {
            write(update_delete::plan_delete(execution, statement, visibility)?.1)
        }
        Statement::Subscribe(statement) => {
            let planned = plan_live_query(execution, &statement.query, visibility)?;
            let (types, analysed) = planned.resolve(count)?;
            let schema = LiveQueryPlan::describe(&analysed, &planned.planning())?;
            let parameters = announce(parsed, &types);
            let rows = fixed(schema);
            Ok(Description { kind: StatementKind::Subscribe, parameters, ..rows })
        }
        Statement::Show(what) => Ok(Description::of_rows(show::schema(execution, what)?)),
        Statement::Describe { .. } => Ok(fixed(show::describe_schema())),
        Statement::Maintain(..) => Ok(fixed(storage::jobs_schema())),
        Statement::CheckStorage { .. } => Ok(fixed(storages::check_schema())),
        Statement::Backup(_) => Ok(fixed(storage::backup_schema())),
        Statement::ShowManifest { .. } => Ok(fixed(storage::manifest_schema())),
        Statement::CreateNamespace { .. }
        | Statement::DropNamespace { .. }
        | Statement::CreateTable(_)
        | Statement::AlterTable(_)
        | Statement::DropTable { .. }
        | Statement::CreateUser(_)
        | Statement::AlterUser { .. }
        | Statement::DropUser { .. }
        | Statement::CreateStorage(_)
        | Statement::AlterStorage { .. }
        | Statement::DropStorage { .. }
        | Statement::Use { .. }
        | Statement::Set(_)
        | Statement::ResetAll
        | Statement::KillQuery { .. }
        | Statement::KillSession { .. }
        | Statement::KillLiveQuery { .. }
        | Statement::KillJob { .. } => Ok(Description::of_change()),
    }
}

/// Does what follows a commit, and returns the result of its statement.
pub(super) async fn follow_up(ctx: &AppContext, follow_up: FollowUp, seq: Seq) -> Result<Outcome> {
    match follow_up {
        FollowUp::KillLiveQuery(id) => ctx.live_queries.kill(id)?,
        FollowUp::KillQuery(id) => {
            // It may have ended by itself meanwhile.
            if let Some(control) = ctx.statements.get(id) {
                control.stop(StopReason::QueryKilled);
            }
        }
        FollowUp::KillSession(id) => {
            if let Some(session) = ctx.sessions.get(id) {
                ctx.end_session(&session, SessionEnd::Killed);
            }
        }
        FollowUp::CancelJob(id) => ctx.jobs.cancel(&id)?,
        FollowUp::Maintain(kind, tables) => {
            return storage::start_maintenance(ctx, kind, &tables).await.map(Outcome::Rows);
        }
        FollowUp::BackUp(url) => return storage::start_backup(ctx, url, seq).await.map(Outcome::Rows),
    }
    Ok(Outcome::Affected(Affected { rows: 0, seq }))
}
