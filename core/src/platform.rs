//! Calls that differ between operating systems: syncing folders, private files, free space, the priority
//! and the processor time of threads.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// The priority of a thread that gives way to others, as `nice` counts it: 0 is usual, 19 the lowest.
#[cfg(target_os = "linux")]
pub(crate) const LOW_PRIORITY: i32 = 10;

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

/// Gives the current thread a low priority, unless it has a lower one. Where threads have no priorities of
/// their own, the call does nothing.
///
/// # Errors
/// When the operating system refuses.
pub(crate) fn lower_thread_priority() -> io::Result<()> {
    // On Linux, "this process" means this thread.
    #[cfg(target_os = "linux")]
    if rustix::process::getpriority_process(None)? < LOW_PRIORITY {
        rustix::process::setpriority_process(None, LOW_PRIORITY)?;
    }
    Ok(())
}

/// Returns the processor time that the current thread has used; zero where the system does not count it.
pub(crate) fn thread_cpu() -> Duration {
    #[cfg(unix)]
    {
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let seconds = u64::try_from(used.tv_sec).unwrap_or_default();
        Duration::new(seconds, u32::try_from(used.tv_nsec).unwrap_or_default())
    }
    #[cfg(not(unix))]
    Duration::ZERO
}
