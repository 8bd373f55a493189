//! DataFusion's own aggregates, each with one behaviour corrected.
//!
//! - Float aggregates, and aggregates without retraction, recompute each frame that rows leave.
//! - `string_agg` with ORDER BY, and `array_agg` with DISTINCT and ORDER BY, sort their rows themselves.
//!   DataFusion makes the order a requirement on the input instead: it refuses two different orders, and
//!   gives two opposite ones with DISTINCT the first order.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::Result;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, GroupsAccumulator, Signature};

use super::frames::Frame;

/// Aggregates that DataFusion computes in doubles.
const OF_DOUBLES: [&str; 16] = [
    "avg",
    "corr",
    "covar_pop",
    "covar_samp",
    "regr_avgx",
    "regr_avgy",
    "regr_intercept",
    "regr_r2",
    "regr_slope",
    "regr_sxx",
    "regr_sxy",
    "regr_syy",
    "stddev",
    "stddev_pop",
    "var",
    "var_pop",
];

/// Aggregates without retraction: rows cannot leave them again.
const OF_ALL_ROWS: [&str; 7] =
    ["array_agg", "bit_and", "bit_or", "bit_xor", "bool_and", "bool_or", "string_agg"];

/// Returns the function with each frame computed by itself; `None` if its own retraction is exact.
pub(super) fn by_frame(func: &Arc<AggregateUDF>, argument: &DataType) -> Option<AggregateUDF> {
    let is_of_floats = OF_DOUBLES.contains(&func.name()) && argument.is_numeric()
        || func.name() == "sum" && argument.is_floating();
    adapted(func, Order::Any).filter(|_| is_of_floats || OF_ALL_ROWS.contains(&func.name()))
}

/// Returns the function of a call that sorts its rows itself; `None` for any other call.
pub(super) fn sorting(call: &AggregateFunction) -> Option<AggregateUDF> {
    let sorts_itself = match call.func.name() {
        "string_agg" => true,
        "array_agg" => call.params.distinct,
        _ => false,
    };
    // With DISTINCT, the order is that of the values.
    let order = if call.params.distinct { Order::Any } else { Order::Own };
    adapted(&call.func, order).filter(|_| sorts_itself && !call.params.order_by.is_empty())
}

fn adapted(func: &Arc<AggregateUDF>, order: Order) -> Option<AggregateUDF> {
    if func.inner().is::<Adapted>() {
        return None;
    }
    Some(AggregateUDF::new_from_impl(Adapted { inner: Arc::clone(func), order }))
}

/// The input order that a function wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Order {
    Any,
    /// The order of its ORDER BY; the function sorts rows that arrive in another order.
    Own,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Adapted {
    inner: Arc<AggregateUDF>,
    order: Order,
}

impl AggregateUDFImpl for Adapted {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn return_field(&self, fields: &[FieldRef]) -> Result<FieldRef> {
        self.inner.return_field(fields)
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        self.inner.state_fields(args)
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.inner.accumulator(args)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        self.inner.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        self.inner.create_groups_accumulator(args)
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Frame::new(Arc::clone(&self.inner), args)))
    }

    /// Ignores that the rows may already be in order; the function sorts them anyway.
    fn with_beneficial_ordering(self: Arc<Self>, _: bool) -> Result<Option<Arc<dyn AggregateUDFImpl>>> {
        Ok(Some(self))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        match self.order {
            Order::Any => AggregateOrderSensitivity::Insensitive,
            Order::Own => AggregateOrderSensitivity::SoftRequirement,
        }
    }
}
