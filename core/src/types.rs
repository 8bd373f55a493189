//! The column types: their SQL names, their Arrow types, and parsing of their literals.
//!
//! Invariant: each column type has exactly one Arrow type, never a view type, so a column goes from storage
//! to the wire without a cast. The serialised names are part of the stored catalog and never change.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, Float32Array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast;
use serde::{Deserialize, Serialize};

use crate::casts::cast;
use crate::error::{Error, ErrorKind, Result, SqlState};

/// The Arrow field metadata key that carries the SQL type when the Arrow type alone is ambiguous.
pub const DATA_TYPE_METADATA_KEY: &str = "kalam_data_type";

/// The most dimensions of an embedding.
pub const EMBEDDING_DIMENSIONS_MAX: u16 = 8_192;

/// The most digits of a decimal.
pub const DECIMAL_PRECISION_MAX: u8 = 38;

const SUPPORTED: &str = "supported types are BOOLEAN, SMALLINT, INTEGER, BIGINT, REAL, DOUBLE, \
                         DECIMAL(p,s), TEXT, VARCHAR(n), BYTES, JSON, TIMESTAMP, \
                         TIMESTAMPTZ, DATE, TIME, UUID, EMBEDDING(n) and FILE";

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    /// `BOOLEAN`: Arrow Boolean.
    Boolean,
    /// `SMALLINT`: Arrow Int16.
    SmallInt,
    /// `INTEGER`: Arrow Int32.
    Integer,
    /// `BIGINT`: Arrow Int64.
    BigInt,
    /// `REAL`: Arrow Float32.
    Real,
    /// `DOUBLE`: Arrow Float64.
    Double,
    /// `DECIMAL(p,s)`: Arrow Decimal128.
    Decimal {
        /// Digits in total, 1 to 38.
        precision: u8,
        /// Digits after the point, 0 to `precision`.
        scale: i8,
    },
    /// `TEXT`: Arrow Utf8.
    Text,
    /// `BYTES`: Arrow Binary.
    Bytes,
    /// `JSON`: Arrow Utf8 that holds one JSON value.
    Json,
    /// `TIMESTAMP`: Arrow Timestamp(µs), wall-clock time without a zone.
    Timestamp,
    /// `TIMESTAMPTZ`: Arrow Timestamp(µs, UTC), an instant; the offset in the literal is not kept.
    TimestampTz,
    /// `DATE`: Arrow Date32.
    Date,
    /// `TIME`: Arrow Time64(µs).
    Time,
    /// `UUID`: Arrow FixedSizeBinary(16).
    Uuid,
    /// `EMBEDDING(n)`: Arrow FixedSizeList(Float32, n); its elements are never NULL.
    Embedding(u16),
    /// `FILE`: Arrow Utf8 that holds the JSON description of a stored file.
    File,
}

