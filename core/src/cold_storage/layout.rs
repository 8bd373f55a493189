//! Where the columns that a reader wants stand in a segment.
//!
//! A segment has the columns of the table version that wrote it. Its readers want the columns of a later
//! version: some have another name, place or type, some are younger than the segment. Every column of a
//! segment has an id, so readers find it by its id. The layout of a segment is made once per table version.
//!
//! Invariant: a column is read by its id alone. A column that was dropped and added again under its name has
//! another id, and shows no value of the old one. A segment lacks only columns of later table versions; any
//! other segment is an error, not a row with NULL.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};
use parquet::arrow::{PARQUET_FIELD_ID_META_KEY, ProjectionMask};
use parquet::schema::types::SchemaDescriptor;

use super::segment::{COLUMN_ID_ROW, COLUMN_ID_SEQ, COLUMN_ID_USER, COLUMN_SEQ};
use crate::error::{Error, Result};
use crate::ids::{ColumnId, SchemaVersion, Seq};
use crate::types::{heap_bytes, is_widening};

/// The columns that a reader wants, in every segment of a table.
#[derive(Debug)]
pub struct ReadSchema {
    schema: SchemaRef,
    columns: Vec<ReadColumn>,
}

/// One wanted column.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadColumn {
    /// Its id.
    pub id: ColumnId,
    /// What segments without the column show; `None` for a column that every segment has.
    pub absent: Option<AbsentColumn>,
}

/// A column that older segments lack.
#[derive(Clone, Debug, PartialEq)]
pub struct AbsentColumn {
    /// The first table version with the column.
    pub since: SchemaVersion,
    /// The value in rows of earlier versions.
    pub value: ScalarValue,
}

impl ReadSchema {
    /// Describes the columns of `schema`, in its order.
    ///
    /// # Errors
    /// XX000 when the numbers of columns differ.
    pub fn new(schema: SchemaRef, columns: Vec<ReadColumn>) -> Result<Self> {
        if schema.fields().len() != columns.len() {
            return Err(Error::internal("a schema to read does not describe each of its columns"));
        }
        Ok(Self { schema, columns })
    }

    /// Returns the Arrow schema of the rows, which has no ids.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Returns the position of the column with that id.
    pub fn position(&self, id: ColumnId) -> Option<usize> {
        self.columns.iter().position(|column| column.id == id)
    }

    /// Returns the Arrow schema with which a segment is written: each field has its id.
    pub(super) fn file_schema(&self) -> SchemaRef {
        let fields = self.schema.fields().iter().zip(&self.columns);
        Arc::new(Schema::new(fields.map(|(field, column)| with_id(field, column.id)).collect::<Vec<_>>()))
    }
}

/// The columns that a segment has.
#[derive(Debug)]
pub(super) struct FileColumns {
    /// The schema of its rows, without ids.
    schema: SchemaRef,
    /// The id of each column.
    ids: Vec<ColumnId>,
}

impl FileColumns {
    /// Takes the ids from the fields. The error says what is wrong with the segment.
    ///
    /// The segments of the first versions have no ids. No statement could change columns then, so their
    /// columns are those of the table, numbered from 1, `_seq`, and then the owner and the hidden key.
    pub(super) fn of(fields: &[FieldRef]) -> std::result::Result<Self, String> {
        let seq = fields.iter().position(|field| field.name() == COLUMN_SEQ);
        let has_ids = fields.iter().any(|field| id_of(field).is_some());
        let (mut plain, mut ids) = (Vec::new(), Vec::new());
        for (field, number) in fields.iter().zip(1..) {
            let id = match seq {
                _ if has_ids => id_of(field).ok_or("has columns without ids")?,
                Some(seq) if ids.len() < seq => ColumnId(number),
                _ if field.name() == COLUMN_SEQ => COLUMN_ID_SEQ,
                _ if *field.data_type() == DataType::Int64 => COLUMN_ID_USER,
                _ => COLUMN_ID_ROW,
            };
            if ids.contains(&id) {
                return Err(format!("has two columns with the id {id}"));
            }
            ids.push(id);
            let mut field = Field::clone(field);
            field.metadata_mut().remove(PARQUET_FIELD_ID_META_KEY);
            plain.push(field);
        }
        Ok(Self { schema: Arc::new(Schema::new(plain)), ids })
    }

    /// Returns the schema of the rows, without ids.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Returns the position of the column with that id.
    pub(super) fn position(&self, id: ColumnId) -> Option<usize> {
        self.ids.iter().position(|known| *known == id)
    }

    /// Returns the position of a key column, whose type never changes. The error says what is wrong with the
    /// segment.
    pub(super) fn key_position(&self, id: ColumnId, ty: &DataType) -> std::result::Result<usize, String> {
        let position = self.position(id).ok_or_else(|| format!("lacks the key column with the id {id}"))?;
        let field = self.schema.field(position);
        if field.data_type() != ty {
            return Err(other_type(field.data_type(), field.name(), ty));
        }
        Ok(position)
    }

