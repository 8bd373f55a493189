//! Checks that a scalar subquery has at most one row, only where its value is used: a CASE can skip it.

use std::sync::Arc;

use datafusion::arrow::array::{AsArray, Int64Array};
use datafusion::arrow::datatypes::{DataType, Int64Type};
use datafusion::common::Result;
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::functions_aggregate::first_last::first_value_udaf;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
    lit,
};

use super::builders::{aggregate, first_column};
use crate::error::{Error, ErrorKind, SqlState};

/// Returns aggregates over a plan's rows: the value of the first one, and the number of rows.
pub(super) fn value_and_rows(plan: &LogicalPlan, value_name: &str, rows_name: &str) -> Vec<Expr> {
    vec![
        aggregate(first_value_udaf(), first_column(plan)).alias(value_name),
        aggregate(count_udaf(), lit(1_i64)).alias(rows_name),
    ]
}

/// Returns `value`, or 21000 if it comes from more than one row.
pub(super) fn checked(value: Expr, rows: Expr) -> Expr {
    let signature = Signature::any(2, Volatility::Immutable);
    let func = Arc::new(ScalarUDF::new_from_impl(SingleRow { signature }));
    Expr::ScalarFunction(ScalarFunction { func, args: vec![value, rows] })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct SingleRow {
    signature: Signature,
}

impl ScalarUDFImpl for SingleRow {
    fn name(&self) -> &str {
        "single_row"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types.first().cloned().unwrap_or(DataType::Null))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [value, rows] = args.args.as_slice() else {
            return Err(Error::internal("single_row() takes a value and a number").into());
        };
        let counts = rows.to_array(args.number_rows)?;
        // Without rows the count has no value and no type.
        let is_several = |counts: &Int64Array| counts.iter().flatten().any(|rows| rows > 1);
        if counts.as_primitive_opt::<Int64Type>().is_some_and(is_several) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                SqlState::CARDINALITY_VIOLATION,
                "more than one row returned by a subquery used as an expression",
            )
            .hint("aggregate its rows, or add LIMIT 1")
            .into());
        }
        Ok(value.clone())
    }
}