impl ColumnType {
    /// Returns the type's one Arrow type.
    pub fn arrow(self) -> DataType {
        match self {
            Self::Boolean => DataType::Boolean,
            Self::SmallInt => DataType::Int16,
            Self::Integer => DataType::Int32,
            Self::BigInt => DataType::Int64,
            Self::Real => DataType::Float32,
            Self::Double => DataType::Float64,
            Self::Decimal { precision, scale } => DataType::Decimal128(precision, scale),
            Self::Text | Self::Json | Self::File => DataType::Utf8,
            Self::Bytes => DataType::Binary,
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Self::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))),
            Self::Date => DataType::Date32,
            Self::Time => DataType::Time64(TimeUnit::Microsecond),
            Self::Uuid => DataType::FixedSizeBinary(16),
            Self::Embedding(dimensions) => DataType::FixedSizeList(
                Arc::new(Field::new_list_field(DataType::Float32, true)),
                i32::from(dimensions),
            ),
        }
    }

    /// Returns the type as SQL spells it, e.g. `DECIMAL(10,2)`.
    pub fn sql_name(self) -> String {
        self.to_string()
    }

    /// Returns whether a primary key may have this type: all types with a total order that is cheap to
    /// encode.
    pub fn can_be_key(self) -> bool {
        !matches!(self, Self::Json | Self::File | Self::Embedding(_))
    }

    /// Returns whether the Arrow type alone is ambiguous, so that fields carry the SQL type as metadata.
    pub fn needs_metadata(self) -> bool {
        matches!(self, Self::Json | Self::File | Self::Uuid | Self::Embedding(_))
    }

    /// Returns the type that a column definition names. [`text_length_max`] reads the length of `VARCHAR(n)`.
    ///
    /// `SERIAL` and its variants are a type with a default; callers resolve them first.
    ///
    /// # Errors
    /// 0A000 for an unsupported type, 22023 for a precision, scale or dimension out of range.
    pub fn from_sql(sql: &ast::DataType) -> Result<Self> {
        use ast::DataType as Sql;
        Ok(match sql {
            Sql::Bool | Sql::Boolean => Self::Boolean,
            Sql::SmallInt(None) | Sql::Int2(None) | Sql::Int16 => Self::SmallInt,
            Sql::Int(None) | Sql::Integer(None) | Sql::Int4(None) | Sql::MediumInt(None) | Sql::Int32 => {
                Self::Integer
            }
            Sql::BigInt(None) | Sql::Int8(None) | Sql::Int64 => Self::BigInt,
            Sql::Real | Sql::Float4 | Sql::Float32 => Self::Real,
            Sql::Float(ast::ExactNumberInfo::Precision(bits)) => match bits {
                1..=24 => Self::Real,
                25..=53 => Self::Double,
                _ => return Err(Error::invalid(format!("the precision of {sql} is not between 1 and 53"))),
            },
            Sql::Float(ast::ExactNumberInfo::None)
            | Sql::Double(ast::ExactNumberInfo::None)
            | Sql::DoublePrecision
            | Sql::Float8
            | Sql::Float64 => Self::Double,
            Sql::Decimal(info) | Sql::Numeric(info) | Sql::Dec(info) => decimal(sql, info)?,
            Sql::Text | Sql::String(None) | Sql::Clob(None) => Self::Text,
            Sql::Character(_)
            | Sql::Char(_)
            | Sql::CharacterVarying(_)
            | Sql::CharVarying(_)
            | Sql::Varchar(_)
            | Sql::Nvarchar(_) => Self::Text,
            Sql::Bytes(None) | Sql::Bytea | Sql::Blob(None) | Sql::Binary(None) | Sql::Varbinary(None) => {
                Self::Bytes
            }
            Sql::JSON | Sql::JSONB => Self::Json,
            Sql::Timestamp(precision, zone) => {
                whole_microseconds(sql, *precision)?;
                if has_zone(zone) { Self::TimestampTz } else { Self::Timestamp }
            }
            Sql::TimestampNtz(precision) => {
                whole_microseconds(sql, *precision)?;
                Self::Timestamp
            }
            Sql::Datetime(precision) => {
                whole_microseconds(sql, *precision)?;
                Self::TimestampTz
            }
            Sql::Date | Sql::Date32 => Self::Date,
            Sql::Time(precision, zone) if !has_zone(zone) => {
                whole_microseconds(sql, *precision)?;
                Self::Time
            }
            Sql::Uuid => Self::Uuid,
            Sql::Custom(name, arguments) => custom(sql, &name.to_string(), arguments)?,
            _ => return Err(unsupported_type(sql)),
        })
    }

    /// Parses a literal's text as a value of this type. The syntax is PostgreSQL's text input; `BYTES` is
    /// written as `\x0aff` and `EMBEDDING` as `[1, 2.5]`.
    ///
    /// # Errors
    /// 22P02 when the text is not a value of the type, 22003 for numbers out of range, 22007 for invalid
    /// times.
    pub fn parse_text(self, text: &str) -> Result<ScalarValue> {
        match self {
            Self::Text => Ok(ScalarValue::Utf8(Some(text.to_owned()))),
            Self::Json | Self::File => match serde_json::from_str::<serde::de::IgnoredAny>(text) {
                Ok(_) => Ok(ScalarValue::Utf8(Some(text.to_owned()))),
                Err(_) => Err(self.not_a_value(text)),
            },
            Self::Embedding(dimensions) => self.parse_embedding(dimensions, text),
            _ => {
                let array = cast(&ScalarValue::Utf8(Some(text.to_owned())).to_array()?, &self.arrow())?;
                Ok(ScalarValue::try_from_array(&array, 0)?)
            }
        }
    }

    fn parse_embedding(self, dimensions: u16, text: &str) -> Result<ScalarValue> {
        let values: Vec<f32> = serde_json::from_str(text).map_err(|_| self.not_a_value(text))?;
        if values.len() != usize::from(dimensions) {
            return Err(self
                .not_a_value(text)
                .hint(format!("it needs {dimensions} numbers, not {}", values.len())));
        }
        let list = arrow::array::FixedSizeListArray::try_new(
            Arc::new(Field::new_list_field(DataType::Float32, true)),
            i32::from(dimensions),
            Arc::new(Float32Array::from(values)),
            Some(NullBuffer::new_valid(1)),
        )?;
        debug_assert_eq!(list.len(), 1, "one literal is one list");
        Ok(ScalarValue::FixedSizeList(Arc::new(list)))
    }

    fn not_a_value(self, text: &str) -> Error {
        let shown: String = text.chars().take(64).collect();
        Error::new(
            ErrorKind::InvalidArgument,
            SqlState::INVALID_TEXT_REPRESENTATION,
            format!("\"{shown}\" is not a value of type {self}"),
        )
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Boolean => "BOOLEAN",
            Self::SmallInt => "SMALLINT",
            Self::Integer => "INTEGER",
            Self::BigInt => "BIGINT",
            Self::Real => "REAL",
            Self::Double => "DOUBLE",
            Self::Decimal { precision, scale } => return write!(f, "DECIMAL({precision},{scale})"),
            Self::Text => "TEXT",
            Self::Bytes => "BYTES",
            Self::Json => "JSON",
            Self::Timestamp => "TIMESTAMP",
            Self::TimestampTz => "TIMESTAMPTZ",
            Self::Date => "DATE",
            Self::Time => "TIME",
            Self::Uuid => "UUID",
            Self::Embedding(dimensions) => return write!(f, "EMBEDDING({dimensions})"),
            Self::File => "FILE",
        })
    }
}

