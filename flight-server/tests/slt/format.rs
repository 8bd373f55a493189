//! Formats values from the wire for a `.slt` file.
//!
//! NULL is `NULL`, an empty text `(empty)`; bytes are lower-case hexadecimal digits; a 16-byte value is a
//! UUID; arrow formats everything else: `2024-02-29T12:00:00`, `1.0`, `[1.0, 2.5]`.

use std::fmt::Write;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use sqllogictest::ColumnType;

/// The letter of a column in a `query` line; checked strictly against the type on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireType {
    /// `B`
    Boolean,
    /// `I`: any integer
    Integer,
    /// `R`: float or decimal
    Real,
    /// `T`
    Text,
    /// `P`: timestamp with or without time zone
    Timestamp,
    /// `D`
    Date,
    /// `?`: anything else
    Other,
}

impl ColumnType for WireType {
    fn from_char(letter: char) -> Option<Self> {
        match letter {
            'B' => Some(Self::Boolean),
            'I' => Some(Self::Integer),
            'R' => Some(Self::Real),
            'T' => Some(Self::Text),
            'P' => Some(Self::Timestamp),
            'D' => Some(Self::Date),
            '?' => Some(Self::Other),
            _ => None,
        }
    }

    fn to_char(&self) -> char {
        match self {
            Self::Boolean => 'B',
            Self::Integer => 'I',
            Self::Real => 'R',
            Self::Text => 'T',
            Self::Timestamp => 'P',
            Self::Date => 'D',
            Self::Other => '?',
        }
    }
}

impl WireType {
    pub(crate) fn of(data_type: &DataType) -> Self {
        match data_type {
            DataType::Boolean => Self::Boolean,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Self::Text,
            DataType::Timestamp(_, _) => Self::Timestamp,
            DataType::Date32 | DataType::Date64 => Self::Date,
            other if other.is_integer() => Self::Integer,
            other if other.is_numeric() => Self::Real,
            _ => Self::Other,
        }
    }
}

/// Returns the rows of a batch as text, with the columns in order.
pub(crate) fn rows(batch: &RecordBatch) -> Result<Vec<Vec<String>>, ArrowError> {
    let options = FormatOptions::default().with_display_error(false).with_null("NULL");
    let formatters = batch
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column.as_ref(), &options))
        .collect::<Result<Vec<_>, _>>()?;
    let mut rows = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let mut cells = Vec::with_capacity(formatters.len());
        for (column, formatter) in batch.columns().iter().zip(&formatters) {
            cells.push(if column.is_null(row) {
                "NULL".to_owned()
            } else if let DataType::FixedSizeBinary(16) = column.data_type() {
                uuid(column.as_fixed_size_binary().value(row))
            } else {
                match formatter.value(row).try_to_string()? {
                    text if text.is_empty() => "(empty)".to_owned(),
                    text => text,
                }
            });
        }
        rows.push(cells);
    }
    Ok(rows)
}

fn uuid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a String does not fail.
        write!(text, "{byte:02x}").unwrap_or_default();
    }
    text
}
