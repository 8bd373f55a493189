//! `CURRENT_TIME` in microseconds. DataFusion's has nanoseconds, a type that no column has and that cannot be
//! compared with a TIME.

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};

use crate::casts::DAY_US;
use crate::error::Error;

/// `current_time()`, the time of day in UTC at which the statement began.
pub(super) fn current_time() -> ScalarUDF {
    ScalarUDF::new_from_impl(CurrentTime { signature: Signature::nullary(Volatility::Stable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct CurrentTime {
    signature: Signature,
}

impl ScalarUDFImpl for CurrentTime {
    fn name(&self) -> &str {
        "current_time"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Time64(TimeUnit::Microsecond))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(Error::internal("CURRENT_TIME is not a constant of its statement").into())
    }

    fn simplify(&self, args: Vec<Expr>, context: &SimplifyContext) -> Result<ExprSimplifyResult> {
        Ok(match context.query_execution_start_time() {
            Some(now) => {
                let time = now.timestamp_micros().rem_euclid(DAY_US);
                ExprSimplifyResult::Simplified(lit(ScalarValue::Time64Microsecond(Some(time))))
            }
            None => ExprSimplifyResult::Original(args),
        })
    }
}
