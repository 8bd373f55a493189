//! `round()` and `trunc()` of decimals, with the digits that are asked for: DataFusion's have another type before and after constants
//! are folded.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Decimal128Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Decimal128Type, Int64Type};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use crate::casts::{out_of_range, rescale};
use crate::error::Error;
use crate::sql::workarounds::walk::type_of;

const DIGITS_MAX: i16 = 38;

/// Puts ours in the place of DataFusion's. Runs before type coercion, since the type is another.
pub(crate) fn replace(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::ScalarFunction(call) = expr else { return Ok(Transformed::no(expr)) };
    let is_ours = call.func.inner().is::<Rounding>();
    let is_rounding = matches!(call.func.name(), "round" | "trunc");
    let of_decimal = call.args.first().and_then(|arg| type_of(arg, schema));
    if is_ours || !is_rounding || !matches!(of_decimal, Some(DataType::Decimal128(..))) || call.args.len() > 2
    {
        return Ok(Transformed::no(Expr::ScalarFunction(call)));
    }
    let digits = match call.args.get(1) {
        None => Some(0),
        Some(arg) => whole(arg),
    };
    let rounding = Rounding {
        digits,
        is_cut: call.func.name() == "trunc",
        signature: Signature::user_defined(Volatility::Immutable),
    };
    let func = Arc::new(ScalarUDF::new_from_impl(rounding));
    Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction { func, args: call.args })))
}

fn whole(expr: &Expr) -> Option<i16> {
    match expr {
        Expr::Literal(value, _) => match value.cast_to(&DataType::Int16).ok()? {
            ScalarValue::Int16(digits) => digits,
            _ => None,
        },
        Expr::Negative(inner) => whole(inner)?.checked_neg(),
        _ => None,
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Rounding {
    /// How many digits stay behind the point, where the text says it.
    digits: Option<i16>,
    is_cut: bool,
    signature: Signature,
}

impl Rounding {
    /// The digits of the result, and how many of them are behind the point.
    fn result(&self, digits: u8, scale: i8) -> (u8, i8) {
        let (digits, scale) = (i16::from(digits), i16::from(scale));
        let kept = self.digits.map_or(scale, |kept| kept.max(0));
        let kept = if digits - scale + kept <= DIGITS_MAX { kept } else { scale.min(kept) };
        let all = (digits - scale + kept + 1).min(DIGITS_MAX);
        (u8::try_from(all).unwrap_or(38), i8::try_from(kept).unwrap_or(38))
    }

    fn round(&self, value: i128, from: i8, kept: i64, to: i8) -> Option<i128> {
        let kept = i8::try_from(kept.clamp(-38, i64::from(from))).ok()?;
        let rounded = if self.is_cut {
            let power = 10_i128.checked_pow(u32::try_from(i16::from(from) - i16::from(kept)).ok()?);
            power.map_or(0, |power| value / power)
        } else {
            rescale(value, from, kept)?
        };
        rescale(rounded, kept, to)
    }
}

impl ScalarUDFImpl for Rounding {
    fn name(&self) -> &str {
        if self.is_cut { "trunc" } else { "round" }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let mut types = types.to_vec();
        if let Some(digits) = types.get_mut(1) {
            *digits = DataType::Int64;
        }
        Ok(types)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types.first() {
            Some(DataType::Decimal128(digits, scale)) => {
                let (digits, scale) = self.result(*digits, *scale);
                Ok(DataType::Decimal128(digits, scale))
            }
            _ => Err(Error::internal("a decimal was to be rounded").into()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let to = args.return_field.data_type().clone();
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let (Some(values), DataType::Decimal128(precision, scale)) = (arrays.first(), &to) else {
            return Err(Error::internal("a decimal was to be rounded").into());
        };
        let DataType::Decimal128(_, from) = values.data_type() else {
            return Err(Error::internal("a decimal was to be rounded").into());
        };
        let kept: Option<ArrayRef> = arrays.get(1).map(|kept| cast(kept, &DataType::Int64)).transpose()?;
        let kept = kept.as_ref().map(|kept| kept.as_primitive::<Int64Type>());
        let rounded = values.as_primitive::<Decimal128Type>().iter().enumerate().map(|(row, value)| {
            let digits = kept.map_or(Some(0), |kept| kept.is_valid(row).then(|| kept.value(row)));
            let (Some(value), Some(digits)) = (value, digits) else { return Ok(None) };
            self.round(value, *from, digits, *scale).map(Some).ok_or_else(|| out_of_range(&to))
        });
        let rounded: Decimal128Array = rounded.collect::<crate::error::Result<_>>()?;
        let rounded = rounded.with_precision_and_scale(*precision, *scale)?;
        if is_constant && rounded.len() == 1 {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&rounded, 0)?));
        }
        Ok(ColumnarValue::Array(Arc::new(rounded)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_kept_as_asked_for() {
        let check = |digits: Option<i16>, is_cut: bool, value: i128, kept: i64, expected: (u8, i8, i128)| {
            let signature = Signature::user_defined(Volatility::Immutable);
            let rounding = Rounding { digits, is_cut, signature };
            let (precision, scale) = rounding.result(10, 4);
            assert_eq!((precision, scale, rounding.round(value, 4, kept, scale).unwrap()), expected);
        };
        check(Some(2), false, 123_456, 2, (9, 2, 1_235));
        check(Some(2), true, 123_456, 2, (9, 2, 1_234));
        check(Some(0), false, -125_000, 0, (7, 0, -13));
        check(Some(-1), false, 155_000, -1, (7, 0, 20));
        check(Some(6), false, 123_456, 6, (13, 6, 12_345_600));
        check(None, false, 123_456, 1, (11, 4, 123_000));
    }
}
