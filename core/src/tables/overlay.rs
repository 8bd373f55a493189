//! The rows of one table and scope that an open transaction has changed.
//!
//! For a scan they are a source of their own, beside hot and cold rows: the ranges of stored rows are cut at
//! the changed keys, and the new rows stand between them, in key order. The places of cold rows that they
//! replace count as deleted.
//!
//! Invariant: a reader with an overlay sees no stored and no cold row under a changed key.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::source::ScanSource;
use crate::cold_storage::Place;
use crate::ids::SegmentId;
use crate::storage::KeyRange;

/// A changed row.
#[derive(Clone, Debug)]
pub struct OverlayRow {
    /// Its key.
    pub key: Bytes,
    /// The encoded new row; `None` if the row was deleted.
    pub row: Option<Bytes>,
    /// The place of the cold row under the key, if there is one.
    pub replaced: Option<Place>,
}

/// The changed rows of one table and scope.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    /// By key; `None` for deleted rows.
    rows: BTreeMap<Bytes, Option<Bytes>>,
    /// The replaced positions of each segment, ascending.
    replaced: BTreeMap<SegmentId, Vec<u32>>,
}

impl Overlay {
    /// Returns the overlay of these rows. Of several rows with one key, the last one counts.
    pub fn new(rows: impl IntoIterator<Item = OverlayRow>) -> Self {
        let mut overlay = Self::default();
        for OverlayRow { key, row, replaced } in rows {
            if let Some(place) = replaced {
                overlay.replaced.entry(place.segment).or_default().push(place.position);
            }
            overlay.rows.insert(key, row);
        }
        for positions in overlay.replaced.values_mut() {
            positions.sort_unstable();
            positions.dedup();
        }
        overlay
    }

    /// Returns what the transaction made of a row: `None` if it did not change the key, `Some(None)` if it
    /// deleted the row.
    pub(super) fn row(&self, key: &[u8]) -> Option<Option<&Bytes>> {
        self.rows.get(key).map(Option::as_ref)
    }

    /// Returns whether there are new rows in the ranges.
    pub(super) fn has_rows_in(&self, ranges: &[KeyRange]) -> bool {
        ranges.iter().any(|range| self.within(range).any(|(_, row)| row.is_some()))
    }

    /// Returns the positions of `deleted` (ascending) and of the replaced rows of a segment, ascending.
    pub(super) fn unite_deleted(&self, segment: SegmentId, mut deleted: Vec<u32>) -> Vec<u32> {
        if let Some(replaced) = self.replaced.get(&segment) {
            deleted.extend_from_slice(replaced);
            deleted.sort_unstable();
            deleted.dedup();
        }
        deleted
    }

    /// Returns the stored and the new rows of a range as sources, in key order.
    pub(super) fn cut(&self, range: &KeyRange) -> Vec<ScanSource> {
        let mut sources = Vec::new();
        let mut start = range.start.clone();
        let push_stored = |sources: &mut Vec<ScanSource>, start: Vec<u8>, end: Option<Vec<u8>>| {
            let stored = KeyRange { start, end };
            if !stored.is_empty() {
                sources.push(ScanSource::Stored(stored));
            }
        };
        for (key, row) in self.within(range) {
            push_stored(&mut sources, start, Some(key.to_vec()));
            if let Some(row) = row {
                sources.push(ScanSource::Changed { key: Bytes::clone(key), row: Bytes::clone(row) });
            }
            start = [&key[..], &[0]].concat();
        }
        push_stored(&mut sources, start, range.end.clone());
        sources
    }

    fn within(&self, range: &KeyRange) -> impl Iterator<Item = (&Bytes, &Option<Bytes>)> {
        let start = Bound::Included(range.start.as_slice());
        let end = range.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let rows = (!range.is_empty()).then(|| self.rows.range::<[u8], _>((start, end)));
        rows.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(sources: &[ScanSource]) -> Vec<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\0', "0");
        let shown = sources.iter().map(|source| match source {
            ScanSource::Stored(range) => {
                let end = range.end.as_ref().map_or("end".to_owned(), |end| text(end));
                format!("{}..{end}", text(&range.start))
            }
            ScanSource::Changed { key, row } => format!("{}={}", text(key), text(row)),
            ScanSource::Batches(_) => "batches".to_owned(),
        });
        shown.collect()
    }

    fn changed(key: &'static str, row: Option<&'static str>) -> OverlayRow {
        OverlayRow { key: Bytes::from(key), row: row.map(Bytes::from), replaced: None }
    }

    #[test]
    fn ranges_are_cut_at_changed_keys() {
        let overlay = Overlay::new([changed("b", Some("1")), changed("c", None), changed("d", Some("2"))]);
        let check = |range: KeyRange, expected: &[&str]| {
            assert_eq!(shown(&overlay.cut(&range)), expected, "{range:?}");
        };
        check(KeyRange::all(), &["..b", "b=1", "b0..c", "c0..d", "d=2", "d0..end"]);
        check(KeyRange { start: b"b".to_vec(), end: Some(b"d".to_vec()) }, &["b=1", "b0..c", "c0..d"]);
        check(KeyRange::point("b"), &["b=1"]);
        check(KeyRange::point("c"), &[]);
        check(KeyRange::point("x"), &["x..x0"]);
        check(KeyRange { start: b"d".to_vec(), end: Some(b"a".to_vec()) }, &[]);
    }

    #[test]
    fn replaced_places_are_deleted_positions() {
        let place = |position| Some(Place { segment: SegmentId(7), position });
        let row = |key, position| OverlayRow { replaced: place(position), ..changed(key, None) };
        let overlay = Overlay::new([row("a", 9), row("b", 2), row("a", 4)]);
        assert_eq!(overlay.unite_deleted(SegmentId(7), vec![2, 3]), [2, 3, 4, 9]);
        assert_eq!(overlay.unite_deleted(SegmentId(8), vec![2, 3]), [2, 3]);
        assert!(!overlay.has_rows_in(&[KeyRange::all()]));
    }
}
