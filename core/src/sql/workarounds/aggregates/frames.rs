//! Aggregates over frames that rows leave. DataFusion subtracts from a float sum what leaves the frame; this
//! leaves rounding errors, and NaN forever. Here, as in PostgreSQL, a frame is computed from its rows.

use std::collections::VecDeque;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::datatypes::{FieldRef, Schema};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::{Accumulator, AggregateUDF};
use datafusion::physical_plan::PhysicalExpr;

use crate::error::Error;

/// The rows of a frame, and what is needed to compute the function over them.
#[derive(Debug)]
pub(super) struct Frame {
    func: Arc<AggregateUDF>,
    return_field: FieldRef,
    schema: Schema,
    ignore_nulls: bool,
    is_distinct: bool,
    name: String,
    exprs: Vec<Arc<dyn PhysicalExpr>>,
    expr_fields: Vec<FieldRef>,
    /// Batches of arguments of consecutive rows.
    rows: VecDeque<Vec<ArrayRef>>,
}

impl Frame {
    pub(super) fn new(func: Arc<AggregateUDF>, args: AccumulatorArgs<'_>) -> Self {
        Self {
            func,
            return_field: args.return_field,
            schema: args.schema.clone(),
            ignore_nulls: args.ignore_nulls,
            is_distinct: args.is_distinct,
            name: args.name.to_owned(),
            exprs: args.exprs.to_vec(),
            expr_fields: args.expr_fields.to_vec(),
            rows: VecDeque::new(),
        }
    }
}

impl Accumulator for Frame {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        if values.first().is_some_and(|column| !column.is_empty()) {
            self.rows.push_back(values.to_vec());
        }
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let mut leaving = values.first().map_or(0, |column| column.len());
        while leaving > 0 {
            let Some(first) = self.rows.pop_front() else {
                return Err(Error::internal("more rows left a frame than entered it").into());
            };
            let length = first.first().map_or(0, |column| column.len());
            if length > leaving {
                self.rows
                    .push_front(first.iter().map(|column| column.slice(leaving, length - leaving)).collect());
            }
            leaving = leaving.saturating_sub(length);
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let mut accumulator = self.func.accumulator(AccumulatorArgs {
            return_field: Arc::clone(&self.return_field),
            schema: &self.schema,
            ignore_nulls: self.ignore_nulls,
            order_bys: &[],
            is_reversed: false,
            name: &self.name,
            is_distinct: self.is_distinct,
            exprs: &self.exprs,
            expr_fields: &self.expr_fields,
        })?;
        for rows in &self.rows {
            accumulator.update_batch(rows)?;
        }
        accumulator.evaluate()
    }

    fn size(&self) -> usize {
        let rows = self.rows.iter().flatten().map(|column| column.get_array_memory_size());
        size_of_val(self) + rows.sum::<usize>()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Err(Error::internal("a frame has no partial state").into())
    }

    fn merge_batch(&mut self, _: &[ArrayRef]) -> Result<()> {
        Err(Error::internal("a frame has no partial state").into())
    }
}
