//! The data directory: its lock, its format, and the last seq known to be synced.
//!
//! ```text
//! DATA_DIR/LOCK         held by the process that has the database open
//! DATA_DIR/FORMAT       the version and the features of the directory, drawn in `format`
//! DATA_DIR/store/       RocksDB
//! DATA_DIR/segments/    Parquet
//! DATA_DIR/spool/       Parquet files during their upload to an object store
//! DATA_DIR/spill/       what running queries cannot keep in memory
//! DATA_DIR/synced-seq   28 bytes: "KSEQ" | epoch u32 LE | seq u64 LE | not seq u64 LE | not epoch u32 LE
//! DATA_DIR/RESTORING    exists while a backup is restored into the directory
//! ```
//!
//! Invariant: the store is opened only under the lock, in a readable format, never after a partial restore.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind as IoErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::format::{self, Features, KNOWN_FEATURES};
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{Epoch, Seq};
use crate::platform;

const NOTE_MAGIC: [u8; 4] = *b"KSEQ";
const NOTE_BYTES: usize = 28;
const PROBE_BYTES: usize = 64 << 10;
/// The marker file of a directory that contains only a part of a backup.
const RESTORING: &str = "RESTORING";

/// A data directory whose lock this process holds until the value is dropped.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    features: Mutex<Features>,
    note: Mutex<File>,
    _lock: File,
}

impl DataDirectory {
    /// Locks `path` for this process; creates the directory when it does not exist.
    ///
    /// # Errors
    /// `Unavailable` when another process holds the lock, the format or a feature is too new, or writing is
    /// impossible.
    pub fn open(path: &Path) -> Result<Self> {
        Self::create(path).map_err(|error| unusable(path, error))?;
        let lock = take_lock(path)?;
        let features = check_format(path)?;
        Self::locked(path, features, lock)
    }

    /// Locks `path` for this process when it contains a database.
    ///
    /// # Errors
    /// 42704 when it contains none, else as [`DataDirectory::open`].
    pub(crate) fn open_existing(path: &Path) -> Result<Self> {
        if !path.join("FORMAT").is_file() && !path.join(RESTORING).exists() {
            return Err(Error::new(
                ErrorKind::NotFound,
                SqlState::UNDEFINED_OBJECT,
                format!("the directory \"{}\" contains no database", path.display()),
            )
            .hint("give the data directory of a server"));
        }
        Self::open(path)
    }

    /// Locks an empty directory, created when missing, as the target of a restore of a backup that uses
    /// `features`. The directory cannot be opened until [`DataDirectory::end_restore`].
    ///
    /// # Errors
    /// 55000 when the directory is not empty, else as [`DataDirectory::open`].
    pub(crate) fn begin_restore(path: &Path, features: Features) -> Result<Self> {
        fs::create_dir_all(path).map_err(|error| unusable(path, error))?;
        let mut entries = fs::read_dir(path).map_err(|error| unusable(path, error))?;
        if entries.next().is_some() {
            return Err(not_empty(path));
        }
        let lock = take_lock(path)?;
        let marked = File::create_new(path.join(RESTORING))
            .and_then(|marker| marker.sync_all())
            .and_then(|()| platform::sync_folder(path));
        match marked {
            Err(error) if error.kind() == IoErrorKind::AlreadyExists => return Err(not_empty(path)),
            marked => marked.map_err(|error| unusable(path, error))?,
        }
        Self::locked(path, features, lock)
    }

    /// Makes a restored directory ready to open. The caller has closed its store.
    ///
    /// # Errors
    /// 58030 when the operating system refuses.
    pub(crate) fn end_restore(&self) -> Result<()> {
        let path = &self.path;
        let ended = format::write(&path.join("FORMAT"), &self.features.lock())
            .and_then(|()| fs::remove_file(path.join(RESTORING)))
            .and_then(|()| platform::sync_folder(path))
            .and_then(|()| {
                path.parent().filter(|parent| parent.is_dir()).map_or(Ok(()), platform::sync_folder)
            });
        ended.map_err(|error| unusable(path, error))
    }

