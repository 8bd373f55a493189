//! Metadata commands: catalogs, schemas, tables, keys, types and server capabilities.
//!
//! The caller's session provides the list, so it contains only what the caller may see. A table's schema is
//! the registry's memoized message. There are no foreign keys, so the three commands about them return no
//! rows.
//!
//! Invariant: FlightInfo, GetSchema and DoGet of a command all have the schema of `schema_of`.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, BinaryArray, Int32Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::sql::metadata::{GetCatalogsBuilder, SqlInfoDataBuilder};
use arrow_flight::sql::{Command, CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetTables};
use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo, Ticket};
use bytes::Bytes;
use futures::{StreamExt, stream};
use kalamdb_core::{Error, Result, Session, TableInfo};
use tonic::Response;

use super::encode::{BatchEncoder, SchemaEncodings, WireSchema};
use super::wire::{CATALOG, DataStream, malformed, metadata_not_built, no_substrait};
use super::{sql_info, type_info};

const TABLE_TYPES: [&str; 2] = ["SYSTEM TABLE", "TABLE"];

static DB_SCHEMAS: LazyLock<SchemaRef> =
    LazyLock::new(|| schema(vec![text("catalog_name", true), text("db_schema_name", false)]));

static TABLES: LazyLock<SchemaRef> = LazyLock::new(|| schema(table_fields().to_vec()));

static TABLES_WITH_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let mut fields = table_fields().to_vec();
    fields.push(Field::new("table_schema", DataType::Binary, false));
    schema(fields)
});

static TYPES_OF_TABLES: LazyLock<SchemaRef> = LazyLock::new(|| schema(vec![text("table_type", false)]));

static PRIMARY_KEYS: LazyLock<SchemaRef> = LazyLock::new(|| {
    schema(vec![
        text("catalog_name", true),
        text("db_schema_name", true),
        text("table_name", false),
        text("column_name", false),
        Field::new("key_sequence", DataType::Int32, false),
        text("key_name", true),
    ])
});

