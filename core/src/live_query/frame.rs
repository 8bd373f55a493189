//! What a subscriber receives. A frame carries how far the subscriber is complete, and one body.
//!
//! Invariants: after a frame with `more == false` that moved `complete_through` to `s`, folding every frame so far equals the
//! query at commit `s`; `complete_through` never goes back; the rows of one commit are never split over two values of it.
//!
//! How to fold. `Snapshot` and `Delta` batches have the columns `_op` (UInt8, not null), `_seq` (Int64, not null: the commit
//! that wrote the row, or removed it) and then the query's columns. When `Started::key_columns` is not empty, the rows are a
//! map by these columns: 1 puts, 3 replaces, 2 removes. When it is empty, the rows are a multiset over the query's columns:
//! 1 adds a row, 2 takes one equal row away, 3 does not occur. A `Reset` throws everything folded so far away.

use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::ipc::writer::{
    DictionaryTracker, EncodedData, IpcDataGenerator, IpcWriteContext, IpcWriteOptions, write_message,
};

use crate::error::Result;
use crate::ids::{Seq, SubscriptionId};

/// The row appeared: it was written, or began to match.
pub const OP_INSERT: u8 = 1;
/// The row went: it was deleted, or ceased to match. It carries the values it had.
pub const OP_DELETE: u8 = 2;
/// The row of this key has new values.
pub const OP_UPDATE: u8 = 3;

/// One message to a subscriber. Frames with rows are shared by all subscribers of a query.
#[derive(Debug)]
pub struct Frame {
    /// Every commit up to this one has been delivered entirely: in a fragment the one before its own. 0 before the first
    /// snapshot is complete.
    pub complete_through: Seq,
    /// Where to resume; present when `complete_through` moved and no rest follows, because only then has a client that folded
    /// every frame a state of its own to resume from.
    pub resume_token: Option<Bytes>,
    /// The rest of the same snapshot or commit follows in the next frame.
    pub more: bool,
    /// When the frame was made, microseconds UTC.
    pub server_time_us: i64,
    /// What happened.
    pub body: FrameBody,
}

/// The kinds of frames, in the order a stream has them: `Started`, then `Reset`? `Snapshot`* `SnapshotEnd`, then `Delta`,
/// `Progress`, `Notice` and `Reset` with another snapshot in any order, at last `Closed`.
#[derive(Debug)]
pub enum FrameBody {
    /// The first frame.
    Started {
        /// The number `KILL LIVE QUERY` takes.
        subscription: SubscriptionId,
        /// `_op`, `_seq` and the query's columns.
        schema: SchemaRef,
        /// The same as an encapsulated IPC message.
        schema_ipc: Bytes,
        /// The result's columns that are its rows' identity; empty when the result is a multiset.
        key_columns: Vec<String>,
        /// Where deltas begin: the snapshot's seq, or the position that was resumed.
        snapshot_seq: Seq,
        /// The stream goes on after the given position, without a snapshot.
        resumed: bool,
    },
    /// Rows of the snapshot, all with `_op` 1.
    Snapshot(EncodedBatch),
    /// The snapshot is complete.
    SnapshotEnd,
    /// Rows that changed, in commit order.
    Delta(EncodedBatch),
    /// Nothing that matters changed up to `complete_through`.
    Progress,
    /// Everything delivered so far is void: a fresh snapshot follows in this stream.
    Reset {
        /// Why.
        reason: ResetReason,
        /// The fresh snapshot's seq.
        snapshot_seq: Seq,
    },
    /// A message for people.
    Notice(String),
    /// The last frame.
    Closed {
        /// Why.
        reason: CloseReason,
        /// The same for people.
        message: String,
        /// Subscribing again, with the last token, can succeed.
        retryable: bool,
    },
}

/// Why a snapshot starts anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResetReason {
    /// The change log no longer reaches back to the token.
    Retention,
    /// The subscriber read so slowly that the change log was trimmed before it.
    Lag,
    /// The table was changed, or dropped and created again, since the token.
    Schema,
    /// What the principal may see has changed since the token.
    Security,
    /// The token is of another database, or of commits that did not survive a crash.
    Server,
}

impl ResetReason {
    /// The reason's name in system tables, logs and JSON.
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
    /// `KILL LIVE QUERY`.
    Killed,
    /// The table does not exist any more.
    TableDropped,
    /// The table's columns changed.
    SchemaChanged,
    /// The subscriber does not exist any more.
    UserDropped,
    /// The subscriber's role or password changed.
    AccessChanged,
    /// The query's expressions failed on a row, e.g. divided by zero, or the table is damaged.
    Failed,
    /// The server is going down.
    Shutdown,
}

impl CloseReason {
    /// The reason's name in logs and JSON.
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

/// Rows, as a batch for readers in this process and as bytes for the others.
#[derive(Clone, Debug)]
pub struct EncodedBatch {
    /// One encapsulated IPC RecordBatch message without dictionaries:
    /// `0xFFFFFFFF | header length i32 LE | header, padded to 8 | body`.
    pub ipc: Bytes,
    /// How many rows.
    pub rows: usize,
    /// The rows.
    pub batch: RecordBatch,
}

/// Marker and length before the header of an encapsulated message.
const PREFIX_BYTES: usize = 8;

impl EncodedBatch {
    /// Encodes `batch`, whose columns have no dictionaries.
    pub(crate) fn encode(batch: RecordBatch) -> Result<Self> {
        let options = IpcWriteOptions::default();
        let mut tracker = DictionaryTracker::new(true);
        let (dictionaries, data) = IpcDataGenerator::default().encode(
            &batch,
            &mut tracker,
            &options,
            &mut IpcWriteContext::default(),
        )?;
        assert!(dictionaries.is_empty(), "a live query's columns have no dictionaries");
        Ok(Self { ipc: encapsulate(data, &options)?, rows: batch.num_rows(), batch })
    }

    /// Splits the message into what Flight calls `data_header` and `data_body`, without a copy.
    pub fn header_and_body(&self) -> (Bytes, Bytes) {
        let length: [u8; 4] =
            self.ipc.get(4..PREFIX_BYTES).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
        let start = PREFIX_BYTES.min(self.ipc.len());
        let end = start.saturating_add(u32::from_le_bytes(length) as usize).min(self.ipc.len());
        (self.ipc.slice(start..end), self.ipc.slice(end..))
    }
}

/// Encodes `schema` as one encapsulated IPC message.
pub(crate) fn encode_schema(schema: &Schema) -> Result<Bytes> {
    let options = IpcWriteOptions::default();
    let mut tracker = DictionaryTracker::new(true);
    let data =
        IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(schema, &mut tracker, &options);
    Ok(encapsulate(data, &options)?)
}

fn encapsulate(data: EncodedData, options: &IpcWriteOptions) -> Result<Bytes, ArrowError> {
    let mut message = Vec::with_capacity(data.ipc_message.len() + data.arrow_data.len() + 64);
    write_message(&mut message, data, options)?;
    Ok(message.into())
}

/// The bytes a frame holds: its message, and the rows as arrays, which take about as much.
pub(crate) fn held_bytes(frame: &Frame) -> usize {
    /// The frame itself, its token and its place in a ring.
    const FRAME_BYTES: usize = 256;
    match &frame.body {
        FrameBody::Snapshot(rows) | FrameBody::Delta(rows) => FRAME_BYTES + 2 * rows.ipc.len(),
        _ => FRAME_BYTES,
    }
}
