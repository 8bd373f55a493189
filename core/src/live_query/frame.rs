//! The messages a subscriber receives. A frame has one body, and says how far the subscriber is complete.
//!
//! Invariants: after a frame with `more == false` that moved `complete_through` to `s`, all frames so far
//! fold to the query's result at commit `s`. `complete_through` never goes back, and moves only with the last
//! frame of a commit.
//!
//! How to fold. `Snapshot` and `Delta` batches have the columns `_op` (UInt8, not null), `_seq` (Int64, not
//! null: the commit that wrote or removed the row) and then the query's columns. If `Started::key_columns` is
//! not empty, the rows are a map by these columns: 1 adds, 3 replaces, 2 removes. If it is empty, the rows
//! are a multiset over the query's columns: 1 adds a row, 2 removes one equal row, 3 does not occur. A
//! `Reset` discards everything folded so far.

use std::collections::HashMap;

use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::buffer::Buffer;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::ipc::reader::read_record_batch;
use datafusion::arrow::ipc::root_as_message;
use datafusion::arrow::ipc::writer::{
    DictionaryTracker, EncodedData, IpcDataGenerator, IpcWriteContext, IpcWriteOptions, write_message,
};

use crate::error::{Error, Result};
use crate::ids::{Seq, SubscriptionId};

/// The row appeared: it was written, or began to match.
pub const OP_INSERT: u8 = 1;
/// The row disappeared: it was deleted, or stopped matching. It carries its old values.
pub const OP_DELETE: u8 = 2;
/// The row with this key has new values.
pub const OP_UPDATE: u8 = 3;

/// One message to a subscriber. All subscribers of a query share its `Delta` and `Progress` frames.
#[derive(Debug)]
pub struct Frame {
    /// Every commit up to this one is fully delivered. In a fragment it is the commit before the fragment's
    /// own. Before the first snapshot is complete it is 0.
    pub complete_through: Seq,
    /// Where to resume. Present only if the client, having folded every frame, then has a complete state.
    pub resume_token: Option<Bytes>,
    /// The client does not have a complete state: more of the same snapshot or commit follows, or it would
    /// have followed if the stream did not end or start over.
    pub more: bool,
    /// When the frame was created, microseconds UTC.
    pub server_time_us: i64,
    /// The content.
    pub body: FrameBody,
}

/// The kinds of frames, in stream order: `Started`, then `Reset`? `Snapshot`* `SnapshotEnd`, then `Delta`,
/// `Progress`, `Notice` and `Reset` with another snapshot in any order, and at the end `Closed`.
#[derive(Debug)]
pub enum FrameBody {
    /// The first frame.
    Started {
        /// The number `KILL LIVE QUERY` takes.
        subscription: SubscriptionId,
        /// `_op`, `_seq` and the query's columns.
        schema: SchemaRef,
        /// `schema` as an encapsulated IPC message.
        schema_ipc: Bytes,
        /// The result columns that identify a row; empty if the result is a multiset.
        key_columns: Vec<String>,
        /// Where deltas begin: the snapshot's seq, or the resumed position.
        snapshot_seq: Seq,
        /// Whether the stream continues after the requested position, without a snapshot.
        resumed: bool,
    },
    /// Rows of the snapshot, all with `_op` 1.
    Snapshot(EncodedBatch),
    /// The snapshot is complete.
    SnapshotEnd,
    /// Rows that changed, in commit order.
    Delta(EncodedBatch),
    /// Nothing relevant changed up to `complete_through`.
    Progress,
    /// Everything delivered so far is void. A fresh snapshot follows in this stream.
    Reset {
        /// The reason.
        reason: ResetReason,
        /// The seq of the fresh snapshot.
        snapshot_seq: Seq,
    },
    /// A message for people.
    Notice(String),
    /// The last frame.
    Closed {
        /// The reason.
        reason: CloseReason,
        /// The reason, as text for people.
        message: String,
        /// Whether subscribing again, with the last token, can succeed.
        retryable: bool,
    },
}

/// Why a stream starts over with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResetReason {
    /// The change log no longer reaches back to the token.
    Retention,
    /// The subscriber read so slowly that the change log was trimmed beyond its position.
    Lag,
    /// The table was changed, or dropped and created again, since the token.
    Schema,
    /// What the principal may see has changed since the token.
    Security,
    /// The token belongs to another database, or to commits lost in a crash.
    Server,
}

