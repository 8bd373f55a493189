//! The entries of the manifest in the `Cold` partition:
//!
//! ```text
//! 'D' segment u32 BE                    -> deletion vector, in Roaring's portable format
//! 'F' table u32 BE                      -> flushed seq u64 BE | moved seq u64 BE
//! 'G' segment u32 BE                    -> JSON of a retired segment, whose object must be removed
//! 'K' segment u32 BE                    -> the bits of its key filter
//! 'M' segment u32 BE | position u32 BE  -> mark: seq u64 BE of the commit that overwrote or deleted the row
//! 'N'                                   -> u32 BE, the id of the next segment
//! 'P' table u32 BE                      -> seq u64 BE | storage: publish the manifest there, of seq or later
//! 'S' table u32 BE | segment u32 BE     -> JSON of a segment
//! ```
//!
//! Invariant: every key begins with the byte of its [`Tag`], and only this file knows the bytes.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::segment::{Place, STORAGE_LOCAL, Segment};
use crate::error::{Error, Result};
use crate::ids::{SegmentId, Seq, TableId};
use crate::storage::{Direction, KeyRange, Partition, StorageSnapshot, WriteBatch};

/// The kind of an entry: the first byte of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Tag {
    DeletionVector = b'D',
    TableState = b'F',
    RetiredSegment = b'G',
    KeyFilter = b'K',
    Mark = b'M',
    NextSegment = b'N',
    Unpublished = b'P',
    Segment = b'S',
}

impl Tag {
    const ALL: [Self; 8] = [
        Self::DeletionVector,
        Self::TableState,
        Self::RetiredSegment,
        Self::KeyFilter,
        Self::Mark,
        Self::NextSegment,
        Self::Unpublished,
        Self::Segment,
    ];

    /// Returns the tag of a key; `None` when this program writes no such key.
    pub(super) fn of(key: &[u8]) -> Option<Self> {
        let first = key.first()?;
        Self::ALL.into_iter().find(|tag| *tag as u8 == *first)
    }

    fn key(self, id: u32) -> Vec<u8> {
        [&[self as u8][..], &id.to_be_bytes()].concat()
    }

    fn range(self) -> KeyRange {
        KeyRange::prefix([self as u8])
    }
}

/// A manifest that must still be published or, after DROP TABLE, removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpublished {
    /// The commit that changed the manifest.
    pub seq: Seq,
    /// The storage of the table's segments.
    pub storage: Arc<str>,
}

/// Calls `visit` with the key and value of each entry of one kind, in key order.
pub(super) fn visit(
    storage: &dyn StorageSnapshot,
    tag: Tag,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<()>,
) -> Result<()> {
    storage.visit(Partition::Cold, tag.range(), Direction::Forward, &mut |key, value| {
        visit(key, value)?;
        Ok(ControlFlow::Continue(()))
    })
}

/// Returns whether a `Cold` key only requests the removal of an object. Copies of the store omit such keys.
pub fn is_removal(key: &[u8]) -> bool {
    Tag::of(key) == Some(Tag::RetiredSegment)
}

/// Assigns the segments of a restored store, whose objects are in the data directory, to the storage `local`,
/// and cancels pending publications.
///
/// # Errors
/// XX001 when a record is damaged, and any error of the storage.
pub fn assign_local_storage(storage: &dyn StorageSnapshot, batch: &mut WriteBatch) -> Result<()> {
    visit(storage, Tag::Segment, |key, value| {
        let segment = Segment { storage: Arc::from(STORAGE_LOCAL), ..segment(value)? };
        batch.put(Partition::Cold, key.to_vec(), segment_value(&segment)?);
        Ok(())
    })?;
    batch.delete_range(Partition::Cold, Tag::Unpublished.range());
    Ok(())
}

pub(super) fn next_segment_key() -> Vec<u8> {
    vec![Tag::NextSegment as u8]
}

pub(super) fn state_key(table: TableId) -> Vec<u8> {
    Tag::TableState.key(table.0)
}

pub(super) fn unpublished_key(table: TableId) -> Vec<u8> {
    Tag::Unpublished.key(table.0)
}

pub(super) fn deletion_vector_key(segment: SegmentId) -> Vec<u8> {
    Tag::DeletionVector.key(segment.0)
}

pub(super) fn filter_key(segment: SegmentId) -> Vec<u8> {
    Tag::KeyFilter.key(segment.0)
}

