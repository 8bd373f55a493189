//! Decodes stored rows into Arrow columns: only the requested columns, for rows of any version of the table.
//!
//! Invariant: no input panics; damaged bytes are an error of kind `Corruption`.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryBuilder, BooleanBuilder, FixedSizeBinaryBuilder, FixedSizeListBuilder,
    Float32Builder, PrimitiveBuilder, StringBuilder,
};
use arrow::compute::concat;
use arrow::datatypes::{
    ArrowPrimitiveType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type,
    Int64Type, Time64MicrosecondType, TimestampMicrosecondType,
};
use datafusion::common::ScalarValue;

use super::rows::{RowHeader, RowLayout, damaged};
use crate::error::{Error, Result};
use crate::ids::{ColumnId, SchemaVersion};
use crate::types::{ColumnType, is_widening};

/// A column to build.
#[derive(Clone, Debug)]
pub enum Output {
    /// A column of the table.
    Column {
        /// Its id.
        id: ColumnId,
        /// Its type.
        ty: ColumnType,
        /// The value for rows written before the column was added.
        absent: ScalarValue,
    },
    /// The seq of the commit that wrote the row: Int64, never NULL.
    Seq,
    /// The row's key: Binary, never NULL.
    Key,
    /// The encoded row: Binary, never NULL.
    Value,
    /// The place of a cold row: Int64, always NULL, because decoded rows are hot.
    Place,
}

/// Builds Arrow columns from stored rows, in push order.
pub struct RowDecoder {
    outputs: Vec<Output>,
    builders: Vec<Builder>,
    versions: Vec<VersionPlan>,
    newest: SchemaVersion,
    rows: usize,
}

/// How to read the rows of one layout.
struct VersionPlan {
    since: SchemaVersion,
    nulls_bytes: usize,
    /// The columns up to the last requested one.
    columns: Vec<StoredColumn>,
    /// Builders of columns that this version does not have.
    absent: Vec<usize>,
    /// All columns are read, so no byte may follow the last one.
    reads_all: bool,
}

/// A column of one layout.
struct StoredColumn {
    ty: ColumnType,
    /// Its builder; `None` if the column is skipped.
    builder: Option<usize>,
    /// The type of the builder, if the column's type was changed later.
    widened_to: Option<ColumnType>,
}

impl RowDecoder {
    /// Returns a decoder for versions up to `newest`. `layouts` are oldest first; `outputs` name no column
    /// twice.
    pub fn new(outputs: Vec<Output>, newest: SchemaVersion, layouts: &[RowLayout]) -> Self {
        let builders = outputs.iter().map(Builder::new).collect();
        let versions = layouts.iter().map(|layout| VersionPlan::new(&outputs, layout)).collect();
        Self { outputs, builders, versions, newest, rows: 0 }
    }

    /// Returns the number of rows pushed since the last [`RowDecoder::finish`].
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Returns whether no row was pushed since the last [`RowDecoder::finish`].
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Adds a stored row. After an error the decoder must not be used.
    ///
    /// # Errors
    /// `Corruption` when the bytes are damaged or no layout matches their version.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let (header, rest) = RowHeader::read(value)?;
        let plan = self
            .versions
            .iter()
            .rfind(|plan| plan.since <= header.version)
            .filter(|_| header.version <= self.newest)
            .ok_or_else(|| {
                Error::corruption(format!("a stored row has the unknown version {}", header.version))
            })?;
        let (nulls, body) = rest.split_at_checked(plan.nulls_bytes).ok_or_else(damaged)?;
        let mut reader = RowReader { rest: body };
        for (position, column) in plan.columns.iter().enumerate() {
            let null = nulls.get(position / 8).is_some_and(|byte| byte >> (position % 8) & 1 == 1);
            match (column.builder.and_then(|index| self.builders.get_mut(index)), column.widened_to) {
                (Some(builder), _) if null => builder.push_null(),
                (Some(builder), None) => builder.push(&mut reader)?,
                (Some(builder), Some(wider)) => builder.push_widened(column.ty, wider, &mut reader)?,
                (None, _) if null => {}
                (None, _) => reader.skip(column.ty)?,
            }
        }
        if plan.reads_all && !reader.rest.is_empty() {
            return Err(damaged());
        }
        for index in &plan.absent {
            if let Some(builder) = self.builders.get_mut(*index) {
                builder.push_absent();
            }
        }
        for builder in &mut self.builders {
            match builder {
                Builder::Seq(seqs) => {
                    seqs.append_value(i64::try_from(header.seq.0).map_err(|_| damaged())?);
                }
                Builder::Key(keys) => keys.append_value(key),
                Builder::Value(values) => values.append_value(value),
                Builder::Place(places) => places.append_null(),
                _ => {}
            }
        }
        self.rows += 1;
        Ok(())
    }

    /// Returns the columns of the rows pushed since the last call, in the order of the outputs.
    ///
    /// # Errors
    /// `Internal` when the value of an added column does not have the column's type.
    pub fn finish(&mut self) -> Result<Vec<ArrayRef>> {
        self.rows = 0;
        self.outputs.iter().zip(&mut self.builders).map(|(output, builder)| builder.finish(output)).collect()
    }
}

