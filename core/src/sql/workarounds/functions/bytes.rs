//! Text functions that are given BYTES: DataFusion passes them the text form of the bytes, `\x61`.

use std::sync::Arc;

use datafusion::arrow::compute::kernels::length::{bit_length, length};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::functions::string as string_functions;
use datafusion::functions::unicode as unicode_functions;
use datafusion::logical_expr::type_coercion::functions::fields_with_udf;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::super::walk::type_of;
use crate::casts::is_text;
use crate::error::{Error, ErrorKind, SqlState};

/// Functions that write any value as text.
const TAKE_ANYTHING: [&str; 2] = ["concat", "concat_ws"];

/// Refuses a call that would receive the text form of bytes.
///
/// # Errors
/// 42883 with the function's name; 0A000 for `string_agg`, which PostgreSQL supports.
pub(in crate::sql::workarounds) fn refuse(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    if let Expr::AggregateFunction(call) = &expr
        && call.func.name() == "string_agg"
        && call.params.args.iter().any(|arg| type_of(arg, schema) == Some(DataType::Binary))
    {
        return Err(Error::unsupported("string_agg() of BYTES")
            .hint("encode the bytes: encode(..., 'hex')")
            .into());
    }
    let Expr::ScalarFunction(call) = &expr else { return Ok(Transformed::no(expr)) };
    let name = call.func.name();
    let Some(types) = call.args.iter().map(|arg| type_of(arg, schema)).collect::<Option<Vec<_>>>() else {
        return Ok(Transformed::no(expr));
    };
    if TAKE_ANYTHING.contains(&name) || !types.contains(&DataType::Binary) {
        return Ok(Transformed::no(expr));
    }
    let taken = taken_types(&call.func, &types).unwrap_or_default();
    if types.iter().zip(&taken).any(|(own, taken)| *own == DataType::Binary && is_text(taken)) {
        return Err(Error::new(
            ErrorKind::InvalidSql,
            SqlState::UNDEFINED_FUNCTION,
            format!("function {name}() does not exist for BYTES"),
        )
        .hint("decode the bytes to text, or encode them: encode(..., 'hex')")
        .into());
    }
    Ok(Transformed::no(expr))
}

/// Returns the types to which a function casts its arguments.
pub(super) fn taken_types(function: &ScalarUDF, types: &[DataType]) -> Result<Vec<DataType>> {
    let fields: Vec<FieldRef> = types.iter().map(|ty| Arc::new(Field::new("", ty.clone(), true))).collect();
    Ok(fields_with_udf(&fields, function)?.iter().map(|field| field.data_type().clone()).collect())
}

/// Returns the length functions of text, which also accept BYTES.
pub(super) fn lengths() -> impl Iterator<Item = Arc<ScalarUDF>> {
    let texts = [
        unicode_functions::character_length(),
        string_functions::octet_length(),
        string_functions::bit_length(),
    ];
    texts.into_iter().map(|of_text| {
        let signature = Signature::user_defined(Volatility::Immutable);
        Arc::new(ScalarUDF::new_from_impl(Length { of_text, signature }))
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Length {
    of_text: Arc<ScalarUDF>,
    signature: Signature,
}

impl ScalarUDFImpl for Length {
    fn name(&self) -> &str {
        self.of_text.name()
    }

    fn aliases(&self) -> &[String] {
        self.of_text.aliases()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        match types {
            [DataType::Binary] => Ok(types.to_vec()),
            _ => taken_types(&self.of_text, types),
        }
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [DataType::Binary] => Ok(DataType::Int32),
            _ => self.of_text.return_type(types),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let bytes = match args.args.as_slice() {
            [value] if value.data_type() == DataType::Binary => value.to_array(args.number_rows)?,
            _ => return self.of_text.invoke_with_args(args),
        };
        let is_constant = matches!(args.args.as_slice(), [ColumnarValue::Scalar(_)]);
        let numbers = if self.name() == "bit_length" { bit_length(&bytes)? } else { length(&bytes)? };
        if is_constant && !numbers.is_empty() {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&numbers, 0)?));
        }
        Ok(ColumnarValue::Array(numbers))
    }
}
