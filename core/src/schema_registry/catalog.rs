//! All namespaces, tables, users and storages as of one commit.
//!
//! Invariant: a catalog never changes. [`Catalog::apply`] creates the next one and shares unchanged parts
//! (persistent maps), so a snapshot's catalog costs one pointer. It refuses changes planned on an older
//! catalog.

use std::sync::Arc;

use imbl::{HashMap, OrdMap};

use super::definition::TableDefinition;
use super::names::{validate_name, validate_new_namespace};
use super::options::TableKind;
use super::records::{
    CatalogChange, CatalogHeader, NAMESPACE_PUBLIC, NAMESPACE_SYSTEM, NamespaceRecord, StorageRecord,
    UserRecord,
};
use super::system_definitions::system_definitions;
use crate::cold_storage::STORAGE_LOCAL;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{NamespaceId, SchemaVersion, TableId, UserId};

const PUBLIC_ID: NamespaceId = NamespaceId(1);
const SYSTEM_ID: NamespaceId = NamespaceId(2);
const FIRST_NAMESPACE_ID: NamespaceId = NamespaceId(10);

#[derive(Clone, Debug)]
struct Namespace {
    record: Arc<NamespaceRecord>,
    tables: OrdMap<Arc<str>, Arc<TableDefinition>>,
}

/// All namespaces, tables, users and storages. A clone costs a few pointers.
#[derive(Clone, Debug)]
pub struct Catalog {
    header: CatalogHeader,
    namespaces: OrdMap<Arc<str>, Namespace>,
    tables: HashMap<TableId, Arc<TableDefinition>>,
    users: HashMap<UserId, Arc<UserRecord>>,
    usernames: OrdMap<Arc<str>, UserId>,
    storages: OrdMap<Arc<str>, Arc<StorageRecord>>,
}

impl Catalog {
    /// Creates the catalog of a new database: namespaces `public` and `system`, the ten system tables,
    /// storage `local`, no users.
    pub fn initial(created_at: i64) -> Self {
        let mut catalog = Self {
            header: CatalogHeader {
                created_at,
                next_namespace_id: FIRST_NAMESPACE_ID,
                next_table_id: TableId::FIRST_USER_TABLE,
                next_user_id: UserId::ROOT,
            },
            namespaces: OrdMap::new(),
            tables: HashMap::new(),
            users: HashMap::new(),
            usernames: OrdMap::new(),
            storages: OrdMap::new(),
        };
        for (id, name) in [(PUBLIC_ID, NAMESPACE_PUBLIC), (SYSTEM_ID, NAMESPACE_SYSTEM)] {
            catalog.set_namespace(NamespaceRecord {
                id,
                name: Arc::from(name),
                revision: 1,
                options: None,
                created_at,
            });
        }
        for table in system_definitions(created_at) {
            catalog.set_table(table);
        }
        catalog.set_storage(StorageRecord::local(created_at));
        catalog
    }

