//! Generates the questions of a run: SELECTs, writes, live queries, and queries that can be split in parts.

use crate::choices::Choices;
use crate::expressions::{Item, Scope, class};
use crate::queries::{Generator, Parameter};
use crate::test_tables::{Class, Table, TestTables};

/// A statement for both engines.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) kind: Kind,
    /// The SQL, with `{1}` for the first parameter.
    text: String,
    pub(crate) parameters: Vec<Parameter>,
    /// Whether ORDER BY names all columns, so that the order of the rows counts.
    pub(crate) is_ordered: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Select,
    /// An UPDATE or DELETE of this table.
    Write(String),
    /// The filter of a live query over this table, as its SELECT.
    Live(String),
}

impl Question {
    /// Leaves out the parameters of parts that the generator made and did not use.
    fn new(kind: Kind, mut text: String, generated: Vec<Parameter>, is_ordered: bool) -> Self {
        let mut parameters = Vec::new();
        for (parameter, place) in generated.into_iter().zip(1..) {
            let place = format!("{{{place}}}");
            if text.contains(&place) {
                parameters.push(parameter);
                text = text.replace(&place, &format!("{{{}}}", parameters.len()));
            }
        }
        Self { kind, text, parameters, is_ordered }
    }

    pub(crate) fn ours(&self) -> String {
        self.with(|number, _| format!("${number}"))
    }

    pub(crate) fn foreign(&self) -> String {
        self.with(|_, parameter| parameter.literal.clone())
    }

    /// Returns the statement with its parameters.
    pub(crate) fn script(&self) -> String {
        let values: Vec<_> = self.parameters.iter().map(|parameter| &parameter.value).collect();
        let given = if values.is_empty() { String::new() } else { format!("-- with {values:?}\n") };
        format!("{given}{};\n", self.ours())
    }

    fn with(&self, text: impl Fn(usize, &Parameter) -> String) -> String {
        let mut sql = self.text.clone();
        for (number, parameter) in self.parameters.iter().enumerate() {
            sql = sql.replace(&format!("{{{}}}", number + 1), &text(number + 1, parameter));
        }
        sql
    }
}

/// Generates the next statement.
pub(crate) fn question(choices: &mut Choices, test_tables: &TestTables) -> Question {
    let kind = choices.below(8);
    let mut generator = Generator::new(choices, test_tables);
    generator.has_parameters = generator.choices.once_in(6);
    let mut is_ordered = false;
    let (kind, text) = match kind {
        0 => match generator.choices.once_in(2) {
            true => generator.by_key(),
            false => (Kind::Select, generator.of_one_column()),
        },
        5 => {
            let (table, scope) = generator.target(true);
            let condition = generator.condition(&scope, 2);
            (Kind::Write(table.clone()), format!("DELETE FROM {table} WHERE {condition}"))
        }
        6 => {
            let (table, scope) = generator.target(true);
            let keys = generator
                .test_tables
                .tables
                .iter()
                .find(|known| known.name == table)
                .map_or(0, |known| known.key);
            let free: Vec<Item> = scope.items.iter().skip(keys).cloned().collect();
            if free.is_empty() {
                (Kind::Write(table.clone()), format!("DELETE FROM {table}"))
            } else {
                let item = generator.choices.pick(&free).clone();
                let value = generator.expression(item.ty.class(), &scope, 1);
                let condition = generator.condition(&scope, 2);
                let text = format!("UPDATE {table} SET {} = {value} WHERE {condition}", item.sql);
                (Kind::Write(table), text)
            }
        }
        7 => {
            let (table, scope) = generator.target(false);
            let condition = generator.condition(&scope, 2);
            (Kind::Live(table.clone()), format!("SELECT * FROM {table} WHERE {condition}"))
        }
        _ => {
            let (sql, ordered) = generator.statement();
            is_ordered = ordered;
            (Kind::Select, sql)
        }
    };
    let parameters = std::mem::take(&mut generator.parameters);
    Question::new(kind, text, parameters, is_ordered)
}

