//! Frames of windows.
//!
//! DataFusion takes `RANGE` for an order it can add to, also where nothing is added: `UNBOUNDED PRECEDING` to `CURRENT ROW` needs no such
//! order, and in groups of peers it is the same. A negative distance is accepted, and ends the query in the middle of it.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::{Expr, WindowFrame, WindowFrameBound, WindowFrameUnits};

use super::walk::type_of;
use crate::error::{Error, ErrorKind, SqlState};

/// Gives window functions frames that DataFusion computes. Runs before type coercion, which reads the distances.
pub(super) fn correct(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::WindowFunction(mut call) = expr else { return Ok(Transformed::no(expr)) };
    let frame = &call.params.window_frame;
    for bound in [&frame.start_bound, &frame.end_bound] {
        if let WindowFrameBound::Preceding(distance) | WindowFrameBound::Following(distance) = bound
            && is_negative(distance)
        {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                SqlState::INVALID_WINDOW_FRAME,
                "the distance of a window frame is negative",
            )
            .hint("write 1 PRECEDING for -1 FOLLOWING")
            .into());
        }
    }
    let adds_nothing = |bound: &WindowFrameBound| match bound {
        WindowFrameBound::CurrentRow => true,
        WindowFrameBound::Preceding(distance) | WindowFrameBound::Following(distance) => distance.is_null(),
    };
    let can_be_added_to = call.params.order_by.iter().all(|sort| {
        type_of(&sort.expr, schema)
            .is_none_or(|ty| ty.is_numeric() || is_date(&ty) || crate::casts::is_text(&ty))
    });
    let is_range = frame.units == WindowFrameUnits::Range;
    if !is_range || can_be_added_to || !adds_nothing(&frame.start_bound) || !adds_nothing(&frame.end_bound) {
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
