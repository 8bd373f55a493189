//! What tables there are and what they look like: the catalog, table definitions, and their memoized Arrow schemas.
//!
//! Invariant: the Arrow schema of a table version is built once, in `arrow_schema`, and only [`SchemaRegistry`] asks for it.
//! Name-to-id lookups belong to the [`Catalog`] of a snapshot, never to the registry.

mod arrow_schema;
mod catalog;
mod definition;
mod names;
mod registry;
mod system_definitions;

pub use catalog::{
    Catalog, CatalogChange, CatalogHeader, NamespaceRecord, StorageRecord, UserRecord, NAMESPACE_PUBLIC, NAMESPACE_SYSTEM,
    STORAGE_LOCAL,
};
pub use definition::{
    ColumnDefault, ColumnDefinition, Durability, FlushPolicy, RowLayout, ScopeKind, TableDefinition, TableKind, TableOptions,
};
pub use names::{RESERVED_NAMESPACES, validate_column_name, validate_name, validate_new_namespace};
pub use registry::{
    COLUMN_KEY, COLUMN_SEQ, COLUMN_VALUE, RegistryCounters, SchemaRegistry, TableSchemas,
};
pub use system_definitions::{SystemTable, system_definitions};
