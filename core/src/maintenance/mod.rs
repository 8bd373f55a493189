//! Protection beyond crash safety: backups of an open database, restoring them, checking a closed one.
//!
//! | file | its one job |
//! |---|---|
//! | `backup_store` | the location of a backup: a folder or an object store, named by a URL |
//! | `format` | the bytes of a backup |
//! | `backup` | writes a snapshot into a backup |
//! | `restore` | restores a backup into a new data directory |
//! | `check` | checks a closed database |
//!
//! Invariant: backups and restored directories are valid only when complete; the object or file that makes
//! them valid is written last.

mod backup;
mod backup_store;
mod check;
mod format;
mod restore;

pub use backup::{BackupSummary, back_up};
pub use backup_store::BackupUrl;
pub use check::{CheckReport, TableReport, check};
pub use restore::{RestoreSummary, restore};
