//! Tables as DataFusion sees them, and the conversion of rows to and from their stored form.
//!
//! One provider serves USER, SHARED, STREAM and SYSTEM tables. They differ in values
//! ([`crate::ids::ScopeId`], the source of the rows), not in code. Rows have three places: the store,
//! segments, and the overlay of an open transaction.
//!
//! | file | its one job |
//! |---|---|
//! | `provider` | the table provider: from filters to plan nodes |
//! | `key_filter` | the key ranges that filters select |
//! | `description`, `segment_rows` | a scan as plain data; the positions of its cold rows |
//! | `overlay` | the rows that an open transaction has changed |
//! | `scan_handles`, `source`, `cursor`, `scan` | the plan node of hot, changed and computed rows |
//! | `cold`, `cold_rows` | the plan nodes of cold rows |
//! | `point` | single rows by key, from all three places |
//! | `rows` | the decoder of stored rows, for all of them |
//! | `write`, `sizes` | rows to be written, checked and encoded; their size |
//!
//! Invariant: the scope of a scan is an argument of the provider and never comes from SQL; every key that is
//! read begins with the table and that scope.

mod cold;
mod cold_rows;
mod cursor;
mod description;
mod key_filter;
mod overlay;
mod point;
mod provider;
mod rows;
mod scan;
mod scan_handles;
mod segment_rows;
mod sizes;
mod source;
mod write;

pub use description::{ScanDescription, SegmentRows};
pub use overlay::{Overlay, OverlayRow};
pub use point::PointReader;
pub use provider::KalamTable;
pub(crate) use rows::row_decoder;
pub use rows::{RowSchema, decode_images};
pub use scan::KalamScanExec;
pub use sizes::{batch_value_bytes, value_bytes};
pub use write::{RowLimits, RowWriter, cast_column};

#[cfg(test)]
mod tests;
