//! GROUP BY as the planner understands it.
//!
//! The planner misreads or refuses HAVING without aggregates, rows (it takes them for structs), positions and
//! ROLLUP in grouping sets, and a set that repeats an expression (it wants two columns of one name).

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Select, SelectItem,
    Value,
};

use super::{function_call, nested, number, taken};

/// HAVING without GROUP BY makes one group of all rows, even without an aggregate.
pub(super) fn of_having(select: &mut Select) {
    let is_grouped = match &select.group_by {
        GroupByExpr::Expressions(parts, modifiers) => !parts.is_empty() || !modifiers.is_empty(),
        GroupByExpr::All(_) => true,
    };
    if is_grouped {
        return;
    }
    if let Some(having) = &mut select.having {
        let count = Expr::BinaryOp {
            left: Box::new(function_call("count", vec![number("1")])),
            op: BinaryOperator::GtEq,
            right: Box::new(number("0")),
        };
        let having_too = Expr::BinaryOp {
            left: Box::new(nested(taken(having))),
            op: BinaryOperator::And,
            right: Box::new(count),
        };
        *having = having_too;
    }
}

/// An integer in a grouping set is a position in the select list, as elsewhere in GROUP BY.
pub(super) fn of_positions(select: &mut Select) {
    let GroupByExpr::Expressions(parts, _) = &mut select.group_by else { return };
    let column = |number: &Expr| {
        let Expr::Value(value) = number else { return None };
        let Value::Number(digits, _) = &value.value else { return None };
        let place = digits.parse::<usize>().ok()?.checked_sub(1)?;
        let items = select.projection.get(..=place)?;
        let is_one =
            |item: &SelectItem| matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. });
        match items.last() {
            Some(SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) => {
                items.iter().all(is_one).then(|| expr.clone())
            }
            _ => None,
        }
    };
    for part in parts {
        place_columns(part, &column);
    }
}

fn place_columns(part: &mut Expr, column: &impl Fn(&Expr) -> Option<Expr>) {
    let (Expr::Cube(sets) | Expr::Rollup(sets) | Expr::GroupingSets(sets)) = part else { return };
    for expr in sets.iter_mut().flatten() {
        if let Some(inner) = inner_sets(expr) {
            *expr = inner;
            place_columns(expr, column);
        } else if let Some(column) = column(expr) {
            *expr = column;
        }
    }
}

/// `GROUP BY (a, b)` is `GROUP BY a, b`.
pub(super) fn without_rows(group_by: &mut GroupByExpr) {
    let GroupByExpr::Expressions(parts, _) = group_by else { return };
    let is_row = |part: &Expr| matches!(part, Expr::Tuple(values) if !values.is_empty());
    if parts.iter().any(is_row) {
        let single = |part| match part {
            Expr::Tuple(values) if !values.is_empty() => values,
            other => vec![other],
        };
        *parts = std::mem::take(parts).into_iter().flat_map(single).collect();
    }
}

/// Maximum number of sets to write out. The planner refuses more.
const SETS_MAX: usize = 1 << 12;

/// Maximum length of a ROLLUP to write out: n parts make n sets, with n^2/2 expressions in all.
const ROLLUP_MAX: usize = 400;

/// Writes grouping sets out, without repetition in a set, if a set repeats an expression, if sets are nested,
/// or if another part stands beside them.
pub(super) fn write_out_sets(group_by: &mut GroupByExpr) {
    let GroupByExpr::Expressions(parts, _) = group_by else { return };
    let has_sets =
        parts.iter().any(|part| matches!(part, Expr::Cube(_) | Expr::Rollup(_) | Expr::GroupingSets(_)));
    if !has_sets {
        return;
    }
    let Some(sets) = sets_of_all(parts) else { return };
    let single: Vec<Vec<Expr>> = sets.iter().map(|set| once(set)).collect();
    // Beside a key, the planner would add to each set the columns that the key determines.
    if single != sets || parts.len() > 1 || parts.iter().any(is_nested) {
        *parts = vec![Expr::GroupingSets(single)];
    }
}

/// Whether grouping sets contain rows or further ROLLUPs, which the planner does not support.
fn is_nested(part: &Expr) -> bool {
    match part {
        Expr::Cube(parts) | Expr::Rollup(parts) => parts.iter().any(|exprs| exprs.len() != 1),
        Expr::GroupingSets(sets) => {
            sets.iter().any(|set| matches!(&**set, [only] if inner_sets(only).is_some()))
        }
        _ => false,
    }
}

