//! CAST with PostgreSQL's semantics, see [`crate::casts`].
//!
//! DataFusion's CAST is Arrow's: it truncates, uses other formats for times, and reads `\x61` as four
//! characters. A function replaces every CAST that differs. The other CASTs keep the order of values, so
//! segment bounds can be compared through them. DataFusion does that for every CAST, even timestamp to time.

use std::sync::Arc;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{Cast, ScalarFunction, TryCast};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::super::walk::type_of;
use crate::casts::{cast, is_plain, try_cast};
use crate::error::Error;

/// Replaces every CAST that Arrow performs differently. Runs after type coercion, which adds casts.
pub(in crate::sql::workarounds) fn replace(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let (inner, field, is_try) = match expr {
        Expr::Cast(Cast { expr, field }) => (expr, field, false),
        Expr::TryCast(TryCast { expr, field }) => (expr, field, true),
        other => return Ok(Transformed::no(other)),
    };
    let is_ours = type_of(&inner, schema).is_some_and(|from| !is_plain(&from, field.data_type()));
    if is_ours {
        return Ok(Transformed::yes(cast_call(*inner, field, is_try)));
    }
    Ok(Transformed::no(match is_try {
        false => Expr::Cast(Cast { expr: inner, field }),
        true => Expr::TryCast(TryCast { expr: inner, field }),
    }))
}

/// Casts `expr` to type `to`; for rewrites that run before casts are replaced.
pub(in crate::sql::workarounds) fn cast_to(expr: Expr, to: DataType) -> Expr {
    Expr::Cast(Cast::new(Box::new(expr), to))
}

/// Converts a literal to its value in the other type, and casts anything else. Text becomes a decimal with
/// the digits that it has, as if unquoted, and a timestamp in microseconds.
pub(super) fn converted(expr: Expr, to: &DataType) -> Result<Expr> {
    let exact = match (&expr, to) {
        (Expr::Literal(value, _), DataType::Decimal128(..)) => {
            value.try_as_str().flatten().and_then(decimal_of)
        }
        _ => None,
    };
    let to = match to {
        DataType::Timestamp(_, zone) => &DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        other => exact.as_ref().unwrap_or(other),
    };
    match expr {
        Expr::Literal(value, metadata) => {
            let array = cast(&value.to_array()?, to)?;
            Ok(Expr::Literal(ScalarValue::try_from_array(&array, 0)?, metadata))
        }
        other => Ok(cast_to(other, to.clone())),
    }
}

/// The decimal type that the digits of a number need; `None` if malformed or over 38 digits.
fn decimal_of(text: &str) -> Option<DataType> {
    let (digits, exponent) = text.trim().split_once(['e', 'E']).unwrap_or((text.trim(), "0"));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let exponent = exponent.parse::<i64>().ok()?;
    let count = |part: &str| i64::try_from(part.bytes().filter(u8::is_ascii_digit).count()).ok();
    let scale = count(fraction)?.checked_sub(exponent)?.max(0);
    let precision = count(whole)?.checked_add(exponent)?.max(0).checked_add(scale)?.max(1);
    let (precision, scale) = (u8::try_from(precision).ok()?, i8::try_from(scale).ok()?);
    (precision <= 38).then_some(DataType::Decimal128(precision, scale))
}

fn cast_call(expr: Expr, field: FieldRef, is_try: bool) -> Expr {
    let signature = Signature::user_defined(Volatility::Immutable);
    let func = Arc::new(ScalarUDF::new_from_impl(CastFunction { field, is_try, signature }));
    Expr::ScalarFunction(ScalarFunction { func, args: vec![expr] })
}

/// Returns whether a function is a CAST, which fails for a value that its type cannot hold.
pub(super) fn is_checked(function: &ScalarUDF) -> bool {
    function.inner().downcast_ref::<CastFunction>().is_some_and(|cast| !cast.is_try)
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct CastFunction {
    /// The target type and its metadata.
    field: FieldRef,
    is_try: bool,
    signature: Signature,
}

impl ScalarUDFImpl for CastFunction {
    fn name(&self) -> &str {
        if self.is_try { "try_cast" } else { "cast" }
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let args: Vec<String> = args.iter().map(|arg| arg.schema_name().to_string()).collect();
        Ok(format!("{}({} AS {})", self.name().to_uppercase(), args.join(", "), self.field.data_type()))
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        Ok(format!("{}({} AS {})", self.name().to_uppercase(), args.join(", "), self.field.data_type()))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(types.to_vec())
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.field.data_type().clone())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let nullable = self.is_try || args.arg_fields.iter().any(|field| field.is_nullable());
        let field = Field::new(self.name(), self.field.data_type().clone(), nullable);
        Ok(Arc::new(field.with_metadata(self.field.metadata().clone())))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let convert = if self.is_try { try_cast } else { cast };
        match args.args.first() {
            Some(value) => cast_values(value, self.field.data_type(), convert),
            None => Err(Error::internal("a cast has no value").into()),
        }
    }
}

/// A value, or each of an array, as a value of type `to`; `convert` is a cast of arrays.
pub(super) fn cast_values(
    value: &ColumnarValue,
    to: &DataType,
    convert: fn(&ArrayRef, &DataType) -> crate::error::Result<ArrayRef>,
) -> Result<ColumnarValue> {
    Ok(match value {
        ColumnarValue::Array(array) => ColumnarValue::Array(convert(array, to)?),
        ColumnarValue::Scalar(value) => {
            let array = convert(&value.to_array()?, to)?;
            ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?)
        }
    })
}
