//! Primary keys are unique: the check against cold rows, and the error for a taken key.
//!
//! Invariant: the check reads segments, so it runs before a set's turn. The sequencer reads none.

use std::collections::HashSet;

use bytes::Bytes;

use super::{RowWrite, Snapshot, TableWrite};
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::schema_registry::TableDefinition;
use crate::storage::keys::KeyEncoder;

/// Checks that no cold row of a table has one of `keys`.
///
/// # Errors
/// 23505 for a taken key, and any error of reading segments.
pub(super) async fn check_not_cold(
    snapshot: &Snapshot,
    table: &TableDefinition,
    keys: &[Bytes],
) -> Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let found = snapshot.cold.find(&snapshot.storage, table.id, &table.segment_keys()?, keys).await?;
    match keys.iter().zip(found).find(|(_, place)| place.is_some()) {
        Some((key, _)) => Err(key_is_taken(table, key)),
        None => Ok(()),
    }
}

/// Returns the keys a write inserts, except those whose rows it also deletes.
pub(super) fn inserted_keys(write: &TableWrite) -> Vec<Bytes> {
    let deleted: HashSet<&[u8]> = write
        .rows
        .iter()
        .filter_map(|row| match row {
            RowWrite::Delete { key, .. } => Some(&**key),
            _ => None,
        })
        .collect();
    let inserted = write.rows.iter().filter_map(|row| match row {
        RowWrite::Insert { key, .. } if !deleted.contains(&**key) => Some(Bytes::clone(key)),
        _ => None,
    });
    inserted.collect()
}

/// Returns the error for a key that another row of the table has.
pub(super) fn key_is_taken(table: &TableDefinition, key: &[u8]) -> Error {
    let columns: Vec<&str> = table.key_columns().map(|column| &*column.name).collect();
    let values = KeyEncoder::new(&table.key_types()).and_then(|encoder| encoder.decode(key));
    let values = values.map_or_else(
        |_| String::new(),
        |values| values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    );
    let values: String = values.chars().take(200).collect();
    Error::new(
        ErrorKind::AlreadyExists,
        SqlState::UNIQUE_VIOLATION,
        format!(
            "table \"{}\" already has a row with primary key ({}) = ({values})",
            table.qualified_name(),
            columns.join(", ")
        ),
    )
    .hint("use another key, or UPDATE the existing row")
}
