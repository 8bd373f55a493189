//! Calls that differ between operating systems: syncing folders, private files, free space, the memory of
//! the process, the priority and the processor time of threads.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::num::NonZero;
use std::path::Path;
use std::time::Duration;

/// The priority of threads that run statements, as `nice` counts it: 0 is usual, 19 the lowest.
pub(crate) const STATEMENT_PRIORITY: i32 = 10;
/// The priority of threads that check passwords.
pub(crate) const LOGIN_PRIORITY: i32 = 5;

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

/// Returns how many processors the process may use; one if the system does not say.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Writes a file that only its owner can read, and syncs it.
///
/// # Errors
/// When the file cannot be created or written.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = private(OpenOptions::new().write(true).create(true).truncate(true)).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Creates a file that only its owner can read. It must not exist.
///
/// # Errors
/// When the file exists or cannot be created.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    private(OpenOptions::new().write(true).create_new(true)).open(path)
}

/// Lets only the owner of a new file read it.
fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options
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

/// Gives the current thread a priority, unless it has a lower one. Where threads have no priorities of their
/// own, the call does nothing.
///
/// # Errors
/// When the operating system refuses.
pub(crate) fn lower_thread_priority(priority: i32) -> io::Result<()> {
    // On Linux, "this process" means this thread.
    #[cfg(target_os = "linux")]
    if rustix::process::getpriority_process(None)? < priority {
        rustix::process::setpriority_process(None, priority)?;
    }
    let _ = priority;
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

/// Returns the memory that this process may use: the limit of its control group, or all of the machine's;
/// `None` where the system does not tell.
pub(crate) fn memory_limit_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let of_group = group_limit_bytes(&groups, Path::new("/sys/fs/cgroup"));
        let of_machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| machine_bytes(&text));
        of_group.into_iter().chain(of_machine).min()
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Returns the least memory limit of the control groups that `/proc/self/cgroup` lists and of those around
/// them. A line is `NUMBER:CONTROLLERS:PATH`; version 2 names no controllers.
#[cfg(target_os = "linux")]
fn group_limit_bytes(groups: &str, mount: &Path) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (mount, file) = match controllers {
            "" => (mount.to_owned(), "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                (mount.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let groups = Path::new(path.trim_start_matches('/')).ancestors();
        let texts = groups.filter_map(|group| std::fs::read_to_string(mount.join(group).join(file)).ok());
        // A group without a limit says "max".
        texts.filter_map(|text| text.trim().parse::<u64>().ok()).min()
    });
    limits.min()
}

/// Returns the memory of the machine from the text of `/proc/meminfo`.
#[cfg(target_os = "linux")]
fn machine_bytes(meminfo: &str) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1_024)
}

/// The processor time of a thread, for other threads to read.
#[derive(Debug)]
pub(crate) struct ThreadClock {
    /// `None` without `/proc`.
    #[cfg(target_os = "linux")]
    statistics: Option<std::path::PathBuf>,
}

impl ThreadClock {
    /// Returns the clock of the current thread.
    pub(crate) fn of_current() -> Self {
        Self {
            #[cfg(target_os = "linux")]
            statistics: std::fs::read_link("/proc/thread-self")
                .ok()
                .map(|thread| Path::new("/proc").join(thread).join("schedstat")),
        }
    }

    /// Returns the processor time that the thread has used; `None` where the system does not tell.
    pub(crate) fn read(&self) -> Option<Duration> {
        #[cfg(target_os = "linux")]
        {
            let statistics = std::fs::read_to_string(self.statistics.as_ref()?).ok()?;
            let nanoseconds = statistics.split_whitespace().next()?.parse::<u64>().ok()?;
            // A system without these statistics says 0.
            (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
        }
        #[cfg(not(target_os = "linux"))]
        None
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn another_thread_reads_the_processor_time() {
        use super::*;

        let clock = ThreadClock::of_current();
        let mut sum = 0_u64;
        while thread_cpu() < Duration::from_millis(50) {
            sum = std::hint::black_box(sum + 1);
        }
        let read = std::thread::spawn(move || clock.read()).join().unwrap();
        // The system counts a running thread at each tick.
        assert!(read.is_some_and(|used| used >= Duration::from_millis(20)), "{read:?}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_least_limit_of_the_groups_around_a_process_counts() {
        use super::*;

        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let limit = |groups: &str| group_limit_bytes(groups, folder.path());
        assert_eq!(limit("0::/a/b\n"), None);
        write("a/b/memory.max", "max\n");
        assert_eq!(limit("0::/a/b\n"), None);
        write("a/memory.max", "4096\n");
        write("memory.max", "8192\n");
        assert_eq!(limit("0::/a/b\n"), Some(4_096));
        assert_eq!(limit("0::/\n"), Some(8_192));
        write("memory/c/memory.limit_in_bytes", "1024\n");
        assert_eq!(limit("12:cpu,cpuacct:/c\n3:hugetlb,memory:/c\n"), Some(1_024));
        assert_eq!(machine_bytes("MemTotal:       16384 kB\nMemFree:  1 kB\n"), Some(16 << 20));
        assert!(memory_limit_bytes().is_some_and(|bytes| bytes > 0));
    }
}
