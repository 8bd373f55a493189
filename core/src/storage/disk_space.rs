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
const ASK_INTERVAL: Duration = Duration::from_secs(1);

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
    asked: Mutex<Asked>,
    /// Bytes written since the last query.
    written: AtomicU64,
}

#[derive(Debug)]
struct Asked {
    at: Option<Instant>,
    free: u64,
}

impl DiskSpace {
    /// Returns a watcher that keeps `free_min` bytes free on the disk of `folder`.
    pub fn new(folder: &Path, free_min: u64) -> Self {
        let asked = Mutex::new(Asked { at: None, free: u64::MAX });
        Self { folder: folder.to_owned(), free_min, asked, written: AtomicU64::new(0) }
    }

    /// Returns the free bytes, at most a second old; `u64::MAX` when the disk cannot be queried.
    pub fn free_bytes(&self) -> u64 {
        let mut asked = self.asked.lock();
        let written = self.written.load(Ordering::Relaxed);
        let spare = asked.free.saturating_sub(self.free_min);
        let is_good = asked.at.is_some_and(|at| at.elapsed() < ASK_INTERVAL) && written < spare / 4;
        if !is_good {
            self.ask(&mut asked);
        }
        asked.free
    }

    fn ask(&self, asked: &mut Asked) {
        self.written.store(0, Ordering::Relaxed);
        asked.at = Some(Instant::now());
        // If the query fails, only a failing write can reveal a full disk.
        asked.free = match platform::free_bytes(&self.folder) {
            Ok(free) => free.unwrap_or(u64::MAX),
            Err(error) => {
                tracing::warn!(%error, "the free space of the disk is not known");
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
        let mut asked = self.asked.lock();
        self.ask(&mut asked);
        match self.free_min.max(REOPENING_FREE_MIN) {
            needed if asked.free < needed => Err(full(asked.free, needed)),
            _ => Ok(()),
        }
    }

    /// Returns the error for a refused operation.
    pub fn full(&self) -> Error {
        full(self.asked.lock().free, self.free_min)
    }
}

fn full(free: u64, needed: u64) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::DISK_FULL,
        format!("disk full: {free} bytes are free where {needed} are to stay free"),
    )
    .hint(
        "make room on the disk of the data directory, or drop tables; reads go on, and writes once there is room",
    )
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
    fn a_disk_with_room_is_asked_again_after_much_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let disk = DiskSpace::new(folder.path(), 0);
        assert_eq!(disk.room(), Room::Enough);
        disk.note_written(1);
        let asked_at = disk.asked.lock().at;
        disk.room();
        assert_eq!(disk.asked.lock().at, asked_at);
        disk.note_written(usize::MAX / 2);
        disk.room();
        assert_ne!(disk.asked.lock().at, asked_at);
    }

    #[test]
    fn a_folder_that_is_gone_does_not_stop_writes() {
        assert_eq!(DiskSpace::new(Path::new("/no/such/folder"), 1).room(), Room::Enough);
    }
}
