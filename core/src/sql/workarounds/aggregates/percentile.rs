//! `percentile_cont(fraction) WITHIN GROUP (ORDER BY x)`: DataFusion interpolates with only six digits.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature};
use datafusion::physical_expr::expressions::Literal;

use super::frames::Frame;
use crate::casts::cast;

/// Returns the replacement for a `percentile_cont` call; `None` for any other call.
pub(super) fn percentile(call: &AggregateFunction) -> Option<AggregateUDF> {
    let is_percentile = call.func.name() == "percentile_cont" && !call.func.inner().is::<Percentile>();
    is_percentile.then(|| AggregateUDF::new_from_impl(Percentile { inner: Arc::clone(&call.func) }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Percentile {
    inner: Arc<AggregateUDF>,
}

impl AggregateUDFImpl for Percentile {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn supports_within_group_clause(&self) -> bool {
        true
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let values = DataType::new_list(DataType::Float64, true);
        Ok(vec![Arc::new(Field::new(format_state_name(args.name, "values"), values, true))])
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        let fraction = args.exprs.get(1).and_then(|expr| expr.downcast_ref::<Literal>());
        let fraction = fraction.map(|literal| literal.value().cast_to(&DataType::Float64)).transpose()?;
        let is_descending = args.order_bys.first().is_some_and(|sort| sort.options.descending);
        let is_distinct = args.is_distinct;
        match fraction {
            Some(ScalarValue::Float64(Some(fraction))) if (0.0..=1.0).contains(&fraction) => {
                Ok(Box::new(Values { fraction, is_descending, is_distinct, values: Vec::new() }))
            }
            Some(ScalarValue::Float64(None)) => {
                Ok(Box::new(Values { fraction: f64::NAN, is_descending, is_distinct, values: Vec::new() }))
            }
            // DataFusion's function returns the error.
            _ => self.inner.accumulator(args),
        }
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        let func = AggregateUDF::new_from_impl(Self { inner: Arc::clone(&self.inner) });
        Ok(Box::new(Frame::new(Arc::new(func), args)))
    }
}

#[derive(Debug)]
struct Values {
    /// From 0 to 1; NaN for NULL, which makes the result NULL.
    fraction: f64,
    is_descending: bool,
    is_distinct: bool,
    values: Vec<f64>,
}

impl Accumulator for Values {
    fn update_batch(&mut self, columns: &[ArrayRef]) -> Result<()> {
        if let Some(column) = columns.first() {
            let column = cast(column, &DataType::Float64)?;
            self.values.extend(column.as_primitive::<Float64Type>().iter().flatten());
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let Some(lists) = states.first() else { return Ok(()) };
        for list in lists.as_list::<i32>().iter().flatten() {
            self.values.extend(list.as_primitive::<Float64Type>().iter().flatten());
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let values: Vec<_> = self.values.iter().map(|value| ScalarValue::Float64(Some(*value))).collect();
        Ok(vec![ScalarValue::List(ScalarValue::new_list_nullable(&values, &DataType::Float64))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.values.sort_unstable_by(f64::total_cmp);
        if self.is_distinct {
            self.values.dedup_by(|one, other| one.total_cmp(other).is_eq());
        }
        if self.is_descending {
            self.values.reverse();
        }
        Ok(ScalarValue::Float64(self.value()))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.capacity() * size_of::<f64>()
    }
}

impl Values {
    /// Interpolates between the two sorted values around the fraction's position.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "places of values in memory"
    )]
    fn value(&self) -> Option<f64> {
        let last = self.values.len().checked_sub(1)?;
        if self.fraction.is_nan() {
            return None;
        }
        let place = self.fraction * last as f64;
        let lower = self.values.get(place.floor() as usize)?;
        let upper = self.values.get(place.ceil() as usize)?;
        if place.fract() == 0.0 {
            return Some(*lower);
        }
        Some(lower + place.fract() * (upper - lower))
    }
}
