//! Live queries: a SELECT from one table whose result the client keeps current, commit by commit.
//!
//! One [`LiveQueryManager`] owns all subscriptions. Its matcher task follows the commits, evaluates each
//! distinct query once over the changes of a commit, and puts the encoded frames into the query's bounded
//! ring. A subscriber is a cursor. It reads the ring; the change log, if the ring no longer reaches back to
//! the cursor; and a fresh snapshot, announced by a RESET, if the log does not either. Nothing waits for a
//! slow subscriber, and nothing is queued for it. What was made for it but is not sent yet can be dropped and
//! made again at any time.
//!
//! It plans no SQL (the statement layer hands over a [`LiveQueryPlan`]) and speaks no wire protocol.
//!
//! Invariant: a subscriber's frames fold to the query's result at every `complete_through`; see `frame`.

mod canonical;
mod catch_up;
mod cursor;
mod driver;
mod evaluator;
mod frame;
mod frame_maker;
mod group;
mod held;
mod images;
mod manager;
mod matcher;
mod plan;
mod registry;
mod scan;
mod start;
mod stop;
mod subscription;
mod token;
mod turns;

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

/// The request for a live query.
#[derive(Clone, Debug)]
pub struct SubscribeRequest {
    /// `SELECT expressions FROM one_table [WHERE condition]`.
    pub sql: String,
    /// The values of its parameters.
    pub params: Vec<ScalarValue>,
    /// Whether existing rows are delivered first.
    pub snapshot: SnapshotMode,
    /// Where the delivery of changes starts.
    pub start: SubscribeStart,
    /// Ends the stream once everything up to this seq is delivered.
    pub up_to_seq: Option<Seq>,
    /// The most rows of one frame; 0 means [`SubscribeRequest::MAX_ROWS`].
    pub max_rows: usize,
    /// The most encoded bytes of a frame with several rows; 0 means [`SubscribeRequest::MAX_BYTES`].
    pub max_bytes: usize,
    /// The interval of `Progress` frames when nothing changes; 0 sends one after every group of commits.
    pub heartbeat: Duration,
    /// A name chosen by the client, shown in `system.live_queries`.
    pub label: String,
}

impl SubscribeRequest {
    /// The default of `max_rows`.
    pub const MAX_ROWS: usize = 8_192;
    /// The default of `max_bytes`: well below gRPC's usual message limit of 4 MiB.
    pub const MAX_BYTES: usize = 1 << 20;
    /// The largest `max_bytes`.
    pub const MAX_BYTES_LIMIT: usize = 3 << 20;
    /// The default of `heartbeat`.
    pub const HEARTBEAT: Duration = Duration::from_secs(5);
    /// The longest `label`, in bytes; longer ones are cut.
    pub const LABEL_BYTES_MAX: usize = 256;

    /// Returns a request for a snapshot and all later changes, with the default limits.
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

/// Whether existing rows are delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SnapshotMode {
    /// Existing rows, then every change.
    #[default]
    Include,
    /// Changes only.
    Skip,
    /// Existing rows, then the end of the stream.
    Only,
}

/// Where the delivery of changes starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SubscribeStart {
    /// From the newest snapshot.
    #[default]
    Now,
    /// After the position of a token that this database issued for the same query.
    Token(Bytes),
    /// After this seq. The client guarantees that it holds the query's result at it.
    AfterSeq(Seq),
}
