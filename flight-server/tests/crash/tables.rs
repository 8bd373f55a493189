//! The tables under test. All have the columns `writer`, `id` and `value`, so one model fits all.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;

use crate::chores;
use crate::server::Client;

/// One writer's rows in one table: values by key.
pub(crate) type State = BTreeMap<i64, i64>;

/// A kind of table; each kind takes its own path through the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// Rows by a composite primary key, shared.
    Shared,
    /// Rows by primary key, each user's own.
    User,
    /// Rows without a primary key.
    Keyless,
    /// As `Shared`, flushed all the time.
    ColdShared,
    /// As `User`, flushed all the time.
    ColdUser,
    /// As `Keyless`, flushed all the time.
    ColdKeyless,
}

pub(crate) const ALL: [Table; 6] =
    [Table::Shared, Table::User, Table::Keyless, Table::ColdShared, Table::ColdUser, Table::ColdKeyless];

/// The tables that are flushed all the time.
pub(crate) const COLD: [Table; 3] = [Table::ColdShared, Table::ColdUser, Table::ColdKeyless];

impl Table {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Shared => "crash.shared_rows",
            Self::User => "crash.user_rows",
            Self::Keyless => "crash.keyless_rows",
            Self::ColdShared => "crash.cold_shared_rows",
            Self::ColdUser => "crash.cold_user_rows",
            Self::ColdKeyless => "crash.cold_keyless_rows",
        }
    }

    fn create(self) -> String {
        let kind = match self {
            Self::User | Self::ColdUser => "USER",
            _ => "SHARED",
        };
        let key = match self {
            Self::Keyless | Self::ColdKeyless => "",
            _ => ", PRIMARY KEY (writer, id)",
        };
        let policy = match self {
            Self::Shared | Self::User | Self::Keyless => "",
            _ => " WITH (FLUSH_POLICY = 'rows:20')",
        };
        let columns = "writer BIGINT NOT NULL, id BIGINT NOT NULL, value BIGINT NOT NULL, pad TEXT";
        format!("CREATE {kind} TABLE {} ({columns}{key}){policy}", self.name())
    }
}

pub(crate) async fn create(client: &mut Client) {
    let mut statements = vec!["CREATE NAMESPACE crash".to_owned(), chores::create()];
    statements.extend(ALL.map(Table::create));
    for sql in statements {
        if let Err(error) = client.run(&sql).await {
            panic!("{sql}: {error}");
        }
    }
}

/// Reads a whole table, grouped by writer.
pub(crate) async fn read(client: &mut Client, table: &str) -> BTreeMap<u64, State> {
    let sql = format!("SELECT writer, id, value FROM {table}");
    let batches = client.query(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let mut found: BTreeMap<u64, State> = BTreeMap::new();
    for batch in &batches {
        let [writers, ids, values] =
            [0, 1, 2].map(|column| batch.column(column).as_primitive::<Int64Type>().values());
        for ((writer, id), value) in writers.iter().zip(ids).zip(values) {
            let writer = u64::try_from(*writer).expect("a writer");
            let before = found.entry(writer).or_default().insert(*id, *value);
            assert_eq!(before, None, "{table}: writer {writer} has the key {id} twice");
        }
    }
    found
}
