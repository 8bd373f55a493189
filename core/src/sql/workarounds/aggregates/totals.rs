//! `sum` and `avg`: in windows, over all rows, and over groups.

use std::collections::HashSet;
use std::mem::size_of_val;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Int64Array};
use datafusion::arrow::datatypes::{DataType, Decimal128Type, Int64Type, i256};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{Accumulator, EmitTo, GroupsAccumulator};
use datafusion_functions_aggregate_common::aggregate::groups_accumulator::prim_op::PrimitiveGroupsAccumulator;

use super::super::operations::DIGITS;
use super::unexpected;
use crate::casts::{divide, out_of_range};

pub(super) fn scale_of(ty: &DataType) -> i8 {
    if let DataType::Decimal128(_, scale) = ty { *scale } else { 0 }
}

pub(super) fn sum_type(input: &DataType) -> DataType {
    DataType::Decimal128(DIGITS, scale_of(input))
}

/// The unscaled integers of a BIGINT or DECIMAL column.
fn units(array: &ArrayRef) -> Box<dyn Iterator<Item = Option<i128>> + '_> {
    match array.as_primitive_opt::<Int64Type>() {
        Some(whole) => Box::new(whole.iter().map(|value| value.map(i128::from))),
        None => Box::new(array.as_primitive::<Decimal128Type>().iter()),
    }
}

/// Sum and count of a column, with retraction. Fewer than 2^128 rows cannot overflow the sum.
#[derive(Debug)]
pub(super) struct Total {
    sum: i256,
    count: i64,
    input: DataType,
    result: DataType,
    is_average: bool,
}

impl Total {
    pub(super) fn new(input: DataType, result: DataType, is_average: bool) -> Self {
        Self { sum: i256::ZERO, count: 0, input, result, is_average }
    }

    fn sum(&self) -> Option<i128> {
        self.sum.to_i128()
    }

    /// The sum as a value of `ty`; NULL without rows.
    fn sum_as(&self, ty: &DataType) -> Result<ScalarValue> {
        if self.count == 0 {
            return ScalarValue::try_from(ty);
        }
        decimal_or_whole(self.sum().ok_or_else(|| out_of_range(ty))?, ty)
    }
}

/// Returns an unscaled integer as a value of `ty`, or 22003 if it does not fit.
fn decimal_or_whole(units: i128, ty: &DataType) -> Result<ScalarValue> {
    match ty {
        DataType::Decimal128(digits, scale) if units.unsigned_abs() < 10_u128.pow(u32::from(*digits)) => {
            Ok(ScalarValue::Decimal128(Some(units), *digits, *scale))
        }
        DataType::Int64 => Ok(ScalarValue::Int64(Some(i64::try_from(units).map_err(|_| out_of_range(ty))?))),
        _ => Err(out_of_range(ty).into()),
    }
}

