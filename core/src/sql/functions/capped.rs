//! Limits for DataFusion functions whose result can be far larger than their arguments, or that double a
//! value with each call. The memory pool does not see what a scalar function allocates, and planning folds
//! constants, so the size of the result is estimated before each call.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::Result as DataFusionResult;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::expr::{BinaryExpr, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature,
};
use datafusion::optimizer::AnalyzerRule;

use super::concatenation::concatenation;
use super::growth::Growth;

/// The functions with a limit.
const CAPPED: [(&str, Growth); 22] = [
    ("repeat", Growth::Repeat),
    ("lpad", Growth::Pad),
    ("rpad", Growth::Pad),
    ("replace", Growth::Replace),
    ("regexp_replace", Growth::RegexpReplace),
    ("range", Growth::Series),
    ("generate_series", Growth::Series),
    ("array_repeat", Growth::List),
    ("array_resize", Growth::Resize),
    ("array_replace", Growth::ReplaceElements),
    ("array_replace_n", Growth::ReplaceElements),
    ("array_replace_all", Growth::ReplaceElements),
    ("array_to_string", Growth::Join),
    ("concat_ws", Growth::Separated),
    ("encode", Growth::Encode),
    ("to_char", Growth::Format),
    ("concat", Growth::Sum),
    ("overlay", Growth::Sum),
    ("make_array", Growth::Sum),
    ("array_concat", Growth::Sum),
    ("array_append", Growth::Sum),
    ("array_prepend", Growth::Sum),
];

/// Returns the functions of `known` that need a limit, with the limit.
pub(crate) fn capped(known: impl Fn(&str) -> Option<Arc<ScalarUDF>>) -> Vec<Arc<ScalarUDF>> {
    CAPPED.into_iter().filter_map(|(name, _)| limited(&known(name)?)).collect()
}

/// Returns `function` with its limit; `None` when it needs none or already has it.
fn limited(function: &Arc<ScalarUDF>) -> Option<Arc<ScalarUDF>> {
    if function.inner().is::<Capped>() {
        return None;
    }
    let (_, growth) = CAPPED.into_iter().find(|(name, _)| *name == function.name())?;
    Some(Arc::new(ScalarUDF::new_from_impl(Capped { inner: Arc::clone(function), growth })))
}

/// Limits functions that the planner adds itself, as for `ARRAY[...]`, and the operator `||`.
#[derive(Debug)]
pub(crate) struct CapRule;

impl AnalyzerRule for CapRule {
    fn name(&self) -> &str {
        "kalam_capped"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> DataFusionResult<LogicalPlan> {
        plan.transform_up_with_subqueries(|node| {
            let names = NamePreserver::new(&node);
            node.map_expressions(|expr| {
                let name = names.save(&expr);
                let rewritten = expr.transform_up(|expr| Ok(limit(expr)))?;
                Ok(rewritten.update_data(|expr| name.restore(expr)))
            })
        })
        .map(|rewritten| rewritten.data)?
        .recompute_schema()
    }
}

fn limit(expr: Expr) -> Transformed<Expr> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::StringConcat, right }) => Transformed::yes(
            Expr::ScalarFunction(ScalarFunction::new_udf(concatenation(), vec![*left, *right])),
        ),
        Expr::ScalarFunction(call) => match limited(&call.func) {
            Some(func) => Transformed::yes(Expr::ScalarFunction(ScalarFunction { func, args: call.args })),
            None => Transformed::no(Expr::ScalarFunction(call)),
        },
        other => Transformed::no(other),
    }
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
        self.growth.check(self.inner.name(), &args)?;
        self.inner.invoke_with_args(args)
    }
}
