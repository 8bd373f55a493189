//! SQL statements: parse, plan, ask a handler for the effect, commit it.
//!
//! An entry uses only entries above it in this list:
//!
//! | entry | job |
//! |---|---|
//! | `limits` | limits on the size of plans, and the stack for deep statements |
//! | `syntax_tree` | names, expressions and queries as syntax trees |
//! | `functions` | the database's own functions, and what each function can cost |
//! | `guests` | DataFusion's plans as guests: they pause, and stop when told |
//! | `workarounds` | corrects wrong results of DataFusion and of the SQL parser |
//! | `pump` | runs a query on the engine, beside its reader |
//! | `result` | parameters in, rows or a count out |
//! | `settings` | what SET changes, and the value that counts |
//! | `text` | from text to a parsed statement |
//! | `password`, `retry_queue` | password hashes; turns for statements that retry after a conflict |
//! | `engine` | DataFusion as this database configures it |
//! | `execution` | one statement's snapshot, principal and time |
//! | `effect` | what a statement wants |
//! | `plan` | from a parsed statement to a plan |
//! | `handlers` | the effect of each statement |
//! | `hot` | two statement shapes that skip planning |
//! | `kept` | the parsed statements that a session keeps |
//! | `run` | the one place that commits what a statement wants |
//! | `session` | the user, and the embedding API of statements |
//!
//! Invariant: only its session decides whose rows a statement sees.

mod effect;
mod engine;
mod execution;
mod functions;
mod guests;
mod handlers;
mod hot;
mod kept;
mod limits;
pub(crate) mod password;
mod plan;
mod pump;
mod result;
mod retry_queue;
mod run;
mod session;
mod settings;
mod syntax_tree;
mod text;
mod workarounds;

pub(crate) use engine::Engine;
pub use plan::description::StatementKind;
pub use result::{Affected, Outcome, Params, ResultSchema, RowStream};
pub use session::{Appending, Prepared, Session, TableInfo};
pub use settings::parse_time;
pub use text::guard::{SplitStatements, split_statements};

/// The name of the only catalog.
pub(crate) const CATALOG: &str = "kalam";
/// The namespace of the standard metadata tables.
pub(crate) const INFORMATION_SCHEMA: &str = "information_schema";
