//! LIKE and ILIKE as a function, so that it can be guarded as functions are. A pattern from a column is
//! compiled for each row, and a long one is slow.
//!
//! Invariant: with a short constant as the pattern, it is an expression when the plan is optimised: key
//! ranges and the pruning of segments need that.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, Like, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, Volatility,
};
use datafusion::physical_expr_common::datum::apply_cmp;

use crate::error::Error;

/// Longer constants are matched by the function too.
const SHORT_BYTES_MAX: usize = 256;

/// Returns a call of the function in place of the expression; `None` where the expression is right. Runs
/// after type coercion: both operands are texts.
pub(in crate::sql) fn like_call(like: &Like) -> Option<ScalarFunction> {
    if like.escape_char.is_some() || is_short(&like.pattern) {
        return None;
    }
    let function = Matches {
        negated: like.negated,
        case_insensitive: like.case_insensitive,
        signature: Signature::any(2, Volatility::Immutable),
    };
    let args = vec![like.expr.as_ref().clone(), like.pattern.as_ref().clone()];
    Some(ScalarFunction::new_udf(Arc::new(ScalarUDF::new_from_impl(function)), args))
}

fn is_short(pattern: &Expr) -> bool {
    match pattern {
        Expr::Literal(value, _) => {
            value.try_as_str().flatten().is_none_or(|text| text.len() <= SHORT_BYTES_MAX)
        }
        _ => false,
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Matches {
    negated: bool,
    case_insensitive: bool,
    signature: Signature,
}

impl Matches {
    fn operator(&self) -> Operator {
        match (self.negated, self.case_insensitive) {
            (false, false) => Operator::LikeMatch,
            (false, true) => Operator::ILikeMatch,
            (true, false) => Operator::NotLikeMatch,
            (true, true) => Operator::NotILikeMatch,
        }
    }

    fn words(&self) -> &'static str {
        match (self.negated, self.case_insensitive) {
            (false, false) => "LIKE",
            (false, true) => "ILIKE",
            (true, false) => "NOT LIKE",
            (true, true) => "NOT ILIKE",
        }
    }
}

impl ScalarUDFImpl for Matches {
    fn name(&self) -> &str {
        "like"
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let names: Vec<String> = args.iter().map(|arg| arg.schema_name().to_string()).collect();
        Ok(names.join(&format!(" {} ", self.words())))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let nullable = args.arg_fields.iter().any(|field| field.is_nullable());
        Ok(Arc::new(Field::new(self.name(), DataType::Boolean, nullable)))
    }

    fn is_strict(&self) -> bool {
        true
    }

    fn simplify(&self, mut args: Vec<Expr>, _: &SimplifyContext) -> Result<ExprSimplifyResult> {
        if !args.last().is_some_and(is_short) {
            return Ok(ExprSimplifyResult::Original(args));
        }
        let (Some(pattern), Some(text)) = (args.pop(), args.pop()) else {
            return Err(without_operands().into());
        };
        let (text, pattern) = (Box::new(text), Box::new(pattern));
        let like = Like::new(self.negated, text, pattern, None, self.case_insensitive);
        Ok(ExprSimplifyResult::Simplified(Expr::Like(like)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [text, pattern] = args.args.as_slice() else { return Err(without_operands().into()) };
        // The optimizer tests conditions with an untyped NULL in place of a column.
        if text.data_type().is_null() || pattern.data_type().is_null() {
            return Ok(ColumnarValue::Scalar(ScalarValue::Boolean(None)));
        }
        apply_cmp(self.operator(), text, pattern)
    }
}

fn without_operands() -> Error {
    Error::internal("LIKE takes two operands")
}