impl Generator<'_> {
    /// Generates a statement that finds its rows by bounds on an existing key.
    fn by_key(&mut self) -> (Kind, String) {
        let tables: Vec<&Table> =
            self.test_tables.tables.iter().filter(|table| !table.rows.is_empty()).collect();
        if tables.is_empty() {
            return (Kind::Select, self.statement().0);
        }
        let table = *self.choices.pick(&tables);
        let position = self.choices.below(table.key);
        let mut bound = || {
            let op = *self.choices.pick(&[">=", "<=", ">", "<", "=", "<>"]);
            let row = self.choices.pick(&table.rows);
            format!("{} {op} {}", table.columns[position].name, row[position])
        };
        let mut condition = bound();
        let second = bound();
        match self.choices.below(4) {
            0 => condition = format!("{condition} AND {second}"),
            1 => condition = format!("({condition} OR {second})"),
            _ => {}
        }
        let items =
            table.columns.iter().map(|column| Item { sql: column.name.to_owned(), ty: column.ty }).collect();
        if self.choices.once_in(3) {
            let more = self.condition(&Scope { items, ..Scope::default() }, 1);
            condition = format!("{condition} AND {more}");
        }
        let name = table.name.clone();
        let select = format!("SELECT * FROM {name} WHERE {condition}");
        match self.choices.below(4) {
            0 => (Kind::Write(name.clone()), format!("DELETE FROM {name} WHERE {condition}")),
            1 => (Kind::Live(name), select),
            _ => (Kind::Select, select),
        }
    }

    /// Generates what the optimizer combines: conditions on one column, an order with an OFFSET below an
    /// aggregation, and an order over a union whose inputs have different constants.
    fn of_one_column(&mut self) -> String {
        let table = self.choices.pick(&self.test_tables.tables);
        let column = self.choices.pick(&table.columns);
        let (name, class, from) = (column.name, column.ty.class(), &table.name);
        let position = table.columns.iter().position(|other| other.name == name).unwrap_or(0);
        let values = table.rows.iter().map(|row| row[position].as_str());
        let mut values: Vec<&str> = values.filter(|value| *value != "NULL").collect();
        if values.is_empty() {
            values = column.ty.literals().to_vec();
        }
        let literal = |choices: &mut Choices| *choices.pick(&values);
        let (one, other) = (literal(self.choices), literal(self.choices));
        match self.choices.below(4) {
            3 => {
                let count = 1 + self.choices.below(4);
                format!(
                    "SELECT 2 AS c1, {name} AS c2 FROM {from} UNION ALL SELECT 1 AS c1, {name} AS c2 FROM {from} ORDER BY c1, c2 LIMIT {count}"
                )
            }
            0 => {
                let (op, not) =
                    *self.choices.pick(&[("OR", "NOT "), ("AND", ""), ("AND", "NOT "), ("OR", "")]);
                let also = if self.choices.once_in(4) { "" } else { not };
                let lists = format!("{name} {not}IN ({one}) {op} {name} {also}IN ({other})");
                format!("SELECT ({lists}) AS c1 FROM {from}")
            }
            1 => {
                let op = *self.choices.pick(&["AND", "OR"]);
                // In a CASE, PostgreSQL would take the bytes literal for text.
                let left = match class {
                    Class::Bytes => one.to_owned(),
                    _ => format!("CASE WHEN true THEN {one} END"),
                };
                format!("SELECT * FROM {from} WHERE {name} = {one} {op} {left} = {name}")
            }
            _ => {
                let keys: Vec<&str> = table.columns.iter().take(table.key).map(|key| key.name).collect();
                let direction = self.choices.pick(&["", " DESC"]);
                let order = keys.join(&format!("{direction}, "));
                let skip = 1 + self.choices.below(3);
                let greatest = match class {
                    Class::Boolean | Class::Bytes => String::new(),
                    _ => format!(", max({name}) AS c2"),
                };
                format!(
                    "SELECT count(*) AS c1{greatest} FROM (SELECT {name} FROM {from} ORDER BY {order}{direction} OFFSET {skip}) AS q1"
                )
            }
        }
    }

    /// Picks a table to write to. Returns it with its columns.
    fn target(&mut self, has_subqueries: bool) -> (String, Scope) {
        let table = self.choices.pick(&self.test_tables.tables);
        let items =
            table.columns.iter().map(|column| Item { sql: column.name.to_owned(), ty: column.ty }).collect();
        (table.name.clone(), Scope { items, has_subqueries, ..Scope::default() })
    }
}

/// Generates a question that is a SELECT.
pub(crate) fn select_question(choices: &mut Choices, test_tables: &TestTables) -> Question {
    let mut generator = Generator::new(choices, test_tables);
    generator.has_parameters = generator.choices.once_in(6);
    let (text, is_ordered) = generator.statement();
    let parameters = std::mem::take(&mut generator.parameters);
    Question::new(Kind::Select, text, parameters, is_ordered)
}

/// A query without a filter, and a condition on its rows.
pub(crate) struct Parts {
    /// `FROM ...`
    from: String,
    list: String,
    condition: String,
}

impl Parts {
    pub(crate) fn whole(&self) -> String {
        format!("SELECT {} FROM {}", self.list, self.from)
    }

    /// Returns queries for the rows with a true, a false and an unknown condition.
    pub(crate) fn parts(&self) -> [String; 3] {
        let Self { condition, .. } = self;
        [
            format!("{} WHERE {condition}", self.whole()),
            format!("{} WHERE NOT ({condition})", self.whole()),
            format!("{} WHERE ({condition}) IS NULL", self.whole()),
        ]
    }

    pub(crate) fn filtered(&self) -> String {
        format!("SELECT count(*) FROM {} WHERE {}", self.from, self.condition)
    }

    pub(crate) fn column(&self) -> String {
        format!("SELECT ({}) AS c1 FROM {}", self.condition, self.from)
    }
}

/// Generates a query that can be split in three.
pub(crate) fn parts(choices: &mut Choices, test_tables: &TestTables) -> Parts {
    let mut generator = Generator::new(choices, test_tables);
    let (from, items) = generator.from(&[], 2);
    let scope = Scope { items, has_subqueries: true, ..Scope::default() };
    let count = 1 + generator.choices.below(3);
    let list: Vec<String> = (1..=count)
        .map(|place| {
            let class = class(generator.choices);
            format!("{} AS c{place}", generator.expression(class, &scope, 1))
        })
        .collect();
    let condition = generator.condition(&scope, 3);
    Parts { from, list: list.join(", "), condition }
}
