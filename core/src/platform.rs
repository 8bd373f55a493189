//! Calls that differ between operating systems: syncing folders, private files, free space.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Makes the names in a folder durable.
///
/// # Errors
/// When the folder cannot be opened or synced. Where folders cannot be synced, the call does nothing.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(path)?.sync_all()?;
    let _ = path;
    Ok(())
}

/// Writes a file that only its owner can read, and syncs it.
///
/// # Errors
/// When the file cannot be created or written.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut file: File = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Returns the bytes this process may still write to `path`'s file system; `None` where unknown.
///
/// # Errors
/// When `path` does not exist or the file system does not answer.
pub(crate) fn free_bytes(path: &Path) -> io::Result<Option<u64>> {
    #[cfg(unix)]
    {
        let of = nix::sys::statvfs::statvfs(path)?;
        Ok(Some(of.blocks_available().saturating_mul(of.fragment_size())))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        Ok(None)
    }
}
