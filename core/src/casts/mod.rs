//! Casts between Arrow types with PostgreSQL's semantics: rounding, range checks and text formats.
//!
//! Arrow's own casts truncate a decimal to an integer, turn a large double into an infinite REAL, and use
//! other text formats for times. Every conversion to another type goes through this module: CAST in a
//! statement, the columns of a write, parameters and defaults.
//!
//! | file | its one job |
//! |---|---|
//! | `numbers` | among integers, floats, decimals and booleans, and from text to them |
//! | `times` | from text to dates, times, timestamps and intervals |
//! | `texts` | from any type to text |
//!
//! Invariant: a value that does not fit is an error (22003, 22P02, 22007); only [`try_cast`] makes it NULL.

mod numbers;
mod texts;
pub(crate) mod times;

pub(crate) use numbers::{divide, parse_decimal, rescale};

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, ListArray, StringArray, new_empty_array,
    new_null_array,
};
use arrow::compute::{CastOptions, can_cast_types, cast_with_options, concat};
use arrow::datatypes::DataType;
use arrow::util::display::FormatOptions;

use crate::error::{Error, ErrorKind, Result, SqlState};

/// The Arrow type of a UUID.
pub(crate) const UUID: DataType = DataType::FixedSizeBinary(16);

/// Returns whether Arrow's own cast from one type to the other matches PostgreSQL's and never fails.
pub(crate) fn is_plain(from: &DataType, to: &DataType) -> bool {
    use DataType as T;
    if from == to || matches!(from, T::Null) {
        return true;
    }
    match (from, to) {
        (from, to) if is_text(from) && is_text(to) => true,
        (from, to) if from.is_integer() && to.is_floating() => true,
        (from, to) if (from.is_integer() || is_decimal(from)) && (to.is_integer() || is_decimal(to)) => {
            keeps_all(from, to)
        }
        (T::Boolean, to) => to.is_integer(),
        (T::Float16 | T::Float32, T::Float32 | T::Float64) => true,
        (T::Timestamp(from, _), T::Timestamp(to, _)) => !times::is_coarser(*to, *from),
        (T::Date32, T::Timestamp(..)) | (T::Timestamp(..), T::Date32) => true,
        (T::Time32(_) | T::Time64(_), T::Time32(_) | T::Time64(_)) => true,
        (T::Duration(_), T::Duration(_) | T::Interval(_)) => true,
        (T::Dictionary(_, from), to) => is_plain(from, to),
        (from, T::Dictionary(_, to)) => is_plain(from, to),
        _ => false,
    }
}

/// Whether exact numeric type `to` holds every value of exact numeric type `from`.
fn keeps_all(from: &DataType, to: &DataType) -> bool {
    let (Some((from_digits, from_scale)), Some((to_digits, to_scale))) = (digits(from), digits(to)) else {
        return false;
    };
    let is_signed = |ty: &DataType| !ty.is_unsigned_integer();
    match (from.is_integer(), to.is_integer()) {
        (true, true) if is_signed(from) && !is_signed(to) => false,
        (true, true) => {
            from_digits < to_digits || (from_digits == to_digits && is_signed(from) == is_signed(to))
        }
        (false, true) => false,
        _ => to_scale >= from_scale && to_digits - to_scale >= from_digits - from_scale,
    }
}

/// The precision and scale of an exact numeric type.
fn digits(ty: &DataType) -> Option<(i16, i16)> {
    use DataType as T;
    Some(match ty {
        T::Int8 | T::UInt8 => (3, 0),
        T::Int16 | T::UInt16 => (5, 0),
        T::Int32 | T::UInt32 => (10, 0),
        T::Int64 => (19, 0),
        T::UInt64 => (20, 0),
        T::Decimal32(digits, scale)
        | T::Decimal64(digits, scale)
        | T::Decimal128(digits, scale)
        | T::Decimal256(digits, scale) => (i16::from(*digits), i16::from(*scale)),
        _ => return None,
    })
}

