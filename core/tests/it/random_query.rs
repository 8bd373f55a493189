//! Generates random SELECT statements over tables with known columns.
//!
//! `{a}` and `{b}` stand for the tables' namespaces, so that one statement can run on several copies. No
//! statement depends on an order of rows that no ORDER BY sets, and none sums floats whose sum depends on it.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// The type of a column, which decides what can be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Boolean,
    Integer,
    Float,
    Decimal,
    Text,
    Bytes,
    Timestamp,
    TimestampTz,
    Date,
    Time,
    Uuid,
    Json,
    Embedding,
}

use Type::*;

impl Type {
    /// Returns values as SQL, both for rows and for conditions.
    pub(crate) fn values(self) -> &'static [&'static str] {
        match self {
            Boolean => &["true", "false"],
            Integer => &["-7", "-1", "0", "1", "2", "3", "5", "8", "13", "42", "32767"],
            Float => &[
                "0.0",
                "CAST('-0.0' AS DOUBLE)",
                "CAST('NaN' AS DOUBLE)",
                "CAST('Infinity' AS DOUBLE)",
                "CAST('-Infinity' AS DOUBLE)",
                "0.5",
                "-2.25",
                "1024.0",
            ],
            Decimal => &["0", "1.5", "-2.25", "99.99", "-0.01", "1234.5"],
            Text => &["''", "'red'", "'Red'", "'r%d'", "'täxt'", "'a''b'", "'100'", "' '", "'日本'"],
            Bytes => &["X''", "X'00'", "X'00ff'", "X'ff'", "X'726564'"],
            Timestamp => &[
                "TIMESTAMP '1969-12-31 23:59:59.999999'",
                "TIMESTAMP '1970-01-01 00:00:00'",
                "TIMESTAMP '2026-01-02 03:04:05.678901'",
                "TIMESTAMP '2026-01-02 03:04:05.678902'",
            ],
            TimestampTz => &[
                "TIMESTAMPTZ '1969-12-31 23:59:59.999999Z'",
                "TIMESTAMPTZ '2026-01-02 03:04:05+00:00'",
                "TIMESTAMPTZ '2026-01-02 03:04:05+02:00'",
            ],
            Date => &["DATE '1969-12-31'", "DATE '2024-02-29'", "DATE '2026-01-02'", "DATE '9999-12-31'"],
            Time => &["TIME '00:00:00'", "TIME '12:30:00.000001'", "TIME '23:59:59.999999'"],
            Uuid => &[
                "'00000000-0000-0000-0000-000000000000'",
                "'00112233-4455-6677-8899-aabbccddeeff'",
                "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
            ],
            Json => &["'{\"a\": [1]}'", "'null'", "'\"\"'"],
            Embedding => &["'[1, 2.5, -3]'", "'[0, 0, 0]'"],
        }
    }

    fn can_be_compared(self) -> bool {
        !matches!(self, Json | Embedding)
    }
}

/// A table as a query sees it.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    /// Key columns come first.
    pub(crate) columns: &'static [(&'static str, Type)],
    /// The number of key columns; 0 without a key.
    pub(crate) key: usize,
}

/// A statement, and whether its rows are ordered.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) sql: String,
    pub(crate) is_ordered: bool,
}

pub(crate) struct Questions<'a> {
    pub(crate) random: StdRng,
    pub(crate) shapes: &'a [Shape],
}

