//! Casts among numeric types and booleans, and from text to them.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, PrimitiveArray, StringArray};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Decimal128Type, Float32Type, Float64Type, Int64Type, i256,
};

use super::{arrow_cast, is_decimal, name_of, not_a_value, out_of_range};
use crate::error::Result;
use crate::failpoint::is_planted;

/// Maximum precision of a DECIMAL.
const DIGITS_MAX: usize = 38;

/// Casts between numeric types where Arrow and PostgreSQL differ. Integers are computed as BIGINT.
pub(super) fn cast(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    use DataType as T;
    match (array.data_type(), to) {
        (from, to) if is_decimal(from) && to.is_integer() => {
            let decimals = decimal128(array)?;
            let scale = decimals.scale();
            let whole: PrimitiveArray<Int64Type> = decimals.try_unary(|value| {
                i64::try_from(rescale(value, scale, 0).unwrap_or(i128::MAX)).map_err(|_| out_of_range(to))
            })?;
            arrow_cast(&(Arc::new(whole) as ArrayRef), to)
        }
        (from, to) if is_decimal(from) && to.is_floating() => {
            let decimals = decimal128(array)?;
            let scale = decimals.scale();
            let doubles: PrimitiveArray<Float64Type> = decimals.unary(|value| double(value, scale));
            cast(&(Arc::new(doubles) as ArrayRef), to).map_err(|_| out_of_range(to))
        }
        (T::Float64, T::Float64) => Ok(Arc::clone(array)),
        (T::Float64, T::Float32) => {
            let reals: PrimitiveArray<Float32Type> = array
                .as_primitive::<Float64Type>()
                .try_unary(|value| real(value).ok_or_else(|| out_of_range(to)))?;
            Ok(Arc::new(reals))
        }
        (from, to) if from.is_floating() && to.is_integer() => {
            let doubles = arrow_cast(array, &T::Float64)?;
            let whole: PrimitiveArray<Int64Type> = doubles
                .as_primitive::<Float64Type>()
                .try_unary(|value| whole(value).ok_or_else(|| out_of_range(to)))?;
            arrow_cast(&(Arc::new(whole) as ArrayRef), to)
        }
        (from, T::Decimal128(precision, scale)) if from.is_floating() => {
            // Keep only the digits that the float type guarantees.
            let digits = if *from == T::Float64 { 15 } else { 6 };
            let doubles = arrow_cast(array, &T::Float64)?;
            let decimals: Decimal128Array = doubles.as_primitive::<Float64Type>().try_unary(|value| {
                let text = format!("{value:.*e}", digits - 1);
                parse_decimal(&text, *precision, *scale).ok_or_else(|| out_of_range(to))
            })?;
            Ok(Arc::new(decimals.with_precision_and_scale(*precision, *scale)?))
        }
        (T::Boolean, to) | (_, to @ T::Boolean) => arrow_cast(array, to),
        _ => arrow_cast(array, to),
    }
}

fn decimal128(array: &ArrayRef) -> Result<Decimal128Array> {
    let array = match array.data_type() {
        DataType::Decimal128(..) => Arc::clone(array),
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            arrow_cast(array, &DataType::Decimal128(*precision, *scale))?
        }
        DataType::Decimal256(_, scale) => arrow_cast(array, &DataType::Decimal128(38, *scale))?,
        other => return Err(crate::error::Error::internal(format!("{other} is not a decimal type"))),
    };
    Ok(array.as_primitive::<Decimal128Type>().clone())
}

/// Rescales `value` from scale `from` to `to`, rounding half away from zero; `None` beyond 128 bits.
pub(crate) fn rescale(value: i128, from: i8, to: i8) -> Option<i128> {
    let shift = i32::from(to) - i32::from(from);
    let power = 10_i128.checked_pow(shift.unsigned_abs());
    if shift >= 0 {
        return if value == 0 { Some(0) } else { value.checked_mul(power?) };
    }
    let Some(power) = power else { return Some(0) };
    let (whole, rest) = (value / power, value % power);
    if is_planted("casts_cut_off") {
        return Some(whole);
    }
    Some(if rest.unsigned_abs() >= power.unsigned_abs() - power.unsigned_abs() / 2 {
        whole + value.signum()
    } else {
        whole
    })
}

/// The double nearest to `value` / 10^`scale`.
fn double(value: i128, scale: i8) -> f64 {
    const EXACT_MAX: u128 = 1 << 53;
    if (0..=22).contains(&scale) && value.unsigned_abs() <= EXACT_MAX {
        // Both operands are exact doubles, so the quotient is rounded only once.
        #[expect(clippy::cast_precision_loss, reason = "the number has at most 53 bits")]
        return value as f64 / 10_f64.powi(i32::from(scale));
    }
    format!("{value}e{}", -i32::from(scale)).parse().unwrap_or(f64::NAN)
}

