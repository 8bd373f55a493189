//! Validates a write set against the catalog and rows as of the group before, and against its own group.
//!
//! This is snapshot isolation: of two sets that change one row, each planned without the other, the first
//! wins. Rows that a plan only read are not validated, so write skew can occur: two statements may each
//! decide by rows the other changes.
//!
//! Invariant: a refused set leaves no trace. A set is accepted only if every row it updates or deletes is
//! still the one its plan read, and every key it inserts is free.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::unique_key::key_is_taken;
use super::{CommitFeed, LargeInsert, RowWrite, TableWrite};
use crate::change_log::{RowChange, RowOp, TableChanges};
use crate::cold_storage::{Manifest, Place};
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{ScopeId, SegmentId, Seq, TableId, UserId};
use crate::schema_registry::{Catalog, ScopeKind, TableDefinition};
use crate::storage::rows::{RowHeader, row_seq, set_row_seq};
use crate::storage::{Partition, StorageSnapshot, keys};

/// Keys per multi-get.
const READ_KEYS_MAX: usize = 1_024;

/// Table scopes whose last change is remembered; beyond it, the memory starts again.
const CHANGED_LEN_MAX: usize = 65_536;

/// The last change of each table and scope.
pub(super) struct LastChanges {
    seqs: HashMap<(TableId, ScopeId), Seq>,
    /// Assumed for table scopes that are not in the map.
    others: Seq,
}

impl LastChanges {
    pub(super) fn unknown_before(seq: Seq) -> Self {
        Self { seqs: HashMap::new(), others: seq }
    }

    pub(super) fn note(&mut self, table: TableId, scope: ScopeId, seq: Seq) {
        if self.seqs.len() >= CHANGED_LEN_MAX {
            self.seqs.clear();
            self.others = seq;
        }
        self.seqs.insert((table, scope), seq);
    }

    fn changed_after(&self, table: TableId, scope: ScopeId, seq: Seq) -> bool {
        *self.seqs.get(&(table, scope)).unwrap_or(&self.others) > seq
    }
}

/// The rows that the group's sets changed so far: the seq of the row under a key; `None` if deleted.
pub(super) struct GroupState<'a> {
    storage: &'a dyn StorageSnapshot,
    last_changes: &'a LastChanges,
    /// Rows that have expired by now count as deleted, even before the commit that deletes them.
    now_us: i64,
    rows: HashMap<Bytes, Option<Seq>>,
    /// Cold rows overwritten or deleted so far by the sets of the group.
    marks: HashSet<Place>,
    /// Those of `marks` that the current set added.
    new_marks: Vec<Place>,
    /// The entries of `rows` to restore if the current set is refused.
    undo: Vec<(Bytes, Option<Option<Seq>>)>,
}

impl<'a> GroupState<'a> {
    /// Returns the state of an empty group over the rows in `storage`, which contain the changes of
    /// `last_changes`.
    pub(super) fn new(storage: &'a dyn StorageSnapshot, last_changes: &'a LastChanges, now_us: i64) -> Self {
        Self {
            storage,
            last_changes,
            now_us,
            rows: HashMap::new(),
            marks: HashSet::new(),
            new_marks: Vec::new(),
            undo: Vec::new(),
        }
    }

    /// Validates the rows of a set and turns them into the changes of commit `seq`. They stay in the state;
    /// [`GroupState::rollback`] can undo them until the next call. After an error the state is unchanged.
    /// `planned` holds the seqs of the set's snapshot and of the check of its inserted keys among cold rows.
    ///
    /// # Errors
    /// 23505 when an inserted key is taken; 40001 when a written row or its table changed since the read, or
    /// when a row moved.
    pub(super) fn apply(
        &mut self,
        tables: Vec<TableWrite>,
        catalog: &Catalog,
        cold: &Manifest,
        planned: (Seq, Seq),
        seq: Seq,
    ) -> Result<Vec<TableChanges>> {
        self.undo.clear();
        self.new_marks.clear();
        self.apply_tables(tables, catalog, cold, planned, seq).inspect_err(|_| self.rollback())
    }

