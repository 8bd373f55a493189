//! Live queries: a SELECT of one table whose result is kept up to date at the client, commit by commit.
//!
//! One [`LiveQueryManager`] owns all subscriptions. Its matcher task follows the commits, evaluates each distinct query once
//! over what a commit changed, and puts the encoded frames into the query's bounded ring. A subscriber is a cursor: it pulls
//! from the ring, from the change log when the ring no longer has its place, and from a fresh snapshot, announced by a RESET,
//! when the log does not have it either. Nobody waits for a slow subscriber and nothing is queued for it.
//!
//! What it is not: it plans no SQL (the statement layer hands over a [`LiveQueryPlan`]) and speaks no wire protocol.
//!
//! Invariant: a subscriber's frames fold to the query's result at every `complete_through`; see [`frame`].

mod canonical;
mod catch_up;
mod evaluator;
mod frame;
mod group;
mod manager;
mod matcher;
mod plan;
mod registry;
mod subscription;
mod token;

use std::time::Duration;

use bytes::Bytes;
use datafusion::common::ScalarValue;

pub use self::frame::{
    CloseReason, EncodedBatch, Frame, FrameBody, OP_DELETE, OP_INSERT, OP_UPDATE, ResetReason,
};
pub use self::manager::{LiveCounters, LiveQueryInfo, LiveQueryManager, LiveQueryParts};
pub use self::plan::LiveQueryPlan;
pub(crate) use self::plan::{Planning, refuse_subqueries};
pub use self::subscription::Subscription;
pub use self::token::{token_from_text, token_to_text};
use crate::ids::Seq;

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct SubscribeRequest {
    /// `SELECT expressions FROM one_table [WHERE condition]`.
    pub sql: String,
    /// Values of its parameters.
    pub params: Vec<ScalarValue>,
    /// Whether rows that exist already are delivered first.
    pub snapshot: SnapshotMode,
    /// From where on changes are delivered.
    pub start: SubscribeStart,
    /// Ends the stream once everything up to this seq is delivered.
    pub up_to_seq: Option<Seq>,
    /// The most rows of one frame; 0 is [`SubscribeRequest::MAX_ROWS`].
    pub max_rows: usize,
    /// The most encoded bytes of one frame with more than one row; 0 is [`SubscribeRequest::MAX_BYTES`].
    pub max_bytes: usize,
    /// How often a stream without changes sends `Progress`; 0 sends it after every group of commits.
    pub heartbeat: Duration,
    /// A name of the client's own, shown in `system.live_queries`.
    pub label: String,
}

impl SubscribeRequest {
    /// The default of `max_rows`.
    pub const MAX_ROWS: usize = 8_192;
    /// The default of `max_bytes`: well below gRPC's usual limit of 4 MiB a message.
    pub const MAX_BYTES: usize = 1 << 20;
    /// The largest `max_bytes`.
    pub const MAX_BYTES_LIMIT: usize = 3 << 20;
    /// The default of `heartbeat`.
    pub const HEARTBEAT: Duration = Duration::from_secs(5);
    /// The longest `label`, in bytes; longer ones are cut.
    pub const LABEL_BYTES_MAX: usize = 256;

    /// A request with a snapshot from now on and the default limits.
    pub fn new(sql: impl Into<String>) -> Self {
        Self {
            sql: sql.into(),
            params: Vec::new(),
            snapshot: SnapshotMode::Include,
            start: SubscribeStart::Now,
            up_to_seq: None,
            max_rows: 0,
            max_bytes: 0,
            heartbeat: Self::HEARTBEAT,
            label: String::new(),
        }
    }
}

/// Whether rows that exist already are delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SnapshotMode {
    /// The rows that exist, then every change.
    #[default]
    Include,
    /// Changes only.
    Skip,
    /// The rows that exist, then the stream ends.
    Only,
}

/// From where on changes are delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SubscribeStart {
    /// From the newest snapshot.
    #[default]
    Now,
    /// After the position of a token this database gave out for the same query.
    Token(Bytes),
    /// After this seq; the client vouches that it holds the query's result at it.
    AfterSeq(Seq),
}