impl VersionPlan {
    fn new(outputs: &[Output], layout: &RowLayout) -> Self {
        let wants = |wanted: ColumnId| {
            outputs.iter().position(|output| matches!(output, Output::Column { id, .. } if *id == wanted))
        };
        let mut columns: Vec<StoredColumn> = layout
            .columns
            .iter()
            .map(|(id, ty)| {
                let builder = wants(*id);
                let widened_to = match builder.and_then(|index| outputs.get(index)) {
                    Some(Output::Column { ty: wanted, .. }) if wanted != ty => Some(*wanted),
                    _ => None,
                };
                StoredColumn { ty: *ty, builder, widened_to }
            })
            .collect();
        let needed = columns.iter().rposition(|column| column.builder.is_some()).map_or(0, |last| last + 1);
        columns.truncate(needed);
        let absent = outputs
            .iter()
            .enumerate()
            .filter(|(_, output)| match output {
                Output::Column { id, .. } => !layout.columns.iter().any(|(present, _)| present == id),
                Output::Seq | Output::Key | Output::Value | Output::Place => false,
            })
            .map(|(index, _)| index)
            .collect();
        Self {
            since: layout.since,
            nulls_bytes: layout.columns.len().div_ceil(8),
            reads_all: columns.len() == layout.columns.len(),
            columns,
            absent,
        }
    }
}

struct RowReader<'a> {
    rest: &'a [u8],
}

impl<'a> RowReader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or_else(damaged)?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn take_slice(&mut self, length: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or_else(damaged)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn variable(&mut self) -> Result<&'a [u8]> {
        let length = u32::from_le_bytes(self.take()?);
        self.take_slice(usize::try_from(length).map_err(|_| damaged())?)
    }

    fn skip(&mut self, ty: ColumnType) -> Result<()> {
        let length = match ty {
            ColumnType::Boolean => 1,
            ColumnType::SmallInt => 2,
            ColumnType::Integer | ColumnType::Date | ColumnType::Real => 4,
            ColumnType::BigInt
            | ColumnType::Time
            | ColumnType::Timestamp
            | ColumnType::TimestampTz
            | ColumnType::Double => 8,
            ColumnType::Decimal { .. } | ColumnType::Uuid => 16,
            ColumnType::Embedding(dimensions) => 4 * usize::from(dimensions),
            ColumnType::Text | ColumnType::Bytes | ColumnType::Json | ColumnType::File => {
                return self.variable().map(drop);
            }
        };
        self.take_slice(length).map(drop)
    }
}

/// A column under construction. Absent values are filled in at the end: mostly all rows need them, or none.
enum Builder {
    Boolean(BooleanBuilder, Absences),
    SmallInt(PrimitiveBuilder<Int16Type>, Absences),
    Integer(PrimitiveBuilder<Int32Type>, Absences),
    BigInt(PrimitiveBuilder<Int64Type>, Absences),
    Real(PrimitiveBuilder<Float32Type>, Absences),
    Double(PrimitiveBuilder<Float64Type>, Absences),
    Decimal(PrimitiveBuilder<Decimal128Type>, Absences),
    Timestamp(PrimitiveBuilder<TimestampMicrosecondType>, Absences),
    Date(PrimitiveBuilder<Date32Type>, Absences),
    Time(PrimitiveBuilder<Time64MicrosecondType>, Absences),
    Text(StringBuilder, Absences),
    Bytes(BinaryBuilder, Absences),
    Uuid(FixedSizeBinaryBuilder, Absences),
    Embedding(FixedSizeListBuilder<Float32Builder>, Absences),
    Seq(PrimitiveBuilder<Int64Type>),
    Key(BinaryBuilder),
    Value(BinaryBuilder),
    Place(PrimitiveBuilder<Int64Type>),
}

/// The row positions, ascending, whose version lacks the column; they were pushed as NULL.
type Absences = Vec<usize>;

