//! Scalar functions that take the place of DataFusion's of the same name, and those that rewrites call.

mod arrays;
mod date_part;
mod intervals;
mod named_cast;
mod patterns;
mod to_char;
mod zones;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result};
use datafusion::functions_nested::remove::array_remove_all_udf;
use datafusion::functions_nested::replace::array_replace_all_udf;
use datafusion::logical_expr::expr::{Cast, ScalarFunction};
use datafusion::logical_expr::{Expr, ScalarUDF};

use super::regex;
use super::walk::type_of;

pub(super) use arrays::{ALL_OF, ANY_OF};
pub(super) use date_part::replace as replace_date_part;
pub(super) use intervals::{compare as compare_intervals, order as order_intervals};
pub(super) use named_cast::NAMED_CAST;
pub(super) use patterns::LIKE_PATTERN;

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

/// Keeps the type of functions whose type depends on which of their arguments are literals: there are more of them after constants
/// are folded.
pub(super) fn keep_types(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let is_rounding =
        matches!(&expr, Expr::ScalarFunction(call) if matches!(call.func.name(), "round" | "trunc"));
    if !is_rounding {
        return Ok(Transformed::no(expr));
    }
    match type_of(&expr, schema) {
        Some(ty @ DataType::Decimal128(..)) => {
            let name = expr.schema_name().to_string();
            let cast = Expr::Cast(Cast::new(Box::new(expr), ty));
            Ok(Transformed::yes(if cast.schema_name().to_string() == name { cast } else { cast.alias(name) }))
        }
        _ => Ok(Transformed::no(expr)),
    }
}
