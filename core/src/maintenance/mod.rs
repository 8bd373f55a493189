//! What keeps data safe from more than a crash: backups of an open database, restoring them, and checking a closed one.
//!
//! | file | its one job |
//! |---|---|
//! | `place` | where backups are: a folder or an object store, named by a URL |
//! | `format` | the bytes of a backup |
//! | `backup` | a snapshot into a backup |
//! | `restore` | a backup into a new data directory |
//! | `check` | a closed database, looked through |
//!
//! Invariant: a backup is whole or it is none, and so is what is restored from it: the object or file that makes it one comes last.

mod backup;
mod check;
mod format;
mod place;
mod restore;

pub use backup::{BackedUp, back_up};
pub use check::{CheckReport, TableReport, check};
pub use place::BackupUrl;
pub use restore::{Restored, restore};