/// Returns the most characters a text type such as `VARCHAR(20)` allows; `None` for types without a limit.
///
/// # Errors
/// 22023 for a length of zero or beyond `u32`.
pub fn text_length_max(sql: &ast::DataType) -> Result<Option<u32>> {
    use ast::DataType as Sql;
    let length = match sql {
        // A bare CHAR is CHAR(1) in PostgreSQL; here it is TEXT, as in the table of types in docs/sql.md.
        Sql::Character(length)
        | Sql::Char(length)
        | Sql::CharacterVarying(length)
        | Sql::CharVarying(length)
        | Sql::Varchar(length)
        | Sql::Nvarchar(length) => length,
        _ => return Ok(None),
    };
    let Some(ast::CharacterLength::IntegerLength { length, .. }) = length else {
        return Ok(None);
    };
    match u32::try_from(*length) {
        Ok(length) if length > 0 => Ok(Some(length)),
        _ => Err(Error::invalid(format!("the length of {sql} is not between 1 and {}", u32::MAX))),
    }
}

/// Returns the bytes that each value of a type takes; `None` if values have different sizes.
pub(crate) fn fixed_bytes(ty: &DataType) -> Option<usize> {
    match ty {
        DataType::Null => Some(0),
        DataType::Boolean => Some(1),
        DataType::FixedSizeBinary(bytes) => usize::try_from(*bytes).ok(),
        DataType::FixedSizeList(item, len) => {
            Some(fixed_bytes(item.data_type())?.saturating_mul(usize::try_from(*len).ok()?))
        }
        other => other.primitive_width(),
    }
}

/// Returns the memory that a value takes outside of itself.
pub(crate) fn heap_bytes(value: &ScalarValue) -> usize {
    value.size().saturating_sub(size_of::<ScalarValue>())
}

