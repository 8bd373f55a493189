//! Fields of times that DataFusion's `date_part` lacks, or returns without their fraction.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array};
use datafusion::arrow::compute::{DatePart as ArrowPart, cast, date_part};
use datafusion::arrow::datatypes::{DataType, Int32Type, Int64Type, TimeUnit};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::functions::datetime::date_part as datafusion_date_part;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::super::types::kinds::is_span;
use super::super::walk::type_of;
use super::span_part;
use crate::error::Error;

const MINUTE_US: i64 = 60_000_000;

/// Replaces `date_part` for these fields, and for all fields of intervals.
pub(crate) fn replace(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::ScalarFunction(call) = expr else { return Ok(Transformed::no(expr)) };
    let own = match (call.func.name(), call.args.as_slice()) {
        ("date_part", [Expr::Literal(name, _), value]) if call.func == datafusion_date_part() => {
            let name = name.try_as_str().flatten().unwrap_or_default();
            let name = name.trim_matches(['\'', '"']).to_ascii_lowercase();
            match type_of(value, schema) {
                Some(ty) if is_span(&ty) => span_part::function(&name),
                _ => Part::named(&name).map(function),
            }
        }
        _ => None,
    };
    let Some(func) = own.map(Arc::new) else { return Ok(Transformed::no(Expr::ScalarFunction(call))) };
    Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction { func, args: call.args })))
}

fn function(part: Part) -> ScalarUDF {
    ScalarUDF::new_from_impl(PartFunction { part, signature: Signature::any(2, Volatility::Immutable) })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    /// With its fraction.
    Second,
    /// Includes the seconds and their fraction.
    Millisecond,
    /// Includes the seconds.
    Microsecond,
    Decade,
    Century,
    Millennium,
}

impl Part {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
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
        let value = args.args.get(1).ok_or_else(|| Error::internal("date_part() takes two arguments"))?;
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

/// Microseconds since the start of the minute.
fn of_minute(times: &ArrayRef) -> crate::error::Result<Int64Array> {
    let micros = match times.data_type() {
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
