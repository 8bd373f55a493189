//! The data directory: who may use it, which format it has, what was known to be synced.
//!
//! ```text
//! DATA_DIR/LOCK         held by the process that has the database open
//! DATA_DIR/FORMAT       text: `kalamdb`, `format 1`, `features` and a list of them
//! DATA_DIR/store/       RocksDB
//! DATA_DIR/segments/    Parquet
//! DATA_DIR/synced-seq   28 bytes: "KSEQ" | epoch u32 LE | seq u64 LE | not seq u64 LE | not epoch u32 LE
//! ```
//!
//! Invariant: nothing of the store is opened before the lock is held and the format is known to be readable.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind as IoErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::failpoint;
use crate::ids::{Epoch, Seq};

/// The newest format this program reads and writes.
const FORMAT_VERSION: u32 = 1;
const NOTE_MAGIC: [u8; 4] = *b"KSEQ";
const NOTE_BYTES: usize = 28;

/// A data directory that this process holds the lock of, until the value is dropped.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    note: Mutex<File>,
    _lock: File,
}

impl DataDirectory {
    /// Takes `path` for this process, creating it when it does not exist.
    ///
    /// # Errors
    /// `Unavailable` when another process has it, when it cannot be written, or when its format is newer than this program.
    pub fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).map_err(|error| unusable(path, error))?;
        let lock = open_file(&path.join("LOCK")).map_err(|error| unusable(path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held_by_another_process(path)),
            Err(TryLockError::Error(error)) => return Err(unusable(path, error)),
        }
        check_format(path)?;
        let note = open_file(&path.join("synced-seq")).map_err(|error| unusable(path, error))?;
        Ok(Self { path: path.to_owned(), note: Mutex::new(note), _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where RocksDB lives.
    pub(crate) fn store_path(&self) -> PathBuf {
        self.path.join("store")
    }

    /// Where the segments on this machine live.
    pub(crate) fn segments_path(&self) -> PathBuf {
        self.path.join("segments")
    }

    /// The last seq that was known to be on stable storage, and the epoch it was written in; `None` when nothing was noted or
    /// the note itself is damaged.
    pub(crate) fn synced_seq(&self) -> Option<(Epoch, Seq)> {
        let bytes = fs::read(self.path.join("synced-seq")).ok()?;
        decode_note(&bytes)
    }

    /// Notes that everything up to `seq` is on stable storage. The note is not synced: after a power loss it may be older than
    /// the store, never newer.
    pub(crate) fn note_synced_seq(&self, epoch: Epoch, seq: Seq) {
        let mut file = self.note.lock();
        let written = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&encode_note(epoch, seq)));
        if let Err(error) = written {
            tracing::warn!(%error, "could not note the synced seq");
        }
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn check_format(path: &Path) -> Result<()> {
    let file = path.join("FORMAT");
    match fs::read_to_string(&file) {
        Ok(text) => check_format_text(&text),
        Err(error) if error.kind() == IoErrorKind::NotFound => {
            if path.join("store").join("CURRENT").exists() {
                return Err(Error::corruption("the data directory has a store but no FORMAT file")
                    .hint("restore the file FORMAT, or the directory from a backup"));
            }
            write_format(&file).map_err(|error| unusable(path, error))
        }
        Err(error) => Err(unusable(path, error)),
    }
}

fn check_format_text(text: &str) -> Result<()> {
    let damaged = || {
        Error::corruption("the FORMAT file of the data directory cannot be read")
            .hint("restore the data directory from a backup")
    };
    let mut lines = text.lines();
    if lines.next() != Some("kalamdb") {
        return Err(damaged());
    }
    let version: u32 = lines
        .next()
        .and_then(|line| line.strip_prefix("format "))
        .and_then(|version| version.parse().ok())
        .ok_or_else(damaged)?;
    let features = lines.next().and_then(|line| line.strip_prefix("features")).ok_or_else(damaged)?;
    if version > FORMAT_VERSION {
        return Err(newer(format!(
            "the data directory has format {version}, this program reads up to {FORMAT_VERSION}"
        )));
    }
    match features.split_whitespace().next() {
        Some(feature) => Err(newer(format!("the data directory needs the feature \"{feature}\""))),
        None => Ok(()),
    }
}

/// Written to a temporary name and renamed, so that a crash leaves either no FORMAT file or a whole one.
fn write_format(file: &Path) -> io::Result<()> {
    let temporary = file.with_extension("new");
    let mut writer = File::create(&temporary)?;
    writer.write_all(format!("kalamdb\nformat {FORMAT_VERSION}\nfeatures\n").as_bytes())?;
    writer.sync_all()?;
    failpoint::step("open::format").map_err(io::Error::other)?;
    fs::rename(&temporary, file)?;
    match file.parent() {
        Some(parent) => sync_directory(parent),
        None => Ok(()),
    }
}

#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(not(unix))]
fn sync_directory(_path: &Path) -> io::Result<()> {
    Ok(())
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

fn newer(message: String) -> Error {
    Error::new(ErrorKind::Unavailable, SqlState::OBJECT_NOT_IN_STATE, message)
        .hint("open it with the version that wrote it, or a newer one")
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
    .hint("choose a directory this user can write")
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
    fn newer_formats_and_features_are_refused() {
        check_format_text("kalamdb\nformat 1\nfeatures\n").unwrap();
        for (text, kind) in [
            ("kalamdb\nformat 2\nfeatures\n", ErrorKind::Unavailable),
            ("kalamdb\nformat 1\nfeatures encryption\n", ErrorKind::Unavailable),
            ("kalamdb\nformat x\nfeatures\n", ErrorKind::Corruption),
            ("something else\n", ErrorKind::Corruption),
            ("", ErrorKind::Corruption),
        ] {
            assert_eq!(check_format_text(text).unwrap_err().kind(), kind, "{text:?}");
        }
    }

    #[test]
    fn a_path_that_is_a_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = DataDirectory::open(file.path()).unwrap_err();
        assert_eq!(error.sqlstate(), SqlState::IO_ERROR);
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