pub(super) fn retired_key(segment: SegmentId) -> Vec<u8> {
    Tag::RetiredSegment.key(segment.0)
}

pub(super) fn segment_key(table: TableId, segment: SegmentId) -> Vec<u8> {
    [Tag::Segment.key(table.0), segment.0.to_be_bytes().to_vec()].concat()
}

pub(super) fn mark_key(place: Place) -> Vec<u8> {
    [Tag::Mark.key(place.segment.0), place.position.to_be_bytes().to_vec()].concat()
}

/// Returns the range of the keys of all marks of a segment.
pub(super) fn mark_keys(segment: SegmentId) -> KeyRange {
    KeyRange::prefix(Tag::Mark.key(segment.0))
}

/// Returns the range of the keys of the marks of a segment at the positions of `range`.
pub(super) fn mark_keys_in(segment: SegmentId, range: &Range<u32>) -> KeyRange {
    let key = |position| mark_key(Place { segment, position });
    KeyRange { start: key(range.start), end: Some(key(range.end)) }
}

/// Returns the id in a key that has no other number.
pub(super) fn id(key: &[u8]) -> Result<u32> {
    number(key.get(1..).unwrap_or_default())
}

/// Returns the first id in a key.
pub(super) fn first_id(key: &[u8]) -> Result<u32> {
    number(key.get(1..5).unwrap_or_default())
}

/// Returns the position in the key of a mark.
pub(super) fn mark_position(key: &[u8]) -> Result<u32> {
    number(key.get(5..).unwrap_or_default())
}

pub(super) fn number(bytes: &[u8]) -> Result<u32> {
    Ok(u32::from_be_bytes(bytes.try_into().map_err(|_| damaged())?))
}

pub(super) fn seq(bytes: &[u8]) -> Result<Seq> {
    Ok(Seq(u64::from_be_bytes(bytes.try_into().map_err(|_| damaged())?)))
}

pub(super) fn state_value(flushed: Seq, moved: Seq) -> Vec<u8> {
    [flushed.0.to_be_bytes(), moved.0.to_be_bytes()].concat()
}

/// Returns the flushed and the moved seq of a table.
pub(super) fn state(value: &[u8]) -> Result<(Seq, Seq)> {
    let (flushed, moved) = value.split_at_checked(8).ok_or_else(damaged)?;
    Ok((seq(flushed)?, seq(moved)?))
}

pub(super) fn unpublished_value(due: &Unpublished) -> Vec<u8> {
    [&due.seq.0.to_be_bytes(), due.storage.as_bytes()].concat()
}

pub(super) fn unpublished(value: &[u8]) -> Result<Unpublished> {
    let (by, storage) = value.split_at_checked(8).ok_or_else(damaged)?;
    let storage = Arc::from(std::str::from_utf8(storage).map_err(|_| damaged())?);
    Ok(Unpublished { seq: seq(by)?, storage })
}

/// Returns a deletion vector in Roaring's portable format.
///
/// # Errors
/// XX000, but never: writing to memory does not fail.
pub fn portable(positions: &RoaringBitmap) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(positions.serialized_size());
    positions
        .serialize_into(&mut bytes)
        .map_err(|error| Error::internal("a deletion vector cannot be written").source(error))?;
    Ok(bytes)
}

pub(super) fn deletion_vector(value: &[u8]) -> Result<RoaringBitmap> {
    RoaringBitmap::deserialize_from(value).map_err(|_| damaged())
}

pub(super) fn segment_value(segment: &Segment) -> Result<Vec<u8>> {
    serde_json::to_vec(segment)
        .map_err(|error| Error::internal("a segment's record cannot be written").source(error))
}

pub(super) fn segment(value: &[u8]) -> Result<Segment> {
    serde_json::from_slice(value).map_err(|error| damaged().source(error))
}

pub(super) fn damaged() -> Error {
    Error::corruption("the manifest of the segments is damaged")
        .hint("restore the data directory from a backup")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_tag() {
        for tag in Tag::ALL {
            assert_eq!(Tag::of(&tag.key(7)), Some(tag));
            assert!(tag.range().contains(&tag.key(u32::MAX)));
        }
        assert_eq!(Tag::of(b"X\0\0\0\x01"), None);
        assert_eq!(Tag::of(b""), None);
    }
}