/// Returns the type in which values are sent, so that every driver reads them: no views, dictionaries,
/// run-ends, half floats or unsigned integers, not even inside lists.
pub(crate) fn wire_type(ty: &DataType) -> DataType {
    let item = |field: &Arc<Field>| {
        Arc::new(Field::new(field.name(), wire_type(field.data_type()), field.is_nullable()))
    };
    match ty {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Float16 => DataType::Float32,
        DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Dictionary(_, value) => wire_type(value),
        DataType::RunEndEncoded(_, values) => wire_type(values.data_type()),
        DataType::List(field) | DataType::ListView(field) => DataType::List(item(field)),
        DataType::LargeList(field) | DataType::LargeListView(field) => DataType::LargeList(item(field)),
        DataType::FixedSizeList(field, len) => DataType::FixedSizeList(item(field), *len),
        DataType::Map(entries, sorted) => DataType::Map(item(entries), *sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(item).collect()),
        other => other.clone(),
    }
}

/// Returns whether every value of `from` is a value of `to`, in the same order. Rows of both types can then
/// be read as rows of `to`.
pub fn is_widening(from: &DataType, to: &DataType) -> bool {
    match (from, to) {
        (DataType::Int16, DataType::Int32 | DataType::Int64)
        | (DataType::Int32, DataType::Int64)
        | (DataType::Float32, DataType::Float64) => true,
        (DataType::Decimal128(digits, scale), DataType::Decimal128(more, same)) => {
            scale == same && digits < more
        }
        _ => false,
    }
}

fn unsupported_type(sql: &ast::DataType) -> Error {
    Error::unsupported(format!("type {sql}")).hint(SUPPORTED)
}

fn has_zone(zone: &ast::TimezoneInfo) -> bool {
    matches!(zone, ast::TimezoneInfo::WithTimeZone | ast::TimezoneInfo::Tz)
}

/// Times are stored in microseconds. A coarser precision would need rounding, which is not implemented.
fn whole_microseconds(sql: &ast::DataType, precision: Option<u64>) -> Result<()> {
    match precision {
        None | Some(6) => Ok(()),
        Some(_) => Err(Error::unsupported(format!("the precision of {sql}"))
            .hint("omit it: times have microsecond precision")),
    }
}

fn decimal(sql: &ast::DataType, info: &ast::ExactNumberInfo) -> Result<ColumnType> {
    let (precision, scale) = match info {
        ast::ExactNumberInfo::None => (38, 10),
        ast::ExactNumberInfo::Precision(precision) => (*precision, 0),
        ast::ExactNumberInfo::PrecisionAndScale(precision, scale) => (*precision, *scale),
    };
    let out_of_range = || {
        Error::invalid(format!("precision and scale of {sql} are out of range"))
            .hint("precision is 1 to 38, scale is 0 to the precision")
    };
    let precision = u8::try_from(precision).map_err(|_| out_of_range())?;
    let scale = i8::try_from(scale).map_err(|_| out_of_range())?;
    let scale_fits = u8::try_from(scale).is_ok_and(|scale| scale <= precision);
    if !(1..=DECIMAL_PRECISION_MAX).contains(&precision) || !scale_fits {
        return Err(out_of_range());
    }
    Ok(ColumnType::Decimal { precision, scale })
}

/// Returns types that the parser does not know.
fn custom(sql: &ast::DataType, name: &str, arguments: &[String]) -> Result<ColumnType> {
    match (name.to_ascii_lowercase().as_str(), arguments) {
        ("file", []) => Ok(ColumnType::File),
        ("timestamptz", []) => Ok(ColumnType::TimestampTz),
        ("bytes", []) => Ok(ColumnType::Bytes),
        ("string", []) => Ok(ColumnType::Text),
        ("embedding", [dimensions]) => match dimensions.trim().parse::<u16>() {
            Ok(dimensions) if (1..=EMBEDDING_DIMENSIONS_MAX).contains(&dimensions) => {
                Ok(ColumnType::Embedding(dimensions))
            }
            _ => Err(Error::invalid(format!(
                "the dimensions of {sql} are not a number between 1 and {EMBEDDING_DIMENSIONS_MAX}"
            ))),
        },
        ("embedding", _) => {
            Err(Error::invalid("EMBEDDING needs its number of dimensions").hint("write it as EMBEDDING(768)"))
        }
        _ => Err(unsupported_type(sql)),
    }
}

#[cfg(test)]
mod tests;
