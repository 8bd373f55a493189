//! Limits around DataFusion's functions whose result can be far greater than their arguments. The memory pool does not see
//! what a scalar function allocates, and constants are folded while planning, so each is asked first how much it would make.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, FieldRef, Int64Type};
use datafusion::common::Result as DataFusionResult;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};

use crate::error::{Error, ErrorKind, SqlState};

/// The largest single value.
const VALUE_BYTES_MAX: u64 = 64 << 20;
/// The largest column of one batch.
const COLUMN_BYTES_MAX: u64 = 512 << 20;
/// What one element of a list takes at least.
const ELEMENT_BYTES: u64 = 8;

/// How the size of a result follows from the arguments of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Growth {
    /// `repeat(text, n)`.
    Repeat,
    /// `lpad(text, n)`, `rpad(text, n)`.
    Pad,
    /// `replace(text, from, to)`.
    Replace,
    /// `generate_series(from, to, step)`, `range(...)`.
    Series,
    /// `array_repeat(element, n)`, `array_resize(list, n)`.
    List,
}

const CAPPED: [(&str, Growth); 8] = [
    ("repeat", Growth::Repeat),
    ("lpad", Growth::Pad),
    ("rpad", Growth::Pad),
    ("replace", Growth::Replace),
    ("range", Growth::Series),
    ("generate_series", Growth::Series),
    ("array_repeat", Growth::List),
    ("array_resize", Growth::List),
];

/// The functions of `known` that need a limit, with it.
pub(crate) fn capped(known: impl Fn(&str) -> Option<Arc<ScalarUDF>>) -> Vec<Arc<ScalarUDF>> {
    let wrap = |(name, growth): (&str, Growth)| {
        let inner = known(name)?;
        Some(Arc::new(ScalarUDF::new_from_impl(Capped { inner, growth })))
    };
    CAPPED.into_iter().filter_map(wrap).collect()
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Capped {
    inner: Arc<ScalarUDF>,
    growth: Growth,
}

impl ScalarUDFImpl for Capped {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> DataFusionResult<DataType> {
        self.inner.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> DataFusionResult<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, types: &[DataType]) -> DataFusionResult<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        self.check(&args)?;
        self.inner.invoke_with_args(args)
    }
}

impl Capped {
    fn check(&self, args: &ScalarFunctionArgs) -> DataFusionResult<()> {
        let all_constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let rows = if all_constant { args.number_rows.min(1) } else { args.number_rows };
        let columns = args.args.iter().map(Argument::new).collect::<DataFusionResult<Vec<_>>>()?;
        let mut total = 0_u64;
        for row in 0..rows {
            let bytes = self.growth.bytes(&columns, row);
            total = total.saturating_add(bytes);
            if bytes > VALUE_BYTES_MAX || total > COLUMN_BYTES_MAX {
                return Err(Error::new(
                    ErrorKind::ResourceExhausted,
                    SqlState::PROGRAM_LIMIT_EXCEEDED,
                    format!("the result of {}() is too large", self.inner.name()),
                )
                .hint(format!("a value has at most {} MiB", VALUE_BYTES_MAX >> 20))
                .into());
            }
        }
        Ok(())
    }
}

/// An argument, as far as the size of the result depends on it.
struct Argument {
    /// As numbers, where it can be read so.
    numbers: Option<ArrayRef>,
    /// The bytes of each value.
    array: ArrayRef,
    constant: bool,
}

impl Argument {
    fn new(value: &ColumnarValue) -> DataFusionResult<Self> {
        let (array, constant) = match value {
            ColumnarValue::Array(array) => (Arc::clone(array), false),
            ColumnarValue::Scalar(scalar) => (scalar.to_array()?, true),
        };
        let numbers = if array.data_type().is_integer() || array.data_type().is_temporal() {
            cast(&array, &DataType::Int64).ok()
        } else {
            None
        };
        Ok(Self { numbers, array, constant })
    }

    fn row(&self, row: usize) -> usize {
        if self.constant { 0 } else { row }
    }

    fn number(&self, row: usize) -> i64 {
        let row = self.row(row);
        let numbers = self.numbers.as_ref().map(|numbers| numbers.as_primitive::<Int64Type>());
        numbers
            .filter(|numbers| row < numbers.len() && numbers.is_valid(row))
            .map_or(0, |numbers| numbers.value(row))
    }

    fn bytes(&self, row: usize) -> u64 {
        let row = self.row(row);
        let len = match self.array.data_type() {
            DataType::Utf8 => self.array.as_string::<i32>().value_length(row).unsigned_abs().into(),
            DataType::LargeUtf8 => self.array.as_string::<i64>().value_length(row).unsigned_abs(),
            DataType::Utf8View => self.array.as_string_view().value(row).len() as u64,
            _ => (self.array.get_array_memory_size() / self.array.len().max(1)) as u64,
        };
        len.max(1)
    }
}

impl Growth {
    fn bytes(self, arguments: &[Argument], row: usize) -> u64 {
        let number = |index: usize| arguments.get(index).map_or(0, |argument| argument.number(row));
        let bytes = |index: usize| arguments.get(index).map_or(1, |argument| argument.bytes(row));
        let count = |index: usize| u64::try_from(number(index)).unwrap_or(0);
        match self {
            Self::Repeat => count(1).saturating_mul(bytes(0)),
            Self::Pad => count(1).saturating_mul(4),
            Self::Replace => {
                let places = bytes(0) / bytes(1) + 1;
                places.saturating_mul(bytes(2)).saturating_add(bytes(0))
            }
            Self::Series => series_len(arguments, row).saturating_mul(ELEMENT_BYTES),
            Self::List => {
                // array_repeat has its element first; array_resize fills with its third argument.
                let element = if arguments.len() > 2 { bytes(2) } else { bytes(0) };
                count(1).saturating_mul(element.max(ELEMENT_BYTES))
            }
        }
    }
}

fn series_len(arguments: &[Argument], row: usize) -> u64 {
    let number = |index: usize| arguments.get(index).map_or(0, |argument| i128::from(argument.number(row)));
    let (start, stop) = if arguments.len() == 1 { (0, number(0)) } else { (number(0), number(1)) };
    let temporal = arguments.first().is_some_and(|argument| argument.array.data_type().is_temporal());
    let step = match arguments.get(2) {
        // The unit of a time's number against that of an interval is not worked out: the smallest step is assumed to be an
        // hour of microseconds or a day of days, so a finer series must be short.
        Some(_) if temporal => {
            if matches!(arguments.first().map(|argument| argument.array.data_type()), Some(DataType::Date32))
            {
                1
            } else {
                60_000_000
            }
        }
        Some(argument) => i128::from(argument.number(row)),
        None => 1,
    };
    let steps = (stop - start).unsigned_abs().checked_div(step.unsigned_abs()).unwrap_or(0);
    u64::try_from(steps).unwrap_or(u64::MAX).saturating_add(1)
}
