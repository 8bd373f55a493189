//! Scalar functions as guests: a call checks that its statement may go on, refuses arguments that would cost
//! too much, and computes costly rows in slices, with a check in between.
//!
//! The last rule of the analyser guards the calls of a plan. So all rewrites before it see plain functions,
//! and constant folding, which comes after it, is guarded.
//!
//! Invariant: the values are those of the plain function, and so is everything that a plan knows about it.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::compute::concat;
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{ExprSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{BinaryExpr, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::preimage::PreimageResult;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ExpressionPlacement, LogicalPlan, Operator, ReturnFieldArgs,
    ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, StructFieldMapping,
};
use datafusion::optimizer::AnalyzerRule;

use super::options::GuestOptions;
use crate::config::Config;
use crate::error::Error;
use crate::sql::functions::concatenation::concatenation;
use crate::sql::functions::growth::{COLUMN_BYTES_MAX, Growth, too_large};
use crate::sql::functions::like::like_call;
use crate::sql::functions::work::Work;
use crate::workload::{Busy, StatementControl};

/// Functions that DataFusion, or a rewrite of ours, recognises by their type; sorted for binary search. They
/// look at each argument once, and give no more than they get.
const RECOGNISED: [&str; 15] = [
    "%",
    "*",
    "+",
    "-",
    "/",
    "file_row_index",
    "get_field",
    "input_file_name",
    "log",
    "may_be_null",
    "named_struct",
    "power",
    "ranged",
    "same",
    "struct",
];
/// A smaller result is not charged to its statement.
const CHARGED_BYTES_MIN: u64 = 1 << 20;

/// Guards all calls of a plan.
#[derive(Debug)]
pub(in crate::sql) struct GuardRule {
    steps_max: u64,
}

impl GuardRule {
    pub(in crate::sql) fn new(config: &Config) -> Self {
        Self { steps_max: config.function_cost_max() }
    }
}

impl AnalyzerRule for GuardRule {
    fn name(&self) -> &str {
        "kalam_guarded"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|node| {
            let names = NamePreserver::new(&node);
            node.map_expressions(|expr| {
                let name = names.save(&expr);
                let guarded = guard_calls(expr, self.steps_max)?;
                Ok(if guarded.transformed { guarded.update_data(|expr| name.restore(expr)) } else { guarded })
            })
        })
        .map(|guarded| guarded.data)?
        .recompute_schema()
    }
}

/// Guards all calls in an expression that may need at most `steps_max` steps for a row.
pub(in crate::sql) fn guard_calls(expr: Expr, steps_max: u64) -> Result<Transformed<Expr>> {
    expr.transform_down(|expr| {
        let call = match expr {
            Expr::ScalarFunction(call) if call.func.inner().is::<Guarded>() => {
                // All calls in its arguments are guarded too.
                let call = Expr::ScalarFunction(call);
                return Ok(Transformed::new(call, false, TreeNodeRecursion::Jump));
            }
            Expr::ScalarFunction(call) if is_recognised(&call) => {
                return Ok(Transformed::no(Expr::ScalarFunction(call)));
            }
            Expr::ScalarFunction(call) => call,
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::StringConcat, right }) => {
                ScalarFunction::new_udf(concatenation(), vec![*left, *right])
            }
            Expr::Like(like) => match like_call(&like) {
                Some(call) => call,
                None => return Ok(Transformed::no(Expr::Like(like))),
            },
            other => return Ok(Transformed::no(other)),
        };
        let ScalarFunction { func, args } = call;
        let guarded =
            Guarded { growth: Growth::of(func.name()), work: Work::of(func.name()), inner: func, steps_max };
        let func = Arc::new(ScalarUDF::new_from_impl(guarded));
        Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction { func, args })))
    })
}

fn is_recognised(call: &ScalarFunction) -> bool {
    RECOGNISED.binary_search(&call.func.name()).is_ok()
}

