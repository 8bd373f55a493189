//! What the database knows of a segment without opening it, and the places of its rows.

use std::ops::Range;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::{SchemaVersion, SegmentId, Seq, TableId};
use crate::storage::KeyRange;

/// The storage that always exists: a folder of the data directory.
pub const STORAGE_LOCAL: &str = "local";
/// The commit that wrote the row.
pub const COLUMN_SEQ: &str = "_seq";
/// Bytes of a segment that have a checksum of their own.
pub(super) const CHUNK_BYTES: u64 = 64 << 10;
/// Rows between two keys that are kept of a segment, and the most rows of a page: a key is found by reading one block.
pub(super) const BLOCK_ROWS: u32 = 2_048;

/// A position in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Which segment.
    pub segment: SegmentId,
    /// The row's number in it, from 0.
    pub position: u32,
}

impl Place {
    /// The place as one number: segment in the upper half, position in the lower.
    pub fn to_u64(self) -> u64 {
        u64::from(self.segment.0) << 32 | u64::from(self.position)
    }

    /// The place that [`Place::to_u64`] made `number` of.
    pub fn from_u64(number: u64) -> Self {
        let position = u32::try_from(number & u64::from(u32::MAX)).unwrap_or_default();
        Self { segment: SegmentId(u32::try_from(number >> 32).unwrap_or_default()), position }
    }
}

/// One immutable file of rows of one table, sorted by row key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Never used again.
    pub id: SegmentId,
    /// Whose rows.
    pub table: TableId,
    /// The version of the table the rows were written with.
    pub version: SchemaVersion,
    /// The storage its object is in.
    #[serde(default = "local")]
    pub storage: Arc<str>,
    /// The object's name in the storage.
    pub path: String,
    /// Rows, those that are gone included.
    pub rows: u32,
    /// The object's length.
    pub bytes: u64,
    /// The lowest row key.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub first_key: Vec<u8>,
    /// The highest row key.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub last_key: Vec<u8>,
    /// No row was written by a later commit.
    pub through: Seq,
    /// The commit that wrote all rows, when they were in the segment before they had one: what the object says of it is not so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<Seq>,
    /// When it was made, microseconds UTC.
    pub created_at: i64,
    /// The CRC-32 of each [`CHUNK_BYTES`] of the object, u32 LE.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub checksums: Vec<u8>,
}

impl Segment {
    /// Whether a key of the range may be in the segment.
    pub fn overlaps(&self, range: &KeyRange) -> bool {
        self.last_key >= range.start && range.end.as_ref().is_none_or(|end| self.first_key < *end)
    }

    /// Whether every key of the segment is in the range.
    pub fn is_within(&self, range: &KeyRange) -> bool {
        range.contains(&self.first_key) && range.contains(&self.last_key)
    }

    /// All positions.
    pub fn positions(&self) -> Range<u32> {
        0..self.rows
    }

    /// The checksum of a chunk of [`CHUNK_BYTES`].
    pub fn checksum(&self, chunk: usize) -> Option<u32> {
        let bytes = self.checksums.get(chunk * 4..)?.first_chunk::<4>()?;
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
