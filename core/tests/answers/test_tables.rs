//! Generates the tables of a run: columns of equal names, few distinct values, NULLs, keys of every kind.

use crate::choices::Choices;

/// The types of columns and expressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ty {
    Small,
    Int,
    Big,
    Decimal(u8, u8),
    Double,
    Boolean,
    Text,
    Date,
    Timestamp,
    TimestampTz,
    Bytes,
}

/// Types whose values can be compared with one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    Number,
    Boolean,
    Text,
    Date,
    Timestamp,
    TimestampTz,
    Bytes,
}

impl Ty {
    pub(crate) fn class(self) -> Class {
        match self {
            Self::Small | Self::Int | Self::Big | Self::Decimal(..) | Self::Double => Class::Number,
            Self::Boolean => Class::Boolean,
            Self::Text => Class::Text,
            Self::Date => Class::Date,
            Self::Timestamp => Class::Timestamp,
            Self::TimestampTz => Class::TimestampTz,
            Self::Bytes => Class::Bytes,
        }
    }

    pub(crate) fn is_integer(self) -> bool {
        matches!(self, Self::Small | Self::Int | Self::Big)
    }

    fn sql(self, engine: Engine) -> String {
        match (self, engine) {
            (Self::Small, _) => "SMALLINT".to_owned(),
            (Self::Int, _) => "INTEGER".to_owned(),
            (Self::Big, _) => "BIGINT".to_owned(),
            (Self::Decimal(digits, scale), _) => format!("DECIMAL({digits},{scale})"),
            (Self::Double, _) => "DOUBLE PRECISION".to_owned(),
            (Self::Boolean, _) => "BOOLEAN".to_owned(),
            (Self::Text, _) => "TEXT".to_owned(),
            (Self::Date, _) => "DATE".to_owned(),
            (Self::Timestamp, _) => "TIMESTAMP".to_owned(),
            (Self::TimestampTz, _) => "TIMESTAMPTZ".to_owned(),
            (Self::Bytes, Engine::Kalam) => "BYTES".to_owned(),
            (Self::Bytes, Engine::Postgres) => "BYTEA".to_owned(),
        }
    }

    /// Returns literals of the type; the first is the simplest.
    pub(crate) fn literals(self) -> &'static [&'static str] {
        match self {
            Self::Small | Self::Int => &["0", "1", "2", "3", "-1", "5", "4", "-2"],
            // 9007199254740993 is not representable as a DOUBLE.
            Self::Big => &["0", "1", "2", "3", "-1", "9007199254740993", "9007199254740992", "-2"],
            Self::Decimal(..) => {
                &["0.00", "1.50", "2.25", "1.00", "-1.10", "128.05", "0.10", "3.00", "1234567.89"]
            }
            Self::Double => &[
                "0.0",
                "1.5",
                "2.25",
                "1.0",
                "-1.5",
                "100.25",
                "0.1",
                "4.07",
                "9007199254740992.0",
                "CAST('NaN' AS DOUBLE PRECISION)",
                "CAST('-Infinity' AS DOUBLE PRECISION)",
            ],
            Self::Boolean => &["true", "false"],
            Self::Text => &["'a'", "'b'", "''", "'ab'", "'A'", "'a_b'", "'a%'", "'10'", "'\u{e4}b'", "' a'"],
            Self::Date => &[
                "DATE '2024-01-01'",
                "DATE '2024-01-02'",
                "DATE '2024-02-29'",
                "DATE '2023-12-31'",
                "DATE '0099-03-01'",
                "DATE '2999-12-31'",
            ],
            Self::Timestamp => &[
                "TIMESTAMP '2024-01-01 00:00:00'",
                "TIMESTAMP '2024-01-02 03:04:05.678901'",
                "TIMESTAMP '2024-01-02 00:00:00'",
                "TIMESTAMP '2023-12-31 23:59:59.5'",
                "TIMESTAMP '0099-03-01 00:00:00.000001'",
                "TIMESTAMP '2999-12-31 23:00:00'",
            ],
            Self::TimestampTz => &[
                "TIMESTAMPTZ '2024-01-01 00:00:00+00'",
                "TIMESTAMPTZ '2024-01-02 05:04:05.678901+02'",
                "TIMESTAMPTZ '2024-01-02 00:00:00+00'",
                "TIMESTAMPTZ '2024-01-01 08:00:00-05'",
                "TIMESTAMPTZ '2024-03-31 01:30:00+00'",
                "TIMESTAMPTZ '2999-12-31 23:00:00+00'",
            ],
            Self::Bytes => &["'\\x00'", "'\\xff61'", "''", "'\\x6162'"],
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Kalam,
    Postgres,
}

#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) ty: Ty,
    pub(crate) is_nullable: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) columns: Vec<Column>,
    /// The number of leading columns that form the key.
    pub(crate) key: usize,
    /// Values as literals.
    pub(crate) rows: Vec<Vec<String>>,
}

