//! Statement shapes that skip planning: SELECT by a whole primary key, INSERT of literals and parameters.
//!
//! A shape is recognised in the parsed statement and compiled once per table version. Invariant: it returns
//! exactly what the planned path returns. Doubtful cases (a value of another type family, an unknown name) go
//! to the planned path, errors included; a differential test compares the two.

mod insert;
mod point;
mod size;

use std::sync::OnceLock;

use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast::{self, Expr, Value};

use self::insert::InsertValues;
use self::point::Point;
use super::effect::Effect;
use super::execution::Execution;
use super::limits::stack::deep;
use super::text::statement::{Parsed, Statement};
use crate::error::Result;
use crate::types::heap_bytes;

/// A parsed statement with its shape.
pub(super) struct KnownStatement {
    pub(crate) parsed: Parsed,
    pub(crate) shape: Shape,
    size: OnceLock<usize>,
}

impl KnownStatement {
    pub(crate) fn new(parsed: Parsed) -> Self {
        Self { shape: Shape::of(&parsed), parsed, size: OnceLock::new() }
    }

    /// Returns the memory that the statement takes, in bytes.
    pub(crate) fn size(&self) -> usize {
        let measure = || size_of::<Self>() + deep(|| size::parsed_bytes(&self.parsed)) + self.shape.bytes();
        *self.size.get_or_init(measure)
    }
}

/// What a shape compiles for the present definition of its table.
const COMPILED_BYTES: usize = 4 << 10;

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

    /// Returns the memory that the shape takes beside itself, in bytes.
    fn bytes(&self) -> usize {
        match self {
            Self::Planned => 0,
            Self::Point(point) => point.bytes() + COMPILED_BYTES,
            Self::Insert(insert) => insert.bytes() + COMPILED_BYTES,
        }
    }

    /// Whether [`Shape::effect`] does little work.
    pub(crate) fn is_small(&self, params: &[Vec<ScalarValue>]) -> bool {
        match self {
            Self::Planned => false,
            Self::Point(_) => true,
            Self::Insert(insert) => insert.is_small(params),
        }
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

impl Operand {
    /// Returns the memory that the operand takes, in bytes.
    fn size(&self) -> usize {
        let beside = match self {
            Self::Literal(value) => heap_bytes(value),
            Self::Decimal(text) => text.capacity(),
            Self::Parameter(_) | Self::Default => 0,
        };
        size_of::<Self>() + beside
    }

    /// Returns about how many bytes the value takes as a parameter of `params`.
    fn bytes(&self, params: &[ScalarValue]) -> usize {
        /// The least size of a value.
        const BYTES_MIN: usize = 8;
        let bytes = match self {
            Self::Literal(value) => heap_bytes(value),
            Self::Decimal(text) => text.len(),
            Self::Parameter(index) => params.get(*index).map_or(0, heap_bytes),
            Self::Default => 0,
        };
        bytes.saturating_add(BYTES_MIN)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::sql::text::parse::parse;

    fn is_small(sql: &str, params: &[Vec<ScalarValue>]) -> bool {
        KnownStatement::new(parse(sql, &Config::in_memory()).unwrap()).shape.is_small(params)
    }

    #[test]
    fn callers_do_only_little_work_themselves() {
        let none = [Vec::new()];
        assert!(is_small("SELECT * FROM t WHERE id = 1", &none));
        assert!(!is_small("SELECT * FROM t WHERE id > 1", &none));
        assert!(is_small("INSERT INTO t VALUES (1, 'a'), (2, 'b')", &none));
        assert!(!is_small("INSERT INTO t SELECT * FROM u", &none));
        assert!(!is_small("UPDATE t SET a = 1 WHERE id = 1", &none));

        let row = |bytes: usize| vec![ScalarValue::from("x".repeat(bytes))];
        let insert = "INSERT INTO t VALUES ($1)";
        assert!(is_small(insert, &[row(200 << 10)]));
        assert!(!is_small(insert, &[row(300 << 10)]));
        assert!(!is_small(insert, &vec![row(2 << 10); 150]), "together the values are large");
        assert!(is_small(insert, &vec![row(1); 1_000]));
        assert!(!is_small(insert, &vec![row(1); 1_001]));
        // A value that is used twice counts twice.
        assert!(!is_small("INSERT INTO t VALUES ($1), ($1)", &[row(200 << 10)]));
    }
}
