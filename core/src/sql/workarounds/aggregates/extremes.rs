//! `min` and `max` of floats: in windows, over all rows, and over groups.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::mem::size_of_val;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray};
use datafusion::arrow::datatypes::ArrowPrimitiveType;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{Accumulator, GroupsAccumulator};
use datafusion_functions_aggregate_common::aggregate::groups_accumulator::prim_op::PrimitiveGroupsAccumulator;

use super::{Kind, Retraction};

/// Floats in SQL's order, where NaN is the greatest.
pub(super) trait Float: Copy + PartialOrd + Debug {
    fn is_nan(self) -> bool;

    /// Whether `self` comes before `other`.
    fn is_less(self, other: Self) -> bool {
        self < other || (other.is_nan() && !self.is_nan())
    }
}

impl Float for f32 {
    fn is_nan(self) -> bool {
        f32::is_nan(self)
    }
}

impl Float for f64 {
    fn is_nan(self) -> bool {
        f64::is_nan(self)
    }
}

/// Returns extremes of groups. Maxima start from `least` (-infinity), minima from `greatest` (NaN).
pub(super) fn extremes<T>(kind: Kind, least: T::Native, greatest: T::Native) -> Box<dyn GroupsAccumulator>
where
    T: ArrowPrimitiveType + Send,
    T::Native: Float,
{
    if kind == Kind::Least {
        let take = |least: &mut T::Native, value: T::Native| {
            if value.is_less(*least) {
                *least = value;
            }
        };
        return Box::new(
            PrimitiveGroupsAccumulator::<T, _>::new(&T::DATA_TYPE, take).with_starting_value(greatest),
        );
    }
    let take = |greatest: &mut T::Native, value: T::Native| {
        if greatest.is_less(value) {
            *greatest = value;
        }
    };
    Box::new(PrimitiveGroupsAccumulator::<T, _>::new(&T::DATA_TYPE, take).with_starting_value(least))
}

/// The extreme of the rows that entered and did not leave. Keeps only rows that can still become it.
#[derive(Debug)]
pub(super) struct Extreme<T: ArrowPrimitiveType> {
    kind: Kind,
    retraction: Retraction,
    /// Row numbers and values, the extreme first.
    candidates: VecDeque<(u64, T::Native)>,
    /// Numbers of non-NULL rows that entered and left.
    came: u64,
    went: u64,
    of: PhantomData<fn(T)>,
}

impl<T: ArrowPrimitiveType> Extreme<T>
where
    T::Native: Float,
{
    pub(super) fn new(kind: Kind, retraction: Retraction) -> Self {
        Self { kind, retraction, candidates: VecDeque::new(), came: 0, went: 0, of: PhantomData }
    }

    fn take(&mut self, value: T::Native) {
        let kind = self.kind;
        let is_beaten = |last: T::Native| match kind {
            Kind::Least => !last.is_less(value),
            _ => !value.is_less(last),
        };
        while self.candidates.back().is_some_and(|(_, last)| is_beaten(*last)) {
            self.candidates.pop_back();
        }
        // A row after a better one matters only if the better one can leave first.
        if self.retraction == Retraction::Possible || self.candidates.is_empty() {
            self.candidates.push_back((self.came, value));
        }
        self.came += 1;
    }
}

impl<T: ArrowPrimitiveType + Debug> Accumulator for Extreme<T>
where
    T::Native: Float,
{
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let Some(values) = values.first() else { return Ok(()) };
        values.as_primitive::<T>().iter().flatten().for_each(|value| self.take(value));
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let Some(values) = values.first() else { return Ok(()) };
        self.went += (values.len() - values.null_count()) as u64;
        while self.candidates.front().is_some_and(|(row, _)| *row < self.went) {
            self.candidates.pop_front();
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let extreme = PrimitiveArray::<T>::from_iter([self.candidates.front().map(|(_, value)| *value)]);
        ScalarValue::try_from_array(&extreme, 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.candidates.capacity() * size_of::<(u64, T::Native)>()
    }
}
