//! Scalar functions that take the place of DataFusion's of the same name, and those that rewrites call.

mod arrays;
mod date_part;
mod intervals;
mod named_cast;
mod patterns;
mod rounding;
mod to_char;
mod zones;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result};
use datafusion::functions_nested::remove::array_remove_all_udf;
use datafusion::functions_nested::replace::array_replace_all_udf;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Expr, ScalarUDF, cast};

use super::regex;
use crate::error::Error;

pub(super) use arrays::{ALL_OF, ANY_OF};
pub(super) use date_part::replace as replace_date_part;
pub(super) use intervals::{compare as compare_intervals, order as order_intervals};
pub(super) use named_cast::NAMED_CAST;
pub(super) use patterns::LIKE_PATTERN;
pub(super) use rounding::replace as replace_rounding;

/// The functions by name.
static FUNCTIONS: LazyLock<HashMap<String, Arc<ScalarUDF>>> = LazyLock::new(|| {
    let own = [
        Arc::new(zones::timezone()),
        Arc::new(zones::from_unixtime()),
        Arc::new(to_char::function()),
        Arc::new(named_cast::named_cast()),
        Arc::new(patterns::like_pattern()),
        Arc::new(arrays::any()),
        Arc::new(arrays::all()),
    ];
    let mut functions: HashMap<String, Arc<ScalarUDF>> = HashMap::new();
    for function in own.into_iter().chain(regex::functions()) {
        for name in std::iter::once(function.name()).chain(function.aliases().iter().map(String::as_str)) {
            functions.insert(name.to_owned(), Arc::clone(&function));
        }
    }
    // Of an element that comes more than once DataFusion's functions of these names take the first.
    functions.insert("array_remove".to_owned(), array_remove_all_udf());
    functions.insert("array_replace".to_owned(), array_replace_all_udf());
    functions
});

/// The functions, to be registered.
pub(super) fn all() -> Vec<Arc<ScalarUDF>> {
    FUNCTIONS.values().map(Arc::clone).collect()
}

/// Functions of times whose format DataFusion reads in a language of its own.
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

/// Refuses them with one.
///
/// # Errors
/// 0A000 with the way round.
pub(super) fn refuse_formats(expr: Expr, _: &DFSchema) -> Result<Transformed<Expr>> {
    match &expr {
        Expr::ScalarFunction(call) if call.args.len() > 1 && WITH_FORMAT.contains(&call.func.name()) => {
            Err(Error::unsupported(format!("{} with a format", call.func.name()))
                .hint("write times as in '2024-01-31 23:59:59' and cast the text")
                .into())
        }
        _ => Ok(Transformed::no(expr)),
    }
}

/// CURRENT_TIME is a TIME, to the microsecond as all of them.
pub(super) fn correct_current_time(expr: Expr, _: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::ScalarFunction(call) if call.func.name() == "current_time" => {
            let ty = DataType::Time64(TimeUnit::Microsecond);
            Ok(Transformed::yes(cast(Expr::ScalarFunction(call), ty)))
        }
        other => Ok(Transformed::no(other)),
    }
}

/// Puts the functions where the planner calls DataFusion's by itself, as for EXTRACT.
pub(super) fn replace(expr: Expr, _: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::ScalarFunction(call) = expr else { return Ok(Transformed::no(expr)) };
    match FUNCTIONS.get(call.func.name()) {
        Some(own) if **own != *call.func => {
            let func = Arc::clone(own);
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction { func, args: call.args })))
        }
        _ => Ok(Transformed::no(Expr::ScalarFunction(call))),
    }
}
