//! The memo of Arrow schemas: for each (table, version) one set of `SchemaRef`s and one encoded schema
//! message, shared by table providers, planner, FlightInfo, prepared statements and streams.
//!
//! Invariant: a schema is built at most once per version, and callers always get the same allocation, so
//! "same schema" is a pointer comparison. A hit costs one map lookup and one `Arc::clone`.

use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions};
use bytes::Bytes;
use dashmap::DashMap;

use super::arrow_schema::{self, FieldInterner, build, is_visible};
pub use super::arrow_schema::{
    COLUMN_KEY, COLUMN_PLACE, COLUMN_ROW_ID, COLUMN_SEQ, COLUMN_USER, COLUMN_VALUE,
};
use super::definition::TableDefinition;
use crate::cold_storage::{ReadColumn, ReadSchema};
use crate::error::Result;
use crate::ids::{SchemaVersion, TableId};

/// The marker and the length before the flatbuffer of a schema message.
const PREFIX_BYTES: usize = 8;
/// The size of a schema message is a multiple of this.
const ALIGNMENT_BYTES: usize = 64;

/// The schemas of one version of a table.
pub struct TableSchemas {
    /// The definition the schemas were built from.
    pub definition: Arc<TableDefinition>,
    /// The columns that `SELECT *` and every client see.
    pub visible: SchemaRef,
    /// Visible and `_seq` (Int64, never NULL).
    pub full: SchemaRef,
    write: OnceLock<SchemaRef>,
    segment: OnceLock<Arc<ReadSchema>>,
    visible_ipc: OnceLock<Bytes>,
    encodings: Arc<AtomicU64>,
}

impl TableSchemas {
    /// Returns the schema that UPDATE and DELETE read: full, `_key` and `_value` (Binary, never NULL),
    /// `_place` (Int64). It is built at the first call and reused; most tables are read more than changed.
    pub fn write(&self) -> &SchemaRef {
        self.write.get_or_init(|| arrow_schema::write(&self.full))
    }

    /// Returns the columns of segments: full and the system columns of a cold row's key. They are built once
    /// too. Segments of every version are read in these columns.
    ///
    /// # Errors
    /// 22P02 when the initial value of a column does not have its type, which no stored definition has.
    pub fn segment(&self) -> Result<&Arc<ReadSchema>> {
        if let Some(built) = self.segment.get() {
            return Ok(built);
        }
        let built = Arc::new(arrow_schema::segment(&self.full, &self.definition)?);
        Ok(self.segment.get_or_init(|| built))
    }

    /// Returns the visible schema as one encapsulated IPC message: continuation marker, length, flatbuffer.
    /// It is encoded at the first call and then reused.
    pub fn visible_ipc(&self) -> Bytes {
        let message = self.visible_ipc.get_or_init(|| {
            self.encodings.fetch_add(1, Ordering::Relaxed);
            encode_schema(&self.visible)
        });
        message.clone()
    }

    /// Returns the same schemas for a table whose options changed.
    fn with_definition(&self, definition: &Arc<TableDefinition>) -> Self {
        Self {
            definition: Arc::clone(definition),
            visible: Arc::clone(&self.visible),
            full: Arc::clone(&self.full),
            write: OnceLock::from(Arc::clone(self.write())),
            segment: self
                .segment()
                .map_or_else(|_| OnceLock::new(), |built| OnceLock::from(Arc::clone(built))),
            visible_ipc: OnceLock::from(self.visible_ipc()),
            encodings: Arc::clone(&self.encodings),
        }
    }

    fn bytes(&self) -> usize {
        let segment = self.segment.get().map(|segment| segment.schema());
        let schemas = [Some(&self.visible), Some(&self.full), self.write.get(), segment];
        let fields: usize = schemas.iter().flatten().map(|schema| schema.fields().len()).sum();
        let schemas = schemas.iter().flatten().count() * (size_of::<Schema>() + 4 * size_of::<usize>());
        let message = self.visible_ipc.get().map_or(0, Bytes::len);
        let columns = segment.map_or(0, |segment| segment.fields().len() * size_of::<ReadColumn>());
        let entry = size_of::<Self>() + size_of::<(Key, Arc<Self>)>();
        entry + schemas + fields * size_of::<usize>() + columns + message
    }
}

impl fmt::Debug for TableSchemas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableSchemas")
            .field("table", &self.definition.qualified_name())
            .field("version", &self.definition.version)
            .finish_non_exhaustive()
    }
}

/// Encodes a schema as one encapsulated IPC message. It has the bytes that arrow-ipc's writers produce:
///
/// ```text
/// FF FF FF FF | length u32 LE | flatbuffer, filled with zeros until the message has a multiple of 64 bytes
/// ```
pub fn encode_schema(schema: &Schema) -> Bytes {
    let options = IpcWriteOptions::default();
    let mut tracker = DictionaryTracker::new(false);
    let flatbuffer = IpcDataGenerator::default()
        .schema_to_bytes_with_dictionary_tracker(schema, &mut tracker, &options)
        .ipc_message;
    let message_bytes = (PREFIX_BYTES + flatbuffer.len()).next_multiple_of(ALIGNMENT_BYTES);
    let mut message = Vec::with_capacity(message_bytes);
    message.extend_from_slice(&[0xff; 4]);
    message.extend_from_slice(&u32::try_from(message_bytes - PREFIX_BYTES).unwrap_or(u32::MAX).to_le_bytes());
    message.extend_from_slice(&flatbuffer);
    message.resize(message_bytes, 0);
    message.into()
}

