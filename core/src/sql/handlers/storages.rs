//! CREATE STORAGE, ALTER STORAGE, DROP STORAGE and STORAGE CHECK.
//!
//! Invariant: a statement names the place of credentials, never the credentials.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{ArrayRef, Float64Array, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde_json::json;

use super::show::rows;
use crate::access::Role;
use crate::cold_storage::{CONNECTION_OPTIONS, StorageLocation, storage_in_use};
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::schema_registry::{CatalogChange, StorageRecord, validate_name};
use crate::sql::effect::{Change, Effect};
use crate::sql::execution::Execution;
use crate::sql::text::statement::{CreateStorage, StorageOptions};

static CHECK: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("storage_id", DataType::Utf8, false),
        Field::new("status", DataType::Utf8, false),
        Field::new("milliseconds", DataType::Float64, false),
    ]))
});

/// Returns the schema of STORAGE CHECK: one row.
pub(in crate::sql) fn check_schema() -> SchemaRef {
    Arc::clone(&CHECK)
}

pub(in crate::sql) fn create(execution: &Execution, statement: &CreateStorage) -> Result<Effect> {
    let name = &statement.name;
    validate_name("storage", name)?;
    if let Err(error) = may_manage(execution, name) {
        return Effect::denied("CREATE STORAGE", name, error);
    }
    if execution.snapshot.catalog.storage(name).is_some() {
        if statement.if_not_exists {
            return Ok(Effect::nothing(execution));
        }
        return Err(Error::new(
            ErrorKind::AlreadyExists,
            SqlState::DUPLICATE_OBJECT,
            format!("storage \"{name}\" already exists"),
        ));
    }
    let url = statement.options.get("url").cloned().unwrap_or_default();
    if url.is_empty() {
        return Err(Error::invalid(format!("storage \"{name}\" needs the option URL"))
            .hint("write file:///folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"));
    }
    let now = execution.now_us;
    let mut record = StorageRecord {
        id: Arc::from(name.as_str()),
        revision: 1,
        name: name.clone(),
        description: None,
        storage_type: String::new(),
        base_directory: url,
        credentials: None,
        options: Default::default(),
        created_at: now,
        updated_at: now,
    };
    set_options(&mut record, &statement.options)?;
    let details = json!({ "type": record.storage_type, "url": record.base_directory });
    let mut change = Change::new(execution);
    change.set.catalog.push(CatalogChange::PutStorage(record));
    change.note("CREATE STORAGE", name, Some(details), None);
    Ok(change.into())
}

pub(in crate::sql) fn alter(execution: &Execution, name: &str, options: &StorageOptions) -> Result<Effect> {
    if let Err(error) = may_manage(execution, name) {
        return Effect::denied("ALTER STORAGE", name, error);
    }
    let mut record = StorageRecord::clone(find(execution, name)?);
    let before = record.location();
    set_options(&mut record, options)?;
    let after = record.location();
    let endpoint = |location: &StorageLocation| location.options.get("endpoint").cloned();
    let is_new_place = after.url != before.url || endpoint(&after) != endpoint(&before);
    if is_new_place && execution.snapshot.cold.needs(name) {
        return Err(storage_in_use(name));
    }
    let mut tables = execution.snapshot.catalog.tables();
    if let Some(table) = tables.find(|table| is_new_place && *table.options.storage_id == *name) {
        let message = format!("storage \"{name}\" has segments of table \"{}\"", table.qualified_name());
        return Err(Error::new(ErrorKind::InvalidArgument, SqlState::DEPENDENT_OBJECTS_EXIST, message)
            .hint("its URL and ENDPOINT can change while no table uses it"));
    }
    record.revision += 1;
    record.updated_at = execution.now_us;
    let changed: Vec<&String> = options.keys().collect();
    let mut change = Change::new(execution);
    change.note("ALTER STORAGE", name, Some(json!({ "changed": changed })), None);
    change.set.catalog.push(CatalogChange::PutStorage(record));
    Ok(change.into())
}