    /// Returns the memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.schema.fields().size() + self.ids.len() * size_of::<ColumnId>()
    }

    /// Returns the schema for a scan by DataFusion that wants other columns than the segment has: with ids,
    /// which [`super::SegmentColumns`] needs.
    ///
    /// DataFusion reads a binary column as text if the wanted column of that name is a text. The two may be
    /// different columns. It leaves dictionaries alone, so such a column is read as one.
    fn scan_schema(&self, wanted: &ReadSchema) -> SchemaRef {
        let is_wanted_as_text = |field: &Field| {
            let other = wanted.schema.field_with_name(field.name());
            other.is_ok_and(|other| *other.data_type() == DataType::Utf8)
        };
        let fields = self.schema.fields().iter().zip(&self.ids).map(|(field, id)| {
            let field = with_id(field, *id);
            if *field.data_type() == DataType::Binary && is_wanted_as_text(&field) {
                let (key, value) = (Box::new(DataType::Int32), Box::new(DataType::Binary));
                return field.with_data_type(DataType::Dictionary(key, value));
            }
            field
        });
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }
}

/// Returns the id in the metadata of a field.
pub(super) fn id_of(field: &Field) -> Option<ColumnId> {
    field.metadata().get(PARQUET_FIELD_ID_META_KEY)?.parse().ok().map(ColumnId)
}

fn with_id(field: &Field, id: ColumnId) -> Field {
    let mut field = field.clone();
    field.metadata_mut().insert(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string());
    field
}

/// The wanted columns in one segment.
#[derive(Debug)]
pub struct SegmentLayout {
    wanted: Arc<ReadSchema>,
    /// In the order of `wanted`.
    columns: Vec<FileColumn>,
    /// The positions of the columns to read, ascending.
    read: Vec<usize>,
    /// The number of columns in the segment.
    width: usize,
    /// The segment has exactly the wanted columns.
    is_identity: bool,
    scan_schema: SchemaRef,
}

/// Where the values of a wanted column come from.
#[derive(Debug)]
pub(super) enum FileColumn {
    /// A column of the segment.
    Stored {
        /// Its position there.
        position: usize,
        /// Its type was narrower then.
        is_cast: bool,
    },
    /// The segment is older than the column: all rows have this value.
    Absent(ScalarValue),
}

impl SegmentLayout {
    /// Finds the wanted columns in a segment. The error says what is wrong with the segment.
    pub(super) fn new(file: &FileColumns, wanted: &Arc<ReadSchema>) -> std::result::Result<Self, String> {
        let mut columns = Vec::with_capacity(wanted.columns.len());
        for (field, column) in wanted.schema.fields().iter().zip(&wanted.columns) {
            columns.push(file_column(file, field, column)?);
        }
        let mut read: Vec<usize> = columns.iter().filter_map(FileColumn::position).collect();
        read.sort_unstable();
        read.dedup();
        let is_identity = file.schema.fields() == wanted.schema.fields()
            && file.ids.iter().eq(wanted.columns.iter().map(|column| &column.id));
        let scan_schema = if is_identity { Arc::clone(&wanted.schema) } else { file.scan_schema(wanted) };
        let wanted = Arc::clone(wanted);
        Ok(Self { wanted, columns, read, width: file.ids.len(), is_identity, scan_schema })
    }

    /// Checks that a segment of a table version lacks only columns of later ones. The error says what is
    /// wrong with the segment.
    pub(super) fn check_version(&self, version: SchemaVersion) -> std::result::Result<(), String> {
        for ((column, wanted), field) in
            self.columns.iter().zip(&self.wanted.columns).zip(self.wanted.schema.fields())
        {
            let is_later = wanted.absent.as_ref().is_some_and(|absent| absent.since > version);
            if matches!(column, FileColumn::Absent(_)) && !is_later {
                return Err(lacks(field));
            }
        }
        Ok(())
    }

    /// Returns the memory that the layout takes. The wanted columns do not count: all segments share them.
    pub(super) fn bytes(&self) -> usize {
        let absent = self.columns.iter().map(|column| match column {
            FileColumn::Stored { .. } => 0,
            FileColumn::Absent(value) => heap_bytes(value),
        });
        let columns = self.columns.len() * size_of::<FileColumn>() + absent.sum::<usize>();
        let scanned = if self.is_identity { 0 } else { self.scan_schema.fields().size() };
        size_of::<Self>() + columns + self.read.len() * size_of::<usize>() + scanned
    }

    /// Returns whether this is the layout for `wanted`.
    pub(super) fn is_for(&self, wanted: &Arc<ReadSchema>) -> bool {
        Arc::ptr_eq(&self.wanted, wanted)
    }

    /// Returns whether the segment has exactly the wanted columns.
    pub fn is_identity(&self) -> bool {
        self.is_identity
    }

