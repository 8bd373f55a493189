//! Cold rows: immutable Parquet segments, which segments exist, and which of their rows are deleted.
//!
//! This module knows bytes, keys and Arrow batches, not tables. The writer of a segment defines its columns;
//! only `_seq` is known here. A segment holds rows of all users of a table, sorted by row key. So the rows of
//! one user lie together, and a table needs few segments. An overwritten row counts as deleted.
//!
//! | file | its one job |
//! |---|---|
//! | `segment` | the metadata of a segment, and the places of its rows |
//! | `manifest` | the segments of a snapshot |
//! | `manifest_records` | their entries in the store |
//! | `marks` | the tombstones of cold rows |
//! | `location` | the URL of a storage, and the client that reaches it |
//! | `object_storage` | one storage: publishes, reads and removes objects |
//! | `storages` | the storages of a database |
//! | `store` | the segments of all storages: cached footers and key filters, retired segments |
//! | `writer` | writes rows into a segment |
//! | `checked_reader` | reads the bytes of a segment and verifies their checksums |
//! | `scan_reader` | the readers of DataFusion's scans |
//! | `reader` | finds and reads rows of a segment by key |
//! | `key_index` | the keys of a segment in memory while it is written |
//!
//! Invariant: at every seq a row has one live place: it is hot, or it has one undeleted position in one
//! segment. So a scan is a concatenation and merges nothing by key.

mod checked_reader;
mod key_index;
mod location;
mod manifest;
mod manifest_records;
mod marks;
mod object_storage;
mod reader;
mod scan_reader;
mod segment;
mod storages;
mod store;
#[cfg(test)]
mod tests;
mod writer;

pub use key_index::KeyIndex;
pub use location::{CONNECTION_OPTIONS, StorageLocation, provider_variables};
pub use manifest::{
    ColdChange, Manifest, NewSegment, TableSegments, inconsistencies, restore, storage_in_use,
};
pub use manifest_records::{Unpublished, assign_local_storage, is_removal, portable};
pub use marks::{first_marked, marked_after, put_mark};
pub use object_storage::ObjectStorage;
pub use reader::{SegmentKeys, selection};
pub use scan_reader::CheckedReaderFactory;
pub use segment::{COLUMN_SEQ, Place, STORAGE_LOCAL, Segment};
pub use store::SegmentStore;
pub use writer::{SegmentWriter, WrittenSegment};
