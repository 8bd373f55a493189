//! The hot part of a scan: its description, and the handles to read it with.
//!
//! Invariant: the handles are those of the description: the snapshot of its seq, the schemas of its version.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;

use super::description::ScanDescription;
use super::overlay::Overlay;
use super::rows::{RowSchema, RowVisibility};
use super::source::ScanSource;
use crate::commit::Snapshot;
use crate::error::{Error, Result};
use crate::hot_tier::{Generation, HotScan};
use crate::schema_registry::TableSchemas;

/// A scan of hot, changed or computed rows: its description, and the handles to read them with.
pub(super) struct Scan {
    pub(super) description: ScanDescription,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) schemas: Arc<TableSchemas>,
    /// The changes of the open transaction.
    overlay: Option<Arc<Overlay>>,
    /// The rows of a table that are not stored.
    computed: Option<Arc<Vec<RecordBatch>>>,
}

impl Scan {
    /// Returns a scan of the hot rows of a description, as the open transaction has changed them.
    ///
    /// # Errors
    /// XX000 when the handles are not those of the description.
    pub(super) fn stored(
        description: ScanDescription,
        snapshot: Arc<Snapshot>,
        schemas: Arc<TableSchemas>,
        overlay: Option<Arc<Overlay>>,
    ) -> Result<Self> {
        check_handles(&description, &snapshot, &schemas)?;
        Ok(Self { description, snapshot, schemas, overlay, computed: None })
    }

    /// Returns a scan of computed rows, which have no order.
    ///
    /// # Errors
    /// XX000 when the handles are not those of the description.
    pub(super) fn computed(
        description: ScanDescription,
        snapshot: Arc<Snapshot>,
        schemas: Arc<TableSchemas>,
        batches: Arc<Vec<RecordBatch>>,
    ) -> Result<Self> {
        check_handles(&description, &snapshot, &schemas)?;
        Ok(Self { description, snapshot, schemas, overlay: None, computed: Some(batches) })
    }

    /// Returns the sources, to be read one after the other.
    pub(super) fn sources(&self) -> Vec<ScanSource> {
        if let Some(batches) = &self.computed {
            return vec![ScanSource::Batches(Arc::clone(batches))];
        }
        let ranges = self.description.ranges.iter();
        match &self.overlay {
            None => ranges.cloned().map(ScanSource::Stored).collect(),
            Some(overlay) => ranges.flat_map(|range| overlay.cut(range)).collect(),
        }
    }

    /// Returns whether the rows come from memory and not from the store.
    pub(super) fn is_computed(&self) -> bool {
        self.computed.is_some()
    }

    /// Returns whether the open transaction has inserted or updated rows of the scan.
    pub(super) fn has_changed_rows(&self) -> bool {
        self.overlay.as_ref().is_some_and(|overlay| overlay.has_rows_in(&self.description.ranges))
    }

    pub(super) fn visibility(&self) -> RowVisibility {
        RowVisibility { now_us: self.description.now_us, flushed: self.description.flushed }
    }

    /// Returns the scan for the hot tier; `None` for single keys, the write schema, or a disabled tier.
    pub(super) fn hot(&self) -> Option<HotScan> {
        let description = &self.description;
        if self.is_computed() || description.has_only_points() || description.columns == RowSchema::Write {
            return None;
        }
        Some(HotScan {
            table: description.table,
            scope: description.scope,
            generation: Generation { version: description.version, flushed: description.flushed },
            seq: description.seq,
            now_us: description.now_us,
            turn: self.snapshot.hot.begin()?,
        })
    }
}

/// Checks that a description is read in its snapshot and shown in the schemas of its version.
pub(super) fn check_handles(
    description: &ScanDescription,
    snapshot: &Snapshot,
    schemas: &TableSchemas,
) -> Result<()> {
    let definition = &schemas.definition;
    let is_own = (description.table, description.version) == (definition.id, definition.version)
        && (description.seq, description.flushed) == (snapshot.seq, snapshot.cold.flushed(definition.id));
    if is_own { Ok(()) } else { Err(Error::internal("a scan is read with the handles of another one")) }
}