/// Applies the same expression to the builder of any table column.
macro_rules! with_builder {
    ($self:expr, $builder:ident, $absences:ident => $body:expr, $otherwise:expr) => {
        match $self {
            Builder::Boolean($builder, $absences) => $body,
            Builder::SmallInt($builder, $absences) => $body,
            Builder::Integer($builder, $absences) => $body,
            Builder::BigInt($builder, $absences) => $body,
            Builder::Real($builder, $absences) => $body,
            Builder::Double($builder, $absences) => $body,
            Builder::Decimal($builder, $absences) => $body,
            Builder::Timestamp($builder, $absences) => $body,
            Builder::Date($builder, $absences) => $body,
            Builder::Time($builder, $absences) => $body,
            Builder::Text($builder, $absences) => $body,
            Builder::Bytes($builder, $absences) => $body,
            Builder::Uuid($builder, $absences) => $body,
            Builder::Embedding($builder, $absences) => $body,
            Builder::Seq(_) | Builder::Key(_) | Builder::Value(_) | Builder::Place(_) => $otherwise,
        }
    };
}

impl Builder {
    fn new(output: &Output) -> Self {
        let ty = match output {
            Output::Seq => return Self::Seq(PrimitiveBuilder::new()),
            Output::Key => return Self::Key(BinaryBuilder::new()),
            Output::Value => return Self::Value(BinaryBuilder::new()),
            Output::Place => return Self::Place(PrimitiveBuilder::new()),
            Output::Column { ty, .. } => *ty,
        };
        let none = Vec::new();
        match ty {
            ColumnType::Boolean => Self::Boolean(BooleanBuilder::new(), none),
            ColumnType::SmallInt => Self::SmallInt(primitive(ty), none),
            ColumnType::Integer => Self::Integer(primitive(ty), none),
            ColumnType::BigInt => Self::BigInt(primitive(ty), none),
            ColumnType::Real => Self::Real(primitive(ty), none),
            ColumnType::Double => Self::Double(primitive(ty), none),
            ColumnType::Decimal { .. } => Self::Decimal(primitive(ty), none),
            ColumnType::Timestamp | ColumnType::TimestampTz => Self::Timestamp(primitive(ty), none),
            ColumnType::Date => Self::Date(primitive(ty), none),
            ColumnType::Time => Self::Time(primitive(ty), none),
            ColumnType::Text | ColumnType::Json | ColumnType::File => Self::Text(StringBuilder::new(), none),
            ColumnType::Bytes => Self::Bytes(BinaryBuilder::new(), none),
            ColumnType::Uuid => Self::Uuid(FixedSizeBinaryBuilder::new(16), none),
            ColumnType::Embedding(dimensions) => {
                Self::Embedding(FixedSizeListBuilder::new(Float32Builder::new(), i32::from(dimensions)), none)
            }
        }
    }

    fn push(&mut self, reader: &mut RowReader<'_>) -> Result<()> {
        match self {
            Self::Boolean(builder, _) => match reader.take()? {
                [0] => builder.append_value(false),
                [1] => builder.append_value(true),
                _ => return Err(damaged()),
            },
            Self::SmallInt(builder, _) => builder.append_value(i16::from_le_bytes(reader.take()?)),
            Self::Integer(builder, _) => builder.append_value(i32::from_le_bytes(reader.take()?)),
            Self::BigInt(builder, _) => builder.append_value(i64::from_le_bytes(reader.take()?)),
            Self::Real(builder, _) => builder.append_value(f32::from_le_bytes(reader.take()?)),
            Self::Double(builder, _) => builder.append_value(f64::from_le_bytes(reader.take()?)),
            Self::Decimal(builder, _) => builder.append_value(i128::from_le_bytes(reader.take()?)),
            Self::Timestamp(builder, _) => builder.append_value(i64::from_le_bytes(reader.take()?)),
            Self::Date(builder, _) => builder.append_value(i32::from_le_bytes(reader.take()?)),
            Self::Time(builder, _) => builder.append_value(i64::from_le_bytes(reader.take()?)),
            Self::Text(builder, _) => {
                builder.append_value(std::str::from_utf8(reader.variable()?).map_err(|_| damaged())?);
            }
            Self::Bytes(builder, _) => builder.append_value(reader.variable()?),
            Self::Uuid(builder, _) => builder.append_value(reader.take::<16>()?)?,
            Self::Embedding(builder, _) => {
                for _ in 0..builder.value_length() {
                    let element = f32::from_le_bytes(reader.take()?);
                    builder.values().append_value(element);
                }
                builder.append(true);
            }
            Self::Seq(_) | Self::Key(_) | Self::Value(_) | Self::Place(_) => {}
        }
        Ok(())
    }

