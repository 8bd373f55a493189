//! Tables as DataFusion sees them, and the conversion of rows to and from their stored form.
//!
//! One provider serves USER, SHARED, STREAM and SYSTEM tables. They differ in values
//! ([`crate::ids::ScopeId`], the source of the rows), not in code.
//!
//! Invariant: the scope of a scan is an argument of the provider and never comes from SQL; every key that is
//! read begins with the table and that scope.

mod cold;
mod cold_rows;
pub mod compact;
mod control;
mod cursor;
pub mod flush;
pub mod images;
mod key_filter;
pub mod large_insert;
mod point;
mod provider;
mod scan;
mod sizes;
mod source;
mod write;

pub use control::{Control, Progress};
pub use point::PointReader;
pub use provider::KalamTable;
pub use scan::KalamScanExec;
pub use sizes::{batch_value_bytes, value_bytes};
pub use source::{RowSchema, ScanSource};
pub use write::{RowLimits, RowWriter, cast_column};

#[cfg(test)]
mod tests;
