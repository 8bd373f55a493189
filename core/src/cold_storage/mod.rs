//! Cold rows: immutable Parquet segments, which segments exist, and which of their rows are deleted.
//!
//! This module knows bytes, keys and Arrow batches, not tables. The writer of a segment defines its columns
//! and their ids; only the ids of system columns are known here. A segment holds rows of all users of a
//! table, sorted by row key. So the rows of one user lie together, and a table needs few segments. An
//! overwritten row counts as deleted.
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
//! | `layout` | where the columns that a reader wants stand in a segment |
//! | `segment_keys` | the keys of rows, from their columns |
//! | `writer` | writes rows into a segment |
//! | `checked_reader` | reads the bytes of a segment and verifies their checksums |
//! | `scan_reader`, `scan_columns` | the readers of DataFusion's scans, and the columns that these read |
//! | `reader` | finds and reads rows of a segment by key |
//! | `key_index` | the keys of a segment in memory while it is written |
//!
//! Invariant: at every seq a row has one live place: it is hot, or it has one undeleted position in one
//! segment. So a scan is a concatenation and merges nothing by key. Every row of a segment is read through a
//! [`SegmentLayout`].

mod checked_reader;
mod key_index;
mod layout;
mod location;
mod manifest;
mod manifest_records;
mod marks;
mod object_storage;
mod reader;
mod scan_columns;
mod scan_reader;
mod segment;
mod segment_keys;
mod storages;
mod store;
#[cfg(test)]
mod tests;
mod widths;
mod writer;

pub use key_index::KeyIndex;
pub use layout::{AbsentColumn, ReadColumn, ReadSchema, SegmentLayout};
pub use location::{CONNECTION_OPTIONS, StorageLocation, provider_variables};
pub use manifest::{
    ColdChange, Manifest, NewSegment, TableSegments, inconsistencies, restore, storage_in_use,
};
pub use manifest_records::{Unpublished, assign_local_storage, is_removal, portable};
pub use marks::{first_marked, marked_after, put_mark};
pub use object_storage::ObjectStorage;
pub use reader::selection;
pub use scan_columns::SegmentColumns;
pub use scan_reader::CheckedReaderFactory;
pub use segment::{COLUMN_ID_ROW, COLUMN_ID_SEQ, COLUMN_ID_USER, COLUMN_SEQ, Place, STORAGE_LOCAL, Segment};
pub use segment_keys::SegmentKeys;
pub use store::SegmentStore;
pub use writer::{SegmentWriter, WrittenSegment};