    /// Removes everything written since [`DataDirectory::begin_restore`], after a failed restore.
    ///
    /// # Errors
    /// As [`DataDirectory::end_restore`].
    pub(crate) fn undo_restore(self) -> Result<()> {
        let remove = || -> io::Result<()> {
            for folder in [self.store_path(), self.segments_path()] {
                match fs::remove_dir_all(folder) {
                    Err(error) if error.kind() != IoErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            ["synced-seq", RESTORING, "LOCK"]
                .iter()
                .try_for_each(|file| fs::remove_file(self.path.join(file)))
        };
        remove().map_err(|error| unusable(&self.path, error))
    }

    fn locked(path: &Path, features: Features, lock: File) -> Result<Self> {
        let note = open_file(&path.join("synced-seq")).map_err(|error| unusable(path, error))?;
        let (features, note) = (Mutex::new(features), Mutex::new(note));
        Ok(Self { path: path.to_owned(), features, note, _lock: lock })
    }

    /// Records durably that the directory uses a feature, which must happen before the first write that needs
    /// it. From then on, programs without the feature refuse the directory.
    ///
    /// # Errors
    /// 58030 when the operating system refuses.
    pub fn use_feature(&self, feature: &'static str) -> Result<()> {
        let mut features = self.features.lock();
        if features.contains(feature) {
            return Ok(());
        }
        let mut more = features.clone();
        more.insert(feature.to_owned());
        format::write(&self.path.join("FORMAT"), &more).map_err(|error| unusable(&self.path, error))?;
        *features = more;
        Ok(())
    }

    /// Returns the features that the directory uses.
    pub(crate) fn features(&self) -> Features {
        self.features.lock().clone()
    }

    /// Creates the directory at `path` and its missing parents durably: a name is durable once its parent
    /// folder is synced.
    ///
    /// # Errors
    /// Any error of the operating system.
    pub fn create(path: &Path) -> io::Result<()> {
        let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
        let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
        fs::create_dir_all(path)?;
        for made in missing {
            let parent = made.parent().filter(|parent| !parent.as_os_str().is_empty());
            platform::sync_folder(parent.unwrap_or(Path::new(".")))?;
        }
        Ok(())
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folder of RocksDB.
    pub(crate) fn store_path(&self) -> PathBuf {
        self.path.join("store")
    }

    /// Returns the folder of the segments in storage `local`.
    pub(crate) fn segments_path(&self) -> PathBuf {
        self.path.join("segments")
    }

    /// Returns the folder of files that wait for their upload to an object store; a restart empties it.
    pub(crate) fn spool_path(&self) -> PathBuf {
        self.path.join("spool")
    }

    /// Checks that the disk accepts writes: writes a file and removes it.
    ///
    /// # Errors
    /// `Unavailable` when the disk does not.
    pub(crate) fn probe(&self) -> Result<()> {
        let path = self.path.join("probe");
        let probed = platform::write_private(&path, &[0; PROBE_BYTES]);
        let removed = fs::remove_file(&path);
        probed.and(removed).map_err(|error| unusable(&self.path, error))
    }

    /// Returns the last seq known to be durable and its epoch; `None` when the note is missing or damaged.
    pub(crate) fn synced_seq(&self) -> Option<(Epoch, Seq)> {
        let bytes = fs::read(self.path.join("synced-seq")).ok()?;
        decode_note(&bytes)
    }

    /// Notes that everything up to `seq` is on stable storage. The note itself is not synced: after a power
    /// loss it may be older than the store, never newer.
    pub(crate) fn note_synced_seq(&self, epoch: Epoch, seq: Seq) {
        let mut file = self.note.lock();
        let written = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&encode_note(epoch, seq)));
        if let Err(error) = written {
            tracing::warn!(%error, "could not record the synced seq");
        }
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn take_lock(path: &Path) -> Result<File> {
    let lock = open_file(&path.join("LOCK")).map_err(|error| unusable(path, error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(held_by_another_process(path)),
        Err(TryLockError::Error(error)) => Err(unusable(path, error)),
    }
}

fn check_format(path: &Path) -> Result<Features> {
    if path.join(RESTORING).exists() {
        return Err(Error::new(
            ErrorKind::Unavailable,
            SqlState::OBJECT_NOT_IN_STATE,
            format!("the data directory \"{}\" contains an incomplete restore", path.display()),
        )
        .hint("empty the directory and restore the backup again"));
    }
    let file = path.join("FORMAT");
    match fs::read_to_string(&file) {
        Ok(text) => format::parse(&text, KNOWN_FEATURES),
        Err(error) if error.kind() == IoErrorKind::NotFound => {
            if path.join("store").join("CURRENT").exists() {
                return Err(Error::corruption("the data directory has a store but no FORMAT file")
                    .hint("restore the FORMAT file, or the directory from a backup"));
            }
            let features = Features::new();
            format::write(&file, &features).map_err(|error| unusable(path, error))?;
            Ok(features)
        }
        Err(error) if error.kind() == IoErrorKind::InvalidData => Err(format::damaged()),
        Err(error) => Err(unusable(path, error)),
    }
}

fn encode_note(epoch: Epoch, seq: Seq) -> [u8; NOTE_BYTES] {
    let mut note = [0; NOTE_BYTES];
    let parts: [&[u8]; 5] = [
        &NOTE_MAGIC,
        &epoch.0.to_le_bytes(),
        &seq.0.to_le_bytes(),
        &(!seq.0).to_le_bytes(),
        &(!epoch.0).to_le_bytes(),
    ];
    for (to, from) in note.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
    }
    note
}

fn decode_note(bytes: &[u8]) -> Option<(Epoch, Seq)> {
    let epoch = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
    let seq = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
    let note = (Epoch(epoch), Seq(seq));
    (bytes == encode_note(note.0, note.1)).then_some(note)
}

fn held_by_another_process(path: &Path) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        SqlState::OBJECT_NOT_IN_STATE,
        format!("the data directory \"{}\" is in use by another process", path.display()),
    )
    .hint("stop the other process, or choose another data directory")
}

fn not_empty(path: &Path) -> Error {
    Error::new(
        ErrorKind::AlreadyExists,
        SqlState::OBJECT_NOT_IN_STATE,
        format!("the directory \"{}\" is not empty", path.display()),
    )
    .hint("restore into a directory that is empty or does not exist")
}

fn unusable(path: &Path, error: io::Error) -> Error {
    let why = match error.kind() {
        IoErrorKind::PermissionDenied => "permission denied",
        IoErrorKind::ReadOnlyFilesystem => "the file system is read-only",
        IoErrorKind::StorageFull => "the disk is full",
        IoErrorKind::NotADirectory | IoErrorKind::AlreadyExists => "it is not a directory",
        _ => "the operating system refused",
    };
    Error::new(
        ErrorKind::Unavailable,
        SqlState::IO_ERROR,
        format!("the data directory \"{}\" cannot be used: {why}", path.display()),
    )
    .hint("choose a directory this user can write to")
    .source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_open_is_refused_until_the_first_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDirectory::open(folder.path()).unwrap();
        let error = DataDirectory::open(folder.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("in use by another process"));
        drop(first);
        DataDirectory::open(folder.path()).unwrap();
    }