static FOREIGN_KEYS: LazyLock<SchemaRef> = LazyLock::new(|| {
    schema(vec![
        text("pk_catalog_name", true),
        text("pk_db_schema_name", true),
        text("pk_table_name", false),
        text("pk_column_name", false),
        text("fk_catalog_name", true),
        text("fk_db_schema_name", true),
        text("fk_table_name", false),
        text("fk_column_name", false),
        Field::new("key_sequence", DataType::Int32, false),
        text("fk_key_name", true),
        text("pk_key_name", true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ])
});

fn table_fields() -> [Field; 4] {
    [
        text("catalog_name", true),
        text("db_schema_name", true),
        text("table_name", false),
        text("table_type", false),
    ]
}

fn text(name: &str, nullable: bool) -> Field {
    Field::new(name, DataType::Utf8, nullable)
}

fn schema(fields: Vec<Field>) -> SchemaRef {
    Arc::new(Schema::new(fields))
}

/// Returns the schema of a metadata command's result.
fn schema_of(command: &Command) -> Result<SchemaRef> {
    Ok(match command {
        Command::CommandGetCatalogs(_) => GetCatalogsBuilder::new().schema(),
        Command::CommandGetDbSchemas(_) => Arc::clone(&DB_SCHEMAS),
        Command::CommandGetTables(tables) if tables.include_schema => Arc::clone(&TABLES_WITH_SCHEMA),
        Command::CommandGetTables(_) => Arc::clone(&TABLES),
        Command::CommandGetTableTypes(_) => Arc::clone(&TYPES_OF_TABLES),
        Command::CommandGetPrimaryKeys(_) => Arc::clone(&PRIMARY_KEYS),
        Command::CommandGetExportedKeys(_)
        | Command::CommandGetImportedKeys(_)
        | Command::CommandGetCrossReference(_) => Arc::clone(&FOREIGN_KEYS),
        Command::CommandGetSqlInfo(_) => Arc::new(SqlInfoDataBuilder::schema().clone()),
        Command::CommandGetXdbcTypeInfo(_) => type_info::data()?.schema(),
        Command::CommandStatementSubstraitPlan(_) => return Err(no_substrait()),
        Command::Unknown(any) => return Err(Error::unsupported(format!("command \"{}\"", any.type_url))),
        other => {
            let command = other.type_url();
            return Err(malformed(&format!("\"{command}\" returns no rows, so it cannot be fetched")));
        }
    })
}

/// Returns the wire schema of a metadata command's result.
pub(super) fn wire_schema(encodings: &SchemaEncodings, command: &Command) -> Result<WireSchema> {
    Ok(WireSchema::of(&schema_of(command)?, None, encodings))
}

/// Returns the FlightInfo of a metadata command; its ticket is the command itself.
pub(super) fn info(
    encodings: &SchemaEncodings,
    descriptor: FlightDescriptor,
    command: &Command,
) -> Result<FlightInfo> {
    let ticket = Ticket { ticket: descriptor.cmd.clone() };
    Ok(FlightInfo {
        schema: wire_schema(encodings, command)?.ipc(),
        flight_descriptor: Some(descriptor),
        endpoint: vec![FlightEndpoint { ticket: Some(ticket), ..FlightEndpoint::default() }],
        total_records: -1,
        total_bytes: -1,
        ordered: false,
        app_metadata: Bytes::new(),
    })
}

/// Returns the rows of a metadata command.
pub(super) fn data(
    encodings: &SchemaEncodings,
    session: &Session,
    command: Command,
) -> Result<Response<DataStream>> {
    let schema = wire_schema(encodings, &command)?;
    let batch = rows_of(session, command, schema.schema())?;
    let mut messages = vec![Ok(schema.message(Bytes::new()))];
    messages.extend(BatchEncoder::new(schema).encode(batch)?.into_iter().map(Ok));
    Ok(Response::new(stream::iter(messages).boxed()))
}

/// Lists every table that the caller may see, named by its path.
pub(super) fn flights(session: &Session) -> Result<Vec<FlightInfo>> {
    let flights = session.tables()?.into_iter().map(|table| FlightInfo {
        schema: table.schemas.visible_ipc(),
        flight_descriptor: Some(FlightDescriptor::new_path(vec![
            table.namespace.to_string(),
            table.name.to_string(),
        ])),
        endpoint: Vec::new(),
        total_records: -1,
        total_bytes: -1,
        ordered: false,
        app_metadata: Bytes::new(),
    });
    Ok(flights.collect())
}

fn rows_of(session: &Session, command: Command, schema: &SchemaRef) -> Result<RecordBatch> {
    match command {
        Command::CommandGetCatalogs(_) => batch(schema, vec![strings([CATALOG])]),
        Command::CommandGetDbSchemas(command) => db_schemas(session, &command, schema),
        Command::CommandGetTables(command) => tables(session, &command, schema),
        Command::CommandGetTableTypes(_) => batch(schema, vec![strings(TABLE_TYPES)]),
        Command::CommandGetPrimaryKeys(command) => primary_keys(session, &command, schema),
        Command::CommandGetSqlInfo(command) => sql_info::rows(command),
        Command::CommandGetXdbcTypeInfo(command) => {
            type_info::data()?.record_batch(command.data_type).map_err(metadata_not_built)
        }
        // `schema_of` refuses commands other than metadata; the remaining ones are about foreign keys.
        _ => Ok(RecordBatch::new_empty(Arc::clone(schema))),
    }
}

fn db_schemas(session: &Session, command: &CommandGetDbSchemas, schema: &SchemaRef) -> Result<RecordBatch> {
    let mut names = session.namespaces()?;
    names.retain(|name| {
        is_our_catalog(command.catalog.as_deref())
            && matches(command.db_schema_filter_pattern.as_deref(), name)
    });
    batch(schema, vec![strings(names.iter().map(|_| CATALOG)), strings(names.iter().map(AsRef::as_ref))])
}

fn tables(session: &Session, command: &CommandGetTables, schema: &SchemaRef) -> Result<RecordBatch> {
    let mut tables = session.tables()?;
    tables.retain(|table| {
        let types = &command.table_types;
        is_our_catalog(command.catalog.as_deref())
            && matches(command.db_schema_filter_pattern.as_deref(), &table.namespace)
            && matches(command.table_name_filter_pattern.as_deref(), &table.name)
            && (types.is_empty() || types.iter().any(|name| name == table.table_type()))
    });
    let mut columns = vec![
        strings(tables.iter().map(|_| CATALOG)),
        strings(tables.iter().map(|table| table.namespace.as_ref())),
        strings(tables.iter().map(|table| table.name.as_ref())),
        strings(tables.iter().map(TableInfo::table_type)),
    ];
    if command.include_schema {
        let schemas = tables.iter().map(|table| table.schemas.visible_ipc());
        columns.push(Arc::new(BinaryArray::from_iter_values(schemas)));
    }
    batch(schema, columns)
}

fn primary_keys(
    session: &Session,
    command: &CommandGetPrimaryKeys,
    schema: &SchemaRef,
) -> Result<RecordBatch> {
    let namespace = command.db_schema.as_deref();
    let tables = session.tables()?;
    // Without a schema the spec means "any schema"; a driver that passes one means exactly that one.
    let mut wanted = tables.iter().filter(|table| {
        is_our_catalog(command.catalog.as_deref())
            && namespace.is_none_or(|namespace| namespace.is_empty() || namespace == &*table.namespace)
            && command.table == *table.name
    });
    let mut rows: Vec<(&TableInfo, String, i32)> = Vec::new();
    wanted.by_ref().for_each(|table| {
        let columns = table.primary_key().into_iter().map(str::to_owned);
        rows.extend((1..).zip(columns).map(|(position, column)| (table, column, position)));
    });
    batch(
        schema,
        vec![
            strings(rows.iter().map(|_| CATALOG)),
            strings(rows.iter().map(|(table, ..)| table.namespace.as_ref())),
            strings(rows.iter().map(|(table, ..)| table.name.as_ref())),
            strings(rows.iter().map(|(_, column, _)| column.as_str())),
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|(.., position)| *position))),
            Arc::new(StringArray::from_iter_values(
                rows.iter().map(|(table, ..)| format!("{}_pkey", table.name)),
            )),
        ],
    )
}

