//! A function that returns its argument and tells the optimizer something about it.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::Result;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use crate::error::Error;

/// What a call tells about its argument.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum Claim {
    /// It differs from the arguments of calls with other numbers.
    Distinct(usize),
    /// Its values have a range of this type.
    Ranged(DataType),
    /// It can be NULL.
    Nullable,
}

/// Returns `value` with a claim about it.
pub(super) fn claimed(value: Expr, claim: Claim) -> Expr {
    let signature = Signature::any(1, Volatility::Immutable);
    ScalarUDF::new_from_impl(Identity { claim, signature }).call(vec![value])
}

/// Returns whether a function claims that its argument differs from others.
pub(super) fn is_distinct(function: &ScalarUDF) -> bool {
    let identity = function.inner().downcast_ref::<Identity>();
    identity.is_some_and(|identity| matches!(identity.claim, Claim::Distinct(_)))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Identity {
    claim: Claim,
    signature: Signature,
}

impl ScalarUDFImpl for Identity {
    fn name(&self) -> &str {
        match self.claim {
            Claim::Distinct(_) => "same",
            Claim::Ranged(_) => "ranged",
            Claim::Nullable => "may_be_null",
        }
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let names: Vec<String> = args.iter().map(|arg| arg.schema_name().to_string()).collect();
        let names = names.join(",");
        Ok(if self.claim == Claim::Nullable { format!("{}({names})", self.name()) } else { names })
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(match &self.claim {
            Claim::Ranged(ty) => ty.clone(),
            _ => types.first().cloned().unwrap_or(DataType::Null),
        })
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let field = args.arg_fields.first().ok_or_else(without_value)?;
        Ok(match self.claim {
            Claim::Nullable => Arc::new(Field::new(self.name(), field.data_type().clone(), true)),
            _ => Arc::clone(field),
        })
    }

    fn evaluate_bounds(&self, _: &[&Interval]) -> Result<Interval> {
        Interval::make_unbounded(match &self.claim {
            Claim::Ranged(ty) => ty,
            _ => &DataType::Null,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(args.args.into_iter().next().ok_or_else(without_value)?)
    }
}

fn without_value() -> Error {
    Error::internal("a claim needs a value")
}