    /// Restores a catalog from its header and the last `Put` of every record, in any order.
    ///
    /// # Errors
    /// XX001 for a table whose namespace is not among the records.
    pub fn restore(header: CatalogHeader, records: Vec<CatalogChange>) -> Result<Self> {
        let mut catalog = Self::initial(header.created_at);
        let (namespaces, others): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|record| matches!(record, CatalogChange::PutNamespace(_)));
        for record in namespaces.into_iter().chain(others) {
            match record {
                CatalogChange::PutNamespace(record) => catalog.set_namespace(record),
                CatalogChange::PutTable(table) => {
                    if !catalog.namespaces.contains_key(&*table.namespace) {
                        return Err(Error::corruption(format!(
                            "table \"{}\" is in a namespace that does not exist",
                            table.qualified_name()
                        )));
                    }
                    catalog.set_table(Arc::new(table));
                }
                CatalogChange::PutUser(user) => catalog.set_user(user),
                CatalogChange::PutStorage(storage) => catalog.set_storage(storage),
                drop => {
                    return Err(Error::corruption(format!(
                        "the catalog contains a removal as {}",
                        drop.record_key()
                    )));
                }
            }
        }
        catalog.header = header;
        Ok(catalog)
    }

    /// Returns the records that [`Catalog::restore`] needs besides the header, without the system tables.
    pub fn records(&self) -> Vec<CatalogChange> {
        let namespaces = self.namespaces().map(|namespace| CatalogChange::PutNamespace(namespace.clone()));
        let tables = self.tables().filter(|table| table.kind != TableKind::System);
        let tables = tables.map(|table| CatalogChange::PutTable(TableDefinition::clone(table)));
        let users = self.users().map(|user| CatalogChange::PutUser(UserRecord::clone(user)));
        let storages = self.storages().map(|storage| CatalogChange::PutStorage(storage.clone()));
        namespaces.chain(tables).chain(users).chain(storages).collect()
    }

    /// Returns when the database was created and the next free numbers.
    pub fn header(&self) -> CatalogHeader {
        self.header
    }

    /// Returns the number for a new table. Of two plans with one number, one conflicts and is replanned.
    pub fn next_table_id(&self) -> TableId {
        self.header.next_table_id
    }

    /// Returns the number for a new namespace.
    pub fn next_namespace_id(&self) -> NamespaceId {
        self.header.next_namespace_id
    }

    /// Returns the number for a new user.
    pub fn next_user_id(&self) -> UserId {
        self.header.next_user_id
    }

    /// Returns the table with that name.
    pub fn table(&self, namespace: &str, name: &str) -> Option<&Arc<TableDefinition>> {
        self.namespaces.get(namespace)?.tables.get(name)
    }

    /// Returns the table with that number.
    pub fn table_by_id(&self, id: TableId) -> Option<&Arc<TableDefinition>> {
        self.tables.get(&id)
    }

    /// Iterates over a namespace's tables by name; empty if the namespace does not exist.
    pub fn tables_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<TableDefinition>> {
        self.namespaces.get(namespace).into_iter().flat_map(|namespace| namespace.tables.values())
    }

    /// Iterates over all tables, by namespace and name.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<TableDefinition>> {
        self.namespaces.values().flat_map(|namespace| namespace.tables.values())
    }

    /// Returns the number of tables, including the system tables.
    pub fn table_count(&self) -> usize {
        self.tables.len()
    }

    /// Returns the namespace with that name.
    pub fn namespace(&self, name: &str) -> Option<&NamespaceRecord> {
        self.namespaces.get(name).map(|namespace| &*namespace.record)
    }

    /// Returns the namespace with that number.
    pub fn namespace_by_id(&self, id: NamespaceId) -> Option<&NamespaceRecord> {
        self.namespaces().find(|namespace| namespace.id == id)
    }

    /// Iterates over all namespaces by name.
    pub fn namespaces(&self) -> impl Iterator<Item = &NamespaceRecord> {
        self.namespaces.values().map(|namespace| &*namespace.record)
    }

    /// Returns the user with that number.
    pub fn user(&self, id: UserId) -> Option<&Arc<UserRecord>> {
        self.users.get(&id)
    }

    /// Returns the user with that name.
    pub fn user_by_name(&self, username: &str) -> Option<&Arc<UserRecord>> {
        self.users.get(self.usernames.get(username)?)
    }

    /// Iterates over all users by name.
    pub fn users(&self) -> impl Iterator<Item = &Arc<UserRecord>> {
        self.usernames.values().filter_map(|id| self.users.get(id))
    }

    /// Returns the number of users.
    pub fn user_count(&self) -> usize {
        self.users.len()
    }

    /// Returns the storage with that id.
    pub fn storage(&self, id: &str) -> Option<&StorageRecord> {
        self.storages.get(id).map(|storage| &**storage)
    }

    /// Iterates over all storages by id.
    pub fn storages(&self) -> impl Iterator<Item = &StorageRecord> {
        self.storages.values().map(|storage| &**storage)
    }

    /// Returns the catalog after `change`; this one stays unchanged.
    ///
    /// # Errors
    /// 40001 for a change planned on an older catalog; 42P06, 42P07, 42710 for a taken name; 3F000, 42704 for
    /// a missing object; 2BP01 for an object in use; whatever [`TableDefinition::validate`] refuses.
    pub fn apply(&self, change: &CatalogChange) -> Result<Self> {
        let mut next = self.clone();
        match change {
            CatalogChange::PutNamespace(record) => next.put_namespace(record)?,
            CatalogChange::DropNamespace(id) => next.drop_namespace(*id)?,
            CatalogChange::PutTable(table) => next.put_table(table)?,
            CatalogChange::DropTable(id) => next.drop_table(*id)?,
            CatalogChange::PutUser(user) => next.put_user(user)?,
            CatalogChange::DropUser(id) => next.drop_user(*id)?,
            CatalogChange::PutStorage(storage) => next.put_storage(storage)?,
            CatalogChange::DropStorage(id) => next.drop_storage(id)?,
        }
        Ok(next)
    }

    fn put_namespace(&mut self, record: &NamespaceRecord) -> Result<()> {
        if let Some(old) = self.namespace_by_id(record.id) {
            is_next("namespace", &record.name, old.revision, record.revision)?;
            if old.name != record.name {
                return Err(Error::unsupported("renaming a namespace"));
            }
            if old.id == SYSTEM_ID {
                return Err(Error::permission_denied("namespace \"system\" belongs to the database"));
            }
        } else {
            if record.id < self.header.next_namespace_id || record.revision != 1 {
                return Err(stale("namespace", &record.name));
            }
            validate_new_namespace(&record.name)?;
            if self.namespaces.contains_key(&*record.name) {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    SqlState::DUPLICATE_SCHEMA,
                    format!("namespace \"{}\" already exists", record.name),
                ));
            }
            self.header.next_namespace_id = NamespaceId(successor(record.id.0)?);
        }
        self.set_namespace(record.clone());
        Ok(())
    }

    fn drop_namespace(&mut self, id: NamespaceId) -> Result<()> {
        let Some(record) = self.namespace_by_id(id).cloned() else {
            return Err(stale("namespace", &id.to_string()));
        };
        if id == PUBLIC_ID || id == SYSTEM_ID {
            return Err(in_use(
                format!("namespace \"{}\" always exists", record.name),
                "drop its tables instead",
            ));
        }
        if self.tables_in(&record.name).next().is_some() {
            return Err(in_use(
                format!("namespace \"{}\" is not empty", record.name),
                "drop its tables first, or add CASCADE",
            ));
        }
        self.namespaces.remove(&*record.name);
        Ok(())
    }

    fn put_table(&mut self, table: &TableDefinition) -> Result<()> {
        match self.tables.get(&table.id).map(Arc::clone) {
            Some(old) => {
                if old.kind == TableKind::System
                    || old.kind != table.kind
                    || old.options.scope != table.options.scope
                {
                    return Err(Error::unsupported(format!(
                        "changing the type of table \"{}\"",
                        old.qualified_name()
                    )));
                }
                if !table.follows(&old) {
                    return Err(stale("table", &old.qualified_name()));
                }
                table.validate()?;
                self.unset_table(&old);
            }
            None => {
                // The number was taken by a table that is gone, or by another plan that committed first.
                if table.id < self.header.next_table_id || table.version != SchemaVersion(1) {
                    return Err(stale("table", &table.qualified_name()));
                }
                table.validate()?;
                self.header.next_table_id = TableId(successor(table.id.0)?);
            }
        }
        if table.kind == TableKind::System || &*table.namespace == NAMESPACE_SYSTEM {
            return Err(Error::permission_denied("namespace \"system\" belongs to the database"));
        }
        let Some(namespace) = self.namespaces.get(&*table.namespace) else {
            return Err(Error::namespace_not_found(&table.namespace));
        };
        if namespace.tables.contains_key(&*table.name) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                SqlState::DUPLICATE_TABLE,
                format!("table \"{}\" already exists", table.qualified_name()),
            )
            .hint("CREATE TABLE IF NOT EXISTS keeps the existing table"));
        }
        if !self.storages.contains_key(&*table.options.storage_id) {
            return Err(missing("storage", &table.options.storage_id));
        }
        self.set_table(Arc::new(table.clone()));
        Ok(())
    }

    fn drop_table(&mut self, id: TableId) -> Result<()> {
        let Some(table) = self.tables.get(&id).map(Arc::clone) else {
            return Err(stale("table", &id.to_string()));
        };
        if table.kind == TableKind::System {
            return Err(Error::permission_denied(format!(
                "table \"{}\" belongs to the database",
                table.qualified_name()
            )));
        }
        self.unset_table(&table);
        Ok(())
    }

    fn put_user(&mut self, user: &UserRecord) -> Result<()> {
        validate_name("user", &user.username)?;
        if let Some(holder) = self.usernames.get(&*user.username)
            && *holder != user.id
            && user.id >= self.header.next_user_id
        {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                SqlState::DUPLICATE_OBJECT,
                format!("user \"{}\" already exists", user.username),
            ));
        }
        match self.users.get(&user.id).map(Arc::clone) {
            Some(old) => {
                is_next("user", &user.username, old.revision, user.revision)?;
                if old.username != user.username {
                    return Err(Error::unsupported("renaming a user"));
                }
            }
            None if user.id < self.header.next_user_id || user.revision != 1 => {
                return Err(stale("user", &user.username));
            }
            None => {
                let next = user.id.0.checked_add(1).ok_or_else(numbers_exhausted)?;
                self.header.next_user_id = UserId(next);
            }
        }
        self.set_user(user.clone());
        Ok(())
    }

    fn drop_user(&mut self, id: UserId) -> Result<()> {
        let Some(user) = self.users.remove(&id) else {
            return Err(stale("user", &id.to_string()));
        };
        self.usernames.remove(&*user.username);
        Ok(())
    }

    fn put_storage(&mut self, storage: &StorageRecord) -> Result<()> {
        validate_name("storage", &storage.id)?;
        is_next(
            "storage",
            &storage.id,
            self.storage(&storage.id).map_or(0, |old| old.revision),
            storage.revision,
        )?;
        self.set_storage(storage.clone());
        Ok(())
    }

    fn drop_storage(&mut self, id: &str) -> Result<()> {
        if id == STORAGE_LOCAL {
            return Err(in_use("storage \"local\" always exists".to_owned(), "drop another storage"));
        }
        if let Some(table) = self.tables().find(|table| &*table.options.storage_id == id) {
            return Err(in_use(
                format!("storage \"{id}\" is used by table \"{}\"", table.qualified_name()),
                "drop the tables that use it first",
            ));
        }
        match self.storages.remove(id) {
            Some(_) => Ok(()),
            None => Err(missing("storage", id)),
        }
    }

    fn set_namespace(&mut self, record: NamespaceRecord) {
        let name = Arc::clone(&record.name);
        let tables = self.namespaces.get(&*name).map_or_else(OrdMap::new, |old| old.tables.clone());
        self.namespaces.insert(name, Namespace { record: Arc::new(record), tables });
    }

    fn set_table(&mut self, table: Arc<TableDefinition>) {
        if let Some(namespace) = self.namespaces.get_mut(&*table.namespace) {
            namespace.tables.insert(Arc::clone(&table.name), Arc::clone(&table));
            self.tables.insert(table.id, table);
        }
    }

    fn unset_table(&mut self, table: &TableDefinition) {
        if let Some(namespace) = self.namespaces.get_mut(&*table.namespace) {
            namespace.tables.remove(&*table.name);
        }
        self.tables.remove(&table.id);
    }

    fn set_user(&mut self, user: UserRecord) {
        self.usernames.insert(Arc::clone(&user.username), user.id);
        self.users.insert(user.id, Arc::new(user));
    }

    fn set_storage(&mut self, storage: StorageRecord) {
        self.storages.insert(Arc::clone(&storage.id), Arc::new(storage));
    }
}

fn successor(id: u32) -> Result<u32> {
    id.checked_add(1).ok_or_else(numbers_exhausted)
}

fn numbers_exhausted() -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::PROGRAM_LIMIT_EXCEEDED,
        "no ids are left for new objects",
    )
}

fn is_next(kind: &str, name: &str, old: u32, new: u32) -> Result<()> {
    if new == old.saturating_add(1) { Ok(()) } else { Err(stale(kind, name)) }
}

/// Returns the error for a change that was planned on an outdated catalog.
fn stale(kind: &str, name: &str) -> Error {
    Error::conflict(format!("{kind} \"{name}\" was changed by another commit"))
}

fn in_use(message: String, hint: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, SqlState::DEPENDENT_OBJECTS_EXIST, message).hint(hint)
}

fn missing(kind: &str, name: &str) -> Error {
    Error::new(ErrorKind::NotFound, SqlState::UNDEFINED_OBJECT, format!("{kind} \"{name}\" does not exist"))
}

#[cfg(test)]
mod tests;
