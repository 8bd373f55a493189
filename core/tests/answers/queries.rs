//! Generates random queries over a run's tables: joins, subqueries, set operations, groups and windows.

use datafusion::common::ScalarValue;

use crate::choices::Choices;
use crate::expressions::{Item, Scope, class};
use crate::test_tables::{Class, TestTables, Ty};

/// A value passed beside the statement: a parameter for us, a literal of the same type for PostgreSQL.
#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    pub(crate) value: ScalarValue,
    pub(crate) literal: String,
}

const SET_OPERATIONS: [&str; 6] =
    ["UNION ALL", "UNION", "INTERSECT", "EXCEPT", "INTERSECT ALL", "EXCEPT ALL"];

/// 2024-01-01 in microseconds since 1970.
const US: i64 = 1_704_067_200_000_000;

pub(crate) struct Generator<'a> {
    pub(crate) choices: &'a mut Choices,
    pub(crate) test_tables: &'a TestTables,
    names: usize,
    /// The number of subqueries that may still be generated.
    pub(crate) queries_left: usize,
    pub(crate) has_parameters: bool,
    pub(crate) parameters: Vec<Parameter>,
}

impl<'a> Generator<'a> {
    pub(crate) fn new(choices: &'a mut Choices, test_tables: &'a TestTables) -> Self {
        Self {
            choices,
            test_tables,
            names: 0,
            queries_left: 3,
            has_parameters: false,
            parameters: Vec::new(),
        }
    }

    fn name(&mut self, letter: &str) -> String {
        self.names += 1;
        format!("{letter}{}", self.names)
    }

    /// Generates a parameter, whose type may differ from the column's.
    pub(crate) fn parameter(&mut self, class: Class) -> Option<String> {
        if !self.has_parameters || self.parameters.len() >= 3 || !self.choices.once_in(2) {
            return None;
        }
        let (value, literal) = match class {
            Class::Number => match self.choices.below(6) {
                0 => (ScalarValue::Int64(Some(2)), "2::int8"),
                1 => (ScalarValue::Float64(Some(1.5)), "1.5::float8"),
                2 => (ScalarValue::Float64(Some(2.0)), "2.0::float8"),
                3 => (ScalarValue::Decimal128(Some(14_999), 5, 4), "1.4999::numeric"),
                4 => (ScalarValue::Int64(Some(1 << 40)), "1099511627776::int8"),
                _ => (ScalarValue::Int64(None), "NULL::int8"),
            },
            Class::Text => (ScalarValue::from("a"), "'a'::text"),
            Class::Boolean => (ScalarValue::Boolean(Some(true)), "true"),
            Class::Bytes => return None,
            _ => match self.choices.below(3) {
                0 => (ScalarValue::Date32(Some(19_724)), "DATE '2024-01-02'"),
                1 => (ScalarValue::TimestampMicrosecond(Some(US), None), "TIMESTAMP '2024-01-01 00:00:00'"),
                _ => (
                    ScalarValue::TimestampMicrosecond(Some(US + 1), Some("UTC".into())),
                    "TIMESTAMPTZ '2024-01-01 00:00:00.000001+00'",
                ),
            },
        };
        self.parameters.push(Parameter { value, literal: literal.to_owned() });
        Some(format!("{{{}}}", self.parameters.len()))
    }

    /// Generates `SELECT ... FROM ...`. Returns it with the classes of its columns.
    fn query(&mut self, outer: &[Item], columns: Option<Vec<Class>>, depth: usize) -> (String, Vec<Class>) {
        self.queries_left = self.queries_left.saturating_sub(1);
        if depth > 0 && self.choices.once_in(6) {
            let (left, classes) = self.select(outer, columns, depth - 1);
            let (right, _) = self.select(outer, Some(classes.clone()), depth - 1);
            let mut sql = left;
            if self.choices.once_in(6) {
                sql = format!("({sql}{} LIMIT 3)", self.order(classes.len()));
            }
            sql = format!("{sql} {} {right}", self.choices.pick(&SET_OPERATIONS));
            if self.choices.once_in(4) {
                let (third, _) = self.select(outer, Some(classes.clone()), 0);
                sql = format!("{sql} {} {third}", self.choices.pick(&SET_OPERATIONS));
            }
            return (sql, classes);
        }
        self.select(outer, columns, depth)
    }

