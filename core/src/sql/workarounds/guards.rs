//! Evaluates conditions that can fail last, and only where the others beside them do not decide.
//!
//! DataFusion computes both sides of an AND for every row of a batch, unless the first keeps few of them, and
//! turns a CASE with boolean branches into an AND. So `n <> 0 AND 100 / n > 5` divides by zero, as does
//! `CASE WHEN n <> 0 THEN 100 / n > 5 ELSE false END`. PostgreSQL promises no order either, but evaluates
//! conditions from left to right and stops where one decides.
//!
//! Runs once, on an optimised plan. Conditions that cannot fail stay separate for key lookups and pruning.

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::expr::BinaryExpr;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::{conjunction, disjunction, split_conjunction_owned};
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, Operator, lit, when};

use super::walk::type_of;

/// Guards the conditions of a plan.
pub(crate) fn guard(plan: LogicalPlan) -> Result<LogicalPlan> {
    let rewritten = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Filter(Filter { predicate, input, .. }) => {
            let (conditions, is_changed) = guard_conditions(split_conjunction_owned(predicate))?;
            let schema = input.schema();
            let is_any_computed = conditions.iter().any(|one| is_computed_equality(one, schema));
            let predicate = conjunction(conditions.into_iter().map(|one| as_inequalities(one, schema)))
                .unwrap_or_else(|| lit(true));
            let filter = LogicalPlan::Filter(Filter::try_new(predicate, input)?);
            Ok(Transformed::new_transformed(filter, is_changed || is_any_computed))
        }
        LogicalPlan::TableScan(mut scan) => {
            let (conditions, is_changed) = guard_conditions(std::mem::take(&mut scan.filters))?;
            scan.filters = conditions;
            Ok(Transformed::new_transformed(LogicalPlan::TableScan(scan), is_changed))
        }
        LogicalPlan::Join(mut join) => {
            let filter = join.filter.take().map(split_conjunction_owned).unwrap_or_default();
            let (conditions, is_changed) = guard_conditions(filter)?;
            join.filter = conjunction(conditions);
            Ok(Transformed::new_transformed(LogicalPlan::Join(join), is_changed))
        }
        other => {
            let names = NamePreserver::new(&other);
            other.map_expressions(|expr| {
                let name = names.save(&expr);
                let guarded = guard_expression(expr)?;
                Ok(if guarded.transformed { guarded.update_data(|expr| name.restore(expr)) } else { guarded })
            })
        }
    });
    Ok(rewritten?.data)
}

/// Whether a condition is `column = expression of columns`. Behind such a filter DataFusion takes both for
/// one value and replaces the column by the expression in sort keys, even inside the expression itself.
fn is_computed_equality(condition: &Expr, schema: &DFSchema) -> bool {
    let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) = condition else { return false };
    let is_computed = |expr: &Expr| !matches!(expr, Expr::Column(_)) && !expr.column_refs().is_empty();
    match (&**left, &**right) {
        (column @ Expr::Column(_), other) | (other, column @ Expr::Column(_)) => {
            let is_ordered = type_of(column, schema).is_some_and(|ty| !ty.is_nested());
            is_ordered && is_computed(other) && !other.is_volatile()
        }
        _ => false,
    }
}

/// Rewrites a computed equality as two equivalent inequalities.
fn as_inequalities(condition: Expr, schema: &DFSchema) -> Expr {
    if !is_computed_equality(&condition, schema) {
        return condition;
    }
    match condition {
        Expr::BinaryExpr(BinaryExpr { left, right, .. }) => {
            left.clone().lt_eq(Expr::clone(&right)).and(left.gt_eq(*right))
        }
        other => other,
    }
}

/// Guards the condition of a single filter.
pub(crate) fn guard_condition(condition: Expr) -> crate::error::Result<Expr> {
    let (conditions, _) = guard_conditions(split_conjunction_owned(condition))?;
    Ok(conjunction(conditions).unwrap_or_else(|| lit(true)))
}

/// Guards the conditions of a filter, where NULL counts as false; returns whether anything changed.
fn guard_conditions(conditions: Vec<Expr>) -> Result<(Vec<Expr>, bool)> {
    let mut is_changed = false;
    let conditions = conditions
        .into_iter()
        .map(|condition| {
            let guarded = guard_expression(condition)?;
            is_changed |= guarded.transformed;
            Ok(guarded.data)
        })
        .collect::<Result<Vec<_>>>()?;
    let (mut safe, risky) = partition_by_risk(conditions)?;
    if risky.is_empty() || (safe.is_empty() && risky.len() == 1) {
        safe.extend(risky);
        return Ok((safe, is_changed));
    }
    let unless_false = |last: Option<Expr>, condition: Expr| match last {
        None => Ok(condition),
        Some(last) => when(condition, last).otherwise(lit(false)),
    };
    let last =
        risky.into_iter().rev().try_fold(None, |last, condition| unless_false(last, condition).map(Some))?;
    let guard = conjunction(safe.iter().filter(|condition| !condition.is_volatile()).cloned());
    if let Some(last) = last {
        safe.push(match guard {
            Some(guard) => unless_false(Some(last), guard)?,
            None => last,
        });
    }
    Ok((safe, true))
}