    /// Validates a large INSERT, whose keys were free as of `checked`. `feed` ends before this group.
    ///
    /// # Errors
    /// 23505 when a key is taken; 40001 when the table or its segments changed since, or may have.
    pub(super) fn check_large(
        &self,
        insert: &LargeInsert,
        catalog: &Catalog,
        cold: &Manifest,
        checked: Seq,
        feed: &CommitFeed,
    ) -> Result<()> {
        let table = &insert.table;
        check_table(table, insert.scope, catalog)?;
        insert.check_scope()?;
        if !table.has_key() {
            return Ok(());
        }
        if cold.moved(table.id) > checked {
            return Err(segments_have_changed(table));
        }
        if self.last_changes.changed_after(table.id, insert.scope, checked) {
            // Without the rows that changed since, the keys must be looked up again.
            let since = feed.after(checked).ok_or_else(|| segments_have_changed(table))?;
            if since.iter().any(|record| record.is_only_logged(table.id, insert.scope)) {
                return Err(segments_have_changed(table));
            }
            insert.check_free_of_commits(&since)?;
        }
        let mut taken = self.rows.iter().filter(|(_, state)| state.is_some()).map(|(key, _)| key);
        match taken.find(|key| insert.has(key)) {
            Some(key) => Err(key_is_taken(table, key)),
            None => Ok(()),
        }
    }

    /// Returns the cold rows that the last [`GroupState::apply`] changed or deleted.
    pub(super) fn new_marks(&self) -> &[Place] {
        &self.new_marks
    }

    /// Returns the positions of a segment that the sets of the group have marked.
    pub(super) fn marked_in(&self, segment: SegmentId) -> impl Iterator<Item = u32> {
        self.marks.iter().filter(move |place| place.segment == segment).map(|place| place.position)
    }

    /// Whether a set of the group changed the row under a key.
    pub(super) fn has_changed(&self, key: &Bytes) -> bool {
        self.rows.contains_key(key)
    }

    /// Undoes the last [`GroupState::apply`].
    pub(super) fn rollback(&mut self) {
        for place in self.new_marks.drain(..) {
            self.marks.remove(&place);
        }
        for (key, before) in self.undo.drain(..).rev() {
            match before {
                Some(state) => self.rows.insert(key, state),
                None => self.rows.remove(&key),
            };
        }
    }

    fn apply_tables(
        &mut self,
        tables: Vec<TableWrite>,
        catalog: &Catalog,
        cold: &Manifest,
        planned: (Seq, Seq),
        seq: Seq,
    ) -> Result<Vec<TableChanges>> {
        let mut changed: Vec<TableChanges> = Vec::with_capacity(tables.len());
        let mut ordinal = 0;
        for write in tables {
            if write.rows.is_empty() {
                continue;
            }
            check_table(&write.table, write.scope, catalog)?;
            let (table, scope) = (Arc::clone(&write.table), write.scope);
            let rows = self.apply_rows(write, cold, planned, seq, &mut ordinal)?;
            let same = changed.iter_mut().find(|changes| changes.table == table.id && changes.scope == scope);
            match same {
                Some(changes) => changes.rows.extend(rows),
                None => changed.push(TableChanges { table: table.id, version: table.version, scope, rows }),
            }
        }
        Ok(changed)
    }

    fn apply_rows(
        &mut self,
        write: TableWrite,
        cold: &Manifest,
        (read_seq, cold_checked): (Seq, Seq),
        seq: Seq,
        ordinal: &mut u32,
    ) -> Result<Vec<RowChange>> {
        let TableWrite { table, scope, rows } = write;
        let moved = cold.moved(table.id);
        let target = WriteTarget {
            table: &table,
            prefix: keys::scope_prefix(table.id, scope),
            unchanged: !self.last_changes.changed_after(table.id, scope, read_seq) && moved <= read_seq,
            cold,
            flushed: cold.flushed(table.id),
            unknown_keys: moved > cold_checked,
        };
        let stored = self.read_stored(&target, &rows)?;
        let mut stored = stored.into_iter();
        let mut changes = Vec::with_capacity(rows.len());
        for row in rows {
            let before = if target.must_read(&row) { stored.next().flatten() } else { None };
            changes.push(self.apply_row(&target, scope, row, before, seq, ordinal)?);
        }
        Ok(changes)
    }

