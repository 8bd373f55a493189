//! The old and the new rows of some commits to one table and scope, decoded.
//!
//! Invariant: `changes` has the commits' order, and each row of `old` and `new` belongs to one of them.

use datafusion::arrow::array::RecordBatch;

use crate::change_log::TableChanges;
use crate::error::Result;
use crate::ids::Seq;
use crate::schema_registry::TableSchemas;
use crate::tables::decode_images;

/// The changes of some commits to one table and scope, in order.
#[derive(Debug)]
pub(crate) struct Images {
    /// Rows as they were, in the table's full schema.
    pub(crate) old: RecordBatch,
    /// Rows as they became, in the table's full schema.
    pub(crate) new: RecordBatch,
    /// One entry per changed row, in commit order.
    pub(crate) changes: Vec<ChangedRow>,
}

/// One changed row and the places of its images.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChangedRow {
    pub(crate) seq: Seq,
    /// The row number in `Images::old`.
    pub(crate) old: Option<usize>,
    /// The row number in `Images::new`.
    pub(crate) new: Option<usize>,
}

impl Images {
    /// Decodes changes of one table and scope, given in commit order.
    pub(crate) fn decode<'a>(
        table: &TableSchemas,
        changes: impl Iterator<Item = (Seq, &'a TableChanges)>,
    ) -> Result<Self> {
        let mut changed = Vec::new();
        let mut rows = Vec::new();
        let (mut old_rows, mut new_rows) = (0, 0);
        let next = |present: bool, count: &mut usize| {
            present.then(|| {
                *count += 1;
                *count - 1
            })
        };
        for (seq, changes) in changes {
            for row in &changes.rows {
                let old = next(row.old.is_some(), &mut old_rows);
                let new = next(row.new.is_some(), &mut new_rows);
                changed.push(ChangedRow { seq, old, new });
                rows.push(row);
            }
        }
        let old = decode_images(table, rows.iter().filter_map(|row| Some((&row.key, row.old.as_ref()?))))?;
        let new = decode_images(table, rows.iter().filter_map(|row| Some((&row.key, row.new.as_ref()?))))?;
        Ok(Self { old, new, changes: changed })
    }
}
