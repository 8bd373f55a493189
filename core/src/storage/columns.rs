//! The values of an Arrow column as plain slices, for the key and row encoders.
//!
//! Invariants: creating a [`Column`] checks its array against the [`ColumnType`], so reading a row only
//! checks bounds. Equal floats leave this module as equal bits, so orders, filters and statistics agree;
//! EMBEDDING elements are exempt.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::datatypes::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType,
};

use crate::error::{Error, Result};
use crate::types::ColumnType;

/// One column of a batch.
pub(super) struct Column<'a> {
    nulls: Option<&'a NullBuffer>,
    values: Values<'a>,
}

enum Values<'a> {
    Boolean(&'a BooleanBuffer),
    I16(&'a [i16]),
    I32(&'a [i32]),
    I64(&'a [i64]),
    F32(&'a [f32]),
    F64(&'a [f64]),
    I128(&'a [i128]),
    Variable { offsets: &'a [i32], data: &'a [u8] },
    Uuids(&'a [u8]),
    Embeddings { dimensions: usize, elements: &'a [f32] },
}

/// One non-NULL value.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Boolean(bool),
    I16(i16),
    I32(i32),
    I64(i64),
    F32(f32),
    F64(f64),
    I128(i128),
    Variable(&'a [u8]),
    Uuid(&'a [u8]),
    Embedding(&'a [f32]),
}

impl<'a> Column<'a> {
    /// Returns a view of `array`, which has the Arrow type of `ty`.
    ///
    /// # Errors
    /// `Internal` when it has another type: the planner casts before it writes.
    pub(super) fn new(ty: ColumnType, array: &'a ArrayRef) -> Result<Self> {
        let values = view(ty, array).ok_or_else(|| {
            Error::internal(format!("a column of type {ty} was given as Arrow {}", array.data_type()))
        })?;
        Ok(Self { nulls: array.nulls(), values })
    }

    /// Returns the value at `row`; `None` when it is NULL.
    ///
    /// # Errors
    /// `Internal` when there is no such row.
    pub(super) fn value(&self, row: usize) -> Result<Option<Value<'a>>> {
        if self.nulls.is_some_and(|nulls| row < nulls.len() && nulls.is_null(row)) {
            return Ok(None);
        }
        self.value_at(row).map(Some).ok_or_else(|| Error::internal(format!("a batch has no row {row}")))
    }

    fn value_at(&self, row: usize) -> Option<Value<'a>> {
        Some(match &self.values {
            Values::Boolean(values) => Value::Boolean((row < values.len()).then(|| values.value(row))?),
            Values::I16(values) => Value::I16(*values.get(row)?),
            Values::I32(values) => Value::I32(*values.get(row)?),
            Values::I64(values) => Value::I64(*values.get(row)?),
            Values::F32(values) => Value::F32(canonical_f32(*values.get(row)?)),
            Values::F64(values) => Value::F64(canonical_f64(*values.get(row)?)),
            Values::I128(values) => Value::I128(*values.get(row)?),
            Values::Variable { offsets, data } => {
                let start = usize::try_from(*offsets.get(row)?).ok()?;
                let end = usize::try_from(*offsets.get(row + 1)?).ok()?;
                Value::Variable(data.get(start..end)?)
            }
            Values::Uuids(data) => Value::Uuid(data.get(row * 16..row * 16 + 16)?),
            Values::Embeddings { dimensions, elements } => {
                Value::Embedding(elements.get(row * dimensions..(row + 1) * dimensions)?)
            }
        })
    }
}

fn view(ty: ColumnType, array: &ArrayRef) -> Option<Values<'_>> {
    Some(match ty {
        ColumnType::Boolean => Values::Boolean(array.as_boolean_opt()?.values()),
        ColumnType::SmallInt => Values::I16(slice::<Int16Type>(array)?),
        ColumnType::Integer => Values::I32(slice::<Int32Type>(array)?),
        ColumnType::BigInt => Values::I64(slice::<Int64Type>(array)?),
        ColumnType::Real => Values::F32(slice::<Float32Type>(array)?),
        ColumnType::Double => Values::F64(slice::<Float64Type>(array)?),
        ColumnType::Decimal { scale, .. } => {
            let decimals = array.as_primitive_opt::<Decimal128Type>()?;
            (decimals.scale() == scale).then(|| Values::I128(decimals.values()))?
        }
        ColumnType::Timestamp | ColumnType::TimestampTz => {
            Values::I64(slice::<TimestampMicrosecondType>(array)?)
        }
        ColumnType::Date => Values::I32(slice::<Date32Type>(array)?),
        ColumnType::Time => Values::I64(slice::<Time64MicrosecondType>(array)?),
        ColumnType::Text | ColumnType::Json | ColumnType::File => {
            let texts = array.as_string_opt::<i32>()?;
            Values::Variable { offsets: texts.value_offsets(), data: texts.value_data() }
        }
        ColumnType::Bytes => {
            let bytes = array.as_binary_opt::<i32>()?;
            Values::Variable { offsets: bytes.value_offsets(), data: bytes.value_data() }
        }
        ColumnType::Uuid => {
            let uuids = array.as_fixed_size_binary_opt()?;
            (uuids.value_length() == 16).then(|| Values::Uuids(uuids.value_data()))?
        }
        ColumnType::Embedding(dimensions) => {
            let lists = array.as_fixed_size_list_opt()?;
            let elements = lists.values().as_primitive_opt::<Float32Type>()?;
            (lists.value_length() == i32::from(dimensions)).then(|| Values::Embeddings {
                dimensions: usize::from(dimensions),
                elements: elements.values(),
            })?
        }
    })
}

/// Returns the representative of all floats equal to `value`: 0.0 for -0.0, one positive NaN for every NaN.
pub(super) fn canonical_f32(value: f32) -> f32 {
    // Adding zero turns -0.0 into 0.0.
    if value.is_nan() { f32::NAN.copysign(1.0) } else { value + 0.0 }
}

/// As [`canonical_f32`].
pub(super) fn canonical_f64(value: f64) -> f64 {
    if value.is_nan() { f64::NAN.copysign(1.0) } else { value + 0.0 }
}

/// Returns a column with its floats as in [`canonical_f64`]; the same array when nothing changes.
pub(crate) fn canonical(array: &ArrayRef) -> ArrayRef {
    if let Some(values) = array.as_primitive_opt::<Float64Type>() {
        let is_other = |value: &f64| value.to_bits() != canonical_f64(*value).to_bits();
        if values.values().iter().any(is_other) {
            return Arc::new(values.unary::<_, Float64Type>(canonical_f64));
        }
    } else if let Some(values) = array.as_primitive_opt::<Float32Type>() {
        let is_other = |value: &f32| value.to_bits() != canonical_f32(*value).to_bits();
        if values.values().iter().any(is_other) {
            return Arc::new(values.unary::<_, Float32Type>(canonical_f32));
        }
    }
    Arc::clone(array)
}

fn slice<T: ArrowPrimitiveType>(array: &ArrayRef) -> Option<&[T::Native]> {
    Some(array.as_primitive_opt::<T>()?.values())
}
