//! Cold rows: immutable Parquet segments, which of them exist, and which of their rows are gone.
//!
//! It knows bytes, keys and Arrow batches, not tables: who writes a segment says what its columns are; the only one known here
//! is `_seq`. A segment holds the rows of all users of a table, sorted by row key, so one user's rows lie together and a table needs
//! few segments.
//!
//! | file | its one job |
//! |---|---|
//! | `segment` | what the database knows of a segment, and the places of its rows |
//! | `manifest` | the segments of a snapshot, and what is stored about them |
//! | `location` | where a storage is, and the client that reaches it |
//! | `object_storage` | one storage: bringing objects to stable storage, reading and removing them |
//! | `store` | the segments of all storages: footers and filters kept in memory, which of them are to be removed |
//! | `writer` | rows into a segment |
//! | `checked_reader` | a segment's bytes, each compared with its checksum |
//! | `reader` | finding and reading rows of a segment by key |
//! | `key_index` | the keys of a segment in memory while it is written |
//!
//! Invariant: at every seq a row has one live place: hot, or one position of one segment that no mark says is gone. So a scan
//! is a concatenation, and nothing is merged by key.

mod checked_reader;
mod key_index;
mod location;
mod manifest;
mod object_storage;
mod reader;
mod segment;
mod store;
mod writer;

pub use checked_reader::CheckedReaderFactory;
pub use key_index::KeyIndex;
pub use location::{CONNECTION_OPTIONS, StorageLocation, provider_variables};
pub use manifest::{
    ColdChange, Manifest, NewSegment, TableSegments, Unpublished, adopt, is_removal, marked_after, misfits,
    portable, put_mark, restore, storage_in_use,
};
pub use object_storage::ObjectStorage;
pub use reader::{SegmentKeys, selection};
pub use segment::{COLUMN_SEQ, Place, STORAGE_LOCAL, Segment};
pub use store::SegmentStore;
pub use writer::{SegmentWriter, WrittenSegment};