    fn select(&mut self, outer: &[Item], columns: Option<Vec<Class>>, depth: usize) -> (String, Vec<Class>) {
        let (from, items) = self.from(outer, depth);
        let has_subqueries = depth > 0;
        let mut scope = Scope { items, outer: outer.to_vec(), below: None, has_subqueries };
        let condition = match self.choices.below(4) {
            0 => String::new(),
            _ => format!(" WHERE {}", self.condition(&scope, 2)),
        };
        let mut grouping = String::new();
        let is_grouped = self.choices.once_in(4);
        if is_grouped {
            grouping = self.grouping(&mut scope);
        }
        let classes = columns.unwrap_or_else(|| {
            let count = 1 + self.choices.below(3);
            (0..count).map(|_| class(self.choices)).collect()
        });
        let has_windows = !is_grouped && depth > 0 && self.choices.once_in(5);
        let has_sets = grouping.contains('(') && !scope.items.is_empty() && is_grouped;
        let list: Vec<String> = classes
            .iter()
            .map(|class| match (has_windows, class) {
                (true, Class::Number) => self.window(&scope),
                (_, Class::Number) if has_sets && self.choices.once_in(3) => {
                    format!("grouping({})", self.choices.pick(&scope.items).sql)
                }
                _ => self.expression(*class, &scope, 2),
            })
            .enumerate()
            .map(|(place, value)| format!("{value} AS c{}", place + 1))
            .collect();
        let distinct = if self.choices.once_in(6) { "DISTINCT " } else { "" };
        (format!("SELECT {distinct}{} FROM {from}{condition}{grouping}", list.join(", ")), classes)
    }

    /// Generates GROUP BY and HAVING. Afterwards `scope` is the scope above them.
    fn grouping(&mut self, scope: &mut Scope) -> String {
        let below = scope.items.clone();
        let mut by: Vec<Item> = Vec::new();
        for _ in 0..self.choices.below(3) {
            let item = self.choices.pick(&below).clone();
            if !by.iter().any(|known| known.sql == item.sql) {
                by.push(item);
            }
        }
        let names: Vec<_> = by.iter().map(|item| item.sql.as_str()).collect();
        let list = names.join(", ");
        let group = match (by.len(), self.choices.below(6)) {
            (0, _) => String::new(),
            (_, 3) => format!(" GROUP BY ROLLUP ({list})"),
            (_, 4) => format!(" GROUP BY CUBE ({list})"),
            (2, 5) => format!(" GROUP BY GROUPING SETS (({list}), ({}), ())", names[1]),
            _ => format!(" GROUP BY {list}"),
        };
        *scope = Scope { items: by, below: Some(below), ..scope.clone() };
        let having =
            if self.choices.once_in(3) { format!(" HAVING {}", self.having(scope)) } else { String::new() };
        format!("{group}{having}")
    }

    fn having(&mut self, scope: &Scope) -> String {
        if self.choices.once_in(3) {
            return self.condition(scope, 1);
        }
        let aggregate = self.aggregate(Class::Number, scope);
        let op = *self.choices.pick(&[">", "=", "<=", "<>"]);
        format!("{aggregate} {op} {}", self.choices.pick(&["1", "2", "0", "3"]))
    }

