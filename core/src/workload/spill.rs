//! The folder for what statements spill to disk.
//!
//! Invariant: a file in it belongs to a running statement; what an earlier process left is removed at start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result, SqlState};

/// Returns the folder in a data directory.
pub(crate) fn spill_folder(data_dir: &Path) -> PathBuf {
    data_dir.join("spill")
}

/// Creates the folder, and removes what it contains. The caller holds the lock of the data directory.
///
/// # Errors
/// 58030 when the operating system refuses.
pub(crate) fn empty_spill(data_dir: &Path) -> Result<()> {
    emptied(&spill_folder(data_dir)).map_err(|error| {
        Error::new(
            ErrorKind::Unavailable,
            SqlState::IO_ERROR,
            "the spill folder in the data directory cannot be created or emptied",
        )
        .hint("check that the data directory is writable")
        .source(error)
    })
}

fn emptied(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_process_left_is_removed() {
        let data_dir = tempfile::tempdir().unwrap();
        empty_spill(data_dir.path()).unwrap();
        let folder = spill_folder(data_dir.path());
        fs::create_dir(folder.join("datafusion-abc")).unwrap();
        fs::write(folder.join("datafusion-abc/sort"), b"rows").unwrap();
        fs::write(folder.join("file"), b"rows").unwrap();
        empty_spill(data_dir.path()).unwrap();
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
    }
}
