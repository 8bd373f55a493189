//! Checked operations of numbers, as functions.
//!
//! | operation | DataFusion 55 | here |
//! |---|---|---|
//! | `+`, `-`, `*` and negation of integers | wraps around | 22003 |
//! | `DECIMAL / DECIMAL`, `DECIMAL / INTEGER` | dividend's scale + 4, truncated | scale 16 or more, rounded |
//! | `*` of decimals beyond 38 digits | a number of 39 digits | 22003 |
//! | a float divided by zero | infinity | 22012 |

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, ArrowNativeTypeOp, ArrowPrimitiveType, AsArray, Decimal128Array,
};
use datafusion::arrow::compute::kernels::numeric;
use datafusion::arrow::datatypes::{DataType, Decimal128Type, Float32Type, Float64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::type_coercion::binary::BinaryTypeCoercer;
use datafusion::logical_expr::{
    ColumnarValue, Expr, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use crate::casts::{cast, divide, out_of_range};
use crate::error::{Error, ErrorKind, SqlState};

/// Maximum precision of a DECIMAL.
pub(super) const DIGITS: u8 = 38;
/// Minimum scale of averages and quotients; PostgreSQL's for numbers around 1.
pub(super) const AVERAGE_SCALE: i8 = 16;

/// Returns a call of an operation.
pub(super) fn checked_call(operation: Operation, args: Vec<Expr>) -> Expr {
    let signature = Signature::user_defined(Volatility::Immutable);
    let func = Arc::new(ScalarUDF::new_from_impl(Arithmetic { operation, signature }));
    Expr::ScalarFunction(ScalarFunction { func, args })
}

/// An operation that fails if there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    Sum,
    Difference,
    Product,
    Negation,
    /// Of decimals.
    Quotient,
    FloatQuotient,
    FloatRemainder,
}

/// Returns whether a function is one of these operations, which fail if there is no result.
pub(super) fn is_checked(function: &ScalarUDF) -> bool {
    function.inner().is::<Arithmetic>()
}

/// Returns whether a function is one of these operations and its result is a float.
pub(super) fn is_of_floats(function: &ScalarUDF) -> bool {
    let arithmetic = function.inner().downcast_ref::<Arithmetic>();
    arithmetic.is_some_and(|arithmetic| {
        matches!(arithmetic.operation, Operation::FloatQuotient | Operation::FloatRemainder)
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Arithmetic {
    operation: Operation,
    signature: Signature,
}

impl Arithmetic {
    fn operator(&self) -> Operator {
        match self.operation {
            Operation::Sum => Operator::Plus,
            Operation::Difference | Operation::Negation => Operator::Minus,
            Operation::Product => Operator::Multiply,
            Operation::Quotient | Operation::FloatQuotient => Operator::Divide,
            Operation::FloatRemainder => Operator::Modulo,
        }
    }

    fn compute(&self, args: &[ArrayRef]) -> crate::error::Result<ArrayRef> {
        match (self.operation, args) {
            (Operation::Negation, [value]) => {
                Ok(numeric::neg(value.as_ref()).map_err(|_| out_of_range(value.data_type()))?)
            }
            (Operation::Quotient, [dividend, divisor]) => quotient(dividend, divisor),
            (Operation::FloatQuotient | Operation::FloatRemainder, [dividend, divisor]) => {
                let is_divided_by_zero = match divisor.data_type() {
                    DataType::Float32 => is_divided_by_zero::<Float32Type>,
                    _ => is_divided_by_zero::<Float64Type>,
                };
                if is_divided_by_zero(dividend, divisor) {
                    return Err(division_by_zero());
                }
                let compute = match self.operation {
                    Operation::FloatQuotient => numeric::div,
                    _ => numeric::rem,
                };
                Ok(compute(dividend, divisor)?)
            }
            (operation, [left, right]) => {
                let result = match operation {
                    Operation::Sum => numeric::add(left, right),
                    Operation::Difference => numeric::sub(left, right),
                    _ => numeric::mul(left, right),
                };
                let result = result.map_err(|_| out_of_range(left.data_type()))?;
                if let Some(decimals) = result.as_primitive_opt::<Decimal128Type>() {
                    let within = decimals.validate_decimal_precision(decimals.precision());
                    within.map_err(|_| out_of_range(result.data_type()))?;
                }
                Ok(result)
            }
            _ => Err(Error::internal(format!("wrong operands for {:?}", self.operation))),
        }
    }
}

/// Whether some row divides a number by zero; NULL and NaN divided by zero do not count.
fn is_divided_by_zero<T>(dividend: &ArrayRef, divisor: &ArrayRef) -> bool
where
    T: ArrowPrimitiveType,
{
    let (dividend, divisor) = (dividend.as_primitive::<T>(), divisor.as_primitive::<T>());
    let is_zero = |value: &T::Native| *value == T::Native::ZERO;
    let is_number = |value: T::Native| value.partial_cmp(&value).is_some();
    divisor.values().iter().any(is_zero)
        && dividend.iter().zip(divisor).any(|(dividend, divisor)| {
            dividend.is_some_and(is_number) && divisor.is_some_and(|divisor| is_zero(&divisor))
        })
}

fn quotient(dividend: &ArrayRef, divisor: &ArrayRef) -> crate::error::Result<ArrayRef> {
    let (dividend, divisor) =
        (dividend.as_primitive::<Decimal128Type>(), divisor.as_primitive::<Decimal128Type>());
    let (above, below) = (dividend.scale(), divisor.scale());
    let scale = quotient_scale(above, below);
    let ty = DataType::Decimal128(38, scale);
    let values = dividend.iter().zip(divisor).map(|(dividend, divisor)| match (dividend, divisor) {
        (Some(_), Some(0)) => Err(division_by_zero()),
        (Some(dividend), Some(divisor)) => {
            divide((dividend, above), (divisor, below), scale).map(Some).ok_or_else(|| out_of_range(&ty))
        }
        _ => Ok(None),
    });
    let values = values.collect::<crate::error::Result<Decimal128Array>>()?;
    Ok(Arc::new(values.with_precision_and_scale(38, scale)?))
}

fn quotient_scale(dividend: i8, divisor: i8) -> i8 {
    AVERAGE_SCALE.max(dividend).max(divisor)
}

fn division_by_zero() -> Error {
    Error::new(ErrorKind::InvalidArgument, SqlState::DIVISION_BY_ZERO, "division by zero")
}

/// The decimal type that holds every value of an exact numeric type.
fn as_decimal(ty: &DataType) -> DataType {
    match ty {
        DataType::Int8 | DataType::UInt8 => DataType::Decimal128(3, 0),
        DataType::Int16 | DataType::UInt16 => DataType::Decimal128(5, 0),
        DataType::Int32 | DataType::UInt32 => DataType::Decimal128(10, 0),
        DataType::Decimal128(..) => ty.clone(),
        DataType::Decimal32(digits, scale) | DataType::Decimal64(digits, scale) => {
            DataType::Decimal128(*digits, *scale)
        }
        _ => DataType::Decimal128(20, 0),
    }
}

impl ScalarUDFImpl for Arithmetic {
    fn name(&self) -> &str {
        match self.operation {
            Operation::Sum => "+",
            Operation::Difference | Operation::Negation => "-",
            Operation::Product => "*",
            Operation::Quotient | Operation::FloatQuotient => "/",
            Operation::FloatRemainder => "%",
        }
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        Ok(match args {
            [value] => format!("(- {})", value.schema_name()),
            args => {
                let names: Vec<String> = args.iter().map(|arg| arg.schema_name().to_string()).collect();
                names.join(&format!(" {} ", self.name()))
            }
        })
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        self.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    /// An operation on a NULL is NULL, so its other operand is not computed, as in PostgreSQL.
    fn simplify(&self, args: Vec<Expr>, context: &SimplifyContext) -> Result<ExprSimplifyResult> {
        if !args.iter().any(|arg| matches!(arg, Expr::Literal(value, _) if value.is_null())) {
            return Ok(ExprSimplifyResult::Original(args));
        }
        let types: Vec<_> = args.iter().map(|arg| context.get_data_type(arg)).collect::<Result<_>>()?;
        let null = ScalarValue::try_new_null(&self.return_type(&types)?)?;
        Ok(ExprSimplifyResult::Simplified(Expr::Literal(null, None)))
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(match self.operation {
            Operation::Quotient => types.iter().map(as_decimal).collect(),
            _ => types.to_vec(),
        })
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match (self.operation, types) {
            (Operation::Quotient, [left, right]) => {
                let scale = |ty: &DataType| {
                    if let DataType::Decimal128(_, scale) = as_decimal(ty) { scale } else { 0 }
                };
                Ok(DataType::Decimal128(38, quotient_scale(scale(left), scale(right))))
            }
            (_, [left, right]) => BinaryTypeCoercer::new(left, &self.operator(), right).get_result_type(),
            (_, [value]) => Ok(value.clone()),
            _ => Err(Error::internal("an operation takes one or two operands").into()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let mut arrays = ColumnarValue::values_to_arrays(&args.args)?;
        // The optimizer tests conditions with an untyped NULL in place of a column.
        if arrays.iter().any(|array| *array.data_type() == DataType::Null) {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from(args.return_field.data_type())?));
        }
        if self.operation == Operation::Quotient {
            for array in &mut arrays {
                *array = cast(array, &as_decimal(array.data_type()))?;
            }
        }
        let result = self.compute(&arrays)?;
        if is_constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?));
        }
        Ok(ColumnarValue::Array(result))
    }
}