    #[test]
    fn what_is_restored_in_part_cannot_be_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let begin = || DataDirectory::begin_restore(&path, Features::new());
        drop(begin().unwrap());
        let error = DataDirectory::open(&path).unwrap_err();
        assert!(error.to_string().contains("an incomplete restore"), "{error}");
        let error = begin().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        fs::remove_dir_all(&path).unwrap();
        let directory = begin().unwrap();
        fs::create_dir(directory.store_path()).unwrap();
        directory.undo_restore().unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        begin().unwrap().end_restore().unwrap();
        DataDirectory::open(&path).unwrap();
    }

    #[test]
    fn a_restored_directory_names_the_features_of_its_backup() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let features = Features::from(["indexes".to_owned(), "alter-table".to_owned()]);
        let directory = DataDirectory::begin_restore(&path, features.clone()).unwrap();
        assert!(!path.join("FORMAT").exists());
        directory.end_restore().unwrap();
        assert_eq!(directory.features(), features);
        let format = fs::read_to_string(path.join("FORMAT")).unwrap();
        assert_eq!(format, "kalamdb\nformat 1\nfeatures alter-table indexes\n");
    }

    #[test]
    fn a_feature_is_in_the_file_from_its_first_use_on() {
        let folder = tempfile::tempdir().unwrap();
        let format = || fs::read_to_string(folder.path().join("FORMAT")).unwrap();
        let directory = DataDirectory::open(folder.path()).unwrap();
        assert_eq!(format(), "kalamdb\nformat 1\nfeatures\n");
        directory.use_feature("time-travel").unwrap();
        directory.use_feature("time-travel").unwrap();
        assert_eq!(format(), "kalamdb\nformat 1\nfeatures time-travel\n");
        drop(directory);
        // No program knows this feature, so this one refuses its own directory.
        let error = DataDirectory::open(folder.path()).unwrap_err();
        assert_eq!(error.sqlstate(), SqlState::OBJECT_NOT_IN_STATE);
        assert!(error.message().contains("\"time-travel\""), "{error}");
        assert!(error.hint_text().unwrap().contains("newer kalamdb"), "{error}");
    }

    #[test]
    fn a_path_that_is_a_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = DataDirectory::open(file.path()).unwrap_err();
        assert_eq!(error.sqlstate(), SqlState::IO_ERROR);
    }

    #[test]
    fn the_bytes_of_the_note_are_frozen() {
        let note: [u8; 28] = [
            b'K', b'S', b'E', b'Q', // magic
            2, 1, 0, 0, // epoch
            4, 3, 0, 0, 0, 0, 0, 0, // seq
            0xFB, 0xFC, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, // not seq
            0xFD, 0xFE, 0xFF, 0xFF, // not epoch
        ];
        assert_eq!(encode_note(Epoch(0x0102), Seq(0x0304)), note);
        assert_eq!(decode_note(&note), Some((Epoch(0x0102), Seq(0x0304))));
    }

    #[test]
    fn the_note_survives_and_a_damaged_note_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let directory = DataDirectory::open(folder.path()).unwrap();
        assert_eq!(directory.synced_seq(), None);
        directory.note_synced_seq(Epoch(3), Seq(77));
        directory.note_synced_seq(Epoch(3), Seq(78));
        assert_eq!(directory.synced_seq(), Some((Epoch(3), Seq(78))));
        let mut note = encode_note(Epoch(3), Seq(78));
        note[9] ^= 1;
        assert_eq!(decode_note(&note), None);
        assert_eq!(decode_note(&note[..20]), None);
    }
}
