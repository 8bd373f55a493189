//! A scalar subquery without a row is NULL, even if its column is NOT NULL. DataFusion assumes NOT NULL then,
//! and folds `IS NULL` to false.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, Volatility,
};

use super::has_one_row;
use crate::error::Error;

/// Marks the scalar subqueries that become columns of a node as nullable.
pub(in crate::sql::workarounds) fn may_be_null(node: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    if !matches!(node, LogicalPlan::Projection(_) | LogicalPlan::Aggregate(_) | LogicalPlan::Window(_)) {
        return Ok(Transformed::no(node));
    }
    let names = NamePreserver::new(&node);
    node.map_expressions(|expr| {
        let name = names.save(&expr);
        let marked = expr.transform_down(|part| match &part {
            Expr::ScalarSubquery(subquery) => {
                let plan = &subquery.subquery;
                let is_lost = !plan.schema().field(0).is_nullable() && !has_one_row(plan);
                let part = if is_lost { call(part) } else { part };
                Ok(Transformed::new(part, is_lost, TreeNodeRecursion::Jump))
            }
            _ => Ok(Transformed::no(part)),
        })?;
        Ok(if marked.transformed { marked.update_data(|expr| name.restore(expr)) } else { marked })
    })
}

fn call(expr: Expr) -> Expr {
    let signature = Signature::any(1, Volatility::Immutable);
    let func = Arc::new(ScalarUDF::new_from_impl(MayBeNull { signature }));
    Expr::ScalarFunction(ScalarFunction { func, args: vec![expr] })
}

/// Returns its argument, as nullable.
#[derive(Debug, PartialEq, Eq, Hash)]
struct MayBeNull {
    signature: Signature,
}

impl ScalarUDFImpl for MayBeNull {
    fn name(&self) -> &str {
        "may_be_null"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types.first().cloned().unwrap_or(DataType::Null))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let ty = args.arg_fields.first().map_or(DataType::Null, |field| field.data_type().clone());
        Ok(Arc::new(Field::new(self.name(), ty, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        args.args.into_iter().next().ok_or_else(|| Error::internal("may_be_null() has a value").into())
    }
}