impl Questions<'_> {
    pub(crate) fn next(&mut self) -> Question {
        let shape = self.shapes.choose(&mut self.random).unwrap();
        let unordered = |sql| Question { sql, is_ordered: false };
        match self.below(16) {
            0..=2 => unordered(self.plain(shape)),
            3..=5 => Question { sql: self.ordered(shape), is_ordered: true },
            6 => unordered(self.totals(shape)),
            7 | 8 => unordered(self.grouped(shape)),
            9 => unordered(self.distinct(shape)),
            10 | 11 => unordered(self.joined(shape)),
            12 => unordered(self.with_subquery(shape)),
            13 => unordered(self.windowed(shape)),
            14 => unordered(self.combined(shape)),
            _ => unordered(self.limited(shape)),
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.random.random_range(0..limit)
    }

    fn one<'v>(&mut self, of: &[&'v str]) -> &'v str {
        of.choose(&mut self.random).unwrap()
    }

    /// Picks a comparable column whose type `fits`, if there is one.
    fn column(&mut self, shape: &Shape, fits: impl Fn(Type) -> bool) -> Option<(&'static str, Type)> {
        let fitting: Vec<_> =
            shape.columns.iter().filter(|(_, ty)| ty.can_be_compared() && fits(*ty)).collect();
        fitting.choose(&mut self.random).map(|column| **column)
    }

    fn any_column(&mut self, shape: &Shape) -> (&'static str, Type) {
        self.column(shape, |_| true).unwrap()
    }

    fn integer(&mut self, shape: &Shape) -> &'static str {
        self.column(shape, |ty| ty == Integer).unwrap().0
    }

    /// Picks some or all of the columns; `table` is their prefix.
    fn columns(&mut self, shape: &Shape, table: &str) -> Vec<String> {
        let count = 1 + self.below(shape.columns.len().min(5));
        let chosen: Vec<_> = match self.below(5) {
            0 => shape.columns.iter().collect(),
            _ => shape.columns.choose_multiple(&mut self.random, count).collect(),
        };
        chosen.into_iter().map(|(name, _)| format!("{table}{name}")).collect()
    }

    fn filter(&mut self, shape: &Shape, table: &str) -> String {
        match self.below(6) {
            0 => String::new(),
            _ => format!(" WHERE {}", self.condition(shape, table, 2)),
        }
    }

    fn condition(&mut self, shape: &Shape, table: &str, depth: usize) -> String {
        match self.below(if depth == 0 { 5 } else { 8 }) {
            0 | 1 => self.key_condition(shape, table),
            2..=4 => self.comparison(shape, table),
            5 => format!("NOT ({})", self.condition(shape, table, depth - 1)),
            branch => {
                let (left, right) =
                    (self.condition(shape, table, depth - 1), self.condition(shape, table, depth - 1));
                format!("({left} {} {right})", if branch == 6 { "AND" } else { "OR" })
            }
        }
    }

    /// Generates conditions that become ranges of keys.
    fn key_condition(&mut self, shape: &Shape, table: &str) -> String {
        let parts = 1 + self.below(shape.key.max(1));
        let mut conditions = Vec::new();
        for (position, (name, ty)) in shape.columns.iter().take(parts).enumerate() {
            if position + 1 < parts {
                conditions.push(format!("{table}{name} = {}", self.value(*ty)));
            } else {
                conditions.push(self.range(&format!("{table}{name}"), *ty));
            }
        }
        conditions.join(" AND ")
    }

    fn value(&mut self, ty: Type) -> String {
        match ty {
            Integer if self.below(2) == 0 => self.random.random_range(-20..900).to_string(),
            ty => self.one(ty.values()).to_owned(),
        }
    }

    fn range(&mut self, column: &str, ty: Type) -> String {
        let (low, high, other) = (self.value(ty), self.value(ty), self.value(ty));
        match self.below(6) {
            0 => format!("{column} = {low}"),
            1 => format!("{column} IN ({low}, {high}, {other})"),
            2 => format!("{column} BETWEEN {low} AND {high}"),
            3 => format!("{column} >= {low} AND {column} < {high}"),
            4 => format!("{low} {} {column}", self.one(&["<", "<=", ">", ">="])),
            _ => format!("{column} {} {low}", self.one(&["<", "<=", ">", ">=", "<>"])),
        }
    }

    fn comparison(&mut self, shape: &Shape, table: &str) -> String {
        let (name, ty) = *shape.columns.choose(&mut self.random).unwrap();
        let column = format!("{table}{name}");
        let is_null = format!("{column} IS {}NULL", self.one(&["", "NOT "]));
        match ty {
            // A UUID is not comparable with text everywhere.
            Json | Embedding | Uuid => return is_null,
            _ if self.below(6) == 0 => return is_null,
            Boolean => {
                return format!(
                    "{column}{}",
                    self.one(&["", " = false", " IS TRUE", " IS NOT FALSE", " IS UNKNOWN"])
                );
            }
            _ => {}
        }
        match (ty, self.below(4)) {
            (Text, 0 | 1) => {
                let pattern = self.one(&["'r%'", "'%e%'", "'_ed'", "''", "'%'", "'a''%'", "'r\\%d'"]);
                format!("{column} {} {pattern}", self.one(&["LIKE", "NOT LIKE", "ILIKE"]))
            }
            (Text, 2) => format!("length({column}) {} 3", self.one(&["<", "=", ">"])),
            (Integer, 0) => format!("{column} % 3 = {}", self.below(3)),
            (Integer, 1) => format!("CAST({column} AS TEXT) LIKE '{}%'", self.below(10)),
            (Integer, 2) => {
                let other = self.integer(shape);
                format!("{column} {} {table}{other}", self.one(&["<", "=", ">="]))
            }
            (Float, 0) => format!("CAST({column} AS REAL) > 0.25"),
            (Decimal, 0) => format!("CAST({column} AS DOUBLE) < 1.75"),
            (Timestamp | TimestampTz, 0) => format!("CAST({column} AS DATE) > DATE '1970-01-01'"),
            (Date, 0) => format!("CAST({column} AS TIMESTAMP) <= TIMESTAMP '2026-01-02 00:00:00'"),
            _ => self.range(&column, ty),
        }
    }

    fn plain(&mut self, shape: &Shape) -> String {
        let mut shown = self.columns(shape, "");
        if self.below(4) == 0 {
            let integer = self.integer(shape);
            shown.push(format!("coalesce({integer}, 0) + 1 AS more"));
            shown.push(format!(
                "CASE WHEN {integer} > 3 THEN 'high' WHEN {integer} IS NULL THEN NULL ELSE 'low' END AS level"
            ));
        }
        format!("SELECT {} FROM {{a}}.{}{}", shown.join(", "), shape.name, self.filter(shape, ""))
    }

    /// Generates an order in which equal rows are equal in every shown column.
    fn total_order(&mut self, shape: &Shape, shown: &[String]) -> String {
        let mut order = Vec::new();
        for _ in 0..self.below(3) {
            let (name, _) = self.any_column(shape);
            let how = ["", " DESC", " ASC NULLS FIRST", " DESC NULLS LAST"];
            order.push(format!("{name}{}", self.one(&how)));
        }
        let direction = self.one(&["", " DESC"]);
        let key = shape.columns.iter().take(shape.key).map(|(name, _)| format!("{name}{direction}"));
        order.extend(key);
        if shape.key == 0 {
            order.extend(shown.iter().cloned());
        }
        order.join(", ")
    }

    fn ordered(&mut self, shape: &Shape) -> String {
        let shown = self.columns(shape, "");
        let (filter, order) = (self.filter(shape, ""), self.total_order(shape, &shown));
        let limit = match self.below(3) {
            0 => String::new(),
            1 => format!(" LIMIT {}", self.below(20)),
            _ => format!(" LIMIT {} OFFSET {}", 1 + self.below(20), self.below(100)),
        };
        format!("SELECT {} FROM {{a}}.{}{filter} ORDER BY {order}{limit}", shown.join(", "), shape.name)
    }

    fn aggregates(&mut self, shape: &Shape) -> String {
        let (name, _) = self.any_column(shape);
        // In a group with NaN, DataFusion's min and max of floats depend on which row comes first.
        let (lowest, _) = self.column(shape, |ty| !matches!(ty, Boolean | Uuid | Float)).unwrap();
        let integer = self.integer(shape);
        format!(
            "count(*) AS n, count({name}) AS c, count(DISTINCT {name}) AS v, min({lowest}) AS low, max({lowest}) AS high, \
             sum({integer}) AS s"
        )
    }

    fn totals(&mut self, shape: &Shape) -> String {
        match self.below(4) {
            0 => format!("SELECT count(*) AS n FROM {{a}}.{}", shape.name),
            1 => {
                let (name, _) = self.column(shape, |ty| !matches!(ty, Boolean | Uuid)).unwrap();
                format!("SELECT min({name}) AS low, max({name}) AS high FROM {{a}}.{}", shape.name)
            }
            _ => {
                let aggregates = self.aggregates(shape);
                format!("SELECT {aggregates} FROM {{a}}.{}{}", shape.name, self.filter(shape, ""))
            }
        }
    }

    fn grouped(&mut self, shape: &Shape) -> String {
        let (group, _) = self.any_column(shape);
        let (aggregates, filter) = (self.aggregates(shape), self.filter(shape, ""));
        let having = match self.below(2) {
            0 => String::new(),
            _ => format!(" HAVING count(*) > {}", self.below(4)),
        };
        format!(
            "SELECT {group} AS g, {aggregates} FROM {{a}}.{}{filter} GROUP BY {group}{having}",
            shape.name
        )
    }

    fn distinct(&mut self, shape: &Shape) -> String {
        let mut columns: Vec<_> = (0..1 + self.below(2)).map(|_| self.any_column(shape).0).collect();
        columns.dedup();
        format!("SELECT DISTINCT {} FROM {{a}}.{}{}", columns.join(", "), shape.name, self.filter(shape, ""))
    }

    fn joined(&mut self, shape: &Shape) -> String {
        let other = self.shapes.choose(&mut self.random).unwrap();
        let kind = self.one(&["JOIN", "JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]);
        let (left, right) = (self.integer(shape), self.integer(other));
        let condition = self.key_condition(shape, "x.");
        let more = self.condition(other, "y.", 1);
        let on = match self.below(2) {
            0 => format!("x.{left} = y.{right}"),
            _ => format!("x.{left} = y.{right} AND {more}"),
        };
        let (one, two) = (self.any_column(shape).0, self.any_column(other).0);
        format!(
            "SELECT x.{one} AS one, y.{two} AS two FROM {{a}}.{} x {kind} {{b}}.{} y ON {on} WHERE {condition}",
            shape.name, other.name
        )
    }

    fn with_subquery(&mut self, shape: &Shape) -> String {
        let other = self.shapes.choose(&mut self.random).unwrap();
        let (mine, theirs) = (self.integer(shape), self.integer(other));
        let (inner, shown) = (self.condition(other, "y.", 1), self.columns(shape, "x.").join(", "));
        let not = self.one(&["", "NOT "]);
        let (from, other) = (format!("{{a}}.{} x", shape.name), format!("{{b}}.{} y", other.name));
        match self.below(3) {
            0 => format!(
                "SELECT {shown} FROM {from} WHERE x.{mine} {not}IN (SELECT y.{theirs} FROM {other} WHERE {inner})"
            ),
            1 => format!(
                "SELECT {shown} FROM {from} WHERE {not}EXISTS (SELECT 1 FROM {other} WHERE y.{theirs} = x.{mine} AND {inner})"
            ),
            _ => format!(
                "SELECT {shown}, (SELECT count(*) FROM {other} WHERE {inner}) AS others FROM {from} \
                 WHERE x.{mine} <= (SELECT max(y.{theirs}) FROM {other})"
            ),
        }
    }

    fn windowed(&mut self, shape: &Shape) -> String {
        let (group, _) = self.any_column(shape);
        let (shown, integer) = (self.columns(shape, ""), self.integer(shape));
        let order = self.total_order(shape, &shown);
        let (shown, filter) = (shown.join(", "), self.filter(shape, ""));
        // Without a key no order is total, so only ask for what a whole partition has in common.
        let window = match (shape.key, self.below(3)) {
            (0, _) => format!("sum({integer}) OVER (PARTITION BY {group})"),
            (_, choice) => {
                let function = match choice {
                    0 => format!("sum({integer})"),
                    1 => "row_number()".to_owned(),
                    _ => format!("lag({integer})"),
                };
                let frame = "ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW";
                format!("{function} OVER (PARTITION BY {group} ORDER BY {order} {frame})")
            }
        };
        format!("SELECT {shown}, {window} AS w FROM {{a}}.{}{filter}", shape.name)
    }

    fn combined(&mut self, shape: &Shape) -> String {
        let other = self.shapes.choose(&mut self.random).unwrap();
        let operation = self.one(&["UNION", "UNION ALL", "INTERSECT", "EXCEPT"]);
        let (left, right) = (self.integer(shape), self.integer(other));
        let (one, two) = (self.filter(shape, ""), self.filter(other, ""));
        format!(
            "SELECT CAST({left} AS BIGINT) AS v FROM {{a}}.{}{one} {operation} SELECT CAST({right} AS BIGINT) AS v FROM {{b}}.{}{two}",
            shape.name, other.name
        )
    }

    /// LIMIT may keep any rows, but their number is fixed.
    fn limited(&mut self, shape: &Shape) -> String {
        let (filter, limit, offset) =
            (self.filter(shape, ""), self.below(300), self.below(2) * self.below(50));
        let column = self.any_column(shape).0;
        format!(
            "SELECT count(*) AS n FROM (SELECT {column} FROM {{a}}.{}{filter} LIMIT {limit} OFFSET {offset})",
            shape.name
        )
    }
}
