//! Intervals compared as PostgreSQL does: a month is 30 days and a day is 24 hours. Arrow compares months first, then days, then the rest.

use std::sync::Arc;

use datafusion::arrow::array::{AsArray, Decimal128Array};
use datafusion::arrow::datatypes::{DataType, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{Between, BinaryExpr, InList, ScalarFunction};
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::super::numbers::is_comparison;
use super::super::walk::type_of;
use crate::error::Error;

const DAY_NS: i128 = 86_400_000_000_000;

const INTERVAL: DataType = DataType::Interval(IntervalUnit::MonthDayNano);

/// Compares intervals by their length. Runs after type coercion: both sides are intervals.
pub(crate) fn compare(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let is_interval = |expr: &Expr| type_of(expr, schema) == Some(INTERVAL);
    Ok(match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right })
            if is_comparison(op) && is_interval(&left) && is_interval(&right) =>
        {
            Transformed::yes(Expr::BinaryExpr(BinaryExpr::new(boxed(*left), op, boxed(*right))))
        }
        Expr::Between(Between { expr, negated, low, high })
            if is_interval(&expr) && is_interval(&low) && is_interval(&high) =>
        {
            Transformed::yes(Expr::Between(Between::new(boxed(*expr), negated, boxed(*low), boxed(*high))))
        }
        Expr::InList(InList { expr, list, negated })
            if is_interval(&expr) && list.iter().all(is_interval) =>
        {
            let list = list.into_iter().map(length).collect();
            Transformed::yes(Expr::InList(InList::new(boxed(*expr), list, negated)))
        }
        other => Transformed::no(other),
    })
}

/// The same for ORDER BY.
pub(crate) fn order(node: LogicalPlan) -> Transformed<LogicalPlan> {
    let LogicalPlan::Sort(mut sort) = node else { return Transformed::no(node) };
    let schema = Arc::clone(sort.input.schema());
    let mut is_changed = false;
    for key in &mut sort.expr {
        if type_of(&key.expr, &schema) == Some(INTERVAL) {
            key.expr = length(std::mem::take(&mut key.expr));
            is_changed = true;
        }
    }
    Transformed::new_transformed(LogicalPlan::Sort(sort), is_changed)
}

fn boxed(expr: Expr) -> Box<Expr> {
    Box::new(length(expr))
}

fn length(expr: Expr) -> Expr {
    let signature = Signature::exact(vec![INTERVAL], Volatility::Immutable);
    let func = Arc::new(ScalarUDF::new_from_impl(Length { signature }));
    Expr::ScalarFunction(ScalarFunction { func, args: vec![expr] })
}

/// An interval's length in nanoseconds.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Length {
    signature: Signature,
}

impl ScalarUDFImpl for Length {
    fn name(&self) -> &str {
        "interval_length"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Decimal128(38, 0))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let value = args.args.first().ok_or_else(|| Error::internal("interval_length() has an argument"))?;
        let is_constant = matches!(value, ColumnarValue::Scalar(_));
        let array = value.to_array(if is_constant { 1 } else { args.number_rows })?;
        let lengths = array.as_primitive::<IntervalMonthDayNanoType>().iter();
        let lengths: Decimal128Array = lengths.map(|value| value.map(nanoseconds)).collect();
        let lengths = lengths.with_precision_and_scale(38, 0)?;
        if is_constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&lengths, 0)?));
        }
        Ok(ColumnarValue::Array(Arc::new(lengths)))
    }
}

fn nanoseconds(value: IntervalMonthDayNano) -> i128 {
    let days = i128::from(value.months) * 30 + i128::from(value.days);
    days * DAY_NS + i128::from(value.nanoseconds)
}
