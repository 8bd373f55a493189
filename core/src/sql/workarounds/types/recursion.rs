//! The column types of WITH RECURSIVE.
//!
//! DataFusion gives every column the type of the first part, and rounds the recursive part to it:
//! `SELECT 100.0 UNION ALL SELECT f * 1.05 FROM r` keeps one decimal place. PostgreSQL's NUMERIC keeps all
//! digits. Here a DECIMAL has a scale of at least [`AVERAGE_SCALE`]. A value that would lose its fraction is
//! refused, as in PostgreSQL.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, FieldRef, TimeUnit};
use datafusion::common::Result;
use datafusion::logical_expr::expr::Cast;
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, RecursiveQuery, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility,
};

use super::super::operations::{AVERAGE_SCALE, DIGITS};
use super::super::walk::type_of;
use super::casts::cast_values;
use super::comparisons::sql_name;
use super::sets::unaliased;
use crate::casts::{cast, is_decimal};
use crate::error::{Error, ErrorKind, SqlState};

/// The function around each column of the first part, which gives decimals more digits.
pub(crate) const FIRST_PART: &str = "first_part";
/// The function around each column of the recursive part. The planner's cast is outside it, a written one
/// inside; so [`check`] tells them apart.
pub(crate) const NEXT_PART: &str = "next_part";

pub(in crate::sql::workarounds) fn functions() -> [Arc<ScalarUDF>; 2] {
    [FIRST_PART, NEXT_PART].map(|name| {
        let signature = Signature::any(1, Volatility::Immutable);
        Arc::new(ScalarUDF::new_from_impl(PartOfRecursion { name, signature }))
    })
}

/// Refuses a recursive part whose values the types of the first part do not hold.
///
/// # Errors
/// 42804 with the column and both types.
pub(in crate::sql::workarounds) fn check(node: &LogicalPlan) -> Result<()> {
    let LogicalPlan::RecursiveQuery(RecursiveQuery { name, recursive_term, schema, .. }) = node else {
        return Ok(());
    };
    let LogicalPlan::Projection(projection) = &**recursive_term else { return Ok(()) };
    for (expr, field) in projection.expr.iter().zip(schema.fields()) {
        let Expr::Cast(Cast { expr, .. }) = unaliased(expr) else { continue };
        let Some(from) = type_of(expr, projection.input.schema()) else { continue };
        if loses(&from, field.data_type()) {
            let text = format!(
                "column \"{}\" of the recursive query \"{name}\" is {} in the non-recursive part \
                 but {} in the recursive part",
                field.name(),
                sql_name(field.data_type()),
                sql_name(&from)
            );
            let error = Error::new(ErrorKind::InvalidSql, SqlState::DATATYPE_MISMATCH, text);
            return Err(error.hint("cast it in the non-recursive part, as in CAST(1 AS DOUBLE)").into());
        }
    }
    Ok(())
}

/// Whether a cast silently loses part of a value.
fn loses(from: &DataType, to: &DataType) -> bool {
    match (from, to) {
        (DataType::Decimal128(_, 0), to) if to.is_integer() => false,
        (from, to) if to.is_integer() => from.is_floating() || is_decimal(from),
        (DataType::Float64, DataType::Float32) => true,
        (from, to) if is_decimal(to) => from.is_floating(),
        (DataType::Timestamp(..), DataType::Date32 | DataType::Time64(_)) => true,
        _ => false,
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct PartOfRecursion {
    name: &'static str,
    signature: Signature,
}

impl ScalarUDFImpl for PartOfRecursion {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(match types {
            [DataType::Decimal128(_, scale)] if self.name == FIRST_PART => {
                DataType::Decimal128(DIGITS, AVERAGE_SCALE.max(*scale))
            }
            // An untyped NULL becomes text.
            [DataType::Null] if self.name == FIRST_PART => DataType::Utf8,
            // It becomes this type later; the recursive part must read it now.
            [DataType::Timestamp(TimeUnit::Nanosecond, zone)] if self.name == FIRST_PART => {
                DataType::Timestamp(TimeUnit::Microsecond, zone.clone())
            }
            [other] => other.clone(),
            _ => DataType::Null,
        })
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let [field] = args.arg_fields else { return Err(Error::internal("a column takes one value").into()) };
        let ty = self.return_type(&[field.data_type().clone()])?;
        Ok(Arc::new(field.as_ref().clone().with_data_type(ty)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match args.args.first() {
            // Of a value of that type the cast is the value.
            Some(value) => cast_values(value, args.return_field.data_type(), cast),
            None => Err(Error::internal("a column takes one value").into()),
        }
    }
}