    fn window(&mut self, scope: &Scope) -> String {
        let partition = match self.choices.below(2) {
            0 => String::new(),
            _ if self.choices.once_in(4) => {
                let class = class(self.choices);
                format!("PARTITION BY {} ", self.expression(class, scope, 1))
            }
            _ => format!("PARTITION BY {} ", self.choices.pick(&scope.items).sql),
        };
        let exact: Vec<Item> = scope
            .items
            .iter()
            .filter(|item| item.ty.class() == Class::Number && item.ty != Ty::Double)
            .cloned()
            .collect();
        let mut any = self.choices.pick(&scope.items).sql.clone();
        if self.choices.once_in(4) {
            any = self.expression(Class::Number, scope, 1);
        }
        let direction = self.direction();
        // Peers get the same value from each of these functions, so their order does not matter.
        let order = format!("ORDER BY {any}{direction}");
        // In this order only identical rows are peers.
        let total: Vec<String> = scope.items.iter().map(|item| format!("{}{direction}", item.sql)).collect();
        let total = format!("ORDER BY {}", total.join(", "));
        match self.choices.below(10) {
            0 => format!("count(*) OVER ({partition})"),
            1 => format!("rank() OVER ({partition}{order})"),
            2 => format!("dense_rank() OVER ({partition}{order})"),
            3 => format!("count({any}) OVER ({partition}{order})"),
            4 if !exact.is_empty() => {
                let value = self.choices.pick(&exact).sql.clone();
                let frame = *self.choices.pick(&[
                    "",
                    " RANGE BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING",
                    " GROUPS BETWEEN 1 PRECEDING AND CURRENT ROW",
                    " RANGE BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING",
                ]);
                format!("sum({value}) OVER ({partition}{order}{frame})")
            }
            5 if !exact.is_empty() => {
                let value = self.choices.pick(&exact).sql.clone();
                format!("max({value}) OVER ({partition}{order})")
            }
            6 => {
                let function = *self.choices.pick(&["row_number()", "ntile(3)"]);
                format!("{function} OVER ({partition}{total})")
            }
            7 if !exact.is_empty() => {
                let value = self.choices.pick(&exact).sql.clone();
                let step = *self.choices.pick(&["", ", 2", ", 1, 0", ", -1"]);
                let function = *self.choices.pick(&["lag", "lead"]);
                format!("{function}({value}{step}) OVER ({partition}{total})")
            }
            8 if !exact.is_empty() => {
                let value = self.choices.pick(&exact).sql.clone();
                let frame = *self.choices.pick(&[
                    "",
                    " ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING",
                    " ROWS BETWEEN 2 PRECEDING AND 1 PRECEDING",
                    " ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING",
                    " ROWS 1 PRECEDING",
                ]);
                let (function, more) = *self.choices.pick(&[
                    ("sum", ""),
                    ("min", ""),
                    ("count", ""),
                    ("first_value", ""),
                    ("last_value", ""),
                    ("nth_value", ", 2"),
                ]);
                format!("{function}({value}{more}) OVER ({partition}{total}{frame})")
            }
            _ => format!("count(*) OVER ({partition}{order})"),
        }
    }

    /// Generates tables and subqueries, joined. Returns them with their columns.
    pub(crate) fn from(&mut self, outer: &[Item], depth: usize) -> (String, Vec<Item>) {
        let (mut sql, mut items) = self.source(outer, depth);
        let joins = match self.choices.below(8) {
            0..4 => 0,
            4 | 5 => 1,
            6 => 2,
            _ => 3,
        };
        for _ in 0..joins {
            if depth > 0 && self.queries_left > 0 && self.choices.once_in(8) {
                (sql, items) = self.lateral(sql, items, outer, depth);
                continue;
            }
            let (right, rights) = self.source(outer, depth);
            (sql, items) = self.join(sql, items, &right, rights, outer);
        }
        (sql, items)
    }