/// Casts `array` to type `to`.
///
/// # Errors
/// 22003 for a number out of range, 22P02 and 22007 for malformed text, 42846 if the cast does not exist.
pub(crate) fn cast(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    use DataType as T;
    let from = array.data_type();
    if from == to {
        return Ok(Arc::clone(array));
    }
    if *from == T::Null {
        return Ok(new_null_array(to, array.len()));
    }
    if let T::Dictionary(_, value) = from {
        return cast(&arrow_cast(array, value)?, to);
    }
    if is_plain(from, to) {
        return arrow_cast(array, to);
    }
    if is_text(from) {
        let texts = arrow_cast(array, &T::Utf8)?;
        return from_text(texts.as_string::<i32>(), to);
    }
    match (from, to) {
        (_, to) if is_text(to) => {
            let texts: ArrayRef = Arc::new(texts::of(array)?);
            arrow_cast(&texts, to)
        }
        (T::Binary | T::LargeBinary | T::BinaryView, T::FixedSizeBinary(16)) => {
            let bytes = arrow_cast(array, &T::Binary)?;
            uuids_of(bytes.as_binary::<i32>())
        }
        (from, to) if is_number(from) && is_number(to) => numbers::cast(array, to),
        (T::Timestamp(..), T::Timestamp(..)) => times::rounded(array, to),
        (T::List(_), T::List(item)) => {
            let list = array.as_list::<i32>();
            let items = cast(list.values(), item.data_type())?;
            let (offsets, nulls) = (list.offsets().clone(), list.nulls().cloned());
            Ok(Arc::new(ListArray::try_new(Arc::clone(item), offsets, items, nulls)?))
        }
        (T::FixedSizeList(item, _) | T::LargeList(item), T::List(_)) => {
            cast(&arrow_cast(array, &T::List(Arc::clone(item)))?, to)
        }
        // Arrow would copy the number's bytes in memory.
        (from, T::Binary | T::LargeBinary | T::BinaryView) if is_number(from) => Err(no_cast(from, to)),
        _ => arrow_cast(array, to),
    }
}

/// Casts each value by itself; a value that `to` cannot hold becomes NULL.
///
/// # Errors
/// 42846 if the cast does not exist.
pub(crate) fn try_cast(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    match cast(array, to) {
        Err(error) if error.kind() == ErrorKind::InvalidArgument => {}
        outcome => return outcome,
    }
    let null = new_null_array(to, 1);
    let values: Vec<ArrayRef> = (0..array.len())
        .map(|row| cast(&array.slice(row, 1), to).unwrap_or_else(|_| Arc::clone(&null)))
        .collect();
    if values.is_empty() {
        return Ok(new_empty_array(to));
    }
    let values: Vec<&dyn Array> = values.iter().map(|value| value.as_ref()).collect();
    Ok(concat(&values)?)
}

/// Arrow's own cast; a value that `to` cannot hold is an error.
fn arrow_cast(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    let from = array.data_type();
    if !can_cast_types(from, to) {
        return Err(no_cast(from, to));
    }
    let options = CastOptions { safe: false, format_options: FormatOptions::default() };
    cast_with_options(array, to, &options).map_err(|error| {
        let error = Error::from(error);
        // A number can only be out of range; only text can be malformed.
        if error.kind() == ErrorKind::InvalidArgument && is_number(from) {
            return out_of_range(to);
        }
        error
    })
}

fn no_cast(from: &DataType, to: &DataType) -> Error {
    let text = format!("cannot cast {from} to {to}");
    Error::new(ErrorKind::InvalidSql, SqlState::CANNOT_COERCE, text)
}

fn from_text(texts: &StringArray, to: &DataType) -> Result<ArrayRef> {
    use DataType as T;
    match to {
        T::Binary | T::LargeBinary | T::BinaryView => {
            let bytes = texts.iter().map(|text| text.map(bytes_of_text).transpose());
            let mut builder = BinaryBuilder::with_capacity(texts.len(), texts.value_data().len());
            for value in bytes {
                builder.append_option(value?);
            }
            let bytes: ArrayRef = Arc::new(builder.finish());
            arrow_cast(&bytes, to)
        }
        T::FixedSizeBinary(16) => {
            let uuid = |text: &str| match uuid::Uuid::parse_str(text.trim()) {
                Ok(uuid) => Ok(uuid),
                Err(_) => Err(not_a_value(text, "UUID")),
            };
            uuids(texts.len(), texts.iter().map(|text| text.map(uuid).transpose()))
        }
        to if is_number(to) => numbers::from_text(texts, to),
        T::Date32 | T::Time32(_) | T::Time64(_) | T::Timestamp(..) | T::Interval(_) => {
            times::from_text(texts, to)
        }
        _ => arrow_cast(&(Arc::new(texts.clone()) as ArrayRef), to),
    }
}