/// Computes an aggregate's arguments only where its FILTER holds; DataFusion computes them for every row.
pub(super) fn guard_arguments(mut expr: Expr, _: &DFSchema) -> Result<Transformed<Expr>> {
    let (args, sorts, filter) = match &mut expr {
        Expr::AggregateFunction(call) => {
            (&mut call.params.args, call.params.order_by.as_mut_slice(), &call.params.filter)
        }
        Expr::WindowFunction(call) => (&mut call.params.args, [].as_mut_slice(), &call.params.filter),
        _ => return Ok(Transformed::no(expr)),
    };
    let Some(filter) = filter else { return Ok(Transformed::no(expr)) };
    let mut is_changed = false;
    for part in args.iter_mut().chain(sorts.iter_mut().map(|sort| &mut sort.expr)) {
        // A constant is a parameter of the function itself, such as the fraction of a percentile.
        if can_fail(part)? && (!part.column_refs().is_empty() || part.contains_outer()) {
            *part = when(Expr::clone(filter), std::mem::take(part)).end()?;
            is_changed = true;
        }
    }
    Ok(Transformed::new_transformed(expr, is_changed))
}

/// Guards ANDs and ORs anywhere in an expression, where NULL is not false.
fn guard_expression(expr: Expr) -> Result<Transformed<Expr>> {
    if !can_fail(&expr)? {
        return Ok(Transformed::no(expr));
    }
    expr.transform_down(|expr| match &expr {
        Expr::BinaryExpr(BinaryExpr { op: op @ (Operator::And | Operator::Or), .. }) => {
            let op = *op;
            let parts = split(expr, op)
                .into_iter()
                .map(|part| Ok(guard_expression(part)?.data))
                .collect::<Result<Vec<_>>>()?;
            let (safe, risky) = partition_by_risk(parts)?;
            let join = if op == Operator::And { conjunction } else { disjunction };
            let whole =
                safe.into_iter().reduce(|all, part| datafusion::logical_expr::binary_expr(all, op, part));
            let mut parts: Vec<Expr> = whole.into_iter().chain(risky).collect();
            let mut guarded = parts.pop().unwrap_or_else(|| lit(op == Operator::And));
            while let Some(part) = parts.pop() {
                if is_large(&part)? {
                    guarded = join([part.clone(), guarded]).unwrap_or(part);
                    continue;
                }
                let decides =
                    if op == Operator::And { part.clone().is_false() } else { part.clone().is_true() };
                let both = join([part.clone(), guarded]).unwrap_or(part);
                guarded = when(decides, lit(op == Operator::Or)).otherwise(both)?;
            }
            Ok(Transformed::new(guarded, true, TreeNodeRecursion::Jump))
        }
        _ => Ok(Transformed::no(expr)),
    })
}

/// Conditions with more parts get no guard: a guard repeats its condition; nested ones grow to 2^depth parts.
const PARTS_DOUBLED_MAX: usize = 1_000;

fn is_large(expr: &Expr) -> Result<bool> {
    let mut parts = 0;
    expr.apply(|_| {
        parts += 1;
        Ok(if parts > PARTS_DOUBLED_MAX { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(parts > PARTS_DOUBLED_MAX)
}

/// The operands of a chain of one operator, from the left.
fn split(expr: Expr, op: Operator) -> Vec<Expr> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: own, right }) if own == op => {
            let mut parts = split(*left, op);
            parts.extend(split(*right, op));
            parts
        }
        other => vec![other],
    }
}

/// Separates conditions that cannot fail from those that can.
fn partition_by_risk(conditions: Vec<Expr>) -> Result<(Vec<Expr>, Vec<Expr>)> {
    let (mut safe, mut risky) = (Vec::new(), Vec::new());
    for condition in conditions {
        if can_fail(&condition)? { risky.push(condition) } else { safe.push(condition) }
    }
    Ok((safe, risky))
}

/// Functions that return a value for all arguments of their types, if these are not huge; sorted for binary
/// search.
const TOTAL: [&str; 89] = [
    "acos",
    "acosh",
    "all_of",
    "any_of",
    "array_element",
    "array_has",
    "array_length",
    "array_to_string",
    "ascii",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "bit_length",
    "btrim",
    "canonical_float",
    "cardinality",
    "cbrt",
    "ceil",
    "character_length",
    "coalesce",
    "concat",
    "concat_ws",
    "contains",
    "cos",
    "cosh",
    "cot",
    "current_date",
    "current_time",
    "date_part",
    "degrees",
    "ends_with",
    "exp",
    "find_in_set",
    "floor",
    "get_field",
    "greatest",
    "initcap",
    "interval_length",
    "isnan",
    "iszero",
    "least",
    "left",
    "like",
    "ln",
    "log10",
    "log2",
    "lower",
    "ltrim",
    "make_array",
    "may_be_null",
    "md5",
    "named_struct",
    "nanvl",
    "next_part",
    "now",
    "nullif",
    "nvl",
    "nvl2",
    "octet_length",
    "pi",
    "radians",
    "random",
    "ranged",
    "replace",
    "reverse",
    "right",
    "rtrim",
    "sha224",
    "sha256",
    "sha384",
    "sha512",
    "signum",
    "sin",
    "sinh",
    "starts_with",
    "strpos",
    "struct",
    "substr_index",
    "tan",
    "tanh",
    "to_hex",
    "translate",
    "trunc",
    "try_cast",
    "upper",
    "uuid",
    "version",
];

/// Whether an expression can fail for some row. A CASE counts as its own guard.
fn can_fail(expr: &Expr) -> Result<bool> {
    let mut can_fail = false;
    expr.apply(|part| {
        can_fail |= match part {
            Expr::BinaryExpr(BinaryExpr { op: Operator::Divide | Operator::Modulo, .. }) => true,
            Expr::ScalarFunction(call) => TOTAL.binary_search(&call.func.name()).is_err(),
            _ => false,
        };
        Ok(match part {
            Expr::Case(_) => TreeNodeRecursion::Jump,
            _ if can_fail => TreeNodeRecursion::Stop,
            _ => TreeNodeRecursion::Continue,
        })
    })?;
    Ok(can_fail)
}
