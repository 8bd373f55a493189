//! Cuts rows on their way into a table into pieces, small enough to enforce a statement's limits.
//!
//! A batch may be far larger in the table's types than as input: an omitted column, NULLs and dictionaries
//! take almost nothing, an EMBEDDING its whole width. So pieces are completed and counted one by one.
//!
//! Invariant: before and after it is completed, a piece has at most about [`PIECE_BYTES`], or one row.

use datafusion::arrow::array::RecordBatch;

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::schema_registry::{ColumnDefault, ColumnDefinition, TableDefinition};
use crate::tables::batch_value_bytes;
use crate::types::ColumnType;

/// The target size of a piece.
const PIECE_BYTES: usize = 16 << 20;
/// How many times longer than its value a text may be: BYTES twice, an EMBEDDING about four times.
const TEXT_FACTOR: usize = 4;
/// The assumed size of a value of any type but EMBEDDING: a DECIMAL has 16 bytes, a ULID 26.
const COLUMN_BYTES: usize = 32;

/// The limits of a piece.
#[derive(Clone, Copy, Debug)]
pub(in crate::sql) struct Pieces {
    rows_max: usize,
    /// A larger row fits no table.
    row_bytes_max: usize,
}

impl Pieces {
    /// Returns the pieces for rows of a table: fewer rows where its columns are wide.
    pub(in crate::sql) fn of(definition: &TableDefinition, config: &Config) -> Self {
        let row_bytes = definition.columns.iter().map(completed_bytes).fold(0, usize::saturating_add);
        let rows_max = (PIECE_BYTES / row_bytes.max(1)).clamp(1, config.batch_rows.max(1));
        Self { rows_max, row_bytes_max: config.row_bytes_max.saturating_mul(TEXT_FACTOR) }
    }

    /// Returns the most rows of a piece.
    pub(in crate::sql) fn rows_max(self) -> usize {
        self.rows_max
    }

    /// Passes the rows of `batch` to `take`, piece by piece; a batch of no rows is one piece.
    ///
    /// # Errors
    /// 54000 for a row that is too large for any table, and the first error of `take`.
    pub(in crate::sql) fn each(
        self,
        batch: &RecordBatch,
        mut take: impl FnMut(&RecordBatch) -> Result<()>,
    ) -> Result<()> {
        let mut start = 0;
        loop {
            let piece = self.next(batch, start)?;
            start += piece.num_rows();
            take(&piece)?;
            if start >= batch.num_rows() {
                return Ok(());
            }
        }
    }

    fn next(self, batch: &RecordBatch, start: usize) -> Result<RecordBatch> {
        let mut rows = self.rows_max.min(batch.num_rows().saturating_sub(start));
        loop {
            let piece = batch.slice(start, rows);
            let bytes = batch_value_bytes(&piece);
            if rows > 1 && bytes > PIECE_BYTES {
                rows = rows.div_ceil(2);
            } else if bytes > PIECE_BYTES.max(self.row_bytes_max) {
                return Err(row_too_large(bytes));
            } else {
                return Ok(piece);
            }
        }
    }
}

/// Estimates the bytes of a value of the column in an array, whether it is given or omitted.
fn completed_bytes(column: &ColumnDefinition) -> usize {
    let bytes = match column.ty {
        ColumnType::Embedding(dimensions) => usize::from(dimensions) * size_of::<f32>(),
        _ => COLUMN_BYTES,
    };
    match &column.default {
        Some(ColumnDefault::Literal(text)) => bytes.max(text.len()),
        _ => bytes,
    }
}

fn row_too_large(bytes: usize) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::PROGRAM_LIMIT_EXCEEDED,
        format!("a row of {bytes} bytes is too large for a table"),
    )
    .hint("row_bytes_max limits the size of a row")
}
