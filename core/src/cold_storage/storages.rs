//! The storages of a database, connected and found by id.
//!
//! Invariant: a storage that cannot be connected fails only when it is used, and then says why.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::location::StorageLocation;
use super::object_storage::ObjectStorage;
use super::segment::STORAGE_LOCAL;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::DatabaseId;

/// The storage `local` and the storages of the catalog.
pub(super) struct Storages {
    local: Arc<ObjectStorage>,
    /// The storages of the catalog except `local`.
    others: ArcSwap<HashMap<Arc<str>, Configured>>,
    /// The folder of files that wait for their upload.
    spool: Option<PathBuf>,
}

/// A storage of the catalog; `Err` is the reason it cannot be connected.
type Configured = (StorageLocation, std::result::Result<Arc<ObjectStorage>, Arc<Error>>);

impl Storages {
    pub(super) fn new(local: ObjectStorage, spool: Option<PathBuf>) -> Self {
        Self { local: Arc::new(local), others: ArcSwap::default(), spool }
    }

    /// Connects the new and changed storages of a catalog.
    pub(super) fn set(&self, database: DatabaseId, locations: impl IntoIterator<Item = StorageLocation>) {
        let before = self.others.load();
        let after = locations.into_iter().filter(|location| *location.id != *STORAGE_LOCAL).map(|location| {
            let id = Arc::clone(&location.id);
            let known = before.get(&id).filter(|(known, _)| *known == location);
            let configured = known.cloned().unwrap_or_else(|| {
                let connected = ObjectStorage::connect(&location, database, self.spool.as_deref());
                (location, connected.map(Arc::new).map_err(Arc::new))
            });
            (id, configured)
        });
        self.others.store(Arc::new(after.collect()));
    }

    pub(super) fn local(&self) -> &Arc<ObjectStorage> {
        &self.local
    }

    /// Returns the storage with `id`; the errors are those of [`super::SegmentStore::storage`].
    pub(super) fn get(&self, id: &str) -> Result<Arc<ObjectStorage>> {
        if id == STORAGE_LOCAL {
            return Ok(Arc::clone(&self.local));
        }
        match self.others.load().get(id) {
            Some((_, Ok(storage))) => Ok(Arc::clone(storage)),
            Some((_, Err(error))) => Err(Error::new(error.kind(), error.sqlstate(), error.message())
                .hint(error.hint_text().unwrap_or("change it with ALTER STORAGE"))
                .source(Arc::clone(error))),
            None => Err(Error::new(
                ErrorKind::NotFound,
                SqlState::UNDEFINED_OBJECT,
                format!("storage \"{id}\" does not exist"),
            )
            .hint("SHOW STORAGES lists them")),
        }
    }

    pub(super) fn ids(&self) -> Vec<Arc<str>> {
        let local = Arc::from(STORAGE_LOCAL);
        std::iter::once(local).chain(self.others.load().keys().map(Arc::clone)).collect()
    }
}
