//! The tables and their schemas: the catalog, table definitions, and their memoized Arrow schemas.
//!
//! Invariant: the Arrow schema of a table version is built once, in `arrow_schema`, and only for
//! [`SchemaRegistry`]. Lookups by name belong to a snapshot's [`Catalog`], never to the registry.

mod arrow_schema;
mod catalog;
mod column;
mod definition;
mod names;
mod options;
mod records;
mod registry;
mod system_definitions;
mod system_table;

pub use catalog::Catalog;
pub use column::{ColumnDefault, ColumnDefinition};
pub use definition::{RowLayout, TableDefinition};
pub use names::{RESERVED_NAMESPACES, validate_column_name, validate_name, validate_new_namespace};
pub use options::{Durability, FlushPolicy, ScopeKind, TableKind, TableOptions};
pub use records::{
    CatalogChange, CatalogHeader, NAMESPACE_PUBLIC, NAMESPACE_SYSTEM, NamespaceRecord, StorageRecord,
    UserRecord,
};
pub use registry::{
    COLUMN_KEY, COLUMN_PLACE, COLUMN_ROW_ID, COLUMN_SEQ, COLUMN_USER, COLUMN_VALUE, RegistryCounters,
    SchemaRegistry, TableSchemas, encode_schema,
};
pub use system_definitions::system_definitions;
pub use system_table::SystemTable;
