//! KalamDB's embeddable core: a realtime SQL database whose native format is Arrow.
//!
//! # Modules
//! A module uses only modules above it in this list; `tests/it/tidy.rs` enforces it.
//!
//! | module | its one job |
//! |---|---|
//! | [`ids`], [`error`], [`config`], [`clock`], [`access`], `casts`, `types` | the basic types |
//! | [`failpoint`] | named points at which tests end the process or make a step fail |
//! | `platform` | what depends on the operating system |
//! | `storage` | ordered bytes on disk: the trait, RocksDB, the frozen key and row encodings |
//! | `workload` | statements as guests: their threads, turns, memory, spilled rows, and how one is stopped |
//! | `cold_storage` | Parquet segments: the manifest, writing, lookups by key |
//! | `schema_registry` | tables, users and namespaces (the catalog) and their memoized Arrow schemas |
//! | `change_log` | what each commit changed: pure redo, and the source of every live query |
//! | `hot_tier` | hot rows cached as columns; scans fill the cache |
//! | `commit` | the single commit order: sequencer, group commit, installed snapshots, recovery |
//! | `tables` | DataFusion table providers, scans, point reads, row validation |
//! | `segments` | the files of flushes, compactions and large INSERTs |
//! | `maintenance` | backups, restoring them, checking a closed database |
//! | `live_query` | subscriptions: snapshot, matching, delivery, resume |
//! | `jobs` | background work: expiry of STREAM rows, flushes, compactions, trimming, backups |
//! | `system_tables` | the rows of the ten tables of namespace `system` |
//! | `app_context` | the parts that live as long as the database is open, built once, in order |
//! | `sql` | statements: parse, route in one `match`, execute |
//! | `database` | the embedding API on top |
//!
//! # Entry points
//! Each has an example: [`Database::open`], [`Database::open_in_memory`], [`Database::authenticate`],
//! [`Session::execute`], [`Session::prepare`], [`Session::subscribe`], [`Session::append`],
//! [`Prepared::execute_batch`], [`RowStream`], [`jobs::JobManager::wait`], [`maintenance::restore()`],
//! [`maintenance::check()`], [`split_statements`].
//!
//! # Terms
//! *commit*: one atomic change of the database, with one `seq`. *snapshot*: the database as of one seq.
//! *scope*: the owner of rows (one user, or shared). *segment*: one immutable cold file.
//! *subscription*: one client's running live query. *frontier*: the seq up to which a subscriber has seen
//! every change.

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

pub mod workload;

pub mod cold_storage;

pub mod schema_registry;

pub mod change_log;

pub mod hot_tier;

pub mod commit;

pub mod tables;

pub mod segments;

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
pub use ids::{DatabaseId, NodeId, Seq, SessionId, SubscriptionId, UserId};
pub use live_query::{
    CloseReason, EncodedBatch, Frame, FrameBody, ResetReason, SnapshotMode, SubscribeRequest, SubscribeStart,
    Subscription,
};
pub use sql::{
    Affected, Appending, Outcome, Params, Prepared, ResultSchema, RowStream, Session, SplitStatements,
    StatementKind, TableInfo, parse_time, split_statements,
};
pub use workload::{Call, STACK_BYTES, SessionKind, SessionOrigin, StopReason};
