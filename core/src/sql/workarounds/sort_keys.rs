//! Comparisons in the keys of sorts, windows and ordered aggregates.
//!
//! DataFusion computes the range of every part of a sort key, to find out how the key is ordered. A function,
//! a CASE or an IN has a range of type NULL, and `<` refuses to compare it with a range of another type. Then
//! the key counts as unsorted, even behind its own sort, and the last check of the plan fails.
//!
//! So a function that returns its argument gives each such side of a comparison a range of its own type.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::BinaryExpr;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility,
};

use super::walk::type_of;
use crate::error::Error;

/// Gives the sides of comparisons in the keys of a node their ranges.
pub(super) fn with_ranges(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let is_sort = matches!(plan, LogicalPlan::Sort(_));
    if !is_sort && !matches!(plan, LogicalPlan::Window(_) | LogicalPlan::Aggregate(_)) {
        return Ok(Transformed::no(plan));
    }
    let [input] = plan.inputs()[..] else { return Ok(Transformed::no(plan)) };
    let schema = Arc::clone(input.schema());
    let names = NamePreserver::new(&plan);
    plan.map_expressions(|expr| {
        let name = names.save(&expr);
        let ranged = if is_sort { in_key(expr, &schema) } else { in_calls(expr, &schema) }?;
        Ok(if ranged.transformed { ranged.update_data(|expr| name.restore(expr)) } else { ranged })
    })
}

/// Rewrites the keys of the window and aggregate functions in an expression.
fn in_calls(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    expr.transform_up(|mut expr| {
        let (partitions, sorts) = match &mut expr {
            Expr::WindowFunction(call) => {
                (call.params.partition_by.as_mut_slice(), call.params.order_by.as_mut_slice())
            }
            Expr::AggregateFunction(call) => ([].as_mut_slice(), call.params.order_by.as_mut_slice()),
            _ => return Ok(Transformed::no(expr)),
        };
        let mut is_changed = false;
        for key in partitions.iter_mut().chain(sorts.iter_mut().map(|sort| &mut sort.expr)) {
            let ranged = in_key(std::mem::take(key), schema)?;
            is_changed |= ranged.transformed;
            *key = ranged.data;
        }
        Ok(Transformed::new_transformed(expr, is_changed))
    })
}

fn in_key(key: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    key.transform_up(|expr| match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right })
            if matches!(op, Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq) =>
        {
            let (left, right) = (ranged(*left, schema), ranged(*right, schema));
            let is_changed = left.transformed || right.transformed;
            let comparison = BinaryExpr::new(Box::new(left.data), op, Box::new(right.data));
            Ok(Transformed::new_transformed(Expr::BinaryExpr(comparison), is_changed))
        }
        other => Ok(Transformed::no(other)),
    })
}

/// Wraps everything but columns and literals, whose ranges have their types.
fn ranged(expr: Expr, schema: &DFSchema) -> Transformed<Expr> {
    if matches!(expr, Expr::Column(_) | Expr::Literal(..)) {
        return Transformed::no(expr);
    }
    let Some(ty) = type_of(&expr, schema) else { return Transformed::no(expr) };
    let signature = Signature::any(1, Volatility::Immutable);
    Transformed::yes(ScalarUDF::new_from_impl(Ranged { ty, signature }).call(vec![expr]))
}

/// Returns its argument, with a range of its type.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Ranged {
    ty: DataType,
    signature: Signature,
}

impl ScalarUDFImpl for Ranged {
    fn name(&self) -> &str {
        "ranged"
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let names: Vec<String> = args.iter().map(|arg| arg.schema_name().to_string()).collect();
        Ok(names.join(", "))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.ty.clone())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let field = args.arg_fields.first().ok_or_else(|| Error::internal("a key has no value"))?;
        Ok(FieldRef::clone(field))
    }

    fn evaluate_bounds(&self, _: &[&Interval]) -> Result<Interval> {
        Interval::make_unbounded(&self.ty)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(args.args.into_iter().next().unwrap_or(ColumnarValue::Scalar(ScalarValue::Null)))
    }
}
