//! A table as the catalog stores it: columns with stable ids, primary key, options, and the layouts of its
//! older rows.
//!
//! Invariant: a definition is immutable. An ALTER makes the next version with
//! [`TableDefinition::next_version`]; rows written under an older version are read through
//! [`TableDefinition::layout`] and never rewritten for it. So the key never changes, and the type of a column
//! only becomes wider.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::column::ColumnDefinition;
use super::names::{validate_column_name, validate_name};
use super::options::{ScopeKind, TableKind, TableOptions};
use super::system_table::SystemTable;
use crate::access::Principal;
use crate::cold_storage::SegmentKeys;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{ColumnId, SchemaVersion, ScopeId, TableId, UserId};
use crate::storage::keys::KeyEncoder;
use crate::types::{ColumnType, is_widening};

pub use crate::storage::rows::RowLayout;

const COLUMNS_MAX: usize = 1_600;
const KEY_COLUMNS_MAX: usize = 32;

/// One version of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDefinition {
    /// Never reused, even after a DROP.
    pub id: TableId,
    /// 1 at creation, plus 1 for each change of the columns.
    pub version: SchemaVersion,
    /// 0 at creation, plus 1 for each change of the options, which keeps the version.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub revision: u32,
    /// The namespace's name.
    pub namespace: Arc<str>,
    /// The table's name in its namespace.
    pub name: Arc<str>,
    /// USER, SHARED, STREAM or SYSTEM.
    pub kind: TableKind,
    /// In the order of `SELECT *`.
    pub columns: Vec<ColumnDefinition>,
    /// In key order; empty for a table with hidden row ids.
    pub primary_key: Vec<ColumnId>,
    /// The options of the WITH clause.
    pub options: TableOptions,
    /// The id of the next added column.
    pub next_column_id: ColumnId,
    /// The first version whose rows have the layout of `columns`.
    pub layout_since: SchemaVersion,
    /// The layouts of older rows, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<RowLayout>,
    /// Microseconds since 1970 UTC.
    pub created_at: i64,
    /// Microseconds since 1970 UTC.
    pub updated_at: i64,
    /// The creator.
    pub created_by: UserId,
    /// The comment on the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

impl TableDefinition {
    /// Creates version 1 of a new table. Columns get their ids by position, whatever ids they carry; key
    /// columns become NOT NULL. `primary_key` holds positions in `columns`.
    ///
    /// # Errors
    /// Whatever [`TableDefinition::validate`] refuses.
    #[expect(clippy::too_many_arguments, reason = "a table has this many parts, each with its own type")]
    pub fn create(
        id: TableId,
        namespace: Arc<str>,
        name: Arc<str>,
        kind: TableKind,
        mut columns: Vec<ColumnDefinition>,
        primary_key: &[usize],
        options: TableOptions,
        created_by: UserId,
        created_at: i64,
    ) -> Result<Self> {
        for (column, id) in columns.iter_mut().zip(1..) {
            column.id = ColumnId(id);
            column.initial = None;
        }
        let mut key = Vec::with_capacity(primary_key.len());
        for &position in primary_key {
            let column = columns.get_mut(position).ok_or_else(|| {
                Error::internal(format!(
                    "primary key of table \"{namespace}.{name}\" names column {position}"
                ))
            })?;
            column.nullable = false;
            key.push(column.id);
        }
        let next_column_id = ColumnId(u32::try_from(columns.len()).unwrap_or(u32::MAX).saturating_add(1));
        let table = Self {
            id,
            version: SchemaVersion(1),
            revision: 0,
            namespace,
            name,
            kind,
            columns,
            primary_key: key,
            options,
            next_column_id,
            layout_since: SchemaVersion(1),
            history: Vec::new(),
            created_at,
            updated_at: created_at,
            created_by,
            comment: None,
        };
        table.validate()?;
        Ok(table)
    }

