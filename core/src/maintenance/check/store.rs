//! Checks the store besides its rows: catalog, change log, segment entries, and that nothing else is there.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::Problems;
use crate::change_log::{self, CommitHeader, CommitRecord, RowChange};
use crate::cold_storage;
use crate::commit::{self, Snapshot};
use crate::error::{Error, Result};
use crate::ids::{DatabaseId, TableId};
use crate::schema_registry::{SchemaRegistry, TableKind};
use crate::storage::keys::{table_and_scope, table_prefix};
use crate::storage::rows::row_seq;
use crate::storage::{Direction, KeyRange, Partition, StorageSnapshot, after_prefix};
use crate::tables::decode_images;

/// Headers of the change log that are read at once.
const HEADERS: usize = 1_024;

/// Notes problems. It blocks.
///
/// # Errors
/// Errors that prevent reading the rest.
pub(super) fn check(
    snapshot: &Snapshot,
    database: DatabaseId,
    registry: &SchemaRegistry,
    problems: &mut Problems,
) -> Result<()> {
    for table in snapshot.catalog.tables().filter(|table| table.kind != TableKind::System) {
        if let Err(error) = table.validate() {
            problems.note_error(&format!("table \"{}\"", table.qualified_name()), &error);
        }
    }
    let unknown = count_keys(&*snapshot.storage, Partition::Meta, |key| {
        !commit::is_state_key(key) && !change_log::is_floor_key(key)
    });
    note_unknown("meta", unknown, problems);
    match cold_storage::inconsistencies(&*snapshot.storage, &snapshot.cold) {
        Ok(found) => found.into_iter().for_each(|problem| problems.note(problem)),
        Err(error) => problems.note_error("the entries of the segments", &error),
    }
    check_tables(snapshot, problems);
    if let Err(error) = check_log(snapshot, database, registry, problems) {
        problems.note_error("the change log", &error);
    }
    Ok(())
}

/// Checks that all rows and segments belong to tables that exist.
fn check_tables(snapshot: &Snapshot, problems: &mut Problems) {
    let is_unknown = |table: TableId| snapshot.catalog.table_by_id(table).is_none();
    for segment in snapshot.cold.all_segments().filter(|segment| is_unknown(segment.table)) {
        problems.note(format!("segment \"{}\" belongs to a table that does not exist", segment.path));
    }
    let mut start = Some(Vec::new());
    while let Some(range) = start.take().map(|start| KeyRange { start, end: None }) {
        let mut first = None;
        let visited = snapshot.storage.visit(Partition::Rows, range, Direction::Forward, &mut |key, _| {
            first = Some(table_and_scope(key).map(|(table, _)| table));
            Ok(ControlFlow::Break(()))
        });
        match (visited, first) {
            (Err(error), _) => problems.note_error("partition \"rows\"", &error),
            (Ok(()), Some(None)) => problems.note("partition \"rows\" has a key that is too short for a row"),
            (Ok(()), Some(Some(table))) => {
                if is_unknown(table) {
                    problems.note(format!("there are rows of table {table}, which does not exist"));
                }
                start = after_prefix(&table_prefix(table));
            }
            (Ok(()), None) => {}
        }
    }
}

fn count_keys(
    storage: &dyn StorageSnapshot,
    partition: Partition,
    is_counted: impl Fn(&[u8]) -> bool,
) -> Result<u64> {
    let mut count = 0;
    storage.visit(partition, KeyRange::all(), Direction::Forward, &mut |key, _| {
        count += u64::from(is_counted(key));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(count)
}

fn note_unknown(partition: &str, unknown: Result<u64>, problems: &mut Problems) {
    match unknown {
        Ok(0) => {}
        Ok(count) => problems.note(format!("partition \"{partition}\" has {count} unknown keys")),
        Err(error) => problems.note_error(&format!("partition \"{partition}\""), &error),
    }
}

/// Checks that each commit above the floor exists once, with all its parts, and nothing else.
fn check_log(
    snapshot: &Snapshot,
    database: DatabaseId,
    registry: &SchemaRegistry,
    problems: &mut Problems,
) -> Result<()> {
    let storage = &*snapshot.storage;
    let (mut after, mut entries) = (snapshot.log_floor, 0);
    while after < snapshot.seq {
        let headers = change_log::headers(storage, after, snapshot.seq, HEADERS)?.unwrap_or_default();
        let first = headers.first().map_or(snapshot.seq.next(), |header| header.seq);
        if first != after.next() {
            problems.note(format!("the change log has no commit {}", after.next()));
        }
        after = headers.last().map_or(snapshot.seq, |header| header.seq);
        for header in &headers {
            entries += 1 + header.tables.iter().map(|table| u64::from(table.parts)).sum::<u64>();
            if header.database != database {
                problems.note(format!("commit {} of the change log belongs to another database", header.seq));
            }
            let record = change_log::read_record(storage, header.seq);
            let checked = record.and_then(|record| check_record(snapshot, registry, header, record));
            if let Err(error) = checked {
                problems.note_error(&format!("commit {} of the change log", header.seq), &error);
            }
        }
        for pair in headers.windows(2) {
            if let [one, next] = pair
                && one.seq.next() != next.seq
            {
                problems.note(format!("the change log has no commit {}", one.seq.next()));
            }
        }
    }
    match count_keys(storage, Partition::Log, |_| true) {
        Ok(count) if count != entries => {
            problems.note(format!("the change log has {count} entries, its commits have {entries}"));
        }
        Ok(_) => {}
        Err(error) => problems.note_error("the change log", &error),
    }
    Ok(())
}

/// Checks that a commit's row images are rows of their tables, and that the rows it wrote have its seq.
fn check_record(
    snapshot: &Snapshot,
    registry: &SchemaRegistry,
    header: &CommitHeader,
    record: Option<CommitRecord>,
) -> Result<()> {
    let damaged = |why: &str| Err(Error::corruption(why.to_owned()));
    let Some(record) = record else { return damaged("it cannot be found by its seq") };
    for changes in &record.tables {
        let is_own =
            |change: &RowChange| table_and_scope(&change.key) == Some((changes.table, changes.scope));
        if !changes.rows.iter().all(is_own) {
            return damaged("it has a row of another table or user");
        }
        for new in changes.rows.iter().filter_map(|change| change.new.as_ref()) {
            if row_seq(new)? != header.seq {
                return damaged("a row it wrote has another seq");
            }
        }
        if let Some(definition) = snapshot.catalog.table_by_id(changes.table) {
            let pairs = |change: &RowChange| -> Vec<(Bytes, Bytes)> {
                let images = change.old.iter().chain(&change.new);
                images.map(|image| (Bytes::clone(&change.key), Bytes::clone(image))).collect()
            };
            let pairs: Vec<(Bytes, Bytes)> = changes.rows.iter().flat_map(pairs).collect();
            decode_images(&registry.schemas(definition), pairs.iter().map(|(key, row)| (key, row)))?;
        }
    }
    Ok(())
}
