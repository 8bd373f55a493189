//! `x IN (SELECT y ...)`, `x op ANY (...)` and `x op ALL (...)` with three-valued logic.
//!
//! The *state* of a subquery tells how NULL affects the answer: 0 without rows, 2 if a `y` is NULL, else 1.
//!
//! | | true | NULL | false |
//! |---|---|---|---|
//! | `x IN` | a row has `y = x` | state 2, or `x` is NULL and state 1 | else |
//! | `x > ANY` | `x > min(y)` | as above | else |
//! | `x > ALL` | state 0, or `x > max(y)` and state 1 | not false, and state 2 or `x` NULL | `x <= max(y)` |

use std::sync::Arc;

use datafusion::common::{JoinType, NullEquality, Result, ScalarValue};
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::functions_aggregate::min_max::{max_udaf, min_udaf};
use datafusion::logical_expr::expr::{Exists, InSubquery, SetComparison, SetQuantifier};
use datafusion::logical_expr::{
    Aggregate, AggregateUDF, Distinct, Expr, ExprSchemable, Filter, LogicalPlan, LogicalPlanBuilder,
    Operator, Subquery, binary_expr, lit, when,
};

use super::super::aggregates;
use super::builders::{aggregate, first_column, join, named};
use super::existence::is_plain_correlation;
use super::outer::{as_outer, is_correlated, with_plan};
use super::scalar::refuse_volatile;
use super::{Input, Rewriter};
use crate::error::Error;
use crate::failpoint::is_planted;

const EMPTY: i64 = 0;
const WITHOUT_NULL: i64 = 1;
const WITH_NULL: i64 = 2;

impl Rewriter {
    /// Rewrites `expr IN (subquery)` as a condition, where NULL counts as false.
    pub(super) fn in_condition(&mut self, expr: Expr, subquery: Subquery, input: &mut Input) -> Result<Expr> {
        let plan = without_order(&subquery.subquery);
        let is_constant = expr.column_refs().is_empty();
        if !is_constant && !is_correlated(&plan)? {
            return self.join_equal(expr, plan, JoinType::LeftSemi, input);
        }
        if is_plain_correlation(&plan, &input.original)? {
            let plan = self.plan(plan)?;
            let within = InSubquery { expr: Box::new(expr), subquery, negated: false };
            return with_plan(Expr::InSubquery(within), plan);
        }
        self.matches(&expr, &plan, input)
    }

    /// Semi joins or anti joins the node's rows to an uncorrelated subquery; returns a true condition.
    fn join_equal(
        &mut self,
        expr: Expr,
        rows: LogicalPlan,
        join_type: JoinType,
        input: &mut Input,
    ) -> Result<Expr> {
        let rows = self.plan(rows)?;
        let name = self.name("value");
        let value = first_column(&rows).alias(&name);
        let rows = LogicalPlanBuilder::from(rows).project([value])?.build()?;
        let left = std::mem::take(&mut input.plan);
        let on = vec![(expr, named(&name))];
        input.plan = join(left, rows, on, None, join_type, NullEquality::NullEqualsNothing)?;
        Ok(lit(true))
    }

    /// Rewrites `expr NOT IN (subquery)` as a condition.
    pub(super) fn not_in_condition(
        &mut self,
        expr: Expr,
        subquery: &Subquery,
        input: &mut Input,
    ) -> Result<Expr> {
        let plan = without_order(&subquery.subquery);
        if is_planted("not_in_without_null") {
            let matches = self.matches(&expr, &plan, input)?;
            return Ok(Expr::Not(Box::new(matches)));
        }
        refuse_volatile(&plan)?;
        let state =
            if self.is_null_free(&expr, &plan, input)? { None } else { Some(self.state(&plan, input)?) };
        let is_constant = expr.column_refs().is_empty();
        let no_match = if !is_constant && !is_correlated(&plan)? {
            self.join_equal(expr.clone(), plan, JoinType::LeftAnti, input)?
        } else if !is_constant && is_plain_correlation(&plan, &input.original)? {
            let outer = as_outer(expr.clone(), input.plan.schema())?;
            let equal = Filter::try_new(first_column(&plan).eq(outer), Arc::new(plan))?;
            let rows = self.plan(LogicalPlan::Filter(equal))?;
            with_plan(Expr::Exists(Exists { subquery: subquery.clone(), negated: true }), rows)?
        } else {
            Expr::Not(Box::new(self.matches(&expr, &plan, input)?))
        };
        Ok(match state {
            None => no_match,
            Some(state) => {
                let empty = state.clone().eq(lit(EMPTY));
                let known = state.eq(lit(WITHOUT_NULL)).and(expr.is_not_null());
                no_match.and(empty.or(known))
            }
        })
    }

    /// Rewrites `expr IN (subquery)` as an expression that can be NULL.
    pub(super) fn in_three_valued(
        &mut self,
        expr: Expr,
        subquery: &Subquery,
        input: &mut Input,
    ) -> Result<Expr> {
        let plan = without_order(&subquery.subquery);
        refuse_volatile(&plan)?;
        let matches = self.matches(&expr, &plan, input)?;
        if self.is_null_free(&expr, &plan, input)? {
            return Ok(matches);
        }
        let state = self.state(&plan, input)?;
        when(matches, lit(true)).when(is_unknown(&expr, &state), unknown()).otherwise(lit(false))
    }

