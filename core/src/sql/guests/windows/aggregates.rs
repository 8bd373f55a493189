//! Guards in the aggregates of windows.
//!
//! Invariant: a guarded aggregate differs from the plain one only in what its accumulators check and charge.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::expr::WindowFunctionParams;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, ReversedUDAF, SetMonotonicity, Signature, WindowFrameBound,
    WindowFrameUnits,
};
use datafusion::physical_expr::window::SlidingAggregateWindowExpr;
use datafusion::physical_plan::windows::{PlainAggregateWindowExpr, WindowExpr};

use super::Values;

/// Returns an aggregate with guards.
pub(super) fn guarded(
    func: &Arc<AggregateUDF>,
    params: &WindowFunctionParams,
    values: Values,
) -> Arc<AggregateUDF> {
    let guarded = GuardedAggregate { inner: Arc::clone(func), repetition: Repetition::of(params), values };
    Arc::new(AggregateUDF::new_from_impl(guarded))
}

/// Returns the values of a guarded aggregate.
pub(super) fn values_of(window: &dyn WindowExpr) -> Option<&Values> {
    let any = window.as_any();
    let plain = any.downcast_ref::<PlainAggregateWindowExpr>();
    let sliding = any.downcast_ref::<SlidingAggregateWindowExpr>();
    let aggregate = match (plain, sliding) {
        (Some(plain), _) => plain.get_aggregate_expr(),
        (None, sliding) => sliding?.get_aggregate_expr(),
    };
    aggregate.fun().inner().downcast_ref::<GuardedAggregate>().map(|guarded| &guarded.values)
}

/// How often a window repeats a value without asking for it again.
#[derive(Clone, Copy, Debug)]
enum Repetition {
    /// Each row has a value.
    Never,
    /// All rows of the frame have the same value.
    InFrame,
    /// So have further rows, which a FILTER keeps out of the frame.
    Beyond,
}

impl Repetition {
    fn of(params: &WindowFunctionParams) -> Self {
        let frame = &params.window_frame;
        // Without ORDER BY, all rows are peers of the current one.
        let are_peers = frame.units == WindowFrameUnits::Range && params.order_by.is_empty();
        let is_constant = |bound: &WindowFrameBound| match bound {
            WindowFrameBound::CurrentRow => are_peers,
            other => other.is_unbounded(),
        };
        match is_constant(&frame.start_bound) && is_constant(&frame.end_bound) {
            false => Self::Never,
            true if params.filter.is_none() => Self::InFrame,
            true => Self::Beyond,
        }
    }
}

/// An aggregate whose accumulators check and charge.
#[derive(Debug)]
struct GuardedAggregate {
    inner: Arc<AggregateUDF>,
    repetition: Repetition,
    values: Values,
}

impl PartialEq for GuardedAggregate {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }
}

impl Eq for GuardedAggregate {}

impl Hash for GuardedAggregate {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl GuardedAggregate {
    fn guarded(&self, inner: Box<dyn Accumulator>) -> Box<dyn Accumulator> {
        let (repetition, values) = (self.repetition, self.values.clone());
        Box::new(GuardedAccumulator { inner, repetition, values, frame_rows: 0 })
    }
}

/// Passes on what a physical plan asks of the aggregate of a window; no rule sees this function.
impl AggregateUDFImpl for GuardedAggregate {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn window_function_schema_name(&self, params: &WindowFunctionParams) -> Result<String> {
        self.inner.window_function_schema_name(params)
    }

    fn window_function_display_name(&self, params: &WindowFunctionParams) -> Result<String> {
        self.inner.window_function_display_name(params)
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

    fn is_nullable(&self) -> bool {
        self.inner.is_nullable()
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        self.inner.state_fields(args)
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(self.guarded(self.inner.accumulator(args)?))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(self.guarded(self.inner.create_sliding_accumulator(args)?))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.inner.order_sensitivity()
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        match self.inner.reverse_udf() {
            ReversedUDAF::Reversed(inner) => {
                let reversed = Self { inner, repetition: self.repetition, values: self.values.clone() };
                ReversedUDAF::Reversed(Arc::new(AggregateUDF::new_from_impl(reversed)))
            }
            other => other,
        }
    }

    fn is_descending(&self) -> Option<bool> {
        self.inner.is_descending()
    }

    fn default_value(&self, ty: &DataType) -> Result<ScalarValue> {
        self.inner.default_value(ty)
    }

    fn supports_null_handling_clause(&self) -> bool {
        self.inner.supports_null_handling_clause()
    }

    fn supports_within_group_clause(&self) -> bool {
        self.inner.supports_within_group_clause()
    }

    fn set_monotonicity(&self, ty: &DataType) -> SetMonotonicity {
        self.inner.inner().set_monotonicity(ty)
    }
}

#[derive(Debug)]
struct GuardedAccumulator {
    inner: Box<dyn Accumulator>,
    repetition: Repetition,
    values: Values,
    frame_rows: usize,
}

impl Accumulator for GuardedAccumulator {
    fn update_batch(&mut self, columns: &[ArrayRef]) -> Result<()> {
        self.frame_rows = self.frame_rows.saturating_add(rows(columns));
        self.inner.update_batch(columns)
    }

    fn retract_batch(&mut self, columns: &[ArrayRef]) -> Result<()> {
        self.frame_rows = self.frame_rows.saturating_sub(rows(columns));
        self.inner.retract_batch(columns)
    }

    fn supports_retract_batch(&self) -> bool {
        self.inner.supports_retract_batch()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.values.check(self.frame_rows)?;
        let value = self.inner.evaluate()?;
        let rows = match self.repetition {
            Repetition::Never => 1,
            Repetition::InFrame => self.frame_rows,
            Repetition::Beyond => {
                self.values.check_room(&value)?;
                self.frame_rows
            }
        };
        self.values.charge(&value, rows)?;
        Ok(value)
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.inner.state()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.inner.merge_batch(states)
    }
}

fn rows(columns: &[ArrayRef]) -> usize {
    columns.first().map_or(0, |column| column.len())
}
