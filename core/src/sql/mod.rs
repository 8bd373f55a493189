//! Statements: read, routed in one `match`, run.
//!
//! | file | its one job |
//! |---|---|
//! | `guard`, `dialect`, `cursor`, `keywords`, `parameters`, `statement`, `create_table`, `alter_table`, `storage_statement` | from text to a [`Statement`](statement::Statement) |
//! | `session`, `execution`, `result` | who asks, what they see, what they get |
//! | `clauses` | what is parsed and has no effect here |
//! | `scope` | what names of columns mean |
//! | `engine`, `names`, `catalog`, `planner` | DataFusion over a snapshot |
//! | `complexity`, `stack` | limits on what a text can grow into, and room for it |
//! | `functions`, `password` | the database's own functions |
//! | `capped`, `concatenation`, `extent` | limits on what functions make |
//! | `aged` | how long a query may hold its snapshot |
//! | `ordering` | which scans keep their order |
//! | `turns` | who goes first among those that lost |
//! | `workarounds` | what DataFusion and the SQL parser get wrong, set right |
//! | `hot` | the two shapes that skip planning |
//! | `handlers` | what each statement does |
//!
//! Invariant: whose rows a statement sees comes from its session alone.

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

/// The one catalog.
pub(crate) const CATALOG: &str = "kalam";
/// The namespace of the tables about tables.
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

/// Runs a write once for each row of parameters, all of it in one commit.
async fn execute_batch(session: &Session, parsed: &Parsed, rows: Vec<Vec<ScalarValue>>) -> Result<Affected> {
    let view = View { names_seq: parsed.names_seq, target: None };
    match &parsed.statement {
        Statement::Insert(statement) => insert::insert(session, statement, view, &rows).await,
        Statement::Update(statement) => update_delete::update(session, statement, view, &rows).await,
        Statement::Delete(statement) => update_delete::delete(session, statement, view, &rows).await,
        _ => Err(Error::invalid("only INSERT, UPDATE and DELETE take several rows of parameters")),
    }
}