#[expect(clippy::cast_possible_truncation, reason = "what is lost is checked")]
fn real(value: f64) -> Option<f32> {
    let real = value as f32;
    let is_lost = (real.is_infinite() && value.is_finite()) || (real == 0.0 && value != 0.0);
    (!is_lost).then_some(real)
}

/// The nearest integer, ties to even; `None` outside the range of BIGINT.
#[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
fn whole(value: f64) -> Option<i64> {
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    let rounded = value.round_ties_even();
    (-LIMIT..LIMIT).contains(&rounded).then_some(rounded as i64)
}

/// Parses text as numbers or booleans.
pub(super) fn from_text(texts: &StringArray, to: &DataType) -> Result<ArrayRef> {
    use DataType as T;
    let malformed = |text: &str| not_a_value(text, &name_of(to));
    match to {
        T::Boolean => {
            let values = texts
                .iter()
                .map(|text| text.map(|text| boolean(text).ok_or_else(|| malformed(text))).transpose());
            Ok(Arc::new(values.collect::<Result<BooleanArray>>()?))
        }
        T::Float64 => primitives::<Float64Type>(texts, |text| float(text).ok_or_else(|| malformed(text))),
        T::Float16 | T::Float32 => {
            let doubles =
                primitives::<Float64Type>(texts, |text| float(text).ok_or_else(|| malformed(text)))?;
            cast(&doubles, to)
        }
        T::Decimal128(precision, scale) => {
            let decimals = primitives::<Decimal128Type>(texts, |text| {
                if !is_decimal_text(text.trim()) {
                    return Err(malformed(text));
                }
                parse_decimal(text, *precision, *scale).ok_or_else(|| out_of_range(to))
            })?;
            let decimals = decimals.as_primitive::<Decimal128Type>().clone();
            Ok(Arc::new(decimals.with_precision_and_scale(*precision, *scale)?))
        }
        T::UInt64 => primitives::<arrow::datatypes::UInt64Type>(texts, |text| {
            text.trim().parse().map_err(|_| malformed(text))
        }),
        to if to.is_integer() => {
            let whole = primitives::<Int64Type>(texts, |text| {
                let digits = text.trim();
                let is_number =
                    digits.trim_start_matches(['+', '-']).bytes().all(|byte| byte.is_ascii_digit());
                digits.parse().map_err(|_| match is_number && digits.len() > 18 {
                    true => out_of_range(to),
                    false => malformed(text),
                })
            })?;
            arrow_cast(&whole, to)
        }
        _ => arrow_cast(&(Arc::new(texts.clone()) as ArrayRef), to),
    }
}

fn primitives<T: ArrowPrimitiveType>(
    texts: &StringArray,
    read: impl Fn(&str) -> Result<T::Native>,
) -> Result<ArrayRef> {
    let values = texts.iter().map(|text| text.map(&read).transpose());
    Ok(Arc::new(values.collect::<Result<PrimitiveArray<T>>>()?))
}

/// Parses a boolean: `true`, `yes`, `on`, `1` and their opposites, in any case, or an unambiguous prefix.
fn boolean(text: &str) -> Option<bool> {
    let word = text.trim().to_ascii_lowercase();
    let begins = |whole: &str, least: usize| word.len() >= least && whole.starts_with(&word);
    if begins("true", 1) || begins("yes", 1) || word == "on" || word == "1" {
        Some(true)
    } else if begins("false", 1) || begins("no", 1) || begins("off", 2) || word == "0" {
        Some(false)
    } else {
        None
    }
}

/// Parses a double; `None` if malformed or too large.
fn float(text: &str) -> Option<f64> {
    let text = text.trim();
    let value: f64 = text.parse().ok()?;
    let says_infinity = text.trim_start_matches(['+', '-']).starts_with(['i', 'I']);
    (value.is_finite() || value.is_nan() || says_infinity).then_some(value)
}