    /// Returns the next version of the table, changed by `change`. When the stored columns change, the old
    /// layout joins the history, so that older rows stay readable. `change` takes ids of added columns from
    /// `next_column_id` and advances it. It cannot change `initial`: the columns keep their initial values.
    ///
    /// # Errors
    /// What `change` returns; 0A000 when it changes the key, or a type to one that is not wider; XX000 when
    /// it reuses the id of a dropped column; and whatever [`TableDefinition::validate`] refuses.
    pub fn next_version(
        &self,
        updated_at: i64,
        change: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Self> {
        let mut next = self.clone();
        change(&mut next)?;
        next.id = self.id;
        next.version = SchemaVersion(self.version.0.saturating_add(1));
        next.updated_at = updated_at;
        next.history.clone_from(&self.history);
        next.layout_since = self.layout_since;
        next.keep_columns(self)?;
        if next.stored_columns() != self.stored_columns() {
            next.history.push(RowLayout { since: self.layout_since, columns: self.stored_columns() });
            next.layout_since = next.version;
        }
        next.validate()?;
        Ok(next)
    }

    /// Checks that rows of the version `old` can be read as rows of this one, and sets the initial values:
    /// those of `old`, cast to wider types, and those of new columns in their one form.
    fn keep_columns(&mut self, old: &Self) -> Result<()> {
        let table = old.qualified_name();
        let recreate = "create another table and copy the rows";
        if self.primary_key != old.primary_key {
            let change = format!("changing the primary key of table \"{table}\"");
            return Err(Error::unsupported(change).hint(recreate));
        }
        self.next_column_id = self.next_column_id.max(old.next_column_id);
        for column in &mut self.columns {
            let Some(before) = old.column_by_id(column.id) else {
                if column.id < old.next_column_id {
                    return Err(Error::internal(format!(
                        "column \"{}\" of table \"{table}\" has the id {} of a dropped column",
                        column.name, column.id
                    )));
                }
                column.initial = column.initial_in(column.ty)?;
                continue;
            };
            if column.ty != before.ty {
                if self.primary_key.contains(&column.id) {
                    let change =
                        format!("changing the type of key column \"{}\" of table \"{table}\"", column.name);
                    return Err(Error::unsupported(change).hint(recreate));
                }
                let change = format!(
                    "changing column \"{}\" of table \"{table}\" from {} to {}",
                    column.name, before.ty, column.ty
                );
                if !is_widening(&before.ty.arrow(), &column.ty.arrow()) {
                    return Err(Error::unsupported(change).hint(
                        "a type can only become wider: SMALLINT to INTEGER or BIGINT, INTEGER to BIGINT, \
                         REAL to DOUBLE, DECIMAL to more digits with the same scale",
                    ));
                }
            }
            column.initial = before.initial_in(column.ty)?;
        }
        Ok(())
    }

    /// Returns the table with other options and the same version: rows, segments, schemas and resume tokens
    /// do not depend on the options that may change.
    ///
    /// # Errors
    /// Whatever [`TableDefinition::validate`] refuses.
    pub fn with_options(&self, updated_at: i64, options: TableOptions) -> Result<Self> {
        let revision = self.revision.saturating_add(1);
        let next = Self { revision, updated_at, options, ..self.clone() };
        next.validate()?;
        Ok(next)
    }

    /// Returns whether one change of the columns or of the options leads from `old` to this definition.
    pub fn follows(&self, old: &Self) -> bool {
        match self.version == old.version {
            true => self.revision == old.revision.saturating_add(1) && self.has_schemas_of(old),
            false => self.version.0 == old.version.0.saturating_add(1) && self.revision == old.revision,
        }
    }

    /// Returns whether both have the same Arrow schemas.
    pub fn has_schemas_of(&self, other: &Self) -> bool {
        self.columns == other.columns
            && self.primary_key == other.primary_key
            && self.options.scope == other.options.scope
    }

    /// Returns the scope whose rows a user's statements see and write. Nothing else decides this.
    pub fn scope_for(&self, user: UserId) -> ScopeId {
        match self.options.scope {
            ScopeKind::Shared => ScopeId::SHARED,
            ScopeKind::User => ScopeId::of(user),
        }
    }

    /// Returns whether a principal may read its rows (in USER tables and some system tables, their own rows).
    pub fn is_readable_by(&self, principal: &Principal) -> bool {
        match (self.kind, self.options.scope) {
            (TableKind::System, _) => {
                principal.may_read_system()
                    || SystemTable::from_id(self.id).is_some_and(SystemTable::is_for_all)
            }
            (_, ScopeKind::User) => true,
            (_, ScopeKind::Shared) => principal.may_read_shared(self.options.access_level),
        }
    }

    /// Returns whether its hot rows are flushed. STREAM rows expire instead; most system tables store none.
    pub fn is_flushed(&self) -> bool {
        match self.kind {
            TableKind::User | TableKind::Shared => true,
            TableKind::Stream => false,
            TableKind::System => SystemTable::from_id(self.id).is_some_and(SystemTable::is_stored),
        }
    }

    /// Returns `namespace.table`, as errors and listings show it.
    pub fn qualified_name(&self) -> String {
        format!("{}.{}", self.namespace, self.name)
    }

    /// Returns the types of the key columns, in key order.
    pub fn key_types(&self) -> Vec<ColumnType> {
        self.key_columns().map(|column| column.ty).collect()
    }

    /// Returns the positions of the key columns in `columns`, in key order.
    pub fn key_positions(&self) -> Vec<usize> {
        self.primary_key.iter().filter_map(|id| self.column_position(*id)).collect()
    }

    /// Iterates over the key columns, in key order.
    pub fn key_columns(&self) -> impl Iterator<Item = &ColumnDefinition> {
        self.primary_key.iter().filter_map(|id| self.column_by_id(*id))
    }

    /// Returns whether the table has a primary key; rows without one have hidden ids.
    pub fn has_key(&self) -> bool {
        !self.primary_key.is_empty()
    }

    /// Returns how to build the keys of cold rows from the columns of segments.
    ///
    /// # Errors
    /// XX000 when a key column has a type that cannot be a key; no stored definition has one.
    pub fn segment_keys(&self) -> Result<SegmentKeys> {
        let is_scoped = self.options.scope == ScopeKind::User;
        if !self.has_key() {
            return Ok(SegmentKeys::hidden(self.id, is_scoped));
        }
        let encoder = KeyEncoder::new(&self.key_types())?;
        Ok(SegmentKeys::primary(self.id, encoder, self.primary_key.clone(), is_scoped))
    }

    /// Returns the column with that name.
    pub fn column(&self, name: &str) -> Option<&ColumnDefinition> {
        self.columns.iter().find(|column| &*column.name == name)
    }

    /// Returns the column with that id.
    pub fn column_by_id(&self, id: ColumnId) -> Option<&ColumnDefinition> {
        self.columns.iter().find(|column| column.id == id)
    }

    /// Returns the position in `columns` of the column with that id.
    pub fn column_position(&self, id: ColumnId) -> Option<usize> {
        self.columns.iter().position(|column| column.id == id)
    }

    /// Returns the stored columns of rows written under `version`; `None` for a version the table never had.
    pub fn layout(&self, version: SchemaVersion) -> Option<RowLayout> {
        if version > self.version || version.0 == 0 {
            return None;
        }
        if version >= self.layout_since {
            return Some(RowLayout { since: self.layout_since, columns: self.stored_columns() });
        }
        self.history.iter().rev().find(|layout| layout.since <= version).cloned()
    }

    /// Returns every layout that rows of the table can have, oldest first, as a row decoder expects them.
    pub fn layouts(&self) -> Vec<RowLayout> {
        let newest = RowLayout { since: self.layout_since, columns: self.stored_columns() };
        self.history.iter().cloned().chain([newest]).collect()
    }

    /// Returns the columns that older segments lack, with the first version that has them.
    pub(super) fn added_in(&self) -> HashMap<ColumnId, SchemaVersion> {
        let mut added = HashMap::new();
        for layout in self.layouts() {
            for (id, _) in layout.columns {
                added.entry(id).or_insert(layout.since);
            }
        }
        added.retain(|_, since| *since > SchemaVersion(1));
        added
    }

    fn stored_columns(&self) -> Vec<(ColumnId, ColumnType)> {
        self.columns.iter().map(|column| (column.id, column.ty)).collect()
    }

    /// Checks everything that must hold before the table is stored.
    ///
    /// # Errors
    /// 42602, 42622 for names; 42701 for a duplicate column; 42P16 for a wrong key or option; 42804, 22P02
    /// for defaults; 54000 for too many columns.
    pub fn validate(&self) -> Result<()> {
        validate_name("table", &self.name)?;
        if self.columns.is_empty() {
            return Err(self.invalid("has no columns").hint("name at least one column"));
        }
        if self.columns.len() > COLUMNS_MAX {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                format!("table \"{}\" has {} columns", self.qualified_name(), self.columns.len()),
            )
            .hint(format!("a table has at most {COLUMNS_MAX}")));
        }
        self.validate_columns()?;
        self.validate_key()?;
        self.options
            .validate(self.kind)
            .map_err(|problem| self.invalid(problem.message()).hint(problem.hint()))
    }

    fn validate_columns(&self) -> Result<()> {
        let mut names = HashSet::with_capacity(self.columns.len());
        let mut ids = HashSet::with_capacity(self.columns.len());
        for column in &self.columns {
            validate_column_name(&column.name)?;
            if !names.insert(&column.name) {
                return Err(Error::new(
                    ErrorKind::InvalidSql,
                    SqlState::DUPLICATE_COLUMN,
                    format!(
                        "column \"{}\" is named twice in table \"{}\"",
                        column.name,
                        self.qualified_name()
                    ),
                ));
            }
            if !ids.insert(column.id) || column.id >= self.next_column_id {
                return Err(Error::internal(format!(
                    "column \"{}\" of table \"{}\" has the id {} of another",
                    column.name,
                    self.qualified_name(),
                    column.id
                )));
            }
            if let Some(default) = &column.default {
                default.validate(&column.name, column.ty)?;
            }
            column.initial_value()?;
        }
        Ok(())
    }

    fn validate_key(&self) -> Result<()> {
        if self.primary_key.len() > KEY_COLUMNS_MAX {
            return Err(self
                .invalid(&format!("has {} key columns", self.primary_key.len()))
                .hint(format!("a primary key has at most {KEY_COLUMNS_MAX}")));
        }
        let mut seen = HashSet::with_capacity(self.primary_key.len());
        for id in &self.primary_key {
            let Some(column) = self.column_by_id(*id) else {
                return Err(self
                    .invalid("has a primary key column that does not exist")
                    .hint("a key column cannot be dropped; recreate the table"));
            };
            if !seen.insert(*id) {
                return Err(
                    self.invalid(&format!("names column \"{}\" twice in its primary key", column.name))
                );
            }
            if column.nullable {
                return Err(
                    self.invalid(&format!("has a primary key column \"{}\" that allows NULL", column.name))
                );
            }
            if !column.ty.can_be_key() {
                return Err(self
                    .invalid(&format!("has a primary key column \"{}\" of type {}", column.name, column.ty))
                    .hint("JSON, FILE and EMBEDDING values cannot be keys"));
            }
        }
        Ok(())
    }

    fn invalid(&self, problem: &str) -> Error {
        Error::new(
            ErrorKind::InvalidSql,
            SqlState::INVALID_TABLE_DEFINITION,
            format!("table \"{}\" {problem}", self.qualified_name()),
        )
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(revision: &u32) -> bool {
    *revision == 0
}

#[cfg(test)]
mod tests;
