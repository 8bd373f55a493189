//! Builds the Arrow schemas of a table version. Only `registry` calls it, once per version.
//!
//! The schemas' columns, in order:
//! - *visible*: the table's columns, as `SELECT *` and every client sees them;
//! - *full*: visible and `_seq` (Int64, never NULL), the commit that wrote the row;
//! - *write*: full, `_key` and `_value` (both Binary, never NULL), the stored bytes of the row, and `_place`
//!   (Int64), the position of a cold row.
//!
//! Segments have the full schema's columns, then `_user_id` (Int64, never NULL) if each user has their own
//! rows, then `_row_id` (FixedSizeBinary(12), never NULL) if there is no primary key. In segments of a large
//! INSERT `_seq` inside the object is 0; ignore it. Segments also have the ids of their columns; see
//! `cold_storage::layout`.
//!
//! Invariant: equal fields of different tables share one allocation, so many similar tables stay cheap.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use dashmap::DashMap;

use super::definition::TableDefinition;
use super::options::ScopeKind;
pub use crate::cold_storage::COLUMN_SEQ;
use crate::cold_storage::{
    AbsentColumn, COLUMN_ID_ROW, COLUMN_ID_SEQ, COLUMN_ID_USER, ReadColumn, ReadSchema,
};
use crate::error::Result;
use crate::ids::ColumnId;
use crate::types::{ColumnType, DATA_TYPE_METADATA_KEY};

/// The stored key of the row.
pub const COLUMN_KEY: &str = "_key";
/// The stored value of the row.
pub const COLUMN_VALUE: &str = "_value";
/// The position of a cold row; NULL for a hot one.
pub const COLUMN_PLACE: &str = "_place";
/// The owner's number, in segments of tables with user scope.
pub const COLUMN_USER: &str = "_user_id";
/// The hidden key, in segments of tables without a primary key.
pub const COLUMN_ROW_ID: &str = "_row_id";

/// The schemas of one table version.
pub(super) struct BuiltSchemas {
    pub(super) visible: SchemaRef,
    pub(super) full: SchemaRef,
}

/// Returns one allocation for equal fields.
#[derive(Debug, Default)]
pub(super) struct FieldInterner {
    fields: DashMap<(Arc<str>, ColumnType, bool), FieldRef>,
}

impl FieldInterner {
    fn field(&self, name: &Arc<str>, ty: ColumnType, nullable: bool) -> FieldRef {
        let entry = self.fields.entry((Arc::clone(name), ty, nullable));
        Arc::clone(&entry.or_insert_with(|| Arc::new(new_field(name, ty, nullable))))
    }

    /// Removes fields that no schema uses any more.
    pub(super) fn shrink(&self) {
        self.fields.retain(|_, field| Arc::strong_count(field) > 1);
    }

    /// Returns about how many bytes the fields take.
    pub(super) fn bytes(&self) -> usize {
        let entry = size_of::<((Arc<str>, ColumnType, bool), FieldRef)>()
            + size_of::<Field>()
            + 2 * size_of::<usize>();
        self.fields.iter().map(|field| entry + field.name().len() + metadata_bytes(&field)).sum()
    }
}

fn metadata_bytes(field: &Field) -> usize {
    // A hash map that is not empty has at least four slots.
    if field.metadata().is_empty() { 0 } else { 4 * size_of::<(String, String)>() + 48 }
}

fn new_field(name: &str, ty: ColumnType, nullable: bool) -> Field {
    let field = Field::new(name, ty.arrow(), nullable);
    if !ty.needs_metadata() {
        return field;
    }
    field.with_metadata([(DATA_TYPE_METADATA_KEY.to_owned(), ty.sql_name())].into())
}

