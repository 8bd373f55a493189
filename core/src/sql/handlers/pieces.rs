//! Rows on their way into a table, in pieces small enough that a statement's limits can be held to.
//!
//! A batch may be far larger in the table's types than as it came: a column that is left out, NULLs and dictionaries take next to
//! nothing, an EMBEDDING takes its whole width. So no batch is completed whole; what has been written is counted after each piece.
//!
//! Invariant: a piece has at most about [`PIECE_BYTES`] before and after its columns take the table's types, or it is one row.

use datafusion::arrow::array::RecordBatch;

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::schema_registry::{ColumnDefault, ColumnDefinition, TableDefinition};
use crate::tables::batch_value_bytes;
use crate::types::ColumnType;

/// What a piece aims at.
const PIECE_BYTES: usize = 16 << 20;
/// How much longer than its value a text may be: that of BYTES is twice as long, that of an EMBEDDING about four times.
const TEXT_FACTOR: usize = 4;
/// What every type but EMBEDDING has at least room in: a DECIMAL has 16 bytes, a generated text 26.
const COLUMN_BYTES: usize = 32;

/// How rows are cut.
#[derive(Clone, Copy, Debug)]
pub(in crate::sql) struct Pieces {
    rows_max: usize,
    /// A row beyond this fits no table.
    row_bytes_max: usize,
}

impl Pieces {
    /// The pieces in which rows of a table are completed: of fewer rows where its columns are wide.
    pub(in crate::sql) fn of(definition: &TableDefinition, config: &Config) -> Self {
        let row_bytes = definition.columns.iter().map(completed_bytes).fold(0, usize::saturating_add);
        let rows_max = (PIECE_BYTES / row_bytes.max(1)).clamp(1, config.batch_rows.max(1));
        Self { rows_max, row_bytes_max: config.row_bytes_max.saturating_mul(TEXT_FACTOR) }
    }

    /// The most rows of a piece.
    pub(in crate::sql) fn rows_max(self) -> usize {
        self.rows_max
    }

    /// Hands over the rows of `batch`, piece by piece; a batch of no rows is one piece.
    ///
    /// # Errors
    /// 54000 for a row that is too large for any table, and the first failure of `take`.
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

/// About how many bytes a value of the column takes as an array, whether it is given or left out.
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
    .hint("the largest row is row_bytes_max")
}