    /// Returns the stored rows under the keys that must be read, in order.
    fn read_stored(&self, target: &WriteTarget<'_>, rows: &[RowWrite]) -> Result<Vec<Option<StoredRow>>> {
        let keys: Vec<Bytes> =
            rows.iter().filter(|row| target.must_read(row)).filter_map(|row| key_of(row).cloned()).collect();
        let mut stored = Vec::with_capacity(keys.len());
        for some in keys.chunks(READ_KEYS_MAX) {
            for found in self.storage.multi_get(Partition::Rows, some)? {
                let row = found.map(|row| StoredRow::read(row, self.now_us)).transpose()?;
                // Flushed rows only wait for their deletion; ignore them.
                stored.push(row.filter(|row| row.seq > target.flushed));
            }
        }
        Ok(stored)
    }

    fn apply_row(
        &mut self,
        target: &WriteTarget<'_>,
        scope: ScopeId,
        row: RowWrite,
        stored: Option<StoredRow>,
        seq: Seq,
        ordinal: &mut u32,
    ) -> Result<RowChange> {
        match row {
            RowWrite::Insert { key, row } => {
                target.check_key(&key)?;
                if target.unknown_keys {
                    return Err(target.moved());
                }
                // What the group did to the key is newer than what is stored.
                match stored.filter(|_| !self.rows.contains_key(&key)) {
                    // Followers of the log still have the expired row: an update, not an insert.
                    Some(StoredRow { expired: Some(old), .. }) => {
                        self.set(&key, Some(seq));
                        Ok(RowChange {
                            op: RowOp::Update,
                            key,
                            old: Some(old),
                            new: Some(stamped(row, seq)?),
                        })
                    }
                    Some(_) => Err(target.taken(&key)),
                    None if self.rows.get(&key).is_some_and(Option::is_some) => Err(target.taken(&key)),
                    None => {
                        self.set(&key, Some(seq));
                        Ok(RowChange { op: RowOp::Insert, key, old: None, new: Some(stamped(row, seq)?) })
                    }
                }
            }
            RowWrite::Append { row } => {
                if target.table.has_key() {
                    return Err(Error::internal("a row for a table with a primary key has no key"));
                }
                let key = keys::hidden_key(target.table.id, scope, seq, *ordinal);
                *ordinal =
                    ordinal.checked_add(1).ok_or_else(|| Error::internal("a commit has too many rows"))?;
                Ok(RowChange { op: RowOp::Insert, key: key.into(), old: None, new: Some(stamped(row, seq)?) })
            }
            RowWrite::Update { key, expected, old, row, place } => {
                let seen = SeenRow { key: &key, expected, old: &old, place };
                self.check_unchanged(target, seen, stored.map(|stored| stored.seq))?;
                self.set(&key, Some(seq));
                Ok(RowChange { op: RowOp::Update, key, old: Some(old), new: Some(stamped(row, seq)?) })
            }
            RowWrite::Delete { key, expected, old, place } => {
                let seen = SeenRow { key: &key, expected, old: &old, place };
                self.check_unchanged(target, seen, stored.map(|stored| stored.seq))?;
                self.set(&key, None);
                Ok(RowChange { op: RowOp::Delete, key, old: Some(old), new: None })
            }
        }
    }

    /// Checks that the row a plan read is still there, and claims its place if it is cold.
    fn check_unchanged(
        &mut self,
        target: &WriteTarget<'_>,
        seen: SeenRow<'_>,
        stored: Option<Seq>,
    ) -> Result<()> {
        let SeenRow { key, expected, old, place } = seen;
        target.check_key(key)?;
        if row_seq(old)? != expected {
            return Err(Error::internal("the old image of a row is not the row that was read"));
        }
        if let Some(place) = place {
            return self.claim(target, place);
        }
        if expected <= target.flushed {
            return Err(target.moved());
        }
        // Nothing in the table changed since the plan read it, so the row it read is the stored one.
        let stored = if target.unchanged { Some(expected) } else { stored };
        if self.current(key, stored) == Some(expected) {
            return Ok(());
        }
        Err(Error::conflict(format!(
            "a row of table \"{}\" was changed by another commit",
            target.table.qualified_name()
        )))
    }

    /// Marks a cold row. Cold rows never change: one is deleted when it is marked or its segment is removed.
    fn claim(&mut self, target: &WriteTarget<'_>, place: Place) -> Result<()> {
        if target.cold.segment(target.table.id, place.segment).is_none() {
            return Err(target.moved());
        }
        if self.marks.contains(&place)
            || (!target.unchanged && target.cold.is_deleted(self.storage, target.table.id, place)?)
        {
            return Err(Error::conflict(format!(
                "a row of table \"{}\" was changed by another commit",
                target.table.qualified_name()
            )));
        }
        self.marks.insert(place);
        self.new_marks.push(place);
        Ok(())
    }