/// Builds the schemas of `definition`.
pub(super) fn build(definition: &TableDefinition, interner: &FieldInterner) -> BuiltSchemas {
    let visible: Vec<FieldRef> = definition
        .columns
        .iter()
        .map(|column| interner.field(&column.name, column.ty, column.nullable))
        .collect();
    let mut full = visible.clone();
    full.push(interner.field(&Arc::from(COLUMN_SEQ), ColumnType::BigInt, false));
    let schema = |fields: Vec<FieldRef>| Arc::new(Schema::new(Fields::from(fields)));
    BuiltSchemas { visible: schema(visible), full: schema(full) }
}

/// The system columns that only some schemas have; all tables share one allocation per column.
struct SystemFields {
    key: FieldRef,
    value: FieldRef,
    place: FieldRef,
    user: FieldRef,
    row_id: FieldRef,
}

static SYSTEM_FIELDS: LazyLock<SystemFields> = LazyLock::new(|| {
    let field = |name: &str, data_type, nullable| Arc::new(Field::new(name, data_type, nullable));
    SystemFields {
        key: field(COLUMN_KEY, DataType::Binary, false),
        value: field(COLUMN_VALUE, DataType::Binary, false),
        place: field(COLUMN_PLACE, DataType::Int64, true),
        user: field(COLUMN_USER, DataType::Int64, false),
        row_id: field(COLUMN_ROW_ID, DataType::FixedSizeBinary(12), false),
    }
});

/// Extends a full schema to the write schema.
pub(super) fn write(full: &Schema) -> SchemaRef {
    let SystemFields { key, value, place, .. } = &*SYSTEM_FIELDS;
    extended(full, [key, value, place])
}

/// Extends a full schema to that of segments, with the ids of all columns.
///
/// # Errors
/// 22P02 when the initial value of a column does not have its type.
pub(super) fn segment(full: &Schema, definition: &TableDefinition) -> Result<ReadSchema> {
    let SystemFields { user, row_id, .. } = &*SYSTEM_FIELDS;
    let user = (definition.options.scope == ScopeKind::User).then_some((user, COLUMN_ID_USER));
    let row_id = (!definition.has_key()).then_some((row_id, COLUMN_ID_ROW));
    let more: Vec<(&FieldRef, ColumnId)> = user.into_iter().chain(row_id).collect();
    let mut columns = Vec::with_capacity(full.fields().len() + more.len());
    let since = definition.added_in();
    for column in &definition.columns {
        let absent = match since.get(&column.id) {
            Some(since) => Some(AbsentColumn { since: *since, value: column.initial_value()? }),
            None => None,
        };
        columns.push(ReadColumn { id: column.id, absent });
    }
    let system = more.iter().map(|(_, id)| *id);
    columns.extend([COLUMN_ID_SEQ].into_iter().chain(system).map(|id| ReadColumn { id, absent: None }));
    ReadSchema::new(extended(full, more.iter().map(|(field, _)| *field)), columns)
}

fn extended<'a>(full: &'a Schema, more: impl IntoIterator<Item = &'a FieldRef>) -> SchemaRef {
    let fields = full.fields().iter().chain(more).map(Arc::clone);
    Arc::new(Schema::new(fields.collect::<Fields>()))
}

/// Returns whether `schema` is the visible schema of `definition`, without building one.
pub(super) fn is_visible(schema: &Schema, definition: &TableDefinition) -> bool {
    schema.metadata().is_empty()
        && schema.fields().len() == definition.columns.len()
        && schema.fields().iter().zip(&definition.columns).all(|(field, column)| {
            field.name() == &*column.name
                && field.is_nullable() == column.nullable
                && is_arrow_form(field.data_type(), column.ty)
                && match field.metadata().get(DATA_TYPE_METADATA_KEY) {
                    Some(name) => column.ty.needs_metadata() && *name == column.ty.sql_name(),
                    None => !column.ty.needs_metadata(),
                }
                && field.metadata().len() <= 1
        })
}

fn is_arrow_form(actual: &DataType, ty: ColumnType) -> bool {
    *actual == ty.arrow()
}
