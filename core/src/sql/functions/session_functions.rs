//! Session functions (`CURRENT_USER()`, ...): constants of a statement, which planning inlines.

use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Result as DataFusionResult, ScalarValue};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};

use crate::sql::CATALOG;

/// The names that [`session_function`] knows.
pub(crate) const SESSION_FUNCTIONS: [&str; 8] = [
    "current_user",
    "session_user",
    "user",
    "current_role",
    "current_schema",
    "current_database",
    "current_catalog",
    "version",
];

/// Returns the session function of that name; `None` unless it is one of [`SESSION_FUNCTIONS`].
pub(crate) fn session_function(
    name: &str,
    username: &str,
    role: &str,
    namespace: &str,
) -> Option<Arc<ScalarUDF>> {
    let name = SESSION_FUNCTIONS.into_iter().find(|known| *known == name)?;
    let value = match name {
        "current_user" | "session_user" | "user" => username,
        "current_role" => role,
        "current_schema" => namespace,
        "version" => concat!("KalamDB ", env!("CARGO_PKG_VERSION")),
        _ => CATALOG,
    };
    let signature = Signature::nullary(Volatility::Stable);
    Some(Arc::new(ScalarUDF::new_from_impl(Constant { name, value: Some(value.to_owned()), signature })))
}

/// A function without arguments that is constant within a statement.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Constant {
    name: &'static str,
    value: Option<String>,
    signature: Signature,
}

impl ScalarUDFImpl for Constant {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DataFusionResult<DataType> {
        Ok(DataType::Utf8)
    }

    fn simplify(&self, _: Vec<Expr>, _: &SimplifyContext) -> DataFusionResult<ExprSimplifyResult> {
        Ok(ExprSimplifyResult::Simplified(lit(ScalarValue::Utf8(self.value.clone()))))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        Ok(ColumnarValue::Scalar(ScalarValue::Utf8(self.value.clone())))
    }
}