type Key = (TableId, SchemaVersion);

/// Counters of the registry since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegistryCounters {
    /// Lookups that found their schemas.
    pub hits: u64,
    /// Lookups that did not.
    pub misses: u64,
    /// Schemas built; equals misses except for racing lookups.
    pub builds: u64,
    /// Schema messages encoded.
    pub encodings: u64,
    /// Versions memoized now.
    pub entries: usize,
    /// About how many bytes they take besides the definitions.
    pub bytes: usize,
}

/// The single source of the tables' Arrow schemas.
#[derive(Debug, Default)]
pub struct SchemaRegistry {
    schemas: DashMap<Key, Arc<TableSchemas>>,
    interner: FieldInterner,
    hits: ShardedCounter,
    misses: AtomicU64,
    builds: AtomicU64,
    encodings: Arc<AtomicU64>,
}

impl SchemaRegistry {
    /// Creates an empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the schemas of a table version; builds them if they are not memoized.
    pub fn schemas(&self, definition: &Arc<TableDefinition>) -> Arc<TableSchemas> {
        let key = (definition.id, definition.version);
        if let Some(found) = self.schemas.get(&key)
            && describes(&found, definition)
        {
            self.hits.increment();
            return Arc::clone(&found);
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        self.build(key, definition)
    }

    /// Returns the memoized schemas if `schema`, the schema of a query over `definition`, equals the visible
    /// one; `None` if the query changes names, types or order.
    pub fn match_visible(
        &self,
        schema: &Schema,
        definition: &Arc<TableDefinition>,
    ) -> Option<Arc<TableSchemas>> {
        is_visible(schema, definition).then(|| self.schemas(definition))
    }

    /// Removes all versions of a table. Holders of their schemas keep them.
    pub fn invalidate(&self, table: TableId) {
        self.schemas.retain(|(id, _), _| *id != table);
        self.interner.shrink();
    }

    /// Removes the versions of a table before `version`.
    pub fn invalidate_before(&self, table: TableId, version: SchemaVersion) {
        self.schemas.retain(|(id, old), _| *id != table || *old >= version);
        self.interner.shrink();
    }

    /// Returns the counters. The call walks all entries: use it for statistics, not in hot paths.
    pub fn counters(&self) -> RegistryCounters {
        RegistryCounters {
            hits: self.hits.sum(),
            misses: self.misses.load(Ordering::Relaxed),
            builds: self.builds.load(Ordering::Relaxed),
            encodings: self.encodings.load(Ordering::Relaxed),
            entries: self.schemas.len(),
            bytes: self.schemas.iter().map(|entry| entry.bytes()).sum::<usize>() + self.interner.bytes(),
        }
    }

    /// Holds the entry's lock while building, so only one of several racing lookups builds.
    fn build(&self, key: Key, definition: &Arc<TableDefinition>) -> Arc<TableSchemas> {
        let mut entry = self.schemas.entry(key).or_insert_with(|| self.new_schemas(definition));
        if !describes(&entry, definition) {
            *entry = match entry.definition.has_schemas_of(definition) {
                true => Arc::new(entry.with_definition(definition)),
                false => self.new_schemas(definition),
            };
        }
        Arc::clone(&entry)
    }

    fn new_schemas(&self, definition: &Arc<TableDefinition>) -> Arc<TableSchemas> {
        self.builds.fetch_add(1, Ordering::Relaxed);
        let built = build(definition, &self.interner);
        Arc::new(TableSchemas {
            definition: Arc::clone(definition),
            visible: built.visible,
            full: built.full,
            write: OnceLock::new(),
            segment: OnceLock::new(),
            visible_ipc: OnceLock::new(),
            encodings: Arc::clone(&self.encodings),
        })
    }
}

/// Returns whether memoized schemas belong to `definition`. A DDL plan that lost a conflict may have built
/// schemas of a version that the catalog then gave to other columns.
fn describes(schemas: &TableSchemas, definition: &Arc<TableDefinition>) -> bool {
    Arc::ptr_eq(&schemas.definition, definition) || *schemas.definition == **definition
}

const COUNTER_SHARDS: usize = 16;

/// A counter that many threads increment without sharing a cache line.
#[derive(Debug, Default)]
struct ShardedCounter {
    shards: [PaddedCounter; COUNTER_SHARDS],
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct PaddedCounter(AtomicU64);

impl ShardedCounter {
    fn increment(&self) {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static SHARD: usize = THREADS.fetch_add(1, Ordering::Relaxed) % COUNTER_SHARDS;
        }
        let shard = SHARD.try_with(|shard| *shard).unwrap_or_default();
        if let Some(counter) = self.shards.get(shard) {
            counter.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn sum(&self) -> u64 {
        self.shards.iter().map(|counter| counter.0.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests;