/// The microseconds of a day.
pub(crate) const DAY_US: i64 = 86_400_000_000;
/// The nanoseconds of a day.
pub(crate) const DAY_NS: i128 = DAY_US as i128 * 1_000;

/// Parses text as a PostgreSQL BYTEA: `\x0aff`, or characters with the escapes `\\` and `\ooo` (octal).
///
/// # Errors
/// 22P02 for text in neither format.
pub(crate) fn bytes_of_text(text: &str) -> Result<Vec<u8>> {
    let malformed = || not_a_value(text, "BYTES");
    if let Some(digits) = text.strip_prefix("\\x") {
        let digits: Vec<u8> = digits.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let pairs = digits.chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
            u8::from_str_radix(pair, 16).ok()
        });
        return pairs.collect::<Option<Vec<u8>>>().ok_or_else(malformed);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let (byte, taken) = match after {
            [b'\\', ..] => (b'\\', 1),
            [high @ b'0'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7', ..] => {
                ((high - b'0') * 64 + (middle - b'0') * 8 + (low - b'0'), 3)
            }
            _ => return Err(malformed()),
        };
        bytes.push(byte);
        rest = after.get(taken..).unwrap_or_default();
    }
    Ok(bytes)
}

fn uuids_of(bytes: &BinaryArray) -> Result<ArrayRef> {
    let uuid = |bytes: &[u8]| match uuid::Uuid::from_slice(bytes) {
        Ok(uuid) => Ok(uuid),
        Err(_) => Err(Error::new(
            ErrorKind::InvalidArgument,
            SqlState::INVALID_TEXT_REPRESENTATION,
            format!("{} bytes are not a value of type UUID", bytes.len()),
        )),
    };
    uuids(bytes.len(), bytes.iter().map(|value| value.map(uuid).transpose()))
}

fn uuids(len: usize, values: impl Iterator<Item = Result<Option<uuid::Uuid>>>) -> Result<ArrayRef> {
    let mut builder = arrow::array::FixedSizeBinaryBuilder::with_capacity(len, 16);
    for value in values {
        match value? {
            Some(uuid) => builder.append_value(uuid.as_bytes())?,
            None => builder.append_null(),
        }
    }
    Ok(Arc::new(builder.finish()))
}

pub(crate) fn is_text(ty: &DataType) -> bool {
    matches!(ty, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

pub(crate) fn is_decimal(ty: &DataType) -> bool {
    matches!(
        ty,
        DataType::Decimal32(..)
            | DataType::Decimal64(..)
            | DataType::Decimal128(..)
            | DataType::Decimal256(..)
    )
}

/// Integers, floats, decimals and booleans.
fn is_number(ty: &DataType) -> bool {
    ty.is_integer() || ty.is_floating() || is_decimal(ty) || *ty == DataType::Boolean
}

/// Returns the error for a number outside the range of type `to`.
pub(crate) fn out_of_range(to: &DataType) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        SqlState::NUMERIC_OUT_OF_RANGE,
        format!("value out of range for type {}", name_of(to)),
    )
}

/// Returns the error for text that is not a value of type `ty`.
pub(crate) fn not_a_value(text: &str, ty: &str) -> Error {
    let shown: String = text.chars().take(64).collect();
    Error::new(
        ErrorKind::InvalidArgument,
        SqlState::INVALID_TEXT_REPRESENTATION,
        format!("\"{shown}\" is not a value of type {ty}"),
    )
}

/// The SQL name of a type, for messages.
fn name_of(ty: &DataType) -> String {
    match ty {
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Int16 => "SMALLINT".to_owned(),
        DataType::Int32 => "INTEGER".to_owned(),
        DataType::Int64 => "BIGINT".to_owned(),
        DataType::Float32 => "REAL".to_owned(),
        DataType::Float64 => "DOUBLE".to_owned(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision},{scale})"),
        DataType::Date32 => "DATE".to_owned(),
        DataType::Time64(_) | DataType::Time32(_) => "TIME".to_owned(),
        DataType::Timestamp(_, None) => "TIMESTAMP".to_owned(),
        DataType::Timestamp(_, Some(_)) => "TIMESTAMPTZ".to_owned(),
        DataType::Interval(_) => "INTERVAL".to_owned(),
        other => other.to_string(),
    }
}