fn strings<'a>(values: impl IntoIterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn batch(schema: &SchemaRef, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    RecordBatch::try_new(Arc::clone(schema), columns).map_err(metadata_not_built)
}

fn is_our_catalog(filter: Option<&str>) -> bool {
    filter.is_none_or(|catalog| catalog == CATALOG)
}

/// Whether `name` matches a pattern with `%` (any characters), `_` (one character) and `\` (escape).
fn matches(pattern: Option<&str>, name: &str) -> bool {
    let Some(pattern) = pattern else { return true };
    let pattern: Vec<Piece> = pieces(pattern);
    // Greedy matching that backtracks only to the last `%`, so it takes at most pattern length times name
    // length steps.
    let name: Vec<char> = name.chars().collect();
    let (mut at_pattern, mut at_name) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while at_name < name.len() {
        match (pattern.get(at_pattern), name.get(at_name)) {
            (Some(Piece::Any), _) => {
                back = Some((at_pattern, at_name));
                at_pattern += 1;
            }
            (Some(Piece::One), _) => {
                at_pattern += 1;
                at_name += 1;
            }
            (Some(Piece::Exactly(wanted)), Some(found)) if wanted == found => {
                at_pattern += 1;
                at_name += 1;
            }
            _ => match back {
                Some((any, from)) => {
                    back = Some((any, from + 1));
                    at_pattern = any + 1;
                    at_name = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(at_pattern).all(|piece| matches!(piece, Piece::Any))
}

enum Piece {
    Any,
    One,
    Exactly(char),
}

fn pieces(pattern: &str) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(char) = chars.next() {
        pieces.push(match char {
            '%' => Piece::Any,
            '_' => Piece::One,
            '\\' => Piece::Exactly(chars.next().unwrap_or('\\')),
            other => Piece::Exactly(other),
        });
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_like_does() {
        let check = |pattern: &str, name: &str| matches(Some(pattern), name);
        assert!(matches(None, "notes"));
        for (pattern, name) in [
            ("%", ""),
            ("%", "notes"),
            ("notes", "notes"),
            ("n%s", "notes"),
            ("%o%e%", "notes"),
            ("_____", "notes"),
        ] {
            assert!(check(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("", "notes"), ("note", "notes"), ("____", "notes"), ("%x%", "notes"), ("Notes", "notes")]
        {
            assert!(!check(pattern, name), "{pattern} {name}");
        }
        assert!(check("my_table", "myxtable"));
        assert!(!check("my\\_table", "myxtable"));
        assert!(check("my\\_table", "my_table"));
        assert!(!check(&"%a".repeat(40), &"b".repeat(2_000)));
    }

    #[test]
    fn a_command_that_is_not_fetched_is_refused_by_name() {
        let command = Command::CommandStatementUpdate(Default::default());
        assert!(schema_of(&command).unwrap_err().message().contains("CommandStatementUpdate"));
    }
}
