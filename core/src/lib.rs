//! KalamDB's embeddable core: a realtime SQL database whose native format is Arrow.
//!
//! # Map
//! A module names only what stands above it in this list; `tests/it/tidy.rs` enforces it.
//!
//! | module | its one job |
//! |---|---|
//! | [`ids`], [`error`], [`config`], [`clock`], [`access`], `casts`, `types` | the words everything else is written in |
//! | [`failpoint`] | named places at which tests end the process or have a step fail |
//! | `platform` | what depends on the operating system |
//! | `storage` | ordered bytes on disk: the trait, RocksDB, and the frozen key and row encodings |
//! | `cold_storage` | Parquet segments: which there are, writing them, finding rows in them |
//! | `schema_registry` | tables, users and namespaces (the catalog) and their memoized Arrow schemas |
//! | `change_log` | what each commit changed: pure redo, and the source of every subscriber |
//! | `hot_tier` | hot rows as columns in memory, filled by scans |
//! | `commit` | the one commit order: sequencer, group commit, installed snapshots, recovery |
//! | `tables` | DataFusion table providers over one base, point reads, row validation |
//! | `maintenance` | backups, restoring them, checking a closed database |
//! | `live_query` | subscriptions: snapshot, matching, delivery, resume |
//! | `jobs` | background work: expiry of STREAM rows, flushes, trimming of the change log, backups |
//! | `system_tables` | the rows of the eight tables of namespace `system` |
//! | `app_context` | everything that lives as long as the process, built once and in order |
//! | `sql` | statements: parse, route in one `match`, execute |
//! | `database` | the embedding API on top |
//!
//! # Words
//! *commit*: one atomic change of the database, with one `seq`. *snapshot*: the database as of one seq. *scope*: whose rows
//! (one user's, or shared). *segment*: one immutable cold file. *subscription*: one running live query of one client.
//! *frontier*: the seq up to which a subscriber has seen everything.

pub mod access;
pub mod clock;
pub mod config;
pub mod error;
pub mod failpoint;
pub mod ids;

mod casts;

pub mod types;

mod platform;

pub mod storage;

pub mod cold_storage;

pub mod schema_registry;

pub mod change_log;

pub mod hot_tier;

pub mod commit;

pub mod tables;

pub mod maintenance;

pub mod live_query;

pub mod jobs;

pub mod system_tables;

pub mod app_context;

pub mod sql;

pub mod database;

pub use access::{AccessLevel, Principal, Role};
pub use config::{Config, PlannerOverrides};
pub use database::Database;
pub use datafusion::common::ScalarValue;
pub use error::{Error, ErrorKind, Result, SqlState};
pub use ids::{DatabaseId, NodeId, Seq, SubscriptionId, UserId};
pub use live_query::{
    CloseReason, EncodedBatch, Frame, FrameBody, ResetReason, SnapshotMode, SubscribeRequest, SubscribeStart,
    Subscription,
};
pub use sql::{
    Affected, Outcome, Params, Prepared, ResultSchema, RowStream, STACK_BYTES, Session, SplitStatements,
    StatementKind, TableInfo, split_statements,
};