impl ResetReason {
    /// Returns the reason's name in system tables, logs and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Lag => "lag",
            Self::Schema => "schema",
            Self::Security => "security",
            Self::Server => "server",
        }
    }
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// `snapshot = only`, or `up_to_seq` was reached.
    Completed,
    /// `KILL LIVE QUERY`, or the end of the session.
    Killed,
    /// The table was dropped.
    TableDropped,
    /// The table's columns changed.
    SchemaChanged,
    /// The user was dropped.
    UserDropped,
    /// The user's role or password changed, or the table's access level.
    AccessChanged,
    /// The query's expressions failed on a row, e.g. divided by zero, or the table is damaged.
    Failed,
    /// The server is shutting down.
    Shutdown,
}

impl CloseReason {
    /// Returns the reason's name in logs and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Killed => "killed",
            Self::TableDropped => "table_dropped",
            Self::SchemaChanged => "schema_changed",
            Self::UserDropped => "user_dropped",
            Self::AccessChanged => "access_changed",
            Self::Failed => "failed",
            Self::Shutdown => "shutdown",
        }
    }

    /// Whether subscribing again can succeed.
    pub fn retryable(self) -> bool {
        match self {
            Self::SchemaChanged | Self::AccessChanged | Self::Shutdown => true,
            Self::Completed | Self::Killed | Self::TableDropped | Self::UserDropped | Self::Failed => false,
        }
    }
}

/// Rows as IPC bytes, which all subscribers of a query share.
#[derive(Clone, Debug)]
pub struct EncodedBatch {
    /// One encapsulated IPC RecordBatch message without dictionaries:
    /// `0xFFFFFFFF | header length i32 LE | header, padded to 8 | body`.
    pub ipc: Bytes,
    /// The number of rows.
    pub rows: usize,
    /// The columns of the rows.
    pub schema: SchemaRef,
}

/// Marker and length before the header of an encapsulated message.
const PREFIX_BYTES: usize = 8;

impl EncodedBatch {
    /// Encodes `batch`, which must not have dictionary columns.
    pub(crate) fn encode(batch: &RecordBatch) -> Result<Self> {
        let options = IpcWriteOptions::default();
        let mut tracker = DictionaryTracker::new(true);
        let (dictionaries, data) = IpcDataGenerator::default().encode(
            batch,
            &mut tracker,
            &options,
            &mut IpcWriteContext::default(),
        )?;
        assert!(dictionaries.is_empty(), "a live query's columns have no dictionaries");
        Ok(Self { ipc: encapsulate(data, &options)?, rows: batch.num_rows(), schema: batch.schema() })
    }

    /// Returns the rows as an Arrow batch, which shares the memory of the message.
    ///
    /// # Errors
    /// XX000 when `ipc` is not a message of this schema.
    pub fn batch(&self) -> Result<RecordBatch> {
        let no_batch = || Error::internal("a frame of a live query has no record batch");
        let (header, body) = self.header_and_body();
        let message = root_as_message(&header).map_err(|_| no_batch())?;
        let rows = message.header_as_record_batch().ok_or_else(no_batch)?;
        let schema = SchemaRef::clone(&self.schema);
        let (dictionaries, version) = (HashMap::new(), message.version());
        Ok(read_record_batch(&Buffer::from(body), rows, schema, &dictionaries, None, &version)?)
    }

    /// Splits the message into Flight's `data_header` and `data_body`, without a copy.
    pub fn header_and_body(&self) -> (Bytes, Bytes) {
        let length: [u8; 4] =
            self.ipc.get(4..PREFIX_BYTES).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
        let start = PREFIX_BYTES.min(self.ipc.len());
        let end = start.saturating_add(u32::from_le_bytes(length) as usize).min(self.ipc.len());
        (self.ipc.slice(start..end), self.ipc.slice(end..))
    }
}

fn encapsulate(data: EncodedData, options: &IpcWriteOptions) -> Result<Bytes, ArrowError> {
    let mut message = Vec::with_capacity(data.ipc_message.len() + data.arrow_data.len() + 64);
    write_message(&mut message, data, options)?;
    Ok(message.into())
}

/// Returns the bytes that a frame holds.
pub(crate) fn held_bytes(frame: &Frame) -> usize {
    /// The frame itself, its token and its place in a ring.
    const FRAME_BYTES: usize = 256;
    match &frame.body {
        FrameBody::Snapshot(rows) | FrameBody::Delta(rows) => FRAME_BYTES + rows.ipc.len(),
        _ => FRAME_BYTES,
    }
}
