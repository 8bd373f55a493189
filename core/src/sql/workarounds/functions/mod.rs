//! Scalar functions that replace DataFusion's of the same name, and functions that rewrites call.
//!
//! DataFusion rewords an error of `coerce_types` but passes on one of `return_type`, so functions refuse
//! their arguments in `return_type`.

mod arrays;
mod bytes;
mod current_time;
mod date_part;
mod date_trunc;
mod elements;
mod intervals;
mod named_cast;
mod patterns;
mod regex;
mod rounding;
mod span_part;
mod to_char;
mod uniform;
mod zones;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::functions::math::ceil;
use datafusion::functions_nested::replace::array_replace_all_udf;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Expr, ScalarUDF, case, cast, lit, when};

use super::types::casts::cast_to;
use super::walk::type_of;
use crate::casts::{is_text, times};
use crate::error::Error;

pub(super) use self::regex::replace as replace_regex;
pub(super) use arrays::{ALL_OF, ANY_OF};
pub(super) use bytes::refuse as refuse_bytes;
pub(super) use date_part::replace as replace_date_part;
pub(super) use intervals::{compare as compare_intervals, order as order_intervals};
pub(super) use named_cast::NAMED_CAST;
pub(super) use patterns::LIKE_PATTERN;
pub(super) use rounding::replace as replace_rounding;
pub(super) use uniform::restore as restore_uniform;

/// The functions by name.
static FUNCTIONS: LazyLock<HashMap<String, Arc<ScalarUDF>>> = LazyLock::new(|| {
    let own = [
        Arc::new(current_time::current_time()),
        Arc::new(zones::timezone()),
        Arc::new(zones::from_unixtime()),
        Arc::new(date_trunc::function()),
        Arc::new(to_char::function()),
        Arc::new(named_cast::named_cast()),
        Arc::new(patterns::like_pattern()),
        Arc::new(arrays::any()),
        Arc::new(arrays::all()),
        Arc::new(ceil().as_ref().clone().with_aliases(["ceiling"])),
    ];
    let mut functions: HashMap<String, Arc<ScalarUDF>> = HashMap::new();
    for function in own.into_iter().chain(bytes::lengths()).chain(regex::functions()) {
        for name in std::iter::once(function.name()).chain(function.aliases().iter().map(String::as_str)) {
            functions.insert(name.to_owned(), Arc::clone(&function));
        }
    }
    functions.insert("array_remove".to_owned(), Arc::new(elements::remove()));
    // DataFusion's `array_replace` replaces only the first occurrence.
    functions.insert("array_replace".to_owned(), array_replace_all_udf());
    functions
});

/// Returns the functions to register.
pub(super) fn all() -> Vec<Arc<ScalarUDF>> {
    FUNCTIONS.values().map(Arc::clone).chain(uniform::all()).collect()
}

/// Time functions whose format argument has a syntax of DataFusion's own.
const WITH_FORMAT: [&str; 9] = [
    "to_timestamp",
    "to_timestamp_seconds",
    "to_timestamp_millis",
    "to_timestamp_micros",
    "to_timestamp_nanos",
    "to_date",
    "to_time",
    "to_local_time",
    "to_unixtime",
];

/// Refuses these functions with a format.
///
/// # Errors
/// 0A000 with an alternative as the hint.
pub(super) fn refuse_formats(expr: Expr, _: &DFSchema) -> Result<Transformed<Expr>> {
    match &expr {
        Expr::ScalarFunction(call) if call.args.len() > 1 && WITH_FORMAT.contains(&call.func.name()) => {
            Err(Error::unsupported(format!("{} with a format", call.func.name()))
                .hint("write times as '2024-01-31 23:59:59' and cast the text")
                .into())
        }
        _ => Ok(Transformed::no(expr)),
    }
}

/// Flattens `coalesce(coalesce(a, b), c)` to `coalesce(a, b, c)`: the optimizer writes each argument twice,
/// so that an argument at depth n would be written 2^n times.
pub(super) fn flat_coalesce(expr: Expr, _: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::ScalarFunction(mut call) = expr else { return Ok(Transformed::no(expr)) };
    let is_coalesce =
        |expr: &Expr| matches!(expr, Expr::ScalarFunction(call) if call.func.name() == "coalesce");
    let is_nested = call.func.name() == "coalesce" && call.args.iter().any(is_coalesce);
    if is_nested {
        let flat = |arg| match arg {
            Expr::ScalarFunction(inner) if inner.func.name() == "coalesce" => inner.args,
            other => vec![other],
        };
        call.args = call.args.into_iter().flat_map(flat).collect();
    }
    Ok(Transformed::new_transformed(Expr::ScalarFunction(call), is_nested))
}