    /// Returns the Arrow schema with which DataFusion reads the segment: the wanted one if the segment has
    /// exactly these columns, otherwise that of the segment, with ids.
    pub fn scan_schema(&self) -> &SchemaRef {
        &self.scan_schema
    }

    /// Returns where the column at a position of the wanted schema comes from.
    pub(super) fn column(&self, position: usize) -> Option<&FileColumn> {
        self.columns.get(position)
    }

    /// Returns the columns to read, as a mask of the segment's columns.
    pub(super) fn mask(&self, schema: &SchemaDescriptor) -> ProjectionMask {
        if self.read.len() == self.width {
            return ProjectionMask::all();
        }
        ProjectionMask::roots(schema, self.read.iter().copied())
    }

    /// Returns the place, in a batch of the columns of [`SegmentLayout::mask`], of a column of the segment.
    pub(super) fn read_place(&self, position: usize) -> Option<usize> {
        self.read.binary_search(&position).ok()
    }

    /// Returns rows in the wanted schema. `batch` has the columns of [`SegmentLayout::mask`]. `commit` is
    /// the commit of a large INSERT: its segments were written before the commit had a seq.
    pub(super) fn apply(&self, batch: RecordBatch, commit: Option<Seq>) -> Result<RecordBatch> {
        if self.is_identity && commit.is_none() {
            return Ok(batch);
        }
        let rows = batch.num_rows();
        let missing = || Error::internal("rows of a segment lack a column");
        let mut columns = Vec::with_capacity(self.columns.len());
        for (column, field) in self.columns.iter().zip(self.wanted.schema.fields()) {
            columns.push(match column {
                FileColumn::Absent(value) => value.to_array_of_size(rows)?,
                FileColumn::Stored { position, is_cast } => {
                    let place = self.read_place(*position).ok_or_else(missing)?;
                    let stored = batch.columns().get(place).ok_or_else(missing)?;
                    if *is_cast { cast(stored, field.data_type())? } else { Arc::clone(stored) }
                }
            });
        }
        if let (Some(commit), Some(place)) = (commit, self.wanted.position(COLUMN_ID_SEQ))
            && let Some(seqs) = columns.get_mut(place)
        {
            let seq = i64::try_from(commit.0).unwrap_or(i64::MAX);
            *seqs = Arc::new(Int64Array::from_value(seq, rows));
        }
        Ok(RecordBatch::try_new(Arc::clone(&self.wanted.schema), columns)?)
    }

    /// Returns the bytes of a row in the columns at `positions`; `widths` are those of the segment's columns.
    pub(super) fn row_bytes(&self, positions: &[usize], widths: &[usize]) -> usize {
        let columns = positions.iter().filter_map(|position| self.columns.get(*position));
        let bytes = columns.map(|column| match column {
            FileColumn::Stored { position, .. } => widths.get(*position).copied().unwrap_or_default(),
            FileColumn::Absent(value) => heap_bytes(value),
        });
        bytes.fold(0, usize::saturating_add)
    }

    /// Returns the statistics of the wanted columns, from those of all columns of the segment. Nothing is
    /// known of columns that are cast or absent.
    pub(super) fn statistics(&self, file: &Statistics) -> Statistics {
        let known = |column: &FileColumn| match column {
            FileColumn::Stored { position, is_cast: false } => file.column_statistics.get(*position).cloned(),
            FileColumn::Stored { .. } | FileColumn::Absent(_) => None,
        };
        let columns = self.columns.iter();
        Statistics {
            num_rows: file.num_rows,
            total_byte_size: file.total_byte_size,
            column_statistics: columns
                .map(|column| known(column).unwrap_or_else(ColumnStatistics::new_unknown))
                .collect(),
        }
    }
}

impl FileColumn {
    fn position(&self) -> Option<usize> {
        match self {
            Self::Stored { position, .. } => Some(*position),
            Self::Absent(_) => None,
        }
    }
}

fn file_column(
    file: &FileColumns,
    field: &Field,
    column: &ReadColumn,
) -> std::result::Result<FileColumn, String> {
    let Some(position) = file.position(column.id) else {
        let absent = column.absent.as_ref().ok_or_else(|| lacks(field))?;
        return Ok(FileColumn::Absent(absent.value.clone()));
    };
    let (stored, wanted) = (file.schema.field(position).data_type(), field.data_type());
    let values = match stored {
        DataType::Dictionary(_, values) => &**values,
        values => values,
    };
    if values != wanted && !is_widening(values, wanted) {
        return Err(other_type(stored, field.name(), wanted));
    }
    Ok(FileColumn::Stored { position, is_cast: stored != wanted })
}

fn lacks(field: &Field) -> String {
    format!("lacks the column \"{}\"", field.name())
}

fn other_type(stored: &DataType, column: &str, wanted: &DataType) -> String {
    format!("has values of type {stored} in column \"{column}\", not {wanted}")
}

#[cfg(test)]
mod tests;
