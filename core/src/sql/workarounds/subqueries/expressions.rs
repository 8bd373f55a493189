//! Replaces the subqueries of an expression by columns of its node's input.

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::expr::{Exists, InSubquery};
use datafusion::logical_expr::{Expr, lit};

use super::existence::{Existence, existence, is_plain_correlation};
use super::outer::{has_subquery, with_plan};
use super::{Input, Rewriter};

impl Rewriter {
    /// Rewrites a condition of WHERE, where NULL counts as false.
    pub(super) fn condition(&mut self, condition: Expr, input: &mut Input) -> Result<Expr> {
        let (condition, negated) = match condition {
            Expr::Not(inner) if matches!(*inner, Expr::Exists(_) | Expr::InSubquery(_)) => (*inner, true),
            other => (other, false),
        };
        match condition {
            Expr::Exists(Exists { subquery, negated: is_not }) => {
                let negated = negated != is_not;
                match existence(&subquery.subquery)? {
                    Existence::Known(exists) => Ok(lit(exists != negated)),
                    Existence::Of(plan) if is_plain_correlation(&plan, &input.original)? => {
                        let plan = self.plan(plan)?;
                        with_plan(Expr::Exists(Exists { subquery, negated }), plan)
                    }
                    Existence::Of(plan) => {
                        let exists = self.exists(&plan, input)?;
                        Ok(if negated { Expr::Not(Box::new(exists)) } else { exists })
                    }
                }
            }
            Expr::InSubquery(InSubquery { expr, subquery, negated: is_not }) => {
                let expr = self.value(*expr, input)?;
                if negated != is_not {
                    self.not_in_condition(expr, &subquery, input)
                } else {
                    self.in_condition(expr, subquery, input)
                }
            }
            other => {
                let value = self.value(other, input)?;
                Ok(if negated { Expr::Not(Box::new(value)) } else { value })
            }
        }
    }

    /// Replaces the subqueries of an expression by columns; every value is exact, NULL included.
    pub(super) fn value(&mut self, expr: Expr, input: &mut Input) -> Result<Expr> {
        if !has_subquery(&expr)? {
            return Ok(expr);
        }
        let rewritten = expr.transform_up(|part| match part {
            Expr::ScalarSubquery(subquery) => self.scalar_of(&subquery.subquery, input).map(Transformed::yes),
            Expr::Exists(Exists { subquery, negated }) => {
                let exists = match existence(&subquery.subquery)? {
                    Existence::Known(exists) => lit(exists),
                    Existence::Of(plan) => self.exists(&plan, input)?,
                };
                Ok(Transformed::yes(if negated { Expr::Not(Box::new(exists)) } else { exists }))
            }
            Expr::InSubquery(InSubquery { expr, subquery, negated }) => {
                let within = self.in_three_valued(*expr, &subquery, input)?;
                Ok(Transformed::yes(if negated { Expr::Not(Box::new(within)) } else { within }))
            }
            Expr::SetComparison(comparison) => self.set_comparison(comparison, input).map(Transformed::yes),
            other => Ok(Transformed::no(other)),
        })?;
        Ok(rewritten.data)
    }
}
