//! Fields of intervals and of timestamp differences, which are days and a time of day as in PostgreSQL.
//! DataFusion converts the whole difference to each field's unit, and its years have 360 days.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{
    DataType, Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, TimeUnit,
};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::super::types::kinds::INTERVAL;
use crate::casts::DAY_US;
use crate::error::Error;

const HOUR_US: i64 = 3_600_000_000;
const MINUTE_US: i64 = 60_000_000;

/// Returns the function for a field; `None` for a field that intervals do not have.
pub(super) fn function(name: &str) -> Option<ScalarUDF> {
    let field = Field::named(name)?;
    Some(ScalarUDF::new_from_impl(SpanFunction {
        field,
        signature: Signature::any(2, Volatility::Immutable),
    }))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Field {
    Millennium,
    Century,
    Decade,
    Year,
    Quarter,
    Month,
    Day,
    Hour,
    Minute,
    /// With its fraction.
    Second,
    /// Includes the seconds and their fraction.
    Millisecond,
    /// Includes the seconds.
    Microsecond,
    /// Seconds of the whole interval: a year has 365.25 days, a month 30.
    Epoch,
}

impl Field {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "millennium" | "millennia" => Self::Millennium,
            "century" | "centuries" => Self::Century,
            "decade" | "decades" => Self::Decade,
            "year" | "years" => Self::Year,
            "quarter" | "quarters" => Self::Quarter,
            "month" | "months" => Self::Month,
            "day" | "days" => Self::Day,
            "hour" | "hours" => Self::Hour,
            "minute" | "minutes" => Self::Minute,
            "second" | "seconds" | "sec" | "secs" | "s" => Self::Second,
            "millisecond" | "milliseconds" | "msec" | "msecs" | "ms" => Self::Millisecond,
            "microsecond" | "microseconds" | "usec" | "usecs" | "us" => Self::Microsecond,
            "epoch" => Self::Epoch,
            _ => return None,
        })
    }

    fn has_fraction(self) -> bool {
        matches!(self, Self::Second | Self::Millisecond | Self::Epoch)
    }

    /// The value of an integer field.
    fn whole(self, span: Span) -> i64 {
        match self {
            Self::Millennium => span.months / 12_000,
            Self::Century => span.months / 1_200,
            Self::Decade => span.months / 120,
            Self::Year => span.months / 12,
            Self::Quarter => span.months % 12 / 3 + 1,
            Self::Month => span.months % 12,
            Self::Day => span.days,
            Self::Hour => span.micros / HOUR_US,
            Self::Minute => span.micros / MINUTE_US % 60,
            Self::Second | Self::Millisecond | Self::Microsecond | Self::Epoch => span.micros % MINUTE_US,
        }
    }

    /// The value of a field with a fraction.
    #[expect(clippy::cast_precision_loss, reason = "the result is a double")]
    fn real(self, span: Span) -> f64 {
        match self {
            Self::Epoch => {
                let days = (span.months / 12) as f64 * 365.25 + (span.months % 12 * 30 + span.days) as f64;
                days * 86_400.0 + span.micros as f64 / 1e6
            }
            Self::Millisecond => self.whole(span) as f64 / 1e3,
            _ => self.whole(span) as f64 / 1e6,
        }
    }
}

/// An interval; `micros` excludes months and days.
#[derive(Clone, Copy)]
struct Span {
    months: i64,
    days: i64,
    micros: i64,
}

impl Span {
    fn of_interval(value: IntervalMonthDayNano) -> Self {
        Self {
            months: i64::from(value.months),
            days: i64::from(value.days),
            micros: value.nanoseconds / 1_000,
        }
    }

    fn of_difference(micros: i64) -> Self {
        Self { months: 0, days: micros / DAY_US, micros: micros % DAY_US }
    }
}

/// Returns timestamp differences in microseconds.
pub(super) fn difference_us(values: &ArrayRef) -> crate::error::Result<Int64Array> {
    let micros = cast(&cast(values, &DataType::Duration(TimeUnit::Microsecond))?, &DataType::Int64)?;
    Ok(micros.as_primitive::<Int64Type>().clone())
}

fn spans(values: &ArrayRef) -> crate::error::Result<Vec<Option<Span>>> {
    if let DataType::Duration(_) = values.data_type() {
        let micros = difference_us(values)?;
        return Ok(micros.iter().map(|micros| micros.map(Span::of_difference)).collect());
    }
    let intervals = cast(values, &INTERVAL)?;
    let intervals = intervals.as_primitive::<IntervalMonthDayNanoType>();
    Ok(intervals.iter().map(|value| value.map(Span::of_interval)).collect())
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct SpanFunction {
    field: Field,
    signature: Signature,
}

impl ScalarUDFImpl for SpanFunction {
    fn name(&self) -> &str {
        "date_part"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(if self.field.has_fraction() { DataType::Float64 } else { DataType::Int64 })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let value = args.args.get(1).ok_or_else(|| Error::internal("date_part() takes two arguments"))?;
        let is_constant = matches!(value, ColumnarValue::Scalar(_));
        let spans = spans(&value.to_array(if is_constant { 1 } else { args.number_rows })?)?;
        let spans = spans.into_iter();
        let field = self.field;
        let parts: ArrayRef = if field.has_fraction() {
            Arc::new(spans.map(|span| span.map(|span| field.real(span))).collect::<Float64Array>())
        } else {
            Arc::new(spans.map(|span| span.map(|span| field.whole(span))).collect::<Int64Array>())
        };
        if is_constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&parts, 0)?));
        }
        Ok(ColumnarValue::Array(parts))
    }
}