/// Column names, with the type they have in most tables.
const NAMES: [(&str, Ty); 12] = [
    ("a", Ty::Int),
    ("b", Ty::Text),
    ("c", Ty::Decimal(10, 2)),
    ("d", Ty::Date),
    ("k", Ty::Int),
    ("e", Ty::Boolean),
    ("f", Ty::Double),
    ("n", Ty::Big),
    ("t", Ty::Timestamp),
    ("z", Ty::TimestampTz),
    ("x", Ty::Bytes),
    ("price", Ty::Decimal(12, 4)),
];

impl Table {
    fn new(choices: &mut Choices, number: usize) -> Self {
        let mut columns = vec![Column { name: "id", ty: Ty::Int, is_nullable: false }];
        for (name, ty) in NAMES {
            if choices.below(5) < 3 {
                let ty = if choices.once_in(5) { related(choices, ty) } else { ty };
                columns.push(Column { name, ty, is_nullable: !choices.once_in(6) });
            }
        }
        // Sometimes use a key of two columns, in either order.
        let mut key = 1;
        if choices.once_in(4) && columns.len() > 2 {
            let other = 1 + choices.below(columns.len() - 1);
            if columns[other].ty != Ty::Double {
                columns.swap(1, other);
                columns[1].is_nullable = false;
                if choices.once_in(2) {
                    columns.swap(0, 1);
                }
                key = 2;
            }
        }
        let mut table = Self { name: format!("t{number}"), columns, key, rows: Vec::new() };
        let count = match choices.below(8) {
            0 => 0,
            7 if number == 1 => 40 + choices.below(40),
            _ => 1 + choices.below(12),
        };
        for row in 0..count {
            let values = table.columns.iter().map(|column| value(choices, column, row)).collect();
            table.rows.push(values);
        }
        table
    }

    pub(crate) fn create(&self, namespace: &str, engine: Engine) -> String {
        let columns = self.columns.iter().map(|column| {
            let null = if column.is_nullable { "" } else { " NOT NULL" };
            format!("{} {}{null}", column.name, column.ty.sql(engine))
        });
        let key: Vec<_> = self.columns.iter().take(self.key).map(|column| column.name).collect();
        format!(
            "CREATE TABLE {namespace}.{} ({}, PRIMARY KEY ({}))",
            self.name,
            columns.collect::<Vec<_>>().join(", "),
            key.join(", ")
        )
    }

    /// Returns the INSERT that writes these rows, or `None` for no rows.
    pub(crate) fn insert(&self, namespace: &str, rows: &[Vec<String>]) -> Option<String> {
        let rows: Vec<_> = rows.iter().map(|row| format!("({})", row.join(", "))).collect();
        (!rows.is_empty())
            .then(|| format!("INSERT INTO {namespace}.{} VALUES {}", self.name, rows.join(", ")))
    }
}

/// Returns a type that is comparable with this one, often another one.
fn related(choices: &mut Choices, ty: Ty) -> Ty {
    match ty.class() {
        Class::Number => {
            *choices.pick(&[Ty::Big, Ty::Int, Ty::Small, Ty::Decimal(12, 4), Ty::Decimal(8, 0), Ty::Double])
        }
        Class::Timestamp | Class::Date => *choices.pick(&[Ty::Date, Ty::Timestamp]),
        _ => ty,
    }
}

fn value(choices: &mut Choices, column: &Column, row: usize) -> String {
    if column.name == "id" {
        return (row + 1).to_string();
    }
    if column.is_nullable && choices.below(4) == 0 {
        return "NULL".to_owned();
    }
    (*choices.pick(column.ty.literals())).to_owned()
}

/// The tables of a run.
#[derive(Clone)]
pub(crate) struct TestTables {
    pub(crate) tables: Vec<Table>,
}

impl TestTables {
    pub(crate) fn new(seed: u64) -> Self {
        let mut choices = Choices::random(seed);
        Self { tables: (1..=4).map(|number| Table::new(&mut choices, number)).collect() }
    }

    /// Returns the statements that create the tables named in `sql`, for a script.
    pub(crate) fn script(&self, sql: &str) -> String {
        let mut script = String::new();
        for table in self.tables.iter().filter(|table| sql.contains(&table.name)) {
            script.push_str(&table.create("public", Engine::Postgres).replace("public.", ""));
            script.push_str(";\n");
            if let Some(insert) = table.insert("public", &table.rows) {
                script.push_str(&insert.replace("public.", ""));
                script.push_str(";\n");
            }
        }
        script
    }
}
