//! Fields of times that DataFusion's `date_part` has not, or has without their fraction.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array};
use datafusion::arrow::compute::{DatePart as ArrowPart, cast, date_part};
use datafusion::arrow::datatypes::{
    DataType, Int32Type, Int64Type, IntervalMonthDayNanoType, IntervalUnit, TimeUnit,
};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use crate::error::Error;

const MINUTE_US: i64 = 60_000_000;

/// Puts the function in the place of `date_part` for these fields.
pub(crate) fn replace(expr: Expr, _: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::ScalarFunction(call) = expr else { return Ok(Transformed::no(expr)) };
    let part = match (call.func.name(), call.args.as_slice()) {
        ("date_part", [Expr::Literal(part, _), _]) if !call.func.inner().is::<PartFunction>() => {
            part.try_as_str().flatten().and_then(Part::named)
        }
        _ => None,
    };
    let Some(part) = part else { return Ok(Transformed::no(Expr::ScalarFunction(call))) };
    let signature = Signature::any(2, Volatility::Immutable);
    let func = Arc::new(ScalarUDF::new_from_impl(PartFunction { part, signature }));
    Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction { func, args: call.args })))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    /// With its fraction.
    Second,
    /// Seconds included, with their fraction.
    Millisecond,
    /// Seconds included.
    Microsecond,
    Decade,
    Century,
    Millennium,
}

impl Part {
    fn named(name: &str) -> Option<Self> {
        let name = name.trim_matches(['\'', '"']).to_ascii_lowercase();
        Some(match name.as_str() {
            "second" | "seconds" | "sec" | "secs" | "s" => Self::Second,
            "millisecond" | "milliseconds" | "msec" | "msecs" | "ms" => Self::Millisecond,
            "microsecond" | "microseconds" | "usec" | "usecs" | "us" => Self::Microsecond,
            "decade" | "decades" => Self::Decade,
            "century" | "centuries" => Self::Century,
            "millennium" | "millennia" => Self::Millennium,
            _ => return None,
        })
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct PartFunction {
    part: Part,
    signature: Signature,
}

impl ScalarUDFImpl for PartFunction {
    fn name(&self) -> &str {
        "date_part"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.part {
            Part::Second | Part::Millisecond => DataType::Float64,
            Part::Microsecond | Part::Decade | Part::Century | Part::Millennium => DataType::Int64,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let value = args.args.get(1).ok_or_else(|| Error::internal("date_part() has two arguments"))?;
        let is_constant = matches!(value, ColumnarValue::Scalar(_));
        let array = value.to_array(if is_constant { 1 } else { args.number_rows })?;
        let parts = part_of(self.part, &array)?;
        if is_constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&parts, 0)?));
        }
        Ok(ColumnarValue::Array(parts))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a minute has fewer microseconds than a double has digits")]
fn part_of(part: Part, times: &ArrayRef) -> crate::error::Result<ArrayRef> {
    Ok(match part {
        Part::Second => Arc::new(
            of_minute(times)?.iter().map(|us| us.map(|us| us as f64 / 1e6)).collect::<Float64Array>(),
        ),
        Part::Millisecond => Arc::new(
            of_minute(times)?.iter().map(|us| us.map(|us| us as f64 / 1e3)).collect::<Float64Array>(),
        ),
        Part::Microsecond => Arc::new(of_minute(times)?),
        Part::Decade => years(times, |year| year.div_euclid(10))?,
        Part::Century => {
            years(times, |year| if year > 0 { (year + 99) / 100 } else { -((99 - (year - 1)) / 100) })?
        }
        Part::Millennium => {
            years(times, |year| if year > 0 { (year + 999) / 1_000 } else { -((999 - (year - 1)) / 1_000) })?
        }
    })
}

fn years(times: &ArrayRef, of: impl Fn(i64) -> i64) -> crate::error::Result<ArrayRef> {
    let years = date_part(times, ArrowPart::Year)?;
    let years = years.as_primitive::<Int32Type>().iter();
    Ok(Arc::new(years.map(|year| year.map(|year| of(i64::from(year)))).collect::<Int64Array>()))
}

/// Microseconds of the minute.
fn of_minute(times: &ArrayRef) -> crate::error::Result<Int64Array> {
    let micros = match times.data_type() {
        DataType::Interval(_) => {
            let intervals = cast(times, &DataType::Interval(IntervalUnit::MonthDayNano))?;
            let intervals = intervals.as_primitive::<IntervalMonthDayNanoType>().iter();
            return Ok(intervals
                .map(|value| value.map(|value| value.nanoseconds / 1_000 % MINUTE_US))
                .collect());
        }
        DataType::Duration(_) => {
            let micros = cast(&cast(times, &DataType::Duration(TimeUnit::Microsecond))?, &DataType::Int64)?;
            return Ok(micros
                .as_primitive::<Int64Type>()
                .iter()
                .map(|us| us.map(|us| us % MINUTE_US))
                .collect());
        }
        DataType::Time32(_) | DataType::Time64(_) => cast(times, &DataType::Time64(TimeUnit::Microsecond))?,
        DataType::Timestamp(_, zone) => {
            cast(times, &DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))?
        }
        DataType::Date32 | DataType::Null => cast(times, &DataType::Timestamp(TimeUnit::Microsecond, None))?,
        other => {
            return Err(Error::invalid(format!("a value of type {other} has no seconds")));
        }
    };
    let micros = cast(&micros, &DataType::Int64)?;
    let micros = micros.as_primitive::<Int64Type>().iter();
    Ok(micros.map(|us| us.map(|us| us.rem_euclid(MINUTE_US))).collect())
}