impl Accumulator for Total {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let Some(values) = values.first() else { return Ok(()) };
        for value in units(values).flatten() {
            self.sum = self.sum.wrapping_add(i256::from_i128(value));
            self.count += 1;
        }
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let Some(values) = values.first() else { return Ok(()) };
        for value in units(values).flatten() {
            self.sum = self.sum.wrapping_sub(i256::from_i128(value));
            self.count -= 1;
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        if !self.is_average {
            return self.sum_as(&self.result);
        }
        let average = match (self.count, self.sum()) {
            (0, _) => return ScalarValue::try_from(&self.result),
            (count, Some(sum)) => average(sum, count, scale_of(&self.input), scale_of(&self.result)),
            (_, None) => None,
        };
        let average = average.ok_or_else(|| out_of_range(&self.result))?;
        decimal_or_whole(average, &self.result)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        if !self.is_average {
            return Ok(vec![self.sum_as(&sum_type(&self.input))?]);
        }
        Ok(vec![ScalarValue::Int64(Some(self.count)), self.sum_as(&sum_type(&self.input))?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        match states {
            [counts, sums] => {
                self.count += counts.as_primitive::<Int64Type>().iter().flatten().sum::<i64>();
                for sum in units(sums).flatten() {
                    self.sum = self.sum.wrapping_add(i256::from_i128(sum));
                }
                Ok(())
            }
            sums => self.update_batch(sums),
        }
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

/// The average in units of 10^-`to`, rounded; `from` is the scale of the sum.
fn average(sum: i128, count: i64, from: i8, to: i8) -> Option<i128> {
    divide((sum, from), (i128::from(count), 0), to)
}

/// Sum and average of distinct values.
#[derive(Debug)]
pub(super) struct DistinctTotal {
    total: Total,
    values: HashSet<i128>,
}

impl DistinctTotal {
    pub(super) fn new(total: Total) -> Self {
        Self { total, values: HashSet::new() }
    }
}

impl Accumulator for DistinctTotal {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let Some(values) = values.first() else { return Ok(()) };
        self.values.extend(units(values).flatten());
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.total.count = i64::try_from(self.values.len()).unwrap_or(i64::MAX);
        let add = |sum: i256, value: &i128| sum.wrapping_add(i256::from_i128(*value));
        self.total.sum = self.values.iter().fold(i256::ZERO, add);
        self.total.evaluate()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let input = &self.total.input;
        let values = self.values.iter().map(|value| decimal_or_whole(*value, input));
        let values = values.collect::<Result<Vec<_>>>()?;
        Ok(vec![ScalarValue::List(ScalarValue::new_list_nullable(&values, input))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let Some(lists) = states.first() else { return Ok(()) };
        for list in lists.as_list::<i32>().iter().flatten() {
            self.values.extend(units(&list).flatten());
        }
        Ok(())
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.capacity() * size_of::<i128>()
    }
}

/// Sums of groups. They keep 38 digits until the end, so row order does not decide whether a result fits.
pub(super) struct GroupSums {
    inner: Box<dyn GroupsAccumulator>,
    /// Set once a sum exceeded 38 digits.
    overflowed: Arc<AtomicBool>,
    state: DataType,
    result: DataType,
}

impl GroupSums {
    pub(super) fn new(input: &DataType, result: &DataType) -> Self {
        const LIMIT: u128 = 10_u128.pow(DIGITS as u32);
        let overflowed = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&overflowed);
        let state = sum_type(input);
        let add = move |sum: &mut i128, value: i128| match sum.checked_add(value) {
            Some(added) if added.unsigned_abs() < LIMIT => *sum = added,
            _ => flag.store(true, Ordering::Relaxed),
        };
        let inner = Box::new(PrimitiveGroupsAccumulator::<Decimal128Type, _>::new(&state, add));
        Self { inner, overflowed, state, result: result.clone() }
    }

    fn check(&self) -> Result<()> {
        if self.overflowed.load(Ordering::Relaxed) { Err(out_of_range(&self.result).into()) } else { Ok(()) }
    }

    /// The column's values in the type of the sums.
    fn summands(&self, values: &[ArrayRef]) -> Result<[ArrayRef; 1]> {
        let values = values.first().ok_or_else(|| unexpected("sum"))?;
        let decimals = match values.as_primitive_opt::<Int64Type>() {
            Some(whole) => Arc::new(whole.unary::<_, Decimal128Type>(i128::from)),
            None => Arc::clone(values),
        };
        Ok([with_type(decimals, &self.state)?])
    }
}

impl GroupsAccumulator for GroupSums {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<()> {
        self.inner.update_batch(&self.summands(values)?, groups, filter, group_count)?;
        self.check()
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let sums = self.inner.evaluate(emit_to)?;
        let sums = sums.as_primitive::<Decimal128Type>();
        let out_of_range = || out_of_range(&self.result);
        match &self.result {
            DataType::Int64 => {
                let fitting = |sum| i64::try_from(sum).map_err(|_| out_of_range());
                Ok(Arc::new(sums.try_unary::<_, Int64Type, _>(fitting)?))
            }
            ty @ DataType::Decimal128(digits, _) => {
                sums.validate_decimal_precision(*digits).map_err(|_| out_of_range())?;
                with_type(Arc::new(sums.clone()), ty)
            }
            _ => Err(unexpected("sum")),
        }
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.inner.state(emit_to)
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], group_count: usize) -> Result<()> {
        self.inner.merge_batch(values, groups, group_count)?;
        self.check()
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let states = self.inner.convert_to_state(&self.summands(values)?, filter)?;
        states.into_iter().map(|state| with_type(state, &self.state)).collect()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }
}

/// Gives decimals the precision of `ty`, which has the same scale.
fn with_type(array: ArrayRef, ty: &DataType) -> Result<ArrayRef> {
    match (array.as_primitive_opt::<Decimal128Type>(), ty) {
        (Some(decimals), DataType::Decimal128(digits, scale)) => {
            Ok(Arc::new(decimals.clone().with_precision_and_scale(*digits, *scale)?))
        }
        _ => Ok(array),
    }
}

/// Averages of groups.
pub(super) struct GroupAverages {
    sums: GroupSums,
    counts: Box<dyn GroupsAccumulator>,
    result: DataType,
    /// The scale of the column.
    scale: i8,
}

/// 1 for each value, NULL for NULL.
fn ones(values: &ArrayRef) -> ArrayRef {
    Arc::new(Int64Array::new(vec![1; values.len()].into(), values.nulls().cloned()))
}

impl GroupAverages {
    pub(super) fn new(input: &DataType, result: &DataType) -> Self {
        let add = |count: &mut i64, more| *count += more;
        Self {
            sums: GroupSums::new(input, &sum_type(input)),
            counts: Box::new(PrimitiveGroupsAccumulator::<Int64Type, _>::new(&DataType::Int64, add)),
            result: result.clone(),
            scale: scale_of(input),
        }
    }
}

impl GroupsAccumulator for GroupAverages {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<()> {
        let Some(column) = values.first() else { return Ok(()) };
        self.counts.update_batch(&[ones(column)], groups, filter, group_count)?;
        self.sums.update_batch(values, groups, filter, group_count)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let counts = self.counts.evaluate(emit_to)?;
        let sums = self.sums.evaluate(emit_to)?;
        let (counts, sums) = (counts.as_primitive::<Int64Type>(), sums.as_primitive::<Decimal128Type>());
        let scale = scale_of(&self.result);
        let averages = sums.iter().zip(counts).map(|(sum, count)| match (sum, count) {
            (Some(sum), Some(count)) => match average(sum, count, self.scale, scale) {
                Some(average) => Ok(Some(average)),
                None => Err(out_of_range(&self.result)),
            },
            _ => Ok(None),
        });
        let averages = averages.collect::<crate::error::Result<Decimal128Array>>()?;
        with_type(Arc::new(averages), &self.result)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let mut states = self.counts.state(emit_to)?;
        states.extend(self.sums.state(emit_to)?);
        Ok(states)
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], group_count: usize) -> Result<()> {
        let [counts, sums] = states else { return Err(unexpected("avg")) };
        self.counts.merge_batch(std::slice::from_ref(counts), groups, group_count)?;
        self.sums.merge_batch(std::slice::from_ref(sums), groups, group_count)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let Some(column) = values.first() else { return Err(unexpected("avg")) };
        let mut states = self.counts.convert_to_state(&[ones(column)], filter)?;
        states.extend(self.sums.convert_to_state(values, filter)?);
        Ok(states)
    }

    fn size(&self) -> usize {
        self.counts.size() + self.sums.size()
    }
}