/// Writes booleans in `concat` and `concat_ws` as `t` and `f`, as PostgreSQL does.
pub(super) fn short_booleans(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::ScalarFunction(mut call) = expr else { return Ok(Transformed::no(expr)) };
    let mut is_changed = false;
    if matches!(call.func.name(), "concat" | "concat_ws") {
        for arg in &mut call.args {
            if type_of(arg, schema) == Some(DataType::Boolean) {
                *arg =
                    case(std::mem::take(arg)).when(lit(true), lit("t")).when(lit(false), lit("f")).end()?;
                is_changed = true;
            }
        }
    }
    Ok(Transformed::new_transformed(Expr::ScalarFunction(call), is_changed))
}

/// Casts the elements of `array_to_string` to text; booleans become `t` and `f`.
pub(super) fn element_texts(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::ScalarFunction(mut call) = expr else { return Ok(Transformed::no(expr)) };
    let list = call.args.first().filter(|_| call.func.name() == "array_to_string");
    let element = match list.and_then(|list| type_of(list, schema)) {
        Some(DataType::List(element))
            if !is_text(element.data_type()) && !element.data_type().is_integer() =>
        {
            element.data_type().clone()
        }
        _ => return Ok(Transformed::no(Expr::ScalarFunction(call))),
    };
    if let Some(list) = call.args.first_mut() {
        let mut texts = cast_to(std::mem::take(list), DataType::new_list(DataType::Utf8, true));
        if element == DataType::Boolean {
            for (long, short) in [("true", "t"), ("false", "f")] {
                texts = array_replace_all_udf().call(vec![texts, lit(long), lit(short)]);
            }
        }
        *list = texts;
    }
    Ok(Transformed::yes(Expr::ScalarFunction(call)))
}

/// Raises negative lengths of `lpad` and `rpad` to 0; DataFusion's functions would panic.
pub(super) fn correct_padding(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::ScalarFunction(mut call) = expr else { return Ok(Transformed::no(expr)) };
    let is_padding = matches!(call.func.name(), "lpad" | "rpad");
    let is_changed = match call.args.get_mut(1).filter(|_| is_padding) {
        Some(length) if type_of(length, schema).is_some_and(|ty| ty.is_integer()) => {
            let wanted = cast(std::mem::take(length), DataType::Int64);
            *length = when(wanted.clone().lt(lit(0_i64)), lit(0_i64)).otherwise(wanted)?;
            true
        }
        _ => false,
    };
    Ok(Transformed::new_transformed(Expr::ScalarFunction(call), is_changed))
}

/// Limits the digits of `to_hex` to 32 bits for numbers of at most 32 bits.
pub(super) fn correct_hexadecimal(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::ScalarFunction(mut call) = expr else { return Ok(Transformed::no(expr)) };
    let is_short =
        |arg: &Expr| matches!(type_of(arg, schema), Some(DataType::Int8 | DataType::Int16 | DataType::Int32));
    let is_changed = call.func.name() == "to_hex" && call.args.iter().any(is_short);
    if is_changed {
        for arg in &mut call.args {
            *arg = cast(std::mem::take(arg), DataType::Int64) & lit(0xFFFF_FFFF_i64);
        }
    }
    Ok(Transformed::new_transformed(Expr::ScalarFunction(call), is_changed))
}

/// Replaces functions that the planner calls itself, as for EXTRACT, and normalizes units of `date_trunc`.
pub(super) fn replace(expr: Expr, _: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::ScalarFunction(mut call) = expr else { return Ok(Transformed::no(expr)) };
    let mut is_changed = false;
    if call.func.name() == "date_trunc"
        && let Some(Expr::Literal(ScalarValue::Utf8(Some(unit)), _)) = call.args.first()
        && let Some(usual) = times::unit_named(unit)
        && usual != unit
    {
        call.args[0] = lit(usual);
        is_changed = true;
    }
    match FUNCTIONS.get(call.func.name()) {
        Some(own) if **own != *call.func => {
            let func = Arc::clone(own);
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction { func, args: call.args })))
        }
        _ => Ok(Transformed::new_transformed(Expr::ScalarFunction(call), is_changed)),
    }
}
