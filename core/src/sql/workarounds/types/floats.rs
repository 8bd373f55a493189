//! One zero and one NaN.
//!
//! -0.0 is 0.0 and every NaN is the same, as in PostgreSQL. Columns hold only the canonical ones; computed
//! values can have other bits, which DataFusion compares in sorts, windows, groups, joins, lists, `nullif`
//! and CASE. The NaN that a processor computes for `Infinity - Infinity` has a sign and is below all numbers.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::datatypes::{DataType, Float32Type, Float64Type};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{BinaryExpr, ScalarFunction};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::super::operations;
use super::super::walk::type_of;
use super::casts;
use super::kinds::{UNIFORM, is_arithmetic};
use crate::casts::is_text;

/// Replaces the zero and the NaN of a computed float by those that columns hold.
pub(in crate::sql::workarounds) fn canonical(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let is_computed = match &expr {
        Expr::Literal(ScalarValue::Float64(Some(value)), _) => {
            canonical_f64(*value).to_bits() != value.to_bits()
        }
        Expr::Literal(ScalarValue::Float32(Some(value)), _) => {
            canonical_f32(*value).to_bits() != value.to_bits()
        }
        Expr::Negative(_) => true,
        Expr::BinaryExpr(BinaryExpr { op, .. }) => is_arithmetic(*op),
        Expr::ScalarFunction(call) if casts::is_checked(&call.func) => {
            call.args.first().and_then(|arg| type_of(arg, schema)).is_some_and(|ty| is_text(&ty))
        }
        Expr::ScalarFunction(call) if operations::is_checked(&call.func) => {
            operations::is_of_floats(&call.func)
        }
        Expr::ScalarFunction(call) => !UNIFORM.contains(&call.func.name()) && !call.args.is_empty(),
        _ => false,
    };
    let ty = is_computed.then(|| type_of(&expr, schema)).flatten();
    if !ty.is_some_and(|ty| matches!(ty, DataType::Float32 | DataType::Float64)) {
        return Ok(Transformed::no(expr));
    }
    Ok(Transformed::yes(match expr {
        Expr::Literal(ScalarValue::Float64(value), metadata) => {
            Expr::Literal(ScalarValue::Float64(value.map(canonical_f64)), metadata)
        }
        Expr::Literal(ScalarValue::Float32(value), metadata) => {
            Expr::Literal(ScalarValue::Float32(value.map(canonical_f32)), metadata)
        }
        // Inside arithmetic it does not matter which zero or NaN an operand is.
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (left, right) = (Box::new(computed(*left)), Box::new(computed(*right)));
            canonical_call(Expr::BinaryExpr(BinaryExpr { left, op, right }))
        }
        other => canonical_call(other),
    }))
}

fn canonical_f64(value: f64) -> f64 {
    if value.is_nan() { f64::NAN } else { value + 0.0 }
}

fn canonical_f32(value: f32) -> f32 {
    if value.is_nan() { f32::NAN } else { value + 0.0 }
}

fn canonical_call(expr: Expr) -> Expr {
    let signature = Signature::any(1, Volatility::Immutable);
    let func = Arc::new(ScalarUDF::new_from_impl(Canonical { signature }));
    Expr::ScalarFunction(ScalarFunction { func, args: vec![expr] })
}

/// An operand without the call around it.
fn computed(expr: Expr) -> Expr {
    match expr {
        Expr::ScalarFunction(mut call) if call.func.inner().is::<Canonical>() => match call.args.pop() {
            Some(inner) => inner,
            None => Expr::ScalarFunction(call),
        },
        other => other,
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Canonical {
    signature: Signature,
}

impl ScalarUDFImpl for Canonical {
    fn name(&self) -> &str {
        "canonical_float"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types.first().cloned().unwrap_or(DataType::Float64))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let values = ColumnarValue::values_to_arrays(&args.args)?;
        let Some(values) = values.first() else {
            return Ok(ColumnarValue::Scalar(ScalarValue::Float64(None)));
        };
        let canonical: ArrayRef = match values.data_type() {
            DataType::Float32 => {
                Arc::new(values.as_primitive::<Float32Type>().unary::<_, Float32Type>(canonical_f32))
            }
            DataType::Float64 => {
                Arc::new(values.as_primitive::<Float64Type>().unary::<_, Float64Type>(canonical_f64))
            }
            // The optimizer tests conditions with an untyped NULL in place of a column.
            _ => Arc::clone(values),
        };
        if matches!(args.args.as_slice(), [ColumnarValue::Scalar(_)]) && canonical.len() == 1 {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&canonical, 0)?));
        }
        Ok(ColumnarValue::Array(canonical))
    }
}
