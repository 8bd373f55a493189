//! Builds the keys of segment rows from their columns.
//!
//! Invariant: the key of a row in a segment is the key that it had in the store.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int64Type};
use bytes::Bytes;

use super::layout::ReadSchema;
use super::segment::{COLUMN_ID_ROW, COLUMN_ID_USER};
use crate::error::{Error, Result};
use crate::ids::{ColumnId, ScopeId, TableId};
use crate::storage::keys::{KeyEncoder, scope_prefix};

/// How the key of a segment row is built from its columns.
#[derive(Clone, Debug)]
pub struct SegmentKeys {
    table: TableId,
    /// `None` for hidden keys.
    encoder: Option<KeyEncoder>,
    /// The key columns, in key order; or the hidden key.
    columns: Vec<ColumnId>,
    /// The column with the owner's id; `None` when all rows are shared.
    scope: Option<ColumnId>,
}

impl SegmentKeys {
    /// Describes primary keys of `columns`, in key order. Scoped rows have an owner.
    pub fn primary(table: TableId, encoder: KeyEncoder, columns: Vec<ColumnId>, is_scoped: bool) -> Self {
        Self { table, encoder: Some(encoder), columns, scope: is_scoped.then_some(COLUMN_ID_USER) }
    }

    /// Describes hidden keys. Scoped rows have an owner.
    pub fn hidden(table: TableId, is_scoped: bool) -> Self {
        let scope = is_scoped.then_some(COLUMN_ID_USER);
        Self { table, encoder: None, columns: vec![COLUMN_ID_ROW], scope }
    }

    /// Returns the columns that make up the key, with their types.
    pub(super) fn columns(&self) -> impl Iterator<Item = (ColumnId, DataType)> {
        let types = match &self.encoder {
            Some(encoder) => encoder.types().iter().map(|ty| ty.arrow()).collect(),
            None => vec![DataType::FixedSizeBinary(12)],
        };
        let scope = self.scope.map(|id| (id, DataType::Int64));
        self.columns.iter().copied().zip(types).chain(scope)
    }

    /// Returns the keys of the rows of a batch with the columns of `schema`.
    ///
    /// # Errors
    /// XX000 when a key column is missing or has another type.
    pub fn of_rows(&self, batch: &RecordBatch, schema: &ReadSchema) -> Result<Vec<Bytes>> {
        self.of_columns(batch.num_rows(), |id| batch.columns().get(schema.position(id)?))
    }

    /// Returns the keys of rows whose columns `column` finds by their ids.
    pub(super) fn of_columns<'a>(
        &self,
        rows: usize,
        column: impl Fn(ColumnId) -> Option<&'a ArrayRef>,
    ) -> Result<Vec<Bytes>> {
        let missing = || Error::internal("a batch does not have the key columns of its segment");
        let scopes = match self.scope {
            None => None,
            Some(id) => {
                let array = column(id).ok_or_else(missing)?;
                Some(array.as_primitive_opt::<Int64Type>().ok_or_else(missing)?.values())
            }
        };
        let scope_of = |row: usize| match scopes {
            None => ScopeId::SHARED,
            Some(scopes) => {
                ScopeId(scopes.get(row).and_then(|scope| u64::try_from(*scope).ok()).unwrap_or_default())
            }
        };
        let columns: Vec<ArrayRef> = self
            .columns
            .iter()
            .map(|id| column(*id).map(Arc::clone).ok_or_else(missing))
            .collect::<Result<_>>()?;
        match (&self.encoder, columns.as_slice()) {
            (Some(encoder), columns) => encoder.encode_each(self.table, scope_of, columns),
            (None, [hidden]) => {
                let hidden = hidden.as_fixed_size_binary_opt().ok_or_else(missing)?;
                if hidden.len() != rows {
                    return Err(missing());
                }
                let key = |row| [&scope_prefix(self.table, scope_of(row))[..], hidden.value(row)].concat();
                Ok((0..rows).map(|row| Bytes::from(key(row))).collect())
            }
            (None, _) => Err(missing()),
        }
    }
}