    /// Pushes a value that was stored with the type `stored`, as one of the builder's type `wider`.
    fn push_widened(
        &mut self,
        stored: ColumnType,
        wider: ColumnType,
        reader: &mut RowReader<'_>,
    ) -> Result<()> {
        let (from, to) = (stored.arrow(), wider.arrow());
        if from != to && !is_widening(&from, &to) {
            return Err(Error::corruption(format!("a stored row has a value of type {stored}, not {wider}")));
        }
        match (&mut *self, stored) {
            (Self::Integer(builder, _), ColumnType::SmallInt) => {
                builder.append_value(i16::from_le_bytes(reader.take()?).into());
            }
            (Self::BigInt(builder, _), ColumnType::SmallInt) => {
                builder.append_value(i16::from_le_bytes(reader.take()?).into());
            }
            (Self::BigInt(builder, _), ColumnType::Integer) => {
                builder.append_value(i32::from_le_bytes(reader.take()?).into());
            }
            (Self::Double(builder, _), ColumnType::Real) => {
                builder.append_value(f32::from_le_bytes(reader.take()?).into());
            }
            // The other types are stored in the same form.
            (builder, _) => builder.push(reader)?,
        }
        Ok(())
    }

    fn push_null(&mut self) {
        match self {
            Self::Boolean(builder, _) => builder.append_null(),
            Self::SmallInt(builder, _) => builder.append_null(),
            Self::Integer(builder, _) => builder.append_null(),
            Self::BigInt(builder, _) => builder.append_null(),
            Self::Real(builder, _) => builder.append_null(),
            Self::Double(builder, _) => builder.append_null(),
            Self::Decimal(builder, _) => builder.append_null(),
            Self::Timestamp(builder, _) => builder.append_null(),
            Self::Date(builder, _) => builder.append_null(),
            Self::Time(builder, _) => builder.append_null(),
            Self::Text(builder, _) => builder.append_null(),
            Self::Bytes(builder, _) => builder.append_null(),
            Self::Uuid(builder, _) => builder.append_null(),
            Self::Embedding(builder, _) => {
                for _ in 0..builder.value_length() {
                    builder.values().append_value(0.0);
                }
                builder.append(false);
            }
            Self::Seq(_) | Self::Key(_) | Self::Value(_) | Self::Place(_) => {}
        }
    }

    fn push_absent(&mut self) {
        use arrow::array::ArrayBuilder;
        with_builder!(self, builder, absences => absences.push(builder.len()), ());
        self.push_null();
    }

    fn finish(&mut self, output: &Output) -> Result<ArrayRef> {
        let (array, absences): (ArrayRef, Absences) = match self {
            Self::Seq(builder) | Self::Place(builder) => return Ok(Arc::new(builder.finish())),
            Self::Key(builder) | Self::Value(builder) => return Ok(Arc::new(builder.finish())),
            _ => with_builder!(
                self, builder, absences => (Arc::new(builder.finish()) as ArrayRef, std::mem::take(absences)),
                return Err(Error::internal("a column has no builder"))
            ),
        };
        match output {
            Output::Column { absent, .. } if !absences.is_empty() && !absent.is_null() => {
                fill(&array, &absences, absent)
            }
            _ => Ok(array),
        }
    }
}

/// Returns `array` with `value` in the rows of `absences`, which are ascending.
fn fill(array: &ArrayRef, absences: &[usize], value: &ScalarValue) -> Result<ArrayRef> {
    let filled = value.to_array_of_size(absences.len())?;
    let mut pieces = Vec::new();
    let (mut next, mut used) = (0, 0);
    for run in absences.chunk_by(|before, after| before + 1 == *after) {
        let start = run.first().copied().unwrap_or(next);
        pieces.push(array.slice(next, start - next));
        pieces.push(filled.slice(used, run.len()));
        used += run.len();
        next = start + run.len();
    }
    pieces.push(array.slice(next, array.len() - next));
    let pieces: Vec<&dyn Array> = pieces.iter().map(|piece| piece.as_ref()).collect();
    Ok(concat(&pieces)?)
}

fn primitive<T: ArrowPrimitiveType>(ty: ColumnType) -> PrimitiveBuilder<T> {
    PrimitiveBuilder::new().with_data_type(ty.arrow())
}
