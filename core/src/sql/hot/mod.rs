//! Statement shapes that skip planning: SELECT by a whole primary key, INSERT of literals and parameters.
//!
//! A shape is recognised in the parsed statement and compiled once per table version. Invariant: it returns
//! exactly what the planned path returns. Doubtful cases (a value of another type family, an unknown name) go
//! to the planned path, errors included; a differential test compares the two.

mod insert;
mod point;

use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast::{self, Expr, Value};

use self::insert::InsertValues;
use self::point::Point;
use super::effect::Effect;
use super::execution::Execution;
use super::text::statement::{Parsed, Statement};
use crate::error::Result;

/// A parsed statement with its shape.
pub(super) struct KnownStatement {
    pub(crate) parsed: Parsed,
    pub(crate) shape: Shape,
}

impl KnownStatement {
    pub(crate) fn new(parsed: Parsed) -> Self {
        Self { shape: Shape::of(&parsed), parsed }
    }
}

/// A value in the text, or a parameter's index.
#[derive(Clone, Debug)]
enum Operand {
    Literal(ScalarValue),
    /// A number with a decimal point, as written.
    Decimal(String),
    Parameter(usize),
    Default,
}

/// How a statement runs: by a plan, or as one of the two shapes.
pub(crate) enum Shape {
    Planned,
    Point(Box<Point>),
    Insert(Box<InsertValues>),
}

impl Shape {
    /// Recognises a shape from the parsed statement alone. Every statement can be planned, so only the two
    /// kinds that have a shape are named.
    pub(crate) fn of(parsed: &Parsed) -> Self {
        let shape = match &parsed.statement {
            Statement::Query(query) => Point::of(query).map(|point| Self::Point(Box::new(point))),
            Statement::Insert(insert) => {
                InsertValues::of(insert).map(|insert| Self::Insert(Box::new(insert)))
            }
            _ => None,
        };
        shape.filter(|_| !parsed.names_seq).unwrap_or(Self::Planned)
    }

    /// Returns the effect of the statement, once per row of parameters; `None` leaves it to the planned path.
    pub(crate) async fn effect(
        &self,
        execution: &Execution,
        params: &[Vec<ScalarValue>],
    ) -> Result<Option<Effect>> {
        match (self, params) {
            (Self::Point(point), [params]) => Ok(point.read(execution, params).await?.map(Effect::Rows)),
            (Self::Insert(insert), _) => Ok(insert.change(execution, params).await?.map(Effect::from)),
            (Self::Planned | Self::Point(_), _) => Ok(None),
        }
    }
}

fn operand(expr: &Expr) -> Option<Operand> {
    let literal = |value: ScalarValue| Some(Operand::Literal(value));
    match expr {
        Expr::Value(value) => match &value.value {
            Value::Placeholder(name) => {
                Some(Operand::Parameter(name.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1)?))
            }
            Value::Number(text, false) => number(text, ""),
            Value::SingleQuotedString(text) => literal(ScalarValue::Utf8(Some(text.clone()))),
            Value::Boolean(value) => literal(ScalarValue::Boolean(Some(*value))),
            Value::Null => literal(ScalarValue::Null),
            _ => None,
        },
        Expr::UnaryOp { op: ast::UnaryOperator::Minus, expr } => match &**expr {
            Expr::Value(value) => match &value.value {
                Value::Number(text, false) => number(text, "-"),
                _ => None,
            },
            _ => None,
        },
        Expr::Identifier(ident)
            if ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default") =>
        {
            Some(Operand::Default)
        }
        _ => None,
    }
}

fn number(text: &str, sign: &str) -> Option<Operand> {
    let text = format!("{sign}{text}");
    if let Ok(whole) = text.parse::<i64>() {
        return Some(Operand::Literal(ScalarValue::Int64(Some(whole))));
    }
    let is_decimal = text.contains('.') && text.bytes().all(|byte| b"0123456789.-".contains(&byte));
    is_decimal.then_some(Operand::Decimal(text))
}
