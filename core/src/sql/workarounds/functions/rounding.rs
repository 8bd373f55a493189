//! `round()`, `trunc()`, `ceil()` and `floor()` of decimals. DataFusion's change their type when constants
//! are folded, or have no room for the result.

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

/// Replaces DataFusion's functions. Runs before type coercion, because the result type changes.
pub(crate) fn replace(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::ScalarFunction(call) = expr else { return Ok(Transformed::no(expr)) };
    let is_ours = call.func.inner().is::<Rounding>();
    let direction = Direction::of(call.func.name()).filter(|_| !is_ours && call.args.len() <= 2);
    let of_decimal = call.args.first().and_then(|arg| type_of(arg, schema));
    let (Some(direction), Some(DataType::Decimal128(..))) = (direction, of_decimal) else {
        return Ok(Transformed::no(Expr::ScalarFunction(call)));
    };
    let digits = match call.args.get(1) {
        None => Some(0),
        Some(arg) => whole(arg),
    };
    let rounding = Rounding { digits, direction, signature: Signature::user_defined(Volatility::Immutable) };
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

/// How digits are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Direction {
    /// To the nearest number, half away from zero.
    Nearest,
    TowardsZero,
    Up,
    Down,
}

impl Direction {
    fn of(function: &str) -> Option<Self> {
        Some(match function {
            "round" => Self::Nearest,
            "trunc" => Self::TowardsZero,
            "ceil" => Self::Up,
            "floor" => Self::Down,
            _ => return None,
        })
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Rounding {
    /// How many decimal places to keep, if it is a literal.
    digits: Option<i16>,
    direction: Direction,
    signature: Signature,
}

impl Rounding {
    /// The precision and scale of the result.
    fn result(&self, digits: u8, scale: i8) -> (u8, i8) {
        let (digits, scale) = (i16::from(digits), i16::from(scale));
        let kept = self.digits.map_or(scale, |kept| kept.max(0));
        let kept = if digits - scale + kept <= DIGITS_MAX { kept } else { scale.min(kept) };
        let all = (digits - scale + kept + 1).min(DIGITS_MAX);
        (u8::try_from(all).unwrap_or(38), i8::try_from(kept).unwrap_or(38))
    }

    fn round(&self, value: i128, from: i8, kept: i64, to: i8) -> Option<i128> {
        let kept = i8::try_from(kept.clamp(-38, i64::from(from))).ok()?;
        let left_out = u32::try_from(i16::from(from) - i16::from(kept)).ok()?;
        let divided = |divide: fn(i128, i128) -> i128, all: i128| {
            10_i128.checked_pow(left_out).map_or(all, |power| divide(value, power))
        };
        let rounded = match self.direction {
            Direction::Nearest => rescale(value, from, kept)?,
            Direction::TowardsZero => divided(|value, power| value / power, 0),
            Direction::Down => divided(i128::div_euclid, -i128::from(value < 0)),
            Direction::Up => divided(|value, power| -(-value).div_euclid(power), i128::from(value > 0)),
        };
        rescale(rounded, kept, to)
    }
}

impl ScalarUDFImpl for Rounding {
    fn name(&self) -> &str {
        match self.direction {
            Direction::Nearest => "round",
            Direction::TowardsZero => "trunc",
            Direction::Up => "ceil",
            Direction::Down => "floor",
        }
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
            _ => Err(Error::internal("rounding needs a decimal").into()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let to = args.return_field.data_type().clone();
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let (Some(values), DataType::Decimal128(precision, scale)) = (arrays.first(), &to) else {
            return Err(Error::internal("rounding needs a decimal").into());
        };
        let DataType::Decimal128(_, from) = values.data_type() else {
            return Err(Error::internal("rounding needs a decimal").into());
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
        use Direction::{Down, Nearest, TowardsZero, Up};
        let check = |digits: Option<i16>, direction, value: i128, kept: i64, expected: (u8, i8, i128)| {
            let signature = Signature::user_defined(Volatility::Immutable);
            let rounding = Rounding { digits, direction, signature };
            let (precision, scale) = rounding.result(10, 4);
            assert_eq!((precision, scale, rounding.round(value, 4, kept, scale).unwrap()), expected);
        };
        check(Some(2), Nearest, 123_456, 2, (9, 2, 1_235));
        check(Some(2), TowardsZero, 123_456, 2, (9, 2, 1_234));
        check(Some(0), Nearest, -125_000, 0, (7, 0, -13));
        check(Some(-1), Nearest, 155_000, -1, (7, 0, 20));
        check(Some(6), Nearest, 123_456, 6, (13, 6, 12_345_600));
        check(None, Nearest, 123_456, 1, (11, 4, 123_000));
        check(Some(0), Up, 123_456, 0, (7, 0, 13));
        check(Some(0), Up, -123_456, 0, (7, 0, -12));
        check(Some(0), Down, -123_456, 0, (7, 0, -13));
        check(Some(0), Down, 120_000, 0, (7, 0, 12));
    }
}
