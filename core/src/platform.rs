//! The only place in the core that knows the operating system: folders made durable, private files, free space.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Brings the names in a folder to stable storage.
///
/// # Errors
/// When the folder cannot be opened or synced. Where folders cannot be synced it does nothing.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(path)?.sync_all()?;
    let _ = path;
    Ok(())
}

/// Writes a file that only its owner can read, and makes its bytes durable.
///
/// # Errors
/// When it cannot be made or written.
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

/// Bytes this process may still write to the file system of `path`; `None` where it cannot be asked.
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
