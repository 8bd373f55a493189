//! A scan as plain data: what to read, without the handles to read it with.
//!
//! A description, the snapshot of its seq and the schemas of its version are enough to read the rows. The
//! plan nodes of a scan are built from them, so another process with the same snapshot can build the same
//! nodes.
//!
//! Invariant: the hot ranges and the positions in segments are the live rows of one scope at `seq`, each
//! once.

use std::ops::Range;

use parquet::arrow::arrow_reader::RowSelection;
use serde::{Deserialize, Serialize};

use super::rows::RowSchema;
use crate::cold_storage::selection;
use crate::ids::{SchemaVersion, ScopeId, SegmentId, Seq, TableId};
use crate::schema_registry::{TableDefinition, TableSchemas};
use crate::storage::KeyRange;
use crate::types::ColumnType;

/// What a scan reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanDescription {
    /// The table.
    pub table: TableId,
    /// The table version whose columns the scan shows.
    pub version: SchemaVersion,
    /// The owner of the rows.
    pub scope: ScopeId,
    /// The schema that the scan shows.
    pub columns: RowSchema,
    /// The wanted positions in that schema, in their order; `None` for all.
    pub projection: Option<Vec<usize>>,
    /// The keys to read, ascending and disjoint.
    pub ranges: Vec<KeyRange>,
    /// How many leading key columns have one value in all ranges.
    pub pinned: usize,
    /// The cold rows of the ranges.
    pub segments: Vec<SegmentRows>,
    /// The commit whose rows are read.
    pub seq: Seq,
    /// Stored rows of commits up to this one are cold.
    pub flushed: Seq,
    /// Rows that expire at this time or earlier are invisible; microseconds UTC.
    pub now_us: i64,
    /// The maximum number of rows that are wanted.
    pub limit: Option<usize>,
}

/// The rows to read from one segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRows {
    /// The segment.
    pub segment: SegmentId,
    /// The positions of the ranges, ascending and disjoint.
    pub selected: Vec<Range<u32>>,
    /// The positions of overwritten or deleted rows, ascending: every selected one, perhaps others.
    pub deleted: Vec<u32>,
}

impl ScanDescription {
    /// Returns the wanted positions in the shown schema.
    pub(super) fn positions(&self, schemas: &TableSchemas) -> Vec<usize> {
        let all = || (0..self.columns.of(schemas).fields().len()).collect();
        self.projection.clone().unwrap_or_else(all)
    }

    /// Returns whether every range is one key.
    pub(super) fn has_only_points(&self) -> bool {
        self.ranges.iter().all(KeyRange::is_point)
    }
}

impl SegmentRows {
    /// Returns the live rows, of a segment with `rows` rows.
    pub(super) fn selection(&self, rows: u32) -> RowSelection {
        selection(&self.selected, &self.deleted, rows)
    }
}

/// Returns the key columns by which stored rows and segments are ordered, as positions in the table. The
/// first `pinned` ones are left out, because they have one value in all rows that are read.
///
/// The order ends before the first float, whose stored order differs from its comparison (NaN and the two
/// zeros).
pub(super) fn key_order(definition: &TableDefinition, pinned: usize) -> impl Iterator<Item = usize> {
    definition.key_positions().into_iter().skip(pinned).take_while(move |position| {
        let column = definition.columns.get(*position);
        column.is_some_and(|column| !matches!(column.ty, ColumnType::Real | ColumnType::Double))
    })
}