    fn lateral(
        &mut self,
        left: String,
        lefts: Vec<Item>,
        outer: &[Item],
        depth: usize,
    ) -> (String, Vec<Item>) {
        let seen = lefts.iter().chain(outer).cloned().collect::<Vec<_>>();
        let (right, rights) = self.derived(&seen, depth);
        let kind = *self.choices.pick(&["JOIN", "LEFT JOIN"]);
        let items = lefts.into_iter().chain(rights).collect::<Vec<_>>();
        let condition = match self.choices.once_in(3) {
            true => self.condition(&Scope { items: items.clone(), ..Scope::default() }, 0),
            false => "true".to_owned(),
        };
        (format!("{left} {kind} LATERAL {right} ON {condition}"), items)
    }

    /// Generates `(SELECT ...) AS x (a, ...)`. Its columns have names that tables use too.
    fn derived(&mut self, outer: &[Item], depth: usize) -> (String, Vec<Item>) {
        let alias = self.name("x");
        let (query, classes) = self.limited(outer, depth - 1);
        let columns: Vec<_> = ["a", "k", "price", "b"].into_iter().take(classes.len()).collect();
        let item =
            |(name, class): (&&str, &Class)| Item { sql: format!("{alias}.{name}"), ty: plain(*class) };
        let items = columns.iter().zip(&classes).map(item).collect();
        (format!("({query}) AS {alias} ({})", columns.join(", ")), items)
    }

