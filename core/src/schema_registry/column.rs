//! A column of a table, its default, and its initial value in rows that are older than the column.
//!
//! Invariant: a column keeps its id when its name changes, and a stored default fits the column's type.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use serde::{Deserialize, Serialize};

use crate::casts::cast;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::ColumnId;
use crate::storage::canonical;
use crate::types::ColumnType;

/// One column.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ColumnDefinition {
    /// Stable across renames, and never reused in the table.
    pub id: ColumnId,
    /// The stored name; see `names`.
    pub name: Arc<str>,
    /// Its type.
    pub ty: ColumnType,
    /// Whether NULL is allowed; never for key columns.
    pub nullable: bool,
    /// The value for an INSERT that leaves the column out; NULL when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<ColumnDefault>,
    /// The maximum number of characters of a text column declared with a length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length_max: Option<u32>,
    /// The value in rows written before the column existed, NULL when absent. It is the column's default,
    /// evaluated once when the column was added, in the form of a cast to TEXT (an EMBEDDING as in
    /// [`ColumnType::parse_text`]). When the type becomes wider, the value is cast like all others: REAL
    /// 0.1 becomes DOUBLE 0.10000000149011612.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<String>,
}

impl ColumnDefinition {
    /// Creates a column without default and length.
    pub fn new(id: ColumnId, name: impl Into<Arc<str>>, ty: ColumnType, nullable: bool) -> Self {
        Self { id, name: name.into(), ty, nullable, default: None, length_max: None, initial: None }
    }

    /// Returns the value in rows written before the column existed.
    ///
    /// # Errors
    /// 22P02 when the stored text is not a value of the type. [`super::TableDefinition::validate`] rules this
    /// out.
    pub fn initial_value(&self) -> Result<ScalarValue> {
        match &self.initial {
            Some(text) => self.ty.parse_text(text),
            None => Ok(ScalarValue::try_from(&self.ty.arrow())?),
        }
    }

    /// Returns `initial` for a version of the column in which it has the type `ty`: its own, or a wider one.
    ///
    /// # Errors
    /// As [`ColumnDefinition::initial_value`].
    pub(super) fn initial_in(&self, ty: ColumnType) -> Result<Option<String>> {
        if self.initial.is_none() || matches!(ty, ColumnType::Embedding(_)) {
            return Ok(self.initial.clone());
        }
        let value = canonical(&cast(&self.initial_value()?.to_array()?, &ty.arrow())?);
        let text = cast(&value, &DataType::Utf8)?;
        Ok(Some(text.as_string::<i32>().value(0).to_owned()))
    }
}

/// The value of a column that an INSERT leaves out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnDefault {
    /// A constant, in the syntax of [`ColumnType::parse_text`].
    Literal(String),
    /// `NOW()`: the statement's time.
    Now,
    /// `SNOWFLAKE_ID()`: a number that grows over time.
    SnowflakeId,
    /// `UUID_V7()`.
    UuidV7,
    /// `ULID()`.
    Ulid,
    /// `CURRENT_USER()`: the username.
    CurrentUser,
}

impl ColumnDefault {
    /// Checks that the default fits a column of type `ty`. Errors name the column by `column`.
    ///
    /// # Errors
    /// 42804 for a function of another type, 22P02 for a literal that is not a value of the type.
    pub fn validate(&self, column: &str, ty: ColumnType) -> Result<()> {
        let (fits, expected) = match self {
            Self::Literal(text) => return ty.parse_text(text).map(|_| ()),
            Self::Now => (
                matches!(ty, ColumnType::Timestamp | ColumnType::TimestampTz | ColumnType::Date),
                "TIMESTAMP, TIMESTAMPTZ or DATE",
            ),
            Self::SnowflakeId => (ty == ColumnType::BigInt, "BIGINT"),
            Self::UuidV7 => (matches!(ty, ColumnType::Uuid | ColumnType::Text), "UUID or TEXT"),
            Self::Ulid => (ty == ColumnType::Text, "TEXT"),
            Self::CurrentUser => (ty == ColumnType::Text, "TEXT"),
        };
        if fits {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidSql,
            SqlState::DATATYPE_MISMATCH,
            format!("default {} of column \"{column}\" does not fit its type {ty}", self.sql_text(ty)),
        )
        .hint(format!("its value has type {expected}")))
    }

    /// Returns the constant of a literal default; `None` for a function.
    ///
    /// # Errors
    /// 22P02 when the stored text is not a value of `ty`, which [`ColumnDefault::validate`] rules out.
    pub fn literal(&self, ty: ColumnType) -> Result<Option<ScalarValue>> {
        match self {
            Self::Literal(text) => ty.parse_text(text).map(Some),
            _ => Ok(None),
        }
    }

    /// Returns the default as SQL spells it.
    pub fn sql_text(&self, ty: ColumnType) -> String {
        match self {
            Self::Literal(text) => match ty {
                ColumnType::Boolean
                | ColumnType::SmallInt
                | ColumnType::Integer
                | ColumnType::BigInt
                | ColumnType::Real
                | ColumnType::Double
                | ColumnType::Decimal { .. } => text.clone(),
                _ => format!("'{}'", text.replace('\'', "''")),
            },
            Self::Now => "NOW()".to_owned(),
            Self::SnowflakeId => "SNOWFLAKE_ID()".to_owned(),
            Self::UuidV7 => "UUID_V7()".to_owned(),
            Self::Ulid => "ULID()".to_owned(),
            Self::CurrentUser => "CURRENT_USER()".to_owned(),
        }
    }
}
