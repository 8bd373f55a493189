//! `coalesce` and similar functions of a value and a string literal. The planner asks for a select list's
//! types at once, before the literal has the type of the value, and has no common type for some pairs.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result};
use datafusion::functions::core::{coalesce, greatest, least, nullif, nvl};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::bytes::taken_types;
use crate::casts::is_text;

static FUNCTIONS: LazyLock<Vec<Arc<ScalarUDF>>> = LazyLock::new(|| {
    [coalesce(), nullif(), nvl(), greatest(), least()]
        .into_iter()
        .map(|inner| {
            let signature = Signature::user_defined(Volatility::Immutable);
            Arc::new(ScalarUDF::new_from_impl(Uniform { inner, signature }))
        })
        .collect()
});

/// Returns the functions to register.
pub(super) fn all() -> impl Iterator<Item = Arc<ScalarUDF>> {
    FUNCTIONS.iter().map(Arc::clone)
}

/// Restores DataFusion's functions once string literals have their types.
pub(in crate::sql::workarounds) fn restore(expr: Expr, _: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::ScalarFunction(mut call) = expr else { return Ok(Transformed::no(expr)) };
    let inner = call.func.inner().downcast_ref::<Uniform>().map(|uniform| Arc::clone(&uniform.inner));
    let is_changed = inner.is_some();
    if let Some(inner) = inner {
        call.func = inner;
    }
    Ok(Transformed::new_transformed(Expr::ScalarFunction(call), is_changed))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Uniform {
    inner: Arc<ScalarUDF>,
    signature: Signature,
}

impl ScalarUDFImpl for Uniform {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let types = without_texts(types);
        if !types.is_empty() && types.iter().all(|ty| Some(ty) == types.first()) {
            return Ok(types);
        }
        taken_types(&self.inner, &types)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(&without_texts(types))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let types: Vec<DataType> = args.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let fields = args.arg_fields.iter().zip(without_texts(&types));
        let fields: Vec<FieldRef> =
            fields.map(|(field, ty)| Arc::new(field.as_ref().clone().with_data_type(ty))).collect();
        self.inner.return_field_from_args(ReturnFieldArgs { arg_fields: &fields, ..args })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.inner.invoke_with_args(args)
    }
}

/// Replaces text types by the first type that is neither text nor NULL.
fn without_texts(types: &[DataType]) -> Vec<DataType> {
    let value = types.iter().find(|ty| !is_text(ty) && **ty != DataType::Null);
    let own = |ty: &DataType| value.filter(|_| is_text(ty)).unwrap_or(ty).clone();
    types.iter().map(own).collect()
}