    fn join(
        &mut self,
        left: String,
        lefts: Vec<Item>,
        right: &str,
        rights: Vec<Item>,
        outer: &[Item],
    ) -> (String, Vec<Item>) {
        let kind = *self.choices.pick(&["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "CROSS JOIN"]);
        let common: Vec<String> = lefts
            .iter()
            .filter(|item| {
                let name = bare(&item.sql);
                let is_single =
                    |side: &[Item]| side.iter().filter(|other| bare(&other.sql) == name).count() == 1;
                is_single(&lefts)
                    && is_single(&rights)
                    && rights
                        .iter()
                        .any(|other| bare(&other.sql) == name && other.ty.class() == item.ty.class())
            })
            .map(|item| bare(&item.sql).to_owned())
            .collect();
        // A column joined by USING is ambiguous beside another column of its name.
        let is_clear =
            |item: &&Item| item.sql.contains('.') || !rights.iter().any(|other| bare(&other.sql) == item.sql);
        let all = || lefts.iter().filter(is_clear).chain(&rights).cloned().collect::<Vec<_>>();
        if kind == "CROSS JOIN" {
            return (format!("{left} CROSS JOIN {right}"), all());
        }
        let merged = |names: &[String]| {
            let ty = |name: &str| {
                lefts.iter().find(|item| bare(&item.sql) == name).map_or(Ty::Int, |item| item.ty)
            };
            let mut items: Vec<Item> =
                names.iter().map(|name| Item { sql: name.clone(), ty: ty(name) }).collect();
            items.extend(all().into_iter().filter(|item| !names.iter().any(|name| bare(&item.sql) == name)));
            items
        };
        let is_common = |item: &&Item| rights.iter().any(|other| bare(&other.sql) == bare(&item.sql));
        let can_be_natural = lefts.iter().filter(is_common).count() == common.len();
        if !common.is_empty() && can_be_natural && self.choices.once_in(6) {
            return (format!("{left} NATURAL {kind} {right}"), merged(&common));
        }
        if !common.is_empty() && self.choices.once_in(3) {
            let mut names = vec![self.choices.pick(&common).clone()];
            let second = self.choices.pick(&common).clone();
            if names[0] != second && self.choices.once_in(2) {
                names.push(second);
            }
            return (format!("{left} {kind} {right} USING ({})", names.join(", ")), merged(&names));
        }
        let pairs: Vec<(String, String)> = lefts
            .iter()
            .flat_map(|one| rights.iter().map(move |other| (one, other)))
            .filter(|(one, other)| one.ty.class() == other.ty.class())
            .map(|(one, other)| (one.sql.clone(), other.sql.clone()))
            .collect();
        let mut condition = match pairs.is_empty() {
            true => "1 = 1".to_owned(),
            false => {
                let (one, other) = self.choices.pick(&pairs);
                let op = if kind == "FULL JOIN" || !self.choices.once_in(6) { "=" } else { "<" };
                format!("{one} {op} {other}")
            }
        };
        if kind != "FULL JOIN" && self.choices.once_in(3) {
            let scope = Scope { items: all(), outer: outer.to_vec(), ..Scope::default() };
            condition = format!("{condition} AND {}", self.condition(&scope, 1));
        }
        (format!("{left} {kind} {right} ON {condition}"), all())
    }

    fn source(&mut self, outer: &[Item], depth: usize) -> (String, Vec<Item>) {
        if depth > 0 && self.queries_left > 0 && self.choices.once_in(6) {
            return self.derived(outer, depth);
        }
        let alias = self.name("x");
        let table = self.choices.pick(&self.test_tables.tables);
        let items = table
            .columns
            .iter()
            .map(|column| Item { sql: format!("{alias}.{}", column.name), ty: column.ty })
            .collect();
        (format!("{} AS {alias}", table.name), items)
    }

    /// Generates a query. LIMIT and OFFSET come with an ORDER BY over all columns, so that they always cut
    /// the same rows.
    fn limited(&mut self, outer: &[Item], depth: usize) -> (String, Vec<Class>) {
        let (mut query, classes) = self.query(outer, None, depth);
        if self.choices.once_in(3) {
            query.push_str(&self.order(classes.len()));
            query.push_str(self.choices.pick::<&str>(&[
                " LIMIT 3",
                " OFFSET 1",
                " LIMIT 2 OFFSET 1",
                " LIMIT 1",
                " LIMIT 0",
            ]));
        }
        (query, classes)
    }

    fn direction(&mut self) -> &'static str {
        self.choices.pick::<&str>(&["", " DESC", " NULLS FIRST", " DESC NULLS LAST"])
    }

    fn order(&mut self, width: usize) -> String {
        let mut places: Vec<usize> = (1..=width).collect();
        places.rotate_left(self.choices.below(width));
        let name = *self.choices.pick(&["", "c"]);
        let sorts: Vec<String> =
            places.iter().map(|place| format!("{name}{place}{}", self.direction())).collect();
        format!(" ORDER BY {}", sorts.join(", "))
    }

    pub(crate) fn scalar_subquery(&mut self, class: Class, scope: &Scope) -> String {
        let outer = visible(scope);
        self.queries_left = self.queries_left.saturating_sub(1);
        let (from, items) = self.from(&outer, 0);
        let inner = Scope { items: items.clone(), outer, below: None, has_subqueries: false };
        if !from.contains(" JOIN ") && self.choices.once_in(3) {
            // At most one row has the id.
            let value = self.expression(class, &inner, 1);
            let id = self.expression(Class::Number, &Scope { items: inner.outer, ..Scope::default() }, 0);
            return format!("(SELECT {value} FROM {from} WHERE {}.id = {id})", alias(&from));
        }
        let condition = self.condition(&inner, 1);
        let above = Scope { items: Vec::new(), below: Some(items), ..Scope::default() };
        let aggregate = self.aggregate(class, &above);
        let having =
            if self.choices.once_in(6) { format!(" HAVING {}", self.having(&above)) } else { String::new() };
        format!("(SELECT {aggregate} FROM {from} WHERE {condition}{having})")
    }

    pub(crate) fn subquery_condition(&mut self, scope: &Scope, depth: usize) -> String {
        let outer = visible(scope);
        let not = if self.choices.once_in(2) { "NOT " } else { "" };
        let inner = usize::from(self.queries_left > 1 && self.choices.once_in(3));
        match self.choices.below(7) {
            0 | 1 => {
                let class = class(self.choices);
                let value = self.expression(class, scope, depth);
                let (query, _) = self.query(&outer, Some(vec![class]), inner);
                format!("{value} {not}IN ({query})")
            }
            2 | 3 => {
                let (query, _) = self.limited(&outer, inner);
                format!("{not}EXISTS ({query})")
            }
            4 => {
                let class = class(self.choices);
                let value = self.expression(class, scope, depth);
                let op = *self.choices.pick(&["=", "<>", "<", ">="]);
                let quantifier = if self.choices.once_in(2) { "ALL" } else { "ANY" };
                let (query, _) = self.query(&outer, Some(vec![class]), inner);
                format!("{value} {op} {quantifier} ({query})")
            }
            5 => {
                let classes = vec![class(self.choices), class(self.choices)];
                let values: Vec<_> = classes.iter().map(|class| self.expression(*class, scope, 0)).collect();
                let (query, _) = self.query(&outer, Some(classes), inner);
                format!("({}) {not}IN ({query})", values.join(", "))
            }
            _ => {
                let value = self.expression(Class::Number, scope, depth);
                let op = *self.choices.pick(&["=", "<", ">"]);
                format!("{value} {op} {}", self.scalar_subquery(Class::Number, scope))
            }
        }
    }

    /// Generates a whole SELECT statement.
    pub(crate) fn statement(&mut self) -> (String, bool) {
        let with = self.choices.once_in(8);
        let is_distinct_on = !with && self.choices.once_in(12);
        if is_distinct_on {
            let (from, items) = self.from(&[], 1);
            let on = self.choices.pick(&items).sql.clone();
            let other = self.choices.pick(&items).sql.clone();
            let condition = match self.choices.once_in(2) {
                true => format!(" WHERE {}", self.condition(&Scope { items, ..Scope::default() }, 1)),
                false => String::new(),
            };
            let (first, second) = (self.direction(), self.direction());
            let limit = *self.choices.pick(&["", " LIMIT 2", " OFFSET 1"]);
            let sql = format!(
                "SELECT DISTINCT ON ({on}) {on} AS c1, {other} AS c2 FROM {from}{condition} ORDER BY {on}{first}, {other}{second}{limit}"
            );
            return (sql, true);
        }
        let (query, classes) = self.query(&[], None, 2);
        let mut sql = query;
        if with {
            // The named query is used once or twice.
            let body = *self.choices.pick(&[
                "SELECT * FROM w",
                "SELECT w.* FROM w JOIN w AS v ON w.c1 = v.c1",
                "SELECT w.* FROM w LEFT JOIN (SELECT DISTINCT c1 FROM w WHERE c1 IS NOT NULL) AS v ON w.c1 = v.c1 WHERE v.c1 IS NULL",
                "SELECT * FROM w WHERE c1 NOT IN (SELECT c1 FROM w WHERE c1 IS NULL)",
            ]);
            sql = format!("WITH w AS ({sql}) {body}");
        }
        let is_ordered = self.choices.once_in(3);
        if is_ordered {
            sql.push_str(&self.order(classes.len()));
            sql.push_str(self.choices.pick::<&str>(&["", " LIMIT 3", " OFFSET 2", " LIMIT 4 OFFSET 1"]));
        }
        (sql, is_ordered)
    }
}

/// Returns what a subquery can name of the enclosing query.
fn visible(scope: &Scope) -> Vec<Item> {
    scope.items.iter().chain(&scope.outer).cloned().collect()
}

/// Returns a name without its table.
fn bare(sql: &str) -> &str {
    sql.rsplit_once('.').map_or(sql, |(_, name)| name)
}

/// Returns the alias of a table in a FROM clause.
fn alias(from: &str) -> &str {
    from.rsplit(' ').next().unwrap_or(from)
}

/// Returns a type of a class, for computed values.
pub(crate) fn plain(class: Class) -> Ty {
    match class {
        // Treat computed numbers as floats, so that they are never summed.
        Class::Number => Ty::Double,
        Class::Boolean => Ty::Boolean,
        Class::Text => Ty::Text,
        Class::Date => Ty::Date,
        Class::Timestamp => Ty::Timestamp,
        Class::TimestampTz => Ty::TimestampTz,
        Class::Bytes => Ty::Bytes,
    }
}
