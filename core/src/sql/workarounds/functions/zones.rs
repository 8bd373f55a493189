//! `x AT TIME ZONE zone`, which is `timezone(zone, x)`: an instant as wall-clock time there, or the reverse.
//!
//! DataFusion makes it a cast, which changes only the displayed zone of an instant and fails in DST gaps.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use datafusion::common::{Result, ScalarValue};
use datafusion::functions::datetime::from_unixtime as datafusion_from_unixtime;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use crate::casts::times::{instant_us, wall_us, zone_at};
use crate::error::{Error, ErrorKind, SqlState};

fn reading() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, None)
}

fn instant() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// `timezone(zone, time)`.
pub(super) fn timezone() -> ScalarUDF {
    ScalarUDF::new_from_impl(TimeZoneFunction { signature: Signature::user_defined(Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct TimeZoneFunction {
    signature: Signature,
}

impl ScalarUDFImpl for TimeZoneFunction {
    fn name(&self) -> &str {
        "timezone"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(timezone_types(types).unwrap_or_else(|_| types.to_vec()))
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        timezone_types(types)?;
        Ok(match types {
            [_, DataType::Timestamp(_, None)] => instant(),
            _ => reading(),
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [zones, times] = arrays.as_slice() else {
            return Err(Error::internal("timezone() takes two arguments").into());
        };
        let converted = convert(zones, times)?;
        if is_constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&converted, 0)?));
        }
        Ok(ColumnarValue::Array(converted))
    }
}

fn timezone_types(types: &[DataType]) -> crate::error::Result<Vec<DataType>> {
    match types {
        [_, DataType::Timestamp(_, None)] => Ok(vec![DataType::Utf8, reading()]),
        // A date means the instant of its midnight.
        [_, DataType::Timestamp(_, Some(_)) | DataType::Date32 | DataType::Utf8 | DataType::Null] => {
            Ok(vec![DataType::Utf8, instant()])
        }
        [_, other] => Err(Error::unsupported(format!("AT TIME ZONE of a value of type {other}"))
            .hint("use a TIMESTAMP or TIMESTAMPTZ")),
        _ => Err(Error::new(
            ErrorKind::NotFound,
            SqlState::UNDEFINED_FUNCTION,
            "timezone() takes two arguments: a zone and a timestamp",
        )),
    }
}

fn convert(zones: &ArrayRef, times: &ArrayRef) -> crate::error::Result<ArrayRef> {
    let has_zone = matches!(times.data_type(), DataType::Timestamp(_, Some(_)));
    let micros = cast(times, &if has_zone { instant() } else { reading() })?;
    let micros = micros.as_primitive::<TimestampMicrosecondType>();
    let names = cast(zones, &DataType::Utf8)?;
    let names = names.as_string::<i32>();
    let mut known = None;
    let values = (0..micros.len()).map(|row| {
        if names.is_null(row) || micros.is_null(row) {
            return Ok(None);
        }
        let name = names.value(row);
        let zone = match &known {
            Some((last, zone)) if *last == name => zone,
            _ => &known.insert((name, zone_at(name).ok_or_else(|| unknown_zone(name))?)).1,
        };
        let time = micros.value(row);
        let converted = if has_zone { wall_us(time, zone) } else { instant_us(time, zone) };
        converted.map(Some).ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, SqlState::DATETIME_OVERFLOW, "timestamp out of range")
        })
    });
    let values = values.collect::<crate::error::Result<TimestampMicrosecondArray>>()?;
    Ok(if has_zone { Arc::new(values) } else { Arc::new(values.with_timezone("UTC")) })
}

fn unknown_zone(name: &str) -> Error {
    let shown: String = name.chars().take(64).collect();
    Error::invalid(format!("time zone \"{shown}\" does not exist"))
        .hint("use a name such as Europe/Berlin or an offset such as +02:00")
}

/// `from_unixtime(seconds)` as a TIMESTAMPTZ.
pub(super) fn from_unixtime() -> ScalarUDF {
    ScalarUDF::new_from_impl(FromUnixTime { inner: datafusion_from_unixtime() })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct FromUnixTime {
    inner: Arc<ScalarUDF>,
}

impl ScalarUDFImpl for FromUnixTime {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(instant())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let seconds =
            args.args.first().ok_or_else(|| Error::internal("from_unixtime() takes an argument"))?;
        let seconds = seconds.cast_to(&DataType::Timestamp(TimeUnit::Second, None), None)?;
        seconds.cast_to(&reading(), None)?.cast_to(&instant(), None)
    }
}
