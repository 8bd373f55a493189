//! Subqueries for which DataFusion's own decorrelation is wrong or missing.
//!
//! | subquery | DataFusion 55 | here |
//! |---|---|---|
//! | `NOT IN`, and `IN` whose NULL matters | two-valued, or for one key only | see [`membership`] |
//! | `EXISTS` over an aggregate, with OFFSET, in CASE or as a value | wrong or refused | see [`existence`] |
//! | scalar, with HAVING, LIMIT or several rows | wrong or refused | [`dependent`] |
//! | scalar, correlated by inequality or over two levels | wrong or refused | [`dependent`] |
//! | in ORDER BY, JOIN ON, VALUES | refused | computed below the node, see [`nodes`] |
//! | LATERAL | wrong with a window or an outer join inside, or refused | [`lateral`] |
//!
//! DataFusion keeps uncorrelated scalar subqueries, and `EXISTS`, `NOT EXISTS` and `IN` as conditions of
//! WHERE over a plain SELECT, whatever correlates it: they become semi joins and anti joins.
//!
//! Invariant: after the rewrite, a correlated subquery stands only where DataFusion handles it correctly.

mod builders;
mod dependent;
mod equal;
mod existence;
mod expressions;
mod grouping_sets;
mod lateral;
mod membership;
mod nodes;
mod nullable;
mod outer;
mod scalar;
mod single_row;

use datafusion::common::Result;
use datafusion::logical_expr::LogicalPlan;

pub(super) use self::nullable::may_be_null;
pub(super) use self::outer::refuse_outer_aggregates;
use crate::failpoint::is_planted;
use crate::sql::limits::complexity::Copies;

/// Decorrelates the subqueries of a plan after type coercion.
pub(super) fn decorrelate(plan: LogicalPlan) -> Result<LogicalPlan> {
    if is_planted("subqueries_as_datafusion_has_them") {
        return Ok(plan);
    }
    Rewriter::default().plan(plan)
}

/// What the rewrites of one plan share. Its methods stand in the files of what they rewrite.
#[derive(Default)]
struct Rewriter {
    /// How many names were given so far; makes names unique.
    names: usize,
    copies: Copies,
}

/// The input of a node, before and after its subqueries add columns.
struct Input {
    /// Without added columns.
    original: LogicalPlan,
    /// With the columns that stand for subqueries.
    plan: LogicalPlan,
}

impl Rewriter {
    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("__{what}_{}", self.names)
    }
}