/// Whether an expression of a node calls a function that can need many steps for a row, so that a thread is
/// held up meanwhile.
pub(in crate::sql) fn has_long_call(node: &LogicalPlan) -> bool {
    let walked = node.apply_expressions(|expr| {
        let found = expr.exists(|part| Ok(is_long(part)))?;
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    !matches!(walked, Ok(TreeNodeRecursion::Continue))
}

fn is_long(expr: &Expr) -> bool {
    let Expr::ScalarFunction(call) = expr else { return false };
    let guarded = call.func.inner().downcast_ref::<Guarded>();
    guarded.is_some_and(|guarded| guarded.work.can_be_long(&call.args))
}

/// A function with its limits.
#[derive(PartialEq, Eq, Hash)]
struct Guarded {
    inner: Arc<ScalarUDF>,
    growth: Option<Growth>,
    work: Work,
    steps_max: u64,
}

impl fmt::Debug for Guarded {
    /// Writes the plain function: the fingerprint of a live query is made of these texts, and must not depend
    /// on limits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.inner.inner(), f)
    }
}

impl Guarded {
    fn compute(
        &self,
        args: ScalarFunctionArgs,
        control: Option<&Arc<StatementControl>>,
    ) -> Result<ColumnarValue> {
        let slices = self.work.slices(self.name(), &args, self.steps_max)?;
        if slices.len() <= 1 {
            return self.inner.inner().invoke_with_args(args);
        }
        let (mut start, mut bytes, mut parts) = (0, 0_u64, Vec::with_capacity(slices.len()));
        for len in slices {
            if let Some(control) = control {
                control.check()?;
            }
            let part = self.inner.inner().invoke_with_args(slice(&args, start, len))?.into_array(len)?;
            bytes = bytes.saturating_add(bytes_of(&part));
            if bytes > COLUMN_BYTES_MAX {
                return Err(too_large(self.name()).into());
            }
            parts.push(part);
            start += len;
        }
        let parts: Vec<&dyn Array> = parts.iter().map(|part| part.as_ref()).collect();
        Ok(ColumnarValue::Array(concat(&parts)?))
    }
}

/// Returns the arguments for `len` rows from `start` on.
fn slice(args: &ScalarFunctionArgs, start: usize, len: usize) -> ScalarFunctionArgs {
    let of_rows = |value: &ColumnarValue| match value {
        ColumnarValue::Array(array) => ColumnarValue::Array(array.slice(start, len)),
        ColumnarValue::Scalar(value) => ColumnarValue::Scalar(value.clone()),
    };
    ScalarFunctionArgs {
        args: args.args.iter().map(of_rows).collect(),
        arg_fields: args.arg_fields.clone(),
        number_rows: len,
        return_field: Arc::clone(&args.return_field),
        config_options: Arc::clone(&args.config_options),
    }
}

fn bytes_of(array: &ArrayRef) -> u64 {
    array.to_data().get_slice_memory_size().map_or(0, |bytes| bytes as u64)
}

// Everything is passed on: what is forgotten would change plans.
#[deny(clippy::missing_trait_methods)]
impl ScalarUDFImpl for Guarded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        #[expect(deprecated, reason = "the plain function may still have one")]
        self.inner.display_name(args)
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn with_updated_config(&self, options: &ConfigOptions) -> Option<ScalarUDF> {
        let inner = Arc::new(self.inner.inner().with_updated_config(options)?);
        let (growth, work, steps_max) = (self.growth, self.work, self.steps_max);
        Some(ScalarUDF::new_from_impl(Self { inner, growth, work, steps_max }))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn is_nullable(&self, args: &[Expr], schema: &dyn ExprSchema) -> bool {
        #[expect(deprecated, reason = "the plain function may still have one")]
        self.inner.is_nullable(args, schema)
    }

    fn is_strict(&self) -> bool {
        self.inner.is_strict()
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let control = GuestOptions::control(&args.config_options).map(Arc::clone);
        // A call outside of any step is one.
        let _busy = control.as_ref().map(Busy::enter);
        if let Some(control) = &control {
            control.check()?;
        }
        let growth = self.growth.map(|growth| growth.check(self.name(), &args)).transpose()?;
        let bytes = growth.filter(|bytes| *bytes >= CHARGED_BYTES_MIN).unwrap_or(0);
        let _room = match &control {
            Some(control) if bytes > 0 => {
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                Some(control.memory().charge(bytes).map_err(Error::from)?)
            }
            _ => None,
        };
        self.compute(args, control.as_ref())
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        Ok(match self.inner.simplify(args, info)? {
            ExprSimplifyResult::Simplified(expr) => {
                ExprSimplifyResult::Simplified(guard_calls(expr, self.steps_max)?.data)
            }
            original @ ExprSimplifyResult::Original(_) => original,
        })
    }

    fn preimage(&self, args: &[Expr], constant: &Expr, info: &SimplifyContext) -> Result<PreimageResult> {
        self.inner.preimage(args, constant, info)
    }

    fn short_circuits(&self) -> bool {
        self.inner.short_circuits()
    }

    fn conditional_arguments<'a>(&self, args: &'a [Expr]) -> Option<(Vec<&'a Expr>, Vec<&'a Expr>)> {
        self.inner.conditional_arguments(args)
    }

    fn evaluate_bounds(&self, inputs: &[&Interval]) -> Result<Interval> {
        self.inner.evaluate_bounds(inputs)
    }

    fn propagate_constraints(
        &self,
        interval: &Interval,
        inputs: &[&Interval],
    ) -> Result<Option<Vec<Interval>>> {
        self.inner.propagate_constraints(interval, inputs)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        self.inner.output_ordering(inputs)
    }

    fn preserves_lex_ordering(&self, inputs: &[ExprProperties]) -> Result<bool> {
        self.inner.preserves_lex_ordering(inputs)
    }

    fn strictly_order_preserving(&self, inputs: &[ExprProperties]) -> Result<bool> {
        self.inner.strictly_order_preserving(inputs)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn struct_field_mapping(&self, constants: &[Option<ScalarValue>]) -> Option<StructFieldMapping> {
        self.inner.struct_field_mapping(constants)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn placement(&self, args: &[ExpressionPlacement]) -> ExpressionPlacement {
        self.inner.placement(args)
    }
}

#[cfg(test)]
mod tests;