    /// Whether neither side of the comparison can be NULL.
    fn is_null_free(&self, expr: &Expr, plan: &LogicalPlan, input: &Input) -> Result<bool> {
        Ok(!expr.nullable(input.plan.schema())? && !plan.schema().field(0).is_nullable())
    }

    /// Whether a row of the subquery equals `expr`; false if that is unknown.
    fn matches(&mut self, expr: &Expr, plan: &LogicalPlan, input: &mut Input) -> Result<Expr> {
        let outer = as_outer(expr.clone(), input.plan.schema())?;
        let equal = Filter::try_new(first_column(plan).eq(outer), Arc::new(plan.clone()))?;
        // The value may be a column that stands for another subquery.
        let mut whole = Input { original: input.plan.clone(), plan: std::mem::take(&mut input.plan) };
        let exists = self.exists(&LogicalPlan::Filter(equal), &mut whole);
        input.plan = whole.plan;
        exists
    }

    /// The state of a subquery, as the file's head defines it.
    fn state(&mut self, plan: &LogicalPlan, input: &mut Input) -> Result<Expr> {
        let (all, known) = (self.name("all"), self.name("known"));
        let aggregates = vec![
            aggregate(count_udaf(), lit(1_i64)).alias(&all),
            aggregate(count_udaf(), first_column(plan)).alias(&known),
        ];
        let counted = Aggregate::try_new(Arc::new(plan.clone()), Vec::new(), aggregates)?;
        let state = when(named(&all).eq(lit(0_i64)), lit(EMPTY))
            .when(named(&all).gt(named(&known)), lit(WITH_NULL))
            .otherwise(lit(WITHOUT_NULL))?;
        let name = self.name("state");
        let plan = LogicalPlanBuilder::from(LogicalPlan::Aggregate(counted))
            .project([state.alias(name)])?
            .build()?;
        self.scalar_of(&plan, input)
    }

    /// Rewrites `expr op ANY (subquery)` and `expr op ALL (subquery)`.
    pub(super) fn set_comparison(&mut self, comparison: SetComparison, input: &mut Input) -> Result<Expr> {
        let SetComparison { expr, subquery, op, quantifier } = comparison;
        let is_any = quantifier == SetQuantifier::Any;
        match (op, is_any) {
            (Operator::Eq, true) => return self.in_three_valued(*expr, &subquery, input),
            (Operator::NotEq, false) => {
                return Ok(Expr::Not(Box::new(self.in_three_valued(*expr, &subquery, input)?)));
            }
            _ => {}
        }
        let plan = without_order(&subquery.subquery);
        refuse_volatile(&plan)?;
        let (op, negated, is_any) = match op {
            // `<> ANY` is NOT (`= ALL`).
            Operator::NotEq => (Operator::Eq, true, false),
            op => (op, false, is_any),
        };
        let against = match (op, is_any) {
            (Operator::Gt | Operator::GtEq, true) | (Operator::Lt | Operator::LtEq, false) => {
                binary_expr(*expr.clone(), op, self.extreme(min_udaf(), &plan, input)?)
            }
            (Operator::Gt | Operator::GtEq, false) | (Operator::Lt | Operator::LtEq, true) => {
                binary_expr(*expr.clone(), op, self.extreme(max_udaf(), &plan, input)?)
            }
            (Operator::Eq, _) => {
                let least = self.extreme(min_udaf(), &plan, input)?;
                let greatest = self.extreme(max_udaf(), &plan, input)?;
                let expr = Expr::clone(&expr);
                expr.clone().eq(least).and(expr.eq(greatest))
            }
            (op, _) => return Err(Error::unsupported(format!("{op} with ANY or ALL of a subquery")).into()),
        };
        let state = self.state(&plan, input)?;
        let value = if is_any {
            when(against, lit(true)).when(is_unknown(&expr, &state), unknown()).otherwise(lit(false))?
        } else {
            when(state.clone().eq(lit(EMPTY)), lit(true))
                .when(Expr::Not(Box::new(against)), lit(false))
                .when(is_unknown(&expr, &state), unknown())
                .otherwise(lit(true))?
        };
        Ok(if negated { Expr::Not(Box::new(value)) } else { value })
    }

    fn extreme(
        &mut self,
        function: Arc<AggregateUDF>,
        plan: &LogicalPlan,
        input: &mut Input,
    ) -> Result<Expr> {
        let name = self.name("extreme");
        let value = first_column(plan);
        let call = aggregate(function, value);
        let call = aggregates::replace(call, plan.schema())?.data;
        let extreme = Aggregate::try_new(Arc::new(plan.clone()), Vec::new(), vec![call.alias(name)])?;
        self.scalar_of(&LogicalPlan::Aggregate(extreme), input)
    }
}

/// Whether a comparison without a match is NULL instead of false.
fn is_unknown(expr: &Expr, state: &Expr) -> Expr {
    let without_value = expr.clone().is_null().and(state.clone().not_eq(lit(EMPTY)));
    state.clone().eq(lit(WITH_NULL)).or(without_value)
}

fn unknown() -> Expr {
    lit(ScalarValue::Boolean(None))
}

/// Drops sorts and DISTINCT: neither order nor duplicates matter.
fn without_order(plan: &LogicalPlan) -> LogicalPlan {
    match plan {
        LogicalPlan::Sort(sort) if sort.fetch.is_none() => without_order(&sort.input),
        LogicalPlan::Distinct(Distinct::All(input)) => without_order(input),
        other => other.clone(),
    }
}
