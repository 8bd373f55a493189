//! SQL statements: parse, route in one `match`, run.
//!
//! | file | job |
//! |---|---|
//! | `guard`, `dialect`, `cursor`, `keywords`, `parameters` | tokens: limits, grammar, names, parameters |
//! | `statement`, `create_table`, `alter_table` | from tokens to a [`Statement`](statement::Statement) |
//! | `storage_statement` | the same for storages, FLUSH, COMPACT and BACKUP |
//! | `session`, `execution`, `result` | the user, the view of a statement, its result |
//! | `clauses` | refuses clauses that are parsed but have no effect |
//! | `scope` | resolves column names |
//! | `engine`, `names`, `catalog`, `planner` | DataFusion over a snapshot |
//! | `typing` | types of parameters that are a column's whole value |
//! | `complexity`, `stack` | limits on the size of plans, and stack for deep ones |
//! | `functions` | the database's own functions |
//! | `password` | password hashes |
//! | `capped`, `concatenation`, `extent` | limits on the size of function results |
//! | `aged` | how long a query may hold its snapshot |
//! | `ordering` | which scans keep their sort order |
//! | `turns` | queues statements that retry after a conflict |
//! | `workarounds` | corrects wrong results of DataFusion and of the SQL parser |
//! | `hot` | two statement shapes that skip planning |
//! | `handlers` | what each statement does |
//!
//! Invariant: only its session decides whose rows a statement sees.

mod aged;
mod alter_table;
mod capped;
mod catalog;
mod clauses;
mod complexity;
mod concatenation;
mod create_table;
mod cursor;
mod dialect;
mod engine;
mod execution;
mod extent;
mod functions;
mod guard;
mod handlers;
mod hot;
mod keywords;
mod names;
mod ordering;
mod parameters;
pub(crate) mod password;
mod planner;
mod result;
mod scope;
pub(crate) mod session;
mod stack;
mod statement;
mod storage_statement;
mod turns;
mod typing;
mod workarounds;

use datafusion::common::ScalarValue;

pub(crate) use engine::Engine;
pub use guard::{SplitStatements, split_statements};
pub use result::{Affected, Outcome, Params, ResultSchema, RowStream};
pub use session::{Prepared, Session, StatementKind, TableInfo};
pub use stack::STACK_BYTES;

use self::handlers::{
    admin, insert, namespace, query, show, storage, storages, subscribe, table, update_delete, user,
};
use self::planner::View;
use self::statement::{Parsed, Statement};
use crate::error::{Error, Result};

/// The name of the only catalog.
pub(crate) const CATALOG: &str = "kalam";
/// The namespace of the standard metadata tables.
pub(crate) const INFORMATION_SCHEMA: &str = "information_schema";

/// Runs a statement.
async fn execute(session: &Session, parsed: &Parsed, params: Vec<ScalarValue>) -> Result<Outcome> {
    let view = View { names_seq: parsed.names_seq, target: None };
    match &parsed.statement {
        Statement::Query(query) => query::select(session, query, view, &params).await,
        Statement::Explain(explain) => query::explain(session, explain, view, &params).await,
        Statement::Insert(statement) => {
            insert::insert(session, statement, view, &[params]).await.map(Outcome::Affected)
        }
        Statement::Update(statement) => {
            update_delete::update(session, statement, view, &[params]).await.map(Outcome::Affected)
        }
        Statement::Delete(statement) => {
            update_delete::delete(session, statement, view, &[params]).await.map(Outcome::Affected)
        }
        Statement::CreateNamespace { name, if_not_exists } => {
            namespace::create(session, name, *if_not_exists).await
        }
        Statement::DropNamespace { name, if_exists, cascade } => {
            namespace::drop(session, name, *if_exists, *cascade).await
        }
        Statement::CreateTable(statement) => table::create(session, statement).await,
        Statement::AlterTable(statement) => table::alter(session, statement).await,
        Statement::DropTable { names, if_exists } => table::drop(session, names, *if_exists).await,
        Statement::CreateUser(statement) => user::create(session, statement).await,
        Statement::AlterUser { name, change } => user::alter(session, name, change).await,
        Statement::DropUser { name, if_exists } => user::drop(session, name, *if_exists).await,
        Statement::CreateStorage(statement) => storages::create(session, statement).await,
        Statement::AlterStorage { name, options } => storages::alter(session, name, options).await,
        Statement::DropStorage { name, if_exists } => storages::drop(session, name, *if_exists).await,
        Statement::CheckStorage { name } => storages::check(session, name).await,
        Statement::Use { namespace } => admin::use_namespace(session, namespace),
        Statement::Show(what) => show::show(session, what).await,
        Statement::Describe { table } => show::describe(session, table),
        Statement::KillLiveQuery { id } => admin::kill_live_query(session, id).await,
        Statement::KillJob { id } => storage::kill_job(session, id).await,
        Statement::Move(kind, target) => storage::move_rows(session, *kind, target).await,
        Statement::Backup(url) => storage::back_up(session, url).await,
        Statement::ShowManifest { table } => storage::show_manifest(session, table).await,
        Statement::Subscribe(statement) => subscribe::statement(session, statement, view, params).await,
    }
}

/// Runs a write once per row of parameters, in one commit.
async fn execute_batch(session: &Session, parsed: &Parsed, rows: Vec<Vec<ScalarValue>>) -> Result<Affected> {
    let view = View { names_seq: parsed.names_seq, target: None };
    match &parsed.statement {
        Statement::Insert(statement) => insert::insert(session, statement, view, &rows).await,
        Statement::Update(statement) => update_delete::update(session, statement, view, &rows).await,
        Statement::Delete(statement) => update_delete::delete(session, statement, view, &rows).await,
        _ => Err(Error::invalid("only INSERT, UPDATE and DELETE take several rows of parameters")),
    }
}
