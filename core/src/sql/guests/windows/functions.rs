//! Guards in the window functions that are no aggregates.
//!
//! Invariant: a guarded function differs from the plain one only in what its evaluators check and charge.

use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{ExpressionArgs, PartitionEvaluatorArgs, WindowUDFFieldArgs};
use datafusion::logical_expr::window_state::WindowAggState;
use datafusion::logical_expr::{
    LimitEffect, PartitionEvaluator, ReversedUDWF, Signature, WindowUDF, WindowUDFImpl,
};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::windows::{StandardWindowExpr, WindowExpr, WindowUDFExpr};

use super::Values;

/// Returns a function with guards.
pub(super) fn guarded(func: &Arc<WindowUDF>, values: Values) -> Arc<WindowUDF> {
    let guarded = GuardedFunction { inner: Arc::clone(func), values };
    Arc::new(WindowUDF::new_from_impl(guarded))
}

/// Returns the values of a guarded function.
pub(super) fn values_of(window: &dyn WindowExpr) -> Option<&Values> {
    let window = window.as_any().downcast_ref::<StandardWindowExpr>()?;
    let call = window.get_standard_func_expr().as_any().downcast_ref::<WindowUDFExpr>()?;
    call.fun().inner().downcast_ref::<GuardedFunction>().map(|guarded| &guarded.values)
}

/// A window function whose evaluators check and charge.
#[derive(Debug)]
struct GuardedFunction {
    inner: Arc<WindowUDF>,
    values: Values,
}

impl PartialEq for GuardedFunction {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }
}

impl Eq for GuardedFunction {}

impl Hash for GuardedFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

/// Passes on what a physical plan asks of a window function; no rule sees this function.
impl WindowUDFImpl for GuardedFunction {
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

    fn expressions(&self, args: ExpressionArgs<'_>) -> Vec<Arc<dyn PhysicalExpr>> {
        self.inner.expressions(args)
    }

    fn partition_evaluator(&self, args: PartitionEvaluatorArgs<'_>) -> Result<Box<dyn PartitionEvaluator>> {
        let inner = self.inner.partition_evaluator_factory(args)?;
        Ok(Box::new(GuardedEvaluator { inner, values: self.values.clone() }))
    }

    fn field(&self, args: WindowUDFFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.field(args)
    }

    fn sort_options(&self) -> Option<SortOptions> {
        self.inner.sort_options()
    }

    fn reverse_expr(&self) -> ReversedUDWF {
        match self.inner.reverse_expr() {
            ReversedUDWF::Reversed(inner) => ReversedUDWF::Reversed(guarded(&inner, self.values.clone())),
            other => other,
        }
    }

    fn limit_effect(&self, args: &[Arc<dyn PhysicalExpr>]) -> LimitEffect {
        self.inner.inner().limit_effect(args)
    }
}

#[derive(Debug)]
struct GuardedEvaluator {
    inner: Box<dyn PartitionEvaluator>,
    values: Values,
}

impl PartitionEvaluator for GuardedEvaluator {
    fn memoize(&mut self, state: &mut WindowAggState) -> Result<()> {
        self.inner.memoize(state)
    }

    fn get_range(&self, row: usize, rows: usize) -> Result<Range<usize>> {
        self.inner.get_range(row, rows)
    }

    fn is_causal(&self) -> bool {
        self.inner.is_causal()
    }

    fn evaluate_all(&mut self, columns: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
        self.values.check(rows)?;
        let column = self.inner.evaluate_all(columns, rows)?;
        self.values.held.add(column.get_array_memory_size())?;
        Ok(column)
    }

    fn evaluate(&mut self, columns: &[ArrayRef], range: &Range<usize>) -> Result<ScalarValue> {
        self.values.check(range.len())?;
        let value = self.inner.evaluate(columns, range)?;
        self.values.charge(&value, 1)?;
        Ok(value)
    }

    fn evaluate_all_with_rank(&self, rows: usize, ranks: &[Range<usize>]) -> Result<ArrayRef> {
        self.inner.evaluate_all_with_rank(rows, ranks)
    }

    fn supports_bounded_execution(&self) -> bool {
        self.inner.supports_bounded_execution()
    }

    fn uses_window_frame(&self) -> bool {
        self.inner.uses_window_frame()
    }

    fn include_rank(&self) -> bool {
        self.inner.include_rank()
    }
}
