//! The floor under the free space of the data directory's disk.
//!
//! A store that runs out of space in the middle of its work has to be closed and opened again; so growth is refused while there is
//! still room for what makes room. The disk is asked at most once a second while there is plenty, and every time while there is not.
//!
//! Invariant: it never reports more than [`Room::Enough`] for a disk that had less than the floor a second ago.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::platform;

/// How long an answer of the disk is good for, while there is enough room.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes a reopened store needs to write its files anew.
const REOPENING_FREE_MIN: u64 = 16 << 20;

/// How much room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// Less than half of the floor: only what makes room goes on.
    Reserve,
    /// Less than the floor: nothing grows any more, rows can be deleted.
    Low,
    /// All is well.
    Enough,
}

/// Watches the free space of a folder's disk.
#[derive(Debug)]
pub struct DiskSpace {
    folder: PathBuf,
    /// Bytes that stay free; 0 asks for nothing.
    free_min: u64,
    asked: Mutex<Asked>,
    /// Bytes written since the disk was asked.
    written: AtomicU64,
}

#[derive(Debug)]
struct Asked {
    at: Option<Instant>,
    free: u64,
}

impl DiskSpace {
    /// Watches the disk of `folder`, of which `free_min` bytes are to stay free.
    pub fn new(folder: &Path, free_min: u64) -> Self {
        let asked = Mutex::new(Asked { at: None, free: u64::MAX });
        Self { folder: folder.to_owned(), free_min, asked, written: AtomicU64::new(0) }
    }

    /// Bytes that were free when the disk was asked last, at most a second ago.
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
        // A disk that does not answer is found out by writing to it.
        asked.free = match platform::free_bytes(&self.folder) {
            Ok(free) => free.unwrap_or(u64::MAX),
            Err(error) => {
                tracing::warn!(%error, "the free space of the disk is not known");
                u64::MAX
            }
        };
    }

    /// How much room there is now.
    pub fn room(&self) -> Room {
        match self.free_bytes() {
            free if free < self.free_min / 2 => Room::Reserve,
            free if free < self.free_min => Room::Low,
            _ => Room::Enough,
        }
    }

    /// Notes bytes that were written, so that the disk is asked earlier when they are many.
    pub fn note_written(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Refuses what needs room when there is not enough.
    ///
    /// # Errors
    /// 53100 then.
    pub fn check(&self) -> Result<()> {
        match self.room() {
            Room::Enough => Ok(()),
            Room::Low | Room::Reserve => Err(self.full()),
        }
    }

    /// Refuses to write so many bytes when the floor would not stay free.
    ///
    /// # Errors
    /// 53100 then.
    pub fn check_room_for(&self, bytes: u64) -> Result<()> {
        let free = self.free_bytes();
        let needed = self.free_min.saturating_add(bytes);
        if self.free_min > 0 && free < needed { Err(full(free, needed)) } else { Ok(()) }
    }

    /// Refuses to reopen the store when there is not enough room for that, whatever the floor is.
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

    /// Why something was refused.
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