/// ROLLUP or CUBE within GROUPING SETS, which the parser reads as a function.
fn inner_sets(expr: &Expr) -> Option<Expr> {
    if matches!(expr, Expr::Rollup(_) | Expr::Cube(_)) {
        return Some(expr.clone());
    }
    let Expr::Function(function) = expr else { return None };
    let FunctionArguments::List(list) = &function.args else { return None };
    let part = |arg: &FunctionArg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Tuple(values))) => Some(values.clone()),
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(vec![expr.clone()]),
        _ => None,
    };
    let sets = match function.name.to_string().to_ascii_lowercase().as_str() {
        "rollup" => Expr::Rollup,
        "cube" => Expr::Cube,
        _ => return None,
    };
    list.args.iter().map(part).collect::<Option<_>>().map(sets)
}

fn once(set: &[Expr]) -> Vec<Expr> {
    let mut single: Vec<Expr> = Vec::with_capacity(set.len());
    for expr in set {
        if !single.contains(expr) {
            single.push(expr.clone());
        }
    }
    single
}

/// Each set of one part combined with each set of the others; `None` if there are too many.
fn sets_of_all(parts: &[Expr]) -> Option<Vec<Vec<Expr>>> {
    let mut all: Vec<Vec<Expr>> = vec![Vec::new()];
    for part in parts {
        let sets = sets_of(part)?;
        if all.len().saturating_mul(sets.len()) > SETS_MAX {
            return None;
        }
        all =
            all.iter().flat_map(|set| sets.iter().map(move |more| [set.as_slice(), more].concat())).collect();
    }
    Some(all)
}

fn sets_of(part: &Expr) -> Option<Vec<Vec<Expr>>> {
    match part {
        Expr::GroupingSets(sets) => {
            let written_out = sets.iter().map(|set| match &**set {
                [only] => inner_sets(only).map_or_else(|| Some(vec![set.clone()]), |inner| sets_of(&inner)),
                _ => Some(vec![set.clone()]),
            });
            Some(written_out.collect::<Option<Vec<_>>>()?.concat())
        }
        Expr::Rollup(parts) if parts.len() > ROLLUP_MAX => None,
        Expr::Rollup(parts) => Some(
            (0..=parts.len()).rev().map(|len| parts.iter().take(len).flatten().cloned().collect()).collect(),
        ),
        Expr::Cube(parts) => {
            let count =
                1_usize.checked_shl(u32::try_from(parts.len()).ok()?).filter(|count| *count <= SETS_MAX)?;
            // The first part is in the first half of the sets.
            let is_in = |set: usize, part: usize| (set >> (parts.len() - 1 - part)) & 1 == 0;
            let set = |number: usize| {
                let kept = parts.iter().enumerate().filter(|(part, _)| is_in(number, *part));
                kept.flat_map(|(_, exprs)| exprs).cloned().collect()
            };
            Some((0..count).map(set).collect())
        }
        plain => Some(vec![vec![plain.clone()]]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::syntax_tree::written_query;
    use datafusion::sql::sqlparser::ast::SetExpr;

    fn grouped(by: &str) -> String {
        let query = written_query(&format!("SELECT 1 FROM t GROUP BY {by}")).unwrap();
        let SetExpr::Select(mut select) = *query.body else { panic!("{by}") };
        write_out_sets(&mut select.group_by);
        select.group_by.to_string()
    }

    #[test]
    fn doubles_are_dropped() {
        assert_eq!(grouped("CUBE (a, a)"), "GROUP BY GROUPING SETS ((a), (a), (a), ())");
        assert_eq!(grouped("a, ROLLUP (a, b)"), "GROUP BY GROUPING SETS ((a, b), (a), (a))");
        assert_eq!(grouped("GROUPING SETS ((a, a), (b))"), "GROUP BY GROUPING SETS ((a), (b))");
        assert_eq!(
            grouped("GROUPING SETS (ROLLUP (a, b), c)"),
            "GROUP BY GROUPING SETS ((a, b), (a), (), (c))"
        );
        assert_eq!(grouped("ROLLUP ((a, b), c)"), "GROUP BY GROUPING SETS ((a, b, c), (a, b), ())");
        for plain in ["a, a", "CUBE (a, b)", "ROLLUP (a, b)", "GROUPING SETS ((a), (a))"] {
            assert_eq!(grouped(plain), format!("GROUP BY {plain}"));
        }
    }
}
