//! Generates random expressions of a requested class over the columns in scope.
//!
//! It avoids what two correct engines may answer differently: sums of floats, which depend on order, and the
//! last digits of quotients.

use crate::choices::Choices;
use crate::queries::{Generator, plain};
use crate::test_tables::{Class, Ty};

/// A column or a grouping expression, as written in SQL.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) sql: String,
    pub(crate) ty: Ty,
}

/// The columns that an expression can name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    pub(crate) items: Vec<Item>,
    /// The columns of the enclosing queries.
    pub(crate) outer: Vec<Item>,
    /// The columns below an aggregation, if the expression is above it.
    pub(crate) below: Option<Vec<Item>>,
    /// Whether subqueries are allowed.
    pub(crate) has_subqueries: bool,
}

pub(crate) const CLASSES: [Class; 7] = [
    Class::Number,
    Class::Text,
    Class::Boolean,
    Class::Date,
    Class::Timestamp,
    Class::TimestampTz,
    Class::Bytes,
];

/// Picks a class, common ones more often.
pub(crate) fn class(choices: &mut Choices) -> Class {
    match choices.below(12) {
        0..5 => Class::Number,
        5 | 6 => Class::Text,
        7 => Class::Boolean,
        place => CLASSES[place - 5],
    }
}

const COMPARISONS: [&str; 6] = ["=", "<>", "<", "<=", ">", ">="];

