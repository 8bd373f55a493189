//! The metadata of a segment, and the places of its rows.

use std::ops::Range;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::{ColumnId, SchemaVersion, SegmentId, Seq, TableId};
use crate::storage::KeyRange;

/// The storage that always exists: a folder of the data directory.
pub const STORAGE_LOCAL: &str = "local";
/// The column with the seq of the commit that wrote the row.
pub const COLUMN_SEQ: &str = "_seq";
/// The id of column `_seq` in segments. Columns of tables have lower ids: their [`ColumnId`].
pub const COLUMN_ID_SEQ: ColumnId = ColumnId(2_000_000_001);
/// The id of the column with the owner of a row, in segments of tables with user scope.
pub const COLUMN_ID_USER: ColumnId = ColumnId(2_000_000_002);
/// The id of the column with the hidden key, in segments of tables without a primary key.
pub const COLUMN_ID_ROW: ColumnId = ColumnId(2_000_000_003);
/// Bytes of a segment per checksum.
pub(super) const CHECKSUM_BLOCK_BYTES: u64 = 64 << 10;
/// Rows of a block. The footer has one key per block, and no page is larger: a lookup reads one block.
pub(super) const BLOCK_ROWS: u32 = 2_048;

/// The place of a cold row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The segment.
    pub segment: SegmentId,
    /// The row's number in the segment, from 0.
    pub position: u32,
}

impl Place {
    /// Returns the place as one number: segment in the upper half, position in the lower.
    pub fn to_u64(self) -> u64 {
        u64::from(self.segment.0) << 32 | u64::from(self.position)
    }

    /// Returns the place of a number made by [`Place::to_u64`].
    pub fn from_u64(number: u64) -> Self {
        let position = u32::try_from(number & u64::from(u32::MAX)).unwrap_or_default();
        Self { segment: SegmentId(u32::try_from(number >> 32).unwrap_or_default()), position }
    }
}

/// One immutable file with rows of one table, sorted by row key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The id, which is never reused.
    pub id: SegmentId,
    /// The table of the rows.
    pub table: TableId,
    /// The table version of the rows.
    pub version: SchemaVersion,
    /// The storage of the object.
    #[serde(default = "local")]
    pub storage: Arc<str>,
    /// The name of the object in the storage.
    pub path: String,
    /// The number of rows, including deleted ones.
    pub rows: u32,
    /// The length of the object.
    pub bytes: u64,
    /// The lowest row key.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub first_key: Vec<u8>,
    /// The highest row key.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub last_key: Vec<u8>,
    /// An upper bound of the seqs of the rows.
    pub through: Seq,
    /// The commit of all rows of a large INSERT. `_seq` inside the object is 0 then; ignore it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<Seq>,
    /// The creation time, microseconds UTC.
    pub created_at: i64,
    /// The CRC-32 of each `CHECKSUM_BLOCK_BYTES` of the object, as u32 LE.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub checksums: Vec<u8>,
}

impl Segment {
    /// Returns whether the segment may contain a key of `range`.
    pub fn overlaps(&self, range: &KeyRange) -> bool {
        self.last_key >= range.start && range.end.as_ref().is_none_or(|end| self.first_key < *end)
    }

    /// Returns whether `range` contains every key of the segment.
    pub fn is_within(&self, range: &KeyRange) -> bool {
        range.contains(&self.first_key) && range.contains(&self.last_key)
    }

    /// Returns all positions.
    pub fn positions(&self) -> Range<u32> {
        0..self.rows
    }

    /// Returns the checksum of a block of `CHECKSUM_BLOCK_BYTES`.
    pub fn checksum(&self, block: usize) -> Option<u32> {
        let bytes = self.checksums.get(block * 4..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*bytes))
    }
}

fn local() -> Arc<str> {
    Arc::from(STORAGE_LOCAL)
}

fn to_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    STANDARD.decode(text).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_numbers_in_their_order() {
        let places = [(0, 0), (0, u32::MAX), (1, 0), (7, 9), (u32::MAX, u32::MAX)];
        let places = places.map(|(segment, position)| Place { segment: SegmentId(segment), position });
        assert!(places.is_sorted_by_key(|place| place.to_u64()));
        assert!(places.iter().all(|place| Place::from_u64(place.to_u64()) == *place));
    }
}