fn is_decimal_text(text: &str) -> bool {
    let (number, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let unsigned = number.strip_prefix(['+', '-']).unwrap_or(number);
    let digits = unsigned.bytes().filter(u8::is_ascii_digit).count();
    let points = unsigned.bytes().filter(|byte| *byte == b'.').count();
    digits > 0 && points <= 1 && digits + points == unsigned.len() && exponent.parse::<i32>().is_ok()
}

/// Parses a decimal, with an optional exponent, into units of 10^-`scale`, rounding half away from zero.
/// Returns `None` if malformed or longer than `precision` digits.
pub(crate) fn parse_decimal(text: &str, precision: u8, scale: i8) -> Option<i128> {
    let text = text.trim();
    if !is_decimal_text(text) {
        return None;
    }
    let (number, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().ok()?;
    let (sign, number) = match number.strip_prefix('-') {
        Some(number) => (-1, number),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|byte| byte - b'0').collect();
    // The value is `digits` * 10^shift in units of 10^-scale.
    let shift = i64::from(exponent) + i64::from(scale) - i64::try_from(fraction.len()).ok()?;
    let kept = i64::try_from(digits.len()).ok()? + shift.min(0);
    let mut value = 0_i128;
    for digit in digits.iter().take(usize::try_from(kept).unwrap_or(0)) {
        value = value.checked_mul(10)?.checked_add(i128::from(*digit))?;
    }
    if kept >= 0
        && usize::try_from(kept).ok().and_then(|kept| digits.get(kept)).is_some_and(|next| *next >= 5)
    {
        value += 1;
    }
    if shift > 0 && value != 0 {
        value = value.checked_mul(10_i128.checked_pow(u32::try_from(shift).ok()?)?)?;
    }
    let limit = 10_i128.checked_pow(u32::from(precision).min(DIGITS_MAX as u32))?;
    (value < limit).then_some(sign * value)
}

/// Returns `dividend` / `divisor` in units of 10^-`scale`, rounded half away from zero. Each operand is an
/// unscaled value and its scale. Returns `None` for more than 38 digits or if the divisor is 0.
pub(crate) fn divide(dividend: (i128, i8), divisor: (i128, i8), scale: i8) -> Option<i128> {
    let (dividend, dividend_scale) = dividend;
    let (divisor, divisor_scale) = divisor;
    if divisor == 0 {
        return None;
    }
    let shift = i32::from(scale) + i32::from(divisor_scale) - i32::from(dividend_scale);
    let power = i256::from_i128(10).checked_pow(shift.unsigned_abs())?;
    let (mut above, mut below) = (i256::from_i128(dividend), i256::from_i128(divisor));
    if shift >= 0 {
        above = above.checked_mul(power)?;
    } else {
        below = below.checked_mul(power)?;
    }
    let (whole, rest) = (above.checked_div(below)?, above.checked_rem(below)?);
    let (rest, below) = (rest.wrapping_abs(), below.wrapping_abs());
    let is_up = rest >= below.checked_sub(rest)?;
    let sign = if (dividend < 0) == (divisor < 0) { i256::ONE } else { i256::MINUS_ONE };
    let rounded = if is_up { whole.checked_add(sign)? } else { whole };
    let value = rounded.to_i128()?;
    let limit = 10_u128.checked_pow(DIGITS_MAX as u32)?;
    (value.unsigned_abs() < limit).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_rounded_half_away_from_zero() {
        for (text, scale, expected) in [
            ("1.005", 2, 101),
            ("-1.005", 2, -101),
            ("1.0049", 2, 100),
            ("0.285", 2, 29),
            ("12", 2, 1_200),
            ("1e3", 0, 1_000),
            ("1.5e-3", 3, 2),
            ("1.4e-3", 3, 1),
            ("4e-9", 2, 0),
            (".5", 0, 1),
            ("5.", 1, 50),
            ("-0.4", 0, 0),
        ] {
            assert_eq!(parse_decimal(text, 38, scale), Some(expected), "{text}");
        }
        for text in ["", ".", "-", "1.2.3", "1e", "e5", "nan", "1_000", "--1"] {
            assert_eq!(parse_decimal(text, 38, 2), None, "{text}");
        }
        assert_eq!(parse_decimal("99999.995", 7, 2), None);
        assert_eq!(parse_decimal("99999.994", 7, 2), Some(9_999_999));
    }

    #[test]
    fn quotients_are_rounded() {
        assert_eq!(divide((2, 0), (3, 0), 4), Some(6_667));
        assert_eq!(divide((-2, 0), (3, 0), 4), Some(-6_667));
        assert_eq!(divide((100, 1), (40, 1), 4), Some(25_000));
        assert_eq!(divide((1, 10), (1, 0), 2), Some(0));
        assert_eq!(divide((1, 0), (0, 3), 2), None);
        assert_eq!(divide((i128::MAX, 0), (1, 10), 16), None);
    }

    #[test]
    fn rescaling_rounds() {
        assert_eq!(rescale(25, 1, 0), Some(3));
        assert_eq!(rescale(-25, 1, 0), Some(-3));
        assert_eq!(rescale(24, 1, 0), Some(2));
        assert_eq!(rescale(1, 38, 0), Some(0));
        assert_eq!(rescale(7, 0, 2), Some(700));
        assert_eq!(rescale(i128::MAX, 0, 2), None);
    }

    #[test]
    fn doubles_are_the_nearest() {
        assert_eq!(double(407, 2), 4.07);
        assert_eq!(double(12_345_678_901_234_561_234_567_891, 10), 1_234_567_890_123_456.123_456_8);
        assert_eq!(whole(2.5), Some(2));
        assert_eq!(whole(3.5), Some(4));
        assert_eq!(whole(f64::NAN), None);
        assert_eq!(whole(9.3e18), None);
        assert_eq!(real(1e39), None);
        assert_eq!(real(1e-60), None);
        assert_eq!(real(f64::INFINITY), Some(f32::INFINITY));
    }
}
