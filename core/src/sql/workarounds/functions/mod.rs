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

use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result};
use datafusion::functions_nested::remove::array_remove_all_udf;
use datafusion::functions_nested::replace::array_replace_all_udf;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Expr, ScalarUDF};

use super::regex;

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