    fn current(&self, key: &Bytes, stored: Option<Seq>) -> Option<Seq> {
        self.rows.get(key).copied().unwrap_or(stored)
    }

    fn set(&mut self, key: &Bytes, state: Option<Seq>) {
        let before = self.rows.insert(Bytes::clone(key), state);
        self.undo.push((Bytes::clone(key), before));
    }
}

/// The row a plan read.
struct SeenRow<'a> {
    key: &'a Bytes,
    expected: Seq,
    old: &'a [u8],
    place: Option<Place>,
}

/// The row stored under a key.
struct StoredRow {
    seq: Seq,
    /// The row, if it has expired.
    expired: Option<Bytes>,
}

impl StoredRow {
    fn read(row: Bytes, now_us: i64) -> Result<Self> {
        let (header, _) = RowHeader::read(&row)?;
        let expired = header.expires_at.is_some_and(|at| at <= now_us);
        Ok(Self { seq: header.seq, expired: expired.then_some(row) })
    }
}

/// The table and scope whose rows are validated.
struct WriteTarget<'a> {
    table: &'a TableDefinition,
    prefix: [u8; keys::SCOPE_PREFIX_BYTES],
    /// Whether nothing in it changed since the set was planned.
    unchanged: bool,
    cold: &'a Manifest,
    /// Stored rows up to this seq are in segments.
    flushed: Seq,
    /// Whether rows became cold since the keys of inserts were looked up among cold rows.
    unknown_keys: bool,
}

impl WriteTarget<'_> {
    /// Inserts always check that their key is free: the plan may not have.
    fn must_read(&self, row: &RowWrite) -> bool {
        match row {
            RowWrite::Insert { .. } => true,
            RowWrite::Update { place, .. } | RowWrite::Delete { place, .. } => {
                !self.unchanged && place.is_none()
            }
            RowWrite::Append { .. } => false,
        }
    }

    /// Second isolation check: no plan, however wrong, writes into another table or scope.
    fn check_key(&self, key: &[u8]) -> Result<()> {
        if key.starts_with(&self.prefix) {
            return Ok(());
        }
        Err(Error::internal(format!(
            "a row key does not belong to table \"{}\"",
            self.table.qualified_name()
        )))
    }

    fn moved(&self) -> Error {
        segments_have_changed(self.table)
    }

    fn taken(&self, key: &[u8]) -> Error {
        key_is_taken(self.table, key)
    }
}

fn segments_have_changed(table: &TableDefinition) -> Error {
    let name = table.qualified_name();
    Error::conflict(format!("rows or segments of table \"{name}\" were added or moved by another commit"))
}

fn key_of(row: &RowWrite) -> Option<&Bytes> {
    match row {
        RowWrite::Insert { key, .. } | RowWrite::Update { key, .. } | RowWrite::Delete { key, .. } => {
            Some(key)
        }
        RowWrite::Append { .. } => None,
    }
}

fn stamped(mut row: Vec<u8>, seq: Seq) -> Result<Bytes> {
    set_row_seq(&mut row, seq)?;
    Ok(Bytes::from(row))
}

fn check_table(table: &TableDefinition, scope: ScopeId, catalog: &Catalog) -> Result<()> {
    match catalog.table_by_id(table.id) {
        Some(current) if (current.version, current.revision) == (table.version, table.revision) => {}
        _ => {
            return Err(Error::conflict(format!(
                "table \"{}\" was altered or dropped by another commit",
                table.qualified_name()
            )));
        }
    }
    match (table.options.scope, scope) {
        (ScopeKind::Shared, ScopeId::SHARED) => Ok(()),
        (ScopeKind::User, ScopeId(user)) if scope != ScopeId::SHARED => match catalog.user(UserId(user)) {
            Some(_) => Ok(()),
            None => Err(Error::new(
                ErrorKind::Unauthenticated,
                SqlState::INVALID_AUTHORIZATION,
                "the user who owns these rows no longer exists",
            )),
        },
        _ => Err(Error::internal(format!(
            "table \"{}\" was written in the wrong scope",
            table.qualified_name()
        ))),
    }
}