pub(in crate::sql) fn drop(execution: &Execution, name: &str, if_exists: bool) -> Result<Effect> {
    if let Err(error) = may_manage(execution, name) {
        return Effect::denied("DROP STORAGE", name, error);
    }
    if if_exists && execution.snapshot.catalog.storage(name).is_none() {
        return Ok(Effect::nothing(execution));
    }
    find(execution, name)?;
    let dropped = CatalogChange::DropStorage(Arc::from(name));
    execution.snapshot.catalog.apply(&dropped)?;
    // What tables use is told first: the other objects go without anybody's help.
    if execution.snapshot.cold.needs(name) {
        return Err(storage_in_use(name));
    }
    let mut change = Change::new(execution);
    change.set.catalog.push(dropped);
    change.note("DROP STORAGE", name, None, None);
    Ok(change.into())
}

pub(in crate::sql) async fn check(execution: &Execution, name: &str) -> Result<Effect> {
    execution.principal.require(Role::Service, "check a storage")?;
    find(execution, name)?;
    let begun = std::time::Instant::now();
    execution.snapshot.cold.store().storage(name)?.check().await?;
    let milliseconds = begun.elapsed().as_secs_f64() * 1_000.0;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![name])),
        Arc::new(StringArray::from(vec!["ok"])),
        Arc::new(Float64Array::from(vec![milliseconds])),
    ];
    rows(execution.snapshot.seq, &CHECK, columns)
}

/// Sets options of a record, and checks that they fit together.
fn set_options(record: &mut StorageRecord, options: &StorageOptions) -> Result<()> {
    let is_local = record.base_directory.is_empty();
    for (name, value) in options {
        match name.as_str() {
            "name" => record.name.clone_from(value),
            "description" => record.description = Some(value.clone()).filter(|text| !text.is_empty()),
            _ if is_local => {
                return Err(Error::unsupported(format!("option \"{name}\" of storage \"{}\"", record.id))
                    .hint("it is a local storage in the data directory; create another storage"));
            }
            "url" => record.base_directory.clone_from(value),
            "type" => {}
            "credentials" => record.credentials = credentials(value)?,
            _ if CONNECTION_OPTIONS.contains(&name.as_str()) => {
                record.options.insert(name.clone(), value.clone());
            }
            _ => {
                return Err(Error::invalid(format!("a storage has no option \"{name}\"")).hint(
                    "options are URL, TYPE, NAME, DESCRIPTION, CREDENTIALS, ENDPOINT, REGION and ALLOW_HTTP; \
                     credentials themselves belong into the environment of the server",
                ));
            }
        }
    }
    record.storage_type = record.location().kind()?.to_owned();
    if let Some(wanted) = options.get("type").filter(|wanted| **wanted != record.storage_type) {
        return Err(Error::invalid(format!(
            "the URL of storage \"{}\" is of type {}, not \"{wanted}\"",
            record.id, record.storage_type
        )));
    }
    Ok(())
}

/// Parses the prefix of environment variables; `None` for an empty one.
fn credentials(prefix: &str) -> Result<Option<String>> {
    if !prefix.chars().all(|char| char.is_ascii_uppercase() || char.is_ascii_digit() || char == '_') {
        return Err(Error::invalid("CREDENTIALS is not the prefix of an environment variable").hint(
            "with CREDENTIALS='ARCHIVE' the server reads ARCHIVE_AWS_ACCESS_KEY_ID, \
             ARCHIVE_AWS_SECRET_ACCESS_KEY and so on",
        ));
    }
    Ok(Some(prefix.trim_end_matches('_').to_owned()).filter(|prefix| !prefix.is_empty()))
}

fn may_manage(execution: &Execution, name: &str) -> Result<()> {
    execution.principal.require(Role::Dba, format!("manage storage \"{name}\""))
}

/// Returns the storage of that id.
///
/// # Errors
/// 42704 when there is none.
pub(super) fn find<'a>(execution: &'a Execution, name: &str) -> Result<&'a StorageRecord> {
    execution.snapshot.catalog.storage(name).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            SqlState::UNDEFINED_OBJECT,
            format!("storage \"{name}\" does not exist"),
        )
        .hint("SHOW STORAGES lists them")
    })
}
