//! The sources of a scan of hot, changed or computed rows.
//!
//! Invariant: the sources of a scan have no key in common.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;

use crate::storage::KeyRange;

/// A part of a table's rows. A scan concatenates its sources, because a key has one live place.
///
/// Separate plan nodes read cold rows.
#[derive(Clone, Debug)]
pub(super) enum ScanSource {
    /// The stored rows in a range of keys, in key order.
    Stored(KeyRange),
    /// A row that the open transaction has inserted or updated.
    Changed {
        /// Its key.
        key: Bytes,
        /// The encoded row.
        row: Bytes,
    },
    /// Rows computed when the statement was planned, in the table's visible schema.
    Batches(Arc<Vec<RecordBatch>>),
}