impl Generator<'_> {
    pub(crate) fn literal(&mut self, class: Class) -> String {
        let ty = match class {
            Class::Number => *self.choices.pick(&[Ty::Int, Ty::Decimal(10, 2), Ty::Double]),
            _ => plain(class),
        };
        let literal = *self.choices.pick(ty.literals());
        match class {
            Class::Bytes => format!("CAST({literal} AS BYTEA)"),
            Class::Number if literal.starts_with('-') => format!("({literal})"),
            _ => literal.to_owned(),
        }
    }

    fn column(&mut self, class: Class, scope: &Scope) -> Option<String> {
        let mut fitting: Vec<&Item> = scope.items.iter().filter(|item| item.ty.class() == class).collect();
        if fitting.is_empty() || (!scope.outer.is_empty() && self.choices.once_in(3)) {
            fitting.extend(scope.outer.iter().filter(|item| item.ty.class() == class));
        }
        (!fitting.is_empty()).then(|| self.choices.pick(&fitting).sql.clone())
    }

    fn column_of(&mut self, scope: &Scope, fits: impl Fn(Ty) -> bool) -> Option<String> {
        let fitting: Vec<&Item> = scope.items.iter().filter(|item| fits(item.ty)).collect();
        (!fitting.is_empty()).then(|| self.choices.pick(&fitting).sql.clone())
    }

    /// Generates a column, a literal, or a compound expression.
    pub(crate) fn expression(&mut self, class: Class, scope: &Scope, depth: usize) -> String {
        if depth == 0 || self.choices.below(5) < 3 {
            return match self.column(class, scope) {
                Some(column) if !self.choices.once_in(6) => column,
                _ => self.literal(class),
            };
        }
        if scope.below.is_some() && self.choices.below(3) == 0 {
            return self.aggregate(class, scope);
        }
        let depth = depth - 1;
        match self.choices.below(8) {
            0 => {
                let (one, other) =
                    (self.expression(class, scope, depth), self.expression(class, scope, depth));
                format!("coalesce({one}, {other})")
            }
            1 => {
                let condition = self.condition(scope, depth);
                let (yes, no) = (self.expression(class, scope, depth), self.expression(class, scope, depth));
                if self.choices.once_in(3) {
                    format!("CASE WHEN {condition} THEN {yes} END")
                } else {
                    format!("CASE WHEN {condition} THEN {yes} ELSE {no} END")
                }
            }
            2 => {
                let (one, other) =
                    (self.expression(class, scope, depth), self.expression(class, scope, depth));
                format!("nullif({one}, {other})")
            }
            3 if class != Class::Boolean && class != Class::Bytes => {
                let function = if self.choices.once_in(2) { "least" } else { "greatest" };
                let (one, other) =
                    (self.expression(class, scope, depth), self.expression(class, scope, depth));
                format!("{function}({one}, {other})")
            }
            4 if scope.has_subqueries && self.queries_left > 0 => self.scalar_subquery(class, scope),
            _ => match class {
                Class::Number => self.number(scope, depth),
                Class::Text => self.text(scope, depth),
                Class::Boolean => format!("({})", self.condition(scope, depth)),
                Class::Date => self.date(scope, depth),
                Class::Timestamp => self.timestamp(scope, depth),
                Class::TimestampTz => self.timestamp_tz(scope, depth),
                Class::Bytes => self.literal(class),
            },
        }
    }

    fn number(&mut self, scope: &Scope, depth: usize) -> String {
        let class = Class::Number;
        match self.choices.below(13) {
            0 => self.binary("+", scope, depth),
            1 => self.binary("-", scope, depth),
            2 => self.binary("*", scope, depth),
            3 => format!("(- {})", self.expression(class, scope, depth)),
            4 => format!("abs({})", self.expression(class, scope, depth)),
            5 => {
                let Some(column) = self.column_of(scope, Ty::is_integer) else { return self.literal(class) };
                let op = if self.choices.once_in(2) { "/" } else { "%" };
                format!("({column} {op} {})", self.choices.pick(&["2", "3", "-2"]))
            }
            6 => {
                let ty = *self.choices.pick(&[
                    "INTEGER",
                    "BIGINT",
                    "DECIMAL(10,1)",
                    "DOUBLE PRECISION",
                    "SMALLINT",
                ]);
                format!("CAST({} AS {ty})", self.expression(class, scope, depth))
            }
            7 => {
                let is_decimal = |ty| matches!(ty, Ty::Decimal(..));
                let Some(column) = self.column_of(scope, is_decimal) else { return self.literal(class) };
                format!("round({column}, {})", self.choices.pick(&["0", "1"]))
            }
            8 => format!("length({})", self.expression(Class::Text, scope, depth)),
            9 => {
                let field = *self.choices.pick(&["year", "month", "day", "dow", "doy", "quarter"]);
                format!("extract({field} FROM {})", self.expression(Class::Date, scope, depth))
            }
            10 => {
                let field = *self.choices.pick(&["hour", "minute", "second", "epoch"]);
                format!("extract({field} FROM {})", self.expression(Class::Timestamp, scope, depth))
            }
            11 => {
                let (one, other) =
                    (self.expression(Class::Date, scope, depth), self.expression(Class::Date, scope, depth));
                format!("({one} - {other})")
            }
            _ => {
                // PostgreSQL gives the quotient of a large BIGINT fewer digits than three behind the point.
                let Some(column) =
                    self.column_of(scope, |ty| matches!(ty, Ty::Small | Ty::Int | Ty::Decimal(..)))
                else {
                    return self.literal(class);
                };
                format!("round({column} / {}, 3)", self.choices.pick(&["3.0", "0.7", "4.00"]))
            }
        }
    }

    fn binary(&mut self, op: &str, scope: &Scope, depth: usize) -> String {
        let left = self.expression(Class::Number, scope, depth);
        let right = self.expression(Class::Number, scope, depth);
        format!("({left} {op} {right})")
    }

    fn text(&mut self, scope: &Scope, depth: usize) -> String {
        let inner = self.expression(Class::Text, scope, depth);
        match self.choices.below(10) {
            0 => format!("upper({inner})"),
            1 => format!("lower({inner})"),
            2 => format!("({inner} || {})", self.expression(Class::Text, scope, depth)),
            3 => {
                format!("substring({inner} FROM {} FOR {})", 1 + self.choices.below(2), self.choices.below(3))
            }
            4 => format!("replace({inner}, 'a', 'xy')"),
            5 => format!("trim({inner})"),
            6 => format!("left({inner}, 1)"),
            7 => format!("concat({inner}, {})", self.expression(Class::Text, scope, depth)),
            8 => format!("reverse({inner})"),
            _ => match self.column_of(scope, |ty| !matches!(ty, Ty::Bytes | Ty::Text)) {
                Some(column) => format!("CAST({column} AS TEXT)"),
                None => inner,
            },
        }
    }

    fn date(&mut self, scope: &Scope, depth: usize) -> String {
        match self.choices.below(3) {
            0 => format!("({} + {})", self.expression(Class::Date, scope, depth), self.choices.below(40)),
            1 => format!("CAST({} AS DATE)", self.expression(Class::Timestamp, scope, depth)),
            _ => format!("({} - {})", self.expression(Class::Date, scope, depth), self.choices.below(40)),
        }
    }

    fn timestamp(&mut self, scope: &Scope, depth: usize) -> String {
        let unit = *self.choices.pick(&["day", "month", "hour", "year"]);
        match self.choices.below(5) {
            0 => format!("date_trunc('{unit}', {})", self.expression(Class::Timestamp, scope, depth)),
            1 => format!("({} + INTERVAL '1 {unit}')", self.expression(Class::Timestamp, scope, depth)),
            2 => format!("CAST({} AS TIMESTAMP)", self.expression(Class::Date, scope, depth)),
            3 => format!("({} - INTERVAL '1 day 02:30:00')", self.expression(Class::Timestamp, scope, depth)),
            _ => {
                let zone = *self.choices.pick(&["UTC", "Europe/Berlin", "America/New_York"]);
                format!("({} AT TIME ZONE '{zone}')", self.expression(Class::TimestampTz, scope, depth))
            }
        }
    }

    fn timestamp_tz(&mut self, scope: &Scope, depth: usize) -> String {
        match self.choices.below(3) {
            0 => format!("({} + INTERVAL '90 minutes')", self.expression(Class::TimestampTz, scope, depth)),
            1 => format!("CAST({} AS TIMESTAMPTZ)", self.expression(Class::Timestamp, scope, depth)),
            _ => {
                let zone = *self.choices.pick(&["UTC", "Asia/Tokyo", "America/New_York"]);
                format!("({} AT TIME ZONE '{zone}')", self.expression(Class::Timestamp, scope, depth))
            }
        }
    }

    /// Generates an aggregate of a class over the columns below.
    pub(crate) fn aggregate(&mut self, class: Class, scope: &Scope) -> String {
        let below = Scope { items: scope.below.clone().unwrap_or_default(), ..Scope::default() };
        let distinct = if self.choices.once_in(5) { "DISTINCT " } else { "" };
        let exact = |ty: Ty| ty.class() == Class::Number && ty != Ty::Double;
        let call = match (class, self.choices.below(6)) {
            (Class::Number, 0) => "count(*)".to_owned(),
            (Class::Number, 1) => {
                let other = self::class(self.choices);
                format!("count({distinct}{})", self.expression(other, &below, 0))
            }
            (Class::Number, 2) => match self.column_of(&below, exact) {
                Some(column) => format!("sum({distinct}{column})"),
                None => "count(*)".to_owned(),
            },
            (Class::Number, 3) => match self.column_of(&below, exact) {
                Some(column) => format!("round(CAST(avg({distinct}{column}) AS DECIMAL(20,8)), 3)"),
                None => "count(*)".to_owned(),
            },
            (Class::Boolean, _) => {
                let function = if self.choices.once_in(2) { "bool_and" } else { "bool_or" };
                return format!("{function}({})", self.condition(&below, 0));
            }
            (Class::Bytes, _) => return self.literal(class),
            (_, place) => {
                let function = if place % 2 == 0 { "min" } else { "max" };
                format!("{function}({})", self.expression(class, &below, 0))
            }
        };
        if self.choices.once_in(6) && call.ends_with(')') && !call.starts_with("round") {
            return format!("{call} FILTER (WHERE {})", self.condition(&below, 0));
        }
        call
    }

    /// Generates a condition.
    pub(crate) fn condition(&mut self, scope: &Scope, depth: usize) -> String {
        if depth > 0 && self.choices.below(3) == 0 {
            let depth = depth - 1;
            return match self.choices.below(4) {
                0 => format!("({} AND {})", self.condition(scope, depth), self.condition(scope, depth)),
                1 => format!("({} OR {})", self.condition(scope, depth), self.condition(scope, depth)),
                2 => format!("(NOT {})", self.condition(scope, depth)),
                _ => {
                    let test = *self.choices.pick(&[
                        "IS TRUE",
                        "IS NOT TRUE",
                        "IS FALSE",
                        "IS NOT FALSE",
                        "IS UNKNOWN",
                        "IS NOT UNKNOWN",
                    ]);
                    format!("(({}) {test})", self.condition(scope, depth))
                }
            };
        }
        let below = depth.saturating_sub(1);
        if scope.has_subqueries && self.queries_left > 0 && self.choices.below(4) == 0 {
            return self.subquery_condition(scope, below);
        }
        let class = class(self.choices);
        match self.choices.below(12) {
            0..4 => self.comparison(class, scope, below),
            4 => {
                let value = self.expression(class, scope, below);
                format!("{value} IS {}NULL", if self.choices.once_in(2) { "NOT " } else { "" })
            }
            5 => {
                let (one, other) =
                    (self.expression(class, scope, below), self.expression(class, scope, below));
                let not = if self.choices.once_in(2) { "NOT " } else { "" };
                format!("{one} IS {not}DISTINCT FROM {other}")
            }
            6 | 7 => self.list(class, scope, below),
            8 => {
                let value = self.expression(class, scope, below);
                let (low, high) = (self.compared(class, scope, 0), self.compared(class, scope, 0));
                format!(
                    "{value} {}BETWEEN {low} AND {high}",
                    if self.choices.once_in(3) { "NOT " } else { "" }
                )
            }
            9 => self.pattern(scope, below),
            10 => {
                let op = *self.choices.pick(&COMPARISONS);
                let quantifier = if self.choices.once_in(2) { "ALL" } else { "ANY" };
                let value = self.expression(Class::Number, scope, below);
                let list = self.choices.pick(&["1, 2", "1, NULL", "2", "0, 3, 5"]);
                format!("{value} {op} {quantifier} (ARRAY[{list}])")
            }
            _ => match self.column(Class::Boolean, scope) {
                Some(column) => column,
                None => self.comparison(class, scope, below),
            },
        }
    }

    fn comparison(&mut self, class: Class, scope: &Scope, depth: usize) -> String {
        if self.choices.once_in(8) {
            let other = self::class(self.choices);
            let left = (self.expression(class, scope, 0), self.expression(other, scope, 0));
            let right = (self.expression(class, scope, 0), self.expression(other, scope, 0));
            let op = self.choices.pick(&COMPARISONS);
            return format!("({}, {}) {op} ({}, {})", left.0, left.1, right.0, right.1);
        }
        let left = self.expression(class, scope, depth);
        let op = *self.choices.pick(&COMPARISONS);
        let right = self.compared(class, scope, depth);
        // Sometimes put the literal on the left.
        if self.choices.once_in(4) { format!("{right} {op} {left}") } else { format!("{left} {op} {right}") }
    }

    /// Generates what a value of a class is compared with: a parameter, a literal whose type the engine
    /// infers, a value of another comparable class, or one of the same class.
    fn compared(&mut self, class: Class, scope: &Scope, depth: usize) -> String {
        if let Some(parameter) = self.parameter(class) {
            return parameter;
        }
        match self.choices.below(8) {
            6 => {
                if let Some(literal) = self.untyped(class) {
                    return literal;
                }
            }
            7 => {
                let others: &[Class] = match class {
                    Class::Date => &[Class::Timestamp, Class::TimestampTz],
                    Class::Timestamp => &[Class::Date, Class::TimestampTz],
                    Class::TimestampTz => &[Class::Date, Class::Timestamp],
                    _ => &[class],
                };
                let other = *self.choices.pick(others);
                return self.expression(other, scope, depth);
            }
            _ => {}
        }
        self.expression(class, scope, depth)
    }

    /// Generates a literal without a type.
    fn untyped(&mut self, class: Class) -> Option<String> {
        let literals: &[&str] = match class {
            Class::Number => &["'2'", "'0'", "' 1 '", "'-1'"],
            Class::Boolean => &["'true'", "'f'", "'no'"],
            Class::Date => &["'2024-01-02'", "'2024-02-29'", "'2023-12-31'"],
            Class::Timestamp | Class::TimestampTz => &["'2024-01-01'", "'2024-01-02 03:04:05.678901'"],
            Class::Text | Class::Bytes => return None,
        };
        Some((*self.choices.pick(literals)).to_owned())
    }

    fn list(&mut self, class: Class, scope: &Scope, depth: usize) -> String {
        let value = self.expression(class, scope, depth);
        let mut items = vec![self.literal(class)];
        for _ in 0..self.choices.below(4) {
            let item =
                if self.choices.once_in(5) { "NULL".to_owned() } else { self.compared(class, scope, 0) };
            items.push(item);
        }
        let not = if self.choices.once_in(2) { "NOT " } else { "" };
        format!("{value} {not}IN ({})", items.join(", "))
    }

    fn pattern(&mut self, scope: &Scope, depth: usize) -> String {
        let value = self.expression(Class::Text, scope, depth);
        let not = if self.choices.once_in(3) { "NOT " } else { "" };
        match self.choices.below(5) {
            0 => {
                format!("{value} {not}LIKE {}", self.choices.pick(&["'a%'", "'%b'", "'_'", "'a\\_%'", "''"]))
            }
            1 => format!("{value} {not}ILIKE {}", self.choices.pick(&["'A%'", "'%B'", "'a'"])),
            2 => {
                format!("{value} {not}LIKE {} ESCAPE '!'", self.choices.pick(&["'a!_%'", "'a!%'", "'%!!%'"]))
            }
            3 => format!("{value} {not}SIMILAR TO {}", self.choices.pick(&["'(a|b)%'", "'a_?'", "'[ab]+'"])),
            _ => {
                let op = *self.choices.pick(&["~", "~*", "!~"]);
                format!("{value} {op} {}", self.choices.pick(&["'^a'", "'b$'", "'[ab]'", "'^$'"]))
            }
        }
    }
}
