//! Casts beside their operand. The planner gives both one name, but the columns of a node must have different
//! names: `sum(v)` beside `sum(CAST(v AS BIGINT))`.
//!
//! If two calls or grouped expressions of a SELECT differ only in casts, a function wraps each cast of the
//! SELECT. It returns its first argument and carries the type in its name.

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, GroupByExpr, OrderBy, OrderByKind, Query, Select, SelectItem, SetExpr, Visit, VisitMut, Visitor,
    VisitorMut,
};

use super::super::functions::NAMED_CAST;
use super::{function_call, taken, text};

/// Gives the casts of a SELECT different names, if needed.
pub(super) fn name_apart(select: &mut Select, order_by: Option<&mut OrderBy>) {
    let mut found = Found { depth: 0, has_casts: false, calls: Vec::new() };
    for_each(select, order_by.as_deref(), |expr| {
        let _ = Visit::visit(expr, &mut found);
    });
    if !found.has_casts {
        return;
    }
    if let GroupByExpr::Expressions(exprs, _) = &select.group_by {
        found.calls.extend(exprs.iter().flat_map(grouped));
    }
    let mut by_name: HashMap<String, &Expr> = HashMap::new();
    let is_double = found.calls.iter().any(|call| {
        let known = by_name.entry(without_casts(call)).or_insert(call);
        *known != call
    });
    if is_double {
        for_each_mut(select, order_by, |expr| {
            let _ = VisitMut::visit(expr, &mut Naming { depth: 0 });
        });
    }
}

/// Does the same for each SELECT of a set operation.
pub(super) fn name_apart_within(body: &mut SetExpr) {
    match body {
        SetExpr::Select(select) => name_apart(select, None),
        SetExpr::SetOperation { left, right, .. } => {
            name_apart_within(left);
            name_apart_within(right);
        }
        _ => {}
    }
}

/// The expressions by which a part of GROUP BY groups.
fn grouped(part: &Expr) -> Vec<Expr> {
    match part {
        Expr::Rollup(sets) | Expr::Cube(sets) | Expr::GroupingSets(sets) => sets.concat(),
        other => vec![other.clone()],
    }
}

/// The calls outside subqueries, and whether there are casts.
struct Found {
    depth: usize,
    has_casts: bool,
    calls: Vec<Expr>,
}

impl Visitor for Found {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if self.depth == 0 {
            self.has_casts |= matches!(expr, Expr::Cast { .. });
            if matches!(expr, Expr::Function(_)) {
                self.calls.push(expr.clone());
            }
        }
        ControlFlow::Continue(())
    }
}

struct Naming {
    depth: usize,
}

impl VisitorMut for Naming {
    type Break = ();

    fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if self.depth == 0
            && let Expr::Cast { data_type, .. } = expr
        {
            let ty = text(data_type.to_string());
            *expr = function_call(NAMED_CAST, vec![taken(expr), ty]);
        }
        ControlFlow::Continue(())
    }
}

fn without_casts(expr: &Expr) -> String {
    struct Bare;
    impl VisitorMut for Bare {
        type Break = ();

        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            while let Expr::Cast { expr: inner, .. } | Expr::Nested(inner) = expr {
                *expr = taken(inner);
            }
            ControlFlow::Continue(())
        }
    }
    let mut bare = expr.clone();
    let _ = VisitMut::visit(&mut bare, &mut Bare);
    bare.to_string()
}

/// Visits the expressions of a SELECT that are computed after WHERE.
fn for_each(select: &Select, order_by: Option<&OrderBy>, mut visit: impl FnMut(&Expr)) {
    for item in &select.projection {
        if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
            visit(expr);
        }
    }
    if let GroupByExpr::Expressions(exprs, _) = &select.group_by {
        exprs.iter().for_each(&mut visit);
    }
    select.having.iter().chain(&select.qualify).for_each(&mut visit);
    if let Some(OrderBy { kind: OrderByKind::Expressions(exprs), .. }) = order_by {
        exprs.iter().map(|sort| &sort.expr).for_each(visit);
    }
}

fn for_each_mut(select: &mut Select, order_by: Option<&mut OrderBy>, mut visit: impl FnMut(&mut Expr)) {
    for item in &mut select.projection {
        if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
            visit(expr);
        }
    }
    if let GroupByExpr::Expressions(exprs, _) = &mut select.group_by {
        exprs.iter_mut().for_each(&mut visit);
    }
    select.having.iter_mut().chain(&mut select.qualify).for_each(&mut visit);
    if let Some(OrderBy { kind: OrderByKind::Expressions(exprs), .. }) = order_by {
        exprs.iter_mut().map(|sort| &mut sort.expr).for_each(visit);
    }
}
