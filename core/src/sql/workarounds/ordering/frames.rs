//! Window frames.
//!
//! RANGE frames that DataFusion computes wrongly:
//!
//! | DataFusion | here |
//! |---|---|
//! | `UNBOUNDED PRECEDING` to `CURRENT ROW` needs a sort key with addition | a GROUPS frame, same rows |
//! | a negative distance selects fewer than no rows | 22013 |
//! | a sort by TIME is an internal error | sorts by a TIMESTAMP |
//! | a distance is cut to the sort key's scale, or overflows and includes NULLs | sorts by a DECIMAL |

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::{Expr, WindowFrame, WindowFrameBound, WindowFrameUnits};

use super::super::types::casts::cast_to;
use super::super::walk::type_of;
use crate::error::{Error, ErrorKind, SqlState};

/// Corrects frames that DataFusion cannot compute. Runs before type coercion, which reads the distances.
pub(in crate::sql::workarounds) fn correct(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::WindowFunction(mut call) = expr else { return Ok(Transformed::no(expr)) };
    let frame = &call.params.window_frame;
    for bound in [&frame.start_bound, &frame.end_bound] {
        if let WindowFrameBound::Preceding(distance) | WindowFrameBound::Following(distance) = bound
            && is_negative(distance)
        {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                SqlState::INVALID_WINDOW_FRAME,
                "the offset of a window frame is negative",
            )
            .hint("write 1 PRECEDING instead of -1 FOLLOWING")
            .into());
        }
    }
    let is_range = frame.units == WindowFrameUnits::Range;
    if is_range
        && let [sort] = call.params.order_by.as_mut_slice()
        && matches!(type_of(&sort.expr, schema), Some(DataType::Time64(_)))
        && !adds_nothing(&call.params.window_frame.start_bound, &call.params.window_frame.end_bound)
    {
        let micros = cast_to(std::mem::take(&mut sort.expr), DataType::Int64);
        sort.expr = cast_to(micros, DataType::Timestamp(TimeUnit::Microsecond, None));
        return Ok(Transformed::yes(Expr::WindowFunction(call)));
    }
    if is_range
        && let [sort] = call.params.order_by.as_mut_slice()
        && let Some(scale) = scale_needed(&call.params.window_frame, type_of(&sort.expr, schema))
    {
        sort.expr = cast_to(std::mem::take(&mut sort.expr), DataType::Decimal128(38, scale));
        return Ok(Transformed::yes(Expr::WindowFunction(call)));
    }
    let can_be_added_to = call.params.order_by.iter().all(|sort| {
        type_of(&sort.expr, schema)
            .is_none_or(|ty| ty.is_numeric() || is_date(&ty) || crate::casts::is_text(&ty))
    });
    let frame = &call.params.window_frame;
    if !is_range || can_be_added_to || !adds_nothing(&frame.start_bound, &frame.end_bound) {
        return Ok(Transformed::no(Expr::WindowFunction(call)));
    }
    let bound = |bound: &WindowFrameBound| match bound {
        WindowFrameBound::Preceding(_) => WindowFrameBound::Preceding(ScalarValue::UInt64(None)),
        WindowFrameBound::Following(_) => WindowFrameBound::Following(ScalarValue::UInt64(None)),
        WindowFrameBound::CurrentRow => WindowFrameBound::CurrentRow,
    };
    let (start, end) = (bound(&frame.start_bound), bound(&frame.end_bound));
    call.params.window_frame = WindowFrame::new_bounds(WindowFrameUnits::Groups, start, end);
    Ok(Transformed::yes(Expr::WindowFunction(call)))
}

/// Whether both bounds are peers of the row or ends of the partition.
fn adds_nothing(start: &WindowFrameBound, end: &WindowFrameBound) -> bool {
    [start, end].into_iter().all(|bound| match bound {
        WindowFrameBound::CurrentRow => true,
        WindowFrameBound::Preceding(distance) | WindowFrameBound::Following(distance) => distance.is_null(),
    })
}

/// The scale that an exact numeric sort key and its frame's distances need; `None` if nothing is added.
fn scale_needed(frame: &WindowFrame, order: Option<DataType>) -> Option<i8> {
    let own = match order? {
        DataType::Decimal128(_, scale) => scale,
        ty if ty.is_integer() => 0,
        _ => return None,
    };
    let scales = [&frame.start_bound, &frame.end_bound].into_iter().filter_map(|bound| match bound {
        WindowFrameBound::Preceding(distance) | WindowFrameBound::Following(distance) => scale_of(distance),
        WindowFrameBound::CurrentRow => None,
    });
    scales.max().map(|scale| scale.max(own))
}

/// The scale of a numeric distance.
fn scale_of(distance: &ScalarValue) -> Option<i8> {
    match distance {
        distance if distance.is_null() => None,
        ScalarValue::Utf8(Some(text)) if text.parse::<f64>().is_ok() => {
            let fraction = text.split_once('.').map_or("", |(_, fraction)| fraction);
            i8::try_from(fraction.len()).ok()
        }
        ScalarValue::Decimal128(_, _, scale) => Some(*scale),
        distance if distance.data_type().is_integer() => Some(0),
        _ => None,
    }
}

fn is_date(ty: &DataType) -> bool {
    matches!(ty, DataType::Date32 | DataType::Date64 | DataType::Timestamp(..))
}

fn is_negative(distance: &ScalarValue) -> bool {
    match distance {
        ScalarValue::Utf8(Some(text)) => text.trim().starts_with('-'),
        ScalarValue::IntervalMonthDayNano(Some(value)) => {
            value.months < 0 || value.days < 0 || value.nanoseconds < 0
        }
        other if other.is_null() => false,
        other => ScalarValue::new_zero(&other.data_type())
            .ok()
            .and_then(|zero| other.partial_cmp(&zero))
            .is_some_and(std::cmp::Ordering::is_lt),
    }
}
