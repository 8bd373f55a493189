//! Watches the free space of the data directory's disk and refuses growth below a floor.
//!
//! A store that runs out of space in the middle of a write must be reopened. So growth is refused while there
//! is still room for the operations that free space. With enough room the disk is queried at most once a
//! second, and also after a quarter of the spare bytes were written; otherwise on every call.
//!
//! Invariant: [`Room::Enough`] means that the floor was free within the last second, or nothing is known.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::platform;

/// How long a query result stays valid while there is enough room.
const QUERY_INTERVAL: Duration = Duration::from_secs(1);

/// The bytes that a reopened store needs to rewrite its files.
const REOPENING_FREE_MIN: u64 = 16 << 20;

/// How much free space the disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// Less than half of the floor: only operations that free space continue.
    Reserve,
    /// Less than the floor: nothing grows, but rows can be deleted.
    Low,
    /// At least the floor.
    Enough,
}

/// Watches the free space of the disk of a folder.
#[derive(Debug)]
pub struct DiskSpace {
    folder: PathBuf,
    /// The floor, in bytes; 0 disables the checks.
    free_min: u64,
    last_query: Mutex<LastQuery>,
    /// Bytes written since the last query.
    written: AtomicU64,
}

#[derive(Debug)]
struct LastQuery {
    at: Option<Instant>,
    free: u64,
}

impl DiskSpace {
    /// Returns a watcher that keeps `free_min` bytes free on the disk of `folder`.
    pub fn new(folder: &Path, free_min: u64) -> Self {
        let last_query = Mutex::new(LastQuery { at: None, free: u64::MAX });
        Self { folder: folder.to_owned(), free_min, last_query, written: AtomicU64::new(0) }
    }

    /// Returns the free bytes, at most a second old; `u64::MAX` when the disk cannot be queried.
    pub fn free_bytes(&self) -> u64 {
        let mut last = self.last_query.lock();
        let written = self.written.load(Ordering::Relaxed);
        let spare = last.free.saturating_sub(self.free_min);
        let is_good = last.at.is_some_and(|at| at.elapsed() < QUERY_INTERVAL) && written < spare / 4;
        if !is_good {
            self.query(&mut last);
        }
        last.free
    }

    fn query(&self, last: &mut LastQuery) {
        self.written.store(0, Ordering::Relaxed);
        last.at = Some(Instant::now());
        // If the query fails, only a failing write can reveal a full disk.
        last.free = match platform::free_bytes(&self.folder) {
            Ok(free) => free.unwrap_or(u64::MAX),
            Err(error) => {
                tracing::warn!(%error, "the free space of the disk cannot be queried");
                u64::MAX
            }
        };
    }

    /// Returns how much room there is now.
    pub fn room(&self) -> Room {
        match self.free_bytes() {
            free if free < self.free_min / 2 => Room::Reserve,
            free if free < self.free_min => Room::Low,
            _ => Room::Enough,
        }
    }

    /// Counts written bytes, so that many of them cause an earlier query.
    pub fn note_written(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Refuses growth when less than the floor is free.
    ///
    /// # Errors
    /// 53100 then.
    pub fn check(&self) -> Result<()> {
        match self.room() {
            Room::Enough => Ok(()),
            Room::Low | Room::Reserve => Err(self.full()),
        }
    }

    /// Refuses to write `bytes` when less than the floor would remain free.
    ///
    /// # Errors
    /// 53100 then.
    pub fn check_room_for(&self, bytes: u64) -> Result<()> {
        let free = self.free_bytes();
        let needed = self.free_min.saturating_add(bytes);
        if self.free_min > 0 && free < needed { Err(full(free, needed)) } else { Ok(()) }
    }

    /// Refuses to reopen the store when there is not enough room for that, even if the floor is lower.
    ///
    /// # Errors
    /// 53100 then.
    pub fn check_reopening(&self) -> Result<()> {
        let mut last = self.last_query.lock();
        self.query(&mut last);
        match self.free_min.max(REOPENING_FREE_MIN) {
            needed if last.free < needed => Err(full(last.free, needed)),
            _ => Ok(()),
        }
    }

    /// Returns the error for a refused operation.
    pub fn full(&self) -> Error {
        full(self.last_query.lock().free, self.free_min)
    }
}

fn full(free: u64, needed: u64) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::DISK_FULL,
        format!("disk full: {free} bytes free, {needed} required"),
    )
    .hint("free space on the data directory's disk, or drop tables; reads still work")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_divides_enough_from_low_and_low_from_the_reserve() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(DiskSpace::new(folder.path(), 0).room(), Room::Enough);
        assert_eq!(DiskSpace::new(folder.path(), u64::MAX).room(), Room::Reserve);
        let free = DiskSpace::new(folder.path(), 0).free_bytes();
        let low = DiskSpace::new(folder.path(), free + free / 2);
        assert_eq!(low.room(), Room::Low);
        assert_eq!(low.check().unwrap_err().sqlstate(), SqlState::DISK_FULL);
    }

    #[test]
    fn a_disk_with_room_is_queried_again_after_much_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let disk = DiskSpace::new(folder.path(), 0);
        assert_eq!(disk.room(), Room::Enough);
        disk.note_written(1);
        let asked_at = disk.last_query.lock().at;
        disk.room();
        assert_eq!(disk.last_query.lock().at, asked_at);
        disk.note_written(usize::MAX / 2);
        disk.room();
        assert_ne!(disk.last_query.lock().at, asked_at);
    }

    #[test]
    fn a_missing_folder_does_not_stop_writes() {
        assert_eq!(DiskSpace::new(Path::new("/no/such/folder"), 1).room(), Room::Enough);
    }
}
