//! Writes segments: hot rows in a flush, other segments in a compaction, new rows of a large INSERT.
//!
//! This module writes the files; a job or a statement commits them. It reads rows through `tables` and
//! `cold_storage`, and has no reader of its own.
//!
//! | file | its one job |
//! |---|---|
//! | `control` | cancellation and progress |
//! | `files` | the files of new segments, from the first row to the verified object |
//! | `flush` | writes the hot rows of a table |
//! | `compact` | writes the live rows of some segments |
//! | `large_insert` | writes the rows of an INSERT, also to the change log |
//!
//! Invariant: new segments have exactly the rows that they replace, each once, and are on stable storage and
//! verified before a commit names them.

mod compact;
mod control;
mod files;
mod flush;
mod large_insert;

pub use compact::{Compacted, compact};
pub use control::{Control, Progress};
pub(crate) use files::{CHUNK_BYTES_MAX, CHUNK_ROWS};
pub use files::{KeptObjects, PendingObjects, PublishedSegments};
pub use flush::{flush, flushed_keys};
pub use large_insert::{NewRows, write_segments};
