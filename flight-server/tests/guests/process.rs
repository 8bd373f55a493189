//! The CPU time and the memory of the server, from `/proc`.

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

/// The CPU time of threads since they began, in nanoseconds by thread.
pub(crate) struct Work(HashMap<u32, u64>);

impl Work {
    /// Returns the work of all threads of a process.
    pub(crate) fn of_all(pid: u32) -> Self {
        Self::of(pid, |_| true)
    }

    /// Returns the work of the threads that run statements.
    fn of_statements(pid: u32) -> Self {
        Self::of(pid, |name| name.starts_with("kalam-engine") || name.starts_with("kalam-call"))
    }

    fn of(pid: u32, counts: impl Fn(&str) -> bool) -> Self {
        let mut work = HashMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            // A thread may end meanwhile.
            let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
            let Ok(schedstat) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let thread = task.file_name().to_string_lossy().parse::<u32>();
            let nanoseconds = schedstat.split_whitespace().next().unwrap_or_default().parse::<u64>();
            if let (true, Ok(thread), Ok(nanoseconds)) = (counts(&name), thread, nanoseconds) {
                work.insert(thread, nanoseconds);
            }
        }
        Self(work)
    }

    /// Returns the work that was done after `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Duration {
        let done = |(thread, now): (&u32, &u64)| now - earlier.0.get(thread).unwrap_or(&0).min(now);
        Duration::from_nanos(self.0.iter().map(done).sum())
    }
}

/// Waits until the threads of statements rest. Returns after which time they did; `None` if they still work
/// after `within`.
pub(crate) async fn until_idle(pid: u32, within: Duration) -> Option<Duration> {
    const WINDOW: Duration = Duration::from_millis(100);
    const IDLE_MAX: Duration = Duration::from_millis(5);
    let began = Instant::now();
    let mut earlier = Work::of_statements(pid);
    loop {
        let at = began.elapsed();
        tokio::time::sleep(WINDOW).await;
        let now = Work::of_statements(pid);
        if now.since(&earlier) <= IDLE_MAX {
            return Some(at);
        }
        if at > within {
            return None;
        }
        earlier = now;
    }
}

/// Returns the resident memory of a process in bytes.
pub(crate) fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the server lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process with memory");
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kilobytes");
    kilobytes << 10
}

/// Returns the resident memory once it is at most `wanted`, or after `within`.
pub(crate) async fn settled(pid: u32, wanted: u64, within: Duration) -> u64 {
    let began = Instant::now();
    loop {
        let now = resident(pid);
        if now <= wanted || began.elapsed() > within {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Returns the result of `work`, and the most resident memory of a process meanwhile.
pub(crate) async fn peak_during<T>(pid: u32, work: impl Future<Output = T>) -> (T, u64) {
    let mut work = pin!(work);
    let mut peak = resident(pid);
    loop {
        tokio::select! {
            result = &mut work => return (result, peak.max(resident(pid))),
            () = tokio::time::sleep(Duration::from_millis(20)) => peak = peak.max(resident(pid)),
        }
    }
}
