//! PostgreSQL's names for result columns without an alias; the details are in `FigureColname` of its parser:
//! <https://www.postgresql.org/docs/15/queries-select-lists.html>.

use datafusion::sql::sqlparser::ast::{
    DataType, Expr, Function, ObjectName, Query, SelectItem, SetExpr, TrimWhereField,
};

use crate::sql::syntax_tree::fold;

/// The name of an expression that suggests none.
const UNNAMED: &str = "?column?";

/// Functions that stand for an operator.
const OPERATORS: [&str; 3] = ["any_of", "all_of", "like_pattern"];

/// Returns the column name of an expression.
pub(super) fn of(expr: &Expr) -> String {
    match figured(expr) {
        Some((name, _)) => name,
        None => UNNAMED.to_owned(),
    }
}

/// The strength of a name: a column or function inside overrides the name of a type or a CASE.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Strength {
    Weak,
    Strong,
}

use Strength::{Strong, Weak};

fn figured(expr: &Expr) -> Option<(String, Strength)> {
    let strong = |name: &str| Some((name.to_owned(), Strong));
    match expr {
        Expr::Identifier(ident) => Some((fold(ident), Strong)),
        Expr::CompoundIdentifier(parts) => parts.last().map(|ident| (fold(ident), Strong)),
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => figured(inner),
        Expr::Function(function) => of_function(function),
        Expr::Cast { expr, data_type, .. } => match figured(expr) {
            Some(name) if name.1 == Strong => Some(name),
            _ => Some((of_type(data_type), Weak)),
        },
        Expr::TypedString(typed) => Some((of_type(&typed.data_type), Weak)),
        Expr::Interval(_) => Some(("interval".to_owned(), Weak)),
        Expr::Case { else_result, .. } => match else_result.as_deref().and_then(figured) {
            Some(name) if name.1 == Strong => Some(name),
            _ => Some(("case".to_owned(), Weak)),
        },
        Expr::Array(_) => strong("array"),
        Expr::Exists { negated: false, .. } => strong("exists"),
        Expr::Subquery(query) => of_query(query),
        Expr::Extract { .. } => strong("extract"),
        Expr::Ceil { .. } => strong("ceil"),
        Expr::Floor { .. } => strong("floor"),
        Expr::Position { .. } => strong("position"),
        Expr::Substring { .. } => strong("substring"),
        Expr::Overlay { .. } => strong("overlay"),
        Expr::Trim { trim_where, .. } => strong(match trim_where {
            Some(TrimWhereField::Leading) => "ltrim",
            Some(TrimWhereField::Trailing) => "rtrim",
            Some(TrimWhereField::Both) | None => "btrim",
        }),
        Expr::Tuple(_) => strong("row"),
        _ => None,
    }
}

fn of_function(function: &Function) -> Option<(String, Strength)> {
    let name = last(&function.name)?;
    if OPERATORS.contains(&name.as_str()) {
        return None;
    }
    Some((name, Strong))
}

fn last(name: &ObjectName) -> Option<String> {
    name.0.last().and_then(|part| part.as_ident()).map(fold)
}

/// Returns the name of the query's first column.
fn of_query(query: &Query) -> Option<(String, Strength)> {
    let SetExpr::Select(select) = &*query.body else { return None };
    match select.projection.first()? {
        SelectItem::ExprWithAlias { alias, .. } => Some((fold(alias), Strong)),
        SelectItem::UnnamedExpr(expr) => figured(expr),
        _ => None,
    }
}

/// Returns PostgreSQL's internal name of a type.
fn of_type(ty: &DataType) -> String {
    let name = match ty {
        DataType::SmallInt(_) | DataType::Int2(_) => "int2",
        DataType::Int(_) | DataType::Integer(_) | DataType::Int4(_) => "int4",
        DataType::BigInt(_) | DataType::Int8(_) => "int8",
        DataType::Real | DataType::Float4 => "float4",
        DataType::Double(_) | DataType::DoublePrecision | DataType::Float8 | DataType::Float(_) => "float8",
        DataType::Decimal(_) | DataType::Numeric(_) | DataType::Dec(_) => "numeric",
        DataType::Boolean | DataType::Bool => "bool",
        DataType::Varchar(_) | DataType::CharacterVarying(_) | DataType::CharVarying(_) => "varchar",
        DataType::Char(_) | DataType::Character(_) => "bpchar",
        DataType::Timestamp(_, zone) => match zone {
            datafusion::sql::sqlparser::ast::TimezoneInfo::WithTimeZone
            | datafusion::sql::sqlparser::ast::TimezoneInfo::Tz => "timestamptz",
            _ => "timestamp",
        },
        DataType::Time(..) => "time",
        DataType::Interval { .. } => "interval",
        DataType::Array(_) => "array",
        other => {
            let text = other.to_string().to_lowercase();
            return text.split(['(', ' ']).next().unwrap_or(UNNAMED).to_owned();
        }
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::syntax_tree::expression;

    #[test]
    fn names_are_those_of_postgresql() {
        for (text, name) in [
            ("a", "a"),
            ("T.A", "a"),
            ("t.\"A b\"", "A b"),
            ("count(*)", "count"),
            ("sum(a) + 1", "?column?"),
            ("1", "?column?"),
            ("CAST(a AS TEXT)", "a"),
            ("'1'::INT", "int4"),
            ("count(*)::DOUBLE PRECISION", "count"),
            ("DATE '2024-01-01'", "date"),
            ("CASE WHEN a THEN 1 ELSE b END", "b"),
            ("CASE WHEN a THEN 1 ELSE 2 END", "case"),
            ("coalesce(a, 1)", "coalesce"),
            ("(SELECT max(a) FROM t)", "max"),
            ("EXISTS (SELECT 1)", "exists"),
            ("a IN (1, 2)", "?column?"),
            ("extract(year FROM a)", "extract"),
            ("ARRAY[1]", "array"),
            ("NOT a", "?column?"),
        ] {
            assert_eq!(of(&expression(text).unwrap()), name, "{text}");
        }
    }
}
